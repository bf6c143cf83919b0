//! The client that keeps a verified server, over a host that does what it likes.

mod common;

use std::sync::{Arc, Mutex};

use common::{MODEL, Platform, ROW, image, newer, request, sha256};
use enclos_host::{Enclave, EnclaveTransport};
use enclos_inference::client::{
    Client, ClientError, Demands, GATEWAY_PATH, HostResponse, Request, Transport, TransportError,
};
use enclos_inference::{InferenceClient, OFFER_PATH, Offer};
use enclos_verifier::{Policy, Time};

/// A host in this process, and what it was sent.
#[derive(Clone)]
struct Host(Arc<Mutex<State>>);

struct State {
    platform: Arc<Platform>,
    enclave: Enclave,
    inference: InferenceClient<EnclaveTransport>,
    /// What it does to offers.
    forge: fn(&mut Offer),
    /// What it answers in the enclave's place.
    answer: Option<HostResponse>,
    offers: usize,
    posts: Vec<Vec<u8>>,
}

impl Host {
    fn start() -> Self {
        let platform = Platform::new();
        let (enclave, inference) = enclave(&platform);
        Self(Arc::new(Mutex::new(State {
            platform,
            enclave,
            inference,
            forge: |_| {},
            answer: None,
            offers: 0,
            posts: Vec::new(),
        })))
    }

    fn restart(&self) {
        let mut state = self.0.lock().unwrap();
        (state.enclave, state.inference) = enclave(&state.platform.clone());
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap());
    }

    /// Offers fetched and requests sent since the last time.
    fn counts(&self) -> (usize, usize) {
        let mut state = self.0.lock().unwrap();
        (std::mem::take(&mut state.offers), std::mem::take(&mut state.posts).len())
    }

    fn policy(&self) -> Policy {
        self.0.lock().unwrap().platform.policy(&image())
    }

    fn client(&self, policy: Policy, models: &[&[u8]]) -> Client<Self> {
        let collateral = self.0.lock().unwrap().platform.collateral.clone();
        let models = models.iter().map(|model| sha256(model)).collect();
        let demands = Demands { policy, collateral: Box::new(move || Ok(collateral.clone())), models };
        Client::new(self.clone(), demands)
    }
}

fn enclave(platform: &Platform) -> (Enclave, InferenceClient<EnclaveTransport>) {
    let enclave = platform.builder(image()).start().unwrap();
    let inference = enclave.connect::<InferenceClient<_>>().unwrap();
    inference.load("tree", MODEL).unwrap();
    (enclave, inference)
}

impl Transport for Host {
    fn get(&self, path: &str) -> Result<HostResponse, TransportError> {
        assert_eq!(path, OFFER_PATH);
        let mut state = self.0.lock().unwrap();
        state.offers += 1;
        let mut offer = state.inference.offer().unwrap();
        (state.forge)(&mut offer);
        let body = offer.to_json().into_bytes();
        Ok(HostResponse { status: 200, content_type: "application/json".into(), body })
    }

    fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Result<HostResponse, TransportError> {
        assert_eq!((path, content_type), (GATEWAY_PATH, "message/ohttp-req"));
        let mut state = self.0.lock().unwrap();
        state.posts.push(body.to_vec());
        if let Some(answer) = &state.answer {
            return Ok(answer.clone());
        }
        Ok(match state.inference.infer(body) {
            Ok(body) => HostResponse { status: 200, content_type: "message/ohttp-res".into(), body },
            Err(e) => problem(400, &e.to_string()),
        })
    }
}

fn problem(status: u16, detail: &str) -> HostResponse {
    let body = serde_json::json!({ "detail": detail }).to_string().into_bytes();
    HostResponse { status, content_type: "application/problem+json".into(), body }
}

fn infer() -> Request {
    Request::post("/v2/models/tree/infer", request(&ROW))
}

#[test]
fn nothing_is_sent_before_the_server_is_accepted() {
    let host = Host::start();
    let by_default = Policy { emulated_roots: Vec::new(), ..host.policy() };
    let client = host.client(by_default, &[]);
    for _ in 0..2 {
        assert!(matches!(client.ask(&infer()), Err(ClientError::Refused(_))));
    }
    assert_eq!(host.counts(), (2, 0));
    let client = host.client(host.policy(), &[&newer(1)]);
    assert!(matches!(client.ask(&infer()), Err(ClientError::OtherModel { .. })));
    assert_eq!(host.counts(), (1, 0));

    let client = host.client(host.policy(), &[MODEL]);
    for _ in 0..3 {
        let (response, verified) = client.ask(&infer()).unwrap();
        assert_eq!(response.status, 200);
        assert!(verified.verdict().accepted && verified.verdict().emulated);
        let answer: serde_json::Value = serde_json::from_slice(response.parts().unwrap().0).unwrap();
        assert_eq!(answer["model_version"], enclos_inference::version(&sha256(MODEL)));
    }
    assert_eq!(host.counts(), (1, 3), "verified once");
    for path in ["/v2/models/other", "/v2/models/tree/versions/0", "/v2/models/"] {
        assert!(matches!(client.ask(&Request::get(path)), Err(ClientError::OtherModel { .. })), "{path}");
    }
}

