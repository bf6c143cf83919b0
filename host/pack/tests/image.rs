//! Packing, measuring, signing, reading back.

mod support;

use enclos::abi::thread;
use enclos_pack::image::XFRM;
use enclos_pack::{
    Config, Date, Image, ImageError, PackError, PackInput, SignError, SigningKey, VerifyingKey, pack,
};
use sgx_isa::{AttributesFlags, Miscselect, PageType, SecinfoFlags};
use sgxs::sgxs::{CanonicalSgxsReader, Meas, SgxsRead as _};
use support::{hello, key, runtime};

fn image(config: &Config) -> Image {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (runtime, app) = (runtime(dir.path()), hello(dir.path()));
    pack(&PackInput { runtime: &runtime, app: &app, config }).expect("packs")
}

fn config() -> Config {
    Config::new("test").expect("sound name")
}

/// A small one, for tests that pack many times.
fn small() -> Config {
    let toml = "name = 'test'\nthreads = 1\nheap = '1 MiB'\nstack = '64 KiB'";
    Config::parse(toml, std::path::Path::new("enclos.toml")).expect("sound")
}

#[test]
fn the_sgxs_crate_reads_the_stream_and_agrees_on_its_hash() {
    use rsa::sha2::{Digest as _, Sha256};
    let image = image(&config());
    let mut bytes = image.sgxs();
    let mut reader = CanonicalSgxsReader::new(&mut bytes);
    let mut hash = Sha256::new();
    let mut pages = 0;
    while let Some(meas) = reader.read_meas().expect("canonical") {
        match &meas {
            Meas::Unmeasured { .. } => continue,
            Meas::EAdd(_) => pages += 1,
            _ => {}
        }
        let mut block = Vec::new();
        sgxs::sgxs::SgxsWrite::write_meas(&mut block, &meas).expect("memory");
        hash.update(&block);
    }
    assert_eq!(pages, image.stream().pages.len());
    assert_eq!(image.mrenclave(), <[u8; 32]>::from(hash.finalize()));
}

#[test]
fn the_layout_is_the_one_of_the_abi() {
    let config = config();
    let image = image(&config);
    let info = image.info();
    let stream = image.stream();
    assert!(info.enclave_size.is_power_of_two());
    assert_eq!(info.app % 65536, 0);
    assert_eq!(info.heap, info.thread_area + 8 * thread::STRIDE);
    assert_eq!(info.heap_size, 64 << 20);
    assert!(
        info.enclave_size >= info.heap + info.heap_size && info.enclave_size / 2 < info.heap + info.heap_size
    );
    assert_eq!(stream.read(info.app, 4).as_deref(), Some(&b"\x7fELF"[..]));
    assert_eq!(stream.read(0, 4).as_deref(), Some(&b"\x7fELF"[..]));
    assert_eq!(image.manifest().name, "test");
    let page = |at: u64| stream.pages.iter().find(|p| p.offset == at);
    let rw = SecinfoFlags::R | SecinfoFlags::W | SecinfoFlags::from(PageType::Reg);
    for i in 0..8 {
        let region = info.thread_area + i * thread::STRIDE;
        for guard in [0, 17, 22, 28, 31] {
            assert!(page(region + guard * 4096).is_none(), "guard {guard} of thread {i}");
        }
        for stack in [thread::STACK, thread::STACK_END - 4096, thread::EXCEPTION_STACK, thread::SSA] {
            let page = page(region + stack).expect("a stack page");
            assert_eq!((page.flags, page.measured), (rw, 0));
        }
        let data = page(region + thread::DATA).expect("data page");
        assert_eq!((data.flags, data.measured), (rw, 0xffff));
        let tcs = page(region + thread::TCS).expect("TCS");
        assert_eq!((tcs.flags, tcs.measured), (SecinfoFlags::from(PageType::Tcs), 0xffff));
        let tcs = sgx_isa::Tcs::try_copy_from(&tcs.data.as_ref().expect("contents")[..]).expect("a page");
        assert_eq!(tcs.ossa, region + thread::SSA);
        assert_eq!((tcs.nssa, tcs.cssa), (3, 0));
        assert_eq!((tcs.ofsbasgx, tcs.ogsbasgx), (region + thread::INITIAL_FS, region + thread::DATA));
        assert_eq!((tcs.fslimit, tcs.gslimit), (0xfff, 0xfff));
        // In the test runtime the entry is the first instruction, ENCLU its second.
        assert_eq!(stream.read(tcs.oentry + 5, 5).as_deref(), Some(&[0x0f, 0x01, 0xd7, 0x66, 0x90][..]));
        assert_eq!(image.hints().enclu_sites, [tcs.oentry + 5]);
    }
    assert!(stream.pages.iter().all(|p| !p.flags.contains(SecinfoFlags::W | SecinfoFlags::X)));
    let unmeasured = stream.pages.iter().filter(|p| p.measured == 0).count();
    assert_eq!(unmeasured, (64 << 20) / 4096 + 8 * (16 + 4 + 3));
}

