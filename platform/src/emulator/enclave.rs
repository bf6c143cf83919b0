//! SECS and EPCM of one enclave, and the leaf functions that build it: ECREATE, EADD, EEXTEND, EINIT
//! (SDM vol. 3D, "SGX Instruction References").
//!
//! Pure bookkeeping: the pages themselves are the caller's. Every rule of the architecture that these functions check
//! is checked here, and nothing else is. What changes pages after EINIT is in [`dynamic`](super::dynamic).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use sgx_isa::{
    Attributes, AttributesFlags, Einittoken, ErrorCode, Keyname, Miscselect, PageType, Secinfo, SecinfoFlags,
    Secs, Sigstruct,
};

use super::keys::{self, KeyDependencies};
use super::machine::{LaunchControl, MAX_ENCLAVE_SIZE_64_LOG2, Machine};
use super::measure::{CHUNK, Measurement};
use super::signature;
use crate::PlatformError;
use crate::memory::PAGE;

/// Size of GPRSGX, the general registers' part of an SSA frame (SDM vol. 3D, "GPRSGX Region").
pub const GPR_SIZE: u64 = 184;

/// An enclave's architectural state.
pub struct EnclaveState {
    pub(super) machine: Arc<Machine>,
    pub(super) secs: SecsFields,
    measurement: Measurement,
    /// One word a page: flags as in SECINFO, [`VALID`], [`STALE`], and from bit 16 on the epoch of the last change that
    /// must be tracked.
    pub(super) epcm: Box<[AtomicU32]>,
    /// Runs of pages as they were added: first page, number, EPCM flags.
    runs: Vec<Run>,
    tcs: Vec<Tcs>,
    pub(super) epc_taken: AtomicU64,
    /// How many times ETRACK was executed.
    pub(super) epoch: Arc<AtomicU32>,
}

/// The fields of the SECS that software may learn, most of them by EREPORT (SDM vol. 3D, "SGX Enclave Control Structure").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecsFields {
    /// Size of ELRANGE.
    pub size: u64,
    /// Its base.
    pub base: u64,
    /// Pages of one SSA frame.
    pub ssa_frame_size: u32,
    /// Which extended information goes into SSA frames.
    pub miscselect: Miscselect,
    /// Flags and XFRM; INIT is set by EINIT.
    pub attributes: Attributes,
    /// Measurement; zero before EINIT.
    pub mrenclave: [u8; 32],
    /// Hash of the signer's key; zero before EINIT, as are the following.
    pub mrsigner: [u8; 32],
    /// CONFIGID (with KSS), set at ECREATE.
    pub config_id: [u8; 64],
    /// Product.
    pub isv_prod_id: u16,
    /// Security version.
    pub isv_svn: u16,
    /// CONFIGSVN (with KSS), set at ECREATE.
    pub config_svn: u16,
    /// ISVFAMILYID (with KSS).
    pub isv_family_id: [u8; 16],
    /// ISVEXTPRODID (with KSS).
    pub isv_ext_prod_id: [u8; 16],
}

/// A TCS page's software-visible fields as EADD left them; CSSA is 0 (SDM vol. 3D, "Thread Control Structure").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcs {
    /// Offset of the page.
    pub offset: u64,
    /// Offset of the first SSA frame.
    pub ossa: u64,
    /// Number of SSA frames.
    pub nssa: u32,
    /// Offset of the entry point.
    pub oentry: u64,
    /// Offset of the FS base.
    pub ofsbase: u64,
    /// Offset of the GS base.
    pub ogsbase: u64,
    /// FS limit (32-bit enclaves).
    pub fslimit: u32,
    /// GS limit (32-bit enclaves).
    pub gslimit: u32,
}

/// An EPCM entry of this enclave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageInfo {
    /// Type.
    pub page_type: PageType,
    /// R, W, X.
    pub permissions: SecinfoFlags,
}

/// Consecutive pages of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) info: PageInfo,
}

/// In an EPCM entry, next to the SECINFO flags: the page is valid.
pub(super) const VALID: u32 = 1 << 7;
/// In an EPCM entry: the page's memory is less accessible than the entry says, until somebody touches it.
pub(super) const STALE: u32 = 1 << 6;

