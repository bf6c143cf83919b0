//! Other people's tools on our images.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use enclos_pack::{Config, Date, Image, PackInput, SigningKey, pack};
use openssl::hash::Hasher;
use openssl::pkey::PKey;
use sgx_isa::{PageType, SecinfoFlags, Sigstruct};
use sgxs::sigstruct::{EnclaveHash, verify};

const KEY: &str = include_str!("../../../../host/pack/tests/data/test-only-key.pem");
/// 2023-11-14.
const DATE: u64 = 1_700_000_000;

#[test]
fn sgxs_info_reads_the_stream() {
    let files = Files::new();
    let image = image(false);
    let sgxs = files.write("image.sgxs", image.sgxs());
    let text = tool("sgxs-info", &[OsStr::new("list-pages"), sgxs.as_os_str()]);
    let mut lines = text.lines();
    let first = lines.next().expect("a first line");
    assert_eq!(first, format!("ECREATE size=0x{:x} ssaframesize=1", image.stream().size));
    let listed: Vec<&str> = lines.collect();
    assert_eq!(listed.len(), image.stream().pages.len());
    for (line, page) in listed.iter().zip(&image.stream().pages) {
        assert!(line.contains(&format!("offset=0x{:8x}", page.offset)), "{line}");
        assert!(line.contains(&format!("pagetype={:<4}", page.flags.page_type())), "{line}");
        let permissions = format!("flags={:<9}", format!("{:?}", page.flags & !SecinfoFlags::PT_MASK));
        assert!(line.contains(&permissions), "{line} {permissions}");
        let measured = if page.measured == 0 { "measured=none" } else { "measured=all" };
        assert!(line.contains(measured), "{line}");
    }
    let tcss = image.stream().pages.iter().filter(|p| p.is(PageType::Tcs));
    let summary = tool("sgxs-info", &[OsStr::new("summary"), sgxs.as_os_str()]);
    assert_eq!(summary.matches("Tcs").count(), tcss.count(), "{summary}");
    let info = image.info();
    let ssa = info.thread_area + enclos::abi::thread::SSA;
    assert!(summary.contains(&format!("ossa=0x{ssa:x}")), "{summary}");
}

#[test]
fn sgxs_sign_makes_the_same_sigstruct() {
    let files = Files::new();
    let key_file = files.write("key.pem", KEY.as_bytes());
    let key = SigningKey::from_pem(KEY).expect("a sound key");
    for (debug, attributes) in [(false, "0x4/0"), (true, "0x6/0")] {
        let mut image = image(debug);
        image.sign(&key, Date::from_unix(DATE)).expect("signs");
        let (sgxs, to) = (files.write("image.sgxs", image.sgxs()), files.0.path().join("image.sig"));
        let arguments: [&OsStr; 16] = [
            "-k".as_ref(),
            key_file.as_ref(),
            "-m".as_ref(),
            "0x0/0x1".as_ref(),
            "-a".as_ref(),
            attributes.as_ref(),
            "-x".as_ref(),
            "0x7/0".as_ref(),
            "-p".as_ref(),
            "3".as_ref(),
            "-v".as_ref(),
            "5".as_ref(),
            "--date".as_ref(),
            "20231114".as_ref(),
            sgxs.as_ref(),
            to.as_ref(),
        ];
        tool("sgxs-sign", &arguments);
        let theirs = std::fs::read(&to).expect("just written");
        let ours: &[u8] = image.sigstruct().expect("signed").as_ref();
        assert_eq!(theirs, ours, "debug: {debug}");
        let theirs = Sigstruct::try_copy_from(&theirs).expect("the right length");
        assert_eq!(theirs.enclavehash, image.mrenclave());
        let mrsigner = openssl::sha::sha256(&theirs.modulus);
        assert_eq!(mrsigner, image.verify().expect("verifies").mrsigner());
    }
}

#[test]
fn the_sgxs_crate_verifies_the_signature() {
    let mut image = image(false);
    let mut stream = image.sgxs();
    let hash = EnclaveHash::from_stream::<_, Hasher>(&mut stream).expect("reads");
    assert_eq!(hash.hash(), image.mrenclave());
    image.sign(&SigningKey::from_pem(KEY).expect("a sound key"), Date::from_unix(DATE)).expect("signs");
    let key = PKey::private_key_from_pem(KEY.as_bytes()).and_then(|k| k.rsa()).expect("an RSA key");
    let sigstruct = image.sigstruct().expect("signed");
    verify::<_, Hasher>(sigstruct, &*key).expect("verifies");
    for field in [16usize, 700, 1000, 1026] {
        let mut bytes = sigstruct.as_ref().to_vec();
        bytes[field] ^= 1;
        let altered = Sigstruct::try_copy_from(&bytes).expect("the right length");
        assert!(verify::<_, Hasher>(&altered, &*key).is_err(), "byte {field}");
        let mut file = image.to_file_bytes();
        file[32 + image.sgxs().len() + field] ^= 1;
        assert!(Image::parse(&file).expect("intact").verify().is_err(), "byte {field}");
    }
}

