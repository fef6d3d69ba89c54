//! Chunks that are moved out of packs that are mostly garbage: nobody loses what it lives in, whoever
//! publishes, deletes and moves at the same time.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use shoal_content::ObjectKey;
use shoal_metadata::*;
use world::counts::check;
use world::*;

fn publish(manifest: u8, packs: &[u8]) -> Command {
    Command::PutManifest(disk("vm", 10, manifest, packs))
}

fn delete(manifest: u8) -> Command {
    Command::DeleteManifest { repository: name("vm"), digest: digest(manifest) }
}

fn count(world: &World, number: u8) -> u64 {
    world.count(&pack(number)).unwrap_or(0)
}

fn placement_of(world: &World, number: u8) -> Option<(u8, u64)> {
    let row = world.query().relocation(recipe(number)).unwrap()?;
    Some((row.placement.as_bytes()[0], row.versions))
}

/// Version 1 made pack 1, of which version 2 uses some; version 1 is gone.
fn thinned() -> World {
    let mut world = World::founded();
    world.accepts(publish(1, &[1]));
    world.accepts(publish(2, &[1, 2]));
    world.accepts(delete(1));
    world
}

#[test]
fn a_version_lives_where_its_chunks_were_moved_and_the_old_pack_goes() {
    let mut world = thinned();
    world.accepts(move_chunks(50, &[1], &[(2, None, &[3])], &[(10, 2)]));
    assert_eq!([1, 2, 3].map(|pack| count(&world, pack)), [0, 1, 1]);
    assert_eq!(placement_of(&world, 2), Some((50, 1)));
    assert_eq!(world.count(&ObjectKey::Recipe(recipe(50))), Some(1));
    check(&world);
    world.accepts(delete(2));
    assert_eq!([2, 3].map(|pack| count(&world, pack)), [0, 0]);
    assert_eq!(placement_of(&world, 2), None);
    check(&world);
}

#[test]
fn who_publishes_while_chunks_are_moved_keeps_the_pack_or_is_refused() {
    // Before.
    let mut world = thinned();
    world.accepts(publish(3, &[1]));
    world.accepts(move_chunks(50, &[1], &[(2, None, &[4])], &[(10, 2)]));
    assert_eq!((count(&world, 1), placement_of(&world, 3)), (1, None));
    check(&world);
    // After, as long as nothing of the pack was deleted.
    let mut world = thinned();
    world.accepts(move_chunks(50, &[1], &[(2, None, &[4])], &[(10, 2)]));
    world.accepts(publish(3, &[1]));
    assert_eq!((count(&world, 1), placement_of(&world, 3)), (1, None));
    check(&world);
    // After that.
    let mut world = thinned();
    world.accepts(move_chunks(50, &[1], &[(2, None, &[4])], &[(10, 2)]));
    let candidates = [pack(1)].into();
    world.accepts(Command::SweepObjects { candidates, unreferenced_before: at(1000) });
    assert_eq!(world.refuses(publish(3, &[1])), Refusal::BeingDeleted(pack(1)));
    check(&world);
}

#[test]
fn only_who_knows_where_chunks_lie_moves_them_again() {
    let mut world = thinned();
    world.accepts(move_chunks(50, &[1], &[(2, None, &[3])], &[(10, 2)]));
    let changed = Refusal::Changed(Subject::Version);
    for from in [None, Some(49)] {
        let again = move_chunks(51, &[3], &[(2, from, &[4])], &[(10, 2)]);
        assert_eq!(world.refuses(again), changed);
    }
    let same = move_chunks(50, &[3], &[(2, Some(50), &[4])], &[(10, 2)]);
    assert_eq!(world.refuses(same), changed);
    world.accepts(move_chunks(51, &[3], &[(2, Some(50), &[4])], &[(10, 2)]));
    assert_eq!([2, 3, 4].map(|pack| count(&world, pack)), [1, 0, 1]);
    assert_eq!(world.count(&ObjectKey::Recipe(recipe(50))), Some(0));
    assert_eq!(placement_of(&world, 2), Some((51, 1)));
    check(&world);
}

