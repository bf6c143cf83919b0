//! Host, runtime and enclave library together, on the emulator: every way in which a call can go.

#![allow(missing_docs)]

mod support;

use std::io::{Read as _, Write as _, pipe};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use enclos::contract::{CallError, ConnectError, End, Failure, Party};
use enclos_host::{Builder, Captured, Enclave, EnclaveTransport, LogLevel};
use enclos_platform::emulator::Emulator;
use enclos_platform::emulator::machine::{Machine, MachineConfig};
use enclos_test_guest::*;

const CONFIG: &str = "threads = 4\nheap = \"16 MiB\"\nservices = [\"Oracle\", \"Unserved\", \"Quoting\"]\nenv = [\"GREETING\"]\n";

/// The machine that all tests run on.
fn emulator() -> Arc<Emulator> {
    static EMULATOR: OnceLock<Arc<Emulator>> = OnceLock::new();
    EMULATOR
        .get_or_init(|| {
            let config = MachineConfig::with_seed([7; 32]);
            Arc::new(Emulator::on(Machine::new(&config).unwrap()))
        })
        .clone()
}

fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| support::sign(CONFIG, false))
}

fn builder() -> Builder {
    Enclave::builder(image()).on(emulator())
}

/// The host's side of `Oracle`. Calls back into the enclave on the way down.
#[derive(Clone, Default)]
struct Host {
    back: Arc<OnceLock<GuestClient<EnclaveTransport>>>,
}

impl Oracle for Host {
    fn nothing(&self) {}

    fn down(&self, depth: u32) -> Result<u32, String> {
        match depth {
            0 => Ok(0),
            depth => match self.back.get().unwrap().down(depth - 1) {
                Ok(below) => Ok(below + 1),
                Err(CallError::Method(text)) => Err(text),
                Err(CallError::Failed(f)) => Err(format!("{f}")),
            },
        }
    }

    fn echo(&self, data: &[u8]) -> Vec<u8> {
        data.to_vec()
    }

    fn panic(&self, text: &str) {
        panic!("{text}");
    }
}

fn start() -> (Enclave, GuestClient<EnclaveTransport>) {
    let host = Host::default();
    let enclave = builder().service(OracleServer::new(host.clone())).start().unwrap();
    let guest = enclave.connect::<GuestClient<_>>().unwrap();
    host.back.set(guest.clone()).unwrap();
    (enclave, guest)
}

#[test]
fn calls_bring_results_and_errors_back() {
    let (_enclave, guest) = start();
    guest.nothing().unwrap();
    assert_eq!(guest.add(40, 2), Ok(42));
    assert_eq!(guest.echo(b"abc").unwrap(), b"abc");
    assert_eq!(guest.refuse("no"), Err(CallError::Method(Refused("no".into()))));
    for len in [0, 1, 63, 4096, 65_536, 65_537, 1 << 20, 5 << 20] {
        let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
        assert!(guest.large(len).unwrap() == data, "{len}");
        if len <= 1 << 20 {
            assert!(guest.echo(&data).unwrap() == data, "{len}");
        }
    }
}

#[test]
fn several_contracts_are_served_and_others_refused() {
    let (enclave, _guest) = start();
    assert_eq!(enclave.connect::<SecondClient<_>>().unwrap().name().unwrap(), "second");
    let error = enclave.connect::<OracleClient<_>>().unwrap_err();
    assert!(
        matches!(&error, ConnectError::NotServed { served, .. } if *served == ["Guest", "Second"]),
        "{error}"
    );

    let other = Enclave::builder(support::sign(CONFIG, true)).on(emulator()).start().unwrap();
    let error = other.connect::<SecondClient<_>>().unwrap_err();
    assert!(matches!(&error, ConnectError::Mismatch { callee: Party::Enclave, .. }), "{error}");
}

#[test]
fn a_panic_fails_its_call_only() {
    let (_enclave, guest) = start();
    for _ in 0..20 {
        let error = guest.panic("gone wrong").unwrap_err();
        let expected = Failure::Panicked { callee: Party::Enclave, message: "gone wrong".into() };
        assert_eq!(error, CallError::Failed(expected));
    }
    assert_eq!(guest.add(1, 1), Ok(2));
}

