//! What this machine has and lacks for enclaves: the facts behind `enclos doctor`.
//!
//! Facts are read from CPUID, the kernel and the file system; nothing is changed and nothing needs privileges.

use std::fs;
use std::os::unix::net::UnixStream;

use serde::Serialize;

use crate::emulator::machine::supported_xfrm;
use crate::hardware::{DEVICES, ENTER_SYMBOL, PROVISION_DEVICE, has_dynamic_memory, vdso_symbol};

/// Where the architectural enclave service manager listens.
pub const AESM_SOCKET: &str = "/var/run/aesmd/aesm.socket";

/// Memory below which the emulated platform is not much use, in bytes.
const COMFORTABLE_MEMORY: u64 = 256 << 20;

/// All there is to know about a machine.
#[derive(Clone, Debug, Serialize)]
pub struct Inventory {
    /// Can enclaves run on SGX hardware here?
    pub hardware: Verdict,
    /// Can enclaves run on the emulated platform here? (Emulation protects nothing.)
    pub emulated: Verdict,
    /// The facts, in the order in which they are best read.
    pub facts: Vec<Fact>,
}

/// Whether one of the platforms is usable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Usable?
    pub usable: bool,
    /// Ids of the facts that stand in the way.
    pub missing: Vec<&'static str>,
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// Stable name for programs, for example `sgx.driver`.
    pub id: &'static str,
    /// Name for people.
    pub name: &'static str,
    /// What was found.
    pub value: String,
    /// Is that good?
    pub status: Status,
    /// Which platform needs it.
    pub needed_by: NeededBy,
    /// What to do when it is missing.
    pub cure: Option<&'static str>,
}

/// How a fact is to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// There.
    Ok,
    /// Not there; those in [`NeededBy`] cannot do without.
    Missing,
    /// Not there or not full; things work, but slower or not all of them.
    Limited,
    /// Neither good nor bad.
    Info,
}

/// Who cannot do without a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NeededBy {
    /// The hardware platform.
    Hardware,
    /// The emulated platform.
    Emulated,
    /// Both.
    Both,
    /// Neither.
    Nobody,
}

impl Inventory {
    /// Looks at this machine.
    pub fn take() -> Self {
        let cpuid = |leaf, sub| {
            let r = core::arch::x86_64::__cpuid_count(leaf, sub);
            [r.eax, r.ebx, r.ecx, r.edx]
        };
        let mut facts = processor(&cpuid);
        facts.extend(kernel());
        Self::judge(facts)
    }

    fn judge(facts: Vec<Fact>) -> Self {
        let verdict = |platform| {
            let missing: Vec<_> = facts
                .iter()
                .filter(|f| f.status == Status::Missing && [platform, NeededBy::Both].contains(&f.needed_by))
                .map(|f| f.id)
                .collect();
            Verdict { usable: missing.is_empty(), missing }
        };
        Self { hardware: verdict(NeededBy::Hardware), emulated: verdict(NeededBy::Emulated), facts }
    }
}

/// Registers EAX, EBX, ECX, EDX of a CPUID leaf and subleaf.
type Cpuid<'a> = &'a dyn Fn(u32, u32) -> [u32; 4];

