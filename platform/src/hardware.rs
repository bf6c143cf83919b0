//! SGX hardware: the Linux driver (`/dev/sgx_enclave`, Linux 5.11 and later) and the vDSO.
//!
//! Thin on purpose: the processor checks, the kernel manages the EPC, and everything above the [platform
//! interface](crate::Platform) is shared with the emulator.

mod vdso;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use sgx_isa::{AttributesFlags, ErrorCode, Miscselect, PageType, Secinfo, SecinfoFlags, Secs, Sigstruct};

use crate::emulator::machine::supported_xfrm;
use crate::memory::{PAGE, Reservation};
use crate::{
    Build, CreateParams, DynamicMemory, EnterFunction, Initialized, Kind, Pages, Platform, PlatformError,
};

pub(crate) use vdso::symbol as vdso_symbol;

/// Where udev puts the driver's device; the second name is an alias of some distributions.
pub const DEVICES: [&str; 2] = ["/dev/sgx_enclave", "/dev/sgx/enclave"];

/// The device whose descriptor permits PROVISIONKEY.
pub const PROVISION_DEVICE: &str = "/dev/sgx_provision";

/// The vDSO function that enters enclaves.
pub const ENTER_SYMBOL: &str = "__vdso_sgx_enter_enclave";

/// An SGX processor with the Linux driver.
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    device: &'static str,
    enter: EnterFunction,
}

impl Hardware {
    /// Finds the driver and the vDSO function.
    ///
    /// # Errors
    /// [`PlatformError::Unsupported`] that says which of them is missing and what to do.
    pub fn open() -> Result<Self, PlatformError> {
        let mut found = None;
        let mut refused = None;
        for device in DEVICES {
            match open_device(device) {
                Ok(_) => found = found.or(Some(device)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => refused = refused.or(Some((device, e))),
            }
        }
        let Some(device) = found else {
            return Err(match refused {
                Some((device, e)) => PlatformError::Unsupported {
                    what: format!("the SGX driver ({device}: {e})"),
                    cure: "add this user to the group that owns the device, or pass the device into the container"
                        .into(),
                },
                None => PlatformError::Unsupported {
                    what: format!("SGX hardware ({} does not exist)", DEVICES[0]),
                    cure: "run on a machine with SGX enabled in its firmware and Linux 5.11 or later \
                           (`enclos doctor` says what is missing), or use the emulated platform"
                        .into(),
                },
            });
        };
        let enter = vdso_symbol(ENTER_SYMBOL).ok_or_else(|| PlatformError::Unsupported {
            what: format!("the vDSO function {ENTER_SYMBOL}"),
            cure: "use a kernel of version 5.11 or later with CONFIG_X86_SGX, and do not boot with vdso=0"
                .into(),
        })?;
        // SAFETY: the kernel's vDSO exports this symbol with the calling convention of `EnterFunction`
        // (arch/x86/include/uapi/asm/sgx.h, vdso_sgx_enter_enclave_t).
        let enter = unsafe { core::mem::transmute::<*const (), EnterFunction>(enter) };
        Ok(Self { device, enter })
    }
}

impl Platform for Hardware {
    fn kind(&self) -> Kind {
        Kind::Hardware
    }

    fn miscselect(&self) -> Miscselect {
        // Leaf 12H is there where the driver is.
        Miscselect::from_bits_truncate(std::arch::x86_64::__cpuid_count(0x12, 0).ebx)
    }

    fn xfrm(&self) -> u64 {
        let attributes = std::arch::x86_64::__cpuid_count(0x12, 1);
        // EENTER wants XFRM to be a part of XCR0.
        (u64::from(attributes.edx) << 32 | u64::from(attributes.ecx)) & supported_xfrm()
    }

