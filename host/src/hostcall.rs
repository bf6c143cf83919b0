//! What the enclave asks of the host: one function a kind of request. Numbers are those of `enclos::abi::hostcall`.
//!
//! The enclave does not trust these answers and the host does not trust these arguments: every address and length is
//! checked against the memory that was given to the enclave before.

use std::arch::x86_64::__cpuid_count;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use enclos::abi::{self, CallHeader, ClockSample, hostcall, status};
use enclos::contract::{Full, Reply, Sink};
use enclos_platform::sgx_isa::{PageType, SecinfoFlags};
use enclos_platform::{DynamicMemory, PlatformError};

use crate::backtrace;
use crate::enclave::{LogLevel, Shared, Slot};
use crate::entry;
use crate::memory::{copy, holds};
use crate::threads::{Wake, futex_wait, futex_wake};

/// A request of the enclave that was served, as [`crate::Builder::inspect_host_calls`] shows it.
#[derive(Debug)]
pub struct HostCall<'a> {
    /// Index of the thread.
    pub thread: usize,
    /// What was asked: see [`enclos::abi::hostcall`].
    pub number: u64,
    /// Its arguments a, b and c.
    pub arguments: [u64; 3],
    /// The thread's frame: data of request and answer.
    pub frame: &'a mut [u8],
    /// The answer.
    pub result: i64,
}

impl Shared {
    /// Serves one request; the result is >= 0 or a negated Linux error number.
    #[inline]
    pub(crate) fn host_call(&self, index: usize, number: u64, a: u64, b: u64, c: u64) -> i64 {
        let slot = &self.slots[index];
        slot.count_host_call();
        match number {
            hostcall::NOP => 0,
            hostcall::SERVICE => result(self.serve(index, slot, a, b, c)),
            _ => {
                let result = self.other_host_call(slot, number, a, b, c);
                match &self.io.inspector {
                    None => result,
                    Some(inspector) => {
                        let frame = slot.frame as *mut u8;
                        // SAFETY: the frame is this thread's until it is entered again.
                        let frame =
                            unsafe { std::slice::from_raw_parts_mut(frame, abi::FRAME_SIZE as usize) };
                        inspector(&mut HostCall {
                            thread: index,
                            number,
                            arguments: [a, b, c],
                            frame,
                            result,
                        })
                    }
                }
            }
        }
    }

    fn other_host_call(&self, slot: &Slot, number: u64, a: u64, b: u64, c: u64) -> i64 {
        result(match number {
            hostcall::WRITE => self.write(slot, a, b),
            hostcall::READ => self.read(slot, a, b),
            hostcall::WAIT => self.wait_for_wake(a, b),
            hostcall::WAKE => self.wake(a),
            hostcall::SPAWN => {
                if self.start_thread() {
                    Ok(0)
                } else {
                    Err(libc::EAGAIN)
                }
            }
            hostcall::SLEEP => sleep(a),
            hostcall::CLOCK => {
                let sample = self.clock.sample();
                // SAFETY: the frame is large enough, page-aligned, and this thread's until it is entered again.
                unsafe { (slot.frame as *mut ClockSample).write(sample) };
                Ok(0)
            }
            hostcall::YIELD => {
                std::thread::yield_now();
                Ok(0)
            }
            hostcall::CPUID => {
                let r = __cpuid_count(a as u32, b as u32);
                // SAFETY: as above.
                unsafe { (slot.frame as *mut [u32; 4]).write([r.eax, r.ebx, r.ecx, r.edx]) };
                Ok(0)
            }
            hostcall::ALLOC => self.memory.allocate(a),
            hostcall::FREE => self.memory.free(a).map(|()| 0),
            hostcall::LOG => self.log(slot, a, b),
            hostcall::SIGNALS => Ok(self.signals.swap(0, Ordering::SeqCst)),
            hostcall::SOCKET..=hostcall::POLL => self.network(slot, number, a, b, c),
            hostcall::AUGMENT => self.augment(a, b),
            hostcall::RESTRICT => self.change_pages(a, b, |memory, offset, count| {
                memory.restrict(offset, count, SecinfoFlags::from_bits_truncate(c & 7))
            }),
            hostcall::TRIM => self.change_pages(a, b, |memory, offset, count| {
                memory.modify_type(offset, count, PageType::Trim)
            }),
            hostcall::REMOVE => {
                let removed = self.change_pages(a, b, |memory, offset, count| memory.remove(offset, count));
                if removed.is_ok() {
                    self.pages_removed.fetch_add(b, Ordering::Relaxed);
                }
                removed
            }
            hostcall::MAKE_TCS => self
                .change_pages(a, b, |memory, offset, count| memory.modify_type(offset, count, PageType::Tcs)),
            hostcall::THREAD_READY => self.thread_is_ready(a),
            hostcall::THREAD_RETIRES => self.thread_retires(a),
            hostcall::FILE_MOUNT..=hostcall::FILE_CLOSE => self.files(slot, number, a, b, c),
            _ => Err(libc::ENOSYS),
        })
    }

