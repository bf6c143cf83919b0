//! The leaf functions of SGX2 against the SDM, one test a rule. Names in quotation marks are headings of the Intel SDM,
//! vol. 3D.

mod common;

use std::cell::Cell;

use common::*;
use enclos_platform::PlatformError;
use enclos_platform::emulator::dynamic::{Inside, is_sound_tcs};
use enclos_platform::emulator::enclave::EnclaveState;
use enclos_platform::emulator::keys::Fault;
use sgx_isa::{AttributesFlags, ErrorCode, PageType, Secinfo, SecinfoFlags};

const R: SecinfoFlags = SecinfoFlags::R;
const W: SecinfoFlags = SecinfoFlags::W;
const X: SecinfoFlags = SecinfoFlags::X;
const PENDING: SecinfoFlags = SecinfoFlags::PENDING;
const MODIFIED: SecinfoFlags = SecinfoFlags::MODIFIED;
const PR: SecinfoFlags = SecinfoFlags::PR;
/// Where the enclave of these tests begins.
const BASE: u64 = 0x1_0000_0000;
/// A page that is free after EINIT.
const FREE: u64 = 0x8000;
/// A readable and writable page that EADD added.
const ADDED: u64 = 0x1000;
const READ_ONLY: u64 = 0x3000;
const TCS: u64 = 0x5000;

fn initialized() -> EnclaveState {
    initialized_on(machine(), "signer", |_| {}, |_| {})
}

fn reg() -> SecinfoFlags {
    PageType::Reg.into()
}

fn of_type(page_type: PageType) -> Secinfo {
    Secinfo { flags: page_type.into(), ..Secinfo::default() }
}

/// The 64 bytes that an ENCLU leaf function finds at RBX.
fn operand(flags: SecinfoFlags) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..8].copy_from_slice(&flags.bits().to_le_bytes());
    bytes
}

/// One thread, inside since that many ETRACKs; `None`: outside.
struct Thread(Cell<Option<u16>>);

impl Inside for Thread {
    fn oldest_entry(&self) -> Option<u16> {
        self.0.get()
    }
}

fn inside(since: u16) -> Thread {
    Thread(Cell::new(Some(since)))
}

#[track_caller]
fn assert_failed<T>(result: Result<T, PlatformError>, leaf: &str, code: ErrorCode) {
    match result.err().expect("it must fail") {
        PlatformError::Leaf { leaf: l, code: c, .. } => assert_eq!((l, c), (leaf, code)),
        other => panic!("not an error code: {other}"),
    }
}

fn accept(state: &EnclaveState, flags: SecinfoFlags, offset: u64) -> Result<Result<(), ErrorCode>, Fault> {
    state.eaccept(&operand(flags), BASE + offset, &(), || true)
}

/// As a kernel does it after EMODPR and EMODT.
fn track(state: &EnclaveState) {
    state.etrack(&()).unwrap();
}

/// "EAUG": a page that is pending, readable and writable, zero, and that nobody can use before it was accepted.
#[test]
fn an_augmented_page_is_pending() {
    let state = initialized();
    let before = state.epc_bytes();
    state.eaug(FREE, 1).unwrap();
    assert_eq!(state.epcm_entry(FREE), Some(R | W | PENDING | reg()));
    assert_eq!(state.page(FREE), None, "it cannot be used");
    assert_eq!(state.epc_bytes(), before + 4096);
    assert_eq!(state.secinfo_operand(BASE + FREE), Err(Fault::Page(BASE + FREE)));
}

/// "EAUG": #GP for misaligned addresses, those outside ELRANGE and enclaves that are not initialised; #PF for a page that
/// is there.
#[test]
fn eaug_faults() {
    let state = initialized();
    assert_fault(state.eaug(FREE + 8, 1), "EAUG", "#GP(0)", "multiple of 4096");
    for (offset, count) in [(0x1_0000, 1), (0xf000, 2), (u64::MAX - 4095, 1), (0, u64::MAX / 4096)] {
        assert_fault(state.eaug(offset, count), "EAUG", "#GP(0)", "ELRANGE");
    }
    assert_fault(created().eaug(FREE, 1), "EAUG", "#GP(0)", "not initialised");
    let before = state.epc_bytes();
    assert_fault(state.eaug(ADDED, 1), "EAUG", "#PF", "already a page");
    assert_fault(state.eaug(0, 2), "EAUG", "#PF", "already a page");
    assert_eq!((state.epcm_entry(0), state.epc_bytes()), (None, before), "nothing was added");
}

