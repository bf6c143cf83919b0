//! SIGSTRUCT: who vouches for an image (SDM vol. 3D, 34.14). RSA-3072 with public exponent 3, PKCS #1 v1.5, SHA-256.
//!
//! In one step with [`Image::sign`], or in two for a key kept elsewhere: [`Image::signing_body`] gives the 256 bytes
//! to be signed, [`Image::attach_signature`] takes the signature after checking it.
//!
//! The masks demand exactly the attributes the image was built for: a production image cannot be launched with DEBUG
//! set, nor a debug image without. Only AVX-512 state is left to the host, if the manifest permits it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crypto_bigint::ConcatenatingMul as _;
use getrandom::SysRng;
use rsa::pkcs1::{DecodeRsaPrivateKey as _, DecodeRsaPublicKey as _};
use rsa::pkcs8::{
    DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding,
};
use rsa::sha2::{Digest, Sha256};
use rsa::traits::PublicKeyParts as _;
use rsa::{BoxedUint, Pkcs1v15Sign, PrivateKey, PublicKey};
use sgx_isa::{Miscselect, SIGSTRUCT_HEADER1, SIGSTRUCT_HEADER2, Sigstruct};

use crate::image::Image;

/// Bytes of a modulus and of a signature.
pub const KEY_BYTES: usize = 384;
/// Bytes that a signature covers: SIGSTRUCT bytes 0 to 127 and 900 to 1027.
pub const BODY_BYTES: usize = 256;

/// A key that signs images.
pub struct SigningKey(PrivateKey);

impl SigningKey {
    /// Makes a new key with the operating system's randomness. Takes about a second.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> Result<Self, SignError> {
        let key = PrivateKey::new_with_exp(&mut SysRng, KEY_BYTES * 8, 3u32.into());
        key.map(Self).map_err(|e| SignError::Rsa { what: "key generation", message: e.to_string() })
    }

    /// Reads a private key: PEM, PKCS #8 or PKCS #1.
    ///
    /// # Errors
    /// When it is no RSA key of 3072 bits with public exponent 3.
    pub fn from_pem(pem: &str) -> Result<Self, SignError> {
        let key = if pem.contains("BEGIN RSA PRIVATE KEY") {
            PrivateKey::from_pkcs1_pem(pem).map_err(|e| e.to_string())
        } else {
            PrivateKey::from_pkcs8_pem(pem).map_err(|e| e.to_string())
        };
        let key = key.map_err(|message| SignError::Pem { message })?;
        check_key(key.as_public_key())?;
        Ok(Self(key))
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// When it cannot be read or [`SigningKey::from_pem`] refuses it.
    pub fn load(path: &Path) -> Result<Self, SignError> {
        Self::from_pem(&read(path)?)
    }

    /// The key as PKCS #8 PEM. Whoever has it can sign images as this signer.
    ///
    /// # Errors
    /// When encoding fails.
    pub fn to_pem(&self) -> Result<String, SignError> {
        let pem = self.0.to_pkcs8_pem(LineEnding::LF);
        pem.map(|p| p.to_string()).map_err(|e| SignError::Pem { message: e.to_string() })
    }

    /// Writes the key to a new file that only its owner may read.
    ///
    /// # Errors
    /// When the file exists, since overwriting a key loses everything sealed to its signer, or cannot be written.
    pub fn write_new(&self, path: &Path) -> Result<(), SignError> {
        let pem = self.to_pem()?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        file.and_then(|mut f| f.write_all(pem.as_bytes()).and_then(|()| f.sync_all())).map_err(|source| {
            if source.kind() == std::io::ErrorKind::AlreadyExists {
                SignError::KeyExists { path: path.to_path_buf() }
            } else {
                SignError::File { path: path.to_path_buf(), source }
            }
        })
    }

    /// The public half.
    pub fn public(&self) -> VerifyingKey {
        VerifyingKey(self.0.to_public_key())
    }

    /// Signs 256 bytes as an HSM would; big-endian.
    ///
    /// # Errors
    /// When the RSA operation fails.
    pub fn sign_body(&self, body: &[u8; BODY_BYTES]) -> Result<[u8; KEY_BYTES], SignError> {
        let failed = |message: String| SignError::Rsa { what: "signing", message };
        let signature = self
            .0
            .sign_with_rng(&mut SysRng, Pkcs1v15Sign::new::<Sha256>(), &Sha256::digest(body))
            .map_err(|e| failed(e.to_string()))?;
        signature.try_into().map_err(|s: Vec<u8>| failed(format!("the signature has {} bytes", s.len())))
    }
}

