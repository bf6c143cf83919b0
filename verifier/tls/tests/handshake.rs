//! Handshakes between attested peers, and with clients that know nothing of it.

mod common;
/// Enclaves with any attributes, signed by test keys.
#[path = "../../../platform/tests/common/mod.rs"]
mod enclaves;

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use common::{Clock, Platform};
use enclaves::initialized_on;
use enclos_attested_tls::{
    AttestedIdentity, Attester, BindingError, BoundEvidence, CachedCollateral, CertificateOptions,
    CollateralSource, CollateralUnavailable, OfflineCollateral, PeerVerifier, Refusal, TaggedEvidence,
};
use enclos_verifier::{Collateral, Hex, Policy, Quote, Reason, Time};
use rustls::{
    ClientConnection, ServerConfig, ServerConnection, StreamOwned,
    pki_types::ServerName,
    sign::{CertifiedKey, SingleCertAndKey},
};
use sgx_isa::AttributesFlags;

/// 2026-06-15.
const NOW: u64 = 1_781_481_600;

/// A policy that accepts the platform, told its root.
fn told(platform: &Platform) -> Policy {
    Policy { any_identity: true, emulated_roots: vec![platform.quoting.root_key_id()], ..Policy::default() }
}

fn identity(platform: &Arc<Platform>, clock: &Arc<Clock>) -> Arc<AttestedIdentity> {
    let options = CertificateOptions::default();
    Arc::new(AttestedIdentity::new(platform.attester(), options, clock.clone()).unwrap())
}

fn verifier(platform: &Platform, policy: Policy, clock: &Arc<Clock>) -> PeerVerifier {
    let collateral = platform.quoting.collateral(Time(NOW)).unwrap();
    PeerVerifier::new(policy, Arc::new(OfflineCollateral(Arc::new(collateral))), clock.clone())
}

/// A server without demands on its clients.
fn ordinary(identity: Arc<AttestedIdentity>) -> ServerConfig {
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(identity)
}

/// Shakes hands in memory; gives both ends, or the error of whoever refused.
fn shake(
    client: rustls::ClientConfig,
    server: ServerConfig,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let name = ServerName::try_from("enclave.example").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok((client, server))
}

/// The refusal of a client with this verifier.
fn refused(verifier: PeerVerifier, server: ServerConfig) -> String {
    let error = shake(Arc::new(verifier).client_config(None).unwrap(), server).unwrap_err();
    Refusal::of(&error).unwrap_or_else(|| panic!("{error}")).to_string()
}

#[test]
fn emulated_peers_are_refused_unless_their_root_is_named() {
    let (platform, clock) = (Platform::new(), Clock::at(NOW));
    let identity = identity(&platform, &clock);
    let unnamed = Policy { any_identity: true, ..Policy::default() };
    let error = shake(
        Arc::new(verifier(&platform, unnamed, &clock)).client_config(None).unwrap(),
        ordinary(identity.clone()),
    )
    .unwrap_err();
    let Some(Refusal::Policy(verdict)) = Refusal::of(&error) else { panic!("{error}") };
    assert!(!verdict.accepted && !verdict.appraisal.is_authentic());

    let verifier = Arc::new(verifier(&platform, told(&platform), &clock));
    let (client, _) = shake(verifier.client_config(None).unwrap(), ordinary(identity)).unwrap();
    let peer = verifier.peer(&client).unwrap();
    assert!(peer.verdict.accepted && peer.verdict.emulated);
    assert_eq!(peer.evidence.claims.as_ref().unwrap().public_key.value, peer.evidence.key.0);
}

#[test]
fn both_sides_can_demand_evidence() {
    let (platform, clock) = (Platform::new(), Clock::at(NOW));
    let (ours, theirs) = (identity(&platform, &clock), identity(&platform, &clock));
    let verifier = Arc::new(verifier(&platform, told(&platform), &clock));
    let client = verifier.client_config(Some(ours.clone())).unwrap();
    let (client, server) = shake(client, verifier.server_config(theirs.clone()).unwrap()).unwrap();
    let key = |identity: &AttestedIdentity| {
        BoundEvidence::of_certificate(&identity.current().unwrap().cert[0]).unwrap().key
    };
    assert_eq!(verifier.peer(&client).unwrap().evidence.key, key(&theirs));
    assert_eq!(verifier.peer(&server).unwrap().evidence.key, key(&ours));
    // A client without a certificate.
    assert!(shake(verifier.client_config(None).unwrap(), verifier.server_config(theirs).unwrap()).is_err());
}

