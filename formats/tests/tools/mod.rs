//! What the tests that file systems' own tools judge have in common: a tree of files, a disk to put
//! it on, and what comes out of an ingest.
//!
//! Every image is full of noise before a file system is made on it, so that free space which is
//! kept, or a used byte which is not, shows.

#![allow(dead_code, reason = "each test program uses its part of this")]

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use shoal_content::{ObjectKey, PackId, Recipe};
use shoal_formats::{
    DiskIngest, FileSystem, FreeSpace, Plan, StretchKind, decode_chunk, open, survey,
};

pub type Packs = HashMap<ObjectKey, Vec<u8>>;

/// How deep the made tree's directories lie, and what its files hold.
const DIRECTORIES: [&str; 3] = ["", "etc/", "usr/lib/"];
const FILE_BYTES: [usize; 9] = [0, 1, 50, 4096, 5000, 20_000, 70_000, 300_000, 700_000];

pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub fn run(program: &str, arguments: &[&str]) -> String {
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

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary folder has a plain name")
}

/// Names with contents.
pub fn files() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for directory in DIRECTORIES {
        for (number, bytes) in FILE_BYTES.into_iter().enumerate() {
            let seed = files.len() as u64 + 1000;
            files.insert(format!("{directory}f{number}"), noise(seed, bytes));
        }
    }
    files
}

pub fn make_tree(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    for (name, content) in files() {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    tree
}

/// A file full of noise, but for its first and last MiB: those hold old signatures' places.
pub fn junk(folder: &Path, mib: usize) -> PathBuf {
    let path = folder.join("disk");
    let piece = noise(7, 1 << 20);
    let file = File::create(&path).unwrap();
    file.set_len((mib as u64) << 20).unwrap();
    for number in 1..mib as u64 - 1 {
        file.write_all_at(&piece, number << 20).unwrap();
    }
    path
}

pub fn ingest(path: &Path, free_space: FreeSpace) -> (Plan, Recipe, Packs) {
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

pub fn rebuild(recipe: &Recipe, packs: &Packs) -> Vec<u8> {
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
pub fn hold_to_plan(disk: &[u8], plan: &Plan, recipe: &Recipe, packs: &Packs) -> Vec<u8> {
    let mut expected = disk.to_vec();
    for range in plan.free() {
        expected[range.start as usize..range.end as usize].fill(0);
    }
    let found = rebuild(recipe, packs);
    assert!(found == expected, "the recipe makes another disk than the plan says");
    found
}

/// Ingests the disk, checks it against its plan, and writes what comes out over it.
pub fn pass_through(path: &Path) -> Plan {
    let (plan, recipe, packs) = ingest(path, FreeSpace::Zero);
    let disk = fs::read(path).unwrap();
    let found = hold_to_plan(&disk, &plan, &recipe, &packs);
    fs::write(path, found).unwrap();
    plan
}

/// Pieces of files say where the content starts: each of the larger files is found there.
pub fn holds_the_files(path: &Path, plan: &Plan) {
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

/// What the plan has as directories, run by run.
pub fn directories(path: &Path, plan: &Plan) -> Vec<Vec<u8>> {
    let disk = fs::read(path).unwrap();
    let runs = plan.walk().filter(|stretch| stretch.kind == StretchKind::Directory);
    runs.map(|run| disk[run.offset as usize..][..run.length as usize].to_vec()).collect()
}

pub fn only(plan: &Plan, kind: FileSystem) -> u64 {
    let [volume] = plan.volumes() else { panic!("{:?}", plan.volumes()) };
    assert_eq!(volume.file_system, Some(kind));
    assert!(volume.free_bytes > 0, "free space was found");
    volume.free_bytes
}

/// The number that follows `label` in a tool's output.
pub fn number_after(output: &str, label: &str) -> u64 {
    let rest = output.split_once(label).unwrap_or_else(|| panic!("no {label:?} in {output}")).1;
    let digits: String =
        rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}
