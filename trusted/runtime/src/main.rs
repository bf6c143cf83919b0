//! The runtime: what is measured first into every Enclos image, and what Linux is to the program inside.
//!
//! It is a freestanding static PIE of its own, placed at the start of ELRANGE; the application, an ordinary static PIE,
//! follows. Its parts, in the order in which a thread meets them:
//!
//! - [`entry`]: where EENTER lands and EEXIT leaves (assembly);
//! - [`boot`]: the first entry: checks what the host passed, builds the application's stack, jumps to it;
//! - [`calls`]: the Linux calls, one file a family;
//! - [`table`]: what the enclave library asks beyond Linux: parking, typed host calls, reports, keys;
//! - [`heap`]: the runtime's own allocations;
//! - [`thread`], [`memory`], [`pages`], [`clock`], [`cpu`]: what those stand on;
//! - [`host`]: the one place that touches memory of the host; [`replies`]: what it answers, judged;
//! - [`exception`]: entries at CSSA = 1.
//!
//! It assumes nothing of the host but that it answers. The application is trusted: it is measured too.
//!
//! Built with `--cfg freestanding` (and `panic = "abort"`), as the packer does, it is the freestanding program. Other builds exist for lints and tests only.

#![cfg_attr(freestanding, no_std, no_main)]
#![cfg_attr(not(freestanding), allow(dead_code))]
// Everything is the binary's own; `pub` says what a module offers to the others.
#![allow(unreachable_pub)]

extern crate alloc;

mod boot;
mod calls;
mod clock;
mod cpu;
mod entry;
mod exception;
mod heap;
mod host;
mod lock;
#[cfg(freestanding)]
mod mem;
mod memory;
mod pages;
mod replies;
mod table;
mod thread;

use core::sync::atomic::{AtomicBool, Ordering};

static ENDED: AtomicBool = AtomicBool::new(false);

/// Has the enclave ended (exit, abort, fault)? Then no entry runs the application any more.
pub(crate) fn ended() -> bool {
    ENDED.load(Ordering::Acquire)
}

/// From now on it has.
pub(crate) fn set_ended() {
    ENDED.store(true, Ordering::Release);
}

/// A panic of the runtime itself is a bug in it: the enclave ends.
#[cfg(freestanding)]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    exception::die_of_bug(format_args!("the runtime panicked: {info}"))
}

#[cfg(not(freestanding))]
fn main() {
    eprintln!("This is the runtime that enclos packs into images; it does not run by itself.");
    std::process::exit(2);
}
