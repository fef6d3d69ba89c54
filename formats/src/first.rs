//! What of a file is read before the disk in it is gone over from its beginning to its end.
//!
//! Who reads a disk while it comes in can begin when that much is there: the file's end, where some
//! formats have a footer, the format's tables, and what file systems say of themselves. So whoever
//! sends a file in parts does well to send these first, and the rest in order.
//!
//! Invariant: it is what [`open`], [`survey`] and one walk over the disk's map read, on any machine.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::detect::open;
use crate::disk::Format;
use crate::filesystem::survey;
use crate::refusal::OpenError;
use crate::source::ReadAt;

/// Parts in the order in which something of them was wanted first.
#[derive(Debug, Default)]
struct Wanted {
    known: BTreeSet<u64>,
    in_turn: Vec<u64>,
}

/// Notes what is read of a source. It tells of no holes, as parts in storage do not.
struct Noting<S> {
    source: S,
    part_bytes: u64,
    wanted: Arc<Mutex<Wanted>>,
}

impl<S: ReadAt> ReadAt for Noting<S> {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.source.read_at(offset, buf)?;
        let end = offset + buf.len() as u64;
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        for part in offset / self.part_bytes..end.div_ceil(self.part_bytes) {
            if wanted.known.insert(part) {
                wanted.in_turn.push(part);
            }
        }
        Ok(())
    }
}

/// The numbers of those parts of a file, each of `part_bytes` but for the last, that are read before
/// the disk in it is, in the order in which they are wanted. With a `hint`, any other format is
/// refused.
///
/// # Errors
/// As [`open`]. What cannot be read after that ends the list.
pub fn read_first(
    source: impl ReadAt + Send + 'static,
    hint: Option<Format>,
    part_bytes: u64,
) -> Result<Vec<u64>, OpenError> {
    let wanted = Arc::<Mutex<Wanted>>::default();
    let noting = Noting { source, part_bytes: part_bytes.max(1), wanted: Arc::clone(&wanted) };
    let mut disk = open(Box::new(noting), hint)?;
    // What cannot be read, whoever gets the rest finds out, too.
    if survey(disk.as_mut()).is_ok() {
        let mut at = 0;
        while at < disk.virtual_bytes()
            && let Ok(extent) = disk.next_extent(at)
        {
            at = extent.offset + extent.length;
        }
    }
    drop(disk);
    let mut wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut wanted.in_turn))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_disk_is_looked_at_where_it_begins_and_where_it_ends() {
        let first = read_first(vec![0u8; 10 << 20], None, 1 << 20).unwrap();
        assert_eq!(first[..2], [0, 9]);
        assert!(first.iter().all(|part| [0, 9].contains(part)), "{first:?}");
        assert_eq!(read_first(vec![0u8; 10], None, 0).unwrap().len(), 10);
    }

    #[test]
    fn tables_are_wanted_before_what_they_lead_to() {
        // Version 3, clusters of 64 KiB, 1 MiB: a table in cluster 20 maps the first to cluster 9.
        let mut image = vec![0u8; 40 << 16];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb\0\0\0\x03");
        put(20, &16u32.to_be_bytes());
        put(24, &(1u64 << 20).to_be_bytes());
        put(36, &1u32.to_be_bytes());
        put(40, &(3u64 << 16).to_be_bytes());
        put(48, &(1u64 << 16).to_be_bytes());
        put(56, &1u32.to_be_bytes());
        put(96, &4u32.to_be_bytes());
        put(100, &104u32.to_be_bytes());
        put(3 << 16, &(20u64 << 16).to_be_bytes());
        put(20 << 16, &(9u64 << 16).to_be_bytes());
        let first = read_first(image, Some(Format::Qcow2), 1 << 16).unwrap();
        let place = |part| first.iter().position(|&it| it == part);
        assert_eq!(first[..2], [0, 39], "{first:?}");
        assert!(place(3) < place(20) && place(20) < place(9), "{first:?}");
        assert!(place(3).is_some() && place(9).is_some(), "{first:?}");
        assert_eq!(place(30), None);
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        assert!(read_first(vec![0u8; 1 << 20], Some(Format::Vhdx), 1 << 16).is_err());
    }
}
