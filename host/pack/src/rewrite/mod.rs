//! Turns `syscall` and `cpuid` instructions of an application into jumps to the runtime.
//!
//! A site becomes `jmp rel32` to a *stub* behind the application's last page. The stub holds the instructions that had
//! to make room, puts the return address into a register that the original instruction overwrites anyway, and jumps
//! into the runtime. Nothing is pushed: the red zone below the stack pointer belongs to the application.
//!
//! ```text
//! syscall:  [moved instructions before] lea ret(%rip),%rcx; jmp enclos_syscall; ret: [moved after] jmp back
//! cpuid:    [moved instructions before] lea ret(%rip),%rdx; jmp enclos_cpuid;   ret: [moved after] jmp back
//! ```
//! `syscall` itself leaves its return address in RCX. `cpuid` takes EAX and ECX and overwrites EAX, EBX, ECX, EDX. The
//! runtime comes back by an indirect jump with everything else as the instruction would leave it.
//!
//! A site has two bytes and the jump five, so something beside it must move:
//! - form A: the `mov $number,%eax` right before it moves;
//! - form B: instructions after it move;
//! - form C: instructions before it move (or on both sides).
//!
//! No instruction moves that anything could jump to ([`targets`] over-approximates them), and only code whose
//! extent is known (by unwind tables or symbols) is touched: what merely looks like an instruction may be data. Bytes
//! that a jump does not need stay what they were, so that even a missed target at the site itself goes on to work.
//! A `syscall` that cannot be rewritten stays and traps. A `cpuid` that cannot is replaced by UD2 and listed, because
//! CPUID is illegal in an enclave, and would go unnoticed on a platform that cannot make it fault.

mod targets;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, Decoder, DecoderOptions, FlowControl, Instruction,
    InstructionBlock, MemoryOperand, Mnemonic, OpKind, Register,
};
use serde::{Deserialize, Serialize};

use crate::elf::{Perm, Program};
use crate::{PAGE, rewrite::targets::Analysis};

/// What a site does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Syscall,
    Cpuid,
}

/// What became of an application's sites.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// `syscall` instructions.
    pub syscall: Forms,
    /// `cpuid` instructions.
    pub cpuid: Forms,
    /// Other instructions that are illegal in an enclave (SDM vol. 3D, 35.6.1; RDTSC and RDTSCP on SGX1 only), by
    /// mnemonic. They trap.
    pub illegal: BTreeMap<String, u64>,
}

/// Counts of one kind of site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forms {
    /// Rewritten; the `mov $number,%eax` before it moved.
    pub a: u64,
    /// Rewritten; instructions after it moved.
    pub b: u64,
    /// Rewritten; instructions before it moved.
    pub c: u64,
    /// Not rewritten: traps.
    pub trapping: u64,
    /// Seen in bytes that are not known to be code, and left alone; traps if it is executed.
    pub unproven: u64,
}

impl Forms {
    /// Sites that became jumps.
    pub fn rewritten(&self) -> u64 {
        self.a + self.b + self.c
    }

    /// All sites.
    pub fn total(&self) -> u64 {
        self.rewritten() + self.trapping + self.unproven
    }
}

/// What is to be done to a program.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What became of the sites.
    pub(crate) counts: Counts,
    /// Addresses of CPUID instructions that become UD2, ascending.
    pub(crate) traps: Vec<u64>,
    patches: Vec<Patch>,
}

/// One site that becomes a jump.
#[derive(Debug)]
struct Patch {
    kind: Kind,
    window: Window,
}

/// The instructions that a site and what moves with it occupy.
#[derive(Debug)]
struct Window {
    form: Form,
    before: Vec<Instruction>,
    site: Instruction,
    after: Vec<Instruction>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    A,
    B,
    C,
}

/// Instructions are decoded at their address plus this, so that addresses below the program (the runtime's) can be
/// expressed.
const BIAS: u64 = 1 << 32;
/// Bytes of `jmp rel32`.
const JUMP: u64 = 5;
/// How many instructions before a site can be remembered: enough for five bytes.
const MEMORY: usize = 5;

/// Addresses in the runtime, counted from the application's address 0 (so, negative ones in two's complement).
#[derive(Clone, Copy, Debug)]
pub(crate) struct RuntimeEntries {
    pub(crate) syscall: u64,
    pub(crate) cpuid: u64,
}

