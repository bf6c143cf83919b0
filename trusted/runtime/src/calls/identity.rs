//! Who and where the program is: answered from what is measured, never from the host.

use super::{Outcome, own, own_bytes};
use crate::clock::{self, Clock};
use crate::host::Errno;
use crate::thread::Thread;

/// uname(2): a fixed name; six fields of 65 bytes.
pub fn uname(to: u64) -> Outcome {
    const FIELD: usize = 65;
    let to = own_bytes(to, 6 * FIELD as u64)?;
    let mut all = [0_u8; 6 * FIELD];
    for (i, text) in ["Linux", "enclave", "6.6.0-enclos", "#1", "x86_64", ""].into_iter().enumerate() {
        all[i * FIELD..i * FIELD + text.len()].copy_from_slice(text.as_bytes());
    }
    // SAFETY: checked to be the program's.
    unsafe { core::ptr::copy_nonoverlapping(all.as_ptr(), to, all.len()) };
    Ok(0)
}

/// getcwd(2): the root.
pub fn getcwd(to: u64, len: u64) -> Outcome {
    if len < 2 {
        return Err(Errno::RANGE);
    }
    // SAFETY: checked to be the program's.
    unsafe { own::<[u8; 2]>(to)?.write(*b"/\0") };
    Ok(2)
}

/// getrandom(2): the CPU's generator, never the host's.
pub fn getrandom(to: u64, len: u64) -> Outcome {
    let len = len.min(1 << 25);
    let to = own_bytes(to, len)?;
    // SAFETY: checked to be the program's.
    let bytes = unsafe { core::slice::from_raw_parts_mut(to, len as usize) };
    if crate::cpu::fill_random(bytes) { Ok(len) } else { Err(Errno::IO) }
}

/// sched_getaffinity(2): as many CPUs as the host offers, at most one a thread.
pub fn sched_getaffinity(len: u64, to: u64) -> Outcome {
    if len < 8 || !len.is_multiple_of(8) {
        return Err(Errno::INVAL);
    }
    let len = len.min(128);
    let to = own_bytes(to, len)?;
    let cpus = crate::boot::cpus();
    for i in 0..len {
        let bits = cpus.saturating_sub(8 * i).min(8);
        // SAFETY: checked to be the program's.
        unsafe { to.add(i as usize).write(((1_u32 << bits) - 1) as u8) };
    }
    Ok(len)
}

/// getrlimit(2): of descriptors there are so many; of all else 8 MiB soft, no hard limit: what programs see for stacks
/// elsewhere.
pub fn getrlimit(which: u64, to: u64) -> Outcome {
    const RLIMIT_NOFILE: u64 = 7;
    let limits = match which {
        RLIMIT_NOFILE => [super::descriptors::MOST as u64; 2],
        _ => [8 << 20, u64::MAX],
    };
    // SAFETY: checked to be the program's.
    unsafe { own::<[u64; 2]>(to)?.write(limits) };
    Ok(0)
}

/// prlimit64(2): limits can be asked for, not set.
pub fn prlimit(which: u64, new: u64, old: u64) -> Outcome {
    if new != 0 {
        return Err(Errno::PERM);
    }
    if old == 0 { Ok(0) } else { getrlimit(which, old) }
}

/// getrusage(2): the time since the start as user time, all else zero.
pub fn getrusage(me: &mut Thread, to: u64) -> Outcome {
    let to = own::<[u64; 18]>(to)?;
    let ns = clock::now(me, Clock::Monotonic)?;
    let mut usage = [0; 18];
    (usage[0], usage[1]) = (ns / 1_000_000_000, ns % 1_000_000_000 / 1000);
    // SAFETY: checked to be the program's.
    unsafe { to.write(usage) };
    Ok(0)
}

/// sysinfo(2): memory is the enclave's heap.
pub fn sysinfo(me: &mut Thread, to: u64) -> Outcome {
    let to = own::<[u64; 14]>(to)?;
    let (total, free) = crate::memory::totals();
    let mut info = [0; 14];
    info[0] = clock::now(me, Clock::Monotonic)? / 1_000_000_000;
    (info[4], info[5]) = (total, free);
    info[13] = 1; // mem_unit
    // SAFETY: checked to be the program's; 112 bytes is the size of `struct sysinfo`.
    unsafe { to.write(info) };
    Ok(0)
}

/// prctl(2): PR_SET_NAME (15) and PR_SET_VMA (for naming memory) change nothing that matters.
pub fn prctl(what: u64) -> Outcome {
    match what {
        15 => Ok(0),
        _ => Err(Errno::INVAL),
    }
}

/// getcpu(2): always the first.
pub fn getcpu(cpu: u64, node: u64) -> Outcome {
    for at in [cpu, node] {
        if at != 0 {
            // SAFETY: checked to be the program's.
            unsafe { own::<u32>(at)?.write(0) };
        }
    }
    Ok(0)
}
