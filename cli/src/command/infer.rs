//! `enclos infer`

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use enclos_inference::client::attested_tls::Connection;
use enclos_inference::client::{ClientError, Http, Request, Verified, fetch_offer};
use enclos_inference::{OFFER_PATH, Offer, OfferedModel};
use enclos_verifier::{Collateral, Hex, Time};
use serde_json::{Value, json};

use super::{Error, Outcome, connect, read, say_json, verify};
use crate::ui::{BAD, LABEL, Ui, say};

/// The server is refused.
const REFUSED: u8 = 4;

const EXAMPLES: &str = "\
Examples:
  enclos infer --server http://127.0.0.1:8090 --policy p.toml --collateral c.json        what it is and serves
  enclos infer --server … --policy p.toml --collateral c.json --input row.json
  enclos infer --server … --policy p.toml --collateral c.json --model-sha256 9f86… --input - --json < request.json
  enclos infer --server attested-tls://127.0.0.1:8443 --policy p.toml --collateral c.json --input row.json

Verification comes first: nothing is sent to a server whose evidence the policy does not accept, and what is sent is encrypted
for the key that the evidence vouches for. With --model-sha256 it is also certain which model answers; without, the server's
owner chose it, and the verdict says which it is.

INPUT is a request of the Open Inference Protocol, version 2 ({\"inputs\": [...]}), or, for models with one input, its data:
nested arrays of numbers such as [[0, 1, 2, 3]].

Exit codes:
  0    accepted, and answered
  1    no answer, an error of the model, or a file that is not usable
  2    wrong usage
  4    the server is refused, or does not have the model";

/// Verify an inference service, then ask it, encrypted.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where the service is: http://127.0.0.1:8090, or attested-tls://127.0.0.1:8443 for TLS that ends in the enclave
    #[arg(long, value_name = "URL")]
    server: String,
    /// The policy, TOML (or JSON, if it is called *.json); default: the strictest
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Collateral of the server's platform, JSON
    #[arg(long, value_name = "FILE")]
    collateral: PathBuf,
    /// The model by name, if there are several: its newest version
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// The model by the SHA-256 of its ONNX file: no other will do
    #[arg(long, value_name = "HEX")]
    model_sha256: Option<Hex<32>>,
    /// What to ask; `-`: standard input. Without it, the model's inputs and outputs are shown
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Verdict and answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let policy = verify::policy_of(args.policy.as_deref())?;
    let collateral = Collateral::from_json(&read(&args.collateral)?)
        .map_err(|e| Error::Peer(format!("{} is not usable: {e}", args.collateral.display())))?;
    let input = args.input.as_deref().map(input).transpose()?;
    let waiting = ui.wait("asking for evidence");
    let (mut way, offer) = match args.server.strip_prefix("attested-tls://") {
        None => {
            let server = Http::at(&args.server);
            let offer = fetch_offer(&server).map_err(peer)?;
            (Way::Encapsulated(server), offer)
        }
        Some(address) => match Connection::open(address.trim_end_matches('/'), &policy, &collateral) {
            Ok(mut connection) => {
                let (_, offer) = connection.ask("GET", OFFER_PATH, Vec::new()).map_err(peer)?;
                let offer =
                    Offer::from_json(&offer).map_err(|e| Error::Peer(format!("{}: {e}", args.server)))?;
                (Way::AttestedTls(Box::new(connection)), offer)
            }
            Err(e) => {
                drop(waiting);
                return match e.refusal() {
                    Some(refusal) => Ok(connect::refused(refusal, ui)),
                    None => Err(Error::Peer(format!("{}: {e}", args.server))),
                };
            }
        },
    };
    drop(waiting);
    let verified = match Verified::verify(&offer, &policy, &collateral, Time::now()) {
        Ok(verified) => verified,
        Err(error) => return Ok(refused(&error, &offer, ui)),
    };
    let hash = args.model_sha256.map(|hash| hash.0);
    let model = match verified.model(args.model.as_deref(), hash.as_ref()) {
        Ok(model) => model.clone(),
        Err(error) => return Ok(refused(&error, &offer, ui)),
    };
    if !ui.json() && !ui.quiet() {
        verify::show(verified.verdict(), &offer.evidence);
        let how = if hash.is_some() { "as demanded" } else { "chosen by the server's owner" };
        say!("\n{LABEL}model{LABEL:#} {}, SHA-256 {}, {how}", model.name, model.version());
    }

    let metadata = way.ask(&verified, "GET", &model.path(), Vec::new())?;
    let answer = match input {
        None => metadata,
        Some(input) => {
            let request = request(input, &metadata, &model)?;
            let _waiting = ui.wait("waiting for the answer");
            way.ask(&verified, "POST", &format!("{}/infer", model.path()), request.to_string().into_bytes())?
        }
    };
    match ui.json() {
        true => say_json(&json!({
            "accepted": true,
            "model": { "name": model.name, "sha256": model.version() },
            "verdict": verified.verdict(),
            "answer": answer,
        })),
        false => say!("{}", serde_json::to_string_pretty(&answer).unwrap_or_default()),
    }
    Ok(ExitCode::SUCCESS)
}

fn refused(error: &ClientError, offer: &Offer, ui: Ui) -> ExitCode {
    match (error, ui.json()) {
        (ClientError::Refused(verdict), true) => {
            say_json(&json!({ "accepted": false, "reason": error.to_string(), "verdict": verdict }));
        }
        (ClientError::Refused(verdict), false) => verify::show(verdict, &offer.evidence),
        (error, true) => say_json(&json!({ "accepted": false, "reason": error.to_string() })),
        (error, false) => anstream::eprintln!("{BAD}REFUSED{BAD:#}\n  - {error}"),
    }
    ExitCode::from(REFUSED)
}

fn input(path: &Path) -> Result<Value, Error> {
    let bytes = match path.to_str() {
        Some("-") => {
            let mut bytes = Vec::new();
            let read = std::io::stdin().read_to_end(&mut bytes);
            read.map_err(|source| Error::Read { path: path.into(), source })?;
            bytes
        }
        _ => read(path)?,
    };
    serde_json::from_slice(&bytes).map_err(|e| Error::Usage(format!("{} is not JSON: {e}", path.display())))
}

/// A request as it is, or the data of the only input made into one.
fn request(input: Value, metadata: &Value, model: &OfferedModel) -> Result<Value, Error> {
    if input.is_object() {
        return Ok(input);
    }
    let inputs = metadata["inputs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let [only] = inputs else {
        let names: Vec<_> = inputs.iter().map(|i| &i["name"]).collect();
        return Err(Error::Usage(format!(
            "the model {} has not one input but {names:?}: give a whole request, {{\"inputs\": [...]}}",
            model.name
        )));
    };
    let shape = shape(&input);
    Ok(
        json!({ "inputs": [{ "name": only["name"], "datatype": only["datatype"], "shape": shape, "data": input }] }),
    )
}

/// Lengths of nested arrays, by the first of each; the enclave says so if others differ.
fn shape(data: &Value) -> Vec<usize> {
    let mut shape = Vec::new();
    let mut inner = data;
    while let Some(values) = inner.as_array() {
        shape.push(values.len());
        match values.first() {
            Some(first) => inner = first,
            None => break,
        }
    }
    shape
}

/// How requests come to the enclave.
enum Way {
    Encapsulated(Http),
    AttestedTls(Box<Connection>),
}

impl Way {
    fn ask(&mut self, verified: &Verified, method: &str, path: &str, json: Vec<u8>) -> Result<Value, Error> {
        let (status, body) = match self {
            Self::Encapsulated(server) => {
                let request = match json.is_empty() {
                    true => Request::get(path),
                    false => Request::post(path, json),
                };
                let answer = verified.ask(server, &request).map_err(peer)?;
                (answer.status, answer.body)
            }
            Self::AttestedTls(connection) => connection.ask(method, path, json).map_err(peer)?,
        };
        let answer: Value = serde_json::from_slice(&body)
            .map_err(|e| Error::Peer(format!("the enclave's answer is not JSON: {e}")))?;
        match status {
            200 => Ok(answer),
            _ => {
                let said = answer["error"].as_str().map_or_else(|| answer.to_string(), str::to_owned);
                Err(Error::Peer(format!("the enclave answers {status}: {said}")))
            }
        }
    }
}

fn peer(error: impl std::fmt::Display) -> Error {
    Error::Peer(error.to_string())
}
