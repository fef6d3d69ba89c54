//! What leaves the cache as a file: the same bytes, holes as holes, and never half a file.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use shoal_agent::cache::{Cache, Entry};
use shoal_agent::config::{self, ByteSize};
use shoal_agent::export::{self, Blocks, layout};
use shoal_agent::metrics::CacheMetrics;
use shoal_api::{AgentResolution, BlobGrant};
use shoal_content::{
    Chunk, ChunkId, Digest, Encoding, Extent, ObjectKey, PackId, Recipe, RecipeKind, SourceObject,
};
use shoal_formats::Target;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn cache(folder: &Path) -> Result<Cache> {
    let settings = config::Cache {
        max_bytes: Some(ByteSize::new(u64::MAX)),
        min_free_bytes: Some(ByteSize::new(0)),
        ..config::Cache::default()
    };
    Ok(Cache::open(folder, &settings, CacheMetrics::default())?)
}

/// Puts `content` into the cache as a recipe of `kind`, `parts` of it as (offset, length).
fn store(
    cache: &Cache,
    kind: RecipeKind,
    content: &[u8],
    parts: &[(u64, u64)],
) -> Result<(Arc<Recipe>, Arc<Entry>)> {
    let slice =
        |(offset, length): (u64, u64)| &content[offset as usize..(offset + length) as usize];
    let objects = vec![SourceObject {
        key: ObjectKey::Pack(PackId::of(content)),
        length: content.len() as u64,
    }];
    let chunks = parts.iter().map(|part| Chunk {
        id: ChunkId::of(slice(*part)),
        length: part.1 as u32,
        object: 0,
        at: part.0,
        encoding: Encoding::Raw,
    });
    let extents = (0u32..).zip(parts).map(|(chunk, (offset, _))| Extent { offset: *offset, chunk });
    let length = content.len() as u64;
    let recipe = Recipe::new(kind, length, objects, chunks.collect(), extents.collect())?;
    let recipe = Arc::new(recipe);
    let entry = cache.open_entry(recipe.encode_with_id().0, &recipe)?;
    for (index, part) in (0u32..).zip(parts) {
        cache.write_chunk(&entry, index, slice(*part))?;
    }
    entry.complete()?;
    Ok((recipe, entry))
}

/// A folder, a cache in it, and what a guest reads of the disk that is whole in the cache.
fn stored_disk() -> Result<(TempDir, Cache, Vec<u8>, Arc<Entry>)> {
    let folder = tempfile::tempdir()?;
    let cache = cache(&folder.path().join("cache"))?;
    let (guest, parts) = disk();
    let (_, entry) = store(&cache, RecipeKind::Disk, &guest, &parts)?;
    Ok((folder, cache, guest, entry))
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::sha256(Sha256::digest(bytes).into())
}

/// A container image of one layer.
fn resolution(manifest: &[u8], layer: &[u8], recipe: &Recipe) -> Result<AgentResolution> {
    Ok(AgentResolution {
        public: false,
        image: "demo/app".parse()?,
        kind: "container".into(),
        version: "ver-1".into(),
        manifest_digest: sha256(manifest),
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        manifest: STANDARD.encode(manifest),
        manifests: Vec::new(),
        disk: None,
        blobs: vec![BlobGrant {
            digest: sha256(layer),
            size_bytes: layer.len() as u64,
            recipe: recipe.encode_with_id().0,
            ticket: String::new(),
        }],
        warning: None,
        awaited: None,
    })
}

/// Puts what gives EIO in place of an entry's content: nothing of this process lies at addresses as
/// low as the offsets are.
fn break_disk_below(entry: &Entry) -> Result<()> {
    entry.unload();
    let content = entry.folder().join("content");
    fs::remove_file(&content)?;
    Ok(symlink("/proc/self/mem", content)?)
}

fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A disk of 64 MiB with three islands of content.
fn disk() -> (Vec<u8>, Vec<(u64, u64)>) {
    let mut guest = vec![0; 64 * MIB as usize];
    let parts =
        vec![(0, 4096), (MIB + 512, 200_000), (MIB + 200_512, 100_000), (50 * MIB, 262_144)];
    for (at, (offset, length)) in (0u64..).zip(&parts) {
        let island = noise(at, *length);
        guest[*offset as usize..(*offset + *length) as usize].copy_from_slice(&island);
    }
    (guest, parts)
}

