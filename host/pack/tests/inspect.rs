//! What an inspection says.

mod support;

use std::path::Path;

use enclos_pack::inspect::Signature;
use enclos_pack::{Config, Date, Image, PackInput, inspect, pack};
use support::{gcc, key, runtime};

/// A contract, so that the test sees what the macro really emits.
#[enclos::interface]
pub trait Counter {
    /// Adds to the counter.
    fn add(&self, amount: u32, note: &str) -> Result<u64, String>;
    /// Reads the counter.
    fn get(&self) -> u64;
}

struct Zero;

impl Counter for Zero {
    fn add(&self, amount: u32, note: &str) -> Result<u64, String> {
        Err(format!("{amount} {note}"))
    }

    fn get(&self) -> u64 {
        0
    }
}

fn config() -> Config {
    let text = "name = 'inspected'\nthreads = 2\nheap = '1 MiB'\nstack = '64 KiB'\ndebug = true\nproduct-id = 4\n\
                security-version = 9\nenv = ['A', 'B']\nservices = ['Counter', 'Other']\nstdin = true\n\
                [fixed-env]\nX = 'y=z'\n";
    Config::parse(text, Path::new("enclos.toml")).expect("sound")
}

fn image() -> Image {
    image_of(&config())
}

fn image_of(config: &Config) -> Image {
    let dir = tempfile::tempdir().expect("temporary directory");
    let description: Vec<String> =
        CounterServer::<Zero>::CONTRACT.description.bytes().map(|b| b.to_string()).collect();
    // The marker alone, a broken description and the same twice must not disturb.
    let source = format!(
        "#include <stdio.h>\nconst char marker[] = \"\\1ENCLOS-CONTRACT:\";\n\
         const char broken[] = \"\\1ENCLOS-CONTRACT:{{]\\1END\";\n\
         const char one[] = {{ {0}, 0 }};\nconst char two[] = {{ {0}, 0 }};\n\
         int main() {{ puts(marker); puts(broken); puts(one); puts(two); return 0; }}\n",
        description.join(", ")
    );
    let app = std::fs::read(gcc(dir.path(), "contract.c", &source, &["-static-pie"])).expect("just built");
    let runtime = runtime(dir.path());
    pack(&PackInput { runtime: &runtime, app: &app, config }).expect("packs")
}

#[test]
fn an_inspection_says_whether_there_may_be_avx512() {
    let mut config = config();
    config.avx512 = true;
    let seen = inspect(&image_of(&config).to_file_bytes()).expect("reads");
    assert_eq!((&*seen.identity.xfrm, &*seen.identity.optional_xfrm), ("0x7", "0xe0"));
    assert!(seen.manifest.avx512);
}

#[test]
fn an_inspection_says_what_the_image_is() {
    let mut image = image();
    assert_eq!(inspect(&image.to_file_bytes()).expect("reads").signature, Signature::Unsigned);
    image.sign(&key(), Date::from_unix(1_700_000_000)).expect("signs");
    let seen = inspect(&image.to_file_bytes()).expect("reads");
    assert_eq!(seen.signature, Signature::Valid { date: "2023-11-14".into() });
    assert_eq!(seen.identity.mrenclave, enclos_pack::sign::hex(&image.mrenclave()));
    assert_eq!(seen.identity.mrsigner, Some(enclos_pack::sign::hex(&key().public().mrsigner())));
    assert_eq!((seen.identity.product_id, seen.identity.security_version, seen.identity.debug), (4, 9, true));
    assert_eq!(
        (&*seen.identity.attributes, &*seen.identity.xfrm, &*seen.identity.miscselect),
        ("0x6", "0x7", "0x0")
    );
    assert_eq!((&*seen.identity.optional_xfrm, seen.manifest.avx512), ("0x0", false));
    assert_eq!(
        (&*seen.manifest.env, &*seen.manifest.fixed_env),
        (&["A".into(), "B".into()][..], &["X=y=z".into()][..])
    );
    assert_eq!(seen.manifest.services, ["Counter", "Other"]);

    let [contract] = &seen.contracts[..] else { panic!("{:?}", seen.contracts) };
    assert_eq!((&*contract.name, contract.host_service), ("Counter", true));
    assert_eq!(contract.hash, enclos_pack::sign::hex(&CounterServer::<Zero>::CONTRACT.hash));
    let methods: Vec<&str> = contract.methods.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(methods, ["add", "get"]);
    assert_eq!(contract.methods[0].args[1].name, "note");

    let area = |what: &str| seen.layout.iter().filter(|a| a.what == what).collect::<Vec<_>>();
    assert_eq!(area("heap")[0].size, 1 << 20);
    assert!(!area("heap")[0].contents_measured);
    for i in 0..2 {
        assert_eq!(area(&format!("thread {i}: stack"))[0].size, 16 * 4096);
        assert_eq!(area(&format!("thread {i}: exception stack"))[0].size, 4 * 4096);
        assert_eq!(area(&format!("thread {i}: SSA frames"))[0].size, 3 * 4096);
        let tcs = area(&format!("thread {i}: TCS"));
        assert_eq!((&*tcs[0].permissions, tcs[0].contents_measured), ("tcs", true));
    }
    let pages: u64 = seen.layout.iter().map(|a| a.size).sum();
    assert_eq!(pages, image.stream().pages.len() as u64 * 4096);
    assert_eq!(seen.measured.content_bytes + seen.measured.place_only_bytes, pages);
    assert_eq!(seen.measured.place_only_bytes, (1 << 20) + 2 * 23 * 4096);
    assert!(area("application").iter().all(|a| a.permissions != "rwx" && a.contents_measured));
    let code: u64 = area("application").iter().filter(|a| a.permissions == "r-x").map(|a| a.size).sum();
    assert_eq!(code, seen.trusted_base.application_code);
    assert!(code > image.hints().app_code, "the stubs count");
    assert_eq!(seen.trusted_base.runtime_code, 4096);
    let hints = image.hints();
    let main = hints.symbols.iter().find(|s| s.name == "main").expect("a debug image has symbols");
    assert!(main.offset >= image.info().app && main.offset < image.info().app_end);
    assert_eq!(hints.symbol(main.offset + 1).map(|s| &*s.name), Some("main"));
    assert_eq!(hints.symbol(image.info().heap), None);
    let json = serde_json::to_value(&seen).expect("encodes");
    assert_eq!(json["signature"]["state"], "valid");
    assert_eq!(json["contracts"][0]["methods"][1]["name"], "get");
}

#[test]
fn a_wrong_signature_is_named() {
    let mut image = image();
    image.sign(&key(), Date::from_unix(0)).expect("signs");
    let mut file = image.to_file_bytes();
    let at = 32 + image.sgxs().len();
    file[at + 600] ^= 1;
    let seen = inspect(&file).expect("reads");
    assert!(
        matches!(&seen.signature, Signature::Invalid { reason } if reason.contains("does not verify")),
        "{seen:?}"
    );
    assert_eq!(seen.identity.mrsigner, None);
}
