//! AVX-512 inside: who has it, that its registers survive whatever happens, and that nobody outside sees them.

#![allow(missing_docs)]

mod support;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use enclos::abi::xfrm;
use enclos_host::{Enclave, EnclaveTransport};
use enclos_platform::emulator::Emulator;
use enclos_platform::emulator::machine::{Machine, MachineConfig};
use enclos_test_guest::*;

const CONFIG: &str = "threads = 4\nheap = \"16 MiB\"\n[[mounts]]\npath = \"/data\"\nkind = \"sealed\"\n";

/// A machine that has these components of state, always with the same secrets.
fn machine(xfrm: u64) -> Arc<Machine> {
    let mut config = MachineConfig::with_seed([5; 32]);
    config.xfrm = xfrm;
    Machine::new(&config).unwrap()
}

/// Has this processor AVX-512? If not, says that the test is skipped.
fn is_there() -> bool {
    let is_there = machine(!0).xfrm() & xfrm::AVX512 == xfrm::AVX512;
    if !is_there {
        eprintln!("skipped: this processor has no AVX-512, or the kernel does not enable it");
    }
    is_there
}

fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| support::sign(&format!("avx512 = true\n{CONFIG}"), false))
}

struct Started {
    guest: GuestClient<EnclaveTransport>,
    enclave: Enclave,
    directory: tempfile::TempDir,
}

fn start(image: &[u8], emulator: Emulator) -> Started {
    let directory = tempfile::tempdir().unwrap();
    let started = start_with(image, emulator, &directory);
    Started { guest: started.0, enclave: started.1, directory }
}

fn start_with(
    image: &[u8],
    emulator: Emulator,
    directory: &tempfile::TempDir,
) -> (GuestClient<EnclaveTransport>, Enclave) {
    let enclave = Enclave::builder(image).on(Arc::new(emulator)).mount("/data", directory.path());
    let enclave = enclave.log(|_, _| {}).start().unwrap();
    (enclave.connect().unwrap(), enclave)
}

#[test]
fn it_is_there_where_image_and_platform_have_it() {
    let base = Processor {
        xfrm: xfrm::BASE,
        avx512f: false,
        avx2: std::arch::is_x86_feature_detected!("avx2"),
        components: xfrm::BASE as u32,
        area: xfrm::BASE_AREA as u32,
        end: 0,
        more_state: false,
        large_frames: false,
    };
    let plain = support::sign(CONFIG, false);
    let lacking = start(image(), Emulator::on(machine(xfrm::BASE)));
    assert_eq!(
        lacking.guest.processor(),
        Ok(Processor { large_frames: true, ..base }),
        "the platform lacks it"
    );
    let unasked = start(&plain, Emulator::on(machine(!0)));
    assert_eq!(unasked.guest.processor(), Ok(base), "the image does not ask for it");
    assert!(lacking.guest.keep_vectors(0, Call::None).is_err());
    if !is_there() {
        return;
    }
    let both = start(image(), Emulator::on(machine(!0)));
    let with = Processor {
        xfrm: xfrm::BASE | xfrm::AVX512,
        avx512f: true,
        components: 0xe7,
        area: xfrm::LARGEST_AREA as u32,
        end: xfrm::LARGEST_AREA as u32,
        large_frames: true,
        ..base
    };
    assert_eq!(both.guest.processor(), Ok(with));
    let numbers = |seed: i32| (0..1003).map(|i: i32| i.wrapping_mul(seed)).collect::<Vec<_>>();
    let (a, b) = (numbers(0x1234_5679), numbers(0x0fed_cba9));
    let expected = a.iter().zip(&b).map(|(a, b)| i64::from(*a) * i64::from(*b)).fold(0, i64::wrapping_add);
    assert_eq!(both.guest.dot(&a, &b), Ok(Some(expected)));
    assert_eq!(lacking.guest.dot(&a, &b), Ok(None));
    assert_eq!(both.guest.identity(), lacking.guest.identity(), "one image, one measurement");
    assert_ne!(both.guest.identity().unwrap().0, unasked.guest.identity().unwrap().0, "asking is measured");
}

#[test]
fn registers_survive_linux_calls() {
    if !is_there() {
        return;
    }
    for emulator in [Emulator::on(machine(!0)), Emulator::on(machine(!0)).trapping()] {
        let Started { guest, enclave: _enclave, directory: _directory } = start(image(), emulator);
        assert_eq!(guest.keep_vectors(0, Call::None), Ok((0, -1)));
        for round in 0..3 {
            assert_eq!(guest.keep_vectors(0, Call::Nanosleep), Ok((0, 0)), "a call that leaves the enclave");
            let (changed, result) = guest.keep_vectors(0, Call::Getpid).unwrap();
            assert!(changed == 0 && result > 0, "{changed:#x}: a call that the runtime answers");
            let file = Call::Fsync(format!("/data/{round}"));
            assert_eq!(guest.keep_vectors(0, file), Ok((0, 0)), "a call that encrypts with AVX");
            assert_eq!(guest.keep_vectors(0, Call::Tgkill), Ok((0, 0)), "a handler that changes them");
        }
    }
}

