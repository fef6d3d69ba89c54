//! The cache under what really happens to it: a kill between any two steps, damaged files, a full
//! disk or a broken one, and more images than fit.
//!
//! A killed writer is this test's own program run again as a child ([`WRITER`]). The full disk is
//! a small tmpfs, so these tests run as root.

mod disks;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use disks::{CHUNK_BYTES, SmallDisk, content, ensure_sound, fill, id, open, recipe};
use shoal_agent::cache::{Cache, Error};
use shoal_agent::config;
use shoal_agent::metrics::CacheMetrics;
use shoal_content::{
    Chunk, ChunkId, Encoding, Extent, ObjectKey, PackId, Recipe, RecipeKind, SourceObject,
};

/// Set for the child: the folder of the cache it writes to.
const WRITER: &str = "SHOAL_TEST_CACHE_WRITER";
const WRITER_CHUNKS: u32 = 2000;

/// Not a test of its own: what the killed child does, where the variable says so.
#[test]
fn writer_for_the_kill_test() -> Result<()> {
    let Some(folder) = std::env::var_os(WRITER) else { return Ok(()) };
    let cache = open(Path::new(&folder), u64::MAX)?;
    let recipe = recipe(7, WRITER_CHUNKS);
    let entry = cache.open_entry(id(&recipe), &recipe)?;
    let tending = cache.clone();
    std::thread::spawn(move || {
        loop {
            tending.tend();
            std::thread::park_timeout(Duration::from_millis(20));
        }
    });
    let mut out = std::io::stderr().lock();
    for number in 0..WRITER_CHUNKS {
        if !entry.contains(number) {
            cache.write_chunk(&entry, number, &content(7, number))?;
        }
        writeln!(out, "written {number}")?;
    }
    Ok(())
}

fn spawn_writer(folder: &Path) -> Result<Child> {
    let child = Command::new(std::env::current_exe()?)
        .args(["--exact", "writer_for_the_kill_test", "--nocapture"])
        .env(WRITER, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    Ok(child)
}

#[test]
fn a_killed_writer_loses_nothing_that_was_written_and_lies_about_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recipe = recipe(7, WRITER_CHUNKS);
    for round in 1..=4u32 {
        let mut child = spawn_writer(folder.path())?;
        let lines = BufReader::new(child.stderr.take().context("no pipe")?).lines();
        let mut written = 0;
        for line in lines {
            let line = line?;
            let Some(number) = line.strip_prefix("written ") else { continue };
            written = number.parse::<u32>()? + 1;
            if written >= round * 300 {
                break;
            }
        }
        child.kill()?;
        child.wait()?;
        ensure!(written >= round * 300, "the writer ended early at {written}");

        let cache = open(folder.path(), u64::MAX)?;
        let entry = cache.entry(id(&recipe)).context("the entry is gone")?;
        let lost = cache.verify(&entry)?;
        let held = ensure_sound(&cache, &entry, 7)?;
        // What a write has returned from is journalled, and what a process wrote outlives it.
        ensure!(
            held >= written && lost == 0,
            "{held} of {written} chunks were kept, {lost} did not check"
        );
        // Trusting them was written down: a further start doubts nothing.
        entry.sync()?;
        drop((entry, cache));
        let cache = open(folder.path(), u64::MAX)?;
        let entry = cache.entry(id(&recipe)).context("the entry is gone")?;
        ensure!(!entry.has_doubtful() && entry.held().len() >= held);
    }
    Ok(())
}

#[test]
fn a_checkpoint_trusts_nothing_that_is_still_in_doubt() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recipe = recipe(9, 10);
    let cache = open(folder.path(), u64::MAX)?;
    let entry = cache.open_entry(id(&recipe), &recipe)?;
    fill(&cache, &entry, 9, 0..5)?;
    drop((entry, cache));
    let cache = open(folder.path(), u64::MAX)?;
    let entry = cache.entry(id(&recipe)).context("the entry is gone")?;
    ensure!(entry.has_doubtful(), "nothing is in doubt");
    let loaded = entry.load()?;
    loaded.content.write_all_at(b"lost", loaded.places.offsets(2)[0])?;
    fill(&cache, &entry, 9, 5..6)?;
    entry.sync()?;
    drop((loaded, entry, cache));
    let cache = open(folder.path(), u64::MAX)?;
    let entry = cache.entry(id(&recipe)).context("the entry is gone")?;
    ensure!(cache.verify(&entry)? == 1, "the lost chunk is trusted");
    ensure!(entry.held().runs() == [(0, 2), (3, 3)], "{:?}", entry.held().runs());
    Ok(())
}

