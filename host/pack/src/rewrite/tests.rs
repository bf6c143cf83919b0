//! Runs rewritten programs as ordinary processes, with a stand-in for the runtime, and compares what they do with what
//! they did before.

use std::path::Path;
use std::process::Command;

use super::{Plan, RuntimeEntries};
use crate::PAGE;
use crate::elf::{Perm, Program};

#[test]
fn every_form_keeps_registers_flags_and_targets() {
    let dir = Dir::new();
    let program = dir.gcc("edges.S", include_str!("native/edges.S"), &[]);
    // Without the C library's sites: those of the functions named above in the source.
    let own = sites(&program, &["form_a"]);
    assert_eq!(own, [(1, 0, 0, 0)], "A");
    assert_eq!(sites(&program, &["form_b", "form_b_branch", "form_b_return"]), [(0, 1, 0, 0); 3], "B");
    assert_eq!(sites(&program, &["form_c", "form_c_both"]), [(0, 0, 1, 0); 2], "C");
    let table = ["stays_by_table", "stays_by_label_table", "stays_by_pointer", "stays"];
    assert_eq!(sites(&program, &table), [(0, 0, 0, 1); 4], "must stay");
    let before = dir.run(&program);
    assert!(before.stdout.starts_with("failed 0 vendor "), "{before:?}");
    let (after, counts) = dir.run_rewritten(&program);
    assert_eq!(before, after);
    assert!(counts.syscalls >= 7 && counts.cpuids >= 2, "{counts:?}");
}

#[test]
fn a_static_c_program_behaves_the_same() {
    let dir = Dir::new();
    let program = dir.gcc("linux.c", include_str!("native/linux.c"), &["-pthread"]);
    behaves_the_same(&dir, &program, 5);
    let stripped = dir.gcc("linux.c", include_str!("native/linux.c"), &["-pthread", "-s", "-O1"]);
    behaves_the_same(&dir, &stripped, 5);
}

#[test]
fn a_static_rust_program_behaves_the_same() {
    let dir = Dir::new();
    for flags in [&["-O"][..], &["-Cdebuginfo=0", "-Cpanic=unwind"], &["-O", "-Cstrip=symbols", "-Clto=fat"]]
    {
        let program = dir.rustc("std.rs", include_str!("native/std.rs"), flags);
        behaves_the_same(&dir, &program, 7);
    }
}

#[test]
fn a_cpuid_without_room_becomes_ud2_and_is_listed() {
    let dir = Dir::new();
    let source = ".globl main\n.type main, @function\nmain: xor %eax, %eax\n push %rbx\n jmp 2f\n\
                  1: cpuid\n2: pop %rbx\n jmp 4f\n3: cpuid\n4: inc %ecx\n test %eax, %eax\n js 1b\n jp 3b\n xor %eax, %eax\n ret\n\
                  .size main, .-main\n.section .note.GNU-stack\n";
    let file = dir.gcc("tight.S", source, &["-nostartfiles", "-nostdlib", "-Wl,-e,main"]);
    let mut program = Program::parse(&file).expect("sound ELF");
    let plan = Plan::new(&program);
    assert_eq!((plan.counts.cpuid.trapping, plan.counts.cpuid.rewritten()), (2, 0));
    assert_eq!(plan.traps.len(), 2);
    assert!(plan.traps.is_sorted());
    for at in &plan.traps {
        assert_eq!(program.bytes(*at), Some([0x0f, 0xa2]));
    }
    let end = program.end();
    plan.apply(&mut program, RuntimeEntries { syscall: 0, cpuid: 0 }).expect("nothing to encode");
    for at in &plan.traps {
        assert_eq!(program.bytes(*at), Some([0x0f, 0x0b]));
    }
    assert_eq!(program.end(), end, "no stubs, no page");
}

