//! How a key is released: both halves, without how they reach each other.
//!
//! 1. The enclave asks for a nonce of the broker's.
//! 2. It makes a key pair for this one purpose ([`Pending`]), and evidence whose report data are [`report_data`] of the key's
//!    name, the nonce and the public key: a [`KeyRequest`].
//! 3. The broker appraises, and answers with the content key encrypted for that public key ([`seal`]) by HPKE (RFC 9180, base
//!    mode, X25519 with HKDF-SHA256, AES-256-GCM), whose `info` is the same binding: a [`KeyRelease`].
//! 4. The enclave opens it ([`Pending::open`]) and decrypts the content.
//!
//! The enclave does not authenticate the broker, and need not. A release from anybody else holds a key of theirs, under which
//! the owner's content does not decrypt; and if content and key are both somebody else's, so is the model, by whose hash clients
//! say what they expect. What the owner is promised, that the key goes only where their policy says, rests on the broker alone.

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, HpkeError, Kem as _, OpModeR, OpModeS, Serializable as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::jwe::ContentKey;

/// Longest nonce in bytes.
pub const MAX_NONCE: usize = 64;

const LABEL: &[u8] = b"enclos key release 1\0";

type Kem = X25519HkdfSha256;

/// What an enclave sends for a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRequest {
    /// The broker's nonce.
    #[serde(with = "base64url")]
    pub nonce: Vec<u8>,
    /// Public key that the release is to be encrypted for.
    #[serde(with = "base64url")]
    pub public_key: Vec<u8>,
    /// Evidence with [`report_data`].
    #[serde(with = "base64url")]
    pub evidence: Vec<u8>,
    /// Collateral for the evidence, JSON, from whoever relays; the broker may have its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collateral: Option<serde_json::Value>,
}

/// A content key, encrypted for one enclave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRelease {
    /// The public key it is encrypted for.
    #[serde(with = "base64url")]
    pub public_key: Vec<u8>,
    /// Encapsulated key (RFC 9180, section 4).
    #[serde(with = "base64url")]
    pub encapsulated_key: Vec<u8>,
    /// The content key, encrypted.
    #[serde(with = "base64url")]
    pub ciphertext: Vec<u8>,
}

/// Why a release cannot be made or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The public key is none.
    #[error("the public key is not of X25519: {0}")]
    PublicKey(HpkeError),
    /// The release is not for this key pair, name and nonce, or was altered.
    #[error("the released key does not open: it was altered, or is for another request")]
    Altered,
    /// What was released is no content key.
    #[error("what was released is not a key of 256 bits")]
    NoKey,
}

/// Report data of evidence for a release: SHA-256 of a label and, each after its length in bytes (64 bits, big-endian), the
/// name of the key, the nonce and the public key; 32 zeros follow.
pub fn report_data(key_id: &str, nonce: &[u8], public_key: &[u8]) -> [u8; 64] {
    let mut hash = Sha256::new();
    hash.update(LABEL);
    for part in [key_id.as_bytes(), nonce, public_key] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut data = [0; 64];
    data[..32].copy_from_slice(&hash.finalize());
    data
}

/// The enclave's half of one request.
pub struct Pending {
    private_key: <Kem as hpke::Kem>::PrivateKey,
    public_key: Vec<u8>,
    key_id: String,
    report_data: [u8; 64],
}

impl Pending {
    /// Makes a key pair for one request of this key.
    pub fn new(key_id: &str, nonce: &[u8]) -> Self {
        let (private_key, public_key) = Kem::gen_keypair();
        let public_key = public_key.to_bytes().to_vec();
        let report_data = report_data(key_id, nonce, &public_key);
        Self { private_key, public_key, key_id: key_id.to_owned(), report_data }
    }

    /// The name of the key that is asked for.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// What identifies the request.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// What evidence must be made with.
    pub fn report_data(&self) -> &[u8; 64] {
        &self.report_data
    }

