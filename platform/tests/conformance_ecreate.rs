//! ENCLS\[ECREATE\] against the SDM, one test a rule. Names in quotation marks are headings of the Intel SDM, vol. 3D;
//! "ECREATE" is the leaf's own section, of which the part "Operation" gives the checks.

mod common;

use common::*;
use enclos_platform::PlatformError;
use enclos_platform::emulator::enclave::{EnclaveState, required_frame_bytes};
use enclos_platform::emulator::machine::MAX_ENCLAVE_SIZE_64_LOG2;
use rsa::sha2::{Digest, Sha256};
use sgx_isa::{AttributesFlags, Miscselect, Secs};

#[track_caller]
fn refuses(reason: &str, change: impl FnOnce(&mut Secs)) {
    let mut secs = secs();
    change(&mut secs);
    assert_fault(EnclaveState::ecreate(machine(), &secs), "ECREATE", "#GP(0)", reason);
}

#[track_caller]
fn accepts(change: impl FnOnce(&mut Secs)) -> EnclaveState {
    let mut secs = secs();
    change(&mut secs);
    EnclaveState::ecreate(machine(), &secs).unwrap()
}

fn flags(bits: u64) -> AttributesFlags {
    // SAFETY: the type is a u64 of which every value is valid.
    unsafe { AttributesFlags::from_bits_unchecked(bits) }
}

/// "ECREATE": XFRM\[1:0\] must be 3.
#[test]
fn xfrm_without_x87_or_sse_is_gp() {
    for xfrm in [0, 1, 2, 4] {
        refuses("bits 0 and 1", |s| s.attributes.xfrm = xfrm);
    }
}

/// "ECREATE": XFRM must be legal: no bit that the processor does not support.
#[test]
fn xfrm_with_unsupported_bits_is_gp() {
    for bit in [10, 20, 62, 63] {
        refuses("XFRM asks for state", |s| s.attributes.xfrm |= 1 << bit);
    }
}

/// "ECREATE", and SDM vol. 1, "Enabling the XSAVE Feature Set": AVX-512 state comes in three parts that go together.
#[test]
fn xfrm_with_a_part_of_avx512_is_gp() {
    for part in [0x20, 0x40, 0x80, 0x60, 0xa0, 0xc0] {
        refuses("XFRM asks for state", |s| s.attributes.xfrm = 7 | part);
    }
}

/// "ECREATE", and SDM vol. 1, "Enabling the XSAVE Feature Set": AVX-512 needs AVX.
#[test]
fn xfrm_with_avx512_without_avx_is_gp() {
    refuses("XFRM asks for state", |s| s.attributes.xfrm = 3 | 0xe0);
}

/// "ECREATE": MISCSELECT within CPUID.(EAX=12H,ECX=0):EBX.
#[test]
fn unsupported_miscselect_is_gp() {
    for bit in 1..32 {
        // SAFETY: the type is a u32 of which every value is valid.
        refuses("MISCSELECT", |s| s.miscselect = unsafe { Miscselect::from_bits_unchecked(1 << bit) });
    }
}

/// "ECREATE": EXINFO is supported.
#[test]
fn exinfo_is_accepted() {
    assert_eq!(accepts(|s| s.miscselect = Miscselect::EXINFO).secs().miscselect, Miscselect::EXINFO);
}

/// "ECREATE": SSAFRAMESIZE * 4096 must hold XSAVE area, GPRSGX and MISC region.
#[test]
fn ssa_frames_that_are_too_small_are_gp() {
    refuses("SSAFRAMESIZE", |s| s.ssaframesize = 0);
}

/// "State Save Area (SSA) Frame": legacy area and header of XSAVE 576 bytes, GPRSGX 184, EXINFO 16; AVX 256.
#[test]
fn the_frame_size_is_the_sum_of_its_parts() {
    assert_eq!(required_frame_bytes(3, Miscselect::empty()), 576 + 184);
    assert_eq!(required_frame_bytes(3, Miscselect::EXINFO), 576 + 16 + 184);
    if machine().xfrm() & 4 != 0 {
        assert_eq!(required_frame_bytes(7, Miscselect::empty()), 576 + 256 + 184);
    }
}

/// "ECREATE": BASEADDR of a 64-bit enclave must be canonical.
#[test]
fn a_base_that_is_not_canonical_is_gp() {
    refuses("canonical", |s| s.baseaddr = 1 << 47);
}

/// "ECREATE": BASEADDR of a 32-bit enclave must be below 4 GiB.
#[test]
fn a_high_base_of_a_32_bit_enclave_is_gp() {
    refuses("below 4 GiB", |s| s.attributes.flags = AttributesFlags::empty());
}

/// "ECREATE": SIZE of a 32-bit enclave must be below 2 ^ CPUID.(EAX=12H,ECX=0):EDX\[7:0\].
#[test]
fn a_32_bit_enclave_that_is_too_large_is_gp() {
    refuses("larger than the processor supports", |s| {
        s.attributes.flags = AttributesFlags::empty();
        (s.baseaddr, s.size) = (0, 1 << 31);
    });
}

/// "ECREATE": SIZE of a 64-bit enclave must be below 2 ^ CPUID.(EAX=12H,ECX=0):EDX\[15:8\].
#[test]
fn a_64_bit_enclave_that_is_too_large_is_gp() {
    refuses("larger than the processor supports", |s| {
        (s.baseaddr, s.size) = (0, 1 << MAX_ENCLAVE_SIZE_64_LOG2);
    });
}

