//! Signals while threads are inside, and the faults by which enclaves talk to the emulator.
//!
//! A signal that arrives inside finds the enclave's FS base and perhaps its stack. Handlers written for the host must
//! see neither. So every handler of the process runs behind the trampoline of `transitions`: this module exports
//! `sigaction` and `signal`, which keep what the program asked for in a table and give the kernel the trampoline.
//! Handlers installed before the first enclave are taken over then. Not seen: handlers installed later by a raw
//! `rt_sigaction` system call, and glibc's own (pthread_cancel, setuid in multi-threaded programs).
//!
//! On an asynchronous exit a handler sees what hardware would show it: RIP at the asynchronous exit pointer, RAX = 3
//! (ERESUME), RBX = TCS, the host's stack pointers, and no register of the enclave.

use core::mem::MaybeUninit;
use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use libc::{c_int, c_void, siginfo_t, ucontext_t};

use super::thread::{self, Exception, Fault, Gprsgx, Interrupted, TcsState, ThreadContext};
use super::thread::{VECTOR_GP, VECTOR_PF, VECTOR_UD};
use super::transitions as asm;
use crate::{EENTER, ERESUME, PlatformError};

/// Signals by which faults inside arrive.
const FAULTS: [c_int; 6] =
    [libc::SIGILL, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];
const SIGNALS: usize = 65;

/// `si_code` of a SIGSYS by Syscall User Dispatch.
const SYS_USER_DISPATCH: c_int = 2;
const PR_SET_SYSCALL_USER_DISPATCH: c_int = 59;
const PR_SYS_DISPATCH_OFF: u64 = 0;
const PR_SYS_DISPATCH_EXCLUSIVE_ON: u64 = 1;
const PR_SYS_DISPATCH_INCLUSIVE_ON: u64 = 2;

/// Environment variable that forces the older way of call interception, for kernels that have both.
const DISPATCH_VARIABLE: &str = "ENCLOS_EMULATOR_DISPATCH";

/// What the program asked to happen on a signal.
struct Action {
    handler: AtomicU64,
    flags: AtomicU64,
    mask: AtomicU64,
}

static ACTIONS: [Action; SIGNALS] =
    [const { Action { handler: AtomicU64::new(0), flags: AtomicU64::new(0), mask: AtomicU64::new(0) } };
        SIGNALS];
/// Is the trampoline in charge?
static ACTIVE: AtomicBool = AtomicBool::new(false);
/// Serialises changes of actions.
static CHANGES: Mutex<()> = Mutex::new(());
/// 0: not known yet, else PR_SYS_DISPATCH_*.
static DISPATCH: AtomicU8 = AtomicU8::new(0);

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct KernelAction {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

const SA_RESTORER: u64 = 0x0400_0000;

/// Puts the trampoline in charge of all signals that have handlers, and of faults. Once a process.
pub(super) fn activate() -> Result<(), PlatformError> {
    if ACTIVE.load(Ordering::Acquire) {
        return Ok(());
    }
    // SAFETY: getauxval has no preconditions.
    let hwcap2 = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    if hwcap2 & 2 == 0 {
        return Err(PlatformError::Unsupported {
            what: "the instructions WRFSBASE and WRGSBASE".into(),
            cure: "use Linux 5.9 or newer on a CPU of 2012 or newer, without the boot option nofsgsbase"
                .into(),
        });
    }
    choose_dispatch()?;
    let _changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
    if ACTIVE.load(Ordering::Acquire) {
        return Ok(());
    }
    for signal in 1..SIGNALS as c_int {
        if matches!(signal, libc::SIGKILL | libc::SIGSTOP) {
            continue;
        }
        let Ok(old) = kernel_action(signal, None) else { continue };
        let action = &ACTIONS[signal as usize];
        action.handler.store(old.handler, Ordering::Relaxed);
        action.flags.store(old.flags, Ordering::Relaxed);
        action.mask.store(old.mask, Ordering::Relaxed);
        install(signal)
            .map_err(|source| PlatformError::Os { what: "installing a signal handler", source })?;
    }
    ACTIVE.store(true, Ordering::Release);
    Ok(())
}

/// Does interception of calls need the selector byte?
pub(super) fn exclusive_dispatch() -> bool {
    u64::from(DISPATCH.load(Ordering::Relaxed)) == PR_SYS_DISPATCH_EXCLUSIVE_ON
}

/// Makes `syscall` instructions in the range raise SIGSYS on this thread.
pub(super) fn arm_dispatch(base: u64, size: u64, selector: &AtomicU8) -> io::Result<()> {
    let mode = u64::from(DISPATCH.load(Ordering::Relaxed));
    let (start, len, selector) = if mode == PR_SYS_DISPATCH_INCLUSIVE_ON {
        (base, size, core::ptr::null())
    } else {
        let start = &raw const asm::enclos_emu_text;
        // SAFETY: both symbols bound the same code.
        let len = unsafe { (&raw const asm::enclos_emu_text_end).offset_from_unsigned(start) };
        (start as u64, len as u64, selector.as_ptr().cast_const())
    };
    dispatch(mode, start, len, selector)
}

/// Ends the interception on this thread.
pub(super) fn disarm_dispatch() {
    let _ = dispatch(PR_SYS_DISPATCH_OFF, 0, 0, core::ptr::null());
}

fn dispatch(mode: u64, start: u64, len: u64, selector: *const u8) -> io::Result<()> {
    // SAFETY: the selector, where there is one, lives in the thread's context, which is disarmed before it goes.
    match unsafe { libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, mode, start, len, selector) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn choose_dispatch() -> Result<(), PlatformError> {
    if DISPATCH.load(Ordering::Acquire) != 0 {
        return Ok(());
    }
    let older = std::env::var_os(DISPATCH_VARIABLE).is_some_and(|v| v == "exclusive");
    let text = &raw const asm::enclos_emu_text as u64;
    let modes = [PR_SYS_DISPATCH_INCLUSIVE_ON, PR_SYS_DISPATCH_EXCLUSIVE_ON];
    static PERMIT: u8 = 0;
    for mode in modes.into_iter().skip(usize::from(older)) {
        let works = dispatch(mode, text, 4096, &raw const PERMIT).is_ok();
        if works {
            disarm_dispatch();
            DISPATCH.store(mode as u8, Ordering::Release);
            return Ok(());
        }
    }
    Err(PlatformError::Unsupported {
        what: "Syscall User Dispatch".into(),
        cure: "use Linux 5.11 or newer (some sandboxes filter prctl: allow it)".into(),
    })
}

/// Gives the kernel what the table says: the trampoline for handlers and faults, else the plain disposition.
fn install(signal: c_int) -> io::Result<()> {
    let action = &ACTIONS[signal as usize];
    let handler = action.handler.load(Ordering::Relaxed);
    let flags = action.flags.load(Ordering::Relaxed);
    let trampoline = asm::enclos_emu_trampoline as *const () as u64;
    let restorer = asm::enclos_emu_restorer as *const () as u64;
    let ours = (libc::SA_SIGINFO | libc::SA_ONSTACK) as u64 | SA_RESTORER;
    // Signals wait until the trampoline has cleared the enclave's registers and found the handler its stack; `chain`
    // then sets the mask that the program asked for.
    let mask = FAULTS.iter().fold(u64::MAX, |mask, fault| mask & !(1 << (fault - 1)));
    let new = if FAULTS.contains(&signal) {
        KernelAction { handler: trampoline, flags: ours | libc::SA_NODEFER as u64, restorer, mask }
    } else if handler > 1 {
        let kept = (libc::SA_RESTART | libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT) as u64;
        KernelAction { handler: trampoline, flags: ours | flags & kept, restorer, mask }
    } else {
        let kept = (libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT) as u64;
        KernelAction { handler, flags: flags & kept | SA_RESTORER, restorer, mask: 0 }
    };
    kernel_action(signal, Some(&new)).map(|_| ())
}

fn kernel_action(signal: c_int, new: Option<&KernelAction>) -> io::Result<KernelAction> {
    let mut old = KernelAction::default();
    let new = new.map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: both structures have the kernel's layout (x86-64, 64 signals).
    match unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, &raw mut old, 8) } {
        0 => Ok(old),
        _ => Err(io::Error::last_os_error()),
    }
}

