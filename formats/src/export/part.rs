//! What a format's layout says of its file, before the recipe says which chunks that is.
//!
//! Invariant: parts of one file follow each other without a gap, whatever offset is asked first.
//! Non-goal: content.

/// What lies at an offset of an exported file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// Bytes of a table, at least 1 and at most 64 KiB.
    Bytes(Vec<u8>),
    Zero(u64),
    /// `length` guest bytes from `guest` on; a last block may pass the disk's end.
    Guest {
        guest: u64,
        length: u64,
    },
    /// Bytes `from..from + length` of the Adler-32 of `of` guest bytes from `guest` on, big-endian.
    Adler32 {
        guest: u64,
        of: u64,
        from: u8,
        length: u8,
    },
}

impl Part {
    /// The part of `bytes`, which stand at 0 and are followed by zeros up to `end`, that starts at
    /// `at` before `end`; at most `most` long.
    pub fn of(mut bytes: Vec<u8>, at: u64, end: u64, most: u64) -> Self {
        if at >= bytes.len() as u64 {
            return Self::Zero((end - at).min(most));
        }
        bytes.drain(..at as usize);
        bytes.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        Self::Bytes(bytes)
    }
}
