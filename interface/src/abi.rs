//! How a thread enters and leaves the enclave, and what it may ask of the host meanwhile.
//!
//! # Entering
//! The host executes ENCLU\[EENTER\] (or the platform's equivalent of `__vdso_sgx_enter_enclave`) with an
//! [operation](op) in RDI and up to four arguments in RSI, RDX, R8 and R9. The enclave leaves by ENCLU\[EEXIT\] with an
//! [exit code](exit) in RDI and up to four values in the same registers; every other register is zero, except RSP,
//! RBP and RBX that the host needs to go on.
//!
//! # Calls
//! A thread of the application that serves calls *parks* in [`RuntimeTable::next_call`]. An ecall is the return of
//! that function; the next invocation of it carries the reply out. So both directions are one mechanism: the enclave
//! side saves a context and exits, a later entry restores it.
//!
//! Whatever the host passes is an allegation: the runtime checks that a buffer lies wholly outside ELRANGE before
//! anyone touches it, and what is read is copied once and only then looked at.

/// Version of everything in this module; the host checks it against the image's before the first entry.
pub const ABI_VERSION: u32 = 4;

/// Page size of EPC pages (SDM vol. 3D, 34.5).
pub const PAGE_SIZE: u64 = 4096;

/// Operations: RDI at EENTER.
pub mod op {
    /// First entry of all, once: RSI = address of a [`super::StartInfo`], RDX = its size.
    pub const START: u64 = 1;
    /// A thread for the application's `clone`: enters a free TCS. No arguments; the runtime has a list of what to run.
    pub const THREAD: u64 = 2;
    /// Deliver a call to a parked thread: RSI = request, RDX = request length, R8 = reply buffer, R9 = its capacity.
    pub const CALL: u64 = 3;
    /// The host call the thread is waiting in has ended: RSI = result.
    pub const RETURN: u64 = 4;
    /// A call on top of the typed host-service call the thread is waiting in; arguments as [`CALL`].
    pub const NESTED_CALL: u64 = 5;
    /// The thread left by an exception: look at the SSA frame. Only at CSSA = 1, and at CSSA = 2 when EACCEPT faulted in
    /// the handling of one. RSI: see [`exit::AUGMENT`](super::exit::AUGMENT).
    pub const EXCEPTION: u64 = 6;
    /// Tell a parked thread that no more calls will come: its `next_call` returns [`super::NEXT_SHUTDOWN`].
    pub const SHUTDOWN: u64 = 7;
}

/// Exit codes: RDI at EEXIT.
pub mod exit {
    /// The thread parked for the first time, or again after a call. RSI = the reply's [status](super::status),
    /// RDX = the reply's length in bytes.
    pub const PARKED: u64 = 0x100;
    /// A request to the host: RSI = [number](super::hostcall), RDX, R8, R9 = arguments. Answer with
    /// [`op::RETURN`](super::op::RETURN).
    pub const HOST_CALL: u64 = 0x101;
    /// The exception was handled: ERESUME.
    pub const RESUME: u64 = 0x102;
    /// The exception was a page fault in memory that was promised and is not there yet: RSI = address of the first page,
    /// RDX = number of pages to [augment](super::hostcall::AUGMENT). Then [`op::EXCEPTION`](super::op::EXCEPTION)
    /// again, with RSI = 0, or 1 if there are none.
    pub const AUGMENT: u64 = 0x108;
    /// The application's thread ended; the TCS is free again.
    pub const THREAD_END: u64 = 0x103;
    /// The program ended (`exit_group`): RSI = exit status.
    pub const EXIT: u64 = 0x104;
    /// The enclave ended itself after a fault; RSI = length of a [`FaultReport`](super::FaultReport) in the
    /// thread's frame, its text included, or 0.
    pub const FAULT: u64 = 0x105;
    /// The entry itself was not acceptable: RSI = a [refusal](super::refusal).
    pub const REFUSED: u64 = 0x106;
    /// A nested call ended: RSI, RDX as in [`PARKED`]. The thread is still waiting in its host call.
    pub const NESTED_DONE: u64 = 0x107;
}