/// libc's `sigaction`, for the whole program that links this crate: see the module's text.
///
/// # Safety
/// As POSIX `sigaction`.
#[unsafe(no_mangle)]
#[expect(unreachable_pub, reason = "exported by name, to the C library's callers")]
pub unsafe extern "C" fn sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    let fail = |code: c_int| {
        // SAFETY: errno is the thread's own.
        unsafe { *libc::__errno_location() = code };
        -1
    };
    if !(1..SIGNALS as c_int).contains(&signal) || matches!(signal, 32 | 33) {
        return fail(libc::EINVAL);
    }
    let _changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the caller passes null or a valid structure.
    let new = unsafe { new.as_ref() }.map(|n| {
        let mut mask = 0_u64;
        for s in 1..SIGNALS as c_int {
            // SAFETY: an initialised signal set.
            if unsafe { libc::sigismember(&raw const n.sa_mask, s) } == 1 {
                mask |= 1 << (s - 1);
            }
        }
        KernelAction {
            handler: n.sa_sigaction as u64,
            flags: n.sa_flags as u32 as u64,
            restorer: asm::enclos_emu_restorer as *const () as u64,
            mask,
        }
    });
    let active = ACTIVE.load(Ordering::Acquire) && !matches!(signal, libc::SIGKILL | libc::SIGSTOP);
    let previous = if active {
        let action = &ACTIONS[signal as usize];
        let previous = KernelAction {
            handler: action.handler.load(Ordering::Relaxed),
            flags: action.flags.load(Ordering::Relaxed),
            restorer: 0,
            mask: action.mask.load(Ordering::Relaxed),
        };
        if let Some(new) = new {
            action.mask.store(new.mask, Ordering::Relaxed);
            action.flags.store(new.flags, Ordering::Relaxed);
            action.handler.store(new.handler, Ordering::Relaxed);
            if let Err(e) = install(signal) {
                return fail(e.raw_os_error().unwrap_or(libc::EINVAL));
            }
        }
        previous
    } else {
        let new = new.map(|n| KernelAction { flags: n.flags | SA_RESTORER, ..n });
        match kernel_action(signal, new.as_ref()) {
            Ok(old) => old,
            Err(e) => return fail(e.raw_os_error().unwrap_or(libc::EINVAL)),
        }
    };
    // SAFETY: the caller passes null or a writable structure; signal sets are initialised before use.
    unsafe {
        if let Some(old) = old.as_mut() {
            let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
            libc::sigemptyset(set.as_mut_ptr());
            for s in (1..SIGNALS as c_int).filter(|s| previous.mask >> (s - 1) & 1 != 0) {
                libc::sigaddset(set.as_mut_ptr(), s);
            }
            old.sa_sigaction = previous.handler as usize;
            old.sa_flags = (previous.flags & !SA_RESTORER) as c_int;
            old.sa_mask = set.assume_init();
            old.sa_restorer = None;
        }
    }
    0
}

