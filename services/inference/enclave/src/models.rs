//! The models served, by name and version.
//!
//! Where a model's bytes come from is not this module's affair: the host gives them, or they were decrypted inside.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use enclos_inference::{Loaded, MAX_MODELS, MAX_NAME, OfferedModel, QUEUE_DELAY, ServiceError, version};
use enclos_inference_engine::{Batcher, Engine, RunError, Tensor, load};
use sha2::{Digest as _, Sha256};

/// A version of a model.
pub(crate) struct Model {
    pub(crate) name: String,
    /// SHA-256 of the ONNX file.
    sha256: [u8; 32],
    /// The same in hexadecimal digits.
    pub(crate) version: String,
    pub(crate) engine: Box<dyn Engine>,
    /// Why this one.
    pub(crate) reason: String,
    /// What runs requests that come together in one go, or why they are not.
    pub(crate) batching: Result<Batcher, String>,
}

impl Model {
    /// One inference, perhaps together with those of other clients.
    pub(crate) fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, RunError> {
        match &self.batching {
            Ok(batcher) => batcher.run(&*self.engine, inputs),
            Err(_) => self.engine.run(&inputs),
        }
    }
}

/// Whether requests are to be run together, and how.
#[derive(Clone, Copy)]
pub(crate) struct Batching {
    /// Rows at most; 1: not at all.
    pub(crate) max_size: usize,
    /// How long a request waits for others at most.
    pub(crate) max_delay: Duration,
}

impl Default for Batching {
    fn default() -> Self {
        Self { max_size: 1, max_delay: Duration::from_micros(QUEUE_DELAY) }
    }
}

/// Every version served, in the order in which they were loaded.
#[derive(Default)]
pub(crate) struct Models(RwLock<Vec<Arc<Model>>>);

impl Models {
    /// Serves an ONNX file as the newest version of this name. A file that cannot be loaded changes nothing. The host is told why
    /// it is this engine, and whether requests are run together if they are to be; of a `secret` model, without the names of what is
    /// in it.
    pub(crate) fn serve(
        &self,
        name: &str,
        onnx: &[u8],
        secret: bool,
        batching: Batching,
    ) -> Result<Loaded, ServiceError> {
        check_name(name)?;
        let refused = |reason: String| ServiceError::Model { reason };
        let choice = catch_unwind(AssertUnwindSafe(|| load(onnx)))
            .map_err(|_| refused("the engine failed at it".into()))?
            .map_err(|e| refused(e.to_string()))?;
        let is_on = batching.max_size > 1;
        let batcher = match is_on {
            true => {
                catch_unwind(AssertUnwindSafe(|| choice.batcher(onnx, batching.max_size, batching.max_delay)))
                    .unwrap_or_else(|_| Err("the engine failed at made-up rows".into()))
            }
            false => Err("the server does not ask for it".to_owned()),
        };
        let sha256 = Sha256::digest(onnx).into();
        let reason = choice.to_string();
        let mut told = if secret { choice.summary() } else { reason.clone() };
        told += &match &batcher {
            _ if !is_on => String::new(),
            Ok(_) => "; requests are run together".to_owned(),
            Err(_) if secret => "; requests are not run together".to_owned(),
            Err(reason) => format!("; requests are not run together: {reason}"),
        };
        let loaded = Loaded { sha256, engine: choice.engine.name().to_owned(), reason: told };
        let model = Arc::new(Model {
            name: name.to_owned(),
            sha256,
            version: version(&sha256),
            engine: choice.engine,
            reason,
            batching: batcher,
        });
        let mut models = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // The same file again: it becomes the newest.
        let others = |m: &&Arc<Model>| m.name != name || m.sha256 != sha256;
        if models.iter().filter(others).count() >= MAX_MODELS {
            return Err(ServiceError::TooManyModels);
        }
        models.retain(|m| others(&m));
        models.push(model);
        Ok(loaded)
    }

    /// Forgets a version. Who is using it keeps it until done.
    pub(crate) fn unload(&self, name: &str, sha256: &[u8; 32]) -> Result<(), ServiceError> {
        let mut models = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let place = models.iter().position(|m| m.name == name && m.sha256 == *sha256);
        let model = models.remove(place.ok_or(ServiceError::UnknownModel)?);
        drop(models);
        // Freed after the lock: a large one takes its time.
        drop(model);
        Ok(())
    }

    /// This version of a model; without one, the newest.
    pub(crate) fn find(&self, name: &str, version: Option<&str>) -> Option<Arc<Model>> {
        let is_asked = |m: &&Arc<Model>| m.name == name && version.is_none_or(|v| v == m.version);
        self.all().iter().rfind(is_asked).cloned()
    }

    /// Versions of a model, the newest last.
    pub(crate) fn versions(&self, name: &str) -> Vec<String> {
        self.all().iter().filter(|m| m.name == name).map(|m| m.version.clone()).collect()
    }

    /// Every version, as offers name them.
    pub(crate) fn offered(&self) -> Vec<OfferedModel> {
        self.all().iter().map(|m| OfferedModel { name: m.name.clone(), sha256: m.sha256 }).collect()
    }

    fn all(&self) -> RwLockReadGuard<'_, Vec<Arc<Model>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names stand in paths.
fn check_name(name: &str) -> Result<(), ServiceError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_good = name.len() <= MAX_NAME
        && name.starts_with(fits)
        && name.chars().all(|c| fits(c) || c == '.' || c == '-');
    match is_good {
        true => Ok(()),
        false => Err(ServiceError::Name { name: name.chars().take(MAX_NAME).collect() }),
    }
}
