//! The emulated platform's AESM: answers on a Unix socket as `aesmd` does, so that software written for SGX nodes gets
//! quotes where there are none.
//!
//! The other side may be anybody who can open the socket. Bounded: length of messages, connections at a time, and how long
//! one may say nothing.

use std::{
    fs, io,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use enclos_host::aesm::{
    ALGORITHM_AT, ATT_KEY_ID, ECDSA_P256, algorithm, code,
    messages::{
        GetQuoteExRequest, GetQuoteExResponse, GetQuoteSizeExResponse, GetSupportedAttKeyIdNumResponse,
        GetSupportedAttKeyIdsResponse, InitQuoteExRequest, InitQuoteExResponse, Request, Response,
        SelectAttKeyIdResponse, UnsupportedRequestResponse,
    },
    read_message, write_message,
};
use prost::Message as _;
use ring::digest::{SHA256, digest};

use crate::{
    EmulatedQuoting, QuotingError,
    enclave::{REPORT, TARGETINFO},
};

/// Connections served at a time; others are closed at once.
const MOST_CONNECTIONS: usize = 64;
/// How long a connection may say nothing.
const PATIENCE: Duration = Duration::from_secs(10);
const NONCE: usize = 16;
/// Size of `sgx_ql_qe_report_info_t`: nonce, TARGETINFO, REPORT.
const QE_REPORT_INFO: usize = NONCE + TARGETINFO + REPORT;

/// A socket that is being served. Dropping it stops that, and removes the socket.
#[derive(Debug)]
pub struct AesmSocket {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl AesmSocket {
    /// Serves quotes on a socket made at this path, in threads of its own. A socket that nobody listens at any more is
    /// replaced.
    ///
    /// # Errors
    /// When the socket cannot be made, or somebody listens there.
    pub fn serve(path: &Path, quoting: Arc<EmulatedQuoting>) -> io::Result<Self> {
        let listener = bind(path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let accepting = {
            let stop = Arc::clone(&stop);
            thread::Builder::new().name("aesm".into()).spawn(move || accept(&listener, &quoting, &stop))?
        };
        Ok(Self { path: path.to_owned(), stop, accepting: Some(accepting) })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AesmSocket {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes `accept`. Where that fails, nobody listens any more.
        if UnixStream::connect(&self.path).is_ok()
            && let Some(accepting) = self.accepting.take()
        {
            let _ = accepting.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            match UnixStream::connect(path) {
                // Left over from a process that was killed.
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
                _ => return Err(error),
            }
            UnixListener::bind(path)
        }
        other => other,
    }
}

fn accept(listener: &UnixListener, quoting: &Arc<EmulatedQuoting>, stop: &AtomicBool) {
    let connections = Arc::new(AtomicUsize::new(0));
    for connection in listener.incoming() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(connection) = connection else {
            // Out of file descriptors, most likely: some will be closed.
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        if connections.load(Ordering::SeqCst) >= MOST_CONNECTIONS {
            continue;
        }
        connections.fetch_add(1, Ordering::SeqCst);
        let (quoting, counted) = (Arc::clone(quoting), Arc::clone(&connections));
        let spawned = thread::Builder::new().name("aesm connection".into()).spawn(move || {
            // The other side going away is how a connection ends.
            let _ = converse(connection, &quoting);
            counted.fetch_sub(1, Ordering::SeqCst);
        });
        if spawned.is_err() {
            connections.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn converse(mut connection: UnixStream, quoting: &EmulatedQuoting) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    loop {
        let request = read_message(&mut connection)?;
        let response = match Request::decode(&*request) {
            Ok(request) => quoting.answer(&request),
            Err(_) => unsupported(code::PARAMETER),
        };
        write_message(&mut connection, &response.encode_to_vec())?;
    }
}

impl EmulatedQuoting {
    /// Answers one request to AESM.
    fn answer(&self, request: &Request) -> Response {
        if request.get_supported_att_key_id_num.is_some() {
            let counted =
                GetSupportedAttKeyIdNumResponse { error_code: code::SUCCESS, att_key_id_num: Some(1) };
            return Response { get_supported_att_key_id_num: Some(counted), ..Response::default() };
        }
        if let Some(asked) = &request.get_supported_att_key_ids {
            let fits = asked.buf_size as usize >= ATT_KEY_ID;
            let listed = GetSupportedAttKeyIdsResponse {
                error_code: if fits { code::SUCCESS } else { code::PARAMETER },
                att_key_ids: fits.then(|| self.key_id()),
            };
            return Response { get_supported_att_key_ids: Some(listed), ..Response::default() };
        }
        if let Some(asked) = &request.select_att_key_id {
            // Without a list the choice is ours.
            let list = asked.att_key_id_list.as_deref().unwrap_or_default();
            let has = list.is_empty()
                || list.chunks(ATT_KEY_ID).any(|id| algorithm(id).is_some_and(|a| a == ECDSA_P256));
            let selected = SelectAttKeyIdResponse {
                error_code: if has { code::SUCCESS } else { code::UNSUPPORTED_KEY },
                selected_att_key_id: has.then(|| self.key_id()),
            };
            return Response { select_att_key_id: Some(selected), ..Response::default() };
        }
        if let Some(asked) = &request.init_quote_ex {
            let init = self.init(asked).unwrap_or_else(|error_code| InitQuoteExResponse {
                error_code,
                ..InitQuoteExResponse::default()
            });
            return Response { init_quote_ex: Some(init), ..Response::default() };
        }
        if let Some(asked) = &request.get_quote_size_ex {
            let size = match is_ours(asked.att_key_id.as_deref()) {
                Ok(()) => GetQuoteSizeExResponse {
                    error_code: code::SUCCESS,
                    quote_size: Some(self.quote_size() as u32),
                },
                Err(error_code) => GetQuoteSizeExResponse { error_code, quote_size: None },
            };
            return Response { get_quote_size_ex: Some(size), ..Response::default() };
        }
        if let Some(asked) = &request.get_quote_ex {
            let quote = self.signed(asked).unwrap_or_else(|error_code| GetQuoteExResponse {
                error_code,
                ..GetQuoteExResponse::default()
            });
            return Response { get_quote_ex: Some(quote), ..Response::default() };
        }
        unsupported(code::SERVICE_UNAVAILABLE)
    }

    fn init(&self, asked: &InitQuoteExRequest) -> Result<InitQuoteExResponse, u32> {
        is_ours(asked.att_key_id.as_deref())?;
        let id = digest(&SHA256, self.attestation_key()).as_ref().to_vec();
        let size = id.len() as u64;
        if asked.b_pub_key_id && asked.buf_size.unwrap_or(0) < size {
            return Err(code::PARAMETER);
        }
        Ok(InitQuoteExResponse {
            error_code: code::SUCCESS,
            target_info: Some(self.target_info().to_vec()),
            pub_key_id_size: Some(size),
            pub_key_id: asked.b_pub_key_id.then_some(id),
        })
    }

    fn signed(&self, asked: &GetQuoteExRequest) -> Result<GetQuoteExResponse, u32> {
        is_ours(asked.att_key_id.as_deref())?;
        let report = asked.report.as_slice().try_into().map_err(|_| code::PARAMETER)?;
        if (asked.buf_size as usize) < self.quote_size() {
            return Err(code::PARAMETER);
        }
        let quote = self.quote(report).map_err(|error| match error {
            QuotingError::Report => code::INVALID_REPORT,
            _ => code::UNEXPECTED,
        })?;
        let qe_report_info = match &asked.qe_report_info {
            None => None,
            Some(info) => {
                let info: &[u8; QE_REPORT_INFO] = info.as_slice().try_into().map_err(|_| code::PARAMETER)?;
                Some(self.vouched(info, &quote)?)
            }
        };
        Ok(GetQuoteExResponse { error_code: code::SUCCESS, quote: Some(quote), qe_report_info })
    }

    /// The info with the quoting enclave's REPORT for the asker, over SHA-256 of nonce and quote.
    fn vouched(&self, info: &[u8; QE_REPORT_INFO], quote: &[u8]) -> Result<Vec<u8>, u32> {
        let (nonce, rest) = info.split_at(NONCE);
        let target: &[u8; TARGETINFO] = rest[..TARGETINFO].try_into().map_err(|_| code::PARAMETER)?;
        let mut data = [0; 64];
        data[..32].copy_from_slice(digest(&SHA256, &[nonce, quote].concat()).as_ref());
        Ok([nonce, target.as_slice(), &self.enclave.report(target, &data)].concat())
    }

    /// `sgx_att_key_id_ext_t` of the one attestation key.
    fn key_id(&self) -> Vec<u8> {
        let (mr_signer, product, _) = self.enclave.signer();
        let mut id = vec![0; ATT_KEY_ID];
        // Identifier and version are 0; length of MRSIGNER, MRSIGNER, product.
        id[4..6].copy_from_slice(&(mr_signer.len() as u16).to_le_bytes());
        id[6..6 + mr_signer.len()].copy_from_slice(&mr_signer);
        id[54..58].copy_from_slice(&u32::from(product).to_le_bytes());
        id[ALGORITHM_AT..ALGORITHM_AT + 4].copy_from_slice(&ECDSA_P256.to_le_bytes());
        id
    }
}

/// Is the key asked for, if any, the one there is?
fn is_ours(key_id: Option<&[u8]>) -> Result<(), u32> {
    match key_id {
        None | Some([]) => Ok(()),
        Some(id) if algorithm(id) == Some(ECDSA_P256) => Ok(()),
        Some(_) => Err(code::UNSUPPORTED_KEY),
    }
}

fn unsupported(error_code: u32) -> Response {
    Response { unsupported_request: Some(UnsupportedRequestResponse { error_code }), ..Response::default() }
}
