//! Reads on one thread what another writes: together they take as long as the slower one.
//!
//! Invariants: at most [`BUFFERS`] pieces are held at a time; they are written in the order in
//! which they were read; after an error, or once the writer gives up, nothing more is read.
//! Non-goal: more than one reader.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// One being read, one being written, and one between them, so that neither waits for small
/// differences.
pub(crate) const BUFFERS: usize = 3;

/// Bytes that were read for one place of a file.
pub(crate) struct Filled<M> {
    /// Bytes from the file's start.
    pub at: u64,
    /// As long as it was when it was first filled; what counts is in `runs`.
    pub bytes: Vec<u8>,
    /// The parts to write, ascending; the rest are holes.
    pub runs: Vec<Range<usize>>,
    /// What the writer should know when all of it is written.
    pub mark: M,
}

/// The reader's end.
pub(crate) struct Filling<M> {
    free: Receiver<Vec<u8>>,
    filled: SyncSender<Filled<M>>,
}

impl<M> Filling<M> {
    /// A buffer of `length` bytes, whatever they are; `None` once the writer has given up.
    pub fn buffer(&self, length: usize) -> Option<Vec<u8>> {
        let mut buffer = self.free.recv().ok()?;
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        Some(buffer)
    }

    /// Hands a piece over; `None` once the writer has given up.
    pub fn pass(&self, filled: Filled<M>) -> Option<()> {
        self.filled.send(filled).ok()
    }
}

/// Runs `read` on a thread of its own, and `write` here for each piece that it passes. `read` ends
/// early, with `Ok`, when it is told that the writer has given up.
///
/// # Errors
/// The writer's, or else the reader's.
pub(crate) fn overlapped<M: Send, E: Send>(
    read: impl FnOnce(&Filling<M>) -> Result<(), E> + Send,
    mut write: impl FnMut(&Filled<M>) -> Result<(), E>,
) -> Result<(), E> {
    let (free, to_fill) = sync_channel(BUFFERS);
    let (filled, to_write) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        // There is room for all of them, and the receiver is here.
        let _ = free.send(Vec::new());
    }
    thread::scope(|scope| {
        let reader = scope.spawn(move || read(&Filling { free: to_fill, filled }));
        let mut written = Ok(());
        for filled in &to_write {
            written = write(&filled);
            if written.is_err() {
                break;
            }
            // A reader that has ended needs none.
            let _ = free.send(filled.bytes);
        }
        // A reader that waits for either hears of it.
        drop((free, to_write));
        let read = match reader.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        written.and(read)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(filling: &Filling<u64>, at: u64) -> Option<()> {
        let mut bytes = filling.buffer(10)?;
        bytes[0] = at as u8;
        filling.pass(Filled { at, bytes, runs: std::iter::once(0..1).collect(), mark: at })
    }

    #[test]
    fn all_that_is_read_is_written_in_order() {
        let mut seen = Vec::new();
        let read = |filling: &Filling<u64>| {
            (0..100).try_for_each(|at| passed(filling, at).ok_or("given up"))
        };
        let written = overlapped(read, |filled| {
            assert_eq!((filled.mark, filled.bytes[0]), (filled.at, filled.at as u8));
            seen.push(filled.at);
            Ok(())
        });
        assert_eq!(written, Ok(()));
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn an_error_of_either_ends_both() {
        let endless = |filling: &Filling<u64>| {
            let mut at = 0;
            while passed(filling, at).is_some() {
                at += 1;
            }
            Ok(())
        };
        let full = |filled: &Filled<u64>| if filled.at == 7 { Err("full") } else { Ok(()) };
        assert_eq!(overlapped(endless, full), Err("full"));
        let torn = |filling: &Filling<u64>| {
            passed(filling, 0);
            Err("torn")
        };
        let mut count = 0;
        let counted = overlapped(torn, |_| {
            count += 1;
            Ok(())
        });
        assert_eq!((counted, count), (Err("torn"), 1));
    }
}
