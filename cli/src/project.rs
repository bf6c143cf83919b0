//! Where things lie in a project, and who signs its images.
//!
//! ```text
//! enclos.toml             what is measured besides the code
//! enclave/                the enclave's crate, or as `[build] crate` says
//! host/                   the host program's crate; absent where the enclave is a plain program
//! target/enclos/          the images
//! .enclos/sdk/            the crates of enclos, where Cargo.toml refers to them there
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use enclos_pack::sign::hex;
use enclos_pack::{Config, SigningKey, config};
use enclos_platform::emulator::machine::MachineConfig;

use crate::command::Error;
use crate::embedded;
use crate::ui::Ui;

/// A project on disk.
pub(crate) struct Project {
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// Its `enclos.toml`.
    pub(crate) config: Config,
}

impl Project {
    /// Opens the project in a folder, and unpacks the SDK where it refers to it.
    ///
    /// # Errors
    /// When there is none, or its configuration is not usable.
    pub(crate) fn open(folder: &Path, ui: Ui) -> Result<Self, Error> {
        let file = folder.join(config::FILE_NAME);
        if !file.is_file() {
            return Err(Error::NoProject { path: folder.into() });
        }
        let config = Config::load(&file)?;
        let folder = folder.canonicalize().map_err(|source| Error::Read { path: folder.into(), source })?;
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
        if manifest.contains(embedded::SDK_DIR) && embedded::unpack_sdk(&folder)? {
            ui.status("unpacked", format_args!("the crates of enclos into {}", embedded::SDK_DIR));
        }
        Ok(Self { folder, config })
    }

    /// Where its image goes.
    pub(crate) fn image(&self) -> PathBuf {
        let name = format!("{}.{}", self.config.name.as_str(), enclos_pack::image::EXTENSION);
        self.folder.join("target/enclos").join(name)
    }

    /// The manifest of its host program, if it has one.
    pub(crate) fn host(&self) -> Option<PathBuf> {
        Some(self.folder.join("host/Cargo.toml")).filter(|m| m.is_file())
    }
}

/// The key that signs images for which no other is given. Made when there is none.
///
/// # Errors
/// When it cannot be read or made.
pub(crate) fn developer_key(ui: Ui) -> Result<SigningKey, Error> {
    let folder = MachineConfig::state_dir();
    let path = folder.join("developer-key.pem");
    if path.exists() {
        return Ok(SigningKey::load(&path)?);
    }
    let failed = |source| Error::Write { path: folder.clone(), source };
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
    let waiting = ui.wait("making a developer key (RSA-3072)");
    let key = SigningKey::generate()?;
    drop(waiting);
    match key.write_new(&path) {
        // Another process was faster: its key is the developer's.
        Err(enclos_pack::SignError::KeyExists { .. }) => return Ok(SigningKey::load(&path)?),
        other => other?,
    }
    ui.status(
        "made",
        format_args!(
            "a developer signing key, {} (MRSIGNER {}…); `enclos keygen` makes others",
            path.display(),
            &hex(&key.public().mrsigner())[..12]
        ),
    );
    Ok(key)
}