    fn create(&self, params: &CreateParams) -> Result<Box<dyn Build>, PlatformError> {
        let fault = |rule| PlatformError::Fault { leaf: "ECREATE", fault: "#GP(0)", rule };
        // Both are checked by the processor too; here so that the reservation can be made at all.
        if !params.size.is_power_of_two() || params.size < 2 * PAGE {
            return Err(fault("the size must be a power of two of at least 8192 bytes"));
        }
        let os = |what| move |source| PlatformError::Os { what, source };
        let device: OwnedFd = open_device(self.device).map_err(os("opening the SGX device"))?.into();
        let memory = Reservation::new(params.size, 0)?;
        if params.attributes.flags.contains(AttributesFlags::PROVISIONKEY) {
            let provision = File::open(PROVISION_DEVICE).map_err(os(
                "opening /dev/sgx_provision, which PROVISIONKEY needs (join the group sgx_prv)",
            ))?;
            let mut arguments = uapi::Provision { fd: provision.as_raw_fd() as u64 };
            ioctl(&device, uapi::PROVISION, &mut arguments).map_err(os("asking for PROVISIONKEY"))?;
        }
        let secs = Secs {
            size: params.size,
            baseaddr: memory.base(),
            ssaframesize: params.ssa_frame_size,
            miscselect: params.miscselect,
            attributes: params.attributes,
            ..Secs::default()
        };
        let mut arguments = uapi::Create { src: (&raw const secs) as u64 };
        ioctl(&device, uapi::CREATE, &mut arguments).map_err(|source| match source.raw_os_error() {
            Some(libc::EINVAL | libc::EIO) => fault(
                "the processor or kernel refused the SECS: size, SSAFRAMESIZE, MISCSELECT, ATTRIBUTES or XFRM is \
                 not what it supports (`enclos doctor` lists what it does)",
            ),
            _ => os("creating an enclave (ECREATE)")(source),
        })?;
        Ok(Box::new(Builder { enter: self.enter, device, memory, runs: Vec::new() }))
    }

    fn has_dynamic_memory(&self) -> bool {
        has_dynamic_memory(self.device)
    }
}

/// Do processor and kernel have dynamic memory? (`sgx_ioc_sgx2_ready` of Linux 6.0 and later: EINVAL for a file that is no
/// initialised enclave yet, ENODEV where the processor lacks SGX2; older kernels do not know the request.)
pub(crate) fn has_dynamic_memory(device: &str) -> bool {
    let Ok(device) = open_device(device).map(OwnedFd::from) else { return false };
    let mut nothing = uapi::RemovePages { offset: 0, length: PAGE, count: 0 };
    ioctl(&device, uapi::REMOVE_PAGES, &mut nothing).is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL))
}

struct Builder {
    enter: EnterFunction,
    device: OwnedFd,
    memory: Reservation,
    /// Offset, length, protection of what was added, as long as possible.
    runs: Vec<(u64, u64, i32)>,
}

impl Build for Builder {
    fn base(&self) -> u64 {
        self.memory.base()
    }

    fn add(&mut self, pages: &Pages<'_>) -> Result<(), PlatformError> {
        let fault = |rule| PlatformError::Fault { leaf: "EADD", fault: "#GP(0)", rule };
        let length = pages.count.checked_mul(PAGE);
        let end = length.and_then(|l| l.checked_add(pages.offset));
        let Some(length) = length.filter(|_| end.is_some_and(|e| e <= self.memory.size())) else {
            return Err(fault("the page must lie in ELRANGE"));
        };
        if pages.data.is_some_and(|d| d.len() as u64 != length) {
            return Err(fault("the source must be as many whole pages as are to be added"));
        }
        // The kernel wants the source page-aligned. An aligned one goes as it is, others through a buffer; zeros
        // come from a buffer that is used again and again.
        let aligned = pages.data.is_some_and(|d| (d.as_ptr() as u64).is_multiple_of(PAGE));
        let mut buffer = vec![];
        if !aligned {
            buffer.resize(pages.count.min(BUFFER_PAGES) as usize, Page([0; PAGE as usize]));
        }
        let mut done = 0;
        while done < length {
            let (source, step) = match pages.data {
                Some(data) if aligned => (data[done as usize..].as_ptr(), length - done),
                Some(data) => {
                    let (from, _) = data[done as usize..].as_chunks::<{ PAGE as usize }>();
                    for (to, from) in buffer.iter_mut().zip(from) {
                        to.0 = *from;
                    }
                    (buffer.as_ptr().cast(), (from.len().min(buffer.len()) as u64) * PAGE)
                }
                None => (buffer.as_ptr().cast(), (buffer.len() as u64 * PAGE).min(length - done)),
            };
            done += self.add_pages(source, pages.offset + done, step, pages.secinfo, pages.measured)?;
        }
        let protection = protection_of(pages.secinfo);
        match self.runs.last_mut() {
            Some((offset, len, p)) if *offset + *len == pages.offset && *p == protection => *len += length,
            _ if length > 0 => self.runs.push((pages.offset, length, protection)),
            _ => {}
        }
        Ok(())
    }

