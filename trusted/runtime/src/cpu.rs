//! What only the CPU can say: random numbers, the counter, and CPUID (illegal inside, so the host is asked, and its
//! answer is limited to what the enclave's attributes allow).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use enclos::abi::{counter, hostcall, xfrm};
use sgx_isa::{Report, Targetinfo};

use crate::host::{self, Frame};
use crate::thread::Thread;

/// How often RDRAND is tried before it counts as broken (Intel's guide: ten times is enough).
const RDRAND_TRIES: u32 = 64;

/// Eight random bytes, or `None` when the CPU gives none.
pub fn random() -> Option<u64> {
    for _ in 0..RDRAND_TRIES {
        let (value, ok): (u64, u8);
        // SAFETY: every CPU with SGX has RDRAND; it has no effect but its result.
        unsafe {
            core::arch::asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) ok, options(nomem, nostack))
        };
        // All ones is what a known-broken CPU gives for ever.
        if ok != 0 && value != u64::MAX {
            return Some(value);
        }
    }
    None
}

/// Fills memory with random bytes; `false` when the CPU gives none.
pub fn fill_random(to: &mut [u8]) -> bool {
    for chunk in to.chunks_mut(8) {
        let Some(v) = random() else { return false };
        chunk.copy_from_slice(&v.to_le_bytes()[..chunk.len()]);
    }
    true
}

