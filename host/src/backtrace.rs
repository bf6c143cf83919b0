//! Where a debug image was when it ended by a fault: functions by name, and who called them.
//!
//! Only debug images: no other's memory can be read from outside (SDM vol. 3D, 34.4.3), and only their files have the
//! names of functions. The thread's registers are taken from its SSA frame, or from where the runtime saved them at a
//! Linux call; its callers are found by the program's unwind tables (`.eh_frame`), as exceptions would find them.
//! Memory is read through `/proc/self/mem`, which also leads to EDBGRD on SGX hardware. All of it is for people:
//! whatever does not make sense ends the list.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use enclos::abi::thread as region;
use enclos::contract::End;
use enclos::image::{INFO_MAGIC, ImageInfo};
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, LittleEndian, ParsedEhFrameHdr, Pointer, Register,
    RegisterRule, UnwindContext, UnwindSection as _, X86_64,
};

/// Callers shown at most.
const MAX_FRAMES: usize = 64;
/// Largest program whose unwind tables are read, in bytes.
const MAX_PROGRAM: u64 = 1 << 30;
/// Vector of a report that no exception is behind: the program ended itself by a Linux call.
const ABORT: u32 = 0x100;

/// A function in an image.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Symbol {
    /// Offset of its first byte from the ELRANGE base.
    pub(crate) offset: u64,
    size: u64,
    name: String,
}

/// Adds to the report of a thread's fault where it was.
pub(crate) fn explain(end: &mut End, symbols: &[Symbol], base: u64, tcs: u64) {
    let End::Faulted { vector, text, .. } = end else { return };
    for (number, (_, line)) in callers(symbols, base, tcs, *vector == ABORT).iter().enumerate() {
        let _ = write!(text, "\n  {number:2}: {line}");
    }
}

/// Who panicked, of a thread that is in the Linux call by which it says so. What the standard library does about a panic
/// and before `main` is left out, as it does itself.
pub(crate) fn of_panic(symbols: &[Symbol], base: u64, tcs: u64) -> String {
    let frames = callers(symbols, base, tcs, true);
    let at = |mark: &str| frames.iter().position(|(name, _)| name.contains(mark));
    let first = at("__rust_end_short_backtrace").map_or(0, |i| i + 1);
    let end = at("__rust_begin_short_backtrace").filter(|i| *i > first).unwrap_or(frames.len());
    let mut text = String::new();
    for (number, (_, line)) in frames[first..end].iter().enumerate() {
        let _ = writeln!(text, "  {number:2}: {line}");
    }
    text
}

/// Is this what Rust's standard library says of a panic?
pub(crate) fn is_panic(message: &[u8]) -> bool {
    let message = message.strip_prefix(b"\n").unwrap_or(message);
    let first = message.split(|b| *b == b'\n').next().unwrap_or_default();
    first.starts_with(b"thread '") && first.windows(13).any(|w| w == b" panicked at ")
}

/// Where a thread is and who called it, innermost first: names as far as known, and lines for people.
fn callers(symbols: &[Symbol], base: u64, tcs: u64, by_call: bool) -> Vec<(String, String)> {
    let data = tcs - region::TCS + region::DATA;
    let found = Memory::open().and_then(|memory| frames(&memory, base, data, by_call)).unwrap_or_default();
    let describe = |(number, address): (usize, u64)| {
        // A return address may lie behind its function's end.
        let within = address - u64::from(number != 0);
        match within.checked_sub(base).and_then(|offset| symbol(symbols, offset)) {
            Some(s) => {
                let name = format!("{:#}", rustc_demangle::demangle(&s.name));
                let line = format!("{name} + {:#x}", address - base - s.offset);
                (name, line)
            }
            None => (String::new(), format!("{address:#x}")),
        }
    };
    found.into_iter().enumerate().map(describe).collect()
}

/// The function at an offset. The list is sorted.
fn symbol(symbols: &[Symbol], offset: u64) -> Option<&Symbol> {
    let after = symbols.partition_point(|s| s.offset <= offset);
    symbols[..after].iter().rev().take(8).find(|s| offset - s.offset < s.size)
}

/// This process's memory, the enclave's included.
struct Memory(File);

impl Memory {
    fn open() -> Option<Self> {
        File::open("/proc/self/mem").ok().map(Self)
    }

