//! Rates as people write them: `50 Mbit/s`, `6 MiB/s`, `unlimited`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bits a second count by thousands, bytes by what their unit says. In eighths of a byte.
const UNITS: &[(&str, u64)] = &[
    ("kbit/s", 1_000),
    ("Mbit/s", 1_000_000),
    ("Gbit/s", 1_000_000_000),
    ("B/s", 8),
    ("kB/s", 8_000),
    ("MB/s", 8_000_000),
    ("GB/s", 8_000_000_000),
    ("KiB/s", 8 << 10),
    ("MiB/s", 8 << 20),
    ("GiB/s", 8 << 30),
];
const UNLIMITED: &str = "unlimited";
/// Below it a chunk takes longer than peers wait for one.
const BYTES_MIN: u64 = 125_000;

/// A text that is no rate.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RateError {
    #[error(
        "a rate is a whole number and Mbit/s, Gbit/s, MiB/s, GiB/s, MB/s or GB/s, or unlimited"
    )]
    Shape,
    #[error("a limit is at least 1 Mbit/s")]
    TooLow,
}

/// So many bytes a second at most, or any number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate(Option<u64>);

impl Rate {
    pub const UNLIMITED: Self = Self(None);

    pub const fn bytes_per_second(self) -> Option<u64> {
        self.0
    }

    /// What is limited to so many bytes a second, for people.
    pub const fn of(bytes_per_second: Option<u64>) -> Self {
        Self(bytes_per_second)
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let text = text.trim();
        if text == UNLIMITED {
            return Ok(Self::UNLIMITED);
        }
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or(RateError::Shape)?;
        let number: u64 = text[..split].parse().map_err(|_| RateError::Shape)?;
        let unit = text[split..].trim();
        let (_, bits) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(RateError::Shape)?;
        let bytes = number.checked_mul(*bits).ok_or(RateError::Shape)? / 8;
        if bytes < BYTES_MIN { Err(RateError::TooLow) } else { Ok(Self(Some(bytes))) }
    }
}

/// As it reads back: `50 Mbit/s`, `6 GB/s`.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(bytes) = self.0 else { return f.write_str(UNLIMITED) };
        let bits = bytes.saturating_mul(8);
        let whole = |unit: &&(&str, u64)| bits >= unit.1 && bits % unit.1 == 0;
        // Bits, as lines are sold, then bytes; every number is so many single ones.
        let (bit_units, byte_units) = UNITS.split_at(3);
        let found =
            bit_units.iter().rev().find(whole).or_else(|| byte_units.iter().rev().find(whole));
        let (name, unit) = found.copied().unwrap_or(("B/s", 8));
        write!(f, "{} {name}", bits / unit)
    }
}

impl TryFrom<String> for Rate {
    type Error = RateError;

    fn try_from(text: String) -> Result<Self, RateError> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_bytes_are_told_apart() {
        let bytes = |text: &str| text.parse::<Rate>().unwrap().bytes_per_second();
        assert_eq!(bytes("50 Mbit/s"), Some(6_250_000));
        assert_eq!(bytes("6MiB/s"), Some(6 << 20));
        assert_eq!(bytes("1000 kbit/s"), Some(125_000));
        assert_eq!(bytes("unlimited"), None);
        for text in ["50 Mbit/s", "10 Gbit/s", "1500 kbit/s", "7 MiB/s", "125003 B/s", "unlimited"]
        {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for bad in ["", "50", "50 mb", "-1 Mbit/s", "1.5 Gbit/s", "99999999999999999 GiB/s"] {
            assert_eq!(bad.parse::<Rate>(), Err(RateError::Shape), "{bad}");
        }
        assert_eq!("999 kbit/s".parse::<Rate>(), Err(RateError::TooLow));
    }
}
