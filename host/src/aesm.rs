//! Quotes from AESM, the service that runs Intel's architectural enclaves, over its Unix socket.
//!
//! On hardware that is `aesmd`, as distributions and AKS nodes have it; for the emulated platform `enclos run` and
//! `enclos aesm` answer in the same protocol. So a host takes one way to a quote on both.
//!
//! Protocol: 32-bit length (native byte order), then a protobuf message; field numbers, error codes and the order of
//! requests are those of Intel's `messages.proto`, `aesm_error.h` and "Intel SGX Developer Reference",
//! `sgx_select_att_key_id` to `sgx_get_quote_ex`. What AESM answers is passed on as it is: the enclave checks its quote.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enclos::quoting::{NoQuote, Quoting, REPORT, TARGETINFO};
use enclos_platform::Kind;
use enclos_platform::emulator::machine::MachineConfig;
use prost::Message as _;

use self::messages::{
    GetQuoteExRequest, GetQuoteSizeExRequest, GetSupportedAttKeyIdNumRequest, GetSupportedAttKeyIdsRequest,
    InitQuoteExRequest, Request, Response,
};

/// Where `aesmd` listens.
pub const SYSTEM_SOCKET: &str = "/var/run/aesmd/aesm.socket";
/// Environment variable that names another socket.
pub const SOCKET_VARIABLE: &str = "ENCLOS_AESM";
/// Name of the emulated platform's socket, in its state directory.
pub const EMULATED_SOCKET: &str = "aesm.socket";

/// Bytes of an attestation key's identifier (`sgx_att_key_id_ext_t`).
pub const ATT_KEY_ID: usize = 256;
/// Where the identifier says which algorithm the key is for.
pub const ALGORITHM_AT: usize = 154;
/// ECDSA with P-256 (`SGX_QL_ALG_ECDSA_P256`).
pub const ECDSA_P256: u32 = 2;
/// Longest message in bytes, in both directions.
pub const MAX_MESSAGE: u32 = 1 << 20;

/// AESM may have to ask a provisioning service first.
const PATIENCE: Duration = Duration::from_secs(30);

/// A way to AESM. Each request is a connection of its own, as AESM wants it.
#[derive(Clone, Debug)]
pub struct Aesm {
    socket: PathBuf,
    kind: Kind,
}

impl Aesm {
    /// AESM at this socket, for enclaves on this platform.
    pub fn at(socket: impl Into<PathBuf>, kind: Kind) -> Self {
        Self { socket: socket.into(), kind }
    }