    fn init(self: Box<Self>, sigstruct: &Sigstruct) -> Result<Arc<dyn Initialized>, PlatformError> {
        loop {
            let mut arguments = uapi::Init { sigstruct: (sigstruct as *const Sigstruct) as u64 };
            let Err(source) = ioctl(&self.device, uapi::INIT, &mut arguments) else { break };
            // The kernel does not pass EINIT's error code on.
            let what = match source.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => continue,
                Some(libc::EPERM) => {
                    "EINIT refused the image: its signature, measurement, attributes or launch control; \
                     load it on the emulated platform to learn which"
                }
                Some(libc::EACCES) => {
                    "the kernel does not allow an attribute of the image (PROVISIONKEY needs /dev/sgx_provision)"
                }
                Some(libc::EINVAL) => "the kernel refused the signature structure (vendor or attributes)",
                _ => "initialising the enclave (EINIT)",
            };
            return Err(PlatformError::Os { what, source });
        }
        for (offset, len, protection) in &self.runs {
            let at = self.memory.range(*offset, *len);
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            // SAFETY: replaces a part of our own reservation by the enclave's pages.
            let mapped = unsafe {
                libc::mmap(at.cast(), *len as usize, *protection, flags, self.device.as_raw_fd(), 0)
            };
            if mapped == libc::MAP_FAILED {
                return Err(crate::memory::os("mapping the enclave's pages"));
            }
        }
        let Self { enter, device, memory, .. } = *self;
        let is_dynamic = {
            // An initialised enclave: the kernel refuses the removal of nothing for another reason than that it cannot.
            let mut nothing = uapi::RemovePages { offset: 0, length: 0, count: 0 };
            ioctl(&device, uapi::REMOVE_PAGES, &mut nothing)
                .is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL))
        };
        Ok(Arc::new(Enclave { enter, memory, device: Mutex::new(device), is_dynamic }))
    }
}

impl Builder {
    /// One SGX_IOC_ENCLAVE_ADD_PAGES. Returns how many bytes were added: signals make it stop early.
    fn add_pages(
        &self,
        source: *const u8,
        offset: u64,
        length: u64,
        flags: SecinfoFlags,
        measured: bool,
    ) -> Result<u64, PlatformError> {
        let secinfo = Secinfo { flags, ..Secinfo::default() };
        let mut arguments = uapi::AddPages {
            src: source as u64,
            offset,
            length,
            secinfo: (&raw const secinfo) as u64,
            flags: if measured { uapi::PAGE_MEASURE } else { 0 },
            count: 0,
        };
        match ioctl(&self.device, uapi::ADD_PAGES, &mut arguments) {
            Ok(()) if arguments.count == 0 => Err(PlatformError::Os {
                what: "adding pages (the driver reported success without adding any)",
                source: io::ErrorKind::WriteZero.into(),
            }),
            Ok(()) => Ok(arguments.count),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => Ok(arguments.count),
            Err(source) => Err(match source.raw_os_error() {
                Some(libc::EINVAL | libc::EIO) => PlatformError::Fault {
                    leaf: "EADD",
                    fault: "#GP(0)",
                    rule: "the kernel or processor refused a page: its offset, type or permissions",
                },
                Some(libc::EBUSY) => PlatformError::Fault {
                    leaf: "EADD",
                    fault: "#PF",
                    rule: "there is already a page at this address",
                },
                _ => PlatformError::Os {
                    what: "adding pages (EADD; out of memory means that the enclave page cache is used up)",
                    source,
                },
            }),
        }
    }
}

