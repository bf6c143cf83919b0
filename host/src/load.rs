//! From an `.enclave` file to an initialised enclave.
//!
//! Nothing in the file is trusted: the platform measures what it is given, and EINIT compares. The checks here exist to
//! say what is wrong with a file instead of failing with an error code.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use enclos::abi::{ThreadSeed, thread, xfrm};
use enclos::image::{FileError, FileHeader, INFO_MAGIC, ImageInfo};
use enclos_platform::sgx_isa::{self, AttributesFlags, Miscselect, PageType, SecinfoFlags, Sigstruct};
use enclos_platform::{CreateParams, Initialized, Pages, Platform, PlatformError};

use crate::backtrace::Symbol;

const PAGE: usize = 4096;
/// Bytes of one EEXTEND.
const CHUNK: usize = 256;
/// Bytes of a block of the stream without its data.
const BLOCK: usize = 64;
/// Contents that are loaded and not measured.
const MEAS_UNMEASURED: u64 = u64::from_le_bytes(*b"UNMEASRD");
/// How much is added to the enclave in one go, at most.
const RUN_BYTES: usize = 4 << 20;

/// Where an image comes from.
#[derive(Clone, Debug)]
pub enum ImageSource {
    /// A file.
    File(PathBuf),
    /// The bytes of a file.
    Bytes(Vec<u8>),
}

impl From<&Path> for ImageSource {
    fn from(path: &Path) -> Self {
        Self::File(path.into())
    }
}

impl From<PathBuf> for ImageSource {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<&PathBuf> for ImageSource {
    fn from(path: &PathBuf) -> Self {
        Self::File(path.clone())
    }
}

impl From<&str> for ImageSource {
    fn from(path: &str) -> Self {
        Self::File(path.into())
    }
}

impl From<String> for ImageSource {
    fn from(path: String) -> Self {
        Self::File(path.into())
    }
}

impl From<Vec<u8>> for ImageSource {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<&[u8]> for ImageSource {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// Why an image could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not an image, or damaged.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not signed.
    #[error("the image is not signed: sign it with `enclos sign`")]
    Unsigned,
    /// The SIGSTRUCT is not one.
    #[error("the image's signature structure is damaged: sign the image again with `enclos sign`")]
    Sigstruct,
    /// The page stream breaks a rule of its format.
    #[error("the page stream is damaged at byte {at}: {what}; build or copy the image again")]
    Stream {
        /// Offset within the stream.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The hints do not decode.
    #[error("the image's hints do not decode ({message}): build or copy the image again")]
    Hints {
        /// What the decoder said.
        message: String,
    },
    /// No thread could ever enter.
    #[error(
        "the image has no thread (no TCS page): set `threads` in enclos.toml to at least 1 and build it again"
    )]
    NoThreads,
    /// Its memory grows on demand, and this platform's does not.
    #[error(
        "the image needs dynamic memory (SGX2), which this processor or kernel does not have: build it with \
         profile = \"sgx1\", or run it on a processor with SGX2 and Linux 6.0 or later (`enclos doctor` says what lacks)"
    )]
    NoDynamicMemory,
    /// The platform refused it.
    #[error(transparent)]
    Platform(#[from] PlatformError),
}

/// An initialised enclave and where its threads enter.
pub(crate) struct Loaded {
    pub(crate) enclave: Arc<dyn Initialized>,
    /// Addresses of the TCSs, ascending; of those that may come later too.
    pub(crate) tcs: Vec<u64>,
    /// How many of them are there, from the first on.
    pub(crate) present: usize,
    pub(crate) mrenclave: [u8; 32],
    /// Functions, of a debug image; sorted.
    pub(crate) symbols: Vec<Symbol>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Hints {
    enclu_sites: Vec<u64>,
    symbols: Vec<Symbol>,
}

impl ImageSource {
    pub(crate) fn read(self) -> Result<Vec<u8>, LoadError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::File(path) => std::fs::read(&path).map_err(|source| LoadError::Read { path, source }),
        }
    }
}

