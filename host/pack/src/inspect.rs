//! What an image is, for people and tools: everything here is recomputed from the measured pages, except what is
//! marked as a hint.
//!
//! ```no_run
//! let file = std::fs::read("vault.enclave")?;
//! let inspection = enclos_pack::inspect(&file)?;
//! println!("{}", inspection.identity.mrenclave);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use enclos::abi::thread;
use enclos::manifest::items;
use serde::{Deserialize, Serialize};
use sgx_isa::{PageType, SecinfoFlags};

use crate::PAGE;
use crate::config::Signal;
use crate::image::{Image, ImageError, XFRM};
use crate::layout::TRAP_SIZE;
use crate::rewrite::Counts;
use crate::sgxs::Page;
use crate::sign::{Date, hex};

/// Describes the contents of an `.enclave` file.
///
/// # Errors
/// When the file is damaged. A missing or wrong signature is no error here: see [`Inspection::signature`].
pub fn inspect(file: &[u8]) -> Result<Inspection, ImageError> {
    Ok(Inspection::of(&Image::parse(file)?))
}

/// A description of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Who the image is.
    pub identity: IdentityReport,
    /// Who vouches for it.
    pub signature: Signature,
    /// Size of ELRANGE in bytes.
    pub enclave_size: u64,
    /// Runs of pages, ascending.
    pub layout: Vec<Area>,
    /// How much is measured.
    pub measured: Measured,
    /// The measured configuration.
    pub manifest: ManifestReport,
    /// Contracts found in the application: what can be called, and what it may call.
    pub contracts: Vec<Contract>,
    /// What became of the application's system calls. A hint: not measured.
    pub sites: Counts,
    /// Offsets of instructions replaced by UD2 because they could not be rewritten.
    pub traps: Vec<u64>,
    /// What must be trusted.
    pub trusted_base: TrustedBase,
}

/// Who an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdentityReport {
    /// MRENCLAVE, recomputed from the pages; hexadecimal.
    pub mrenclave: String,
    /// MRSIGNER, if the signature verifies.
    pub mrsigner: Option<String>,
    /// ISVPRODID.
    pub product_id: u16,
    /// ISVSVN.
    pub security_version: u16,
    /// Can a debugger (and the host) read it?
    pub debug: bool,
    /// ATTRIBUTES.FLAGS it must be created with, hexadecimal.
    pub attributes: String,
    /// ATTRIBUTES.XFRM it must be created with, hexadecimal.
    pub xfrm: String,
    /// Bits of XFRM that the host may set as well, hexadecimal: those of AVX-512, or none.
    pub optional_xfrm: String,
    /// MISCSELECT it needs (the host may add EXINFO), hexadecimal.
    pub miscselect: String,
}

/// The state of an image's signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Signature {
    /// There is none.
    Unsigned,
    /// It verifies, and is for these pages and attributes.
    Valid {
        /// The day it was made, yyyy-mm-dd, as the signer says.
        date: String,
    },
    /// It is there and is not right.
    Invalid {
        /// What is wrong.
        reason: String,
    },
}

/// A run of pages of the same kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Area {
    /// What it is, for people.
    pub what: String,
    /// Offset of the first page.
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
    /// `rwx` with dashes, or `tcs`.
    pub permissions: String,
    /// Are the contents measured? Place and permissions always are.
    pub contents_measured: bool,
}

/// How much of an image is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Measured {
    /// Bytes whose contents are measured.
    pub content_bytes: u64,
    /// Bytes of which place and permissions only are measured: they are zero or cleared before use.
    pub place_only_bytes: u64,
}

/// The manifest, with its lists split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ManifestReport {
    /// Name of the application.
    pub name: String,
    /// Threads inside at once.
    pub threads: u32,
    /// Bytes of heap.
    pub heap_bytes: u64,
    /// Bytes of the first thread's stack.
    pub stack_bytes: u64,
    /// Variables the host may set.
    pub env: Vec<String>,
    /// Variables with a measured value, `NAME=value`.
    pub fixed_env: Vec<String>,
    /// May the host pass arguments?
    pub args: bool,
    /// May output go to the host?
    pub stdio: bool,
    /// May input come from the host?
    pub stdin: bool,
    /// Host services that may be called.
    pub services: Vec<String>,
    /// Does the heap grow on demand (SGX2)?
    pub dynamic_memory: bool,
    /// May the program use AVX-512 where the platform has it?
    pub avx512: bool,
    /// Directories of the host and where they are seen.
    pub mounts: Vec<String>,
    /// Addresses that may be listened on.
    pub listen: Vec<String>,
    /// Addresses that may be connected to.
    pub connect: Vec<String>,
    /// Signals that the host may send.
    #[serde(default)]
    pub signals: Vec<String>,
}

