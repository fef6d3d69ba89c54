//! A disk of its own for one process, which can be made slow.
//!
//! An ext4 file system on a loop device, so that its journal is nobody else's, and a control group
//! that limits how many writes a second the process may make to that device. A sync is a write or
//! two, so it takes as long as a bad disk's.
//!
//! Works with control groups of version 1 (`blkio`) and 2 (`io`). Unmounted when dropped.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sys::stat::{major, minor};

use crate::process::run;

const GROUPS: &str = "/sys/fs/cgroup";

/// See the module's documentation.
#[derive(Debug)]
pub struct Disk {
    mount: PathBuf,
    /// `MAJOR:MINOR`.
    device: String,
    group: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Disk {
    /// A sparse disk of `mib` in `image`, mounted at `mount`.
    pub fn create(image: &Path, mount: &Path, mib: u64) -> Result<Self> {
        fs::create_dir_all(mount)?;
        fs::File::create(image)?.set_len(mib << 20)?;
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-F", "-t", "ext4", "-m", "0"]).arg(image);
        run(command)?;
        let mut command = Command::new("mount");
        command.args(["-o", "loop"]).arg(image).arg(mount);
        run(command)?;
        let device = fs::metadata(mount)?.dev();
        let device = format!("{}:{}", major(device), minor(device));
        let name = format!("shoal-{}-{}", std::process::id(), device.replace(':', "-"));
        let (group, version) = make_group(&name)?;
        Ok(Self { mount: mount.into(), device, group, version })
    }

    /// From now on the limits hold for this process.
    pub fn adopt(&self, process: u32) -> Result<()> {
        let path = self.group.join("cgroup.procs");
        fs::write(&path, process.to_string()).with_context(|| path.display().to_string())
    }

    /// At most so many writes a second.
    pub fn limit(&self, writes_per_second: u32) -> Result<()> {
        self.set(&writes_per_second.to_string())
    }

    pub fn release(&self) -> Result<()> {
        self.set(match self.version {
            Version::One => "0",
            Version::Two => "max",
        })
    }

    fn set(&self, limit: &str) -> Result<()> {
        let (file, text) = match self.version {
            Version::One => {
                ("blkio.throttle.write_iops_device", format!("{} {limit}", self.device))
            }
            Version::Two => ("io.max", format!("{} wiops={limit}", self.device)),
        };
        let path = self.group.join(file);
        fs::write(&path, text).with_context(|| path.display().to_string())
    }
}

fn make_group(name: &str) -> Result<(PathBuf, Version)> {
    let one = Path::new(GROUPS).join("blkio");
    let two = Path::new(GROUPS);
    let (parent, version) = if one.is_dir() {
        (one.as_path(), Version::One)
    } else {
        let offered = fs::read_to_string(two.join("cgroup.controllers")).unwrap_or_default();
        if !offered.split_whitespace().any(|controller| controller == "io") {
            bail!("a disk cannot be slowed here: no control group for block devices in {GROUPS}");
        }
        fs::write(two.join("cgroup.subtree_control"), "+io")?;
        (two, Version::Two)
    };
    let group = parent.join(name);
    fs::create_dir(&group).with_context(|| group.display().to_string())?;
    Ok((group, version))
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut command = Command::new("umount");
        command.arg("-l").arg(&self.mount);
        if let Err(error) = run(command) {
            eprintln!("{error:#}");
        }
        if let Err(error) = fs::remove_dir(&self.group) {
            eprintln!("{}: {error}", self.group.display());
        }
    }
}
