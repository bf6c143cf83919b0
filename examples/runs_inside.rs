//! For the examples that are plain programs: what one prints inside an enclave on the emulator.

use std::path::Path;

use enclos_host::{Builder, Captured, Enclave, PlatformChoice};
use enclos_pack::{Config, Date, SigningKey, build_application};

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
        assert_eq!(status, Ok(0), "{}\n{}", out.text(), err.text());
        out.text()
    }
}