    /// The released key.
    ///
    /// # Errors
    /// [`ReleaseError`] when it is not an answer to this request, or was altered.
    pub fn open(&self, release: &KeyRelease) -> Result<ContentKey, ReleaseError> {
        if release.public_key != self.public_key {
            return Err(ReleaseError::Altered);
        }
        let encapsulated = <Kem as hpke::Kem>::EncappedKey::from_bytes(&release.encapsulated_key)
            .map_err(|_| ReleaseError::Altered)?;
        let mut context = hpke::setup_receiver::<AesGcm256, HkdfSha256, Kem>(
            &OpModeR::Base,
            &self.private_key,
            &encapsulated,
            &self.report_data,
        )
        .map_err(|_| ReleaseError::Altered)?;
        let key = Zeroizing::new(context.open(&release.ciphertext, b"").map_err(|_| ReleaseError::Altered)?);
        ContentKey::from_slice(&key).ok_or(ReleaseError::NoKey)
    }
}

/// The broker's half: encrypts a key for the enclave whose evidence has these report data.
///
/// # Errors
/// [`ReleaseError::PublicKey`] when the public key is none.
pub fn seal(key: &ContentKey, public_key: &[u8], report_data: &[u8; 64]) -> Result<KeyRelease, ReleaseError> {
    let recipient = <Kem as hpke::Kem>::PublicKey::from_bytes(public_key).map_err(ReleaseError::PublicKey)?;
    let (encapsulated, mut context) =
        hpke::setup_sender::<AesGcm256, HkdfSha256, Kem>(&OpModeS::Base, &recipient, report_data)
            .map_err(ReleaseError::PublicKey)?;
    let ciphertext = context.seal(key.as_bytes(), b"").map_err(ReleaseError::PublicKey)?;
    Ok(KeyRelease {
        public_key: public_key.to_vec(),
        encapsulated_key: encapsulated.to_bytes().to_vec(),
        ciphertext,
    })
}

/// Bytes in JSON: base64url without padding, as JOSE has them.
pub(crate) mod base64url {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_URL_SAFE_NO_PAD.decode(text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_opens_for_its_request_only() {
        let key = ContentKey::generate().unwrap();
        let pending = Pending::new("digits", &[1; 56]);
        assert_eq!(pending.public_key().len(), 32);
        let release = seal(&key, pending.public_key(), pending.report_data()).unwrap();
        assert_eq!(pending.open(&release).unwrap().as_bytes(), key.as_bytes());
        let json = serde_json::to_string(&release).unwrap();
        assert_eq!(serde_json::from_str::<KeyRelease>(&json).unwrap(), release);

        let other = Pending::new("digits", &[1; 56]);
        assert_eq!(other.open(&release).unwrap_err(), ReleaseError::Altered);
        let claimed = KeyRelease { public_key: other.public_key().to_vec(), ..release.clone() };
        assert_eq!(other.open(&claimed).unwrap_err(), ReleaseError::Altered);
        // The same key pair, but another name.
        let renamed = seal(&key, pending.public_key(), &report_data("other", &[1; 56], pending.public_key()));
        assert_eq!(pending.open(&renamed.unwrap()).unwrap_err(), ReleaseError::Altered);
        for place in 0..release.ciphertext.len() {
            let mut altered = release.clone();
            altered.ciphertext[place] ^= 1;
            assert_eq!(pending.open(&altered).unwrap_err(), ReleaseError::Altered);
        }
        assert!(matches!(seal(&key, &[1; 31], pending.report_data()), Err(ReleaseError::PublicKey(_))));
        // A point of small order has no secret to share (RFC 9180, section 7.1.4).
        assert!(matches!(seal(&key, &[0; 32], pending.report_data()), Err(ReleaseError::PublicKey(_))));
    }

    #[test]
    fn report_data_tell_their_parts_apart() {
        let data = report_data("ab", b"c", b"d");
        for other in
            [report_data("a", b"bc", b"d"), report_data("ab", b"cd", b""), report_data("ab", b"c", b"e")]
        {
            assert_ne!(data, other);
        }
        assert_eq!(data[32..], [0; 32]);
    }
}
