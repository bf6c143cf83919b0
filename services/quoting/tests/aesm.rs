//! The emulated AESM and those who send it what makes no sense. What it does for others' clients: `tests/conformance/edp`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use enclos_host::Kind;
use enclos_host::aesm::messages::{GetQuoteExRequest, Request, Response, SelectAttKeyIdRequest};
use enclos_host::aesm::{
    ALGORITHM_AT, ATT_KEY_ID, Aesm, ECDSA_P256, algorithm, code, read_message, write_message,
};
use enclos_platform::emulator::machine::{Machine, MachineConfig};
use enclos_quoting::{AesmSocket, EmulatedQuoting};
use prost::Message as _;
use tempfile::TempDir;

struct Served {
    socket: AesmSocket,
    _folder: TempDir,
}

impl Served {
    fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let machine = Machine::new(&MachineConfig::with_seed([7; 32])).unwrap();
        let quoting = Arc::new(EmulatedQuoting::open(&machine, folder.path()).unwrap());
        let socket = AesmSocket::serve(&folder.path().join("aesm.socket"), quoting).unwrap();
        Self { socket, _folder: folder }
    }

    fn path(&self) -> PathBuf {
        self.socket.path().to_owned()
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).unwrap()
    }

    fn request(&self, request: &Request) -> Response {
        Aesm::at(self.path(), Kind::Emulated).request(request).unwrap()
    }
}

#[test]
fn what_is_no_request_is_refused_and_harms_nobody() {
    let served = Served::start();
    for message in [&[][..], &[0xff; 40], b"GET / HTTP/1.1\r\n\r\n", &[0x0a, 0x80]] {
        let mut connection = served.connect();
        write_message(&mut connection, message).unwrap();
        let answer = Response::decode(&*read_message(&mut connection).unwrap()).unwrap();
        let refused = answer.unsupported_request.unwrap().error_code;
        assert!([code::PARAMETER, code::SERVICE_UNAVAILABLE].contains(&refused), "{message:?}");
    }
    // Too long: not waited for.
    let mut connection = served.connect();
    connection.write_all(&u32::MAX.to_ne_bytes()).unwrap();
    assert_eq!(connection.read(&mut [0; 8]).unwrap(), 0);
    // Left in the middle.
    served.connect().write_all(&[9, 0, 0, 0, 1]).unwrap();
    served.connect().write_all(&[9]).unwrap();
    served.request(&select(vec![]));
}

#[test]
fn several_requests_may_come_on_one_connection_and_many_connections_at_once() {
    let served = Served::start();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut connection = served.connect();
                for _ in 0..20 {
                    write_message(&mut connection, &select(vec![]).encode_to_vec()).unwrap();
                    let answer = Response::decode(&*read_message(&mut connection).unwrap()).unwrap();
                    assert_eq!(answer.select_att_key_id.unwrap().error_code, code::SUCCESS);
                }
            });
        }
    });
}

fn select(att_key_id_list: Vec<u8>) -> Request {
    let select = SelectAttKeyIdRequest { att_key_id_list: Some(att_key_id_list), timeout: None };
    Request { select_att_key_id: Some(select), ..Request::default() }
}

#[test]
fn the_ecdsa_key_is_selected_where_it_is_acceptable() {
    let served = Served::start();
    let selected = served.request(&select(vec![])).select_att_key_id.unwrap();
    let id = selected.selected_att_key_id.unwrap();
    assert_eq!((id.len(), algorithm(&id)), (ATT_KEY_ID, Some(ECDSA_P256)));
    let epid = vec![0; ATT_KEY_ID];
    let both = [&*epid, &id].concat();
    assert_eq!(served.request(&select(both)).select_att_key_id.unwrap().error_code, code::SUCCESS);
    for list in [epid, id[..ALGORITHM_AT].to_vec()] {
        let refused = served.request(&select(list)).select_att_key_id.unwrap();
        assert_eq!((refused.error_code, refused.selected_att_key_id), (code::UNSUPPORTED_KEY, None));
    }
}

#[test]
fn quotes_need_a_whole_report_and_room() {
    let served = Served::start();
    let quote = |report: Vec<u8>, buf_size| {
        let get = GetQuoteExRequest { report, buf_size, ..GetQuoteExRequest::default() };
        let answer = served.request(&Request { get_quote_ex: Some(get), ..Request::default() });
        let answer = answer.get_quote_ex.unwrap();
        assert_eq!(answer.quote, None);
        answer.error_code
    };
    assert_eq!(quote(vec![0; 431], 1 << 20), code::PARAMETER);
    assert_eq!(quote(vec![0; 432], 100), code::PARAMETER);
    assert_eq!(quote(vec![0; 432], 1 << 20), code::INVALID_REPORT);
}

#[test]
fn it_stops_and_leaves_nothing_behind() {
    let served = Served::start();
    let path = served.path();
    drop(served.socket);
    assert!(!path.exists());
}
