//! The service as a library: keys, signatures, the store, and that no input makes it panic.

mod support;

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use enclos_attestation_service::{
    AttestRequest, AttestationType, Config, ConfigError, Service, ServiceError, TenantContext, TokenFormat,
    jws::{self, Jws, JwsError, base64url, decode_base64},
    store::{EmbeddedStore, Revision, Store, Written},
    tokens::{ATTESTATION_LIFETIME, KeyRing},
};
use serde_json::{Map, Value, json};
use support::{
    PERMIT, QUOTE, Random, Signer, configuration, ec_signer, policy_payload, rsa_signer, validates,
};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

#[test]
fn keys_rotate_without_breaking_validation() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path()).unwrap();
    let start = 1_800_000_000_000;
    let ring = KeyRing::open(&store, start, 30 * DAY).unwrap();
    let (mut tokens, mut cached): (Vec<(u64, String)>, _) = (Vec::new(), ring.published());
    let mut cached_at = start;
    let mut signers = Vec::new();
    for hour in (0..24 * 100).step_by(4) {
        let now = start + hour * HOUR;
        ring.rotate(&store, now).unwrap();
        let key = ring.signing(now);
        if signers.last().map(String::as_str) != Some(key.id()) {
            signers.push(key.id().to_owned());
        }
        let token = key.sign("https://localhost", &Map::from_iter([("n".to_owned(), json!(hour))])).unwrap();
        // Who fetched the keys up to twenty hours ago need not fetch them again.
        assert!(validates(&token, &cached), "hour {hour}");
        if now >= cached_at + 20 * HOUR {
            (cached, cached_at) = (ring.published(), now);
        }
        tokens.push((now, token));
        tokens.retain(|(signed, _)| now <= signed + ATTESTATION_LIFETIME * 1000);
        let published = ring.published();
        assert!(published.len() <= 3);
        for (signed, token) in &tokens {
            assert!(validates(token, &published), "signed at {signed}, now {now}");
        }
    }
    assert_eq!(signers.len(), 4, "{signers:?}");
    // The same keys after a restart.
    let again = KeyRing::open(&store, start + 100 * DAY, 30 * DAY).unwrap();
    assert_eq!(again.published(), ring.published());
}

