//! A made-up Intel-like platform: its certificates, collateral and quotes, of any TCB state, for tests.
//!
//! Everything is signed with keys generated on the spot, in the formats of the real hierarchy.

use std::fmt::Write as _;

use enclos_verifier::{Collateral, Hex, Time, key_id};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    CrlDistributionPoint, CustomExtension, DistinguishedName, DnType, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use ring::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};

/// 2026-06-15, when everything made here is valid unless made otherwise.
pub(crate) const NOW: Time = Time(1_781_481_600);
pub(crate) const PCK_SERIAL: [u8; 3] = [0x7f, 1, 2];
const INTERMEDIATE_SERIAL: [u8; 2] = [0x11, 3];
const SIGNER_SERIAL: [u8; 2] = [0x12, 4];
const QE_VENDOR: [u8; 16] = enclos_verifier::quote::INTEL_QE_VENDOR_ID;

/// What to make; changed by tests in one point or another.
#[derive(Clone)]
pub(crate) struct Platform {
    pub(crate) components: [u8; 16],
    pub(crate) pce_svn: u16,
    /// Levels of the TCB info, in document order.
    pub(crate) levels: Vec<Level>,
    pub(crate) qe_svn: u16,
    pub(crate) qe_levels: Vec<(u16, &'static str)>,
    /// Levels of TDX module 3; none leaves out the module identities.
    pub(crate) module_levels: Vec<(u16, &'static str)>,
    pub(crate) tcb_info_fmspc: &'static str,
    pub(crate) tcb_info_pce_id: &'static str,
    pub(crate) tcb_info_version: u32,
    pub(crate) tcb_info_issue_date: &'static str,
    pub(crate) tcb_info_next_update: &'static str,
    pub(crate) qe_identity_next_update: &'static str,
    pub(crate) qe_identity_mr_signer: u8,
    pub(crate) qe_attributes: u8,
    pub(crate) evaluation_number: u32,
    pub(crate) pck_not_after: i32,
    pub(crate) crl_next_update: i32,
    pub(crate) revoke_pck: bool,
    pub(crate) revoke_intermediate: bool,
    pub(crate) revoke_signer: bool,
    pub(crate) qe_auth_data: Vec<u8>,
    pub(crate) certification_type: u16,
    pub(crate) tdx: bool,
    /// Body type of a version 5 quote; 0 makes versions 3 (SGX) and 4 (TDX).
    pub(crate) body_type: u16,
    pub(crate) tee_tcb_svn: [u8; 16],
    pub(crate) tee_tcb_svn2: [u8; 16],
    pub(crate) mr_signer_seam: u8,
    pub(crate) td_attributes: [u8; 8],
    pub(crate) service_td: u8,
    pub(crate) sgx_flags: u8,
    pub(crate) report_data: [u8; 64],
}

/// A level of the TCB info: every SGX component at `sgx`, the first TDX components at `tdx`.
#[derive(Clone)]
pub(crate) struct Level {
    pub(crate) sgx: u8,
    pub(crate) tdx: [u8; 3],
    pub(crate) pce_svn: u16,
    pub(crate) status: &'static str,
    pub(crate) date: &'static str,
    pub(crate) advisories: &'static [&'static str],
}

impl Platform {
    /// An up-to-date SGX platform.
    pub(crate) fn sgx() -> Self {
        let level = |sgx, status, date, advisories| Level {
            sgx,
            tdx: [0, 0, sgx],
            pce_svn: 11,
            status,
            date,
            advisories,
        };
        Self {
            components: [5; 16],
            pce_svn: 11,
            levels: vec![
                level(5, "UpToDate", "2026-05-01T00:00:00Z", &[]),
                level(4, "OutOfDate", "2026-01-01T00:00:00Z", &["INTEL-SA-00001"]),
                level(3, "OutOfDate", "2025-01-01T00:00:00Z", &["INTEL-SA-00001", "INTEL-SA-00002"]),
            ],
            qe_svn: 8,
            qe_levels: vec![(8, "UpToDate"), (6, "OutOfDate"), (2, "Revoked")],
            module_levels: vec![(7, "UpToDate"), (5, "OutOfDate"), (2, "Revoked")],
            tcb_info_fmspc: "00606a000000",
            tcb_info_pce_id: "0000",
            tcb_info_version: 3,
            tcb_info_issue_date: "2026-06-01T00:00:00Z",
            tcb_info_next_update: "2026-07-01T00:00:00Z",
            qe_identity_next_update: "2026-07-01T00:00:00Z",
            qe_identity_mr_signer: 0x8c,
            qe_attributes: 0x11,
            evaluation_number: 20,
            pck_not_after: 2033,
            crl_next_update: 2027,
            revoke_pck: false,
            revoke_intermediate: false,
            revoke_signer: false,
            qe_auth_data: (0..32).collect(),
            certification_type: 5,
            tdx: false,
            body_type: 0,
            tee_tcb_svn: [0; 16],
            tee_tcb_svn2: [0; 16],
            mr_signer_seam: 0,
            // SEPT_VE_DISABLE, as every Linux guest demands.
            td_attributes: [0, 0, 0, 0x10, 0, 0, 0, 0],
            service_td: 0,
            sgx_flags: 0x05,
            report_data: [0x5a; 64],
        }
    }

