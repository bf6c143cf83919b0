//! Entry, exit, and the ways from the application into the runtime.
//!
//! Every EENTER lands at `enclos_entry`. Nothing that the host put into a register is used before it was checked, and
//! the state that the compiler relies on (direction flag, alignment-check flag, MXCSR, x87 control and tags) is set
//! before any compiled code runs. On every exit all registers are cleared but those the protocol names.
//!
//! Nothing here relies on the FS base that EENTER sets: it is the application's thread pointer, and every way into the
//! application sets it.
//!
//! A thread that leaves for a host call, or parks, saves its callee-saved registers on its stack and the stack pointer
//! in its thread data (`enclos_switch`); the entry that answers it continues there.

use core::arch::global_asm;
use core::mem::offset_of;

use crate::thread::{Thread, state};
use enclos::abi::{exit, op, refusal, thread as region, xfrm};

unsafe extern "C" {
    /// Where EENTER lands.
    pub fn enclos_entry();
    /// Leaves the enclave with an exit code and four values and returns when the host answers: the operation (RAX) and
    /// its first argument (RDX); all four arguments are in the thread data.
    pub fn enclos_switch(code: u64, a: u64, b: u64, c: u64, d: u64) -> Answer;
    /// As `enclos_switch`, and keeps the vector and x87 state, which a Linux call must not change.
    pub fn enclos_switch_keeping(code: u64, a: u64, b: u64, c: u64, d: u64) -> Answer;
    /// Leaves for good: nothing continues here. State must have been set before.
    pub fn enclos_leave(code: u64, a: u64, b: u64) -> !;
    /// Leaves at CSSA = 1.
    pub fn enclos_leave_exception(code: u64, a: u64, b: u64) -> !;
    /// Starts the application: stack pointer, entry point.
    pub fn enclos_start_application(stack: u64, entry: u64) -> !;
    /// Starts a cloned thread with these registers.
    pub fn enclos_start_thread(registers: *const Registers, fs: u64) -> !;
    /// Where rewritten `syscall` instructions jump: RCX = return address.
    pub fn enclos_syscall();
    /// The end of `enclos_syscall` with all registers as they stand there (but RCX and R11), and this in RAX.
    pub fn enclos_syscall_end(registers: *mut Registers, result: i64) -> !;
    /// Where rewritten `cpuid` instructions jump: RDX = return address.
    pub fn enclos_cpuid();
    /// ENCLU with leaf EREPORT.
    pub fn enclos_ereport(target_info: *const u8, report_data: *const u8, report: *mut u8);
    /// ENCLU with leaf EGETKEY; the error code of RAX.
    pub fn enclos_egetkey(key_request: *const u8, key: *mut u8) -> u64;
    /// ENCLU with leaf EACCEPT: SECINFO, page; the error code of RAX, or [`crate::pages::FAULTED`].
    pub fn enclos_eaccept(secinfo: *const u8, page: u64) -> u64;
    /// The ENCLU in it, and what follows.
    pub fn enclos_eaccept_site();
    pub fn enclos_eaccept_done();
    /// ENCLU with leaf EMODPE: SECINFO, page.
    pub fn enclos_emodpe(secinfo: *const u8, page: u64);
}

/// What `enclos_switch` returns.
#[repr(C)]
pub struct Answer {
    /// Operation of the entry.
    pub op: u64,
    /// RSI at entry.
    pub value: u64,
}

/// General registers at a Linux call, as `enclos_syscall` pushes them.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rax: u64,
    /// Where the program goes on.
    pub rip: u64,
    /// The program's stack pointer.
    pub rsp: u64,
    /// LAHF's AH in bits 8 to 15, overflow in bit 0.
    pub flags: u64,
}

impl Registers {
    /// The flags as RFLAGS has them; those that a program cannot see set are not there.
    pub fn linux_flags(&self) -> u64 {
        self.flags >> 8 & 0xff | (self.flags & 1) << 11 | 0x202
    }