impl EnclaveState {
    /// ENCLS\[ECREATE\] (SDM vol. 3D, ECREATE): checks the SECS and begins the measurement.
    ///
    /// # Errors
    /// #GP(0) with the rule that the SECS breaks, or [`PlatformError::EpcExhausted`].
    pub fn ecreate(machine: Arc<Machine>, secs: &Secs) -> Result<Self, PlatformError> {
        check_secs(&machine, secs)?;
        machine.take_epc(PAGE)?;
        let pages = (secs.size / PAGE) as usize;
        let (config_id, config_svn) = config_of(secs);
        Ok(Self {
            machine,
            secs: SecsFields {
                size: secs.size,
                base: secs.baseaddr,
                ssa_frame_size: secs.ssaframesize,
                miscselect: secs.miscselect,
                attributes: secs.attributes,
                mrenclave: [0; 32],
                mrsigner: [0; 32],
                config_id,
                isv_prod_id: 0,
                isv_svn: 0,
                config_svn,
                isv_family_id: [0; 16],
                isv_ext_prod_id: [0; 16],
            },
            measurement: Measurement::ecreate(secs.ssaframesize, secs.size),
            epcm: empty_epcm(pages),
            runs: Vec::new(),
            tcs: Vec::new(),
            epc_taken: AtomicU64::new(PAGE),
            epoch: Arc::default(),
        })
    }

    /// ENCLS\[EADD\] (SDM vol. 3D, EADD) of the page at `offset`. `page` is its content in the EPC: of a TCS the
    /// fields that are the processor's are cleared, as EADD does.
    ///
    /// # Errors
    /// #GP(0) or #PF with the rule broken, or [`PlatformError::EpcExhausted`].
    pub fn eadd(
        &mut self,
        offset: u64,
        secinfo: &Secinfo,
        page: &mut [u8; PAGE as usize],
    ) -> Result<(), PlatformError> {
        let info = self.check_eadd(offset, 1, secinfo)?;
        if info.page_type == PageType::Tcs {
            let tcs = admit_tcs(offset, page, self.secs.attributes.flags)?;
            self.machine.take_epc(PAGE)?;
            self.tcs.push(tcs);
        } else {
            self.machine.take_epc(PAGE)?;
        }
        *self.epc_taken.get_mut() += PAGE;
        self.enter_pages(offset, 1, info);
        self.measurement.eadd(offset, epcm_flags(info));
        Ok(())
    }

    /// The checks of EADD for `count` regular pages, and their EPC; what EADD measures is left to
    /// [`measure_regular`](Self::measure_regular), which must be called for each.
    pub(super) fn admit_regular(
        &mut self,
        offset: u64,
        count: u64,
        secinfo: &Secinfo,
    ) -> Result<(), PlatformError> {
        let info = self.check_eadd(offset, count, secinfo)?;
        if info.page_type != PageType::Reg {
            return Err(gp("EADD", "only regular pages can be added without looking at their contents"));
        }
        self.machine.take_epc(count * PAGE)?;
        *self.epc_taken.get_mut() += count * PAGE;
        self.enter_pages(offset, count, info);
        Ok(())
    }

    /// What EADD of a regular page measures, and EEXTEND of all its chunks if `contents` are given.
    pub(super) fn measure_regular(&mut self, offset: u64, contents: Option<&[u8; PAGE as usize]>) {
        let entry = self.epcm[(offset / PAGE) as usize].load(Ordering::Relaxed);
        self.measurement.eadd(offset, u64::from(entry & !VALID));
        if let Some(contents) = contents {
            self.measurement.eextend_page(offset, contents);
        }
    }

