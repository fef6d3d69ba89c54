//! Which images and projects somebody is shown in lists.
//!
//! A page costs what is on it and what its asker has a hand in, whatever there is besides: names are read
//! from one place on, and where a project is closed to the asker, the next place is that of the first name
//! that was granted to it, or of the next project that is open to it. Those stand together by their
//! audiences (see [`Audience`]), and by the rights that were given to the asker. A project that is open and
//! empty costs one look. In a cluster that does not keep audiences yet, each closed project costs one.
//!
//! In byte order `a-b/c` comes before `a/b`: a project's own name, if an image has it, comes before the
//! projects that are called `a-…` and `a.…`, and what is in the project after them.
//!
//! Invariant: what is shown is what [`permission`] allows to list, name by name.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};

use shoal_content::{ProjectName, RepositoryName};

use super::{
    Action, Audience, Decision, Grantee, OrganizationRole, Place, Project, Scope, What, Who,
    permission,
};
use crate::query::Query;
use crate::record::UserRole;
use crate::table::{Fault, Read};

/// Names that are read at once: few where it is not known how many are open, then more.
const BATCH_FIRST: usize = 4;
const BATCH_MAX: usize = 1_000;
/// What follows `/` in byte order.
const AFTER_SLASH: char = '0';

/// What one asker is shown, in one state.
#[derive(Debug)]
pub struct Visible<'a, R: Read> {
    query: Query<'a, R>,
    who: Who,
    reach: Reach,
    /// Whether the next project of an audience can be found.
    is_indexed: bool,
    /// Images that the asker was granted something for itself.
    granted: BTreeSet<RepositoryName>,
    /// Whose projects are open to the asker, each as a whole.
    audiences: Vec<Ahead>,
    /// Names of projects that the asker was given a right in, or a robot is of.
    projects: BTreeSet<String>,
    /// The project of a robot that is held to some repositories in it: those that are granted.
    held_in: Option<ProjectName>,
    /// The project that was looked at last, and whether it is open to the asker.
    project: Option<(ProjectName, bool)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Nothing,
    Everything,
    /// What is granted, and what is in open projects.
    Part,
}

/// The next project of an audience.
#[derive(Debug)]
struct Ahead {
    audience: Audience,
    /// The first one behind a text, once that was looked for.
    known: Option<(String, Option<ProjectName>)>,
}

impl Ahead {
    fn of(audience: Audience) -> Self {
        Self { audience, known: None }
    }

    fn behind<R: Read>(
        &mut self,
        query: Query<'_, R>,
        text: &str,
    ) -> Result<Option<&ProjectName>, Fault> {
        let holds = self.known.as_ref().is_some_and(|(since, next)| {
            since.as_str() <= text && next.as_ref().is_none_or(|next| next.as_str() > text)
        });
        if !holds {
            let next = query.projects_for(&self.audience, text, 1)?.pop();
            self.known = Some((text.to_owned(), next));
        }
        Ok(self.known.as_ref().and_then(|(_, next)| next.as_ref()))
    }
}

impl<'a, R: Read> Visible<'a, R> {
    /// # Errors
    /// Where the rows cannot be read.
    pub fn new(query: Query<'a, R>, who: Who) -> Result<Self, Fault> {
        let mut visible = Self {
            query,
            who: who.clone(),
            reach: Reach::Part,
            is_indexed: query.indexes_lists()?,
            granted: BTreeSet::new(),
            audiences: vec![Ahead::of(Audience::Everyone)],
            projects: BTreeSet::new(),
            held_in: None,
            project: None,
        };
        match who {
            Who::Anonymous => {}
            Who::Agent | Who::Node => visible.reach = Reach::Everything,
            Who::Robot(name) => match query.robot(&name)? {
                None => visible.reach = Reach::Nothing,
                Some(robot) => {
                    visible.projects.insert(name.project.to_string());
                    if !robot.repositories.is_empty() {
                        visible.granted.extend(robot.repositories);
                        visible.held_in = Some(name.project);
                    }
                }
            },
            Who::User { name, scopes } => {
                let reads = scopes.is_none_or(|scopes| scopes.contains(&Scope::Read));
                match query.user(&name)?.filter(|_| reads).map(|user| user.role) {
                    None => visible.reach = Reach::Nothing,
                    Some(UserRole::Admin | UserRole::Auditor) => visible.reach = Reach::Everything,
                    Some(UserRole::User) => visible.take_rights(name)?,
                }
            }
        }
        Ok(visible)
    }

