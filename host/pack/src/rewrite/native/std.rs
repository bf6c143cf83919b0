//! Uses the standard library in many ways and prints what must be the same in every run.
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Barrier, Condvar, Mutex, RwLock, mpsc};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

thread_local!(static LOCAL: std::cell::Cell<u64> = const { std::cell::Cell::new(1) });

fn main() {
    let (sender, receiver) = mpsc::channel();
    let total = Arc::new(Mutex::new(0u64));
    let barrier = Arc::new(Barrier::new(6));
    let threads: Vec<_> = (0..6u64)
        .map(|i| {
            let (sender, total, barrier) = (sender.clone(), total.clone(), barrier.clone());
            thread::Builder::new().name(format!("worker-{i}")).spawn(move || {
                barrier.wait();
                LOCAL.set(i);
                for _ in 0..500 {
                    *total.lock().unwrap() += LOCAL.get();
                }
                thread::sleep(Duration::from_millis(1));
                sender.send(thread::current().name().map(str::to_owned)).unwrap();
            })
        })
        .collect();
    for t in threads {
        t.unwrap().join().unwrap();
    }
    drop(sender);
    let mut names: Vec<_> = receiver.iter().flatten().collect();
    names.sort();
    println!("{} {names:?}", total.lock().unwrap());

    let waiting = (Mutex::new(false), Condvar::new());
    thread::scope(|s| {
        s.spawn(|| {
            *waiting.0.lock().unwrap() = true;
            waiting.1.notify_all();
        });
        let mut ready = waiting.0.lock().unwrap();
        while !*ready {
            ready = waiting.1.wait_timeout(ready, Duration::from_secs(5)).unwrap().0;
        }
    });

    let caught = std::panic::catch_unwind(|| {
        let empty: Vec<u32> = Vec::new();
        empty[process::id() as usize]
    });
    println!("caught {}", caught.is_err());
    let joined = thread::spawn(|| panic!("in a thread")).join();
    println!("joined {}", joined.unwrap_err().downcast_ref::<&str>().unwrap());

    fs::create_dir_all("a/b").unwrap();
    fs::write("a/b/c", "contents").unwrap();
    let mut file = fs::OpenOptions::new().append(true).open("a/b/c").unwrap();
    writeln!(file, " and more").unwrap();
    println!("{:?} {:?}", fs::read_to_string("a/b/c").unwrap(), fs::metadata("a/b/c").unwrap().len());
    println!("{:?}", fs::read_dir("a").unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>());
    println!("{:?}", fs::read("nowhere").unwrap_err().kind());
    fs::remove_dir_all("a").unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"ping").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let (mut stream, _) = listener.accept().unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    stream.write_all(format!("{text} pong").as_bytes()).unwrap();
    drop(stream);
    println!("{}", client.join().unwrap());

    let map: HashMap<u32, u32> = (0..1000).map(|i| (i, i * i)).collect();
    let lock = RwLock::new(map);
    println!("{}", lock.read().unwrap().values().map(|v| u64::from(*v)).sum::<u64>());
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2) {
        thread::yield_now();
    }
    let child = process::Command::new("/bin/sh").args(["-c", "echo out; exit 4"]).output().unwrap();
    println!("{:?} {:?}", child.status.code(), child.stdout);
    println!("{:?} {:?}", env::args().nth(1), env::var("TEST_VARIABLE"));
    let big: Vec<u8> = vec![1; 50 << 20];
    println!("{}", big.iter().map(|b| u64::from(*b)).sum::<u64>());
    process::exit(7);
}