    /// Adds pages to the enclave: `count` of them from this address on.
    pub(crate) fn augment(&self, at: u64, count: u64) -> Result<u64, i32> {
        let added = self.change_pages(at, count, |memory, offset, count| memory.augment(offset, count));
        if added.is_ok() {
            self.pages_added.fetch_add(count, Ordering::Relaxed);
        }
        added
    }

    fn change_pages(
        &self,
        at: u64,
        count: u64,
        change: impl Fn(&dyn DynamicMemory, u64, u64) -> Result<(), PlatformError>,
    ) -> Result<u64, i32> {
        let memory = self.enclave.dynamic_memory().ok_or(libc::ENOSYS)?;
        let offset = at.checked_sub(self.enclave.base()).ok_or(libc::EINVAL)?;
        let in_range = count.checked_mul(abi::PAGE_SIZE).and_then(|len| len.checked_add(offset));
        if in_range.is_none_or(|end| end > self.enclave.size()) {
            return Err(libc::EINVAL);
        }
        change(memory, offset, count).map(|()| 0).map_err(|e| match e {
            PlatformError::EpcExhausted { .. } => libc::ENOMEM,
            PlatformError::Os { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            _ => libc::EINVAL,
        })
    }

    /// Calls a host service. Request and reply stay where they are: both lie in memory of the host.
    fn serve(&self, index: usize, slot: &Slot, at: u64, len: u64, capacity: u64) -> Result<u64, i32> {
        if len > abi::MAX_MESSAGE || capacity > abi::MAX_MESSAGE {
            return Err(libc::EMSGSIZE);
        }
        let reply_at = len.next_multiple_of(abi::REPLY_ALIGN);
        // The range is mostly within that of the call before.
        let (piece, generation) = slot.service_range.get();
        if generation != self.memory.generation() || !holds(piece, at, reply_at + capacity) {
            let generation = self.memory.generation();
            let piece = self.memory.piece(at, reply_at + capacity).ok_or(libc::EFAULT)?;
            slot.service_range.set((piece, generation));
        }
        // SAFETY: the range lies in memory given to the enclave (just checked); the thread that wrote the request waits
        // for the reply, and request and reply do not overlap.
        let request = unsafe { std::slice::from_raw_parts(at as *const u8, len as usize) };
        let mut sink =
            MemorySink { at: (at + reply_at) as *mut u8, capacity: capacity as usize, stash: None };
        let (status, len) = match CallHeader::split(request) {
            Some((CallHeader { contract: abi::CONTROL, method: abi::FETCH_REPLY }, _)) => {
                // SAFETY: the slot is this thread's; the borrow ends before anything else can use it.
                let stash = unsafe { &mut *slot.stash.get() };
                match sink.put(0, stash) {
                    Ok(()) => (status::OK, std::mem::take(stash).len() as u64),
                    Err(Full) => (status::REPLY_TOO_LARGE, stash.len() as u64),
                }
            }
            _ => self.in_service(index, || {
                let served = catch_unwind(AssertUnwindSafe(|| {
                    let mut reply = Reply::new(&mut sink);
                    self.services.serve(request, &mut reply);
                    reply.finish()
                }));
                served.unwrap_or_else(|panic| {
                    let mut reply = Reply::new(&mut sink);
                    reply.fail(status::PANICKED, panic_message(panic.as_ref()));
                    reply.finish()
                })
            }),
        };
        if let Some(stash) = sink.stash {
            // SAFETY: as above.
            unsafe { *slot.stash.get() = stash };
        }
        Ok(status << 32 | len)
    }

    fn write(&self, slot: &Slot, fd: u64, len: u64) -> Result<u64, i32> {
        let sink = match fd {
            1 => &self.io.stdout,
            2 => &self.io.stderr,
            _ => return Err(libc::EBADF),
        };
        let bytes = frame_bytes(slot, len)?;
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        let mut written = sink.write_all(bytes);
        if fd == 2 && !self.symbols.is_empty() && backtrace::is_panic(bytes) && wants_backtraces() {
            let callers = backtrace::of_panic(&self.symbols, self.enclave.base(), slot.tcs);
            written = written.and_then(|()| sink.write_all(callers.as_bytes()));
        }
        let written = written.and_then(|()| sink.flush());
        written.map(|()| len).map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
    }

    fn read(&self, slot: &Slot, fd: u64, capacity: u64) -> Result<u64, i32> {
        if fd != 0 {
            return Err(libc::EBADF);
        }
        let capacity = capacity.min(abi::FRAME_SIZE) as usize;
        let mut bytes = vec![0; capacity];
        let mut source = self.io.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        let count = source.read(&mut bytes).map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))?;
        // SAFETY: the frame has `capacity` bytes and is this thread's until it is entered again.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), slot.frame as *mut u8, count) };
        Ok(count as u64)
    }

    fn log(&self, slot: &Slot, level: u64, len: u64) -> Result<u64, i32> {
        let level = match level {
            1 => LogLevel::Error,
            2 => LogLevel::Warn,
            3 => LogLevel::Info,
            4 => LogLevel::Debug,
            5 => LogLevel::Trace,
            _ => return Err(libc::EINVAL),
        };
        let text = String::from_utf8_lossy(frame_bytes(slot, len)?);
        (self.io.log)(level, &text);
        Ok(0)
    }

    fn wait_for_wake(&self, thread: u64, limit_ns: u64) -> Result<u64, i32> {
        let word = &self.slot_of(thread)?.wake;
        let until = (limit_ns != 0).then(|| entry::monotonic_ns().saturating_add(limit_ns));
        loop {
            if word.swap(0, Ordering::SeqCst) == 1 {
                return if self.take_signalled() { Err(libc::EINTR) } else { Ok(0) };
            }
            if entry::is_expired() || self.ended.load(Ordering::SeqCst) || self.take_signalled() {
                return Err(libc::EINTR);
            }
            let left = match until.map(|u| u.saturating_sub(entry::monotonic_ns())) {
                Some(0) => return Err(libc::ETIMEDOUT),
                left => left,
            };
            match futex_wait(word, 0, left) {
                Wake::Changed | Wake::TimedOut => {}
                Wake::Interrupted => return Err(libc::EINTR),
            }
        }
    }

    fn wake(&self, thread: u64) -> Result<u64, i32> {
        let slot = self.slot_of(thread)?;
        let word = &slot.wake;
        if word.swap(1, Ordering::SeqCst) == 0 {
            futex_wake(word, 1);
        }
        slot.poll_wake.ring();
        Ok(0)
    }

    fn slot_of(&self, thread: u64) -> Result<&Slot, i32> {
        usize::try_from(thread).ok().and_then(|i| self.slots.get(i)).ok_or(libc::EINVAL)
    }
}

