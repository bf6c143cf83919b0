//! EREPORT and EGETKEY (SDM vol. 3D, "SGX Instruction References"), and the derivation of keys.
//!
//! Nothing here allocates or takes a lock: these leaf functions run in signal handlers.
//!
//! How a processor turns the dependencies into a key is not public; here it is AES-128-CMAC under a key of the
//! machine over a fixed encoding of them. *What* a key depends on is the SDM's.

use aes::Aes128;
use cmac::{Cmac, KeyInit, Mac};
use sgx_isa::{
    Attributes, AttributesFlags, ErrorCode, Keyname, Keyrequest, PageType, Report, SecinfoFlags, Targetinfo,
};

use super::enclave::EnclaveState;
use super::machine::Machine;
use super::signature::PKCS1_5_PADDING;

/// KEYREQUEST.KEYPOLICY bits (SDM vol. 3D, "KEY REQUEST KeyPolicy Structure"); `sgx_isa` has only the first two.
pub mod policy {
    /// Include MRENCLAVE.
    pub const MRENCLAVE: u16 = 1 << 0;
    /// Include MRSIGNER.
    pub const MRSIGNER: u16 = 1 << 1;
    /// Leave ISVPRODID out (with KSS).
    pub const NOISVPRODID: u16 = 1 << 2;
    /// Include CONFIGID and CONFIGSVN (with KSS).
    pub const CONFIGID: u16 = 1 << 3;
    /// Include ISVFAMILYID (with KSS).
    pub const ISVFAMILYID: u16 = 1 << 4;
    /// Include ISVEXTPRODID (with KSS).
    pub const ISVEXTPRODID: u16 = 1 << 5;
    /// The bits that need ATTRIBUTES.KSS.
    pub const KSS: u16 = 0x3c;
}

/// A fault of an ENCLU leaf function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// #GP(0).
    GeneralProtection,
    /// #PF at the address.
    Page(u64),
}

/// Why EGETKEY gave no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// #GP(0): reserved fields, or KSS policy without KSS.
    GeneralProtection,
    /// The error code that goes to RAX.
    Code(ErrorCode),
}

/// ENCLU\[EREPORT\]: a report of this enclave for the target. Bytes are as in enclave memory.
pub fn ereport(state: &EnclaveState, target: &[u8; Targetinfo::UNPADDED_SIZE], data: &[u8; 64]) -> Report {
    let (machine, secs) = (state.machine(), state.secs());
    let mut report = Report {
        cpusvn: machine.cpu_svn,
        miscselect: secs.miscselect,
        isvextnprodid: secs.isv_ext_prod_id,
        attributes: secs.attributes,
        mrenclave: secs.mrenclave,
        mrsigner: secs.mrsigner,
        configid: secs.config_id,
        isvprodid: secs.isv_prod_id,
        isvsvn: secs.isv_svn,
        configsvn: secs.config_svn,
        isvfamilyid: secs.isv_family_id,
        reportdata: *data,
        keyid: machine.secrets.report_keyid,
        ..Report::default()
    };
    let key = KeyDependencies {
        owner_epoch: machine.secrets.owner_epoch,
        attributes: attributes_at(target, 32),
        mrenclave: bytes_at(target, 0),
        key_id: report.keyid,
        seal_fuses: machine.secrets.seal_fuses,
        cpu_svn: machine.cpu_svn,
        miscselect: u32::from_le_bytes(bytes_at(target, 52)),
        config_id: bytes_at(target, 64),
        config_svn: u16::from_le_bytes(bytes_at(target, 50)),
        ..KeyDependencies::new(Keyname::Report)
    };
    report.mac = mac(&key.derive(machine), report.mac_data());
    report
}

