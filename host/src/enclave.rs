//! A running enclave: its threads, and what becomes of each entry.

use std::cell::{Cell, UnsafeCell};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use enclos::abi::{self, StartInfo, exit, op, refusal};
use enclos::contract::{Client, ConnectError, Dispatch, End, Failure, Router};
use enclos::quoting::QuotingServer;
use enclos_platform::emulator::Emulator;
use enclos_platform::hardware::Hardware;
use enclos_platform::{EnterFunction, Initialized, Kind, Platform, PlatformError, Run};

use crate::aesm::Aesm;
use crate::backtrace::{self, Symbol};
use crate::call::EnclaveTransport;
use crate::clock::Clock;
use crate::entry::{self, Entry, Evict, Leaf, Left, Registers};
use crate::files::Files;
use crate::hostcall::HostCall;
use crate::load::{self, ImageSource, LoadError};
use crate::memory::{Mapping, UntrustedMemory};
use crate::sockets::{Bell, Sockets};
use crate::statistics::{Reporter, STATISTICS_VARIABLE};
use crate::threads::{Event, IndexSet, futex_wake};

/// Which platform to run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlatformChoice {
    /// SGX hardware where there is some, else the emulator, which is then named in a line on standard error.
    #[default]
    Auto,
    /// SGX hardware, or an error.
    Hardware,
    /// The emulator. It protects nothing.
    Emulated,
}

impl std::str::FromStr for PlatformChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "hardware" => Ok(Self::Hardware),
            "emulated" => Ok(Self::Emulated),
            _ => Err(format!("`{s}` is no platform: write auto, hardware or emulated")),
        }
    }
}

impl PlatformChoice {
    /// The platform chosen.
    ///
    /// # Errors
    /// When it is not to be had.
    pub fn open(self) -> Result<Arc<dyn Platform>, StartError> {
        let hardware = || Hardware::open().map(|h| Arc::new(h) as Arc<dyn Platform>);
        match self {
            Self::Hardware => Ok(hardware()?),
            Self::Emulated => Ok(Arc::new(Emulator::new()?)),
            Self::Auto
                if enclos_platform::hardware::DEVICES.iter().any(|d| std::path::Path::new(d).exists()) =>
            {
                Ok(hardware()?)
            }
            Self::Auto => {
                eprintln!("enclos: no SGX hardware here; running on the emulator, which protects nothing");
                Ok(Arc::new(Emulator::new()?))
            }
        }
    }
}

/// Bounds on how long and how much the host does for an enclave.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// How long a call waits for a free thread of the enclave.
    pub wait_for_thread: Duration,
    /// How much untrusted memory the enclave may ask for, in bytes.
    pub untrusted_memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { wait_for_thread: Duration::from_secs(30), untrusted_memory: 4 << 30 }
    }
}

