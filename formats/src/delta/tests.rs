//! Bundles made and read again, and those that somebody damaged or forged.

use std::collections::HashMap;
use std::ops::ControlFlow;

use proptest::prelude::*;
use shoal_content::{ObjectKey, PackId};

use super::*;
use crate::raw::RawDisk;
use crate::{DiskIngest, decode_chunk};
use shoal_content::Recipe;

const LIMITS: DeltaLimits = DeltaLimits { segment_bytes: 1 << 20, reference_bytes: 3 << 20 };

type Packs = HashMap<ObjectKey, Vec<u8>>;

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A disk with what is needed to read it.
struct Version {
    id: RecipeId,
    recipe: Recipe,
    packs: Packs,
}

impl Version {
    fn of(disk: &[u8]) -> Self {
        let mut packs = Packs::new();
        let sink = |id: PackId, bytes: Vec<u8>| {
            packs.insert(ObjectKey::Pack(id), bytes);
            Ok(())
        };
        let mut source = RawDisk::new(disk.to_vec());
        let done = DiskIngest::new(sink)
            .run(&mut source, &mut |_| None, &mut |_| ControlFlow::Continue(()))
            .unwrap();
        let recipe = done.recipe;
        Self { id: RecipeId::of(&recipe.encode()), recipe, packs }
    }

    fn chunk(&self, index: u32) -> Vec<u8> {
        content(&self.recipe, &self.packs, index)
    }

    fn named(&self) -> (RecipeId, &Recipe) {
        (self.id, &self.recipe)
    }
}

fn content(recipe: &Recipe, packs: &Packs, index: u32) -> Vec<u8> {
    let chunk = &recipe.chunks()[index as usize];
    let pack = &packs[&recipe.objects()[chunk.object as usize].key];
    decode_chunk(chunk, &pack[chunk.at as usize..][..chunk.stored() as usize]).unwrap()
}

/// The bundle's recipe and bytes, where there is one of at most `bytes_max`.
fn bundle(old: &Version, new: &Version, bytes_max: u64) -> Option<(Recipe, Vec<u8>)> {
    let mut packs = Packs::new();
    let sink = |id: PackId, bytes: Vec<u8>| {
        packs.insert(ObjectKey::Pack(id), bytes);
        Ok(())
    };
    let read = &mut |side, chunk, to: &mut Vec<u8>| {
        to.extend(match side {
            Side::Old => old.chunk(chunk),
            Side::New => new.chunk(chunk),
        });
        Ok(())
    };
    let go_on = &mut || ControlFlow::Continue(());
    let (from, to) = (old.named(), new.named());
    let end = make_delta(from, to, LIMITS, bytes_max, read, go_on, sink).unwrap();
    let DeltaEnd::Made(made) = end else { return None };
    let recipe = made.recipe;
    let extents = recipe.extents().iter();
    let bytes = extents.flat_map(|extent| content(&recipe, &packs, extent.chunk)).collect();
    Some((recipe, bytes))
}

fn made(old: &Version, new: &Version) -> Vec<u8> {
    bundle(old, new, u64::MAX).unwrap().1
}

/// What comes of a bundle: the chunks that were made.
fn applied(
    mut bytes: &[u8],
    old: &Version,
    new: &Version,
) -> Result<HashMap<u32, Vec<u8>>, DeltaError> {
    let mut made = HashMap::new();
    let read_old = &mut |chunk, to: &mut Vec<u8>| {
        to.extend(old.chunk(chunk));
        Ok(())
    };
    let write_new = &mut |chunk: u32, content: &[u8]| {
        made.insert(chunk, content.to_vec());
        Ok(())
    };
    let done = apply_delta(&mut bytes, old.named(), new.named(), &|_| true, read_old, write_new)?;
    assert_eq!(done.chunks as usize, made.len());
    Ok(made)
}

/// Two versions of a disk: of its pieces some moved, some are patched, some are new.
fn versions() -> (Version, Version) {
    let pieces: Vec<Vec<u8>> = (0..12).map(|seed| noise(seed, 400_000)).collect();
    let disk = |pieces: &[Vec<u8>]| {
        let mut disk = vec![0; 1 << 20];
        pieces.iter().for_each(|piece| disk.extend(piece));
        disk.resize(disk.len().next_multiple_of(1 << 20), 0);
        disk
    };
    let old = disk(&pieces);
    let mut next = pieces.clone();
    next.rotate_left(5);
    for piece in &mut next {
        // Every cut sees a change, so that every chunk is new.
        for at in (0..piece.len()).step_by(10_000) {
            piece[at] ^= 0xff;
        }
    }
    next.push(noise(99, 300_000));
    (Version::of(&old), Version::of(&disk(&next)))
}

