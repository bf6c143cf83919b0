//! The forms in which others put evidence into certificates: each is found and bound to the key, and each defect has an
//! error of its own.

#[allow(dead_code, reason = "only the platform is used")]
mod common;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use common::Platform;
use der::asn1::ObjectIdentifier;
use enclos_attested_tls::{
    BindingError, BoundEvidence, CMW_OID, Claims, EVIDENCE_OID, EvidenceForm, FormatError, INTEL_QUOTE_OID,
    OPEN_ENCLAVE_EVIDENCE_OIDS, OPEN_ENCLAVE_REPORT_OID, TaggedEvidence, report_data,
};
use enclos_verifier::{SIGNING_EVIDENCE_OID, signing_key_digest};
use minicbor::Encoder;
use rcgen::{CertificateParams, CustomExtension, KeyPair, PublicKeyData as _};
use serde_json::json;

fn certificate(key: &KeyPair, extensions: &[(ObjectIdentifier, &[u8])]) -> Vec<u8> {
    let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
    for (oid, value) in extensions {
        let oid: Vec<u64> = oid.arcs().map(u64::from).collect();
        params.custom_extensions.push(CustomExtension::from_oid_content(&oid, value.to_vec()));
    }
    params.self_signed(key).unwrap().der().to_vec()
}

fn read(key: &KeyPair, oid: ObjectIdentifier, value: &[u8]) -> Result<BoundEvidence, BindingError> {
    BoundEvidence::of_certificate(&certificate(key, &[(oid, value)]))
}

fn cbor(write: impl FnOnce(&mut Encoder<&mut Vec<u8>>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut Encoder::new(&mut bytes));
    bytes
}

/// DER with a two-byte length, as these values need.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[tag, 0x82], &len[..], content].concat()
}

/// Tagged evidence for a key.
fn tagged(platform: &Platform, key: &KeyPair) -> TaggedEvidence {
    let claims = Claims::for_key(&key.subject_public_key_info(), Some(b"nonce")).encode();
    TaggedEvidence { quote: platform.attest(&report_data(&claims)), claims }
}

/// A collection in CBOR: another message, the members given, and a type.
fn collection(members: &[&[u8]]) -> Vec<u8> {
    let mut bytes = cbor(|e| {
        e.map(2 + members.len() as u64).unwrap();
        e.str("__cmwc_t").unwrap().str("tag:example.com,2026:composite").unwrap();
        e.u8(3).unwrap().array(3).unwrap().str("application/eat+cwt").unwrap();
        e.bytes(&[1, 2, 3]).unwrap().u8(4).unwrap();
    });
    for (label, member) in members.iter().enumerate() {
        bytes.extend(cbor(|e| {
            e.str(&format!("member {label}")).unwrap();
        }));
        bytes.extend_from_slice(member);
    }
    bytes
}

#[test]
fn evidence_in_conceptual_messages_is_bound_to_the_key() {
    let (platform, key) = (Platform::new(), KeyPair::generate().unwrap());
    let evidence = tagged(&platform, &key);
    let bare = evidence.encode();
    let in_json = json!({ "__cmwc_t": "1.2.3", "nic": ["application/eat+jwt", "AAAA", 4],
        "sgx": ["#cmw-c2j-tunnel", BASE64_URL_SAFE_NO_PAD.encode(&bare)] })
    .to_string();
    let json_in_cbor = collection(&[&cbor(|e| {
        e.array(2).unwrap().str("#cmw-j2c-tunnel").unwrap().bytes(in_json.as_bytes()).unwrap();
    })]);
    let nested = collection(&[&collection(&[&bare])]);
    for (oid, value, form) in [
        (EVIDENCE_OID, bare.clone(), EvidenceForm::Interoperable),
        (EVIDENCE_OID, collection(&[&bare]), EvidenceForm::Interoperable),
        (CMW_OID, der(0x04, &bare), EvidenceForm::ConceptualMessage),
        (CMW_OID, der(0x04, &nested), EvidenceForm::ConceptualMessage),
        (CMW_OID, der(0x04, &json_in_cbor), EvidenceForm::ConceptualMessage),
        (CMW_OID, der(0x0c, in_json.as_bytes()), EvidenceForm::ConceptualMessage),
    ] {
        let found = read(&key, oid, &value).unwrap();
        assert_eq!((found.form, &found.quote), (form, &evidence.quote));
        assert_eq!(found.claims, Some(Claims::for_key(&key.subject_public_key_info(), Some(b"nonce"))));
        // The same in a certificate for another key.
        assert_eq!(read(&KeyPair::generate().unwrap(), oid, &value), Err(BindingError::OtherKey));
    }
}

