//! The server's image.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

pub(crate) use enclos_host::Captured;
use enclos_pack::{Config, Date, SigningKey, build_application};

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
