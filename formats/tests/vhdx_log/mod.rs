//! The log of a VHDX: entries with writes, put where a crash would leave them.

#![allow(dead_code, reason = "each test program uses its part of this")]

use std::ops::Range;

use shoal_formats::Target;

use crate::images::{crc32c, guest, seal, write};

pub const MIB: usize = 1 << 20;
pub const SECTOR: usize = 4096;
const LOG: usize = MIB;
pub const LOG_BYTES: usize = MIB;
pub const METADATA: usize = 2 * MIB;
pub const BAT: usize = 3 * MIB;
const LOG_ID: [u8; 16] = [7; 16];

/// A write that an entry of the log promises.
pub enum Write<'a> {
    Sector(usize, &'a [u8]),
    Zero(usize, usize),
}

/// An entry of the log, ready to be put there.
pub fn entry(sequence: u64, tail: usize, file_bytes: usize, writes: &[Write<'_>]) -> Vec<u8> {
    let mut descriptors = Vec::new();
    let mut data = Vec::new();
    for write in writes {
        match write {
            Write::Sector(at, bytes) => {
                descriptors.extend_from_slice(b"desc");
                descriptors.extend_from_slice(&bytes[SECTOR - 4..]);
                descriptors.extend_from_slice(&bytes[..8]);
                descriptors.extend_from_slice(&(*at as u64).to_le_bytes());
                data.extend_from_slice(b"data");
                data.extend_from_slice(&((sequence >> 32) as u32).to_le_bytes());
                data.extend_from_slice(&bytes[8..SECTOR - 4]);
                data.extend_from_slice(&(sequence as u32).to_le_bytes());
            }
            Write::Zero(at, length) => {
                descriptors.extend_from_slice(b"zero\0\0\0\0");
                descriptors.extend_from_slice(&(*length as u64).to_le_bytes());
                descriptors.extend_from_slice(&(*at as u64).to_le_bytes());
            }
        }
        descriptors.extend_from_slice(&sequence.to_le_bytes());
    }
    let start = (64 + descriptors.len()).next_multiple_of(SECTOR);
    let mut bytes = b"loge\0\0\0\0".to_vec();
    bytes.extend_from_slice(&((start + data.len()) as u32).to_le_bytes());
    bytes.extend_from_slice(&(tail as u32).to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&(writes.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&LOG_ID);
    bytes.extend_from_slice(&(file_bytes as u64).to_le_bytes());
    bytes.extend_from_slice(&(file_bytes as u64).to_le_bytes());
    bytes.extend_from_slice(&descriptors);
    bytes.resize(start, 0);
    bytes.extend_from_slice(&data);
    let sum = crc32c(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Writes into the ring of the log.
pub fn put(image: &mut [u8], at: usize, entry: &[u8]) {
    for (place, byte) in entry.iter().enumerate() {
        image[LOG + (at + place) % LOG_BYTES] = *byte;
    }
}

/// Says that the log is in use.
pub fn used(image: &mut [u8]) {
    // The second header is the newer one.
    let header = 128 * 1024;
    image[header + 48..header + 64].copy_from_slice(&LOG_ID);
    seal(image, header..header + SECTOR);
}

/// The disk of [`guest`], whose tables stand in the log only, in two entries that go round the
/// ring; and where the log and the header that leads to it are.
pub fn dirty() -> (Vec<u8>, Vec<Range<usize>>) {
    let (mut image, _) = write(&guest(), Target::Vhdx);
    let [table, metadata] = [BAT, METADATA].map(|at| image[at..at + SECTOR].to_vec());
    let (length, tail) = (image.len(), LOG_BYTES - 2 * SECTOR);
    image[METADATA..METADATA + SECTOR].fill(0xab);
    let empty = entry(4, tail, length, &[]);
    let writes = [Write::Zero(BAT, SECTOR), Write::Sector(METADATA, &metadata)];
    let first = entry(5, tail, length, &writes);
    let second = entry(6, tail, length, &[Write::Sector(BAT, &table)]);
    let mut at = tail;
    for entry in [empty, first, second] {
        put(&mut image, at, &entry);
        at = (at + entry.len()) % LOG_BYTES;
    }
    used(&mut image);
    let header = 128 * 1024;
    let tables = vec![
        header..header + 80,
        LOG..LOG + 200,
        LOG..LOG + at,
        LOG + tail..LOG + tail + 160,
        LOG + tail + SECTOR..LOG + LOG_BYTES,
    ];
    (image, tables)
}
