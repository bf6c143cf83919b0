//! ENCLU\[EREPORT\] and ENCLU\[EGETKEY\] against the SDM, one test a rule. Names in quotation marks are headings of
//! the Intel SDM, vol. 3D. What a key must *not* depend on is tested as carefully as what it must.

mod common;

use std::sync::Arc;

use common::*;
use enclos_platform::emulator::enclave::EnclaveState;
use enclos_platform::emulator::keys::{
    Fault, KeyError, egetkey, egetkey_operands, ereport, ereport_operands, mac, policy, verify_mac,
};
use enclos_platform::emulator::machine::{Machine, MachineConfig, Root};
use sgx_isa::{
    AttributesFlags, ErrorCode, Keyname, Keyrequest, Miscselect, Report, SecinfoFlags, Secs, Sigstruct,
};

use ErrorCode::{InvalidAttribute, InvalidCpusvn, InvalidIsvsvn, InvalidKeyname};

/// Everything that an enclave's identity can have: KSS, both privileged keys, EXINFO.
fn rich(s: &mut Secs) {
    s.attributes.flags |=
        AttributesFlags::KSS | AttributesFlags::PROVISIONKEY | AttributesFlags::EINITTOKENKEY;
    s.miscselect = Miscselect::EXINFO;
    s._reserved3[32..].fill(0xc1);
    s.padding[..2].copy_from_slice(&5u16.to_le_bytes());
}

fn rich_identity(s: &mut Sigstruct) {
    (s.isvfamilyid, s.isvextprodid) = ([0xfa; 16], [0xe7; 16]);
}

fn rich_enclave() -> EnclaveState {
    initialized_on(machine(), "signer", rich, rich_identity)
}

fn plain_enclave() -> EnclaveState {
    initialized_on(machine(), "signer", |_| {}, |_| {})
}

const NAMES: [Keyname; 5] =
    [Keyname::Seal, Keyname::Report, Keyname::Einittoken, Keyname::Provision, Keyname::ProvisionSeal];

/// A request as raw bytes, at the offsets of "KEYREQUEST".
#[derive(Clone)]
struct Request([u8; 512]);

