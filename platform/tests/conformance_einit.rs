//! ENCLS\[EINIT\] against the SDM, one test a rule. Names in quotation marks are headings of the Intel SDM, vol. 3D;
//! "EINIT" is the leaf's own section, of which the part "Operation" gives the checks in the order of this file.

mod common;

use std::sync::{Arc, LazyLock};

use common::*;
use enclos_platform::emulator::enclave::EnclaveState;
use enclos_platform::emulator::keys::{egetkey, mac};
use enclos_platform::emulator::machine::{LaunchControl, Machine};
use rsa::sha2::{Digest, Sha256};
use rsa::traits::PublicKeyParts;
use sgx_isa::{
    Attributes, AttributesFlags, Einittoken, ErrorCode, Keyname, Keyrequest, Miscselect, SecinfoFlags, Secs,
    Sigstruct,
};

use ErrorCode::{
    InvalidAttribute, InvalidCpusvn, InvalidEinitToken, InvalidMeasurement, InvalidSigStruct,
    InvalidSignature,
};

/// Signs a structure changed before signing; EINIT must refuse it.
#[track_caller]
fn refuses_signed(code: ErrorCode, reason: &str, change: impl FnOnce(&mut Sigstruct)) {
    let mut state = created();
    let s = signed(&state, change);
    assert_code(state.einit(&s, None), code, reason);
    assert!(!state.is_initialized());
    assert_eq!(state.secs().mrsigner, [0; 32]);
}

/// Changes a structure after signing; EINIT must refuse it.
#[track_caller]
fn refuses_altered(code: ErrorCode, reason: &str, change: impl FnOnce(&mut Sigstruct)) {
    static SIGNED: LazyLock<Sigstruct> = LazyLock::new(|| signed(&created(), |_| {}));
    let mut state = created();
    let mut s = SIGNED.clone();
    change(&mut s);
    assert_code(state.einit(&s, None), code, reason);
    assert!(!state.is_initialized());
}

fn mrsigner_of(name: &str) -> [u8; 32] {
    let mut modulus = key(name).n_bytes().to_vec();
    modulus.reverse();
    Sha256::digest(modulus).into()
}

/// "EINIT": what is committed to the SECS on success.
#[test]
fn success_commits_the_identity() {
    let mut state = created();
    let mrenclave = state.measurement();
    let s = signed(&state, |s| (s.isvprodid, s.isvsvn) = (0x1234, 0x5678));
    state.einit(&s, None).unwrap();
    let secs = state.secs();
    assert!(state.is_initialized());
    assert_eq!((secs.mrenclave, secs.mrsigner), (mrenclave, mrsigner_of("signer")));
    assert_eq!((secs.isv_prod_id, secs.isv_svn), (0x1234, 0x5678));
    assert_eq!(secs.attributes.flags, AttributesFlags::INIT | AttributesFlags::MODE64BIT);
}

/// "EINIT": HEADER must be the constant.
#[test]
fn a_wrong_header_is_invalid_sig_struct() {
    for at in 0..16 {
        refuses_altered(InvalidSigStruct, "header", |s| s.header[at] ^= 1);
    }
}

/// "EINIT": HEADER2 must be the constant.
#[test]
fn a_wrong_second_header_is_invalid_sig_struct() {
    for at in 0..16 {
        refuses_altered(InvalidSigStruct, "header", |s| s.header2[at] ^= 1);
    }
}

/// "EINIT": VENDOR must be 0 or 8086H.
#[test]
fn another_vendor_is_invalid_sig_struct() {
    refuses_signed(InvalidSigStruct, "vendor", |s| s.vendor = 1);
    refuses_signed(InvalidSigStruct, "vendor", |s| s.vendor = 0x8086_0000);
}

/// "EINIT": both vendors are equal.
#[test]
fn intel_as_vendor_is_accepted() {
    let mut state = created();
    let s = signed(&state, |s| s.vendor = 0x8086);
    state.einit(&s, None).unwrap();
}

/// "EINIT": EXPONENT must be 3.
#[test]
fn another_exponent_is_invalid_sig_struct() {
    for exponent in [0, 1, 2, 65537] {
        refuses_altered(InvalidSigStruct, "exponent", |s| s.exponent = exponent);
    }
}

