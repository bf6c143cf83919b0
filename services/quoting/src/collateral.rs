//! TCB info v3 and QE identity v2 of the emulated platform (Intel PCS API, "Get SGX TCB Info", "Get SGX QE Identity").

use enclos_verifier::{Collateral, Hex, Time};
use serde::Serialize;
use time::OffsetDateTime;

use crate::{FMSPC, PCE_ID, PCE_SVN, QuotingError, TcbState, enclave::QuotingEnclave, hierarchy::Hierarchy};

const DAY: u64 = 24 * 60 * 60;
/// How long collateral is valid from its time on; Intel's is for 30 days.
const VALID_DAYS: u64 = 30;
/// 2020-01-02 and 2048-12-01: between these, the certificates are valid as long as the collateral says.
const TIMES: (Time, Time) = (Time(1_577_923_200), Time(2_490_393_600));
pub(crate) const EVALUATION_DATA_NUMBER: u32 = 20;
/// When the newest level and the one before were published.
const NEWEST: &str = "2025-05-14T00:00:00Z";
const BEFORE: &str = "2024-03-13T00:00:00Z";
/// Of no advisory of Intel's: an emulator's weaknesses are others.
const ADVISORY: &str = "EMULATED-SA-00001";

/// Everything a relying party needs to judge quotes of the platform at the time.
pub(crate) fn collateral(
    hierarchy: &Hierarchy,
    enclave: &QuotingEnclave,
    cpu_svn: &[u8; 16],
    time: Time,
    state: TcbState,
) -> Result<Collateral, QuotingError> {
    if time < TIMES.0 || time > TIMES.1 {
        return Err(QuotingError::Time { time, first: TIMES.0, last: TIMES.1 });
    }
    // From the midnight before the last, for relying parties whose clocks are behind.
    let issued = Time(time.0 / DAY * DAY - DAY);
    let next = Time(time.0 / DAY * DAY + VALID_DAYS * DAY);
    let date = |at: Time| {
        i64::try_from(at.0)
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .ok_or(QuotingError::Time { time, first: TIMES.0, last: TIMES.1 })
    };
    let [root_ca_crl, pck_crl] = hierarchy.crls(date(issued)?, date(next)?)?;
    let tcb_info = serde_json::to_string(&tcb_info(cpu_svn, issued, next, state))?;
    let qe_identity = serde_json::to_string(&qe_identity(enclave, issued, next))?;
    Ok(Collateral {
        pck_crl_issuer_chain: hierarchy.pck_issuer_chain(),
        root_ca_crl,
        pck_crl,
        tcb_info_issuer_chain: hierarchy.tcb_signing_chain(),
        tcb_info_signature: hierarchy.tcb_signing.sign(tcb_info.as_bytes())?,
        tcb_info,
        qe_identity_issuer_chain: hierarchy.tcb_signing_chain(),
        qe_identity_signature: hierarchy.tcb_signing.sign(qe_identity.as_bytes())?,
        qe_identity,
        // The quotes carry it.
        pck_certificate_chain: None,
    })
}

/// TCB info version 2, which version 3 of the API gives, and its signature.
pub(crate) fn tcb_info_v2(
    hierarchy: &Hierarchy,
    collateral: &Collateral,
) -> Result<(String, Vec<u8>), QuotingError> {
    let mut info: serde_json::Value = serde_json::from_str(&collateral.tcb_info)?;
    // The same, but for the components, which have names instead of places, and no kind of TEE.
    if let Some(fields) = info.as_object_mut() {
        fields.remove("id");
        fields.insert("version".into(), 2.into());
        let levels = fields.get_mut("tcbLevels").and_then(|levels| levels.as_array_mut());
        for tcb in levels.into_iter().flatten().filter_map(|level| level["tcb"].as_object_mut()) {
            let components = tcb.remove("sgxtcbcomponents");
            for (index, component) in components.iter().flat_map(|all| all.as_array()).flatten().enumerate() {
                tcb.insert(format!("sgxtcbcomp{:02}svn", index + 1), component["svn"].clone());
            }
        }
    }
    let info = serde_json::to_string(&info)?;
    let signature = hierarchy.tcb_signing.sign(info.as_bytes())?;
    Ok((info, signature))
}