    /// An up-to-date TDX platform with a module of version 3.
    pub(crate) fn tdx() -> Self {
        let mut tee_tcb_svn = [0; 16];
        tee_tcb_svn[..3].copy_from_slice(&[7, 3, 5]);
        Self { tdx: true, tee_tcb_svn, tee_tcb_svn2: tee_tcb_svn, ..Self::sgx() }
    }

    /// Certificates, collateral and a quote of this platform.
    pub(crate) fn make(&self) -> Made {
        Foundry::new(self).make(self)
    }
}

/// What was made.
pub(crate) struct Made {
    pub(crate) quote: Vec<u8>,
    pub(crate) collateral: Collateral,
    /// Key of the root certificate.
    pub(crate) root: Hex<32>,
    #[allow(
        dead_code,
        reason = "not every test that is compiled with this module gives it to another verifier"
    )]
    pub(crate) root_der: Vec<u8>,
}

struct Foundry {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
    pck_pem: String,
    pck_key: KeyPair,
    signer_pem: String,
    signer_key: KeyPair,
}

impl Foundry {
    fn new(platform: &Platform) -> Self {
        let key = || KeyPair::generate().unwrap();
        let root =
            CertifiedIssuer::self_signed(params("Enclos Test SGX Root CA", &[1], true, 2049), key()).unwrap();
        let ca = params("Enclos Test SGX PCK Platform CA", &INTERMEDIATE_SERIAL, true, 2033);
        let intermediate = CertifiedIssuer::signed_by(ca, key(), &root).unwrap();
        let mut leaf = params("Enclos Test SGX PCK Certificate", &PCK_SERIAL, false, platform.pck_not_after);
        let sgx_extension = CustomExtension::from_oid_content(&SGX_EXTENSION, sgx_extension(platform));
        leaf.custom_extensions.push(sgx_extension);
        let pck_key = key();
        let pck_pem = leaf.signed_by(&pck_key, &intermediate).unwrap().pem();
        let signer_key = key();
        let signer = params("Enclos Test SGX TCB Signing", &SIGNER_SERIAL, false, 2033);
        let signer_pem = signer.signed_by(&signer_key, &root).unwrap().pem();
        Self { root, intermediate, pck_pem, pck_key, signer_pem, signer_key }
    }

