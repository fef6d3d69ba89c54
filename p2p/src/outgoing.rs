//! Counts what answers keep in memory until their receivers have it.
//!
//! A connection keeps what was written to it until that is acknowledged, [`SEND_WINDOW_BYTES`] at most,
//! and there may be a thousand connections. So each answer counts with all that it may bring, from its
//! beginning to its last acknowledgement; past the budget of all connections together
//! (`shoal_swarm::UNACKNOWLEDGED_BYTES_MAX`) no further answer is begun, and who asks hears "busy" and
//! is called.
//!
//! Invariant: the answers to one peer count no more than its connection can keep, however many it
//! asks for and does not read.

use std::sync::atomic::Ordering;

use shoal_content::CHUNK_BYTES_MAX;

use crate::endpoint::SEND_WINDOW_BYTES;
use crate::link::Link;
use crate::swarm::Shared;

/// What one answer keeps; nothing before it is granted.
pub(crate) struct Kept<'a> {
    shared: &'a Shared,
    link: &'a Link,
    bytes: u64,
}

impl<'a> Kept<'a> {
    pub(crate) fn nothing(shared: &'a Shared, link: &'a Link) -> Self {
        Self { shared, link, bytes: 0 }
    }

    /// The answer has a slot, and brings so many chunks at most.
    pub(crate) fn count(&mut self, chunks: usize) {
        let wanted = chunks as u64 * u64::from(CHUNK_BYTES_MAX);
        // The lock is that of the link's count, too.
        let mut uploads = self.shared.uploads.lock();
        let room = SEND_WINDOW_BYTES.saturating_sub(self.link.kept.load(Ordering::Relaxed));
        let bytes = wanted.min(room);
        self.link.kept.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        uploads.keep(bytes);
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        self.link.kept.fetch_sub(self.bytes, Ordering::Relaxed);
        let lets_begin = self.shared.uploads.lock().acknowledged(self.bytes);
        if lets_begin {
            self.shared.call_waiting();
        }
    }
}
