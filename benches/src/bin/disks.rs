//! Each disk format in and out, beside `qemu-img convert`: time, CPU, memory, length.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};
use shoal_benches::report::median;
use shoal_benches::sample::{copies, file_system};
use shoal_content::{PackId, Recipe};
use shoal_formats::{
    COMPRESS_BYTES_MAX, CompressedWriter, DiskIngest, Export, FLATTEN_BYTES_MAX, INGEST_BYTES_MAX,
    WRITE_BYTES_MAX, flatten, open, write_file,
};

/// Measures how fast disks of each format are taken in and written, beside qemu-img.
///
/// All read one ext4 file system of this machine's programs, or what is made of it, from the page
/// cache, and write a new file (or packs) into one folder; nobody syncs. Each run is a process of
/// its own, and the contestants take turns. `qemu` is `qemu-img convert` as it is, `qemu -W` the same
/// with `-W -m 16`.
///
/// read: a format to a raw file, holes where it is zero: `shoal disk convert -O raw`, but for its sync.
///
/// ingest: a format to packs on the disk: read, cut along the files, hashed, each chunk compressed.
/// `qemu` reads the same into a raw file and does none of that; `qemu -c` reads and compresses all
/// into qcow2, as it does by default; `zstd -W` does so with zstd, at the level that packs have, out
/// of order: the nearest to an ingest that it has, and the fastest.
///
/// export: a raw disk to a format. Ours knows from a recipe what is content, as a host does that
/// has fetched a disk; to the compressed formats it starts from the raw disk alone.
#[derive(Debug, Parser)]
#[command(name = "disks", version, about)]
struct Arguments {
    /// A raw disk to use in place of the made one.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Content of the made disk, in MiB.
    #[arg(long, default_value_t = 512)]
    mib: u64,
    /// How often each contestant runs.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only these.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Work>,
    /// Only formats whose names contain this.
    #[arg(long, default_value = "")]
    format: String,
    /// Where the disks are made; the system's temporary folder if missing.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// One JSON object in place of the tables.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Work {
    Read,
    Ingest,
    Export,
}

/// What the benchmark starts itself for.
#[derive(Debug, Subcommand)]
enum Part {
    /// Runs a program, and prints what it took.
    #[command(hide = true)]
    Measured { command: Vec<String> },
    /// One run of ours.
    #[command(hide = true)]
    Once { work: Work, target: String, from: PathBuf, to: PathBuf, recipe: Option<PathBuf> },
}

/// A format: our name for writing it, and how qemu-img makes it.
struct Kind {
    name: &'static str,
    /// A target of `Export`, or of `CompressedWriter` if `is_compressed`.
    target: &'static str,
    qemu: &'static [&'static str],
    is_compressed: bool,
}

const KINDS: [Kind; 8] = [
    kind("raw", "raw", &["-O", "raw"], false),
    kind("qcow2", "qcow2", &["-O", "qcow2"], false),
    kind("vmdk", "vmdk", &["-O", "vmdk"], false),
    kind("vhd", "vhd", &["-O", "vpc", "-o", "force_size=on"], false),
    kind("vhdx", "vhdx", &["-O", "vhdx"], false),
    kind("qcow2 zlib", "qcow2-zlib", QEMU_ZLIB, true),
    kind("qcow2 zstd", "qcow2-zstd", QEMU_ZSTD, true),
    kind(
        "vmdk stream",
        "vmdk-stream-zlib",
        &["-O", "vmdk", "-o", "subformat=streamOptimized"],
        true,
    ),
];
const QEMU_ZLIB: &[&str] = &["-O", "qcow2", "-c"];
const QEMU_ZSTD: &[&str] = &["-O", "qcow2", "-c", "-o", "compression_type=zstd"];
/// qemu-img's own way to be faster: out of order, more requests at once.
const QEMU_FASTEST: &[&str] = &["-W", "-m", "16"];

const fn kind(
    name: &'static str,
    target: &'static str,
    qemu: &'static [&'static str],
    is_compressed: bool,
) -> Kind {
    Kind { name, target, qemu, is_compressed }
}

/// What one process took.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Cost {
    seconds: f64,
    cpu_seconds: f64,
    peak_mib: f64,
}

/// One contestant's medians.
#[derive(Debug, Clone, Serialize)]
struct Row {
    name: &'static str,
    mib_per_second: f64,
    cpu_seconds: f64,
    /// The most of all runs.
    peak_mib: f64,
    written_mib: f64,
    /// Our rate over this one's, pair by pair, the median; 1 for ours.
    ratio_of_ours: f64,
    /// The CPU time of this one over ours, likewise: what others on the machine disturb less.
    cpu_ratio_of_ours: f64,
}

#[derive(Debug, Serialize)]
struct Group {
    work: Work,
    format: &'static str,
    rows: Vec<Row>,
}

