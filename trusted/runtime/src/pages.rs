//! Pages that come and go (SGX2): asking the host for them, and accepting what it did.
//!
//! Whatever the host answers is an allegation; what counts is EACCEPT, which the CPU refuses unless the page is there,
//! of the type and with the permissions that it names. **No page is ever accepted twice**: a host that takes a page away
//! and puts a fresh one there must not have its way, so whoever calls knows which pages are there.
//!
//! A page that the CPU does not find makes EACCEPT fault; `exception` turns that into [`FAULTED`].

use core::sync::atomic::{AtomicBool, Ordering};

use enclos::abi::hostcall;

use crate::entry;
use crate::host::{self, Errno};
use crate::memory::PAGE;
use crate::thread::Thread;

/// What EACCEPT returns here when it faulted. No error code of the SDM.
pub const FAULTED: u64 = u64::MAX;
/// SGX_PAGE_ATTRIBUTES_MISMATCH.
const MISMATCH: u64 = 19;

/// R, W of SECINFO.FLAGS (SDM vol. 3D, "SECINFO.FLAGS").
pub const READ: u64 = 1;
/// R and W.
pub const READ_WRITE: u64 = 3;
const PENDING: u64 = 1 << 3;
const MODIFIED: u64 = 1 << 4;
const PR: u64 = 1 << 5;
const PT_TCS: u64 = 1 << 8;
const PT_REG: u64 = 2 << 8;
const PT_TRIM: u64 = 4 << 8;

static IS_DYNAMIC: AtomicBool = AtomicBool::new(false);

/// Does memory come and go? Measured: the image says so.
pub fn are_dynamic() -> bool {
    IS_DYNAMIC.load(Ordering::Relaxed)
}

/// From now on it does.
pub fn set_dynamic() {
    IS_DYNAMIC.store(true, Ordering::Relaxed);
}

/// SECINFO, as an operand.
#[repr(C, align(64))]
struct Secinfo {
    flags: u64,
    reserved: [u64; 7],
}

fn accept(at: u64, flags: u64) -> u64 {
    let secinfo = Secinfo { flags, reserved: [0; 7] };
    // SAFETY: EACCEPT changes no memory; what it finds at the address is up to the CPU.
    unsafe { entry::enclos_eaccept((&raw const secinfo).cast(), at) }
}

/// Accepts pages one after another; how many were as they should be.
fn accept_all(at: u64, pages: u64, flags: u64) -> u64 {
    (0..pages).take_while(|i| accept(at + i * PAGE, flags) == 0).count() as u64
}

fn ask(number: u64, at: u64, pages: u64, more: u64) -> Result<(), Errno> {
    let answer = host::call_keeping(Thread::current(), number, at, pages, more);
    host::checked(answer, 0).map(drop)
}

/// Pages that are not there: zero, readable and writable afterwards. Returns how many there are now, from the first on.
///
/// # Errors
/// ENOMEM when that is not all of them.
pub fn bring(at: u64, pages: u64) -> (u64, Result<(), Errno>) {
    if ask(hostcall::AUGMENT, at, pages, 0).is_err() {
        return (0, Err(Errno::NOMEM));
    }
    let there = accept_new(at, pages);
    (there, if there == pages { Ok(()) } else { Err(Errno::NOMEM) })
}

/// Accepts pages that the host says it has added; how many there are.
pub fn accept_new(at: u64, pages: u64) -> u64 {
    accept_all(at, pages, PENDING | PT_REG | READ_WRITE)
}

/// Is a page that was accepted before still there, readable and writable? One that the host put there since is not: it is
/// pending.
pub fn is_there(at: u64) -> bool {
    accept(at, PT_REG | READ_WRITE) == 0
}

/// What became of a page that was to go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It is not there any more.
    Yes,
    /// It is there as before.
    No,
    /// Nobody can say; it must not be used again.
    Unknown,
}

/// Gives regular pages back. `each` learns what became of them, run by run: first page, number.
pub fn send_back(at: u64, pages: u64, mut each: impl FnMut(u64, u64, Gone)) {
    // A host that says no may have done it all the same, and the other way round: EACCEPT tells.
    let _ = ask(hostcall::TRIM, at, pages, 0);
    // Pages gone one after another, up to this one.
    let mut run = 0;
    for i in 0..=pages {
        let gone = match i == pages {
            true => Gone::No,
            false => match accept(at + i * PAGE, MODIFIED | PT_TRIM) {
                0 => Gone::Yes,
                MISMATCH => Gone::No,
                _ => Gone::Unknown,
            },
        };
        if gone == Gone::Yes {
            run += 1;
            continue;
        }
        // Before others may ask for them anew. If the host does not free them, that is its memory.
        if run != 0 {
            let _ = ask(hostcall::REMOVE, at + (i - run) * PAGE, run, 0);
            each(i - run, run, Gone::Yes);
        }
        run = 0;
        if i < pages {
            each(i, 1, gone);
        }
    }
}

/// Takes permissions of pages away that have at least these.
///
/// # Errors
/// ENOMEM when the host did not do it.
pub fn restrict(at: u64, pages: u64, permissions: u64) -> Result<(), Errno> {
    ask(hostcall::RESTRICT, at, pages, permissions).map_err(|_| Errno::NOMEM)?;
    let accepted = accept_all(at, pages, PR | PT_REG | permissions);
    if accepted == pages { Ok(()) } else { Err(Errno::NOMEM) }
}

/// Gives regular pages permissions besides those that they have. The host is not asked.
pub fn extend(at: u64, pages: u64, permissions: u64) {
    let secinfo = Secinfo { flags: PT_REG | permissions, reserved: [0; 7] };
    for i in 0..pages {
        // SAFETY: EMODPE changes no memory. A page that is not there is a fault of the program's memory, as an access is.
        unsafe { entry::enclos_emodpe((&raw const secinfo).cast(), at + i * PAGE) };
    }
}

/// Makes a page whose contents are those of a TCS into one.
///
/// # Errors
/// ENOMEM when the host did not do it.
pub fn make_tcs(at: u64) -> Result<(), Errno> {
    ask(hostcall::MAKE_TCS, at, 1, 0).map_err(|_| Errno::NOMEM)?;
    if accept(at, MODIFIED | PT_TCS) == 0 { Ok(()) } else { Err(Errno::NOMEM) }
}
