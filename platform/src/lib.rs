//! What CPU and kernel provide to the host side, behind one narrow interface: create an enclave, add pages,
//! initialise it, and a function to enter it with the exact semantics of `__vdso_sgx_enter_enclave`.
//!
//! Two implementations: [`emulator`], an SGX CPU in user space, and [`hardware`], the Linux SGX driver. Everything
//! above this interface is shared, so that what runs on the emulator is what runs on a node.
//!
//! **The emulator protects nothing.** It exists so that images can be built, run and tested anywhere.

pub mod emulator;
pub mod hardware;
pub mod inventory;
mod memory;

use std::sync::Arc;

pub use sgx_isa;

/// What executes an enclave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A CPU with SGX and the Linux driver.
    Hardware,
    /// The emulated SGX CPU. Protects nothing.
    Emulated,
}

/// The SECS fields that software chooses (SDM vol. 3D, 34.7); the base address is the platform's choice.
#[derive(Clone, Copy, Debug)]
pub struct CreateParams {
    /// Size of ELRANGE in bytes, a power of two.
    pub size: u64,
    /// Pages of one SSA frame.
    pub ssa_frame_size: u32,
    /// Which extended information goes into SSA frames.
    pub miscselect: sgx_isa::Miscselect,
    /// Flags and XFRM.
    pub attributes: sgx_isa::Attributes,
}

/// A run of pages of the same kind to add (ENCLS\[EADD\], and EEXTEND for the measured 256-byte chunks).
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// Offset of the first page from the ELRANGE base.
    pub offset: u64,
    /// Contents, a multiple of 4096 bytes; `None`: `count` zero pages.
    pub data: Option<&'a [u8]>,
    /// Number of pages.
    pub count: u64,
    /// SECINFO flags: permissions and page type (SDM vol. 3D, 34.10.1).
    pub secinfo: sgx_isa::SecinfoFlags,
    /// Are the contents measured (EEXTEND of all sixteen chunks of each page)?
    pub measured: bool,
}

/// A machine that can run enclaves.
pub trait Platform: Send + Sync {
    /// Hardware or emulated?
    fn kind(&self) -> Kind;

    /// The extended information that the processor can put into SSA frames (CPUID.(EAX=12H,ECX=0):EBX).
    fn miscselect(&self) -> sgx_isa::Miscselect;

    /// The XFRM bits that an enclave can have on this machine as it runs (CPUID.(EAX=12H,ECX=1):ECX, EDX, and XCR0).
    fn xfrm(&self) -> u64;

    /// ENCLS\[ECREATE\].
    ///
    /// # Errors
    /// When the parameters break a rule of the architecture, the machine lacks a feature asked for, or has no room.
    fn create(&self, params: &CreateParams) -> Result<Box<dyn Build>, PlatformError>;

    /// Can pages be added to and removed from initialised enclaves (SGX2, in Linux's words EDMM)?
    fn has_dynamic_memory(&self) -> bool;
}

/// An enclave under construction. Dropping it removes it.
pub trait Build: Send {
    /// The ELRANGE base.
    fn base(&self) -> u64;

    /// ENCLS\[EADD\] and, where measured, ENCLS\[EEXTEND\], page by page.
    ///
    /// # Errors
    /// As the leaf functions fault, or when EPC is used up.
    fn add(&mut self, pages: &Pages<'_>) -> Result<(), PlatformError>;

    /// ENCLS\[EINIT\].
    ///
    /// # Errors
    /// [`PlatformError::Leaf`] with the SDM's error code.
    fn init(self: Box<Self>, sigstruct: &sgx_isa::Sigstruct) -> Result<Arc<dyn Initialized>, PlatformError>;
}

/// An initialised enclave. Dropping the last reference removes it; no thread may be inside then.
pub trait Initialized: Send + Sync {
    /// The ELRANGE base.
    fn base(&self) -> u64;
    /// Size of ELRANGE.
    fn size(&self) -> u64;
    /// The function that enters it.
    fn enter_function(&self) -> EnterFunction;
    /// Prepares the calling OS thread for entering (signal stack, call interception). Cheap when done before.
    ///
    /// # Errors
    /// When the kernel refuses what the platform needs.
    fn prepare_thread(&self) -> Result<(), PlatformError>;
    /// Tells the platform where ENCLU instructions stand that are followed by a two-byte NOP (66 90), as offsets.
    /// The emulator replaces them *in its loaded copy* by jumps; offsets whose bytes differ are ignored.
    ///
    /// Who gives such hints also says that the enclave's entry code sets the FS base before anything uses it, as the
    /// Enclos runtime does: the emulator then spares itself the writing of OFSBASE at EENTER.
    fn hint_enclu_sites(&self, offsets: &[u64]);
    /// Asynchronous exits so far, for whatever reason. `None`: the platform cannot tell.
    fn asynchronous_exits(&self) -> Option<u64> {
        None
    }
    /// Changes of its pages; `None` where the platform has no dynamic memory.
    fn dynamic_memory(&self) -> Option<&dyn DynamicMemory>;
}

/// What a kernel does to the pages of an initialised enclave (SGX2). Offsets are from the ELRANGE base; ranges are whole
/// pages. The enclave accepts each change by ENCLU\[EACCEPT\] or has no use of it.
pub trait DynamicMemory: Send + Sync {
    /// Makes pages available: ENCLS\[EAUG\] here and now, or when they are first touched (Linux). Pages that are pending
    /// already stay as they are.
    ///
    /// # Errors
    /// As the leaf function faults, or when EPC is used up; then none of the pages was added.
    fn augment(&self, offset: u64, count: u64) -> Result<(), PlatformError>;