/// The same content under another number, or in another image.
fn same_content(image: u64, repository: &str, manifest: u8) -> Command {
    let mut same = disk(repository, image, manifest, &[1, 2]);
    let disk = same.disk.as_mut().unwrap();
    disk.recipe = recipe(2);
    disk.objects = [pack(1), pack(2), ObjectKey::Recipe(recipe(2))].into();
    Command::PutManifest(same)
}

#[test]
fn versions_of_one_content_are_moved_again_together_or_not_at_all() {
    let mut world = thinned();
    world.accepts(same_content(11, "other", 4));
    world.accepts(move_chunks(50, &[1], &[(2, None, &[3])], &[(10, 2), (11, 4)]));
    assert_eq!(placement_of(&world, 2), Some((50, 2)));
    for some in [(10, 2), (11, 4)] {
        let again = move_chunks(51, &[3], &[(2, Some(50), &[5])], &[some]);
        assert_eq!(world.refuses(again), Refusal::Changed(Subject::Version));
    }
    world.accepts(delete(2));
    assert_eq!(placement_of(&world, 2), Some((50, 1)));
    world.accepts(move_chunks(51, &[3], &[(2, Some(50), &[5])], &[(10, 2), (11, 4)]));
    assert_eq!(placement_of(&world, 2), Some((51, 1)));
    check(&world);
}

#[test]
fn content_that_comes_again_lives_in_what_its_recipe_names() {
    let mut world = thinned();
    world.accepts(move_chunks(50, &[1], &[(2, None, &[3])], &[(10, 2)]));
    world.accepts(same_content(11, "other", 4));
    assert_eq!(placement_of(&world, 2), Some((50, 1)));
    assert_eq!((count(&world, 1), count(&world, 2), count(&world, 3)), (1, 2, 1));
    check(&world);
    // Nothing was moved for it.
    world.accepts(delete(2));
    assert_eq!(placement_of(&world, 2), None);
    assert_eq!((count(&world, 1), count(&world, 3)), (1, 0));
    check(&world);
}

/// What version 2 lives in at that moment, under another number.
fn copied(world: &World, manifest: u8) -> Command {
    let version = world.query().version(image_id(10), &digest(2)).unwrap().unwrap();
    let mut copy = disk("vm", 10, manifest, &[]);
    let disk = copy.disk.as_mut().unwrap();
    (disk.recipe, disk.objects) = (recipe(2), version.disk.unwrap().objects);
    Command::PutManifest(copy)
}

#[test]
fn a_version_that_is_made_of_one_that_was_moved_refers_to_the_same() {
    let mut world = thinned();
    world.accepts(move_chunks(50, &[1], &[(2, None, &[3])], &[(10, 2)]));
    let (first, late) = (copied(&world, 4), copied(&world, 5));
    world.accepts(first);
    assert_eq!(placement_of(&world, 2), Some((50, 2)));
    check(&world);
    world.accepts(move_chunks(51, &[3], &[(2, Some(50), &[6])], &[(10, 2), (10, 4)]));
    assert_eq!(placement_of(&world, 2), Some((51, 2)));
    // It would refer to what is on its way out.
    assert_eq!(world.refuses(late), Refusal::Changed(Subject::Version));
    let late = copied(&world, 5);
    world.accepts(delete(2));
    world.accepts(delete(4));
    assert_eq!(placement_of(&world, 2), None);
    assert_eq!(world.refuses(late), Refusal::Changed(Subject::Version));
    check(&world);
}

#[test]
fn what_is_gone_is_passed_over_and_what_is_being_deleted_is_not_named() {
    let mut world = thinned();
    let versions = [(10, 1), (10, 2), (99, 2)];
    world.accepts(Command::AdoptObjects { objects: [pack(3)].into() });
    let candidates = [pack(3)].into();
    world.accepts(Command::SweepObjects { candidates, unreferenced_before: at(1000) });
    let moved = move_chunks(50, &[1], &[(2, None, &[3])], &versions);
    assert_eq!(world.refuses(moved.clone()), Refusal::BeingDeleted(pack(3)));
    world.accepts(Command::ForgetObjects { objects: [pack(3)].into(), deleting_before: at(1000) });
    world.accepts(moved);
    assert_eq!(placement_of(&world, 2), Some((50, 1)));
    let nobody = move_chunks(51, &[2], &[(1, None, &[4])], &[(10, 1)]);
    assert_eq!(world.refuses(nobody), Refusal::NotFound(Subject::Version));
    check(&world);
}

