//! The enclave of the published crate `report-test`, an image built by others, with its own host code, which executes
//! ENCLU\[EENTER\] itself: loaded through our `sgxs::loader::Load` it must run, and the REPORT that it makes with
//! EREPORT must be what the architecture says.

mod common;

use common::*;

/// That host code uses the vDSO's `__vdso_sgx_enter_enclave` where the kernel has it, and there the kernel, not the
/// emulator, gets the trap of a processor without SGX. `report_vdso.rs` covers those kernels.
fn host_code_executes_enclu() -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let vdso = maps.lines().find(|l| l.ends_with("[vdso]")).and_then(|l| l.split_once(' '));
    let Some((from, to)) = vdso.and_then(|(range, _)| range.split_once('-')) else { return true };
    let at = |s| usize::from_str_radix(s, 16).unwrap();
    // SAFETY: the kernel maps the vDSO there, readable, for the life of the process.
    let vdso = unsafe { std::slice::from_raw_parts(at(from) as *const u8, at(to) - at(from)) };
    !vdso.windows(24).any(|w| w == b"__vdso_sgx_enter_enclave")
}

#[test]
fn report_test_runs_and_its_report_verifies() {
    if !host_code_executes_enclu() {
        eprintln!(
            "skipped: this kernel's vDSO has __vdso_sgx_enter_enclave, so the host code does not execute ENCLU"
        );
        return;
    }
    report_is_what_the_architecture_says(&mut emulator(1));
}

#[test]
fn it_runs_without_replaced_instructions_too() {
    if host_code_executes_enclu() {
        report_is_what_the_architecture_says(&mut emulator(2).trapping());
    }
}
