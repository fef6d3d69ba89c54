//! What one file system says of its volume: where its files lie, and what is free.
//!
//! Invariants of a [`VolumeMap`]: nothing in it passes the volume; the counts are bounded by
//! [`PIECES_MAX`] and [`FREE_MAX`].

use std::ops::Range;

use super::Stop;

/// Pieces of files that one survey notes at most: 32 bytes each.
pub(super) const PIECES_MAX: usize = 1_000_000;
/// Free ranges that one survey notes at most: 16 bytes each.
pub(super) const FREE_MAX: usize = 1_000_000;

/// What a piece belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    File,
    Directory,
}

/// A run of one file's bytes, or of one directory's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub owner: Owner,
    /// Bytes from the volume's start, later from the disk's.
    pub start: u64,
    /// In bytes, at least 1.
    pub length: u64,
    /// Bytes from the file's start.
    pub position: u64,
}

/// See the module's documentation. Bytes count from the volume's start.
#[derive(Debug, Default)]
pub(super) struct VolumeMap {
    volume_bytes: u64,
    pieces_max: usize,
    free_max: usize,
    pub free: Vec<Range<u64>>,
    pub pieces: Vec<Piece>,
}

impl VolumeMap {
    pub fn new(volume_bytes: u64) -> Self {
        Self { volume_bytes, pieces_max: PIECES_MAX, free_max: FREE_MAX, ..Self::default() }
    }

    /// What earlier volumes of the same disk took counts, too.
    pub fn beside(mut self, pieces: usize, free: usize) -> Self {
        self.pieces_max = self.pieces_max.saturating_sub(pieces);
        self.free_max = self.free_max.saturating_sub(free);
        self
    }

    /// Notes a free range; those that touch the last one extend it.
    pub fn add_free(&mut self, range: Range<u64>) -> Result<(), Stop> {
        if range.start > range.end || range.end > self.volume_bytes {
            return Err(Stop::Malformed);
        }
        if range.is_empty() {
            return Ok(());
        }
        if let Some(last) = self.free.last_mut()
            && last.end == range.start
        {
            last.end = range.end;
            return Ok(());
        }
        if self.free.len() >= self.free_max {
            return Err(Stop::Budget);
        }
        self.free.push(range);
        Ok(())
    }

    /// Notes a piece; one that goes on where the last ended extends it.
    pub fn add_piece(&mut self, piece: Piece) -> Result<(), Stop> {
        let end = piece.start.checked_add(piece.length).ok_or(Stop::Malformed)?;
        if end > self.volume_bytes {
            return Err(Stop::Malformed);
        }
        if piece.length == 0 {
            return Ok(());
        }
        if let Some(last) = self.pieces.last_mut()
            && last.owner == piece.owner
            && last.start + last.length == piece.start
            && piece.position > 0
            && last.position.checked_add(last.length) == Some(piece.position)
        {
            last.length += piece.length;
            return Ok(());
        }
        if self.pieces.len() >= self.pieces_max {
            return Err(Stop::Budget);
        }
        self.pieces.push(piece);
        Ok(())
    }

    /// Notes the zero bits of `bitmap` as free: bit 0 of byte 0 stands for `unit` bytes at
    /// `start`, of `count` bits in all. Gives the number of free units.
    pub fn add_bitmap(
        &mut self,
        bitmap: &[u8],
        start: u64,
        unit: u64,
        count: u64,
    ) -> Result<u64, Stop> {
        let mut free = 0;
        for_each_run(bitmap, count, |run| {
            free += run.end - run.start;
            self.add_free(start + run.start * unit..start + run.end * unit)
        })?;
        Ok(free)
    }

    /// Forgets what is free: the metadata cannot be trusted so far.
    pub fn distrust(&mut self) {
        self.free = Vec::new();
    }
}

