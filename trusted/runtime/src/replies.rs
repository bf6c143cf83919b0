//! What the host answers, judged: every function here takes numbers and bytes that came from it and were copied inside
//! before, and says what they mean or that Linux could not have given them.
//!
//! No state, no unsafe code, and nothing of the rest of the runtime: the fuzz target `host_replies` compiles this file
//! alone.

use alloc::vec::Vec;

use enclos::abi::{AddressHeader, ClockSample, FileStatus, MAX_ADDRESS};
use enclos::manifest::items;

/// A Linux error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// Highest Linux error number.
const MAX_ERRNO: i64 = 4095;

/// An I/O error (EIO): what the host said makes no sense.
const NONSENSE: Errno = Errno(5);

/// An answer as a result that is at most `most`; anything else the host says is an I/O error.
pub fn checked(answer: i64, most: u64) -> Result<u64, Errno> {
    match answer {
        0.. if answer as u64 <= most => Ok(answer as u64),
        _ if (-MAX_ERRNO..0).contains(&answer) => Err(Errno(-answer as i32)),
        _ => Err(NONSENSE),
    }
}

/// The file type in `st_mode` (Linux, inode(7)).
pub mod kind {
    /// The bits that are the type.
    pub const TYPE: u32 = 0o170_000;
    pub const DIRECTORY: u32 = 0o040_000;
    pub const FILE: u32 = 0o100_000;
    pub const DEVICE: u32 = 0o020_000;
}

/// What a file of the host is, of whose status only type and permissions are kept: a regular file or a directory of a
/// size that Linux can have.
///
/// # Errors
/// EACCES for anything else that may lie in a directory (devices, pipes): a program that reads a file must not wait for
/// the host's whim. EIO for a size beyond.
pub fn file_status(said: FileStatus) -> Result<FileStatus, Errno> {
    match said.mode & kind::TYPE {
        kind::FILE | kind::DIRECTORY if said.size <= i64::MAX as u64 => {
            Ok(FileStatus { mode: said.mode & (kind::TYPE | 0o777), reserved: 0, ..said })
        }
        kind::FILE | kind::DIRECTORY => Err(NONSENSE),
        _ => Err(Errno(13)),
    }
}

/// An entry of a directory, as getdents64 tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: Vec<u8>,
    pub inode: u64,
    pub kind: u8,
}

/// Longest name, as in Linux.
pub const MAX_NAME: usize = 255;

/// Adds the entries that stand in `struct linux_dirent64`s (Linux, getdents64(2)): inode, offset, length of the record,
/// kind, name ended by NUL.
///
/// # Errors
/// EIO for records that Linux could not have written.
pub fn directory_entries(mut records: &[u8], to: &mut Vec<Listed>) -> Result<(), Errno> {
    const NAME: usize = 19;
    while !records.is_empty() {
        let head: &[u8; NAME] = records.first_chunk().ok_or(NONSENSE)?;
        let len = usize::from(u16::from_le_bytes([head[16], head[17]]));
        let record = records.get(NAME..len).ok_or(NONSENSE)?;
        let name = record.split(|b| *b == 0).next().unwrap_or_default();
        if name.is_empty() || name.len() > MAX_NAME || name.len() == record.len() || name.contains(&b'/') {
            return Err(NONSENSE);
        }
        let mut inode = [0; 8];
        inode.copy_from_slice(&head[..8]);
        to.push(Listed { name: name.to_vec(), inode: u64::from_le_bytes(inode), kind: head[18] });
        records = &records[len..];
    }
    Ok(())
}

pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;

/// Bytes of a frame that an address takes: its header, then the largest there is.
pub const ADDRESS_BYTES: usize = size_of::<AddressHeader>() + MAX_ADDRESS as usize;

/// What the host says of the address of a socket of this family: the `struct sockaddr`, whose length fits the family
/// and which names it, and the message's flags. An unnamed one is empty.
///
/// # Errors
/// EIO for any other.
pub fn socket_address(said: &[u8; ADDRESS_BYTES], family: u16) -> Result<(&[u8], u32), Errno> {
    let (header, address) = said.split_at(size_of::<AddressHeader>());
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (len, flags) = (word(0), word(4));
    let sound = match family {
        AF_INET => len == 16,
        AF_INET6 => len == 28,
        // An unnamed one has no path, and maybe no family.
        _ => len == 0 || (2..=110).contains(&len),
    };
    let address = address.get(..len as usize).filter(|_| sound).ok_or(NONSENSE)?;
    match address.first_chunk() {
        Some(named) if u16::from_le_bytes(*named) != family => Err(NONSENSE),
        _ => Ok((address, flags)),
    }
}

/// Frequencies of the time-stamp counter that are believed, in Hz.
const PLAUSIBLE_HZ: core::ops::RangeInclusive<u64> = 100_000_000..=20_000_000_000;

