//! A static position-independent Linux executable, as the pages it occupies once loaded, plus what packing and
//! rewriting must know about it. The file is the developer's own, and still nothing in it is trusted to be sound:
//! every offset is checked.

use std::ops::Range;

use object::LittleEndian as LE;
use object::elf;
use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _};
use object::read::{Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::PAGE;

/// Largest program taken, in bytes of memory: jumps between application and runtime are relative and signed 32-bit.
const MAX_MEMORY: u64 = 1 << 30;

/// Permissions of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Perm {
    pub(crate) r: bool,
    pub(crate) w: bool,
    pub(crate) x: bool,
}

/// A symbol with a place in the program.
#[derive(Clone, Debug)]
pub(crate) struct Symbol {
    pub(crate) name: String,
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) is_function: bool,
}

/// A program in memory. Addresses count from 0, its lowest page.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// Its pages, from address 0, zero-filled where the file has nothing.
    pub(crate) memory: Vec<u8>,
    /// Permissions, one entry a page; `None`: not part of any segment.
    pub(crate) perms: Vec<Option<Perm>>,
    /// Executable bytes that come from the file: by section if there are sections, else by segment.
    pub(crate) code: Vec<Range<u64>>,
    /// Entry point.
    pub(crate) entry: u64,
    /// Address of the program headers in memory.
    pub(crate) phdr: u64,
    /// Their number.
    pub(crate) phnum: u64,
    /// `.eh_frame_hdr`, empty if none.
    pub(crate) eh_frame_hdr: Range<u64>,
    /// Address of `.eh_frame`, if the file has sections and this one.
    pub(crate) eh_frame: Option<u64>,
    /// Symbols, if the file has any.
    pub(crate) symbols: Vec<Symbol>,
    /// Addresses that relocations write into memory (RELATIVE, IRELATIVE and RELR).
    pub(crate) relocated: Vec<u64>,
    /// Where section `.enclos.enclu` says that ENCLU instructions stand which are followed by a two-byte NOP.
    pub(crate) enclu: Vec<u64>,
}

impl Program {
    /// Reads an ELF file.
    pub(crate) fn parse(file: &[u8]) -> Result<Self, ElfError> {
        let elf = ElfFile64::<LE>::parse(file).map_err(|e| ElfError::Malformed { what: e.to_string() })?;
        let header = elf.elf_header();
        let only = |ok: bool, what: &'static str, cure: &'static str| {
            if ok { Ok(()) } else { Err(ElfError::Kind { what, cure }) }
        };
        let static_pie =
            "build it with `-C target-feature=+crt-static -C relocation-model=pie` (C: `-static-pie`)";
        only(
            header.e_machine(LE) == elf::EM_X86_64,
            "is not for x86-64",
            "build it for x86_64-unknown-linux-gnu",
        )?;
        only(header.e_type(LE) == elf::ET_DYN, "is not position-independent", static_pie)?;
        let mut memory = Vec::new();
        let mut perms: Vec<Option<Perm>> = Vec::new();
        let mut segments = Vec::new();
        let mut dynamic = None;
        let mut eh_frame_hdr = 0..0;
        for ph in elf.elf_program_headers() {
            let range = |what: &'static str| {
                let start = ph.p_vaddr(LE);
                let end = start.checked_add(ph.p_memsz(LE)).filter(|end| *end <= MAX_MEMORY);
                end.map(|end| start..end).ok_or(ElfError::TooLarge { what, limit: MAX_MEMORY })
            };
            match ph.p_type(LE) {
                elf::PT_INTERP => only(false, "needs a dynamic loader", static_pie)?,
                elf::PT_DYNAMIC => dynamic = Some(range("dynamic table")?),
                elf::PT_GNU_EH_FRAME => eh_frame_hdr = range("unwind table")?,
                elf::PT_LOAD => {
                    let range = range("segment")?;
                    let data = ph.data(LE, file).map_err(|()| ElfError::Malformed {
                        what: format!("the segment at {:#x} reaches past the end of the file", range.start),
                    })?;
                    let flags = ph.p_flags(LE);
                    let perm = Perm {
                        r: flags.contains(elf::PF_R),
                        w: flags.contains(elf::PF_W),
                        x: flags.contains(elf::PF_X),
                    };
                    if data.len() as u64 > range.end - range.start {
                        return Err(ElfError::Malformed {
                            what: format!(
                                "the segment at {:#x} is larger in the file than in memory",
                                range.start
                            ),
                        });
                    }
                    if range.is_empty() {
                        continue;
                    }
                    let pages = range.start / PAGE..range.end.div_ceil(PAGE);
                    if perms.len() < pages.end as usize {
                        perms.resize(pages.end as usize, None);
                        memory.resize((pages.end * PAGE) as usize, 0);
                    }
                    for page in pages {
                        let entry = perms[page as usize].get_or_insert_default();
                        entry.r |= perm.r;
                        entry.w |= perm.w;
                        entry.x |= perm.x;
                        if entry.w && entry.x {
                            return Err(ElfError::WritableCode { address: page * PAGE });
                        }
                    }
                    let start = range.start as usize;
                    memory[start..start + data.len()].copy_from_slice(data);
                    segments.push((range.start..range.start + data.len() as u64, perm, ph.p_offset(LE)));
                }
                _ => {}
            }
        }
        only(!segments.is_empty(), "has nothing to load", static_pie)?;

