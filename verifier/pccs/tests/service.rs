//! Against the emulated platform's own endpoint, and against services that do what none should.

/// The platform of the tests of attested TLS.
#[allow(dead_code)]
#[path = "../../tls/tests/common/mod.rs"]
mod common;

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use common::Platform;
use enclos_attested_tls::CollateralSource as _;
use enclos_pccs::{FetchError, LONGEST, Options, ProvisioningService, ServiceCollateral, ServiceError};
use enclos_verifier::{Policy, Quote, Roots, Time, Verifier};

/// The emulated platform's endpoint; stops when it is dropped.
struct Endpoint {
    url: String,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    serving: Option<thread::JoinHandle<()>>,
}

impl Endpoint {
    fn of(platform: &Arc<Platform>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let quoting = Arc::clone(&platform.quoting);
        let serving = thread::spawn(move || {
            enclos_quoting::serve_pccs(listener, quoting, async { drop(stopped.await) }).unwrap();
        });
        Self { url, stop: Some(stop), serving: Some(serving) }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.serving.take().map(thread::JoinHandle::join);
    }
}

fn told(platform: &Platform) -> Verifier {
    Verifier::new(Roots::with_emulated([platform.quoting.root_key_id()]))
}

fn service(url: &str, cache: Option<&Path>) -> ProvisioningService {
    let options = Options { cache: cache.map(Path::to_owned), ..Options::default() };
    ProvisioningService::new(url, options).unwrap()
}

/// Whether a quote is accepted by this collateral, by who names the platform's root.
fn accepted(platform: &Platform, quote: &[u8], collateral: &enclos_verifier::Collateral) -> bool {
    let verifier = told(platform);
    let policy = Policy {
        any_identity: true,
        emulated_roots: vec![platform.quoting.root_key_id()],
        ..Policy::default()
    };
    let verdict = policy.judge(verifier.verify_quote(quote, &verifier.trust(collateral), Time::now()));
    verdict.accepted
}

#[test]
fn fetches_what_judges_a_quote() {
    let platform = Platform::new();
    let endpoint = Endpoint::of(&platform);
    let bytes = platform.attest(&[1; 64]);
    let quote = Quote::parse(&bytes).unwrap();
    for path in ["", "/", "/sgx/certification/v4/", "/sgx/certification/v3"] {
        let service = service(&format!("{}{path}", endpoint.url), None);
        let collateral = service.collateral(&quote, &told(&platform), Time::now()).unwrap();
        assert!(accepted(&platform, &bytes, &collateral), "{path}");
        // As of the day before it was issued, and long after.
        for time in [Time(Time::now().0 - 3 * 86_400), Time(Time::now().0 + 40 * 86_400)] {
            assert!(told(&platform).check_collateral(&collateral, time).is_err());
        }
    }
}

#[test]
fn fetches_the_certificate_that_a_quote_only_identifies() {
    let platform = Platform::new();
    let endpoint = Endpoint::of(&platform);
    let bytes = platform.attest(&[2; 64]);
    let quote = Quote::parse(&bytes).unwrap();
    // Certification data are not signed: type 3, encrypted PPID, CPUSVN, PCE SVN, PCE.
    let chain = quote.certification.data.len();
    let data = [&[0; 384][..], &platform.quoting.cpu_svn(), &quote.pce_svn.to_le_bytes(), &[0, 0]].concat();
    let mut changed = bytes[..bytes.len() - chain - 6].to_vec();
    changed.extend(3u16.to_le_bytes());
    changed.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    changed.extend(&data);
    let auth_len = 48 + 384;
    let len = u32::try_from(changed.len() - auth_len - 4).unwrap();
    changed[auth_len..auth_len + 4].copy_from_slice(&len.to_le_bytes());
    let quote = Quote::parse(&changed).unwrap();
    assert_eq!(quote.certification.kind, 3);

    let service = service(&endpoint.url, None);
    let collateral = service.collateral(&quote, &told(&platform), Time::now()).unwrap();
    assert!(collateral.pck_certificate_chain.is_some());
    assert!(accepted(&platform, &changed, &collateral));

    // Another platform's quoting enclave is not known there.
    changed[28] ^= 1;
    let error = service.collateral(&Quote::parse(&changed).unwrap(), &told(&platform), Time::now());
    assert!(matches!(error, Err(FetchError::Status { status: 461, .. })), "{error:?}");
}

