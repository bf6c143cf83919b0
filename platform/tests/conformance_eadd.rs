//! ENCLS\[EADD\] and ENCLS\[EEXTEND\] against the SDM, one test a rule. Names in quotation marks are headings of the
//! Intel SDM, vol. 3D.

mod common;

use common::*;
use enclos_platform::PlatformError;
use enclos_platform::emulator::enclave::{EnclaveState, PageInfo};
use rsa::sha2::{Digest, Sha256};
use sgx_isa::{AttributesFlags, PageType, Secinfo, SecinfoFlags};

const R: SecinfoFlags = SecinfoFlags::R;
const W: SecinfoFlags = SecinfoFlags::W;
const X: SecinfoFlags = SecinfoFlags::X;

#[track_caller]
fn refuses(fault: &str, reason: &str, offset: u64, secinfo: &Secinfo, page: &[u8; 4096]) {
    let mut state = created();
    let before = state.measurement();
    assert_fault(state.eadd(offset, secinfo, &mut page.clone()), "EADD", fault, reason);
    assert_eq!(state.measurement(), before, "what faults is not measured");
    assert_eq!(state.epc_bytes(), 4096);
}

/// "EADD": the linear address must be page-aligned.
#[test]
fn an_address_that_is_not_page_aligned_is_gp() {
    for offset in [1, 0x800, 0x1fff] {
        refuses("#GP(0)", "multiple of 4096", offset, &regular(R), &ZEROS);
    }
}

/// "EADD": the linear address must lie in ELRANGE.
#[test]
fn an_address_outside_elrange_is_gp() {
    for offset in [0x1_0000, 0x2_0000, u64::MAX - 4095] {
        refuses("#GP(0)", "ELRANGE", offset, &regular(R), &ZEROS);
    }
}

/// "EADD", "SECINFO": flags that are reserved must be zero: PENDING, MODIFIED, PR (not EADD's to set), 6, 7, from 16.
#[test]
fn reserved_secinfo_flags_are_gp() {
    for bit in [3, 4, 5, 6, 7, 16, 17, 40, 63] {
        let flags = regular(R).flags | raw_flags(1 << bit);
        refuses("#GP(0)", "SECINFO", 0, &Secinfo { flags, ..Secinfo::default() }, &ZEROS);
    }
}

/// "EADD", "SECINFO": the 56 bytes after FLAGS must be zero.
#[test]
fn reserved_secinfo_bytes_are_gp() {
    for at in [0, 31, 55] {
        let mut secinfo = regular(R);
        secinfo._reserved1[at] = 1;
        refuses("#GP(0)", "SECINFO", 0, &secinfo, &ZEROS);
    }
}

/// "EADD": the page type must be PT_REG or PT_TCS; shadow stacks (5, 6) need CET.
#[test]
fn other_page_types_are_gp() {
    for page_type in [0u64, 3, 4, 5, 6, 7, 255] {
        let secinfo = Secinfo { flags: R | raw_flags(page_type << 8), ..Secinfo::default() };
        refuses("#GP(0)", "PT_REG or PT_TCS", 0, &secinfo, &ZEROS);
    }
}

/// "EADD": W without R is not possible.
#[test]
fn writable_without_readable_is_gp() {
    refuses("#GP(0)", "must be readable", 0, &regular(W), &ZEROS);
    refuses("#GP(0)", "must be readable", 0, &regular(W | X), &ZEROS);
}

/// "EADD": all other permissions are, execute-only and none included; EPCM has them as they were asked for.
#[test]
fn permissions_are_kept() {
    let mut state = created();
    for (i, permissions) in [R, R | W, R | X, R | W | X, X, SecinfoFlags::empty()].into_iter().enumerate() {
        let offset = i as u64 * 0x1000;
        state.eadd(offset, &regular(permissions), &mut ZEROS.clone()).unwrap();
        let expected = PageInfo { page_type: PageType::Reg, permissions };
        assert_eq!(state.page(offset), Some(expected));
        assert_eq!(state.page(offset + 0xfff), Some(expected));
        assert_eq!(state.page(offset + 0x1000), None);
    }
}

/// "EADD": a page that is already valid faults.
#[test]
fn adding_a_page_twice_is_pf() {
    let mut state = created();
    state.eadd(0x1000, &regular(R), &mut ZEROS.clone()).unwrap();
    assert_fault(state.eadd(0x1000, &regular(R), &mut ZEROS.clone()), "EADD", "#PF", "already a page");
    assert_fault(state.eadd(0x1000, &tcs(), &mut ZEROS.clone()), "EADD", "#PF", "already a page");
}

/// "EADD": an initialised enclave takes no pages.
#[test]
fn adding_to_an_initialised_enclave_is_gp() {
    let mut state = initialized_on(machine(), "signer", |_| {}, |_| {});
    let result = state.eadd(0x8000, &regular(R), &mut ZEROS.clone());
    assert_fault(result, "EADD", "#GP(0)", "already initialised");
}

