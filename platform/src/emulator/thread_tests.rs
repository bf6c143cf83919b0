//! Transitions with a hand-written enclave of a few instructions, below the level of ECREATE and EINIT.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sgx_isa::ErrorCode;

use super::thread::{
    EnclaveDescription, EnclaveThreads, Fault, Leaves, TcsDescription, enter_function, thread_context,
};
use crate::{EENTER, EEXIT, ERESUME, Run};

const SIZE: u64 = 0x10000;
const CODE: u64 = 0x1000;
const DATA: u64 = 0x2000;
const TCS: u64 = 0x3000;
const SSA: u64 = 0x4000;

// Operations of the test enclave, in RDI.
const NOP: u64 = 0;
const CALL: u64 = 1;
const SPIN: u64 = 2;
const HANDLE: u64 = 3;
const FAULT: u64 = 4;
const TRAP_EXIT: u64 = 5;
const DIVIDE: u64 = 6;
const REGISTERS: u64 = 7;
const PATTERN: u64 = 8;
const HALT: u64 = 9;
const BREAKPOINT: u64 = 10;

unsafe extern "C" {
    static enclos_test_enclave: u8;
    static enclos_test_enclave_end: u8;
    static enclos_test_enclave_fast: u8;
}

core::arch::global_asm!(
    r#"
    .text
    .p2align 6
    .global enclos_test_enclave, enclos_test_enclave_end, enclos_test_enclave_fast
enclos_test_enclave:
    cmp rdi, 3
    je 3f
    mov gs:[0], rcx
    cmp rdi, 1
    je 1f
    cmp rdi, 2
    je 2f
    cmp rdi, 4
    je 4f
    cmp rdi, 5
    je 5f
    cmp rdi, 6
    je 6f
    cmp rdi, 7
    je 20f
    cmp rdi, 8
    je 21f
    cmp rdi, 9
    je 22f
    cmp rdi, 10
    je 23f
    mov esi, 77
    jmp 8f
1:  mov eax, 39
    syscall
    mov rsi, rax
    jmp 8f
    # spin RDX times; registers, an XMM register and the red zone must survive whatever happens meanwhile
2:  mov gs:[16], rsp
    rdgsbase rsp
    add rsp, 0x800
    mov r12, rdx
    mov r13, 0x1234567
    movq xmm5, r13
    mov [rsp - 8], r13
    xor esi, esi
7:  add rsi, 1
    dec r12
    jnz 7b
    movq r14, xmm5
    cmp r14, r13
    jne 9f
    cmp [rsp - 8], r13
    jne 9f
    mov rsp, gs:[16]
    jmp 8f
    # at CSSA = 1: the interrupted SYSCALL or DIV is stepped over with RAX = 1234
3:  mov gs:[8], rcx
    rdgsbase rdx
    add rdx, 0x2000 + 4096 - 184
    mov rsi, [rdx + 160]
    add qword ptr [rdx + 136], 2
    mov qword ptr [rdx], 1234
    mov rbx, gs:[8]
    mov eax, 4
    jmp 10f
4:  mov rsi, [0x5000]
    ud2
5:  mov rbx, gs:[0]
    mov eax, 4
    .byte 0x0f, 0x01, 0xd7
    ud2
6:  mov eax, 7
    xor edx, edx
    xor ecx, ecx
    div ecx
    mov rsi, rax
    jmp 8f
    # what EENTER put into the registers
20: mov gs:[0x100], rax
    mov gs:[0x108], rbx
    mov gs:[0x110], rcx
    rdfsbase rsi
    mov gs:[0x118], rsi
    rdgsbase rsi
    mov gs:[0x120], rsi
    mov gs:[0x128], rsp
    mov gs:[0x130], rbp
    jmp 8f
    # registers whose values the SSA frame must show
21: mov rax, 0x1111
    movq xmm3, rax
    mov rbx, 0x2222
    mov rcx, 0x3333
    mov rdx, 0x4444
    mov rsi, 0x5555
    mov rdi, 0x6666
    mov rbp, 0x7777
    mov r8, 0x8888
    mov r9, 0x9999
    mov r10, 0xaaaa
    mov r11, 0xbbbb
    mov r12, 0xcccc
    mov r13, 0xdddd
    mov r14, 0xeeee
    mov r15, 0xffff
    mov gs:[0x128], rsp
    mov rsp, 0x1234
    stc
    ud2
22: hlt
23: int3
9:  mov rsi, -1
8:  mov rbx, gs:[0]
    mov eax, 4
10:
enclos_test_enclave_fast:
    .byte 0x0f, 0x01, 0xd7, 0x66, 0x90
    ud2
enclos_test_enclave_end:
"#
);