impl Request {
    /// All attributes and MISCSELECT masked in, current CPUSVN, ISVSVN 0, policy MRENCLAVE.
    fn new(name: Keyname) -> Self {
        let mut r = Self([0; 512]);
        r.set(0, &(name as u16).to_le_bytes());
        r.set(2, &policy::MRENCLAVE.to_le_bytes());
        r.set(8, &machine().cpu_svn());
        r.set(24, &[0xff; 16]);
        r.set(72, &[0xff; 4]);
        r
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn with(&self, at: usize, bytes: &[u8]) -> Self {
        let mut r = self.clone();
        r.set(at, bytes);
        r
    }

    fn policy(&self, policy: u16) -> Self {
        self.with(2, &policy.to_le_bytes())
    }
}

fn key_of(state: &EnclaveState, request: &Request) -> [u8; 16] {
    egetkey(state, &request.0).unwrap()
}

#[track_caller]
fn assert_refused(state: &EnclaveState, request: &Request, code: ErrorCode) {
    assert_eq!(egetkey(state, &request.0), Err(KeyError::Code(code)));
}

/// Does changing the bytes at `at` change the key?
fn depends(state: &EnclaveState, request: &Request, at: usize, bytes: &[u8]) -> bool {
    key_of(state, request) != key_of(state, &request.with(at, bytes))
}

/// TARGETINFO of an enclave, at the offsets of "Report Target Info".
fn target_of(state: &EnclaveState) -> [u8; 512] {
    let secs = state.secs();
    let mut t = [0; 512];
    t[..32].copy_from_slice(&secs.mrenclave);
    t[32..40].copy_from_slice(&secs.attributes.flags.bits().to_le_bytes());
    t[40..48].copy_from_slice(&secs.attributes.xfrm.to_le_bytes());
    t[50..52].copy_from_slice(&secs.config_svn.to_le_bytes());
    t[52..56].copy_from_slice(&secs.miscselect.bits().to_le_bytes());
    t[64..128].copy_from_slice(&secs.config_id);
    t
}

/// The report key of the target, as the target itself gets it.
fn report_key(target: &EnclaveState, report: &Report) -> [u8; 16] {
    key_of(target, &Request::new(Keyname::Report).with(40, &report.keyid))
}

// ---- EREPORT

/// "EREPORT", "REPORT": every field of the identity is where it belongs.
#[test]
fn a_report_holds_the_identity() {
    let state = rich_enclave();
    let secs = state.secs();
    let r = ereport(&state, &target_of(&state), &[0xda; 64]);
    assert_eq!(r.cpusvn, state.machine().cpu_svn());
    assert_eq!((r.miscselect, r.attributes), (secs.miscselect, secs.attributes));
    assert!(r.attributes.flags.contains(AttributesFlags::INIT));
    assert_eq!((r.mrenclave, r.mrsigner), (secs.mrenclave, secs.mrsigner));
    assert_eq!((r.isvprodid, r.isvsvn), (11, 5));
    assert_eq!((r.configid, r.configsvn), ([0xc1; 64], 5));
    assert_eq!((r.isvfamilyid, r.isvextnprodid), ([0xfa; 16], [0xe7; 16]));
    assert_eq!(r.reportdata, [0xda; 64]);
    assert_eq!((r.cet_attributes, r._reserved1), (0, [0; 11]));
    assert_eq!((r._reserved2, r._reserved3, r._reserved4), ([0; 32], [0; 32], [0; 42]));
}

/// "EREPORT": the MAC is AES-128-CMAC over the first 384 bytes under the target's report key: the target verifies it.
#[test]
fn the_target_verifies_the_report() {
    let source = plain_enclave();
    for target in [rich_enclave(), initialized_on(machine(), "other", |_| {}, |_| {})] {
        let r = ereport(&source, &target_of(&target), &[1; 64]);
        assert!(verify_mac(&report_key(&target, &r), &r.as_ref()[..384], &r.mac));
    }
}

/// "EREPORT": an altered report does not verify.
#[test]
fn an_altered_report_does_not_verify() {
    let state = plain_enclave();
    let r = ereport(&state, &target_of(&state), &[1; 64]);
    let key = report_key(&state, &r);
    for at in [0, 63, 64, 128, 256, 320, 383] {
        let mut bytes = r.as_ref()[..384].to_vec();
        bytes[at] ^= 1;
        assert!(!verify_mac(&key, &bytes, &r.mac));
    }
}

/// "EREPORT": the key depends on each field of TARGETINFO: MEASUREMENT, ATTRIBUTES, CONFIGSVN, MISCSELECT, CONFIGID.
#[test]
fn only_the_target_verifies_the_report() {
    let state = rich_enclave();
    let good = target_of(&state);
    let expected = ereport(&state, &good, &[0; 64]).mac;
    for at in [0, 31, 32, 39, 40, 47, 50, 52, 64, 127] {
        let mut target = good;
        target[at] ^= 1;
        assert_ne!(ereport(&state, &target, &[0; 64]).mac, expected, "byte {at}");
    }
}

/// "EREPORT": reserved bytes of TARGETINFO take no part.
#[test]
fn reserved_bytes_of_the_target_are_ignored() {
    let state = plain_enclave();
    let good = target_of(&state);
    let expected = ereport(&state, &good, &[0; 64]).mac;
    for at in [56, 63, 128, 511] {
        let mut target = good;
        target[at] ^= 1;
        assert_eq!(ereport(&state, &target, &[0; 64]).mac, expected, "byte {at}");
    }
}

/// "EREPORT": another machine's report key is another.
#[test]
fn a_report_of_another_machine_does_not_verify() {
    let here = plain_enclave();
    let there = initialized_on(machine_with(|c| c.root = Root::Seed([9; 32])), "signer", |_| {}, |_| {});
    let r = ereport(&there, &target_of(&here), &[1; 64]);
    assert!(!verify_mac(&report_key(&here, &r), &r.as_ref()[..384], &r.mac));
}

// ---- EGETKEY: what is refused

/// "EGETKEY": names from 5 on do not exist.
#[test]
fn an_unknown_key_is_invalid_keyname() {
    for name in [5u16, 6, 0x100, 0xffff] {
        assert_refused(
            &rich_enclave(),
            &Request::new(Keyname::Seal).with(0, &name.to_le_bytes()),
            InvalidKeyname,
        );
    }
}

/// "EGETKEY", "KEYREQUEST": reserved bytes must be zero: 6 (CET), 7, and from 78 on.
#[test]
fn reserved_bytes_of_a_request_are_gp() {
    let state = rich_enclave();
    for name in NAMES {
        for at in [6, 7, 78, 300, 511] {
            let request = Request::new(name).with(at, &[1]);
            assert_eq!(egetkey(&state, &request.0), Err(KeyError::GeneralProtection), "byte {at}");
        }
    }
}

/// "EGETKEY", "KEYPOLICY": bits from 6 on are reserved.
#[test]
fn reserved_policy_bits_are_gp() {
    let state = rich_enclave();
    for bit in 6..16 {
        let request = Request::new(Keyname::Seal).policy(1 << bit);
        assert_eq!(egetkey(&state, &request.0), Err(KeyError::GeneralProtection));
    }
}

/// "EGETKEY": policy bits 2 to 5 need KSS.
#[test]
fn kss_policy_without_kss_is_gp() {
    for name in NAMES {
        for bit in 2..6 {
            let request = Request::new(name).policy(1 << bit);
            assert_eq!(egetkey(&plain_enclave(), &request.0), Err(KeyError::GeneralProtection));
        }
    }
}

/// "EGETKEY": CONFIGSVN needs KSS.
#[test]
fn configsvn_without_kss_is_gp() {
    let request = Request::new(Keyname::Seal).with(76, &[1, 0]);
    assert_eq!(egetkey(&plain_enclave(), &request.0), Err(KeyError::GeneralProtection));
}

/// "EGETKEY": PROVISION_KEY and PROVISION_SEAL_KEY need ATTRIBUTES.PROVISIONKEY.
#[test]
fn provisioning_keys_without_permission_are_invalid_attribute() {
    for name in [Keyname::Provision, Keyname::ProvisionSeal] {
        assert_refused(&plain_enclave(), &Request::new(name), InvalidAttribute);
        key_of(&rich_enclave(), &Request::new(name));
    }
}

/// "EGETKEY": EINITTOKEN_KEY needs ATTRIBUTES.EINITTOKENKEY.
#[test]
fn the_launch_key_without_permission_is_invalid_attribute() {
    assert_refused(&plain_enclave(), &Request::new(Keyname::Einittoken), InvalidAttribute);
    key_of(&rich_enclave(), &Request::new(Keyname::Einittoken));
}

/// "EGETKEY": a CPUSVN beyond the processor's is refused, in every component.
#[test]
fn a_newer_cpusvn_is_invalid_cpusvn() {
    let state = rich_enclave();
    for name in NAMES.into_iter().filter(|n| *n != Keyname::Report) {
        for at in [0, 7, 15] {
            let mut cpu_svn = machine().cpu_svn();
            cpu_svn[at] += 1;
            assert_refused(&state, &Request::new(name).with(8, &cpu_svn), InvalidCpusvn);
            // Not outweighed by an older component.
            cpu_svn[usize::from(at == 0)] = 0;
            assert_refused(&state, &Request::new(name).with(8, &cpu_svn), InvalidCpusvn);
        }
    }
}

/// "EGETKEY": an ISVSVN beyond the enclave's is refused.
#[test]
fn a_newer_isvsvn_is_invalid_isvsvn() {
    let state = rich_enclave();
    for name in NAMES.into_iter().filter(|n| *n != Keyname::Report) {
        assert_refused(&state, &Request::new(name).with(4, &6u16.to_le_bytes()), InvalidIsvsvn);
        assert_refused(&state, &Request::new(name).with(4, &u16::MAX.to_le_bytes()), InvalidIsvsvn);
        key_of(&state, &Request::new(name).with(4, &5u16.to_le_bytes()));
    }
}

/// "EGETKEY": SEAL_KEY with a CONFIGSVN beyond the enclave's is refused.
#[test]
fn a_newer_configsvn_is_invalid_isvsvn() {
    let state = rich_enclave();
    let request = Request::new(Keyname::Seal).policy(policy::CONFIGID);
    assert_refused(&state, &request.with(76, &6u16.to_le_bytes()), InvalidIsvsvn);
    key_of(&state, &request.with(76, &5u16.to_le_bytes()));
}

/// "EGETKEY": REPORT_KEY looks at neither CPUSVN nor ISVSVN of the request.
#[test]
fn the_report_key_has_no_versions() {
    let state = rich_enclave();
    let request = Request::new(Keyname::Report);
    assert!(!depends(&state, &request, 8, &[0xff; 16]));
    assert!(!depends(&state, &request, 4, &[0xff; 2]));
}

// ---- EGETKEY: what keys depend on ("Key Derivation" gives the table)

/// Five names, five keys.
#[test]
fn each_name_has_its_own_key() {
    let state = rich_enclave();
    let keys = NAMES.map(|name| key_of(&state, &Request::new(name).policy(policy::MRSIGNER)));
    for (i, a) in keys.iter().enumerate() {
        assert!(keys[i + 1..].iter().all(|b| a != b));
    }
}

/// The same request gives the same key: in another instance of the enclave, in another life of the machine.
#[test]
fn keys_are_stable() {
    for name in NAMES {
        assert_eq!(
            key_of(&rich_enclave(), &Request::new(name)),
            key_of(&rich_enclave(), &Request::new(name))
        );
    }
}

/// All keys depend on the machine.
#[test]
fn keys_are_the_machines() {
    let there = machine_with(|c| c.root = Root::Seed([9; 32]));
    let there = initialized_on(there, "signer", rich, rich_identity);
    for name in NAMES {
        assert_ne!(key_of(&rich_enclave(), &Request::new(name)), key_of(&there, &Request::new(name)));
    }
}

/// Owner epoch: in SEAL, REPORT and EINITTOKEN keys, in no provisioning key.
#[test]
fn the_owner_epoch_is_in_all_but_provisioning_keys() {
    let there =
        initialized_on(machine_with(|c| c.owner_epoch = Some([1; 16])), "signer", rich, rich_identity);
    for name in NAMES {
        let same = key_of(&rich_enclave(), &Request::new(name)) == key_of(&there, &Request::new(name));
        assert_eq!(same, matches!(name, Keyname::Provision | Keyname::ProvisionSeal), "{name:?}");
    }
}

/// KEYID, which prevents wear-out: in SEAL, REPORT and EINITTOKEN keys, in no provisioning key.
#[test]
fn the_key_id_is_in_all_but_provisioning_keys() {
    let state = rich_enclave();
    for name in NAMES {
        for at in [40, 71] {
            let depends = depends(&state, &Request::new(name), at, &[1]);
            assert_eq!(depends, !matches!(name, Keyname::Provision | Keyname::ProvisionSeal), "{name:?}");
        }
    }
}

/// CPUSVN of the request: older ones give other keys, so that a newer platform reads what an older one sealed.
#[test]
fn older_cpusvns_give_the_older_platforms_keys() {
    let old = {
        let mut svn = machine().cpu_svn();
        svn[0] -= 1;
        svn
    };
    let before = machine_with(|c| c.cpu_svn = old);
    let before = initialized_on(before, "signer", rich, rich_identity);
    let after = rich_enclave();
    for name in NAMES.into_iter().filter(|n| *n != Keyname::Report) {
        let sealed = key_of(&before, &Request::new(name).with(8, &old));
        assert_eq!(key_of(&after, &Request::new(name).with(8, &old)), sealed);
        assert_ne!(key_of(&after, &Request::new(name)), sealed);
        assert_refused(&before, &Request::new(name), InvalidCpusvn);
    }
}

/// REPORT_KEY: always the current CPUSVN.
#[test]
fn the_report_key_is_of_the_current_cpusvn() {
    let before = initialized_on(machine_with(|c| c.cpu_svn = [0; 16]), "signer", rich, rich_identity);
    let request = Request::new(Keyname::Report);
    assert_ne!(key_of(&before, &request), key_of(&rich_enclave(), &request));
}

/// ISVSVN of the request: a newer version of an enclave gets the older one's keys, not the other way round.
#[test]
fn newer_enclaves_get_the_keys_of_older_ones() {
    let version = |svn| initialized_on(machine(), "signer", rich, move |s| s.isvsvn = svn);
    let (old, new) = (version(3), version(4));
    for name in [Keyname::Seal, Keyname::Provision, Keyname::ProvisionSeal, Keyname::Einittoken] {
        let request = |svn: u16| Request::new(name).policy(policy::MRSIGNER).with(4, &svn.to_le_bytes());
        assert_eq!(key_of(&old, &request(3)), key_of(&new, &request(3)));
        assert_ne!(key_of(&new, &request(3)), key_of(&new, &request(4)));
        assert_refused(&old, &request(4), InvalidIsvsvn);
    }
}

/// Policy MRENCLAVE: a SEAL_KEY of exactly this enclave.
#[test]
fn policy_mrenclave_binds_to_the_enclave() {
    let request = Request::new(Keyname::Seal).policy(policy::MRENCLAVE);
    let one = rich_enclave();
    let other = initialized_on(
        machine(),
        "signer",
        |s| {
            rich(s);
            s.ssaframesize = 2
        },
        rich_identity,
    );
    let other_signer = initialized_on(machine(), "other", rich, rich_identity);
    assert_ne!(one.secs().mrenclave, other.secs().mrenclave);
    assert_ne!(key_of(&one, &request), key_of(&other, &request));
    assert_eq!(key_of(&one, &request), key_of(&other_signer, &request));
}

/// Policy MRSIGNER: a SEAL_KEY of all enclaves of the signer.
#[test]
fn policy_mrsigner_binds_to_the_signer() {
    let request = Request::new(Keyname::Seal).policy(policy::MRSIGNER);
    let one = rich_enclave();
    let other = initialized_on(
        machine(),
        "signer",
        |s| {
            rich(s);
            s.ssaframesize = 2
        },
        rich_identity,
    );
    let other_signer = initialized_on(machine(), "other", rich, rich_identity);
    assert_eq!(key_of(&one, &request), key_of(&other, &request));
    assert_ne!(key_of(&one, &request), key_of(&other_signer, &request));
}

/// The policy itself is in the SEAL_KEY, so "neither" is not "both of an enclave that is all zeros".
#[test]
fn policies_give_different_keys() {
    let state = rich_enclave();
    let keys = (0..64).map(|p| key_of(&state, &Request::new(Keyname::Seal).policy(p))).collect::<Vec<_>>();
    for (i, a) in keys.iter().enumerate() {
        assert!(keys[i + 1..].iter().all(|b| a != b));
    }
}

/// PROVISION_KEY and PROVISION_SEAL_KEY are the signer's, whatever the policy says of identities.
#[test]
fn provisioning_keys_are_the_signers() {
    let one = rich_enclave();
    let other = initialized_on(
        machine(),
        "signer",
        |s| {
            rich(s);
            s.ssaframesize = 2
        },
        rich_identity,
    );
    let other_signer = initialized_on(machine(), "other", rich, rich_identity);
    for name in [Keyname::Provision, Keyname::ProvisionSeal, Keyname::Einittoken] {
        let request = Request::new(name).policy(policy::MRENCLAVE);
        assert_eq!(key_of(&one, &request), key_of(&other, &request));
        assert_ne!(key_of(&one, &request), key_of(&other_signer, &request));
    }
}

/// KEYPOLICY is in the two sealing keys only.
#[test]
fn the_policy_is_in_sealing_keys_only() {
    let state = rich_enclave();
    for name in NAMES {
        let depends = depends(&state, &Request::new(name), 2, &policy::NOISVPRODID.to_le_bytes());
        assert_eq!(depends, matches!(name, Keyname::Seal | Keyname::ProvisionSeal), "{name:?}");
    }
}

/// ISVPRODID separates the products of one signer, unless policy NOISVPRODID asks otherwise.
#[test]
fn the_product_is_in_keys_unless_left_out() {
    let product = |id| initialized_on(machine(), "signer", rich, move |s| s.isvprodid = id);
    let (one, other) = (product(1), product(2));
    for name in [Keyname::Seal, Keyname::ProvisionSeal] {
        let with = Request::new(name).policy(policy::MRSIGNER);
        let without = Request::new(name).policy(policy::MRSIGNER | policy::NOISVPRODID);
        assert_ne!(key_of(&one, &with), key_of(&other, &with));
        assert_eq!(key_of(&one, &without), key_of(&other, &without));
    }
    for name in [Keyname::Provision, Keyname::Einittoken] {
        assert_ne!(key_of(&one, &Request::new(name)), key_of(&other, &Request::new(name)));
    }
}

/// Policy ISVFAMILYID and ISVEXTPRODID: in the key when asked for, else not.
#[test]
fn family_and_extended_product_are_in_keys_when_asked_for() {
    let one = rich_enclave();
    let family = initialized_on(machine(), "signer", rich, |s| s.isvextprodid = [0xe7; 16]);
    let extended = initialized_on(machine(), "signer", rich, |s| s.isvfamilyid = [0xfa; 16]);
    for name in [Keyname::Seal, Keyname::ProvisionSeal] {
        let neither = Request::new(name).policy(policy::MRSIGNER);
        for (bit, other) in [(policy::ISVFAMILYID, &family), (policy::ISVEXTPRODID, &extended)] {
            let with = Request::new(name).policy(policy::MRSIGNER | bit);
            assert_eq!(key_of(&one, &neither), key_of(other, &neither));
            assert_ne!(key_of(&one, &with), key_of(other, &with));
        }
    }
}

/// Policy CONFIGID: CONFIGID and the request's CONFIGSVN are in the key when asked for, else not.
#[test]
fn the_configuration_is_in_keys_when_asked_for() {
    let one = rich_enclave();
    let other = initialized_on(
        machine(),
        "signer",
        |s| {
            rich(s);
            s._reserved3[40] = 0
        },
        rich_identity,
    );
    for name in [Keyname::Seal, Keyname::ProvisionSeal] {
        let without = Request::new(name).policy(policy::MRSIGNER);
        let with = Request::new(name).policy(policy::MRSIGNER | policy::CONFIGID);
        assert_eq!(key_of(&one, &without), key_of(&other, &without));
        assert!(!depends(&one, &without, 76, &4u16.to_le_bytes()));
        assert_ne!(key_of(&one, &with), key_of(&other, &with));
        assert!(depends(&one, &with, 76, &4u16.to_le_bytes()));
    }
}

/// REPORT_KEY: depends on the configuration in any case.
#[test]
fn the_configuration_is_in_the_report_key() {
    let request = Request::new(Keyname::Report);
    let other = initialized_on(
        machine(),
        "signer",
        |s| {
            rich(s);
            s._reserved3[40] = 0
        },
        rich_identity,
    );
    assert_ne!(key_of(&rich_enclave(), &request), key_of(&other, &request));
}

/// DEBUG and INIT are in keys even when masked out: a debug enclave cannot get a production enclave's keys.
#[test]
fn debug_is_in_every_key() {
    let debug = |s: &mut Secs| {
        rich(s);
        s.attributes.flags |= AttributesFlags::DEBUG;
    };
    let debug = initialized_on(machine(), "signer", debug, rich_identity);
    assert_eq!(debug.secs().mrenclave, rich_enclave().secs().mrenclave);
    for name in NAMES {
        let request = Request::new(name).with(24, &[0; 16]);
        assert_ne!(key_of(&rich_enclave(), &request), key_of(&debug, &request), "{name:?}");
    }
}

/// Attributes are in keys as far as ATTRIBUTEMASK has them in (REPORT_KEY: all).
#[test]
fn attributes_are_in_keys_as_masked() {
    if machine().xfrm() & 4 == 0 {
        return;
    }
    let avx = initialized_on(
        machine(),
        "signer",
        |s| {
            rich(s);
            s.attributes.xfrm = 7
        },
        rich_identity,
    );
    for name in NAMES {
        let with = Request::new(name);
        let without = Request::new(name).with(32, &3u64.to_le_bytes());
        assert_ne!(key_of(&rich_enclave(), &with), key_of(&avx, &with), "{name:?}");
        let same = key_of(&rich_enclave(), &without) == key_of(&avx, &without);
        assert_eq!(same, name != Keyname::Report, "{name:?}");
    }
}

/// ATTRIBUTEMASK itself is in SEAL and provisioning keys, not in REPORT and EINITTOKEN keys.
#[test]
fn the_attribute_mask_is_in_some_keys() {
    let state = rich_enclave();
    for name in NAMES {
        // Bit 63 of XFRM is not set in any enclave: only the mask differs.
        let depends = depends(&state, &Request::new(name), 39, &[0x7f]);
        assert_eq!(depends, !matches!(name, Keyname::Report | Keyname::Einittoken), "{name:?}");
    }
}

/// MISCSELECT is in keys as far as MISCMASK has it in; MISCMASK itself in SEAL and provisioning keys.
#[test]
fn miscselect_is_in_keys_as_masked() {
    let without = initialized_on(
        machine(),
        "signer",
        |s| {
            rich(s);
            s.miscselect = Miscselect::empty()
        },
        rich_identity,
    );
    for name in NAMES {
        let all = Request::new(name);
        let none = Request::new(name).with(72, &[0; 4]);
        assert_ne!(key_of(&rich_enclave(), &all), key_of(&without, &all), "{name:?}");
        let same = key_of(&rich_enclave(), &none) == key_of(&without, &none);
        assert_eq!(same, name != Keyname::Report, "{name:?}");
        let mask_counts = depends(&without, &all, 75, &[0x7f]);
        assert_eq!(mask_counts, !matches!(name, Keyname::Report | Keyname::Einittoken), "{name:?}");
    }
}

// ---- Operands in memory

/// Two enclaves' worth of state are needed to test operands: pages that are there, at the addresses the SECS says.
struct Mapped {
    state: EnclaveState,
    base: u64,
}

impl Mapped {
    /// The enclave of `initialized_on`, its pages 1 to 5 backed by memory.
    fn new() -> Self {
        const SIZE: usize = 0x1_0000;
        // SAFETY: a new mapping.
        let at = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), 2 * SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        let base = (at as u64).next_multiple_of(SIZE as u64);
        let state = initialized_on(machine(), "signer", |s| s.baseaddr = base, |_| {});
        Self { state, base }
    }

