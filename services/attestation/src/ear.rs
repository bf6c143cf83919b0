//! EAT Attestation Results: the same appraisal in the form of draft-ietf-rats-ear, over EAT (RFC 9711).
//!
//! The trustworthiness vector says only what was appraised (draft-ietf-rats-ar4si, section 2.3): whether the hardware is
//! genuine and current, whether its configuration is in question, and whether anybody can look inside. Which code runs
//! is for the relying party to judge by the claims in the annotated evidence, so there is no claim about executables.

use enclos_verifier::{Appraisal, Tee};
use serde_json::{Map, json};

use crate::claims::{TokenClaims, TokenValue};

/// Values of the vector that are used here.
const AFFIRMING: i64 = 2;
const WARNING: i64 = 32;
const CONTRAINDICATED: i64 = 96;
/// Hardware nobody recognizes: what an emulated platform is.
const UNRECOGNIZED_HARDWARE: i64 = 97;

/// The claims of an attestation result: `evidence` are the claims of Azure's form, which it annotates.
pub(crate) fn claims(appraisal: &Appraisal, policy_hash: &str, mut evidence: TokenClaims) -> TokenClaims {
    let nonce = evidence.remove("nonce");
    let vector = vector(appraisal);
    let worst = vector.iter().map(|(_, value)| *value).max().unwrap_or(0);
    let submodule = json!({
        "ear.status": tier(worst),
        "ear.trustworthiness-vector":
            vector.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect::<Map<_, _>>(),
        "ear.appraisal-policy-id": format!("x-ms-policy-hash:{policy_hash}"),
        "ear.veraison.annotated-evidence": evidence,
    });
    let name = match appraisal.tee {
        Some(Tee::Tdx) => "tdx",
        Some(Tee::SevSnp) => "sev-snp",
        Some(Tee::Sgx) | None => "sgx",
    };
    let mut claims = TokenClaims::new();
    claims.insert("eat_profile".into(), "tag:github.com,2023:veraison/ear".into());
    claims.insert(
        "ear.verifier-id".into(),
        TokenValue::Json(json!({
            "developer": "https://github.com/enclos/enclos",
            "build": concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")),
        })),
    );
    claims.insert("submods".into(), TokenValue::Json(json!({ name: submodule })));
    if let Some(nonce) = nonce {
        claims.insert("eat_nonce".into(), nonce);
    }
    claims
}

fn vector(appraisal: &Appraisal) -> Vec<(&'static str, i64)> {
    use enclos_verifier::TcbStatus::{
        ConfigurationAndSwHardeningNeeded, ConfigurationNeeded, NotSupported, OutOfDate,
        OutOfDateConfigurationNeeded, Revoked, SwHardeningNeeded, TdRelaunchAdvised,
        TdRelaunchAdvisedConfigurationNeeded, UpToDate,
    };
    let status = appraisal.tcb.as_ref().and_then(|tcb| tcb.status);
    let hardware = match status {
        _ if appraisal.is_emulated() => UNRECOGNIZED_HARDWARE,
        // AMD publishes no levels: genuine is all that is known.
        None | Some(UpToDate | ConfigurationNeeded) => AFFIRMING,
        Some(
            SwHardeningNeeded
            | ConfigurationAndSwHardeningNeeded
            | OutOfDate
            | OutOfDateConfigurationNeeded
            | TdRelaunchAdvised
            | TdRelaunchAdvisedConfigurationNeeded,
        ) => WARNING,
        Some(Revoked | NotSupported) => CONTRAINDICATED,
    };
    let opaque = if appraisal.is_debug() || appraisal.is_emulated() { CONTRAINDICATED } else { AFFIRMING };
    let mut vector = vec![("hardware", hardware), ("runtime-opaque", opaque)];
    if let Some(
        ConfigurationNeeded
        | ConfigurationAndSwHardeningNeeded
        | OutOfDateConfigurationNeeded
        | TdRelaunchAdvisedConfigurationNeeded,
    ) = status
    {
        vector.push(("configuration", WARNING));
    }
    vector
}

/// The tier a value belongs to (draft-ietf-rats-ar4si, section 2.3.2).
fn tier(value: i64) -> &'static str {
    match value {
        ..2 => "none",
        2..32 => "affirming",
        32..96 => "warning",
        96.. => "contraindicated",
    }
}
