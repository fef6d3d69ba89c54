//! What lists have to show: all that the asker may list, one by one.

use shoal_content::RepositoryName;
use shoal_metadata::*;

use super::*;

fn may(world: &World, who: &Who, action: Action, what: What<'_>) -> bool {
    permission(world.query(), who, action, what).unwrap().is_allowed()
}

/// Holds pages of images and projects, of these sizes, and the count of images against the rows.
pub fn check(world: &World, who: &Who, sizes: &[usize]) {
    let expected: Vec<RepositoryName> = images(world, who);
    let visible = || Visible::new(world.query(), who.clone()).unwrap();
    for size in sizes.iter().copied() {
        let (mut visible, mut found, mut more) = (visible(), Vec::new(), true);
        while more {
            let page;
            (page, more) = visible.page(found.last().map(RepositoryName::as_str), size).unwrap();
            assert!(page.len() == size || !more, "{who:?} {size}: {}", page.len());
            found.extend(page);
        }
        assert_eq!(found, expected, "{who:?}, {size} at once");
    }
    if world.query().indexes_lists().unwrap() {
        assert_eq!(visible().count().unwrap(), Some(expected.len() as u64), "{who:?}");
    }
    check_projects(world, who, sizes);
}

/// What is shown behind any text is what comes behind it of all.
pub fn check_behind(world: &World, who: &Who, text: &str) {
    let expected: Vec<RepositoryName> = images(world, who);
    let expected: Vec<_> = expected.into_iter().filter(|name| name.as_str() > text).collect();
    let mut visible = Visible::new(world.query(), who.clone()).unwrap();
    let found = visible.page(Some(text), usize::MAX).unwrap();
    assert_eq!(found, (expected, false), "{who:?} behind {text:?}");
}

fn images(world: &World, who: &Who) -> Vec<RepositoryName> {
    let names = world.query().image_names("", usize::MAX).unwrap();
    names.into_iter().filter(|name| may(world, who, Action::List, What::Repository(name))).collect()
}

fn check_projects(world: &World, who: &Who, sizes: &[usize]) {
    let seen = |project: &Project| {
        let what = What::Project(&project.name);
        may(world, who, Action::List, what) || may(world, who, Action::Pull, what)
    };
    let mut expected = world.query().projects(None, usize::MAX).unwrap();
    expected.retain(seen);
    for size in sizes.iter().copied() {
        let mut visible = Visible::new(world.query(), who.clone()).unwrap();
        let mut found: Vec<Project> = Vec::new();
        let mut after = String::new();
        loop {
            let page = visible.projects(&after, size).unwrap();
            let ended = page.len() < size;
            // Of others it has a right in each.
            let kept = world.query().indexes_lists().unwrap();
            assert!(kept || page.iter().all(seen), "{who:?} hears of {page:?}");
            after = page.last().map(|project| project.name.to_string()).unwrap_or(after);
            found.extend(page);
            if ended {
                break;
            }
        }
        found.retain(seen);
        assert_eq!(found, expected, "{who:?}, {size} at once");
    }
}