    fn at(&self, offset: u64) -> *mut [u8; 512] {
        (self.base + offset) as *mut [u8; 512]
    }

    fn ereport(&self, target: u64, data: u64, output: u64) -> Result<(), Fault> {
        // SAFETY: all of ELRANGE is mapped readable and writable.
        unsafe { ereport_operands(&self.state, self.base + target, self.base + data, self.base + output) }
    }

    fn egetkey(&self, request: u64, output: u64) -> Result<Result<(), ErrorCode>, Fault> {
        // SAFETY: as above.
        unsafe { egetkey_operands(&self.state, self.base + request, self.base + output) }
    }
}

const GP: Fault = Fault::GeneralProtection;

/// "EREPORT": reads TARGETINFO and REPORTDATA, writes 432 bytes.
#[test]
fn ereport_writes_a_report() {
    let m = Mapped::new();
    // SAFETY: within the mapping.
    unsafe {
        m.at(0x1000).write(target_of(&m.state));
        m.at(0x1200).write([0x5a; 512]);
        m.at(0x2000).write([0xee; 512]);
    }
    m.ereport(0x1000, 0x1280, 0x2000).unwrap();
    // SAFETY: within the mapping.
    let out = unsafe { m.at(0x2000).read() };
    let expected = ereport(&m.state, &target_of(&m.state), &[0x5a; 64]);
    assert_eq!(out[..432], expected.as_ref()[..]);
    assert_eq!(out[432..], [0xee; 80]);
}

