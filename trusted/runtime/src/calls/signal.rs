//! Signals between the threads of the program: rt_sigaction(2), rt_sigprocmask(2), tgkill(2) and what belongs to them.
//!
//! A handler runs when its thread next makes a Linux call, and a call that waits in the host is interrupted for it. A
//! thread that only computes is not interrupted: that would take the host, which must not be able to choose the moment.
//! The frame is Linux's (`struct rt_sigframe`), so that libraries unwind through it.
//!
//! Signals of the host arrive only where the manifest lists them, and are allegations like all else of the host.

use core::sync::atomic::{AtomicU64, Ordering};

use enclos::abi::{hostcall, xfrm};

use super::{Outcome, own, own_bytes, time};
use crate::clock::{self, Clock};
use crate::cpu;
use crate::entry::{self, Registers};
use crate::host::{self, Errno};
use crate::lock::SpinLock;
use crate::thread::{self, Thread};

const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;
const SA_SIGINFO: u64 = 4;
const SA_ONSTACK: u64 = 0x0800_0000;
const SA_RESTART: u64 = 0x1000_0000;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESETHAND: u64 = 0x8000_0000;
const SIGKILL: u64 = 9;
const SIGSEGV: u64 = 11;
const SIGSTOP: u64 = 19;
/// Number of rt_sigreturn(2).
pub const RT_SIGRETURN: u64 = 15;
const SS_ONSTACK: u64 = 1;
const SS_DISABLE: u64 = 2;
const MINSIGSTKSZ: u64 = 2048;
const SI_USER: i32 = 0;
const SI_TKILL: i32 = -6;
/// What cannot be blocked.
const UNBLOCKABLE: u64 = bit(SIGKILL) | bit(SIGSTOP);
/// Ignored unless there is a handler: SIGCHLD, SIGCONT, SIGURG, SIGWINCH, and what stops: there is no job control.
const IGNORED: u64 = bit(17) | bit(18) | bit(23) | bit(28) | bit(SIGSTOP) | bit(20) | bit(21) | bit(22);
/// Process and thread group identifier of the program.
const PROCESS: u64 = 1;

const fn bit(signal: u64) -> u64 {
    1 << (signal - 1)
}

/// A `struct sigaction` as the kernel takes it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Action {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

static ACTIONS: SpinLock<[Action; 64]> =
    SpinLock::new([const { Action { handler: SIG_DFL, flags: 0, restorer: 0, mask: 0 } }; 64]);

/// Signals for the process that no thread has taken yet.
static FOR_PROCESS: AtomicU64 = AtomicU64::new(0);

/// A thread's part that other threads see.
#[repr(C)]
pub struct Signals {
    /// Blocked. Only the thread itself changes it.
    mask: AtomicU64,
    /// Sent to this thread and not delivered yet.
    pending: AtomicU64,
    /// What sigtimedwait waits for.
    awaited: AtomicU64,
    /// The epoll instance that it waits in, and one more; 0: none.
    epoll: AtomicU64,
}

/// A thread's part that only itself sees.
#[derive(Default)]
#[repr(C)]
pub struct Own {
    /// The mask to go back to after a call that had one of its own.
    before: Option<u64>,
    /// Alternative stack: start and size; size 0: none.
    stack: [u64; 2],
}

/// The calling thread starts, with this mask and these signals sent to it already.
pub fn start(me: &mut Thread, mask: u64, pending: u64) {
    let signals = me.signals();
    signals.set_mask(mask);
    signals.pending.store(pending, Ordering::SeqCst);
    signals.awaited.store(0, Ordering::SeqCst);
    signals.epoll.store(0, Ordering::SeqCst);
    me.own_signals = Own::default();
}

impl Signals {
    /// What is blocked.
    pub fn mask(&self) -> u64 {
        self.mask.load(Ordering::SeqCst)
    }

    fn set_mask(&self, mask: u64) {
        self.mask.store(mask & !UNBLOCKABLE, Ordering::SeqCst);
    }

    /// Signals to be delivered now.
    fn due(&self) -> u64 {
        (self.pending.load(Ordering::SeqCst) | FOR_PROCESS.load(Ordering::SeqCst)) & !self.mask()
    }

    /// From now on whoever sends a signal gets the thread out of its wait for this instance; `None`: for none.
    pub fn waits_in_epoll(&self, handle: Option<u32>) {
        self.epoll.store(handle.map_or(0, |h| u64::from(h) + 1), Ordering::SeqCst);
    }

