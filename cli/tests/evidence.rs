//! Evidence from the command line: quoted, judged, refused, and why.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use enclos::quoting::Quoting as _;
use enclos_host::Kind;
use enclos_host::aesm::Aesm;
use serde_json::Value;
use tempfile::TempDir;

const NONCE: &str = "00112233445566778899aabbccddeeff";

/// The command, with an emulated machine that all tests share: what it builds for `quote` is built once.
fn enclos(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enclos"));
    command.current_dir(folder).stdin(Stdio::null());
    for variable in ["ENCLOS_KEY", "ENCLOS_AESM", "NO_COLOR", "CLICOLOR_FORCE", "SOURCE_DATE_EPOCH"] {
        command.env_remove(variable);
    }
    command.env("ENCLOS_PLATFORM", "emulated");
    // In the folder of other enclaves: most of what it depends on is built there.
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    command.env("CARGO_TARGET_DIR", scratch.parent().unwrap()).env("ENCLOS_STATE", scratch.join("state"));
    command
}

/// Standard output; the command must end with the code.
fn ends(command: &mut Command, code: i32) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(code), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    String::from_utf8(stdout).unwrap()
}

/// What is said on standard error by a command that ends with the code and has no result.
fn fails(command: &mut Command, code: i32) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{stderr}");
    assert!(stdout.is_empty() && !stderr.contains("panicked"), "{stderr}");
    stderr
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// A folder with quote.bin and c.json; what `quote` said.
fn quoted(state: &str) -> (TempDir, Value) {
    let folder = tempfile::tempdir().unwrap();
    let said = ends(
        enclos(folder.path())
            .args(["quote", "--nonce", NONCE, "--collateral", "c.json", "--root", "root.pem"])
            .args(["--tcb-state", state, "--json"]),
        0,
    );
    (folder, json(&said))
}

fn verify(folder: &Path, policy: &str) -> Command {
    fs::write(folder.join("policy.toml"), policy).unwrap();
    let mut command = enclos(folder);
    command.args(["verify", "quote.bin", "--collateral", "c.json", "--policy", "policy.toml"]);
    command
}

fn root(said: &Value) -> &str {
    said["platform"]["emulated_root"].as_str().unwrap()
}

#[test]
fn emulated_evidence_is_refused_unless_its_root_is_named() {
    let (folder, said) = quoted("up-to-date");
    let here = folder.path();
    let identity = format!("[[identity]]\nkind = \"sgx\"\nmr_enclave = {}\n", said["mrenclave"]);
    let text = ends(&mut verify(here, &identity), 4);
    assert!(text.starts_with("REFUSED\n"), "{text}");
    for part in ["emulated SGX CPU", "proves nothing", &format!("emulated_roots = [\"{}\"]", root(&said))] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(fs::read_to_string(here.join("root.pem")).unwrap().contains("BEGIN CERTIFICATE"));

    let told = format!("emulated_roots = [\"{}\"]\n{identity}", root(&said));
    let text = ends(verify(here, &told).args(["--nonce", NONCE]), 0);
    assert!(text.starts_with("ACCEPTED, but EMULATED"), "{text}");
    let verdict = json(&ends(verify(here, &told).args(["--nonce", NONCE, "--json"]), 0));
    assert_eq!((&verdict["accepted"], &verdict["emulated"]), (&true.into(), &true.into()));
    assert_eq!(verdict["appraisal"]["report_data"], said["report_data"]);

    let text = ends(verify(here, &told).args(["--nonce", "ff"]), 4);
    assert!(text.contains("not what was demanded"), "{text}");
    let text = ends(verify(here, &told).args(["--time", "2047-01-01T00:00:00Z"]), 4);
    assert!(text.contains("fetch it anew"), "{text}");
    let other = told.replace(said["mrenclave"].as_str().unwrap(), &"11".repeat(32));
    let verdict = json(&ends(verify(here, &other).arg("--json"), 4));
    assert_eq!(verdict["reasons"][0]["reason"], "identity");

    let mut quote = fs::read(here.join("quote.bin")).unwrap();
    quote[112] ^= 1;
    fs::write(here.join("quote.bin"), &quote).unwrap();
    ends(&mut verify(here, &format!("emulated_roots = [\"{}\"]\nany_identity = true\n", root(&said))), 4);
}

