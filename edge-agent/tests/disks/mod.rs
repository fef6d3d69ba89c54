//! Made-up disks, a cache that holds them, and small file systems to put it on.

#![allow(dead_code, reason = "each test binary takes what it needs")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use shoal_agent::cache::{Cache, Entry};
use shoal_agent::config::{self, ByteSize};
use shoal_agent::metrics::CacheMetrics;
use shoal_content::{
    Chunk, ChunkId, Encoding, Extent, ObjectKey, PackId, Recipe, RecipeId, RecipeKind, SourceObject,
};

pub const CHUNK_BYTES: usize = 64 * 1024;

/// Content of chunk `number` of the series `seed`: different for each.
pub fn content(seed: u64, number: u32) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(&number.to_le_bytes());
    let mut bytes = vec![0; CHUNK_BYTES];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// A disk with a hole before every chunk; chunk 0 stands a second time at its end.
pub fn recipe(seed: u64, chunks: u32) -> Arc<Recipe> {
    let key = ObjectKey::Pack(PackId::of(&seed.to_le_bytes()));
    let length = u64::from(chunks) * CHUNK_BYTES as u64;
    let objects = vec![SourceObject { key, length }];
    let step = 2 * CHUNK_BYTES as u64;
    let chunk = |number: u32| Chunk {
        id: ChunkId::of(&content(seed, number)),
        length: CHUNK_BYTES as u32,
        object: 0,
        at: u64::from(number) * CHUNK_BYTES as u64,
        encoding: Encoding::Raw,
    };
    let mut extents: Vec<Extent> = (0..chunks)
        .map(|number| Extent { offset: u64::from(number) * step, chunk: number })
        .collect();
    extents.push(Extent { offset: u64::from(chunks) * step, chunk: 0 });
    let length = u64::from(chunks + 1) * step;
    let recipe =
        Recipe::new(RecipeKind::Disk, length, objects, (0..chunks).map(chunk).collect(), extents);
    Arc::new(recipe.expect("a sound recipe"))
}

fn settings(max_bytes: u64) -> config::Cache {
    config::Cache {
        max_bytes: Some(ByteSize::new(max_bytes)),
        min_free_bytes: Some(ByteSize::new(0)),
        ..config::Cache::default()
    }
}

pub fn open(folder: &Path, max_bytes: u64) -> Result<Cache> {
    Ok(Cache::open(folder, &settings(max_bytes), CacheMetrics::default())?)
}

pub fn id(recipe: &Recipe) -> RecipeId {
    recipe.encode_with_id().0
}

pub fn fill(cache: &Cache, entry: &Entry, seed: u64, chunks: std::ops::Range<u32>) -> Result<()> {
    for number in chunks {
        cache.write_chunk(entry, number, &content(seed, number))?;
    }
    Ok(())
}

/// Every chunk that the entry claims reads back as what was written, at all of its places.
pub fn ensure_sound(cache: &Cache, entry: &Entry, seed: u64) -> Result<u32> {
    let loaded = entry.load()?;
    let held = entry.held();
    for number in held.iter() {
        let expected = content(seed, number);
        let read = cache.read_chunk(entry, number)?.context("held, but not readable")?;
        ensure!(read == expected, "chunk {number} reads as something else");
        for offset in loaded.places.offsets(number) {
            let mut bytes = vec![0; CHUNK_BYTES];
            loaded.content.read_exact_at(&mut bytes, *offset)?;
            ensure!(bytes == expected, "chunk {number} differs at {offset}");
        }
    }
    Ok(held.len())
}

/// A tmpfs of a few MiB.
pub struct SmallDisk(pub PathBuf);

impl SmallDisk {
    pub fn mount(path: PathBuf, mebibytes: u32) -> Result<Self> {
        fs::create_dir_all(&path)?;
        let size = format!("size={mebibytes}m");
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&path)
            .status()?;
        ensure!(done.success(), "mounting a tmpfs needs root");
        Ok(Self(path))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A file still open in this test keeps it busy: detached, it goes with the last one.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
