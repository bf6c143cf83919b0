//! What a request costs beside the model: encryption, boundary and protocol, in one thread and in two.
//!
//!     cargo bench -p enclos-inference-host
//!
//! Rounds of each figure take turns, so that what else the machine does hits all of them. Clients' own work (sealing and opening)
//! is done before and after, and has a figure of its own.
#![forbid(unsafe_code)]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{MODEL, Platform, ROW, image, request};
use enclos_host::EnclaveTransport;
use enclos_inference::InferenceClient;
use enclos_inference::client::{Reply, Verified};
use enclos_inference_engine::{Data, Tensor, load};
use enclos_verifier::Time;

const ROUNDS: usize = 15;
/// Requests a round.
const REQUESTS: usize = 500;

type Client = InferenceClient<EnclaveTransport>;

fn main() {
    let platform = Platform::new();
    let enclave = platform.builder(image()).start().expect("the enclave starts");
    let connect = || enclave.connect::<Client>().expect("it serves");
    let inside = connect();
    inside.load("tree", MODEL).expect("the model loads");
    let offer = inside.offer().expect("it attests");
    let verified = Verified::verify(&offer, &platform.policy(&image()), &platform.collateral, Time::now());
    let verified = verified.expect("it is accepted");
    let path = format!("{}/infer", offer.models[0].path());
    let seal = |count: usize, method: &str, path: &str, body: &[u8]| -> Vec<(Vec<u8>, Reply)> {
        (0..count).map(|_| verified.seal(method, path, body.to_vec()).expect("it seals")).collect()
    };
    let infer = |count| seal(count, "POST", &path, &request(&ROW));
    let answer = |client: &Client, requests: Vec<(Vec<u8>, Reply)>| -> Vec<(Vec<u8>, Reply)> {
        let one = |(sealed, reply): (Vec<u8>, Reply)| (client.infer(&sealed).expect("it answers"), reply);
        requests.into_iter().map(one).collect()
    };
    let open = |answers: Vec<(Vec<u8>, Reply)>| {
        for (sealed, reply) in answers {
            assert_eq!(reply.open(&sealed).expect("it opens").0, 200);
        }
    };
    let engine = load(MODEL).expect("the model loads").engine;
    let row = || vec![Tensor::new(vec![1, 64], Data::F32(ROW.to_vec())).expect("a row")];

    let [mut model, mut health, mut tree, mut two, mut client] = [(); 5].map(|()| Vec::new());
    for _ in 0..ROUNDS {
        model.push(each(REQUESTS, || (0..REQUESTS).for_each(|_| drop(engine.run(&row()).expect("it runs")))));
        let mut requests = seal(REQUESTS, "GET", "/v2/health/live", &[]);
        health.push(each(REQUESTS, || requests = answer(&inside, std::mem::take(&mut requests))));
        let mut requests = Vec::new();
        let sealing = each(REQUESTS, || requests = infer(REQUESTS));
        tree.push(each(REQUESTS, || requests = answer(&inside, std::mem::take(&mut requests))));
        client.push(sealing + each(REQUESTS, || open(std::mem::take(&mut requests))));
        let halves = [connect(), connect()].map(|client| (client, infer(REQUESTS)));
        two.push(each(2 * REQUESTS, || {
            thread::scope(|scope| {
                for (client, requests) in halves {
                    scope.spawn(move || drop(answer(&client, requests)));
                }
            });
        }));
    }
    let [model, health, tree, two, client] = [model, health, tree, two, client].map(|mut all| {
        all.sort();
        (all[0], all[all.len() / 2])
    });
    println!("{:58} {:>10} {:>10}", "figure, us a request", "least", "median");
    for (name, (least, median)) in [
        ("the model alone, outside (a tree, one row)", model),
        ("a request without a model (health), in the enclave", health),
        ("a request for inference, in the enclave", tree),
        ("the same from two threads at once", two),
        ("its client: seal and open", client),
    ] {
        println!("{name:58} {:>10.1} {:>10.1}", us(least), us(median));
    }
    println!(
        "beside the model: {:.1} us (least), {:.1} us (median); wanted: less than 100 us",
        us(tree.0) - us(model.0),
        us(tree.1) - us(model.1)
    );
    println!(
        "two threads to one: {:.2} (least), {:.2} (median) times the requests a second; wanted: at least 1.8",
        us(tree.0) / us(two.0),
        us(tree.1) / us(two.1)
    );
}

fn each(count: usize, work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed() / count as u32
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
