//! The file systems' own tools judge: what they made comes back sound, with their free space zero.
//!
//! Invariant held here: each byte that the plan does not call free is in the recipe as it was on
//! the disk, and each free one is zero.
//! Non-goals: disks of several volumes (see `partitions`); those that are not to be trusted (see
//! `caution`).

mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use shoal_formats::FileSystem;
use tools::{
    directories, files, holds_the_files, junk, make_tree, number_after, only, pass_through, run,
    text,
};

fn judge_ext(options: &[&str], mib: usize) {
    let folder = tempfile::tempdir().unwrap();
    let (tree, disk) = (make_tree(folder.path()), junk(folder.path(), mib));
    let mut arguments = vec!["-q", "-F", "-E", "nodiscard", "-d", text(&tree)];
    arguments.extend(options);
    arguments.push(text(&disk));
    run("mke2fs", &arguments);
    let plan = pass_through(&disk);
    let free = only(&plan, FileSystem::Ext);
    holds_the_files(&disk, &plan);
    // The root, lost+found, etc, usr and usr/lib: each begins with the name of itself.
    let directories = directories(&disk, &plan);
    let first = directories.iter().filter(|run| run[6] == 1 && run[8] == b'.' && run[18] == 2);
    assert_eq!(first.count(), 5, "{options:?}");
    run("e2fsck", &["-fn", text(&disk)]);
    let facts = run("dumpe2fs", &["-h", text(&disk)]);
    let block = number_after(&facts, "Block size:");
    assert_eq!(free, number_after(&facts, "Free blocks:") * block, "{options:?}");
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    run("debugfs", &["-R", &format!("rdump / {}", text(&out)), text(&disk)]);
    for (name, content) in files() {
        assert!(fs::read(out.join(&name)).unwrap() == content, "{options:?}: {name}");
    }
}

#[test]
fn ext_of_every_kind_comes_back_sound_with_its_free_blocks_zero() {
    for options in [
        &["-t", "ext4"][..],
        &["-t", "ext4", "-b", "1024"],
        &["-t", "ext4", "-O", "^64bit,^metadata_csum,uninit_bg"],
        &["-t", "ext4", "-O", "meta_bg,^resize_inode,^flex_bg", "-b", "1024"],
        &["-t", "ext4", "-O", "sparse_super2"],
        &["-t", "ext4", "-O", "^extent,^64bit"],
        &["-t", "ext3"],
        &["-t", "ext2", "-b", "2048"],
        &["-t", "ext2", "-r", "0", "-I", "128"],
    ] {
        judge_ext(options, 48);
    }
}

#[test]
fn clusters_of_several_blocks_are_free_as_a_whole() {
    judge_ext(&["-t", "ext4", "-O", "bigalloc", "-C", "16384"], 64);
}

/// A protofile for `mkfs.xfs -p` (see its manual), and the files it names.
fn protofile(folder: &Path, tree: &Path) -> PathBuf {
    let mut lines = vec!["/".to_owned(), "0 0".to_owned(), "d--755 0 0".to_owned()];
    let file = |name: &str| {
        let short = name.rsplit('/').next().unwrap();
        format!("{short} ---644 0 0 {}", text(&tree.join(name)))
    };
    let names: Vec<String> = files().into_keys().collect();
    lines.extend(names.iter().filter(|name| !name.contains('/')).map(|name| file(name)));
    lines.push("etc d--755 0 0".into());
    // Of few names, a directory has no block of its own.
    let empty = tree.join("f0");
    lines.extend((0..60).map(|n| format!("a-further-name-{n} ---644 0 0 {}", text(&empty))));
    lines.extend(names.iter().filter(|name| name.starts_with("etc/")).map(|name| file(name)));
    lines.extend(["$", "usr d--755 0 0", "lib d--755 0 0"].map(str::to_owned));
    lines.extend(names.iter().filter(|name| name.starts_with("usr/lib/")).map(|name| file(name)));
    lines.extend(["$", "$", "$"].map(str::to_owned));
    let path = folder.join("proto");
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    path
}

