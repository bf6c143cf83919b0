//! `enclos inspect`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use enclos::abi::{REPORT_MAGIC, REPORT_VARIABLE};
use enclos_host::{Enclave, PlatformChoice};
use enclos_pack::inspect::{Contract, Inspection, Signature};
use enclos_pack::oci::Layout;
use enclos_pack::{Config, Forms, Image, config};
use serde::Serialize;

use super::{Error, Outcome, read_image, say_json};
use crate::project::Project;
use crate::ui::{BAD, DIM, GOOD, LABEL, Ui, WARN, say};
use crate::{linux_calls, project};

const EXAMPLES: &str = "\
Examples:
  enclos inspect                                  the image of the project in this folder
  enclos inspect target/enclos/vault.enclave
  enclos inspect oci:target/enclos/vault.oci      what a container image holds; oci:PATH:TAG chooses among several
  enclos inspect --json | jq -r .identity.mrenclave
  enclos inspect --runtime -- --version           also run it, and name the Linux calls it was refused";

/// Shows what an image is: identity, signature, layout, what is measured, what it may ask of the host, contracts and
/// their methods, how its Linux calls are made, and how much code must be trusted.
///
/// Everything is recomputed from the measured pages, except what is called a hint.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// An image, a project's folder, or oci: and an OCI image (layout folder or archive)
    #[arg(default_value = ".")]
    image: PathBuf,
    /// Run it, without a host program, and name the Linux calls that were refused
    #[arg(long)]
    runtime: bool,
    /// With --runtime: how many seconds to wait for its program to end
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "runtime")]
    patience: u64,
    /// Results as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// With --runtime: arguments of its program
    #[arg(last = true, requires = "runtime")]
    arguments: Vec<String>,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let (path, image, container) = match args.image.to_str().and_then(|p| p.strip_prefix("oci:")) {
        Some(reference) => {
            let (path, image, container) = from_container(reference)?;
            (path, image, Some(container))
        }
        None => {
            let path = find(&args.image)?;
            let image = read_image(&path)?;
            (path, image, None)
        }
    };
    let inspection = Inspection::of(&image);
    let calls = if args.runtime { Some(run_it(&image, args, ui)?) } else { None };
    if ui.json() {
        #[derive(Serialize)]
        struct All<'a> {
            file: &'a Path,
            #[serde(flatten)]
            inspection: &'a Inspection,
            #[serde(skip_serializing_if = "Option::is_none")]
            container: Option<&'a Holder>,
            #[serde(skip_serializing_if = "Option::is_none")]
            runtime: Option<&'a Calls>,
        }
        let (container, runtime) = (container.as_ref(), calls.as_ref());
        say_json(&All { file: &path, inspection: &inspection, container, runtime });
    } else {
        if let Some(container) = &container {
            say_container(container);
        }
        say(&path, &inspection);
        if let Some(calls) = &calls {
            say_calls(calls);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The image itself, or that of a project.
fn find(path: &Path) -> Result<PathBuf, Error> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    let file = path.join(config::FILE_NAME);
    if !file.is_file() {
        return Err(Error::NoProject { path: path.into() });
    }
    let image = Project { folder: path.into(), config: Config::load(&file)? }.image();
    match image.is_file() {
        true => Ok(image),
        false => Err(Error::NotBuilt { path: image }),
    }
}

/// The container image that an enclave image came in.
#[derive(Clone, Debug, Serialize)]
struct Holder {
    digest: String,
    tag: Option<String>,
    entrypoint: Vec<String>,
    labels: BTreeMap<String, String>,
    /// Labels that say something else than what the enclave is: name, what is said, what is so.
    untrue_labels: Vec<(String, String, String)>,
}

/// The enclave image of a container image: `PATH` or `PATH:TAG`.
fn from_container(reference: &str) -> Result<(PathBuf, Image, Holder), Error> {
    let (path, tag) = match reference.rsplit_once(':') {
        Some((path, tag)) if !Path::new(reference).exists() => (path, Some(tag)),
        _ => (reference, None),
    };
    let mut layout = Layout::open(Path::new(path), tag)?;
    let found: Vec<String> = layout.enclaves.iter().map(|(path, _)| path.clone()).collect();
    let [_] = &found[..] else {
        return Err(Error::Usage(format!(
            "{path} holds {}: one enclave image (*.enclave) in a container can be inspected",
            if found.is_empty() { "no enclave image".to_owned() } else { found.join(", ") }
        )));
    };
    let (file, image) = layout.enclaves.remove(0);
    let untrue_labels = layout.untrue_labels(&image);
    let Layout { digest, tag, labels, entrypoint, .. } = layout;
    Ok((PathBuf::from("/").join(file), image, Holder { digest, tag, entrypoint, labels, untrue_labels }))
}

/// What the runtime counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Calls {
    /// Linux calls that came by a rewritten site.
    direct: u64,
    /// Those that trapped.
    trapped: u64,
    /// CPUID instructions.
    cpuid: u64,
    /// Linux calls refused with ENOSYS.
    refused: u64,
    /// Which they were.
    refused_calls: Vec<Refused>,
    /// How the program ended.
    ended: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Refused {
    number: u64,
    name: String,
    count: u64,
}

/// Runs the image's program until it ends or, when it serves calls, tells it that none will come.
fn run_it(image: &Image, args: &Args, ui: Ui) -> Result<Calls, Error> {
    let mut image = image.clone();
    if image.verify().is_err() {
        // For this run only.
        image.sign(&project::developer_key(ui)?, enclos_pack::Date::today()?)?;
    }
    let record = Arc::new(Mutex::new(None));
    let seen = record.clone();
    let enclave = Enclave::builder(image.to_file_bytes())
        .platform(super::run::resolve(PlatformChoice::Auto)?)
        .args(args.arguments.iter().map(String::as_str))
        .env(REPORT_VARIABLE, "1")
        .stdout(std::io::stderr())
        .log(move |_, text| {
            if let Some(calls) = parse(text) {
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(calls);
            }
        })
        .start()?;
    let waiting = ui.wait("running");
    let until = Instant::now() + Duration::from_secs(args.patience);
    // A server has all its threads waiting for calls; it would wait for ever.
    while enclave.end().is_none() && enclave.threads().0 == 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    let ended = match enclave.shutdown(until.saturating_duration_since(Instant::now())) {
        Ok(status) => format!("exit status {status}"),
        Err(end) => end.to_string(),
    };
    drop(waiting);
    let calls = record.lock().unwrap_or_else(PoisonError::into_inner).take();
    match calls {
        Some(calls) => Ok(Calls { ended, ..calls }),
        None if !image.manifest().stdio => Err(Error::Usage(
            "the image's manifest lets no output out (stdio = false), so its runtime does not tell what it refused"
                .into(),
        )),
        None => Err(Error::NoReport { ended }),
    }
}

/// Reads the runtime's record (`enclos::abi::REPORT_MAGIC`).
fn parse(text: &str) -> Option<Calls> {
    let mut calls = Calls::default();
    let mut words = text.split(' ');
    if words.next() != Some(REPORT_MAGIC) {
        return None;
    }
    for word in words {
        let (name, count) = word.split_once('=')?;
        let count = count.parse().ok()?;
        match name {
            "direct" => calls.direct = count,
            "trapped" => calls.trapped = count,
            "cpuid" => calls.cpuid = count,
            "refused" => calls.refused = count,
            number => {
                let number = number.parse().ok()?;
                let name = linux_calls::name(number).map_or_else(|| format!("call {number}"), str::to_owned);
                calls.refused_calls.push(Refused { number, name, count });
            }
        }
    }
    Some(calls)
}

fn say_container(c: &Holder) {
    heading("Container");
    row("digest", &c.digest);
    row("tag", c.tag.as_deref().unwrap_or("none"));
    row("runs", c.entrypoint.join(" "));
    if c.untrue_labels.is_empty() {
        let count = c.labels.keys().filter(|name| name.starts_with("io.enclos.")).count();
        row("labels", format_args!("{count} about the enclave, {GOOD}all as it is{GOOD:#}"));
    }
    for (name, said, so) in &c.untrue_labels {
        row("labels", format_args!("{BAD}{name} says {said}{BAD:#}, the enclave's is {so}"));
    }
}

fn say(path: &Path, i: &Inspection) {
    heading("Identity");
    row("file", path.display());
    row("name", &i.manifest.name);
    row("MRENCLAVE", &i.identity.mrenclave);
    row("MRSIGNER", i.identity.mrsigner.as_deref().unwrap_or("none"));
    match &i.signature {
        Signature::Unsigned => row("signature", format_args!("{WARN}none{WARN:#}: `enclos sign` makes one")),
        Signature::Valid { date } => row("signature", format_args!("{GOOD}valid{GOOD:#}, of {date}")),
        Signature::Invalid { reason } => row("signature", format_args!("{BAD}not valid{BAD:#}: {reason}")),
    }
    row(
        "product",
        format_args!("{}, security version {}", i.identity.product_id, i.identity.security_version),
    );
    if i.identity.debug {
        row("debug", format_args!("{WARN}yes{WARN:#}: whoever controls the machine reads all of it"));
    } else {
        row("debug", "no");
    }
    row(
        "attributes",
        format_args!(
            "{}, XFRM {}{}, MISCSELECT {}",
            i.identity.attributes,
            i.identity.xfrm,
            match &*i.identity.optional_xfrm {
                "0x0" => String::new(),
                bits => format!(" (and {bits}, AVX-512, where the platform has it)"),
            },
            i.identity.miscselect
        ),
    );

    heading("The host may");
    let m = &i.manifest;
    let may = |allowed: bool| if allowed { "yes" } else { "no" };
    row("arguments", format_args!("pass program arguments: {}", may(m.args)));
    row("input", format_args!("pass standard input: {}", may(m.stdin)));
    row("output", format_args!("see standard output and error: {}", may(m.stdio)));
    row("environment", list(&m.env));
    row("services", list(&m.services));
    row("mounts", list(&m.mounts));
    row("may listen on", list(&m.listen));
    row("may connect to", list(&m.connect));
    row("host may signal", list(&m.signals));
    if !m.fixed_env.is_empty() {
        row("fixed", format_args!("{} {DIM}(measured environment){DIM:#}", m.fixed_env.join(", ")));
    }

    heading("Contracts");
    if i.contracts.is_empty() {
        say!("  none");
    }
    i.contracts.iter().for_each(say_contract);

    heading("Linux calls and CPUID (hint)");
    row("syscall", forms(&i.sites.syscall));
    row("cpuid", forms(&i.sites.cpuid));
    for (mnemonic, count) in &i.sites.illegal {
        row(mnemonic, format_args!("{count} {DIM}(illegal inside; trap){DIM:#}"));
    }

    heading("Layout");
    row("size", format_args!("{} of address space", size(i.enclave_size)));
    let profile = if m.dynamic_memory {
        "sgx2: heap and threads grow on demand, up to:"
    } else {
        "sgx1: heap and threads are part of the image"
    };
    row("profile", profile);
    row("threads", format_args!("{}, heap {}, stack {}", m.threads, size(m.heap_bytes), size(m.stack_bytes)));
    for a in &i.layout {
        let contents = if a.contents_measured { "measured" } else { "place and permissions measured" };
        say!(
            "  {DIM}{:>#11x}{DIM:#}  {:>10}  {}  {LABEL}{}{LABEL:#} {DIM}{contents}{DIM:#}",
            a.offset,
            size(a.size),
            a.permissions,
            a.what
        );
    }

    heading("Trusted base");
    let t = &i.trusted_base;
    row("runtime", format_args!("{}, of which code {}", size(t.runtime), size(t.runtime_code)));
    row("application", format_args!("{}, of which code {}", size(t.application), size(t.application_code)));
    row(
        "measured",
        format_args!(
            "{} by contents, {} by place and permissions",
            size(i.measured.content_bytes),
            size(i.measured.place_only_bytes)
        ),
    );
}

fn say_contract(c: &Contract) {
    let direction =
        if c.host_service { "the enclave calls it in the host" } else { "the host calls it in the enclave" };
    say!(
        "  {LABEL}{}{LABEL:#} of {} {DIM}{direction}; hash {}…{DIM:#}",
        c.name,
        c.crate_name,
        c.hash.get(..12).unwrap_or(&c.hash)
    );
    for m in &c.methods {
        let args: Vec<String> = m.args.iter().map(|a| format!("{}: {}", a.name, a.ty)).collect();
        let result = if m.result == "()" { String::new() } else { format!(" -> {}", m.result) };
        say!("    {}({}){result}", m.name, args.join(", "));
    }
}

fn say_calls(c: &Calls) {
    heading("One run");
    row("ended", &c.ended);
    row(
        "Linux calls",
        format_args!("{} by rewritten sites, {} trapped; CPUID {}", c.direct, c.trapped, c.cpuid),
    );
    if c.refused == 0 {
        row("refused", format_args!("{GOOD}none{GOOD:#}"));
    }
    for r in &c.refused_calls {
        let note = match r.name.as_str() {
            "rseq" | "clone3" => " (every program asks, and does without)",
            _ => "",
        };
        row("refused", format_args!("{WARN}{}{WARN:#} {} times{DIM}{note}{DIM:#}", r.name, r.count));
    }
}

fn heading(text: &str) {
    say!("\n{GOOD}{text}{GOOD:#}");
}

fn row(name: &str, value: impl std::fmt::Display) {
    say!("  {LABEL}{name:<12}{LABEL:#} {value}");
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn forms(f: &Forms) -> String {
    format!(
        "{} sites: {} rewritten, {} trap, {} not known to be code",
        f.total(),
        f.rewritten(),
        f.trapping,
        f.unproven
    )
}

/// Bytes in the largest unit that divides them well enough to read.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.0} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtimes_record_is_read() {
        let calls = parse("ENCLOS-CALLS direct=12 trapped=1 cpuid=3 refused=2 334=1 9999=1").unwrap();
        assert_eq!((calls.direct, calls.trapped, calls.cpuid, calls.refused), (12, 1, 3, 2));
        let names: Vec<_> = calls.refused_calls.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["rseq", "call 9999"]);
        assert_eq!(parse("something else"), None);
        assert_eq!(parse("ENCLOS-CALLS direct"), None);
    }

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(size(512), "512 B");
        assert_eq!(size(4096), "4 KiB");
        assert_eq!(size(8 << 20), "8.0 MiB");
    }
}
