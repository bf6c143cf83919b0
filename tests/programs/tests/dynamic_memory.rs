//! Programs whose memory grows on demand: what they are refused is an error that they see, and a host that lies about
//! their memory gets an error to the program, or ends the enclave cleanly. None makes a program see what it did not write.

#[allow(dead_code)]
mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use enclos::abi::hostcall;
use enclos_host::{Captured, Enclave, End, LoadError, StartError};
use enclos_pack::Image;
use enclos_platform::emulator::Emulator;
use enclos_platform::emulator::machine::{Machine, MachineConfig};
use enclos_platform::sgx_isa::{Miscselect, PageType, SecinfoFlags, Sigstruct};
use enclos_platform::{
    Build, CreateParams, DynamicMemory, EnterFunction, Initialized, Kind, Pages, Platform, PlatformError,
};
use support::{build, builder, image};

const CONFIG: &str = "threads = 4\nheap = \"32 MiB\"\nprofile = \"sgx2\"\nstack = \"256 KiB\"";

fn demand() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| image(&build("demand.rs"), CONFIG))
}

/// How it ended, and what it wrote.
fn finish(enclave: &Enclave, out: &Captured) -> (End, String) {
    let until = Instant::now() + Duration::from_secs(60);
    while enclave.end().is_none() {
        assert!(Instant::now() < until, "it hangs:\n{}", out.text());
        std::thread::sleep(Duration::from_millis(1));
    }
    (enclave.end().unwrap(), out.text())
}

fn run(image: &Image, platform: Arc<dyn Platform>, most: usize) -> (End, String) {
    let out = Captured::default();
    let start = builder(image).on(platform).arg(most.to_string()).stdout(out.clone()).stderr(out.clone());
    let enclave = start.log(|_, _| {}).start().unwrap();
    finish(&enclave, &out)
}

fn machine(epc_bytes: u64) -> Arc<Machine> {
    Machine::new(&MachineConfig { epc_bytes, ..MachineConfig::with_seed([3; 32]) }).unwrap()
}

fn emulator() -> Arc<dyn Platform> {
    Arc::new(Emulator::on(machine(1 << 30)))
}

/// The pieces of memory that it got in each round.
fn pieces(text: &str) -> Vec<usize> {
    let rounds = text.lines().filter(|l| l.starts_with("round"));
    rounds.map(|l| l.split_whitespace().last().unwrap().parse().unwrap()).collect()
}

#[test]
fn the_heaps_maximum_is_an_error_that_the_program_sees() {
    let (end, text) = run(demand(), emulator(), 64);
    assert_eq!(end, End::Exited { status: 0 }, "{text}");
    let got = pieces(&text);
    assert!(got.iter().all(|n| (24..32).contains(n)) && text.contains("refused"), "{text}");
    assert!(text.contains("threads [1, 2] small 7000") && !text.contains("corrupt"), "{text}");
}

