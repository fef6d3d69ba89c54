//! qcow2, versions 2 and 3 (QEMU, `docs/interop/qcow2.txt`), read, laid out for writing, and
//! written compressed.
//!
//! Read: all cluster sizes, zlib and zstd compressed clusters, zero clusters, extended L2 entries.
//! Internal snapshots are ignored: the disk is its active state. Reference counts are not needed for
//! that; what they are there for, that no cluster is used twice, is checked from the tables
//! themselves. Whether they are right can be asked (see `references`).
//!
//! Invariant: whatever an image says, opening it takes memory bounded by [`header::L1_BYTES_MAX`]
//! and the limits of `check`, and every offset is held against the image's length before use.
//! Non-goals: backing files, data files and encryption, which are refused by name.

mod check;
mod entry;
mod header;
mod layout;
mod packer;
mod reader;
mod references;

pub(crate) use header::MAGIC;
pub(crate) use layout::{CLUSTER_BYTES, Layout, VIRTUAL_BYTES_MAX};
pub(crate) use packer::Packer;
pub(crate) use reader::Qcow2Disk;
pub use references::{CheckError, References, check_references};
