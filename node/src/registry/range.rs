//! `Range` of a blob's GET (RFC 9110, section 14.1.2): one range, or the whole; and
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
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
}

/// An absent, malformed or multiple range means the whole, as the RFC lets a server choose.
pub fn wanted(header: Option<&str>, length: u64) -> Wanted {
    let Some(text) = header.and_then(|text| text.strip_prefix("bytes=")) else {
        return Wanted::Whole;
    };
    let Some((first, last)) = text.split_once('-') else { return Wanted::Whole };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        return match last.parse::<u64>() {
            Ok(0) => Wanted::Unsatisfiable,
            Ok(suffix) if length > 0 => Wanted::Part(length.saturating_sub(suffix)..length),
            Ok(_) => Wanted::Unsatisfiable,
            Err(_) => Wanted::Whole,
        };
    }
    let Ok(first) = first.parse::<u64>() else { return Wanted::Whole };
    let end = match last {
        "" => length,
        last => match last.parse::<u64>() {
            Ok(last) if last < first => return Wanted::Unsatisfiable,
            Ok(last) => last.saturating_add(1).min(length),
            Err(_) => return Wanted::Whole,
        },
    };
    if first >= length { Wanted::Unsatisfiable } else { Wanted::Part(first..end) }
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
        for impossible in ["bytes=10-", "bytes=500-0", "bytes=-0", "bytes=11-12"] {
            assert_eq!(of_ten(impossible), Wanted::Unsatisfiable, "{impossible}");
        }
        for whole in ["bytes=a-b", "lines=1-2", "bytes=0-1,4-5"] {
            assert_eq!(of_ten(whole), Wanted::Whole, "{whole}");
        }
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Unsatisfiable);
    }
}
