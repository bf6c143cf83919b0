//! Sockets: TCP, UDP and Unix sockets are the host's; what is permitted of them is the manifest's.
//!
//! Whatever arrives comes from the network and the host, so a program protects it itself (TLS). What is checked here is
//! that an answer is one that Linux could have given: lengths within what was asked, addresses of the socket's family
//! and of its length, error numbers in range. Pairs of connected sockets never leave the enclave: see
//! [`channel`](super::channel).

use alloc::vec::Vec;
use core::fmt::Write as _;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use enclos::abi::{ADDRESS_AT, AddressHeader, MAX_ADDRESS, MAX_DATA, counter, hostcall};
use enclos::network::{Address, permitted};

use super::channel::End;
use super::descriptors::{self, CLOEXEC, Kind, NONBLOCK, Object, events};
use super::{Outcome, own, own_bytes, poll, signal};
use crate::clock::{self, Clock};
use crate::host::{self, Errno, Frame};
use crate::replies::{self, ADDRESS_BYTES, AF_INET, AF_INET6};
use crate::thread::Thread;

const AF_UNSPEC: u16 = 0;
const AF_UNIX: u16 = 1;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const MSG_PEEK: u64 = 2;
const MSG_TRUNC: u64 = 0x20;
const MSG_DONTWAIT: u64 = 0x40;
const MSG_WAITALL: u64 = 0x100;
const MSG_MORE: u64 = 0x8000;
const SOL_SOCKET: u64 = 1;
const SO_ERROR: u64 = 4;
/// Largest handle of the host.
const MAX_HANDLE: u64 = i32::MAX as u64;
/// Most buffers of one call.
const MAX_VECTORS: u64 = 1024;

/// A socket of the host's.
pub struct Socket {
    /// What the host calls it.
    pub handle: u32,
    domain: u16,
    kind: u32,
    protocol: u32,
    is_bound: AtomicBool,
    listens: AtomicBool,
    /// SO_RCVTIMEO and SO_SNDTIMEO in nanoseconds; 0: none.
    limits: [AtomicU64; 2],
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Nothing can be done about a host that keeps it open.
        host::call_keeping(Thread::current(), hostcall::CLOSE, u64::from(self.handle), 0, 0);
    }
}

/// Reading or writing: which timeout counts.
#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
}

/// A piece of the program's memory.
pub type Piece = (u64, u64);

/// socket(2).
pub fn socket(me: &mut Thread, domain: u64, kind: u64, protocol: u64) -> Outcome {
    let flags = kind as u32;
    let kind = flags & 0xf;
    match (domain as u16, kind, protocol) {
        (AF_INET | AF_INET6, SOCK_STREAM, 0 | 6) | (AF_INET | AF_INET6, SOCK_DGRAM, 0 | 17) => {}
        (AF_UNIX, SOCK_STREAM | SOCK_DGRAM, 0) => {}
        (AF_UNIX | AF_INET | AF_INET6, ..) => return Err(Errno::PROTONOSUPPORT),
        _ => return Err(Errno::AFNOSUPPORT),
    }
    descriptors::room()?;
    let answer = host::call_keeping(me, hostcall::SOCKET, domain << 32 | u64::from(kind), protocol, 0);
    let handle = host::checked(answer, MAX_HANDLE)? as u32;
    let socket = Socket::new(handle, domain as u16, kind, protocol as u32);
    descriptors::open(Kind::Socket(socket), flags & (NONBLOCK | CLOEXEC))
}

/// socketpair(2): streams, inside.
pub fn socketpair(domain: u64, kind: u64, protocol: u64, to: u64) -> Outcome {
    if domain as u16 != AF_UNIX {
        return Err(Errno::OPNOTSUPP);
    }
    if kind as u32 & 0xf != SOCK_STREAM || protocol != 0 {
        return Err(Errno::PROTONOSUPPORT);
    }
    descriptors::room()?;
    let (first, second) = End::sockets();
    descriptors::pair(to, kind as u32, first, second, [2, 2])
}

