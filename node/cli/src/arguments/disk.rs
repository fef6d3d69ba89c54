//! Disk images as files, without a cluster.
//!
//! What people type after qemu-img is taken here as well: options that change nothing for us are read
//! and left, those that would be broken are refused.

#![allow(dead_code, reason = "some options are taken and change nothing")]

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};
use shoal_formats::{Format, Target};

#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Format, sizes, and the file systems that are recognised
    Info {
        file: PathBuf,
        /// The format it must be of; found from its bytes where missing
        #[arg(long, short)]
        format: Option<Format>,
        #[command(flatten)]
        output: Output,
        /// List the image alone, as a chain of one: no other file is ever opened
        #[arg(long)]
        backing_chain: bool,
        #[command(flatten)]
        opening: Opening,
    },
    /// Which parts of the disk hold data, and which read as zero
    ///
    /// All parts are in memory at once, with less than 1 KiB for each.
    Map {
        file: PathBuf,
        /// The format it must be of; found from its bytes where missing
        #[arg(long, short)]
        format: Option<Format>,
        #[command(flatten)]
        output: Output,
        /// Where the list begins
        #[arg(long, value_name = "SIZE")]
        start_offset: Option<Size>,
        /// How much of the disk is listed
        #[arg(long, value_name = "SIZE")]
        max_length: Option<Size>,
        #[command(flatten)]
        opening: Opening,
    },
    /// Read all of the disk, and say what is broken (exit code 2), that room is wasted (3), or that
    /// the format has nothing to be checked (63)
    ///
    /// Takes 4 bytes of memory for each cluster of a qcow2, at most 256 MiB, and else no more than the
    /// tables that say where the disk's content lies, however large that is.
    Check {
        file: PathBuf,
        /// The format it must be of; found from its bytes where missing
        #[arg(long, short)]
        format: Option<Format>,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        manner: Manner,
    },
    /// Write the disk in another format; the same disk gives the same bytes
    Convert(Convert),
    /// Compare what guests see of two disks: exit code 0 where it is the same, 1 where it differs,
    /// 2 where one cannot be opened, 4 where it cannot be read
    Compare {
        a: PathBuf,
        b: PathBuf,
        /// The format of the first; found from its bytes where missing
        #[arg(long, short)]
        format: Option<Format>,
        /// The format of the second
        #[arg(short = 'F', long = "other-format", value_name = "FORMAT")]
        other: Option<Format>,
        /// Disks of different lengths differ, whatever is behind the shorter one's end
        #[arg(long, short)]
        strict: bool,
        #[command(flatten)]
        manner: Manner,
    },
    /// How disks are cut, and what each has that those before it do not
    Chunks {
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Count what a file system calls free as content, too
        #[arg(long)]
        keep_free_space: bool,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Args)]
pub struct Convert {
    pub source: PathBuf,
    /// Replaced where it is there; complete or not there
    pub target: PathBuf,
    /// raw, qcow2, vmdk, vmdk-stream, vhd, vhd-fixed, vhdx or ova
    #[arg(short = 'O', long = "to", value_name = "FORMAT", default_value = "raw")]
    pub to: Target,
    /// The format of the source; found from its bytes where missing
    #[arg(long, short)]
    pub format: Option<Format>,
    /// Compress it: qcow2, or vmdk-stream
    #[arg(long, short)]
    pub compress: bool,
    /// How a qcow2 is compressed; zstd is for QEMU 5.1 and later
    #[arg(long, value_enum, default_value_t, requires = "compress")]
    pub compression: Compression,
    /// NAME=VALUE,…: as qemu-img has them; what is not written so is refused
    #[arg(short = 'o', long = "options")]
    pub options: Vec<String>,
    /// Zeros are left out of the target, however short they are; 0 is refused
    #[arg(short = 'S', long = "sparse", value_name = "SIZE")]
    pub sparse: Option<Size>,
    /// Changes nothing
    #[arg(short = 'm', hide = true, value_name = "NUMBER")]
    pub coroutines: Option<u32>,
    /// Changes nothing
    #[arg(short = 'W', hide = true)]
    pub out_of_order: bool,
    /// Changes nothing
    #[arg(short = 't', hide = true, value_enum)]
    pub target_cache: Option<Cache>,
    #[command(flatten)]
    pub manner: Manner,
}

/// How something that takes long goes on.
#[derive(Debug, Args)]
pub struct Manner {
    /// Print nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Changes nothing: a terminal shows how far it is, without being told
    #[arg(short, hide = true)]
    pub progress: bool,
    /// Changes nothing
    #[arg(short = 'T', hide = true, value_enum)]
    pub source_cache: Option<Cache>,
    #[command(flatten)]
    pub opening: Opening,
}

/// How a file is opened.
#[derive(Debug, Args)]
pub struct Opening {
    /// Changes nothing: no file is locked
    #[arg(short = 'U', long, hide = true)]
    pub force_share: bool,
}

/// As qemu-img knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cache {
    None,
    Writeback,
    Writethrough,
    Directsync,
    Unsafe,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    #[default]
    Zlib,
    Zstd,
}

/// As qemu-img has it; the same as --json.
#[derive(Debug, Args)]
pub struct Output {
    /// human, or json: one document
    #[arg(long, value_enum, default_value_t)]
    pub output: Shape,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    #[default]
    Human,
    Json,
}

/// A number of bytes as qemu-img reads it: powers of 1024 by their letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no size; it is a number with k, M, G or T, or without");
        let (digits, power) = match text.as_bytes().last().map(u8::to_ascii_lowercase) {
            Some(b'b') => (&text[..text.len() - 1], 0),
            Some(b'k') => (&text[..text.len() - 1], 1),
            Some(b'm') => (&text[..text.len() - 1], 2),
            Some(b'g') => (&text[..text.len() - 1], 3),
            Some(b't') => (&text[..text.len() - 1], 4),
            _ => (text, 0),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << (10 * power)).map(Self).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_letters_of_qemu_img() {
        for (text, bytes) in [("0", 0), ("512", 512), ("512b", 512), ("4k", 4096), ("1G", 1 << 30)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "k", "-1", "1x", "99999999T", "1.5M"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