        let in_code =
            |r: &Range<u64>| segments.iter().any(|(s, p, _)| p.x && s.start <= r.start && r.end <= s.end);
        let mut code: Vec<Range<u64>> = elf
            .sections()
            .filter(|s| {
                let object::SectionFlags::Elf { sh_flags, .. } = s.flags() else { return false };
                sh_flags.contains(elf::SHF_EXECINSTR | elf::SHF_ALLOC) && s.size() != 0
            })
            .filter_map(|s| Some(s.address()..s.address().checked_add(s.size())?))
            .filter(in_code)
            .collect();
        if code.is_empty() {
            code = segments.iter().filter(|(_, p, _)| p.x).map(|(s, ..)| s.clone()).collect();
        }
        code.sort_by_key(|r| r.start);
        if code.windows(2).any(|w| w[0].end > w[1].start) {
            return Err(ElfError::Malformed { what: "executable sections overlap".into() });
        }

        let phdr = segments
            .iter()
            .find_map(|(s, _, file_offset)| {
                let at = header.e_phoff(LE).checked_sub(*file_offset)?.checked_add(s.start)?;
                s.contains(&at).then_some(at)
            })
            .ok_or_else(|| ElfError::Malformed {
                what: "its program headers are not in any segment".into(),
            })?;

        let mut symbols: Vec<Symbol> = elf
            .symbols()
            .chain(elf.dynamic_symbols())
            .filter(|s| s.is_definition() || s.kind() == object::SymbolKind::Label)
            .filter_map(|s| {
                Some(Symbol {
                    name: s.name().ok()?.to_owned(),
                    address: s.address(),
                    size: s.size(),
                    is_function: s.kind() == object::SymbolKind::Text,
                })
            })
            .filter(|s| s.address < memory.len() as u64)
            .collect();
        symbols.sort_by(|a, b| (a.address, &a.name).cmp(&(b.address, &b.name)));

        let enclu = match elf.section_by_name(".enclos.enclu") {
            None => Vec::new(),
            Some(section) => {
                let data = section.data().map_err(|e| ElfError::Malformed { what: e.to_string() })?;
                let (words, []) = data.as_chunks::<4>() else {
                    return Err(ElfError::Malformed { what: ".enclos.enclu is not an array of i32".into() });
                };
                // Distances from the entry itself: an assembler can express those in a PIE.
                let entry = |(word, at): (&[u8; 4], u64)| {
                    let address = at.wrapping_add_signed(i64::from(i32::from_le_bytes(*word)));
                    is_enclu(&memory, address).then_some(address)
                };
                let found = words.iter().zip((section.address()..).step_by(4)).map(entry).collect();
                let found: Option<Vec<u64>> = found;
                found.ok_or_else(|| ElfError::Malformed {
                    what: ".enclos.enclu names a place without `enclu` and a two-byte NOP".into(),
                })?
            }
        };

