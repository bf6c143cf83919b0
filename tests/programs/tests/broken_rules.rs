//! A host that breaks the rules of entry: every wrong operation, state and pointer is refused, nothing is disturbed.

#[allow(dead_code)]
mod support;

use std::time::{Duration, Instant};

use enclos::abi::{exit, op, refusal, thread as region};
use enclos_host::Enclave;
use enclos_platform::{EENTER, EEXIT, ERESUME, Run};
use support::{build, builder, image};

/// An enclave whose first thread is parked, and the addresses of its TCSs.
struct Parked {
    enclave: Enclave,
    tcs: Vec<u64>,
    base: u64,
    size: u64,
}

impl Parked {
    fn new() -> Self {
        Self::with("threads = 3")
    }

    fn with(config: &str) -> Self {
        let image = image(&build("parked.c"), config);
        let enclave = builder(&image).start().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while enclave.threads().0 == 0 {
            assert!(enclave.end().is_none() && Instant::now() < until, "{:?}", enclave.end());
            std::thread::sleep(Duration::from_millis(1));
        }
        let (base, size) = (enclave.initialized().base(), enclave.initialized().size());
        let area = image.info().thread_area;
        let tcs = (0..3).map(|i| base + area + i * region::STRIDE + region::TCS).collect();
        enclave.initialized().prepare_thread().unwrap();
        Self { enclave, tcs, base, size }
    }

    /// Enters with these registers; what came back in RDI, RSI, RDX.
    fn enter(&self, thread: usize, arguments: [u64; 5]) -> (u64, u64, u64) {
        let (run, out) = self.enter_leaf(thread, EENTER, arguments);
        assert_eq!(run.function, EEXIT, "exception {}", run.exception_vector);
        out
    }

    fn enter_leaf(
        &self,
        thread: usize,
        leaf: u32,
        [rdi, rsi, rdx, r8, r9]: [u64; 5],
    ) -> (Run, (u64, u64, u64)) {
        let mut run = Run::new(self.tcs[thread]);
        let function = self.enclave.initialized().enter_function();
        let out: (u64, u64, u64);
        // SAFETY: the convention of the enter function: the structure on the stack, callee-saved registers but RBX and
        // RBP are the enclave's to change.
        unsafe {
            let (a, b, c): (u64, u64, u64);
            std::arch::asm!(
                "push rax", "push rax", "call r10", "pop rcx", "pop rcx",
                in("r10") function,
                inout("rax") &raw mut run => _,
                inout("rdi") rdi => a, inout("rsi") rsi => b, inout("rdx") rdx => c,
                inout("rcx") u64::from(leaf) => _, inout("r8") r8 => _, inout("r9") r9 => _,
                out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
                clobber_abi("C"),
            );
            out = (a, b, c);
        }
        (run, out)
    }

    /// A proper call; the first thread answers with 1000 more.
    fn call(&self, what: u64) -> Option<u64> {
        let (request, mut reply) = (what, 0_u64);
        let arguments = [op::CALL, &raw const request as u64, 8, &raw mut reply as u64, 8];
        let mut left = self.enter(0, arguments);
        while left.0 == exit::HOST_CALL {
            left = self.enter(0, [op::RETURN, 0, 0, 0, 0]);
        }
        (left == (exit::PARKED, 0, 8)).then_some(reply)
    }
}

