//! Keeps projects in their audiences, with how many images they have, and with their owners.
//!
//! Invariant: nothing is written before audiences are kept, so that the rows of a cluster that was
//! founded earlier are the same on every node until [`Command::IndexLists`].
//!
//! [`Command::IndexLists`]: crate::Command::IndexLists

use std::collections::BTreeMap;

use shoal_content::{ProjectName, RepositoryName};

use super::Step;
use crate::key;
use crate::query::{Pages, all_rows};
use crate::rights::{Audience, Owner, Project};
use crate::table::{Fault, Read, Table};
use crate::transaction::decoded;

impl<R: Read> Step<'_, R> {
    /// A project comes to be, changes hands or visibility, or goes.
    pub(super) fn move_audience(
        &mut self,
        name: &ProjectName,
        from: Option<&Project>,
        to: Option<&Project>,
    ) -> Result<(), Fault> {
        let (from, to) = (from.map(Audience::of), to.map(Audience::of));
        if from == to || !self.query().indexes_lists()? {
            return Ok(());
        }
        let mut images = 0;
        if let Some(from) = from {
            images = self.query().images_in(&from, name)?;
            self.rows.remove(Table::ProjectAudiences, key::audience_project(&from, name));
            let left = self.query().images_for(&from)?.checked_sub(images);
            self.put_images_for(&from, left)?;
        }
        if let Some(to) = to {
            self.rows.put(Table::ProjectAudiences, key::audience_project(&to, name), &images);
            let sum = self.query().images_for(&to)?.checked_add(images);
            self.put_images_for(&to, sum)?;
        }
        Ok(())
    }

    /// The same of whose it is.
    pub(super) fn move_owner(
        &mut self,
        name: &ProjectName,
        from: Option<&Owner>,
        to: Option<&Owner>,
    ) -> Result<(), Fault> {
        if from == to || !self.query().indexes_lists()? {
            return Ok(());
        }
        if let Some(from) = from {
            self.rows.remove(Table::OwnerProjects, key::owner_project(from, name));
        }
        if let Some(to) = to {
            self.rows.mark(Table::OwnerProjects, key::owner_project(to, name));
        }
        Ok(())
    }

    /// An image of the project comes to be (`by` is 1) or goes (-1).
    pub(super) fn count_in_audience(&mut self, name: &ProjectName, by: i8) -> Result<(), Fault> {
        if !self.query().indexes_lists()? {
            return Ok(());
        }
        let Some(project) = self.query().project(name)? else {
            return Err(Fault::Contradiction("an image without its project"));
        };
        let audience = Audience::of(&project);
        let images = self.query().images_in(&audience, name)?.checked_add_signed(by.into());
        let images = images.ok_or(Fault::Contradiction("fewer images in a project than none"))?;
        self.rows.put(Table::ProjectAudiences, key::audience_project(&audience, name), &images);
        let sum = self.query().images_for(&audience)?.checked_add_signed(by.into());
        self.put_images_for(&audience, sum)
    }

    fn put_images_for(&mut self, audience: &Audience, images: Option<u64>) -> Result<(), Fault> {
        let key = key::audience_images(audience);
        match images.ok_or(Fault::Contradiction("fewer images for an audience than none"))? {
            0 => self.rows.remove(Table::Counts, key),
            images => self.rows.put(Table::Counts, key, &images),
        }
        Ok(())
    }

    /// Puts all projects into their audiences, and with their owners, anew.
    pub(super) fn index_audiences(&mut self) -> Result<(), Fault> {
        for (table, prefix) in [
            (Table::ProjectAudiences, &b""[..]),
            (Table::OwnerProjects, b""),
            (Table::Counts, key::AUDIENCE_IMAGES),
        ] {
            for (key, _) in all_rows(&self.rows, table, prefix)? {
                self.rows.remove(table, key);
            }
        }
        let mut images: BTreeMap<ProjectName, u64> = BTreeMap::new();
        let mut names = Pages::of(Table::ImageNames, b"");
        while let Some(page) = names.next_page(&self.rows)? {
            for (key, _) in page {
                let name = key::read_text(&key, 0)?.parse::<RepositoryName>();
                let name = name.map_err(|_| Fault::Contradiction("a name that is none"))?;
                *images.entry(name.project()).or_default() += 1;
            }
        }
        let mut sums: BTreeMap<Audience, u64> = BTreeMap::new();
        let mut projects = Pages::of(Table::Projects, b"");
        while let Some(page) = projects.next_page(&self.rows)? {
            for (_, bytes) in page {
                let project: Project = decoded(Table::Projects, &bytes)?;
                let audience = Audience::of(&project);
                let images = images.get(&project.name).copied().unwrap_or(0);
                let key = key::audience_project(&audience, &project.name);
                self.rows.put(Table::ProjectAudiences, key, &images);
                let key = key::owner_project(&project.owner, &project.name);
                self.rows.mark(Table::OwnerProjects, key);
                *sums.entry(audience).or_default() += images;
            }
        }
        for (audience, images) in sums {
            self.put_images_for(&audience, Some(images))?;
        }
        Ok(())
    }
}
