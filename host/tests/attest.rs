//! Evidence from inside: through AESM's protocol, judged by the verifier; and what an enclave does with hosts that lie.

#![allow(missing_docs)]

mod support;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use enclos::quoting::{NoQuote, Quoting, QuotingServer, REPORT, TARGETINFO};
use enclos_host::aesm::Aesm;
use enclos_host::{Enclave, EnclaveTransport, Kind};
use enclos_platform::emulator::Emulator;
use enclos_platform::emulator::machine::{Machine, MachineConfig};
use enclos_quoting::{AesmSocket, EmulatedQuoting};
use enclos_test_guest::GuestClient;
use enclos_verifier::{AnyCollateral, Evidence, Hex, Identity, Policy, Time, appraise};
use tempfile::TempDir;

const CONFIG: &str = "threads = 4\nheap = \"16 MiB\"\nservices = [\"Quoting\"]\nproduct-id = 7\n";
const DATA: [u8; 64] = [0x5a; 64];

/// The machine that all tests run on.
fn machine() -> &'static Arc<Machine> {
    static MACHINE: OnceLock<Arc<Machine>> = OnceLock::new();
    MACHINE.get_or_init(|| Machine::new(&MachineConfig::with_seed([7; 32])).unwrap())
}

fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| support::sign(CONFIG, false))
}

fn start(
    image: &[u8],
    quoting: impl Quoting + Send + Sync + 'static,
) -> (Enclave, GuestClient<EnclaveTransport>) {
    let enclave = Enclave::builder(image)
        .on(Arc::new(Emulator::on(machine().clone())))
        .service(QuotingServer::new(quoting))
        .start()
        .unwrap();
    let guest = enclave.connect().unwrap();
    (enclave, guest)
}

/// The emulated platform's quoting in a folder, and its socket there.
fn serve(folder: &TempDir) -> (Arc<EmulatedQuoting>, AesmSocket) {
    let quoting = Arc::new(EmulatedQuoting::open(machine(), folder.path()).unwrap());
    let socket = AesmSocket::serve(&folder.path().join("aesm.socket"), quoting.clone()).unwrap();
    (quoting, socket)
}

fn aesm(socket: &Path) -> Aesm {
    Aesm::at(socket, Kind::Emulated)
}

#[test]
fn evidence_from_inside_is_accepted_where_the_root_is_named_and_nowhere_else() {
    let folder = TempDir::new().unwrap();
    let (quoting, socket) = serve(&folder);
    let (_enclave, guest) = start(image(), aesm(socket.path()));
    let quote = guest.attest(&DATA).unwrap();
    let (mrenclave, mrsigner, product, version) = guest.identity().unwrap();
    assert_eq!(product, 7);

    let collateral = AnyCollateral::Dcap(Box::new(quoting.collateral(Time::now()).unwrap()));
    let policy = |root: &str| {
        Policy::from_toml(&format!(
            "emulated_roots = [{root}]\nreport_data = \"{}\"\n\
             [[identity]]\nkind = \"sgx\"\nmr_enclave = \"{}\"",
            Hex(DATA),
            Hex(mrenclave)
        ))
        .unwrap()
    };
    let judge = |policy| appraise(Evidence::detect(&quote), &collateral, Time::now(), &policy).unwrap();
    let verdict = judge(policy(&format!("\"{}\"", quoting.root_key_id())));
    assert!(verdict.accepted && verdict.emulated, "{verdict}");
    assert!(!judge(policy("")).accepted);
    let Some(Identity::Sgx { mr_enclave, mr_signer, product_id, svn, .. }) = verdict.appraisal.identity
    else {
        panic!("{verdict}");
    };
    assert_eq!((mr_enclave.0, mr_signer.0, product_id, svn), (mrenclave, mrsigner, product, version));
}

#[test]
fn without_aesm_the_cure_is_named() {
    let folder = TempDir::new().unwrap();
    let (_enclave, guest) = start(image(), aesm(&folder.path().join("aesm.socket")));
    let error = guest.attest(&DATA).unwrap_err().to_string();
    assert!(error.contains("AESM does not answer") && error.contains("enclos aesm --socket"), "{error}");
    // AESM of another machine.
    let other = Machine::new(&MachineConfig::with_seed([8; 32])).unwrap();
    let quoting = Arc::new(EmulatedQuoting::open(&other, folder.path()).unwrap());
    let _socket = AesmSocket::serve(&folder.path().join("aesm.socket"), quoting).unwrap();
    let error = guest.attest(&DATA).unwrap_err().to_string();
    assert!(error.contains("error 47") && error.contains("not of this machine"), "{error}");
}

#[test]
fn an_image_that_does_not_list_the_service_cannot_attest() {
    let folder = TempDir::new().unwrap();
    let (_quoting, socket) = serve(&folder);
    let image = support::sign("threads = 4\nheap = \"16 MiB\"\n", false);
    let (_enclave, guest) = start(&image, aesm(socket.path()));
    let error = guest.attest(&DATA).unwrap_err().to_string();
    assert!(error.contains("does not list the host service `Quoting`"), "{error}");
}

/// Passes on what the quoting service says, changed by a function.
struct Liar<F> {
    truth: Aesm,
    lie: F,
}

impl<F: Fn(Vec<u8>) -> Vec<u8>> Quoting for Liar<F> {
    fn target_info(&self) -> Result<[u8; TARGETINFO], NoQuote> {
        self.truth.target_info()
    }

    fn quote(&self, report: &[u8; REPORT]) -> Result<Vec<u8>, NoQuote> {
        self.truth.quote(report).map(&self.lie)
    }
}

#[test]
fn quotes_that_are_not_of_this_enclave_are_not_handed_out() {
    let folder = TempDir::new().unwrap();
    let (_quoting, socket) = serve(&folder);
    // Genuine, of the same enclave, for other data; and of another enclave, for the same data.
    let (_enclave, guest) = start(image(), aesm(socket.path()));
    let of_other_data = guest.attest(&[1; 64]).unwrap();
    let other_image = support::sign(&CONFIG.replace("product-id = 7", "product-id = 8"), false);
    let (_enclave, other) = start(&other_image, aesm(socket.path()));
    let of_other_enclave = other.attest(&DATA).unwrap();
    type Lie = Box<dyn Fn(Vec<u8>) -> Vec<u8> + Send + Sync>;
    let stories: [(&str, Lie); 6] = [
        ("identity or report data differ", Box::new(move |_| of_other_data.clone())),
        ("identity or report data differ", Box::new(move |_| of_other_enclave.clone())),
        ("shorter than a header", Box::new(|_| Vec::new())),
        ("ends within its body", Box::new(|quote| quote[..400].to_vec())),
        ("version", Box::new(|_| vec![0xff; 5000])),
        (
            "identity or report data differ",
            Box::new(|mut quote| {
                quote[431] ^= 1;
                quote
            }),
        ),
    ];
    for (expected, lie) in stories {
        let (_enclave, guest) = start(image(), Liar { truth: aesm(socket.path()), lie });
        let error = guest.attest(&DATA).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