/// An initialised enclave. Fields are dropped in this order: pages unmapped, then the device closed, which frees the
/// EPC.
struct Enclave {
    enter: EnterFunction,
    memory: Reservation,
    /// The driver takes one request at a time (EBUSY).
    device: Mutex<OwnedFd>,
    is_dynamic: bool,
}

impl Initialized for Enclave {
    fn base(&self) -> u64 {
        self.memory.base()
    }

    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn enter_function(&self) -> EnterFunction {
        self.enter
    }

    fn prepare_thread(&self) -> Result<(), PlatformError> {
        Ok(())
    }

    fn hint_enclu_sites(&self, _offsets: &[u64]) {}

    fn dynamic_memory(&self) -> Option<&dyn DynamicMemory> {
        self.is_dynamic.then_some(self)
    }
}

impl DynamicMemory for Enclave {
    /// The kernel executes EAUG when a page is first touched, by EACCEPT for example; it only wants to know the range.
    fn augment(&self, offset: u64, count: u64) -> Result<(), PlatformError> {
        let length = self.length("EAUG", offset, count)?;
        let at = self.memory.range(offset, length);
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        // SAFETY: replaces a part of our own reservation, or of what was mapped there before, by the enclave's pages:
        // those that there are stay as they are.
        let mapped =
            unsafe { libc::mmap(at.cast(), length as usize, protection, flags, device.as_raw_fd(), 0) };
        if mapped == libc::MAP_FAILED {
            Err(crate::memory::os("mapping pages to add (EAUG)"))
        } else {
            Ok(())
        }
    }

    fn restrict(&self, offset: u64, count: u64, permissions: SecinfoFlags) -> Result<(), PlatformError> {
        let permissions = permissions.bits();
        self.change("EMODPR", offset, count, |device, offset, length| {
            let mut arguments = uapi::Restrict { offset, length, permissions, result: 0, count: 0 };
            let outcome = ioctl(device, uapi::RESTRICT_PERMISSIONS, &mut arguments);
            (outcome, arguments.count, arguments.result)
        })
    }

    fn modify_type(&self, offset: u64, count: u64, page_type: PageType) -> Result<(), PlatformError> {
        self.change("EMODT", offset, count, |device, offset, length| {
            let page_type = page_type as u64;
            let mut arguments = uapi::ModifyTypes { offset, length, page_type, result: 0, count: 0 };
            let outcome = ioctl(device, uapi::MODIFY_TYPES, &mut arguments);
            (outcome, arguments.count, arguments.result)
        })
    }

    fn remove(&self, offset: u64, count: u64) -> Result<(), PlatformError> {
        self.change("EREMOVE", offset, count, |device, offset, length| {
            let mut arguments = uapi::RemovePages { offset, length, count: 0 };
            let outcome = ioctl(device, uapi::REMOVE_PAGES, &mut arguments);
            (outcome, arguments.count, 0)
        })
    }
}

impl Enclave {
    /// Repeats a request until all pages are done: signals, and reclaim in the kernel, make it stop early.
    fn change(
        &self,
        leaf: &'static str,
        offset: u64,
        count: u64,
        request: impl Fn(&OwnedFd, u64, u64) -> (io::Result<()>, u64, u64),
    ) -> Result<(), PlatformError> {
        let length = self.length(leaf, offset, count)?;
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < length {
            let (outcome, changed, result) = request(&device, offset + done, length - done);
            done += changed.min(length - done);
            let Err(source) = outcome else {
                if changed == 0 {
                    break;
                }
                continue;
            };
            if matches!(source.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                continue;
            }
            let code = u32::try_from(result).ok().and_then(|r| ErrorCode::try_from(r).ok());
            return Err(match code.filter(|code| *code != ErrorCode::Success) {
                Some(code) => {
                    PlatformError::Leaf { leaf, code, hint: "the enclave has not accepted the change before" }
                }
                None => PlatformError::Os { what: "changing pages of the enclave", source },
            });
        }
        if done == length {
            return Ok(());
        }
        Err(PlatformError::Os {
            what: "changing pages (the driver reported success without changing any)",
            source: io::ErrorKind::WriteZero.into(),
        })
    }

