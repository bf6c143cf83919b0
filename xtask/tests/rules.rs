//! Who may depend on whom, read from `cargo metadata`: the folders are the trust argument, and these rules hold it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Crates of others that may be linked into an enclave by `trusted/`: the trusted base beyond this repository. Extend it
/// after reading what you add.
const TRUSTED_BASE: [&str; 28] = [
    "aead",
    "aes",
    "aes-gcm",
    "bitflags",
    "block-buffer",
    "cipher",
    "cmov",
    "cobs",
    "cpubits",
    "cpufeatures",
    "crypto-common",
    "ctr",
    "ctutils",
    "ghash",
    "hybrid-array",
    "inout",
    "libc",
    "log",
    "polyval",
    "postcard",
    "serde",
    "serde_bytes",
    "serde_core",
    "sgx-isa",
    "thiserror",
    "typenum",
    "universal-hash",
    "zeroize",
];

/// Folders whose crates may hold `unsafe` code.
const MAY_BE_UNSAFE: [&str; 3] = ["trusted", "platform", "host"];

#[test]
fn trusted_code_depends_on_the_interface_and_known_crates_only() {
    let w = Workspace::load();
    let mut met = BTreeSet::new();
    for package in w.below("trusted") {
        for dependency in w.linked(package) {
            match w.folder_of(&dependency) {
                Some(folder) => assert!(
                    folder.starts_with("interface") || folder.starts_with("trusted"),
                    "{} must not depend on {dependency}: trusted code depends on interface/ only",
                    w.name(package)
                ),
                None => assert!(
                    TRUSTED_BASE.contains(&dependency.as_str()),
                    "{} links {dependency} into enclaves, which is not among the crates that were looked at",
                    w.name(package)
                ),
            }
            met.insert(dependency);
        }
    }
    let unused: Vec<_> = TRUSTED_BASE.iter().filter(|c| !met.contains(**c)).collect();
    assert!(unused.is_empty(), "no longer linked, take them off the list: {unused:?}");
}

#[test]
fn the_runtime_has_no_more_under_it_than_the_interface_and_sealed_files() {
    let w = Workspace::load();
    let runtime = w.named("enclos-runtime");
    let linked = w.linked(runtime);
    let ours: Vec<_> = linked.iter().filter(|d| w.folder_of(d).is_some()).collect();
    assert_eq!(ours, ["enclos", "enclos-sealed"]);
    assert!(!linked.contains("serde_bytes"), "the runtime is built without contracts");
}

#[test]
fn the_interface_depends_on_nothing_of_ours() {
    let w = Workspace::load();
    for package in w.below("interface") {
        for dependency in w.linked(package) {
            let allowed = w.folder_of(&dependency).is_none_or(|f| f.starts_with("interface"));
            assert!(allowed, "{} depends on {dependency}", w.name(package));
        }
    }
}

#[test]
fn the_verifier_needs_neither_host_nor_platform() {
    let w = Workspace::load();
    for package in w.below("verifier") {
        for dependency in w.linked(package) {
            let folder = w.folder_of(&dependency).unwrap_or(Path::new(""));
            assert!(
                !folder.starts_with("host") && !folder.starts_with("platform"),
                "a relying party has no enclaves: {} depends on {dependency}",
                w.name(package)
            );
        }
    }
}

#[test]
fn the_platform_knows_nothing_of_the_host() {
    let w = Workspace::load();
    for package in w.below("platform") {
        for dependency in w.linked(package) {
            let folder = w.folder_of(&dependency).unwrap_or(Path::new("interface"));
            assert!(
                folder.starts_with("interface") || folder.starts_with("platform"),
                "{} depends on {dependency}",
                w.name(package)
            );
        }
    }
}

#[test]
fn nothing_depends_on_the_command() {
    let w = Workspace::load();
    let command = w.named("enclos-cli");
    for package in w.members.keys() {
        assert!(!w.all(package).contains(command), "{} depends on enclos-cli", w.name(package));
    }
}

/// While fuzzing, signatures are presumed valid: in one place, which no ordinary build can reach.
#[test]
fn only_the_verifiers_signatures_depend_on_fuzzing() {
    let w = Workspace::load();
    let configured = ["cfg(", "fuzzing"].concat();
    let mut found = BTreeSet::new();
    for (package, folder) in &w.members {
        for root in w.roots(package) {
            let mut folders = vec![root.parent().unwrap().to_path_buf()];
            while let Some(next) = folders.pop() {
                for entry in std::fs::read_dir(next).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_dir() {
                        folders.push(path);
                    } else if path.extension().is_some_and(|e| e == "rs")
                        && std::fs::read_to_string(&path).unwrap().contains(&configured)
                    {
                        found.insert(folder.join(path.file_name().unwrap()));
                    }
                }
            }
        }
    }
    let allowed = ["cli/main.rs", "verifier/crypto.rs"].map(PathBuf::from);
    assert_eq!(found, BTreeSet::from(allowed), "of these, cli/main.rs refuses to be built so");
    let settings = std::fs::read_to_string(root().join(".cargo/config.toml")).unwrap_or_default();
    assert!(!settings.contains("fuzzing"));
}