#[test]
fn what_makes_no_sense_or_is_too_much_is_refused() {
    let mut world = thinned();
    let with = |change: &dyn Fn(&mut MovedChunks)| match move_chunks(
        50,
        &[1],
        &[(2, None, &[3])],
        &[(10, 2)],
    ) {
        Command::MoveChunks(mut moved) => {
            change(&mut moved);
            Command::MoveChunks(moved)
        }
        other => other,
    };
    let objects = |moved: &mut MovedChunks, objects: &[ObjectKey]| {
        let moving = moved.recipes.get_mut(&recipe(2)).unwrap();
        moving.objects = objects.iter().copied().collect();
    };
    let (placement, other) = (ObjectKey::Recipe(recipe(50)), ObjectKey::Recipe(recipe(51)));
    let blob = ObjectKey::Blob(upload_id(1));
    for wrong in [
        with(&|moved| objects(moved, &[pack(3)])),
        with(&|moved| objects(moved, &[pack(3), placement, other])),
        with(&|moved| objects(moved, &[placement, blob])),
        with(&|moved| objects(moved, &[placement, pack(1)])),
        with(&|moved| moved.dropped = [ObjectKey::Recipe(recipe(2))].into()),
        with(&|moved| moved.placement = recipe(2)),
    ] {
        assert_eq!(world.refuses(wrong), Refusal::Changed(Subject::Version));
    }
    let images = 0..=MOVED_VERSIONS_MAX as u64;
    let many = with(&|moved| {
        moved.versions = images.clone().map(|image| (image_id(image), digest(2))).collect();
    });
    assert!(matches!(world.refuses(many), Refusal::Limit(_)));
    let images = (0..=SETTLED_IMAGES_MAX as u64).map(|image| (image_id(image), at(1))).collect();
    assert!(matches!(world.refuses(Command::SettleImages { images }), Refusal::Limit(_)));
}

#[test]
fn an_image_that_lost_a_version_is_to_be_looked_through() {
    let mut world = World::founded();
    world.accepts(Command::RaiseLevel { to: COMMAND_VERSION });
    world.accepts(publish(1, &[1]));
    world.accepts(publish(2, &[1]));
    world.accepts(publish(3, &[1]));
    assert_eq!(world.query().thinned_images(None, 10).unwrap(), []);
    world.accepts(delete(1));
    let first = at(world.now);
    assert_eq!(world.query().thinned_images(None, 10).unwrap(), [(image_id(10), first)]);
    assert_eq!(world.query().thinned_images(Some(image_id(10)), 10).unwrap(), []);
    world.accepts(delete(2));
    let second = at(world.now);
    // It lost another one meanwhile.
    world.accepts(Command::SettleImages { images: [(image_id(10), first)].into() });
    assert_eq!(world.query().thinned_images(None, 10).unwrap(), [(image_id(10), second)]);
    world.accepts(Command::SettleImages { images: [(image_id(10), second)].into() });
    assert_eq!(world.query().thinned_images(None, 10).unwrap(), []);
    world.accepts(delete(3));
    world.accepts(Command::DeleteImage { id: image_id(10) });
    assert_eq!(world.query().thinned_images(None, 10).unwrap(), []);
}

/// What happens in storage and at the nodes.
#[derive(Debug, Clone)]
enum Happens {
    /// Whoever is to publish sees that all that its recipe names is in storage.
    Seen(u8),
    /// Of those that were seen.
    Published {
        image: u64,
        manifest: u8,
    },
    Deleted {
        image: u64,
        manifest: u8,
    },
    /// Somebody looks at a version of that content, to publish it under another number.
    Noted(usize),
    Copied {
        image: u64,
        manifest: u8,
    },
    /// Which versions have chunks in the pack, and where they lie.
    Surveyed(usize),
    /// What the survey has found is moved.
    Moved,
    /// Marked and deleted, all that nothing refers to.
    Swept,
    /// Long after: what was seen before counts no more.
    Forgotten,
}

const IMAGES: [(u64, &str); 2] = [(10, "vm"), (11, "vm/x")];

