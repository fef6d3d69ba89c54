//! A chunk as it is kept and sent: as it is, or as one zstd frame.
//!
//! Invariants: a [`ZstdFrame`] says of itself that it is one frame, of content that is exactly as long
//! as the chunk, and needs no window beside that content; so decompressing takes the memory of a chunk,
//! whatever a stranger claims. Whether bytes pass for a frame, and what they decompress to, depends
//! on nothing but the bytes: what one peer found good all do, and nobody is banned for passing it on.
//! Non-goal: whether the content is the chunk's, which only its hash says; see `request`.

use std::io;

use bytes::Bytes;
use shoal_content::{CHUNK_BYTES_MAX, Chunk, Encoding};
use zstd::zstd_safe;

const MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// Bits of the frame header's descriptor (RFC 8878, section 3.1.1.1.1): the content is the window, and
/// the id of a dictionary follows.
const SINGLE_SEGMENT: u8 = 1 << 5;
const DICTIONARY: u8 = 0b11;
/// Fast, since a line waits: a chunk takes about a millisecond.
const LEVEL: i32 = 1;

/// One zstd frame, shorter than the content that it says it has. It may be damaged behind its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZstdFrame {
    bytes: Bytes,
    content_bytes: u32,
}

impl ZstdFrame {
    /// `bytes` as the frame of a chunk with so many bytes of content. Nothing where they are none, or
    /// one of another length, with anything behind it, with a window or a dictionary of its own, or
    /// not shorter than the content.
    pub fn parse(bytes: Bytes, content_bytes: u32) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let descriptor = *rest.first()?;
        let plain = *magic == MAGIC
            && descriptor & SINGLE_SEGMENT != 0
            && descriptor & DICTIONARY == 0
            && content_bytes <= CHUNK_BYTES_MAX
            && bytes.len() < content_bytes as usize;
        if !plain {
            return None;
        }
        let claimed = zstd_safe::get_frame_content_size(&bytes).ok().flatten();
        let length = zstd_safe::find_frame_compressed_size(&bytes).ok();
        let whole = claimed == Some(u64::from(content_bytes)) && length == Some(bytes.len());
        whole.then_some(Self { bytes, content_bytes })
    }

    /// The frame of a chunk, where it is at least a tenth shorter.
    pub(crate) fn compress(content: &[u8]) -> Option<Self> {
        let content_bytes = u32::try_from(content.len()).ok()?;
        let bytes = zstd::bulk::compress(content, LEVEL).ok()?;
        let frame = Self::parse(bytes.into(), content_bytes)?;
        saves_a_tenth(frame.bytes.len() as u64, content_bytes).then_some(frame)
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// As many bytes as the chunk has.
    ///
    /// # Errors
    /// Where the frame is damaged.
    pub fn content(&self) -> io::Result<Bytes> {
        let length = self.content_bytes as usize;
        let mut content = Vec::with_capacity(length);
        let mut decompressor = zstd::bulk::Decompressor::new()?;
        decompressor.decompress_to_buffer(&self.bytes, &mut content)?;
        if content.len() != length {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(content.into())
    }
}

/// A chunk, as a store has it and as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    Raw(Bytes),
    Zstd(ZstdFrame),
}

impl Stored {
    /// The chunk's own bytes.
    pub fn content_bytes(&self) -> u64 {
        match self {
            Self::Raw(content) => content.len() as u64,
            Self::Zstd(frame) => u64::from(frame.content_bytes),
        }
    }

    /// Those that are sent.
    pub fn wire_bytes(&self) -> u64 {
        match self {
            Self::Raw(content) => content.len() as u64,
            Self::Zstd(frame) => frame.bytes.len() as u64,
        }
    }
}

/// Whether it is worth compressing `chunk` to send it: whoever stored it found out.
pub(crate) fn is_worth(chunk: &Chunk) -> bool {
    match chunk.encoding {
        Encoding::Raw => false,
        Encoding::Zstd { stored } => saves_a_tenth(u64::from(stored), chunk.length),
    }
}

