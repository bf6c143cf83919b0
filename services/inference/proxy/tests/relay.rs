//! What the proxy's page relies on: an offer that it can check, and a relay that passes on what it cannot read.
#![forbid(unsafe_code)]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use common::{MODEL, Platform, ROW, image, newer, policy_for, request, sha256};
use enclos_inference::client::{Client, Demands, Verified};
use enclos_inference::{Offer, Settings};
use enclos_inference_host::{Config as HostConfig, Limits, ModelFile, Server};
use enclos_inference_proxy::{Config, ProxyError, gateway_at};
use enclos_verifier::{Policy, Time};
use serde_json::{Value, json};

const REQUEST: &str = "message/ohttp-req";
const RESPONSE: &str = "message/ohttp-res";
const PROBLEM: &str = "application/problem+json";
const JSON: &str = "application/json";
const KEY_PROBLEM: &str = "https://iana.org/assignments/http-problem-types#ohttp-key";
/// Longest body that the proxies here take.
const BODY: usize = 8192;

/// A service with two versions of a model, in this process; it ends with it.
struct Service {
    url: String,
    platform: Arc<Platform>,
    server: Arc<enclos_inference_host::Service>,
    folder: tempfile::TempDir,
}

impl Service {
    fn start() -> Self {
        let platform = Platform::new();
        let folder = tempfile::tempdir().unwrap();
        let models = [("tree", MODEL.to_vec()), ("newer", newer(1))].map(|(name, model)| {
            let path = folder.path().join(name).with_extension("onnx");
            fs::write(&path, model).unwrap();
            ModelFile { name: name.into(), path }
        });
        let config = HostConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            models: models.into(),
            key_broker: None,
            watch: None,
            versions: 2,
            settings: Settings::default(),
            attested_tls: None,
            limits: Limits::default(),
        };
        let (ready, is_ready) = mpsc::channel();
        let on = platform.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let start = move || on.builder(image()).start();
                let server = Server::bind(config, Box::new(start), Box::new(|_| {})).await.unwrap();
                ready.send((server.address(), server.service().clone())).unwrap();
                server.serve(std::future::pending()).await;
            });
        });
        let (address, server) = is_ready.recv().unwrap();
        Self { url: format!("http://{address}"), platform, server, folder }
    }

    fn policy(&self) -> Policy {
        self.platform.policy(&image())
    }

    /// A proxy of this service's; it ends with the process.
    fn proxy(&self, policy: Policy, models: &[&[u8]]) -> Proxy {
        let collateral = self.platform.collateral.clone();
        let models = models.iter().map(|model| sha256(model)).collect();
        let demands = Demands { policy, collateral: Box::new(move || Ok(collateral.clone())), models };
        let client = Client::new(gateway_at(&self.url).unwrap(), demands);
        let config = Config { listen: ([127, 0, 0, 1], 0).into(), body: BODY, ..Config::default() };
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || enclos_inference_proxy::run(config, client, |at| ready.send(at).unwrap()));
        Proxy(is_ready.recv().unwrap())
    }

    /// Requests that came to the gateway, whatever became of them.
    fn requests(&self) -> u64 {
        let metrics = agent().get(format!("{}/metrics", self.url)).call().unwrap();
        let metrics = metrics.into_body().read_to_string().unwrap();
        let counted = metrics.lines().filter(|line| line.starts_with("enclos_inference_requests_total{"));
        counted.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

struct Proxy(SocketAddr);

struct Answer {
    status: u16,
    kind: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_secs(60))).build().new_agent()
}

impl Proxy {
    fn verdict(&self, query: &str) -> Answer {
        answer(agent().get(format!("http://{}/verdict{query}", self.0)).call())
    }

    /// What a page gets, judged by the policy itself.
    fn verified(&self, service: &Service) -> Verified {
        let said = self.verdict("").json();
        let offer = json!({
            "key_config": said["key_config"],
            "models": said["offered_models"],
            "evidence": said["evidence"],
            "not_after": said["not_after"],
        });
        let offer = Offer::from_json(offer.to_string().as_bytes()).unwrap();
        Verified::verify(&offer, &service.policy(), &service.platform.collateral, Time::now()).unwrap()
    }

    fn post(&self, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = agent().post(format!("http://{}/ohttp", self.0));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.send(body))
    }

    fn relay(&self, body: &[u8]) -> Answer {
        self.post(&[("content-type", REQUEST)], body)
    }
}

fn answer(answered: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
    let mut response = answered.unwrap();
    let kind = response.headers().get("content-type").map_or("", |kind| kind.to_str().unwrap()).to_owned();
    Answer { status: response.status().as_u16(), kind, body: response.body_mut().read_to_vec().unwrap() }
}

