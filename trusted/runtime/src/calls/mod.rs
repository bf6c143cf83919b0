//! The Linux calls: what a program inside may ask of its operating system, one file a family.
//!
//! Three kinds: answered inside; passed to the host where the manifest allows it, with every result checked; refused
//! with ENOSYS and counted by number, so that `enclos inspect --runtime` can tell what a program missed.

pub mod channel;
pub mod descriptors;
pub mod event;
pub mod files;
pub mod futex;
pub mod identity;
pub mod memory;
pub mod mounts;
pub mod poll;
pub mod sealed;
pub mod signal;
pub mod socket;
pub mod threads;
pub mod time;
pub mod tree;

use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use enclos::abi::{LINUX_MAGIC, REPORT_MAGIC, counter, hostcall};

use crate::entry::Registers;
use crate::host::Errno;
use crate::thread::Thread;

/// What a Linux call returns to the program.
pub type Outcome = Result<u64, Errno>;

static COUNTERS: [AtomicU64; counter::COUNT] = [const { AtomicU64::new(0) }; counter::COUNT];

/// Counts one occurrence.
pub fn count(index: usize) {
    // Not a locked addition: counts are for people, and the calls are too fast for one.
    let c = &COUNTERS[index];
    c.store(c.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// A counter's value.
pub fn counter(index: usize) -> u64 {
    COUNTERS[index].load(Ordering::Relaxed)
}

static IS_REPORT_WANTED: AtomicBool = AtomicBool::new(false);

/// Calls by number, while a report is wanted: how many in all, and how many needed the host.
static BY_NUMBER: [[AtomicU64; 2]; LINUX_CALLS] = [const { [const { AtomicU64::new(0) }; 2] }; LINUX_CALLS];
/// Numbers that are told apart; the last stands for all beyond.
const LINUX_CALLS: usize = 512;

/// The host wants to know at the end which calls were made and refused ([`enclos::abi::REPORT_VARIABLE`]). The caller
/// has checked that the manifest lets output out.
pub fn want_report() {
    IS_REPORT_WANTED.store(true, Ordering::Relaxed);
}

/// Tells the host the counters, as a log record, if it asked for them.
pub fn report(me: &mut Thread) {
    if !IS_REPORT_WANTED.swap(false, Ordering::Relaxed) {
        return;
    }
    let mut text = Line::new();
    let named = [
        ("direct", counter::DIRECT_CALLS),
        ("trapped", counter::TRAPPED_CALLS),
        ("cpuid", counter::CPUIDS),
        ("refused", counter::REFUSED_CALLS),
    ];
    let mut written = text.write_str(REPORT_MAGIC);
    for (name, index) in named {
        written = written.and_then(|()| write!(text, " {name}={}", counter(index)));
    }
    for number in 0..counter::COUNT - counter::REFUSED_BY_NUMBER {
        let count = counter(counter::REFUSED_BY_NUMBER + number);
        if count != 0 {
            // A line that is full ends there; the total above tells that something is missing.
            written = written.and_then(|()| write!(text, " {number}={count}"));
        }
    }
    let _ = written;
    const DEBUG: u64 = 4;
    text.log(me, DEBUG);
    let mut text = Line::new();
    let mut written = text.write_str(LINUX_MAGIC);
    for (number, [made, passed]) in BY_NUMBER.iter().enumerate() {
        let (made, passed) = (made.load(Ordering::Relaxed), passed.load(Ordering::Relaxed));
        if made != 0 {
            written = written.and_then(|()| write!(text, " {number}={made}/{passed}"));
        }
    }
    let _ = written;
    text.log(me, DEBUG);
}

/// Text of a bounded length.
pub struct Line {
    bytes: [u8; 2048],
    len: usize,
}

impl Line {
    /// Empty.
    pub const fn new() -> Self {
        Self { bytes: [0; 2048], len: 0 }
    }

    /// Gives it to the host as a log record.
    pub fn log(&self, me: &mut Thread, level: u64) {
        crate::host::Frame::of(me).put(0, &self.bytes[..self.len]);
        crate::host::call_keeping(me, hostcall::LOG, level, self.len as u64, 0);
    }
}

impl core::fmt::Write for Line {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + s.len()).ok_or(core::fmt::Error)?;
        room.copy_from_slice(s.as_bytes());
        self.len += s.len();
        Ok(())
    }
}

/// Logs what the text writes, where the manifest lets output out.
pub fn log_error(text: impl FnOnce(&mut Line) -> core::fmt::Result) {
    const ERROR: u64 = 1;
    if crate::boot::stdio_allowed() {
        let mut line = Line::new();
        // A line that is full ends there.
        let _ = text(&mut line);
        line.log(Thread::current(), ERROR);
    }
}

/// From `enclos_syscall`: the result for RAX.
pub unsafe extern "C" fn linux(r: &mut Registers) -> i64 {
    count(counter::DIRECT_CALLS);
    if r.rax == signal::RT_SIGRETURN {
        signal::return_from_handler(Thread::current(), r);
    }
    make(r)
}

