//! The host program of the vault: starts the enclave, keeps its file, passes requests on. It sees a secret only when
//! somebody fetches it.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use enclos_host::{Enclave, EnclaveTransport, Kind, PlatformChoice};
use vault::{Entry, StorageServer, VaultClient};
use vault_host::FileStorage;

/// A vault whose secrets only its enclave can read.
#[derive(Debug, Parser)]
#[command(name = "vault", after_help = "Through enclos: enclos run examples/vault -- fetch API_TOKEN")]
struct Cli {
    /// The enclave's image; `enclos run` sets it
    #[arg(long, env = "ENCLOS_IMAGE", default_value_os_t = default_image())]
    image: PathBuf,
    /// Where the sealed vault is kept
    #[arg(long, default_value = "vault.sealed")]
    store: PathBuf,
    /// auto, hardware or emulated
    #[arg(long, env = "ENCLOS_PLATFORM", default_value = "auto")]
    platform: PlatformChoice,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Import a .env file
    Import {
        /// The file
        file: PathBuf,
    },
    /// List names, versions and lengths
    List,
    /// Print a secret
    Fetch {
        /// Its name
        name: String,
    },
    /// Replace a secret by a random one
    Rotate {
        /// Its name
        name: String,
        /// How often; each time is stored before it is reported
        #[arg(long, default_value_t = 1)]
        times: u32,
    },
    /// All of it on the example .env, and a restart in between (the default)
    Demo,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vault: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Box<dyn Error>> {
    match cli.command.as_ref().unwrap_or(&Command::Demo) {
        Command::Demo => demo(cli),
        Command::Import { file } => {
            let text = read(file)?;
            with_vault(cli, |vault| {
                let done = vault.import(&text)?;
                println!("{} added, {} changed, {} unchanged", done.added, done.changed, done.unchanged);
                Ok(())
            })
        }
        Command::List => with_vault(cli, |vault| {
            print_entries(&vault.list()?);
            Ok(())
        }),
        Command::Fetch { name } => with_vault(cli, |vault| {
            println!("{}", vault.fetch(name)?);
            Ok(())
        }),
        Command::Rotate { name, times } => with_vault(cli, |vault| {
            for _ in 0..*times {
                let entry = vault.rotate(name)?;
                println!("{} is now at version {}", entry.name, entry.version);
            }
            Ok(())
        }),
    }
}

fn demo(cli: &Cli) -> Result<(), Box<dyn Error>> {
    let text = include_str!("../../example.env");
    with_vault(cli, |vault| {
        match vault.list()?.len() {
            0 => println!("The vault is new."),
            n => println!("Opened {} with {n} secrets of an earlier run.", cli.store.display()),
        }
        let done = vault.import(text)?;
        println!(
            "Imported example.env: {} added, {} changed, {} unchanged.",
            done.added, done.changed, done.unchanged
        );
        Ok(())
    })?;
    let sealed = fs::read(&cli.store)?;
    let leaked =
        text.lines().filter_map(|l| l.split_once('=')).map(|(_, value)| value.trim_matches(['"', '\'']));
    let leaked = leaked.filter(|v| v.len() > 8).find(|v| sealed.windows(v.len()).any(|w| w == v.as_bytes()));
    if let Some(value) = leaked {
        return Err(format!("{} holds {value:?} in plain text", cli.store.display()).into());
    }
    println!("On disk: {} bytes in {}, none of the values in plain text.", sealed.len(), cli.store.display());
    println!("\nAnother enclave, started anew, opens them:");
    with_vault(cli, |vault| {
        print_entries(&vault.list()?);
        println!("\nfetch DATABASE_URL  -> {}", vault.fetch("DATABASE_URL")?);
        let entry = vault.rotate("SESSION_KEY")?;
        println!("rotate SESSION_KEY  -> version {}", entry.version);
        println!("fetch SESSION_KEY   -> {}", vault.fetch("SESSION_KEY")?);
        match vault.fetch("NO_SUCH_NAME") {
            Err(e) => println!("fetch NO_SUCH_NAME  -> refused: {e}"),
            Ok(_) => return Err("the vault invented a secret".into()),
        }
        Ok(())
    })
}

/// Starts the enclave, lets `f` use it and ends it in good order.
fn with_vault(
    cli: &Cli,
    f: impl FnOnce(&VaultClient<EnclaveTransport>) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let enclave = Enclave::builder(&cli.image)
        .platform(cli.platform)
        .service(StorageServer::new(FileStorage::new(&cli.store)))
        .start()?;
    let platform = match enclave.platform() {
        Kind::Hardware => "SGX hardware",
        Kind::Emulated => "the emulator, which protects nothing",
    };
    let outcome = enclave.connect::<VaultClient<_>>().map_err(Into::into).and_then(|vault| f(&vault));
    let ended = enclave.shutdown(Duration::from_secs(5));
    outcome?;
    match ended {
        Ok(0) => Ok(()),
        Ok(status) => Err(format!("the enclave ended with status {status} on {platform}").into()),
        Err(end) => Err(format!("the enclave did not end in good order on {platform}: {end}").into()),
    }
}

fn print_entries(entries: &[Entry]) {
    let width = entries.iter().map(|e| e.name.len()).max().unwrap_or(0);
    for e in entries {
        println!("  {:width$}  version {}, {} bytes", e.name, e.version, e.bytes);
    }
}

fn read(path: &Path) -> Result<String, Box<dyn Error>> {
    fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()).into())
}

/// Where `enclos build` puts the image, as cargo tells those it runs; no path is compiled in, so that the program is the
/// same wherever it was built.
fn default_image() -> PathBuf {
    let project =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(PathBuf::new, |host| Path::new(&host).join(".."));
    project.join("target/enclos/vault.enclave")
}