/// The time-stamp counter.
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: legal inside on SGX2, where it is used at all.
    unsafe {
        core::arch::asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// A report of this enclave for nobody: what the processor says of it. The host has no part in it.
pub fn own_report() -> Option<Report> {
    #[repr(C, align(512))]
    struct Aligned([u8; 512]);
    let (mut target, data, mut report) = (Aligned([0; 512]), Aligned([0; 512]), Aligned([0; 512]));
    target.0[..Targetinfo::UNPADDED_SIZE].copy_from_slice(Targetinfo::default().as_ref());
    // SAFETY: aligned as EREPORT wants it, and inside.
    unsafe { crate::entry::enclos_ereport(target.0.as_ptr(), data.0.as_ptr(), report.0.as_mut_ptr()) };
    Report::try_copy_from(&report.0[..Report::UNPADDED_SIZE])
}

unsafe extern "C" {
    /// A word of `entry`'s: the components of AVX-512, or 0.
    static enclos_avx512: AtomicU32;
}

/// Lets programs use AVX-512 if the enclave was created with that state. For images that ask for it, once, before any
/// program runs; `false` when the processor does not say.
///
/// XGETBV would be quicker, but what the emulated processor has is in its reports only.
pub fn use_avx512() -> bool {
    let Some(report) = own_report() else { return false };
    if report.attributes.xfrm & xfrm::AVX512 == xfrm::AVX512 {
        // SAFETY: only ever accessed atomically or by single loads.
        unsafe { enclos_avx512.store(xfrm::AVX512 as u32, Ordering::Relaxed) };
    }
    true
}

/// The components of processor state that programs have.
pub fn components() -> u32 {
    // SAFETY: as above.
    xfrm::BASE as u32 | unsafe { enclos_avx512.load(Ordering::Relaxed) }
}

/// Bytes of a standard-format XSAVE area of these.
pub fn xsave_bytes() -> usize {
    if components() & xfrm::AVX512 as u32 == 0 { xfrm::BASE_AREA } else { xfrm::LARGEST_AREA }
}

/// Runs something that may use AVX registers. Entries from the program save the lower halves only, which is all that the
/// rest of the runtime uses.
pub fn with_vectors<R>(f: impl FnOnce() -> R) -> R {
    /// In standard format: legacy area, header, the upper halves of the YMM registers, and with AVX-512 those of ZMM0 to
    /// ZMM15 at byte 1152 (SDM vol. 1, 13.4 and 13.5).
    #[repr(C, align(64))]
    struct Area([u64; 208]);
    const _: () = assert!(size_of::<Area>() == 1152 + 512);
    /// The components of both: what AVX instructions change.
    const UPPER: u32 = 1 << 6 | 1 << 2;
    let components = components() & UPPER;
    let mut area = Area([0; 208]);
    // SAFETY: large enough for these components; the header is zero.
    unsafe {
        core::arch::asm!("xsave64 [{}]", in(reg) &raw mut area, in("eax") components, in("edx") 0, options(nostack))
    };
    let result = f();
    // SAFETY: what was just saved. Upper halves are nothing that compiled code around here uses.
    unsafe {
        core::arch::asm!("xrstor64 [{}]", in(reg) &raw const area, in("eax") components, in("edx") 0, options(nostack))
    };
    result
}

/// CPUID executed by the runtime itself, by crates that look for instructions: EAX, EBX, ECX, EDX. Whatever runs an image
/// has these, by its XFRM and by having SGX.
pub fn own_cpuid(leaf: u32) -> [u32; 4] {
    // PCLMULQDQ, SSSE3, SSE4.1, AES, XSAVE, OSXSAVE, AVX; SSE and SSE2
    let features = 1 << 1 | 1 << 9 | 1 << 19 | 1 << 25 | 1 << 26 | 1 << 27 | 1 << 28;
    if leaf == 1 { [0, 0, features, 1 << 25 | 1 << 26] } else { [0; 4] }
}

/// Answers kept so that programs that ask often do not exit often: leaf, subleaf and four registers in three words.
/// A slot's first word is written last, so a reader sees either a whole entry or none.
const CACHED: usize = 32;
static CACHE: [[AtomicU64; 3]; CACHED] = [const { [const { AtomicU64::new(0) }; 3] }; CACHED];
static CACHE_LOCK: crate::lock::SpinLock<usize> = crate::lock::SpinLock::new(0);

/// CPUID by a rewritten or trapping site: writes EAX, EBX, ECX, EDX.
pub unsafe extern "C" fn cpuid(leaf: u32, subleaf: u32, out: *mut [u32; 4]) {
    crate::calls::count(counter::CPUIDS);
    // Subleaves matter for few leaves; the others would only fill the cache.
    let subleaf = if matches!(leaf, 2 | 4 | 7 | 0xb | 0xd | 0xf..=0x14 | 0x17..=0x1f | 0x8000_001d) {
        subleaf
    } else {
        0
    };
    let key = (u64::from(leaf) << 32) | (u64::from(subleaf) + 1);
    let answer = match cached(key) {
        Some(a) => a,
        None => {
            let a = limit(leaf, subleaf, ask(leaf, subleaf));
            remember(key, a);
            a
        }
    };
    // SAFETY: `entry` passes room on its own stack.
    unsafe { *out = answer };
}

fn cached(key: u64) -> Option<[u32; 4]> {
    let slot = CACHE.iter().find(|s| s[0].load(Ordering::Acquire) == key)?;
    let (a, b) = (slot[1].load(Ordering::Relaxed), slot[2].load(Ordering::Relaxed));
    Some([a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32])
}

fn remember(key: u64, r: [u32; 4]) {
    let mut used = CACHE_LOCK.lock();
    if *used < CACHED && cached(key).is_none() {
        let slot = &CACHE[*used];
        slot[1].store(u64::from(r[1]) << 32 | u64::from(r[0]), Ordering::Relaxed);
        slot[2].store(u64::from(r[3]) << 32 | u64::from(r[2]), Ordering::Relaxed);
        slot[0].store(key, Ordering::Release);
        *used += 1;
    }
}

fn ask(leaf: u32, subleaf: u32) -> [u32; 4] {
    let me = Thread::current();
    let answer = host::call_keeping(me, hostcall::CPUID, u64::from(leaf), u64::from(subleaf), 0);
    let mut bytes = [0; 16];
    if host::checked(answer, 0).is_err() || !Frame::of(me).get(0, &mut bytes) {
        return [0; 4];
    }
    core::array::from_fn(|i| {
        u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
    })
}

/// Features that need more state than the enclave has ([`components`]) must not be seen, or programs would use
/// instructions that fault inside. RDRAND and what every SGX CPU has must not be denied.
fn limit(leaf: u32, subleaf: u32, r: [u32; 4]) -> [u32; 4] {
    let [a, b, c, d] = r;
    let has_avx512 = components() & xfrm::AVX512 as u32 != 0;
    let avx512 = |features: u32| if has_avx512 { 0 } else { features };
    match (leaf, subleaf) {
        // RDRAND and OSXSAVE are there; VMX, SMX are not the program's.
        (1, _) => [a, b, c & !(1 << 5 | 1 << 6) | 1 << 30 | 1 << 27 | 1 << 26, d],
        (7, 0) => {
            // AVX-512 F, DQ, IFMA, CD, BW, VL; PF, ER; MPX; RTM, HLE (abort inside); PT
            let ebx = b & !(avx512(0xd023_0000) | 0x0c00_0000 | 1 << 14 | 1 << 11 | 1 << 4 | 1 << 25);
            // AVX-512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ; PKU, OSPKE; CET_SS
            let ecx = c & !(avx512(1 << 1 | 1 << 6 | 1 << 11 | 1 << 12 | 1 << 14) | 1 << 3 | 1 << 4 | 1 << 7);
            // AVX-512 VP2INTERSECT, FP16; 4VNNIW, 4FMAPS; AMX; CET_IBT
            let edx =
                d & !(avx512(1 << 8 | 1 << 23) | 1 << 2 | 1 << 3 | 1 << 22 | 1 << 24 | 1 << 25 | 1 << 20);
            [a.min(1), ebx, ecx, edx]
        }
        // AVX512_BF16; AMX-FP16, AVX10 and the like
        (7, 1) => [a & !(avx512(1 << 5) | 1 << 21), b, c, d & !(1 << 19)],
        (0xd, 0) => {
            let bytes = xsave_bytes() as u32;
            [components(), bytes, bytes, 0]
        }
        // XSAVEC and XSAVES would be compact formats that SSA frames do not have; XSAVEOPT stays.
        (0xd, 1) => [a & 1, 0, 0, 0],
        (0xd, 2) => [256, 576, 0, 0],
        // Size and place of the mask registers, of the upper halves of ZMM0 to ZMM15, of ZMM16 to ZMM31.
        (0xd, 5) if has_avx512 => [64, 1088, 0, 0],
        (0xd, 6) if has_avx512 => [512, 1152, 0, 0],
        (0xd, 7) if has_avx512 => [1024, 1664, 0, 0],
        (0xd, _) | (0x14 | 0x1c..=0x1e | 0x23 | 0x24, _) => [0; 4],
        _ => r,
    }
}
