//! Signing keys and the tokens they sign.
//!
//! Relying parties fetch `/certs` once and keep it, so a new key is published a while before it signs, and an old one
//! stays published until the last token it signed has expired.
//!
//! A service in an enclave puts evidence of that into the certificates of its keys ([`Attestation`]). Keys whose private
//! part another image made, or that were made under other demands on platforms, stay published and sign no more.

use std::sync::{Arc, RwLock, RwLockReadGuard};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD, prelude::BASE64_STANDARD};
use der::{Decode, Encode};
use enclos_verifier::{Hex, SIGNING_EVIDENCE_OID, SigningEvidence, signing_key_digest};
use rcgen::PublicKeyData as _;
use serde::Serialize;

use crate::{
    jws::Jwk,
    store::{Store, StoreError, StoredKey, Written},
};

/// How long attestation tokens are valid, seconds.
pub const ATTESTATION_LIFETIME: u64 = 28_800;
/// How long the answers about policies and certificates are valid, seconds.
pub const RESULT_LIFETIME: u64 = 3_600;
/// How long a new key is published before it signs.
const PUBLISHED_BEFORE: u64 = 24 * 3_600 * 1_000;
/// How long an old key stays published after it signed the last token.
const PUBLISHED_AFTER: u64 = (ATTESTATION_LIFETIME + 3_600) * 1_000;

/// Longest time a key is used: certificates cannot say every date.
const LONGEST_ROTATION: u64 = 3650 * 24 * 3_600 * 1_000;

/// Bytes of a usual token's claims as JSON, rounded up: what is longer takes a moment more.
const USUAL_LEN: usize = 4096;

/// Why there is no usable signing key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored key cannot be used.
    #[error("the signing key made at {made} ms in the store is damaged: {reason}")]
    Damaged {
        /// When it was made.
        made: u64,
        /// What is wrong.
        reason: String,
    },
    /// A key could not be made.
    #[error("a signing key could not be made: {0}")]
    Make(String),
}

/// Gives evidence of the enclave that this code runs in.
pub trait Attester: Send + Sync {
    /// An SGX quote with this report data.
    ///
    /// # Errors
    /// Why there is none.
    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, String>;
}

/// How signing keys prove where they are held.
pub struct Attestation {
    /// Whom to ask for evidence.
    pub attester: Box<dyn Attester>,
    /// What tokens are made under: behind the key's digest in the report data.
    pub demands: Hex<32>,
}

/// The signing keys there are.
pub struct KeyRing {
    keys: RwLock<Vec<Arc<SigningKey>>>,
    /// Milliseconds after which a key is succeeded by another.
    rotation: u64,
    attestation: Option<Attestation>,
}

/// A key that signs tokens.
pub struct SigningKey {
    made: u64,
    /// `None`: it signs no more, but its certificate is still published.
    pair: Option<KeyPair>,
    jwk: Jwk,
}

impl KeyRing {
    /// Loads the keys of the store, making the first when there is none. `now` and `rotation` in milliseconds.
    ///
    /// # Errors
    /// [`KeyError`] when there is no usable key.
    pub fn open(store: &dyn Store, now: u64, rotation: u64) -> Result<Self, KeyError> {
        Self::attested(store, now, rotation, None)
    }

    /// As [`KeyRing::open`]; with an attestation, only keys whose certificates have evidence for it sign.
    ///
    /// # Errors
    /// [`KeyError`] when there is no usable key.
    pub fn attested(
        store: &dyn Store,
        now: u64,
        rotation: u64,
        attestation: Option<Attestation>,
    ) -> Result<Self, KeyError> {
        let ring = Self {
            keys: RwLock::default(),
            rotation: rotation.clamp(2 * PUBLISHED_BEFORE, LONGEST_ROTATION),
            attestation,
        };
        ring.rotate(store, now)?;
        Ok(ring)
    }