    fn words<const N: usize>(&self, at: u64) -> Option<[u64; N]> {
        let bytes = self.bytes(at, 8 * N)?;
        let (words, _) = bytes.as_chunks::<8>();
        Some(std::array::from_fn(|i| u64::from_le_bytes(words[i])))
    }

    fn bytes(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    }
}

/// Registers by their DWARF numbers (System V ABI for x86-64, figure 3.36); 16 is the address of the instruction.
type Registers = [Option<u64>; 17];

/// The thread's registers when it left the program.
fn registers(memory: &Memory, data: u64, by_call: bool) -> Option<Registers> {
    let [ax, cx, dx, bx, sp, bp, si, di, r8, r9, r10, r11, r12, r13, r14, r15, ip] = if by_call {
        // What `enclos_syscall` pushes first on the runtime's stack.
        let top = data - region::DATA + region::STACK_END;
        let [r15, r14, r13, r12, bp, bx, r10, r9, r8, dx, si, di, ax, ip, sp, _flags] =
            memory.words(top - 16 * 8)?;
        [ax, ip, dx, bx, sp, bp, si, di, r8, r9, r10, 0, r12, r13, r14, r15, ip]
    } else {
        // GPRSGX, at the end of the first SSA frame (SDM vol. 3D, 34.9.1.1).
        let ssa_end = data - region::DATA + region::SSA + u64::from(region::SSA_FRAME_PAGES) * 4096;
        let [g @ .., _flags, ip] = memory.words::<18>(ssa_end - 184)?;
        let [ax, cx, dx, bx, sp, bp, si, di, r8, r9, r10, r11, r12, r13, r14, r15] = g;
        [ax, cx, dx, bx, sp, bp, si, di, r8, r9, r10, r11, r12, r13, r14, r15, ip]
    };
    Some([ax, dx, cx, bx, si, di, bp, sp, r8, r9, r10, r11, r12, r13, r14, r15, ip].map(Some))
}

/// Addresses of the instructions at which the thread and its callers are, innermost first.
fn frames(memory: &Memory, base: u64, data: u64, by_call: bool) -> Option<Vec<u64>> {
    let [_index, _data, info_offset] = memory.words(data)?;
    let info: [u64; size_of::<ImageInfo>() / 8] = memory.words(base.checked_add(info_offset)?)?;
    let (magic, app, app_end, eh_frame_hdr) = (info[0], info[5], info[6], info[15]);
    if magic != INFO_MAGIC || app_end.checked_sub(app)? > MAX_PROGRAM {
        return None;
    }
    let mut now = registers(memory, data, by_call)?;
    let mut found = vec![now[16]?];
    let hdr_at = eh_frame_hdr.checked_sub(app);
    let Some(hdr_at) = hdr_at.filter(|_| eh_frame_hdr != 0) else { return Some(found) };
    let program = memory.bytes(base + app, (app_end - app) as usize)?;
    let tables = Tables::find(&program, hdr_at, base + app);
    if let Some(tables) = &tables
        && tables.caller(memory, &now, true).is_none()
        && let Some(site) = tables.site_of_stub(memory, &program, &now)
    {
        now[16] = Some(site);
        found = vec![site];
    }
    while let Some(caller) = tables.as_ref().and_then(|t| t.caller(memory, &now, found.len() == 1)) {
        let (Some(address), Some(stack)) = (caller[16], caller[7]) else { break };
        if address == 0 || found.len() > MAX_FRAMES || now[7].is_none_or(|s| stack <= s) {
            break;
        }
        found.push(address);
        now = caller;
    }
    Some(found)
}

/// The program's unwind tables. Addresses in them count from the program's start.
struct Tables<'a> {
    header: ParsedEhFrameHdr<gimli::EndianSlice<'a, LittleEndian>>,
    frames: EhFrame<gimli::EndianSlice<'a, LittleEndian>>,
    bases: BaseAddresses,
    program_at: u64,
}

impl<'a> Tables<'a> {
    fn find(program: &'a [u8], header_at: u64, program_at: u64) -> Option<Self> {
        let from = |at: u64| program.get(usize::try_from(at).ok()?..);
        let bases = BaseAddresses::default().set_eh_frame_hdr(header_at);
        let header = EhFrameHdr::new(from(header_at)?, LittleEndian).parse(&bases, 8).ok()?;
        let Pointer::Direct(frames_at) = header.eh_frame_ptr() else { return None };
        let bases = bases.set_eh_frame(frames_at);
        Some(Self { header, frames: EhFrame::new(from(frames_at)?, LittleEndian), bases, program_at })
    }

