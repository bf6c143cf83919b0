//! What `cargo xtask test` does, step by step.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::{Context, Failure, Report, program, run};

/// One step.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) lane: Lane,
    pub(crate) run: Run,
}

/// Steps of a lane run one after another, lanes side by side: compilers, tests and running services wait for different things, and
/// cargo locks a target folder a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Before the next two.
    First,
    /// Our own tests.
    Tests,
    /// Other people's software against what the first lane built.
    Others,
    /// Builds otherwise, from the beginning.
    Release,
}

/// All of them, in order: what fails fastest and tells most comes first.
#[rustfmt::skip]
pub(crate) const STEPS: &[Step] = &[
    step("build", Lane::First, build, "every crate and its tests, without optimisation"),
    step("workspace", Lane::Tests, workspace, "unit and integration tests of every crate"),
    step("trapping", Lane::Tests, trapping, "enclaves on the emulator with every ENCLU trapping"),
    step("exclusive", Lane::Tests, exclusive, "enclaves with the Linux call interception of older kernels"),
    step("conformance", Lane::Others, conformance, "other people's software against ours (tests/conformance)"),
    step("gdb", Lane::Others, gdb, "Debian's gdb in an enclave, and what faults report"),
    step("postgres", Lane::Tests, postgres, "replicas of the attestation service on PostgreSQL"),
    step("quotes", Lane::Others, quotes, "somebody else's verifier (dcap-qvl) against emulated quotes and collateral"),
    step("demo", Lane::Others, demo, "an example attests: refused by default, accepted when the root is named, and given a token"),
    step("azure", Lane::Others, azure, "Azure's attestation SDKs against the service, outside and inside an enclave"),
    step("onnxruntime", Lane::Others, onnxruntime, "ONNX Runtime and our engine on models that scikit-learn trains"),
    step("jwe", Lane::Others, jwe, "jwcrypto and enclos model on each other's encrypted files"),
    step("inference-demo", Lane::Others, inference_demo, "digits through broker, server, proxy and Triton's client; nothing of them in what the operator's side handled"),
    step("inference-page", Lane::Others, inference_page, "the verifying proxy's page in headless Chromium: digits drawn, and answered by an enclave"),
    step("tritonclient", Lane::Others, tritonclient, "Triton's client and curl through the verifying proxy to models in an enclave"),
    step("inspector", Lane::Others, inspector, "the attestation service's evidence inspector in headless Chromium"),
    step("openapi", Lane::Others, openapi, "schemathesis against the attestation service's OpenAPI description"),
    step("fuzz", Lane::Release, fuzz, "every fuzz target for a few seconds, guided by coverage"),
    step("vault", Lane::Release, vault, "the README's first command, twice: the vault survives a restart"),
    step("trusted-base", Lane::Release, trusted_base, "the size of what must be trusted: bytes, lines, other people's crates"),
    step("containers", Lane::Release, containers, "skopeo, umoci, runc and buildah read, run and build container images of ours"),
    step("scaffold", Lane::Release, scaffold, "an installed enclos makes, runs and tests a project anywhere"),
    step("reproducible", Lane::Release, reproducible, "the same sources in another folder give the same MRENCLAVE and container digest"),
    step("bench", Lane::Release, bench, "the benchmarks run and say what they should"),
];

type Run = fn(&Context, &mut Report) -> Result<(), Failure>;

const fn step(name: &'static str, lane: Lane, run: Run, about: &'static str) -> Step {
    Step { name, about, lane, run }
}

/// What every debug build of a run chooses. Cargo gives dependencies the features that all chosen packages want together, so
/// another choice would build most of them again. With tests, too: they have dependencies of their own.
const EVERYTHING: [&str; 3] =
    ["--workspace", "--features", "enclos-cli/attestation-service,enclos-cli/inference"];

/// What there is to build of all these.
const PROGRAMS: [&str; 3] = ["--bins", "--tests", "--examples"];

/// How cargo compiles our crates through clippy, which is the compiler with lints. Not by an environment variable: tests run
/// cargo, too.
const CLIPPY: [&str; 2] = ["--config", "build.rustc-workspace-wrapper='clippy-driver'"];

