//! NTFS: the bitmap of clusters, and the runs of every file record.
//!
//! Invariants: free is what $Bitmap says, where the volume is not marked dirty, its log is at rest
//! and no hibernated system waits for it; a record's neighbours are read a piece at a time.
//! Non-goals: names (but for one), compression, attribute lists: each record's own runs are enough.
//!
//! Layout: as the `layout.h` of ntfs-3g documents it.

mod log;
mod record;

use self::record::{Attribute, Record};
use super::Stop;
use super::fields::Little;
use super::map::{Owner, Piece, VolumeMap};
use super::volume::Volume;

const RECORD_MFT: u64 = 0;
const RECORD_LOG: u64 = 2;
const RECORD_VOLUME: u64 = 3;
const RECORD_ROOT: u64 = 5;
const RECORD_BITMAP: u64 = 6;
/// Of the file table, read at once.
const STEP_BYTES: u64 = 256 * 1024;
/// Of the bitmap, read at once.
const BITMAP_STEP_BYTES: u64 = 256 * 1024;
/// Runs of one file that are kept while the survey goes on.
const RUNS_MAX: usize = 65_536;
/// Dirty, a journal's deletion under way, or being checked.
const VOLUME_NOT_AT_REST: u16 = 0x1 | 0x10 | 0x4000;

/// What the boot sector says, checked.
#[derive(Debug, Clone, Copy)]
struct Boot {
    /// In bytes.
    cluster: u64,
    clusters: u64,
    mft: u64,
    /// In bytes.
    record: usize,
}

/// Runs in clusters, in the order of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    position: u64,
    start: u64,
    count: u64,
}

/// `head` is the volume's first sector or more.
pub(super) fn is_ntfs(head: &[u8]) -> bool {
    head.get(3..11) == Some(b"NTFS    ")
}

/// Fills `map`; what it holds where this fails is used for cuts only.
pub(super) fn survey(volume: &mut Volume<'_>, map: &mut VolumeMap) -> Result<(), Stop> {
    let head = volume.read(0, 512)?;
    let boot = Boot::parse(&head, volume.length())?;
    let mut table = Table {
        volume,
        boot,
        mft: Vec::new(),
        log: Vec::new(),
        bitmap: Vec::new(),
        at_rest: true,
        volume_seen: false,
    };
    // What is free is told after all files were seen: one may be `hiberfil.sys`.
    table.read_all(map)?;
    table.add_free(map)
}

impl Boot {
    fn parse(head: &[u8], volume_bytes: u64) -> Result<Self, Stop> {
        let fields = Little(head);
        let sector = u64::from(fields.u16(11)?);
        let per_cluster = match fields.u8(13)? {
            small @ 0..=128 => u64::from(small),
            large => 1u64.checked_shl(256 - u32::from(large)).ok_or(Stop::Malformed)?,
        };
        let cluster = sector.checked_mul(per_cluster).ok_or(Stop::Malformed)?;
        let sound = sector.is_power_of_two()
            && (256..=4096).contains(&sector)
            && cluster.is_power_of_two()
            && cluster <= 2 << 20;
        if !sound {
            return Err(Stop::Malformed);
        }
        let clusters = fields.u64(40)? / per_cluster;
        let record = match fields.u8(64)? as i8 {
            clusters @ 1.. => clusters as u64 * cluster,
            shift => 1u64.checked_shl(u32::from(shift.unsigned_abs())).unwrap_or(0),
        };
        let mft = fields.u64(48)?;
        let fits = clusters.checked_mul(cluster).is_some_and(|bytes| bytes <= volume_bytes);
        if !fits
            || !record.is_power_of_two()
            || !(512..=65_536).contains(&record)
            || mft >= clusters
        {
            return Err(Stop::Malformed);
        }
        Ok(Self { cluster, clusters, mft, record: record as usize })
    }

    /// The run in bytes. It lies in the volume, and where it ends in its file is a number.
    fn piece(&self, run: Run) -> Result<Piece, Stop> {
        let end = run.start.checked_add(run.count).ok_or(Stop::Malformed)?;
        if end > self.clusters || run.count == 0 {
            return Err(Stop::Malformed);
        }
        let (start, length) = (run.start * self.cluster, run.count * self.cluster);
        let position = run.position.checked_mul(self.cluster).ok_or(Stop::Malformed)?;
        position.checked_add(length).ok_or(Stop::Malformed)?;
        Ok(Piece { owner: Owner::File, start, length, position })
    }
}

struct Table<'a, 'v> {
    volume: &'a mut Volume<'v>,
    boot: Boot,
    /// Of the file table itself, as far as they are known.
    mft: Vec<Run>,
    log: Vec<Run>,
    bitmap: Vec<Run>,
    at_rest: bool,
    volume_seen: bool,
}

