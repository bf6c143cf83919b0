//! Container images: an enclave image and its host program as an OCI image, written and read without a daemon.
//!
//! Formats: OCI Image Format Specification 1.1 (image layout, manifest, configuration, layers as gzip-compressed tar).
//! What is written depends on its contents only: names are sorted, files have no times and no owners of the machine that
//! packed them, so that the same programs give the same digest.
//!
//! The labels say what enclave is inside. They are for people and admission rules to look at; what the enclave is, is
//! decided by its measured pages. [`Layout::enclaves`] reads these.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Read, Write as _};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr as _;

use flate2::{Compression, GzBuilder, read::MultiGzDecoder};
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, Digest, HistoryBuilder, ImageConfiguration, ImageConfigurationBuilder,
    ImageIndex, ImageIndexBuilder, ImageManifest, ImageManifestBuilder, MediaType, OciLayout,
    OciLayoutBuilder, Os, PlatformBuilder, RootFsBuilder,
};
use rsa::sha2::{Digest as _, Sha256};
use serde::Serialize;

use crate::image::{EXTENSION, Image, ImageError};
use crate::sign::hex;

/// Labels of the image configuration, and annotations of the manifest.
pub mod label {
    /// MRENCLAVE, hexadecimal.
    pub const MRENCLAVE: &str = "io.enclos.mrenclave";
    /// MRSIGNER, hexadecimal. Absent: the image is not signed.
    pub const MRSIGNER: &str = "io.enclos.mrsigner";
    /// ISVPRODID.
    pub const PRODUCT_ID: &str = "io.enclos.product-id";
    /// ISVSVN.
    pub const SECURITY_VERSION: &str = "io.enclos.security-version";
    /// `true`: a debug enclave, which anyone on the machine can read.
    pub const DEBUG: &str = "io.enclos.debug";
}

/// User and group that the container runs as.
const USER: u64 = 65532;
/// The container's state: its working folder, and what `ENCLOS_STATE` names.
const STATE: &str = "var/lib/enclos";
/// Largest blob that is read, in bytes: of a layer, also unpacked.
const MAX_BLOB: u64 = 4 << 30;
/// Largest JSON document that is read, in bytes.
const MAX_DOCUMENT: u64 = 4 << 20;

/// What goes into a container image.
#[derive(Clone, Copy, Debug)]
pub struct Container<'a> {
    /// Name of the image, as references use it; the programs are called after it.
    pub name: &'a str,
    /// The reference's tag.
    pub tag: &'a str,
    /// The host program: a static executable.
    pub host: &'a [u8],
    /// The enclave.
    pub enclave: &'a Image,
    /// When it was made, in seconds since 1970. `None`: not said, so that the digest does not depend on it.
    pub created: Option<u64>,
}

/// A container image in memory.
#[derive(Clone, Debug)]
pub struct ContainerImage {
    index: Vec<u8>,
    /// By digest, without the algorithm.
    blobs: BTreeMap<String, Vec<u8>>,
    digest: String,
}

