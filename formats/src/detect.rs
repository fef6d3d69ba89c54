//! Tells a disk's format from its bytes, and opens it.
//!
//! What a format's own program would take for that format is never called raw: a guest that may
//! write its own first sector must not choose how its disk is read (CVE-2024-32498 and its kin).
//! The converse holds as well: bytes that no detector knows are raw, whatever they are. What starts as
//! a compressed file does is a raw disk only where that was declared: far more often it is an image
//! that somebody has not unpacked, and its guest would find noise.
//!
//! Invariant: an image that two detectors claim is refused.
//! Non-goal: trusting names, suffixes or declared media types; what is declared only narrows.

use crate::disk::{Disk, Format};
use crate::offset::HostOffset;
use crate::pages::read_source;
use crate::qcow2::{self, Qcow2Disk};
use crate::raw::RawDisk;
use crate::refusal::{Foreign, OpenError, Refusal};
use crate::source::ReadAt;
use crate::{ova, vhd, vhdx, vmdk};

/// Bytes from the start that detectors look at: up to the end of an ISO's first descriptor.
const HEAD_BYTES: u64 = 34 * 1024;
/// Bytes from the end that detectors look at: the footers of VHD and DMG.
const TAIL_BYTES: u64 = 512;
const SECTOR_BYTES: usize = 512;
/// ISO 9660: the primary volume descriptor stands in sector 16 of 2048 bytes.
const ISO_DESCRIPTOR_AT: usize = 16 * 2048;
const SE_SPARSE: [u8; 8] = 0xcafe_babe_u64.to_le_bytes();

/// A format that claims the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    Qcow2,
    Vmdk,
    /// A fixed VHD has no more than a footer at the end: what stands before it is the guest's.
    FixedVhd,
    Vhd,
    Vhdx,
    /// A tar that starts as one of a machine, or of a VMDK's parts.
    Archive,
    Foreign(Foreign),
    /// A compressed file, as which program makes it; raw, where that is declared.
    Packed(&'static str),
    /// Raw, by what stands in it; only interesting where something else claims the image too.
    Iso,
    BootSector,
}

