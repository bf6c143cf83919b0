//! File descriptors: the enclave's own numbers for what is open. What they stand for lives in [`Object`]s, which
//! several descriptors may share, as open file descriptions do in Linux.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use enclos::abi::hostcall;

use super::Outcome;
use super::channel::{Channel, End};
use super::event::{Counter, Timer};
use super::mounts::Listed;
use super::poll::Epoll;
use super::socket::Socket;
use super::tree::{Node, Path};
use crate::clock::{self, Clock};
use crate::host::{self, Errno};
use crate::lock::{HostLock, SpinLock};
use crate::thread::Thread;

/// O_NONBLOCK, also SOCK_NONBLOCK, EFD_NONBLOCK, TFD_NONBLOCK.
pub const NONBLOCK: u32 = 0o4000;
/// O_CLOEXEC and its likes. There is no exec; the flag is kept for those who ask.
pub const CLOEXEC: u32 = 0o200_0000;
/// What F_SETFL may change: O_APPEND, O_NONBLOCK.
pub const CHANGEABLE: u32 = 0o2000 | NONBLOCK;
/// Descriptors a program may have.
pub const MOST: usize = 1 << 16;

/// Poll events.
pub mod events {
    pub const IN: u32 = 1;
    pub const OUT: u32 = 4;
    pub const ERR: u32 = 8;
    pub const HUP: u32 = 0x10;
    pub const NVAL: u32 = 0x20;
    pub const RDHUP: u32 = 0x2000;
    /// Reported whether asked for or not.
    pub const ALWAYS: u32 = ERR | HUP;
}

/// Something open.
pub struct Object {
    pub kind: Kind,
    /// Access mode and status flags, as F_GETFL reports them.
    pub flags: AtomicU32,
}

/// What it is.
pub enum Kind {
    /// Standard input, output, error.
    Standard(u32),
    /// A socket of the host's.
    Socket(Socket),
    /// One end of a pipe or of a pair of connected sockets inside the enclave.
    Channel(End),
    /// eventfd(2).
    Counter(Counter),
    /// timerfd_create(2).
    Timer(Timer),
    /// epoll_create(2).
    Epoll(Epoll),
    /// Something of the file system.
    File(Open),
}

/// An open file, directory or device.
pub struct Open {
    pub node: Arc<Node>,
    /// The path it was opened by: what paths relative to it start from.
    pub path: Path,
    /// Where the next read or write is; of a directory, how many entries were read.
    pub offset: HostLock<u64>,
    /// Of a mounted directory: what was in it when reading began.
    pub listing: SpinLock<Vec<Listed>>,
}

/// Both clocks at one moment, for timers.
#[derive(Clone, Copy)]
pub struct Now {
    pub realtime: u64,
    pub monotonic: u64,
}

impl Now {
    /// Asks the clocks.
    pub fn ask(me: &mut Thread) -> Result<Self, Errno> {
        let (realtime, monotonic) = (clock::now(me, Clock::Realtime)?, clock::now(me, Clock::Monotonic)?);
        Ok(Self { realtime, monotonic })
    }
}

impl Object {
    /// With access mode read and write.
    pub fn new(kind: Kind, flags: u32) -> Self {
        Self { kind, flags: AtomicU32::new(flags & CHANGEABLE | 2) }
    }

    /// May a call on it wait?
    pub fn blocks(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & NONBLOCK == 0
    }

    /// The host's handle, if the host must be asked whether it is ready.
    pub fn host_handle(&self) -> Option<u32> {
        match &self.kind {
            Kind::Socket(s) => Some(s.handle),
            _ => None,
        }
    }

    /// Poll events that are there, of what is known inside.
    pub fn level(&self, now: Now) -> u32 {
        match &self.kind {
            // Reading standard input may wait all the same: the host is not asked before.
            Kind::Standard(0) => events::IN,
            Kind::Standard(_) => events::OUT,
            Kind::Channel(end) => end.level(),
            Kind::Counter(c) => c.level(),
            Kind::Timer(t) => t.level(now),
            // Files never wait.
            Kind::File(_) => events::IN | events::OUT,
            Kind::Socket(_) | Kind::Epoll(_) => 0,
        }
    }

    /// How often something has happened so far: edge-triggered events are due when this has changed.
    pub fn edge(&self, now: Now) -> u64 {
        let watched: u64 = self.watches().into_iter().flatten().map(Watch::edge).sum();
        match &self.kind {
            Kind::Timer(t) => watched + t.ticks(now),
            _ => watched,
        }
    }