impl Container<'_> {
    /// Makes the container image.
    ///
    /// # Errors
    /// When `name` or `tag` cannot stand in a reference, or the time cannot be said.
    pub fn build(&self) -> Result<ContainerImage, OciError> {
        check_name(self.name)?;
        check_tag(self.tag)?;
        let mut blobs = Blobs::default();
        let host_path = format!("usr/bin/{}", self.name);
        let enclave_path = format!("usr/lib/enclos/{}.{EXTENSION}", self.name);
        let passwd = format!("root:x:0:0::/:/\nenclos:x:{USER}:{USER}::/{STATE}:/\n");
        let group = format!("root:x:0:\nenclos:x:{USER}:\n");
        let layers = [
            Layer::new()
                .folder("etc", 0o755, 0)
                .file("etc/group", 0o644, group.as_bytes())
                .file("etc/passwd", 0o644, passwd.as_bytes())
                .folder("tmp", 0o1777, 0)
                .folder("usr", 0o755, 0)
                .folder("usr/bin", 0o755, 0)
                .file(&host_path, 0o755, self.host)
                .folder("var", 0o755, 0)
                .folder("var/lib", 0o755, 0)
                .folder(STATE, 0o700, USER)
                .finish()?,
            Layer::new()
                .folder("usr", 0o755, 0)
                .folder("usr/lib", 0o755, 0)
                .folder("usr/lib/enclos", 0o755, 0)
                .file(&enclave_path, 0o644, &self.enclave.to_file_bytes())
                .finish()?,
        ];
        let created = self.created.map(rfc3339).transpose()?;
        let labels = labels_of(self.enclave);
        let configuration = self.configuration(&layers, &labels, created.as_deref())?;
        let mut descriptors = Vec::new();
        for layer in layers {
            descriptors.push(blobs.add(MediaType::ImageLayerGzip, layer.compressed)?);
        }
        let configuration = blobs.add(MediaType::ImageConfig, document(&configuration)?)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(configuration)
            .layers(descriptors)
            .annotations(labels.clone())
            .build()?;
        let mut manifest = blobs.add(MediaType::ImageManifest, document(&manifest)?)?;
        let digest = manifest.digest().to_string();
        manifest
            .set_platform(Some(PlatformBuilder::default().architecture(Arch::Amd64).os(Os::Linux).build()?));
        let mut names = labels;
        names.insert("org.opencontainers.image.ref.name".into(), self.tag.to_owned());
        manifest.set_annotations(Some(names));
        let index = ImageIndexBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageIndex)
            .manifests(vec![manifest])
            .build()?;
        Ok(ContainerImage { index: document(&index)?, blobs: blobs.0, digest })
    }

    fn configuration(
        &self,
        layers: &[FinishedLayer],
        labels: &HashMap<String, String>,
        created: Option<&str>,
    ) -> Result<ImageConfiguration, OciError> {
        let config = ConfigBuilder::default()
            .user(format!("{USER}:{USER}"))
            .entrypoint(vec![format!("/usr/bin/{}", self.name)])
            .env(vec![
                "PATH=/usr/bin".to_owned(),
                format!("HOME=/{STATE}"),
                format!("ENCLOS_STATE=/{STATE}"),
                format!("ENCLOS_IMAGE=/usr/lib/enclos/{}.{EXTENSION}", self.name),
                "ENCLOS_PLATFORM=auto".to_owned(),
            ])
            .working_dir(format!("/{STATE}"))
            .labels(labels.clone())
            .build()?;
        let root = RootFsBuilder::default()
            .typ("layers")
            .diff_ids(layers.iter().map(|l| format!("sha256:{}", l.diff_id)).collect::<Vec<_>>())
            .build()?;
        let step = |text: &str| {
            let step = HistoryBuilder::default().created_by(format!("enclos image: {text}"));
            match created {
                Some(created) => step.created(created).build(),
                None => step.build(),
            }
        };
        let builder = ImageConfigurationBuilder::default()
            .architecture(Arch::Amd64)
            .os(Os::Linux)
            .config(config)
            .rootfs(root)
            .history(vec![step("the host program")?, step("the enclave")?]);
        Ok(match created {
            Some(created) => builder.created(created).build()?,
            None => builder.build()?,
        })
    }
}

impl ContainerImage {
    /// Digest of the manifest, as `sha256:…`: what names this image.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Writes an image layout folder. One that is there is replaced when it is an image layout; anything else is left
    /// alone.
    ///
    /// # Errors
    /// When the folder is something else, or cannot be written.
    pub fn write_folder(&self, path: &Path) -> Result<(), OciError> {
        let failed = |source| OciError::Write { path: path.into(), source };
        if path.exists() && !path.join("oci-layout").is_file() {
            let is_empty = path.is_dir() && path.read_dir().map_err(failed)?.next().is_none();
            if !is_empty {
                return Err(OciError::NotALayout { path: path.into() });
            }
        }
        // Made beside it and moved into place, so that a reader finds the old one or the new one.
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(failed)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let beside = |what: &str| parent.join(format!(".{name}.{}.{what}", std::process::id()));
        let (new, old) = (beside("new"), beside("old"));
        let write = || -> Result<(), OciError> {
            for (name, contents) in self.files()? {
                let file = new.join(&name);
                fs::create_dir_all(file.parent().unwrap_or(&new)).map_err(failed)?;
                fs::write(&file, contents).map_err(failed)?;
            }
            if path.exists() {
                fs::rename(path, &old).map_err(failed)?;
            }
            fs::rename(&new, path).map_err(failed)
        };
        let written = write();
        let _ = fs::remove_dir_all(&new);
        if written.is_ok() {
            let _ = fs::remove_dir_all(&old);
        } else if !path.exists() {
            let _ = fs::rename(&old, path);
        }
        written
    }

