//! Partition tables: MBR with extended partitions, and GPT with sectors of 512 or 4096 bytes.
//!
//! Invariants: partitions lie within the disk and have at least one sector; at most
//! [`PARTITIONS_MAX`] are given, whatever the tables say.
//! Non-goals: checksums and the backup table (a wrong partition only makes worse cuts, and overlap
//! costs trust; see `mod`), the volumes of Windows' dynamic disks, BSD labels and others of the past.

use std::ops::Range;

use super::Stop;
use super::fields::Little;
use super::volume::Volume;

const PARTITIONS_MAX: usize = 256;
const GPT_ENTRIES_MAX: u32 = 1024;
const GPT_ENTRY_BYTES_MAX: u32 = 1024;
const MBR_SECTOR_BYTES: u64 = 512;
/// UEFI 2.10, 5.3.3: `Platform Required`, `Ignore`, …; bit 60 is Microsoft's and systemd's
/// read-only, which goes with partitions whose every byte is checked (dm-verity).
const GPT_READ_ONLY: u64 = 1 << 60;
/// The type of Container Linux' `/usr`, which dm-verity checks without a header of its own.
const COREOS_USR: [u8; 16] = [
    0xf4, 0xf5, 0xfb, 0x5d, 0x48, 0x28, 0xac, 0x4b, 0xaa, 0x5e, 0x0d, 0x9a, 0x20, 0xb7, 0x45, 0xa6,
];

/// On MBR disks, a partition of a Windows dynamic disk (LDM). Its volumes lie anywhere in all
/// partitions of this type, so that one's free space may be another's content.
const MBR_DYNAMIC: u8 = 0x42;
/// The same on GPT disks: 5808c8aa-7e8f-42e0-85d2-e1e90434cfb3, where the volumes are described,
/// and af9b60a0-1431-4f62-bc68-3311714a69ad, where they lie.
const GPT_DYNAMIC: [[u8; 16]; 2] = [
    [
        0xaa, 0xc8, 0x08, 0x58, 0x8f, 0x7e, 0xe0, 0x42, 0x85, 0xd2, 0xe1, 0xe9, 0x04, 0x34, 0xcf,
        0xb3,
    ],
    [
        0xa0, 0x60, 0x9b, 0xaf, 0x31, 0x14, 0x62, 0x4f, 0xbc, 0x68, 0x33, 0x11, 0x71, 0x4a, 0x69,
        0xad,
    ],
];

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    /// Guest bytes.
    pub range: Range<u64>,
    /// Its table says that nothing in it may change, or that others use what it calls free: then
    /// nothing on the disk is free.
    pub sealed: bool,
}

/// The partitions of a disk, none where there is no table. `disk` is all of it.
pub(super) fn partitions(disk: &mut Volume<'_>) -> Result<Vec<Partition>, Stop> {
    if disk.length() < 2 * MBR_SECTOR_BYTES {
        return Ok(Vec::new());
    }
    let sector = disk.read(0, MBR_SECTOR_BYTES as usize)?;
    let Some(entries) = mbr_entries(&sector) else { return Ok(Vec::new()) };
    if entries.iter().any(|entry| entry.kind == 0xee) {
        let mut tables = Vec::new();
        for sector_bytes in [512, 4096] {
            tables.extend(tolerate(gpt(disk, sector_bytes))?.flatten());
        }
        if !tables.is_empty() {
            return Ok(of_either(tables));
        }
    }
    let mut found = Vec::new();
    for entry in entries {
        if entry.is_extended() {
            let chain = extended(disk, entry.start, &mut found);
            tolerate(chain)?;
        } else if entry.kind != 0xee {
            let sealed = entry.kind == MBR_DYNAMIC;
            add(&mut found, disk.length(), entry.start, entry.sectors, MBR_SECTOR_BYTES, sealed);
        }
    }
    Ok(found)
}

/// Of two tables one is left over, and which one, the disk does not say: what is free by one may be
/// content by the other.
fn of_either(tables: Vec<Vec<Partition>>) -> Vec<Partition> {
    let is_one = tables.len() == 1;
    let mut found = tables.concat();
    found.truncate(PARTITIONS_MAX);
    for partition in &mut found {
        partition.sealed |= !is_one;
    }
    found
}

