//! Compressed clusters.
//!
//! Invariant: the result is exactly one cluster, and no stream takes memory beyond its window's
//! limit. Bytes after the stream's end are ignored: the entry's length is rounded up to sectors.

use std::io;

use flate2::{Decompress, FlushDecompress};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::header::Compression;
use crate::refusal::Refusal;

/// The largest window a zstd stream may ask for, as a power of two: 8 MiB, four times the largest
/// cluster.
const ZSTD_WINDOW_BITS_MAX: u32 = 23;

/// Fills `cluster` from the stream that `stored` starts with.
pub(super) fn decompress(
    method: Compression,
    stored: &[u8],
    cluster: &mut [u8],
) -> Result<(), Refusal> {
    let done = match method {
        Compression::Zlib => inflate(stored, cluster),
        Compression::Zstd => unzstd(stored, cluster).unwrap_or(false),
    };
    if done {
        Ok(())
    } else {
        Err(Refusal::CorruptTables("a compressed cluster does not decompress to a cluster"))
    }
}

fn inflate(stored: &[u8], cluster: &mut [u8]) -> bool {
    let mut stream = Decompress::new(false);
    let result = stream.decompress(stored, cluster, FlushDecompress::Finish);
    result.is_ok() && stream.total_out() == cluster.len() as u64
}

fn unzstd(stored: &[u8], cluster: &mut [u8]) -> io::Result<bool> {
    let mut stream = Decoder::new()?;
    stream.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_BITS_MAX))?;
    let mut input = InBuffer::around(stored);
    let mut output = OutBuffer::around(cluster);
    loop {
        let before = (input.pos(), output.pos());
        let hint = stream.run(&mut input, &mut output)?;
        if output.pos() == output.capacity() {
            return Ok(true);
        }
        if hint == 0 || before == (input.pos(), output.pos()) {
            return Ok(false);
        }
    }
}