#[test]
fn unsafe_code_is_forbidden_outside_three_folders() {
    let w = Workspace::load();
    let mut looked_at = 0;
    for (package, folder) in &w.members {
        if MAY_BE_UNSAFE.iter().any(|f| folder.starts_with(f)) {
            continue;
        }
        for root in w.roots(package) {
            let text = std::fs::read_to_string(&root).unwrap();
            assert!(
                text.contains("#![forbid(unsafe_code)]"),
                "{} must begin with #![forbid(unsafe_code)]",
                root.display()
            );
            looked_at += 1;
        }
    }
    assert!(looked_at > 5, "the rule looks at nothing");
}

#[test]
fn the_rules_see_the_graph() {
    let w = Workspace::load();
    let linked = w.linked(w.named("enclos-cli"));
    for expected in ["enclos-host", "enclos-pack", "enclos-platform", "enclos", "clap"] {
        assert!(linked.contains(expected), "{linked:?}");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// What `cargo metadata` says, by package id.
struct Workspace {
    packages: BTreeMap<String, Value>,
    /// Members, with their folders from the root.
    members: BTreeMap<String, PathBuf>,
    /// Direct dependencies of every kind.
    edges: BTreeMap<String, Vec<String>>,
}

impl Workspace {
    fn load() -> Self {
        let root = root();
        let run = Command::new(env!("CARGO"))
            .args([
                "metadata",
                "--format-version=1",
                "--all-features",
                "--filter-platform=x86_64-unknown-linux-gnu",
            ])
            .current_dir(root)
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let metadata: Value = serde_json::from_slice(&run.stdout).unwrap();
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let packages: BTreeMap<String, Value> =
            metadata["packages"].as_array().unwrap().iter().map(|p| (text(&p["id"]), p.clone())).collect();
        let members = metadata["workspace_members"].as_array().unwrap().iter().map(|id| {
            let id = text(id);
            let manifest = PathBuf::from(packages[&id]["manifest_path"].as_str().unwrap());
            let folder = manifest.parent().unwrap().strip_prefix(root).unwrap().to_path_buf();
            (id, folder)
        });
        let members = members.collect();
        let edges = metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| {
            let to = node["deps"].as_array().unwrap().iter().map(|d| text(&d["pkg"]));
            (text(&node["id"]), to.collect())
        });
        let edges = edges.collect();
        Self { packages, members, edges }
    }

    fn name(&self, id: &str) -> &str {
        self.packages[id]["name"].as_str().unwrap()
    }

    fn named(&self, name: &str) -> &str {
        self.members.keys().find(|id| self.name(id) == name).unwrap_or_else(|| panic!("no member {name}"))
    }

    /// The folder of a member; `None`: a crate of others.
    fn folder_of(&self, name: &str) -> Option<&Path> {
        self.members.iter().find(|(id, _)| self.name(id) == name).map(|(_, folder)| folder.as_path())
    }

    fn below(&self, folder: &str) -> Vec<&str> {
        let found: Vec<&str> =
            self.members.iter().filter(|(_, f)| f.starts_with(folder)).map(|(id, _)| id.as_str()).collect();
        assert!(!found.is_empty(), "no crate below {folder}/");
        found
    }

    /// Names of everything that ends up in the program with all features: dependencies of dependencies too, but not
    /// macros and what they need, which run when it is compiled. Asked of `cargo tree`, since `cargo metadata` mixes the
    /// features that different members ask for.
    fn linked(&self, package: &str) -> BTreeSet<String> {
        let name = self.name(package);
        let run = Command::new(env!("CARGO"))
            .args(["tree", "--all-features", "--edges=normal,no-proc-macro", "--prefix=none", "--no-dedupe"])
            .args(["--target=x86_64-unknown-linux-gnu", "--format={p}", "--package", name])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let text = String::from_utf8(run.stdout).unwrap();
        let names = text.lines().filter_map(|l| l.split(' ').next()).filter(|n| !n.is_empty() && *n != name);
        names.map(str::to_owned).collect()
    }

    /// Everything that is built for a package and its tests.
    fn all(&self, package: &str) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut todo = vec![package];
        while let Some(next) = todo.pop() {
            for to in &self.edges[next] {
                if found.insert(to.as_str()) {
                    todo.push(to);
                }
            }
        }
        found
    }

    fn targets(&self, id: &str) -> impl Iterator<Item = &Value> {
        self.packages[id]["targets"].as_array().unwrap().iter()
    }

    /// The root files of its libraries and programs.
    fn roots(&self, id: &str) -> Vec<PathBuf> {
        let is_code = |t: &&Value| {
            t["kind"].as_array().unwrap().iter().any(|k| k == "lib" || k == "bin" || k == "proc-macro")
        };
        self.targets(id).filter(is_code).map(|t| PathBuf::from(t["src_path"].as_str().unwrap())).collect()
    }
}
