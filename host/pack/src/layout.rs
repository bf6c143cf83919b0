//! Lays an image out: which page goes where, with which permissions, and which of them are measured by content.
//!
//! Everything that code could rely on is measured by content: runtime, manifest, application (zero-filled data
//! included), the threads' data pages and TCSs. Pages of which only place and permissions are measured:
//! - heap: the runtime clears memory before it hands it out. With profile "sgx2" only its end is part of the image;
//! - the runtime's stacks and the SSA frames: nothing is read from them before it was written. A stack frame is
//!   written by the thread itself, an SSA frame by the asynchronous exit, and CSSA (in the measured TCS) is 0 at the
//!   start, so that no ERESUME can precede it.

use enclos::abi::thread;
use enclos::image::{INFO_MAGIC, ImageInfo, TRAP_CPUID, TrapSite, dynamic_heap_present};
use enclos::manifest::ManifestError;
use sgx_isa::{PageType, SecinfoFlags};

use crate::config::{Config, Profile};
use crate::elf::{ElfError, Perm, Program};
use crate::image::{Hints, Image, ImageError, MAX_MANIFEST, Symbol};
use crate::rewrite::{Plan, RewriteError, RuntimeEntries};
use crate::{PAGE, sgxs};

/// What an image is made of.
#[derive(Clone, Copy, Debug)]
pub struct PackInput<'a> {
    /// The runtime: a static position-independent ELF file with the symbols `enclos_entry`, `enclos_syscall` and
    /// `enclos_cpuid`.
    pub runtime: &'a [u8],
    /// The application: a static position-independent ELF file for Linux.
    pub app: &'a [u8],
    /// The configuration.
    pub config: &'a Config,
}

/// Packs an unsigned image.
///
/// # Errors
/// When an ELF file is not of the kind needed, or something does not fit.
pub fn pack(input: &PackInput<'_>) -> Result<Image, PackError> {
    let runtime = Program::parse(input.runtime).map_err(PackError::Runtime)?;
    let mut app = Program::parse(input.app).map_err(PackError::Application)?;
    let entry = runtime_symbol(&runtime, "enclos_entry")?;
    let syscall = runtime_symbol(&runtime, "enclos_syscall")?;
    let cpuid = runtime_symbol(&runtime, "enclos_cpuid")?;
    let app_code = app.code_bytes();
    let plan = Plan::new(&app);
    let manifest = input.config.manifest()?;
    if manifest.len() as u64 > MAX_MANIFEST {
        return Err(PackError::Manifest(ManifestError::TooLarge));
    }
    let threads = input.config.threads.get();

    let info_at = runtime.end();
    let manifest_at = info_at + (INFO_SIZE as u64).next_multiple_of(16);
    let traps_at = (manifest_at + manifest.len() as u64).next_multiple_of(16);
    let traps_end = traps_at + (plan.traps.len() * TRAP_SIZE) as u64;
    let app_at = traps_end.next_multiple_of(APP_ALIGN);
    let from_app = |address: u64| address.wrapping_sub(app_at);
    plan.apply(&mut app, RuntimeEntries { syscall: from_app(syscall), cpuid: from_app(cpuid) })?;
    let app_end = app_at + app.end();

    let thread_area = app_end;
    let heap = thread_area + u64::from(threads) * thread::STRIDE;
    let heap_size = input.config.heap.get();
    let size = (heap + heap_size).next_power_of_two();
    let is_dynamic = input.config.profile == Profile::Sgx2;
    let heap_present = if is_dynamic { dynamic_heap_present(heap_size) } else { heap_size };
    let threads_present = if is_dynamic { 1 } else { u64::from(threads) };

    let info = ImageInfo {
        magic: INFO_MAGIC,
        abi_version: enclos::abi::ABI_VERSION,
        threads,
        enclave_size: size,
        manifest: manifest_at,
        manifest_len: manifest.len() as u64,
        app: app_at,
        app_end,
        app_entry: app_at + app.entry,
        app_phdr: app_at + app.phdr,
        app_phnum: app.phnum,
        thread_area,
        heap,
        heap_size,
        traps: traps_at,
        trap_count: plan.traps.len() as u64,
        app_eh_frame_hdr: if app.eh_frame_hdr.is_empty() { 0 } else { app_at + app.eh_frame_hdr.start },
        heap_present,
        threads_present,
    };
    let mut info_pages = vec![0; (traps_end.next_multiple_of(PAGE) - info_at) as usize];
    info_pages[..INFO_SIZE].copy_from_slice(&encode_info(&info));
    put(&mut info_pages, manifest_at - info_at, &manifest);
    for (address, at) in plan.traps.iter().zip((traps_at - info_at..).step_by(TRAP_SIZE)) {
        let trap = TrapSite { offset: app_at + address, kind: TRAP_CPUID };
        put(&mut info_pages, at, &encode_trap(&trap));
    }

    let mut stream = sgxs::Writer::new(size, thread::SSA_FRAME_PAGES);
    for (at, perm, data) in runtime.runs() {
        stream.measured(at, regular(perm), data);
    }
    stream.measured(info_at, regular(READ), &info_pages);
    for (at, perm, data) in app.runs() {
        stream.measured(app_at + at, regular(perm), data);
    }
    for index in 0..threads_present {
        let region = thread_area + index * thread::STRIDE;
        add_thread(&mut stream, region, index, info_at, entry);
    }
    stream.unmeasured(heap + heap_size - heap_present, regular(READ_WRITE), heap_present / PAGE);

    let hints = Hints {
        enclu_sites: runtime.enclu.clone(),
        runtime_code: runtime.code_bytes(),
        app_code,
        sites: plan.counts,
        symbols: if input.config.debug { symbols(&runtime, &app, app_at) } else { Vec::new() },
    };
    Ok(Image::new(stream.finish(), hints)?)
}

