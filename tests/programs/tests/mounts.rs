//! Sealed files and directories of the host, seen from inside by programs that know nothing of either: what they keep, and
//! what becomes of them when disks fill up, directories vanish, hosts die, lie, alter and roll back.

#[allow(dead_code)]
mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use enclos::abi::hostcall;
use enclos_host::{Builder, Captured, Enclave, End, HostCall, PlatformChoice};
use enclos_pack::Image;
use support::{build, builder, image};

const MOUNTS: &str = r#"
threads = 4
heap = "16 MiB"
stdin = true
[[mounts]]
path = "/data"
kind = "sealed"
[[mounts]]
path = "/own/image"
kind = "sealed"
policy = "image"
[[mounts]]
path = "/given"
kind = "host"
[[mounts]]
path = "/shared"
kind = "host"
writable = true
"#;

fn guest() -> &'static Image {
    static GUEST: OnceLock<Image> = OnceLock::new();
    GUEST.get_or_init(|| image(&build("sealed.rs"), MOUNTS))
}

/// Exit status, output, log.
type Ran = (i32, String, String);

fn run_image(image: &Image, arguments: &[&str], prepare: impl FnOnce(Builder) -> Builder) -> Ran {
    let (out, log) = (Captured::default(), Arc::new(Mutex::new(String::new())));
    let said = log.clone();
    let described = builder(image).args(arguments.iter().copied()).stdout(out.clone()).stderr(out.clone());
    let described = described.log(move |_, text| *said.lock().unwrap() += text);
    let enclave = prepare(described).start().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while enclave.end().is_none() {
        assert!(Instant::now() < until, "{arguments:?} hangs:\n{}", out.text());
        std::thread::sleep(Duration::from_millis(1));
    }
    let log = log.lock().unwrap().clone();
    match enclave.end() {
        Some(End::Exited { status }) => (status, out.text(), log),
        other => panic!("{arguments:?}: {other:?}\n{}\n{log}", out.text()),
    }
}

fn run(arguments: &[&str], prepare: impl FnOnce(Builder) -> Builder) -> Ran {
    run_image(guest(), arguments, prepare)
}

/// Does it tell of error 5, by whichever format?
fn is_io_error(out: &str) -> bool {
    out.contains("os error 5)") || out.contains("code: 5,")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn the_same_as_on_any_file_system() {
    let program = build("files.rs");
    let outside = Command::new(&program).arg(folder().path()).output().unwrap();
    let image = image(&program, MOUNTS);
    for mount in ["/data", "/own/image", "/shared"] {
        let directory = folder();
        let (status, out, log) = run_image(&image, &[mount], |b| b.mount(mount, directory.path()));
        assert_eq!((status, out), (0, String::from_utf8(outside.stdout.clone()).unwrap()), "{mount}: {log}");
    }
}

#[test]
fn sealed_files_are_there_again_for_the_same_image() {
    let directory = folder();
    for found in ["found 0\ndurable 1\n", "found 1\ndurable 2\n"] {
        let (status, out, log) =
            run(&["count", "/own/image", "1"], |b| b.mount("/own/image", directory.path()));
        assert_eq!((status, out.as_str()), (0, found), "{log}");
    }
    // Not at another place, nor for another image.
    let (status, out, log) = run(&["read", "/data"], |b| b.mount("/data", directory.path()));
    assert!(status != 0 && out.contains("PermissionDenied") && log.contains("policy image"), "{out}{log}");
    let other = image(&build("sealed.rs"), &format!("product-id = 9\n{MOUNTS}"));
    let (status, out, log) =
        run_image(&other, &["read", "/own/image"], |b| b.mount("/own/image", directory.path()));
    assert!(status != 0 && out.contains("PermissionDenied") && log.contains("another image"), "{out}{log}");
}

#[test]
fn altered_and_older_files_are_errors_and_harm_nothing() {
    let directory = folder();
    let count = |times: &str| run(&["count", "/data", times], |b| b.mount("/data", directory.path()));
    let read = || run(&["read", "/data"], |b| b.mount("/data", directory.path()));
    assert_eq!(count("3").0, 0);
    let old = ["root", "blocks"].map(|f| fs::read(directory.path().join(f)).unwrap());
    assert_eq!(count("3").0, 0);
    let new = ["root", "blocks"].map(|f| fs::read(directory.path().join(f)).unwrap());
    for (i, file) in ["root", "blocks"].into_iter().enumerate() {
        let path = directory.path().join(file);
        fs::write(&path, &old[i]).unwrap();
        let (status, out, log) = read();
        assert!(status != 0 && is_io_error(&out), "older {file}: {out}");
        assert!(log.contains("older version") || log.contains("altered"), "older {file}: {log}");
        // Nobody repairs, or makes anew, what is not understood.
        assert_eq!(fs::read(&path).unwrap().len(), old[i].len());
        fs::write(&path, &new[i]).unwrap();
        for at in (0..new[i].len()).step_by(new[i].len() / 7) {
            let mut altered = new[i].clone();
            altered[at] ^= 4;
            fs::write(&path, altered).unwrap();
            let (status, out, log) = read();
            let refused = is_io_error(&out) || out.contains("PermissionDenied");
            assert!(
                status == 0 && out == "found 6\n" || status != 0 && refused && log.contains("mount /data"),
                "byte {at} of {file}: {out}{log}"
            );
            fs::write(&path, &new[i]).unwrap();
        }
        fs::remove_file(&path).unwrap();
        let (status, _, log) = read();
        assert!(status != 0 && log.contains("missing"), "no {file}: {log}");
        fs::write(&path, &new[i]).unwrap();
    }
    assert_eq!(read().1, "found 6\n");
}

#[test]
fn a_full_disk_is_an_error_of_write() {
    let directory = folder();
    // A host with a disk of 2 MiB.
    let full = |call: &mut HostCall<'_>| match call.number {
        hostcall::FILE_RESERVE if call.arguments[1] > 2 << 20 => -i64::from(libc::ENOSPC),
        _ => call.result,
    };
    let (status, out, log) =
        run(&["fill", "/data"], |b| b.mount("/data", directory.path()).inspect_host_calls(full));
    assert_eq!((status, out.as_str()), (0, "StorageFull\nkept 80000\n"), "{log}");
}