/// A contract found in an application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contract {
    /// Name of the trait.
    pub name: String,
    /// The crate that defines it.
    #[serde(rename = "crate")]
    pub crate_name: String,
    /// Its hash, hexadecimal.
    pub hash: String,
    /// Its methods.
    pub methods: Vec<Method>,
    /// Is it a service of the host that the manifest permits? Else the enclave serves it, or cannot call it.
    #[serde(default)]
    pub host_service: bool,
}

/// A method of a contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Method {
    /// Its name.
    pub name: String,
    /// Its arguments.
    pub args: Vec<Argument>,
    /// Type of its result.
    pub result: String,
}

/// An argument of a method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: String,
}

/// How much must be trusted, in bytes of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TrustedBase {
    /// Executable pages of the runtime.
    pub runtime_code: u64,
    /// Executable pages of the application, with the stubs of rewritten sites.
    pub application_code: u64,
    /// All pages of the runtime and the manifest.
    pub runtime: u64,
    /// All pages of the application.
    pub application: u64,
}

impl Inspection {
    /// Describes an image.
    pub fn of(image: &Image) -> Self {
        let verified = image.verify();
        let identity = image.identity();
        let signature = match (image.sigstruct(), &verified) {
            (None, _) => Signature::Unsigned,
            (Some(s), Ok(_)) => Signature::Valid { date: Date::from_bcd(s.date).to_string() },
            (Some(_), Err(e)) => Signature::Invalid { reason: e.to_string() },
        };
        let manifest = image.manifest();
        let list = |text: &str| items(text).map(str::to_owned).collect::<Vec<_>>();
        let services = list(manifest.services);
        let mut measured = Measured::default();
        let mut trusted_base = TrustedBase::default();
        let mut layout: Vec<Area> = Vec::new();
        for page in &image.stream().pages {
            let content = u64::from(page.measured.count_ones()) * PAGE / 16;
            measured.content_bytes += content;
            measured.place_only_bytes += PAGE - content;
            let code = if page.flags.contains(SecinfoFlags::X) { PAGE } else { 0 };
            let part = Part::of(image, page.offset);
            match part {
                Part::Runtime | Part::Manifest => {
                    trusted_base.runtime += PAGE;
                    trusted_base.runtime_code += code;
                }
                Part::Application => {
                    trusted_base.application += PAGE;
                    trusted_base.application_code += code;
                }
                Part::Thread(..) | Part::Heap => {}
            }
            let area = Area {
                what: part.to_string(),
                offset: page.offset,
                size: PAGE,
                permissions: permissions(page),
                contents_measured: page.measured == u16::MAX,
            };
            match layout.last_mut().filter(|last| continues(last, &area)) {
                Some(last) => last.size += PAGE,
                None => layout.push(area),
            }
        }
        Self {
            identity: IdentityReport {
                mrenclave: hex(&image.mrenclave()),
                mrsigner: verified.ok().map(|key| hex(&key.mrsigner())),
                product_id: identity.product_id,
                security_version: identity.security_version,
                debug: identity.debug,
                attributes: format!("{:#x}", identity.attributes().flags.bits()),
                xfrm: format!("{XFRM:#x}"),
                optional_xfrm: format!("{:#x}", identity.optional_xfrm()),
                miscselect: format!("{:#x}", identity.miscselect().bits()),
            },
            signature,
            enclave_size: image.stream().size,
            layout,
            measured,
            contracts: contracts(image, &services),
            manifest: ManifestReport {
                name: manifest.name.to_owned(),
                threads: manifest.threads,
                heap_bytes: manifest.heap_bytes,
                stack_bytes: manifest.stack_bytes,
                env: list(manifest.env),
                fixed_env: list(manifest.fixed_env),
                args: manifest.args,
                stdio: manifest.stdio,
                stdin: manifest.stdin,
                services,
                dynamic_memory: manifest.dynamic_memory,
                avx512: manifest.avx512,
                mounts: list(manifest.mounts),
                listen: list(manifest.listen),
                connect: list(manifest.connect),
                signals: Signal::ALL
                    .iter()
                    .filter(|s| manifest.signals >> (s.number() - 1) & 1 != 0)
                    .map(|s| s.name().to_owned())
                    .collect(),
            },
            sites: image.hints().sites.clone(),
            traps: traps(image),
            trusted_base,
        }
    }
}