/// `-D warnings`, as `cargo clippy` tells clippy.
const CLIPPY_ARGS: &str = "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__";

/// What comes behind `cargo build` or `cargo test` in a run's debug builds.
fn choice(c: &Context) -> Vec<&'static str> {
    let clippy: &[_] = if c.clippy { &CLIPPY } else { &[] };
    [&EVERYTHING, clippy].concat()
}

/// A debug build or its tests.
fn debug(c: &Context, subcommand: &str) -> Command {
    let mut command = c.cargo(&c.root);
    command.arg(subcommand).args(choice(c));
    if c.clippy {
        command.env("CLIPPY_ARGS", CLIPPY_ARGS);
    }
    command
}

/// A suite of `tests/conformance`; it builds what it needs with the choice of packages that it is given.
fn suite(c: &Context, script: &str) -> Command {
    let mut command = program("bash", &c.root);
    command.arg(c.root.join("tests/conformance").join(script));
    command.env("PACKAGES", [&choice(c)[..], &PROGRAMS].concat().join(" "));
    if c.clippy {
        command.env("CLIPPY_ARGS", CLIPPY_ARGS);
    }
    command
}

fn build(c: &Context, report: &mut Report) -> Result<(), Failure> {
    let mut build = debug(c, "build");
    build.args(PROGRAMS);
    if c.clippy {
        build.arg("--benches");
    }
    run(&mut build, report).map(drop)
}

fn workspace(c: &Context, report: &mut Report) -> Result<(), Failure> {
    run(debug(c, "test").arg("--no-fail-fast"), report).map(drop)
}

/// Packages whose integration tests start enclaves.
const STARTS_ENCLAVES: [&str; 4] = ["enclos-platform", "enclos-host", "enclos-programs", "vault-host"];

fn trapping(c: &Context, report: &mut Report) -> Result<(), Failure> {
    with_enclaves(c, "ENCLOS_EMULATOR", "trapping", report)
}

fn exclusive(c: &Context, report: &mut Report) -> Result<(), Failure> {
    with_enclaves(c, "ENCLOS_EMULATOR_DISPATCH", "exclusive", report)
}

fn with_enclaves(c: &Context, variable: &str, value: &str, report: &mut Report) -> Result<(), Failure> {
    let mut metadata = c.cargo(&c.root);
    metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
    let output =
        metadata.output().map_err(|source| Failure::Spawn { command: "cargo metadata".into(), source })?;
    let metadata: Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| Failure::Wrong(format!("`cargo metadata` says no JSON: {e}")))?;
    let mut command = debug(c, "test");
    command.arg("--no-fail-fast").env(variable, value);
    for package in metadata["packages"].as_array().into_iter().flatten() {
        if !STARTS_ENCLAVES.iter().any(|name| package["name"] == *name) {
            continue;
        }
        for target in package["targets"].as_array().into_iter().flatten() {
            if let (true, Some(name)) = (target["kind"][0] == "test", target["name"].as_str()) {
                command.args(["--test", name]);
            }
        }
    }
    run(&mut command, report).map(drop)
}

fn conformance(c: &Context, report: &mut Report) -> Result<(), Failure> {
    // sgxs-tools and report-test build against OpenSSL, aesm-client with protoc.
    let programs = [("pkg-config", "pkg-config"), ("protoc", "protobuf-compiler")];
    install(&[("openssl/ssl.h", "libssl-dev")], &programs, report)?;
    let folder = c.root.join("tests/conformance");
    let mut workspaces = vec![folder.clone()];
    let entries = fs::read_dir(&folder).map_err(|source| Failure::File { path: folder.clone(), source })?;
    workspaces.extend(entries.flatten().map(|e| e.path()));
    let is_workspace = |w: &PathBuf| {
        fs::read_to_string(w.join("Cargo.toml")).is_ok_and(|t| t.lines().any(|l| l.trim() == "[workspace]"))
    };
    workspaces.retain(is_workspace);
    workspaces.sort();
    if workspaces.is_empty() {
        return Err(Failure::Wrong(format!("{} holds no workspace", folder.display())));
    }
    // In our target folder: most of what they depend on is there already.
    let target = target(c);
    for workspace in workspaces {
        let mut tests = c.cargo(&workspace);
        tests.env("CARGO_TARGET_DIR", &target).args(["test", "--workspace", "--no-fail-fast"]);
        run(&mut tests, report)?;
    }
    Ok(())
}

