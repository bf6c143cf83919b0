//! Model, client and enclave, with a host between them that keeps everything it handles.

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{MODEL, Platform, ROW, image, newer, request, sha256};
use enclos_host::{CallError, Enclave};
use enclos_inference::client::{ClientError, Verified};
use enclos_inference::{InferenceClient, Offer, OfferedModel, ServiceError, Settings};
use enclos_verifier::{Hex, Policy, Time};
use serde_json::{Value, json};

struct Service {
    enclave: Enclave,
    platform: Arc<Platform>,
}

impl Service {
    fn start() -> Self {
        let platform = Platform::new();
        Self { enclave: platform.builder(image()).start().unwrap(), platform }
    }

    fn policy(&self) -> Policy {
        self.platform.policy(&image())
    }

    fn by_default(&self) -> Policy {
        Policy { emulated_roots: Vec::new(), ..self.policy() }
    }

    fn verify(&self, offer: &Offer, policy: &Policy) -> Result<Verified, ClientError> {
        Verified::verify(offer, policy, &self.platform.collateral, Time::now())
    }
}

#[test]
fn a_verified_enclave_classifies_what_the_host_cannot_read() {
    let service = Service::start();
    let inference = service.enclave.connect::<InferenceClient<_>>().unwrap();
    assert!(matches!(inference.offer(), Err(CallError::Method(ServiceError::NoModel))));
    let broken = inference.load("tree", &MODEL[..MODEL.len() / 2]);
    assert!(matches!(broken, Err(CallError::Method(ServiceError::Model { .. }))), "{broken:?}");
    for name in ["", "..", "a/b", "a b", ".hidden", "ä"] {
        let refused = inference.load(name, MODEL);
        assert!(matches!(refused, Err(CallError::Method(ServiceError::Name { .. }))), "{name}: {refused:?}");
    }
    assert_eq!(inference.load("tree", MODEL).unwrap().sha256, sha256(MODEL));

    let offer = inference.offer().unwrap();
    assert_eq!(offer, inference.offer().unwrap(), "one key while it lasts");
    let server = service.verify(&offer, &service.policy()).unwrap();
    assert!(server.verdict().emulated);
    let handled = Mutex::new(Vec::new());
    let ask = |method: &str, path: &str, body: Vec<u8>| -> (u16, Value) {
        let (sealed, reply) = server.seal(method, path, body).unwrap();
        let answer = inference.infer(&sealed).unwrap();
        handled.lock().unwrap().extend([sealed.clone(), answer.clone()]);
        let (status, body) = reply.open(&answer).unwrap();
        // Response nonce (16 for AES-128-GCM), tag, and what is padded.
        assert!((answer.len() - 32).is_power_of_two(), "{} bytes", answer.len());
        assert!((sealed.len() - 55).is_power_of_two(), "{} bytes", sealed.len());
        (status, serde_json::from_slice(&body).unwrap())
    };

    let (status, metadata) = ask("GET", "/v2/models/tree", Vec::new());
    assert_eq!((status, &metadata["inputs"][0]["shape"]), (200, &json!([-1, 64])), "{metadata}");
    let (status, answer) = ask("POST", "/v2/models/tree/infer", request(&ROW));
    assert_eq!((status, &answer["outputs"][0]["data"]), (200, &json!([0])), "{answer}");
    assert_eq!(answer["outputs"][1]["shape"], json!([1, 10]));
    assert_eq!(answer["id"], "the-client's-own-id");
    // What is wrong with a request is said to the client only; the service goes on.
    for (path, body, expected) in [
        ("/v2/models/tree/infer", request(&ROW[..63]), 400),
        ("/v2/models/tree/infer", b"{".to_vec(), 400),
        ("/v2/models/tree/infer", b"{\"inputs\":[]}".to_vec(), 400),
        ("/v2/models/secret-name/infer", request(&ROW), 404),
    ] {
        let (status, answer) = ask("POST", path, body);
        assert_eq!(status, expected, "{answer}");
        assert!(answer["error"].is_string());
    }
    assert_eq!(ask("POST", "/v2/models/tree/infer", request(&ROW)).0, 200);
    for bytes in handled.into_inner().unwrap() {
        for needle in [&b"/v2/models"[..], b"inputs", b"output", b"error", b"the-client", b"secret-name"] {
            assert!(!bytes.windows(needle.len()).any(|w| w == needle), "the host saw {needle:?}");
        }
    }
}