    /// AESM of the platform: at [`SOCKET_VARIABLE`], else where the platform has it. Nothing is opened yet.
    pub fn default_for(kind: Kind) -> Self {
        let named = std::env::var_os(SOCKET_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
        let usual = || match kind {
            Kind::Hardware => PathBuf::from(SYSTEM_SOCKET),
            Kind::Emulated => MachineConfig::state_dir().join(EMULATED_SOCKET),
        };
        Self::at(named.unwrap_or_else(usual), kind)
    }

    /// Sends one request and waits for the answer.
    ///
    /// # Errors
    /// When AESM cannot be reached, or answers nothing that makes sense.
    pub fn request(&self, request: &Request) -> Result<Response, AesmError> {
        let exchange = || {
            let mut socket = UnixStream::connect(&self.socket)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            write_message(&mut socket, &request.encode_to_vec())?;
            read_message(&mut socket)
        };
        let bytes = exchange().map_err(|source| AesmError::Unreachable {
            socket: self.socket.clone(),
            kind: self.kind,
            source,
        })?;
        Response::decode(&*bytes).map_err(|_| AesmError::Malformed { what: "no message of the protocol" })
    }

    /// Identifier of the key that signs quotes with ECDSA.
    fn key_id(&self) -> Result<Vec<u8>, AesmError> {
        let asked = Request {
            get_supported_att_key_id_num: Some(GetSupportedAttKeyIdNumRequest::default()),
            ..Request::default()
        };
        let counted = self.request(&asked)?.get_supported_att_key_id_num.ok_or(MISSING)?;
        checked(counted.error_code)?;
        let count = counted.att_key_id_num.unwrap_or(0).min(MAX_MESSAGE / ATT_KEY_ID as u32);
        let asked = GetSupportedAttKeyIdsRequest { buf_size: count * ATT_KEY_ID as u32, timeout: None };
        let asked = Request { get_supported_att_key_ids: Some(asked), ..Request::default() };
        let listed = self.request(&asked)?.get_supported_att_key_ids.ok_or(MISSING)?;
        checked(listed.error_code)?;
        let ids = listed.att_key_ids.unwrap_or_default();
        let ecdsa = ids.chunks_exact(ATT_KEY_ID).find(|id| algorithm(id) == Some(ECDSA_P256));
        ecdsa.map(<[u8]>::to_vec).ok_or(AesmError::NoEcdsa)
    }

    fn init(&self) -> Result<[u8; TARGETINFO], AesmError> {
        let key = self.key_id()?;
        let init = |buf_size: Option<u64>| {
            let init = InitQuoteExRequest {
                att_key_id: Some(key.clone()),
                b_pub_key_id: buf_size.is_some(),
                buf_size,
                timeout: None,
            };
            let answer = self.request(&Request { init_quote_ex: Some(init), ..Request::default() })?;
            let answer = answer.init_quote_ex.ok_or(MISSING)?;
            checked(answer.error_code)?;
            Ok::<_, AesmError>(answer)
        };
        // The first says how long the key's identifier is, the second makes the key ready.
        let size = init(None)?.pub_key_id_size.unwrap_or(0);
        let target = init(Some(size))?.target_info.unwrap_or_default();
        target.try_into().map_err(|_| AesmError::Malformed { what: "a TARGETINFO of another size" })
    }

    fn sign(&self, report: &[u8; REPORT]) -> Result<Vec<u8>, AesmError> {
        let key = self.key_id()?;
        let size = GetQuoteSizeExRequest { att_key_id: Some(key.clone()), timeout: None };
        let size = self.request(&Request { get_quote_size_ex: Some(size), ..Request::default() })?;
        let size = size.get_quote_size_ex.ok_or(MISSING)?;
        checked(size.error_code)?;
        let quote = GetQuoteExRequest {
            report: report.to_vec(),
            att_key_id: Some(key),
            qe_report_info: None,
            buf_size: size.quote_size.unwrap_or(0),
            timeout: None,
        };
        let quote = self.request(&Request { get_quote_ex: Some(quote), ..Request::default() })?;
        let quote = quote.get_quote_ex.ok_or(MISSING)?;
        checked(quote.error_code)?;
        quote.quote.ok_or(MISSING)
    }
}

impl Quoting for Aesm {
    fn target_info(&self) -> Result<[u8; TARGETINFO], NoQuote> {
        self.init().map_err(no_quote)
    }

    fn quote(&self, report: &[u8; REPORT]) -> Result<Vec<u8>, NoQuote> {
        self.sign(report).map_err(no_quote)
    }
}

/// Why AESM gave no quote.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AesmError {
    /// Nobody answers at the socket.
    #[error("AESM does not answer at {}: {source}; {}", socket.display(), cure(*kind, socket))]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Whose AESM it would be.
        kind: Kind,
        /// What went wrong.
        source: io::Error,
    },
    /// AESM refuses, with an error code of its own.
    #[error("AESM refuses with error {code} ({})", name_of(*code))]
    Refused {
        /// The code, as in `aesm_error.h`.
        code: u32,
    },
    /// AESM has no key for ECDSA.
    #[error(
        "AESM has no ECDSA attestation key: install its quoting plug-in (libsgx-aesm-ecdsa-plugin) and restart it"
    )]
    NoEcdsa,
    /// The answer makes no sense.
    #[error("AESM's answer is not usable: {what}; is it AESM that listens there?")]
    Malformed {
        /// What is wrong with it.
        what: &'static str,
    },
}

const MISSING: AesmError = AesmError::Malformed { what: "it lacks what was asked for" };

fn no_quote(error: AesmError) -> NoQuote {
    NoQuote { reason: error.to_string() }
}

fn cure(kind: Kind, socket: &Path) -> String {
    match kind {
        Kind::Hardware => {
            format!("start it (`systemctl start aesmd`), or name its socket in {SOCKET_VARIABLE}")
        }
        Kind::Emulated => format!(
            "start the program by `enclos run`, which brings the emulated one, or run `enclos aesm --socket {}`",
            socket.display()
        ),
    }
}