/// EPC is finite: what EAUG takes counts, what EREMOVE gives back too.
#[test]
fn eaug_takes_epc_and_eremove_gives_it_back() {
    let machine = machine_with(|c| c.epc_bytes = 8 * 4096);
    let state = initialized_on(machine.clone(), "signer", |_| {}, |_| {});
    assert_eq!(machine.epc().0, 6 * 4096);
    state.eaug(FREE, 2).unwrap();
    let error = state.eaug(FREE + 0x2000, 1).unwrap_err();
    assert!(matches!(error, PlatformError::EpcExhausted { needed: 4096, available: 0 }), "{error}");
    assert_eq!(state.epcm_entry(FREE + 0x2000), None);
    state.eremove(FREE, &()).unwrap();
    state.eaug(FREE + 0x2000, 1).unwrap();
    drop(state);
    assert_eq!(machine.epc().0, 0);
}

/// "EACCEPT": RBX aligned to 64 bytes and within ELRANGE, else #GP; in a page that is there, regular, readable, not
/// pending and not modified, else #PF.
#[test]
fn a_secinfo_operand_must_be_readable() {
    let state = initialized();
    assert_eq!(state.secinfo_operand(BASE + ADDED + 64), Ok(()));
    assert_eq!(state.secinfo_operand(BASE + ADDED + 32), Err(Fault::GeneralProtection));
    for outside in [BASE - 64, BASE + 0x1_0000, 0] {
        assert_eq!(state.secinfo_operand(outside), Err(Fault::GeneralProtection));
    }
    // Nothing there, execute-only, a TCS.
    for unreadable in [FREE, 0x4000, TCS] {
        assert_eq!(state.secinfo_operand(BASE + unreadable), Err(Fault::Page(BASE + unreadable)));
    }
    state.emodt(ADDED, &of_type(PageType::Trim)).unwrap();
    assert_eq!(state.secinfo_operand(BASE + ADDED), Err(Fault::Page(BASE + ADDED)));
}

/// "EACCEPT": reserved bits and bytes of SECINFO are #GP.
#[test]
fn reserved_fields_of_an_operand_are_gp() {
    let state = initialized();
    state.eaug(FREE, 1).unwrap();
    for bit in [6, 7, 16, 40, 63] {
        let flags = R | W | PENDING | reg() | raw_flags(1 << bit);
        assert_eq!(accept(&state, flags, FREE), Err(Fault::GeneralProtection), "bit {bit}");
    }
    for at in [8, 40, 63] {
        let mut secinfo = operand(R | W | PENDING | reg());
        secinfo[at] = 1;
        let gp = Err(Fault::GeneralProtection);
        assert_eq!(state.eaccept(&secinfo, BASE + FREE, &(), || true), gp);
        assert_eq!(state.emodpe(&secinfo, BASE + ADDED), Err(Fault::GeneralProtection));
        assert_eq!(state.eacceptcopy(&secinfo, BASE + FREE, BASE + ADDED, |_, _| true), gp);
    }
}

/// "EACCEPT": RCX aligned to a page and within ELRANGE, else #GP; a page that is not valid is #PF.
#[test]
fn eaccept_faults_on_its_page() {
    let state = initialized();
    let flags = R | W | PENDING | reg();
    for offset in [FREE + 1, FREE + 64, 0x1_0000, 0u64.wrapping_sub(BASE)] {
        let result = state.eaccept(&operand(flags), BASE.wrapping_add(offset), &(), || true);
        assert_eq!(result, Err(Fault::GeneralProtection), "{offset:#x}");
    }
    assert_eq!(accept(&state, flags, FREE), Err(Fault::Page(BASE + FREE)));
}

