//! Where in an answer the reader of a lane is, whoever reads and whenever that one stops.
//!
//! Invariant: what is read behind an answer's end is the next answer's; where nobody can know how
//! much is yet to come, nothing is read any more.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use shoal_content::CHUNK_BYTES_MAX;
use shoal_swarm::frames::{Answer, Ask};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::{END, Path};
use crate::channel::{Head, Source};
use crate::wire::{self, WireError};

const HEAD_BYTES: u64 = 4;
/// What stands behind a [`Head`] of 0 bytes from a node: the id of who was given the chunk.
const MEMBER_BYTES: u64 = 32;
/// So much of an answer that nobody wants any more is read, so that the lane can be used again: a
/// chunk at most, and the end.
pub(super) const DRAIN_BYTES_MAX: u64 = CHUNK_BYTES_MAX as u64 + 2 * HEAD_BYTES;
const DRAIN_PIECE_BYTES: usize = 16 * 1024;

/// Reads answers from `S`, one after the other.
#[derive(Debug)]
pub(crate) struct Reader<S> {
    stream: S,
    /// Whether the other side is a node.
    node: bool,
    state: State,
    /// Bytes read, and where among them the item at hand ends: behind that a [`Head`] stands.
    taken: u64,
    item_end: u64,
    /// Since when the other side is waited for; nothing while whoever reads does something else.
    waits_since: Option<Instant>,
    /// When something came, where nothing was looked for behind it since.
    left_at: Option<Instant>,
    /// The longest that an answer stood unread here.
    left_longest: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing is asked.
    Idle,
    /// The answer's first byte has not come.
    Asked { chunks: usize },
    /// So many chunks at most are yet to begin.
    Answered { left: usize },
}

impl<S: AsyncRead + Unpin + Send> Reader<S> {
    pub(super) fn new(stream: S, node: bool) -> Self {
        Self {
            stream,
            node,
            state: State::Idle,
            taken: 0,
            item_end: 0,
            waits_since: None,
            left_at: None,
            left_longest: Duration::ZERO,
        }
    }

    fn asked(&mut self, chunks: usize) {
        self.state = State::Asked { chunks };
        self.waits_since = Some(Instant::now());
        (self.left_at, self.left_longest) = (None, Duration::ZERO);
    }

    /// The first byte of the answer; behind any but that for content only the end comes.
    pub(super) async fn answer(&mut self) -> io::Result<u8> {
        let byte = self.read_u8().await?;
        let State::Asked { chunks } = self.state else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let left = if byte == Answer::Content.byte() { chunks } else { 0 };
        self.state = State::Answered { left };
        self.item_end = self.taken;
        Ok(byte)
    }

    /// How many bytes of the answer at hand are yet to come, at most; none where nobody can know.
    pub(super) fn owed(&self) -> Option<u64> {
        match self.state {
            State::Idle => Some(0),
            State::Asked { .. } => None,
            State::Answered { left } => {
                // Less than nothing: a head was read in part.
                let item = self.item_end.checked_sub(self.taken)?;
                let others = left as u64 * (HEAD_BYTES + u64::from(CHUNK_BYTES_MAX));
                Some(item + others + HEAD_BYTES)
            }
        }
    }

