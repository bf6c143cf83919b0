//! Attestations per second on one thread, beside the RSA signature alone in the same run.

use std::time::{Duration, Instant};

use enclos_attestation_service::{
    AttestRequest, AttestationType, Config, Service, TenantContext, TokenFormat,
    jws::{base64url, decode_base64},
    store::EmbeddedStore,
    tokens::KeyRing,
};
use serde_json::{Map, Value, json};

const QUOTE: &[u8] = include_bytes!("../../../verifier/tests/data/sgx_v3.bin");
const COLLATERAL: &[u8] = include_bytes!("../../../verifier/tests/data/sgx_v3.json");
const ROUND: Duration = Duration::from_millis(50);
const ROUNDS: usize = 60;

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let collateral = folder.path().join("collateral");
    std::fs::create_dir(&collateral).expect("a folder");
    std::fs::write(collateral.join("sgx_v3.json"), COLLATERAL).expect("a file");
    let path = folder.path().join("service.toml");
    let text = "listen = \"127.0.0.1:0\"\ndata = \"data\"\ncollateral = \"collateral\"\n\
                evidence_time = \"2025-06-27T23:29:34Z\"\n[[tenant]]\nhost = \"localhost\"\n";
    std::fs::write(&path, text).expect("a file");
    let config = Config::read(&path).expect("a configuration");
    let started = Instant::now();
    let service = Service::open(&config).expect("the service opens");
    println!("open, with a new key: {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
    let tenant =
        TenantContext { name: "localhost".into(), issuer: "https://localhost".into(), isolated: false };
    let body = json!({ "quote": base64url(QUOTE) }).to_string();
    let attest = || {
        let request: AttestRequest = serde_json::from_str(&body).expect("a request");
        service
            .attest(&tenant, AttestationType::SgxEnclave, &request, TokenFormat::Maa)
            .expect("the quote is accepted")
    };
    let token = attest()["token"].as_str().expect("a token").to_owned();
    let payload = decode_base64(token.split('.').nth(1).expect("a payload")).expect("base64url");
    let claims: Map<String, Value> = serde_json::from_slice(&payload).expect("claims");
    let store = EmbeddedStore::open(&folder.path().join("other")).expect("a store");
    let ring = KeyRing::open(&store, 1, 90 * 24 * 3_600_000).expect("a key");
    let key = ring.signing(1);
    let sign = || key.sign("https://localhost", &claims).expect("a token");

    // Alternating, so that both meet the same machine; the best round of each is the one least disturbed.
    let (mut attested, mut signed) = (0.0f64, 0.0f64);
    for _ in 0..ROUNDS {
        attested = attested.max(per_second(|| drop(attest())));
        signed = signed.max(per_second(|| drop(sign())));
    }
    println!("attestations per second: {attested:.0}");
    println!("signatures per second:   {signed:.0}");
    println!("ratio: {:.2} (wanted: at least 0.80)", attested / signed);
}

fn per_second(mut work: impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut count = 0.0;
    while started.elapsed() < ROUND {
        work();
        count += 1.0;
    }
    count / started.elapsed().as_secs_f64()
}
