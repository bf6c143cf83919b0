//! Entering the enclave: the one place where registers cross, and how a thread that is inside is taken out again.
//!
//! [`enter`] wraps the platform's [`EnterFunction`]: an enclave may leave anything in the registers that a function
//! must preserve (general registers, MXCSR, x87 control word), so they are saved here.
//!
//! # Taking a thread out
//! A thread inside may never come back. It is taken out by a signal ([`interrupt_signal`]): whatever the platform, a
//! handler that runs after an asynchronous exit sees RIP at the asynchronous exit pointer with RAX = 3 (ERESUME),
//! RBX = TCS and RCX = RIP (SDM vol. 3D, 36.4.1 and the vDSO's code). It then makes the thread go on at the end of
//! [`enter`] instead of ERESUME, which reports [`Left::TakenOut`]. The state inside stays in the SSA frame and is lost.
//!
//! The signal is repeated until it has had its effect, so it does not matter that it may come at a moment when it has
//! none (between the check for a deadline and EENTER, say).

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, Once, OnceLock, PoisonError, Weak};
use std::time::Duration;

use enclos_platform::{EENTER, EEXIT, ERESUME, EnterFunction, Run};

/// What goes into the enclave and what comes out: the registers that carry arguments.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Registers {
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) rdx: u64,
    pub(crate) r8: u64,
    pub(crate) r9: u64,
}

/// How a thread came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// By EEXIT: the registers are the enclave's.
    Exit,
    /// By an exception inside: it may be handled inside, then resumed.
    Exception,
    /// EENTER or ERESUME itself faulted.
    NotEntered { vector: u16 },
    /// Taken out because of a deadline, or because the enclave has ended. Its state is lost.
    TakenOut,
    /// The platform refused with this error number.
    Refused(i32),
}

/// EENTER or ERESUME.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaf {
    Enter,
    Resume,
}

/// What one entry needs besides the registers.
pub(crate) struct Entry<'a> {
    pub(crate) function: EnterFunction,
    pub(crate) tcs: u64,
    /// Has the enclave ended? Then the thread is taken out.
    pub(crate) ended: &'a AtomicBool,
}

/// Enters the enclave and returns when the thread leaves it.
///
/// # Safety
/// The TCS must be one of an initialised enclave that lives until this returns, this OS thread must be prepared for
/// it, and `run` must be the caller's alone, made by [`Run::new`] for this TCS.
#[inline]
pub(crate) unsafe fn enter(entry: &Entry<'_>, leaf: Leaf, registers: &mut Registers, run: *mut Run) -> Left {
    let mut frame =
        Frame { anchor: UnsafeCell::new(0), tcs: entry.tcs, ended: entry.ended, previous: std::ptr::null() };
    let code = match leaf {
        Leaf::Enter => EENTER,
        Leaf::Resume => ERESUME,
    };
    let result = THREAD.with(|t| {
        frame.previous = t.frame.load(Ordering::Relaxed);
        t.frame.store((&raw const frame).cast_mut(), Ordering::Relaxed);
        // SAFETY: by this function's contract; the frame lives until the function returns.
        let result = unsafe { enclos_host_enter(entry.function, code, registers, run, frame.anchor.get()) };
        t.frame.store(frame.previous.cast_mut(), Ordering::Relaxed);
        result
    });
    if result == TAKEN_OUT {
        return Left::TakenOut;
    }
    if result != 0 {
        return Left::Refused(result);
    }
    // SAFETY: the run structure is the caller's alone.
    let run = unsafe { &*run };
    match run.function {
        EEXIT => Left::Exit,
        EENTER => Left::NotEntered { vector: run.exception_vector },
        _ => Left::Exception,
    }
}

/// Has the deadline of the calling thread passed?
#[inline]
pub(crate) fn is_expired() -> bool {
    THREAD.with(|t| t.expired.load(Ordering::Relaxed))
}

/// The calling thread's id as the kernel knows it.
#[inline]
pub(crate) fn thread_id() -> i32 {
    THREAD.with(|t| match t.tid.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: gettid has no preconditions.
            let tid = unsafe { libc::gettid() };
            t.tid.store(tid, Ordering::Relaxed);
            tid
        }
        tid => tid,
    })
}

/// The deadline that the calling thread works under: CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn deadline() -> Option<u64> {
    match THREAD.with(|t| t.deadline.load(Ordering::Relaxed)) {
        0 => None,
        at => Some(at),
    }
}

/// A deadline for what the calling thread does until this is dropped. An earlier one outside of it stays in force.
pub(crate) struct Deadline {
    number: u64,
    outer: u64,
}