    /// Takes one of these signals, if it is there: its number, and whether it was for this thread.
    fn take(&self, of: u64) -> Option<(u64, bool)> {
        for (from, is_own) in [(&self.pending, true), (&FOR_PROCESS, false)] {
            loop {
                let there = from.load(Ordering::SeqCst) & of;
                if there == 0 {
                    break;
                }
                let lowest = there & there.wrapping_neg();
                if from.fetch_and(!lowest, Ordering::SeqCst) & lowest != 0 {
                    return Some((u64::from(lowest.trailing_zeros()) + 1, is_own));
                }
            }
        }
        None
    }
}

/// Is there a signal for which a call that waits must end?
pub fn is_due(me: &Thread) -> bool {
    me.signals().due() != 0
}

/// rt_sigaction(2).
pub fn action(signal: u64, new: u64, old: u64, size: u64) -> Outcome {
    if !(1..=64).contains(&signal) || size != 8 {
        return Err(Errno::INVAL);
    }
    let new = match new {
        0 => None,
        // SAFETY: checked to be the program's.
        at => Some(unsafe { own::<Action>(at)?.read() }),
    };
    if new.is_some() && bit(signal) & UNBLOCKABLE != 0 {
        return Err(Errno::INVAL);
    }
    let to = if old == 0 { None } else { Some(own::<Action>(old)?) };
    let before = {
        let mut actions = ACTIONS.lock();
        let slot = &mut actions[signal as usize - 1];
        let before = *slot;
        *slot = new.unwrap_or(before);
        before
    };
    if let Some(to) = to {
        // SAFETY: checked to be the program's.
        unsafe { to.write(before) };
    }
    Ok(0)
}

/// rt_sigprocmask(2).
pub fn procmask(me: &mut Thread, how: u64, set: u64, old: u64, size: u64) -> Outcome {
    if size != 8 {
        return Err(Errno::INVAL);
    }
    let before = me.signals().mask();
    if set != 0 {
        // SAFETY: checked to be the program's.
        let set = unsafe { own::<u64>(set)?.read() };
        me.signals().set_mask(match how {
            0 => before | set,
            1 => before & !set,
            2 => set,
            _ => return Err(Errno::INVAL),
        });
    }
    if old != 0 {
        // SAFETY: checked to be the program's.
        unsafe { own::<u64>(old)?.write(before) };
    }
    Ok(0)
}

/// rt_sigpending(2).
pub fn pending(me: &Thread, to: u64, size: u64) -> Outcome {
    if size > 8 {
        return Err(Errno::INVAL);
    }
    let all = me.signals().pending.load(Ordering::SeqCst) | FOR_PROCESS.load(Ordering::SeqCst);
    let bytes = (all & me.signals().mask()).to_le_bytes();
    // SAFETY: checked to be the program's.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), own_bytes(to, size)?, size as usize) };
    Ok(0)
}

/// sigaltstack(2): `r` tells where the program's stack is.
pub fn altstack(me: &mut Thread, r: &Registers, new: u64, old: u64) -> Outcome {
    let [start, size] = me.own_signals.stack;
    let is_on_it = r.rsp.wrapping_sub(start) < size;
    let new = match new {
        0 => None,
        // SAFETY: checked to be the program's.
        at => Some(unsafe { own::<[u64; 3]>(at)?.read() }),
    };
    if old != 0 {
        let flags = if size == 0 { SS_DISABLE } else { u64::from(is_on_it) * SS_ONSTACK };
        // SAFETY: checked to be the program's.
        unsafe { own::<[u64; 3]>(old)?.write([start, flags, size]) };
    }
    let Some([start, flags, size]) = new else { return Ok(0) };
    if is_on_it {
        return Err(Errno::PERM);
    }
    me.own_signals.stack = match flags as u32 as u64 {
        SS_DISABLE => [0; 2],
        0 | SS_ONSTACK if size < MINSIGSTKSZ => return Err(Errno::NOMEM),
        0 | SS_ONSTACK => {
            own_bytes(start, size)?;
            [start, size]
        }
        _ => return Err(Errno::INVAL),
    };
    Ok(0)
}

