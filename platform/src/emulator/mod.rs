//! The emulated SGX CPU: an implementation of the SGX architecture in user space.
//!
//! - [`machine`]: what all enclaves share: secrets, versions, the EPC account;
//! - [`enclave`]: SECS and EPCM, and the leaf functions ECREATE, EADD, EEXTEND, EINIT;
//! - [`dynamic`]: those of SGX2, which change pages of an initialised enclave;
//! - `pages`: EPCM and memory together;
//! - [`keys`]: EREPORT and EGETKEY;
//! - `thread`, `signal`, `transitions`: EENTER, ERESUME, EEXIT and asynchronous exits.
//!
//! **It protects nothing**: enclave pages are ordinary memory of this process, and the secrets lie in a file.

mod adopt;
pub mod dynamic;
pub mod enclave;
pub mod keys;
#[cfg(feature = "sgxs")]
pub mod load;
pub mod machine;
mod measure;
mod pages;
mod signal;
mod signature;
mod thread;
#[cfg(test)]
mod thread_tests;
mod transitions;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sgx_isa::{AttributesFlags, Miscselect, PageType, Secinfo, SecinfoFlags, Secs, Sigstruct};

use self::enclave::{EnclaveState, check_secs};
use self::machine::{Machine, MachineConfig, StateError};
use self::pages::{EnclavePages, LeafFunctions};
pub use self::thread::Transitions;
use self::thread::{EnclaveDescription, EnclaveThreads, TcsDescription};
use crate::memory::{PAGE, Reservation};
use crate::{
    Build, CreateParams, DynamicMemory, EnterFunction, Initialized, Kind, Pages, Platform, PlatformError,
};

/// Address space kept below ELRANGE, within reach of a `jmp rel32` from it: for the gate page.
const BELOW: u64 = PAGE;

/// Environment variable that asks for the fidelity mode.
const MODE_VARIABLE: &str = "ENCLOS_EMULATOR";

/// The emulated platform.
#[derive(Clone, Debug)]
pub struct Emulator {
    machine: Arc<Machine>,
    gate: bool,
}

impl Emulator {
    /// An emulator of the user's machine ([`MachineConfig::default`]).
    ///
    /// # Errors
    /// When its secrets cannot be read or made.
    pub fn new() -> Result<Self, StateError> {
        Ok(Self::on(Machine::new(&MachineConfig::default())?))
    }

    /// An emulator of this machine. With `ENCLOS_EMULATOR=trapping` in the environment it is [`Emulator::trapping`], so
    /// that every test can be run in that mode.
    pub fn on(machine: Arc<Machine>) -> Self {
        let traps = std::env::var_os(MODE_VARIABLE).is_some_and(|v| v == "trapping");
        Self { machine, gate: !traps }
    }

    /// The fidelity mode: no ENCLU instruction is replaced in the loaded copy, each one traps. Slow.
    #[must_use]
    pub fn trapping(self) -> Self {
        Self { gate: false, ..self }
    }

    /// The machine it emulates.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    fn begin(&self, params: &CreateParams) -> Result<Builder, PlatformError> {
        let mut secs = Secs {
            size: params.size,
            ssaframesize: params.ssa_frame_size,
            miscselect: params.miscselect,
            attributes: params.attributes,
            ..Secs::default()
        };
        // Address 0 is aligned to everything: whatever is wrong besides the base shows before space is reserved.
        check_secs(&self.machine, &secs)?;
        if !params.attributes.flags.contains(AttributesFlags::MODE64BIT) {
            return Err(PlatformError::Unsupported {
                what: "running 32-bit enclaves in a 64-bit process".into(),
                cure: "set ATTRIBUTES.MODE64BIT".into(),
            });
        }
        let memory = Reservation::new(params.size, BELOW)?;
        secs.baseaddr = memory.base();
        let state = EnclaveState::ecreate(self.machine.clone(), &secs)?;
        Ok(Builder { state, memory, gate: self.gate })
    }
}

impl Platform for Emulator {
    fn kind(&self) -> Kind {
        Kind::Emulated
    }

    fn miscselect(&self) -> Miscselect {
        self.machine.miscselect
    }

    fn xfrm(&self) -> u64 {
        self.machine.xfrm
    }

    fn create(&self, params: &CreateParams) -> Result<Box<dyn Build>, PlatformError> {
        Ok(Box::new(self.begin(params)?))
    }

    fn has_dynamic_memory(&self) -> bool {
        self.machine.sgx2
    }
}

/// An enclave under construction: its state, and its pages at their final addresses, writable.
struct Builder {
    state: EnclaveState,
    memory: Reservation,
    gate: bool,
}

