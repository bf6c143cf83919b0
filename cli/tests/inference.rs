//! `enclos inference` serves, `enclos infer` verifies and asks, by either way in.
#![cfg(feature = "inference")]
#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

const MODEL: &[u8] = include_bytes!("../../services/inference/tests/data/tree.onnx");
const ENCLAVE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../services/inference/enclave");

fn enclos(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enclos"));
    command.current_dir(folder).env("ENCLOS_STATE", folder.join("state")).env_remove("ENCLOS_KEY");
    command
}

/// Ended with the test.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_served_model_answers_who_verified_it_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fs::write(here.join("digits.onnx"), MODEL).unwrap();
    // Making a key takes its time.
    fs::create_dir(here.join("state")).unwrap();
    fs::write(here.join("state/developer-key.pem"), include_str!("data/test-only-key.pem")).unwrap();
    let mut served = enclos(here)
        .args([
            "inference",
            "--model",
            "digits.onnx",
            "--listen",
            "127.0.0.1:0",
            "--attested-tls",
            "127.0.0.1:0",
        ])
        .args(["--enclave", ENCLAVE, "--platform", "emulated", "--write-policy", "client", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .map(Served)
        .unwrap();
    let mut lines = BufReader::new(served.0.stdout.take().unwrap()).lines();
    let line = lines.next().expect("it says where it serves").unwrap();
    let said: Value = serde_json::from_str(&line).unwrap();
    let url = said["url"].as_str().unwrap().to_owned();
    let attested_tls = format!("attested-tls://{}", said["attested_tls"].as_str().unwrap());
    let hash = hex::encode(Sha256::digest(MODEL));
    // A zero of scikit-learn's digits, and the whole request for it.
    let zero = "[[0,0,5,13,9,1,0,0,0,0,13,15,10,15,5,0,0,3,15,2,0,11,8,0,0,4,12,0,0,8,8,0,0,5,8,0,0,9,8,0,0,4,11,0,1,12,7,0,0,2,14,5,10,12,0,0,0,0,6,13,10,0,0,0]]";
    fs::write(here.join("row.json"), zero).unwrap();
    let request =
        format!(r#"{{"id":"7","inputs":[{{"name":"X","shape":[1,64],"datatype":"FP32","data":{zero}}}]}}"#);
    fs::write(here.join("request.json"), request).unwrap();

    let infer = |server: &str, arguments: &[&str]| -> Output {
        let mut command = enclos(here);
        command.args(["infer", "--server", server, "--collateral", "client/collateral.json"]).args(arguments);
        command.output().unwrap()
    };
    for server in [&url, &attested_tls] {
        for arguments in [&["--input", "row.json"][..], &["--input", "request.json", "--model-sha256", &hash]]
        {
            let output = infer(server, &[&["--policy", "client/policy.toml", "--json"], arguments].concat());
            assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
            let said: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(said["answer"]["outputs"][0]["data"][0], 0, "{said}");
            assert_eq!(
                (&said["model"]["sha256"], &said["verdict"]["emulated"]),
                (&hash.clone().into(), &true.into())
            );
        }
        let output = infer(server, &["--policy", "client/policy.toml"]);
        let said = text(&output.stdout);
        assert!(said.contains("EMULATED") && said.contains(&hash) && said.contains("\"inputs\""), "{said}");

        // Refused: by default, and when it has another model than the client wants.
        let output = infer(server, &["--input", "row.json", "--json"]);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((output.status.code(), &said["accepted"]), (Some(4), &false.into()), "{said}");
        let other = ["--policy", "client/policy.toml", "--model-sha256", &"0".repeat(64)];
        assert_eq!(infer(server, &other).status.code(), Some(4));

        // An error of the model is not one of the server's identity.
        fs::write(here.join("short.json"), "[[1, 2]]").unwrap();
        let output = infer(server, &["--policy", "client/policy.toml", "--input", "short.json"]);
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("the enclave answers 400"), "{said}");
    }
    let nobody = infer("http://127.0.0.1:1", &["--policy", "client/policy.toml"]);
    assert_eq!(nobody.status.code(), Some(1));

    let asked = Command::new("kill").arg(served.0.id().to_string()).status().unwrap();
    assert!(asked.success());
    assert!(served.0.wait().unwrap().success(), "it ends in good order");
}
