//! Reading and writing, whatever a descriptor stands for; the standard streams, where the manifest allows them; and the
//! calls on files, which live in the enclave ([`tree`]) or are of a mount ([`mounts`]).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::descriptors::{self, CHANGEABLE, Kind, Object, Open};
use super::mounts;
use super::socket::{self, Piece, each_piece};
use super::tree::{self, Body, Path};
use super::{Outcome, own, own_bytes};
use crate::host::{self, Errno, Frame};
use crate::replies::kind;
use crate::thread::Thread;
use enclos::abi::{FRAME_SIZE, hostcall};

/// write(2).
pub fn write(me: &mut Thread, fd: u64, from: u64, len: u64) -> Outcome {
    own_bytes(from, len)?;
    write_pieces(me, &*descriptors::get(fd)?, &[(from, len)])
}

/// writev(2).
pub fn writev(me: &mut Thread, fd: u64, vectors: u64, count: u64) -> Outcome {
    write_pieces(me, &*descriptors::get(fd)?, &socket::pieces(vectors, count)?)
}

/// read(2).
pub fn read(me: &mut Thread, fd: u64, to: u64, len: u64) -> Outcome {
    own_bytes(to, len)?;
    read_pieces(me, &*descriptors::get(fd)?, &[(to, len)])
}

/// readv(2).
pub fn readv(me: &mut Thread, fd: u64, vectors: u64, count: u64) -> Outcome {
    read_pieces(me, &*descriptors::get(fd)?, &socket::pieces(vectors, count)?)
}

fn write_pieces(me: &mut Thread, object: &Object, from: &[Piece]) -> Outcome {
    let blocks = object.blocks();
    match &object.kind {
        Kind::Standard(0) | Kind::Timer(_) | Kind::Epoll(_) => Err(Errno::BADF),
        Kind::Standard(stream) => each_piece(from, |bytes| write_stream(me, *stream, bytes)),
        Kind::Socket(_) => socket::send(me, object, from, 0, None),
        Kind::Channel(end) => each_piece(from, |bytes| end.write(me, bytes, blocks)),
        Kind::Counter(counter) => each_piece(from, |bytes| counter.write(me, bytes, blocks)),
        Kind::File(open) => {
            let flags = may(object, WRITING)?;
            let mut offset = open.offset.lock();
            if flags & O_APPEND != 0 {
                *offset = open.node.len()?;
            }
            let n = each_piece(from, |bytes| write_file(open, *offset, bytes).inspect(|n| *offset += n));
            drop(offset);
            open.node.touch(me);
            n
        }
    }
}

fn read_pieces(me: &mut Thread, object: &Object, to: &[Piece]) -> Outcome {
    let blocks = object.blocks();
    match &object.kind {
        Kind::Standard(0) => each_piece(to, |bytes| read_stream(me, bytes)),
        Kind::Standard(_) | Kind::Epoll(_) => Err(Errno::BADF),
        Kind::Socket(_) | Kind::Channel(_) if to.is_empty() => Ok(0),
        Kind::Channel(end) if !end.is_socket() => {
            let mut is_first = true;
            each_piece(to, |bytes| {
                let waits = blocks && core::mem::take(&mut is_first);
                end.read(me, bytes, waits, false)
            })
        }
        Kind::Socket(_) | Kind::Channel(_) => socket::receive(me, object, to, 0).map(|(n, ..)| n),
        Kind::Counter(counter) => each_piece(to, |bytes| counter.read(me, bytes, blocks)),
        Kind::Timer(timer) => each_piece(to, |bytes| timer.read(me, bytes, blocks)),
        Kind::File(open) => {
            may(object, READING)?;
            let mut offset = open.offset.lock();
            each_piece(to, |bytes| read_file(open, *offset, bytes).inspect(|n| *offset += n))
        }
    }
}

/// Where the manifest forbids standard output, it is swallowed, so that programs that print still run.
fn write_stream(me: &mut Thread, stream: u32, from: &[u8]) -> Outcome {
    let from = &from[..from.len().min(FRAME_SIZE as usize)];
    if !crate::boot::stdio_allowed() || from.is_empty() {
        return Ok(from.len() as u64);
    }
    let len = from.len() as u64;
    Frame::of(me).put(0, from);
    host::checked(host::call_keeping(me, hostcall::WRITE, u64::from(stream), len, 0), len)
}

