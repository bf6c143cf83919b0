//! `enclos doctor`

use std::process::ExitCode;

use enclos_platform::inventory::{Fact, Inventory, NeededBy, Status, Verdict};

use super::{Outcome, say_json};
use crate::ui::{BAD, DIM, GOOD, LABEL, Ui, WARN, say};

/// Says what this machine has and lacks for enclaves, and what to do about it.
///
/// Nothing is changed and nothing needs privileges. The exit code is 3 when neither SGX hardware nor the emulator can run
/// here.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  enclos doctor\n  enclos doctor --json | jq .hardware")]
pub(crate) struct Args {
    /// Results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(_: &Args, ui: Ui) -> Outcome {
    let inventory = Inventory::take();
    if ui.json() {
        say_json(&inventory);
    } else {
        say(&inventory);
    }
    Ok(if inventory.hardware.usable || inventory.emulated.usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

fn say(inventory: &Inventory) {
    for fact in &inventory.facts {
        let (style, word) = match fact.status {
            Status::Ok => (GOOD, "ok"),
            Status::Missing => (BAD, "missing"),
            Status::Limited => (WARN, "warn"),
            Status::Info => (DIM, "info"),
        };
        say!("{style}{word:>8}{style:#}  {LABEL}{}{LABEL:#}: {}", fact.name, fact.value);
        if let Some(cure) = fact.cure {
            say!("{:>8}  {DIM}{}{cure}{DIM:#}", "", needed_by(fact));
        }
    }
    say!("");
    say_verdict("SGX hardware", &inventory.hardware, "enclaves run protected");
    say_verdict("Emulator", &inventory.emulated, "the same images run, and nothing protects them");
}

fn needed_by(fact: &Fact) -> &'static str {
    match fact.needed_by {
        NeededBy::Hardware => "for SGX hardware: ",
        NeededBy::Emulated => "for the emulator: ",
        NeededBy::Both => "for all enclaves: ",
        NeededBy::Nobody => "",
    }
}

fn say_verdict(platform: &str, verdict: &Verdict, meaning: &str) {
    if verdict.usable {
        say!("{GOOD}{platform}{GOOD:#} can be used: {meaning}.");
    } else {
        say!("{BAD}{platform}{BAD:#} cannot be used; missing: {}.", verdict.missing.join(", "));
    }
}