/// The public half of a signing key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey(PublicKey);

impl VerifyingKey {
    /// Reads a public key: PEM, SubjectPublicKeyInfo or PKCS #1.
    ///
    /// # Errors
    /// When it is no RSA key of 3072 bits with public exponent 3.
    pub fn from_pem(pem: &str) -> Result<Self, SignError> {
        let key = if pem.contains("BEGIN RSA PUBLIC KEY") {
            PublicKey::from_pkcs1_pem(pem).map_err(|e| e.to_string())
        } else {
            PublicKey::from_public_key_pem(pem).map_err(|e| e.to_string())
        };
        let key = key.map_err(|message| SignError::Pem { message })?;
        check_key(&key)?;
        Ok(Self(key))
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// When it cannot be read or [`VerifyingKey::from_pem`] refuses it.
    pub fn load(path: &Path) -> Result<Self, SignError> {
        Self::from_pem(&read(path)?)
    }

    /// The key as SubjectPublicKeyInfo PEM.
    ///
    /// # Errors
    /// When encoding fails.
    pub fn to_pem(&self) -> Result<String, SignError> {
        self.0.to_public_key_pem(LineEnding::LF).map_err(|e| SignError::Pem { message: e.to_string() })
    }

    /// MRSIGNER: SHA-256 of the modulus as it stands in a SIGSTRUCT.
    pub fn mrsigner(&self) -> [u8; 32] {
        Sha256::digest(self.modulus()).into()
    }

    /// The modulus, little-endian.
    fn modulus(&self) -> [u8; KEY_BYTES] {
        little_endian(self.0.n())
    }
}

/// The DATE field of a SIGSTRUCT: year, month and day, not measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date(u32);

impl Date {
    /// Today (UTC), or the day of `SOURCE_DATE_EPOCH` if that variable is set.
    ///
    /// # Errors
    /// When the variable is set and is no number of seconds.
    pub fn today() -> Result<Self, SignError> {
        let seconds = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(text) => text.trim().parse().map_err(|_| SignError::SourceDateEpoch { found: text })?,
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        };
        Ok(Self::from_unix(seconds))
    }

    /// The day of a number of seconds since 1970.
    pub fn from_unix(seconds: u64) -> Self {
        // Days to civil date in the proleptic Gregorian calendar, with years that begin in March.
        let days = seconds / 86400 + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = (era * 400 + year_of_era + u64::from(month <= 2)).min(9999);
        let bcd = |n: u64| (0..4).fold(0u32, |acc, i| acc | ((n / 10u64.pow(i) % 10) as u32) << (4 * i));
        Self(bcd(year) << 16 | bcd(month) << 8 | bcd(day))
    }

    /// As it stands in a SIGSTRUCT, whatever it is.
    pub fn from_bcd(bcd: u32) -> Self {
        Self(bcd)
    }

    /// As it stands in a SIGSTRUCT: yyyymmdd in binary-coded decimal.
    pub fn to_bcd(self) -> u32 {
        self.0
    }
}

impl std::fmt::Display for Date {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04x}-{:02x}-{:02x}", self.0 >> 16, self.0 >> 8 & 0xff, self.0 & 0xff)
    }
}

impl Image {
    /// Signs the image.
    ///
    /// # Errors
    /// When the RSA operation fails.
    pub fn sign(&mut self, key: &SigningKey, date: Date) -> Result<(), SignError> {
        let body = self.signing_body(date);
        let signature = key.sign_body(&body)?;
        self.attach_signature(&body, &key.public(), &signature)
    }

    /// The 256 bytes that the signer's key must sign (PKCS #1 v1.5 with SHA-256).
    pub fn signing_body(&self, date: Date) -> [u8; BODY_BYTES] {
        body_of(&self.unsigned(date))
    }

