//! A disk of one or more extents, found in one file or in one archive.
//!
//! Invariants: extents follow each other without a gap; each file of the archive is used by one of
//! them at most.
//! Non-goal: the archive (see `ova`).

use super::descriptor::{self, ExtentLine, Shape};
use super::header::malformed;
use super::sparse::{Sparse, embedded};
use super::{DESCRIPTOR_BYTES_MAX, VIRTUAL_BYTES_MAX};
use crate::disk::Format;
use crate::mapped::{Place, Run, Tables};
use crate::offset::{GuestOffset, HostOffset};
use crate::pages::{Pages, read_part};
use crate::refusal::{OpenError, Refusal};
use crate::source::ReadAt;

/// A file of an archive: where its bytes lie in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member<'a> {
    pub name: &'a str,
    pub at: u64,
    pub length: u64,
}

#[derive(Debug)]
enum Bytes {
    Zero,
    Flat(HostOffset),
    Sparse(Sparse),
}

#[derive(Debug)]
struct Extent {
    /// Guest bytes from the disk's start to the extent's end.
    end: u64,
    length: u64,
    bytes: Bytes,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Extents {
    extents: Vec<Extent>,
    pages: Pages,
    /// The grain inflated last, and where it is stored.
    grain: Option<(HostOffset, Vec<u8>)>,
}

impl Extents {
    pub fn of_one_file(source: &dyn ReadAt) -> Result<Self, OpenError> {
        let extent = Sparse::open(source, 0, source.len())?;
        // Without a descriptor it is one of several extents; read alone it would be a wrong disk.
        // QEMU leaves room for one in every extent.
        let text = embedded(source, &extent, 0)?.filter(|text| descriptor::is_descriptor(text));
        let text = text.ok_or(Refusal::DiskPart)?;
        let lines = descriptor::parse(&text)?;
        let names_itself = match lines.as_slice() {
            [] => true,
            [line] => matches!(line.shape, Shape::Sparse { .. }),
            _ => false,
        };
        if !names_itself {
            return Err(Refusal::NamesFiles.into());
        }
        let length = extent.capacity();
        // Such a file is no more than a place for the text.
        if length == 0 && lines.iter().any(|line| line.bytes > 0) {
            return Err(Refusal::NamesFiles.into());
        }
        let extents = vec![Extent { end: length, length, bytes: Bytes::Sparse(extent) }];
        Ok(Self::new(extents))
    }