#[test]
fn registers_survive_memory_that_comes() {
    if !is_there() {
        return;
    }
    let image = support::sign(&format!("avx512 = true\nprofile = \"sgx2\"\n{CONFIG}"), false);
    for emulator in [Emulator::on(machine(!0)), Emulator::on(machine(!0)).trapping()] {
        let Started { guest, enclave: _enclave, directory: _directory } = start(&image, emulator);
        for _ in 0..4 {
            let (changed, result) = guest.keep_vectors(0, Call::Mmap(1 << 20)).unwrap();
            assert!(changed == 0 && result > 0, "{changed:#x} {result}");
        }
    }
}

static EXITED: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);
/// ELRANGE of the enclave that is looked at.
static BASE: AtomicU64 = AtomicU64::new(0);
static SIZE: AtomicU64 = AtomicU64::new(0);

/// Where the last component of the enclave's state ends in an XSAVE area of this processor: makers differ.
static END: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Sees the host's state after an asynchronous exit: all of it must be as the processor starts with.
extern "C" fn on_alarm(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    const MAGIC: u32 = 0x4650_5853;
    // SAFETY: the kernel's context of this very signal; Linux `struct _fpx_sw_bytes` says how long the XSAVE area is.
    let (registers, area) = unsafe {
        let context = &(*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let area = context.fpregs.cast::<u8>();
        let word = |at: usize| area.add(at).cast::<u32>().read_unaligned();
        let len = if word(464) == MAGIC { word(480) as usize } else { 0 };
        (&context.gregs, std::slice::from_raw_parts(area, len))
    };
    let register = |r: i32| registers[r as usize];
    // RAX = ERESUME, RCX = AEP, RBX = TCS. A system call of the host's that returned 3 has the first two as well.
    let tcs = (register(libc::REG_RBX) as u64).wrapping_sub(BASE.load(Ordering::Relaxed));
    let is_at_aep = register(libc::REG_RAX) == 3 && register(libc::REG_RIP) == register(libc::REG_RCX);
    if !is_at_aep || tcs >= SIZE.load(Ordering::Relaxed) {
        return;
    }
    EXITED.fetch_add(1, Ordering::Relaxed);
    let is_clear = area
        .get(576..END.load(Ordering::Relaxed))
        .is_some_and(|extended| area[32..416].iter().chain(extended).all(|b| *b == 0));
    SEEN.fetch_add(u64::from(!is_clear), Ordering::Relaxed);
}

#[test]
fn registers_survive_interrupts_and_are_not_seen() {
    if !is_there() {
        return;
    }
    // SDM vol. 1, 13.2: size and place of ZMM16 to ZMM31.
    let last = std::arch::x86_64::__cpuid_count(0xd, 7);
    assert_eq!(last.eax, 1024);
    END.store((last.ebx + last.eax) as usize, Ordering::Relaxed);
    // SAFETY: a handler that is async-signal-safe, and a timer that sends this thread a signal every 200 us.
    let timer = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_alarm as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()), 0);
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGALRM;
        event.sigev_notify_thread_id = libc::gettid();
        let mut timer = std::mem::zeroed();
        assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer), 0);
        let every = libc::timespec { tv_sec: 0, tv_nsec: 200_000 };
        let spec = libc::itimerspec { it_interval: every, it_value: every };
        assert_eq!(libc::timer_settime(timer, 0, &raw const spec, std::ptr::null_mut()), 0);
        timer
    };
    for emulator in [Emulator::on(machine(!0)), Emulator::on(machine(!0)).trapping()] {
        let Started { guest, enclave, directory: _directory } = start(image(), emulator);
        BASE.store(enclave.initialized().base(), Ordering::Relaxed);
        SIZE.store(enclave.initialized().size(), Ordering::Relaxed);
        let exits = || enclave.initialized().asynchronous_exits().unwrap();
        let (before, seen) = (exits(), EXITED.load(Ordering::Relaxed));
        for round in 0..20 {
            for call in [Call::None, Call::Nanosleep, Call::Tgkill] {
                let (changed, _) = guest.keep_vectors(5_000_000 + round, call).unwrap();
                assert_eq!(changed, 0, "{changed:#x}");
            }
        }
        assert!(exits() - before > 100, "{} exits only", exits() - before);
        assert!(EXITED.load(Ordering::Relaxed) - seen > 100, "the handler saw that");
    }
    // SAFETY: our timer.
    unsafe { libc::timer_delete(timer) };
    assert_eq!(SEEN.load(Ordering::Relaxed), 0, "handlers saw registers of the enclave");
}

/// Keys do not depend on XFRM, so data may move between platforms with and without AVX-512 that share secrets, and back.
#[test]
fn sealed_data_opens_with_and_without() {
    if !is_there() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut blobs: Vec<(bool, Vec<u8>)> = Vec::new();
    for (round, xfrm) in [xfrm::BASE, !0, xfrm::BASE].into_iter().enumerate() {
        let (guest, _enclave) = start_with(image(), Emulator::on(machine(xfrm)), &directory);
        assert_eq!(guest.processor().unwrap().avx512f, xfrm == !0);
        for (to_signer, blob) in &blobs {
            assert_eq!(guest.unseal(b"for", blob).unwrap(), b"kept", "{round}, to the signer: {to_signer}");
        }
        for earlier in 0..round {
            assert_eq!(guest.contents(&format!("/data/{earlier}")).unwrap(), [earlier as u8; 5000]);
        }
        for to_signer in [false, true] {
            blobs.push((to_signer, guest.seal(to_signer, b"for", b"kept").unwrap()));
        }
        guest.keep(&format!("/data/{round}"), &[round as u8; 5000]).unwrap();
    }
}
