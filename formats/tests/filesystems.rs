//! The file systems' own tools judge: what they made comes back sound, with their free space zero.
//!
//! Needs root for the one that asks for a loop device. Every image is full of noise before a file system is made on it, so that free space which is
//! kept, or a used byte which is not, shows.
//! Invariant held here, for sound metadata and damaged ones: each byte that the plan does not call
//! free is in the recipe as it was on the disk, and each free one is zero.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use shoal_content::{ObjectKey, PackId, Recipe};
use shoal_formats::{
    DiskIngest, FileSystem, FreeSpace, Plan, StretchKind, decode_chunk, open, survey,
};

type Packs = HashMap<ObjectKey, Vec<u8>>;

/// How deep the made tree's directories lie, and what its files hold.
const DIRECTORIES: [&str; 3] = ["", "etc/", "usr/lib/"];
const FILE_BYTES: [usize; 9] = [0, 1, 50, 4096, 5000, 20_000, 70_000, 300_000, 700_000];

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn run(program: &str, arguments: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output =
        Command::new(program).args(arguments).env("PATH", path).env("LC_ALL", "C").output();
    let output =
        output.unwrap_or_else(|error| panic!("{program} judges here, install it: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}{complaint}");
    text
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary folder has a plain name")
}

/// Names with contents.
fn files() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for directory in DIRECTORIES {
        for (number, bytes) in FILE_BYTES.into_iter().enumerate() {
            let seed = files.len() as u64 + 1000;
            files.insert(format!("{directory}f{number}"), noise(seed, bytes));
        }
    }
    files
}

fn make_tree(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    for (name, content) in files() {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    tree
}

/// A file full of noise, but for its first and last MiB: those hold old signatures' places.
fn junk(folder: &Path, mib: usize) -> PathBuf {
    let path = folder.join("disk");
    let piece = noise(7, 1 << 20);
    let file = File::create(&path).unwrap();
    file.set_len((mib as u64) << 20).unwrap();
    for number in 1..mib as u64 - 1 {
        file.write_all_at(&piece, number << 20).unwrap();
    }
    path
}

fn ingest(path: &Path, free_space: FreeSpace) -> (Plan, Recipe, Packs) {
    let mut disk = open(Box::new(File::open(path).unwrap()), None).unwrap();
    let plan = survey(disk.as_mut()).unwrap();
    let mut packs = Packs::new();
    let sink = |id: PackId, bytes: Vec<u8>| {
        packs.insert(ObjectKey::Pack(id), bytes);
        Ok(())
    };
    let done = DiskIngest::new(sink)
        .free_space(free_space)
        .run(disk.as_mut(), &mut |_| None, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    (plan, done.recipe, packs)
}

fn rebuild(recipe: &Recipe, packs: &Packs) -> Vec<u8> {
    let mut disk = vec![0; recipe.length() as usize];
    for extent in recipe.extents() {
        let chunk = recipe.chunks()[extent.chunk as usize];
        let pack = &packs[&recipe.objects()[chunk.object as usize].key];
        let stored = &pack[chunk.at as usize..][..chunk.stored() as usize];
        let content = decode_chunk(&chunk, stored).unwrap();
        disk[extent.offset as usize..][..content.len()].copy_from_slice(&content);
    }
    disk
}

/// What is free is zero, and all else as it was. Gives what the recipe makes.
fn hold_to_plan(disk: &[u8], plan: &Plan, recipe: &Recipe, packs: &Packs) -> Vec<u8> {
    let mut expected = disk.to_vec();
    for range in plan.free() {
        expected[range.start as usize..range.end as usize].fill(0);
    }
    let found = rebuild(recipe, packs);
    assert!(found == expected, "the recipe makes another disk than the plan says");
    found
}

/// Ingests the disk, checks it against its plan, and writes what comes out over it.
fn pass_through(path: &Path) -> Plan {
    let (plan, recipe, packs) = ingest(path, FreeSpace::Zero);
    let disk = fs::read(path).unwrap();
    let found = hold_to_plan(&disk, &plan, &recipe, &packs);
    fs::write(path, found).unwrap();
    plan
}

/// Pieces of files say where the content starts: each of the larger files is found there.
fn holds_the_files(path: &Path, plan: &Plan) {
    let disk = fs::read(path).unwrap();
    let starts: Vec<u64> = plan
        .walk()
        .filter(|stretch| stretch.kind == StretchKind::File { position: 0 })
        .map(|stretch| stretch.offset)
        .collect();
    for (name, content) in files().iter().filter(|(_, content)| content.len() >= 4096) {
        let head = &content[..4096];
        let found = starts.iter().any(|at| disk[*at as usize..].starts_with(head));
        assert!(found, "no piece starts with the content of {name}");
    }
}

fn only(plan: &Plan, kind: FileSystem) -> u64 {
    let [volume] = plan.volumes() else { panic!("{:?}", plan.volumes()) };
    assert_eq!(volume.file_system, Some(kind));
    assert!(volume.free_bytes > 0, "free space was found");
    volume.free_bytes
}

/// The number that follows `label` in a tool's output.
fn number_after(output: &str, label: &str) -> u64 {
    let rest = output.split_once(label).unwrap_or_else(|| panic!("no {label:?} in {output}")).1;
    let digits: String =
        rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

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