/// What the codes mean that quotes can meet with.
fn name_of(code: u32) -> &'static str {
    match code {
        code::PARAMETER => {
            "a parameter is wrong; was the REPORT made on this machine, for its quoting enclave?"
        }
        12 | 13 => "network error: it cannot reach its provisioning service; look at its log",
        24 | 25 => "there is no SGX device",
        29 => "the EPC is full",
        code::SERVICE_UNAVAILABLE => "it does not offer this service",
        31 | 44 => {
            "the provisioning service does not know this platform: register it, or ask your cloud provider"
        }
        code::UNSUPPORTED_KEY => "it has no such attestation key",
        code::INVALID_REPORT => "the REPORT is not of this machine, or not for its quoting enclave",
        _ => "look at its log",
    }
}

fn checked(code: u32) -> Result<(), AesmError> {
    match code {
        code::SUCCESS => Ok(()),
        code => Err(AesmError::Refused { code }),
    }
}

/// The algorithm that an attestation key's identifier is for.
pub fn algorithm(id: &[u8]) -> Option<u32> {
    let bytes = id.get(ALGORITHM_AT..ALGORITHM_AT + 4)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}

/// Writes a message with its length.
///
/// # Errors
/// Those of the stream.
pub fn write_message(to: &mut impl Write, message: &[u8]) -> io::Result<()> {
    let len = u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    to.write_all(&[&len.to_ne_bytes(), message].concat())
}