/// Where in an image a page lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Runtime,
    Manifest,
    Application,
    Thread(u64, &'static str),
    Heap,
}

impl Part {
    fn of(image: &Image, offset: u64) -> Self {
        let info = image.info();
        if offset < image.info_offset() {
            Self::Runtime
        } else if offset < info.app {
            Self::Manifest
        } else if offset < info.app_end {
            Self::Application
        } else if offset < info.heap {
            let within = offset.saturating_sub(info.thread_area);
            let what = match within % thread::STRIDE {
                thread::DATA => "data",
                thread::TCS => "TCS",
                at if at >= thread::SSA => "SSA frames",
                at if at >= thread::EXCEPTION_STACK => "exception stack",
                _ => "stack",
            };
            Self::Thread(within / thread::STRIDE, what)
        } else {
            Self::Heap
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Runtime => f.write_str("runtime"),
            Self::Manifest => f.write_str("manifest"),
            Self::Application => f.write_str("application"),
            Self::Thread(index, what) => write!(f, "thread {index}: {what}"),
            Self::Heap => f.write_str("heap"),
        }
    }
}

fn permissions(page: &Page) -> String {
    if page.is(PageType::Tcs) {
        return "tcs".to_owned();
    }
    let flags = [(SecinfoFlags::R, 'r'), (SecinfoFlags::W, 'w'), (SecinfoFlags::X, 'x')];
    flags.iter().map(|(flag, c)| if page.flags.contains(*flag) { *c } else { '-' }).collect()
}

fn continues(last: &Area, next: &Area) -> bool {
    last.offset + last.size == next.offset
        && (&last.what, &last.permissions, last.contents_measured)
            == (&next.what, &next.permissions, next.contents_measured)
}

/// Offsets in the measured trap table.
fn traps(image: &Image) -> Vec<u64> {
    let info = image.info();
    let len = usize::try_from(info.trap_count).ok().and_then(|n| n.checked_mul(TRAP_SIZE));
    // The table stands between manifest and application; a length beyond that is not one.
    let len = len.filter(|l| info.traps.saturating_add(*l as u64) <= info.app);
    let table = len.and_then(|l| image.stream().read(info.traps, l)).unwrap_or_default();
    let (entries, _) = table.as_chunks::<TRAP_SIZE>();
    entries.iter().map(|e| u64::from_le_bytes([e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7]])).collect()
}

/// What `#[enclos::interface]` puts around a contract's description (`Contract::description`).
const CONTRACT_START: &[u8] = b"\x01ENCLOS-CONTRACT:";
const CONTRACT_END: &[u8] = b"\x01END";

/// Finds the descriptions of contracts in the application's pages.
fn contracts(image: &Image, services: &[String]) -> Vec<Contract> {
    let info = image.info();
    let mut bytes = Vec::new();
    for page in image.stream().pages.iter().filter(|p| (info.app..info.app_end).contains(&p.offset)) {
        if let Some(data) = &page.data {
            bytes.extend_from_slice(&data[..]);
        }
    }
    let mut found: Vec<Contract> = Vec::new();
    let mut rest = &bytes[..];
    while let Some(start) = find(rest, CONTRACT_START) {
        rest = &rest[start + CONTRACT_START.len()..];
        let Some(end) = find(rest, CONTRACT_END) else { break };
        // The marker alone may stand in the program too, as it does in this one.
        if let Ok(mut contract) = serde_json::from_slice::<Contract>(&rest[..end]) {
            contract.host_service = services.contains(&contract.name);
            if !found.contains(&contract) {
                found.push(contract);
            }
        }
    }
    found.sort_by(|a, b| (&a.name, &a.hash).cmp(&(&b.name, &b.hash)));
    found
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        // Looking for one byte first is what makes this fast.
        from += bytes[from..].iter().position(|b| *b == what[0])?;
        if bytes[from..].starts_with(what) {
            return Some(from);
        }
        from += 1;
    }
}
