//! `sgxs::loader::Load` for the emulator: images of other ecosystems (Rust EDP) load with their own host code.
//!
//! That host code may execute ENCLU\[EENTER\] itself instead of asking for an
//! [entry function](crate::Initialized::enter_function); the emulator answers it by the invalid-opcode trap.

use std::ffi::c_void;
use std::sync::Arc;

use sgx_isa::{Attributes, Miscselect, PageType, Secinfo, Sigstruct};
use sgxs::loader::{Load, Mapping, MappingInfo, Tcs};
use sgxs::sgxs::{PageReader, SecinfoTruncated, SgxsRead};

use super::{Builder, Emulator, Enclave};
use crate::memory::PAGE;
use crate::{Build as _, CreateParams, Initialized as _, Pages, PlatformError};

/// An enclave loaded by [`Load::load`].
#[derive(Clone, Debug)]
pub struct Loaded(Arc<Enclave>);

/// A TCS of it, which keeps it loaded.
#[derive(Debug)]
pub struct LoadedTcs {
    address: u64,
    _enclave: Arc<Enclave>,
}

impl Loaded {
    /// The enclave.
    pub fn enclave(&self) -> &Arc<Enclave> {
        &self.0
    }
}

impl MappingInfo for Loaded {
    fn address(&self) -> *mut c_void {
        self.0.base() as *mut c_void
    }

    fn size(&self) -> usize {
        self.0.size() as usize
    }
}

impl Tcs for LoadedTcs {
    fn address(&self) -> *mut c_void {
        self.address as *mut c_void
    }
}

impl Load for Emulator {
    type MappingInfo = Loaded;
    type Tcs = LoadedTcs;

    fn load<R: SgxsRead>(
        &mut self,
        reader: &mut R,
        sigstruct: &Sigstruct,
        attributes: Attributes,
        miscselect: Miscselect,
    ) -> Result<Mapping<Self>, anyhow::Error> {
        let (info, mut pages) = PageReader::new(reader)?;
        let params = CreateParams {
            size: info.ecreate.size,
            ssa_frame_size: info.ecreate.ssaframesize,
            miscselect,
            attributes,
        };
        let mut builder = self.begin(&params)?;
        let mut run = PageRun::default();
        while let Some((eadd, chunks, contents)) = pages.read_page()? {
            let whole =
                matches!(chunks.0, 0 | 0xffff) && eadd.secinfo.flags.page_type() == PageType::Reg as u8;
            if !whole || !run.takes(eadd.offset, &eadd.secinfo, chunks.0) {
                run.flush(&mut builder)?;
            }
            if whole {
                run.push(eadd.offset, &eadd.secinfo, chunks.0, &contents);
            } else {
                let secinfo = Secinfo { flags: eadd.secinfo.flags, ..Secinfo::default() };
                builder.add_page(eadd.offset, &secinfo, &contents, chunks.0)?;
            }
        }
        run.flush(&mut builder)?;
        let enclave = Arc::new(builder.finish(sigstruct)?);
        enclave.prepare_thread()?;
        let tcs = |tcs: &super::enclave::Tcs| LoadedTcs {
            address: enclave.base() + tcs.offset,
            _enclave: enclave.clone(),
        };
        let tcss = enclave.state().tcs().iter().map(tcs).collect();
        Ok(Mapping { info: Loaded(enclave), tcss })
    }
}

/// Consecutive regular pages of the same kind, either all measured or not at all.
#[derive(Default)]
struct PageRun {
    first: u64,
    secinfo: Option<SecinfoTruncated>,
    chunks: u16,
    contents: Vec<u8>,
}

impl PageRun {
    /// Pages that are added at once.
    const LIMIT: usize = 4 << 20;

    fn takes(&self, offset: u64, secinfo: &SecinfoTruncated, chunks: u16) -> bool {
        self.secinfo.as_ref().is_some_and(|s| s.flags == secinfo.flags)
            && self.chunks == chunks
            && self.first.checked_add(self.contents.len() as u64) == Some(offset)
            && self.contents.len() < Self::LIMIT
    }

    fn push(&mut self, offset: u64, secinfo: &SecinfoTruncated, chunks: u16, contents: &[u8; PAGE as usize]) {
        if self.contents.is_empty() {
            self.first = offset;
            self.secinfo = Some(SecinfoTruncated { flags: secinfo.flags });
            self.chunks = chunks;
        }
        self.contents.extend_from_slice(contents);
    }

    fn flush(&mut self, builder: &mut Builder) -> Result<(), PlatformError> {
        let Some(secinfo) = self.secinfo.take() else { return Ok(()) };
        // Zero pages stay untouched memory.
        let zero = self.contents.iter().all(|b| *b == 0);
        builder.add(&Pages {
            offset: self.first,
            data: (!zero).then_some(&self.contents),
            count: self.contents.len() as u64 / PAGE,
            secinfo: secinfo.flags,
            measured: self.chunks != 0,
        })?;
        self.contents.clear();
        Ok(())
    }
}
