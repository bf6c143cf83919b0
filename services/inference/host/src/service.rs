//! The enclave and its models: started, called, and started anew when it ends.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use enclos_host::{CallError, ConnectError, Enclave, EnclaveTransport, End, Failure, StartError};
use enclos_inference::{InferenceClient, Loaded, Offer, ServiceError, Settings, version};
use enclos_key_broker::client::BrokerClient;
use enclos_key_broker::jwe;
use sha2::{Digest as _, Sha256};

use crate::{Config, Events, ServeError, Start};

/// Between two starts of an enclave, at least: one that ends at once must not keep a core busy.
const BETWEEN_STARTS: Duration = Duration::from_secs(1);
/// How often it is tried again to listen at an address, a fifth of a second apart.
const LISTEN_ATTEMPTS: u32 = 5;
/// How long an enclave may take to end in good order.
const FAREWELL: Duration = Duration::from_secs(5);

/// A model, and where its file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFile {
    /// Its name in the Open Inference Protocol.
    pub name: String,
    /// An ONNX file, or one that is encrypted (JWE). A newer version replaces it in one step (rename), or is not touched for as long as the files are watched
    /// in between.
    pub path: PathBuf,
}

/// Something that operators want to know.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A version of a model is served.
    Loaded {
        /// The model.
        name: String,
        /// Its version and engine.
        loaded: Loaded,
    },
    /// A file is not served; what was served before still is.
    NotLoaded {
        /// The model.
        name: String,
        /// Its file.
        path: PathBuf,
        /// Why; names the node where one is to blame.
        reason: String,
    },
    /// A version is no longer served.
    Unloaded {
        /// The model.
        name: String,
        /// Its version.
        sha256: [u8; 32],
    },
    /// The enclave serves attested TLS.
    Listening {
        /// Where.
        address: String,
    },
    /// The enclave ended. Its keys are lost: what was encrypted for them is nobody's, and clients verify anew.
    Ended {
        /// How.
        end: End,
    },
    /// Another enclave, with other keys, serves the same models.
    Restarted,
    /// No enclave can be had.
    NotStarted {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loaded { name, loaded } => {
                let version = version(&loaded.sha256);
                write!(f, "{name}, version {version}, by the engine {} ({})", loaded.engine, loaded.reason)
            }
            Self::NotLoaded { name, path, reason } => write!(
                f,
                "{} is not served as {name}: {reason}; what was served before still is",
                path.display()
            ),
            Self::Unloaded { name, sha256 } => {
                write!(f, "{name}, version {}: newer ones are served", version(sha256))
            }
            Self::Listening { address } => write!(f, "attested TLS at {address}"),
            Self::Ended { end } => {
                write!(f, "the enclave ended ({end}); its keys are lost, and clients must verify anew")
            }
            Self::Restarted => f.write_str("another enclave serves the same models, with another key"),
            Self::NotStarted { reason } => {
                write!(f, "no enclave can be started: {reason}; it is tried again at the next request")
            }
        }
    }
}

/// Why there is no answer. The enclave is not to be had, for now.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// It ended while it was asked.
    #[error(
        "the enclave ended; another one is started, with another key: ask for the offer again, and verify it"
    )]
    Ended,
    /// It did not answer in time.
    #[error("the enclave took longer than {} s; another one is started, with another key", limit.as_secs_f32())]
    TimedOut {
        /// What it may take.
        limit: Duration,
    },
    /// All of its threads are busy.
    #[error("all threads of the enclave are busy; try again in a moment")]
    Busy,
    /// It failed at this call, and goes on.
    #[error("the enclave failed at this call: {reason}")]
    Failed {
        /// How.
        reason: String,
    },
    /// There is none.
    #[error("no enclave can be started: {reason}")]
    NotStarted {
        /// Why.
        reason: String,
    },
}

/// What became of asking the enclave.
pub(crate) type Answer<T> = Result<Result<T, ServiceError>, Unavailable>;

type Client = InferenceClient<EnclaveTransport>;

/// The enclave, whichever it is at present, and the models that it serves.
pub struct Service {
    this: Weak<Self>,
    start: Start,
    events: Events,
    files: Vec<ModelFile>,
    key_broker: Option<Arc<BrokerClient>>,
    settings: Settings,
    attested_tls: Option<String>,
    /// Versions kept a name.
    versions: usize,
    call: Duration,
    enclave: Mutex<Slot>,
    /// What is served, in the order in which it was loaded.
    served: Mutex<Vec<Served>>,
    restarts: AtomicU64,
    refused: AtomicU64,
}