/// Of an image whose memory grows, the first thread and the end of the heap are there, and nothing of the others.
#[test]
fn a_growing_image_has_little_of_its_memory() {
    let image = image(&Config { profile: enclos_pack::config::Profile::Sgx2, ..config() });
    let (info, stream) = (image.info(), image.stream());
    assert_eq!((info.threads, info.threads_present, info.heap_size), (8, 1, 64 << 20));
    assert_eq!(info.heap_present, enclos::image::dynamic_heap_present(64 << 20));
    let area = info.thread_area + thread::STRIDE;
    let present = info.heap + info.heap_size - info.heap_present;
    assert!(stream.pages.iter().all(|p| p.offset < area || p.offset >= present));
    let heap = stream.pages.iter().filter(|p| p.offset >= info.heap);
    assert_eq!(heap.count() as u64 * 4096, info.heap_present);
    assert!(info.heap_present < 1 << 20 && image.manifest().dynamic_memory);
    // A small heap is all there.
    let tiny = "name = 'test'\nprofile = 'sgx2'\nheap = '128 KiB'\nstack = '64 KiB'";
    let tiny = Config::parse(tiny, std::path::Path::new("enclos.toml")).expect("sound");
    let dir = tempfile::tempdir().expect("temporary directory");
    let (runtime, app) = (runtime(dir.path()), hello(dir.path()));
    let tiny = pack(&PackInput { runtime: &runtime, app: &app, config: &tiny }).expect("packs");
    assert_eq!(tiny.info().heap_present, tiny.info().heap_size);
}

#[test]
fn stubs_jump_to_the_runtime_and_back() {
    let image = image(&small());
    let (info, stream, sites) = (image.info(), image.stream(), &image.hints().sites);
    assert!(sites.syscall.rewritten() > 30 && sites.cpuid.rewritten() > 10, "{sites:?}");
    let entry =
        stream.pages.iter().find(|p| p.is(PageType::Tcs)).and_then(|p| p.data.as_ref()).expect("a TCS");
    let entry = u64::from_le_bytes(entry[32..40].try_into().expect("eight bytes"));
    // In the test runtime, `mov $4,%eax; enclu; nop; jmp *%rcx; jmp *%rdx`.
    let (syscall, cpuid) = (entry + 10, entry + 12);
    let app = stream.read(info.app, (info.app_end - info.app) as usize).expect("all of it");
    let mut found = [0, 0];
    for (at, bytes) in (info.app..).zip(app.windows(5)).filter(|(_, bytes)| bytes[0] == 0xe9) {
        let to = i32::from_le_bytes(bytes[1..].try_into().expect("four bytes"));
        let to = (at + 5).wrapping_add_signed(to.into());
        found[0] += u64::from(to == syscall);
        found[1] += u64::from(to == cpuid);
    }
    assert_eq!(found, [sites.syscall.rewritten(), sites.cpuid.rewritten()]);
    let traps = stream.read(info.traps, info.trap_count as usize * 16).expect("the trap table");
    assert_eq!(info.trap_count, sites.cpuid.trapping);
    for trap in traps.chunks(16) {
        let at = u64::from_le_bytes(trap[..8].try_into().expect("eight bytes"));
        assert_eq!(stream.read(at, 2).as_deref(), Some(&[0x0f, 0x0b][..]));
    }
}

#[test]
fn the_runtime_built_in_packs() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let app = hello(dir.path());
    let image =
        pack(&PackInput { runtime: enclos_pack::runtime(), app: &app, config: &small() }).expect("packs");
    assert!(!image.hints().enclu_sites.is_empty());
    let text = String::from_utf8_lossy(enclos_pack::runtime());
    assert!(!text.contains(env!("CARGO_MANIFEST_DIR")), "paths of this machine are in the runtime");
}

