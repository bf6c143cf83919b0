//! The instructions of entering and leaving: what must happen between the host's registers and the enclave's.
//!
//! Everything here runs with a foreign FS base at some point, so it is assembly: no code that the compiler emits may
//! run there, because it could touch thread-local storage. The offsets are those of [`TcsState`] and
//! [`ThreadContext`](super::thread::ThreadContext); a compile-time check below holds them.
//!
//! A signal may arrive between any two of these instructions. That is harmless: the trampoline in this file puts the
//! host's FS and GS bases in place for the handler and the interrupted ones back afterwards. Only when RIP lies in
//! ELRANGE does it mean an asynchronous enclave exit.

use core::mem::offset_of;

use super::thread::{TcsState, ThreadContext};
use crate::Run;

const _: () = {
    assert!(offset_of!(TcsState, host_fs) == 0);
    assert!(offset_of!(TcsState, host_gs) == 8);
    assert!(offset_of!(TcsState, context) == 16);
    assert!(offset_of!(TcsState, entry) == 24);
    assert!(offset_of!(TcsState, fs) == 32);
    assert!(offset_of!(TcsState, gs) == 40);
    assert!(offset_of!(TcsState, aep) == 48);
    assert!(offset_of!(TcsState, busy) == 56);
    assert!(offset_of!(TcsState, cssa) == 60);
    assert!(offset_of!(TcsState, gpr) == 64);
    assert!(offset_of!(TcsState, xsave) == 72);
    assert!(offset_of!(TcsState, xfrm) == 80);
    assert!(offset_of!(TcsState, iret) == 88);
    assert!(offset_of!(ThreadContext, host_fs) == 0);
    assert!(offset_of!(ThreadContext, host_gs) == 8);
    assert!(offset_of!(ThreadContext, selector) == 16);
    assert!(offset_of!(ThreadContext, current) == 24);
    assert!(offset_of!(Run, tcs) == 0);
    assert!(offset_of!(Run, function) == 8);
    assert!(offset_of!(Run, exception_vector) == 12);
    assert!(offset_of!(Run, exception_error_code) == 14);
    assert!(offset_of!(Run, exception_addr) == 16);
    assert!(offset_of!(Run, user_handler) == 24);
    assert!(offset_of!(Run, reserved) == 40 && size_of::<Run>() == 256);
};

/// Distance from a [`ThreadContext`](super::thread::ThreadContext) to the thread's signal stack, which identifies
/// the thread inside the trampoline.
pub(super) const CONTEXT_TO_STACK: usize = 8192;

unsafe extern "C" {
    /// The emulator's `__vdso_sgx_enter_enclave`.
    pub(super) fn enclos_emu_enter(
        rdi: u64,
        rsi: u64,
        rdx: u64,
        function: u32,
        r8: u64,
        r9: u64,
        run: *mut Run,
    ) -> i32;
    /// The asynchronous exit pointer that `enclos_emu_enter` uses.
    pub(super) fn enclos_emu_aep();
    /// Where an exception inside makes `enclos_emu_enter` return.
    pub(super) fn enclos_emu_exception();
    /// The instructions that load the enclave's registers at ERESUME: first byte and last + 1.
    pub(super) static enclos_emu_resume: u8;
    pub(super) static enclos_emu_resume_end: u8;
    /// EEXIT for a thread whose `TcsState` is in RCX.
    pub(super) fn enclos_emu_eexit();
    /// What the kernel calls for every signal that the emulator handles.
    pub(super) fn enclos_emu_trampoline();
    /// rt_sigreturn.
    pub(super) fn enclos_emu_restorer();
    /// First and last byte + 1 of this file's code: exempt from call interception.
    pub(super) static enclos_emu_text: u8;
    pub(super) static enclos_emu_text_end: u8;
    /// A system call with three arguments, exempt from interception and without `errno`: the result or a negated error
    /// number. Usable while the FS base is an enclave's.
    pub(super) fn enclos_emu_call(number: i64, a: u64, b: u64, c: u64) -> i64;
    /// See [`guarded_copy`] and [`guarded_store`].
    fn enclos_emu_copy(to: *mut u8, from: *const u8, len: usize) -> u32;
    fn enclos_emu_store(to: *mut u64, first: u64, second: u64) -> u32;
    /// The instructions of both that touch memory, and where a fault of them goes on.
    pub(super) static enclos_emu_guarded: u8;
    pub(super) static enclos_emu_guarded_end: u8;
    pub(super) fn enclos_emu_unreachable();
    /// The code copied into an enclave's gate page, and its length.
    pub(super) static enclos_emu_gate: u8;
    pub(super) static enclos_emu_gate_end: u8;
}

