//! Debugging of what runs inside: the script by which gdb finds an enclave's symbols.
//!
//! What gdb needs lies next to the image: `<name>-gdb.py`, the enclave's program as it was built (`<name>.elf`) and the
//! runtime (`<name>-runtime.elf`), both with their symbols.

use std::path::{Path, PathBuf};

use enclos_pack::build::{compile, source_folders};
use enclos_pack::{Image, sign};
use serde_json::json;

use crate::command::{Error, write};
use crate::project::Project;

/// Writes the script for a debug image that was just built of a project, and returns where it is.
///
/// # Errors
/// When the project cannot be read, or a file not be written.
pub(crate) fn write_script(project: &Project, image: &Image, image_path: &Path) -> Result<PathBuf, Error> {
    // Cargo finds it built.
    let program = compile(&project.folder, &project.config, &mut |_| {})?;
    let beside = |end: &str| {
        let name = image_path.file_stem().unwrap_or_default().to_string_lossy();
        let path = image_path.with_file_name(format!("{name}{end}"));
        std::path::absolute(&path).map_err(|source| Error::Write { path, source })
    };
    let (script, elf, runtime) = (beside("-gdb.py")?, beside(".elf")?, beside("-runtime.elf")?);
    write(&elf, &super::command::read(&program)?)?;
    write(&runtime, enclos_pack::runtime())?;
    // The first rule that matches counts, here the last folder.
    let sources = source_folders(&project.folder, &project.config)?;
    let sources: Vec<_> = sources.iter().rev().map(|(folder, name)| (folder, name)).collect();
    let info = image.info();
    let parameters = json!({
        "name": project.config.name.as_str(),
        "mrenclave": sign::hex(&image.mrenclave()),
        "parts": [
            { "file": elf, "offset": info.app, "within": info.app_entry },
            { "file": runtime, "offset": 0, "within": runtime_code(image) },
        ],
        "sources": sources,
    });
    // JSON of strings, numbers and lists is Python, too.
    let text = include_str!("script.py").replace("{{image}}", &parameters.to_string());
    write(&script, text.replace("{{signals}}", &signals()).as_bytes())?;
    Ok(script)
}

/// An offset within the runtime's code.
fn runtime_code(image: &Image) -> u64 {
    image.hints().enclu_sites.first().copied().unwrap_or_default()
}

/// Signals that the emulated CPU and the host library use for themselves. Not those of faults that are the program's
/// own: gdb stops at them, where they happen.
fn signals() -> String {
    format!("SIGSYS SIGILL SIG{}", enclos_host::interrupt_signal())
}