/// What CPUID says (SDM vol. 2A, CPUID; leaf 12H: SDM vol. 3D, "Discovering Support for Intel SGX").
fn processor(cpuid: Cpuid<'_>) -> Vec<Fact> {
    use NeededBy::{Both, Emulated, Hardware, Nobody};
    let [max_leaf, b, c, d] = cpuid(0, 0);
    let leaf = |n, sub| if n <= max_leaf { cpuid(n, sub) } else { [0; 4] };
    let vendor: Vec<u8> = [b, d, c].into_iter().flat_map(u32::to_le_bytes).collect();
    let [_, _, features, _] = leaf(1, 0);
    let [_, seven_b, seven_c, _] = leaf(7, 0);
    let sgx = seven_b >> 2 & 1 == 1;
    let [functions, miscselect, _, sizes] = if sgx { leaf(0x12, 0) } else { [0; 4] };
    let enabled = functions & 1 == 1;

    let mut facts = vec![
        info("cpu.vendor", "Processor", String::from_utf8_lossy(&vendor).into_owned()),
        have("cpu.rdrand", "Random numbers (RDRAND)", features >> 30 & 1 == 1, Both)
            .cure("enclaves take their randomness from the processor; use one with RDRAND"),
        have("cpu.xsave", "Extended state (XSAVE)", features >> 27 & 1 == 1, Both)
            .cure("use a processor and kernel with XSAVE"),
        info("cpu.xcr0", "State components enabled by the kernel (XCR0)", components(supported_xfrm())),
        have("sgx.cpuid", "SGX in the processor (CPUID.7:EBX[2])", sgx, Hardware)
            .cure("use an Intel processor with SGX, in the cloud a confidential VM size such as Azure DCsv3"),
        have("sgx.sgx1", "SGX1 enabled by the firmware (CPUID.12H:EAX[0])", enabled, Hardware).cure(
            "enable SGX in the firmware settings (not \"software controlled\"), and its memory reservation",
        ),
        soft("sgx.sgx2", "SGX2, dynamic memory (CPUID.12H:EAX[1])", functions >> 1 & 1 == 1, Nobody).cure(
            "images with profile = \"sgx2\" need it: build them with \"sgx1\", their heap is preallocated",
        ),
        have("sgx.flc", "Flexible launch control (CPUID.7:ECX[30])", sgx && seven_c >> 30 & 1 == 1, Hardware)
            .cure(
                "the Linux driver needs it: enable launch control in the firmware, or use a newer processor",
            ),
    ];
    if enabled {
        let [flags_low, flags_high, xfrm_low, xfrm_high] = leaf(0x12, 1);
        let flags = u64::from(flags_high) << 32 | u64::from(flags_low);
        let xfrm = u64::from(xfrm_high) << 32 | u64::from(xfrm_low);
        facts.extend([
            soft("sgx.exinfo", "Fault addresses inside (MISCSELECT.EXINFO)", miscselect & 1 == 1, Nobody)
                .cure("fault reports will lack addresses"),
            soft("sgx.kss", "Key separation and sharing (ATTRIBUTES.KSS)", flags >> 7 & 1 == 1, Nobody)
                .cure("images that ask for KSS will not load"),
            info("sgx.attributes", "Attributes supported", format!("flags {flags:#x}, XFRM {xfrm:#x}")),
            info("sgx.max_size", "Largest enclave", format!("2^{} bytes", sizes >> 8 & 0xff)),
            epc(cpuid),
        ]);
    }
    facts.push(match hwcap2_fsgsbase() {
        true => have("kernel.fsgsbase", "FS/GS base instructions for programs (FSGSBASE)", true, Both),
        false => have("kernel.fsgsbase", "FS/GS base instructions for programs (FSGSBASE)", false, Emulated)
            .cure("use Linux 5.9 or later without the boot option nofsgsbase"),
    });
    facts
}

/// CPUID.12H.2…: the EPC sections.
fn epc(cpuid: Cpuid<'_>) -> Fact {
    let sections: Vec<u64> = (2..34)
        .map(|sub| cpuid(0x12, sub))
        .take_while(|[a, ..]| a & 0xf == 1)
        .map(|[_, _, c, d]| u64::from(d & 0xf_ffff) << 32 | u64::from(c & 0xffff_f000))
        .collect();
    let bytes: u64 = sections.iter().sum();
    let value = format!("{} in {} section(s)", mebibytes(bytes), sections.len());
    Fact { value, ..have("sgx.epc", "Enclave page cache", bytes > 0, NeededBy::Hardware) }
        .cure("reserve memory for SGX in the firmware settings (PRMRR), or give the VM some EPC")
}

