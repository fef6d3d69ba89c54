//! qcow2 images as other programs write them: made byte by byte, and by qemu with all its options.
//!
//! qemu-img judges.

mod images;
mod judge;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use images::{noise, outcome, read, with};
use judge::{make_raw, qemu_img, qemu_reads, run, text};

const SECTOR: usize = 512;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// Header, refcount table and block, L1 table, one L2 table, in one cluster each; then the rest.
struct Qcow2 {
    version: u32,
    cluster_bits: u32,
    virtual_bytes: u64,
    /// Entries of the L2 table, with the second words of extended ones.
    entries: Vec<u64>,
    /// What stands from cluster 5 on.
    rest: Vec<u8>,
}

impl Qcow2 {
    fn image(&self) -> Vec<u8> {
        let cluster = 1 << self.cluster_bits;
        let mut image = vec![0; 5 * cluster];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb");
        put(4, &self.version.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.virtual_bytes.to_be_bytes());
        put(36, &1u32.to_be_bytes());
        put(40, &(3 * cluster as u64).to_be_bytes());
        put(48, &(cluster as u64).to_be_bytes());
        put(56, &1u32.to_be_bytes());
        if self.version == 3 {
            put(96, &4u32.to_be_bytes());
            put(100, &112u32.to_be_bytes());
        }
        put(cluster, &(2 * cluster as u64).to_be_bytes());
        for number in 0..cluster / 2 {
            put(2 * cluster + 2 * number, &1u16.to_be_bytes());
        }
        put(3 * cluster, &(COPIED | (4 * cluster as u64)).to_be_bytes());
        for (number, entry) in self.entries.iter().enumerate() {
            put(4 * cluster + 8 * number, &entry.to_be_bytes());
        }
        image.extend_from_slice(&self.rest);
        image
    }

    /// The entry of a cluster that is compressed in `length` bytes at `at`.
    fn packed(&self, at: usize, length: usize) -> u64 {
        let sectors = (at + length - 1) / SECTOR - at / SECTOR;
        COMPRESSED | (sectors as u64) << (62 - (self.cluster_bits - 8)) | at as u64
    }

    fn is_read_as_by_qemu(&self) -> Vec<u8> {
        let seen = read(self.image());
        assert!(seen == qemu_reads("qcow2", &self.image()), "{}", self.cluster_bits);
        seen
    }
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut stream = DeflateEncoder::new(Vec::new(), Compression::fast());
    stream.write_all(bytes).unwrap();
    stream.finish().unwrap()
}

/// Bytes that compress, with nothing that repeats further back than qemu's window.
fn line(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| seed.wrapping_add((at % 61) as u8)).collect()
}

#[test]
fn compressed_clusters_stand_side_by_side_to_the_very_end_of_the_file() {
    for version in [2, 3] {
        for cluster_bits in [9, 12, 16, 21] {
            let cluster = 1usize << cluster_bits;
            let virtual_bytes = 3 * cluster as u64 + 512;
            let (mut entries, mut rest) = (Vec::new(), vec![0; 7]);
            let mut disk =
                Qcow2 { version, cluster_bits, virtual_bytes, entries: vec![], rest: vec![] };
            for seed in 0..4 {
                let packed = deflated(&line(seed, cluster));
                entries.push(disk.packed(5 * cluster + rest.len(), packed.len()));
                rest.extend(packed);
            }
            (disk.entries, disk.rest) = (entries, rest);
            let seen = disk.is_read_as_by_qemu();
            assert!(seen[..cluster] == line(0, cluster) && seen[3 * cluster..] == line(3, 512));
            // A sector more than there is, as where a program pads its file.
            disk.rest.resize(disk.rest.len() + SECTOR, 0);
            assert!(disk.is_read_as_by_qemu() == seen);
            // Half a stream.
            let image = disk.image();
            let half = 5 * cluster + 8;
            let mut opened = shoal_formats::open(Box::new(image[..half].to_vec()), None);
            match &mut opened {
                Ok(disk) => assert!(disk.read(0, &mut vec![0; cluster]).is_err()),
                Err(error) => assert_eq!(error.reason(), "truncated"),
            }
        }
    }
}