#[test]
fn wrong_operations_and_states_are_refused() {
    let p = Parked::new();
    let refused = |code| (exit::REFUSED, code, 0);
    for unknown in [0, 8, 99, u64::MAX, 1 << 32 | op::CALL, 1 << 32 | op::RETURN, 1 << 63 | op::START] {
        for thread in [0, 1] {
            let (code, reason, _) = p.enter(thread, [unknown, 0, 0, 0, 0]);
            assert_eq!(code, exit::REFUSED, "operation {unknown:#x}");
            assert!(matches!(reason, refusal::OPERATION | refusal::STATE), "{reason}");
        }
    }
    for wrong in [op::RETURN, op::NESTED_CALL, op::START, op::THREAD, op::EXCEPTION] {
        assert_eq!(p.enter(0, [wrong, 0, 0, 0, 0]), refused(refusal::STATE), "parked, operation {wrong}");
    }
    for wrong in [op::RETURN, op::NESTED_CALL, op::CALL, op::SHUTDOWN, op::EXCEPTION] {
        assert_eq!(p.enter(1, [wrong, 0, 0, 0, 0]), refused(refusal::STATE), "free, operation {wrong}");
    }
    assert_eq!(p.enter(1, [op::START, 0, 0, 0, 0]), refused(refusal::ORDER));
    assert_eq!(p.enter(1, [op::THREAD, 0, 0, 0, 0]), refused(refusal::NO_THREAD));
    assert_eq!(p.call(7), Some(1007), "nothing was disturbed");
}

#[test]
fn pointers_into_the_enclave_are_refused() {
    let p = Parked::new();
    let mut room = [0_u8; 64];
    let outside = room.as_mut_ptr() as u64;
    let bad = [
        (p.base, 8),
        (p.base + p.size - 8, 8),
        (p.base - 4, 8),
        (p.base + p.size - 1, 1),
        (p.base - 4096, p.size * 2),
        (u64::MAX - 3, 8),
        (outside, u64::MAX),
        (outside, 1 << 40),
        (0, 8),
        (1 << 47, 8),
        (0xffff_8000_0000_0000, 8),
    ];
    for (at, len) in bad {
        let want = (exit::REFUSED, refusal::POINTER, 0);
        assert_eq!(p.enter(0, [op::CALL, at, len, outside, 8]), want, "request {at:#x}+{len:#x}");
        assert_eq!(p.enter(0, [op::CALL, outside, 8, at, len]), want, "reply {at:#x}+{len:#x}");
    }
    assert_eq!(p.call(8), Some(1008), "nothing was disturbed");
}

#[test]
fn a_thread_in_a_host_call_takes_its_answer_only() {
    let p = Parked::new();
    let (request, mut reply) = (1_u64, 0_u64);
    let call = [op::CALL, &raw const request as u64, 8, &raw mut reply as u64, 8];
    let (code, number, _) = p.enter(0, call);
    assert_eq!((code, number), (exit::HOST_CALL, enclos::abi::hostcall::NOP));
    for wrong in [op::CALL, op::SHUTDOWN, op::START, op::THREAD, op::EXCEPTION] {
        assert_eq!(p.enter(0, [wrong, call[1], 8, call[3], 8]), (exit::REFUSED, refusal::STATE, 0));
    }
    assert_eq!(p.enter(0, [op::NESTED_CALL, call[1], 8, call[3], 8]), (exit::REFUSED, refusal::NESTING, 0));
    assert_eq!(p.enter(0, [op::RETURN, 41, 0, 0, 0]), (exit::PARKED, 0, 8));
    assert_eq!(reply, 1041);
    assert_eq!(p.enter(0, [op::RETURN, 0, 0, 0, 0]), (exit::REFUSED, refusal::STATE, 0), "a second answer");
}

#[test]
fn a_faulted_thread_is_entered_for_its_exception_only() {
    let p = Parked::new();
    let (request, mut reply) = (2_u64, 0_u64);
    let call = [op::CALL, &raw const request as u64, 8, &raw mut reply as u64, 8];
    let (run, _) = p.enter_leaf(0, EENTER, call);
    assert_eq!((run.function, run.exception_vector), (ERESUME, 14));
    for wrong in [op::CALL, op::RETURN, op::START, op::THREAD, op::SHUTDOWN, op::NESTED_CALL, 0, u64::MAX] {
        assert_eq!(p.enter(0, [wrong, call[1], 8, call[3], 8]), (exit::REFUSED, refusal::CSSA, 0));
    }
    // Resuming without having asked faults again, at the next SSA frame's expense: nowhere.
    let (run, _) = p.enter_leaf(0, ERESUME, [0; 5]);
    assert_eq!((run.function, run.exception_vector), (ERESUME, 14));
    let (code, len, _) = p.enter(0, [op::EXCEPTION, 0, 0, 0, 0]);
    assert!(code == exit::FAULT && len > 0);
    // The enclave has ended: nobody gets in any more.
    assert_eq!(p.enter(1, [op::THREAD, 0, 0, 0, 0]), (exit::REFUSED, refusal::ENDED, 0));
}