    /// ENCLS\[EEXTEND\] (SDM vol. 3D, EEXTEND) of the 256 bytes at `offset`; `chunk` is what stands there.
    ///
    /// # Errors
    /// #GP(0) or #PF with the rule broken.
    pub fn eextend(&mut self, offset: u64, chunk: &[u8; CHUNK]) -> Result<(), PlatformError> {
        if !offset.is_multiple_of(CHUNK as u64) {
            return Err(gp("EEXTEND", "the address must be a multiple of 256"));
        }
        if self.page(offset).is_none() {
            return Err(pf("EEXTEND", "the chunk must lie in a page that was added"));
        }
        if self.is_initialized() {
            return Err(gp("EEXTEND", "the enclave is already initialised"));
        }
        self.measurement.eextend(offset, chunk);
        Ok(())
    }

    /// ENCLS\[EINIT\] (SDM vol. 3D, EINIT). Without a token the signer must be the one of IA32_SGXLEPUBKEYHASH; with
    /// flexible launch control that is so.
    ///
    /// # Errors
    /// [`PlatformError::Leaf`] with SGX_INVALID_SIG_STRUCT, SGX_INVALID_SIGNATURE, SGX_INVALID_MEASUREMENT,
    /// SGX_INVALID_ATTRIBUTE, SGX_INVALID_EINITTOKEN or SGX_INVALID_CPUSVN; #GP(0) when it is already initialised.
    pub fn einit(&mut self, sigstruct: &Sigstruct, token: Option<&Einittoken>) -> Result<(), PlatformError> {
        use ErrorCode::*;
        let s = sigstruct;
        if !signature::is_well_formed(s) {
            return Err(leaf(
                InvalidSigStruct,
                "the signature structure's header, vendor, exponent or a reserved field is wrong; sign the image again",
            ));
        }
        if !signature::verifies(s) {
            return Err(leaf(
                InvalidSignature,
                "the signature does not verify under its own key; the structure was altered or signed wrongly",
            ));
        }
        let flags = self.secs.attributes.flags;
        if s.isvfamilyid != [0; 16] && !flags.contains(AttributesFlags::KSS) {
            return Err(leaf(InvalidSigStruct, "ISVFAMILYID needs ATTRIBUTES.KSS"));
        }
        if self.is_initialized() {
            return Err(gp("EINIT", "the enclave is already initialised"));
        }
        let mrenclave = self.measurement.finish();
        if s.enclavehash != mrenclave {
            return Err(leaf(
                InvalidMeasurement,
                "the image's pages are not those that were signed; it was altered, or the signature is another image's",
            ));
        }
        let mrsigner = signature::mrsigner(s);
        let authorized = match self.machine.launch_control {
            LaunchControl::Flexible => mrsigner,
            LaunchControl::Locked(hash) => hash,
        };
        if flags.contains(AttributesFlags::EINITTOKENKEY) && mrsigner != authorized {
            return Err(leaf(
                InvalidAttribute,
                "ATTRIBUTES.EINITTOKENKEY is reserved to the signer that launch control names",
            ));
        }
        if !attributes_match(&self.secs.attributes, s) {
            return Err(leaf(
                InvalidAttribute,
                "the attributes asked for are not those signed for: load a debug image in debug mode and a \
                 production image in production mode, and take XFRM from the signature structure",
            ));
        }
        if (self.secs.miscselect.bits() ^ s.miscselect.bits()) & s.miscmask != 0 {
            return Err(leaf(InvalidAttribute, "MISCSELECT is not what was signed for"));
        }
        match token.filter(|t| t.valid & 1 == 1) {
            None if mrsigner != authorized => {
                return Err(leaf(
                    InvalidEinitToken,
                    "launch control is locked to another signer and there is no valid launch token",
                ));
            }
            None => {}
            Some(token) => self.check_token(token, &mrenclave, &mrsigner, &authorized)?,
        }
        self.secs.mrenclave = mrenclave;
        self.secs.mrsigner = mrsigner;
        self.secs.isv_prod_id = s.isvprodid;
        self.secs.isv_svn = s.isvsvn;
        self.secs.isv_family_id = s.isvfamilyid;
        self.secs.isv_ext_prod_id = s.isvextprodid;
        self.secs.attributes.flags |= AttributesFlags::INIT;
        self.tcs.sort_unstable_by_key(|t| t.offset);
        Ok(())
    }

