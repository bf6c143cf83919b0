//! Which addresses of a program's code something may jump to, and where its sites are. Over-approximates: an address
//! wrongly taken for a target costs a rewriting at most, a missed one would break the program.
//!
//! Targets are: starts of functions (unwind tables, symbols) and every other symbol; targets of direct branches;
//! addresses in code that an instruction forms relative to RIP; addresses that relocations write; landing pads of
//! exceptions; ENDBR64; and entries of jump tables. A jump table is taken to begin wherever an instruction or
//! relocation points into data, and to go on for as long as its 32-bit entries, added to its own address or to an
//! address in code that the same function forms, lead to an instruction.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use gimli::{
    BaseAddresses, CieOrFde, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, Pointer, Reader as _,
    UnwindSection as _,
};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};

use super::{BIAS, Counts, Kind, MEMORY, site_kind};
use crate::elf::Program;

/// What is known about a program's code.
pub(super) struct Analysis {
    /// The sites, ascending.
    pub(super) sites: Vec<Site>,
    /// Address after the program's last page.
    pub(super) end: u64,
    illegal: BTreeMap<String, u64>,
    targets: Bitmap,
    /// Where instructions begin, and every byte that is not known to be code.
    beginnings: Bitmap,
}

/// One `syscall` or `cpuid`.
pub(super) struct Site {
    pub(super) kind: Kind,
    pub(super) instruction: Instruction,
    /// The instructions decoded right before it, in order.
    pub(super) before: Vec<Instruction>,
    /// Where the function after this one begins.
    pub(super) region_end: u64,
    /// Is it known to be an instruction?
    pub(super) proven: bool,
}

impl Analysis {
    pub(super) fn new(program: &Program) -> Self {
        // Sorted and disjoint.
        let extent = match &program.code[..] {
            [first, .., last] => first.start..last.end,
            [only] => only.clone(),
            [] => 0..0,
        };
        let mut this = Self {
            sites: Vec::new(),
            end: program.end(),
            illegal: BTreeMap::new(),
            targets: Bitmap::new(extent.clone()),
            beginnings: Bitmap::new(extent),
        };
        let functions = this.functions(program);
        this.targets.insert(program.entry);
        for symbol in &program.symbols {
            this.targets.insert(symbol.address);
        }
        let mut tables = Vec::new();
        for code in &program.code {
            let starts = functions.range(code.start..code.end).map(|(start, end)| (*start, *end));
            let mut regions: Vec<(u64, u64)> = starts.collect();
            if regions.first().is_none_or(|(start, _)| *start != code.start) {
                regions.insert(0, (code.start, code.start));
            }
            for (i, (start, known_end)) in regions.iter().enumerate() {
                let next = regions.get(i + 1).map_or(code.end, |(next, _)| *next);
                this.region(program, *start, *known_end, next, &mut tables);
            }
        }
        // Only now is it known where instructions begin.
        for (table, base) in tables {
            this.jump_table(program, table, base);
        }
        for address in &program.relocated {
            if program.is_executable(*address) {
                this.targets.insert(*address);
            } else {
                this.jump_table(program, *address, *address);
            }
        }
        this
    }

    pub(super) fn counts(&self) -> Counts {
        Counts { illegal: self.illegal.clone(), ..Counts::default() }
    }

    pub(super) fn is_target(&self, address: u64) -> bool {
        self.targets.contains(address)
    }

