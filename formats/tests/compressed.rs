//! Compressed files: judged by qemu-img, read again by ours, the same with any number of threads.

mod judge;

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use judge::{compare, driver, make_raw, qemu_img, text};
use proptest::prelude::*;
use shoal_formats::{
    COMPRESSED_VERSION, CompressError, Compressed, CompressedWriter, Disk, ExportProgress, open,
};

fn disk(path: &Path) -> Box<dyn Disk> {
    open(Box::new(File::open(path).unwrap()), None).unwrap()
}

fn write(target: Compressed, threads: usize, from: &Path, to: &Path) -> u64 {
    let threads = NonZeroUsize::new(threads).unwrap();
    let writer = CompressedWriter::new(target).threads(threads);
    let file = File::create(to).unwrap();
    let mut last = ExportProgress::default();
    let mut progress = |now: ExportProgress| {
        assert!(now.bytes_done > last.bytes_done && now.bytes_done <= now.bytes_total);
        last = now;
        ControlFlow::Continue(())
    };
    let length = writer.write(disk(from).as_mut(), &file, &mut progress).unwrap();
    assert_eq!(fs::metadata(to).unwrap().len(), length);
    length
}

/// Text that compresses, noise that does not, and holes of all sizes; the same at every call.
fn content(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hash = blake3::Hasher::new().update(b"compressed").finalize_xof();
    for (number, part) in bytes.chunks_mut(150_000).enumerate() {
        match number % 5 {
            0 | 3 => hash.fill(part),
            1 => {
                let words = b"a disk is cut along its files, and what is free is zero; ";
                for (place, byte) in part.iter_mut().enumerate() {
                    *byte = words[(place + number) % words.len()] ^ u8::from(place % 777 == 0);
                }
            }
            _ => part[number % 1000..][..7].fill(number as u8),
        }
    }
    bytes
}

#[test]
fn qemu_reads_what_is_written_and_finds_it_sound_at_every_size() {
    let folder = tempfile::tempdir().unwrap();
    let made = folder.path().join("made.qcow2");
    for length in [0, 1, 512, 1_234_567, 65_536, (4 << 30) + 512, 1 << 40] {
        let raw = make_raw(folder.path(), length);
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&made)]);
        // An empty VMDK is a descriptor to qemu.
        let targets =
            Compressed::ALL.into_iter().filter(|it| length > 0 || *it != Compressed::VmdkStream);
        for target in targets {
            let ours = folder.path().join(format!("ours.{target}"));
            write(target, 2, &made, &ours);
            let driver = driver(target.format());
            compare(length, ("raw", &raw), (driver, &ours));
            let check = qemu_img(&["check", "-f", driver, text(&ours)]);
            assert!(check.contains("No errors"), "{target}: {check}");
            let info = qemu_img(&["info", "-f", driver, text(&ours)]);
            assert_eq!(info.contains("zstd"), target == Compressed::Qcow2Zstd, "{info}");
        }
    }
}

#[test]
fn the_bytes_do_not_depend_on_threads_or_on_the_format_they_come_from() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("disk.raw");
    fs::write(&raw, content(20_000_256)).unwrap();
    let other = folder.path().join("disk.vmdk");
    qemu_img(&["convert", "-f", "raw", "-O", "vmdk", text(&raw), text(&other)]);
    for target in Compressed::ALL {
        let first = folder.path().join("first");
        write(target, 1, &raw, &first);
        let expected = fs::read(&first).unwrap();
        assert!(expected.len() < 14_000_000, "{target}: {} bytes", expected.len());
        for (threads, from) in [(2, &raw), (3, &raw), (16, &raw), (100, &raw), (2, &other)] {
            let again = folder.path().join("again");
            write(target, threads, from, &again);
            let is_same = fs::read(&again).unwrap() == expected;
            assert!(is_same, "{target}, {threads} threads, {}", from.display());
        }
    }
}

/// Digests of compressed files may be published: a change here, in the layout or in what a
/// compressor gives, is a new [`COMPRESSED_VERSION`].
#[test]
fn bytes_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("disk.raw");
    fs::write(&raw, content(3_000_001)).unwrap();
    let digests = Compressed::ALL.map(|target| {
        let ours = folder.path().join("ours");
        let length = write(target, 2, &raw, &ours);
        format!("{target} {length} {}", &blake3::hash(&fs::read(&ours).unwrap()).to_hex()[..16])
    });
    assert_eq!((COMPRESSED_VERSION, digests), (1, GOLDEN.map(str::to_owned)));
}

const GOLDEN: [&str; 3] = [
    "qcow2-zlib 1638400 e7ef13dadd04a710",
    "qcow2-zstd 1638400 c7d2dce83e04ee29",
    "vmdk-stream-zlib 1293824 d85f43099691a274",
];

#[test]
fn a_cancelled_writing_leaves_no_thread_behind() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("disk.raw");
    fs::write(&raw, content(20_000_000)).unwrap();
    let file = File::create(folder.path().join("ours")).unwrap();
    // Threads of other tests come and go: those of this one have a name of their own.
    let named = std::thread::Builder::new().name("cancelled".into());
    let run = move || {
        let mut steps = 0;
        let writer = CompressedWriter::new(Compressed::Qcow2Zlib).threads(NonZeroUsize::MAX);
        let done = writer.write(disk(&raw).as_mut(), &file, &mut |_| {
            steps += 1;
            if steps == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(done, Err(CompressError::Cancelled)), "{done:?}");
        assert_eq!(steps, 3);
    };
    named.spawn(run).unwrap().join().unwrap();
    // All have left the writer's code; the kernel may take a moment to forget them.
    let deadline = Instant::now() + Duration::from_secs(10);
    while threads("cancelled") > 0 {
        assert!(Instant::now() < deadline, "{} threads are left", threads("cancelled"));
        std::thread::yield_now();
    }
}

/// Those of this process that are named so.
fn threads(name: &str) -> usize {
    let named = fs::read_dir("/proc/self/task").unwrap().filter(|task| {
        // One that has just ended has no name any more.
        let found = fs::read_to_string(task.as_ref().unwrap().path().join("comm"));
        found.is_ok_and(|found| found.trim() == name)
    });
    named.count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_a_guest_wrote_is_read_back(
        length in 1..6_000_000usize,
        writes in proptest::collection::vec((any::<prop::sample::Index>(), 1..200_000usize, any::<bool>()), 0..12),
        threads in 1..5usize,
    ) {
        let mut guest = vec![0; length];
        let source = content(200_000);
        for (at, count, noise) in writes {
            let at = at.index(length);
            let count = count.min(length - at);
            if noise { guest[at..at + count].copy_from_slice(&source[..count]) } else { guest[at..at + count].fill(7) }
        }
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("disk.raw");
        fs::write(&raw, &guest).unwrap();
        for target in Compressed::ALL {
            let ours = folder.path().join("ours");
            write(target, threads, &raw, &ours);
            let mut disk = disk(&ours);
            prop_assert_eq!(disk.virtual_bytes(), (length as u64).next_multiple_of(512));
            let mut read = vec![9; length];
            disk.read(0, &mut read).unwrap();
            prop_assert!(read == guest, "{}", target);
        }
    }
}