#[test]
fn openssl_signs_in_two_steps() {
    let files = Files::new();
    let mut one = image(false);
    let mut two = one.clone();
    let date = Date::from_unix(DATE);
    one.sign(&SigningKey::from_pem(KEY).expect("a sound key"), date).expect("signs");
    let body = two.signing_body(date);
    let (key, data) = (files.write("key.pem", KEY.as_bytes()), files.write("body", &body));
    let signature = files.0.path().join("signature");
    let dgst = ["dgst", "-sha256", "-sign"].map(OsStr::new);
    let paths = [key.as_os_str(), "-out".as_ref(), signature.as_os_str(), data.as_os_str()];
    run(Command::new("openssl").args(dgst).args(paths));
    let public = run(Command::new("openssl").args(["rsa", "-pubout", "-in"]).arg(&key));
    let public = enclos_pack::VerifyingKey::from_pem(&public).expect("a public key");
    two.attach_signature(&body, &public, &std::fs::read(signature).expect("just made")).expect("attaches");
    assert_eq!(one.to_file_bytes(), two.to_file_bytes());
}

/// A small program, packed with the real runtime.
fn image(debug: bool) -> Image {
    static APP: OnceLock<Vec<u8>> = OnceLock::new();
    let app = APP.get_or_init(|| {
        let files = Files::new();
        let source =
            files.write("app.c", b"#include <stdio.h>\nint main(void) { return puts(\"hello\") < 0; }\n");
        let to = files.0.path().join("app");
        run(Command::new("gcc").args(["-O2", "-fPIE", "-static-pie", "-o"]).arg(&to).arg(source));
        std::fs::read(to).expect("just built")
    });
    let text = format!(
        "name = 'conformance'\nthreads = 3\nheap = '1 MiB'\nstack = '64 KiB'\nproduct-id = 3\nsecurity-version = 5\n\
         debug = {debug}\n"
    );
    let config = Config::parse(&text, Path::new("enclos.toml")).expect("sound");
    pack(&PackInput { runtime: enclos_pack::runtime(), app, config: &config }).expect("packs")
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).expect("writable");
        path
    }
}

/// Runs one of the sgxs-tools.
fn tool(name: &str, arguments: &[&OsStr]) -> String {
    static TOOLS: OnceLock<PathBuf> = OnceLock::new();
    run(Command::new(TOOLS.get_or_init(build_tools).join(name)).args(arguments))
}

/// Compiles the published sources of the two tools, unchanged, and with what these two need: the rest of the package
/// (a detector of SGX, a client of AESM) needs much more. Returns the folder of the binaries.
fn build_tools() -> PathBuf {
    const MANIFEST: &str = "[package]\nname = 'sgxs-tools-binaries'\nedition = '2018'\n[workspace]\n\
        [target.'cfg(any())'.dependencies]\nsgxs-tools = '=0.10.0'\n\
        [dependencies]\nclap = '2.34'\nnum = '0.2'\nopenssl = '0.10'\nregex = '1'\nsgx-isa = '0.6'\n\
        sgxs = { version = '0.9', features = ['crypto-openssl'] }\n";
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sgxs-tools");
    let write = |path: &str, text: &str| std::fs::write(folder.join(path), text).expect("writable");
    std::fs::create_dir_all(folder.join("src")).expect("writable");
    write("src/lib.rs", "");
    write("Cargo.toml", MANIFEST);
    // On no platform is the package itself needed: cargo only downloads and checks it.
    let cargo = |arguments: &[&str]| run(Command::new(env!("CARGO")).args(arguments).current_dir(&folder));
    let metadata = cargo(&["metadata", "--format-version=1"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("JSON");
    let packages = metadata["packages"].as_array().expect("a list");
    let published = packages.iter().find(|p| p["name"] == "sgxs-tools").expect("it is a dependency");
    let sources = Path::new(published["manifest_path"].as_str().expect("a path")).with_file_name("src/bin");
    let bins = ["sgxs-info", "sgxs-sign"]
        .map(|name| format!("[[bin]]\nname = '{name}'\npath = '{}/{name}.rs'\n", sources.display()));
    write("Cargo.toml", &format!("{MANIFEST}{}", bins.concat()));
    cargo(&["build", "--bins", "--target-dir", "target"]);
    folder.join("target/debug")
}

fn run(command: &mut Command) -> String {
    let ran = command.output().unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{command:?}: {}\n{out}{err}", ran.status);
    out.into_owned()
}