    /// Decodes one function, or the bytes between two. Adds what may be jump tables, with the address that their
    /// entries may be relative to.
    fn region(
        &mut self,
        program: &Program,
        start: u64,
        known_end: u64,
        end: u64,
        found: &mut Vec<(u64, u64)>,
    ) {
        let Some(bytes) = program.memory.get(start as usize..end as usize) else { return };
        let mut decoder = Decoder::with_ip(64, bytes, BIAS + start, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        let mut before: Vec<Instruction> = Vec::new();
        let (mut sound, mut proven_to) = (true, start);
        let mut jumps_indirectly = false;
        let (mut bases, mut tables) = (BTreeSet::new(), BTreeSet::new());
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if instruction.is_invalid() {
                sound = false;
                before.clear();
                continue;
            }
            let at = instruction.ip() - BIAS;
            if sound && at < known_end {
                self.beginnings.insert(at);
                proven_to = instruction.next_ip() - BIAS;
            }
            match instruction.flow_control() {
                FlowControl::IndirectBranch => jumps_indirectly = true,
                FlowControl::Next => {}
                _ if instruction.op0_kind() == OpKind::NearBranch64 => {
                    self.targets.insert(instruction.near_branch_target().wrapping_sub(BIAS));
                }
                _ => {}
            }
            if instruction.is_ip_rel_memory_operand() {
                let address = instruction.ip_rel_memory_address().wrapping_sub(BIAS);
                if program.is_executable(address) {
                    self.targets.insert(address);
                    bases.insert(address);
                } else if instruction.mnemonic() == Mnemonic::Lea {
                    tables.insert(address);
                }
            }
            if instruction.code() == Code::Endbr64 {
                self.targets.insert(at);
            }
            if let Some(kind) = site_kind(&instruction) {
                let proven = sound && at < known_end;
                self.sites.push(Site { kind, instruction, before: before.clone(), region_end: end, proven });
            } else if sound && at < known_end && is_illegal(&instruction) {
                let name = format!("{:?}", instruction.mnemonic()).to_lowercase();
                *self.illegal.entry(name).or_default() += 1;
            }
            if before.len() == MEMORY {
                before.remove(0);
            }
            before.push(instruction);
        }
        (proven_to..end).for_each(|at| self.beginnings.insert(at));
        for table in tables {
            found.push((table, table));
            if jumps_indirectly {
                found.extend(bases.iter().map(|base| (table, *base)));
            }
        }
    }

    /// Takes what stands at `table` for a jump table with entries relative to `base`, as far as it makes sense.
    fn jump_table(&mut self, program: &Program, table: u64, base: u64) {
        for at in (table..).step_by(4) {
            let Some(entry) = program.bytes(at) else { return };
            let target = base.wrapping_add_signed(i64::from(i32::from_le_bytes(entry)));
            if !self.beginnings.contains(target) {
                return;
            }
            self.targets.insert(target);
        }
    }

    /// Functions of known extent: start and end. Marks their starts, and landing pads in them, as targets.
    fn functions(&mut self, program: &Program) -> BTreeMap<u64, u64> {
        let mut functions: BTreeMap<u64, u64> = BTreeMap::new();
        for symbol in program.symbols.iter().filter(|s| s.is_function && s.size != 0) {
            let end = functions.entry(symbol.address).or_default();
            *end = (*end).max(symbol.address.saturating_add(symbol.size));
        }
        // A function is proven only if all that can enter it is known, and landing pads are in the unwind tables: when
        // these cannot be read, nothing is proven.
        if self.unwind_tables(program, &mut functions).is_err() {
            functions.clear();
        }
        for start in functions.keys() {
            self.targets.insert(*start);
        }
        functions
    }

    fn unwind_tables(
        &mut self,
        program: &Program,
        functions: &mut BTreeMap<u64, u64>,
    ) -> Result<(), Unreadable> {
        let memory = |from: u64| {
            let bytes = usize::try_from(from).ok().and_then(|from| program.memory.get(from..));
            bytes.map(|b| EndianSlice::new(b, LittleEndian)).ok_or(Unreadable)
        };
        let header = program.eh_frame_hdr.start;
        let at = match program.eh_frame {
            Some(at) => at,
            None if program.eh_frame_hdr.is_empty() => return Ok(()),
            None => {
                let bases = BaseAddresses::default().set_eh_frame_hdr(header);
                let parsed = EhFrameHdr::from(memory(header)?).parse(&bases, 8)?;
                direct(parsed.eh_frame_ptr())?
            }
        };
        let bases = BaseAddresses::default().set_eh_frame(at);
        let section = EhFrame::from(memory(at)?);
        let mut entries = section.entries(&bases);
        while let Some(entry) = entries.next()? {
            let CieOrFde::Fde(partial) = entry else { continue };
            let fde = partial.parse(EhFrame::cie_from_offset)?;
            // The entry of a signal trampoline begins one byte early, so that unwinders find it from a return address.
            let start = fde.initial_address().wrapping_add(u64::from(fde.is_signal_trampoline()));
            let end = fde.initial_address().saturating_add(fde.len());
            let known = functions.entry(start).or_default();
            *known = (*known).max(end);
            let pads = fde
                .lsda()
                .map_or(Ok(()), |lsda| self.landing_pads(memory(direct(lsda)?)?, fde.initial_address()));
            if pads.is_err() {
                functions.insert(start, start);
            }
        }
        Ok(())
    }

