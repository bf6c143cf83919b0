//! Host signals at 5 kHz each while threads compute inside: results are right, handlers see the host's thread-local
//! storage and no register of the enclave. And on threads that are outside, handlers run as if there were no enclave.

#[allow(dead_code)]
mod support;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use enclos_host::Captured;
use enclos_platform::emulator::Emulator;
use support::{build, builder, image, run_outside};

const SIGNALS: [i32; 3] = [libc::SIGALRM, libc::SIGPROF, libc::SIGCHLD];
const PERIOD_US: i64 = 200;

static SEEN: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
static EXITED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
static BASE: AtomicU64 = AtomicU64::new(u64::MAX / 2);
static SIZE: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static MINE: Cell<u64> = const { Cell::new(0x5eed) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

extern "C" fn handler(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel's context of this very signal.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let inside =
        |r: i64| (r as u64).wrapping_sub(BASE.load(Ordering::Relaxed)) < SIZE.load(Ordering::Relaxed);
    let register = |r: i32| registers[r as usize];
    // After an asynchronous exit RBX holds the address of the TCS, which the host knows anyway; nothing else may.
    let exited = register(libc::REG_RAX) == 3 && register(libc::REG_RIP) == register(libc::REG_RCX);
    let hidden = |r: i32| !matches!(r, libc::REG_RBX | libc::REG_CR2);
    let leaked = exited && (0..registers.len() as i32).any(|r| hidden(r) && inside(register(r)));
    let misplaced = [libc::REG_RIP, libc::REG_RSP, libc::REG_RBP].into_iter().any(|r| inside(register(r)));
    EXITED.fetch_add(u64::from(exited), Ordering::Relaxed);
    if MINE.get() != 0x5eed || leaked || misplaced {
        WRONG.fetch_add(1, Ordering::Relaxed);
    }
    COUNT.set(COUNT.get() + 1);
    let which = SIGNALS.iter().position(|s| *s == signal).unwrap_or(0);
    SEEN[which].fetch_add(1, Ordering::Relaxed);
}

#[test]
fn storms_of_signals_are_harmless() {
    let program = build("compute.c");
    let outside = run_outside(&program);
    let image = image(&program, "threads = 8");
    install_and_start_timers();
    let stop = Arc::new(AtomicBool::new(false));
    let children = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(PERIOD_US as u64));
                // SAFETY: a signal that has a handler, to this process.
                unsafe { libc::kill(libc::getpid(), libc::SIGCHLD) };
            }
        })
    };
    for trapping in [false, true] {
        let out = Captured::default();
        let mut start = builder(&image).stdout(out.clone());
        if trapping {
            start = start.on(Arc::new(Emulator::new().unwrap().trapping()));
        }
        let enclave = start.start().unwrap();
        BASE.store(enclave.initialized().base(), Ordering::Relaxed);
        SIZE.store(enclave.initialized().size(), Ordering::Relaxed);
        assert_eq!(enclave.wait().ok(), Some(0), "{:?}", enclave.end());
        assert_eq!(out.text(), String::from_utf8_lossy(&outside.stdout));
        SIZE.store(0, Ordering::Relaxed);
    }
    stop.store(true, Ordering::Relaxed);
    children.join().unwrap();
    stop_timers();
    for (signal, seen) in SIGNALS.iter().zip(&SEEN) {
        assert!(seen.load(Ordering::Relaxed) > 100, "signal {signal} came {seen:?} times only");
    }
    assert!(EXITED.load(Ordering::Relaxed) > 100, "signals came while threads were inside");
    assert_eq!(WRONG.load(Ordering::Relaxed), 0, "handlers saw something of the enclave");
}

fn install_and_start_timers() {
    // SAFETY: a handler that is async-signal-safe (atomics and const thread-locals), and two interval timers.
    unsafe {
        for signal in SIGNALS {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
        }
    }
    set_timers(PERIOD_US);
}

fn stop_timers() {
    set_timers(0);
}

fn set_timers(period: i64) {
    let every = libc::timeval { tv_sec: 0, tv_usec: period };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: plain system calls.
    unsafe {
        assert_eq!(libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()), 0);
        assert_eq!(libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()), 0);
    }
}

/// Rust gives its threads alternate stacks that hold little more than one signal frame. Handlers that did not ask for
/// them must not run there because an enclave was started: three at once, with a page of variables each, did not fit.
#[test]
fn handlers_outside_run_on_the_stack_they_were_written_for() {
    let enclave =
        builder(&image(&build("compute.c"), "threads = 8")).stdout(Captured::default()).start().unwrap();
    assert_eq!(enclave.wait().ok(), Some(0), "{:?}", enclave.end());
    let signals = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];
    // SAFETY: a handler that is async-signal-safe.
    unsafe {
        for signal in signals {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = spacious as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaddset(&raw mut action.sa_mask, libc::SIGURG);
            assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
        }
    }
    std::thread::spawn(move || {
        // SAFETY: signals that have handlers, to this thread, made to arrive at once; the registers that are written
        // are declared, and XMM15 is read back.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            signals.iter().for_each(|s| assert_eq!(libc::sigaddset(&raw mut set, *s), 0));
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            signals.iter().for_each(|s| assert_eq!(libc::pthread_kill(libc::pthread_self(), *s), 0));
            let after: u64;
            std::arch::asm!(
                "mov {x}, 0x5eed",
                "movq xmm15, {x}",
                "syscall",
                "movq {x}, xmm15",
                x = out(reg) after,
                inlateout("rax") libc::SYS_rt_sigprocmask => _,
                in("rdi") libc::SIG_UNBLOCK as i64,
                in("rsi") &raw const set,
                in("rdx") 0,
                in("r10") 8,
                out("rcx") _,
                out("r11") _,
                out("xmm15") _,
            );
            assert_eq!(after, 0x5eed, "registers are as before the signals");
            let mut now: libc::sigset_t = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut now);
            let left = signals.iter().filter(|s| libc::sigismember(&raw const now, **s) == 1).count();
            assert_eq!(left, 0, "the mask is as before the signals");
        }
    })
    .join()
    .unwrap();
    assert_eq!(SPACIOUS.load(Ordering::Relaxed), 3);
    assert_eq!(MASKS_WRONG.load(Ordering::Relaxed), 0, "handlers run with the mask that was asked for");
}

static SPACIOUS: AtomicU64 = AtomicU64::new(0);
static MASKS_WRONG: AtomicU64 = AtomicU64::new(0);

extern "C" fn spacious(signal: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let mut room = [0_u8; 4096];
    std::hint::black_box(&mut room);
    // SAFETY: reads this thread's mask.
    let mask = unsafe {
        let mut now: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut now);
        now
    };
    // SAFETY: an initialised set.
    let blocked = |s: i32| unsafe { libc::sigismember(&raw const mask, s) == 1 };
    if !blocked(signal) || !blocked(libc::SIGURG) || blocked(libc::SIGTERM) {
        MASKS_WRONG.fetch_add(1, Ordering::Relaxed);
    }
    SPACIOUS.fetch_add(1, Ordering::Relaxed);
}
