//! `enclos key-broker`

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use enclos_attested_tls::{CollateralSource, CollateralUnavailable, OfflineCollateral};
use enclos_key_broker::audit::{AuditLog, Entry, Happened};
use enclos_key_broker::collateral::{Sources, pccs};
use enclos_key_broker::http::{self, Tls};
use enclos_key_broker::store::{Store, StoredKey, key_from_jwk};
use enclos_key_broker::{Broker, jwe::ContentKey};
use enclos_platform::emulator::machine::MachineConfig;
use enclos_quoting::EmulatedQuoting;
use enclos_verifier::{Collateral, CollateralKey, IdentityRule, Policy, Quote, Time};
use serde_json::{Value, json};

use super::{Error, Outcome, read, say_json};
use crate::quoting::{self, TcbStateOption};
use crate::ui::{BAD, DIM, GOOD, LABEL, Ui, WARN, say};

const AFTER_HELP: &str = "\
Examples:
  enclos key-broker add digits --policy policy.toml        a new random key, and which enclaves get it
  enclos model encrypt digits.onnx --key digits            encrypt with it: digits.onnx.jwe
  enclos key-broker serve --listen 127.0.0.1:8095          release keys to enclaves that meet their policies
  enclos inference --model digits.onnx.jwe --key-broker http://127.0.0.1:8095
  enclos key-broker log                                    which measurement got which key, and who was refused
  enclos key-broker revoke digits                          released no more, from this moment on

A policy is what `enclos verify` takes (docs/evidence.md); the shortest that lets one enclave have the key:

  [[identity]]
  kind = \"sgx\"
  mr_enclave = \"...\"        # `enclos inference --only-build --json` says it

Emulated platforms are refused unless the policy names their root. The store is a folder that only its owner can read: whoever
can change it decides who gets keys, so there is no other administration, and a broker that serves heeds changes at once.
docs/key-broker.md says what the broker promises, and what not.";

