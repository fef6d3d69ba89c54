//! Several ranges of one blob in one answer: `multipart/byteranges` (RFC 9110, sections 14.6 and 15.3.7.2).
//!
//! Clients that get of a layer only the files that they lack (zstd:chunked, eStargz) name up to a thousand
//! ranges in one request, and take all of the layer where a registry gives nothing else.
//! Invariants: there is one part for each range, in the order of the request; the length that is
//! announced is that of what is sent; the boundary is in no content, since nobody could know it.
//! Non-goals: which ranges; see `range`. Disks as files, and blobs that an upstream is asked for, come
//! whole or in one range.

use std::future::ready;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use shoal_content::ObjectKey;

use crate::store::{BlobStore, ByteStream, StoreError};

/// Of a boundary, before encoding.
const BOUNDARY_BYTES: usize = 16;

/// What is sent of a blob.
#[derive(Debug)]
pub struct ByteRanges {
    boundary: String,
    /// Each with what stands before it.
    parts: Vec<(Bytes, Range<u64>)>,
    end: Bytes,
}

impl ByteRanges {
    /// Of a blob of `length` bytes.
    pub fn new(ranges: Vec<Range<u64>>, length: u64) -> Self {
        let boundary = hex::encode(rand::random::<[u8; BOUNDARY_BYTES]>());
        let head = |(number, range): (usize, Range<u64>)| {
            let before = if number == 0 { "" } else { "\r\n" };
            let (first, last) = (range.start, range.end.saturating_sub(1));
            let head = format!(
                "{before}--{boundary}\r\ncontent-type: application/octet-stream\r\n\
                 content-range: bytes {first}-{last}/{length}\r\n\r\n"
            );
            (Bytes::from(head), range)
        };
        let parts = ranges.into_iter().enumerate().map(head).collect();
        let end = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        Self { boundary, parts, end }
    }

    pub fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// Of the whole body, in bytes.
    pub fn content_length(&self) -> u64 {
        let of_part = |(head, range): &(Bytes, Range<u64>)| {
            head.len() as u64 + range.end.saturating_sub(range.start)
        };
        self.parts.iter().map(of_part).sum::<u64>() + self.end.len() as u64
    }

    /// The body. One range is read at a time, and none before it is sent, but for the first.
    ///
    /// # Errors
    /// Where the first range cannot be read; later errors end the stream.
    pub async fn stream(
        self,
        store: Arc<dyn BlobStore>,
        object: ObjectKey,
    ) -> Result<ByteStream, StoreError> {
        let end = stream::once(ready(Ok(self.end)));
        let mut parts = self.parts.into_iter();
        let Some(first) = parts.next() else { return Ok(end.boxed()) };
        let first = part(&*store, object, first).await?;
        let others = stream::iter(parts).then(move |next| {
            let store = Arc::clone(&store);
            async move { part(&*store, object, next).await }
        });
        Ok(stream::once(ready(Ok(first))).chain(others).try_flatten().chain(end).boxed())
    }
}

async fn part(
    store: &dyn BlobStore,
    object: ObjectKey,
    (head, range): (Bytes, Range<u64>),
) -> Result<ByteStream, StoreError> {
    let content = store.get(object, range).await?;
    Ok(stream::once(ready(Ok(head))).chain(content).boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announced_length_counts_boundaries_and_heads() {
        let ranges = ByteRanges::new(vec![0..1, 4..14, 90..100], 100);
        let boundary = ranges.content_type().rsplit('=').next().unwrap().to_owned();
        assert_eq!(boundary.len(), 2 * BOUNDARY_BYTES);
        let body = format!(
            "--{boundary}\r\ncontent-type: application/octet-stream\r\ncontent-range: bytes 0-0/100\r\n\r\n\
             0\r\n--{boundary}\r\ncontent-type: application/octet-stream\r\ncontent-range: bytes 4-13/100\r\n\r\n\
             0123456789\r\n--{boundary}\r\ncontent-type: application/octet-stream\r\n\
             content-range: bytes 90-99/100\r\n\r\n0123456789\r\n--{boundary}--\r\n"
        );
        assert_eq!(ranges.content_length(), body.len() as u64);
        assert_ne!(ByteRanges::new(vec![0..1, 2..3], 3).content_type(), ranges.content_type());
    }
}
