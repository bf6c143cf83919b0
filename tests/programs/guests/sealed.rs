//! What is done to mounted files from inside: the first argument says what, the second where.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Bytes of the file that counts.
const SIZE: usize = 40_000;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let root = Path::new(&arguments[2]);
    match arguments[1].as_str() {
        // Raises the byte that the file is full of, durably, and says so; for ever if it is let.
        "count" => {
            let times = arguments.get(3).map_or(u64::MAX, |t| t.parse().unwrap());
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(root.join("count"))?;
            let mut value = check(&mut file)?;
            println!("found {value}");
            for _ in 0..times {
                value = value.wrapping_add(1);
                file.write_all_at(&[value; SIZE], 0)?;
                // Besides, what makes and removes names.
                fs::write(root.join("other"), [value; 5000])?;
                fs::rename(root.join("other"), root.join(format!("other {}", value % 4)))?;
                file.sync_all()?;
                println!("durable {value}");
            }
        }
        // Fills what there is room for; what was durable stays.
        "fill" => {
            let mut file = File::create(root.join("kept"))?;
            file.write_all(&[1; SIZE])?;
            file.sync_all()?;
            let mut large = File::create(root.join("large"))?;
            let error = loop {
                if let Err(e) = large.write_all(&[2; 4096]) {
                    break e;
                }
            };
            println!("{:?}", error.kind());
            file.sync_all()?;
            fs::remove_file(root.join("large"))?;
            drop(large);
            file.sync_all()?;
            file.write_all(&[1; SIZE])?;
            file.sync_all()?;
            println!("kept {}", fs::read(root.join("kept"))?.len());
        }
        "read" => {
            let mut file = File::open(root.join("count"))?;
            println!("found {}", check(&mut file)?);
        }
        // Until the host's directory is gone, which is when a line has come.
        "vanish" => {
            fs::write(root.join("file"), "before")?;
            File::open(root.join("file"))?.sync_all()?;
            println!("ready");
            std::io::stdin().read_line(&mut String::new())?;
            let mut file = File::create(root.join("file"))?;
            file.write_all(b"after")?;
            println!("{}", file.sync_all().unwrap_err());
        }
        // What is outside of the host's directory, by ways that lead out of it.
        "escape" => {
            for name in ["link/secret", "absolute", "up", "a/../../secret"] {
                println!(
                    "{name}: {}",
                    fs::read_to_string(root.join(name)).map_or_else(|e| e.to_string(), |_| "READ".into())
                );
            }
            for outcome in [
                fs::write(root.join("link/new"), "x"),
                fs::remove_file(root.join("link/secret")),
                fs::rename(root.join("file"), root.join("link/file")),
                fs::create_dir(root.join("link/made")),
                fs::remove_dir(root),
            ] {
                println!("{}", outcome.map_or_else(|e| e.to_string(), |()| "DONE".into()));
            }
            println!("{}", fs::read_to_string(root.join("file"))?);
        }
        // What the host's own files may be used for.
        "host" => {
            println!("{}", fs::read_to_string(root.join("given"))?);
            let mut names: Vec<_> = fs::read_dir(root)?.map(|e| e.unwrap().file_name()).collect();
            names.sort();
            println!("{names:?}");
            let written = fs::write(root.join("taken"), "from inside").map_err(|e| e.to_string());
            println!("{written:?}");
            println!("{:?}", fs::metadata(root.join("given"))?.len());
            let mut large = Vec::new();
            File::open(root.join("large"))?.read_to_end(&mut large)?;
            println!("{}", large.iter().map(|b| u64::from(*b)).sum::<u64>());
        }
        other => panic!("{other}?"),
    }
    Ok(())
}

/// The byte that all of the file is.
fn check(file: &mut File) -> std::io::Result<u8> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let value = bytes.first().copied().unwrap_or(0);
    assert!(bytes.is_empty() || bytes.len() == SIZE && bytes.iter().all(|b| *b == value), "torn");
    Ok(value)
}