/// Creates, fills and initialises the enclave of an `.enclave` file.
pub(crate) fn load(file: &[u8], platform: &dyn Platform) -> Result<Loaded, LoadError> {
    let parts = FileHeader::split(file)?;
    if parts.sigstruct.is_empty() {
        return Err(LoadError::Unsigned);
    }
    let sigstruct = Sigstruct::try_copy_from(parts.sigstruct).ok_or(LoadError::Sigstruct)?;
    let mut hints = match parts.hints {
        [] => Hints::default(),
        json => serde_json::from_slice(json).map_err(|e| LoadError::Hints { message: e.to_string() })?,
    };
    let mut blocks = Blocks { stream: parts.sgxs, at: 0 };
    let Some(Block::Create { ssa_frame_size, size }) = blocks.next()? else {
        return Err(LoadError::Stream { at: 0, what: "it does not begin with ECREATE" });
    };
    let mut build = platform.create(&CreateParams {
        size,
        ssa_frame_size,
        miscselect: miscselect(&sigstruct, platform.miscselect()),
        attributes: attributes(&sigstruct, platform.xfrm()),
    })?;

    let growth = Growth::of(parts.sgxs);
    if growth.is_some() && !platform.has_dynamic_memory() {
        return Err(LoadError::NoDynamicMemory);
    }
    let mut tcs = Vec::new();
    let mut run = Run::default();
    let mut page = blocks.next()?;
    while let Some(block) = page {
        let Block::Add { at, offset, flags } = block else {
            return Err(LoadError::Stream {
                at: blocks.at as u64,
                what: "contents or ECREATE where EADD is due",
            });
        };
        if !offset.is_multiple_of(PAGE as u64) || offset >= size {
            return Err(LoadError::Stream { at, what: "a page that is not in the enclave" });
        }
        if flags.page_type() == PageType::Tcs as u8 {
            tcs.push(build.base() + offset);
        }
        let mut contents = [0; PAGE];
        let (mut seen, mut measured) = (0u32, 0u32);
        page = loop {
            match blocks.next()? {
                Some(Block::Contents { at, offset: to, data, is_measured }) => {
                    let within =
                        to.checked_sub(offset).filter(|o| *o < PAGE as u64 && o.is_multiple_of(CHUNK as u64));
                    let within =
                        within.ok_or(LoadError::Stream { at, what: "contents of another page" })? as usize;
                    contents[within..within + CHUNK].copy_from_slice(data);
                    seen |= 1 << (within / CHUNK);
                    measured |= u32::from(is_measured) << (within / CHUNK);
                }
                next => break next,
            }
        };
        if measured != 0 && measured != 0xffff {
            return Err(LoadError::Stream {
                at,
                what: "a page of which only a part is measured, which no tool of ours makes",
            });
        }
        run.push(build.as_mut(), offset, flags, (seen != 0).then_some(&contents), measured != 0)?;
    }
    run.flush(build.as_mut())?;
    if tcs.is_empty() {
        return Err(LoadError::NoThreads);
    }
    let enclave = build.init(&sigstruct)?;
    enclave.hint_enclu_sites(&hints.enclu_sites);
    tcs.sort_unstable();
    if !sigstruct.attributes.flags.contains(AttributesFlags::DEBUG) {
        hints.symbols.clear();
    }
    hints.symbols.sort_by_key(|s| s.offset);
    let present = tcs.len();
    if let Some(growth) = growth {
        tcs.extend(growth.later_tcs(present as u64, size).map(|offset| enclave.base() + offset));
    }
    Ok(Loaded { enclave, tcs, present, mrenclave: sigstruct.enclavehash, symbols: hints.symbols })
}

/// What an image with dynamic memory says of the threads that it may have later. Where it is wrong, the enclave refuses to
/// start: it knows better.
struct Growth {
    thread_area: u64,
    threads: u64,
}

/// Most threads that an image can have.
const MAX_THREADS: u64 = 1024;