    fn make(&self, platform: &Platform) -> Made {
        let crl = |issuer: &CertifiedIssuer<'static, KeyPair>, revoked: &[(bool, &[u8])]| {
            let revoked_certs =
                revoked.iter().filter(|(revoke, _)| *revoke).map(|(_, serial)| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(serial),
                    revocation_time: date_time_ymd(2026, 6, 1),
                    reason_code: None,
                    invalidity_date: None,
                });
            let params = CertificateRevocationListParams {
                this_update: date_time_ymd(platform.crl_next_update - 1, 6, 1),
                next_update: date_time_ymd(platform.crl_next_update, 1, 1),
                crl_number: SerialNumber::from_slice(&[1]),
                issuing_distribution_point: None,
                revoked_certs: revoked_certs.collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            params.signed_by(issuer).unwrap().der().to_vec()
        };
        let root_revocations: &[(bool, &[u8])] =
            &[(platform.revoke_intermediate, &INTERMEDIATE_SERIAL), (platform.revoke_signer, &SIGNER_SERIAL)];
        let signing_chain = self.signer_pem.clone() + &self.root.pem();
        let pck_chain = format!("{}{}{}\0", self.pck_pem, self.intermediate.pem(), self.root.pem());
        let signer = ring_key(&self.signer_key);
        let (tcb_info, qe_identity) = (tcb_info(platform), qe_identity(platform));
        let collateral = Collateral {
            pck_crl_issuer_chain: self.intermediate.pem() + &self.root.pem(),
            root_ca_crl: crl(&self.root, root_revocations),
            pck_crl: crl(&self.intermediate, &[(platform.revoke_pck, &PCK_SERIAL)]),
            tcb_info_issuer_chain: signing_chain.clone(),
            tcb_info_signature: sign(&signer, tcb_info.as_bytes()).to_vec(),
            tcb_info,
            qe_identity_issuer_chain: signing_chain,
            qe_identity_signature: sign(&signer, qe_identity.as_bytes()).to_vec(),
            qe_identity,
            pck_certificate_chain: (platform.certification_type != 5).then(|| pck_chain.clone()),
        };
        Made {
            quote: self.quote(platform, &pck_chain),
            collateral,
            root: key_id(self.root.pem().as_bytes()).unwrap(),
            root_der: self.root.der().to_vec(),
        }
    }

    fn quote(&self, platform: &Platform, pck_chain: &str) -> Vec<u8> {
        let attestation = ring_key(&KeyPair::generate().unwrap());
        let version: u16 = match (platform.body_type, platform.tdx) {
            (0, false) => 3,
            (0, true) => 4,
            _ => 5,
        };
        let mut quote = Vec::new();
        quote.extend(version.to_le_bytes());
        quote.extend(2u16.to_le_bytes());
        quote.extend(if platform.tdx { 0x81u32 } else { 0 }.to_le_bytes());
        quote.extend([0; 4]);
        quote.extend(QE_VENDOR);
        quote.extend([0x77; 20]);
        let body = if platform.tdx { td_report(platform) } else { app_report(platform) };
        if version == 5 {
            quote.extend(platform.body_type.to_le_bytes());
            quote.extend((body.len() as u32).to_le_bytes());
        }
        quote.extend(body);
        let signature = sign(&attestation, &quote);

        let attestation_key = &attestation.public_key().as_ref()[1..];
        let bound = digest(&SHA256, &[attestation_key, &platform.qe_auth_data].concat());
        let mut qe = [0; 384];
        qe[48] = platform.qe_attributes;
        qe[128..160].fill(0x8c);
        qe[256] = if platform.tdx { 2 } else { 1 };
        qe[258..260].copy_from_slice(&platform.qe_svn.to_le_bytes());
        qe[320..352].copy_from_slice(bound.as_ref());
        let mut certified = qe.to_vec();
        certified.extend(sign(&ring_key(&self.pck_key), &qe));
        certified.extend((platform.qe_auth_data.len() as u16).to_le_bytes());
        certified.extend(&platform.qe_auth_data);
        let certification =
            if platform.certification_type == 5 { pck_chain.as_bytes().to_vec() } else { vec![9; 404] };
        certified.extend(platform.certification_type.to_le_bytes());
        certified.extend((certification.len() as u32).to_le_bytes());
        certified.extend(certification);

        let mut auth = signature.to_vec();
        auth.extend(attestation_key);
        if version > 3 {
            auth.extend(6u16.to_le_bytes());
            auth.extend((certified.len() as u32).to_le_bytes());
        }
        auth.extend(certified);
        quote.extend((auth.len() as u32).to_le_bytes());
        quote.extend(auth);
        quote
    }
}

