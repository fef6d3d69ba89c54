//! Names that people give: repositories, tags, projects, and references to an image.
//!
//! The grammar is the distribution-spec's (section "Pulling manifests").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::digest::Digest;

/// The longest repository name, in bytes. Clients limit host and name together to 255.
const REPOSITORY_BYTES_MAX: usize = 200;
const TAG_BYTES_MAX: usize = 128;
const ACCOUNT_BYTES_MAX: usize = 64;
const INSTANCE_BYTES_MAX: usize = 128;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    #[error(
        "'{0}' is no repository name: lower-case letters and digits, parted by '.', '_', '__', '-' or '/', at most 200 bytes"
    )]
    Repository(String),
    #[error(
        "'{0}' is no tag: letters, digits, '_', '.' and '-', at most 128 bytes, not starting with '.' or '-'"
    )]
    Tag(String),
    #[error(
        "'{0}' is no name for an account: lower-case letters and digits, parted by '.', '_', '__' or '-', at most 64 bytes"
    )]
    Account(String),
    #[error(
        "'{0}' is no name for an instance: letters, digits, '_', '.', ':' and '-', at most 128 bytes, starting with a letter or digit"
    )]
    Instance(String),
    #[error("'{0}' is no image reference: NAME, NAME:TAG or NAME@DIGEST")]
    Reference(String),
}

/// At most 64 bytes of hostile text for an error message.
fn excerpt(text: &str) -> String {
    text.chars().take(64).filter(|c| !c.is_control()).collect()
}

macro_rules! text_name {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// The name of a repository: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/…)*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName(String);
text_name!(RepositoryName);

impl RepositoryName {
    /// The first part of the name owns visibility, members, quota and policies.
    pub fn project(&self) -> ProjectName {
        let first = self.0.split('/').next().unwrap_or(&self.0);
        ProjectName(first.to_owned())
    }
}

impl FromStr for RepositoryName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let good = text.len() <= REPOSITORY_BYTES_MAX && text.split('/').all(is_path_component);
        if good { Ok(Self(text.to_owned())) } else { Err(NameError::Repository(excerpt(text))) }
    }
}

/// One path component: alphanumeric runs parted by `.`, `_`, `__` or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !is_alphanumeric(first) || !is_alphanumeric(last) {
        return false;
    }
    bytes.split(|&b| is_alphanumeric(b)).filter(|separator| !separator.is_empty()).all(
        |separator| {
            matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-')
        },
    )
}

/// The first part of a repository's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProjectName(String);
text_name!(ProjectName);

impl FromStr for ProjectName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() <= REPOSITORY_BYTES_MAX && is_path_component(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Repository(excerpt(text)))
        }
    }
}

/// The name of a user, an organization, a group or a robot: one path component, so that each can
/// stand in a path and in a project's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountName(String);
text_name!(AccountName);

impl FromStr for AccountName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() <= ACCOUNT_BYTES_MAX && is_path_component(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Account(excerpt(text)))
        }
    }
}

/// What the system that runs it calls a virtual machine: any id that fits into one segment of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName(String);
text_name!(InstanceName);

impl FromStr for InstanceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
        let good = text.len() <= INSTANCE_BYTES_MAX
            && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && text.bytes().all(plain);
        if good { Ok(Self(text.to_owned())) } else { Err(NameError::Instance(excerpt(text))) }
    }
}

/// A movable name for a version: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagName(String);
text_name!(TagName);

impl FromStr for TagName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let mut bytes = text.bytes();
        let good = bytes.next().is_some_and(is_word)
            && bytes.all(|b| is_word(b) || b == b'.' || b == b'-')
            && text.len() <= TAG_BYTES_MAX;
        if good { Ok(Self(text.to_owned())) } else { Err(NameError::Tag(excerpt(text))) }
    }
}

/// What a reference pins an image to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Pin {
    Tag(TagName),
    Digest(Digest),
}

impl FromStr for Pin {
    type Err = NameError;

    /// A digest where there is a colon, else a tag: the `reference` of `/v2/NAME/manifests/…`.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains(':') {
            text.parse().map(Self::Digest).map_err(|_| NameError::Reference(excerpt(text)))
        } else {
            text.parse().map(Self::Tag)
        }
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// `NAME`, `NAME:TAG` or `NAME@DIGEST`, without a host; a bare name means the tag `latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageReference {
    pub name: RepositoryName,
    pub pin: Pin,
}

impl FromStr for ImageReference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Some((name, digest)) = text.split_once('@') {
            let digest = digest.parse().map_err(|_| NameError::Reference(excerpt(text)))?;
            return Ok(Self { name: name.parse()?, pin: Pin::Digest(digest) });
        }
        let (name, tag) = text.split_once(':').unwrap_or((text, "latest"));
        Ok(Self { name: name.parse()?, pin: Pin::Tag(tag.parse()?) })
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pin {
            Pin::Tag(tag) => write!(f, "{}:{tag}", self.name),
            Pin::Digest(digest) => write!(f, "{}@{digest}", self.name),
        }
    }
}

/// As text everywhere: `NAME:TAG` is how people write it, in JSON too.
impl Serialize for ImageReference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageReference {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_follow_the_grammar() {
        for good in ["a", "library/ubuntu", "a.b/c_d/e__f/g--h", "0/1", "a-----b"] {
            assert!(good.parse::<RepositoryName>().is_ok(), "{good}");
        }
        for bad in
            ["", "/", "a/", "/a", "A", "a..b", "a___b", "a._b", "-a", "a-", "a b", "../a", "a//b"]
        {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad}");
        }
        assert!("a".repeat(201).parse::<RepositoryName>().is_err());
    }

    #[test]
    fn tags_follow_the_grammar() {
        for good in ["latest", "_x", "1.0-rc.1", "V2"] {
            assert!(good.parse::<TagName>().is_ok(), "{good}");
        }
        for bad in ["", ".x", "-x", "a/b", "a:b", "ä"] {
            assert!(bad.parse::<TagName>().is_err(), "{bad}");
        }
        assert!("a".repeat(129).parse::<TagName>().is_err());
    }

    #[test]
    fn references_default_to_latest() {
        let reference: ImageReference = "zedge/win10".parse().unwrap();
        assert_eq!(reference.to_string(), "zedge/win10:latest");
        let digest = Digest::sha256([1; 32]);
        let pinned: ImageReference = format!("a/b@{digest}").parse().unwrap();
        assert_eq!(pinned.pin, Pin::Digest(digest));
    }
}
