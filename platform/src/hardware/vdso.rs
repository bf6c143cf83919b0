//! Functions of the kernel's vDSO.

use std::fs;

use object::Endianness;
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSymbol as _};

/// Address of a function that the vDSO exports; `None` when the kernel has no vDSO or not this function.
pub(crate) fn symbol(name: &str) -> Option<*const ()> {
    let (start, image) = image()?;
    let elf = ElfFile64::<Endianness>::parse(image).ok()?;
    let symbol = elf.dynamic_symbols().find(|s| s.is_definition() && s.name() == Ok(name))?;
    // The vDSO is linked at 0.
    let address = symbol.address();
    (address < image.len() as u64).then(|| (start + address) as *const ())
}

/// Start and bytes of the vDSO.
fn image() -> Option<(u64, &'static [u8])> {
    // SAFETY: a plain query.
    let start = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let end = maps.lines().find_map(|line| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        (u64::from_str_radix(from, 16).ok()? == start).then(|| u64::from_str_radix(to, 16).ok())?
    })?;
    let len = usize::try_from(end.checked_sub(start)?).ok()?;
    // SAFETY: the kernel maps the vDSO there, readable, and it stays for the life of the process.
    (start != 0).then(|| (start, unsafe { core::slice::from_raw_parts(start as *const u8, len) }))
}

#[cfg(test)]
mod tests {
    /// The function found is the real one: it tells the time as the C library does.
    #[test]
    fn a_function_of_this_machines_vdso_is_found_and_works() {
        let address = super::symbol("__vdso_clock_gettime").expect("every x86-64 Linux exports it");
        type ClockGettime = unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> i32;
        // SAFETY: that is the function's type.
        let function = unsafe { core::mem::transmute::<*const (), ClockGettime>(address) };
        let mut ours = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let mut theirs = ours;
        // SAFETY: both write one timespec.
        unsafe {
            assert_eq!(function(libc::CLOCK_REALTIME, &raw mut ours), 0);
            assert_eq!(libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut theirs), 0);
        }
        assert!(theirs.tv_sec - ours.tv_sec <= 1);
    }

    #[test]
    fn a_function_that_is_not_there_is_not_found() {
        assert_eq!(super::symbol("__vdso_there_is_no_such_function"), None);
        assert_eq!(super::symbol(""), None);
    }
}
