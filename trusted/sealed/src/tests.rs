//! A volume on a host of memory that fails, forgets, lies and dies.

extern crate std;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;
use std::{cell::RefCell, format, vec};

use crate::{BLOCK, Error, HostFile, KeyError, KeyRequest, Kind, Platform, Policy, Versions, Volume};

/// A disk: what is durable, and what was written since.
#[derive(Clone, Default)]
struct Disk {
    durable: BTreeMap<HostFile, Vec<u8>>,
    written: Vec<(HostFile, u64, Vec<u8>)>,
    /// With what was written: as processes see it.
    seen: BTreeMap<HostFile, Vec<u8>>,
    /// Bytes there is room for, if that is limited.
    room: Option<u64>,
    /// Operations until the host dies.
    left: Option<u32>,
}

#[derive(Clone, Default)]
struct Host {
    disk: Rc<RefCell<Disk>>,
    random: Rc<RefCell<u64>>,
    isv_svn: u16,
    identity: u8,
}

const DEAD: i32 = 5;

impl Disk {
    fn write(&mut self, file: HostFile, at: u64, from: &[u8]) {
        put(self.seen.entry(file).or_default(), at, from);
        self.written.push((file, at, from.to_vec()));
    }

    fn step(&mut self) -> Result<(), i32> {
        match &mut self.left {
            Some(0) => Err(DEAD),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The power fails: of what was not made durable, any part may have been.
    fn lose(&mut self, random: &mut u64) {
        for (file, at, bytes) in core::mem::take(&mut self.written) {
            if next(random).is_multiple_of(2) {
                put(self.durable.entry(file).or_default(), at, &bytes);
            }
        }
        self.seen = self.durable.clone();
        self.left = None;
    }
}

fn put(to: &mut Vec<u8>, at: u64, from: &[u8]) {
    let end = at as usize + from.len();
    if to.len() < end {
        to.resize(end, 0);
    }
    to[at as usize..end].copy_from_slice(from);
}

/// xorshift64*.
fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
}

impl Host {
    fn new(seed: u64) -> Self {
        Self { random: Rc::new(RefCell::new(seed | 1)), ..Self::default() }
    }

    fn open(&self) -> Result<Volume<Self>, Error> {
        Volume::open(self.clone(), Policy::Signer, b"/data", 64)
    }

