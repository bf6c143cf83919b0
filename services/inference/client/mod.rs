//! The client: verifies what is offered, then encrypts. There is no way to encrypt for what was not accepted.

#[cfg(feature = "attested-tls")]
pub mod attested_tls;

use bhttp::{Message, Mode};
use enclos_verifier::{
    AnyCollateral, Bytes, Collateral, CollateralMismatch, Evidence, Policy, PolicyError, Time, Verdict,
    appraise,
};
use ohttp::{ClientRequest, ClientResponse};

use crate::{Offer, OfferedModel, SMALLEST_BUCKET, padded, report_data};

/// Why a client does not send, or has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server has another model than the client wants.
    #[error("the server does not have the model {wanted}; it has {}", .offered.iter().map(|m| format!("{m:?}")).collect::<Vec<_>>().join(", "))]
    OtherModel {
        /// Name or hash.
        wanted: String,
        /// What there is.
        offered: Vec<OfferedModel>,
    },
    /// The policy demands report data itself; here they are given by what is offered.
    #[error("the policy demands report data itself: leave that to the client")]
    ReportData,
    /// The policy cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The collateral is not for this evidence.
    #[error(transparent)]
    Mismatch(#[from] CollateralMismatch),
    /// The evidence is refused.
    #[error("the server is refused: {}", .0.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Box<Verdict>),
    /// The key configuration is malformed, or the response is not this request's.
    #[error("the encapsulation is not valid: {0}")]
    Encapsulation(#[from] ohttp::Error),
    /// What was decrypted is no binary HTTP.
    #[error("the message inside is not valid: {0}")]
    Message(#[from] bhttp::Error),
    /// What was decrypted is no response.
    #[error("the message inside is no response")]
    NoResponse,
}

/// An accepted server.
#[derive(Debug)]
pub struct Verified {
    key_config: Vec<u8>,
    models: Vec<OfferedModel>,
    not_after: u64,
    verdict: Verdict,
}

impl Verified {
    /// Judges an offer: its evidence by the policy, and that it vouches for this key and these models. Emulated platforms are
    /// refused unless the policy names their root.
    ///
    /// # Errors
    /// When anything of it is not accepted; [`ClientError::Refused`] has the reasons.
    pub fn verify(
        offer: &Offer,
        policy: &Policy,
        collateral: &Collateral,
        time: Time,
    ) -> Result<Self, ClientError> {
        if policy.report_data.is_some() || policy.report_data_prefix.is_some() {
            return Err(ClientError::ReportData);
        }
        let bound = Bytes(report_data(&offer.key_config, &offer.models).to_vec());
        let policy = Policy { report_data_prefix: Some(bound), ..policy.clone() }.checked()?;
        let collateral = AnyCollateral::Dcap(Box::new(collateral.clone()));
        let verdict = appraise(Evidence::detect(&offer.evidence), &collateral, time, &policy)?;
        if !verdict.accepted {
            return Err(ClientError::Refused(Box::new(verdict)));
        }
        let Offer { key_config, models, not_after, evidence: _ } = offer.clone();
        Ok(Self { key_config, models, not_after, verdict })
    }

    /// Why the server was accepted, and whether it is emulated.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// The models that the evidence vouches for; of a name, the newest last.
    pub fn models(&self) -> &[OfferedModel] {
        &self.models
    }

    /// The model with this hash, wherever it is served; by name, its newest version; the only one, if nothing is given.
    ///
    /// # Errors
    /// When there is none, or several where nothing is given.
    pub fn model(&self, name: Option<&str>, sha256: Option<&[u8; 32]>) -> Result<&OfferedModel, ClientError> {
        let is_wanted = |m: &&OfferedModel| {
            name.is_none_or(|name| name == m.name) && sha256.is_none_or(|sha256| *sha256 == m.sha256)
        };
        let found = self.models.iter().rfind(is_wanted);
        let is_clear = |m: &&OfferedModel| {
            name.is_some() || sha256.is_some() || self.models.iter().all(|other| other.name == m.name)
        };
        found.filter(is_clear).ok_or_else(|| {
            let hash = sha256.map(crate::version);
            let wanted = [name.map(str::to_owned), hash].into_iter().flatten().collect::<Vec<_>>().join("@");
            let wanted = if wanted.is_empty() { "that would be the only one".to_owned() } else { wanted };
            ClientError::OtherModel { wanted, offered: self.models.clone() }
        })
    }

    /// When to ask for another offer, seconds since 1970; an allegation.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// Encrypts one request, padded ([`padded`]).
    ///
    /// # Errors
    /// When the key configuration has nothing that this client can use.
    pub fn seal(&self, method: &str, path: &str, json: Vec<u8>) -> Result<(Vec<u8>, Reply), ClientError> {
        let of = |text: &str| text.as_bytes().to_vec();
        let mut message = Message::request(of(method), of("https"), of("enclave"), of(path));
        if !json.is_empty() {
            message.put_header("content-type", "application/json");
            message.write_content(json);
        }
        let mut plain = Vec::new();
        message.write_bhttp(Mode::KnownLength, &mut plain)?;
        let plain = padded(plain, SMALLEST_BUCKET);
        let (sealed, response) = ClientRequest::from_encoded_config(&self.key_config)?.encapsulate(&plain)?;
        Ok((sealed, Reply(response)))
    }
}

/// The only key to one reply.
pub struct Reply(ClientResponse);

impl Reply {
    /// Decrypts the reply: HTTP status and body.
    ///
    /// # Errors
    /// When it was altered, or answers another request.
    pub fn open(self, sealed: &[u8]) -> Result<(u16, Vec<u8>), ClientError> {
        let plain = self.0.decapsulate(sealed)?;
        let message = Message::read_bhttp(&mut std::io::Cursor::new(plain))?;
        let status = message.control().status().ok_or(ClientError::NoResponse)?;
        Ok((status.code(), message.content().to_vec()))
    }
}
