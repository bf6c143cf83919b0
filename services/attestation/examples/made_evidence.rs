//! `made_evidence FOLDER`: writes evidence of a made-up SGX platform, for tests of other languages.
//!
//! What is written: `quote.bin`, `collateral/made.json`, and `made.json` with the key of its root and the time at which
//! its collateral is in force.

#[expect(dead_code, reason = "tests need other platforms, too")]
#[path = "../../../verifier/tests/foundry/mod.rs"]
mod foundry;

use std::{error::Error, fs, path::PathBuf};

use foundry::{Made, NOW, Platform};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: made_evidence FOLDER")?);
    let Made { quote, collateral, root, .. } = Platform::sgx().make();
    fs::create_dir_all(folder.join("collateral"))?;
    fs::write(folder.join("quote.bin"), quote)?;
    fs::write(folder.join("collateral/made.json"), serde_json::to_vec(&collateral)?)?;
    let facts = serde_json::json!({ "root": root, "time": NOW });
    Ok(fs::write(folder.join("made.json"), facts.to_string())?)
}