    fn lose(&self) {
        self.disk.borrow_mut().lose(&mut self.random.borrow_mut());
    }
}

impl Platform for Host {
    fn read(&mut self, file: HostFile, at: u64, to: &mut [u8]) -> Result<usize, i32> {
        let disk = self.disk.borrow();
        let from = disk.seen.get(&file).and_then(|b| b.get(at as usize..)).unwrap_or_default();
        let n = from.len().min(to.len());
        to[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }

    fn write(&mut self, file: HostFile, at: u64, from: &[u8]) -> Result<(), i32> {
        let mut disk = self.disk.borrow_mut();
        disk.step()?;
        disk.write(file, at, from);
        Ok(())
    }

    fn sync(&mut self, file: HostFile) -> Result<(), i32> {
        let mut disk = self.disk.borrow_mut();
        disk.step()?;
        let (done, rest) = core::mem::take(&mut disk.written).into_iter().partition(|w| w.0 == file);
        disk.written = rest;
        let done: Vec<_> = done;
        done.iter().for_each(|(_, at, bytes)| put(disk.durable.entry(file).or_default(), *at, bytes));
        Ok(())
    }

    fn reserve(&mut self, file: HostFile, len: u64) -> Result<(), i32> {
        let mut disk = self.disk.borrow_mut();
        if disk.room.is_some_and(|room| len > room) {
            return Err(28);
        }
        disk.step()?;
        if disk.seen.get(&file).is_none_or(|b| (b.len() as u64) < len) {
            disk.write(file, len - 1, &[0]);
        }
        Ok(())
    }

    fn random(&mut self, to: &mut [u8]) -> bool {
        to.fill_with(|| next(&mut self.random.borrow_mut()) as u8);
        true
    }

    fn versions(&mut self) -> Versions {
        Versions { isv_svn: self.isv_svn, cpu_svn: [0; 16] }
    }

    fn seal_key(&mut self, request: &KeyRequest) -> Result<[u8; 16], KeyError> {
        let mut key = [self.identity; 16];
        for (i, b) in request.key_id.iter().chain(&request.versions.isv_svn.to_le_bytes()).enumerate() {
            key[i % 16] = key[i % 16].rotate_left(3) ^ b ^ request.policy as u8;
        }
        Ok(key)
    }

    fn has_room(&self) -> bool {
        true
    }
}

fn path(text: &str) -> Vec<Vec<u8>> {
    text.split('/').filter(|n| !n.is_empty()).map(|n| n.as_bytes().to_vec()).collect()
}

fn write(v: &mut Volume<Host>, name: &str, at: u64, bytes: &[u8]) -> Result<(), Error> {
    let inode = v.create(&path(name), Kind::File, 0o644, false, 7)?;
    match v.write(inode, at, bytes, 8)? {
        n if n == bytes.len() => Ok(()),
        _ => Err(Error::NoSpace),
    }
}

fn read(v: &mut Volume<Host>, name: &str) -> Result<Vec<u8>, Error> {
    let inode = v.find(&path(name))?;
    let mut bytes = vec![0xaa; v.status(inode)?.size as usize];
    let mut done = 0;
    while done < bytes.len() {
        match v.read(inode, done as u64, &mut bytes[done..])? {
            0 => panic!("{name} ends at {done}"),
            n => done += n,
        }
    }
    Ok(bytes)
}

/// Everything there is: files by path, directories with a slash at the end.
fn contents(v: &mut Volume<Host>) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    fn below(v: &mut Volume<Host>, at: &str, all: &mut BTreeMap<String, Vec<u8>>) -> Result<(), Error> {
        let inode = v.find(&path(at))?;
        for entry in v.list(inode)? {
            let name = format!("{at}{}", String::from_utf8(entry.name).unwrap());
            if entry.kind == Kind::Directory {
                let name = format!("{name}/");
                all.insert(name.clone(), Vec::new());
                below(v, &name, all)?;
            } else {
                let bytes = read(v, &name)?;
                all.insert(name, bytes);
            }
        }
        Ok(())
    }
    let mut all = BTreeMap::new();
    below(v, "", &mut all)?;
    Ok(all)
}

#[test]
fn files_come_back() {
    let host = Host::new(1);
    let mut v = host.open().unwrap();
    let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7 + i / 251) as u8).collect();
    v.create(&path("a"), Kind::Directory, 0o755, true, 1).unwrap();
    write(&mut v, "a/large", 0, &data).unwrap();
    write(&mut v, "small", 5, b"x").unwrap();
    v.commit().unwrap();
    let state = v.state();
    assert_eq!(host.open().unwrap().state(), state);
    let mut v = host.open().unwrap();
    assert!(read(&mut v, "a/large").unwrap() == data);
    assert_eq!(read(&mut v, "small").unwrap(), b"\0\0\0\0\0x");
    let inode = v.find(&path("a/large")).unwrap();
    v.resize(inode, 1_000_001, 9).unwrap();
    v.resize(inode, 2_000_000, 9).unwrap();
    v.commit().unwrap();
    let mut v = host.open().unwrap();
    let back = read(&mut v, "a/large").unwrap();
    assert!(back[..1_000_001] == data[..1_000_001] && back[1_000_001..].iter().all(|b| *b == 0));
    let used = v.state().generation;
    v.commit().unwrap();
    assert_eq!(v.state().generation, used, "nothing to be done");
    // Sparse, and far beyond what the height was.
    write(&mut v, "sparse", 500_000_000_000, b"end").unwrap();
    assert_eq!(v.create(&path("sparse"), Kind::File, 0, true, 0), Err(Error::Exists));
    v.commit().unwrap();
    let mut v = host.open().unwrap();
    let inode = v.find(&path("sparse")).unwrap();
    let mut end = [1; 5];
    assert_eq!(v.read(inode, 499_999_999_999, &mut end), Ok(4));
    assert_eq!(&end, b"\0end\x01");
    assert_eq!(v.write(inode, crate::MAX_SIZE, b"x", 0), Err(Error::TooLarge));
}

