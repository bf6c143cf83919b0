//! `enclos.toml`: defaults, every key, and errors that say where.

use std::path::Path;

use enclos_pack::{Config, ConfigError};

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("some/enclos.toml"))
}

#[test]
fn only_the_name_is_required() {
    let config = parse("name = 'small'").expect("sound");
    assert_eq!(config, Config::new("small").expect("sound"));
    assert_eq!((config.threads.get(), config.heap.get(), config.stack.get()), (8, 64 << 20, 1 << 20));
    assert_eq!((config.debug, config.args, config.stdio, config.stdin), (false, true, true, false));
}

#[test]
fn sizes() {
    for (text, bytes) in [
        ("'128 KiB'", 128 << 10),
        ("'1MiB'", 1 << 20),
        ("'2 GiB'", 2 << 30),
        ("1000000", 1_003_520),
        ("'131072'", 131_072),
        ("'131072 B'", 131_072),
    ] {
        let config = parse(&format!("name = 'a'\nstack = '64 KiB'\nheap = {text}")).expect("sound");
        assert_eq!(config.heap.get(), bytes, "{text}");
    }
}

#[test]
fn errors_name_line_and_cure() {
    for (text, line, column, part) in [
        ("", 1, 1, "missing field `name`"),
        ("name = 'a'\nthread = 4", 2, 1, "unknown field `thread`"),
        ("name = 'a'\nthreads = 0", 2, 11, "threads must be 1 to 1024"),
        ("name = 'a'\n\nthreads = 5000", 3, 11, "threads must be 1 to 1024"),
        ("name = 'a'\nheap = '64 MB'", 2, 8, "write a number and a unit, for example \"64 MiB\""),
        ("name = 'a'\nheap = '18446744073709551615 GiB'", 2, 8, "is not a size"),
        ("name = 'a'\nheap = -1", 2, 8, "-1 is not a size"),
        ("name = 'a'\nheap = true", 2, 8, "expected a size such as \"64 MiB\""),
        ("name = 'a'\nheap = 4096", 2, 8, "64 KiB to 64 GiB"),
        ("name = 'a'\nstack = '60 MiB'", 2, 1, "must not take more than half of the heap (64 MiB)"),
        ("name = ''", 1, 8, "a name has 1 to 128 bytes"),
        ("name = \"a\\nb\"", 1, 8, "no control characters"),
        ("name = 'a'\nenv = ['OK', 'A=B']", 2, 7, "cannot be the name of an environment variable"),
        ("name = 'a'\n[fixed-env]\nA = \"1\\n2\"", 3, 5, "spans lines"),
        ("name = 'a'\n[network]\nlisten = ['localhost:80']", 3, 10, "names are not resolved"),
        ("name = 'a'\n[network]\nconnect = ['127.0.0.1']", 3, 11, "colon and a port"),
        ("name = 'a'\nproduct-id = 70000", 2, 14, "expected u16"),
        ("name = 'a'\nprofile = 'tdx'", 2, 11, "unknown variant `tdx`"),
        ("name = 'a'\n[build]\ncrates = 'x'", 3, 1, "unknown field `crates`"),
        ("name = 'a'\nname = 'b'", 2, 1, "duplicate key"),
        ("name 'a'", 1, 6, "="),
    ] {
        match parse(text) {
            Err(ConfigError::Invalid { line: l, column: c, message, path }) => {
                assert!(message.contains(part), "{text:?}: {message}");
                assert_eq!((l, c), (line, column), "{text:?}: {message}");
                assert_eq!(path, Path::new("some/enclos.toml"));
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }
    const MOUNT: &str = "name = 'a'\n[[mounts]]\n";
    for (mount, line, part) in [
        ("kind = 'sealed'", 2, "missing field `path`"),
        ("path = '/d'", 2, "missing field `kind`"),
        ("path = '/d'\nkind = 'tmpfs'", 4, "unknown variant `tmpfs`, expected `sealed` or `host`"),
        ("path = 'd'\nkind = 'host'", 2, "\"d\" is no place for a mount: write an absolute path"),
        ("path = '/'\nkind = 'host'", 2, "is no place for a mount"),
        ("path = '/d/'\nkind = 'host'", 2, "is no place for a mount"),
        ("path = '/d/../e'\nkind = 'host'", 2, "is no place for a mount"),
        ("path = \"/d\\nhost-writable /e\"\nkind = 'host'", 2, "is no place for a mount"),
        ("path = '/d'\nkind = 'sealed'\npolicy = 'any'", 5, "unknown variant `any`"),
        ("path = '/d'\nkind = 'sealed'\nwritable = false", 2, "leave `writable` out"),
        ("path = '/d'\nkind = 'host'\npolicy = 'image'", 2, "leave `policy` out"),
        ("path = '/d'\nkind = 'host'\nreadonly = true", 5, "unknown field `readonly`"),
        (
            "path = '/d'\nkind = 'host'\n[[mounts]]\npath = '/d'\nkind = 'sealed'",
            6,
            "/d is within the mount /d",
        ),
        (
            "path = '/d/e'\nkind = 'host'\n[[mounts]]\npath = '/d'\nkind = 'sealed'",
            3,
            "/d/e is within the mount /d",
        ),
    ] {
        match parse(&format!("{MOUNT}{mount}")) {
            Err(ConfigError::Invalid { line: l, message, .. }) => {
                assert!(message.contains(part), "{mount:?}: {message}");
                assert_eq!(l, line, "{mount:?}: {message}");
            }
            other => panic!("{mount:?}: {other:?}"),
        }
    }
    let missing = Config::load(Path::new("/nonexistent/enclos.toml"));
    assert!(matches!(missing, Err(ConfigError::Read { .. })));
}

#[test]
fn mounts_that_lie_beside_each_other() {
    let text = "name = 'a'\n[[mounts]]\npath = '/d/e'\nkind = 'host'\n[[mounts]]\npath = '/d/ef'\nkind = 'sealed'\npolicy = 'image'";
    let config = parse(text).expect("neither is within the other");
    let kinds: Vec<_> = config.mounts.iter().map(|m| (m.path.as_str(), m.kind.word())).collect();
    assert_eq!(kinds, [("/d/e", "host-read-only"), ("/d/ef", "sealed-image")]);
}