    /// Writes an archive of the image layout (tar), which `skopeo`, `podman load` and `ctr image import` read.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_archive(&self, path: &Path) -> Result<(), OciError> {
        let failed = |source| OciError::Write { path: path.into(), source };
        let mut archive = Layer::new().folder("blobs", 0o755, 0).folder("blobs/sha256", 0o755, 0);
        for (name, contents) in self.files()? {
            archive = archive.file(&name, 0o644, &contents);
        }
        let bytes = archive.into_tar()?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path)).map_err(failed)
    }

    /// The files of the layout, in the order of their names.
    fn files(&self) -> Result<Vec<(String, Vec<u8>)>, OciError> {
        let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?;
        let blobs =
            self.blobs.iter().map(|(digest, bytes)| (format!("blobs/sha256/{digest}"), bytes.clone()));
        let heads =
            [("index.json".to_owned(), self.index.clone()), ("oci-layout".to_owned(), document(&layout)?)];
        Ok(blobs.chain(heads).collect())
    }
}

fn labels_of(image: &Image) -> HashMap<String, String> {
    let identity = image.identity();
    let mut labels = HashMap::from([
        (label::MRENCLAVE.to_owned(), hex(&image.mrenclave())),
        (label::PRODUCT_ID.to_owned(), identity.product_id.to_string()),
        (label::SECURITY_VERSION.to_owned(), identity.security_version.to_string()),
        (label::DEBUG.to_owned(), identity.debug.to_string()),
    ]);
    if let Ok(signer) = image.verify() {
        labels.insert(label::MRSIGNER.to_owned(), hex(&signer.mrsigner()));
    }
    labels
}

#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    fn add(&mut self, kind: MediaType, bytes: Vec<u8>) -> Result<Descriptor, OciError> {
        let digest = hex(&Sha256::digest(&bytes));
        let descriptor =
            Descriptor::new(kind, bytes.len() as u64, Digest::from_str(&format!("sha256:{digest}"))?);
        self.0.insert(digest, bytes);
        Ok(descriptor)
    }
}

/// A tar archive in the making, without times and names of users.
struct Layer(Result<tar::Builder<Vec<u8>>, io::Error>);

struct FinishedLayer {
    /// SHA-256 of the archive, uncompressed.
    diff_id: String,
    compressed: Vec<u8>,
}

impl Layer {
    fn new() -> Self {
        Self(Ok(tar::Builder::new(Vec::new())))
    }

    fn folder(self, path: &str, mode: u32, owner: u64) -> Self {
        self.entry(tar::EntryType::Directory, &format!("{path}/"), mode, owner, &[])
    }

    fn file(self, path: &str, mode: u32, contents: &[u8]) -> Self {
        self.entry(tar::EntryType::Regular, path, mode, 0, contents)
    }

    fn entry(self, kind: tar::EntryType, path: &str, mode: u32, owner: u64, contents: &[u8]) -> Self {
        Self(self.0.and_then(|mut tar| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(owner);
            header.set_gid(owner);
            header.set_mtime(0);
            header.set_size(contents.len() as u64);
            tar.append_data(&mut header, path, contents).map(|()| tar)
        }))
    }

    fn into_tar(self) -> Result<Vec<u8>, OciError> {
        self.0.and_then(tar::Builder::into_inner).map_err(|source| OciError::Archive { source })
    }

    fn finish(self) -> Result<FinishedLayer, OciError> {
        let tar = self.into_tar()?;
        let diff_id = hex(&Sha256::digest(&tar));
        // No name, no time; the operating system is said as "unknown", because it shows in the header.
        let mut gzip =
            GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::default());
        let compressed = gzip.write_all(&tar).and_then(|()| gzip.finish());
        Ok(FinishedLayer { diff_id, compressed: compressed.map_err(|source| OciError::Archive { source })? })
    }
}

