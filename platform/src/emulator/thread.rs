//! Threads in and out of emulated enclaves: EENTER, ERESUME, EEXIT, asynchronous exits, TCS state.
//!
//! A TCS's architectural state lives in a [`TcsState`] outside the enclave (on hardware software cannot read it
//! either); SSA frames are real and lie where the TCS says. Each OS thread that enters has a [`ThreadContext`] just
//! below its signal stack, so that a signal handler finds it without thread-local storage.
//!
//! What EENTER must check about SSA frames is checked again only after pages of the enclave have changed. The host may
//! take pages away at any moment; memory of the enclave is therefore touched by code that survives that
//! ([`asm::guarded_copy`]).

use std::cell::Cell;
use std::io;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sgx_isa::ErrorCode;

pub(super) use super::keys::Fault;
use super::signal;
use super::transitions as asm;
use crate::{EENTER, EnterFunction, PlatformError};

/// What the thread emulation must know of an initialised enclave.
pub(super) struct EnclaveDescription {
    /// ELRANGE base.
    pub base: u64,
    /// ELRANGE size, a power of two.
    pub size: u64,
    /// SECS.ATTRIBUTES.XFRM.
    pub xfrm: u64,
    /// SECS.MISCSELECT.EXINFO.
    pub exinfo: bool,
    /// Bytes of one SSA frame.
    pub ssa_frame_bytes: u64,
    /// The TCS pages.
    pub tcs: Vec<TcsDescription>,
    /// The page below ELRANGE is reserved and may be used for the gate; false: every ENCLU traps.
    pub gate: bool,
    /// How many times ETRACK was executed.
    pub epoch: Arc<AtomicU32>,
    /// Leaf functions that are not about threads.
    pub leaves: Box<dyn Leaves>,
}

/// One TCS as it was added.
pub(super) struct TcsDescription {
    /// Linear address.
    pub address: u64,
    /// Offset of the first SSA frame.
    pub ossa: u64,
    /// Number of SSA frames.
    pub nssa: u32,
    /// Of those, from the first on, how many lie wholly in readable and writable regular pages.
    pub usable_frames: u32,
    /// Entry point offset.
    pub oentry: u64,
    /// FS base offset.
    pub ofsbase: u64,
    /// GS base offset.
    pub ogsbase: u64,
    /// FLAGS.DBGOPTIN.
    pub debug_opt_in: bool,
}

/// The ENCLU leaf functions that need the enclave's identity and the machine's keys. Operands are the guest's
/// addresses, unchecked.
pub(super) trait Leaves: Send + Sync {
    /// ENCLU\[EREPORT\].
    fn ereport(&self, targetinfo: u64, reportdata: u64, output: u64) -> Result<(), Fault>;
    /// ENCLU\[EGETKEY\]: the inner error goes to RAX, here and below.
    fn egetkey(&self, keyrequest: u64, output: u64) -> Result<Result<(), ErrorCode>, Fault>;
    /// ENCLU\[EACCEPT\]. Runs with the enclave's FS base in place, as does `settle`: no thread-local storage.
    fn eaccept(
        &self,
        secinfo: u64,
        page: u64,
        threads: &EnclaveThreads,
    ) -> Result<Result<(), ErrorCode>, Fault>;
    /// ENCLU\[EMODPE\].
    fn emodpe(&self, secinfo: u64, page: u64) -> Result<(), Fault>;
    /// ENCLU\[EACCEPTCOPY\].
    fn eacceptcopy(&self, secinfo: u64, page: u64, source: u64) -> Result<Result<(), ErrorCode>, Fault>;
    /// After an access that memory refused: is it permitted (SECINFO.FLAGS bits), and can it be tried again?
    fn settle(&self, address: u64, access: u32) -> bool;
    /// Is there a page at the address, in whatever state?
    fn is_valid(&self, address: u64) -> bool;
    /// How many SSA frames, from the first on, lie wholly in accessible pages.
    fn usable_frames(&self, ossa: u64, nssa: u32) -> u32;
}

/// How often threads crossed the boundary of one enclave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transitions {
    /// ENCLU\[EENTER\].
    pub eenter: u64,
    /// ENCLU\[ERESUME\].
    pub eresume: u64,
    /// Asynchronous exits.
    pub aex: u64,
}

/// An enclave that can be entered. Dropping it takes it out of the registry; no thread may be inside then.
pub(super) struct EnclaveThreads {
    pub(super) base: u64,
    pub(super) size: u64,
    pub(super) xfrm: u64,
    xsave_bytes: usize,
    exinfo: bool,
    ssa_frame_bytes: u64,
    pub(super) leaves: Box<dyn Leaves>,
    /// One word a page of ELRANGE: the `TcsState` of the TCS at that page.
    tcs_by_page: PageTable,
    /// One word a page of ELRANGE: the `TcsState` whose GS base lies at that page's start, if only one has it.
    tcs_by_gs: PageTable,
    gate: bool,
    /// ENCLU instructions were replaced: the enclave's entry code sets the FS base itself.
    patched: AtomicBool,
    /// How many times ETRACK was executed.
    epoch: Arc<AtomicU32>,
    /// Changes when pages have: what was found out about SSA frames is not true any more.
    generation: AtomicU64,
    /// A list of boxes. It only grows; they are never moved: their addresses are in the tables.
    states: AtomicPtr<TcsState>,
}

