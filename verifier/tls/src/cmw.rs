//! Conceptual message wrappers (CMW, draft-ietf-rats-msg-wrap): what else than bare tagged evidence a certificate can hold it in.
//!
//! A wrapper is a CBOR tag, a record of type and value, or a collection of wrappers, in CBOR or in JSON; "tunnels" carry one
//! encoding within the other. Evidence that can be judged is an SGX or TDX quote under its CBOR tag
//! ([`INTEL_QUOTE_TAG`]), wherever it lies. No media type has been registered for such quotes, so records, which name what
//! they hold by a media type, are refused by that name.

use std::borrow::Cow;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use der::{
    Decode as _,
    asn1::{ObjectIdentifier, OctetStringRef, Utf8StringRef},
};
use minicbor::{Decoder, data::Type};
use serde_json::Value;

use crate::format::{FormatError, INTEL_QUOTE_TAG, TaggedEvidence};

/// The extension of draft-ietf-rats-msg-wrap, `id-pe-cmw`: a wrapper in JSON (a UTF8String) or in CBOR (an OCTET STRING).
pub const CMW_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.1.35");

/// How deep collections and tunnels may lie in one another.
const MAX_DEPTH: usize = 4;
/// What the first member of a tunnel is: CBOR in JSON, JSON in CBOR.
const C2J: &str = "#cmw-c2j-tunnel";
const J2C: &str = "#cmw-j2c-tunnel";
/// Member of a collection that names its type, and is no wrapper.
const COLLECTION_TYPE: &str = "__cmwc_t";

/// The evidence in the value of the extension [`CMW_OID`].
pub(crate) fn of_pkix_extension(value: &[u8]) -> Result<TaggedEvidence, FormatError> {
    match (<&OctetStringRef>::from_der(value), Utf8StringRef::from_der(value)) {
        (Ok(cbor), _) => of_wrapper(cbor.as_bytes()),
        (_, Ok(json)) => of_wrapper(json.as_bytes()),
        (Err(error), _) => Err(malformed("wrapper", &error)),
    }
}

/// The evidence in a wrapper, told apart by its first byte (draft-ietf-rats-msg-wrap, "Decapsulation").
pub(crate) fn of_wrapper(bytes: &[u8]) -> Result<TaggedEvidence, FormatError> {
    let mut found = None;
    search(bytes, 0, &mut found)?;
    found.ok_or(FormatError::NoEvidenceInCollection)
}

fn search(bytes: &[u8], depth: usize, found: &mut Option<TaggedEvidence>) -> Result<(), FormatError> {
    if depth > MAX_DEPTH {
        return Err(FormatError::Depth(MAX_DEPTH));
    }
    // Alone, a wrapper of another kind is an error; in a collection it is another message.
    let alone = depth == 0;
    match bytes.first() {
        Some(0xc0..=0xdb) => {
            let tag = Decoder::new(bytes).tag().map_err(|e| malformed("tag", &e))?.as_u64();
            match tag {
                INTEL_QUOTE_TAG => keep(TaggedEvidence::decode(bytes)?, found),
                other if alone => Err(FormatError::Tag(other)),
                _ => Ok(()),
            }
        }
        Some(0x82 | 0x83) => cbor_array(bytes, depth, found),
        Some(0xa0..=0xbb | 0xbf) => cbor_collection(bytes, depth, found),
        Some(b'[' | b'{') => {
            let value = serde_json::from_slice(bytes).map_err(|e| malformed("wrapper", &e))?;
            json(&value, depth, found)
        }
        first => Err(FormatError::NoWrapper(first.copied())),
    }
}

/// A record, or a tunnel that holds JSON.
fn cbor_array(bytes: &[u8], depth: usize, found: &mut Option<TaggedEvidence>) -> Result<(), FormatError> {
    let mut d = Decoder::new(bytes);
    let bad = |e| malformed("record", &e);
    let members = d.array().map_err(bad)?.ok_or(FormatError::Indefinite("record"))?;
    let kind: Cow<'_, str> = match d.datatype().map_err(bad)? {
        Type::String => d.str().map_err(bad)?.into(),
        _ => format!("CoAP content format {}", d.u64().map_err(bad)?).into(),
    };
    let value = d.bytes().map_err(bad)?;
    if members == 3 {
        indicator(d.u64().map_err(bad)?)?;
    }
    match bytes.len() - d.position() {
        0 => {}
        count => return Err(FormatError::Trailing { what: "record", count }),
    }
    match &*kind {
        J2C if members == 2 => {
            let value = serde_json::from_slice(value).map_err(|e| malformed("tunnel", &e))?;
            json(&value, depth + 1, found)
        }
        _ => record(&kind, depth),
    }
}

fn cbor_collection(
    bytes: &[u8],
    depth: usize,
    found: &mut Option<TaggedEvidence>,
) -> Result<(), FormatError> {
    let mut d = Decoder::new(bytes);
    let bad = |e| malformed("collection", &e);
    let entries = d.map().map_err(bad)?.ok_or(FormatError::Indefinite("collection"))?;
    for _ in 0..entries {
        let is_type = match d.datatype().map_err(bad)? {
            Type::String => d.str().map_err(bad)? == COLLECTION_TYPE,
            _ => d.int().map(|_| false).map_err(bad)?,
        };
        let start = d.position();
        d.skip().map_err(bad)?;
        if !is_type {
            search(&bytes[start..d.position()], depth + 1, found)?;
        }
    }
    match bytes.len() - d.position() {
        0 => Ok(()),
        count => Err(FormatError::Trailing { what: "collection", count }),
    }
}

fn json(value: &Value, depth: usize, found: &mut Option<TaggedEvidence>) -> Result<(), FormatError> {
    if depth > MAX_DEPTH {
        return Err(FormatError::Depth(MAX_DEPTH));
    }
    match value {
        Value::Array(members) => {
            let (kind, encoded) = match members.as_slice() {
                [Value::String(kind), Value::String(encoded)] => (kind, encoded),
                [Value::String(kind), Value::String(encoded), Value::Number(number)] => {
                    indicator(number.as_u64().unwrap_or(0))?;
                    (kind, encoded)
                }
                _ => return Err(malformed("record", &"a type and a value are two texts")),
            };
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(encoded).map_err(|e| malformed("record", &e))?;
            match kind.as_str() {
                C2J if members.len() == 2 => search(&bytes, depth + 1, found),
                kind => record(kind, depth),
            }
        }
        Value::Object(members) => {
            for (label, member) in members {
                if label != COLLECTION_TYPE {
                    json(member, depth + 1, found)?;
                }
            }
            Ok(())
        }
        _ => Err(malformed("wrapper", &"neither a record nor a collection")),
    }
}

/// A record's type says what it holds; none is for quotes.
fn record(kind: &str, depth: usize) -> Result<(), FormatError> {
    match depth {
        0 => Err(FormatError::ContentType(kind.chars().take(100).collect())),
        _ => Ok(()),
    }
}

/// Kinds of conceptual messages, a set of bits; evidence is among those that a certificate of a TLS peer holds.
fn indicator(bits: u64) -> Result<(), FormatError> {
    match bits {
        1..=15 => Ok(()),
        other => Err(FormatError::Indicator(other)),
    }
}

fn keep(evidence: TaggedEvidence, found: &mut Option<TaggedEvidence>) -> Result<(), FormatError> {
    match found.replace(evidence) {
        None => Ok(()),
        Some(_) => Err(FormatError::Ambiguous),
    }
}

fn malformed(what: &'static str, cause: &dyn std::fmt::Display) -> FormatError {
    FormatError::Malformed { what, cause: cause.to_string() }
}
