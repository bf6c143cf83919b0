//! AVX-512 inside: what CPUID says, and whether registers survive.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;

use enclos_enclave::Targetinfo;
use enclos_test_guest::{Call, Processor};

pub(crate) fn processor() -> Processor {
    let report = enclos_enclave::report(&Targetinfo::default(), &[0; 64]).unwrap();
    let (state, leaf, more) = (__cpuid_count(0xd, 0), __cpuid_count(7, 0), __cpuid_count(7, 1));
    let end = |i| {
        let r = __cpuid_count(0xd, i);
        r.eax + r.ebx
    };
    Processor {
        xfrm: report.attributes.xfrm,
        avx512f: is_x86_feature_detected!("avx512f"),
        avx2: is_x86_feature_detected!("avx2"),
        components: state.eax,
        area: state.ebx,
        end: (5..8).map(end).max().unwrap_or(0),
        more_state: leaf.ecx & (1 << 3 | 1 << 4) != 0
            || leaf.edx & (1 << 22 | 1 << 24 | 1 << 25) != 0
            || more.edx & 1 << 19 != 0
            || end(9) | end(17) | end(18) != 0,
        // SAFETY: reads the auxiliary vector.
        large_frames: unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } > u64::from(state.ebx),
    }
}

/// ZMM0 to ZMM31, K0 to K7.
#[repr(C, align(64))]
struct Registers {
    zmm: [[u64; 8]; 32],
    k: [u64; 8],
}

impl Registers {
    fn pattern(seed: u64) -> Self {
        let word = |i: u64| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
        Self {
            zmm: std::array::from_fn(|r| std::array::from_fn(|i| word(8 * r as u64 + i as u64))),
            k: std::array::from_fn(|r| word(256 + r as u64)),
        }
    }
}

pub(crate) fn keep(rounds: u64, call: &Call) -> io::Result<(u64, i64)> {
    if !is_x86_feature_detected!("avx512bw") {
        return Err(io::Error::other("no AVX-512"));
    }
    let moment = [0_i64, 1];
    let mut file = None;
    let (number, arguments) = match call {
        Call::None => (-1, [0; 3]),
        Call::Nanosleep => (libc::SYS_nanosleep, [moment.as_ptr() as u64, 0, 0]),
        Call::Getpid => (libc::SYS_getpid, [0; 3]),
        Call::Tgkill => {
            // SAFETY: a handler that is async-signal-safe.
            let [process, thread] = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = clobber as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO;
                if libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) != 0 {
                    return Err(io::Error::last_os_error());
                }
                [libc::getpid(), libc::gettid()]
            };
            (libc::SYS_tgkill, [process as u64, thread as u64, libc::SIGUSR1 as u64])
        }
        Call::Fsync(path) => {
            let file = file.insert(File::create(path)?);
            file.write_all(&[0x5a; 40_000])?;
            (libc::SYS_fsync, [file.as_raw_fd() as u64, 0, 0])
        }
        Call::Mmap(len) => (libc::SYS_mmap, [0, *len, 3]),
    };
    let (set, mut after) = (Registers::pattern(rounds), Registers::pattern(!0));
    // SAFETY: AVX-512 is there; none of the calls changes memory of the program.
    let result = unsafe { across(number, arguments, rounds, &set, &mut after) };
    let zmm = set.zmm.iter().zip(&after.zmm).map(|(a, b)| a != b);
    let k = set.k.iter().zip(&after.k).map(|(a, b)| a != b);
    Ok((zmm.chain(k).enumerate().fold(0, |all, (i, differs)| all | u64::from(differs) << i), result))
}

/// Number -1: no call. A call's further arguments are those of mmap(2) of anonymous memory.
///
/// Compiled code around it knows nothing of ZMM16 to ZMM31, the upper halves and the mask registers: Rust 1.88 has no
/// AVX-512.
unsafe fn across(
    number: i64,
    [a, b, c]: [u64; 3],
    rounds: u64,
    set: &Registers,
    after: &mut Registers,
) -> i64 {
    let result;
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            r"vmovdqu64 zmm\n, [r12 + 64 * \n]",
            ".endr",
            ".irp n, 0,1,2,3,4,5,6,7",
            r"kmovq k\n, [r12 + 2048 + 8 * \n]",
            ".endr",
            "test r14, r14",
            "jz 3f",
            "2: dec r14",
            "jnz 2b",
            "3: cmp rax, -1",
            "je 4f",
            "syscall",
            "4: nop",
            r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            r"vmovdqu64 [r13 + 64 * \n], zmm\n",
            ".endr",
            ".irp n, 0,1,2,3,4,5,6,7",
            r"kmovq [r13 + 2048 + 8 * \n], k\n",
            ".endr",
            "vzeroupper",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            in("r8") -1_i64, in("r9") 0,
            in("r12") set, in("r13") after, inout("r14") rounds => _,
            clobber_abi("sysv64"),
        );
    }
    result
}

/// Eight products at a time, those of what is left over under a mask. Call it where AVX-512 is only.
pub(crate) unsafe fn dot(a: &[i32], b: &[i32]) -> i64 {
    let mut sum = [0_i64; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        let whole = |part: &[i32]| -> [i32; 8] { std::array::from_fn(|i| *part.get(i).unwrap_or(&-1)) };
        let (x, y) = (whole(a), whole(b));
        let present = (1_u32 << a.len().min(b.len())) - 1;
        // SAFETY: the caller's contract; arrays of eight.
        unsafe {
            asm!(
                "kmovw k1, {present:e}",
                "vmovdqu64 zmm2, [{sum}]",
                "vpmovsxdq zmm0, [{x}]",
                "vpmovsxdq zmm1, [{y}]",
                "vpmuldq zmm0, zmm0, zmm1",
                "vpaddq zmm2{{k1}}, zmm2, zmm0",
                "vmovdqu64 [{sum}], zmm2",
                "vzeroupper",
                present = in(reg) present,
                sum = in(reg) sum.as_mut_ptr(), x = in(reg) x.as_ptr(), y = in(reg) y.as_ptr(),
                out("xmm0") _, out("xmm1") _, out("xmm2") _,
            );
        }
    }
    sum.into_iter().fold(0, i64::wrapping_add)
}

extern "C" fn clobber(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let other = Registers::pattern(0x5eed);
    let mut mine = Registers::pattern(!0);
    // SAFETY: it was installed where AVX-512 is; getpid(2) changes nothing.
    unsafe { across(libc::SYS_getpid, [0; 3], 0, &other, &mut mine) };
}