/// Why an entry was refused: RSI with [`exit::REFUSED`].
pub mod refusal {
    /// The operation is unknown.
    pub const OPERATION: u64 = 1;
    /// The thread is not in a state in which this operation makes sense (for example CALL to one that is running).
    pub const STATE: u64 = 2;
    /// A pointer and length do not lie wholly outside ELRANGE, or wrap.
    pub const POINTER: u64 = 3;
    /// The enclave has ended.
    pub const ENDED: u64 = 4;
    /// START came twice, or another operation before it.
    pub const ORDER: u64 = 5;
    /// The start information is of another ABI version or not usable.
    pub const START_INFO: u64 = 6;
    /// Nested calls are too deep ([`super::MAX_NESTING`]) or the thread is not in a typed host-service call.
    pub const NESTING: u64 = 7;
    /// CSSA is not what the operation needs.
    pub const CSSA: u64 = 8;
    /// There is no thread waiting to be started.
    pub const NO_THREAD: u64 = 9;
    /// The host did not give the memory that the enclave needs to start.
    pub const NO_MEMORY: u64 = 10;
}

/// Status of a reply to a call (either direction).
pub mod status {
    /// The payload is the encoded result.
    pub const OK: u64 = 0;
    /// The callee panicked; the payload is the message, UTF-8.
    pub const PANICKED: u64 = 1;
    /// No contract or method of that number; no payload.
    pub const NO_SUCH_METHOD: u64 = 2;
    /// The arguments did not decode; no payload.
    pub const BAD_ARGUMENTS: u64 = 3;
    /// The result is larger than the reply buffer: the length says what is needed. The callee keeps the result: call
    /// again on the same thread with [`super::FETCH_REPLY`] and a larger buffer.
    pub const REPLY_TOO_LARGE: u64 = 4;
    /// The manifest or the host does not offer this service; the payload says why, UTF-8.
    pub const NOT_PERMITTED: u64 = 5;
    /// The result does not encode or is larger than [`super::MAX_MESSAGE`]; the payload says which, UTF-8.
    pub const BAD_RESULT: u64 = 6;
}

/// What the enclave may ask of the host: RSI with [`exit::HOST_CALL`]. Arguments are RDX, R8, R9 (below a, b, c);
/// `frame` is the thread's untrusted frame. The result is >= 0, or a negated Linux error number.
pub mod hostcall {
    /// Does nothing; for measurements. Result 0.
    pub const NOP: u64 = 0;
    /// write(a = fd, frame, b = length): only 1 and 2. Result: bytes written.
    pub const WRITE: u64 = 1;
    /// read(a = fd, frame, b = capacity): only 0. Result: bytes read.
    pub const READ: u64 = 2;
    /// Wait until another thread wakes thread `a`, or b nanoseconds have passed (0: no limit).
    /// Result: 0 woken, -ETIMEDOUT, -EINTR. A wake that comes before the wait is not lost. Spurious wakes are allowed.
    pub const WAIT: u64 = 3;
    /// Wake thread `a` from its WAIT, or let its next one return at once. Result 0.
    pub const WAKE: u64 = 4;
    /// Enter a free TCS with [`op::THREAD`](super::op::THREAD). Result 0, -EAGAIN when no TCS is free.
    pub const SPAWN: u64 = 5;
    /// Sleep a nanoseconds. Result 0 or -EINTR.
    pub const SLEEP: u64 = 6;
    /// Fill the frame with a [`ClockSample`](super::ClockSample). Result 0.
    pub const CLOCK: u64 = 7;
    /// sched_yield. Result 0.
    pub const YIELD: u64 = 8;
    /// CPUID with EAX = a, ECX = b; the frame receives EAX, EBX, ECX, EDX as u32. Result 0.
    pub const CPUID: u64 = 9;
    /// Call a typed host service: a = address of the request (encoded as in [`super::CallHeader`]) in the frame or in
    /// memory of [`ALLOC`], b = its length, c = capacity of the reply, which goes to a + b rounded up to
    /// [`super::REPLY_ALIGN`]. Result: status << 32 | length.
    pub const SERVICE: u64 = 10;
    /// Allocate a bytes of untrusted memory. Result: address, page-aligned.
    pub const ALLOC: u64 = 11;
    /// Free the untrusted memory at a of b bytes. Result 0.
    pub const FREE: u64 = 12;
    /// A log record: a = level (1 error … 5 trace), frame = UTF-8 of b bytes. Result 0.
    pub const LOG: u64 = 13;