#[test]
fn calls_run_at_once_on_as_many_threads_as_there_are() {
    let (_enclave, guest) = start();
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| guest.meet(4).unwrap());
        }
    });
    std::thread::scope(|s| {
        for t in 0..8 {
            let guest = &guest;
            s.spawn(move || (0..2000).for_each(|i| assert_eq!(guest.add(t, i), Ok(t + i))));
        }
    });
}

#[test]
fn a_call_waits_for_a_thread_and_then_gives_up() {
    let mut limits = enclos_host::Limits::default();
    limits.wait_for_thread = Duration::from_secs(2);
    let enclave = builder().limits(limits).start().unwrap();
    let guest = enclave.connect::<GuestClient<_>>().unwrap();
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| guest.sleep(4500).unwrap());
        }
        // When the last of them begins is the scheduler's to say.
        let begun = Instant::now();
        let busy = loop {
            match guest.add(1, 2) {
                Ok(3) if begun.elapsed() < Duration::from_secs(4) => {}
                other => break other,
            }
        };
        assert!(matches!(busy, Err(CallError::Failed(Failure::Busy { .. }))), "{busy:?}");
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(guest.add(1, 2), Ok(3), "frees up within the limit");
    });
}

#[test]
fn host_services_answer_and_nest() {
    let (_enclave, guest) = start();
    guest.host_nothing(10).unwrap();
    for len in [0usize, 100, 30_000, 62_000, 70_000, 3 << 20] {
        let data = vec![7; len];
        assert!(guest.host_echo(&data).unwrap() == data, "{len}");
    }
    assert!(guest.host_panic().unwrap().contains("the host panicked: host gone wrong"));
    assert_eq!(guest.down(0), Ok(0));
    assert_eq!(guest.down(1), Ok(1));
    assert_eq!(guest.down(7), Ok(7));
    let error = guest.down(40).unwrap_err().method().unwrap();
    assert!(error.contains("nest deeper than 8"), "{error}");
    assert_eq!(guest.down(3), Ok(3), "everything unwound in order");
}

#[test]
fn only_services_of_the_manifest_are_called() {
    let (_enclave, guest) = start();
    let error = guest.unlisted().unwrap();
    assert!(error.contains("`Unlisted`") && error.contains("enclos.toml"), "{error}");
    let error = guest.unserved().unwrap();
    assert!(error.contains("the host does not serve Unserved"), "{error}");
}

#[test]
fn output_log_arguments_and_environment() {
    let (out, log) = (Captured::default(), Arc::new(Mutex::new(Vec::new())));
    let records = log.clone();
    let enclave = builder()
        .stdout(out.clone())
        .log(move |level, text| records.lock().unwrap().push((level, text.to_owned())))
        .start()
        .unwrap();
    enclave.connect::<GuestClient<_>>().unwrap().say("hello, world").unwrap();
    assert_eq!(out.text(), "hello, world\n");
    assert_eq!(*log.lock().unwrap(), [(LogLevel::Warn, "hello, world".to_owned())]);

    let out = Captured::default();
    let enclave = builder()
        .stdout(out.clone())
        .arg("17")
        .env("GREETING", "hi")
        .env("LD_PRELOAD", "evil")
        .start()
        .unwrap();
    assert_eq!(enclave.wait(), Ok(17));
    assert_eq!(out.text(), "status 17, greeting Some(\"hi\")\n");
    let error = enclave.connect::<GuestClient<_>>().unwrap_err();
    assert_eq!(error, ConnectError::Failed(Failure::Ended(End::Exited { status: 17 })));
}

#[test]
fn shutdown_lets_the_program_finish() {
    let out = Captured::default();
    let enclave = builder().stdout(out.clone()).start().unwrap();
    let guest = enclave.connect::<GuestClient<_>>().unwrap();
    guest.nothing().unwrap();
    assert_eq!(enclave.shutdown(Duration::from_secs(10)), Ok(0));
    assert_eq!(out.text(), "no more calls\n");
    assert_eq!(guest.add(1, 1), Err(CallError::Failed(Failure::Ended(End::Exited { status: 0 }))));
}

#[test]
fn exit_within_a_call_ends_everything() {
    let (enclave, guest) = start();
    std::thread::scope(|s| {
        let blocked = s.spawn(|| guest.block());
        let spinning = s.spawn(|| guest.spin());
        std::thread::sleep(Duration::from_millis(100));
        let ended = Failure::Ended(End::Exited { status: 3 });
        assert_eq!(guest.exit(3), Err(CallError::Failed(ended.clone())));
        assert_eq!(blocked.join().unwrap(), Err(CallError::Failed(ended.clone())));
        assert_eq!(spinning.join().unwrap(), Err(CallError::Failed(ended)));
    });
    assert_eq!(enclave.wait(), Ok(3));
}