struct NoLeaves;
impl Leaves for NoLeaves {
    fn ereport(&self, _: u64, _: u64, _: u64) -> Result<(), Fault> {
        Err(Fault::GeneralProtection)
    }
    fn egetkey(&self, _: u64, _: u64) -> Result<Result<(), ErrorCode>, Fault> {
        Err(Fault::GeneralProtection)
    }
    fn eaccept(&self, _: u64, _: u64, _: &EnclaveThreads) -> Result<Result<(), ErrorCode>, Fault> {
        Err(Fault::GeneralProtection)
    }
    fn emodpe(&self, _: u64, _: u64) -> Result<(), Fault> {
        Err(Fault::GeneralProtection)
    }
    fn eacceptcopy(&self, _: u64, _: u64, _: u64) -> Result<Result<(), ErrorCode>, Fault> {
        Err(Fault::GeneralProtection)
    }
    fn settle(&self, _: u64, _: u32) -> bool {
        false
    }
    fn is_valid(&self, _: u64) -> bool {
        false
    }
    fn usable_frames(&self, _: u64, _: u32) -> u32 {
        0
    }
}

fn enclave(fast: bool) -> (Arc<EnclaveThreads>, u64) {
    enclave_with(fast, |_| ())
}

fn enclave_with(fast: bool, change: impl Fn(&mut TcsDescription)) -> (Arc<EnclaveThreads>, u64) {
    // SAFETY: new mappings; code and tables lie within them.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let at = libc::mmap(core::ptr::null_mut(), 3 * SIZE as usize, libc::PROT_NONE, flags, -1, 0) as u64;
        let base = (at + SIZE) & !(SIZE - 1);
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        libc::mprotect((base + CODE) as *mut _, 0x2000, rw);
        libc::mprotect((base + SSA) as *mut _, 0x2000, rw);
        let code = &raw const enclos_test_enclave;
        let len = (&raw const enclos_test_enclave_end).offset_from_unsigned(code);
        core::ptr::copy_nonoverlapping(code, (base + CODE) as *mut u8, len);
        libc::mprotect((base + CODE) as *mut _, 0x1000, libc::PROT_READ | libc::PROT_EXEC);
        let site = (&raw const enclos_test_enclave_fast).offset_from_unsigned(code) as u64;
        let mut tcs = TcsDescription {
            address: base + TCS,
            ossa: SSA,
            nssa: 2,
            usable_frames: 2,
            oentry: CODE,
            ofsbase: 0x7000,
            ogsbase: DATA,
            debug_opt_in: false,
        };
        change(&mut tcs);
        let threads = EnclaveThreads::register(EnclaveDescription {
            base,
            size: SIZE,
            xfrm: 7,
            exinfo: true,
            ssa_frame_bytes: 4096,
            tcs: vec![tcs],
            gate: true,
            epoch: Arc::default(),
            leaves: Box::new(NoLeaves),
        })
        .unwrap();
        if fast {
            threads.patch_enclu_sites(&[CODE + site], |_| true);
        }
        thread_context().unwrap();
        (threads, base)
    }
}

