//! What the cache does beside: looking for rot, and leaving what is old or where others need the disk.
//!
//! The small disk is a tmpfs, so this runs as root.

mod disks;

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use disks::{CHUNK_BYTES, SmallDisk, ensure_sound, fill, id, open, recipe};
use shoal_agent::cache::{Cache, Scrubbed};
use shoal_agent::config::{self, ByteSize};
use shoal_agent::metrics::CacheMetrics;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The recipes of these seeds, whole, with ten chunks each.
fn fill_all(cache: &Cache, seeds: std::ops::Range<u64>) -> Result<()> {
    for seed in seeds {
        let recipe = recipe(seed, 10);
        let _lease = cache.lease(id(&recipe));
        let entry = cache.open_entry(id(&recipe), &recipe)?;
        fill(cache, &entry, seed, 0..10)?;
        entry.complete()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_is_found_at_every_place_and_nothing_else_is_lost() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let cache = open(folder.path(), u64::MAX)?;
    fill_all(&cache, 1..3)?;
    let (rotten, sound) = (id(&recipe(1, 10)), id(&recipe(2, 10)));
    let entry = cache.entry(rotten).context("the entry is gone")?;
    let loaded = entry.load()?;
    // The first chunk stands twice; whoever reads one place finds nothing wrong.
    let (again, fourth) = (loaded.places.offsets(0)[1], loaded.places.offsets(4)[0]);
    loaded.content.write_all_at(b"rot", again)?;
    loaded.content.write_all_at(b"rot", fourth)?;
    drop(loaded);
    let (used, now) = (entry.used(), SystemTime::now());
    ensure!(cache.due_for_scrub(DAY, now).is_empty(), "it was written a moment ago");
    ensure!(cache.due_for_scrub(DAY, now + 2 * DAY).len() == 2);

    let mut removals = cache.removals();
    let found = cache.scrub(rotten, None).await?;
    let bytes = 11 * CHUNK_BYTES as u64;
    ensure!(found == Scrubbed { bytes, corrupt: 2 }, "{found:?}");
    ensure!(entry.held().runs() == [(1, 3), (5, 5)], "{:?}", entry.held().runs());
    ensure!(entry.used() == used, "a look is no use");
    ensure!(removals.try_recv() == Ok(rotten), "it is offered as whole");
    while removals.try_recv().is_ok() {}
    let found = cache.scrub(sound, Some(1 << 30)).await?;
    ensure!(found == Scrubbed { bytes, corrupt: 0 }, "{found:?}");
    ensure!(removals.try_recv().is_err(), "what is sound is offered on");
    ensure!(cache.metrics().corrupt.get() == 2);
    ensure!(cache.metrics().scrubbed_bytes.get() == 2 * bytes);

    // It is remembered, and what was dropped comes again.
    fill(&cache, &entry, 1, 0..10)?;
    entry.complete()?;
    ensure!(ensure_sound(&cache, &entry, 1)? == 10);
    drop((entry, cache));
    let cache = open(folder.path(), u64::MAX)?;
    let due = cache.due_for_scrub(DAY, SystemTime::now());
    ensure!(due.is_empty(), "{due:?}");
    let found = cache.scrub(rotten, None).await?;
    ensure!(found == Scrubbed { bytes, corrupt: 0 }, "{found:?}");
    Ok(())
}

#[test]
fn what_nobody_used_for_long_leaves_unless_it_is_pinned_or_in_use() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let cache = open(folder.path(), u64::MAX)?;
    fill_all(&cache, 1..4)?;
    let [pinned, leased, idle] = [1, 2, 3].map(|seed| id(&recipe(seed, 10)));
    cache.entry(pinned).context("gone")?.set_pinned(true)?;
    let _lease = cache.lease(leased);
    let now = SystemTime::now();
    ensure!(cache.evict_idle(DAY, now) == 0, "all of it was used a moment ago");
    ensure!(cache.evict_idle(DAY, now + 2 * DAY) >= 10 * CHUNK_BYTES as u64);
    let left: Vec<_> = cache.holdings().into_iter().map(|held| held.recipe).collect();
    ensure!(left.len() == 2 && !left.contains(&idle), "{left:?}");
    Ok(())
}