/// JSON with sorted names, so that the same document gives the same bytes.
fn document(value: &impl Serialize) -> Result<Vec<u8>, OciError> {
    let mut value = serde_json::to_value(value)
        .map_err(|e| OciError::Document { what: "JSON".into(), message: e.to_string() })?;
    value.sort_all_objects();
    Ok(value.to_string().into_bytes())
}

/// `path-component` of the distribution specification, one of them: also a file name.
fn check_name(name: &str) -> Result<(), OciError> {
    let sound = !name.is_empty()
        && name.len() <= 128
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
        && !name.starts_with(['.', '_', '-'])
        && !name.ends_with(['.', '_', '-']);
    sound.then_some(()).ok_or_else(|| OciError::Name { found: name.into() })
}

/// `tag` of the distribution specification.
fn check_tag(tag: &str) -> Result<(), OciError> {
    let sound = !tag.is_empty()
        && tag.len() <= 128
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !tag.starts_with(['.', '-']);
    sound.then_some(()).ok_or_else(|| OciError::Tag { found: tag.into() })
}

fn rfc3339(seconds: u64) -> Result<String, OciError> {
    let date = crate::Date::from_unix(seconds).to_bcd();
    let (year, month, day) = (date >> 16, date >> 8 & 0xff, date & 0xff);
    if year > 0x9999 {
        return Err(OciError::Document {
            what: "the time".into(),
            message: format!("{seconds} lies too far ahead"),
        });
    }
    let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    Ok(format!("{year:04x}-{month:02x}-{day:02x}T{h:02}:{m:02}:{s:02}Z"))
}

/// An OCI image that lies in a layout folder or in an archive of one; every blob that was read had its digest.
#[derive(Debug)]
pub struct Layout {
    /// Digest of the manifest.
    pub digest: String,
    /// The tag it has in the index, if it has one.
    pub tag: Option<String>,
    /// What the configuration's labels say.
    pub labels: BTreeMap<String, String>,
    /// What is executed.
    pub entrypoint: Vec<String>,
    /// The enclave images among its files, by path, as the last layer has them.
    pub enclaves: Vec<(String, Image)>,
}

impl Layout {
    /// Reads the image for Linux on x86-64 from a layout folder or an archive (tar); `tag` chooses among several.
    ///
    /// # Errors
    /// When there is none, a blob is missing or has another digest, something is too large, or a file that is named as an
    /// enclave is none.
    pub fn open(path: &Path, tag: Option<&str>) -> Result<Self, OciError> {
        let files = if path.is_dir() { Files::Folder(path) } else { Files::archive(path)? };
        let layout: OciLayout = files.document("oci-layout")?;
        if !layout.image_layout_version().starts_with("1.") {
            let message = format!("version {} of the layout", layout.image_layout_version());
            return Err(OciError::Document { what: "oci-layout".into(), message });
        }
        let index: ImageIndex = files.document("index.json")?;
        let chosen = choose(&index, tag)?;
        let manifest: ImageManifest = files.blob_document(chosen)?;
        let configuration: ImageConfiguration = files.blob_document(manifest.config())?;
        let mut enclaves = BTreeMap::new();
        for layer in manifest.layers() {
            find_enclaves(&files.blob(layer, MAX_BLOB)?, layer.media_type(), &mut enclaves)?;
        }
        let enclaves = enclaves.into_iter().map(|(path, bytes)| match Image::parse(&bytes) {
            Ok(image) => Ok((path, image)),
            Err(source) => Err(OciError::Enclave { path, source }),
        });
        let config = configuration.config().as_ref();
        Ok(Self {
            digest: chosen.digest().to_string(),
            tag: tag_of(chosen),
            labels: config.and_then(|c| c.labels().clone()).unwrap_or_default().into_iter().collect(),
            entrypoint: config.and_then(|c| c.entrypoint().clone()).unwrap_or_default(),
            enclaves: enclaves.collect::<Result<_, _>>()?,
        })
    }

