//! `enclos.toml`: what a developer writes, and how it becomes the measured [`Manifest`].
//!
//! ```toml
//! name = "vault"              # for people; required
//! threads = 8                 # threads inside at once, the first included; 1 to 1024
//! heap = "64 MiB"             # memory for malloc and thread stacks, at most
//! stack = "1 MiB"             # stack of the first thread, taken from the heap
//! profile = "sgx1"            # "sgx1": all memory part of the image; "sgx2": it grows on demand, up to these limits
//! avx512 = false              # true: programs may use AVX-512 on platforms that have it
//! debug = false               # true: readable by a debugger, and by anyone else
//! product-id = 0              # ISVPRODID: tells images of one signer apart
//! security-version = 0        # ISVSVN: raise it with every security fix
//! args = true                 # may the host pass program arguments?
//! stdio = true                # may output go to the host in plain text?
//! stdin = false               # may input come from the host?
//! env = ["RUST_LOG"]          # environment variables the host may set
//! services = ["clock"]        # host services that may be called
//! signals = ["TERM", "INT"]   # signals the host may send: HUP, INT, QUIT, USR1, USR2, TERM, WINCH
//!
//! [fixed-env]                 # measured values; the host cannot override them
//! RUST_BACKTRACE = "1"
//!
//! [network]                   # addresses the enclave may use; see `enclos::network` for how to write them
//! listen = ["0.0.0.0:8443"]   # bind to exactly these; port 0 is a port of the host's choice
//! connect = ["10.0.0.0/8:443"]
//!
//! [[mounts]]                  # directories that the host gives at run time, and where they are seen
//! path = "/data"
//! kind = "sealed"             # "sealed": the host keeps ciphertext; "host": its own files, untrusted
//! policy = "signer"           # of sealed ones: "signer" (default) or "image" can open them
//! writable = false            # of the host's own: may they be changed?
//!
//! [build]                     # read by `enclos build` only; not measured
//! crate = "enclave"           # folder of the enclave's crate, from this file
//! bin = "vault-enclave"       # which binary, when the crate has several
//! features = []
//! ```
//! Every key but `name` has the default shown above, except `env`, `services`, `signals`, `fixed-env`, `network`, `mounts`
//! and `features`, which default to empty, and `crate`: `enclave` if that folder exists, else the folder of the file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use enclos::manifest::{MANIFEST_VERSION, Manifest, Mount, MountKind};
use serde::{Deserialize, Deserializer, de};

/// Name of the configuration file.
pub const FILE_NAME: &str = "enclos.toml";

/// The contents of an `enclos.toml`. See the module for what each key means.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// Name of the application, for people.
    pub name: Name,
    /// Number of TCSs.
    #[serde(default)]
    pub threads: Threads,
    /// Size of the heap.
    #[serde(default = "default_heap")]
    pub heap: Size,
    /// Size of the first thread's stack.
    #[serde(default = "default_stack")]
    pub stack: Size,
    /// Which generation of SGX the image is for.
    #[serde(default)]
    pub profile: Profile,
    /// May the program use AVX-512 where the platform has it?
    #[serde(default)]
    pub avx512: bool,
    /// Is this a debug image?
    #[serde(default)]
    pub debug: bool,
    /// ISVPRODID.
    #[serde(default)]
    pub product_id: u16,
    /// ISVSVN.
    #[serde(default)]
    pub security_version: u16,
    /// May the host pass program arguments?
    #[serde(default = "yes")]
    pub args: bool,
    /// May standard output and error go to the host?
    #[serde(default = "yes")]
    pub stdio: bool,
    /// May standard input come from the host?
    #[serde(default)]
    pub stdin: bool,
    /// Environment variables the host may set.
    #[serde(default)]
    pub env: Vec<Variable>,
    /// Host services that may be called.
    #[serde(default)]
    pub services: Vec<Name>,
    /// Signals that the host may send to the program.
    #[serde(default)]
    pub signals: Vec<Signal>,
    /// Variables with a measured value.
    #[serde(default)]
    pub fixed_env: BTreeMap<Variable, Value>,
    /// Addresses that may be used.
    #[serde(default)]
    pub network: NetworkConfig,
    /// Directories of the host and where they are seen.
    #[serde(default)]
    pub mounts: Vec<MountConfig>,
    /// What `enclos build` needs to know.
    #[serde(default)]
    pub build: BuildConfig,
}

