//! Programs that know nothing of enclaves do the same inside as outside.

#[allow(dead_code)]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use enclos_host::{Captured, Enclave, End};
use enclos_platform::emulator::Emulator;
use support::{build, builder, image, run_outside};

fn same_inside_and_outside(source: &str) {
    let program = build(source);
    let outside = run_outside(&program);
    for profile in ["sgx1", "sgx2"] {
        let image = image(
            &program,
            &format!(
                "threads = 8\nheap = \"64 MiB\"\nprofile = \"{profile}\"\n\
                 [network]\nlisten = [\"127.0.0.1:0\"]\nconnect = [\"127.0.0.1:*\"]"
            ),
        );
        for trapping in [false, true] {
            let (out, err) = (Captured::default(), Captured::default());
            let mut start = builder(&image).stdout(out.clone()).stderr(err.clone());
            if trapping {
                start = start.on(Arc::new(Emulator::new().unwrap().trapping()));
            }
            let enclave: Enclave = start.start().unwrap();
            let status = enclave.wait();
            let end = enclave.end();
            let said = || format!("{}\n{}\n{end:?}", out.text(), err.text());
            assert_eq!(status.ok(), outside.status.code(), "{profile}, {trapping}: {}", said());
            assert_eq!(out.text(), String::from_utf8_lossy(&outside.stdout), "{profile}, {trapping}");
            assert_eq!(err.text(), String::from_utf8_lossy(&outside.stderr), "{profile}, {trapping}");
        }
    }
}

#[test]
fn rust_std() {
    same_inside_and_outside("tour.rs");
}

#[test]
fn c_with_threads() {
    same_inside_and_outside("classic.c");
}

#[test]
fn c_with_threads_files_and_malloc() {
    same_inside_and_outside("workers.c");
}

#[test]
fn c_with_sockets() {
    same_inside_and_outside("network.c");
}

#[test]
fn c_with_signals() {
    same_inside_and_outside("signals.c");
}

/// Runs a program that waits for SIGTERM and counts on SIGUSR1, in an image with this line in `enclos.toml`, and sends it
/// both: what it printed, and how it ended if it did within the time.
fn told_to_stop(permitted: &str, patience: Duration) -> (String, Option<End>) {
    let config = format!("{permitted}\nthreads = 4\n[network]\nlisten = [\"127.0.0.1:0\"]");
    let image = image(&build("signals.c"), &config);
    let out = Captured::default();
    let enclave = builder(&image).arg("server").stdout(out.clone()).start().unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while !out.text().contains("ready") {
        assert!(enclave.end().is_none() && Instant::now() < until, "{:?} {}", enclave.end(), out.text());
        std::thread::sleep(Duration::from_millis(1));
    }
    for (signal, patience) in [(libc::SIGUSR1, Duration::from_millis(200)), (libc::SIGTERM, patience)] {
        enclave.signal(signal).unwrap();
        let until = Instant::now() + patience;
        while enclave.end().is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert!(enclave.signal(0).is_err() && enclave.signal(64).is_err());
    (out.text(), enclave.end())
}

#[test]
fn signals_of_the_host_come_where_the_manifest_lists_them() {
    let (out, end) = told_to_stop("signals = [\"TERM\"]", Duration::from_secs(10));
    assert_eq!((out.as_str(), end), ("ready\nstopped by 15, a process\n", Some(End::Exited { status: 0 })));
    let (out, end) = told_to_stop("signals = [\"HUP\"]", Duration::from_millis(200));
    assert_eq!((out.as_str(), end), ("ready\n", None));
    let (out, end) = told_to_stop("", Duration::from_millis(200));
    assert_eq!((out.as_str(), end), ("ready\n", None));
}

#[test]
fn rust_with_files() {
    same_inside_and_outside("files.rs");
}

#[test]
fn c_with_memory_that_comes_and_goes() {
    same_inside_and_outside("grow.c");
}

#[test]
fn what_there_is_no_more_of_is_an_error() {
    let config = "heap = \"64 MiB\"\n[network]\nlisten = [\"127.0.0.1:0\"]\nconnect = [\"127.0.0.1:*\"]";
    let out = Captured::default();
    let enclave = builder(&image(&build("limits.c"), config)).stdout(out.clone()).start().unwrap();
    assert_eq!(enclave.wait(), Ok(0), "{}", out.text());
    let expected = "SCM_RIGHTS: Operation not supported\n\
                    epoll within epoll: Invalid argument\n\
                    messages: one two\n\
                    descriptors: Too many open files, all 1 used\n\
                    no memory: accept -1 Cannot allocate memory, socket -1 Cannot allocate memory\n\
                    with memory: accepted\n";
    assert_eq!(out.text(), expected);
}

#[test]
fn a_full_file_system_is_an_error() {
    let image = image(&build("full.rs"), "heap = \"16 MiB\"");
    let out = Captured::default();
    let enclave = builder(&image).stdout(out.clone()).start().unwrap();
    assert_eq!(enclave.wait(), Ok(0), "{}", out.text());
    assert_eq!(out.text(), "no storage space\n65536 bytes again\n");
}
