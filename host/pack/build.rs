//! Builds the runtime (`trusted/runtime`), so that the packer carries it inside: a freestanding program for the
//! enclave, whatever this crate itself is built for.
//!
//! The same sources and toolchain give the same bytes, wherever they are and whatever the user's settings: flags and
//! profile are fixed here, paths are remapped, and the environment of the nested cargo is cleaned.

#[path = "src/build/environment.rs"]
mod environment;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use environment::{STATIC_PIE, TARGET};

fn main() {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let root = manifest_dir.join("../..").canonicalize().expect("this crate is two folders below the root");
    for path in [
        "trusted/runtime",
        "trusted/sealed",
        "interface",
        "Cargo.toml",
        "Cargo.lock",
        "host/pack/build.rs",
        "host/pack/src/build",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }

    let target_dir = out.join("runtime");
    let mut cargo = Command::new(env::var_os("CARGO").expect("set by cargo"));
    environment::clean(&mut cargo);
    cargo
        .args(["build", "--release", "--package", "enclos-runtime", "--target", TARGET])
        .arg("--manifest-path")
        .arg(root.join("Cargo.toml"))
        // A folder of its own: the outer cargo holds the lock on the usual one.
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(&root).join("\x1f"))
        .envs(PROFILE);
    let run = cargo.output().unwrap_or_else(|e| panic!("cannot start cargo to build the runtime: {e}"));
    if !run.status.success() {
        panic!(
            "building the runtime failed ({}). It needs the target {TARGET} (`rustup target add {TARGET}`) and a C \
             linker (`cc`). What cargo said:\n{}",
            run.status,
            String::from_utf8_lossy(&run.stderr)
        );
    }
    let built = target_dir.join(TARGET).join("release/enclos-runtime");
    let to = out.join("enclos-runtime");
    std::fs::copy(&built, &to)
        .unwrap_or_else(|e| panic!("cannot copy {} to {}: {e}", built.display(), to.display()));
}

/// Settings of the release profile, so that neither the workspace's nor the user's matter.
const PROFILE: [(&str, &str); 11] = [
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "false"),
    ("CARGO_PROFILE_RELEASE_INCREMENTAL", "false"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_RPATH", "false"),
    ("CARGO_PROFILE_RELEASE_SPLIT_DEBUGINFO", "off"),
    // The packer finds entry points by symbol; symbols are not loaded, so not measured.
    ("CARGO_PROFILE_RELEASE_STRIP", "none"),
];

fn rust_flags(root: &Path) -> Vec<String> {
    let mut flags = vec!["--cfg".to_owned(), "freestanding".to_owned()];
    flags.extend(STATIC_PIE.map(String::from));
    let rustc = PathBuf::from(env::var_os("RUSTC").expect("set by cargo"));
    // Crates are downloaded already: this crate needs those of the runtime too.
    for (from, to) in
        environment::folders(&rustc).into_iter().chain([(root.to_path_buf(), "/enclos".to_owned())])
    {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    flags
}
