//! The record of every release and refusal: a file of JSON lines that is only ever appended to.
//!
//! A release is recorded, durably, before it is answered: there is none that the record does not have. The record is for the
//! owner of the keys; whoever can write the store can also rewrite it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use enclos_verifier::{Appraisal, Time};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Name of the file in the store.
const FILE: &str = "audit.jsonl";
/// Longest reason that is recorded, in bytes; there is more of none but of absurd evidence.
const LONGEST: usize = 2048;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Happened {
    /// A key was added to the store.
    Added,
    /// A key was encrypted for an enclave.
    Released,
    /// A key was asked for and not released.
    Refused,
    /// A key is released no more.
    Revoked,
}

/// One line of the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    pub time: Time,
    /// What.
    pub event: Happened,
    /// The key, as it was asked for.
    pub key: String,
    /// Why it was not released.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// Who asked; absent where nobody asked for a release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<EvidenceEntry>,
    /// From where it came: who relays, as the network says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// What evidence said of who asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvidenceEntry {
    /// Whether it is genuine: signed under a root that the policy trusts. Otherwise the rest is what somebody says.
    pub genuine: bool,
    /// Whether its platform is emulated, and protects nothing.
    pub emulated: bool,
    /// Kind and measurements: `mr_enclave`, `mr_signer`, `product_id`, `svn`, `debug` and so on.
    #[serde(default)]
    pub identity: Value,
    /// TCB status of the platform.
    #[serde(default)]
    pub tcb_status: Value,
    /// Advisories that apply to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advisories: Vec<String>,
}

impl EvidenceEntry {
    /// What an appraisal found.
    pub fn of(appraisal: &Appraisal) -> Self {
        let tcb = appraisal.tcb.as_ref();
        Self {
            genuine: appraisal.is_authentic(),
            emulated: appraisal.is_emulated(),
            identity: serde_json::to_value(&appraisal.identity).unwrap_or_default(),
            tcb_status: serde_json::to_value(tcb.and_then(|tcb| tcb.status)).unwrap_or_default(),
            advisories: tcb.map(|tcb| tcb.advisories.clone()).unwrap_or_default(),
        }
    }
}

/// The record of a store.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    file: Mutex<File>,
}

/// The record cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[error("the record {} failed: {source}; nothing is released that cannot be recorded: check the disk", path.display())]
pub struct AuditError {
    path: PathBuf,
    source: io::Error,
}

/// What the record holds.
#[derive(Debug, Default)]
pub struct Recorded {
    /// The entries, oldest first.
    pub entries: Vec<Entry>,
    /// Lines that are no entries: one at the end is what a killed process left, others are damage.
    pub unreadable: usize,
}

impl AuditLog {
    /// Opens the record of a store, making it when it is not there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(folder: &Path) -> Result<Self, AuditError> {
        let path = folder.join(FILE);
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).append(true).create(true).mode(0o600);
            let mut file = options.open(&path)?;
            // A line that a killed process left unfinished must not take the next one with it.
            let length = file.seek(SeekFrom::End(0))?;
            let mut last = [b'\n'];
            if length > 0 {
                file.seek(SeekFrom::Start(length - 1))?;
                file.read_exact(&mut last)?;
            }
            if last != [b'\n'] {
                file.write_all(b"\n")?;
            }
            file.sync_all()?;
            File::open(folder)?.sync_all()?;
            Ok(file)
        };
        match open() {
            Ok(file) => Ok(Self { path, file: Mutex::new(file) }),
            Err(source) => Err(AuditError { path, source }),
        }
    }

    /// Appends an entry. When this returns it is durable.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn record(&self, entry: &Entry) -> Result<(), AuditError> {
        let mut entry = entry.clone();
        for reason in &mut entry.reasons {
            if let Some((end, _)) = reason.char_indices().find(|(at, _)| *at >= LONGEST) {
                reason.truncate(end);
            }
        }
        let failed = |source| AuditError { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(&entry).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // One call, so that lines of two processes (a broker, and a command that revokes) do not mix.
        file.write_all(&line).and_then(|()| file.sync_data()).map_err(failed)
    }

    /// Reads the record of a store; empty when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(folder: &Path) -> Result<Recorded, AuditError> {
        let path = folder.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(AuditError { path, source }),
        };
        let mut recorded = Recorded::default();
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(entry) => recorded.entries.push(entry),
                Err(_) => recorded.unreadable += 1,
            }
        }
        Ok(recorded)
    }
}