#[test]
fn every_tcb_state_can_be_had() {
    for (state, status) in
        [("hardening-needed", "SWHardeningNeeded"), ("out-of-date", "OutOfDate"), ("revoked", "Revoked")]
    {
        let (folder, said) = quoted(state);
        let policy = format!("any_identity = true\nemulated_roots = [\"{}\"]\n", root(&said));
        let verdict = json(&ends(verify(folder.path(), &policy).arg("--json"), 4));
        assert_eq!(verdict["appraisal"]["tcb"]["status"], status);
        let tolerant = format!("{policy}[tcb]\naccept = [\"{status}\"]\n");
        match state {
            "revoked" => {
                assert!(fails(&mut verify(folder.path(), &tolerant), 1).contains("cannot be accepted"))
            }
            _ => drop(ends(&mut verify(folder.path(), &tolerant), 0)),
        }
    }
}

#[test]
fn unusable_input_is_told_apart_from_refused_evidence() {
    let (folder, _) = quoted("up-to-date");
    let here = folder.path();
    let fine = "any_identity = true\n";
    let run = |arguments: &[&str]| fails(enclos(here).arg("verify").args(arguments), 1);
    verify(here, fine);
    assert!(run(&["missing.bin", "--collateral", "c.json"]).contains("cannot read missing.bin"));
    assert!(run(&["c.json", "--collateral", "c.json"]).contains("c.json is no evidence"));
    assert!(run(&["quote.bin", "--collateral", "quote.bin"]).contains("quote.bin is no collateral"));
    assert!(run(&["quote.bin"]).contains("name it with --collateral"));
    let said = fails(&mut verify(here, "any_identty = true\n"), 1);
    assert!(said.contains("policy.toml is not usable") && said.contains("any_identity"), "{said}");
    let quote = fs::read(here.join("quote.bin")).unwrap();
    fs::write(here.join("cut.bin"), &quote[..500]).unwrap();
    assert!(run(&["cut.bin", "--collateral", "c.json"]).contains("get it again in full"));

    fails(enclos(here).args(["verify", "quote.bin", "--time", "yesterday"]), 2);
    fails(verify(here, fine).args(["--nonce", "xy"]), 2);
    fails(verify(here, fine).args(["--nonce", &"00".repeat(65)]), 2);
    fails(verify(here, "any_identity = true\nreport_data_prefix = \"00\"\n").args(["--nonce", "00"]), 2);
    fails(enclos(here).arg("quote"), 2);
    fails(enclos(here).args(["quote", "--report-data", "00"]), 2);
    // Collateral that lies beside the evidence is found.
    fs::rename(here.join("c.json"), here.join("quote.bin.collateral.json")).unwrap();
    ends(enclos(here).args(["verify", "quote.bin", "--policy", "policy.toml"]), 4);
}

/// Every recorded quote with collateral: a verdict, and none better than that of Intel's verifier.
#[test]
fn recorded_quotes_get_verdicts() {
    let quotes = std::env::var_os("ENCLOS_QUOTES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/quotes"), PathBuf::from);
    let Ok(rows) = fs::read_to_string(quotes.join("verdicts.json")) else {
        eprintln!("skipped: there are no recorded quotes at {} (set ENCLOS_QUOTES)", quotes.display());
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("policy.toml"), "any_identity = true\nallow_debug = true\n").unwrap();
    let (mut accepted, mut refused) = (0, 0);
    for row in json(&rows).as_array().unwrap() {
        let (Some(collateral), Some(time)) = (row["collateral"].as_str(), row["time"].as_u64()) else {
            continue;
        };
        let time = enclos_verifier::Time(time).to_string();
        let mut command = enclos(folder.path());
        command.arg("verify").arg(quotes.join(row["quote"].as_str().unwrap()));
        command.arg("--collateral").arg(quotes.join(collateral));
        command.args(["--policy", "policy.toml", "--time", &time]);
        let Output { status, stdout, stderr } = command.output().unwrap();
        let said = String::from_utf8_lossy(&stdout);
        let intel = row["intel_qvl"].as_str().unwrap();
        match status.code() {
            Some(0) => {
                assert!(said.starts_with("ACCEPTED\n"), "{said}");
                assert!(
                    intel.split(' ').all(|check| check.contains("=OK")),
                    "{} {intel}: {said}",
                    row["key"]
                );
                accepted += 1;
            }
            Some(4) => {
                assert!(said.starts_with("REFUSED\n  - "), "{said}");
                refused += 1;
            }
            // Cut short.
            Some(1) => {
                assert!(intel.contains("FORMAT") || intel.contains("UNSUPPORTED"), "{} {intel}", row["key"])
            }
            code => panic!("{} {code:?}: {}", row["key"], String::from_utf8_lossy(&stderr)),
        }
    }
    assert!(refused > 10, "{accepted} accepted, {refused} refused");
}

