//! Questions about rights: who is a member of what, and who may act for whom.

use std::collections::BTreeSet;

use shoal_content::{AccountName, ProjectName, RepositoryName, Timestamp};

use super::{
    Grant, Grantee, Group, Organization, OrganizationRole, PersonalToken, Place, Project, Right,
    Robot, RobotName, WorkloadRule,
};
use crate::key;
use crate::query::Query;
use crate::record::Image;
use crate::table::{Fault, Read, Rows, Table};
use crate::transaction::{decoded, row};

impl<R: Read> Query<'_, R> {
    pub fn project(&self, name: &ProjectName) -> Result<Option<Project>, Fault> {
        row(self.read, Table::Projects, name.as_str().as_bytes())
    }

    /// A page by name, of those after `after`.
    pub fn projects(
        &self,
        after: Option<&ProjectName>,
        limit: usize,
    ) -> Result<Vec<Project>, Fault> {
        self.projects_behind(after.map(ProjectName::as_str).unwrap_or_default(), limit)
    }

    /// The same of those behind a text.
    pub(super) fn projects_behind(&self, text: &str, limit: usize) -> Result<Vec<Project>, Fault> {
        self.page(Table::Projects, b"", text.as_bytes(), limit)
    }

    /// A page of a project's images by name, of those after `after`.
    pub fn images_of(
        &self,
        project: &ProjectName,
        after: Option<&RepositoryName>,
        limit: usize,
    ) -> Result<Vec<Image>, Fault> {
        let whole = self
            .image_named_as(project)?
            .filter(|image| after.is_none_or(|after| image.name > *after));
        let prefix = format!("{project}/");
        let from = after.map(|name| key::after(name.as_str().as_bytes().to_vec()));
        let from = from.filter(|from| from.starts_with(prefix.as_bytes()));
        let from = from.unwrap_or_else(|| prefix.clone().into_bytes());
        let rows = self.read.scan(Table::ImageNames, &from, prefix.as_bytes(), limit)?;
        let mut images: Vec<Image> = whole.into_iter().collect();
        for (_, bytes) in rows {
            let id = decoded(Table::ImageNames, &bytes)?;
            images.push(self.image(id)?.ok_or(Fault::Contradiction("a name without its image"))?);
        }
        images.truncate(limit);
        Ok(images)
    }

    /// The image whose whole name is the project's.
    fn image_named_as(&self, project: &ProjectName) -> Result<Option<Image>, Fault> {
        match project.as_str().parse::<RepositoryName>() {
            Ok(name) => self.image_by_name(&name),
            Err(_) => Ok(None),
        }
    }

    pub fn organization(&self, name: &AccountName) -> Result<Option<Organization>, Fault> {
        row(self.read, Table::Organizations, name.as_str().as_bytes())
    }

    /// A page by name, of those behind the text `after`.
    pub fn organizations_after(
        &self,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Organization>, Fault> {
        self.page(Table::Organizations, b"", after.as_bytes(), limit)
    }

    /// The same of those that a user is a member of.
    pub fn organizations_of(
        &self,
        user: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Organization>, Fault> {
        let mut names: BTreeSet<AccountName> = BTreeSet::new();
        for grantee in self.grantees_of(user)? {
            if let Grantee::Organization(name) = grantee
                && name.as_str() > after
            {
                names.insert(name);
            }
        }
        let rows = names.iter().take(limit).map(|name| self.organization(name));
        Ok(rows.collect::<Result<Vec<_>, Fault>>()?.into_iter().flatten().collect())
    }

    pub fn group(
        &self,
        organization: &AccountName,
        name: &AccountName,
    ) -> Result<Option<Group>, Fault> {
        row(self.read, Table::Groups, &key::group(organization, name))
    }

    /// An organization's groups, by name.
    pub fn groups(&self, organization: &AccountName) -> Result<Vec<Group>, Fault> {
        self.all(Table::Groups, &key::group_prefix(organization))
    }

    /// A page of them, of those behind the text `after`.
    pub fn groups_after(
        &self,
        organization: &AccountName,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Group>, Fault> {
        self.page(Table::Groups, &key::group_prefix(organization), after.as_bytes(), limit)
    }

    /// What `grantee` itself has at `place`.
    pub fn right(&self, place: &Place, grantee: &Grantee) -> Result<Option<Right>, Fault> {
        row(self.read, Table::Rights, &key::right(place, grantee))
    }

    /// When and by whom what `grantee` itself has at `place` was given, as far as that is kept.
    pub fn grant(&self, place: &Place, grantee: &Grantee) -> Result<Option<Grant>, Fault> {
        row(self.read, Table::Grants, &key::right(place, grantee))
    }

    /// Whether a user is a member of an organization only for groups there that it is in no more: what
    /// it is in elsewhere had put it there.
    pub fn is_left_over(
        &self,
        organization: &AccountName,
        user: &AccountName,
    ) -> Result<bool, Fault> {
        let (place, grantee) =
            (Place::Organization(organization.clone()), Grantee::User(user.clone()));
        if self.read.get(Table::MappedMembers, &key::right(&place, &grantee))?.is_none() {
            return Ok(false);
        }
        let is_of_it = |place: &Place| match place {
            Place::Group { organization: of, .. } => of == organization,
            _ => false,
        };
        Ok(!self.places_of(&grantee)?.iter().any(is_of_it))
    }

    /// Everyone who has a right at `place`, by kind and name.
    pub fn rights_at(&self, place: &Place) -> Result<Vec<(Grantee, Right)>, Fault> {
        let prefix = key::place(place);
        granted(self.rows(Table::Rights, &prefix)?, prefix.len())
    }

    /// A page of them, of those behind the text `after` of a grantee.
    pub fn rights_after(
        &self,
        place: &Place,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(Grantee, Right)>, Fault> {
        let prefix = key::place(place);
        let from = key::after(key::join(&[&prefix, after.as_bytes()]));
        granted(self.read.scan(Table::Rights, &from, &prefix, limit)?, prefix.len())
    }

    /// Where `grantee` itself has a right.
    pub fn places_of(&self, grantee: &Grantee) -> Result<Vec<Place>, Fault> {
        let rows = self.rows(Table::GranteePlaces, &key::grantee_prefix(grantee))?;
        rows.iter().map(|(_, bytes)| decoded(Table::GranteePlaces, bytes)).collect()
    }

    /// Some of them, at most `limit`.
    pub fn places_up_to(&self, grantee: &Grantee, limit: usize) -> Result<Vec<Place>, Fault> {
        let prefix = key::grantee_prefix(grantee);
        let rows = self.read.scan(Table::GranteePlaces, &prefix, &prefix, limit)?;
        rows.iter().map(|(_, bytes)| decoded(Table::GranteePlaces, bytes)).collect()
    }

    /// The user, its groups and its organizations: all that it has rights as.
    pub fn grantees_of(&self, user: &str) -> Result<Vec<Grantee>, Fault> {
        let Ok(name) = user.parse::<AccountName>() else { return Ok(Vec::new()) };
        let user = Grantee::User(name);
        let mut grantees = Vec::new();
        for prefix in key::membership_prefixes(&user) {
            for (_, bytes) in self.rows(Table::GranteePlaces, &prefix)? {
                match decoded(Table::GranteePlaces, &bytes)? {
                    Place::Organization(name) => grantees.push(Grantee::Organization(name)),
                    Place::Group { organization, group } => {
                        grantees.push(Grantee::Group { organization, group });
                    }
                    Place::Project(_) | Place::Image(_) => {}
                }
            }
        }
        grantees.push(user);
        Ok(grantees)
    }

    pub fn organization_role(
        &self,
        organization: &AccountName,
        user: &str,
    ) -> Result<Option<OrganizationRole>, Fault> {
        let Ok(user) = user.parse() else { return Ok(None) };
        let place = Place::Organization(organization.clone());
        match self.right(&place, &Grantee::User(user))? {
            Some(Right::Organization(role)) => Ok(Some(role)),
            _ => Ok(None),
        }
    }

    /// Whether the account of that name was there already at `at`: a name may be given again, and
    /// what was done under it before is not its new bearer's.
    pub fn was_there(&self, name: &str, at: Timestamp) -> Result<bool, Fault> {
        let since = match name.parse::<RobotName>() {
            Ok(robot) => self.robot(&robot)?.map(|robot| robot.created_at),
            Err(_) => self.user(name)?.map(|user| user.created_at),
        };
        Ok(since.is_some_and(|since| since <= at))
    }

    pub fn robot(&self, name: &RobotName) -> Result<Option<Robot>, Fault> {
        row(self.read, Table::Robots, &key::robot(name))
    }

    /// A project's robots, by name.
    pub fn robots(&self, project: &ProjectName) -> Result<Vec<Robot>, Fault> {
        self.all(Table::Robots, &key::robot_prefix(project))
    }

    /// A project's, by name.
    pub fn workload_rules(&self, project: &ProjectName) -> Result<Vec<WorkloadRule>, Fault> {
        self.all(Table::WorkloadRules, &key::robot_prefix(project))
    }

    /// The token with this secret, by the BLAKE3 of it.
    pub fn personal_token(&self, hash: &[u8; 32]) -> Result<Option<PersonalToken>, Fault> {
        row(self.read, Table::PersonalTokens, hash)
    }

    /// A user's tokens, by id.
    pub fn personal_tokens(&self, user: &AccountName) -> Result<Vec<PersonalToken>, Fault> {
        let hashes: Vec<[u8; 32]> = self.all(Table::UserTokens, &key::user_tokens(user))?;
        let missing = Fault::Contradiction("an index names no token");
        let tokens: Result<Option<Vec<_>>, Fault> =
            hashes.iter().map(|hash| self.personal_token(hash)).collect();
        tokens?.ok_or(missing)
    }
}

/// Whose rights these are: it stands in their keys behind `skip` bytes.
fn granted(rows: Rows, skip: usize) -> Result<Vec<(Grantee, Right)>, Fault> {
    let right = |(key, bytes): (Vec<u8>, Vec<u8>)| {
        let grantee = key::read_text(&key, skip)?.parse();
        let grantee = grantee.map_err(|_| Fault::Contradiction("a right of nobody"))?;
        Ok((grantee, decoded(Table::Rights, &bytes)?))
    };
    rows.into_iter().map(right).collect()
}