/// Copies to or from enclave memory, which the host may take away at any moment; false when it was not accessible.
///
/// # Safety
/// As [`core::ptr::copy_nonoverlapping`], but that the enclave's side need not be accessible and may change meanwhile.
pub(super) unsafe fn guarded_copy(to: *mut u8, from: *const u8, len: usize) -> bool {
    // SAFETY: the caller's contract; faults are noticed (`signal::handle`).
    unsafe { enclos_emu_copy(to, from, len) == 0 }
}

/// Stores two words in enclave memory; false when it was not accessible.
///
/// # Safety
/// As [`guarded_copy`].
pub(super) unsafe fn guarded_store(to: *mut u64, first: u64, second: u64) -> bool {
    // SAFETY: as above.
    unsafe { enclos_emu_store(to, first, second) == 0 }
}

/// Where in a gate page the way for EACCEPT begins, and where on it the `ud2` stands that leaves the rest to the fault
/// handler: RSP points to the address after the ENCLU then.
pub(super) const GATE_LEAF: u64 = 0x140;
pub(super) const GATE_LEAF_TRAP: u64 = 0x138;

/// Where a gate page's parameters lie, from its start: ELRANGE base, size, address of the table that maps pages of the
/// GS base to `TcsState`s, address of `enclos_emu_eexit`, of `accept`.
pub(super) const GATE_PARAMETERS: usize = 0x100;

