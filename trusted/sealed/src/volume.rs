//! The file system: a cache of blocks over the tree of the last commit.
//!
//! A block is named by inode, level and index: level 0 is contents, level n holds pointers to level n - 1. Inode 0 is the
//! file of all inodes, which the root describes; inode 1 is the top directory. What changed is in the cache, marked dirty,
//! until [`Volume::commit`], or until there is too much of it: then it goes to free places, and only the root waits.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Nonce, Tag};
use zeroize::Zeroizing;

use crate::format::{
    self, BLOCK, DirectoryEntry, ENTRY, FANOUT, INODE, INODES, Inode, Kind, MAX_SIZE, Pointer, Policy, ROOT,
    RootBody, TAG, reach,
};
use crate::places::Places;
use crate::roots::{Found, RootKey, Roots};
use crate::{Error, HostFile, Platform};

type Bytes = [u8; BLOCK];
/// Inode, level, index.
type Key = (u32, u8, u64);

/// The file of all inodes.
const TABLE: u32 = 0;
/// The top directory.
const TOP: u32 = 1;
/// Blocks written to the host in one go.
const RUN: usize = 16;
/// Blocks that the host's file grows by.
const GROWTH: u32 = 256;
/// Places kept for what must be written along: pointers, inodes, directories.
const MARGIN: u32 = 64;
/// Places that writing over what is there may use of these, and removing: a full disk stops what needs more of it first.
const OVERWRITING: u32 = 24;
const REMOVING: u32 = 48;
/// Blocks under one key: GCM's nonces are a counter of 32 bits (SP 800-38D, 8.3).
const MOST_PER_KEY: u32 = u32::MAX;
/// EFBIG, ENOSPC, EDQUOT.
const FULL: [i32; 3] = [27, 28, 122];

/// A mounted file system.
pub struct Volume<P> {
    platform: P,
    /// Where it is mounted: no other mount's root opens here.
    path: Vec<u8>,
    volume: [u8; 16],
    generation: u64,
    /// The last root as it is stored, and its tag.
    root: [u8; ROOT],
    digest: [u8; TAG],
    /// Key of roots, derived once a mount by a KEYID of its own.
    root_key: RootKey,
    session: Session,
    /// The cipher that the last block read needed.
    reader: Option<([u8; 16], Aes128Gcm)>,
    table: Inode,
    places: Places,
    cache: BTreeMap<Key, Cached>,
    dirty: BTreeSet<Key>,
    /// Most blocks in the cache.
    capacity: usize,
    /// Where the search for a block to evict goes on.
    hand: Key,
    inodes: Vec<u64>,
    directories: BTreeMap<u32, Directory>,
    /// How often an inode is open.
    held: BTreeMap<u32, u32>,
    /// Is there anything that the last commit does not know?
    is_changed: bool,
    /// The last root must still be copied to the file of blocks.
    owes_witness: bool,
    has_failed: bool,
    run: Vec<u8>,
}

/// The key of what this mount writes.
struct Session {
    key: Zeroizing<[u8; 16]>,
    cipher: Aes128Gcm,
    used: u32,
}

struct Cached {
    bytes: Box<Bytes>,
    was_used: bool,
}

#[derive(Default)]
struct Directory {
    names: BTreeMap<Vec<u8>, Name>,
    /// Free bytes of each of its blocks.
    room: Vec<u16>,
}

#[derive(Clone, Copy)]
struct Name {
    inode: u32,
    kind: Kind,
    /// Which of the directory's blocks has it.
    block: u32,
}

/// What there is to know of a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its number.
    pub inode: u32,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub permissions: u16,
    /// Bytes of the contents.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub modified: u64,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: Vec<u8>,
    /// Number of its inode.
    pub inode: u32,
    /// What that is.
    pub kind: Kind,
}

/// What tells a state of a volume from all others: for a party that remembers it to notice a rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Random, fixed when the volume was made.
    pub volume: [u8; 16],
    /// Commits so far.
    pub generation: u64,
    /// Tag of the root, which depends on every byte of the volume.
    pub digest: [u8; TAG],
}

/// Paths are names from the top directory, without `.` and `..`.
type Path<'a> = &'a [Vec<u8>];

impl<P: Platform> Volume<P> {
    /// Opens the volume of the host's directory, or makes one where there is none. `path` is where it is mounted,
    /// `capacity` how many blocks may be cached.
    ///
    /// # Errors
    /// When the host's files do not open, are damaged, or of unequal age; when the host or the CPU fails.
    pub fn open(mut platform: P, policy: Policy, path: &[u8], capacity: usize) -> Result<Self, Error> {
        let found = Roots::read(&mut platform, policy, path)?;
        let root_key = RootKey::new(&mut platform, policy)?;
        let session = Session::new(&mut platform)?;
        let mut v = Self {
            platform,
            path: path.to_vec(),
            volume: [0; 16],
            generation: 0,
            root: [0; ROOT],
            digest: [0; TAG],
            root_key,
            session,
            reader: None,
            table: Inode::new(Kind::File, 0, 0),
            places: Places::default(),
            cache: BTreeMap::new(),
            dirty: BTreeSet::new(),
            capacity: capacity.max(4 * RUN),
            hand: (0, 0, 0),
            inodes: Vec::new(),
            directories: BTreeMap::new(),
            held: BTreeMap::new(),
            is_changed: false,
            owes_witness: false,
            has_failed: false,
            run: Vec::new(),
        };
        v.run.try_reserve_exact(RUN * BLOCK).map_err(|_| Error::NoMemory)?;
        match found {
            Some(root) => v.load_tree(&root)?,
            None => v.make()?,
        }
        Ok(v)
    }

