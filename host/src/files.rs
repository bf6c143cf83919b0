//! The host's directories that an enclave sees.
//!
//! The enclave names files by handles and by paths below a directory that was given for a mount. No path leads out of
//! that directory, whatever symbolic links are in it (openat2(2), RESOLVE_BENEATH), so that an enclave reaches no more of
//! this machine than it was given.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use enclos::abi::{self, FileStatus, hostcall};

use crate::enclave::{Shared, Slot};

/// Directories given for mounts, and what is open.
#[derive(Default)]
pub(crate) struct Files {
    mounts: Vec<(String, OwnedFd)>,
    open: Mutex<Vec<Option<Arc<Opened>>>>,
    /// Whether the enclave has ended. Who does something with a file holds it for reading.
    ended: RwLock<bool>,
}

/// What a handle stands for.
struct Opened {
    fd: OwnedFd,
    is_locked: bool,
}

impl Drop for Opened {
    /// Closing alone would leave the lock with a process that was just forked and has not come to its program yet.
    fn drop(&mut self) {
        if self.is_locked {
            // SAFETY: no memory is involved.
            let _ = unsafe { libc::flock(self.fd.as_raw_fd(), libc::LOCK_UN) };
        }
    }
}

/// Most handles of one enclave.
const MAX_HANDLES: usize = 1 << 20;

/// Flags of open(2) that an enclave may use.
const FLAGS: u64 =
    (libc::O_ACCMODE | libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_DIRECTORY | libc::O_NONBLOCK)
        as u64;

impl Files {
    /// Opens the directories.
    pub(crate) fn open(mounts: &[(String, PathBuf)]) -> Result<Self, (PathBuf, std::io::Error)> {
        let mut all = Vec::new();
        for (path, directory) in mounts {
            let opened = File::open(directory).and_then(|d| match d.metadata()?.is_dir() {
                true => Ok(d),
                false => Err(std::io::Error::from_raw_os_error(libc::ENOTDIR)),
            });
            all.push((path.clone(), opened.map_err(|e| (directory.clone(), e))?.into()));
        }
        Ok(Self { mounts: all, ..Self::default() })
    }

    /// Closes all that is open, for good. When this returns nothing more happens to a file, and locks are released,
    /// whoever else still holds what belongs to the enclave: the next one can have these files at once.
    pub(crate) fn end(&self) {
        let mut ended = self.ended.write().unwrap_or_else(PoisonError::into_inner);
        *ended = true;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn add(&self, fd: OwnedFd, is_locked: bool) -> Result<u64, i32> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match open.iter().position(Option::is_none) {
            Some(free) => free,
            None if open.len() < MAX_HANDLES => {
                open.push(None);
                open.len() - 1
            }
            None => return Err(libc::EMFILE),
        };
        open[index] = Some(Arc::new(Opened { fd, is_locked }));
        Ok(index as u64)
    }

    fn get(&self, handle: u64) -> Result<Arc<Opened>, i32> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let found = usize::try_from(handle).ok().and_then(|i| open.get(i)).cloned().flatten();
        found.ok_or(libc::EBADF)
    }

    fn close(&self, handle: u64) -> Result<u64, i32> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = usize::try_from(handle).ok().and_then(|i| open.get_mut(i));
        let closed = slot.and_then(Option::take).ok_or(libc::EBADF)?;
        drop(open);
        drop(closed);
        Ok(0)
    }

    fn mount(&self, path: &[u8]) -> Result<u64, i32> {
        let (_, directory) = self.mounts.iter().find(|(p, _)| p.as_bytes() == path).ok_or(libc::ENODEV)?;
        self.add(directory.try_clone().map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))?, false)
    }
}

