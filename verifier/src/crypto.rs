//! Signature and digest primitives, so that the crate they come from is named in one place.

use ring::{
    digest::{SHA256, digest},
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PSS_2048_8192_SHA384,
        UnparsedPublicKey, VerificationAlgorithm,
    },
};

/// A P-256 public key as an uncompressed point: 4 || x || y.
pub(crate) type P256Key = [u8; 65];

/// The uncompressed point for coordinates x || y, as quotes carry them. Whether it lies on the curve is checked on use.
pub(crate) fn p256_key(coordinates: &[u8; 64]) -> P256Key {
    let mut key = [4; 65];
    key[1..].copy_from_slice(coordinates);
    key
}

/// SHA-256 of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 is 32 bytes long")
}

/// Whether `signature` (r || s) by `key` (an uncompressed point) is one of `message`.
pub(crate) fn p256_fixed(key: &[u8], message: &[u8], signature: &[u8; 64]) -> bool {
    verifies(&ECDSA_P256_SHA256_FIXED, key, message, signature)
}

/// Whether `signature` (DER, as in certificates) by `key` (an uncompressed point) is one of `message`.
pub(crate) fn p256_der(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    verifies(&ECDSA_P256_SHA256_ASN1, key, message, signature)
}

/// Whether `signature` (r || s, 96 bytes) by `key` (an uncompressed P-384 point) is one of `message`.
pub(crate) fn p384_fixed(key: &[u8], message: &[u8], signature: &[u8; 96]) -> bool {
    verifies(&ECDSA_P384_SHA384_FIXED, key, message, signature)
}

/// Whether `signature` by `key` (a PKCS #1 `RSAPublicKey`) is one of `message`, RSASSA-PSS with SHA-384.
pub(crate) fn rsa_pss_sha384(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    verifies(&RSA_PSS_2048_8192_SHA384, key, message, signature)
}

fn verifies(
    algorithm: &'static dyn VerificationAlgorithm,
    key: &[u8],
    message: &[u8],
    signature: &[u8],
) -> bool {
    #[cfg(fuzzing)]
    if let Some(presumed) = presumed::validity(signature) {
        return presumed;
    }
    UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
}

/// What fuzz targets take for a signature's validity, so that mutated input comes to the code behind it. Nothing else depends on
/// this configuration.
#[cfg(fuzzing)]
mod presumed {
    #[cfg(not(debug_assertions))]
    compile_error!(
        "the configuration `fuzzing` turns signatures off; only the profile of fuzz/Cargo.toml may set it"
    );

    /// Every signature is one, but for those that begin with a zero byte or are empty, so that both ways are searched; `None`
    /// where `ENCLOS_FUZZ_SIGNATURES=real` asks for the truth.
    pub(super) fn validity(signature: &[u8]) -> Option<bool> {
        static REAL: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
            std::env::var_os("ENCLOS_FUZZ_SIGNATURES").is_some_and(|v| v == "real")
        });
        (!*REAL).then(|| signature.first().is_some_and(|first| *first != 0))
    }
}
