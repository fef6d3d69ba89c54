//! FAT12, FAT16 and FAT32: the allocation table says it all.
//!
//! Files are the chains of the table; directories need not be read for that. Invariants: free is
//! what both copies of the table call free, where the volume is marked clean; a chain that loops
//! ends; at most [`TABLE_BYTES_MAX`] are held.
//! Non-goals: exFAT; names.
//!
//! Layout: Microsoft's "FAT32 File System Specification", 1.03.

use super::Stop;
use super::fields::Little;
use super::map::{Owner, Piece, VolumeMap};
use super::volume::Volume;

/// Of one table: clusters of 32 KiB for 256 GiB.
const TABLE_BYTES_MAX: u64 = 32 << 20;
/// Of the tables, read at once.
const STEP_BYTES: usize = 1 << 20;
const FAT12_CLUSTERS_MAX: u64 = 4084;
const FAT16_CLUSTERS_MAX: u64 = 65_524;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

/// What the boot sector says, checked.
#[derive(Debug, Clone)]
struct Boot {
    width: Width,
    /// In bytes.
    cluster: u64,
    clusters: u64,
    /// Where cluster 2 lies.
    data: u64,
    tables: [u64; 2],
    table_bytes: u64,
    marked_dirty: bool,
}

/// `head` is the volume's first sector or more.
pub(super) fn is_fat(head: &[u8]) -> bool {
    Boot::parse(head).is_ok()
}

/// Fills `map`; what it holds where this fails is used for cuts only.
pub(super) fn survey(volume: &mut Volume<'_>, map: &mut VolumeMap) -> Result<(), Stop> {
    let head = volume.read(0, 512)?;
    let boot = Boot::parse(&head)?;
    let end =
        boot.clusters.checked_mul(boot.cluster).and_then(|bytes| bytes.checked_add(boot.data));
    if end.is_none_or(|end| end > volume.length()) {
        return Err(Stop::Malformed);
    }
    if boot.table_bytes > TABLE_BYTES_MAX {
        return Err(Stop::Budget);
    }
    let table = volume.read(boot.tables[0], boot.table_bytes as usize)?;
    let agree = copies_agree(volume, &boot, &table)?;
    let is_clean = agree && boot.is_clean(&table)?;
    if is_clean {
        for number in 2..boot.clusters + 2 {
            if boot.entry(&table, number)? == 0 {
                let start = boot.place(number);
                map.add_free(start..start + boot.cluster)?;
            }
        }
    }
    add_chains(&boot, &table, map)
}

fn copies_agree(volume: &mut Volume<'_>, boot: &Boot, table: &[u8]) -> Result<bool, Stop> {
    if boot.tables[0] == boot.tables[1] {
        return Ok(true);
    }
    for (number, part) in table.chunks(STEP_BYTES).enumerate() {
        let at = boot.tables[1] + (number * STEP_BYTES) as u64;
        if volume.read(at, part.len())? != part {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Notes each chain from its first cluster on.
fn add_chains(boot: &Boot, table: &[u8], map: &mut VolumeMap) -> Result<(), Stop> {
    let known = 2..boot.clusters + 2;
    let mut has_former = vec![0u8; (boot.clusters as usize + 2).div_ceil(8)];
    for number in known.clone() {
        let next = boot.entry(table, number)?;
        if known.contains(&next) {
            has_former[next as usize / 8] |= 1 << (next % 8);
        }
    }
    let mut seen = vec![0u8; has_former.len()];
    for first in known.clone() {
        if has_former[first as usize / 8] >> (first % 8) & 1 == 1 {
            continue;
        }
        let (mut at, mut position) = (first, 0);
        // Each cluster is in one chain at most: none is followed twice, nor for ever.
        while known.contains(&at) && seen[at as usize / 8] >> (at % 8) & 1 == 0 {
            let next = boot.entry(table, at)?;
            if next == 0 {
                break;
            }
            seen[at as usize / 8] |= 1 << (at % 8);
            let (start, length) = (boot.place(at), boot.cluster);
            map.add_piece(Piece { owner: Owner::File, start, length, position })?;
            position += boot.cluster;
            at = next;
        }
    }
    Ok(())
}

impl Boot {
    fn parse(head: &[u8]) -> Result<Self, Stop> {
        let fields = Little(head);
        let jump = fields.u8(0)?;
        let sector = u64::from(fields.u16(11)?);
        let cluster_sectors = u64::from(fields.u8(13)?);
        let (reserved, tables) = (u64::from(fields.u16(14)?), u64::from(fields.u8(16)?));
        let roots = u64::from(fields.u16(17)?);
        let total = match fields.u16(19)? {
            0 => u64::from(fields.u32(32)?),
            total => u64::from(total),
        };
        let is_wide = fields.u16(22)? == 0;
        let table = if is_wide { u64::from(fields.u32(36)?) } else { u64::from(fields.u16(22)?) };
        let sound = matches!(jump, 0xeb | 0xe9)
            && fields.u16(510)? == 0xaa55
            && sector.is_power_of_two()
            && (512..=4096).contains(&sector)
            && cluster_sectors.is_power_of_two()
            && reserved > 0
            && (1..=2).contains(&tables)
            && fields.u8(21)? >= 0xf0
            && table > 0
            && is_wide == (roots == 0);
        if !sound {
            return Err(Stop::Malformed);
        }
        let before = reserved + tables * table + (roots * 32).div_ceil(sector);
        if total <= before {
            return Err(Stop::Malformed);
        }
        let clusters = (total - before) / cluster_sectors;
        let width = if is_wide {
            Width::ThirtyTwo
        } else if clusters <= FAT12_CLUSTERS_MAX {
            Width::Twelve
        } else if clusters <= FAT16_CLUSTERS_MAX {
            Width::Sixteen
        } else {
            return Err(Stop::Malformed);
        };
        let table_bytes = match width {
            Width::Twelve => ((clusters + 2) * 3).div_ceil(2),
            Width::Sixteen => (clusters + 2) * 2,
            Width::ThirtyTwo => (clusters + 2) * 4,
        };
        if table_bytes > table * sector {
            return Err(Stop::Malformed);
        }
        let first = reserved * sector;
        let last = first + (tables - 1) * table * sector;
        Ok(Self {
            width,
            cluster: cluster_sectors * sector,
            clusters,
            data: before * sector,
            tables: [first, last],
            table_bytes,
            marked_dirty: fields.u8(if is_wide { 0x41 } else { 0x25 })? & 1 != 0,
        })
    }

    fn place(&self, cluster: u64) -> u64 {
        self.data + (cluster - 2) * self.cluster
    }

    fn entry(&self, table: &[u8], number: u64) -> Result<u64, Stop> {
        let (fields, number) = (Little(table), number as usize);
        Ok(match self.width {
            Width::Twelve => {
                let at = number * 3 / 2;
                let pair = u64::from(fields.u8(at)?) | u64::from(fields.u8(at + 1)?) << 8;
                if number.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }
            }
            Width::Sixteen => u64::from(fields.u16(number * 2)?),
            Width::ThirtyTwo => u64::from(fields.u32(number * 4)? & 0x0fff_ffff),
        })
    }

    /// Entry 1 has a bit for "shut down cleanly" and one for "no errors", but for FAT12.
    fn is_clean(&self, table: &[u8]) -> Result<bool, Stop> {
        let bits = match self.width {
            Width::Twelve => 0,
            Width::Sixteen => 0xc000,
            Width::ThirtyTwo => 0x0c00_0000,
        };
        Ok(!self.marked_dirty && self.entry(table, 1)? & bits == bits)
    }
}
