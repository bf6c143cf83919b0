//! The service over HTTP: what its host sees, refuses, reloads, and starts anew.
#![forbid(unsafe_code)]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::io::{BufRead as _, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use std::{fs, thread};

use common::{MODEL, Platform, ROW, image, image_of, newer, policy_for, request, sha256};
use enclos::abi::hostcall;
use enclos_attested_tls::Refusal;
use enclos_host::Builder;
use enclos_inference::client::Verified;
use enclos_inference::client::attested_tls::Connection;
use enclos_inference::{OFFER_PATH, Offer, Settings, version};
use enclos_inference_host::{Config, Limits, ModelFile, ServeError, Server};
use enclos_pack::config::Size;
use enclos_verifier::{Collateral, Policy, Time};
use serde_json::Value;

const GATEWAY: &str = "/.well-known/ohttp-gateway";
const REQUEST: &str = "message/ohttp-req";
const KEY_PROBLEM: &str = "https://iana.org/assignments/http-problem-types#ohttp-key";

/// A service in this process, and a client of it.
struct Service {
    url: String,
    platform: Arc<Platform>,
    image: Vec<u8>,
    said: Arc<Mutex<Vec<String>>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    folder: tempfile::TempDir,
}

/// What is served unless a test says otherwise: one tree, in this folder.
fn config(folder: &Path) -> Config {
    let path = folder.join("tree.onnx");
    fs::write(&path, MODEL).unwrap();
    Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        models: vec![ModelFile { name: "tree".into(), path }],
        key_broker: None,
        watch: None,
        versions: 2,
        settings: Settings::default(),
        attested_tls: None,
        limits: Limits::default(),
    }
}

fn start(image: Vec<u8>, change: impl FnOnce(&mut Config)) -> Result<Service, ServeError> {
    start_with(image, change, |builder| builder)
}

/// With an enclave that is started differently.
fn start_with(
    image: Vec<u8>,
    change: impl FnOnce(&mut Config),
    with: impl Fn(Builder) -> Builder + Send + Sync + 'static,
) -> Result<Service, ServeError> {
    let platform = Platform::new();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    change(&mut config);
    let said = Arc::new(Mutex::new(Vec::new()));
    let events = said.clone();
    let started = (platform.clone(), image.clone());
    let (ready, is_ready) = mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let thread = thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let start = move || with(started.0.builder(started.1.clone())).start();
            let tell =
                move |event: &enclos_inference_host::Event| events.lock().unwrap().push(event.to_string());
            match Server::bind(config, Box::new(start), Box::new(tell)).await {
                Ok(server) => {
                    ready.send(Ok(server.address())).unwrap();
                    server.serve(async { drop(stopped.await) }).await;
                }
                Err(e) => ready.send(Err(e)).unwrap(),
            }
        });
    });
    let url = format!("http://{}", is_ready.recv().unwrap()?);
    Ok(Service { url, platform, image, said, stop: Some(stop), thread: Some(thread), folder })
}

impl Service {
    fn offer(&self) -> Offer {
        let (status, body) = get(&self.url, OFFER_PATH);
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        Offer::from_json(&body).unwrap()
    }

    fn verified(&self) -> Verified {
        let policy = self.platform.policy(&self.image);
        Verified::verify(&self.offer(), &policy, &self.platform.collateral, Time::now()).unwrap()
    }

    /// The enclave's answer, or the host's problem.
    fn ask(
        &self,
        client: &Verified,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(u16, Value), (u16, Value)> {
        ask(&self.url, client, method, path, body)
    }

    fn wait_for(&self, what: &str) {
        let until = Instant::now() + Duration::from_secs(60);
        while !self.said.lock().unwrap().iter().any(|said| said.contains(what)) {
            assert!(Instant::now() < until, "{what:?} was not said: {:?}", self.said.lock().unwrap());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(thread::panicking() || ended.is_ok(), "the server panicked");
        }
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_secs(60))).build().new_agent()
}

fn get(url: &str, path: &str) -> (u16, Vec<u8>) {
    let mut response = agent().get(format!("{url}{path}")).call().unwrap();
    (response.status().as_u16(), response.body_mut().read_to_vec().unwrap())
}

