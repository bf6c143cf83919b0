//! Threads, signals (there are none inside, and programs are told so politely), and the end.

use super::{Outcome, own, own_bytes};
use crate::entry::{self, Registers};
use crate::host::{self, Errno};
use crate::thread::{Thread, state};
use enclos::abi::{exit, hostcall};

const ARCH_SET_FS: u64 = 0x1002;
const ARCH_GET_FS: u64 = 0x1003;

/// arch_prctl(2): the thread pointer. GS is the runtime's.
pub fn arch_prctl(what: u64, value: u64) -> Outcome {
    match what {
        ARCH_SET_FS => {
            if value >> 47 != 0 {
                return Err(Errno::PERM);
            }
            // SAFETY: a canonical address of the program's choice; the runtime uses no thread-local storage.
            unsafe { core::arch::asm!("wrfsbase {}", in(reg) value, options(nostack, preserves_flags)) };
            Thread::current().app_fs = value;
            Ok(0)
        }
        ARCH_GET_FS => {
            // SAFETY: checked to be the program's.
            unsafe { own::<u64>(value)?.write(crate::thread::entry_fs()) };
            Ok(0)
        }
        _ => Err(Errno::INVAL),
    }
}

/// rt_sigaction(2): accepted; no signal ever comes, so the old action is always the default.
pub fn sigaction(signal: u64, old: u64) -> Outcome {
    if !(1..=64).contains(&signal) {
        return Err(Errno::INVAL);
    }
    zero(old, 32)
}

/// rt_sigprocmask(2): the mask is always empty.
pub fn sigprocmask(old: u64, size: u64) -> Outcome {
    if size != 8 {
        return Err(Errno::INVAL);
    }
    zero(old, 8)
}

/// sigaltstack(2): always disabled (SS_DISABLE = 2).
pub fn sigaltstack(old: u64) -> Outcome {
    if old != 0 {
        // SAFETY: checked to be the program's.
        unsafe { own::<[u64; 3]>(old)?.write([0, 2, 0]) };
    }
    Ok(0)
}

/// sched_yield(2).
pub fn yield_now(me: &mut Thread) -> Outcome {
    host::call_keeping(me, hostcall::YIELD, 0, 0, 0);
    Ok(0)
}

/// kill, tkill, tgkill of this very process: a deadly signal ends the enclave as abort does; signal 0 asks whether the
/// process exists.
pub fn kill(me: &mut Thread, r: &Registers, _target: u64, signal: u64) -> Outcome {
    match signal {
        0 => Ok(0),
        // SIGCHLD, SIGCONT, SIGURG, SIGWINCH are ignored by default.
        17 | 18 | 23 | 28 => Ok(0),
        1..=64 => crate::exception::die_of_abort(me, r.rip, signal),
        _ => Err(Errno::INVAL),
    }
}

/// exit_group(2): the enclave has ended; other threads find out at their next entry or call.
pub fn exit_group(me: &mut Thread, status: u64) -> ! {
    // Whoever exits without fsync finds everything there next time, as on Linux; failures are logged.
    let _ = super::mounts::commit_all(me);
    super::report(me);
    crate::set_ended();
    me.set_state(state::FREE, false);
    // SAFETY: this thread is over.
    unsafe { entry::enclos_leave(exit::EXIT, status & 0xff, 0) }
}

fn zero(at: u64, len: u64) -> Outcome {
    if at != 0 {
        let to = own_bytes(at, len)?;
        // SAFETY: checked to be the program's.
        unsafe { core::ptr::write_bytes(to, 0, len as usize) };
    }
    Ok(0)
}