    fn length(&self, leaf: &'static str, offset: u64, count: u64) -> Result<u64, PlatformError> {
        let length = count.checked_mul(PAGE).filter(|l| *l != 0);
        let end = length.and_then(|l| l.checked_add(offset));
        let is_inside = offset.is_multiple_of(PAGE) && end.is_some_and(|e| e <= self.memory.size());
        length.filter(|_| is_inside).ok_or(PlatformError::Fault {
            leaf,
            fault: "#GP(0)",
            rule: "the pages must lie in ELRANGE",
        })
    }
}

/// Pages of the buffer through which unaligned sources and zeros go.
const BUFFER_PAGES: u64 = 256;

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; PAGE as usize]);

/// The kernel's view of what a page may be mapped as (`sgx_encl_page.vm_max_prot_bits`).
fn protection_of(secinfo: SecinfoFlags) -> i32 {
    if secinfo.page_type() == PageType::Tcs as u8 {
        return libc::PROT_READ | libc::PROT_WRITE;
    }
    let bit = |flag, bit| if secinfo.contains(flag) { bit } else { 0 };
    bit(SecinfoFlags::R, libc::PROT_READ)
        | bit(SecinfoFlags::W, libc::PROT_WRITE)
        | bit(SecinfoFlags::X, libc::PROT_EXEC)
}

