//! Manifests of images and configurations of projects.
#![no_main]

use std::path::Path;

use enclos::manifest::{Manifest, items};
use enclos_pack::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::decode(bytes) {
        let mut buffer = vec![0; 2 * bytes.len() + 64];
        let encoded = manifest.encode(&mut buffer).expect("what was decoded can be encoded");
        assert!(Manifest::decode(encoded).is_ok());
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = items(text).count();
        let _ = Config::parse(text, Path::new("enclos.toml"));
    }
});
