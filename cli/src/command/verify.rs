//! `enclos verify`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use enclos_verifier::{
    AnyCollateral, Bytes, CollateralKey, Evidence, Hex, Policy, Quote, RootOfTrust, SigningEvidence,
    SnpReport, Time, Verdict, appraise,
};
use serde::Deserialize;
use serde_json::json;

use super::{Error, Outcome, hexadecimal, read, say_json};
use crate::provisioning::Provisioning;
use crate::ui::{BAD, DIM, GOOD, Ui, WARN, say};

/// Evidence is refused.
const REFUSED: u8 = 4;

const EXAMPLES: &str = "\
Examples:
  enclos verify quote.bin --policy policy.toml --collateral collateral.json
  enclos verify quote.bin --policy policy.toml --collateral c.json --time 2025-06-20T00:00:00Z --json
  enclos verify quote.bin --policy policy.toml --collateral c.json --nonce 00112233
  enclos verify quote.bin --policy policy.toml --pccs https://localhost:8081/sgx/certification/v4/
  curl http://127.0.0.1:8080/certs > certs.json && enclos verify certs.json --policy policy.toml --collateral c.json

Evidence: an SGX or TDX quote, with or without an Open Enclave header, an SEV-SNP report; or signing certificates of an
attestation service that runs in an enclave (PEM, DER, or /certs), each of which must carry evidence about its own key. What a policy can demand is in
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
    #[arg(long, value_name = "FILE", conflicts_with = "pccs")]
    collateral: Option<PathBuf>,
    #[command(flatten)]
    provisioning: Provisioning,
    /// Judge as of this time, such as 2025-06-20T00:00:00Z; default: now
    #[arg(long)]
    time: Option<Time>,
    /// Demand report data that begin with this nonce, hexadecimal
    #[arg(long, value_name = "HEX")]
    nonce: Option<String>,
    /// Of signing certificates: demand that the service demands of platforms what has this SHA-256, as
    /// `enclos attestation-service --check` says it
    #[arg(long, value_name = "HEX", conflicts_with = "nonce")]
    demands: Option<Hex<32>>,
    /// The verdict as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let policy = policy(args)?;
    let bytes = read(&args.evidence)?;
    let unusable = |reason: String| Error::NoEvidence { path: args.evidence.clone(), reason };
    let certificates = certificates(&bytes).map_err(unusable)?;
    let accepted = match certificates {
        None if args.demands.is_some() => {
            return Err(Error::Usage(
                "--demands is for signing certificates; this is a quote or report".into(),
            ));
        }
        None => {
            parse(&bytes).map_err(unusable)?;
            let verdict = judge(args, &bytes, &policy)?;
            if ui.json() {
                say_json(&verdict);
            } else {
                show(&verdict, &bytes);
            }
            verdict.accepted
        }
        Some(certificates) => {
            let mut keys = Vec::new();
            for evidence in certificates.iter().map(|one| signing_evidence(one)) {
                let evidence = evidence.map_err(unusable)?;
                parse(&evidence.report).map_err(unusable)?;
                let verdict = judge(args, &evidence.report, &about_key(args, &policy, &evidence)?)?;
                keys.push((evidence, verdict));
            }
            show_keys(&keys, ui);
            keys.iter().all(|(_, verdict)| verdict.accepted)
        }
    };
    Ok(if accepted { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

fn judge(args: &Args, bytes: &[u8], policy: &Policy) -> Result<Verdict, Error> {
    let evidence = Evidence::detect(bytes);
    let collateral = collateral(args, evidence, policy)?;
    let time = args.time.unwrap_or_else(Time::now);
    Ok(appraise(evidence, &collateral, time, policy)?)
}

fn collateral(args: &Args, evidence: Evidence<'_>, policy: &Policy) -> Result<AnyCollateral, Error> {
    if args.provisioning.pccs.is_some() {
        let Evidence::Quote(quote) = evidence else {
            return Err(Error::Usage("--pccs is for SGX and TDX quotes; this is an SEV-SNP report".into()));
        };
        let unusable = |reason: String| Error::NoEvidence { path: args.evidence.clone(), reason };
        let quote = Quote::parse(quote).map_err(|error| unusable(error.to_string()))?;
        if let Some(collateral) = args.provisioning.collateral(&quote, policy)? {
            return Ok(AnyCollateral::Dcap(Box::new(collateral)));
        }
    }
    let path = match &args.collateral {
        Some(path) => path.clone(),
        None => beside(&args.evidence)?,
    };
    AnyCollateral::from_json(&read(&path)?).map_err(|source| Error::Collateral { path, source })
}

/// Is it evidence at all? Otherwise says why not.
fn parse(bytes: &[u8]) -> Result<(), String> {
    match Evidence::detect(bytes) {
        Evidence::Quote(quote) => Quote::parse(quote).map(drop).map_err(|e| e.to_string()),
        Evidence::SnpReport(report) => SnpReport::parse(report).map(drop).map_err(|e| e.to_string()),
    }
}

/// The signing certificates in a file, if it is one of them: DER, PEM, or the JSON Web Key Set of `/certs`.
fn certificates(bytes: &[u8]) -> Result<Option<Vec<Vec<u8>>>, String> {
    /// DER of a SEQUENCE, PEM, a JSON object.
    const BEGINNINGS: [(&[u8], Form); 3] =
        [(b"\x30", Form::Certificate), (b"-----BEGIN", Form::Certificate), (b"{", Form::KeySet)];
    #[derive(Clone, Copy)]
    enum Form {
        Certificate,
        KeySet,
    }
    #[derive(Deserialize)]
    struct KeySet {
        keys: Vec<Key>,
    }
    #[derive(Deserialize)]
    struct Key {
        x5c: Vec<String>,
    }
    let trimmed = bytes.trim_ascii_start();
    match BEGINNINGS.iter().find(|(beginning, _)| trimmed.starts_with(beginning)) {
        None => Ok(None),
        Some((_, Form::Certificate)) => Ok(Some(vec![trimmed.to_vec()])),
        Some((_, Form::KeySet)) => {
            let set: KeySet =
                serde_json::from_slice(trimmed).map_err(|e| format!("it is no key set: {e}"))?;
            let first = |key: &Key| -> Result<Vec<u8>, String> {
                let text = key.x5c.first().ok_or("a key has no certificate (x5c)")?;
                Ok(format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n").into_bytes())
            };
            let certificates = set.keys.iter().map(first).collect::<Result<Vec<_>, _>>()?;
            match certificates.is_empty() {
                true => Err("the key set has no keys".into()),
                false => Ok(Some(certificates)),
            }
        }
    }
}

fn signing_evidence(certificate: &[u8]) -> Result<SigningEvidence, String> {
    SigningEvidence::of(certificate).map_err(|e| e.to_string())?.ok_or_else(|| {
        format!(
            "the certificate carries no evidence (extension {}): its service does not run in an enclave, or does not say so",
            enclos_verifier::SIGNING_EVIDENCE_OID
        )
    })
}

/// The policy, and that the evidence is about the key of the certificate it came in.
fn about_key(args: &Args, policy: &Policy, evidence: &SigningEvidence) -> Result<Policy, Error> {
    if policy.report_data.is_some() || policy.report_data_prefix.is_some() {
        return Err(Error::Usage(
            "what evidence in a signing certificate must be about is its key: leave report data and --nonce out".into(),
        ));
    }
    let mut policy = policy.clone();
    match args.demands {
        None => policy.report_data_prefix = Some(Bytes(evidence.key.0.to_vec())),
        Some(demands) => {
            let mut report_data = [0; 64];
            report_data[..32].copy_from_slice(&evidence.key.0);
            report_data[32..].copy_from_slice(&demands.0);
            policy.report_data = Some(Hex(report_data));
        }
    }
    policy.checked().map_err(|e| Error::Usage(e.to_string()))
}

fn show_keys(keys: &[(SigningEvidence, Verdict)], ui: Ui) {
    if ui.json() {
        let one = |(evidence, verdict): &(SigningEvidence, Verdict)| json!({ "key": evidence.key, "demands": evidence.rest, "verdict": verdict });
        let accepted = keys.iter().all(|(_, verdict)| verdict.accepted);
        return say_json(&json!({ "accepted": accepted, "keys": keys.iter().map(one).collect::<Vec<_>>() }));
    }
    for (evidence, verdict) in keys {
        say!("signing key {} (SHA-256 of its PEM form, as in its name)", evidence.key);
        if let Some(demands) = evidence.rest {
            say!(
                "demands of platforms: {demands} (`enclos attestation-service --check` says what has this SHA-256)"
            );
        }
        show(verdict, &evidence.report);
        say!("");
    }
}

/// The policy in a file; without one, the strictest.
pub(super) fn policy_of(path: Option<&Path>) -> Result<Policy, Error> {
    let Some(path) = path else { return Ok(Policy::default()) };
    let malformed = |source| Error::Policy { path: path.into(), source };
    let text = String::from_utf8(read(path)?)
        .map_err(|_| Error::Usage(format!("{} is not text", path.display())))?;
    match path.extension().is_some_and(|e| e == "json") {
        true => Policy::from_json(&text).map_err(malformed),
        false => Policy::from_toml(&text).map_err(malformed),
    }
}

fn policy(args: &Args) -> Result<Policy, Error> {
    let mut policy = policy_of(args.policy.as_deref())?;
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
pub(super) fn show(verdict: &Verdict, evidence: &[u8]) {
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