/// The `[network]` table: nothing is permitted that is not here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NetworkConfig {
    /// Addresses that may be listened on.
    #[serde(default)]
    pub listen: Vec<Address>,
    /// Addresses that may be connected to or sent to.
    #[serde(default)]
    pub connect: Vec<Address>,
}

/// A `[[mounts]]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawMount")]
pub struct MountConfig {
    /// Where.
    pub path: String,
    /// What is in it.
    pub kind: MountKind,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawMount {
    path: String,
    kind: RawKind,
    policy: Option<RawPolicy>,
    writable: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawKind {
    Sealed,
    Host,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawPolicy {
    Signer,
    Image,
}

impl TryFrom<RawMount> for MountConfig {
    type Error = String;

    fn try_from(raw: RawMount) -> Result<Self, String> {
        let path = raw.path;
        if !Mount::is_path(&path) {
            return Err(format!(
                "{path:?} is no place for a mount: write an absolute path such as \"/data\""
            ));
        }
        let kind = match (raw.kind, raw.policy, raw.writable) {
            (RawKind::Sealed, None | Some(RawPolicy::Signer), None) => MountKind::SealedSigner,
            (RawKind::Sealed, Some(RawPolicy::Image), None) => MountKind::SealedImage,
            (RawKind::Sealed, _, Some(_)) => {
                return Err("sealed files can always be written: leave `writable` out".into());
            }
            (RawKind::Host, None, writable) => match writable {
                Some(true) => MountKind::HostWritable,
                _ => MountKind::HostReadOnly,
            },
            (RawKind::Host, Some(_), _) => {
                return Err(
                    "files of the host are not sealed: leave `policy` out, or write kind = \"sealed\"".into(),
                );
            }
        };
        Ok(Self { path, kind })
    }
}

/// The `[build]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BuildConfig {
    /// Folder of the enclave's crate, relative to the file.
    #[serde(rename = "crate")]
    pub crate_dir: Option<PathBuf>,
    /// Which binary of the crate.
    pub bin: Option<String>,
    /// Cargo features to enable.
    #[serde(default)]
    pub features: Vec<String>,
}

/// Which generation of SGX an image is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Heap and threads are part of the image.
    #[default]
    Sgx1,
    /// Heap and threads grow on demand, up to the same limits.
    Sgx2,
}

impl Config {
    /// A configuration with every default.
    ///
    /// # Errors
    /// When the name is not usable.
    pub fn new(name: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            name: Name::new(name).map_err(|message| ConfigError::Name { message })?,
            threads: Threads::default(),
            heap: default_heap(),
            stack: default_stack(),
            profile: Profile::default(),
            avx512: false,
            debug: false,
            product_id: 0,
            security_version: 0,
            args: true,
            stdio: true,
            stdin: false,
            env: Vec::new(),
            services: Vec::new(),
            signals: Vec::new(),
            fixed_env: BTreeMap::new(),
            network: NetworkConfig::default(),
            mounts: Vec::new(),
            build: BuildConfig::default(),
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or [`Config::parse`] refuses it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        Self::parse(&text, path)
    }