    /// Takes carry, parity, adjust, zero, sign and overflow from RFLAGS.
    pub fn set_linux_flags(&mut self, flags: u64) {
        self.flags = (flags & 0xd5 | 2) << 8 | flags >> 11 & 1;
    }
}

/// Start of ELRANGE.
pub fn enclave_base() -> u64 {
    let at: u64;
    // By instruction, not through the global offset table, which is not relocated at first.
    // SAFETY: computes an address.
    unsafe {
        core::arch::asm!("lea {}, [rip + __ehdr_start]", out(reg) at, options(nomem, nostack, preserves_flags));
    }
    at
}

/// Applies the runtime's own relocations. Runs first of all code but `enclos_entry`, once.
///
/// # Safety
/// Only from `enclos_entry`, before any other entry was let in.
#[unsafe(no_mangle)]
unsafe extern "C" fn enclos_relocate() {
    const DT_RELA: u64 = 7;
    const DT_RELASZ: u64 = 8;
    const R_X86_64_RELATIVE: u64 = 8;
    let base = enclave_base();
    // SAFETY: the linker made the dynamic section and the table it names; both are measured. Only relative relocations
    // occur in a static PIE without symbols to import.
    unsafe {
        let mut entry: *const [u64; 2];
        core::arch::asm!("lea {}, [rip + _DYNAMIC]", out(reg) entry, options(nomem, nostack, preserves_flags));
        let (mut rela, mut size) = (0, 0);
        while (*entry)[0] != 0 {
            match (*entry)[0] {
                DT_RELA => rela = base + (*entry)[1],
                DT_RELASZ => size = (*entry)[1],
                _ => {}
            }
            entry = entry.add(1);
        }
        for i in 0..size / 24 {
            let [offset, info, addend] = *((rela + i * 24) as *const [u64; 3]);
            if info == R_X86_64_RELATIVE {
                *((base + offset) as *mut u64) = base + addend;
            }
        }
    }
}

const ENCLU_EEXIT: u32 = 4;

/// Where the second SSA frame ends, from the thread's data page: with GPRSGX, whose first field is RAX and whose RIP is 48
/// bytes from its end (SDM vol. 3D, 34.9.1.1).
const SECOND_FRAME_END: u64 = region::SSA - region::DATA + 2 * region::SSA_FRAME_PAGES as u64 * 4096;