fn zstd_disk(frame: &[u8]) -> Qcow2 {
    let virtual_bytes = 65_536;
    let mut disk =
        Qcow2 { version: 3, cluster_bits: 16, virtual_bytes, entries: vec![], rest: vec![] };
    disk.entries = vec![disk.packed(5 * 65_536, frame.len())];
    disk.rest = frame.to_vec();
    disk
}

#[test]
fn a_zstd_frame_is_a_cluster_and_no_more() {
    let reason = |frame: &[u8]| {
        let image = with(with(zstd_disk(frame).image(), 79, &[8]), 104, &[1]);
        let mut disk = shoal_formats::open(Box::new(image.clone()), None).unwrap();
        let mut seen = vec![0; 65_536];
        match disk.read(0, &mut seen) {
            Ok(()) => {
                assert!(seen == qemu_reads("qcow2", &image));
                "read"
            }
            Err(error) => error.reason(),
        }
    };
    let made = |length, checksum, size| {
        let mut stream = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
        stream.include_checksum(checksum).unwrap();
        stream.include_contentsize(size).unwrap();
        stream.set_pledged_src_size(size.then_some(length as u64)).unwrap();
        stream.write_all(&line(1, length)).unwrap();
        stream.finish().unwrap()
    };
    for checksum in [false, true] {
        for size in [false, true] {
            assert_eq!(reason(&made(65_536, checksum, size)), "read");
            assert_eq!(reason(&made(65_535, checksum, size)), "corrupt_tables");
            assert_eq!(reason(&made(65_537, checksum, size)), "corrupt_tables");
            assert_eq!(reason(&made(200_000, checksum, size)), "corrupt_tables");
        }
    }
    for size in [false, true] {
        let mut torn = made(65_536, true, size);
        *torn.last_mut().unwrap() ^= 1;
        assert_eq!(reason(&torn), "corrupt_tables");
        let short = made(65_536, true, size);
        assert_eq!(reason(&short[..short.len() - 1]), "corrupt_tables");
    }
}

#[test]
fn reserved_bits_and_places_that_do_not_count_change_nothing() {
    let cluster = 65_536usize;
    let at = |number: u64| (5 + number) * cluster as u64;
    let entries = vec![
        COPIED | at(1),
        at(0) | 0x1fe,
        COPIED,
        // Zero, with a place that is kept, and with one past the end.
        at(2) | 1,
        at(999) | 1,
    ];
    let rest = noise(4, 3 * cluster);
    let virtual_bytes = 6 * cluster as u64;
    let disk = Qcow2 { version: 3, cluster_bits: 16, virtual_bytes, entries, rest };
    let seen = disk.is_read_as_by_qemu();
    assert!(seen[..cluster] == disk.rest[cluster..2 * cluster]);
    assert!(seen[cluster..2 * cluster] == disk.rest[..cluster]);
    assert!(seen[2 * cluster..].iter().all(|&byte| byte == 0));
    let patched = |at: usize, bytes: &[u8]| with(disk.image(), at, bytes);
    // A size that is no whole sector loses what is more; unknown bits that matter to writers only.
    assert_eq!(read(patched(24, &(virtual_bytes - 1).to_be_bytes())).len(), 6 * cluster - 512);
    assert!(read(patched(80, &[0xff; 16])) == seen);
    // Left open by its writer, with reference counts that lag behind.
    assert!(read(patched(79, &[1])) == seen);
    for order in 0..=6 {
        assert!(read(patched(99, &[order])) == seen);
    }
    assert_eq!(outcome(patched(99, &[7])), "malformed_header");
    // An L1 table longer than the disk, whose other entries are a snapshot's or nobody's.
    let longer = with(patched(36, &9u32.to_be_bytes()), 3 * cluster + 8, &[0xff; 64]);
    assert!(read(longer.clone()) == seen && qemu_reads("qcow2", &longer) == seen);
    let version2 = Qcow2 { version: 2, ..disk };
    assert_eq!(outcome(version2.image()), "corrupt_tables");
}