#[test]
fn bytes_not_known_to_be_code_are_left_alone() {
    let dir = Dir::new();
    let source = ".globl main\n.type main, @function\nmain: mov $60, %eax\n syscall\n ud2\n.size main, .-main\n\
                  data: .byte 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x0f, 0xa2, 0x0f, 0xa2\n.section .note.GNU-stack\n";
    let file = dir.gcc("data.S", source, &["-nostartfiles", "-nostdlib", "-Wl,-e,main"]);
    let mut program = Program::parse(&file).expect("sound ELF");
    let data = program.symbol("data").expect("symbol");
    let plan = Plan::new(&program);
    assert_eq!((plan.counts.syscall.a, plan.counts.syscall.unproven, plan.counts.cpuid.unproven), (1, 1, 2));
    let before: Option<[u8; 11]> = program.bytes(data);
    plan.apply(&mut program, RuntimeEntries { syscall: 0, cpuid: 0 }).expect("encodes");
    assert_eq!(program.bytes(data), before);
}

fn behaves_the_same(dir: &Dir, program: &[u8], status: i32) {
    let before = dir.run(program);
    assert_eq!(before.status, Some(status), "{before:?}");
    let (after, counts) = dir.run_rewritten(program);
    assert_eq!(before, after);
    let plan = Plan::new(&Program::parse(program).expect("sound ELF")).counts;
    println!("{counts:?} {plan:?}");
    assert!(counts.syscalls > 100 && counts.cpuids > 10, "{counts:?}");
    let (syscall, cpuid) = (plan.syscall, plan.cpuid);
    assert!(syscall.rewritten() * 100 >= syscall.total() * 98, "{plan:?}");
    assert!(cpuid.rewritten() * 100 >= cpuid.total() * 95, "{plan:?}");
}

/// Sites of forms A, B, C and of those that stay, in each of the functions.
fn sites(file: &[u8], functions: &[&str]) -> Vec<(usize, usize, usize, usize)> {
    let program = Program::parse(file).expect("sound ELF");
    let plan = Plan::new(&program);
    let analysis = super::Analysis::new(&program);
    functions
        .iter()
        .map(|name| {
            let symbol = program.symbols.iter().find(|s| s.name == *name).expect("symbol");
            let inside = |at: u64| (symbol.address..symbol.address + symbol.size).contains(&at);
            let total = analysis.sites.iter().filter(|s| inside(s.instruction.ip() - super::BIAS)).count();
            let count = |form| {
                plan.patches.iter().filter(|p| p.window.form == form && inside(p.window.start())).count()
            };
            let (a, b, c) = (count(super::Form::A), count(super::Form::B), count(super::Form::C));
            (a, b, c, total - a - b - c)
        })
        .collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    stdout: String,
    stderr: String,
    status: Option<i32>,
}

/// How often the stand-in was asked.
#[derive(Debug)]
struct Asked {
    syscalls: u64,
    cpuids: u64,
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn gcc(&self, name: &str, source: &str, flags: &[&str]) -> Vec<u8> {
        self.compile(Command::new("gcc").args(["-O2", "-static-pie", "-fPIE"]).args(flags), name, source)
    }