    /// Where a thread that is in the stub of a rewritten Linux call goes on: the packer puts stubs behind the program,
    /// without unwind tables, and each ends with a jump back.
    fn site_of_stub(&self, memory: &Memory, program: &[u8], now: &Registers) -> Option<u64> {
        /// Longest stub's rest: some instructions that had to make room, and the jump.
        const LEN: usize = 48;
        const JMP: u8 = 0xe9;
        let at = usize::try_from(now[16]?.checked_sub(self.program_at)?).ok()?;
        let rest = program.get(at..)?;
        let jumps = rest.windows(5).take(LEN).enumerate().filter(|(_, bytes)| bytes[0] == JMP);
        jumps.into_iter().find_map(|(i, bytes)| {
            let distance = i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
            let to = now[16]?.checked_add(i as u64 + 5)?.checked_add_signed(i64::from(distance))?;
            let mut there = *now;
            there[16] = Some(to);
            self.caller(memory, &there, true).map(|_| to)
        })
    }

    /// The registers in the caller of a function.
    fn caller(&self, memory: &Memory, now: &Registers, innermost: bool) -> Option<Registers> {
        // A return address may belong to the next function already.
        let address = now[16]?.checked_sub(self.program_at)?.checked_sub(u64::from(!innermost))?;
        let mut context = UnwindContext::new();
        let cie = EhFrame::cie_from_offset;
        let table = self.header.table()?;
        let row =
            table.unwind_info_for_address(&self.frames, &self.bases, &mut context, address, cie).ok()?;
        let CfaRule::RegisterAndOffset { register, offset } = *row.cfa() else { return None };
        let cfa = (*now.get(usize::from(register.0))?)?.checked_add_signed(offset)?;
        let mut caller = *now;
        for (number, value) in caller.iter_mut().enumerate() {
            let register = Register(number as u16);
            *value = match row.register(register) {
                Some(RegisterRule::Offset(n)) => memory.words(cfa.wrapping_add_signed(n)).map(|[w]| w),
                Some(RegisterRule::ValOffset(n)) => Some(cfa.wrapping_add_signed(n)),
                Some(RegisterRule::Register(other)) => now.get(usize::from(other.0)).copied().flatten(),
                Some(RegisterRule::SameValue) => *value,
                // The ABI preserves RBX, RBP and R12 to R15 (figure 3.4).
                None if matches!(number, 3 | 6 | 12..=15) => *value,
                _ => None,
            };
        }
        caller[usize::from(X86_64::RSP.0)] = Some(cfa);
        Some(caller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> Vec<Symbol> {
        let symbol = |offset, size, name: &str| Symbol { offset, size, name: name.to_owned() };
        vec![symbol(0x100, 0x80, "outer"), symbol(0x120, 0x10, "inner"), symbol(0x200, 1, "last")]
    }

    #[test]
    fn the_innermost_function_is_found() {
        let name = |offset| symbol(&list(), offset).map(|s| s.name.clone());
        assert_eq!(name(0xff), None);
        assert_eq!(name(0x100).as_deref(), Some("outer"));
        assert_eq!(name(0x125).as_deref(), Some("inner"));
        assert_eq!(name(0x140).as_deref(), Some("outer"));
        assert_eq!(name(0x180), None);
        assert_eq!(name(0x200).as_deref(), Some("last"));
        assert_eq!(name(0x201), None);
    }

    #[test]
    fn panics_are_told_by_what_is_said_of_them() {
        assert!(is_panic(b"\nthread 'main' (1) panicked at src/main.rs:2:5:\nboo\n"));
        assert!(is_panic(b"thread 'a b' panicked at x"));
        for other in [&b""[..], b"\n", b"thread 'main'\n panicked at ", b"note: a thread 'x' panicked at "] {
            assert!(!is_panic(other));
        }
    }

    #[test]
    fn nonsense_is_left_out() {
        let mut end = End::Faulted { vector: 14, thread: 0, text: "page fault".to_owned() };
        let before = end.clone();
        explain(&mut end, &list(), 0x1000_0000, 0x2000_0000);
        assert_eq!(end, before);
    }
}