impl Table<'_, '_> {
    fn read_all(&mut self, map: &mut VolumeMap) -> Result<(), Stop> {
        let at = self.boot.mft * self.boot.cluster;
        let first = self.volume.read(at, self.boot.record)?;
        let first = Record::parse(first)?.ok_or(Stop::Malformed)?;
        first.each(&mut |attribute| {
            if attribute.is_content()? {
                add_runs(&mut self.mft, &attribute)?;
            }
            Ok(())
        })?;
        let mut next = 0;
        // The list grows while the table's own further records are met.
        while let Some(run) = self.mft.get(next).copied() {
            let Piece { start, length, position, .. } = self.boot.piece(run)?;
            let mut number = position / self.boot.record as u64;
            for from in (0..length).step_by(STEP_BYTES as usize) {
                let piece =
                    self.volume.read(start + from, STEP_BYTES.min(length - from) as usize)?;
                for bytes in piece.chunks_exact(self.boot.record) {
                    self.record(number, bytes, map)?;
                    number += 1;
                }
            }
            next += 1;
        }
        Ok(())
    }

    fn record(&mut self, number: u64, bytes: &[u8], map: &mut VolumeMap) -> Result<(), Stop> {
        let Some(record) = Record::parse(bytes.to_vec())? else { return Ok(()) };
        let file = record.base()?.unwrap_or(number);
        let mut is_hibernation = false;
        let mut start = None;
        record.each(&mut |attribute| {
            if let Some(flags) = attribute.volume_flags()? {
                self.volume_seen |= file == RECORD_VOLUME;
                self.at_rest &= file != RECORD_VOLUME || flags & VOLUME_NOT_AT_REST == 0;
            }
            is_hibernation |= attribute.is_name_of("hiberfil.sys", RECORD_ROOT)?;
            if attribute.is_content()? {
                match file {
                    RECORD_MFT if number != RECORD_MFT => add_runs(&mut self.mft, &attribute)?,
                    RECORD_LOG => add_runs(&mut self.log, &attribute)?,
                    RECORD_BITMAP => add_runs(&mut self.bitmap, &attribute)?,
                    _ => {}
                }
            }
            let owner = if attribute.is_index()? { Owner::Directory } else { Owner::File };
            attribute.each_run(&mut |run| {
                start = start.or(Some(run.start));
                map.add_piece(Piece { owner, ..self.boot.piece(run)? })
            })
        })?;
        if let Some(start) = start.filter(|_| is_hibernation) {
            let head = self.volume.read(start * self.boot.cluster, 4)?;
            self.at_rest &= head.iter().all(|byte| *byte == 0);
        }
        Ok(())
    }

    fn add_free(&mut self, map: &mut VolumeMap) -> Result<(), Stop> {
        let at_rest = self.at_rest && self.volume_seen;
        if !at_rest || !log::is_clean(self.volume, &self.boot, &self.log)? {
            return Ok(());
        }
        let (per_byte, bitmap_bytes) = (8 * self.boot.cluster, self.boot.clusters.div_ceil(8));
        let mut said = VolumeMap::new(self.boot.clusters * self.boot.cluster);
        let mut at = 0;
        for run in &self.bitmap {
            let Piece { start, length, position, .. } = self.boot.piece(*run)?;
            if position != at {
                return Err(Stop::Malformed);
            }
            // What its last run has behind the last cluster's bit says nothing.
            for from in (0..length).step_by(BITMAP_STEP_BYTES as usize) {
                if at + from >= bitmap_bytes {
                    break;
                }
                let bytes = BITMAP_STEP_BYTES.min(length - from);
                let left = self.boot.clusters - (at + from) * 8;
                let bitmap = self.volume.read(start + from, bytes as usize)?;
                said.add_bitmap(&bitmap, (at + from) * per_byte, self.boot.cluster, left)?;
            }
            at += length;
        }
        if at < bitmap_bytes {
            return Err(Stop::Malformed);
        }
        for range in said.free {
            map.add_free(range)?;
        }
        Ok(())
    }
}

fn add_runs(runs: &mut Vec<Run>, attribute: &Attribute<'_>) -> Result<(), Stop> {
    attribute.each_run(&mut |run| {
        if runs.len() >= RUNS_MAX {
            return Err(Stop::Budget);
        }
        // In the file's order and each once: a table that names itself again would not end.
        let end = runs.last().map_or(0, |last| last.position + last.count);
        if run.position >= end {
            runs.push(run);
        }
        Ok(())
    })
}