    /// The labels that say something else than what the enclave is: name, what is said, what is so.
    pub fn untrue_labels(&self, enclave: &Image) -> Vec<(String, String, String)> {
        let so = labels_of(enclave);
        let ours = self.labels.iter().filter(|(name, _)| name.starts_with("io.enclos."));
        let untrue = ours.filter(|(name, said)| so.get(*name) != Some(said));
        untrue.map(|(n, said)| (n.clone(), said.clone(), so.get(n).cloned().unwrap_or_default())).collect()
    }
}

fn tag_of(descriptor: &Descriptor) -> Option<String> {
    descriptor.annotations().as_ref()?.get("org.opencontainers.image.ref.name").cloned()
}

fn choose<'a>(index: &'a ImageIndex, tag: Option<&str>) -> Result<&'a Descriptor, OciError> {
    let fits = |d: &&Descriptor| {
        let here =
            d.platform().as_ref().is_none_or(|p| *p.os() == Os::Linux && *p.architecture() == Arch::Amd64);
        let tagged = tag.is_none_or(|t| tag_of(d).as_deref() == Some(t));
        here && tagged && *d.media_type() == MediaType::ImageManifest
    };
    let found: Vec<_> = index.manifests().iter().filter(fits).collect();
    match found[..] {
        [one] => Ok(one),
        _ => {
            let tags = index.manifests().iter().filter_map(tag_of).collect();
            Err(OciError::Which { wanted: tag.map(str::to_owned), count: found.len(), tags })
        }
    }
}

/// The files of a layout.
enum Files<'a> {
    Folder(&'a Path),
    Archive(BTreeMap<String, Vec<u8>>),
}

impl Files<'_> {
    fn archive(path: &Path) -> Result<Self, OciError> {
        let failed = |source| OciError::Read { path: path.into(), source };
        let mut files = BTreeMap::new();
        let mut archive = tar::Archive::new(fs::File::open(path).map_err(failed)?);
        for entry in archive.entries().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Some(name) = plain_name(&entry.path().map_err(failed)?) {
                files.insert(name, limited(entry, MAX_BLOB).map_err(failed)?);
            }
        }
        Ok(Self::Archive(files))
    }

    fn file(&self, name: &str, limit: u64) -> Result<Vec<u8>, OciError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                let read = fs::File::open(&path).and_then(|f| limited(f, limit));
                read.map_err(|source| OciError::Read { path, source })
            }
            Self::Archive(files) => {
                files.get(name).cloned().ok_or_else(|| OciError::Missing { name: name.to_owned() })
            }
        }
    }

    fn document<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, OciError> {
        parse(name, &self.file(name, MAX_DOCUMENT)?)
    }

    fn blob_document<T: serde::de::DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T, OciError> {
        parse(descriptor.digest().as_ref(), &self.blob(descriptor, MAX_DOCUMENT)?)
    }

    /// The bytes with a descriptor's digest.
    fn blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, OciError> {
        let wanted = descriptor.as_digest_sha256().ok_or_else(|| OciError::Document {
            what: descriptor.digest().to_string(),
            message: "only SHA-256 digests are read".into(),
        })?;
        let bytes = self.file(&format!("blobs/sha256/{wanted}"), limit.min(descriptor.size()))?;
        let found = hex(&Sha256::digest(&bytes));
        if found != wanted {
            return Err(OciError::Altered { wanted: wanted.to_owned(), found });
        }
        Ok(bytes)
    }
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(bytes)
        .map_err(|e| OciError::Document { what: what.into(), message: e.to_string() })
}

/// Everything that comes, or an error when it is more than the limit.
fn limited(from: impl Read, limit: u64) -> Result<Vec<u8>, io::Error> {
    let mut bytes = Vec::new();
    from.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {limit} bytes")));
    }
    Ok(bytes)
}

