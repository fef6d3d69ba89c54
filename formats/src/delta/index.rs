//! The lists of chunks in a segment's index.
//!
//! Invariant: what is read ascends, is in range, and no count makes the reader allocate more than
//! a fixed multiple of what was sent plus the chunks that fit in a segment.

use shoal_content::Recipe;

/// Appends ascending chunk numbers as runs.
pub(super) fn put_runs(out: &mut Vec<u8>, chunks: &[u32]) {
    let runs: Vec<&[u32]> = chunks.chunk_by(|one, next| one + 1 == *next).collect();
    put(out, runs.len() as u64);
    let mut end = 0;
    for run in runs {
        put(out, u64::from(run[0] - end));
        put(out, run.len() as u64);
        end = run[0] + run.len() as u32;
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads lists one after another.
pub(super) struct Runs<'a>(pub &'a [u8]);

impl Runs<'_> {
    /// Chunks of `recipe`, whose content together is at most `bytes_max` long: the numbers, and
    /// that length.
    pub fn chunks(&mut self, recipe: &Recipe, bytes_max: usize) -> Option<(Vec<u32>, usize)> {
        let count = self.number()?;
        let (mut chunks, mut bytes, mut end) = (Vec::new(), 0usize, 0u64);
        for _ in 0..count {
            let first = end.checked_add(self.number()?)?;
            end = first.checked_add(self.number()?)?;
            if end > recipe.chunks().len() as u64 {
                return None;
            }
            for chunk in first..end {
                bytes += recipe.chunks()[chunk as usize].length as usize;
                if bytes > bytes_max {
                    return None;
                }
                chunks.push(chunk as u32);
            }
        }
        Some((chunks, bytes))
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                return None;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}
