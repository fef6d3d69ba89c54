//! A bounded cache of the parts of an image that hold tables.
//!
//! Invariant: at most [`PAGES_MAX`] pages of [`PAGE_BYTES`] are held, whatever the tables' size.
//! Non-goal: content, which is read once and in order.

use std::collections::{HashMap, VecDeque};

use crate::offset::HostOffset;
use crate::refusal::{OpenError, Refusal};
use crate::source::ReadAt;

const PAGE_BYTES: u64 = 64 * 1024;
/// 8 MiB: the tables of 1 TiB of the smallest blocks in use.
const PAGES_MAX: usize = 128;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    pages: HashMap<u64, Box<[u8]>>,
    /// Keys of `pages`, oldest first.
    ages: VecDeque<u64>,
}

impl Pages {
    /// The `N` bytes at `at`, which is a multiple of `N`; `N` divides the page.
    pub fn word<const N: usize>(
        &mut self,
        source: &dyn ReadAt,
        at: HostOffset,
    ) -> Result<[u8; N], OpenError> {
        let (number, inside) = (at.0 / PAGE_BYTES, (at.0 % PAGE_BYTES) as usize);
        if !self.pages.contains_key(&number) {
            self.load(source, number)?;
        }
        let page = &self.pages[&number];
        let word = page.get(inside..inside + N).and_then(|word| word.try_into().ok());
        word.ok_or_else(|| Refusal::Truncated("the end of a table").into())
    }

    fn load(&mut self, source: &dyn ReadAt, number: u64) -> Result<(), OpenError> {
        if self.pages.len() >= PAGES_MAX
            && let Some(oldest) = self.ages.pop_front()
        {
            self.pages.remove(&oldest);
        }
        let at = number * PAGE_BYTES;
        let mut page = vec![0; source.len().saturating_sub(at).min(PAGE_BYTES) as usize];
        read_source(source, HostOffset(at), &mut page)?;
        self.pages.insert(number, page.into());
        self.ages.push_back(number);
        Ok(())
    }
}

/// Reads bytes that are known to lie inside the image.
pub(crate) fn read_source(
    source: &dyn ReadAt,
    at: HostOffset,
    buf: &mut [u8],
) -> Result<(), OpenError> {
    source.read_at(at.0, buf).map_err(|error| OpenError::Source { at: at.0, error })
}

/// The bytes `at..at + length`, or a refusal that the image ends before `what`.
pub(crate) fn read_part(
    source: &dyn ReadAt,
    at: u64,
    length: u64,
    what: &'static str,
) -> Result<Vec<u8>, OpenError> {
    if at.checked_add(length).is_none_or(|end| end > source.len()) {
        return Err(Refusal::Truncated(what).into());
    }
    let mut bytes = vec![0; length as usize];
    read_source(source, HostOffset(at), &mut bytes)?;
    Ok(bytes)
}