    /// The SHA-256 of [`Image::signing_body`], for devices that take a digest.
    pub fn signing_digest(&self, date: Date) -> [u8; 32] {
        Sha256::digest(self.signing_body(date)).into()
    }

    /// Attaches a signature (big-endian) made elsewhere over `body`.
    ///
    /// # Errors
    /// When `body` is not of this image, or the signature is not by `key`. The image stays as it was.
    pub fn attach_signature(
        &mut self,
        body: &[u8],
        key: &VerifyingKey,
        signature: &[u8],
    ) -> Result<(), SignError> {
        let body: &[u8; BODY_BYTES] =
            body.try_into().map_err(|_| SignError::BodyLength { found: body.len() })?;
        // The date is the signer's to choose; everything else must be what this image needs.
        let date = Date(u32::from_le_bytes([body[20], body[21], body[22], body[23]]));
        let mut sigstruct = self.unsigned(date);
        if body_of(&sigstruct) != *body {
            return Err(SignError::OtherImage);
        }
        verify_rsa(&key.0, body, signature)?;
        let s = BoxedUint::from_be_slice(signature, (KEY_BYTES * 8) as u32)
            .map_err(|e| SignError::Rsa { what: "signature", message: e.to_string() })?;
        let (q1, q2) = quotients(&s, &key.0);
        sigstruct.modulus = key.modulus();
        sigstruct.signature = little_endian(&s);
        sigstruct.q1 = little_endian(&q1);
        sigstruct.q2 = little_endian(&q2);
        self.sigstruct = Some(Box::new(sigstruct));
        Ok(())
    }

    /// Checks the signature and that it is for this image, and returns the signer.
    ///
    /// # Errors
    /// When there is none, it does not verify, or it vouches for something else.
    pub fn verify(&self) -> Result<VerifyingKey, SignError> {
        let sigstruct = self.sigstruct().ok_or(SignError::Unsigned)?;
        if sigstruct.exponent != 3 {
            return Err(SignError::Exponent);
        }
        let body = body_of(sigstruct);
        if sigstruct.enclavehash != self.mrenclave() {
            return Err(SignError::EnclaveHash { signed: sigstruct.enclavehash, measured: self.mrenclave() });
        }
        if body_of(&self.unsigned(Date(sigstruct.date))) != body {
            return Err(SignError::OtherImage);
        }
        let number = |bytes: &[u8; KEY_BYTES]| {
            BoxedUint::from_le_slice(bytes, (KEY_BYTES * 8) as u32)
                .map_err(|e| SignError::Rsa { what: "SIGSTRUCT", message: e.to_string() })
        };
        let key = PublicKey::new(number(&sigstruct.modulus)?, 3u32.into())
            .map_err(|e| SignError::Rsa { what: "SIGSTRUCT's modulus", message: e.to_string() })?;
        check_key(&key)?;
        let mut signature = sigstruct.signature;
        signature.reverse();
        verify_rsa(&key, &body, &signature)?;
        let (q1, q2) = quotients(&number(&sigstruct.signature)?, &key);
        if little_endian(&q1) != sigstruct.q1 || little_endian(&q2) != sigstruct.q2 {
            return Err(SignError::Quotients);
        }
        Ok(VerifyingKey(key))
    }

    /// The SIGSTRUCT this image needs, without key and signature.
    fn unsigned(&self, date: Date) -> Sigstruct {
        let identity = self.identity();
        Sigstruct {
            header: SIGSTRUCT_HEADER1,
            vendor: 0,
            date: date.0,
            header2: SIGSTRUCT_HEADER2,
            exponent: 3,
            miscselect: identity.miscselect(),
            // EXINFO makes fault reports better where the processor has it; nothing depends on it, and processors of
            // the first generation have none.
            miscmask: !Miscselect::EXINFO.bits(),
            attributes: identity.attributes(),
            attributemask: [!0, !identity.optional_xfrm()],
            enclavehash: self.mrenclave(),
            isvprodid: identity.product_id,
            isvsvn: identity.security_version,
            ..zeroed()
        }
    }
}

fn zeroed() -> Sigstruct {
    Sigstruct::try_copy_from(&[0; Sigstruct::UNPADDED_SIZE]).expect("the length is right")
}