#[test]
fn a_fault_ends_the_enclave_and_not_the_host() {
    let (enclave, guest) = start();
    let error = guest.crash().unwrap_err();
    let CallError::Failed(Failure::Ended(End::Faulted { vector, .. })) = &error else { panic!("{error:?}") };
    assert_eq!(*vector, 14, "{error}");
    assert_eq!(guest.add(1, 1).unwrap_err(), error, "later calls say why");
    assert!(matches!(enclave.wait(), Err(End::Faulted { .. })));
    let (_enclave, guest) = start();
    assert_eq!(guest.add(1, 1), Ok(2), "others are not affected");
}

#[test]
fn a_debug_image_says_where_it_faulted_and_no_other_does() {
    let fault_of = |image: Vec<u8>| {
        let enclave = Enclave::builder(image).on(emulator()).start().unwrap();
        enclave.connect::<GuestClient<_>>().unwrap().crash().unwrap_err();
        let Err(End::Faulted { vector: 14, thread: _, text }) = enclave.wait() else {
            panic!("no page fault")
        };
        text
    };
    let said = fault_of(support::sign(&format!("{CONFIG}debug = true\n"), false));
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("page fault (#PF) at application+0x"), "{said}");
    assert!(lines[1].starts_with("   0: ") && lines[1].contains("Guest"), "{said}");
    assert!(lines[2..].iter().any(|l| l.contains("enclos_enclave::serve")), "{said}");
    assert_eq!(fault_of(image().to_vec()), "page fault (#PF)", "addresses of others would help attackers");
}

#[test]
fn a_debug_image_says_who_panicked_where_backtraces_are_wanted() {
    const NAME: &str = "a_debug_image_says_who_panicked_where_backtraces_are_wanted";
    const WANTED: &str = "RUST_BACKTRACE";
    let wanted = std::env::var("ENCLOS_TEST_PANICS").ok();
    let Some(wanted) = wanted else {
        // The environment is a process's: once with and once without.
        for wanted in ["1", "0"] {
            let mut again = Command::new(std::env::current_exe().unwrap());
            let again = again.args(["--exact", NAME]).env(WANTED, wanted).env("ENCLOS_TEST_PANICS", wanted);
            let done = again.output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        }
        return;
    };
    let said_of = |image: Vec<u8>| {
        let err = Captured::default();
        let enclave = Enclave::builder(image).on(emulator()).stderr(err.clone()).start().unwrap();
        enclave.connect::<GuestClient<_>>().unwrap().panic("at once").unwrap_err();
        err.text()
    };
    let said = said_of(support::sign(&format!("{CONFIG}debug = true\n"), false));
    let callers: Vec<&str> = said.lines().skip_while(|l| !l.starts_with("   0: ")).collect();
    assert!(said.contains("at once"), "{said}");
    if wanted == "1" {
        assert!(callers.iter().any(|l| l.contains("enclos_test_guest::Guest")), "{said}");
        assert!(callers.iter().any(|l| l.contains("enclos_enclave::serve")), "{said}");
        assert!(!said.contains("default_hook"), "{said}");
    } else {
        assert!(callers.is_empty(), "{said}");
    }
    assert!(!said_of(image().to_vec()).contains("   0: "), "addresses of others would help attackers");
}

