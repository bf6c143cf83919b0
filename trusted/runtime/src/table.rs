//! What the enclave library asks beyond Linux calls: parking, typed host calls, reports, keys, random numbers.
//!
//! The application finds the table by an entry of its auxiliary vector. The functions run on its stack, in the same
//! domain of trust; what they check is only what comes from the host.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use enclos::abi::{
    ABI_VERSION, IncomingCall, MAX_MESSAGE, MAX_NESTING, NEXT_CALL, NEXT_SHUTDOWN, RuntimeTable, SealedState,
    counter, exit, op, refusal,
};

use crate::entry;
use crate::host;
use crate::thread::{Thread, state};

/// Words of the table; written at start, then only read.
static TABLE: [AtomicU64; size_of::<RuntimeTable>() / 8] =
    [const { AtomicU64::new(0) }; size_of::<RuntimeTable>() / 8];
static NESTED_HANDLER: AtomicUsize = AtomicUsize::new(0);

/// Fills the table and returns its address.
pub fn publish(size: u64, manifest: u64, manifest_len: u64, platform: u64) -> u64 {
    let table = RuntimeTable {
        abi_version: ABI_VERSION,
        size: size_of::<RuntimeTable>() as u32,
        next_call,
        host_call,
        set_nested_handler,
        ereport,
        egetkey,
        random,
        is_outside,
        is_inside,
        counters,
        frame,
        enclave_base: entry::enclave_base(),
        enclave_size: size,
        manifest,
        manifest_len,
        platform,
        sealed_state,
    };
    // SAFETY: a structure of words and function pointers without padding, as its size says.
    let words: [u64; size_of::<RuntimeTable>() / 8] = unsafe { core::mem::transmute(table) };
    for (to, from) in TABLE.iter().zip(words) {
        to.store(from, Ordering::Relaxed);
    }
    TABLE.as_ptr() as u64
}

extern "C" fn next_call(mut status: u64, mut reply_len: u64, out: *mut IncomingCall) -> i64 {
    let me = Thread::current();
    let mut code = exit::PARKED;
    loop {
        me.set_state(state::PARKED, false);
        // SAFETY: the state is set; CALL or SHUTDOWN is what gets in.
        let answer = unsafe { entry::enclos_switch(code, status, reply_len, 0, 0) };
        if crate::ended() || answer.op == op::SHUTDOWN {
            return NEXT_SHUTDOWN;
        }
        match incoming(me) {
            Ok(call) => {
                crate::calls::count(counter::CALLS);
                // SAFETY: the caller passes room for one.
                unsafe { out.write(call) };
                return NEXT_CALL;
            }
            // Refused, and still parked: the next entry finds the thread as it was.
            Err(reason) => (code, status, reply_len) = (exit::REFUSED, reason, 0),
        }
    }
}

/// Checks the four arguments of CALL and NESTED_CALL.
fn incoming(me: &Thread) -> Result<IncomingCall, u64> {
    // SAFETY: a field of the structure; `entry` wrote it, behind the compiler's back.
    let [request, request_len, reply, reply_capacity] = unsafe { (&raw const me.args).read_volatile() };
    let usable = request_len <= MAX_MESSAGE
        && reply_capacity <= MAX_MESSAGE
        && host::is_outside(request, request_len)
        && host::is_outside(reply, reply_capacity);
    if usable {
        Ok(IncomingCall { request, request_len, reply, reply_capacity })
    } else {
        Err(refusal::POINTER)
    }
}

/// What `nested` returns in RAX and RDX.
#[repr(C)]
pub struct NestedResult {
    result: u64,
    refusal: u64,
}

/// Entry of NESTED_CALL, on top of the waiting thread's stack.
pub unsafe extern "C" fn nested() -> NestedResult {
    let me = Thread::current();
    let refused = |refusal| NestedResult { result: u64::MAX, refusal };
    let handler = NESTED_HANDLER.load(Ordering::Acquire);
    if handler == 0 || me.depth >= MAX_NESTING {
        return refused(refusal::NESTING);
    }
    if crate::ended() {
        return refused(refusal::ENDED);
    }
    let call = match incoming(me) {
        Ok(call) => call,
        Err(reason) => return refused(reason),
    };
    crate::calls::count(counter::CALLS);
    me.depth += 1;
    // SAFETY: registered by the application as a function of this type.
    let handler: extern "C" fn(*const IncomingCall) -> u64 = unsafe { core::mem::transmute(handler) };
    let result = handler(&raw const call);
    Thread::current().depth -= 1;
    NestedResult { result: if result == u64::MAX { u64::MAX - 1 } else { result }, refusal: 0 }
}

extern "C" fn host_call(number: u64, a: u64, b: u64, c: u64) -> i64 {
    let nestable = number == enclos::abi::hostcall::SERVICE;
    host::call(Thread::current(), number, a, b, c, nestable)
}

extern "C" fn set_nested_handler(handler: extern "C" fn(*const IncomingCall) -> u64) {
    NESTED_HANDLER.store(handler as usize, Ordering::Release);
}

extern "C" fn ereport(target_info: *const u8, report_data: *const u8, report: *mut u8) -> i64 {
    // SAFETY: the caller passes aligned memory inside, as documented; what is not so faults.
    unsafe { entry::enclos_ereport(target_info, report_data, report) };
    0
}

extern "C" fn egetkey(key_request: *const u8, key: *mut u8) -> i64 {
    // SAFETY: as above.
    unsafe { entry::enclos_egetkey(key_request, key) as i64 }
}

extern "C" fn random(to: *mut u8, len: u64) -> i64 {
    // SAFETY: the caller's memory.
    let to = unsafe { core::slice::from_raw_parts_mut(to, len as usize) };
    if crate::cpu::fill_random(to) { 0 } else { -1 }
}

extern "C" fn is_outside(address: u64, len: u64) -> i64 {
    i64::from(host::is_outside(address, len))
}

extern "C" fn is_inside(address: u64, len: u64) -> i64 {
    i64::from(host::is_inside(address, len))
}

extern "C" fn counters(out: *mut u64, len: u64) -> i64 {
    for i in 0..(len as usize).min(counter::COUNT) {
        // SAFETY: the caller has room for `len` values.
        unsafe { out.add(i).write(crate::calls::counter(i)) };
    }
    counter::COUNT as i64
}

extern "C" fn sealed_state(path: *const u8, len: u64, out: *mut SealedState) -> i64 {
    // SAFETY: the caller's memory.
    let path = unsafe { core::slice::from_raw_parts(path, len as usize) };
    match crate::calls::mounts::sealed_state(path) {
        Ok(state) => {
            // SAFETY: the caller passes room for one.
            unsafe { out.write(state) };
            0
        }
        Err(e) => -i64::from(e.0),
    }
}

extern "C" fn frame() -> u64 {
    Thread::current().frame
}
