//! What an enclave did, told when it has ended: for `enclos run --stats`, which sees the process of a host program from
//! outside only.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use enclos::abi::{LINUX_MAGIC, REPORT_MAGIC};

use crate::enclave::{LogSink, Statistics};

/// Environment variable that names a file: at the end of every enclave of the process a line is added to it, a
/// [`Summary`] as JSON.
pub const STATISTICS_VARIABLE: &str = "ENCLOS_STATISTICS";

/// What an enclave did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Summary {
    /// How often threads crossed its boundary.
    pub statistics: Statistics,
    /// Linux calls: number, how often made, how often a request to the host was needed. Told by the runtime when the
    /// program exits, where the manifest permits output.
    pub linux_calls: Vec<(u64, u64, u64)>,
}

impl Summary {
    /// Reads a file of summaries.
    ///
    /// # Errors
    /// When it cannot be read or is none.
    pub fn read(file: &Path) -> std::io::Result<Vec<Self>> {
        let text = std::fs::read_to_string(file)?;
        text.lines().map(|line| serde_json::from_str(line).map_err(Into::into)).collect()
    }
}

/// Where a summary goes.
#[derive(Debug)]
pub(crate) struct Reporter {
    file: PathBuf,
    linux_calls: Arc<Mutex<Vec<(u64, u64, u64)>>>,
}

impl Reporter {
    /// Takes the runtime's records out of the enclave's log.
    pub(crate) fn new(file: PathBuf, log: &mut LogSink) -> Self {
        let linux_calls = Arc::<Mutex<Vec<_>>>::default();
        let seen = linux_calls.clone();
        let rest = std::mem::replace(log, Box::new(|_, _| {}));
        *log = Box::new(move |level, text| match parse_linux_calls(text) {
            Some(calls) => *seen.lock().unwrap_or_else(PoisonError::into_inner) = calls,
            None if text.starts_with(REPORT_MAGIC) => {}
            None => rest(level, text),
        });
        Self { file, linux_calls }
    }

    /// Adds the summary of an enclave that has ended.
    pub(crate) fn write(&self, statistics: Statistics) {
        let linux_calls = self.linux_calls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let written = serde_json::to_string(&Summary { statistics, linux_calls }).map_err(Into::into);
        let written = written.and_then(|line| {
            let mut file = OpenOptions::new().create(true).append(true).open(&self.file)?;
            // In one piece: other processes may write to it.
            file.write_all(format!("{line}\n").as_bytes())
        });
        if let Err(e) = written {
            eprintln!(
                "enclos: cannot write statistics to {} ({STATISTICS_VARIABLE}): {e}",
                self.file.display()
            );
        }
    }
}

/// Reads the runtime's record ([`LINUX_MAGIC`]).
fn parse_linux_calls(text: &str) -> Option<Vec<(u64, u64, u64)>> {
    let call = |word: &str| {
        let (number, counts) = word.split_once('=')?;
        let (made, passed) = counts.split_once('/')?;
        Some((number.parse().ok()?, made.parse().ok()?, passed.parse().ok()?))
    };
    text.strip_prefix(LINUX_MAGIC)?.split_ascii_whitespace().map(call).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtimes_record_is_read() {
        assert_eq!(parse_linux_calls("ENCLOS-LINUX 0=5/3 202=7/0"), Some(vec![(0, 5, 3), (202, 7, 0)]));
        assert_eq!(parse_linux_calls("ENCLOS-LINUX"), Some(vec![]));
        assert_eq!(parse_linux_calls("ENCLOS-LINUX 0=5"), None);
        assert_eq!(parse_linux_calls("ENCLOS-CALLS direct=1"), None);
    }
}