/// The enclave at present.
#[derive(Default)]
struct Slot {
    running: Option<Arc<Running>>,
    started: Option<Instant>,
}

struct Running {
    enclave: Enclave,
    client: Client,
    /// Where attested TLS is served.
    attested_tls: Option<String>,
}

/// A version that is served. Its bytes are kept for the next enclave: the file may be another by then.
#[derive(Clone)]
struct Served {
    name: String,
    sha256: [u8; 32],
    /// SHA-256 of the file, which is another one where the file is encrypted.
    file: [u8; 32],
    bytes: Arc<Vec<u8>>,
}

impl Service {
    /// Starts an enclave and loads all models.
    ///
    /// # Errors
    /// When there is no enclave, or it refuses one of them.
    pub(crate) fn begin(config: &Config, start: Start, events: Events) -> Result<Arc<Self>, ServeError> {
        if config.models.is_empty() {
            return Err(ServeError::NoModels);
        }
        for (i, model) in config.models.iter().enumerate() {
            if config.models[..i].iter().any(|other| other.name == model.name) {
                return Err(ServeError::Twice { name: model.name.clone() });
            }
        }
        let service = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            start,
            events,
            files: config.models.clone(),
            key_broker: config.key_broker.clone(),
            settings: config.settings,
            attested_tls: config.attested_tls.clone(),
            versions: config.versions.max(1),
            call: config.limits.call,
            enclave: Mutex::default(),
            served: Mutex::default(),
            restarts: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        for file in &service.files {
            let failed =
                |source| ServeError::Read { name: file.name.clone(), path: file.path.clone(), source };
            let bytes = std::fs::read(&file.path).map_err(failed)?;
            service.serve(&file.name, bytes)?.map_err(|source| ServeError::Model {
                name: file.name.clone(),
                path: file.path.clone(),
                source,
            })?;
        }
        service.offer()??;
        Ok(service)
    }

    /// What clients verify.
    pub(crate) fn offer(&self) -> Answer<Offer> {
        match self.ask(Client::offer) {
            // Nothing of the client's is lost, so the next enclave's will do.
            Err(Unavailable::Ended) => self.ask(Client::offer),
            answer => answer,
        }
    }

    pub(crate) fn infer(&self, request: &[u8]) -> Answer<Vec<u8>> {
        self.ask(|client| client.infer(request))
    }

    pub(crate) fn status(&self) -> Result<enclos_inference::Status, Unavailable> {
        self.ask(|client| client.status().map_err(never)).map(|status| status.unwrap_or_default())
    }

    /// Looks at the models' files, and serves those that have changed as new versions. A file that cannot be read or loaded
    /// changes nothing. Events tell what happened.
    pub fn reload(&self) {
        for file in &self.files {
            self.reload_one(file);
        }
    }