/// libc's `signal` (BSD semantics), by way of [`sigaction`].
///
/// # Safety
/// As POSIX `signal`.
#[unsafe(no_mangle)]
#[expect(unreachable_pub, reason = "exported by name, to the C library's callers")]
pub unsafe extern "C" fn signal(signal: c_int, handler: libc::sighandler_t) -> libc::sighandler_t {
    // SAFETY: zero is a valid sigaction; the structures are ours.
    unsafe {
        let mut new: libc::sigaction = core::mem::zeroed();
        new.sa_sigaction = handler;
        new.sa_flags = libc::SA_RESTART;
        let mut old: libc::sigaction = core::mem::zeroed();
        match sigaction(signal, &raw const new, &raw mut old) {
            0 => old.sa_sigaction,
            _ => libc::SIG_ERR,
        }
    }
}

/// What the trampoline restores when [`handle`] returns.
#[repr(C)]
pub(super) struct Bases {
    fs: u64,
    gs: u64,
    selector: u64,
}

/// Called by the trampoline with the host's FS and GS bases in place. `context` and `bases` are null on threads that
/// never entered an enclave.
///
/// # Safety
/// Called by the trampoline only.
pub(super) unsafe extern "C" fn handle(
    signal: c_int,
    info: *mut siginfo_t,
    uc: *mut ucontext_t,
    context: *mut ThreadContext,
    bases: *mut Bases,
) {
    // SAFETY: the kernel's and the trampoline's pointers are valid for the duration of the handler; `context` is this
    // thread's own.
    let (code, frame, context, bases) =
        unsafe { ((*info).si_code, &mut *uc, context.as_mut(), bases.as_mut()) };
    let rip = frame.uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
    if matches!(signal, libc::SIGSEGV | libc::SIGBUS) && code > 0 && is_guarded(rip) {
        frame.uc_mcontext.gregs[libc::REG_RIP as usize] = asm::enclos_emu_unreachable as *const () as i64;
        return;
    }
    // SAFETY: the kernel's own.
    let is_interruption = signal == libc::SIGSYS && code == SI_QUEUE && unsafe { is_ours(info) };
    if let (Some(context), Some(bases)) = (context, bases) {
        let state = context.current.load(Ordering::Relaxed);
        // A fault at any other address while inside means that the enclave jumped out of ELRANGE: on hardware fetching
        // from there is #GP.
        let jumped_out =
            || FAULTS.contains(&signal) && code > 0 && code != SYS_USER_DISPATCH && !in_emulator(rip);
        // SAFETY: a non-null current state is the one this thread is inside with.
        if !state.is_null() && (unsafe { (*state).covers(rip) } || jumped_out()) {
            let mut entered = Inside { signal, code, info, frame, context, bases, state };
            if is_interruption {
                entered.aex(None);
                return;
            }
            return entered.handle();
        }
        if is_interruption {
            // On the way in or out, or in the emulator's own code: it comes again as long as it is needed.
            return;
        }
        if !state.is_null() && resuming(rip) {
            // ERESUME is one instruction on hardware: to a handler it has not begun.
            let mut entered = Inside { signal, code, info, frame, context, bases, state };
            let exit = entered.exit_point();
            // SAFETY: this thread is inside with the state, and has executed nothing of the enclave.
            let stacks = unsafe { thread::undo_resume(entered.context, state) };
            entered.show_exit(exit, stacks);
            if matches!(signal, libc::SIGSEGV | libc::SIGBUS) && code > 0 {
                // The SSA frame went after it was checked: ERESUME faults.
                return entered.report(exit.0, Exception { vector: VECTOR_PF, code: 0x8005, address: 0 });
            }
            // SAFETY: the arguments are the kernel's own.
            return unsafe { chain(signal, info, uc) };
        }
        if is_enclu(signal, code, frame) {
            return enclu_outside(info, frame, context, bases);
        }
        if signal == libc::SIGSYS && code == SYS_USER_DISPATCH {
            // Interception armed for an enclave that is gone, and other code lives there now: repeat the call.
            disarm_dispatch();
            context.forget_dispatch();
            frame.uc_mcontext.gregs[libc::REG_RIP as usize] -= 2;
            return;
        }
        // SAFETY: the arguments are the kernel's own.
        return unsafe { chain(signal, info, uc) };
    }
    if is_interruption {
        return;
    }
    if is_enclu(signal, code, frame) {
        // The first ENCLU of a thread that did not come through this crate: give it a context and let it try again.
        if super::adopt::on_return(frame) {
            return;
        }
    }
    // SAFETY: as above.
    unsafe { chain(signal, info, uc) }
}

/// The part of the kernel's signal frame below the floating-point state: return address, `struct ucontext` (with 64
/// signals' worth of mask) and `siginfo_t` (Linux arch/x86/include/asm/sigframe.h).
const FRAME: usize = 8 + FRAME_UCONTEXT + 128;
/// Bytes of the kernel's `struct ucontext`.
pub(super) const FRAME_UCONTEXT: usize = 304;