/// "EACCEPT": a regular page cannot be modified, a TCS or trimmed page cannot be pending and must be modified: #GP.
#[test]
fn combinations_that_make_no_sense_are_gp() {
    let state = initialized();
    state.eaug(FREE, 1).unwrap();
    let gp = Err(Fault::GeneralProtection);
    for flags in [
        R | W | MODIFIED | reg(),
        R | W | PENDING | MODIFIED | reg(),
        PageType::Tcs.into(),
        PENDING | PageType::Tcs.into(),
        PENDING | MODIFIED | PageType::Trim.into(),
        PageType::Trim.into(),
        MODIFIED | PageType::Va.into(),
        PageType::Secs.into(),
    ] {
        assert_eq!(accept(&state, flags, FREE), gp, "{flags:?}");
    }
}

/// "EACCEPT": type, permissions, PENDING and MODIFIED must be those of the EPCM: SGX_PAGE_ATTRIBUTES_MISMATCH.
#[test]
fn other_attributes_are_a_mismatch() {
    let state = initialized();
    state.eaug(FREE, 1).unwrap();
    let mismatch = Ok(Err(ErrorCode::PageAttributesMismatch));
    for flags in [
        R | PENDING | reg(),
        PENDING | reg(),
        R | W | X | PENDING | reg(),
        R | W | reg(),
        MODIFIED | PageType::Tcs.into(),
        MODIFIED | PageType::Trim.into(),
    ] {
        assert_eq!(accept(&state, flags, FREE), mismatch, "{flags:?}");
        assert_eq!(state.page(FREE), None);
    }
    assert_eq!(accept(&state, R | W | PENDING | reg(), FREE), Ok(Ok(())));
    assert_eq!(state.epcm_entry(FREE), Some(R | W | reg()));
    assert_eq!(accept(&state, R | W | PENDING | reg(), FREE), mismatch, "a second time");
    assert_eq!(accept(&state, R | W | reg(), FREE), Ok(Ok(())), "as it is now");
}

/// "EMODPR": #GP for misaligned addresses, reserved fields, W without R; #PF for what is no regular page of the enclave.
#[test]
fn emodpr_faults() {
    let state = initialized();
    let restrict = |offset, flags| state.emodpr(offset, &Secinfo { flags, ..Secinfo::default() });
    assert_fault(restrict(ADDED + 1, R), "EMODPR", "#GP(0)", "multiple of 4096");
    assert_fault(restrict(0x1_0000, R), "EMODPR", "#GP(0)", "ELRANGE");
    assert_fault(restrict(ADDED, W), "EMODPR", "#GP(0)", "must be readable");
    assert_fault(restrict(ADDED, R | raw_flags(1 << 20)), "EMODPR", "#GP(0)", "SECINFO");
    let mut reserved = Secinfo { flags: R, ..Secinfo::default() };
    reserved._reserved1[3] = 1;
    assert_fault(state.emodpr(ADDED, &reserved), "EMODPR", "#GP(0)", "SECINFO");
    assert_fault(restrict(FREE, R), "EMODPR", "#PF", "no page");
    assert_fault(restrict(TCS, R), "EMODPR", "#PF", "regular pages");
    assert_fault(created().emodpr(0, &reserved), "EMODPR", "#GP(0)", "SECINFO");
}

/// "EMODPR", "EMODT": a page that waits to be accepted cannot be changed: SGX_PAGE_NOT_MODIFIABLE.
#[test]
fn unaccepted_pages_are_not_modifiable() {
    let state = initialized();
    state.eaug(FREE, 1).unwrap();
    let readable = Secinfo { flags: R, ..Secinfo::default() };
    assert_failed(state.emodpr(FREE, &readable), "EMODPR", ErrorCode::PageNotModifiable);
    assert_failed(state.emodt(FREE, &of_type(PageType::Trim)), "EMODT", ErrorCode::PageNotModifiable);
    state.emodt(TCS, &of_type(PageType::Trim)).unwrap();
    assert_failed(state.emodpr(TCS, &readable), "EMODPR", ErrorCode::PageNotModifiable);
}

/// "EMODPR": SECINFO is a mask; what the page does not have it does not get. The page stays usable with what is left, and
/// EACCEPT sees that nothing else was taken.
#[test]
fn emodpr_takes_away_only() {
    let state = initialized();
    let restrict = |offset, flags| state.emodpr(offset, &Secinfo { flags, ..Secinfo::default() });
    restrict(ADDED, R | X).unwrap();
    assert_eq!(state.epcm_entry(ADDED), Some(R | PR | reg()));
    assert_eq!(state.page(ADDED).unwrap().permissions, R, "in force at once");
    track(&state);
    assert_eq!(accept(&state, R | W | PR | reg(), ADDED), Ok(Err(ErrorCode::PageAttributesMismatch)));
    assert_eq!(accept(&state, R | PR | reg(), ADDED), Ok(Ok(())));
    assert_eq!(state.epcm_entry(ADDED), Some(R | reg()));
    restrict(ADDED, SecinfoFlags::empty()).unwrap();
    track(&state);
    assert_eq!(accept(&state, PR | reg(), ADDED), Ok(Ok(())));
    assert_eq!(state.epcm_entry(ADDED), Some(reg()));
}

