//! What the conformance tests share: a machine of known secrets, a well-formed SECS, and a signer that works by the
//! SDM's formulas with arithmetic of its own.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::{Arc, LazyLock};

use crypto_bigint::{NonZero, U3072, U6144};
use enclos_platform::PlatformError;
use enclos_platform::emulator::enclave::EnclaveState;
use enclos_platform::emulator::machine::{Machine, MachineConfig};
use rsa::pkcs8::DecodePrivateKey;
use rsa::sha2::{Digest, Sha256};
use rsa::traits::PublicKeyParts;
use rsa::{Pkcs1v15Sign, PrivateKey};
use sgx_isa::{
    Attributes, AttributesFlags, ErrorCode, PageType, SIGSTRUCT_HEADER1, SIGSTRUCT_HEADER2, Secinfo,
    SecinfoFlags, Secs, Sigstruct,
};

/// A page of zeros.
pub(crate) const ZEROS: [u8; 4096] = [0; 4096];

/// A machine whose secrets all tests know.
pub(crate) fn machine() -> Arc<Machine> {
    machine_with(|_| {})
}

/// The same with a change.
pub(crate) fn machine_with(change: impl FnOnce(&mut MachineConfig)) -> Arc<Machine> {
    let mut config = MachineConfig::with_seed([7; 32]);
    change(&mut config);
    Machine::new(&config).unwrap()
}

/// A SECS that ECREATE accepts: 64 KiB at 4 GiB, XFRM = 3, one page an SSA frame, 64-bit.
pub(crate) fn secs() -> Secs {
    Secs {
        size: 0x1_0000,
        baseaddr: 0x1_0000_0000,
        ssaframesize: 1,
        attributes: Attributes { flags: AttributesFlags::MODE64BIT, xfrm: 3 },
        ..Secs::default()
    }
}

/// An enclave after ECREATE of [`secs`].
pub(crate) fn created() -> EnclaveState {
    EnclaveState::ecreate(machine(), &secs()).unwrap()
}

/// SECINFO of a regular page.
pub(crate) fn regular(permissions: SecinfoFlags) -> Secinfo {
    Secinfo { flags: permissions | PageType::Reg.into(), ..Secinfo::default() }
}

/// SECINFO of a TCS.
pub(crate) fn tcs() -> Secinfo {
    Secinfo { flags: PageType::Tcs.into(), ..Secinfo::default() }
}

/// Flags of which no name may exist.
pub(crate) fn raw_flags(bits: u64) -> SecinfoFlags {
    // SAFETY: the type is a u64 of which every value is valid.
    unsafe { SecinfoFlags::from_bits_unchecked(bits) }
}

/// Asserts that a leaf function faulted with this fault for this reason.
#[track_caller]
pub(crate) fn assert_fault<T>(result: Result<T, PlatformError>, leaf: &str, fault: &str, reason: &str) {
    match result.err().expect("it must fault") {
        PlatformError::Fault { leaf: l, fault: f, rule } => {
            assert_eq!((l, f), (leaf, fault), "{rule}");
            assert!(rule.contains(reason), "{rule:?} does not speak of {reason:?}");
        }
        other => panic!("not a fault: {other}"),
    }
}

/// Asserts that EINIT failed with this error code for this reason.
#[track_caller]
pub(crate) fn assert_code<T>(result: Result<T, PlatformError>, code: ErrorCode, reason: &str) {
    match result.err().expect("it must fail") {
        PlatformError::Leaf { leaf, code: c, hint } => {
            assert_eq!((leaf, c), ("EINIT", code), "{hint}");
            assert!(hint.contains(reason), "{hint:?} does not speak of {reason:?}");
        }
        other => panic!("not an error code: {other}"),
    }
}