/// ENCLU\[EGETKEY\]: the key that the request asks for. Bytes are as in enclave memory.
///
/// # Errors
/// As the SDM says: #GP(0) for reserved fields, SGX_INVALID_ATTRIBUTE, SGX_INVALID_CPUSVN, SGX_INVALID_ISVSVN,
/// SGX_INVALID_KEYNAME.
pub fn egetkey(
    state: &EnclaveState,
    request: &[u8; Keyrequest::UNPADDED_SIZE],
) -> Result<[u8; 16], KeyError> {
    let (machine, secs) = (state.machine(), state.secs());
    let key_policy = u16::from_le_bytes(bytes_at(request, 2));
    let config_svn = u16::from_le_bytes(bytes_at(request, 76));
    // Bytes 6 and 7 are CET_ATTRIBUTES_MASK and reserved: both reserved on a processor without CET.
    let reserved_clear =
        request[6..8] == [0; 2] && request[78..].iter().all(|b| *b == 0) && key_policy >> 6 == 0;
    let kss = secs.attributes.flags.contains(AttributesFlags::KSS);
    if !reserved_clear || !kss && (key_policy & policy::KSS != 0 || config_svn != 0) {
        return Err(KeyError::GeneralProtection);
    }
    let isv_svn = u16::from_le_bytes(bytes_at(request, 4));
    let cpu_svn: [u8; 16] = bytes_at(request, 8);
    let mask = attributes_at(request, 24);
    let key_id: [u8; 32] = bytes_at(request, 40);
    let misc_mask = u32::from_le_bytes(bytes_at(request, 72));

    let has = |flag| secs.attributes.flags.contains(flag);
    let permitted = |flag| if has(flag) { Ok(()) } else { Err(KeyError::Code(ErrorCode::InvalidAttribute)) };
    let versions = || {
        if is_beyond(&cpu_svn, &machine.cpu_svn) {
            return Err(KeyError::Code(ErrorCode::InvalidCpusvn));
        }
        if isv_svn > secs.isv_svn {
            return Err(KeyError::Code(ErrorCode::InvalidIsvsvn));
        }
        Ok(())
    };
    // INIT and DEBUG are in every key.
    let required = AttributesFlags::INIT | AttributesFlags::DEBUG;
    let attributes = Attributes {
        flags: (mask.flags | required) & secs.attributes.flags,
        xfrm: mask.xfrm & secs.attributes.xfrm,
    };
    let miscselect = misc_mask & secs.miscselect.bits();
    // What the policy of the two sealing keys chooses.
    let with = |bit| key_policy & bit != 0;
    let by_policy = |key: KeyDependencies| KeyDependencies {
        isv_family_id: if with(policy::ISVFAMILYID) { secs.isv_family_id } else { [0; 16] },
        isv_ext_prod_id: if with(policy::ISVEXTPRODID) { secs.isv_ext_prod_id } else { [0; 16] },
        isv_prod_id: if with(policy::NOISVPRODID) { 0 } else { secs.isv_prod_id },
        config_id: if with(policy::CONFIGID) { secs.config_id } else { [0; 64] },
        config_svn: if with(policy::CONFIGID) { config_svn } else { 0 },
        key_policy,
        ..key
    };
    let name = u16::from_le_bytes(bytes_at(request, 0));
    let name = Keyname::try_from(name).map_err(|_| KeyError::Code(ErrorCode::InvalidKeyname))?;
    let key = KeyDependencies::new(name);
    let key = match name {
        Keyname::Seal => {
            versions()?;
            if config_svn > secs.config_svn {
                return Err(KeyError::Code(ErrorCode::InvalidIsvsvn));
            }
            by_policy(KeyDependencies {
                isv_svn,
                owner_epoch: machine.secrets.owner_epoch,
                attributes,
                attribute_mask: mask,
                mrenclave: if with(policy::MRENCLAVE) { secs.mrenclave } else { [0; 32] },
                mrsigner: if with(policy::MRSIGNER) { secs.mrsigner } else { [0; 32] },
                key_id,
                seal_fuses: machine.secrets.seal_fuses,
                cpu_svn,
                miscselect,
                misc_mask: !misc_mask,
                ..key
            })
        }
        Keyname::Report => KeyDependencies {
            owner_epoch: machine.secrets.owner_epoch,
            attributes: secs.attributes,
            mrenclave: secs.mrenclave,
            key_id,
            seal_fuses: machine.secrets.seal_fuses,
            cpu_svn: machine.cpu_svn,
            miscselect: secs.miscselect.bits(),
            config_id: secs.config_id,
            config_svn: secs.config_svn,
            ..key
        },
        Keyname::Einittoken => {
            permitted(AttributesFlags::EINITTOKENKEY)?;
            versions()?;
            KeyDependencies {
                isv_prod_id: secs.isv_prod_id,
                isv_svn,
                owner_epoch: machine.secrets.owner_epoch,
                attributes,
                mrsigner: secs.mrsigner,
                key_id,
                seal_fuses: machine.secrets.seal_fuses,
                cpu_svn,
                miscselect,
                ..key
            }
        }
        Keyname::Provision => {
            permitted(AttributesFlags::PROVISIONKEY)?;
            versions()?;
            KeyDependencies {
                isv_prod_id: secs.isv_prod_id,
                isv_svn,
                attributes,
                attribute_mask: mask,
                mrsigner: secs.mrsigner,
                cpu_svn,
                miscselect,
                misc_mask: !misc_mask,
                ..key
            }
        }
        Keyname::ProvisionSeal => {
            permitted(AttributesFlags::PROVISIONKEY)?;
            versions()?;
            by_policy(KeyDependencies {
                isv_svn,
                attributes,
                attribute_mask: mask,
                mrsigner: secs.mrsigner,
                seal_fuses: machine.secrets.seal_fuses,
                cpu_svn,
                miscselect,
                misc_mask: !misc_mask,
                ..key
            })
        }
    };
    Ok(key.derive(machine))
}

