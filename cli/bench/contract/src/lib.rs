//! What crosses the boundary of the benchmark enclave, and the work that both sides do.
#![forbid(unsafe_code)]

use std::time::Instant;

/// What the host times. Methods with a count repeat inside what is to be measured, so that the call itself does not
/// show.
#[enclos::interface]
pub trait Bench {
    /// Nothing: what a call costs.
    fn nothing(&self);
    /// Gives back what it gets.
    fn echo(&self, data: &[u8]) -> Vec<u8>;
    /// Calls [`Host::nothing`] so many times.
    fn host_calls(&self, count: u32) -> bool;
    /// getppid(2) so many times: a Linux call that the runtime answers inside. Returns the sum of the answers.
    fn linux_calls(&self, count: u32) -> u64;
    /// [`compute`].
    fn compute(&self, rounds: u32) -> u64;
    /// [`grow`].
    fn grow(&self, mebibytes: u32) -> Option<(u64, u64)>;
}

/// Served by the host.
#[enclos::interface]
pub trait Host {
    /// Nothing.
    fn nothing(&self);
}

/// Words of the table that [`compute`] works on: 32 KiB, about a level 1 cache.
const TABLE: usize = 4096;

/// A function that only computes: a random walk that mixes a table, `rounds` steps of it. Arithmetic, memory within the
/// cache, and branches that cannot be predicted.
#[inline(never)]
pub fn compute(rounds: u32) -> u64 {
    let mut table = [0_u64; TABLE];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..rounds {
        // xorshift64 (Marsaglia, "Xorshift RNGs", 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let at = state as usize % TABLE;
        table[at] = if state & 0x10 == 0 {
            table[at].wrapping_mul(state | 1)
        } else {
            table[at].rotate_left(9) ^ state
        };
        state = state.wrapping_add(table[(at * 7 + 1) % TABLE]) | 1;
    }
    table.iter().fold(state, |sum, word| sum.wrapping_add(*word))
}

/// Asks for so much memory in one piece, then uses it page by page, and gives it back. How long that took, and the longest
/// that a single step took, in nanoseconds; `None`: there is not so much.
pub fn grow(mebibytes: u32) -> Option<(u64, u64)> {
    const PAGE: usize = 4096;
    let bytes = mebibytes as usize * 1024 * 1024;
    let nanoseconds = |from: Instant, to: Instant| to.duration_since(from).as_nanos() as u64;
    let started = Instant::now();
    let (mut last, mut longest) = (started, 0);
    let mut step = || {
        let now = Instant::now();
        longest = longest.max(nanoseconds(last, now));
        last = now;
    };
    let mut memory: Vec<u8> = Vec::new();
    memory.try_reserve_exact(bytes).ok()?;
    step();
    while memory.len() < bytes {
        memory.resize(memory.len() + PAGE, 1);
        step();
    }
    drop(std::hint::black_box(memory));
    step();
    Some((nanoseconds(started, last), longest))
}
