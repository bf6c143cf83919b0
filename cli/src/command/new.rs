//! `enclos new`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{Error, Outcome};
use crate::embedded;
use crate::ui::Ui;

/// Makes a new project: a contract, an enclave that implements it, a host program that calls it, and a test.
///
/// The project depends on this version of enclos, which is unpacked into `.enclos/sdk` in it; everything else comes from
/// crates.io.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  enclos new demo && cd demo && enclos run\n  enclos new demo --path ~/src/demo"
)]
pub(crate) struct Args {
    /// Name of the project: letters, digits, `-` and `_`
    name: String,
    /// Its folder; default: the name
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    check_name(&args.name)?;
    let folder = args.path.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    if folder.exists() && fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::Usage(format!(
            "{} exists and is not empty: choose another --path",
            folder.display()
        )));
    }
    let ident = args.name.replace('-', "_");
    let files = embedded::project(embedded::SCAFFOLD, &[("{{name}}", &args.name), ("{{ident}}", &ident)]);
    embedded::write_all(
        &folder,
        files.map(|(path, text)| (if path == "gitignore" { ".gitignore".to_owned() } else { path }, text)),
    )?;
    // The versions that this enclos was tested with; cargo drops what the project does not use.
    embedded::write_all(&folder, [("Cargo.lock".to_owned(), embedded::LOCK.to_owned())])?;
    embedded::unpack_sdk(&folder)?;
    ui.status("made", format_args!("{}: contract, enclave, host and a test", folder.display()));
    ui.status("next", format_args!("cd {} && enclos run", folder.display()));
    Ok(ExitCode::SUCCESS)
}

fn check_name(name: &str) -> Result<(), Error> {
    let sound = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'));
    if !sound {
        return Err(Error::Usage(format!(
            "{name:?} cannot be the name of a project: begin with a lower-case letter, go on with letters, digits, \
             `-` or `_`, 64 at most"
        )));
    }
    if name == "enclos" {
        return Err(Error::Usage(
            "a project called enclos would have crates of our names: choose another".into(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cargo_would_refuse_are_refused_here() {
        for good in ["demo", "my-app", "a1_b"] {
            check_name(good).unwrap();
        }
        for bad in ["", "1a", "-a", "A", "a b", "a/b", "..", "enclos", "ä", &"a".repeat(65)] {
            assert!(matches!(check_name(bad), Err(Error::Usage(_))), "{bad}");
        }
    }

    #[test]
    fn a_scaffold_has_no_placeholder_left() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("my-app");
        run(&Args { name: "my-app".into(), path: Some(folder.clone()) }, Ui::new(true, false)).unwrap();
        for (path, _) in embedded::project(embedded::SCAFFOLD, &[]) {
            let path = folder.join(if path == "gitignore" { ".gitignore" } else { &path });
            let text = fs::read_to_string(&path).unwrap();
            assert!(!text.contains("{{"), "{}", path.display());
        }
        let again = run(&Args { name: "my-app".into(), path: Some(folder) }, Ui::new(true, false));
        assert!(matches!(again, Err(Error::Usage(_))));
    }
}