impl Deadline {
    /// Sets the deadline `limit` from now.
    pub(crate) fn set(limit: Duration) -> Self {
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX / 2);
        let at = monotonic_ns().saturating_add(limit).max(1);
        let outer = THREAD.with(|t| {
            let outer = t.deadline.load(Ordering::Relaxed);
            let at = if outer != 0 { at.min(outer) } else { at };
            t.deadline.store(at, Ordering::Relaxed);
            outer
        });
        Self { number: watchdog().add(at), outer }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        watchdog().remove(self.number);
        THREAD.with(|t| {
            t.deadline.store(self.outer, Ordering::Relaxed);
            if self.outer == 0 || monotonic_ns() < self.outer {
                t.expired.store(false, Ordering::Relaxed);
            }
        });
    }
}

/// An enclave that has ended, and whose threads must come out.
pub(crate) trait Evict: Send + Sync {
    /// Ids of the OS threads that may still be inside; empty when there are none left.
    fn threads_inside(&self) -> Vec<i32>;
}

/// Takes all threads out of an enclave that has ended: in the background, until none is seen any more several times in
/// a row. A thread that was about to enter when the enclave ended shows only then.
pub(crate) fn evict(enclave: Weak<dyn Evict>) {
    watchdog().evict(enclave);
}

/// The signal that takes threads out. A real-time signal that the C library does not use; programs that use many must
/// leave this one alone.
pub fn interrupt_signal() -> i32 {
    libc::SIGRTMIN() + 11
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

pub(crate) fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours; async-signal-safe.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What the signal handler needs to know about its thread. Only the thread itself and handlers on it use this; the
/// atomics compile to plain moves.
struct Thread {
    /// The innermost entry, or null.
    frame: AtomicPtr<Frame>,
    /// 0: none.
    deadline: AtomicU64,
    expired: AtomicBool,
    tid: AtomicI32,
}

thread_local! {
    static THREAD: Thread = const {
        Thread {
            frame: AtomicPtr::new(std::ptr::null_mut()),
            deadline: AtomicU64::new(0),
            expired: AtomicBool::new(false),
            tid: AtomicI32::new(0),
        }
    };
}

/// One entry, on the stack of [`enter`].
struct Frame {
    /// RSP in `enclos_host_enter`: where to go on when the thread is taken out.
    anchor: UnsafeCell<u64>,
    tcs: u64,
    ended: *const AtomicBool,
    previous: *const Frame,
}

extern "C" fn on_interrupt(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    THREAD.with(|t| {
        let deadline = t.deadline.load(Ordering::Relaxed);
        let expired = deadline != 0 && monotonic_ns() >= deadline;
        if expired {
            t.expired.store(true, Ordering::Relaxed);
        }
        let frame = t.frame.load(Ordering::Relaxed);
        if frame.is_null() {
            return;
        }
        // SAFETY: entries take themselves off the list before they go; `ended` outlives the entry.
        let (frame, ended) = unsafe { (&*frame, (*(*frame).ended).load(Ordering::Acquire)) };
        if !expired && !ended {
            return;
        }
        // SAFETY: the kernel passes the context of the interrupted code, which is this handler's until it returns.
        let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        let inside = registers[libc::REG_RAX as usize] == i64::from(ERESUME)
            && registers[libc::REG_RIP as usize] == registers[libc::REG_RCX as usize]
            && registers[libc::REG_RBX as usize] as u64 == frame.tcs;
        if inside {
            // SAFETY: the thread is inside by this entry, so the anchor was written before.
            registers[libc::REG_RSP as usize] = unsafe { frame.anchor.get().read_volatile() } as i64;
            registers[libc::REG_RIP as usize] = enclos_host_taken_out as *const () as i64;
        }
    });
}

/// Installs the handler. Once a process; cheap after that.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: zero is a valid sigaction; the handler is async-signal-safe: const-initialised thread-locals without
        // destructors, clock_gettime, and stores.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_interrupt as *const () as usize;
            // No SA_RESTART: waits of host calls are to end early.
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(interrupt_signal(), &raw const action, std::ptr::null_mut());
        }
    });
}

/// How long after one signal the next is sent when the first had no effect yet.
const REPEAT_NS: u64 = 1_000_000;

/// The thread that sends the signals. It sleeps while nothing is due.
struct Watchdog {
    state: Mutex<Watched>,
    changed: Condvar,
}