#[test]
fn what_is_sealed_for_the_offer_in_the_verdict_is_relayed_unread() {
    let service = Service::start();
    let proxy = service.proxy(service.policy(), &[]);
    let client = proxy.verified(&service);
    let infer = format!("{}/infer", client.model(Some("tree"), None).unwrap().path());
    let (sealed, reply) = client.seal("POST", &infer, request(&ROW)).unwrap();
    let got = proxy.relay(&sealed);
    assert_eq!((got.status, &*got.kind), (200, RESPONSE));
    let (status, body) = reply.open(&got.body).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["outputs"][0]["data"][0]), (200, &json!(0)), "{body}");
    // What is wrong with the request, only the encrypted response says.
    let (sealed, reply) = client.seal("POST", &infer, b"{}".to_vec()).unwrap();
    let got = proxy.relay(&sealed);
    assert_eq!((got.status, reply.open(&got.body).unwrap().0), (200, 400));

    // The gateway's errors as they are.
    let again = proxy.relay(&sealed);
    assert_eq!((again.status, &*again.kind), (409, PROBLEM));
    assert_eq!(again.json()["title"], "replayed");
    let mut of_another_key = sealed.clone();
    of_another_key[0] ^= 1;
    let unknown = proxy.relay(&of_another_key);
    assert_eq!((unknown.status, &*unknown.kind), (400, PROBLEM));
    assert_eq!(unknown.json()["type"], KEY_PROBLEM);
    assert_eq!(service.requests(), 4);

    // Its own, and then nothing is passed on.
    let origin = format!("http://{}", proxy.0);
    let long = vec![0; BODY + 1];
    let (of_its_page, of_another) = (("origin", &*origin), ("origin", "http://attacker.example"));
    for (headers, body, status) in [
        (&[("content-type", JSON)][..], &sealed, 415),
        (&[], &sealed, 415),
        (&[("content-type", RESPONSE)], &sealed, 415),
        (&[("content-type", REQUEST)], &long, 413),
        (&[("content-type", REQUEST), of_another], &sealed, 403),
        (&[("content-type", REQUEST), ("host", "attacker.example")], &sealed, 403),
    ] {
        let refused = proxy.post(headers, body);
        assert_eq!((refused.status, &*refused.kind), (status, JSON), "{headers:?}");
        assert!(refused.json()["error"].is_string(), "{headers:?}");
    }
    // What another site's page causes: the page may be opened, and nothing else asked.
    for (path, status) in
        [("/", 200), ("/page.js", 200), ("/verdict?anew", 403), ("/v2", 403), ("/ohttp", 403)]
    {
        let caused = agent().get(format!("{origin}{path}")).header("sec-fetch-site", "cross-site").call();
        assert_eq!(answer(caused).status, status, "{path}");
    }
    let read = answer(agent().get(format!("{origin}/ohttp")).call());
    assert_eq!(read.status, 405);
    assert_eq!(service.requests(), 4);
    // As much as may be is passed on, and so is what its own page sends.
    assert_eq!(proxy.relay(&long[..BODY]).status, 400);
    assert_eq!(proxy.post(&[("content-type", REQUEST), of_its_page], &sealed).status, 409);
    assert_eq!(service.requests(), 6);
}

#[test]
fn nothing_is_relayed_to_a_server_that_is_refused() {
    let service = Service::start();
    // Emulated platforms are, by default.
    let proxy = service.proxy(policy_for(&image()), &[]);
    for _ in 0..2 {
        let refused = proxy.relay(&[0; 100]);
        assert_eq!((refused.status, &*refused.kind), (502, JSON));
        assert!(refused.json()["error"].as_str().unwrap().contains("refused"));
    }
    let verdict = proxy.verdict("");
    assert_eq!((verdict.status, &verdict.json()["verdict"]["accepted"]), (502, &json!(false)));
    assert_eq!(verdict.json().get("key_config"), None);
    assert_eq!(service.requests(), 0);
}

#[test]
fn the_verdict_has_all_that_the_evidence_vouches_for_and_is_given_anew_when_asked() {
    let service = Service::start();
    let proxy = service.proxy(service.policy(), &[MODEL]);
    let before = proxy.verdict("").json();
    let names = |models: &Value| -> Vec<String> {
        models.as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&before["models"]), ["tree"], "no other is asked");
    assert_eq!(names(&before["offered_models"]).len(), 2, "but the evidence is about both");
    assert_eq!(proxy.verified(&service).models().len(), 2);

    fs::write(service.folder.path().join("tree.onnx"), newer(2)).unwrap();
    service.server.reload();
    assert_eq!(proxy.verdict("").json()["evidence"], before["evidence"], "it is relied on for a while");
    let anew = proxy.verdict("?anew").json();
    assert_eq!((names(&anew["offered_models"]).len(), names(&anew["models"])), (3, vec!["tree".to_owned()]));
    assert_ne!(anew["evidence"], before["evidence"]);
    assert_eq!(proxy.verdict("").json()["evidence"], anew["evidence"]);
    proxy.verified(&service);
}

#[test]
fn attested_tls_has_no_gateway() {
    for url in ["attested-tls://127.0.0.1:8443", "Attested-TLS://enclave.example:1"] {
        let refused = gateway_at(url).unwrap_err();
        assert!(matches!(&refused, ProxyError::NoGateway { server } if server == url));
        assert!(refused.to_string().contains("http://"), "{refused}");
    }
    assert_eq!(gateway_at("http://127.0.0.1:8090/").unwrap().url(), "http://127.0.0.1:8090");
    assert!(gateway_at("é").is_ok(), "what is no URL, the request will say");
}