/// The peak of ours for a disk, and for one of several times its content.
#[derive(Debug, Serialize)]
struct Memory {
    work: Work,
    format: &'static str,
    peak_mib: f64,
    larger_peak_mib: f64,
    limit_mib: usize,
}

/// How much larger the disk is by which memory is judged.
const LARGER: u64 = 4;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.part {
        Some(Part::Measured { command }) => measured(command),
        Some(Part::Once { work, target, from, to, recipe }) => {
            once(*work, target, from, to, recipe.as_deref())
        }
        None => bench(&arguments),
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    let folder = match &arguments.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let bench = Bench::new(arguments, folder.path())?;
    let mut groups = Vec::new();
    let mut memory = Vec::new();
    for work in [Work::Read, Work::Ingest, Work::Export] {
        if !arguments.only.is_empty() && !arguments.only.contains(&work) {
            continue;
        }
        for kind in KINDS.iter().filter(|kind| kind.name.contains(&arguments.format)) {
            let group = bench.group(work, kind, arguments.runs)?;
            if !arguments.json {
                print(&group, groups.last());
            }
            memory.extend(bench.memory(work, kind, group.rows[0].peak_mib)?);
            groups.push(group);
        }
    }
    if arguments.json {
        let value = serde_json::json!({
            "benchmark": "disks", "bytes": bench.bytes, "groups": groups, "memory": memory,
        });
        println!("{value}");
        return Ok(());
    }
    print_memory(&memory, bench.bytes);
    Ok(())
}

fn print_memory(memory: &[Memory], bytes: u64) {
    println!("\npeak of ours, MiB      this disk   {LARGER} times   limit of it");
    for row in memory {
        let name = format!("{} {}", row.work.name(), row.format);
        println!(
            "{name:<22} {:>9.0} {:>9.0} {:>13}",
            row.peak_mib, row.larger_peak_mib, row.limit_mib
        );
    }
    println!(
        "\n- content: {} MiB; rates are of content. 'ours/this' above 1: ours is faster.\n\
         - what each side does: --help. The limit is of what ours holds itself; the program and \
         its libraries are some 10 MiB.",
        bytes >> 20
    );
}

impl Work {
    const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Ingest => "ingest",
            Self::Export => "export",
        }
    }
}

fn print(group: &Group, before: Option<&Group>) {
    if before.is_none_or(|before| before.work != group.work) {
        println!(
            "\n{:<12} {:<8} {:>8} {:>8} {:>9} {:>8} {:>10} {:>8}",
            group.work.name(),
            "",
            "MiB/s",
            "CPU s",
            "peak MiB",
            "wrote",
            "ours/this",
            "in CPU"
        );
    }
    for (place, row) in group.rows.iter().enumerate() {
        let ratio = |of: f64| if place == 0 { String::new() } else { format!("{of:.2}") };
        println!(
            "{:<12} {:<8} {:>8.0} {:>8.2} {:>9.0} {:>8.0} {:>10} {:>8}",
            if place == 0 { group.format } else { "" },
            row.name,
            row.mib_per_second,
            row.cpu_seconds,
            row.peak_mib,
            row.written_mib,
            ratio(row.ratio_of_ours),
            ratio(row.cpu_ratio_of_ours)
        );
    }
    // Somebody may be watching.
    let _ = std::io::stdout().flush();
}

/// The disks, and where results go.
struct Bench<'a> {
    folder: &'a Path,
    /// The disk's content, in bytes.
    bytes: u64,
    raw: PathBuf,
    /// Of the raw disk.
    recipe: PathBuf,
    larger: PathBuf,
    larger_recipe: PathBuf,
    /// By format, made by qemu-img.
    sources: HashMap<&'static str, PathBuf>,
}

impl<'a> Bench<'a> {
    fn new(arguments: &Arguments, folder: &'a Path) -> Result<Self> {
        let raw = match &arguments.disk {
            Some(path) => path.clone(),
            None => file_system(folder, arguments.mib << 20)?,
        };
        let larger = folder.join("larger.raw");
        copies(&raw, &larger, LARGER)?;
        let (recipe, bytes) = write_recipe(&raw, &folder.join("recipe"))?;
        let (larger_recipe, _) = write_recipe(&larger, &folder.join("larger.recipe"))?;
        let mut sources = HashMap::new();
        for kind in &KINDS {
            let path = folder.join(format!("source.{}", kind.target));
            if kind.name == "raw" {
                sources.insert(kind.name, raw.clone());
                continue;
            }
            run(&qemu("raw", &raw, &path, kind.qemu, &[]))?;
            sources.insert(kind.name, path);
        }
        Ok(Self { folder, bytes, raw, recipe, larger, larger_recipe, sources })
    }

