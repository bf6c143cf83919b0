# Stands in for the runtime when a rewritten program runs as an ordinary process: does what was asked of the kernel or
# the CPU and returns as the real one must, and counts. At exit_group it writes both counts to file descriptor 9.
    .text
    jmp enclos_syscall
    .balign 16
    jmp enclos_cpuid
    .balign 16
counts:
    .quad 0, 0

# RCX = where to return; every register but RAX, RCX and R11 must survive, and so must flags and the red zone.
enclos_syscall:
    lea -128(%rsp), %rsp
    pushfq
    lock incq counts(%rip)
    cmp $231, %eax
    je exiting
    cmp $56, %eax               # clone and clone3 return on another stack too, so that RCX cannot wait on this one
    je cloning
    cmp $435, %eax
    je cloning
    cmp $15, %eax               # rt_sigreturn: the kernel looks for its frame at RSP
    je sigreturn
    popfq
    pushq %rcx
    syscall
    popq %rcx
    lea 128(%rsp), %rsp
    jmp *%rcx
cloning:
    popfq
    lea 128(%rsp), %rsp
    wrgsbase %rcx
    syscall
    rdgsbase %rcx
    jmp *%rcx
sigreturn:
    lea 136(%rsp), %rsp
    syscall
    ud2
exiting:
    mov %rdi, %rbx
    mov $1, %eax
    mov $9, %edi
    lea counts(%rip), %rsi
    mov $16, %edx
    syscall
    mov %rbx, %rdi
    mov $231, %eax
    syscall
    ud2

# RDX = where to return; the inputs are EAX and ECX.
enclos_cpuid:
    lea -136(%rsp), %rsp
    mov %rdx, (%rsp)
    pushfq
    lock incq counts+8(%rip)
    popfq
    cpuid
    lea 136(%rsp), %rsp
    jmp *-136(%rsp)
