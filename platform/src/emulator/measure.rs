//! MRENCLAVE: the running measurement of an enclave under construction (SDM vol. 3D, "Enclave Measurement").
//!
//! Own code, on purpose independent of the `sgxs` crate, so that the two check each other.

use sha2::{Digest, Sha256};

use crate::memory::PAGE;

/// A chunk that ENCLS\[EEXTEND\] measures, in bytes.
pub(super) const CHUNK: usize = 256;

/// The state of MRENCLAVE between ECREATE and EINIT.
#[derive(Clone)]
pub(super) struct Measurement(Sha256);

impl Measurement {
    /// What ECREATE puts in: `ECREATE`, SSAFRAMESIZE, SIZE.
    pub(super) fn ecreate(ssa_frame_size: u32, size: u64) -> Self {
        let mut block = [0; 64];
        block[..8].copy_from_slice(b"ECREATE\0");
        block[8..12].copy_from_slice(&ssa_frame_size.to_le_bytes());
        block[12..20].copy_from_slice(&size.to_le_bytes());
        let mut hash = Sha256::new();
        hash.update(block);
        Self(hash)
    }

    /// What EADD puts in: `EADD`, the page's offset, the first 48 bytes of SECINFO (of which all but FLAGS are zero).
    pub(super) fn eadd(&mut self, offset: u64, flags: u64) {
        let mut block = [0; 64];
        block[..8].copy_from_slice(b"EADD\0\0\0\0");
        block[8..16].copy_from_slice(&offset.to_le_bytes());
        block[16..24].copy_from_slice(&flags.to_le_bytes());
        self.0.update(block);
    }

    /// What EEXTEND puts in: `EEXTEND`, the chunk's offset, the chunk.
    pub(super) fn eextend(&mut self, offset: u64, chunk: &[u8; CHUNK]) {
        let mut block = [0; 64];
        block[..8].copy_from_slice(b"EEXTEND\0");
        block[8..16].copy_from_slice(&offset.to_le_bytes());
        self.0.update(block);
        self.0.update(chunk);
    }

    /// EEXTEND of all sixteen chunks of a page.
    pub(super) fn eextend_page(&mut self, offset: u64, page: &[u8; PAGE as usize]) {
        let (chunks, _) = page.as_chunks::<CHUNK>();
        for (i, chunk) in chunks.iter().enumerate() {
            self.eextend(offset + (i * CHUNK) as u64, chunk);
        }
    }

    /// The final value.
    pub(super) fn finish(&self) -> [u8; 32] {
        self.0.clone().finalize().into()
    }
}
