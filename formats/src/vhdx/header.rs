//! The two headers, of which the valid one with the higher sequence number counts.
//! ```text
//!   0 "head"           16 id of the file's bytes   64 log version, 16 bits
//!   4 CRC-32C, 4 KiB   32 id of the disk's bytes   66 version, 16 bits
//!   8 sequence number  48 id of the log, or zero   68 log length   72 log offset
//! ```
//!
//! Invariant: a header that is returned has a right checksum and a log inside the image.

use super::crc32c::with_own_cleared;
use super::{KIB, MIB};
use crate::bytes::{Little, array};
use crate::pages::read_part;
use crate::refusal::{OpenError, Refusal};
use crate::source::ReadAt;

pub(super) const HEADERS_AT: [u64; 2] = [64 * KIB, 128 * KIB];
pub(super) const HEADER_BYTES: u64 = 4 * KIB;
pub(super) const SIGNATURE: &[u8; 4] = b"head";
/// The usual is 1 MiB.
const LOG_BYTES_MAX: u64 = 64 * MIB;

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    sequence: u64,
    /// All zero where the log is empty.
    pub log_id: [u8; 16],
    pub log_at: u64,
    pub log_bytes: u64,
}

pub(super) fn read(source: &dyn ReadAt) -> Result<Header, OpenError> {
    let mut best: Option<(Vec<u8>, Header)> = None;
    for at in HEADERS_AT {
        let bytes = read_part(source, at, HEADER_BYTES, "the end of its headers")?;
        let Some(header) = parse(&bytes) else { continue };
        match &best {
            Some((known, other)) if other.sequence == header.sequence && *known != bytes => {
                return Err(Refusal::MalformedHeader("two headers are equally current").into());
            }
            Some((_, other)) if other.sequence >= header.sequence => {}
            _ => best = Some((bytes, header)),
        }
    }
    let (bytes, header) = best.ok_or(Refusal::MalformedHeader("both headers are damaged"))?;
    let version = Little(&bytes).u16(66);
    if version != 1 {
        return Err(Refusal::UnknownVersion(u32::from(version)).into());
    }
    if header.log_id != [0; 16] {
        check_log(&header, Little(&bytes).u16(64), source.len())?;
    }
    Ok(header)
}

fn parse(bytes: &[u8]) -> Option<Header> {
    let fields = Little(bytes);
    if !bytes.starts_with(SIGNATURE) || fields.u32(4) != with_own_cleared(bytes) {
        return None;
    }
    Some(Header {
        sequence: fields.u64(8),
        log_id: array(bytes, 48),
        log_bytes: u64::from(fields.u32(68)),
        log_at: fields.u64(72),
    })
}

fn check_log(header: &Header, version: u16, length: u64) -> Result<(), Refusal> {
    if version != 0 {
        return Err(Refusal::UnknownVersion(u32::from(version)));
    }
    let aligned = header.log_bytes.is_multiple_of(MIB) && header.log_at.is_multiple_of(MIB);
    if !aligned || header.log_bytes == 0 || header.log_at < MIB {
        return Err(Refusal::MalformedHeader("the place of its log"));
    }
    if header.log_bytes > LOG_BYTES_MAX {
        return Err(Refusal::TooLarge("its log is above 64 MiB"));
    }
    match header.log_at.checked_add(header.log_bytes) {
        Some(end) if end <= length => Ok(()),
        _ => Err(Refusal::Truncated("the end of its log")),
    }
}