#[test]
fn a_preallocated_disk_has_all_of_its_blocks_and_reads_the_same() -> Result<()> {
    let (folder, cache, guest, entry) = stored_disk()?;
    let go_on = &mut |_| ControlFlow::Continue(());
    for target in [Target::Raw, Target::VhdFixed] {
        let written = |name: &str, blocks| -> Result<(Vec<u8>, u64)> {
            let output = folder.path().join(format!("{name}.{target}"));
            export::disk_with(&cache, &entry, (target, blocks), &output, &mut |_| {
                ControlFlow::Continue(())
            })?;
            Ok((fs::read(&output)?, fs::metadata(&output)?.blocks() * 512))
        };
        let (sparse, few) = written("sparse", Blocks::AsNeeded)?;
        let (whole, all) = written("whole", Blocks::Allocated)?;
        ensure!(whole == sparse && whole.starts_with(&guest), "{target}: other bytes");
        ensure!(few < MIB * 8, "{target}: {few} bytes of blocks for three islands");
        ensure!(all >= whole.len() as u64, "{target}: {all} bytes of {}", whole.len());
    }
    // What is replaced by one that is sparse is sparse again.
    let output = folder.path().join(format!("whole.{}", Target::Raw));
    export::disk(&cache, &entry, Target::Raw, &output, go_on)?;
    ensure!(fs::metadata(&output)?.blocks() * 512 < MIB * 8);
    Ok(())
}

#[test]
fn a_disk_is_written_in_every_format_with_its_holes() -> Result<()> {
    let (folder, cache, guest, entry) = stored_disk()?;
    let reference = folder.path().join("reference.raw");
    fs::write(&reference, &guest)?;
    for (target, name) in [
        (Target::Raw, "raw"),
        (Target::Qcow2, "qcow2"),
        (Target::Vmdk, "vmdk"),
        (Target::VmdkStream, "vmdk"),
        (Target::Vhd, "vpc"),
        (Target::VhdFixed, "vpc"),
        (Target::Vhdx, "vhdx"),
    ] {
        let output = folder.path().join(format!("disk.{target}"));
        fs::write(&output, "something older")?;
        let mut last = 0.0;
        export::disk(&cache, &entry, target, &output, &mut |share| {
            last = share;
            ControlFlow::Continue(())
        })?;
        ensure!((last - 1.0).abs() < 1e-9, "{target}: progress ended at {last}");
        ensure!(fs::metadata(&output)?.blocks() * 512 < 4 * MIB, "{target}: the holes were filled");
        let compared = Command::new("qemu-img")
            .args(["compare", "-f", "raw", "-F", name])
            .args([&reference, &output])
            .output()?;
        ensure!(
            compared.status.success(),
            "{target}: {}",
            String::from_utf8_lossy(&compared.stdout)
        );
    }
    let mut checked = Command::new("qemu-img");
    let checked = checked.args(["check", "-f", "qcow2"]).arg(folder.path().join("disk.qcow2"));
    ensure!(checked.output()?.status.success(), "qemu-img check");
    Ok(())
}

#[test]
fn a_cancelled_export_leaves_the_old_file_and_nothing_beside() -> Result<()> {
    let (folder, cache, _, entry) = stored_disk()?;
    let outputs = folder.path().join("out");
    fs::create_dir(&outputs)?;
    let output = outputs.join("disk.raw");
    fs::write(&output, "older")?;
    let stop = &mut |_| ControlFlow::Break(());
    let stopped = export::disk(&cache, &entry, Target::Raw, &output, stop);
    ensure!(matches!(stopped, Err(export::Error::Cancelled)), "{stopped:?}");
    ensure!(fs::read(&output)? == b"older");
    ensure!(fs::read_dir(&outputs)?.count() == 1, "something was left beside");
    Ok(())
}

