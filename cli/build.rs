//! Collects what `enclos new`, `enclos build` and `enclos bench` unpack, so that the command works without this
//! repository: the crates that a user's project depends on (the SDK), the scaffold and the benchmark enclave.
//!
//! The result is a Rust file with one `(path, contents)` pair a file, sorted by path: the same sources give the same
//! bytes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Crates a user's project needs, by folder from the workspace root.
const SDK: [&str; 5] = ["interface", "interface/macros", "platform", "host", "trusted/enclave"];

/// Sections of the workspace's `Cargo.toml` that the crates inherit from.
const INHERITED: [&str; 4] =
    ["workspace.package", "workspace.dependencies", "workspace.lints.rust", "workspace.lints.clippy"];

/// Sections of a crate's `Cargo.toml` that only its own tests need.
const TEST_ONLY: [&str; 4] = ["dev-dependencies", "test", "bench", "example"];

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = here.parent().expect("the crate lies in the workspace").to_path_buf();

    let mut sdk = BTreeMap::new();
    sdk.insert("Cargo.toml".to_owned(), sdk_workspace(&read(&root.join("Cargo.toml"))));
    for folder in SDK {
        let from = root.join(folder);
        sdk.insert(format!("{folder}/Cargo.toml"), without(&read(&from.join("Cargo.toml")), &TEST_ONLY));
        if from.join("build.rs").exists() {
            sdk.insert(format!("{folder}/build.rs"), read(&from.join("build.rs")));
        }
        collect(&from.join("src"), &format!("{folder}/src"), &mut sdk);
    }
    let mut scaffold = BTreeMap::new();
    collect(&here.join("template"), "", &mut scaffold);
    let mut bench = BTreeMap::new();
    collect(&here.join("bench"), "", &mut bench);
    let mut attester = BTreeMap::new();
    collect(&here.join("attester"), "", &mut attester);
    let mut runner = BTreeMap::new();
    collect(&here.join("runner"), "", &mut runner);
    let lock = read(&root.join("Cargo.lock"));

    let mut out = String::new();
    table(&mut out, "SDK", "The crates a user's project depends on.", &sdk);
    table(&mut out, "SCAFFOLD", "What `enclos new` writes.", &scaffold);
    table(&mut out, "BENCH", "The project of the benchmark enclave.", &bench);
    table(&mut out, "ATTESTER", "The project of the enclave behind `enclos quote`.", &attester);
    table(&mut out, "RUNNER", "The host program of plain programs in containers.", &runner);
    writeln!(out, "/// The versions everything was tested with.\npub(crate) const LOCK: &str = {lock:?};")
        .expect("strings take everything");
    let to = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("embedded.rs");
    fs::write(&to, out).unwrap_or_else(|e| panic!("cannot write {}: {e}", to.display()));
    println!("cargo::rerun-if-changed=build.rs");
}

fn table(out: &mut String, name: &str, doc: &str, files: &BTreeMap<String, String>) {
    writeln!(out, "/// {doc}\npub(crate) const {name}: &[(&str, &str)] = &[")
        .expect("strings take everything");
    for (path, contents) in files {
        writeln!(out, "    ({path:?}, {contents:?}),").expect("strings take everything");
    }
    out.push_str("];\n");
}

/// All files below a folder, except build output.
fn collect(folder: &Path, name: &str, into: &mut BTreeMap<String, String>) {
    println!("cargo::rerun-if-changed={}", folder.display());
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("cannot read {}: {e}", folder.display()));
    for entry in entries {
        let path = entry.expect("the folder is readable").path();
        let own = path.file_name().expect("entries have names").to_string_lossy().into_owned();
        let inner = if name.is_empty() { own.clone() } else { format!("{name}/{own}") };
        if path.is_dir() {
            if own != "target" {
                collect(&path, &inner, into);
            }
        } else {
            into.insert(inner, read(&path));
        }
    }
}

fn read(path: &Path) -> String {
    println!("cargo::rerun-if-changed={}", path.display());
    fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
}

/// The root `Cargo.toml` of the unpacked SDK.
fn sdk_workspace(root: &str) -> String {
    let members = SDK.map(|f| format!("    {f:?},\n")).concat();
    let mut out = format!("[workspace]\nresolver = \"3\"\nmembers = [\n{members}]\n\n");
    for (name, text) in sections(root) {
        if INHERITED.contains(&name) {
            out.push_str(text);
        }
    }
    out
}

fn without(manifest: &str, unwanted: &[&str]) -> String {
    let kept = sections(manifest).into_iter().filter(|(name, _)| !unwanted.contains(name));
    kept.map(|(_, text)| text).collect()
}

/// Splits TOML at its table headers. Our manifests have no multi-line strings, so a line that begins with `[` and does
/// not continue an array is one.
fn sections(toml: &str) -> Vec<(&str, &str)> {
    let mut starts: Vec<usize> = toml
        .match_indices('\n')
        .map(|(at, _)| at + 1)
        .chain([0])
        .filter(|at| toml[*at..].starts_with('['))
        .collect();
    starts.sort_unstable();
    let ends = starts.iter().skip(1).copied().chain([toml.len()]);
    let all = starts.iter().zip(ends).map(|(from, to)| {
        let text = &toml[*from..to];
        let header = text.lines().next().unwrap_or_default();
        (header.trim_matches(|c: char| c == '[' || c == ']' || c.is_whitespace()), text)
    });
    all.collect()
}
