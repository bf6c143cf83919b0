//! JSON Web Encryption (RFC 7516), the compact serialization, with one key for one content: `alg` is `dir`, `enc` is `A256GCM`
//! (RFC 7518, sections 4.5 and 5.3).
//!
//! The algorithms are RustCrypto's; what is written here is the serialization, base64url and JSON, by their crates. Of the
//! crates that do all of JWE, `josekit` needs OpenSSL, which does not link into an enclave, and the others are made for tokens:
//! they copy what they encrypt several times, and take any algorithm that a header names. Here a header cannot choose.
//!
//! A content is encrypted at once, so decrypting needs the text (4/3 of the content) and the content in memory; nothing of it is
//! given out before all of it is authentic.

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL;
use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use crate::{BadKeyId, check_key_id};

/// Bytes of a content encryption key.
pub const KEY: usize = 32;
/// Longest content in bytes: no ONNX file is longer, as protobuf ends there.
pub const MAX_CONTENT: usize = i32::MAX as usize;

/// Bytes of the initialization vector (RFC 7518, section 5.3).
const IV: usize = 12;
/// Bytes of the authentication tag.
const TAG: usize = 16;
/// Longest header in bytes, encoded.
const MAX_HEADER: usize = 8192;

/// A content encryption key. Its bytes are overwritten when it is dropped.
#[derive(Clone)]
pub struct ContentKey(Zeroizing<[u8; KEY]>);

impl ContentKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`JweError::Random`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, JweError> {
        let mut key = Zeroizing::new([0; KEY]);
        getrandom::fill(&mut *key).map_err(|e| JweError::Random { reason: e.to_string() })?;
        Ok(Self(key))
    }

    /// A key of these bytes; `None` when they are not [`KEY`].
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; KEY]);
        (bytes.len() == KEY).then(|| key.copy_from_slice(bytes))?;
        Some(Self(key))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; KEY] {
        &self.0
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new((&*self.0).into())
    }
}

impl std::fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ContentKey(..)")
    }
}

/// Why there is no content, or no JWE.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JweError {
    /// It has not the five parts of the compact serialization.
    #[error("not a JWE in compact serialization: {found} parts instead of five")]
    Parts {
        /// How many there are.
        found: usize,
    },
    /// A part is not base64url without padding.
    #[error("the {part} of the JWE is not base64url (RFC 4648, section 5, without padding): {reason}")]
    Base64 {
        /// Which.
        part: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The header is not the JSON it must be.
    #[error("the header of the JWE is not usable: {reason}")]
    Header {
        /// What is wrong.
        reason: String,
    },
    /// Other algorithms than these.
    #[error("the JWE has alg {alg:?} and enc {enc:?}; only dir and A256GCM are supported")]
    Algorithms {
        /// `alg` of the header.
        alg: String,
        /// `enc` of the header.
        enc: String,
    },
    /// Something in the header that changes how the content is to be read.
    #[error("the header of the JWE has {member}, which is not supported")]
    Unsupported {
        /// Which member.
        member: &'static str,
    },
    /// The name of the key is not one.
    #[error("the header of the JWE names no usable key (kid): {0}")]
    KeyId(#[from] BadKeyId),
    /// It is encrypted with another key.
    #[error("the JWE is for the key {found:?}, not {expected:?}")]
    OtherKey {
        /// The header's.
        found: String,
        /// The one at hand.
        expected: String,
    },
    /// A part has a length that it cannot have.
    #[error("the {part} of the JWE has {found} bytes instead of {expected}")]
    Length {
        /// Which.
        part: &'static str,
        /// Its length.
        found: usize,
        /// The length it must have.
        expected: usize,
    },
    /// The content is longer than [`MAX_CONTENT`].
    #[error("the content has {found} bytes, more than {MAX_CONTENT}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// The key is another one, or a part was altered.
    #[error("the JWE does not decrypt: it was altered, or its key is another one of the same name")]
    NotAuthentic,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {reason}")]
    Random {
        /// Its words.
        reason: String,
    },
}

/// Whether this is a JWE in compact serialization, rather than an ONNX file: it begins with a JSON object in base64url, which no
/// ONNX file does.
pub fn is_jwe(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"ey")
}

/// The name of the key that a JWE is encrypted with. An allegation until it was decrypted.
///
/// # Errors
/// [`JweError`] when it is not a JWE that this module can decrypt.
pub fn key_id(jwe: &[u8]) -> Result<String, JweError> {
    Parts::of(jwe)?.key_id()
}