/// A disk that qemu made and wrote to, read by both.
fn judge_made(options: &str, length: u64, then: &dyn Fn(&Path)) {
    let folder = tempfile::tempdir().unwrap();
    let raw = make_raw(folder.path(), length);
    let made = folder.path().join("made.qcow2");
    let (raw, path) = (text(&raw), text(&made));
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-o", options, raw, path]);
    then(&made);
    let image = fs::read(&made).unwrap();
    assert!(read(image.clone()) == qemu_reads("qcow2", &image), "{options}");
}

fn io(path: &Path, commands: &[&str]) {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let arguments: Vec<&str> = ["-f", "qcow2"].into_iter().chain(commands).collect();
    run("qemu-io", &[&arguments[..], &[text(path)]].concat());
}

#[test]
fn room_that_was_made_before_is_read_as_qemu_reads_it() {
    for preallocation in ["metadata", "falloc", "full"] {
        for cluster in ["512", "64k", "2M"] {
            let options = format!("preallocation={preallocation},cluster_size={cluster}");
            judge_made(&options, 1_234_432, &|_| {});
            judge_made(&options, 1_234_432, &|path| {
                io(path, &["write -P 7 700k 3k", "discard 0 128k"])
            });
        }
    }
    let extended = "extended_l2=on,preallocation=metadata";
    judge_made(extended, 1_234_432, &|path| {
        io(path, &["write -P 7 700k 3k", "write -z 64k 6k", "discard 0 128k"]);
    });
}

#[test]
fn widths_of_reference_counts_do_not_matter() {
    for bits in [1, 2, 4, 8, 32, 64] {
        judge_made(&format!("refcount_bits={bits}"), 300_032, &|_| {});
    }
}

#[test]
fn disks_that_grew_shrank_and_were_noted_in_bitmaps_are_read_as_qemu_reads_them() {
    judge_made("compat=1.1", 1_234_432, &|path| {
        qemu_img(&["snapshot", "-c", "small", text(path)]);
        qemu_img(&["resize", "-f", "qcow2", text(path), "5M"]);
        io(path, &["write -P 3 4M 100k"]);
        qemu_img(&["snapshot", "-c", "large", text(path)]);
        qemu_img(&["resize", "-f", "qcow2", "--shrink", text(path), "2M"]);
        io(path, &["write -P 4 1M 100k"]);
    });
    judge_made("compat=1.1", 1_234_432, &|path| {
        qemu_img(&["snapshot", "-c", "before", text(path)]);
        io(path, &["write -P 3 0 1M"]);
        qemu_img(&["snapshot", "-a", "before", text(path)]);
    });
    judge_made("compat=1.1", 1_234_432, &|path| {
        qemu_img(&["bitmap", "--add", "-g", "64k", text(path), "changes"]);
        io(path, &["write -P 3 0 200k"]);
    });
    judge_made("compat=0.10", 1_234_432, &|path| {
        qemu_img(&["amend", "-f", "qcow2", "-o", "compat=1.1", text(path)]);
        io(path, &["write -z 0 200k", "write -P 3 300k 1k"]);
        qemu_img(&["amend", "-f", "qcow2", "-o", "compat=0.10", text(path)]);
    });
}

#[test]
fn an_image_whose_writer_died_is_read_as_qemu_reads_it() {
    judge_made("lazy_refcounts=on", 1_234_432, &|path| {
        let commands = ["-f", "qcow2", "-c", "write -P 5 800k 70k", "-c", "flush", "-c", "abort"];
        let ended = Command::new("qemu-io").args(commands).arg(path).output().unwrap();
        assert!(!ended.status.success());
        let image = fs::read(path).unwrap();
        assert_eq!(image[79] & 1, 1, "it is marked as dirty");
    });
}