impl Shared {
    /// Requests from [`hostcall::FILE_MOUNT`] to [`hostcall::FILE_CLOSE`].
    pub(crate) fn files(&self, slot: &Slot, number: u64, a: u64, b: u64, c: u64) -> Result<u64, i32> {
        let files = &self.files;
        let ended = files.ended.read().unwrap_or_else(PoisonError::into_inner);
        if *ended {
            return Err(libc::EBADF);
        }
        let offset = |at: u64| i64::try_from(at).map_err(|_| libc::EINVAL);
        match number {
            hostcall::FILE_MOUNT => return files.mount(text(slot, 0, a)?.as_bytes()),
            hostcall::FILE_CLOSE => return files.close(a),
            _ => {}
        }
        let file = files.get(a)?;
        let fd = file.fd.as_raw_fd();
        match number {
            hostcall::FILE_OPEN => {
                let opened = open_beneath(fd, &text(slot, 0, b)?, c & FLAGS, c >> 32 & 0o7777)?;
                let is_locked = c & abi::OPEN_LOCKED != 0;
                if is_locked {
                    lock(fd, opened.as_raw_fd())?;
                }
                files.add(opened, is_locked)
            }
            hostcall::FILE_READ => {
                let at = offset(c)?;
                // SAFETY: the frame has `len` bytes and is this thread's until it is entered again.
                again(|| Ok(unsafe { libc::pread(fd, slot.frame as *mut _, len(b)?, at) }))
            }
            hostcall::FILE_WRITE => {
                let at = offset(c)?;
                // SAFETY: as above.
                again(|| Ok(unsafe { libc::pwrite(fd, slot.frame as *const _, len(b)?, at) }))
            }
            hostcall::FILE_SYNC => {
                if b == 1 && status(fd)?.st_nlink == 0 {
                    return Err(libc::ESTALE);
                }
                // SAFETY: no memory is involved.
                again(|| Ok(unsafe { libc::fdatasync(fd) } as isize))
            }
            hostcall::FILE_RESIZE => {
                let size = offset(b)?;
                // SAFETY: as above.
                again(|| Ok(unsafe { libc::ftruncate(fd, size) } as isize))
            }
            hostcall::FILE_RESERVE => reserve(fd, offset(b)?),
            hostcall::FILE_STATUS => {
                let s = if b == 0 { status(fd)? } else { status_beneath(fd, &text(slot, 0, b)?)? };
                let modified = (s.st_mtime as u64).saturating_mul(1_000_000_000);
                let status = FileStatus {
                    inode: s.st_ino,
                    size: s.st_size as u64,
                    modified: modified.saturating_add(s.st_mtime_nsec as u64),
                    mode: s.st_mode,
                    reserved: 0,
                };
                // SAFETY: the frame is large enough, page-aligned, and this thread's until it is entered again.
                unsafe { (slot.frame as *mut FileStatus).write(status) };
                Ok(0)
            }
            hostcall::FILE_LIST => {
                // SAFETY: as above.
                unsafe {
                    if b == 0 && libc::lseek(fd, 0, libc::SEEK_SET) < 0 {
                        return Err(errno());
                    }
                    let n = libc::syscall(libc::SYS_getdents64, fd, slot.frame, abi::FRAME_SIZE);
                    if n < 0 { Err(errno()) } else { Ok(n as u64) }
                }
            }
            hostcall::FILE_REMOVE => {
                let (above, name) = parent(fd, &text(slot, 0, b)?)?;
                let flags = if c == 1 { libc::AT_REMOVEDIR } else { 0 };
                // SAFETY: the name ends with a NUL byte.
                again(|| Ok(unsafe { libc::unlinkat(above.as_raw_fd(), name.as_ptr(), flags) } as isize))
            }
            hostcall::FILE_RENAME => {
                let (first, second) = (b & 0xffff_ffff, c);
                let (from, old) = parent(fd, &text(slot, 0, first)?)?;
                let (to, new) = parent(fd, &text(slot, first, second)?)?;
                let flags = if b >> 32 == 1 { libc::RENAME_NOREPLACE } else { 0 };
                // SAFETY: as above.
                again(|| unsafe {
                    let done =
                        libc::renameat2(from.as_raw_fd(), old.as_ptr(), to.as_raw_fd(), new.as_ptr(), flags);
                    Ok(done as isize)
                })
            }
            hostcall::FILE_MAKE_DIRECTORY => {
                let (above, name) = parent(fd, &text(slot, 0, b)?)?;
                let mode = (c & 0o7777) as libc::mode_t;
                // SAFETY: as above.
                again(|| Ok(unsafe { libc::mkdirat(above.as_raw_fd(), name.as_ptr(), mode) } as isize))
            }
            _ => Err(libc::ENOSYS),
        }
    }
}

/// A path in the frame.
fn text(slot: &Slot, at: u64, len: u64) -> Result<CString, i32> {
    let end = at.checked_add(len).filter(|end| *end <= abi::FRAME_SIZE && len <= 2 * libc::PATH_MAX as u64);
    let _ = end.ok_or(libc::EINVAL)?;
    // SAFETY: within the frame; the thread that wrote it waits for this call to end.
    let bytes = unsafe { std::slice::from_raw_parts((slot.frame + at as usize) as *const u8, len as usize) };
    CString::new(bytes).map_err(|_| libc::EINVAL)
}

