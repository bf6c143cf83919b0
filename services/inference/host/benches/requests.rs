//! What a request costs beside the model: encryption, boundary and protocol, in one thread and in two; and how many requests a
//! second a larger model answers, with and without dynamic batching.
//!
//!     cargo bench -p enclos-inference-host
//!
//! Rounds of each figure take turns, so that what else the machine does hits all of them. Clients' own work (sealing and opening)
//! is done before and after, and has figures of its own: what two threads of it do outside of an enclave says what they can do here.
#![forbid(unsafe_code)]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{MODEL, Platform, ROW, image, request};
use enclos_host::EnclaveTransport;
use enclos_inference::client::{Reply, Verified};
use enclos_inference::{InferenceClient, Settings};
use enclos_inference_engine::{Data, Tensor, load};
use enclos_verifier::Time;

const ROUNDS: usize = 15;
/// Requests a round and thread: enough for threads' beginnings not to count.
const REQUESTS: usize = 2000;

/// Of the larger model: numbers in, and in its hidden layers. Its weights, 21 MB, are more than a core's own caches hold.
const WIDTHS: [usize; 4] = [512, 2048, 2048, 16];
/// Threads that ask it: what the host lets in at once by default when there is batching.
const ASKING: usize = 6;
const BATCH_ROUNDS: usize = 7;
const BATCH_REQUESTS: usize = 40;

type Client = InferenceClient<EnclaveTransport>;

fn main() {
    costs();
    batching();
}

fn costs() {
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

    let [mut model, mut health, mut tree, mut two, mut client, mut clients, mut sealing_alone] =
        [(); 7].map(|()| Vec::new());
    for _ in 0..ROUNDS {
        model.push(each(REQUESTS, || (0..REQUESTS).for_each(|_| drop(engine.run(&row()).expect("it runs")))));
        let mut requests = seal(REQUESTS, "GET", "/v2/health/live", &[]);
        health.push(each(REQUESTS, || requests = answer(&inside, std::mem::take(&mut requests))));
        let mut requests = Vec::new();
        let sealing = each(REQUESTS, || requests = infer(REQUESTS));
        tree.push(each(REQUESTS, || requests = answer(&inside, std::mem::take(&mut requests))));
        client.push(sealing + each(REQUESTS, || open(std::mem::take(&mut requests))));
        clients.push(each(2 * REQUESTS, || {
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| drop(infer(REQUESTS)));
                }
            });
        }));
        let alone = each(2 * REQUESTS, || drop(infer(2 * REQUESTS)));
        sealing_alone.push(alone);
        let halves = [connect(), connect()].map(|client| (client, infer(REQUESTS)));
        two.push(each(2 * REQUESTS, || {
            thread::scope(|scope| {
                for (client, requests) in halves {
                    scope.spawn(move || drop(answer(&client, requests)));
                }
            });
        }));
    }
    let [model, health, tree, two, client, clients, sealing_alone] =
        [model, health, tree, two, client, clients, sealing_alone].map(spread);
    println!("{:58} {:>10} {:>10}", "figure, us a request", "least", "median");
    for (name, (least, median)) in [
        ("the model alone, outside (a tree, one row)", model),
        ("a request without a model (health), in the enclave", health),
        ("a request for inference, in the enclave", tree),
        ("the same from two threads at once", two),
        ("its client, outside: seal and open", client),
        ("its client, outside: seal", sealing_alone),
        ("the same from two threads at once", clients),
    ] {
        println!("{name:58} {:>10.1} {:>10.1}", us(least), us(median));
    }
    println!(
        "beside the model: {:.1} us (least), {:.1} us (median); wanted: less than 100 us",
        us(tree.0) - us(model.0),
        us(tree.1) - us(model.1)
    );
    println!(
        "two threads to one: {:.2} (least), {:.2} (median) times the requests a second; wanted: at least 1.8; \
         sealing outside: {:.2}, {:.2}",
        us(tree.0) / us(two.0),
        us(tree.1) / us(two.1),
        us(sealing_alone.0) / us(clients.0),
        us(sealing_alone.1) / us(clients.1)
    );
}