/// Makes the call that the registers name.
fn make(r: &mut Registers) -> i64 {
    let outcome = if IS_REPORT_WANTED.load(Ordering::Relaxed) { count_by_number(r) } else { dispatch(r) };
    end(r, r.rax, outcome)
}

/// Ends the call of this number; the program may go on in a signal handler.
fn end(r: &mut Registers, number: u64, outcome: Outcome) -> i64 {
    let me = Thread::current();
    in_rax(if signal::is_due(me) && !crate::ended() {
        signal::deliver(me, r, number, outcome)
    } else {
        outcome
    })
}

/// As Linux returns it.
fn in_rax(outcome: Outcome) -> i64 {
    match outcome {
        Ok(value) => value as i64,
        Err(Errno(code)) => -i64::from(code),
    }
}

fn count_by_number(r: &Registers) -> Outcome {
    let [made, passed] = &BY_NUMBER[(r.rax as usize).min(LINUX_CALLS - 1)];
    made.fetch_add(1, Ordering::Relaxed);
    let before = Thread::current().requests;
    let outcome = dispatch(r);
    if Thread::current().requests != before {
        passed.fetch_add(1, Ordering::Relaxed);
    }
    outcome
}

/// AT_FDCWD: paths start at the working directory, which is the root.
const HERE: u64 = -100_i64 as u64;