#[test]
fn conceptual_messages_without_usable_evidence_are_named() {
    let (platform, key) = (Platform::new(), KeyPair::generate().unwrap());
    let bare = tagged(&platform, &key).encode();
    let refused = |value: &[u8]| match read(&key, EVIDENCE_OID, value) {
        Err(BindingError::Format(error)) => error,
        other => panic!("{other:?}"),
    };
    // The examples of draft-ietf-rats-msg-wrap: a record by content format, by media type, and a tag made of a content format.
    let record = |kind: &dyn Fn(&mut Encoder<&mut Vec<u8>>)| {
        cbor(|e| {
            e.array(2).unwrap();
            kind(e);
            e.bytes(&[0x23, 0x47, 0xda, 0x55]).unwrap();
        })
    };
    let name = "application/vnd.example.rats-conceptual-msg";
    assert_eq!(
        refused(&record(&|e| {
            e.str(name).unwrap();
        })),
        FormatError::ContentType(name.into())
    );
    let numbered = FormatError::ContentType("CoAP content format 30001".into());
    assert_eq!(
        refused(&record(&|e| {
            e.u16(30001).unwrap();
        })),
        numbered
    );
    let in_json = json!([name, "I0faVQ"]).to_string();
    assert_eq!(refused(in_json.as_bytes()), FormatError::ContentType(name.into()));
    let example_tag = [0xda, 0x63, 0x74, 0x76, 0x32, 0x44, 0x23, 0x47, 0xda, 0x55];
    assert_eq!(refused(&example_tag), FormatError::Tag(1_668_576_818));

    assert_eq!(refused(&collection(&[&example_tag])), FormatError::NoEvidenceInCollection);
    assert_eq!(refused(&collection(&[&bare, &bare])), FormatError::Ambiguous);
    assert_eq!(refused(br#"{"x":{"x":{"x":{"x":{"x":["a","AA"]}}}}}"#), FormatError::Depth(4));
    assert_eq!(refused(b""), FormatError::NoWrapper(None));
    assert_eq!(refused(&[0x44, 1, 2, 3, 4]), FormatError::NoWrapper(Some(0x44)));
    assert_eq!(refused(br#"["a","AA",16]"#), FormatError::Indicator(16));
    assert_eq!(refused(&[0xbf, 0xff]), FormatError::Indefinite("collection"));
    let mut trailing = collection(&[&bare]);
    trailing.push(0);
    assert_eq!(refused(&trailing), FormatError::Trailing { what: "collection", count: 1 });
    for malformed in
        [&b"["[..], b"[1,2]", b"[\"a\",\"A=\"]", b"{\"a\":1}", &[0x82, 0x61], &[0xa1, 0x61, b'a', 0x01]]
    {
        let error = refused(malformed);
        assert!(
            matches!(error, FormatError::Malformed { .. } | FormatError::NoWrapper(_)),
            "{malformed:02x?}: {error}"
        );
    }
    // The choice of the PKIX extension is between two types only.
    let error = read(&key, CMW_OID, &der(0x30, &bare)).unwrap_err();
    assert!(matches!(error, BindingError::Format(FormatError::Malformed { what: "wrapper", .. })), "{error}");
    assert!(matches!(read(&key, CMW_OID, &bare), Err(BindingError::Format(_))));
}

/// A report of the Open Enclave SDK: version 1, type 2, length.
fn open_enclave_report(quote: &[u8]) -> Vec<u8> {
    [&1u32.to_le_bytes()[..], &2u32.to_le_bytes(), &(quote.len() as u64).to_le_bytes(), quote].concat()
}

/// Evidence of its plugin for SGX: version 3, format, length, quote, claims.
fn open_enclave_evidence(quote: &[u8], claims: &[u8]) -> Vec<u8> {
    let format = hex("a3a21e871b4d4014b70aa125d2fbcd8c");
    let len = (quote.len() + claims.len()) as u64;
    [&3u32.to_le_bytes()[..], &format, &len.to_le_bytes(), quote, claims].concat()
}

fn hex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn padded(hash: [u8; 32]) -> [u8; 64] {
    let mut data = [0; 64];
    data[..32].copy_from_slice(&hash);
    data
}

#[test]
fn evidence_of_open_enclave_is_bound_to_the_key() {
    let (platform, key) = (Platform::new(), KeyPair::generate().unwrap());
    let public_key = key.subject_public_key_info();
    let pem = key.public_key_pem().replace('\r', "") + "\0";
    let by_pem = platform.attest(&padded(signing_key_digest(&public_key)));
    let by_der = platform.attest(&report_data(&public_key));
    let with_claims = platform.attest(&report_data(pem.as_bytes()));
    let mut cases = Vec::new();
    for oid in [OPEN_ENCLAVE_REPORT_OID, SIGNING_EVIDENCE_OID] {
        for quote in [&by_pem, &by_der] {
            cases.push((oid, open_enclave_report(quote), EvidenceForm::OpenEnclaveReport));
        }
    }
    for oid in OPEN_ENCLAVE_EVIDENCE_OIDS {
        let value = open_enclave_evidence(&with_claims, pem.as_bytes());
        cases.push((oid, value, EvidenceForm::OpenEnclaveEvidence));
    }
    cases.push((INTEL_QUOTE_OID, by_der.clone(), EvidenceForm::Gramine));
    for (oid, value, form) in cases {
        let found = read(&key, oid, &value).unwrap();
        assert_eq!((found.form, found.claims), (form, None), "{oid}");
        assert_eq!(read(&KeyPair::generate().unwrap(), oid, &value), Err(BindingError::OtherKey), "{oid}");
        for at in 0..value.len().min(64) {
            let mut changed = value.clone();
            changed[at] ^= 0x55;
            let _ = read(&key, oid, &changed);
            assert!(read(&key, oid, &value[..at]).is_err(), "{oid}: cut to {at}");
        }
    }
}

#[test]
fn defects_of_open_enclave_evidence_are_named() {
    let (platform, key) = (Platform::new(), KeyPair::generate().unwrap());
    let pem = key.public_key_pem().replace('\r', "") + "\0";
    let quote = platform.attest(&report_data(pem.as_bytes()));
    let good = open_enclave_evidence(&quote, pem.as_bytes());
    let oid = OPEN_ENCLAVE_EVIDENCE_OIDS[1];
    let changed = |at: usize, value: u8| {
        let mut changed = good.clone();
        changed[at] = value;
        read(&key, oid, &changed).unwrap_err()
    };
    assert!(matches!(changed(0, 4), BindingError::Format(FormatError::Malformed { .. })));
    assert!(matches!(changed(4, 0), BindingError::OpenEnclaveFormat(_)));
    assert!(matches!(changed(20, 0), BindingError::Format(FormatError::Malformed { .. })));
    assert_eq!(changed(good.len() - 2, b'x'), BindingError::OtherClaims);
    assert!(matches!(read(&key, oid, &good[..27]), Err(BindingError::Format(_))));
    // Report data that say more than the key are of another protocol.
    let mut more = padded(signing_key_digest(&key.subject_public_key_info()));
    more[63] = 1;
    let value = open_enclave_report(&platform.attest(&more));
    assert_eq!(read(&key, OPEN_ENCLAVE_REPORT_OID, &value), Err(BindingError::OtherKey));
    // EPID.
    let epid = ObjectIdentifier::new_unwrap("1.2.840.113741.1337.2");
    assert_eq!(read(&key, epid, b"{}"), Err(BindingError::Epid(epid)));
    // The form that binds most is the one that counts, and a defect in it is not passed over.
    let both = certificate(&key, &[(EVIDENCE_OID, &[0xa0]), (oid, &good)]);
    let error = BoundEvidence::of_certificate(&both);
    assert_eq!(error, Err(BindingError::Format(FormatError::NoEvidenceInCollection)));
    let twice = certificate(&key, &[(oid, &good), (oid, &good)]);
    assert_eq!(BoundEvidence::of_certificate(&twice), Err(BindingError::Twice(oid)));
}
