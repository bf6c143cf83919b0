//! The vault as it is built and run: what opens it, what does not, and what a dying host leaves behind.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use enclos_host::{CallError, Enclave, EnclaveTransport};
use enclos_pack::{Config, Date, PackInput, SigningKey, build, pack};
use enclos_platform::emulator::Emulator;
use enclos_platform::emulator::machine::{Machine, MachineConfig};
use tempfile::TempDir;
use vault::{Imported, SealedReason, StorageServer, VaultClient, VaultError};
use vault_host::FileStorage;

const DOTENV: &str = include_str!("../../example.env");
const OURS: &str = include_str!("data/test-only-signer.pem");
const ANOTHERS: &str = include_str!("data/test-only-other-signer.pem");

/// The enclave's image as this signer and security version would release it.
fn image(signer: &str, security_version: u16) -> Vec<u8> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut config = Config::load(&project.join("enclos.toml")).unwrap();
    let program = PROGRAM.get_or_init(|| build::compile(&project, &config, &mut |_| {}).unwrap());
    config.security_version = security_version;
    let app = fs::read(program).unwrap();
    let mut image = pack(&PackInput { runtime: enclos_pack::runtime(), app: &app, config: &config }).unwrap();
    image.sign(&SigningKey::from_pem(signer).unwrap(), Date::from_unix(1_700_000_000)).unwrap();
    image.to_file_bytes()
}

/// A machine: its sealing keys are those of the seed.
fn machine(seed: u8) -> Arc<Emulator> {
    Arc::new(Emulator::on(Machine::new(&MachineConfig::with_seed([seed; 32])).unwrap()))
}

/// An enclave that is up, and a client of it.
struct Running {
    vault: VaultClient<EnclaveTransport>,
    enclave: Enclave,
}

impl Running {
    fn start(image: Vec<u8>, machine: Arc<Emulator>, store: &Path) -> Self {
        let storage = StorageServer::new(FileStorage::new(store));
        let enclave = Enclave::builder(image).on(machine).service(storage).start().unwrap();
        Self { vault: enclave.connect().unwrap(), enclave }
    }

    fn stop(self) {
        assert_eq!(self.enclave.shutdown(Duration::from_secs(20)), Ok(0));
    }
}

/// A folder with a vault of the example's secrets, sealed by our signer at security version 1 on machine 1.
fn filled() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("vault.sealed");
    let running = Running::start(image(OURS, 1), machine(1), &store);
    let imported = running.vault.import(DOTENV).unwrap();
    assert_eq!(imported, Imported { added: 6, changed: 0, unchanged: 0 });
    running.stop();
    (folder, store)
}

fn sealed_reason<T: std::fmt::Debug>(result: Result<T, CallError<VaultError>>) -> SealedReason {
    match result {
        Err(CallError::Method(VaultError::Sealed { reason })) => reason,
        other => panic!("it should not have opened: {other:?}"),
    }
}

#[test]
fn secrets_survive_a_restart_and_do_not_lie_about_in_plain_text() {
    let (_folder, store) = filled();
    let sealed = fs::read(&store).unwrap();
    for secret in ["correct-horse", "tok_sample_4f9d2c71", "battery staple", "DATABASE_URL"] {
        assert!(!sealed.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret} is readable");
    }
    let running = Running::start(image(OURS, 1), machine(1), &store);
    let vault = &running.vault;
    let names: Vec<String> = vault.list().unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["API_TOKEN", "DATABASE_URL", "EMPTY", "GREETING", "SESSION_KEY", "SMTP_PASSWORD"]);
    assert_eq!(vault.fetch("GREETING").unwrap(), "two words");
    assert_eq!(vault.fetch("SMTP_PASSWORD").unwrap(), "battery staple $(not a command)");
    assert_eq!(vault.fetch("EMPTY").unwrap(), "");
    let missing = VaultError::Missing { name: "NOPE".into() };
    assert_eq!(vault.fetch("NOPE"), Err(CallError::Method(missing)));
    running.stop();
}

#[test]
fn rotation_makes_a_new_value_and_a_second_import_counts_what_it_changes() {
    let (_folder, store) = filled();
    let running = Running::start(image(OURS, 1), machine(1), &store);
    let vault = &running.vault;
    let before = vault.fetch("API_TOKEN").unwrap();
    let entry = vault.rotate("API_TOKEN").unwrap();
    let after = vault.fetch("API_TOKEN").unwrap();
    assert_eq!((entry.version, entry.bytes), (2, 64));
    assert_ne!(before, after);
    assert!(after.len() == 64 && after.bytes().all(|b| b.is_ascii_hexdigit()));
    vault.rotate("API_TOKEN").unwrap();
    assert_ne!(vault.fetch("API_TOKEN").unwrap(), after);
    assert_eq!(vault.import(DOTENV).unwrap(), Imported { added: 0, changed: 1, unchanged: 5 });
    assert_eq!(vault.fetch("API_TOKEN").unwrap(), before);
    running.stop();
}