/// "EINIT", "Enclave Signature Structure": reserved fields must be zero, CET_ATTRIBUTES and its mask among them on a
/// processor without CET.
#[test]
fn reserved_fields_are_invalid_sig_struct() {
    let reason = "reserved";
    refuses_signed(InvalidSigStruct, reason, |s| s._reserved1[0] = 1);
    refuses_signed(InvalidSigStruct, reason, |s| s._reserved1[83] = 1);
    refuses_signed(InvalidSigStruct, reason, |s| s.cet_attributes = 1);
    refuses_signed(InvalidSigStruct, reason, |s| s.cet_attributes_mask = 1);
    refuses_signed(InvalidSigStruct, reason, |s| s._reserved2 = 1);
    refuses_signed(InvalidSigStruct, reason, |s| s._reserved3[15] = 1);
    refuses_altered(InvalidSigStruct, reason, |s| s._reserved4[0] = 1);
}

/// "EINIT": DATE and SWDEFINED are signed but mean nothing to the processor.
#[test]
fn date_and_swdefined_are_free() {
    let mut state = created();
    let s = signed(&state, |s| (s.date, s.swdefined) = (0xffff_ffff, 0xdead_beef));
    state.einit(&s, None).unwrap();
}

/// "EINIT": the signature must verify: what is signed may not change …
#[test]
fn altered_contents_are_invalid_signature() {
    let reason = "does not verify";
    refuses_altered(InvalidSignature, reason, |s| s.date ^= 1);
    refuses_altered(InvalidSignature, reason, |s| s.swdefined ^= 1);
    refuses_altered(InvalidSignature, reason, |s| s.miscmask ^= 1);
    refuses_altered(InvalidSignature, reason, |s| s.attributes.xfrm ^= 4);
    refuses_altered(InvalidSignature, reason, |s| s.attributemask[1] ^= 1);
    refuses_altered(InvalidSignature, reason, |s| s.enclavehash[0] ^= 1);
    refuses_altered(InvalidSignature, reason, |s| s.isvprodid ^= 1);
    refuses_altered(InvalidSignature, reason, |s| s.isvsvn ^= 1);
}

/// … nor the signature …
#[test]
fn an_altered_signature_is_invalid_signature() {
    for at in [0, 200, 383] {
        refuses_altered(InvalidSignature, "does not verify", |s| s.signature[at] ^= 1);
    }
    refuses_altered(InvalidSignature, "does not verify", |s| s.signature = [0; 384]);
    refuses_altered(InvalidSignature, "does not verify", |s| s.signature = s.modulus);
}

/// … nor the key …
#[test]
fn another_modulus_is_invalid_signature() {
    let other = sign(unsigned(&created()), key("other")).modulus;
    refuses_altered(InvalidSignature, "does not verify", |s| s.modulus = other);
    refuses_altered(InvalidSignature, "does not verify", |s| s.modulus = [0; 384]);
}

/// … nor Q1 and Q2.
#[test]
fn wrong_quotients_are_invalid_signature() {
    for at in [0, 200, 383] {
        refuses_altered(InvalidSignature, "does not verify", |s| s.q1[at] ^= 1);
        refuses_altered(InvalidSignature, "does not verify", |s| s.q2[at] ^= 1);
    }
    refuses_altered(InvalidSignature, "does not verify", |s| (s.q1, s.q2) = ([0; 384], [0; 384]));
}

/// "EINIT", RFC 8017: all of the padding counts: a cube whose low bytes are the digest is not a signature.
#[test]
fn a_signature_with_bad_padding_is_invalid_signature() {
    // S = 1: S³ mod M = 1, Q1 = Q2 = 0, consistent, and nothing like PKCS#1.
    refuses_altered(InvalidSignature, "does not verify", |s| {
        (s.signature, s.q1, s.q2) = ([0; 384], [0; 384], [0; 384]);
        s.signature[0] = 1;
    });
}

/// "EINIT": ISVFAMILYID needs KSS.
#[test]
fn a_family_without_kss_is_invalid_sig_struct() {
    refuses_signed(InvalidSigStruct, "ISVFAMILYID", |s| s.isvfamilyid[0] = 1);
}

/// "EINIT": with KSS ISVFAMILYID and ISVEXTPRODID are committed.
#[test]
fn kss_identities_are_committed() {
    let create = |s: &mut Secs| s.attributes.flags |= AttributesFlags::KSS;
    let state = initialized_on(machine(), "signer", create, |s| {
        (s.isvfamilyid, s.isvextprodid) = ([0xfa; 16], [0xe7; 16]);
    });
    assert_eq!((state.secs().isv_family_id, state.secs().isv_ext_prod_id), ([0xfa; 16], [0xe7; 16]));
}

