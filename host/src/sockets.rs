//! Sockets of the enclave, and waiting for them.
//!
//! The enclave names a socket by a handle: an index into a table of this module, never a descriptor of this process, so
//! that a program inside cannot reach the host's own files. Descriptors are non-blocking; only EPOLL_WAIT and POLL wait,
//! and both end when the enclave does.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use enclos::abi::{self, AddressHeader, Polled, Ready, hostcall};

use crate::enclave::{Shared, Slot};
use crate::entry;

/// What a handle stands for.
enum Kind {
    Socket {
        /// A stream has no senders to report.
        is_stream: bool,
    },
    Epoll {
        /// An eventfd that is registered with it as [`WAKE`].
        bell: OwnedFd,
    },
}

struct Item {
    fd: OwnedFd,
    kind: Kind,
}

/// The enclave's handles.
#[derive(Default)]
pub(crate) struct Sockets {
    items: Mutex<Items>,
}

#[derive(Default)]
struct Items {
    slots: Vec<Option<Arc<Item>>>,
    free: Vec<usize>,
    /// The enclave has ended: no more come.
    ended: bool,
}

/// Under which number an epoll instance's own eventfd is registered; the enclave's indices are smaller.
const WAKE: u64 = u64::MAX;

/// Most handles of one enclave.
const MAX_HANDLES: usize = 1 << 20;

impl Sockets {
    fn add(&self, fd: OwnedFd, kind: Kind) -> Result<u64, i32> {
        let item = Some(Arc::new(Item { fd, kind }));
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        if items.ended {
            return Err(libc::EBADF);
        }
        let index = match items.free.pop() {
            Some(index) => {
                items.slots[index] = item;
                index
            }
            None if items.slots.len() < MAX_HANDLES => {
                items.slots.push(item);
                items.slots.len() - 1
            }
            None => return Err(libc::EMFILE),
        };
        Ok(index as u64)
    }

    fn get(&self, handle: u64) -> Result<Arc<Item>, i32> {
        let items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let found = usize::try_from(handle).ok().and_then(|i| items.slots.get(i)).cloned().flatten();
        found.ok_or(libc::EBADF)
    }

    fn close(&self, handle: u64) -> Result<u64, i32> {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let index = usize::try_from(handle).map_err(|_| libc::EBADF)?;
        let item = items.slots.get_mut(index).and_then(Option::take).ok_or(libc::EBADF)?;
        items.free.push(index);
        drop(items);
        // Another thread may still wait in it: then the descriptor is closed when that wait ends.
        drop(item);
        Ok(0)
    }

    /// Ends every EPOLL_WAIT and closes all handles, for good: ports are free again for the next enclave, whoever else
    /// still holds what belongs to this one.
    pub(crate) fn end(&self) {
        self.wake_all();
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        *items = Items { ended: true, ..Items::default() };
    }
}

impl Sockets {
    /// Ends every EPOLL_WAIT, or the next.
    pub(crate) fn wake_all(&self) {
        let items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        for item in items.slots.iter().flatten() {
            if let Kind::Epoll { bell } = &item.kind {
                write_one(bell.as_raw_fd());
            }
        }
    }
}

/// Ends a thread's POLL: an eventfd, made when first needed.
#[derive(Default)]
pub(crate) struct Bell {
    fd: OnceLock<OwnedFd>,
    is_polling: AtomicBool,
}

impl Bell {
    /// After the wake flag was set: gets the thread out of its POLL if it is in one.
    pub(crate) fn ring(&self) {
        if self.is_polling.load(Ordering::SeqCst)
            && let Some(fd) = self.fd.get()
        {
            write_one(fd.as_raw_fd());
        }
    }

    fn get(&self) -> Result<RawFd, i32> {
        if let Some(fd) = self.fd.get() {
            return Ok(fd.as_raw_fd());
        }
        let fd = event_fd()?;
        Ok(self.fd.get_or_init(|| fd).as_raw_fd())
    }
}