    /// MRENCLAVE if EINIT came now: what a signature structure must hold.
    pub fn measurement(&self) -> [u8; 32] {
        self.measurement.finish()
    }

    /// The machine it is on.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// The SECS.
    pub fn secs(&self) -> &SecsFields {
        &self.secs
    }

    /// ATTRIBUTES.INIT.
    pub fn is_initialized(&self) -> bool {
        self.secs.attributes.flags.contains(AttributesFlags::INIT)
    }

    /// Type and permissions of the page that the offset lies in; `None` when there is none, or one that waits to be
    /// accepted (PENDING, MODIFIED).
    pub fn page(&self, offset: u64) -> Option<PageInfo> {
        let flags = self.epcm_entry(offset)?;
        if flags.intersects(SecinfoFlags::PENDING | SecinfoFlags::MODIFIED) {
            return None;
        }
        let page_type = match flags.page_type() {
            t if t == PageType::Tcs as u8 => PageType::Tcs,
            t if t == PageType::Trim as u8 => PageType::Trim,
            _ => PageType::Reg,
        };
        Some(PageInfo {
            page_type,
            permissions: flags & (SecinfoFlags::R | SecinfoFlags::W | SecinfoFlags::X),
        })
    }

    /// The EPCM entry of the page that the offset lies in, in the form of SECINFO.FLAGS; `None` when it is not valid.
    pub fn epcm_entry(&self, offset: u64) -> Option<SecinfoFlags> {
        let entry = self.epcm.get(usize::try_from(offset / PAGE).ok()?)?.load(Ordering::Acquire);
        (entry & VALID != 0).then(|| SecinfoFlags::from_bits_truncate(u64::from(entry & 0xff3f)))
    }

    /// The TCS pages; after EINIT sorted by offset.
    pub fn tcs(&self) -> &[Tcs] {
        &self.tcs
    }

    /// Bytes of EPC it occupies.
    pub fn epc_bytes(&self) -> u64 {
        self.epc_taken.load(Ordering::Relaxed)
    }

    /// How many of the TCS's SSA frames, from the first on, lie wholly in readable and writable regular pages.
    pub fn usable_frames(&self, tcs: &Tcs) -> u32 {
        self.frames_within(tcs.ossa, tcs.nssa, |_| true)
    }

    /// The same for a TCS of these fields; `settle` makes a page's memory as accessible as the EPCM says.
    pub(super) fn frames_within(&self, ossa: u64, nssa: u32, settle: impl Fn(u64) -> bool) -> u32 {
        let pages = u64::from(self.secs.ssa_frame_size);
        let rw = SecinfoFlags::R | SecinfoFlags::W;
        let usable = |page: u64| {
            let at = page.checked_mul(PAGE).and_then(|o| o.checked_add(ossa));
            at.is_some_and(|o| {
                self.page(o).is_some_and(|p| p.page_type == PageType::Reg && p.permissions.contains(rw))
                    && settle(o)
            })
        };
        (0..nssa).take_while(|frame| (0..pages).all(|p| usable(u64::from(*frame) * pages + p))).count() as u32
    }

    /// Runs of pages, in ascending order, as long as possible.
    pub(super) fn runs(&self) -> Vec<Run> {
        let mut sorted = self.runs.clone();
        sorted.sort_unstable_by_key(|r| r.first);
        let mut out: Vec<Run> = Vec::with_capacity(sorted.len());
        for run in sorted {
            match out.last_mut() {
                Some(last) if last.first + last.count == run.first && last.info == run.info => {
                    last.count += run.count
                }
                _ => out.push(run),
            }
        }
        out
    }