#[test]
fn another_signer_cannot_unseal() {
    let (_folder, store) = filled();
    let running = Running::start(image(ANOTHERS, 1), machine(1), &store);
    assert_eq!(sealed_reason(running.vault.list()), SealedReason::NotAuthentic);
    // Nor does it overwrite what it cannot read.
    let before = fs::read(&store).unwrap();
    assert_eq!(sealed_reason(running.vault.import("A=1")), SealedReason::NotAuthentic);
    assert_eq!(fs::read(&store).unwrap(), before);
}

#[test]
fn another_machine_cannot_unseal() {
    let (_folder, store) = filled();
    let running = Running::start(image(OURS, 1), machine(2), &store);
    assert_eq!(sealed_reason(running.vault.list()), SealedReason::NotAuthentic);
}

#[test]
fn a_newer_version_opens_what_an_older_one_sealed_and_not_the_other_way_round() {
    let (_folder, store) = filled();
    let newer = Running::start(image(OURS, 2), machine(1), &store);
    assert_eq!(newer.vault.fetch("GREETING").unwrap(), "two words");
    newer.vault.rotate("GREETING").unwrap();
    newer.stop();
    let older = Running::start(image(OURS, 1), machine(1), &store);
    let expected = SealedReason::FromNewerVersion { sealed: 2, own: 1 };
    assert_eq!(sealed_reason(older.vault.list()), expected);
}

#[test]
fn what_was_tampered_with_does_not_open() {
    let (_folder, store) = filled();
    let sound = fs::read(&store).unwrap();
    let running_on = |bytes: &[u8]| {
        fs::write(&store, bytes).unwrap();
        let running = Running::start(image(OURS, 1), machine(1), &store);
        sealed_reason(running.vault.list())
    };
    // Key id, nonce, ciphertext and tag.
    for at in [40, 70, 90, sound.len() - 1] {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        assert_eq!(running_on(&bytes), SealedReason::NotAuthentic, "byte {at}");
    }
    assert_eq!(running_on(&sound[..sound.len() - 1]), SealedReason::NotAuthentic);
    for (bytes, what) in [(&sound[..50], "cut short"), (&b""[..], "empty"), (&b"x"[..], "something else")] {
        assert!(matches!(running_on(bytes), SealedReason::Malformed { .. }), "{what}");
    }
}

#[test]
fn a_change_that_cannot_be_stored_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("no such folder").join("vault.sealed");
    let running = Running::start(image(OURS, 1), machine(1), &store);
    let refused = running.vault.import("A=1");
    assert!(matches!(refused, Err(CallError::Method(VaultError::Storage { .. }))), "{refused:?}");
    assert_eq!(running.vault.list().unwrap(), []);
    running.stop();
}

#[test]
fn a_bad_line_imports_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(image(OURS, 1), machine(1), &folder.path().join("vault.sealed"));
    let refused = running.vault.import("GOOD=1\nnot a line of a dotenv file\n");
    assert!(matches!(refused, Err(CallError::Method(VaultError::Dotenv { .. }))), "{refused:?}");
    assert_eq!(running.vault.list().unwrap(), []);
    running.stop();
}

/// The host program is killed while it rotates a secret over and over. Every time the vault opens again, at the version
/// it reported last or at the one after.
#[test]
fn a_host_killed_in_mid_save_leaves_a_readable_vault() {
    let folder = tempfile::tempdir().unwrap();
    let image_file = folder.path().join("vault.enclave");
    fs::write(&image_file, image(OURS, 1)).unwrap();
    let vault = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vault-host"));
        command.env("ENCLOS_STATE", folder.path().join("state")).current_dir(folder.path());
        command.env("ENCLOS_PLATFORM", "emulated").arg("--image").arg(&image_file).args(args);
        command
    };
    let imported =
        vault(&["import"]).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../example.env")).output().unwrap();
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let mut version = 1;
    for round in 0..8 {
        let mut child =
            vault(&["rotate", "API_TOKEN", "--times", "1000000"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed at another moment each time; in between it saves without a pause.
        for _ in 0..=round {
            lines.next().expect("it rotates until it is killed").unwrap();
        }
        std::thread::sleep(Duration::from_micros(137 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let reported = lines.map_while(Result::ok).filter_map(|l| version_in(&l)).last().unwrap_or(version);
        let listed = vault(&["list"]).output().unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let text = String::from_utf8(listed.stdout).unwrap();
        assert_eq!(text.lines().count(), 6, "{text}");
        let stored = text.lines().find(|l| l.contains("API_TOKEN")).and_then(version_in).unwrap();
        assert!(stored >= reported, "version {reported} was reported, {stored} was stored");
        assert!(stored > version);
        version = stored;
    }
}

/// The number after the word "version".
fn version_in(line: &str) -> Option<u32> {
    let after = line.split("version ").nth(1)?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
