//! A host that lies in its answers about sockets: each lie ends in an error that the program sees, or has no effect.
//! None reads or writes enclave memory wrongly, and none ends the enclave by a fault.

#[allow(dead_code)]
mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use enclos::abi::{ADDRESS_AT, MAX_READY, hostcall};
use enclos_host::{Captured, End, HostCall};
use enclos_pack::Image;
use support::{build, builder, image, run_outside};

fn guest() -> &'static (Image, String) {
    static GUEST: OnceLock<(Image, String)> = OnceLock::new();
    GUEST.get_or_init(|| {
        let program = build("network.c");
        let outside = String::from_utf8(run_outside(&program).stdout).unwrap();
        let config = "threads = 8\n[network]\nlisten = [\"127.0.0.1:0\"]\nconnect = [\"127.0.0.1:*\"]";
        (image(&program, config), outside)
    })
}

/// Runs the guest while the host answers these requests with what `lie` makes of the truth. Status, output, lies told.
fn run(number: u64, lie: impl Fn(&mut HostCall<'_>) -> i64 + Send + Sync + 'static) -> (i32, String, u64) {
    let (out, told) = (Captured::default(), Arc::new(AtomicU64::new(0)));
    let count = told.clone();
    let (image, _) = guest();
    let enclave = builder(image)
        .stdout(out.clone())
        .log(|_, _| {})
        .inspect_host_calls(move |call| {
            if call.number != number {
                return call.result;
            }
            count.fetch_add(1, Ordering::Relaxed);
            lie(call)
        })
        .start()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while enclave.end().is_none() {
        assert!(Instant::now() < until, "a lie about request {number} made it hang:\n{}", out.text());
        std::thread::sleep(Duration::from_millis(1));
    }
    match enclave.end() {
        Some(End::Exited { status }) => (status, out.text(), told.load(Ordering::Relaxed)),
        other => panic!("a lie about request {number} ended it: {other:?}\n{}", out.text()),
    }
}

fn says_io_error(number: u64, lie: impl Fn(&mut HostCall<'_>) -> i64 + Send + Sync + 'static) {
    let (status, out, told) = run(number, lie);
    assert!(told > 0, "request {number} was never made");
    // A connection that was not accepted is closed, and the guest's other thread may be the first to say so.
    let says = number == hostcall::ACCEPT || out.contains("Input/output error");
    assert!(status == 1 && says, "request {number}: status {status}\n{out}");
}

fn has_no_effect(number: u64, lie: impl Fn(&mut HostCall<'_>) -> i64 + Send + Sync + 'static) {
    let (status, out, told) = run(number, lie);
    assert!(told > 0, "request {number} was never made");
    assert_eq!((status, &out), (0, &guest().1), "request {number}");
}

fn write_word(frame: &mut [u8], at: u64, value: u32) {
    frame[at as usize..at as usize + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn the_honest_host_is_believed() {
    has_no_effect(hostcall::SOCKET, |call| call.result);
}

#[test]
fn results_out_of_range_are_io_errors() {
    for number in [
        hostcall::SOCKET,
        hostcall::BIND,
        hostcall::LISTEN,
        hostcall::ACCEPT,
        hostcall::SEND,
        hostcall::RECV,
        hostcall::GET_NAME,
        hostcall::SET_OPTION,
        hostcall::GET_OPTION,
        hostcall::AVAILABLE,
        hostcall::SHUTDOWN,
        hostcall::EPOLL_CREATE,
        hostcall::EPOLL_CTL,
        hostcall::EPOLL_WAIT,
        hostcall::POLL,
    ] {
        for lie in [i64::MIN, -4096, 1 << 40, i64::MAX] {
            says_io_error(number, move |_| lie);
        }
    }
}

#[test]
fn a_byte_more_than_asked_for_is_an_io_error() {
    says_io_error(hostcall::SEND, |call| call.arguments[1] as i64 + 1);
    says_io_error(hostcall::RECV, |call| call.arguments[1] as i64 + 1);
    says_io_error(hostcall::GET_OPTION, |call| call.arguments[2] as i64 + 1);
    says_io_error(hostcall::EPOLL_WAIT, |_| MAX_READY as i64 + 1);
    says_io_error(hostcall::POLL, |call| call.arguments[0] as i64 + 1);
}

#[test]
fn pointers_into_the_enclave_are_no_handles() {
    // Enclaves lie below 2^47 and above 2^31.
    for number in [hostcall::SOCKET, hostcall::ACCEPT, hostcall::EPOLL_CREATE] {
        says_io_error(number, |_| 0x7f00_0000_0000);
        says_io_error(number, |_| 1 << 31);
    }
}

#[test]
fn addresses_must_be_of_the_sockets_family_and_length() {
    for number in [hostcall::GET_NAME, hostcall::ACCEPT] {
        for len in [0, 1, 15, 17, 28, 128, 129, 0x8000_0000, u32::MAX] {
            says_io_error(number, move |call| {
                write_word(call.frame, ADDRESS_AT, len);
                call.result
            });
        }
        says_io_error(number, |call| {
            write_word(call.frame, ADDRESS_AT + 8, 10);
            call.result
        });
    }
}

#[test]
fn impossible_socket_errors_are_io_errors() {
    for value in [-1_i32, 4096, i32::MIN, i32::MAX] {
        says_io_error(hostcall::GET_OPTION, move |call| {
            write_word(call.frame, 0, value as u32);
            call.result
        });
    }
}

#[test]
fn events_of_nothing_registered_are_dropped() {
    // Numbers out of range, of another generation, twice, and with events nobody asked for, besides the true ones.
    has_no_effect(hostcall::EPOLL_WAIT, |call| {
        let Ok(true_ones) = usize::try_from(call.result) else { return call.result };
        let mut all = call.frame[..16 * true_ones].to_vec();
        for index in [u64::from(u32::MAX), 999, 5 << 32, u64::MAX - 1, 1 << 63, 0x7f00_0000_0000] {
            all.extend_from_slice(&index.to_le_bytes());
            all.extend_from_slice(&u64::MAX.to_le_bytes());
        }
        all.extend_from_within(..16 * true_ones);
        let room = (call.arguments[1] as usize * 16).min(all.len());
        call.frame[..room].copy_from_slice(&all[..room]);
        (room / 16) as i64
    });
    // Everything is ready at once, whatever the program asked: only what it asked for is reported, so reading fails
    // with EAGAIN at worst.
    let (status, out, _) = run(hostcall::POLL, |call| {
        for i in 0..call.arguments[0] as usize {
            call.frame[8 * i..8 * i + 8].fill(0xff);
        }
        call.arguments[0] as i64
    });
    assert!(matches!(status, 0 | 1), "{out}");
}

#[test]
fn signals_that_the_manifest_does_not_list_do_not_come() {
    // The guest has no handlers: any signal but SIGWINCH, which is ignored, would end it.
    let (program, claimed) = (build("network.c"), Arc::new(AtomicU64::new(0)));
    let config = "threads = 8\nsignals = [\"WINCH\"]\n[network]\nlisten = [\"127.0.0.1:0\"]\n\
                  connect = [\"127.0.0.1:*\"]";
    let waits = [hostcall::WAIT, hostcall::POLL, hostcall::EPOLL_WAIT];
    for claim in [i64::MAX, i64::MIN, -1, !(1 << 27) & i64::MAX] {
        let (out, count, waited) = (Captured::default(), claimed.clone(), AtomicU64::new(0));
        let enclave = builder(&image(&program, config))
            .stdout(out.clone())
            .inspect_host_calls(move |call| match call.number {
                hostcall::SIGNALS => {
                    count.fetch_add(1, Ordering::Relaxed);
                    claim
                }
                // Every other wait that found nothing was interrupted, says the host.
                number if waits.contains(&number) && call.result <= 0 => {
                    match waited.fetch_add(1, Ordering::Relaxed) % 2 {
                        0 => -i64::from(libc::EINTR),
                        _ => call.result,
                    }
                }
                _ => call.result,
            })
            .start()
            .unwrap();
        assert_eq!(enclave.wait(), Ok(0), "{}", out.text());
        assert_eq!(out.text(), guest().1);
    }
    assert_ne!(claimed.load(Ordering::Relaxed), 0);
}

#[test]
fn errors_are_the_programs_to_handle() {
    for errno in [libc::EPERM, libc::EMFILE, libc::ENOMEM, libc::ECONNABORTED, 4095] {
        let (status, out, told) = run(hostcall::ACCEPT, move |_| -i64::from(errno));
        assert!(told > 0 && status == 1 && out.contains("c >= 0"), "{errno}: {out}");
    }
    // Interruptions and short answers, repeated, only cost time.
    let calls = AtomicU64::new(0);
    has_no_effect(hostcall::POLL, move |call| {
        let is_odd = calls.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        if is_odd { call.result } else { -i64::from(libc::EINTR) }
    });
}
