//! What crosses the boundary: requests as an enclave gets them, replies as a host gets them.
#![no_main]

use enclos::{
    abi::CallHeader,
    contract::{Party, Reply, Router, decode_args, decode_reply},
};
use libfuzzer_sys::fuzz_target;

/// Arguments of every shape that contracts have.
type Arguments = (u64, String, Vec<u8>, Option<(i32, bool)>, Vec<(String, u16)>, Result<(), String>);

fuzz_target!(|bytes: &[u8]| {
    let mut answer = Vec::new();
    let mut reply = Reply::new(&mut answer);
    Router::new().serve(bytes, &mut reply);
    let _ = reply.finish();

    let mut answer = Vec::new();
    let mut reply = Reply::new(&mut answer);
    let decoded = decode_args::<Arguments>(bytes, &mut reply);
    let (status, _) = reply.finish();
    // Arguments are understood, or refused with a reason.
    assert_eq!(decoded.is_some(), status == enclos::abi::status::OK);

    if let Some((header, rest)) = CallHeader::split(bytes)
        && let Some((status, payload)) = rest.split_first()
    {
        assert_eq!(
            CallHeader::split(&[&header.to_bytes()[..], rest].concat()).map(|(again, _)| again.to_bytes()),
            Some(header.to_bytes())
        );
        let _ = decode_reply::<Arguments>(Party::Enclave, header, u64::from(*status), payload);
        let _ = decode_reply::<Arguments>(Party::Host, header, u64::from(*status), payload);
    }
});
