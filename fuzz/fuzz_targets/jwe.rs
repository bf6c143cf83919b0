//! Encrypted models (JWE, RFC 7516): the serialization and its header, and contents of our own that were altered.
#![no_main]

use std::sync::LazyLock;

use enclos_key_broker::jwe::{ContentKey, decrypt, encrypt, is_jwe, key_id};
use libfuzzer_sys::fuzz_target;

static KEY: LazyLock<ContentKey> =
    LazyLock::new(|| ContentKey::from_slice(&[7; 32]).expect("a key of 32 bytes"));
const CONTENT: &[u8] = b"a model";

fuzz_target!(|bytes: &[u8]| {
    let _ = is_jwe(bytes);
    match key_id(bytes) {
        // Only with the key can one make what decrypts, and this text is whatever was found.
        Ok(name) => assert!(decrypt(bytes, &name, &KEY).is_err()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    // The first three bytes say where a true one is altered, and how.
    let [place @ .., flip] = bytes.first_chunk::<3>().copied().unwrap_or_default();
    let mut jwe = encrypt(CONTENT.to_vec(), "digits", &KEY).expect("it encrypts").into_bytes();
    let place = usize::from(u16::from_be_bytes(place)) % jwe.len();
    jwe[place] ^= flip;
    match decrypt(&jwe, "digits", &KEY) {
        Ok(content) => assert!(flip == 0 && **content == *CONTENT, "byte {place} was altered"),
        Err(error) => assert!(flip != 0 && !error.to_string().is_empty()),
    }
});
