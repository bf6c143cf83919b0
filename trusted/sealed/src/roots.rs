//! Roots: sealed with a key of the CPU, they stand for all the rest. `docs/sealed-files.md` says what is where, and why.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Nonce, Tag};
use zeroize::Zeroizing;

use crate::format::{BLOCK, Policy, ROOT, ROOT_BODY, ROOT_HEADER, RootBody, RootHeader, TAG};
use crate::volume::reading;
use crate::{Error, HostFile, KeyError, KeyRequest, Platform, Versions};

const ENOENT: i32 = 2;

/// Key of roots, derived once a mount by a KEYID of its own.
pub(crate) struct RootKey {
    request: KeyRequest,
    cipher: Aes128Gcm,
    /// Roots written under it: their nonces.
    used: u64,
}

impl RootKey {
    pub(crate) fn new(platform: &mut impl Platform, policy: Policy) -> Result<Self, Error> {
        let mut request = KeyRequest { policy, versions: platform.versions(), key_id: [0; 32] };
        if !platform.random(&mut request.key_id) {
            return Err(Error::NoRandom);
        }
        let cipher = root_cipher(platform, &request)?;
        Ok(Self { request, cipher, used: 0 })
    }

    /// A root as the host keeps it, for the mount at `path`, and its tag.
    pub(crate) fn seal(
        &mut self,
        platform: &impl Platform,
        path: &[u8],
        body: &RootBody,
    ) -> Result<([u8; ROOT], [u8; TAG]), Error> {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.used.to_le_bytes());
        self.used += 1;
        let header = RootHeader { key: self.request, nonce }.to_bytes();
        let additional = [&header[..], path].concat();
        let mut sealed = Zeroizing::new(body.to_bytes());
        let encrypt = || {
            let sealed = sealed.as_mut_slice().into();
            self.cipher.encrypt_inout_detached(&Nonce::from(nonce), &additional, sealed)
        };
        let tag = platform.with_vectors(encrypt).map_err(|_| Error::TooLarge)?;
        let mut root = [0; ROOT];
        root[..ROOT_HEADER].copy_from_slice(&header);
        root[ROOT_HEADER..ROOT_HEADER + ROOT_BODY].copy_from_slice(&*sealed);
        root[ROOT_HEADER + ROOT_BODY..][..TAG].copy_from_slice(&tag);
        Ok((root, tag.into()))
    }
}

fn root_cipher(platform: &mut impl Platform, request: &KeyRequest) -> Result<Aes128Gcm, Error> {
    let Versions { isv_svn: own, .. } = platform.versions();
    let sealed = request.versions.isv_svn;
    if sealed > own {
        return Err(Error::FromNewerVersion { sealed, own });
    }
    let key = Zeroizing::new(platform.seal_key(request).map_err(|e| match e {
        KeyError::NewerEnclave => Error::FromNewerVersion { sealed, own },
        KeyError::NewerPlatform => Error::FromNewerPlatform,
        KeyError::Other(code) => Error::Key { code },
    })?);
    Ok(platform.with_vectors(|| Aes128Gcm::new(&(*key).into())))
}

/// A root that opens.
pub(crate) struct Found {
    pub(crate) body: RootBody,
    /// As the host has it.
    pub(crate) stored: [u8; ROOT],
    pub(crate) tag: [u8; TAG],
    /// Is the witness behind?
    pub(crate) owes_witness: bool,
}

/// The roots that the host has.
pub(crate) struct Roots;

