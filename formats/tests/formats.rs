//! qemu-img judges VMDK, VHD, VHDX and OVA: what it writes we read the same, what we write it reads
//! the same and finds sound.

mod judge;

use std::fs;
use std::path::{Path, PathBuf};

use judge::{compare, driver, export, ingest, make_raw, qemu_img, refusal, run, text};
use shoal_formats::{Format, Target};

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// A disk of one byte, of one sector, of an odd length, and around the border of 32 bits.
const SIZES: [u64; 6] = [1, 512, 1_234_567, 4 * GIB - 512, 4 * GIB, 4 * GIB + 512];

/// The raw disk in qcow2, which keeps its holes.
fn make_qcow2(folder: &Path, raw: &Path) -> PathBuf {
    let path = folder.join("made.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(raw), text(&path)]);
    path
}

/// Ours to qemu: in every target, from the same disk.
fn judge_ours(length: u64, targets: &[Target]) {
    let folder = tempfile::tempdir().unwrap();
    let raw = make_raw(folder.path(), length);
    let made = make_qcow2(folder.path(), &raw);
    let (recipe, packs) = ingest(&made, Format::Qcow2);
    for &target in targets {
        let ours = folder.path().join(format!("ours.{target}"));
        export(&recipe, &packs, target, &ours);
        let mut judged = ours.clone();
        if target == Target::Ova {
            run("tar", &["-xf", text(&ours), "-C", text(folder.path())]);
            judged = folder.path().join("disk.vmdk");
            let ovf = fs::read_to_string(folder.path().join("disk.ovf")).unwrap();
            assert!(
                ovf.contains(&format!("ovf:size=\"{}\"", fs::metadata(&judged).unwrap().len()))
            );
        }
        let format = if target == Target::Ova { Format::Vmdk } else { target.format() };
        let driver = driver(format);
        let info = qemu_img(&["info", "-f", driver, "--output=json", text(&judged)]);
        let size = format!("\"virtual-size\": {},", length.next_multiple_of(512));
        assert!(info.contains(&size), "{target}: {info}");
        compare(length, ("raw", &raw), (driver, &judged));
        // It has no check of a VHD, and goes through a VMDK grain by grain.
        let checks = match format {
            Format::Raw | Format::Vhd => false,
            Format::Vmdk => length < TIB,
            _ => true,
        };
        if checks {
            qemu_img(&["check", "-f", driver, text(&judged)]);
        }
        // And by our own reader.
        let (again, _) = ingest(&ours, target.format());
        assert_eq!(
            (again.chunks().len(), again.length()),
            (recipe.chunks().len(), recipe.length())
        );
        assert_eq!(again.extents(), recipe.extents(), "{target}");
        fs::remove_file(&ours).unwrap();
    }
}

#[test]
fn what_is_written_reads_as_qemu_reads_it_at_every_size() {
    for length in SIZES {
        // A fixed VHD of 4 GiB is 4 GiB of zeros to read back.
        let targets: Vec<_> =
            Target::ALL.into_iter().filter(|&t| length < GIB || t != Target::VhdFixed).collect();
        judge_ours(length, &targets[1..]);
    }
}

#[test]
fn two_sparse_tebibytes_cost_what_they_hold() {
    let sparse = [Target::Qcow2, Target::Vmdk, Target::VmdkStream, Target::Vhdx, Target::Ova];
    judge_ours(2 * TIB, &sparse);
    // The format's own limit is below.
    judge_ours(2040 * GIB, &[Target::Vhd]);
}

#[test]
fn a_disk_of_no_bytes_survives() {
    let folder = tempfile::tempdir().unwrap();
    let raw = make_raw(folder.path(), 0);
    let (recipe, packs) = ingest(&raw, Format::Raw);
    for target in Target::ALL {
        let ours = folder.path().join(format!("ours.{target}"));
        export(&recipe, &packs, target, &ours);
        let (again, _) = ingest(&ours, target.format());
        assert_eq!(again.length(), 0, "{target}");
    }
}

/// qemu's in `format` with `options`, read by us, given back as raw or qcow2.
fn judge_qemu(format: Format, options: &str, length: u64) {
    let folder = tempfile::tempdir().unwrap();
    let raw = make_raw(folder.path(), length);
    let theirs = folder.path().join("theirs");
    let driver = driver(format);
    let convert = ["convert", "-f", "raw", "-O", driver, "-o", options, text(&raw), text(&theirs)];
    qemu_img(&convert);
    compare_read(folder.path(), &theirs, format, (driver, &theirs));
}

/// Reads `path` and compares what was read with qemu's reading of `theirs`.
fn compare_read(folder: &Path, path: &Path, format: Format, theirs: (&str, &Path)) {
    let (recipe, packs) = ingest(path, format);
    let ours = folder.join("read.qcow2");
    export(&recipe, &packs, Target::Qcow2, &ours);
    let info = qemu_img(&["info", "-f", theirs.0, "--output=json", text(theirs.1)]);
    let size = format!("\"virtual-size\": {},", recipe.length());
    assert!(info.contains(&size), "{} is not in {info}", recipe.length());
    compare(recipe.length(), theirs, ("qcow2", &ours));
}

#[test]
fn vmdk_reads_as_qemu_reads_it() {
    // Its own VMDK of no bytes qemu does not read.
    for length in SIZES.into_iter().chain([2 * TIB]) {
        judge_qemu(Format::Vmdk, "subformat=monolithicSparse", length);
        judge_qemu(Format::Vmdk, "subformat=streamOptimized", length);
    }
    judge_qemu(Format::Vmdk, "subformat=monolithicSparse,adapter_type=lsilogic,hwversion=14", 512);
}

#[test]
fn vhd_reads_as_qemu_reads_it() {
    for length in SIZES {
        for options in ["subformat=dynamic", "subformat=dynamic,force_size=on"] {
            judge_qemu(Format::Vhd, options, length);
        }
    }
    judge_qemu(Format::Vhd, "subformat=dynamic,force_size=on", 2040 * GIB);
    for length in [512, 1_234_567] {
        for options in ["subformat=fixed", "subformat=fixed,force_size=on"] {
            judge_qemu(Format::Vhd, options, length);
        }
    }
}

#[test]
fn vhdx_reads_as_qemu_reads_it() {
    for length in SIZES.into_iter().chain([2 * TIB]) {
        judge_qemu(Format::Vhdx, "subformat=dynamic", length);
    }
    for options in [
        "subformat=dynamic,block_size=1M",
        "subformat=dynamic,block_size=256M",
        "subformat=dynamic,block_state_zero=off",
        "subformat=dynamic,log_size=4M",
        "subformat=fixed",
    ] {
        judge_qemu(Format::Vhdx, options, 5_000_000);
    }
}

/// A VMDK in parts, in a tar with its descriptor.
fn judge_parts(subformat: &str, length: u64) {
    let folder = tempfile::tempdir().unwrap();
    let raw = make_raw(folder.path(), length);
    let parts = folder.path().join("parts");
    fs::create_dir(&parts).unwrap();
    let descriptor = parts.join("disk.vmdk");
    let options = format!("subformat={subformat}");
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        &options,
        text(&raw),
        text(&descriptor),
    ]);
    assert_eq!(refusal(&descriptor), "names_files");
    let archive = folder.path().join("parts.tar");
    run("tar", &["--sort=name", "-cf", text(&archive), "-C", text(&parts), "."]);
    compare_read(folder.path(), &archive, Format::Vmdk, ("vmdk", &descriptor));
    // Without one of its parts it is no disk.
    let part = fs::read_dir(&parts).unwrap().map(|entry| entry.unwrap().path());
    let part = part.filter(|path| *path != descriptor).max().unwrap();
    if subformat.ends_with("Sparse") {
        assert_eq!(refusal(&part), "disk_part");
    }
    fs::remove_file(part).unwrap();
    run("tar", &["-cf", text(&archive), "-C", text(&parts), "."]);
    assert_eq!(refusal(&archive), "missing_part");
}