impl Builder {
    /// EADD of one page, whatever its type, whose chunks are measured as the bits of `chunks` say.
    fn add_page(
        &mut self,
        offset: u64,
        secinfo: &Secinfo,
        contents: &[u8; PAGE as usize],
        chunks: u16,
    ) -> Result<(), PlatformError> {
        let mut page = *contents;
        self.state.eadd(offset, secinfo, &mut page)?;
        self.memory.protect(offset, PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
        let at = self.memory.range(offset, PAGE);
        // SAFETY: one page of ours, just made writable.
        unsafe { core::ptr::copy_nonoverlapping(page.as_ptr(), at, PAGE as usize) };
        let (parts, _) = page.as_chunks::<256>();
        for (i, part) in parts.iter().enumerate().filter(|(i, _)| chunks >> i & 1 == 1) {
            self.state.eextend(offset + i as u64 * 256, part)?;
        }
        Ok(())
    }

    fn finish(mut self, sigstruct: &Sigstruct) -> Result<Enclave, PlatformError> {
        self.state.einit(sigstruct, None)?;
        for run in self.state.runs() {
            let protection = match run.info.page_type {
                PageType::Reg => protection_of(run.info.permissions),
                _ => libc::PROT_NONE,
            };
            self.memory.protect(run.first * PAGE, run.count * PAGE, protection)?;
        }
        let pages = Arc::new(EnclavePages::new(self.state, self.memory));
        let (state, secs) = (&pages.state, pages.state.secs());
        let threads = EnclaveThreads::register(EnclaveDescription {
            base: secs.base,
            size: secs.size,
            xfrm: secs.attributes.xfrm,
            exinfo: pages.has_exinfo(),
            ssa_frame_bytes: u64::from(secs.ssa_frame_size) * PAGE,
            tcs: state.tcs().iter().map(|tcs| describe(state, tcs)).collect(),
            gate: self.gate,
            epoch: state.epoch.clone(),
            leaves: Box::new(LeafFunctions(pages.clone())),
        })?;
        Ok(Enclave { threads, pages, changing: Mutex::new(()) })
    }
}

impl Build for Builder {
    fn base(&self) -> u64 {
        self.memory.base()
    }

    fn add(&mut self, pages: &Pages<'_>) -> Result<(), PlatformError> {
        let fault = |rule| PlatformError::Fault { leaf: "EADD", fault: "#GP(0)", rule };
        let secinfo = Secinfo { flags: pages.secinfo, ..Secinfo::default() };
        let source = match pages.data {
            None => None,
            Some(data) => {
                let (source, rest) = data.as_chunks::<{ PAGE as usize }>();
                if !rest.is_empty() || source.len() as u64 != pages.count {
                    return Err(fault("the source must be as many whole pages as are to be added"));
                }
                Some(source)
            }
        };
        let permissions = SecinfoFlags::R | SecinfoFlags::W | SecinfoFlags::X;
        if pages.secinfo.page_type() == PageType::Tcs as u8 {
            if pages.secinfo.intersects(permissions) {
                // EADD would clear them silently; the Linux driver refuses (sgx_validate_secinfo).
                return Err(fault("a TCS page must be added without permissions"));
            }
            for i in 0..pages.count {
                let contents = source.map_or(&ZEROS, |s| &s[i as usize]);
                let chunks = if pages.measured { 0xffff } else { 0 };
                self.add_page(pages.offset.wrapping_add(i * PAGE), &secinfo, contents, chunks)?;
            }
            return Ok(());
        }
        self.state.admit_regular(pages.offset, pages.count, &secinfo)?;
        let Some(source) = source else {
            for i in 0..pages.count {
                self.state.measure_regular(pages.offset + i * PAGE, pages.measured.then_some(&ZEROS));
            }
            return Ok(());
        };
        let len = pages.count * PAGE;
        self.memory.protect(pages.offset, len, libc::PROT_READ | libc::PROT_WRITE)?;
        let target = self.memory.range(pages.offset, len);
        if pages.count > 4 {
            // One call instead of a page fault each. A kernel before 5.14 refuses, and the faults happen.
            // SAFETY: our own pages, writable.
            unsafe { libc::madvise(target.cast(), len as usize, libc::MADV_POPULATE_WRITE) };
        }
        for (i, contents) in source.iter().enumerate() {
            let at = i as u64 * PAGE;
            // SAFETY: within the run just made writable; the source is not in it, for nobody else knows its address.
            unsafe {
                core::ptr::copy_nonoverlapping(contents.as_ptr(), target.add(at as usize), PAGE as usize)
            };
            self.state.measure_regular(pages.offset + at, pages.measured.then_some(contents));
        }
        Ok(())
    }

    fn init(self: Box<Self>, sigstruct: &Sigstruct) -> Result<Arc<dyn Initialized>, PlatformError> {
        Ok(Arc::new(self.finish(sigstruct)?))
    }
}

/// An initialised enclave on the emulator.
pub struct Enclave {
    // First, so that nobody can enter when the memory goes.
    threads: Arc<EnclaveThreads>,
    pages: Arc<EnclavePages>,
    /// One change of pages after the other, its tracking included, as with the lock that Linux has for each enclave: an
    /// ETRACK of another thread in between would leave pages untracked.
    changing: Mutex<()>,
}

impl Enclave {
    /// Its architectural state.
    pub fn state(&self) -> &EnclaveState {
        &self.pages.state
    }

