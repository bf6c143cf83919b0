//! The same sources in another folder give the same MRENCLAVE.

use std::fs;
use std::path::Path;

use enclos_pack::build::compile;
use enclos_pack::{BuildError, Config, Progress, build_application};

/// A project with what usually gets in the way: a dependency outside of the workspace, one from the registry, generic
/// code of the standard library that can panic, generated code, `file!()`, a type's identity in the code.
fn write_project(root: &Path) {
    let files = [
        ("project/Cargo.toml", "[workspace]\nmembers = ['enclave']\nresolver = '3'\n"),
        (
            "project/enclave/Cargo.toml",
            "[package]\nname = 'app'\nversion = '1.0.0'\nedition = '2024'\n[dependencies]\n\
             outside = { path = '../../outside', features = ['loud'] }\nitoa = '1'\n",
        ),
        (
            "project/enclave/build.rs",
            "fn main() { let to = format!(\"{}/generated.rs\", std::env::var(\"OUT_DIR\").unwrap());\n\
             std::fs::write(to, \"pub fn made(i: usize) -> u8 { [1, 2, 3][i] }\").unwrap(); }",
        ),
        (
            "project/enclave/src/main.rs",
            "include!(concat!(env!(\"OUT_DIR\"), \"/generated.rs\"));\nfn main() {\n\
             let n = std::env::args().count();\n\
             std::hint::black_box(std::any::TypeId::of::<outside::Thing>());\n\
             println!(\"{} {} {}\", file!(), itoa::Buffer::new().format(n), made(n));\n\
             let mut v: Vec<u32> = outside::list(n);\nv.sort_by_key(|x| u32::MAX - x);\nprintln!(\"{:?}\", v.remove(n));\n}",
        ),
        (
            "outside/Cargo.toml",
            "[package]\nname = 'outside'\nversion = '0.1.0'\nedition = '2024'\n[features]\nloud = []\n[workspace]\n",
        ),
        (
            "outside/src/lib.rs",
            "pub struct Thing;\npub fn list(n: usize) -> Vec<u32> {\n\
             if n > 5 && cfg!(feature = \"loud\") { panic!(\"{} {}\", module_path!(), file!()) }\n\
             std::hint::black_box((0..n as u32 * 7).collect::<Vec<_>>()) }",
        ),
    ];
    for (path, text) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("writable");
        fs::write(path, text).expect("writable");
    }
}

fn config() -> Config {
    let text = "name = 'app'\nheap = '1 MiB'\nstack = '64 KiB'\nthreads = 1\n[build]\ncrate = 'enclave'";
    Config::parse(text, Path::new("enclos.toml")).expect("sound")
}

#[test]
fn the_same_sources_in_another_folder_give_the_same_measurement() {
    let (one, two) = (tempfile::tempdir().expect("temporary"), tempfile::tempdir().expect("temporary"));
    let two = two.path().join("deeper").join("with other names");
    write_project(one.path());
    write_project(&two);
    let mut built = Vec::new();
    let images = [one.path(), &two].map(|root| {
        let mut progress = |p| {
            if let Progress::Built { package, .. } = p {
                built.push(package);
            }
        };
        build_application(&root.join("project"), &config(), &mut progress).expect("builds")
    });
    let unique = images[0].mrenclave();
    assert_eq!(unique, images[1].mrenclave());
    assert_eq!(images[0].sgxs(), images[1].sgxs());
    assert_eq!(built.iter().filter(|b| *b == "app").count(), 2, "{built:?}");
    for root in [one.path(), &two] {
        let place = root.to_string_lossy().into_owned();
        let place = place.as_bytes();
        for image in &images {
            let mut pages = image.stream().pages.iter().filter_map(|p| p.data.as_ref());
            assert!(!pages.any(|p| p.windows(place.len()).any(|w| w == place)), "a path in the image");
        }
    }

    // What was built is a real program, and what it was built from is what is measured.
    let program = compile(&two.join("project"), &config(), &mut |_| ()).expect("builds");
    let run = std::process::Command::new(program).output().expect("runs");
    assert!(String::from_utf8_lossy(&run.stdout).starts_with("enclave/src/main.rs 1 2\n"), "{run:?}");
    let source = two.join("outside/src/lib.rs");
    let changed = fs::read_to_string(&source).expect("there").replace("* 7", "* 8");
    fs::write(&source, changed).expect("writable");
    let other = build_application(&two.join("project"), &config(), &mut |_| ()).expect("builds");
    assert_ne!(other.mrenclave(), unique);
}

#[test]
fn what_does_not_compile_is_reported() {
    let dir = tempfile::tempdir().expect("temporary");
    write_project(dir.path());
    let project = dir.path().join("project");
    fs::write(project.join("enclave/src/main.rs"), "fn main() { nonsense }").expect("writable");
    let mut diagnostics = Vec::new();
    let mut progress = |p| {
        if let Progress::Diagnostic(text) = p {
            diagnostics.push(text);
        }
    };
    let failed = build_application(&project, &config(), &mut progress);
    assert!(matches!(&failed, Err(BuildError::Failed { .. })), "{failed:?}");
    assert!(diagnostics.iter().any(|d| d.contains("nonsense")), "{diagnostics:?}");

    fs::create_dir_all(project.join("enclave/src/bin")).expect("writable");
    fs::write(project.join("enclave/src/bin/other.rs"), "fn main() {}").expect("writable");
    let failed = build_application(&project, &config(), &mut |_| ());
    assert!(matches!(&failed, Err(BuildError::WhichBinary { bins, .. }) if bins.len() == 2), "{failed:?}");
    fs::remove_dir_all(project.join("enclave")).expect("there");
    let failed = build_application(&project, &config(), &mut |_| ());
    assert!(matches!(&failed, Err(BuildError::File { .. })), "{failed:?}");
}