fn gdb(c: &Context, report: &mut Report) -> Result<(), Failure> {
    install(&[], &[("gdb", "gdb")], report)?;
    run(&mut suite(c, "gdb/run.sh"), report).map(drop)
}

fn postgres(c: &Context, report: &mut Report) -> Result<(), Failure> {
    // Debian keeps the server's programs out of PATH, a folder a version.
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let has_server = versions.map(|v| v.path().join("bin/initdb")).any(|program| program.is_file());
    if !has_server {
        install(&[], &[("", "postgresql")], report)?;
    }
    run(debug(c, "test").args(["--test", "postgres", "--", "--include-ignored"]), report).map(drop)
}

fn quotes(c: &Context, report: &mut Report) -> Result<(), Failure> {
    install(&[], &[venv()], report)?;
    run(&mut suite(c, "dcap-qvl/run.sh"), report).map(drop)
}

fn onnxruntime(c: &Context, report: &mut Report) -> Result<(), Failure> {
    install(&[], &[venv()], report)?;
    run(&mut suite(c, "onnxruntime/run.sh"), report).map(drop)
}

fn jwe(c: &Context, report: &mut Report) -> Result<(), Failure> {
    install(&[], &[venv()], report)?;
    run(&mut suite(c, "jwe/run.sh"), report).map(drop)
}

fn inference_demo(c: &Context, report: &mut Report) -> Result<(), Failure> {
    install(&[], &[("strace", "strace"), venv()], report)?;
    let said = run(&mut suite(c, "inference/demo.sh"), report)?;
    for expected in ["released", "refused", "tritonclient", "the host's memory", "strace", "All of it holds"]
    {
        expect(&said, expected)?;
    }
    Ok(())
}

fn inference_page(c: &Context, report: &mut Report) -> Result<(), Failure> {
    install(&[], &[("node", "nodejs"), ("npm", "npm"), ("chromium", "chromium"), venv()], report)?;
    run(&mut suite(c, "inference/page.sh"), report).map(drop)
}

fn tritonclient(c: &Context, report: &mut Report) -> Result<(), Failure> {
    install(&[], &[("curl", "curl"), venv()], report)?;
    run(&mut suite(c, "tritonclient/run.sh"), report).map(drop)
}

fn demo(c: &Context, report: &mut Report) -> Result<(), Failure> {
    install(&[], &[("node", "nodejs"), ("npm", "npm"), venv()], report)?;
    let said = run(&mut suite(c, "azure-attestation/demo.sh"), report)?;
    for expected in [
        "REFUSED: its root",
        "ACCEPTED, but emulated",
        "REFUSED: the report data",
        "REFUSED: no identity rule",
        "Python: MRENCLAVE",
        "JavaScript: MRENCLAVE",
        "All of it holds",
    ] {
        expect(&said, expected)?;
    }
    Ok(())
}

fn azure(c: &Context, report: &mut Report) -> Result<(), Failure> {
    if !has_quotes(c, report) {
        return Ok(());
    }
    install(&[], &[("node", "nodejs"), ("npm", "npm"), venv()], report)?;
    for arguments in [&[][..], &["--enclave"]] {
        run(suite(c, "azure-attestation/run.sh").args(arguments), report)?;
    }
    Ok(())
}

/// What [`install`] needs for virtual environments: Debian's Python comes without.
fn venv() -> (&'static str, &'static str) {
    let has_venv = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    match has_venv.is_ok_and(|o| o.status.success()) {
        true => ("python3", "python3"),
        false => ("", "python3-venv"),
    }
}