/// Severity of a log record from inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
#[allow(missing_docs)]
pub enum LogLevel {
    Error = 1,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Why an enclave could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The image could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The platform is not to be had.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The emulator's secrets cannot be read or made.
    #[error(transparent)]
    EmulatorState(#[from] enclos_platform::emulator::machine::StateError),
    /// The operating system refused a thread or memory.
    #[error("the operating system refused {what}: {source}")]
    Os {
        /// What was asked for.
        what: &'static str,
        /// Its error.
        source: std::io::Error,
    },
    /// A directory given for a mount cannot be opened.
    #[error("cannot open the directory {} for a mount: {source}; make it, or give another one", directory.display())]
    Mount {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An argument or environment entry has a NUL byte.
    #[error("`{entry}` contains a NUL byte: leave it out")]
    Nul {
        /// Which.
        entry: String,
    },
}

/// Sees the requests that were served, and says what the enclave is told.
pub(crate) type Inspector = Box<dyn Fn(&mut HostCall<'_>) -> i64 + Send + Sync>;
pub(crate) type LogSink = Box<dyn Fn(LogLevel, &str) + Send + Sync>;

/// Says how an enclave is to be started.
pub struct Builder {
    image: ImageSource,
    platform: PlatformChoice,
    machine: Option<Arc<dyn Platform>>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    mounts: Vec<(String, PathBuf)>,
    services: Router,
    limits: Limits,
    statistics: Option<PathBuf>,
    io: Io,
}

/// Where the enclave's standard streams and log lead.
pub(crate) struct Io {
    pub(crate) stdin: Mutex<Box<dyn Read + Send>>,
    pub(crate) stdout: Mutex<Box<dyn Write + Send>>,
    pub(crate) stderr: Mutex<Box<dyn Write + Send>>,
    pub(crate) log: LogSink,
    pub(crate) inspector: Option<Inspector>,
}

impl Builder {
    /// Which platform to run on.
    #[must_use]
    pub fn platform(mut self, choice: PlatformChoice) -> Self {
        self.platform = choice;
        self
    }

    /// Runs on this very platform instead of a chosen one.
    #[must_use]
    pub fn on(mut self, machine: Arc<dyn Platform>) -> Self {
        self.machine = Some(machine);
        self
    }

    /// Adds a program argument. The program's name, argument 0, is in the manifest and not the host's to choose.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds program arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Passes an environment variable. The enclave drops those that its manifest does not list.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Passes environment variables.
    #[must_use]
    pub fn envs(mut self, all: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>) -> Self {
        self.env.extend(all.into_iter().map(|(n, v)| (n.into(), v.into())));
        self
    }

    /// Gives a directory for the mount at this path in the enclave's manifest. The enclave reaches nothing outside of it.
    #[must_use]
    pub fn mount(mut self, path: impl Into<String>, directory: impl Into<PathBuf>) -> Self {
        self.mounts.push((path.into(), directory.into()));
        self
    }

    /// Offers a host service to the enclave: `XServer::new(implementation)`. `Quoting` is offered without being
    /// asked for, from [`Aesm::default_for`] the platform; a server given here takes its place.
    #[must_use]
    pub fn service(mut self, server: impl Dispatch + 'static) -> Self {
        self.services.add(server);
        self
    }

    /// Sets the limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Where standard input comes from; default: nowhere.
    #[must_use]
    pub fn stdin(mut self, source: impl Read + Send + 'static) -> Self {
        self.io.stdin = Mutex::new(Box::new(source));
        self
    }

    /// Where standard output goes; default: this process's.
    #[must_use]
    pub fn stdout(mut self, sink: impl Write + Send + 'static) -> Self {
        self.io.stdout = Mutex::new(Box::new(sink));
        self
    }

    /// Where standard error goes; default: this process's.
    #[must_use]
    pub fn stderr(mut self, sink: impl Write + Send + 'static) -> Self {
        self.io.stderr = Mutex::new(Box::new(sink));
        self
    }

    /// Where log records go; default: standard error.
    #[must_use]
    pub fn log(mut self, sink: impl Fn(LogLevel, &str) + Send + Sync + 'static) -> Self {
        self.io.log = Box::new(sink);
        self
    }

    /// Adds a [`Summary`](crate::Summary) to this file when the enclave has ended; default: to the one that
    /// [`STATISTICS_VARIABLE`] names, if it is set.
    #[must_use]
    pub fn statistics(mut self, file: impl Into<PathBuf>) -> Self {
        self.statistics = Some(file.into());
        self
    }

    /// Shows every request of the enclave after it was served, typed services excepted; what the function returns is
    /// what the enclave is told. This is all that an untrusted host sees and can say, so it is how to find out what
    /// leaves an enclave, and what becomes of it when its host lies.
    #[must_use]
    pub fn inspect_host_calls(
        mut self,
        f: impl Fn(&mut HostCall<'_>) -> i64 + Send + Sync + 'static,
    ) -> Self {
        self.io.inspector = Some(Box::new(f));
        self
    }

    /// Loads the image and starts its program, on a thread of its own.
    ///
    /// # Errors
    /// When the image cannot be loaded or the platform is not to be had. That the program fails later shows in
    /// [`Enclave::wait`] and in every call.
    pub fn start(self) -> Result<Enclave, StartError> {
        let clock = Clock::start();
        entry::install();
        let machine = match self.machine {
            Some(machine) => machine,
            None => self.platform.open()?,
        };
        let mut services = self.services;
        if !services.contracts().any(|c| c.hash == QuotingServer::<Aesm>::CONTRACT.hash) {
            services.add(QuotingServer::new(Aesm::default_for(machine.kind())));
        }
        let files = Files::open(&self.mounts)
            .map_err(|(directory, source)| StartError::Mount { directory, source })?;
        let mut io = self.io;
        let mut env = self.env;
        let reporter = self.statistics.map(|file| {
            env.push((abi::REPORT_VARIABLE.to_owned(), "1".to_owned()));
            Reporter::new(file, &mut io.log)
        });
        let file = self.image.read()?;
        let loaded = load::load(&file, machine.as_ref())?;
        drop(file);

        let count = loaded.tcs.len();
        let os = |what| move |source| StartError::Os { what, source };
        let frames = Mapping::new(count * abi::FRAME_SIZE as usize).map_err(os("memory for frames"))?;
        let args = nul_ended(self.args)?;
        let env = nul_ended(env.into_iter().map(|(n, v)| format!("{n}={v}")))?;
        let info = Box::new(StartInfo {
            abi_version: abi::ABI_VERSION,
            platform: if machine.kind() == Kind::Hardware { 1 } else { 2 },
            args: args.as_ptr() as u64,
            args_len: args.len() as u64,
            env: env.as_ptr() as u64,
            env_len: env.len() as u64,
            frames: frames.address() as u64,
            frame_count: count as u64,
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            clock: clock.sample(),
        });
        let shared = Arc::new_cyclic(|this| Shared {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            this: this.clone(),
            function: loaded.enclave.enter_function(),
            kind: machine.kind(),
            _shown: crate::debugger::show(loaded.enclave.base(), &loaded.mrenclave),
            symbols: loaded.symbols,
            slots: loaded
                .tcs
                .iter()
                .enumerate()
                .map(|(i, tcs)| {
                    Slot::new(*tcs, i < loaded.present, frames.address() + i * abi::FRAME_SIZE as usize)
                })
                .collect(),
            enclave: loaded.enclave,
            parked: IndexSet::new(count),
            free: IndexSet::new(count),
            parking: Event::default(),
            ended: AtomicBool::new(false),
            end: OnceLock::new(),
            end_seen: (Mutex::new(()), Condvar::new()),
            services,
            sockets: Sockets::default(),
            files,
            signals: AtomicU64::new(0),
            is_signalled: AtomicBool::new(false),
            memory: UntrustedMemory::new(frames, self.limits.untrusted_memory),
            clock,
            io,
            reporter,
            limits: self.limits,
            switchless: crate::switchless::Slots::default(),
            pages_added: AtomicU64::new(0),
            pages_removed: AtomicU64::new(0),
        });
        (1..loaded.present).for_each(|i| shared.free.put(i));
        let first = shared.clone();
        std::thread::Builder::new()
            .name("enclos-main".into())
            .spawn(move || {
                // What START points to must live until the enclave has copied it, which it does at once.
                let (_args, _env) = (args, env);
                let start = Registers {
                    rdi: op::START,
                    rsi: (&raw const *info) as u64,
                    rdx: size_of::<StartInfo>() as u64,
                    ..Registers::default()
                };
                first.run_thread(0, start);
            })
            .map_err(os("a thread for the enclave"))?;
        Ok(Enclave { shared })
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("platform", &self.platform)
            .field("args", &self.args)
            .finish_non_exhaustive()
    }
}

/// How often threads crossed an enclave's boundary, all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Statistics {
    /// ENCLU\[EENTER\]: calls, answers to requests, looks at exceptions.
    pub eenter: u64,
    /// ENCLU\[ERESUME\] after an exception that was handled inside.
    pub eresume: u64,
    /// Asynchronous exits for exceptions.
    pub exceptions: u64,
    /// All asynchronous exits: for exceptions, and for signals, which stand for the interrupts of hardware. Only the
    /// emulated CPU can count them: after an interrupt hardware resumes by itself (in the vDSO).
    pub asynchronous_exits: Option<u64>,
    /// Requests to the host.
    pub host_calls: u64,
    /// Pages added after the start (EAUG), as the enclave asked for them.
    pub pages_added: u64,
    /// Pages given back (EREMOVE).
    pub pages_removed: u64,
}

/// A started enclave. Dropping it ends it at once, as the end of a process would: [`Enclave::shutdown`] lets its
/// program finish. Clients may outlive it; their calls then fail.
#[derive(Debug)]
pub struct Enclave {
    shared: Arc<Shared>,
}

impl Enclave {
    /// Begins to describe how an image is started. Give a path, or the bytes of an `.enclave` file.
    pub fn builder(image: impl Into<ImageSource>) -> Builder {
        Builder {
            image: image.into(),
            platform: PlatformChoice::Auto,
            machine: None,
            args: Vec::new(),
            env: Vec::new(),
            mounts: Vec::new(),
            services: Router::new(),
            limits: Limits::default(),
            statistics: std::env::var_os(STATISTICS_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from),
            io: Io {
                stdin: Mutex::new(Box::new(std::io::empty())),
                stdout: Mutex::new(Box::new(std::io::stdout())),
                stderr: Mutex::new(Box::new(std::io::stderr())),
                log: Box::new(|level, text| eprintln!("[enclave] {level:?}: {text}")),
                inspector: None,
            },
        }
    }

    /// A typed client: `enclave.connect::<VaultClient<_>>()`. Waits until the program serves, at most
    /// [`Limits::wait_for_thread`].
    ///
    /// # Errors
    /// When the enclave does not serve exactly this contract, or has ended.
    pub fn connect<C: Client<EnclaveTransport>>(&self) -> Result<C, ConnectError> {
        C::connect(EnclaveTransport::new(self.shared.clone()))
    }

    /// Hardware or emulated?
    pub fn platform(&self) -> Kind {
        self.shared.kind
    }

    /// How the enclave ended, if it has.
    pub fn end(&self) -> Option<End> {
        self.shared.end.get().cloned()
    }

    /// Waits until the program has ended and returns its exit status.
    ///
    /// # Errors
    /// How it ended, if not by itself.
    pub fn wait(&self) -> Result<i32, End> {
        self.shared.wait(None).unwrap_or(Ok(0))
    }

    /// Tells the program that no more calls come (its `serve` returns) and waits until it has ended, at most
    /// `patience`; then ends it.
    ///
    /// # Errors
    /// How it ended, if not by itself.
    pub fn shutdown(&self, patience: Duration) -> Result<i32, End> {
        let until = Instant::now() + patience;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if let Some(outcome) = self.shared.wait(Some(Duration::ZERO)) {
                return outcome;
            }
            self.shared.switchless.stop();
            // Threads that are busy now park later, so look again.
            while let Some(index) = self.shared.parked.take() {
                let registers = Registers { rdi: op::SHUTDOWN, ..Registers::default() };
                if self.shared.spawn(index, registers).is_err() {
                    break;
                }
            }
            if let Some(outcome) = self.shared.wait(Some(left.min(Duration::from_millis(1)))) {
                return outcome;
            }
        }
        self.shared.finish(End::ShutDown);
        self.wait()
    }

    /// How many threads of the enclave wait for calls, and how many were never started or have ended.
    pub fn threads(&self) -> (usize, usize) {
        (self.shared.parked.len(), self.shared.free.len())
    }

    /// Requests of the enclave to the host so far.
    pub fn host_calls(&self) -> u64 {
        self.shared.statistics().host_calls
    }

    /// How often threads crossed the boundary so far.
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics()
    }

    /// Sends a signal (signal(7), 1 to 63) to the program, as kill(2) would from another process. It takes notice at its
    /// next wait, and only of signals that its manifest lists (`signals` in `enclos.toml`).
    ///
    /// # Errors
    /// EINVAL for a number that is no signal's.
    pub fn signal(&self, signal: i32) -> std::io::Result<()> {
        if !(1..64).contains(&signal) {
            return Err(std::io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.shared.signals.fetch_or(1 << (signal - 1), Ordering::SeqCst);
        self.shared.is_signalled.store(true, Ordering::SeqCst);
        self.shared.wake_all();
        Ok(())
    }

    /// The enclave as the platform has it.
    pub fn initialized(&self) -> &Arc<dyn Initialized> {
        &self.shared.enclave
    }
}

impl Drop for Enclave {
    fn drop(&mut self) {
        self.shared.finish(End::ShutDown);
        // Another thread may be at it, having been the first to know of the end.
        self.shared.files.end();
    }
}

fn nul_ended(entries: impl IntoIterator<Item = String>) -> Result<Vec<u8>, StartError> {
    let mut all = Vec::new();
    for entry in entries {
        if entry.contains('\0') {
            return Err(StartError::Nul { entry });
        }
        all.extend_from_slice(entry.as_bytes());
        all.push(0);
    }
    Ok(all)
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What all threads that have to do with one enclave share.
pub(crate) struct Shared {
    id: u64,
    this: Weak<Self>,
    function: EnterFunction,
    kind: Kind,
    _shown: crate::debugger::Shown,
    /// Functions, of a debug image.
    pub(crate) symbols: Vec<Symbol>,
    pub(crate) slots: Box<[Slot]>,
    pub(crate) enclave: Arc<dyn Initialized>,
    /// TCSs whose thread waits for calls.
    parked: IndexSet,
    /// TCSs without a thread.
    free: IndexSet,
    parking: Event,
    pub(crate) ended: AtomicBool,
    end: OnceLock<End>,
    end_seen: (Mutex<()>, Condvar),
    pub(crate) services: Router,
    pub(crate) sockets: Sockets,
    pub(crate) files: Files,
    /// Signals for the program that it has not asked for yet: bit 0 is signal 1.
    pub(crate) signals: AtomicU64,
    is_signalled: AtomicBool,
    pub(crate) memory: UntrustedMemory,
    pub(crate) clock: Clock,
    pub(crate) io: Io,
    reporter: Option<Reporter>,
    pub(crate) limits: Limits,
    pub(crate) switchless: crate::switchless::Slots,
    pub(crate) pages_added: AtomicU64,
    pub(crate) pages_removed: AtomicU64,
}

/// One TCS. Fields in cells belong to the OS thread that has taken the slot out of a set.
#[repr(align(128))]
pub(crate) struct Slot {
    pub(crate) tcs: u64,
    /// Is the TCS part of the image, or was it made since?
    is_there: AtomicBool,
    /// The thread's untrusted frame.
    pub(crate) frame: usize,
    run: UnsafeCell<Run>,
    /// The OS thread that is in this slot, or 0.
    inside: AtomicI32,
    host_calls: AtomicU64,
    entries: AtomicU64,
    resumptions: AtomicU64,
    exceptions: AtomicU64,
    /// 1: the next WAIT of this thread returns at once.
    pub(crate) wake: AtomicU32,
    /// Ends a POLL of this thread.
    pub(crate) poll_wake: Bell,
    /// A service's reply that did not fit.
    pub(crate) stash: UnsafeCell<Vec<u8>>,
    /// The range of untrusted memory that the last service call used.
    pub(crate) service_range: Cell<((u64, u64), u64)>,
}

// SAFETY: the cells are used only by the thread that owns the slot: see the type's text. Ownership changes hands by
// the sequentially consistent operations of the sets.
unsafe impl Sync for Slot {}

impl Slot {
    fn new(tcs: u64, is_there: bool, frame: usize) -> Self {
        Self {
            tcs,
            is_there: AtomicBool::new(is_there),
            frame,
            run: UnsafeCell::new(Run::new(tcs)),
            inside: AtomicI32::new(0),
            host_calls: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            resumptions: AtomicU64::new(0),
            exceptions: AtomicU64::new(0),
            wake: AtomicU32::new(0),
            poll_wake: Bell::default(),
            stash: UnsafeCell::default(),
            service_range: Cell::default(),
        }
    }

    /// Only the slot's owner counts, so no locked instruction is needed.
    #[inline]
    pub(crate) fn count_host_call(&self) {
        add_one(&self.host_calls);
    }
}

#[inline]
fn add_one(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// What became of an entry.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The thread waits for calls; these are status and length of the reply.
    Parked(u64, u64),
    /// A nested call is done.
    NestedDone(u64, u64),
    /// The thread has ended, its TCS is free.
    ThreadEnded,
    /// The thread's state is lost: it was taken out for a deadline.
    Lost,
    /// The enclave has ended.
    Ended,
    /// The enclave refused the entry; the thread is as it was.
    Refused(u64),
    /// The platform failed.
    Failed(Failure),
}

thread_local! {
    /// For which enclave the platform has prepared this thread last.
    static PREPARED: Cell<u64> = const { Cell::new(0) };
    /// The service call that this thread is in: enclave and TCS index.
    static IN_SERVICE: Cell<(u64, usize)> = const { Cell::new((0, 0)) };
}

impl Shared {
    /// Runs a thread of the enclave until it parks or ends, and puts its TCS where it belongs.
    fn run_thread(&self, index: usize, registers: Registers) {
        let outcome = self.drive(index, registers);
        match outcome {
            Outcome::Parked(..) => self.park(index),
            Outcome::ThreadEnded => self.free.put(index),
            Outcome::Lost | Outcome::Ended => {}
            Outcome::Refused(refusal::NO_THREAD) => self.free.put(index),
            Outcome::Refused(code) => {
                self.broken(format!("it refused to start or stop a thread (refusal {code})"))
            }
            Outcome::NestedDone(..) => self.broken("a thread that was not in a nested call ended one".into()),
            Outcome::Failed(e) => self.broken(e.to_string()),
        }
    }

    /// As [`Shared::run_thread`], on an OS thread of its own.
    fn spawn(&self, index: usize, registers: Registers) -> std::io::Result<()> {
        let this = self.this.upgrade().ok_or(std::io::ErrorKind::NotFound)?;
        std::thread::Builder::new()
            .name(format!("enclos-{index}"))
            .spawn(move || this.run_thread(index, registers))
            .map(drop)
    }

    /// Starts a thread that the enclave asked for; false when there is no TCS.
    pub(crate) fn start_thread(&self) -> bool {
        let Some(index) = self.free.take() else { return false };
        let spawned = self.spawn(index, Registers { rdi: op::THREAD, ..Registers::default() }).is_ok();
        if !spawned {
            self.free.put(index);
        }
        spawned
    }

    /// The thread region of this index can be entered now.
    pub(crate) fn thread_is_ready(&self, index: u64) -> Result<u64, i32> {
        let index = usize::try_from(index).ok().filter(|i| *i < self.slots.len()).ok_or(libc::EINVAL)?;
        // Once only: a slot that is taken twice would be two threads'.
        if self.slots[index].is_there.swap(true, Ordering::SeqCst) {
            return Err(libc::EEXIST);
        }
        self.free.put(index);
        Ok(0)
    }

    /// The thread region of this index is entered no more, if nobody is about to.
    pub(crate) fn thread_retires(&self, index: u64) -> Result<u64, i32> {
        let index = usize::try_from(index).ok().filter(|i| *i < self.slots.len()).ok_or(libc::EINVAL)?;
        if !self.free.remove(index) {
            return Err(libc::EBUSY);
        }
        self.slots[index].is_there.store(false, Ordering::SeqCst);
        Ok(0)
    }

    /// Puts the TCS of a parked thread back for the next call.
    #[inline]
    pub(crate) fn park(&self, index: usize) {
        self.parked.put(index);
        self.parking.notify();
    }

    /// Takes a parked thread, waiting for one as long as the limits and the deadline allow.
    #[inline]
    pub(crate) fn take_parked(&self) -> Result<usize, Failure> {
        match self.parked.take() {
            Some(index) => Ok(index),
            None => self.wait_for_parked(),
        }
    }

    #[cold]
    fn wait_for_parked(&self) -> Result<usize, Failure> {
        let begun = entry::monotonic_ns();
        let patience = u64::try_from(self.limits.wait_for_thread.as_nanos()).unwrap_or(u64::MAX / 2);
        let limit = begun.saturating_add(patience);
        let deadline = entry::deadline();
        let until = deadline.map_or(limit, |d| d.min(limit));
        let found = self.parking.wait_for(until, || {
            if let Some(end) = self.end.get() {
                return Some(Err(Failure::Ended(end.clone())));
            }
            self.parked.take().map(Ok)
        });
        found.unwrap_or_else(|| {
            let waited = Duration::from_nanos(entry::monotonic_ns() - begun);
            match deadline {
                Some(d) if d <= limit => Err(Failure::DeadlineExceeded { limit: waited }),
                _ => Err(Failure::Busy { waited }),
            }
        })
    }

    /// The TCS of this enclave that waits in a service call on the calling OS thread.
    #[inline]
    pub(crate) fn current_service(&self) -> Option<usize> {
        let (id, index) = IN_SERVICE.get();
        (id == self.id).then_some(index)
    }

    /// Marks the calling OS thread as serving that TCS while `f` runs.
    pub(crate) fn in_service<R>(&self, index: usize, f: impl FnOnce() -> R) -> R {
        struct Restore((u64, usize));
        impl Drop for Restore {
            fn drop(&mut self) {
                IN_SERVICE.set(self.0);
            }
        }
        let _restore = Restore(IN_SERVICE.replace((self.id, index)));
        f()
    }

    /// Enters with a TCS, serves what the thread asks for, and returns when it needs nothing more. The caller owns
    /// the slot.
    #[inline]
    pub(crate) fn drive(&self, index: usize, mut registers: Registers) -> Outcome {
        if PREPARED.get() != self.id {
            if let Err(e) = self.enclave.prepare_thread() {
                return Outcome::Failed(Failure::Platform { reason: e.to_string() });
            }
            PREPARED.set(self.id);
        }
        let slot = &self.slots[index];
        let outer = slot.inside.load(Ordering::Relaxed);
        // No fence with the check for the end that follows: eviction looks again for a while.
        slot.inside.store(entry::thread_id(), Ordering::Relaxed);
        let outcome = self.drive_slot(index, slot, &mut registers);
        slot.inside.store(outer, Ordering::Relaxed);
        outcome
    }

    #[inline]
    fn drive_slot(&self, index: usize, slot: &Slot, registers: &mut Registers) -> Outcome {
        let entry = Entry { function: self.function, tcs: slot.tcs, ended: &self.ended };
        let mut leaf = Leaf::Enter;
        // Exceptions since the last time the thread came out by itself.
        let mut exceptions = 0;
        loop {
            if self.ended.load(Ordering::Acquire) {
                return Outcome::Ended;
            }
            add_one(if leaf == Leaf::Enter { &slot.entries } else { &slot.resumptions });
            // SAFETY: the slot is the caller's, the enclave lives as long as `self`, and the thread is prepared.
            let left = unsafe { entry::enter(&entry, leaf, registers, slot.run.get()) };
            leaf = Leaf::Enter;
            match left {
                Left::Exit => exceptions = 0,
                other => match self.left_otherwise(other, &mut exceptions) {
                    None => {
                        add_one(&slot.exceptions);
                        *registers = Registers { rdi: op::EXCEPTION, ..Registers::default() };
                        continue;
                    }
                    Some(outcome) => return outcome,
                },
            }
            match registers.rdi {
                exit::PARKED => return Outcome::Parked(registers.rsi, registers.rdx),
                exit::HOST_CALL => {
                    let [number, a, b, c] = [registers.rsi, registers.rdx, registers.r8, registers.r9];
                    let result = self.host_call(index, number, a, b, c);
                    if entry::is_expired() {
                        return Outcome::Lost;
                    }
                    *registers = Registers { rdi: op::RETURN, rsi: result as u64, ..Registers::default() };
                }
                exit::NESTED_DONE => return Outcome::NestedDone(registers.rsi, registers.rdx),
                exit::RESUME => leaf = Leaf::Resume,
                exit::AUGMENT => {
                    let failed = self.augment(registers.rsi, registers.rdx).is_err();
                    let rsi = u64::from(failed);
                    *registers = Registers { rdi: op::EXCEPTION, rsi, ..Registers::default() };
                }
                exit::THREAD_END => return Outcome::ThreadEnded,
                _ => return self.left_for_good(slot, registers),
            }
        }
    }

    /// Returns `None` when the exception is to be looked at inside.
    #[cold]
    fn left_otherwise(&self, left: Left, exceptions: &mut u32) -> Option<Outcome> {
        match left {
            // An exception within the handler of the handler: there is no SSA frame for more.
            Left::Exception if *exceptions < 2 => {
                *exceptions += 1;
                return None;
            }
            Left::Exception => self.broken("its exception handler faults".into()),
            Left::NotEntered { vector } => {
                self.broken(format!("EENTER or ERESUME faulted with vector {vector}: no SSA frame is left"));
            }
            Left::Refused(code) => {
                let reason = std::io::Error::from_raw_os_error(code.wrapping_neg());
                return Some(Outcome::Failed(Failure::Platform { reason: format!("entering: {reason}") }));
            }
            Left::TakenOut if !self.ended.load(Ordering::Acquire) => return Some(Outcome::Lost),
            Left::TakenOut | Left::Exit => {}
        }
        Some(Outcome::Ended)
    }

    #[cold]
    fn left_for_good(&self, slot: &Slot, registers: &Registers) -> Outcome {
        match registers.rdi {
            exit::EXIT => self.finish(End::Exited { status: registers.rsi as i32 }),
            exit::FAULT => {
                let mut end = self.memory.fault_report(slot.frame, registers.rsi);
                if !self.symbols.is_empty() {
                    backtrace::explain(&mut end, &self.symbols, self.enclave.base(), slot.tcs);
                }
                self.finish(end);
            }
            exit::REFUSED if registers.rsi == refusal::ENDED => {
                // Another thread ends it at this moment.
                if self.wait(Some(Duration::from_secs(1))).is_none() {
                    self.broken("it says that it has ended, and not how".into());
                }
            }
            exit::REFUSED => return Outcome::Refused(registers.rsi),
            code => self.broken(format!("a thread left with the unknown code {code:#x}")),
        }
        Outcome::Ended
    }

    fn statistics(&self) -> Statistics {
        let sum = |f: fn(&Slot) -> &AtomicU64| self.slots.iter().map(|s| f(s).load(Ordering::Relaxed)).sum();
        Statistics {
            eenter: sum(|s| &s.entries),
            eresume: sum(|s| &s.resumptions),
            exceptions: sum(|s| &s.exceptions),
            asynchronous_exits: self.enclave.asynchronous_exits(),
            host_calls: sum(|s| &s.host_calls),
            pages_added: self.pages_added.load(Ordering::Relaxed),
            pages_removed: self.pages_removed.load(Ordering::Relaxed),
        }
    }

    fn broken(&self, what: String) {
        self.finish(End::Broken { what });
    }

    /// Records how the enclave ended, if it is the first to know, and gets all threads out.
    pub(crate) fn finish(&self, end: End) {
        if self.end.set(end).is_err() {
            return;
        }
        if let Some(reporter) = &self.reporter {
            reporter.write(self.statistics());
        }
        self.ended.store(true, Ordering::SeqCst);
        self.wake_slots();
        self.parking.notify_all();
        drop(self.end_seen.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.end_seen.1.notify_all();
        let this: Weak<dyn Evict> = self.this.clone();
        entry::evict(this);
        self.sockets.end();
        self.files.end();
    }

    /// Gets all threads out of their WAIT and POLL.
    fn wake_slots(&self) {
        for slot in &self.slots {
            slot.wake.store(1, Ordering::SeqCst);
            futex_wake(&slot.wake, i32::MAX);
            slot.poll_wake.ring();
        }
    }

    /// As [`Shared::wake_slots`], and out of EPOLL_WAIT.
    fn wake_all(&self) {
        self.wake_slots();
        self.sockets.wake_all();
    }

    /// Has a signal come since this was asked last? Then the wait must end with EINTR: one wait, since a program whose
    /// manifest permits no signals does not ask for them.
    pub(crate) fn take_signalled(&self) -> bool {
        self.is_signalled.load(Ordering::SeqCst) && self.is_signalled.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn ended_failure(&self) -> Failure {
        Failure::Ended(self.end.get().cloned().unwrap_or(End::ShutDown))
    }

    /// Waits for the end; `None`: it has not come within the time.
    fn wait(&self, limit: Option<Duration>) -> Option<Result<i32, End>> {
        let until = limit.map(|l| Instant::now() + l);
        let mut guard = self.end_seen.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match self.end.get() {
                Some(End::Exited { status }) => return Some(Ok(*status)),
                Some(end) => return Some(Err(end.clone())),
                None => {}
            }
            guard = match until {
                None => self.end_seen.1.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.checked_duration_since(Instant::now())?;
                    self.end_seen.1.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Evict for Shared {
    fn threads_inside(&self) -> Vec<i32> {
        self.slots.iter().map(|s| s.inside.load(Ordering::Relaxed)).filter(|tid| *tid != 0).collect()
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("kind", &self.kind)
            .field("threads", &self.slots.len())
            .field("end", &self.end.get())
            .finish_non_exhaustive()
    }
}