    /// When it becomes ready by itself: nanoseconds from now.
    pub fn due(&self, now: Now) -> Option<u64> {
        match &self.kind {
            Kind::Timer(t) => t.due(now),
            _ => None,
        }
    }

    /// Where those wait who want to know of changes.
    pub fn watches(&self) -> [Option<&Watch>; 2] {
        match &self.kind {
            Kind::Channel(end) => end.watches(),
            Kind::Counter(c) => [Some(&c.watch), None],
            Kind::Timer(t) => [Some(&t.watch), None],
            Kind::Standard(_) | Kind::Socket(_) | Kind::Epoll(_) | Kind::File(_) => [None, None],
        }
    }
}

/// Who waits for changes of an object: threads, and epoll instances it is registered with.
pub struct Watch {
    watchers: SpinLock<Watchers>,
    edge: AtomicU64,
}

struct Watchers {
    /// A bit a thread.
    threads: [u64; 16],
    epolls: Vec<Weak<Object>>,
}

impl Watch {
    pub const fn new() -> Self {
        Self {
            watchers: SpinLock::new(Watchers { threads: [0; 16], epolls: Vec::new() }),
            edge: AtomicU64::new(0),
        }
    }

    fn edge(&self) -> u64 {
        self.edge.load(Ordering::SeqCst)
    }

    /// From now on the thread is woken at the next change, once.
    pub fn enlist(&self, me: &Thread) {
        let index = me.seed.index as usize;
        self.watchers.lock().threads[index / 64 % 16] |= 1 << (index % 64);
    }

    /// No more.
    pub fn delist(&self, me: &Thread) {
        let index = me.seed.index as usize;
        self.watchers.lock().threads[index / 64 % 16] &= !(1 << (index % 64));
    }

    /// From now on the epoll instance is woken at every change.
    pub fn attach(&self, epoll: &Arc<Object>) {
        let mut watchers = self.watchers.lock();
        watchers.epolls.retain(|e| e.strong_count() != 0);
        if !watchers.epolls.iter().any(|e| core::ptr::eq(e.as_ptr(), Arc::as_ptr(epoll))) {
            watchers.epolls.push(Arc::downgrade(epoll));
        }
    }

    /// Something has changed. No lock may be held: this may leave the enclave.
    pub fn notify(&self) {
        self.edge.fetch_add(1, Ordering::SeqCst);
        let threads = core::mem::take(&mut self.watchers.lock().threads);
        let me = Thread::current();
        for (i, mut word) in threads.into_iter().enumerate() {
            while word != 0 {
                let index = i as u64 * 64 + u64::from(word.trailing_zeros());
                word &= word - 1;
                if index != me.seed.index {
                    host::call_keeping(me, hostcall::WAKE, index, 0, 0);
                }
            }
        }
        let mut i = 0;
        loop {
            let next = match self.watchers.lock().epolls.get(i) {
                Some(epoll) => epoll.upgrade(),
                None => break,
            };
            if let Some(Kind::Epoll(epoll)) = next.as_deref().map(|o| &o.kind) {
                epoll.wake();
            }
            i += 1;
        }
    }
}

/// Waits until `attempt` gives something, looking again whenever one of the watches has changed.
///
/// # Errors
/// EAGAIN when the time (CLOCK_MONOTONIC) has come, EINTR for a signal and when the enclave has ended.
pub fn wait_for<T>(
    me: &mut Thread,
    watch: &Watch,
    until: Option<u64>,
    mut attempt: impl FnMut(&mut Thread) -> Option<T>,
) -> Result<T, Errno> {
    loop {
        watch.enlist(me);
        if let Some(found) = attempt(me) {
            watch.delist(me);
            return Ok(found);
        }
        if crate::ended() || super::signal::is_due(me) {
            watch.delist(me);
            return Err(Errno::INTR);
        }
        let left = match until {
            Some(until) => match until.saturating_sub(clock::now(me, Clock::Monotonic)?) {
                0 => return Err(Errno::AGAIN),
                left => left,
            },
            None => 0,
        };
        // The answer does not matter: what is looked at again decides.
        host::call_keeping(me, hostcall::WAIT, me.seed.index, left, 0);
    }
}

#[derive(Clone)]
struct Entry {
    object: Arc<Object>,
    closes_on_exec: bool,
}

static TABLE: SpinLock<Table> = SpinLock::new(Table { entries: Vec::new(), lowest: 0 });

