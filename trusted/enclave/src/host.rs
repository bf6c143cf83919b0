//! Calling host services.
//!
//! A service is a contract that the host implements. What it returns is well-formed and otherwise the host's word.

use std::cell::RefCell;

use enclos::abi::{self, CallHeader, REPLY_ALIGN, hostcall, status};
use enclos::contract::{
    Client, ConnectError, Failure, Full, Party, Sink, Transport, decode_reply, encode_request_to,
    request_size,
};
use enclos::manifest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::runtime::{self, Untrusted, table};
use crate::serve::{keep_buffer, take_buffer};

/// A typed client of a host service: `host::<AuditClient<_>>()`. The manifest must list the contract's name under
/// `services`: what leaves the enclave is part of its identity.
///
/// # Errors
/// When the manifest does not list it or the host does not serve exactly this contract.
pub fn host<C: Client<HostTransport>>() -> Result<C, ConnectError> {
    let name = C::CONTRACT.name;
    let not_permitted =
        |reason: String| ConnectError::Failed(Failure::NotPermitted { callee: Party::Enclave, reason });
    let manifest = runtime::manifest().map_err(|e| not_permitted(e.to_string()))?;
    if !manifest::items(manifest.services).any(|s| s == name) {
        return Err(not_permitted(format!(
            "the manifest does not list the host service `{name}`: add it to `services` in enclos.toml"
        )));
    }
    C::connect(HostTransport(()))
}

/// Carries calls to the host's services. Only [`host`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct HostTransport(());

impl Transport for HostTransport {
    const CALLEE: Party = Party::Host;

    #[inline]
    fn call<A, R>(&self, header: CallHeader, args: &A) -> Result<R, Failure>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let mut space = Space::take()?;
        let len = match encode_request_to(header, args, &mut space)? {
            Some(len) => len,
            None => {
                space.grow(request_size(args)?, 0)?;
                encode_request_to(header, args, &mut space)?.ok_or(Failure::NotEncodable {
                    reason: "its size changes from one time to the next".to_owned(),
                })?
            }
        };
        let (status, reply) = exchange(&mut space, len)?;
        let mut copy = take_buffer();
        let result = match reply.read_to(&mut copy) {
            Ok(()) => decode_reply(Self::CALLEE, header, status, &copy),
            Err(_) => Err(bad_reply("it does not fit into the enclave's heap")),
        };
        keep_buffer(copy);
        space.keep();
        result
    }
}

/// Has the host serve the request of `len` bytes in the space. Returns the status and where the reply lies.
#[inline]
fn exchange(space: &mut Space, len: u64) -> Result<(u64, Untrusted), Failure> {
    let (mut status, mut reply_len, mut reply) = ask(space, len)?;
    if status == status::REPLY_TOO_LARGE {
        if reply_len > abi::MAX_MESSAGE {
            return Err(bad_reply("it is larger than any reply may be"));
        }
        let header = CallHeader { contract: abi::CONTROL, method: abi::FETCH_REPLY }.to_bytes();
        space.grow(header.len() as u64, reply_len)?;
        // Cannot fail: the space has just been made large enough.
        let _ = space.put(0, &header);
        let wanted = reply_len;
        (status, reply_len, reply) = ask(space, header.len() as u64)?;
        if status != status::OK || reply_len != wanted {
            return Err(bad_reply("a large reply was announced and then not given"));
        }
    }
    if reply_len > reply.len() as u64 {
        return Err(bad_reply("it is longer than its buffer"));
    }
    Ok((status, reply.first(reply_len as usize)))
}

#[inline]
fn ask(space: &Space, len: u64) -> Result<(u64, u64, Untrusted), Failure> {
    let table = table().map_err(|_| bad_reply("there is no host"))?;
    let reply = space.memory.after(len.next_multiple_of(REPLY_ALIGN) as usize);
    let capacity = (reply.len() as u64).min(abi::MAX_MESSAGE);
    let result = (table.host_call)(hostcall::SERVICE, space.memory.address(), len, capacity);
    if result < 0 {
        let errno = i32::try_from(-result).unwrap_or(i32::MAX);
        return Err(Failure::HostFailed { what: "calling a service", errno });
    }
    Ok((result as u64 >> 32, result as u64 & 0xffff_ffff, reply.first(capacity as usize)))
}

#[cold]
fn bad_reply(what: &'static str) -> Failure {
    Failure::BadReply { callee: Party::Host, what }
}

/// Untrusted memory for one request and its reply.
struct Space {
    memory: Untrusted,
}

/// Size at first, in bytes: 32 KiB for a request and as much for the reply, about.
const SPACE: u64 = 64 * 1024;
/// A reply has at least this much room at first.
const REPLY_ROOM: u64 = 4096;
/// Larger ones are given back after the call.
const KEPT_BYTES: usize = 1 << 20;

thread_local! {
    /// More than one only where calls nest.
    static SPACES: RefCell<Vec<Space>> = const { RefCell::new(Vec::new()) };
}

impl Space {
    #[inline]
    fn take() -> Result<Self, Failure> {
        match SPACES.with_borrow_mut(Vec::pop) {
            Some(space) => Ok(space),
            None => Self::allocate(SPACE),
        }
    }

    fn keep(self) {
        if self.memory.len() <= KEPT_BYTES {
            // When the thread is ending, the space is freed.
            let _ = SPACES.try_with(|kept| kept.borrow_mut().push(self));
        }
    }

    #[cold]
    fn allocate(len: u64) -> Result<Self, Failure> {
        let table = table().map_err(|_| bad_reply("there is no host"))?;
        let what = "allocating untrusted memory";
        let address = (table.host_call)(hostcall::ALLOC, len, 0, 0);
        if (-4095..0).contains(&address) {
            return Err(Failure::HostFailed { what, errno: -address as i32 });
        }
        match Untrusted::claim(address as u64, len) {
            Ok(memory) => Ok(Self { memory }),
            Err(_) => Err(Failure::HostFailed { what, errno: libc::EFAULT }),
        }
    }

    /// Makes room for a request and a reply. What is in it is lost.
    #[cold]
    fn grow(&mut self, request: u64, reply: u64) -> Result<(), Failure> {
        let len = request.next_multiple_of(REPLY_ALIGN) + reply.max(REPLY_ROOM);
        if len > self.memory.len() as u64 {
            *self = Self::allocate(len.next_multiple_of(abi::PAGE_SIZE))?;
        }
        Ok(())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if let Ok(table) = table() {
            (table.host_call)(hostcall::FREE, self.memory.address(), self.memory.len() as u64, 0);
        }
    }
}

/// Requests are written here, and leave room for the reply.
impl Sink for Space {
    #[inline]
    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Full> {
        let room = self.memory.len().saturating_sub(REPLY_ROOM as usize + REPLY_ALIGN as usize);
        match offset + bytes.len() <= room && self.memory.write(offset, bytes) {
            true => Ok(()),
            false => Err(Full),
        }
    }

    fn stash(&mut self, _: Vec<u8>) {}
}