/// What the kernel, its devices and services say.
fn kernel() -> Vec<Fact> {
    use NeededBy::{Emulated, Hardware, Nobody};
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let driver = DEVICES.iter().find(|d| fs::symlink_metadata(d).is_ok());
    let access = |path: &str| fs::File::options().read(true).write(true).open(path);
    let mut facts = vec![info("kernel.release", "Linux", release.trim().to_owned())];
    facts.push(
        match driver {
            None => Fact {
                value: format!("{} does not exist", DEVICES[0]),
                ..have("sgx.driver", "SGX driver", false, Hardware)
            },
            Some(path) => match access(path) {
                Ok(_) => Fact { value: (*path).into(), ..have("sgx.driver", "SGX driver", true, Hardware) },
                Err(e) => {
                    Fact { value: format!("{path}: {e}"), ..have("sgx.driver", "SGX driver", false, Hardware) }
                }
            },
        }
        .cure(match driver {
            None => "Linux 5.11 or later with CONFIG_X86_SGX on a processor with SGX; in containers pass the device in",
            Some(_) => "add this user to the group that owns the device (often `sgx`)",
        }),
    );
    facts.push(
        soft(
            "sgx.edmm",
            "Dynamic memory in the driver (EDMM)",
            driver.is_some_and(|path| has_dynamic_memory(path)),
            Nobody,
        )
        .cure("images with profile = \"sgx2\" need it: Linux 6.0 or later on a processor with SGX2"),
    );
    facts.push(
        soft(
            "sgx.provision",
            "Provisioning key (/dev/sgx_provision)",
            fs::File::open(PROVISION_DEVICE).is_ok(),
            Nobody,
        )
        .cure("only quoting and provisioning enclaves need it: join the group `sgx_prv`"),
    );
    facts.push(
        have(
            "sgx.vdso",
            "vDSO function __vdso_sgx_enter_enclave",
            vdso_symbol(ENTER_SYMBOL).is_some(),
            Hardware,
        )
        .cure("Linux 5.11 or later with CONFIG_X86_SGX, not booted with vdso=0"),
    );
    facts.push(
        soft("sgx.aesm", "Quoting service (AESM)", UnixStream::connect(AESM_SOCKET).is_ok(), Nobody).cure(
            "remote attestation on hardware needs it: start aesmd, or pass its socket into the container",
        ),
    );
    let [exclusive, inclusive] = dispatch();
    facts.push(have("kernel.user_dispatch", "Syscall User Dispatch", exclusive, Emulated).cure(
        "use Linux 5.11 or later (the emulated platform catches Linux calls inside an enclave with it)",
    ));
    facts.push(
        soft("kernel.user_dispatch_inclusive", "Syscall User Dispatch, inclusive mode", inclusive, Nobody)
            .cure("nothing to do: the emulated platform uses the older, exclusive mode"),
    );
    facts.push(
        have("kernel.executable_memory", "Memory may become executable", may_execute(), Emulated)
            .cure("a security policy (SELinux execmem, PaX) forbids it: allow it for this program"),
    );
    let (available, all) = memory();
    let status = if available >= COMFORTABLE_MEMORY { Status::Ok } else { Status::Limited };
    facts.push(Fact {
        value: format!("{} available of {}", mebibytes(available), mebibytes(all)),
        status,
        cure: (status != Status::Ok).then_some("enclaves with a large heap will not fit: free some memory"),
        ..info("memory", "Memory for emulated enclave page cache", String::new())
    });
    facts
}

fn info(id: &'static str, name: &'static str, value: String) -> Fact {
    Fact { id, name, value, status: Status::Info, needed_by: NeededBy::Nobody, cure: None }
}

/// A fact that somebody cannot do without.
fn have(id: &'static str, name: &'static str, there: bool, needed_by: NeededBy) -> Fact {
    let (status, value) = if there { (Status::Ok, "yes") } else { (Status::Missing, "no") };
    Fact { id, name, value: value.into(), status, needed_by, cure: None }
}

/// A fact that is good to have.
fn soft(id: &'static str, name: &'static str, there: bool, needed_by: NeededBy) -> Fact {
    let status = if there { Status::Ok } else { Status::Limited };
    Fact { status, ..have(id, name, there, needed_by) }
}

impl Fact {
    /// What to do if it is not well.
    fn cure(mut self, cure: &'static str) -> Self {
        self.cure = matches!(self.status, Status::Missing | Status::Limited).then_some(cure);
        self
    }
}

fn components(mask: u64) -> String {
    const NAMES: [(u64, &str); 6] =
        [(1, "x87"), (2, "SSE"), (4, "AVX"), (0xe0, "AVX-512"), (0x200, "PKRU"), (0x6_0000, "AMX")];
    let names: Vec<_> = NAMES.iter().filter(|(bits, _)| mask & bits == *bits).map(|(_, n)| *n).collect();
    format!("{} ({mask:#x})", names.join(" "))
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn hwcap2_fsgsbase() -> bool {
    // SAFETY: a plain query. HWCAP2_FSGSBASE is bit 1 (arch/x86/include/uapi/asm/hwcap2.h).
    unsafe { libc::getauxval(libc::AT_HWCAP2) & 2 != 0 }
}

/// Does the kernel have Syscall User Dispatch: exclusive, inclusive?
fn dispatch() -> [bool; 2] {
    const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
    const OFF: u64 = 0;
    const EXCLUSIVE_ON: u64 = 1;
    const INCLUSIVE_ON: u64 = 2;
    // In a thread of its own: the setting is a thread's, and this one's may be in use.
    let probe = std::thread::Builder::new().name("inventory".into()).spawn(|| {
        let selector: u8 = 0; // SYSCALL_DISPATCH_FILTER_ALLOW
        let try_mode = |mode: u64, from: u64, len: u64| {
            // SAFETY: exclusive: the selector allows all calls and lives until it is off again; inclusive: only calls
            // from a range where no code is are caught.
            unsafe {
                let on = libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, mode, from, len, &raw const selector);
                libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, OFF, 0u64, 0u64, 0u64);
                on == 0
            }
        };
        [try_mode(EXCLUSIVE_ON, 0, 0), try_mode(INCLUSIVE_ON, 4096, 4096)]
    });
    probe.ok().and_then(|t| t.join().ok()).unwrap_or([false; 2])
}