    fn make(&mut self) -> Result<(), Error> {
        if !self.platform.random(&mut self.volume) {
            return Err(Error::NoRandom);
        }
        self.platform.reserve(HostFile::Root, 2 * BLOCK as u64).map_err(|e| storing(HostFile::Root, e))?;
        self.ensure_places(0, MARGIN)?;
        // Inode 0 has no entry of its own in the table, but its place.
        self.inodes.push(1);
        let top = self.new_inode(Inode::new(Kind::Directory, 0o755, 0))?;
        debug_assert_eq!(top, TOP);
        self.commit()
    }

    /// Reads all of the tree but contents, and finds out which places are free.
    fn load_tree(&mut self, found: &Found) -> Result<(), Error> {
        let root = &found.body;
        (self.volume, self.generation, self.digest) = (root.volume, root.generation, found.tag);
        (self.table, self.root) = (root.inodes, found.stored);
        self.owes_witness = found.owes_witness;
        self.places.grow(root.blocks)?;
        self.walk((TABLE, root.inodes.height, 0), &root.inodes.top)?;
        let count = (root.inodes.size / INODE as u64) as u32;
        self.inodes.push(1);
        for number in 1..count {
            // The table has no holes: blocks of it that were never written are not walked, but read as no inodes.
            if !self.load((TABLE, 0, u64::from(number / INODES)))? {
                continue;
            }
            let Some(inode) = self.read_inode(number)? else { continue };
            if inode.is_linked {
                self.mark_inode(number, true)?;
                self.walk((number, inode.height, 0), &inode.top)?;
            } else {
                // Was open without a name when its program ended.
                self.write_inode(number, None)?;
            }
        }
        match self.inode(TOP)?.kind {
            Kind::Directory => Ok(()),
            Kind::File => Err(Error::Malformed { what: "there is no top directory" }),
        }
    }

    /// Takes the places of a tree.
    fn walk(&mut self, key: Key, pointer: &Pointer) -> Result<(), Error> {
        if pointer.is_hole() {
            return Ok(());
        }
        if !self.places.take(pointer.block) {
            return Err(Error::Malformed { what: "two pointers lead to one place, or one leads nowhere" });
        }
        let (inode, level, index) = key;
        if level == 0 {
            return Ok(());
        }
        let node = self.read_block(pointer)?;
        for i in 0..FANOUT {
            self.walk((inode, level - 1, index * FANOUT + i), &Pointer::at(&node, i))?;
        }
        Ok(())
    }

    /// The state that is durable.
    pub fn state(&self) -> State {
        State { volume: self.volume, generation: self.generation, digest: self.digest }
    }

    /// The platform it was opened with.
    pub fn platform(&mut self) -> &mut P {
        &mut self.platform
    }

    /// The number of what a path leads to.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotDirectory`]; when a directory cannot be read.
    pub fn find(&mut self, path: Path<'_>) -> Result<u32, Error> {
        let (mut inode, mut kind) = (TOP, Kind::Directory);
        for name in path {
            if kind != Kind::Directory {
                return Err(Error::NotDirectory);
            }
            let found = *self.directory(inode)?.names.get(name).ok_or(Error::NotFound)?;
            (inode, kind) = (found.inode, found.kind);
        }
        Ok(inode)
    }