/// How the time-stamp counter carries a clock on: ticks a second, and nanoseconds a tick times 2^32. Zeros where what the
/// host says of the counter cannot be so: then the clock is asked for each time.
pub fn counter_rate(said: &ClockSample) -> (u64, u64) {
    if !PLAUSIBLE_HZ.contains(&said.tsc_hz) || said.tsc == 0 {
        return (0, 0);
    }
    (said.tsc_hz, ((1_000_000_000_u128 << 32) / u128::from(said.tsc_hz)) as u64)
}

/// Nanoseconds that so many ticks take, fewer than a second's.
pub fn nanoseconds(ticks: u64, scale: u64) -> u64 {
    ((u128::from(ticks) * u128::from(scale)) >> 32) as u64
}

/// The arguments in what the host passed: each ends with NUL; what comes after the last NUL is none.
pub fn arguments(said: &[u8]) -> impl Iterator<Item = &[u8]> {
    said.split_inclusive(|b| *b == 0).filter_map(|a| a.strip_suffix(&[0]))
}

/// The environment that the program gets of what the host passed: entries with a name that the manifest permits the host
/// to set (`env`), and does not fix itself (`fixed_env`).
pub fn environment<'a>(said: &'a [u8], env: &'a str, fixed_env: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let is_permitted = move |entry: &&[u8]| {
        let name = name_of(entry);
        // What the runtime tells glibc is measured with it.
        name != b"GLIBC_TUNABLES"
            && items(env).any(|n| n.as_bytes() == name)
            && !items(fixed_env).any(|e| name_of(e.as_bytes()) == name)
    };
    variables(said).filter(is_permitted)
}

/// Entries of an environment.
pub fn variables(said: &[u8]) -> impl Iterator<Item = &[u8]> {
    said.split(|b| *b == 0).filter(|e| e.contains(&b'='))
}

/// The name of an entry of an environment.
pub fn name_of(entry: &[u8]) -> &[u8] {
    entry.split(|b| *b == b'=').next().unwrap_or(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_results_errors_or_nonsense() {
        assert_eq!(checked(7, 7), Ok(7));
        assert_eq!(checked(-4095, 0), Err(Errno(4095)));
        for nonsense in [8, i64::MAX, -4096, i64::MIN] {
            assert_eq!(checked(nonsense, 7), Err(NONSENSE));
        }
        assert_eq!(checked(i64::MAX, u64::MAX), Ok(i64::MAX as u64));
    }

    #[test]
    fn entries_are_names() {
        let record = |name: &[u8], len: usize| {
            let mut r = [&[1; 8][..], &[0; 8], &(len as u16).to_le_bytes(), &[8], name].concat();
            r.resize(len.max(r.len()), 0);
            r
        };
        let read = |records: &[u8]| {
            let mut all = Vec::new();
            directory_entries(records, &mut all).map(|()| all)
        };
        let two = [record(b"a", 24), record(b"longer.name", 32)].concat();
        assert_eq!(read(&two).map(|all| all[1].name.clone()), Ok(b"longer.name".to_vec()));
        assert_eq!(read(&[]), Ok(Vec::new()));
        let wrong: [(&str, Vec<u8>); 7] = [
            ("cut off", record(b"a", 24)[..23].to_vec()),
            ("a header alone", record(b"", 19)),
            ("no name", record(b"", 24)),
            ("a path", record(b"../x", 24)),
            ("no end", record(b"12345", 24)),
            ("too long", record(&[b'x'; 256], 280)),
            ("of no length", { [&[0; 16][..], &[0; 2], &[8], b"a\0"].concat() }),
        ];
        for (what, records) in wrong {
            assert_eq!(read(&records), Err(NONSENSE), "{what}");
        }
    }

    #[test]
    fn addresses_are_of_the_family() {
        let said = |len: u32, family: u16| {
            let mut said = [0; ADDRESS_BYTES];
            said[..4].copy_from_slice(&len.to_le_bytes());
            said[8..10].copy_from_slice(&family.to_le_bytes());
            said
        };
        assert_eq!(socket_address(&said(16, 2), AF_INET).map(|(a, _)| a.len()), Ok(16));
        assert_eq!(socket_address(&said(0, 0), 1).map(|(a, _)| a.len()), Ok(0));
        for (len, family, of) in
            [(16, 10, AF_INET), (28, 10, AF_INET), (16, 2, AF_INET6), (1, 1, 1), (111, 1, 1)]
        {
            assert_eq!(socket_address(&said(len, family), of), Err(NONSENSE), "{len} {family} {of}");
        }
        assert_eq!(socket_address(&said(u32::MAX, 1), 1), Err(NONSENSE));
    }

    #[test]
    fn only_what_is_permitted_comes_in() {
        let said = b"PATH=/bin\0LD_PRELOAD=x\0TZ=UTC\0RUST_LOG=a=b\0GLIBC_TUNABLES=y\0=\0nothing";
        let got: Vec<_> = environment(said, "PATH\nTZ\nRUST_LOG\nGLIBC_TUNABLES", "TZ=CET").collect();
        assert_eq!(got, [&b"PATH=/bin"[..], b"RUST_LOG=a=b"]);
        assert_eq!(arguments(b"a\0\0b").collect::<Vec<_>>(), [&b"a"[..], b""]);
    }
}