fn len(bytes: u64) -> Result<usize, i32> {
    if bytes <= abi::FRAME_SIZE { Ok(bytes as usize) } else { Err(libc::EINVAL) }
}

/// Opens a path that does not leave the directory.
fn open_beneath(directory: RawFd, path: &CStr, flags: u64, mode: u64) -> Result<OwnedFd, i32> {
    const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
    const RESOLVE_BENEATH: u64 = 0x08;
    // SAFETY: a structure of integers.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    // A FIFO must not make the thread wait.
    how.flags = flags | (libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY) as u64;
    if flags & libc::O_PATH as u64 != 0 {
        how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64 | flags & libc::O_DIRECTORY as u64;
    }
    how.mode = if flags & libc::O_CREAT as u64 != 0 { mode } else { 0 };
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
    let path = if path.is_empty() { c"." } else { path };
    // SAFETY: path and structure are ours and outlive the call.
    let fd = again(|| unsafe {
        Ok(libc::syscall(libc::SYS_openat2, directory, path.as_ptr(), &raw const how, size_of_val(&how))
            as isize)
    })?;
    // SAFETY: a descriptor that was just made, and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The directory of a path's last name, and that name.
fn parent(directory: RawFd, path: &CStr) -> Result<(OwnedFd, CString), i32> {
    let bytes = path.to_bytes();
    let (above, name) = match bytes.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&bytes[..slash], &bytes[slash + 1..]),
        None => (&bytes[..0], bytes),
    };
    if matches!(name, b"" | b"." | b"..") {
        return Err(libc::EBUSY);
    }
    let owned = |b: &[u8]| CString::new(b).map_err(|_| libc::EINVAL);
    let above = open_beneath(directory, &owned(above)?, (libc::O_PATH | libc::O_DIRECTORY) as u64, 0)?;
    Ok((above, owned(name)?))
}

/// Takes a file for this process alone, and makes its name durable.
fn lock(directory: RawFd, fd: RawFd) -> Result<(), i32> {
    // SAFETY: no memory is involved.
    unsafe {
        if libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB) != 0 {
            return Err(if errno() == libc::EWOULDBLOCK { libc::EBUSY } else { errno() });
        }
        if libc::fsync(directory) != 0 {
            return Err(errno());
        }
    }
    Ok(())
}

fn reserve(fd: RawFd, size: i64) -> Result<u64, i32> {
    if status(fd)?.st_size >= size {
        return Ok(0);
    }
    loop {
        // SAFETY: no memory is involved.
        match unsafe { libc::posix_fallocate(fd, 0, size) } {
            0 => return Ok(0),
            libc::EINTR => {}
            errno => return Err(errno),
        }
    }
}

fn status(fd: RawFd) -> Result<libc::stat, i32> {
    // SAFETY: a structure of integers, which the call fills.
    unsafe {
        let mut s: libc::stat = std::mem::zeroed();
        if libc::fstat(fd, &raw mut s) == 0 { Ok(s) } else { Err(errno()) }
    }
}

/// The status of what a path that does not leave the directory leads to.
fn status_beneath(directory: RawFd, path: &CStr) -> Result<libc::stat, i32> {
    // A name in the directory itself that is no link leads nowhere else, and needs no descriptor.
    if !matches!(path.to_bytes(), b"." | b"..") && !path.to_bytes().contains(&b'/') {
        // SAFETY: a structure of integers, which the call fills; the name ends with a NUL byte.
        let s = unsafe {
            let mut s: libc::stat = std::mem::zeroed();
            if libc::fstatat(directory, path.as_ptr(), &raw mut s, libc::AT_SYMLINK_NOFOLLOW) != 0 {
                return Err(errno());
            }
            s
        };
        if s.st_mode & libc::S_IFMT != libc::S_IFLNK {
            return Ok(s);
        }
    }
    status(open_beneath(directory, path, libc::O_PATH as u64, 0)?.as_raw_fd())
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Once more where a signal came first.
fn again(mut f: impl FnMut() -> Result<isize, i32>) -> Result<u64, i32> {
    loop {
        match f()? {
            n if n >= 0 => return Ok(n as u64),
            _ => match errno() {
                libc::EINTR => {}
                e => return Err(e),
            },
        }
    }
}