fn result(outcome: Result<u64, i32>) -> i64 {
    match outcome {
        Ok(value) => value as i64,
        Err(errno) => -i64::from(errno),
    }
}

/// As Rust's standard library has it.
fn wants_backtraces() -> bool {
    std::env::var_os("RUST_BACKTRACE").is_some_and(|v| v != "0")
}

fn sleep(ns: u64) -> Result<u64, i32> {
    let time = libc::timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: (ns % 1_000_000_000) as i64,
    };
    // SAFETY: the structure is ours. A signal ends the sleep, so that deadlines work.
    match unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) } {
        0 => Ok(0),
        _ => Err(libc::EINTR),
    }
}

fn frame_bytes(slot: &Slot, len: u64) -> Result<&[u8], i32> {
    if len > abi::FRAME_SIZE {
        return Err(libc::EINVAL);
    }
    // SAFETY: the frame has that many bytes; the thread that wrote them waits for this call to end.
    Ok(unsafe { std::slice::from_raw_parts(slot.frame as *const u8, len as usize) })
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a value that is not text")
}

/// A reply buffer in untrusted memory that the enclave chose.
struct MemorySink {
    at: *mut u8,
    capacity: usize,
    stash: Option<Vec<u8>>,
}

impl Sink for MemorySink {
    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Full> {
        if offset > self.capacity || bytes.len() > self.capacity - offset {
            return Err(Full);
        }
        // SAFETY: within the capacity, which was checked against the memory given to the enclave.
        unsafe { copy(bytes.as_ptr(), self.at.add(offset), bytes.len()) };
        Ok(())
    }

    fn stash(&mut self, reply: Vec<u8>) {
        self.stash = Some(reply);
    }
}