impl Growth {
    /// Finds the image's description of itself as the runtime does, through the first thread's data page. `None`: the
    /// image does not grow, or is of another kind.
    fn of(stream: &[u8]) -> Option<Self> {
        let is_tcs = |flags: SecinfoFlags| flags.page_type() == PageType::Tcs as u8;
        let tcs = find(stream, |_, flags| is_tcs(flags))?.0;
        let seed = chunk(stream, tcs.checked_sub(thread::TCS - thread::DATA)?)?;
        let at = std::mem::offset_of!(ThreadSeed, info_offset);
        let info = chunk(stream, u64::from_le_bytes(*seed[at..].first_chunk()?))?;
        let word = |at: usize| info[at..].first_chunk().map(|b| u64::from_le_bytes(*b));
        let threads =
            u64::from(u32::from_le_bytes(*info[std::mem::offset_of!(ImageInfo, threads)..].first_chunk()?));
        let is_one = word(std::mem::offset_of!(ImageInfo, magic))? == INFO_MAGIC;
        let present = word(std::mem::offset_of!(ImageInfo, threads_present))?;
        let heap = word(std::mem::offset_of!(ImageInfo, heap_size))?;
        let heap_present = word(std::mem::offset_of!(ImageInfo, heap_present))?;
        let grows = is_one && threads <= MAX_THREADS && (present < threads || heap_present < heap);
        let thread_area = word(std::mem::offset_of!(ImageInfo, thread_area))?;
        grows.then_some(Self { thread_area, threads })
    }

    /// Offsets of the TCSs that are not part of the image.
    fn later_tcs(&self, present: u64, size: u64) -> impl Iterator<Item = u64> {
        let area = self.thread_area;
        let of = move |index: u64| area.checked_add(index * thread::STRIDE + thread::TCS);
        (present..self.threads).filter_map(of).filter(move |at| *at < size && at.is_multiple_of(PAGE as u64))
    }
}

/// The first page of the stream of which `which` is true: offset, flags.
fn find(stream: &[u8], which: impl Fn(u64, SecinfoFlags) -> bool) -> Option<(u64, SecinfoFlags)> {
    let mut blocks = Blocks { stream, at: 0 };
    while let Ok(Some(block)) = blocks.next() {
        if let Block::Add { offset, flags, .. } = block
            && which(offset, flags)
        {
            return Some((offset, flags));
        }
    }
    None
}

/// The measured contents that begin at this offset from the ELRANGE base.
fn chunk(stream: &[u8], offset: u64) -> Option<&[u8; CHUNK]> {
    let mut blocks = Blocks { stream, at: 0 };
    while let Ok(Some(block)) = blocks.next() {
        if let Block::Contents { offset: at, data, is_measured: true, .. } = block
            && at == offset
        {
            return Some(data);
        }
    }
    None
}

/// MISCSELECT to create with: what the signature demands, and EXINFO where it leaves the choice and the processor has
/// it, because faults are then reported with their address.
fn miscselect(sigstruct: &Sigstruct, supported: Miscselect) -> Miscselect {
    let free = Miscselect::from_bits_truncate(!sigstruct.miscmask);
    sigstruct.miscselect | (Miscselect::EXINFO & supported & free)
}

/// What to create the enclave with. Where the signer left a bit open, it is off, but for AVX-512: that is on where the
/// platform has it.
fn attributes(sigstruct: &Sigstruct, supported: u64) -> sgx_isa::Attributes {
    let mut attributes = sigstruct.attributes;
    if supported & !sigstruct.attributemask[1] & xfrm::AVX512 == xfrm::AVX512 {
        attributes.xfrm |= xfrm::AVX512;
    }
    attributes
}

/// Consecutive pages of the same kind, gathered so that the platform sees few calls.
#[derive(Default)]
struct Run {
    offset: u64,
    count: u64,
    flags: SecinfoFlags,
    measured: bool,
    /// Contents of all pages, or empty when they have none.
    data: Vec<u8>,
}

impl Run {
    fn push(
        &mut self,
        build: &mut dyn enclos_platform::Build,
        offset: u64,
        flags: SecinfoFlags,
        contents: Option<&[u8; PAGE]>,
        measured: bool,
    ) -> Result<(), PlatformError> {
        let continues = self.count != 0
            && offset == self.offset + self.count * PAGE as u64
            && flags == self.flags
            && measured == self.measured
            && contents.is_some() != self.data.is_empty()
            && self.data.len() < RUN_BYTES;
        if !continues {
            self.flush(build)?;
            (self.offset, self.flags, self.measured) = (offset, flags, measured);
        }
        self.count += 1;
        if let Some(contents) = contents {
            self.data.extend_from_slice(contents);
        }
        Ok(())
    }