/// "EINIT": an initialised enclave faults.
#[test]
fn a_second_einit_is_gp() {
    let mut state = created();
    let s = signed(&state, |_| {});
    state.einit(&s, None).unwrap();
    assert_fault(state.einit(&s, None), "EINIT", "#GP(0)", "already initialised");
}

/// "EINIT": ENCLAVEHASH must be MRENCLAVE.
#[test]
fn another_measurement_is_invalid_measurement() {
    refuses_signed(InvalidMeasurement, "altered", |s| s.enclavehash[31] ^= 0x80);
    let mut state = created();
    let s = signed(&state, |_| {});
    state.eadd(0, &regular(SecinfoFlags::R), &mut ZEROS.clone()).unwrap();
    assert_code(state.einit(&s, None), InvalidMeasurement, "altered");
}

/// "EINIT": EINITTOKENKEY is controlled: only the signer of IA32_SGXLEPUBKEYHASH may have it.
#[test]
fn einittokenkey_of_another_signer_is_invalid_attribute() {
    let machine = locked_to("other");
    let mut secs = secs();
    secs.attributes.flags |= AttributesFlags::EINITTOKENKEY;
    let mut state = EnclaveState::ecreate(machine, &secs).unwrap();
    let s = signed(&state, |_| {});
    assert_code(state.einit(&s, None), InvalidAttribute, "EINITTOKENKEY");
}

/// "EINIT": ATTRIBUTES must be SIGSTRUCT's where ATTRIBUTEMASK has ones: each single bit of flags …
#[test]
fn other_flags_are_invalid_attribute() {
    for bit in [0, 1, 2, 4, 5, 7, 20, 63] {
        refuses_signed(InvalidAttribute, "attributes", |s| flip(&mut s.attributes, bit));
    }
}

/// … and of XFRM.
#[test]
fn another_xfrm_is_invalid_attribute() {
    for bit in [0, 1, 2, 5, 63] {
        refuses_signed(InvalidAttribute, "attributes", |s| s.attributes.xfrm ^= 1 << bit);
    }
}

/// "EINIT": a production signature does not admit a debug enclave.
#[test]
fn debug_with_a_production_signature_is_invalid_attribute() {
    let mut debug = secs();
    debug.attributes.flags |= AttributesFlags::DEBUG;
    let mut state = EnclaveState::ecreate(machine(), &debug).unwrap();
    let s = signed(&state, |s| s.attributes.flags.remove(AttributesFlags::DEBUG));
    assert_code(state.einit(&s, None), InvalidAttribute, "debug");
}

/// "EINIT": attribute bits that ATTRIBUTEMASK leaves out are free.
#[test]
fn masked_out_attributes_are_free() {
    let mut debug = secs();
    debug.attributes.flags |= AttributesFlags::DEBUG;
    let mut state = EnclaveState::ecreate(machine(), &debug).unwrap();
    let s = signed(&state, |s| {
        s.attributes = Attributes { flags: AttributesFlags::MODE64BIT, xfrm: 7 };
        s.attributemask = [!AttributesFlags::DEBUG.bits(), !4];
    });
    state.einit(&s, None).unwrap();
    assert!(state.secs().attributes.flags.contains(AttributesFlags::DEBUG));
}

/// "EINIT": MISCSELECT must be SIGSTRUCT's where MISCMASK has ones.
#[test]
fn another_miscselect_is_invalid_attribute() {
    refuses_signed(InvalidAttribute, "MISCSELECT", |s| s.miscselect = Miscselect::EXINFO);
    refuses_signed(InvalidAttribute, "MISCSELECT", |s| {
        (s.miscselect, s.miscmask) = (Miscselect::EXINFO, 1);
    });
}

/// "EINIT": MISCSELECT bits that MISCMASK leaves out are free.
#[test]
fn masked_out_miscselect_is_free() {
    let mut state = created();
    let s = signed(&state, |s| (s.miscselect, s.miscmask) = (Miscselect::EXINFO, !1));
    state.einit(&s, None).unwrap();
}