/// ENCLU\[EREPORT\] with its operands RBX, RCX and RDX: linear addresses as the enclave gave them, unchecked.
///
/// # Errors
/// #GP(0) for misaligned operands and those outside ELRANGE, #PF for pages that are not there, not regular, or do not
/// permit the access.
///
/// # Safety
/// The pages of the enclave are mapped at their addresses with the permissions that `state` has of them.
pub unsafe fn ereport_operands(
    state: &EnclaveState,
    target_info: u64,
    report_data: u64,
    output: u64,
) -> Result<(), Fault> {
    check_operand(state, target_info, 512, SecinfoFlags::R)?;
    check_operand(state, report_data, 128, SecinfoFlags::R)?;
    check_operand(state, output, 512, SecinfoFlags::W)?;
    // SAFETY: the operands lie each within one page that is mapped and readable or writable (checked; alignment keeps
    // them from crossing pages). Other threads of the enclave may write there: the copies are plain bytes, read once.
    unsafe {
        let target = (target_info as *const [u8; 512]).read();
        let data = (report_data as *const [u8; 64]).read();
        let report = ereport(state, &target, &data);
        core::ptr::copy_nonoverlapping(report.as_ref().as_ptr(), output as *mut u8, Report::UNPADDED_SIZE);
    }
    Ok(())
}

/// ENCLU\[EGETKEY\] with its operands RBX and RCX. The inner result is what goes to RAX.
///
/// # Errors
/// As [`ereport_operands`], and #GP(0) for requests with reserved fields set.
///
/// # Safety
/// As [`ereport_operands`].
pub unsafe fn egetkey_operands(
    state: &EnclaveState,
    key_request: u64,
    output: u64,
) -> Result<Result<(), ErrorCode>, Fault> {
    check_operand(state, key_request, 512, SecinfoFlags::R)?;
    check_operand(state, output, 16, SecinfoFlags::W)?;
    // SAFETY: as in `ereport_operands`.
    let request = unsafe { (key_request as *const [u8; 512]).read() };
    match egetkey(state, &request) {
        Ok(key) => {
            // SAFETY: as in `ereport_operands`.
            unsafe { (output as *mut [u8; 16]).write(key) };
            Ok(Ok(()))
        }
        Err(KeyError::Code(code)) => Ok(Err(code)),
        Err(KeyError::GeneralProtection) => Err(Fault::GeneralProtection),
    }
}

/// TMP_KEYDEPENDENCIES of the SDM.
#[derive(Clone, Copy)]
pub(super) struct KeyDependencies {
    pub(super) name: Keyname,
    pub(super) isv_family_id: [u8; 16],
    pub(super) isv_ext_prod_id: [u8; 16],
    pub(super) isv_prod_id: u16,
    pub(super) isv_svn: u16,
    pub(super) owner_epoch: [u8; 16],
    pub(super) attributes: Attributes,
    pub(super) attribute_mask: Attributes,
    pub(super) mrenclave: [u8; 32],
    pub(super) mrsigner: [u8; 32],
    pub(super) key_id: [u8; 32],
    pub(super) seal_fuses: [u8; 16],
    pub(super) cpu_svn: [u8; 16],
    pub(super) miscselect: u32,
    pub(super) misc_mask: u32,
    pub(super) key_policy: u16,
    pub(super) config_id: [u8; 64],
    pub(super) config_svn: u16,
}

