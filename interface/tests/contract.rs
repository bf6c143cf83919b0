//! Contracts from end to end, without an enclave in between: what is encoded arrives, what cannot be is refused.

#![allow(missing_docs, unreachable_pub, clippy::type_complexity)]

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use enclos::{
    abi::{self, CallHeader, status},
    contract::{
        CallError, Client, ConnectError, Dispatch, Failure, Full, Loopback, Party, Reply, Router, Sink,
        Transport,
    },
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum VaultError {
    #[error("no secret of the name `{0}`")]
    Missing(String),
    #[error("denied")]
    Denied,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry<'a> {
    name: &'a str,
    note: Cow<'a, str>,
    tags: Vec<String>,
}

/// Keeps secrets.
#[enclos::interface]
pub trait Vault {
    /// Stores one.
    fn store(&self, name: &str, secret: &[u8]) -> Result<(), VaultError>;
    fn fetch(&self, name: &str) -> Result<Vec<u8>, VaultError>;
    fn describe(&self, entry: Entry<'_>) -> String;
    fn count(&self) -> u32;
    fn clear(&self);
    #[allow(clippy::too_many_arguments)]
    fn shapes(
        &self,
        owned: Vec<u8>,
        fixed: [u8; 32],
        fixed_ref: &[u8; 4],
        maybe: Option<&[u8]>,
        nested: (u8, Option<Vec<u8>>),
        numbers: &[u64],
        names: &[&str],
        map: &BTreeMap<String, i32>,
    ) -> Result<(Vec<u8>, Option<[u8; 3]>, String), VaultError>;
}

#[derive(Default)]
struct Memory {
    secrets: Mutex<BTreeMap<String, Vec<u8>>>,
    cleared: AtomicU32,
}

impl Vault for Memory {
    fn store(&self, name: &str, secret: &[u8]) -> Result<(), VaultError> {
        if name.is_empty() {
            return Err(VaultError::Denied);
        }
        self.secrets.lock().unwrap().insert(name.into(), secret.into());
        Ok(())
    }

    fn fetch(&self, name: &str) -> Result<Vec<u8>, VaultError> {
        self.secrets.lock().unwrap().get(name).cloned().ok_or_else(|| VaultError::Missing(name.into()))
    }

    fn describe(&self, entry: Entry<'_>) -> String {
        format!("{}: {} {:?}", entry.name, entry.note, entry.tags)
    }

    fn count(&self) -> u32 {
        self.secrets.lock().unwrap().len() as u32
    }

    fn clear(&self) {
        self.secrets.lock().unwrap().clear();
        self.cleared.fetch_add(1, Ordering::Relaxed);
    }

    fn shapes(
        &self,
        owned: Vec<u8>,
        fixed: [u8; 32],
        fixed_ref: &[u8; 4],
        maybe: Option<&[u8]>,
        nested: (u8, Option<Vec<u8>>),
        numbers: &[u64],
        names: &[&str],
        map: &BTreeMap<String, i32>,
    ) -> Result<(Vec<u8>, Option<[u8; 3]>, String), VaultError> {
        let text = format!("{fixed:?} {fixed_ref:?} {maybe:?} {nested:?} {numbers:?} {names:?} {map:?}");
        Ok((owned, maybe.map(|m| m.try_into().unwrap()), text))
    }
}

fn client() -> VaultClient<Loopback> {
    VaultClient::connect(Loopback::new(VaultServer::new(Memory::default()))).unwrap()
}

#[test]
fn calls_arrive_and_errors_keep_their_type() {
    let vault = client();
    vault.store("key", b"value").unwrap();
    assert_eq!(vault.fetch("key").unwrap(), b"value");
    assert_eq!(vault.count().unwrap(), 1);
    assert_eq!(vault.store("", b""), Err(CallError::Method(VaultError::Denied)));
    assert_eq!(vault.fetch("x").unwrap_err().method(), Some(VaultError::Missing("x".into())));
    vault.clear().unwrap();
    assert_eq!(vault.count().unwrap(), 0);
    let entry = Entry { name: "n", note: "note".into(), tags: vec!["a".into()] };
    assert_eq!(vault.describe(entry).unwrap(), "n: note [\"a\"]");
}

#[test]
fn question_mark_works_on_every_method() {
    fn all(vault: &VaultClient<Loopback>) -> Result<u32, Box<dyn std::error::Error + Send + Sync>> {
        vault.store("a", b"b")?;
        Ok(vault.count()?)
    }
    assert_eq!(all(&client()).unwrap(), 1);
}

#[test]
fn every_shape_of_argument_and_result_arrives() {
    let map = BTreeMap::from([("k".to_owned(), -1)]);
    let (owned, three, text) = client()
        .shapes(
            vec![9; 5000],
            [7; 32],
            &[1, 2, 3, 4],
            Some(&[1, 2, 3]),
            (5, Some(vec![6])),
            &[u64::MAX],
            &["a", "b"],
            &map,
        )
        .unwrap();
    assert_eq!(owned, vec![9; 5000]);
    assert_eq!(three, Some([1, 2, 3]));
    let expected = format!(
        "{:?} [1, 2, 3, 4] Some([1, 2, 3]) (5, Some([6])) [18446744073709551615] [\"a\", \"b\"] {{\"k\": -1}}",
        [7; 32]
    );
    assert_eq!(text, expected);
}

mod elsewhere {
    /// Another trait of the same name: what a stale build looks like.
    #[enclos::interface]
    pub trait Vault {
        fn store(&self, name: &str) -> bool;
    }

    #[enclos::interface]
    pub trait Ledger {
        fn height(&self) -> u64;
    }
}

#[test]
fn mismatched_halves_do_not_connect() {
    let other = elsewhere::VaultClient::connect(Loopback::new(VaultServer(Memory::default()))).unwrap_err();
    let ConnectError::Mismatch { ours, theirs, callee } = &other else { panic!("{other}") };
    assert_eq!((ours.name.as_str(), theirs.name.as_str(), *callee), ("Vault", "Vault", Party::Enclave));
    assert_ne!(ours.hash, theirs.hash);
    assert!(
        other.to_string().contains("build both sides again from the same sources of `enclos`"),
        "{other}"
    );

    let missing =
        elsewhere::LedgerClient::connect(Loopback::new(VaultServer(Memory::default()))).unwrap_err();
    assert!(matches!(&missing, ConnectError::NotServed { served, .. } if *served == ["Vault"]), "{missing}");
}

struct Height;

impl elsewhere::Ledger for Height {
    fn height(&self) -> u64 {
        42
    }
}

#[test]
fn one_router_serves_several_contracts() {
    let mut router = Router::new();
    router.add(VaultServer(Memory::default()));
    router.add(elsewhere::LedgerServer(Height));
    let loopback = Loopback::of(router);
    assert_eq!(elsewhere::LedgerClient::connect(loopback.clone()).unwrap().height(), Ok(42));
    assert_eq!(VaultClient::connect(loopback).unwrap().count(), Ok(0));
}

fn raw(router: &Router, request: &[u8], sink: &mut dyn Sink) -> (u64, u64) {
    let mut reply = Reply::new(sink);
    router.serve(request, &mut reply);
    reply.finish()
}

#[test]
fn malformed_requests_are_refused() {
    let mut router = Router::new();
    router.add(VaultServer(Memory::default()));
    let request = |contract, method, args: &[u8]| {
        let mut request = CallHeader { contract, method }.to_bytes().to_vec();
        request.extend_from_slice(args);
        request
    };
    let cases = [
        (vec![], status::BAD_ARGUMENTS),
        (vec![0; 7], status::BAD_ARGUMENTS),
        (request(1, 0, &[]), status::NO_SUCH_METHOD),
        (request(0, 6, &[]), status::NO_SUCH_METHOD),
        (request(abi::CONTROL, 77, &[]), status::NO_SUCH_METHOD),
        (request(abi::CONTROL, abi::CONNECT, &[1]), status::BAD_ARGUMENTS),
        // A string that says it is longer than the request.
        (request(0, 1, &[0xff, 0xff, 0xff, 0xff, 0x0f, b'a']), status::BAD_ARGUMENTS),
        // Not UTF-8.
        (request(0, 1, &[1, 0xff]), status::BAD_ARGUMENTS),
        // Something after the last argument.
        (request(0, 1, &[1, b'a', 0]), status::BAD_ARGUMENTS),
        (request(0, 1, &[1, b'a']), status::OK),
    ];
    for (request, expected) in cases {
        assert_eq!(raw(&router, &request, &mut Vec::new()).0, expected, "{request:?}");
    }
}

/// A buffer of fixed size, as the boundary has.
struct Fixed {
    room: [u8; 100],
    kept: Option<Vec<u8>>,
}

impl Sink for Fixed {
    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Full> {
        let room = self.room.get_mut(offset..offset + bytes.len()).ok_or(Full)?;
        room.copy_from_slice(bytes);
        Ok(())
    }

    fn stash(&mut self, reply: Vec<u8>) {
        self.kept = Some(reply);
    }
}

#[test]
fn a_reply_that_does_not_fit_is_kept_whole() {
    let memory = Memory::default();
    memory.store("a", &[5; 97]).unwrap();
    memory.store("b", &[6; 98]).unwrap();
    memory.store("", &[]).unwrap_err();
    let mut router = Router::new();
    router.add(VaultServer(memory));
    let mut sink = Fixed { room: [0; 100], kept: None };
    let request =
        |name: u8| [CallHeader { contract: 0, method: 1 }.to_bytes().as_slice(), &[1, name]].concat();
    // One byte says Ok, one is the length.
    assert_eq!(raw(&router, &request(b'a'), &mut sink), (status::OK, 99));
    assert_eq!(raw(&router, &request(b'b'), &mut sink), (status::OK, 100));
    assert!(sink.kept.is_none());
    let memory = Memory::default();
    memory.store("c", &[7; 99]).unwrap();
    router.add(VaultServer(memory));
    assert_eq!(raw(&router, &request(b'c'), &mut sink), (status::REPLY_TOO_LARGE, 101));
    assert_eq!(sink.kept.unwrap()[2..], [7; 99]);
}

/// A transport whose other side replies whatever it likes.
struct Lying(u64, Vec<u8>);

impl Transport for Lying {
    const CALLEE: Party = Party::Host;

    fn call<A, R>(&self, header: CallHeader, _: &A) -> Result<R, Failure>
    where
        A: Serialize + ?Sized,
        R: serde::de::DeserializeOwned,
    {
        enclos::contract::decode_reply(Self::CALLEE, header, self.0, &self.1)
    }
}

#[test]
fn replies_that_are_none_are_told_apart() {
    let outcome = |status, payload: &[u8]| {
        let vault = client().with_transport(Lying(status, payload.to_vec()));
        vault.count().unwrap_err().failure().cloned().unwrap()
    };
    assert!(matches!(outcome(status::OK, &[]), Failure::BadReply { callee: Party::Host, .. }));
    assert!(matches!(outcome(status::OK, &[1, 1]), Failure::BadReply { .. }));
    assert!(matches!(outcome(99, &[]), Failure::BadReply { .. }));
    let panicked = outcome(status::PANICKED, b"index out of bounds \xff");
    assert!(
        matches!(&panicked, Failure::Panicked { message, .. } if message.starts_with("index out of bounds"))
    );
    assert_eq!(panicked.at_fault(), Party::Host);
    assert_eq!(outcome(status::BAD_ARGUMENTS, &[]).at_fault(), Party::Caller);
}

#[test]
fn the_description_is_json_between_its_marks() {
    let contract = <VaultClient<Loopback> as Client<Loopback>>::CONTRACT;
    assert_eq!(contract.hash, VaultServer(Memory::default()).contract().hash);
    let text = contract.description;
    let json = text.strip_prefix("\x01ENCLOS-CONTRACT:").unwrap().strip_suffix("\x01END").unwrap();
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(json["name"], "Vault");
    assert_eq!(json["crate"], "enclos");
    let hash: String = contract.hash.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(json["hash"], hash.as_str());
    assert_eq!(json["methods"][1]["name"], "fetch");
    assert_eq!(json["methods"][1]["args"][0]["type"], "&str");
    assert_eq!(json["methods"][1]["result"], "Result<Vec<u8>, VaultError>");
    assert_eq!(json["methods"][2]["args"][0]["type"], "Entry<'_>");
    assert_eq!(json["methods"][4]["result"], "()");
    let shapes = json["methods"][5]["args"].as_array().unwrap();
    let types: Vec<_> = shapes.iter().map(|a| a["type"].as_str().unwrap()).collect();
    let expected = [
        "Vec<u8>",
        "[u8; 32]",
        "&[u8; 4]",
        "Option<&[u8]>",
        "(u8, Option<Vec<u8>>)",
        "&[u64]",
        "&[&str]",
        "&BTreeMap<String, i32>",
    ];
    assert_eq!(types, expected);
}

#[test]
fn what_cannot_be_a_contract_is_refused_where_it_stands() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