/// Copies the signal frame of a thread that never entered an enclave from its alternate stack to the stack it was
/// interrupted on, if the program did not ask for `SA_ONSTACK`. Returns the copy's address, or 0 to stay.
///
/// Every handler is installed with `SA_ONSTACK` for the threads that are inside. Alternate stacks of other threads may
/// be as small as one frame allows (Rust's are): handlers that were written for the thread's stack, several at once,
/// overflow them. Signals are blocked until the frame has moved, so that frames do not pile up there either.
///
/// # Safety
/// Called by the trampoline only, with the kernel's frame.
pub(super) unsafe extern "C" fn own_stack(signal: c_int, uc: *mut ucontext_t) -> usize {
    let action = &ACTIONS[signal as usize];
    let wants_alternate = action.flags.load(Ordering::Relaxed) & libc::SA_ONSTACK as u64 != 0;
    let has_handler = action.handler.load(Ordering::Relaxed) > 1;
    // SAFETY: the kernel's frame.
    let (stack, interrupted, fpregs) = unsafe {
        let m = &(*uc).uc_mcontext;
        ((*uc).uc_stack, m.gregs[libc::REG_RSP as usize] as usize, m.fpregs.cast::<u8>())
    };
    let on_alternate = |at: usize| at.wrapping_sub(stack.ss_sp as usize) < stack.ss_size;
    if wants_alternate || !has_handler || !on_alternate(uc as usize) || on_alternate(interrupted) {
        return 0;
    }
    const RED_ZONE: usize = 128;
    let mut to = interrupted - RED_ZONE;
    // SAFETY: below the red zone the thread's stack is free, as for any signal frame; if there is none left the thread
    // ends as it would have when the kernel put the frame there.
    unsafe {
        let copy_of_fpregs = if fpregs.is_null() {
            core::ptr::null_mut()
        } else {
            let bytes = fpregs_bytes(fpregs);
            to = (to - bytes) & !63;
            core::ptr::copy_nonoverlapping(fpregs, to as *mut u8, bytes);
            to as *mut u8
        };
        // The kernel enters handlers as a call does: 8 bytes off a multiple of 16.
        to = ((to - FRAME) & !15) - 8;
        core::ptr::copy_nonoverlapping(uc.cast::<u8>().sub(8), to as *mut u8, FRAME);
        (&raw mut (*(to as *mut u8).add(8).cast::<ucontext_t>()).uc_mcontext.fpregs)
            .write(copy_of_fpregs.cast());
    }
    to
}

/// `si_code` of a signal sent by rt_tgsigqueueinfo(2).
const SI_QUEUE: c_int = -1;

/// Sent with the signals of [`interrupt`]: the address of this.
static INTERRUPTION: u8 = 0;

/// Makes a thread leave the enclave that it is inside of, by an asynchronous exit, as an interrupt of its processor
/// would. A signal whose handler is always the trampoline; a thread that is not inside ignores it.
pub(super) fn interrupt(thread: i32) {
    #[repr(C)]
    struct Info {
        signal: c_int,
        error: c_int,
        code: c_int,
        padding: c_int,
        pid: i32,
        uid: u32,
        value: usize,
        rest: [u64; 12],
    }
    const _: () = assert!(size_of::<Info>() == size_of::<siginfo_t>());
    // SAFETY: no preconditions.
    let pid = unsafe { libc::getpid() };
    let info = Info {
        signal: libc::SIGSYS,
        error: 0,
        code: SI_QUEUE,
        padding: 0,
        pid,
        uid: 0,
        value: &raw const INTERRUPTION as usize,
        rest: [0; 12],
    };
    // SAFETY: the structure is laid out as the kernel's; a thread that has ended is an error, which is as well.
    unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, thread, libc::SIGSYS, &raw const info) };
}

/// Is it a signal of [`interrupt`]?
///
/// # Safety
/// `info` must be the kernel's, of a signal that was queued.
unsafe fn is_ours(info: *const siginfo_t) -> bool {
    // SAFETY: the caller's contract.
    unsafe { core::ptr::eq((*info).si_value().sival_ptr, (&raw const INTERRUPTION).cast()) }
}

/// Is the address of an instruction of `transitions` that may fault?
fn is_guarded(rip: u64) -> bool {
    (&raw const asm::enclos_emu_guarded as u64..&raw const asm::enclos_emu_guarded_end as u64).contains(&rip)
}

/// Is the address in the code of `transitions`?
fn in_emulator(rip: u64) -> bool {
    (&raw const asm::enclos_emu_text as u64..&raw const asm::enclos_emu_text_end as u64).contains(&rip)
}

/// Is the thread in the middle of loading the enclave's registers?
fn resuming(rip: u64) -> bool {
    (&raw const asm::enclos_emu_resume as u64..&raw const asm::enclos_emu_resume_end as u64).contains(&rip)
}