#[test]
fn names_are_as_in_linux() {
    let mut v = Host::new(2).open().unwrap();
    let mut make = |name: &str, kind| v.create(&path(name), kind, 0o600, true, 0);
    make("d", Kind::Directory).unwrap();
    make("d/e", Kind::Directory).unwrap();
    make("f", Kind::File).unwrap();
    assert_eq!(make("f/x", Kind::File), Err(Error::NotDirectory));
    assert_eq!(make("g/x", Kind::File), Err(Error::NotFound));
    assert_eq!(make("", Kind::File), Err(Error::Exists));
    assert_eq!(make(&"n".repeat(256), Kind::File), Err(Error::BadName));
    make(&"n".repeat(255), Kind::File).unwrap();
    assert_eq!(v.remove(&path("d"), true), Err(Error::NotEmpty));
    assert_eq!(v.remove(&path("d"), false), Err(Error::IsDirectory));
    assert_eq!(v.remove(&path("f"), true), Err(Error::NotDirectory));
    assert_eq!(v.rename(&path("d"), &path("d/e/x"), true), Err(Error::Invalid));
    assert_eq!(v.rename(&path("d/e"), &path("f"), true), Err(Error::NotDirectory));
    assert_eq!(v.rename(&path("f"), &path("d/e"), true), Err(Error::IsDirectory));
    assert_eq!(v.rename(&path("f"), &path("d"), false), Err(Error::Exists));
    v.rename(&path("f"), &path("d/e/f"), true).unwrap();
    assert_eq!(v.find(&path("f")), Err(Error::NotFound));
    // What is open stays until it is closed.
    write(&mut v, "open", 0, &[3; 100_000]).unwrap();
    let inode = v.find(&path("open")).unwrap();
    v.hold(inode);
    v.remove(&path("open"), false).unwrap();
    let mut bytes = [0; 10];
    assert_eq!(v.read(inode, 90_000, &mut bytes), Ok(10));
    assert_eq!(bytes, [3; 10]);
    v.release(inode).unwrap();
    assert!(v.read(inode, 0, &mut bytes).is_err());
    let mut many = || -> Result<(), Error> {
        for i in 0..3000 {
            write(&mut v, &format!("d/file {i}"), 0, format!("{i}").as_bytes())?;
        }
        v.commit()?;
        for i in (0..3000).step_by(2) {
            v.remove(&path(&format!("d/file {i}")), false)?;
        }
        v.commit()
    };
    many().unwrap();
    let host = v.platform().clone();
    let mut v = host.open().unwrap();
    let directory = v.find(&path("d")).unwrap();
    assert_eq!(v.list(directory).unwrap().len(), 1501);
    assert_eq!(read(&mut v, "d/file 2999").unwrap(), b"2999");
}

/// Random operations, on a volume and on a model, until the host dies in the middle of one.
#[test]
fn the_last_commit_survives_any_death() {
    for seed in 1..=40_u64 {
        let host = Host::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut random = seed.wrapping_mul(0xd129_0d3b_3a7c_55a1) | 1;
        let mut kept = BTreeMap::new();
        for _ in 0..12 {
            let mut v = host.open().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            let found = contents(&mut v).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert!(found == kept, "seed {seed}: {:?} for {:?}", found.keys(), kept.keys());
            let mut model = kept.clone();
            host.disk.borrow_mut().left = Some(next(&mut random) as u32 % 60);
            // What a commit that was cut off would have made.
            let mut attempted = None;
            for _ in 0..200 {
                match step(&mut v, &mut model, &mut random) {
                    Ok(false) => {}
                    Ok(true) => kept = model.clone(),
                    Err(_) => {
                        attempted = Some(model.clone());
                        break;
                    }
                }
            }
            drop(v);
            host.lose();
            if let Some(attempted) = attempted
                && let Ok(mut v) = host.open()
                && contents(&mut v).as_ref() == Ok(&attempted)
            {
                kept = attempted;
            }
        }
    }
}