#[test]
fn exhausted_epc_is_an_error_that_the_program_sees() {
    let machine = machine(14 << 20);
    for trapping in [false, true] {
        let emulator = Emulator::on(machine.clone());
        let emulator = if trapping { emulator.trapping() } else { emulator };
        let (end, text) = run(demand(), Arc::new(emulator), 64);
        assert_eq!(end, End::Exited { status: 0 }, "{text}");
        let got = pieces(&text);
        assert!(got.iter().all(|n| (6..14).contains(n)), "{text}");
        assert!(text.contains("small 7000") && !text.contains("corrupt"), "{text}");
    }
    // The last of its threads may be on their way out.
    let until = Instant::now() + Duration::from_secs(10);
    while machine.epc().0 != 0 {
        assert!(Instant::now() < until, "{} bytes did not come back", machine.epc().0);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn memory_goes_back_to_the_machine() {
    let machine = machine(1 << 30);
    let image = image(&build("parked.c"), CONFIG);
    let before = machine.epc().0;
    let out = Captured::default();
    let start = builder(demand()).on(Arc::new(Emulator::on(machine.clone()))).arg("16").stdout(out.clone());
    let enclave = start.start().unwrap();
    let (end, text) = finish(&enclave, &out);
    assert_eq!((end, pieces(&text)), (End::Exited { status: 0 }, vec![16; 3]), "{text}");
    let statistics = enclave.statistics();
    // 16 MiB each round, given back at least once: what the program's malloc keeps is not the runtime's.
    assert!(statistics.pages_added > 2 * 4096, "{statistics:?}");
    assert!(statistics.pages_removed > 4096, "{statistics:?}");
    drop(enclave);
    // One that does nothing takes a small part of its maximum.
    let idle = builder(&image).on(Arc::new(Emulator::on(machine.clone()))).stdout(Captured::default());
    let idle = idle.start().unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while machine.epc().0 == before && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(machine.epc().0 < 8 << 20, "{}", machine.epc().0);
    drop(idle);
}

#[test]
fn regions_of_threads_go_back_to_the_machine() {
    // A region is 25 pages, of which one stays.
    const REGION: u64 = 25;
    let image = image(&build("crowd.c"), "threads = 16\nheap = \"256 MiB\"\nprofile = \"sgx2\"");
    for trapping in [false, true] {
        let emulator = Emulator::on(machine(1 << 30));
        let emulator = if trapping { emulator.trapping() } else { emulator };
        let (out, go) = (Captured::default(), Arc::new(AtomicU64::new(0)));
        let start = builder(&image).on(Arc::new(emulator)).stdout(out.clone()).stderr(out.clone());
        // How many regions were taken apart, as the host is asked for it.
        let count = go.clone();
        let start = start.inspect_host_calls(move |call| {
            if call.number == hostcall::THREAD_RETIRES && call.result == 0 {
                count.fetch_add(1, Ordering::SeqCst);
            }
            call.result
        });
        let enclave = start.start().unwrap();
        let (end, text) = finish(&enclave, &out);
        assert_eq!((end, text.as_str()), (End::Exited { status: 0 }, "12 threads\n12 threads\n12 threads\n"));
        let (retired, statistics) = (go.load(Ordering::SeqCst), enclave.statistics());
        // Three times twelve threads, of which a few are kept for the next.
        assert!(retired >= 3 * 6, "{retired} {statistics:?}");
        assert!(statistics.pages_removed >= retired * (REGION - 1), "{retired} {statistics:?}");
    }
}

/// The place of a thread on its way out is waited for, however busy the machine is that takes memory apart for it.
#[test]
fn a_thread_waits_for_the_place_of_one_that_ends() {
    let image = image(&build("places.c"), "threads = 5\nheap = \"64 MiB\"\nprofile = \"sgx2\"");
    // Whether a place is idle in time to be taken apart is up to the machine.
    for _ in 0..10 {
        let (out, taken) = (Captured::default(), Arc::new(AtomicU64::new(0)));
        let start = builder(&image).on(emulator()).stdout(out.clone()).stderr(out.clone());
        let count = taken.clone();
        let start = start.inspect_host_calls(move |call| {
            if call.number == hostcall::THREAD_RETIRES && count.fetch_add(1, Ordering::SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(800));
            }
            call.result
        });
        let (end, text) = finish(&start.start().unwrap(), &out);
        assert_eq!((end, text.as_str()), (End::Exited { status: 0 }, "4 at once\n"));
        if taken.load(Ordering::SeqCst) > 0 {
            return;
        }
    }
    panic!("no place was taken apart");
}

/// A host that says it will not enter a thread any more and does, or says that it took pages and did not.
#[test]
fn lies_about_regions_of_threads_hang_nothing_and_break_nothing() {
    let image = image(&build("crowd.c"), "threads = 16\nheap = \"256 MiB\"\nprofile = \"sgx2\"");
    for (number, lie) in [
        (hostcall::THREAD_RETIRES, 0),
        (hostcall::THREAD_RETIRES, -16),
        (hostcall::THREAD_RETIRES, i64::MIN),
        (hostcall::THREAD_RETIRES, 1 << 40),
        (hostcall::THREAD_READY, -5),
        (hostcall::TRIM, -1),
        (hostcall::REMOVE, -1),
        (hostcall::REMOVE, i64::MAX),
    ] {
        let out = Captured::default();
        let start = builder(&image).on(emulator()).stdout(out.clone()).stderr(out.clone()).log(|_, _| {});
        let lying =
            start.inspect_host_calls(move |call| if call.number == number { lie } else { call.result });
        let (end, text) = finish(&lying.start().unwrap(), &out);
        const WHOLE: &str = "12 threads\n12 threads\n12 threads\n";
        // A host that says that it will not enter a thread and does is turned away by the CPU, and gives up; of one that
        // says that it will and does not, the program gets no thread.
        let less = match end {
            End::Broken { .. } => number == hostcall::THREAD_RETIRES && lie == 0,
            End::Exited { status: 3 } => number == hostcall::THREAD_RETIRES && lie != 0,
            _ => false,
        };
        let whole = (&end, text.as_str()) == (&End::Exited { status: 0 }, WHOLE);
        assert!(whole || less && WHOLE.starts_with(&text), "{number} {lie}: {end:?} {text}");
    }
}

#[test]
fn a_platform_without_it_is_named() {
    let config = MachineConfig { sgx2: false, ..MachineConfig::with_seed([3; 32]) };
    let emulator = Emulator::on(Machine::new(&config).unwrap());
    let error = builder(demand()).on(Arc::new(emulator)).start().unwrap_err();
    assert!(matches!(error, StartError::Load(LoadError::NoDynamicMemory)), "{error}");
    assert!(error.to_string().contains("sgx1"), "{error}");
}

/// What a lying kernel does instead of what it was asked, from a while after the start on; the number counts its requests.
#[derive(Clone, Copy)]
struct Lies {
    augment: fn(&dyn DynamicMemory, u64, u64, u64) -> Result<(), PlatformError>,
    modify_type: fn(&dyn DynamicMemory, u64, u64, PageType) -> Result<(), PlatformError>,
    restrict: fn(&dyn DynamicMemory, u64, u64, SecinfoFlags) -> Result<(), PlatformError>,
    remove: fn(&dyn DynamicMemory, u64, u64) -> Result<(), PlatformError>,
    /// So many requests are served first.
    honest: u64,
}

const TRUTH: Lies = Lies {
    augment: |m, offset, count, _| m.augment(offset, count),
    modify_type: |m, offset, count, to| m.modify_type(offset, count, to),
    restrict: |m, offset, count, permissions| m.restrict(offset, count, permissions),
    remove: |m, offset, count| m.remove(offset, count),
    honest: 12,
};

fn refusal() -> PlatformError {
    PlatformError::Os { what: "lying", source: std::io::Error::from_raw_os_error(libc::EPERM) }
}

struct Liar(Lies, Arc<dyn Platform>);
struct LiarsBuild(Lies, Box<dyn Build>);
struct LiarsEnclave(Lies, Arc<dyn Initialized>, AtomicU64);

impl Platform for Liar {
    fn kind(&self) -> Kind {
        self.1.kind()
    }
    fn miscselect(&self) -> Miscselect {
        self.1.miscselect()
    }
    fn xfrm(&self) -> u64 {
        self.1.xfrm()
    }
    fn create(&self, params: &CreateParams) -> Result<Box<dyn Build>, PlatformError> {
        Ok(Box::new(LiarsBuild(self.0, self.1.create(params)?)))
    }
    fn has_dynamic_memory(&self) -> bool {
        true
    }
}

impl Build for LiarsBuild {
    fn base(&self) -> u64 {
        self.1.base()
    }
    fn add(&mut self, pages: &Pages<'_>) -> Result<(), PlatformError> {
        self.1.add(pages)
    }
    fn init(self: Box<Self>, sigstruct: &Sigstruct) -> Result<Arc<dyn Initialized>, PlatformError> {
        Ok(Arc::new(LiarsEnclave(self.0, self.1.init(sigstruct)?, AtomicU64::new(0))))
    }
}

impl Initialized for LiarsEnclave {
    fn base(&self) -> u64 {
        self.1.base()
    }
    fn size(&self) -> u64 {
        self.1.size()
    }
    fn enter_function(&self) -> EnterFunction {
        self.1.enter_function()
    }
    fn prepare_thread(&self) -> Result<(), PlatformError> {
        self.1.prepare_thread()
    }
    fn hint_enclu_sites(&self, offsets: &[u64]) {
        self.1.hint_enclu_sites(offsets);
    }
    fn dynamic_memory(&self) -> Option<&dyn DynamicMemory> {
        Some(self)
    }
}

impl LiarsEnclave {
    /// Who serves this request: the truth or the lies, and the number of lies before.
    fn next(&self) -> (Lies, &dyn DynamicMemory, u64) {
        let number = self.2.fetch_add(1, Ordering::Relaxed);
        let lies = if number < self.0.honest { TRUTH } else { self.0 };
        (lies, self.1.dynamic_memory().unwrap(), number.saturating_sub(self.0.honest))
    }
}

impl DynamicMemory for LiarsEnclave {
    fn augment(&self, offset: u64, count: u64) -> Result<(), PlatformError> {
        let (lies, memory, number) = self.next();
        (lies.augment)(memory, offset, count, number)
    }
    fn restrict(&self, offset: u64, count: u64, permissions: SecinfoFlags) -> Result<(), PlatformError> {
        let (lies, memory, _) = self.next();
        (lies.restrict)(memory, offset, count, permissions)
    }
    fn modify_type(&self, offset: u64, count: u64, page_type: PageType) -> Result<(), PlatformError> {
        let (lies, memory, _) = self.next();
        (lies.modify_type)(memory, offset, count, page_type)
    }
    fn remove(&self, offset: u64, count: u64) -> Result<(), PlatformError> {
        let (lies, memory, _) = self.next();
        (lies.remove)(memory, offset, count)
    }
}

fn lied_to(lies: Lies) -> (End, String) {
    run(demand(), Arc::new(Liar(lies, emulator())), 16)
}

/// The program goes on with what it has.
#[track_caller]
fn survives(what: &str, lies: Lies) -> String {
    let (end, text) = lied_to(lies);
    assert_eq!(end, End::Exited { status: 0 }, "{what}: {text}");
    assert!(text.contains("small 7000") && !text.contains("corrupt"), "{what}: {text}");
    text
}

#[test]
fn the_honest_host_is_believed() {
    let text = survives("truth", TRUTH);
    assert_eq!(pieces(&text), vec![16; 3], "{text}");
}

#[test]
fn pages_that_are_not_added_are_memory_that_is_refused() {
    type Augment = fn(&dyn DynamicMemory, u64, u64, u64) -> Result<(), PlatformError>;
    let lies: [(&str, Augment); 5] = [
        ("nothing is added", |_, _, _, _| Ok(())),
        ("an error", |_, _, _, _| Err(refusal())),
        ("one page less", |m, offset, count, _| m.augment(offset, count.saturating_sub(1))),
        ("other pages", |m, offset, count, _| m.augment(offset + 4096 * count, count).or(Ok(()))),
        (
            "now and then",
            |m, offset, count, number| {
                if number % 3 == 0 { m.augment(offset, count) } else { Ok(()) }
            },
        ),
    ];
    for (what, augment) in lies {
        let text = survives(what, Lies { augment, ..TRUTH });
        assert!(text.contains("refused"), "{what}: {text}");
    }
    // Added all the same: EACCEPT is not even tried, and the pages stay the host's.
    let text = survives(
        "a false error",
        Lies { augment: |m, offset, count, _| m.augment(offset, count).and(Err(refusal())), ..TRUTH },
    );
    assert!(text.contains("refused"), "{text}");
    // Of another kind: a page that was made something else before it was accepted.
    let text = survives(
        "trimmed before they are accepted",
        Lies {
            augment: |m, offset, count, _| {
                m.augment(offset, count)?;
                let _ = m.modify_type(offset, count, PageType::Trim);
                m.restrict(offset, count, SecinfoFlags::R).or(Ok(()))
            },
            ..TRUTH
        },
    );
    // Pending pages cannot be changed, so that was no lie.
    assert_eq!(pieces(&text), vec![16; 3], "{text}");
}

#[test]
fn memory_that_does_not_go_back_is_the_hosts_affair() {
    type Modify = fn(&dyn DynamicMemory, u64, u64, PageType) -> Result<(), PlatformError>;
    let lies: [(&str, Modify); 4] = [
        ("nothing is trimmed", |_, _, _, to| if to == PageType::Tcs { Err(refusal()) } else { Ok(()) }),
        ("an error", |_, _, _, _| Err(refusal())),
        ("half of it", |m, offset, count, to| m.modify_type(offset, count.div_ceil(2), to)),
        ("a false error", |m, offset, count, to| m.modify_type(offset, count, to).and(Err(refusal()))),
    ];
    for (what, modify_type) in lies {
        let text = survives(what, Lies { modify_type, ..TRUTH });
        assert!(text.contains("round 0: all 16"), "{what}: {text}");
    }
    let kept: fn(&dyn DynamicMemory, u64, u64) -> Result<(), PlatformError> = |_, _, _| Ok(());
    for (what, remove) in [("kept", kept), ("kept, and said so", |_, _, _| Err(refusal()))] {
        survives(what, Lies { remove, ..TRUTH });
    }
}

#[test]
fn memory_that_is_taken_away_ends_the_enclave() {
    // Each page that is handed over is one that the program got before, made something else behind its back.
    let (end, text) = lied_to(Lies {
        augment: |m, offset, count, _| {
            m.augment(offset, count)?;
            let _ = m.modify_type(offset + 4096 * (count + 20), 200, PageType::Trim);
            Ok(())
        },
        ..TRUTH
    });
    assert!(matches!(end, End::Faulted { vector: 14, .. } | End::Broken { .. }), "{end:?} {text}");
    assert!(!text.contains("corrupt"), "{text}");
}

#[test]
fn what_was_promised_and_does_not_come_ends_the_enclave() {
    let image = image(&build("promised.c"), CONFIG);
    let run = |lies| run(&image, Arc::new(Liar(lies, emulator())), 1);
    let (end, text) = run(Lies { honest: 0, ..TRUTH });
    assert_eq!((end, text.as_str()), (End::Exited { status: 0 }, "promised\nclosed 0\nread 2\n"));
    for honest in [6, 10, 20] {
        let (end, text) = run(Lies { augment: |_, _, _, _| Ok(()), honest, ..TRUTH });
        assert!(matches!(end, End::Faulted { vector: 0x102, .. }), "{honest}: {end:?} {text}");
        assert!(!text.contains("closed"), "{text}");
    }
    // Permissions that are not taken away are an error of mprotect.
    let (end, text) = run(Lies { restrict: |_, _, _, _| Ok(()), honest: 20, ..TRUTH });
    assert_eq!((end, text.as_str()), (End::Exited { status: 0 }, "promised\nclosed -1\nread 2\n"));
}

#[test]
fn a_start_without_memory_is_refused() {
    let lies = Lies { augment: |_, _, _, _| Ok(()), honest: 0, ..TRUTH };
    // A stack that is larger than what the image has of the heap.
    let config = "heap = \"32 MiB\"\nstack = \"16 MiB\"\nprofile = \"sgx2\"";
    let image = image(&build("demand.rs"), config);
    let (end, text) = run(&image, Arc::new(Liar(lies, emulator())), 1);
    assert!(matches!(end, End::Broken { .. }) && text.is_empty(), "{end:?} {text}");
}