/// "EMODPE": gives permissions, keeps those that are there, needs no acceptance.
#[test]
fn emodpe_gives_permissions() {
    let state = initialized();
    assert_eq!(state.emodpe(&operand(R | W | reg()), BASE + READ_ONLY), Ok(()));
    assert_eq!(state.page(READ_ONLY).unwrap().permissions, R | W);
    assert_eq!(state.emodpe(&operand(X | reg()), BASE + READ_ONLY), Ok(()));
    assert_eq!(state.page(READ_ONLY).unwrap().permissions, R | W | X);
    assert_eq!(state.emodpe(&operand(reg()), BASE + READ_ONLY), Ok(()), "no effect");
    assert_eq!(state.page(READ_ONLY).unwrap().permissions, R | W | X);
}

/// "EMODPE": #GP for a misaligned page, one outside ELRANGE and W without R; #PF for a page that is not there, not regular,
/// pending or modified.
#[test]
fn emodpe_faults() {
    let state = initialized();
    let extend = |offset: u64, flags| state.emodpe(&operand(flags), BASE.wrapping_add(offset));
    assert_eq!(extend(READ_ONLY + 8, R | W), Err(Fault::GeneralProtection));
    assert_eq!(extend(0x1_0000, R | W), Err(Fault::GeneralProtection));
    assert_eq!(extend(0x4000, W), Err(Fault::GeneralProtection), "an execute-only page");
    assert_eq!(extend(FREE, R | W), Err(Fault::Page(BASE + FREE)));
    assert_eq!(extend(TCS, R | W), Err(Fault::Page(BASE + TCS)));
    state.eaug(FREE, 1).unwrap();
    assert_eq!(extend(FREE, X), Err(Fault::Page(BASE + FREE)), "pending");
    state.emodt(ADDED, &of_type(PageType::Trim)).unwrap();
    assert_eq!(extend(ADDED, X), Err(Fault::Page(BASE + ADDED)), "modified");
}

/// "EMODT": #GP for other types than TCS and TRIM; a TCS can only be trimmed, a trimmed page nothing any more: #PF.
#[test]
fn emodt_faults() {
    let state = initialized();
    for page_type in [PageType::Reg, PageType::Secs, PageType::Va] {
        assert_fault(state.emodt(ADDED, &of_type(page_type)), "EMODT", "#GP(0)", "PT_TCS or PT_TRIM");
    }
    let reserved = Secinfo { flags: raw_flags(4 << 8 | 1 << 17), ..Secinfo::default() };
    assert_fault(state.emodt(ADDED, &reserved), "EMODT", "#GP(0)", "SECINFO");
    assert_fault(state.emodt(ADDED + 8, &of_type(PageType::Trim)), "EMODT", "#GP(0)", "multiple of 4096");
    assert_fault(state.emodt(FREE, &of_type(PageType::Trim)), "EMODT", "#PF", "no page");
    assert_fault(state.emodt(TCS, &of_type(PageType::Tcs)), "EMODT", "#PF", "only regular pages");
    state.emodt(ADDED, &of_type(PageType::Trim)).unwrap();
    track(&state);
    assert_eq!(accept(&state, MODIFIED | PageType::Trim.into(), ADDED), Ok(Ok(())));
    assert_fault(state.emodt(ADDED, &of_type(PageType::Trim)), "EMODT", "#PF", "only regular pages");
    assert_fault(created().emodt(0, &of_type(PageType::Trim)), "EMODT", "#GP(0)", "not initialised");
}

/// "EMODT": the page is not accessible from then on, whatever its permissions were.
#[test]
fn a_modified_page_is_not_accessible() {
    let state = initialized();
    state.emodt(ADDED, &of_type(PageType::Tcs)).unwrap();
    assert_eq!(state.epcm_entry(ADDED), Some(MODIFIED | PageType::Tcs.into()));
    assert_eq!(state.page(ADDED), None);
}

