//! For the examples that are plain programs: what one prints inside an enclave on the emulator.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use enclos_host::{Builder, Enclave, PlatformChoice};
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

/// Builds the project in the folder, runs it to its end, which must be a success, and returns its standard output.
#[allow(dead_code)]
pub(crate) fn output(project: &Path) -> String {
    Program::build(project).output(|builder| builder)
}

/// A program to be run inside.
pub(crate) struct Program(Vec<u8>);

impl Program {
    /// Builds the project in the folder.
    pub(crate) fn build(project: &Path) -> Self {
        let config = Config::load(&project.join("enclos.toml")).unwrap();
        let mut image = build_application(project, &config, &mut |_| {}).unwrap();
        let pem = include_str!("vault/host/tests/data/test-only-signer.pem");
        image.sign(&SigningKey::from_pem(pem).unwrap(), Date::from_unix(1_700_000_000)).unwrap();
        Self(image.to_file_bytes())
    }

    /// Runs it to its end, which must be a success, and returns its standard output.
    pub(crate) fn output(&self, prepare: impl FnOnce(Builder) -> Builder) -> String {
        let (out, err) = (Captured::default(), Captured::default());
        let builder = Enclave::builder(self.0.as_slice())
            .platform(PlatformChoice::Emulated)
            .stdout(out.clone())
            .stderr(err.clone());
        let enclave = prepare(builder).start().unwrap();
        let status = enclave.wait();
        let out = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        let err = String::from_utf8(err.0.lock().unwrap().clone()).unwrap();
        assert_eq!(status, Ok(0), "{out}\n{err}");
        out
    }
}
