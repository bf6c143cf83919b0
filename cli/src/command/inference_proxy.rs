//! `enclos inference-proxy`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use enclos_inference::client::{Client, ClientError, Demands};
use enclos_inference_proxy::{Config, describe, gateway_at};
use enclos_verifier::{Collateral, Hex};
use serde_json::json;

use super::{Error, Outcome, say_json, verify};
use crate::ui::{Ui, say};

/// The server is refused.
const REFUSED: u8 = 4;

const EXAMPLES: &str = "\
Examples:
  enclos inference-proxy --server http://127.0.0.1:8090 --policy policy.toml --collateral collateral.json
  enclos inference-proxy --server … --policy p.toml --collateral c.json --model-sha256 9f86… --listen 127.0.0.1:0 --json
  curl http://127.0.0.1:8091/v2/models/digits            # the Open Inference Protocol, verified and encrypted underneath
  curl http://127.0.0.1:8091/verdict                     # who answers, and why it was accepted
  xdg-open http://127.0.0.1:8091/                        # draw a digit, and see who answered

  # Python, with PyPI's tritonclient, unmodified
  client = tritonclient.http.InferenceServerClient(\"127.0.0.1:8091\")

The server is verified before the proxy listens, and anew when its key's time is over, after a restart, and every ten minutes.
When it is refused, requests are answered 502 with the reason, and nothing of them leaves. Responses name who gave them:
enclos-mrenclave, enclos-emulated.

What programs send to the proxy is plain text: it belongs on their machine. The page encrypts by itself, for the key that the
proxy verified. Without --model-sha256 the server's owner chooses the models, and model_version in answers (the SHA-256 of the
model's file) says which it was.

Exit codes:
  0    ended in good order
  1    it cannot serve, or the server cannot be reached
  2    wrong usage
  4    the server is refused, or does not have the models";

/// Speak the plain Open Inference Protocol on this machine; verify and encrypt underneath.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where the service is, such as http://127.0.0.1:8090
    #[arg(long, value_name = "URL")]
    server: String,
    /// The policy, TOML (or JSON, if it is called *.json); default: the strictest
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Collateral of the server's platform, JSON; read anew at each verification
    #[arg(long, value_name = "FILE")]
    collateral: PathBuf,
    /// A model by the SHA-256 of its ONNX file; if any are given, no other is asked
    #[arg(long = "model-sha256", value_name = "HEX")]
    models: Vec<Hex<32>>,
    /// Address and port of the proxy; port 0: any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = Config::default().listen)]
    listen: SocketAddr,
    /// Longest request, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = Config::default().body)]
    max_request: usize,
    /// Where it is and who answers, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let server = gateway_at(&args.server)?;
    let policy = verify::policy_of(args.policy.as_deref())?;
    let path = args.collateral.clone();
    let collateral = move || {
        let json = std::fs::read(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        Collateral::from_json(&json).map_err(|e| format!("{} is not usable: {e}", path.display()))
    };
    // What is not usable now is a mistake; later it is a reason to refuse.
    collateral().map_err(Error::Peer)?;
    let models = args.models.iter().map(|hash| hash.0).collect();
    let client = Client::new(server, Demands { policy, collateral: Box::new(collateral), models });

    let waiting = ui.wait("asking for evidence");
    let verified = client.verified();
    drop(waiting);
    let verified = match verified {
        Ok(verified) => verified,
        Err(ClientError::Transport(e)) => return Err(Error::Peer(e.to_string())),
        Err(error) => {
            let verdict = match &error {
                ClientError::Refused(verdict) => Some(verdict),
                _ => None,
            };
            match ui.json() {
                true => {
                    say_json(&json!({ "accepted": false, "reason": error.to_string(), "verdict": verdict }))
                }
                false => crate::ui::error(&error),
            }
            return Ok(ExitCode::from(REFUSED));
        }
    };
    if verified.verdict().emulated {
        ui.warn("the server's platform is an emulated SGX CPU: it protects nothing");
    }
    ui.status("accepted", format_args!("MRENCLAVE {}", verified.mr_enclave().unwrap_or_default()));
    for model in verified.models() {
        ui.status("model", format_args!("{}, version {}", model.name, model.version()));
    }
    if !args.listen.ip().is_loopback() {
        ui.warn("others than this machine can reach the proxy, in plain text");
    }
    let config = Config { listen: args.listen, body: args.max_request, ..Config::default() };
    enclos_inference_proxy::run(config, client, |address| {
        let url = format!("http://{address}");
        if ui.json() {
            let mut said = describe(&verified);
            said["accepted"] = json!(true);
            said["url"] = json!(url);
            say!("{said}");
        }
        ui.status("listening", url);
    })?;
    ui.status("ended", "in good order");
    Ok(ExitCode::SUCCESS)
}