impl Shared {
    /// Requests from [`hostcall::SOCKET`] to [`hostcall::POLL`].
    pub(crate) fn network(&self, slot: &Slot, number: u64, a: u64, b: u64, c: u64) -> Result<u64, i32> {
        let sockets = &self.sockets;
        match number {
            hostcall::SOCKET => {
                let kind = a as u32 as i32 | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
                // SAFETY: no memory is involved.
                let fd = owned(unsafe { libc::socket((a >> 32) as i32, kind, b as i32) })?;
                sockets.add(fd, Kind::Socket { is_stream: a as u32 as i32 & 0xf == libc::SOCK_STREAM })
            }
            hostcall::CLOSE => sockets.close(a),
            hostcall::EPOLL_CREATE => self.epoll_create(),
            hostcall::EPOLL_WAIT => self.epoll_wait(slot, a, b, c),
            hostcall::POLL => self.poll(slot, a, b),
            _ => {
                let item = sockets.get(a)?;
                match (number, &item.kind) {
                    (hostcall::EPOLL_CTL, Kind::Epoll { .. }) => self.epoll_ctl(slot, &item, b, c),
                    (hostcall::EPOLL_WAKE, Kind::Epoll { bell }) => {
                        write_one(bell.as_raw_fd());
                        Ok(0)
                    }
                    (hostcall::RECV, Kind::Socket { is_stream: true }) => receive(slot, &item, b, c),
                    (_, Kind::Socket { .. }) => self.socket(slot, number, &item, b, c),
                    _ => Err(libc::EINVAL),
                }
            }
        }
    }

    fn socket(&self, slot: &Slot, number: u64, item: &Item, b: u64, c: u64) -> Result<u64, i32> {
        let fd = item.fd.as_raw_fd();
        let frame = slot.frame as *mut u8;
        // SAFETY: within the frame.
        let header = unsafe { frame.add(abi::ADDRESS_AT as usize) }.cast::<AddressHeader>();
        // SAFETY: likewise; room for an address follows the header.
        let address = unsafe { header.add(1) }.cast::<libc::sockaddr>();
        let address_len = |len: u64| match len {
            0..=abi::MAX_ADDRESS => Ok(len as libc::socklen_t),
            _ => Err(libc::EINVAL),
        };
        let data_len = if b <= abi::MAX_DATA { Ok(b as usize) } else { Err(libc::EINVAL) };
        let mut len = abi::MAX_ADDRESS as libc::socklen_t;
        // SAFETY: `fd` is open while the caller holds its item. All pointers lead into the frame, which is this thread's
        // until it is entered again, and the lengths were checked to lie within it.
        unsafe {
            match number {
                hostcall::BIND => checked(libc::bind(fd, address, address_len(b)?)),
                hostcall::CONNECT => checked(libc::connect(fd, address, address_len(b)?)),
                hostcall::LISTEN => checked(libc::listen(fd, b as i32)),
                hostcall::ACCEPT => {
                    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
                    let peer = owned(libc::accept4(fd, address, &raw mut len, flags))?;
                    header.write(AddressHeader { len, flags: 0 });
                    // Only streams are accepted from (and sequenced packets, which the enclave does not ask for).
                    self.sockets.add(peer, Kind::Socket { is_stream: true })
                }
                hostcall::SEND => {
                    let flags = c as u32 as i32 & libc::MSG_MORE | libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
                    let to = address_len(c >> 32)?;
                    let address = if to == 0 { std::ptr::null_mut() } else { address };
                    checked(libc::sendto(fd, frame.cast(), data_len?, flags, address, to))
                }
                hostcall::RECV => {
                    let flags = c as u32 as i32 & (libc::MSG_PEEK | libc::MSG_TRUNC) | libc::MSG_DONTWAIT;
                    let mut vector = libc::iovec { iov_base: frame.cast(), iov_len: data_len? };
                    let mut message: libc::msghdr = std::mem::zeroed();
                    (message.msg_iov, message.msg_iovlen) = (&raw mut vector, 1);
                    (message.msg_name, message.msg_namelen) = (address.cast(), len);
                    let received = checked(libc::recvmsg(fd, &raw mut message, flags))?;
                    let flags = message.msg_flags as u32;
                    header.write(AddressHeader { len: message.msg_namelen, flags });
                    Ok(received)
                }
                hostcall::SHUTDOWN => checked(libc::shutdown(fd, b as i32)),
                hostcall::GET_NAME => {
                    let get = if b == 0 { libc::getsockname } else { libc::getpeername };
                    checked(get(fd, address, &raw mut len))?;
                    header.write(AddressHeader { len, flags: 0 });
                    Ok(0)
                }
                hostcall::SET_OPTION if may_set(b) && c <= abi::MAX_ADDRESS => {
                    checked(libc::setsockopt(fd, (b >> 32) as i32, b as i32, frame.cast(), c as _))
                }
                hostcall::GET_OPTION if (may_set(b) || b == ERROR) && c <= abi::MAX_ADDRESS => {
                    let mut len = c as libc::socklen_t;
                    checked(libc::getsockopt(fd, (b >> 32) as i32, b as i32, frame.cast(), &raw mut len))?;
                    Ok(u64::from(len))
                }
                hostcall::SET_OPTION | hostcall::GET_OPTION => Err(libc::ENOPROTOOPT),
                hostcall::AVAILABLE => {
                    let mut count: libc::c_int = 0;
                    checked(libc::ioctl(fd, libc::FIONREAD, &raw mut count))?;
                    Ok(count as u64)
                }
                _ => Err(libc::ENOSYS),
            }
        }
    }

