//! `enclos inspect`
use super::Outcome;
use crate::ui::Ui;
/// Shows an image
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    pub(crate) json: bool,
}
pub(crate) fn run(_: &Args, _: Ui) -> Outcome {
    Ok(std::process::ExitCode::SUCCESS)
}
