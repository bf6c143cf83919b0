//! Mounts: directories that the manifest says the host gives. What is in them is sealed ([`sealed`](super::sealed)), or
//! the host's own files.
//!
//! The host's own files are untrusted: the host sees and may change all of it at any time. What is checked here is that
//! each answer is one that Linux could have given: lengths within what was asked, error numbers in range, kinds of files
//! that programs expect, names that are names.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicU32, Ordering};

use enclos::abi::{FRAME_SIZE, FileStatus, SealedState, hostcall};
use enclos::manifest::{self, MountKind};
use enclos_sealed::{Error, Kind, Policy, Volume};

use super::sealed::Store;
use super::tree::Path;
use super::{Outcome, log_error};
use crate::clock::{self, Clock};
use crate::host::{self, Errno, Frame};
use crate::lock::{HostLock, SpinLock};
pub use crate::replies::Listed;
use crate::replies::{directory_entries, file_status, kind};
use crate::thread::Thread;

const O_ACCESS: u32 = 3;
const O_CREAT: u32 = 0o100;
const O_EXCL: u32 = 0o200;
const O_TRUNC: u32 = 0o1000;
const O_DIRECTORY: u32 = 0o20_0000;
/// Largest handle of the host.
pub const MAX_HANDLE: u64 = i32::MAX as u64;
/// Most entries of a host's directory.
const MAX_ENTRIES: usize = 1 << 20;
/// Failures of a mount that are logged.
const NAMED: u32 = 16;

/// A mount of the manifest.
pub struct Mount {
    names: Path,
    /// The path as the manifest has it.
    pub path: &'static str,
    device: u64,
    kind: MountKind,
    /// Of sealed files, opened when first needed.
    volume: HostLock<Option<Volume<Store>>>,
    /// Handle of the host's directory, likewise.
    directory: HostLock<Option<u32>>,
    told: AtomicU32,
}

const NOT_GIVEN: &str =
    "the host gave no directory for it: `enclos run --mount PATH=DIRECTORY`, or Builder::mount";

static MOUNTS: SpinLock<&'static [Mount]> = SpinLock::new(&[]);

/// What stat tells of something mounted.
pub struct Facts {
    pub device: u64,
    pub inode: u64,
    pub mode: u32,
    pub size: u64,
    pub modified: u64,
}

/// An open file or directory of a mount.
pub struct Mounted {
    mount: &'static Mount,
    what: What,
}

enum What {
    Sealed { inode: u32 },
    Host { handle: u32 },
}

/// Remembers the manifest's mounts. Once, before the program runs.
pub fn initialise(list: &'static str) {
    let mut all = Vec::new();
    for mount in manifest::items(list).filter_map(manifest::Mount::parse) {
        all.push(Mount {
            names: mount.path.split('/').filter(|n| !n.is_empty()).map(|n| n.as_bytes().to_vec()).collect(),
            path: mount.path,
            device: all.len() as u64 + 1,
            kind: mount.kind,
            volume: HostLock::new(None),
            directory: HostLock::new(None),
            told: AtomicU32::new(0),
        });
    }
    *MOUNTS.lock() = Box::leak(all.into_boxed_slice());
}

fn all() -> &'static [Mount] {
    *MOUNTS.lock()
}

/// Where the mounts are.
pub fn paths() -> impl Iterator<Item = &'static Path> {
    all().iter().map(|m| &m.names)
}

/// The mount that a path leads into, and the path from there.
pub fn of(names: &[Vec<u8>]) -> Option<(&'static Mount, &[Vec<u8>])> {
    all().iter().find_map(|m| Some((m, names.strip_prefix(&m.names[..])?)))
}

/// Makes all sealed files durable.
pub fn commit_all(_: &mut Thread) -> Result<(), Errno> {
    let mut outcome = Ok(());
    for mount in all().iter().filter(|m| m.kind.is_sealed()) {
        let mut volume = mount.volume.lock();
        let committed = volume.as_mut().map_or(Ok(()), Volume::commit);
        drop(volume);
        outcome = outcome.and(committed.map_err(|e| mount.errno(&e)));
    }
    outcome
}