#[test]
fn content_that_rotted_is_never_written_and_mends_by_a_fetch() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let cache = cache(&folder.path().join("cache"))?;
    // More chunks than are hashed at once, and two of them wrong.
    let guest = noise(3, 40 * MIB);
    let chunk = 256 * 1024;
    let parts: Vec<_> = (0..40 * MIB / chunk).map(|at| (at * chunk, chunk)).collect();
    let (_, entry) = store(&cache, RecipeKind::Disk, &guest, &parts)?;
    for (target, name) in [(Target::Raw, "raw"), (Target::Qcow2, "qcow2")] {
        for at in [30 * MIB + 17, 39 * MIB] {
            let mut byte = [0];
            entry.load()?.content.read_exact_at(&mut byte, at)?;
            entry.load()?.content.write_all_at(&[byte[0] ^ 1], at)?;
        }
        let corrupt = cache.metrics().corrupt.get();
        let output = folder.path().join(format!("disk.{name}"));
        let go_on = &mut |_| ControlFlow::Continue(());
        let written = export::disk(&cache, &entry, target, &output, go_on);
        ensure!(matches!(written, Err(export::Error::Corrupt { chunks: 2 })), "{written:?}");
        ensure!(!output.exists(), "{name}: wrong bytes were handed out");
        ensure!(cache.metrics().corrupt.get() == corrupt + 2);
        let missing: Vec<u32> = (0..parts.len() as u32).filter(|at| !entry.contains(*at)).collect();
        ensure!(missing == [120, 156], "{missing:?} are dropped");
        for index in missing {
            let (offset, length) = parts[index as usize];
            cache.write_chunk(
                &entry,
                index,
                &guest[offset as usize..(offset + length) as usize],
            )?;
        }
        export::disk(&cache, &entry, target, &output, go_on)?;
        if target == Target::Raw {
            ensure!(fs::read(&output)? == guest);
        }
    }
    Ok(())
}

#[test]
fn a_file_that_is_replaced_hands_its_mode_on() -> Result<()> {
    let (folder, cache, _, entry) = stored_disk()?;
    let output = folder.path().join("disk.raw");
    let go_on = &mut |_| ControlFlow::Continue(());
    for mode in [0o600, 0o640] {
        fs::write(&output, "older")?;
        fs::set_permissions(&output, fs::Permissions::from_mode(mode))?;
        export::disk(&cache, &entry, Target::Raw, &output, go_on)?;
        let written = fs::metadata(&output)?;
        ensure!(written.len() == 64 * MIB && written.mode() & 0o777 == mode, "{written:?}");
    }
    Ok(())
}

#[test]
fn only_files_are_replaced_and_none_that_a_machine_writes_to() -> Result<()> {
    let (folder, cache, _, entry) = stored_disk()?;
    let outputs = folder.path().join("out");
    fs::create_dir(&outputs)?;
    let go_on = &mut |_| ControlFlow::Continue(());
    let (device, to_folder) = (outputs.join("device"), outputs.join("to-folder"));
    symlink("/dev/null", &device)?;
    symlink(folder.path(), &to_folder)?;
    for output in [&device, &to_folder, &outputs] {
        let refused = export::disk(&cache, &entry, Target::Raw, output, go_on);
        ensure!(matches!(refused, Err(export::Error::NoFile { .. })), "{refused:?}");
    }
    ensure!(fs::symlink_metadata(&device)?.is_symlink(), "it was replaced");

    let output = outputs.join("disk.raw");
    fs::write(&output, "in use")?;
    let machine = fs::File::open(&output)?;
    // As QEMU does: what it may do to an image is a byte from 100 on, that it may write the second.
    for (byte, stands) in [(100, false), (101, true)] {
        let lock = nix::libc::flock {
            l_type: nix::libc::F_RDLCK as nix::libc::c_short,
            l_whence: nix::libc::SEEK_SET as nix::libc::c_short,
            l_start: byte,
            l_len: 1,
            l_pid: 0,
        };
        fs::write(&output, "in use")?;
        let machine = if stands { fs::File::open(&output)? } else { machine.try_clone()? };
        nix::fcntl::fcntl(&machine, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock))?;
        let written = export::disk(&cache, &entry, Target::Raw, &output, go_on);
        ensure!(matches!(written, Err(export::Error::InUse(_))) == stands, "{byte}: {written:?}");
        ensure!((fs::metadata(&output)?.len() == 6) == stands, "{byte}");
    }
    ensure!(fs::read_dir(&outputs)?.count() == 3, "something was left beside");
    Ok(())
}

#[test]
fn what_a_killed_export_left_goes_with_the_next_one_and_what_is_being_written_stays() -> Result<()>
{
    let (folder, cache, _, entry) = stored_disk()?;
    let output = folder.path().join("disk.raw");
    let beside = |name: &str| folder.path().join(name);
    let left = beside(&format!(".disk.raw.{}.partial", "0".repeat(32)));
    let others = [
        beside(&format!(".other.raw.{}.partial", "0".repeat(32))),
        beside(".disk.raw.notes.partial"),
    ];
    for path in others.iter().chain([&left]) {
        fs::write(path, "left")?;
    }
    let under_way = export::Beside::create(&output)?;
    ensure!(!left.exists(), "it is left for good");
    let go_on = &mut |_| ControlFlow::Continue(());
    export::disk(&cache, &entry, Target::Raw, &output, go_on)?;
    ensure!(others.iter().all(|path| path.exists()), "somebody else's file is gone");
    under_way.finish()?;
    ensure!(fs::metadata(&output)?.len() == 0, "what was under way is not in place");
    Ok(())
}

