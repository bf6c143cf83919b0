//! The runtime's table, and memory outside the enclave.
//!
//! The table is found by `getauxval(AT_ENCLOS)`; the runtime puts it on the program's stack at start-up. The functions
//! here are its safe counterparts.

use std::sync::OnceLock;
use std::time::SystemTime;

use enclos::abi::{self, AT_ENCLOS, IncomingCall, RuntimeTable, hostcall};
use enclos::manifest::Manifest;

/// The program does not run in an enclave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not inside an enclave: start this program with `enclos run`, or by `enclos_host::Enclave`")]
pub struct NotInEnclave;

/// Why a range is not one of untrusted memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UntrustedError {
    /// It touches the enclave, or wraps around the end of the address space.
    #[error(
        "{len} bytes at {address:#x} do not lie wholly outside the enclave: the host passed a bad pointer"
    )]
    NotOutside {
        /// Its start.
        address: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// There is no enclave that it could be outside of.
    #[error(transparent)]
    NotInEnclave(#[from] NotInEnclave),
}

/// The host says that there are `len` bytes at `address`.
///
/// Holding one proves that the range lies wholly outside the enclave and does not wrap around. It does not prove that
/// anything is mapped there (touching it may end the enclave, never give away or change anything inside), that the
/// contents make sense, or that they stay the same: so reading copies, and nothing is read twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untrusted {
    address: u64,
    len: usize,
}

impl Untrusted {
    /// Accepts a range that lies wholly outside the enclave.
    ///
    /// # Errors
    /// When it does not, or there is no enclave.
    #[inline]
    pub fn claim(address: u64, len: u64) -> Result<Self, UntrustedError> {
        let table = table()?;
        let bad = UntrustedError::NotOutside { address, len };
        let end = address.checked_add(len).ok_or(bad)?;
        let base = table.enclave_base;
        let outside = end <= base || address >= base + table.enclave_size;
        // Null is no range of bytes, though it is outside.
        match outside && (address != 0 || len == 0) {
            true => Ok(Self { address, len: len as usize }),
            false => Err(bad),
        }
    }

    /// Its start.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is it empty?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `len` bytes; all of it if it is shorter.
    #[inline]
    #[must_use]
    pub fn first(&self, len: usize) -> Self {
        Self { address: self.address, len: len.min(self.len) }
    }

    /// What follows the first `offset` bytes.
    #[inline]
    #[must_use]
    pub fn after(&self, offset: usize) -> Self {
        let offset = offset.min(self.len);
        Self { address: self.address + offset as u64, len: self.len - offset }
    }

    /// Copies all of it to the end of `to`.
    ///
    /// # Errors
    /// When the enclave's heap has no room for it.
    #[inline]
    pub fn read_to(&self, to: &mut Vec<u8>) -> Result<(), std::collections::TryReserveError> {
        to.try_reserve(self.len)?;
        let filled = to.len();
        // SAFETY: the source is outside the enclave and the target inside, so they do not overlap; the target has the
        // capacity. What the host does to the source meanwhile changes which bytes arrive, nothing else.
        unsafe {
            copy(self.address as *const u8, to.as_mut_ptr().add(filled), self.len);
            to.set_len(filled + self.len);
        }
        Ok(())
    }

    /// Copies `bytes` to `offset`; false when they do not fit.
    #[inline]
    #[must_use]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        if offset > self.len || bytes.len() > self.len - offset {
            return false;
        }
        // SAFETY: the target is within the claimed range, outside the enclave; the source is a slice of ours.
        unsafe {
            copy(bytes.as_ptr(), (self.address as *mut u8).add(offset), bytes.len());
        }
        true
    }
}

/// Copies in pieces: see [`abi::COPY_BYTES`].
///
/// # Safety
/// As [`std::ptr::copy_nonoverlapping`].
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let mut done = 0;
    while done < len {
        let part = (len - done).min(abi::COPY_BYTES);
        // SAFETY: within the caller's ranges.
        unsafe { std::ptr::copy_nonoverlapping(from.add(done), to.add(done), part) };
        done += part;
    }
}

/// Severity of a log record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum LogLevel {
    Error = 1,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Gives the host a line for its log, at most [`abi::FRAME_SIZE`] bytes of it. The host sees it in plain text and may
