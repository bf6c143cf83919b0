//! The claims evidence yields, named as Azure Attestation names them.
//!
//! [`Claims::incoming`] is what policies see, with the deprecated names; [`Claims::token`] is what the token carries
//! whatever the policy issues besides.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use enclos_verifier::{
    Tee, hexadecimal,
    quote::{Body, EnclaveReport, Quote, TdReport},
    {SnpReport, SnpTcb},
};
use serde::Serialize;
use serde_json::{Map, Value as Json};
use smol_str::SmolStr;

use crate::{
    jws::base64url,
    policy::{Claim, Value},
};

/// Claims of one piece of evidence.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims {
    /// For the policy.
    pub(crate) incoming: Vec<Claim>,
    /// For the token.
    pub(crate) token: TokenClaims,
}

/// The claims of a token, by name.
pub(crate) type TokenClaims = BTreeMap<SmolStr, TokenValue>;

/// What a claim of a token says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum TokenValue {
    /// What policies see as well.
    Plain(Value),
    /// Something with structure.
    Json(Json),
    /// What an SGX quote was judged by.
    Collateral(Arc<CollateralClaim>),
}

/// Hashes of what an SGX quote was judged by, and of itself: SHA-256 in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(crate) struct CollateralClaim {
    pub(crate) qeidcertshash: SmolStr,
    pub(crate) qeidcrlhash: SmolStr,
    pub(crate) qeidhash: SmolStr,
    /// Of the quote; empty in what is kept of collateral.
    pub(crate) quotehash: SmolStr,
    pub(crate) tcbinfocertshash: SmolStr,
    pub(crate) tcbinfocrlhash: SmolStr,
    pub(crate) tcbinfohash: SmolStr,
}

impl TokenValue {
    fn to_json_text(&self) -> String {
        serde_json::to_string(self).expect("claims are serializable")
    }

    /// Makes an array of what is there and `value`, or a longer one.
    fn and(&mut self, value: Value) {
        let value = to_json(value);
        match self {
            Self::Json(Json::Array(values)) => values.push(value),
            single => {
                let first = serde_json::to_value(&*single).expect("claims are serializable");
                *single = Self::Json(Json::Array(vec![first, value]));
            }
        }
    }
}

impl<T: Into<Value>> From<T> for TokenValue {
    fn from(value: T) -> Self {
        Self::Plain(value.into())
    }
}

/// Data that the attester bound into its evidence, after the binding was checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum BoundData {
    /// Bytes without meaning to the service.
    Binary(Vec<u8>),
    /// A JSON object.
    Json(Map<String, Json>),
}

impl Claims {
    fn put(&mut self, name: &'static str, value: impl Into<Value>) {
        let value = value.into();
        self.token.insert(SmolStr::new_static(name), value.clone().into());
        self.hint(name, value);
    }

    /// For policies only.
    fn hint(&mut self, name: &'static str, value: impl Into<Value>) {
        self.incoming.push(Claim::of_service(SmolStr::new_static(name), value));
    }

    fn put_json(&mut self, name: &'static str, value: Json) {
        self.hint(name, value.to_string());
        self.token.insert(SmolStr::new_static(name), TokenValue::Json(value));
    }

    /// Claims every kind of evidence has.
    pub(crate) fn common(
        &mut self,
        attestation_type: &'static str,
        policy_hash: &SmolStr,
        policy_signer: Option<Json>,
    ) {
        // About what evidence of any kind yields, and what a policy adds to it.
        self.incoming.reserve(64);
        let version = SmolStr::new_static("1.0");
        let attestation_type = SmolStr::new_static(attestation_type);
        self.put("x-ms-ver", version.clone());
        self.put("x-ms-attestation-type", attestation_type.clone());
        self.put("x-ms-policy-hash", policy_hash.clone());
        for (name, value) in [
            ("ver", &version),
            ("tee", &attestation_type),
            ("$tee", &attestation_type),
            ("maa-policyHash", policy_hash),
            ("policy_hash", policy_hash),
        ] {
            self.hint(name, value.clone());
        }
        if let Some(signer) = policy_signer {
            self.hint("policy_signer", signer.to_string());
            self.put_json("x-ms-policy-signer", signer);
        }
    }

