//! Which projects are open to the same people by themselves, so that a list goes from one that the asker
//! may see to the next, and steps over any number that are closed to it.
//!
//! With that, whose they are is kept: an owner's projects stand together as well.
//!
//! Invariants: a project is in one audience, with how many images it has; what an audience has is the
//! sum of that. All of it changes in the command that changes what they follow from. A cluster that was
//! founded before has none of it until [`Command::IndexLists`] (see [`Query::indexes_lists`]).
//! Non-goal: rights that were given to somebody; those stand by who has them.
//!
//! [`Command::IndexLists`]: crate::Command::IndexLists

use shoal_content::{AccountName, ProjectName};

use super::{Owner, Project, Visibility};
use crate::key;
use crate::query::{Pages, Query};
use crate::table::{Fault, Read, Table};
use crate::transaction::{decoded, row};

/// Who sees a project without having been given a right in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Audience {
    Everyone,
    /// The user who owns it, by the name that rows carry.
    User(String),
    /// The members of the organization that owns it.
    Members(AccountName),
    /// The owners of the organization that owns it.
    Owners(AccountName),
}

impl Audience {
    pub fn of(project: &Project) -> Self {
        match (&project.owner, project.visibility) {
            (_, Visibility::Public) => Self::Everyone,
            (Owner::User(name), _) => Self::User(name.clone()),
            (Owner::Organization(name), Visibility::Organization) => Self::Members(name.clone()),
            (Owner::Organization(name), Visibility::Private) => Self::Owners(name.clone()),
        }
    }
}

impl<R: Read> Query<'_, R> {
    /// An audience's projects in the order of their names, of those behind the text `after`, at most
    /// `limit`; none where audiences are not kept.
    pub fn projects_for(
        &self,
        audience: &Audience,
        after: &str,
        limit: usize,
    ) -> Result<Vec<ProjectName>, Fault> {
        self.projects_in(Table::ProjectAudiences, &key::audience(audience), after, limit)
    }

    /// An owner's projects in the order of their names, of those behind the text `after`, at most `limit`.
    /// Where it is not kept whose they are, all projects are looked at.
    pub fn projects_of(
        &self,
        owner: &Owner,
        after: &str,
        limit: usize,
    ) -> Result<Vec<ProjectName>, Fault> {
        if self.indexes_lists()? {
            return self.projects_in(Table::OwnerProjects, &key::owner(owner), after, limit);
        }
        let mut found = Vec::new();
        let mut pages = Pages::of(Table::Projects, b"");
        while let Some(page) = pages.next_page(self.read)? {
            for (_, bytes) in page {
                let project: Project = decoded(Table::Projects, &bytes)?;
                if project.owner == *owner && project.name.as_str() > after {
                    found.push(project.name);
                }
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    fn projects_in(
        &self,
        table: Table,
        prefix: &[u8],
        after: &str,
        limit: usize,
    ) -> Result<Vec<ProjectName>, Fault> {
        let from = key::after(key::join(&[prefix, after.as_bytes()]));
        let rows = self.read.scan(table, &from, prefix, limit)?;
        let broken = |_| Fault::Contradiction("a key names no project");
        rows.iter()
            .map(|(key, _)| {
                let text = key::read_text(key, prefix.len())?;
                text.parse::<ProjectName>().map_err(broken)
            })
            .collect()
    }

    /// How many images are in all projects of an audience; none where audiences are not kept.
    pub fn images_for(&self, audience: &Audience) -> Result<u64, Fault> {
        Ok(row(self.read, Table::Counts, &key::audience_images(audience))?.unwrap_or(0))
    }

    /// How many images are in a project of that audience; none where audiences are not kept.
    pub fn images_in(&self, audience: &Audience, project: &ProjectName) -> Result<u64, Fault> {
        let key = key::audience_project(audience, project);
        Ok(row(self.read, Table::ProjectAudiences, &key)?.unwrap_or(0))
    }
}