    // Sockets. The host names each by a *handle*, a number below 2^31 that means something to the host only. They
    // never block: where Linux would wait, the answer is -EAGAIN, and POLL or EPOLL_WAIT tell when to try again.
    // Socket addresses are `struct sockaddr`s as Linux has them, at `super::ADDRESS_AT` of the frame after a
    // `super::AddressHeader`; data stands at its start, up to `super::MAX_DATA` bytes.

    /// socket(domain = a >> 32, type = a, protocol = b). Result: handle.
    pub const SOCKET: u64 = 14;
    /// bind(handle a, address of b bytes at the address's place). Result 0.
    pub const BIND: u64 = 15;
    /// listen(handle a, backlog b). Result 0.
    pub const LISTEN: u64 = 16;
    /// accept(handle a); the peer's address goes to its place. Result: handle.
    pub const ACCEPT: u64 = 17;
    /// connect(handle a, address of b bytes at its place). Result 0, -EINPROGRESS.
    pub const CONNECT: u64 = 18;
    /// send(handle a, b bytes of data, flags = low half of c), to the address of c >> 32 bytes where that is not 0.
    /// Result: bytes sent.
    pub const SEND: u64 = 19;
    /// recv(handle a, capacity b, flags = c); sender's address and flags of the message go to their place.
    /// Result: bytes received; with MSG_TRUNC the length of the datagram.
    pub const RECV: u64 = 20;
    /// shutdown(handle a, how = b). Result 0.
    pub const SHUTDOWN: u64 = 21;
    /// getsockname (b = 0) or getpeername (b = 1) of handle a. Result 0.
    pub const GET_NAME: u64 = 22;
    /// setsockopt(handle a, level = b >> 32, name = b, value of c bytes at the start of the frame). Result 0.
    pub const SET_OPTION: u64 = 23;
    /// getsockopt(handle a, level = b >> 32, name = b, capacity c), value at the start of the frame. Result: length.
    pub const GET_OPTION: u64 = 24;
    /// FIONREAD of handle a. Result: bytes that can be read.
    pub const AVAILABLE: u64 = 25;
    /// Closes handle a, of whatever kind. Result 0.
    pub const CLOSE: u64 = 26;
    /// An epoll instance. Result: handle.
    pub const EPOLL_CREATE: u64 = 27;
    /// epoll_ctl(handle a, operation = b >> 32, handle = b, events = c); the frame starts with the [index](super::Ready)
    /// under which events are reported. Result 0.
    pub const EPOLL_CTL: u64 = 28;
    /// epoll_wait(handle a, at most b events, c nanoseconds; u64::MAX: no limit). The frame receives
    /// [`Ready`](super::Ready)s. Result: how many; 0 also after an [`EPOLL_WAKE`].
    pub const EPOLL_WAIT: u64 = 29;
    /// Lets the EPOLL_WAIT on handle a return, or the next one. Result 0.
    pub const EPOLL_WAKE: u64 = 30;
    /// poll: the frame holds a [`Polled`](super::Polled)s; b nanoseconds at most (u64::MAX: no limit). A WAKE of the
    /// thread ends it as well. Result: how many are ready.
    pub const POLL: u64 = 31;

