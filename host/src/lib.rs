//! The untrusted side: load an image, call it, serve its requests.
//!
//! ```no_run
//! # #[enclos::interface] pub trait Vault { fn count(&self) -> u32; }
//! use enclos_host::Enclave;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let enclave = Enclave::builder("vault.enclave").start()?;
//! let vault = enclave.connect::<VaultClient<_>>()?;
//! println!("{} secrets", vault.count()?);
//! # Ok(()) }
//! ```
//!
//! - [`Enclave`] and [`Builder`]: start, connect, wait, shut down;
//! - [`aesm`]: where quotes come from;
//! - [`EnclaveTransport`] and [`SwitchlessEnclave`]: what generated clients call through.
//!
//! Inside: `load` reads the image, `entry` crosses the boundary and takes stuck threads out, `enclave` says what
//! becomes of each entry, `hostcall` serves what the enclave asks for, `call` and `switchless` bring calls in.
//!
//! # What the host may rely on
//! Nothing an enclave does harms this process: it checks every address and length that comes out. On hardware the
//! enclave could still write anywhere in the process; it is assumed to be the image that was built, not an attacker.
//!
//! # Signals
//! One real-time signal ([`interrupt_signal`]) takes threads out of the enclave when a deadline passes or when it has
//! ended.

pub mod aesm;
mod backtrace;
mod call;
mod captured;
mod clock;
mod debugger;
mod enclave;
mod entry;
mod files;
mod hostcall;
mod load;
mod memory;
mod sockets;
mod statistics;
mod switchless;
mod threads;

pub use self::call::EnclaveTransport;
pub use self::captured::Captured;
pub use self::enclave::{Builder, Enclave, Limits, LogLevel, PlatformChoice, StartError, Statistics};
pub use self::entry::interrupt_signal;
pub use self::hostcall::HostCall;
pub use self::load::{ImageSource, LoadError};
pub use self::statistics::{STATISTICS_VARIABLE, Summary};
pub use self::switchless::SwitchlessEnclave;
pub use enclos::contract::{CallError, ConnectError, End, Failure, Party};
pub use enclos_platform::Kind;