#[test]
fn clients_refuse_what_the_evidence_does_not_vouch_for() {
    let service = Service::start();
    let inference = service.enclave.connect::<InferenceClient<_>>().unwrap();
    inference.load("tree", MODEL).unwrap();
    let offer = inference.offer().unwrap();

    let refused = |offer: &Offer, policy: &Policy| matches!(service.verify(offer, policy), Err(ClientError::Refused(verdict)) if !verdict.reasons.is_empty());
    assert!(refused(&offer, &service.by_default()), "emulated evidence is refused by default");
    let mut other_key = offer.clone();
    *other_key.key_config.last_mut().unwrap() ^= 1;
    assert!(refused(&other_key, &service.policy()), "a key of the host's");
    let other_image = Policy::from_toml(&format!(
        "emulated_roots = [\"{}\"]\n[[identity]]\nkind = \"sgx\"\nmr_enclave = \"{}\"",
        service.platform.quoting.root_key_id(),
        Hex([0x11; 32])
    ));
    assert!(refused(&offer, &other_image.unwrap()), "another enclave");
    // The host says what the client wants to hear, but the evidence is about the models that were loaded.
    let other = OfferedModel { name: "tree".into(), sha256: [1; 32] };
    let both = [offer.models.clone(), vec![other.clone()]].concat();
    let renamed = OfferedModel { name: "bush".into(), ..offer.models[0].clone() };
    for models in [vec![other], both, vec![renamed], vec![]] {
        assert!(refused(&Offer { models, ..offer.clone() }, &service.policy()), "other models");
    }
    let server = service.verify(&offer, &service.policy()).unwrap();
    assert_eq!(server.model(None, Some(&sha256(MODEL))).unwrap().name, "tree");
    for (name, hash) in [(None, Some([1; 32])), (Some("bush"), None), (Some("bush"), Some(sha256(MODEL)))] {
        let wanted = server.model(name, hash.as_ref());
        assert!(matches!(wanted, Err(ClientError::OtherModel { .. })), "{wanted:?}");
    }
}

#[test]
fn a_request_is_answered_once_and_only_unaltered() {
    let service = Service::start();
    let inference = service.enclave.connect::<InferenceClient<_>>().unwrap();
    inference.load("tree", MODEL).unwrap();
    let server = service.verify(&inference.offer().unwrap(), &service.policy()).unwrap();
    let undecryptable = |request: &[u8]| {
        let refused = inference.infer(request);
        matches!(refused, Err(CallError::Method(ServiceError::Undecryptable | ServiceError::UnknownKey)))
    };

    let (sealed, reply) = server.seal("POST", "/v2/models/tree/infer", request(&ROW)).unwrap();
    for place in [0, 1, 7, 38, 39, sealed.len() / 2, sealed.len() - 1] {
        let mut altered = sealed.clone();
        altered[place] ^= 1;
        assert!(undecryptable(&altered), "byte {place}");
    }
    for length in [0, 1, 7, 39, sealed.len() - 1] {
        assert!(undecryptable(&sealed[..length]), "{length} bytes");
    }
    let answer = inference.infer(&sealed).unwrap();
    assert!(matches!(inference.infer(&sealed), Err(CallError::Method(ServiceError::Replayed))));
    // A reply opens for its own request only.
    let (again, other) = server.seal("POST", "/v2/models/tree/infer", request(&ROW)).unwrap();
    assert!(matches!(other.open(&answer), Err(ClientError::Encapsulation(_))));
    assert_eq!(reply.open(&answer).unwrap().0, 200);

    // After a restart there is another key: what was encrypted for the old one is nobody's.
    let restarted = Service::start();
    let inference = restarted.enclave.connect::<InferenceClient<_>>().unwrap();
    inference.load("tree", MODEL).unwrap();
    inference.offer().unwrap();
    let refused = inference.infer(&again);
    assert!(
        matches!(refused, Err(CallError::Method(ServiceError::Undecryptable | ServiceError::UnknownKey))),
        "{refused:?}"
    );
}