fn post(url: &str, kind: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut response =
        agent().post(format!("{url}{GATEWAY}")).header("content-type", kind).send(body).unwrap();
    (response.status().as_u16(), response.body_mut().read_to_vec().unwrap())
}

fn ask(
    url: &str,
    client: &Verified,
    method: &str,
    path: &str,
    body: Vec<u8>,
) -> Result<(u16, Value), (u16, Value)> {
    let (sealed, reply) = client.seal(method, path, body).unwrap();
    match post(url, REQUEST, &sealed) {
        (200, answer) => {
            let (status, body) = reply.open(&answer).unwrap();
            Ok((status, serde_json::from_slice(&body).unwrap()))
        }
        (status, problem) => Err((status, serde_json::from_slice(&problem).unwrap())),
    }
}

/// A client that announces a body of this length, and stalls at its first byte.
fn stalls(url: &str, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    let head = format!(
        "POST {GATEWAY} HTTP/1.1\r\nhost: x\r\ncontent-type: {REQUEST}\r\ncontent-length: {length}\r\n\r\nx"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn status_line(stream: &mut TcpStream) -> String {
    let mut said = [0; 12];
    stream.read_exact(&mut said).unwrap();
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn it_answers_verified_clients_and_tells_others_why_not() {
    let service = start(image(), |_| {}).unwrap();
    let client = service.verified();
    let model = client.model(None, Some(&sha256(MODEL))).unwrap();
    let infer = format!("{}/infer", model.path());
    let (status, answer) = service.ask(&client, "POST", &infer, request(&ROW)).unwrap();
    assert_eq!((status, &answer["outputs"][0]["data"][0]), (200, &Value::from(0)), "{answer}");

    // The key configuration as other people's clients take it: a list, each with its length.
    let (status, keys) = get(&service.url, GATEWAY);
    let offered = service.offer().key_config;
    assert_eq!((status, &keys[..2], &keys[2..]), (200, &[0, offered.len() as u8][..], &offered[..]));

    let (sealed, _) = client.seal("GET", "/v2", Vec::new()).unwrap();
    assert_eq!(post(&service.url, REQUEST, &sealed).0, 200);
    let mut altered = sealed.clone();
    *altered.last_mut().unwrap() ^= 1;
    let mut of_another_key = sealed.clone();
    of_another_key[0] ^= 1;
    let mut large = stalls(&service.url, Limits::default().body + 1);
    assert_eq!(status_line(&mut large), "HTTP/1.1 413", "before it is sent");
    for (kind, body, status, problem) in [
        (REQUEST, &sealed[..], 409, None),
        (REQUEST, &altered, 400, None),
        (REQUEST, &sealed[..20], 400, None),
        (REQUEST, &[], 400, None),
        (REQUEST, &of_another_key, 400, Some(KEY_PROBLEM)),
        ("application/json", &sealed, 415, None),
    ] {
        let (got, said) = post(&service.url, kind, body);
        let said: Value = serde_json::from_slice(&said).unwrap();
        assert_eq!((got, &said["status"]), (status, &Value::from(status)), "{said}");
        assert_eq!(said["type"].as_str(), problem, "{said}");
        assert!(said["title"].is_string() && said["detail"].is_string(), "{said}");
    }
    // In plain there is nothing of the protocol but health.
    for (path, status) in [
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/v2", 404),
        ("/v2/models/tree", 404),
        ("/", 404),
    ] {
        assert_eq!(get(&service.url, path).0, status, "{path}");
    }
    let metrics = String::from_utf8(get(&service.url, "/metrics").1).unwrap();
    for line in [
        "enclos_inference_requests_total{outcome=\"answered\"} 2",
        "enclos_inference_requests_total{outcome=\"replayed\"} 1",
        "enclos_inference_requests_total{outcome=\"undecryptable\"} 3",
        "enclos_inference_requests_total{outcome=\"key\"} 1",
        "enclos_inference_requests_total{outcome=\"malformed\"} 2",
        "enclos_inference_requests_inside 0",
        "enclos_inference_requests_waiting 0",
        "enclos_inference_up 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}:\n{metrics}");
    }
    assert!(
        metrics.contains(&format!("model{{name=\"tree\",version=\"{}\"}}", model.version())),
        "{metrics}"
    );

    // As `ohttpy` asks: the same request under another name, and the response is one chunk behind its length.
    let (sealed, reply) = client.seal("POST", &infer, request(&ROW)).unwrap();
    let score = |kind: &str| {
        agent().post(format!("{}/score", service.url)).header("content-type", kind).send(&sealed[..]).unwrap()
    };
    assert_eq!(score(REQUEST).status().as_u16(), 415);
    let mut response = score("message/ohttp-chunked-req");
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(response.headers()["content-type"], "message/ohttp-chunked-res");
    let response = response.body_mut().read_to_vec().unwrap();
    let (nonce, chunk) = response.split_at(16);
    let (length, chunk) = chunk.split_at(chunk.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1);
    let length = length.iter().rev().fold(0, |n, byte| n << 7 | usize::from(byte & 0x7f));
    assert_eq!(length, chunk.len());
    assert_eq!(reply.open(&[nonce, chunk].concat()).unwrap().0, 200);
    assert_eq!(score("message/ohttp-chunked-req").status().as_u16(), 409, "replayed");
}

#[test]
fn a_new_file_is_a_new_version_and_a_bad_one_replaces_nothing() {
    let service = start(image(), |config| config.watch = Some(Duration::from_millis(50))).unwrap();
    let replace = |bytes: &[u8]| {
        let new = service.folder.path().join("new");
        fs::write(&new, bytes).unwrap();
        fs::rename(new, service.folder.path().join("tree.onnx")).unwrap();
    };
    let versions = || -> Vec<_> { service.offer().models.iter().map(|m| m.sha256).collect() };
    let newest_answers = || {
        let client = service.verified();
        let model = client.model(Some("tree"), None).unwrap().clone();
        let infer = format!("{}/infer", model.path());
        let (status, answer) = service.ask(&client, "POST", &infer, request(&ROW)).unwrap();
        assert_eq!((status, &answer["model_version"]), (200, &Value::from(model.version())), "{answer}");
        model.sha256
    };
    let first = service.verified();
    let path = first.model(None, None).unwrap().path();

    replace(&MODEL[..MODEL.len() / 2]);
    service.wait_for("is not served as tree: the model cannot be loaded");
    // The operator of a node (field 4), renamed: whoever runs the host reads which it is.
    let operator = b"\x22\x16TreeEnsembleClassifier";
    let place = MODEL.windows(operator.len()).position(|w| w == operator).unwrap();
    let mut unknown = MODEL.to_vec();
    unknown[place + 2] = b'X';
    replace(&unknown);
    service.wait_for("XreeEnsembleClassifier");
    assert_eq!(newest_answers(), sha256(MODEL));

    replace(&newer(1));
    service.wait_for(&version(&sha256(&newer(1))));
    assert_eq!(newest_answers(), sha256(&newer(1)));
    assert_eq!(versions(), [sha256(MODEL), sha256(&newer(1))], "the one before is kept");
    assert_eq!(service.ask(&first, "GET", &path, Vec::new()).unwrap().0, 200);

    replace(&newer(2));
    service.wait_for("newer ones are served");
    assert_eq!(versions(), [sha256(&newer(1)), sha256(&newer(2))]);
    let (status, answer) = service.ask(&first, "GET", &path, Vec::new()).unwrap();
    assert_eq!(status, 404, "never another model than the client verified: {answer}");
    assert_eq!(newest_answers(), sha256(&newer(2)));
}

#[test]
fn bounds_hold_and_pass() {
    let service = start(image(), |config| {
        config.limits.request = Duration::from_secs(6);
        config.limits.memory = 64 << 10;
        config.limits.parallel = 1;
        config.limits.queue = 2;
    })
    .unwrap();
    let client = service.verified();
    // A body that does not come takes the memory that it is announced to need; others are told to come again.
    let mut stalled = stalls(&service.url, 50 << 10);
    let until = Instant::now() + Duration::from_secs(30);
    let refused = loop {
        match ask(&service.url, &client, "GET", "/v2", vec![b' '; 20 << 10]) {
            Err(refused) => break refused,
            Ok(_) => assert!(Instant::now() < until),
        }
    };
    assert_eq!(refused.0, 503, "{}", refused.1);
    assert_eq!(status_line(&mut stalled), "HTTP/1.1 504", "the time is up");
    assert_eq!(service.ask(&client, "GET", "/v2", vec![b' '; 20 << 10]).unwrap().0, 200, "and it passes");
    drop(stalls(&service.url, 1 << 10));

    // More at once than may wait: each is answered or told to come again, and none is lost.
    let outcomes: Vec<_> = thread::scope(|scope| {
        let one = || match service.ask(&client, "POST", "/v2/models/tree/infer", request(&ROW)) {
            Ok((status, _)) => status,
            Err((status, _)) => status,
        };
        let threads: Vec<_> =
            (0..16).map(|_| scope.spawn(move || (0..5).map(|_| one()).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    assert!(outcomes.contains(&200) && outcomes.iter().all(|s| [200, 503].contains(s)), "{outcomes:?}");
    assert_eq!(service.ask(&client, "POST", "/v2/models/tree/infer", request(&ROW)).unwrap().0, 200);
}

#[test]
fn an_enclave_that_ends_in_a_request_is_started_anew_with_another_key() {
    // Too little heap for a large request: it is decrypted, and then there is no room for what is in it.
    let small = image_of(|config| config.heap = Size::new(24 << 20).unwrap());
    let service = start(small, |_| {}).unwrap();
    let client = service.verified();
    let (status, problem) =
        service.ask(&client, "POST", "/v2/models/tree/infer", vec![b' '; 7 << 20]).unwrap_err();
    assert_eq!(status, 503, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("ask for the offer again"), "{problem}");
    service.wait_for("the enclave ended");
    service.wait_for("another enclave serves the same models");

    // What was encrypted for the old key is nobody's. Whoever verifies anew is answered.
    let (status, problem) = service.ask(&client, "GET", "/v2", Vec::new()).unwrap_err();
    assert_eq!(status, 400, "{problem}");
    let again = service.verified();
    let (status, answer) = service.ask(&again, "POST", "/v2/models/tree/infer", request(&ROW)).unwrap();
    assert_eq!((status, &answer["outputs"][0]["data"][0]), (200, &Value::from(0)), "{answer}");
    let metrics = String::from_utf8(get(&service.url, "/metrics").1).unwrap();
    assert!(metrics.contains("enclos_inference_restarts_total 1"), "{metrics}");
}

#[test]
fn attested_tls_ends_inside_and_is_there_again_after_a_restart() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sees = seen.clone();
    let service = start_with(
        image_of(|config| config.heap = Size::new(24 << 20).unwrap()),
        |config| config.attested_tls = Some("127.0.0.1:0".into()),
        move |builder| {
            let sees = sees.clone();
            builder.inspect_host_calls(move |call| {
                if [hostcall::RECV, hostcall::SEND].contains(&call.number) && call.result > 0 {
                    sees.lock().unwrap().extend_from_slice(call.frame);
                }
                call.result
            })
        },
    )
    .unwrap();
    let policy = service.platform.policy(&service.image);
    let address = |n: usize| {
        let said = service.said.lock().unwrap();
        said.iter().filter_map(|s| s.strip_prefix("attested TLS at ")).nth(n).map(str::to_owned)
    };
    let open =
        |address: &str, policy: &Policy| Connection::open(address, policy, &service.platform.collateral);

    let first = address(0).unwrap();
    let by_default = open(&first, &policy_for(&service.image));
    assert!(matches!(by_default.unwrap_err().refusal(), Some(Refusal::Policy(_))), "emulated");
    let other = Policy { emulated_roots: policy.emulated_roots.clone(), ..policy_for(&image()) };
    assert!(matches!(open(&first, &other).unwrap_err().refusal(), Some(Refusal::Policy(_))), "another image");

    let mut connection = open(&first, &policy).unwrap();
    assert!(connection.verdict().emulated);
    let (status, offer) = connection.ask("GET", OFFER_PATH, Vec::new()).unwrap();
    assert_eq!(status, 200);
    let model = Offer::from_json(&offer).unwrap().models[0].clone();
    assert_eq!(model.sha256, sha256(MODEL));
    let infer = format!("{}/infer", model.path());
    let (status, answer) = connection.ask("POST", &infer, request(&ROW)).unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((status, &answer["outputs"][0]["data"][0]), (200, &Value::from(0)), "{answer}");
    assert_eq!(answer["id"], "the-client's-own-id");
    // Another version than that which is served is not answered by this one.
    let (status, _) =
        connection.ask("POST", &infer.replace(&model.version(), &"0".repeat(64)), request(&ROW)).unwrap();
    assert_eq!(status, 404);
    assert_eq!(connection.ask("POST", &infer, b"{".to_vec()).unwrap().0, 400);
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert!(count(&seen, b"the-client's-own-id") == 0 && count(&seen, b"output") == 0);
    assert!(
        count(&seen, &[0x16, 3, 1]) > 0,
        "what the host relayed was looked at: the record of a ClientHello"
    );

    // Too large for this heap: it ends the enclave, and the connections with it.
    let ended = connection.ask("POST", &infer, vec![b' '; 12 << 20]);
    assert!(ended.is_err(), "{ended:?}");
    service.wait_for("another enclave serves the same models");
    let mut connection = open(&address(1).unwrap(), &policy).unwrap();
    assert_eq!(connection.ask("POST", &infer, request(&ROW)).unwrap().0, 200);
}

#[test]
fn what_cannot_be_served_is_said_at_once() {
    let fails = |change: fn(&mut Config)| match start(image(), change) {
        Ok(_) => panic!("it serves"),
        Err(e) => e.to_string(),
    };
    assert!(fails(|c| c.models.clear()).contains("no model"));
    assert!(fails(|c| c.models.push(c.models[0].clone())).contains("two models tree"));
    assert!(fails(|c| c.models[0].path = "/nowhere.onnx".into()).contains("/nowhere.onnx"));
    assert!(fails(|c| c.models[0].name = "a/b".into()).contains("cannot be called"));
    let bad = fails(|c| fs::write(&c.models[0].path, b"no model").unwrap());
    assert!(bad.contains("is not served"), "{bad}");
    let elsewhere = fails(|c| c.attested_tls = Some("127.0.0.1:9".into()));
    assert!(elsewhere.contains("attested TLS cannot be served"), "{elsewhere}");
    let weaker = fails(|c| c.settings.key_lifetime = Some(1 << 40));
    assert!(weaker.contains("keys live for"), "{weaker}");
}

/// The host as a process of its own: says where it serves and where its enclave lies, and serves until its input ends.
#[test]
#[ignore = "started by the test below"]
fn host_process() {
    let Some(given) = std::env::var_os("HOST_PROCESS").map(PathBuf::from) else { return };
    let place = Arc::new(Mutex::new(None));
    let told = place.clone();
    let platform = Platform::new();
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let image = fs::read(given.join("image")).unwrap();
    fs::write(given.join("collateral"), serde_json::to_vec(&platform.collateral).unwrap()).unwrap();
    fs::write(given.join("root"), platform.quoting.root_key_id().to_string()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let start = move || {
            let enclave = platform.builder(image.clone()).start()?;
            *told.lock().unwrap() = Some((enclave.initialized().base(), enclave.initialized().size()));
            Ok(enclave)
        };
        let server = Server::bind(config, Box::new(start), Box::new(|_| {})).await.unwrap();
        let (base, size) = place.lock().unwrap().unwrap();
        println!("HOST {} {base} {size}", server.address());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        thread::spawn(move || {
            let _ = std::io::stdin().read(&mut [0]);
            drop(stop);
        });
        server.serve(async { drop(stopped.await) }).await;
    });
}

struct HostProcess {
    child: Child,
    url: String,
    elrange: (u64, u64),
    /// Kept: it writes more.
    _output: Lines<BufReader<ChildStdout>>,
}

impl HostProcess {
    /// This folder has the image, and gets what clients need.
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "host_process", "--ignored", "--nocapture"])
            .env("HOST_PROCESS", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.by_ref().map(Result::unwrap).find_map(|l| Some(l.split_once("HOST ")?.1.to_owned()));
        let line = line.expect("it says where it serves");
        let [address, base, size] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        Self {
            child,
            url: format!("http://{address}"),
            elrange: (base.parse().unwrap(), size.parse().unwrap()),
            _output: lines,
        }
    }

    /// How often these bytes are in the process's memory: outside of the enclave, and inside.
    fn holds(&self, needle: &[u8]) -> (usize, usize) {
        use std::os::unix::fs::FileExt as _;
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap();
        let memory = fs::File::open(format!("/proc/{}/mem", self.child.id())).unwrap();
        let (mut outside, mut inside, mut looked_at) = (0, 0, 0);
        for line in maps.lines() {
            let mut fields = line.split_whitespace();
            let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
            let (from, to) = range.split_once('-').unwrap();
            let [from, to] = [from, to].map(|t| u64::from_str_radix(t, 16).unwrap());
            // The kernel's own pages ([vvar]) and what nobody may read cannot be read here either.
            if !rights.starts_with('r') {
                continue;
            }
            let mut bytes = vec![0; (to - from) as usize];
            if memory.read_exact_at(&mut bytes, from).is_err() {
                continue;
            }
            looked_at += bytes.len();
            let is_inside = self.elrange.0 <= from && from < self.elrange.0 + self.elrange.1;
            let found = count(&bytes, needle);
            *(if is_inside { &mut inside } else { &mut outside }) += found;
        }
        assert!(looked_at > 1 << 20, "{looked_at} bytes");
        (outside, inside)
    }
}

/// How often a needle is in these bytes.
fn count(bytes: &[u8], needle: &[u8]) -> usize {
    // Most of an enclave's heap was never touched, and this is built without optimisation.
    const CHUNK: usize = 1 << 16;
    static UNTOUCHED: [u8; CHUNK] = [0; CHUNK];
    let mut found = 0;
    for from in (0..bytes.len()).step_by(CHUNK) {
        let own = &bytes[from..bytes.len().min(from + CHUNK)];
        if own == &UNTOUCHED[..own.len()] {
            continue;
        }
        let with_next = &bytes[from..bytes.len().min(from + CHUNK + needle.len() - 1)];
        found += with_next.windows(needle.len()).filter(|w| w[0] == needle[0] && *w == needle).count();
    }
    found
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
fn the_memory_of_the_host_never_holds_what_clients_say_and_are_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("image"), image()).unwrap();
    let host = HostProcess::start(folder.path());
    let (status, offer) = get(&host.url, OFFER_PATH);
    assert_eq!(status, 200);
    let read = |name| fs::read(folder.path().join(name)).unwrap();
    let root = String::from_utf8(read("root")).unwrap().parse().unwrap();
    let policy = Policy { emulated_roots: vec![root], ..policy_for(&image()) };
    let collateral = Collateral::from_json(&read("collateral")).unwrap();
    let client =
        Verified::verify(&Offer::from_json(&offer).unwrap(), &policy, &collateral, Time::now()).unwrap();
    // In no program: made of what this test is started with.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let secret = format!("patient-{now:x}").repeat(12);

    let (sealed, reply) = client.seal("GET", &format!("/v2/models/{secret}"), Vec::new()).unwrap();
    let (status, answer) = post(&host.url, REQUEST, &sealed);
    assert_eq!(status, 200);
    let (status, said) = reply.open(&answer).unwrap();
    assert_eq!(status, 404);
    assert!(String::from_utf8(said).unwrap().contains(&secret), "the reply names it, too");
    let body = String::from_utf8(request(&ROW)).unwrap().replace("the-client's-own-id", &secret);
    let (status, answer) =
        ask(&host.url, &client, "POST", "/v2/models/tree/infer", body.into_bytes()).unwrap();
    assert_eq!((status, &answer["id"]), (200, &Value::from(secret.clone())), "{answer}");

    let (outside, inside) = host.holds(secret.as_bytes());
    assert_eq!(outside, 0, "outside of the enclave (inside: {inside})");
    // The search finds what is there: what the enclave had in its hands is in its memory until that is used for something
    // else, and the model is the host's.
    assert!(inside > 0, "the enclave had it");
    let (outside, _) = host.holds(&MODEL[MODEL.len() / 2..][..256]);
    assert!(outside > 0, "the host has the model");
}
