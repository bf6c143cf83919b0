//! Threads: the data page of each, the states a hostile host may not confuse, and starting cloned threads.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use enclos::abi::{ThreadSeed, exit, hostcall, op, refusal, thread as region};

use crate::calls::signal::{self, Own, Signals};
use crate::entry::{self, Registers};
use crate::host::Errno;
use crate::lock::SpinLock;
use crate::memory::PAGE;
use crate::pages::Gone;

/// What a thread is doing, from the point of view of who may enter its TCS.
pub mod state {
    /// No thread: START or THREAD may enter.
    pub const FREE: u32 = 0;
    /// Inside: nobody may (hardware forbids it as well).
    pub const RUNNING: u32 = 1;
    /// Waiting for the answer to a host call: RETURN, or NESTED_CALL where allowed.
    pub const HOST_CALL: u32 = 2;
    /// Parked in `next_call`: CALL or SHUTDOWN.
    pub const PARKED: u32 = 3;
}

/// A thread's data page; GS base points here. Fields up to `return_to` are used by `entry`.
#[repr(C)]
pub struct Thread {
    pub seed: ThreadSeed,
    pub state: u32,
    /// 1 while in a host call on top of which calls may nest.
    pub nestable: u32,
    pub return_rip: u64,
    pub host_rsp: u64,
    pub host_rbp: u64,
    pub exception_rip: u64,
    pub exception_rsp: u64,
    pub exception_rbp: u64,
    /// RSI, RDX, R8, R9 of the last entry that answered a switch.
    pub args: [u64; 4],
    pub wait_rsp: u64,
    pub app_fs: u64,
    pub program_rsp: u64,
    pub return_to: u64,
    /// Top of the runtime's stack; set before the application runs.
    pub stack_top: u64,
    /// Untrusted frame.
    pub frame: u64,
    /// Depth of nested calls.
    pub depth: u32,
    /// The application's thread identifier while one runs here.
    pub tid: u32,
    /// `CLONE_CHILD_CLEARTID` address, or 0.
    pub clear_tid: u64,
    /// Futex wait: address, or 0. Under the futex lock.
    pub futex: u64,
    /// Futex wait: bit set.
    pub futex_bits: u32,
    /// Futex wait: somebody woke this thread.
    pub futex_woken: AtomicBool,
    /// Requests to the host by Linux calls.
    pub requests: u64,
    /// Pages that the host was asked to add after a page fault: address, number.
    pub awaited: (u64, u64),
    /// Signals, as other threads see them: by [`Thread::signals`] only.
    signals: Signals,
    /// Signals, as only this thread sees them.
    pub own_signals: Own,
}

const _: () = assert!(size_of::<Thread>() <= (region::APPLICATION_FS - region::DATA) as usize);

/// Threads the image has; set at start.
static COUNT: AtomicU32 = AtomicU32::new(0);
/// Of these, regions that are part of the image.
static PRESENT: AtomicU32 = AtomicU32::new(0);
static AREA: AtomicU64 = AtomicU64::new(0);
static FRAMES: AtomicU64 = AtomicU64::new(0);

/// Sets up what all threads share: `count` regions, of which the first `present` are there. Before [`release`].
pub fn initialise(area: u64, count: u32, present: u32, frames: u64) {
    AREA.store(area, Ordering::Relaxed);
    COUNT.store(count, Ordering::Relaxed);
    PRESENT.store(present, Ordering::Relaxed);
    for region in REGIONS.iter().take((present as usize).min(REGIONS.len())) {
        region.store(region_state::WHOLE, Ordering::Relaxed);
    }
    FRAMES.store(frames, Ordering::Relaxed);
}

/// Lets other threads in.
pub fn release() {
    unsafe extern "C" {
        static enclos_ready: AtomicU32;
    }
    // SAFETY: a word of `entry`'s, only ever accessed atomically or by single loads.
    unsafe { enclos_ready.store(1, Ordering::Release) }
}

/// Number of threads the image can have.
pub fn count() -> u32 {
    COUNT.load(Ordering::Relaxed)
}