    fn check_eadd(&self, offset: u64, count: u64, secinfo: &Secinfo) -> Result<PageInfo, PlatformError> {
        const LEAF: &str = "EADD";
        if !offset.is_multiple_of(PAGE) {
            return Err(gp(LEAF, "the address must be a multiple of 4096"));
        }
        let flags = secinfo.flags.bits();
        let allowed = (SecinfoFlags::R | SecinfoFlags::W | SecinfoFlags::X | SecinfoFlags::PT_MASK).bits();
        if flags & !allowed != 0 || secinfo._reserved1 != [0; 56] {
            return Err(gp(LEAF, "reserved fields of SECINFO must be zero"));
        }
        let page_type = match secinfo.flags.page_type() {
            t if t == PageType::Reg as u8 => PageType::Reg,
            t if t == PageType::Tcs as u8 => PageType::Tcs,
            _ => return Err(gp(LEAF, "the page type must be PT_REG or PT_TCS")),
        };
        let mut permissions = secinfo.flags & (SecinfoFlags::R | SecinfoFlags::W | SecinfoFlags::X);
        let (r, w) = (SecinfoFlags::R, SecinfoFlags::W);
        if page_type == PageType::Reg && permissions.contains(w) && !permissions.contains(r) {
            return Err(gp(LEAF, "a page that is writable must be readable"));
        }
        if page_type == PageType::Tcs {
            permissions = SecinfoFlags::empty();
        }
        let end = count.checked_mul(PAGE).and_then(|l| l.checked_add(offset));
        if end.is_none_or(|end| end > self.secs.size) {
            return Err(gp(LEAF, "the page must lie in ELRANGE"));
        }
        if self.is_initialized() {
            return Err(gp(LEAF, "the enclave is already initialised"));
        }
        let (first, last) = ((offset / PAGE) as usize, (offset / PAGE + count) as usize);
        if self.epcm[first..last].iter().any(|e| e.load(Ordering::Relaxed) != 0) {
            return Err(pf(LEAF, "there is already a page at this address"));
        }
        Ok(PageInfo { page_type, permissions })
    }

    fn enter_pages(&mut self, offset: u64, count: u64, info: PageInfo) {
        let first = offset / PAGE;
        let entry = epcm_flags(info) as u32 | VALID;
        for e in &mut self.epcm[first as usize..(first + count) as usize] {
            *e.get_mut() = entry;
        }
        match self.runs.last_mut() {
            Some(last) if last.first + last.count == first && last.info == info => last.count += count,
            _ => self.runs.push(Run { first, count, info }),
        }
    }

    fn check_token(
        &self,
        token: &Einittoken,
        mrenclave: &[u8; 32],
        mrsigner: &[u8; 32],
        authorized: &[u8; 32],
    ) -> Result<(), PlatformError> {
        use ErrorCode::*;
        let debug_launcher = token.maskedattributesle.flags.contains(AttributesFlags::DEBUG);
        if debug_launcher && !self.secs.attributes.flags.contains(AttributesFlags::DEBUG) {
            return Err(leaf(InvalidEinitToken, "a debug launch enclave cannot launch production enclaves"));
        }
        let reserved_clear = token.valid == 1
            && token._reserved1 == [0; 44]
            && token._reserved2 == [0; 32]
            && token._reserved3 == [0; 32]
            && token._reserved4 == [0; 24];
        if !reserved_clear {
            return Err(leaf(InvalidEinitToken, "a reserved field of the launch token is not zero"));
        }
        if keys::is_beyond(&token.cpusvnle, &self.machine.cpu_svn) {
            return Err(leaf(InvalidCpusvn, "the launch token is of a newer processor configuration"));
        }
        let key = KeyDependencies {
            isv_prod_id: token.isvprodidle,
            isv_svn: token.isvsvnle,
            owner_epoch: self.machine.secrets.owner_epoch,
            attributes: token.maskedattributesle,
            mrsigner: *authorized,
            key_id: token.keyid,
            seal_fuses: self.machine.secrets.seal_fuses,
            cpu_svn: token.cpusvnle,
            miscselect: token.maskedmiscselectle.bits(),
            ..KeyDependencies::new(Keyname::Einittoken)
        };
        if !keys::verify_mac(&key.derive(&self.machine), &token.as_ref()[..192], &token.mac) {
            return Err(leaf(
                InvalidEinitToken,
                "the launch token's MAC is not of this machine's launch key",
            ));
        }
        if token.mrenclave != *mrenclave || token.mrsigner != *mrsigner {
            return Err(leaf(InvalidMeasurement, "the launch token is for another enclave or signer"));
        }
        if token.attributes != self.secs.attributes {
            return Err(leaf(InvalidAttribute, "the launch token is for other attributes"));
        }
        Ok(())
    }
}

