//! The grammar of what is done with images and instances.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use shoal_content::{Digest, ImageReference, InstanceName, Labels, TagName};
use shoal_formats::{Format, Target};

use super::Access;

/// The most parts of one upload under way at once; each is held in memory.
pub const PARALLEL_MAX: u16 = 16;

/// The formats that a disk can be uploaded in.
fn formats() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::ALL.map(Format::as_str)).try_map(|text| text.parse())
}

/// What a disk can be downloaded as.
fn targets() -> impl TypedValueParser<Value = Target> {
    PossibleValuesParser::new(Target::ALL.map(Target::as_str)).try_map(|text| text.parse())
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Upload a disk; the same command again goes on where an earlier one stopped
    Upload(Upload),
    /// Let the nodes get a disk from a URL
    Import(Import),
    /// Images that you may see
    List(ListImages),
    /// One image with its versions and tags
    Show { name: String },
    /// Change what is said of an image
    Edit(EditImage),
    /// Delete an image with all its versions; it can be restored for a while
    Delete {
        name: String,
        /// For good; also where it was deleted before
        #[arg(long)]
        purge: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Bring back a deleted image
    Restore { name: String },
    /// Versions of an image, the highest numbers first
    Versions { name: String },
    /// One version: its changelog, its build, the instances that run it
    Version {
        name: String,
        /// A number, a tag or a digest
        version: String,
    },
    /// Publish the content of a version under another number; nothing is stored again
    Promote {
        name: String,
        /// A number, a tag or a digest
        version: String,
        /// The number of the new version
        #[arg(long = "as", value_name = "VERSION")]
        number: String,
        /// What is new in it
        #[arg(long, default_value = "")]
        changelog: String,
    },
    /// Say what is new in a version
    Changelog { name: String, version: String, text: String },
    /// Say that a version should be used no more; the answer names the instances that run it
    Deprecate {
        name: String,
        version: String,
        /// What to do instead
        #[arg(long, short, default_value = "")]
        message: String,
    },
    /// Say that a version may be used again
    Undeprecate { name: String, version: String },
    /// Remove one version with its tags; not one that an instance runs
    RemoveVersion {
        name: String,
        version: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Tags of an image
    Tags { name: String },
    /// Remove a tag; its version stays
    Untag { name: String, tag: TagName },
    /// Move a tag back to a version in one step
    Rollback {
        name: String,
        version: String,
        #[arg(long, default_value = "latest")]
        tag: TagName,
    },
    /// Star an image, or take your star back
    Star {
        name: String,
        #[arg(long)]
        remove: bool,
    },
    /// Download a disk; the same command again goes on where an earlier one stopped
    Download(Download),
    /// Copy a disk to another cluster; the same command again goes on where an earlier one stopped
    Copy(CopyImage),
    /// Who was granted what for this image, besides its project's members
    Grants { name: String },
    /// Let somebody read, write or administer one image
    Grant {
        name: String,
        /// user:NAME, group:ORGANIZATION/NAME or organization:NAME
        who: String,
        #[arg(value_enum)]
        access: Access,
    },
    /// Take back what was granted for one image
    Revoke {
        name: String,
        /// user:NAME, group:ORGANIZATION/NAME or organization:NAME
        who: String,
    },
    /// Point a tag at a version
    Tag {
        /// NAME:TAG or NAME@DIGEST that is there
        source: ImageReference,
        /// The tag to set on it
        tag: TagName,
    },
}

#[derive(Debug, Args)]
pub struct Upload {
    pub file: PathBuf,
    /// NAME or NAME:TAG; the image is made if it is not there
    pub reference: ImageReference,
    /// The version's number, unique in the image [default: one more than the latest]
    #[arg(long = "version", value_name = "VERSION")]
    pub number: Option<String>,
    /// Found out from the file where missing
    #[arg(long, value_parser = formats())]
    pub format: Option<Format>,
    /// Length of a part in MiB [default: the node's choice]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub chunk_size: Option<u64>,
    /// Parts under way at once
    #[arg(long, default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(PARALLEL_MAX)))]
    pub parallel: u16,
    /// What is new in the version
    #[arg(long, default_value = "")]
    pub changelog: String,
}

#[derive(Debug, Args)]
pub struct Import {
    /// https://…, from a host that the nodes' settings allow
    pub url: String,
    /// NAME or NAME:TAG; the image is made if it is not there
    pub reference: ImageReference,
    /// The version's number, unique in the image
    #[arg(long = "version", value_name = "VERSION")]
    pub number: String,
    /// sha256:… of the whole file
    #[arg(long)]
    pub checksum: Option<Digest>,
    /// Found out from the file where missing
    #[arg(long, value_parser = formats())]
    pub format: Option<Format>,
    /// What is new in the version
    #[arg(long, default_value = "")]
    pub changelog: String,
    /// Only order it
    #[arg(long)]
    pub detach: bool,
}

#[derive(Debug, Args)]
pub struct ListImages {
    /// A part of the name, the description, a label or an annotation
    #[arg(long, short)]
    pub query: Option<String>,
    /// KEY=VALUE,…: all of them
    #[arg(long)]
    pub label: Option<Labels>,
    /// os_base, application or snapshot
    #[arg(long = "type", value_name = "TYPE")]
    pub image_type: Option<String>,
    /// name, created_at, updated_at, download_count, star_count or total_size_bytes, with :desc
    /// after it for descending
    #[arg(long, default_value = "name")]
    pub sort: String,
    /// Those that can be restored
    #[arg(long)]
    pub deleted: bool,
    /// Those that you have starred
    #[arg(long)]
    pub starred: bool,
}

#[derive(Debug, Args)]
pub struct EditImage {
    pub name: String,
    #[arg(long)]
    pub display_name: Option<String>,
    #[arg(long)]
    pub description: Option<String>,
    /// os_base, application or snapshot
    #[arg(long = "type", value_name = "TYPE")]
    pub image_type: Option<String>,
    #[arg(long)]
    pub os_type: Option<String>,
    #[arg(long)]
    pub os_version: Option<String>,
    #[arg(long)]
    pub architecture: Option<String>,
    /// KEY=VALUE,…: in place of those there are
    #[arg(long)]
    pub labels: Option<Labels>,
    /// KEY=VALUE,…: in place of those there are
    #[arg(long)]
    pub annotations: Option<Labels>,
}

#[derive(Debug, Subcommand)]
pub enum InstanceCommand {
    /// Say which version a virtual machine runs: that version cannot be removed then
    Register {
        /// What the system that runs it calls it
        id: InstanceName,
        /// NAME:TAG or NAME@DIGEST
        reference: ImageReference,
    },
    /// Instances of the images that you may see
    List {
        /// Of one image
        #[arg(long)]
        image: Option<String>,
        /// Of deprecated versions only
        #[arg(long)]
        deprecated: bool,
    },
    Show {
        id: InstanceName,
    },
    /// Say that a virtual machine is gone
    Remove {
        id: InstanceName,
    },
}

#[derive(Debug, Args)]
pub struct Download {
    /// NAME, NAME:TAG or NAME@DIGEST
    pub reference: ImageReference,
    /// The file, or a folder for it [default: NAME-TAG.FORMAT in this folder]
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// vmdk is for VMware's desktop programs, vmdk-stream for vSphere, vhd-fixed for Azure
    #[arg(long, value_parser = targets(), default_value = "qcow2")]
    pub format: Target,
}

#[derive(Debug, Args)]
pub struct CopyImage {
    /// NAME, NAME:TAG or NAME@DIGEST, in this cluster
    pub source: ImageReference,
    /// The other cluster: what 'shoal --context CONTEXT login …' called it
    #[arg(long, value_name = "CONTEXT")]
    pub to: String,
    /// NAME or NAME:TAG in the other cluster [default: as here]
    pub target: Option<ImageReference>,
    /// The version's number there [default: as here]
    #[arg(long = "version", value_name = "VERSION")]
    pub number: Option<String>,
    /// Parts under way at once
    #[arg(long, default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(PARALLEL_MAX)))]
    pub parallel: u16,
}