/// Calls `with` for each run of zero bits among the first `count`.
fn for_each_run(
    bitmap: &[u8],
    count: u64,
    mut with: impl FnMut(Range<u64>) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let count = count.min(bitmap.len() as u64 * 8);
    let (mut at, mut open) = (0, None);
    while at < count {
        let byte = bitmap[(at / 8) as usize];
        // Whole bytes of one kind at a time: most are.
        let (step, used) = match byte {
            0x00 if at % 8 == 0 && count - at >= 8 => (8, false),
            0xff if at % 8 == 0 && count - at >= 8 => (8, true),
            _ => (1, byte >> (at % 8) & 1 == 1),
        };
        match (open, used) {
            (None, false) => open = Some(at),
            (Some(from), true) => {
                with(from..at)?;
                open = None;
            }
            _ => {}
        }
        at += step;
    }
    open.map_or(Ok(()), |from| with(from..count))
}

/// Sorts `ranges` and joins those that touch or overlap.
pub(super) fn join(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, kept| {
        let touches = next.start <= kept.end;
        if touches {
            kept.end = kept.end.max(next.end);
        }
        touches
    });
}

/// What of `from` is not in `without`; both sorted and disjoint.
pub(super) fn subtract(from: &[Range<u64>], without: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::with_capacity(from.len());
    let mut next = 0;
    for range in from {
        let mut start = range.start;
        while without.get(next).is_some_and(|hole| hole.end <= start) {
            next += 1;
        }
        for hole in without[next..].iter().take_while(|hole| hole.start < range.end) {
            if hole.start > start {
                left.push(start..hole.start);
            }
            start = start.max(hole.end);
        }
        if start < range.end {
            left.push(start..range.end);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        proptest::collection::vec((0..200u64, 1..30u64), 0..12).prop_map(|pairs| {
            let mut ranges: Vec<_> = pairs.into_iter().map(|(at, n)| at..at + n).collect();
            join(&mut ranges);
            ranges
        })
    }

    proptest! {
        #[test]
        fn subtracting_leaves_what_is_only_in_the_first(a in ranges(), b in ranges()) {
            let left = subtract(&a, &b);
            let has = |ranges: &[Range<u64>], at: u64| ranges.iter().any(|r| r.contains(&at));
            for at in 0..240 {
                prop_assert_eq!(has(&left, at), has(&a, at) && !has(&b, at));
            }
            prop_assert!(left.windows(2).all(|pair| pair[0].end <= pair[1].start));
        }

        #[test]
        fn a_bitmap_gives_its_zero_bits(
            bitmap in proptest::collection::vec(prop_oneof![Just(0u8), Just(255), any::<u8>()], 0..20),
            count in 0..170u64,
        ) {
            let mut map = VolumeMap::new(1 << 20);
            let free = map.add_bitmap(&bitmap, 100, 10, count).unwrap();
            let count = count.min(bitmap.len() as u64 * 8);
            let zero = |at: u64| bitmap[at as usize / 8] >> (at % 8) & 1 == 0;
            prop_assert_eq!(free, (0..count).filter(|&at| zero(at)).count() as u64);
            for at in 0..count {
                let inside = map.free.iter().any(|range| range.contains(&(100 + at * 10 + 5)));
                prop_assert_eq!(inside, zero(at));
            }
        }
    }

    #[test]
    fn pieces_that_go_on_are_joined_and_those_past_the_end_refused() {
        let mut map = VolumeMap::new(100);
        let piece = |start, length, position| Piece { owner: Owner::File, start, length, position };
        map.add_piece(piece(0, 10, 0)).unwrap();
        map.add_piece(piece(10, 10, 10)).unwrap();
        map.add_piece(piece(20, 10, 0)).unwrap();
        let directory = Piece { owner: Owner::Directory, ..piece(30, 10, 10) };
        map.add_piece(directory).unwrap();
        assert_eq!(map.pieces, [piece(0, 20, 0), piece(20, 10, 0), directory]);
        assert!(matches!(map.add_piece(piece(95, 10, 0)), Err(Stop::Malformed)));
        assert!(matches!(map.add_free(95..105), Err(Stop::Malformed)));
    }
}