/// Enters and returns RSI, which the Rust compiler cannot know of.
fn enter(base: u64, leaf: u32, op: u64, arg: u64) -> (Run, u64) {
    let mut run = Run::new(base + TCS);
    let rsi: u64;
    let function = enter_function();
    // SAFETY: the stack argument is pushed and popped here; callee-saved registers other than RBX and RBP are declared.
    unsafe {
        core::arch::asm!(
            "push rax",
            "push rax",
            "call {f}",
            "pop rcx",
            "pop rcx",
            f = in(reg) function,
            inout("rax") &raw mut run => _,
            inout("rdi") op => _,
            inout("rsi") 0_u64 => rsi,
            inout("rdx") arg => _,
            inout("rcx") u64::from(leaf) => _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            clobber_abi("C"),
        );
    }
    (run, rsi)
}

#[test]
fn eexit_by_gate_and_by_trap() {
    for fast in [true, false] {
        let (e, base) = enclave(fast);
        for _ in 0..3 {
            let (run, rsi) = enter(base, EENTER, NOP, 0);
            assert_eq!((run.function, rsi), (EEXIT, 77));
        }
        let (run, _) = enter(base, EENTER, TRAP_EXIT, 0);
        assert_eq!(run.function, EEXIT);
        assert_eq!((e.transitions().eenter, e.transitions().aex), (4, 0));
    }
}

#[test]
fn a_linux_call_inside_is_an_invalid_opcode() {
    let (e, base) = enclave(true);
    let (run, _) = enter(base, EENTER, CALL, 0);
    assert_eq!((run.function, run.exception_vector), (ERESUME, 6));
    let (run, info) = enter(base, EENTER, HANDLE, 0);
    assert_eq!((run.function, info & 0xffff_ffff), (EEXIT, 1 << 31 | 3 << 8 | 6));
    let (run, rsi) = enter(base, ERESUME, 0, 0);
    assert_eq!((run.function, rsi), (EEXIT, 1234));
    let t = e.transitions();
    assert_eq!((t.eenter, t.eresume, t.aex), (2, 1, 1));
}

#[test]
fn faults_are_reported_and_survived() {
    let (_e, base) = enclave(true);
    let (run, _) = enter(base, EENTER, FAULT, 0);
    assert_eq!((run.exception_vector, run.exception_addr), (14, 0x5000));
    // The TCS is at CSSA = 1 now; a second fault uses up the last frame, then EENTER itself faults.
    let (run, _) = enter(base, EENTER, DIVIDE, 0);
    assert_eq!((run.function, run.exception_vector), (ERESUME, 0));
    let (run, _) = enter(base, EENTER, NOP, 0);
    assert_eq!((run.function, run.exception_vector), (EENTER, 13));
}

#[test]
fn eresume_without_a_frame_faults() {
    let (_e, base) = enclave(true);
    let (run, _) = enter(base, ERESUME, 0, 0);
    assert_eq!((run.function, run.exception_vector), (ERESUME, 13));
    let (run, _) = enter(base + 0x1000, EENTER, 0, 0);
    assert_eq!((run.function, run.exception_vector), (EENTER, 14));
}

#[test]
fn signals_while_inside_are_harmless() {
    thread_local! { static SEEN: AtomicU64 = const { AtomicU64::new(0) } }
    static INSIDE: AtomicU64 = AtomicU64::new(0);
    static RANGE: AtomicU64 = AtomicU64::new(0);
    extern "C" fn on_alarm(_: i32, _: *mut libc::siginfo_t, uc: *mut libc::c_void) {
        SEEN.with(|s| s.fetch_add(1, Ordering::Relaxed));
        // SAFETY: the kernel's context.
        let rip =
            unsafe { (*uc.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] as u64 };
        if rip.wrapping_sub(RANGE.load(Ordering::Relaxed)) < SIZE {
            INSIDE.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (e, base) = enclave(true);
    RANGE.store(base, Ordering::Relaxed);
    // SAFETY: a handler of our own, and a timer that sends this thread a signal every 200 us.
    let timer = unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = on_alarm as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGALRM, &action, core::ptr::null_mut()), 0);
        let mut event: libc::sigevent = core::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGALRM;
        event.sigev_notify_thread_id = libc::gettid();
        let mut timer = core::mem::zeroed();
        assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer), 0);
        let every = libc::timespec { tv_sec: 0, tv_nsec: 200_000 };
        let spec = libc::itimerspec { it_interval: every, it_value: every };
        assert_eq!(libc::timer_settime(timer, 0, &spec, core::ptr::null_mut()), 0);
        timer
    };
    for _ in 0..20 {
        let (run, count) = enter(base, EENTER, SPIN, 20_000_000);
        assert_eq!((run.function, count), (EEXIT, 20_000_000));
        for _ in 0..20_000 {
            assert_eq!(enter(base, EENTER, NOP, 0).1, 77);
        }
    }
    // SAFETY: our timer.
    unsafe { libc::timer_delete(timer) };
    let t = e.transitions();
    assert!(t.aex > 100 && t.aex == t.eresume, "{t:?}");
    assert!(SEEN.with(|s| s.load(Ordering::Relaxed)) >= t.aex);
    assert_eq!(INSIDE.load(Ordering::Relaxed), 0, "a handler saw an address of the enclave");
}