    fn rustc(&self, name: &str, source: &str, flags: &[&str]) -> Vec<u8> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let fixed = ["--edition=2024", "-Ctarget-feature=+crt-static", "-Crelocation-model=pie"];
        self.compile(Command::new(rustc).args(fixed).args(flags), name, source)
    }

    fn compile(&self, command: &mut Command, name: &str, source: &str) -> Vec<u8> {
        let (from, to) = (self.path().join(name), self.path().join("compiled"));
        std::fs::write(&from, source).expect("writable");
        let run = command.arg("-o").arg(&to).arg(&from).output().expect("the compiler runs");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        std::fs::read(to).expect("just compiled")
    }

    fn run(&self, program: &[u8]) -> Outcome {
        use std::os::unix::fs::PermissionsExt as _;
        let work = tempfile::tempdir().expect("temporary directory");
        let path = work.path().join("program");
        std::fs::write(&path, program).expect("writable");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("own file");
        // File descriptor 9 is where the stand-in writes what it counted.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "exec \"$0\" argument 9>\"$1\""])
            .arg("./program")
            .arg(self.path().join("counts"));
        command.current_dir(work.path()).env("TEST_VARIABLE", "value").env_remove("RUST_BACKTRACE");
        let run = command.output().expect("the program starts");
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            // The number of a thread or process differs in every run.
            text.split(' ').map(|w| if w.starts_with('(') { "(N)" } else { w }).collect::<Vec<_>>().join(" ")
        };
        let stderr: String = text(run.stderr).lines().filter(|l| !l.contains("index is")).collect();
        Outcome { stdout: text(run.stdout), stderr, status: run.status.code() }
    }

    fn run_rewritten(&self, program: &[u8]) -> (Outcome, Asked) {
        let rewritten = self.rewrite(program);
        let outcome = self.run(&rewritten);
        let counts = std::fs::read(self.path().join("counts")).expect("made by the shell");
        let (words, _) = counts.as_chunks::<8>();
        // Every process writes two; the one of interest waits for the others and is last.
        let [.., syscalls, cpuids] = words else { panic!("the stand-in saw no exit_group: {outcome:?}") };
        (outcome, Asked { syscalls: u64::from_le_bytes(*syscalls), cpuids: u64::from_le_bytes(*cpuids) })
    }

    /// An ELF file with the rewritten program, the stand-in for the runtime, and the stubs.
    fn rewrite(&self, file: &[u8]) -> Vec<u8> {
        let mut program = Program::parse(file).expect("sound ELF");
        let plan = Plan::new(&program);
        let runtime_at = program.end();
        program.memory.extend(self.stand_in());
        program.perms.push(Some(Perm { r: true, w: true, x: true }));
        let entries = RuntimeEntries { syscall: runtime_at, cpuid: runtime_at + 16 };
        plan.apply(&mut program, entries).expect("encodes");
        // A process has nobody to answer UD2.
        for at in &plan.traps {
            super::patch(&mut program, *at, &[0x0f, 0xa2]);
        }

        let mut out = file.to_vec();
        let word = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes"));
        let table = word(32) as usize;
        let mut note = None;
        for i in 0..usize::from(file[56]) {
            let at = table + 56 * i;
            match file[at] {
                1 => {
                    let (offset, address, len) = (word(at + 8), word(at + 16), word(at + 32));
                    let bytes = &program.memory[address as usize..(address + len) as usize];
                    out[offset as usize..(offset + len) as usize].copy_from_slice(bytes);
                }
                4 => note = Some(at),
                _ => {}
            }
        }
        // The program does without its notes: their entry becomes a segment for what was appended.
        let note = note.expect("compilers emit notes");
        out.resize(out.len().next_multiple_of(PAGE as usize), 0);
        let (offset, len) = (out.len() as u64, program.end() - runtime_at);
        out[note..note + 8].copy_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
        for (i, value) in [offset, runtime_at, runtime_at, len, len, PAGE].into_iter().enumerate() {
            out[note + 8 + 8 * i..note + 16 + 8 * i].copy_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&program.memory[runtime_at as usize..]);
        out
    }

    /// One page with the stand-in for the runtime.
    fn stand_in(&self) -> Vec<u8> {
        let (source, object, binary) =
            (self.path().join("runtime.S"), self.path().join("runtime.o"), self.path().join("runtime.bin"));
        std::fs::write(&source, include_str!("native/runtime.S")).expect("writable");
        let ran = |command: &mut Command| command.status().expect("binutils are there").success();
        assert!(ran(Command::new("gcc").arg("-c").arg("-o").arg(&object).arg(&source)));
        assert!(ran(Command::new("objcopy").args(["-O", "binary", "-j", ".text"]).arg(&object).arg(&binary)));
        let mut page = std::fs::read(binary).expect("just made");
        assert!(page.len() <= PAGE as usize);
        page.resize(PAGE as usize, 0);
        page
    }
}
