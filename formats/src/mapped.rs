//! A disk whose guest bytes are found through tables: the loops that all such formats share.
//!
//! Invariants: runs that lie behind one another in the image are read at once; one call of
//! `next_extent` asks the tables at most [`EXTENT_RUNS_MAX`] times.
//! Non-goals: the tables themselves (see [`Tables`]); qcow2, whose subclusters need loops of its own.

use crate::disk::{
    Details, Disk, ExtentKind, Format, MapExtent, ReadError, Stored, StoredExtent, check_range,
};
use crate::offset::{GuestOffset, HostOffset};
use crate::refusal::OpenError;
use crate::source::ReadAt;
use crate::unpack::{Batch, Method};

/// Runs that one extent is put together from: at 64 KiB each, 4 GiB.
const EXTENT_RUNS_MAX: usize = 65_536;

/// Where the bytes of a run come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Zero,
    Host(HostOffset),
    /// The run starts `skip` bytes into what is stored compressed at `at`.
    Packed {
        at: HostOffset,
        skip: u64,
    },
}

impl Place {
    const fn kind(self) -> ExtentKind {
        match self {
            Self::Zero => ExtentKind::Zero,
            Self::Host(_) | Self::Packed { .. } => ExtentKind::Data,
        }
    }

    const fn stored(self) -> Stored {
        match self {
            Self::Zero => Stored::NOTHING,
            Self::Host(HostOffset(at)) => Stored::At(at),
            Self::Packed { .. } => Stored::Packed,
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

/// Guest bytes from one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// At least 1.
    pub bytes: u64,
    pub place: Place,
}

/// A format's tables, checked when they were opened.
pub(crate) trait Tables: Send {
    fn format(&self) -> Format;

    /// What the guest sees, in bytes.
    fn virtual_bytes(&self) -> u64;

    /// The unit that content is stored in, in bytes, where there is one.
    fn unit_bytes(&self) -> Option<u64>;

    /// The run that starts at `guest`, which is before the end. It may pass the disk's end.
    fn run(&mut self, source: &dyn ReadAt, guest: GuestOffset) -> Result<Run, OpenError>;

    /// The compressed bytes of the block that [`Place::Packed`] says to be at `at`, if all of it is
    /// `bytes` long and starts at `guest`.
    fn stored(
        &mut self,
        source: &dyn ReadAt,
        guest: GuestOffset,
        at: HostOffset,
        bytes: u64,
    ) -> Result<Option<Vec<u8>>, OpenError>;

    /// Fills `buf` from a [`Place::Packed`] of the run that holds `guest`. Gives the bytes that were
    /// decompressed for it: none where the block was at hand.
    fn unpack(
        &mut self,
        source: &dyn ReadAt,
        guest: GuestOffset,
        at: HostOffset,
        skip: u64,
        buf: &mut [u8],
    ) -> Result<u64, OpenError>;
}

/// See the module's documentation.
pub(crate) struct MappedDisk<S, T> {
    source: S,
    tables: T,
    unpacked_bytes: u64,
}

impl<S: ReadAt, T: Tables> MappedDisk<S, T> {
    pub const fn new(source: S, tables: T) -> Self {
        Self { source, tables, unpacked_bytes: 0 }
    }

    fn run(&mut self, guest: u64, most: u64) -> Result<Run, ReadError> {
        let found = self.tables.run(&self.source, GuestOffset(guest)).map_err(at_guest(guest))?;
        Ok(Run { bytes: found.bytes.min(most), ..found })
    }
}

/// The same fault, seen while reading guest bytes at `guest`.
fn at_guest(guest: u64) -> impl Fn(OpenError) -> ReadError {
    move |error| match error {
        OpenError::Refused(refusal) => ReadError::Broken { at: guest, refusal },
        OpenError::Source { at, error } => ReadError::Source { at, error },
    }
}

impl<S: ReadAt + Send, T: Tables> Disk for MappedDisk<S, T> {
    fn format(&self) -> Format {
        self.tables.format()
    }

    fn virtual_bytes(&self) -> u64 {
        self.tables.virtual_bytes()
    }

    fn next_extent(&mut self, offset: u64) -> Result<MapExtent, ReadError> {
        let length = self.virtual_bytes();
        check_range(offset, 1, length)?;
        let first = self.run(offset, length - offset)?;
        let kind = first.place.kind();
        let mut end = offset + first.bytes;
        for _ in 1..EXTENT_RUNS_MAX {
            if end == length {
                break;
            }
            let next = self.run(end, length - end)?;
            if next.place.kind() != kind {
                break;
            }
            end += next.bytes;
        }
        Ok(MapExtent { offset, length: end - offset, kind })
    }

    fn next_stored(&mut self, offset: u64) -> Result<StoredExtent, ReadError> {
        let length = self.virtual_bytes();
        check_range(offset, 1, length)?;
        let mut run = self.run(offset, length - offset)?;
        for _ in 1..EXTENT_RUNS_MAX {
            let end = offset + run.bytes;
            if end == length {
                break;
            }
            let next = self.run(end, length - end)?;
            if !run.place.continues(run.bytes, next.place) {
                break;
            }
            run.bytes += next.bytes;
        }
        Ok(StoredExtent { offset, length: run.bytes, stored: run.place.stored() })
    }

    fn details(&self) -> Details {
        Details { unit_bytes: self.tables.unit_bytes(), ..Details::default() }
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        check_range(offset, buf.len(), self.virtual_bytes())?;
        let (mut guest, mut rest) = (offset, buf);
        let (mut ahead, mut batch) = (None, Batch::default());
        while !rest.is_empty() {
            let most = rest.len() as u64;
            let mut run = match ahead.take() {
                Some(run) => run,
                None => self.run(guest, most)?,
            };
            while run.bytes < most {
                let next = self.run(guest + run.bytes, most - run.bytes)?;
                if !run.place.continues(run.bytes, next.place) {
                    ahead = Some(next);
                    break;
                }
                run.bytes += next.bytes;
            }
            let (part, after) = rest.split_at_mut(run.bytes as usize);
            match run.place {
                Place::Zero => part.fill(0),
                Place::Host(HostOffset(at)) => self
                    .source
                    .read_at(at, part)
                    .map_err(|error| ReadError::Source { at, error })?,
                Place::Packed { at, skip } => {
                    let (source, start) = (&self.source, GuestOffset(guest));
                    let whole = match skip {
                        0 => self.tables.stored(source, start, at, run.bytes),
                        _ => Ok(None),
                    };
                    match whole.map_err(at_guest(guest))? {
                        Some(stored) => {
                            self.unpacked_bytes += run.bytes;
                            let in_batch = |(guest, error)| at_guest(guest)(error);
                            batch.add(guest, Method::Zlib, stored, part).map_err(in_batch)?;
                        }
                        None => {
                            let unpacked = self.tables.unpack(source, start, at, skip, part);
                            self.unpacked_bytes += unpacked.map_err(at_guest(guest))?;
                        }
                    }
                }
            }
            guest += run.bytes;
            rest = after;
        }
        batch.finish().map_err(|(guest, error)| at_guest(guest)(error))
    }

    fn unpacked_bytes(&self) -> u64 {
        self.unpacked_bytes
    }
}
