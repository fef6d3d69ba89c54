//! VMDK (VMware, "Virtual Disk Format 5.0"), read and laid out for writing.
//!
//! Read: `monolithicSparse` and `streamOptimized` (compressed grains, markers, footers) on their
//! own; a text descriptor with its extents – sparse, flat and zero – where all of them stand in one
//! archive. Written: `monolithicSparse` and `streamOptimized`, that with stored
//! grains and with compressed ones.
//!
//! Invariant: a descriptor names nothing but files of the archive it came in; on its own it names
//! nothing at all.
//! Non-goals: extents of ESXi (COWD, seSparse), and differences to a parent: refused by name.

mod descriptor;
mod extents;
mod header;
mod sparse;
mod sparse_layout;
mod stream_layout;
mod stream_packer;
mod text;

use crate::disk::Disk;
use crate::mapped::MappedDisk;
use crate::offset::HostOffset;
use crate::pages::read_source;
use crate::refusal::{OpenError, Refusal};
use crate::source::ReadAt;

pub(crate) use descriptor::is_descriptor;
pub(crate) use extents::Member;
pub(crate) use sparse_layout::SparseLayout;
pub(crate) use stream_layout::StreamLayout;
pub(crate) use stream_packer::StreamPacker;

pub(crate) const SECTOR_BYTES: u64 = 512;
/// The largest disk, in bytes: a header of 512 bytes can claim any size.
pub(crate) const VIRTUAL_BYTES_MAX: u64 = 64 << 40;
/// The longest descriptor, as in QEMU.
const DESCRIPTOR_BYTES_MAX: u64 = 1 << 20;

/// Opens a disk that is one file.
pub(crate) fn open(source: Box<dyn ReadAt + Send>) -> Result<Box<dyn Disk>, OpenError> {
    let mut magic = [0; 4];
    read_source(&*source, HostOffset(0), &mut magic)?;
    if &magic != header::MAGIC {
        return Err(Refusal::NamesFiles.into());
    }
    let tables = extents::Extents::of_one_file(&*source)?;
    Ok(Box::new(MappedDisk::new(source, tables)))
}

/// Opens the disk that the descriptor in `members[descriptor]` puts together from files of one
/// archive; `source` is the archive.
pub(crate) fn open_parts(
    source: Box<dyn ReadAt + Send>,
    members: &[Member<'_>],
    descriptor: usize,
) -> Result<Box<dyn Disk>, OpenError> {
    let tables = extents::Extents::of_archive(&*source, members, descriptor)?;
    Ok(Box::new(MappedDisk::new(source, tables)))
}
