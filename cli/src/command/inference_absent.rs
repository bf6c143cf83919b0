//! `enclos inference`, `infer`, `model` and `key-broker` of a command that was built without them.

use super::{Error, Outcome};
use crate::ui::Ui;

const CURE: &str = "\
This enclos was built without the inference service, whose HTTP and HPKE crates most projects do not need. Where enclos came
from, build it with the service:

  cargo install --path cli --features inference";

/// Not in this build: see `--help`.
#[derive(Debug, clap::Args)]
#[command(after_help = CURE)]
pub(crate) struct Args {
    /// Would be the service's
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
    #[arg(skip)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, _: Ui) -> Outcome {
    let _ = &args.arguments;
    Err(Error::Usage(CURE.to_owned()))
}
