//! Reading and writing, whatever a descriptor stands for; and the standard streams, where the manifest allows them.

use super::descriptors::{self, Kind, Object};
use super::socket::{self, Piece, each_piece};
use super::{Outcome, own, own_bytes};
use crate::host::{self, Errno, Frame};
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

/// lseek(2): streams cannot seek.
pub fn seek(fd: u64) -> Outcome {
    descriptors::get(fd).and(Err(Errno::SPIPE))
}

/// fstat(2).
pub fn fstat(fd: u64, to: u64) -> Outcome {
    let mode = mode_of(fd)?;
    let to = own::<[u64; 18]>(to)?;
    let mut stat = [0_u64; 18];
    stat[1] = fd + 1; // st_ino
    stat[2] = 1; // st_nlink
    stat[3] = mode; // st_mode, and st_uid
    stat[7] = 4096; // st_blksize
    // SAFETY: checked to be the program's; 144 bytes is the size of `struct stat`.
    unsafe { to.write(stat) };
    Ok(0)
}

/// newfstatat(2): with an empty path as fstat, else there is no such file.
pub fn newfstatat(fd: u64, path: u64, to: u64) -> Outcome {
    // SAFETY: checked to be the program's.
    if unsafe { own::<u8>(path)?.read() } == 0 { fstat(fd, to) } else { Err(Errno::NOENT) }
}

/// statx(2): likewise.
pub fn statx(fd: u64, path: u64, to: u64) -> Outcome {
    // SAFETY: checked to be the program's.
    if unsafe { own::<u8>(path)?.read() } != 0 {
        return Err(Errno::NOENT);
    }
    let mode = mode_of(fd)?;
    let to = own::<[u32; 64]>(to)?;
    let mut stat = [0_u32; 64];
    stat[0] = 1 | 2 | 4; // STATX_TYPE, MODE, NLINK
    stat[1] = 4096;
    stat[4] = 1;
    stat[7] = mode as u32; // stx_mode
    // SAFETY: 256 bytes is the size of `struct statx`.
    unsafe { to.write(stat) };
    Ok(0)
}

/// What kind of file it is, as st_mode says it: the standard streams are pipes.
fn mode_of(fd: u64) -> Result<u64, Errno> {
    Ok(match &descriptors::get(fd)?.kind {
        Kind::Standard(_) => 0o010_600,
        Kind::Socket(_) => 0o140_777,
        Kind::Channel(end) if end.is_socket() => 0o140_777,
        Kind::Channel(_) => 0o010_600,
        // Without a type, as Linux has it.
        Kind::Counter(_) | Kind::Timer(_) | Kind::Epoll(_) => 0o600,
    })
}