#[test]
fn limits_that_were_lowered_are_kept_before_anything_is_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let cache = open(folder.path(), u64::MAX)?;
    fill_all(&cache, 1..6)?;
    ensure!(cache.give_way()? == 0, "there is room enough");
    drop(cache);
    let cache = open(folder.path(), 40 * CHUNK_BYTES as u64)?;
    let kept = id(&recipe(1, 10));
    cache.entry(kept).context("gone")?.set_pinned(true)?;
    ensure!(cache.give_way()? > 0);
    ensure!(cache.used_bytes() <= cache.limits().low, "{} bytes stay", cache.used_bytes());
    ensure!(cache.entry(kept).is_some(), "what is pinned left");
    ensure!(cache.give_way()? == 0, "more left than was asked for");
    Ok(())
}

#[test]
fn other_data_on_the_disk_gets_the_room_that_is_kept_for_it() -> Result<()> {
    const RESERVE: u64 = 8 << 20;
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::mount(folder.path().join("disk"), 32)?;
    let settings =
        config::Cache { min_free_bytes: Some(ByteSize::new(RESERVE)), ..config::Cache::default() };
    let cache = Cache::open(&disk.0.join("cache"), &settings, CacheMetrics::default())?;
    fill_all(&cache, 1..21)?;
    let before = cache.used_bytes();
    ensure!(before > 12 << 20 && cache.give_way()? == 0);
    // 32 MiB less these leave less than the reserve beside the cache.
    fs::write(disk.0.join("others"), vec![1; 14 << 20])?;
    let started = std::time::Instant::now();
    while cache.used_bytes() == before {
        cache.give_way()?;
        ensure!(started.elapsed() < Duration::from_secs(20), "nothing gave way");
        std::thread::yield_now();
    }
    let free = nix::sys::statvfs::statvfs(&disk.0)?;
    let free = free.blocks_available() * free.fragment_size();
    ensure!(free >= RESERVE, "{free} bytes are free");
    Ok(())
}

#[test]
fn what_frees_nothing_on_the_disk_is_not_evicted_for_it() -> Result<()> {
    const RESERVE: u64 = 8 << 20;
    const DEADLINE: Duration = Duration::from_secs(20);
    /// So many go before it is plain that nothing comes free.
    const TRIED: u64 = 3;
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::mount(folder.path().join("disk"), 32)?;
    let settings =
        config::Cache { min_free_bytes: Some(ByteSize::new(RESERVE)), ..config::Cache::default() };
    let cache = Cache::open(&disk.0.join("cache"), &settings, CacheMetrics::default())?;
    fill_all(&cache, 1..21)?;
    // A second name keeps the blocks as a reflink does.
    let exports = disk.0.join("exports");
    fs::create_dir(&exports)?;
    for held in cache.holdings() {
        let entry = cache.entry(held.recipe).context("gone")?;
        fs::hard_link(entry.folder().join("content"), exports.join(held.recipe.to_string()))?;
    }
    fs::write(disk.0.join("others"), vec![1; 14 << 20])?;
    let started = std::time::Instant::now();
    while cache.metrics().evictions.get() < TRIED {
        cache.give_way()?;
        ensure!(started.elapsed() < DEADLINE, "nothing gave way");
        std::thread::yield_now();
    }
    for _ in 0..10 {
        ensure!(cache.give_way()? == 0);
    }
    ensure!(cache.metrics().evictions.get() == TRIED, "the cache was emptied for nothing");
    ensure!(cache.holdings().len() == 17);

    // What the guests no longer use comes free, so that it helps again.
    fs::remove_dir_all(&exports)?;
    while cache.give_way()? == 0 {
        ensure!(started.elapsed() < 2 * DEADLINE, "nothing gives way any more");
        std::thread::yield_now();
    }
    let free = nix::sys::statvfs::statvfs(&disk.0)?;
    let free = free.blocks_available() * free.fragment_size();
    ensure!(free >= RESERVE, "{free} bytes are free");
    Ok(())
}
