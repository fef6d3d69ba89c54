//! `Range` of a GET of a blob or a disk (RFC 9110, section 14.1.2): one range, several of them, or the
//! whole; and `Content-Range` of an upload's part, which has no unit (distribution-spec).

use std::ops::Range;

/// The most ranges in one answer: as many as containers' tools ask for at once.
const RANGES_MAX: usize = 1024;

/// What a request asks for of `length` bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    Whole,
    Part(Range<u64>),
    /// 416.
    Unsatisfiable,
}

/// The first and the last byte that a part brings.
pub fn content_range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-')?;
    let number = |text: &str| digits(text)?.parse::<u64>().ok();
    Some((number(first.trim())?, number(last.trim())?))
}

/// An absent, malformed or multiple range means the whole, as the RFC lets a server choose.
pub fn wanted(header: Option<&str>, length: u64) -> Wanted {
    header.and_then(in_bytes).map_or(Wanted::Whole, |text| one(text, length))
}

/// The ranges of a header that names at least two, each of them satisfiable, in ascending order and
/// apart, at most [`RANGES_MAX`]; `None` for any other, which [`wanted`] decides about. What overlaps or
/// goes back and forth would have more sent than there is.
pub fn several(header: Option<&str>, length: u64) -> Option<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for text in in_bytes(header?)?.split(',') {
        let Wanted::Part(range) = one(text.trim(), length) else { return None };
        let before = ranges.last().map_or(0, |last| last.end);
        if range.start < before || ranges.len() == RANGES_MAX {
            return None;
        }
        ranges.push(range);
    }
    (ranges.len() > 1).then_some(ranges)
}

/// What is said of bytes. The unit's case says nothing (RFC 9110, section 14.1).
fn in_bytes(header: &str) -> Option<&str> {
    let (unit, text) = header.split_once('=')?;
    unit.eq_ignore_ascii_case("bytes").then_some(text)
}

fn one(text: &str, length: u64) -> Wanted {
    let Some((first, last)) = text.split_once('-') else { return Wanted::Whole };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        return match position(last) {
            Some(0) => Wanted::Unsatisfiable,
            Some(suffix) if length > 0 => Wanted::Part(length.saturating_sub(suffix)..length),
            Some(_) => Wanted::Unsatisfiable,
            None => Wanted::Whole,
        };
    }
    let Some(first) = position(first) else { return Wanted::Whole };
    let end = match last {
        "" => length,
        last => match position(last) {
            Some(last) if last < first => return Wanted::Unsatisfiable,
            Some(last) => last.saturating_add(1).min(length),
            None => return Wanted::Whole,
        },
    };
    if first >= length { Wanted::Unsatisfiable } else { Wanted::Part(first..end) }
}

/// A position has digits and nothing else: no sign, no blanks.
fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

/// One that is too large for a number is beyond every end.
fn position(text: &str) -> Option<u64> {
    digits(text).map(|text| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clamped_and_impossible_ones_refused() {
        let of_ten = |header| wanted(Some(header), 10);
        assert_eq!(wanted(None, 10), Wanted::Whole);
        assert_eq!(of_ten("bytes=0-3"), Wanted::Part(0..4));
        assert_eq!(of_ten("bytes=8-99"), Wanted::Part(8..10));
        assert_eq!(of_ten("bytes=4-"), Wanted::Part(4..10));
        assert_eq!(of_ten("bytes=-3"), Wanted::Part(7..10));
        assert_eq!(of_ten("bytes=-30"), Wanted::Part(0..10));
        assert_eq!(of_ten("Bytes=0-3"), Wanted::Part(0..4));
        assert_eq!(of_ten("bytes=8-99999999999999999999"), Wanted::Part(8..10));
        assert_eq!(of_ten("bytes=-99999999999999999999"), Wanted::Part(0..10));
        for impossible in
            ["bytes=10-", "bytes=500-0", "bytes=-0", "bytes=11-12", "bytes=99999999999999999999-"]
        {
            assert_eq!(of_ten(impossible), Wanted::Unsatisfiable, "{impossible}");
        }
        for whole in [
            "bytes=a-b",
            "lines=1-2",
            "bytes=0-1,4-5",
            "bytes=-1,4-5",
            "bytes=+1-2",
            "bytes=1-+2",
            "bytes=--2",
            "bytes=-",
            "bytes",
        ] {
            assert_eq!(of_ten(whole), Wanted::Whole, "{whole}");
        }
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn several_ranges_ascend_and_lie_apart() {
        let of_ten = |header| several(Some(header), 10);
        assert_eq!(of_ten("bytes=0-1,4-5"), Some(vec![0..2, 4..6]));
        assert_eq!(of_ten("Bytes=0-0, 1-1 ,\t8-99"), Some(vec![0..1, 1..2, 8..10]));
        assert_eq!(of_ten("bytes=0-1,-2"), Some(vec![0..2, 8..10]));
        assert_eq!(of_ten("bytes=1-2,4-"), Some(vec![1..3, 4..10]));
        for none in [
            "bytes=0-1",
            "bytes=4-5,0-1",
            "bytes=0-4,4-5",
            "bytes=0-,1-2",
            "bytes=0-1,10-11",
            "bytes=0-1,5-4",
            "bytes=0-1,",
            "bytes=0-1,x-y",
            "lines=0-1,4-5",
            "0-1,4-5",
        ] {
            assert_eq!(of_ten(none), None, "{none}");
        }
        assert_eq!(several(None, 10), None);
        assert_eq!(several(Some("bytes=0-0,1-1"), 0), None);
        let many = |count: u64| {
            let ranges: Vec<String> = (0..count).map(|at| format!("{at}-{at}")).collect();
            several(Some(&format!("bytes={}", ranges.join(","))), 1 << 20).map(|found| found.len())
        };
        assert_eq!(many(RANGES_MAX as u64), Some(RANGES_MAX));
        assert_eq!(many(RANGES_MAX as u64 + 1), None);
    }

    #[test]
    fn what_a_part_brings_is_two_numbers() {
        assert_eq!(content_range("0-99"), Some((0, 99)));
        assert_eq!(content_range(" 0 - 99 "), Some((0, 99)));
        for none in ["", "-", "0-", "-9", "+0-9", "0-+9", "bytes 0-9/10", "0-99999999999999999999"]
        {
            assert_eq!(content_range(none), None, "{none}");
        }
    }
}