/// Requests a second of a model whose weights must come from memory for each run, however many rows it has.
fn batching() {
    let platform = Platform::new();
    let image = image();
    let enclave = platform.builder(image.clone()).start().expect("the enclave starts");
    let inside = enclave.connect::<Client>().expect("it serves");
    let configure = |rows: usize| {
        let max_batch_size = Some(rows as u32);
        inside.configure(Settings { max_batch_size, max_queue_delay: Some(500), ..Settings::default() })
    };
    configure(ASKING).expect("it batches");
    inside.load("together", &perceptron()).expect("the model loads");
    configure(1).expect("it does not batch");
    // Other bytes, as versions have: a field that nobody knows.
    inside.load("alone", &[&perceptron()[..], &[0xa0, 0x06, 1]].concat()).expect("the model loads");
    let offer = inside.offer().expect("it attests");
    let verified = Verified::verify(&offer, &platform.policy(&image), &platform.collateral, Time::now());
    let verified = verified.expect("it is accepted");
    let row: Vec<f32> = (0..WIDTHS[0]).map(|i| (i % 7) as f32).collect();
    let [mut alone, mut together, mut one, mut two] = [(); 4].map(|()| Vec::new());
    for _ in 0..BATCH_ROUNDS {
        for (name, threads, figure) in [
            ("alone", 1, &mut one),
            ("alone", 2, &mut two),
            ("alone", ASKING, &mut alone),
            ("together", ASKING, &mut together),
        ] {
            let model = offer.models.iter().find(|m| m.name == name).expect("it is offered");
            let path = format!("{}/infer", model.path());
            let seal = |_| verified.seal("POST", &path, request(&row)).expect("it seals");
            let requests: Vec<Vec<_>> =
                (0..threads).map(|_| (0..BATCH_REQUESTS).map(seal).collect()).collect();
            let clients = requests.into_iter().map(|r| (enclave.connect::<Client>().expect("it serves"), r));
            let clients: Vec<_> = clients.collect();
            figure.push(each(threads * BATCH_REQUESTS, || {
                thread::scope(|scope| {
                    for (client, requests) in clients {
                        scope.spawn(move || {
                            for (sealed, reply) in requests {
                                let answer = client.infer(&sealed).expect("it answers");
                                assert_eq!(reply.open(&answer).expect("it opens").0, 200);
                            }
                        });
                    }
                });
            }));
        }
    }
    let [one, two, alone, together] = [one, two, alone, together].map(spread);
    println!("\na perceptron, {WIDTHS:?}, requests of one row{:>22} {:>10}", "most a s", "median");
    for (name, (least, median)) in [
        ("from one thread".to_owned(), one),
        ("from two threads".to_owned(), two),
        (format!("from {ASKING} threads, without batching"), alone),
        (format!("from {ASKING} threads, with batches of {ASKING} rows at most"), together),
    ] {
        println!("{name:58} {:>10.0} {:>10.0}", 1e6 / us(least), 1e6 / us(median));
    }
    println!(
        "two threads to one: {:.2} (most), {:.2} (median) times the requests a second",
        us(one.0) / us(two.0),
        us(one.1) / us(two.1)
    );
    println!(
        "batching: {:.2} (most), {:.2} (median) times the requests a second",
        us(alone.0) / us(together.0),
        us(alone.1) / us(together.1)
    );
}

/// A multi-layer perceptron as a file (onnx.proto), operator set 17.
fn perceptron() -> Vec<u8> {
    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value > 0x7f {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }
    let number = |field: u8, value: usize| [&[field << 3][..], &varint(value as u64)].concat();
    let part = |field: u8, bytes: &[u8]| [&[field << 3 | 2][..], &varint(bytes.len() as u64), bytes].concat();
    let text = |field: u8, text: &str| part(field, text.as_bytes());
    let value = |name: &str, columns: usize| {
        // A dimension without a value may be any.
        let shape = [part(1, &text(2, "rows")), part(1, &number(1, columns))].concat();
        let tensor = [number(1, 1), part(2, &shape)].concat();
        [text(1, name), part(2, &part(1, &tensor))].concat()
    };
    let mut graph = text(2, "perceptron");
    let mut from = "X".to_owned();
    for (layer, widths) in WIDTHS.windows(2).enumerate() {
        let (rows, columns) = (widths[0], widths[1]);
        let weights = (0..rows * columns).flat_map(|i| ((i % 13) as f32 / 64.0 - 0.1).to_le_bytes());
        let weights: Vec<u8> = weights.collect();
        let name = format!("weights{layer}");
        let shape = [number(1, rows), number(1, columns), number(2, 1)].concat();
        graph.extend(part(5, &[shape, text(8, &name), part(9, &weights)].concat()));
        let (product, to) = (format!("product{layer}"), format!("layer{layer}"));
        let node = |inputs: &[&str], output: &str, operator: &str| {
            let inputs = inputs.iter().flat_map(|name| text(1, name)).collect();
            part(1, &[inputs, text(2, output), text(4, operator)].concat())
        };
        graph.extend(node(&[&from, &name], &product, "MatMul"));
        graph.extend(node(&[&product], &to, "Relu"));
        from = to;
    }
    graph.extend(part(11, &value("X", WIDTHS[0])));
    graph.extend(part(12, &value(&from, WIDTHS[WIDTHS.len() - 1])));
    [number(1, 8), part(7, &graph), part(8, &number(2, 17))].concat()
}

/// The least and the median.
fn spread(mut all: Vec<Duration>) -> (Duration, Duration) {
    all.sort();
    (all[0], all[all.len() / 2])
}

fn each(count: usize, work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed() / count as u32
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