    /// Reads the text of a file; `path` is for messages only.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with line and column.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let invalid = |at: usize, message: String| {
            let before = &text.as_bytes()[..at.min(text.len())];
            let line = before.iter().filter(|b| **b == b'\n').count() + 1;
            let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
            ConfigError::Invalid { path: path.to_path_buf(), line, column, message }
        };
        let config: Self = toml::from_str(text)
            .map_err(|e| invalid(e.span().map_or(0, |s| s.start), e.message().to_owned()))?;
        if config.stack.0 > config.heap.0 / 2 {
            let at = text.find("stack").unwrap_or(0);
            return Err(invalid(
                at,
                format!(
                    "the first thread's stack ({}) must not take more than half of the heap ({}): raise `heap` or \
                     lower `stack`",
                    config.stack, config.heap
                ),
            ));
        }
        for (i, mount) in config.mounts.iter().enumerate() {
            let inside = |other: &MountConfig| {
                other.path == mount.path || mount.path.starts_with(&format!("{}/", other.path))
            };
            let mut others = config.mounts.iter().enumerate().filter(|(j, _)| *j != i);
            if let Some((_, other)) = others.find(|(_, other)| inside(other)) {
                let at = text.rfind(&mount.path).unwrap_or(0);
                let message =
                    format!("{} is within the mount {}: mounts do not overlap", mount.path, other.path);
                return Err(invalid(at, message));
            }
        }
        Ok(config)
    }

    /// The measured manifest, encoded.
    pub(crate) fn manifest(&self) -> Result<Vec<u8>, enclos::manifest::ManifestError> {
        let list = |items: Vec<String>| items.join("\n");
        let env = list(self.env.iter().map(|v| v.0.clone()).collect());
        let fixed_env = list(self.fixed_env.iter().map(|(n, v)| format!("{}={}", n.0, v.0)).collect());
        let services = list(self.services.iter().map(|s| s.0.clone()).collect());
        let rules = |rules: &[Address]| list(rules.iter().map(|a| a.0.clone()).collect());
        let (listen, connect) = (rules(&self.network.listen), rules(&self.network.connect));
        let mount = |m: &MountConfig| Mount { path: &m.path, kind: m.kind }.to_string();
        let mounts = list(self.mounts.iter().map(mount).collect());
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            name: &self.name.0,
            threads: self.threads.0,
            heap_bytes: self.heap.0,
            stack_bytes: self.stack.0,
            env: &env,
            fixed_env: &fixed_env,
            args: self.args,
            services: &services,
            stdio: self.stdio,
            stdin: self.stdin,
            product_id: self.product_id,
            security_version: self.security_version,
            debug: self.debug,
            dynamic_memory: self.profile == Profile::Sgx2,
            listen: &listen,
            connect: &connect,
            mounts: &mounts,
            signals: self.signals.iter().fold(0, |set, s| set | 1 << (s.number() - 1)),
            avx512: self.avx512,
        };
        let lists = [&env, &fixed_env, &services, &listen, &connect, &mounts];
        let text = self.name.0.len() + lists.iter().map(|l| l.len()).sum::<usize>();
        let mut buffer = vec![0; text + 256];
        let used = manifest.encode(&mut buffer)?.len();
        buffer.truncate(used);
        Ok(buffer)
    }
}

/// A name of one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn new(name: &str) -> Result<Self, String> {
        if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
            return Err(format!("a name has 1 to 128 bytes and no control characters, this is {name:?}"));
        }
        Ok(Self(name.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of an environment variable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variable(String);

impl Variable {
    fn new(name: &str) -> Result<Self, String> {
        if name.is_empty() || name.contains(['=', '\0', '\n']) {
            return Err(format!("{name:?} cannot be the name of an environment variable"));
        }
        Ok(Self(name.to_owned()))
    }
}

/// The value of an environment variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value(String);

impl Value {
    fn new(value: &str) -> Result<Self, String> {
        if value.contains(['\0', '\n']) {
            return Err(format!(
                "{value:?} cannot be a measured environment value: it spans lines or has a NUL"
            ));
        }
        Ok(Self(value.to_owned()))
    }
}

/// A signal that a host may send: those by which people and service managers tell programs something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names of signal(7)")]
pub enum Signal {
    Hup,
    Int,
    Quit,
    Usr1,
    Usr2,
    Term,
    Winch,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Hup, Self::Int, Self::Quit, Self::Usr1, Self::Usr2, Self::Term, Self::Winch];

    /// Its number on x86-64 Linux.
    pub fn number(self) -> u32 {
        match self {
            Self::Hup => 1,
            Self::Int => 2,
            Self::Quit => 3,
            Self::Usr1 => 10,
            Self::Usr2 => 12,
            Self::Term => 15,
            Self::Winch => 28,
        }
    }

    /// Its name, as `enclos.toml` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hup => "HUP",
            Self::Int => "INT",
            Self::Quit => "QUIT",
            Self::Usr1 => "USR1",
            Self::Usr2 => "USR2",
            Self::Term => "TERM",
            Self::Winch => "WINCH",
        }
    }
}