fn tcb_info(cpu_svn: &[u8; 16], issue_date: Time, next_update: Time, state: TcbState) -> TcbInfo {
    let level = |pcesvn, tcb_date, tcb_status, advisory_ids| TcbLevel {
        tcb: Tcb { sgxtcbcomponents: cpu_svn.map(|svn| Component { svn }), pcesvn },
        tcb_date,
        tcb_status,
        advisory_ids,
    };
    // The platform is always the same; what moves is what is asked of it.
    let newer = || level(PCE_SVN + 1, NEWEST, "UpToDate", vec![]);
    let older = || level(PCE_SVN - 1, BEFORE, "OutOfDate", vec![ADVISORY]);
    let tcb_levels = match state {
        TcbState::UpToDate => vec![level(PCE_SVN, NEWEST, "UpToDate", vec![]), older()],
        TcbState::SwHardeningNeeded => {
            vec![level(PCE_SVN, NEWEST, "SWHardeningNeeded", vec![ADVISORY]), older()]
        }
        TcbState::OutOfDate => vec![newer(), level(PCE_SVN, BEFORE, "OutOfDate", vec![ADVISORY])],
        TcbState::Revoked => vec![newer(), level(PCE_SVN, BEFORE, "Revoked", vec![ADVISORY])],
    };
    TcbInfo {
        id: "SGX",
        version: 3,
        issue_date,
        next_update,
        fmspc: hex::encode_upper(FMSPC),
        pce_id: Hex(PCE_ID),
        tcb_type: 0,
        tcb_evaluation_data_number: EVALUATION_DATA_NUMBER,
        tcb_levels,
    }
}

fn qe_identity(enclave: &QuotingEnclave, issue_date: Time, next_update: Time) -> EnclaveIdentity {
    let (mr_signer, isvprodid, isvsvn) = enclave.signer();
    EnclaveIdentity {
        id: "QE",
        version: 2,
        issue_date,
        next_update,
        tcb_evaluation_data_number: EVALUATION_DATA_NUMBER,
        miscselect: "00000000",
        miscselect_mask: "FFFFFFFF",
        // INIT and nothing else; MODE64BIT and XFRM do not matter.
        attributes: "01000000000000000000000000000000",
        attributes_mask: "FBFFFFFFFFFFFFFF0000000000000000",
        mrsigner: hex::encode_upper(mr_signer),
        isvprodid,
        tcb_levels: [EnclaveTcbLevel { tcb: IsvSvn { isvsvn }, tcb_date: NEWEST, tcb_status: "UpToDate" }],
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TcbInfo {
    id: &'static str,
    version: u32,
    issue_date: Time,
    next_update: Time,
    fmspc: String,
    pce_id: Hex<2>,
    tcb_type: u32,
    tcb_evaluation_data_number: u32,
    tcb_levels: Vec<TcbLevel>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TcbLevel {
    tcb: Tcb,
    tcb_date: &'static str,
    tcb_status: &'static str,
    #[serde(rename = "advisoryIDs", skip_serializing_if = "Vec::is_empty")]
    advisory_ids: Vec<&'static str>,
}

#[derive(Serialize)]
struct Tcb {
    sgxtcbcomponents: [Component; 16],
    pcesvn: u16,
}

#[derive(Serialize)]
struct Component {
    svn: u8,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EnclaveIdentity {
    id: &'static str,
    version: u32,
    issue_date: Time,
    next_update: Time,
    tcb_evaluation_data_number: u32,
    miscselect: &'static str,
    miscselect_mask: &'static str,
    attributes: &'static str,
    attributes_mask: &'static str,
    mrsigner: String,
    isvprodid: u16,
    tcb_levels: [EnclaveTcbLevel; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EnclaveTcbLevel {
    tcb: IsvSvn,
    tcb_date: &'static str,
    tcb_status: &'static str,
}

#[derive(Serialize)]
struct IsvSvn {
    isvsvn: u16,
}