#[test]
fn what_does_not_meet_the_policy_is_refused_with_its_reason() {
    let (platform, clock) = (Platform::new(), Clock::at(NOW));
    let identity = identity(&platform, &clock);
    let server = || ordinary(identity.clone());

    let nonce = verifier(&platform, told(&platform), &clock).demanding_nonce(b"fresh");
    assert!(refused(nonce, server()).contains("not fresh"));

    let other = Policy { any_identity: false, identity: vec![], ..told(&platform) };
    assert!(refused(verifier(&platform, other, &clock), server()).contains("identity"));

    // A month later: a certificate of that time, but collateral of this.
    let later = Clock::at(NOW + 40 * 24 * 60 * 60);
    let renewed = ordinary(self::identity(&platform, &later));
    let said = refused(verifier(&platform, told(&platform), &later), renewed);
    assert!(said.contains("TCB info") && said.contains("2026-07"), "{said}");
    // And the certificate itself, to a client that lives longer.
    let stale = verifier(&platform, told(&platform), &Clock::at(NOW + 2 * 24 * 60 * 60));
    assert!(refused(stale, server()).contains("certificate is valid from"));
}

#[test]
fn a_nonce_in_the_claims_is_what_was_demanded() {
    let (platform, clock) = (Platform::new(), Clock::at(NOW));
    let options = CertificateOptions { nonce: Some(b"fresh".to_vec()), ..CertificateOptions::default() };
    let identity = Arc::new(AttestedIdentity::new(platform.attester(), options, clock.clone()).unwrap());
    let demanding = |nonce: &[u8]| verifier(&platform, told(&platform), &clock).demanding_nonce(nonce);
    let fresh = Arc::new(demanding(b"fresh"));
    assert!(shake(fresh.client_config(None).unwrap(), ordinary(identity.clone())).is_ok());
    assert!(refused(demanding(b"fresher"), ordinary(identity)).contains("not fresh"));
}

#[test]
fn evidence_for_another_key_is_refused() {
    let (platform, clock) = (Platform::new(), Clock::at(NOW));
    // An attester that replays what it once got for another key.
    let replayed = platform.attest(&[0x5a; 64]);
    let thief = move |_: &[u8; 64]| Ok::<_, Box<dyn std::error::Error + Send + Sync>>(replayed.clone());
    let identity = AttestedIdentity::new(thief, CertificateOptions::default(), clock.clone()).unwrap();
    let certificate = identity.current().unwrap().cert[0].clone();
    let judged = verifier(&platform, told(&platform), &clock).judge(&certificate, Time(NOW));
    assert!(matches!(judged, Err(Refusal::Binding(BindingError::OtherClaims))), "{judged:?}");
}

#[test]
fn renewal_changes_the_key_and_keeps_connections() {
    let (platform, clock) = (Platform::new(), Clock::at(NOW));
    let identity = identity(&platform, &clock);
    let verifier = Arc::new(verifier(&platform, told(&platform), &clock));
    let connect = || shake(verifier.client_config(None).unwrap(), ordinary(identity.clone())).unwrap();
    let key = |client: &ClientConnection| -> Hex<32> { verifier.peer(client).unwrap().evidence.key };
    let (mut before, mut server) = connect();
    assert!(!identity.renew_if_due().unwrap());
    clock.0.fetch_add(17 * 60 * 60, Ordering::Relaxed);
    assert!(identity.renew_if_due().unwrap());
    let (after, _) = connect();
    assert_ne!(key(&before), key(&after));
    // The old connection still carries data.
    before.writer().write_all(b"still here").unwrap();
    let mut bytes = Vec::new();
    before.write_tls(&mut bytes).unwrap();
    server.read_tls(&mut bytes.as_slice()).unwrap();
    server.process_new_packets().unwrap();
    let mut got = [0; 10];
    server.reader().read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still here");
    // Without renewal nobody gets a stale certificate.
    clock.0.fetch_add(25 * 60 * 60, Ordering::Relaxed);
    assert!(identity.current().is_none());
}