/// The functions of both programs, by offset.
fn symbols(runtime: &Program, app: &Program, app_at: u64) -> Vec<Symbol> {
    let of = |program: &Program, base: u64| -> Vec<Symbol> {
        let functions = program.symbols.iter().filter(|s| s.is_function && s.size != 0);
        functions.map(|s| Symbol { offset: base + s.address, size: s.size, name: s.name.clone() }).collect()
    };
    // Both are sorted, and the application comes after the runtime.
    [of(runtime, 0), of(app, app_at)].concat()
}

/// Where the application may begin: what its segments may ask to be aligned to.
const APP_ALIGN: u64 = 64 << 10;
/// Encoded size of [`ImageInfo`].
pub(crate) const INFO_SIZE: usize = size_of::<ImageInfo>();
/// Encoded size of a [`TrapSite`].
pub(crate) const TRAP_SIZE: usize = size_of::<TrapSite>();
const READ: Perm = Perm { r: true, w: false, x: false };
const READ_WRITE: Perm = Perm { r: true, w: true, x: false };

/// Writes out an [`ImageInfo`]: its fields in order, little-endian, no padding.
pub(crate) fn encode_info(info: &ImageInfo) -> [u8; INFO_SIZE] {
    let words = [
        info.magic,
        u64::from(info.abi_version) | u64::from(info.threads) << 32,
        info.enclave_size,
        info.manifest,
        info.manifest_len,
        info.app,
        info.app_end,
        info.app_entry,
        info.app_phdr,
        info.app_phnum,
        info.thread_area,
        info.heap,
        info.heap_size,
        info.traps,
        info.trap_count,
        info.app_eh_frame_hdr,
        info.heap_present,
        info.threads_present,
    ];
    const { assert!(INFO_SIZE == 18 * 8, "ImageInfo changed: change encode_info and decode_info too") };
    let mut out = [0; INFO_SIZE];
    for (to, word) in out.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    out
}