/// Standard input where the manifest allows it, else at its end.
fn read_stream(me: &mut Thread, to: &mut [u8]) -> Outcome {
    let len = (to.len() as u64).min(FRAME_SIZE);
    if !crate::boot::stdin_allowed() || len == 0 {
        return Ok(0);
    }
    let n = host::checked(host::call_keeping(me, hostcall::READ, 0, len, 0), len)?;
    Frame::of(me).get(0, &mut to[..n as usize]);
    Ok(n)
}

/// Access modes that forbid: O_RDONLY to write, O_WRONLY to read.
const READING: u32 = 1;
const WRITING: u32 = 0;
const O_APPEND: u32 = 0o2000;
const O_CREAT: u32 = 0o100;
const O_EXCL: u32 = 0o200;
const O_TRUNC: u32 = 0o1000;
const O_DIRECTORY: u32 = 0o20_0000;
const AT_FDCWD: i32 = -100;

/// The flags, if the access mode is not the one that forbids it.
fn may(object: &Object, forbidden: u32) -> Result<u32, Errno> {
    let flags = object.flags.load(Ordering::Relaxed);
    if flags & 3 == forbidden { Err(Errno::BADF) } else { Ok(flags) }
}

fn read_file(open: &Open, at: u64, to: &mut [u8]) -> Outcome {
    match &open.node.body {
        Body::Directory(_) => Err(Errno::ISDIR),
        Body::File(contents) => Ok(contents.lock().read(at, to)),
        Body::Mounted(mounted) => mounted.read(at, to),
        Body::Null => Ok(0),
        Body::Random if crate::cpu::fill_random(to) => Ok(to.len() as u64),
        Body::Random => Err(Errno::IO),
    }
}

fn write_file(open: &Open, at: u64, from: &[u8]) -> Outcome {
    match &open.node.body {
        Body::Directory(_) => Err(Errno::ISDIR),
        Body::File(contents) => contents.lock().write(at, from),
        Body::Mounted(mounted) => mounted.write(at, from),
        Body::Null | Body::Random => Ok(from.len() as u64),
    }
}

fn file(fd: u64) -> Result<Arc<Object>, Errno> {
    descriptors::get(fd)
}

fn open_of(object: &Object) -> Result<&Open, Errno> {
    match &object.kind {
        Kind::File(open) => Ok(open),
        _ => Err(Errno::INVAL),
    }
}

/// Where a path relative to `directory` starts.
fn base(directory: u64) -> Result<Path, Errno> {
    if directory as u32 as i32 == AT_FDCWD {
        return Ok(Vec::new());
    }
    let object = file(directory)?;
    let Kind::File(open) = &object.kind else { return Err(Errno::NOTDIR) };
    match &open.node.body {
        Body::Mounted(mounted) if mounted.facts()?.mode & kind::TYPE == kind::DIRECTORY => {}
        Body::Mounted(_) => return Err(Errno::NOTDIR),
        _ => drop(open.node.entries()?),
    }
    Ok(open.path.clone())
}

/// The path at this address; an absolute one needs no directory.
fn path_at(directory: u64, path: u64) -> Result<Path, Errno> {
    // SAFETY: checked to be the program's.
    let is_absolute = unsafe { own::<u8>(path)?.read() } == b'/';
    let base = if is_absolute { Vec::new() } else { base(directory)? };
    tree::path(&base, path)
}

/// openat(2), open(2).
pub fn open(me: &mut Thread, directory: u64, path: u64, flags: u64, mode: u64) -> Outcome {
    let flags = flags as u32;
    let names = path_at(directory, path)?;
    if let Some((mount, below)) = mounts::of(&names) {
        descriptors::room()?;
        let mounted = mount.open(below, flags, mode as u32 & !0o022)?;
        return describe(tree::Node::mounted(mounted), names, flags);
    }
    let node = match tree::find(&names) {
        Ok(_) if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL => return Err(Errno::EXIST),
        Err(Errno::NOENT) if flags & O_CREAT != 0 => {
            tree::create(me, &names, mode as u32 & !0o022, false, flags & O_EXCL != 0)?
        }
        found => found?,
    };
    let writes = flags & 3 != 0;
    match &node.body {
        Body::Directory(_) if writes || flags & O_CREAT != 0 => return Err(Errno::ISDIR),
        Body::Directory(_) => {}
        _ if flags & O_DIRECTORY != 0 => return Err(Errno::NOTDIR),
        Body::File(contents) if flags & O_TRUNC != 0 && writes => {
            contents.lock().resize(0)?;
            node.touch(me);
        }
        _ => {}
    }
    describe(node, names, flags)
}

