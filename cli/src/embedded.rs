//! What the command carries with it, and how that gets onto a disk.
//!
//! A user's project depends on the crates of the SDK by path, in `.enclos/sdk` below the project's workspace: cargo
//! hashes such paths relative to the workspace, so that the project measures the same wherever it lies.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use sha2::{Digest, Sha256};

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// Where the SDK lies in a project.
pub(crate) const SDK_DIR: &str = ".enclos/sdk";

/// Names the version of an unpacked SDK; written last.
const STAMP: &str = "VERSION";

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub(crate) struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// Unpacks the SDK into a project, unless it is there in this version. Says whether it wrote anything.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn unpack_sdk(project: &Path) -> Result<bool, WriteError> {
    let to = project.join(SDK_DIR);
    let version = version_of(SDK);
    if fs::read_to_string(to.join(STAMP)).is_ok_and(|found| found == version) {
        return Ok(false);
    }
    // Files of an older version must not stay among the new ones.
    if to.exists() {
        fs::remove_dir_all(&to).map_err(|source| WriteError { path: to.clone(), source })?;
    }
    write_all(&to, SDK.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())))?;
    write(&project.join(".enclos/.gitignore"), "# Unpacked by enclos, again whenever it is missing.\n*\n")?;
    write(&to.join(STAMP), &version)?;
    Ok(true)
}

/// Writes files into a folder.
///
/// # Errors
/// When one cannot be written.
pub(crate) fn write_all(
    folder: &Path,
    files: impl IntoIterator<Item = (String, String)>,
) -> Result<(), WriteError> {
    files.into_iter().try_for_each(|(path, text)| write(&folder.join(path), &text))
}

/// A project out of one of the tables, with placeholders filled in. Files called `*.in` lose that ending: cargo would
/// take them for packages of its own.
pub(crate) fn project(
    files: &[(&str, &str)],
    replacements: &[(&str, &str)],
) -> impl Iterator<Item = (String, String)> + use<> {
    let fill = |text: &str| replacements.iter().fold(text.to_owned(), |t, (from, to)| t.replace(from, to));
    let all: Vec<_> = files
        .iter()
        .map(|(path, text)| {
            let path = path.strip_suffix(".in").unwrap_or(path);
            (fill(path), fill(text))
        })
        .collect();
    all.into_iter()
}

/// Version of a table: of the command, and a digest of the contents.
pub(crate) fn version_of(files: &[(&str, &str)]) -> String {
    let mut hash = Sha256::new();
    for (path, text) in files {
        for part in [path, text] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
    }
    let mut out = format!("{} ", env!("CARGO_PKG_VERSION"));
    for byte in hash.finalize() {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

fn write(path: &Path, text: &str) -> Result<(), WriteError> {
    let failed = |source| WriteError { path: path.to_path_buf(), source };
    // Cargo goes by the time of files: what was not changed must not be built again.
    if fs::read(path).is_ok_and(|found| found == text.as_bytes()) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    // Another process or thread may be reading it.
    crate::command::replace(path, text.as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sdk_is_complete_and_free_of_test_only_sections() {
        for folder in ["interface", "interface/macros", "platform", "host", "trusted/enclave"] {
            let manifest = format!("{folder}/Cargo.toml");
            let (_, text) = SDK.iter().find(|(path, _)| *path == manifest).expect("every crate has one");
            assert!(text.contains("[package]") && !text.contains("dev-dependencies"), "{manifest}:\n{text}");
            assert!(SDK.iter().any(|(path, _)| *path == format!("{folder}/src/lib.rs")), "{folder}");
        }
        assert!(!SDK.iter().any(|(path, _)| path.starts_with("host/pack")));
    }

    #[test]
    fn an_sdk_is_unpacked_once_and_again_when_it_is_of_another_version() {
        let project = tempfile::tempdir().unwrap();
        let stamp = project.path().join(SDK_DIR).join(STAMP);
        assert!(unpack_sdk(project.path()).unwrap());
        assert!(!unpack_sdk(project.path()).unwrap());
        let stale = project.path().join(SDK_DIR).join("stale.rs");
        fs::write(&stale, "").unwrap();
        fs::write(&stamp, "0.0.1").unwrap();
        assert!(unpack_sdk(project.path()).unwrap());
        assert!(!stale.exists());
        assert_eq!(fs::read_to_string(stamp).unwrap(), version_of(SDK));
    }

    /// Cargo finds every crate of the project, with its engines, in the versions that everything was tested with.
    #[cfg(feature = "inference")]
    #[test]
    fn the_project_of_the_inference_enclave_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path(), project(INFERENCE, &[])).unwrap();
        write(&folder.path().join("Cargo.lock"), LOCK).unwrap();
        unpack_sdk(folder.path()).unwrap();
        let config = enclos_pack::Config::load(&folder.path().join("enclos.toml")).unwrap();
        assert_eq!(config.name.as_str(), "inference");
        let mut tree = std::process::Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        tree.current_dir(folder.path()).args(["tree", "--prefix", "none", "--edges", "normal,build"]);
        tree.args(["--target", "x86_64-unknown-linux-gnu", "--features", &config.build.features.join(",")]);
        tree.arg("--manifest-path").arg(config.build.crate_dir.unwrap().join("Cargo.toml"));
        let output = tree.output().unwrap();
        let listed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for engine in ["tract-onnx ", "rten "] {
            assert!(listed.lines().any(|line| line.starts_with(engine)), "{listed}");
        }
        for line in listed.lines() {
            let mut words = line.split(' ');
            let (name, version) = (words.next().unwrap(), words.next().unwrap().trim_start_matches('v'));
            let locked = format!("name = {name:?}\nversion = {version:?}\n");
            assert!(LOCK.contains(&locked), "{line} is not what was tested");
        }
    }

    #[test]
    fn what_is_there_already_is_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a/b.rs");
        let changed = || fs::metadata(&file).unwrap().modified().unwrap();
        write(&file, "one").unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        fs::File::open(&file).unwrap().set_modified(long_ago).unwrap();
        write(&file, "one").unwrap();
        assert_eq!(changed(), long_ago);
        write(&file, "two").unwrap();
        assert_ne!(changed(), long_ago);
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
    }

    #[test]
    fn versions_tell_tables_apart() {
        assert_ne!(version_of(&[("a", "bc")]), version_of(&[("ab", "c")]));
        assert_ne!(version_of(&[("a", "b")]), version_of(&[("a", "c")]));
    }
}