/// "EREPORT": TARGETINFO 512, REPORTDATA 128, OUTPUTDATA 512 bytes aligned.
#[test]
fn misaligned_ereport_operands_are_gp() {
    let m = Mapped::new();
    for off in [1, 128, 256] {
        assert_eq!(m.ereport(0x1000 + off, 0x1200, 0x2000), Err(GP));
        assert_eq!(m.ereport(0x1000, 0x1200, 0x2000 + off), Err(GP));
    }
    for off in [1, 64] {
        assert_eq!(m.ereport(0x1000, 0x1200 + off, 0x2000), Err(GP));
    }
    m.ereport(0x1000, 0x1280, 0x2000).unwrap();
}

/// "EREPORT": all operands must be in ELRANGE.
#[test]
fn ereport_operands_outside_elrange_are_gp() {
    let m = Mapped::new();
    for outside in [0x1_0000, 0x10_0000, 0u64.wrapping_sub(0x1000), 0u64.wrapping_sub(m.base)] {
        assert_eq!(m_wrapping(&m, outside, 0x1200, 0x2000), Err(GP));
        assert_eq!(m_wrapping(&m, 0x1000, outside, 0x2000), Err(GP));
        assert_eq!(m_wrapping(&m, 0x1000, 0x1200, outside), Err(GP));
    }
    fn m_wrapping(m: &Mapped, t: u64, d: u64, o: u64) -> Result<(), Fault> {
        let at = |x| m.base.wrapping_add(x);
        // SAFETY: what lies outside must not be touched; the rest is mapped.
        unsafe { ereport_operands(&m.state, at(t), at(d), at(o)) }
    }
}