impl Roots {
    /// The last root that was made durable; `None`: there is no volume.
    pub(crate) fn read(
        platform: &mut impl Platform,
        policy: Policy,
        path: &[u8],
    ) -> Result<Option<Found>, Error> {
        let mut found: Option<Found> = None;
        let (mut is_empty, mut failure) = (true, Error::NotAuthentic);
        for at in [0, BLOCK as u64] {
            let Some(bytes) = Self::bytes(platform, HostFile::Root, at)? else { continue };
            is_empty = false;
            match Self::open(platform, policy, path, &bytes) {
                Ok(root) if found.as_ref().is_none_or(|f| f.body.generation < root.body.generation) => {
                    found = Some(root);
                }
                Ok(_) => {}
                // Half written when the host died, or altered: the witness tells which.
                Err(e @ (Error::NotAuthentic | Error::Malformed { .. })) => failure = e,
                // Never fall back to what was before.
                Err(e) => return Err(e),
            }
        }
        let witness = Self::bytes(platform, HostFile::Blocks, 0)?;
        let mut root = match (found, witness.is_some()) {
            (Some(found), _) => found,
            (None, true) if is_empty => return Err(Error::Missing { file: HostFile::Root }),
            // The first commit was never made.
            (None, false) if is_empty => return Ok(None),
            (None, _) => return Err(failure),
        };
        let Some(witness) = witness else {
            root.owes_witness = true;
            // Written right after the first root, and made durable by the second commit.
            return match root.body.generation {
                1 => Ok(Some(root)),
                _ => Err(Error::Missing { file: HostFile::Blocks }),
            };
        };
        let altered = Error::Altered { file: HostFile::Blocks, at: 0 };
        let witness = Self::open(platform, policy, path, &witness).map_err(|e| match e {
            Error::NotAuthentic | Error::Malformed { .. } => altered.clone(),
            e => e,
        })?;
        match root.body.generation.checked_sub(witness.body.generation) {
            _ if witness.body.volume != root.body.volume => Err(altered),
            None => Err(Error::RolledBack { file: HostFile::Root }),
            Some(0) if witness.tag != root.tag => Err(altered),
            Some(behind @ (0 | 1)) => {
                root.owes_witness = behind == 1;
                Ok(Some(root))
            }
            Some(_) => Err(Error::RolledBack { file: HostFile::Blocks }),
        }
    }

    /// What is there; `None`: nothing but zeros.
    fn bytes(platform: &mut impl Platform, file: HostFile, at: u64) -> Result<Option<[u8; ROOT]>, Error> {
        let mut bytes = [0; ROOT];
        match platform.read(file, at, &mut bytes) {
            Ok(n) if n <= ROOT => bytes[n..].fill(0),
            Ok(_) => return Err(Error::Altered { file, at }),
            Err(ENOENT) => {}
            Err(e) => return Err(reading(file)(e)),
        }
        Ok(bytes.iter().any(|b| *b != 0).then_some(bytes))
    }

    fn open(
        platform: &mut impl Platform,
        policy: Policy,
        path: &[u8],
        bytes: &[u8; ROOT],
    ) -> Result<Found, Error> {
        let mut encoded = [0; ROOT_HEADER];
        encoded.copy_from_slice(&bytes[..ROOT_HEADER]);
        let header = RootHeader::from_bytes(&encoded)?;
        if header.key.policy != policy {
            return Err(Error::Policy { found: header.key.policy, wanted: policy });
        }
        let cipher = root_cipher(platform, &header.key)?;
        let mut body = Zeroizing::new([0; ROOT_BODY]);
        body.copy_from_slice(&bytes[ROOT_HEADER..ROOT_HEADER + ROOT_BODY]);
        let mut tag = [0; TAG];
        tag.copy_from_slice(&bytes[ROOT_HEADER + ROOT_BODY..][..TAG]);
        let additional = [&encoded[..], path].concat();
        let decrypt = || {
            let (nonce, tag) = (Nonce::from(header.nonce), Tag::from(tag));
            cipher.decrypt_inout_detached(&nonce, &additional, body.as_mut_slice().into(), &tag)
        };
        platform.with_vectors(decrypt).map_err(|_| Error::NotAuthentic)?;
        Ok(Found { body: RootBody::from_bytes(&body)?, stored: *bytes, tag, owes_witness: false })
    }
}
