//! Pipes and pairs of connected sockets within the enclave: bytes that never leave it.

use alloc::collections::VecDeque;
use alloc::sync::Arc;

use super::Outcome;
use super::descriptors::{Watch, events, wait_for};
use crate::host::Errno;
use crate::lock::SpinLock;
use crate::thread::Thread;

/// Capacity of a pipe, as in Linux.
const CAPACITY: usize = 64 * 1024;
/// A write of so many bytes is not torn (PIPE_BUF); with less room a pipe is not ready for writing.
const ATOMIC: usize = 4096;

/// Bytes on their way from writers to readers.
pub struct Channel {
    state: SpinLock<State>,
    watch: Watch,
}

struct State {
    bytes: VecDeque<u8>,
    readable: bool,
    writable: bool,
}

impl Channel {
    /// Empty, with both ends open.
    pub const fn new() -> Self {
        let state = State { bytes: VecDeque::new(), readable: true, writable: true };
        Self { state: SpinLock::new(state), watch: Watch::new() }
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.state.lock());
        self.watch.notify();
    }
}

/// What a descriptor holds: where it reads from, and where it writes to.
pub struct End {
    incoming: Option<Arc<Channel>>,
    outgoing: Option<Arc<Channel>>,
}

impl End {
    /// The reading end of a pipe.
    pub fn reader(from: Arc<Channel>) -> Self {
        Self { incoming: Some(from), outgoing: None }
    }

    /// The writing end of a pipe.
    pub fn writer(to: Arc<Channel>) -> Self {
        Self { incoming: None, outgoing: Some(to) }
    }

    /// Two connected sockets.
    pub fn sockets() -> (Self, Self) {
        let (a, b) = (Arc::new(Channel::new()), Arc::new(Channel::new()));
        let first = Self { incoming: Some(a.clone()), outgoing: Some(b.clone()) };
        (first, Self { incoming: Some(b), outgoing: Some(a) })
    }

    /// Is it a socket?
    pub fn is_socket(&self) -> bool {
        self.incoming.is_some() && self.outgoing.is_some()
    }

    pub fn watches(&self) -> [Option<&Watch>; 2] {
        [&self.incoming, &self.outgoing].map(|c| c.as_deref().map(|c| &c.watch))
    }

    pub fn level(&self) -> u32 {
        let mut level = 0;
        if let Some(channel) = &self.incoming {
            let state = channel.state.lock();
            if !state.bytes.is_empty() {
                level |= events::IN;
            }
            if !state.writable {
                level |= if self.is_socket() { events::IN | events::RDHUP } else { events::HUP };
            }
        }
        if let Some(channel) = &self.outgoing {
            let state = channel.state.lock();
            if !state.readable {
                level |= if self.is_socket() { events::OUT | events::HUP } else { events::ERR };
            } else if CAPACITY - state.bytes.len() >= ATOMIC {
                level |= events::OUT;
            }
        }
        level
    }

    /// Bytes that can be read.
    pub fn available(&self) -> u64 {
        self.incoming.as_ref().map_or(0, |c| c.state.lock().bytes.len() as u64)
    }

    /// Reads what there is; waits for something where `blocks`. 0: the other side has closed.
    pub fn read(&self, me: &mut Thread, to: &mut [u8], blocks: bool, peeks: bool) -> Outcome {
        let channel = self.incoming.as_ref().ok_or(Errno::BADF)?;
        if to.is_empty() {
            return Ok(0);
        }
        let mut attempt = |_: &mut Thread| {
            let mut state = channel.state.lock();
            if state.bytes.is_empty() {
                return (!state.writable).then_some(0);
            }
            let n = to.len().min(state.bytes.len());
            let (front, back) = state.bytes.as_slices();
            let first = n.min(front.len());
            to[..first].copy_from_slice(&front[..first]);
            to[first..n].copy_from_slice(&back[..n - first]);
            if !peeks {
                state.bytes.drain(..n);
            }
            Some(n as u64)
        };
        let n = match attempt(me) {
            Some(n) => n,
            None if blocks => wait_for(me, &channel.watch, None, attempt)?,
            None => return Err(Errno::AGAIN),
        };
        if n != 0 && !peeks {
            channel.watch.notify();
        }
        Ok(n)
    }

    /// Writes all where `blocks`, else what there is room for.
    pub fn write(&self, me: &mut Thread, from: &[u8], blocks: bool) -> Outcome {
        let channel = self.outgoing.as_ref().ok_or(Errno::BADF)?;
        let mut written = 0;
        while written < from.len() {
            let rest = &from[written..];
            let attempt = |_: &mut Thread| {
                let mut state = channel.state.lock();
                if !state.readable || !state.writable {
                    return Some(Err(Errno::PIPE));
                }
                let room = CAPACITY - state.bytes.len();
                let n = rest.len().min(room);
                if n == 0 || (rest.len() <= ATOMIC && n < rest.len()) {
                    return None;
                }
                if state.bytes.try_reserve(n).is_err() {
                    return Some(Err(Errno::NOMEM));
                }
                state.bytes.extend(&rest[..n]);
                Some(Ok(n))
            };
            let outcome = match attempt(me) {
                Some(outcome) => outcome,
                None if blocks => match wait_for(me, &channel.watch, None, attempt) {
                    Ok(outcome) => outcome,
                    Err(e) => Err(e),
                },
                None => Err(Errno::AGAIN),
            };
            match outcome {
                Ok(n) => written += n,
                Err(e) if written == 0 => return Err(e),
                Err(_) => break,
            }
            channel.watch.notify();
        }
        Ok(written as u64)
    }

    /// shutdown(2) of a socket: 0 reading, 1 writing, 2 both.
    pub fn shut_down(&self, how: u64) -> Outcome {
        if how > 2 {
            return Err(Errno::INVAL);
        }
        if let (Some(channel), 0 | 2) = (&self.incoming, how) {
            channel.change(|s| s.readable = false);
        }
        if let (Some(channel), 1 | 2) = (&self.outgoing, how) {
            channel.change(|s| s.writable = false);
        }
        Ok(0)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(channel) = &self.incoming {
            channel.change(|s| {
                s.readable = false;
                s.bytes = VecDeque::new();
            });
        }
        if let Some(channel) = &self.outgoing {
            channel.change(|s| s.writable = false);
        }
    }
}