/// State of a TCS. Fields before `enclave` have fixed offsets: see `transitions`.
#[repr(C)]
pub(super) struct TcsState {
    /// FS base of the OS thread that is inside.
    pub(super) host_fs: u64,
    pub(super) host_gs: u64,
    /// The [`ThreadContext`] of the OS thread that is inside.
    pub(super) context: AtomicU64,
    /// Linear address of the entry point.
    pub(super) entry: u64,
    /// FS base at EENTER; 0: left as it is, because the enclave's entry code is known to set it.
    pub(super) fs: u64,
    pub(super) gs: u64,
    pub(super) aep: u64,
    /// TCS.STATE: [`INSIDE`] while a thread is inside, [`ENTERING`] in the moment before it is said since when, else 0.
    pub(super) busy: AtomicU32,
    pub(super) cssa: u32,
    /// For ERESUME: GPRSGX of the frame.
    pub(super) gpr: u64,
    /// For ERESUME: XSAVE area of the frame.
    pub(super) xsave: u64,
    pub(super) xfrm: u64,
    /// For ERESUME: RIP, CS, RFLAGS, RSP, SS.
    pub(super) iret: [u64; 5],
    enclave: *const EnclaveThreads,
    address: u64,
    /// Is the page a TCS now?
    is_tcs: AtomicBool,
    /// Would EACCEPT take the page for a TCS?
    is_sound: AtomicBool,
    /// Count of ETRACKs when the thread inside entered.
    entered_at: AtomicU32,
    /// Stack and frame pointer when the thread inside entered.
    host_stacks: (u64, u64),
    next: AtomicPtr<TcsState>,
    ossa: u64,
    nssa: u32,
    usable_frames: u32,
    /// The enclave's generation when `usable_frames` was found out.
    frames_seen: u64,
    debug_opt_in: bool,
    /// OSSA, OFSBASE and OGSBASE are page-aligned.
    aligned: bool,
    counts: [AtomicU64; 3],
    /// For EACCEPT by way of the gate.
    pub(super) vectors: Vectors,
}

/// An XSAVE area for x87, SSE, AVX and AVX-512 state, used by the gate's instructions only. Its header is zero but for
/// what XSAVE writes.
#[repr(C, align(64))]
pub(super) struct Vectors(core::cell::UnsafeCell<[u8; 2688]>);

/// An OS thread that enters enclaves. The first fields have fixed offsets: see `transitions`.
#[repr(C)]
pub(super) struct ThreadContext {
    pub(super) host_fs: u64,
    pub(super) host_gs: u64,
    /// Syscall User Dispatch selector (exclusive mode): 1 while inside.
    pub(super) selector: AtomicU8,
    /// The TCS this thread is inside with, or null.
    pub(super) current: AtomicPtr<TcsState>,
    /// The OS thread.
    tid: AtomicI32,
    /// ELRANGE for which call interception is armed.
    armed_base: u64,
    armed_size: u64,
    /// The enclave entered last, and the registry's generation then.
    cached: *const EnclaveThreads,
    cached_base: u64,
    cached_size: u64,
    cached_generation: u64,
}

/// First byte of the threads' arena; 0 before the first thread.
pub(super) static ARENA_START: AtomicUsize = AtomicUsize::new(0);
/// Its size in bytes; 0 before the first thread.
pub(super) static ARENA_SIZE: AtomicUsize = AtomicUsize::new(0);

const PAGE: u64 = 4096;
/// Bytes a thread: context, guard, signal stack. Signal frames are as large as the XSAVE area (11 KiB with AMX), and
/// other people's handlers run here too.
const SLOT: usize = 256 * 1024;
/// How many OS threads may have entered enclaves at once in one process.
const SLOTS: usize = 4096;
/// How many enclaves may exist at once in one process.
const MAX_ENCLAVES: usize = 1024;

static REGISTRY: [AtomicPtr<EnclaveThreads>; MAX_ENCLAVES] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_ENCLAVES];
/// Changes whenever an enclave goes, so that what threads cached about it is not used any more.
static GENERATION: AtomicU64 = AtomicU64::new(1);
/// Code and stack segment of user mode.
static SELECTORS: OnceLock<(u64, u64)> = OnceLock::new();

/// The function with the vDSO's semantics.
pub(super) fn enter_function() -> EnterFunction {
    asm::enclos_emu_enter
}

