//! What the sealed file system needs: the host's files by host calls, keys and random numbers by the CPU.

use enclos::abi::{FRAME_SIZE, OPEN_LOCKED, hostcall};
use enclos_sealed::{Error, HostFile, KeyError, KeyRequest, Platform, Policy, Versions};
use sgx_isa::{AttributesFlags, ErrorCode, Keyname, Keypolicy, Keyrequest};

use super::mounts::{self, MAX_HANDLE};
use crate::host::{self, Errno, Frame};
use crate::thread::Thread;

/// The host's two files of a volume, open as long as it is.
pub struct Store {
    root: u32,
    blocks: u32,
    versions: Versions,
}

impl Store {
    /// Opens the files, or makes them, in the directory that the host gave for a mount.
    pub fn open(path: &str) -> Result<Self, Error> {
        let failed = |file| move |e: Errno| Error::Host { file, what: "open", errno: e.0 };
        let directory = mounts::directory_of(path).map_err(failed(HostFile::Root))?;
        let opened = open(directory, HostFile::Root).and_then(|root| {
            let blocks = open(directory, HostFile::Blocks).inspect_err(|_| mounts::close_host(root))?;
            Ok(Self { root, blocks, versions: versions() })
        });
        mounts::close_host(directory);
        opened
    }

    fn handle(&self, file: HostFile) -> u32 {
        match file {
            HostFile::Root => self.root,
            HostFile::Blocks => self.blocks,
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        mounts::close_host(self.root);
        mounts::close_host(self.blocks);
    }
}

fn open(directory: u32, file: HostFile) -> Result<u32, Error> {
    const O_RDWR: u64 = 2;
    const O_CREAT: u64 = 0o100;
    let me = Thread::current();
    Frame::of(me).put(0, file.name().as_bytes());
    let (len, flags) = (file.name().len() as u64, O_RDWR | O_CREAT | 0o600 << 32 | OPEN_LOCKED);
    let answer = host::call_keeping(me, hostcall::FILE_OPEN, u64::from(directory), len, flags);
    let handle = host::checked(answer, MAX_HANDLE);
    handle.map(|h| h as u32).map_err(|e| Error::Host { file, what: "open", errno: e.0 })
}

impl Platform for Store {
    fn read(&mut self, file: HostFile, at: u64, to: &mut [u8]) -> Result<usize, i32> {
        let mut done = 0;
        while done < to.len() {
            match mounts::read_host(self.handle(file), at + done as u64, &mut to[done..]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) => return Err(e.0),
            }
        }
        Ok(done)
    }

    fn write(&mut self, file: HostFile, at: u64, from: &[u8]) -> Result<(), i32> {
        let mut done = 0;
        while done < from.len() {
            let end = from.len().min(done + FRAME_SIZE as usize);
            match mounts::write_host(self.handle(file), at + done as u64, &from[done..end]) {
                Ok(0) => return Err(Errno::IO.0),
                Ok(n) => done += n,
                Err(e) => return Err(e.0),
            }
        }
        Ok(())
    }

    fn sync(&mut self, file: HostFile) -> Result<(), i32> {
        mounts::sync_host(self.handle(file), true).map(drop).map_err(|e| e.0)
    }

    fn reserve(&mut self, file: HostFile, len: u64) -> Result<(), i32> {
        let handle = u64::from(self.handle(file));
        let answer = host::call_keeping(Thread::current(), hostcall::FILE_RESERVE, handle, len, 0);
        host::checked(answer, 0).map(drop).map_err(|e| e.0)
    }

    fn random(&mut self, to: &mut [u8]) -> bool {
        crate::cpu::fill_random(to)
    }

    fn versions(&mut self) -> Versions {
        self.versions
    }

    fn seal_key(&mut self, request: &KeyRequest) -> Result<[u8; 16], KeyError> {
        let policy = match request.policy {
            Policy::Image => Keypolicy::MRENCLAVE,
            Policy::Signer => Keypolicy::MRSIGNER,
        };
        let request = Keyrequest {
            keyname: Keyname::Seal as u16,
            keypolicy: policy,
            isvsvn: request.versions.isv_svn,
            cpusvn: request.versions.cpu_svn,
            // As for blobs of the enclave library: a debug and a production enclave do not share keys.
            attributemask: [(AttributesFlags::INIT | AttributesFlags::DEBUG).bits(), 0],
            keyid: request.key_id,
            ..Keyrequest::default()
        };
        let mut aligned = Aligned([0; 512]);
        aligned.0[..Keyrequest::UNPADDED_SIZE].copy_from_slice(request.as_ref());
        let mut key = Key([0; 16]);
        // SAFETY: aligned as EGETKEY wants it, and inside.
        let code = unsafe { crate::entry::enclos_egetkey(aligned.0.as_ptr(), key.0.as_mut_ptr()) };
        let is = |e: ErrorCode| code == u64::from(e as u32);
        match code {
            0 => Ok(key.0),
            _ if is(ErrorCode::InvalidIsvsvn) => Err(KeyError::NewerEnclave),
            _ if is(ErrorCode::InvalidCpusvn) => Err(KeyError::NewerPlatform),
            code => Err(KeyError::Other(code)),
        }
    }

    fn has_room(&self) -> bool {
        crate::heap::has_room()
    }

    fn with_vectors<R>(&self, f: impl FnOnce() -> R) -> R {
        crate::cpu::with_vectors(f)
    }
}

#[repr(C, align(512))]
struct Aligned([u8; 512]);

#[repr(C, align(16))]
struct Key([u8; 16]);

/// Those of a report of this enclave for nobody.
fn versions() -> Versions {
    let report = crate::cpu::own_report();
    report.map_or_else(Versions::default, |r| Versions { isv_svn: r.isvsvn, cpu_svn: r.cpusvn })
}