/// One operation on both; `true`: it was a commit.
fn step(
    v: &mut Volume<Host>,
    model: &mut BTreeMap<String, Vec<u8>>,
    random: &mut u64,
) -> Result<bool, Error> {
    let name = format!("f{}", next(random) % 12);
    let (size, byte) = (next(random) % 60_000, next(random) as u8);
    match next(random) % 8 {
        0..=2 => {
            let at = next(random) % 900_000;
            let bytes = vec![byte; size as usize];
            write(v, &name, at, &bytes)?;
            put(model.entry(name).or_default(), at, &bytes);
        }
        3 => {
            if let Ok(inode) = v.find(&path(&name)) {
                v.resize(inode, size * 10, 1)?;
                model.entry(name).or_default().resize(size as usize * 10, 0);
            }
        }
        4 => match v.remove(&path(&name), false) {
            Err(Error::NotFound) => {}
            other => {
                other?;
                model.remove(&name);
            }
        },
        5 => {
            let to = format!("f{}", next(random) % 12);
            match v.rename(&path(&name), &path(&to), true) {
                Err(Error::NotFound) => {}
                other => {
                    other?;
                    let bytes = model.remove(&name).unwrap();
                    model.insert(to, bytes);
                }
            }
        }
        6 => {
            if let Some(expected) = model.get(&name) {
                assert!(&read(v, &name)? == expected);
            }
        }
        _ => {
            v.commit()?;
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn a_full_disk_loses_nothing_durable() {
    let host = Host::new(3);
    host.disk.borrow_mut().room = Some(3 << 20);
    let mut v = host.open().unwrap();
    write(&mut v, "kept", 0, &[1; 300_000]).unwrap();
    v.commit().unwrap();
    let mut written = 0;
    let full = loop {
        match write(&mut v, "large", written, &[2; 10_000]) {
            Ok(()) => written += 10_000,
            Err(e) => break e,
        }
    };
    assert_eq!(full, Error::NoSpace);
    assert!(written > 1_500_000, "only {written} of 3 MiB were usable");
    v.commit().unwrap();
    // Overwriting what is there still works, if only so much at a time.
    write(&mut v, "kept", 1000, &[9; 20_000]).unwrap();
    v.commit().unwrap();
    // As does removing; and then there is room again.
    v.remove(&path("large"), false).unwrap();
    v.commit().unwrap();
    write(&mut v, "again", 0, &vec![4; 1_000_000]).unwrap();
    v.commit().unwrap();
    let mut v = host.open().unwrap();
    assert_eq!(read(&mut v, "kept").unwrap()[20_999..21_001], [9, 1]);
    assert_eq!(read(&mut v, "again").unwrap().len(), 1_000_000);
}

#[test]
fn a_host_that_fails_to_store_is_not_asked_again() {
    let host = Host::new(4);
    let mut v = host.open().unwrap();
    write(&mut v, "kept", 0, b"durable").unwrap();
    v.commit().unwrap();
    write(&mut v, "kept", 0, b"is lost").unwrap();
    // Fails in the first write, then in the sync after it.
    host.disk.borrow_mut().left = Some(0);
    assert!(matches!(v.commit(), Err(Error::Host { what: "write", .. })));
    host.disk.borrow_mut().left = Some(4);
    assert!(matches!(v.commit(), Err(Error::Host { .. })));
    host.disk.borrow_mut().left = None;
    assert_eq!(v.commit(), Err(Error::Failed));
    assert_eq!(write(&mut v, "kept", 0, b"x"), Err(Error::Failed));
    host.lose();
    assert_eq!(read(&mut host.open().unwrap(), "kept").unwrap(), b"durable");
}

/// A volume with two commits, its files after each.
fn two_versions() -> (Host, [BTreeMap<HostFile, Vec<u8>>; 2]) {
    let host = Host::new(5);
    let mut v = host.open().unwrap();
    write(&mut v, "file", 0, &[1; 50_000]).unwrap();
    v.commit().unwrap();
    let files = |h: &Host| -> BTreeMap<_, _> { h.disk.borrow().seen.clone() };
    let first = files(&host);
    write(&mut v, "file", 0, &[2; 50_000]).unwrap();
    v.commit().unwrap();
    let second = files(&host);
    (host, [first, second])
}

fn with(host: &Host, files: BTreeMap<HostFile, Vec<u8>>) -> Host {
    let disk = Disk { seen: files.clone(), durable: files, ..Disk::default() };
    Host { disk: Rc::new(RefCell::new(disk)), ..host.clone() }
}

#[test]
fn older_files_are_noticed() {
    let (host, [old, new]) = two_versions();
    for file in [HostFile::Root, HostFile::Blocks] {
        let mut mixed = new.clone();
        mixed.insert(file, old[&file].clone());
        let error = with(&host, mixed.clone()).open().err();
        match file {
            HostFile::Root => assert_eq!(error, Some(Error::RolledBack { file })),
            // One commit back: the witness may be late, the blocks are not.
            HostFile::Blocks => assert!(matches!(error, Some(Error::Altered { .. })), "{error:?}"),
        }
        mixed.insert(file, Vec::new());
        assert_eq!(with(&host, mixed).open().err(), Some(Error::Missing { file }));
    }
    // All of it: only who remembers the state can tell.
    let state = |files: &BTreeMap<_, _>| with(&host, files.clone()).open().unwrap().state();
    assert_eq!(state(&old).volume, state(&new).volume);
    assert!(state(&old).generation < state(&new).generation);
}

#[test]
fn no_flipped_bit_is_believed() {
    let (host, [_, files]) = two_versions();
    let good = contents(&mut with(&host, files.clone()).open().unwrap()).unwrap();
    let mut noticed = 0;
    for (file, bytes) in &files {
        // Every byte of the roots, one of each 509 of the blocks.
        let stride = if *file == HostFile::Root { 1 } else { 509 };
        for at in (0..bytes.len()).step_by(stride) {
            let mut damaged = files.clone();
            damaged.get_mut(file).unwrap()[at] ^= 1 << (at % 8);
            match with(&host, damaged).open().and_then(|mut v| contents(&mut v)) {
                Ok(found) => assert!(found == good, "byte {at} of {file}"),
                Err(_) => noticed += 1,
            }
        }
    }
    // The new root, its witness, and the blocks in use: at least 13 of contents.
    assert!(noticed > 200 + 13 * BLOCK / 509 - 13, "{noticed}");
}

#[test]
fn keys_follow_policy_version_identity_and_path() {
    let (host, [_, files]) = two_versions();
    let open = |host: Host, policy, path: &[u8]| Volume::open(host, policy, path, 64).map(drop);
    let at = |change: &dyn Fn(&mut Host)| {
        let mut host = with(&host, files.clone());
        change(&mut host);
        host
    };
    assert_eq!(open(at(&|_| ()), Policy::Signer, b"/data"), Ok(()));
    assert_eq!(open(at(&|_| ()), Policy::Signer, b"/other"), Err(Error::NotAuthentic));
    assert_eq!(open(at(&|h| h.identity = 1), Policy::Signer, b"/data"), Err(Error::NotAuthentic));
    let policy = Error::Policy { found: Policy::Signer, wanted: Policy::Image };
    assert_eq!(open(at(&|_| ()), Policy::Image, b"/data"), Err(policy));
    // A newer version opens it, and when it has stored something, the older one does not any more.
    let newer = at(&|h| h.isv_svn = 3);
    let mut v = newer.open().unwrap();
    write(&mut v, "x", 0, b"x").unwrap();
    v.commit().unwrap();
    let older = Host { isv_svn: 2, ..newer.clone() };
    assert_eq!(older.open().err(), Some(Error::FromNewerVersion { sealed: 3, own: 2 }));
}

#[test]
fn nothing_shows() {
    let host = Host::new(6);
    let mut v = host.open().unwrap();
    write(&mut v, "a name to be found", 0, &b"contents to be found".repeat(1000)).unwrap();
    v.commit().unwrap();
    for bytes in host.disk.borrow().durable.values() {
        for needle in [&b"to be found"[..], b"name", b"contents"] {
            assert!(!bytes.windows(needle.len()).any(|w| w == needle));
        }
    }
}
