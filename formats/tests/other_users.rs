//! Disks on which bytes that NTFS calls free belong to somebody else, or whose metadata lie about it.
//!
//! mkntfs makes the file system; what Windows would add to it is put there as its documentation has
//! it.
//! Invariant held here: nothing on such a disk is free, and its files still guide the cuts.

use std::fs::File;
use std::process::Command;

use shoal_formats::{Plan, StretchKind, open, survey};

const SECTOR: usize = 512;
const START: usize = 64 * SECTOR;
const NTFS_BYTES: usize = 2 << 20;

fn ntfs() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    File::create(&path).unwrap().set_len(NTFS_BYTES as u64).unwrap();
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut program = Command::new("mkntfs");
    let output = program.args(["-F", "-Q", "-q"]).arg(&path).env("PATH", search).output();
    let output = output.expect("mkntfs makes the disks here, install it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(path).unwrap()
}

fn plan(image: Vec<u8>) -> Plan {
    survey(open(Box::new(image), None).unwrap().as_mut()).unwrap()
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn is_sealed(image: Vec<u8>) -> bool {
    let plan = plan(image);
    let has_files = plan.walk().any(|it| matches!(it.kind, StretchKind::File { .. }));
    assert!(has_files, "files guide the cuts: {plan:?}");
    plan.free().is_empty()
}

/// An MBR with one partition of type `kind`, the volume in it, and room behind it.
fn mbr(kind: u8) -> Vec<u8> {
    let mut image = vec![0; START];
    image.extend(ntfs());
    image.extend(vec![0; START]);
    put(&mut image, 446 + 4, &[kind]);
    put(&mut image, 446 + 8, &((START / SECTOR) as u32).to_le_bytes());
    put(&mut image, 446 + 12, &((NTFS_BYTES / SECTOR) as u32).to_le_bytes());
    put(&mut image, 510, &[0x55, 0xaa]);
    image
}

/// The same with GPT: a partition of type `small` in the room behind, the volume in one of `large`.
fn gpt(small: [u8; 16], large: [u8; 16]) -> Vec<u8> {
    let mut image = mbr(0xee);
    put(&mut image, 512, b"EFI PART");
    put(&mut image, 512 + 72, &2u64.to_le_bytes());
    put(&mut image, 512 + 80, &2u32.to_le_bytes());
    put(&mut image, 512 + 84, &128u32.to_le_bytes());
    let end = START + NTFS_BYTES;
    for (number, kind, from, to) in [(0, small, end, end + START), (1, large, START, end)] {
        let at = 1024 + number * 128;
        put(&mut image, at, &kind);
        put(&mut image, at + 32, &((from / SECTOR) as u64).to_le_bytes());
        put(&mut image, at + 40, &((to / SECTOR - 1) as u64).to_le_bytes());
    }
    image
}

/// A type as it stands on disk: its first three fields are little-endian.
fn guid(text: &str) -> [u8; 16] {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    }
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

#[test]
fn nothing_on_a_windows_dynamic_disk_is_free() {
    assert!(!is_sealed(mbr(0x07)));
    assert!(is_sealed(mbr(0x42)));
    let mut described = mbr(0x07);
    put(&mut described, 6 * SECTOR, b"PRIVHEAD");
    assert!(is_sealed(described));

    let basic = guid("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7");
    let metadata = guid("5808c8aa-7e8f-42e0-85d2-e1e90434cfb3");
    let data = guid("af9b60a0-1431-4f62-bc68-3311714a69ad");
    assert!(!is_sealed(gpt(basic, basic)));
    assert!(is_sealed(gpt(metadata, data)));
    assert!(is_sealed(gpt(metadata, basic)));
    assert!(is_sealed(gpt(basic, data)));
}

#[test]
fn what_shadow_copies_may_need_is_not_free() {
    let with = |catalog: u64, storage: u8| {
        let mut image = ntfs();
        let header = 0x1e00;
        assert!(image[header..header + SECTOR].iter().all(|byte| *byte == 0));
        put(&mut image, header, &guid("3808876b-c176-4e48-b7ae-04046e6cc752"));
        put(&mut image, header + 16, &[2, 0, 0, 0, 1, 0, 0, 0, 0, 0x1e]);
        put(&mut image, header + 48, &catalog.to_le_bytes());
        put(&mut image, header + 64, &[7; 16]);
        put(&mut image, header + 80, &[storage; 16]);
        image
    };
    assert!(!is_sealed(ntfs()));
    assert!(is_sealed(with(0x10_0000, 7)));
    assert!(!is_sealed(with(0, 7)), "they were all deleted");
    assert!(!is_sealed(with(0, 0)), "none was ever made");
    assert!(is_sealed(with(0, 8)), "they are kept on another volume");
}

/// The lowest cluster of a file's content, as the file counts, past what 64 bits of bytes hold.
#[test]
fn a_file_that_starts_past_the_end_of_all_numbers_is_malformed() {
    let sound = ntfs();
    assert!(!plan(sound.clone()).free().is_empty());
    let word = |at: usize| u16::from_le_bytes([sound[at], sound[at + 1]]) as usize;
    let cluster = word(11) * usize::from(sound[13]);
    let table = u64::from_le_bytes(sound[48..56].try_into().unwrap()) as usize * cluster;
    // The table itself, its log, the bitmap.
    for number in [0, 2, 6] {
        let record = table + number * 1024;
        assert!(sound[record..].starts_with(b"FILE"));
        let mut at = record + word(record + 20);
        while sound[at] != 0x80 {
            at += word(at + 4);
        }
        assert_eq!(sound[at + 8], 1, "its runs lie outside the record");
        for lowest in [1u64 << 60, (1 << 52) - 1] {
            let mut image = sound.clone();
            put(&mut image, at + 16, &lowest.to_le_bytes());
            assert!(plan(image).free().is_empty(), "record {number}");
        }
    }
}
