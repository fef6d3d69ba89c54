//! What holds after any sequence of commands: counts agree with a recount, indexes with their
//! rows, and the same commands give the same rows.

mod world;

use proptest::prelude::*;
use shoal_content::{NodeId, ObjectKey};
use shoal_metadata::*;
use world::counts::check;
use world::*;

const CONTAINERS: [&str; 2] = ["a", "b"];
const DISKS: [&str; 2] = ["vm", "vm/x"];

/// Few ids, so that commands meet each other's rows.
fn command() -> impl Strategy<Value = Command> {
    let few = 0u8..3;
    prop_oneof![
        3 => (0usize..2, few.clone()).prop_map(|(at, blob)| {
            commit_blob(CONTAINERS[at], at as u64, blob)
        }),
        1 => (0usize..2, 0usize..2, few.clone()).prop_map(|(from, to, blob)| Command::MountBlob {
            from: Some(name(CONTAINERS[from])),
            to: name(CONTAINERS[to]),
            digest: digest(blob),
            owner: "admin".into(),
            image: image_id(to as u64),
        }),
        1 => (0usize..2, few.clone()).prop_map(|(at, blob)| Command::UnlinkBlob {
            repository: name(CONTAINERS[at]),
            digest: digest(blob),
        }),
        4 => (0usize..2, 10u8..14, prop::collection::vec(0u8..3, 0..3), any::<bool>()).prop_map(
            |(at, manifest, blobs, tagged)| {
                let put = container(CONTAINERS[at], at as u64, manifest, &blobs);
                let tags = if tagged { vec![tag("latest")] } else { vec![] };
                Command::PutManifest(PutManifest { tags, ..put })
            }
        ),
        4 => (0usize..2, 20u8..24, prop::collection::vec(0u8..4, 0..3)).prop_map(
            |(at, manifest, packs)| {
                Command::PutManifest(disk(DISKS[at], 10 + at as u64, manifest, &packs))
            }
        ),
        2 => (0usize..2, 10u8..14).prop_map(|(at, manifest)| Command::DeleteManifest {
            repository: name(CONTAINERS[at]),
            digest: digest(manifest),
        }),
        2 => (0usize..2, 20u8..24).prop_map(|(at, manifest)| Command::DeleteManifest {
            repository: name(DISKS[at]),
            digest: digest(manifest),
        }),
        1 => (0usize..2, 10u8..14).prop_map(|(at, manifest)| Command::PutTag {
            repository: name(CONTAINERS[at]),
            tag: tag("stable"),
            digest: digest(manifest),
        }),
        1 => (0usize..2).prop_map(|at| Command::DeleteTag {
            repository: name(CONTAINERS[at]),
            tag: tag("latest"),
        }),
        1 => prop_oneof![Just(0u64), Just(1), Just(10), Just(11)]
            .prop_map(|number| Command::DeleteImage { id: image_id(number) }),
        1 => (0u8..4, 0u64..60).prop_map(|(number, before)| Command::SweepObjects {
            candidates: [pack(number), ObjectKey::Recipe(recipe(number))].into(),
            unreferenced_before: at(before),
        }),
        1 => (0u64..2, 0u8..3, 0u64..60).prop_map(|(image, blob, before)| {
            Command::UnlinkLooseBlobs {
                links: [(image_id(image), digest(blob))].into(),
                loose_before: at(before),
            }
        }),
        1 => (0u8..4).prop_map(|number| Command::AdoptObjects {
            objects: [pack(number), ObjectKey::Recipe(recipe(number))].into(),
        }),
        1 => (0u8..4).prop_map(|number| Command::RetryDeletion {
            objects: [pack(number), ObjectKey::Recipe(recipe(number))].into(),
        }),
        1 => (0u8..4, 0u64..60).prop_map(|(number, before)| Command::ForgetObjects {
            objects: [pack(number), ObjectKey::Recipe(recipe(number))].into(),
            deleting_before: at(before),
        }),
        1 => (0u64..3).prop_map(|number| Command::BeginUpload(disk_upload(number, 10, "9.9"))),
        1 => (0u64..3, 0u32..4).prop_map(|(number, index)| {
            part(number, index, if index == 2 { 5 } else { 10 })
        }),
        1 => (0u64..3).prop_map(|number| Command::ClaimIngest {
            upload: upload_id(number),
            node: NodeId::new(1),
            lease_until: at(40),
        }),
        1 => Just(Command::ExpireUploads { limit: 1 }),
        1 => (0u64..3).prop_map(|number| Command::AbortUpload { upload: upload_id(number) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn counts_and_indexes_agree_with_the_rows(
        commands in prop::collection::vec(command(), 1..60),
    ) {
        let (mut first, mut second) = (World::founded(), World::founded());
        for command in commands {
            // `World::propose` holds that a refused command wrote nothing.
            let answer = first.propose(command.clone());
            prop_assert_eq!(answer, second.propose(command));
            check(&first);
        }
        prop_assert_eq!(first.rows, second.rows);
    }
}
