//! Where a file system is not to be trusted with what it calls free: it was not unmounted, somebody
//! else uses the disk, or its metadata are damaged.
//!
//! Invariant held here, for sound metadata and damaged ones: each byte that the plan does not call
//! free is in the recipe as it was on the disk, and each free one is zero.

mod tools;

use std::fs::{self, File};
use std::ops::ControlFlow;

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use shoal_content::{ObjectKey, PackId};
use shoal_formats::{DiskIngest, FileSystem, FreeSpace, StretchKind, open, survey};
use tools::{
    Packs, hold_to_plan, holds_the_files, ingest, junk, make_tree, noise, only, rebuild, run, text,
};

#[test]
fn what_was_not_unmounted_or_is_to_be_kept_keeps_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, disk) = (make_tree(folder.path()), junk(folder.path(), 32));
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-E", "nodiscard", "-d", text(&tree), text(&disk)]);
    let (_, recipe, packs) = ingest(&disk, FreeSpace::Keep);
    assert!(rebuild(&recipe, &packs) == fs::read(&disk).unwrap(), "free space that is to be kept");
    for change in ["feature needs_recovery", "ssv state 0", "ssv state 3"] {
        let copy = folder.path().join("copy");
        fs::copy(&disk, &copy).unwrap();
        run("debugfs", &["-w", "-R", change, text(&copy)]);
        let (plan, recipe, packs) = ingest(&copy, FreeSpace::Zero);
        assert_eq!(plan.free(), [], "{change}");
        assert!(rebuild(&recipe, &packs) == fs::read(&copy).unwrap(), "{change}");
        holds_the_files(&copy, &plan);
    }
}

#[test]
fn a_fat_that_was_not_unmounted_or_whose_tables_differ_keeps_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let disk = junk(folder.path(), 32);
    run("mkfs.vfat", &["-F", "16", text(&disk)]);
    let sound = fs::read(&disk).unwrap();
    assert!(only(&ingest(&disk, FreeSpace::Zero).0, FileSystem::Fat) > 0);
    let reserved = usize::from(sound[14]) * 512;
    // The boot sector's dirty bit, the table's own, and a second table that differs.
    for (at, value) in [(0x25, 1), (reserved + 3, 0x7f), (reserved + 4 + 512 * 64, 1)] {
        let mut bytes = sound.clone();
        assert_ne!(bytes[at], value);
        bytes[at] = value;
        fs::write(&disk, bytes).unwrap();
        assert_eq!(ingest(&disk, FreeSpace::Zero).0.free(), [], "byte {at}");
    }
}

#[test]
fn signs_of_another_user_keep_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let disk = junk(folder.path(), 32);
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096", "-E", "nodiscard", text(&disk)]);
    let sound = fs::read(&disk).unwrap();
    assert!(only(&ingest(&disk, FreeSpace::Zero).0, FileSystem::Ext) > 0);
    let end = sound.len();
    let signs: [(usize, &[u8]); 4] = [
        (0, &[0xfc, 0x4e, 0x2b, 0xa9]),
        (0, b"LUKS\xba\xbe"),
        (end - 64, b"AVBf"),
        // A second file system's, left over or to come.
        (64 * 1024 + 64, b"_BHRfS_M"),
    ];
    for (at, sign) in signs {
        let mut bytes = sound.clone();
        bytes[at..at + sign.len()].copy_from_slice(sign);
        fs::write(&disk, bytes).unwrap();
        let mut opened = open(Box::new(File::open(&disk).unwrap()), None);
        // Some are refused before they are surveyed.
        if let Ok(opened) = &mut opened {
            assert_eq!(survey(opened.as_mut()).unwrap().free(), [], "{sign:?}");
        }
    }
}

/// Small images of each kind, as their tools make them, with files where that is easy.
fn specimens() -> Vec<(&'static str, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("d")).unwrap();
    for (number, bytes) in [100, 3000, 30_000, 200_000].into_iter().enumerate() {
        fs::write(tree.join(format!("d/f{number}")), noise(number as u64, bytes)).unwrap();
    }
    let disk = folder.path().join("disk");
    let mut made = Vec::new();
    let mut make = |name, mib: u64, program: &str, arguments: &[&str]| {
        let _ = fs::remove_file(&disk);
        File::create(&disk).unwrap().set_len(mib << 20).unwrap();
        let mut arguments = arguments.to_vec();
        arguments.push(text(&disk));
        run(program, &arguments);
        made.push((name, fs::read(&disk).unwrap()));
    };
    let tree = text(&tree);
    make("ext4", 4, "mke2fs", &["-q", "-F", "-t", "ext4", "-b", "1024", "-d", tree]);
    make("ext2", 4, "mke2fs", &["-q", "-F", "-t", "ext2", "-b", "1024", "-d", tree]);
    make("xfs", 32, "mkfs.xfs", &["-q", "-f", "--unsupported", "-d", "agcount=2"]);
    make("btrfs", 20, "mkfs.btrfs", &["-q", "-M", "-r", tree]);
    make("fat12", 2, "mkfs.vfat", &["-F", "12"]);
    make("fat32", 36, "mkfs.vfat", &["-F", "32", "-s", "1"]);
    make("ntfs", 2, "mkntfs", &["-F", "-Q", "-q"]);
    made
}

/// Damages metadata in some hundred ways, at places where there are any.
#[test]
fn damage_never_panics_hangs_or_changes_a_used_byte() {
    let cases = 120;
    for (name, sound) in specimens() {
        let mut disk = open(Box::new(sound.clone()), None).unwrap();
        let plan = survey(disk.as_mut()).unwrap();
        assert!(plan.volumes().iter().any(|volume| volume.free_bytes > 0), "{name}: {plan:?}");
        let meta: Vec<usize> = plan
            .walk()
            .filter(|stretch| stretch.kind == StretchKind::Other)
            .flat_map(|stretch| stretch.offset as usize..(stretch.offset + stretch.length) as usize)
            .filter(|at| sound[*at] != 0)
            .collect();
        let change = (
            any::<prop::sample::Index>(),
            prop_oneof![Just(0u8), Just(1), Just(0x7f), Just(0x80), Just(0xff), any::<u8>()],
            1..9usize,
        );
        // The same seed each time; a failure is printed with its changes.
        let config =
            ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let result = runner.run(&proptest::collection::vec(change, 1..12), |changes| {
            let (mut bytes, changes_count) = (sound.clone(), changes.len());
            for (place, value, length) in changes {
                let at = meta[place.index(meta.len())];
                let end = (at + length).min(bytes.len());
                bytes[at..end].fill(value);
            }
            let Ok(mut disk) = open(Box::new(bytes.clone()), None) else { return Ok(()) };
            let plan = survey(disk.as_mut()).unwrap();
            if changes_count % 4 != 1 {
                return Ok(());
            }
            let mut packs = Packs::new();
            let sink = |id: PackId, bytes: Vec<u8>| {
                packs.insert(ObjectKey::Pack(id), bytes);
                Ok(())
            };
            let done = DiskIngest::new(sink)
                .run(disk.as_mut(), &mut |_| None, &mut |_| ControlFlow::Continue(()))
                .unwrap();
            hold_to_plan(&bytes, &plan, &done.recipe, &packs);
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
