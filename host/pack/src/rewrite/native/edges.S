# One function a rule of rewriting. Each returns 0 in EAX when its registers, flags and red zone survived, and is
# written so that only the form in its name is possible. `main` adds up a number that tells which failed.
    .macro function name
    .balign 16
    .type \name, @function
\name:
    .cfi_startproc
    .endm
    .macro end name
    .cfi_endproc
    .size \name, . - \name
    .endm

    .text
    .globl main

# Sets every register that a system call must not touch, the red zone, and the carry flag.
    .macro fill
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    .irp reg, rbx, rbp, rdi, rsi, rdx, r8, r9, r10, r12, r13, r14, r15
    lea -0x7e(%rip), %\reg
    .endr
    movq $0x1111, -8(%rsp)
    movq $0x2222, -64(%rsp)
    movq $0x3333, -128(%rsp)
    stc
    .endm
# Checks what `fill` did: RAX was saved to the variable `result` first.
    .macro check
    setnc %al
    movzbl %al, %eax
    .set i, 0
    .irp reg, rbx, rbp, rdi, rsi, rdx, r8, r9, r10, r12, r13, r14, r15
    .set i, i + 7
    .endr
    # The registers were loaded by instructions of seven bytes each, so that their values step by seven.
    lea 7(%rbx), %r11
    cmp %r11, %rbp
    jne 9f
    lea 7(%rbp), %r11
    cmp %r11, %rdi
    jne 9f
    lea 7(%rdi), %r11
    cmp %r11, %rsi
    jne 9f
    lea 7(%rsi), %r11
    cmp %r11, %rdx
    jne 9f
    lea 7(%rdx), %r11
    cmp %r11, %r8
    jne 9f
    lea 7(%r8), %r11
    cmp %r11, %r9
    jne 9f
    lea 7(%r9), %r11
    cmp %r11, %r10
    jne 9f
    lea 7(%r10), %r11
    cmp %r11, %r12
    jne 9f
    lea 7(%r12), %r11
    cmp %r11, %r13
    jne 9f
    lea 7(%r13), %r11
    cmp %r11, %r14
    jne 9f
    lea 7(%r14), %r11
    cmp %r11, %r15
    jne 9f
    cmpq $0x1111, -8(%rsp)
    jne 9f
    cmpq $0x2222, -64(%rsp)
    jne 9f
    cmpq $0x3333, -128(%rsp)
    jne 9f
    jmp 8f
9:  mov $1, %eax
8:  pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
    .endm

function form_a
    fill
    mov $39, %eax
    syscall
    mov %rax, result(%rip)
    check
end form_a

# Something jumps to the syscall itself, so that nothing before it may move.
function form_b
    fill
    mov $39, %eax
    jmp 1f
    nop
1:  syscall
    mov %rax, result(%rip)
    check
end form_b

# A conditional branch and a return follow: both move.
function form_b_branch
    push $39
    pop %rax
    jmp 1f
    nop
1:  syscall
    test %eax, %eax
    jle 2f
    xor %eax, %eax
    ret
2:  mov $1, %eax
    ret
end form_b_branch

# A return and padding follow.
function form_b_return
    push $39
    pop %rax
    jmp 1f
    nop
1:  syscall
    ret
    nop
    nop
    nop
end form_b_return

# What follows is jumped to, and what precedes is relative to RIP.
function form_c
    push $39
    pop %rax
    lea result(%rip), %rcx
    mov %rcx, %r9
    xor %r8d, %r8d
    lea result(%rip), %r10
    syscall
1:  inc %r8d
    cmp $2, %r8d
    jb 1b
    sub %r10, %r9
    mov %r9d, %eax
    ret
end form_c

# Before and after: two bytes each.
function form_c_both
    push $39
    pop %rax
    jmp 1f
    nop
1:  xor %ecx, %ecx
    syscall
    test %eax, %eax
2:  jle 2b
    xor %eax, %eax
    ret
end form_c_both

# Both the syscall and what follows it are jumped to: it must stay.
function stays
    push $39
    pop %rax
    xor %r8d, %r8d
    jmp 1f
    nop
