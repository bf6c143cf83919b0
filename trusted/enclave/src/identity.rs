//! Who this enclave is: reports about itself.

use enclos::abi::RuntimeTable;
use sgx_isa::{Attributes, AttributesFlags, Report, Targetinfo};

use crate::runtime::{NotInEnclave, table};

/// The identity of this enclave, from the CPU (SDM vol. 3D, 34.15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// MRENCLAVE: the measurement of the image.
    pub mrenclave: [u8; 32],
    /// MRSIGNER: SHA-256 of the signer's modulus.
    pub mrsigner: [u8; 32],
    /// ISVPRODID.
    pub product_id: u16,
    /// ISVSVN.
    pub security_version: u16,
    /// CPUSVN.
    pub cpu_security_version: [u8; 16],
    /// ATTRIBUTES.
    pub attributes: Attributes,
    /// ATTRIBUTES.DEBUG: the enclave's memory can be read by a debugger; its secrets are none.
    pub debug: bool,
}

/// The identity of this enclave.
///
/// # Errors
/// Outside an enclave.
pub fn identity() -> Result<Identity, NotInEnclave> {
    let r = report(&Targetinfo::default(), &[0; 64])?;
    Ok(Identity {
        mrenclave: r.mrenclave,
        mrsigner: r.mrsigner,
        product_id: r.isvprodid,
        security_version: r.isvsvn,
        cpu_security_version: r.cpusvn,
        debug: r.attributes.flags.contains(AttributesFlags::DEBUG),
        attributes: r.attributes,
    })
}

/// A report (ENCLU\[EREPORT\]) that the enclave described by `target` on the same CPU can verify, carrying `data`.
///
/// # Errors
/// Outside an enclave.
pub fn report(target: &Targetinfo, data: &[u8; 64]) -> Result<Report, NotInEnclave> {
    let table: &RuntimeTable = table()?;
    let target = Aligned512(target.as_ref().try_into().unwrap_or([0; Targetinfo::UNPADDED_SIZE]));
    let data = Aligned128(*data);
    let mut report = Aligned512([0u8; 512]);
    (table.ereport)(target.0.as_ptr(), data.0.as_ptr(), report.0.as_mut_ptr());
    Ok(Report::try_copy_from(&report.0[..Report::UNPADDED_SIZE]).unwrap_or_default())
}

/// Alignment that the leaf functions ask for, in memory inside.
#[repr(C, align(512))]
pub(crate) struct Aligned512<T>(pub(crate) T);

#[repr(C, align(128))]
struct Aligned128<T>(T);
