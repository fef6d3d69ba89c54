//! Two versions of a Debian system as disks: made from packages, and again after an update.
//!
//! Needs root, mmdebstrap, sfdisk, e2fsprogs or xfsprogs, and a mirror of Debian.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// About what a small server has.
const PACKAGES: &str = "linux-image-cloud-amd64,systemd-sysv,openssh-server,python3,cloud-init,\
    grub-pc-bin,vim-tiny,curl,sudo,rsyslog,locales,man-db,iproute2,ifupdown,netbase,\
    ca-certificates,apt-utils,less,initramfs-tools,perl";
const MAIN: &str = "deb http://deb.debian.org/debian bookworm main";
const UPDATES: [&str; 2] = [
    "deb http://deb.debian.org/debian-security bookworm-security main",
    "deb http://deb.debian.org/debian bookworm-updates main",
];
/// Where the one partition starts.
const PARTITION_BYTES: u64 = 1 << 20;
const DISK_BYTES: u64 = 1536 << 20;

/// What the partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum FileSystem {
    Ext4,
    Xfs,
}

/// The disks, in a folder of the caller's.
#[derive(Debug)]
pub struct Versions {
    pub old: PathBuf,
    /// Made anew from today's packages.
    pub rebuilt: PathBuf,
    /// The old one, updated, with what that left behind in free blocks.
    pub untrimmed: PathBuf,
    /// The same, trimmed.
    pub upgraded: PathBuf,
}

/// Runs a command and gives its output.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?} does not start"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {complaint}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Makes all of them; takes some minutes.
pub fn make(folder: &Path, file_system: FileSystem) -> Result<Versions> {
    if !nix::unistd::geteuid().is_root() {
        bail!("making disks of Debian needs root; give disks of your own with --old and --new");
    }
    let versions = Versions {
        old: folder.join("old.raw"),
        rebuilt: folder.join("rebuilt.raw"),
        untrimmed: folder.join("untrimmed.raw"),
        upgraded: folder.join("upgraded.raw"),
    };
    let [old, new] = ["old", "new"].map(|name| folder.join(name));
    bootstrap(&old, &[])?;
    bootstrap(&new, &UPDATES)?;
    write_disk(&old, &versions.old, file_system)?;
    write_disk(&new, &versions.rebuilt, file_system)?;
    let mount = folder.join("mount");
    let copy = |from, to| run(Command::new("cp").arg("--sparse=always").args([from, to]));
    copy(&versions.old, &versions.untrimmed)?;
    mounted(&versions.untrimmed, &mount, upgrade)?;
    copy(&versions.untrimmed, &versions.upgraded)?;
    mounted(&versions.upgraded, &mount, |root| run(Command::new("fstrim").arg(root)).map(drop))?;
    for tree in [old, new] {
        std::fs::remove_dir_all(tree)?;
    }
    Ok(versions)
}

fn bootstrap(tree: &Path, more: &[&str]) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--variant=minbase", &format!("--include={PACKAGES}")]);
    command.arg("--aptopt=Apt::Install-Recommends \"false\"").arg("bookworm").arg(tree).arg(MAIN);
    run(command.args(more)).map(drop)
}

fn write_disk(tree: &Path, disk: &Path, file_system: FileSystem) -> Result<()> {
    std::fs::File::create(disk)?.set_len(DISK_BYTES)?;
    let script = "label: gpt\nlabel-id: 11111111-2222-3333-4444-555555555555\nstart=2048\n";
    let layout = disk.with_extension("layout");
    std::fs::write(&layout, script)?;
    run(Command::new("sfdisk").arg("-q").arg(disk).stdin(std::fs::File::open(layout)?))?;
    const ID: &str = "01234567-89ab-cdef-0123-456789abcdef";
    match file_system {
        FileSystem::Ext4 => {
            let extended = format!("offset={PARTITION_BYTES},hash_seed={ID}");
            let mut command = Command::new("mke2fs");
            command.args(["-q", "-F", "-t", "ext4", "-U", ID, "-E", &extended, "-d"]);
            let mib = (DISK_BYTES - 2 * PARTITION_BYTES) >> 20;
            run(command.arg(tree).arg(disk).arg(format!("{mib}M"))).map(drop)
        }
        FileSystem::Xfs => {
            let part = disk.with_extension("part");
            std::fs::File::create(&part)?.set_len(DISK_BYTES - 2 * PARTITION_BYTES)?;
            run(Command::new("mkfs.xfs").args(["-q", "-m", &format!("uuid={ID}")]).arg(&part))?;
            let mut copy = Command::new("dd");
            copy.args(["bs=1M", "seek=1", "conv=notrunc,sparse"]);
            run(copy.arg(format!("if={}", part.display())).arg(format!("of={}", disk.display())))?;
            std::fs::remove_file(part)?;
            mounted(disk, &disk.with_extension("mount"), |at| {
                run(Command::new("cp").arg("-a").arg(tree.join(".")).arg(at)).map(drop)
            })
        }
    }
}

fn mounted(disk: &Path, at: &Path, with: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    std::fs::create_dir_all(at)?;
    let options = format!("loop,offset={PARTITION_BYTES}");
    run(Command::new("mount").args(["-o", &options]).arg(disk).arg(at))?;
    let done = with(at);
    run(Command::new("umount").arg(at))?;
    done
}

fn upgrade(root: &Path) -> Result<()> {
    let mut sources = vec![MAIN];
    sources.extend(UPDATES);
    std::fs::write(root.join("etc/apt/sources.list"), sources.join("\n") + "\n")?;
    std::fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"))?;
    let mut command = Command::new("chroot");
    // A folder for temporary files that is named outside is not there inside.
    command.env("DEBIAN_FRONTEND", "noninteractive").env_remove("TMPDIR");
    command.arg(root).args(["sh", "-c"]);
    // Daemons of the packages stay off; what apt fetched does not stay.
    command.arg(
        "printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d \
         && apt-get update -q && apt-get -y -q dist-upgrade && apt-get clean \
         && rm -rf /var/lib/apt/lists/* /usr/sbin/policy-rc.d",
    );
    run(&mut command).map(drop)
}
