//! The first entry: from "some thread is at our entry point" to the application's `_start`.
//!
//! What the image says (measured) is believed; what the host says is copied, checked, and filtered by the manifest.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use enclos::abi::{ABI_VERSION, AT_ENCLOS, FRAME_SIZE, REPORT_VARIABLE, StartInfo, exit, refusal};
use enclos::image::{INFO_MAGIC, ImageInfo, TrapSite};
use enclos::manifest::{Manifest, items};

use crate::entry;
use crate::host::{self, Errno};
use crate::memory::{self, PAGE};
use crate::replies::{self, environment, name_of, variables};
use crate::thread::{self, Thread, state};

static APP: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static HEADERS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static TRAPS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static DEBUG: AtomicBool = AtomicBool::new(false);
static STDIO: AtomicBool = AtomicBool::new(false);
static STDIN: AtomicBool = AtomicBool::new(false);
static LISTEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static CONNECT: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static CPUS: AtomicU64 = AtomicU64::new(1);
static SIGNALS: AtomicU64 = AtomicU64::new(0);

/// Does the address lie in the application's image?
pub fn in_application(address: u64) -> bool {
    (APP[0].load(Ordering::Relaxed)..APP[1].load(Ordering::Relaxed)).contains(&address)
}

/// Does the address lie in the runtime's own image, which comes first?
pub fn in_runtime(address: u64) -> bool {
    (entry::enclave_base()..APP[0].load(Ordering::Relaxed)).contains(&address)
}

/// Where the application's address 0 is.
pub fn application_base() -> u64 {
    APP[0].load(Ordering::Relaxed)
}

/// Do these pages of the application belong to one writable segment? By its program headers, which are measured.
pub fn is_application_data(at: u64, len: u64) -> bool {
    const PT_LOAD: u32 = 1;
    const PF_W: u32 = 2;
    let (headers, count) = (HEADERS[0].load(Ordering::Relaxed), HEADERS[1].load(Ordering::Relaxed));
    (0..count).any(|i| {
        // SAFETY: the packer checked that the application has so many program headers there; they are measured and
        // readable. Elf64_Phdr: type and flags, offset, virtual address, physical address, file size, memory size.
        let [kind, _, address, _, _, size, _] =
            unsafe { ((headers + 56 * i) as *const [u64; 7]).read_unaligned() };
        let from = (application_base() + address) & !(PAGE - 1);
        let end = (application_base() + address + size).next_multiple_of(PAGE);
        kind as u32 == PT_LOAD
            && (kind >> 32) as u32 & PF_W != 0
            && at >= from
            && at.checked_add(len).is_some_and(|e| e <= end)
    })
}

/// Is this a debug image?
pub fn is_debug() -> bool {
    DEBUG.load(Ordering::Relaxed)
}

/// May standard output and error go to the host?
pub fn stdio_allowed() -> bool {
    STDIO.load(Ordering::Relaxed)
}

/// May standard input come from the host?
pub fn stdin_allowed() -> bool {
    STDIN.load(Ordering::Relaxed)
}

/// Rules for addresses the program may listen on.
pub fn may_listen() -> &'static str {
    rules(&LISTEN)
}

/// Rules for addresses the program may connect or send to.
pub fn may_connect() -> &'static str {
    rules(&CONNECT)
}

fn rules([at, len]: &[AtomicU64; 2]) -> &'static str {
    let (at, len) = (at.load(Ordering::Relaxed), len.load(Ordering::Relaxed));
    if len == 0 {
        return "";
    }
    // SAFETY: text of the manifest, which is measured, read-only, and was checked to be UTF-8 when it was decoded.
    unsafe { core::str::from_utf8_unchecked(core::slice::from_raw_parts(at as *const u8, len as usize)) }
}

fn remember_rules([at, len]: &[AtomicU64; 2], rules: &str) {
    at.store(rules.as_ptr() as u64, Ordering::Relaxed);
    len.store(rules.len() as u64, Ordering::Relaxed);
}