#[test]
fn every_setting_that_matters_is_measured() {
    let base = image(&config()).mrenclave();
    assert_eq!(base, image(&config()).mrenclave(), "same inputs, same measurement");
    let changes: [fn(&mut Config); 13] = [
        |c| c.profile = enclos_pack::config::Profile::Sgx2,
        |c| c.heap = enclos_pack::config::Size::new(65 << 20).expect("sound"),
        |c| c.debug = true,
        |c| c.product_id = 7,
        |c| c.security_version = 7,
        |c| c.stdin = true,
        |c| c.args = false,
        |c| {
            let kind = enclos::manifest::MountKind::SealedSigner;
            c.mounts = vec![enclos_pack::config::MountConfig { path: "/data".into(), kind }];
        },
        |c| {
            let kind = enclos::manifest::MountKind::SealedImage;
            c.mounts = vec![enclos_pack::config::MountConfig { path: "/data".into(), kind }];
        },
        |c| c.network.listen = vec![enclos_pack::config::Address::new("127.0.0.1:1").expect("sound")],
        |c| c.network.connect = vec![enclos_pack::config::Address::new("127.0.0.1:1").expect("sound")],
        |c| c.signals = vec![enclos_pack::config::Signal::Term],
        |c| c.threads = enclos_pack::config::Threads::new(2).expect("sound"),
    ];
    for change in changes {
        let mut config = config();
        change(&mut config);
        assert_ne!(base, image(&config).mrenclave());
    }
}

#[test]
fn sign_and_verify() {
    let mut config = config();
    config.product_id = 3;
    config.security_version = 5;
    let mut image = image(&config);
    assert!(matches!(image.verify(), Err(SignError::Unsigned)));
    let key = key();
    image.sign(&key, Date::from_unix(1_700_000_000)).expect("signs");
    let s = image.sigstruct().expect("signed");
    assert_eq!(s.date, 0x2023_1114);
    assert_eq!((s.isvprodid, s.isvsvn), (3, 5));
    assert_eq!((s.attributes.flags, s.attributes.xfrm), (AttributesFlags::MODE64BIT, XFRM));
    assert_eq!((s.attributemask, s.miscselect, s.miscmask), ([!0; 2], Miscselect::empty(), !1));
    let read = Image::parse(&image.to_file_bytes()).expect("reads back");
    let signer = read.verify().expect("verifies");
    assert_eq!(signer, key.public());
    assert_eq!(read.mrenclave(), image.mrenclave());

    let file = image.to_file_bytes();
    let at = 32 + image.sgxs().len();
    for byte in [16, 40, 200, 600, 900, 930, 1000, 1026, 1100, 1500] {
        let mut altered = file.clone();
        altered[at + byte] ^= 1;
        let altered = Image::parse(&altered).expect("structure is intact");
        assert!(altered.verify().is_err(), "SIGSTRUCT byte {byte}");
    }
    let mut altered = file.clone();
    let app = 32 + image.sgxs().windows(4).position(|w| w == b"\x7fELF").expect("an ELF header") + 200;
    altered[app] ^= 1;
    let altered = Image::parse(&altered).expect("structure is intact");
    assert!(matches!(altered.verify(), Err(SignError::EnclaveHash { .. })));
}

/// The three components of AVX-512 are the host's to choose, everything else is not; and it is the manifest that says so.
#[test]
fn who_asks_for_avx512_leaves_its_state_open() {
    let mut config = small();
    let without = image(&config).mrenclave();
    config.avx512 = true;
    let mut image = image(&config);
    assert_ne!(image.mrenclave(), without, "it is measured");
    image.sign(&key(), Date::from_unix(1_700_000_000)).expect("signs");
    let s = image.sigstruct().expect("signed");
    assert_eq!((s.attributes.xfrm, s.attributemask), (XFRM, [!0, !0xe0]));
    image.verify().expect("verifies");

    // The same signer's SIGSTRUCT without that freedom is for another image.
    let date = Date::from_unix(1_700_000_000);
    let mut body = image.signing_body(date);
    let at = body.windows(8).position(|w| w == (!0xe0_u64).to_le_bytes()).expect("ATTRIBUTEMASK.XFRM");
    body[at] = 0xff;
    let signature = key().sign_body(&body).expect("signs");
    let refused = image.attach_signature(&body, &key().public(), &signature);
    assert!(matches!(refused, Err(SignError::OtherImage)));
}

