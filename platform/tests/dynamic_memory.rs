//! Dynamic memory in enclaves that run: a hand-written enclave of a few instructions, and the host side of the platform
//! interface as a kernel behaves, and as one that takes away what is in use.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::*;
use enclos_platform::emulator::Emulator;
use enclos_platform::{
    CreateParams, DynamicMemory, EENTER, EEXIT, ERESUME, Initialized, Pages, Platform, PlatformError, Run,
};
use sgx_isa::{AttributesFlags, ErrorCode, Miscselect, PageType, SecinfoFlags};

const SIZE: u64 = 0x4_0000;
const CODE: u64 = 0x1000;
const DATA: u64 = 0x2000;
const TCS: u64 = 0x3000;
const SSA: u64 = 0x4000;
const NSSA: u32 = 2;
/// Address space for pages that come later.
const FREE: u64 = 0x1_0000;
/// Where tests put SECINFOs: in the data page.
const SECINFO: u64 = DATA + 0x400;

// Operations, in RDI.
const ACCEPT: u64 = 0;
const LEAF: u64 = 1;
const READ: u64 = 2;
const WRITE: u64 = 3;
const SPIN: u64 = 4;
const STORE: u64 = 5;

unsafe extern "C" {
    static enclos_dynamic_enclave: u8;
    static enclos_dynamic_enclave_site: u8;
    static enclos_dynamic_enclave_exit: u8;
    static enclos_dynamic_enclave_end: u8;
}

core::arch::global_asm!(
    r#"
    .text
    .p2align 6
    .global enclos_dynamic_enclave, enclos_dynamic_enclave_site, enclos_dynamic_enclave_exit
    .global enclos_dynamic_enclave_end
enclos_dynamic_enclave:
    mov gs:[0], rcx
    cmp rdi, 1
    je 1f
    cmp rdi, 2
    je 2f
    cmp rdi, 3
    je 3f
    cmp rdi, 4
    je 4f
    cmp rdi, 5
    je 5f
    # EACCEPT of page RDX with the SECINFO at RSI, among registers that must survive it
    mov gs:[8], rsp
    mov gs:[40], rbp
    rdgsbase rsp
    add rsp, 0xe00
    mov rbx, rsi
    mov rcx, rdx
    mov r9, 0x123456789abcdef
    movq xmm7, r9
    .irp r, rdi, rsi, rdx, rbp, r8, r10, r11, r12, r13, r14, r15
    mov \r, r9
    .endr
    mov gs:[16], rbx
    mov gs:[24], rcx
    mov gs:[32], rsp
    stc
    mov eax, 5
enclos_dynamic_enclave_site:
    .byte 0x0f, 0x01, 0xd7, 0x66, 0x90
    pushfq
    cmp rbx, gs:[16]
    jne 7f
    cmp rcx, gs:[24]
    jne 7f
    .irp r, rdi, rsi, rdx, rbp, r8, r10, r11, r12, r13, r14, r15
    cmp \r, r9
    jne 7f
    .endr
    movq r8, xmm7
    cmp r8, r9
    jne 7f
    pop rdx
    cmp rsp, gs:[32]
    jne 7f
    mov rsp, gs:[8]
    mov rbp, gs:[40]
    mov rsi, rax
    jmp 8f
7:  ud2
    # leaf R8: RBX = RSI, RCX = RDX, RDX = R9
1:  mov rbx, rsi
    mov rcx, rdx
    mov rdx, r9
    mov eax, r8d
    .byte 0x0f, 0x01, 0xd7
    mov rsi, rax
    jmp 8f
2:  movzx esi, byte ptr [rsi]
    jmp 8f
3:  mov byte ptr [rsi], dl
    jmp 8f
    # announces itself at RSI, then spins until the word after it is set
4:  mov qword ptr [rsi], 1
6:  pause
    cmp qword ptr [rsi + 8], 0
    je 6b
    jmp 8f
5:  mov qword ptr [rsi], rdx
8:  mov rbx, gs:[0]
    mov eax, 4
enclos_dynamic_enclave_exit:
    .byte 0x0f, 0x01, 0xd7, 0x66, 0x90
    ud2
enclos_dynamic_enclave_end:
"#
);

