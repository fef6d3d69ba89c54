//! qemu-img judges our qcow2: what it writes we read the same, what we write it reads the same and
//! finds sound. The other formats are judged in `formats`.

mod judge;

use judge::{compare, export, ingest, make_raw, qemu_img, refusal, run, text};
use shoal_formats::Format;

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
    compare(length, ("qcow2", &made), ("qcow2", &ours));
    if length <= 8 << 30 {
        let plain = folder.path().join("ours.raw");
        export(&recipe, &packs, Format::Raw, &plain);
        compare(length, ("qcow2", &made), ("raw", &plain));
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
        "cluster_size=512",
        "cluster_size=2M",
        "extended_l2=on",
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
fn of_an_image_with_snapshots_the_active_state_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let raw = make_raw(folder.path(), 3_000_320);
    let made = folder.path().join("made.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&made)]);
    let write = |what: &str| run("qemu-io", &["-f", "qcow2", "-c", what, text(&made)]);
    for (name, what) in [("first", "write -P 1 0 200k"), ("second", "write -P 2 100k 1M")] {
        qemu_img(&["snapshot", "-c", name, text(&made)]);
        write(what);
    }
    write("discard 1M 512k");
    let (recipe, packs) = ingest(&made, Format::Qcow2);
    let ours = folder.path().join("ours.raw");
    export(&recipe, &packs, Format::Raw, &ours);
    compare(3_000_320, ("qcow2", &made), ("raw", &ours));
}

#[test]
fn images_that_lean_on_other_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base.qcow2");
    qemu_img(&["create", "-f", "qcow2", text(&base), "1M"]);
    let child = folder.path().join("child.qcow2");
    qemu_img(&["create", "-f", "qcow2", "-b", text(&base), "-F", "qcow2", text(&child)]);
    let backing = refusal(&child);
    assert!(backing.contains("backing"), "{backing}");
    let outside = folder.path().join("outside.qcow2");
    let option = format!("data_file={}", text(&folder.path().join("data")));
    qemu_img(&["create", "-f", "qcow2", "-o", &option, text(&outside), "1M"]);
    let data_file = refusal(&outside);
    assert!(data_file.contains("data_file"), "{data_file}");
}
