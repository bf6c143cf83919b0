//! `enclos inference`

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use enclos::quoting::QuotingServer;
use enclos_host::{Enclave, PlatformChoice, StartError};
use enclos_inference::{MAX_BATCH_SIZE, MAX_QUEUE_DELAY, Settings};
use enclos_inference_host::{Config, Event, Limits, ModelFile, Server};
use enclos_key_broker::client::BrokerClient;
use enclos_pack::sign::hex;
use enclos_quoting::EmulatedQuoting;
use serde_json::json;

use super::run::resolve;
use super::{Error, Outcome, build, read, read_image, say_identity, say_json, write};
use crate::embedded;
use crate::project::Project;
use crate::quoting::{self, PrivateAesm, TcbStateOption};
use crate::ui::Ui;

const AFTER_HELP: &str = "\
Examples:
  enclos inference --model digits.onnx                           at port 8090, as the model `digits`
  enclos inference --model digits=v2.onnx --model other.onnx --listen 127.0.0.1:0 --json
  enclos inference --model digits.onnx --watch                   a new file is a new version; a bad one changes nothing
  enclos inference --model digits.onnx.jwe --key-broker http://127.0.0.1:8095    encrypted: this side never sees it
  enclos inference --model digits.onnx --write-policy client     what clients need to try it: policy and collateral
  enclos infer --server http://127.0.0.1:8090 --policy client/policy.toml --collateral client/collateral.json

Clients verify the enclave's evidence, which names its key and the SHA-256 of every model, and encrypt for that key (Oblivious
HTTP, RFC 9458). This side relays what it cannot read. It sees models that are not encrypted (`enclos model --help`). docs/inference.md says what else it can do.

  GET  /.well-known/enclos-inference   evidence, key and models, JSON
  GET  /.well-known/ohttp-gateway      the key, application/ohttp-keys
  POST /.well-known/ohttp-gateway      message/ohttp-req, answered by message/ohttp-res
  GET  /v2/health/live, /v2/health/ready, /metrics

Signals: SIGHUP looks at the models' files; SIGTERM and interrupt let open requests finish. HTTPS is any proxy's affair: what
matters is encrypted inside.";

/// Serve ONNX models from an enclave: nobody but clients and the enclave sees requests.
///
/// The enclave's image is built from sources that this command carries, once; clients who run the same command get the same
/// measurement.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// An ONNX file, or an encrypted one, and the name it is served by; default: the file's, without its ending
    #[arg(long = "model", value_name = "[NAME=]FILE", required_unless_present = "only_build")]
    models: Vec<NamedModel>,
    /// Address and port; port 0: any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// Also serve attested TLS, which ends inside the enclave: 127.0.0.1:8443, 0.0.0.0:8443, [::]:8443 or, for any port,
    /// 127.0.0.1:0
    #[arg(long, value_name = "ADDRESS:PORT")]
    attested_tls: Option<String>,
    /// The enclave: an image, or the project it is built from; default: built from what this command carries
    #[arg(long, value_name = "IMAGE")]
    enclave: Option<PathBuf>,
    /// auto, hardware or emulated
    #[arg(long, env = "ENCLOS_PLATFORM", default_value = "auto")]
    platform: PlatformChoice,
    /// Build the enclave, say what it is, and serve nothing
    #[arg(long)]
    only_build: bool,
    /// Look at the models' files every so many seconds, and serve new versions
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds)]
    watch: Option<Duration>,
    /// Versions of a model that are served at once; clients who verified an older one finish with it
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    versions: usize,
    /// Requests in the enclave at once; default: one a CPU, with --max-batch-size as many as its threads
    #[arg(long, value_name = "COUNT")]
    parallel: Option<usize>,
    /// Requests that wait for others; more are answered 503
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().queue)]
    queue: usize,
    /// How long a request may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    timeout: Duration,
    /// Longest request, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().body)]
    max_request: usize,
    /// How long a key takes requests, in seconds; at most (and by default) a day
    #[arg(long, value_name = "SECONDS")]
    key_lifetime: Option<u64>,
    /// Pad replies to powers of two from here, in bytes; at least (and by default) 1024
    #[arg(long, value_name = "BYTES")]
    bucket: Option<u64>,
    /// Run a model on up to so many rows of requests that come together, where no row's result depends on another; 1 (the
    /// default): on each request alone
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_BATCH_SIZE)))]
    max_batch_size: Option<u32>,
    /// How long a request waits for others, in microseconds; at most 1000000, by default 500
    #[arg(long, value_name = "MICROSECONDS", requires = "max_batch_size", value_parser = clap::value_parser!(u64).range(..=MAX_QUEUE_DELAY))]
    max_queue_delay: Option<u64>,
    /// Who releases the keys of encrypted models (`enclos key-broker`), such as https://broker.example:8095
    #[arg(long, value_name = "URL")]
    key_broker: Option<String>,
    /// Trust only these roots for the certificate of --key-broker, PEM
    #[arg(long, value_name = "FILE", requires = "key_broker")]
    key_broker_ca: Option<PathBuf>,
    /// Write policy.toml, which names this image, and on the emulated platform collateral.json, into this folder
    #[arg(long, value_name = "FOLDER")]
    write_policy: Option<PathBuf>,
    /// Where it is and what it serves, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `NAME=FILE`, or a file that gives the name.
