//! As `report.rs`, but the host code of `report-test` enters through `__vdso_sgx_enter_enclave`, to which it links
//! weakly: here that symbol is the emulator's enter function, which has the same calling convention.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use enclos_platform::Initialized as _;

static ENTER: AtomicUsize = AtomicUsize::new(0);

std::arch::global_asm!(
    ".text",
    ".global __vdso_sgx_enter_enclave",
    ".type __vdso_sgx_enter_enclave, @function",
    "__vdso_sgx_enter_enclave:",
    "jmp qword ptr [rip + {enter}]",
    enter = sym ENTER,
);

unsafe extern "C" {
    fn __vdso_sgx_enter_enclave();
}

#[test]
fn report_test_runs_through_the_enter_function() {
    let mut emulator = emulator(1);
    let enter = target(&mut emulator, 0).enclave().enter_function();
    ENTER.store(enter as usize, Ordering::Release);
    assert_ne!(__vdso_sgx_enter_enclave as *const () as usize, 0);
    report_is_what_the_architecture_says(&mut emulator);
}
