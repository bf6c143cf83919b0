//! The emulated quoting enclave: a page with an identity. It is measured, signed and initialised as any enclave is on
//! the emulated machine, so its TARGETINFO and REPORT key are what ECREATE to EGETKEY make of them.
//!
//! Its code is this process's: nothing of it runs in the emulator.

use std::sync::Arc;

use enclos_platform::{
    PlatformError,
    emulator::{
        enclave::EnclaveState,
        keys::{KeyError, egetkey, ereport, verify_mac},
        machine::Machine,
    },
};
use sgx_isa::{
    Attributes, AttributesFlags, ErrorCode, Keyname, PageType, Secinfo, SecinfoFlags, Secs, Sigstruct,
};

use crate::QuotingError;

/// Bytes of a TARGETINFO.
pub(crate) const TARGETINFO: usize = 512;
/// Bytes of a REPORT.
pub(crate) const REPORT: usize = 432;
/// Bytes of a REPORT that its MAC is over, and that a quote carries.
pub(crate) const REPORT_BODY: usize = 384;

/// What is measured.
const PAGE: &[u8] = include_bytes!("qe-page.txt");
/// Its signature structure, made once with a key that was not kept: MRSIGNER is nobody's, and certainly not Intel's.
/// Whoever changes the page signs it anew (ISVPRODID 1, ISVSVN 8), with any RSA-3072 key of exponent 3.
const SIGSTRUCT: &[u8; Sigstruct::UNPADDED_SIZE] = include_bytes!("qe.sigstruct");

const PAGE_SIZE: usize = 4096;
const CHUNK: usize = 256;

/// The quoting enclave on a machine.
pub(crate) struct QuotingEnclave(EnclaveState);

impl QuotingEnclave {
    /// ECREATE to EINIT.
    pub(crate) fn launch(machine: &Arc<Machine>) -> Result<Self, QuotingError> {
        let secs = Secs {
            size: 2 * PAGE_SIZE as u64,
            ssaframesize: 1,
            attributes: Attributes { flags: AttributesFlags::MODE64BIT, xfrm: 3 },
            ..Secs::default()
        };
        let refused = QuotingError::Launch;
        let mut state = EnclaveState::ecreate(Arc::clone(machine), &secs).map_err(refused)?;
        let mut page = [0; PAGE_SIZE];
        page[..PAGE.len()].copy_from_slice(PAGE);
        let secinfo = Secinfo { flags: SecinfoFlags::R | PageType::Reg.into(), ..Secinfo::default() };
        state.eadd(0, &secinfo, &mut page).map_err(refused)?;
        let (chunks, _) = page.as_chunks::<CHUNK>();
        for (offset, chunk) in (0..).step_by(CHUNK).zip(chunks) {
            state.eextend(offset, chunk).map_err(refused)?;
        }
        let sigstruct = Sigstruct::try_copy_from(SIGSTRUCT)
            .ok_or(PlatformError::Leaf {
                leaf: "EINIT",
                code: ErrorCode::InvalidSigStruct,
                hint: "the signature structure of the quoting enclave has a wrong length",
            })
            .map_err(refused)?;
        state.einit(&sigstruct, None).map_err(refused)?;
        Ok(Self(state))
    }

    /// TARGETINFO for EREPORT (SDM vol. 3D, "TARGET INFO").
    pub(crate) fn target_info(&self) -> [u8; TARGETINFO] {
        let secs = self.0.secs();
        let mut target = [0; TARGETINFO];
        target[..32].copy_from_slice(&secs.mrenclave);
        target[32..40].copy_from_slice(&secs.attributes.flags.bits().to_le_bytes());
        target[40..48].copy_from_slice(&secs.attributes.xfrm.to_le_bytes());
        target[50..52].copy_from_slice(&secs.config_svn.to_le_bytes());
        target[52..56].copy_from_slice(&secs.miscselect.bits().to_le_bytes());
        target[64..128].copy_from_slice(&secs.config_id);
        target
    }

    /// Whether a REPORT is of this machine and for this enclave, unaltered: EGETKEY of the REPORT key for its KEYID, and
    /// its MAC compared in constant time.
    pub(crate) fn verifies(&self, report: &[u8; REPORT]) -> Result<bool, KeyError> {
        let (body, rest) = report.split_at(REPORT_BODY);
        let (key_id, mac) = rest.split_at(32);
        let mut request = [0; 512];
        request[..2].copy_from_slice(&(Keyname::Report as u16).to_le_bytes());
        request[40..72].copy_from_slice(key_id);
        let key = egetkey(&self.0, &request)?;
        Ok(<&[u8; 16]>::try_from(mac).is_ok_and(|mac| verify_mac(&key, body, mac)))
    }

    /// This enclave's own REPORT over the data, for a target.
    pub(crate) fn report(&self, target: &[u8; TARGETINFO], data: &[u8; 64]) -> [u8; REPORT] {
        let mut report = [0; REPORT];
        report.copy_from_slice(ereport(&self.0, target, data).as_ref());
        report
    }

    /// The body of this enclave's own REPORT over the data.
    pub(crate) fn report_body(&self, data: &[u8; 64]) -> [u8; REPORT_BODY] {
        let mut body = [0; REPORT_BODY];
        body.copy_from_slice(&self.report(&self.target_info(), data)[..REPORT_BODY]);
        body
    }

    /// MRSIGNER, ISVPRODID and ISVSVN.
    pub(crate) fn signer(&self) -> ([u8; 32], u16, u16) {
        let secs = self.0.secs();
        (secs.mrsigner, secs.isv_prod_id, secs.isv_svn)
    }
}
