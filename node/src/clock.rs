//! The wall clock, read in one place, and its text form.

use std::time::{SystemTime, UNIX_EPOCH};

use shoal_content::Timestamp;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How far the clocks of two nodes may be apart where rows of both are compared, in milliseconds.
pub const CLOCKS_APART_MS: u64 = 2_000;

/// The time now.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(since.as_millis() as u64)
}

/// RFC 3339 in UTC, to the second.
pub fn rfc3339(at: Timestamp) -> String {
    let seconds = i64::try_from(at.as_millis() / 1000).unwrap_or(i64::MAX);
    let moment = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    moment.format(&Rfc3339).unwrap_or_default()
}

/// Reads RFC 3339; nothing for what is none, or before 1970.
pub fn parsed(text: &str) -> Option<Timestamp> {
    let moment = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).ok().map(Timestamp::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_texts_in_utc() {
        assert_eq!(rfc3339(Timestamp::from_millis(1_700_000_000_999)), "2023-11-14T22:13:20Z");
        let read = parsed("2023-11-14T23:13:20.5+01:00");
        assert_eq!(read, Some(Timestamp::from_millis(1_700_000_000_500)));
        assert_eq!((parsed("tomorrow"), parsed("1969-12-31T23:59:59Z")), (None, None));
    }
}
