//! Image files: parsed, described, and written again as they were.
#![no_main]

use enclos_pack::{Image, inspect, sgxs::Stream};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Stream::parse(bytes);
    let _ = inspect(bytes);
    if let Ok(image) = Image::parse(bytes) {
        let again = Image::parse(&image.to_file_bytes()).expect("what was written is an image");
        assert_eq!(again.mrenclave(), image.mrenclave());
    }
});