/// Whether the recorded quotes are there; says so when they are not.
fn has_quotes(c: &Context, report: &Report) -> bool {
    let quotes = std::env::var_os("ENCLOS_QUOTES").map_or(c.root.join("../shared/quotes"), PathBuf::from);
    if !quotes.is_dir() {
        report.say(&format!(
            "skipped: there are no recorded quotes at {} (set ENCLOS_QUOTES)",
            quotes.display()
        ));
    }
    quotes.is_dir()
}

fn inspector(c: &Context, report: &mut Report) -> Result<(), Failure> {
    if !has_quotes(c, report) {
        return Ok(());
    }
    install(&[], &[("node", "nodejs"), ("npm", "npm"), ("chromium", "chromium")], report)?;
    run(&mut suite(c, "inspector/run.sh"), report).map(drop)
}

fn openapi(c: &Context, report: &mut Report) -> Result<(), Failure> {
    install(&[], &[venv()], report)?;
    run(&mut suite(c, "openapi/run.sh"), report).map(drop)
}

fn fuzz(c: &Context, report: &mut Report) -> Result<(), Failure> {
    // libFuzzer is C++.
    install(&[], &[("c++", "g++")], report)?;
    let mut targets = program("bash", &c.root);
    // They run for seconds: less than what more optimisation takes.
    targets.arg(c.root.join("fuzz/run.sh")).env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    run(&mut targets, report).map(drop)
}

/// Installs Debian packages for headers and programs that are missing.
fn install(headers: &[(&str, &str)], programs: &[(&str, &str)], report: &mut Report) -> Result<(), Failure> {
    // One package manager at a time.
    static APT: Mutex<()> = Mutex::new(());
    let _apt = APT.lock().unwrap_or_else(PoisonError::into_inner);
    let include = ["/usr/include", "/usr/local/include", "/usr/include/x86_64-linux-gnu"];
    let has_header = |h: &str| include.iter().any(|i| Path::new(i).join(h).exists());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_program = |p: &str| std::env::split_paths(&path).any(|d| d.join(p).is_file());
    let missing: Vec<&str> = headers
        .iter()
        .filter(|(h, _)| !has_header(h))
        .chain(programs.iter().filter(|(p, _)| !has_program(p)))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    report.say(&format!("installing {} (apt)", missing.join(", ")));
    let am_root = fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    let apt = |args: &[&str]| {
        let mut command = Command::new(if am_root { "apt-get" } else { "sudo" });
        if !am_root {
            command.args(["-n", "apt-get"]);
        }
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-y"]).args(args);
        command
    };
    let installed = run(&mut apt(&["update"]), report)
        .and_then(|_| run(apt(&["install", "--no-install-recommends"]).args(&missing), report));
    installed.map(drop).map_err(|e| {
        Failure::Wrong(format!("{e}; install {} yourself and run this again", missing.join(" and ")))
    })
}

fn vault(c: &Context, report: &mut Report) -> Result<(), Failure> {
    let store = c.folder("vault")?.join("vault.sealed");
    let mut demo = || {
        let mut command = c.cargo(&c.root);
        command
            .args(["run", "--release", "--quiet", "--", "run", "examples/vault", "--", "--store"])
            .arg(&store);
        run(&mut command, report)
    };
    let first = demo()?;
    expect(&first, "The vault is new.")?;
    expect(&first, "none of the values in plain text")?;
    let second = demo()?;
    expect(&second, "of an earlier run")
}

