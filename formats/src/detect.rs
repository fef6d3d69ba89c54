//! Tells a disk's format from its bytes, and opens it.
//!
//! What a format's own program would take for that format is never called raw: a guest that may
//! write its own first sector must not choose how its disk is read (CVE-2024-32498 and its kin).
//! The converse holds as well: bytes that no detector knows are raw, whatever they are.
//!
//! Invariant: an image that two detectors claim is refused.
//! Non-goal: trusting names, suffixes or declared media types; a hint only narrows.

use crate::disk::{Disk, Format};
use crate::offset::HostOffset;
use crate::qcow2::{self, Qcow2Disk};
use crate::raw::RawDisk;
use crate::refusal::{Foreign, OpenError, Refusal};
use crate::source::ReadAt;

/// Bytes from the start that detectors look at: up to the end of an ISO's first descriptor.
const HEAD_BYTES: u64 = 34 * 1024;
/// Bytes from the end that detectors look at: the footers of VHD and DMG.
const TAIL_BYTES: u64 = 512;
const SECTOR_BYTES: usize = 512;
/// ISO 9660: the primary volume descriptor stands in sector 16 of 2048 bytes.
const ISO_DESCRIPTOR_AT: usize = 16 * 2048;
/// The descriptor of a VMDK may have comments and empty lines before what names it.
const VMDK_TEXT_BYTES: usize = 4096;

/// A format that claims the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    Qcow2,
    Foreign(Foreign),
    /// Raw, by what stands in it; only interesting where something else claims the image too.
    Iso,
    BootSector,
}

impl Claim {
    const fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Foreign(foreign) => foreign.name(),
            Self::Iso => "ISO 9660",
            Self::BootSector => "a raw disk with a partition table",
        }
    }

    const fn is_raw(self) -> bool {
        matches!(self, Self::Iso | Self::BootSector)
    }

    /// Whether an image of this kind may be declared as `declared`.
    fn agrees(self, declared: Format) -> bool {
        match self {
            Self::Iso | Self::BootSector => declared == Format::Raw,
            Self::Qcow2 => declared == Format::Qcow2,
            Self::Foreign(Foreign::Vmdk) => declared == Format::Vmdk,
            Self::Foreign(Foreign::Vhd) => declared == Format::Vhd,
            Self::Foreign(Foreign::Vhdx) => declared == Format::Vhdx,
            // Something else again: the refusal that names it says more.
            Self::Foreign(_) => declared != Format::Raw,
        }
    }
}

/// Opens a disk, whose format is found from its bytes. With a `hint`, any other format is refused.
///
/// # Errors
/// [`OpenError::Refused`] with a named reason, or [`OpenError::Source`].
pub fn open(
    source: Box<dyn ReadAt + Send>,
    hint: Option<Format>,
) -> Result<Box<dyn Disk>, OpenError> {
    let claim = detect(&*source)?;
    if let Some(declared) = hint {
        let found = claim.map_or("raw", Claim::name);
        if !claim.unwrap_or(Claim::Iso).agrees(declared) {
            return Err(Refusal::FormatMismatch { declared, found }.into());
        }
    }
    match claim {
        None | Some(Claim::Iso | Claim::BootSector) => Ok(Box::new(RawDisk::new(source))),
        Some(Claim::Qcow2) => Ok(Box::new(Qcow2Disk::open(source)?)),
        Some(Claim::Foreign(foreign)) => Err(Refusal::Unsupported(foreign).into()),
    }
}

/// Several claims are refused, but for an ISO that can also start as a disk, which is raw twice.
fn detect(source: &dyn ReadAt) -> Result<Option<Claim>, OpenError> {
    let length = source.len();
    let mut head = vec![0; length.min(HEAD_BYTES) as usize];
    qcow2::read_source(source, HostOffset(0), &mut head)?;
    let mut tail = vec![0; length.min(TAIL_BYTES) as usize];
    let tail_at = length - tail.len() as u64;
    qcow2::read_source(source, HostOffset(tail_at), &mut tail)?;
    let claims = claims(&head, &tail);
    let mut strict = claims.iter().filter(|claim| !claim.is_raw());
    match (strict.next(), strict.next().or(claims.iter().find(|claim| claim.is_raw()))) {
        (Some(first), Some(second)) => {
            Err(Refusal::Ambiguous { first: first.name(), second: second.name() }.into())
        }
        (Some(only), None) => Ok(Some(*only)),
        (None, _) => Ok(claims.first().copied()),
    }
}

