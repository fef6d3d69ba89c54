//! Which images somebody is shown in lists.
//!
//! Projects decide for most of their images at once, so that a page costs little more than what is
//! on it: a project that is closed to the asker is stepped over whole, however much is in it. There may
//! be as many projects as images, so one that the asker has nothing to do with costs one row.

use std::collections::BTreeSet;
use std::ops::Bound;

use shoal_content::{AccountName, ProjectName, RepositoryName};

use super::{Action, Decision, Grantee, Owner, Place, Visibility, What, Who, permission};
use crate::query::Query;
use crate::record::UserRole;
use crate::table::{Fault, Read};

/// Names that are read at once.
const BATCH_MAX: usize = 1_000;
/// What follows `/` in byte order.
const AFTER_SLASH: char = '0';

/// The images that one asker is shown, in one state.
#[derive(Debug)]
pub struct Visible<'a, R: Read> {
    query: Query<'a, R>,
    who: Who,
    /// Images that the asker was granted something for itself.
    granted: BTreeSet<RepositoryName>,
    /// What a person may have more rights in than everyone; `None` is anything.
    near: Option<Near>,
    /// The project of a robot that is held to some repositories in it: those that are granted.
    held_in: Option<ProjectName>,
    /// The project that was looked at last, and whether it is open to the asker.
    project: Option<(ProjectName, bool)>,
}

/// Where somebody is more than everyone: nothing in another project is open to it that is not public.
#[derive(Debug, Default)]
struct Near {
    user: String,
    /// That it is a member of, itself or by a group or an organization.
    projects: BTreeSet<ProjectName>,
    organizations: BTreeSet<AccountName>,
}

impl<'a, R: Read> Visible<'a, R> {
    /// # Errors
    /// Where the rows cannot be read.
    pub fn new(query: Query<'a, R>, who: Who) -> Result<Self, Fault> {
        let (mut granted, mut near) = (BTreeSet::new(), None);
        if let Who::User { name, .. } = &who {
            let mut own = Near { user: name.clone(), ..Near::default() };
            for grantee in query.grantees_of(name)? {
                for place in query.places_of(&grantee)? {
                    match place {
                        Place::Image(id) => {
                            granted.extend(query.image(id)?.map(|image| image.name));
                        }
                        Place::Project(project) => {
                            own.projects.insert(project);
                        }
                        Place::Organization(_) | Place::Group { .. } => {}
                    }
                }
                if let Grantee::Organization(organization) = grantee {
                    own.organizations.insert(organization);
                }
            }
            // Others see all there is.
            near = query.user(name)?.filter(|user| user.role == UserRole::User).map(|_| own);
        }
        let mut held_in = None;
        if let Who::Robot(name) = &who
            && let Some(robot) = query.robot(name)?
            && !robot.repositories.is_empty()
        {
            granted.extend(robot.repositories);
            held_in = Some(name.project.clone());
        }
        Ok(Self { query, who, granted, near, held_in, project: None })
    }

    /// # Errors
    /// Where the rows cannot be read.
    pub fn shows(&mut self, name: &RepositoryName) -> Result<bool, Fault> {
        Ok(self.is_open(name.project())?
            || (self.granted.contains(name) && self.may(What::Repository(name))?))
    }

    /// The names after `after`, at most `size`, and whether there are more.
    ///
    /// # Errors
    /// Where the rows cannot be read.
    pub fn page(
        &mut self,
        after: Option<&str>,
        size: usize,
    ) -> Result<(Vec<RepositoryName>, bool), Fault> {
        let mut page = Vec::new();
        if size == 0 {
            return Ok((page, false));
        }
        let batch = (size + 1).min(BATCH_MAX);
        let mut from = after.map(|name| format!("{name}\0")).unwrap_or_default();
        loop {
            let names = self.query.image_names(&from, batch)?;
            let ended = names.len() < batch;
            from = names.last().map(|name| format!("{name}\0")).unwrap_or(from);
            let mut names = names.into_iter().peekable();
            while let Some(name) = names.next() {
                if self.shows(&name)? {
                    if page.len() == size {
                        return Ok((page, true));
                    }
                    page.push(name);
                } else if let Some(next) = self.after_closed(&name)? {
                    while names.next_if(|name| *name.as_str() < *next).is_some() {}
                    from = from.max(next);
                }
            }
            if ended {
                return Ok((page, false));
            }
        }
    }

    /// Where there may be something to show again, if a whole project is stepped over.
    fn after_closed(&mut self, name: &RepositoryName) -> Result<Option<String>, Fault> {
        let project = name.project();
        let inside = format!("{project}/");
        if !name.as_str().starts_with(&inside) || self.is_open(project.clone())? {
            return Ok(None);
        }
        let later = (Bound::Excluded(name), Bound::Unbounded);
        let granted = self.granted.range(later).next();
        let granted = granted.filter(|name| name.as_str().starts_with(&inside));
        Ok(Some(match granted {
            Some(name) => name.to_string(),
            None => format!("{project}{AFTER_SLASH}"),
        }))
    }

    fn is_open(&mut self, project: ProjectName) -> Result<bool, Fault> {
        if let Some((known, open)) = &self.project
            && *known == project
        {
            return Ok(*open);
        }
        let open = if self.held_in.as_ref() == Some(&project) {
            // Where it is held, it sees as a whole only what everyone does.
            let what = What::Project(&project);
            permission(self.query, &Who::Anonymous, Action::List, what)?.is_allowed()
        } else {
            !self.is_far(&project)? && self.may(What::Project(&project))?
        };
        self.project = Some((project, open));
        Ok(open)
    }

    /// Whether it is closed to the asker, as can be seen at once; `false` says nothing.
    fn is_far(&self, project: &ProjectName) -> Result<bool, Fault> {
        let Some(near) = &self.near else { return Ok(false) };
        if near.projects.contains(project) {
            return Ok(false);
        }
        Ok(self.query.project(project)?.is_some_and(|row| {
            row.visibility != Visibility::Public
                && match &row.owner {
                    Owner::User(owner) => *owner != near.user,
                    Owner::Organization(owner) => !near.organizations.contains(owner),
                }
        }))
    }

    fn may(&self, what: What<'_>) -> Result<bool, Fault> {
        permission(self.query, &self.who, Action::List, what).map(Decision::is_allowed)
    }
}
