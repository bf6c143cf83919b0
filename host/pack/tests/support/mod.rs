//! Programs that tests pack, compiled by the machine's gcc.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// A runtime with the symbols the packer needs, which does nothing.
pub(crate) const RUNTIME: &str = r#"
    .globl _start, enclos_entry, enclos_syscall, enclos_cpuid
    .text
_start:
enclos_entry:
    mov $4, %eax
1:  enclu
    .byte 0x66, 0x90
enclos_syscall:
    jmp *%rcx
enclos_cpuid:
    jmp *%rdx
    .section .enclos.enclu, "a"
    .long 1b - .
    .data
    .quad enclos_entry
    .zero 8192
"#;

pub(crate) fn runtime(dir: &Path) -> Vec<u8> {
    let elf = gcc(dir, "runtime.S", RUNTIME, &["-static-pie", "-nostartfiles", "-nostdlib"]);
    std::fs::read(elf).expect("just built")
}

/// Compiles one source file; its extension says the language.
pub(crate) fn gcc(dir: &Path, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let from = dir.join(name);
    std::fs::write(&from, source).expect("temporary directory is writable");
    let to = from.with_extension("elf");
    let run = Command::new("gcc").args(["-O2", "-fPIE"]).args(flags).arg("-o").arg(&to).arg(&from).output();
    let run = run.expect("gcc runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    to
}

/// A small static glibc program.
pub(crate) fn hello(dir: &Path) -> Vec<u8> {
    let source = "#include <stdio.h>\nstatic char big[20000];\nint main(int c, char **v) {\n\
                  printf(\"hello %d %p\\n\", c, (void *)big[c]); return 0; }\n";
    std::fs::read(gcc(dir, "hello.c", source, &["-static-pie"])).expect("just built")
}

pub(crate) fn key() -> enclos_pack::SigningKey {
    enclos_pack::SigningKey::from_pem(include_str!("../data/test-only-key.pem")).expect("a sound key")
}