fn happens() -> impl Strategy<Value = Happens> {
    let manifest = || 1u8..4;
    let image = || 0u64..2;
    prop_oneof![
        3 => manifest().prop_map(Happens::Seen),
        6 => (image(), manifest())
            .prop_map(|(image, manifest)| Happens::Published { image, manifest }),
        4 => (image(), 1u8..6)
            .prop_map(|(image, manifest)| Happens::Deleted { image, manifest }),
        2 => (0usize..8).prop_map(Happens::Noted),
        3 => (image(), 4u8..6)
            .prop_map(|(image, manifest)| Happens::Copied { image, manifest }),
        3 => (0usize..8).prop_map(Happens::Surveyed),
        3 => Just(Happens::Moved),
        2 => Just(Happens::Swept),
        1 => Just(Happens::Forgotten),
    ]
}

/// A chunk, by its recipe and the pack that this names.
type Chunk = (u8, u8);

/// Each recipe has a chunk in either of two packs, which overlap with another's.
fn originals(manifest: u8) -> [u8; 2] {
    [manifest, manifest % 3 + 1]
}

/// Who has chunks in a pack.
struct Survey {
    of: u8,
    /// With their placements.
    recipes: BTreeMap<u8, Option<u8>>,
    versions: Vec<(u64, u8)>,
}

struct Storage {
    world: World,
    packs: BTreeSet<u8>,
    placements: BTreeMap<u8, BTreeMap<Chunk, u8>>,
    seen: BTreeSet<u8>,
    survey: Option<Survey>,
    noted: Option<Disk>,
    next: u8,
}

/// Of which image, by which digest, and of which recipe.
type Found = (u64, u8, u8, Disk);

impl Storage {
    fn new() -> Self {
        Self {
            world: World::founded(),
            packs: BTreeSet::new(),
            placements: BTreeMap::new(),
            seen: BTreeSet::new(),
            survey: None,
            noted: None,
            next: 10,
        }
    }

    fn versions(&self) -> Vec<Found> {
        let query = self.world.query();
        let of = |(image, _): (u64, &str)| {
            let versions = query.versions(image_id(image)).unwrap();
            versions.into_iter().map(move |version| {
                let disk = version.disk.unwrap();
                (image, version.digest.as_bytes()[0], disk.recipe.as_bytes()[0], disk)
            })
        };
        IMAGES.into_iter().flat_map(of).collect()
    }

    fn placement(&self, manifest: u8) -> Option<u8> {
        placement_of(&self.world, manifest).map(|(placement, _)| placement)
    }

    /// In which pack a chunk is looked for, by that placement.
    fn place(&self, placement: Option<u8>, chunk: Chunk) -> u8 {
        let moved = placement.and_then(|placement| self.placements[&placement].get(&chunk));
        moved.copied().unwrap_or(chunk.1)
    }

    fn goes_on(&mut self, happens: &Happens) {
        match happens {
            Happens::Seen(manifest) => {
                // A new disk stores what storage lacks; so does one that was refused.
                let deleting = self.world.query().deleting_objects(None, 100).unwrap();
                let there = |number: &u8| deleting.iter().all(|(key, _)| *key != pack(*number));
                if originals(*manifest).iter().all(there) {
                    self.packs.extend(originals(*manifest));
                    self.seen.insert(*manifest);
                }
            }
            Happens::Published { image, manifest } if self.seen.contains(manifest) => {
                let (image, repository) = IMAGES[*image as usize];
                let put = disk(repository, image, *manifest, &originals(*manifest));
                let _refused_or_not = self.world.propose(Command::PutManifest(put));
            }
            Happens::Published { .. } => {}
            Happens::Deleted { image, manifest } => {
                let (_, repository) = IMAGES[*image as usize];
                let (repository, digest) = (name(repository), digest(*manifest));
                let _gone_or_not =
                    self.world.propose(Command::DeleteManifest { repository, digest });
            }
            Happens::Noted(at) => {
                let versions = self.versions();
                let found = versions.get(at % versions.len().max(1));
                self.noted = found.map(|(.., disk)| disk.clone());
            }
            Happens::Copied { image, manifest } => {
                let Some(noted) = &self.noted else { return };
                let (image, repository) = IMAGES[*image as usize];
                let mut put = disk(repository, image, *manifest, &[]);
                let copy = put.disk.as_mut().unwrap();
                (copy.recipe, copy.objects) = (noted.recipe, noted.objects.clone());
                let _refused_or_not = self.world.propose(Command::PutManifest(put));
            }
            Happens::Surveyed(at) => self.survey(*at),
            Happens::Moved => self.move_surveyed(),
            Happens::Swept => {
                let candidates: BTreeSet<ObjectKey> = self
                    .world
                    .query()
                    .unreferenced_objects(at(u64::MAX), 100)
                    .unwrap()
                    .into_iter()
                    .collect();
                let sweep = Command::SweepObjects { candidates, unreferenced_before: at(u64::MAX) };
                if let Response::Swept(swept) = self.world.accepts(sweep) {
                    self.packs.retain(|number| !swept.contains(&pack(*number)));
                }
            }
            Happens::Forgotten => {
                let deleting = self.world.query().deleting_objects(None, 100).unwrap();
                let objects = deleting.into_iter().map(|(object, _)| object).collect();
                self.world
                    .accepts(Command::ForgetObjects { objects, deleting_before: at(u64::MAX) });
                self.seen.clear();
                (self.survey, self.noted) = (None, None);
            }
        }
    }