    /// Which signals has the host been sent for the program since it was asked last? Asked after a WAIT, POLL or
    /// EPOLL_WAIT that gave -EINTR, where the manifest permits signals. Result: a set, bit 0 is signal 1.
    pub const SIGNALS: u64 = 32;

    // Dynamic memory (SGX2). `a` is the linear address of the first page, `b` the number of pages. What the host answers
    // is an allegation: EACCEPT is what proves that a page is there, of which type and with which permissions.

    /// ENCLS\[EAUG\] of pages; those that are pending already may stay. Result 0, -ENOMEM.
    pub const AUGMENT: u64 = 48;
    /// ENCLS\[EMODPR\] and ENCLS\[ETRACK\]: restricts to the permissions c (SECINFO.FLAGS bits 0 to 2). Result 0.
    pub const RESTRICT: u64 = 49;
    /// ENCLS\[EMODT\] to PT_TRIM and ENCLS\[ETRACK\]. Result 0.
    pub const TRIM: u64 = 50;
    /// ENCLS\[EREMOVE\] of pages whose trimming was accepted. Result 0.
    pub const REMOVE: u64 = 51;
    /// ENCLS\[EMODT\] to PT_TCS and ENCLS\[ETRACK\] of the page at a. Result 0.
    pub const MAKE_TCS: u64 = 52;
    /// The thread region of index a can be entered now: its TCS was accepted. Result 0.
    pub const THREAD_READY: u64 = 53;
    /// The region of the thread with index a is to be taken apart: its TCS is not to be entered until THREAD_READY says
    /// so. Result 0; -EBUSY: it is in use.
    pub const THREAD_RETIRES: u64 = 54;

    // Files of the host's directories that were given for mounts of the manifest. Paths are relative to the mount's
    // directory, without NUL, and stand at the start of the frame; the host follows none that leads out of it. Handles
    // are of another table than those of sockets.

    /// The directory given for the mount whose path of a bytes stands in the frame. Result: a handle; -ENODEV: none was
    /// given.
    pub const FILE_MOUNT: u64 = 64;
    /// open(mount a, path of b bytes, c = Linux's flags | permissions << 32, and [`super::OPEN_LOCKED`]). Result: handle.
    pub const FILE_OPEN: u64 = 65;
    /// pread(handle a, at most b bytes, offset c) to the start of the frame. Result: bytes read.
    pub const FILE_READ: u64 = 66;
    /// pwrite(handle a, b bytes of the start of the frame, offset c). Result: bytes written.
    pub const FILE_WRITE: u64 = 67;
    /// fdatasync(handle a). With b = 1, -ESTALE where the file is no longer in any directory. Result 0.
    pub const FILE_SYNC: u64 = 68;
    /// ftruncate(handle a, b bytes). Result 0.
    pub const FILE_RESIZE: u64 = 69;
    /// posix_fallocate(handle a, from 0, b bytes). Result 0.
    pub const FILE_RESERVE: u64 = 70;
    /// fstat(handle a), or, with b not 0, of what the path of b bytes leads to from that directory: the frame receives a
    /// [`FileStatus`](super::FileStatus). Result 0.
    pub const FILE_STATUS: u64 = 71;
    /// getdents64(handle a), from the beginning if b = 0: the frame receives `struct linux_dirent64`s. Result: bytes; 0
    /// at the end.
    pub const FILE_LIST: u64 = 72;
    /// unlink(mount a, path of b bytes), rmdir if c = 1. Result 0.
    pub const FILE_REMOVE: u64 = 73;
    /// rename(mount a, path of b bytes, path of c bytes after it), without replacing where b >> 32 = 1. Result 0.
    pub const FILE_RENAME: u64 = 74;
    /// mkdir(mount a, path of b bytes, permissions c). Result 0.
    pub const FILE_MAKE_DIRECTORY: u64 = 75;
    /// Closes handle a. Result 0.
    pub const FILE_CLOSE: u64 = 76;
}