1:  syscall
2:  inc %r8d
    cmp $2, %r8d
    jb 2b
    xor %eax, %eax
    ret
end stays

# Only a jump table says that the syscall, and what follows it, are jumped to.
function stays_by_table
    mov $1, %edi
    lea table(%rip), %rdx
    movslq (%rdx, %rdi, 4), %rax
    add %rdx, %rax
    mov %rax, %rdx
    mov $39, %eax
    jmp *%rdx
3:  mov $39, %eax
4:  syscall
5:  inc %r8d
    xor %eax, %eax
    ret
end stays_by_table
    .section .rodata
    .balign 4
table:
    .long 3b - table, 4b - table, 5b - table
    .text

# As before, with entries relative to a label in the code.
function stays_by_label_table
    mov $1, %edi
    lea label_table(%rip), %rdx
    movslq (%rdx, %rdi, 4), %rax
    lea 6f(%rip), %rdx
    add %rax, %rdx
    mov $39, %eax
    jmp *%rdx
6:  mov $39, %eax
7:  syscall
5:  inc %r8d
    xor %eax, %eax
    ret
end stays_by_label_table
    .section .rodata
    .balign 4
label_table:
    .long 6b - 6b, 7b - 6b, 5b - 6b
    .text

# Only a relocation says so.
function stays_by_pointer
    lea pointers(%rip), %rdx
    mov (%rdx), %rdx
    mov $39, %eax
    jmp *%rdx
3:  mov $39, %eax
4:  syscall
5:  inc %r8d
    xor %eax, %eax
    ret
end stays_by_pointer
    .section .data.rel.ro, "aw"
    .balign 8
pointers:
    .quad 4b, 5b
    .text

# CPUID takes EAX and ECX; RSI and the others, the flags and the red zone must survive.
function cpuid_after
    push %rbx
    lea 0x1234(%rip), %rsi
    mov %rsi, %rdi
    movq $0x1111, -8(%rsp)
    movq $0x2222, -128(%rsp)
    xor %ecx, %ecx
    xor %eax, %eax
    jmp 1f
    nop
1:  cpuid
    mov %ebx, vendor(%rip)
    mov %edx, vendor+4(%rip)
    mov %ecx, vendor+8(%rip)
    mov %eax, result(%rip)
    cmp %rsi, %rdi
    jne 2f
    cmpq $0x1111, -8(%rsp)
    jne 2f
    cmpq $0x2222, -128(%rsp)
    jne 2f
    pop %rbx
    xor %eax, %eax
    ret
2:  pop %rbx
    mov $1, %eax
    ret
end cpuid_after

# With a subleaf in ECX, flags in use across it, and its inputs set by what moves.
function cpuid_before
    push %rbx
    xor %ecx, %ecx
    stc
    mov $7, %eax
    cpuid
1:  setnc %cl
    mov %ebx, leaf7(%rip)
    movzbl %cl, %eax
    cmp $3, %al
    ja 1b
    pop %rbx
    ret
end cpuid_before

function main
    push %rbp
    xor %ebp, %ebp
    .irp name, form_a, form_b, form_b_branch, form_c, form_c_both, stays, stays_by_table, stays_by_label_table, stays_by_pointer, cpuid_after, cpuid_before
    add %ebp, %ebp
    call \name
    or %eax, %ebp
    .endr
    call form_b_return
    mov %eax, %ebx
    call getpid@PLT
    cmp %eax, %ebx
    setne %al
    movzbl %al, %eax
    add %ebp, %ebp
    or %eax, %ebp
    mov %ebp, %esi
    lea format(%rip), %rdi
    lea vendor(%rip), %rdx
    mov leaf7(%rip), %ecx
    xor %eax, %eax
    call printf@PLT
    mov %ebp, %eax
    pop %rbp
    ret
end main

    .section .rodata
format:
    .asciz "failed %#x vendor %.12s leaf 7 %#x\n"
    .bss
    .balign 8
result: .zero 8
vendor: .zero 16
leaf7:  .zero 4
    .section .note.GNU-stack, "", @progbits