fn on<R>(fd: u64, f: impl FnOnce(&Object, &Socket) -> Result<R, Errno>) -> Result<R, Errno> {
    let object = descriptors::get(fd)?;
    match &object.kind {
        Kind::Socket(socket) => f(&object, socket),
        Kind::Channel(end) if end.is_socket() => Err(Errno::OPNOTSUPP),
        _ => Err(Errno::NOTSOCK),
    }
}

/// bind(2).
pub fn bind(me: &mut Thread, fd: u64, at: u64, len: u64) -> Outcome {
    on(fd, |_, socket| {
        let address = SocketAddress::of_program(at, len)?;
        socket.expects(&address)?;
        check(me, crate::boot::may_listen, "listen on", &address)?;
        address.put(me)?;
        let done = host::checked(host::call_keeping(me, hostcall::BIND, socket.handle(), len, 0), 0)?;
        socket.is_bound.store(true, Ordering::Relaxed);
        Ok(done)
    })
}

/// listen(2).
pub fn listen(me: &mut Thread, fd: u64, backlog: u64) -> Outcome {
    on(fd, |_, socket| {
        if !socket.is_bound.load(Ordering::Relaxed) {
            // Linux chooses a port on all interfaces.
            check(me, crate::boot::may_listen, "listen on", &SocketAddress::any(socket.domain)?)?;
        }
        let backlog = u64::from(backlog as u32);
        let done = host::checked(host::call_keeping(me, hostcall::LISTEN, socket.handle(), backlog, 0), 0)?;
        socket.listens.store(true, Ordering::Relaxed);
        Ok(done)
    })
}

/// accept(2) and accept4(2).
pub fn accept(me: &mut Thread, fd: u64, to: u64, len: u64, flags: u64) -> Outcome {
    on(fd, |object, socket| {
        descriptors::room()?;
        let handle = socket.wait(me, Direction::In, object.blocks(), |me| {
            host::checked(host::call_keeping(me, hostcall::ACCEPT, socket.handle(), 0, 0), MAX_HANDLE)
        })?;
        let accepted = Socket::new(handle as u32, socket.domain, socket.kind, socket.protocol);
        accepted.is_bound.store(true, Ordering::Relaxed);
        let (address, _) = SocketAddress::of_host(me, socket.domain)?;
        address.give(to, len)?;
        descriptors::open(Kind::Socket(accepted), flags as u32 & (NONBLOCK | CLOEXEC))
    })
}

/// connect(2).
pub fn connect(me: &mut Thread, fd: u64, at: u64, len: u64) -> Outcome {
    on(fd, |object, socket| {
        let address = SocketAddress::of_program(at, len)?;
        if address.family() != AF_UNSPEC {
            socket.expects(&address)?;
            check(me, crate::boot::may_connect, "connect to", &address)?;
        }
        address.put(me)?;
        let answer = host::call_keeping(me, hostcall::CONNECT, socket.handle(), len, 0);
        match host::checked(answer, 0) {
            Err(Errno::INPROGRESS) if object.blocks() => {
                let until = socket.limit(me, Direction::Out)?;
                poll::wait_for_socket(me, socket.handle, events::OUT, until)?;
                match socket.error(me)? {
                    0 => Ok(0),
                    code => Err(Errno(code)),
                }
            }
            outcome => outcome,
        }
    })
}

/// shutdown(2).
pub fn shutdown(me: &mut Thread, fd: u64, how: u64) -> Outcome {
    if let Kind::Channel(end) = &descriptors::get(fd)?.kind
        && end.is_socket()
    {
        return end.shut_down(how);
    }
    on(fd, |_, s| host::checked(host::call_keeping(me, hostcall::SHUTDOWN, s.handle(), how, 0), 0))
}

/// getsockname(2) and getpeername(2).
pub fn get_name(me: &mut Thread, fd: u64, to: u64, len: u64, peer: bool) -> Outcome {
    if let Kind::Channel(end) = &descriptors::get(fd)?.kind
        && end.is_socket()
    {
        return SocketAddress::unnamed().give(to, len);
    }
    on(fd, |_, socket| {
        let answer = host::call_keeping(me, hostcall::GET_NAME, socket.handle(), u64::from(peer), 0);
        host::checked(answer, 0)?;
        let (address, _) = SocketAddress::of_host(me, socket.domain)?;
        address.give(to, len)
    })
}