core::arch::global_asm!(
    r#"
    .text
    .p2align 12
    .global enclos_emu_text, enclos_emu_text_end, enclos_emu_enter, enclos_emu_aep, enclos_emu_exception
    .global enclos_emu_resume, enclos_emu_resume_end, enclos_emu_call, enclos_emu_copy, enclos_emu_store
    .global enclos_emu_guarded, enclos_emu_guarded_end, enclos_emu_unreachable
    .global enclos_emu_eexit, enclos_emu_trampoline, enclos_emu_restorer, enclos_emu_gate, enclos_emu_gate_end
enclos_emu_text:

    # int enter(rdi, rsi, rdx, ecx = function, r8, r9, 16(rbp) = run), as the vDSO's: only RBP and RBX are saved here,
    # the other callee-saved registers pass through to the enclave and back.
enclos_emu_enter:
    push rbp
    mov rbp, rsp
    push rbx
    mov rax, [rbp + 16]
    lea r10d, [rcx - 2]
    cmp r10d, 1
    ja 9f
    cmp qword ptr [rax + 24], 0
    jne 9f
    # the reserved bytes, 40 to 255 of the structure, must be zero
    movdqu xmm0, [rax + 40]
    movdqu xmm1, [rax + 56]
    .irp at, 72, 104, 136, 168, 200
    movdqu xmm2, [rax + \at]
    por xmm0, xmm2
    movdqu xmm2, [rax + \at + 16]
    por xmm1, xmm2
    .endr
    movdqu xmm2, [rax + 232]
    por xmm0, xmm1
    movdqu xmm1, [rax + 240]
    por xmm0, xmm2
    por xmm0, xmm1
    pxor xmm1, xmm1
    pcmpeqb xmm0, xmm1
    pmovmskb r10d, xmm0
    cmp r10d, 0xffff
    jne 9f
    push rdi
    push rsi
    push rdx
    push r8
    push r9
    # leaf, TCS, RSP and RBP as they are when ENCLU executes, AEP
    mov edi, ecx
    mov ebx, ecx
    mov rsi, [rax]
    lea rdx, [rbp - 8]
    mov rcx, rbp
    lea r8, [rip + enclos_emu_aep]
    call {prepare}
    pop r9
    pop r8
    mov r11, rdx
    pop rdx
    pop rsi
    pop rdi
    test rax, rax
    jz 3f
    cmp ebx, 3
    je enclos_emu_resume
    mov r10, rax
    mov rax, [rbp + 16]
    mov rbx, [rax]
    lea rcx, [rip + enclos_emu_after]
    # Writing a base takes 14 ns on some CPUs, reading one 1 ns: only what must change is written.
    mov r11, [r10 + 32]
    test r11, r11
    jz 6f
    wrfsbase r11
6:  mov r11, [r10 + 40]
    rdgsbase rax
    cmp rax, r11
    je 7f
    wrgsbase r11
7:  mov r11, [r10 + 24]
    mov eax, [r10 + 60]
    jmp r11

    # EENTER or ERESUME itself faulted: r11 = vector | code << 16, rbx = leaf
3:  mov rax, [rbp + 16]
    mov [rax + 8], ebx
    mov [rax + 12], r11w
    shr r11, 16
    mov [rax + 14], r11w
    mov qword ptr [rax + 16], 0
    xor eax, eax
    jmp 8f

    # An exception inside: rdi = vector, rsi = error code, rdx = address, eax = 3
enclos_emu_exception:
    mov rcx, [rbp + 16]
    mov [rcx + 8], eax
    mov [rcx + 12], di
    mov [rcx + 14], si
    mov [rcx + 16], rdx
    xor eax, eax
    jmp 8f

    # EEXIT comes here: RDI, RSI, RDX, R8, R9 are the enclave's
enclos_emu_after:
    cld
    mov rax, [rbp + 16]
    mov dword ptr [rax + 8], 4
    xor eax, eax
    jmp 8f

9:  mov eax, -22
8:  mov rbx, [rbp - 8]
    mov rsp, rbp
    pop rbp
    ret

    # What the host sees as the interrupted instruction after an asynchronous exit: ENCLU with EAX = 3 (ERESUME),
    # RBX = TCS, RCX = AEP, and RSP, RBP as they were at EENTER.
enclos_emu_aep:
    mov edi, eax
    mov rsi, rbx
    mov rdx, rsp
    mov r8, rcx
    mov rcx, rbp
    mov ebx, eax
    sub rsp, 8
    call {prepare}
    add rsp, 8
    mov r11, rdx
    test rax, rax
    jz 3b

    # rax = TcsState with gpr, xsave, xfrm and iret filled in. A signal in here undoes the ERESUME: the SSA frame still
    # holds everything.
enclos_emu_resume:
    mov r10, rax
    mov r11, [r10 + 64]
    mov rcx, [r10 + 72]
    mov eax, [r10 + 80]
    mov edx, [r10 + 84]
    xrstor64 [rcx]
    mov rax, [r11 + 168]
    wrfsbase rax
    mov rax, [r11 + 176]
    wrgsbase rax
    lea rsp, [r10 + 88]
    mov rax, [r11]
    mov rcx, [r11 + 8]
    mov rdx, [r11 + 16]
    mov rbx, [r11 + 24]
    mov rbp, [r11 + 40]
    mov rsi, [r11 + 48]
    mov rdi, [r11 + 56]
    mov r8, [r11 + 64]
    mov r9, [r11 + 72]
    mov r10, [r11 + 80]
    mov r12, [r11 + 96]
    mov r13, [r11 + 104]
    mov r14, [r11 + 112]
    mov r15, [r11 + 120]
    mov r11, [r11 + 88]
    iretq
enclos_emu_resume_end:

    # rcx = TcsState. Order: bases first, then the thread is outside, then the TCS is free for others. A thread whose GS
    # base was 0 does not use it (nothing in a Linux process does by itself): it keeps the enclave's, and the next
    # entry need not write it.
enclos_emu_eexit:
    mov rax, [rcx]
    wrfsbase rax
    mov rax, [rcx + 8]
    test rax, rax
    jz 6f
    wrgsbase rax
6:  mov rax, [rcx + 16]
    mov byte ptr [rax + 16], 0
    mov qword ptr [rax + 24], 0
    mov rax, [rcx + 48]
    mov dword ptr [rcx + 56], 0
    mov rcx, rax
    mov eax, 4
    jmp rbx

    # rdi = signal, rsi = info, rdx = context. The signal stack tells the thread; FS may be an enclave's.
enclos_emu_trampoline:
    cld
    mov rax, [rdx + 16]
    mov rcx, rax
    sub rcx, [rip + {arena_start}]
    cmp rcx, [rip + {arena_size}]
    jae 4f
    lea rcx, [rax - {context_to_stack}]
    # The kernel has the interrupted registers in the frame and leaves them loaded: handlers that interrupt this one
    # must not see an enclave's. (It has reset the vector registers.)
    cmp qword ptr [rcx + 24], 0
    je 5f
    .irp register, ebx, ebp, r10d, r11d, r12d, r13d, r14d, r15d
    xor \register, \register
    .endr
5:  movzx r8d, byte ptr [rcx + 16]
    mov byte ptr [rcx + 16], 0
    rdfsbase rax
    rdgsbase r9
    sub rsp, 40
    mov [rsp], rax
    mov [rsp + 8], r9
    mov [rsp + 16], r8
    mov [rsp + 24], rcx
    mov rax, [rcx]
    wrfsbase rax
    mov rax, [rcx + 8]
    wrgsbase rax
    mov r8, rsp
    call {handle}
    mov rcx, [rsp + 24]
    mov rax, [rsp + 16]
    mov [rcx + 16], al
    mov rax, [rsp]
    wrfsbase rax
    mov rax, [rsp + 8]
    wrgsbase rax
    add rsp, 40
    ret
    # A thread that never entered: its handlers run on its own stack, unless they ask for the alternate one.
4:  push rdi
    push rsi
    push rdx
    mov rsi, rdx
    call {own_stack}
    pop rdx
    pop rsi
    pop rdi
    test rax, rax
    jz 5f
    mov rsp, rax
    lea rdx, [rax + 8]
    lea rsi, [rax + 8 + {frame_ucontext}]
5:  xor ecx, ecx
    xor r8d, r8d
    jmp {handle}

    # rdi = number, rsi, rdx, rcx = arguments
enclos_emu_call:
    mov rax, rdi
    mov rdi, rsi
    mov rsi, rdx
    mov rdx, rcx
    syscall
    ret

    # rdi = to, rsi = from, rdx = bytes
enclos_emu_copy:
    mov rcx, rdx
enclos_emu_guarded:
    rep movsb
    xor eax, eax
    ret
    # rdi = to, rsi, rdx = words
enclos_emu_store:
    mov [rdi], rsi
    mov [rdi + 8], rdx
enclos_emu_guarded_end:
    xor eax, eax
    ret
enclos_emu_unreachable:
    mov eax, 1
    ret

enclos_emu_restorer:
    mov eax, 15
    syscall
    ud2
    .p2align 12, 0xcc
enclos_emu_text_end:

    # Copied into the page below ELRANGE. EEXIT (EAX = 4) of a thread whose GS base is one that a TCS has; everything
    # else is left to the fault handler.
    .p2align 6
enclos_emu_gate:
    cmp eax, 4
    jne 5f
    rdgsbase rcx
    sub rcx, [rip + enclos_emu_gate + 0x100]
    cmp rcx, [rip + enclos_emu_gate + 0x108]
    jae 5f
    shr rcx, 12
    shl rcx, 3
    add rcx, [rip + enclos_emu_gate + 0x110]
    mov rcx, [rcx]
    test rcx, rcx
    jz 5f
    jmp qword ptr [rip + enclos_emu_gate + 0x118]
5:  ud2
    .org enclos_emu_gate + 0x138, 0xcc
6:  ud2
    .org enclos_emu_gate + 0x140, 0xcc
    .macro restore_registers
    lea rsp, [rbp]
    .irp register, rbp, r11, r10, r9, r8, rdi, rsi, rdx, rcx
    pop \register
    .endr
    .endm
    # EACCEPT (EAX = 5) of such a thread, called instead of the ENCLU: all registers but RAX and the flags survive, as
    # they do on hardware. What faults is left to the fault handler, with everything as it was.
    cmp eax, 5
    jne 6b
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push rbp
    mov rbp, rsp
    rdgsbase rdi
    sub rdi, [rip + enclos_emu_gate + 0x100]
    cmp rdi, [rip + enclos_emu_gate + 0x108]
    jae 8f
    shr rdi, 12
    shl rdi, 3
    add rdi, [rip + enclos_emu_gate + 0x110]
    mov rdi, [rdi]
    test rdi, rdi
    jz 8f
    # x87 to AVX-512, as far as XFRM has it: compiled code is for SSE only, but what it calls to copy is not. Not on the
    # enclave's stack, which may be small.
    sub rsp, 16
    and rsp, -16
    mov [rsp], rdi
    mov rsi, rcx
    mov eax, [rdi + 80]
    and eax, 0xe7
    xor edx, edx
    xsave64 [rdi + {vectors}]
    mov rdx, rsi
    mov rsi, rbx
    call qword ptr [rip + enclos_emu_gate + 0x120]
    mov rdi, [rsp]
    mov rcx, rax
    mov eax, [rdi + 80]
    and eax, 0xe7
    xor edx, edx
    xrstor64 [rdi + {vectors}]
    mov rax, rcx
    bt rax, 32
    jc 8f
    restore_registers
    test eax, eax
    jnz 7f
    # All six arithmetic flags clear: the result has one bit set.
    cmp rsp, rsp
    push 1
    test dword ptr [rsp], 1
    lea rsp, [rsp + 8]
    ret
    # ZF set, the others clear.
7:  pushfq
    and qword ptr [rsp], ~0x8d5
    or qword ptr [rsp], 0x40
    popfq
    ret
8:  restore_registers
    mov eax, 5
    jmp 6b
    .purgem restore_registers
enclos_emu_gate_end:
"#,
    prepare = sym super::thread::prepare,
    handle = sym super::signal::handle,
    own_stack = sym super::signal::own_stack,
    frame_ucontext = const super::signal::FRAME_UCONTEXT,
    arena_start = sym super::thread::ARENA_START,
    arena_size = sym super::thread::ARENA_SIZE,
    context_to_stack = const CONTEXT_TO_STACK,
    vectors = const offset_of!(TcsState, vectors),
);