#[test]
fn versions_come_and_go_and_clients_get_the_one_that_they_verified() {
    let service = Service::start();
    let inference = service.enclave.connect::<InferenceClient<_>>().unwrap();
    let first = inference.load("tree", MODEL).unwrap().sha256;
    let before = inference.offer().unwrap();
    let old_client = service.verify(&before, &service.policy()).unwrap();
    let second = inference.load("tree", &newer(1)).unwrap().sha256;
    inference.load("other", MODEL).unwrap();

    let after = inference.offer().unwrap();
    assert_eq!(after.key_config, before.key_config, "models change, the key does not");
    let names: Vec<_> = after.models.iter().map(|m| (&*m.name, m.sha256)).collect();
    assert_eq!(names, [("tree", first), ("tree", second), ("other", first)]);
    let new_client = service.verify(&after, &service.policy()).unwrap();
    assert_eq!(new_client.model(Some("tree"), None).unwrap().sha256, second);
    assert!(new_client.model(None, None).is_err(), "two names: which is meant?");

    let ask = |client: &Verified, model: &OfferedModel| {
        let (sealed, reply) = client.seal("POST", &format!("{}/infer", model.path()), request(&ROW)).unwrap();
        let (status, body) = reply.open(&inference.infer(&sealed).unwrap()).unwrap();
        (status, serde_json::from_slice::<Value>(&body).unwrap())
    };
    let old = old_client.model(None, None).unwrap();
    for (client, model) in [(&old_client, old), (&new_client, new_client.model(Some("tree"), None).unwrap())]
    {
        let (status, answer) = ask(client, model);
        assert_eq!((status, &answer["model_version"]), (200, &json!(model.version())), "{answer}");
    }
    // A bad file replaces nothing.
    let bad = inference.load("tree", &MODEL[..100]);
    assert!(matches!(bad, Err(CallError::Method(ServiceError::Model { .. }))), "{bad:?}");
    assert_eq!(inference.offer().unwrap(), after);

    inference.unload("tree", first).unwrap();
    let gone = inference.unload("tree", first);
    assert!(matches!(gone, Err(CallError::Method(ServiceError::UnknownModel))), "{gone:?}");
    let (status, answer) = ask(&old_client, old);
    assert_eq!(status, 404, "never another version: {answer}");
    assert_eq!(inference.offer().unwrap().models, after.models[1..]);
}

