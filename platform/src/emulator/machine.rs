//! The emulated machine: what is the same for all enclaves on it. Its secrets, its versions, what it supports, and
//! the account of its enclave page cache.
//!
//! **The secrets protect nothing**: they lie in a file that whoever runs the emulator can read. They exist so that
//! keys behave as on a processor: stable on one machine, different on another.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sgx_isa::{AttributesFlags, Miscselect};
use sha2::{Digest, Sha256};

use crate::PlatformError;

/// CPUID.(EAX=12H,ECX=0):EDX\[15:8\]: enclaves of 64-bit mode must be smaller than 2 to this.
pub const MAX_ENCLAVE_SIZE_64_LOG2: u32 = 40;

/// CPUSVN of a machine whose configuration does not say otherwise.
pub const DEFAULT_CPU_SVN: [u8; 16] = [3, 3, 2, 2, 2, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0];

/// File that holds the root secret, in [`MachineConfig::state_dir`].
pub const STATE_FILE: &str = "emulated-platform.json";

/// What a [`Machine`] is to be like.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Where the root secret comes from.
    pub root: Root,
    /// CR_CPUSVN: security version of the processor. A request is beyond it when any byte is larger.
    pub cpu_svn: [u8; 16],
    /// CR_SGXOWNEREPOCH; `None`: derived from the root secret. A change of owner makes all sealed data unreadable.
    pub owner_epoch: Option<[u8; 16]>,
    /// Attribute flags that ECREATE accepts (CPUID.(EAX=12H,ECX=1):EAX, EBX).
    pub attributes: AttributesFlags,
    /// XFRM bits that ECREATE accepts, as far as the processor underneath has them (CPUID.(EAX=12H,ECX=1):ECX, EDX).
    pub xfrm: u64,
    /// Who may launch enclaves.
    pub launch_control: LaunchControl,
    /// Bytes of enclave page cache, shared by all enclaves of the machine.
    pub epc_bytes: u64,
    /// Has the processor SGX2 (CPUID.(EAX=12H,ECX=0):EAX\[1\]), and the kernel dynamic memory?
    pub sgx2: bool,
}

/// Where the root secret comes from.
#[derive(Clone, Debug)]
pub enum Root {
    /// [`STATE_FILE`] in this directory; made when there is none.
    Directory(PathBuf),
    /// This seed. For tests: everybody who knows it has all keys.
    Seed([u8; 32]),
}

/// Launch control (SDM vol. 3D, "SGX Launch Control Configuration").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchControl {
    /// Flexible: IA32_SGXLEPUBKEYHASH is writable and, as Linux does, set to the signer's hash before each EINIT.
    Flexible,
    /// IA32_SGXLEPUBKEYHASH is locked to this value.
    Locked([u8; 32]),
}

impl Default for MachineConfig {
    /// The user's machine: root secret in the state directory, all the processor has, as much EPC as there is memory.
    fn default() -> Self {
        use AttributesFlags as A;
        Self {
            root: Root::Directory(Self::state_dir()),
            cpu_svn: DEFAULT_CPU_SVN,
            owner_epoch: None,
            attributes: A::DEBUG | A::MODE64BIT | A::PROVISIONKEY | A::EINITTOKENKEY | A::KSS,
            // x87, SSE, AVX, AVX-512 and PKRU. Not AMX: Linux gives it to a process only on request.
            xfrm: 0x2e7,
            launch_control: LaunchControl::Flexible,
            epc_bytes: physical_memory(),
            sgx2: true,
        }
    }
}

impl MachineConfig {
    /// A machine for tests: its secrets are those of the seed.
    pub fn with_seed(seed: [u8; 32]) -> Self {
        Self { root: Root::Seed(seed), ..Self::default() }
    }

    /// `$ENCLOS_STATE`, else `$XDG_STATE_HOME/enclos`, else `$HOME/.local/state/enclos`.
    pub fn state_dir() -> PathBuf {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        var("ENCLOS_STATE")
            .or_else(|| var("XDG_STATE_HOME").filter(|p| p.is_absolute()).map(|p| p.join("enclos")))
            .or_else(|| var("HOME").map(|p| p.join(".local/state/enclos")))
            .unwrap_or_else(|| PathBuf::from(".enclos"))
    }
}

/// The emulated machine.
#[derive(Debug)]
pub struct Machine {
    pub(super) secrets: Secrets,
    pub(super) cpu_svn: [u8; 16],
    pub(super) attributes: AttributesFlags,
    pub(super) xfrm: u64,
    pub(super) miscselect: Miscselect,
    pub(super) launch_control: LaunchControl,
    pub(super) sgx2: bool,
    epc_bytes: u64,
    epc_used: AtomicU64,
}

/// What hardware keeps in fuses and registers.
pub(super) struct Secrets {
    /// The key under which keys are derived.
    pub(super) derivation_key: [u8; 16],
    /// CR_SEAL_FUSES.
    pub(super) seal_fuses: [u8; 16],
    /// CR_SGXOWNEREPOCH.
    pub(super) owner_epoch: [u8; 16],
    /// CR_REPORT_KEYID.
    pub(super) report_keyid: [u8; 32],
    root: [u8; 32],
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets { .. }")
    }
}