/// What a party that remembers the state of sealed files can tell by it.
#[test]
fn the_state_of_sealed_files_tells_older_other_and_altered_ones() {
    type State = Result<([u8; 16], u64, Vec<u8>), i32>;
    const ENOENT: i32 = 2;
    const EIO: i32 = 5;
    let mount = "[[mounts]]\npath = \"/data\"\nkind = \"sealed\"\n";
    let image = support::sign(&format!("{CONFIG}{mount}"), false);
    let directory = tempfile::tempdir().unwrap();
    // The state at a start, and what becomes of it when this is written.
    let visit = |data: Option<&[u8]>| -> (State, State) {
        let enclave = Enclave::builder(image.clone()).on(emulator()).mount("/data", directory.path());
        let enclave = enclave.log(|_, _| {}).start().unwrap();
        let guest = enclave.connect::<GuestClient<_>>().unwrap();
        let ask = || match guest.sealed_state("/data") {
            Ok(state) => Ok(state),
            Err(CallError::Method(errno)) => Err(errno),
            Err(CallError::Failed(e)) => panic!("{e}"),
        };
        assert!(matches!(guest.sealed_state("/elsewhere"), Err(CallError::Method(ENOENT))));
        let before = ask();
        if let Some(data) = data {
            guest.keep("/data/file", data).unwrap();
            // Nothing of this is durable, so it is not part of the state.
            let durable = ask();
            assert!(guest.sealed_state("/data") == durable.clone().map_err(CallError::Method));
            return (before, durable);
        }
        (before.clone(), before)
    };
    let (fresh, first) = visit(Some(b"one"));
    let (fresh, first) = (fresh.unwrap(), first.unwrap());
    assert!(first.0 == fresh.0 && first.1 > fresh.1 && first.2 != fresh.2);
    assert_eq!(visit(None).0, Ok(first.clone()), "it is the same after a restart");
    let files = ["root", "blocks"];
    let read = || files.map(|f| std::fs::read(directory.path().join(f)).unwrap());
    let write = |contents: &[Vec<u8>; 2]| {
        files.iter().zip(contents).for_each(|(f, c)| std::fs::write(directory.path().join(f), c).unwrap());
    };
    let old = read();
    let (again, second) = visit(Some(b"two"));
    let second = second.unwrap();
    assert_eq!(again, Ok(first.clone()));
    assert!(second.0 == first.0 && second.1 > first.1 && second.2 != first.2);
    // The same contents once more are another state.
    let third = visit(Some(b"two")).1.unwrap();
    assert!(third.1 > second.1 && third.2 != second.2);
    let new = read();

    write(&old);
    assert_eq!(visit(None).0, Ok(first.clone()), "an older one is told by generation and digest");
    let otherwise = visit(Some(b"2nd")).1.unwrap();
    assert!(otherwise.1 == second.1 && otherwise.2 != second.2, "another way from there by the digest alone");
    write(&[old[0].clone(), new[1].clone()]);
    assert_eq!(visit(None).0, Err(EIO), "one of the two files older");
    let mut refused = 0;
    for (file, at) in [(0, 100), (0, 4096 + 200), (1, 80), (1, 2 * 4096 + 1), (1, 3 * 4096)] {
        let mut altered = new.clone();
        altered[file][at] ^= 1;
        write(&altered);
        match visit(None).0 {
            Ok(state) => assert_eq!(state, third, "byte {at} of {}", files[file]),
            Err(errno) => {
                assert!(errno == EIO || errno == 13, "{errno}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "no alteration was noticed");
    files.iter().for_each(|f| std::fs::remove_file(directory.path().join(f)).unwrap());
    assert_ne!(visit(None).0.unwrap().0, first.0, "one that was emptied is another volume");
}

#[test]
fn deadlines_take_threads_out() {
    let (_enclave, guest) = start();
    let hasty = guest.with_deadline(Duration::from_millis(50));
    // A busy machine may keep a call waiting for longer than that.
    let patient = guest.with_deadline(Duration::from_secs(20));
    assert_eq!(patient.add(1, 2), Ok(3));
    for method in [GuestClient::spin, GuestClient::block, |g: &GuestClient<_>| g.sleep(60_000)] {
        let begun = Instant::now();
        let error = method(&hasty).unwrap_err();
        let limit = Duration::from_millis(50);
        assert_eq!(error, CallError::Failed(Failure::DeadlineExceeded { limit }));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(guest.add(1, 2), Ok(3), "the others go on");
    }
    // Three of the four threads are gone now.
    for _ in 0..1000 {
        assert_eq!(patient.add(1, 2), Ok(3));
    }
}

#[test]
fn dropping_the_enclave_ends_calls() {
    let (enclave, guest) = start();
    std::thread::scope(|s| {
        let spinning = s.spawn(|| guest.spin());
        std::thread::sleep(Duration::from_millis(50));
        drop(enclave);
        assert_eq!(spinning.join().unwrap(), Err(CallError::Failed(Failure::Ended(End::ShutDown))));
    });
    assert_eq!(guest.add(1, 1), Err(CallError::Failed(Failure::Ended(End::ShutDown))));
}

/// The host's side of `Oracle`, whose `echo` says that it was called and then waits for a word.
struct Waiting {
    called: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl Oracle for Waiting {
    fn nothing(&self) {}

    fn down(&self, _: u32) -> Result<u32, String> {
        Ok(0)
    }

    fn echo(&self, data: &[u8]) -> Vec<u8> {
        self.called.send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
        data.to_vec()
    }

    fn panic(&self, _: &str) {}
}

/// A call that is still in the host when its enclave ends, and a process that has just been forked, hold on to what
/// belongs to the enclave. The next one must not depend on them.
#[test]
fn an_enclave_that_was_dropped_leaves_its_files_and_ports_to_the_next() {
    // Nobody else listens at such an address.
    let address = std::net::TcpListener::bind("127.0.86.71:0").unwrap().local_addr().unwrap().to_string();
    let more =
        format!("[network]\nlisten = [\"{address}\"]\n[[mounts]]\npath = \"/data\"\nkind = \"sealed\"\n");
    let image = support::sign(&format!("{CONFIG}{more}"), false);
    let directory = tempfile::tempdir().unwrap();
    let start = || {
        let ((called, calls), (word, go_on)) = (channel(), channel());
        let waiting = Waiting { called, go_on: Mutex::new(go_on) };
        let enclave = Enclave::builder(image.clone()).on(emulator()).mount("/data", directory.path());
        let enclave = enclave.service(OracleServer::new(waiting)).start().unwrap();
        let guest = enclave.connect::<GuestClient<_>>().unwrap();
        guest.keep("/data/file", b"kept").unwrap();
        // Other tests start processes; until those have come to their programs they have a descriptor of the port, too.
        let until = Instant::now() + Duration::from_secs(10);
        while let Err(error) = guest.listen(&address) {
            assert!(Instant::now() < until, "{error:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        (enclave, guest, calls, word)
    };

    let (enclave, guest, calls, word) = start();
    std::thread::scope(|s| {
        // Gone if this fails, so that the call ends.
        let word = word;
        let call = s.spawn(|| guest.host_echo(b"abc"));
        calls.recv().unwrap();
        drop(enclave);
        start();
        word.send(()).unwrap();
        assert_eq!(call.join().unwrap(), Err(CallError::Failed(Failure::Ended(End::ShutDown))));
    });

    let (enclave, ..) = start();
    let ((mut forked, mut say_forked), (mut go_on, word)) = (pipe().unwrap(), pipe().unwrap());
    let (mut child, not_its) = (Command::new("true"), word.as_raw_fd());
    // SAFETY: the forked process calls nothing but close(2), write(2) and read(2), and does not use what it closes.
    unsafe {
        child.pre_exec(move || {
            libc::close(not_its);
            say_forked.write_all(b"!")?;
            go_on.read_exact(&mut [0])
        })
    };
    std::thread::scope(|s| {
        let mut word = word;
        let child = s.spawn(move || child.status());
        forked.read_exact(&mut [0]).unwrap();
        drop(enclave);
        // Ports are another matter: a listening socket lives for as long as anybody has a descriptor of it.
        let enclave = Enclave::builder(image.clone()).on(emulator()).mount("/data", directory.path());
        let enclave = enclave.start().unwrap();
        let guest = enclave.connect::<GuestClient<_>>().unwrap();
        assert_eq!(guest.contents("/data/file"), Ok(b"kept".to_vec()));
        word.write_all(b"!").unwrap();
        assert!(child.join().unwrap().unwrap().success());
    });
}

#[test]
fn switchless_calls_bring_the_same_results() {
    let (enclave, guest) = start();
    let switchless = guest.switchless().unwrap();
    for round in 0..3 {
        for i in 0..5000 {
            assert_eq!(switchless.add(i, round), Ok(i + round));
        }
        let data = vec![3; 10_000];
        assert!(switchless.echo(&data).unwrap() == data);
        assert!(switchless.large(100_000).unwrap().len() == 100_000, "does not fit into the slot");
        assert!(switchless.echo(&vec![4; 100_000]).unwrap() == vec![4; 100_000]);
        assert!(matches!(switchless.panic("x"), Err(CallError::Failed(Failure::Panicked { .. }))));
        assert_eq!(switchless.refuse("no"), Err(CallError::Method(Refused("no".into()))));
        assert_eq!(switchless.down(3), Ok(3));
        // Long enough for the worker to leave.
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::scope(|s| {
        for t in 0..3 {
            let switchless = &switchless;
            s.spawn(move || (0..2000).for_each(|i| assert_eq!(switchless.add(t, i), Ok(t + i))));
        }
    });
    let hasty = switchless.with_deadline(Duration::from_millis(100));
    let error = hasty.sleep(60_000).unwrap_err();
    assert!(matches!(error, CallError::Failed(Failure::DeadlineExceeded { .. })), "{error}");
    assert_eq!(guest.add(1, 1), Ok(2));
    drop(enclave);
    assert!(matches!(switchless.add(1, 1), Err(CallError::Failed(Failure::Ended(End::ShutDown)))));
}

#[test]
fn sealed_data_follows_image_signer_and_version() {
    let with = |config: &str, key| {
        let image = support::sign_with(&format!("{CONFIG}{config}"), false, key);
        let enclave = Enclave::builder(image).on(emulator()).start().unwrap();
        let guest = enclave.connect::<GuestClient<_>>().unwrap();
        (enclave, guest)
    };
    let stranger = enclos_pack::SigningKey::generate().unwrap();
    let (_e1, version1) = with("security-version = 1", support::key());
    let (_e2, version2) = with("security-version = 2", support::key());
    let (_e3, other_product) = with("security-version = 2\nproduct-id = 9", support::key());
    let (_e4, other_signer) = with("security-version = 2", &stranger);

    let to_signer = version1.seal(true, b"purpose", b"secret").unwrap();
    assert!(!to_signer.windows(6).any(|w| w == b"secret"));
    assert_eq!(version1.unseal(b"purpose", &to_signer).unwrap(), b"secret");
    assert_eq!(version2.unseal(b"purpose", &to_signer).unwrap(), b"secret");
    let refused = |guest: &GuestClient<_>, associated: &[u8], blob: &[u8]| {
        guest.unseal(associated, blob).unwrap_err().method().unwrap()
    };
    assert_eq!(refused(&version1, b"other", &to_signer), "NotAuthentic");
    assert_eq!(refused(&other_product, b"purpose", &to_signer), "NotAuthentic");
    assert_eq!(refused(&other_signer, b"purpose", &to_signer), "NotAuthentic");
    for at in [12, 20, 40, 70, 80, to_signer.len() - 1] {
        let mut altered = to_signer.clone();
        altered[at] ^= 1;
        assert_ne!(refused(&version1, b"purpose", &altered), "", "{at}");
    }
    assert_ne!(
        version1.seal(true, b"purpose", b"secret").unwrap()[32..64],
        to_signer[32..64],
        "keys are new"
    );

    let newer = version2.seal(true, b"", b"secret").unwrap();
    assert_eq!(refused(&version1, b"", &newer), "FromNewerVersion { sealed: 2, own: 1 }");

    let to_image = version1.seal(false, b"", b"secret").unwrap();
    assert_eq!(version1.unseal(b"", &to_image).unwrap(), b"secret");
    assert_eq!(refused(&version2, b"", &to_image), "NotAuthentic");

    let (mrenclave, mrsigner, product, version) = version2.identity().unwrap();
    let other = other_product.identity().unwrap();
    assert_eq!((product, version, other.2, other.1), (0, 2, 9, mrsigner));
    assert_ne!(mrenclave, other.0);
    assert_ne!(other_signer.identity().unwrap().1, mrsigner);
}

#[test]
fn floating_point_is_as_it_was() {
    let read = || {
        let (mut mxcsr, mut control) = (0_u32, 0_u16);
        // SAFETY: stores both to the stack.
        unsafe { std::arch::asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &mut mxcsr, in(reg) &mut control) };
        (mxcsr & !0x3f, control)
    };
    let (_enclave, guest) = start();
    let before = read();
    guest.round_otherwise().unwrap();
    assert_eq!(read(), before);
    let hasty = guest.with_deadline(Duration::from_millis(20));
    hasty.spin().unwrap_err();
    assert_eq!(read(), before);
}

#[test]
fn small_services() {
    let (enclave, guest) = start();
    assert!(guest.is_emulated_alleged().unwrap());
    assert_ne!(guest.random().unwrap(), guest.random().unwrap());
    assert_eq!(guest.pointers().unwrap(), [""; 0], "no range that touches the enclave is accepted");
    assert_eq!(enclave.platform(), enclos_host::Kind::Emulated);
}
