//! Labels of nodes and agents, and how near two zones are to each other.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most labels one agent, image or deployment carries.
pub const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 256;

/// Why labels were refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LabelsError {
    #[error("more than {LABELS_MAX} labels")]
    TooMany,
    #[error(
        "a label is KEY=VALUE, neither part longer than {LABEL_BYTES_MAX} bytes, the key not empty"
    )]
    Shape,
    #[error("a zone is REGION, REGION/ROOM or REGION/ROOM/RACK")]
    Zone,
}

/// `KEY=VALUE` pairs, ordered by key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether every label of `selector` stands here with the same value. The empty selector
    /// matches everything.
    pub fn match_selector(&self, selector: &Self) -> bool {
        selector.0.iter().all(|(key, value)| self.0.get(key) == Some(value))
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = LabelsError;

    fn try_from(map: BTreeMap<String, String>) -> Result<Self, LabelsError> {
        if map.len() > LABELS_MAX {
            return Err(LabelsError::TooMany);
        }
        let fits = |(key, value): (&String, &String)| {
            !key.is_empty() && key.len() <= LABEL_BYTES_MAX && value.len() <= LABEL_BYTES_MAX
        };
        if map.iter().all(fits) { Ok(Self(map)) } else { Err(LabelsError::Shape) }
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

impl FromStr for Labels {
    type Err = LabelsError;

    /// `KEY=VALUE,KEY=VALUE`; the empty text is no labels.
    fn from_str(text: &str) -> Result<Self, LabelsError> {
        let pairs = text.split(',').filter(|pair| !pair.is_empty());
        let map: Result<BTreeMap<String, String>, LabelsError> = pairs
            .map(|pair| {
                let (key, value) = pair.split_once('=').ok_or(LabelsError::Shape)?;
                Ok((key.trim().to_owned(), value.trim().to_owned()))
            })
            .collect();
        Self::try_from(map?)
    }
}

/// How near another member is; the smaller, the nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Proximity {
    Rack,
    Room,
    Region,
    Far,
}

/// The parts of a zone that say which room: region and room.
const ROOM_PARTS: usize = 2;

/// A place: region, room and rack, from far to near. Missing parts are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(Vec<String>);

impl Zone {
    /// How near `other` is. Two members that name no region at all count as the same region.
    pub fn proximity(&self, other: &Self) -> Proximity {
        let same = self.0.iter().zip(&other.0).take_while(|(a, b)| a == b).count();
        match same {
            3.. => Proximity::Rack,
            2 => Proximity::Room,
            1 => Proximity::Region,
            0 if self.0.is_empty() && other.0.is_empty() => Proximity::Region,
            0 => Proximity::Far,
        }
    }

    /// The place without its rack: members of one room reach each other without a thin line.
    pub fn room(&self) -> Self {
        Self(self.0.iter().take(ROOM_PARTS).cloned().collect())
    }

    /// Whether both have the same [`Self::room`].
    pub fn shares_room(&self, other: &Self) -> bool {
        self.0.iter().take(ROOM_PARTS).eq(other.0.iter().take(ROOM_PARTS))
    }
}

impl FromStr for Zone {
    type Err = LabelsError;

    fn from_str(text: &str) -> Result<Self, LabelsError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let parts: Vec<String> = text.split('/').map(str::to_owned).collect();
        let good = parts.len() <= 3
            && text.len() <= LABEL_BYTES_MAX
            && parts.iter().all(|part| !part.is_empty());
        if good { Ok(Self(parts)) } else { Err(LabelsError::Zone) }
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

impl TryFrom<String> for Zone {
    type Error = LabelsError;

    fn try_from(text: String) -> Result<Self, LabelsError> {
        text.parse()
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearer_zones_order_first() {
        let zone = |text: &str| text.parse::<Zone>().unwrap();
        let here = zone("eu/r1/k1");
        assert_eq!(here.proximity(&zone("eu/r1/k1")), Proximity::Rack);
        assert_eq!(here.proximity(&zone("eu/r1/k2")), Proximity::Room);
        assert_eq!(here.proximity(&zone("eu/r2/k1")), Proximity::Region);
        assert_eq!(here.proximity(&zone("us/r1/k1")), Proximity::Far);
        assert_eq!((here.room(), zone("eu").room()), (zone("eu/r1"), zone("eu")));
        assert!("a//b".parse::<Zone>().is_err());
    }

    #[test]
    fn a_selector_matches_when_all_its_labels_do() {
        let labels: Labels = "a=1,b=2".parse().unwrap();
        assert!(labels.match_selector(&"b=2".parse().unwrap()));
        assert!(labels.match_selector(&Labels::default()));
        assert!(!labels.match_selector(&"b=3".parse().unwrap()));
    }
}