fn saves_a_tenth(stored: u64, content_bytes: u32) -> bool {
    stored * 10 <= u64::from(content_bytes) * 9
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LENGTH: u32 = 100_000;

    fn text() -> Vec<u8> {
        (0..LENGTH).map(|at| ((at / 7) ^ (at >> 9)) as u8).collect()
    }

    fn frame(of: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(of, 3).unwrap()
    }

    fn parsed(bytes: Vec<u8>) -> Option<ZstdFrame> {
        ZstdFrame::parse(bytes.into(), LENGTH)
    }

    /// What is made of a frame that [`parsed`] takes.
    fn content(bytes: Vec<u8>) -> Option<Bytes> {
        parsed(bytes)?.content().ok()
    }

    #[test]
    fn what_nodes_store_and_what_is_compressed_here_comes_back() {
        for length in [17, 1_000, 65_536, LENGTH, CHUNK_BYTES_MAX] {
            let text: Vec<u8> = text().into_iter().cycle().take(length as usize).collect();
            for level in [1, 3, 9, 19] {
                let bytes = zstd::bulk::compress(&text, level).unwrap();
                if bytes.len() >= text.len() {
                    continue;
                }
                let frame = ZstdFrame::parse(bytes.into(), length).expect("one of ours");
                assert!(frame.content().unwrap() == text);
            }
        }
        let made = ZstdFrame::compress(&text()).unwrap();
        assert!(made.content().unwrap() == text());
        let sent = Stored::Zstd(made);
        assert_eq!(sent.content_bytes(), u64::from(LENGTH));
        assert!(sent.wire_bytes() < u64::from(LENGTH) / 2);
    }

    #[test]
    fn what_shrinks_by_less_than_a_tenth_is_left_as_it_is() {
        let mut noise = vec![0; LENGTH as usize];
        rand::fill(&mut noise[..]);
        assert_eq!(ZstdFrame::compress(&noise), None);
        noise[..LENGTH as usize / 20].fill(0);
        assert_eq!(ZstdFrame::compress(&noise), None);
        noise[..LENGTH as usize / 5].fill(0);
        assert!(ZstdFrame::compress(&noise).is_some());
    }

    #[test]
    fn a_frame_of_another_length_or_with_more_beside_it_is_none() {
        let length = LENGTH as usize;
        let good = frame(&text());
        assert!(content(good.clone()).is_some());
        assert_eq!(parsed(Vec::new()), None);
        assert_eq!(parsed(text()), None, "not zstd at all");
        // A bomb: a few bytes of a hundred MB.
        assert_eq!(parsed(frame(&vec![0; 100 << 20])), None);
        assert_eq!(parsed(frame(&text()[1..])), None, "too short");
        assert_eq!(parsed(frame(&[text(), vec![0]].concat())), None, "too long");
        assert_eq!(parsed([good.clone(), vec![0]].concat()), None, "garbage behind it");
        let halves = [frame(&text()[..length / 2]), frame(&text()[length / 2..])].concat();
        assert_eq!(parsed(halves), None, "two frames");
        assert_eq!(parsed(good[..good.len() - 1].to_vec()), None, "cut off");
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 7][..], &good].concat();
        assert_eq!(parsed(skippable), None);
        let mut named = good;
        named[4] |= 1;
        assert_eq!(parsed(named), None, "a dictionary");
        assert_eq!(ZstdFrame::parse(frame(b"incompressible").into(), 14), None, "it saves nothing");
        let huge = vec![0; CHUNK_BYTES_MAX as usize + 1];
        assert_eq!(ZstdFrame::parse(frame(&huge).into(), CHUNK_BYTES_MAX + 1), None);
    }

    /// As streams are: their window is told, and may be as long as 2 GiB.
    #[test]
    fn a_frame_with_a_window_of_its_own_is_none() {
        let stream = zstd::stream::encode_all(&text()[..], 3).unwrap();
        assert_eq!(stream[4] & SINGLE_SEGMENT, 0);
        assert_eq!(parsed(stream), None);
        // With the window's byte at its most, and the content's length behind it.
        let mut wide = MAGIC.to_vec();
        wide.extend([0b1000_0000, 0xff]);
        wide.extend(LENGTH.to_le_bytes());
        wide.extend([1, 0, 0]);
        assert_eq!(parsed(wide), None);
    }

    /// The header says the right length, the blocks another: a block of one repeated byte.
    #[test]
    fn a_frame_whose_blocks_give_more_or_less_than_it_says_has_no_content() {
        for given in [LENGTH - 1, LENGTH, LENGTH + 1] {
            let mut bytes = MAGIC.to_vec();
            bytes.push(0b1010_0000);
            bytes.extend(LENGTH.to_le_bytes());
            // The last block, of kind RLE.
            let block = given << 3 | 1 << 1 | 1;
            bytes.extend(&block.to_le_bytes()[..3]);
            bytes.push(7);
            let found = content(bytes);
            assert_eq!(found.is_some(), given == LENGTH, "{given} bytes");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_the_content_is_as_long_as_the_chunk(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = frame(&text());
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Some(content) = content(bytes) {
                prop_assert_eq!(content.len(), LENGTH as usize);
            }
        }
    }
}
