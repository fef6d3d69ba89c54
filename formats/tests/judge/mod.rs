//! What the tests against qemu-img have in common: disks, conversions, and the judge itself.

#![allow(dead_code, reason = "each test program uses its part of this")]

use std::collections::HashMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use shoal_content::{ObjectKey, PackId, Recipe};
use shoal_formats::{DiskIngest, Export, Format, Target, decode_chunk, open, write_file};

pub type Packs = HashMap<ObjectKey, Vec<u8>>;

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("install {program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}{errors}");
    text
}

pub fn qemu_img(arguments: &[&str]) -> String {
    run("qemu-img", arguments)
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary folder has a plain name")
}

/// As qemu calls it.
pub fn driver(format: Format) -> &'static str {
    match format {
        Format::Vhd => "vpc",
        other => other.as_str(),
    }
}

/// A raw disk of `length` bytes with pieces of data here and there.
pub fn make_raw(folder: &Path, length: u64) -> PathBuf {
    use std::os::unix::fs::FileExt;
    let path = folder.join("made.raw");
    let file = File::create(&path).unwrap();
    file.set_len(length).unwrap();
    for (number, at) in
        [0, 70_000, 1 << 20, (4u64 << 30) - 300, length.saturating_sub(999)].into_iter().enumerate()
    {
        let mut piece = vec![0; 150_000.min(length.saturating_sub(at)) as usize];
        blake3::Hasher::new().update(&[number as u8]).finalize_xof().fill(&mut piece);
        file.write_all_at(&piece, at.min(length)).unwrap();
    }
    path
}

pub fn ingest(path: &Path, format: Format) -> (Arc<Recipe>, Packs) {
    let mut disk = open(Box::new(File::open(path).unwrap()), None).unwrap();
    assert_eq!(disk.format(), format);
    let mut packs = Packs::new();
    let sink = |id: PackId, bytes: Vec<u8>| {
        packs.insert(ObjectKey::Pack(id), bytes);
        Ok(())
    };
    let done = DiskIngest::new(sink)
        .run(disk.as_mut(), &mut |_| None, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    (Arc::new(done.recipe), packs)
}

pub fn export(recipe: &Arc<Recipe>, packs: &Packs, target: impl Into<Target>, path: &Path) {
    let export = Export::new(target, Arc::clone(recipe)).unwrap();
    let mut content = |guest: u64, buf: &mut [u8]| {
        let extent = recipe.extents_in(guest, 1)[0];
        let chunk = recipe.chunks()[extent.chunk as usize];
        let pack = &packs[&recipe.objects()[chunk.object as usize].key];
        let stored = &pack[chunk.at as usize..][..chunk.stored() as usize];
        let whole = decode_chunk(&chunk, stored).map_err(std::io::Error::other)?;
        buf.copy_from_slice(&whole[(guest - extent.offset) as usize..][..buf.len()]);
        Ok(())
    };
    let file = File::create(path).unwrap();
    write_file(&export, &file, &mut content, &mut |_| ControlFlow::Continue(())).unwrap();
}

/// Above this size only the places where [`make_raw`] puts data are compared: of the holes of a VHDX
/// qemu does not know, and through those of others it goes block by block.
const fn whole_bytes_max(driver: &str) -> u64 {
    match driver.as_bytes() {
        b"vhdx" => 1 << 30,
        b"vmdk" | b"vpc" => 64 << 30,
        _ => u64::MAX,
    }
}

const WINDOW_BYTES: u64 = 4 << 20;

/// Whether two images of disks of `length` bytes are equal, as qemu reads them.
pub fn compare(length: u64, left: (&str, &Path), right: (&str, &Path)) {
    if length <= whole_bytes_max(left.0).min(whole_bytes_max(right.0)) {
        qemu_img(&["compare", "-f", left.0, "-F", right.0, text(left.1), text(right.1)]);
        return;
    }
    let length = length.next_multiple_of(512);
    for at in [0, (4 << 30) - WINDOW_BYTES / 2, length / 2, length - WINDOW_BYTES] {
        let at = at.min(length - WINDOW_BYTES) / 512 * 512;
        let window = |(driver, path): (&str, &Path)| {
            format!(
                "driver=raw,offset={at},size={WINDOW_BYTES},file.driver={driver},\
                 file.file.driver=file,file.file.filename={}",
                text(path)
            )
        };
        qemu_img(&["compare", "--image-opts", &window(left), &window(right)]);
    }
}

pub fn refusal(path: &Path) -> String {
    let file = File::open(path).unwrap();
    open(Box::new(file), None).err().expect("it must be refused").reason().to_owned()
}

/// All that qemu sees on a disk.
pub fn qemu_reads(driver: &str, image: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (path, raw) = (folder.path().join("image"), folder.path().join("raw"));
    std::fs::write(&path, image).unwrap();
    qemu_img(&["convert", "-f", driver, "-O", "raw", text(&path), text(&raw)]);
    std::fs::read(&raw).unwrap()
}
