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

/// Crates of the inference service's enclave, besides those of the SDK.
const INFERENCE: [&str; 8] = [
    "verifier",
    "verifier/pccs",
    "verifier/tls",
    "services/http",
    "services/inference",
    "services/inference/engine",
    "services/inference/enclave",
    "services/key-broker",
];

/// Sections of the workspace's `Cargo.toml` that the crates inherit from.
const INHERITED: [&str; 4] =
    ["workspace.package", "workspace.dependencies", "workspace.lints.rust", "workspace.lints.clippy"];

/// Sections of a crate's `Cargo.toml` that only its own tests need.
const TEST_ONLY: [&str; 4] = ["dev-dependencies", "test", "bench", "example"];

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = here.parent().expect("the crate lies in the workspace").to_path_buf();

    let workspace = read(&root.join("Cargo.toml"));
    let mut sdk = BTreeMap::new();
    sdk.insert("Cargo.toml".to_owned(), members_only(&workspace, &SDK));
    SDK.iter().for_each(|folder| collect_crate(&root, folder, &mut sdk));
    let mut scaffold = BTreeMap::new();
    collect(&here.join("template"), "", &mut scaffold);
    let mut bench = BTreeMap::new();
    collect(&here.join("bench"), "", &mut bench);
    let mut attester = BTreeMap::new();
    collect(&here.join("attester"), "", &mut attester);
    let mut runner = BTreeMap::new();
    collect(&here.join("runner"), "", &mut runner);
    let inference = match env::var_os("CARGO_FEATURE_INFERENCE") {
        Some(_) => inference_project(&root, &workspace),
        None => BTreeMap::new(),
    };
    let lock = read(&root.join("Cargo.lock"));

    let mut out = String::new();
    table(&mut out, "SDK", "The crates a user's project depends on.", &sdk);
    table(&mut out, "SCAFFOLD", "What `enclos new` writes.", &scaffold);
    table(&mut out, "BENCH", "The project of the benchmark enclave.", &bench);
    table(&mut out, "ATTESTER", "The project of the enclave behind `enclos quote`.", &attester);
    table(&mut out, "RUNNER", "The host program of plain programs in containers.", &runner);
    if !inference.is_empty() {
        table(&mut out, "INFERENCE", "The project of the inference service's enclave.", &inference);
    }
    writeln!(out, "/// The versions everything was tested with.\npub(crate) const LOCK: &str = {lock:?};")
        .expect("strings take everything");
    let to = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("embedded.rs");
    fs::write(&to, out).unwrap_or_else(|e| panic!("cannot write {}: {e}", to.display()));
    println!("cargo::rerun-if-changed=build.rs");
}

/// The enclave of the inference service as a project of its own, with the SDK where projects have it.
fn inference_project(root: &Path, workspace: &str) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut manifest = members_only(workspace, &INFERENCE)
        .replace("[workspace]\n", "[workspace]\nexclude = [\".enclos\"]\n");
    for folder in SDK {
        let (ours, theirs) = (format!("path = \"{folder}\""), format!("path = \".enclos/sdk/{folder}\""));
        manifest = manifest.replace(&ours, &theirs);
    }
    // Settings of single packages have sections of their own where they are for packages of this project.
    let is_ours = |name: &str| name == "profile.release" || name.starts_with("profile.release.package.");
    let profile = sections(workspace).into_iter().filter(|(name, _)| is_ours(name));
    profile.for_each(|(_, text)| manifest.push_str(text));
    files.insert("Cargo.toml".to_owned(), manifest);
    INFERENCE.iter().for_each(|folder| collect_crate(root, folder, &mut files));
    // It lies at the project's root there.
    let enclave = "services/inference/enclave";
    let config = read(&root.join(enclave).join("enclos.toml"));
    let moved = config.replace("crate = \".\"", &format!("crate = \"{enclave}\""));
    assert_ne!(moved, config, "enclos.toml of the inference service's enclave names its crate");
    files.insert("enclos.toml".to_owned(), moved);
    files
}

/// What building a crate needs: not its tests.
fn collect_crate(root: &Path, folder: &str, into: &mut BTreeMap<String, String>) {
    let from = root.join(folder);
    into.insert(format!("{folder}/Cargo.toml"), without(&read(&from.join("Cargo.toml")), &TEST_ONLY));
    if from.join("build.rs").exists() {
        into.insert(format!("{folder}/build.rs"), read(&from.join("build.rs")));
    }
    collect(&from.join("src"), &format!("{folder}/src"), into);
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

/// The root `Cargo.toml` of some of the workspace's crates.
fn members_only(root: &str, crates: &[&str]) -> String {
    let members: String = crates.iter().map(|f| format!("    {f:?},\n")).collect();
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
