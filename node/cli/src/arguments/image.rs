//! The grammar of what is done with images and instances.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value};
use shoal_content::{
    AccountName, Digest, ImageReference, InstanceName, Labels, RepositoryName, TagName, UploadId,
};
use shoal_formats::{Format, Target};

use super::{Access, Visibility};

/// The most parts of one upload under way at once; each is held in memory.
pub const PARALLEL_MAX: u16 = 16;

/// The most images on one page of a list.
pub const PAGE_SIZE_MAX: u64 = 500;

pub const IMAGES: &str = "\
An image is a name with versions, which never change, and tags, which move. The first part of the
name is its project: it comes to be with its first image, private and yours. An upload makes the
image where it is not there; `create` does so beforehand, with what is to be said of it.

  shoal image create zedge/desktop --os linux --arch x86_64 --min-memory 4096 --label team=blue
  shoal image upload disk.qcow2 zedge/desktop:v1 --version 1.0.0 --tag stable \\
      --changelog 'First one' --build-info commit=4f2c1d --build-info builder=ci
  shoal image list --label team=blue --os linux --sort download_count:desc
  shoal image edit zedge/desktop --recommended-cpu 4 --annotation wiki=https://wiki.example/desktop
  shoal image tag zedge/desktop:1.0.0 latest
  shoal image scan zedge/desktop --wait
  shoal image vulnerabilities zedge/desktop --severity critical,high --fail-on critical

What was stopped goes on by the same command: an upload, a download, a copy. An upload that is to
come to nothing holds room for a day, or until `upload-abort` ends it.";

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
    /// How far an upload or an import is, and how it ended
    UploadStatus {
        name: String,
        /// As the upload said it when it was stopped, or `import` when it was ordered
        upload: UploadId,
    },
    /// End an upload or an import that is to come to nothing, and free what it holds
    UploadAbort {
        name: String,
        /// As the upload said it when it was stopped, or `import` when it was ordered
        upload: UploadId,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Make an image without versions, and say what it will be
    Create(NewImage),
    /// Images that you may see
    List(ListImages),
    /// One image: what is said of it, its versions and tags
    Show { name: String },
    /// Which version a name means now, by its tag, its number or its digest
    Resolve {
        /// NAME, NAME:TAG or NAME@DIGEST
        reference: ImageReference,
    },
    /// Change what is said of an image; what is not given stays
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
    Versions {
        name: String,
        /// Only those that may be used, or only those that should be no more
        #[arg(long, value_parser = ["active", "deprecated"])]
        status: Option<String>,
    },
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
        #[command(flatten)]
        new: NewVersion,
    },
    /// Say what is new in a version
    Changelog { name: String, version: String, text: String },
    /// Say how a version was built, in place of what was said
    BuildInfo {
        name: String,
        version: String,
        /// KEY=VALUE, or an object in JSON; several are put together
        #[arg(required = true, value_name = "KEY=VALUE")]
        info: Vec<BuildInfo>,
    },
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
    /// Look for vulnerabilities in a version
    Scan {
        /// NAME is the latest version; NAME:TAG, NAME:NUMBER or NAME@DIGEST another one
        reference: String,
        /// Until the scan has ended; where it fails, so does this
        #[arg(long)]
        wait: bool,
    },
    /// What the last scan of a version has found, the most severe first
    Vulnerabilities {
        /// NAME is the latest version; NAME:TAG, NAME:NUMBER or NAME@DIGEST another one
        reference: String,
        /// Only these; several are parted by commas
        #[arg(long, value_enum, value_delimiter = ',')]
        severity: Vec<Severity>,
        /// Exit code 7 where anything is as severe as this or worse, and 1 where nothing is known
        #[arg(long, value_enum)]
        fail_on: Option<Severity>,
    },
    /// Point a tag at a version
    Tag {
        /// NAME:TAG or NAME@DIGEST that is there
        source: ImageReference,
        /// The tag to set on it
        tag: TagName,
    },
}

/// How severe a vulnerability is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Severity {
    Critical,
    High,
    Medium,
    Low,
    Unknown,
}