impl EnclaveThreads {
    /// Makes an initialised enclave enterable.
    ///
    /// # Errors
    /// When memory for its tables is not to be had, or there are too many enclaves.
    pub(super) fn register(description: EnclaveDescription) -> Result<Arc<Self>, PlatformError> {
        let d = description;
        let tcs_by_page = PageTable::new(d.size)?;
        let tcs_by_gs = PageTable::new(d.size)?;
        let mut enclave = Arc::new(Self {
            base: d.base,
            size: d.size,
            xfrm: d.xfrm,
            xsave_bytes: xsave_bytes(d.xfrm),
            exinfo: d.exinfo,
            ssa_frame_bytes: d.ssa_frame_bytes,
            leaves: d.leaves,
            tcs_by_page,
            tcs_by_gs,
            gate: false,
            patched: AtomicBool::new(false),
            epoch: d.epoch,
            generation: AtomicU64::new(0),
            states: AtomicPtr::default(),
        });
        let address: *const Self = Arc::as_ptr(&enclave);
        if d.gate
            && let Some(this) = Arc::get_mut(&mut enclave)
        {
            this.map_gate()?;
            this.gate = true;
        }
        for tcs in &d.tcs {
            // Two TCSs with one GS base cannot be told apart by it: neither gets the fast way.
            let is_unique = d.tcs.iter().filter(|o| o.ogsbase == tcs.ogsbase).count() == 1;
            let state = enclave.add_state(TcsState::new(address, d.base, d.xfrm, tcs), is_unique);
            state.is_tcs.store(true, Ordering::Release);
        }
        let free = REGISTRY.iter().find(|slot| {
            slot.compare_exchange(
                core::ptr::null_mut(),
                address.cast_mut(),
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok()
        });
        if free.is_none() {
            return Err(PlatformError::Unsupported {
                what: format!("more than {MAX_ENCLAVES} emulated enclaves in one process"),
                cure: "drop some first".into(),
            });
        }
        Ok(enclave)
    }

    /// Replaces ENCLU instructions that a two-byte NOP follows by jumps to the gate. Offsets from ELRANGE; those whose
    /// bytes are not `0F 01 D7 66 90` are left alone.
    pub(super) fn patch_enclu_sites(&self, offsets: &[u64], executable: impl Fn(u64) -> bool) {
        if !self.gate {
            return;
        }
        let mut patched = false;
        for &offset in offsets {
            // Both bytes' pages are made writable, so the site must not reach into a third page's permissions.
            if offset > self.size - 5 || offset % PAGE > PAGE - 5 {
                continue;
            }
            let site = self.base + offset;
            let distance = (self.base as i64 - PAGE as i64) - (site as i64 + 5);
            let Ok(distance) = i32::try_from(distance) else { continue };
            if !executable(offset) {
                continue;
            }
            // SAFETY: the five bytes lie in one mapped executable page of this enclave (just checked), and no thread
            // is inside yet: hints are given before the first entry.
            unsafe {
                if core::slice::from_raw_parts(site as *const u8, 5) != [0x0f, 0x01, 0xd7, 0x66, 0x90] {
                    continue;
                }
                let page = (site & !(PAGE - 1)) as *mut libc::c_void;
                if libc::mprotect(page, PAGE as usize, libc::PROT_READ | libc::PROT_WRITE) != 0 {
                    continue;
                }
                // Leaves that come back are called. They are told by the instruction before, `mov eax, leaf`; who gives
                // hints says that there is a stack then. EACCEPT comes in loops over many pages, so the gate has a way
                // of its own for it; the others trap there.
                let before = (site as *const u8).byte_sub(5);
                let comes_back = offset % PAGE >= 5
                    && matches!(core::slice::from_raw_parts(before, 5), [0xb8, leaf, 0, 0, 0] if COME_BACK.contains(leaf));
                let (opcode, distance) =
                    if comes_back { (0xe8, distance + asm::GATE_LEAF as i32) } else { (0xe9, distance) };
                let mut jump = [opcode, 0, 0, 0, 0];
                jump[1..].copy_from_slice(&distance.to_le_bytes());
                core::ptr::copy_nonoverlapping(jump.as_ptr(), site as *mut u8, 5);
                libc::mprotect(page, PAGE as usize, libc::PROT_READ | libc::PROT_EXEC);
            }
            patched = true;
        }
        if patched {
            self.patched.store(true, Ordering::Release);
            for state in self.states() {
                // SAFETY: a state of ours; no thread is inside yet, and this field is read at entries only.
                unsafe { (&raw const state.fs).cast_mut().write(0) };
            }
        }
    }

    /// All TCSs there ever were.
    fn states(&self) -> impl Iterator<Item = &TcsState> {
        let mut next = self.states.load(Ordering::Acquire);
        core::iter::from_fn(move || {
            // SAFETY: the list's boxes live as long as the enclave.
            let state = unsafe { next.as_ref() }?;
            next = state.next.load(Ordering::Acquire);
            Some(state)
        })
    }

    /// Puts a TCS into the list and the tables.
    fn add_state(&self, state: TcsState, has_own_gs: bool) -> &TcsState {
        let (page, gs) = (state.address - self.base, state.gs.wrapping_sub(self.base));
        let state = Box::into_raw(Box::new(state));
        let mut first = self.states.load(Ordering::Acquire);
        loop {
            // SAFETY: the box is ours until it is in the list, and never goes before the enclave does.
            unsafe { (*state).next.store(first, Ordering::Relaxed) };
            match self.states.compare_exchange_weak(first, state, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => first = now,
            }
        }
        self.tcs_by_page.set(page, state as u64);
        if has_own_gs && gs.is_multiple_of(PAGE) && gs < self.size {
            self.tcs_by_gs.set(gs, state as u64);
        }
        // SAFETY: as above.
        unsafe { &*state }
    }

    /// The state of the TCS at this address, if there ever was one.
    fn state_at(&self, address: u64) -> Option<&TcsState> {
        let offset = address.wrapping_sub(self.base);
        if offset >= self.size || !offset.is_multiple_of(PAGE) {
            return None;
        }
        // SAFETY: words of the table are null or addresses of the list's boxes.
        unsafe { (self.tcs_by_page.get(offset) as *const TcsState).as_ref() }
    }

    /// A page is becoming a TCS with these contents; it is one when the enclave has accepted that.
    ///
    /// # Errors
    /// When a thread is still inside with what was a TCS there before.
    pub(super) fn prepare_tcs(&self, tcs: &TcsDescription, is_sound: bool) -> Result<(), PlatformError> {
        let shares_gs = self.states().any(|s| {
            s.address != tcs.address && s.is_tcs.load(Ordering::Acquire) && s.gs == self.base + tcs.ogsbase
        });
        let mut new = TcsState::new(self, self.base, self.xfrm, tcs);
        if self.patched.load(Ordering::Acquire) {
            new.fs = 0;
        }
        // The frames may not be there yet: look at the first entry.
        new.usable_frames = 0;
        new.is_sound.store(is_sound, Ordering::Release);
        let Some(old) = self.state_at(tcs.address) else {
            self.add_state(new, !shares_gs);
            return Ok(());
        };
        if old.busy.compare_exchange(0, ENTERING, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return Err(PlatformError::Fault {
                leaf: "EMODT",
                fault: "#GP(0)",
                rule: "a thread is still inside with the TCS that was at this address",
            });
        }
        new.busy = AtomicU32::new(ENTERING);
        new.next = AtomicPtr::new(old.next.load(Ordering::Acquire));
        for (i, count) in old.counts.iter().enumerate() {
            new.counts[i] = AtomicU64::new(count.load(Ordering::Relaxed));
        }
        let (before, now) = (old.gs.wrapping_sub(self.base), new.gs.wrapping_sub(self.base));
        if before != now {
            let has_place = |gs: u64| gs.is_multiple_of(PAGE) && gs < self.size;
            if has_place(before) && self.tcs_by_gs.get(before) == core::ptr::from_ref(old) as u64 {
                self.tcs_by_gs.set(before, 0);
            }
            if has_place(now) && !shares_gs {
                self.tcs_by_gs.set(now, core::ptr::from_ref(old) as u64);
            }
        }
        // SAFETY: a box of the list that nobody is inside with: `busy` is ours. Others read atomics of it only, each of
        // which is a valid value before and after.
        unsafe { core::ptr::from_ref(old).cast_mut().write(new) };
        old.busy.store(0, Ordering::Release);
        Ok(())
    }

    /// Would EACCEPT take the page at this address for a TCS?
    pub(super) fn tcs_is_sound(&self, address: u64) -> bool {
        self.state_at(address).is_some_and(|s| s.is_sound.load(Ordering::Acquire))
    }

    /// The enclave has accepted the TCS at this address.
    pub(super) fn admit_tcs(&self, address: u64) {
        if let Some(state) = self.state_at(address) {
            state.is_tcs.store(true, Ordering::Release);
        }
    }

    /// The page at this address is no TCS any more, if it was one.
    pub(super) fn withdraw_tcs(&self, address: u64) {
        if let Some(state) = self.state_at(address) {
            state.is_tcs.store(false, Ordering::Release);
            state.is_sound.store(false, Ordering::Release);
        }
    }

    /// Pages of the enclave have changed.
    pub(super) fn pages_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// The count of ETRACKs at which the thread that has been inside longest entered.
    pub(super) fn oldest_entry(&self) -> Option<u16> {
        let now = self.epoch.load(Ordering::SeqCst) as u16;
        let inside = self.states().filter(|s| s.busy.load(Ordering::SeqCst) == INSIDE);
        // Who entered after `now` was read is younger than none.
        let age =
            inside.map(|s| now.wrapping_sub(s.entered_at.load(Ordering::SeqCst) as u16) as i16).max()?;
        Some(now.wrapping_sub(age as u16))
    }

    /// Makes every thread that entered before the last ETRACK leave, by an asynchronous exit. False when one does not.
    pub(super) fn interrupt_all(&self) -> bool {
        let epoch = self.epoch.load(Ordering::SeqCst);
        let begun = Instant::now();
        loop {
            let mut is_clear = true;
            for state in self.states() {
                let entered = state.entered_at.load(Ordering::SeqCst) as u16;
                let is_old = (entered.wrapping_sub(epoch as u16) as i16) < 0;
                let busy = state.busy.load(Ordering::SeqCst);
                // Which ETRACK it enters after is not said yet; in a moment it is.
                is_clear &= busy != ENTERING;
                if busy == INSIDE && is_old {
                    is_clear = false;
                    let context = state.context.load(Ordering::Relaxed) as *const ThreadContext;
                    // SAFETY: null, or in the arena of contexts, which is never unmapped.
                    if let Some(context) = unsafe { context.as_ref() } {
                        signal::interrupt(context.tid.load(Ordering::Relaxed));
                    }
                }
            }
            if is_clear || begun.elapsed() > Duration::from_secs(2) {
                return is_clear;
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Transitions so far, over all TCSs.
    pub(super) fn transitions(&self) -> Transitions {
        let sum = |i: usize| self.states().map(|s| s.counts[i].load(Ordering::Relaxed)).sum();
        Transitions { eenter: sum(0), eresume: sum(1), aex: sum(2) }
    }

    /// Is the address in ELRANGE, or in the gate page below it?
    fn covers(&self, address: u64) -> bool {
        let below = if self.gate { PAGE } else { 0 };
        address.wrapping_sub(self.base - below) < self.size + below
    }

    fn map_gate(&self) -> Result<(), PlatformError> {
        let at = (self.base - PAGE) as *mut libc::c_void;
        let os = |what| PlatformError::Os { what, source: io::Error::last_os_error() };
        // SAFETY: the caller of `register` owns the page below ELRANGE; it is mapped anew, filled with position
        // independent code and its parameters, and made executable.
        unsafe {
            let p = libc::mmap(
                at,
                PAGE as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            );
            if p == libc::MAP_FAILED {
                return Err(os("mapping the gate page"));
            }
            let code = &raw const asm::enclos_emu_gate;
            let len = (&raw const asm::enclos_emu_gate_end).offset_from_unsigned(code);
            core::ptr::copy_nonoverlapping(code, p.cast(), len);
            let parameters = [
                self.base,
                self.size,
                self.tcs_by_gs.words as u64,
                asm::enclos_emu_eexit as *const () as u64,
                accept as *const () as u64,
            ];
            p.byte_add(asm::GATE_PARAMETERS).cast::<[u64; 5]>().write(parameters);
            if libc::mprotect(p, PAGE as usize, libc::PROT_READ | libc::PROT_EXEC) != 0 {
                return Err(os("making the gate page executable"));
            }
        }
        Ok(())
    }
}

impl Drop for EnclaveThreads {
    fn drop(&mut self) {
        let me = core::ptr::from_mut(self);
        for slot in &REGISTRY {
            let _ = slot.compare_exchange(me, core::ptr::null_mut(), Ordering::AcqRel, Ordering::Relaxed);
        }
        GENERATION.fetch_add(1, Ordering::AcqRel);
        let mut next = *self.states.get_mut();
        while !next.is_null() {
            // SAFETY: the list's boxes are the enclave's own, and nobody is inside any more.
            let state = unsafe { Box::from_raw(next) };
            next = state.next.load(Ordering::Relaxed);
        }
    }
}

// SAFETY: the raw pointers are to boxes the enclave owns and to itself; TCS states are changed only by the thread that
// holds `busy`.
unsafe impl Send for EnclaveThreads {}
// SAFETY: as above.
unsafe impl Sync for EnclaveThreads {}

/// What [`prepare`] returns in RAX and RDX: the TCS state, or null and `vector | error code << 16`.
#[repr(C)]
pub(super) struct Prepared {
    state: *mut TcsState,
    fault: u64,
}

/// The checks and effects of EENTER and ERESUME up to where registers are loaded.
///
/// # Safety
/// Called by the code in `transitions` only.
pub(super) unsafe extern "C" fn prepare(leaf: u32, tcs: u64, rsp: u64, rbp: u64, aep: u64) -> Prepared {
    let faulted = |fault: u64| Prepared { state: core::ptr::null_mut(), fault };
    let Ok(context) = thread_context() else { return faulted(VECTOR_GP) };
    // SAFETY: the context belongs to this thread.
    let context = unsafe { &mut *context };
    match enter_state(context, leaf, tcs, rsp, rbp, aep) {
        Ok(state) => Prepared { state, fault: 0 },
        Err(Fault::GeneralProtection) => faulted(VECTOR_GP),
        // Error code: the SGX bit (15), set for faults found by EPCM checks (SDM vol. 3A, 4.7).
        Err(Fault::Page(_)) => faulted(VECTOR_PF | 0x8000 << 16),
    }
}

/// What [`accept`] returns for what only the trap can do.
const BY_TRAP: u64 = 1 << 32;

/// EACCEPT by way of the gate: what goes to RAX, or [`BY_TRAP`].
///
/// # Safety
/// Called by the gate only, with the state whose GS base the thread has. The FS base is the enclave's: nothing here may
/// use thread-local storage.
pub(super) unsafe extern "C" fn accept(state: *const TcsState, secinfo: u64, page: u64) -> u64 {
    // SAFETY: the gate found the state in the enclave's table; a thread is inside with it, so the enclave lives.
    let enclave = unsafe { (*state).enclave() };
    match enclave.leaves.eaccept(secinfo, page, enclave) {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code as u64,
        Err(_) => BY_TRAP,
    }
}

/// ENCLU leaves after which the enclave goes on: EREPORT, EGETKEY, EACCEPT, EMODPE, EACCEPTCOPY.
const COME_BACK: [u8; 5] = [0, 1, 5, 6, 7];

pub(super) const VECTOR_UD: u64 = 6;
pub(super) const VECTOR_GP: u64 = 13;
pub(super) const VECTOR_PF: u64 = 14;

/// A thread is inside with the TCS, since the ETRACK that its `entered_at` says.
const INSIDE: u32 = 1;
/// The TCS is taken, for a thread that is about to enter or to be made anew: nobody is inside yet, and `entered_at` is that
/// of the thread before, which must not be counted.
const ENTERING: u32 = 2;

/// EENTER (SDM vol. 3D, 37.4) and ERESUME: checks, marks the TCS busy, saves what the exit needs.
pub(super) fn enter_state(
    context: &mut ThreadContext,
    leaf: u32,
    tcs: u64,
    rsp: u64,
    rbp: u64,
    aep: u64,
) -> Result<*mut TcsState, Fault> {
    let gp = Err(Fault::GeneralProtection);
    if !tcs.is_multiple_of(PAGE) || !canonical(aep) {
        return gp;
    }
    let Some(enclave) = context.enclave_of(tcs) else { return Err(Fault::Page(tcs)) };
    let word = enclave.tcs_by_page.get(tcs - enclave.base);
    if word == 0 {
        return Err(Fault::Page(tcs));
    }
    let state = word as *mut TcsState;
    // SAFETY: the word is the address of one of the enclave's states; they live as long as the enclave. Only the
    // atomic is touched until the TCS is ours.
    let busy = unsafe { &(*state).busy };
    // One thread may not be inside twice; hardware cannot even express it.
    if !context.current.load(Ordering::Relaxed).is_null() {
        return gp;
    }
    if busy.compare_exchange(0, ENTERING, Ordering::SeqCst, Ordering::Relaxed).is_err() {
        return gp;
    }
    // SAFETY: `busy` is ours now.
    let s = unsafe { &mut *state };
    // One fence is enough: nobody looks at it before `busy` says so.
    s.entered_at.store(enclave.epoch.load(Ordering::SeqCst), Ordering::Relaxed);
    s.busy.store(INSIDE, Ordering::SeqCst);
    if !s.is_tcs.load(Ordering::Acquire) {
        s.busy.store(0, Ordering::Release);
        return Err(Fault::Page(tcs));
    }
    s.host_stacks = (rsp, rbp);
    let result = if leaf == EENTER { s.check_enter(enclave, rsp, rbp) } else { s.check_resume(enclave) };
    let result = result.and_then(|()| context.arm(enclave).map_err(|_| Fault::GeneralProtection));
    if let Err(fault) = result {
        s.busy.store(0, Ordering::Release);
        return Err(fault);
    }
    if leaf != EENTER {
        s.cssa -= 1;
    }
    let count = &s.counts[if leaf == EENTER { 0 } else { 1 }];
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    s.host_fs = context.host_fs;
    s.host_gs = context.host_gs;
    s.aep = aep;
    s.context.store(core::ptr::from_mut(context) as u64, Ordering::Relaxed);
    if signal::exclusive_dispatch() {
        context.selector.store(1, Ordering::Relaxed);
    }
    context.current.store(state, Ordering::Relaxed);
    Ok(state)
}

impl TcsState {
    fn new(enclave: *const EnclaveThreads, base: u64, xfrm: u64, t: &TcsDescription) -> Self {
        let (cs, ss) = *SELECTORS.get_or_init(user_selectors);
        Self {
            host_fs: 0,
            host_gs: 0,
            context: AtomicU64::new(0),
            entry: base.wrapping_add(t.oentry),
            fs: base.wrapping_add(t.ofsbase),
            gs: base.wrapping_add(t.ogsbase),
            aep: 0,
            busy: AtomicU32::new(0),
            cssa: 0,
            gpr: 0,
            xsave: 0,
            xfrm,
            iret: [0, cs, 0, 0, ss],
            enclave,
            address: t.address,
            is_tcs: AtomicBool::new(false),
            is_sound: AtomicBool::new(false),
            entered_at: AtomicU32::new(0),
            host_stacks: (0, 0),
            next: AtomicPtr::default(),
            ossa: t.ossa,
            nssa: t.nssa,
            usable_frames: t.usable_frames,
            frames_seen: 0,
            debug_opt_in: t.debug_opt_in,
            aligned: (t.ossa | t.ofsbase | t.ogsbase).is_multiple_of(PAGE),
            counts: [const { AtomicU64::new(0) }; 3],
            vectors: Vectors(core::cell::UnsafeCell::new([0; 2688])),
        }
    }

    /// The enclave of this TCS.
    pub(super) fn enclave(&self) -> &EnclaveThreads {
        // SAFETY: the enclave owns this state.
        unsafe { &*self.enclave }
    }

    pub(super) fn xsave_bytes(&self) -> usize {
        self.enclave().xsave_bytes
    }

    pub(super) fn debug_opt_in(&self) -> bool {
        self.debug_opt_in
    }

    /// Is the address in this enclave's ELRANGE or gate?
    pub(super) fn covers(&self, address: u64) -> bool {
        self.enclave().covers(address)
    }

    fn frame(&self, index: u32) -> u64 {
        let enclave = self.enclave();
        enclave.base.wrapping_add(self.ossa).wrapping_add(u64::from(index) * enclave.ssa_frame_bytes)
    }

    fn gpr_of(&self, index: u32) -> *mut Gprsgx {
        (self.frame(index) + self.enclave().ssa_frame_bytes - size_of::<Gprsgx>() as u64) as *mut Gprsgx
    }

    /// EENTER: a free SSA frame must be there, and it receives URSP and URBP.
    fn check_enter(&mut self, enclave: &EnclaveThreads, rsp: u64, rbp: u64) -> Result<(), Fault> {
        if !self.aligned
            || self.cssa >= self.nssa
            || !canonical(self.entry)
            || !canonical(self.fs)
            || !canonical(self.gs)
        {
            return Err(Fault::GeneralProtection);
        }
        self.check_frame(enclave, self.cssa)?;
        if self.entry.wrapping_sub(enclave.base) >= enclave.size {
            return Err(Fault::GeneralProtection);
        }
        // SAFETY: two words within the frame; if it has gone meanwhile, that is noticed.
        let stored = unsafe { asm::guarded_store(&raw mut (*self.gpr_of(self.cssa)).ursp, rsp, rbp) };
        if stored { Ok(()) } else { Err(Fault::Page(self.frame(self.cssa))) }
    }

    /// Does the SSA frame lie in readable and writable pages?
    fn check_frame(&mut self, enclave: &EnclaveThreads, index: u32) -> Result<(), Fault> {
        let generation = enclave.generation.load(Ordering::SeqCst);
        if self.frames_seen != generation || index >= self.usable_frames {
            self.usable_frames = enclave.leaves.usable_frames(self.ossa, self.nssa);
            self.frames_seen = generation;
        }
        if index >= self.usable_frames {
            return Err(Fault::Page(self.frame(index)));
        }
        Ok(())
    }

    /// ERESUME: the frame below CSSA is what is loaded; the enclave may have changed it.
    fn check_resume(&mut self, enclave: &EnclaveThreads) -> Result<(), Fault> {
        let gp = Err(Fault::GeneralProtection);
        if self.cssa == 0 {
            return gp;
        }
        let index = self.cssa - 1;
        self.check_frame(enclave, index)?;
        self.xsave = self.frame(index);
        self.gpr = self.gpr_of(index) as u64;
        let mut gpr = Gprsgx::default();
        let (mut mxcsr, mut header) = (0_u32, [0_u64; 8]);
        // SAFETY: the targets are ours; the sources lie within the frame.
        let is_there = unsafe {
            asm::guarded_copy((&raw mut gpr).cast(), self.gpr as *const u8, size_of::<Gprsgx>())
                && asm::guarded_copy((&raw mut mxcsr).cast(), (self.xsave + 24) as *const u8, 4)
                && asm::guarded_copy(header.as_mut_ptr().cast(), (self.xsave + 512) as *const u8, 64)
        };
        if !is_there {
            return Err(Fault::Page(self.xsave));
        }
        // What XRSTOR of a standard-format area would fault on (SDM vol. 1, 13.8.1).
        if header[0] & !enclave.xfrm != 0 || header[1..].iter().any(|w| *w != 0) || mxcsr & !0xffff != 0 {
            return gp;
        }
        if !canonical(gpr.fsbase) || !canonical(gpr.gsbase) || !canonical(gpr.rip) || !canonical(gpr.rsp) {
            return gp;
        }
        // Flags that user mode may set; IF is always on, bit 1 is always 1.
        let flags = gpr.rflags & 0x0024_4dd5 | 0x202;
        (self.iret[0], self.iret[2], self.iret[3]) = (gpr.rip, flags, gpr.rsp);
        Ok(())
    }
}

/// The general registers' part of an SSA frame (SDM vol. 3D, 34.9.1.1).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Gprsgx {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 … R15.
    pub registers: [u64; 4],
    pub rsp: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8_to_r15: [u64; 8],
    pub rflags: u64,
    pub rip: u64,
    pub ursp: u64,
    pub urbp: u64,
    pub exitinfo: u32,
    pub reserved: [u8; 3],
    pub aexnotify: u8,
    pub fsbase: u64,
    pub gsbase: u64,
}
const _: () = assert!(size_of::<Gprsgx>() == 184);

/// What an asynchronous exit records.
pub(super) struct Interrupted<'a> {
    /// The registers; URSP, URBP and EXITINFO are filled in here.
    pub gpr: Gprsgx,
    /// The XSAVE area of the signal frame, standard format.
    pub xsave: &'a [u8],
    /// Vector, error code, address of an exception that EXITINFO reports.
    pub exception: Option<Exception>,
}

/// An exception inside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exception {
    /// SDM vol. 3A, 6.3.1.
    pub vector: u64,
    /// Error code.
    pub code: u64,
    /// CR2 for page faults.
    pub address: u64,
}

/// AEX (SDM vol. 3D, 35.3): fills the SSA frame, advances CSSA, frees the TCS. Returns URSP and URBP.
///
/// # Safety
/// `state` must be the TCS the thread of `context` is inside with.
pub(super) unsafe fn aex(
    context: &ThreadContext,
    state: *mut TcsState,
    from: &Interrupted<'_>,
) -> (u64, u64) {
    // SAFETY: the thread is inside, so `busy` is its.
    let s = unsafe { &mut *state };
    let enclave = s.enclave();
    let frame = s.frame(s.cssa);
    let slot = s.gpr_of(s.cssa);
    let before = saved_registers(s, s.cssa);
    let reported = from.exception.filter(|e| match e.vector {
        VECTOR_GP | VECTOR_PF => enclave.exinfo,
        0 | 1 | 3 | 5 | VECTOR_UD | 16 | 17 | 19 => true,
        _ => false,
    });
    let mut gpr = from.gpr;
    (gpr.ursp, gpr.urbp, gpr.aexnotify) = (before.ursp, before.urbp, before.aexnotify);
    gpr.exitinfo = reported.map_or(0, |e| {
        let kind = if e.vector == 3 { 6 } else { 3 };
        1 << 31 | kind << 8 | e.vector as u32
    });
    let present = from.xsave.get(512..520).and_then(|b| b.try_into().ok()).map_or(3, u64::from_le_bytes);
    let header = [present & enclave.xfrm, 0, 0, 0, 0, 0, 0, 0];
    let n = enclave.xsave_bytes.min(from.xsave.len());
    // SAFETY: sizes are within the frame (ECREATE checked its size against XFRM's). Where the host has taken the frame
    // away meanwhile, what would go there is lost, and ERESUME will fault.
    unsafe {
        asm::guarded_copy(frame as *mut u8, from.xsave.as_ptr(), n);
        asm::guarded_copy((frame + 512) as *mut u8, header.as_ptr().cast(), 64);
        asm::guarded_copy(slot.cast(), (&raw const gpr).cast(), size_of::<Gprsgx>());
        if let Some(e) = reported.filter(|e| enclave.exinfo && matches!(e.vector, VECTOR_GP | VECTOR_PF)) {
            // EXINFO (SDM vol. 3D, 34.9.1.2): MADDR, ERRCD, just below GPRSGX.
            let address = if e.vector == VECTOR_PF { e.address } else { 0 };
            asm::guarded_store(slot.byte_sub(16).cast(), address, e.code & 0xffff_ffff);
        }
    }
    let stacks = (gpr.ursp, gpr.urbp);
    let count = &s.counts[2];
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    s.cssa += 1;
    leave(context, s);
    stacks
}

/// GPRSGX of an SSA frame; where it is not there any more, one with the stack pointers of the last entry.
fn saved_registers(s: &TcsState, index: u32) -> Gprsgx {
    let mut gpr = Gprsgx::default();
    // SAFETY: the target is ours; the source lies within the frame.
    let is_there = unsafe {
        asm::guarded_copy((&raw mut gpr).cast(), s.gpr_of(index).cast_const().cast(), size_of::<Gprsgx>())
    };
    if !is_there {
        (gpr.ursp, gpr.urbp) = s.host_stacks;
    }
    gpr
}

/// Takes an ERESUME back whose frame was not left yet. Returns URSP and URBP.
///
/// # Safety
/// As [`aex`], and no instruction of the enclave was executed since ERESUME.
pub(super) unsafe fn undo_resume(context: &ThreadContext, state: *mut TcsState) -> (u64, u64) {
    // SAFETY: the thread is inside, so `busy` is its.
    let s = unsafe { &mut *state };
    let gpr = saved_registers(s, s.cssa);
    s.cssa += 1;
    let count = &s.counts[1];
    count.store(count.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    leave(context, s);
    (gpr.ursp, gpr.urbp)
}

/// The thread is outside from here on, and the TCS free. (The FS and GS bases are the caller's affair.)
pub(super) fn leave(context: &ThreadContext, state: &TcsState) {
    context.selector.store(0, Ordering::Relaxed);
    context.current.store(core::ptr::null_mut(), Ordering::Relaxed);
    state.busy.store(0, Ordering::Release);
}

impl TcsState {
    pub(super) fn tcs_address(&self) -> u64 {
        self.address
    }
}

impl ThreadContext {
    /// The enclave in whose ELRANGE the address lies.
    fn enclave_of(&mut self, address: u64) -> Option<&'static EnclaveThreads> {
        let generation = GENERATION.load(Ordering::Acquire);
        if self.cached_generation != generation || address.wrapping_sub(self.cached_base) >= self.cached_size
        {
            let found =
                REGISTRY.iter().map(|s| s.load(Ordering::Acquire)).filter(|p| !p.is_null()).find(|p| {
                    // SAFETY: registered enclaves are alive; one that is dropped while a thread tries to enter it breaks
                    // the contract of `Initialized`.
                    let e = unsafe { &**p };
                    address.wrapping_sub(e.base) < e.size
                })?;
            // SAFETY: as above.
            let e = unsafe { &*found };
            self.cached = found;
            (self.cached_base, self.cached_size, self.cached_generation) = (e.base, e.size, generation);
        }
        // SAFETY: the generation did not change since it was found, so it was not dropped; the reference is used only
        // until the entry is over.
        Some(unsafe { &*self.cached })
    }

    /// Arms the interception of `syscall` instructions inside ELRANGE for this thread.
    /// Interception is not armed any more.
    pub(super) fn forget_dispatch(&mut self) {
        (self.armed_base, self.armed_size) = (0, 0);
    }

    fn arm(&mut self, enclave: &EnclaveThreads) -> io::Result<()> {
        if (self.armed_base, self.armed_size) == (enclave.base, enclave.size) {
            return Ok(());
        }
        signal::arm_dispatch(enclave.base, enclave.size, &self.selector)?;
        (self.armed_base, self.armed_size) = (enclave.base, enclave.size);
        Ok(())
    }
}

thread_local! {
    /// For speed without a destructor; [`OWNED`] has it.
    static CONTEXT: Cell<*mut ThreadContext> = const { Cell::new(core::ptr::null_mut()) };
    static OWNED: Cell<Option<Slot>> = const { Cell::new(None) };
}

/// The calling thread's context, made if it has none.
///
/// # Errors
/// When the kernel lacks what emulation needs, or the arena is full.
pub(super) fn thread_context() -> Result<*mut ThreadContext, PlatformError> {
    let context = CONTEXT.get();
    if !context.is_null() {
        return Ok(context);
    }
    signal::activate()?;
    let slot = Slot::claim()?;
    let context = slot.set_up()?;
    OWNED.set(Some(slot));
    CONTEXT.set(context);
    Ok(context)
}

/// A thread's place in the arena, given back when the thread ends.
struct Slot(usize);

static FREE_SLOTS: Mutex<Vec<usize>> = Mutex::new(Vec::new());

impl Slot {
    fn claim() -> Result<Self, PlatformError> {
        let mut free = FREE_SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
        if ARENA_SIZE.load(Ordering::Acquire) == 0 {
            let size = SLOT * SLOTS;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: a new mapping, nothing of ours is touched.
            let at = unsafe { libc::mmap(core::ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0) };
            if at == libc::MAP_FAILED {
                return Err(PlatformError::Os {
                    what: "reserving signal stacks",
                    source: io::Error::last_os_error(),
                });
            }
            ARENA_START.store(at as usize, Ordering::Release);
            ARENA_SIZE.store(size, Ordering::Release);
            free.extend((0..SLOTS).rev());
        }
        free.pop().map(Slot).ok_or_else(|| PlatformError::Unsupported {
            what: format!("more than {SLOTS} threads in emulated enclaves"),
            cure: "use fewer OS threads".into(),
        })
    }