// AT&T-free, Intel syntax. GS base is the thread data page throughout; FS base is the application's whenever its code
// or the runtime runs on its behalf.
global_asm!(
    r#"
    .macro ENCLU_PADDED
    77777:
    .byte 0x0f, 0x01, 0xd7, 0x66, 0x90
    .pushsection .enclos.enclu, "aR"
    .long 77777b - .
    .popsection
    .endm

    # No register or flag of the enclave goes out. VZEROALL clears ZMM0 to ZMM15 whole, KXORW all 64 bits. RDI, RSI, RDX,
    # R8, R9 carry the exit; RBX, RSP, RBP are set.
    .macro CLEAR_FOR_EXIT
    vzeroall
    cmp dword ptr [rip + enclos_avx512], 0
    je 99999f
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vpxord zmm\n, zmm\n, zmm\n
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    kxorw k\n, k\n, k\n
    .endr
99999:
    pxor mm0, mm0
    pxor mm1, mm1
    pxor mm2, mm2
    pxor mm3, mm3
    pxor mm4, mm4
    pxor mm5, mm5
    pxor mm6, mm6
    pxor mm7, mm7
    emms
    xor ecx, ecx
    xor r10d, r10d
    xor r11d, r11d
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor r15d, r15d
    mov eax, {eexit}
    .endm

    # Needs a stack. The host's alignment-check flag, exception flags, rounding and MMX tags end here.
    .macro SANITISE
    push 0x202
    popfq
    fnclex
    emms
    fldcw [rip + 88888f]
    ldmxcsr [rip + 88888f + 4]
    .pushsection .rodata.enclos_entry, "a"
    .p2align 3
    88888: .long 0x37f, 0x1f80
    .popsection
    .endm

    # What compiled code may change of the program's vector registers: it is compiled for SSE only.
    .macro SAVE_XMM
    sub rsp, 256
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movaps [rsp + 16 * \n], xmm\n
    .endr
    .endm
    .macro RESTORE_XMM
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movaps xmm\n, [rsp + 16 * \n]
    .endr
    add rsp, 256
    .endm

    .section .text.enclos_entry, "ax"
    .global enclos_entry, enclos_switch, enclos_switch_keeping, enclos_leave, enclos_leave_exception
    .global enclos_start_application, enclos_start_thread, enclos_syscall, enclos_syscall_end, enclos_cpuid
    .global enclos_ereport, enclos_egetkey, enclos_eaccept, enclos_eaccept_site, enclos_eaccept_done, enclos_emodpe
    .p2align 6
enclos_entry:
    cld
    test eax, eax
    jnz 50f
    mov gs:[{return_rip}], rcx
    mov gs:[{host_rsp}], rsp
    mov gs:[{host_rbp}], rbp
    mov eax, dword ptr gs:[{state}]
    cmp rdi, {op_return}
    jne 1f
    cmp eax, {state_host_call}
    jne 41f
    jmp 10f
1:  cmp eax, {state_parked}
    jne 2f
    cmp rdi, {op_call}
    je 10f
    cmp rdi, {op_shutdown}
    je 10f
    jmp 41f
2:  cmp eax, {state_free}
    jne 3f
    cmp rdi, {op_start}
    je 20f
    cmp rdi, {op_thread}
    je 21f
    cmp rdi, {op_shutdown}
    jbe 41f
    jmp 40f
3:  cmp eax, {state_host_call}
    jne 41f
    cmp rdi, {op_nested}
    je 30f
    jmp 41f

    # The answer to enclos_switch: back to where the thread left.
10: mov dword ptr gs:[{state}], {state_running}
    mov gs:[{args}], rsi
    mov gs:[{args} + 8], rdx
    mov gs:[{args} + 16], r8
    mov gs:[{args} + 24], r9
    mov rsp, gs:[{wait_rsp}]
    # The same as SANITISE, but what costs is done only where the host left something to undo.
    pushfq
    test dword ptr [rsp], 0x40000
    lea rsp, [rsp + 8]
    jnz 12f
11: fnstsw ax
    test al, 0xff
    jnz 13f
14: emms
    mov rax, gs:[{app_fs}]
    wrfsbase rax
    mov rax, rdi
    mov rdx, rsi
    ldmxcsr [rsp]
    fldcw [rsp + 4]
    add rsp, 8
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

12: push 0x202
    popfq
    jmp 11b
13: fnclex
    jmp 14b

    # First entry of all: exactly one thread relocates the runtime; the others are refused meanwhile.
20: mov eax, 1
    xchg dword ptr [rip + enclos_started], eax
    test eax, eax
    jnz 42f
    rdgsbase rax
    lea rsp, [rax + {stack_from_data}]
    SANITISE
    push rsi
    push rdx
    call enclos_relocate
    pop rsi
    pop rdi
    call {start}
    ud2

21: cmp dword ptr [rip + enclos_ready], 0
    je 42f
    rdgsbase rax
    lea rsp, [rax + {stack_from_data}]
    SANITISE
    call {thread}
    ud2

    # A call on top of a host call: the handler runs below what the thread saved.
30: cmp dword ptr gs:[{nestable}], 0
    je 43f
    mov dword ptr gs:[{state}], {state_running}
    mov gs:[{args}], rsi
    mov gs:[{args} + 8], rdx
    mov gs:[{args} + 16], r8
    mov gs:[{args} + 24], r9
    mov rsp, gs:[{wait_rsp}]
    mov rax, rsp
    and rsp, -16
    push rax
    push rax
    mov rax, gs:[{app_fs}]
    wrfsbase rax
    push rax
    SANITISE
    pop rax
    push rax
    push rax
    call {nested}
    # RAX = status << 32 | length, or all ones: refused, reason in RDX
    pop rcx
    pop rcx
    mov gs:[{app_fs}], rcx
    pop rcx
    pop rcx
    mov gs:[{wait_rsp}], rcx
    mov dword ptr gs:[{nestable}], 1
    mov dword ptr gs:[{state}], {state_host_call}
    mov edi, {exit_refused}
    mov rsi, rdx
    cmp rax, -1
    je 31f
    mov edi, {exit_nested_done}
    mov rsi, rax
    shr rsi, 32
    mov edx, eax
31: xor r8d, r8d
    xor r9d, r9d
    jmp 90f

    # Refusals: nothing was changed, no stack was used.
40: mov esi, {refused_operation}
    jmp 49f
41: mov esi, {refused_state}
    jmp 49f
42: mov esi, {refused_order}
    jmp 49f
43: mov esi, {refused_nesting}
49: mov edi, {exit_refused}
    xor edx, edx
    xor r8d, r8d
    xor r9d, r9d
90: mov rbx, gs:[{return_rip}]
    mov rsp, gs:[{host_rsp}]
    mov rbp, gs:[{host_rbp}]
    CLEAR_FOR_EXIT
    ENCLU_PADDED
    ud2

    # An entry at CSSA > 0.
50: mov gs:[{exception_rip}], rcx
    mov gs:[{exception_rsp}], rsp
    mov gs:[{exception_rbp}], rbp
    cmp rdi, {op_exception}
    jne 51f
    cmp eax, 1
    jne 52f
    rdgsbase rax
    lea rsp, [rax + {exception_stack_from_data}]
    SANITISE
    # RSI: what became of what the exception handler asked for.
    mov rdi, rax
    call {exception}
    ud2
    # The exception handler accepts pages too: one that is not there is an error to it, as `exception` makes it one to
    # others. Registers are the host's; the frame was filled by the CPU.
52: cmp eax, 2
    jne 51f
    rdgsbase rax
    lea rdx, [rip + enclos_eaccept_site]
    cmp rdx, [rax + {second_frame_rip}]
    jne 51f
    lea rdx, [rip + enclos_eaccept_done]
    mov [rax + {second_frame_rip}], rdx
    mov qword ptr [rax + {second_frame_rax}], -1
    mov edi, {exit_resume}
    xor esi, esi
    xor edx, edx
    xor r8d, r8d
    xor r9d, r9d
    jmp 91f
51: mov esi, {refused_cssa}
    mov edi, {exit_refused}
    xor edx, edx
    xor r8d, r8d
    xor r9d, r9d
    jmp 91f

enclos_leave_exception:
    xor r8d, r8d
    xor r9d, r9d
91: mov rbx, gs:[{exception_rip}]
    mov rsp, gs:[{exception_rsp}]
    mov rbp, gs:[{exception_rbp}]
    CLEAR_FOR_EXIT
    ENCLU_PADDED
    ud2

enclos_leave:
    xor r8d, r8d
    xor r9d, r9d
    jmp 90b

    .p2align 4
enclos_switch:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    sub rsp, 8
    stmxcsr [rsp]
    fnstcw [rsp + 4]
    mov gs:[{wait_rsp}], rsp
    rdfsbase rax
    mov gs:[{app_fs}], rax
    mov r9, r8
    mov r8, rcx
    jmp 90b

    .p2align 4
enclos_switch_keeping:
    push rbp
    mov rbp, rsp
    sub rsp, {xsave_area}
    and rsp, -64
    xor eax, eax
    mov [rsp + 512], rax
    mov [rsp + 520], rax
    mov [rsp + 528], rax
    mov [rsp + 536], rax
    mov [rsp + 544], rax
    mov [rsp + 552], rax
    mov [rsp + 560], rax
    mov [rsp + 568], rax
    mov r11, rdx
    mov eax, dword ptr [rip + enclos_avx512]
    or eax, {xfrm}
    xor edx, edx
    xsave64 [rsp]
    mov rdx, r11
    call enclos_switch
    mov r10, rax
    mov r11, rdx
    mov eax, dword ptr [rip + enclos_avx512]
    or eax, {xfrm}
    xor edx, edx
    xrstor64 [rsp]
    mov rax, r10
    mov rdx, r11
    mov rsp, rbp
    pop rbp
    ret

enclos_start_application:
    rdgsbase rax
    add rax, {application_fs_from_data}
    wrfsbase rax
    mov rsp, rdi
    mov rcx, rsi
    xor eax, eax
    xor ebx, ebx
    xor edx, edx
    xor esi, esi
    xor edi, edi
    xor ebp, ebp
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor r15d, r15d
    jmp rcx

enclos_start_thread:
    wrfsbase rsi
    mov gs:[{app_fs}], rsi
    mov r15, [rdi]
    mov r14, [rdi + 8]
    mov r13, [rdi + 16]
    mov r12, [rdi + 24]
    mov rbp, [rdi + 32]
    mov rbx, [rdi + 40]
    mov r10, [rdi + 48]
    mov r9, [rdi + 56]
    mov r8, [rdi + 64]
    mov rdx, [rdi + 72]
    mov rsi, [rdi + 80]
    mov rcx, [rdi + 104]
    mov rsp, [rdi + 112]
    mov rdi, [rdi + 88]
    xor eax, eax
    jmp rcx

    # RAX = number, arguments as Linux takes them, RCX = return address. Touches nothing below the program's stack
    # pointer. All registers but RAX, RCX, R11 survive, flags and vector registers too.
    .p2align 6
enclos_syscall:
    mov gs:[{program_rsp}], rsp
    mov r11, rax
    lahf
    seto al
    mov rsp, gs:[{stack_top}]
    movzx eax, ax
    push rax
    push qword ptr gs:[{program_rsp}]
    push rcx
    push r11
    push rdi
    push rsi
    push rdx
    push r8
    push r9
    push r10
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    SAVE_XMM
    cld
    call {linux}
    mov r11, rax
60: RESTORE_XMM
    # RBX, RBP and R12 to R15 are as the program left them: compiled code preserves them.
    mov r10, [rsp + 48]
    mov r9, [rsp + 56]
    mov r8, [rsp + 64]
    mov rdx, [rsp + 72]
    mov rsi, [rsp + 80]
    mov rdi, [rsp + 88]
    mov rcx, [rsp + 104]
    mov rax, [rsp + 120]
    mov rsp, [rsp + 112]
    add al, 0x7f
    sahf
    mov rax, r11
    jmp rcx

    # As if the call above had returned with RAX = RSI, and these general registers instead of the program's.
enclos_syscall_end:
    lea rsp, [rdi - 256]
    mov r11, rsi
    mov r15, [rdi]
    mov r14, [rdi + 8]
    mov r13, [rdi + 16]
    mov r12, [rdi + 24]
    mov rbp, [rdi + 32]
    mov rbx, [rdi + 40]
    jmp 60b

    # EAX, ECX = leaf and subleaf, RDX = return address. All other registers and the flags survive.
enclos_cpuid:
    mov gs:[{program_rsp}], rsp
    mov rsp, gs:[{stack_top}]
    push qword ptr gs:[{program_rsp}]
    push rdx
    pushfq
    push rdi
    push rsi
    push r8
    push r9
    push r10
    push r11
    sub rsp, 24
    mov rdx, rsp
    SAVE_XMM
    cld
    mov edi, eax
    mov esi, ecx
    call {cpuid}
    RESTORE_XMM
    mov eax, [rsp]
    mov ebx, [rsp + 4]
    mov ecx, [rsp + 8]
    mov edx, [rsp + 12]
    add rsp, 24
    pop r11
    pop r10
    pop r9
    pop r8
    pop rsi
    pop rdi
    popfq
    # The return address is the only thing without a register: the jump goes through the thread data.
    pop qword ptr gs:[{return_to}]
    pop rsp
    jmp qword ptr gs:[{return_to}]

    # All padded: the emulator has ways for these leaves that need no ENCLU, which processors refuse in different ways. It
    # knows the leaf by the instruction before, so the two are in one page.
    .p2align 5
enclos_ereport:
    push rbx
    mov rbx, rdi
    mov rcx, rsi
    mov eax, 0
    ENCLU_PADDED
    pop rbx
    ret
    .p2align 5
enclos_egetkey:
    push rbx
    mov rbx, rdi
    mov rcx, rsi
    mov eax, 1
    ENCLU_PADDED
    pop rbx
    ret
    .p2align 5
enclos_emodpe:
    push rbx
    mov rbx, rdi
    mov rcx, rsi
    mov eax, 6
    ENCLU_PADDED
    pop rbx
    ret
    .p2align 5
enclos_eaccept:
    push rbx
    mov rbx, rdi
    mov rcx, rsi
    mov eax, 5
enclos_eaccept_site:
    ENCLU_PADDED
enclos_eaccept_done:
    pop rbx
    ret

    .section .bss.enclos_entry, "aw", @nobits
    .p2align 2
    .global enclos_started, enclos_ready, enclos_avx512
enclos_started: .long 0
enclos_ready: .long 0
    # The components of AVX-512 in XFRM if programs use them, or 0. Set before any program runs.
enclos_avx512: .long 0
    .text
"#,
    eexit = const ENCLU_EEXIT,
    xfrm = const xfrm::BASE,
    xsave_area = const xfrm::LARGEST_AREA,
    return_rip = const offset_of!(Thread, return_rip),
    host_rsp = const offset_of!(Thread, host_rsp),
    host_rbp = const offset_of!(Thread, host_rbp),
    exception_rip = const offset_of!(Thread, exception_rip),
    exception_rsp = const offset_of!(Thread, exception_rsp),
    exception_rbp = const offset_of!(Thread, exception_rbp),
    state = const offset_of!(Thread, state),
    nestable = const offset_of!(Thread, nestable),
    args = const offset_of!(Thread, args),
    wait_rsp = const offset_of!(Thread, wait_rsp),
    app_fs = const offset_of!(Thread, app_fs),
    program_rsp = const offset_of!(Thread, program_rsp),
    return_to = const offset_of!(Thread, return_to),
    stack_top = const offset_of!(Thread, stack_top),
    stack_from_data = const region::STACK_END as i64 - region::DATA as i64,
    exception_stack_from_data = const region::EXCEPTION_STACK_END as i64 - region::DATA as i64,
    second_frame_rip = const SECOND_FRAME_END - 48,
    second_frame_rax = const SECOND_FRAME_END - 184,
    application_fs_from_data = const region::APPLICATION_FS - region::DATA,
    state_free = const state::FREE,
    state_running = const state::RUNNING,
    state_host_call = const state::HOST_CALL,
    state_parked = const state::PARKED,
    op_start = const op::START,
    op_thread = const op::THREAD,
    op_call = const op::CALL,
    op_return = const op::RETURN,
    op_nested = const op::NESTED_CALL,
    op_exception = const op::EXCEPTION,
    op_shutdown = const op::SHUTDOWN,
    exit_refused = const exit::REFUSED,
    exit_resume = const exit::RESUME,
    exit_nested_done = const exit::NESTED_DONE,
    refused_operation = const refusal::OPERATION,
    refused_state = const refusal::STATE,
    refused_order = const refusal::ORDER,
    refused_nesting = const refusal::NESTING,
    refused_cssa = const refusal::CSSA,
    start = sym crate::boot::start,
    thread = sym crate::thread::run_pending,
    nested = sym crate::table::nested,
    exception = sym crate::exception::handle,
    linux = sym crate::calls::linux,
    cpuid = sym crate::cpu::cpuid,
);