/// A signing key, `signer` or `other`. For tests only: they are published.
pub(crate) fn key(name: &str) -> &'static PrivateKey {
    static SIGNER: LazyLock<PrivateKey> = LazyLock::new(|| decode(include_str!("../keys/signer.pem")));
    static OTHER: LazyLock<PrivateKey> = LazyLock::new(|| decode(include_str!("../keys/other.pem")));
    fn decode(pem: &str) -> PrivateKey {
        PrivateKey::from_pkcs8_pem(pem).unwrap()
    }
    match name {
        "signer" => &SIGNER,
        "other" => &OTHER,
        _ => panic!("there is no key {name}"),
    }
}

/// A SIGSTRUCT for this enclave as it is, unsigned.
pub(crate) fn unsigned(state: &EnclaveState) -> Sigstruct {
    Sigstruct {
        header: SIGSTRUCT_HEADER1,
        header2: SIGSTRUCT_HEADER2,
        date: 0x2025_0101,
        exponent: 3,
        miscselect: state.secs().miscselect,
        miscmask: u32::MAX,
        attributes: state.secs().attributes,
        attributemask: [u64::MAX, u64::MAX],
        enclavehash: state.measurement(),
        isvprodid: 11,
        isvsvn: 5,
        ..Sigstruct::default()
    }
}

/// Fills in key, signature, Q1 and Q2.
pub(crate) fn sign(mut s: Sigstruct, key: &PrivateKey) -> Sigstruct {
    let (head, body) = s.signature_data();
    let digest = Sha256::new().chain_update(head).chain_update(body).finalize();
    let signature = key.sign(Pkcs1v15Sign::new::<Sha256>(), &digest).unwrap();
    let modulus = key.n_bytes();
    let (sig, m) = (U3072::from_be_slice(&signature), U3072::from_be_slice(&modulus));
    let wide_m = NonZero::new(U6144::from(&m)).unwrap();
    // Q1 = floor(S² / M), Q2 = floor((S³ - Q1·S·M) / M) = floor(S·(S² mod M) / M)
    let square: U6144 = sig.concatenating_mul(&sig);
    let (q1, rest) = square.div_rem(&wide_m);
    let product: U6144 = sig.concatenating_mul(&rest.split::<{ U3072::LIMBS }>().0);
    let (q2, _) = product.div_rem(&wide_m);
    s.modulus = little_endian(&m);
    s.signature = little_endian(&sig);
    s.q1 = little_endian(&q1.split::<{ U3072::LIMBS }>().0);
    s.q2 = little_endian(&q2.split::<{ U3072::LIMBS }>().0);
    s
}

/// A SIGSTRUCT for this enclave, changed, then signed by the key `signer`.
pub(crate) fn signed(state: &EnclaveState, change: impl FnOnce(&mut Sigstruct)) -> Sigstruct {
    let mut s = unsigned(state);
    change(&mut s);
    sign(s, key("signer"))
}

/// An initialised enclave on the machine: two read-write pages at 0x1000 and 0x2000, one read-only at 0x3000, one
/// executable-only at 0x4000, a TCS at 0x5000.
pub(crate) fn initialized_on(
    machine: Arc<Machine>,
    signer: &str,
    create: impl FnOnce(&mut Secs),
    change: impl FnOnce(&mut Sigstruct),
) -> EnclaveState {
    let mut secs = secs();
    create(&mut secs);
    let mut state = EnclaveState::ecreate(machine, &secs).unwrap();
    let (r, w, x) = (SecinfoFlags::R, SecinfoFlags::W, SecinfoFlags::X);
    for (offset, permissions) in [(0x1000, r | w), (0x2000, r | w), (0x3000, r), (0x4000, x)] {
        state.eadd(offset, &regular(permissions), &mut ZEROS.clone()).unwrap();
    }
    state.eadd(0x5000, &tcs(), &mut ZEROS.clone()).unwrap();
    let mut s = unsigned(&state);
    change(&mut s);
    state.einit(&sign(s, key(signer)), None).unwrap();
    state
}

fn little_endian(x: &U3072) -> [u8; 384] {
    let mut out = [0; 384];
    out.copy_from_slice(x.to_le_bytes().as_ref());
    out
}
