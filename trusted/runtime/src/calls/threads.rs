//! Threads, and the end.

use super::{Outcome, own};
use crate::entry;
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

/// sched_yield(2).
pub fn yield_now(me: &mut Thread) -> Outcome {
    host::call_keeping(me, hostcall::YIELD, 0, 0, 0);
    Ok(0)
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
