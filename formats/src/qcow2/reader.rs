//! Reads guest bytes through the tables.
//!
//! Invariant: it holds one L1 table, [`L2_CACHE_BYTES`] of L2 tables, one decompressed cluster and a
//! batch of compressed ones, and nothing else that grows with the disk.
//! Non-goal: deciding whether the tables are sound; `check` has done so before the first read.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::check::check_tables;
use super::entry::{self, Cluster};
use super::header::{Compression, Header};
use crate::disk::{
    Details, Disk, ExtentKind, Format, MapExtent, Qcow2Details, ReadError, Stored, StoredExtent,
    check_range,
};
use crate::offset::{GuestOffset, HostOffset};
use crate::pages::read_source;
use crate::refusal::OpenError;
use crate::source::ReadAt;
use crate::unpack::{Batch, Method, Unpacker};

/// Bytes of L2 tables that are kept: four of the largest, or what maps 64 GiB by default.
const L2_CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// The most L2 tables that one call of `next_extent` looks into.
const EXTENT_TABLES_MAX: u32 = 64;

/// Where the bytes of a run come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Zero,
    Host(HostOffset),
    /// The run starts `skip` bytes into the cluster that is compressed at `at`.
    Compressed {
        at: HostOffset,
        bytes: u32,
        skip: u64,
    },
}

impl Place {
    const fn kind(self) -> ExtentKind {
        match self {
            Self::Zero => ExtentKind::Zero,
            Self::Host(_) | Self::Compressed { .. } => ExtentKind::Data,
        }
    }

    const fn stored(self) -> Stored {
        match self {
            // What else is known of zeros, `zeros` says.
            Self::Zero => Stored::NOTHING,
            Self::Host(HostOffset(at)) => Stored::At(at),
            Self::Compressed { .. } => Stored::Packed,
        }
    }

    /// Whether `next`, which begins `bytes` after this, goes on where this ends.
    fn continues(self, bytes: u64, next: Self) -> bool {
        match (self, next) {
            (Self::Zero, Self::Zero) => true,
            (Self::Host(at), Self::Host(next)) => at.checked_add(bytes) == Some(next),
            _ => false,
        }
    }
}

/// Guest bytes from one place, all mapped by one L2 table or by none.
#[derive(Debug, Clone, Copy)]
struct Run {
    bytes: u64,
    place: Place,
}

pub(crate) struct Qcow2Disk<S> {
    source: S,
    image_bytes: u64,
    header: Header,
    l1: Vec<u64>,
    tables: HashMap<u64, Arc<[u8]>>,
    /// Keys of `tables`, oldest first.
    ages: VecDeque<u64>,
    /// The cluster of which a part was read last.
    inflated: Option<(HostOffset, Vec<u8>)>,
    unpacker: Unpacker,
    unpacked_bytes: u64,
}

impl<S: ReadAt> Qcow2Disk<S> {
    /// Reads and checks all tables.
    pub fn open(source: S) -> Result<Self, OpenError> {
        let header = Header::read(&source)?;
        let mut bytes = vec![0; header.l1_entries() as usize * 8];
        read_source(&source, header.l1_offset, &mut bytes)?;
        let l1: Vec<u64> =
            bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect();
        drop(bytes);
        check_tables(&header, &source, &l1)?;
        Ok(Self {
            image_bytes: source.len(),
            source,
            header,
            l1,
            tables: HashMap::new(),
            ages: VecDeque::new(),
            inflated: None,
            unpacker: Unpacker::default(),
            unpacked_bytes: 0,
        })
    }

    fn table(&mut self, number: u64, at: HostOffset) -> Result<Arc<[u8]>, OpenError> {
        if let Some(table) = self.tables.get(&number) {
            return Ok(Arc::clone(table));
        }
        let tables_max = (L2_CACHE_BYTES / self.header.cluster_bytes()).max(1) as usize;
        while self.tables.len() >= tables_max
            && let Some(oldest) = self.ages.pop_front()
        {
            self.tables.remove(&oldest);
        }
        let mut table = vec![0; self.header.cluster_bytes() as usize];
        read_source(&self.source, at, &mut table)?;
        let table: Arc<[u8]> = table.into();
        self.tables.insert(number, Arc::clone(&table));
        self.ages.push_back(number);
        Ok(table)
    }