/// The durable state of the sealed files mounted at this path.
pub fn sealed_state(path: &[u8]) -> Result<SealedState, Errno> {
    let mount = all().iter().find(|m| m.kind.is_sealed() && m.path.as_bytes() == path).ok_or(Errno::NOENT)?;
    let state = mount.with(|v| Ok(v.state()))?;
    Ok(SealedState { volume: state.volume, generation: state.generation, digest: state.digest })
}

impl Mount {
    /// openat(2).
    pub fn open(&'static self, below: &[Vec<u8>], flags: u32, mode: u32) -> Result<Mounted, Errno> {
        let writes = flags & O_ACCESS != 0;
        if !self.kind.is_sealed() {
            if writes || flags & (O_CREAT | O_TRUNC) != 0 {
                self.must_be_writable()?;
            }
            let kept = flags & (O_ACCESS | O_CREAT | O_EXCL | O_TRUNC | O_DIRECTORY);
            let handle = self.host_open(below, u64::from(kept) | u64::from(mode & 0o7777) << 32)?;
            let mounted = Mounted { mount: self, what: What::Host { handle } };
            // Neither devices nor pipes: a program that reads a file must not wait for the host's whim.
            mounted.facts()?;
            return Ok(mounted);
        }
        let now = now();
        let inode = self.with(|v| {
            let inode = match v.find(below) {
                Ok(_) if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL => return Err(Error::Exists),
                Err(Error::NotFound) if flags & O_CREAT != 0 => {
                    v.create(below, Kind::File, mode as u16 & 0o7777, true, now)?
                }
                found => found?,
            };
            match v.status(inode)?.kind {
                Kind::Directory if writes || flags & O_CREAT != 0 => return Err(Error::IsDirectory),
                Kind::File if flags & O_DIRECTORY != 0 => return Err(Error::NotDirectory),
                Kind::File if flags & O_TRUNC != 0 && writes => v.resize(inode, 0, now)?,
                _ => {}
            }
            v.hold(inode);
            Ok(inode)
        })?;
        Ok(Mounted { mount: self, what: What::Sealed { inode } })
    }

    /// What there is to know of what a path leads to.
    pub fn facts(&'static self, below: &[Vec<u8>]) -> Result<Facts, Errno> {
        if self.kind.is_sealed() {
            return self
                .with(|v| {
                    let inode = v.find(below)?;
                    v.status(inode)
                })
                .map(|s| self.sealed_facts(&s));
        }
        let directory = self.host_directory()?;
        let len = put_path(Thread::current(), 0, below)?;
        self.host_facts(directory, len)
    }

    /// What the host says of an open file, or of what a path in the frame leads to from there.
    fn host_facts(&self, handle: u64, path_len: u64) -> Result<Facts, Errno> {
        let me = Thread::current();
        host::checked(host::call_keeping(me, hostcall::FILE_STATUS, handle, path_len, 0), 0)?;
        let said: FileStatus = host::read_outside(me.frame).ok_or(Errno::IO)?;
        let FileStatus { inode, size, modified, mode, .. } = file_status(said)?;
        Ok(Facts { device: self.device, inode, mode, size, modified })
    }

    /// mkdirat(2).
    pub fn make_directory(&'static self, below: &[Vec<u8>], mode: u32) -> Outcome {
        if self.kind.is_sealed() {
            let create = |v: &mut Volume<Store>| {
                v.create(below, Kind::Directory, mode as u16 & 0o7777, true, now()).map(|_| 0)
            };
            return self.with(create);
        }
        if below.is_empty() {
            return Err(Errno::EXIST);
        }
        self.must_be_writable()?;
        let directory = self.host_directory()?;
        let me = Thread::current();
        let len = put_path(me, 0, below)?;
        host::checked(
            host::call_keeping(me, hostcall::FILE_MAKE_DIRECTORY, directory, len, u64::from(mode & 0o7777)),
            0,
        )
    }