    fn flush(&mut self, build: &mut dyn enclos_platform::Build) -> Result<(), PlatformError> {
        if self.count != 0 {
            build.add(&Pages {
                offset: self.offset,
                data: (!self.data.is_empty()).then_some(&self.data),
                count: self.count,
                secinfo: self.flags,
                measured: self.measured,
            })?;
        }
        self.count = 0;
        self.data.clear();
        Ok(())
    }
}

enum Block<'a> {
    Create { ssa_frame_size: u32, size: u64 },
    Add { at: u64, offset: u64, flags: SecinfoFlags },
    Contents { at: u64, offset: u64, data: &'a [u8; CHUNK], is_measured: bool },
}

/// Reads the blocks of an SGXS stream.
struct Blocks<'a> {
    stream: &'a [u8],
    at: usize,
}

impl<'a> Blocks<'a> {
    fn next(&mut self) -> Result<Option<Block<'a>>, LoadError> {
        let at = self.at as u64;
        let cut = LoadError::Stream { at, what: "it ends in the middle of a block" };
        let stream: &'a [u8] = self.stream;
        let rest = &stream[self.at..];
        if rest.is_empty() {
            return Ok(None);
        }
        let Some((block, rest)) = rest.split_first_chunk::<BLOCK>() else { return Err(cut) };
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|b| block[i + b]));
        self.at += BLOCK;
        match word(0) {
            sgx_isa::MEAS_ECREATE if at == 0 => {
                Ok(Some(Block::Create { ssa_frame_size: word(8) as u32, size: word(12) }))
            }
            sgx_isa::MEAS_EADD => {
                let flags = SecinfoFlags::from_bits(word(16));
                let flags = flags.ok_or(LoadError::Stream { at, what: "unknown page flags" })?;
                Ok(Some(Block::Add { at, offset: word(8), flags }))
            }
            tag @ (sgx_isa::MEAS_EEXTEND | MEAS_UNMEASURED) => {
                let Some(data) = rest.first_chunk() else { return Err(cut) };
                self.at += CHUNK;
                let is_measured = tag == sgx_isa::MEAS_EEXTEND;
                Ok(Some(Block::Contents { at, offset: word(8), data, is_measured }))
            }
            _ => Err(LoadError::Stream { at, what: "an unknown block" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Offset, number, first byte, measured?
    type Added = (u64, u64, Option<u8>, bool);

    #[derive(Default)]
    struct Recorder(Arc<Mutex<Vec<Added>>>);

    impl Platform for Recorder {
        fn kind(&self) -> enclos_platform::Kind {
            enclos_platform::Kind::Emulated
        }

        fn miscselect(&self) -> Miscselect {
            Miscselect::EXINFO
        }

        fn xfrm(&self) -> u64 {
            7
        }

        fn create(&self, _: &CreateParams) -> Result<Box<dyn enclos_platform::Build>, PlatformError> {
            Ok(Box::new(Self(self.0.clone())))
        }

        fn has_dynamic_memory(&self) -> bool {
            false
        }
    }

    impl enclos_platform::Build for Recorder {
        fn base(&self) -> u64 {
            0x10_0000
        }

        fn add(&mut self, p: &Pages<'_>) -> Result<(), PlatformError> {
            assert!(p.data.is_none_or(|d| d.len() as u64 == p.count * 4096));
            self.0.lock().unwrap().push((p.offset, p.count, p.data.map(|d| d[0]), p.measured));
            Ok(())
        }

        fn init(self: Box<Self>, _: &Sigstruct) -> Result<Arc<dyn Initialized>, PlatformError> {
            Err(PlatformError::Unsupported { what: "init".into(), cure: "none".into() })
        }
    }

    fn block(tag: u64, words: [u64; 2]) -> Vec<u8> {
        let mut b = tag.to_le_bytes().to_vec();
        words.iter().for_each(|w| b.extend(w.to_le_bytes()));
        b.resize(BLOCK, 0);
        b
    }

    fn create(size: u64) -> Vec<u8> {
        let mut b = block(sgx_isa::MEAS_ECREATE, [1, 0]);
        b[12..20].copy_from_slice(&size.to_le_bytes());
        b
    }

    fn page(offset: u64, flags: SecinfoFlags, fill: Option<(u64, u8)>) -> Vec<u8> {
        let mut b = block(sgx_isa::MEAS_EADD, [offset, flags.bits()]);
        for chunk in 0..16 {
            if let Some((tag, fill)) = fill {
                b.extend(block(tag, [offset + chunk * 256, 0]));
                b.extend([fill; 256]);
            }
        }
        b
    }

    fn file(sgxs: &[u8], sigstruct: &[u8], hints: &[u8]) -> Vec<u8> {
        let header = FileHeader {
            sgxs_len: sgxs.len() as u64,
            sigstruct_len: sigstruct.len() as u64,
            hints_len: hints.len() as u64,
        };
        [&header.to_bytes(), sgxs, sigstruct, hints].concat()
    }

    const RX: SecinfoFlags = SecinfoFlags::from_bits_truncate(0x205);
    const RW: SecinfoFlags = SecinfoFlags::from_bits_truncate(0x203);
    const TCS: SecinfoFlags = SecinfoFlags::from_bits_truncate(0x100);

    #[test]
    fn pages_of_one_kind_are_added_together() {
        let measured = Some((sgx_isa::MEAS_EEXTEND, 7));
        let stream = [
            create(0x10_0000),
            page(0, RX, measured),
            page(0x1000, RX, measured),
            page(0x3000, RX, measured),
            page(0x4000, TCS, measured),
            page(0x5000, RW, None),
            page(0x6000, RW, None),
            page(0x7000, RW, Some((MEAS_UNMEASURED, 9))),
        ]
        .concat();
        let platform = Recorder::default();
        let outcome = load(&file(&stream, &[0; 1808], b"{}"), &platform).err().unwrap();
        assert!(matches!(outcome, LoadError::Platform(PlatformError::Unsupported { .. })), "{outcome}");
        let expected = [
            (0, 2, Some(7), true),
            (0x3000, 1, Some(7), true),
            (0x4000, 1, Some(7), true),
            (0x5000, 2, None, false),
            (0x7000, 1, Some(9), false),
        ];
        assert_eq!(*platform.0.lock().unwrap(), expected);
    }

    #[test]
    fn damaged_images_are_refused_by_name() {
        let good = [create(0x10_0000), page(0, TCS, Some((sgx_isa::MEAS_EEXTEND, 7)))].concat();
        let stream = |s: &[u8]| load(&file(s, &[0; 1808], b""), &Recorder::default()).err().unwrap();
        assert!(matches!(load(b"ELF", &Recorder::default()), Err(LoadError::File(FileError::NotAnImage))));
        assert!(matches!(load(&file(&good, &[], b""), &Recorder::default()), Err(LoadError::Unsigned)));
        let hints = load(&file(&good, &[0; 1808], b"{"), &Recorder::default());
        assert!(matches!(hints, Err(LoadError::Hints { .. })));
        assert!(matches!(stream(&[]), LoadError::Stream { at: 0, .. }));
        assert!(matches!(stream(&good[64..]), LoadError::Stream { at: 0, .. }));
        assert!(matches!(stream(&good[..good.len() - 1]), LoadError::Stream { .. }));
        assert!(matches!(stream(&good[..100]), LoadError::Stream { at: 64, .. }));
        assert!(matches!(stream(&create(0x1000)), LoadError::NoThreads));
        let cases = [
            (page(0x20_0000, RW, None), "a page that is not in the enclave"),
            (page(0x800, RW, None), "a page that is not in the enclave"),
            (block(1, [0, 0]), "an unknown block"),
            (create(0x1000), "an unknown block"),
            (block(sgx_isa::MEAS_EADD, [0, 1 << 63]), "unknown page flags"),
            (
                [page(0x1000, RW, None), block(MEAS_UNMEASURED, [0, 0]), vec![0; 256]].concat(),
                "contents of another page",
            ),
        ];
        for (bad, expected) in cases {
            let error = stream(&[create(0x10_0000), bad].concat());
            assert!(
                matches!(error, LoadError::Stream { what, .. } if what == expected),
                "{expected}: {error}"
            );
        }
        let part = [
            create(0x10_0000),
            block(sgx_isa::MEAS_EADD, [0, RW.bits()]),
            block(sgx_isa::MEAS_EEXTEND, [0, 0]),
            vec![0; 256],
        ];
        assert!(stream(&part.concat()).to_string().contains("only a part is measured"));
    }
}