#[test]
fn requests_of_several_clients_run_in_one_go_and_each_is_answered_as_alone() {
    let service = Service::start();
    let inference = service.enclave.connect::<InferenceClient<_>>().unwrap();
    for (max_batch_size, max_queue_delay) in [(Some(0), None), (Some(257), None), (None, Some(1_000_001))] {
        let refused =
            inference.configure(Settings { max_batch_size, max_queue_delay, ..Settings::default() });
        assert!(matches!(refused, Err(CallError::Method(ServiceError::Setting { .. }))), "{refused:?}");
    }
    // What is loaded before the settings does not have them.
    let loaded = inference.load("alone", MODEL).unwrap();
    assert!(!loaded.reason.contains("together"), "{}", loaded.reason);
    let delay = Duration::from_secs(1);
    let settings = Settings {
        max_batch_size: Some(2),
        max_queue_delay: Some(delay.as_micros() as u64),
        ..Settings::default()
    };
    inference.configure(settings).unwrap();
    let loaded = inference.load("together", &newer(1)).unwrap();
    assert!(loaded.reason.ends_with("; requests are run together"), "{}", loaded.reason);

    let offer = inference.offer().unwrap();
    let client = service.verify(&offer, &service.policy()).unwrap();
    let ask = |method: &str, path: &str, body: Vec<u8>| -> (Value, Duration) {
        let (sealed, reply) = client.seal(method, path, body).unwrap();
        let begun = Instant::now();
        let answer = inference.infer(&sealed).unwrap();
        let took = begun.elapsed();
        let (status, body) = reply.open(&answer).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, 200, "{body}");
        (body, took)
    };
    let batching = |name: &str| ask("GET", &format!("/v2/models/{name}"), Vec::new()).0["batching"].clone();
    assert!(batching("alone")["off"].is_string());
    assert_eq!(
        batching("together"),
        json!({ "max_batch_size": 2, "max_queue_delay_microseconds": 1_000_000 })
    );
    // Nobody comes: it waits, and is answered.
    let (answer, took) = ask("POST", "/v2/models/together/infer", request(&ROW));
    assert_eq!(answer["outputs"][0]["data"], json!([0]));
    assert!(took >= delay, "{took:?}");

    // Two come, each with another row: a full batch waits for nobody. A busy machine may have one of them come late, but not again
    // and again.
    let rows = [ROW.to_vec(), (0..64).map(|i| ROW[(i + 9) % 64]).collect::<Vec<f32>>()];
    let alone =
        rows.each_ref().map(|row| ask("POST", "/v2/models/alone/infer", request(row)).0["outputs"].clone());
    assert_ne!(alone[0], alone[1], "rows that are told apart");
    let is_full = (0..8).any(|_| {
        let both = std::sync::Barrier::new(2);
        let answers: Vec<(Value, Duration)> = std::thread::scope(|scope| {
            let asked = rows.each_ref().map(|row| {
                let (sealed, reply) = client.seal("POST", "/v2/models/together/infer", request(row)).unwrap();
                let (both, inference) = (&both, &inference);
                scope.spawn(move || {
                    both.wait();
                    let begun = Instant::now();
                    let answer = inference.infer(&sealed).unwrap();
                    let took = begun.elapsed();
                    (serde_json::from_slice(&reply.open(&answer).unwrap().1).unwrap(), took)
                })
            });
            asked.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for ((answer, _), alone) in answers.iter().zip(&alone) {
            assert_eq!(&answer["outputs"], alone);
        }
        answers.iter().all(|(_, took)| *took < delay)
    });
    assert!(is_full, "no batch was ever full");
}

#[test]
fn keys_overlap_and_expire() {
    let service = Service::start();
    let inference = service.enclave.connect::<InferenceClient<_>>().unwrap();
    for (key_lifetime, smallest_bucket) in
        [(Some(0), None), (Some(86_401), None), (None, Some(1023)), (None, Some(1 << 40))]
    {
        let refused = inference.configure(Settings { key_lifetime, smallest_bucket, ..Settings::default() });
        assert!(matches!(refused, Err(CallError::Method(ServiceError::Setting { .. }))), "{refused:?}");
    }
    let lifetime = Duration::from_secs(12);
    let settings = Settings {
        key_lifetime: Some(lifetime.as_secs()),
        smallest_bucket: Some(5000),
        ..Settings::default()
    };
    inference.configure(settings).unwrap();
    inference.load("tree", MODEL).unwrap();
    let ask = |client: &Verified| {
        let (sealed, reply) = client.seal("GET", "/v2/models/tree", Vec::new()).unwrap();
        inference.infer(&sealed).map(|answer| (answer.len(), reply.open(&answer).unwrap().0))
    };
    let first = inference.offer().unwrap();
    let early = service.verify(&first, &service.policy()).unwrap();
    assert_eq!(ask(&early).unwrap(), (8192 + 32, 200), "the bucket is the configured one");

    let second = inference.rotate().unwrap();
    assert_ne!(first.key_config[0], second.key_config[0]);
    assert_eq!(inference.offer().unwrap(), second);
    let late = service.verify(&second, &service.policy()).unwrap();
    assert_eq!(ask(&early).unwrap().1, 200, "the old key goes on");
    assert_eq!(ask(&late).unwrap().1, 200);
    let keys = inference.status().unwrap().keys;
    let counted: Vec<_> = keys.iter().map(|k| (k.id, k.requests)).collect();
    assert_eq!(counted, [(second.key_config[0], 1), (first.key_config[0], 2)]);

    // Half of its lifetime later the next key is offered, and after all of it the old ones answer nobody.
    std::thread::sleep(lifetime / 2 + Duration::from_secs(1));
    let third = inference.offer().unwrap();
    assert_ne!(third.key_config, second.key_config);
    assert!(third.not_after > second.not_after);
    assert_eq!(ask(&late).unwrap().1, 200, "its time is not over yet");
    std::thread::sleep(lifetime / 2 + Duration::from_secs(1));
    for client in [&early, &late] {
        let refused = ask(client);
        assert!(matches!(refused, Err(CallError::Method(ServiceError::UnknownKey))), "{refused:?}");
    }
}