/// SDM vol. 3D, EENTER: OSSA, OFSBASE and OGSBASE must be page-aligned, else #GP(0); a busy TCS and one whose SSA
/// frames are used up likewise; SSA frames that are not there are #PF.
#[test]
fn eenter_checks_the_tcs() {
    let changes: [fn(&mut TcsDescription); 4] =
        [|t| t.ofsbase += 8, |t| t.ogsbase += 0x800, |t| t.ossa += 16, |t| t.nssa = 0];
    for change in changes {
        let (_e, base) = enclave_with(true, change);
        let (run, _) = enter(base, EENTER, NOP, 0);
        assert_eq!((run.function, run.exception_vector), (EENTER, 13));
    }
    let (_e, base) = enclave_with(true, |t| t.usable_frames = 0);
    let (run, _) = enter(base, EENTER, NOP, 0);
    assert_eq!((run.function, run.exception_vector), (EENTER, 14));
}

fn word(address: u64) -> u64 {
    // SAFETY: a data or SSA page of the test's enclave: readable, for the emulator protects nothing.
    unsafe { (address as *const u64).read_volatile() }
}

fn set_word(address: u64, value: u64) {
    // SAFETY: as above.
    unsafe { (address as *mut u64).write_volatile(value) }
}

/// GPRSGX of an SSA frame (SDM vol. 3D, table "GPRSGX"): the last 184 bytes.
fn gprsgx(base: u64, frame: u64) -> u64 {
    base + SSA + frame * 4096 + 4096 - 184
}

/// SDM vol. 3D, EENTER, operation: RAX = CSSA, RBX = the TCS, RCX = the next instruction, FS and GS bases from the TCS,
/// RSP and RBP as they were and saved as URSP and URBP.
#[test]
fn eenter_sets_registers() {
    // Without hints, so that FS is set as well.
    let (_e, base) = enclave(false);
    let (run, _) = enter(base, EENTER, REGISTERS, 0);
    assert_eq!(run.function, EEXIT);
    let [rax, rbx, _rcx, fs, gs, rsp, rbp] =
        std::array::from_fn(|i| word(base + DATA + 0x100 + 8 * i as u64));
    assert_eq!((rax, rbx, fs, gs), (0, base + TCS, base + 0x7000, base + DATA));
    assert_eq!((word(gprsgx(base, 0) + 144), word(gprsgx(base, 0) + 152)), (rsp, rbp));
}

