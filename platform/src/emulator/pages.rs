//! An enclave's pages: EPCM and memory together, so that memory is never more accessible than the EPCM says.
//!
//! It may be *less* accessible for a while. Changing the protection of memory is a system call, and the enclave's leaf
//! functions come a page at a time; so EACCEPT and EMODPE only mark the EPCM entry as stale, and the first access that
//! the memory refuses and the EPCM permits makes the whole run of such pages accessible ([`EnclavePages::settle`]). What
//! takes access away does so at once.
//!
//! Protections are changed under a lock, which signal handlers take too: a thread that holds it is outside of any enclave
//! or in such a handler itself, so it is never interrupted by one that waits for it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use sgx_isa::{ErrorCode, Miscselect, PageType, Secinfo, SecinfoFlags};

use super::dynamic::{Inside, is_sound_tcs};
use super::enclave::{EnclaveState, STALE, VALID, tcs_fields};
use super::keys::{self, Fault};
use super::thread::{self, EnclaveThreads, TcsDescription};
use super::transitions as asm;
use super::{describe, protection_of};
use crate::PlatformError;
use crate::memory::{PAGE, Reservation};

/// State and memory of an initialised enclave.
pub(super) struct EnclavePages {
    pub(super) state: EnclaveState,
    memory: Reservation,
    changing: AtomicBool,
}

/// In an EPCM entry: PENDING and MODIFIED.
const UNACCEPTED: u32 = 0x18;

impl EnclavePages {
    pub(super) fn new(state: EnclaveState, memory: Reservation) -> Self {
        Self { state, memory, changing: AtomicBool::new(false) }
    }

    pub(super) fn memory(&self) -> &Reservation {
        &self.memory
    }