#[test]
fn vmdk_in_parts_reads_as_qemu_reads_it() {
    for subformat in ["twoGbMaxExtentSparse", "monolithicFlat", "twoGbMaxExtentFlat"] {
        judge_parts(subformat, 3_000_320);
    }
    judge_parts("twoGbMaxExtentSparse", 4 * GIB + 512);
}

/// An appliance as tools make them: a descriptor that has `said` of the disk, a manifest, and the
/// disk that is in the folder.
fn appliance(folder: &Path, disk: &str, said: &str) -> PathBuf {
    let ovf = format!(
        "<?xml version='1.0'?><Envelope xmlns:ovf='urn:ovf'><References>\
         <File ovf:id='f1' ovf:href='{disk}'/></References><DiskSection>\
         <Disk ovf:diskId='d' ovf:fileRef='f1' {said}/></DiskSection></Envelope>"
    );
    fs::write(folder.join("vm.ovf"), ovf).unwrap();
    let sums = run("sh", &["-c", &format!("cd {} && sha256sum vm.ovf {disk}", text(folder))]);
    let lines = sums.lines().map(|line| {
        let (digits, name) = line.split_once("  ").unwrap();
        format!("SHA256({name})= {digits}\n")
    });
    fs::write(folder.join("vm.mf"), lines.collect::<String>()).unwrap();
    let archive = folder.join("vm.ova");
    let files = ["-C", text(folder), "vm.ovf", "vm.mf", disk];
    let arguments = [&["--format=ustar", "-cf", text(&archive)][..], &files].concat();
    run("tar", &arguments);
    archive
}