fn params(name: &str, serial: &[u8], ca: bool, not_after: i32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, "Enclos");
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(not_after, 1, 1);
    params.is_ca = if ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
    params.key_usages = if ca {
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign]
    } else {
        vec![KeyUsagePurpose::DigitalSignature]
    };
    params.crl_distribution_points =
        vec![CrlDistributionPoint { uris: vec!["https://localhost/crl".into()] }];
    params.use_authority_key_identifier_extension = true;
    params
}

const SGX_EXTENSION: [u64; 7] = [1, 2, 840, 113_741, 1, 13, 1];

fn sgx_extension(platform: &Platform) -> Vec<u8> {
    let mut tcb = Vec::new();
    for (index, svn) in platform.components.iter().enumerate() {
        tcb.extend(entry(&[2, index as u8 + 1], &der(2, &[*svn])));
    }
    tcb.extend(entry(&[2, 17], &der(2, &platform.pce_svn.to_be_bytes()[1..])));
    tcb.extend(entry(&[2, 18], &der(4, &platform.components)));
    let mut values = entry(&[1], &der(4, &[0xab; 16]));
    values.extend(entry(&[2], &der(0x30, &tcb)));
    values.extend(entry(&[3], &der(4, &[0; 2])));
    values.extend(entry(&[4], &der(4, &[0x00, 0x60, 0x6a, 0, 0, 0])));
    values.extend(entry(&[5], &der(10, &[1])));
    values.extend(entry(&[6], &der(4, &[0xcd; 16])));
    let flags: Vec<u8> = (1..=3).flat_map(|arc| entry(&[7, arc], &der(1, &[0xff]))).collect();
    values.extend(entry(&[7], &der(0x30, &flags)));
    der(0x30, &values)
}