    fn survey(&mut self, at: usize) {
        let versions = self.versions();
        let packs: BTreeSet<u8> = self
            .packs
            .iter()
            .copied()
            .filter(|number| {
                versions.iter().any(|(.., disk)| disk.objects.contains(&pack(*number)))
            })
            .collect();
        let Some(of) = packs.iter().nth(at % packs.len().max(1)).copied() else { return };
        let holds = |disk: &Disk| disk.objects.contains(&pack(of));
        let recipes: BTreeSet<u8> =
            versions.iter().filter(|(.., disk)| holds(disk)).map(|(.., of, _)| *of).collect();
        let listed = versions.iter().filter(|(.., of, _)| recipes.contains(of));
        let listed = listed.map(|(image, manifest, ..)| (*image, *manifest)).collect();
        let recipes = recipes.into_iter().map(|of| (of, self.placement(of))).collect();
        self.survey = Some(Survey { of, recipes, versions: listed });
    }

    fn move_surveyed(&mut self) {
        let Some(Survey { of, recipes, versions }) = self.survey.take() else { return };
        let (new_pack, placement) = (self.next, self.next + 100);
        self.next += 1;
        let mut placed: BTreeMap<Chunk, u8> = BTreeMap::new();
        for (manifest, from) in &recipes {
            for chunk in originals(*manifest).map(|original| (*manifest, original)) {
                match self.place(*from, chunk) {
                    there if there == of => placed.insert(chunk, new_pack),
                    there if there != chunk.1 => placed.insert(chunk, there),
                    _ => None,
                };
            }
        }
        let packs: BTreeMap<u8, Vec<u8>> = recipes
            .keys()
            .map(|manifest| {
                let own = placed.iter().filter(|((recipe, _), _)| recipe == manifest);
                (*manifest, own.map(|(_, pack)| *pack).collect())
            })
            .collect();
        self.packs.insert(new_pack);
        // Seen in storage just before, as a publisher does.
        if packs.values().flatten().any(|pack| !self.packs.contains(pack)) {
            return;
        }
        self.placements.insert(placement, placed);
        let moving: Vec<(u8, Option<u8>, &[u8])> =
            recipes.iter().map(|(of, from)| (*of, *from, &packs[of][..])).collect();
        let _refused_or_not = self.world.propose(move_chunks(placement, &[of], &moving, &versions));
    }

    /// Every chunk of every version is where it is looked for.
    fn check(&self) {
        for (image, _, manifest, _) in self.versions() {
            let placement = self.placement(manifest);
            for chunk in originals(manifest).map(|original| (manifest, original)) {
                let place = self.place(placement, chunk);
                assert!(self.packs.contains(&place), "{image}: {chunk:?} is not in pack {place}");
                assert!(count(&self.world, place) > 0, "{image}: pack {place} is nobody's");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_version_can_be_read_in_whatever_order_things_happen(
        all in prop::collection::vec(happens(), 1..60),
    ) {
        let mut storage = Storage::new();
        for one in &all {
            storage.goes_on(one);
            storage.check();
            check(&storage.world);
        }
    }
}