/// Release the keys of encrypted models to enclaves whose evidence meets their owner's policy.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The store: a folder [default: key-broker in the state folder]
    #[arg(long, value_name = "FOLDER", global = true)]
    store: Option<PathBuf>,
    /// Results as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Add a key with its policy
    Add {
        /// Its name, which encrypted models carry in the open (kid)
        name: String,
        /// What evidence must meet, TOML
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
        /// Add this key, a JSON Web Key of 256 bits, rather than a new random one
        #[arg(long, value_name = "FILE")]
        import: Option<PathBuf>,
    },
    /// Show the keys there are, and who gets them
    List,
    /// Release a key no more
    Revoke {
        /// Its name
        name: String,
    },
    /// Write a key as a JSON Web Key, for other JOSE tools
    Export {
        /// Its name
        name: String,
        /// Where to, readable by its owner only; default: standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Serve until interrupt or SIGTERM
    Serve(Serve),
    /// Show every release and refusal
    Log {
        /// Of this key only
        #[arg(long, value_name = "NAME")]
        key: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Address and port; port 0: any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8095")]
    listen: SocketAddr,
    /// Collateral to appraise by, JSON; may be given several times
    #[arg(long, value_name = "FILE")]
    collateral: Vec<PathBuf>,
    /// Fetch collateral from this provisioning service, such as https://localhost:8081/sgx/certification/v4/
    #[arg(long, value_name = "URL")]
    pccs: Option<String>,
    /// Serve HTTPS with this certificate chain, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let store = open(args.store.as_deref())?;
    match &args.command {
        Command::Add { name, policy, import } => {
            let key =
                import.as_deref().map(|path| key_from_jwk(&read(path)?).map_err(Error::from)).transpose()?;
            let key = add(&store, name, key, policy, ui)?;
            if ui.json() {
                say_json(&described(&key));
            }
        }
        Command::List => list(&store, ui)?,
        Command::Revoke { name } => {
            let time = store.revoke(name)?;
            record(&store, Happened::Revoked, name)?;
            ui.status("revoked", format_args!("{name}: a broker that serves releases it no more"));
            if ui.json() {
                say_json(&json!({ "key": name, "revoked": time }));
            }
        }
        Command::Export { name, output } => {
            let key = store.key(name)?;
            match output {
                None => say!("{}", &*key.jwk()),
                Some(path) => {
                    write_private(path, key.jwk().as_bytes())?;
                    ui.status("wrote", path.display());
                }
            }
        }
        Command::Serve(serve) => self::serve(store, serve, ui)?,
        Command::Log { key } => log(&store, key.as_deref(), ui)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The store in a folder, or the user's own.
pub(crate) fn open(folder: Option<&Path>) -> Result<Store, Error> {
    let folder = folder.map_or_else(|| MachineConfig::state_dir().join("key-broker"), Path::to_path_buf);
    Ok(Store::open(&folder)?)
}

/// Adds a key, and says what its policy means.
pub(crate) fn add(
    store: &Store,
    name: &str,
    key: Option<ContentKey>,
    policy: &Path,
    ui: Ui,
) -> Result<StoredKey, Error> {
    let text = String::from_utf8(read(policy)?)
        .map_err(|_| Error::Usage(format!("{} is not text", policy.display())))?;
    let key = store.add(name, key, &text)?;
    record(store, Happened::Added, name)?;
    ui.status("added", format_args!("{name}, for {}", who(&key.policy)));
    if !key.policy.emulated_roots.is_empty() {
        ui.warn("the policy accepts an emulated platform: whoever runs it can read the key");
    }
    if key.policy.allow_debug {
        ui.warn("the policy accepts debug enclaves: whoever runs one can read the key");
    }
    Ok(key)
}

fn record(store: &Store, event: Happened, name: &str) -> Result<(), Error> {
    let entry = Entry {
        time: Time::now(),
        event,
        key: name.to_owned(),
        reasons: Vec::new(),
        evidence: None,
        from: None,
    };
    Ok(AuditLog::open(store.folder())?.record(&entry)?)
}

/// Writes a secret in one step, readable by its owner only.
fn write_private(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = || -> std::io::Result<()> {
        // A temporary file is its owner's alone from the start.
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        std::io::Write::write_all(&mut file, contents)?;
        file.persist(path)?;
        Ok(())
    };
    written().map_err(|source| Error::Write { path: path.into(), source })
}

/// Who gets a key.
fn who(policy: &Policy) -> String {
    let short = |text: String| format!("{}…", &text[..16.min(text.len())]);
    let one = |rule: &IdentityRule| match rule {
        IdentityRule::Sgx { mr_enclave: Some(mr_enclave), .. } => {
            format!("MRENCLAVE {}", short(mr_enclave.to_string()))
        }
        IdentityRule::Sgx { mr_signer, product_id, minimum_svn, .. } => format!(
            "MRSIGNER {}, product {}, security version {} or later",
            mr_signer.map_or_else(String::new, |m| short(m.to_string())),
            product_id.unwrap_or_default(),
            minimum_svn.unwrap_or_default()
        ),
        IdentityRule::Tdx { mr_td, .. } => format!("MRTD {}", short(mr_td.to_string())),
        IdentityRule::SevSnp { measurement, .. } => format!("measurement {}", short(measurement.to_string())),
    };
    let emulated = if policy.emulated_roots.is_empty() { "" } else { "; emulated platforms, too" };
    format!("{}{emulated}", policy.identity.iter().map(one).collect::<Vec<_>>().join(", or "))
}

fn described(key: &StoredKey) -> Value {
    json!({ "key": key.key_id, "added": key.added, "revoked": key.revoked, "policy": key.policy })
}

fn list(store: &Store, ui: Ui) -> Result<(), Error> {
    let names = store.key_ids()?;
    if names.is_empty() {
        ui.status("empty", store.folder().display());
    }
    for name in names {
        let key = store.key(&name)?;
        if ui.json() {
            say_json(&described(&key));
            continue;
        }
        let revoked = key.revoked.map(|time| format!("{WARN}revoked {time}{WARN:#}, ")).unwrap_or_default();
        say!("{LABEL}{name}{LABEL:#}  {revoked}added {}, for {}", key.added, who(&key.policy));
    }
    Ok(())
}

fn serve(store: Store, args: &Serve, ui: Ui) -> Result<(), Error> {
    let mut sources = Sources::default();
    // No emulated machine is made for a broker that needs none.
    if MachineConfig::state_dir().join(enclos_quoting::STATE_FILE).is_file() {
        let quoting = quoting::open(TcbStateOption::default())?;
        sources.emulated = Some((quoting.root_key_id(), Arc::new(Here(quoting))));
    }
    for path in &args.collateral {
        let collateral = Collateral::from_json(&read(path)?)
            .map_err(|source| Error::Collateral { path: path.clone(), source })?;
        sources.others.push(Arc::new(OfflineCollateral(Arc::new(collateral))));
    }
    if let Some(url) = &args.pccs {
        sources.others.push(Arc::new(pccs(url).map_err(|error| Error::Usage(error.to_string()))?));
    }
    let tls = args.tls_certificate.clone().zip(args.tls_key.clone());
    let tls = tls.map(|(certificate, key)| Tls { certificate, key });
    let scheme = if tls.is_some() { "https" } else { "http" };
    let keys = store.key_ids()?.len();
    let ready = |address: SocketAddr| {
        let url = format!("{scheme}://{address}");
        if ui.json() {
            say_json(&json!({ "url": url }));
        }
        ui.status("listening", format_args!("{url}, with {keys} keys of {}", store.folder().display()));
    };
    http::run(Broker::new(store.clone(), sources)?, args.listen, tls.as_ref(), ready)?;
    ui.status("ended", "in good order");
    Ok(())
}

/// Collateral of this user's emulated platform.
#[derive(Debug)]
struct Here(EmulatedQuoting);

impl CollateralSource for Here {
    fn collateral(&self, quote: &Quote<'_>, time: Time) -> Result<Arc<Collateral>, CollateralUnavailable> {
        let unavailable = |reason: String| CollateralUnavailable { reason };
        if CollateralKey::of(quote)?.fmspc.0 != enclos_quoting::FMSPC {
            return Err(unavailable("the platform is not this emulated one".into()));
        }
        self.0.collateral(time).map(Arc::new).map_err(|e| unavailable(e.to_string()))
    }
}

fn log(store: &Store, key: Option<&str>, ui: Ui) -> Result<(), Error> {
    let recorded = AuditLog::read(store.folder())?;
    for entry in recorded.entries.iter().filter(|entry| key.is_none_or(|key| key == entry.key)) {
        match ui.json() {
            true => say_json(entry),
            false => show(entry),
        }
    }
    if recorded.unreadable > 0 {
        ui.warn(format_args!(
            "{} lines of the record are no entries: a process that was killed in mid-line leaves one, anything else is damage",
            recorded.unreadable
        ));
    }
    Ok(())
}

fn show(entry: &Entry) {
    let (style, event) = match entry.event {
        Happened::Released => (GOOD, "released"),
        Happened::Refused => (BAD, "refused"),
        Happened::Added => (LABEL, "added"),
        Happened::Revoked => (WARN, "revoked"),
    };
    let from = entry.from.as_ref().map(|from| format!("  {DIM}from {from}{DIM:#}")).unwrap_or_default();
    say!("{}  {style}{event:8}{style:#}  {}{from}", entry.time, entry.key);
    if let Some(evidence) = &entry.evidence {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let measurement = match &evidence.identity["mr_enclave"] {
            Value::Null => evidence.identity.to_string(),
            mr_enclave => format!(
                "MRENCLAVE {}\n    MRSIGNER  {}, product {}, security version {}",
                text(mr_enclave),
                text(&evidence.identity["mr_signer"]),
                evidence.identity["product_id"],
                evidence.identity["svn"]
            ),
        };
        say!("    {measurement}");
        let genuine = match (evidence.genuine, evidence.emulated) {
            (false, _) => format!("{BAD}not genuine{BAD:#}: somebody says so"),
            (true, true) => format!("{WARN}EMULATED{WARN:#}"),
            (true, false) => "genuine".to_owned(),
        };
        say!("    TCB {}, {genuine}", text(&evidence.tcb_status));
    }
    for reason in &entry.reasons {
        say!("    - {reason}");
    }
}