/// Signals that the host may send: bit 0 is signal 1.
pub fn signals() -> u64 {
    SIGNALS.load(Ordering::Relaxed)
}

/// CPUs to report, at most as many as there are threads.
pub fn cpus() -> u64 {
    CPUS.load(Ordering::Relaxed)
}

/// The sites that were replaced by UD2.
pub fn trap_table() -> &'static [TrapSite] {
    let (at, count) = (TRAPS[0].load(Ordering::Relaxed), TRAPS[1].load(Ordering::Relaxed));
    if count == 0 {
        return &[];
    }
    // SAFETY: a measured, read-only table of the image.
    unsafe { core::slice::from_raw_parts(at as *const TrapSite, count as usize) }
}

/// Entry of START, after relocation.
pub unsafe extern "C" fn start(info: u64, len: u64) -> ! {
    let me = Thread::current();
    me.set_state(state::RUNNING, false);
    match prepare(me, info, len) {
        Ok((stack, entry)) => {
            thread::release();
            me.tid = 1;
            crate::calls::signal::start(me, 0, 0);
            // SAFETY: a fresh stack and the measured entry point.
            unsafe { entry::enclos_start_application(stack, entry) }
        }
        Err(reason) => {
            crate::set_ended();
            me.set_state(state::FREE, false);
            // SAFETY: nothing continues here.
            unsafe { entry::enclos_leave(exit::REFUSED, reason, 0) }
        }
    }
}

fn prepare(me: &mut Thread, info: u64, len: u64) -> Result<(u64, u64), u64> {
    let base = entry::enclave_base();
    // SAFETY: the packer wrote it there, measured and read-only.
    let image = unsafe { &*((base + me.seed.info_offset) as *const ImageInfo) };
    if image.magic != INFO_MAGIC || image.abi_version != ABI_VERSION {
        return Err(refusal::START_INFO);
    }
    host::initialise(base, image.enclave_size);
    // SAFETY: as above.
    let manifest = unsafe {
        core::slice::from_raw_parts((base + image.manifest) as *const u8, image.manifest_len as usize)
    };
    let manifest = Manifest::decode(manifest).map_err(|_| refusal::START_INFO)?;
    if manifest.avx512 && !crate::cpu::use_avx512() {
        return Err(refusal::START_INFO);
    }
    if len != size_of::<StartInfo>() as u64 {
        return Err(refusal::START_INFO);
    }
    let given: StartInfo = host::read_outside(info).ok_or(refusal::POINTER)?;
    let threads = u64::from(image.threads);
    if given.abi_version != ABI_VERSION || given.frame_count != threads {
        return Err(refusal::START_INFO);
    }
    if !host::is_outside(given.frames, threads * FRAME_SIZE) || !given.frames.is_multiple_of(PAGE) {
        return Err(refusal::POINTER);
    }
    APP[0].store(base + image.app, Ordering::Relaxed);
    APP[1].store(base + image.app_end, Ordering::Relaxed);
    HEADERS[0].store(base + image.app_phdr, Ordering::Relaxed);
    HEADERS[1].store(image.app_phnum, Ordering::Relaxed);
    TRAPS[0].store(base + image.traps, Ordering::Relaxed);
    TRAPS[1].store(image.trap_count, Ordering::Relaxed);
    DEBUG.store(manifest.debug, Ordering::Relaxed);
    STDIO.store(manifest.stdio, Ordering::Relaxed);
    STDIN.store(manifest.stdin, Ordering::Relaxed);
    remember_rules(&LISTEN, manifest.listen);
    remember_rules(&CONNECT, manifest.connect);
    SIGNALS.store(manifest.signals, Ordering::Relaxed);
    CPUS.store(given.cpus.clamp(1, threads), Ordering::Relaxed);
    thread::initialise(base + image.thread_area, image.threads, image.threads_present as u32, given.frames);
    me.prepare();
    crate::clock::set(&given.clock);
    // The stack lies at the bottom of the heap: below it is a page that does not exist.
    let stack_size = manifest.stack_bytes.max(MIN_STACK).next_multiple_of(PAGE);
    if stack_size > image.heap_size / 2 {
        return Err(refusal::START_INFO);
    }
    let stack = base + image.heap;
    if image.heap_present > image.heap_size || image.threads_present > threads {
        return Err(refusal::START_INFO);
    }
    if manifest.dynamic_memory {
        crate::pages::set_dynamic();
        // The part of the stack that is not in the image.
        let absent = (image.heap_size - image.heap_present).min(stack_size) / PAGE;
        if absent != 0 && crate::pages::bring(stack, absent).1.is_err() {
            return Err(refusal::NO_MEMORY);
        }
    }
    // SAFETY: pages of the image that nothing else uses.
    unsafe { memory::initialise(stack + stack_size, image.heap_size - stack_size, image.heap_present) };
    crate::calls::mounts::initialise(manifest.mounts);
    crate::calls::tree::initialise();
    crate::calls::descriptors::initialise();
    let table = crate::table::publish(
        image.enclave_size,
        base + image.manifest,
        image.manifest_len,
        u64::from(given.platform),
    );
    let stack = build_stack(image, &manifest, &given, table, (stack, stack_size))?;
    Ok((stack, base + image.app_entry))
}

