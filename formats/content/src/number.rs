//! The order of version numbers, and what kind of name a tag is.
//!
//! Numbers are compared as Semantic Versioning 2.0.0 (section 11) does it, read more freely: a `v`
//! may stand before it, and there are one to [`PARTS_MAX`] numbers, which may begin with zeros, so
//! that `22.04.1` and `v1.2` are in order, too.
//!
//! Invariant: numbers of any length compare without overflow.
//! Non-goal: ranges (`^1.2`).

use std::cmp::Ordering;

use crate::name::TagName;

/// The most numbers before the first `-`.
const PARTS_MAX: usize = 8;

/// A version number taken apart. Equal where no rule puts one before the other: `1.0` and `v1.0.0`.
#[derive(Debug, Clone)]
pub struct VersionNumber<'a> {
    /// Without leading zeros, and without zeros at the end.
    parts: Vec<&'a str>,
    /// Between dots; empty for a release.
    pre: Vec<&'a str>,
}

impl<'a> VersionNumber<'a> {
    /// `None` for a text that has no order, for instance `nightly`.
    pub fn parse(text: &'a str) -> Option<Self> {
        let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
        // What stands after '+' has no part in the order.
        let text = text.split('+').next().unwrap_or(text);
        let (numbers, pre) = match text.split_once('-') {
            Some((numbers, pre)) => (numbers, Some(pre)),
            None => (text, None),
        };
        let is_number =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let mut parts: Vec<&str> = numbers.split('.').collect();
        if parts.len() > PARTS_MAX || !parts.iter().all(|part| is_number(part)) {
            return None;
        }
        for part in &mut parts {
            *part = part.trim_start_matches('0');
        }
        while parts.last().is_some_and(|part| part.is_empty()) {
            parts.pop();
        }
        let pre: Vec<&str> = pre.map_or_else(Vec::new, |pre| pre.split('.').collect());
        if pre.iter().any(|part| part.is_empty()) {
            return None;
        }
        Some(Self { parts, pre })
    }
}

/// Of two numbers of any length without leading zeros.
fn by_value(one: &str, other: &str) -> Ordering {
    one.len().cmp(&other.len()).then_with(|| one.cmp(other))
}

fn by_identifier(one: &str, other: &str) -> Ordering {
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match (is_number(one), is_number(other)) {
        (true, true) => by_value(one.trim_start_matches('0'), other.trim_start_matches('0')),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => one.cmp(other),
    }
}

impl Ord for VersionNumber<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let longest = self.parts.len().max(other.parts.len());
        let part = |of: &Self, at: usize| of.parts.get(at).copied().unwrap_or("").to_owned();
        let numbers = (0..longest).map(|at| by_value(&part(self, at), &part(other, at)));
        let numbers = numbers.fold(Ordering::Equal, Ordering::then);
        numbers.then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let mut pairs = self.pre.iter().zip(&other.pre);
                let differs = pairs.find_map(|(one, other)| {
                    Some(by_identifier(one, other)).filter(|order| order.is_ne())
                });
                differs.unwrap_or_else(|| self.pre.len().cmp(&other.pre.len()))
            }
        })
    }
}

impl PartialOrd for VersionNumber<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for VersionNumber<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for VersionNumber<'_> {}

/// What people mean by a tag, as far as its text says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagKind {
    /// `v1.0.0`, `22.04`
    Version,
    /// `latest`, `stable`, `beta`, `rc`
    Semantic,
    /// `dev`, `staging`, `prod`
    Environment,
    /// `2024-01-15`, `snapshot-20240115`
    Time,
    Other,
}

impl TagKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Semantic => "semantic",
            Self::Environment => "environment",
            Self::Time => "time",
            Self::Other => "other",
        }
    }
}

impl TagName {
    pub fn kind(&self) -> TagKind {
        let text = self.as_str();
        match text {
            "latest" | "stable" | "beta" | "alpha" | "rc" | "edge" | "nightly" | "lts" => {
                TagKind::Semantic
            }
            "dev" | "test" | "staging" | "prod" | "development" | "production" => {
                TagKind::Environment
            }
            _ if is_date(text) || text.strip_prefix("snapshot-").is_some_and(is_date) => {
                TagKind::Time
            }
            _ if VersionNumber::parse(text).is_some() => TagKind::Version,
            _ => TagKind::Other,
        }
    }
}

/// `2024-01-15` or `20240115`, with nothing or a time of day after it.
fn is_date(text: &str) -> bool {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let dashes = text.len() - digits.len();
    let long = digits.len() == 8 || digits.len() == 12 || digits.len() == 14;
    if !long || !digits.bytes().all(|byte| byte.is_ascii_digit()) || dashes > 3 {
        return false;
    }
    // `20240115` alone is a date; with dashes they stand where a date has them.
    let placed = dashes == 0
        || text.as_bytes().get(8).is_none_or(|byte| *byte == b'-')
        || (text.as_bytes().get(4) == Some(&b'-') && text.as_bytes().get(7) == Some(&b'-'));
    let number = |from: usize, to: usize| digits[from..to].parse::<u32>().unwrap_or(0);
    placed && (1..=12).contains(&number(4, 6)) && (1..=31).contains(&number(6, 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_in_the_order_of_the_specification() {
        // The specification's own example, and what people write besides.
        let ordered = [
            "0.9",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
            "1.0.1",
            "v1.2",
            "1.10.0",
            "2.0.0",
            "22.04",
            "22.04.1",
            "22.10",
            "99999999999999999999999.0",
        ];
        for pair in ordered.windows(2) {
            let [one, other] = [pair[0], pair[1]].map(|text| VersionNumber::parse(text).unwrap());
            assert!(one < other, "{pair:?}");
            assert!(other > one, "{pair:?}");
        }
        for (one, other) in [("1.0", "v1.0.0"), ("22.4", "22.04"), ("1.0.0", "1.0.0+build.5")] {
            assert_eq!(VersionNumber::parse(one), VersionNumber::parse(other));
        }
        for text in
            ["", "v", "nightly", "1..0", "1.x", "1.0.0-", "1.0-a..b", ".1", "1.2.3.4.5.6.7.8.9"]
        {
            assert!(VersionNumber::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn tags_of_all_kinds_are_told_apart() {
        let kinds = [
            ("v1.0.0", TagKind::Version),
            ("v2.1.3", TagKind::Version),
            ("22.04", TagKind::Version),
            ("latest", TagKind::Semantic),
            ("stable", TagKind::Semantic),
            ("beta", TagKind::Semantic),
            ("rc", TagKind::Semantic),
            ("dev", TagKind::Environment),
            ("staging", TagKind::Environment),
            ("prod", TagKind::Environment),
            ("2024-01-15", TagKind::Time),
            ("20240115", TagKind::Time),
            ("snapshot-20240115", TagKind::Time),
            ("snapshot-2024-01-15", TagKind::Time),
            ("jammy", TagKind::Other),
            ("snapshot-x", TagKind::Other),
            ("2024-13-45", TagKind::Version),
        ];
        for (text, kind) in kinds {
            assert_eq!(text.parse::<TagName>().unwrap().kind(), kind, "{text}");
        }
    }
}