    fn epoll_create(&self) -> Result<u64, i32> {
        // SAFETY: no memory is involved.
        let fd = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        let bell = event_fd()?;
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: WAKE };
        // SAFETY: both descriptors are ours, and so is the structure.
        checked(unsafe {
            libc::epoll_ctl(fd.as_raw_fd(), libc::EPOLL_CTL_ADD, bell.as_raw_fd(), &raw mut event)
        })?;
        self.sockets.add(fd, Kind::Epoll { bell })
    }

    fn epoll_ctl(&self, slot: &Slot, epoll: &Item, b: u64, events: u64) -> Result<u64, i32> {
        let target = self.sockets.get(b & u64::from(u32::MAX))?;
        if !matches!(target.kind, Kind::Socket { .. }) {
            return Err(libc::EINVAL);
        }
        // SAFETY: the frame is page-aligned and this thread's until it is entered again.
        let index = unsafe { (slot.frame as *const u64).read() };
        if index == WAKE {
            return Err(libc::EINVAL);
        }
        let mut event = libc::epoll_event { events: events as u32, u64: index };
        // SAFETY: the descriptors are open while their items are held; the structure is ours.
        checked(unsafe {
            let (epoll, target) = (epoll.fd.as_raw_fd(), target.fd.as_raw_fd());
            libc::epoll_ctl(epoll, (b >> 32) as i32, target, &raw mut event)
        })
    }

    fn epoll_wait(&self, slot: &Slot, a: u64, most: u64, limit_ns: u64) -> Result<u64, i32> {
        const ROOM: usize = abi::MAX_READY as usize;
        let item = self.sockets.get(a)?;
        let Kind::Epoll { bell } = &item.kind else { return Err(libc::EINVAL) };
        let most = most.clamp(1, abi::MAX_READY) as usize;
        let mut events = [const { MaybeUninit::<libc::epoll_event>::uninit() }; ROOM];
        if entry::is_expired() || self.ended.load(Ordering::SeqCst) || self.take_signalled() {
            return Err(libc::EINTR);
        }
        let time = timespec(limit_ns);
        let time = if limit_ns == u64::MAX { std::ptr::null() } else { &raw const time };
        // SAFETY: the array has room for `most` events; the timeout is null or ours. A signal ends it, so that deadlines
        // and the end of the enclave do.
        let found = checked(unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                item.fd.as_raw_fd(),
                events.as_mut_ptr(),
                most as libc::c_int,
                time,
                std::ptr::null::<u8>(),
                0_usize,
            )
        })?;
        let mut count = 0;
        for event in &events[..found as usize] {
            // SAFETY: the kernel has written so many.
            let event = unsafe { event.assume_init() };
            if event.u64 == WAKE {
                read_all(bell.as_raw_fd());
                if found == 1 && self.take_signalled() {
                    return Err(libc::EINTR);
                }
            } else {
                let ready = Ready { index: event.u64, events: event.events, reserved: 0 };
                // SAFETY: the frame has room for MAX_READY of them and is this thread's until it is entered again.
                unsafe { (slot.frame as *mut Ready).add(count as usize).write(ready) };
                count += 1;
            }
        }
        Ok(count)
    }

    fn poll(&self, slot: &Slot, count: u64, limit_ns: u64) -> Result<u64, i32> {
        if count > abi::MAX_POLLED {
            return Err(libc::EINVAL);
        }
        let frame = slot.frame as *mut Polled;
        // SAFETY: the frame holds that many and is this thread's until it is entered again.
        let polled = unsafe { std::slice::from_raw_parts_mut(frame, count as usize) };
        let mut items = Vec::with_capacity(polled.len());
        let mut fds = Vec::with_capacity(polled.len() + 1);
        for p in polled.iter() {
            // What is no socket is reported as such by the kernel: POLLNVAL has a negative number too.
            let item = self.sockets.get(u64::from(p.handle))?;
            fds.push(libc::pollfd { fd: item.fd.as_raw_fd(), events: p.events as i16, revents: 0 });
            items.push(item);
        }
        let bell = slot.poll_wake.get()?;
        fds.push(libc::pollfd { fd: bell, events: libc::POLLIN, revents: 0 });
        slot.poll_wake.is_polling.store(true, Ordering::SeqCst);
        // Who wakes sets the flag first and then looks whether this thread polls.
        let woken = slot.wake.swap(0, Ordering::SeqCst) == 1
            || entry::is_expired()
            || self.ended.load(Ordering::SeqCst);
        if self.take_signalled() {
            slot.poll_wake.is_polling.store(false, Ordering::SeqCst);
            return Err(libc::EINTR);
        }
        let time = timespec(if woken { 0 } else { limit_ns });
        let time = if limit_ns == u64::MAX && !woken { std::ptr::null() } else { &raw const time };
        // SAFETY: the array is ours, as is the timeout. A signal ends it.
        let found = checked(unsafe {
            libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, time, std::ptr::null())
        });
        slot.poll_wake.is_polling.store(false, Ordering::SeqCst);
        if fds.last().is_some_and(|f| f.revents != 0) {
            read_all(bell);
            slot.wake.store(0, Ordering::SeqCst);
        }
        found?;
        if fds[..fds.len() - 1].iter().all(|f| f.revents == 0) && self.take_signalled() {
            return Err(libc::EINTR);
        }
        let mut ready = 0;
        for (p, fd) in polled.iter_mut().zip(&fds) {
            p.found = fd.revents as u16;
            ready += u64::from(fd.revents != 0);
        }
        Ok(ready)
    }
}

