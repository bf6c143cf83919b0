//! What crosses the boundary of the attested example: rolls of dice that come with evidence of who rolled them.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Longest nonce in bytes.
pub const MAX_NONCE: usize = 64;

/// Dice whose rolls others can believe.
#[enclos::interface]
pub trait Dice {
    /// A roll for whoever sent the nonce: hexadecimal digits, so that it cannot be mistaken for part of a statement.
    fn roll(&self, nonce: &str) -> Result<Roll, DiceError>;
}

/// A roll, and why to believe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roll {
    /// What the enclave says: `{"nonce":"…","roll":4}`.
    pub statement: String,
    /// A quote of the enclave. Its report data begin with the SHA-256 of the statement.
    pub evidence: Vec<u8>,
}

/// Why there is no roll.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum DiceError {
    /// The nonce is none.
    #[error("the nonce must be 1 to {MAX_NONCE} bytes in hexadecimal digits")]
    Nonce,
    /// The enclave cannot attest.
    #[error("no evidence: {reason}")]
    Evidence {
        /// Cause and cure.
        reason: String,
    },
}