    /// Takes over the keys of the store, which other replicas may have changed; makes the next key when the newest is due
    /// to be succeeded, and forgets those no token needs any more.
    ///
    /// # Errors
    /// [`KeyError`] when the store fails; then the keys are what they were.
    pub fn rotate(&self, store: &dyn Store, now: u64) -> Result<(), KeyError> {
        loop {
            let stored = store.keys()?;
            let newest = stored.last().map(|key| key.made);
            let due = match stored.iter().rev().find(|key| self.may_sign(key)) {
                Some(key) => now >= key.made.saturating_add(self.rotation - PUBLISHED_BEFORE),
                None => true,
            };
            // Keys are told apart by when they were made, also where the clock stands still.
            let time = newest.map_or(now, |newest| now.max(newest.saturating_add(1)));
            let made = due.then(|| self.make(time)).transpose()?;
            // A key is done when its successor has signed for longer than any token lives.
            let expired: Vec<u64> = stored
                .windows(2)
                .filter(|pair| now >= pair[1].made.saturating_add(PUBLISHED_BEFORE + PUBLISHED_AFTER))
                .map(|pair| pair[0].made)
                .collect();
            if made.is_some() || !expired.is_empty() {
                match store.replace_keys(newest, made.as_ref(), &expired)? {
                    Written::Done => {}
                    // Another replica was faster: its key is as good.
                    Written::Stale | Written::LastCertificate => continue,
                }
            }
            let known = read(&self.keys).clone();
            let next = stored
                .iter()
                .filter(|key| !expired.contains(&key.made))
                .chain(&made)
                .map(|key| match known.iter().find(|known| known.made == key.made) {
                    Some(known) => Ok(Arc::clone(known)),
                    None => SigningKey::load(key, self.may_sign(key)),
                })
                .collect::<Result<Vec<_>, _>>()?;
            if next.iter().all(|key| key.pair.is_none()) {
                return Err(KeyError::Make("its certificate has no evidence for it".into()));
            }
            *self.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner) = next;
            return Ok(());
        }
    }

    /// The key that signs at a time, milliseconds.
    #[must_use]
    pub fn signing(&self, now: u64) -> Arc<SigningKey> {
        let keys = read(&self.keys);
        let mut signing = keys.iter().filter(|key| key.pair.is_some());
        let published_long_enough =
            signing.clone().rev().find(|key| now >= key.made.saturating_add(PUBLISHED_BEFORE));
        // The very first key cannot have been published before.
        Arc::clone(published_long_enough.or_else(|| signing.next()).expect("a ring is opened with a key"))
    }

    fn make(&self, now: u64) -> Result<StoredKey, KeyError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| KeyError::Make(format!("{what}: {error}"));
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|error| failed("RSA key", &error))?;
        let private_key =
            AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).map_err(|error| failed("PKCS #8", &error))?;
        let private_key = private_key.as_ref().to_vec();
        let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
            &private_key.as_slice().into(),
            &rcgen::PKCS_RSA_SHA256,
        )
        .map_err(|error| failed("key of the certificate", &error))?;
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "Enclos Attestation Service");
        parameters.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        let at = |milliseconds: u64| {
            std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(milliseconds)
        };
        // From a little earlier: relying parties' clocks differ.
        parameters.not_before = at(now.saturating_sub(3_600_000)).into();
        parameters.not_after = at(now + self.rotation + 2 * (PUBLISHED_BEFORE + PUBLISHED_AFTER)).into();
        if let Some(attestation) = &self.attestation {
            let report = attestation
                .report(&signing_key_digest(&key.subject_public_key_info()))
                .map_err(|reason| failed("evidence", &reason))?;
            let oid: Vec<u64> = SIGNING_EVIDENCE_OID.arcs().map(u64::from).collect();
            parameters.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&oid, report));
        }
        let certificate =
            parameters.self_signed(&key).map_err(|error| failed("certificate", &error))?.der().to_vec();
        Ok(StoredKey { made: now, private_key: Some(private_key), certificate })
    }

    /// Whether a stored key is one of this service as it is now.
    fn may_sign(&self, key: &StoredKey) -> bool {
        let evidence = || SigningEvidence::of(&key.certificate).ok().flatten();
        key.private_key.is_some()
            && self
                .attestation
                .as_ref()
                .is_none_or(|ours| evidence().is_some_and(|found| found.rest == Some(ours.demands)))
    }

    /// All keys a relying party may meet.
    #[must_use]
    pub fn published(&self) -> Vec<Jwk> {
        read(&self.keys).iter().map(|key| key.jwk.clone()).collect()
    }
}

