//! The SIGSTRUCT checks of EINIT that concern the structure alone: header, reserved fields, RSA signature.

use crypto_bigint::{CheckedSub, U3072, U6144};
use sgx_isa::{SIGSTRUCT_HEADER1, SIGSTRUCT_HEADER2, Sigstruct};
use sha2::{Digest, Sha256};

/// Top 352 bytes of an RSASSA-PKCS1-v1_5 encoding with SHA-256 for 3072 bits (RFC 8017, 9.2): all of it but the
/// digest. EGETKEY mixes it into keys as `HARDCODED_PKCS1_5_PADDING`.
pub(super) const PKCS1_5_PADDING: [u8; 352] = {
    let mut padding = [0xff; 352];
    padding[0] = 0;
    padding[1] = 1;
    let tail = [0, 0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20];
    let mut i = 0;
    while i < tail.len() {
        padding[352 - tail.len() + i] = tail[i];
        i += 1;
    }
    padding
};

/// Has the structure the form that EINIT wants: headers, vendor, exponent, reserved fields (SDM vol. 3D, EINIT:
/// otherwise SGX_INVALID_SIG_STRUCT)? This CPU has no CET, so the CET fields are reserved.
pub(super) fn is_well_formed(s: &Sigstruct) -> bool {
    s.header == SIGSTRUCT_HEADER1
        && s.header2 == SIGSTRUCT_HEADER2
        && (s.vendor == 0 || s.vendor == 0x8086)
        && s.exponent == 3
        && s._reserved1 == [0; 84]
        && s.cet_attributes == 0
        && s.cet_attributes_mask == 0
        && s._reserved2 == 0
        && s._reserved3 == [0; 16]
        && s._reserved4 == [0; 12]
}

/// Does the signature verify under the enclosed key, with Q1 and Q2 as they must be (SDM vol. 3D, EINIT: otherwise
/// SGX_INVALID_SIGNATURE)?
///
/// As the processor does it, without a division: Q1 = floor(S² / M) and Q2 = floor((S³ - Q1·S·M) / M) are given, so
/// S³ mod M comes from two multiplications each and two comparisons. Everything here is public.
pub(super) fn verifies(s: &Sigstruct) -> bool {
    let modulus = U3072::from_le_slice(&s.modulus);
    let signature = U3072::from_le_slice(&s.signature);
    if signature >= modulus {
        return false;
    }
    let cube = reduce(&signature, &signature, &U3072::from_le_slice(&s.q1), &modulus)
        .and_then(|square| reduce(&square, &signature, &U3072::from_le_slice(&s.q2), &modulus));
    let (head, body) = s.signature_data();
    let digest: [u8; 32] = Sha256::new().chain_update(head).chain_update(body).finalize().into();
    let mut encoded = [0; 384];
    encoded[..352].copy_from_slice(&PKCS1_5_PADDING);
    encoded[352..].copy_from_slice(&digest);
    cube == Some(U3072::from_be_slice(&encoded))
}

/// SHA-256 of the modulus: MRSIGNER.
pub(super) fn mrsigner(s: &Sigstruct) -> [u8; 32] {
    Sha256::digest(s.modulus).into()
}

/// a·b - q·m, if that is in 0 .. m, that is if q is the quotient.
fn reduce(a: &U3072, b: &U3072, q: &U3072, m: &U3072) -> Option<U3072> {
    let product: U6144 = a.concatenating_mul(b);
    let multiple: U6144 = q.concatenating_mul(m);
    let difference: U6144 = product.checked_sub(&multiple).into_option()?;
    let (low, high) = difference.split();
    (high == U3072::ZERO && low < *m).then_some(low)
}