impl Thread {
    /// The calling thread's data.
    pub fn current() -> &'static mut Thread {
        let at: u64;
        // SAFETY: GS base is the thread's data page from entry to exit (arch_prctl refuses to change it), and only the
        // thread itself uses its data, but for the futex fields, which are under a lock or atomic.
        unsafe {
            core::arch::asm!("rdgsbase {}", out(reg) at, options(nomem, nostack, preserves_flags));
            &mut *(at as *mut Thread)
        }
    }

    /// Says who may enter from now on, and whether calls may nest. `entry` reads both by way of GS, behind the
    /// compiler's back: to it they are stores through a unique reference that nobody reads before the next ones, which
    /// it drops. Hence volatile.
    pub fn set_state(&mut self, state: u32, nestable: bool) {
        // SAFETY: fields of this structure.
        unsafe {
            (&raw mut self.nestable).write_volatile(u32::from(nestable));
            (&raw mut self.state).write_volatile(state);
        }
    }

    /// What other threads may look at and change too.
    pub fn signals(&self) -> &'static Signals {
        signals_of(self.seed.index as u32)
    }

    /// Fields that depend on where the enclave was loaded.
    pub fn prepare(&mut self) {
        let at = core::ptr::from_mut(self) as u64;
        self.stack_top = at - region::DATA + region::STACK_END;
        self.frame = FRAMES.load(Ordering::Relaxed) + self.seed.index * enclos::abi::FRAME_SIZE;
    }
}

/// Indices of the threads whose regions are there.
pub fn all() -> impl Iterator<Item = u32> {
    let is_whole = |word: &AtomicU32| word.load(Ordering::Acquire) & region_state::WHOLE != 0;
    (0..count()).zip(&REGIONS).filter(move |(_, word)| is_whole(word)).map(|(index, _)| index)
}

/// Data of the thread with this index, which is one of [`all`]; for the futex table.
pub fn at(index: u32) -> *mut Thread {
    debug_assert!(index < count());
    (AREA.load(Ordering::Relaxed) + u64::from(index) * region::STRIDE + region::DATA) as *mut Thread
}

/// The signals of the thread with this index, which is one of [`all`].
pub fn signals_of(index: u32) -> &'static Signals {
    // SAFETY: made of atomics, in a page that stays once it is there.
    unsafe { &(*at(index)).signals }
}

/// The identifier of the thread that runs with this index, which is one of [`all`]; 0: none.
pub fn tid_of(index: u32) -> u32 {
    // SAFETY: a word that its thread changes when it starts and ends.
    unsafe { (&raw const (*at(index)).tid).read_volatile() }
}

/// Sends signals to a thread that was cloned and has not begun to run; `false`: there is no such thread.
pub fn send_to_pending(tid: u32, signals: u64) -> bool {
    let mut pending = PENDING.lock();
    let found = pending.iter_mut().find(|p| p.used && p.tid == tid);
    found.map(|p| p.signals |= signals).is_some()
}

struct Pending {
    used: bool,
    registers: Registers,
    fs: u64,
    clear_tid: u64,
    tid: u32,
    /// Signals it blocks, as its maker does.
    mask: u64,
    /// Signals sent to it.
    signals: u64,
}

const MAX_PENDING: usize = 64;
static PENDING: SpinLock<[Pending; MAX_PENDING]> = SpinLock::new(
    [const {
        Pending {
            used: false,
            registers: Registers {
                r15: 0,
                r14: 0,
                r13: 0,
                r12: 0,
                rbp: 0,
                rbx: 0,
                r10: 0,
                r9: 0,
                r8: 0,
                rdx: 0,
                rsi: 0,
                rdi: 0,
                rax: 0,
                rip: 0,
                rsp: 0,
                flags: 0,
            },
            fs: 0,
            clear_tid: 0,
            tid: 0,
            mask: 0,
            signals: 0,
        }
    }; MAX_PENDING],
);
static NEXT_TID: AtomicU32 = AtomicU32::new(2);