/// Encrypts a content under a key of this name.
///
/// # Errors
/// [`JweError`] when it is too long, the name is none, or the system gives no random bytes.
pub fn encrypt(mut content: Vec<u8>, key_id: &str, key: &ContentKey) -> Result<String, JweError> {
    check_key_id(key_id)?;
    if content.len() > MAX_CONTENT {
        return Err(JweError::TooLong { found: content.len() });
    }
    let mut iv = [0; IV];
    getrandom::fill(&mut iv).map_err(|e| JweError::Random { reason: e.to_string() })?;
    let header = BASE64URL.encode(format!(r#"{{"alg":"dir","enc":"A256GCM","kid":"{key_id}"}}"#));
    let tag = key
        .cipher()
        .encrypt_inout_detached(&Nonce::from(iv), header.as_bytes(), InOutBuf::from(&mut content[..]))
        .map_err(|_| JweError::TooLong { found: content.len() })?;
    let mut jwe = header;
    jwe.reserve_exact(content.len().div_ceil(3) * 4 + 64);
    // The encrypted key of `dir` is empty (RFC 7516, section 5.1, step 5).
    jwe.push_str("..");
    BASE64URL.encode_string(iv, &mut jwe);
    jwe.push('.');
    BASE64URL.encode_string(&content, &mut jwe);
    jwe.push('.');
    BASE64URL.encode_string(tag, &mut jwe);
    Ok(jwe)
}

/// Decrypts a JWE that must be for a key of this name. The content is overwritten when it is dropped.
///
/// # Errors
/// [`JweError`] when it is malformed, of another kind, or not authentic.
pub fn decrypt(jwe: &[u8], key_id: &str, key: &ContentKey) -> Result<Zeroizing<Vec<u8>>, JweError> {
    let parts = Parts::of(jwe)?;
    let found = parts.key_id()?;
    if found != key_id {
        return Err(JweError::OtherKey { found, expected: key_id.to_owned() });
    }
    if !parts.encrypted_key.is_empty() {
        let found = parts.encrypted_key.len();
        return Err(JweError::Length { part: "encrypted key", found, expected: 0 });
    }
    let iv: [u8; IV] = fixed("initialization vector", parts.iv)?;
    let tag: [u8; TAG] = fixed("authentication tag", parts.tag)?;
    let length = parts.ciphertext.len() / 4 * 3 + 3;
    if length > MAX_CONTENT + 3 {
        return Err(JweError::TooLong { found: length });
    }
    // Of its full size from the start, so that nothing is left behind where it grew.
    let mut content = Zeroizing::new(Vec::with_capacity(length));
    decode("ciphertext", parts.ciphertext, &mut content)?;
    key.cipher()
        .decrypt_inout_detached(
            &Nonce::from(iv),
            parts.header,
            InOutBuf::from(&mut content[..]),
            &Tag::from(tag),
        )
        .map_err(|_| JweError::NotAuthentic)?;
    Ok(content)
}

/// The five parts, still encoded.
struct Parts<'a> {
    header: &'a [u8],
    encrypted_key: &'a [u8],
    iv: &'a [u8],
    ciphertext: &'a [u8],
    tag: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(jwe: &'a [u8]) -> Result<Self, JweError> {
        let mut parts = jwe.trim_ascii().split(|byte| *byte == b'.');
        let mut next = || parts.next().ok_or(());
        let mut five = || {
            Ok(Self {
                header: next()?,
                encrypted_key: next()?,
                iv: next()?,
                ciphertext: next()?,
                tag: next()?,
            })
        };
        match (five(), parts.count()) {
            (Ok(five), 0) => Ok(five),
            (Ok(_), more) => Err(JweError::Parts { found: 5 + more }),
            (Err(()), _) => Err(JweError::Parts { found: jwe.split(|byte| *byte == b'.').count() }),
        }
    }

    /// The name of the key, from a header in which everything else is as it must be.
    fn key_id(&self) -> Result<String, JweError> {
        /// Members that matter (RFC 7516, section 4.1). Each may come once; others are ignored, as they must be.
        #[derive(Deserialize)]
        struct Header {
            alg: String,
            enc: String,
            kid: Option<String>,
            zip: Option<IgnoredAny>,
            crit: Option<IgnoredAny>,
        }
        let unusable = |reason: String| JweError::Header { reason };
        if self.header.len() > MAX_HEADER {
            return Err(unusable(format!("it has {} bytes, more than {MAX_HEADER}", self.header.len())));
        }
        let mut json = Vec::new();
        decode("header", self.header, &mut json)?;
        let header: Header = serde_json::from_slice(&json).map_err(|e| unusable(e.to_string()))?;
        if (&*header.alg, &*header.enc) != ("dir", "A256GCM") {
            let short = |text: String| text.chars().take(40).collect();
            return Err(JweError::Algorithms { alg: short(header.alg), enc: short(header.enc) });
        }
        if header.crit.is_some() {
            return Err(JweError::Unsupported { member: "critical extensions (crit)" });
        }
        if header.zip.is_some() {
            return Err(JweError::Unsupported { member: "compression (zip)" });
        }
        let kid = header.kid.unwrap_or_default();
        check_key_id(&kid)?;
        Ok(kid)
    }
}

fn decode(part: &'static str, text: &[u8], into: &mut Vec<u8>) -> Result<(), JweError> {
    BASE64URL.decode_vec(text, into).map_err(|e| JweError::Base64 { part, reason: e.to_string() })
}

fn fixed<const N: usize>(part: &'static str, text: &[u8]) -> Result<[u8; N], JweError> {
    let mut bytes = Vec::new();
    // Nobody needs a long one decoded to know that it is too long.
    decode(part, &text[..text.len().min(4 * N)], &mut bytes)?;
    bytes.try_into().map_err(|bytes: Vec<u8>| JweError::Length { part, found: bytes.len(), expected: N })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ContentKey {
        ContentKey::from_slice(&[7; KEY]).unwrap()
    }

    #[test]
    fn what_is_encrypted_is_decrypted() {
        for length in [0, 1, 2, 3, 4, 1000, 100_000] {
            let content: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let jwe = encrypt(content.clone(), "digits", &key()).unwrap();
            assert!(is_jwe(jwe.as_bytes()));
            assert_eq!(key_id(jwe.as_bytes()).unwrap(), "digits");
            assert_eq!(*decrypt(jwe.as_bytes(), "digits", &key()).unwrap(), content);
            let with_newline = format!("{jwe}\n");
            assert_eq!(*decrypt(with_newline.as_bytes(), "digits", &key()).unwrap(), content);
        }
        let twice = [(); 2].map(|()| encrypt(vec![1], "digits", &key()).unwrap());
        assert_ne!(twice[0], twice[1]);
    }

    #[test]
    fn every_byte_of_every_part_matters() {
        let jwe = encrypt(b"a model".to_vec(), "digits", &key()).unwrap().into_bytes();
        for place in 0..jwe.len() {
            for flip in [1, 2, 4, 0x20] {
                let mut altered = jwe.clone();
                altered[place] ^= flip;
                assert!(decrypt(&altered, "digits", &key()).is_err(), "byte {place} ^ {flip}");
            }
        }
        for length in 0..jwe.len() {
            assert!(decrypt(&jwe[..length], "digits", &key()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn the_header_chooses_nothing() {
        let with = |header: &str| {
            let jwe = encrypt(Vec::new(), "digits", &key()).unwrap();
            let (_, rest) = jwe.split_once('.').unwrap();
            decrypt(format!("{}.{rest}", BASE64URL.encode(header)).as_bytes(), "digits", &key()).unwrap_err()
        };
        assert!(matches!(
            with(r#"{"alg":"RSA1_5","enc":"A256GCM","kid":"digits"}"#),
            JweError::Algorithms { .. }
        ));
        assert!(matches!(
            with(r#"{"alg":"dir","enc":"A128GCM","kid":"digits"}"#),
            JweError::Algorithms { .. }
        ));
        assert!(matches!(
            with(r#"{"alg":"dir","enc":"A256GCM","kid":"digits","zip":"DEF"}"#),
            JweError::Unsupported { .. }
        ));
        assert!(matches!(
            with(r#"{"alg":"dir","enc":"A256GCM","kid":"digits","crit":["x"]}"#),
            JweError::Unsupported { .. }
        ));
        assert!(matches!(with(r#"{"alg":"dir","enc":"A256GCM"}"#), JweError::KeyId(_)));
        assert!(matches!(with(r#"{"alg":"dir","enc":"A256GCM","kid":"../keys"}"#), JweError::KeyId(_)));
        assert!(matches!(with(r#"{"alg":"dir","enc":"A256GCM","kid":"other"}"#), JweError::OtherKey { .. }));
        assert!(matches!(
            with(r#"{"alg":"dir","alg":"dir","enc":"A256GCM","kid":"digits"}"#),
            JweError::Header { .. }
        ));
        assert!(matches!(with("[]"), JweError::Header { .. }));
        // Another spelling of the same header is another header: it is authenticated as it stands.
        assert_eq!(with(r#"{"alg": "dir","enc":"A256GCM","kid":"digits"}"#), JweError::NotAuthentic);
    }

    #[test]
    fn another_key_and_an_encrypted_key_are_refused() {
        let jwe = encrypt(b"a model".to_vec(), "digits", &key()).unwrap();
        let other = ContentKey::generate().unwrap();
        assert_eq!(decrypt(jwe.as_bytes(), "digits", &other).unwrap_err(), JweError::NotAuthentic);
        let with_key = jwe.replacen("..", ".AAAA.", 1);
        assert!(matches!(
            decrypt(with_key.as_bytes(), "digits", &key()),
            Err(JweError::Length { part: "encrypted key", .. })
        ));
        assert!(matches!(decrypt(b"ey.a.b", "digits", &key()), Err(JweError::Parts { found: 3 })));
    }
}