fn dispatch(r: &Registers) -> Outcome {
    let [a, b, c, d, e, f] = [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9];
    let me = Thread::current();
    // Numbers: Linux arch/x86/entry/syscalls/syscall_64.tbl.
    match r.rax {
        0 => files::read(me, a, b, c),
        1 => files::write(me, a, b, c),
        2 => files::open(me, HERE, a, b, c),
        3 => descriptors::close(a),
        4 | 6 => files::newfstatat(HERE, a, b), // stat, lstat
        5 => files::fstat(a, b),
        7 => poll::poll(me, a, b, poll::milliseconds(c)),
        8 => files::seek(a, b, c),
        9 => memory::mmap([a, b, c, d, e, f]),
        10 => memory::mprotect(a, b, c),
        11 => crate::memory::unmap(a, b).map(|()| 0),
        12 => Ok(crate::memory::set_break(a)),
        13 => signal::action(a, b, c, d),
        14 => signal::procmask(me, a, b, c, d),
        16 => descriptors::ioctl(me, a, b, c),
        17 => files::pread(a, b, c, d),
        18 => files::pwrite(me, a, b, c, d),
        19 => files::readv(me, a, b, c),
        20 => files::writev(me, a, b, c),
        21 => files::access(HERE, a),
        22 => descriptors::pipe(a, 0),
        23 => poll::select(me, a, [b, c, d], time::optional_timeval(e)?),
        24 => threads::yield_now(me),
        25 => crate::memory::remap(a, b, c, d & 1 != 0),
        26 => Ok(0), // msync
        28 => memory::madvise(a, b, c),
        32 => descriptors::dup(a),
        33 => descriptors::dup_to(a, b, 0, true),
        34 => signal::pause(me),
        35 => time::nanosleep(me, a, b),
        39 => Ok(1), // getpid
        41 => socket::socket(me, a, b, c),
        42 => socket::connect(me, a, b, c),
        43 => socket::accept(me, a, b, c, 0),
        44 => socket::sendto(me, a, b, c, d, e, f),
        45 => socket::recvfrom(me, a, b, c, d, e, f),
        46 => socket::sendmsg(me, a, b, c),
        47 => socket::recvmsg(me, a, b, c),
        48 => socket::shutdown(me, a, b),
        49 => socket::bind(me, a, b, c),
        50 => socket::listen(me, a, b),
        51 => socket::get_name(me, a, b, c, false),
        52 => socket::get_name(me, a, b, c, true),
        53 => socket::socketpair(a, b, c, d),
        54 => socket::set_option(me, a, b, c, d, e),
        55 => socket::get_option(me, a, b, c, d, e),
        56 => crate::thread::clone(r),
        60 => crate::thread::end(me),
        62 => signal::kill(me, r, a, b),
        63 => identity::uname(a),
        72 => descriptors::fcntl(a, b, c),
        73 | 91 | 93 => files::nothing_to_do(a), // flock, fchmod, fchown
        74 | 75 => files::sync(a),               // fsync, fdatasync
        77 => files::ftruncate(me, a, b),
        79 => identity::getcwd(a, b),
        82 => files::rename([HERE, a], [HERE, b], 0),
        162 | 306 => mounts::commit_all(me).map(|()| 0), // sync, syncfs
        83 => files::mkdir(me, HERE, a, b),
        84 => files::unlink(HERE, a, 0x200),       // rmdir
        85 => files::open(me, HERE, a, 0o1101, b), // creat
        87 => files::unlink(HERE, a, 0),
        89 => files::readlink(HERE, a, b, c),
        90 => files::access(HERE, a), // chmod: nobody is refused anything
        95 => Ok(0o022),              // umask
        96 => time::gettimeofday(me, a),
        97 => identity::getrlimit(a, b),
        98 => identity::getrusage(me, b),
        99 => identity::sysinfo(me, a),
        102 | 104 | 107 | 108 => Ok(0), // getuid, getgid, geteuid, getegid
        110 => Ok(0),                   // getppid
        127 => signal::pending(me, a, b),
        128 => signal::timedwait(me, a, b, c, d),
        130 => signal::suspend(me, a, b),
        131 => signal::altstack(me, r, a, b),
        157 => identity::prctl(a),
        158 => threads::arch_prctl(a, b),
        186 => Ok(u64::from(me.tid)),               // gettid
        200 => signal::kill_thread(me, r, 1, a, b), // tkill
        201 => time::time(me, a),
        202 => futex::futex(me, a, b as u32, c as u32, d, e, f as u32),
        203 => Ok(0), // sched_setaffinity
        204 => identity::sched_getaffinity(b, c),
        213 => poll::epoll_create(me, 0),
        217 => files::getdents(a, b, c),
        218 => {
            me.clear_tid = a;
            Ok(u64::from(me.tid))
        }
        228 => time::clock_gettime(me, a, b),
        229 => time::clock_getres(a, b),
        230 => time::clock_nanosleep(me, a, b, c, d),
        231 => threads::exit_group(me, a),
        232 => poll::epoll_wait(me, a, b, c, poll::milliseconds(d)),
        233 => poll::epoll_ctl(me, a, b, c, d),
        234 => signal::kill_thread(me, r, a, b, c), // tgkill
        257 => files::open(me, a, b, c, d),
        258 => files::mkdir(me, a, b, c),
        262 => files::newfstatat(a, b, c),
        263 => files::unlink(a, b, c),
        264 => files::rename([a, b], [c, d], 0),
        267 => files::readlink(a, b, c, d),
        268 | 269 | 439 => files::access(a, b), // fchmodat, faccessat, faccessat2
        270 => {
            let (limit, [mask, size]) = (poll::optional_timespec(e)?, signal::mask_argument(f)?);
            signal::with_mask(me, mask, size, |me| poll::select(me, a, [b, c, d], limit))
        }
        271 => {
            let limit = poll::optional_timespec(c)?;
            signal::with_mask(me, d, e, |me| poll::poll(me, a, b, limit))
        }
        273 => Ok(0), // set_robust_list
        281 => signal::with_mask(me, e, f, |me| poll::epoll_wait(me, a, b, c, poll::milliseconds(d))),
        283 => event::timerfd_create(a, b),
        284 => event::eventfd(a, 0),
        286 => event::timerfd_settime(me, a, b, c, d),
        287 => event::timerfd_gettime(me, a, b),
        288 => socket::accept(me, a, b, c, d),
        290 => event::eventfd(a, b),
        291 => poll::epoll_create(me, a),
        292 => descriptors::dup_to(a, b, c as u32, false),
        293 => descriptors::pipe(a, b),
        299 => socket::recvmmsg(me, [a, b, c, d], poll::optional_timespec(e)?),
        302 => identity::prlimit(b, c, d),
        307 => socket::sendmmsg(me, a, b, c, d),
        309 => identity::getcpu(a, b),
        318 => identity::getrandom(a, b),
        324 => Ok(0), // membarrier: all threads see all stores
        332 => files::statx(a, b, e),
        316 => files::rename([a, b], [c, d], e),
        435 => crate::thread::clone3(r),
        436 => descriptors::close_range(a, b, c),
        441 => {
            let limit = poll::optional_timespec(d)?;
            signal::with_mask(me, e, f, |me| poll::epoll_wait(me, a, b, c, limit))
        }
        number => refuse(number),
    }
}

fn refuse(number: u64) -> Outcome {
    count(counter::REFUSED_CALLS);
    // rseq (334) is asked for by every start and has a well-known fallback; it is counted too.
    let slots = (counter::COUNT - counter::REFUSED_BY_NUMBER) as u64;
    count(counter::REFUSED_BY_NUMBER + number.min(slots - 1) as usize);
    Err(Errno::NOSYS)
}

/// Memory that the program named, checked to be its own: results must never be written where the program has none.
pub fn own<T>(at: u64) -> Result<*mut T, Errno> {
    if crate::host::is_inside(at, size_of::<T>() as u64) { Ok(at as *mut T) } else { Err(Errno::FAULT) }
}

/// As [`own`], for a run of bytes.
pub fn own_bytes(at: u64, len: u64) -> Result<*mut u8, Errno> {
    if len == 0 || crate::host::is_inside(at, len) { Ok(at as *mut u8) } else { Err(Errno::FAULT) }
}
