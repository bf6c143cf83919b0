//! Fortanix' AESM client gets a quote from our socket, for the enclave of `report-test`: image, host code, client and one
//! of the two verifiers are other people's.

#[allow(dead_code)]
mod common;

use std::path::Path;
use std::sync::Arc;

use aesm_client::unix::AesmClientExt;
use aesm_client::{AesmClient, AesmError, Error};
use common::emulator;
use enclos_quoting::{AesmSocket, EmulatedQuoting};
use enclos_verifier::{AnyCollateral, Evidence, Identity, Policy, Time, appraise};
use openssl::sha::sha256;
use report_test::ReportBuilder;
use sgx_isa::{Attributes, AttributesFlags, Report, Targetinfo};

/// In `sgx_att_key_id_ext_t`, and its value for ECDSA.
const ALGORITHM: std::ops::Range<usize> = 154..158;
const ECDSA_P256: [u8; 4] = [2, 0, 0, 0];

#[test]
fn the_aesm_client_gets_a_quote_that_verifiers_accept_under_our_root() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("aesm.socket");
    // report-test's host code works with both kinds of kernels when every ENCLU traps.
    let mut emulator = emulator(1).trapping();
    let quoting = Arc::new(EmulatedQuoting::open(emulator.machine(), folder.path()).unwrap());
    let _served = AesmSocket::serve(&socket, quoting.clone()).unwrap();
    let client = AesmClient::with_path(&socket);
    client.try_connect().unwrap();

    let keys = client.get_supported_att_key_ids().unwrap();
    let key = keys.iter().find(|id| id[ALGORITHM] == ECDSA_P256).expect("ECDSA is supported").clone();
    let info = client.init_quote_ex(key.clone()).unwrap();
    assert_eq!(info.pub_key_id().len(), 32);
    let target = Targetinfo::try_copy_from(info.target_info()).unwrap();
    let attributes = Attributes { flags: AttributesFlags::MODE64BIT, xfrm: 3 };
    let report = match ReportBuilder::new(&target).attributes(attributes).build(&mut emulator) {
        Ok(report) => report,
        Err(error) => panic!("{error:?}"),
    };

    // For the quoting enclave's own REPORT: a target whose key we can ask for.
    let nonce = [0x5a; 16];
    let mut emulator = common::emulator(1);
    let asker = common::target(&mut emulator, 3);
    let asker_info = common::target_info(&asker).as_ref().to_vec();
    let result =
        client.get_quote_ex(key.clone(), report.as_ref().to_vec(), Some(asker_info), nonce.to_vec()).unwrap();
    let quote = result.quote();
    let qe_report = Report::try_copy_from(result.qe_report()).unwrap();
    assert!(common::verifies(&asker, &qe_report), "the quoting enclave's REPORT is for the asker");
    assert_eq!(qe_report.mrenclave, target.measurement);
    assert_eq!(qe_report.reportdata[..32], sha256(&[&nonce, quote].concat()));

    let now = Time::now();
    let collateral = quoting.collateral(now).unwrap();
    let policy =
        Policy { any_identity: true, emulated_roots: vec![quoting.root_key_id()], ..Policy::default() };
    let ours = |quote: &[u8]| {
        let collateral = AnyCollateral::Dcap(Box::new(collateral.clone()));
        appraise(Evidence::detect(quote), &collateral, now, &policy).unwrap()
    };
    let theirs = |quote: &[u8]| {
        let root = openssl::x509::X509::from_pem(quoting.root_certificate().as_bytes()).unwrap();
        let collateral = serde_json::to_value(&collateral).unwrap();
        let collateral: dcap_qvl::QuoteCollateralV3 = serde_json::from_value(collateral).unwrap();
        dcap_qvl::verify::QuoteVerifier::new(root.to_der().unwrap()).verify(quote, &collateral, now.0)
    };
    let verdict = ours(quote);
    assert!(verdict.accepted && verdict.emulated, "{verdict}");
    let Some(Identity::Sgx { mr_enclave, .. }) = verdict.appraisal.identity else { panic!("no identity") };
    assert_eq!(mr_enclave.0, report.mrenclave);
    assert_eq!(theirs(quote).unwrap().status, "UpToDate");
    let mut flipped = quote.to_vec();
    flipped[112] ^= 1;
    assert!(!ours(&flipped).accepted && theirs(&flipped).is_err());

    refusals_have_intels_codes(&client, &socket, key, &report);
}

fn refusals_have_intels_codes(client: &AesmClient, socket: &Path, key: Vec<u8>, report: &Report) {
    let code = |result: aesm_client::Result<aesm_client::QuoteResult>| match result {
        Err(Error::AesmCode(code)) => code,
        other => panic!("{other:?}"),
    };
    let forged = Report { isvsvn: 9, ..report.clone() };
    let refused = client.get_quote_ex(key.clone(), forged.as_ref().to_vec(), None, vec![0; 16]);
    assert!(matches!(code(refused), AesmError::InvalidReport_47));
    let short_nonce = client.get_quote_ex(key, report.as_ref().to_vec(), None, vec![0; 8]);
    assert!(matches!(code(short_nonce), AesmError::ParameterError_3));
    // EPID's key, and EPID's requests.
    let mut epid = vec![0; 256];
    epid[ALGORITHM].copy_from_slice(&[0; 4]);
    assert!(matches!(client.init_quote_ex(epid), Err(Error::AesmCode(AesmError::UnsupportedAttKeyId_38))));
    assert!(matches!(client.init_quote(), Err(Error::AesmBadResponse(_))));
    // Nobody there.
    assert!(AesmClient::with_path(socket.with_extension("other")).try_connect().is_err());
}