/// "EREPORT": pages must be valid, regular, and readable or writable.
#[test]
fn ereport_operands_on_other_pages_are_pf() {
    let m = Mapped::new();
    let pf = |offset| Err(Fault::Page(m.base + offset));
    // Not added, execute-only, TCS.
    for page in [0x6000, 0x4000, 0x5000] {
        assert_eq!(m.ereport(page, 0x1200, 0x2000), pf(page));
        assert_eq!(m.ereport(0x1000, page, 0x2000), pf(page));
        assert_eq!(m.ereport(0x1000, 0x1200, page), pf(page));
    }
    // Read-only: good enough for what is read.
    assert_eq!(m.ereport(0x3000, 0x3200, 0x2000), Ok(()));
    assert_eq!(m.ereport(0x1000, 0x1200, 0x3000), pf(0x3000));
}

/// "EGETKEY": reads KEYREQUEST, writes 16 bytes.
#[test]
fn egetkey_writes_a_key() {
    let m = Mapped::new();
    let request = Request::new(Keyname::Seal);
    // SAFETY: within the mapping.
    unsafe { m.at(0x1000).write(request.0) };
    assert_eq!(m.egetkey(0x1000, 0x2010), Ok(Ok(())));
    // SAFETY: within the mapping.
    let out = unsafe { m.at(0x2000).read() };
    assert_eq!((&out[..16], &out[32..64]), (&[0; 16][..], &[0; 32][..]));
    assert_eq!(out[16..32], key_of(&m.state, &request));
}

