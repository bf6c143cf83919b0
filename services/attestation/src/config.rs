//! Configuration of the service, in TOML.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use enclos_verifier::{Acceptance, Hex, TcbPolicy, TcbStatus, Time};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;

use crate::{
    engine::{CollateralDocument, PlatformDemands, Settings, TenantSettings},
    service::{OpenError, Service},
    store::{EmbeddedStore, PostgresStore, Store, StoreError},
};

/// What the service is to do. Unknown keys are errors; paths are relative to the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address to serve on.
    pub listen: SocketAddr,
    /// TLS; without it the service speaks plain HTTP, which it does on loopback only.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// Folder of the embedded store. Either this or `postgres` is given.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// The store that replicas of the service share.
    #[serde(default)]
    pub postgres: Option<Postgres>,
    /// Folder of collateral: a `.json` file per platform, in the form the `dcap-qvl` tools exchange. This or `pccs` is given, or
    /// both.
    #[serde(default)]
    pub collateral: Option<PathBuf>,
    /// Where collateral of other platforms is fetched when their evidence comes, and fetched anew before it expires.
    #[serde(default)]
    pub pccs: Option<Pccs>,
    /// Whom the service serves: one table a tenant.
    #[serde(rename = "tenant")]
    pub tenants: Vec<Tenant>,
    /// What is demanded of platforms, before any policy.
    #[serde(default = "lenient")]
    pub tcb: TcbPolicy,
    /// Emulated roots to accept, by SHA-256 of their SubjectPublicKeyInfo. In development only.
    #[serde(default)]
    pub emulated_roots: Vec<Hex<32>>,
    /// Judge evidence as of this time instead of now, for tests with recorded evidence. Tokens carry the present.
    #[serde(default)]
    pub evidence_time: Option<Time>,
    /// Days a signing key is used, 3 to 3650.
    #[serde(default = "ninety")]
    pub key_rotation_days: u32,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
    /// Who may manage policies. Without it anybody may: on loopback only.
    #[serde(default)]
    pub authentication: Option<Authentication>,
}

/// A PostgreSQL database.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// Where and as whom, as PostgreSQL's own programs take it (`host=… user=… dbname=…`), without a password.
    pub connection: String,
    /// File of the password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// Roots the server's certificate is checked against, PEM; without it, those of the system. Connections that leave
    /// the machine always use TLS, those on it when this is given or the connection says `sslmode=require`.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// A provisioning service.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pccs {
    /// Its address, such as `https://localhost:8081/sgx/certification/v4/`.
    pub url: String,
    /// Folder in which what it gives is kept until it expires.
    #[serde(default)]
    pub cache: Option<PathBuf>,
    /// Roots its server certificate is checked against, PEM; without it, those that browsers trust.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// Bearer tokens to accept for reading and changing policies.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authentication {
    /// Issuer the tokens must name.
    pub issuer: String,
    /// Audience the tokens must name.
    pub audience: String,
    /// File of the issuer's keys, a JSON Web Key Set. Without it they are found at the issuer, which then must be an
    /// address (OpenID Connect Discovery).
    #[serde(default)]
    pub jwks: Option<PathBuf>,
    /// Roots the issuer's server certificate is checked against, PEM; without it, those of the system.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// Certificate and key of the server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Chain, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// One customer, told apart by the host name of a request.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// Host name, without port.
    pub host: String,
    /// What tokens name as issuer, when it is not `https://` and the host and port.
    #[serde(default)]
    pub issuer: Option<String>,
    /// Certificates whose keys may sign policies at first, PEM. With it policies must be signed ("isolated mode").
    #[serde(default)]
    pub policy_signers: Option<PathBuf>,
}

