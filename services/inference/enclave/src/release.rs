//! Encrypted models: asks the owner's key broker for their keys, and decrypts them.
//!
//! The host relays, and everything from it is an allegation. A key pair is for one request: what is released for it opens once,
//! here and nowhere else. The content key is forgotten as soon as the model is decrypted, so that every load is another release
//! in the broker's record.

use std::collections::VecDeque;
use std::sync::Mutex;

use enclos_enclave::attest;
use enclos_inference::ServiceError;
use enclos_key_broker::release::{KeyRelease, KeyRequest, MAX_NONCE, Pending};
use enclos_key_broker::{check_key_id, jwe};
use zeroize::Zeroizing;

use crate::lock;

/// Requests that wait for a release; the oldest makes room for another.
const PENDING: usize = 16;
/// Longest release in bytes.
const MAX_RELEASE: usize = 4096;

/// Requests that were made and not answered yet.
#[derive(Default)]
pub(crate) struct Releases(Mutex<VecDeque<Pending>>);

impl Releases {
    /// A request for a key, with evidence that this enclave makes it.
    pub(crate) fn request(&self, key_id: &str, nonce: &[u8]) -> Result<Vec<u8>, ServiceError> {
        check_key_id(key_id).map_err(refused)?;
        if nonce.is_empty() || nonce.len() > MAX_NONCE {
            return Err(refused(format!(
                "the broker's nonce has {} bytes, not 1 to {MAX_NONCE}",
                nonce.len()
            )));
        }
        let pending = Pending::new(key_id, nonce);
        let evidence = attest(pending.report_data());
        let evidence = evidence.map_err(|e| ServiceError::Evidence { reason: e.to_string() })?.into_quote();
        let public_key = pending.public_key().to_vec();
        let request = KeyRequest { nonce: nonce.to_vec(), public_key, evidence, collateral: None };
        let request = serde_json::to_vec(&request).map_err(refused)?;
        let mut all = lock(&self.0);
        if all.len() >= PENDING {
            all.pop_front();
        }
        all.push_back(pending);
        Ok(request)
    }

    /// Decrypts a model with what the broker released for one of the requests.
    pub(crate) fn decrypt(&self, jwe: &[u8], release: &[u8]) -> Result<Zeroizing<Vec<u8>>, ServiceError> {
        if release.len() > MAX_RELEASE {
            return Err(refused(format!("a release has at most {MAX_RELEASE} bytes")));
        }
        let release: KeyRelease = serde_json::from_slice(release)
            .map_err(|e| refused(format!("what the broker answered is no release: {e}")))?;
        let mut all = lock(&self.0);
        let place = all.iter().position(|pending| pending.public_key() == release.public_key);
        let place = place.ok_or_else(|| {
            refused("the release is for no request of this enclave's: ask the broker again")
        })?;
        let key = all[place].open(&release).map_err(refused)?;
        let pending = all.remove(place).ok_or_else(|| refused("the request is gone"))?;
        drop(all);
        jwe::decrypt(jwe, pending.key_id(), &key).map_err(refused)
    }
}

fn refused(reason: impl ToString) -> ServiceError {
    ServiceError::Encrypted { reason: reason.to_string() }
}
