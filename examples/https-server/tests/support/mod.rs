//! The server's image, and what an enclave writes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use enclos_pack::{Config, Date, SigningKey, build_application};

/// What a program wrote.
#[derive(Clone, Default)]
pub(crate) struct Captured(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Captured {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The file of the server's image, with so much heap. Each is built once.
pub(crate) fn image(heap: &'static str) -> Vec<u8> {
    static IMAGES: Mutex<BTreeMap<&str, Vec<u8>>> = Mutex::new(BTreeMap::new());
    IMAGES.lock().unwrap().entry(heap).or_insert_with(|| build(heap)).clone()
}

fn build(heap: &str) -> Vec<u8> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = project.join("enclos.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("heap = \"").unwrap();
    let (_, after) = rest.split_once('"').unwrap();
    let config = Config::parse(&format!("{before}heap = \"{heap}\"{after}"), &path).unwrap();
    let mut image = build_application(project, &config, &mut |_| {}).unwrap();
    let pem = include_str!("../../../vault/host/tests/data/test-only-signer.pem");
    image.sign(&SigningKey::from_pem(pem).unwrap(), Date::from_unix(1_700_000_000)).unwrap();
    image.to_file_bytes()
}
