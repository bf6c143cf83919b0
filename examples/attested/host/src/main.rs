//! The host program of the attested dice, and a relying party. The two would be different people: what passes between them
//! is a nonce one way, and statement, evidence and collateral the other.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dice::{DiceClient, MAX_NONCE, Roll};
use enclos_host::{Enclave, Kind, PlatformChoice};
use enclos_pack::Image;
use enclos_platform::emulator::machine::{Machine, MachineConfig};
use enclos_quoting::EmulatedQuoting;
use enclos_verifier::{
    AnyCollateral, Bytes, Collateral, Evidence, Hex, Policy, PolicyError, RootOfTrust, Time, Verdict,
    appraise,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Dice whose rolls can be believed, by those who trust the platform they run on.
#[derive(Debug, Parser)]
#[command(
    name = "dice",
    after_help = "Through enclos:\n  enclos run examples/attested\n  enclos run examples/attested -- --output folder"
)]
struct Cli {
    /// The enclave's image; `enclos run` sets it
    #[arg(long, env = "ENCLOS_IMAGE", default_value = default_image())]
    image: PathBuf,
    /// auto, hardware or emulated
    #[arg(long, env = "ENCLOS_PLATFORM", default_value = "auto")]
    platform: PlatformChoice,
    /// Also write statement.json, quote.bin, collateral.json and root.pem into this folder
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Judge, and have collateral, as of this time; default: now
    #[arg(long)]
    time: Option<Time>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("dice: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Box<dyn Error>> {
    let time = cli.time.unwrap_or_else(Time::now);
    // The relying party knows whom to expect, because it has built the same sources, and asks for something new.
    let expected = Image::parse(&fs::read(&cli.image)?)?.mrenclave();
    let nonce = fresh_nonce()?;
    println!("The relying party sends the nonce {nonce}.");

    let (roll, platform) = roll(cli, &nonce)?;
    println!("The enclave says {} and attests to it in {} bytes.\n", roll.statement, roll.evidence.len());
    if platform == Kind::Hardware {
        return on_hardware(cli, &roll);
    }

    // On hardware this comes from a provisioning service; for an emulated platform, from whoever runs that.
    let quoting =
        EmulatedQuoting::open(&Machine::new(&MachineConfig::default())?, &MachineConfig::state_dir())?;
    let collateral = quoting.collateral(time)?;
    if let Some(folder) = &cli.output {
        write(folder, &roll, Some((&collateral, quoting.root_certificate())))?;
    }
    let believe = |roll: &Roll, policy: &Policy| believe(roll, &nonce, policy, &collateral, time);
    let by_default = policy(expected, None)?;
    let told = policy(expected, Some(quoting.root_key_id()))?;

    println!("1. A relying party that accepts this enclave, on any platform of Intel's:");
    match believe(&roll, &by_default) {
        Ok(_) => return Err("evidence of an emulated platform was accepted by default".into()),
        Err(reason) => println!("   REFUSED: {reason}\n"),
    }
    println!("2. Told to accept the emulated root {}, for tests:", quoting.root_key_id());
    let value = believe(&roll, &told)?;
    println!("   ACCEPTED, but emulated: the dice show {value}.\n");

    println!("3. The host changes the statement:");
    let altered = Roll { statement: with_another_roll(&roll.statement, value), ..roll.clone() };
    match believe(&altered, &told) {
        Ok(_) => return Err("a statement that the enclave did not make was accepted".into()),
        Err(reason) => println!("   {}\n   REFUSED: {reason}\n", altered.statement),
    }
    println!("4. A relying party that expects another enclave:");
    let other = policy([0x11; 32], Some(quoting.root_key_id()))?;
    match believe(&roll, &other) {
        Ok(_) => return Err("another enclave was accepted".into()),
        Err(reason) => println!("   REFUSED: {reason}"),
    }
    Ok(())
}

/// Starts the enclave, has it roll, and ends it.
fn roll(cli: &Cli, nonce: &str) -> Result<(Roll, Kind), Box<dyn Error>> {
    let enclave = Enclave::builder(&cli.image).platform(cli.platform).start()?;
    let outcome = enclave.connect::<DiceClient<_>>().map_err(Into::into).and_then(|dice| {
        let roll: Result<Roll, Box<dyn Error>> = dice.roll(nonce).map_err(Into::into);
        roll
    });
    let platform = enclave.platform();
    let ended = enclave.shutdown(Duration::from_secs(5));
    let roll = outcome?;
    match ended {
        Ok(0) => Ok((roll, platform)),
        other => Err(format!("the enclave did not end in good order: {other:?}").into()),
    }
}

/// What the relying party demands: this enclave, under Intel's root or an emulated one that it is told.
fn policy(mr_enclave: [u8; 32], emulated_root: Option<Hex<32>>) -> Result<Policy, PolicyError> {
    let emulated_roots = emulated_root.map(|root| format!("\"{root}\"")).unwrap_or_default();
    Policy::from_toml(&format!(
        "emulated_roots = [{emulated_roots}]\n[[identity]]\nkind = \"sgx\"\nmr_enclave = \"{}\"",
        Hex(mr_enclave)
    ))
}

/// The relying party: evidence first, then that it is about this statement, then that the statement answers the nonce.
fn believe(
    roll: &Roll,
    nonce: &str,
    policy: &Policy,
    collateral: &Collateral,
    time: Time,
) -> Result<u64, String> {
    let bound = Sha256::digest(&roll.statement).to_vec();
    let policy = Policy { report_data_prefix: Some(Bytes(bound)), ..policy.clone() };
    let collateral = AnyCollateral::Dcap(Box::new(collateral.clone()));
    let verdict =
        appraise(Evidence::detect(&roll.evidence), &collateral, time, &policy).map_err(|e| e.to_string())?;
    if !verdict.accepted {
        return Err(why(&verdict));
    }
    let statement: Value = serde_json::from_str(&roll.statement).map_err(|e| e.to_string())?;
    if statement["nonce"] != nonce {
        return Err("the statement answers another nonce".into());
    }
    statement["roll"].as_u64().ok_or_else(|| "the statement has no roll".into())
}

fn why(verdict: &Verdict) -> String {
    let first = verdict.reasons.first().map(ToString::to_string).unwrap_or_default();
    match verdict.appraisal.root_of_trust {
        Some(RootOfTrust::Unknown { .. }) => format!("its root is nobody's that is trusted. {first}"),
        _ => first,
    }
}

fn on_hardware(cli: &Cli, roll: &Roll) -> Result<(), Box<dyn Error>> {
    let folder = cli.output.as_deref().unwrap_or(Path::new("."));
    write(folder, roll, None)?;
    println!(
        "This is SGX hardware: fetch the collateral of {} from your PCCS, and have `enclos verify` judge it.",
        folder.join("quote.bin").display()
    );
    Ok(())
}

fn write(folder: &Path, roll: &Roll, platform: Option<(&Collateral, &str)>) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("statement.json"), &roll.statement)?;
    fs::write(folder.join("quote.bin"), &roll.evidence)?;
    if let Some((collateral, root)) = platform {
        fs::write(folder.join("collateral.json"), serde_json::to_vec_pretty(collateral)?)?;
        fs::write(folder.join("root.pem"), root)?;
    }
    Ok(())
}

fn with_another_roll(statement: &str, value: u64) -> String {
    statement.replace(&format!("\"roll\":{value}"), &format!("\"roll\":{}", value % 6 + 1))
}

fn fresh_nonce() -> Result<String, Box<dyn Error>> {
    let mut nonce = [0; MAX_NONCE / 2];
    getrandom::fill(&mut nonce)?;
    Ok(hex::encode(nonce))
}

/// Where `enclos build` puts the image.
fn default_image() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../target/enclos/dice.enclave")
}