    /// Makes the memory at this linear address as accessible as the EPCM says; false when that does not include the
    /// access: bits as in SECINFO.FLAGS.
    pub(super) fn settle(&self, address: u64, access: u32) -> bool {
        let epcm = &self.state.epcm;
        let Ok(page) = usize::try_from(address.wrapping_sub(self.memory.base()) / PAGE) else { return false };
        let permits = |entry: u32| {
            entry & (VALID | UNACCEPTED) == VALID
                && entry >> 8 & 0xff == PageType::Reg as u32
                && entry & access == access
        };
        let is_stale = |entry: u32| entry & STALE != 0;
        match epcm.get(page).map(|p| p.load(Ordering::Acquire)) {
            Some(entry) if !permits(entry) => return false,
            Some(entry) if is_stale(entry) => {}
            Some(_) => return true,
            None => return false,
        }
        let _lock = self.lock();
        let entry = epcm[page].load(Ordering::Acquire);
        if !permits(entry) || !is_stale(entry) {
            return permits(entry);
        }
        let alike = |page: &usize| (epcm[*page].load(Ordering::Acquire) ^ entry) & 0xffff == 0;
        let first = (page.saturating_sub(MOST_SETTLED)..page).rev().take_while(alike).last().unwrap_or(page);
        let most = (page + MOST_SETTLED).min(epcm.len());
        let last = (page + 1..most).take_while(alike).last().unwrap_or(page);
        let permissions = SecinfoFlags::from_bits_truncate(u64::from(entry & 7));
        let count = (last + 1 - first) as u64;
        if !self.set(first as u64 * PAGE, count, protection_of(permissions)) {
            return false;
        }
        for page in &epcm[first..=last] {
            // Those that changed meanwhile stay stale.
            let seen = page.load(Ordering::Acquire);
            if (seen ^ entry) & 0xffff == 0 {
                let _ = page.compare_exchange(seen, seen & !STALE, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
        true
    }

    /// Sets the protection of pages, which nobody else changes meanwhile; false when the kernel refuses.
    fn set(&self, offset: u64, count: u64, protection: i32) -> bool {
        let at = self.memory.range(offset, count * PAGE) as u64;
        // SAFETY: pages of this enclave, whose users answer for the protection.
        unsafe { asm::enclos_emu_call(libc::SYS_mprotect, at, count * PAGE, protection as u64) == 0 }
    }

    /// Takes all access to pages away.
    fn close(&self, offset: u64, count: u64) -> Result<(), PlatformError> {
        let _lock = self.lock();
        if self.set(offset, count, libc::PROT_NONE) { Ok(()) } else { Err(refused()) }
    }

    fn lock(&self) -> Lock<'_> {
        while self.changing.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            // SAFETY: sched_yield touches no memory.
            unsafe { asm::enclos_emu_call(libc::SYS_sched_yield, 0, 0, 0) };
        }
        Lock(&self.changing)
    }

    /// Reads a SECINFO operand.
    fn secinfo(&self, address: u64) -> Result<[u8; 64], Fault> {
        self.state.secinfo_operand(address)?;
        let mut secinfo = [0; 64];
        self.settle(address, 1);
        // SAFETY: the target is ours.
        let copied = unsafe { asm::guarded_copy(secinfo.as_mut_ptr(), address as *const u8, 64) };
        if copied { Ok(secinfo) } else { Err(Fault::Page(address)) }
    }

    /// ENCLU\[EACCEPT\] with its operands RBX and RCX.
    pub(super) fn eaccept(
        &self,
        secinfo: u64,
        address: u64,
        threads: &EnclaveThreads,
    ) -> Result<Result<(), ErrorCode>, Fault> {
        self.require_sgx2()?;
        let secinfo = self.secinfo(secinfo)?;
        let outcome = self.state.eaccept(&secinfo, address, threads, || threads.tcs_is_sound(address))?;
        if outcome.is_ok() && secinfo[1] == PageType::Tcs as u8 {
            threads.admit_tcs(address);
        }
        Ok(outcome)
    }

    /// ENCLU\[EMODPE\] with its operands RBX and RCX.
    pub(super) fn emodpe(&self, secinfo: u64, address: u64) -> Result<(), Fault> {
        self.require_sgx2()?;
        self.state.emodpe(&self.secinfo(secinfo)?, address)
    }

    /// ENCLU\[EACCEPTCOPY\] with its operands RBX, RCX and RDX.
    pub(super) fn eacceptcopy(
        &self,
        secinfo: u64,
        address: u64,
        source: u64,
    ) -> Result<Result<(), ErrorCode>, Fault> {
        self.require_sgx2()?;
        let secinfo = self.secinfo(secinfo)?;
        self.settle(source, 1);
        self.state.eacceptcopy(&secinfo, address, source, |from, to| {
            let _lock = self.lock();
            let open = self.set(to, 1, libc::PROT_READ | libc::PROT_WRITE);
            let (from, target) = (self.memory.range(from, PAGE), self.memory.range(to, PAGE));
            // SAFETY: two pages of this enclave; what cannot be reached is noticed.
            let copied = open && unsafe { asm::guarded_copy(target, from, PAGE as usize) };
            self.set(to, 1, libc::PROT_NONE) && copied
        })
    }

    /// #GP(0) where the processor has no SGX2 (SDM vol. 3D, ENCLU: an unsupported leaf).
    fn require_sgx2(&self) -> Result<(), Fault> {
        if self.state.machine().sgx2 { Ok(()) } else { Err(Fault::GeneralProtection) }
    }

    /// How many SSA frames of a TCS lie in usable pages, which are accessible then.
    pub(super) fn usable_frames(&self, ossa: u64, nssa: u32) -> u32 {
        self.state.frames_within(ossa, nssa, |offset| self.settle(self.memory.base() + offset, 3))
    }

    /// ENCLS\[EAUG\].
    pub(super) fn eaug(&self, offset: u64, count: u64) -> Result<(), PlatformError> {
        self.kernel_requires_sgx2()?;
        // The memory is untouched, or was given back when the page was removed: zero, and not accessible.
        self.state.eaug(offset, count)?;
        self.prefer_huge_pages(offset, count);
        Ok(())
    }

    /// Lets the kernel take memory for a large piece in pages of 2 MiB: bringing, closing and freeing them one by one
    /// takes 4 KiB pages of 1 GiB a tenth of a second.
    fn prefer_huge_pages(&self, offset: u64, count: u64) {
        let at = self.memory.range(offset, count * PAGE) as u64;
        let (first, end) = (at.next_multiple_of(HUGE), (at + count * PAGE) / HUGE * HUGE);
        if first < end {
            // SAFETY: pages of this enclave, whose contents stay as they are. A kernel without huge pages refuses, which
            // changes nothing but the time that it takes.
            unsafe { libc::madvise(first as *mut _, (end - first) as usize, libc::MADV_HUGEPAGE) };
        }
    }

    /// ENCLS\[EMODPR\] of pages, one after another.
    pub(super) fn emodpr(
        &self,
        offset: u64,
        count: u64,
        permissions: SecinfoFlags,
        threads: &EnclaveThreads,
    ) -> Result<(), PlatformError> {
        self.kernel_requires_sgx2()?;
        let secinfo = Secinfo { flags: permissions, ..Secinfo::default() };
        let mut outcome = Ok(());
        let lock = self.lock();
        let mut run = Run::default();
        for page in (0..count).map(|i| offset.wrapping_add(i * PAGE)) {
            outcome = self.state.emodpr(page, &secinfo);
            if outcome.is_err() {
                break;
            }
            let left = self.state.epcm_entry(page).unwrap_or(SecinfoFlags::empty());
            run.push(page, protection_of(left), |at, n, protection| self.set(at, n, protection))?;
        }
        run.flush(|at, n, protection| self.set(at, n, protection))?;
        drop(lock);
        threads.pages_changed();
        outcome
    }

    /// ENCLS\[EMODT\] of pages, one after another.
    pub(super) fn emodt(
        &self,
        offset: u64,
        count: u64,
        page_type: PageType,
        threads: &EnclaveThreads,
    ) -> Result<(), PlatformError> {
        self.kernel_requires_sgx2()?;
        let secinfo = Secinfo { flags: page_type.into(), ..Secinfo::default() };
        let mut changed = 0;
        let mut outcome = Ok(());
        while changed < count && outcome.is_ok() {
            outcome = self.state.emodt(offset.wrapping_add(changed * PAGE), &secinfo);
            changed += u64::from(outcome.is_ok());
        }
        threads.pages_changed();
        if changed != 0 {
            self.close(offset, changed)?;
        }
        for page in (0..changed).map(|i| offset + i * PAGE) {
            threads.withdraw_tcs(self.memory.base() + page);
            if page_type == PageType::Tcs {
                let (tcs, is_sound) = self.describe_tcs(page)?;
                threads.prepare_tcs(&tcs, is_sound)?;
            }
        }
        outcome
    }

    /// What stands in a page that is becoming a TCS: nobody can change it any more.
    fn describe_tcs(&self, offset: u64) -> Result<(TcsDescription, bool), PlatformError> {
        let mut contents = [0; PAGE as usize];
        let _lock = self.lock();
        let copied = self.set(offset, 1, libc::PROT_READ)
            // SAFETY: one page of this enclave; the target is ours.
            && unsafe { asm::guarded_copy(contents.as_mut_ptr(), self.memory.range(offset, PAGE), PAGE as usize) };
        if !self.set(offset, 1, libc::PROT_NONE) || !copied {
            return Err(refused());
        }
        let is_sound = is_sound_tcs(&contents, self.state.secs().attributes.flags);
        Ok((describe(&self.state, &tcs_fields(offset, &contents)), is_sound))
    }

    /// ENCLS\[EREMOVE\] of pages, one after another.
    pub(super) fn eremove(
        &self,
        offset: u64,
        count: u64,
        threads: &EnclaveThreads,
    ) -> Result<(), PlatformError> {
        let mut removed = 0;
        let mut outcome = Ok(());
        while removed < count && outcome.is_ok() {
            let page = offset.wrapping_add(removed * PAGE);
            threads.withdraw_tcs(self.memory.base() + page);
            outcome = self.state.eremove(page, threads);
            removed += u64::from(outcome.is_ok());
        }
        threads.pages_changed();
        if removed != 0 {
            self.close(offset, removed)?;
            let at = self.memory.range(offset, removed * PAGE);
            // SAFETY: pages of this enclave that are not part of it any more.
            unsafe { libc::madvise(at.cast(), (removed * PAGE) as usize, libc::MADV_DONTNEED) };
        }
        outcome
    }

    /// Is the page one that the enclave has accepted to be trimmed?
    pub(super) fn is_trimmed(&self, offset: u64) -> bool {
        self.state.page(offset).is_some_and(|p| p.page_type == PageType::Trim)
    }

    fn kernel_requires_sgx2(&self) -> Result<(), PlatformError> {
        if self.state.machine().sgx2 {
            return Ok(());
        }
        Err(PlatformError::Unsupported {
            what: "dynamic memory (SGX2)".into(),
            cure: "build the image with profile = \"sgx1\"".into(),
        })
    }

    /// EXINFO in SSA frames?
    pub(super) fn has_exinfo(&self) -> bool {
        self.state.secs().miscselect.contains(Miscselect::EXINFO)
    }
}

/// Pages whose memory is made accessible at once, at most, to each side of the one that was touched: 1 GiB.
const MOST_SETTLED: usize = 1 << 18;

/// The kernel's huge pages.
const HUGE: u64 = 2 << 20;

struct Lock<'a>(&'a AtomicBool);

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Consecutive pages that get the same protection.
#[derive(Default)]
struct Run {
    offset: u64,
    count: u64,
    protection: i32,
}

