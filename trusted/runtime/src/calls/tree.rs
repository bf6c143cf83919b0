//! The in-memory file system: files that live in the enclave's heap and end with it.
//!
//! There are directories, files, `/dev/null`, `/dev/urandom` and a minimal `/etc/hosts`; no links, no other users.
//! Memory is the bound: a write for which there is none left fails with ENOSPC, and what is there stays.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::mounts::{self, Mounted};
use super::{Outcome, own_bytes};
use crate::clock::{self, Clock};
use crate::host::Errno;
use crate::lock::SpinLock;
use crate::memory::PAGE;
use crate::replies::{MAX_NAME, kind};
use crate::thread::Thread;

/// Longest path, as in Linux.
const MAX_PATH: usize = 4096;
/// Largest file: beyond any heap.
const MAX_SIZE: u64 = 1 << 40;

/// A file, a directory or a device.
pub struct Node {
    pub inode: u64,
    /// Permission bits; nobody is refused anything by them.
    pub permissions: AtomicU32,
    /// CLOCK_REALTIME of the last change, in nanoseconds.
    pub modified: AtomicU64,
    pub body: Body,
}

/// What it is.
pub enum Body {
    Directory(SpinLock<Entries>),
    File(SpinLock<Contents>),
    Null,
    Random,
    /// Of a mount.
    Mounted(Mounted),
}

type Entries = BTreeMap<Vec<u8>, Arc<Node>>;

/// What a file holds: pages, where something was written.
#[derive(Default)]
pub struct Contents {
    pub len: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

static NEXT_INODE: AtomicU64 = AtomicU64::new(1);
static ROOT: SpinLock<Option<Arc<Node>>> = SpinLock::new(None);
/// Held while names change, so that renaming is one step.
static NAMES: SpinLock<()> = SpinLock::new(());

/// Makes the root and what is in it. Once, before the program runs.
pub fn initialise() {
    let root = Node::directory();
    let etc = root.put_new(b"etc", Node::directory());
    let dev = root.put_new(b"dev", Node::directory());
    root.put_new(b"tmp", Node::directory());
    dev.put_new(b"null", Node::new(Body::Null, 0o666));
    dev.put_new(b"urandom", Node::new(Body::Random, 0o444));
    dev.put_new(b"random", Node::new(Body::Random, 0o444));
    let hosts = etc.put_new(b"hosts", Node::new(Body::File(SpinLock::default()), 0o644));
    if let Body::File(contents) = &hosts.body {
        // The heap is empty yet.
        let _ = contents.lock().write(0, b"127.0.0.1 localhost\n::1 localhost\n");
    }
    for path in mounts::paths() {
        // So that the directory above shows it; what is below is the mount's.
        let mut at = root.clone();
        for name in path {
            let there = at.entries().ok().and_then(|e| e.lock().get(name).cloned());
            at = there.unwrap_or_else(|| at.put_new(name, Node::directory()));
        }
    }
    *ROOT.lock() = Some(root);
}

impl Node {
    /// Of a mount; it keeps no facts of its own.
    pub fn mounted(mounted: Mounted) -> Arc<Self> {
        Self::new(Body::Mounted(mounted), 0)
    }

    fn new(body: Body, permissions: u32) -> Arc<Self> {
        Arc::new(Self {
            inode: NEXT_INODE.fetch_add(1, Ordering::Relaxed),
            permissions: AtomicU32::new(permissions),
            modified: AtomicU64::new(0),
            body,
        })
    }

    fn directory() -> Arc<Self> {
        Self::new(Body::Directory(SpinLock::default()), 0o755)
    }

    fn put_new(&self, name: &[u8], node: Arc<Self>) -> Arc<Self> {
        if let Body::Directory(entries) = &self.body {
            entries.lock().insert(name.to_vec(), node.clone());
        }
        node
    }

    /// st_mode.
    pub fn mode(&self) -> u32 {
        let kind = match &self.body {
            Body::Directory(_) => kind::DIRECTORY,
            Body::File(_) => kind::FILE,
            Body::Null | Body::Random | Body::Mounted(_) => kind::DEVICE,
        };
        kind | self.permissions.load(Ordering::Relaxed)
    }

