//! Patterns over names of repositories and tags.
//!
//! The whole of the grammar: `?` is any one character but `/`; `*` is any number of characters but
//! `/`, also none; `**` is any number of characters; a `!` at the very start turns the meaning
//! round; everything else stands for itself, and only what can stand in a name is taken, so that
//! what was meant as a regular expression is refused rather than misunderstood. There is no escape,
//! since no name has any of `?`, `*` and `!`.
//!
//! Invariant: matching costs at most the product of both lengths, whatever the pattern.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest pattern, in bytes: a repository's longest name and some wildcards.
pub const PATTERN_BYTES_MAX: usize = 256;

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PatternError {
    #[error("a pattern is not empty; '**' matches everything")]
    Empty,
    #[error("a pattern has at most {PATTERN_BYTES_MAX} bytes")]
    TooLong,
    #[error(
        "{0:?} cannot stand in a pattern: letters, digits, '.', '_', '-', '/', the wildcards '?', '*', '**', and '!' at the start"
    )]
    Character(char),
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern(String);

impl Pattern {
    /// `**`
    pub fn everything() -> Self {
        Self("**".to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_prefix('!') {
            Some(rest) => !glob(rest.as_bytes(), name.as_bytes()),
            None => glob(self.0.as_bytes(), name.as_bytes()),
        }
    }
}

/// Goes through the name once, with the set of all places in the pattern that it may be at.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    // Names and patterns without wildcards are the common case.
    if !pattern.iter().any(|byte| matches!(byte, b'*' | b'?')) {
        return pattern == name;
    }
    let end = pattern.len();
    let mut here = vec![false; end + 1];
    enter(pattern, &mut here, 0);
    let mut next = vec![false; end + 1];
    for &byte in name {
        next.fill(false);
        for at in (0..end).filter(|at| here[*at]) {
            match pattern[at] {
                // The second star of `**` is the one that takes anything.
                b'*' if at > 0 && pattern[at - 1] == b'*' => enter(pattern, &mut next, at),
                b'*' if byte != b'/' => enter(pattern, &mut next, at),
                b'?' if byte != b'/' => enter(pattern, &mut next, at + 1),
                literal if literal == byte && literal != b'*' => {
                    enter(pattern, &mut next, at + 1);
                }
                _ => {}
            }
        }
        std::mem::swap(&mut here, &mut next);
    }
    here[end]
}

/// Marks a place, and those that are reached from it without taking a character.
fn enter(pattern: &[u8], places: &mut [bool], mut at: usize) {
    while let Some(place) = places.get_mut(at) {
        if std::mem::replace(place, true) || pattern.get(at) != Some(&b'*') {
            return;
        }
        at += 1;
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let rest = text.strip_prefix('!').unwrap_or(text);
        if rest.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.len() > PATTERN_BYTES_MAX {
            return Err(PatternError::TooLong);
        }
        let good = |c: char| c.is_ascii_alphanumeric() || "._-/*?".contains(c);
        match rest.chars().find(|c| !good(*c)) {
            Some(bad) => Err(PatternError::Character(bad)),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Pattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(name)
    }

    #[test]
    fn wildcards_mean_what_is_written() {
        for (pattern, name) in [
            ("v1", "v1"),
            ("v*", "v"),
            ("v*", "v1.2"),
            ("*", ""),
            ("*-rc?", "1.0-rc1"),
            ("team/*", "team/app"),
            ("**", "team/app"),
            ("**", ""),
            ("team/**", "team/a/b"),
            ("**/app", "team/x/app"),
            ("***", "a/b"),
            ("!v*", "latest"),
            ("!team/*", "team/a/b"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("v1", "v12"),
            ("v?", "v"),
            ("v?", "v12"),
            ("*", "team/app"),
            ("team?app", "team/app"),
            ("team/*", "team/a/b"),
            ("team/**", "team"),
            ("V1", "v1"),
            ("!v*", "v1"),
            ("!**", "anything"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        assert_eq!("".parse::<Pattern>(), Err(PatternError::Empty));
        assert_eq!("!".parse::<Pattern>(), Err(PatternError::Empty));
        assert_eq!("a".repeat(257).parse::<Pattern>(), Err(PatternError::TooLong));
        for (text, bad) in
            [("^v.*$", '^'), ("v[12]", '['), ("a b", ' '), ("{a,b}", '{'), ("a!", '!')]
        {
            assert_eq!(text.parse::<Pattern>(), Err(PatternError::Character(bad)));
        }
    }

    /// What the grammar says, without care for cost.
    fn plainly(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], rest) => rest.is_empty(),
            ([b'*', b'*', rest @ ..], _) => {
                (0..=name.len()).any(|taken| plainly(rest, &name[taken..]))
            }
            ([b'*', rest @ ..], _) => (0..=name.len())
                .take_while(|taken| !name[..*taken].contains(&b'/'))
                .any(|taken| plainly(rest, &name[taken..])),
            ([b'?', rest @ ..], [byte, name @ ..]) => *byte != b'/' && plainly(rest, name),
            ([literal, rest @ ..], [byte, name @ ..]) => literal == byte && plainly(rest, name),
            (_, []) => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_grammar(pattern in "[ab/*?]{1,8}", name in "[ab/]{0,8}") {
            let expected = plainly(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(glob(pattern.as_bytes(), name.as_bytes()), expected);
        }
    }

    #[test]
    fn a_hostile_pattern_costs_no_more_than_its_length() {
        let pattern = format!("{}c", "a*".repeat(127));
        assert!(!matches(&pattern, &format!("{}b", "a".repeat(199))));
        assert!(matches(&pattern, &format!("{}c", "a".repeat(199))));
    }
}