#[test]
fn an_appliance_gives_its_disk_in_whatever_format_that_is() {
    for (format, options, said) in [
        ("vmdk", "subformat=streamOptimized", "http://x/vmdk.html#streamOptimized"),
        ("qcow2", "compat=1.1", "http://x/qcow2.html"),
        ("vhdx", "subformat=dynamic", "http://x/vhdx"),
        ("vpc", "force_size=on", "http://x/vhd"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let raw = make_raw(folder.path(), 3_000_320);
        let disk = folder.path().join("disk.img");
        qemu_img(&["convert", "-f", "raw", "-O", format, "-o", options, text(&raw), text(&disk)]);
        let archive = appliance(folder.path(), "disk.img", &format!("ovf:format='{said}'"));
        compare_read(folder.path(), &archive, Format::Ova, (format, &disk));
    }
}

/// The descriptor of the machine names the VMDK's own, and that its parts beside it.
#[test]
fn an_appliance_may_hold_a_disk_in_parts() {
    for subformat in ["twoGbMaxExtentSparse", "monolithicFlat"] {
        let folder = tempfile::tempdir().unwrap();
        let raw = make_raw(folder.path(), 3_000_320);
        let (text_part, options) = (folder.path().join("d.vmdk"), format!("subformat={subformat}"));
        let into = ["-O", "vmdk", "-o", &options, text(&raw), text(&text_part)];
        qemu_img(&[&["convert", "-f", "raw"][..], &into].concat());
        let archive = appliance(folder.path(), "d.vmdk", "ovf:format='vmdk'");
        assert_eq!(refusal(&archive), "missing_part", "{subformat}");
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names = names.map(|name| name.into_string().unwrap());
        let part = names.find(|name| name.starts_with("d-")).unwrap();
        run("tar", &["-rf", text(&archive), "-C", text(folder.path()), &part]);
        assert_eq!(refusal(&archive), "not_in_manifest", "{subformat}");
        fs::remove_file(folder.path().join("vm.mf")).unwrap();
        let files = ["vm.ovf", "d.vmdk", &part];
        let made = ["--format=pax", "-cf", text(&archive), "-C", text(folder.path())];
        run("tar", &[&made[..], &files].concat());
        compare_read(folder.path(), &archive, Format::Ova, ("vmdk", &text_part));
    }
}

/// It says that every disk is a VMDK with no parent.
#[test]
fn an_appliance_of_ovirt_gives_its_disk_as_the_bytes_say() {
    let uri = "ovf:parentRef='' ovf:format='http://www.vmware.com/specifications/vmdk.html#sparse'";
    let folder = tempfile::tempdir().unwrap();
    let (raw, disk) = (make_raw(folder.path(), 3_000_320), folder.path().join("disk.img"));
    fs::copy(&raw, &disk).unwrap();
    let archive = appliance(folder.path(), "disk.img", &format!("{uri} ovf:volume-format='RAW'"));
    compare_read(folder.path(), &archive, Format::Ova, ("raw", &raw));
    // Without that word, and without a partition table, it may as well be a VMDK that is damaged.
    appliance(folder.path(), "disk.img", uri);
    assert_eq!(refusal(&archive), "format_mismatch");
    let mut bytes = fs::read(&raw).unwrap();
    bytes[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0]);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(&disk, &bytes).unwrap();
    appliance(folder.path(), "disk.img", uri);
    compare_read(folder.path(), &archive, Format::Ova, ("raw", &disk));

    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&disk)]);
    appliance(folder.path(), "disk.img", &format!("{uri} ovf:volume-format='COW'"));
    compare_read(folder.path(), &archive, Format::Ova, ("qcow2", &disk));
    let mut two = fs::read(&disk).unwrap();
    two.extend_from_slice(b"conectix");
    two.resize(two.len() + 504, 0);
    fs::write(&disk, two).unwrap();
    appliance(folder.path(), "disk.img", uri);
    assert_eq!(refusal(&archive), "ambiguous_format");
}