/// setsockopt(2). Timeouts are kept here, since the host's sockets never wait.
pub fn set_option(me: &mut Thread, fd: u64, level: u64, name: u64, at: u64, len: u64) -> Outcome {
    let (level, name, len) = (u64::from(level as u32), u64::from(name as u32), u64::from(len as u32));
    if len > MAX_ADDRESS {
        return Err(Errno::INVAL);
    }
    let from = own_bytes(at, len)?;
    if let Kind::Channel(end) = &descriptors::get(fd)?.kind
        && end.is_socket()
    {
        return Ok(0);
    }
    on(fd, |_, socket| {
        if let Some(limit) = socket.limit_named(level, name) {
            let [s, us] = *own_value::<[i64; 2]>(at, len)?;
            if s < 0 || !(0..1_000_000).contains(&us) {
                return Err(Errno(33)); // EDOM
            }
            let ns = (s as u64).saturating_mul(1_000_000_000).saturating_add(us as u64 * 1000);
            limit.store(ns, Ordering::Relaxed);
            return Ok(0);
        }
        // SAFETY: checked to be the program's.
        Frame::of(me).put(0, unsafe { core::slice::from_raw_parts(from, len as usize) });
        host::checked(
            host::call_keeping(me, hostcall::SET_OPTION, socket.handle(), level << 32 | name, len),
            0,
        )
    })
}

/// getsockopt(2). What is known inside is answered inside.
pub fn get_option(me: &mut Thread, fd: u64, level: u64, name: u64, at: u64, len_at: u64) -> Outcome {
    let (level, name) = (u64::from(level as u32), u64::from(name as u32));
    let len_at = own::<u32>(len_at)?;
    // SAFETY: checked to be the program's.
    let capacity = u64::from(unsafe { len_at.read() }).min(MAX_ADDRESS);
    let to = own_bytes(at, capacity)?;
    let give = |value: &[u8]| {
        let n = value.len().min(capacity as usize);
        // SAFETY: checked to be the program's.
        unsafe {
            core::ptr::copy_nonoverlapping(value.as_ptr(), to, n);
            len_at.write(n as u32);
        }
        Ok(0)
    };
    let object = descriptors::get(fd)?;
    let known = |kind: u32, domain: u16, protocol: u32, listens: bool| match (level, name) {
        (SOL_SOCKET, 3) => Some(kind),
        (SOL_SOCKET, 30) => Some(u32::from(listens)),
        (SOL_SOCKET, 38) => Some(protocol),
        (SOL_SOCKET, 39) => Some(u32::from(domain)),
        _ => None,
    };
    let socket = match &object.kind {
        Kind::Socket(socket) => socket,
        Kind::Channel(end) if end.is_socket() => {
            return give(&known(SOCK_STREAM, AF_UNIX, 0, false).unwrap_or(0).to_le_bytes());
        }
        _ => return Err(Errno::NOTSOCK),
    };
    let protocol = match (socket.protocol, socket.domain, socket.kind) {
        (0, AF_INET | AF_INET6, SOCK_STREAM) => 6,
        (0, AF_INET | AF_INET6, _) => 17,
        (protocol, ..) => protocol,
    };
    if let Some(value) = known(socket.kind, socket.domain, protocol, socket.listens.load(Ordering::Relaxed)) {
        return give(&value.to_le_bytes());
    }
    if (level, name) == (SOL_SOCKET, SO_ERROR) {
        return give(&socket.error(me)?.to_le_bytes());
    }
    if let Some(limit) = socket.limit_named(level, name) {
        let ns = limit.load(Ordering::Relaxed);
        let mut value = [0; 16];
        value[..8].copy_from_slice(&(ns / 1_000_000_000).to_le_bytes());
        value[8..].copy_from_slice(&(ns % 1_000_000_000 / 1000).to_le_bytes());
        return give(&value);
    }
    let answer = host::call_keeping(me, hostcall::GET_OPTION, socket.handle(), level << 32 | name, capacity);
    let len = host::checked(answer, capacity)? as usize;
    let mut value = [0; MAX_ADDRESS as usize];
    Frame::of(me).get(0, &mut value[..len]);
    give(&value[..len])
}