/// kill(2): there is one process.
pub fn kill(me: &mut Thread, r: &Registers, process: u64, signal: u64) -> Outcome {
    match process as u32 as i32 {
        // This process, its group, all processes.
        -1..=1 => {}
        _ => return Err(Errno::SRCH),
    }
    if is_question(signal)? {
        return Ok(0);
    }
    send_to_process(me, r.rip, signal);
    Ok(0)
}

/// tkill(2), and tgkill(2) of the group.
pub fn kill_thread(me: &mut Thread, r: &Registers, group: u64, tid: u64, signal: u64) -> Outcome {
    if group != PROCESS || tid as u32 as i32 <= 0 {
        return Err(if group as u32 as i32 <= 0 || tid as u32 as i32 <= 0 {
            Errno::INVAL
        } else {
            Errno::SRCH
        });
    }
    let is_question = is_question(signal)?;
    let tid = tid as u32;
    let running = || thread::all().find(|i| thread::tid_of(*i) == tid);
    let index = match running() {
        Some(index) => index,
        // One that was cloned and has not been entered yet, or has been just now.
        None if thread::send_to_pending(tid, if is_question { 0 } else { bit(signal) }) => return Ok(0),
        None => running().ok_or(Errno::SRCH)?,
    };
    if is_question {
        return Ok(0);
    }
    let target = thread::signals_of(index);
    if !keep(me, r.rip, signal, target.mask() & bit(signal) != 0) {
        return Ok(0);
    }
    target.pending.fetch_or(bit(signal), Ordering::SeqCst);
    interrupt(me, index);
    Ok(0)
}

/// Is it signal 0, which only asks whether there is somebody?
fn is_question(signal: u64) -> Result<bool, Errno> {
    match signal as u32 {
        0 => Ok(true),
        1..=64 => Ok(false),
        _ => Err(Errno::INVAL),
    }
}

fn send_to_process(me: &mut Thread, rip: u64, signal: u64) {
    let takes = |i: u32| {
        let t = thread::signals_of(i);
        (t.mask() & bit(signal) == 0 || t.awaited.load(Ordering::SeqCst) & bit(signal) != 0)
            && thread::tid_of(i) != 0
    };
    let first = me.seed.index as u32;
    let taker = core::iter::once(first).chain(thread::all()).find(|i| takes(*i));
    if keep(me, rip, signal, taker.is_none_or(|i| thread::signals_of(i).mask() & bit(signal) != 0)) {
        FOR_PROCESS.fetch_or(bit(signal), Ordering::SeqCst);
        if let Some(taker) = taker {
            interrupt(me, taker);
        }
    }
}

/// Is the signal one to keep until it is delivered? Deadly ones end the enclave here, ignored ones have no effect; a
/// blocked one is kept in any case, since what becomes of it may change.
fn keep(me: &mut Thread, rip: u64, signal: u64, is_blocked: bool) -> bool {
    let handler = ACTIONS.lock()[signal as usize - 1].handler;
    match handler {
        _ if is_blocked => true,
        SIG_IGN => false,
        SIG_DFL if bit(signal) & IGNORED != 0 => false,
        SIG_DFL => crate::exception::die_of_abort(me, rip, signal),
        _ => true,
    }
}

/// Gets a thread out of a call that waits. Its signals must be there before.
fn interrupt(me: &mut Thread, index: u32) {
    if u64::from(index) == me.seed.index {
        return;
    }
    host::call_keeping(me, hostcall::WAKE, u64::from(index), 0, 0);
    let epoll = thread::signals_of(index).epoll.load(Ordering::SeqCst);
    if epoll != 0 {
        host::call_keeping(me, hostcall::EPOLL_WAKE, epoll - 1, 0, 0);
    }
}

/// A thread that was woken in an epoll instance of the host may have been woken in place of another.
pub fn pass_on(me: &mut Thread, handle: u32) {
    let is_meant = |i: u32| {
        let t = thread::signals_of(i);
        u64::from(i) != me.seed.index
            && t.epoll.load(Ordering::SeqCst) == u64::from(handle) + 1
            && t.due() != 0
    };
    if thread::all().any(is_meant) {
        host::call_keeping(me, hostcall::EPOLL_WAKE, u64::from(handle), 0, 0);
    }
}