#[test]
fn openssl_and_curl_take_the_certificate_for_an_ordinary_one() {
    let platform = Platform::new();
    let now = Time::now().0;
    let identity = identity(&platform, &Clock::at(now));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = Arc::new(ordinary(identity));
    let server = thread::spawn(move || {
        for _ in 0..2 {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello");
            stream.conn.send_close_notify();
            let _ = stream.flush();
            let _: Result<(), _> = TcpStream::shutdown(&stream.sock, std::net::Shutdown::Write);
        }
    });
    let curl = Command::new("curl")
        .args(["--silent", "--show-error", "--insecure", "--max-time", "20"])
        .arg(format!("https://localhost:{port}/"))
        .output()
        .unwrap();
    assert_eq!(curl.stdout, b"hello", "{}", String::from_utf8_lossy(&curl.stderr));
    let mut openssl = Command::new("openssl")
        .args(["s_client", "-showcerts", "-connect", &format!("127.0.0.1:{port}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    openssl.stdin.take().unwrap().write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let shown = openssl.wait_with_output().unwrap();
    server.join().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("TLSv1.3") && shown.contains("self-signed certificate"), "{shown}");
    // What it shows, read by itself once more: the certificate, with our extension's identifier.
    let mut x509 = Command::new("openssl")
        .args(["x509", "-noout", "-text"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    x509.stdin.take().unwrap().write_all(shown.as_bytes()).unwrap();
    let text = String::from_utf8_lossy(&x509.wait_with_output().unwrap().stdout).into_owned();
    assert!(text.contains("2.23.133.5.4.9") && text.contains("DNS:localhost"), "{text}");
}

/// A certificate that an attester's evidence gets into, whatever it is.
fn certificate(attester: impl Attester + 'static) -> Vec<u8> {
    let options = CertificateOptions::default();
    AttestedIdentity::new(attester, options, Clock::at(NOW)).unwrap().current().unwrap().cert[0].to_vec()
}

#[test]
fn a_debug_enclave_is_refused_by_default() {
    let (platform, clock) = (Platform::new(), Clock::at(NOW));
    let on = Arc::clone(&platform);
    let enclave = initialized_on(
        Arc::clone(&platform.machine),
        "signer",
        |secs| secs.attributes.flags |= AttributesFlags::DEBUG,
        |_| {},
    );
    let certificate = certificate(move |data: &[u8; 64]| {
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(common::quote(&on.quoting, &enclave, data))
    });
    let judged = |policy| verifier(&platform, policy, &clock).judge(&certificate, Time(NOW));
    let Err(Refusal::Policy(verdict)) = judged(told(&platform)) else { panic!("accepted") };
    assert_eq!(verdict.reasons, [Reason::Debug]);
    assert!(judged(Policy { allow_debug: true, ..told(&platform) }).is_ok());
}

#[test]
fn a_copied_certificate_without_its_key_is_refused_by_the_handshake() {
    let (platform, clock) = (Platform::new(), Clock::at(NOW));
    let victim = identity(&platform, &clock).current().unwrap();
    let thief = identity(&platform, &clock).current().unwrap();
    let stolen = Arc::new(CertifiedKey::new(victim.cert.clone(), Arc::clone(&thief.key)));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let server = |key: &Arc<CertifiedKey>| {
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(SingleCertAndKey::from((**key).clone())))
        };
        let verifier = Arc::new(verifier(&platform, told(&platform), &clock));
        let client = || verifier.client_config(None).unwrap();
        let error = shake(client(), server(&stolen)).unwrap_err();
        assert_eq!(error, rustls::Error::InvalidCertificate(rustls::CertificateError::BadSignature));
        assert!(shake(client(), server(&victim)).is_ok());
    }
}

#[test]
fn evidence_moved_into_another_certificate_is_refused() {
    let (platform, clock) = (Platform::new(), Clock::at(NOW));
    let one = certificate(platform.attester());
    let other = certificate(platform.attester());
    // Both have P-256 keys: the point follows this header.
    let header = [0x03, 0x42, 0x00, 0x04];
    let point = |bytes: &[u8]| bytes.windows(4).position(|w| w == header).unwrap() + 4;
    let mut moved = one.clone();
    moved[point(&one)..][..64].copy_from_slice(&other[point(&other)..][..64]);
    let judged = verifier(&platform, told(&platform), &clock).judge(&moved, Time(NOW));
    assert!(matches!(judged, Err(Refusal::Binding(BindingError::OtherKey))), "{judged:?}");
}

#[test]
fn no_changed_byte_of_the_extension_is_accepted_or_panics() {
    let (platform, clock) = (Platform::new(), Clock::at(NOW));
    let certificate = certificate(platform.attester());
    let verifier = verifier(&platform, told(&platform), &clock);
    let evidence = verifier.judge(&certificate, Time(NOW)).unwrap().evidence;
    let claims = evidence.claims.unwrap().encode();
    // The claims follow the quote, after the two bytes of their own length.
    let after_quote = claims.len() + 2;
    let value = TaggedEvidence { quote: evidence.quote, claims }.encode();
    let start = certificate.windows(value.len()).position(|w| w == value).unwrap();
    let mut immaterial = Vec::new();
    for at in start..start + value.len() {
        let mut changed = certificate.clone();
        changed[at] ^= 0x20;
        if verifier.judge(&changed, Time(NOW)).is_ok() {
            immaterial.push((at - start, value[at - start]));
        }
    }
    // Everything matters but the newline after the last certificate of the quote's PEM chain.
    let newline = value.len() - after_quote - 1;
    assert_eq!(immaterial, [(newline, b'\n')]);
}

/// A provisioning service that counts, and can be away.
#[derive(Debug)]
struct Service {
    platform: CollateralOf,
    asked: AtomicU64,
    away: AtomicBool,
}

/// Collateral issued at a time.
struct CollateralOf(Arc<Platform>);

impl std::fmt::Debug for CollateralOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CollateralOf")
    }
}