    /// unlinkat(2).
    pub fn remove(&'static self, below: &[Vec<u8>], is_directory: bool) -> Outcome {
        if below.is_empty() {
            return Err(Errno::BUSY);
        }
        if self.kind.is_sealed() {
            return self.with(|v| v.remove(below, is_directory).map(|()| 0));
        }
        self.must_be_writable()?;
        let directory = self.host_directory()?;
        let me = Thread::current();
        let len = put_path(me, 0, below)?;
        let removed = host::call_keeping(me, hostcall::FILE_REMOVE, directory, len, u64::from(is_directory));
        host::checked(removed, 0)
    }

    /// renameat2(2) within the mount.
    pub fn rename(&'static self, from: &[Vec<u8>], to: &[Vec<u8>], may_replace: bool) -> Outcome {
        if from.is_empty() || to.is_empty() {
            return Err(Errno::BUSY);
        }
        if self.kind.is_sealed() {
            return self.with(|v| v.rename(from, to, may_replace).map(|()| 0));
        }
        self.must_be_writable()?;
        let directory = self.host_directory()?;
        let me = Thread::current();
        let first = put_path(me, 0, from)?;
        let second = put_path(me, first, to)?;
        let lens = first | u64::from(!may_replace) << 32;
        host::checked(host::call_keeping(me, hostcall::FILE_RENAME, directory, lens, second), 0)
    }

    /// With the sealed files, which are opened when first needed.
    fn with<R>(&'static self, f: impl FnOnce(&mut Volume<Store>) -> Result<R, Error>) -> Result<R, Errno> {
        let mut guard = self.volume.lock();
        let outcome = match &mut *guard {
            Some(volume) => f(volume),
            None => match self.open_volume() {
                Ok(volume) => f(guard.insert(volume)),
                Err(e) => Err(e),
            },
        };
        drop(guard);
        outcome.map_err(|e| self.errno(&e))
    }

    fn open_volume(&'static self) -> Result<Volume<Store>, Error> {
        let policy = match self.kind {
            MountKind::SealedImage => Policy::Image,
            _ => Policy::Signer,
        };
        // An eighth of the heap, and no less than what works.
        let blocks = crate::memory::totals().0 / crate::memory::PAGE / 8;
        let store = Store::open(self.path)?;
        Volume::open(store, policy, self.path.as_bytes(), blocks.clamp(128, 1 << 16) as usize)
    }

    /// What the program is told. What it cannot find out from that, the log says.
    fn errno(&self, error: &Error) -> Errno {
        let errno = match error {
            Error::NotFound => return Errno::NOENT,
            Error::Exists => return Errno::EXIST,
            Error::NotDirectory => return Errno::NOTDIR,
            Error::IsDirectory => return Errno::ISDIR,
            Error::NotEmpty => return Errno::NOTEMPTY,
            Error::Invalid => return Errno::INVAL,
            Error::BadName => return Errno::NAMETOOLONG,
            Error::TooLarge => return Errno::FBIG,
            Error::NoSpace => return Errno::NOSPC,
            Error::NoMemory => return Errno::NOMEM,
            Error::NotAuthentic
            | Error::FromNewerVersion { .. }
            | Error::FromNewerPlatform
            | Error::Policy { .. }
            | Error::Version { .. } => Errno::ACCES,
            Error::Host { errno, what: "open", .. } => {
                match Errno(*errno) {
                    Errno::NODEV => self.tell(format_args!("{NOT_GIVEN}")),
                    Errno::BUSY => {
                        self.tell(format_args!("another enclave has these files open: end it first"))
                    }
                    _ => self.tell(format_args!("{error}")),
                }
                return Errno(*errno);
            }
            _ => Errno::IO,
        };
        self.tell(format_args!("{error}"));
        errno
    }

    fn tell(&self, what: core::fmt::Arguments<'_>) {
        if self.told.fetch_add(1, Ordering::Relaxed) < NAMED {
            log_error(|line| write!(line, "mount {}: {what}", self.path));
        }
    }

