//! Programs that know nothing of enclaves do the same inside as outside.

#[allow(dead_code)]
mod support;

use std::sync::Arc;

use enclos_host::Enclave;
use enclos_platform::emulator::Emulator;
use support::{Captured, build, builder, image, run_outside};

fn same_inside_and_outside(source: &str) {
    let program = build(source);
    let outside = run_outside(&program);
    let image = image(
        &program,
        "threads = 8\nheap = \"64 MiB\"\n[network]\nlisten = [\"127.0.0.1:0\"]\nconnect = [\"127.0.0.1:*\"]",
    );
    for trapping in [false, true] {
        let (out, err) = (Captured::default(), Captured::default());
        let mut start = builder(&image).stdout(out.clone()).stderr(err.clone());
        if trapping {
            start = start.on(Arc::new(Emulator::new().unwrap().trapping()));
        }
        let enclave: Enclave = start.start().unwrap();
        let status = enclave.wait();
        assert_eq!(status.ok(), outside.status.code(), "{}\n{:?}", out.text(), enclave.end());
        assert_eq!(out.text(), String::from_utf8_lossy(&outside.stdout));
        assert_eq!(err.text(), String::from_utf8_lossy(&outside.stderr));
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
fn rust_with_files() {
    same_inside_and_outside("files.rs");
}

#[test]
fn a_full_file_system_is_an_error() {
    let image = image(&build("full.rs"), "heap = \"16 MiB\"");
    let out = Captured::default();
    let enclave = builder(&image).stdout(out.clone()).start().unwrap();
    assert_eq!(enclave.wait(), Ok(0), "{}", out.text());
    assert_eq!(out.text(), "no storage space\n65536 bytes again\n");
}
