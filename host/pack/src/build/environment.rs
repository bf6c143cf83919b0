//! What of the surroundings must not show in a program: used by this crate's build script for the runtime, and by
//! [`super`] for applications.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The only target of runtime and applications.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Flags that make a program a static PIE for any x86-64 CPU.
pub(crate) const STATIC_PIE: [&str; 3] =
    ["-Ctarget-feature=+crt-static", "-Crelocation-model=pie", "-Ctarget-cpu=x86-64"];

/// Removes variables that would change what a cargo builds. It keeps where to, and the settings of registries and network.
pub(crate) fn clean(cargo: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_unwanted) {
            cargo.env_remove(name);
        }
    }
}

fn is_unwanted(name: &str) -> bool {
    let kept = ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_TARGET_DIR"].contains(&name)
        || ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_TERM_"]
            .iter()
            .any(|p| name.starts_with(p));
    (name.starts_with("CARGO_") && !kept)
        || ["CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "RUSTFLAGS"].iter().any(|p| name.starts_with(p))
        || ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_BOOTSTRAP"].contains(&name)
}

/// Folders of the toolchain and of downloaded crates, with the names they get in a program. Where several match a
/// path, the last counts.
pub(crate) fn folders(rustc: &Path) -> Vec<(PathBuf, String)> {
    let mut folders = Vec::new();
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    if let Some(home) = home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))) {
        folders.push((home.clone(), "/cargo".to_owned()));
        // The name of a registry's folder depends on the mirror in use.
        for registry in std::fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten() {
            folders.push((registry.path(), "/registry".to_owned()));
        }
    }
    // With the component rust-src, paths of the standard library lead into the toolchain's folder.
    if let Ok(run) = Command::new(rustc).args(["--print", "sysroot"]).output()
        && run.status.success()
    {
        folders.push((PathBuf::from(String::from_utf8_lossy(&run.stdout).trim()), "/rust".to_owned()));
    }
    folders
}
