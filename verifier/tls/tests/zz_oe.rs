use enclos_attested_tls::BoundEvidence;
#[test]
fn oe() {
    for f in ["/tmp/enclos/sgx_cert_ec_bad.der", "/tmp/enclos/sgx_cert_rsa_bad.der"] {
        let e = BoundEvidence::of_certificate(&std::fs::read(f).unwrap()).unwrap();
        println!("{f}: {:?} {}", e.form, e.quote.len());
        let mut other = std::fs::read(f).unwrap();
        let at = if f.contains("ec_bad") { 260 } else { 300 };
        other[at] ^= 1;
        println!("{:?}", BoundEvidence::of_certificate(&other).map(|e| e.form));
    }
}