    /// The run that starts at `guest`, at most `most` bytes of it.
    fn run(&mut self, guest: GuestOffset, most: u64) -> Result<Run, OpenError> {
        let span = self.header.l2_span();
        let number = guest.0 / span;
        let most = most.min(self.header.virtual_bytes - guest.0).min(span - guest.0 % span);
        let Some(at) = entry::l2_table(self.l1[number as usize], &self.header)? else {
            return Ok(Run { bytes: most, place: Place::Zero });
        };
        let table = self.table(number, at)?;
        let mut run = self.piece(&table, guest)?;
        while run.bytes < most {
            let next = self.piece(&table, GuestOffset(guest.0 + run.bytes))?;
            if !run.place.continues(run.bytes, next.place) {
                break;
            }
            run.bytes += next.bytes;
        }
        run.bytes = run.bytes.min(most);
        Ok(run)
    }

    /// What one entry of `table`, or the subclusters of one kind there, says from `guest` on.
    fn piece(&self, table: &[u8], guest: GuestOffset) -> Result<Run, OpenError> {
        let cluster_bytes = self.header.cluster_bytes();
        let skip = guest.0 % cluster_bytes;
        let index = guest.0 % self.header.l2_span() / cluster_bytes;
        let rest = Run { bytes: cluster_bytes - skip, place: Place::Zero };
        Ok(match entry::decode(table, index as usize, &self.header)? {
            Cluster::Zero { .. } => rest,
            Cluster::Data(at) => Run { place: Place::Host(HostOffset(at.0 + skip)), ..rest },
            Cluster::Compressed { at, bytes } => {
                Run { place: Place::Compressed { at, bytes, skip }, ..rest }
            }
            Cluster::Partial { at, allocated } => {
                let unit = cluster_bytes / u64::from(entry::SUBCLUSTERS);
                let from_here = allocated >> (skip / unit);
                let is_data = from_here & 1 != 0;
                let same =
                    if is_data { from_here.trailing_ones() } else { from_here.trailing_zeros() };
                let end = ((skip / unit + u64::from(same)) * unit).min(cluster_bytes);
                let place =
                    if is_data { Place::Host(HostOffset(at.0 + skip)) } else { Place::Zero };
                Run { bytes: end - skip, place }
            }
        })
    }

    /// How the zeros from `guest` on are stored, of which there are `most` bytes under one table.
    fn zeros(&mut self, guest: GuestOffset, most: u64) -> Result<(u64, Stored), OpenError> {
        let number = guest.0 / self.header.l2_span();
        let Some(at) = entry::l2_table(self.l1[number as usize], &self.header)? else {
            return Ok((most, Stored::NOTHING));
        };
        let table = self.table(number, at)?;
        let (mut bytes, stored) = self.zero(&table, guest)?;
        while bytes < most {
            let (more, next) = self.zero(&table, GuestOffset(guest.0 + bytes))?;
            if !stored.continues(bytes, next) {
                break;
            }
            bytes += more;
        }
        Ok((bytes.min(most), stored))
    }

    /// What one entry of `table`, or the subclusters of one kind there, says of zeros at `guest`.
    fn zero(&self, table: &[u8], guest: GuestOffset) -> Result<(u64, Stored), OpenError> {
        let cluster_bytes = self.header.cluster_bytes();
        let skip = guest.0 % cluster_bytes;
        let index = (guest.0 % self.header.l2_span() / cluster_bytes) as usize;
        let kept = match entry::decode(table, index, &self.header)? {
            Cluster::Zero { kept } => kept,
            Cluster::Data(at) | Cluster::Partial { at, .. } => Some(at),
            Cluster::Compressed { .. } => None,
        };
        let unit = cluster_bytes / u64::from(entry::SUBCLUSTERS);
        let from_here = entry::said_zero(table, index, &self.header) >> (skip / unit);
        let is_said = from_here & 1 != 0;
        let same = if is_said { from_here.trailing_ones() } else { from_here.trailing_zeros() };
        let end = ((skip / unit + u64::from(same)) * unit).min(cluster_bytes);
        let kept = kept.map(|HostOffset(at)| at + skip);
        Ok((end - skip, Stored::Zero { is_said, kept }))
    }

    fn fill(&mut self, place: Place, buf: &mut [u8]) -> Result<(), OpenError> {
        match place {
            Place::Zero => buf.fill(0),
            Place::Host(at) => read_source(&self.source, at, buf)?,
            Place::Compressed { at, bytes, skip } => {
                let skip = skip as usize;
                let cluster = self.inflate(at, bytes)?;
                buf.copy_from_slice(&cluster[skip..skip + buf.len()]);
            }
        }
        Ok(())
    }

    fn inflate(&mut self, at: HostOffset, bytes: u32) -> Result<&[u8], OpenError> {
        if self.inflated.as_ref().is_none_or(|(known, _)| *known != at) {
            let stored = self.stored(at, bytes)?;
            let mut cluster = self.inflated.take().map_or_else(Vec::new, |(_, buffer)| buffer);
            cluster.resize(self.header.cluster_bytes() as usize, 0);
            let (method, needed) = (self.method(), cluster.len());
            self.unpacker.unpack(method, &stored, &mut cluster, needed)?;
            self.unpacked_bytes += needed as u64;
            self.inflated = Some((at, cluster));
        }
        Ok(self.inflated.as_ref().map_or(&[], |(_, cluster)| cluster))
    }

