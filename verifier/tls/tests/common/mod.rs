//! An attester on the emulated platform: stands where an enclave's `attest` stands in production.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use enclos_attested_tls::Attester;
use enclos_platform::emulator::{
    enclave::EnclaveState,
    keys::ereport,
    machine::{Machine, MachineConfig},
};
use enclos_quoting::EmulatedQuoting;
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};
use sgx_isa::{Attributes, AttributesFlags, PageType, Secinfo, SecinfoFlags, Secs, Sigstruct};
use tempfile::TempDir;

/// A clock that tests set.
#[derive(Debug)]
pub(crate) struct Clock(pub(crate) AtomicU64);

impl Clock {
    pub(crate) fn at(seconds: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(seconds)))
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Ordering::Relaxed))))
    }
}

/// An emulated platform with an enclave on it.
pub(crate) struct Platform {
    pub(crate) machine: Arc<Machine>,
    pub(crate) quoting: Arc<EmulatedQuoting>,
    _state: TempDir,
}

impl Platform {
    pub(crate) fn new() -> Arc<Self> {
        let machine = Machine::new(&MachineConfig::with_seed([7; 32])).unwrap();
        let state = TempDir::new().unwrap();
        let quoting = Arc::new(EmulatedQuoting::open(&machine, state.path()).unwrap());
        Arc::new(Self { machine, quoting, _state: state })
    }

    /// What `attest` inside an enclave gives. The enclave is a copy of the quoting enclave, the one image at hand that is
    /// signed: production mode, ISVPRODID 1, ISVSVN 8.
    pub(crate) fn attest(&self, report_data: &[u8; 64]) -> Vec<u8> {
        let secs = Secs {
            size: 8192,
            ssaframesize: 1,
            attributes: Attributes { flags: AttributesFlags::MODE64BIT, xfrm: 3 },
            ..Secs::default()
        };
        let mut state = EnclaveState::ecreate(Arc::clone(&self.machine), &secs).unwrap();
        let text = include_bytes!("../../../../services/quoting/src/qe-page.txt");
        let mut page = [0; 4096];
        page[..text.len()].copy_from_slice(text);
        let secinfo = Secinfo { flags: SecinfoFlags::R | PageType::Reg.into(), ..Secinfo::default() };
        state.eadd(0, &secinfo, &mut page).unwrap();
        for (offset, chunk) in (0..).step_by(256).zip(page.as_chunks().0) {
            state.eextend(offset, chunk).unwrap();
        }
        let signature = include_bytes!("../../../../services/quoting/src/qe.sigstruct");
        state.einit(&Sigstruct::try_copy_from(signature).unwrap(), None).unwrap();
        quote(&self.quoting, &state, report_data)
    }

    pub(crate) fn attester(self: &Arc<Self>) -> impl Attester + use<> {
        let platform = Arc::clone(self);
        move |data: &[u8; 64]| Ok::<_, Box<dyn Error + Send + Sync>>(platform.attest(data))
    }
}

/// What `attest` inside this enclave gives.
pub(crate) fn quote(quoting: &EmulatedQuoting, enclave: &EnclaveState, report_data: &[u8; 64]) -> Vec<u8> {
    let report = ereport(enclave, &quoting.target_info(), report_data);
    let mut bytes = [0; 432];
    bytes.copy_from_slice(report.as_ref());
    quoting.quote(&bytes).unwrap()
}