/// Reads a message with its length.
///
/// # Errors
/// Those of the stream, and for messages longer than [`MAX_MESSAGE`].
pub fn read_message(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_ne_bytes(len);
    if len > MAX_MESSAGE {
        let text = format!("a message of {len} bytes was announced; the most is {MAX_MESSAGE}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut message = Vec::new();
    from.take(len.into()).read_to_end(&mut message)?;
    if message.len() < len as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(message)
}

/// Error codes (`aesm_error.h`).
pub mod code {
    /// Done.
    pub const SUCCESS: u32 = 0;
    /// None of the others.
    pub const UNEXPECTED: u32 = 1;
    /// A parameter is wrong.
    pub const PARAMETER: u32 = 3;
    /// The service is not offered.
    pub const SERVICE_UNAVAILABLE: u32 = 30;
    /// There is no such attestation key.
    pub const UNSUPPORTED_KEY: u32 = 38;
    /// The REPORT does not verify.
    pub const INVALID_REPORT: u32 = 47;
}

/// The messages for quotes. EPID, white lists and launch tokens are left out: unknown fields are skipped, and AESM
/// answers what it does not know with [`UnsupportedRequestResponse`](messages::UnsupportedRequestResponse).
#[allow(missing_docs)]
pub mod messages {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub struct Request {
        #[prost(message, optional, tag = "15")]
        pub init_quote_ex: Option<InitQuoteExRequest>,
        #[prost(message, optional, tag = "16")]
        pub get_quote_size_ex: Option<GetQuoteSizeExRequest>,
        #[prost(message, optional, tag = "17")]
        pub get_quote_ex: Option<GetQuoteExRequest>,
        #[prost(message, optional, tag = "19")]
        pub select_att_key_id: Option<SelectAttKeyIdRequest>,
        #[prost(message, optional, tag = "21")]
        pub get_supported_att_key_id_num: Option<GetSupportedAttKeyIdNumRequest>,
        #[prost(message, optional, tag = "22")]
        pub get_supported_att_key_ids: Option<GetSupportedAttKeyIdsRequest>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct InitQuoteExRequest {
        #[prost(bytes = "vec", optional, tag = "1")]
        pub att_key_id: Option<Vec<u8>>,
        /// Is the public key's identifier wanted (of `buf_size` bytes), or only its size?
        #[prost(bool, required, tag = "3")]
        pub b_pub_key_id: bool,
        #[prost(uint64, optional, tag = "4")]
        pub buf_size: Option<u64>,
        /// Microseconds, here and below.
        #[prost(uint32, optional, tag = "9")]
        pub timeout: Option<u32>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct GetQuoteSizeExRequest {
        #[prost(bytes = "vec", optional, tag = "1")]
        pub att_key_id: Option<Vec<u8>>,
        #[prost(uint32, optional, tag = "9")]
        pub timeout: Option<u32>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct GetQuoteExRequest {
        #[prost(bytes = "vec", required, tag = "1")]
        pub report: Vec<u8>,
        #[prost(bytes = "vec", optional, tag = "2")]
        pub att_key_id: Option<Vec<u8>>,
        /// Nonce (16 bytes), TARGETINFO of whom the quoting enclave's REPORT is for, and room for that REPORT.
        #[prost(bytes = "vec", optional, tag = "3")]
        pub qe_report_info: Option<Vec<u8>>,
        #[prost(uint32, required, tag = "4")]
        pub buf_size: u32,
        #[prost(uint32, optional, tag = "9")]
        pub timeout: Option<u32>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct SelectAttKeyIdRequest {
        #[prost(bytes = "vec", optional, tag = "1")]
        pub att_key_id_list: Option<Vec<u8>>,
        #[prost(uint32, optional, tag = "2")]
        pub timeout: Option<u32>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct GetSupportedAttKeyIdNumRequest {
        #[prost(uint32, optional, tag = "9")]
        pub timeout: Option<u32>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct GetSupportedAttKeyIdsRequest {
        #[prost(uint32, required, tag = "1")]
        pub buf_size: u32,
        #[prost(uint32, optional, tag = "9")]
        pub timeout: Option<u32>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Response {
        #[prost(message, optional, tag = "15")]
        pub init_quote_ex: Option<InitQuoteExResponse>,
        #[prost(message, optional, tag = "16")]
        pub get_quote_size_ex: Option<GetQuoteSizeExResponse>,
        #[prost(message, optional, tag = "17")]
        pub get_quote_ex: Option<GetQuoteExResponse>,
        #[prost(message, optional, tag = "19")]
        pub select_att_key_id: Option<SelectAttKeyIdResponse>,
        #[prost(message, optional, tag = "20")]
        pub unsupported_request: Option<UnsupportedRequestResponse>,
        #[prost(message, optional, tag = "21")]
        pub get_supported_att_key_id_num: Option<GetSupportedAttKeyIdNumResponse>,
        #[prost(message, optional, tag = "22")]
        pub get_supported_att_key_ids: Option<GetSupportedAttKeyIdsResponse>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct InitQuoteExResponse {
        #[prost(uint32, required, tag = "1", default = "1")]
        pub error_code: u32,
        #[prost(bytes = "vec", optional, tag = "2")]
        pub target_info: Option<Vec<u8>>,
        #[prost(uint64, optional, tag = "3")]
        pub pub_key_id_size: Option<u64>,
        #[prost(bytes = "vec", optional, tag = "4")]
        pub pub_key_id: Option<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct GetQuoteSizeExResponse {
        #[prost(uint32, required, tag = "1", default = "1")]
        pub error_code: u32,
        #[prost(uint32, optional, tag = "2")]
        pub quote_size: Option<u32>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct GetQuoteExResponse {
        #[prost(uint32, required, tag = "1", default = "1")]
        pub error_code: u32,
        #[prost(bytes = "vec", optional, tag = "2")]
        pub quote: Option<Vec<u8>>,
        #[prost(bytes = "vec", optional, tag = "3")]
        pub qe_report_info: Option<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct SelectAttKeyIdResponse {
        #[prost(uint32, required, tag = "1", default = "1")]
        pub error_code: u32,
        #[prost(bytes = "vec", optional, tag = "2")]
        pub selected_att_key_id: Option<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct UnsupportedRequestResponse {
        #[prost(uint32, required, tag = "1", default = "1")]
        pub error_code: u32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct GetSupportedAttKeyIdNumResponse {
        #[prost(uint32, required, tag = "1", default = "1")]
        pub error_code: u32,
        #[prost(uint32, optional, tag = "2")]
        pub att_key_id_num: Option<u32>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct GetSupportedAttKeyIdsResponse {
        #[prost(uint32, required, tag = "1", default = "1")]
        pub error_code: u32,
        #[prost(bytes = "vec", optional, tag = "2")]
        pub att_key_ids: Option<Vec<u8>>,
    }
}