/// May a private page that was written become executable?
fn may_execute() -> bool {
    // SAFETY: a page of our own that nobody executes; it is unmapped again.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let page = libc::mmap(core::ptr::null_mut(), 4096, rw, flags, -1, 0);
        if page == libc::MAP_FAILED {
            return false;
        }
        page.cast::<u8>().write(0xc3);
        let allowed = libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC) == 0;
        libc::munmap(page, 4096);
        allowed
    }
}

/// Bytes of memory: available, all.
fn memory() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    (kib("MemAvailable") << 10, kib("MemTotal") << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPUID as an Ice Lake server with SGX has it.
    fn ice_lake(leaf: u32, sub: u32) -> [u32; 4] {
        match (leaf, sub) {
            (0, _) => [0x1b, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
            (1, _) => [0x606a6, 0, 1 << 30 | 1 << 27, 0],
            (7, 0) => [2, 1 << 2, 1 << 30, 0],
            (0x12, 0) => [0x63, 1, 0, 0x381f],
            (0x12, 1) => [0xf6, 0, 0x2e7, 0],
            (0x12, 2) => [0x7000_0001, 0x8, 0x3f00_0001, 0],
            (0x12, 3) => [0x0000_0001, 0x10, 0x4000_0001, 1],
            _ => [0; 4],
        }
    }

    fn fact<'a>(facts: &'a [Fact], id: &str) -> &'a Fact {
        facts.iter().find(|f| f.id == id).unwrap_or_else(|| panic!("{id}"))
    }

    #[test]
    fn an_sgx_processor_is_recognised() {
        let facts = processor(&ice_lake);
        assert_eq!(fact(&facts, "cpu.vendor").value, "GenuineIntel");
        for id in ["sgx.cpuid", "sgx.sgx1", "sgx.sgx2", "sgx.flc", "sgx.exinfo", "sgx.kss", "sgx.epc"] {
            assert_eq!(fact(&facts, id).status, Status::Ok, "{id}");
            assert_eq!(fact(&facts, id).cure, None);
        }
        assert_eq!(fact(&facts, "sgx.max_size").value, "2^56 bytes");
        assert_eq!(fact(&facts, "sgx.attributes").value, "flags 0xf6, XFRM 0x2e7");
        // 0x3f000000 in the first, 0x1_40000000 in the second section.
        assert_eq!(fact(&facts, "sgx.epc").value, format!("{} MiB in 2 section(s)", 0x3f0 + 0x1400));
    }

    #[test]
    fn sgx_that_the_firmware_disabled_is_told_from_none() {
        let disabled = |leaf, sub| match leaf {
            0x12 => [0; 4],
            _ => ice_lake(leaf, sub),
        };
        let facts = processor(&disabled);
        assert_eq!(fact(&facts, "sgx.cpuid").status, Status::Ok);
        assert_eq!(fact(&facts, "sgx.sgx1").status, Status::Missing);
        assert!(fact(&facts, "sgx.sgx1").cure.unwrap().contains("firmware"));
        let none = |leaf, sub| match leaf {
            0 => [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
            7 | 0x12 => [0; 4],
            _ => ice_lake(leaf, sub),
        };
        let facts = processor(&none);
        assert_eq!(fact(&facts, "cpu.vendor").value, "AuthenticAMD");
        assert_eq!(fact(&facts, "sgx.cpuid").status, Status::Missing);
        let inventory = Inventory::judge(facts);
        assert!(!inventory.hardware.usable);
        assert!(inventory.hardware.missing.contains(&"sgx.cpuid"));
        assert!(!inventory.emulated.missing.contains(&"sgx.cpuid"));
    }

    #[test]
    fn leaves_beyond_the_maximum_are_not_read() {
        let old = |leaf, sub| match leaf {
            0 => [1, 0, 0, 0],
            1 => ice_lake(1, sub),
            _ => panic!("leaf {leaf:#x} does not exist"),
        };
        assert_eq!(fact(&processor(&old), "sgx.cpuid").status, Status::Missing);
    }

    /// Whatever machine this is: the inventory is consistent, and hardware is usable exactly when it opens.
    #[test]
    fn this_machines_inventory_is_consistent() {
        let inventory = Inventory::take();
        let mut ids: Vec<_> = inventory.facts.iter().map(|f| f.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), inventory.facts.len(), "ids are unique");
        for f in &inventory.facts {
            let unwell = matches!(f.status, Status::Missing | Status::Limited);
            assert_eq!(f.cure.is_some(), unwell, "{f:?}");
            assert!(!f.value.is_empty());
        }
        if inventory.hardware.usable {
            assert!(crate::hardware::Hardware::open().is_ok());
        }
        let json = serde_json::to_value(&inventory).unwrap();
        assert_eq!(json["facts"].as_array().unwrap().len(), ids.len());
        assert!(json["hardware"]["usable"].is_boolean());
    }
}