    fn reload_one(&self, file: &ModelFile) {
        let outcome = match std::fs::read(&file.path) {
            Err(e) => Err(format!("it cannot be read: {e}")),
            Ok(bytes) => match self.is_newest(&file.name, &bytes) {
                true => return,
                false => match self.serve(&file.name, bytes) {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(e)) => Err(e.to_string()),
                    Err(e) => Err(e.to_string()),
                },
            },
        };
        match outcome {
            Ok(()) => self.forget_older(&file.name),
            Err(reason) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                let (name, path) = (file.name.clone(), file.path.clone());
                (self.events)(&Event::NotLoaded { name, path, reason });
            }
        }
    }

    /// Reloads what changes, until the service is dropped. Files that are being written are left alone until they have not
    /// changed for an interval.
    pub(crate) fn watch(self: &Arc<Self>, interval: Duration) {
        let (service, files) = (Arc::downgrade(self), self.files.clone());
        let state = |file: &ModelFile| -> Option<(SystemTime, u64)> {
            let metadata = std::fs::metadata(&file.path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        let mut before: Vec<_> = files.iter().map(|file| (state(file), false)).collect();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let Some(service) = service.upgrade() else { return };
                for (file, (last, is_due)) in files.iter().zip(&mut before) {
                    let now = state(file);
                    let has_changed = *last != now;
                    *last = now;
                    if has_changed {
                        *is_due = now.is_some();
                    } else if std::mem::take(is_due) {
                        let (service, file) = (service.clone(), file.clone());
                        let _ = tokio::task::spawn_blocking(move || service.reload_one(&file)).await;
                    }
                }
            }
        });
    }

    /// How often an enclave was started in another one's place, and how many files were not served.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.restarts.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }

    /// Hardware or emulated? `None` while there is no enclave.
    pub fn platform(&self) -> Option<enclos_host::Kind> {
        lock(&self.enclave).running.as_ref().map(|r| r.enclave.platform())
    }

    /// Where the enclave lies in the memory of this process: address and length in bytes. `None` while there is no enclave.
    pub fn memory(&self) -> Option<(u64, u64)> {
        let slot = lock(&self.enclave);
        let enclave = slot.running.as_ref()?.enclave.initialized();
        Some((enclave.base(), enclave.size()))
    }

    /// Where the enclave serves attested TLS, if it does.
    pub fn attested_tls(&self) -> Option<String> {
        lock(&self.enclave).running.as_ref()?.attested_tls.clone()
    }

    /// Lets the enclave end in good order.
    pub(crate) fn end(&self) {
        let running = lock(&self.enclave).running.take();
        if let Some(running) = running {
            // How it ends makes no difference any more.
            let _ = running.enclave.shutdown(FAREWELL);
        }
    }

    fn serve(&self, name: &str, bytes: Vec<u8>) -> Answer<Loaded> {
        let loaded = match self.ask(|client| self.load(client, name, &bytes))? {
            Ok(loaded) => loaded,
            Err(e) => return Ok(Err(e)),
        };
        let mut served = lock(&self.served);
        served.retain(|s| s.name != name || s.sha256 != loaded.sha256);
        let (sha256, file) = (loaded.sha256, Sha256::digest(&bytes).into());
        served.push(Served { name: name.to_owned(), sha256, file, bytes: Arc::new(bytes) });
        drop(served);
        (self.events)(&Event::Loaded { name: name.to_owned(), loaded: loaded.clone() });
        Ok(Ok(loaded))
    }

    /// Loads a file; if it is encrypted, with a key that the broker releases to the enclave.
    fn load(&self, client: &Client, name: &str, bytes: &[u8]) -> Result<Loaded, CallError<ServiceError>> {
        if !jwe::is_jwe(bytes) {
            return client.load(name, bytes);
        }
        let refused = |reason: String| CallError::Method(ServiceError::Encrypted { reason });
        let broker = self.key_broker.as_ref().ok_or_else(|| {
            refused(
                "no key broker is known, who would release its key to the enclave (--key-broker URL)".into(),
            )
        })?;
        let key_id = jwe::key_id(bytes).map_err(|e| refused(e.to_string()))?;
        let mut failure = None;
        let release = broker.release(&key_id, |nonce| {
            client.key_request(&key_id, nonce).map_err(|e| failure.insert(e).to_string())
        });
        match (release, failure) {
            (Ok(release), _) => client.load_encrypted(name, bytes, &release),
            // What became of the enclave is for whoever asked it.
            (Err(_), Some(failure)) => Err(failure),
            (Err(e), None) => Err(refused(e.to_string())),
        }
    }

    fn is_newest(&self, name: &str, bytes: &[u8]) -> bool {
        let newest = lock(&self.served).iter().rfind(|s| s.name == name).map(|s| s.file);
        newest == Some(Sha256::digest(bytes).into())
    }

    fn forget_older(&self, name: &str) {
        let of_name: Vec<_> = lock(&self.served).iter().filter(|s| s.name == name).cloned().collect();
        let surplus = of_name.len().saturating_sub(self.versions);
        for old in &of_name[..surplus] {
            lock(&self.served).retain(|s| s.name != name || s.sha256 != old.sha256);
            // If the enclave has ended meanwhile, the next one never gets it.
            if let Ok(Ok(())) = self.ask(|client| client.unload(name, old.sha256)) {
                (self.events)(&Event::Unloaded { name: name.to_owned(), sha256: old.sha256 });
            }
        }
    }

    /// One call into the enclave; an enclave that has ended makes room for another.
    fn ask<T>(&self, question: impl Fn(&Client) -> Result<T, CallError<ServiceError>>) -> Answer<T> {
        let running = self.running()?;
        let failure = match question(&running.client) {
            Ok(answer) => return Ok(Ok(answer)),
            Err(CallError::Method(e)) => return Ok(Err(e)),
            Err(CallError::Failed(failure)) => failure,
        };
        Err(match failure {
            Failure::Ended(end) => {
                self.replace(&running, end);
                Unavailable::Ended
            }
            Failure::DeadlineExceeded { limit } => {
                // The thread, and what it had locked, is lost for good.
                let what = format!("a call took longer than {} s", limit.as_secs_f32());
                self.replace(&running, End::Broken { what });
                Unavailable::TimedOut { limit }
            }
            Failure::Busy { .. } => Unavailable::Busy,
            failure => Unavailable::Failed { reason: failure.to_string() },
        })
    }

    /// The enclave; started if there is none.
    fn running(&self) -> Result<Arc<Running>, Unavailable> {
        let mut slot = lock(&self.enclave);
        if let Some(running) = &slot.running {
            return Ok(running.clone());
        }
        self.fill(&mut slot)
    }

    /// Starts another enclave in this one's place, unless somebody did already.
    fn replace(&self, ended: &Arc<Running>, end: End) {
        let mut slot = lock(&self.enclave);
        if !slot.running.as_ref().is_some_and(|r| Arc::ptr_eq(r, ended)) {
            return;
        }
        slot.running = None;
        // It may be running still; and its sockets close when it is gone, on which their clients wait.
        let _ = ended.enclave.shutdown(Duration::ZERO);
        (self.events)(&Event::Ended { end });
        // If it fails, the next request tries again, and says why not.
        let _ = self.fill(&mut slot);
    }

    fn fill(&self, slot: &mut Slot) -> Result<Arc<Running>, Unavailable> {
        let is_first = slot.started.is_none();
        if let Some(started) = slot.started {
            std::thread::sleep(BETWEEN_STARTS.saturating_sub(started.elapsed()));
        }
        slot.started = Some(Instant::now());
        match self.start_enclave() {
            Ok(running) => {
                let running = Arc::new(running);
                slot.running = Some(running.clone());
                self.watch_end(running.clone());
                if !is_first {
                    self.restarts.fetch_add(1, Ordering::Relaxed);
                    (self.events)(&Event::Restarted);
                }
                Ok(running)
            }
            Err(e) => {
                let reason = e.to_string();
                (self.events)(&Event::NotStarted { reason: reason.clone() });
                Err(Unavailable::NotStarted { reason })
            }
        }
    }

    /// Notices the end of an enclave that nobody asks anything.
    fn watch_end(&self, running: Arc<Running>) {
        let service = self.this.clone();
        let watching = std::thread::Builder::new().name("enclave end".into());
        let watched = watching.spawn(move || {
            let end = running.enclave.wait().map_or_else(|end| end, |status| End::Exited { status });
            if let Some(service) = service.upgrade() {
                service.replace(&running, end);
            }
        });
        // Without the thread, the next call finds out.
        drop(watched);
    }

    fn start_enclave(&self) -> Result<Running, NotStarted> {
        let enclave = (self.start)()?;
        let client = enclave.connect::<Client>()?.with_deadline(self.call);
        client.configure(self.settings)?;
        let served = lock(&self.served).clone();
        for model in served {
            self.load(&client, &model.name, &model.bytes)?;
        }
        let attested_tls = match &self.attested_tls {
            Some(address) => Some(self.listen(&client, address)?),
            None => None,
        };
        Ok(Running { enclave, client, attested_tls })
    }

    fn listen(&self, client: &Client, address: &str) -> Result<String, CallError<ServiceError>> {
        let mut attempts = 0;
        loop {
            match client.listen(address) {
                // The socket of the enclave before this one closes when its last call has returned.
                Err(CallError::Method(ServiceError::Listen { .. })) if attempts < LISTEN_ATTEMPTS => {
                    attempts += 1
                }
                Err(e) => return Err(e),
                Ok(address) => {
                    (self.events)(&Event::Listening { address: address.clone() });
                    return Ok(address);
                }
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum NotStarted {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Call(#[from] CallError<ServiceError>),
}

fn never(error: CallError) -> CallError<ServiceError> {
    match error {
        CallError::Method(never) => match never {},
        CallError::Failed(failure) => CallError::Failed(failure),
    }
}

/// What a panicking thread left behind is whole: every change under these locks is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