/// RECV from a stream: bytes only, which costs the kernel less than a message.
fn receive(slot: &Slot, item: &Item, capacity: u64, flags: u64) -> Result<u64, i32> {
    if capacity > abi::MAX_DATA {
        return Err(libc::EINVAL);
    }
    let flags = flags as u32 as i32 & (libc::MSG_PEEK | libc::MSG_TRUNC) | libc::MSG_DONTWAIT;
    // SAFETY: the frame has room for so many bytes and is this thread's until it is entered again.
    checked(unsafe { libc::recv(item.fd.as_raw_fd(), slot.frame as *mut _, capacity as usize, flags) })
}

/// SO_ERROR of SOL_SOCKET, as [`hostcall::GET_OPTION`] names it.
const ERROR: u64 = (libc::SOL_SOCKET as u64) << 32 | libc::SO_ERROR as u64;

/// Options the enclave may set and ask for: those whose values are numbers. Others take pointers, files or programs.
fn may_set(option: u64) -> bool {
    let (level, name) = ((option >> 32) as i32, option as u32 as i32);
    match level {
        libc::SOL_SOCKET => matches!(
            name,
            libc::SO_REUSEADDR
                | libc::SO_REUSEPORT
                | libc::SO_KEEPALIVE
                | libc::SO_BROADCAST
                | libc::SO_LINGER
                | libc::SO_SNDBUF
                | libc::SO_RCVBUF
                | libc::SO_OOBINLINE
                | libc::SO_PRIORITY
        ),
        // From TCP_NODELAY to TCP_CONGESTION, TCP_USER_TIMEOUT, TCP_FASTOPEN, TCP_NOTSENT_LOWAT.
        libc::IPPROTO_TCP => matches!(name, 1..=13 | 18 | 23 | 25),
        libc::IPPROTO_IP => matches!(name, libc::IP_TOS | libc::IP_TTL | libc::IP_MTU_DISCOVER),
        libc::IPPROTO_IPV6 => {
            matches!(name, libc::IPV6_V6ONLY | libc::IPV6_UNICAST_HOPS | libc::IPV6_TCLASS)
        }
        _ => false,
    }
}

fn checked(result: impl TryInto<u64>) -> Result<u64, i32> {
    result.try_into().map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

fn owned(fd: RawFd) -> Result<OwnedFd, i32> {
    checked(fd)?;
    // SAFETY: a descriptor that the kernel has just made for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn event_fd() -> Result<OwnedFd, i32> {
    // SAFETY: no memory is involved.
    owned(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })
}

fn write_one(fd: RawFd) {
    let one = 1_u64;
    // SAFETY: eight bytes of ours. A full counter wakes as well.
    unsafe { libc::write(fd, (&raw const one).cast(), 8) };
}

fn read_all(fd: RawFd) {
    let mut count = 0_u64;
    // SAFETY: eight bytes of ours; an empty counter is no error that matters.
    unsafe { libc::read(fd, (&raw mut count).cast(), 8) };
}

fn timespec(ns: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: (ns % 1_000_000_000) as i64,
    }
}
