//! An offer as hosts publish it: JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::{Offer, OfferedModel, version};

/// Where hosts publish it.
pub const OFFER_PATH: &str = "/.well-known/enclos-inference";

/// Why it is no offer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// It is not JSON of an offer's form.
    #[error("it is no offer: {0}")]
    Json(#[from] serde_json::Error),
    /// A field is not what it should be.
    #[error("it is no offer: {field} is not {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

#[derive(Serialize, Deserialize)]
struct Document {
    key_config: String,
    models: Vec<Model>,
    evidence: String,
    not_after: u64,
}

#[derive(Serialize, Deserialize)]
struct Model {
    name: String,
    sha256: String,
}

impl Offer {
    /// `{"key_config": base64, "models": [{"name": …, "sha256": hexadecimal}], "evidence": base64, "not_after": seconds}`
    pub fn to_json(&self) -> String {
        let model = |m: &OfferedModel| Model { name: m.name.clone(), sha256: version(&m.sha256) };
        let document = Document {
            key_config: STANDARD.encode(&self.key_config),
            models: self.models.iter().map(model).collect(),
            evidence: STANDARD.encode(&self.evidence),
            not_after: self.not_after,
        };
        // Text and numbers: this does not fail.
        serde_json::to_string(&document).unwrap_or_default()
    }

    /// Reads what [`Self::to_json`] writes; fields that it does not know are skipped.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_json(json: &[u8]) -> Result<Self, DocumentError> {
        let document: Document = serde_json::from_slice(json)?;
        let base64 = |field, text: &str| {
            let decoded = STANDARD.decode(text);
            decoded.map_err(|_| DocumentError::Field { field, expected: "base64" })
        };
        let model = |model: Model| {
            let sha256 = digest(&model.sha256)
                .ok_or(DocumentError::Field { field: "sha256", expected: "64 hexadecimal digits" })?;
            Ok(OfferedModel { name: model.name, sha256 })
        };
        Ok(Self {
            key_config: base64("key_config", &document.key_config)?,
            models: document.models.into_iter().map(model).collect::<Result<_, DocumentError>>()?,
            evidence: base64("evidence", &document.evidence)?,
            not_after: document.not_after,
        })
    }
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok().map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer {
        let model = |name: &str, byte| OfferedModel { name: name.into(), sha256: [byte; 32] };
        Offer {
            key_config: vec![1, 2, 3],
            models: vec![model("a", 0xab), model("a", 2), model("b", 3)],
            evidence: vec![7; 100],
            not_after: 1_800_000_000,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Offer::from_json(offer().to_json().as_bytes()).unwrap(), offer());
    }

    #[test]
    fn anything_else_is_an_error() {
        let json = offer().to_json();
        for (from, to) in
            [("AQID", "!"), ("abab", "xx"), ("abab", ""), ("key_config", "key"), ("180", "-180")]
        {
            let altered = json.replacen(from, to, 1);
            assert_ne!(altered, json);
            assert!(Offer::from_json(altered.as_bytes()).is_err(), "{from} -> {to}");
        }
        for length in 0..json.len() {
            assert!(Offer::from_json(&json.as_bytes()[..length]).is_err(), "{length} bytes");
        }
    }
}