/// Notes the enclave images of a layer, and forgets those that it deletes (whiteouts).
fn find_enclaves(
    layer: &[u8],
    kind: &MediaType,
    found: &mut BTreeMap<String, Vec<u8>>,
) -> Result<(), OciError> {
    let unpacked: Box<dyn Read + '_> = match kind {
        MediaType::ImageLayer | MediaType::ImageLayerNonDistributable => Box::new(layer),
        MediaType::ImageLayerGzip | MediaType::ImageLayerNonDistributableGzip => {
            Box::new(MultiGzDecoder::new(layer))
        }
        other => {
            return Err(OciError::Document {
                what: "a layer".into(),
                message: format!("{other} is not read, only tar and gzip"),
            });
        }
    };
    let failed = |source| OciError::Archive { source };
    let mut archive = tar::Archive::new(unpacked.take(MAX_BLOB));
    for entry in archive.entries().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(name) = plain_name(&entry.path().map_err(failed)?) else { continue };
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", &name));
        if file == ".wh..wh..opq" {
            found.retain(|path, _| !path.starts_with(&format!("{folder}/")));
        } else if let Some(gone) = file.strip_prefix(".wh.") {
            let gone = if folder.is_empty() { gone.to_owned() } else { format!("{folder}/{gone}") };
            found.retain(|path, _| *path != gone && !path.starts_with(&format!("{gone}/")));
        } else if entry.header().entry_type().is_file() && file.ends_with(&format!(".{EXTENSION}")) {
            let bytes = limited(entry, MAX_BLOB).map_err(failed)?;
            found.insert(name, bytes);
        } else {
            found.remove(&name);
        }
    }
    Ok(())
}

/// A path of an archive without `.` and `/` at its begin; `None` when it leads elsewhere.
fn plain_name(path: &Path) -> Option<String> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    plain.into_os_string().into_string().ok().filter(|p| !p.is_empty())
}

/// Why a container image cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OciError {
    /// The name.
    #[error(
        "{found:?} cannot name a container image: use up to 128 of a to z, 0 to 9, and . _ - between them"
    )]
    Name {
        /// What was given.
        found: String,
    },
    /// The tag.
    #[error("{found:?} is no tag: use up to 128 letters, digits, and . _ - after the first")]
    Tag {
        /// What was given.
        found: String,
    },
    /// A folder that is not ours to replace.
    #[error("{} is there already and is no OCI image layout: name another folder, or remove it", path.display())]
    NotALayout {
        /// Which.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive lacks a file.
    #[error(
        "{name} is not in the archive: it is cut short, or no OCI image (Docker's own format is another)"
    )]
    Missing {
        /// Which.
        name: String,
    },
    /// A blob is not what its name says.
    #[error(
        "the blob of digest {wanted} has digest {found}: it was altered or damaged; fetch the image again"
    )]
    Altered {
        /// The digest it should have.
        wanted: String,
        /// The one it has.
        found: String,
    },
    /// No image, or several.
    #[error(
        "{count} images for Linux on x86-64{}: name one by its tag ({})",
        wanted.as_ref().map_or_else(String::new, |t| format!(" with the tag {t:?}")),
        if tags.is_empty() { "there are no tags".to_owned() } else { tags.join(", ") }
    )]
    Which {
        /// The tag asked for.
        wanted: Option<String>,
        /// How many fit.
        count: usize,
        /// The tags there are.
        tags: Vec<String>,
    },
    /// A file named as an enclave image is none.
    #[error("{path} in the container image is not usable")]
    Enclave {
        /// Its path in the container.
        path: String,
        /// Why.
        source: ImageError,
    },
    /// A document is not as the specification wants it.
    #[error("{what} is not usable: {message}")]
    Document {
        /// Which.
        what: String,
        /// What is wrong.
        message: String,
    },
    /// A tar archive.
    #[error("a layer is not usable: {source}")]
    Archive {
        /// What is wrong.
        source: io::Error,
    },
}

impl From<oci_spec::OciSpecError> for OciError {
    fn from(e: oci_spec::OciSpecError) -> Self {
        Self::Document { what: "the image".into(), message: e.to_string() }
    }
}