/// SDM vol. 3D, "Asynchronous Enclave Exit": the whole state goes into the SSA frame at CSSA, which then advances.
#[test]
fn an_asynchronous_exit_saves_everything() {
    let (_e, base) = enclave(true);
    let (run, _) = enter(base, EENTER, PATTERN, 0);
    assert_eq!((run.function, run.exception_vector), (ERESUME, 6));
    let at = gprsgx(base, 0);
    let saved: [u64; 18] = std::array::from_fn(|i| word(at + 8 * i as u64));
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi] = *saved.first_chunk().unwrap();
    assert_eq!((rax, rcx, rdx, rbx), (0x1111, 0x3333, 0x4444, 0x2222));
    assert_eq!((rsp, rbp, rsi, rdi), (0x1234, 0x7777, 0x5555, 0x6666));
    for (i, value) in saved[8..16].iter().enumerate() {
        assert_eq!(*value, 0x1111 * (i as u64 + 8));
    }
    assert_eq!(saved[16] & 1, 1, "CF");
    let rip = saved[17];
    assert!((base + CODE..base + CODE + 4096).contains(&rip));
    // SAFETY: the enclave's code page is readable.
    assert_eq!(unsafe { (rip as *const [u8; 2]).read() }, [0x0f, 0x0b], "RIP of the faulting instruction");
    assert_eq!(word(at + 160) & 0xffff_ffff, 1 << 31 | 3 << 8 | 6, "EXITINFO");
    assert_eq!(word(at + 176), base + DATA, "GSBASE");
    assert_eq!(word(base + SSA + 160 + 3 * 16), 0x1111, "XMM3 in the XSAVE area");
    let header: [u64; 8] = std::array::from_fn(|i| word(base + SSA + 512 + 8 * i as u64));
    assert_eq!((header[0] & !7, &header[1..]), (0, &[0; 7][..]), "XSAVE header within XFRM");
    // CSSA is 1 now.
    let (run, _) = enter(base, EENTER, REGISTERS, 0);
    assert_eq!((run.function, word(base + DATA + 0x100)), (EEXIT, 1));
}

/// SDM vol. 3D, "EXITINFO" and "EXINFO": #PF and #GP are reported only with MISCSELECT.EXINFO, with address and code.
#[test]
fn page_faults_are_described() {
    let (_e, base) = enclave(true);
    let (run, _) = enter(base, EENTER, FAULT, 0);
    assert_eq!((run.exception_vector, run.exception_addr), (14, 0x5000));
    let at = gprsgx(base, 0);
    assert_eq!(word(at + 160) & 0xffff_ffff, 1 << 31 | 3 << 8 | 14);
    assert_eq!(
        (word(at - 16), word(at - 8) & 7),
        (0x5000, 4),
        "MADDR, ERRCD: a read in user mode, not present"
    );
    let (_e, base) = enclave(true);
    let (run, _) = enter(base, EENTER, HALT, 0);
    assert_eq!(run.exception_vector, 13);
    assert_eq!(word(gprsgx(base, 0) + 160) & 0xffff_ffff, 1 << 31 | 3 << 8 | 13);
}

/// SDM vol. 3D, "INT3 Opt-out": without DBGOPTIN INT3 is a fault, #UD, with RIP at the instruction.
#[test]
fn int3_is_a_fault() {
    let (_e, base) = enclave(true);
    let (run, _) = enter(base, EENTER, BREAKPOINT, 0);
    assert_eq!((run.function, run.exception_vector), (ERESUME, 6));
    // SAFETY: the enclave's code page is readable.
    assert_eq!(unsafe { (word(gprsgx(base, 0) + 136) as *const u8).read() }, 0xcc);
}

/// SDM vol. 3D, EENTER: a TCS that is in use, that is not a TCS, or that is not aligned.
#[test]
fn a_tcs_is_entered_by_one_thread() {
    let (e, base) = enclave(true);
    std::thread::scope(|s| {
        s.spawn(|| {
            thread_context().unwrap();
            let (run, count) = enter(base, EENTER, SPIN, 300_000_000);
            assert_eq!((run.function, count), (EEXIT, 300_000_000));
        });
        while e.transitions().eenter == 0 {
            std::hint::spin_loop();
        }
        let (run, _) = enter(base, EENTER, NOP, 0);
        assert_eq!((run.function, run.exception_vector), (EENTER, 13), "busy");
    });
    assert_eq!(enter(base, EENTER, NOP, 0).1, 77, "free again");
    let mut run = Run::new(base + TCS + 8);
    run.reserved[100] = 1;
    // SAFETY: refused before anything is entered.
    let refused = unsafe { enter_function()(0, 0, 0, EENTER, 0, 0, &raw mut run) };
    assert_eq!(refused, -libc::EINVAL, "reserved bytes");
    let mut run = Run::new(base + TCS + 8);
    // SAFETY: as above.
    assert_eq!(unsafe { enter_function()(0, 0, 0, EENTER, 0, 0, &raw mut run) }, 0);
    assert_eq!((run.function, run.exception_vector), (EENTER, 13), "not aligned");
    // SAFETY: as above.
    let refused = unsafe { enter_function()(0, 0, 0, 4, 0, 0, &raw mut run) };
    assert_eq!(refused, -libc::EINVAL, "no entering leaf");
}

