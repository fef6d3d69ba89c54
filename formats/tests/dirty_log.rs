//! VHDX images as a crash leaves them: what the tables should say stands in the log only.
//!
//! qemu-img judges: it replays the log of a copy, and must then see the same disk.

mod images;
mod judge;

use std::fs;

use images::{crc32c, guest, outcome, read, seal, with, write};
use judge::{qemu_img, text};
use shoal_formats::Target;

const MIB: usize = 1 << 20;
const SECTOR: usize = 4096;
const LOG: usize = MIB;
const LOG_BYTES: usize = MIB;
const METADATA: usize = 2 * MIB;
const BAT: usize = 3 * MIB;
const LOG_ID: [u8; 16] = [7; 16];

/// A write that an entry of the log promises.
enum Write<'a> {
    Sector(usize, &'a [u8]),
    Zero(usize, usize),
}

/// An entry of the log, ready to be put there.
fn entry(sequence: u64, tail: usize, file_bytes: usize, writes: &[Write<'_>]) -> Vec<u8> {
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
fn put(image: &mut [u8], at: usize, entry: &[u8]) {
    for (place, byte) in entry.iter().enumerate() {
        image[LOG + (at + place) % LOG_BYTES] = *byte;
    }
}

/// Says that the log is in use.
fn used(image: &mut [u8]) {
    // The second header is the newer one.
    let header = 128 * 1024;
    image[header + 48..header + 64].copy_from_slice(&LOG_ID);
    seal(image, header..header + SECTOR);
}

fn sound() -> Vec<u8> {
    write(&guest(), Target::Vhdx).0
}

/// Ours before, qemu's after it replayed.
fn judge(image: &[u8], expected: &[u8]) {
    assert!(read(image.to_vec()) == expected, "our reading");
    let folder = tempfile::tempdir().unwrap();
    let (raw, path) = (folder.path().join("raw"), folder.path().join("vhdx"));
    fs::write(&raw, expected).unwrap();
    fs::write(&path, image).unwrap();
    qemu_img(&["check", "-r", "all", "-f", "vhdx", text(&path)]);
    qemu_img(&["compare", "-f", "raw", "-F", "vhdx", text(&raw), text(&path)]);
}

#[test]
fn a_table_that_stands_in_the_log_only_is_found_there() {
    let mut image = sound();
    let table = image[BAT..BAT + SECTOR].to_vec();
    let metadata = image[METADATA..METADATA + SECTOR].to_vec();
    image[BAT..BAT + SECTOR].fill(0xab);
    image[METADATA..METADATA + SECTOR].fill(0xcd);
    let length = image.len();
    let writes = [Write::Sector(BAT, &table), Write::Sector(METADATA, &metadata)];
    put(&mut image, 0, &entry(5, 0, length, &writes));
    used(&mut image);
    judge(&image, &guest());
}

#[test]
fn the_ring_goes_round_and_later_entries_win() {
    let mut image = sound();
    let table = image[BAT..BAT + SECTOR].to_vec();
    let length = image.len();
    let wrong = vec![0; SECTOR];
    let tail = LOG_BYTES - SECTOR;
    // The first entry passes the ring's end; a stale one with a higher number leads nowhere.
    let first = entry(1 << 33, tail, length, &[Write::Sector(BAT, &wrong)]);
    let second_at = (tail + first.len()) % LOG_BYTES;
    let last = [Write::Zero(BAT, SECTOR), Write::Sector(BAT, &table)];
    let second = entry((1 << 33) + 1, tail, length, &last);
    put(&mut image, tail, &first);
    put(&mut image, second_at, &second);
    let stale = entry((1 << 33) + 9, 512 * 1024, length, &[Write::Sector(BAT, &wrong)]);
    put(&mut image, 600 * 1024, &stale);
    image[BAT..BAT + SECTOR].fill(0xab);
    used(&mut image);
    assert!(read(image) == guest());
}

#[test]
fn a_range_of_zeros_reaches_over_the_content() {
    let mut image = sound();
    let (length, data) = (image.len(), 4 * MIB);
    put(&mut image, 0, &entry(1, 0, length, &[Write::Zero(data, 64 * 1024)]));
    used(&mut image);
    let mut expected = guest();
    expected[..64 * 1024].fill(0);
    judge(&image, &expected);
}

#[test]
fn an_entry_that_was_torn_and_one_without_writes_end_a_sequence() {
    let mut image = sound();
    let table = image[BAT..BAT + SECTOR].to_vec();
    let length = image.len();
    let (tail, wrong) = (64 * 1024, vec![0; SECTOR]);
    let empty = entry(6, tail, length, &[]);
    let first = entry(7, tail, length, &[Write::Sector(BAT, &table)]);
    let torn = entry(8, tail, length, &[Write::Sector(BAT, &wrong)]);
    put(&mut image, tail, &empty);
    put(&mut image, tail + empty.len(), &first);
    put(&mut image, tail + empty.len() + first.len(), &torn[..torn.len() - SECTOR / 2]);
    image[BAT..BAT + SECTOR].fill(0xab);
    used(&mut image);
    judge(&image, &guest());
    // A whole one whose tail is gone: what stands before it is not all that was promised.
    let lost = entry(8, tail - SECTOR, length, &[Write::Sector(BAT, &wrong)]);
    put(&mut image, tail + empty.len() + first.len(), &lost);
    assert_eq!(outcome(image), "corrupt_log");
}

#[test]
fn a_log_that_does_not_add_up_is_refused() {
    let sound = sound();
    let length = sound.len();
    let table = sound[BAT..BAT + SECTOR].to_vec();
    let reason = |entry: &[u8]| {
        let mut image = sound.clone();
        put(&mut image, 0, entry);
        used(&mut image);
        outcome(image)
    };
    let good = entry(1, 0, length, &[Write::Sector(BAT, &table)]);
    assert_eq!(reason(&good), "vhdx");
    assert_eq!(reason(&[]), "corrupt_log");
    assert_eq!(reason(&with(good.clone(), 100, b"x")), "corrupt_log");
    let resealed = |at: usize, bytes: &[u8]| {
        let mut changed = with(good.clone(), at, bytes);
        let end = changed.len();
        seal(&mut changed, 0..end);
        reason(&changed)
    };
    assert_eq!(resealed(24, &u32::MAX.to_le_bytes()), "corrupt_log");
    assert_eq!(resealed(24, &2u32.to_le_bytes()), "corrupt_log");
    assert_eq!(resealed(64 + 24, &9u64.to_le_bytes()), "corrupt_log");
    assert_eq!(resealed(64 + 16, &(1u64 << 60).to_le_bytes()), "corrupt_log");
    assert_eq!(resealed(SECTOR, b"atad"), "corrupt_log");
    assert_eq!(resealed(48, &(length as u64 + 4096).to_le_bytes()), "truncated");
    assert_eq!(resealed(56, &(1u64 << 50).to_le_bytes()), "too_large");
    assert_eq!(
        reason(&entry(1, 0, length, &[Write::Zero(length - SECTOR, 2 * SECTOR)])),
        "corrupt_log"
    );
    assert_eq!(reason(&entry(1, 0, length, &[Write::Zero(4 * MIB, 512)])), "corrupt_log");
}
