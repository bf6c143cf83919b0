//! Entries at CSSA = 1: a thread left by an exception, and the host brings it back to find out what to do.
//!
//! What the program could not execute (SYSCALL, CPUID) is turned into a jump to where rewritten sites jump: the SSA
//! frame is changed and the host told to ERESUME, so that nothing but this decision runs at CSSA = 1. A page fault in
//! memory that was promised makes the host add pages, and comes here again to accept them; EACCEPT of a page that is not
//! there returns an error. Everything else ends the enclave with a report.

use core::fmt::Write;

use enclos::abi::{FaultReport, counter, exit, thread as region};
use enclos::image::{TRAP_CPUID, TrapSite};

use crate::entry;
use crate::host::Frame;
use crate::memory::{self, Fault};
use crate::thread::Thread;

/// Vector reported when the program aborts by itself.
pub const ABORT: u32 = 0x100;
/// Vector reported when the runtime found a bug in itself.
pub const BUG: u32 = 0x101;
/// Vector reported when memory does not come that the program was promised.
pub const NO_MEMORY: u32 = 0x102;

/// The general registers' part of an SSA frame (SDM vol. 3D, 34.9.1.1).
#[derive(Clone, Copy)]
#[repr(C)]
struct Gprsgx {
    rax: u64,
    rcx: u64,
    rdx: u64,
    rbx: u64,
    rsp: u64,
    rbp: u64,
    rsi: u64,
    rdi: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rflags: u64,
    rip: u64,
    ursp: u64,
    urbp: u64,
    exitinfo: u32,
    reserved: u32,
    fsbase: u64,
    gsbase: u64,
}
const _: () = assert!(size_of::<Gprsgx>() == 184);

/// EXITINFO of a hardware exception #UD.
const INVALID_OPCODE: u32 = 1 << 31 | 3 << 8 | 6;
/// EXITINFO of a hardware exception #PF.
const PAGE_FAULT: u32 = 1 << 31 | 3 << 8 | 14;

/// From `enclos_entry` at CSSA = 1. `answer`: what the host says became of its last [`exit::AUGMENT`], 0 or an error.
pub unsafe extern "C" fn handle(me: &'static mut Thread, answer: u64) -> ! {
    let at = core::ptr::from_mut(me) as u64 - region::DATA + region::SSA;
    let frame = (at + u64::from(region::SSA_FRAME_PAGES) * 4096 - size_of::<Gprsgx>() as u64) as *mut Gprsgx;
    // SAFETY: the first SSA frame of this thread: the CPU filled it when the thread left, and nobody else touches it
    // while the thread is at CSSA = 1.
    let gpr = unsafe { &mut *frame };
    if gpr.rip == entry::enclos_eaccept_site as *const () as u64 {
        // The page is not there. Or the host interrupted the thread just here and pretends so: then it is not accepted.
        gpr.rax = crate::pages::FAULTED;
        gpr.rip = entry::enclos_eaccept_done as *const () as u64;
        resume();
    }
    let in_program = crate::boot::in_application(gpr.rip);
    if gpr.exitinfo == INVALID_OPCODE && in_program && !crate::ended() {
        // SAFETY: the CPU fetched an instruction there.
        let bytes = unsafe { [*(gpr.rip as *const u8), *((gpr.rip + 1) as *const u8)] };
        let next = gpr.rip + 2;
        if bytes == [0x0f, 0x05] {
            crate::calls::count(counter::TRAPPED_CALLS);
            gpr.rcx = next;
            gpr.r11 = gpr.rflags;
            gpr.rip = entry::enclos_syscall as *const () as u64;
            resume();
        }
        if bytes == [0x0f, 0xa2] || trap_at(gpr.rip) == Some(TRAP_CPUID) {
            gpr.rdx = next;
            gpr.rip = entry::enclos_cpuid as *const () as u64;
            resume();
        }
    }
    if gpr.exitinfo == INVALID_OPCODE && crate::boot::in_runtime(gpr.rip) && !crate::ended() {
        // SAFETY: the CPU fetched an instruction there.
        let bytes = unsafe { [*(gpr.rip as *const u8), *((gpr.rip + 1) as *const u8)] };
        if bytes == [0x0f, 0xa2] {
            let [a, b, c, d] = crate::cpu::own_cpuid(gpr.rax as u32).map(u64::from);
            (gpr.rax, gpr.rbx, gpr.rcx, gpr.rdx) = (a, b, c, d);
            gpr.rip += 2;
            resume();
        }
    }
    // EXINFO, just below GPRSGX: valid for #PF and #GP.
    // SAFETY: the same frame.
    let address = unsafe { *frame.cast::<u64>().sub(2) };
    let mut vector = if gpr.exitinfo >> 31 != 0 { gpr.exitinfo & 0xff } else { u32::MAX };
    let address = if vector == 14 { address } else { 0 };
    let rip = gpr.rip;
    if gpr.exitinfo == PAGE_FAULT
        && crate::pages::are_dynamic()
        && !crate::ended()
        && let Err(NotThere) = bring_or_go_on(me, address, answer)
    {
        vector = NO_MEMORY;
    }
    let len = report(me, vector, rip, address, format_args!("{} at {}", name(vector), Place(rip)));
    // SAFETY: the enclave has ended; this thread goes no further.
    unsafe { entry::enclos_leave_exception(exit::FAULT, len, 0) }
}