fn body_of(sigstruct: &Sigstruct) -> [u8; BODY_BYTES] {
    let (first, second) = sigstruct.signature_data();
    let mut body = [0; BODY_BYTES];
    body[..128].copy_from_slice(first);
    body[128..].copy_from_slice(second);
    body
}

fn verify_rsa(key: &PublicKey, body: &[u8], signature: &[u8]) -> Result<(), SignError> {
    key.verify(Pkcs1v15Sign::new::<Sha256>(), &Sha256::digest(body), signature)
        .map_err(|_| SignError::Signature)
}

/// Q1 = ⌊S²/N⌋ and Q2 = ⌊S·(S² mod N)/N⌋, by which EINIT verifies without dividing (SDM vol. 3D, 34.14).
fn quotients(s: &BoxedUint, key: &PublicKey) -> (BoxedUint, BoxedUint) {
    let (q1, rest) = s.concatenating_mul(s).div_rem_vartime(key.n());
    let (q2, _) = s.concatenating_mul(&rest).div_rem_vartime(key.n());
    (q1, q2)
}

fn little_endian(number: &BoxedUint) -> [u8; KEY_BYTES] {
    let mut out = [0; KEY_BYTES];
    let bytes = number.to_le_bytes();
    let len = bytes.len().min(KEY_BYTES);
    out[..len].copy_from_slice(&bytes[..len]);
    out
}

fn check_key(key: &PublicKey) -> Result<(), SignError> {
    let bits = key.n().bit_width();
    if bits != (KEY_BYTES * 8) as u32 {
        return Err(SignError::KeySize { bits });
    }
    if *key.e() != BoxedUint::from(3u32) {
        return Err(SignError::Exponent);
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, SignError> {
    std::fs::read_to_string(path).map_err(|source| SignError::File { path: path.to_path_buf(), source })
}

/// Why something could not be signed or verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    /// Reading or writing a file failed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key would be overwritten.
    #[error("{} exists: what was sealed to its signer would be lost with it; choose another name", path.display())]
    KeyExists {
        /// The file.
        path: PathBuf,
    },
    /// Not a key in PEM.
    #[error("not an RSA key in PEM ({message}): make one with `enclos keygen` or `openssl genrsa -3 3072`")]
    Pem {
        /// What is wrong.
        message: String,
    },
    /// A key of another size.
    #[error("the key has {bits} bits, SGX takes RSA keys of 3072: make one with `enclos keygen`")]
    KeySize {
        /// Its size.
        bits: u32,
    },
    /// Another public exponent.
    #[error("the key's public exponent is not 3, as SGX demands: make one with `enclos keygen`")]
    Exponent,
    /// The RSA library failed.
    #[error("{what} failed: {message}")]
    Rsa {
        /// Doing what.
        what: &'static str,
        /// Why.
        message: String,
    },
    /// `SOURCE_DATE_EPOCH` is not usable.
    #[error("SOURCE_DATE_EPOCH is {found:?}, not a number of seconds since 1970: correct or unset it")]
    SourceDateEpoch {
        /// Its value.
        found: String,
    },
    /// A signed body of the wrong length.
    #[error(
        "the signed body has {found} bytes instead of {BODY_BYTES}: use the file that was written for signing"
    )]
    BodyLength {
        /// Its length.
        found: usize,
    },
    /// What is signed is not this image.
    #[error("what was signed belongs to another image or other attributes: sign the body of this image")]
    OtherImage,
    /// The signature does not verify.
    #[error(
        "the signature does not verify: it was altered, is of another key, or was not made with PKCS #1 v1.5 and SHA-256"
    )]
    Signature,
    /// Q1 or Q2 is wrong.
    #[error("the signature structure is inconsistent (Q1, Q2), EINIT would refuse it: sign the image again")]
    Quotients,
    /// No signature.
    #[error("the image is not signed: sign it with `enclos sign`")]
    Unsigned,
    /// The signature is for other pages.
    #[error(
        "the signature is for MRENCLAVE {}, the pages measure {}: the image was altered after signing",
        hex(signed),
        hex(measured)
    )]
    EnclaveHash {
        /// ENCLAVEHASH.
        signed: [u8; 32],
        /// MRENCLAVE of the pages.
        measured: [u8; 32],
    },
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}
