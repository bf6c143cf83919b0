//! Threads that execute ENCLU\[EENTER\] without having come through this crate.
//!
//! Such a thread has a signal stack of its own (Rust's runtime gives it one), and while a handler runs on it the
//! kernel lets nobody change it, neither by sigaltstack(2) nor, since Linux 6.12, by way of the signal frame. So the
//! handler sends the thread through a detour: back on its ordinary stack it prepares itself, with every register saved
//! around that, and then executes its ENCLU again.

use std::cell::Cell;

use libc::ucontext_t;

use super::thread;

thread_local! {
    /// Preparing this thread failed: its next ENCLU is an ordinary invalid opcode.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
    /// Where it goes on.
    static RETURN_TO: Cell<u64> = const { Cell::new(0) };
}

unsafe extern "C" {
    fn enclos_emu_adopt();
}

core::arch::global_asm!(
    r#"
    .text
    .p2align 4
    .global enclos_emu_adopt
    # rsp points to 8 bytes for the address to go on at; 128 bytes further up is the interrupted stack.
enclos_emu_adopt:
    pushfq
    push rax
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
    cld
    sub rsp, 4096
    and rsp, -64
    xor eax, eax
    lea rdi, [rsp + 512]
    mov ecx, 8
    rep stosq
    # x87, SSE, AVX, AVX-512: what compiled code may touch
    mov eax, 0xe7
    xor edx, edx
    xsave64 [rsp]
    lea rdi, [rbp + 88]
    call {adopt}
    mov eax, 0xe7
    xor edx, edx
    xrstor64 [rsp]
    mov rsp, rbp
    pop rbp
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    popfq
    ret 128
"#,
    adopt = sym adopt,
);

/// Makes the interrupted thread prepare itself when the handler returns, and then repeat the instruction. False when
/// that was tried and failed.
///
/// The instruction at the frame's RIP is to be repeated; the thread must be outside of any enclave.
pub(super) fn on_return(frame: &mut ucontext_t) -> bool {
    if REFUSED.get() {
        return false;
    }
    let registers = &mut frame.uc_mcontext.gregs;
    RETURN_TO.set(registers[libc::REG_RIP as usize] as u64);
    registers[libc::REG_RIP as usize] = enclos_emu_adopt as *const () as i64;
    // Below the red zone of the interrupted function. Nothing is written there yet: the frame itself may lie there.
    registers[libc::REG_RSP as usize] -= 128 + 8;
    true
}

extern "C" fn adopt(return_to: &mut u64) {
    *return_to = RETURN_TO.get();
    if let Err(error) = thread::thread_context() {
        eprintln!("enclos: this thread cannot enter emulated enclaves: {error}");
        REFUSED.set(true);
    }
}
