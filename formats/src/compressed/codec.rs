//! Compresses one unit, in each of the ways that formats know.
//!
//! Levels were chosen by what QEMU gives, zlib's level 6 with a window of 4 KiB: level 3 of zlib-rs
//! with the whole window of deflate makes a disk's files a tenth shorter in a third of the time, and
//! its output does not depend on what the processor can do.
//!
//! Invariant: what comes out depends on the unit alone, not on what was compressed before.

use std::io;

use flate2::{Compress, Compression, FlushCompress, Status};

use super::UNIT_BYTES;

const DEFLATE_LEVEL: u32 = 3;
/// The window, as a power of two: all that deflate can reach back.
const WINDOW_BITS: u8 = 15;
/// zstd's default.
const ZSTD_LEVEL: i32 = 3;
/// The most that compressing adds to a unit: headers of stored blocks, with room to spare.
pub(super) const PACKED_BYTES_MAX: usize = UNIT_BYTES + UNIT_BYTES / 8 + 1024;

/// A way to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// RFC 1951.
    Deflate,
    /// RFC 1950: the same in an envelope.
    Zlib,
    Zstd,
}

/// One thread's compressor.
pub(super) enum Compressor {
    Deflate(Box<Compress>),
    Zstd(Box<zstd::bulk::Compressor<'static>>),
}

impl Compressor {
    pub fn new(codec: Codec) -> io::Result<Self> {
        let level = Compression::new(DEFLATE_LEVEL);
        let deflate = |zlib| Compress::new_with_window_bits(level, zlib, WINDOW_BITS);
        Ok(match codec {
            Codec::Deflate => Self::Deflate(Box::new(deflate(false))),
            Codec::Zlib => Self::Deflate(Box::new(deflate(true))),
            Codec::Zstd => Self::Zstd(Box::new(zstd::bulk::Compressor::new(ZSTD_LEVEL)?)),
        })
    }

    /// Compresses `unit` into the start of `room`, which has [`PACKED_BYTES_MAX`]; gives how long
    /// it became.
    pub fn compress(&mut self, unit: &[u8], room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Deflate(stream) => {
                stream.reset();
                let status = stream.compress(unit, room, FlushCompress::Finish)?;
                if status != Status::StreamEnd {
                    return Err(io::Error::other("deflate needs more room than it may"));
                }
                Ok(stream.total_out() as usize)
            }
            Self::Zstd(compressor) => compressor.compress_to_buffer(unit, room),
        }
    }
}
