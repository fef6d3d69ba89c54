//! Lists of repositories: each asker's pages, and what a page costs where there are many.

mod world;

use std::cell::Cell;

use shoal_content::RepositoryName;
use shoal_metadata::*;
use world::*;

/// Everything that was read of the rows below.
struct Counting<'a> {
    rows: &'a Memory,
    read: Cell<usize>,
}

impl Read for Counting<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.read.update(|read| read + 1);
        self.rows.get(table, key)
    }

    fn scan(&self, table: Table, from: &[u8], prefix: &[u8], limit: usize) -> Result<Rows, Fault> {
        let rows = self.rows.scan(table, from, prefix, limit)?;
        self.read.update(|read| read + 1 + rows.len());
        Ok(rows)
    }
}

/// Projects in turn public, the user's, and somebody else's, which holds one image that was granted
/// to the user. Their names are near each other, also by what sorts before `/`.
fn populated(projects: usize, images_each: usize) -> World {
    let mut world = World::founded();
    for name in ["user", "other"] {
        world.accepts(Command::PutUser(user(name, UserRole::User)));
    }
    let mut number = 0;
    for at in 0..projects {
        let (visibility, owner) = match at % 3 {
            0 => (Visibility::Public, "other"),
            1 => (Visibility::Private, "user"),
            _ => (Visibility::Private, "other"),
        };
        let name = ["p", "p-a", "p.a", "p0"][at % 4];
        let project_name = format!("{name}{:04}", at / 4);
        let owner = Owner::User(owner.into());
        world.accepts(Command::CreateProject(Project {
            visibility,
            ..project(&project_name, owner)
        }));
        for image in 0..images_each {
            number += 1;
            let name = format!("{project_name}/{image:06}");
            world.accepts(create_image(number, &name, ImageKind::Container));
            if at % 3 == 2 && image == images_each / 2 {
                let (place, right) = (Place::Image(image_id(number)), Right::Image(Access::Read));
                let grantee = Grantee::User(account("user"));
                world.accepts(Command::PutRight { place, grantee, right });
            }
        }
    }
    world
}

fn askers() -> Vec<Who> {
    let people =
        ["admin", "user", "other"].map(|name| Who::User { name: name.into(), scopes: None });
    let robot = Who::Robot("robot$p0000+all".parse().unwrap());
    people.into_iter().chain([Who::Anonymous, Who::Agent, robot]).collect()
}

#[test]
fn pages_hold_what_each_asker_may_list_and_nothing_else() {
    let mut world = populated(12, 7);
    let mut robot = robot("robot$p0000+all", &[Scope::Read]);
    robot.repositories = [name("p0000/000003")].into();
    world.accepts(Command::PutRobot(robot));
    let names = world.query().image_names("", usize::MAX).unwrap();
    for who in askers() {
        let listed = |name: &&RepositoryName| {
            let what = What::Repository(name);
            permission(world.query(), &who, Action::List, what).unwrap().is_allowed()
        };
        let expected: Vec<_> = names.iter().filter(listed).cloned().collect();
        for size in [1, 2, 5, 84, 1000] {
            let mut visible = Visible::new(world.query(), who.clone()).unwrap();
            let (mut found, mut more) = (Vec::new(), true);
            while more {
                let page;
                (page, more) = visible.page(found.last(), size).unwrap();
                assert!(page.len() == size || !more, "{who:?} {size}: {}", page.len());
                found.extend(page);
            }
            assert_eq!(found, expected, "{who:?}, {size} at once");
        }
    }
}

#[test]
fn a_page_out_of_a_hundred_thousand_costs_what_is_on_it() {
    const PAGE: usize = 100;
    let world = populated(20, 5_000);
    for who in askers() {
        for after in [None, Some(name("p0003/002500")), Some(name("p-a0002/004999"))] {
            let counting = Counting { rows: &world.rows, read: Cell::new(0) };
            let mut visible = Visible::new(Query::new(&counting), who.clone()).unwrap();
            visible.page(after.as_ref(), PAGE).unwrap();
            // Each closed project costs at most a batch of names and its rights.
            let most = 25 * (PAGE + 20);
            let read = counting.read.get();
            assert!(read <= most, "{who:?} after {after:?}: {read} rows were read");
        }
    }
}