impl Machine {
    /// A machine of this configuration. All enclaves that are to share its EPC must be made on one `Machine`.
    ///
    /// # Errors
    /// When the root secret cannot be read or made.
    pub fn new(config: &MachineConfig) -> Result<Arc<Self>, StateError> {
        let root = match &config.root {
            Root::Seed(seed) => *seed,
            Root::Directory(dir) => load_root(dir)?,
        };
        let half = |label| {
            let mut half = [0; 16];
            half.copy_from_slice(&derive(&root, label)[..16]);
            half
        };
        let secrets = Secrets {
            derivation_key: half("key derivation"),
            seal_fuses: half("seal fuses"),
            owner_epoch: config.owner_epoch.unwrap_or_else(|| half("owner epoch")),
            report_keyid: derive(&root, "report key id"),
            root,
        };
        Ok(Arc::new(Self {
            secrets,
            cpu_svn: config.cpu_svn,
            attributes: config.attributes,
            xfrm: config.xfrm & supported_xfrm(),
            miscselect: Miscselect::EXINFO,
            launch_control: config.launch_control,
            sgx2: config.sgx2,
            epc_bytes: config.epc_bytes,
            epc_used: AtomicU64::new(0),
        }))
    }

    /// CR_CPUSVN.
    pub fn cpu_svn(&self) -> [u8; 16] {
        self.cpu_svn
    }

    /// The XFRM bits that enclaves may have.
    pub fn xfrm(&self) -> u64 {
        self.xfrm
    }

    /// A secret of this machine for a purpose, for what surrounds the processor on a real platform (provisioning,
    /// quoting). Different for each label, and of no relation to the keys of EGETKEY.
    pub fn platform_secret(&self, label: &str) -> [u8; 32] {
        derive(&self.secrets.root, &format!("platform: {label}"))
    }

    /// Bytes of EPC: used, all.
    pub fn epc(&self) -> (u64, u64) {
        (self.epc_used.load(Ordering::Relaxed), self.epc_bytes)
    }

    /// Takes EPC; it must be given back.
    pub(super) fn take_epc(&self, bytes: u64) -> Result<(), PlatformError> {
        let taken = self.epc_used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| *sum <= self.epc_bytes)
        });
        taken.map(drop).map_err(|used| PlatformError::EpcExhausted {
            needed: bytes,
            available: self.epc_bytes.saturating_sub(used),
        })
    }

    pub(super) fn give_epc(&self, bytes: u64) {
        self.epc_used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Why the machine's secrets are not available.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The file system refused.
    #[error("{what} {}: {source}; set ENCLOS_STATE to a directory you can write", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The file is not what this version writes.
    #[error(
        "{} is not a state of the emulated platform ({reason}); remove it to start with new secrets \
         (data sealed on this emulated platform will be unreadable)",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Others than the owner may read or write the file.
    #[error("{} has mode {mode:o}, it must be the owner's alone: run `chmod 600` on it", path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The system has no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// [`STATE_FILE`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    /// Hexadecimal, 32 bytes.
    root: String,
}

fn load_root(dir: &Path) -> Result<[u8; 32], StateError> {
    let path = dir.join(STATE_FILE);
    match read_root(&path) {
        Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |source| StateError::Io { what, path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("making", dir))?;
    let mut root = [0; 32];
    getrandom::fill(&mut root).map_err(StateError::Random)?;
    // Written aside and then linked, which fails when somebody else was first: never half a file, never two secrets.
    let mut suffix = [0; 8];
    getrandom::fill(&mut suffix).map_err(StateError::Random)?;
    let aside = dir.join(format!("{STATE_FILE}.{}", hex(&suffix)));
    let state = State { version: 1, root: hex(&root) };
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&aside)?;
        serde_json::to_writer(&mut file, &state)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        match fs::hard_link(&aside, &path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    })();
    let _ = fs::remove_file(&aside);
    written.map_err(io("writing", &path))?;
    read_root(&path)
}

fn read_root(path: &Path) -> Result<[u8; 32], StateError> {
    let io = |source| StateError::Io { what: "reading", path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StateError::Permissions { path: path.to_owned(), mode });
    }
    let malformed = |reason: String| StateError::Malformed { path: path.to_owned(), reason };
    let text = io::read_to_string(file).map_err(io)?;
    let state: State = serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))?;
    if state.version != 1 {
        return Err(malformed(format!("version {} instead of 1", state.version)));
    }
    unhex(&state.root).ok_or_else(|| malformed("the root secret is not 64 hexadecimal digits".into()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(out)
}

fn derive(root: &[u8; 32], label: &str) -> [u8; 32] {
    let hash = Sha256::new().chain_update(b"enclos emulated SGX machine, version 1\0").chain_update(root);
    hash.chain_update(label).finalize().into()
}

/// What the processor underneath can save and the kernel has enabled (XCR0).
pub(crate) fn supported_xfrm() -> u64 {
    // Leaf 1 exists on every x86-64 processor.
    let osxsave = core::arch::x86_64::__cpuid(1).ecx >> 27 & 1 == 1;
    if !osxsave {
        return 0;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE says that XGETBV may be used in user mode; XCR0 exists.
    unsafe {
        core::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

fn physical_memory() -> u64 {
    // SAFETY: plain queries.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    u64::try_from(pages).unwrap_or(0).saturating_mul(u64::try_from(size).unwrap_or(0))
}