struct Enclave {
    initialized: Arc<dyn Initialized>,
    base: u64,
}

const R: SecinfoFlags = SecinfoFlags::R;
const W: SecinfoFlags = SecinfoFlags::W;
const X: SecinfoFlags = SecinfoFlags::X;
const PENDING: SecinfoFlags = SecinfoFlags::PENDING;
const MODIFIED: SecinfoFlags = SecinfoFlags::MODIFIED;
const PR: SecinfoFlags = SecinfoFlags::PR;

fn reg() -> SecinfoFlags {
    PageType::Reg.into()
}

fn tcs_page(ossa: u64, gs: u64) -> [u8; 4096] {
    let mut page = ZEROS;
    for (at, value) in [(16, ossa), (24, u64::from(NSSA) << 32), (32, CODE), (48, DATA), (56, gs)] {
        page[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    page[64..72].copy_from_slice(&[0xff, 0xf, 0, 0, 0xff, 0xf, 0, 0]);
    page
}

impl Enclave {
    /// Twice: by rewritten instructions and by trapping ones.
    fn both() -> [Self; 2] {
        [Self::new(true), Self::new(false)]
    }

    fn new(fast: bool) -> Self {
        let emulator = Emulator::on(machine());
        let platform = if fast { emulator } else { emulator.trapping() };
        let mut attributes = secs().attributes;
        attributes.flags = AttributesFlags::MODE64BIT;
        let mut build = platform
            .create(&CreateParams {
                size: SIZE,
                ssa_frame_size: 1,
                miscselect: Miscselect::EXINFO,
                attributes,
            })
            .unwrap();
        let mut code = ZEROS;
        // SAFETY: the symbols bound one piece of code.
        let (len, sites) = unsafe {
            let from = &raw const enclos_dynamic_enclave;
            let at = |to: *const u8| to.offset_from_unsigned(from);
            let len = at(&raw const enclos_dynamic_enclave_end);
            std::ptr::copy_nonoverlapping(from, code.as_mut_ptr(), len);
            (len, [at(&raw const enclos_dynamic_enclave_site), at(&raw const enclos_dynamic_enclave_exit)])
        };
        assert!(len <= 4096);
        let mut stream = created_with(SIZE);
        for (offset, flags, data) in [
            (CODE, R | X | reg(), code),
            (DATA, R | W | reg(), ZEROS),
            (TCS, PageType::Tcs.into(), tcs_page(SSA, DATA)),
            (SSA, R | W | reg(), ZEROS),
            (SSA + 0x1000, R | W | reg(), ZEROS),
        ] {
            let pages = Pages { offset, data: Some(&data), count: 1, secinfo: flags, measured: false };
            build.add(&pages).unwrap();
            let secinfo = sgx_isa::Secinfo { flags, ..Default::default() };
            stream.eadd(offset, &secinfo, &mut data.clone()).unwrap();
        }
        let base = build.base();
        let sigstruct = signed(&stream, |s| {
            s.miscselect = Miscselect::EXINFO;
        });
        let initialized = build.init(&sigstruct).unwrap();
        initialized.prepare_thread().unwrap();
        initialized.hint_enclu_sites(&sites.map(|s| CODE + s as u64));
        Self { initialized, base }
    }

    fn memory(&self) -> &dyn DynamicMemory {
        self.initialized.dynamic_memory().unwrap()
    }

    fn enter_at(&self, tcs: u64, leaf: u32, [rdi, rsi, rdx, r8, r9]: [u64; 5]) -> (Run, u64, u64) {
        let mut run = Run::new(self.base + tcs);
        let (out_rsi, out_rdx): (u64, u64);
        let function = self.initialized.enter_function();
        // A thread that comes back by ERESUME leaves with the stack pointer of its EENTER: all calls are made from the
        // same place.
        thread_local! { static STACK: Box<Stack> = Box::new(Stack([0; 65536])) }
        let stack = STACK.with(|s| (&raw const **s) as u64 + 65536 - 16);
        // SAFETY: on a stack of its own, which holds the thread's stack pointer; RBX and RBP are preserved by the function.
        unsafe {
            core::arch::asm!(
                "mov [{stack}], rsp", "mov rsp, {stack}",
                "push rax", "push rax", "call {f}", "add rsp, 16", "pop rsp",
                f = in(reg) function, stack = in(reg) stack,
                inout("rax") &raw mut run => _, inout("rdi") rdi => _, inout("rsi") rsi => out_rsi,
                inout("rdx") rdx => out_rdx, inout("rcx") u64::from(leaf) => _,
                inout("r8") r8 => _, inout("r9") r9 => _, out("r10") _, out("r11") _,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _, clobber_abi("C"),
            );
        }
        (run, out_rsi, out_rdx)
    }

    fn enter(&self, operation: u64, rsi: u64, rdx: u64) -> (Run, u64, u64) {
        self.enter_at(TCS, EENTER, [operation, rsi, rdx, 0, 0])
    }

    /// Writes a SECINFO into the data page, as the enclave.
    fn secinfo(&self, flags: SecinfoFlags) -> u64 {
        let (run, ..) = self.enter(STORE, self.base + SECINFO, flags.bits());
        assert_eq!(run.function, EEXIT);
        self.base + SECINFO
    }

    /// EACCEPT: RAX and the flags.
    fn accept(&self, offset: u64, flags: SecinfoFlags) -> Result<(u64, u64), u16> {
        let secinfo = self.secinfo(flags);
        match self.enter(ACCEPT, secinfo, self.base + offset) {
            (run, rax, flags) if run.function == EEXIT => Ok((rax, flags)),
            (run, ..) => Err(run.exception_vector),
        }
    }

    #[track_caller]
    fn accepts(&self, offset: u64, flags: SecinfoFlags) {
        let (rax, rflags) = self.accept(offset, flags).unwrap();
        // CF, PF, AF, ZF, SF, OF.
        assert_eq!((rax, rflags & 0x8d5), (0, 0));
    }

    fn read(&self, offset: u64) -> Result<u64, (u16, u16)> {
        self.outcome(READ, offset, 0)
    }

    fn write(&self, offset: u64, value: u64) -> Result<u64, (u16, u16)> {
        self.outcome(WRITE, offset, value)
    }

    /// RSI, or vector and error code of the exception, whose thread is then let go on behind the instruction.
    fn outcome(&self, operation: u64, offset: u64, value: u64) -> Result<u64, (u16, u16)> {
        let (run, rsi, _) = self.enter(operation, self.base + offset, value);
        if run.function == EEXIT {
            return Ok(rsi);
        }
        assert_eq!((run.function, run.exception_addr & !0xfff), (ERESUME, (self.base + offset) & !0xfff));
        // Skip it: READ and WRITE are three bytes long; then ERESUME.
        let rip = self.base + SSA + 4096 - 184 + 136;
        let skip = if operation == READ { 3 } else { 2 };
        let (run2, ..) = self.enter(STORE, rip, word(rip) + skip);
        assert_eq!(run2.function, EEXIT);
        let (run3, ..) = self.enter_at(TCS, ERESUME, [0; 5]);
        assert_eq!(run3.function, EEXIT);
        Err((run.exception_vector, run.exception_error_code))
    }
}

/// An enclave of the same SECS for measuring.
fn created_with(size: u64) -> enclos_platform::emulator::enclave::EnclaveState {
    let mut secs = secs();
    (secs.size, secs.baseaddr, secs.miscselect) = (size, 0x1_0000_0000, Miscselect::EXINFO);
    enclos_platform::emulator::enclave::EnclaveState::ecreate(machine(), &secs).unwrap()
}

fn word(address: u64) -> u64 {
    // SAFETY: a page of the test's enclave that is readable, for the emulator protects nothing.
    unsafe { (address as *const u64).read_volatile() }
}

#[repr(align(64))]
struct Stack(#[expect(dead_code, reason = "only its address is used")] [u8; 65536]);

const SGX_FAULT: u16 = 0x8000;

/// "EAUG", "EACCEPT": a pending page faults, an accepted one is zero and writable, and what EACCEPT does not change
/// (registers, XMM) it does not change, on both ways.
#[test]
fn pages_are_usable_when_accepted() {
    for e in Enclave::both() {
        assert_eq!(e.read(FREE), Err((14, 4)), "nothing there: an ordinary page fault");
        assert_eq!(e.accept(FREE, R | W | PENDING | reg()), Err(14));
        let (run, ..) = e.enter_at(TCS, ERESUME, [0; 5]);
        assert_eq!((run.function, run.exception_vector), (ERESUME, 14), "EACCEPT again, and again a fault");
        e.memory().augment(FREE, 4).unwrap();
        let (run, rax, _) = e.enter_at(TCS, ERESUME, [0; 5]);
        assert_eq!((run.function, rax), (EEXIT, 0), "the page has come: EACCEPT goes on");
        let (vector, code) = e.read(FREE + 0x1000).unwrap_err();
        assert_eq!((vector, code & SGX_FAULT), (14, SGX_FAULT), "pending");
        for page in 1..4 {
            e.accepts(FREE + page * 0x1000, R | W | PENDING | reg());
        }
        for page in 0..4 {
            assert_eq!(e.read(FREE + page * 0x1000 + 7), Ok(0));
            e.write(FREE + page * 0x1000 + 7, 9).unwrap();
            assert_eq!(e.read(FREE + page * 0x1000 + 7), Ok(9));
        }
        let (rax, flags) = e.accept(FREE, R | W | PENDING | reg()).unwrap();
        assert_eq!((rax, flags & 0x8d5), (ErrorCode::PageAttributesMismatch as u64, 0x40), "ZF alone");
        assert_eq!(e.accept(FREE + 8, R | W | PENDING | reg()), Err(13));
    }
}

/// "EMODPR", "EMODPE": in force in memory, both ways.
#[test]
fn permissions_are_enforced() {
    for e in Enclave::both() {
        e.memory().augment(FREE, 2).unwrap();
        (0..2).for_each(|i| e.accepts(FREE + i * 0x1000, R | W | PENDING | reg()));
        e.write(FREE, 5).unwrap();
        e.memory().restrict(FREE, 2, R).unwrap();
        e.accepts(FREE, R | PR | reg());
        assert_eq!(e.read(FREE), Ok(5));
        let (vector, code) = e.write(FREE, 6).unwrap_err();
        assert_eq!((vector, code & (SGX_FAULT | 2)), (14, SGX_FAULT | 2));
        let secinfo = e.secinfo(R | W | reg());
        let (run, rax, _) = e.enter_at(TCS, EENTER, [LEAF, secinfo, e.base + FREE, 6, 0]);
        assert_eq!((run.function, rax), (EEXIT, 6), "EMODPE leaves RAX alone");
        e.write(FREE, 6).unwrap();
        assert_eq!(e.read(FREE), Ok(6));
        e.memory().restrict(FREE, 1, SecinfoFlags::empty()).unwrap();
        assert_eq!(e.read(FREE).unwrap_err().0, 14);
        // The one that was not extended.
        assert_eq!(e.write(FREE + 0x1000, 1).unwrap_err().0, 14);
    }
}

/// "EMODT", "EREMOVE": a trimmed page faults, goes when that was accepted, and comes back zero.
#[test]
fn trimmed_pages_go_and_come_back_zero() {
    for e in Enclave::both() {
        let used = machine_pages(&e);
        e.memory().augment(FREE, 2).unwrap();
        (0..2).for_each(|i| e.accepts(FREE + i * 0x1000, R | W | PENDING | reg()));
        e.write(FREE, 5).unwrap();
        assert!(e.memory().remove(FREE, 2).is_err(), "a regular page");
        e.memory().modify_type(FREE, 2, PageType::Trim).unwrap();
        assert_eq!(e.read(FREE).unwrap_err().0, 14);
        assert!(e.memory().remove(FREE, 2).is_err(), "not accepted");
        (0..2).for_each(|i| e.accepts(FREE + i * 0x1000, MODIFIED | PageType::Trim.into()));
        e.memory().remove(FREE, 2).unwrap();
        assert_eq!(machine_pages(&e), used);
        assert_eq!(e.accept(FREE, R | W | PENDING | reg()), Err(14));
        e.memory().augment(FREE, 1).unwrap();
        let (run, rax, _) = e.enter_at(TCS, ERESUME, [0; 5]);
        assert_eq!((run.function, rax), (EEXIT, 0));
        assert_eq!(e.read(FREE), Ok(0), "nothing of what was there");
    }
}

fn machine_pages(e: &Enclave) -> u64 {
    // What the enclave occupies is what its pages are.
    (0..SIZE / 4096).filter(|p| e.memory().restrict(p * 4096, 1, R | W | X).is_ok()).count() as u64
}

/// "EACCEPTCOPY": contents and permissions.
#[test]
fn pages_are_copied_when_accepted() {
    for e in Enclave::both() {
        e.memory().augment(FREE, 2).unwrap();
        e.accepts(FREE, R | W | PENDING | reg());
        e.write(FREE + 100, 77).unwrap();
        let secinfo = e.secinfo(R | reg());
        let copy = [LEAF, secinfo, e.base + FREE + 0x1000, 7, e.base + FREE];
        let (run, rax, _) = e.enter_at(TCS, EENTER, copy);
        assert_eq!((run.function, rax), (EEXIT, 0));
        assert_eq!(e.read(FREE + 0x1064), Ok(77));
        assert_eq!(e.write(FREE + 0x1064, 1).unwrap_err().0, 14);
        let (run, rax, _) = e.enter_at(TCS, EENTER, copy);
        assert_eq!((run.function, rax), (EEXIT, ErrorCode::PageAttributesMismatch as u64));
    }
}

/// "EMODT", "EENTER": a page becomes a TCS, is entered only once that was accepted, and not any more once it is trimmed.
#[test]
fn a_new_tcs_can_be_entered() {
    for e in Enclave::both() {
        // TCS, two SSA frames, a data page.
        let (tcs, ssa, data) = (FREE, FREE + 0x1000, FREE + 0x3000);
        e.memory().augment(FREE, 4).unwrap();
        (0..4).for_each(|i| e.accepts(FREE + i * 0x1000, R | W | PENDING | reg()));
        for (i, chunk) in tcs_page(ssa, data).chunks(8).enumerate() {
            let value = u64::from_le_bytes(chunk.try_into().unwrap());
            if value != 0 {
                e.enter(STORE, e.base + tcs + 8 * i as u64, value);
            }
        }
        let enter = || e.enter_at(tcs, EENTER, [READ, e.base + DATA, 0, 0, 0]);
        assert_eq!((enter().0.function, enter().0.exception_vector), (EENTER, 14), "a regular page");
        e.memory().modify_type(tcs, 1, PageType::Tcs).unwrap();
        assert_eq!(enter().0.exception_vector, 14, "not accepted");
        e.accepts(tcs, MODIFIED | PageType::Tcs.into());
        for _ in 0..3 {
            assert_eq!(enter().0.function, EEXIT);
        }
        // An exception and back, by its own frames.
        let (run, ..) = e.enter_at(tcs, EENTER, [READ, e.base + FREE + 0x8000, 0, 0, 0]);
        assert_eq!((run.function, run.exception_vector), (ERESUME, 14));
        e.memory().augment(FREE + 0x8000, 1).unwrap();
        e.accepts(FREE + 0x8000, R | W | PENDING | reg());
        assert_eq!(e.enter_at(tcs, ERESUME, [0; 5]).0.function, EEXIT);
        e.memory().modify_type(tcs, 1, PageType::Trim).unwrap();
        assert_eq!((enter().0.function, enter().0.exception_vector), (EENTER, 14), "trimmed");
    }
}

/// "EACCEPT", TCS: one that is not sound is #GP.
#[test]
fn a_page_that_is_no_tcs_does_not_become_one() {
    for e in Enclave::both() {
        e.memory().augment(FREE, 1).unwrap();
        e.accepts(FREE, R | W | PENDING | reg());
        // NSSA = 0.
        e.memory().modify_type(FREE, 1, PageType::Tcs).unwrap();
        assert_eq!(e.accept(FREE, MODIFIED | PageType::Tcs.into()), Err(13));
    }
}

/// "ETRACK": the kernel's side gets every thread out that is inside, so that what it changed can be accepted.
#[test]
fn threads_inside_are_interrupted_to_track() {
    for e in Enclave::both() {
        let (tcs, ssa, data) = (FREE, FREE + 0x1000, FREE + 0x3000);
        e.memory().augment(FREE, 5).unwrap();
        (0..5).for_each(|i| e.accepts(FREE + i * 0x1000, R | W | PENDING | reg()));
        for (i, chunk) in tcs_page(ssa, data).chunks(8).enumerate() {
            e.enter(STORE, e.base + tcs + 8 * i as u64, u64::from_le_bytes(chunk.try_into().unwrap()));
        }
        e.memory().modify_type(tcs, 1, PageType::Tcs).unwrap();
        e.accepts(tcs, MODIFIED | PageType::Tcs.into());
        let words = [const { AtomicU64::new(0) }; 2];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                e.initialized.prepare_thread().unwrap();
                let (run, ..) = e.enter_at(tcs, EENTER, [SPIN, words.as_ptr() as u64, 0, 0, 0]);
                assert_eq!(run.function, EEXIT);
            });
            while words[0].load(Ordering::SeqCst) == 0 {
                std::hint::spin_loop();
            }
            for _ in 0..50 {
                e.memory().modify_type(FREE + 0x4000, 1, PageType::Trim).unwrap();
                e.accepts(FREE + 0x4000, MODIFIED | PageType::Trim.into());
                e.memory().remove(FREE + 0x4000, 1).unwrap();
                e.memory().augment(FREE + 0x4000, 1).unwrap();
                e.accepts(FREE + 0x4000, R | W | PENDING | reg());
            }
            words[1].store(1, Ordering::SeqCst);
        });
    }
}