    /// ENCLS\[EMODPR\], ENCLS\[ETRACK\], and all threads out of the enclave for a moment. `permissions`: R, W, X.
    ///
    /// # Errors
    /// As the leaf functions fault or fail; pages before the one that failed were changed.
    fn restrict(
        &self,
        offset: u64,
        count: u64,
        permissions: sgx_isa::SecinfoFlags,
    ) -> Result<(), PlatformError>;

    /// ENCLS\[EMODT\], ENCLS\[ETRACK\], and all threads out of the enclave for a moment. Regular pages become TCS or
    /// TRIM pages, TCS pages TRIM pages.
    ///
    /// # Errors
    /// As for [`restrict`](Self::restrict).
    fn modify_type(&self, offset: u64, count: u64, page_type: sgx_isa::PageType)
    -> Result<(), PlatformError>;

    /// ENCLS\[EREMOVE\] of TRIM pages that the enclave has accepted as such.
    ///
    /// # Errors
    /// When a page is of another kind; pages before it were removed.
    fn remove(&self, offset: u64, count: u64) -> Result<(), PlatformError>;
}

/// The calling convention of `__vdso_sgx_enter_enclave` (Linux `arch/x86/include/uapi/asm/sgx.h`): RDI, RSI, RDX are
/// passed through to the enclave, ECX = [`EENTER`] or [`ERESUME`], R8, R9 passed through, then the run structure.
/// Returns 0 on an exit or a reported exception, a negated error number for bad parameters. After an EEXIT RDI, RSI,
/// RDX, R8 and R9 hold what the enclave left there.
pub type EnterFunction =
    unsafe extern "C" fn(rdi: u64, rsi: u64, rdx: u64, function: u32, r8: u64, r9: u64, run: *mut Run) -> i32;

/// ENCLU leaf 2.
pub const EENTER: u32 = 2;
/// ENCLU leaf 3.
pub const ERESUME: u32 = 3;
/// ENCLU leaf 4.
pub const EEXIT: u32 = 4;

/// `struct sgx_enclave_run` of the Linux ABI.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Run {
    /// Address of the TCS.
    pub tcs: u64,
    /// Out: the ENCLU leaf that ended the call: [`EEXIT`], or EENTER/ERESUME after an exception.
    pub function: u32,
    /// Out: vector of the exception (SDM vol. 3A, 6.3.1).
    pub exception_vector: u16,
    /// Out: error code of the exception.
    pub exception_error_code: u16,
    /// Out: faulting address.
    pub exception_addr: u64,
    /// A user handler; must be 0: Enclos does not use it.
    pub user_handler: u64,
    /// For the handler; 0.
    pub user_data: u64,
    /// Must be zero.
    pub reserved: [u8; 216],
}

impl Run {
    /// A run structure for a TCS.
    pub fn new(tcs: u64) -> Self {
        Self {
            tcs,
            function: 0,
            exception_vector: 0,
            exception_error_code: 0,
            exception_addr: 0,
            user_handler: 0,
            user_data: 0,
            reserved: [0; 216],
        }
    }
}

/// Why the platform refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlatformError {
    /// An ENCLS leaf function failed with an error code in RAX (SDM vol. 3D, table 36-4).
    #[error("{leaf} failed with {code:?} ({}): {hint}", *.code as u32)]
    Leaf {
        /// The leaf function, for example `EINIT`.
        leaf: &'static str,
        /// The error code.
        code: sgx_isa::ErrorCode,
        /// What that usually means and what to do.
        hint: &'static str,
    },
    /// An ENCLS leaf function faulted (#GP or #PF): its operands break a rule of the architecture.
    #[error("{leaf} faulted ({fault}): {rule}")]
    Fault {
        /// The leaf function.
        leaf: &'static str,
        /// `#GP(0)` or `#PF`.
        fault: &'static str,
        /// The rule, in words.
        rule: &'static str,
    },
    /// No room in the EPC.
    #[error(
        "not enough enclave page cache: {needed} bytes needed, {available} available; \
         lower the heap or thread count in enclos.toml, end other enclaves, or raise the limit"
    )]
    EpcExhausted {
        /// Bytes asked for.
        needed: u64,
        /// Bytes left.
        available: u64,
    },
    /// This machine cannot do it at all.
    #[error("{what} is not available: {cure}")]
    Unsupported {
        /// What is missing.
        what: String,
        /// What to do about it.
        cure: String,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// The error.
        source: std::io::Error,
    },
}
