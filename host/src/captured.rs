//! What a program inside writes, kept in memory.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// A sink for [`Builder::stdout`](crate::Builder::stdout) and [`Builder::stderr`](crate::Builder::stderr) whose clones
/// show what was written: for tests, and for hosts that look at it.
#[derive(Clone, Debug, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// All that was written so far. It comes from inside, and is bytes: what is no UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