#[test]
fn a_vanished_directory_is_an_error_of_fsync() {
    struct WhenGone(std::path::PathBuf);
    impl Read for WhenGone {
        fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
            fs::remove_dir_all(&self.0)?;
            to[0] = b'\n';
            Ok(1)
        }
    }
    let directory = folder();
    let gone = WhenGone(directory.path().to_path_buf());
    let (status, out, log) = run(&["vanish", "/data"], |b| b.mount("/data", directory.path()).stdin(gone));
    assert_eq!(status, 0, "{out}{log}");
    assert!(is_io_error(&out) && log.contains("error 116"), "{out}{log}");
    // One that was never given.
    let (status, out, log) = run(&["read", "/data"], |b| b);
    assert!(status != 0 && out.contains("code: 19,") && log.contains("gave no directory"), "{out}{log}");
}

#[test]
fn two_enclaves_do_not_share_sealed_files() {
    let directory = folder();
    let enclave = builder(guest())
        .args(["count", "/data"])
        .stdout(std::io::sink())
        .mount("/data", directory.path())
        .start()
        .unwrap();
    while !directory.path().join("blocks").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (status, out, _) = run(&["count", "/data", "1"], |b| b.mount("/data", directory.path()));
    assert!(status != 0 && out.contains("ResourceBusy"), "{out}");
    drop(enclave);
}

#[test]
fn no_path_leads_out_of_a_mount() {
    let (outer, root) = (folder(), "shared");
    fs::write(outer.path().join("secret"), "secret").unwrap();
    let shared = outer.path().join(root);
    fs::create_dir_all(shared.join("a")).unwrap();
    fs::write(shared.join("file"), "stays").unwrap();
    let link = |target: &Path, name: &str| std::os::unix::fs::symlink(target, shared.join(name)).unwrap();
    link(outer.path(), "link");
    link(&outer.path().join("secret"), "absolute");
    link(Path::new("../secret"), "up");
    let (status, out, log) = run(&["escape", "/shared"], |b| b.mount("/shared", &shared));
    assert_eq!(status, 0, "{out}{log}");
    assert!(!out.contains("READ") && !out.contains("DONE") && out.ends_with("stays\n"), "{out}");
    assert_eq!(out.matches("os error 18").count(), 7, "{out}");
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2);
}

#[test]
fn the_hosts_own_files_are_as_the_manifest_says() {
    let directory = folder();
    fs::write(directory.path().join("given"), "from outside").unwrap();
    fs::write(directory.path().join("large"), vec![7; 1_000_000]).unwrap();
    let (status, out, _) = run(&["host", "/given"], |b| b.mount("/given", directory.path()));
    let refused =
        "from outside\n[\"given\", \"large\"]\nErr(\"Read-only file system (os error 30)\")\n12\n7000000\n";
    assert_eq!((status, out.as_str()), (0, refused));
    let (status, out, _) = run(&["host", "/shared"], |b| b.mount("/shared", directory.path()));
    assert_eq!((status, out.as_str()), (0, "from outside\n[\"given\", \"large\"]\nOk(())\n12\n7000000\n"));
    assert_eq!(fs::read_to_string(directory.path().join("taken")).unwrap(), "from inside");
}

