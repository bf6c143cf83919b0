//! The command as people and scripts meet it: exit codes, messages, JSON, and signing in one step and in two.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use enclos_pack::{Config, PackInput, SigningKey, pack};
use serde_json::Value;

const KEY: &str = include_str!("data/test-only-key.pem");

fn enclos(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enclos"));
    command.current_dir(folder).stdin(Stdio::null());
    for variable in ["ENCLOS_KEY", "ENCLOS_PLATFORM", "NO_COLOR", "CLICOLOR_FORCE", "SOURCE_DATE_EPOCH"] {
        command.env_remove(variable);
    }
    command.env("ENCLOS_STATE", folder.join("state"));
    command
}

fn ok(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn fails(command: &mut Command, code: i32) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{stderr}");
    assert!(stdout.is_empty(), "errors belong on standard error");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

/// An unsigned image of a C program, as `hello.enclave` in the folder.
fn image(folder: &Path) {
    let source = "#include <stdio.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
         int main(int c, char **v) { printf(\"inside %s\\n\", c > 1 ? v[1] : \"-\"); syscall(SYS_inotify_init); return c; }\n";
    image_of(folder, source, "");
}

/// An unsigned image of this C program, as `hello.enclave` in the folder; with these tables in its configuration.
fn image_of(folder: &Path, program: &str, tables: &str) {
    let (source, elf) = (folder.join("hello.c"), folder.join("hello"));
    fs::write(&source, program).unwrap();
    let built =
        Command::new("gcc").args(["-O2", "-static-pie", "-o"]).arg(&elf).arg(&source).status().unwrap();
    assert!(built.success());
    let config = format!("name = \"hello\"\nthreads = 2\nheap = \"4 MiB\"\n{tables}");
    let config = Config::parse(&config, Path::new("enclos.toml")).unwrap();
    let app = fs::read(elf).unwrap();
    let image = pack(&PackInput { runtime: enclos_pack::runtime(), app: &app, config: &config }).unwrap();
    fs::write(folder.join("hello.enclave"), image.to_file_bytes()).unwrap();
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn help_has_examples_and_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let help = ok(enclos(folder.path()).arg("--help"));
    assert!(help.contains("Exit codes:") && help.contains("enclos new demo"));
    for command in [
        "new", "build", "sign", "keygen", "inspect", "run", "image", "doctor", "bench", "quote", "verify",
        "aesm", "pccs", "connect",
    ] {
        let help = ok(enclos(folder.path()).args([command, "--help"]));
        assert!(
            help.contains("enclos ") && (help.contains("Example") || help.contains("In one step")),
            "{help}"
        );
    }
}

#[test]
fn wrong_usage_and_missing_things_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fails(enclos(here).arg("no-such-command"), 2);
    fails(enclos(here).args(["new", "Not A Name"]), 2);
    fails(enclos(here).args(["sign", "x.enclave"]), 2);
    let said = fails(enclos(here).arg("build"), 1);
    assert!(said.contains("enclos.toml") && said.contains("enclos new"), "{said}");
    let said = fails(enclos(here).args(["inspect", "no-such.enclave"]), 1);
    assert!(said.contains("no-such.enclave"), "{said}");
    fs::write(here.join("enclos.toml"), "name = \"x\"\nthread = 4\n").unwrap();
    let said = fails(enclos(here).arg("build"), 1);
    assert!(said.contains("enclos.toml:2") && said.contains("threads"), "{said}");
    fs::write(here.join("enclos.toml"), "name = \"x\"\n").unwrap();
    let said = fails(enclos(here).arg("inspect"), 1);
    assert!(said.contains("enclos build"), "{said}");
    fs::write(here.join("text.enclave"), "not an image").unwrap();
    let said = fails(enclos(here).args(["inspect", "text.enclave"]), 1);
    assert!(said.contains("text.enclave") && said.contains("not an .enclave file"), "{said}");
}

#[test]
fn doctor_answers_people_and_programs() {
    let folder = tempfile::tempdir().unwrap();
    let inventory = json(&ok(enclos(folder.path()).args(["doctor", "--json"])));
    assert!(inventory["facts"].as_array().unwrap().len() > 5);
    let said = ok(enclos(folder.path()).arg("doctor"));
    assert!(said.contains("Emulator can be used") && !said.contains('\x1b'), "{said}");
}

#[cfg(not(feature = "attestation-service"))]
#[test]
fn a_build_without_the_attestation_service_says_how_to_get_it() {
    let folder = tempfile::tempdir().unwrap();
    let said = fails(enclos(folder.path()).args(["attestation-service", "--check", "service.toml"]), 2);
    assert!(said.contains("--features attestation-service"), "{said}");
    assert!(ok(enclos(folder.path()).args(["attestation-service", "--help"])).contains("--features"));
}

#[cfg(not(feature = "inference"))]
#[test]
fn a_build_without_the_inference_service_says_how_to_get_it() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["inference", "infer"] {
        let said = fails(enclos(folder.path()).args([command, "--model", "m.onnx"]), 2);
        assert!(said.contains("--features inference"), "{said}");
    }
}

#[cfg(feature = "attestation-service")]
#[test]
fn the_attestation_service_checks_serves_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    ok(enclos(here).args(["attestation-service", "--example", "service.toml"]));
    let example = fs::read_to_string(here.join("service.toml")).unwrap();
    assert_eq!(ok(enclos(here).args(["attestation-service", "--example"])).trim_end(), example.trim_end());
    fails(enclos(here).args(["attestation-service", "--example", "service.toml"]), 2);
    fails(enclos(here).arg("attestation-service"), 2);
    assert!(ok(enclos(here).args(["attestation-service", "--help"])).contains("Examples:"));
    let usable = json(&ok(enclos(here).args(["attestation-service", "--check", "--json", "service.toml"])));
    assert_eq!(usable["listen"], "127.0.0.1:8080");
    assert!(!here.join("attestation-data").exists(), "checking makes nothing");
    // What is commented out is usable as well.
    let whole = example.replace("\n# ", "\n").replace("[authentication] ", "[authentication]# ");
    let whole = whole.lines().filter(|line| !line.starts_with("Configuration of")).collect::<Vec<_>>();
    fs::write(here.join("whole.toml"), whole.join("\n")).unwrap();
    let whole = fails(enclos(here).args(["attestation-service", "--check", "whole.toml"]), 1);
    assert!(whole.contains("data and [postgres] are both given"), "{whole}");
    fs::write(here.join("open.toml"), example.replace("127.0.0.1:8080", "0.0.0.0:0")).unwrap();
    let said = fails(enclos(here).args(["attestation-service", "open.toml"]), 1);
    assert!(said.contains("not a loopback address") && said.contains("[tls]"), "{said}");
    let said = fails(enclos(here).args(["attestation-service", "absent.toml"]), 1);
    assert!(said.contains("absent.toml"), "{said}");

    fs::create_dir(here.join("collateral")).unwrap();
    fs::write(here.join("service.toml"), example.replace(":8080", ":0")).unwrap();
    let mut child =
        enclos(here).args(["attestation-service", "service.toml"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("attestation service ready") {
        line.clear();
        assert_ne!(std::io::BufRead::read_line(&mut log, &mut line).unwrap(), 0, "it did not start");
    }
    let asked = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(asked.success());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    image(folder.path());
    let mut child = enclos(folder.path())
        .args(["inspect", "hello.enclave"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
}

#[test]
fn signing_in_one_step_and_in_two_gives_the_same_signer_and_measurement() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    image(here);
    fs::write(here.join("key.pem"), KEY).unwrap();
    let key = SigningKey::from_pem(KEY).unwrap();
    fs::write(here.join("key.pub.pem"), key.public().to_pem().unwrap()).unwrap();

    let one = json(&ok(enclos(here).args([
        "sign",
        "hello.enclave",
        "--key",
        "key.pem",
        "-o",
        "one.enclave",
        "--json",
    ])));
    let emitted = json(&ok(enclos(here).args(["sign", "hello.enclave", "--emit-body", "body", "--json"])));
    assert_eq!(emitted["mrenclave"], one["mrenclave"]);
    // As an HSM would.
    let body: [u8; 256] = fs::read(here.join("body")).unwrap().try_into().unwrap();
    fs::write(here.join("signature"), key.sign_body(&body).unwrap()).unwrap();
    let attach =
        ["sign", "hello.enclave", "--attach", "signature", "--body", "body", "--public-key", "key.pub.pem"];
    let two = json(&ok(enclos(here).args(attach).args(["-o", "two.enclave", "--json"])));
    assert_eq!((&one["mrenclave"], &one["mrsigner"]), (&two["mrenclave"], &two["mrsigner"]));
    let inspected = json(&ok(enclos(here).args(["inspect", "two.enclave", "--json"])));
    assert_eq!(inspected["identity"]["mrsigner"], one["mrsigner"]);
    assert_eq!(inspected["signature"]["state"], "valid");

    // A signature over something else, and one that was cut short.
    let mut other = body;
    other[200] ^= 1;
    fs::write(here.join("signature"), key.sign_body(&other).unwrap()).unwrap();
    let said = fails(enclos(here).args(attach), 1);
    assert!(said.contains("does not verify"), "{said}");
    fs::write(here.join("signature"), [1; 100]).unwrap();
    fails(enclos(here).args(attach), 1);
}

#[test]
fn an_image_tells_which_linux_calls_it_was_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    image(here);
    fs::write(here.join("key.pem"), KEY).unwrap();
    ok(enclos(here).args(["sign", "hello.enclave", "--key", "key.pem"]));
    let said =
        json(&ok(enclos(here).args(["inspect", "hello.enclave", "--runtime", "--json", "--", "there"])));
    let run = &said["runtime"];
    assert_eq!(run["ended"], "exit status 2");
    let refused = run["refused_calls"].as_array().unwrap();
    assert!(refused.iter().any(|r| r["name"] == "inotify_init" && r["count"] == 1), "{run}");
    assert!(run["direct"].as_u64().unwrap() > 5);
}

#[test]
fn an_image_is_run_as_it_is_and_tells_what_crossed_its_boundary() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    image(here);
    fs::write(here.join("key.pem"), KEY).unwrap();
    ok(enclos(here).args(["sign", "hello.enclave", "--key", "key.pem"]));
    let run = ["run", "--platform", "emulated", "hello.enclave"];
    let Output { status, stdout, stderr } =
        enclos(here).args(run).args(["--stats", "--", "there"]).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "the program's own: {stderr}");
    assert_eq!(String::from_utf8(stdout).unwrap(), "inside there\n");
    for said in
        [" EENTER", "asynchronous exits for exceptions", "for interrupts", "write 0 inside, 1 passed out"]
    {
        assert!(stderr.contains(said), "{said:?} is not in {stderr}");
    }
    let said = fails(enclos(here).args(run).arg("--gdb"), 2);
    assert!(said.contains("Name the project's folder"), "{said}");
}