const CLONE_SETTLS: u64 = 0x8_0000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
const CLONE_CHILD_SETTID: u64 = 0x100_0000;
/// Flags without which it is not a thread: VM, FS, FILES, SIGHAND, THREAD.
const CLONE_THREAD_FLAGS: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000;

/// clone(2) for threads.
pub fn clone(r: &Registers) -> Result<u64, Errno> {
    spawn(r, [r.rdi, r.rsi, r.rdx, r.r10, r.r8])
}

/// clone3(2) for threads. What a later Linux added to its structure must be zero.
pub fn clone3(r: &Registers) -> Result<u64, Errno> {
    const KNOWN: usize = 8;
    let (at, size) = (r.rdi, r.rsi);
    if size < 8 * KNOWN as u64 {
        return Err(Errno::INVAL);
    }
    if size > crate::memory::PAGE {
        return Err(Errno(7)); // E2BIG
    }
    let bytes = crate::calls::own_bytes(at, size)?;
    // SAFETY: checked to be the program's.
    let (words, rest) = unsafe {
        let rest = core::slice::from_raw_parts(bytes.add(8 * KNOWN), size as usize - 8 * KNOWN);
        (bytes.cast::<[u64; KNOWN]>().read_unaligned(), rest)
    };
    if rest.iter().any(|b| *b != 0) {
        return Err(Errno(7)); // E2BIG
    }
    let [flags, _, child_tid, parent_tid, exit_signal, stack, stack_size, tls] = words;
    if exit_signal != 0 || stack == 0 {
        return Err(Errno::INVAL);
    }
    spawn(r, [flags, stack.wrapping_add(stack_size), parent_tid, child_tid, tls])
}

/// Remembers the registers and asks the host to enter a free TCS.
fn spawn(r: &Registers, [flags, stack, parent_tid, child_tid, tls]: [u64; 5]) -> Result<u64, Errno> {
    if flags & CLONE_THREAD_FLAGS != CLONE_THREAD_FLAGS || stack == 0 {
        return Err(Errno::NOSYS);
    }
    let me = Thread::current();
    let fs = if flags & CLONE_SETTLS != 0 { tls } else { entry_fs() };
    let tid = NEXT_TID.fetch_add(1, Ordering::Relaxed) & 0x3fff_ffff;
    let clear_tid = if flags & CLONE_CHILD_CLEARTID != 0 { child_tid } else { 0 };
    let slot = {
        let mut pending = PENDING.lock();
        let Some((i, p)) = pending.iter_mut().enumerate().find(|(_, p)| !p.used) else {
            return Err(Errno::AGAIN);
        };
        let registers = Registers { rsp: stack, ..*r };
        *p = Pending { used: true, registers, fs, clear_tid, tid, mask: me.signals().mask(), signals: 0 };
        i
    };
    // SAFETY: the program passed these addresses for the kernel to write; a bad one faults like the program itself.
    unsafe {
        if flags & CLONE_PARENT_SETTID != 0 {
            (parent_tid as *mut u32).write(tid);
        }
        if flags & CLONE_CHILD_SETTID != 0 {
            (child_tid as *mut u32).write(tid);
        }
    }
    let mut answer = crate::host::call_keeping(me, hostcall::SPAWN, 0, 0, 0);
    // A thread is over for the program a moment before its TCS is free for the host, and a scope of threads is left when
    // the last has done its work, not when it is gone. Where there is no other place, that moment is waited for.
    let mut may_grow = crate::pages::are_dynamic();
    let mut left = MOMENTS;
    for round in 0..MOST_MOMENTS {
        if answer == 0 || left == 0 {
            break;
        }
        left -= 1;
        if ENDING.load(Ordering::Relaxed) != 0 {
            left = left.max(MOMENTS_AFTER);
        }
        let grown = match may_grow && !one_comes_free() {
            true => add_region(me),
            false => Err(Errno::AGAIN),
        };
        // EAGAIN is of this moment: threads on their way out hold all regions, and may take some apart as they go.
        may_grow &= matches!(grown, Ok(()) | Err(Errno::AGAIN));
        if grown.is_err() {
            crate::host::call_keeping(me, hostcall::SLEEP, 20_000 << (round / 8).min(9), 0, 0);
        }
        answer = crate::host::call_keeping(me, hostcall::SPAWN, 0, 0, 0);
    }
    // What seemed to come free did not.
    if answer < 0 && may_grow && add_region(me).is_ok() {
        answer = crate::host::call_keeping(me, hostcall::SPAWN, 0, 0, 0);
    }
    if answer < 0 {
        let mut pending = PENDING.lock();
        // The host may have refused and entered nevertheless; then the thread runs and the refusal is a lie.
        if pending[slot].used && pending[slot].tid == tid {
            pending[slot].used = false;
            return Err(Errno::AGAIN);
        }
    }
    Ok(u64::from(tid))
}

