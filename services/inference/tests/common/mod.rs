//! The enclave's image, an emulated platform that vouches for it, and a model to serve: for tests of the inference service.
#![allow(dead_code, reason = "each test uses its part")]

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use enclos::quoting::{NoQuote, Quoting, QuotingServer, REPORT, TARGETINFO};
use enclos_host::{Builder, Enclave};
use enclos_pack::{Config, Date, Image, SigningKey, build_application};
use enclos_platform::emulator::Emulator;
use enclos_platform::emulator::machine::{Machine, MachineConfig};
use enclos_quoting::EmulatedQuoting;
use enclos_verifier::{Collateral, Hex, Policy, Time};
use serde_json::json;

/// A decision tree by `examples/digits/train.py`.
pub(crate) const MODEL: &[u8] = include_bytes!("../data/tree.onnx");
/// A row of scikit-learn's digits (the first: a zero, and the tree says so).
pub(crate) const ROW: [f32; 64] = [
    0., 0., 5., 13., 9., 1., 0., 0., 0., 0., 13., 15., 10., 15., 5., 0., 0., 3., 15., 2., 0., 11., 8., 0.,
    0., 4., 12., 0., 0., 8., 8., 0., 0., 5., 8., 0., 0., 9., 8., 0., 0., 4., 11., 0., 1., 12., 7., 0., 0.,
    2., 14., 5., 10., 12., 0., 0., 0., 0., 6., 13., 10., 0., 0., 0.,
];

/// Another file, the same model: with a field that nobody knows (number 100, a varint).
pub(crate) fn newer(version: u8) -> Vec<u8> {
    let mut newer = MODEL.to_vec();
    newer.extend([0xa0, 0x06, version & 0x7f]);
    newer
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).into()
}

/// An inference request for one row.
pub(crate) fn request(row: &[f32]) -> Vec<u8> {
    let input = json!({ "name": "X", "shape": [1, row.len()], "datatype": "FP32", "data": row });
    json!({ "id": "the-client's-own-id", "inputs": [input] }).to_string().into_bytes()
}

/// The enclave as its project says.
pub(crate) fn image() -> Vec<u8> {
    image_of(|_| {})
}

/// The enclave with another configuration.
pub(crate) fn image_of(change: impl FnOnce(&mut Config)) -> Vec<u8> {
    static BUILT: Mutex<Vec<(Config, Vec<u8>)>> = Mutex::new(Vec::new());
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let project =
        project.ancestors().map(|folder| folder.join("services/inference/enclave")).find(|p| p.exists());
    let project = project.unwrap();
    let mut config = Config::load(&project.join("enclos.toml")).unwrap();
    change(&mut config);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, image)) = built.iter().find(|(of, _)| *of == config) {
        return image.clone();
    }
    let mut image = build_application(&project, &config, &mut |_| {}).unwrap();
    let pem = include_str!("../../../../examples/vault/host/tests/data/test-only-signer.pem");
    image.sign(&SigningKey::from_pem(pem).unwrap(), Date::from_unix(1_700_000_000)).unwrap();
    let bytes = image.to_file_bytes();
    built.push((config, bytes.clone()));
    bytes
}

/// An emulated machine, and what vouches for its enclaves.
pub(crate) struct Platform {
    machine: Arc<Machine>,
    pub(crate) quoting: Arc<EmulatedQuoting>,
    pub(crate) collateral: Collateral,
    _state: tempfile::TempDir,
}

impl Platform {
    pub(crate) fn new() -> Arc<Self> {
        let machine = Machine::new(&MachineConfig::with_seed([9; 32])).unwrap();
        let state = tempfile::tempdir().unwrap();
        let quoting = Arc::new(EmulatedQuoting::open(&machine, state.path()).unwrap());
        let collateral = quoting.collateral(Time::now()).unwrap();
        Arc::new(Self { machine, quoting, collateral, _state: state })
    }

    /// How an image is started here.
    pub(crate) fn builder(&self, image: Vec<u8>) -> Builder {
        let quoting = QuotingServer::new(InProcess(self.quoting.clone()));
        Enclave::builder(image).on(Arc::new(Emulator::on(self.machine.clone()))).service(quoting)
    }

    /// Names the emulated root and the image, as a client for tests would.
    pub(crate) fn policy(&self, image: &[u8]) -> Policy {
        Policy { emulated_roots: vec![self.quoting.root_key_id()], ..policy_for(image) }
    }
}

/// Names the image, on hardware.
pub(crate) fn policy_for(image: &[u8]) -> Policy {
    let mr_enclave = Hex(Image::parse(image).unwrap().mrenclave());
    Policy::from_toml(&format!("[[identity]]\nkind = \"sgx\"\nmr_enclave = \"{mr_enclave}\"")).unwrap()
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