/// SDM vol. 3D, ERESUME: what XRSTOR or the loads of a changed SSA frame would fault on is #GP(0), and the TCS stays as
/// it was.
#[test]
fn eresume_checks_the_frame() {
    let (_e, base) = enclave(true);
    let (run, _) = enter(base, EENTER, CALL, 0);
    assert_eq!(run.exception_vector, 6);
    let frame = base + SSA;
    let at = gprsgx(base, 0);
    let bad = [
        (frame + 512, 1 << 9),        // XSTATE_BV beyond XFRM
        (frame + 520, 1 << 63),       // compacted format
        (frame + 528, 1),             // reserved header bytes
        (frame + 24, 0xffff_0000),    // MXCSR reserved bits
        (at + 136, 0x8000_0000_0000), // RIP not canonical
        (at + 32, 0x8000_0000_0000),  // RSP not canonical
        (at + 168, 0x8000_0000_0000), // FS base not canonical
        (at + 176, 0x8000_0000_0000), // GS base not canonical
    ];
    for (place, value) in bad {
        let before = word(place);
        set_word(place, value);
        let (run, _) = enter(base, ERESUME, 0, 0);
        assert_eq!((run.function, run.exception_vector), (ERESUME, 13), "{:#x}", place - frame);
        set_word(place, before);
    }
    let (run, _) = enter(base, EENTER, HANDLE, 0);
    assert_eq!(run.function, EEXIT);
    let (run, rsi) = enter(base, ERESUME, 0, 0);
    assert_eq!((run.function, rsi), (EEXIT, 1234));
}

/// A host without a handler ends by the signal that the exception stands for, and does not fault for ever.
#[test]
fn enclu_that_faults_outside_ends_the_process() {
    let (_e, base) = enclave(false);
    // SAFETY: the child executes the one instruction, or ends by its alarm.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: EENTER at no TCS, which faults.
        unsafe {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            libc::alarm(20);
            core::arch::asm!(
                "push rbx", "mov rbx, r10", ".byte 0x0f, 0x01, 0xd7", "pop rbx",
                in("r10") base + CODE, inout("rax") 2_u64 => _, inout("rcx") 0_u64 => _,
            );
            libc::_exit(0);
        }
    }
    let mut status = 0;
    // SAFETY: waits for the child.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert!(libc::WIFSIGNALED(status), "{status:#x}");
    assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
}

/// SDM vol. 3D, EENTER and EEXIT by an ENCLU of the host's own: execution goes on after it, and RCX is the AEP then.
#[test]
fn enclu_outside_of_the_enter_function() {
    let (_e, base) = enclave(false);
    let (rcx, rsi): (u64, u64);
    // SAFETY: RSP is the host's again after EEXIT; the enclave changes what is declared.
    unsafe {
        core::arch::asm!(
            "push rbx", "mov rbx, r10", ".byte 0x0f, 0x01, 0xd7", "pop rbx",
            in("r10") base + TCS, inout("rax") 2_u64 => _, inout("rcx") 0x1000_u64 => rcx,
            inout("rdi") NOP => _, out("rsi") rsi, out("rdx") _, out("r8") _, out("r9") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    assert_eq!((rcx, rsi), (0x1000, 77));
}