/// Reads an [`ImageInfo`]; `None` when the magic is not there.
pub(crate) fn decode_info(bytes: &[u8; INFO_SIZE]) -> Option<ImageInfo> {
    let (words, _) = bytes.as_chunks::<8>();
    let w = |i: usize| u64::from_le_bytes(words[i]);
    (w(0) == INFO_MAGIC).then(|| ImageInfo {
        magic: w(0),
        abi_version: w(1) as u32,
        threads: (w(1) >> 32) as u32,
        enclave_size: w(2),
        manifest: w(3),
        manifest_len: w(4),
        app: w(5),
        app_end: w(6),
        app_entry: w(7),
        app_phdr: w(8),
        app_phnum: w(9),
        thread_area: w(10),
        heap: w(11),
        heap_size: w(12),
        traps: w(13),
        trap_count: w(14),
        app_eh_frame_hdr: w(15),
        heap_present: w(16),
        threads_present: w(17),
    })
}

fn encode_trap(trap: &TrapSite) -> [u8; TRAP_SIZE] {
    let mut out = [0; TRAP_SIZE];
    out[..8].copy_from_slice(&trap.offset.to_le_bytes());
    out[8..].copy_from_slice(&trap.kind.to_le_bytes());
    out
}

/// Adds a thread's region (see [`enclos::abi::thread`]).
fn add_thread(stream: &mut sgxs::Writer, region: u64, index: u64, info_at: u64, entry: u64) {
    let pages = |from: u64, to: u64| (to - from) / PAGE;
    let rw = regular(READ_WRITE);
    stream.unmeasured(region + thread::STACK, rw, pages(thread::STACK, thread::STACK_END));
    stream.unmeasured(
        region + thread::EXCEPTION_STACK,
        rw,
        pages(thread::EXCEPTION_STACK, thread::EXCEPTION_STACK_END),
    );
    let data_at = region + thread::DATA;
    let mut data = [0; PAGE as usize];
    // enclos::abi::ThreadSeed
    put(&mut data, 0, &index.to_le_bytes());
    put(&mut data, 8, &data_at.to_le_bytes());
    put(&mut data, 16, &info_at.to_le_bytes());
    stream.measured(data_at, rw, &data);

    // SDM vol. 3D, 34.8: the fields of a TCS, by byte offset.
    let mut tcs = [0; PAGE as usize];
    put(&mut tcs, 16, &(region + thread::SSA).to_le_bytes());
    put(&mut tcs, 28, &thread::NSSA.to_le_bytes());
    put(&mut tcs, 32, &entry.to_le_bytes());
    put(&mut tcs, 48, &(region + thread::INITIAL_FS).to_le_bytes());
    put(&mut tcs, 56, &data_at.to_le_bytes());
    put(&mut tcs, 64, &0xfffu32.to_le_bytes());
    put(&mut tcs, 68, &0xfffu32.to_le_bytes());
    stream.measured(region + thread::TCS, SecinfoFlags::from(PageType::Tcs), &tcs);
    stream.unmeasured(region + thread::SSA, rw, u64::from(thread::NSSA * thread::SSA_FRAME_PAGES));
}

/// SECINFO flags of a regular page.
fn regular(perm: Perm) -> SecinfoFlags {
    let mut flags = SecinfoFlags::from(PageType::Reg);
    // SGX has no page that may be executed or written without being readable (SDM vol. 3D, 34.11).
    flags.set(SecinfoFlags::R, perm.r || perm.w || perm.x);
    flags.set(SecinfoFlags::W, perm.w);
    flags.set(SecinfoFlags::X, perm.x);
    flags
}

fn put(page: &mut [u8], at: u64, bytes: &[u8]) {
    page[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
}

fn runtime_symbol(runtime: &Program, name: &'static str) -> Result<u64, PackError> {
    runtime.symbol(name).filter(|a| runtime.is_executable(*a)).ok_or(PackError::RuntimeSymbol { name })
}

/// Why an image could not be packed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The runtime is not usable.
    #[error("runtime: {0}")]
    Runtime(#[source] ElfError),
    /// The application is not usable.
    #[error("application: {0}")]
    Application(#[source] ElfError),
    /// The runtime lacks an entry point.
    #[error(
        "the runtime has no function `{name}`: it was stripped, or is of another version; build it again"
    )]
    RuntimeSymbol {
        /// The symbol.
        name: &'static str,
    },
    /// A site cannot be rewritten.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// The manifest is too large.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// What was packed does not read back.
    #[error(transparent)]
    Image(#[from] ImageError),
}