#[test]
fn what_is_kept_is_used_until_it_expires_and_only_if_it_is_genuine() {
    let platform = Platform::new();
    let folder = tempfile::tempdir().unwrap();
    let kept = || -> Vec<_> {
        let files = std::fs::read_dir(folder.path()).unwrap();
        files.map(|entry| entry.unwrap().path()).collect()
    };
    let bytes = platform.attest(&[3; 64]);
    let quote = Quote::parse(&bytes).unwrap();
    let verifier = told(&platform);
    let endpoint = Endpoint::of(&platform);
    let service = service(&endpoint.url, Some(folder.path()));
    // Who does not trust the root gets it to be told what is wrong, and nothing is kept.
    let ask = |verifier: &Verifier, time| service.collateral(&quote, verifier, time);
    ask(&Verifier::default(), Time::now()).unwrap();
    assert!(kept().is_empty());
    let fetched = ask(&verifier, Time::now()).unwrap();
    assert_eq!(kept().len(), 1);
    // The platform signs anew at each request: this is what was kept.
    assert!(ask(&verifier, Time::now()).unwrap() == fetched);
    drop(endpoint);

    assert!(ask(&verifier, Time::now()).unwrap() == fetched);
    // What was kept for others does not count for who does not trust it; nor what has expired, or was damaged.
    let unreachable = |outcome: Result<_, FetchError>| {
        assert!(matches!(outcome, Err(FetchError::Transport { .. })), "{outcome:?}");
    };
    unreachable(ask(&Verifier::default(), Time::now()));
    unreachable(ask(&verifier, Time(Time::now().0 + 40 * 86_400)));
    let file = kept().remove(0);
    let good = std::fs::read_to_string(&file).unwrap();
    for bad in [good.replace("UpToDate", "OutOfDat"), good[..good.len() / 2].to_owned(), String::new()] {
        std::fs::write(&file, bad).unwrap();
        unreachable(ask(&verifier, Time::now()));
    }
    std::fs::write(&file, good).unwrap();
    ask(&verifier, Time::now()).unwrap();
    // Shortly before it expires it would be fetched anew, and is used while that fails.
    let until = verifier.check_collateral(&fetched, Time::now()).unwrap();
    ask(&verifier, Time(until.0 - 60)).unwrap();
    let endpoint = Endpoint::of(&platform);
    let options = Options { cache: Some(folder.path().into()), ..Options::default() };
    let renewed =
        ProvisioningService::new(&endpoint.url, Options { renew_before: Duration::MAX, ..options.clone() });
    renewed.unwrap().collateral(&quote, &verifier, Time::now()).unwrap();
    assert_eq!(kept().len(), 2, "another address is another service");
}

#[test]
fn a_source_of_collateral_for_peers_outlives_its_service() {
    let platform = Platform::new();
    let endpoint = Endpoint::of(&platform);
    let bytes = platform.attest(&[4; 64]);
    let quote = Quote::parse(&bytes).unwrap();
    let source = ServiceCollateral::new(service(&endpoint.url, None), told(&platform));
    let first = source.collateral(&quote, Time::now()).unwrap();
    drop(endpoint);
    assert!(Arc::ptr_eq(&source.collateral(&quote, Time::now()).unwrap(), &first));
    let error = source.collateral(&quote, Time(Time::now().0 + 40 * 86_400)).unwrap_err();
    assert!(error.reason.contains("/sgx/certification/v4/tcb"), "{error}");
}

/// What a service does with a request, by its path and connection.
type Answering = Box<dyn Fn(&str, &mut TcpStream) + Send>;
/// What is changed of headers and body.
type Change<'a> = &'a dyn Fn(String, Vec<u8>) -> (String, Vec<u8>);
/// The same, by what is asked for.
type ChangeOf<'a> = &'a dyn Fn(&str, String, Vec<u8>) -> (String, Vec<u8>);

/// A service that answers every request by a function of path and connection.
fn hostile(answer: impl Fn(&str, &mut TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = Vec::new();
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                let mut byte = [0];
                match stream.read(&mut byte) {
                    Ok(1) => request.push(byte[0]),
                    _ => break,
                }
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            answer(text.split(' ').nth(1).unwrap_or_default(), &mut stream);
        }
    });
    url
}