fn open_device(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn ioctl<T: uapi::Arguments>(device: &OwnedFd, request: u64, arguments: &mut T) -> io::Result<()> {
    // SAFETY: the kernel reads and writes a structure of this request's size; addresses in it point to live objects
    // of the sizes that the driver reads.
    match unsafe { libc::ioctl(device.as_raw_fd(), request, core::ptr::from_mut(arguments)) } {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        // Old drivers pass ENCLS error codes on; the in-tree one does not.
        code => Err(io::Error::other(format!("the SGX driver returned {code}"))),
    }
}

/// `arch/x86/include/uapi/asm/sgx.h`.
mod uapi {
    /// `_IOC(dir, 0xA4, nr, size)` with the generic encoding that x86 uses.
    const fn request(direction: u64, nr: u64, size: usize) -> u64 {
        direction << 30 | (size as u64) << 16 | 0xa4 << 8 | nr
    }
    const WRITE: u64 = 1;
    const READ_WRITE: u64 = 3;

    pub(super) const CREATE: u64 = request(WRITE, 0, size_of::<Create>());
    pub(super) const ADD_PAGES: u64 = request(READ_WRITE, 1, size_of::<AddPages>());
    pub(super) const INIT: u64 = request(WRITE, 2, size_of::<Init>());
    pub(super) const PROVISION: u64 = request(WRITE, 3, size_of::<Provision>());
    pub(super) const RESTRICT_PERMISSIONS: u64 = request(READ_WRITE, 5, size_of::<Restrict>());
    pub(super) const MODIFY_TYPES: u64 = request(READ_WRITE, 6, size_of::<ModifyTypes>());
    pub(super) const REMOVE_PAGES: u64 = request(READ_WRITE, 7, size_of::<RemovePages>());

    /// SGX_PAGE_MEASURE.
    pub(super) const PAGE_MEASURE: u64 = 1;

    /// A structure that one of the requests takes.
    pub(super) trait Arguments {}

    #[repr(C)]
    pub(super) struct Create {
        pub(super) src: u64,
    }

    #[repr(C)]
    pub(super) struct AddPages {
        pub(super) src: u64,
        pub(super) offset: u64,
        pub(super) length: u64,
        pub(super) secinfo: u64,
        pub(super) flags: u64,
        pub(super) count: u64,
    }

    #[repr(C)]
    pub(super) struct Init {
        pub(super) sigstruct: u64,
    }

    #[repr(C)]
    pub(super) struct Provision {
        pub(super) fd: u64,
    }

    #[repr(C)]
    pub(super) struct Restrict {
        pub(super) offset: u64,
        pub(super) length: u64,
        pub(super) permissions: u64,
        pub(super) result: u64,
        pub(super) count: u64,
    }

    #[repr(C)]
    pub(super) struct ModifyTypes {
        pub(super) offset: u64,
        pub(super) length: u64,
        pub(super) page_type: u64,
        pub(super) result: u64,
        pub(super) count: u64,
    }

    #[repr(C)]
    pub(super) struct RemovePages {
        pub(super) offset: u64,
        pub(super) length: u64,
        pub(super) count: u64,
    }

    impl Arguments for Restrict {}
    impl Arguments for ModifyTypes {}
    impl Arguments for RemovePages {}
    impl Arguments for Create {}
    impl Arguments for AddPages {}
    impl Arguments for Init {}
    impl Arguments for Provision {}
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// The numbers as a C program including <asm/sgx.h> prints them.
    #[test]
    fn ioctl_numbers_are_the_kernels() {
        assert_eq!(uapi::CREATE, 0x4008_a400);
        assert_eq!(uapi::ADD_PAGES, 0xc030_a401);
        assert_eq!(uapi::INIT, 0x4008_a402);
        assert_eq!(uapi::PROVISION, 0x4008_a403);
        assert_eq!(uapi::RESTRICT_PERMISSIONS, 0xc028_a405);
        assert_eq!(uapi::MODIFY_TYPES, 0xc028_a406);
        assert_eq!(uapi::REMOVE_PAGES, 0xc018_a407);
    }

    #[test]
    fn structures_are_laid_out_as_the_kernel_reads_them() {
        assert_eq!(offset_of!(uapi::AddPages, src), 0);
        assert_eq!(offset_of!(uapi::AddPages, offset), 8);
        assert_eq!(offset_of!(uapi::AddPages, length), 16);
        assert_eq!(offset_of!(uapi::AddPages, secinfo), 24);
        assert_eq!(offset_of!(uapi::AddPages, flags), 32);
        assert_eq!(offset_of!(uapi::AddPages, count), 40);
        assert_eq!(offset_of!(uapi::Restrict, permissions), 16);
        assert_eq!(offset_of!(uapi::Restrict, result), 24);
        assert_eq!(offset_of!(uapi::Restrict, count), 32);
        assert_eq!(offset_of!(uapi::ModifyTypes, page_type), 16);
        assert_eq!(offset_of!(uapi::ModifyTypes, count), 32);
        assert_eq!(offset_of!(uapi::RemovePages, count), 16);
        // What the driver copies from behind the pointers, and how it wants them aligned.
        assert_eq!((size_of::<Secs>(), align_of::<Secs>()), (4096, 4096));
        assert_eq!((size_of::<Secinfo>(), align_of::<Secinfo>()), (64, 64));
        assert_eq!(Sigstruct::UNPADDED_SIZE, 1808);
        assert_eq!(size_of::<crate::Run>(), 256);
        assert_eq!(align_of::<Page>(), 4096);
    }

    #[test]
    fn tcs_pages_are_mapped_read_write_for_the_kernel() {
        assert_eq!(protection_of(PageType::Tcs.into()), libc::PROT_READ | libc::PROT_WRITE);
        let code = SecinfoFlags::R | SecinfoFlags::X | PageType::Reg.into();
        assert_eq!(protection_of(code), libc::PROT_READ | libc::PROT_EXEC);
    }

    /// On a machine without the driver the error says so, and what to do.
    #[test]
    fn a_missing_driver_is_named() {
        if DEVICES.iter().any(|d| std::path::Path::new(d).exists()) {
            return;
        }
        let error = Hardware::open().unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, PlatformError::Unsupported { .. }));
        assert!(text.contains("/dev/sgx_enclave") && text.contains("emulated"), "{text}");
    }
}
