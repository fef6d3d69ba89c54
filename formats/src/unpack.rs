//! Decompresses blocks of an image: clusters of qcow2, grains of VMDK, many of them on all cores.
//!
//! Invariants: a block is exactly as long as it has to be, or it is refused; no stream takes memory
//! beyond its window's limit; a [`Batch`] holds at most [`BATCH_BYTES`] and one block of compressed
//! bytes. Of several broken blocks the first in the guest's order is named, on any number of cores.
//! Non-goal: finding the bytes.

use std::io;
use std::slice::IterMut;
use std::sync::{Mutex, PoisonError};
use std::thread;

use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::refusal::{OpenError, Refusal};

/// The largest window a zstd stream may ask for, as a power of two: 8 MiB, four times the largest
/// cluster.
const ZSTD_WINDOW_BITS_MAX: u32 = 23;
/// Compressed bytes that are held before they are decompressed together.
const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// For fewer blocks a second thread costs more than it brings.
const SHARE_BLOCKS_MIN: usize = 4;

/// How a block is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// RFC 1951. The stream may go on behind the block.
    Deflate,
    /// RFC 1950, to the end of the stream.
    Zlib,
    Zstd,
}

impl Method {
    const fn refusal(self) -> Refusal {
        Refusal::CorruptTables(match self {
            Self::Zlib => "a compressed grain does not decompress to a grain",
            Self::Deflate | Self::Zstd => "a compressed cluster does not decompress to a cluster",
        })
    }
}

/// One thread's decompressors, made when they are first needed.
#[derive(Default)]
pub(crate) struct Unpacker {
    inflate: Option<(Method, Decompress)>,
    unzstd: Option<Decoder<'static>>,
}

impl Unpacker {
    /// Decompresses what `stored` starts with into `block`, of which the first `needed` bytes must be
    /// there; the others may then be anything.
    pub fn unpack(
        &mut self,
        method: Method,
        stored: &[u8],
        block: &mut [u8],
        needed: usize,
    ) -> Result<(), Refusal> {
        let length = match method {
            Method::Deflate | Method::Zlib => self.inflate(method, stored, block),
            Method::Zstd => self.unzstd(stored, block).ok(),
        };
        if length.is_some_and(|length| length >= needed) { Ok(()) } else { Err(method.refusal()) }
    }

    fn inflate(&mut self, method: Method, stored: &[u8], block: &mut [u8]) -> Option<usize> {
        let zlib = method == Method::Zlib;
        let known = self.inflate.take().filter(|(known, _)| *known == method);
        let (_, mut stream) = known.unwrap_or_else(|| (method, Decompress::new(zlib)));
        stream.reset(zlib);
        let status = stream.decompress(stored, block, FlushDecompress::Finish);
        let length = stream.total_out() as usize;
        self.inflate = Some((method, stream));
        match status {
            Ok(Status::StreamEnd) => Some(length),
            Ok(_) if !zlib => Some(length),
            _ => None,
        }
    }

    fn unzstd(&mut self, stored: &[u8], block: &mut [u8]) -> io::Result<usize> {
        let stream = match &mut self.unzstd {
            Some(stream) => {
                stream.reinit()?;
                stream
            }
            none => {
                let mut stream = Decoder::new()?;
                stream.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_BITS_MAX))?;
                none.insert(stream)
            }
        };
        let mut input = InBuffer::around(stored);
        let mut output = OutBuffer::around(block);
        loop {
            let before = (input.pos(), output.pos());
            let hint = stream.run(&mut input, &mut output)?;
            let is_stuck = before == (input.pos(), output.pos());
            match hint {
                // The frame is through, and its checksum was right.
                0 => return Ok(output.pos()),
                _ if is_stuck => return Err(io::ErrorKind::InvalidData.into()),
                _ => {}
            }
        }
    }
}

/// A whole block that is read, and where it belongs.
struct Block<'a> {
    guest: u64,
    method: Method,
    stored: Vec<u8>,
    out: &'a mut [u8],
}

/// Whole blocks that are decompressed together.
#[derive(Default)]
pub(crate) struct Batch<'a> {
    blocks: Vec<Block<'a>>,
    stored_bytes: usize,
}

impl<'a> Batch<'a> {
    /// `stored` starts with what becomes all of `out`, which the guest sees at `guest`; it is there at
    /// the latest after [`finish`](Self::finish).
    ///
    /// # Errors
    /// The guest byte at which the first broken block starts, and what is wrong with it.
    pub fn add(
        &mut self,
        guest: u64,
        method: Method,
        stored: Vec<u8>,
        out: &'a mut [u8],
    ) -> Result<(), (u64, OpenError)> {
        self.stored_bytes += stored.len();
        self.blocks.push(Block { guest, method, stored, out });
        if self.stored_bytes < BATCH_BYTES { Ok(()) } else { self.finish() }
    }

    /// # Errors
    /// As [`add`](Self::add).
    pub fn finish(&mut self) -> Result<(), (u64, OpenError)> {
        self.stored_bytes = 0;
        let mut blocks = std::mem::take(&mut self.blocks);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = (blocks.len() / SHARE_BLOCKS_MIN).clamp(1, cores);
        // Each takes a block when it is done with one.
        let queue = Mutex::new(blocks.iter_mut());
        let broken = thread::scope(|scope| {
            let work = || unpack_all(&queue);
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            let others = others.into_iter();
            let others = others.map(|it| it.join().expect("decompressing does not panic"));
            std::iter::once(own).chain(others).flatten().min_by_key(|&(guest, _)| guest)
        });
        broken.map_or(Ok(()), |(guest, refusal)| Err((guest, refusal.into())))
    }
}

/// Gives the broken block at which it stopped, if there was one: all before it were taken.
fn unpack_all(queue: &Mutex<IterMut<'_, Block<'_>>>) -> Option<(u64, Refusal)> {
    let mut unpacker = Unpacker::default();
    loop {
        let block = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Block { guest, method, stored, out } = block?;
        let needed = out.len();
        if let Err(refusal) = unpacker.unpack(*method, stored, out, needed) {
            return Some((*guest, refusal));
        }
    }
}
