//! The program gives inside an enclave what it must.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use enclos_host::{Enclave, PlatformChoice};
use enclos_pack::{Config, Date, SigningKey, build_application};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn it_runs_inside() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = Config::load(&project.join("enclos.toml")).unwrap();
    let mut image = build_application(project, &config, &mut |_| {}).unwrap();
    let pem = include_str!("../../vault/host/tests/data/test-only-signer.pem");
    image.sign(&SigningKey::from_pem(pem).unwrap(), Date::from_unix(1_700_000_000)).unwrap();
    let (out, err) = (Captured::default(), Captured::default());
    let enclave = Enclave::builder(image.to_file_bytes())
        .platform(PlatformChoice::Emulated)
        .stdout(out.clone())
        .stderr(err.clone())
        .start()
        .unwrap();
    let status = enclave.wait();
    let out = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
    let err = String::from_utf8(err.0.lock().unwrap().clone()).unwrap();
    assert_eq!(status, Ok(0), "{out}\n{err}");
    assert_eq!(out, EXPECTED);
}

/// What the same program prints outside.
const EXPECTED: &str = "\
sensor-0: 2858 readings, sum 14289285.5\n\
sensor-1: 2857 readings, sum 14280714.5\n\
sensor-2: 2857 readings, sum 14282143.0\n\
sensor-3: 2857 readings, sum 14283571.5\n\
sensor-4: 2857 readings, sum 14285000.0\n\
sensor-5: 2857 readings, sum 14286428.5\n\
sensor-6: 2857 readings, sum 14287857.0\n\
integrity: ok\n\
";