impl Run {
    fn push(
        &mut self,
        page: u64,
        protection: i32,
        set: impl Fn(u64, u64, i32) -> bool,
    ) -> Result<(), PlatformError> {
        if self.count != 0 && (protection != self.protection || page != self.offset + self.count * PAGE) {
            self.flush(set)?;
        }
        if self.count == 0 {
            (self.offset, self.protection) = (page, protection);
        }
        self.count += 1;
        Ok(())
    }

    fn flush(&mut self, set: impl Fn(u64, u64, i32) -> bool) -> Result<(), PlatformError> {
        let done = self.count == 0 || set(self.offset, self.count, self.protection);
        self.count = 0;
        if done { Ok(()) } else { Err(refused()) }
    }
}

fn refused() -> PlatformError {
    PlatformError::Os {
        what: "changing the protection of enclave pages (vm.max_map_count limits how many runs there can be)",
        source: io::Error::from_raw_os_error(libc::ENOMEM),
    }
}

/// The leaf functions for the thread emulation.
pub(super) struct LeafFunctions(pub(super) std::sync::Arc<EnclavePages>);

impl LeafFunctions {
    /// The keys' functions read and write operands at once: their pages must be accessible.
    fn settle(&self, operands: [(u64, u32); 3]) {
        for (address, access) in operands {
            self.0.settle(address, access);
        }
    }
}