/// How often a thread that is being made waits for the place of another: a third of a second in all.
const MOMENTS: u32 = 96;
/// After a thread was seen on its way out: 164 ms. On a busy machine, taking memory apart takes its time.
const MOMENTS_AFTER: u32 = 16;
/// In all, whatever is seen: 2 seconds.
const MOST_MOMENTS: u32 = 264;

/// Threads on their way out.
static ENDING: AtomicU32 = AtomicU32::new(0);

/// Are there more thread regions without a thread than threads that wait for one, the caller's included?
fn one_comes_free() -> bool {
    let waiting = PENDING.lock().iter().filter(|p| p.used).count();
    all().filter(|index| tid_of(*index) == 0).count() >= waiting
}

/// Most thread regions that an image can have.
const MAX_REGIONS: usize = 1024;

/// Which pages of each region are there (a bit a page), and whether it is being made or whole.
static REGIONS: [AtomicU32; MAX_REGIONS] = [const { AtomicU32::new(0) }; MAX_REGIONS];

/// In a word of [`REGIONS`], next to pages that are no guards (page 0 and the last are).
mod region_state {
    /// A thread is making it, or taking it apart.
    pub const BEING_MADE: u32 = 1;
    /// It has a TCS.
    pub const WHOLE: u32 = 1 << 31;
}

/// Runs of pages of a region that are no guards: first, number.
const REGION_RUNS: [(u64, u64); 3] = [
    (region::STACK / PAGE, (region::STACK_END - region::STACK) / PAGE),
    (region::EXCEPTION_STACK / PAGE, (region::EXCEPTION_STACK_END - region::EXCEPTION_STACK) / PAGE),
    (region::DATA / PAGE, 2 + (region::NSSA * region::SSA_FRAME_PAGES) as u64),
];

/// Makes another thread region: stacks, data, SSA frames and TCS, as the packer makes those of the image.
///
/// # Errors
/// EAGAIN when the image permits no more, ENOMEM when the host gives no pages. What it gave is used the next time.
fn add_region(me: &Thread) -> Result<(), Errno> {
    let all = REGIONS.iter().take(count() as usize).enumerate();
    let mine = |word: &AtomicU32| {
        word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |is| {
            (is & (region_state::BEING_MADE | region_state::WHOLE) == 0)
                .then_some(is | region_state::BEING_MADE)
        })
        .is_ok()
    };
    let (index, word) = all.into_iter().find(|(_, word)| mine(word)).ok_or(Errno::AGAIN)?;
    if let Err(e) = fill_region(index as u64, word, me.seed.info_offset) {
        // With all its pages there, it is the TCS that failed: in what state that page is, nobody knows.
        let pages = REGION_RUNS.iter().map(|(_, pages)| *pages as u32).sum::<u32>();
        if (word.load(Ordering::Acquire) & !region_state::BEING_MADE).count_ones() < pages {
            word.fetch_and(!region_state::BEING_MADE, Ordering::AcqRel);
        }
        return Err(e);
    }
    // Before anybody can be inside: who waits there is to be found.
    word.store(region_state::WHOLE, Ordering::Release);
    // What the host makes of this shows when it is asked for a thread.
    crate::host::call_keeping(Thread::current(), hostcall::THREAD_READY, index as u64, 0, 0);
    Ok(())
}