fn trusted_base(c: &Context, report: &mut Report) -> Result<(), Failure> {
    let mut inspect = c.cargo(&c.root);
    inspect.args(["run", "--release", "--quiet", "--"]);
    // Nothing is built twice: the step before built it.
    let built = run(inspect.args(["build", "--json", "examples/vault"]), report)?;
    let mut inspect = c.cargo(&c.root);
    inspect.args(["run", "--release", "--quiet", "--", "inspect", "--json"]).arg(field(&built, "image")?);
    let said: Value = serde_json::from_str(&run(&mut inspect, report)?)
        .map_err(|e| Failure::Wrong(format!("`enclos inspect --json` says no JSON: {e}")))?;
    let bytes = |name: &str| {
        let value = said["trusted_base"][name].as_u64().filter(|v| *v != 0);
        value.ok_or_else(|| Failure::Wrong(format!("`enclos inspect --json` says no {name}")))
    };
    let (runtime, code) = (bytes("runtime")?, bytes("runtime_code")?);
    report.say("\nTrusted base of every image:");
    report.say(&format!("  runtime          {runtime} bytes of pages, of which {code} executable"));
    for (what, folder) in [
        ("runtime", "trusted/runtime/src"),
        ("enclave library", "trusted/enclave/src"),
        ("interface", "interface/src"),
    ] {
        report.say(&format!("  {what:16} {} lines of Rust ({folder})", lines_of_rust(&c.root.join(folder))?));
    }
    for package in ["enclos-runtime", "enclos-enclave"] {
        let mut tree = c.cargo(&c.root);
        tree.args(["tree", "--quiet", "--package", package, "--edges", "normal,no-proc-macro"]);
        tree.args(["--prefix", "none", "--no-dedupe", "--target", "x86_64-unknown-linux-gnu"]);
        let listed =
            tree.output().map_err(|source| Failure::Spawn { command: "cargo tree".into(), source })?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let mut crates: Vec<_> =
            listed.lines().filter(|l| !l.starts_with("enclos") && !l.is_empty()).collect();
        crates.sort_unstable();
        crates.dedup();
        if crates.is_empty() {
            return Err(Failure::Wrong(format!("cargo tree lists no crates of {package}")));
        }
        report.say(&format!("  {package:16} {} crates of others: {}", crates.len(), crates.join(", ")));
    }
    Ok(())
}

/// Lines of code below a folder: no blank lines, no comments, no tests at the ends of files.
fn lines_of_rust(folder: &Path) -> Result<usize, Failure> {
    let failed = |source| Failure::File { path: folder.to_path_buf(), source };
    let mut lines = 0;
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            lines += lines_of_rust(&path)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).map_err(failed)?;
            let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            lines += code.lines().filter(|l| !l.trim().is_empty() && !l.trim().starts_with("//")).count();
        }
    }
    match lines {
        0 => Err(Failure::Wrong(format!("{} holds no Rust", folder.display()))),
        lines => Ok(lines),
    }
}

fn containers(c: &Context, report: &mut Report) -> Result<(), Failure> {
    install(
        &[],
        &[("skopeo", "skopeo"), ("umoci", "umoci"), ("runc", "runc"), ("buildah", "buildah")],
        report,
    )?;
    run(&mut suite(c, "containers/run.sh"), report).map(drop)
}

fn scaffold(c: &Context, report: &mut Report) -> Result<(), Failure> {
    let root = c.folder("installed")?;
    run(
        c.cargo(&c.root).args(["install", "--quiet", "--locked", "--path", "cli", "--root"]).arg(&root),
        report,
    )?;
    let enclos = root.join("bin/enclos");
    let mut identities = Vec::new();
    for folder in ["here", "some where/else"] {
        let folder = c.folder(folder)?;
        run(program(&enclos, &folder).args(["new", "demo"]), report)?;
        let demo = folder.join("demo");
        // Projects of users have a target folder of their own.
        let command = || {
            let mut command = program(&enclos, &demo);
            command.env_remove("CARGO_TARGET_DIR");
            command
        };
        let built = run(command().args(["build", "--json"]), report)?;
        identities.push(field(&built, "mrenclave")?);
        if identities.len() == 1 {
            let said = run(command().args(["run", "--", "Ada"]), report)?;
            expect(&said, ", Ada, from inside the enclave")?;
            run(command().args(["inspect"]), report)?;
            // What is not in the default build says how to get it.
            for (name, feature) in [("attestation-service", "attestation-service"), ("infer", "inference")] {
                let said = run(command().args([name, "--help"]), report)?;
                expect(&said, &format!("cargo install --path cli --features {feature}"))?;
            }
            run(c.cargo(&demo).env_remove("CARGO_TARGET_DIR").arg("test"), report)?;
        }
    }
    same(&identities, report)
}