/// "EINIT": without a token the signer must be the one of IA32_SGXLEPUBKEYHASH.
#[test]
fn a_locked_machine_without_token_is_invalid_einittoken() {
    let mut state = EnclaveState::ecreate(locked_to("other"), &secs()).unwrap();
    let s = signed(&state, |_| {});
    assert_code(state.einit(&s, None), InvalidEinitToken, "launch control");
    assert_code(state.einit(&s, Some(&Einittoken::default())), InvalidEinitToken, "launch control");
    let s = sign(unsigned(&state), key("other"));
    state.einit(&s, None).unwrap();
}

/// "SGX Launch Control Configuration": with flexible launch control anybody may sign.
#[test]
fn flexible_launch_control_admits_every_signer() {
    for signer in ["signer", "other"] {
        let state = initialized_on(machine(), signer, |_| {}, |_| {});
        assert_eq!(state.secs().mrsigner, mrsigner_of(signer));
    }
}

/// "EINIT", "EINIT Token Structure": a token made with the launch key admits what it names.
#[test]
fn a_token_of_the_launch_enclave_is_accepted() {
    Launch::new().accepts(|_| {});
}

/// "EINIT": a debug launch enclave cannot launch a production enclave.
#[test]
fn a_debug_token_for_a_production_enclave_is_invalid_einittoken() {
    Launch::new()
        .refuses(InvalidEinitToken, "debug", |t| t.maskedattributesle.flags |= AttributesFlags::DEBUG);
}

/// "EINIT": reserved fields of the token, and the upper bits of VALID.
#[test]
fn reserved_fields_of_the_token_are_invalid_einittoken() {
    let launch = Launch::new();
    let reason = "reserved";
    launch.refuses(InvalidEinitToken, reason, |t| t.valid = 3);
    launch.refuses(InvalidEinitToken, reason, |t| t.valid = 0x8000_0001);
    launch.refuses(InvalidEinitToken, reason, |t| t._reserved1[43] = 1);
    launch.refuses(InvalidEinitToken, reason, |t| t._reserved2[0] = 1);
    launch.refuses(InvalidEinitToken, reason, |t| t._reserved3[31] = 1);
    launch.refuses(InvalidEinitToken, reason, |t| t._reserved4[23] = 1);
}

/// "EINIT": a token of a newer processor configuration.
#[test]
fn a_token_of_a_newer_processor_is_invalid_cpusvn() {
    for at in [0, 15] {
        Launch::new().refuses(InvalidCpusvn, "newer", |t| t.cpusvnle[at] += 1);
    }
}

/// "EINIT": the MAC must be of the launch key that the token's own fields lead to.
#[test]
fn a_token_with_a_wrong_mac_is_invalid_einittoken() {
    let launch = Launch::new();
    let mut state = launch.target();
    let s = signed(&state, |_| {});
    let good = launch.token(&state, &s, |_| {});
    let alter: [fn(&mut Einittoken); 7] = [
        |t| t.mac[0] ^= 1,
        |t| t.mac[15] ^= 0x80,
        |t| t.keyid[0] ^= 1,
        |t| t.isvsvnle ^= 1,
        |t| t.isvprodidle ^= 1,
        |t| t.maskedattributesle.xfrm ^= 1,
        |t| t.mrenclave[0] ^= 1,
    ];
    for alter in alter {
        let mut token = good.clone();
        alter(&mut token);
        assert_code(state.einit(&s, Some(&token)), InvalidEinitToken, "MAC");
    }
    state.einit(&s, Some(&good)).unwrap();
}

/// "EINIT": a token of another machine.
#[test]
fn a_token_of_another_machine_is_invalid_einittoken() {
    let launch = Launch::new();
    let other = machine_with(|c| {
        c.root = enclos_platform::emulator::machine::Root::Seed([8; 32]);
        c.launch_control = LaunchControl::Locked(mrsigner_of("other"));
    });
    let mut state = EnclaveState::ecreate(other, &secs()).unwrap();
    let s = signed(&state, |_| {});
    let token = launch.token(&state, &s, |_| {});
    assert_code(state.einit(&s, Some(&token)), InvalidEinitToken, "MAC");
}

/// "EINIT": the token must be for this enclave and signer.
#[test]
fn a_token_for_another_enclave_is_invalid_measurement() {
    let launch = Launch::new();
    launch.refuses(InvalidMeasurement, "another enclave", |t| t.mrenclave[0] ^= 1);
    launch.refuses(InvalidMeasurement, "another enclave", |t| t.mrsigner[0] ^= 1);
}