#[test]
fn files_of_mounts_are_there_in_the_next_run() {
    const PROGRAM: &str = r#"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(void) {
    char text[64] = "";
    FILE *settings = fopen("/etc/app/name", "r");
    if (!settings || !fgets(text, sizeof text, settings)) { printf("settings: %s\n", strerror(errno)); return 3; }
    int runs = open("/data/runs", O_RDWR | O_CREAT | O_APPEND, 0600);
    if (runs < 0 || write(runs, "!", 1) != 1 || fsync(runs)) { printf("runs: %s\n", strerror(errno)); return 4; }
    printf("%s: run %ld\n", text, (long)lseek(runs, 0, SEEK_END));
    return open("/etc/app/name", O_WRONLY) < 0 && errno == EROFS ? 0 : 5;
}
"#;
    const MOUNTS: &str =
        "[[mounts]]\npath = '/data'\nkind = 'sealed'\n[[mounts]]\npath = '/etc/app'\nkind = 'host'\n";
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    image_of(here, PROGRAM, MOUNTS);
    fs::write(here.join("key.pem"), KEY).unwrap();
    ok(enclos(here).args(["sign", "hello.enclave", "--key", "key.pem"]));
    let run = |mounts: &[&str]| {
        let mut command = enclos(here);
        command.args(["run", "--platform", "emulated", "hello.enclave"]);
        for mount in mounts {
            command.args(["--mount", mount]);
        }
        command
    };
    fs::create_dir(here.join("settings")).unwrap();
    fs::create_dir(here.join("sealed")).unwrap();
    fs::write(here.join("settings/name"), "demo").unwrap();
    let both = ["/data=sealed", "/etc/app=settings"];
    for n in 1..=2 {
        assert_eq!(ok(&mut run(&both)), format!("demo: run {n}\n"));
    }
    assert!(fs::read(here.join("sealed/blocks")).unwrap().len() >= 4096);

    // What is wrong is said, by the command or by the enclave's log.
    let said = fails(&mut run(&["/dada=sealed"]), 2);
    assert!(said.contains("no mount /dada; it has: /data, /etc/app"), "{said}");
    for (mounts, code, printed, said) in [
        (&both[1..], 4, "runs: No such device\n", "mount /data"),
        (&both[..1], 3, "settings: No such device\n", "mount /etc/app"),
    ] {
        let Output { status, stdout, stderr } = run(mounts).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(code), "{stderr}");
        assert_eq!(String::from_utf8(stdout).unwrap(), printed);
        assert!(stderr.contains(said), "{stderr}");
    }
    let Output { status, stderr, .. } = run(&["/data=nowhere", both[1]]).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(!status.success() && stderr.contains("nowhere") && !stderr.contains("panicked"), "{stderr}");
    // Altered.
    let root = here.join("sealed/root");
    let mut bytes = fs::read(&root).unwrap();
    bytes.iter_mut().for_each(|b| *b ^= 1);
    fs::write(&root, bytes).unwrap();
    let Output { status, stderr, .. } = run(&both).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(4), "{stderr}");
    assert!(stderr.contains("mount /data:"), "{stderr}");
}