#[test]
fn damaged_content_is_noticed_and_fetched_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recipe = recipe(1, 20);
    let cache = open(folder.path(), u64::MAX)?;
    let entry = cache.open_entry(id(&recipe), &recipe)?;
    fill(&cache, &entry, 1, 0..20)?;
    entry.complete()?;
    let offset = entry.load()?.places.offsets(4)[0];
    entry.load()?.content.write_all_at(b"rot", offset + 100)?;

    ensure!(cache.read_chunk(&entry, 4)?.is_none(), "a wrong byte went out");
    ensure!(!entry.contains(4) && entry.contains(5));
    drop((entry, cache));
    let cache = open(folder.path(), u64::MAX)?;
    let entry = cache.entry(id(&recipe)).context("the entry is gone")?;
    ensure!(!entry.contains(4), "the drop did not survive a restart");
    fill(&cache, &entry, 1, 4..5)?;
    entry.complete()?;
    ensure!(ensure_sound(&cache, &entry, 1)? == 20);
    Ok(())
}

#[test]
fn what_the_disk_does_not_give_back_is_fetched_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recipe = recipe(38, 10);
    let cache = open(&folder.path().join("cache"), u64::MAX)?;
    let entry = cache.open_entry(id(&recipe), &recipe)?;
    fill(&cache, &entry, 38, 0..10)?;
    entry.complete()?;
    entry.unload();
    // In its place something that gives EIO: nothing of this process lies at such addresses.
    let (path, aside) = (entry.folder().join("content"), folder.path().join("aside"));
    fs::rename(&path, &aside)?;
    symlink("/proc/self/mem", &path)?;
    ensure!(cache.read_chunk(&entry, 4)?.is_none());
    ensure!(!entry.contains(4) && entry.contains(5));
    ensure!(cache.metrics().corrupt.get() == 1);

    // The same for what is hashed after a start.
    fs::write(path.with_file_name("journal"), b"")?;
    drop((entry, cache));
    let cache = open(&folder.path().join("cache"), u64::MAX)?;
    let entry = cache.entry(id(&recipe)).context("the entry is gone")?;
    ensure!(entry.has_doubtful());
    ensure!(cache.verify(&entry)? == 10);
    ensure!(entry.held().is_empty() && !entry.has_doubtful());
    entry.sync()?;
    drop((entry, cache));

    fs::rename(&aside, &path)?;
    let cache = open(&folder.path().join("cache"), u64::MAX)?;
    let entry = cache.open_entry(id(&recipe), &recipe)?;
    ensure!(entry.held().is_empty(), "it is trusted again unseen");
    fill(&cache, &entry, 38, 0..10)?;
    entry.complete()?;
    ensure!(ensure_sound(&cache, &entry, 38)? == 10);
    Ok(())
}

#[test]
fn a_damaged_journal_costs_a_hashing_and_trusts_nothing_wrong() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recipe = recipe(2, 30);
    let cache = open(folder.path(), u64::MAX)?;
    let entry = cache.open_entry(id(&recipe), &recipe)?;
    fill(&cache, &entry, 2, 0..25)?;
    entry.sync()?;
    let path = entry.folder().to_owned();
    let hole = entry.load()?.places.offsets(29)[0];
    entry.load()?.content.write_all_at(b"not a chunk", hole)?;
    drop((entry, cache));
    for damage in [&b""[..], b"SHOALJNL but nothing more", &[0xff; 4096]] {
        fs::write(path.join("journal"), damage)?;
        let cache = open(folder.path(), u64::MAX)?;
        let entry = cache.open_entry(id(&recipe), &recipe)?;
        ensure!(entry.held().runs() == [(0, 25)], "kept {:?}", entry.held().runs());
        ensure_sound(&cache, &entry, 2)?;
    }
    // A recipe that is damaged takes its entry with it, and nothing else.
    fs::write(path.join("recipe"), b"?")?;
    fs::write(path.join("journal"), b"?")?;
    let cache = open(folder.path(), u64::MAX)?;
    ensure!(cache.entry(id(&recipe)).is_none());
    ensure!(cache.open_entry(id(&recipe), &recipe)?.held().len() == 0);
    Ok(())
}