/// A host that takes the SSA frames away: EENTER and ERESUME fault, and the process lives.
#[test]
fn ssa_frames_may_go() {
    for e in Enclave::both() {
        let (run, ..) = e.enter(READ, e.base + FREE, 0);
        assert_eq!(run.exception_vector, 14, "CSSA is 1 now");
        e.memory().modify_type(SSA, 1, PageType::Trim).unwrap();
        let (run, ..) = e.enter_at(TCS, ERESUME, [0; 5]);
        assert_eq!((run.function, run.exception_vector), (ERESUME, 14));
        e.memory().modify_type(SSA + 0x1000, 1, PageType::Trim).unwrap();
        let (run, ..) = e.enter(READ, e.base + DATA, 0);
        assert_eq!((run.function, run.exception_vector), (EENTER, 14));
    }
}

/// The same while a thread is inside: its asynchronous exit has nowhere to go, and the process lives.
#[test]
fn ssa_frames_may_go_while_a_thread_is_inside() {
    for e in Enclave::both() {
        let words = [const { AtomicU64::new(0) }; 2];
        std::thread::scope(|scope| {
            let spinner = scope.spawn(|| {
                e.initialized.prepare_thread().unwrap();
                e.enter(SPIN, words.as_ptr() as u64, 0).0
            });
            while words[0].load(Ordering::SeqCst) == 0 {
                std::hint::spin_loop();
            }
            // This interrupts the thread; ERESUME finds no frame.
            e.memory().modify_type(SSA, 1, PageType::Trim).unwrap();
            let until = Instant::now() + Duration::from_secs(10);
            while !spinner.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            words[1].store(1, Ordering::SeqCst);
            let run = spinner.join().unwrap();
            assert_eq!((run.function, run.exception_vector), (ERESUME, 14));
        });
    }
}

/// A processor without SGX2 has none of it (SDM vol. 3D, "ENCLU": unsupported leaf functions are #GP).
#[test]
fn a_machine_without_sgx2_has_no_dynamic_memory() {
    let platform = Emulator::on(machine_with(|c| c.sgx2 = false));
    assert!(!platform.has_dynamic_memory());
    assert!(Emulator::on(machine()).has_dynamic_memory());
}

/// Ranges that are not the enclave's are refused, and change nothing.
#[test]
fn ranges_outside_elrange_are_refused() {
    let e = Enclave::new(true);
    let memory = e.memory();
    for (offset, count) in [(SIZE, 1), (SIZE - 0x1000, 2), (u64::MAX - 4095, 2)] {
        let results = [
            memory.augment(offset, count),
            memory.restrict(offset, count, R),
            memory.modify_type(offset, count, PageType::Trim),
        ];
        for result in results {
            assert!(matches!(result, Err(PlatformError::Fault { .. })), "{offset:#x} {result:?}");
        }
        assert!(memory.remove(offset, count).is_err());
    }
}
