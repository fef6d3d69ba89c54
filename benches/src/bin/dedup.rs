//! What the next version of a disk adds to storage: ours, fixed blocks, FastCDC, casync, borg, zstd --patch-from.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use fastcdc::v2020::FastCDC;
use serde::Serialize;
use shoal_benches::debian::{self, FileSystem, run};
use shoal_content::{ChunkId, ObjectKey, PackId, Recipe, RecipeId};
use shoal_formats::{
    DeltaEnd, DeltaLimits, DiskIngest, FreeSpace, IngestProgress, Side, SinkError, StoredChunk,
    decode_chunk, make_delta, open,
};

const LEVEL: i32 = 3;
const DELTA: &str = "shoal, delta and recipe";
const PATCH: &str = "zstd -3 --patch-from";
const FIXED_BYTES: usize = 64 * 1024;

/// Measures what a second version of a disk adds to storage that has the first.
#[derive(Debug, Parser)]
#[command(name = "dedup", version, about, long_about = None)]
struct Arguments {
    /// A raw disk; without it, three of Debian are made (root, network, some minutes).
    #[arg(long, requires = "new")]
    old: Option<PathBuf>,
    /// Raw disks to measure against the old one.
    #[arg(long)]
    new: Vec<PathBuf>,
    /// Of the disks that are made.
    #[arg(long, value_enum, default_value = "ext4")]
    file_system: FileSystem,
    /// Where made disks are kept; a temporary folder if missing.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

/// Hands each chunk of a disk to a visitor.
type Cut = fn(&[u8], &mut Visit<'_>) -> Result<()>;
type Visit<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// One contestant's figures for one pair of disks.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// What the old disk takes.
    old_stored_bytes: u64,
    /// What the new one adds.
    new_stored_bytes: u64,
    /// Content of new chunks, where chunks can be counted.
    new_content_bytes: Option<u64>,
    new_chunks: Option<u64>,
    /// New content over all of the new disk's.
    new_share: Option<f64>,
    /// What ours adds over what this adds.
    ratio_of_ours: f64,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Pair {
    new: String,
    rows: Vec<Row>,
    /// Encoded recipe for each GiB of content, in MiB.
    index_mib_per_gib: f64,
    /// Delta bundle and the new recipe over what `zstd --patch-from` makes.
    delta_over_patch: Option<f64>,
}

/// What cutting the two disks gave.
#[derive(Debug, Default)]
struct Count {
    old_stored: u64,
    new_stored: u64,
    new_content: u64,
    content: u64,
    chunks: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let temporary = tempfile::tempdir()?;
    let folder = arguments.folder.clone().unwrap_or_else(|| temporary.path().to_owned());
    let (old, new, untrimmed) = match arguments.old.clone() {
        Some(old) => (old, arguments.new.clone(), None),
        None => {
            std::fs::create_dir_all(&folder)?;
            let made = debian::make(&folder, arguments.file_system)?;
            (made.old, vec![made.rebuilt, made.upgraded], Some(made.untrimmed))
        }
    };
    let mut pairs = Vec::new();
    for new in &new {
        pairs.push(measure(&old, new, temporary.path())?);
    }
    let formats = other_formats(&old, temporary.path())?;
    let trim = match &untrimmed {
        Some(untrimmed) => Some(Trim::measure(untrimmed, new.last().context("a trimmed disk")?)?),
        None => None,
    };
    if arguments.json {
        let value = serde_json::json!({
            "benchmark": "dedup", "pairs": pairs, "other_formats": formats, "trim": trim,
        });
        println!("{value}");
        return Ok(());
    }
    pairs.iter().for_each(print);
    println!("\nthe old disk once more, in other formats, adds of its content:");
    for added in &formats {
        println!("{:<28} {:>8.2} %", added.format, added.new_share * 100.0);
    }
    if let Some(trim) = trim {
        println!(
            "\nwhat the upgrade left in free blocks: of the {} MiB that fstrim takes off, reading \
             the file system without a mount takes off {:.1} %",
            (trim.untrimmed_bytes - trim.trimmed_bytes) >> 20,
            trim.gained_share * 100.0
        );
    }
    Ok(())
}

/// What a disk adds that is there already, in another format.
#[derive(Debug, Serialize)]
struct Added {
    format: &'static str,
    /// New content over all content.
    new_share: f64,
}

/// Each format as qemu-img makes it of `old`, into a storage that has `old`.
fn other_formats(old: &Path, folder: &Path) -> Result<Vec<Added>> {
    let mut known: HashMap<ChunkId, StoredChunk> = HashMap::new();
    let first = taken_in(old, FreeSpace::Zero, &mut known)?;
    let mut all = Vec::new();
    for (format, driver) in [("qcow2", "qcow2"), ("VMDK", "vmdk"), ("VHD", "vpc"), ("VHDX", "vhdx")]
    {
        let path = folder.join(format!("old.{driver}"));
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", "raw", "-O", driver]);
        if driver == "vpc" {
            command.args(["-o", "force_size=on"]);
        }
        run(command.arg(old).arg(&path))?;
        let again = taken_in(&path, FreeSpace::Zero, &mut known)?;
        ensure!(again.content_bytes == first.content_bytes, "{format}: another content");
        let new_share = again.new_bytes as f64 / again.content_bytes.max(1) as f64;
        all.push(Added { format, new_share });
        std::fs::remove_file(path)?;
    }
    Ok(all)
}

/// How much of what fstrim takes off a disk is seen in its file system as well.
#[derive(Debug, Serialize)]
struct Trim {
    untrimmed_bytes: u64,
    /// As ours reads the untrimmed one.
    seen_bytes: u64,
    trimmed_bytes: u64,
    gained_share: f64,
}

impl Trim {
    fn measure(untrimmed: &Path, trimmed: &Path) -> Result<Self> {
        let content = |disk, free_space| {
            anyhow::Ok(taken_in(disk, free_space, &mut HashMap::new())?.content_bytes)
        };
        let untrimmed_bytes = content(untrimmed, FreeSpace::Keep)?;
        let seen_bytes = content(untrimmed, FreeSpace::Zero)?;
        let trimmed_bytes = content(trimmed, FreeSpace::Keep)?;
        let gain = untrimmed_bytes.saturating_sub(trimmed_bytes).max(1);
        let gained_share = untrimmed_bytes.saturating_sub(seen_bytes) as f64 / gain as f64;
        Ok(Self { untrimmed_bytes, seen_bytes, trimmed_bytes, gained_share })
    }
}

/// An ingest whose packs nobody keeps.
fn taken_in(
    path: &Path,
    free_space: FreeSpace,
    known: &mut HashMap<ChunkId, StoredChunk>,
) -> Result<IngestProgress> {
    let mut disk = open(Box::new(std::fs::File::open(path)?), None)?;
    let ingest = DiskIngest::new(|_: PackId, _: Vec<u8>| Ok(())).free_space(free_space);
    let look = &mut |id| known.get(&id).copied();
    let done = ingest.run(disk.as_mut(), look, &mut |_| ControlFlow::Continue(()))?;
    remember(&done.recipe, known);
    Ok(done.totals)
}

fn remember(recipe: &Recipe, known: &mut HashMap<ChunkId, StoredChunk>) {
    for chunk in recipe.chunks() {
        let object = recipe.objects()[chunk.object as usize];
        let (at, encoding, length) = (chunk.at, chunk.encoding, chunk.length);
        known.entry(chunk.id).or_insert(StoredChunk { object, at, encoding, length });
    }
}

fn print(pair: &Pair) {
    println!("\n{}: index {:.2} MiB for each GiB of content", pair.new, pair.index_mib_per_gib);
    if let Some(ratio) = pair.delta_over_patch {
        println!("delta bundle and recipe over zstd --patch-from: {ratio:.2}");
    }
    println!(
        "{:<28} {:>10} {:>10} {:>8} {:>8} {:>11} {:>8}",
        "", "new chunks", "new MiB", "share", "stored", "ours/this", "seconds"
    );
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for row in &pair.rows {
        let shown = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        println!(
            "{:<28} {:>10} {:>10} {:>8} {:>8.1} {:>11.2} {:>8.1}",
            row.name,
            shown(row.new_chunks.map(|chunks| chunks.to_string())),
            shown(row.new_content_bytes.map(|bytes| format!("{:.1}", mib(bytes)))),
            shown(row.new_share.map(|share| format!("{:.1} %", share * 100.0))),
            mib(row.new_stored_bytes),
            row.ratio_of_ours,
            row.seconds
        );
    }
}

fn measure(old: &Path, new: &Path, folder: &Path) -> Result<Pair> {
    let started = Instant::now();
    let (ours, index, versions) = ours(old, new)?;
    let mut rows = vec![counted("shoal", ours, started.elapsed())];
    let started = Instant::now();
    let bundle = delta_bytes(&versions)?;
    let [of_old, of_new] = &versions;
    rows.push(Row {
        name: DELTA.into(),
        old_stored_bytes: of_old.packs.values().map(|pack| pack.len() as u64).sum(),
        new_stored_bytes: bundle + of_new.recipe.encode().len() as u64,
        new_content_bytes: None,
        new_chunks: None,
        new_share: None,
        ratio_of_ours: 1.0,
        seconds: started.elapsed().as_secs_f64(),
    });
    drop(versions);
    let cuts: [(&str, Cut); 3] = [
        ("fixed 4 KiB", fixed::<4096>),
        ("fixed 64 KiB", fixed::<FIXED_BYTES>),
        ("FastCDC 64 KiB", by_content),
    ];
    for (name, cut) in cuts {
        let started = Instant::now();
        let count = count(old, new, cut)?;
        rows.push(counted(name, count, started.elapsed()));
    }
    type Tool = fn(&Path, &Path, &Path) -> Result<(u64, u64)>;
    let tools: [(&str, &str, Tool); 3] = [
        ("casync 64 KiB", "casync", casync),
        ("borg zstd,3", "borg", borg),
        (PATCH, "zstd", patch),
    ];
    for (name, program, tool) in tools {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("{program} is not installed and left out");
            continue;
        }
        let room = tempfile::tempdir_in(folder)?;
        let started = Instant::now();
        let (old_stored, new_stored) = match tool(old, new, room.path()) {
            Ok(stored) => stored,
            // zstd takes no dictionary of more than 2 GB.
            Err(error) => {
                eprintln!("{name} is left out: {error:#}");
                continue;
            }
        };
        rows.push(Row {
            name: name.into(),
            old_stored_bytes: old_stored,
            new_stored_bytes: new_stored,
            new_content_bytes: None,
            new_chunks: None,
            new_share: None,
            ratio_of_ours: 1.0,
            seconds: started.elapsed().as_secs_f64(),
        });
    }
    let base = rows[0].new_stored_bytes as f64;
    for row in &mut rows {
        row.ratio_of_ours = base / row.new_stored_bytes.max(1) as f64;
    }
    let name = new.file_name().unwrap_or(new.as_os_str()).to_string_lossy().into_owned();
    let stored = |name: &str| {
        rows.iter().find(|row| row.name == name).map(|row| row.new_stored_bytes as f64)
    };
    let delta_over_patch = stored(DELTA).zip(stored(PATCH)).map(|(delta, patch)| delta / patch);
    Ok(Pair { new: name, rows, index_mib_per_gib: index, delta_over_patch })
}

fn counted(name: &str, count: Count, took: Duration) -> Row {
    Row {
        name: name.into(),
        old_stored_bytes: count.old_stored,
        new_stored_bytes: count.new_stored,
        new_content_bytes: Some(count.new_content),
        new_chunks: Some(count.chunks),
        new_share: Some(count.new_content as f64 / count.content.max(1) as f64),
        ratio_of_ours: 1.0,
        seconds: took.as_secs_f64(),
    }
}

/// A disk as storage has it: with the packs that its upload added.
struct Version {
    recipe: Recipe,
    packs: HashMap<ObjectKey, Vec<u8>>,
}

/// As an upload does it; besides, MiB of recipe for each GiB of the new disk's content.
fn ours(old: &Path, new: &Path) -> Result<(Count, f64, [Version; 2])> {
    let mut known: HashMap<ChunkId, StoredChunk> = HashMap::new();
    let mut ingest = |path: &Path| {
        let mut disk = open(Box::new(std::fs::File::open(path)?), None)?;
        let mut packs = HashMap::new();
        let sink = |id: PackId, bytes: Vec<u8>| {
            packs.insert(ObjectKey::Pack(id), bytes);
            Ok(())
        };
        let look = &mut |id| known.get(&id).copied();
        let done =
            DiskIngest::new(sink).run(disk.as_mut(), look, &mut |_| ControlFlow::Continue(()))?;
        let recipe = done.recipe;
        let fresh = recipe.chunks().iter().filter(|chunk| !known.contains_key(&chunk.id)).count();
        remember(&recipe, &mut known);
        let (totals, index) = (done.totals, recipe.encode().len());
        anyhow::Ok((totals, fresh, index, Version { recipe, packs }))
    };
    let (first, _, _, of_old) = ingest(old)?;
    let (second, chunks, index, of_new) = ingest(new)?;
    let count = Count {
        old_stored: first.stored_bytes,
        new_stored: second.stored_bytes,
        new_content: second.new_bytes,
        content: second.content_bytes,
        chunks: chunks as u64,
    };
    let index = index as f64 * 1024.0 / second.content_bytes.max(1) as f64;
    Ok((count, index, [of_old, of_new]))
}

/// How long the bundle is that leads from the one to the other, as a node makes it.
fn delta_bytes([old, new]: &[Version; 2]) -> Result<u64> {
    let id = |version: &Version| RecipeId::of(&version.recipe.encode());
    let read = &mut |side, chunk: u32, to: &mut Vec<u8>| -> Result<(), SinkError> {
        let recipe = match side {
            Side::Old => &old.recipe,
            Side::New => &new.recipe,
        };
        let chunk = &recipe.chunks()[chunk as usize];
        let key = recipe.objects()[chunk.object as usize].key;
        let pack = old.packs.get(&key).or_else(|| new.packs.get(&key));
        let pack = pack.ok_or("a pack that no version added")?;
        to.extend(decode_chunk(chunk, &pack[chunk.at as usize..][..chunk.stored() as usize])?);
        Ok(())
    };
    let sink = |_: PackId, _: Vec<u8>| Ok(());
    let limits = DeltaLimits::within(u64::MAX);
    let (from, to) = ((id(old), &old.recipe), (id(new), &new.recipe));
    let go_on = &mut || ControlFlow::Continue(());
    match make_delta(from, to, limits, u64::MAX, read, go_on, sink)? {
        DeltaEnd::Made(made) => Ok(made.recipe.length()),
        DeltaEnd::TooLong => bail!("a bundle without a limit was too long"),
    }
}

fn fixed<const BYTES: usize>(disk: &[u8], with: &mut Visit<'_>) -> Result<()> {
    disk.chunks(BYTES).try_for_each(with)
}

fn by_content(disk: &[u8], with: &mut Visit<'_>) -> Result<()> {
    let search = FastCDC::new(disk, 16 * 1024, 64 * 1024, 256 * 1024);
    let mut at = 0;
    while at < disk.len() {
        let (_, end) = search.cut(at, disk.len() - at);
        with(&disk[at..end])?;
        at = end;
    }
    Ok(())
}

/// Chunks that are all zero count for nothing.
fn count(old: &Path, new: &Path, cut: Cut) -> Result<Count> {
    let mut seen = HashSet::new();
    let mut total = Count::default();
    for path in [old, new] {
        total = Count { old_stored: total.new_stored, ..Count::default() };
        let disk = std::fs::read(path)?;
        cut(&disk, &mut |chunk| {
            if chunk.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            total.content += chunk.len() as u64;
            if seen.insert(blake3::hash(chunk)) {
                total.chunks += 1;
                total.new_content += chunk.len() as u64;
                total.new_stored +=
                    zstd::bulk::compress(chunk, LEVEL)?.len().min(chunk.len()) as u64;
            }
            Ok(())
        })?;
    }
    Ok(total)
}

fn casync(old: &Path, new: &Path, room: &Path) -> Result<(u64, u64)> {
    let store = room.join("store.castr");
    let mut sizes = Vec::new();
    for (number, disk) in [old, new].into_iter().enumerate() {
        let mut command = Command::new("casync");
        command.arg("make").arg("--chunk-size=16384:65536:262144");
        command.arg(format!("--store={}", store.display()));
        run(command.arg(room.join(format!("{number}.caibx"))).arg(disk))?;
        sizes.push(tree_bytes(&store)?);
    }
    Ok((sizes[0], sizes[1] - sizes[0]))
}

fn borg(old: &Path, new: &Path, room: &Path) -> Result<(u64, u64)> {
    let repository = room.join("repository");
    let borg = || {
        let mut command = Command::new("borg");
        command.env("BORG_BASE_DIR", room).env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
        command
    };
    run(borg().args(["init", "-e", "none"]).arg(&repository))?;
    let mut sizes = Vec::new();
    for (number, disk) in [old, new].into_iter().enumerate() {
        let archive = format!("{}::{number}", repository.display());
        // Cuts of 64 KiB on average, as the others.
        let mut command = borg();
        command.args([
            "create",
            "--compression",
            "zstd,3",
            "--chunker-params",
            "buzhash,14,18,16,4095",
        ]);
        run(command.arg(archive).arg(disk))?;
        sizes.push(tree_bytes(&repository.join("data"))?);
    }
    Ok((sizes[0], sizes[1] - sizes[0]))
}

fn patch(old: &Path, new: &Path, room: &Path) -> Result<(u64, u64)> {
    let [whole, patch] = ["whole", "patch"].map(|name| room.join(name));
    run(Command::new("zstd").args(["-q", "-3", "-o"]).arg(&whole).arg(old))?;
    let from = format!("--patch-from={}", old.display());
    let mut command = Command::new("zstd");
    run(command.args(["-q", "-3", "--long=31", &from, "-o"]).arg(&patch).arg(new))?;
    let length = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.len());
    Ok((length(&whole)?, length(&patch)?))
}

/// Bytes of all files under `folder`.
fn tree_bytes(folder: &Path) -> Result<u64> {
    let text = run(Command::new("du").args(["-sb", "--apparent-size"]).arg(folder))?;
    let number = text.split_whitespace().next().context("du printed nothing")?;
    let bytes = number.parse()?;
    ensure!(bytes > 0, "{} is empty", folder.display());
    Ok(bytes)
}