/// Is it an ENCLU that the processor underneath refused? One without SGX does so by #UD; one that has it, even if its firmware or
/// hypervisor grants none of it, by #GP(0), and by #PF at the TCS that EENTER and ERESUME name (SDM vol. 3D, 37.1, ENCLU).
fn is_enclu(signal: c_int, code: c_int, frame: &ucontext_t) -> bool {
    let [rip, vector, error] =
        [libc::REG_RIP, libc::REG_TRAPNO, libc::REG_ERR].map(|r| frame.uc_mcontext.gregs[r as usize] as u64);
    /// Of page faults: the instruction could not be fetched, and cannot be read.
    const FETCH: u64 = 1 << 4;
    let refused = match signal {
        libc::SIGILL => true,
        libc::SIGSEGV | libc::SIGBUS => vector == VECTOR_GP || vector == VECTOR_PF && error & FETCH == 0,
        _ => false,
    };
    code > 0 && refused && thread::canonical(rip) && enclu_at(rip)
}

/// Is there an ENCLU instruction at an address that was just executed?
fn enclu_at(rip: u64) -> bool {
    // SAFETY: the CPU fetched an instruction there, so at least its first byte is readable; reading stops where the
    // bytes differ, and an invalid opcode 0F 01 is at least three bytes long.
    unsafe {
        let p = rip as *const u8;
        *p == 0x0f && *p.add(1) == 0x01 && *p.add(2) == 0xd7
    }
}

/// ENCLU executed by host code: EENTER or ERESUME by someone who does not use our enter function.
fn enclu_outside(
    info: *mut siginfo_t,
    frame: &mut ucontext_t,
    context: &mut ThreadContext,
    bases: &mut Bases,
) {
    let g = &mut frame.uc_mcontext.gregs;
    let leaf = g[libc::REG_RAX as usize] as u32;
    let [rip, rsp, rbp, tcs, aep] =
        [libc::REG_RIP, libc::REG_RSP, libc::REG_RBP, libc::REG_RBX, libc::REG_RCX]
            .map(|r| g[r as usize] as u64);
    if matches!(leaf, EENTER | ERESUME)
        && let Ok(state) = thread::enter_state(context, leaf, tcs, rsp, rbp, aep)
    {
        // SAFETY: the state is this thread's now.
        let s = unsafe { &mut *state };
        if leaf == EENTER {
            g[libc::REG_RIP as usize] = s.entry as i64;
            g[libc::REG_RAX as usize] = i64::from(s.cssa);
            g[libc::REG_RCX as usize] = rip as i64 + 3;
            if s.fs != 0 {
                bases.fs = s.fs;
            }
            bases.gs = s.gs;
        } else {
            resume_into(s, frame, bases);
        }
        bases.selector = u64::from(exclusive_dispatch());
        return;
    }
    // #GP or #PF at the ENCLU itself, whichever leaf it is: what the kernel turns into SIGSEGV.
    // SAFETY: the kernel's own arguments; the handler sees the signal number hardware would have led to.
    unsafe { chain(libc::SIGSEGV, info, frame) }
}

/// ERESUME by way of the signal frame.
fn resume_into(s: &TcsState, frame: &mut ucontext_t, bases: &mut Bases) {
    // SAFETY: `enter_state` checked that both lie in the enclave's readable pages.
    let (gpr, area) =
        unsafe { ((s.gpr as *const Gprsgx).read(), core::slice::from_raw_parts(s.xsave as *const u8, 4096)) };
    let n = xsave_of(frame).len().min(s.xsave_bytes()).min(area.len());
    let to = xsave_of_mut(frame);
    // Bytes 464 to 511 are the kernel's own.
    to[..464.min(n)].copy_from_slice(&area[..464.min(n)]);
    if n > 512 {
        to[512..n].copy_from_slice(&area[512..n]);
    }
    let g = &mut frame.uc_mcontext.gregs;
    for (r, v) in REGISTERS.iter().zip(flatten(&gpr)) {
        g[*r as usize] = v as i64;
    }
    g[libc::REG_RIP as usize] = s.iret[0] as i64;
    g[libc::REG_EFL as usize] = s.iret[2] as i64;
    (bases.fs, bases.gs) = (gpr.fsbase, gpr.gsbase);
}

/// The order of `gregs` indices in which [`Gprsgx`] has its registers.
const REGISTERS: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

fn flatten(g: &Gprsgx) -> [u64; 16] {
    let mut all = [0; 16];
    all[..4].copy_from_slice(&g.registers);
    all[4..8].copy_from_slice(&[g.rsp, g.rbp, g.rsi, g.rdi]);
    all[8..].copy_from_slice(&g.r8_to_r15);
    all
}

/// A signal that arrived inside.
struct Inside<'a> {
    signal: c_int,
    code: c_int,
    info: *mut siginfo_t,
    frame: &'a mut ucontext_t,
    context: &'a mut ThreadContext,
    bases: &'a mut Bases,
    state: *mut TcsState,
}