    fn group(&self, work: Work, kind: &Kind, runs: usize) -> Result<Group> {
        let source = &self.sources[kind.name];
        let to = self.folder.join("made");
        let raw: &[&str] = &["-O", "raw"];
        let driver = driver(kind.qemu[1]);
        let mut contestants =
            vec![("shoal", self.ours(work, kind, &self.raw, source, &self.recipe)?)];
        match work {
            Work::Read => {
                contestants.push(("qemu", qemu(driver, source, &to, raw, &[])));
                contestants.push(("qemu -W", qemu(driver, source, &to, raw, QEMU_FASTEST)));
            }
            Work::Ingest => {
                contestants.push(("qemu", qemu(driver, source, &to, raw, &[])));
                contestants.push(("qemu -c", qemu(driver, source, &to, QEMU_ZLIB, &[])));
                contestants.push(("zstd -W", qemu(driver, source, &to, QEMU_ZSTD, QEMU_FASTEST)));
            }
            Work::Export => {
                contestants.push(("qemu", qemu("raw", &self.raw, &to, kind.qemu, &[])));
                contestants.push(("qemu -W", qemu("raw", &self.raw, &to, kind.qemu, QEMU_FASTEST)));
            }
        }
        let mut costs: Vec<Vec<(Cost, u64)>> = vec![Vec::new(); contestants.len()];
        // The first run of each brings programs and sources into memory, and is judged.
        for run in 0..=runs {
            for (place, (name, command)) in contestants.iter().enumerate() {
                // streamOptimized is written in order, and qemu-img refuses -W there.
                let Ok(cost) = self.cost(command) else {
                    ensure!(*name == "qemu -W", "{command:?} fails");
                    continue;
                };
                let written = written_bytes(&to)?;
                if run > 0 {
                    costs[place].push((cost, written));
                } else if *name == "shoal" && work != Work::Ingest {
                    let format = if work == Work::Read { "raw" } else { driver };
                    self.judge(format, &to)?;
                }
                remove(&to)?;
            }
        }
        let rows = contestants.iter().zip(&costs).filter(|(_, costs)| !costs.is_empty());
        let mib = self.bytes as f64 / f64::from(1 << 20);
        let rows = rows.map(|((name, _), these)| {
            let of =
                |get: fn(&Cost) -> f64| median(these.iter().map(|(cost, _)| get(cost)).collect());
            let over_ours = |get: fn(&Cost) -> f64| {
                let pairs = costs[0].iter().zip(these);
                median(pairs.map(|((ours, _), (this, _))| get(this) / get(ours)).collect())
            };
            Row {
                name,
                mib_per_second: mib / of(|cost| cost.seconds),
                cpu_seconds: of(|cost| cost.cpu_seconds),
                peak_mib: these.iter().map(|(cost, _)| cost.peak_mib).fold(0.0, f64::max),
                written_mib: these[0].1 as f64 / f64::from(1 << 20),
                ratio_of_ours: over_ours(|cost| cost.seconds),
                cpu_ratio_of_ours: over_ours(|cost| cost.cpu_seconds),
            }
        });
        Ok(Group { work, format: kind.name, rows: rows.collect() })
    }

    fn ours(
        &self,
        work: Work,
        kind: &Kind,
        raw: &Path,
        source: &Path,
        recipe: &Path,
    ) -> Result<Vec<String>> {
        let from = if work == Work::Export { raw } else { source };
        let mut command = vec![text(&std::env::current_exe()?), "once".into()];
        command.extend([work.name().into(), kind.target.into(), text(from)]);
        command.push(text(&self.folder.join("made")));
        if work == Work::Export && !kind.is_compressed {
            command.push(text(recipe));
        }
        Ok(command)
    }

    /// For the larger disk; of what is read, raw stands for all formats.
    fn memory(&self, work: Work, kind: &Kind, peak_mib: f64) -> Result<Option<Memory>> {
        let limit = match work {
            Work::Read if kind.name != "raw" => return Ok(None),
            Work::Read => FLATTEN_BYTES_MAX,
            Work::Ingest if kind.name != "raw" => return Ok(None),
            Work::Ingest => INGEST_BYTES_MAX,
            Work::Export if kind.is_compressed => COMPRESS_BYTES_MAX,
            // The recipe, its layout, and what is between reading and writing.
            Work::Export => fs::metadata(&self.larger_recipe)?.len() as usize * 4 + WRITE_BYTES_MAX,
        };
        let command = self.ours(work, kind, &self.larger, &self.larger, &self.larger_recipe)?;
        let cost = self.cost(&command)?;
        remove(&self.folder.join("made"))?;
        let (larger_peak_mib, limit_mib) = (cost.peak_mib, limit >> 20);
        Ok(Some(Memory { work, format: kind.name, peak_mib, larger_peak_mib, limit_mib }))
    }