    const fn method(&self) -> Method {
        match self.header.compression {
            Compression::Zlib => Method::Deflate,
            Compression::Zstd => Method::Zstd,
        }
    }

    /// The sectors of a compressed cluster.
    fn stored(&self, at: HostOffset, bytes: u32) -> Result<Vec<u8>, OpenError> {
        // The last sector may be cut short where the image ends.
        let there = self.image_bytes.saturating_sub(at.0).min(u64::from(bytes));
        let mut stored = vec![0; there as usize];
        read_source(&self.source, at, &mut stored)?;
        Ok(stored)
    }
}

/// The same fault, seen while reading guest bytes at `guest`.
fn at_guest(guest: GuestOffset) -> impl Fn(OpenError) -> ReadError {
    move |error| match error {
        OpenError::Refused(refusal) => ReadError::Broken { at: guest.0, refusal },
        OpenError::Source { at, error } => ReadError::Source { at, error },
    }
}

fn in_batch((guest, error): (u64, OpenError)) -> ReadError {
    at_guest(GuestOffset(guest))(error)
}

impl<S: ReadAt + Send> Disk for Qcow2Disk<S> {
    fn format(&self) -> Format {
        Format::Qcow2
    }

    fn virtual_bytes(&self) -> u64 {
        self.header.virtual_bytes
    }

    fn next_extent(&mut self, offset: u64) -> Result<MapExtent, ReadError> {
        check_range(offset, 1, self.header.virtual_bytes)?;
        let mut end = offset;
        let mut kind = None;
        let mut tables = 0;
        let mut number = u64::MAX;
        while end < self.header.virtual_bytes {
            let span = end / self.header.l2_span();
            if span != number {
                number = span;
                // An empty part of the L1 table is cheap to pass, and may be all there is.
                tables += u32::from(self.l1[number as usize] != 0);
                if tables > EXTENT_TABLES_MAX {
                    break;
                }
            }
            let guest = GuestOffset(end);
            let run = self.run(guest, u64::MAX).map_err(at_guest(guest))?;
            if *kind.get_or_insert(run.place.kind()) != run.place.kind() {
                break;
            }
            end += run.bytes;
        }
        let kind = kind.unwrap_or(ExtentKind::Data);
        Ok(MapExtent { offset, length: end - offset, kind })
    }

    fn next_stored(&mut self, offset: u64) -> Result<StoredExtent, ReadError> {
        check_range(offset, 1, self.header.virtual_bytes)?;
        let guest = GuestOffset(offset);
        let run = self.run(guest, u64::MAX).map_err(at_guest(guest))?;
        let (length, stored) = match run.place {
            Place::Zero => self.zeros(guest, run.bytes).map_err(at_guest(guest))?,
            place => (run.bytes, place.stored()),
        };
        Ok(StoredExtent { offset, length, stored })
    }

    fn details(&self) -> Details {
        let header = &self.header;
        Details {
            unit_bytes: Some(header.cluster_bytes()),
            is_dirty: header.is_dirty,
            qcow2: Some(Qcow2Details {
                version: header.version,
                compression: match header.compression {
                    Compression::Zlib => "zlib",
                    Compression::Zstd => "zstd",
                },
                refcount_bits: header.refcount_bits,
                lazy_refcounts: header.lazy_refcounts,
                extended_l2: header.extended_l2,
            }),
        }
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        check_range(offset, buf.len(), self.header.virtual_bytes)?;
        let cluster_bytes = self.header.cluster_bytes();
        let (mut at, mut rest, mut batch) = (offset, buf, Batch::default());
        while !rest.is_empty() {
            let guest = GuestOffset(at);
            let run = self.run(guest, rest.len() as u64).map_err(at_guest(guest))?;
            let (part, after) = rest.split_at_mut(run.bytes as usize);
            (at, rest) = (at + run.bytes, after);
            match run.place {
                Place::Compressed { at, bytes, skip: 0 } if run.bytes == cluster_bytes => {
                    let stored = self.stored(at, bytes).map_err(at_guest(guest))?;
                    self.unpacked_bytes += run.bytes;
                    batch.add(guest.0, self.method(), stored, part).map_err(in_batch)?;
                }
                place => self.fill(place, part).map_err(at_guest(guest))?,
            }
        }
        batch.finish().map_err(in_batch)
    }

    fn unpacked_bytes(&self) -> u64 {
        self.unpacked_bytes
    }
}