#[test]
fn makes_the_new_chunks_from_old_content_that_has_moved() {
    let (old, new) = versions();
    let bytes = made(&old, &new);
    let fresh = fresh_chunks(&old.recipe, &new.recipe);
    let lengths = fresh.iter().map(|chunk| new.recipe.chunks()[*chunk as usize].length as usize);
    let content: usize = lengths.sum();
    assert!(content > 4_500_000, "everything was changed: {content}");
    assert!(bytes.len() < 330_000, "noise that is known costs next to nothing: {}", bytes.len());
    let chunks = applied(&bytes, &old, &new).unwrap();
    assert_eq!(chunks.len(), fresh.len());
    for (chunk, content) in chunks {
        assert!(content == new.chunk(chunk), "chunk {chunk}");
    }
}

#[test]
fn makes_new_chunks_from_old_ones_that_stayed_where_they_are_not_too_many() {
    let beside = |old_bytes: usize| {
        let old = noise(1, old_bytes);
        let mut new = old.clone();
        new.resize(old_bytes.next_multiple_of(1 << 20) + (1 << 20), 0);
        let mut copy = old[1 << 20..2 << 20].to_vec();
        copy.iter_mut().step_by(10_000).for_each(|byte| *byte ^= 0xff);
        new.extend(copy);
        let (old, new) = (Version::of(&old), Version::of(&new));
        let bytes = made(&old, &new);
        let chunks = applied(&bytes, &old, &new).unwrap();
        assert!(chunks.iter().all(|(chunk, content)| *content == new.chunk(*chunk)));
        bytes.len()
    };
    let (few, many) = (beside(5 << 20), beside(16 << 20));
    assert!(few < 100_000, "what is like a chunk that stayed costs next to nothing: {few}");
    assert!(many > 900_000, "sixteen times as much is not looked through: {many}");
}

#[test]
fn the_bundle_is_a_blob_in_packs() {
    let (old, new) = versions();
    let (recipe, bytes) = bundle(&old, &new, u64::MAX).unwrap();
    assert_eq!(recipe.kind(), shoal_content::RecipeKind::Blob);
    assert_eq!(recipe.length(), bytes.len() as u64);
    assert!(recipe.objects().iter().all(|object| matches!(object.key, ObjectKey::Pack(_))));
    assert_eq!(Recipe::decode(&recipe.encode()), Ok(recipe));
}

#[test]
fn a_bundle_longer_than_it_may_be_is_not_made() {
    let (old, new) = versions();
    assert!(bundle(&old, &new, 200_000).is_none());
    let same = made(&old, &old);
    assert_eq!(same.len(), HEADER_BYTES);
    assert_eq!(applied(&same, &old, &old).unwrap().len(), 0);
}

#[test]
fn what_is_not_wanted_is_passed_over() {
    let (old, new) = versions();
    let bytes = made(&old, &new);
    let fresh = fresh_chunks(&old.recipe, &new.recipe);
    let last = *fresh.last().unwrap();
    let (mut read, mut made) = (0, Vec::new());
    let read_old = &mut |chunk, to: &mut Vec<u8>| {
        read += 1;
        to.extend(old.chunk(chunk));
        Ok(())
    };
    let write_new = &mut |chunk: u32, _: &[u8]| {
        made.push(chunk);
        Ok(())
    };
    let wants = |chunk| chunk == last;
    let input = &mut bytes.as_slice();
    apply_delta(input, old.named(), new.named(), &wants, read_old, write_new).unwrap();
    assert_eq!(made, [last]);
    assert!(read < old.recipe.chunks().len(), "one segment's references were read: {read}");
}

#[test]
fn a_bundle_for_others_is_refused() {
    let (old, new) = versions();
    let bytes = made(&old, &new);
    assert!(matches!(applied(&bytes, &new, &new), Err(DeltaError::Recipes { .. })));
    assert!(matches!(applied(b"SHOALDLT", &old, &new), Err(DeltaError::Magic)));
    let mut newer = bytes.clone();
    newer[8] = 2;
    assert!(matches!(applied(&newer, &old, &new), Err(DeltaError::Version(2))));
}