    fn cost(&self, command: &[String]) -> Result<Cost> {
        let exe = std::env::current_exe()?;
        let output = Command::new(exe).args(["measured", "--"]).args(command).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {errors}");
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Whether what ours wrote is the disk, to qemu-img.
    fn judge(&self, driver: &str, made: &Path) -> Result<()> {
        let compare = ["qemu-img", "compare", "-f", "raw", "-F", driver];
        let mut command: Vec<String> = compare.map(str::to_owned).to_vec();
        command.extend([text(&self.raw), text(made)]);
        run(&command)
    }
}

fn driver(qemu: &str) -> &'static str {
    match qemu {
        "qcow2" => "qcow2",
        "vmdk" => "vmdk",
        "vpc" => "vpc",
        "vhdx" => "vhdx",
        _ => "raw",
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn qemu(driver: &str, from: &Path, to: &Path, options: &[&str], more: &[&str]) -> Vec<String> {
    let start = ["qemu-img", "convert", "-f", driver];
    let mut command: Vec<String> = start.map(str::to_owned).to_vec();
    command.extend(options.iter().chain(more).map(|&option| option.to_owned()));
    command.extend([text(from), text(to)]);
    command
}

fn run(command: &[String]) -> Result<()> {
    let output = Command::new(&command[0]).args(&command[1..]).output();
    let output = output.with_context(|| format!("{} did not start; install it", command[0]))?;
    let (out, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {out}{errors}");
    Ok(())
}

/// What a file, or a folder of files, takes.
fn written_bytes(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let taken = |path: &Path| -> Result<u64> { Ok(fs::metadata(path)?.blocks() * 512) };
    if !path.is_dir() {
        return taken(path);
    }
    fs::read_dir(path)?.map(|entry| taken(&entry?.path())).sum()
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    Ok(removed?)
}

/// Starts a program as the only child of this process, whose peak so is the child's.
fn measured(command: &[String]) -> Result<()> {
    let started = Instant::now();
    run(command)?;
    let seconds = started.elapsed().as_secs_f64();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec().unsigned_abs(), time.tv_usec() as u32 * 1000).as_secs_f64()
    };
    let cpu_seconds = time(usage.user_time()) + time(usage.system_time());
    let cost = Cost { seconds, cpu_seconds, peak_mib: usage.max_rss() as f64 / 1024.0 };
    println!("{}", serde_json::to_string(&cost)?);
    Ok(())
}

/// Ingests the disk, and gives where its recipe is and how much content it has.
fn write_recipe(raw: &Path, to: &Path) -> Result<(PathBuf, u64)> {
    let mut disk = open(Box::new(File::open(raw)?), None)?;
    let sink = |_: PackId, _: Vec<u8>| Ok(());
    let done = DiskIngest::new(sink)
        .run(disk.as_mut(), &mut |_| None, &mut |_| ControlFlow::Continue(()))?;
    fs::write(to, done.recipe.encode())?;
    Ok((to.to_owned(), done.totals.content_bytes))
}

fn once(work: Work, target: &str, from: &Path, to: &Path, recipe: Option<&Path>) -> Result<()> {
    match (work, recipe) {
        (Work::Read, _) => read(from, to),
        (Work::Ingest, _) => ingest(from, to),
        (Work::Export, Some(recipe)) => {
            let recipe = Arc::new(Recipe::decode(&fs::read(recipe)?)?);
            let (raw, file) = (File::open(from)?, File::create(to)?);
            let target: shoal_formats::Target = target.parse()?;
            let export = Export::new(target, recipe)?;
            let mut content = |guest: u64, buf: &mut [u8]| raw.read_exact_at(buf, guest);
            Ok(write_file(&export, &file, &mut content, &mut |_| ControlFlow::Continue(()))?)
        }
        (Work::Export, None) => {
            let mut disk = open(Box::new(File::open(from)?), None)?;
            let writer = CompressedWriter::new(target.parse()?);
            let file = File::create(to)?;
            writer.write(disk.as_mut(), &file, &mut |_| ControlFlow::Continue(()))?;
            Ok(())
        }
    }
}

/// As an upload, with packs in a folder for storage.
fn ingest(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    let mut disk = open(Box::new(File::open(from)?), None)?;
    let sink = |id: PackId, bytes: Vec<u8>| {
        fs::write(to.join(id.to_string()), bytes).map_err(|error| Box::new(error).into())
    };
    DiskIngest::new(sink).run(disk.as_mut(), &mut |_| None, &mut |_| ControlFlow::Continue(()))?;
    Ok(())
}

fn read(from: &Path, to: &Path) -> Result<()> {
    let mut disk = open(Box::new(File::open(from)?), None)?;
    Ok(flatten(disk.as_mut(), &File::create(to)?, &mut |_| ControlFlow::Continue(()))?)
}