    fn set_up(&self) -> Result<*mut ThreadContext, PlatformError> {
        let at = ARENA_START.load(Ordering::Acquire) + self.0 * SLOT;
        let stack = at + asm::CONTEXT_TO_STACK;
        let os = |what| PlatformError::Os { what, source: io::Error::last_os_error() };
        // SAFETY: the slot is ours alone; the page after the context stays inaccessible as the stack's guard.
        unsafe {
            let rw = libc::PROT_READ | libc::PROT_WRITE;
            let stack_len = SLOT - asm::CONTEXT_TO_STACK;
            if libc::mprotect(at as *mut _, PAGE as usize, rw) != 0
                || libc::mprotect(stack as *mut _, stack_len, rw) != 0
            {
                return Err(os("making a signal stack"));
            }
            let context = at as *mut ThreadContext;
            let (host_fs, host_gs);
            core::arch::asm!("rdfsbase {}", "rdgsbase {}", out(reg) host_fs, out(reg) host_gs);
            context.write(ThreadContext {
                host_fs,
                host_gs,
                selector: AtomicU8::new(0),
                current: AtomicPtr::new(core::ptr::null_mut()),
                tid: AtomicI32::new(libc::gettid()),
                armed_base: 0,
                armed_size: 0,
                cached: core::ptr::null(),
                cached_base: 0,
                cached_size: 0,
                cached_generation: 0,
            });
            let new = libc::stack_t { ss_sp: stack as *mut _, ss_flags: 0, ss_size: stack_len };
            if libc::sigaltstack(&raw const new, core::ptr::null_mut()) != 0 {
                return Err(os("setting the signal stack"));
            }
            // By this signal threads are interrupted to track changes of pages.
            let mut interruption = core::mem::zeroed();
            libc::sigemptyset(&raw mut interruption);
            libc::sigaddset(&raw mut interruption, libc::SIGSYS);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const interruption, core::ptr::null_mut());
            Ok(context)
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let at = ARENA_START.load(Ordering::Acquire) + self.0 * SLOT;
        CONTEXT.set(core::ptr::null_mut());
        // SAFETY: the thread is ending and outside of any enclave; if the signal stack is still ours it is taken out
        // of use before another thread gets the slot. Interception is disarmed because its selector goes too.
        unsafe {
            let mut old: libc::stack_t = core::mem::zeroed();
            libc::sigaltstack(core::ptr::null(), &raw mut old);
            if old.ss_sp as usize == at + asm::CONTEXT_TO_STACK {
                let off =
                    libc::stack_t { ss_sp: core::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
                libc::sigaltstack(&raw const off, core::ptr::null_mut());
            }
            signal::disarm_dispatch();
            libc::madvise(at as *mut _, SLOT, libc::MADV_DONTNEED);
        }
        FREE_SLOTS.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
    }
}

/// One word a page of ELRANGE; memory appears when touched.
struct PageTable {
    words: *mut u64,
    bytes: usize,
}

impl PageTable {
    fn new(enclave_size: u64) -> Result<Self, PlatformError> {
        let bytes = ((enclave_size / PAGE) * 8).max(PAGE) as usize;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping.
        let at = unsafe { libc::mmap(core::ptr::null_mut(), bytes, rw, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(PlatformError::Os {
                what: "mapping an enclave's page table",
                source: io::Error::last_os_error(),
            });
        }
        Ok(Self { words: at.cast(), bytes })
    }

    fn set(&self, offset: u64, word: u64) {
        debug_assert!(((offset / PAGE) as usize) < self.bytes / 8);
        // SAFETY: offsets are below the enclave's size.
        unsafe { &*self.words.add((offset / PAGE) as usize).cast::<AtomicU64>() }
            .store(word, Ordering::Release);
    }

    fn get(&self, offset: u64) -> u64 {
        debug_assert!(((offset / PAGE) as usize) < self.bytes / 8);
        // SAFETY: as above.
        unsafe { &*self.words.add((offset / PAGE) as usize).cast::<AtomicU64>() }.load(Ordering::Acquire)
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.words.cast(), self.bytes) };
    }
}

pub(super) fn canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}

/// Size of a standard-format XSAVE area for these components (CPUID leaf 0DH).
fn xsave_bytes(xfrm: u64) -> usize {
    let mut size = 576;
    for i in 2..63 {
        if xfrm >> i & 1 != 0 {
            let r = core::arch::x86_64::__cpuid_count(0xd, i);
            size = size.max((r.ebx + r.eax) as usize);
        }
    }
    size
}

fn user_selectors() -> (u64, u64) {
    let (cs, ss): (u16, u16);
    // SAFETY: reads two segment registers.
    unsafe { core::arch::asm!("mov {0:x}, cs", "mov {1:x}, ss", out(reg) cs, out(reg) ss) };
    (u64::from(cs), u64::from(ss))
}