impl Claim {
    const fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "VMDK",
            Self::FixedVhd | Self::Vhd => "VHD",
            Self::Vhdx => "VHDX",
            Self::Archive => "an archive",
            Self::Foreign(foreign) => foreign.name(),
            Self::Packed(by) => by,
            Self::Iso => "ISO 9660",
            Self::BootSector => "a raw disk with a partition table",
        }
    }

    const fn is_raw(self) -> bool {
        matches!(self, Self::Packed(_) | Self::Iso | Self::BootSector)
    }

    /// Whether bytes that are raw by what stands in them may stand in an image of this kind, too:
    /// where the guest's bytes lie there.
    const fn holds_raw(self, raw: Self) -> bool {
        match self {
            Self::FixedVhd => true,
            Self::Archive | Self::Vhd => matches!(raw, Self::Iso),
            // What stands first in a disk of macOS is often compressed.
            Self::Foreign(Foreign::Dmg) => matches!(raw, Self::Packed(_)),
            _ => false,
        }
    }

    /// Whether an image of this kind may be declared as `declared`.
    fn agrees(self, declared: Format) -> bool {
        match self {
            Self::Packed(_) | Self::Iso | Self::BootSector => declared == Format::Raw,
            Self::Qcow2 => declared == Format::Qcow2,
            Self::Vmdk => declared == Format::Vmdk,
            Self::FixedVhd | Self::Vhd => declared == Format::Vhd,
            Self::Vhdx => declared == Format::Vhdx,
            Self::Archive => matches!(declared, Format::Ova | Format::Vmdk),
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
    match claim(&*source, hint)? {
        Some(Claim::Archive) => ova::open(source),
        claim => open_claimed(source, claim),
    }
}

/// Opens a file of an archive, which is no archive itself. Any other format than `declared` is
/// refused.
pub(crate) fn open_member(
    source: Box<dyn ReadAt + Send>,
    declared: Format,
) -> Result<Box<dyn Disk>, OpenError> {
    let claim = claim(&*source, Some(declared))?;
    open_claimed(source, claim)
}

/// Opens a file of an archive as what its bytes say; the `hint` counts only where they say nothing:
/// a VMDK that lost its start is not a raw disk.
pub(crate) fn open_hinted(
    source: Box<dyn ReadAt + Send>,
    hint: Option<Format>,
) -> Result<Box<dyn Disk>, OpenError> {
    match (detect(&*source)?, hint) {
        (None, Some(declared)) if declared != Format::Raw => {
            Err(Refusal::FormatMismatch { declared, found: "raw" }.into())
        }
        (claim, _) => open_claimed(source, claim),
    }
}

fn claim(source: &dyn ReadAt, hint: Option<Format>) -> Result<Option<Claim>, OpenError> {
    let claim = detect(source)?;
    if let Some(declared) = hint {
        let found = claim.map_or("raw", Claim::name);
        if !claim.unwrap_or(Claim::Iso).agrees(declared) {
            return Err(Refusal::FormatMismatch { declared, found }.into());
        }
        if declared == Format::Raw {
            return Ok(None);
        }
    }
    Ok(claim)
}

fn open_claimed(
    source: Box<dyn ReadAt + Send>,
    claim: Option<Claim>,
) -> Result<Box<dyn Disk>, OpenError> {
    match claim {
        None | Some(Claim::Iso | Claim::BootSector) => Ok(Box::new(RawDisk::new(source))),
        Some(Claim::Qcow2) => Ok(Box::new(Qcow2Disk::open(source)?)),
        Some(Claim::Vmdk) => vmdk::open(source),
        Some(Claim::FixedVhd | Claim::Vhd) => vhd::open(source),
        Some(Claim::Vhdx) => vhdx::open(source),
        Some(Claim::Archive) => Err(Refusal::Archive("it holds another archive").into()),
        Some(Claim::Packed(_)) => {
            let text = "it is one compressed file; unpack it first, or say that it is a raw disk";
            Err(Refusal::Archive(text).into())
        }
        Some(Claim::Foreign(foreign)) => Err(Refusal::Unsupported(foreign).into()),
    }
}

/// Several claims are refused, but for what is raw twice, and for raw bytes inside another format.
fn detect(source: &dyn ReadAt) -> Result<Option<Claim>, OpenError> {
    let length = source.len();
    let mut head = vec![0; length.min(HEAD_BYTES) as usize];
    read_source(source, HostOffset(0), &mut head)?;
    let mut tail = vec![0; length.min(TAIL_BYTES) as usize];
    let tail_at = length - tail.len() as u64;
    read_source(source, HostOffset(tail_at), &mut tail)?;
    let claims = claims(&head, &tail);
    let mut strict = claims.iter().filter(|claim| !claim.is_raw());
    let Some(first) = strict.next() else { return Ok(claims.first().copied()) };
    let raw = || claims.iter().find(|claim| claim.is_raw() && !first.holds_raw(**claim));
    match strict.next().or_else(raw) {
        Some(second) => {
            Err(Refusal::Ambiguous { first: first.name(), second: second.name() }.into())
        }
        None => Ok(Some(*first)),
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
    claim(at(0, b"KDMV") || vmdk::is_descriptor(head), Claim::Vmdk);
    claim(at(0, b"COWD"), foreign(Foreign::Cowd));
    claim(at(0, &SE_SPARSE), foreign(Foreign::SeSparse));
    // A fixed VHD has only a footer; old programs wrote it a byte short.
    let has_footer = tail.starts_with(vhd::COOKIE)
        || tail.get(1..).is_some_and(|tail| tail.starts_with(vhd::COOKIE));
    claim(at(0, vhd::COOKIE), Claim::Vhd);
    claim(has_footer && !at(0, vhd::COOKIE), Claim::FixedVhd);
    claim(at(0, vhdx::IDENTIFIER), Claim::Vhdx);
    claim(at(0, b"QED\0"), foreign(Foreign::Qed));
    claim(at(0, b"LUKS\xba\xbe"), foreign(Foreign::Luks));
    claim(at(64, &0xbeda_107f_u32.to_le_bytes()), foreign(Foreign::Vdi));
    let is_parallels = at(0, b"WithoutFreeSpace") || at(0, b"WithouFreSpacExt");
    claim(is_parallels, foreign(Foreign::Parallels));
    claim(at(0, b"Bochs Virtual HD Image"), foreign(Foreign::Bochs));
    claim(at(0, b"#!/bin/sh\n#V2.0 Format\n"), foreign(Foreign::Cloop));
    claim(tail.len() == SECTOR_BYTES && tail.starts_with(b"koly"), foreign(Foreign::Dmg));
    claim(ova::first_name(head).is_some_and(|name| ova::is_known(&name)), Claim::Archive);
    if let Some(by) = packed_by(head) {
        claim(true, Claim::Packed(by));
    }
    // In a qcow2 with smaller clusters the descriptor may stand in the guest's data.
    let is_small = at(0, qcow2::MAGIC) && head.get(23).is_some_and(|&bits| bits < 16);
    claim(at(ISO_DESCRIPTOR_AT, b"\x01CD001") && !is_small, Claim::Iso);
    claim(has_partitions(head), Claim::BootSector);
    claims
}

/// What made the compressed file that starts so. Only the whole of each sign counts.
fn packed_by(head: &[u8]) -> Option<&'static str> {
    let signs: [(&[u8], &str); 5] = [
        (b"\xfd7zXZ\0", "a file of xz"),
        (b"\x28\xb5\x2f\xfd", "a file of zstd"),
        (b"PK\x03\x04", "a file of zip"),
        (b"7z\xbc\xaf\x27\x1c", "a file of 7-Zip"),
        (b"Rar!\x1a\x07", "a file of RAR"),
    ];
    let found = signs.into_iter().find(|(sign, _)| head.starts_with(sign)).map(|(_, by)| by);
    // Deflate, and no flag that is reserved (RFC 1952, 2.3).
    let is_gzip = head.starts_with(b"\x1f\x8b\x08") && head.get(3).is_some_and(|it| it & 0xe0 == 0);
    let level = head.get(3).is_some_and(|it| matches!(it, b'1'..=b'9'));
    let is_bzip2 = head.starts_with(b"BZh")
        && level
        && head.get(4..).is_some_and(|rest| rest.starts_with(b"1AY&SY"));
    found.or(is_gzip.then_some("a file of gzip")).or(is_bzip2.then_some("a file of bzip2"))
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
