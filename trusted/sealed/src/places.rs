//! Which places of the file of blocks are taken.

use alloc::vec::Vec;

use crate::Error;

/// Place 0 is the root's witness.
#[derive(Default)]
pub(crate) struct Places {
    pub(crate) total: u32,
    pub(crate) free: u32,
    taken: Vec<u64>,
    /// Taken since the last commit: free at once when given up.
    fresh: Vec<u64>,
    /// Given up since the last commit, whose root needs them.
    pending: Vec<u64>,
    hint: u32,
}

impl Places {
    pub(crate) fn grow(&mut self, total: u32) -> Result<(), Error> {
        let words = total.div_ceil(64) as usize;
        for map in [&mut self.taken, &mut self.fresh, &mut self.pending] {
            if words > map.len() {
                map.try_reserve(words - map.len()).map_err(|_| Error::NoMemory)?;
                map.resize(words, 0);
            }
        }
        if self.total == 0 && total != 0 {
            self.taken[0] |= 1;
            self.total = 1;
        }
        self.free += total.saturating_sub(self.total);
        self.total = self.total.max(total);
        Ok(())
    }

    /// `false` when it is taken already, or there is no such place.
    pub(crate) fn take(&mut self, block: u32) -> bool {
        let (word, bit) = (block as usize / 64, 1 << (block % 64));
        if block >= self.total || self.taken[word] & bit != 0 {
            return false;
        }
        self.taken[word] |= bit;
        self.free -= 1;
        true
    }

    /// The next free place, so that what is written together lies together.
    pub(crate) fn allocate(&mut self) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        let words = self.taken.len();
        let mut block = self.hint;
        for _ in 0..=words + 1 {
            if block >= self.total {
                block = 0;
            }
            let rest = !self.taken[block as usize / 64] >> (block % 64);
            if rest != 0 {
                let found = block + rest.trailing_zeros();
                if found < self.total && self.take(found) {
                    self.fresh[found as usize / 64] |= 1 << (found % 64);
                    self.hint = found + 1;
                    return Some(found);
                }
            }
            block = (block / 64 + 1) * 64;
        }
        None
    }

    pub(crate) fn free(&mut self, block: u32) {
        let (word, bit) = (block as usize / 64, 1 << (block % 64));
        if block == 0 || block >= self.total {
            return;
        }
        if self.fresh[word] & bit == 0 {
            self.pending[word] |= bit;
        } else {
            self.fresh[word] &= !bit;
            self.taken[word] &= !bit;
            self.free += 1;
        }
    }

    pub(crate) fn commit(&mut self) {
        for (taken, pending) in self.taken.iter_mut().zip(&mut self.pending) {
            *taken &= !*pending;
            self.free += pending.count_ones();
            *pending = 0;
        }
        self.fresh.fill(0);
    }
}