#[derive(Clone, Debug)]
struct NamedModel(ModelFile);

impl FromStr for NamedModel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = match text.split_once('=') {
            Some((name, path)) if !name.contains('/') => (name.to_owned(), PathBuf::from(path)),
            _ => {
                let path = PathBuf::from(text);
                let name = path.file_name().map(|s| s.to_string_lossy().into_owned());
                let name = name.ok_or("it names no file")?;
                let plain = Path::new(name.strip_suffix(".jwe").unwrap_or(&name));
                (plain.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path)
            }
        };
        Ok(Self(ModelFile { name, path }))
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number of seconds")?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("it must be more than 0 seconds".into()),
    }
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let image = image(args.enclave.as_deref(), ui)?;
    let parsed = read_image(&image)?;
    say_identity(&parsed, ui);
    let platform = resolve(args.platform)?;
    let quoting = match platform {
        PlatformChoice::Emulated => Some(Arc::new(quoting::open(TcbStateOption::default())?)),
        _ => None,
    };
    if let Some(folder) = &args.write_policy {
        write_policy(folder, &parsed.mrenclave(), quoting.as_deref())?;
        ui.status("wrote", folder.join("policy.toml").display());
    }
    let identity =
        json!({ "image": image, "mrenclave": hex(&parsed.mrenclave()), "emulated": quoting.is_some() });
    if args.only_build {
        if ui.json() {
            say_json(&identity);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let broker = key_broker(args, quoting.as_deref())?;
    let aesm = match quoting {
        Some(quoting) => {
            ui.warn("the platform is an emulated SGX CPU: it runs the same image, and protects nothing");
            Some(PrivateAesm::serve(quoting)?)
        }
        None => None,
    };
    // Read once: every enclave that is started in another one's place is the same.
    let bytes = read(&image)?;
    let start = move || -> Result<Enclave, StartError> {
        let builder = Enclave::builder(bytes.clone()).platform(platform);
        match &aesm {
            Some(aesm) => builder.service(QuotingServer::new(aesm.client())).start(),
            None => builder.start(),
        }
    };
    let ready = |server: &Server| {
        let url = format!("http://{}", server.address());
        if ui.json() {
            let mut said = identity.clone();
            said["url"] = json!(url);
            said["attested_tls"] = json!(server.service().attested_tls());
            // For whoever looks at the host's memory: what is in there is the enclave's.
            said["memory"] = json!(server.service().memory());
            say_json(&said);
        }
        ui.status("listening", url);
    };
    enclos_inference_host::run(
        config(args, broker),
        Box::new(start),
        Box::new(move |event| tell(event, ui)),
        ready,
    )?;
    ui.status("ended", "in good order");
    Ok(ExitCode::SUCCESS)
}

/// The way to the broker. Collateral of an emulated platform goes along, as there is nobody else to ask for it.
fn key_broker(args: &Args, quoting: Option<&EmulatedQuoting>) -> Result<Option<Arc<BrokerClient>>, Error> {
    let Some(url) = &args.key_broker else { return Ok(None) };
    let mut broker = match &args.key_broker_ca {
        Some(path) => BrokerClient::with_roots(url, &read(path)?)?,
        None => BrokerClient::new(url),
    };
    if let Some(quoting) = quoting {
        let collateral = quoting::collateral_json(quoting)?;
        broker = broker.with_collateral(serde_json::from_slice(&collateral).unwrap_or_default());
    }
    Ok(Some(Arc::new(broker)))
}

fn config(args: &Args, key_broker: Option<Arc<BrokerClient>>) -> Config {
    let mut limits =
        Limits { queue: args.queue, request: args.timeout, body: args.max_request, ..Limits::default() };
    // Requests wait for each other inside.
    let together = args.max_batch_size.map_or(1, |rows| rows as usize);
    limits.parallel = args.parallel.unwrap_or(limits.parallel.max(together));
    Config {
        listen: args.listen,
        models: args.models.iter().map(|m| m.0.clone()).collect(),
        key_broker,
        watch: args.watch,
        versions: args.versions,
        settings: Settings {
            key_lifetime: args.key_lifetime,
            smallest_bucket: args.bucket,
            max_batch_size: args.max_batch_size,
            max_queue_delay: args.max_queue_delay,
        },
        attested_tls: args.attested_tls.clone(),
        limits,
    }
}

fn tell(event: &Event, ui: Ui) {
    match event {
        Event::Loaded { .. } => ui.status("serving", event),
        Event::Listening { .. } => ui.status("listening", event),
        Event::Unloaded { .. } => ui.status("unloaded", event),
        Event::Restarted => ui.status("restarted", event),
        _ => ui.warn(event),
    }
}

fn image(given: Option<&Path>, ui: Ui) -> Result<PathBuf, Error> {
    match given {
        Some(path) if path.is_dir() => {
            Ok(build::image(&Project::open(path, ui)?, &build::Options::default(), ui)?.path)
        }
        Some(path) => Ok(path.to_owned()),
        None => Ok(build::embedded_image("inference", embedded::INFERENCE, ui)?.path),
    }
}

/// What clients need who trust whoever runs this command: a policy that names the image, and collateral where the platform
/// is emulated.
fn write_policy(folder: &Path, mrenclave: &[u8; 32], quoting: Option<&EmulatedQuoting>) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(|source| Error::Write { path: folder.into(), source })?;
    let mut policy = String::new();
    if let Some(quoting) = quoting {
        let root = quoting.root_key_id();
        policy = format!("# An emulated platform: for tests only.\nemulated_roots = [\"{root}\"]\n\n");
        write(&folder.join("collateral.json"), &quoting::collateral_json(quoting)?)?;
    }
    policy += &format!("[[identity]]\nkind = \"sgx\"\nmr_enclave = \"{}\"\n", hex(mrenclave));
    write(&folder.join("policy.toml"), policy.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_names() {
        let parse = |text: &str| text.parse::<NamedModel>().map(|m| (m.0.name, m.0.path));
        assert_eq!(parse("a/digits.v2.onnx"), Ok(("digits.v2".into(), "a/digits.v2.onnx".into())));
        assert_eq!(parse("digits=a/v2.onnx"), Ok(("digits".into(), "a/v2.onnx".into())));
        assert_eq!(parse("a/b=c.onnx"), Ok(("b=c".into(), "a/b=c.onnx".into())));
        assert!(parse("..").is_err());
    }
}
