//! Dynamic memory (SGX2): the leaf functions that change pages of an initialised enclave (SDM vol. 3D, "SGX Instruction
//! References"): EAUG, EMODPR, EMODT, ETRACK, EREMOVE of the host, EACCEPT, EACCEPTCOPY, EMODPE of the enclave.
//!
//! Bookkeeping as in [`enclave`](super::enclave), but on shared state: every change of an EPCM entry is one atomic
//! exchange, so that two that meet have an order. Nothing here allocates or takes a lock: the enclave's leaf functions
//! run in signal handlers.
//!
//! **Tracking** (SDM vol. 3D, "EPC and EPCM Behavior of SGX Instructions", ETRACK): a page that was restricted or changed
//! its type may be accepted when ETRACK was executed since and every thread that was inside then has left. The emulator
//! counts ETRACKs; a page remembers the count of its change, and a thread the count at which it entered.

use std::sync::atomic::Ordering;

use sgx_isa::{AttributesFlags, ErrorCode, PageType, Secinfo, SecinfoFlags};

use super::enclave::{EnclaveState, STALE, VALID, gp, pf, tcs_fields};
use super::keys::{Fault, check_operand};
use crate::PlatformError;
use crate::memory::PAGE;

/// R, W and X.
const PERMISSIONS: u32 = 7;
const PENDING: u32 = 1 << 3;
const MODIFIED: u32 = 1 << 4;
const PR: u32 = 1 << 5;
const PT_MASK: u32 = 0xff00;
const PT_TCS: u32 = (PageType::Tcs as u32) << 8;
const PT_REG: u32 = (PageType::Reg as u32) << 8;
const PT_TRIM: u32 = (PageType::Trim as u32) << 8;
/// SECINFO.FLAGS bits that mean something.
const DEFINED: u64 = (PERMISSIONS | PENDING | MODIFIED | PR | PT_MASK) as u64;
/// What EACCEPT compares of SECINFO.FLAGS and the EPCM entry.
const COMPARED: u32 = PERMISSIONS | PENDING | MODIFIED | PT_MASK;

/// Which threads are inside the enclave, as far as tracking must know.
pub trait Inside {
    /// The count of ETRACKs at which the thread that has been inside longest entered; `None`: nobody is inside.
    fn oldest_entry(&self) -> Option<u16>;
}

/// Nobody.
impl Inside for () {
    fn oldest_entry(&self) -> Option<u16> {
        None
    }
}

impl EnclaveState {
    /// ENCLS\[EAUG\] of `count` pages (SDM vol. 3D, EAUG): zero, readable and writable, pending.
    ///
    /// # Errors
    /// #GP(0) or #PF with the rule broken, or [`PlatformError::EpcExhausted`]; then nothing was added.
    pub fn eaug(&self, offset: u64, count: u64) -> Result<(), PlatformError> {
        const LEAF: &str = "EAUG";
        self.check_range(LEAF, offset, count)?;
        self.machine.take_epc(count * PAGE)?;
        let pages = self.pages(offset, count);
        let added = PERMISSIONS & 3 | PENDING | PT_REG | VALID;
        for (i, page) in pages.iter().enumerate() {
            if page.compare_exchange(0, added, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                pages[..i].iter().for_each(|page| page.store(0, Ordering::Release));
                self.machine.give_epc(count * PAGE);
                return Err(pf(LEAF, "there is already a page at this address"));
            }
        }
        self.epc_taken.fetch_add(count * PAGE, Ordering::Relaxed);
        Ok(())
    }

    /// ENCLS\[EMODPR\] (SDM vol. 3D, EMODPR): takes permissions away that SECINFO does not have.
    ///
    /// # Errors
    /// #GP(0) or #PF with the rule broken, or SGX_PAGE_NOT_MODIFIABLE.
    pub fn emodpr(&self, offset: u64, secinfo: &Secinfo) -> Result<(), PlatformError> {
        const LEAF: &str = "EMODPR";
        let flags = secinfo_flags(LEAF, secinfo)?;
        if flags & 3 == 2 {
            return Err(gp(LEAF, "a page that is writable must be readable"));
        }
        self.change(LEAF, offset, |entry, epoch| {
            modifiable(LEAF, entry)?;
            if entry & PT_MASK != PT_REG {
                return Err(pf(LEAF, "only regular pages have permissions to restrict"));
            }
            Ok(epoch << 16 | (entry & 0xffff & !PERMISSIONS | entry & flags & PERMISSIONS | PR))
        })
    }

