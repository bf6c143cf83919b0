//! x
#[test]
fn t() {
    let d = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    let q = std::fs::read(format!("{d}/sgx_v3.bin")).unwrap();
    let c =
        enclos_verifier::Collateral::from_json(&std::fs::read(format!("{d}/sgx_v3.json")).unwrap()).unwrap();
    for _ in 0..4000 {
        let v = enclos_verifier::Verifier::new(enclos_verifier::Roots::vendors());
        let tr = v.trust(&c);
        std::hint::black_box(v.verify_quote(&q, &tr, enclos_verifier::Time(1_751_066_974)));
    }
}