fn describe(node: Arc<tree::Node>, path: Path, flags: u32) -> Outcome {
    let kept = flags & (CHANGEABLE | 3);
    let open = Open { node, path, offset: Default::default(), listing: Default::default() };
    let object = Object::new(Kind::File(open), 0);
    object.flags.store(kept, Ordering::Relaxed);
    descriptors::add(Arc::new(object), flags)
}

/// pread64(2).
pub fn pread(fd: u64, to: u64, len: u64, at: u64) -> Outcome {
    let object = file(fd)?;
    let Kind::File(open) = &object.kind else { return Err(Errno::SPIPE) };
    may(&object, READING)?;
    if at > i64::MAX as u64 {
        return Err(Errno::INVAL);
    }
    each_piece(&[(to, len)], |bytes| read_file(open, at, bytes))
}

/// pwrite64(2).
pub fn pwrite(me: &mut Thread, fd: u64, from: u64, len: u64, at: u64) -> Outcome {
    let object = file(fd)?;
    let Kind::File(open) = &object.kind else { return Err(Errno::SPIPE) };
    may(&object, WRITING)?;
    if at > i64::MAX as u64 {
        return Err(Errno::INVAL);
    }
    let n = each_piece(&[(from, len)], |bytes| write_file(open, at, bytes))?;
    open.node.touch(me);
    Ok(n)
}

/// lseek(2): streams cannot seek.
pub fn seek(fd: u64, offset: u64, whence: u64) -> Outcome {
    let object = file(fd)?;
    let Kind::File(open) = &object.kind else { return Err(Errno::SPIPE) };
    let mut at = open.offset.lock();
    let len = if whence == 2 { open.node.len()? } else { 0 };
    let from = match whence {
        0 => 0,
        1 => *at,
        2 => len,
        _ => return Err(Errno::INVAL),
    };
    let to = from.checked_add_signed(offset as i64).filter(|to| *to <= i64::MAX as u64);
    *at = to.ok_or(Errno::INVAL)?;
    Ok(*at)
}

/// ftruncate(2).
pub fn ftruncate(me: &mut Thread, fd: u64, len: u64) -> Outcome {
    let object = file(fd)?;
    may(&object, WRITING)?;
    let open = open_of(&object)?;
    match &open.node.body {
        Body::File(contents) => contents.lock().resize(len)?,
        Body::Mounted(mounted) if len <= i64::MAX as u64 => mounted.resize(len)?,
        _ => return Err(Errno::INVAL),
    };
    open.node.touch(me);
    Ok(0)
}

/// fsync(2), fdatasync(2): what is in memory is as durable as it gets; mounts see to it.
pub fn sync(fd: u64) -> Outcome {
    match &file(fd)?.kind {
        Kind::File(Open { node, .. }) => match &node.body {
            Body::Mounted(mounted) => mounted.sync(),
            _ => Ok(0),
        },
        _ => Err(Errno::INVAL),
    }
}

/// flock(2), fchmod(2), fchown(2), utimensat(2) of a descriptor: nothing is to be done.
pub fn nothing_to_do(fd: u64) -> Outcome {
    file(fd).map(|_| 0)
}

/// The contents of a file from an offset, for a private mapping.
pub fn map_private(fd: u64, to: u64, len: u64, at: u64) -> Result<(), Errno> {
    let object = file(fd)?;
    let Kind::File(open) = &object.kind else { return Err(Errno::NODEV) };
    if !matches!(open.node.body, Body::File(_) | Body::Mounted(_)) {
        return Err(Errno::NODEV);
    }
    each_piece(&[(to, len)], |bytes| read_file(open, at, bytes)).map(drop)
}

/// mkdirat(2).
pub fn mkdir(me: &mut Thread, directory: u64, path: u64, mode: u64) -> Outcome {
    let (names, mode) = (path_at(directory, path)?, mode as u32 & !0o022);
    match mounts::of(&names) {
        Some((mount, below)) => mount.make_directory(below, mode),
        None => tree::create(me, &names, mode, true, true).map(|_| 0),
    }
}