    /// Claims of an SGX quote; `collateral` is what it was judged by.
    pub(crate) fn sgx(
        &mut self,
        report: &EnclaveReport<'_>,
        collateral: CollateralClaim,
        baseline: Option<&str>,
    ) {
        let mr_enclave = hex_text(report.mr_enclave());
        let mr_signer = hex_text(report.mr_signer());
        let product_id = i64::from(report.isv_prod_id());
        let svn = i64::from(report.isv_svn());
        self.put("x-ms-sgx-is-debuggable", report.is_debug());
        self.put("x-ms-sgx-mrenclave", mr_enclave.clone());
        self.put("x-ms-sgx-mrsigner", mr_signer.clone());
        self.put("x-ms-sgx-product-id", product_id);
        self.put("x-ms-sgx-svn", svn);
        self.put("x-ms-sgx-report-data", hex_text(report.report_data()));
        // SDM vol. 3D, table 38-21: ISVEXTPRODID at 32, ISVFAMILYID at 304.
        self.put("x-ms-sgx-config-id", hex_text(report.config_id()));
        self.put("x-ms-sgx-config-svn", i64::from(report.config_svn()));
        self.put("x-ms-sgx-isv-extended-product-id", hex_text(&report.0[32..48]));
        self.put("x-ms-sgx-isv-family-id", hex_text(&report.0[304..320]));
        if let Some(baseline) = baseline {
            self.put("x-ms-sgx-tcbidentifier", baseline);
        }
        let collateral = TokenValue::Collateral(Arc::new(collateral));
        let text = SmolStr::from(collateral.to_json_text());
        for name in ["x-ms-sgx-collateral", "maa-attestationcollateral"] {
            self.hint(name, text.clone());
            self.token.insert(SmolStr::new_static(name), collateral.clone());
        }
        self.hint("$is-debuggable", report.is_debug());
        self.hint("$sgx-mrenclave", mr_enclave);
        self.hint("$sgx-mrsigner", mr_signer);
        self.hint("$product-id", product_id);
        self.hint("$svn", svn);
    }

    /// Claims of a TDX quote.
    pub(crate) fn tdx(&mut self, report: &TdReport<'_>, tcb_status: &str) {
        let attributes = report.td_attributes();
        let bit = |index: usize| attributes[index / 8] & 1 << (index % 8) != 0;
        for (name, bytes) in [
            ("tdx_mrseam", &report.mr_seam()[..]),
            ("tdx_mrsignerseam", report.mr_signer_seam()),
            ("tdx_mrtd", report.mr_td()),
            ("tdx_mrconfigid", report.mr_config_id()),
            ("tdx_mrowner", report.mr_owner()),
            ("tdx_mrownerconfig", report.mr_owner_config()),
            ("tdx_report_data", report.report_data()),
            ("tdx_seam_attributes", report.seam_attributes()),
            ("tdx_td_attributes", attributes),
            ("tdx_tee_tcb_svn", report.tee_tcb_svn()),
            ("tdx_xfam", report.xfam()),
        ] {
            self.put(name, hex_text(bytes));
        }
        for (name, register) in ["tdx_rtmr0", "tdx_rtmr1", "tdx_rtmr2", "tdx_rtmr3"].iter().zip(report.rtmr())
        {
            self.put(name, hex_text(register));
        }
        // The module's SVN is the low two bytes of TEE_TCB_SVN.
        let [low, high, ..] = *report.tee_tcb_svn();
        self.put("tdx_seamsvn", i64::from(u16::from_le_bytes([low, high])));
        // TDX module specification, table "TD attributes".
        self.put("tdx_td_attributes_debug", bit(0));
        self.put("tdx_td_attributes_septve_disable", bit(28));
        self.put("tdx_td_attributes_protection_keys", bit(30));
        self.put("tdx_td_attributes_key_locker", bit(31));
        self.put("tdx_td_attributes_perfmon", bit(63));
        self.put("attester_tcb_status", tcb_status);
        self.put("dbgstat", if report.is_debug() { "enabled" } else { "disabled" });
        self.put("eat_profile", "https://aka.ms/maa-eat-profile-tdxvm");
        self.put("intuse", "generic");
    }