impl Plan {
    /// Finds the sites of a program and decides what becomes of each.
    pub(crate) fn new(program: &Program) -> Self {
        let analysis = Analysis::new(program);
        let mut plan = Self { counts: analysis.counts(), traps: Vec::new(), patches: Vec::new() };
        let mut free_from = 0;
        for site in &analysis.sites {
            let forms = match site.kind {
                Kind::Syscall => &mut plan.counts.syscall,
                Kind::Cpuid => &mut plan.counts.cpuid,
            };
            if !site.proven {
                forms.unproven += 1;
                continue;
            }
            match choose_window(program, &analysis, site, free_from) {
                Some(window) => {
                    match window.form {
                        Form::A => forms.a += 1,
                        Form::B => forms.b += 1,
                        Form::C => forms.c += 1,
                    }
                    free_from = window.end();
                    plan.patches.push(Patch { kind: site.kind, window });
                }
                None => {
                    forms.trapping += 1;
                    if site.kind == Kind::Cpuid {
                        plan.traps.push(site.instruction.ip() - BIAS);
                    }
                }
            }
        }
        plan
    }

    /// Changes the program, and appends the stubs behind its last page.
    pub(crate) fn apply(&self, program: &mut Program, runtime: RuntimeEntries) -> Result<(), RewriteError> {
        for at in &self.traps {
            patch(program, *at, &UD2);
        }
        let start = program.end();
        let mut stubs = Vec::new();
        for Patch { kind, window } in &self.patches {
            let stub_at = start + stubs.len() as u64;
            let target = match kind {
                Kind::Syscall => runtime.syscall,
                Kind::Cpuid => runtime.cpuid,
            };
            stubs.extend(window.stub(*kind, stub_at, target)?);
            let at = window.start();
            let mut bytes = [0xe9, 0, 0, 0, 0];
            bytes[1..].copy_from_slice(&displacement(at + JUMP, stub_at)?.to_le_bytes());
            patch(program, at, &bytes);
            // What the jump cut in two must not be reached any more; say so loudly if it is.
            let rest = window.instructions().map(|i| i.ip() - BIAS).find(|ip| *ip >= at + JUMP);
            let rest = rest.unwrap_or(window.end());
            patch(program, at + JUMP, &vec![INT3; (rest - at - JUMP) as usize]);
        }
        if !stubs.is_empty() {
            let pages = stubs.len().div_ceil(PAGE as usize);
            stubs.resize(pages * PAGE as usize, INT3);
            program.memory.extend(stubs);
            program.perms.extend(std::iter::repeat_n(Some(Perm { r: true, w: false, x: true }), pages));
        }
        Ok(())
    }
}

const UD2: [u8; 2] = [0x0f, 0x0b];
const INT3: u8 = 0xcc;

impl Window {
    fn instructions(&self) -> impl Iterator<Item = &Instruction> {
        self.before.iter().chain([&self.site]).chain(&self.after)
    }

    /// Address of the first instruction.
    fn start(&self) -> u64 {
        self.before.first().unwrap_or(&self.site).ip() - BIAS
    }

    /// Address after the last instruction.
    fn end(&self) -> u64 {
        self.after.last().unwrap_or(&self.site).next_ip() - BIAS
    }

    fn len(&self) -> u64 {
        self.end() - self.start()
    }

    /// The stub for address `at`.
    fn stub(&self, kind: Kind, at: u64, target: u64) -> Result<Vec<u8>, RewriteError> {
        let failed = |message: String| RewriteError { address: self.start(), message };
        // An address that no instruction has, for the jump back.
        const BACK: u64 = u64::MAX - 15;
        let mut back = Instruction::with_branch(Code::Jmp_rel32_64, BIAS + self.end())
            .map_err(|e| failed(e.to_string()))?;
        back.set_ip(BACK);
        let register = match kind {
            Kind::Syscall => Register::RCX,
            Kind::Cpuid => Register::RDX,
        };
        let resume = self.after.first().map_or(BACK, Instruction::ip);
        let operand = MemoryOperand::with_base_displ(Register::RIP, resume.cast_signed());
        let lea =
            Instruction::with2(Code::Lea_r64_m, register, operand).map_err(|e| failed(e.to_string()))?;
        let jump = Instruction::with_branch(Code::Jmp_rel32_64, BIAS.wrapping_add(target))
            .map_err(|e| failed(e.to_string()))?;
        let mut code = self.before.clone();
        code.extend([lea, jump]);
        code.extend_from_slice(&self.after);
        code.push(back);
        let block = InstructionBlock::new(&code, BIAS + at);
        let encoded =
            BlockEncoder::encode(64, block, BlockEncoderOptions::NONE).map_err(|e| failed(e.to_string()))?;
        Ok(encoded.code_buffer)
    }
}