/// do with it what it likes. Outside an enclave nothing happens.
pub fn log(level: LogLevel, text: &str) {
    let Ok(table) = table() else { return };
    let Ok(frame) = Untrusted::claim((table.frame)(), abi::FRAME_SIZE) else { return };
    let mut end = text.len().min(frame.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    if frame.write(0, &text.as_bytes()[..end]) {
        (table.host_call)(hostcall::LOG, level as u64, end as u64, 0);
    }
}

/// Sends records of the `log` crate of at least this severity to the host.
///
/// # Errors
/// When another logger was set before.
#[cfg(feature = "log")]
pub fn init_log(limit: log::LevelFilter) -> Result<(), log::SetLoggerError> {
    struct HostLog;
    impl log::Log for HostLog {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            let level = match record.level() {
                log::Level::Error => LogLevel::Error,
                log::Level::Warn => LogLevel::Warn,
                log::Level::Info => LogLevel::Info,
                log::Level::Debug => LogLevel::Debug,
                log::Level::Trace => LogLevel::Trace,
            };
            log(level, &format!("{}: {}", record.target(), record.args()));
        }

        fn flush(&self) {}
    }
    log::set_logger(&HostLog)?;
    log::set_max_level(limit);
    Ok(())
}

/// Fills the buffer with bytes of the CPU's random number generator.
///
/// # Errors
/// Outside an enclave.
///
/// # Panics
/// When the CPU's generator fails repeatedly: going on without randomness would be worse.
pub fn random(buffer: &mut [u8]) -> Result<(), NotInEnclave> {
    let outcome = (table()?.random)(buffer.as_mut_ptr(), buffer.len() as u64);
    assert_eq!(outcome, 0, "the CPU's random number generator fails");
    Ok(())
}

/// The time of day as the host alleges it. It does not run backwards while the enclave runs; nothing else is certain.
pub fn time() -> SystemTime {
    SystemTime::now()
}

/// Does the host say that the platform is emulated? For display: it may say what it likes. A relying party learns the
/// truth from a quote.
///
/// # Errors
/// Outside an enclave.
pub fn is_emulated_alleged() -> Result<bool, NotInEnclave> {
    table().map(|t| t.platform == 2)
}

/// The measured manifest of this image.
///
/// # Errors
/// Outside an enclave.
///
/// # Panics
/// When the image's manifest does not decode; such an image does not start.
pub fn manifest() -> Result<&'static Manifest<'static>, NotInEnclave> {
    static MANIFEST: OnceLock<Manifest<'static>> = OnceLock::new();
    let table = table()?;
    Ok(MANIFEST.get_or_init(|| {
        // SAFETY: the runtime's word: measured pages inside, which nobody changes.
        let bytes =
            unsafe { std::slice::from_raw_parts(table.manifest as *const u8, table.manifest_len as usize) };
        Manifest::decode(bytes).expect("the runtime has decoded this manifest before")
    }))
}

/// The runtime's table.
#[inline]
pub(crate) fn table() -> Result<&'static RuntimeTable, NotInEnclave> {
    static TABLE: OnceLock<Option<&'static RuntimeTable>> = OnceLock::new();
    TABLE.get_or_init(find_table).ok_or(NotInEnclave)
}

#[cold]
fn find_table() -> Option<&'static RuntimeTable> {
    // SAFETY: getauxval has no preconditions.
    let address = unsafe { libc::getauxval(AT_ENCLOS) };
    let table = address as *const RuntimeTable;
    if table.is_null() {
        return None;
    }
    // SAFETY: the auxiliary vector is the runtime's; the first two fields are those of every version.
    let table = unsafe { &*table };
    // Runtime and library come from the same image, so this is a fault of how it was put together.
    let fits = table.abi_version == abi::ABI_VERSION && table.size as usize >= size_of::<RuntimeTable>();
    assert!(fits, "the image's runtime has ABI version {}, not {}", table.abi_version, abi::ABI_VERSION);
    Some(table)
}

/// What became of waiting for a call.
pub(crate) enum Next {
    Call(IncomingCall),
    Shutdown,
}

/// Replies to the call before and waits for the next one.
#[inline]
pub(crate) fn next_call(table: &RuntimeTable, status: u64, len: u64) -> Next {
    let mut call = IncomingCall::default();
    match (table.next_call)(status, len, &raw mut call) {
        abi::NEXT_CALL => Next::Call(call),
        _ => Next::Shutdown,
    }
}

/// What runs nested calls.
pub(crate) type NestedHandler = fn(&IncomingCall) -> (u64, u64);

/// Has nested calls run by `handler`.
pub(crate) fn set_nested_handler(table: &RuntimeTable, handler: NestedHandler) {
    static HANDLER: OnceLock<NestedHandler> = OnceLock::new();
    extern "C" fn nested(call: *const IncomingCall) -> u64 {
        // SAFETY: the runtime passes a call of its own, for the duration of this function.
        let call = unsafe { *call };
        match HANDLER.get() {
            Some(handler) => {
                let (status, len) = handler(&call);
                status << 32 | len
            }
            None => abi::status::NO_SUCH_METHOD << 32,
        }
    }
    let _ = HANDLER.set(handler);
    (table.set_nested_handler)(nested);
}