/// With [`hostcall::FILE_OPEN`]: take the file for this enclave alone; -EBUSY where another has it.
pub const OPEN_LOCKED: u64 = 1 << 63;

/// What the host says of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FileStatus {
    /// st_ino.
    pub inode: u64,
    /// st_size.
    pub size: u64,
    /// st_mtime in nanoseconds.
    pub modified: u64,
    /// st_mode.
    pub mode: u32,
    /// Zero.
    pub reserved: u32,
}

/// [`RuntimeTable::sealed_state`]: what tells a durable state of sealed files from all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SealedState {
    /// Random, fixed when the files were first made.
    pub volume: [u8; 16],
    /// How often something was made durable.
    pub generation: u64,
    /// Depends on every byte that is durable.
    pub digest: [u8; 16],
}

/// [`RuntimeTable::next_call`] has a call to deliver.
pub const NEXT_CALL: i64 = 0;
/// [`RuntimeTable::next_call`]: no more calls will come.
pub const NEXT_SHUTDOWN: i64 = 1;

/// How deep calls into the enclave may nest on one thread.
pub const MAX_NESTING: u32 = 8;

/// Size of a thread's untrusted frame in bytes.
pub const FRAME_SIZE: u64 = 64 * 1024;

/// Where in a frame socket addresses stand, after an [`AddressHeader`].
pub const ADDRESS_AT: u64 = FRAME_SIZE - 256;

/// Most bytes of data that one call on a socket carries.
pub const MAX_DATA: u64 = ADDRESS_AT;

/// Size of the largest socket address: `struct sockaddr_storage`.
pub const MAX_ADDRESS: u64 = 128;

/// Most events that one [`hostcall::EPOLL_WAIT`] reports.
pub const MAX_READY: u64 = 1024;

/// Most sockets that one [`hostcall::POLL`] looks at.
pub const MAX_POLLED: u64 = FRAME_SIZE / size_of::<Polled>() as u64;

/// What stands before a socket address in a frame; the address follows at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AddressHeader {
    /// Length of the address in bytes; 0: there is none.
    pub len: u32,
    /// `msg_flags` of a received message.
    pub flags: u32,
}

/// An event of an epoll instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ready {
    /// The number that the enclave gave the registration. Never the program's data: that does not leave the enclave.
    pub index: u64,
    /// `EPOLLIN` and so on.
    pub events: u32,
    /// Zero.
    pub reserved: u32,
}

/// One socket of a [`hostcall::POLL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Polled {
    /// Its handle.
    pub handle: u32,
    /// Events asked for.
    pub events: u16,
    /// Events that are there.
    pub found: u16,
}

/// Largest request or reply of one call in bytes; larger ones are refused before anything is copied.
pub const MAX_MESSAGE: u64 = 256 << 20;

/// Messages are copied in pieces of so many bytes. `memcpy` uses REP MOVSB from 2 or 4 KiB on, which on AMD CPUs is
/// 25 times slower than a loop when the target begins up to 63 bytes after the source modulo 4096; buffers that differ
/// by a header do just that.
pub const COPY_BYTES: usize = 1024;

/// Alignment of the reply that follows the request of a service call.
pub const REPLY_ALIGN: u64 = 64;

/// Leads every request of a typed call, in both directions; the encoded arguments follow. Little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CallHeader {
    /// Index of the contract, from the handshake; [`CONTROL`] for calls that belong to none.
    pub contract: u32,
    /// Index of the method within the contract, or a control method.
    pub method: u32,
}

impl CallHeader {
    /// Encoded size in bytes.
    pub const SIZE: usize = 8;