#[test]
fn registers_do_not_leak_what_they_must_not() {
    let p = Parked::new();
    let mut run = Run::new(p.tcs[0]);
    let function = p.enclave.initialized().enter_function();
    let (request, mut reply) = (3_u64, 0_u64);
    let mut general = [0_u64; 6];
    let mut vectors = [0xff_u8; 512];
    // SAFETY: as above; vector registers are stored right after the return.
    unsafe {
        std::arch::asm!(
            "push r11", "push rax", "call r10", "pop rcx", "pop rcx",
            "vmovdqu [rcx], ymm0", "vmovdqu [rcx + 32], ymm1", "vmovdqu [rcx + 64], ymm7",
            "vmovdqu [rcx + 96], ymm8", "vmovdqu [rcx + 128], ymm15",
            inout("r10") function as usize as u64 => general[0], inout("r11") vectors.as_mut_ptr() as u64 => general[1], out("r12") general[2],
            out("r13") general[3], out("r14") general[4], out("r15") general[5],
            inout("rax") &raw mut run => _,
            inout("rdi") op::CALL => _, inout("rsi") &raw const request => _, inout("rdx") 8_u64 => _,
            inout("rcx") u64::from(EENTER) => _, inout("r8") &raw mut reply => _, inout("r9") 8_u64 => _,
            clobber_abi("C"),
        );
    }
    assert_eq!((run.function, reply), (EEXIT, 1003));
    assert_eq!(general, [0; 6]);
    assert!(vectors[..160].iter().all(|b| *b == 0));
}

/// The same of AVX-512: ZMM0 to ZMM31 whole, K0 to K7.
#[test]
fn registers_of_avx512_do_not_leak() {
    if !is_x86_feature_detected!("avx512bw") {
        eprintln!("skipped: this processor has no AVX-512");
        return;
    }
    let p = Parked::with("threads = 3\navx512 = true");
    // A proper call first: a thread's first way out is another.
    assert_eq!(p.call(4), Some(2004), "AVX-512 is there");
    for (what, answer) in [(4_u64, 2004), (5, 1005), (4, 2004)] {
        // SAFETY: AVX-512 is there.
        let (function, reply, seen) = unsafe { call_and_look(&p, what) };
        assert_eq!((function, reply), (EEXIT, answer));
        assert_eq!(seen.iter().position(|w| *w != 0), None, "a word of registers: 8 each of ZMM, then K");
    }
}

unsafe fn call_and_look(p: &Parked, what: u64) -> (u32, u64, [u64; 264]) {
    let mut run = Run::new(p.tcs[0]);
    let function = p.enclave.initialized().enter_function();
    let (request, mut reply) = (what, 0_u64);
    let mut seen = [!0_u64; 264];
    // SAFETY: as above; vector registers are stored right after the return.
    unsafe {
        std::arch::asm!(
            "push r11", "push rax", "call r10", "pop rcx", "pop rcx",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            r"vmovdqu64 [rcx + 64 * \n], zmm\n",
            ".endr",
            ".irp n, 0,1,2,3,4,5,6,7",
            r"kmovq [rcx + 2048 + 8 * \n], k\n",
            ".endr",
            inout("r10") function as usize as u64 => _, inout("r11") seen.as_mut_ptr() as u64 => _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            inout("rax") &raw mut run => _,
            inout("rdi") op::CALL => _, inout("rsi") &raw const request => _, inout("rdx") 8_u64 => _,
            inout("rcx") u64::from(EENTER) => _, inout("r8") &raw mut reply => _, inout("r9") 8_u64 => _,
            clobber_abi("C"),
        );
    }
    (run.function, reply, seen)
}
