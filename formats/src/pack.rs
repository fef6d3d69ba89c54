//! Gathers compressed chunks into packs, and hands each over when it is full.
//!
//! A pack is nothing but the stored bytes of its chunks, one after the other: recipes say where
//! each lies.
//!
//! Invariant: a pack is named by the BLAKE3 of its bytes and is never longer than [`PACK_BYTES`].
//! Non-goals: compressing (see `ingest`), storing (the sink).

use std::error::Error;

use shoal_content::{CHUNK_BYTES_MAX, ObjectKey, PackId, SourceObject};

/// The most bytes in one pack. Packs are closed when the next chunk would pass it.
pub const PACK_BYTES: usize = 32 * 1024 * 1024;

const _: () = assert!(PACK_BYTES >= CHUNK_BYTES_MAX as usize);

/// Why a sink did not take a pack.
pub type SinkError = Box<dyn Error + Send + Sync>;

/// Takes packs as they fill.
pub trait PackSink {
    /// Stores `bytes`, whose BLAKE3 is `id`, and returns when they are safe, or when the sink
    /// has taken it upon itself to make them safe before the ingest's result is published.
    /// The same pack may come again after an interrupted ingest.
    ///
    /// # Errors
    /// Any error ends the ingest and is passed on.
    fn put_pack(&mut self, id: PackId, bytes: Vec<u8>) -> Result<(), SinkError>;
}

impl<F: FnMut(PackId, Vec<u8>) -> Result<(), SinkError>> PackSink for F {
    fn put_pack(&mut self, id: PackId, bytes: Vec<u8>) -> Result<(), SinkError> {
        self(id, bytes)
    }
}

/// Where a chunk came to lie: in the pack of this number, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub pack: usize,
    pub at: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct PackBuilder<S> {
    sink: S,
    capacity: usize,
    open: Vec<u8>,
    closed: Vec<SourceObject>,
}

impl<S: PackSink> PackBuilder<S> {
    /// `capacity` is in bytes; only tests use one other than [`PACK_BYTES`].
    pub fn new(sink: S, capacity: usize) -> Self {
        Self { sink, capacity, open: Vec::new(), closed: Vec::new() }
    }

    /// Appends one chunk's stored bytes, no longer than the capacity.
    pub fn append(&mut self, stored: &[u8]) -> Result<Place, SinkError> {
        if self.open.len() + stored.len() > self.capacity {
            self.close()?;
        }
        if self.open.is_empty() {
            self.open.reserve_exact(self.capacity);
        }
        let place = Place { pack: self.closed.len(), at: self.open.len() as u64 };
        self.open.extend_from_slice(stored);
        Ok(place)
    }

    fn close(&mut self) -> Result<(), SinkError> {
        if self.open.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.open);
        let id = PackId::of(&bytes);
        self.closed.push(SourceObject { key: ObjectKey::Pack(id), length: bytes.len() as u64 });
        self.sink.put_pack(id, bytes)
    }

    /// Hands over the last pack. The objects stand in the order of [`Place::pack`].
    pub fn finish(mut self) -> Result<(S, Vec<SourceObject>), SinkError> {
        self.close()?;
        Ok((self.sink, self.closed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_a_pack_before_it_would_pass_its_capacity() {
        let mut packs = Vec::new();
        let sink = |id, bytes: Vec<u8>| {
            packs.push((id, bytes));
            Ok(())
        };
        let mut builder = PackBuilder::new(sink, 10);
        let places = [6, 4, 1, 10].map(|length| builder.append(&vec![length; length as usize]));
        let places = places.map(|place| place.map(|place| (place.pack, place.at)).unwrap());
        assert_eq!(places, [(0, 0), (0, 6), (1, 0), (2, 0)]);
        let (_, objects) = builder.finish().unwrap();
        assert_eq!(objects.iter().map(|object| object.length).collect::<Vec<_>>(), [10, 1, 10]);
        for ((id, bytes), object) in packs.iter().zip(&objects) {
            assert_eq!(*id, PackId::of(bytes));
            assert_eq!(object.key, ObjectKey::Pack(*id));
        }
    }

    #[test]
    fn an_ingest_of_nothing_makes_no_pack() {
        let sink = |_, _| -> Result<(), SinkError> { Err("no pack was expected".into()) };
        assert!(PackBuilder::new(sink, 10).finish().unwrap().1.is_empty());
    }
}