    /// Claims of an SEV-SNP report of `report_bytes`.
    pub(crate) fn snp(&mut self, report: &SnpReport<'_>, report_bytes: &[u8], tcb: SnpTcb) {
        // AMD 56860, table "ATTESTATION_REPORT"; the length was checked when the report was parsed.
        let field = |offset: usize, len: usize| {
            report_bytes.get(offset..offset + len).map(hex_text).unwrap_or_default()
        };
        let number = |offset: usize| {
            let bytes = report_bytes.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok());
            i64::from(u32::from_le_bytes(bytes.unwrap_or_default()))
        };
        let policy = report.guest_policy();
        self.put("x-ms-sevsnpvm-authorkeydigest", field(0x110, 48));
        self.put("x-ms-sevsnpvm-idkeydigest", field(0xe0, 48));
        self.put("x-ms-sevsnpvm-familyId", field(0x10, 16));
        self.put("x-ms-sevsnpvm-imageId", field(0x20, 16));
        self.put("x-ms-sevsnpvm-hostdata", field(0xc0, 32));
        self.put("x-ms-sevsnpvm-launchmeasurement", hex_text(report.measurement()));
        self.put("x-ms-sevsnpvm-reportdata", hex_text(report.report_data()));
        self.put("x-ms-sevsnpvm-reportid", field(0x140, 32));
        self.put("x-ms-sevsnpvm-guestsvn", number(0x04));
        self.put("x-ms-sevsnpvm-vmpl", number(0x30));
        self.put("x-ms-sevsnpvm-is-debuggable", policy & 1 << 19 != 0);
        self.put("x-ms-sevsnpvm-migration-allowed", policy & 1 << 18 != 0);
        self.put("x-ms-sevsnpvm-smt-allowed", policy & 1 << 16 != 0);
        self.put("x-ms-sevsnpvm-bootloader-svn", i64::from(tcb.bootloader));
        self.put("x-ms-sevsnpvm-tee-svn", i64::from(tcb.tee));
        self.put("x-ms-sevsnpvm-snpfw-svn", i64::from(tcb.snp));
        self.put("x-ms-sevsnpvm-microcode-svn", i64::from(tcb.microcode));
    }

    /// That the platform is emulated and protects nothing. Present only then, so that nobody reads an absent claim as a
    /// promise of Azure's; policies can deny by it.
    pub(crate) fn emulated(&mut self) {
        self.put("enclos-emulated", true);
    }

    /// Claims of data bound to the evidence when it was made.
    pub(crate) fn runtime(&mut self, tee: Tee, data: &BoundData) {
        match (data, tee) {
            (BoundData::Json(object), _) => self.put_json("x-ms-runtime", Json::Object(object.clone())),
            (BoundData::Binary(bytes), Tee::Sgx) => {
                let held = SmolStr::from(base64url(bytes));
                for name in ["x-ms-sgx-ehd", "maa-ehd", "aas-ehd"] {
                    self.put(name, held.clone());
                }
                self.hint("$maa-ehd", held.clone());
                self.hint("$aas-ehd", held);
            }
            // Azure Attestation has no claim for it; the report data, which is its hash, is a claim.
            (BoundData::Binary(_), _) => {}
        }
    }

    /// Claims of data bound to the environment when it was started.
    pub(crate) fn init_time(&mut self, data: &BoundData) {
        if let BoundData::Json(object) = data {
            self.put_json("x-ms-inittime", Json::Object(object.clone()));
        }
    }

    /// Adds what a policy issued to the token.
    ///
    /// # Errors
    /// The name of a claim that only the service may make, and which the policy would change.
    pub(crate) fn issue(&mut self, issued: Vec<Claim>) -> Result<(), SmolStr> {
        let mut by_name = TokenClaims::new();
        for Claim { kind, value, .. } in issued {
            match by_name.entry(kind) {
                Entry::Vacant(vacant) => drop(vacant.insert(value.into())),
                Entry::Occupied(mut known) => known.get_mut().and(value),
            }
        }
        for (name, value) in by_name {
            match self.token.entry(name) {
                Entry::Occupied(known) if is_same(known.get(), &value) => {}
                Entry::Occupied(known) => return Err(known.key().clone()),
                Entry::Vacant(new) if is_reserved(new.key()) => return Err(new.into_key()),
                Entry::Vacant(new) => drop(new.insert(value)),
            }
        }
        Ok(())
    }
}

/// Whether a policy says of a claim what the token says already; policies have JSON as text.
fn is_same(known: &TokenValue, issued: &TokenValue) -> bool {
    known == issued
        || matches!(issued, TokenValue::Plain(Value::String(text)) if *text == known.to_json_text())
}

/// Whether a name has a meaning that only the service may give it (RFC 7519, RFC 7800, RFC 9711, and its own claims). Other
/// `x-ms-` names are for policies: Azure's own make `x-ms-compliance-status`, for one.
fn is_reserved(name: &str) -> bool {
    const NAMES: [&str; 20] = [
        "iss",
        "sub",
        "aud",
        "exp",
        "nbf",
        "iat",
        "jti",
        "nonce",
        "eat_nonce",
        "eat_profile",
        "cnf",
        "submods",
        "dbgstat",
        "attester_tcb_status",
        "maa-attestationcollateral",
        "maa-ehd",
        "aas-ehd",
        "x-ms-ver",
        "x-ms-attestation-type",
        "x-ms-inittime",
    ];
    const PREFIXES: [&str; 6] =
        ["x-ms-sgx-", "x-ms-sevsnpvm-", "tdx_", "x-ms-runtime", "x-ms-policy", "enclos-"];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn to_json(value: Value) -> Json {
    match value {
        Value::String(text) => Json::String(text.into()),
        Value::Integer(number) => number.into(),
        Value::Boolean(truth) => truth.into(),
    }
}

/// The part of a quote's body that data known when the environment started is bound by.
#[must_use]
pub(crate) fn config_id<'a>(quote: &Quote<'a>) -> &'a [u8] {
    match quote.body {
        Body::Sgx(report) => report.config_id(),
        Body::Td(report) => report.mr_config_id(),
    }
}

/// A hash in lower-case hexadecimal.
#[must_use]
pub(crate) fn sha256_hex(bytes: &[u8]) -> SmolStr {
    use sha2::Digest;
    hex_text(&sha2::Sha256::digest(bytes))
}

/// Bytes in lower-case hexadecimal.
#[must_use]
pub(crate) fn hex_text(bytes: &[u8]) -> SmolStr {
    hexadecimal(bytes).into()
}
