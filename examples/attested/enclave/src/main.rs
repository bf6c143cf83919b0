//! Dice inside an enclave: what they say is bound to the code that says it.
#![forbid(unsafe_code)]

use dice::{Dice, DiceError, DiceServer, MAX_NONCE, Roll};
use enclos_enclave::{ServeError, attest, random, serve};
use sha2::{Digest as _, Sha256};

struct Fair;

impl Dice for Fair {
    fn roll(&self, nonce: &str) -> Result<Roll, DiceError> {
        let digits = nonce.len();
        if digits == 0 || digits > 2 * MAX_NONCE || !nonce.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(DiceError::Nonce);
        }
        let statement = format!("{{\"nonce\":\"{nonce}\",\"roll\":{}}}", value()?);
        let mut report_data = [0; 64];
        report_data[..32].copy_from_slice(&Sha256::digest(&statement));
        let evidence = attest(&report_data).map_err(no_evidence)?.into_quote();
        Ok(Roll { statement, evidence })
    }
}

/// 1 to 6, each as likely: from the CPU's random numbers, of which the host sees and chooses none.
fn value() -> Result<u8, DiceError> {
    loop {
        let mut byte = [0];
        random(&mut byte).map_err(no_evidence)?;
        // 252 is the largest multiple of 6 that a byte can hold.
        if byte[0] < 252 {
            return Ok(byte[0] % 6 + 1);
        }
    }
}

fn no_evidence(e: impl std::fmt::Display) -> DiceError {
    DiceError::Evidence { reason: e.to_string() }
}

fn main() -> Result<(), ServeError> {
    serve(DiceServer::new(Fair))
}