/// Ends the enclave because the program asked for it (SIGABRT and the like).
pub fn die_of_abort(me: &mut Thread, rip: u64, signal: u64) -> ! {
    let len = report(me, ABORT, rip, 0, format_args!("the program ended itself by signal {signal} (abort)"));
    me.set_state(crate::thread::state::FREE, false);
    // SAFETY: as above.
    unsafe { entry::enclos_leave(exit::FAULT, len, 0) }
}

/// Ends the enclave because of a bug in the runtime.
pub fn die_of_bug(what: core::fmt::Arguments<'_>) -> ! {
    let me = Thread::current();
    let len = report(me, BUG, 0, 0, what);
    me.set_state(crate::thread::state::FREE, false);
    // SAFETY: as above.
    unsafe { entry::enclos_leave(exit::FAULT, len, 0) }
}

/// What was promised does not come. The program was told that it has this memory; there is nothing else to tell it.
struct NotThere;

/// A page fault of the program, or of the runtime on its behalf: if it touched what was promised and comes, does not
/// return.
fn bring_or_go_on(me: &mut Thread, address: u64, answer: u64) -> Result<(), NotThere> {
    let (at, count) = core::mem::take(&mut me.awaited);
    if count != 0 {
        if answer != 0 || !memory::arrived(at, count) {
            return Err(NotThere);
        }
        resume();
    }
    match memory::on_fault(address) {
        Fault::Foreign => Ok(()),
        Fault::Again { is_there } => {
            // A page that another thread brought just now. If it is not there any more, the host took it away.
            if !is_there || crate::pages::is_there(address & !(memory::PAGE - 1)) {
                resume();
            }
            Ok(())
        }
        Fault::Bring(at, count) => {
            me.awaited = (at, count);
            // SAFETY: nothing of this entry is left behind; the next one at CSSA = 1 comes back here.
            unsafe { entry::enclos_leave_exception(exit::AUGMENT, at, count) }
        }
    }
}

fn resume() -> ! {
    // SAFETY: nothing of this entry is left behind.
    unsafe { entry::enclos_leave_exception(exit::RESUME, 0, 0) }
}

fn trap_at(rip: u64) -> Option<u64> {
    let offset = rip - entry::enclave_base();
    let sites: &[TrapSite] = crate::boot::trap_table();
    sites.binary_search_by_key(&offset, |s| s.offset).ok().map(|i| sites[i].kind)
}

const REPORT_LEN: usize = size_of::<FaultReport>();

/// Writes the report into the thread's frame, marks the enclave ended and returns the report's length. Addresses are told for debug images only: in
/// production they would help an attacker.
fn report(me: &Thread, vector: u32, rip: u64, address: u64, what: core::fmt::Arguments<'_>) -> u64 {
    crate::set_ended();
    let debug = crate::boot::is_debug();
    let frame = Frame::of(me);
    let mut text = FrameText { frame, len: 0 };
    let _ = if debug { write!(text, "{what}") } else { write!(text, "{}", name(vector)) };
    let base = entry::enclave_base();
    let words: [u64; 4] = [
        u64::from(vector) | me.seed.index << 32,
        if debug && rip >= base { rip - base } else { 0 },
        if debug { address } else { 0 },
        text.len,
    ];
    for (i, w) in words.into_iter().enumerate() {
        frame.put(8 * i as u64, &w.to_le_bytes());
    }
    REPORT_LEN as u64 + text.len
}

/// Text written straight into the frame, after the fixed part; what does not fit is dropped.
struct FrameText {
    frame: Frame,
    len: u64,
}

impl Write for FrameText {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        if self.frame.put(REPORT_LEN as u64 + self.len, s.as_bytes()) {
            self.len += s.len() as u64;
        }
        Ok(())
    }
}

struct Place(u64);

impl core::fmt::Display for Place {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let base = entry::enclave_base();
        let (what, from) = match self.0 {
            a if crate::boot::in_application(a) => ("application", crate::boot::application_base()),
            a if a >= base => ("enclave", base),
            _ => ("outside", 0),
        };
        write!(f, "{what}+{:#x}", self.0 - from)
    }
}

fn name(vector: u32) -> &'static str {
    match vector {
        0 => "division error (#DE)",
        1 => "debug exception (#DB)",
        3 => "breakpoint (#BP)",
        5 => "bound range exceeded (#BR)",
        6 => "invalid opcode (#UD)",
        13 => "general protection (#GP)",
        14 => "page fault (#PF)",
        16 => "x87 error (#MF)",
        17 => "alignment check (#AC)",
        19 => "SIMD error (#XM)",
        ABORT => "aborted by the program",
        BUG => "bug in the runtime",
        NO_MEMORY => "out of memory: pages that were promised did not come",
        _ => "exception",
    }
}