    /// What there is to know of it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn status(&mut self, inode: u32) -> Result<Status, Error> {
        let i = self.inode(inode)?;
        // How directories are stored is nobody's concern.
        let size = if i.kind == Kind::Directory { 0 } else { i.size };
        Ok(Status { inode, kind: i.kind, permissions: i.permissions, size, modified: i.modified })
    }

    /// Makes a file or directory; where there is something of that name already, that, unless `is_exclusive`.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::BadName`], [`Error::NoSpace`], and what [`Volume::find`] says of the directory.
    pub fn create(
        &mut self,
        path: Path<'_>,
        kind: Kind,
        permissions: u16,
        is_exclusive: bool,
        now: u64,
    ) -> Result<u32, Error> {
        let Some((name, above)) = path.split_last() else { return Err(Error::Exists) };
        let directory = self.find(above)?;
        if let Some(there) = self.directory(directory)?.names.get(name) {
            return if is_exclusive { Err(Error::Exists) } else { Ok(there.inode) };
        }
        if !format::is_name(name) {
            return Err(Error::BadName);
        }
        self.may_change()?;
        self.ensure_places(2, MARGIN)?;
        let inode = self.new_inode(Inode::new(kind, permissions & 0o7777, now))?;
        if let Err(e) = self.add_name(directory, name, inode, kind) {
            self.write_inode(inode, None)?;
            self.mark_inode(inode, false)?;
            return Err(e);
        }
        Ok(inode)
    }

    /// Reads from an offset; returns how many bytes there were.
    ///
    /// # Errors
    /// [`Error::IsDirectory`]; when a block is not what was written.
    pub fn read(&mut self, inode: u32, at: u64, to: &mut [u8]) -> Result<usize, Error> {
        let file = self.file(inode)?;
        let len = (to.len() as u64).min(file.size.saturating_sub(at)) as usize;
        let mut done = 0;
        while done < len {
            let (block, within) = split(at + done as u64);
            let n = (BLOCK - within).min(len - done);
            let piece = &mut to[done..done + n];
            match self.load((inode, 0, block)) {
                Ok(true) => {
                    piece.copy_from_slice(&self.cached((inode, 0, block))?[within..within + n]);
                }
                Ok(false) => piece.fill(0),
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
            done += n;
        }
        Ok(done)
    }

    /// Writes at an offset; returns how many bytes there was room for.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::NoMemory`], [`Error::TooLarge`], [`Error::IsDirectory`].
    pub fn write(&mut self, inode: u32, at: u64, from: &[u8], now: u64) -> Result<usize, Error> {
        self.may_change()?;
        if at.checked_add(from.len() as u64).is_none_or(|end| end > MAX_SIZE) {
            return Err(Error::TooLarge);
        }
        self.file(inode)?;
        let mut done = 0;
        let outcome = loop {
            if done == from.len() {
                break Ok(());
            }
            let (block, within) = split(at + done as u64);
            let n = (BLOCK - within).min(from.len() - done);
            if let Err(e) = self.write_piece(inode, block, within, &from[done..done + n]) {
                break Err(e);
            }
            done += n;
        };
        if done != 0 {
            let file = Inode { modified: now, ..self.inode(inode)? };
            self.set_inode(inode, &file)?;
        }
        match outcome {
            Err(e) if done == 0 => Err(e),
            _ => Ok(done),
        }
    }

    fn write_piece(&mut self, inode: u32, block: u64, within: usize, from: &[u8]) -> Result<(), Error> {
        let key = (inode, 0, block);
        if !self.dirty.contains(&key) {
            let is_there = block * (BLOCK as u64) < self.inode(inode)?.size;
            self.ensure_places(2, if is_there { MARGIN - OVERWRITING } else { MARGIN })?;
        }
        self.raise(inode, block + 1)?;
        let is_whole = from.len() == BLOCK;
        self.edit(key, is_whole)?[within..within + from.len()].copy_from_slice(from);
        // At once: no commit may have contents beyond the end, which would show when the file grows.
        let file = self.inode(inode)?;
        let end = block * BLOCK as u64 + (within + from.len()) as u64;
        if file.size < end { self.set_inode(inode, &Inode { size: end, ..file }) } else { Ok(()) }
    }

    /// Cuts a file off, or lengthens it with zeros.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub fn resize(&mut self, inode: u32, len: u64, now: u64) -> Result<(), Error> {
        self.may_change()?;
        if len > MAX_SIZE {
            return Err(Error::TooLarge);
        }
        let mut file = self.file(inode)?;
        self.ensure_places(2, MARGIN - REMOVING)?;
        if len < file.size {
            let (block, within) = split(len);
            self.cut_off(inode, len.div_ceil(BLOCK as u64))?;
            if within != 0 && self.load((inode, 0, block))? {
                self.edit((inode, 0, block), false)?[within..].fill(0);
            }
            file = self.inode(inode)?;
        } else {
            self.raise(inode, len.div_ceil(BLOCK as u64))?;
            file = Inode { size: file.size, ..self.inode(inode)? };
        }
        (file.size, file.modified) = (len, now);
        self.set_inode(inode, &file)
    }

    /// Takes a name away. What had it goes when it is no longer [held](Volume::hold).
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::IsDirectory`], [`Error::NotDirectory`], [`Error::NotEmpty`].
    pub fn remove(&mut self, path: Path<'_>, is_directory: bool) -> Result<(), Error> {
        let Some((name, above)) = path.split_last() else { return Err(Error::Invalid) };
        let directory = self.find(above)?;
        let there = *self.directory(directory)?.names.get(name).ok_or(Error::NotFound)?;
        match (there.kind, is_directory) {
            (Kind::Directory, false) => return Err(Error::IsDirectory),
            (Kind::File, true) => return Err(Error::NotDirectory),
            (Kind::Directory, true) => self.must_be_empty(there.inode)?,
            (Kind::File, false) => {}
        }
        self.may_change()?;
        self.ensure_places(0, MARGIN - REMOVING)?;
        self.drop_name(directory, name)?;
        self.unlink(there.inode)
    }

    /// Gives something another name, in one step, replacing what has that.
    ///
    /// # Errors
    /// As [`Volume::remove`] for what is replaced, [`Error::Exists`] where nothing may be, and [`Error::Invalid`] for a
    /// directory that would go into itself.
    pub fn rename(&mut self, from: Path<'_>, to: Path<'_>, may_replace: bool) -> Result<(), Error> {
        let (Some((old, source)), Some((new, target))) = (from.split_last(), to.split_last()) else {
            return Err(Error::Invalid);
        };
        let (source, target) = (self.find(source)?, self.find(target)?);
        let moved = *self.directory(source)?.names.get(old).ok_or(Error::NotFound)?;
        let replaced = self.directory(target)?.names.get(new).copied();
        if replaced.is_some() && !may_replace {
            return Err(Error::Exists);
        }
        if from == to {
            return Ok(());
        }
        if to.starts_with(from) {
            return Err(Error::Invalid);
        }
        if !format::is_name(new) {
            return Err(Error::BadName);
        }
        match (moved.kind, replaced.map(|r| (r.kind, r.inode))) {
            (Kind::Directory, Some((Kind::Directory, inode))) => self.must_be_empty(inode)?,
            (Kind::Directory, Some((Kind::File, _))) => return Err(Error::NotDirectory),
            (Kind::File, Some((Kind::Directory, _))) => return Err(Error::IsDirectory),
            _ => {}
        }
        self.may_change()?;
        self.ensure_places(4, MARGIN - REMOVING)?;
        // Blocks that may have to be read are there now: what follows fails for want of memory only.
        if replaced.is_some() {
            self.drop_name(target, new)?;
        }
        if let Err(e) = self.add_name(target, new, moved.inode, moved.kind) {
            // Without its name restored, what was replaced would be lost.
            if let Some(r) = replaced {
                self.add_name(target, new, r.inode, r.kind)?;
            }
            return Err(e);
        }
        self.drop_name(source, old)?;
        replaced.map_or(Ok(()), |r| self.unlink(r.inode))
    }

    /// The entries of a directory.
    ///
    /// # Errors
    /// [`Error::NotDirectory`]; when it cannot be read.
    pub fn list(&mut self, inode: u32) -> Result<Vec<Listed>, Error> {
        let names = &self.directory(inode)?.names;
        let mut all = Vec::new();
        all.try_reserve(names.len()).map_err(|_| Error::NoMemory)?;
        all.extend(names.iter().map(|(name, n)| Listed { name: name.clone(), inode: n.inode, kind: n.kind }));
        Ok(all)
    }

    /// From now on it stays even when it has no name any more, until as many [`Volume::release`]s.
    pub fn hold(&mut self, inode: u32) {
        *self.held.entry(inode).or_default() += 1;
    }

    /// Ends a [`Volume::hold`].
    ///
    /// # Errors
    /// When what goes with it cannot be read; it goes when the volume is opened next.
    pub fn release(&mut self, inode: u32) -> Result<(), Error> {
        match self.held.get_mut(&inode) {
            Some(n) if *n > 1 => *n -= 1,
            _ => {
                self.held.remove(&inode);
                if !self.has_failed && !self.inode(inode)?.is_linked {
                    self.discard(inode)?;
                }
            }
        }
        Ok(())
    }

    /// Makes everything durable, in one step.
    ///
    /// # Errors
    /// [`Error::NoSpace`], after which it can be tried again; [`Error::Host`], after which it cannot, unless writing
    /// blocks is what failed. What was durable before is so in any case.
    pub fn commit(&mut self) -> Result<(), Error> {
        self.may_change()?;
        if !self.is_changed {
            return Ok(());
        }
        self.pay_witness()?;
        self.write_out()?;
        self.platform.sync(HostFile::Blocks).map_err(|e| self.fail(HostFile::Blocks, "sync", e))?;
        let generation = self.generation + 1;
        let body =
            RootBody { volume: self.volume, generation, blocks: self.places.total, inodes: self.table };
        let (root, digest) = self.root_key.seal(&self.platform, &self.path, &body)?;
        let at = generation % 2 * BLOCK as u64;
        self.platform.write(HostFile::Root, at, &root).map_err(|e| self.fail(HostFile::Root, "write", e))?;
        self.platform.sync(HostFile::Root).map_err(|e| self.fail(HostFile::Root, "sync", e))?;
        (self.generation, self.root, self.digest) = (generation, root, digest);
        self.places.commit();
        (self.is_changed, self.owes_witness) = (false, true);
        // Not synced: the next commit does that. If it fails, the next commit writes it again.
        let _ = self.pay_witness();
        Ok(())
    }

    /// Copies the root to the file of blocks, so that neither file can be replaced by an older one alone.
    fn pay_witness(&mut self) -> Result<(), Error> {
        if !self.owes_witness {
            return Ok(());
        }
        self.platform.write(HostFile::Blocks, 0, &self.root).map_err(|e| storing(HostFile::Blocks, e))?;
        self.owes_witness = false;
        Ok(())
    }

    /// The host failed in a way that leaves unknown what it has kept.
    fn fail(&mut self, file: HostFile, what: &'static str, errno: i32) -> Error {
        self.has_failed = true;
        Error::Host { file, what, errno }
    }

    fn may_change(&self) -> Result<(), Error> {
        if self.has_failed { Err(Error::Failed) } else { Ok(()) }
    }
}

/// Inodes.
impl<P: Platform> Volume<P> {
    fn inode(&mut self, number: u32) -> Result<Inode, Error> {
        let none = Error::Malformed { what: "an entry leads to no inode" };
        if number == TABLE {
            return Ok(self.table);
        }
        if !self.load((TABLE, 0, u64::from(number / INODES)))? {
            return Err(none);
        }
        self.read_inode(number)?.ok_or(none)
    }

    /// Of a block of the table that is in the cache.
    fn read_inode(&mut self, number: u32) -> Result<Option<Inode>, Error> {
        let at = (number % INODES) as usize * INODE;
        let block = self.cached((TABLE, 0, u64::from(number / INODES)))?;
        let mut bytes = [0; INODE];
        bytes.copy_from_slice(&block[at..at + INODE]);
        Inode::from_bytes(&bytes)
    }

    fn file(&mut self, number: u32) -> Result<Inode, Error> {
        let inode = self.inode(number)?;
        if inode.kind == Kind::File { Ok(inode) } else { Err(Error::IsDirectory) }
    }

    fn set_inode(&mut self, number: u32, inode: &Inode) -> Result<(), Error> {
        self.is_changed = true;
        if number == TABLE {
            self.table = *inode;
            return Ok(());
        }
        self.write_inode(number, Some(inode))
    }

    fn write_inode(&mut self, number: u32, inode: Option<&Inode>) -> Result<(), Error> {
        let at = (number % INODES) as usize * INODE;
        let bytes = inode.map_or([0; INODE], Inode::to_bytes);
        self.edit((TABLE, 0, u64::from(number / INODES)), false)?[at..at + INODE].copy_from_slice(&bytes);
        Ok(())
    }

    fn new_inode(&mut self, inode: Inode) -> Result<u32, Error> {
        let word = self.inodes.iter().position(|w| *w != u64::MAX).unwrap_or(self.inodes.len());
        let bit = self.inodes.get(word).map_or(0, |w| w.trailing_ones());
        let number = u32::try_from(word * 64).map_err(|_| Error::NoSpace)? + bit;
        let size = (u64::from(number) + 1) * INODE as u64;
        if size > self.table.size {
            self.raise(TABLE, size.div_ceil(BLOCK as u64))?;
            self.table.size = size;
        }
        self.set_inode(number, &inode)?;
        self.mark_inode(number, true)?;
        Ok(number)
    }

    fn mark_inode(&mut self, number: u32, is_used: bool) -> Result<(), Error> {
        let (word, bit) = (number as usize / 64, 1_u64 << (number % 64));
        if word >= self.inodes.len() {
            let more = word + 1 - self.inodes.len();
            self.inodes.try_reserve(more).map_err(|_| Error::NoMemory)?;
            self.inodes.resize(word + 1, 0);
        }
        match is_used {
            true => self.inodes[word] |= bit,
            false => self.inodes[word] &= !bit,
        }
        Ok(())
    }

    /// It has no name any more.
    fn unlink(&mut self, number: u32) -> Result<(), Error> {
        let mut inode = self.inode(number)?;
        inode.is_linked = false;
        self.set_inode(number, &inode)?;
        self.directories.remove(&number);
        if self.held.contains_key(&number) { Ok(()) } else { self.discard(number) }
    }

    fn discard(&mut self, number: u32) -> Result<(), Error> {
        self.cut_off(number, 0)?;
        self.write_inode(number, None)?;
        self.mark_inode(number, false)?;
        self.is_changed = true;
        Ok(())
    }
}

/// Directories.
impl<P: Platform> Volume<P> {
    fn directory(&mut self, number: u32) -> Result<&mut Directory, Error> {
        if !self.directories.contains_key(&number) {
            let inode = self.inode(number)?;
            if inode.kind != Kind::Directory {
                return Err(Error::NotDirectory);
            }
            let mut directory = Directory::default();
            if inode.is_linked {
                for block in 0..inode.size.div_ceil(BLOCK as u64) as u32 {
                    directory.read(block, &self.entries(number, block)?);
                    if !self.platform.has_room() {
                        return Err(Error::NoMemory);
                    }
                }
            }
            self.directories.insert(number, directory);
        }
        self.directories.get_mut(&number).ok_or(Error::NotDirectory)
    }

    /// Of one of its blocks.
    fn entries(&mut self, directory: u32, block: u32) -> Result<Vec<DirectoryEntry>, Error> {
        let key = (directory, 0, u64::from(block));
        if self.load(key)? { format::entries(self.cached(key)?) } else { Ok(Vec::new()) }
    }

    fn must_be_empty(&mut self, directory: u32) -> Result<(), Error> {
        if self.directory(directory)?.names.is_empty() { Ok(()) } else { Err(Error::NotEmpty) }
    }

    fn add_name(&mut self, directory: u32, name: &[u8], inode: u32, kind: Kind) -> Result<(), Error> {
        if !self.platform.has_room() {
            return Err(Error::NoMemory);
        }
        let room = &self.directory(directory)?.room;
        let len = ENTRY + name.len();
        let block = room.iter().position(|r| usize::from(*r) >= len).unwrap_or(room.len()) as u32;
        let mut there = self.entries(directory, block)?;
        there.push(DirectoryEntry { name: name.to_vec(), inode, kind });
        self.put_entries(directory, block, &there)?;
        self.directory(directory)?.names.insert(name.to_vec(), Name { inode, kind, block });
        Ok(())
    }

    fn drop_name(&mut self, directory: u32, name: &[u8]) -> Result<(), Error> {
        let Some(Name { block, .. }) = self.directory(directory)?.names.get(name).copied() else {
            return Err(Error::NotFound);
        };
        let mut there = self.entries(directory, block)?;
        there.retain(|e| e.name != name);
        self.put_entries(directory, block, &there)?;
        self.directory(directory)?.names.remove(name);
        Ok(())
    }

    fn put_entries(&mut self, directory: u32, block: u32, all: &[DirectoryEntry]) -> Result<(), Error> {
        let blocks = u64::from(block) + 1;
        let mut inode = self.inode(directory)?;
        if inode.size < blocks * BLOCK as u64 {
            self.raise(directory, blocks)?;
            inode = Inode { size: blocks * BLOCK as u64, ..self.inode(directory)? };
            self.set_inode(directory, &inode)?;
        }
        let bytes = self.edit((directory, 0, u64::from(block)), false)?;
        if !format::put_entries(bytes, all.iter().map(|e| (&e.name[..], e.inode, e.kind))) {
            return Err(Error::Malformed { what: "entries that do not fit their block" });
        }
        self.directory(directory)?.set_room(block, all);
        Ok(())
    }
}

impl Directory {
    fn read(&mut self, block: u32, entries: &[DirectoryEntry]) {
        for e in entries {
            self.names.insert(e.name.clone(), Name { inode: e.inode, kind: e.kind, block });
        }
        self.set_room(block, entries);
    }

    fn set_room(&mut self, block: u32, entries: &[DirectoryEntry]) {
        let used: usize = entries.iter().map(|e| ENTRY + e.name.len()).sum();
        let block = block as usize;
        if self.room.len() <= block {
            self.room.resize(block + 1, BLOCK as u16);
        }
        self.room[block] = (BLOCK - used) as u16;
    }
}

/// Trees of blocks.
impl<P: Platform> Volume<P> {
    /// Where the last version that was written of a block is.
    fn pointer(&mut self, (number, level, index): Key) -> Result<Pointer, Error> {
        let inode = self.inode(number)?;
        if level >= inode.height {
            let is_top = level == inode.height && index == 0;
            return Ok(if is_top { inode.top } else { Pointer::default() });
        }
        let parent = (number, level + 1, index / FANOUT);
        if self.load(parent)? { Ok(Pointer::at(self.cached(parent)?, index)) } else { Ok(Pointer::default()) }
    }

    fn set_pointer(&mut self, (number, level, index): Key, to: &Pointer) -> Result<(), Error> {
        let mut inode = self.inode(number)?;
        if level < inode.height {
            to.put(self.edit((number, level + 1, index / FANOUT), false)?, index);
            return Ok(());
        }
        inode.top = *to;
        self.set_inode(number, &inode)
    }

    /// Makes room for so many blocks of contents.
    fn raise(&mut self, number: u32, blocks: u64) -> Result<(), Error> {
        let mut inode = self.inode(number)?;
        if reach(inode.height) >= blocks {
            return Ok(());
        }
        while reach(inode.height) < blocks {
            let top = inode.top;
            if !top.is_hole() {
                top.put(self.edit((number, inode.height + 1, 0), true)?, 0);
            }
            inode.top = Pointer::default();
            inode.height += 1;
            self.set_inode(number, &inode)?;
        }
        Ok(())
    }

    /// Gives up the blocks of contents from the `first` on.
    fn cut_off(&mut self, number: u32, first: u64) -> Result<(), Error> {
        self.is_changed = true;
        let mut inode = self.inode(number)?;
        match self.cut((number, inode.height, 0), first) {
            Ok(true) => {
                self.places.free(inode.top.block);
                (inode.top, inode.height) = (Pointer::default(), 0);
                inode.size = 0;
                self.set_inode(number, &inode)?;
            }
            Ok(false) => {
                let size = inode.size.min(first * BLOCK as u64);
                inode = Inode { size, ..self.inode(number)? };
                self.set_inode(number, &inode)?;
            }
            // Places may have been given up that pointers still lead to.
            Err(e) => {
                self.has_failed = true;
                return Err(e);
            }
        }
        // Blocks that no pointer leads to yet.
        for level in 0..=format::MAX_HEIGHT {
            let from = (number, level, first.div_ceil(reach(level)));
            let keys: Vec<Key> =
                self.cache.range(from..=(number, level, u64::MAX)).map(|(key, _)| *key).collect();
            keys.into_iter().for_each(|key| self.forget(key));
        }
        Ok(())
    }

    /// Gives up what is below a block, as far as it is beyond `first`; `true`: the block itself is to go too.
    fn cut(&mut self, key: Key, first: u64) -> Result<bool, Error> {
        let (number, level, index) = key;
        let is_whole = index * reach(level) >= first;
        if level > 0 {
            for child in index * FANOUT..(index + 1) * FANOUT {
                let below = (number, level - 1, child);
                if (child + 1) * reach(level - 1) <= first {
                    continue;
                }
                let pointer = self.pointer(below)?;
                if pointer.is_hole() && !self.cache.contains_key(&below) {
                    continue;
                }
                if self.cut(below, first)? && !pointer.is_hole() {
                    self.places.free(pointer.block);
                    if !is_whole {
                        Pointer::default().put(self.edit(key, false)?, child);
                    }
                }
            }
        }
        if is_whole {
            self.forget(key);
        }
        Ok(is_whole)
    }

    /// Writes what is dirty to free places: contents first, then what points to it, inodes last.
    fn write_out(&mut self) -> Result<(), Error> {
        loop {
            let first = self.dirty.range((TOP, 0, 0)..).next().or_else(|| self.dirty.iter().next());
            let Some((number, level, _)) = first.copied() else { return Ok(()) };
            let from = *first.unwrap_or(&(0, 0, 0));
            let keys: Vec<Key> =
                self.dirty.range(from..=(number, level, u64::MAX)).take(RUN).copied().collect();
            self.write_run(&keys)?;
        }
    }

    fn write_run(&mut self, keys: &[Key]) -> Result<(), Error> {
        // Parents are loaded before anything is written, so that no pointer is without a place to stand.
        let mut old = Vec::new();
        for key in keys {
            old.push(self.pointer(*key)?);
        }
        let mut new = Vec::new();
        self.run.clear();
        let mut outcome = Ok(());
        for key in keys {
            match self.seal_block(*key) {
                Ok(pointer) => new.push(pointer),
                Err(e) => {
                    outcome = Err(e);
                    break;
                }
            }
        }
        let mut written = 0;
        while outcome.is_ok() && written < new.len() {
            let from = new[written].block;
            let len =
                (written..new.len()).take_while(|i| new[*i].block == from + (*i - written) as u32).count();
            let bytes = &self.run[written * BLOCK..(written + len) * BLOCK];
            match self.platform.write(HostFile::Blocks, u64::from(from) * BLOCK as u64, bytes) {
                Ok(()) => written += len,
                Err(e) => outcome = Err(storing(HostFile::Blocks, e)),
            }
        }
        for (i, pointer) in new.iter().enumerate() {
            if i >= written {
                self.places.free(pointer.block);
                continue;
            }
            self.set_pointer(keys[i], pointer)?;
            self.dirty.remove(&keys[i]);
            if !old[i].is_hole() {
                self.places.free(old[i].block);
            }
        }
        outcome
    }

    /// Encrypts a block to the end of the run, for a free place.
    fn seal_block(&mut self, key: Key) -> Result<Pointer, Error> {
        if self.session.used == MOST_PER_KEY {
            self.session = Session::new(&mut self.platform)?;
        }
        let block = match self.places.allocate() {
            Some(block) => block,
            None => {
                self.grow(GROWTH).or_else(|_| self.grow(1))?;
                self.places.allocate().ok_or(Error::NoSpace)?
            }
        };
        let mut pointer =
            Pointer { block, counter: self.session.used, key: *self.session.key, tag: [0; TAG] };
        self.session.used += 1;
        let at = self.run.len();
        let plain = self.cache.get(&key).ok_or(Error::NotFound)?;
        self.run.extend_from_slice(&plain.bytes[..]);
        let (cipher, bytes) = (&self.session.cipher, &mut self.run[at..]);
        let encrypt = || cipher.encrypt_inout_detached(&Nonce::from(pointer.nonce()), &[], bytes.into());
        pointer.tag = self.platform.with_vectors(encrypt).map_err(|_| Error::TooLarge)?.into();
        Ok(pointer)
    }

    fn read_block(&mut self, pointer: &Pointer) -> Result<Box<Bytes>, Error> {
        let at = u64::from(pointer.block) * BLOCK as u64;
        let altered = Error::Altered { file: HostFile::Blocks, at };
        let mut bytes = self.fresh()?;
        let n =
            self.platform.read(HostFile::Blocks, at, &mut bytes[..]).map_err(reading(HostFile::Blocks))?;
        if n != BLOCK {
            return Err(altered);
        }
        if self.reader.as_ref().is_none_or(|(key, _)| *key != pointer.key) {
            self.reader = Some((pointer.key, Aes128Gcm::new(&pointer.key.into())));
        }
        let Some((_, cipher)) = &self.reader else { return Err(altered) };
        let (nonce, tag) = (Nonce::from(pointer.nonce()), Tag::from(pointer.tag));
        let decrypt = || cipher.decrypt_inout_detached(&nonce, &[], bytes.as_mut_slice().into(), &tag);
        self.platform.with_vectors(decrypt).map_err(|_| altered)?;
        Ok(bytes)
    }

    /// Gets a block into the cache; `false`: there is none.
    fn load(&mut self, key: Key) -> Result<bool, Error> {
        if let Some(cached) = self.cache.get_mut(&key) {
            cached.was_used = true;
            return Ok(true);
        }
        let pointer = self.pointer(key)?;
        if pointer.is_hole() {
            return Ok(false);
        }
        let bytes = self.read_block(&pointer)?;
        self.cache.insert(key, Cached { bytes, was_used: true });
        Ok(true)
    }

    /// A block that has just been loaded.
    fn cached(&self, key: Key) -> Result<&Bytes, Error> {
        self.cache.get(&key).map(|c| &*c.bytes).ok_or(Error::NotFound)
    }

    /// A block to be changed; where all of it will be, what was there need not be read.
    fn edit(&mut self, key: Key, is_whole: bool) -> Result<&mut Bytes, Error> {
        self.is_changed = true;
        let is_there = self.cache.contains_key(&key) || !is_whole && self.load(key)?;
        if !is_there {
            let bytes = self.fresh()?;
            self.cache.insert(key, Cached { bytes, was_used: true });
        }
        self.dirty.insert(key);
        self.cache.get_mut(&key).map(|c| &mut *c.bytes).ok_or(Error::NotFound)
    }

    fn forget(&mut self, key: Key) {
        self.cache.remove(&key);
        self.dirty.remove(&key);
    }

    /// Memory for a block, of the cache's share.
    fn fresh(&mut self) -> Result<Box<Bytes>, Error> {
        while (self.cache.len() >= self.capacity || !self.platform.has_room()) && self.evict() {}
        let mut bytes = Vec::new();
        if !self.platform.has_room() || bytes.try_reserve_exact(BLOCK).is_err() {
            return Err(Error::NoMemory);
        }
        bytes.resize(BLOCK, 0);
        bytes.into_boxed_slice().try_into().map_err(|_| Error::NoMemory)
    }

    /// Gives up a block that was not used for long and is not dirty.
    fn evict(&mut self) -> bool {
        // Twice around: the first time may only find what was used.
        for _ in 0..2 * self.cache.len() + 2 {
            let next = self.cache.range_mut(self.hand..).next();
            let Some((key, cached)) = next else {
                self.hand = (0, 0, 0);
                continue;
            };
            let key = *key;
            self.hand = (key.0, key.1, key.2.saturating_add(1));
            if !core::mem::take(&mut cached.was_used) && !self.dirty.contains(&key) {
                self.cache.remove(&key);
                return true;
            }
        }
        false
    }

    /// Makes sure that there are places for what is dirty, `more` blocks and what must be written along with them.
    fn ensure_places(&mut self, more: u32, margin: u32) -> Result<(), Error> {
        if self.dirty.len() >= self.capacity / 2 {
            self.write_out()?;
        }
        for is_last in [false, true] {
            let wanted = self.dirty.len() as u32 * 2 + more + margin;
            let Some(missing) = wanted.checked_sub(self.places.free).filter(|m| *m != 0) else {
                return Ok(());
            };
            match self.grow(missing.max(GROWTH)).or_else(|_| self.grow(missing)) {
                // Places that the last root needs are free after the next one.
                Err(Error::NoSpace) if !is_last && self.is_changed && self.generation != 0 => {
                    self.commit()?
                }
                outcome => return outcome,
            }
        }
        Ok(())
    }

    fn grow(&mut self, more: u32) -> Result<(), Error> {
        let total = self.places.total.max(1).checked_add(more).ok_or(Error::NoSpace)?;
        let len = u64::from(total) * BLOCK as u64;
        self.platform.reserve(HostFile::Blocks, len).map_err(|e| storing(HostFile::Blocks, e))?;
        self.places.grow(total)
    }
}

impl Session {
    fn new(platform: &mut impl Platform) -> Result<Self, Error> {
        let mut key = Zeroizing::new([0; 16]);
        if !platform.random(&mut *key) {
            return Err(Error::NoRandom);
        }
        let cipher = platform.with_vectors(|| Aes128Gcm::new(&(*key).into()));
        Ok(Self { key, cipher, used: 0 })
    }
}

/// The block that a byte of a file is in, and where in it.
fn split(at: u64) -> (u64, usize) {
    (at / BLOCK as u64, (at % BLOCK as u64) as usize)
}

fn storing(file: HostFile, errno: i32) -> Error {
    match FULL.contains(&errno) {
        true => Error::NoSpace,
        false => Error::Host { file, what: "write", errno },
    }
}

pub(crate) fn reading(file: HostFile) -> impl Fn(i32) -> Error {
    move |errno| Error::Host { file, what: "read", errno }
}