/// "EACCEPT": a change that was not tracked, or while a thread is inside that entered before, is SGX_NOT_TRACKED.
#[test]
fn changes_must_be_tracked() {
    let state = initialized();
    let trimmed = operand(MODIFIED | PageType::Trim.into());
    let accept = |thread: &Thread| state.eaccept(&trimmed, BASE + ADDED, thread, || true);
    let not_tracked = Ok(Err(ErrorCode::NotTracked));
    let thread = inside(0);
    state.emodt(ADDED, &of_type(PageType::Trim)).unwrap();
    assert_eq!(accept(&thread), not_tracked, "no ETRACK");
    state.etrack(&thread).unwrap();
    assert_eq!(accept(&thread), not_tracked, "the thread has been inside since before");
    // It left and came back.
    thread.0.set(Some(1));
    assert_eq!(accept(&thread), Ok(Ok(())));
    assert_eq!(state.epcm_entry(ADDED), Some(PageType::Trim.into()));
    // The same for restricted permissions. A page that is only pending has nothing to track.
    state.emodpr(0x2000, &Secinfo { flags: R, ..Secinfo::default() }).unwrap();
    let restricted = operand(R | PR | reg());
    let result = state.eaccept(&restricted, BASE + 0x2000, &inside(1), || true);
    assert_eq!(result, not_tracked);
    state.eaug(FREE, 1).unwrap();
    let pending = operand(R | W | PENDING | reg());
    assert_eq!(state.eaccept(&pending, BASE + FREE, &inside(0), || true), Ok(Ok(())));
}

/// "ETRACK": while a thread is inside that was inside at the ETRACK before: SGX_PREV_TRK_INCMPL.
#[test]
fn etrack_waits_for_the_one_before() {
    let state = initialized();
    let thread = inside(0);
    state.etrack(&thread).unwrap();
    assert_failed(state.etrack(&thread), "ETRACK", ErrorCode::PrevTrkIncmpl);
    thread.0.set(Some(1));
    state.etrack(&thread).unwrap();
    thread.0.set(None);
    state.etrack(&thread).unwrap();
}

/// The count of ETRACKs goes round; a page changed just before is not tracked by accident.
#[test]
fn tracking_survives_many_etracks() {
    let state = initialized();
    for _ in 0..0xffff {
        track(&state);
    }
    state.emodt(ADDED, &of_type(PageType::Trim)).unwrap();
    let trimmed = MODIFIED | PageType::Trim.into();
    assert_eq!(accept(&state, trimmed, ADDED), Ok(Err(ErrorCode::NotTracked)));
    track(&state);
    assert_eq!(accept(&state, trimmed, ADDED), Ok(Ok(())));
}

/// "EACCEPT", TCS: reserved fields, DBGOPTIN, STATE, AEP must be zero and CSSA below NSSA, else #GP, and the page stays
/// modified.
#[test]
fn a_tcs_must_be_sound() {
    let attributes = AttributesFlags::MODE64BIT;
    let mut good = ZEROS;
    good[28] = 2;
    assert!(is_sound_tcs(&good, attributes));
    // STATE, FLAGS.DBGOPTIN, AEP, reserved.
    for at in [0, 7, 8, 15, 40, 47, 72, 80, 4095] {
        let mut bad = good;
        bad[at] = 1;
        assert!(!is_sound_tcs(&bad, attributes), "byte {at}");
    }
    let mut used_up = good;
    used_up[24] = 2;
    assert!(!is_sound_tcs(&used_up, attributes), "CSSA = NSSA");
    let mut thirty_two = good;
    assert!(!is_sound_tcs(&thirty_two, AttributesFlags::empty()), "limits of a 32-bit enclave");
    (thirty_two[64], thirty_two[65], thirty_two[68], thirty_two[69]) = (0xff, 0xf, 0xff, 0xf);
    assert!(is_sound_tcs(&thirty_two, AttributesFlags::empty()));

    let state = initialized();
    state.emodt(ADDED, &of_type(PageType::Tcs)).unwrap();
    track(&state);
    let secinfo = operand(MODIFIED | PageType::Tcs.into());
    let result = state.eaccept(&secinfo, BASE + ADDED, &(), || false);
    assert_eq!(result, Err(Fault::GeneralProtection));
    assert_eq!(state.page(ADDED), None);
    assert_eq!(state.eaccept(&secinfo, BASE + ADDED, &(), || true), Ok(Ok(())));
    assert_eq!(state.page(ADDED).unwrap().page_type, PageType::Tcs);
}

