//! Where the broker gets collateral: what it was given, a provisioning service, or the emulated platform.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use enclos_attested_tls::{CachedCollateral, CollateralSource, CollateralUnavailable};
use enclos_verifier::{Collateral, CollateralKey, Hex, PckCa, Policy, Quote, Tee, Time};
use percent_encoding::percent_decode_str;

/// Longest document of a provisioning service, in bytes.
const LONGEST: u64 = 4 << 20;
/// How long a provisioning service may take for a document.
const PATIENCE: Duration = Duration::from_secs(10);
/// Collateral is good for thirty days, and asked for again after a minute: revocations and newer TCB levels count soon. While the
/// service does not answer, what is kept is used.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 24 * 3600);

/// All there are, in the order in which they are asked.
#[derive(Debug, Default)]
pub struct Sources {
    /// Of an emulated platform, and its root: asked only for keys whose policy names that root.
    pub emulated: Option<(Hex<32>, Arc<dyn CollateralSource>)>,
    /// Others.
    pub others: Vec<Arc<dyn CollateralSource>>,
}

impl Sources {
    /// The first collateral there is for a quote.
    ///
    /// # Errors
    /// Why each source has none.
    pub(crate) fn collateral(
        &self,
        quote: &Quote<'_>,
        policy: &Policy,
        time: Time,
    ) -> Result<Arc<Collateral>, Vec<String>> {
        let emulated = self.emulated.iter().filter(|(root, _)| policy.emulated_roots.contains(root));
        let mut reasons = Vec::new();
        for source in emulated.map(|(_, source)| source).chain(&self.others) {
            match source.collateral(quote, time) {
                Ok(collateral) => return Ok(collateral),
                Err(e) => reasons.push(e.reason),
            }
        }
        Err(reasons)
    }
}

/// A provisioning certificate caching service (PCCS), or what answers like one, by the PCS API version 4.
pub struct Pccs {
    base: String,
    agent: ureq::Agent,
}

impl fmt::Debug for Pccs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pccs").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Pccs {
    /// The service at an address such as `https://localhost:8081/sgx/certification/v4/`, with a cache before it.
    pub fn at(url: &str) -> CachedCollateral<Self> {
        let base = url.trim_end_matches('/').trim_end_matches("/sgx/certification/v4").to_owned();
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).max_redirects(0);
        CachedCollateral::new(Self { base, agent: config.build().into() }, RENEW_BEFORE)
    }

    /// A document, and the chain in a header of the answer.
    fn get(&self, path: &str, chain: Option<&str>) -> Result<(Vec<u8>, String), CollateralUnavailable> {
        let url = format!("{}/{path}", self.base);
        let failed = |reason: String| CollateralUnavailable { reason: format!("{url}: {reason}") };
        let mut response = self.agent.get(&url).call().map_err(|e| failed(e.to_string()))?;
        let chain = match chain {
            None => String::new(),
            Some(name) => {
                let value = response.headers().get(name).and_then(|v| v.to_str().ok());
                let value = value.ok_or_else(|| failed(format!("the answer has no header {name}")))?;
                let decoded = percent_decode_str(value).decode_utf8();
                decoded.map_err(|e| failed(format!("header {name}: {e}")))?.into_owned()
            }
        };
        let body = response.body_mut().with_config().limit(LONGEST).read_to_vec();
        Ok((body.map_err(|e| failed(e.to_string()))?, chain))
    }
}

impl CollateralSource for Pccs {
    fn collateral(&self, quote: &Quote<'_>, _: Time) -> Result<Arc<Collateral>, CollateralUnavailable> {
        let CollateralKey { tee, fmspc, ca } = CollateralKey::of(quote)?;
        let tee = match tee {
            Tee::Sgx => "sgx",
            Tee::Tdx => "tdx",
            Tee::SevSnp => {
                return Err(CollateralUnavailable { reason: "a PCCS has none for SEV-SNP".into() });
            }
        };
        let ca = match ca {
            PckCa::Platform => "platform",
            PckCa::Processor => "processor",
        };
        let text = |what: &str, bytes: Vec<u8>| {
            let not_text = |_| CollateralUnavailable { reason: format!("the {what} is not text") };
            String::from_utf8(bytes).map_err(not_text)
        };
        let (tcb, tcb_chain) =
            self.get(&format!("{tee}/certification/v4/tcb?fmspc={fmspc}"), Some("tcb-info-issuer-chain"))?;
        let (qe, qe_chain) = self
            .get(&format!("{tee}/certification/v4/qe/identity"), Some("sgx-enclave-identity-issuer-chain"))?;
        let (pck_crl, pck_crl_chain) = self.get(
            &format!("sgx/certification/v4/pckcrl?ca={ca}&encoding=der"),
            Some("sgx-pck-crl-issuer-chain"),
        )?;
        let (root_crl, _) = self.get("sgx/certification/v4/rootcacrl", None)?;
        // A PCCS answers in hexadecimal digits.
        let root_ca_crl = hex::decode(root_crl.trim_ascii()).unwrap_or(root_crl);
        Ok(Arc::new(Collateral {
            pck_crl_issuer_chain: pck_crl_chain,
            root_ca_crl,
            pck_crl,
            tcb_info_issuer_chain: tcb_chain,
            tcb_info: text("TCB info", tcb)?,
            tcb_info_signature: Vec::new(),
            qe_identity_issuer_chain: qe_chain,
            qe_identity: text("QE identity", qe)?,
            qe_identity_signature: Vec::new(),
            pck_certificate_chain: None,
        }))
    }
}