struct Table {
    entries: Vec<Option<Entry>>,
    /// All descriptors below are in use: with ten thousand open, looking for a free one takes no time.
    lowest: usize,
}

impl Table {
    fn get(&self, fd: u64) -> Result<&Entry, Errno> {
        // Linux takes an int: the upper half is not looked at.
        self.entries.get(fd as u32 as usize).and_then(Option::as_ref).ok_or(Errno::BADF)
    }

    fn get_mut(&mut self, fd: u64) -> Option<&mut Entry> {
        self.entries.get_mut(fd as u32 as usize).and_then(Option::as_mut)
    }

    fn take(&mut self, fd: u64) -> Option<Entry> {
        let taken = self.entries.get_mut(fd as u32 as usize).and_then(Option::take);
        if taken.is_some() {
            self.lowest = self.lowest.min(fd as u32 as usize);
        }
        taken
    }

    /// Puts it at the lowest free descriptor that is not below `least`, or gives it back with the reason.
    fn put(&mut self, entry: Entry, least: usize) -> Result<usize, (Errno, Entry)> {
        if self.entries.len() < least && !self.grow(least) {
            return Err((Errno::NOMEM, entry));
        }
        let from = least.max(self.lowest);
        let at = match (from..self.entries.len()).find(|i| self.entries[*i].is_none()) {
            Some(free) => free,
            None if self.entries.len() >= MOST => return Err((Errno::MFILE, entry)),
            None if !self.grow(self.entries.len() + 1) => return Err((Errno::NOMEM, entry)),
            None => self.entries.len() - 1,
        };
        self.entries[at] = Some(entry);
        if from == self.lowest {
            self.lowest = at + 1;
        }
        Ok(at)
    }

    /// Makes room for so many; `false` when there is no memory for them.
    fn grow(&mut self, len: usize) -> bool {
        let has_room = self.entries.try_reserve(len.saturating_sub(self.entries.len())).is_ok();
        if has_room && self.entries.len() < len {
            self.entries.resize(len, None);
        }
        has_room
    }
}

/// Opens the standard streams. Once, before the program runs.
pub fn initialise() {
    for stream in 0..3 {
        let object = Object::new(Kind::Standard(stream), 0);
        object.flags.store(u32::from(stream != 0), Ordering::Relaxed);
        // The table is empty.
        let _ = add(Arc::new(object), 0);
    }
}

/// What a descriptor stands for.
pub fn get(fd: u64) -> Result<Arc<Object>, Errno> {
    TABLE.lock().get(fd).map(|e| e.object.clone())
}

/// Makes an object and the lowest free descriptor for it; `flags` are O_NONBLOCK and O_CLOEXEC.
pub fn open(kind: Kind, flags: u32) -> Outcome {
    add(Arc::new(Object::new(kind, flags)), flags)
}

/// The lowest free descriptor for an object.
pub fn add(object: Arc<Object>, flags: u32) -> Outcome {
    add_from(object, flags, 0)
}

fn add_from(object: Arc<Object>, flags: u32, least: usize) -> Outcome {
    if least >= MOST {
        return Err(Errno::INVAL);
    }
    let entry = Entry { object, closes_on_exec: flags & CLOEXEC != 0 };
    let put = TABLE.lock().put(entry, least);
    // Closing what has no descriptor may leave the enclave, so not under the lock.
    put.map(|fd| fd as u64).map_err(|(reason, _)| reason)
}

/// Is there room for a new object?
///
/// # Errors
/// ENOMEM when there is not.
pub fn room() -> Result<(), Errno> {
    if crate::heap::has_room() { Ok(()) } else { Err(Errno::NOMEM) }
}

/// close(2).
pub fn close(fd: u64) -> Outcome {
    let closed = TABLE.lock().take(fd);
    closed.map(|_| 0).ok_or(Errno::BADF)
}

/// close_range(2).
pub fn close_range(first: u64, last: u64, flags: u64) -> Outcome {
    const CLOSE_RANGE_CLOEXEC: u64 = 4;
    if first > last || flags & !(2 | CLOSE_RANGE_CLOEXEC) != 0 {
        return Err(Errno::INVAL);
    }
    let last = last.min(MOST as u64 - 1);
    for fd in first..=last {
        if fd >= TABLE.lock().entries.len() as u64 {
            break;
        }
        if flags & CLOSE_RANGE_CLOEXEC == 0 {
            let _ = close(fd);
        } else if let Some(entry) = TABLE.lock().get_mut(fd) {
            entry.closes_on_exec = true;
        }
    }
    Ok(0)
}