fn reproducible(c: &Context, report: &mut Report) -> Result<(), Failure> {
    let copy = c.folder("another folder")?;
    copy_sources(c, &copy)?;
    let mut identities = Vec::new();
    let enclos = enclos(c, report)?;
    for root in [&c.root, &copy] {
        let mut command = program(&enclos, &c.root);
        command.args(["build", "--json"]).arg(root.join("examples/vault"));
        // Another day, too.
        let built = run(command.env("SOURCE_DATE_EPOCH", format!("{}", 86_400 * identities.len())), report)?;
        identities.push(field(&built, "mrenclave")?);
    }
    same(&identities, report)?;
    // The day stands in the signature, and so in the digest.
    let mut digests = Vec::new();
    for root in [&c.root, &copy] {
        let mut command = program(&enclos, &c.root);
        command.args(["image", "--json", "--output"]);
        command.arg(c.folder("digests")?.join("vault.tar")).arg(root.join("examples/vault"));
        digests.push(field(&run(command.env("SOURCE_DATE_EPOCH", "0"), report)?, "digest")?);
    }
    same(&digests, report)
}

/// The command, built as `cargo run --release` builds it. For runs with variables that build scripts look at: cargo would build
/// the command again for each value.
fn enclos(c: &Context, report: &mut Report) -> Result<PathBuf, Failure> {
    run(c.cargo(&c.root).args(["build", "--release", "--quiet"]), report)?;
    Ok(target(c).join("release/enclos"))
}

/// Cargo's target folder of this workspace.
fn target(c: &Context) -> PathBuf {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    c.root.join(folder)
}

/// The files that are, or could be, committed.
fn copy_sources(c: &Context, to: &Path) -> Result<(), Failure> {
    let mut list = Command::new("git");
    list.current_dir(&c.root).args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let listed = list.output().map_err(|source| Failure::Spawn { command: "git ls-files".into(), source })?;
    if !listed.status.success() {
        return Err(Failure::Command { command: "git ls-files".into(), status: listed.status });
    }
    for file in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|f| !f.is_empty()) {
        let (from, to) = (c.root.join(file), to.join(file));
        if !from.is_file() {
            continue;
        }
        let copied = to.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::copy(&from, &to));
        copied.map_err(|source| Failure::File { path: to, source })?;
    }
    Ok(())
}

fn bench(c: &Context, report: &mut Report) -> Result<(), Failure> {
    let mut command = c.cargo(&c.root);
    command.args(["run", "--release", "--quiet", "--", "bench", "--json", "--samples", "5"]);
    let said = run(&mut command, report)?;
    let figures: Vec<Value> = said.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    if figures.len() < 10 {
        return Err(Failure::Wrong(format!("10 figures expected, {} came", figures.len())));
    }
    for figure in &figures {
        for key in ["median", "min", "max", "baseline_median", "ratio"] {
            let sound = figure[key].as_f64().is_some_and(|v| v.is_finite() && v > 0.0);
            if !sound {
                return Err(Failure::Wrong(format!("{key} of {figure} is no positive number")));
            }
        }
    }
    Ok(())
}

fn expect(text: &str, part: &str) -> Result<(), Failure> {
    match text.contains(part) {
        true => Ok(()),
        false => Err(Failure::Wrong(format!("the output lacks {part:?}"))),
    }
}

/// A text field of the last line, JSON.
fn field(output: &str, name: &str) -> Result<String, Failure> {
    let last = output.lines().last().unwrap_or_default();
    let value: Option<Value> = serde_json::from_str(last).ok();
    let text = value.as_ref().and_then(|v| v[name].as_str());
    text.map(str::to_owned).ok_or_else(|| Failure::Wrong(format!("no {name} in {last:?}")))
}

fn same(identities: &[String], report: &Report) -> Result<(), Failure> {
    report.say(&identities.join(", "));
    match identities {
        [first, rest @ ..] if rest.iter().all(|r| r == first) => Ok(()),
        _ => Err(Failure::Wrong(format!("different measurements: {}", identities.join(", ")))),
    }
}
