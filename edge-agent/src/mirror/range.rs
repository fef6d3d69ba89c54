//! The `Range` header of a blob request (RFC 9110, section 14). One range is served; several, or
//! another unit, are answered with the whole, as the RFC allows; nodes give several, too, and read
//! one in the same way (`node/src/registry/range.rs`).

use std::ops::Range;

/// What to serve of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// Not empty, within the blob.
    Bytes(Range<u64>),
    /// Past the end, or the wrong way round: 416.
    Unsatisfiable,
}

/// Reads the header's text for a blob of `length` bytes.
pub fn parse(header: Option<&str>, length: u64) -> Part {
    let Some((unit, spec)) = header.and_then(|text| text.trim().split_once('=')) else {
        return Part::Whole;
    };
    // Its case says nothing (RFC 9110, section 14.1).
    if !unit.eq_ignore_ascii_case("bytes") {
        return Part::Whole;
    }
    let Some((first, last)) = spec.trim().split_once('-') else { return Part::Whole };
    let number = |text: &str| {
        let text = text.trim();
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    if spec.contains(',') {
        return Part::Whole;
    }
    match (number(first), number(last)) {
        (Some(start), Some(end)) if start > end || start >= length => Part::Unsatisfiable,
        (Some(start), Some(end)) => Part::Bytes(start..end.saturating_add(1).min(length)),
        (Some(start), None) if last.trim().is_empty() && start >= length => Part::Unsatisfiable,
        (Some(start), None) if last.trim().is_empty() => Part::Bytes(start..length),
        (None, Some(0)) if first.trim().is_empty() => Part::Unsatisfiable,
        (None, Some(_)) if first.trim().is_empty() && length == 0 => Part::Unsatisfiable,
        (None, Some(suffix)) if first.trim().is_empty() => {
            Part::Bytes(length - suffix.min(length)..length)
        }
        _ => Part::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clamped_and_nonsense_is_the_whole() {
        for (header, expected) in [
            ("bytes=0-99", Part::Bytes(0..100)),
            ("bytes=10-", Part::Bytes(10..1000)),
            ("bytes=-10", Part::Bytes(990..1000)),
            ("bytes=-5000", Part::Bytes(0..1000)),
            ("bytes=900-99999999999999999999999", Part::Bytes(900..1000)),
            ("bytes=1000-", Part::Unsatisfiable),
            ("bytes=500-0", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("Bytes=0-99", Part::Bytes(0..100)),
            ("BYTES=-99999999999999999999999", Part::Bytes(0..1000)),
            ("bytes= 1 - 2 ", Part::Bytes(1..3)),
            ("bytes=0-1,5-6", Part::Whole),
            ("bytes=-1,5-6", Part::Whole),
            ("bytes=2000-1,5-6", Part::Whole),
            ("chunks=0-1", Part::Whole),
            ("bytes=x-y", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("bytes=1--2", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=", Part::Whole),
            ("bytes", Part::Whole),
        ] {
            assert_eq!(parse(Some(header), 1000), expected, "{header}");
        }
        assert_eq!(parse(None, 1000), Part::Whole);
        assert_eq!(parse(Some("bytes=0-"), 0), Part::Unsatisfiable);
    }
}
