//! Disk images as files, without a cluster.

use std::path::PathBuf;

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