impl Drop for EnclaveState {
    fn drop(&mut self) {
        self.machine.give_epc(self.epc_bytes());
    }
}

impl std::fmt::Debug for EnclaveState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnclaveState")
            .field("secs", &self.secs)
            .field("tcs", &self.tcs)
            .finish_non_exhaustive()
    }
}

/// Bytes that an SSA frame must have at least: XSAVE area in standard format, MISC region, GPRSGX
/// (SDM vol. 3D, "State Save Area Frame").
pub fn required_frame_bytes(xfrm: u64, miscselect: Miscselect) -> u64 {
    let mut xsave = 576;
    for i in (2..63).filter(|i| xfrm >> i & 1 == 1) {
        let component = core::arch::x86_64::__cpuid_count(0xd, i);
        xsave = xsave.max(u64::from(component.ebx) + u64::from(component.eax));
    }
    let misc = if miscselect.contains(Miscselect::EXINFO) { 16 } else { 0 };
    xsave + misc + GPR_SIZE
}

/// The checks of ECREATE.
pub(super) fn check_secs(machine: &Machine, secs: &Secs) -> Result<(), PlatformError> {
    let gp = |rule| Err(gp("ECREATE", rule));
    let xfrm = secs.attributes.xfrm;
    if xfrm & 3 != 3 {
        return gp("XFRM must include x87 and SSE state (bits 0 and 1)");
    }
    if xfrm & !machine.xfrm != 0 || !is_legal_xcr0(xfrm) {
        return gp(
            "XFRM asks for state that this processor does not have, or for half of what goes together",
        );
    }
    if secs.miscselect.bits() & !machine.miscselect.bits() != 0 {
        return gp("MISCSELECT asks for information that this processor does not give");
    }
    if u64::from(secs.ssaframesize) * PAGE < required_frame_bytes(xfrm, secs.miscselect) {
        return gp("SSAFRAMESIZE is too small for the state that XFRM and MISCSELECT ask for");
    }
    let mode64 = secs.attributes.flags.contains(AttributesFlags::MODE64BIT);
    if mode64 && ((secs.baseaddr as i64) << 16 >> 16) as u64 != secs.baseaddr {
        return gp("the base address is not canonical");
    }
    if !mode64 && secs.baseaddr >> 32 != 0 {
        return gp("the base address of a 32-bit enclave must be below 4 GiB");
    }
    if secs.size >= 1 << if mode64 { MAX_ENCLAVE_SIZE_64_LOG2 } else { 31 } {
        return gp("the enclave is larger than the processor supports");
    }
    if secs.size < 2 * PAGE || !secs.size.is_power_of_two() {
        return gp("the size must be a power of two of at least 8192 bytes");
    }
    if secs.baseaddr & (secs.size - 1) != 0 {
        return gp("the base address must be a multiple of the size");
    }
    if secs.attributes.flags.bits() & !machine.attributes.bits() != 0 {
        return gp("ATTRIBUTES has a bit that this processor does not support, or INIT");
    }
    let (config_id, config_svn) = config_of(secs);
    let reserved_clear = secs._reserved1 == [0; 24]
        && secs._reserved2 == [0; 32]
        && secs._reserved3[..32] == [0; 32]
        && secs.padding[2..].iter().all(|b| *b == 0);
    if !reserved_clear {
        return gp("reserved fields of the SECS must be zero");
    }
    if (config_id != [0; 64] || config_svn != 0) && !secs.attributes.flags.contains(AttributesFlags::KSS) {
        return gp("CONFIGID and CONFIGSVN need ATTRIBUTES.KSS");
    }
    Ok(())
}

/// CONFIGID (offset 192) and CONFIGSVN (offset 260), which `sgx_isa::Secs` does not name.
fn config_of(secs: &Secs) -> ([u8; 64], u16) {
    let mut id = [0; 64];
    id.copy_from_slice(&secs._reserved3[32..]);
    (id, u16::from_le_bytes([secs.padding[0], secs.padding[1]]))
}