impl Inside<'_> {
    fn handle(mut self) {
        let kernel_made = self.code > 0;
        let vector = self.greg(libc::REG_TRAPNO);
        let error = self.greg(libc::REG_ERR);
        match self.signal {
            libc::SIGSYS if self.code == SYS_USER_DISPATCH => {
                // The kernel shows RIP after the instruction; inside an enclave SYSCALL is #UD, a fault.
                *self.greg_mut(libc::REG_RIP) -= 2;
                self.exception(VECTOR_UD, 0, 0);
            }
            libc::SIGILL if kernel_made => self.illegal(),
            _ if is_enclu(self.signal, self.code, self.frame) => self.illegal(),
            libc::SIGSEGV | libc::SIGBUS if kernel_made => {
                let address = self.greg(libc::REG_CR2);
                // SAFETY: the state is this thread's.
                let outside = !unsafe { (*self.state).covers(self.greg(libc::REG_RIP)) };
                match vector {
                    VECTOR_PF if !outside => self.page_fault(error, address),
                    _ => self.exception(VECTOR_GP, error, 0),
                }
            }
            libc::SIGFPE if kernel_made => self.exception(vector, 0, 0),
            libc::SIGTRAP if kernel_made && vector == 3 => {
                // INT3 inside is a fault: RIP stays at it. Without debug opt-in it is #UD (SDM vol. 3D, 38.5).
                *self.greg_mut(libc::REG_RIP) -= 1;
                // SAFETY: the state is this thread's.
                let opted_in = unsafe { (*self.state).debug_opt_in() };
                self.exception(if opted_in { 3 } else { VECTOR_UD }, 0, 0);
            }
            libc::SIGTRAP if kernel_made => self.exception(1, 0, 0),
            _ => self.asynchronous(),
        }
    }

    /// An access that memory refused: the EPCM may be ahead of the memory, else it is #PF.
    fn page_fault(&mut self, error: u64, address: u64) {
        // Error code (SDM vol. 3A, 4.7): bit 1 write, bit 4 instruction fetch, bit 5 protection key, bit 15 SGX. As in
        // SECINFO.FLAGS: bit 0 read, bit 1 write, bit 2 execute.
        let access = if error & 16 != 0 {
            4
        } else if error & 2 != 0 {
            2
        } else {
            1
        };
        // SAFETY: the state is this thread's.
        let enclave = unsafe { (*self.state).enclave() };
        if error & 32 == 0 && enclave.leaves.settle(address, access) {
            return;
        }
        let sgx = if enclave.leaves.is_valid(address) { 0x8000 } else { 0 };
        self.exception(VECTOR_PF, error | sgx, address);
    }

    /// #UD, or an ENCLU that was not rewritten, or was and is left to us.
    fn illegal(&mut self) {
        let mut rip = self.greg(libc::REG_RIP);
        // SAFETY: the state is this thread's.
        let gate = unsafe { (*self.state).enclave().base } - 4096;
        let mut length = 3;
        let is_called = rip == gate + asm::GATE_LEAF_TRAP;
        if is_called {
            // The gate was called: back to the instruction that called it.
            let at = self.greg(libc::REG_RSP);
            let mut after = 0_u64;
            // SAFETY: the target is ours.
            if !unsafe { asm::guarded_copy((&raw mut after).cast(), at as *const u8, 8) } {
                return self.exception(VECTOR_PF, 4, at);
            }
            length = 5;
            rip = after.wrapping_sub(length);
            *self.greg_mut(libc::REG_RSP) += 8;
            *self.greg_mut(libc::REG_RIP) = rip as i64;
        }
        let leaf = self.greg(libc::REG_RAX) as u32;
        // SAFETY: the state is this thread's.
        let state = unsafe { &*self.state };
        let in_gate = rip.wrapping_sub(gate) < 4096;
        if !in_gate && !is_called && !enclu_at(rip) {
            return self.exception(VECTOR_UD, 0, 0);
        }
        let [rbx, rcx, rdx] = [libc::REG_RBX, libc::REG_RCX, libc::REG_RDX].map(|r| self.greg(r));
        let leaves = &state.enclave().leaves;
        let result = match leaf {
            _ if in_gate && leaf != crate::EEXIT => Err(Fault::GeneralProtection),
            0 => leaves.ereport(rbx, rcx, rdx).map(|()| None),
            1 => leaves.egetkey(rbx, rcx).map(Some),
            crate::EEXIT => return self.eexit(),
            5 => leaves.eaccept(rbx, rcx, state.enclave()).map(Some),
            6 => leaves.emodpe(rbx, rcx).map(|()| None),
            7 => leaves.eacceptcopy(rbx, rcx, rdx).map(Some),
            _ => Err(Fault::GeneralProtection),
        };
        match result {
            Ok(rax) => {
                if let Some(result) = rax {
                    let zf = 1 << 6;
                    *self.greg_mut(libc::REG_RAX) = result.err().map_or(0, |e| e as i64);
                    let flags = self.greg_mut(libc::REG_EFL);
                    // EGETKEY, EACCEPT, EACCEPTCOPY: ZF tells failure; CF, PF, AF, OF, SF are cleared.
                    *flags = *flags & !0x8d5 | if result.is_err() { zf } else { 0 };
                }
                *self.greg_mut(libc::REG_RIP) += length as i64;
            }
            Err(Fault::GeneralProtection) => self.exception(VECTOR_GP, 0, 0),
            Err(Fault::Page(address)) => self.exception(VECTOR_PF, 0x8005, address & !0xfff),
        }
    }

    /// EEXIT (SDM vol. 3D, 37.4): RIP = RBX, RCX = AEP, FS and GS are the host's.
    fn eexit(&mut self) {
        // SAFETY: the state is this thread's.
        let state = unsafe { &*self.state };
        *self.greg_mut(libc::REG_RIP) = self.greg(libc::REG_RBX) as i64;
        *self.greg_mut(libc::REG_RCX) = state.aep as i64;
        self.outside();
        thread::leave(self.context, state);
    }

    /// An exception inside: asynchronous exit, then what the kernel does for the vDSO's enter function, or a plain
    /// signal for anyone else's.
    fn exception(&mut self, vector: u64, code: u64, address: u64) {
        let exception = Exception { vector, code, address };
        let aep = self.aex(Some(exception));
        self.report(aep, exception);
    }

    /// After an exit by an exception: what the host learns of it.
    fn report(&mut self, aep: u64, Exception { vector, code, address }: Exception) {
        if aep != asm::enclos_emu_aep as *const () as u64 {
            // What the kernel makes of the exception, whatever brought it here.
            let signal = match (vector, self.signal) {
                (VECTOR_UD, _) => libc::SIGILL,
                (VECTOR_GP | VECTOR_PF, libc::SIGILL | libc::SIGSYS) => libc::SIGSEGV,
                (_, signal) => signal,
            };
            // SAFETY: the kernel's arguments, with the registers that hardware would show.
            return unsafe { chain(signal, self.info, self.frame) };
        }
        *self.greg_mut(libc::REG_RIP) = asm::enclos_emu_exception as *const () as i64;
        *self.greg_mut(libc::REG_RDI) = vector as i64;
        *self.greg_mut(libc::REG_RSI) = code as i64;
        *self.greg_mut(libc::REG_RDX) = address as i64;
    }

    /// A signal that has nothing to do with the enclave: asynchronous exit, the program's handler, and the return
    /// from it leads to the AEP, which resumes.
    fn asynchronous(&mut self) {
        self.aex(None);
        // SAFETY: as above.
        unsafe { chain(self.signal, self.info, self.frame) }
    }

    /// Asynchronous enclave exit; the signal frame then shows the synthetic state (SDM vol. 3D, 35.3.2). Returns the
    /// AEP.
    fn aex(&mut self, exception: Option<Exception>) -> u64 {
        let g = |r: c_int| self.greg(r);
        let gpr = Gprsgx {
            registers: [libc::REG_RAX, libc::REG_RCX, libc::REG_RDX, libc::REG_RBX].map(g),
            rsp: g(libc::REG_RSP),
            rbp: g(libc::REG_RBP),
            rsi: g(libc::REG_RSI),
            rdi: g(libc::REG_RDI),
            r8_to_r15: core::array::from_fn(|i| g(REGISTERS[8 + i])),
            rflags: g(libc::REG_EFL),
            rip: g(libc::REG_RIP),
            fsbase: self.bases.fs,
            gsbase: self.bases.gs,
            ..Gprsgx::default()
        };
        let exit = self.exit_point();
        let interrupted = Interrupted { gpr, xsave: xsave_of(self.frame), exception };
        // SAFETY: as above.
        let stacks = unsafe { thread::aex(self.context, self.state, &interrupted) };
        self.show_exit(exit, stacks);
        exit.0
    }

    /// AEP and TCS, read while the state is still this thread's.
    fn exit_point(&self) -> (u64, u64) {
        // SAFETY: the state is this thread's, and this thread is inside with it.
        unsafe { ((*self.state).aep, (*self.state).tcs_address()) }
    }

    /// What the host sees after an asynchronous exit.
    fn show_exit(&mut self, (aep, tcs): (u64, u64), (ursp, urbp): (u64, u64)) {
        for r in REGISTERS {
            *self.greg_mut(r) = 0;
        }
        *self.greg_mut(libc::REG_RAX) = i64::from(ERESUME);
        *self.greg_mut(libc::REG_RBX) = tcs as i64;
        *self.greg_mut(libc::REG_RCX) = aep as i64;
        *self.greg_mut(libc::REG_RIP) = aep as i64;
        *self.greg_mut(libc::REG_RSP) = ursp as i64;
        *self.greg_mut(libc::REG_RBP) = urbp as i64;
        // DF, TF and AC off; the arithmetic flags say nothing.
        *self.greg_mut(libc::REG_EFL) = 0x202;
        let area = xsave_of_mut(self.frame);
        if area.len() >= 576 {
            // No component in use: the return loads their initial state. What they held is not for handlers to read.
            area[512..520].fill(0);
            area[576..].fill(0);
        }
        area[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        area[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        area[32..416].fill(0);
        self.outside();
    }

    fn outside(&mut self) {
        (self.bases.fs, self.bases.gs, self.bases.selector) = (self.context.host_fs, self.context.host_gs, 0);
    }

    fn greg(&self, r: c_int) -> u64 {
        self.frame.uc_mcontext.gregs[r as usize] as u64
    }

    fn greg_mut(&mut self, r: c_int) -> &mut i64 {
        &mut self.frame.uc_mcontext.gregs[r as usize]
    }
}

/// All bytes of a signal frame's floating-point state: with the XSAVE area the magic number behind it.
///
/// # Safety
/// `p` must be the kernel's pointer of a signal frame.
unsafe fn fpregs_bytes(p: *const u8) -> usize {
    // SAFETY: the caller's contract; Linux `struct _fpx_sw_bytes`: magic number, extended size.
    unsafe {
        let magic = p.add(464).cast::<u32>().read_unaligned();
        if magic == FP_XSTATE_MAGIC1 { p.add(468).cast::<u32>().read_unaligned() as usize } else { 512 }
    }
}

const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;

/// The XSAVE area of a signal frame: 512 bytes, or as many as the kernel says (Linux `struct _fpx_sw_bytes`).
fn xsave_of(frame: &ucontext_t) -> &[u8] {
    let p = frame.uc_mcontext.fpregs.cast::<u8>();
    if p.is_null() {
        return &[];
    }
    // SAFETY: the kernel put at least the legacy area there, and `xstate_size` bytes where the magic number stands.
    unsafe {
        let magic = p.add(464).cast::<u32>().read_unaligned();
        let size = p.add(480).cast::<u32>().read_unaligned();
        core::slice::from_raw_parts(p, if magic == FP_XSTATE_MAGIC1 { size as usize } else { 512 })
    }
}

fn xsave_of_mut(frame: &mut ucontext_t) -> &mut [u8] {
    let (p, len) = {
        let area = xsave_of(frame);
        (area.as_ptr().cast_mut(), area.len())
    };
    // SAFETY: the signal frame is this handler's own; the exclusive borrow of it covers the area.
    unsafe { core::slice::from_raw_parts_mut(p, len) }
}

/// Does what the program wants to happen on the signal.
///
/// # Safety
/// `info` and `uc` must be the kernel's, of a signal being handled.
unsafe fn chain(signal: c_int, info: *mut siginfo_t, uc: *mut ucontext_t) {
    let action = &ACTIONS[signal as usize];
    let handler = action.handler.load(Ordering::Relaxed);
    let flags = action.flags.load(Ordering::Relaxed);
    // SAFETY: the caller's contract.
    let (kernel_made, raised) = unsafe { ((*info).si_code > 0, (*info).si_signo) };
    let fault = FAULTS.contains(&signal);
    match handler as usize {
        libc::SIG_IGN if !(fault && kernel_made) => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            if !fault && handler as usize == libc::SIG_DFL && default_is_ignore(signal) {
                return;
            }
            // The default action, by the kernel: the faulting instruction runs again, or the signal is sent again. The
            // instruction would raise the signal that brought it here, which is not always the one that it stands for.
            let plain = KernelAction {
                flags: SA_RESTORER,
                restorer: asm::enclos_emu_restorer as *const () as u64,
                ..KernelAction::default()
            };
            let _ = kernel_action(signal, Some(&plain));
            if !kernel_made || signal == libc::SIGSYS || signal != raised {
                // SAFETY: sends a signal to the calling thread.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), signal) };
            }
        }
        address => {
            if flags & libc::SA_RESETHAND as u32 as u64 != 0 {
                action.handler.store(libc::SIG_DFL as u64, Ordering::Relaxed);
                let _ = install(signal);
            }
            // What the kernel blocks during the trampoline is not what the program asked for during its handler.
            // SAFETY: the kernel's own frame, which begins with 64 signals' worth of mask.
            let mut mask = unsafe { (&raw const (*uc).uc_sigmask).cast::<u64>().read() };
            mask |= action.mask.load(Ordering::Relaxed);
            if flags & libc::SA_NODEFER as u64 == 0 {
                mask |= 1 << (signal - 1);
            }
            // SAFETY: sets this thread's mask until the handler returns (the frame has the old one).
            unsafe {
                libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, 0_usize, 8_usize)
            };
            // SAFETY: the program gave this address as its handler, of the kind its flags say.
            unsafe {
                if flags & libc::SA_SIGINFO as u64 != 0 {
                    let f: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = core::mem::transmute(address);
                    f(signal, info, uc.cast());
                } else {
                    let f: extern "C" fn(c_int) = core::mem::transmute(address);
                    f(signal);
                }
            }
        }
    }
}

