//! What attested certificates carry: evidence and claims in CBOR, in a certificate extension.
//!
//! The format is that of "Interoperable RA-TLS" (Confidential Computing Consortium, Attestation SIG):
//!
//! ```text
//! extension 2.23.133.5.4.9 = 60000([ quote: bstr, claims: bstr ])
//! claims      = { "pubkey-hash": bstr(hash-entry), ? "nonce": bstr }
//! hash-entry  = [ algorithm: uint, SHA-2 of the DER SubjectPublicKeyInfo: bstr ]
//! report data of the quote = SHA-256(claims) followed by 32 zeros
//! ```

use der::asn1::ObjectIdentifier;
use enclos_verifier::Bytes;
use minicbor::{Decoder, Encoder, data::Tag, data::Type};
use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};

/// The extension: `tcg-dice-conceptual-message-wrapper` (TCG DICE Attestation Architecture), not critical, since
/// common TLS libraries refuse certificates with critical extensions that they do not know.
pub const EVIDENCE_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.9");
/// CBOR tag of evidence that is an SGX or TDX quote (IANA "CBOR Tags").
pub const INTEL_QUOTE_TAG: u64 = 60000;
/// Bytes of report data.
pub const REPORT_DATA: usize = 64;

const PUBKEY_HASH: &str = "pubkey-hash";
const NONCE: &str = "nonce";

/// A quote and the claims that its report data is the hash of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaggedEvidence {
    /// The SGX or TDX quote.
    pub quote: Vec<u8>,
    /// The claims as they are encoded.
    pub claims: Vec<u8>,
}

impl TaggedEvidence {
    /// The value of the extension.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encoded(|e| {
            e.tag(Tag::new(INTEL_QUOTE_TAG))?.array(2)?.bytes(&self.quote)?.bytes(&self.claims)?;
            Ok(())
        })
    }

    /// Reads the value of the extension.
    ///
    /// # Errors
    /// [`FormatError`] when it is anything else than two byte strings under the tag.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut d = Decoder::new(value);
        let tag = d.tag().map_err(|e| malformed("evidence", &e))?.as_u64();
        if tag != INTEL_QUOTE_TAG {
            return Err(FormatError::Tag(tag));
        }
        two(&mut d, "evidence")?;
        let quote = d.bytes().map_err(|e| malformed("quote", &e))?.to_vec();
        let claims = d.bytes().map_err(|e| malformed("claims", &e))?.to_vec();
        end(&d, value, "evidence")?;
        Ok(Self { quote, claims })
    }
}

/// What the attester says of the certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Hash of the certificate's SubjectPublicKeyInfo.
    pub public_key: HashEntry,
    /// The relying party's nonce, where one was asked for.
    pub nonce: Option<Bytes>,
}

impl Claims {
    /// Claims for a key, given as DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn for_key(public_key: &[u8], nonce: Option<&[u8]>) -> Self {
        let hash = HashEntry { algorithm: HashAlgorithm::Sha256, value: sha256(public_key).to_vec() };
        Self { public_key: hash, nonce: nonce.map(|nonce| Bytes(nonce.to_vec())) }
    }

    /// The claims as bytes; what is hashed are these.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let entry = encoded(|e| {
            e.array(2)?.u64(self.public_key.algorithm.id())?.bytes(&self.public_key.value)?;
            Ok(())
        });
        encoded(|e| {
            e.map(1 + u64::from(self.nonce.is_some()))?.str(PUBKEY_HASH)?.bytes(&entry)?;
            if let Some(nonce) = &self.nonce {
                e.str(NONCE)?.bytes(&nonce.0)?;
            }
            Ok(())
        })
    }

    /// Reads claims. Claims that are not known are skipped, as the format says.
    ///
    /// # Errors
    /// [`FormatError`] when they are no map with text for keys, one is given twice, or the key's hash is missing.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut d = Decoder::new(bytes);
        let entries =
            d.map().map_err(|e| malformed("claims", &e))?.ok_or(FormatError::Indefinite("claims"))?;
        let (mut public_key, mut nonce) = (None, None);
        for _ in 0..entries {
            match d.str().map_err(|e| malformed("name of a claim", &e))? {
                PUBKEY_HASH => {
                    let entry = HashEntry::decode(d.bytes().map_err(|e| malformed(PUBKEY_HASH, &e))?)?;
                    once(&mut public_key, entry, PUBKEY_HASH)?;
                }
                NONCE => {
                    let value = Bytes(d.bytes().map_err(|e| malformed(NONCE, &e))?.to_vec());
                    once(&mut nonce, value, NONCE)?;
                }
                _ => d.skip().map_err(|e| malformed("claim", &e))?,
            }
        }
        end(&d, bytes, "claims")?;
        Ok(Self { public_key: public_key.ok_or(FormatError::NoKeyHash)?, nonce })
    }
}

/// A hash with the name of its algorithm (`hash-entry` of CoSWID, RFC 9393).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashEntry {
    /// The algorithm.
    pub algorithm: HashAlgorithm,
    /// The hash.
    pub value: Vec<u8>,
}