#[test]
fn chunks_of_other_images_are_copied_instead_of_fetched() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (first, longer) = (recipe(3, 10), recipe(3, 15));
    let cache = open(folder.path(), u64::MAX)?;
    let entry = cache.open_entry(id(&first), &first)?;
    fill(&cache, &entry, 3, 0..10)?;
    entry.complete()?;
    drop((entry, cache));
    // Also after a restart, once the index is filled again.
    let cache = open(folder.path(), u64::MAX)?;
    cache.settle();
    let entry = cache.open_entry(id(&longer), &longer)?;
    ensure!(entry.held().runs() == [(0, 10)], "copied {:?}", entry.held().runs());
    ensure_sound(&cache, &entry, 3)?;
    ensure!(cache.metrics().bytes_copied.get() == 10 * CHUNK_BYTES as u64);
    ensure!(entry.copied_bytes() == 10 * CHUNK_BYTES as u64);
    Ok(())
}

#[test]
fn the_least_recently_used_leaves_first_and_what_is_used_or_pinned_stays() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let room = 32 * CHUNK_BYTES as u64;
    let cache = open(folder.path(), room)?;
    let recipes: Vec<_> = (10..14u64).map(|seed| (seed, recipe(seed, 10))).collect();
    let put = |at: usize| -> Result<()> {
        let (seed, recipe) = &recipes[at];
        let _lease = cache.lease(id(recipe));
        let entry = cache.open_entry(id(recipe), recipe)?;
        fill(&cache, &entry, *seed, 0..10)?;
        Ok(entry.complete()?)
    };
    put(0)?;
    put(1)?;
    let _in_use = cache.lease(id(&recipes[0].1));
    put(2)?;
    ensure!(cache.entry(id(&recipes[0].1)).is_some(), "evicted while in use");
    ensure!(cache.entry(id(&recipes[1].1)).is_none(), "nothing was evicted");
    cache.entry(id(&recipes[2].1)).context("gone")?.set_pinned(true)?;
    let refused = put(3).expect_err("there is no room");
    let text = format!("{refused:#}");
    ensure!(text.contains("full") && text.contains("cache.max_bytes"), "{text}");
    cache.entry(id(&recipes[2].1)).context("the pinned one is gone")?.set_pinned(false)?;
    put(3)?;
    ensure!(cache.used_bytes() <= room + 3 * CHUNK_BYTES as u64);
    ensure!(cache.limits().high == room);
    Ok(())
}

#[test]
fn whoever_asked_hears_of_all_that_leaves() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let cache = open(folder.path(), 32 * CHUNK_BYTES as u64)?;
    let mut removals = cache.removals();
    let recipes: Vec<_> = (40..43u64).map(|seed| (seed, recipe(seed, 10))).collect();
    for (seed, recipe) in &recipes {
        let _lease = cache.lease(id(recipe));
        let entry = cache.open_entry(id(recipe), recipe)?;
        fill(&cache, &entry, *seed, 0..10)?;
        entry.complete()?;
    }
    let [evicted, removed, anew] = [0, 1, 2].map(|at| id(&recipes[at].1));
    ensure!(removals.try_recv() == Ok(evicted) && removals.try_recv().is_err());
    ensure!(cache.remove_unleased(removed)? > 0);
    ensure!(removals.try_recv() == Ok(removed) && removals.try_recv().is_err());
    // What is damaged leaves, too, and is there again.
    let entry = cache.entry(anew).context("the last one is gone")?;
    entry.unload();
    fs::write(entry.folder().join("recipe"), b"?")?;
    ensure!(cache.open_entry(anew, &recipes[2].1)?.held().is_empty());
    ensure!(removals.try_recv() == Ok(anew) && removals.try_recv().is_err());
    Ok(())
}

