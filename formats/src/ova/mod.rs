//! OVA (DMTF DSP0243): a tar with a descriptor of a machine and its disk. Read, and laid out for
//! writing. A tar of a VMDK's parts, with what VMware keeps beside them, is read, too.
//!
//! Read: one disk in any readable format, whole or – a VMDK – in extents; the checksums of a
//! manifest are held against all files before the disk is opened. Signatures are not checked:
//! nobody here knows whose they should be.
//!
//! Invariant: names are looked up in the archive and nowhere else, and none of them is a path.
//! Non-goals: machines (only the disk is taken), several disks, compressed or chunked files; those
//! are refused by name.

mod layout;
mod manifest;
mod ovf;
mod tar;

use std::collections::HashSet;

use crate::detect;
use crate::disk::{Details, Disk, Format, MapExtent, ReadError, Stored, StoredExtent};
use crate::pages::read_part;
use crate::refusal::{OpenError, Refusal};
use crate::source::{ReadAt, Slice};
use crate::vmdk;

pub(crate) use layout::Layout;
pub(crate) use tar::first_name;

/// The longest descriptor of a machine.
const OVF_BYTES_MAX: u64 = 4 << 20;
/// Bytes of a disk that are looked at to see whether it is a text descriptor.
const LOOK_BYTES: u64 = 4096;

/// What archives of machines start with: an appliance's own files, or what VMware keeps beside a
/// disk, in whatever order a folder was packed.
const FIRST_SUFFIXES: [&str; 8] =
    [".ovf", ".mf", ".cert", ".vmdk", ".vmx", ".vmxf", ".vmsd", ".nvram"];

/// Whether an archive that starts with this name is looked into.
pub(crate) fn is_known(name: &str) -> bool {
    let bare = name.strip_prefix("./").unwrap_or(name);
    let is_log = bare.starts_with("vmware") && ends_with(bare, ".log");
    is_log || FIRST_SUFFIXES.iter().any(|suffix| ends_with(name, suffix))
}

fn ends_with(name: &str, suffix: &str) -> bool {
    let start = name.len().checked_sub(suffix.len());
    let end = start.and_then(|start| name.get(start..));
    end.is_some_and(|end| end.eq_ignore_ascii_case(suffix))
}

/// Opens an archive that starts with a known name.
pub(crate) fn open(source: Box<dyn ReadAt + Send>) -> Result<Box<dyn Disk>, OpenError> {
    let files = tar::read(&*source)?;
    check_names(&files)?;
    let named = |suffix| files.iter().filter(move |file| ends_with(&file.name, suffix));
    if named(".mf").count() > 1 || named(".ovf").count() > 1 {
        return Err(Refusal::MalformedHeader("the archive has two descriptors").into());
    }
    if let Some(file) = named(".mf").next() {
        manifest::check(&*source, &files, file)?;
    }
    match named(".ovf").next() {
        Some(descriptor) => {
            let (index, hint) = described(&*source, &files, descriptor)?;
            let disk = open_file(source, &files, index, |file| detect::open_hinted(file, hint))?;
            Ok(Box::new(ArchiveDisk { format: Format::Ova, ..disk }))
        }
        None => {
            let index = only_vmdk(&*source, &files)?;
            let open = |file| detect::open_member(file, Format::Vmdk);
            Ok(Box::new(open_file(source, &files, index, open)?))
        }
    }
}

fn check_names(files: &[tar::File]) -> Result<(), Refusal> {
    let mut known = HashSet::new();
    for file in files {
        if !known.insert(file.name.to_ascii_lowercase()) {
            return Err(Refusal::DuplicateName);
        }
    }
    Ok(())
}

/// The disk that the machine's descriptor names, and the format it hints at.
fn described(
    source: &dyn ReadAt,
    files: &[tar::File],
    descriptor: &tar::File,
) -> Result<(usize, Option<Format>), OpenError> {
    if descriptor.length > OVF_BYTES_MAX {
        return Err(Refusal::TooLarge("its OVF descriptor is above 4 MiB").into());
    }
    let text = read_part(source, descriptor.at, descriptor.length, "its OVF descriptor")?;
    let disk = ovf::disk(&text)?;
    let index = files.iter().position(|file| file.name == disk.name);
    Ok((index.ok_or(Refusal::MissingPart)?, disk.format))
}

/// The one VMDK of an archive without a machine: its text descriptor, or the only file.
fn only_vmdk(source: &dyn ReadAt, files: &[tar::File]) -> Result<usize, OpenError> {
    let mut texts = Vec::new();
    let mut disks = Vec::new();
    for (index, file) in files.iter().enumerate() {
        if !ends_with(&file.name, ".vmdk") {
            continue;
        }
        disks.push(index);
        if is_text(source, file)? {
            texts.push(index);
        }
    }
    match (texts.as_slice(), disks.as_slice()) {
        (&[only], _) | ([], &[only]) => Ok(only),
        ([], []) => Err(Refusal::NoDisk.into()),
        _ => Err(Refusal::SeveralDisks.into()),
    }
}

fn is_text(source: &dyn ReadAt, file: &tar::File) -> Result<bool, OpenError> {
    let start = read_part(source, file.at, file.length.min(LOOK_BYTES), "the end of a file")?;
    Ok(vmdk::is_descriptor(&start))
}

fn open_file(
    source: Box<dyn ReadAt + Send>,
    files: &[tar::File],
    index: usize,
    open: impl FnOnce(Box<dyn ReadAt + Send>) -> Result<Box<dyn Disk>, OpenError>,
) -> Result<ArchiveDisk, OpenError> {
    let file = &files[index];
    if is_text(&*source, file)? {
        let members: Vec<_> = files
            .iter()
            .map(|file| vmdk::Member { name: &file.name, at: file.at, length: file.length })
            .collect();
        let inner = vmdk::open_parts(source, &members, index)?;
        return Ok(ArchiveDisk { format: inner.format(), inner, at: 0 });
    }
    let (at, length) = (file.at, file.length);
    let inner = open(Box::new(Slice::new(source, at, length)))?;
    Ok(ArchiveDisk { format: inner.format(), inner, at })
}

/// A disk that came in an archive: with a machine, or as a VMDK's parts.
struct ArchiveDisk {
    inner: Box<dyn Disk>,
    format: Format,
    /// Where what `inner` takes for its image starts in the archive.
    at: u64,
}

impl Disk for ArchiveDisk {
    fn format(&self) -> Format {
        self.format
    }

    fn virtual_bytes(&self) -> u64 {
        self.inner.virtual_bytes()
    }

    fn next_extent(&mut self, offset: u64) -> Result<MapExtent, ReadError> {
        self.inner.next_extent(offset)
    }

    fn next_stored(&mut self, offset: u64) -> Result<StoredExtent, ReadError> {
        let extent = self.inner.next_stored(offset)?;
        let stored = match extent.stored {
            Stored::At(at) => Stored::At(self.at + at),
            Stored::Zero { is_said, kept } => {
                Stored::Zero { is_said, kept: kept.map(|at| self.at + at) }
            }
            Stored::Packed => Stored::Packed,
        };
        Ok(StoredExtent { stored, ..extent })
    }

    fn details(&self) -> Details {
        self.inner.details()
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.inner.read(offset, buf)
    }

    fn unpacked_bytes(&self) -> u64 {
        self.inner.unpacked_bytes()
    }
}