    /// How often its boundary was crossed so far.
    pub fn transitions(&self) -> Transitions {
        self.threads.transitions()
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// ENCLS\[ETRACK\], and all threads out of the enclave for a moment, as kernels do it.
    fn track(&self) -> Result<(), PlatformError> {
        let incomplete = || PlatformError::Os {
            what: "interrupting the threads inside (one of them blocks SIGSYS, or is stopped)",
            source: std::io::ErrorKind::TimedOut.into(),
        };
        // As Linux: an ETRACK that comes too early is repeated once all threads were out.
        if self.pages.state.etrack(&*self.threads).is_err() {
            if !self.threads.interrupt_all() {
                return Err(incomplete());
            }
            self.pages.state.etrack(&*self.threads)?;
        }
        if self.threads.interrupt_all() { Ok(()) } else { Err(incomplete()) }
    }
}

impl Initialized for Enclave {
    fn base(&self) -> u64 {
        self.pages.memory().base()
    }

    fn size(&self) -> u64 {
        self.pages.memory().size()
    }

    fn enter_function(&self) -> EnterFunction {
        thread::enter_function()
    }

    fn prepare_thread(&self) -> Result<(), PlatformError> {
        thread::thread_context().map(drop)
    }

    fn hint_enclu_sites(&self, offsets: &[u64]) {
        // Replacing code that a thread may be executing is not safe, and a hint is only a hint.
        if self.threads.transitions().eenter != 0 {
            return;
        }
        let code = SecinfoFlags::R | SecinfoFlags::X;
        self.threads
            .patch_enclu_sites(offsets, |at| self.state().page(at).is_some_and(|p| p.permissions == code));
    }

    fn asynchronous_exits(&self) -> Option<u64> {
        Some(self.threads.transitions().aex)
    }

    fn dynamic_memory(&self) -> Option<&dyn DynamicMemory> {
        self.state().machine().sgx2.then_some(self)
    }
}

impl DynamicMemory for Enclave {
    fn augment(&self, offset: u64, count: u64) -> Result<(), PlatformError> {
        let _alone = self.change();
        let page = |i: u64| offset.wrapping_add(i.wrapping_mul(PAGE));
        let is_there = |i: &u64| self.state().epcm_entry(page(*i)).is_some();
        let mut next = 0;
        while next < count {
            next += (next..count).take_while(is_there).count() as u64;
            let absent = (next..count).take_while(|i| !is_there(i)).count() as u64;
            if absent != 0 {
                self.pages.eaug(page(next), absent)?;
            }
            next += absent;
        }
        Ok(())
    }

    fn restrict(&self, offset: u64, count: u64, permissions: SecinfoFlags) -> Result<(), PlatformError> {
        let _alone = self.change();
        let outcome = self.pages.emodpr(offset, count, permissions, &self.threads);
        self.track()?;
        outcome
    }

    fn modify_type(&self, offset: u64, count: u64, page_type: PageType) -> Result<(), PlatformError> {
        let _alone = self.change();
        let outcome = self.pages.emodt(offset, count, page_type, &self.threads);
        self.track()?;
        outcome
    }

    fn remove(&self, offset: u64, count: u64) -> Result<(), PlatformError> {
        let _alone = self.change();
        let trimmed =
            (0..count).take_while(|i| self.pages.is_trimmed(offset.wrapping_add(i * PAGE))).count() as u64;
        self.pages.eremove(offset, trimmed, &self.threads)?;
        if trimmed == count {
            return Ok(());
        }
        Err(PlatformError::Os {
            what: "removing pages (EREMOVE) that the enclave has not accepted to be trimmed",
            source: std::io::Error::from_raw_os_error(libc::EPERM),
        })
    }
}

impl std::fmt::Debug for Enclave {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enclave").field("state", self.state()).finish_non_exhaustive()
    }
}

fn describe(state: &EnclaveState, tcs: &enclave::Tcs) -> TcsDescription {
    TcsDescription {
        address: state.secs().base + tcs.offset,
        ossa: tcs.ossa,
        nssa: tcs.nssa,
        usable_frames: state.usable_frames(tcs),
        oentry: tcs.oentry,
        ofsbase: tcs.ofsbase,
        ogsbase: tcs.ogsbase,
        // EADD clears it and there is no EDBGWR.
        debug_opt_in: false,
    }
}

static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

fn protection_of(permissions: SecinfoFlags) -> i32 {
    let mut protection = libc::PROT_NONE;
    for (flag, bit) in [
        (SecinfoFlags::R, libc::PROT_READ),
        (SecinfoFlags::W, libc::PROT_WRITE),
        (SecinfoFlags::X, libc::PROT_EXEC),
    ] {
        if permissions.contains(flag) {
            protection |= bit;
        }
    }
    protection
}