    /// ENCLS\[EMODT\] (SDM vol. 3D, EMODT): makes a regular page a TCS, or a regular page or TCS one to trim.
    ///
    /// # Errors
    /// #GP(0) or #PF with the rule broken, or SGX_PAGE_NOT_MODIFIABLE.
    pub fn emodt(&self, offset: u64, secinfo: &Secinfo) -> Result<(), PlatformError> {
        const LEAF: &str = "EMODT";
        let to = secinfo_flags(LEAF, secinfo)? & PT_MASK;
        if to != PT_TCS && to != PT_TRIM {
            return Err(gp(LEAF, "the page type must be PT_TCS or PT_TRIM"));
        }
        self.change(LEAF, offset, |entry, epoch| {
            match entry & PT_MASK {
                PT_REG => {}
                PT_TCS if to == PT_TRIM => {}
                _ => {
                    return Err(pf(
                        LEAF,
                        "only regular pages become TCSs, and only those and TCSs are trimmed",
                    ));
                }
            }
            modifiable(LEAF, entry)?;
            Ok(epoch << 16 | to | MODIFIED | VALID)
        })
    }

    /// ENCLS\[ETRACK\] (SDM vol. 3D, ETRACK).
    ///
    /// # Errors
    /// SGX_PREV_TRK_INCMPL while a thread is inside that entered before the ETRACK before this one.
    pub fn etrack(&self, inside: &impl Inside) -> Result<(), PlatformError> {
        let epoch = self.epoch.load(Ordering::SeqCst);
        if inside.oldest_entry().is_some_and(|entered| is_before(entered, epoch as u16)) {
            return Err(leaf(
                "ETRACK",
                ErrorCode::PrevTrkIncmpl,
                "a thread that was inside at the ETRACK before is still inside: interrupt it",
            ));
        }
        self.epoch.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// ENCLS\[EREMOVE\] (SDM vol. 3D, EREMOVE) of a page of the enclave.
    ///
    /// # Errors
    /// #GP(0) for an address that is not page-aligned, #PF for one outside ELRANGE, SGX_ENCLAVE_ACT while a thread is
    /// inside, unless the enclave has accepted that the page is trimmed.
    pub fn eremove(&self, offset: u64, inside: &impl Inside) -> Result<(), PlatformError> {
        const LEAF: &str = "EREMOVE";
        if !offset.is_multiple_of(PAGE) {
            return Err(gp(LEAF, "the address must be a multiple of 4096"));
        }
        let Some(page) = self.epcm.get((offset / PAGE) as usize) else {
            return Err(pf(LEAF, "the page must lie in ELRANGE"));
        };
        let entry = page.load(Ordering::Acquire);
        if entry & VALID == 0 {
            return Ok(());
        }
        let is_trimmed = entry & PT_MASK == PT_TRIM && entry & MODIFIED == 0;
        if !is_trimmed && inside.oldest_entry().is_some() {
            return Err(leaf(LEAF, ErrorCode::EnclaveAct, "a thread is inside the enclave"));
        }
        if page.swap(0, Ordering::AcqRel) & VALID != 0 {
            self.epc_taken.fetch_sub(PAGE, Ordering::Relaxed);
            self.machine.give_epc(PAGE);
        }
        Ok(())
    }

    /// ENCLU\[EACCEPT\] (SDM vol. 3D, EACCEPT) of the page at `address`, a linear address. `secinfo` are the 64 bytes that
    /// RBX points to, after [`secinfo_operand`](Self::secinfo_operand) let them be read; `tcs_is_sound` says whether
    /// the page would do as a TCS, see [`is_sound_tcs`]. The inner result goes to RAX.
    ///
    /// # Errors
    /// #GP(0), #PF. Inner: SGX_PAGE_ATTRIBUTES_MISMATCH, SGX_NOT_TRACKED.
    pub fn eaccept(
        &self,
        secinfo: &[u8; 64],
        address: u64,
        inside: &impl Inside,
        tcs_is_sound: impl Fn() -> bool,
    ) -> Result<Result<(), ErrorCode>, Fault> {
        let flags = operand_flags(secinfo)?;
        let offset = self.page_operand(address)?;
        let legal = match flags & PT_MASK {
            PT_REG => flags & MODIFIED == 0,
            PT_TCS | PT_TRIM => flags & (PENDING | MODIFIED) == MODIFIED,
            _ => false,
        };
        if !legal {
            return Err(Fault::GeneralProtection);
        }
        let page = &self.epcm[(offset / PAGE) as usize];
        loop {
            let entry = page.load(Ordering::Acquire);
            if entry & VALID == 0 {
                return Err(Fault::Page(address));
            }
            if (entry ^ flags) & COMPARED != 0 {
                return Ok(Err(ErrorCode::PageAttributesMismatch));
            }
            if entry & (MODIFIED | PR) != 0 {
                let changed = (entry >> 16) as u16;
                let executed = is_before(changed, self.epoch.load(Ordering::SeqCst) as u16);
                let all_left = inside.oldest_entry().is_none_or(|entered| is_before(changed, entered));
                if !executed || !all_left {
                    return Ok(Err(ErrorCode::NotTracked));
                }
            }
            if flags & PT_MASK == PT_TCS && !tcs_is_sound() {
                return Err(Fault::GeneralProtection);
            }
            let accepted = entry & !(PENDING | MODIFIED | PR) & 0xffff;
            let accepted = if entry & PENDING != 0 { accepted | STALE } else { accepted };
            if page.compare_exchange(entry, accepted, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Ok(Ok(()));
            }
        }
    }

    /// ENCLU\[EMODPE\] (SDM vol. 3D, EMODPE): gives the page at `address` the permissions that SECINFO has besides its own.
    ///
    /// # Errors
    /// #GP(0), #PF.
    pub fn emodpe(&self, secinfo: &[u8; 64], address: u64) -> Result<(), Fault> {
        let flags = operand_flags(secinfo)?;
        let offset = self.page_operand(address)?;
        let page = &self.epcm[(offset / PAGE) as usize];
        loop {
            let entry = page.load(Ordering::Acquire);
            if entry & (VALID | PENDING | MODIFIED) != VALID || entry & PT_MASK != PT_REG {
                return Err(Fault::Page(address));
            }
            let extended = entry | flags & PERMISSIONS;
            if extended & 3 == 2 {
                return Err(Fault::GeneralProtection);
            }
            let extended = if extended == entry { entry } else { extended | STALE };
            if page.compare_exchange(entry, extended, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Ok(());
            }
        }
    }

    /// ENCLU\[EACCEPTCOPY\] (SDM vol. 3D, EACCEPTCOPY) of the pending page at `address` from the one at `source`. `copy`
    /// copies the page's contents from the one offset to the other; what it cannot reach is #PF.
    ///
    /// # Errors
    /// #GP(0), #PF. Inner: SGX_PAGE_ATTRIBUTES_MISMATCH.
    pub fn eacceptcopy(
        &self,
        secinfo: &[u8; 64],
        address: u64,
        source: u64,
        copy: impl Fn(u64, u64) -> bool,
    ) -> Result<Result<(), ErrorCode>, Fault> {
        let flags = operand_flags(secinfo)?;
        if flags & 3 == 2 || flags & PT_MASK != PT_REG {
            return Err(Fault::GeneralProtection);
        }
        let (to, from) = (self.page_operand(address)?, self.page_operand(source)?);
        let source_entry = self.epcm[(from / PAGE) as usize].load(Ordering::Acquire);
        if source_entry & (VALID | PENDING | MODIFIED) != VALID
            || source_entry & PT_MASK != PT_REG
            || source_entry & 1 == 0
        {
            return Err(Fault::Page(source));
        }
        let page = &self.epcm[(to / PAGE) as usize];
        let entry = page.load(Ordering::Acquire);
        if entry & (VALID | PENDING | MODIFIED | PT_MASK) != (VALID | PENDING | PT_REG) {
            return Ok(Err(ErrorCode::PageAttributesMismatch));
        }
        if !copy(from, to) {
            return Err(Fault::Page(address));
        }
        let accepted = VALID | PT_REG | flags & PERMISSIONS | STALE;
        match page.compare_exchange(entry, accepted, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Ok(Ok(())),
            // Another thread was first: the page was in use.
            Err(_) => Err(Fault::GeneralProtection),
        }
    }

    /// May the 64 bytes at this linear address be read as a SECINFO by an ENCLU leaf function?
    ///
    /// # Errors
    /// #GP(0), #PF.
    pub fn secinfo_operand(&self, address: u64) -> Result<(), Fault> {
        check_operand(self, address, 64, SecinfoFlags::R)
    }

    fn page_operand(&self, address: u64) -> Result<u64, Fault> {
        let offset = address.wrapping_sub(self.secs.base);
        if !address.is_multiple_of(PAGE) || offset >= self.secs.size {
            return Err(Fault::GeneralProtection);
        }
        Ok(offset)
    }

    fn check_range(&self, name: &'static str, offset: u64, count: u64) -> Result<(), PlatformError> {
        if !offset.is_multiple_of(PAGE) {
            return Err(gp(name, "the address must be a multiple of 4096"));
        }
        let end = count.checked_mul(PAGE).and_then(|len| len.checked_add(offset));
        if end.is_none_or(|end| end > self.secs.size) {
            return Err(gp(name, "the page must lie in ELRANGE"));
        }
        if !self.is_initialized() {
            return Err(gp(name, "the enclave is not initialised"));
        }
        Ok(())
    }

    fn pages(&self, offset: u64, count: u64) -> &[std::sync::atomic::AtomicU32] {
        &self.epcm[(offset / PAGE) as usize..(offset / PAGE + count) as usize]
    }

    /// Replaces the entry of a valid page by what `f` makes of it and the present epoch.
    fn change(
        &self,
        name: &'static str,
        offset: u64,
        f: impl Fn(u32, u32) -> Result<u32, PlatformError>,
    ) -> Result<(), PlatformError> {
        self.check_range(name, offset, 1)?;
        let page = &self.epcm[(offset / PAGE) as usize];
        loop {
            let entry = page.load(Ordering::Acquire);
            if entry & VALID == 0 {
                return Err(pf(name, "there is no page at this address"));
            }
            let changed = f(entry, self.epoch.load(Ordering::SeqCst) & 0xffff)?;
            if page.compare_exchange(entry, changed, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Ok(());
            }
        }
    }
}

/// The fields of a TCS page that EACCEPT checks (SDM vol. 3D, EACCEPT): reserved ones zero, DBGOPTIN, STATE and AEP clear,
/// CSSA below NSSA, limits of 32-bit enclaves.
pub fn is_sound_tcs(page: &[u8; PAGE as usize], attributes: AttributesFlags) -> bool {
    let is_zero = |from: usize, to: usize| page[from..to].iter().all(|b| *b == 0);
    let tcs = tcs_fields(0, page);
    let cssa = u32::from_le_bytes([page[24], page[25], page[26], page[27]]);
    let limits = attributes.contains(AttributesFlags::MODE64BIT)
        || tcs.fslimit & 0xfff == 0xfff && tcs.gslimit & 0xfff == 0xfff;
    // STATE and FLAGS, AEP, and what is reserved.
    is_zero(0, 16) && is_zero(40, 48) && is_zero(72, page.len()) && cssa < tcs.nssa && limits
}

/// Neither pending nor modified, or the error code for it.
fn modifiable(name: &'static str, entry: u32) -> Result<(), PlatformError> {
    if entry & (PENDING | MODIFIED) != 0 {
        return Err(leaf(
            name,
            ErrorCode::PageNotModifiable,
            "the enclave has not accepted the change before",
        ));
    }
    Ok(())
}

/// FLAGS of a SECINFO given to an ENCLS leaf function.
fn secinfo_flags(name: &'static str, secinfo: &Secinfo) -> Result<u32, PlatformError> {
    let flags = secinfo.flags.bits();
    if flags & !DEFINED != 0 || secinfo._reserved1 != [0; 56] {
        return Err(gp(name, "reserved fields of SECINFO must be zero"));
    }
    Ok(flags as u32)
}

/// FLAGS of a SECINFO given to an ENCLU leaf function.
fn operand_flags(secinfo: &[u8; 64]) -> Result<u32, Fault> {
    let (flags, reserved) = secinfo.split_first_chunk::<8>().ok_or(Fault::GeneralProtection)?;
    let flags = u64::from_le_bytes(*flags);
    if flags & !DEFINED != 0 || reserved.iter().any(|b| *b != 0) {
        return Err(Fault::GeneralProtection);
    }
    Ok(flags as u32)
}

/// Of two counts of ETRACK, less than 32,768 apart.
fn is_before(a: u16, b: u16) -> bool {
    (a.wrapping_sub(b) as i16) < 0
}

fn leaf(leaf: &'static str, code: ErrorCode, hint: &'static str) -> PlatformError {
    PlatformError::Leaf { leaf, code, hint }
}
