//! Fills the file system until there is no more: an error, after which everything else goes on.

use std::fs::File;
use std::io::Write as _;

fn main() {
    let mut file = File::create("/tmp/large").unwrap();
    let piece = vec![7_u8; 64 * 1024];
    let mut written = 0;
    let error = loop {
        match file.write(&piece) {
            Ok(n) => written += n as u64,
            Err(e) => break e,
        }
    };
    println!("{}", error.kind());
    assert!(written > 4 << 20 && std::fs::metadata("/tmp/large").unwrap().len() == written);
    assert_eq!(std::fs::File::create("/tmp/another").map(drop).map_err(|e| e.kind()), Err(error.kind()));
    drop(file);
    std::fs::remove_file("/tmp/large").unwrap();
    std::fs::write("/tmp/another", &piece).unwrap();
    println!("{} bytes again", std::fs::read("/tmp/another").unwrap().len());
}