#[test]
fn what_leaves_gives_back_what_was_counted_for_it_and_nobody_else_reads_what_stays() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let cache = open(folder.path(), u64::MAX)?;
    ensure!(fs::metadata(folder.path())?.permissions().mode() & 0o777 == 0o700);
    let (first, second) = (recipe(50, 3), recipe(51, 3));
    for (seed, recipe) in [(50, &first), (51, &second)] {
        let entry = cache.open_entry(id(recipe), recipe)?;
        fill(&cache, &entry, seed, 0..3)?;
        entry.complete()?;
    }
    let entry = cache.entry(id(&first)).context("it is gone")?;
    cache.drop_corrupt(&entry, [1])?;
    // Its files take more than anybody counted.
    fs::write(entry.folder().join("journal"), vec![0; 1 << 20])?;
    let freed = cache.remove_unleased(id(&first))?;
    ensure!(freed >= 2 * CHUNK_BYTES as u64 && freed < 1 << 20, "{freed}");
    let kept = cache.entry(id(&second)).context("it is gone")?.counted_bytes();
    ensure!(cache.used_bytes() == kept, "{} for {kept}", cache.used_bytes());
    Ok(())
}

#[test]
fn what_breaks_off_at_the_end_is_done_after_the_next_start() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (first, longer) = (recipe(44, 10), recipe(44, 15));
    let cache = open(folder.path(), u64::MAX)?;
    let entry = cache.open_entry(id(&first), &first)?;
    fill(&cache, &entry, 44, 0..10)?;
    entry.complete()?;
    cache.stop();
    let stopped = cache.open_entry(id(&longer), &longer);
    ensure!(matches!(stopped, Err(Error::Stopping)), "{stopped:?}");
    ensure!(cache.entry(id(&longer)).is_some_and(|entry| entry.held().is_empty()));
    cache.sync_all()?;
    // So that the next process has something to hash.
    fs::write(entry.folder().join("journal"), b"")?;
    drop((entry, cache));

    let cache = open(folder.path(), u64::MAX)?;
    cache.stop();
    cache.settle();
    let entry = cache.entry(id(&first)).context("the entry is gone")?;
    ensure!(entry.has_doubtful() && entry.held().is_empty(), "it is held without a look");
    ensure!(matches!(cache.verify(&entry), Err(Error::Stopping)));
    cache.sync_all()?;
    drop((entry, cache));

    let cache = open(folder.path(), u64::MAX)?;
    cache.settle();
    let entry = cache.entry(id(&first)).context("the entry is gone")?;
    ensure!(entry.is_complete() && ensure_sound(&cache, &entry, 44)? == 10);
    let copied = cache.open_entry(id(&longer), &longer)?;
    ensure!(copied.held().runs() == [(0, 10)], "copied {:?}", copied.held().runs());
    Ok(())
}

#[test]
fn a_full_disk_refuses_clearly_and_goes_on_when_space_returns() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::mount(folder.path().join("disk"), 8)?;
    let cache = open(&disk.0.join("cache"), u64::MAX)?;
    let recipe = recipe(20, 60);
    let _lease = cache.lease(id(&recipe));
    let entry = cache.open_entry(id(&recipe), &recipe)?;
    fill(&cache, &entry, 20, 0..5)?;
    fs::write(disk.0.join("ballast"), vec![1; 6 << 20])?;
    let started = Instant::now();
    let refused = loop {
        if let Err(error) = fill(&cache, &entry, 20, 5..60) {
            break error;
        }
        ensure!(started.elapsed() < Duration::from_secs(20), "the disk never got full");
    };
    let text = format!("{refused:#}");
    ensure!(text.contains("full"), "{text}");
    // Not even a checkpoint that fails may cost what is there.
    let _ = entry.sync();
    let held = ensure_sound(&cache, &entry, 20)?;
    ensure!((5..60).contains(&held));

    fs::remove_file(disk.0.join("ballast"))?;
    fill(&cache, &entry, 20, 0..60)?;
    entry.complete()?;
    ensure!(ensure_sound(&cache, &entry, 20)? == 60);
    drop((_lease, entry, cache));
    let cache = open(&disk.0.join("cache"), u64::MAX)?;
    let entry = cache.entry(id(&recipe)).context("the entry is gone")?;
    ensure!(entry.is_complete() && !entry.has_doubtful());
    Ok(())
}

/// A disk that is one chunk, `places` times.
fn repeated(seed: u64, places: u32) -> Arc<Recipe> {
    let objects = vec![SourceObject {
        key: ObjectKey::Pack(PackId::of(&seed.to_le_bytes())),
        length: CHUNK_BYTES as u64,
    }];
    let chunk = Chunk {
        id: ChunkId::of(&content(seed, 0)),
        length: CHUNK_BYTES as u32,
        object: 0,
        at: 0,
        encoding: Encoding::Raw,
    };
    let offset = |place: u32| u64::from(place) * CHUNK_BYTES as u64;
    let extents = (0..places).map(|place| Extent { offset: offset(place), chunk: 0 }).collect();
    let recipe = Recipe::new(RecipeKind::Disk, offset(places), objects, vec![chunk], extents);
    Arc::new(recipe.expect("a sound recipe"))
}

