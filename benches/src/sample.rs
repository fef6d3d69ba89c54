//! Content to move: noise that does not compress, digits that do, and disks of real files.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Longer files are left out, so that no single one is the sample.
const FILE_BYTES_MAX: u64 = 8 << 20;
const BLOCK_BYTES: usize = 64 << 10;

/// `length` bytes that follow from `seed` (BLAKE3 in its extendable-output mode).
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// The same as hexadecimal digits: half of it is left when it is compressed.
pub fn digits(seed: u64, length: usize) -> Vec<u8> {
    let digit = |half: u8| b"0123456789abcdef"[usize::from(half)];
    let noise = noise(seed, length.div_ceil(2));
    noise.into_iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).take(length).collect()
}

/// A raw disk in `folder`, with an ext4 file system of about `bytes` of this machine's programs, and
/// as much room again. The same on the same machine.
pub fn file_system(folder: &Path, bytes: u64) -> Result<PathBuf> {
    let tree = folder.join("tree");
    let mut left = bytes;
    for from in ["/usr/bin", "/usr/lib", "/usr/share"] {
        // Of each a third, so that programs, libraries and texts are all there.
        let mut share = left.min(bytes / 3);
        left -= share;
        copy_tree(Path::new(from), &tree.join(&from[1..]), &mut share)?;
        left += share;
    }
    let disk = folder.join("disk.raw");
    File::create(&disk)?.set_len((bytes * 2).max(64 << 20))?;
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-E", "hash_seed=00000000-0000-0000-0000-000000000001"]);
    make.args(["-U", "00000000-0000-0000-0000-000000000002", "-d"]).arg(&tree).arg(&disk);
    let output = make.output().context("mke2fs did not start; install e2fsprogs")?;
    ensure!(output.status.success(), "mke2fs: {}", String::from_utf8_lossy(&output.stderr));
    fs::remove_dir_all(&tree)?;
    Ok(disk)
}

/// Plain files in the order of their names, until `left` bytes are used up.
fn copy_tree(from: &Path, to: &Path, left: &mut u64) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut entries: Vec<_> = fs::read_dir(from)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (kind, name) = (entry.file_type()?, entry.file_name());
        let size = entry.metadata()?.len();
        if kind.is_dir() && *left > 0 {
            copy_tree(&entry.path(), &to.join(name), left)?;
        } else if kind.is_file() && (1..=FILE_BYTES_MAX.min(*left)).contains(&size) {
            // What may not be read is not in the sample.
            if fs::copy(entry.path(), to.join(name)).is_ok() {
                *left -= size.next_multiple_of(4096).min(*left);
            }
        }
    }
    Ok(())
}

/// `count` times the content of `from` in one disk: of each further time, the bytes of all blocks that
/// are not empty are changed, so that none is like another and all compress as well.
pub fn copies(from: &Path, to: &Path, count: u64) -> Result<()> {
    let length = fs::metadata(from)?.len();
    let file = File::create(to)?;
    file.set_len(length * count)?;
    for number in 0..count {
        let (mut source, mut at) = (File::open(from)?, number * length);
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        loop {
            block.clear();
            source.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
            if block.is_empty() {
                break;
            }
            if block.iter().fold(0, |all, byte| all | byte) != 0 {
                block.iter_mut().for_each(|byte| *byte ^= number as u8);
                file.write_all_at(&block, at)?;
            }
            at += block.len() as u64;
        }
    }
    Ok(())
}