impl HashEntry {
    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut d = Decoder::new(bytes);
        two(&mut d, PUBKEY_HASH)?;
        // Only unsigned integers are identifiers, whatever their width.
        let id = match d.datatype().map_err(|e| malformed("hash algorithm", &e))? {
            Type::U8 | Type::U16 | Type::U32 | Type::U64 => {
                d.u64().map_err(|e| malformed("hash algorithm", &e))?
            }
            other => return Err(FormatError::Malformed { what: "hash algorithm", cause: other.to_string() }),
        };
        let algorithm = HashAlgorithm::from_id(id).ok_or(FormatError::HashAlgorithm(id))?;
        let value = d.bytes().map_err(|e| malformed(PUBKEY_HASH, &e))?.to_vec();
        end(&d, bytes, PUBKEY_HASH)?;
        Ok(Self { algorithm, value })
    }

    /// Whether it is the hash of these bytes.
    #[must_use]
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        digest(self.algorithm.ring(), bytes).as_ref() == self.value
    }
}

/// Hash algorithms of the format (IANA "Named Information Hash Algorithm Registry").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// SHA-256, number 1.
    Sha256,
    /// SHA-384, number 7.
    Sha384,
    /// SHA-512, number 8.
    Sha512,
}

impl HashAlgorithm {
    fn id(self) -> u64 {
        match self {
            Self::Sha256 => 1,
            Self::Sha384 => 7,
            Self::Sha512 => 8,
        }
    }

    fn from_id(id: u64) -> Option<Self> {
        [Self::Sha256, Self::Sha384, Self::Sha512].into_iter().find(|algorithm| algorithm.id() == id)
    }

    fn ring(self) -> &'static Algorithm {
        match self {
            Self::Sha256 => &SHA256,
            Self::Sha384 => &SHA384,
            Self::Sha512 => &SHA512,
        }
    }
}

/// The report data that binds evidence to bytes: their SHA-256, then zeros.
#[must_use]
pub fn report_data(bytes: &[u8]) -> [u8; REPORT_DATA] {
    let mut data = [0; REPORT_DATA];
    data[..32].copy_from_slice(&sha256(bytes));
    data
}

/// Why the content of an extension is not evidence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Not the CBOR that belongs there.
    #[error("the {what} in the certificate is not what the format has there: {cause}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// Evidence of a kind that is not supported.
    #[error(
        "the certificate has evidence with CBOR tag {0}; only {INTEL_QUOTE_TAG} (SGX and TDX quotes) is known"
    )]
    Tag(u64),
    /// A record of a kind that is not supported.
    #[error(
        "the certificate has a record of type {0:?}; no such type is known for quotes, which come under CBOR tag {INTEL_QUOTE_TAG}"
    )]
    ContentType(String),
    /// Bits that no kind of message has.
    #[error("the record in the certificate says it is of kinds {0:#x}, which do not exist")]
    Indicator(u64),
    /// Not a conceptual message wrapper.
    #[error(
        "what the certificate has in place of evidence is no conceptual message wrapper (it begins with {0:02x?})"
    )]
    NoWrapper(Option<u8>),
    /// A collection without evidence of a kind that is supported.
    #[error("the collection in the certificate has no quote (CBOR tag {INTEL_QUOTE_TAG})")]
    NoEvidenceInCollection,
    /// A collection with more than one quote.
    #[error(
        "the collection in the certificate has more than one quote: which one is the peer's cannot be told"
    )]
    Ambiguous,
    /// Collections in collections.
    #[error("the collection in the certificate is nested deeper than {0} levels")]
    Depth(usize),
    /// The format has definite lengths only.
    #[error("the {0} in the certificate have no definite length")]
    Indefinite(&'static str),
    /// A list has another length.
    #[error("the {what} in the certificate has {found} members instead of 2")]
    Members {
        /// Which.
        what: &'static str,
        /// How many there are.
        found: u64,
    },
    /// Bytes follow.
    #[error("{count} bytes follow the {what} in the certificate")]
    Trailing {
        /// What they follow.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// The same claim twice.
    #[error("the claim {0:?} is there twice")]
    Twice(&'static str),
    /// Nothing binds the key.
    #[error("the claims do not name the certificate's key ({PUBKEY_HASH:?} is missing)")]
    NoKeyHash,
    /// A hash that nobody can check.
    #[error("the key is hashed by algorithm {0}; only SHA-256 (1), SHA-384 (7) and SHA-512 (8) are known")]
    HashAlgorithm(u64),
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

type Written = Result<(), minicbor::encode::Error<std::convert::Infallible>>;

fn encoded(write: impl FnOnce(&mut Encoder<&mut Vec<u8>>) -> Written) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A vector takes everything: the error cannot be made.
    match write(&mut Encoder::new(&mut bytes)) {
        Ok(()) | Err(_) => bytes,
    }
}

fn malformed(what: &'static str, cause: &minicbor::decode::Error) -> FormatError {
    FormatError::Malformed { what, cause: cause.to_string() }
}

fn two(d: &mut Decoder<'_>, what: &'static str) -> Result<(), FormatError> {
    match d.array().map_err(|e| malformed(what, &e))? {
        Some(2) => Ok(()),
        Some(found) => Err(FormatError::Members { what, found }),
        None => Err(FormatError::Indefinite(what)),
    }
}

fn end(d: &Decoder<'_>, bytes: &[u8], what: &'static str) -> Result<(), FormatError> {
    match bytes.len() - d.position() {
        0 => Ok(()),
        count => Err(FormatError::Trailing { what, count }),
    }
}

fn once<T>(place: &mut Option<T>, value: T, name: &'static str) -> Result<(), FormatError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(FormatError::Twice(name)),
    }
}