/// "EGETKEY": on failure nothing is written.
#[test]
fn a_refused_egetkey_writes_nothing() {
    let m = Mapped::new();
    // SAFETY: within the mapping.
    unsafe { m.at(0x1000).write(Request::new(Keyname::Provision).0) };
    assert_eq!(m.egetkey(0x1000, 0x2000), Ok(Err(InvalidAttribute)));
    // SAFETY: within the mapping.
    unsafe {
        m.at(0x1000).write(Request::new(Keyname::Seal).with(511, &[1]).0);
        assert_eq!(m.egetkey(0x1000, 0x2000), Err(GP));
        assert_eq!(m.at(0x2000).read(), [0; 512]);
    }
}

/// "EGETKEY": KEYREQUEST 512, OUTPUTDATA 16 bytes aligned.
#[test]
fn misaligned_egetkey_operands_are_gp() {
    let m = Mapped::new();
    for off in [1, 16, 256] {
        assert_eq!(m.egetkey(0x1000 + off, 0x2000), Err(GP));
    }
    for off in [1, 8] {
        assert_eq!(m.egetkey(0x1000, 0x2000 + off), Err(GP));
    }
}

/// "EGETKEY": both operands must be in ELRANGE.
#[test]
fn egetkey_operands_outside_elrange_are_gp() {
    let m = Mapped::new();
    assert_eq!(m.egetkey(0x1_0000, 0x2000), Err(GP));
    assert_eq!(m.egetkey(0x1000, 0x1_0000), Err(GP));
}