/// A service of the command's, with the first line it said; killed at the end.
struct Service(Child, Value);

impl Service {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self(child, json(&line))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn aesm_listens_where_told_and_once() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let socket = here.join("aesm.socket");
    let command = || {
        let mut command = enclos(here);
        command.args(["aesm", "--json", "--socket"]).arg(&socket);
        command
    };
    let first = Service::start(&mut command());
    assert_eq!(first.1["socket"], socket.to_str().unwrap());
    let target = Aesm::at(&socket, Kind::Emulated).target_info().unwrap();
    let enclave = first.1["platform"]["mrenclave_of_quoting_enclave"].as_str().unwrap();
    assert_eq!(hex::encode(&target[..32]), enclave);
    assert!(fails(&mut command(), 1).contains("another one listens there"));
    // Killed, it leaves its socket behind; the next takes its place.
    drop(first);
    assert!(socket.exists());
    let _second = Service::start(&mut command());
    Aesm::at(&socket, Kind::Emulated).target_info().unwrap();
}

#[test]
fn pccs_says_where_it_listens_and_when_it_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let service = Service::start(enclos(here).args(["pccs", "--listen", "127.0.0.1:0", "--json"]));
    assert!(service.1["url"].as_str().unwrap().ends_with("/sgx/certification/v4/"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert!(fails(enclos(here).args(["pccs", "--listen", &address]), 1).contains("choose another port"));
}

#[test]
#[cfg(feature = "pccs")]
fn collateral_comes_from_a_provisioning_service_and_is_kept() {
    let (folder, said) = quoted("up-to-date");
    let here = folder.path();
    let service = Service::start(enclos(here).args(["pccs", "--listen", "127.0.0.1:0", "--json"]));
    let url = service.1["url"].as_str().unwrap().to_owned();
    fs::write(here.join("strict.toml"), "any_identity = true\n").unwrap();
    let told = format!("any_identity = true\nemulated_roots = [\"{}\"]\n", root(&said));
    fs::write(here.join("told.toml"), told).unwrap();
    let verify = |policy: &str, cache: &str| {
        let mut command = enclos(here);
        command.args(["verify", "quote.bin", "--policy", policy, "--pccs", &url, "--pccs-cache", cache]);
        command
    };
    // Who is not told the root learns why it is refused, and keeps nothing.
    assert!(ends(&mut verify("strict.toml", "kept"), 4).contains("emulated_roots"));
    assert!(!here.join("kept").exists());
    assert!(ends(&mut verify("told.toml", "kept"), 0).starts_with("ACCEPTED, but EMULATED"));
    assert_eq!(fs::read_dir(here.join("kept")).unwrap().count(), 1);
    let fetch =
        ["quote", "--nonce", NONCE, "-o", "other.bin", "--collateral", "fetched.json", "--pccs", &url];
    ends(enclos(here).args(fetch).args(["--pccs-cache", "kept"]), 0);
    let judged = ["verify", "other.bin", "--policy", "told.toml", "--collateral", "fetched.json"];
    ends(enclos(here).args(judged), 0);

    drop(service);
    ends(&mut verify("told.toml", "kept"), 0);
    let said = fails(&mut verify("told.toml", "other"), 1);
    assert!(said.contains("provisioning service") && said.contains(&url[..22]), "{said}");
    // Usage.
    let nonsense = ["verify", "quote.bin", "--pccs", "nonsense"];
    assert!(fails(enclos(here).args(nonsense), 2).contains("not the address of a provisioning service"));
    fails(verify("told.toml", "kept").args(["--collateral", "c.json"]), 2);
    fails(enclos(here).args(["verify", "quote.bin", "--pccs-cache", "kept"]), 2);
    fails(enclos(here).args(["connect", "127.0.0.1:1"]), 2);
    let unreachable = ["connect", "127.0.0.1:1", "--pccs", &url];
    fails(enclos(here).args(unreachable), 1);
}

#[test]
#[cfg(not(feature = "pccs"))]
fn the_option_for_provisioning_services_says_how_to_get_it() {
    let folder = tempfile::tempdir().unwrap();
    let said =
        fails(enclos(folder.path()).args(["connect", "127.0.0.1:1", "--pccs", "http://127.0.0.1:1"]), 2);
    assert!(said.contains("--features pccs"), "{said}");
}