#[test]
fn another_enclave_is_verified_before_a_request_is_sent_again() {
    let host = Host::start();
    let client = host.client(host.policy(), &[]);
    client.ask(&infer()).unwrap();
    host.restart();
    host.counts();
    assert_eq!(client.ask(&infer()).unwrap().0.status, 200);
    assert_eq!(host.counts(), (1, 2), "refused for its key, verified anew, sent once more");

    // The host says that the key is old, and offers one of its own.
    host.restart();
    host.change(|state| state.forge = |offer| *offer.key_config.last_mut().unwrap() ^= 1);
    assert!(matches!(client.ask(&infer()), Err(ClientError::Refused(_))));
    assert_eq!(host.counts(), (1, 1));
    for _ in 0..2 {
        assert!(matches!(client.ask(&infer()), Err(ClientError::Refused(_))), "and it stays refused");
    }
    assert_eq!(host.counts(), (2, 0));

    // A host that only says so is asked no third time.
    host.change(|state| {
        state.forge = |_| {};
        state.answer = Some(problem(400, "the key is unknown"));
    });
    let refused = client.ask(&infer());
    assert!(matches!(&refused, Err(ClientError::Host { status: 400, detail }) if detail.contains("unknown")));
    assert!(host.counts().1 <= 2);
}

#[test]
fn expired_collateral_is_refused_and_nothing_is_sent() {
    const DAYS: u64 = 24 * 60 * 60;
    let host = Host::start();
    let platform = host.0.lock().unwrap().platform.clone();
    let [good, expired] =
        [0, 60 * DAYS].map(|ago| platform.quoting.collateral(Time(Time::now().0 - ago)).unwrap());
    let current = Arc::new(Mutex::new(good));
    let given = current.clone();
    let collateral = Box::new(move || Ok(given.lock().unwrap().clone()));
    let client = Client::new(host.clone(), Demands { policy: host.policy(), collateral, models: Vec::new() });
    client.ask(&infer()).unwrap();
    host.counts();

    // It expires while a server is accepted: the next one is judged by what there is then.
    *current.lock().unwrap() = expired;
    host.restart();
    let refused = client.ask(&infer());
    let Err(ClientError::Refused(verdict)) = &refused else { panic!("{refused:?}") };
    let reasons: Vec<_> = verdict.reasons.iter().map(ToString::to_string).collect();
    assert!(reasons.iter().any(|reason| reason.contains("was valid until")), "{reasons:?}");
    assert_eq!(host.counts(), (1, 1), "what was sent was for the key of the server accepted before");
    assert!(matches!(client.ask(&infer()), Err(ClientError::Refused(_))));
    assert_eq!(host.counts(), (1, 0));
}

#[test]
fn what_the_host_answers_is_no_answer() {
    let host = Host::start();
    let client = host.client(host.policy(), &[]);
    let (genuine, _) = client.ask(&infer()).unwrap();
    for (status, content_type) in
        [(200, "application/json"), (200, "message/ohttp-res"), (204, ""), (302, "text/html"), (503, "")]
    {
        let answer = HostResponse { status, content_type: content_type.into(), body: genuine.body.clone() };
        host.change(|state| state.answer = Some(answer));
        let refused = client.ask(&infer());
        let is_refused = matches!(&refused, Err(ClientError::Host { .. } | ClientError::Encapsulation(_)));
        assert!(is_refused, "{status} {content_type}: {refused:?}");
    }
    host.change(|state| state.answer = None);
    assert_eq!(client.ask(&infer()).unwrap().0, genuine);
}

#[test]
fn a_version_that_is_gone_is_followed_only_by_who_demanded_none() {
    let host = Host::start();
    let follows = host.client(host.policy(), &[]);
    let demands = host.client(host.policy(), &[MODEL]);
    let version = |client: &Client<Host>| {
        let (response, _) = client.ask(&infer())?;
        let answer: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        Ok::<_, ClientError>((response.status, answer["model_version"].clone()))
    };
    assert_eq!(version(&follows).unwrap(), version(&demands).unwrap());
    host.change(|state| {
        state.inference.load("tree", &newer(1)).unwrap();
        state.inference.unload("tree", sha256(MODEL)).unwrap();
    });
    let newest = enclos_inference::version(&sha256(&newer(1)));
    assert_eq!(version(&follows).unwrap(), (200, newest.into()));
    assert!(matches!(version(&demands), Err(ClientError::OtherModel { .. })));
}