impl Severity {
    /// The worst first.
    pub const ALL: [Self; 5] = [Self::Critical, Self::High, Self::Medium, Self::Low, Self::Unknown];

    /// As it stands in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
            Self::Unknown => "unknown",
        }
    }
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
    /// sha256:… or sha512:… of the whole file (or its digits alone), which becomes a version only if it
    /// arrives as that
    #[arg(long, value_parser = Digest::of_checksum)]
    pub checksum: Option<Digest>,
    #[command(flatten)]
    pub new: NewVersion,
}

/// What a new version gets besides its content.
#[derive(Debug, Args)]
pub struct NewVersion {
    /// A tag that it gets besides; may be given several times. latest goes to the highest number by
    /// itself
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<TagName>,
    /// What is new in it
    #[arg(long, default_value = "")]
    pub changelog: String,
    /// How it was built: KEY=VALUE, or an object in JSON; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub build_info: Vec<BuildInfo>,
}

/// How a version was built: `KEY=VALUE`, or an object in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildInfo(pub Map<String, Value>);

impl BuildInfo {
    /// All that was given as one object; the later counts where two say the same.
    pub fn joined(given: &[Self]) -> Option<Map<String, Value>> {
        let all = given.iter().flat_map(|one| one.0.clone());
        (!given.is_empty()).then(|| all.collect())
    }
}

impl FromStr for BuildInfo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim_start().starts_with('{') {
            let object = serde_json::from_str(text);
            return object.map(Self).map_err(|error| format!("it is no object in JSON: {error}"));
        }
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Self([(key.to_owned(), Value::from(value))].into_iter().collect()))
            }
            _ => Err("it is KEY=VALUE, or an object in JSON".to_owned()),
        }
    }
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
    /// sha256:… or sha512:… of the whole file, or its digits alone
    #[arg(long, value_parser = Digest::of_checksum)]
    pub checksum: Option<Digest>,
    /// Found out from the file where missing
    #[arg(long, value_parser = formats())]
    pub format: Option<Format>,
    #[command(flatten)]
    pub new: NewVersion,
    /// Only order it
    #[arg(long)]
    pub detach: bool,
}

#[derive(Debug, Args)]
pub struct ListImages {
    /// A part of the name, the description, a label or an annotation
    #[arg(long, short)]
    pub query: Option<String>,
    /// A part of the name, for instance zedge/
    #[arg(long)]
    pub name: Option<String>,
    /// KEY=VALUE,…: all of them; may be given several times
    #[arg(long = "label", alias = "labels", value_name = "KEY=VALUE,…")]
    pub labels: Vec<Labels>,
    /// KEY=VALUE,…: all of them; may be given several times
    #[arg(long = "annotation", alias = "annotations", value_name = "KEY=VALUE,…")]
    pub annotations: Vec<Labels>,
    #[arg(long, value_parser = ["disk", "container"])]
    pub kind: Option<String>,
    /// os_base, application or snapshot
    #[arg(long = "type", value_name = "TYPE")]
    pub image_type: Option<String>,
    /// For instance linux: as `create` or `edit` said it
    #[arg(long, visible_alias = "os", value_name = "OS")]
    pub os_type: Option<String>,
    /// For instance x86_64: as `create` or `edit` said it
    #[arg(long, visible_alias = "arch")]
    pub architecture: Option<String>,
    /// What downloads default to
    #[arg(long)]
    pub format: Option<String>,
    /// pending is one without a version
    #[arg(long, value_parser = ["active", "pending"], conflicts_with = "deleted")]
    pub status: Option<String>,
    /// Who made it
    #[arg(long, value_name = "ACCOUNT")]
    pub owner: Option<String>,
    /// That owns its project
    #[arg(long, value_name = "ORGANIZATION")]
    pub organization: Option<String>,
    /// Of its project
    #[arg(long, value_enum)]
    pub visibility: Option<Visibility>,
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
    /// Only this page, from 1, and how many there are [default: all pages]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub page: Option<u64>,
    /// Images on a page; without --page, the first one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=PAGE_SIZE_MAX))]
    pub page_size: Option<u64>,
}

