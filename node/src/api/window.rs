//! The part of a list that an answer shows, and how much there is of all.
//!
//! Non-goal: the list itself; where it may be long, [`Selection`] takes its items one after another.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use shoal_api::Pagination;

const PAGE_SIZE_DEFAULT: u64 = 20;
pub const PAGE_SIZE_MAX: u64 = 500;

/// Which part of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    page: u64,
    page_size: u64,
}

impl Window {
    pub fn new(page: Option<u64>, page_size: Option<u64>) -> Self {
        let page_size = page_size.unwrap_or(PAGE_SIZE_DEFAULT).clamp(1, PAGE_SIZE_MAX);
        Self { page: page.unwrap_or(1).max(1), page_size }
    }

    /// How many items it shows at most.
    pub fn size(self) -> usize {
        self.page_size as usize
    }

    /// How many items come before it.
    pub fn skipped(self) -> u64 {
        (self.page - 1).saturating_mul(self.page_size)
    }

    /// Where it is in a list of so many items.
    pub fn among(self, total_count: u64) -> Pagination {
        let Self { page, page_size } = self;
        let total_pages = total_count.div_ceil(page_size);
        Pagination { page, page_size, total_pages, total_count }
    }

    /// What of `all` is in it, and where that is.
    pub fn of<T>(self, all: Vec<T>) -> (Vec<T>, Pagination) {
        let total_count = all.len() as u64;
        let skip = self.skipped().min(total_count) as usize;
        let shown = all.into_iter().skip(skip).take(self.size()).collect();
        (shown, self.among(total_count))
    }
}

/// Chooses what a window shows of items that come in any order, and holds no more of them than end with
/// it: a page's worth for the first page.
#[derive(Debug)]
pub struct Selection<T> {
    window: Window,
    /// The last one first, so that it goes when an earlier one comes.
    held: BinaryHeap<Held<T>>,
    count: u64,
}

/// An item by its rank, and of equal ones by when it came.
#[derive(Debug)]
struct Held<T> {
    rank: (u64, u64),
    item: T,
}

impl<T> PartialEq for Held<T> {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl<T> Eq for Held<T> {}

impl<T> PartialOrd for Held<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Held<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.cmp(&other.rank)
    }
}

impl<T> Selection<T> {
    pub fn new(window: Window) -> Self {
        Self { window, held: BinaryHeap::new(), count: 0 }
    }

    /// How many items there were so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Counts an item that no page shows.
    pub fn pass(&mut self) {
        self.count += 1;
    }

    /// An item; those of lower rank come first, and of equal rank those that came first.
    pub fn offer(&mut self, rank: u64, item: T) {
        let rank = (rank, self.count);
        self.count += 1;
        let end = self.window.skipped().saturating_add(self.window.page_size);
        if (self.held.len() as u64) < end {
            self.held.push(Held { rank, item });
        } else if let Some(mut last) = self.held.peek_mut()
            && rank < last.rank
        {
            *last = Held { rank, item };
        }
    }

    /// What the window shows, in order, and where it is.
    pub fn finish(self) -> (Vec<T>, Pagination) {
        let Self { window, held, count } = self;
        let sorted = held.into_sorted_vec();
        let skip = window.skipped().min(sorted.len() as u64) as usize;
        let shown = sorted.into_iter().skip(skip).map(|held| held.item).collect();
        (shown, window.among(count))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_window_past_the_end_is_empty_and_counts_all() {
        let (rows, pagination) = Window::new(Some(2), Some(2)).of(vec![1, 2, 3]);
        assert_eq!((rows, pagination.total_pages, pagination.total_count), (vec![3], 2, 3));
        let (rows, pagination) = Window::new(Some(u64::MAX), None).of(vec![1, 2, 3]);
        assert!(rows.is_empty() && pagination.total_count == 3);
        let (rows, pagination) = Window::new(Some(0), Some(0)).of(vec![1, 2]);
        assert_eq!((rows, pagination.page, pagination.page_size), (vec![1], 1, 1));
    }

    proptest! {
        #[test]
        fn a_selection_shows_what_a_window_of_the_sorted_list_does(
            ranks in prop::collection::vec(0u64..8, 0..60),
            page in 0u64..6,
            size in 0u64..20,
        ) {
            let window = Window::new(Some(page), Some(size));
            let mut selection = Selection::new(window);
            let mut all: Vec<(u64, usize)> = Vec::new();
            for (at, rank) in ranks.into_iter().enumerate() {
                selection.offer(rank, (rank, at));
                all.push((rank, at));
                let end = window.skipped() + window.size() as u64;
                prop_assert!(selection.held.len() as u64 <= end);
            }
            all.sort_unstable();
            prop_assert_eq!(selection.finish(), window.of(all));
        }
    }
}
