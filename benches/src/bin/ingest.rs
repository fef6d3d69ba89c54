//! Cuts and compresses a disk as an upload does, beside `zstd -3` in one thread and `qemu-img convert -c`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use shoal_benches::report::{Report, measure};
use shoal_benches::sample::noise;
use shoal_content::PackId;
use shoal_formats::{DiskIngest, open};

/// Measures how fast a disk is cut, hashed and compressed into packs.
#[derive(Debug, Parser)]
#[command(name = "ingest", version, about, long_about = None)]
struct Arguments {
    /// A qcow2 or raw disk to use in place of the made one.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Size of the made disk's content, in MiB; half of it compresses.
    #[arg(long, default_value_t = 256)]
    mib: usize,
    /// How often each contestant runs.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let folder = tempfile::tempdir()?;
    let disk = match &arguments.disk {
        Some(path) => path.clone(),
        None => make_disk(folder.path(), arguments.mib << 20)?,
    };
    let bytes = std::fs::metadata(&disk)?.len();
    let (mut ours, mut plain, mut qemu) = (Vec::new(), Vec::new(), Vec::new());
    let mut stored = 0;
    for _ in 0..arguments.runs {
        let (run, packed) = measure(async || ingest(&disk)).await?;
        stored = packed;
        ours.push(run);
        plain.push(measure(async || compress(&disk)).await?.0);
        qemu.push(measure(async || convert(&disk, &folder.path().join("out.qcow2"))).await?.0);
    }
    let contestants = [
        ("shoal: cut, hash, zstd -3, packs", ours),
        ("zstd -3 of the file, one thread", plain),
        ("qemu-img convert -c -O qcow2", qemu),
    ];
    Report::new("ingest", bytes, &contestants)?
        .note(format!("packs take {:.1} % of the disk file", stored as f64 * 100.0 / bytes as f64))
        .print(arguments.json)
}

/// A raw disk: pieces of noise and of text in turn.
fn make_disk(folder: &Path, bytes: usize) -> Result<PathBuf> {
    const PIECE_BYTES: usize = 1 << 20;
    let mut content = Vec::with_capacity(bytes + PIECE_BYTES);
    let mut seed = 0;
    while content.len() < bytes {
        content.extend(noise(seed, PIECE_BYTES / 2));
        // Hexadecimal digits: the compressible half.
        let text = noise(seed + 1, PIECE_BYTES / 4);
        content.extend(text.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()));
        seed += 2;
    }
    content.truncate(bytes);
    let path = folder.join("disk.raw");
    std::fs::write(&path, content)?;
    Ok(path)
}

/// Gives the bytes that the packs take.
fn ingest(path: &Path) -> Result<u64> {
    let mut disk = open(Box::new(std::fs::File::open(path)?), None)?;
    let sink = |_: PackId, _: Vec<u8>| Ok(());
    let done = DiskIngest::new(sink)
        .run(disk.as_mut(), &mut |_| None, &mut |_| ControlFlow::Continue(()))?;
    Ok(done.totals.stored_bytes)
}

fn compress(path: &Path) -> Result<()> {
    zstd::stream::copy_encode(std::fs::File::open(path)?, std::io::sink(), 3)?;
    Ok(())
}

fn convert(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-c", "-O", "qcow2"]).arg(from).arg(to);
    let output = command.output().context("qemu-img did not start; install qemu-utils")?;
    ensure!(output.status.success(), "qemu-img: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