    /// The header as it stands at the start of a request.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut b = [0; Self::SIZE];
        b[..4].copy_from_slice(&self.contract.to_le_bytes());
        b[4..].copy_from_slice(&self.method.to_le_bytes());
        b
    }

    /// Splits a request into header and arguments; `None` when it is too short.
    pub fn split(request: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = request.split_first_chunk::<{ Self::SIZE }>()?;
        let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        Some((Self { contract: word(0), method: word(4) }, rest))
    }
}

/// The contract index of control calls: [`CONNECT`], [`FETCH_REPLY`], [`SWITCHLESS`].
pub const CONTROL: u32 = u32::MAX;
/// Control method: which index has the contract of this hash? Arguments and result: see `contract`.
pub const CONNECT: u32 = 1;
/// Control method: give the result that did not fit ([`status::REPLY_TOO_LARGE`]) again.
pub const FETCH_REPLY: u32 = 2;
/// Control method: serve the switchless ring at the given untrusted address until it is idle or stopped.
pub const SWITCHLESS: u32 = 3;

/// What the host passes at [`op::START`]. Lies outside ELRANGE, is copied once and checked. All of it is an allegation.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct StartInfo {
    /// [`ABI_VERSION`] of the host.
    pub abi_version: u32,
    /// 1: the host says it is SGX hardware; 2: emulated. For display only: a report is what proves it.
    pub platform: u32,
    /// Program arguments, each ended by a NUL byte.
    pub args: u64,
    /// Length of `args` in bytes.
    pub args_len: u64,
    /// Environment, `NAME=value` each ended by a NUL byte. Names not in the manifest's allow-list are dropped inside.
    pub env: u64,
    /// Length of `env` in bytes.
    pub env_len: u64,
    /// First of the threads' untrusted frames; [`FRAME_SIZE`] bytes each, one a TCS, in the order of the TCSs.
    pub frames: u64,
    /// Number of frames.
    pub frame_count: u64,
    /// CPUs the host offers, for `sched_getaffinity`.
    pub cpus: u64,
    /// The first clock sample.
    pub clock: ClockSample,
}

/// A reading of the host's clocks together with the time-stamp counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ClockSample {
    /// Time-stamp counter when the clocks were read; 0 when RDTSC is not usable inside (SGX1).
    pub tsc: u64,
    /// Frequency of the counter in Hz; 0 when not usable.
    pub tsc_hz: u64,
    /// CLOCK_REALTIME, nanoseconds since 1970.
    pub realtime_ns: u64,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_ns: u64,
}

/// Fixed part of what a dying enclave leaves in its frame. `text_len` bytes of UTF-8 follow.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct FaultReport {
    /// Exception vector (SDM vol. 3A, 6.3.1), or 0x100 for an abort by the program itself, 0x101 for a bug in the
    /// runtime, 0x102 for memory that did not come.
    pub vector: u32,
    /// Index of the thread.
    pub thread: u32,
    /// Offset of the faulting instruction from the ELRANGE base. 0 unless the image is a debug image.
    pub rip_offset: u64,
    /// Faulting address, page-aligned on hardware; absolute. 0 unless the image is a debug image.
    pub address: u64,
    /// Length of the text after this structure.
    pub text_len: u64,
}

/// Auxiliary-vector type under which the application finds the [`RuntimeTable`]: `getauxval(AT_ENCLOS)`.
/// Absent outside an enclave.
pub const AT_ENCLOS: u64 = 0x454e_434c;

/// What [`RuntimeTable::next_call`] hands out. The pointers are outside ELRANGE (checked); contents are the host's.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct IncomingCall {
    /// Untrusted address of the request.
    pub request: u64,
    /// Its length in bytes, at most [`MAX_MESSAGE`].
    pub request_len: u64,
    /// Untrusted address where the reply goes.
    pub reply: u64,
    /// Capacity there.
    pub reply_capacity: u64,
}