#[test]
fn xfs_comes_back_sound_with_its_free_blocks_zero() {
    for options in [
        &["-m", "crc=1"][..],
        &["-m", "crc=0"],
        &["-m", "crc=1,rmapbt=1,reflink=0", "-b", "size=1024"],
        &["-m", "crc=1", "-i", "sparse=1,size=1024", "-d", "agcount=3"],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let tree = make_tree(folder.path());
        let disk = junk(folder.path(), 64);
        let proto = protofile(folder.path(), &tree);
        let mut arguments = vec!["-q", "-f", "-K", "--unsupported", "-p", text(&proto)];
        arguments.extend(options);
        arguments.push(text(&disk));
        run("mkfs.xfs", &arguments);
        let plan = pass_through(&disk);
        let free = only(&plan, FileSystem::Xfs);
        holds_the_files(&disk, &plan);
        let directories = directories(&disk, &plan);
        assert!(directories.iter().any(|run| run.starts_with(b"XD")), "{options:?}");
        run("xfs_repair", &["-n", "-f", text(&disk)]);
        let facts = run(
            "xfs_db",
            &["-f", "-r", "-c", "sb 0", "-c", "p blocksize", "-c", "freesp -s", text(&disk)],
        );
        let block = number_after(&facts, "blocksize");
        let free_blocks = number_after(&facts, "total free blocks");
        assert!(free <= free_blocks * block, "{options:?}: no more than xfs_db says");
        // xfs_db counts the blocks kept for the free-space trees as well: a few for each group.
        assert!(free + 64 * 16 * block >= free_blocks * block, "{options:?}: {free}");
    }
}

#[test]
fn fat_of_every_width_comes_back_sound_with_its_free_clusters_zero() {
    for (options, mib) in
        [(&["-F", "12"][..], 16), (&["-F", "16"], 32), (&["-F", "32", "-s", "1"], 48)]
    {
        let folder = tempfile::tempdir().unwrap();
        let (tree, disk) = (make_tree(folder.path()), junk(folder.path(), mib));
        let mut arguments = options.to_vec();
        arguments.push(text(&disk));
        run("mkfs.vfat", &arguments);
        for entry in fs::read_dir(&tree).unwrap() {
            let entry = entry.unwrap().path();
            run("mcopy", &["-s", "-i", text(&disk), text(&entry), "::"]);
        }
        run("mdel", &["-i", text(&disk), "::etc/f7"]);
        let plan = pass_through(&disk);
        let free = only(&plan, FileSystem::Fat);
        run("fsck.vfat", &["-n", text(&disk)]);
        let listing = run("mdir", &["-i", text(&disk), "::"]);
        let line = listing.lines().find(|line| line.ends_with("bytes free")).unwrap();
        assert_eq!(free, number_after(&line.replace(' ', ""), ""), "{options:?}");
        for (name, content) in files().iter().filter(|(name, _)| *name != "etc/f7") {
            let out = folder.path().join("out");
            run("mcopy", &["-n", "-i", text(&disk), &format!("::{name}"), text(&out)]);
            assert!(fs::read(&out).unwrap() == *content, "{options:?}: {name}");
        }
    }
}

#[test]
fn ntfs_comes_back_sound_with_its_free_clusters_zero() {
    for cluster in ["4096", "512", "65536"] {
        let folder = tempfile::tempdir().unwrap();
        let (tree, disk) = (make_tree(folder.path()), junk(folder.path(), 32));
        run("mkntfs", &["-F", "-Q", "-q", "-c", cluster, text(&disk)]);
        // ntfscp makes no directories.
        let names: Vec<String> = files().into_keys().filter(|name| !name.contains('/')).collect();
        for name in &names {
            run("ntfscp", &["-q", "-f", text(&disk), text(&tree.join(name)), name]);
        }
        let facts = run("ntfsinfo", &["-f", "-m", text(&disk)]);
        let plan = pass_through(&disk);
        let free = only(&plan, FileSystem::Ntfs);
        let cluster = number_after(&facts, "Cluster Size:");
        assert_eq!(free, number_after(&facts, "Free Clusters:") * cluster);
        assert!(directories(&disk, &plan).iter().any(|run| run.starts_with(b"INDX")));
        run("ntfsfix", &["-n", text(&disk)]);
        for name in names {
            let mut found = Command::new("ntfscat");
            let found = found.args(["-f", text(&disk), &name]).output().unwrap().stdout;
            assert!(found == files()[&name], "{name}");
        }
    }
}

#[test]
fn btrfs_comes_back_sound_with_its_free_space_zero() {
    for options in [&[][..], &["-M"], &["-m", "single", "-n", "4096", "-O", "^no-holes"]] {
        let folder = tempfile::tempdir().unwrap();
        let (tree, disk) = (make_tree(folder.path()), junk(folder.path(), 128));
        let mut arguments = vec!["-q", "-K", "-r", text(&tree)];
        arguments.extend(options);
        arguments.push(text(&disk));
        run("mkfs.btrfs", &arguments);
        let plan = pass_through(&disk);
        only(&plan, FileSystem::Btrfs);
        run("btrfs", &["check", "--check-data-csum", text(&disk)]);
        let out = folder.path().join("out");
        fs::create_dir(&out).unwrap();
        run("btrfs", &["restore", text(&disk), text(&out)]);
        for (name, content) in files() {
            assert!(fs::read(out.join(&name)).unwrap() == content, "{options:?}: {name}");
        }
    }
}