/// Takes over what signals the host says it was sent, as far as the manifest permits them.
#[cold]
pub fn ask_host(me: &mut Thread) {
    let permitted = crate::boot::signals();
    let said = host::call_keeping(me, hostcall::SIGNALS, 0, 0, 0);
    let mut sent = u64::try_from(said).unwrap_or(0) & permitted;
    while sent != 0 {
        let signal = u64::from(sent.trailing_zeros()) + 1;
        sent &= sent - 1;
        send_to_process(me, 0, signal);
    }
}

/// pause(2).
pub fn pause(me: &mut Thread) -> Outcome {
    while !is_due(me) && !crate::ended() {
        host::call_keeping(me, hostcall::WAIT, me.seed.index, 0, 0);
    }
    Err(Errno::INTR)
}

/// rt_sigsuspend(2).
pub fn suspend(me: &mut Thread, mask: u64, size: u64) -> Outcome {
    if size != 8 {
        return Err(Errno::INVAL);
    }
    own::<u64>(mask)?;
    with_mask(me, mask, size, pause)
}

/// Makes a call with a signal mask of its own, as ppoll, pselect6 and epoll_pwait take one; address 0: without.
pub fn with_mask(
    me: &mut Thread,
    mask: u64,
    size: u64,
    call: impl FnOnce(&mut Thread) -> Outcome,
) -> Outcome {
    if mask == 0 {
        return call(me);
    }
    if size != 8 {
        return Err(Errno::INVAL);
    }
    // SAFETY: checked to be the program's.
    let mask = unsafe { own::<u64>(mask)?.read() };
    let before = me.signals().mask();
    me.signals().set_mask(mask);
    let outcome = call(me);
    if outcome == Err(Errno::INTR) && is_due(me) {
        // The handler runs under it, and goes back to the one before.
        me.own_signals.before = Some(before);
    } else {
        me.signals().set_mask(before);
    }
    outcome
}

/// The mask of pselect6(2) comes as a structure of its address and size; 0: there is none.
pub fn mask_argument(at: u64) -> Result<[u64; 2], Errno> {
    // SAFETY: checked to be the program's.
    if at == 0 { Ok([0; 2]) } else { Ok(unsafe { own::<[u64; 2]>(at)?.read() }) }
}

/// rt_sigtimedwait(2).
pub fn timedwait(me: &mut Thread, set: u64, info: u64, timeout: u64, size: u64) -> Outcome {
    if size != 8 {
        return Err(Errno::INVAL);
    }
    // SAFETY: checked to be the program's.
    let set = unsafe { own::<u64>(set)?.read() } & !UNBLOCKABLE;
    if info != 0 {
        own::<Info>(info)?;
    }
    let until = match timeout {
        0 => None,
        at => {
            let limit = time::read_timespec(at)?;
            Some(clock::now(me, Clock::Monotonic)?.saturating_add(limit))
        }
    };
    me.signals().awaited.store(set, Ordering::SeqCst);
    let outcome = loop {
        if let Some((signal, is_own)) = me.signals().take(set) {
            if info != 0 {
                // SAFETY: checked to be the program's.
                unsafe { (info as *mut Info).write(information(signal, is_own)) };
            }
            break Ok(signal);
        }
        if is_due(me) || crate::ended() {
            break Err(Errno::INTR);
        }
        let left = match until {
            None => 0,
            Some(until) => match clock::now(me, Clock::Monotonic) {
                Ok(now) if now < until => until - now,
                Ok(_) => break Err(Errno::AGAIN),
                Err(e) => break Err(e),
            },
        };
        host::call_keeping(me, hostcall::WAIT, me.seed.index, left, 0);
    };
    me.signals().awaited.store(0, Ordering::SeqCst);
    outcome
}

/// A `siginfo_t`: signal, error number, code; then sender's process and user.
type Info = [i32; 32];

fn information(signal: u64, is_own: bool) -> Info {
    let mut info = [0; 32];
    (info[0], info[2]) = (signal as i32, if is_own { SI_TKILL } else { SI_USER });
    info[4] = PROCESS as i32;
    info
}

/// `struct rt_sigframe` of Linux: return address, `ucontext_t`, `siginfo_t`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Frame {
    return_to: u64,
    flags: u64,
    link: u64,
    stack: [u64; 3],
    /// R8 to R15, RDI, RSI, RBP, RBX, RDX, RAX, RCX, RSP, RIP, flags, segments, error, trap, old mask, CR2.
    registers: [u64; 23],
    /// Where the XSAVE area is.
    vectors: u64,
    /// Reserved by Linux. First word: number of the call to make again, and one more.
    reserved: [u64; 8],
    mask: u64,
    info: Info,
}
const _: () = assert!(size_of::<Frame>() == 440);