/// Services of the runtime beyond Linux calls, for the enclave library. All functions follow the C ABI, run on the
/// caller's stack, and must be called on a thread of the enclave.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RuntimeTable {
    /// [`ABI_VERSION`] of the runtime.
    pub abi_version: u32,
    /// Size of this structure in bytes; later versions append.
    pub size: u32,
    /// Reply to the call before (status, length; ignored the first time) and park until the next one.
    /// Returns [`NEXT_CALL`] or [`NEXT_SHUTDOWN`].
    pub next_call: extern "C" fn(status: u64, reply_len: u64, out: *mut IncomingCall) -> i64,
    /// A host call with its three arguments; see [`hostcall`]. The result is the host's word, unchecked.
    pub host_call: extern "C" fn(number: u64, a: u64, b: u64, c: u64) -> i64,
    /// Registers what runs nested calls (returns `status << 32 | length`); process-wide.
    pub set_nested_handler: extern "C" fn(handler: extern "C" fn(call: *const IncomingCall) -> u64),
    /// ENCLU\[EREPORT\]: 512-byte aligned TARGETINFO, 128-byte aligned 64 bytes of report data, 512-byte aligned
    /// REPORT of 432 bytes. Returns 0.
    pub ereport: extern "C" fn(target_info: *const u8, report_data: *const u8, report: *mut u8) -> i64,
    /// ENCLU\[EGETKEY\]: 512-byte aligned KEYREQUEST, 16-byte aligned 16-byte key. Returns the SDM's error code in
    /// RAX (0: success).
    pub egetkey: extern "C" fn(key_request: *const u8, key: *mut u8) -> i64,
    /// Fills memory with bytes of the CPU's random number generator (RDRAND). Returns 0, or -1 when the CPU has none.
    pub random: extern "C" fn(to: *mut u8, len: u64) -> i64,
    /// Is `[address, address + len)` wholly outside ELRANGE and free of wrap-around? 1 or 0.
    pub is_outside: extern "C" fn(address: u64, len: u64) -> i64,
    /// Is it wholly inside? 1 or 0.
    pub is_inside: extern "C" fn(address: u64, len: u64) -> i64,
    /// Writes up to `len` values of [`counter`] and returns how many there are.
    pub counters: extern "C" fn(out: *mut u64, len: u64) -> i64,
    /// Address of the calling thread's untrusted frame of [`FRAME_SIZE`] bytes.
    pub frame: extern "C" fn() -> u64,
    /// Start of ELRANGE.
    pub enclave_base: u64,
    /// Size of ELRANGE.
    pub enclave_size: u64,
    /// The measured manifest: address (inside).
    pub manifest: u64,
    /// Its length in bytes.
    pub manifest_len: u64,
    /// [`StartInfo::platform`] as alleged by the host.
    pub platform: u64,
    /// The state of the sealed files mounted at a path of `len` bytes. Returns 0 or a negated Linux error number: ENOENT
    /// where none are mounted, EIO or EACCES where they do not open.
    pub sealed_state: extern "C" fn(path: *const u8, len: u64, out: *mut SealedState) -> i64,
}

/// A host that passes an environment variable of this name asks for the counters when the program exits. It gets them,
/// as a [log record](hostcall::LOG), only where the manifest permits standard output.
pub const REPORT_VARIABLE: &str = "ENCLOS_REPORT_CALLS";

/// First word of a second record: which Linux calls were made, as `number=all/passed`: how often in all, and how often
/// at least one request to the host was needed.
pub const LINUX_MAGIC: &str = "ENCLOS-LINUX";

/// First word of that record. `name=value` pairs follow: `direct`, `trapped`, `cpuid`, `refused`, then the numbers of
/// the Linux calls that were refused, each with how often.
pub const REPORT_MAGIC: &str = "ENCLOS-CALLS";

