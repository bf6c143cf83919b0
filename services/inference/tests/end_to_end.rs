//! Model, client and enclave, with a host between them that keeps everything it handles.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use enclos::quoting::{NoQuote, Quoting, QuotingServer, REPORT, TARGETINFO};
use enclos_host::{CallError, Enclave};
use enclos_inference::client::{ClientError, Verified};
use enclos_inference::{InferenceClient, Offer, ServiceError, report_data};
use enclos_pack::{Config, Date, Image, SigningKey, build_application};
use enclos_platform::emulator::Emulator;
use enclos_platform::emulator::machine::{Machine, MachineConfig};
use enclos_quoting::EmulatedQuoting;
use enclos_verifier::{Collateral, Hex, Policy, Time};
use serde_json::{Value, json};

/// A decision tree by `examples/digits/train.py`.
const MODEL: &[u8] = include_bytes!("data/tree.onnx");
/// A row of scikit-learn's digits (the first: a zero), and what the tree says of it.
const ROW: [f32; 64] = [
    0., 0., 5., 13., 9., 1., 0., 0., 0., 0., 13., 15., 10., 15., 5., 0., 0., 3., 15., 2., 0., 11., 8., 0.,
    0., 4., 12., 0., 0., 8., 8., 0., 0., 5., 8., 0., 0., 9., 8., 0., 0., 4., 11., 0., 1., 12., 7., 0., 0.,
    2., 14., 5., 10., 12., 0., 0., 0., 0., 6., 13., 10., 0., 0., 0.,
];

fn image() -> Vec<u8> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(build).clone()
}

fn build() -> Vec<u8> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("enclave");
    let config = Config::load(&project.join("enclos.toml")).unwrap();
    let mut image = build_application(&project, &config, &mut |_| {}).unwrap();
    let pem = include_str!("../../../examples/vault/host/tests/data/test-only-signer.pem");
    image.sign(&SigningKey::from_pem(pem).unwrap(), Date::from_unix(1_700_000_000)).unwrap();
    image.to_file_bytes()
}

/// The emulated platform's quoting, in this process.
struct InProcess(Arc<EmulatedQuoting>);

impl Quoting for InProcess {
    fn target_info(&self) -> Result<[u8; TARGETINFO], NoQuote> {
        Ok(self.0.target_info())
    }

    fn quote(&self, report: &[u8; REPORT]) -> Result<Vec<u8>, NoQuote> {
        self.0.quote(report).map_err(|e| NoQuote { reason: e.to_string() })
    }
}

struct Service {
    enclave: Enclave,
    quoting: Arc<EmulatedQuoting>,
    collateral: Collateral,
    _state: tempfile::TempDir,
}

impl Service {
    fn start() -> Self {
        let machine = Machine::new(&MachineConfig::with_seed([9; 32])).unwrap();
        let state = tempfile::tempdir().unwrap();
        let quoting = Arc::new(EmulatedQuoting::open(&machine, state.path()).unwrap());
        let collateral = quoting.collateral(Time::now()).unwrap();
        let enclave = Enclave::builder(image())
            .on(Arc::new(Emulator::on(machine)))
            .service(QuotingServer::new(InProcess(quoting.clone())))
            .start()
            .unwrap();
        Self { enclave, quoting, collateral, _state: state }
    }

    /// Names the emulated root and the image, as a client for tests would.
    fn policy(&self) -> Policy {
        Policy { emulated_roots: vec![self.quoting.root_key_id()], ..self.by_default() }
    }

    fn by_default(&self) -> Policy {
        let mr_enclave = Hex(Image::parse(&image()).unwrap().mrenclave());
        Policy::from_toml(&format!("[[identity]]\nkind = \"sgx\"\nmr_enclave = \"{mr_enclave}\"")).unwrap()
    }

    fn verify(&self, offer: &Offer, policy: &Policy) -> Result<Verified, ClientError> {
        Verified::verify(offer, &sha256(MODEL), policy, &self.collateral, Time::now())
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).into()
}

fn request(row: &[f32]) -> Vec<u8> {
    let input = json!({ "name": "X", "shape": [1, row.len()], "datatype": "FP32", "data": row });
    json!({ "id": "the-client's-own-id", "inputs": [input] }).to_string().into_bytes()
}

#[test]
fn a_verified_enclave_classifies_what_the_host_cannot_read() {
    let service = Service::start();
    let inference = service.enclave.connect::<InferenceClient<_>>().unwrap();
    assert!(matches!(inference.offer(), Err(CallError::Method(ServiceError::NoModel))));
    let broken = inference.load("tree", &MODEL[..MODEL.len() / 2]);
    assert!(matches!(broken, Err(CallError::Method(ServiceError::Model { .. }))), "{broken:?}");
    assert_eq!(inference.load("tree", MODEL).unwrap().model, sha256(MODEL));
    assert!(matches!(inference.load("other", MODEL), Err(CallError::Method(ServiceError::AlreadyLoaded))));

    let offer = inference.offer().unwrap();
    assert_eq!(offer, inference.offer().unwrap(), "one key while it lasts");
    let server = service.verify(&offer, &service.policy()).unwrap();
    assert!(server.verdict().emulated);
    let handled = Mutex::new(Vec::new());
    let ask = |method: &str, path: &str, body: Vec<u8>| -> (u16, Value) {
        let (sealed, reply) = server.seal(method, path, body).unwrap();
        let answer = inference.infer(&sealed).unwrap();
        handled.lock().unwrap().extend([sealed, answer.clone()]);
        let (status, body) = reply.open(&answer).unwrap();
        assert!(body.len().is_power_of_two(), "{} bytes", body.len());
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
        service.quoting.root_key_id(),
        Hex([0x11; 32])
    ));
    assert!(refused(&offer, &other_image.unwrap()), "another enclave");
    let other_model = Offer { model: [1; 32], ..offer.clone() };
    assert!(matches!(service.verify(&other_model, &service.policy()), Err(ClientError::OtherModel)));
    // The host says what the client wants to hear, but the evidence is about the model that was loaded.
    let expected = [1; 32];
    let lie = Verified::verify(&other_model, &expected, &service.policy(), &service.collateral, Time::now());
    assert!(matches!(lie, Err(ClientError::Refused(_))));
    assert_ne!(report_data(&offer.key_config, &offer.model), report_data(&offer.key_config, &expected));
    service.verify(&offer, &service.policy()).unwrap();
}

#[test]
fn a_request_is_answered_once_and_only_unaltered() {
    let service = Service::start();
    let inference = service.enclave.connect::<InferenceClient<_>>().unwrap();
    inference.load("tree", MODEL).unwrap();
    let server = service.verify(&inference.offer().unwrap(), &service.policy()).unwrap();
    let undecryptable = |request: &[u8]| {
        matches!(inference.infer(request), Err(CallError::Method(ServiceError::Undecryptable)))
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
    assert!(matches!(inference.infer(&again), Err(CallError::Method(ServiceError::Undecryptable))));
}