/// A broken part of a table hides its partitions, no others.
fn tolerate<T>(result: Result<T, Stop>) -> Result<Option<T>, Stop> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Stop::Malformed) => Ok(None),
        Err(stop) => Err(stop),
    }
}

#[derive(Debug, Clone, Copy)]
struct MbrEntry {
    kind: u8,
    start: u64,
    sectors: u64,
}

impl MbrEntry {
    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// `None` where the four entries do not look like a table: a boot sector of a file system ends
/// with the same two bytes.
fn mbr_entries(sector: &[u8]) -> Option<Vec<MbrEntry>> {
    if sector.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    let mut entries = Vec::new();
    for entry in sector[446..510].as_chunks::<16>().0 {
        if entry.iter().all(|byte| *byte == 0) {
            continue;
        }
        let fields = Little(entry);
        let start = u64::from(fields.u32(8).ok()?);
        let sectors = u64::from(fields.u32(12).ok()?);
        if entry[0] & 0x7f != 0 {
            return None;
        }
        if entry[4] == 0 || sectors == 0 {
            continue;
        }
        if start == 0 {
            return None;
        }
        entries.push(MbrEntry { kind: entry[4], start, sectors });
    }
    (!entries.is_empty()).then_some(entries)
}

fn extended(disk: &mut Volume<'_>, first: u64, found: &mut Vec<Partition>) -> Result<(), Stop> {
    let mut at = first;
    // Bounded, so that a chain that loops ends.
    for _ in 0..PARTITIONS_MAX {
        let sector = disk.read(at * MBR_SECTOR_BYTES, MBR_SECTOR_BYTES as usize)?;
        let Some(entries) = mbr_entries(&sector) else { return Ok(()) };
        let mut next = None;
        for entry in entries {
            if entry.is_extended() {
                next = Some(first + entry.start);
            } else {
                let start = at + entry.start;
                let sealed = entry.kind == MBR_DYNAMIC;
                add(found, disk.length(), start, entry.sectors, MBR_SECTOR_BYTES, sealed);
            }
        }
        match next {
            Some(next) if next > at => at = next,
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// UEFI 2.10, 5.3.
fn gpt(disk: &mut Volume<'_>, sector_bytes: u64) -> Result<Option<Vec<Partition>>, Stop> {
    let header = disk.read(sector_bytes, 92)?;
    if !header.starts_with(b"EFI PART") {
        return Ok(None);
    }
    let header = Little(&header);
    let (count, size) = (header.u32(80)?, header.u32(84)?);
    if count > GPT_ENTRIES_MAX || !(128..=GPT_ENTRY_BYTES_MAX).contains(&size) {
        return Err(Stop::Malformed);
    }
    let table = header.u64(72)?.checked_mul(sector_bytes).ok_or(Stop::Malformed)?;
    let table = disk.read(table, (count * size) as usize)?;
    let mut found = Vec::new();
    for entry in table.chunks_exact(size as usize) {
        if entry[..16].iter().all(|byte| *byte == 0) {
            continue;
        }
        let fields = Little(entry);
        let (first, last) = (fields.u64(32)?, fields.u64(40)?);
        let Some(sectors) = last.checked_sub(first).and_then(|n| n.checked_add(1)) else {
            continue;
        };
        let sealed = fields.u64(48)? & GPT_READ_ONLY != 0
            || entry[..16] == COREOS_USR
            || GPT_DYNAMIC.iter().any(|kind| entry[..16] == *kind);
        add(&mut found, disk.length(), first, sectors, sector_bytes, sealed);
    }
    Ok(Some(found))
}

fn add(
    found: &mut Vec<Partition>,
    disk_bytes: u64,
    start: u64,
    sectors: u64,
    sector_bytes: u64,
    sealed: bool,
) {
    let Some(start) = start.checked_mul(sector_bytes) else { return };
    let end = sectors.saturating_mul(sector_bytes).saturating_add(start).min(disk_bytes);
    if start < end && found.len() < PARTITIONS_MAX {
        found.push(Partition { range: start..end, sealed });
    }
}

#[cfg(test)]
mod tests {
    use super::super::volume::{Budget, Layout};
    use super::*;
    use crate::raw::RawDisk;

    fn find(image: Vec<u8>) -> Vec<Range<u64>> {
        all(image).into_iter().map(|partition| partition.range).collect()
    }

    fn all(image: Vec<u8>) -> Vec<Partition> {
        let layout = Layout::plain(0..image.len() as u64);
        let mut budget = Budget::new(layout.length());
        let mut disk = RawDisk::new(image);
        partitions(&mut Volume::new(&mut disk, &mut budget, &layout)).unwrap()
    }

    fn put_entry(image: &mut [u8], sector: usize, slot: usize, kind: u8, start: u32, count: u32) {
        let at = sector * 512 + 446 + slot * 16;
        image[at + 4] = kind;
        image[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        image[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
        image[sector * 512 + 510..sector * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
    }

    #[test]
    fn follows_the_chain_of_an_extended_partition_and_no_loop() {
        let mut image = vec![0; 100 * 512];
        put_entry(&mut image, 0, 0, 0x83, 10, 10);
        put_entry(&mut image, 0, 1, 0x05, 30, 60);
        put_entry(&mut image, 30, 0, 0x83, 1, 9);
        put_entry(&mut image, 30, 1, 0x05, 20, 20);
        put_entry(&mut image, 50, 0, 0x83, 2, 100);
        let expected = [10 * 512..20 * 512, 31 * 512..40 * 512, 52 * 512..100 * 512];
        assert_eq!(find(image.clone()), expected);
        put_entry(&mut image, 50, 1, 0x05, 20, 20);
        assert_eq!(find(image).len(), 3, "a chain that goes back ends");
    }

    #[test]
    fn partitions_of_a_dynamic_disk_are_sealed_wherever_they_stand() {
        let sealed = |image| -> Vec<_> {
            all(image).into_iter().map(|partition: Partition| partition.sealed).collect()
        };
        let mut image = vec![0; 100 * 512];
        put_entry(&mut image, 0, 0, 0x42, 10, 10);
        put_entry(&mut image, 0, 1, 0x07, 20, 10);
        put_entry(&mut image, 0, 2, 0x05, 30, 60);
        put_entry(&mut image, 30, 0, 0x42, 1, 9);
        assert_eq!(sealed(image), [true, false, true]);
        let mut image = vec![0; 100 * 512];
        put_entry(&mut image, 0, 0, 0xee, 1, 99);
        image[512..520].copy_from_slice(b"EFI PART");
        image[512 + 72..512 + 88]
            .copy_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 128, 0, 0, 0]);
        for (number, kind) in [GPT_DYNAMIC[0], GPT_DYNAMIC[1], [7; 16]].into_iter().enumerate() {
            let entry = &mut image[1024 + number * 128..][..128];
            entry[..16].copy_from_slice(&kind);
            (entry[32], entry[40]) = (10, 20);
        }
        assert_eq!(sealed(image), [true, true, false]);
    }

    #[test]
    fn of_tables_for_both_lengths_of_sectors_none_is_believed_about_free_space() {
        let mut image = vec![0; 100 * 4096];
        put_entry(&mut image, 0, 0, 0xee, 1, 99);
        let mut put_gpt = |sector: usize, table: usize, first: u8, last: u8| {
            image[sector..sector + 8].copy_from_slice(b"EFI PART");
            image[sector + 72] = (table / sector) as u8;
            (image[sector + 80], image[sector + 84]) = (1, 128);
            image[table] = 7;
            (image[table + 32], image[table + 40]) = (first, last);
            image.clone()
        };
        let one = put_gpt(4096, 8192, 10, 19);
        let real = 10 * 4096..20 * 4096;
        assert_eq!(all(one), [Partition { range: real.clone(), sealed: false }]);
        let both = put_gpt(512, 1024, 50, 59);
        let stale = Partition { range: 50 * 512..60 * 512, sealed: true };
        assert_eq!(all(both), [stale, Partition { range: real, sealed: true }]);
    }

    #[test]
    fn a_boot_sector_is_no_partition_table() {
        let mut image = vec![0; 4096];
        image[446..510].fill(0x41);
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert!(find(image).is_empty());
        assert!(find(vec![0; 100]).is_empty());
    }
}
