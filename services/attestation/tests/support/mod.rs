//! What the tests of the service share.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses some of it")]

use std::path::Path;

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{self, UnparsedPublicKey},
};
use axum::body::{Body, to_bytes};
use base64::{Engine, prelude::BASE64_STANDARD};
use der::Decode;
use enclos_attestation_service::{
    Config,
    jws::{self, base64url, decode_base64},
};
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

pub const QUOTE: &[u8] = include_bytes!("../../../../verifier/tests/data/sgx_v3.bin");
pub const PERMIT: &str = "version=1.0; authorizationrules { => permit(); }; issuancerules {};";

/// Whether a token is signed by one of the keys of `/certs`, as a relying party finds it.
pub fn validates(token: &str, published: &[jws::Jwk]) -> bool {
    let (signed, signature) = token.rsplit_once('.').expect("a token has a signature");
    let (header, _) = signed.split_once('.').expect("a token has a header");
    let header: Value = serde_json::from_slice(&decode_base64(header).unwrap()).unwrap();
    let Some(key) = published.iter().find(|key| key.kid.as_deref() == header["kid"].as_str()) else {
        return false;
    };
    let certificate = x509_cert::Certificate::from_der(&decode_base64(&key.x5c[0]).unwrap()).unwrap();
    let info = certificate.tbs_certificate().subject_public_key_info();
    UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, info.subject_public_key.raw_bytes())
        .verify(signed.as_bytes(), &decode_base64(signature).unwrap())
        .is_ok()
}

pub type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

pub struct Signer {
    pub certificate: Vec<u8>,
    pub sign: Sign,
}

pub fn rsa_signer() -> Signer {
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der = aws_lc_rs::encoding::AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
    let key =
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der.as_ref().into(), &rcgen::PKCS_RSA_SHA256).unwrap();
    let sign = move |bytes: &[u8]| {
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), bytes, &mut signature).unwrap();
        signature
    };
    Signer { certificate: certificate(&key), sign: Box::new(sign) }
}

pub fn ec_signer() -> Signer {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let pair = signature::EcdsaKeyPair::from_pkcs8(
        &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        &key.serialize_der(),
    )
    .unwrap();
    let sign = move |bytes: &[u8]| pair.sign(&SystemRandom::new(), bytes).unwrap().as_ref().to_vec();
    Signer { certificate: certificate(&key), sign: Box::new(sign) }
}

pub fn certificate(key: &rcgen::KeyPair) -> Vec<u8> {
    rcgen::CertificateParams::default().self_signed(key).unwrap().der().to_vec()
}

impl Signer {
    /// A JWS whose header names any algorithm and carries the certificate in `x5c`, or in a `jwk`.
    pub fn jws(&self, algorithm: &str, in_jwk: bool, payload: &Value) -> String {
        let x5c = json!([BASE64_STANDARD.encode(&self.certificate)]);
        let header = if in_jwk {
            json!({ "alg": algorithm, "jwk": { "x5c": x5c } })
        } else {
            json!({ "alg": algorithm, "x5c": x5c })
        };
        let signed = format!(
            "{}.{}",
            base64url(header.to_string().as_bytes()),
            base64url(payload.to_string().as_bytes())
        );
        let signature = base64url(&(self.sign)(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

pub fn policy_payload(policy: &str) -> Value {
    json!({ "AttestationPolicy": base64url(policy.as_bytes()) })
}

pub fn configuration(folder: &Path, extra: &str) -> Config {
    let collateral = folder.join("collateral");
    std::fs::create_dir_all(&collateral).unwrap();
    let recorded = include_bytes!("../../../../verifier/tests/data/sgx_v3.json");
    std::fs::write(collateral.join("sgx_v3.json"), recorded).unwrap();
    let path = folder.join("service.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\ndata = \"data\"\ncollateral = \"collateral\"\n\
         evidence_time = \"2025-06-27T23:29:34Z\"\n{extra}\n[[tenant]]\nhost = \"localhost\"\n"
    );
    std::fs::write(&path, text).unwrap();
    Config::read(&path).unwrap()
}

/// Small generator of pseudo-random numbers (xorshift), so that a failure can be repeated.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("a remainder of a usize")
    }

    pub fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(2) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = u8::try_from(self.below(256)).unwrap(),
                2 => drop(bytes.remove(at)),
                3 => bytes.truncate(at),
                _ => {
                    let end = (at + self.below(20)).min(bytes.len());
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
            }
        }
    }
}

/// A connection, as a client keeps it.
pub struct Client(pub http1::SendRequest<Body>);

impl Client {
    pub async fn connect(port: u16) -> Option<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        Some(Self(sender))
    }

    /// The answer, or none when the connection broke first.
    pub async fn send(&mut self, method: &str, path: &str, body: String) -> Option<(StatusCode, String)> {
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        self.0.ready().await.ok()?;
        let response = self.0.send_request(request.body(Body::from(body)).unwrap()).await.ok()?;
        let status = response.status();
        let body = to_bytes(Body::new(response.into_body()), 1 << 24).await.ok()?;
        Some((status, String::from_utf8(body.to_vec()).unwrap()))
    }
}