/// An address or a set of addresses, as [`enclos::network::Rule`] reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(String);

impl Address {
    /// Checks a rule.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn new(text: &str) -> Result<Self, String> {
        enclos::network::Rule::parse(text).map_err(|e| format!("{text:?} is not an address: {e}"))?;
        Ok(Self(text.to_owned()))
    }
}

macro_rules! deserialize_checked {
    ($($name:ident)*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Self::new(&String::deserialize(d)?).map_err(de::Error::custom)
            }
        }
    )*};
}
deserialize_checked!(Name Variable Value Address);

/// A number of threads, 1 to 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads(u32);

impl Threads {
    /// Checks a number.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn new(threads: u32) -> Result<Self, String> {
        if !(1..=1024).contains(&threads) {
            return Err(format!("threads must be 1 to 1024, this is {threads}"));
        }
        Ok(Self(threads))
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for Threads {
    fn default() -> Self {
        Self(8)
    }
}

impl<'de> Deserialize<'de> for Threads {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(u32::deserialize(d)?).map_err(de::Error::custom)
    }
}

/// A size in bytes, a whole number of pages: `"64 MiB"`, `"512 KiB"`, `"1 GiB"` or a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(u64);

impl Size {
    /// Largest size accepted: 64 GiB, beyond any EPC.
    const MAX: u64 = 64 << 30;

    /// Checks a number of bytes and rounds it up to pages.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn new(bytes: u64) -> Result<Self, String> {
        if !(65536..=Self::MAX).contains(&bytes) {
            return Err(format!("a size must be 64 KiB to 64 GiB, this is {bytes} bytes"));
        }
        Ok(Self(bytes.next_multiple_of(4096)))
    }

    /// The number of bytes.
    pub fn get(self) -> u64 {
        self.0
    }

    fn parse(text: &str) -> Result<Self, String> {
        let hint = || format!("{text:?} is not a size: write a number and a unit, for example \"64 MiB\"");
        let text = text.trim();
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let shift = match unit.trim() {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => return Err(hint()),
        };
        let number: u64 = number.parse().map_err(|_| hint())?;
        Self::new(number.checked_mul(1 << shift).ok_or_else(hint)?)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if bytes.trailing_zeros() >= shift {
                return write!(f, "{} {unit}", bytes >> shift);
            }
        }
        write!(f, "{bytes} B")
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"64 MiB\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                Size::parse(text).map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                let bytes = u64::try_from(bytes).map_err(|_| E::custom(format!("{bytes} is not a size")))?;
                Size::new(bytes).map_err(E::custom)
            }
        }
        d.deserialize_any(Visitor)
    }
}

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}; `enclos new` makes a project with one", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not a configuration.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in bytes, from 1.
        column: usize,
        /// What is wrong and what to write instead.
        message: String,
    },
    /// The name is not usable.
    #[error("{message}")]
    Name {
        /// What is wrong.
        message: String,
    },
}

fn yes() -> bool {
    true
}

fn default_heap() -> Size {
    Size(64 << 20)
}

fn default_stack() -> Size {
    Size(1 << 20)
}