/// SEQUENCE { OBJECT IDENTIFIER below the SGX extension, value }.
fn entry(arcs: &[u8], value: &[u8]) -> Vec<u8> {
    let mut id = vec![0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01];
    id.extend(arcs);
    let mut entry = der(6, &id);
    entry.extend(value);
    der(0x30, &entry)
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    match content.len() {
        len @ 0..=127 => der.push(len as u8),
        len @ 128..=255 => der.extend([0x81, len as u8]),
        len => der.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    der.extend(content);
    der
}

fn tcb_info(platform: &Platform) -> String {
    let Platform { tcb_info_version: version, tcb_info_next_update: next, evaluation_number, .. } = platform;
    let Platform { tcb_info_fmspc: fmspc, tcb_info_pce_id: pce_id, tcb_info_issue_date: issued, .. } =
        platform;
    let mut json = String::from("{");
    if *version > 2 {
        write!(json, r#""id":"{}","#, if platform.tdx { "TDX" } else { "SGX" }).unwrap();
    }
    write!(
        json,
        r#""version":{version},"issueDate":"{issued}","nextUpdate":"{next}","fmspc":"{fmspc}","pceId":"{pce_id}","tcbType":0,"tcbEvaluationDataNumber":{evaluation_number},"#
    )
    .unwrap();
    if platform.tdx {
        let zeros = "00".repeat(48);
        let module = format!(
            r#""mrsigner":"{zeros}","attributes":"0000000000000000","attributesMask":"FFFFFFFFFFFFFFFF""#
        );
        write!(json, r#""tdxModule":{{{module}}},"#).unwrap();
        if !platform.module_levels.is_empty() {
            let levels = enclave_levels(&platform.module_levels);
            write!(json, r#""tdxModuleIdentities":[{{"id":"TDX_03",{module},"tcbLevels":{levels}}}],"#)
                .unwrap();
        }
    }
    let levels = platform.levels.iter().map(|level| {
        let Level { sgx, tdx, pce_svn, status, date, advisories } = level;
        let listed = |svns: [u8; 16]| {
            let all: Vec<_> = svns.iter().map(|svn| format!(r#"{{"svn":{svn},"category":"BIOS","type":"Part"}}"#)).collect();
            all.join(",")
        };
        let mut tdx_svns = [0; 16];
        tdx_svns[..3].copy_from_slice(tdx);
        let tcb = match (version, platform.tdx) {
            (2, _) => (1..=16).map(|index| format!(r#""sgxtcbcomp{index:02}svn":{sgx},"#)).collect(),
            (_, false) => format!(r#""sgxtcbcomponents":[{}],"#, listed([*sgx; 16])),
            (_, true) => {
                format!(r#""sgxtcbcomponents":[{}],"tdxtcbcomponents":[{}],"#, listed([*sgx; 16]), listed(tdx_svns))
            }
        };
        format!(
            r#"{{"tcb":{{{tcb}"pcesvn":{pce_svn}}},"tcbDate":"{date}","tcbStatus":"{status}","advisoryIDs":{advisories:?}}}"#
        )
    });
    write!(json, r#""tcbLevels":[{}]}}"#, levels.collect::<Vec<_>>().join(",")).unwrap();
    json
}

fn qe_identity(platform: &Platform) -> String {
    let (id, product) = if platform.tdx { ("TD_QE", 2) } else { ("QE", 1) };
    let signer = format!("{:02X}", platform.qe_identity_mr_signer).repeat(32);
    format!(
        r#"{{"id":"{id}","version":2,"issueDate":"2026-06-01T00:00:00Z","nextUpdate":"{}","tcbEvaluationDataNumber":{},"miscselect":"00000000","miscselectMask":"FFFFFFFF","attributes":"11000000000000000000000000000000","attributesMask":"FBFFFFFFFFFFFFFF0000000000000000","mrsigner":"{signer}","isvprodid":{product},"tcbLevels":{}}}"#,
        platform.qe_identity_next_update,
        platform.evaluation_number,
        enclave_levels(&platform.qe_levels)
    )
}

fn enclave_levels(levels: &[(u16, &str)]) -> String {
    // The higher a version, the later its date.
    let levels = levels.iter().map(|(svn, status)| {
        format!(
            r#"{{"tcb":{{"isvsvn":{svn}}},"tcbDate":"2026-{svn:02}-01T00:00:00Z","tcbStatus":"{status}"}}"#
        )
    });
    format!("[{}]", levels.collect::<Vec<_>>().join(","))
}

fn app_report(platform: &Platform) -> Vec<u8> {
    let mut report = vec![0; 384];
    report[48] = platform.sgx_flags;
    report[64..96].fill(0xe1);
    report[128..160].fill(0x51);
    report[256..260].copy_from_slice(&[7, 0, 3, 0]);
    report[320..].copy_from_slice(&platform.report_data);
    report
}

fn td_report(platform: &Platform) -> Vec<u8> {
    let mut report = vec![0; 584];
    report[..16].copy_from_slice(&platform.tee_tcb_svn);
    report[64..112].fill(platform.mr_signer_seam);
    report[120..128].copy_from_slice(&platform.td_attributes);
    report[136..184].fill(0x7d);
    report[328..376].fill(0xa0);
    report[520..].copy_from_slice(&platform.report_data);
    if platform.body_type >= 3 {
        report.extend(platform.tee_tcb_svn2);
        report.extend([platform.service_td; 48]);
    }
    report
}

fn ring_key(key: &KeyPair) -> EcdsaKeyPair {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der(), &SystemRandom::new())
        .unwrap()
}

fn sign(key: &EcdsaKeyPair, message: &[u8]) -> [u8; 64] {
    key.sign(&SystemRandom::new(), message).unwrap().as_ref().try_into().unwrap()
}