/// Bounds on requests.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest request body, bytes.
    pub body_bytes: usize,
    /// Attestations judged at a time; more wait.
    pub concurrent: usize,
    /// Requests that may wait; more are refused with 429.
    pub waiting: usize,
    /// Connections open at a time; more wait to be accepted.
    pub connections: usize,
    /// Seconds a request may take.
    pub request_seconds: u64,
    /// Requests a client address may make a second, on average over ten seconds; 0 for any number.
    pub client_requests_per_second: u32,
    /// Seconds after which it is looked again whether a signing key is due to be succeeded, and fetched collateral to be fetched
    /// anew.
    pub upkeep_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            body_bytes: 1 << 20,
            concurrent: processors,
            waiting: 1024,
            connections: 4096,
            request_seconds: 30,
            client_requests_per_second: 0,
            upkeep_seconds: 3600,
        }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a configuration.
    #[error("{}: {reason}", .path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// What must not be open to a network would be.
    #[error(
        "{listen} is not a loopback address, and there is no [{missing}]; add it, or listen on 127.0.0.1"
    )]
    Exposed {
        /// The address.
        listen: SocketAddr,
        /// The table that is missing.
        missing: &'static str,
    },
    /// Keys would be used for too short or too long.
    #[error("key_rotation_days is {0}; it must be 3 to 3650")]
    Rotation(u32),
    /// The issuer's keys cannot be found.
    #[error(
        "the keys of the issuer {issuer:?} of [authentication] cannot be found: {reason}; or name a file, jwks"
    )]
    Issuer {
        /// The issuer.
        issuer: String,
        /// Why not.
        reason: String,
    },
    /// There is no store, or two; or no collateral.
    #[error("{0}")]
    Store(&'static str),
    /// The provisioning service.
    #[error("[pccs]: {0}")]
    Pccs(#[from] enclos_pccs::ServiceError),
    /// There is no tenant, or one twice.
    #[error("{0}")]
    Tenants(String),
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] when it cannot be read or used.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config: Self = toml::from_str(&text)
            .map_err(|error| ConfigError::Content { path: path.to_owned(), reason: error.to_string() })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let postgres = config.postgres.iter_mut().flat_map(|p| [p.password_file.as_mut(), p.ca.as_mut()]);
        let pccs = config.pccs.iter_mut().flat_map(|p| [p.cache.as_mut(), p.ca.as_mut()]);
        let paths = [config.data.as_mut(), config.collateral.as_mut()]
            .into_iter()
            .chain(postgres)
            .chain(pccs)
            .chain(
                config
                    .tls
                    .as_mut()
                    .into_iter()
                    .flat_map(|tls| [Some(&mut tls.certificate), Some(&mut tls.key)]),
            )
            .chain(config.tenants.iter_mut().map(|tenant| tenant.policy_signers.as_mut()))
            .chain(config.authentication.iter_mut().flat_map(|a| [a.jwks.as_mut(), a.ca.as_mut()]));
        for path in paths.flatten() {
            *path = folder.join(&*path);
        }
        config.checked()
    }

    /// Checks a configuration made in code.
    ///
    /// # Errors
    /// [`ConfigError`] when it would expose the service, or its tenants are not usable.
    pub fn checked(self) -> Result<Self, ConfigError> {
        if !self.listen.ip().is_loopback() {
            for (missing, there) in
                [("tls", self.tls.is_some()), ("authentication", self.authentication.is_some())]
            {
                if !there {
                    return Err(ConfigError::Exposed { listen: self.listen, missing });
                }
            }
        }
        match (&self.data, &self.postgres) {
            (None, None) => {
                return Err(ConfigError::Store(
                    "there is no store; add data, a folder for the embedded one, or [postgres]",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(ConfigError::Store(
                    "data and [postgres] are both given; remove the store that is not meant",
                ));
            }
            _ => {}
        }
        if self.collateral.is_none() && self.pccs.is_none() {
            return Err(ConfigError::Store(
                "there is no collateral; add collateral, a folder of it, or [pccs], a provisioning service",
            ));
        }
        if !(3..=3650).contains(&self.key_rotation_days) {
            return Err(ConfigError::Rotation(self.key_rotation_days));
        }
        if self.tenants.is_empty() {
            return Err(ConfigError::Tenants("there is no [[tenant]]; add one with its host".into()));
        }
        for (index, tenant) in self.tenants.iter().enumerate() {
            let again =
                self.tenants[..index].iter().any(|other| other.host.eq_ignore_ascii_case(&tenant.host));
            if tenant.host.is_empty() || tenant.host.contains([':', '/']) || again {
                return Err(ConfigError::Tenants(format!(
                    "tenant host {:?} is empty, has a port or path, or is there twice",
                    tenant.host
                )));
            }
        }
        Ok(self)
    }

    /// What is demanded of platforms.
    #[must_use]
    pub fn demands(&self) -> PlatformDemands {
        PlatformDemands {
            tcb: self.tcb.clone(),
            emulated_roots: self.emulated_roots.clone(),
            evidence_time: self.evidence_time,
        }
    }

    /// What an engine is told, with everything that the configuration names read. `port` is where the service is served.
    ///
    /// # Errors
    /// [`ConfigError`] when a file cannot be read.
    pub fn settings(&self, port: u16) -> Result<Settings, ConfigError> {
        let (scheme, usual) = if self.tls.is_some() { ("https", 443) } else { ("http", 80) };
        let mut tenants = Vec::new();
        for tenant in &self.tenants {
            let name = tenant.host.to_lowercase();
            let authority = if port == usual { name.clone() } else { format!("{name}:{port}") };
            tenants.push(TenantSettings {
                issuer: tenant.issuer.clone().unwrap_or(format!("{scheme}://{authority}")),
                policy_signers: tenant.policy_signers.as_deref().map(certificates).transpose()?,
                name,
            });
        }
        Ok(Settings {
            demands: self.demands(),
            tenants,
            collateral: self.collateral.as_deref().map(collateral).transpose()?.unwrap_or_default(),
            key_rotation_days: self.key_rotation_days,
        })
    }

    /// Opens the store that the configuration names.
    ///
    /// # Errors
    /// [`StartError`] when it cannot be used.
    pub fn open_store(&self) -> Result<Box<dyn Store>, StartError> {
        match (&self.data, &self.postgres) {
            (_, Some(postgres)) => Ok(Box::new(PostgresStore::open(postgres)?)),
            (Some(folder), None) => Ok(Box::new(EmbeddedStore::open(folder)?)),
            (None, None) => Err(ConfigError::Store("there is no store").into()),
        }
    }
}

impl Service {
    /// Opens the service that a configuration describes, in this process.
    ///
    /// # Errors
    /// [`StartError`] when something it names is not usable.
    pub fn open(config: &Config) -> Result<Self, StartError> {
        let settings = config.settings(config.listen.port())?;
        Ok(Self::start(settings, config.open_store()?, None)?)
    }
}

/// The certificates in a PEM file, DER.
fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, ConfigError> {
    let refuse = |reason: String| ConfigError::Content { path: path.to_owned(), reason };
    let text = std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let read = CertificateDer::pem_slice_iter(&text).map(|one| one.map(|der| der.to_vec()));
    read.collect::<Result<_, _>>().map_err(|error| refuse(error.to_string()))
}

/// Every `.json` file of a folder, by name.
fn collateral(folder: &Path) -> Result<Vec<CollateralDocument>, ConfigError> {
    let unreadable = |path: &Path, source| ConfigError::Read { path: path.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| unreadable(folder, error))? {
        paths.push(entry.map_err(|error| unreadable(folder, error))?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let document = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, error))?;
        Ok(CollateralDocument { name: path.display().to_string(), text })
    };
    paths.into_iter().map(document).collect()
}

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The service.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The engine that is to be in an enclave.
    #[error(transparent)]
    Engine(Box<dyn std::error::Error + Send + Sync>),
    /// The server's certificate or key.
    #[error("TLS: {0}")]
    Tls(String),
    /// The operating system gives no threads.
    #[error("threads cannot be started: {source}; check the limits of the process")]
    Threads {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The address.
    #[error("cannot serve on {address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Whether a host name or address means this machine, without asking anybody.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// Everything a platform that is not broken may have: what suffices is for policies to say.
fn lenient() -> TcbPolicy {
    use TcbStatus::{
        ConfigurationAndSwHardeningNeeded, ConfigurationNeeded, SwHardeningNeeded, TdRelaunchAdvised,
        UpToDate,
    };
    let accept = [
        UpToDate,
        SwHardeningNeeded,
        ConfigurationNeeded,
        ConfigurationAndSwHardeningNeeded,
        TdRelaunchAdvised,
    ];
    TcbPolicy { accept: accept.map(Acceptance::Status).to_vec(), ..TcbPolicy::default() }
}

fn ninety() -> u32 {
    90
}
