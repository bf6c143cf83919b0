//! Sealing: encrypting data so that only this image, or images of the same signer and product, on this machine can
//! decrypt it.
//!
//! # Format, version 1
//! All numbers little-endian.
//! ```text
//!   0   8  "ENCLSEAL"
//!   8   2  version: 1
//!  10   2  policy: KEYREQUEST.KEYPOLICY, 1 = MRENCLAVE, 2 = MRSIGNER
//!  12   2  ISVSVN of the key
//!  14   2  0
//!  16  16  CPUSVN of the key
//!  32  32  KEYID, random
//!  64  12  nonce, random
//!  76   4  0
//!  80      ciphertext, then 16 bytes of tag
//! ```
//! AES-128-GCM (NIST SP 800-38D) with the key that EGETKEY derives for these fields (SDM vol. 3D, 38.4 EGETKEY); the
//! additional data are the 80 bytes of the header followed by the caller's. KEYID is new each time, so is the key.
//! Attribute mask: DEBUG and INIT; MISCSELECT mask: 0. A debug and a production enclave do not share keys.
//!
//! An image of a higher ISVSVN can derive the keys of lower ones, not the other way round (the CPU refuses).
//!
//! What sealing does not do: keep the host from bringing back an older blob, or from deleting all of them.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Nonce, Tag};
use sgx_isa::{AttributesFlags, ErrorCode, Keyname, Keypolicy, Keyrequest, Report, Targetinfo};
use zeroize::Zeroizing;

use enclos::abi::SealedState;

use crate::identity::{Aligned512, report};
use crate::runtime::{NotInEnclave, random, table};

/// Who may unseal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Only this very image (MRENCLAVE): the next build cannot.
    Image,
    /// Every image of the same signer and product id whose security version is at least that of this one.
    Signer,
}

/// Why sealing or unsealing failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// There is no sealing key outside an enclave.
    #[error(transparent)]
    NotInEnclave(#[from] NotInEnclave),
    /// The bytes are not a sealed blob.
    #[error("not sealed data: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// Sealed by a format that this build does not know.
    #[error("sealed in format version {found}, this build knows {VERSION}: use a newer build")]
    Version {
        /// The version found.
        found: u16,
    },
    /// Sealed by a newer security version of this program.
    #[error(
        "sealed by security version {sealed} of this program, this one is {own}: \
         a newer version's data stays closed to older ones; run the newer image"
    )]
    FromNewerVersion {
        /// ISVSVN of the blob.
        sealed: u16,
        /// ISVSVN of this enclave.
        own: u16,
    },
    /// Sealed under newer microcode than the CPU runs now.
    #[error("sealed under a newer CPU security version than the present one: update the microcode")]
    FromNewerPlatform,
    /// Not sealed for this enclave, or altered.
    #[error(
        "the sealed data does not open: it was altered, or sealed with other associated data, by another image or \
         signer, or on another machine"
    )]
    NotAuthentic,
    /// EGETKEY failed in another way.
    #[error("EGETKEY failed with error code {code}")]
    Key {
        /// RAX.
        code: i64,
    },
    /// Too long for AES-GCM.
    #[error("more than {MAX_PLAINTEXT} bytes cannot be sealed at once: split the data")]
    TooLong,
}

const MAGIC: [u8; 8] = *b"ENCLSEAL";
const VERSION: u16 = 1;
const HEADER: usize = 80;
const TAG: usize = 16;
/// Longest plaintext in bytes: the bound of GCM.
const MAX_PLAINTEXT: u64 = (1 << 36) - 32;

/// Seals `plaintext`. `associated` is not stored: [`unseal`] must be given the same; use it to tie a blob to its
/// purpose.
///
/// # Errors
/// Outside an enclave, and when the data is too long.
pub fn seal(policy: Policy, associated: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
    if plaintext.len() as u64 > MAX_PLAINTEXT {
        return Err(SealError::TooLong);
    }
    let own = own_report()?;
    let mut header =
        Header { policy, isv_svn: own.isvsvn, cpu_svn: own.cpusvn, key_id: [0; 32], nonce: [0; 12] };
    random(&mut header.key_id)?;
    random(&mut header.nonce)?;
    let encoded = header.to_bytes();
    let mut blob = Vec::with_capacity(HEADER + plaintext.len() + TAG);
    blob.extend_from_slice(&encoded);
    blob.extend_from_slice(plaintext);
    let tag = cipher(&header, &own)?
        .encrypt_inout_detached(
            &Nonce::from(header.nonce),
            &additional_data(&encoded, associated),
            blob[HEADER..].as_mut().into(),
        )
        .map_err(|_| SealError::TooLong)?;
    blob.extend_from_slice(&tag);
    Ok(blob)
}