/// sendto(2), send(2).
pub fn sendto(me: &mut Thread, fd: u64, from: u64, len: u64, flags: u64, to: u64, to_len: u64) -> Outcome {
    let object = descriptors::get(fd)?;
    let to = if to == 0 { None } else { Some(SocketAddress::of_program(to, to_len)?) };
    send(me, &object, &[(from, len)], flags, to)
}

/// recvfrom(2), recv(2).
pub fn recvfrom(
    me: &mut Thread,
    fd: u64,
    to: u64,
    len: u64,
    flags: u64,
    from: u64,
    from_len: u64,
) -> Outcome {
    let object = descriptors::get(fd)?;
    let (n, address, _) = receive(me, &object, &[(to, len)], flags)?;
    address.give(from, from_len)?;
    Ok(n)
}

/// A `struct msghdr`.
type Message = [u64; 7];

/// sendmsg(2). Ancillary data (descriptors, credentials) is refused: there is nobody to send it to.
pub fn sendmsg(me: &mut Thread, fd: u64, message: u64, flags: u64) -> Outcome {
    let object = descriptors::get(fd)?;
    // SAFETY: checked to be the program's.
    let [name, name_len, vectors, count, _, control_len, _]: Message =
        unsafe { own::<Message>(message)?.read() };
    if control_len != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let name_len = u64::from(name_len as u32);
    let to = if name == 0 || name_len == 0 { None } else { Some(SocketAddress::of_program(name, name_len)?) };
    send(me, &object, &pieces(vectors, count)?, flags, to)
}

/// recvmsg(2). There is never ancillary data.
pub fn recvmsg(me: &mut Thread, fd: u64, message: u64, flags: u64) -> Outcome {
    let object = descriptors::get(fd)?;
    let header = own::<Message>(message)?;
    // SAFETY: checked to be the program's.
    let [name, _, vectors, count, ..]: Message = unsafe { header.read() };
    let (n, address, found) = receive(me, &object, &pieces(vectors, count)?, flags)?;
    if name != 0 {
        address.give(name, message + 8)?;
    }
    // SAFETY: as above: msg_controllen, then msg_flags.
    unsafe {
        (*header)[5] = 0;
        (message as *mut u32).add(12).write(found);
    }
    Ok(n)
}

/// sendmmsg(2): one after the other.
pub fn sendmmsg(me: &mut Thread, fd: u64, messages: u64, count: u64, flags: u64) -> Outcome {
    each_message(messages, count, |_, at| sendmsg(me, fd, at, flags).map(Some))
}

/// recvmmsg(2): descriptor, messages, count, flags. As in Linux, the time is looked at after each message.
pub fn recvmmsg(me: &mut Thread, [fd, messages, count, flags]: [u64; 4], limit: Option<u64>) -> Outcome {
    const MSG_WAITFORONE: u64 = 0x10000;
    let until = match limit {
        Some(ns) => Some(clock::now(me, Clock::Monotonic)?.saturating_add(ns)),
        None => None,
    };
    each_message(messages, count, |done, at| {
        if done != 0
            && until.is_some_and(|until| clock::now(me, Clock::Monotonic).is_ok_and(|now| now >= until))
        {
            return Ok(None);
        }
        let waits_no_more = done != 0 && flags & MSG_WAITFORONE != 0;
        let flags = if waits_no_more { flags | MSG_DONTWAIT } else { flags } & !MSG_WAITFORONE;
        recvmsg(me, fd, at, flags).map(Some)
    })
}

