//! How an image goes for good: in as many commands as it takes.

mod world;

use shoal_metadata::*;
use world::counts::check;
use world::*;

#[test]
fn an_image_goes_for_good_in_pieces_and_does_not_come_back_in_between() {
    for deleted_before in [false, true] {
        let mut world = World::founded();
        world.accepts(Command::RaiseLevel { to: 2 });
        world.accepts(create_image(1, "zedge/vm", ImageKind::Disk));
        for number in 0..12u8 {
            let version = format!("1.0.{number}");
            world.accepts(publish_disk("zedge/vm", 1, 20 + number, &version));
        }
        let purge = |rows_max| Command::PurgeImage { id: image_id(1), by: "o".into(), rows_max };
        world
            .accepts(Command::RegisterInstance { instance: instance("vm", 1, 20), replace: false });
        assert!(matches!(world.refuses(purge(1)), Refusal::InUse { .. }));
        world.accepts(Command::RemoveInstance { name: instance_name("vm") });
        if deleted_before {
            world.accepts(Command::TrashImage { id: image_id(1), by: "admin".into() });
        }
        let versions = |world: &World| world.query().versions(image_id(1)).unwrap().len();
        let (mut left, mut commands) = (versions(&world), 0);
        loop {
            let answer = world.accepts(purge(1));
            check(&world);
            commands += 1;
            if answer == (Response::Purged { gone: true }) {
                break;
            }
            assert_eq!(answer, Response::Purged { gone: false });
            let now = versions(&world);
            // The first only takes the name.
            assert!(now + 1 >= left && (now < left || commands == 1 || now == 0), "{now}, {left}");
            left = now;
            let restore = Command::RestoreImage { id: image_id(1) };
            assert_eq!(world.refuses(restore), Refusal::NotFound(Subject::Image));
            assert_eq!(world.query().image_by_name(&name("zedge/vm")).unwrap(), None);
        }
        assert!(commands > 12, "{commands}");
        assert_eq!(world.refuses(purge(1)), Refusal::NotFound(Subject::Image));
        assert_eq!(world.query().image(image_id(1)).unwrap(), None);
        assert!(world.query().deleted_images(None, 9).unwrap().is_empty());
        assert_eq!(world.count(&pack(1)), Some(0));
        world.accepts(create_image(2, "zedge/vm", ImageKind::Disk));
        check(&world);
    }
}