/// A whole answer.
fn reply(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let len = body.len();
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {len}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

#[test]
fn answers_that_no_service_should_give_are_typed_errors_in_bounded_time() {
    let platform = Platform::new();
    let bytes = platform.attest(&[5; 64]);
    let quote = Quote::parse(&bytes).unwrap();
    let ask = |answer: Answering, patience| {
        let options = Options { patience, ..Options::default() };
        let service = ProvisioningService::new(&hostile(answer), options).unwrap();
        let started = Instant::now();
        let outcome = service.collateral(&quote, &told(&platform), Time::now());
        (outcome.unwrap_err(), started.elapsed())
    };
    let whole =
        |bytes: Vec<u8>| ask(Box::new(move |_, to| drop(to.write_all(&bytes))), Duration::from_secs(20)).0;

    let status = |line| match whole(reply(line, "", b"no")) {
        FetchError::Status { status, .. } => status,
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(
        (status("404 Not Found"), status("461 x"), status("503 x"), status("204 x")),
        (404, 461, 503, 204)
    );
    let elsewhere = reply("302 Found", "Location: http://127.0.0.1:1/\r\n", b"");
    assert!(matches!(whole(elsewhere), FetchError::Status { status: 302, .. }));
    let not_http = whole(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec());
    assert!(matches!(not_http, FetchError::Transport { .. }), "{not_http:?}");
    let nothing = whole(Vec::new());
    assert!(matches!(nothing, FetchError::Transport { .. }), "{nothing:?}");
    let cut = whole(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort".to_vec());
    assert!(matches!(cut, FetchError::Transport { .. }), "{cut:?}");
    // More than there can be: said beforehand, and not.
    let said = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", u64::MAX);
    let (error, _) = ask(
        Box::new(move |_, to| {
            let _ = to.write_all(said.as_bytes());
            while to.write_all(&[b'x'; 65536]).is_ok() {}
        }),
        Duration::from_secs(20),
    );
    assert!(matches!(error, FetchError::TooLong { .. }), "{error:?}");
    let (error, _) = ask(
        Box::new(|_, to| {
            let _ = to.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = [b"10000\r\n", &[b'x'; 65536][..], b"\r\n"].concat();
            while to.write_all(&chunk).is_ok() {}
        }),
        Duration::from_secs(20),
    );
    assert!(matches!(error, FetchError::TooLong { .. }), "{error:?}, the limit is {LONGEST}");
    // A byte at a time, for ever: all documents together have their time.
    let patience = Duration::from_millis(600);
    let drip = |head: &'static [u8]| -> Answering {
        Box::new(move |_, to| {
            let _ = to.write_all(head);
            while to.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        })
    };
    let silence: Answering = Box::new(|_, _| thread::sleep(Duration::from_secs(9)));
    for answer in
        [silence, drip(b"HTTP/1.1 200 OK\r\nX: "), drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")]
    {
        let (error, took) = ask(answer, patience);
        assert!(matches!(error, FetchError::Timeout { .. }), "{error:?}");
        assert!(took < patience * 10, "{took:?}");
    }
}

#[test]
fn documents_that_are_none_are_named() {
    let platform = Platform::new();
    let bytes = platform.attest(&[6; 64]);
    let quote = Quote::parse(&bytes).unwrap();
    let good = platform.quoting.collateral(Time::now()).unwrap();
    let chain = |pem: &str| pem.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    // What a service gives, with one thing changed.
    let ask = |change: ChangeOf<'_>| {
        let signed = |name: &str, text: &str, signature: &[u8]| {
            let signature: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{{\"{name}\":{text},\"signature\":\"{signature}\"}}").into_bytes()
        };
        let digits: String = good.root_ca_crl.iter().map(|byte| format!("{byte:02x}")).collect();
        let header = |name: &str, pem: &str| format!("{name}: {}\r\n", chain(pem));
        let answers: Vec<_> = [
            (
                "/tcb",
                header("TCB-Info-Issuer-Chain", &good.tcb_info_issuer_chain),
                signed("tcbInfo", &good.tcb_info, &good.tcb_info_signature),
            ),
            (
                "/identity",
                header("SGX-Enclave-Identity-Issuer-Chain", &good.qe_identity_issuer_chain),
                signed("enclaveIdentity", &good.qe_identity, &good.qe_identity_signature),
            ),
            ("/pckcrl", header("SGX-PCK-CRL-Issuer-Chain", &good.pck_crl_issuer_chain), good.pck_crl.clone()),
            ("/rootcacrl", String::new(), digits.into_bytes()),
        ]
        .into_iter()
        .map(|(path, headers, body)| {
            let (headers, body) = change(path, headers, body);
            (path, reply("200 OK", &headers, &body))
        })
        .collect();
        let url = hostile(move |path, to| {
            let (_, bytes) = answers.iter().find(|(name, _)| path.contains(name)).unwrap();
            let _ = to.write_all(bytes);
        });
        let folder = tempfile::tempdir().unwrap();
        let outcome = service(&url, Some(folder.path())).collateral(&quote, &told(&platform), Time::now());
        let kept = std::fs::read_dir(folder.path()).unwrap().count();
        (outcome, kept)
    };
    let (outcome, kept) = ask(&|_, headers, body| (headers, body));
    assert!(accepted(&platform, &bytes, &outcome.unwrap()) && kept == 1);

    let malformed = |at: &str, change: Change<'_>| {
        let (outcome, kept) =
            ask(&|path, headers, body| if path == at { change(headers, body) } else { (headers, body) });
        assert_eq!(kept, 0);
        match outcome {
            Err(FetchError::Malformed { url, what, .. }) => {
                assert!(url.contains(at), "{url}");
                what
            }
            other => panic!("{at}: {other:?}"),
        }
    };
    let html = b"<html>Please log in</html>".to_vec();
    for (at, what) in [
        ("/tcb", "tcbInfo"),
        ("/identity", "enclaveIdentity"),
        ("/pckcrl", "the CRL"),
        ("/rootcacrl", "the CRL"),
    ] {
        assert_eq!(malformed(at, &|headers, _| (headers, html.clone())), what);
        assert_eq!(malformed(at, &|headers, _| (headers, Vec::new())), what);
        assert_eq!(malformed(at, &|headers, _| (headers, vec![0xff, 0xfe])), what);
    }
    assert_eq!(malformed("/rootcacrl", &|_, body| (String::new(), body[..31].to_vec())), "the CRL");
    assert_eq!(malformed("/tcb", &|headers, _| (headers, b"{\"tcbInfo\":{}}".to_vec())), "tcbInfo");
    for (at, name) in [
        ("/tcb", "header tcb-info-issuer-chain"),
        ("/identity", "header sgx-enclave-identity-issuer-chain"),
        ("/pckcrl", "header sgx-pck-crl-issuer-chain"),
    ] {
        assert_eq!(malformed(at, &|_, body| (String::new(), body)), name);
        let named = name.strip_prefix("header ").unwrap();
        for value in ["%FF%FE", "none"] {
            assert_eq!(malformed(at, &|_, body| (format!("{named}: {value}\r\n"), body)), name);
        }
    }

    // What is well-formed and not genuine is for the appraisal to name, and is not kept.
    let other = Platform::new();
    let other = other.quoting.collateral(Time::now()).unwrap();
    let wrong: [(&str, Change<'_>); 4] = [
        ("/tcb", &|_, body| {
            (format!("TCB-Info-Issuer-Chain: {}\r\n", chain(&good.pck_crl_issuer_chain)), body)
        }),
        ("/pckcrl", &|_, body| {
            (format!("SGX-PCK-CRL-Issuer-Chain: {}\r\n", chain(&other.tcb_info_issuer_chain)), body)
        }),
        ("/pckcrl", &|headers, _| (headers, good.root_ca_crl.clone())),
        ("/tcb", &|headers, body| {
            (headers, String::from_utf8(body).unwrap().replace("UpToDate", "OutOfDat").into_bytes())
        }),
    ];
    for (index, (at, change)) in wrong.iter().enumerate() {
        let (outcome, kept) =
            ask(&|path, headers, body| if path == *at { change(headers, body) } else { (headers, body) });
        let collateral = outcome.unwrap();
        assert_eq!(kept, 0, "{index}");
        assert!(told(&platform).check_collateral(&collateral, Time::now()).is_err(), "{index}");
        // The chain of the PCK CRL is not what a quote is judged by: its own is.
        assert_eq!(accepted(&platform, &bytes, &collateral), index == 1, "{index}");
    }
}

#[test]
fn addresses_and_certificates_that_are_none_are_refused_at_once() {
    for address in [
        "",
        "localhost:8081",
        "ftp://localhost/",
        "http://",
        "https://localhost/sgx/certification/v2/",
        "http://h/?a=b",
    ] {
        let error = ProvisioningService::new(address, Options::default()).unwrap_err();
        assert!(matches!(error, ServiceError::Address(_)), "{address}: {error}");
    }
    for pem in [&b""[..], b"no", b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"] {
        let options = Options { roots: Some(pem.to_vec()), ..Options::default() };
        let error = ProvisioningService::new("https://localhost:8081", options).unwrap_err();
        assert!(matches!(error, ServiceError::Roots(_)), "{error}");
    }
}
