//! Sealed files: what stands in blocks, and volumes whose files a host alters.
#![no_main]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use enclos_sealed::format::{
    self, BLOCK, INODE, Inode, POINTER, Pointer, ROOT_BODY, ROOT_HEADER, RootBody, RootHeader,
};
use enclos_sealed::{HostFile, KeyError, KeyRequest, Kind, Platform, Policy, Versions, Volume};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((mode, rest)) = bytes.split_first() else { return };
    match mode % 3 {
        0 => parse(rest),
        1 => alter(rest),
        _ => operate(rest),
    }
});

/// The start of the input, filled up with zeros.
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut b = [0; N];
    let n = bytes.len().min(N);
    b[..n].copy_from_slice(&bytes[..n]);
    b
}

fn parse(bytes: &[u8]) {
    let encoded = first::<ROOT_HEADER>(bytes);
    if let Ok(header) = RootHeader::from_bytes(&encoded) {
        assert_eq!(header.to_bytes(), encoded);
    }
    if let Ok(body) = RootBody::from_bytes(&first::<ROOT_BODY>(bytes)) {
        assert_eq!(RootBody::from_bytes(&body.to_bytes()), Ok(body));
    }
    if let Ok(Some(inode)) = Inode::from_bytes(&first::<INODE>(bytes)) {
        assert_eq!(Inode::from_bytes(&inode.to_bytes()), Ok(Some(inode)));
    }
    let encoded = first::<POINTER>(bytes);
    assert_eq!(Pointer::from_bytes(&encoded).to_bytes(), encoded);
    let block = first::<BLOCK>(bytes);
    if let Ok(entries) = format::entries(&block) {
        let mut again = [0; BLOCK];
        let each = entries.iter().map(|e| (&e.name[..], e.inode, e.kind));
        assert!(format::put_entries(&mut again, each));
        assert_eq!(format::entries(&again), Ok(entries));
    }
}

/// Writes a volume, lets the host change bytes of its files, and reads it again: what was written, or an error.
fn alter(bytes: &[u8]) {
    let host = Host::default();
    let Ok(mut volume) = open(&host) else { panic!("an honest host's volume opens") };
    let written = vec![7; 30_000];
    let inode = volume.create(&[b"file".to_vec()], Kind::File, 0o644, true, 1).expect("there is room");
    volume.write(inode, 0, &written, 1).expect("there is room");
    volume.commit().expect("an honest host stores");
    drop(volume);
    for change in bytes.chunks_exact(4) {
        let file = if change[0] % 2 == 0 { HostFile::Root } else { HostFile::Blocks };
        let mut files = host.0.borrow_mut();
        let contents = files.entry(file).or_default();
        // Any byte of the roots, and of the blocks in use.
        let at = usize::from(u16::from_le_bytes([change[1], change[2]])) % contents.len().max(1);
        match change[0] / 2 % 3 {
            0 => contents[at] ^= change[3],
            1 => contents.truncate(at.max(1)),
            _ => {
                let from = usize::from(change[3]) * BLOCK % contents.len().max(1);
                let to = at / BLOCK * BLOCK;
                let len = BLOCK.min(contents.len() - from).min(contents.len() - to);
                contents.copy_within(from..from + len, to);
            }
        }
    }
    let Ok(mut volume) = open(&host) else { return };
    let Ok(inode) = volume.find(&[b"file".to_vec()]) else { return };
    let mut read = vec![0; written.len()];
    if let Ok(n) = volume.read(inode, 0, &mut read) {
        assert!(read[..n] == written[..n], "altered contents were believed");
    }
}

/// Any operations, then what is there is there again.
fn operate(bytes: &[u8]) {
    let host = Host::default();
    let mut volume = open(&host).expect("an honest host's volume opens");
    let mut model: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    for op in bytes.chunks_exact(4).take(64) {
        let (name, at, len) = (op[1] % 8, usize::from(op[2]) * 997, usize::from(op[3]) * 131);
        let path = [vec![b'a' + name]];
        match op[0] % 5 {
            0 | 1 => {
                let inode = volume.create(&path, Kind::File, 0o600, false, 0).expect("there is room");
                let written = volume.write(inode, at as u64, &vec![op[3]; len], 0).expect("there is room");
                assert_eq!(written, len);
                let contents = model.entry(name).or_default();
                if len != 0 && contents.len() < at + len {
                    contents.resize(at + len, 0);
                }
                if len != 0 {
                    contents[at..at + len].fill(op[3]);
                }
            }
            2 => {
                if let Ok(inode) = volume.find(&path) {
                    volume.resize(inode, at as u64, 0).expect("there is room");
                    model.entry(name).or_default().resize(at, 0);
                }
            }
            3 => assert_eq!(volume.remove(&path, false).is_ok(), model.remove(&name).is_some()),
            _ => volume.commit().expect("an honest host stores"),
        }
    }
    volume.commit().expect("an honest host stores");
    drop(volume);
    let mut volume = open(&host).expect("what was committed opens");
    for (name, contents) in model {
        let inode = volume.find(&[vec![b'a' + name]]).expect("it was made");
        let mut read = vec![1; contents.len()];
        assert_eq!(volume.read(inode, 0, &mut read), Ok(contents.len()));
        assert!(read == contents);
    }
}

fn open(host: &Host) -> Result<Volume<Host>, enclos_sealed::Error> {
    Volume::open(host.clone(), Policy::Signer, b"/data", 64)
}

#[derive(Clone, Default)]
struct Host(Rc<RefCell<BTreeMap<HostFile, Vec<u8>>>>);

impl Platform for Host {
    fn read(&mut self, file: HostFile, at: u64, to: &mut [u8]) -> Result<usize, i32> {
        let files = self.0.borrow();
        let from = files.get(&file).and_then(|f| f.get(at as usize..)).unwrap_or_default();
        let n = from.len().min(to.len());
        to[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }

    fn write(&mut self, file: HostFile, at: u64, from: &[u8]) -> Result<(), i32> {
        let mut files = self.0.borrow_mut();
        let contents = files.entry(file).or_default();
        let end = at as usize + from.len();
        if contents.len() < end {
            contents.resize(end, 0);
        }
        contents[at as usize..end].copy_from_slice(from);
        Ok(())
    }

    fn sync(&mut self, _: HostFile) -> Result<(), i32> {
        Ok(())
    }

    fn reserve(&mut self, file: HostFile, len: u64) -> Result<(), i32> {
        // As memory: the volume's own growth is what is looked at, not how much of it there is.
        if len > 64 << 20 {
            return Err(28);
        }
        let mut files = self.0.borrow_mut();
        let contents = files.entry(file).or_default();
        if (contents.len() as u64) < len {
            contents.resize(len as usize, 0);
        }
        Ok(())
    }

    fn random(&mut self, to: &mut [u8]) -> bool {
        to.fill(0x5a);
        true
    }

    fn versions(&mut self) -> Versions {
        Versions::default()
    }

    fn seal_key(&mut self, request: &KeyRequest) -> Result<[u8; 16], KeyError> {
        Ok(first(&request.key_id))
    }

    fn has_room(&self) -> bool {
        true
    }
}