fn fill_region(index: u64, word: &AtomicU32, info_offset: u64) -> Result<(), Errno> {
    let at = AREA.load(Ordering::Relaxed) + index * region::STRIDE;
    for (first, pages) in REGION_RUNS {
        // A page is never accepted twice: those that are there from an attempt before are skipped.
        for page in (first..first + pages).filter(|p| word.load(Ordering::Acquire) >> p & 1 == 0) {
            let rest =
                (page..first + pages).take_while(|p| word.load(Ordering::Acquire) >> p & 1 == 0).count();
            let (there, outcome) = crate::pages::bring(at + page * PAGE, rest as u64);
            let bits = ((1_u64 << there) - 1) << page;
            word.fetch_or(bits as u32, Ordering::AcqRel);
            outcome?;
        }
    }
    let base = entry::enclave_base();
    let data_offset = at + region::DATA - base;
    let seed = ThreadSeed { index, data_offset, info_offset };
    // The fields of a TCS by byte offset (SDM vol. 3D, 34.8): OSSA, NSSA, OENTRY, OFSBASE, OGSBASE, the limits.
    let fields: [(u64, u64); 6] = [
        (16, at + region::SSA - base),
        (24, u64::from(region::NSSA) << 32),
        (32, entry::enclos_entry as *const () as u64 - base),
        (48, at + region::INITIAL_FS - base),
        (56, data_offset),
        (64, 0xfff << 32 | 0xfff),
    ];
    // SAFETY: pages that were just accepted: zero, writable, and nobody else's before the TCS is there.
    unsafe {
        ((at + region::DATA) as *mut ThreadSeed).write(seed);
        for (offset, value) in fields {
            ((at + region::TCS + offset) as *mut u64).write(value);
        }
    }
    crate::pages::make_tcs(at + region::TCS)
}

/// Regions without a thread that are kept for the next ones.
const KEPT: usize = 2;

/// Gives the regions of threads that have ended back to the host, but for [`KEPT`].
fn remove_idle_regions() {
    // Not those that others are taking apart: with them counted, several threads that end at once would keep fewer.
    let is_whole = |index: u32| {
        REGIONS.get(index as usize).is_some_and(|w| w.load(Ordering::Acquire) == region_state::WHOLE)
    };
    let is_idle = |index: &u32| {
        // SAFETY: as in [`tid_of`]; the data page stays.
        let is_free = unsafe { (&raw const (*at(*index)).state).read_volatile() } == state::FREE;
        is_free && tid_of(*index) == 0 && is_whole(*index)
    };
    let mut idle = all().filter(is_idle).count();
    let present = PRESENT.load(Ordering::Relaxed);
    for index in all().filter(|index| *index >= present) {
        if idle <= KEPT {
            break;
        }
        if is_idle(&index) && remove_region(index) {
            idle -= 1;
        }
    }
}