#[test]
fn a_chunk_counts_at_every_place_before_it_is_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let room = 64 * CHUNK_BYTES as u64;
    let cache = open(folder.path(), room)?;
    let bomb = repeated(30, 4096);
    let refused = cache.check_room(id(&bomb), &bomb).expect_err("it can never fit");
    let text = format!("{refused}");
    ensure!(
        matches!(refused, Error::TooLarge { .. }) && text.contains("cache.max_bytes"),
        "{text}"
    );
    // Also where nobody asked before, and what is here already is not given up for it.
    let small = recipe(29, 4);
    fill(&cache, &*cache.open_entry(id(&small), &small)?, 29, 0..4)?;
    let entry = cache.open_entry(id(&bomb), &bomb)?;
    let before = cache.used_bytes();
    let refused = fill(&cache, &entry, 30, 0..1).expect_err("it does not fit");
    ensure!(format!("{refused:#}").contains("full"), "{refused:#}");
    ensure!(cache.used_bytes() == before && !entry.contains(0));
    ensure!(entry.disk_bytes() < room && cache.entry(id(&small)).is_some());

    let fitting = repeated(31, 40);
    cache.check_room(id(&fitting), &fitting)?;
    let _lease = cache.lease(id(&fitting));
    let entry = cache.open_entry(id(&fitting), &fitting)?;
    fill(&cache, &entry, 31, 0..1)?;
    ensure!(cache.used_bytes() >= before + 40 * CHUNK_BYTES as u64);
    ensure!(entry.disk_bytes() >= 40 * CHUNK_BYTES as u64);
    // It fits by itself, but not beside what is in use.
    let second = repeated(32, 40);
    let refused = cache.check_room(id(&second), &second).expect_err("both do not fit");
    ensure!(refused.is_full(), "{refused}");
    Ok(())
}

#[test]
fn a_chunk_that_fills_the_disk_at_a_later_place_leaves_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::mount(folder.path().join("disk"), 48)?;
    let cache = open(&disk.0.join("cache"), u64::MAX)?;
    // 64 MiB where 48 are: the steps behind the first meet the end.
    let bomb = repeated(33, 1024);
    ensure!(cache.check_room(id(&bomb), &bomb).is_err_and(|error| error.is_full()));
    let entry = cache.open_entry(id(&bomb), &bomb)?;
    let chunk = content(33, 0);
    let mut steps = 0;
    let written = entry.write(0, &chunk, &mut |_| {
        steps += 1;
        Ok(())
    });
    ensure!(written.is_err_and(|error| error.is_full()) && steps > 0);
    ensure!(entry.disk_bytes() < 1 << 20, "{} bytes stayed", entry.disk_bytes());
    let other = recipe(34, 20);
    let entry = cache.open_entry(id(&other), &other)?;
    fill(&cache, &entry, 34, 0..20)?;
    Ok(())
}

#[test]
fn a_disk_that_grows_is_used_without_a_restart() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::mount(folder.path().join("disk"), 4)?;
    let cache =
        Cache::open(&disk.0.join("cache"), &config::Cache::default(), CacheMetrics::default())?;
    let small = cache.limits();
    let recipe = recipe(35, 100);
    let _lease = cache.lease(id(&recipe));
    let entry = cache.open_entry(id(&recipe), &recipe)?;
    let refused = fill(&cache, &entry, 35, 0..100).expect_err("100 chunks take 6 MiB");
    ensure!(format!("{refused:#}").contains("full"), "{refused:#}");
    let grown = Command::new("mount").args(["-o", "remount,size=32m"]).arg(&disk.0).status()?;
    ensure!(grown.success());
    let started = Instant::now();
    while cache.limits().high == small.high {
        ensure!(started.elapsed() < Duration::from_secs(20), "the limits stay as they were");
        std::thread::yield_now();
    }
    fill(&cache, &entry, 35, 0..100)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_recipe_is_fetched_again_and_keeps_its_pin() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recipe = recipe(36, 10);
    for lost in [false, true] {
        let cache = open(folder.path(), u64::MAX)?;
        let entry = cache.open_entry(id(&recipe), &recipe)?;
        fill(&cache, &entry, 36, 0..10)?;
        entry.complete()?;
        entry.set_pinned(true)?;
        let path = entry.folder().join("recipe");
        drop((entry, cache));
        if lost {
            fs::remove_file(path.with_file_name("content"))?;
        } else {
            fs::write(&path, b"not a recipe")?;
        }
        let cache = open(folder.path(), u64::MAX)?;
        let known = shoal_p2p::ChunkStore::recipe(&cache, id(&recipe)).await?;
        ensure!(known.is_none(), "a damaged recipe was handed out");
        ensure!(shoal_p2p::ChunkStore::read(&cache, id(&recipe), 0).await?.is_none());
        let entry = cache.open_entry(id(&recipe), &recipe)?;
        ensure!(entry.is_pinned() && entry.held().is_empty());
        fill(&cache, &entry, 36, 0..10)?;
        entry.complete()?;
        ensure!(ensure_sound(&cache, &entry, 36)? == 10);
        ensure!(cache.holdings().len() == 1);
    }
    Ok(())
}