#[derive(Debug, Args)]
pub struct NewImage {
    pub name: RepositoryName,
    #[command(flatten)]
    pub profile: Profile,
    /// Of its project, where this makes it [default: private]
    #[arg(long, value_enum)]
    pub visibility: Option<Visibility>,
    /// That owns its project, where this makes it [default: you do]
    #[arg(long, value_name = "ORGANIZATION")]
    pub organization: Option<AccountName>,
}

#[derive(Debug, Args)]
pub struct EditImage {
    pub name: String,
    #[command(flatten)]
    pub profile: Profile,
}

/// What is said of an image.
#[derive(Debug, Clone, Args)]
pub struct Profile {
    /// What people read in place of the name
    #[arg(long)]
    pub display_name: Option<String>,
    #[arg(long)]
    pub description: Option<String>,
    /// os_base, application or snapshot
    #[arg(long = "type", value_name = "TYPE")]
    pub image_type: Option<String>,
    /// For instance linux or windows
    #[arg(long, visible_alias = "os", value_name = "OS")]
    pub os_type: Option<String>,
    /// For instance 22.04
    #[arg(long, value_name = "VERSION")]
    pub os_version: Option<String>,
    /// For instance x86_64 or aarch64
    #[arg(long, visible_alias = "arch")]
    pub architecture: Option<String>,
    /// What downloads give where they ask for none; qcow2 in a new image
    #[arg(long, value_parser = targets())]
    pub format: Option<Target>,
    /// Processors that a virtual machine needs
    #[arg(long = "min-cpu", alias = "min-cpu-cores", value_name = "CORES")]
    pub min_cpu_cores: Option<u32>,
    /// Memory that it needs
    #[arg(long = "min-memory", alias = "min-memory-mb", value_name = "MB")]
    pub min_memory_mb: Option<u64>,
    /// Room that it needs
    #[arg(long = "min-disk", alias = "min-disk-gb", value_name = "GB")]
    pub min_disk_gb: Option<u64>,
    /// Processors that it had better have
    #[arg(long = "recommended-cpu", alias = "recommended-cpu-cores", value_name = "CORES")]
    pub recommended_cpu_cores: Option<u32>,
    /// Memory that it had better have
    #[arg(long = "recommended-memory", alias = "recommended-memory-mb", value_name = "MB")]
    pub recommended_memory_mb: Option<u64>,
    /// Room that it had better have
    #[arg(long = "recommended-disk", alias = "recommended-disk-gb", value_name = "GB")]
    pub recommended_disk_gb: Option<u64>,
    /// KEY=VALUE,…: all that it is to have, in place of those there are; may be given several
    /// times, '' is none
    #[arg(long = "label", visible_alias = "labels", value_name = "KEY=VALUE,…")]
    pub labels: Vec<Labels>,
    /// KEY=VALUE,…: the same for what is longer or no use to filter by
    #[arg(long = "annotation", visible_alias = "annotations", value_name = "KEY=VALUE,…")]
    pub annotations: Vec<Labels>,
}

#[derive(Debug, Subcommand)]
pub enum InstanceCommand {
    /// Say which version a virtual machine runs: that version cannot be removed then
    Register {
        /// What the system that runs it calls it
        id: InstanceName,
        /// NAME:TAG or NAME@DIGEST
        reference: ImageReference,
        /// Refuse where the instance is registered already, whatever it runs
        #[arg(long)]
        new: bool,
    },
    /// Instances of the images that you may see
    List {
        /// Of one image
        #[arg(long)]
        image: Option<String>,
        /// Of that image's version: a number, a tag or a digest
        #[arg(long = "version", value_name = "VERSION", requires = "image")]
        number: Option<String>,
        /// Of deprecated versions only
        #[arg(long)]
        deprecated: bool,
        /// Registered by this account
        #[arg(long, value_name = "ACCOUNT")]
        by: Option<String>,
    },
    /// One instance, and what it runs
    Show { id: InstanceName },
    /// Say that a virtual machine is gone
    Remove { id: InstanceName },
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