/// Where in an XSAVE area the low halves of the vector registers are, what comes after the legacy area's last register, and
/// the header.
const XSAVE_XMM: usize = 160;
const XSAVE_UNUSED: usize = 416;
const XSAVE_HEADER: usize = 512;
/// Where the header ends.
const XSAVE_HEADER_END: usize = 576;

/// An XSAVE area of everything that programs may have.
#[repr(C, align(64))]
struct Vectors([u8; xfrm::LARGEST_AREA]);

/// The XMM registers that `enclos_syscall` saved: just below the general ones.
fn saved_xmm(r: &mut Registers) -> *mut [u8; 256] {
    // SAFETY: `entry` keeps them there, on the runtime's stack.
    unsafe { core::ptr::from_mut(r).cast::<[u8; 256]>().sub(1) }
}

/// At the end of every Linux call with signals due: lets the program go on in a handler. Returns the result for RAX.
#[cold]
pub fn deliver(me: &mut Thread, r: &mut Registers, number: u64, outcome: Outcome) -> Outcome {
    let mut outcome = outcome;
    while let Some((signal, is_own)) = me.signals().take(!me.signals().mask()) {
        let action = {
            let mut actions = ACTIONS.lock();
            let slot = &mut actions[signal as usize - 1];
            let action = *slot;
            if action.flags & SA_RESETHAND != 0 && action.handler > SIG_IGN {
                slot.handler = SIG_DFL;
            }
            action
        };
        match action.handler {
            SIG_IGN => continue,
            SIG_DFL if bit(signal) & IGNORED != 0 => continue,
            SIG_DFL => crate::exception::die_of_abort(me, r.rip, signal),
            _ => {}
        }
        let again = outcome == Err(Errno::INTR) && action.flags & SA_RESTART != 0 && may_restart(number);
        let result = if again { [number, number + 1] } else { [super::in_rax(outcome) as u64, 0] };
        if enter_handler(me, r, signal, &action, is_own, result).is_err() {
            // No stack to run it on.
            crate::exception::die_of_abort(me, r.rip, SIGSEGV);
        }
        outcome = Ok(0);
        break;
    }
    if let Some(before) = me.own_signals.before.take() {
        me.signals().set_mask(before);
    }
    outcome
}

/// Most bytes that a handler's frame takes of a stack of its own.
pub fn frame_bytes() -> u64 {
    (cpu::xsave_bytes() + 63 + size_of::<Frame>() + 15 + 8).next_multiple_of(16) as u64
}

/// Does Linux make this call again after a handler with SA_RESTART? Not what waits for a time or for signals
/// (signal(7)).
fn may_restart(number: u64) -> bool {
    !matches!(number, 7 | 23 | 34 | 35 | 128 | 130 | 230 | 232 | 270 | 271 | 281 | 441)
}

