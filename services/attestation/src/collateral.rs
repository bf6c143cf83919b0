//! The collateral of the platforms whose evidence is served: documents, each verified once.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use der::Decode;
use enclos_verifier::{
    Collateral, CollateralKey, CollateralKeyError, Hex, PckCa, Quote, Tee, Time, TrustedCollateral, Verifier,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;
use smol_str::SmolStr;

use crate::{
    claims::{CollateralClaim, sha256_hex},
    engine::CollateralDocument,
};

/// A document is not collateral.
#[derive(Debug, thiserror::Error)]
#[error("{name} is not collateral of an SGX or TDX platform: {reason}")]
pub struct NotCollateral {
    /// Which.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Why there is no collateral for a quote.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// The quote does not say what platform it is of.
    #[error("{0}")]
    Key(#[from] CollateralKeyError),
    /// None for the platform.
    #[error("no collateral for FMSPC {fmspc} ({tee}, {ca:?} CA) is known to this service")]
    Platform {
        /// The platform.
        fmspc: Hex<6>,
        /// Its kind.
        tee: Tee,
        /// Its CA.
        ca: PckCa,
    },
    /// None of the round of reference values asked for.
    #[error("no TCB baseline {asked:?} for this platform; there are {}", .available.join(", "))]
    Baseline {
        /// What the policy asks for.
        asked: String,
        /// What there is.
        available: Vec<String>,
    },
}

/// One piece of collateral.
#[derive(Debug)]
pub struct Entry {
    /// Verified.
    pub trusted: TrustedCollateral,
    /// TCB evaluation data number.
    pub evaluation_number: u32,
    /// When its TCB info was issued.
    pub issued: Time,
    /// The claim about it, for every quote to complete.
    pub(crate) claim: CollateralClaim,
    /// Dates of the newest TCB level of this round.
    pub newest_level: Option<Time>,
}

/// Collateral by platform.
#[derive(Debug, Default)]
pub struct CollateralStore {
    platforms: RwLock<Platforms>,
    /// What certificate chains say of their platform, by the chain. Not that they are to be believed: that is judged
    /// with every quote.
    keys: Mutex<BTreeMap<Vec<u8>, CollateralKey>>,
}

type Platforms = HashMap<CollateralKey, Vec<Arc<Entry>>>;

/// Bound on platforms.
const PLATFORMS: usize = 4096;
/// Bound on documents of one platform: as many rounds of reference values are in use, and again as many that were renewed.
const DOCUMENTS: usize = 16;
/// Bound on remembered chains, so that made-up ones cannot fill the memory.
const REMEMBERED: usize = 1024;

/// What selects a round of reference values.
pub const DEFAULT_BASELINE: &str = "azuredefault";

impl CollateralStore {
    /// Reads and verifies documents.
    ///
    /// # Errors
    /// [`NotCollateral`] naming the document that is not usable.
    pub fn new(documents: &[CollateralDocument], verifier: &Verifier) -> Result<Self, NotCollateral> {
        let store = Self::default();
        store.add(documents, verifier)?;
        Ok(store)
    }

    /// Reads and verifies documents, and adds them to those there are; the oldest of a platform make room.
    ///
    /// # Errors
    /// [`NotCollateral`] naming the document that is not usable, or for which there is no room; then none is added.
    pub fn add(&self, documents: &[CollateralDocument], verifier: &Verifier) -> Result<(), NotCollateral> {
        let mut read = Vec::new();
        for CollateralDocument { name, text } in documents {
            let (key, entry) = self::read(text.as_bytes(), verifier)
                .map_err(|reason| NotCollateral { name: name.clone(), reason })?;
            read.push((name, key, Arc::new(entry)));
        }
        let mut platforms = self.platforms.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, ..)) = read.iter().find(|(_, key, _)| !platforms.contains_key(key))
            && platforms.len() + read.len() > PLATFORMS
        {
            let reason = format!("there is collateral of {} platforms already", platforms.len());
            return Err(NotCollateral { name: (*name).clone(), reason });
        }
        for (_, key, entry) in read {
            let entries = platforms.entry(key).or_default();
            entries.push(entry);
            entries.sort_by_key(|entry| (entry.evaluation_number, entry.issued));
            if entries.len() > DOCUMENTS {
                entries.remove(0);
            }
        }
        Ok(())
    }

    /// How many platforms there is collateral for.
    #[must_use]
    pub fn platforms(&self) -> usize {
        self.read().len()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Platforms> {
        self.platforms.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The collateral for a quote: of the round asked for, and of those the newest in force at `time`.
    ///
    /// # Errors
    /// [`Missing`] when there is none.
    pub fn of(&self, quote: &Quote<'_>, time: Time, baseline: &str) -> Result<Arc<Entry>, Missing> {
        let key = self.key(quote)?;
        let platforms = self.read();
        let entries =
            platforms.get(&key).ok_or(Missing::Platform { fmspc: key.fmspc, tee: key.tee, ca: key.ca })?;
        let in_force = |entry: &Entry| {
            entry.issued <= time && entry.trusted.valid_until().is_some_and(|until| time <= until)
        };
        let is_wanted = |entry: &Entry| match baseline {
            DEFAULT_BASELINE => true,
            number => entry.evaluation_number.to_string() == number,
        };
        // Out of force is better than none: the appraisal then says what is out of date.
        let wanted = entries.iter().filter(|entry| is_wanted(entry));
        wanted
            .max_by_key(|entry| (in_force(entry), entry.evaluation_number, entry.issued))
            .cloned()
            .ok_or_else(|| {
                let mut available: Vec<_> =
                    entries.iter().map(|entry| entry.evaluation_number.to_string()).collect();
                available.dedup();
                available.push(DEFAULT_BASELINE.into());
                Missing::Baseline { asked: baseline.chars().take(40).collect(), available }
            })
    }

    fn key(&self, quote: &Quote<'_>) -> Result<CollateralKey, CollateralKeyError> {
        let Some(chain) = quote.certification.pck_chain() else { return CollateralKey::of(quote) };
        let keys = || self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = keys().get(chain) {
            // The chain is the same for an SGX and a TDX quote of one platform.
            return Ok(CollateralKey { tee: quote.tee, ..*key });
        }
        let key = CollateralKey::of(quote)?;
        let mut keys = keys();
        if keys.len() >= REMEMBERED {
            keys.clear();
        }
        keys.insert(chain.to_owned(), key);
        Ok(key)
    }

    /// The rounds of reference values there are for a kind of environment: number and newest level, newest last.
    #[must_use]
    pub fn baselines(&self, tee: Tee) -> Vec<(u32, Option<Time>)> {
        let platforms = self.read();
        let mut rounds: Vec<_> = platforms
            .iter()
            .filter(|(key, _)| key.tee == tee)
            .flat_map(|(_, entries)| entries)
            .map(|entry| (entry.evaluation_number, entry.newest_level))
            .collect();
        rounds.sort();
        rounds.dedup_by_key(|(number, _)| *number);
        rounds
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TcbInfo {
    #[serde(default)]
    id: Option<String>,
    fmspc: Hex<6>,
    issue_date: Time,
    #[serde(default)]
    tcb_evaluation_data_number: u32,
    #[serde(default)]
    tcb_levels: Vec<TcbLevel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TcbLevel {
    #[serde(default)]
    tcb_date: Option<Time>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Wrapped {
        #[serde(rename = "tcbInfo")]
        tcb_info: TcbInfo,
    },
    Plain(TcbInfo),
}

fn read(bytes: &[u8], verifier: &Verifier) -> Result<(CollateralKey, Entry), String> {
    let collateral = Collateral::from_json(bytes).map_err(|error| error.to_string())?;
    let (Document::Wrapped { tcb_info: info } | Document::Plain(info)) =
        serde_json::from_str(&collateral.tcb_info).map_err(|error| format!("its TCB info: {error}"))?;
    let tee = match info.id.as_deref() {
        // Version 2 is of SGX only and does not say so.
        None | Some("SGX") => Tee::Sgx,
        Some("TDX") => Tee::Tdx,
        Some(other) => return Err(format!("its TCB info is of {other:?}")),
    };
    let issuer = CertificateDer::from_pem_slice(collateral.pck_crl_issuer_chain.as_bytes())
        .map_err(|error| format!("the issuer of its PCK CRL: {error}"))?;
    let issuer = x509_cert::Certificate::from_der(&issuer)
        .map_err(|error| format!("the issuer of its PCK CRL: {error}"))?;
    let name = issuer.tbs_certificate().subject().to_string();
    let ca = if name.contains("Platform") {
        PckCa::Platform
    } else if name.contains("Processor") {
        PckCa::Processor
    } else {
        return Err(format!("the issuer of its PCK CRL is {name:?}, neither a Platform nor a Processor CA"));
    };
    let root_crl = sha256_hex(&collateral.root_ca_crl);
    let claim = CollateralClaim {
        qeidcertshash: sha256_hex(collateral.qe_identity_issuer_chain.as_bytes()),
        qeidcrlhash: root_crl.clone(),
        qeidhash: sha256_hex(collateral.qe_identity.as_bytes()),
        quotehash: SmolStr::default(),
        tcbinfocertshash: sha256_hex(collateral.tcb_info_issuer_chain.as_bytes()),
        tcbinfocrlhash: root_crl,
        tcbinfohash: sha256_hex(collateral.tcb_info.as_bytes()),
    };
    let entry = Entry {
        trusted: verifier.trust(&collateral),
        evaluation_number: info.tcb_evaluation_data_number,
        issued: info.issue_date,
        claim,
        newest_level: info.tcb_levels.iter().filter_map(|level| level.tcb_date).max(),
    };
    Ok((CollateralKey { tee, fmspc: info.fmspc, ca }, entry))
}