    /// For how long nothing came while it was waited for: what this host does with a chunk, or waits
    /// for to keep it, is no silence of the other side's.
    pub(super) fn silence(&self) -> Duration {
        self.waits_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The longest that this host let the answer at hand stand between two reads.
    pub(super) fn stood_unread(&self) -> Duration {
        self.left_longest.max(self.left_at.map_or(Duration::ZERO, |at| at.elapsed()))
    }

    /// Reads the answer to its end.
    ///
    /// # Errors
    /// Where it breaks off, or is longer than [`DRAIN_BYTES_MAX`].
    pub(super) async fn drain(&mut self) -> io::Result<()> {
        let most = self.taken + DRAIN_BYTES_MAX;
        let mut piece = vec![0; DRAIN_PIECE_BYTES];
        loop {
            if self.item_end > most || self.taken > most {
                return Err(io::ErrorKind::InvalidData.into());
            }
            while self.taken < self.item_end {
                let owed = self.item_end - self.taken;
                let bytes = owed.min(DRAIN_PIECE_BYTES as u64) as usize;
                self.read_exact(&mut piece[..bytes]).await?;
            }
            if self.head().await?.is_none() {
                return Ok(());
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Reader<S> {
    /// Asks for so many chunks.
    pub(super) async fn ask(&mut self, message: &Ask, chunks: usize) -> Result<(), WireError> {
        self.asked(chunks);
        wire::write(&mut self.stream, message).await?;
        Ok(self.stream.flush().await?)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Reader<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(at) = this.left_at.take() {
            this.left_longest = this.left_longest.max(at.elapsed());
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, buffer);
        if polled.is_pending() {
            this.waits_since.get_or_insert_with(Instant::now);
        }
        ready!(polled)?;
        let read = buffer.filled().len() - before;
        if read > 0 {
            this.taken += read as u64;
            this.waits_since = None;
            this.left_at = Some(Instant::now());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin + Send> Source for Reader<S> {
    const PATH: Path = Path::Tls;

    async fn head(&mut self) -> io::Result<Option<Head>> {
        let word = self.read_u32().await?;
        if word == END {
            self.state = State::Idle;
            self.item_end = self.taken;
            self.left_at = None;
            return Ok(None);
        }
        let head = Head::from_word(word);
        let named = head == Head::Raw(0) && self.node;
        let bytes = if named { MEMBER_BYTES } else { u64::from(head.bytes()) };
        self.item_end = self.taken + bytes;
        if let State::Answered { left } = &mut self.state {
            *left = left.saturating_sub(1);
        }
        Ok(Some(head))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures::executor::block_on;
    use proptest::prelude::*;

    use super::*;

    /// An answer from a node with such chunks; one of 0 bytes is one that another member has.
    fn answer(heads: &[Head]) -> Vec<u8> {
        let mut bytes = vec![Answer::Content.byte()];
        for &head in heads {
            bytes.extend(head.word().to_be_bytes());
            let named = head == Head::Raw(0);
            let content = if named { MEMBER_BYTES as usize } else { head.bytes() as usize };
            // As hostile as content gets: it looks like ends.
            bytes.extend(std::iter::repeat_n(0xff_u8, content));
        }
        bytes.extend(END.to_be_bytes());
        bytes
    }

    fn reader(bytes: &[u8], chunks: usize) -> Reader<&[u8]> {
        let mut reader = Reader::new(bytes, true);
        reader.asked(chunks);
        reader
    }

    #[test]
    fn a_refusal_ends_at_once_and_the_lane_is_free_again() {
        let bytes = [&[Answer::Busy.byte()][..], &END.to_be_bytes()].concat();
        let mut reader = reader(&bytes, 16);
        assert_eq!(reader.owed(), None);
        assert_eq!(block_on(reader.answer()).unwrap(), Answer::Busy.byte());
        assert_eq!(reader.owed(), Some(HEAD_BYTES));
        assert_eq!(block_on(reader.head()).unwrap(), None);
        assert_eq!(reader.owed(), Some(0));
    }

    #[test]
    fn what_is_left_unread_here_is_no_silence_of_the_other_side() {
        const DISK: Duration = Duration::from_secs(7);
        let (mut far, near) = tokio::io::duplex(64);
        let mut reader = Reader::new(near, false);
        assert_eq!((reader.silence(), reader.stood_unread()), (Duration::ZERO, Duration::ZERO));
        reader.asked(1);
        assert!(reader.waits_since.is_some(), "it is the other side's turn");
        block_on(far.write_all(&[Answer::Content.byte()])).unwrap();
        block_on(reader.answer()).unwrap();
        assert_eq!(reader.silence(), Duration::ZERO);
        // A chunk is being written to the disk meanwhile.
        reader.left_at = reader.left_at.unwrap().checked_sub(DISK);
        assert!(reader.stood_unread() >= DISK);
        let (mut context, mut one) = (Context::from_waker(Waker::noop()), [0]);
        let polled = Pin::new(&mut reader).poll_read(&mut context, &mut ReadBuf::new(&mut one));
        assert!(polled.is_pending());
        assert!(reader.waits_since.is_some(), "now it is waited for");
        assert!(reader.stood_unread() >= DISK, "it was so long in this answer");
        reader.asked(1);
        assert_eq!(reader.stood_unread(), Duration::ZERO);
    }

    #[test]
    fn who_stops_within_a_head_leaves_no_lane() {
        let bytes = answer(&[Head::Raw(5)]);
        let mut reader = reader(&bytes, 1);
        block_on(reader.answer()).unwrap();
        block_on(reader.read_exact(&mut [0; 2])).unwrap();
        assert_eq!(reader.owed(), None);
    }

    #[test]
    fn an_answer_without_an_end_is_not_read_for_ever() {
        let mut bytes = vec![Answer::Content.byte()];
        bytes.resize(1 << 20, 0);
        for node in [false, true] {
            let mut reader = Reader::new(&bytes[..], node);
            reader.asked(16);
            block_on(reader.answer()).unwrap();
            let error = block_on(reader.drain()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(reader.taken <= DRAIN_BYTES_MAX + MEMBER_BYTES + 2 * HEAD_BYTES);
        }
    }

    #[test]
    fn a_frame_longer_than_any_chunk_leaves_no_lane() {
        // One byte less than what stands at an answer's end.
        for word in [END - 1, Head::Zstd(DRAIN_BYTES_MAX as u32 + 1).word()] {
            let mut bytes = vec![Answer::Content.byte()];
            bytes.extend(word.to_be_bytes());
            let mut reader = reader(&bytes, 1);
            block_on(reader.answer()).unwrap();
            assert_eq!(block_on(reader.head()).unwrap(), Some(Head::from_word(word)));
            assert!(reader.owed().unwrap() > DRAIN_BYTES_MAX);
            let error = block_on(reader.drain()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_frame_of_nothing_names_nobody() {
        let bytes = [&answer(&[Head::Zstd(0)])[..], &[7; 40]].concat();
        let mut reader = reader(&bytes, 1);
        block_on(reader.answer()).unwrap();
        assert_eq!(block_on(reader.head()).unwrap(), Some(Head::Zstd(0)));
        assert_eq!(block_on(reader.head()).unwrap(), None);
        assert_eq!(reader.owed(), Some(0));
    }

    fn any_head() -> impl Strategy<Value = Head> {
        prop_oneof![
            Just(Head::Raw(0)),
            (1_u32..5_000).prop_map(Head::Raw),
            (0_u32..5_000).prop_map(Head::Zstd),
        ]
    }

    proptest! {
        #[test]
        fn a_head_is_what_it_was(word in any::<u32>()) {
            prop_assert_eq!(Head::from_word(word).word(), word);
            prop_assert!(Head::from_word(word).bytes() < 1 << 31);
        }

        /// Wherever within an item the reading stopped, the rest leads to the next answer.
        #[test]
        fn a_drained_answer_leaves_the_next_one_whole(
            heads in prop::collection::vec(any_head(), 1..9),
            stop in any::<prop::sample::Index>(),
            part in any::<prop::sample::Index>(),
        ) {
            let mut bytes = answer(&heads);
            let whole = bytes.len() as u64;
            bytes.extend([Answer::Busy.byte(), 7]);
            let mut reader = reader(&bytes, heads.len());
            block_on(reader.answer()).unwrap();
            for &wanted in &heads[..stop.index(heads.len())] {
                prop_assert_eq!(block_on(reader.head()).unwrap(), Some(wanted));
                let item = (reader.item_end - reader.taken) as usize;
                block_on(reader.read_exact(&mut vec![0; item])).unwrap();
            }
            block_on(reader.head()).unwrap();
            let item = (reader.item_end - reader.taken) as usize;
            block_on(reader.read_exact(&mut vec![0; part.index(item + 1)])).unwrap();
            prop_assert!(reader.owed().unwrap() >= whole - reader.taken);
            block_on(reader.drain()).unwrap();
            prop_assert_eq!(reader.owed(), Some(0));
            reader.asked(1);
            prop_assert_eq!(block_on(reader.answer()).unwrap(), Answer::Busy.byte());
            prop_assert_eq!(block_on(reader.read_u8()).unwrap(), 7);
        }

        #[test]
        fn hostile_bytes_end_a_drain(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut reader = reader(&bytes, 3);
            if block_on(reader.answer()).is_ok() && block_on(reader.drain()).is_ok() {
                prop_assert_eq!(reader.owed(), Some(0));
            }
            prop_assert!(reader.taken <= bytes.len() as u64);
        }
    }
}
