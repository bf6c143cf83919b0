//! Builds the tests' enclave once and packs it as each test wants it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use enclos_pack::{Config, Date, PackInput, SigningKey, pack};

/// Flags that make a program a static PIE.
const STATIC_PIE: &str = "-C target-feature=+crt-static -C relocation-model=pie";

pub(crate) fn sign(config: &str, other: bool) -> Vec<u8> {
    sign_with(config, other, key())
}

/// An `.enclave` file of the guest.
pub(crate) fn sign_with(config: &str, other: bool, key: &SigningKey) -> Vec<u8> {
    let config = Config::parse(&format!("name = \"guest\"\n{config}"), Path::new("enclos.toml")).unwrap();
    let app = std::fs::read(guest(other)).unwrap();
    let mut image = pack(&PackInput { runtime: enclos_pack::runtime(), app: &app, config: &config }).unwrap();
    image.sign(key, Date::from_unix(1_700_000_000)).unwrap();
    image.to_file_bytes()
}

pub(crate) fn key() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| SigningKey::from_pem(include_str!("../../pack/tests/data/test-only-key.pem")).unwrap())
}

fn guest(other: bool) -> &'static Path {
    static PATHS: [OnceLock<PathBuf>; 2] = [const { OnceLock::new() }; 2];
    PATHS[usize::from(other)].get_or_init(|| {
        let features: &[&str] = if other { &["--features", "other"] } else { &[] };
        let built = build("enclos-test-guest", features).join("enclos-test-guest");
        let kept = built.with_extension(if other { "other" } else { "plain" });
        std::fs::copy(built, &kept).unwrap();
        kept
    })
}

/// Builds a binary for the inside, in a target folder of its own; returns where it is.
fn build(package: &str, more: &[&str]) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
    let status = Command::new(env!("CARGO"))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap())
        .args(["build", "--release", "--offline", "--quiet", "--target", "x86_64-unknown-linux-gnu"])
        .args(["-p", package])
        .args(more)
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", STATIC_PIE)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .status()
        .unwrap();
    assert!(status.success(), "building {package}");
    target.join("x86_64-unknown-linux-gnu/release")
}
