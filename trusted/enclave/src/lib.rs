//! What an enclave application links: serve contracts, call host services, seal, report.
//!
//! ```no_run
//! # #[enclos::interface] pub trait Vault { fn count(&self) -> u32; }
//! struct Secrets;
//!
//! impl Vault for Secrets {
//!     fn count(&self) -> u32 {
//!         0
//!     }
//! }
//!
//! fn main() -> Result<(), enclos_enclave::ServeError> {
//!     enclos_enclave::serve(VaultServer::new(Secrets))
//! }
//! ```
//!
//! Everything else is ordinary Rust: `std` works, its randomness is the CPU's, and `getrandom`, `rand` and the like
//! work with it.
//!
//! # What may be believed
//! - Arguments of calls come from the host. They are copied in once and well-formed, and that is all.
//! - [`time`] is the host's word, except that it does not run backwards. Log records and results of
//!   host services are the host's to drop, change or invent.
//! - What [`unseal`] returns was sealed by an enclave that the policy admits, on this machine. It may be old: a host
//!   can bring back any blob sealed before. So can it all sealed files together: [`sealed_state`] is for those who remember.
//! - [`attest`] returns a quote of this enclave's own REPORT. Whether its signature is worth anything, only a relying
//!   party can tell.
//! - [`is_emulated_alleged`] is for display. Only a relying party can tell, by a quote.
//!
//! # Unsafe code
//! All of it is in the module `runtime` (the calls of the runtime's table and copies from and to untrusted memory) and
//! in the module `switchless` (the shared ring).

mod attest;
mod host;
mod identity;
mod runtime;
mod seal;
mod serve;
mod switchless;

pub use self::attest::{AttestError, Evidence, attest};
pub use self::host::{HostTransport, host};
pub use self::identity::{Identity, identity, report};
#[cfg(feature = "log")]
pub use self::runtime::init_log;
pub use self::runtime::{
    LogLevel, NotInEnclave, Untrusted, UntrustedError, is_emulated_alleged, log, manifest, random, time,
};
pub use self::seal::{Policy, SealError, seal, sealed_state, unseal};
pub use self::serve::{ServeError, Server, serve};
pub use enclos::abi::SealedState;
pub use sgx_isa::{Report, Targetinfo};