#[derive(Default)]
struct Watched {
    /// By number: when to signal next, and whom.
    deadlines: BTreeMap<u64, (u64, i32)>,
    next_number: u64,
    /// With how often none of its threads was seen in a row.
    ended: Vec<(Weak<dyn Evict>, u32)>,
    /// When the thread wakes by itself.
    wakes_at: u64,
}

fn watchdog() -> &'static Watchdog {
    static WATCHDOG: OnceLock<&'static Watchdog> = OnceLock::new();
    WATCHDOG.get_or_init(|| {
        let dog: &'static Watchdog =
            Box::leak(Box::new(Watchdog { state: Mutex::default(), changed: Condvar::new() }));
        // Without it deadlines have no effect; spawning fails only when the process is out of threads or memory.
        std::thread::Builder::new()
            .name("enclos-watchdog".into())
            .stack_size(128 * 1024)
            .spawn(move || dog.run())
            .expect("the operating system grants one more thread");
        dog
    })
}

impl Watchdog {
    fn add(&self, at: u64) -> u64 {
        install();
        let tid = thread_id();
        let mut state = self.lock();
        let number = state.next_number;
        state.next_number += 1;
        state.deadlines.insert(number, (at, tid));
        if at < state.wakes_at {
            self.changed.notify_one();
        }
        number
    }

    fn remove(&self, number: u64) {
        self.lock().deadlines.remove(&number);
    }

    fn evict(&self, enclave: Weak<dyn Evict>) {
        install();
        self.lock().ended.push((enclave, 0));
        self.changed.notify_one();
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            let now = monotonic_ns();
            let mut next = u64::MAX;
            for (at, tid) in state.deadlines.values_mut() {
                if *at <= now {
                    // The thread is alive: it removes its entry before it ends.
                    signal(*tid);
                    *at = now + REPEAT_NS;
                }
                next = next.min(*at);
            }
            state.ended.retain_mut(|(enclave, empty)| {
                let Some(enclave) = enclave.upgrade() else { return false };
                let threads = enclave.threads_inside();
                threads.iter().for_each(|tid| signal(*tid));
                *empty = if threads.is_empty() { *empty + 1 } else { 0 };
                *empty < 4
            });
            if !state.ended.is_empty() {
                next = next.min(now + 5 * REPEAT_NS);
            }
            state.wakes_at = next;
            state = match next {
                u64::MAX => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                at => {
                    let wait = Duration::from_nanos(at.saturating_sub(now));
                    self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that is gone by now is not an error, and one of the same id ignores the signal.
fn signal(tid: i32) {
    // SAFETY: tgkill has no memory effects; the handler is installed.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, interrupt_signal()) };
}

/// What `enclos_host_enter` returns for a thread that was taken out. No error number.
const TAKEN_OUT: i32 = 0x7fff_0001;

unsafe extern "C" {
    fn enclos_host_enter(
        function: EnterFunction,
        leaf: u32,
        registers: *mut Registers,
        run: *mut Run,
        anchor: *mut u64,
    ) -> i32;
    fn enclos_host_taken_out();
}

core::arch::global_asm!(
    r#"
    .text
    .p2align 6
    .global enclos_host_enter, enclos_host_taken_out
    .hidden enclos_host_enter, enclos_host_taken_out
enclos_host_enter:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    push rdx
    sub rsp, 16
    stmxcsr [rsp]
    fnstcw [rsp + 4]
    mov [r8], rsp
    push rcx
    push rcx
    mov rax, rdi
    mov ecx, esi
    mov r10, rdx
    mov rdi, [r10]
    mov rsi, [r10 + 8]
    mov rdx, [r10 + 16]
    mov r8, [r10 + 24]
    mov r9, [r10 + 32]
    call rax
    add rsp, 16
    mov r10, [rsp + 16]
    mov [r10], rdi
    mov [r10 + 8], rsi
    mov [r10 + 16], rdx
    mov [r10 + 24], r8
    mov [r10 + 32], r9
    stmxcsr [rsp + 8]
    fnstcw [rsp + 12]
    mov ecx, [rsp + 8]
    cmp ecx, [rsp]
    jne 3f
    mov cx, [rsp + 12]
    cmp cx, [rsp + 4]
    jne 3f
2:  add rsp, 24
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

    # The signal handler sends a thread here with RSP as stored at the anchor.
enclos_host_taken_out:
    cld
    mov eax, {taken_out}
    # Rounding, masks and flags of floating point are the caller's, whatever the enclave left.
3:  ldmxcsr [rsp]
    fldcw [rsp + 4]
    jmp 2b
"#,
    taken_out = const TAKEN_OUT,
);