/// "ECREATE": SIZE must be at least 8192.
#[test]
fn an_enclave_of_one_page_is_gp() {
    for size in [0, 1, 4096] {
        refuses("at least 8192", |s| s.size = size);
    }
    assert_eq!(accepts(|s| s.size = 8192).secs().size, 8192);
}

/// "ECREATE": SIZE must be a power of two.
#[test]
fn a_size_that_is_no_power_of_two_is_gp() {
    for size in [8193, 0x3000, 0x1_8000] {
        refuses("power of two", |s| s.size = size);
    }
}

/// "ECREATE": BASEADDR must be a multiple of SIZE.
#[test]
fn a_base_that_is_not_naturally_aligned_is_gp() {
    for base in [0x1_0000_1000, 0x1_0000_8000] {
        refuses("multiple of the size", |s| s.baseaddr = base);
    }
}

/// "ECREATE": no unsupported ATTRIBUTES; "ATTRIBUTES": INIT must be clear, bit 3 and those from 11 on are reserved,
/// CET (6) and AEXNOTIFY (10) need processors that have them.
#[test]
fn unsupported_attributes_are_gp() {
    for bit in [0, 3, 6, 8, 9, 10, 11, 32, 63] {
        refuses("ATTRIBUTES", |s| s.attributes.flags |= flags(1 << bit));
    }
}

/// "ECREATE": reserved fields of the SECS must be zero, CET_LEG_BITMAP_OFFSET and CET_ATTRIBUTES among them on a
/// processor without CET.
#[test]
fn reserved_fields_of_the_secs_are_gp() {
    let reason = "reserved fields";
    refuses(reason, |s| s._reserved1[0] = 1);
    refuses(reason, |s| s._reserved1[23] = 1);
    refuses(reason, |s| s._reserved2[0] = 1);
    refuses(reason, |s| s._reserved2[31] = 1);
    refuses(reason, |s| s._reserved3[0] = 1);
    refuses(reason, |s| s._reserved3[31] = 1);
    refuses(reason, |s| s.padding[2] = 1);
    refuses(reason, |s| s.padding[3835] = 1);
}

/// "ECREATE": CONFIGID (at 192) and CONFIGSVN (at 260) need ATTRIBUTES.KSS.
#[test]
fn configuration_without_kss_is_gp() {
    refuses("KSS", |s| s._reserved3[32] = 1);
    refuses("KSS", |s| s._reserved3[95] = 1);
    refuses("KSS", |s| s.padding[0] = 1);
    refuses("KSS", |s| s.padding[1] = 1);
}

/// "ECREATE": with KSS the configuration is kept.
#[test]
fn configuration_with_kss_is_kept() {
    let state = accepts(|s| {
        s.attributes.flags |= AttributesFlags::KSS;
        s._reserved3[32..].fill(0xc1);
        s.padding[..2].copy_from_slice(&[0x34, 0x12]);
    });
    assert_eq!(state.secs().config_id, [0xc1; 64]);
    assert_eq!(state.secs().config_svn, 0x1234);
}

/// "ECREATE": MRENCLAVE begins with "ECREATE", SSAFRAMESIZE, SIZE, 44 bytes of zeros; nothing else of the SECS goes in.
#[test]
fn the_measurement_begins_with_frame_size_and_size() {
    let mut block = Vec::from(0x0045_5441_4552_4345u64.to_le_bytes());
    block.extend(2u32.to_le_bytes());
    block.extend(0x2_0000u64.to_le_bytes());
    block.resize(64, 0);
    let expected: [u8; 32] = Sha256::digest(&block).into();
    for (base, flag) in [(0, AttributesFlags::empty()), (1 << 32, AttributesFlags::DEBUG)] {
        let state = accepts(|s| {
            (s.baseaddr, s.size, s.ssaframesize) = (base, 0x2_0000, 2);
            s.attributes.flags |= flag;
        });
        assert_eq!(state.measurement(), expected);
    }
}

/// "ECREATE": ISVPRODID, ISVSVN and MRENCLAVE of the source are not taken over.
#[test]
fn identity_fields_of_the_source_are_ignored() {
    let state = accepts(|s| (s.isvprodid, s.isvsvn, s.mrenclave, s.mrsigner) = (9, 9, [9; 32], [9; 32]));
    let secs = state.secs();
    assert_eq!((secs.isv_prod_id, secs.isv_svn, secs.mrenclave, secs.mrsigner), (0, 0, [0; 32], [0; 32]));
}

/// "Enclave Page Cache": the SECS occupies a page of it until the enclave is gone.
#[test]
fn the_secs_occupies_a_page() {
    let machine = machine_with(|c| c.epc_bytes = 8192);
    let first = EnclaveState::ecreate(machine.clone(), &secs()).unwrap();
    let second = EnclaveState::ecreate(machine.clone(), &secs()).unwrap();
    assert_eq!(machine.epc(), (8192, 8192));
    let third = EnclaveState::ecreate(machine.clone(), &secs());
    assert!(matches!(third, Err(PlatformError::EpcExhausted { needed: 4096, available: 0 })));
    drop((first, second));
    assert_eq!(machine.epc(), (0, 8192));
}