/// Least size of the first thread's stack.
const MIN_STACK: u64 = 64 * 1024;

/// Most bytes of arguments, and of environment.
const MAX_STRINGS: u64 = 128 * 1024;
/// What glibc must know: its malloc would reserve 64 MiB of address space a thread, and there is none to waste; and
/// REP MOVSB takes 20 times as long as its vector loop where source and destination alias (measured on Zen 3, 4 KiB).
const GLIBC_TUNABLES: &str =
    "GLIBC_TUNABLES=glibc.malloc.arena_max=1:glibc.cpu.x86_rep_movsb_threshold=1048576";

/// The initial stack as the System V ABI for x86-64 (3.4.1) wants it: argc, argv, envp, auxiliary vector.
fn build_stack(
    image: &ImageInfo,
    manifest: &Manifest<'_>,
    given: &StartInfo,
    table: u64,
    (stack, size): (u64, u64),
) -> Result<u64, u64> {
    let nomem = |_: Errno| refusal::START_INFO;
    let (args_len, env_len) = (given.args_len, given.env_len);
    if args_len > MAX_STRINGS || env_len > MAX_STRINGS {
        return Err(refusal::START_INFO);
    }
    // Strings live in pages of their own, so that their number cannot eat the stack.
    let room = args_len + env_len + manifest.fixed_env.len() as u64 + manifest.name.len() as u64 + 4096;
    let strings = memory::map(room).map_err(nomem)?;
    let pointers =
        memory::map(8 * (args_len + env_len + manifest.fixed_env.len() as u64 + 64)).map_err(nomem)?;
    let mut s = Strings { next: strings, first: pointers, pointers: pointers as *mut u64 };
    s.add(manifest.name.as_bytes());
    // SAFETY: fresh pages of the right size; `copy_in` refuses what is not outside.
    unsafe {
        if manifest.args && args_len != 0 {
            let raw = memory::map(args_len).map_err(nomem)?;
            let bytes = core::slice::from_raw_parts_mut(raw as *mut u8, args_len as usize);
            if !host::copy_in(given.args, bytes) {
                return Err(refusal::POINTER);
            }
            replies::arguments(bytes).for_each(|a| s.add(a));
            let _ = memory::unmap(raw, args_len);
        }
        let argc = s.end_list();
        items(manifest.fixed_env).for_each(|e| s.add(e.as_bytes()));
        if !items(manifest.fixed_env).any(|e| name_of(e.as_bytes()) == b"GLIBC_TUNABLES") {
            s.add(GLIBC_TUNABLES.as_bytes());
        }
        if env_len != 0 {
            let raw = memory::map(env_len).map_err(nomem)?;
            let bytes = core::slice::from_raw_parts_mut(raw as *mut u8, env_len as usize);
            if !host::copy_in(given.env, bytes) {
                return Err(refusal::POINTER);
            }
            if manifest.stdio && variables(bytes).any(|e| name_of(e) == REPORT_VARIABLE.as_bytes()) {
                crate::calls::want_report();
            }
            environment(bytes, manifest.env, manifest.fixed_env).for_each(|e| s.add(e));
            let _ = memory::unmap(raw, env_len);
        }
        s.end_list();
        let mut random = [0; 16];
        if !crate::cpu::fill_random(&mut random) {
            return Err(refusal::START_INFO);
        }
        let random_at = s.bytes(&random);
        let platform_at = s.bytes(b"x86_64\0");
        let base = entry::enclave_base();
        let vector = [
            (3, base + image.app_phdr),      // AT_PHDR
            (4, 56),                         // AT_PHENT
            (5, image.app_phnum),            // AT_PHNUM
            (6, PAGE),                       // AT_PAGESZ
            (7, 0),                          // AT_BASE
            (8, 0),                          // AT_FLAGS
            (9, base + image.app_entry),     // AT_ENTRY
            (11, 0),                         // AT_UID
            (12, 0),                         // AT_EUID
            (13, 0),                         // AT_GID
            (14, 0),                         // AT_EGID
            (15, platform_at),               // AT_PLATFORM
            (17, 100),                       // AT_CLKTCK
            (23, 0),                         // AT_SECURE
            (25, random_at),                 // AT_RANDOM
            (26, 2),                         // AT_HWCAP2: FSGSBASE
            (31, *(pointers as *const u64)), // AT_EXECFN
            (AT_ENCLOS, table),
            (0, 0),
        ];
        // AT_MINSIGSTKSZ: frames with AVX-512 state are larger than what C programs know as MINSIGSTKSZ.
        let more = manifest.avx512.then(|| (51, crate::calls::signal::frame_bytes()));
        for (kind, value) in more.into_iter().chain(vector) {
            s.word(kind);
            s.word(value);
        }
        let words = (s.pointers as u64 - s.first) / 8;
        let top = (stack + size - 8 * (words + 1)) & !15;
        if top < stack + 16 * 1024 {
            return Err(refusal::START_INFO);
        }
        (top as *mut u64).write(argc);
        core::ptr::copy_nonoverlapping(s.first as *const u64, (top + 8) as *mut u64, words as usize);
        Ok(top)
    }
}

/// Strings and the pointers to them, in fresh pages whose sizes the caller computed.
struct Strings {
    next: u64,
    first: u64,
    pointers: *mut u64,
}

impl Strings {
    fn add(&mut self, s: &[u8]) {
        let at = self.bytes(s);
        self.bytes(&[0]);
        self.word(at);
    }

    fn bytes(&mut self, s: &[u8]) -> u64 {
        let at = self.next;
        // SAFETY: the caller mapped room for all strings and their ends.
        unsafe { core::ptr::copy_nonoverlapping(s.as_ptr(), at as *mut u8, s.len()) };
        self.next += s.len() as u64;
        at
    }

    fn word(&mut self, value: u64) {
        // SAFETY: the caller mapped a word for each byte that strings may have, and 64 more.
        unsafe {
            self.pointers.write(value);
            self.pointers = self.pointers.add(1);
        }
    }

    /// Ends a list with a null pointer; returns how many entries all lists have so far.
    fn end_list(&mut self) -> u64 {
        let count = (self.pointers as u64 - self.first) / 8;
        self.word(0);
        count
    }
}