impl thread::Leaves for LeafFunctions {
    fn ereport(&self, targetinfo: u64, reportdata: u64, output: u64) -> Result<(), Fault> {
        self.settle([(targetinfo, 1), (reportdata, 1), (output, 2)]);
        // SAFETY: a thread is inside, so the enclave's pages are mapped with the permissions of its EPCM entries.
        unsafe { keys::ereport_operands(&self.0.state, targetinfo, reportdata, output) }
    }

    fn egetkey(&self, keyrequest: u64, output: u64) -> Result<Result<(), ErrorCode>, Fault> {
        self.settle([(keyrequest, 1), (output, 2), (output, 2)]);
        // SAFETY: as above.
        unsafe { keys::egetkey_operands(&self.0.state, keyrequest, output) }
    }

    fn eaccept(
        &self,
        secinfo: u64,
        page: u64,
        threads: &EnclaveThreads,
    ) -> Result<Result<(), ErrorCode>, Fault> {
        self.0.eaccept(secinfo, page, threads)
    }

    fn emodpe(&self, secinfo: u64, page: u64) -> Result<(), Fault> {
        self.0.emodpe(secinfo, page)
    }

    fn eacceptcopy(&self, secinfo: u64, page: u64, source: u64) -> Result<Result<(), ErrorCode>, Fault> {
        self.0.eacceptcopy(secinfo, page, source)
    }

    fn settle(&self, address: u64, access: u32) -> bool {
        self.0.settle(address, access)
    }

    fn is_valid(&self, address: u64) -> bool {
        self.0.state.epcm_entry(address.wrapping_sub(self.0.memory.base())).is_some()
    }

    fn usable_frames(&self, ossa: u64, nssa: u32) -> u32 {
        self.0.usable_frames(ossa, nssa)
    }
}

impl Inside for EnclaveThreads {
    fn oldest_entry(&self) -> Option<u16> {
        EnclaveThreads::oldest_entry(self)
    }
}