/// Gives the region of a thread that has ended back to the host. Its data page stays: others may be looking at it.
///
/// Whether somebody is in there after all, only the CPU knows: it lets the TCS go when nobody is, nor can come back.
fn remove_region(index: u32) -> bool {
    let Some(word) = REGIONS.get(index as usize) else { return false };
    let claimed = region_state::WHOLE | region_state::BEING_MADE;
    if word.compare_exchange(region_state::WHOLE, claimed, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return false;
    }
    let ask = |number| crate::host::call_keeping(Thread::current(), number, u64::from(index), 0, 0);
    // A thread that was cloned meanwhile may be about to enter it. Until that is settled it is to be found there.
    if ask(hostcall::THREAD_RETIRES) != 0 {
        word.store(region_state::WHOLE, Ordering::Release);
        return false;
    }
    let start = AREA.load(Ordering::Relaxed) + u64::from(index) * region::STRIDE;
    // The TCS and what follows it first.
    let runs = [
        (region::TCS / PAGE, 1 + (region::NSSA * region::SSA_FRAME_PAGES) as u64),
        REGION_RUNS[0],
        REGION_RUNS[1],
    ];
    let mut there = 1_u32 << (region::DATA / PAGE);
    let mut is_known = true;
    for (first, pages) in runs {
        let (mut gone, mut is_tcs_there) = (0, false);
        crate::pages::send_back(start + first * PAGE, pages, |i, count, outcome| match outcome {
            Gone::Yes => gone += count,
            Gone::No => {
                there |= 1 << (first + i);
                is_tcs_there |= first + i == region::TCS / PAGE;
            }
            Gone::Unknown => is_known = false,
        });
        if is_tcs_there && gone == 0 && is_known {
            // The host will not: all is as it was.
            word.store(region_state::WHOLE, Ordering::Release);
            ask(hostcall::THREAD_READY);
            return false;
        }
        if is_tcs_there || first == region::TCS / PAGE && !is_known {
            // A TCS without frames, or nobody knows what: it is never used again.
            word.store(region_state::BEING_MADE, Ordering::Release);
            return false;
        }
    }
    // SAFETY: nobody is in there, and others look at these words only.
    unsafe {
        (&raw mut (*at(index)).tid).write_volatile(0);
        (&raw mut (*at(index)).state).write_volatile(state::FREE);
    }
    word.store(if is_known { there } else { there | region_state::BEING_MADE }, Ordering::Release);
    true
}

/// Entry of [`op::THREAD`]: runs a thread that waits to be started, if there is one.
pub unsafe extern "C" fn run_pending() -> ! {
    let me = Thread::current();
    let next = {
        let mut pending = PENDING.lock();
        // Oldest first.
        pending.iter_mut().filter(|p| p.used).min_by_key(|p| p.tid).map(|p| {
            p.used = false;
            // Under the lock, so that whoever sends it a signal finds it here or there.
            if !crate::ended() {
                me.tid = p.tid;
                signal::start(me, p.mask, p.signals);
            }
            (p.registers, p.fs, p.clear_tid)
        })
    };
    let Some((registers, fs, clear_tid)) = next.filter(|_| !crate::ended()) else {
        me.set_state(state::FREE, false);
        let reason = if crate::ended() { refusal::ENDED } else { refusal::NO_THREAD };
        // SAFETY: nothing of this entry is left behind.
        unsafe { entry::enclos_leave(exit::REFUSED, reason, 0) }
    };
    me.prepare();
    me.set_state(state::RUNNING, false);
    me.clear_tid = clear_tid;
    me.depth = 0;
    // SAFETY: registers of a clone call: the program's own stack and code.
    unsafe { entry::enclos_start_thread(&raw const registers, fs) }
}

/// exit(2): ends the thread and frees its TCS.
pub fn end(me: &mut Thread) -> ! {
    ENDING.fetch_add(1, Ordering::Relaxed);
    if crate::pages::are_dynamic() && !crate::ended() {
        remove_idle_regions();
    }
    // First: whoever waits for its end may make another thread at once, which is to find the region without one.
    me.tid = 0;
    if me.clear_tid != 0 {
        // SAFETY: the program registered this word to be cleared when the thread ends.
        unsafe { (*(me.clear_tid as *const AtomicU32)).store(0, Ordering::SeqCst) };
        crate::calls::futex::wake(me.clear_tid, u32::MAX, u32::MAX);
    }
    ENDING.fetch_sub(1, Ordering::Relaxed);
    me.set_state(state::FREE, false);
    // SAFETY: the thread is over; its runtime stack is free for the next.
    unsafe { entry::enclos_leave(exit::THREAD_END, 0, 0) }
}

/// The calling thread's FS base.
pub fn entry_fs() -> u64 {
    let fs: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("rdfsbase {}", out(reg) fs, options(nomem, nostack, preserves_flags)) };
    fs
}

const _: () = assert!(op::START == 1 && op::THREAD == 2);
