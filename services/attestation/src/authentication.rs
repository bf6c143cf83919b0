//! Bearer tokens of who manages policies: signed by an issuer whose keys are given as a file.

use std::path::PathBuf;

use aws_lc_rs::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

use crate::{
    config::{Authentication, ConfigError},
    jws::decode_base64,
};

/// How far clocks may differ, seconds.
const CLOCK_SKEW: u64 = 60;

/// Checks bearer tokens.
#[derive(Debug)]
pub struct Authenticator {
    issuer: String,
    audience: String,
    keys: Vec<Key>,
}

/// Why a bearer token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BearerError {
    /// There is none.
    #[error("the request has no bearer token; send Authorization: Bearer <token>")]
    Missing,
    /// It is not a JWT this service reads.
    #[error("the bearer token is not a JWT signed with RS256 or ES256")]
    Malformed,
    /// No key of the issuer made its signature.
    #[error("the bearer token is not signed by a key of the configured issuer")]
    Signature,
    /// A claim is not what it must be.
    #[error("the bearer token has another {0} than this service demands")]
    Claim(&'static str),
    /// It is not valid at this time.
    #[error("the bearer token is expired or not valid yet")]
    Time,
}

#[derive(Debug)]
struct Key {
    kid: Option<String>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
}

#[derive(Deserialize)]
struct Payload {
    iss: String,
    aud: Audience,
    exp: u64,
    #[serde(default)]
    nbf: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Authenticator {
    /// Reads the issuer's keys.
    ///
    /// # Errors
    /// [`ConfigError`] when the file is not a key set with a usable key.
    pub fn read(configuration: &Authentication) -> Result<Self, ConfigError> {
        let path: PathBuf = configuration.jwks.clone();
        let text = std::fs::read(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let set: JwkSet = serde_json::from_slice(&text).map_err(|error| ConfigError::Content {
            path: path.clone(),
            reason: format!("not a JSON Web Key Set: {error}"),
        })?;
        let keys: Vec<_> = set.keys.into_iter().filter_map(Jwk::usable).collect();
        if keys.is_empty() {
            let reason = "no RSA key with n and e, nor EC key on P-256 with x and y, is in it".into();
            return Err(ConfigError::Content { path, reason });
        }
        Ok(Self { issuer: configuration.issuer.clone(), audience: configuration.audience.clone(), keys })
    }

    /// Checks an `Authorization` header as of `now`, seconds since 1970.
    ///
    /// # Errors
    /// [`BearerError`] when the token is not the issuer's, for this audience, and in force.
    pub fn check(&self, header: Option<&str>, now: u64) -> Result<(), BearerError> {
        let (scheme, token) = header.and_then(|header| header.split_once(' ')).ok_or(BearerError::Missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(BearerError::Missing);
        }
        let token = token.trim();
        let parts: Vec<_> = token.split('.').collect();
        let [header, payload, signature] = parts[..] else { return Err(BearerError::Malformed) };
        let decode = |text| decode_base64(text).map_err(|_| BearerError::Malformed);
        let signed = &token.as_bytes()[..header.len() + 1 + payload.len()];
        let header: Header = parse(&decode(header)?)?;
        let signature = decode(signature)?;
        let verified = self
            .keys
            .iter()
            .filter(|key| header.kid.is_none() || key.kid.is_none() || key.kid == header.kid)
            .any(|key| key.material.verifies(&header.alg, signed, &signature));
        if !verified {
            return Err(BearerError::Signature);
        }
        let payload: Payload = parse(&decode(payload)?)?;
        let for_us = match &payload.aud {
            Audience::One(audience) => *audience == self.audience,
            Audience::Many(audiences) => audiences.contains(&self.audience),
        };
        if payload.iss != self.issuer {
            return Err(BearerError::Claim("issuer"));
        }
        if !for_us {
            return Err(BearerError::Claim("audience"));
        }
        if now > payload.exp.saturating_add(CLOCK_SKEW) || now.saturating_add(CLOCK_SKEW) < payload.nbf {
            return Err(BearerError::Time);
        }
        Ok(())
    }
}

fn parse<T: for<'de> Deserialize<'de>>(json: &[u8]) -> Result<T, BearerError> {
    serde_json::from_slice(json).map_err(|_| BearerError::Malformed)
}

impl Jwk {
    fn usable(self) -> Option<Key> {
        let part = |text: Option<String>| text.and_then(|text| decode_base64(&text).ok());
        let material = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => Material::Rsa { n: part(self.n)?, e: part(self.e)? },
            ("EC", Some("P-256")) => {
                let point = [vec![4], part(self.x)?, part(self.y)?].concat();
                (point.len() == 65).then_some(Material::P256(point))?
            }
            _ => return None,
        };
        Some(Key { kid: self.kid, material })
    }
}

impl Material {
    fn verifies(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
        match (self, algorithm) {
            (Self::Rsa { n, e }, "RS256") => RsaPublicKeyComponents { n, e }
                .verify(&signature::RSA_PKCS1_2048_8192_SHA256, signed, signature)
                .is_ok(),
            (Self::P256(point), "ES256") => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(signed, signature)
                    .is_ok()
            }
            _ => false,
        }
    }
}