/// Would XSETBV accept it (SDM vol. 1, "Enabling the XSAVE Feature Set")?
fn is_legal_xcr0(xfrm: u64) -> bool {
    let all_or_none = |mask: u64| xfrm & mask == 0 || xfrm & mask == mask;
    let avx = xfrm & 4 != 0;
    let avx512 = xfrm & 0xe0;
    all_or_none(0x18) && all_or_none(0xe0) && all_or_none(0x6_0000) && (avx512 == 0 || avx)
}

/// The EPCM flags of a page: R, W, X and type, which is also what EADD measures of SECINFO.FLAGS.
fn epcm_flags(info: PageInfo) -> u64 {
    info.permissions.bits() | (info.page_type as u64) << 8
}

/// The part of EADD that concerns TCS pages: reserved fields, and clearing of what is the processor's.
fn admit_tcs(
    offset: u64,
    page: &mut [u8; PAGE as usize],
    flags: AttributesFlags,
) -> Result<Tcs, PlatformError> {
    let gp = |rule| Err(gp("EADD", rule));
    let u32_at =
        |p: &[u8; PAGE as usize], at: usize| u32::from_le_bytes([p[at], p[at + 1], p[at + 2], p[at + 3]]);
    let u64_at = |p: &[u8; PAGE as usize], at| u64::from(u32_at(p, at)) | u64::from(u32_at(p, at + 4)) << 32;
    // OCETSSA and PREVSSP (72 … 87) are reserved on a processor without CET, FLAGS but DBGOPTIN without AEX-Notify.
    if u64_at(page, 8) & !1 != 0 || page[72..].iter().any(|b| *b != 0) {
        return gp("reserved fields of the TCS must be zero");
    }
    let (fslimit, gslimit) = (u32_at(page, 64), u32_at(page, 68));
    if !flags.contains(AttributesFlags::MODE64BIT) && (fslimit & 0xfff != 0xfff || gslimit & 0xfff != 0xfff) {
        return gp("FSLIMIT and GSLIMIT of a 32-bit enclave must end in FFFH");
    }
    page[..8].fill(0); // STATE
    page[8] &= !1; // FLAGS.DBGOPTIN
    page[24..28].fill(0); // CSSA
    page[40..48].fill(0); // AEP
    Ok(tcs_fields(offset, page))
}

/// A TCS as it stands in its page.
pub(super) fn tcs_fields(offset: u64, page: &[u8; PAGE as usize]) -> Tcs {
    let u32_at = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    let u64_at = |at| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    Tcs {
        offset,
        ossa: u64_at(16),
        nssa: u32_at(28),
        oentry: u64_at(32),
        ofsbase: u64_at(48),
        ogsbase: u64_at(56),
        fslimit: u32_at(64),
        gslimit: u32_at(68),
    }
}

fn attributes_match(attributes: &Attributes, s: &Sigstruct) -> bool {
    (attributes.flags.bits() ^ s.attributes.flags.bits()) & s.attributemask[0] == 0
        && (attributes.xfrm ^ s.attributes.xfrm) & s.attributemask[1] == 0
}

fn empty_epcm(pages: usize) -> Box<[AtomicU32]> {
    // Allocated zeroed: the kernel gives memory for the parts that are used, however large ELRANGE is.
    let zeroed: Box<[u32]> = vec![0; pages].into_boxed_slice();
    let raw = Box::into_raw(zeroed) as *mut [AtomicU32];
    // SAFETY: AtomicU32 has the size, alignment and bit validity of u32, so the layout of the allocation is the same.
    unsafe { Box::from_raw(raw) }
}

fn leaf(code: ErrorCode, hint: &'static str) -> PlatformError {
    PlatformError::Leaf { leaf: "EINIT", code, hint }
}

pub(super) fn gp(leaf: &'static str, rule: &'static str) -> PlatformError {
    PlatformError::Fault { leaf, fault: "#GP(0)", rule }
}

pub(super) fn pf(leaf: &'static str, rule: &'static str) -> PlatformError {
    PlatformError::Fault { leaf, fault: "#PF", rule }
}
