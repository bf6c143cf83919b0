//! What the runtime makes of a host's answers: results, files, directories, addresses, clocks, arguments, environment.
#![no_main]

extern crate alloc;

use enclos::abi::{ClockSample, FileStatus};
use libfuzzer_sys::fuzz_target;

#[path = "../../trusted/runtime/src/replies.rs"]
#[allow(dead_code, unreachable_pub)]
mod replies;

use replies::{ADDRESS_BYTES, AF_INET, AF_INET6, Errno, Listed, kind};

fuzz_target!(|bytes: &[u8]| {
    let Some((mode, rest)) = bytes.split_first() else { return };
    match mode % 5 {
        0 => answer(rest),
        1 => directory(rest),
        2 => address(rest),
        3 => clock(rest),
        _ => start(rest),
    }
});

/// The number at a place of the input, which zeros follow.
fn word(bytes: &[u8], index: usize) -> u64 {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(bytes.iter().skip(8 * index)) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}

fn is_errno(e: Errno) -> bool {
    (1..=4095).contains(&e.0)
}

fn answer(bytes: &[u8]) {
    let (answer, most) = (word(bytes, 0) as i64, word(bytes, 1));
    match replies::checked(answer, most) {
        Ok(n) => assert!(n <= most && i64::try_from(n) == Ok(answer)),
        Err(e) => assert!(is_errno(e) && !(answer >= 0 && answer as u64 <= most)),
    }
    let (mode, reserved) = (word(bytes, 5) as u32, word(bytes, 6) as u32);
    let said =
        FileStatus { inode: word(bytes, 2), size: word(bytes, 3), modified: word(bytes, 4), mode, reserved };
    if let Ok(found) = replies::file_status(said) {
        assert!(matches!(found.mode & kind::TYPE, kind::FILE | kind::DIRECTORY));
        assert!(found.mode & !(kind::TYPE | 0o777) == 0 && i64::try_from(found.size).is_ok());
        assert_eq!(replies::file_status(found), Ok(found));
    }
}

fn directory(bytes: &[u8]) {
    let mut all = Vec::new();
    let outcome = replies::directory_entries(bytes, &mut all);
    let mut again = Vec::new();
    for Listed { name, inode, kind } in &all {
        assert!((1..=255).contains(&name.len()) && !name.contains(&b'/') && !name.contains(&0));
        let len = (19 + name.len() + 1).next_multiple_of(8);
        let end = again.len() + len;
        again.extend(
            [&inode.to_le_bytes()[..], &[0; 8], &(len as u16).to_le_bytes(), &[*kind], name].concat(),
        );
        again.resize(end, 0);
    }
    // A record takes 21 bytes at least.
    assert!(21 * all.len() <= bytes.len());
    match outcome {
        Ok(()) => {
            let mut same = Vec::new();
            assert_eq!(replies::directory_entries(&again, &mut same), Ok(()));
            assert_eq!(same, all);
        }
        Err(e) => assert!(is_errno(e)),
    }
}

fn address(bytes: &[u8]) {
    let mut said = [0; ADDRESS_BYTES];
    let n = bytes.len().min(said.len());
    said[..n].copy_from_slice(&bytes[..n]);
    for family in [1, AF_INET, AF_INET6] {
        match replies::socket_address(&said, family) {
            Ok(([], _)) => assert_eq!(family, 1),
            Ok((address, _)) => {
                assert_eq!(address[..2], family.to_le_bytes());
                assert!(
                    family == 1 && address.len() <= 110
                        || matches!((family, address.len()), (2, 16) | (10, 28))
                );
            }
            Err(e) => assert!(is_errno(e)),
        }
    }
}

fn clock(bytes: &[u8]) {
    let (tsc, tsc_hz) = (word(bytes, 0), word(bytes, 1));
    let said = ClockSample { tsc, tsc_hz, realtime_ns: word(bytes, 2), monotonic_ns: word(bytes, 3) };
    let (hz, scale) = replies::counter_rate(&said);
    if hz == 0 {
        return;
    }
    assert_eq!(hz, tsc_hz);
    // Within the second for which a sample is used, time goes on and never for longer than it.
    let (early, late) = (word(bytes, 4) % hz, word(bytes, 5) % hz);
    let (early, late) = (early.min(late), early.max(late));
    let (before, after) = (replies::nanoseconds(early, scale), replies::nanoseconds(late, scale));
    assert!(before <= after && after < 1_000_000_000);
}

fn start(bytes: &[u8]) {
    const ENV: &str = "PATH\nTZ\nRUST_LOG\nGLIBC_TUNABLES";
    const FIXED: &str = "TZ=CET";
    assert_eq!(replies::arguments(bytes).count(), bytes.iter().filter(|b| **b == 0).count());
    assert!(replies::arguments(bytes).all(|a| !a.contains(&0)));
    for entry in replies::environment(bytes, ENV, FIXED) {
        let name = entry.split(|b| *b == b'=').next();
        assert!(!entry.contains(&0) && (name == Some(b"PATH") || name == Some(b"RUST_LOG")));
    }
}