/// Each lie about files ends in an error that the program sees, or has no effect; none ends the enclave by a fault.
#[test]
fn lies_about_files_are_errors() {
    const EVERY: [u64; 8] = [
        hostcall::FILE_MOUNT,
        hostcall::FILE_OPEN,
        hostcall::FILE_READ,
        hostcall::FILE_WRITE,
        hostcall::FILE_SYNC,
        hostcall::FILE_RESERVE,
        hostcall::FILE_STATUS,
        hostcall::FILE_LIST,
    ];
    for number in EVERY {
        for lie in [i64::MIN, -4096, 1 << 40, i64::MAX, 0x7f00_0000_0000, -28, 0, 1] {
            for arguments in [["count", "/data", "2"], ["host", "/shared", ""]] {
                let directory = folder();
                fs::write(directory.path().join("given"), "from outside").unwrap();
                fs::write(directory.path().join("large"), vec![7; 100_000]).unwrap();
                if arguments[0] == "host" && (lie == 0 || lie == 1) {
                    // That nothing is there, or little, is the host's to say of its own files.
                    continue;
                }
                let told = Arc::new(AtomicU64::new(0));
                let count = told.clone();
                let (status, out, _) = run(&arguments, |b| {
                    b.mount("/data", directory.path()).mount("/shared", directory.path()).inspect_host_calls(
                        move |call| match call.number == number {
                            true => {
                                count.fetch_add(1, Ordering::Relaxed);
                                lie
                            }
                            false => call.result,
                        },
                    )
                });
                let harmless = status == 0 && told.load(Ordering::Relaxed) == 0
                    // Handles are the host's to choose, and what it claims to have stored is seen when it is read.
                    || matches!(lie, 0 | 1)
                    || out.contains("os error");
                assert!(harmless || status != 0, "{number}: {lie:#x} in {arguments:?}: {status}\n{out}");
            }
        }
    }
}

#[test]
fn records_of_directories_are_checked() {
    let cases: [&[u8]; 4] = [
        // A record longer than what came, one of no length, one without a name, one whose name leads elsewhere.
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 8, b'x', 0],
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, b'x', 0],
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 21, 0, 8, 0, 0],
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 8, b'.', b'.', b'/', b'x', 0],
    ];
    for record in cases {
        let directory = folder();
        fs::write(directory.path().join("given"), "x").unwrap();
        let (status, out, _) = run(&["host", "/given"], |b| {
            b.mount("/given", directory.path()).inspect_host_calls(move |call| match call.number {
                hostcall::FILE_LIST => {
                    call.frame[..record.len()].copy_from_slice(record);
                    record.len() as i64
                }
                _ => call.result,
            })
        });
        assert!(status != 0 && is_io_error(&out), "{record:?}: {out}");
    }
}

/// In a process of its own, to be killed: counts in sealed files.
#[test]
#[ignore = "is what `kill_9_keeps_what_was_durable` starts"]
fn counting_process() {
    let Some(directory) = std::env::var_os("ENCLOS_TEST_SEALED") else { return };
    let enclave = Enclave::builder(fs::read(Path::new(&directory).join("image")).unwrap())
        .platform(PlatformChoice::Emulated)
        .args(["count", "/data"])
        .mount("/data", Path::new(&directory).join("sealed"))
        .start()
        .unwrap();
    let _ = enclave.wait();
}

#[test]
fn kill_9_keeps_what_was_durable() {
    let directory = folder();
    fs::create_dir(directory.path().join("sealed")).unwrap();
    fs::write(directory.path().join("image"), guest().to_file_bytes()).unwrap();
    let mut last = 0_u8;
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "counting_process", "--nocapture"])
            .env("ENCLOS_TEST_SEALED", directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines.by_ref() {
            let line = line.unwrap();
            if let Some(found) = line.split("found ").nth(1) {
                let found: u8 = found.parse().unwrap();
                // The last one reported, or the one after, whose report did not come through.
                assert!(
                    found == last || found == last.wrapping_add(1),
                    "round {round}: {found} after {last}"
                );
                last = found;
            } else if let Some(value) = line.strip_prefix("durable ") {
                last = value.parse().unwrap();
                seen += 1;
            }
            if seen == 1 + round % 5 {
                break;
            }
        }
        // At another moment each time.
        std::thread::sleep(Duration::from_micros(round * 700));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            if let Some(value) = line.strip_prefix("durable ").and_then(|v| v.parse().ok()) {
                last = value;
            }
        }
    }
    let sealed = directory.path().join("sealed");
    let (status, out, log) = run(&["read", "/data"], |b| b.mount("/data", &sealed));
    let found: u8 =
        out.trim().strip_prefix("found ").unwrap_or_else(|| panic!("{out}{log}")).parse().unwrap();
    assert!(status == 0 && (found == last || found == last.wrapping_add(1)), "{found} after {last}");
}