/// Indices of the values that [`RuntimeTable::counters`] reports.
pub mod counter {
    /// Linux calls that came by a rewritten site.
    pub const DIRECT_CALLS: usize = 0;
    /// Linux calls that trapped.
    pub const TRAPPED_CALLS: usize = 1;
    /// Requests to the host.
    pub const HOST_CALLS: usize = 2;
    /// Linux calls refused with ENOSYS.
    pub const REFUSED_CALLS: usize = 3;
    /// CPUID executed by a rewritten site or a trap.
    pub const CPUIDS: usize = 4;
    /// Calls delivered to parked threads.
    pub const CALLS: usize = 5;
    /// Addresses that the program asked for and the manifest does not permit.
    pub const REFUSED_ADDRESSES: usize = 6;
    /// Here begin 512 values: how often the Linux call of that number was refused.
    pub const REFUSED_BY_NUMBER: usize = 8;
    /// Number of values.
    pub const COUNT: usize = REFUSED_BY_NUMBER + 512;
}

/// Components of processor state (SECS.ATTRIBUTES.XFRM, XCR0; SDM vol. 1, 13.1) that programs inside have.
pub mod xfrm {
    /// Those that every program has: x87, SSE, AVX.
    pub const BASE: u64 = 7;
    /// AVX-512: mask registers, upper halves of ZMM0 to ZMM15, ZMM16 to ZMM31. They go together.
    pub const AVX512: u64 = 0xe0;
    /// Bytes of a standard-format XSAVE area of the first.
    pub const BASE_AREA: usize = 832;
    /// Bytes of one of both together. (Processors of makers without SGX need fewer.)
    pub const LARGEST_AREA: usize = 2688;
}

/// A thread's region within the image: guards, stacks, thread data, TCS, SSA frames. Offsets in bytes from its start.
/// Pages not named here are guards: never added to the enclave.
pub mod thread {
    use super::PAGE_SIZE;

    /// Distance between two threads' regions.
    pub const STRIDE: u64 = 32 * PAGE_SIZE;
    /// The runtime's stack for Linux calls (CSSA = 0): first byte.
    pub const STACK: u64 = PAGE_SIZE;
    /// Its end.
    pub const STACK_END: u64 = 17 * PAGE_SIZE;
    /// The runtime's stack for exceptions (CSSA = 1): first byte.
    pub const EXCEPTION_STACK: u64 = 18 * PAGE_SIZE;
    /// Its end.
    pub const EXCEPTION_STACK_END: u64 = 22 * PAGE_SIZE;
    /// The thread data page: GS base while inside. Measured; the packer writes [`super::ThreadSeed`] at its start.
    pub const DATA: u64 = 23 * PAGE_SIZE;
    /// FS base at entry: page-aligned, as EENTER wants it (SDM vol. 3D, EENTER). The runtime does not use it; it sets
    /// the application's.
    pub const INITIAL_FS: u64 = DATA;
    /// FS base when the application starts: the zero end of the data page, until the application sets its own.
    pub const APPLICATION_FS: u64 = DATA + 0x800;
    /// The TCS.
    pub const TCS: u64 = 24 * PAGE_SIZE;
    /// First SSA frame.
    pub const SSA: u64 = 25 * PAGE_SIZE;
    /// Number of SSA frames.
    pub const NSSA: u32 = 3;
    /// Pages of one SSA frame: enough for the largest XFRM that images have.
    pub const SSA_FRAME_PAGES: u32 = 1;
    // XSAVE area, EXINFO, GPRSGX (SDM vol. 3D, 34.9).
    const _: () = assert!(
        super::xfrm::LARGEST_AREA as u64 + 16 + 184 <= SSA_FRAME_PAGES as u64 * PAGE_SIZE,
        "an SSA frame holds the state of every XFRM"
    );
}

/// The measured beginning of a thread's data page; the runtime's own fields follow.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ThreadSeed {
    /// Index of the thread: 0 …
    pub index: u64,
    /// Offset of this page from the ELRANGE base; the runtime finds the base by it.
    pub data_offset: u64,
    /// Offset of the [`ImageInfo`](crate::image::ImageInfo).
    pub info_offset: u64,
}