fn read<T>(keys: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    keys.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Header of a token (RFC 7515, section 4.1).
#[derive(Serialize)]
struct Header<'a> {
    alg: &'a str,
    jku: &'a str,
    kid: &'a str,
    typ: &'a str,
}

impl SigningKey {
    /// Name of the key in `/certs` and in token headers.
    #[must_use]
    pub fn id(&self) -> &str {
        self.jwk.kid.as_deref().unwrap_or_default()
    }

    /// When it was made, milliseconds since 1970.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.made
    }

    /// A signed token over claims, for a service at `issuer`.
    ///
    /// # Errors
    /// [`KeyError::Make`] when the signature cannot be made.
    ///
    /// # Panics
    /// When the claims are nothing that JSON can express.
    pub fn sign(&self, issuer: &str, claims: &impl Serialize) -> Result<String, KeyError> {
        let pair = self.pair.as_ref().ok_or_else(|| KeyError::Make("this key signs no more".into()))?;
        let mut token = self.unsigned(issuer, "RS256", claims);
        let mut signed = vec![0; pair.public_modulus_len()];
        pair.sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), token.as_bytes(), &mut signed)
            .map_err(|_| KeyError::Make("signing failed".into()))?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(&signed, &mut token);
        Ok(token)
    }

    /// A token over claims that nobody can validate, for drafts of policies.
    ///
    /// # Panics
    /// When the claims are nothing that JSON can express.
    #[must_use]
    pub fn unsecured(&self, issuer: &str, claims: &impl Serialize) -> String {
        self.unsigned(issuer, "none", claims) + "."
    }

    /// Header and claims, with room for a signature behind them.
    fn unsigned(&self, issuer: &str, algorithm: &str, claims: &impl Serialize) -> String {
        let jku = format!("{issuer}/certs");
        let header = Header { alg: algorithm, jku: &jku, kid: self.id(), typ: "JWT" };
        let mut json = Vec::with_capacity(USUAL_LEN);
        let mut token = String::with_capacity(2 * USUAL_LEN);
        serde_json::to_writer(&mut json, &header).expect("text is serializable");
        URL_SAFE_NO_PAD.encode_string(&json, &mut token);
        json.clear();
        serde_json::to_writer(&mut json, claims).expect("claims are serializable");
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(&json, &mut token);
        token
    }

    fn load(stored: &StoredKey, signs: bool) -> Result<Arc<Self>, KeyError> {
        let damaged = |reason: String| KeyError::Damaged { made: stored.made, reason };
        let pair = stored.private_key.as_ref().filter(|_| signs).map(|key| KeyPair::from_pkcs8(key));
        let pair = pair.transpose().map_err(|error| damaged(error.to_string()))?;
        let certificate = x509_cert::Certificate::from_der(&stored.certificate)
            .map_err(|error| damaged(error.to_string()))?;
        let public_key = certificate
            .tbs_certificate()
            .subject_public_key_info()
            .to_der()
            .map_err(|error| damaged(error.to_string()))?;
        let jwk = Jwk {
            alg: Some("RS256".into()),
            kid: Some(key_id(&public_key)),
            kty: "RSA".into(),
            usage: Some("sig".into()),
            x5c: vec![BASE64_STANDARD.encode(&stored.certificate)],
        };
        Ok(Arc::new(Self { made: stored.made, pair, jwk }))
    }
}

impl Attestation {
    /// A report for a key, as Open Enclave remote reports are: version 1, type 2, the quote's length, the quote.
    fn report(&self, key: &[u8; 32]) -> Result<Vec<u8>, String> {
        let mut report_data = [0; 64];
        report_data[..32].copy_from_slice(key);
        report_data[32..].copy_from_slice(&self.demands.0);
        let quote = self.attester.quote(&report_data)?;
        let mut report = Vec::with_capacity(16 + quote.len());
        report.extend_from_slice(&1u32.to_le_bytes());
        report.extend_from_slice(&2u32.to_le_bytes());
        report.extend_from_slice(&(quote.len() as u64).to_le_bytes());
        report.extend_from_slice(&quote);
        Ok(report)
    }
}

/// Name of a key as Azure Attestation derives it.
fn key_id(public_key: &[u8]) -> String {
    BASE64_STANDARD.encode(signing_key_digest(public_key))
}
