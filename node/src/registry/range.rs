//! `Range` of a GET of a blob or a disk (RFC 9110, section 14.1.2): one range, or the whole; and
//! `Content-Range` of an upload's part, which has no unit (distribution-spec).

use std::ops::Range;

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
    // The unit's case says nothing (RFC 9110, section 14.1).
    let text = header.and_then(|text| text.split_once('='));
    let text = text.filter(|(unit, _)| unit.eq_ignore_ascii_case("bytes")).map(|(_, text)| text);
    let Some((first, last)) = text.and_then(|text| text.split_once('-')) else {
        return Wanted::Whole;
    };
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
    fn what_a_part_brings_is_two_numbers() {
        assert_eq!(content_range("0-99"), Some((0, 99)));
        assert_eq!(content_range(" 0 - 99 "), Some((0, 99)));
        for none in ["", "-", "0-", "-9", "+0-9", "0-+9", "bytes 0-9/10", "0-99999999999999999999"]
        {
            assert_eq!(content_range(none), None, "{none}");
        }
    }
}
