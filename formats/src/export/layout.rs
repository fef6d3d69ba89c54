//! What each writable format tells of its file.

use std::fmt;

use super::part::Part;

/// How a disk lies in a file, computed before the first byte of it is asked for.
pub(crate) trait FileLayout: fmt::Debug + Send + Sync {
    /// The file's exact length, in bytes.
    fn len(&self) -> u64;

    /// Where guest byte `guest` lies in the file, and how many bytes follow it there in guest
    /// order; `None` where the file keeps no room for it.
    fn locate(&self, guest: u64) -> Option<(u64, u64)>;

    /// The part that starts at `at`, which is before the end, and is at most `most` bytes long,
    /// which is at least 1.
    fn part(&self, at: u64, most: u64) -> Part;
}

/// What a disk's file depends on, beside its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity(pub [u8; 16]);

impl Identity {
    pub fn number(self) -> u32 {
        u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }

    /// A random UUID's form (version 4), different for each `purpose`.
    pub fn uuid(self, purpose: &str) -> [u8; 16] {
        let hash = blake3::Hasher::new().update(&self.0).update(purpose.as_bytes()).finalize();
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&hash.as_bytes()[..16]);
        uuid[6] = (uuid[6] & 0x0f) | 0x40;
        uuid[8] = (uuid[8] & 0x3f) | 0x80;
        uuid
    }
}