/// unlinkat(2).
pub fn unlink(directory: u64, path: u64, flags: u64) -> Outcome {
    const AT_REMOVEDIR: u64 = 0x200;
    let (names, is_directory) = (path_at(directory, path)?, flags & AT_REMOVEDIR != 0);
    match mounts::of(&names) {
        Some((mount, below)) => mount.remove(below, is_directory),
        None => tree::remove(&names, is_directory),
    }
}

/// renameat2(2): RENAME_NOREPLACE is the only flag.
pub fn rename(from: [u64; 2], to: [u64; 2], flags: u64) -> Outcome {
    if flags > 1 {
        return Err(Errno::INVAL);
    }
    let (from, to) = (path_at(from[0], from[1])?, path_at(to[0], to[1])?);
    match (mounts::of(&from), mounts::of(&to)) {
        (None, None) => tree::rename(&from, &to, flags == 1),
        (Some((mount, from)), Some((same, to))) if core::ptr::eq(mount, same) => {
            mount.rename(from, to, flags != 1)
        }
        _ => Err(Errno::XDEV),
    }
}

/// faccessat(2): what is there may be used.
pub fn access(directory: u64, path: u64) -> Outcome {
    exists(&path_at(directory, path)?)
}

fn exists(names: &[Vec<u8>]) -> Outcome {
    match mounts::of(names) {
        Some((mount, below)) => mount.facts(below).map(|_| 0),
        None => tree::find(names).map(|_| 0),
    }
}

/// readlinkat(2): `/proc/self/exe` is `/enclave`; nothing else is a link.
pub fn readlink(directory: u64, path: u64, to: u64, len: u64) -> Outcome {
    const PROGRAM: &[u8] = b"/enclave";
    let names = path_at(directory, path)?;
    if !names.iter().map(Vec::as_slice).eq([&b"proc"[..], b"self", b"exe"]) {
        return exists(&names).and(Err(Errno::INVAL));
    }
    let n = PROGRAM.len().min(len as usize);
    let to = own_bytes(to, n as u64)?;
    // SAFETY: checked to be the program's.
    unsafe { core::ptr::copy_nonoverlapping(PROGRAM.as_ptr(), to, n) };
    Ok(n as u64)
}

/// getdents64(2).
pub fn getdents(fd: u64, to: u64, capacity: u64) -> Outcome {
    let object = file(fd)?;
    let open = open_of(&object).map_err(|_| Errno::NOTDIR)?;
    let capacity = capacity.min(1 << 20);
    own_bytes(to, capacity)?;
    let mut position = open.offset.lock();
    if let Body::Mounted(mounted) = &open.node.body {
        let mut listing = open.listing.lock();
        // What is removed or added while it is read must not shift the rest.
        if *position == 0 || listing.is_empty() {
            drop(listing);
            let fresh = mounted.list()?;
            listing = open.listing.lock();
            *listing = fresh;
        }
        let all = listing.iter().map(|e| (&e.name[..], e.inode, e.kind));
        return give_entries(all, &mut position, to, capacity);
    }
    let own = [(&b"."[..], open.node.inode, 4), (b"..", open.node.inode, 4)];
    let entries = open.node.entries()?.lock();
    let kinds = entries.iter().map(|(name, node)| (name.as_slice(), node.inode, (node.mode() >> 12) as u8));
    give_entries(own.into_iter().chain(kinds), &mut position, to, capacity)
}

/// As many entries from a position as there is room for.
fn give_entries<'a>(
    all: impl Iterator<Item = (&'a [u8], u64, u8)>,
    position: &mut u64,
    to: u64,
    capacity: u64,
) -> Outcome {
    const HEADER: usize = 19;
    let mut used = 0_u64;
    for (name, inode, kind) in all.skip(*position as usize) {
        let len = (HEADER + name.len() + 1).next_multiple_of(8) as u64;
        if used + len > capacity {
            return if used == 0 { Err(Errno::INVAL) } else { Ok(used) };
        }
        *position += 1;
        // SAFETY: within the capacity, which is the program's: d_ino, d_off, d_reclen, d_type, d_name.
        unsafe {
            let at = (to + used) as *mut u8;
            at.cast::<[u64; 2]>().write_unaligned([inode, *position]);
            at.add(16).cast::<u16>().write_unaligned(len as u16);
            at.add(18).write(kind);
            core::ptr::write_bytes(at.add(HEADER), 0, len as usize - HEADER);
            core::ptr::copy_nonoverlapping(name.as_ptr(), at.add(HEADER), name.len());
        }
        used += len;
    }
    Ok(used)
}