    pub fn of_archive(
        source: &dyn ReadAt,
        members: &[Member<'_>],
        descriptor: usize,
    ) -> Result<Self, OpenError> {
        let Member { at, length, .. } = members[descriptor];
        if length > DESCRIPTOR_BYTES_MAX {
            return Err(Refusal::TooLarge("its descriptor is above 1 MiB").into());
        }
        let lines = descriptor::parse(&read_part(source, at, length, "its descriptor")?)?;
        let mut used = vec![false; members.len()];
        used[descriptor] = true;
        let mut extents: Vec<Extent> = Vec::new();
        for line in &lines {
            let start = extents.last().map_or(0, |last| last.end);
            let end = start.checked_add(line.bytes).filter(|&end| end <= VIRTUAL_BYTES_MAX);
            let end = end.ok_or(Refusal::TooLarge("its virtual size is above 64 TiB"))?;
            let bytes = bytes(source, members, &mut used, line)?;
            extents.push(Extent { end, length: line.bytes, bytes });
        }
        if extents.is_empty() {
            return Err(malformed("the descriptor names no extent").into());
        }
        Ok(Self::new(extents))
    }

    fn new(extents: Vec<Extent>) -> Self {
        Self { extents, pages: Pages::default(), grain: None }
    }

    fn index(&self, guest: GuestOffset) -> usize {
        self.extents.partition_point(|extent| extent.end <= guest.0)
    }

    /// The extent of a packed grain, and where `guest` is in it.
    fn sparse(&self, guest: GuestOffset) -> (&Sparse, u64) {
        let extent = &self.extents[self.index(guest)];
        let Bytes::Sparse(sparse) = &extent.bytes else {
            unreachable!("only a sparse extent has packed grains");
        };
        (sparse, guest.0 - (extent.end - extent.length))
    }
}

fn bytes(
    source: &dyn ReadAt,
    members: &[Member<'_>],
    used: &mut [bool],
    line: &ExtentLine,
) -> Result<Bytes, OpenError> {
    let mut take = |name: &str| {
        let index = members.iter().position(|member| member.name == name);
        let index = index.ok_or(Refusal::MissingPart)?;
        if std::mem::replace(&mut used[index], true) {
            return Err(Refusal::OverlappingTables("an extent"));
        }
        Ok(members[index])
    };
    match &line.shape {
        Shape::Zero => Ok(Bytes::Zero),
        Shape::Flat { name, offset } => {
            let member = take(name)?;
            let end = offset.checked_add(line.bytes);
            if end.is_none_or(|end| end > member.length) {
                return Err(Refusal::Truncated("the end of an extent").into());
            }
            Ok(Bytes::Flat(HostOffset(member.at + offset)))
        }
        Shape::Sparse { name } => {
            let member = take(name)?;
            let extent = Sparse::open(source, member.at, member.length)?;
            if extent.capacity() < line.bytes {
                return Err(malformed("an extent is smaller than the descriptor says").into());
            }
            if let Some(text) = embedded(source, &extent, member.at)? {
                // Its own descriptor may not make it something else.
                descriptor::parse(&text)?;
            }
            Ok(Bytes::Sparse(extent))
        }
    }
}

impl Tables for Extents {
    fn format(&self) -> Format {
        Format::Vmdk
    }

    fn virtual_bytes(&self) -> u64 {
        self.extents.last().map_or(0, |extent| extent.end)
    }

    /// Extents may differ; then there is none.
    fn unit_bytes(&self) -> Option<u64> {
        let mut grains = self.extents.iter().filter_map(|extent| match &extent.bytes {
            Bytes::Sparse(sparse) => Some(sparse.grain_bytes()),
            Bytes::Zero | Bytes::Flat(_) => None,
        });
        let first = grains.next()?;
        grains.all(|other| other == first).then_some(first)
    }

    fn run(&mut self, source: &dyn ReadAt, guest: GuestOffset) -> Result<Run, OpenError> {
        let extent = &self.extents[self.index(guest)];
        let inside = guest.0 - (extent.end - extent.length);
        let left = extent.end - guest.0;
        let run = match &extent.bytes {
            Bytes::Zero => Run { bytes: left, place: Place::Zero },
            Bytes::Flat(at) => Run { bytes: left, place: Place::Host(HostOffset(at.0 + inside)) },
            Bytes::Sparse(sparse) => sparse.run(source, &mut self.pages, inside)?,
        };
        Ok(Run { bytes: run.bytes.min(left), ..run })
    }

    fn stored(
        &mut self,
        source: &dyn ReadAt,
        guest: GuestOffset,
        at: HostOffset,
        bytes: u64,
    ) -> Result<Option<Vec<u8>>, OpenError> {
        let (sparse, inside) = self.sparse(guest);
        let is_whole = bytes == sparse.grain_bytes();
        if is_whole { sparse.stored(source, at, inside).map(Some) } else { Ok(None) }
    }

    fn unpack(
        &mut self,
        source: &dyn ReadAt,
        guest: GuestOffset,
        at: HostOffset,
        skip: u64,
        buf: &mut [u8],
    ) -> Result<u64, OpenError> {
        let mut unpacked = 0;
        if self.grain.as_ref().is_none_or(|(known, _)| *known != at) {
            let mut grain = self.grain.take().map_or_else(Vec::new, |(_, buffer)| buffer);
            let (sparse, inside) = self.sparse(guest);
            sparse.unpack(source, at, inside, &mut grain)?;
            unpacked = grain.len() as u64;
            self.grain = Some((at, grain));
        }
        let grain = self.grain.as_ref().map_or(&[][..], |(_, grain)| grain);
        buf.copy_from_slice(&grain[skip as usize..skip as usize + buf.len()]);
        Ok(unpacked)
    }
}