#[test]
fn signatures_are_verified_by_key_whatever_the_header_calls_the_algorithm() {
    for signer in [rsa_signer(), ec_signer()] {
        for (algorithm, in_jwk) in [("RS256", false), ("RSA256", true), ("ES256", false), ("ECDH256", true)] {
            let jws = signer.jws(algorithm, in_jwk, &policy_payload(PERMIT));
            let verified = Jws::verify(&jws).unwrap();
            assert_eq!(verified.signer.unwrap().certificates, std::slice::from_ref(&signer.certificate));
            // A header that denies the signature must not make it go away.
            let (_, rest) = jws.split_once('.').unwrap();
            let stripped = format!("{}.{rest}", base64url(br#"{"alg":"none"}"#));
            assert_eq!(Jws::verify(&stripped), Err(JwsError::UnexpectedSignature));
        }
        // Another's certificate, another payload.
        let other = rsa_signer();
        let forged = Signer { certificate: other.certificate, sign: signer.sign };
        let forged = forged.jws("RS256", false, &policy_payload(PERMIT));
        assert_eq!(Jws::verify(&forged), Err(JwsError::Signature));
    }
    for (text, error) in
        [("", JwsError::Parts(0)), ("a.b", JwsError::Parts(1)), ("a.b.c.d", JwsError::Parts(3))]
    {
        assert_eq!(Jws::verify(text), Err(error));
    }
}

fn tenant(isolated: bool) -> TenantContext {
    TenantContext { name: "localhost".into(), issuer: "https://localhost".into(), isolated }
}

fn attest(service: &Service, kind: AttestationType, request: Value) -> Result<Value, ServiceError> {
    let request: AttestRequest =
        serde_json::from_value(request).map_err(|error| ServiceError::InvalidParameter(error.to_string()))?;
    service.attest(&tenant(false), kind, &request, TokenFormat::Maa)
}

fn claims(answer: &Value) -> Value {
    let token = answer["token"].as_str().unwrap();
    serde_json::from_slice(&decode_base64(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[test]
fn attests_a_recorded_quote() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::open(&configuration(folder.path(), "")).unwrap();
    let request = json!({ "quote": base64url(QUOTE), "nonce": "n" });
    let answer = attest(&service, AttestationType::SgxEnclave, request).unwrap();
    let claims = claims(&answer);
    assert_eq!(claims["x-ms-sgx-mrenclave"], hex::encode(&QUOTE[48 + 64..48 + 96]));
    assert_eq!(claims["sgx-mrenclave"], claims["x-ms-sgx-mrenclave"]);
    assert_eq!(claims["nonce"], "n");
    // What Azure's shared providers name in recorded tokens.
    assert!(claims["x-ms-policy-hash"].as_str().unwrap().starts_with("bROrN897"));
    let keys: Vec<jws::Jwk> = serde_json::from_value(service.published_keys()["keys"].clone()).unwrap();
    assert!(validates(answer["token"].as_str().unwrap(), &keys));
    // Judged at a time when the collateral is not in force.
    let config = Config {
        evidence_time: Some("2026-06-27T00:00:00Z".parse().unwrap()),
        ..configuration(folder.path(), "")
    };
    drop(service);
    let late = Service::open(&config).unwrap();
    let error = attest(&late, AttestationType::SgxEnclave, json!({ "quote": base64url(QUOTE) })).unwrap_err();
    assert!(
        matches!(&error, ServiceError::InvalidParameter(reason) if reason.contains("valid until")),
        "{error}"
    );
}

#[test]
fn statuses_that_are_not_accepted_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::open(&configuration(folder.path(), "tcb = { accept = [\"UpToDate\"] }")).unwrap();
    let error =
        attest(&service, AttestationType::SgxEnclave, json!({ "quote": base64url(QUOTE) })).unwrap_err();
    assert!(error.to_string().contains("TCB status ConfigurationAndSWHardeningNeeded"), "{error}");
}

#[test]
fn mutated_input_is_refused_or_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::open(&configuration(folder.path(), "")).unwrap();
    let mut random = Random(0x1234_5678_9abc_def1);
    let mr_enclave = hex::encode(&QUOTE[48 + 64..48 + 96]);
    for _ in 0..1500 {
        let mut quote = QUOTE.to_vec();
        random.mutate(&mut quote);
        match attest(&service, AttestationType::SgxEnclave, json!({ "quote": base64url(&quote) })) {
            // Bytes after the quote, and those nothing is signed over, may differ.
            Ok(answer) => assert_eq!(claims(&answer)["x-ms-sgx-mrenclave"], mr_enclave),
            Err(ServiceError::InvalidParameter(reason)) => assert!(!reason.is_empty()),
            Err(other) => panic!("{other:?}"),
        }
    }
    let request = json!({ "quote": base64url(QUOTE), "runtimeData": { "data": "AAAA", "dataType": "JSON" }, "draftPolicyForAttestation": PERMIT });
    for _ in 0..3000 {
        let mut text = request.to_string().into_bytes();
        random.mutate(&mut text);
        if let Ok(request) = serde_json::from_slice::<AttestRequest>(&text) {
            let kind = AttestationType::ALL[random.below(4)];
            if let Err(ServiceError::Store(_) | ServiceError::Key(_)) =
                service.attest(&tenant(false), kind, &request, TokenFormat::Maa)
            {
                panic!("a request broke the service");
            }
        }
    }
    let signer = ec_signer();
    let signed = signer.jws("ES256", false, &policy_payload(PERMIT));
    for _ in 0..5000 {
        let mut text = signed.clone().into_bytes();
        random.mutate(&mut text);
        let Ok(text) = String::from_utf8(text) else { continue };
        if let Ok(verified) = Jws::verify(&text) {
            assert_eq!(verified.payload, policy_payload(PERMIT).to_string().as_bytes(), "{text}");
        }
        let _ = service.set_policy(&tenant(true), AttestationType::SgxEnclave, &text);
        let _ = service.change_certificate(&tenant(true), &text, true);
        let _ = service.change_certificate(&tenant(true), &text, false);
    }
    assert!(service.certificates(&tenant(true)).is_ok());
}

#[test]
fn what_must_not_be_open_to_a_network_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = configuration(folder.path(), "");
    let open = Config { listen: "0.0.0.0:0".parse().unwrap(), ..config.clone() };
    assert!(matches!(open.checked(), Err(ConfigError::Exposed { missing: "tls", .. })));
    for days in [0, 2, 3651, u32::MAX] {
        let rotation = Config { key_rotation_days: days, ..config.clone() };
        assert!(matches!(rotation.checked(), Err(ConfigError::Rotation(_))));
    }
    let none = Config { tenants: Vec::new(), ..config.clone() };
    assert!(matches!(none.checked(), Err(ConfigError::Tenants(_))));
    let twice = Config { tenants: [config.tenants.clone(), config.tenants.clone()].concat(), ..config };
    assert!(matches!(twice.checked(), Err(ConfigError::Tenants(_))));
}

/// Not a test of its own: the process that the next test kills.
#[test]
fn writes_policies_until_killed() {
    let Ok(folder) = std::env::var("ENCLOS_TEST_STORE") else { return };
    let store = EmbeddedStore::open(Path::new(&folder)).unwrap();
    let first = store.policy("t", "SgxEnclave").unwrap().map_or(0, |text| text.parse::<u64>().unwrap());
    let mut out = std::io::stdout();
    for number in first + 1.. {
        let written =
            store.set_policy("t", "SgxEnclave", Some(&number.to_string()), Revision::default()).unwrap();
        assert_eq!(written, Written::Done);
        writeln!(out, "acknowledged {number}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn acknowledged_policies_survive_a_kill_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random(0x5eed_0000_0000_0001);
    let mut total = 0;
    for round in 0..25 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writes_policies_until_killed", "--nocapture"])
            .env("ENCLOS_TEST_STORE", folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let (told, is_told) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            BufReader::new(out)
                .lines()
                .map_while(Result::ok)
                // The harness writes the name of the test before the first line of ours.
                .filter_map(|line| {
                    line.rsplit_once("acknowledged ").and_then(|(_, number)| number.parse().ok())
                })
                .inspect(|_| {
                    let _ = told.send(());
                })
                .max()
        });
        // How many can be written in a time is the disk's to say. Now and then it is killed before there is any.
        if round % 5 != 4 {
            (0..2).for_each(|_| is_told.recv_timeout(Duration::from_secs(60)).unwrap());
        }
        std::thread::sleep(Duration::from_millis(random.below(400) as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        let acknowledged: Option<u64> = reader.join().unwrap();
        let store = EmbeddedStore::open(folder.path()).unwrap();
        let stored = store.policy("t", "SgxEnclave").unwrap().map_or(0, |text| text.parse::<u64>().unwrap());
        if let Some(acknowledged) = acknowledged {
            // The last write may have been done without having been told.
            assert!(
                stored == acknowledged || stored == acknowledged + 1,
                "round {round}: {stored}, {acknowledged}"
            );
            total = acknowledged;
        }
    }
    assert!(total > 25, "only {total} policies were written");
}

#[test]
fn attestation_results_say_what_was_appraised() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::open(&configuration(folder.path(), "")).unwrap();
    let request: AttestRequest =
        serde_json::from_value(json!({ "quote": base64url(QUOTE), "nonce": "0123456789" })).unwrap();
    let answer =
        service.attest(&tenant(false), AttestationType::SgxEnclave, &request, TokenFormat::Ear).unwrap();
    let keys: Vec<jws::Jwk> = serde_json::from_value(service.published_keys()["keys"].clone()).unwrap();
    assert!(validates(answer["token"].as_str().unwrap(), &keys));
    let result = claims(&answer);
    assert_eq!(result["eat_profile"], "tag:github.com,2023:veraison/ear");
    assert_eq!(result["eat_nonce"], "0123456789");
    assert_eq!(result["iss"], "https://localhost");
    let submodule = &result["submods"]["sgx"];
    // The platform of the recorded quote needs configuration and hardening; the enclave cannot be debugged.
    assert_eq!(
        submodule["ear.trustworthiness-vector"],
        json!({ "hardware": 32, "configuration": 32, "runtime-opaque": 2 })
    );
    assert_eq!(submodule["ear.status"], "warning");
    let evidence = &submodule["ear.veraison.annotated-evidence"];
    assert_eq!(evidence["x-ms-sgx-mrenclave"], hex::encode(&QUOTE[48 + 64..48 + 96]));
}
