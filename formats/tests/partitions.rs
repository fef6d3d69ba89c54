//! File systems in partitions and on a logical volume, as sfdisk and LVM lay them out.
//!
//! Needs root for the one that asks for a loop device.
//! Invariant held here: each volume is found where it lies, and what lies beside it is kept.

mod tools;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use shoal_formats::FileSystem;
use tools::{holds_the_files, junk, make_tree, noise, only, pass_through, run, text};

/// Puts an ext4 and a FAT into partitions that `script` describes to sfdisk.
fn partitioned(folder: &Path, script: &str, starts: [u64; 2]) -> PathBuf {
    let disk = junk(folder, 64);
    let input = folder.join("script");
    fs::write(&input, script).unwrap();
    run("sh", &["-c", &format!("sfdisk -q {} < {}", text(&disk), text(&input))]);
    let tree = make_tree(folder);
    let [ext, fat] = starts.map(|sector| sector * 512);
    run(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-E",
            &format!("nodiscard,offset={ext}"),
            "-d",
            text(&tree),
            text(&disk),
            "24M",
        ],
    );
    let part = folder.join("part");
    fs::write(&part, noise(8, 8 << 20)).unwrap();
    run("mkfs.vfat", &[text(&part)]);
    File::options()
        .write(true)
        .open(&disk)
        .unwrap()
        .write_all_at(&fs::read(part).unwrap(), fat)
        .unwrap();
    disk
}

#[test]
fn partitions_are_found_and_what_lies_beside_them_is_kept() {
    // The odd sector of old tools, a logical partition, and GPT.
    let cases = [
        ("label: dos\nstart=63,size=57344,type=83\nstart=65536,size=16384,type=c\n", [63, 65536]),
        (
            "label: dos\nstart=2048,size=65536,type=5\nstart=4096,size=53248,type=83\n\
             start=81920,size=16384,type=c\n",
            [4096, 81920],
        ),
        ("label: gpt\nstart=2048,size=57344\nstart=65536,size=16384,type=uefi\n", [2048, 65536]),
    ];
    for (script, starts) in cases {
        let folder = tempfile::tempdir().unwrap();
        let script = if script.contains("type=5") {
            // sfdisk numbers logical partitions from 5 on.
            "label: dos\n1: start=2048,size=65536,type=5\n2: start=81920,size=16384,type=c\n\
             5: start=4096,size=53248,type=83\n"
        } else {
            script
        };
        let disk = partitioned(folder.path(), script, starts);
        let plan = pass_through(&disk);
        let mut found: Vec<_> =
            plan.volumes().iter().map(|v| (v.offset / 512, v.file_system)).collect();
        found.sort_unstable_by_key(|volume| volume.0);
        let expected = [(starts[0], Some(FileSystem::Ext)), (starts[1], Some(FileSystem::Fat))];
        assert_eq!(found, expected, "{script}");
        assert!(plan.volumes().iter().all(|volume| volume.free_bytes > 1 << 20), "{plan:?}");
        holds_the_files(&disk, &plan);
        run("e2fsck", &["-fn", &format!("{}?offset={}", text(&disk), starts[0] * 512)]);
    }
}

/// A loop device, given back when it is dropped.
struct Loop(String);

impl Loop {
    fn new(disk: &Path) -> Self {
        Self(run("losetup", &["-f", "--show", text(disk)]).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// LVM's own metadata; the volume is added to their text, since making one needs device mapper.
#[test]
fn a_file_system_on_a_logical_volume_in_two_segments_is_found() {
    const EXTENT_BYTES: u64 = 4 << 20;
    /// Of the physical volume, in the order of the logical one.
    const EXTENTS: [u64; 8] = [8, 9, 10, 11, 1, 2, 3, 4];
    const VOLUME: &str = r#"
        logical_volumes { a {
            id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA"
            status = ["READ", "WRITE", "VISIBLE"]
            flags = []
            segment_count = 2
            segment1 { start_extent = 0 extent_count = 4 type = "striped" stripe_count = 1
                       stripes = [ "pv0", 8 ] }
            segment2 { start_extent = 4 extent_count = 4 type = "striped" stripe_count = 1
                       stripes = [ "pv0", 1 ] }
        } }
    "#;
    let folder = tempfile::tempdir().unwrap();
    let (tree, disk) = (make_tree(folder.path()), junk(folder.path(), 64));
    let group = format!("shoaltest{}", std::process::id());
    let description = folder.path().join("group");
    {
        let device = Loop::new(&disk);
        run("pvcreate", &["-q", "-y", "--devices", &device.0, &device.0]);
        run("vgcreate", &["-q", "--devices", &device.0, &group, &device.0]);
        run("vgcfgbackup", &["-q", "--devices", &device.0, "-f", text(&description), &group]);
        let described = fs::read_to_string(&description).unwrap();
        let (inside, end) = described.rsplit_once('}').unwrap();
        fs::write(&description, format!("{inside}{VOLUME}}}{end}")).unwrap();
        run("vgcfgrestore", &["-q", "--devices", &device.0, "-f", text(&description), &group]);
    }
    let volume = folder.path().join("volume");
    fs::write(&volume, noise(9, 32 << 20)).unwrap();
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-E", "nodiscard", "-d", text(&tree), text(&volume)]);
    let content = fs::read(&volume).unwrap();
    let file = File::options().read(true).write(true).open(&disk).unwrap();
    let place = |extent: u64| (1 << 20) + extent * EXTENT_BYTES;
    for (extent, part) in EXTENTS.into_iter().zip(content.chunks(EXTENT_BYTES as usize)) {
        file.write_all_at(part, place(extent)).unwrap();
    }
    let plan = pass_through(&disk);
    assert!(only(&plan, FileSystem::Ext) > 4 << 20);
    holds_the_files(&disk, &plan);
    let mut out = vec![0; content.len()];
    for (extent, part) in EXTENTS.into_iter().zip(out.chunks_mut(EXTENT_BYTES as usize)) {
        file.read_exact_at(part, place(extent)).unwrap();
    }
    assert!(out != content, "free space was noise");
    fs::write(&volume, out).unwrap();
    run("e2fsck", &["-fn", text(&volume)]);
}