fn claims(head: &[u8], tail: &[u8]) -> Vec<Claim> {
    let mut claims = Vec::new();
    let mut claim = |holds: bool, claim| {
        if holds {
            claims.push(claim);
        }
    };
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..).is_some_and(|rest| rest.starts_with(magic))
    };
    let foreign = Claim::Foreign;
    claim(at(0, qcow2::MAGIC), Claim::Qcow2);
    claim(is_vmdk(head), foreign(Foreign::Vmdk));
    // A fixed VHD has only a footer; old programs wrote it a byte short.
    let is_vhd = at(0, b"conectix")
        || tail.starts_with(b"conectix")
        || tail.get(1..).is_some_and(|tail| tail.starts_with(b"conectix"));
    claim(is_vhd, foreign(Foreign::Vhd));
    claim(at(0, b"vhdxfile"), foreign(Foreign::Vhdx));
    claim(at(0, b"QED\0"), foreign(Foreign::Qed));
    claim(at(0, b"LUKS\xba\xbe"), foreign(Foreign::Luks));
    claim(at(64, &0xbeda_107f_u32.to_le_bytes()), foreign(Foreign::Vdi));
    let is_parallels = at(0, b"WithoutFreeSpace") || at(0, b"WithouFreSpacExt");
    claim(is_parallels, foreign(Foreign::Parallels));
    claim(at(0, b"Bochs Virtual HD Image"), foreign(Foreign::Bochs));
    claim(at(0, b"#!/bin/sh\n#V2.0 Format\n"), foreign(Foreign::Cloop));
    claim(tail.len() == SECTOR_BYTES && tail.starts_with(b"koly"), foreign(Foreign::Dmg));
    claim(is_ova(head), foreign(Foreign::Ova));
    // In a qcow2 with smaller clusters the descriptor may stand in the guest's data.
    let is_small = at(0, qcow2::MAGIC) && head.get(23).is_some_and(|&bits| bits < 16);
    claim(at(ISO_DESCRIPTOR_AT, b"\x01CD001") && !is_small, Claim::Iso);
    claim(has_partitions(head), Claim::BootSector);
    claims
}

/// Sparse extents of all kinds, and descriptors as QEMU and VMware find them.
fn is_vmdk(head: &[u8]) -> bool {
    const SE_SPARSE: [u8; 8] = 0xcafe_babe_u64.to_le_bytes();
    if head.starts_with(b"KDMV") || head.starts_with(b"COWD") || head.starts_with(&SE_SPARSE) {
        return true;
    }
    for line in head[..head.len().min(VMDK_TEXT_BYTES)].split(|&byte| byte == b'\n') {
        let line = line.trim_ascii();
        let starts = |with: &str| {
            line.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()))
        };
        if starts("# disk descriptorfile") || starts("version=") {
            return true;
        }
        if !line.is_empty() && line[0] != b'#' {
            return false;
        }
    }
    false
}

/// A tar whose first file is an OVF descriptor, as the specification wants it.
fn is_ova(head: &[u8]) -> bool {
    let Some(header) = head.get(..SECTOR_BYTES) else { return false };
    let name = header[..100].split(|&byte| byte == 0).next().unwrap_or_default();
    header[257..].starts_with(b"ustar") && name.to_ascii_lowercase().ends_with(b".ovf")
}

/// A boot sector with at least one entry of the partition table that makes sense.
fn has_partitions(head: &[u8]) -> bool {
    let Some(sector) = head.get(..SECTOR_BYTES) else { return false };
    let makes_sense = |entry: &[u8]| {
        let sectors = &entry[12..16];
        matches!(entry[0], 0 | 0x80) && entry[4] != 0 && sectors.iter().any(|&byte| byte != 0)
    };
    sector[510..] == [0x55, 0xaa] && sector[446..510].chunks_exact(16).any(makes_sense)
}