    /// Size in bytes.
    ///
    /// # Errors
    /// When a mount cannot tell.
    pub fn len(&self) -> Result<u64, Errno> {
        match &self.body {
            Body::File(contents) => Ok(contents.lock().len),
            Body::Mounted(mounted) => mounted.facts().map(|f| f.size),
            _ => Ok(0),
        }
    }

    /// What is in a directory of this file system.
    pub fn entries(&self) -> Result<&SpinLock<Entries>, Errno> {
        match &self.body {
            Body::Directory(entries) => Ok(entries),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Remembers that it has changed now.
    pub fn touch(&self, me: &mut Thread) {
        if let Ok(now) = clock::now(me, Clock::Realtime) {
            self.modified.store(now, Ordering::Relaxed);
        }
    }
}

impl Contents {
    /// Reads from an offset; 0 at or after the end.
    pub fn read(&self, at: u64, to: &mut [u8]) -> u64 {
        let len = (to.len() as u64).min(self.len.saturating_sub(at));
        let mut done = 0;
        while done < len {
            let (page, within) = ((at + done) / PAGE, ((at + done) % PAGE) as usize);
            let n = (PAGE - within as u64).min(len - done) as usize;
            let to = &mut to[done as usize..done as usize + n];
            match self.pages.get(&page) {
                Some(bytes) => to.copy_from_slice(&bytes[within..within + n]),
                None => to.fill(0),
            }
            done += n as u64;
        }
        len
    }

    /// Writes at an offset; less than all where memory ends.
    pub fn write(&mut self, at: u64, from: &[u8]) -> Outcome {
        if at.checked_add(from.len() as u64).is_none_or(|end| end > MAX_SIZE) {
            return Err(Errno::FBIG);
        }
        let mut done = 0;
        while done < from.len() {
            let position = at + done as u64;
            let (page, within) = (position / PAGE, (position % PAGE) as usize);
            let n = (PAGE as usize - within).min(from.len() - done);
            let bytes = match self.pages.get_mut(&page) {
                Some(bytes) => bytes,
                None => {
                    let mut fresh = Vec::new();
                    if !crate::heap::has_room() || fresh.try_reserve_exact(PAGE as usize).is_err() {
                        break;
                    }
                    fresh.resize(PAGE as usize, 0);
                    self.pages.entry(page).or_insert(fresh)
                }
            };
            bytes[within..within + n].copy_from_slice(&from[done..done + n]);
            done += n;
            self.len = self.len.max(position + n as u64);
        }
        if done == 0 && !from.is_empty() { Err(Errno::NOSPC) } else { Ok(done as u64) }
    }

    /// Cuts it off, or lengthens it with zeros.
    pub fn resize(&mut self, len: u64) -> Outcome {
        if len > MAX_SIZE {
            return Err(Errno::FBIG);
        }
        self.pages.split_off(&len.div_ceil(PAGE));
        if let Some(last) = self.pages.get_mut(&(len / PAGE)) {
            last[(len % PAGE) as usize..].fill(0);
        }
        self.len = len;
        Ok(0)
    }
}

/// A path from the root: its names, without `.` and `..`.
pub type Path = Vec<Vec<u8>>;

/// The path that a program names, from `base` where it is relative.
pub fn path(base: &[Vec<u8>], at: u64) -> Result<Path, Errno> {
    if !crate::heap::has_room_for_call() {
        return Err(Errno::NOMEM);
    }
    let mut text = Vec::new();
    loop {
        // SAFETY: checked to be the program's.
        match unsafe { own_bytes(at + text.len() as u64, 1)?.read() } {
            0 => break,
            b => text.push(b),
        }
        if text.len() >= MAX_PATH {
            return Err(Errno::NAMETOOLONG);
        }
    }
    if text.is_empty() {
        return Err(Errno::NOENT);
    }
    let mut names = if text[0] == b'/' { Vec::new() } else { base.to_vec() };
    for name in text.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name if name.len() > MAX_NAME => return Err(Errno::NAMETOOLONG),
            name => names.push(name.to_vec()),
        }
    }
    Ok(names)
}

/// What a path leads to.
pub fn find(names: &[Vec<u8>]) -> Result<Arc<Node>, Errno> {
    let mut node = ROOT.lock().clone().ok_or(Errno::NOENT)?;
    for name in names {
        let next = node.entries()?.lock().get(name).cloned();
        node = next.ok_or(Errno::NOENT)?;
    }
    Ok(node)
}

/// The directory a path's last name stands in, and that name.
fn parent(names: &[Vec<u8>]) -> Result<(Arc<Node>, &Vec<u8>), Errno> {
    let (name, above) = names.split_last().ok_or(Errno::EXIST)?;
    let directory = find(above)?;
    directory.entries()?;
    Ok((directory, name))
}

/// Makes a file or directory. `exclusive`: EEXIST where there is one; else it is returned.
pub fn create(
    me: &mut Thread,
    names: &[Vec<u8>],
    permissions: u32,
    is_directory: bool,
    exclusive: bool,
) -> Result<Arc<Node>, Errno> {
    if !crate::heap::has_room() {
        return Err(Errno::NOSPC);
    }
    let (directory, name) = parent(names)?;
    let body = match is_directory {
        true => Body::Directory(SpinLock::default()),
        false => Body::File(SpinLock::default()),
    };
    let fresh = Node::new(body, permissions & 0o7777);
    fresh.touch(me);
    let node = {
        let _names = NAMES.lock();
        let mut entries = directory.entries()?.lock();
        match entries.get(name) {
            Some(_) if exclusive => return Err(Errno::EXIST),
            Some(node) => node.clone(),
            None => {
                entries.insert(name.clone(), fresh.clone());
                fresh
            }
        }
    };
    Ok(node)
}

/// Takes a name away: of a directory, which must be empty, or of something else.
pub fn remove(names: &[Vec<u8>], is_directory: bool) -> Outcome {
    let (directory, name) = parent(names).map_err(|e| if e == Errno::EXIST { Errno::ISDIR } else { e })?;
    let removed = {
        let _names = NAMES.lock();
        let mut entries = directory.entries()?.lock();
        match (&entries.get(name).ok_or(Errno::NOENT)?.body, is_directory) {
            (Body::Directory(_), false) => return Err(Errno::ISDIR),
            (Body::Directory(inner), true) if !inner.lock().is_empty() => return Err(Errno::NOTEMPTY),
            (Body::Directory(_), true) => {}
            (_, true) => return Err(Errno::NOTDIR),
            (_, false) => {}
        }
        entries.remove(name)
    };
    drop(removed);
    Ok(0)
}

/// rename(2): in one step, replacing what has the new name.
pub fn rename(from: &[Vec<u8>], to: &[Vec<u8>], no_replace: bool) -> Outcome {
    let (source, old) = parent(from)?;
    let (target, new) = parent(to)?;
    // A directory cannot go into itself.
    if to.len() > from.len() && to.starts_with(from) {
        return Err(Errno::INVAL);
    }
    let _names = NAMES.lock();
    let node = source.entries()?.lock().get(old).cloned().ok_or(Errno::NOENT)?;
    if from == to {
        return Ok(0);
    }
    if let Some(there) = target.entries()?.lock().get(new) {
        match (&node.body, &there.body) {
            _ if no_replace => return Err(Errno::EXIST),
            (Body::Directory(_), Body::Directory(inner)) if !inner.lock().is_empty() => {
                return Err(Errno::NOTEMPTY);
            }
            (Body::Directory(_), Body::Directory(_)) => {}
            (Body::Directory(_), _) => return Err(Errno::NOTDIR),
            (_, Body::Directory(_)) => return Err(Errno::ISDIR),
            _ => {}
        }
    }
    source.entries()?.lock().remove(old);
    let replaced = target.entries()?.lock().insert(new.clone(), node);
    drop(replaced);
    Ok(0)
}
