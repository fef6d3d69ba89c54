//! VHDX images as a crash leaves them: what the tables should say stands in the log only.
//!
//! qemu-img judges: it replays the log of a copy, and must then see the same disk.

mod images;
mod judge;
mod vhdx_log;

use std::fs;

use images::{guest, outcome, read, seal, with, write};
use judge::{qemu_img, text};
use shoal_formats::Target;
use vhdx_log::{BAT, LOG_BYTES, METADATA, MIB, SECTOR, Write, entry, put, used};

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
    // qemu replays no entry that passes the ring's end.
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
fn of_several_whole_sequences_the_one_with_the_highest_numbers_counts() {
    let sound = sound();
    let table = sound[BAT..BAT + SECTOR].to_vec();
    let (length, wrong) = (sound.len(), vec![0; SECTOR]);
    // Wherever in the ring they stand, and whichever is longer.
    for (old, new) in [(0, 512 * 1024), (512 * 1024, 0)] {
        let mut image = sound.clone();
        let mut at = old;
        for sequence in 3..6 {
            let stale = entry(sequence, old, length, &[Write::Sector(BAT, &wrong)]);
            put(&mut image, at, &stale);
            at += stale.len();
        }
        put(&mut image, new, &entry(9, new, length, &[Write::Sector(BAT, &table)]));
        image[BAT..BAT + SECTOR].fill(0xab);
        used(&mut image);
        judge(&image, &guest());
    }
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