/// "EGETKEY": pages must be valid, regular, and readable or writable.
#[test]
fn egetkey_operands_on_other_pages_are_pf() {
    let m = Mapped::new();
    for page in [0x6000, 0x4000, 0x5000] {
        assert_eq!(m.egetkey(page, 0x2000), Err(Fault::Page(m.base + page)));
        assert_eq!(m.egetkey(0x1000, page + 16), Err(Fault::Page(m.base + page + 16)));
    }
    assert_eq!(m.egetkey(0x1000, 0x3000), Err(Fault::Page(m.base + 0x3000)));
}

// ---- The machine's secrets

/// The layout of `sgx_isa::Keyrequest` is the one used here.
#[test]
fn offsets_are_those_of_the_structure() {
    let r = Keyrequest {
        keyname: 4,
        isvsvn: 2,
        cpusvn: machine().cpu_svn(),
        attributemask: [u64::MAX; 2],
        keyid: [7; 32],
        miscmask: u32::MAX,
        keypolicy: sgx_isa::Keypolicy::MRENCLAVE,
        ..Keyrequest::default()
    };
    let expected = Request::new(Keyname::Seal).with(4, &[2, 0]).with(40, &[7; 32]);
    assert_eq!(r.as_ref(), &expected.0[..]);
}

/// RFC 4493, test vectors 1 to 4: the MAC is AES-128-CMAC.
#[test]
fn the_mac_is_aes_128_cmac() {
    let hex = |s: &str| {
        (0..s.len() / 2).map(|i| u8::from_str_radix(&s[2 * i..2 * i + 2], 16).unwrap()).collect::<Vec<_>>()
    };
    let key: [u8; 16] = hex("2b7e151628aed2a6abf7158809cf4f3c").try_into().unwrap();
    let message = hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51\
         30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710");
    for (len, expected) in [
        (0, "bb1d6929e95937287fa37d129b756746"),
        (16, "070a16b46b4d4144f79bdd9dd04a287c"),
        (40, "dfa66747de9ae63030ca32611497c827"),
        (64, "51f0bebf7e3b9d92fc49741779363cfe"),
    ] {
        assert_eq!(mac(&key, &message[..len])[..], hex(expected));
    }
}

