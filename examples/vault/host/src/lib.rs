//! The untrusted half of the vault, as far as its tests use it too: the file behind the enclave's `Storage`.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use vault::{Storage, StorageError};

/// One file that is replaced as a whole: whatever kills this process leaves the old contents or the new.
#[derive(Clone, Debug)]
pub struct FileStorage {
    path: PathBuf,
}

impl FileStorage {
    /// Storage in this file; it need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn replace(&self, blob: &[u8]) -> io::Result<()> {
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // One name a process: what a killed one left behind is overwritten by the next of its number, and never read.
        let mut partial = self.path.as_os_str().to_owned();
        partial.push(format!(".{}.partial", std::process::id()));
        let write = || {
            let mut file =
                File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
            file.write_all(blob)?;
            // The contents must be on the disk before the name points to them, and the name before this returns.
            file.sync_all()?;
            fs::rename(&partial, &self.path)?;
            File::open(folder)?.sync_all()
        };
        write().inspect_err(|_| drop(fs::remove_file(&partial)))
    }

    fn error(&self, e: &io::Error) -> StorageError {
        StorageError { file: self.path.display().to_string(), reason: e.to_string() }
    }
}

impl Storage for FileStorage {
    fn load(&self) -> Result<Option<Vec<u8>>, StorageError> {
        match fs::read(&self.path) {
            Ok(blob) => Ok(Some(blob)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.error(&e)),
        }
    }

    fn save(&self, blob: &[u8]) -> Result<(), StorageError> {
        self.replace(blob).map_err(|e| self.error(&e))
    }
}