/// "EADD", "Thread Control Structure": bytes from 72 on are reserved (OCETSSA and PREVSSP belong to CET).
#[test]
fn reserved_bytes_of_a_tcs_are_gp() {
    for at in [72, 79, 80, 88, 4095] {
        let mut page = ZEROS;
        page[at] = 1;
        refuses("#GP(0)", "TCS", 0, &tcs(), &page);
    }
}

/// "EADD", "TCS.FLAGS": all but DBGOPTIN are reserved; AEXNOTIFY needs a processor that has it.
#[test]
fn reserved_flags_of_a_tcs_are_gp() {
    for bit in [1, 2, 31, 63] {
        let mut page = ZEROS;
        page[8..16].copy_from_slice(&(1u64 << bit).to_le_bytes());
        refuses("#GP(0)", "TCS", 0, &tcs(), &page);
    }
}

/// "EADD": FSLIMIT and GSLIMIT of a 32-bit enclave's TCS must end in FFFH.
#[test]
fn limits_of_a_32_bit_tcs_must_end_in_fff() {
    let create = || {
        let mut secs = secs();
        (secs.attributes.flags, secs.baseaddr) = (AttributesFlags::empty(), 0);
        EnclaveState::ecreate(machine(), &secs).unwrap()
    };
    let page = |fs: u32, gs: u32| {
        let mut page = ZEROS;
        page[64..68].copy_from_slice(&fs.to_le_bytes());
        page[68..72].copy_from_slice(&gs.to_le_bytes());
        page
    };
    for (fs, gs) in [(0, 0xfff), (0xfff, 0), (0xffe, 0xfff)] {
        assert_fault(create().eadd(0, &tcs(), &mut page(fs, gs)), "EADD", "#GP(0)", "FSLIMIT");
    }
    create().eadd(0, &tcs(), &mut page(0x1fff, u32::MAX)).unwrap();
}

/// "EADD": limits of a 64-bit enclave's TCS may be anything.
#[test]
fn limits_of_a_64_bit_tcs_are_not_checked() {
    created().eadd(0, &tcs(), &mut ZEROS.clone()).unwrap();
}

/// "EADD": TCS.STATE, FLAGS.DBGOPTIN, CSSA and AEP are cleared; the rest is the enclave's and stays.
#[test]
fn the_processors_fields_of_a_tcs_are_cleared() {
    let mut page = ZEROS;
    page[..8].fill(0x11);
    page[8] = 1;
    page[16..24].copy_from_slice(&0x6000u64.to_le_bytes());
    page[24..28].copy_from_slice(&7u32.to_le_bytes());
    page[28..32].copy_from_slice(&3u32.to_le_bytes());
    page[32..40].copy_from_slice(&0x1234u64.to_le_bytes());
    page[40..48].fill(0x22);
    page[48..56].copy_from_slice(&0x8000u64.to_le_bytes());
    page[56..64].copy_from_slice(&0x9000u64.to_le_bytes());
    page[64..68].copy_from_slice(&0xfffu32.to_le_bytes());
    page[68..72].copy_from_slice(&0x1fffu32.to_le_bytes());
    let mut expected = page;
    expected[..8].fill(0);
    expected[8] = 0;
    expected[24..28].fill(0);
    expected[40..48].fill(0);
    let mut state = created();
    state.eadd(0x5000, &tcs(), &mut page).unwrap();
    assert_eq!(page, expected);
    let [t] = state.tcs() else { panic!("one TCS") };
    assert_eq!((t.offset, t.ossa, t.nssa, t.oentry), (0x5000, 0x6000, 3, 0x1234));
    assert_eq!((t.ofsbase, t.ogsbase, t.fslimit, t.gslimit), (0x8000, 0x9000, 0xfff, 0x1fff));
}

/// "EADD": permissions of a TCS are forced to none, before they are measured.
#[test]
fn permissions_of_a_tcs_are_forced_to_none() {
    let (mut with, mut without) = (created(), created());
    let flags = tcs().flags | R | W;
    with.eadd(0x1000, &Secinfo { flags, ..Secinfo::default() }, &mut ZEROS.clone()).unwrap();
    without.eadd(0x1000, &tcs(), &mut ZEROS.clone()).unwrap();
    let none = PageInfo { page_type: PageType::Tcs, permissions: SecinfoFlags::empty() };
    assert_eq!(with.page(0x1000), Some(none));
    assert_eq!(with.measurement(), without.measurement());
}

/// "EADD": measures "EADD", the offset, and 48 bytes of SECINFO; not the contents.
#[test]
fn eadd_measures_offset_and_secinfo() {
    let mut state = created();
    let mut expected = expected_start();
    for (offset, secinfo, fill) in
        [(0x3000u64, regular(R | X), 0x55), (0x1000, tcs(), 0), (0xf000, regular(R | W), 0xaa)]
    {
        state.eadd(offset, &secinfo, &mut [fill; 4096]).unwrap();
        let mut block = Vec::from(0x4444_4145u64.to_le_bytes());
        block.extend(offset.to_le_bytes());
        block.extend(&secinfo.as_ref()[..48]);
        assert_eq!(block.len(), 64);
        expected.update(&block);
        assert_eq!(state.measurement()[..], expected.clone().finalize()[..]);
    }
}