/// Calls `f` for each `struct mmsghdr` (a `struct msghdr` and its result) with how many are done, until it fails or has
/// enough. Returns how many are done.
fn each_message(
    messages: u64,
    count: u64,
    mut f: impl FnMut(u64, u64) -> Result<Option<u64>, Errno>,
) -> Outcome {
    const SIZE: u64 = 64;
    let mut done = 0;
    while done < u64::from(count as u32).min(MAX_VECTORS) {
        let at = messages.wrapping_add(SIZE * done);
        let len = own::<u32>(at.wrapping_add(56))?;
        match f(done, at) {
            // SAFETY: checked to be the program's.
            Ok(Some(n)) => unsafe { len.write(n as u32) },
            Ok(None) => break,
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
        done += 1;
    }
    Ok(done)
}

/// An array of `struct iovec`s: address and length of each.
pub fn pieces(vectors: u64, count: u64) -> Result<Vec<Piece>, Errno> {
    if count > MAX_VECTORS {
        return Err(Errno::INVAL);
    }
    descriptors::room()?;
    let mut all = Vec::with_capacity(count as usize);
    for i in 0..count {
        // SAFETY: checked to be the program's.
        let [at, len] = unsafe { own::<[u64; 2]>(vectors + 16 * i)?.read() };
        own_bytes(at, len)?;
        all.push((at, len));
    }
    Ok(all)
}

/// Sends what the pieces hold: all of it where the call may wait.
pub fn send(
    me: &mut Thread,
    object: &Object,
    from: &[Piece],
    flags: u64,
    to: Option<SocketAddress>,
) -> Outcome {
    let blocks = object.blocks() && flags & MSG_DONTWAIT == 0;
    let socket = match &object.kind {
        Kind::Socket(socket) => socket,
        Kind::Channel(end) if end.is_socket() => return each_piece(from, |b| end.write(me, b, blocks)),
        _ => return Err(Errno::NOTSOCK),
    };
    if let Some(to) = &to {
        socket.expects(to)?;
        check(me, crate::boot::may_connect, "send to", to)?;
    }
    let total: u64 = from.iter().map(|p| p.1).fold(0, u64::saturating_add);
    if total > MAX_DATA && socket.kind != SOCK_STREAM {
        return Err(Errno(90)); // EMSGSIZE
    }
    let mut sent = 0;
    loop {
        let len = (total - sent).min(MAX_DATA);
        let to_len = to.as_ref().map_or(0, |t| t.len as u64);
        let n = socket.wait(me, Direction::Out, blocks, |me| {
            // Anew each time: the frame is the host's as well.
            gather(Frame::of(me), from, sent, len)?;
            if let Some(to) = &to {
                to.put(me)?;
            }
            let arguments = flags & MSG_MORE | to_len << 32;
            host::checked(host::call_keeping(me, hostcall::SEND, socket.handle(), len, arguments), len)
        });
        match n {
            Ok(n) => sent += n,
            Err(e) if sent == 0 => return Err(e),
            Err(_) => break,
        }
        if sent >= total || !blocks || socket.kind != SOCK_STREAM {
            break;
        }
    }
    Ok(sent)
}

/// Receives into the pieces: length, sender, message flags.
pub fn receive(
    me: &mut Thread,
    object: &Object,
    to: &[Piece],
    flags: u64,
) -> Result<(u64, SocketAddress, u32), Errno> {
    let blocks = object.blocks() && flags & MSG_DONTWAIT == 0;
    let socket = match &object.kind {
        Kind::Socket(socket) => socket,
        Kind::Channel(end) if end.is_socket() => {
            let peeks = flags & MSG_PEEK != 0;
            let mut n = 0;
            for (at, len) in to {
                let to = own_slice(*at, *len)?;
                match end.read(me, to, blocks && n == 0, peeks) {
                    Ok(more) => n += more,
                    Err(e) if n == 0 => return Err(e),
                    Err(_) => break,
                }
                if peeks {
                    break;
                }
            }
            return Ok((n, SocketAddress::unnamed(), 0));
        }
        _ => return Err(Errno::NOTSOCK),
    };
    for (at, len) in to {
        own_bytes(*at, *len)?;
    }
    let is_stream = socket.kind == SOCK_STREAM;
    let total: u64 = to.iter().map(|p| p.1).fold(0, u64::saturating_add);
    let mut done = 0;
    loop {
        let capacity = (total - done).min(MAX_DATA);
        // The length of a datagram may be asked for even where it does not fit.
        let tells_length = flags & MSG_TRUNC != 0 && !is_stream;
        let most = if tells_length { 65_536.max(capacity) } else { capacity };
        let n = socket.wait(me, Direction::In, blocks, |me| {
            let flags = flags & (MSG_PEEK | MSG_TRUNC);
            host::checked(host::call_keeping(me, hostcall::RECV, socket.handle(), capacity, flags), most)
        });
        let n = match n {
            Ok(n) => n,
            Err(e) if done == 0 => return Err(e),
            Err(_) => return Ok((done, SocketAddress::unnamed(), 0)),
        };
        // A stream has no senders: what the host says of one is not looked at.
        let (address, found) = match is_stream {
            true => (SocketAddress::unnamed(), 0),
            false => SocketAddress::of_host(me, socket.domain)?,
        };
        scatter(Frame::of(me), to, done, n.min(capacity))?;
        done += n;
        let wants_all = flags & MSG_WAITALL != 0 && flags & MSG_PEEK == 0;
        if n == 0 || done >= total || !blocks || !is_stream || !wants_all {
            return Ok((done, address, found & MSG_TRUNC as u32));
        }
    }
}

/// Calls `f` with the bytes of each piece until one is not done whole.
pub fn each_piece(pieces: &[Piece], mut f: impl FnMut(&mut [u8]) -> Outcome) -> Outcome {
    let mut done = 0;
    for (at, len) in pieces {
        match f(own_slice(*at, *len)?) {
            Ok(n) => {
                done += n;
                if n < *len {
                    break;
                }
            }
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(done)
}

fn own_slice(at: u64, len: u64) -> Result<&'static mut [u8], Errno> {
    if len == 0 {
        return Ok(&mut []);
    }
    let at = own_bytes(at, len)?;
    // SAFETY: the program's own memory, which it lends for the time of the call.
    Ok(unsafe { core::slice::from_raw_parts_mut(at, len as usize) })
}

fn own_value<T>(at: u64, len: u64) -> Result<&'static T, Errno> {
    if len < size_of::<T>() as u64 || !at.is_multiple_of(align_of::<T>() as u64) {
        return Err(Errno::INVAL);
    }
    // SAFETY: checked to be the program's and aligned; `T` is made of integers.
    Ok(unsafe { &*own::<T>(at)? })
}

/// Copies `len` bytes of the pieces, from `skip` on, to the start of the frame.
fn gather(frame: Frame, from: &[Piece], skip: u64, len: u64) -> Result<(), Errno> {
    parts(from, skip, len, |bytes, at| if frame.put(at, bytes) { Ok(()) } else { Err(Errno::FAULT) })
}

/// Copies `len` bytes of the frame into the pieces, from `skip` on.
fn scatter(frame: Frame, to: &[Piece], skip: u64, len: u64) -> Result<(), Errno> {
    parts(to, skip, len, |bytes, at| if frame.get(at, bytes) { Ok(()) } else { Err(Errno::FAULT) })
}

fn parts(
    pieces: &[Piece],
    mut skip: u64,
    len: u64,
    mut f: impl FnMut(&mut [u8], u64) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut done = 0;
    for (at, have) in pieces {
        if skip >= *have {
            skip -= have;
            continue;
        }
        let n = (have - skip).min(len - done);
        f(own_slice(at + skip, n)?, done)?;
        done += n;
        skip = 0;
    }
    Ok(())
}

impl Socket {
    fn new(handle: u32, domain: u16, kind: u32, protocol: u32) -> Self {
        let limits = [const { AtomicU64::new(0) }; 2];
        let (is_bound, listens) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { handle, domain, kind, protocol, is_bound, listens, limits }
    }

    fn handle(&self) -> u64 {
        u64::from(self.handle)
    }

    /// FIONREAD.
    pub fn available(&self, me: &mut Thread) -> Outcome {
        let answer = host::call_keeping(me, hostcall::AVAILABLE, self.handle(), 0, 0);
        host::checked(answer, i32::MAX as u64)
    }

    /// SO_ERROR.
    fn error(&self, me: &mut Thread) -> Result<i32, Errno> {
        let option = SOL_SOCKET << 32 | SO_ERROR;
        let answer = host::call_keeping(me, hostcall::GET_OPTION, self.handle(), option, 4);
        let mut value = [0; 4];
        if host::checked(answer, 4)? != 4 || !Frame::of(me).get(0, &mut value) {
            return Err(Errno::IO);
        }
        match i32::from_le_bytes(value) {
            code @ 0..=4095 => Ok(code),
            _ => Err(Errno::IO),
        }
    }

    fn limit_named(&self, level: u64, name: u64) -> Option<&AtomicU64> {
        match (level, name) {
            (SOL_SOCKET, 20) => Some(&self.limits[0]),
            (SOL_SOCKET, 21) => Some(&self.limits[1]),
            _ => None,
        }
    }

    /// When a wait that begins now is over.
    fn limit(&self, me: &mut Thread, direction: Direction) -> Result<Option<u64>, Errno> {
        match self.limits[direction as usize].load(Ordering::Relaxed) {
            0 => Ok(None),
            ns => Ok(Some(clock::now(me, Clock::Monotonic)?.saturating_add(ns))),
        }
    }

    /// Tries until the answer is not EAGAIN, waiting in between where the call may.
    fn wait(
        &self,
        me: &mut Thread,
        direction: Direction,
        blocks: bool,
        mut attempt: impl FnMut(&mut Thread) -> Outcome,
    ) -> Outcome {
        let mut until = None;
        loop {
            match attempt(me) {
                Err(Errno::AGAIN) if blocks => {}
                Err(Errno::INTR) if blocks && !crate::ended() && !signal::is_due(me) => continue,
                outcome => return outcome,
            }
            let until = match until {
                Some(until) => until,
                None => *until.insert(self.limit(me, direction)?),
            };
            let wanted = match direction {
                Direction::In => events::IN,
                Direction::Out => events::OUT,
            };
            poll::wait_for_socket(me, self.handle, wanted, until)?;
        }
    }

    /// Is the address one for this socket?
    fn expects(&self, address: &SocketAddress) -> Result<(), Errno> {
        match address.family() {
            f if f == self.domain => Ok(()),
            _ => Err(Errno::AFNOSUPPORT),
        }
    }
}

/// A `struct sockaddr`, copied inside.
pub struct SocketAddress {
    bytes: [u8; MAX_ADDRESS as usize],
    len: usize,
}

impl SocketAddress {
    fn of_program(at: u64, len: u64) -> Result<Self, Errno> {
        let len = u64::from(len as u32);
        if !(2..=MAX_ADDRESS).contains(&len) {
            return Err(Errno::INVAL);
        }
        let mut address = Self { bytes: [0; MAX_ADDRESS as usize], len: len as usize };
        address.bytes[..len as usize].copy_from_slice(own_slice(at, len)?);
        let sound = match address.family() {
            AF_UNSPEC => true,
            AF_INET => len >= 16,
            AF_INET6 => len >= 24,
            AF_UNIX => len <= 110,
            _ => return Err(Errno::AFNOSUPPORT),
        };
        if sound { Ok(address) } else { Err(Errno::INVAL) }
    }

    /// What the host says of a socket of this family, with the message's flags.
    fn of_host(me: &Thread, domain: u16) -> Result<(Self, u32), Errno> {
        let mut said = [0; ADDRESS_BYTES];
        Frame::of(me).get(ADDRESS_AT, &mut said);
        let (found, flags) = replies::socket_address(&said, domain)?;
        let mut address = Self::unnamed();
        address.len = found.len();
        address.bytes[..found.len()].copy_from_slice(found);
        Ok((address, flags))
    }

    /// All interfaces, a port of the host's choice.
    fn any(domain: u16) -> Result<Self, Errno> {
        let len = match domain {
            AF_INET => 16,
            AF_INET6 => 28,
            _ => return Err(Errno::INVAL),
        };
        let mut address = Self { bytes: [0; MAX_ADDRESS as usize], len };
        address.bytes[..2].copy_from_slice(&domain.to_le_bytes());
        Ok(address)
    }

    fn unnamed() -> Self {
        Self { bytes: [0; MAX_ADDRESS as usize], len: 0 }
    }

    fn family(&self) -> u16 {
        u16::from_le_bytes([self.bytes[0], self.bytes[1]])
    }

    /// What rules of the manifest are about.
    fn for_rules(&self) -> Option<Address<'_>> {
        let b = &self.bytes;
        let port = u16::from_be_bytes([b[2], b[3]]);
        match self.family() {
            AF_INET => {
                let ip = IpAddr::V4(Ipv4Addr::new(b[4], b[5], b[6], b[7]));
                Some(Address::Ip(SocketAddr::new(ip, port)))
            }
            AF_INET6 => {
                let ip: [u8; 16] = *b[8..].first_chunk()?;
                Some(Address::Ip(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)), port)))
            }
            AF_UNIX => {
                let path = b.get(2..self.len)?;
                let is_abstract = path.first() == Some(&0);
                let path = if is_abstract { path } else { path.split(|b| *b == 0).next()? };
                let path = core::str::from_utf8(path).ok()?;
                // A path with an `@` in front would look like an abstract name.
                (!path.starts_with('@')).then_some(Address::Unix(path))
            }
            _ => None,
        }
    }

    fn put(&self, me: &Thread) -> Result<(), Errno> {
        let at = ADDRESS_AT + size_of::<AddressHeader>() as u64;
        if Frame::of(me).put(at, &self.bytes[..self.len]) { Ok(()) } else { Err(Errno::INVAL) }
    }

    /// Gives it to the program: cut to the room there is, with its whole length.
    fn give(&self, to: u64, len_at: u64) -> Outcome {
        if to == 0 {
            return Ok(0);
        }
        let len_at = own::<u32>(len_at)?;
        // SAFETY: checked to be the program's.
        let room = unsafe { len_at.read() } as usize;
        let n = self.len.min(room);
        own_slice(to, n as u64)?.copy_from_slice(&self.bytes[..n]);
        // SAFETY: as above.
        unsafe { len_at.write(self.len as u32) };
        Ok(0)
    }
}

