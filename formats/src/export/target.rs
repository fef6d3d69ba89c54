//! What a disk can be written as: a format, and for some of them one of two layouts.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::disk::Format;

/// What [`crate::Export`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    Raw,
    Qcow2,
    /// `monolithicSparse`, for VMware's desktop programs and VirtualBox.
    Vmdk,
    /// `streamOptimized`, for import into vSphere; what an OVA holds.
    VmdkStream,
    /// Dynamic.
    Vhd,
    /// As Azure wants it.
    VhdFixed,
    /// Dynamic.
    Vhdx,
    Ova,
}

impl Target {
    pub const ALL: [Self; 8] = [
        Self::Raw,
        Self::Qcow2,
        Self::Vmdk,
        Self::VmdkStream,
        Self::Vhd,
        Self::VhdFixed,
        Self::Vhdx,
        Self::Ova,
    ];

    /// As it stands in the REST API and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VmdkStream => "vmdk-stream",
            Self::VhdFixed => "vhd-fixed",
            other => other.format().as_str(),
        }
    }

    pub const fn format(self) -> Format {
        match self {
            Self::Raw => Format::Raw,
            Self::Qcow2 => Format::Qcow2,
            Self::Vmdk | Self::VmdkStream => Format::Vmdk,
            Self::Vhd | Self::VhdFixed => Format::Vhd,
            Self::Vhdx => Format::Vhdx,
            Self::Ova => Format::Ova,
        }
    }

    /// What the name of such a file ends with.
    pub const fn extension(self) -> &'static str {
        self.format().as_str()
    }
}

impl From<Format> for Target {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::Qcow2 => Self::Qcow2,
            Format::Vmdk => Self::Vmdk,
            Format::Vhd => Self::Vhd,
            Format::Vhdx => Self::Vhdx,
            Format::Ova => Self::Ova,
        }
    }
}

/// A text that names nothing a disk can be written as.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a disk is written as raw, qcow2, vmdk, vmdk-stream, vhd, vhd-fixed, vhdx or ova")]
pub struct TargetError;

impl FromStr for Target {
    type Err = TargetError;

    /// Takes what [`Format`] takes, too.
    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text.to_ascii_lowercase().as_str() {
            "vmdk-stream" => Ok(Self::VmdkStream),
            "vhd-fixed" => Ok(Self::VhdFixed),
            other => other.parse::<Format>().map(Self::from).map_err(|_| TargetError),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_reads_its_own_name_and_foreign_ones() {
        for target in Target::ALL {
            assert_eq!(target.to_string().parse(), Ok(target));
        }
        assert_eq!("VPC".parse(), Ok(Target::Vhd));
        assert_eq!("qed".parse::<Target>(), Err(TargetError));
    }
}