    fn sealed_facts(&self, s: &enclos_sealed::Status) -> Facts {
        let kind = if s.kind == Kind::Directory { kind::DIRECTORY } else { kind::FILE };
        Facts {
            device: self.device,
            inode: u64::from(s.inode),
            mode: kind | u32::from(s.permissions),
            size: s.size,
            modified: s.modified,
        }
    }

    fn must_be_writable(&self) -> Result<(), Errno> {
        if self.kind == MountKind::HostReadOnly { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// The handle of the host's directory.
    fn host_directory(&self) -> Result<u64, Errno> {
        let mut directory = self.directory.lock();
        if let Some(handle) = *directory {
            return Ok(u64::from(handle));
        }
        let opened = directory_of(self.path);
        if let Ok(handle) = opened {
            *directory = Some(handle);
        }
        drop(directory);
        opened.map(u64::from).inspect_err(|e| {
            if *e == Errno::NODEV {
                self.tell(format_args!("{NOT_GIVEN}"));
            }
        })
    }

    fn host_open(&self, below: &[Vec<u8>], flags: u64) -> Result<u32, Errno> {
        let directory = self.host_directory()?;
        let me = Thread::current();
        let len = put_path(me, 0, below)?;
        let answer = host::call_keeping(me, hostcall::FILE_OPEN, directory, len, flags);
        host::checked(answer, MAX_HANDLE).map(|handle| handle as u32)
    }
}

impl Mounted {
    /// Reads at an offset.
    pub fn read(&self, at: u64, to: &mut [u8]) -> Outcome {
        match self.what {
            What::Sealed { inode } => self.mount.with(|v| v.read(inode, at, to)).map(|n| n as u64),
            What::Host { handle } => {
                let mut done = 0;
                while done < to.len() {
                    let end = to.len().min(done + FRAME_SIZE as usize);
                    match read_host(handle, at + done as u64, &mut to[done..end]) {
                        Ok(n) => {
                            let is_whole = n == end - done;
                            done += n;
                            // The end of the file, or as good: whoever wants more asks again.
                            if !is_whole {
                                break;
                            }
                        }
                        Err(e) if done == 0 => return Err(e),
                        Err(_) => break,
                    }
                }
                Ok(done as u64)
            }
        }
    }

    /// Writes at an offset.
    pub fn write(&self, at: u64, from: &[u8]) -> Outcome {
        match self.what {
            What::Sealed { inode } => self.mount.with(|v| v.write(inode, at, from, now())).map(|n| n as u64),
            What::Host { handle } => {
                let mut done = 0;
                while done < from.len() {
                    let end = from.len().min(done + FRAME_SIZE as usize);
                    match write_host(handle, at + done as u64, &from[done..end]) {
                        Ok(0) => break,
                        Ok(n) => done += n,
                        Err(e) if done == 0 => return Err(e),
                        Err(_) => break,
                    }
                }
                Ok(done as u64)
            }
        }
    }

    /// Cuts it off, or lengthens it with zeros.
    pub fn resize(&self, len: u64) -> Outcome {
        match self.what {
            What::Sealed { inode } => self.mount.with(|v| v.resize(inode, len, now())).map(|()| 0),
            What::Host { handle } => {
                let me = Thread::current();
                host::checked(host::call_keeping(me, hostcall::FILE_RESIZE, u64::from(handle), len, 0), 0)
            }
        }
    }

    /// Makes it durable; sealed files all at once.
    pub fn sync(&self) -> Outcome {
        match self.what {
            What::Sealed { .. } => self.mount.with(|v| v.commit()).map(|()| 0),
            What::Host { handle } => sync_host(handle, false),
        }
    }

    /// What there is to know of it.
    pub fn facts(&self) -> Result<Facts, Errno> {
        match self.what {
            What::Sealed { inode } => {
                self.mount.with(|v| v.status(inode)).map(|s| self.mount.sealed_facts(&s))
            }
            What::Host { handle } => self.mount.host_facts(u64::from(handle), 0),
        }
    }

    /// The entries of a directory, `.` and `..` first.
    pub fn list(&self) -> Result<Vec<Listed>, Errno> {
        let mut all = Vec::new();
        match self.what {
            What::Sealed { inode } => {
                let own = [(b".".to_vec(), 4), (b"..".to_vec(), 4)];
                all.extend(own.map(|(name, kind)| Listed { name, inode: u64::from(inode), kind }));
                let listed = self.mount.with(|v| v.list(inode))?;
                all.extend(listed.into_iter().map(|e| Listed {
                    name: e.name,
                    inode: u64::from(e.inode),
                    kind: if e.kind == Kind::Directory { 4 } else { 8 },
                }));
            }
            What::Host { handle } => {
                let me = Thread::current();
                let mut records = Vec::new();
                records.try_reserve_exact(FRAME_SIZE as usize).map_err(|_| Errno::NOMEM)?;
                while all.len() < MAX_ENTRIES {
                    let is_later = u64::from(!all.is_empty());
                    let answer = host::call_keeping(me, hostcall::FILE_LIST, u64::from(handle), is_later, 0);
                    let n = host::checked(answer, FRAME_SIZE)? as usize;
                    if n == 0 {
                        return Ok(all);
                    }
                    records.resize(n, 0);
                    Frame::of(me).get(0, &mut records);
                    directory_entries(&records, &mut all)?;
                    super::descriptors::room()?;
                }
                return Err(Errno::IO);
            }
        }
        Ok(all)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        match self.what {
            // What cannot be released is when the volume is opened next.
            What::Sealed { inode } => drop(self.mount.with(|v| v.release(inode))),
            What::Host { handle } => close_host(handle),
        }
    }
}

/// The handle of the directory that the host gave for a mount.
pub fn directory_of(path: &str) -> Result<u32, Errno> {
    let me = Thread::current();
    Frame::of(me).put(0, path.as_bytes());
    let answer = host::call_keeping(me, hostcall::FILE_MOUNT, path.len() as u64, 0, 0);
    host::checked(answer, MAX_HANDLE).map(|handle| handle as u32)
}

/// Writes a path into the frame and returns its length.
fn put_path(me: &Thread, at: u64, names: &[Vec<u8>]) -> Result<u64, Errno> {
    let path = names.join(&b'/');
    if Frame::of(me).put(at, &path) { Ok(path.len() as u64) } else { Err(Errno::NAMETOOLONG) }
}

/// pread(2) by the host, of at most a frame.
pub fn read_host(handle: u32, at: u64, to: &mut [u8]) -> Result<usize, Errno> {
    let me = Thread::current();
    let len = (to.len() as u64).min(FRAME_SIZE);
    let n =
        host::checked(host::call_keeping(me, hostcall::FILE_READ, u64::from(handle), len, at), len)? as usize;
    Frame::of(me).get(0, &mut to[..n]);
    Ok(n)
}

/// pwrite(2) by the host, of at most a frame.
pub fn write_host(handle: u32, at: u64, from: &[u8]) -> Result<usize, Errno> {
    let me = Thread::current();
    let len = (from.len() as u64).min(FRAME_SIZE);
    Frame::of(me).put(0, &from[..len as usize]);
    host::checked(host::call_keeping(me, hostcall::FILE_WRITE, u64::from(handle), len, at), len)
        .map(|n| n as usize)
}

/// fdatasync(2) by the host; ESTALE where the file must be in a directory and is in none.
pub fn sync_host(handle: u32, must_be_linked: bool) -> Outcome {
    let me = Thread::current();
    let answer = host::call_keeping(me, hostcall::FILE_SYNC, u64::from(handle), u64::from(must_be_linked), 0);
    host::checked(answer, 0)
}

/// close(2) by the host. Nothing can be done about one that keeps it open.
pub fn close_host(handle: u32) {
    host::call_keeping(Thread::current(), hostcall::FILE_CLOSE, u64::from(handle), 0, 0);
}

fn now() -> u64 {
    clock::now(Thread::current(), Clock::Realtime).unwrap_or(0)
}