/// How many refused addresses are named to the host.
const NAMED: u64 = 16;

/// Does the manifest permit the address? EACCES if not, which is counted and named in a log record.
fn check(
    me: &mut Thread,
    rules: fn() -> &'static str,
    what: &str,
    address: &SocketAddress,
) -> Result<(), Errno> {
    let wanted = address.for_rules();
    let mut abstract_name = [0; MAX_ADDRESS as usize];
    let allowed = match wanted {
        Some(Address::Unix(name)) if name.starts_with('\0') => {
            let name = name.as_bytes();
            abstract_name[..name.len()].copy_from_slice(name);
            abstract_name[0] = b'@';
            core::str::from_utf8(&abstract_name[..name.len()])
                .is_ok_and(|name| permitted(rules(), &Address::Unix(name)))
        }
        Some(wanted) => permitted(rules(), &wanted),
        None => false,
    };
    if allowed {
        return Ok(());
    }
    super::count(counter::REFUSED_ADDRESSES);
    if crate::boot::stdio_allowed() && super::counter(counter::REFUSED_ADDRESSES) <= NAMED {
        let mut line = super::Line::new();
        let _ = match wanted {
            Some(Address::Ip(a)) => write!(line, "the manifest does not permit to {what} {a}"),
            Some(Address::Unix(p)) => {
                write!(line, "the manifest does not permit to {what} unix:{}", p.trim_start_matches('\0'))
            }
            None => write!(line, "the manifest does not permit to {what} this kind of address"),
        };
        let _ = line.write_str(": EACCES; see [network] in enclos.toml");
        const WARN: u64 = 2;
        line.log(me, WARN);
    }
    Err(Errno::ACCES)
}