/// "Enclave Page Cache": each page is one of it, and a page that does not fit is not added.
#[test]
fn every_page_occupies_epc() {
    let machine = machine_with(|c| c.epc_bytes = 3 * 4096);
    let mut state = EnclaveState::ecreate(machine.clone(), &secs()).unwrap();
    state.eadd(0, &regular(R), &mut ZEROS.clone()).unwrap();
    state.eadd(0x1000, &tcs(), &mut ZEROS.clone()).unwrap();
    let before = state.measurement();
    for secinfo in [regular(R), tcs()] {
        let result = state.eadd(0x2000, &secinfo, &mut ZEROS.clone());
        assert!(matches!(result, Err(PlatformError::EpcExhausted { needed: 4096, available: 0 })));
    }
    assert_eq!((state.page(0x2000), state.measurement(), state.tcs().len()), (None, before, 1));
    drop(state);
    assert_eq!(machine.epc().0, 0);
}

/// "EEXTEND": the address must be a multiple of 256.
#[test]
fn extending_at_an_odd_address_is_gp() {
    let mut state = created();
    state.eadd(0, &regular(R), &mut ZEROS.clone()).unwrap();
    for offset in [1, 64, 128, 0xfff] {
        assert_fault(state.eextend(offset, &[0; 256]), "EEXTEND", "#GP(0)", "256");
    }
}

/// "EEXTEND": the page must be valid.
#[test]
fn extending_what_is_not_there_is_pf() {
    let mut state = created();
    state.eadd(0, &regular(R), &mut ZEROS.clone()).unwrap();
    for offset in [0x1000, 0xff00, 0x1_0000, u64::MAX - 255] {
        assert_fault(state.eextend(offset, &[0; 256]), "EEXTEND", "#PF", "page that was added");
    }
}

/// "EEXTEND": regular and TCS pages can be extended.
#[test]
fn regular_and_tcs_pages_can_be_extended() {
    let mut state = created();
    state.eadd(0, &regular(R), &mut ZEROS.clone()).unwrap();
    state.eadd(0x1000, &tcs(), &mut ZEROS.clone()).unwrap();
    state.eextend(0x100, &[1; 256]).unwrap();
    state.eextend(0x1f00, &[2; 256]).unwrap();
}

/// "EEXTEND": not after EINIT.
#[test]
fn extending_an_initialised_enclave_is_gp() {
    let mut state = initialized_on(machine(), "signer", |_| {}, |_| {});
    assert_fault(state.eextend(0x1000, &[0; 256]), "EEXTEND", "#GP(0)", "already initialised");
}

/// "EEXTEND": measures "EEXTEND", the chunk's offset, then its 256 bytes.
#[test]
fn eextend_measures_offset_and_bytes() {
    let mut state = created();
    let mut expected = expected_start();
    state.eadd(0x2000, &regular(R), &mut ZEROS.clone()).unwrap();
    let mut eadd = Vec::from(0x4444_4145u64.to_le_bytes());
    eadd.extend(0x2000u64.to_le_bytes());
    eadd.extend(0x201u64.to_le_bytes());
    eadd.resize(64, 0);
    expected.update(&eadd);
    for offset in [0x2f00u64, 0x2000, 0x2000] {
        let chunk: [u8; 256] = std::array::from_fn(|i| (i as u64 + offset) as u8);
        state.eextend(offset, &chunk).unwrap();
        let mut block = Vec::from(0x0044_4e45_5458_4545u64.to_le_bytes());
        block.extend(offset.to_le_bytes());
        block.resize(64, 0);
        expected.update(&block);
        expected.update(chunk);
        assert_eq!(state.measurement()[..], expected.clone().finalize()[..]);
    }
}

/// "State Save Area (SSA) Frame": frames count as far as they lie in readable and writable regular pages.
#[test]
fn usable_frames_end_where_pages_do_not_fit() {
    let mut state = created();
    for (offset, permissions) in [(0x2000, R | W), (0x3000, R | W), (0x4000, R)] {
        state.eadd(offset, &regular(permissions), &mut ZEROS.clone()).unwrap();
    }
    let mut page = ZEROS;
    page[16..24].copy_from_slice(&0x2000u64.to_le_bytes());
    page[28..32].copy_from_slice(&u32::MAX.to_le_bytes());
    state.eadd(0, &tcs(), &mut page).unwrap();
    page[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    state.eadd(0x1000, &tcs(), &mut page).unwrap();
    assert_eq!(state.tcs().iter().map(|t| state.usable_frames(t)).collect::<Vec<_>>(), [2, 0]);
}

/// The hash after ECREATE of [`secs`].
fn expected_start() -> Sha256 {
    let mut block = Vec::from(0x0045_5441_4552_4345u64.to_le_bytes());
    block.extend(1u32.to_le_bytes());
    block.extend(0x1_0000u64.to_le_bytes());
    block.resize(64, 0);
    Sha256::new().chain_update(&block)
}
