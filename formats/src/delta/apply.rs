//! Reads a bundle from front to back and makes its chunks.

use std::io::{ErrorKind, Read};

use shoal_content::{Recipe, RecipeId};
use zstd::zstd_safe::{DCtx, get_error_name};

use super::index::Runs;
use super::{
    DeltaError, FRAME_BYTES_MAX, HEADER_BYTES, INDEX_BYTES_MAX, MAGIC, REFERENCE_BYTES_MAX,
    SEGMENT_BYTES_MAX, SEGMENT_HEADER_BYTES, VERSION,
};
use crate::bytes::Little;
use crate::pack::SinkError;

/// Appends the content of a chunk of the old version.
pub type ReadOld<'a> = dyn FnMut(u32, &mut Vec<u8>) -> Result<(), SinkError> + 'a;

/// Takes the content of a chunk of the new version.
pub type WriteNew<'a> = dyn FnMut(u32, &[u8]) -> Result<(), SinkError> + 'a;

/// What came of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    pub chunks: u32,
    /// Content of them, in bytes.
    pub content_bytes: u64,
}

/// Makes the chunks of `new` that `bundle` has and `wants` asks for, from those of `old`.
///
/// `read_old` appends the content of an old chunk; `write_new` takes a chunk that was compared with
/// its id. Segments of which nothing is wanted are passed over.
///
/// # Errors
/// What was written before the error is sound.
pub fn apply_delta(
    bundle: &mut dyn Read,
    old: (RecipeId, &Recipe),
    new: (RecipeId, &Recipe),
    wants: &dyn Fn(u32) -> bool,
    read_old: &mut ReadOld<'_>,
    write_new: &mut WriteNew<'_>,
) -> Result<Applied, DeltaError> {
    let mut header = [0; HEADER_BYTES];
    bundle.read_exact(&mut header).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => DeltaError::Magic,
        _ => DeltaError::Read(error),
    })?;
    check_header(&header, old.0, new.0)?;
    let mut applied = Applied::default();
    for number in 0.. {
        let Some(segment) = Segment::read(bundle, number, old.1, new.1)? else { break };
        if !segment.makes.iter().any(|chunk| wants(*chunk)) {
            continue;
        }
        let mut reference = Vec::with_capacity(segment.refers_bytes);
        for &chunk in &segment.refers {
            let start = reference.len();
            read_old(chunk, &mut reference).map_err(DeltaError::Chunk)?;
            let chunk = &old.1.chunks()[chunk as usize];
            if !chunk.id.verifies(&reference[start..]) {
                return Err(DeltaError::Hash(chunk.id));
            }
        }
        let content = segment.decompress(&reference)?;
        drop(reference);
        let mut rest = content.as_slice();
        for &at in &segment.makes {
            let chunk = &new.1.chunks()[at as usize];
            let (bytes, behind) = rest.split_at(chunk.length as usize);
            rest = behind;
            if !wants(at) {
                continue;
            }
            if !chunk.id.verifies(bytes) {
                return Err(DeltaError::Hash(chunk.id));
            }
            write_new(at, bytes).map_err(DeltaError::Sink)?;
            applied.chunks += 1;
            applied.content_bytes += bytes.len() as u64;
        }
    }
    Ok(applied)
}

fn check_header(
    header: &[u8; HEADER_BYTES],
    old: RecipeId,
    new: RecipeId,
) -> Result<(), DeltaError> {
    let rest = header.strip_prefix(MAGIC).ok_or(DeltaError::Magic)?;
    if rest[0] != VERSION {
        return Err(DeltaError::Version(rest[0]));
    }
    let id = |at: usize| RecipeId::from_bytes(crate::bytes::array(rest, at));
    let (from, to) = (id(1), id(33));
    if (from, to) == (old, new) { Ok(()) } else { Err(DeltaError::Recipes { old: from, new: to }) }
}

struct Segment {
    number: u32,
    refers: Vec<u32>,
    refers_bytes: usize,
    makes: Vec<u32>,
    makes_bytes: usize,
    frame: Vec<u8>,
}

impl Segment {
    /// `None` at the bundle's end.
    fn read(
        bundle: &mut dyn Read,
        number: u32,
        old: &Recipe,
        new: &Recipe,
    ) -> Result<Option<Self>, DeltaError> {
        let malformed = |what| DeltaError::Malformed { segment: number, what };
        let mut header = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        let read = (&mut *bundle).take(SEGMENT_HEADER_BYTES as u64).read_to_end(&mut header);
        match read.map_err(DeltaError::Read)? {
            0 => return Ok(None),
            SEGMENT_HEADER_BYTES => {}
            _ => return Err(malformed("it ends in its header")),
        }
        let length = |at| Little(&header).u32(at) as usize;
        let (index_bytes, frame_bytes) = (length(0), length(4));
        if index_bytes > INDEX_BYTES_MAX || frame_bytes > FRAME_BYTES_MAX {
            return Err(malformed("it is longer than any segment"));
        }
        let mut exactly = |length: usize| {
            let mut bytes = Vec::new();
            let read = (&mut *bundle).take(length as u64).read_to_end(&mut bytes);
            match read.map_err(DeltaError::Read)? {
                read if read == length => Ok(bytes),
                _ => Err(malformed("it ends early")),
            }
        };
        let (index, frame) = (exactly(index_bytes)?, exactly(frame_bytes)?);
        let mut runs = Runs(&index);
        let wrong = || malformed("its index names what is not there, or too much");
        let (refers, refers_bytes) = runs.chunks(old, REFERENCE_BYTES_MAX).ok_or_else(wrong)?;
        let (makes, makes_bytes) = runs.chunks(new, SEGMENT_BYTES_MAX).ok_or_else(wrong)?;
        if !runs.0.is_empty() {
            return Err(malformed("bytes follow its index"));
        }
        Ok(Some(Self { number, refers, refers_bytes, makes, makes_bytes, frame }))
    }

    fn decompress(&self, reference: &[u8]) -> Result<Vec<u8>, DeltaError> {
        let refused = |reason: &str| DeltaError::Decompress {
            segment: self.number,
            reason: reason.to_owned(),
        };
        let mut context = DCtx::create();
        context.ref_prefix(reference).map_err(|code| refused(get_error_name(code)))?;
        // No more than the index says, whatever the frame says of itself.
        let mut content = Vec::with_capacity(self.makes_bytes);
        let made = context.decompress(&mut content, &self.frame);
        made.map_err(|code| refused(get_error_name(code)))?;
        if content.len() == self.makes_bytes {
            Ok(content)
        } else {
            Err(refused("it is shorter than its chunks"))
        }
    }
}
