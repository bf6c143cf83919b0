//! `enclos verify`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use enclos_verifier::{
    AnyCollateral, Bytes, CollateralKey, Evidence, Policy, Quote, RootOfTrust, SnpReport, Time, Verdict,
    appraise,
};

use super::{Error, Outcome, hexadecimal, read, say_json};
use crate::ui::{BAD, DIM, GOOD, Ui, WARN, say};

/// Evidence is refused.
const REFUSED: u8 = 4;

const EXAMPLES: &str = "\
Examples:
  enclos verify quote.bin --policy policy.toml --collateral collateral.json
  enclos verify quote.bin --policy policy.toml --collateral c.json --time 2025-06-20T00:00:00Z --json
  enclos verify quote.bin --policy policy.toml --collateral c.json --nonce 00112233

Evidence: an SGX or TDX quote, with or without an Open Enclave header, or an SEV-SNP report. What a policy can demand is in
docs/evidence.md; without one, everything has its strictest value. The shortest that can accept anything:

  [[identity]]
  kind = \"sgx\"
  mr_enclave = \"...\"        # 64 hexadecimal digits

Exit codes:
  0    accepted
  1    unusable: a file that cannot be read, or is no evidence, collateral or policy
  2    wrong usage
  4    refused; the reasons are in the verdict";

/// Judge evidence by a policy, and say why.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A file of evidence
    evidence: PathBuf,
    /// The policy, TOML (or JSON, if it is called *.json); default: the strictest
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Collateral, JSON; default: EVIDENCE with .collateral.json behind it
    #[arg(long, value_name = "FILE")]
    collateral: Option<PathBuf>,
    /// Judge as of this time, such as 2025-06-20T00:00:00Z; default: now
    #[arg(long)]
    time: Option<Time>,
    /// Demand report data that begin with this nonce, hexadecimal
    #[arg(long, value_name = "HEX")]
    nonce: Option<String>,
    /// The verdict as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let policy = policy(args)?;
    let bytes = read(&args.evidence)?;
    let evidence = Evidence::detect(&bytes);
    let parsed = match evidence {
        Evidence::Quote(quote) => Quote::parse(quote).map(|_| ()).map_err(|e| e.to_string()),
        Evidence::SnpReport(report) => SnpReport::parse(report).map(|_| ()).map_err(|e| e.to_string()),
    };
    parsed.map_err(|reason| Error::NoEvidence { path: args.evidence.clone(), reason })?;
    let path = match &args.collateral {
        Some(path) => path.clone(),
        None => beside(&args.evidence)?,
    };
    let collateral = AnyCollateral::from_json(&read(&path)?)
        .map_err(|source| Error::Collateral { path: path.clone(), source })?;
    let time = args.time.unwrap_or_else(Time::now);
    let verdict = appraise(evidence, &collateral, time, &policy)?;
    if ui.json() {
        say_json(&verdict);
    } else {
        show(&verdict, &bytes);
    }
    Ok(if verdict.accepted { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

fn policy(args: &Args) -> Result<Policy, Error> {
    let mut policy = match &args.policy {
        None => Policy::default(),
        Some(path) => {
            let malformed = |source| Error::Policy { path: path.clone(), source };
            let text = String::from_utf8(read(path)?)
                .map_err(|_| Error::Usage(format!("{} is not text", path.display())))?;
            match path.extension().is_some_and(|e| e == "json") {
                true => Policy::from_json(&text).map_err(malformed)?,
                false => Policy::from_toml(&text).map_err(malformed)?,
            }
        }
    };
    if let Some(nonce) = &args.nonce {
        if policy.report_data.is_some() || policy.report_data_prefix.is_some() {
            return Err(Error::Usage("the policy demands report data itself: leave --nonce out".into()));
        }
        policy.report_data_prefix = Some(Bytes(hexadecimal("--nonce", nonce)?));
        policy = policy.checked().map_err(|e| Error::Usage(format!("--nonce: {e}")))?;
    }
    Ok(policy)
}

/// The collateral that lies beside evidence.
fn beside(evidence: &Path) -> Result<PathBuf, Error> {
    let mut name = evidence.as_os_str().to_owned();
    name.push(".collateral.json");
    let path = PathBuf::from(name);
    match path.is_file() {
        true => Ok(path),
        false => Err(Error::NoCollateral { path }),
    }
}

/// The verdict for people: the answer, the reasons, what to do about an emulated platform, then what was found.
fn show(verdict: &Verdict, evidence: &[u8]) {
    match (verdict.accepted, verdict.emulated) {
        (true, false) => say!("{GOOD}ACCEPTED{GOOD:#}"),
        (true, true) => {
            say!(
                "{WARN}ACCEPTED, but EMULATED{WARN:#}: the policy names this root; no hardware protects anything"
            );
        }
        (false, _) => say!("{BAD}REFUSED{BAD:#}"),
    }
    for reason in &verdict.reasons {
        say!("  - {reason}");
    }
    if let Some(RootOfTrust::Unknown { key }) = verdict.appraisal.root_of_trust
        && says_emulated(evidence)
    {
        say!(
            "\nThis evidence says that its platform is an emulated SGX CPU of Enclos. Such evidence proves nothing: its"
        );
        say!(
            "keys lie in a file that whoever runs the emulator can read. It is refused by default for that reason."
        );
        say!("To accept it where nothing is at stake (tests, development), name its root in the policy:\n");
        say!("  emulated_roots = [\"{key}\"]\n");
        say!("{DIM}if `enclos quote` or `enclos pccs` on that platform tells you the same root.{DIM:#}");
    }
    say!("\n{}", verdict.appraisal.to_string().trim_end());
}

/// Do the evidence's certificates call their platform emulated? Only a hint for people: anybody can write that.
fn says_emulated(evidence: &[u8]) -> bool {
    let key = Quote::parse(evidence).ok().and_then(|quote| CollateralKey::of(&quote).ok());
    key.is_some_and(|key| key.fmspc.0 == enclos_quoting::FMSPC)
}
