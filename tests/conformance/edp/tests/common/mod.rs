//! Loading the enclave of `report-test`, and checking its report.

use std::io::Cursor;
use std::sync::{Arc, LazyLock};

use enclos_platform::emulator::Emulator;
use enclos_platform::emulator::keys::{egetkey, verify_mac};
use enclos_platform::emulator::load::Loaded;
use enclos_platform::emulator::machine::{Machine, MachineConfig};
use openssl::bn::BigNum;
use openssl::hash::Hasher;
use openssl::pkey::Private;
use openssl::rsa::Rsa;
use report_test::ReportBuilder;
use sgx_isa::{
    Attributes, AttributesFlags, Keyname, Keyrequest, Miscselect, PageType, Report, SecinfoFlags, Targetinfo,
};
use sgxs::loader::Load;
use sgxs::sgxs::{CanonicalSgxsWriter, MeasECreate, SecinfoTruncated};
use sgxs::sigstruct::{EnclaveHash, Signer};

/// An emulator whose machine has secrets of its own.
pub fn emulator(seed: u8) -> Emulator {
    Emulator::on(Machine::new(&MachineConfig::with_seed([seed; 32])).unwrap())
}

/// An enclave to be a report's target: one page, written, measured and signed with the `sgxs` crate.
pub fn target(emulator: &mut Emulator, fill: u8) -> Loaded {
    let mut stream = Vec::new();
    let create = MeasECreate { size: 0x4000, ssaframesize: 1 };
    let mut writer = CanonicalSgxsWriter::new(&mut stream, create, true).unwrap();
    let secinfo = SecinfoTruncated { flags: SecinfoFlags::R | PageType::Reg.into() };
    writer.write_pages(Some(&mut Cursor::new([fill; 4096])), 1, Some(0x1000), secinfo).unwrap();
    let attributes = Attributes { flags: AttributesFlags::MODE64BIT, xfrm: 3 };
    let hash = EnclaveHash::from_stream::<_, Hasher>(&mut Cursor::new(&stream)).unwrap();
    let mut signer = Signer::new(hash);
    signer.attributes_flags(attributes.flags, !0).attributes_xfrm(attributes.xfrm, !0);
    static KEY: LazyLock<Rsa<Private>> =
        LazyLock::new(|| Rsa::generate_with_e(3072, &BigNum::from_u32(3).unwrap()).unwrap());
    let sigstruct = signer.sign::<_, Hasher>(&**KEY).unwrap();
    let mut reader = Cursor::new(&stream);
    emulator.load(&mut reader, &sigstruct, attributes, Miscselect::empty()).unwrap().info
}

/// TARGETINFO of an enclave.
pub fn target_info(target: &Loaded) -> Targetinfo {
    let secs = target.enclave().state().secs();
    Targetinfo {
        measurement: secs.mrenclave,
        attributes: secs.attributes,
        miscselect: secs.miscselect,
        ..Targetinfo::default()
    }
}

/// Does the target verify the report: CMAC under the report key that EGETKEY gives it?
pub fn verifies(target: &Loaded, report: &Report) -> bool {
    let request =
        Keyrequest { keyname: Keyname::Report as u16, keyid: report.keyid, ..Keyrequest::default() };
    let mut bytes = [0; 512];
    bytes.copy_from_slice(request.as_ref());
    let key = egetkey(target.enclave().state(), &bytes).unwrap();
    verify_mac(&key, report.mac_data(), &report.mac)
}

/// The report of `report-test`'s enclave for the target, made by its own host code; its identity and its MAC.
pub fn report_is_what_the_architecture_says(emulator: &mut Emulator) {
    let target = target(emulator, 1);
    let info = target_info(&target);
    let attributes = Attributes { flags: AttributesFlags::MODE64BIT | AttributesFlags::DEBUG, xfrm: 3 };
    let report = ReportBuilder::new(&info).attributes(attributes).build(emulator).unwrap();

    let machine: &Arc<Machine> = emulator.machine();
    assert_eq!(report.cpusvn, machine.cpu_svn());
    assert_eq!(report.attributes.flags, attributes.flags | AttributesFlags::INIT);
    assert_eq!(report.attributes.xfrm, 3);
    assert_eq!((report.isvprodid, report.isvsvn), (0, 0));
    // The target is a page of the enclave, so MRENCLAVE depends on it; it is what the `sgxs` crate measures.
    assert_eq!(report.mrenclave, expected_mrenclave(&info));
    assert_ne!(report.mrsigner, [0; 32]);
    assert!(verifies(&target, &report));

    let altered = Report { isvsvn: 1, ..report.clone() };
    assert!(!verifies(&target, &altered));
    assert!(!verifies(&self::target(emulator, 2), &report), "another enclave is not the target");
    assert!(!verifies(&self::target(&mut self::emulator(99), 1), &report), "another machine has other keys");
}

/// MRENCLAVE of `report-test`'s enclave for a target, as the `sgxs` crate computes it from the package's own stream.
fn expected_mrenclave(info: &Targetinfo) -> [u8; 32] {
    // `report_test` keeps the stream to itself: catch it on its way to a loader.
    struct Catch([u8; 32]);
    #[derive(Debug)]
    struct Never;
    impl sgxs::loader::MappingInfo for Never {
        fn address(&self) -> *mut std::ffi::c_void {
            std::ptr::null_mut()
        }
        fn size(&self) -> usize {
            0
        }
    }
    impl sgxs::loader::Tcs for Never {
        fn address(&self) -> *mut std::ffi::c_void {
            std::ptr::null_mut()
        }
    }
    impl Load for Catch {
        type MappingInfo = Never;
        type Tcs = Never;
        fn load<R: sgxs::sgxs::SgxsRead>(
            &mut self,
            reader: &mut R,
            sigstruct: &sgx_isa::Sigstruct,
            _: Attributes,
            _: Miscselect,
        ) -> Result<sgxs::loader::Mapping<Self>, anyhow::Error> {
            self.0 = EnclaveHash::from_stream::<_, Hasher>(reader)?.hash();
            assert_eq!(self.0, sigstruct.enclavehash);
            anyhow::bail!("caught")
        }
    }
    let mut catch = Catch([0; 32]);
    ReportBuilder::new(info).build(&mut catch).unwrap_err();
    catch.0
}
