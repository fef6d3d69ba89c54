//! Finds a repository that holds a blob and that the asker may pull from.
//!
//! Invariants: what is found is live and may be pulled from, by [`permission`] alone; the work is
//! bounded, however many repositories hold the blob and whatever the asker was given. So nothing may
//! be found although there is something: that is never wrong, since a blob can always be pushed.
//! The asker learns of nothing else: whether the blob lies where it may not pull from changes no
//! answer.

use shoal_content::{Digest, ImageId, ProjectName, RepositoryName};

use super::{Action, Grantee, Place, What, Who, permission};
use crate::key;
use crate::query::Query;
use crate::table::{Fault, Read, Table};

/// Repositories of the preferred project, and of one that the asker was given a right in.
const NEAR_MAX: usize = 32;
/// Repositories of any other project: in one, most are open to the same people.
const FAR_MAX: usize = 4;
/// Projects that hold the blob, looked at in the order of their names.
const PROJECTS_MAX: usize = 256;
/// Places that the asker was given a right at.
const PLACES_MAX: usize = 1_000;

/// A repository that holds the blob and that `who` may pull from; of the project `preferred`, if
/// there is one.
///
/// # Errors
/// Where the rows cannot be read.
pub fn holder<R: Read>(
    query: Query<'_, R>,
    who: &Who,
    digest: &Digest,
    preferred: &ProjectName,
) -> Result<Option<RepositoryName>, Fault> {
    let search = Search { query, who, digest };
    if !query.indexes_blobs()? {
        return Ok(None);
    }
    if let Some(found) = search.in_project(preferred, NEAR_MAX)? {
        return Ok(Some(found));
    }
    match search.given()? {
        Some(found) => Ok(Some(found)),
        None => search.anywhere(),
    }
}

/// A project that holds the blob: the first by name.
pub fn first_holder<R: Read>(
    query: Query<'_, R>,
    digest: &Digest,
) -> Result<Option<ProjectName>, Fault> {
    let prefix = key::digest(digest);
    let rows = query.read.scan(Table::BlobHolders, &prefix, &prefix, 1)?;
    rows.first().map(|(key, _)| Ok(key::read_blob_holder(digest, key)?.0)).transpose()
}

struct Search<'a, R: Read> {
    query: Query<'a, R>,
    who: &'a Who,
    digest: &'a Digest,
}

impl<R: Read> Search<'_, R> {
    fn in_project(
        &self,
        project: &ProjectName,
        most: usize,
    ) -> Result<Option<RepositoryName>, Fault> {
        let prefix = key::blob_holders_in(self.digest, project);
        for (key, _) in self.query.read.scan(Table::BlobHolders, &prefix, &prefix, most)? {
            let (_, image) = key::read_blob_holder(self.digest, &key)?;
            if let Some(found) = self.image(image)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The image's name, where it holds the blob, is live, and may be pulled from.
    fn image(&self, id: ImageId) -> Result<Option<RepositoryName>, Fault> {
        if !self.query.blob_in(id, self.digest)? {
            return Ok(None);
        }
        let Some(image) = self.query.live_image(id)? else { return Ok(None) };
        let what = What::Repository(&image.name);
        let pulls = permission(self.query, self.who, Action::Pull, what)?;
        Ok(pulls.is_allowed().then_some(image.name))
    }

    /// Where the asker was given something: there may be a single repository among many that are
    /// closed to it.
    fn given(&self) -> Result<Option<RepositoryName>, Fault> {
        match self.who {
            Who::Anonymous | Who::Agent | Who::Node => Ok(None),
            Who::Robot(name) => {
                let Some(robot) = self.query.robot(name)? else { return Ok(None) };
                for repository in robot.repositories.iter().take(PLACES_MAX) {
                    if let Some(image) = self.query.image_by_name(repository)?
                        && let Some(found) = self.image(image.id)?
                    {
                        return Ok(Some(found));
                    }
                }
                self.in_project(&name.project, NEAR_MAX)
            }
            Who::User { name, .. } => self.given_to(name),
        }
    }

    fn given_to(&self, user: &str) -> Result<Option<RepositoryName>, Fault> {
        let mut left = PLACES_MAX;
        let grantees: Vec<Grantee> = self.query.grantees_of(user)?;
        for grantee in grantees.iter().take(PLACES_MAX) {
            let places = self.query.places_up_to(grantee, left)?;
            left -= places.len();
            for place in places {
                let found = match place {
                    Place::Project(project) => self.in_project(&project, NEAR_MAX)?,
                    Place::Image(id) => self.image(id)?,
                    Place::Organization(_) | Place::Group { .. } => None,
                };
                if found.is_some() {
                    return Ok(found);
                }
            }
            if left == 0 {
                break;
            }
        }
        Ok(None)
    }

    fn anywhere(&self) -> Result<Option<RepositoryName>, Fault> {
        let prefix = key::digest(self.digest);
        let mut from = prefix.clone();
        for _ in 0..PROJECTS_MAX {
            let rows = self.query.read.scan(Table::BlobHolders, &from, &prefix, 1)?;
            let Some((key, _)) = rows.first() else { break };
            let (project, _) = key::read_blob_holder(self.digest, key)?;
            if let Some(found) = self.in_project(&project, FAR_MAX)? {
                return Ok(Some(found));
            }
            from = key::blob_holders_behind(self.digest, &project);
        }
        Ok(None)
    }
}
