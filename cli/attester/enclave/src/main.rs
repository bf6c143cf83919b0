//! An enclave that attests to whatever report data it is given: its evidence says what the machine is, and nothing of
//! what its caller is.
#![forbid(unsafe_code)]

use enclos::quoting::{Attester, AttesterServer, NoQuote, REPORT_DATA};
use enclos_enclave::{ServeError, attest, serve};

struct Anything;

impl Attester for Anything {
    fn evidence(&self, report_data: &[u8; REPORT_DATA]) -> Result<Vec<u8>, NoQuote> {
        attest(report_data).map(|e| e.into_quote()).map_err(|e| NoQuote { reason: e.to_string() })
    }
}

fn main() -> Result<(), ServeError> {
    serve(AttesterServer::new(Anything))
}