        let mut program = Self {
            memory,
            perms,
            code,
            entry: header.e_entry(LE),
            phdr,
            phnum: elf.elf_program_headers().len() as u64,
            eh_frame_hdr,
            eh_frame: elf.section_by_name(".eh_frame").map(|s| s.address()),
            symbols,
            relocated: Vec::new(),
            enclu,
        };
        if !program.is_executable(program.entry) {
            return Err(ElfError::Malformed {
                what: format!("the entry point {:#x} is no code", program.entry),
            });
        }
        if let Some(range) = dynamic {
            program.read_dynamic(&range)?;
        }
        Ok(program)
    }

    /// Address just after its last page.
    pub(crate) fn end(&self) -> u64 {
        self.memory.len() as u64
    }

    /// The address of a symbol.
    pub(crate) fn symbol(&self, name: &str) -> Option<u64> {
        self.symbols.iter().find(|s| s.name == name).map(|s| s.address)
    }

    /// Is the address in an executable page?
    pub(crate) fn is_executable(&self, address: u64) -> bool {
        self.perms.get((address / PAGE) as usize).copied().flatten().is_some_and(|p| p.x)
    }

    /// `N` bytes at an address.
    pub(crate) fn bytes<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let at = usize::try_from(address).ok()?;
        self.memory.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    /// Bytes of executable pages.
    pub(crate) fn code_bytes(&self) -> u64 {
        self.perms.iter().flatten().filter(|p| p.x).count() as u64 * PAGE
    }

    /// Runs of pages with the same permissions: first address, permissions, contents.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u64, Perm, &[u8])> {
        let page = PAGE as usize;
        self.perms
            .chunk_by(|a, b| a == b)
            .scan(0, move |at, run| {
                let start = *at;
                *at += run.len();
                Some((start, run))
            })
            .filter_map(move |(start, run)| {
                run[0].map(|perm| {
                    (start as u64 * PAGE, perm, &self.memory[start * page..(start + run.len()) * page])
                })
            })
    }

    /// Refuses what cannot relocate itself inside, and collects the addresses that relocations write.
    fn read_dynamic(&mut self, range: &Range<u64>) -> Result<(), ElfError> {
        let malformed = |what: &str| ElfError::Malformed { what: what.to_owned() };
        let table =
            self.slice(range).ok_or_else(|| malformed("the dynamic table is outside of the program"))?;
        let (mut rela, mut rela_size, mut jmprel, mut jmprel_size, mut relr, mut relr_size) =
            (0, 0, 0, 0, 0, 0);
        let entries = object::slice_from_all_bytes::<elf::Dyn64<LE>>(table)
            .map_err(|()| malformed("the dynamic table has no whole number of entries"))?;
        for entry in entries {
            let value = entry.d_val(LE);
            match entry.d_tag(LE) {
                elf::DT_NULL => break,
                elf::DT_NEEDED => {
                    return Err(ElfError::Kind {
                        what: "needs shared libraries",
                        cure: "link everything statically (`-static-pie`)",
                    });
                }
                elf::DT_TEXTREL => return Err(ElfError::TextRelocations),
                elf::DT_RELA => rela = value,
                elf::DT_RELASZ => rela_size = value,
                elf::DT_JMPREL => jmprel = value,
                elf::DT_PLTRELSZ => jmprel_size = value,
                elf::DT_RELR => relr = value,
                elf::DT_RELRSZ => relr_size = value,
                _ => {}
            }
        }
        let mut relocated = Vec::new();
        for (start, size) in [(rela, rela_size), (jmprel, jmprel_size)] {
            let bytes = start.checked_add(size).and_then(|end| self.slice(&(start..end)));
            let bytes = bytes.ok_or_else(|| malformed("a relocation table is outside of the program"))?;
            let entries = object::slice_from_all_bytes::<elf::Rela64<LE>>(bytes)
                .map_err(|()| malformed("a relocation table has no whole number of entries"))?;
            for entry in entries {
                if matches!(entry.r_type(LE, false), elf::R_X86_64_RELATIVE | elf::R_X86_64_IRELATIVE) {
                    relocated.push(entry.r_addend.get(LE) as u64);
                }
            }
        }
        let bytes = relr.checked_add(relr_size).and_then(|end| self.slice(&(relr..end)));
        let bytes = bytes.ok_or_else(|| malformed("a relocation table is outside of the program"))?;
        let entries = object::slice_from_all_bytes::<elf::Relr64<LE>>(bytes)
            .map_err(|()| malformed("a relocation table has no whole number of entries"))?;
        for at in object::read::elf::RelrIterator::<elf::FileHeader64<LE>>::new(LE, entries) {
            let word = self.bytes(at).ok_or_else(|| malformed("a relocation is outside of the program"))?;
            relocated.push(u64::from_le_bytes(word));
        }
        self.relocated = relocated;
        Ok(())
    }

    fn slice(&self, range: &Range<u64>) -> Option<&[u8]> {
        self.memory.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
    }
}

/// Does ENCLU followed by a two-byte NOP stand there?
fn is_enclu(memory: &[u8], address: u64) -> bool {
    memory.get(address as usize..).is_some_and(|m| m.starts_with(&[0x0f, 0x01, 0xd7, 0x66, 0x90]))
}

/// Why an ELF file cannot go into an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// Not an ELF file, or a damaged one.
    #[error("the program is not a sound ELF file: {what}")]
    Malformed {
        /// What is wrong.
        what: String,
    },
    /// Another kind of program.
    #[error("the program {what}: {cure}")]
    Kind {
        /// What it is or needs.
        what: &'static str,
        /// How to get the right kind.
        cure: &'static str,
    },
    /// Too much memory.
    #[error("a {what} of the program lies beyond {limit} bytes: split the program or its static data")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// The limit in bytes.
        limit: u64,
    },
    /// A page both writable and executable.
    #[error(
        "the page at {address:#x} is writable and executable: link with `-z separate-code` and without RWX sections"
    )]
    WritableCode {
        /// Address of the page.
        address: u64,
    },
    /// Code would be changed by relocations.
    #[error("the program has relocations in its code: compile everything position-independent (-fPIE)")]
    TextRelocations,
}