    /// Marks the landing pads of a language-specific data area (Itanium C++ ABI, exception handling tables).
    fn landing_pads(
        &mut self,
        mut lsda: EndianSlice<'_, LittleEndian>,
        function: u64,
    ) -> Result<(), Unreadable> {
        const OMIT: u8 = 0xff;
        if lsda.read_u8()? != OMIT {
            // Landing pads relative to something else than the function: no compiler for Linux does so.
            return Err(Unreadable);
        }
        if lsda.read_u8()? != OMIT {
            lsda.read_uleb128()?;
        }
        let encoding = lsda.read_u8()?;
        let len = lsda.read_uleb128()?;
        let mut table = lsda.split(usize::try_from(len).map_err(|_| Unreadable)?)?;
        while !table.is_empty() {
            let mut value = || match encoding & 0x0f {
                0x01 => table.read_uleb128().map_err(Unreadable::from),
                0x03 => Ok(u64::from(table.read_u32()?)),
                _ => Err(Unreadable),
            };
            let (_start, _len, pad) = (value()?, value()?, value()?);
            table.read_uleb128()?;
            if pad != 0 {
                self.targets.insert(function.wrapping_add(pad));
            }
        }
        Ok(())
    }
}

fn direct(pointer: Pointer) -> Result<u64, Unreadable> {
    match pointer {
        Pointer::Direct(at) => Ok(at),
        Pointer::Indirect(_) => Err(Unreadable),
    }
}

/// Is this an instruction, other than the sites, that faults in an enclave and not outside (SDM vol. 3D, 35.6.1)?
fn is_illegal(instruction: &Instruction) -> bool {
    use Mnemonic::{
        Enclu, Getsec, Iretd, Iretq, Lfs, Lgs, Lss, Rdpmc, Rdtsc, Rdtscp, Sgdt, Sidt, Sldt, Smsw, Str,
        Sysenter, Vmcall, Vmfunc,
    };
    matches!(
        instruction.mnemonic(),
        Rdtsc
            | Rdtscp
            | Rdpmc
            | Getsec
            | Sgdt
            | Sidt
            | Sldt
            | Str
            | Smsw
            | Vmcall
            | Vmfunc
            | Sysenter
            | Iretd
            | Iretq
            | Lfs
            | Lgs
            | Lss
            | Enclu
            | Mnemonic::In
            | Mnemonic::Out
            | Mnemonic::Insb
            | Mnemonic::Insd
            | Mnemonic::Outsb
            | Mnemonic::Outsd
            | Mnemonic::Int
            | Mnemonic::Retf
    ) || instruction.is_jmp_far_indirect()
        || instruction.is_call_far_indirect()
}

/// The unwind tables are damaged or use what no compiler for Linux emits.
struct Unreadable;

impl From<gimli::Error> for Unreadable {
    fn from(_: gimli::Error) -> Self {
        Self
    }
}

/// A set of addresses within an extent.
struct Bitmap {
    extent: Range<u64>,
    words: Vec<u64>,
}

impl Bitmap {
    fn new(extent: Range<u64>) -> Self {
        let len = extent.end.saturating_sub(extent.start);
        Self { words: vec![0; len.div_ceil(64) as usize], extent }
    }

    fn covers(&self, address: u64) -> bool {
        self.extent.contains(&address)
    }

    fn insert(&mut self, address: u64) {
        if self.covers(address) {
            let at = address - self.extent.start;
            self.words[(at / 64) as usize] |= 1 << (at % 64);
        }
    }

    fn contains(&self, address: u64) -> bool {
        let at = address.wrapping_sub(self.extent.start);
        self.covers(address) && self.words[(at / 64) as usize] >> (at % 64) & 1 != 0
    }
}