#[test]
fn signing_in_two_steps_gives_the_same_image() {
    let key = key();
    let mut one = image(&config());
    let mut two = one.clone();
    let date = Date::from_unix(86400 * 365);
    one.sign(&key, date).expect("signs");
    let body = two.signing_body(date);
    let signature = key.sign_body(&body).expect("signs");
    let public = VerifyingKey::from_pem(&key.public().to_pem().expect("encodes")).expect("decodes");

    let mut wrong = signature;
    wrong[100] ^= 4;
    assert!(matches!(two.attach_signature(&body, &public, &wrong), Err(SignError::Signature)));
    assert!(matches!(two.attach_signature(&body, &public, &signature[1..]), Err(SignError::Signature)));
    assert!(matches!(
        two.attach_signature(&body[1..], &public, &signature),
        Err(SignError::BodyLength { found: 255 })
    ));
    let mut other = config();
    other.debug = true;
    let body_of_other = image(&other).signing_body(date);
    let signature_of_other = key.sign_body(&body_of_other).expect("signs");
    assert!(matches!(
        two.attach_signature(&body_of_other, &public, &signature_of_other),
        Err(SignError::OtherImage)
    ));
    assert!(two.sigstruct().is_none());
    two.attach_signature(&body, &public, &signature).expect("attaches");
    assert_eq!(one.to_file_bytes(), two.to_file_bytes());
}

#[test]
fn keys_are_private_and_never_overwritten() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("key.pem");
    key().write_new(&path).expect("writes");
    assert_eq!(std::fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o600);
    assert!(matches!(key().write_new(&path), Err(SignError::KeyExists { .. })));
    assert_eq!(SigningKey::load(&path).expect("loads").public(), key().public());
    let weak = "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n";
    assert!(matches!(VerifyingKey::from_pem(weak), Err(SignError::Pem { .. })));
}

#[test]
fn keys_are_of_the_one_kind_that_sgx_takes() {
    use rsa::pkcs8::{EncodePrivateKey as _, LineEnding};
    let made = SigningKey::generate().expect("makes a key");
    let again = SigningKey::from_pem(&made.to_pem().expect("encodes")).expect("3072 bits, exponent 3");
    assert_eq!(made.public(), again.public());
    assert_ne!(made.public().mrsigner(), key().public().mrsigner());
    let other = |bits, exponent: u32| {
        let key = rsa::PrivateKey::new_with_exp(&mut getrandom::SysRng, bits, exponent.into())
            .expect("makes a key");
        SigningKey::from_pem(&key.to_pkcs8_pem(LineEnding::LF).expect("encodes")).map(|_| ())
    };
    assert!(matches!(other(2048, 3), Err(SignError::KeySize { bits: 2048 })));
    assert!(matches!(other(3072, 65537), Err(SignError::Exponent)));
}

#[test]
fn damaged_files_give_errors() {
    let mut image = image(&small());
    image.sign(&key(), Date::from_unix(0)).expect("signs");
    let file = image.to_file_bytes();
    for len in (0..400).chain([file.len() / 2, file.len() - 1]) {
        assert!(Image::parse(&file[..len]).is_err(), "{len} bytes");
    }
    assert!(matches!(Image::parse(b"#!/bin/sh"), Err(ImageError::File(_))));
    // A sample of the bytes of the headers, and of the others: an error or another image, never a panic.
    for at in (0..64).step_by(7).chain((64..file.len()).step_by(file.len() / 20)) {
        let mut altered = file.clone();
        altered[at] ^= 0x80;
        let _ = Image::parse(&altered).map(|i| i.verify().map(|_| ()));
    }
}

#[test]
fn wrong_programs_are_refused_with_a_cure() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (runtime, config) = (runtime(dir.path()), small());
    let pack_app = |app: &[u8]| {
        pack(&PackInput { runtime: &runtime, app, config: &config }).expect_err("refused").to_string()
    };
    let dynamic = std::fs::read(support::gcc(dir.path(), "dynamic.c", "int main(){return 0;}", &["-pie"]));
    assert!(pack_app(&dynamic.expect("built")).contains("static-pie"));
    let fixed = support::gcc(dir.path(), "fixed.c", "int main(){return 0;}", &["-static", "-no-pie"]);
    assert!(pack_app(&std::fs::read(fixed).expect("built")).contains("position-independent"));
    assert!(pack_app(b"\x7fELF").contains("not a sound ELF file"));
    let app = hello(dir.path());
    let no_runtime = pack(&PackInput { runtime: &app, app: &app, config: &config });
    assert!(matches!(no_runtime, Err(PackError::RuntimeSymbol { name: "enclos_entry" })));
    for len in (0..app.len()).step_by(app.len() / 30) {
        let _ = pack(&PackInput { runtime: &runtime, app: &app[..len], config: &config });
    }
    for at in (0..1000).step_by(13).chain((1000..app.len()).step_by(app.len() / 10)) {
        let mut altered = app.clone();
        altered[at] ^= 0x41;
        let _ = pack(&PackInput { runtime: &runtime, app: &altered, config: &config });
    }
}