/// A machine in a directory keeps its secrets, in a file that is the owner's alone.
#[test]
fn secrets_are_kept_in_the_state_directory() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("a/b");
    let config = MachineConfig { root: Root::Directory(state_dir.clone()), ..MachineConfig::default() };
    let secret = |m: Arc<Machine>| m.platform_secret("test");
    let first = secret(Machine::new(&config).unwrap());
    assert_eq!(secret(Machine::new(&config).unwrap()), first);
    let files = std::fs::read_dir(&state_dir).unwrap().map(|f| f.unwrap()).collect::<Vec<_>>();
    let [file] = &files[..] else { panic!("one file, nothing left over: {files:?}") };
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    std::fs::remove_file(file.path()).unwrap();
    assert_ne!(secret(Machine::new(&config).unwrap()), first);
}

/// Machines made at once in one directory agree on the secrets.
#[test]
fn simultaneous_first_uses_agree() {
    let dir = tempfile::tempdir().unwrap();
    let config = MachineConfig { root: Root::Directory(dir.path().into()), ..MachineConfig::default() };
    let secrets = std::thread::scope(|s| {
        let threads: [_; 8] =
            std::array::from_fn(|_| s.spawn(|| Machine::new(&config).unwrap().platform_secret("x")));
        threads.map(|t| t.join().unwrap())
    });
    assert!(secrets.iter().all(|s| *s == secrets[0]));
}

/// A state file that is damaged, of another version, or open to others is refused with its name and a cure.
#[test]
fn unusable_state_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let config = MachineConfig { root: Root::Directory(dir.path().into()), ..MachineConfig::default() };
    Machine::new(&config).unwrap();
    let path = dir.path().join(enclos_platform::emulator::machine::STATE_FILE);
    let good = std::fs::read_to_string(&path).unwrap();
    let cases = [
        String::new(),
        good[..good.len() / 2].into(),
        good.replace("\"version\":1", "\"version\":2"),
        good.replace("\"root\":\"", "\"root\":\"zz"),
        good.replace("{", "{\"more\":1,"),
    ];
    for bad in cases {
        std::fs::write(&path, bad).unwrap();
        let error = Machine::new(&config).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()) && error.contains("remove it"), "{error}");
    }
    std::fs::write(&path, good).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let error = Machine::new(&config).unwrap_err().to_string();
    assert!(error.contains("644") && error.contains("chmod 600"), "{error}");
}

/// Secrets for what surrounds the processor differ by label and by machine.
#[test]
fn platform_secrets_differ_by_label_and_machine() {
    let (here, there) = (machine(), machine_with(|c| c.root = Root::Seed([9; 32])));
    assert_eq!(here.platform_secret("pck"), machine().platform_secret("pck"));
    assert_ne!(here.platform_secret("pck"), here.platform_secret("ppid"));
    assert_ne!(here.platform_secret("pck"), there.platform_secret("pck"));
}

/// The page permissions that the tests above rely on.
#[test]
fn the_test_enclave_is_as_described() {
    let state = plain_enclave();
    let permissions = |at| state.page(at).unwrap().permissions;
    assert_eq!(permissions(0x1000), SecinfoFlags::R | SecinfoFlags::W);
    assert_eq!((permissions(0x3000), permissions(0x4000)), (SecinfoFlags::R, SecinfoFlags::X));
    assert_eq!(state.page(0x6000), None);
}
