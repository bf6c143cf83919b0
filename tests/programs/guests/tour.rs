//! A walk through Rust's standard library. Prints the same inside and outside of an enclave.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, Once, RwLock, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

thread_local! { static LOCAL: Cell<u64> = const { Cell::new(0) } }

fn main() {
    collections();
    threads();
    time();
    panics();
    memory();
    environment();
    println!("the end");
    std::process::exit(42);
}

fn collections() {
    let squares: HashMap<u32, u32> = (0..1000).map(|i| (i, i * i)).collect();
    println!("squares {}", squares.values().sum::<u32>());
    let words: BTreeMap<&str, usize> = "one enclave many hosts one image".split(' ').map(|w| (w, w.len())).collect();
    println!("{words:?} {:>8.3} {:#x}", std::f64::consts::PI, 48879);
    // The seeds of two maps differ, and the CPU made them.
    let order = || HashSet::<u32>::from_iter(0..64).into_iter().collect::<Vec<_>>();
    println!("random {}", (0..8).any(|_| order() != order()));
}

fn threads() {
    let sum: u64 = (0..4_u64)
        .map(|i| std::thread::spawn(move || (0..=i * 1000).sum::<u64>()))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|t| t.join().unwrap())
        .sum();
    println!("joined {sum}");
    let counter = Mutex::new(0_u64);
    let barrier = Barrier::new(3);
    std::thread::scope(|s| {
        for i in 0..3 {
            let (counter, barrier) = (&counter, &barrier);
            s.spawn(move || {
                LOCAL.set(i);
                barrier.wait();
                for _ in 0..20_000 {
                    *counter.lock().unwrap() += 1;
                }
                assert_eq!(LOCAL.get(), i);
            });
        }
    });
    println!("counted {}", counter.lock().unwrap());
    let (tx, rx) = mpsc::sync_channel(4);
    std::thread::scope(|s| {
        for i in 0..3_u64 {
            let tx = tx.clone();
            s.spawn(move || (0..1000).for_each(|k| tx.send(i * k).unwrap()));
        }
        drop(tx);
        println!("received {}", rx.iter().sum::<u64>());
    });
    let pair = Arc::new((Mutex::new(false), Condvar::new()));
    let other = pair.clone();
    let waiter = std::thread::Builder::new()
        .name("waiter".into())
        .spawn(move || {
            let mut ready = other.0.lock().unwrap();
            while !*ready {
                ready = other.1.wait(ready).unwrap();
            }
            std::thread::current().name().map(String::from)
        })
        .unwrap();
    std::thread::sleep(Duration::from_millis(5));
    *pair.0.lock().unwrap() = true;
    pair.1.notify_all();
    println!("woken {:?}", waiter.join().unwrap());
    let (lock, condition) = &*pair;
    let (_guard, timeout) = condition.wait_timeout(lock.lock().unwrap(), Duration::from_millis(3)).unwrap();
    println!("timed out {}", timeout.timed_out());
    static ONCE: Once = Once::new();
    static HITS: AtomicU64 = AtomicU64::new(0);
    let shared = RwLock::new(vec![1, 2, 3]);
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                ONCE.call_once(|| {
                    HITS.fetch_add(1, Ordering::SeqCst);
                });
                assert_eq!(shared.read().unwrap().len(), 3);
            });
        }
    });
    println!("once {}", HITS.load(Ordering::SeqCst));
    // More threads than ever at once: their places are used again.
    for round in 0..50_u64 {
        assert_eq!(std::thread::spawn(move || round * 2).join().unwrap(), round * 2);
    }
    // As many as there are places for inside, with their work done and not yet gone.
    let done = Arc::new(Barrier::new(8));
    for _ in 0..7 {
        let done = done.clone();
        std::thread::spawn(move || {
            done.wait();
            std::thread::sleep(Duration::from_millis(30));
        });
    }
    done.wait();
    println!("one more {}", std::thread::spawn(|| 1).join().unwrap());
    let park = std::thread::spawn(|| {
        std::thread::park_timeout(Duration::from_millis(2));
        std::thread::yield_now();
    });
    park.thread().unpark();
    park.join().unwrap();
}

fn time() {
    let begun = Instant::now();
    std::thread::sleep(Duration::from_millis(20));
    let took = begun.elapsed();
    println!("slept {}", (20..2000).contains(&took.as_millis()));
    let mut last = Instant::now();
    for _ in 0..200_000 {
        let now = Instant::now();
        assert!(now >= last);
        last = now;
    }
    println!("this century {}", SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() > 1_700_000_000);
}

fn panics() {
    std::panic::set_hook(Box::new(|info| println!("hook: {info}")));
    let caught = std::panic::catch_unwind(|| panic!("number {}", 7));
    println!("caught {:?}", caught.unwrap_err().downcast_ref::<String>());
    let joined = std::thread::spawn(|| if true { panic!("in a thread") }).join();
    println!("thread panicked {}", joined.is_err());
    let out_of_bounds = std::panic::catch_unwind(|| [1, 2, 3][std::hint::black_box(5)]);
    println!("bounds {}", out_of_bounds.is_err());
}

fn memory() {
    let mut big = vec![0_u8; 8 << 20];
    big.iter_mut().enumerate().for_each(|(i, b)| *b = i as u8);
    println!("big {}", big.iter().map(|b| u64::from(*b)).sum::<u64>());
    let mut grown = Vec::new();
    for i in 0..300_000_u64 {
        grown.push(i);
    }
    println!("grown {}", grown.iter().sum::<u64>());
    let boxes: Vec<Box<[u8]>> = (1..500).map(|n| vec![n as u8; n * 37].into_boxed_slice()).collect();
    println!("boxes {}", boxes.iter().map(|b| b.len()).sum::<usize>());
    fn deep(n: u64) -> u64 {
        let room = [n; 32];
        if n == 0 { 0 } else { deep(n - 1) + std::hint::black_box(room)[7] - n + 1 }
    }
    println!("deep {}", deep(1000));
}

fn environment() {
    println!("no such file {}", std::fs::read("/there/is/none").is_err());
    println!("no such variable {}", std::env::var("ENCLOS_TOUR_NONE").is_err());
    println!("cpus {}", std::thread::available_parallelism().is_ok());
    println!("pid {}", std::process::id() > 0);
    eprintln!("and to standard error");
}
