//! Builds the guests with the ordinary toolchain, runs them outside, and packs them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock};

use enclos_host::{Builder, Enclave, PlatformChoice};
use enclos_pack::{Config, Date, Image, PackInput, SigningKey, pack};

/// A static PIE made of a file in `guests`. The tests of one binary build it once.
pub(crate) fn build(source: &str) -> PathBuf {
    static BUILT: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests").join(source);
    // Of each test binary, since several run at once, but not of each run: nobody would remove them.
    let name = format!("{}-{source}", env!("CARGO_CRATE_NAME"));
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
    if !built.get_or_insert_default().insert(source.into()) {
        return to;
    }
    // Another run may be starting what is replaced.
    let partial = to.with_file_name(format!(".{name}.{}.partial", std::process::id()));
    let mut compiler = if source.ends_with(".rs") {
        let mut c = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        c.args(["--edition=2024", "-O", "-Ctarget-feature=+crt-static", "-Crelocation-model=pie"]);
        c
    } else {
        let mut c = Command::new("gcc");
        c.args(["-O2", "-static-pie", "-pthread"]);
        c
    };
    let status =
        compiler.arg(&from).arg("-o").arg(&partial).args((source.ends_with(".c")).then_some("-lm")).status();
    assert!(status.expect("a compiler").success(), "building {source}");
    std::fs::rename(&partial, &to).unwrap();
    to
}

/// What the program does without an enclave.
pub(crate) fn run_outside(program: &Path) -> Output {
    Command::new(program).env_clear().output().unwrap()
}

/// Packed and signed with a key that is for tests only.
pub(crate) fn image(program: &Path, config: &str) -> Image {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    let config = Config::parse(&format!("name = \"guest\"\n{config}"), Path::new("enclos.toml")).unwrap();
    let app = std::fs::read(program).unwrap();
    let mut image = pack(&PackInput { runtime: enclos_pack::runtime(), app: &app, config: &config }).unwrap();
    let pem = include_str!("../../../../host/pack/tests/data/test-only-key.pem");
    image
        .sign(KEY.get_or_init(|| SigningKey::from_pem(pem).unwrap()), Date::from_unix(1_700_000_000))
        .unwrap();
    image
}

/// Starts it on the emulator.
pub(crate) fn builder(image: &Image) -> Builder {
    Enclave::builder(image.to_file_bytes()).platform(PlatformChoice::Emulated)
}