#[test]
fn a_wrong_dictionary_makes_nothing() {
    let (old, new) = versions();
    let bytes = made(&old, &new);
    let wrong = &mut |chunk, to: &mut Vec<u8>| {
        let mut content: Vec<u8> = old.chunk(chunk);
        content[0] ^= 1;
        to.extend(content);
        Ok(())
    };
    let mut written = 0;
    let write = &mut |_, _: &[u8]| {
        written += 1;
        Ok(())
    };
    let input = &mut bytes.as_slice();
    let outcome = apply_delta(input, old.named(), new.named(), &|_| true, wrong, write);
    assert!(matches!(outcome, Err(DeltaError::Hash(_))));
    assert_eq!(written, 0);
}

/// A segment whose frame is of `content`, for `chunks` of the new version.
fn segment(chunks: &[u32], frame: &[u8]) -> Vec<u8> {
    let mut list = Vec::new();
    index::put_runs(&mut list, &[]);
    index::put_runs(&mut list, chunks);
    let mut bytes = (list.len() as u32).to_le_bytes().to_vec();
    bytes.extend((frame.len() as u32).to_le_bytes());
    bytes.extend(list);
    bytes.extend(frame);
    bytes
}

fn hostile(old: &Version, new: &Version, rest: &[u8]) -> Vec<u8> {
    let header = [&MAGIC[..], &[VERSION], old.id.as_bytes(), new.id.as_bytes()].concat();
    [&header, rest].concat()
}

#[test]
fn bombs_lies_and_stumps_are_refused() {
    let (old, new) = versions();
    let fresh = fresh_chunks(&old.recipe, &new.recipe);
    let length = new.recipe.chunks()[fresh[0] as usize].length as usize;
    let refused = |rest: &[u8]| applied(&hostile(&old, &new, rest), &old, &new).unwrap_err();
    // A frame that would become a gigabyte stops at what its chunks are long.
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
    let error = refused(&segment(&fresh[..1], &bomb));
    assert!(matches!(error, DeltaError::Decompress { .. }), "{error}");
    let short = zstd::bulk::compress(&vec![0; length - 1], 3).unwrap();
    assert!(matches!(refused(&segment(&fresh[..1], &short)), DeltaError::Decompress { .. }));
    let other = zstd::bulk::compress(&vec![0; length], 3).unwrap();
    assert!(matches!(refused(&segment(&fresh[..1], &other)), DeltaError::Hash(_)));
    let beyond = [new.recipe.chunks().len() as u32];
    assert!(matches!(refused(&segment(&beyond, &other)), DeltaError::Malformed { .. }));
    let long = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    assert!(matches!(refused(&long), DeltaError::Malformed { .. }));
    let good = made(&old, &new);
    for cut in [HEADER_BYTES + 3, HEADER_BYTES + 9, good.len() - 1] {
        let error = applied(&good[..cut], &old, &new).unwrap_err();
        assert!(matches!(error, DeltaError::Malformed { .. }), "cut at {cut}: {error}");
    }
}

#[test]
fn memory_stays_within_its_figures() {
    for memory in [0, DeltaLimits::MEMORY_BYTES_MIN, 180 << 20, u64::MAX] {
        let limits = DeltaLimits::within(memory);
        assert!(limits.memory_bytes() <= memory.max(DeltaLimits::MEMORY_BYTES_MIN));
        assert!(limits.segment_bytes <= SEGMENT_BYTES_MAX && limits.segment_bytes > 1 << 20);
        assert!(limits.reference_bytes <= REFERENCE_BYTES_MAX);
    }
    assert_eq!(DeltaLimits::within(u64::MAX).memory_bytes(), DeltaLimits::MEMORY_BYTES_MAX);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damage_never_makes_a_wrong_byte(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        static SAMPLE: std::sync::LazyLock<(Version, Version, Vec<u8>)> =
            std::sync::LazyLock::new(|| {
                let (old, new) = versions();
                let bytes = made(&old, &new);
                (old, new, bytes)
            });
        let (old, new, bytes) = &*SAMPLE;
        let mut bytes = bytes.clone();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let mut written = Vec::new();
        let read_old = &mut |chunk, to: &mut Vec<u8>| {
            to.extend(old.chunk(chunk));
            Ok(())
        };
        let write = &mut |chunk: u32, content: &[u8]| {
            written.push((chunk, content.to_vec()));
            Ok(())
        };
        let input = &mut bytes.as_slice();
        let outcome = apply_delta(input, old.named(), new.named(), &|_| true, read_old, write);
        if let Err(error) = outcome {
            prop_assert!(error.is_damage(), "{error}");
        }
        for (chunk, content) in written {
            prop_assert!(content == new.chunk(chunk));
        }
    }
}
