//! A host that lies about threads, time, output and the CPU: each lie ends in an error that the program sees, has no
//! effect, or is denial of service that the host ends cleanly. None ends the enclave by a fault.

#[allow(dead_code)]
mod support;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use enclos::abi::hostcall;
use enclos_host::{Captured, Enclave, End, HostCall};
use enclos_pack::Image;
use support::{build, builder, image, run_outside};

fn guest() -> &'static (Image, String) {
    static GUEST: OnceLock<(Image, String)> = OnceLock::new();
    GUEST.get_or_init(|| {
        let program = build("workers.c");
        let outside = String::from_utf8(run_outside(&program).stdout).unwrap();
        (image(&program, "threads = 5\nheap = \"32 MiB\""), outside)
    })
}

/// What the guest says about time when it is asked to look.
const STEADY: &str = "0 times backwards\n";

fn start(number: u64, lie: impl Fn(&mut HostCall<'_>) -> i64 + Send + Sync + 'static) -> (Enclave, Captured) {
    let out = Captured::default();
    let mut guest = builder(&guest().0).stdout(out.clone()).log(|_, _| {}).inspect_host_calls(lie);
    if matches!(number, hostcall::CLOCK | hostcall::SLEEP) {
        guest = guest.arg("time");
    }
    (guest.start().unwrap(), out)
}

/// Runs the guest while the host answers these requests with what `lie` makes of the truth. Status, output, lies told.
fn run(number: u64, lie: impl Fn(&mut HostCall<'_>) -> i64 + Send + Sync + 'static) -> (i32, String, u64) {
    let told = Arc::new(AtomicU64::new(0));
    let count = told.clone();
    let (enclave, out) = start(number, move |call| {
        if call.number != number {
            return call.result;
        }
        count.fetch_add(1, Ordering::Relaxed);
        lie(call)
    });
    let until = Instant::now() + Duration::from_secs(60);
    while enclave.end().is_none() {
        assert!(Instant::now() < until, "a lie about request {number} made it hang:\n{}", out.text());
        std::thread::sleep(Duration::from_millis(1));
    }
    match enclave.end() {
        Some(End::Exited { status }) => (status, out.text(), told.load(Ordering::Relaxed)),
        other => panic!("a lie about request {number} ended it: {other:?}\n{}", out.text()),
    }
}

fn has_no_effect(number: u64, lie: impl Fn(&mut HostCall<'_>) -> i64 + Send + Sync + 'static) {
    let (status, out, told) = run(number, lie);
    assert!(told > 0, "request {number} was never made");
    assert_eq!((status, &out), (0, &guest().1), "request {number}");
}

#[test]
fn results_of_waits_and_wakes_are_hints() {
    for lie in [0, -4, -110, -4096, i64::MIN, 1 << 40, i64::MAX] {
        for number in [hostcall::WAIT, hostcall::WAKE] {
            has_no_effect(number, move |_| lie);
        }
    }
}

#[test]
fn a_clock_that_goes_back_does_not() {
    // Asked each time, because the counter is said to be useless; a second earlier every other time.
    let asked = AtomicI64::new(0);
    let (status, out, told) = run(hostcall::CLOCK, move |call| {
        let back = asked.fetch_add(1, Ordering::Relaxed) % 2 * 1_000_000_000;
        call.frame[..16].fill(0);
        for at in [16, 24] {
            let word = &mut call.frame[at..at + 8];
            let time = i64::from_le_bytes((&*word).try_into().unwrap());
            word.copy_from_slice(&time.wrapping_sub(back).to_le_bytes());
        }
        call.result
    });
    assert_eq!((status, out.as_str()), (0, format!("{}{STEADY}", guest().1).as_str()), "{told} lies");
    assert!(told > 20, "the counter was believed after {told} lies");
}

#[test]
fn impossible_clocks_harm_nobody() {
    // Time that stands still makes a program sleep for ever: denial of service, which the host ends cleanly.
    let enclaves = [0, 0x7f, 0xff].map(|byte| {
        let told = Arc::new(AtomicU64::new(0));
        let count = told.clone();
        let (enclave, _) = start(hostcall::CLOCK, move |call| {
            if call.number == hostcall::CLOCK {
                count.fetch_add(1, Ordering::Relaxed);
                call.frame[..32].fill(byte);
            }
            call.result
        });
        (enclave, told)
    });
    std::thread::sleep(Duration::from_millis(2500));
    for (enclave, told) in enclaves {
        let end = enclave.shutdown(Duration::from_millis(50));
        assert!(matches!(end, Ok(0) | Err(End::ShutDown)), "{end:?}");
        assert!(told.load(Ordering::Relaxed) > 0);
    }
    for lie in [-5, -4096, i64::MIN, 1, i64::MAX] {
        // The program sees that there is no time.
        run(hostcall::CLOCK, move |_| lie);
    }
}

#[test]
fn threads_that_are_said_not_to_start_are_not_counted_on() {
    for lie in [-11, -4096, i64::MIN, 1, 0x7f00_0000_0000, i64::MAX] {
        let (status, out, told) = run(hostcall::SPAWN, move |_| lie);
        assert!(told > 0);
        assert!((status, out.as_str()) == (3, "no threads\n") || out == guest().1, "{lie}: {status}\n{out}");
    }
}

#[test]
fn output_is_written_as_often_as_the_host_says() {
    // Short writes are repeated by the C library; lengths that were not asked for are errors.
    for lie in [-5, -4096, i64::MIN, 1 << 40, 0x7f00_0000_0000, i64::MAX] {
        run(hostcall::WRITE, move |_| lie);
    }
    let (status, out, _) = run(hostcall::WRITE, |call| call.result.min(1));
    assert_eq!(status, 0);
    let rest = out.strip_prefix(guest().1.as_str());
    assert!(rest.is_some_and(|r| r.starts_with(&guest().1[1..])), "one byte was said to be written: {out}");
}

#[test]
fn sleeps_and_cpuid_take_no_wrong_answer_inside() {
    for lie in [-4, -4096, i64::MIN, 1, i64::MAX] {
        run(hostcall::SLEEP, move |_| lie);
    }
    for byte in [0, 0xff] {
        // Programs choose instructions by it, so the CPU must have what it says: only nonsense is tried.
        run(hostcall::CPUID, move |call| {
            if byte == 0xff {
                return i64::MIN;
            }
            call.frame[..16].fill(byte);
            call.result
        });
    }
}

#[test]
fn a_wake_that_never_comes_ends_with_the_enclave() {
    // The first thread that waits is never let back in.
    let (held, was_held) = mpsc::channel();
    let (enclave, _) = start(hostcall::WAIT, move |call| {
        if call.number == hostcall::WAIT {
            let _ = held.send(());
            std::thread::sleep(Duration::from_secs(3));
        }
        call.result
    });
    was_held.recv_timeout(Duration::from_secs(30)).unwrap();
    let began = Instant::now();
    assert!(matches!(enclave.shutdown(Duration::from_millis(50)), Err(End::ShutDown) | Ok(0)));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