    fn take_rights(&mut self, user: String) -> Result<(), Fault> {
        for grantee in self.query.grantees_of(&user)? {
            for place in self.query.places_of(&grantee)? {
                match place {
                    Place::Image(id) => {
                        self.granted.extend(self.query.live_image(id)?.map(|image| image.name));
                    }
                    Place::Project(project) => {
                        self.projects.insert(project.to_string());
                    }
                    Place::Organization(_) | Place::Group { .. } => {}
                }
            }
            if let Grantee::Organization(organization) = grantee {
                let role = self.query.organization_role(&organization, &user)?;
                if role == Some(OrganizationRole::Owner) {
                    self.audiences.push(Ahead::of(Audience::Owners(organization.clone())));
                }
                self.audiences.push(Ahead::of(Audience::Members(organization)));
            }
        }
        self.audiences.push(Ahead::of(Audience::User(user)));
        Ok(())
    }

    /// # Errors
    /// Where the rows cannot be read.
    pub fn shows(&mut self, name: &RepositoryName) -> Result<bool, Fault> {
        Ok(match self.reach {
            Reach::Nothing => false,
            Reach::Everything => true,
            Reach::Part => {
                self.is_open(&name.project())?
                    || (self.granted.contains(name) && self.may(What::Repository(name))?)
            }
        })
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
        let (mut page, mut more) = (Vec::new(), false);
        if size == 0 {
            return Ok((page, more));
        }
        self.walk(after, |name| {
            if page.len() == size {
                more = true;
                return Ok::<_, Fault>(ControlFlow::Break(()));
            }
            page.push(name);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((page, more))
    }

    /// Gives the names after `after` to `take`, in their order, until it breaks off.
    ///
    /// # Errors
    /// Where the rows cannot be read, and those of `take`.
    pub fn walk<E: From<Fault>>(
        &mut self,
        after: Option<&str>,
        mut take: impl FnMut(RepositoryName) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        if self.reach == Reach::Nothing {
            return Ok(());
        }
        let mut from = after.map(|name| format!("{name}\0")).unwrap_or_default();
        let mut batch = BATCH_FIRST;
        loop {
            let names = self.query.image_names(&from, batch)?;
            let ended = names.len() < batch;
            batch = (2 * batch).min(BATCH_MAX);
            from = names.last().map(|name| format!("{name}\0")).unwrap_or(from);
            let mut names = names.into_iter().peekable();
            while let Some(name) = names.next() {
                if self.shows(&name)? {
                    if take(name)?.is_break() {
                        return Ok(());
                    }
                    continue;
                }
                let Some(next) = self.after_closed(&name)? else { return Ok(()) };
                while names.next_if(|name| *name.as_str() < *next).is_some() {}
                if next > from {
                    (from, batch) = (next, BATCH_FIRST);
                }
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// How many images there are to show, for as much as the asker has a hand in; `None` where audiences
    /// are not kept.
    ///
    /// # Errors
    /// Where the rows cannot be read.
    pub fn count(&mut self) -> Result<Option<u64>, Fault> {
        match self.reach {
            Reach::Nothing => return Ok(Some(0)),
            Reach::Everything => return self.query.image_count().map(Some),
            Reach::Part if !self.is_indexed => return Ok(None),
            Reach::Part => {}
        }
        let mut count = 0;
        for ahead in &self.audiences {
            count += self.query.images_for(&ahead.audience)?;
        }
        for text in self.projects.clone() {
            let Some(project) = self.named(&text)? else { continue };
            let audience = Audience::of(&project);
            if !self.is_for(&audience) && self.is_open(&project.name)? {
                count += self.query.images_in(&audience, &project.name)?;
            }
        }
        for name in self.granted.clone() {
            let is_there = self.query.image_by_name(&name)?.is_some();
            if is_there && !self.is_open(&name.project())? && self.may(What::Repository(&name))? {
                count += 1;
            }
        }
        Ok(Some(count))
    }

    /// Projects by name, of those behind the text `after`, at most `limit`. All that the asker may see or pull from
    /// are among them; others may be, so that each is to be asked for.
    ///
    /// # Errors
    /// Where the rows cannot be read.
    pub fn projects(&mut self, after: &str, limit: usize) -> Result<Vec<Project>, Fault> {
        if self.reach == Reach::Nothing {
            return Ok(Vec::new());
        }
        if self.reach == Reach::Everything {
            return self.query.projects_behind(after, limit);
        }
        if !self.is_indexed {
            return self.projects_among_all(after, limit);
        }
        let mut found = Vec::new();
        let mut last = after.to_owned();
        while found.len() < limit
            && let Some(next) = self.project_behind(&last)?
        {
            found.extend(self.named(&next)?);
            last = next;
        }
        Ok(found)
    }

    /// Where audiences are not kept, each project is asked for here: the last one's name is told to the
    /// asker, who may not know of the others.
    fn projects_among_all(&self, after: &str, limit: usize) -> Result<Vec<Project>, Fault> {
        let (mut found, mut last) = (Vec::new(), after.to_owned());
        while found.len() < limit {
            let page = self.query.projects_behind(&last, BATCH_MAX)?;
            let ended = page.len() < BATCH_MAX;
            last = page.last().map(|project| project.name.to_string()).unwrap_or(last);
            for project in page {
                let pulls = || {
                    let what = What::Project(&project.name);
                    permission(self.query, &self.who, Action::Pull, what)
                };
                let is_seen = self.may(What::Project(&project.name))? || pulls()?.is_allowed();
                if is_seen && found.len() < limit {
                    found.push(project);
                }
            }
            if ended {
                break;
            }
        }
        Ok(found)
    }

    fn named(&self, text: &str) -> Result<Option<Project>, Fault> {
        match text.parse::<ProjectName>() {
            Ok(name) => self.query.project(&name),
            Err(_) => Err(Fault::Contradiction("a right in a project without a name")),
        }
    }

    /// The first project behind a text that the asker may have something to do with.
    fn project_behind(&mut self, text: &str) -> Result<Option<String>, Fault> {
        let later = (Bound::Excluded(text), Bound::Unbounded);
        let mut first = self.projects.range::<str, _>(later).next().cloned();
        for ahead in &mut self.audiences {
            let Some(next) = ahead.behind(self.query, text)? else { continue };
            if first.as_ref().is_none_or(|first| next.as_str() < first.as_str()) {
                first = Some(next.to_string());
            }
        }
        Ok(first)
    }

    /// Where there may be something to show again behind a name of a closed project; `None` is nowhere.
    fn after_closed(&mut self, name: &RepositoryName) -> Result<Option<String>, Fault> {
        let later = (Bound::Excluded(name), Bound::Unbounded);
        let granted = self.granted.range(later).next().map(ToString::to_string);
        let project = name.project();
        if !self.is_indexed {
            let is_inside = name.as_str().len() > project.as_str().len();
            let end = match is_inside {
                true => format!("{project}{AFTER_SLASH}"),
                false => format!("{name}\0"),
            };
            return Ok(granted.into_iter().chain([end]).min());
        }
        let around = self.open_around(&project)?.map(|project| format!("{project}/"));
        let behind = self.project_behind(name.as_str())?;
        Ok([granted, around, behind].into_iter().flatten().min())
    }

    /// The open project whose images come next, of those that begin before the names of `project` and go
    /// on after them: `a` is one of `a-b`. The longer a name, the sooner it goes on.
    fn open_around(&mut self, project: &ProjectName) -> Result<Option<ProjectName>, Fault> {
        let text = project.as_str();
        for (at, _) in text.rmatch_indices(['-', '.']) {
            // Where two stand side by side, there is no such name.
            if let Ok(around) = text[..at].parse::<ProjectName>()
                && self.is_open(&around)?
            {
                return Ok(Some(around));
            }
        }
        Ok(None)
    }

    fn is_for(&self, audience: &Audience) -> bool {
        self.audiences.iter().any(|ahead| ahead.audience == *audience)
    }

    fn is_open(&mut self, project: &ProjectName) -> Result<bool, Fault> {
        if let Some((known, open)) = &self.project
            && known == project
        {
            return Ok(*open);
        }
        let open = match self.query.project(project)? {
            None => false,
            Some(row) if self.is_for(&Audience::of(&row)) => true,
            // Where a robot is held, it sees as a whole only what everyone does.
            Some(_) => {
                self.projects.contains(project.as_str())
                    && self.held_in.as_ref() != Some(project)
                    && self.may(What::Project(project))?
            }
        };
        self.project = Some((project.clone(), open));
        Ok(open)
    }

    fn may(&self, what: What<'_>) -> Result<bool, Fault> {
        permission(self.query, &self.who, Action::List, what).map(Decision::is_allowed)
    }
}
