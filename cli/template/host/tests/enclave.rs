//! Runs the enclave itself: `enclos build` first, then `cargo test`.

use enclos_host::CallError;
use {{ident}}_contract::{GreetError, GreeterClient};

#[test]
fn it_greets() {
    let enclave = {{ident}}_host::start().expect("run `enclos build` first");
    let greeter = enclave.connect::<GreeterClient<_>>().unwrap();
    assert!(greeter.greet("Ada").unwrap().ends_with(", Ada, from inside the enclave"));
    assert_eq!(greeter.greet(""), Err(CallError::Method(GreetError::NoName)));
}

#[test]
fn notes_stay_sealed_unless_untouched() {
    let enclave = {{ident}}_host::start().expect("run `enclos build` first");
    let greeter = enclave.connect::<GreeterClient<_>>().unwrap();
    let mut sealed = greeter.seal_note("secret").unwrap();
    assert!(!sealed.windows(6).any(|w| w == b"secret"));
    assert_eq!(greeter.read_note(&sealed).unwrap(), "secret");
    *sealed.last_mut().unwrap() ^= 1;
    assert!(matches!(greeter.read_note(&sealed), Err(CallError::Method(GreetError::Sealing(_)))));
}
