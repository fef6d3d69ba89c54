//! Writes a `streamOptimized` VMDK of compressed grains, front to back.
//!
//! The order is that of `stream_layout`: header, descriptor, up to sector 128; the grains of each
//! table and the table; the directory, the footer, the end-of-stream marker.
//!
//! Invariants: the same grains give the same file (see `compressed`): its ids come from the
//! compressed bytes; of tables it holds one grain table and the directory.
//! Non-goals: compressing, knowing zeros.

use super::SECTOR_BYTES;
use super::header::{AT_END, MARKER_DIRECTORY, MARKER_END, MARKER_FOOTER, MARKER_TABLE};
use super::sparse_layout::{GRAIN_BYTES, GRAIN_SECTORS, TABLE_BYTES, TABLE_ENTRIES, TABLE_SECTORS};
use super::stream_layout::{OVERHEAD, marked, stream_header};
use super::text::descriptor;
use crate::compressed::{CompressError, Packer, Sink};
use crate::export::layout::Identity;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct StreamPacker<'a> {
    sink: Sink<'a>,
    virtual_bytes: u64,
    /// The first sector that is not taken.
    end: u64,
    /// Sectors of the tables.
    directory: Vec<u32>,
    /// Number and entries of the table that is being filled.
    table: Option<(u64, Vec<u32>)>,
    identity: blake3::Hasher,
}

impl<'a> StreamPacker<'a> {
    pub fn new(virtual_bytes: u64, sink: Sink<'a>) -> Self {
        let tables = virtual_bytes.div_ceil(GRAIN_BYTES * TABLE_ENTRIES);
        let directory = vec![0; tables as usize];
        let mut identity = blake3::Hasher::new();
        identity.update(&virtual_bytes.to_le_bytes());
        Self { sink, virtual_bytes, end: OVERHEAD, directory, table: None, identity }
    }

    /// Takes as many sectors as `parts` need behind one another, and puts them there. A sector's
    /// number has 32 bits.
    fn append(&mut self, parts: [&[u8]; 2]) -> Result<u32, CompressError> {
        let sector = u32::try_from(self.end).map_err(|_| CompressError::TooLarge)?;
        let mut at = self.end * SECTOR_BYTES;
        for part in parts {
            self.sink.put(at, part)?;
            at += part.len() as u64;
        }
        let end = at.next_multiple_of(SECTOR_BYTES);
        // Zeros in place of a hole, so that what follows is written at once with it.
        self.sink.put(at, &[0; SECTOR_BYTES as usize][..(end - at) as usize])?;
        self.end = end / SECTOR_BYTES;
        Ok(sector)
    }

    /// A marker, and behind it `bytes`.
    fn append_marked(&mut self, kind: u32, bytes: &[u8]) -> Result<u32, CompressError> {
        let sectors = (bytes.len() as u64).div_ceil(SECTOR_BYTES);
        self.append([&marked(sectors, kind), &[]])?;
        self.append([bytes, &[]])
    }

    fn end_table(&mut self) -> Result<(), CompressError> {
        if let Some((number, entries)) = self.table.take() {
            debug_assert_eq!(entries.len() as u64 * 4, TABLE_BYTES);
            debug_assert_eq!(TABLE_SECTORS * SECTOR_BYTES, TABLE_BYTES);
            let bytes: Vec<u8> = entries.into_iter().flat_map(u32::to_le_bytes).collect();
            self.directory[number as usize] = self.append_marked(MARKER_TABLE, &bytes)?;
        }
        Ok(())
    }
}

impl Packer for StreamPacker<'_> {
    fn put(&mut self, block: u64, _raw: &[u8], packed: &[u8]) -> Result<(), CompressError> {
        let number = block / TABLE_ENTRIES;
        if self.table.as_ref().is_some_and(|&(known, _)| known != number) {
            self.end_table()?;
        }
        let mut marker = [0; 12];
        marker[..8].copy_from_slice(&(block * GRAIN_SECTORS).to_le_bytes());
        marker[8..].copy_from_slice(&(packed.len() as u32).to_le_bytes());
        self.identity.update(&marker).update(packed);
        let sector = self.append([&marker, packed])?;
        let (_, entries) =
            self.table.get_or_insert_with(|| (number, vec![0; TABLE_ENTRIES as usize]));
        entries[(block % TABLE_ENTRIES) as usize] = sector;
        Ok(())
    }

    fn finish(&mut self) -> Result<u64, CompressError> {
        self.end_table()?;
        let directory = std::mem::take(&mut self.directory);
        let directory: Vec<u8> = directory.into_iter().flat_map(u32::to_le_bytes).collect();
        let directory = self.append_marked(MARKER_DIRECTORY, &directory)?;
        let sectors = self.virtual_bytes.div_ceil(SECTOR_BYTES);
        self.append_marked(MARKER_FOOTER, &stream_header(u64::from(directory), sectors))?;
        self.append([&marked(0, MARKER_END), &[]])?;
        self.sink.put(0, &stream_header(AT_END, sectors))?;
        let mut identity = [0; 16];
        identity.copy_from_slice(&self.identity.finalize().as_bytes()[..16]);
        let text = descriptor("streamOptimized", sectors, Identity(identity));
        self.sink.put(SECTOR_BYTES, &text)?;
        self.sink.flush()?;
        Ok(self.end * SECTOR_BYTES)
    }
}
