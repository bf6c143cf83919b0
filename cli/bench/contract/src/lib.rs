//! What crosses the boundary of the benchmark enclave, and the work that both sides do.
#![forbid(unsafe_code)]

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