impl CollateralSource for Service {
    fn collateral(&self, _: &Quote<'_>, time: Time) -> Result<Arc<Collateral>, CollateralUnavailable> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.away.load(Ordering::Relaxed) {
            true => Err(CollateralUnavailable { reason: "the service is away".into() }),
            false => Ok(Arc::new(self.platform.0.quoting.collateral(time).unwrap())),
        }
    }
}

#[test]
fn collateral_is_kept_renewed_before_it_expires_and_never_done_without() {
    const DAY: u64 = 24 * 60 * 60;
    let platform = Platform::new();
    let service = Arc::new(Service {
        platform: CollateralOf(Arc::clone(&platform)),
        asked: AtomicU64::new(0),
        away: AtomicBool::new(false),
    });
    let cached = CachedCollateral::new(Arc::clone(&service), Duration::from_secs(5 * DAY));
    let bytes = platform.attest(&[0; 64]);
    let quote = Quote::parse(&bytes).unwrap();
    let asked = || service.asked.load(Ordering::Relaxed);
    let at = |days: u64| cached.collateral(&quote, Time(NOW + days * DAY));

    // Issued for thirty days; kept for twenty-five.
    let first = at(0).unwrap();
    assert!(Arc::ptr_eq(&first, &at(20).unwrap()));
    assert_eq!(asked(), 1);
    let second = at(26).unwrap();
    assert_eq!((asked(), Arc::ptr_eq(&first, &second)), (2, false));

    // The service is away when it is asked again: what is there is used while it is valid, and not a day longer.
    service.away.store(true, Ordering::Relaxed);
    assert!(Arc::ptr_eq(&second, &at(53).unwrap()));
    assert_eq!(asked(), 3);
    assert!(cached.collateral(&quote, Time(NOW + 53 * DAY + 1)).is_ok());
    assert_eq!(asked(), 3, "not asked again at once");
    assert_eq!(at(57).unwrap_err().reason, "the service is away");

    // No collateral at all: the peer is refused, and told apart from one that the policy refuses.
    let clock = Clock::at(NOW);
    let nothing = Arc::new(CachedCollateral::new(Arc::clone(&service), Duration::ZERO));
    let verifier = PeerVerifier::new(told(&platform), nothing, clock.clone());
    assert!(refused(verifier, ordinary(identity(&platform, &clock))).contains("the service is away"));
}

#[test]
fn an_ordinary_certificate_is_told_from_an_attested_one() {
    let (platform, clock) = (Platform::new(), Clock::at(NOW));
    let plain = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let judged = verifier(&platform, told(&platform), &clock).judge(plain.cert.der(), Time(NOW));
    assert!(matches!(judged, Err(Refusal::Binding(BindingError::NoEvidence))), "{judged:?}");
}