/// Finds the least intrusive way to make room for a jump at a site, if there is one.
fn choose_window(
    program: &Program,
    analysis: &Analysis,
    site: &targets::Site,
    free_from: u64,
) -> Option<Window> {
    let before = &site.before;
    let after = following(program, site);
    let make = |form, count_before: usize, count_after: usize| {
        let window = Window {
            form,
            before: before[before.len().checked_sub(count_before)?..].to_vec(),
            site: site.instruction,
            after: after.get(..count_after)?.to_vec(),
        };
        is_sound(analysis, &window, free_from).then_some(window)
    };
    if before.last().is_some_and(is_mov_eax_immediate)
        && let Some(window) = make(Form::A, 1, 0)
    {
        return Some(window);
    }
    (1..=after.len())
        .find_map(|n| make(Form::B, 0, n))
        .or_else(|| (1..=before.len()).find_map(|n| make(Form::C, n, 0)))
        .or_else(|| (1..=before.len()).find_map(|b| (1..=after.len()).find_map(|a| make(Form::C, b, a))))
}

/// The instructions after a site that could move: up to the first that cannot.
fn following(program: &Program, site: &targets::Site) -> Vec<Instruction> {
    let from = site.instruction.next_ip() - BIAS;
    let Some(bytes) = program.memory.get(from as usize..site.region_end as usize) else { return Vec::new() };
    let mut found: Vec<Instruction> = Vec::new();
    let mut room = 2;
    for instruction in Decoder::with_ip(64, bytes, BIAS + from, DecoderOptions::NONE).iter() {
        let unreachable = found.last().is_some_and(|i| !falls_through(i));
        let movable = match instruction.flow_control() {
            _ if instruction.is_invalid() || site_kind(&instruction).is_some() => false,
            // Behind a return or jump only padding may go: other code there is reached in ways not understood.
            _ if unreachable => matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3),
            FlowControl::Next | FlowControl::Return | FlowControl::IndirectBranch => true,
            FlowControl::Exception | FlowControl::Interrupt => {
                matches!(instruction.mnemonic(), Mnemonic::Ud2 | Mnemonic::Int3)
            }
            FlowControl::UnconditionalBranch => instruction.is_jmp_short_or_near(),
            FlowControl::ConditionalBranch => instruction.is_jcc_short_or_near(),
            // The return address of a call must stay where unwind tables know it.
            FlowControl::Call | FlowControl::IndirectCall | FlowControl::XbeginXabortXend => false,
        };
        if !movable {
            break;
        }
        room += instruction.len() as u64;
        found.push(instruction);
        if room >= JUMP {
            break;
        }
    }
    found
}

fn is_sound(analysis: &Analysis, window: &Window, free_from: u64) -> bool {
    let (start, end) = (window.start(), window.end());
    window.len() >= JUMP
        && start >= free_from
        && window.before.iter().all(|i| i.flow_control() == FlowControl::Next && site_kind(i).is_none())
        && !(start + 1..end).any(|at| analysis.is_target(at))
        // Whether it can be encoded elsewhere does not depend on where the stub and the runtime will be.
        && window.stub(Kind::Syscall, analysis.end, 0).is_ok()
}

fn is_mov_eax_immediate(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Code::Mov_r32_imm32 | Code::Mov_rm64_imm32 | Code::Mov_rm32_imm32)
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().full_register() == Register::RAX
}

fn falls_through(instruction: &Instruction) -> bool {
    matches!(instruction.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch)
}

fn site_kind(instruction: &Instruction) -> Option<Kind> {
    match instruction.code() {
        Code::Syscall => Some(Kind::Syscall),
        Code::Cpuid => Some(Kind::Cpuid),
        _ => None,
    }
}

fn patch(program: &mut Program, at: u64, bytes: &[u8]) {
    program.memory[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
}

fn displacement(from: u64, to: u64) -> Result<i32, RewriteError> {
    i32::try_from(to.wrapping_sub(from).cast_signed())
        .map_err(|_| RewriteError { address: from, message: "the stubs are out of reach".into() })
}

/// A site could not be encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot rewrite the code at {address:#x} of the application: {message}; make its static data smaller"
)]
pub struct RewriteError {
    /// Address in the application.
    pub address: u64,
    /// What the encoder said.
    pub message: String,
}