impl KeyDependencies {
    /// All zero but the name.
    pub(super) fn new(name: Keyname) -> Self {
        Self {
            name,
            isv_family_id: [0; 16],
            isv_ext_prod_id: [0; 16],
            isv_prod_id: 0,
            isv_svn: 0,
            owner_epoch: [0; 16],
            attributes: Attributes::default(),
            attribute_mask: Attributes::default(),
            mrenclave: [0; 32],
            mrsigner: [0; 32],
            key_id: [0; 32],
            seal_fuses: [0; 16],
            cpu_svn: [0; 16],
            miscselect: 0,
            misc_mask: 0,
            key_policy: 0,
            config_id: [0; 64],
            config_svn: 0,
        }
    }

    /// derivekey: CMAC over the fields one after another, each of fixed length, little-endian. PADDING is the constant
    /// in every case, because EINIT accepts no signature with another.
    pub(super) fn derive(&self, machine: &Machine) -> [u8; 16] {
        let mut cmac = new_cmac(&machine.secrets.derivation_key);
        cmac.update(&(self.name as u16).to_le_bytes());
        cmac.update(&self.isv_family_id);
        cmac.update(&self.isv_ext_prod_id);
        cmac.update(&self.isv_prod_id.to_le_bytes());
        cmac.update(&self.isv_svn.to_le_bytes());
        cmac.update(&self.owner_epoch);
        for a in [&self.attributes, &self.attribute_mask] {
            cmac.update(&a.flags.bits().to_le_bytes());
            cmac.update(&a.xfrm.to_le_bytes());
        }
        cmac.update(&self.mrenclave);
        cmac.update(&self.mrsigner);
        cmac.update(&self.key_id);
        cmac.update(&self.seal_fuses);
        cmac.update(&self.cpu_svn);
        cmac.update(&PKCS1_5_PADDING);
        cmac.update(&self.miscselect.to_le_bytes());
        cmac.update(&self.misc_mask.to_le_bytes());
        cmac.update(&self.key_policy.to_le_bytes());
        cmac.update(&self.config_id);
        cmac.update(&self.config_svn.to_le_bytes());
        cmac.finalize().into_bytes().into()
    }
}

/// AES-128-CMAC, as EREPORT and EINITTOKEN use it.
pub fn mac(key: &[u8; 16], data: &[u8]) -> [u8; 16] {
    let mut cmac = new_cmac(key);
    cmac.update(data);
    cmac.finalize().into_bytes().into()
}

/// Is it the AES-128-CMAC of the data? Compared in constant time.
pub fn verify_mac(key: &[u8; 16], data: &[u8], mac: &[u8; 16]) -> bool {
    let mut cmac = new_cmac(key);
    cmac.update(data);
    cmac.verify(&(*mac).into()).is_ok()
}

/// Is a CPUSVN beyond the machine's? Its bytes are the versions of components; one newer component is enough.
pub(super) fn is_beyond(asked: &[u8; 16], current: &[u8; 16]) -> bool {
    asked.iter().zip(current).any(|(a, c)| a > c)
}

pub(super) fn check_operand(
    state: &EnclaveState,
    address: u64,
    alignment: u64,
    access: SecinfoFlags,
) -> Result<(), Fault> {
    let secs = state.secs();
    let offset = address.wrapping_sub(secs.base);
    if !address.is_multiple_of(alignment) || offset >= secs.size {
        return Err(Fault::GeneralProtection);
    }
    match state.page(offset) {
        Some(page) if page.page_type == PageType::Reg && page.permissions.contains(access) => Ok(()),
        _ => Err(Fault::Page(address)),
    }
}

fn new_cmac(key: &[u8; 16]) -> Cmac<Aes128> {
    Cmac::new(&(*key).into())
}

/// N bytes at an offset.
///
/// # Panics
/// When they are not there; offsets are constants.
fn bytes_at<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&from[at..at + N]);
    out
}

/// ATTRIBUTES or a mask of them, all bits as they are.
fn attributes_at(from: &[u8], at: usize) -> Attributes {
    let word = |at| u64::from_le_bytes(bytes_at(from, at));
    // SAFETY: AttributesFlags is a u64 of which every value is valid; masks have bits that have no name.
    let flags = unsafe { AttributesFlags::from_bits_unchecked(word(at)) };
    Attributes { flags, xfrm: word(at + 8) }
}