#[test]
fn the_trash_of_a_process_that_ended_is_emptied_and_in_nobodys_way() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recipe = recipe(37, 4);
    // What a crash in the middle of a removal leaves, under every name that was ever used.
    for slot in 0..3 {
        let left = folder.path().join("trash").join(format!("{}-{slot}", id(&recipe)));
        fs::create_dir_all(&left)?;
        fs::write(left.join("content"), b"left")?;
    }
    let cache = open(folder.path(), u64::MAX)?;
    let entry = cache.open_entry(id(&recipe), &recipe)?;
    fill(&cache, &entry, 37, 0..4)?;
    drop(entry);
    ensure!(cache.remove_unleased(id(&recipe))? > 0 && cache.used_bytes() == 0);
    cache.settle();
    let left = fs::read_dir(folder.path().join("trash"))?.count();
    ensure!(left == 0, "{left} things are left");
    Ok(())
}

#[test]
fn what_a_start_cannot_read_for_now_is_not_thrown_away() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recipe = recipe(52, 2);
    let cache = open(folder.path(), u64::MAX)?;
    let entry = cache.open_entry(id(&recipe), &recipe)?;
    fill(&cache, &entry, 52, 0..2)?;
    entry.complete()?;
    let (path, aside) = (entry.folder().join("recipe"), folder.path().join("aside"));
    drop((entry, cache));
    // A link to itself is an error that says nothing of a loss.
    fs::rename(&path, &aside)?;
    symlink(&path, &path)?;
    ensure!(open(folder.path(), u64::MAX).is_err());
    fs::rename(&aside, &path)?;
    let cache = open(folder.path(), u64::MAX)?;
    ensure!(cache.entry(id(&recipe)).is_some_and(|entry| entry.is_complete()));
    Ok(())
}

#[test]
fn thousands_of_entries_open_without_hashing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let cache = open(folder.path(), u64::MAX)?;
    for seed in 100..400u64 {
        let recipe = recipe(seed, 2);
        let entry = cache.open_entry(id(&recipe), &recipe)?;
        fill(&cache, &entry, seed, 0..2)?;
        entry.complete()?;
        cache.tend();
    }
    drop(cache);
    let cache = open(folder.path(), u64::MAX)?;
    let holdings = cache.holdings();
    ensure!(holdings.len() == 300);
    ensure!(holdings.iter().all(|held| held.chunks_held == 2 && held.chunks_total == 2));
    ensure!(
        cache
            .holdings()
            .iter()
            .all(|held| { cache.entry(held.recipe).is_some_and(|entry| !entry.has_doubtful()) })
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_is_the_chunk_store_that_the_swarm_asks_for() -> Result<()> {
    let folder = tempfile::tempdir()?;
    shoal_p2p::conformance::run(&open(folder.path(), 1 << 30)?).await;
    // What was published is there for the next process.
    let again = open(folder.path(), 1 << 30)?;
    let (recipe, id, contents) = shoal_p2p::conformance::sample();
    ensure!(shoal_p2p::ChunkStore::recipe(&again, id).await? == Some(recipe));
    for (index, content) in contents.into_iter().enumerate() {
        let read = shoal_p2p::ChunkStore::read(&again, id, index as u32).await?;
        ensure!(read == Some(content), "chunk {index} is gone after a restart");
    }
    Ok(())
}