/// Opens what [`seal`] made.
///
/// # Errors
/// Outside an enclave; when the blob was altered, belongs to others, or was sealed by a newer version.
pub fn unseal(associated: &[u8], blob: &[u8]) -> Result<Vec<u8>, SealError> {
    let (encoded, rest) =
        blob.split_first_chunk::<HEADER>().ok_or(SealError::Malformed { what: "it is too short" })?;
    let header = Header::from_bytes(encoded)?;
    let (ciphertext, tag) =
        rest.split_last_chunk::<TAG>().ok_or(SealError::Malformed { what: "it is too short" })?;
    let own = own_report()?;
    let cipher = cipher(&header, &own)?;
    // Unauthenticated plaintext must not stay behind when the tag does not match.
    let mut plaintext = Zeroizing::new(ciphertext.to_vec());
    cipher
        .decrypt_inout_detached(
            &Nonce::from(header.nonce),
            &additional_data(encoded, associated),
            plaintext.as_mut_slice().into(),
            &Tag::from(*tag),
        )
        .map_err(|_| SealError::NotAuthentic)?;
    Ok(std::mem::take(&mut plaintext))
}

/// The state of the sealed files mounted at `path` (`[[mounts]]` of the manifest) that is durable now.
///
/// A host can bring back an older state of all of them together, which nothing inside the machine can tell. A party that
/// remembers the last state it was told can: the generation only grows, and the digest depends on every byte.
/// Tell it after `fsync`, and compare before anything is believed. A volume that is not the one remembered is a new one.
///
/// # Errors
/// ENOENT where nothing is mounted or there is no enclave; EACCES and EIO where the files do not open (the log says why).
pub fn sealed_state(path: &str) -> std::io::Result<SealedState> {
    let table = table().map_err(|e| std::io::Error::new(std::io::ErrorKind::NotFound, e))?;
    let mut state = SealedState::default();
    match (table.sealed_state)(path.as_ptr(), path.len() as u64, &raw mut state) {
        0 => Ok(state),
        code => Err(std::io::Error::from_raw_os_error(i32::try_from(-code).unwrap_or(libc::EIO))),
    }
}

struct Header {
    policy: Policy,
    isv_svn: u16,
    cpu_svn: [u8; 16],
    key_id: [u8; 32],
    nonce: [u8; 12],
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER] {
        let mut b = [0; HEADER];
        b[..8].copy_from_slice(&MAGIC);
        b[8..10].copy_from_slice(&VERSION.to_le_bytes());
        b[10..12].copy_from_slice(&self.key_policy().bits().to_le_bytes());
        b[12..14].copy_from_slice(&self.isv_svn.to_le_bytes());
        b[16..32].copy_from_slice(&self.cpu_svn);
        b[32..64].copy_from_slice(&self.key_id);
        b[64..76].copy_from_slice(&self.nonce);
        b
    }

    fn from_bytes(b: &[u8; HEADER]) -> Result<Self, SealError> {
        let malformed = |what| SealError::Malformed { what };
        let number = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        if b[..8] != MAGIC {
            return Err(malformed("it does not begin with ENCLSEAL"));
        }
        if number(8) != VERSION {
            return Err(SealError::Version { found: number(8) });
        }
        let policy = match Keypolicy::from_bits(number(10)) {
            Some(Keypolicy::MRENCLAVE) => Policy::Image,
            Some(Keypolicy::MRSIGNER) => Policy::Signer,
            _ => return Err(malformed("its policy is neither image nor signer")),
        };
        if number(14) != 0 || b[76..] != [0; 4] {
            return Err(malformed("reserved bytes are not zero"));
        }
        let mut header =
            Self { policy, isv_svn: number(12), cpu_svn: [0; 16], key_id: [0; 32], nonce: [0; 12] };
        header.cpu_svn.copy_from_slice(&b[16..32]);
        header.key_id.copy_from_slice(&b[32..64]);
        header.nonce.copy_from_slice(&b[64..76]);
        Ok(header)
    }

    fn key_policy(&self) -> Keypolicy {
        match self.policy {
            Policy::Image => Keypolicy::MRENCLAVE,
            Policy::Signer => Keypolicy::MRSIGNER,
        }
    }
}

