//! qemu-img judges: what it writes we read the same, what we write it reads the same and finds
//! sound.

use std::collections::HashMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use shoal_content::{ObjectKey, PackId, Recipe};
use shoal_formats::{DiskIngest, Export, Format, decode_chunk, open, write_file};

type Packs = HashMap<ObjectKey, Vec<u8>>;

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output();
    let output = output.expect("qemu-img is the judge of these tests: install qemu-utils");
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary folder has a plain name")
}

/// A raw disk of `length` bytes with pieces of data here and there.
fn make_raw(folder: &Path, length: u64) -> PathBuf {
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

fn ingest(path: &Path, format: Format) -> (Arc<Recipe>, Packs) {
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

fn export(recipe: &Arc<Recipe>, packs: &Packs, format: Format, path: &Path) {
    let export = Export::new(format, Arc::clone(recipe)).unwrap();
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

/// qemu's qcow2 in, ours out in both formats, compared with where it all came from.
fn judge(length: u64, options: &str, compressed: bool) {
    let folder = tempfile::tempdir().unwrap();
    let raw = make_raw(folder.path(), length);
    let made = folder.path().join("made.qcow2");
    let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
    if compressed {
        arguments.push("-c");
    }
    arguments.extend([text(&raw), text(&made)]);
    qemu_img(&arguments);
    let (recipe, packs) = ingest(&made, Format::Qcow2);
    // qemu rounds a size up to whole sectors.
    assert_eq!(recipe.length(), length.next_multiple_of(512), "{options}");
    let ours = folder.path().join("ours.qcow2");
    export(&recipe, &packs, Format::Qcow2, &ours);
    qemu_img(&["check", "-f", "qcow2", text(&ours)]);
    qemu_img(&["compare", "-f", "qcow2", "-F", "qcow2", text(&made), text(&ours)]);
    if length <= 8 << 30 {
        let plain = folder.path().join("ours.raw");
        export(&recipe, &packs, Format::Raw, &plain);
        qemu_img(&["compare", "-f", "qcow2", "-F", "raw", text(&made), text(&plain)]);
    }
}

#[test]
fn every_version_and_cluster_size_reads_as_qemu_reads_it() {
    for options in [
        "compat=0.10",
        "compat=1.1",
        "compat=1.1,cluster_size=512",
        "compat=1.1,cluster_size=2M",
        "compat=1.1,lazy_refcounts=on",
        "compat=1.1,extended_l2=on,cluster_size=128k",
    ] {
        judge(5_000_000, options, false);
    }
}

#[test]
fn compressed_clusters_read_as_qemu_reads_them() {
    for options in [
        "compat=0.10",
        "compression_type=zlib",
        "compression_type=zstd",
        "compression_type=zstd,cluster_size=4k",
    ] {
        judge(3_000_320, options, true);
    }
}

#[test]
fn sizes_at_the_borders_survive() {
    for length in [0, 512, 65_536 + 512, (4 << 30) + 512] {
        judge(length, "compat=1.1", false);
    }
}

#[test]
fn a_sparse_tebibyte_costs_what_it_holds() {
    judge(1 << 40, "compat=1.1", false);
}

#[test]
fn a_raw_disk_of_odd_length_survives() {
    let folder = tempfile::tempdir().unwrap();
    let raw = make_raw(folder.path(), 1_234_567);
    let (recipe, packs) = ingest(&raw, Format::Raw);
    let ours = folder.path().join("ours.raw");
    export(&recipe, &packs, Format::Raw, &ours);
    assert!(std::fs::read(&raw).unwrap() == std::fs::read(&ours).unwrap());
}

#[test]
fn images_that_lean_on_other_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base.qcow2");
    qemu_img(&["create", "-f", "qcow2", text(&base), "1M"]);
    let refusal = |path: &Path| {
        let file = File::open(path).unwrap();
        open(Box::new(file), None).err().expect("it must be refused").reason().to_owned()
    };
    let child = folder.path().join("child.qcow2");
    qemu_img(&["create", "-f", "qcow2", "-b", text(&base), "-F", "qcow2", text(&child)]);
    let backing = refusal(&child);
    assert!(backing.contains("backing"), "{backing}");
    let outside = folder.path().join("outside.qcow2");
    let option = format!("data_file={}", text(&folder.path().join("data")));
    qemu_img(&["create", "-f", "qcow2", "-o", &option, text(&outside), "1M"]);
    let data_file = refusal(&outside);
    assert!(data_file.contains("data_file"), "{data_file}");
    for format in ["vmdk", "vpc", "vhdx"] {
        let path = folder.path().join(format);
        qemu_img(&["create", "-f", format, text(&path), "4M"]);
        let reason = refusal(&path);
        assert!(!reason.is_empty(), "{format}");
    }
}
