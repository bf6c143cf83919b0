//! Evidence about this enclave, for relying parties elsewhere.
//!
//! The quote comes through the host. Before it is handed out, it is checked to be one of this enclave's own REPORT, as
//! the CPU made it; the signature in it is for relying parties to verify.

use enclos::contract::{CallError, ConnectError, Failure};
use enclos::quoting::{NoQuote, QuotingClient, REPORT, REPORT_BODY, REPORT_DATA};
use sgx_isa::Targetinfo;

use crate::host::{HostTransport, host};
use crate::identity::report;
use crate::runtime::NotInEnclave;

/// Evidence that this enclave runs, and said 64 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    quote: Vec<u8>,
}

impl Evidence {
    /// The SGX quote (DCAP). Its REPORT is this enclave's; its signature has not been verified.
    #[must_use]
    pub fn quote(&self) -> &[u8] {
        &self.quote
    }

    /// The SGX quote.
    #[must_use]
    pub fn into_quote(self) -> Vec<u8> {
        self.quote
    }
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttestError {
    /// There is no enclave to attest.
    #[error(transparent)]
    NotInEnclave(#[from] NotInEnclave),
    /// The manifest does not list `Quoting`, or the host does not serve it.
    #[error("this enclave cannot ask for quotes: {0}")]
    NotServed(#[from] ConnectError),
    /// The host has no quote to give, and says why.
    #[error("the host gives no quote: {reason}")]
    Refused {
        /// The host's words.
        reason: String,
    },
    /// The host did not answer.
    #[error("asking the host for a quote failed: {0}")]
    Failed(Failure),
    /// What the host gave is not a quote of this enclave's REPORT.
    #[error(
        "the host's quote is not of this enclave's REPORT ({what}): the host or its quoting service is broken, or \
         another enclave's quote was slipped in"
    )]
    Foreign {
        /// What is wrong with it.
        what: &'static str,
    },
}

impl From<CallError<NoQuote>> for AttestError {
    fn from(error: CallError<NoQuote>) -> Self {
        match error {
            CallError::Method(NoQuote { reason }) => Self::Refused { reason },
            CallError::Failed(failure) => Self::Failed(failure),
        }
    }
}

/// Evidence that this enclave, on this machine, vouches for `report_data`: usually a nonce of the relying party, the hash
/// of a key that never leaves the enclave, or the hash of both.
///
/// The manifest must list the host service `Quoting`. The host may keep the quote, show it to others, and give none.
///
/// # Errors
/// [`AttestError`] when there is no quote, or the one that the host gives is not of this enclave and this report data.
pub fn attest(report_data: &[u8; REPORT_DATA]) -> Result<Evidence, AttestError> {
    let quoting = host::<QuotingClient<HostTransport>>()?;
    // Whoever the host names as target learns only what the quote is to tell anyway.
    let size = |what| AttestError::Foreign { what };
    let target =
        Targetinfo::try_copy_from(&quoting.target_info()?).ok_or(size("its TARGETINFO has another size"))?;
    let own = report(&target, report_data)?;
    let own: &[u8; REPORT] = own.as_ref().try_into().map_err(|_| size("REPORTs have another size"))?;
    let quote = quoting.quote(own)?;
    is_of(&quote, &own[..REPORT_BODY]).map_err(|what| AttestError::Foreign { what })?;
    Ok(Evidence { quote })
}

/// Is it a quote of an SGX enclave with exactly this REPORT body? Layout: "SGX ECDSA QuoteGenReference", appendix A, and
/// for version 5 "Intel TDX DCAP Quoting Library API", appendix A.
fn is_of(quote: &[u8], body: &[u8]) -> Result<(), &'static str> {
    const HEADER: usize = 48;
    /// Version 5: type 1 (SGX enclave) and size of the body.
    const SGX_BODY: [u8; 6] = [1, 0, 0x80, 1, 0, 0];
    let (header, rest) = quote.split_at_checked(HEADER).ok_or("it is shorter than a header")?;
    let tee_type = &header[4..8];
    let carried = match header[..2] {
        [3, 0] => rest,
        [4, 0] if tee_type == [0; 4] => rest,
        [5, 0] if tee_type == [0; 4] => {
            rest.strip_prefix(&SGX_BODY).ok_or("its body is not an enclave's REPORT")?
        }
        [4 | 5, 0] => return Err("it is not of an SGX enclave"),
        _ => return Err("its version is none of 3, 4 and 5"),
    };
    match carried.get(..body.len()) {
        None => Err("it ends within its body"),
        Some(carried) if carried == body => Ok(()),
        Some(_) => Err("identity or report data differ"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quote(header: &[u8], descriptor: &[u8], body: &[u8]) -> Vec<u8> {
        let mut quote = header.to_vec();
        quote.resize(48, 0);
        [&quote, descriptor, body, &[9; 700]].concat()
    }

    #[test]
    fn quotes_of_this_report_pass() {
        let body: Vec<u8> = (0..REPORT_BODY).map(|i| i as u8).collect();
        for (version, descriptor) in [(3, &[][..]), (4, &[]), (5, &[1, 0, 0x80, 1, 0, 0])] {
            assert_eq!(is_of(&quote(&[version, 0, 2, 0], descriptor, &body), &body), Ok(()));
        }
    }

    #[test]
    fn everything_else_does_not() {
        let body = [7; REPORT_BODY];
        let good = quote(&[3, 0, 2, 0], &[], &body);
        for at in 48..48 + REPORT_BODY {
            let mut altered = good.clone();
            altered[at] ^= 1;
            assert!(is_of(&altered, &body).is_err(), "byte {at}");
        }
        for len in 0..48 + REPORT_BODY {
            assert!(is_of(&good[..len], &body).is_err(), "{len} bytes");
        }
        for header in [&[2, 0][..], &[6, 0], &[3, 1], &[4, 0, 2, 0, 0x81], &[5, 0, 2, 0, 0x81]] {
            assert!(is_of(&quote(header, &[], &body), &body).is_err(), "{header:?}");
        }
        let tdx_body = [2, 0, 0x48, 2, 0, 0];
        assert!(is_of(&quote(&[5, 0, 2, 0], &tdx_body, &body), &body).is_err());
    }
}