/// dup(2).
pub fn dup(fd: u64) -> Outcome {
    add(get(fd)?, 0)
}

/// dup2(2) and dup3(2).
pub fn dup_to(fd: u64, to: u64, flags: u32, may_be_same: bool) -> Outcome {
    let object = get(fd)?;
    let to = to as u32 as usize;
    if fd as u32 as usize == to {
        return if may_be_same { Ok(to as u64) } else { Err(Errno::INVAL) };
    }
    if to >= MOST {
        return Err(Errno::BADF);
    }
    room()?;
    let replaced = {
        let mut table = TABLE.lock();
        if !table.grow(to + 1) {
            return Err(Errno::NOMEM);
        }
        table.entries[to].replace(Entry { object, closes_on_exec: flags & CLOEXEC != 0 })
    };
    drop(replaced);
    Ok(to as u64)
}

/// fcntl(2): descriptors and flags. File locks always succeed: there is one process.
pub fn fcntl(fd: u64, command: u64, argument: u64) -> Outcome {
    const F_UNLCK: u16 = 2;
    let object = get(fd)?;
    match command {
        0 => add_from(object, 0, argument as usize),
        1030 => add_from(object, CLOEXEC, argument as usize), // F_DUPFD_CLOEXEC
        1 => Ok(u64::from(TABLE.lock().get(fd)?.closes_on_exec)),
        2 => {
            if let Some(entry) = TABLE.lock().get_mut(fd) {
                entry.closes_on_exec = argument & 1 != 0;
            }
            Ok(0)
        }
        3 => Ok(u64::from(object.flags.load(Ordering::Relaxed))),
        4 => {
            let kept = object.flags.load(Ordering::Relaxed) & !CHANGEABLE;
            object.flags.store(kept | argument as u32 & CHANGEABLE, Ordering::Relaxed);
            Ok(0)
        }
        // F_GETLK, F_OFD_GETLK: nobody else holds one.
        5 | 36 => {
            // SAFETY: checked to be the program's; l_type is the first field of `struct flock`.
            unsafe { super::own::<u16>(argument)?.write(F_UNLCK) };
            Ok(0)
        }
        6 | 7 | 37 | 38 => Ok(0),
        _ => Err(Errno::INVAL),
    }
}

/// ioctl(2): FIONBIO, FIONREAD, FIOCLEX, FIONCLEX. There are no terminals.
pub fn ioctl(me: &mut Thread, fd: u64, request: u64, argument: u64) -> Outcome {
    let object = get(fd)?;
    match request as u32 {
        0x5421 => {
            // SAFETY: checked to be the program's.
            let on = unsafe { super::own::<u32>(argument)?.read() } != 0;
            let kept = object.flags.load(Ordering::Relaxed) & !NONBLOCK;
            object.flags.store(kept | if on { NONBLOCK } else { 0 }, Ordering::Relaxed);
            Ok(0)
        }
        0x541b => {
            let count = match &object.kind {
                Kind::Socket(s) => s.available(me)?,
                Kind::Channel(end) => end.available(),
                _ => return Err(Errno::NOTTY),
            };
            // SAFETY: checked to be the program's.
            unsafe { super::own::<u32>(argument)?.write(count as u32) };
            Ok(0)
        }
        0x5451 => fcntl(fd, 2, 1),
        0x5450 => fcntl(fd, 2, 0),
        _ => Err(Errno::NOTTY),
    }
}

/// pipe2(2).
pub fn pipe(to: u64, flags: u64) -> Outcome {
    room()?;
    let channel = Arc::new(Channel::new());
    let flags = flags as u32;
    pair(to, flags, End::reader(channel.clone()), End::writer(channel), [0, 1])
}

/// Two ends, two descriptors, with these access modes.
pub fn pair(to: u64, flags: u32, first: End, second: End, modes: [u32; 2]) -> Outcome {
    let to = super::own::<[u32; 2]>(to)?;
    let mut fds = [0; 2];
    for (i, end) in [first, second].into_iter().enumerate() {
        let object = Object::new(Kind::Channel(end), 0);
        object.flags.store(flags & CHANGEABLE | modes[i], Ordering::Relaxed);
        match add(Arc::new(object), flags) {
            Ok(fd) => fds[i] = fd as u32,
            Err(e) => {
                if i == 1 {
                    let _ = close(u64::from(fds[0]));
                }
                return Err(e);
            }
        }
    }
    // SAFETY: checked to be the program's.
    unsafe { to.write(fds) };
    Ok(0)
}