/// Writes the frame and makes the registers those of the handler's first instruction. `rax` is the result of the call that
/// was interrupted; `again` 0, or one more than the number of the call to make again.
fn enter_handler(
    me: &mut Thread,
    r: &mut Registers,
    signal: u64,
    action: &Action,
    is_own: bool,
    [rax, again]: [u64; 2],
) -> Result<(), Errno> {
    const RED_ZONE: u64 = 128;
    let [start, size] = me.own_signals.stack;
    let is_on_it = r.rsp.wrapping_sub(start) < size;
    let top = match action.flags & SA_ONSTACK != 0 && size != 0 && !is_on_it {
        true => start + size,
        false => r.rsp.wrapping_sub(RED_ZONE),
    };
    let vectors = top.wrapping_sub(cpu::xsave_bytes() as u64) & !63;
    let at = (vectors.wrapping_sub(size_of::<Frame>() as u64) & !15).wrapping_sub(8);
    own_bytes(at, top.wrapping_sub(at))?;
    // SAFETY: checked to be the program's, aligned, and large enough; XSAVE leaves what is zeroed here as it is, but for
    // the first word of the header. The low halves of the vector registers are not the program's any more: those are where
    // `entry` saved them.
    unsafe {
        let area = vectors as *mut u8;
        area.add(XSAVE_UNUSED).write_bytes(0, XSAVE_HEADER_END - XSAVE_UNUSED);
        core::arch::asm!("xsave64 [{}]", in(reg) area, in("eax") cpu::components(), in("edx") 0, options(nostack));
        core::ptr::copy_nonoverlapping(saved_xmm(r), area.add(XSAVE_XMM).cast(), 1);
        *area.add(XSAVE_HEADER) |= 2;
    }
    const SEGMENTS: u64 = 0x002b_0000_0000_0033;
    let flags = r.linux_flags();
    let frame = Frame {
        return_to: action.restorer,
        flags: 0,
        link: 0,
        stack: [start, if size == 0 { SS_DISABLE } else { u64::from(is_on_it) }, size],
        registers: [
            r.r8, r.r9, r.r10, flags, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, rax,
            r.rip, r.rsp, r.rip, flags, SEGMENTS, 0, 0, 0, 0,
        ],
        vectors,
        reserved: [again, 0, 0, 0, 0, 0, 0, 0],
        mask: me.own_signals.before.take().unwrap_or_else(|| me.signals().mask()),
        info: information(signal, is_own),
    };
    // SAFETY: checked to be the program's; aligned for words.
    unsafe { (at as *mut Frame).write(frame) };
    let own = if action.flags & SA_NODEFER != 0 { 0 } else { bit(signal) };
    me.signals().set_mask(me.signals().mask() | action.mask | own);
    (r.rdi, r.rsp, r.rip, r.flags) = (signal, at, action.handler, 0);
    // Linux passes both whether SA_SIGINFO is set or not.
    r.rsi = at + core::mem::offset_of!(Frame, info) as u64;
    r.rdx = at + core::mem::offset_of!(Frame, flags) as u64;
    Ok(())
}

/// rt_sigreturn(2): the handler is done, and the program goes on where it was.
pub fn return_from_handler(me: &mut Thread, r: &mut Registers) -> ! {
    // The handler has taken the return address.
    let at = r.rsp.wrapping_sub(8);
    let frame = match own::<Frame>(at) {
        // SAFETY: checked to be the program's.
        Ok(at) => unsafe { at.read_unaligned() },
        Err(_) => crate::exception::die_of_abort(me, r.rip, SIGSEGV),
    };
    let [r8, r9, r10, _, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, _, rsp, rip, flags, ..] =
        frame.registers;
    *r = Registers { r8, r9, r10, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rsp, rip, flags: 0 };
    r.set_linux_flags(flags);
    if frame.vectors != 0 {
        restore_vectors(me, r, frame.vectors);
    }
    me.signals().set_mask(frame.mask);
    let result = match frame.reserved[0] {
        0 => super::end(r, RT_SIGRETURN, Ok(rax)),
        again => {
            r.rax = again - 1;
            super::make(r)
        }
    };
    // SAFETY: the registers that `enclos_syscall` saved, with others in them.
    unsafe { entry::enclos_syscall_end(r, result) }
}

fn restore_vectors(me: &mut Thread, r: &mut Registers, at: u64) {
    let mut saved = Vectors([0; xfrm::LARGEST_AREA]);
    let len = cpu::xsave_bytes();
    match own_bytes(at, len as u64) {
        // SAFETY: checked to be the program's.
        Ok(from) => unsafe { core::ptr::copy_nonoverlapping(from, saved.0.as_mut_ptr(), len) },
        Err(_) => crate::exception::die_of_abort(me, r.rip, SIGSEGV),
    }
    // What XRSTOR would fault on (SDM vol. 1, 13.8.1): reserved bits of MXCSR, and a header that is not of this form.
    saved.0[26..28].fill(0);
    let header = &mut saved.0[XSAVE_HEADER..XSAVE_HEADER_END];
    let has_xmm = header[0] & 2 != 0;
    header[0] &= cpu::components() as u8;
    header[1..].fill(0);
    let mut xmm = [0; 256];
    if has_xmm {
        xmm.copy_from_slice(&saved.0[XSAVE_XMM..XSAVE_XMM + 256]);
    }
    // SAFETY: an area of the right size, alignment and form. The low halves of the vector registers are compiled code's
    // until the call ends: `entry` restores them from where they are put here.
    unsafe {
        core::arch::asm!("xrstor64 [{}]", in(reg) saved.0.as_ptr(), in("eax") cpu::components(), in("edx") 0,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _, options(nostack));
        saved_xmm(r).write(xmm);
    }
}
