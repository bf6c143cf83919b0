//! Files: standard input, output and error, where the manifest allows them. There are no others yet; opening one is
//! ENOENT.

use super::{Outcome, own, own_bytes};
use crate::host::{self, Errno, Frame};
use crate::thread::Thread;
use enclos::abi::{FRAME_SIZE, hostcall};

const MOST_VECTORS: u64 = 1024;

/// write(2). Where the manifest forbids standard output, it is swallowed, so that programs that print still run.
pub fn write(me: &mut Thread, fd: u64, from: u64, len: u64) -> Outcome {
    if !matches!(fd, 1 | 2) {
        return Err(Errno::BADF);
    }
    let from = own_bytes(from, len)?;
    if !crate::boot::stdio_allowed() {
        return Ok(len);
    }
    let len = len.min(FRAME_SIZE);
    // SAFETY: the program's own memory.
    Frame::of(me).put(0, unsafe { core::slice::from_raw_parts(from, len as usize) });
    if len == 0 {
        return Ok(0);
    }
    host::checked(host::call_keeping(me, hostcall::WRITE, fd, len, 0), len)
}

/// writev(2): one buffer after the other; a short write ends it.
pub fn writev(me: &mut Thread, fd: u64, vectors: u64, count: u64) -> Outcome {
    if count > MOST_VECTORS {
        return Err(Errno::INVAL);
    }
    let mut written = 0;
    for i in 0..count {
        let vector = own::<[u64; 2]>(vectors + 16 * i)?;
        // SAFETY: checked to be the program's.
        let [at, len] = unsafe { vector.read() };
        match write(me, fd, at, len) {
            Ok(n) => {
                written += n;
                if n < len {
                    break;
                }
            }
            Err(e) if written == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(written)
}

/// read(2): standard input where the manifest allows it, else at its end.
pub fn read(me: &mut Thread, fd: u64, to: u64, len: u64) -> Outcome {
    if fd != 0 {
        return Err(Errno::BADF);
    }
    let len = len.min(FRAME_SIZE);
    let to = own_bytes(to, len)?;
    if !crate::boot::stdin_allowed() || len == 0 {
        return Ok(0);
    }
    let n = host::checked(host::call_keeping(me, hostcall::READ, fd, len, 0), len)?;
    // SAFETY: `n` is at most `len`, and that much was checked to be the program's.
    Frame::of(me).get(0, unsafe { core::slice::from_raw_parts_mut(to, n as usize) });
    Ok(n)
}

/// close(2).
pub fn close(fd: u64) -> Outcome {
    if is_standard(fd) { Ok(0) } else { Err(Errno::BADF) }
}

/// lseek(2): streams cannot seek.
pub fn seek(fd: u64) -> Outcome {
    Err(if is_standard(fd) { Errno::SPIPE } else { Errno::BADF })
}

/// ioctl(2): no terminals.
pub fn ioctl(fd: u64) -> Outcome {
    Err(if is_standard(fd) { Errno::NOTTY } else { Errno::BADF })
}

/// fcntl(2): F_GETFD, F_SETFD, F_GETFL, F_SETFL of the standard streams.
pub fn fcntl(fd: u64, command: u64) -> Outcome {
    match command {
        _ if !is_standard(fd) => Err(Errno::BADF),
        1 | 2 | 4 => Ok(0),
        3 => Ok(u64::from(fd != 0)),
        _ => Err(Errno::INVAL),
    }
}

/// fstat(2): the standard streams are pipes.
pub fn fstat(fd: u64, to: u64) -> Outcome {
    if !is_standard(fd) {
        return Err(Errno::BADF);
    }
    let to = own::<[u64; 18]>(to)?;
    let mut stat = [0_u64; 18];
    stat[1] = fd + 1; // st_ino
    stat[2] = 1; // st_nlink
    stat[3] = 0o010_600; // st_mode: FIFO, and st_uid
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
    if !is_standard(fd) {
        return Err(Errno::BADF);
    }
    let to = own::<[u32; 64]>(to)?;
    let mut stat = [0_u32; 64];
    stat[0] = 1 | 2 | 4; // STATX_TYPE, MODE, NLINK
    stat[1] = 4096;
    stat[4] = 1;
    stat[7] = 0o010_600; // stx_mode
    // SAFETY: 256 bytes is the size of `struct statx`.
    unsafe { to.write(stat) };
    Ok(0)
}

/// poll(2): the standard streams are always ready for writing; standard input as well, where it would not block.
pub fn poll(me: &mut Thread, descriptors: u64, count: u64, timeout_ms: i64) -> Outcome {
    let ready = poll_once(descriptors, count)?;
    if ready == 0 && timeout_ms != 0 {
        let ns = if timeout_ms < 0 { u64::MAX } else { timeout_ms as u64 * 1_000_000 };
        super::time::sleep(me, ns)?;
    }
    Ok(ready)
}

/// ppoll(2): as poll; the signal mask has no meaning inside.
pub fn ppoll(me: &mut Thread, descriptors: u64, count: u64, timeout: u64) -> Outcome {
    let ready = poll_once(descriptors, count)?;
    if ready == 0 {
        let ns = if timeout == 0 { u64::MAX } else { super::time::read_timespec(timeout)? };
        if ns != 0 {
            super::time::sleep(me, ns)?;
        }
    }
    Ok(ready)
}

fn poll_once(descriptors: u64, count: u64) -> Outcome {
    const POLLNVAL: u16 = 0x20;
    const POLLOUT: u16 = 4;
    let mut ready = 0;
    if count > MOST_VECTORS {
        return Err(Errno::INVAL);
    }
    for i in 0..count {
        // struct pollfd: fd, events, revents
        let at = own::<[u16; 4]>(descriptors + 8 * i)?;
        // SAFETY: checked to be the program's.
        unsafe {
            let mut p = at.read();
            let fd = i32::from(p[0] as i16) | i32::from(p[1] as i16) << 16;
            p[3] = match fd {
                ..0 => 0,
                1 | 2 => p[2] & POLLOUT,
                0 => 0,
                _ => POLLNVAL,
            };
            ready += u64::from(p[3] != 0);
            at.write(p);
        }
    }
    Ok(ready)
}

fn is_standard(fd: u64) -> bool {
    fd <= 2
}