/// "EINIT": the token must be for these attributes.
#[test]
fn a_token_for_other_attributes_is_invalid_attribute() {
    let launch = Launch::new();
    launch.refuses(InvalidAttribute, "other attributes", |t| t.attributes.flags |= AttributesFlags::DEBUG);
    launch.refuses(InvalidAttribute, "other attributes", |t| t.attributes.xfrm = 7);
}

/// "EINIT": a failure changes nothing: the right structure is still accepted afterwards.
#[test]
fn a_failure_leaves_the_enclave_as_it_was() {
    let mut state = created();
    let good = signed(&state, |_| {});
    let before = state.secs().clone();
    for bad in [
        signed(&state, |s| s.vendor = 1),
        signed(&state, |s| s.enclavehash[0] ^= 1),
        signed(&state, |s| s.attributes.xfrm ^= 4),
        Sigstruct { date: 1, ..good.clone() },
    ] {
        state.einit(&bad, None).unwrap_err();
        assert_eq!(*state.secs(), before);
    }
    state.einit(&good, None).unwrap();
}

fn locked_to(signer: &str) -> Arc<Machine> {
    let hash = mrsigner_of(signer);
    machine_with(|c| c.launch_control = LaunchControl::Locked(hash))
}

fn flip(attributes: &mut Attributes, bit: u32) {
    // SAFETY: the type is a u64 of which every value is valid.
    attributes.flags = unsafe { AttributesFlags::from_bits_unchecked(attributes.flags.bits() ^ 1 << bit) };
}

/// A machine locked to the signer `other`, with an initialised launch enclave of theirs.
struct Launch {
    machine: Arc<Machine>,
    enclave: EnclaveState,
}

impl Launch {
    fn new() -> Self {
        let machine = locked_to("other");
        let create = |s: &mut Secs| s.attributes.flags |= AttributesFlags::EINITTOKENKEY;
        let enclave = initialized_on(machine.clone(), "other", create, |_| {});
        Self { machine, enclave }
    }

    /// The enclave to be launched, which `signer` signs.
    fn target(&self) -> EnclaveState {
        EnclaveState::ecreate(self.machine.clone(), &secs()).unwrap()
    }

    /// What a launch enclave does: EGETKEY of the launch key, then CMAC over the first 192 bytes.
    fn token(&self, state: &EnclaveState, s: &Sigstruct, change: impl FnOnce(&mut Einittoken)) -> Einittoken {
        let mut token = Einittoken {
            valid: 1,
            attributes: state.secs().attributes,
            mrenclave: state.measurement(),
            mrsigner: Sha256::digest(s.modulus).into(),
            cpusvnle: self.machine.cpu_svn(),
            isvprodidle: self.enclave.secs().isv_prod_id,
            isvsvnle: self.enclave.secs().isv_svn,
            maskedattributesle: self.enclave.secs().attributes,
            keyid: [0x1d; 32],
            ..Einittoken::default()
        };
        change(&mut token);
        let request = Keyrequest {
            keyname: Keyname::Einittoken as u16,
            isvsvn: token.isvsvnle,
            cpusvn: self.machine.cpu_svn(),
            attributemask: [u64::MAX, u64::MAX],
            keyid: token.keyid,
            ..Keyrequest::default()
        };
        let mut bytes = [0; 512];
        bytes.copy_from_slice(request.as_ref());
        let key = egetkey(&self.enclave, &bytes).unwrap();
        token.mac = mac(&key, &token.as_ref()[..192]);
        token
    }

    #[track_caller]
    fn accepts(&self, change: impl FnOnce(&mut Einittoken)) {
        let mut state = self.target();
        let s = signed(&state, |_| {});
        let token = self.token(&state, &s, change);
        state.einit(&s, Some(&token)).unwrap();
        assert_eq!(state.secs().mrsigner, mrsigner_of("signer"));
    }

    #[track_caller]
    fn refuses(&self, code: ErrorCode, reason: &str, change: impl FnOnce(&mut Einittoken)) {
        let mut state = self.target();
        let s = signed(&state, |_| {});
        let token = self.token(&state, &s, change);
        assert_code(state.einit(&s, Some(&token)), code, reason);
        assert!(!state.is_initialized());
    }
}
