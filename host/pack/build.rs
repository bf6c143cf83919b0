//! Builds the runtime (`trusted/runtime`), so that the packer carries it inside: a freestanding program for the
//! enclave, whatever this crate itself is built for.
//!
//! The same sources and toolchain give the same bytes, wherever they are and whatever the user's settings: flags and
//! profile are fixed here, paths are remapped, and the environment of the nested cargo is cleaned.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let root = manifest_dir.join("../..").canonicalize().expect("this crate is two folders below the root");
    for path in ["trusted/runtime", "interface", "Cargo.toml", "Cargo.lock", "host/pack/build.rs"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }

    let target_dir = out.join("runtime");
    let mut cargo = Command::new(env::var_os("CARGO").expect("set by cargo"));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_unwanted) {
            cargo.env_remove(name);
        }
    }
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
    let mut flags: Vec<String> = [
        "--cfg",
        "freestanding",
        "-Ctarget-feature=+crt-static",
        "-Crelocation-model=pie",
        "-Ctarget-cpu=x86-64",
    ]
    .map(String::from)
    .into();
    let mut remap = |from: &Path, to: &str| {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    };
    remap(root, "/enclos");
    if let Some(home) =
        env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")))
    {
        remap(&home, "/cargo");
        // The name of a registry's folder depends on the mirror in use. The sources are there: this crate needs them too.
        for registry in std::fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten() {
            remap(&registry.path(), "/registry");
        }
    }
    // With the component rust-src, paths of the standard library would lead into the toolchain's folder.
    let rustc = env::var_os("RUSTC").expect("set by cargo");
    if let Ok(run) = Command::new(rustc).args(["--print", "sysroot"]).output() {
        let sysroot = String::from_utf8_lossy(&run.stdout);
        remap(Path::new(sysroot.trim()), "/rust");
    }
    flags
}

/// Is this a variable that would change what the nested cargo builds?
fn is_unwanted(name: &str) -> bool {
    let settings = ["CARGO_HOME", "CARGO_MAKEFLAGS"].contains(&name)
        || ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"]
            .iter()
            .any(|p| name.starts_with(p));
    (name.starts_with("CARGO_") && !settings)
        || ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_BOOTSTRAP"].contains(&name)
}