fn default_is_ignore(signal: c_int) -> bool {
    matches!(signal, libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH | libc::SIGCONT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processors differ in how they refuse ENCLU; tests run on one of them.
    #[test]
    fn enclu_is_seen_however_the_processor_refuses_it() {
        static CODE: [u8; 6] = [0x0f, 0x01, 0xd7, 0x0f, 0x01, 0xd0];
        const SI_KERNEL: c_int = 0x80;
        const UNMAPPED: u64 = 0x10;
        let [enclu, other] = [0, 3].map(|at| &raw const CODE[at] as u64);
        let seen = |signal, code, rip: u64, vector: u64, error: u64| {
            // SAFETY: integers and null pointers.
            let mut frame: ucontext_t = unsafe { core::mem::zeroed() };
            let gregs = &mut frame.uc_mcontext.gregs;
            gregs[libc::REG_RIP as usize] = rip as i64;
            gregs[libc::REG_TRAPNO as usize] = vector as i64;
            gregs[libc::REG_ERR as usize] = error as i64;
            is_enclu(signal, code, &frame)
        };
        for (signal, vector, error) in [
            (libc::SIGILL, VECTOR_UD, 0),
            (libc::SIGSEGV, VECTOR_GP, 0),
            (libc::SIGSEGV, VECTOR_PF, 0x8007),
            (libc::SIGBUS, VECTOR_PF, 7),
        ] {
            assert!(seen(signal, SI_KERNEL, enclu, vector, error), "{signal} {vector}");
            assert!(!seen(signal, SI_KERNEL, other, vector, error), "another instruction");
            assert!(!seen(signal, SI_QUEUE, enclu, vector, error), "a signal that somebody sent");
        }
        assert!(!seen(libc::SIGSEGV, SI_KERNEL, UNMAPPED, VECTOR_PF, 0x14), "nothing can be read there");
        assert!(!seen(libc::SIGSEGV, SI_KERNEL, 1 << 63, VECTOR_GP, 0), "nor there");
        assert!(!seen(libc::SIGFPE, SI_KERNEL, enclu, 0, 0));
    }
}