/// "EACCEPTCOPY": a pending page gets the contents of another one and the permissions of SECINFO.
#[test]
fn eacceptcopy_copies_and_sets_permissions() {
    let state = initialized();
    state.eaug(FREE, 1).unwrap();
    let copied = Cell::new(None);
    let result = state.eacceptcopy(&operand(R | X | reg()), BASE + FREE, BASE + ADDED, |from, to| {
        copied.set(Some((from, to)));
        true
    });
    assert_eq!((result, copied.get()), (Ok(Ok(())), Some((ADDED, FREE))));
    assert_eq!(state.epcm_entry(FREE), Some(R | X | reg()));
}

/// "EACCEPTCOPY": #GP for W without R, other types, misaligned pages; #PF for a source that is not readable;
/// SGX_PAGE_ATTRIBUTES_MISMATCH for a target that is not pending.
#[test]
fn eacceptcopy_faults() {
    let state = initialized();
    state.eaug(FREE, 1).unwrap();
    let copy = |flags, to: u64, from: u64| {
        state.eacceptcopy(&operand(flags), BASE + to, BASE + from, |_, _| panic!("nothing may be copied"))
    };
    let gp = Err(Fault::GeneralProtection);
    assert_eq!(copy(W | reg(), FREE, ADDED), gp);
    assert_eq!(copy(R | PageType::Tcs.into(), FREE, ADDED), gp);
    assert_eq!(copy(R | reg(), FREE + 8, ADDED), gp);
    assert_eq!(copy(R | reg(), FREE, ADDED + 8), gp);
    assert_eq!(copy(R | reg(), 0x1_0000, ADDED), gp);
    for source in [0x9000, 0x4000, TCS, FREE] {
        assert_eq!(copy(R | reg(), FREE, source), Err(Fault::Page(BASE + source)), "{source:#x}");
    }
    let mismatch = Ok(Err(ErrorCode::PageAttributesMismatch));
    assert_eq!(copy(R | reg(), 0x2000, ADDED), mismatch);
    assert_eq!(copy(R | reg(), 0x9000, ADDED), mismatch, "no page");
    let unreachable = state.eacceptcopy(&operand(R | reg()), BASE + FREE, BASE + ADDED, |_, _| false);
    assert_eq!(unreachable, Err(Fault::Page(BASE + FREE)));
    assert_eq!(state.epcm_entry(FREE), Some(R | W | PENDING | reg()));
}

/// "EREMOVE": while a thread is inside only what it has accepted to be trimmed goes: SGX_ENCLAVE_ACT. A page that is not
/// there is no error.
#[test]
fn eremove_spares_an_active_enclave() {
    let state = initialized();
    let thread = inside(0);
    assert_failed(state.eremove(ADDED, &thread), "EREMOVE", ErrorCode::EnclaveAct);
    state.emodt(ADDED, &of_type(PageType::Trim)).unwrap();
    assert_failed(state.eremove(ADDED, &thread), "EREMOVE", ErrorCode::EnclaveAct);
    track(&state);
    assert_eq!(accept(&state, MODIFIED | PageType::Trim.into(), ADDED), Ok(Ok(())));
    let before = state.epc_bytes();
    state.eremove(ADDED, &thread).unwrap();
    assert_eq!((state.epcm_entry(ADDED), state.epc_bytes()), (None, before - 4096));
    state.eremove(ADDED, &thread).unwrap();
    state.eremove(TCS, &()).unwrap();
    assert_eq!((state.epcm_entry(TCS), state.epc_bytes()), (None, before - 2 * 4096));
    assert_fault(state.eremove(8, &()), "EREMOVE", "#GP(0)", "multiple of 4096");
    assert_fault(state.eremove(0x1_0000, &()), "EREMOVE", "#PF", "ELRANGE");
    // There may be another page then.
    state.eaug(ADDED, 1).unwrap();
}