/// What stat tells.
struct Status {
    /// Mounts number their inodes themselves.
    device: u64,
    inode: u64,
    mode: u32,
    size: u64,
    modified: u64,
}

impl Status {
    fn of(object: &Object, fd: u64) -> Result<Self, Errno> {
        let mode = match &object.kind {
            Kind::File(open) => return Self::of_node(&open.node),
            // The standard streams are pipes.
            Kind::Standard(_) => 0o010_600,
            Kind::Socket(_) => 0o140_777,
            Kind::Channel(end) if end.is_socket() => 0o140_777,
            Kind::Channel(_) => 0o010_600,
            // Without a type, as Linux has it.
            Kind::Counter(_) | Kind::Timer(_) | Kind::Epoll(_) => 0o600,
        };
        Ok(Self { device: 0, inode: fd + 1, mode, size: 0, modified: 0 })
    }

    fn of_node(node: &tree::Node) -> Result<Self, Errno> {
        if let Body::Mounted(mounted) = &node.body {
            return mounted.facts().map(Self::of_facts);
        }
        let modified = node.modified.load(Ordering::Relaxed);
        Ok(Self { device: 0, inode: node.inode, mode: node.mode(), size: node.len()?, modified })
    }

    fn of_facts(facts: mounts::Facts) -> Self {
        let mounts::Facts { device, inode, mode, size, modified } = facts;
        Self { device, inode, mode, size, modified }
    }

    /// Of a path, or of the descriptor where the path is empty.
    fn at(fd: u64, path: u64) -> Result<Self, Errno> {
        // SAFETY: checked to be the program's.
        if path == 0 || unsafe { own::<u8>(path)?.read() } == 0 {
            return Self::of(&*file(fd)?, fd);
        }
        let names = path_at(fd, path)?;
        match mounts::of(&names) {
            Some((mount, below)) => mount.facts(below).map(Self::of_facts),
            None => Self::of_node(&*tree::find(&names)?),
        }
    }

    /// As `struct stat`, 144 bytes.
    fn give(&self, to: u64) -> Outcome {
        const NS: u64 = 1_000_000_000;
        let to = own::<[u64; 18]>(to)?;
        let mut stat = [0_u64; 18];
        stat[0] = self.device; // st_dev
        stat[1] = self.inode; // st_ino
        stat[2] = 1; // st_nlink
        stat[3] = u64::from(self.mode); // st_mode, and st_uid
        stat[6] = self.size;
        stat[7] = 4096; // st_blksize
        stat[8] = self.size.div_ceil(512);
        for time in [9, 11, 13] {
            (stat[time], stat[time + 1]) = (self.modified / NS, self.modified % NS);
        }
        // SAFETY: checked to be the program's.
        unsafe { to.write(stat) };
        Ok(0)
    }
}

/// fstat(2).
pub fn fstat(fd: u64, to: u64) -> Outcome {
    Status::of(&*file(fd)?, fd)?.give(to)
}

/// newfstatat(2), stat(2), lstat(2): with an empty path as fstat.
pub fn newfstatat(fd: u64, path: u64, to: u64) -> Outcome {
    Status::at(fd, path)?.give(to)
}

/// statx(2): likewise.
pub fn statx(fd: u64, path: u64, to: u64) -> Outcome {
    const NS: u64 = 1_000_000_000;
    let status = Status::at(fd, path)?;
    let to = own::<[u32; 64]>(to)?;
    let mut stat = [0_u32; 64];
    stat[0] = 0x7ff; // STATX_BASIC_STATS
    stat[1] = 4096;
    stat[4] = 1;
    stat[7] = status.mode; // stx_mode
    let mut word = |at: usize, value: u64| (stat[at], stat[at + 1]) = (value as u32, (value >> 32) as u32);
    word(8, status.inode);
    word(10, status.size);
    word(12, status.size.div_ceil(512));
    for time in [16, 24, 28] {
        word(time, status.modified / NS);
        word(time + 2, status.modified % NS);
    }
    stat[35] = status.device as u32; // stx_dev_minor
    // SAFETY: 256 bytes is the size of `struct statx`.
    unsafe { to.write(stat) };
    Ok(0)
}