fn additional_data(header: &[u8; HEADER], associated: &[u8]) -> Vec<u8> {
    [header, associated].concat()
}

fn own_report() -> Result<Report, NotInEnclave> {
    report(&Targetinfo::default(), &[0; 64])
}

/// The cipher with the key that the CPU derives for this header and this enclave.
fn cipher(header: &Header, own: &Report) -> Result<Aes128Gcm, SealError> {
    if header.isv_svn > own.isvsvn {
        return Err(SealError::FromNewerVersion { sealed: header.isv_svn, own: own.isvsvn });
    }
    let request = Keyrequest {
        keyname: Keyname::Seal as u16,
        keypolicy: header.key_policy(),
        isvsvn: header.isv_svn,
        cpusvn: header.cpu_svn,
        attributemask: [(AttributesFlags::INIT | AttributesFlags::DEBUG).bits(), 0],
        keyid: header.key_id,
        ..Keyrequest::default()
    };
    let request =
        Aligned512(<[u8; Keyrequest::UNPADDED_SIZE]>::try_from(request.as_ref()).unwrap_or([0; 512]));
    let mut key = Zeroizing::new(Key([0; 16]));
    let code = (table()?.egetkey)(request.0.as_ptr(), key.0.as_mut_ptr());
    let is = |e: ErrorCode| code == i64::from(e as u32);
    match code {
        0 => Ok(Aes128Gcm::new(&key.0.into())),
        _ if is(ErrorCode::InvalidIsvsvn) => {
            Err(SealError::FromNewerVersion { sealed: header.isv_svn, own: own.isvsvn })
        }
        _ if is(ErrorCode::InvalidCpusvn) => Err(SealError::FromNewerPlatform),
        code => Err(SealError::Key { code }),
    }
}

#[repr(C, align(16))]
struct Key([u8; 16]);

impl zeroize::Zeroize for Key {
    fn zeroize(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> [u8; HEADER] {
        Header { policy: Policy::Signer, isv_svn: 7, cpu_svn: [1; 16], key_id: [2; 32], nonce: [3; 12] }
            .to_bytes()
    }

    #[test]
    fn headers_survive_and_others_are_refused() {
        let read = Header::from_bytes(&header()).unwrap();
        assert_eq!(read.to_bytes(), header());
        assert_eq!((read.policy, read.isv_svn), (Policy::Signer, 7));
        let changed = |at: usize, to: u8| {
            let mut h = header();
            h[at] = to;
            Header::from_bytes(&h).err()
        };
        assert!(matches!(changed(0, b'X'), Some(SealError::Malformed { .. })));
        assert_eq!(changed(8, 2), Some(SealError::Version { found: 2 }));
        for (at, to) in [(10, 0), (10, 3), (11, 1), (14, 1), (79, 1)] {
            assert!(matches!(changed(at, to), Some(SealError::Malformed { .. })), "{at} {to}");
        }
    }

    #[test]
    fn outside_an_enclave_nothing_is_sealed() {
        assert_eq!(seal(Policy::Image, b"", b"x"), Err(SealError::NotInEnclave(NotInEnclave)));
        let blob = [&header()[..], &[0; 16]].concat();
        assert_eq!(unseal(b"", &blob), Err(SealError::NotInEnclave(NotInEnclave)));
        assert!(matches!(unseal(b"", &blob[..95]), Err(SealError::Malformed { .. })));
        assert!(matches!(unseal(b"", &blob[..10]), Err(SealError::Malformed { .. })));
    }
}