#[test]
fn nothing_is_handed_out_of_which_somebody_else_dropped_a_chunk_meanwhile() -> Result<()> {
    let (folder, cache, guest, entry) = stored_disk()?;
    for target in [Target::Raw, Target::Qcow2] {
        let output = folder.path().join("disk");
        let mut dropped = Ok(());
        let written = export::disk(&cache, &entry, target, &output, &mut |_| {
            if entry.contains(0) {
                dropped = cache.drop_corrupt(&entry, [0]);
            }
            ControlFlow::Continue(())
        });
        dropped?;
        ensure!(matches!(written, Err(export::Error::Corrupt { .. })), "{written:?}");
        ensure!(!output.exists());
        let (offset, length) = disk().1[0];
        cache.write_chunk(&entry, 0, &guest[offset as usize..(offset + length) as usize])?;
    }
    Ok(())
}

#[test]
fn content_that_the_disk_does_not_give_back_is_dropped_like_wrong_content() -> Result<()> {
    let (folder, cache, _, entry) = stored_disk()?;
    break_disk_below(&entry)?;
    let output = folder.path().join("disk.raw");
    let go_on = &mut |_| ControlFlow::Continue(());
    let written = export::disk(&cache, &entry, Target::Raw, &output, go_on);
    ensure!(matches!(written, Err(export::Error::Corrupt { chunks: 4 })), "{written:?}");
    ensure!(entry.held().is_empty() && !output.exists());

    let layer = noise(12, 300_000);
    let parts = [(0, 262_144), (262_144, 300_000 - 262_144)];
    let (recipe, entry) = store(&cache, RecipeKind::Blob, &layer, &parts)?;
    break_disk_below(&entry)?;
    let resolution = resolution(b"{}", &layer, &recipe)?;
    let target = folder.path().join("layout");
    let written = layout::write(&cache, &"demo/app:v1".parse()?, &resolution, &target);
    ensure!(matches!(written, Err(layout::Error::Corrupt { chunks: 2, .. })), "{written:?}");
    ensure!(entry.held().is_empty() && !target.join("index.json").exists());
    Ok(())
}

#[test]
fn a_container_image_is_written_as_a_layout_and_a_wrong_blob_is_not() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let cache = cache(&folder.path().join("cache"))?;
    let layer = noise(9, 300_000);
    let parts = [(0, 262_144), (262_144, 300_000 - 262_144)];
    let (recipe, entry) = store(&cache, RecipeKind::Blob, &layer, &parts)?;
    let manifest = br#"{"schemaVersion":2}"#;
    let mut resolution = resolution(manifest, &layer, &recipe)?;
    let target = folder.path().join("layout");
    let reference = "demo/app:v1".parse()?;
    // Twice: what is there and right is kept.
    for _ in 0..2 {
        layout::write(&cache, &reference, &resolution, &target)?;
    }
    let blob = |digest: &Digest| target.join("blobs/sha256").join(digest.encoded());
    ensure!(fs::read(blob(&sha256(&layer)))? == layer);
    ensure!(fs::read(blob(&sha256(manifest)))? == manifest);
    let index: serde_json::Value = serde_json::from_slice(&fs::read(target.join("index.json"))?)?;
    let first = index["manifests"].get(0).context("an empty index")?;
    ensure!(first["digest"] == sha256(manifest).to_string() && first["size"] == manifest.len());
    ensure!(first["annotations"]["org.opencontainers.image.ref.name"] == "v1");

    // A blob that rotted is dropped, so that a fetch brings it again.
    fs::remove_dir_all(&target)?;
    entry.load()?.content.write_all_at(b"rot", 299_000)?;
    let rotten = layout::write(&cache, &reference, &resolution, &target);
    ensure!(matches!(rotten, Err(layout::Error::Corrupt { chunks: 1, .. })), "{rotten:?}");
    ensure!(entry.contains(0) && !entry.contains(1));
    cache.write_chunk(&entry, 1, &layer[262_144..])?;
    layout::write(&cache, &reference, &resolution, &target)?;

    resolution.blobs[0].digest = sha256(b"another blob");
    let wrong = layout::write(&cache, &reference, &resolution, &target);
    ensure!(matches!(wrong, Err(layout::Error::Mismatch(_))), "{wrong:?}");
    ensure!(!blob(&sha256(b"another blob")).exists());
    Ok(())
}