#[test]
fn an_appliance_that_does_not_fit_together_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let raw = make_raw(folder.path(), 100_000);
    let disk = folder.path().join("d.vmdk");
    let options = "subformat=streamOptimized";
    qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "-o", options, text(&raw), text(&disk)]);
    let archive = appliance(folder.path(), "d.vmdk", "ovf:format='vmdk'");
    let sound = fs::read(&archive).unwrap();
    let find = |text: &[u8]| sound.windows(text.len()).position(|part| part == text).unwrap();
    let patched = |at: usize, bytes: &[u8]| {
        let mut changed = sound.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&archive, changed).unwrap();
        refusal(&archive)
    };
    assert_eq!(patched(find(b"KDMV") + 4000, b"x"), "checksum_mismatch");
    assert_eq!(patched(find(b"ovf:href='d.vmdk'"), b"ovf:href='e.vmdk'"), "checksum_mismatch");
    assert_eq!(patched(find(b"SHA256(d.vmdk)"), b"SHA256(e.vmdk)"), "missing_part");
    let at = find(b"SHA256(d.vmdk)");
    assert_eq!(patched(at, &[b' '; 81]), "not_in_manifest");
    fs::write(&archive, &sound[..sound.len() / 2]).unwrap();
    assert_eq!(refusal(&archive), "truncated");
    // A text that is a descriptor of files outside.
    fs::write(&disk, "# Disk DescriptorFile\nversion=1\nRW 1 FLAT \"/etc/passwd\" 0\n").unwrap();
    appliance(folder.path(), "d.vmdk", "ovf:format='vmdk'");
    assert_eq!(refusal(&archive), "names_path");
    fs::write(&disk, "anything").unwrap();
    appliance(folder.path(), "d.vmdk", "ovf:format='vmdk'");
    assert_eq!(refusal(&archive), "format_mismatch");
}

#[test]
fn differences_to_a_parent_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base.vmdk");
    qemu_img(&["create", "-f", "vmdk", text(&base), "1M"]);
    let child = folder.path().join("child.vmdk");
    qemu_img(&["create", "-f", "vmdk", "-b", text(&base), "-F", "vmdk", text(&child)]);
    assert_eq!(refusal(&child), "parent");
}
