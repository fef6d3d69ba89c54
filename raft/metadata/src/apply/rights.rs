//! Organizations, groups, projects, and the rights in them.
//!
//! Invariants: a right's place and grantee are there; the index from grantees to places agrees
//! with the rights; whoever is removed takes all of its rights along, so that somebody who gets
//! the same name later inherits nothing; an organization always has an owner; every image's
//! project has a row.

use shoal_content::{AccountName, ProjectName, RepositoryName};

use super::{Step, Stop};
use crate::command::{Refusal, Response, Subject};
use crate::encryption::KeyOwner;
use crate::key;
use crate::quota::Payer;
use crate::rights::{
    Action, Grant, Grantee, Group, Organization, OrganizationRole, Owner, Place, Project, Right,
    RobotName, Visibility, What, Who, permission,
};
use crate::table::{Fault, Read, Table};

/// Groups and organizations that one user is a member of: each of them is looked at for each
/// decision.
const MEMBERSHIPS_MAX: usize = 256;
const DESCRIPTION_BYTES_MAX: usize = 4096;

fn check_description(text: &str) -> Result<(), Stop> {
    if text.len() > DESCRIPTION_BYTES_MAX {
        let limit = format!("a description has at most {DESCRIPTION_BYTES_MAX} bytes");
        return Err(Refusal::Limit(limit).into());
    }
    Ok(())
}

impl<R: Read> Step<'_, R> {
    pub(super) fn create_organization(
        &mut self,
        organization: &Organization,
        owner: AccountName,
    ) -> Result<Response, Stop> {
        check_description(&organization.description)?;
        if self.query().organization(&organization.name)?.is_some() {
            return Err(Refusal::Exists(Subject::Organization).into());
        }
        let place = Place::Organization(organization.name.clone());
        let owner = Grantee::User(owner);
        self.check_grantee(&owner)?;
        self.check_memberships(&owner)?;
        self.rows.put(Table::Organizations, organization.name.as_str().as_bytes(), organization);
        self.set_right(&place, &owner, Right::Organization(OrganizationRole::Owner))?;
        Ok(Response::Done)
    }

    pub(super) fn remove_organization(&mut self, name: &AccountName) -> Result<Response, Stop> {
        if self.query().organization(name)?.is_none() {
            return Err(Refusal::NotFound(Subject::Organization).into());
        }
        let owner = Owner::Organization(name.clone());
        if let Some(project) = self.query().projects_of(&owner, "", 1)?.first() {
            let by = format!("it owns the project {project}");
            return Err(Refusal::InUse { subject: Subject::Organization, by }.into());
        }
        for group in self.query().groups(name)? {
            self.drop_group(&group)?;
        }
        self.drop_rights_at(&Place::Organization(name.clone()))?;
        self.drop_rights_of(&Grantee::Organization(name.clone()))?;
        self.rows.remove(Table::Organizations, name.as_str().as_bytes());
        self.drop_quota(Payer::Organization(name.clone()));
        Ok(Response::Done)
    }

    pub(super) fn create_group(&mut self, group: &Group) -> Result<Response, Stop> {
        check_description(&group.description)?;
        if self.query().organization(&group.organization)?.is_none() {
            return Err(Refusal::NotFound(Subject::Organization).into());
        }
        if self.query().group(&group.organization, &group.name)?.is_some() {
            return Err(Refusal::Exists(Subject::Group).into());
        }
        self.rows.put(Table::Groups, key::group(&group.organization, &group.name), group);
        Ok(Response::Done)
    }

    pub(super) fn remove_group(
        &mut self,
        organization: &AccountName,
        name: &AccountName,
    ) -> Result<Response, Stop> {
        let group = self.query().group(organization, name)?;
        self.drop_group(&group.ok_or(Refusal::NotFound(Subject::Group))?)?;
        Ok(Response::Done)
    }

    fn drop_group(&mut self, group: &Group) -> Result<(), Fault> {
        let Group { organization, name, .. } = group.clone();
        self.rows.remove(Table::Groups, key::group(&organization, &name));
        let place = Place::Group { organization: organization.clone(), group: name.clone() };
        self.drop_rights_at(&place)?;
        self.drop_quota(Payer::Group { organization: organization.clone(), group: name.clone() });
        self.drop_rights_of(&Grantee::Group { organization, group: name })
    }

    pub(super) fn create_project(&mut self, project: &Project) -> Result<Response, Stop> {
        check_description(&project.description)?;
        if self.query().project(&project.name)?.is_some() {
            return Err(Refusal::Exists(Subject::Project).into());
        }
        self.check_owner(project)?;
        if let Owner::User(owner) = &project.owner
            && !owner.is_empty()
            && self.query().user(owner)?.is_none()
        {
            return Err(Refusal::NotFound(Subject::User).into());
        }
        self.put_project(project)?;
        Ok(Response::Done)
    }

    fn check_owner(&self, project: &Project) -> Result<(), Stop> {
        match &project.owner {
            Owner::Organization(name) if self.query().organization(name)?.is_none() => {
                Err(Refusal::NotFound(Subject::Organization).into())
            }
            Owner::User(_) if project.visibility == Visibility::Organization => {
                Err(Refusal::WrongRight.into())
            }
            _ => Ok(()),
        }
    }

    /// Somebody who gets a name later does not get the projects of who had it before: they are
    /// nobody's until an administrator gives them away.
    pub(super) fn disown_projects_of(&mut self, user: &str) -> Result<(), Fault> {
        let owner = Owner::User(user.to_owned());
        for name in self.query().projects_of(&owner, "", usize::MAX)? {
            let missing = Fault::Contradiction("an index names no project");
            let project = self.query().project(&name)?.ok_or(missing)?;
            self.put_project(&Project { owner: Owner::User(String::new()), ..project })?;
        }
        Ok(())
    }

    fn put_project(&mut self, project: &Project) -> Result<(), Fault> {
        let old = self.query().project(&project.name)?;
        let owner = old.as_ref().map(|old| &old.owner);
        self.move_project(&project.name, owner, Some(&project.owner))?;
        self.move_owner(&project.name, owner, Some(&project.owner))?;
        self.move_audience(&project.name, old.as_ref(), Some(project))?;
        self.rows.put(Table::Projects, project.name.as_str().as_bytes(), project);
        Ok(())
    }

    /// The project that a new image is made in. Where there is none it comes to be, private and
    /// the owner's.
    pub(super) fn enter_project(
        &mut self,
        repository: &RepositoryName,
        owner: &str,
    ) -> Result<(), Stop> {
        self.check_pusher(repository, owner)?;
        let name = repository.project();
        if self.query().project(&name)?.is_none() {
            self.put_project(&Project {
                name,
                owner: Owner::User(owner.to_owned()),
                visibility: Visibility::Private,
                description: String::new(),
                created_at: self.at,
                updated_at: self.at,
            })?;
        }
        Ok(())
    }

    /// Whether an account may push there now. Since the request was looked at, somebody else may
    /// have made the project, and the account, or its right, may be gone.
    pub(super) fn check_pusher(
        &self,
        repository: &RepositoryName,
        owner: &str,
    ) -> Result<(), Stop> {
        let who = match owner.parse::<RobotName>() {
            Ok(robot) => Who::Robot(robot),
            Err(_) => Who::User { name: owner.to_owned(), scopes: None },
        };
        let decision = permission(self.query(), &who, Action::Push, What::Repository(repository))?;
        if decision.is_allowed() { Ok(()) } else { Err(Refusal::NotYours.into()) }
    }

    pub(super) fn update_project(
        &mut self,
        name: &ProjectName,
        visibility: Visibility,
        description: String,
        owner: Option<Owner>,
    ) -> Result<Response, Stop> {
        check_description(&description)?;
        let project = self.query().project(name)?;
        let mut project = project.ok_or(Refusal::NotFound(Subject::Project))?;
        project.visibility = visibility;
        project.description = description;
        project.updated_at = self.at;
        if let Some(owner) = owner {
            if let Owner::User(name) = &owner
                && self.query().user(name)?.is_none()
            {
                return Err(Refusal::NotFound(Subject::User).into());
            }
            project.owner = owner;
        }
        self.check_owner(&project)?;
        self.put_project(&project)?;
        Ok(Response::Done)
    }

    pub(super) fn remove_project(&mut self, name: &ProjectName) -> Result<Response, Stop> {
        let project = self.query().project(name)?;
        let project = project.ok_or(Refusal::NotFound(Subject::Project))?;
        if let Some(image) = self.query().images_of(name, None, 1)?.first() {
            let by = format!("it has the image {}", image.name);
            return Err(Refusal::InUse { subject: Subject::Project, by }.into());
        }
        if let Some((image, _)) = self.query().deleted_images_of(name)?.first() {
            let by = format!("it has the deleted image {}; restore or purge it", image.name);
            return Err(Refusal::InUse { subject: Subject::Project, by }.into());
        }
        for robot in self.query().robots(name)? {
            self.rows.remove(Table::Robots, key::robot(&robot.name));
        }
        self.drop_workload_rules(name, None)?;
        self.drop_rights_at(&Place::Project(name.clone()))?;
        self.drop_policy(name);
        self.move_project(name, Some(&project.owner), None)?;
        self.move_owner(name, Some(&project.owner), None)?;
        self.move_audience(name, Some(&project), None)?;
        self.release_reservations_in(name)?;
        self.drop_quota(Payer::Project(name.clone()));
        self.retire_data_keys(&KeyOwner::Project(name.clone()))?;
        self.rows.remove(Table::Projects, name.as_str().as_bytes());
        Ok(Response::Done)
    }

    pub(super) fn put_right(
        &mut self,
        place: &Place,
        grantee: &Grantee,
        right: Right,
    ) -> Result<Response, Stop> {
        if !right.fits(place, grantee) {
            return Err(Refusal::WrongRight.into());
        }
        self.check_place_of_right(place)?;
        self.check_grantee(grantee)?;
        let old = self.query().right(place, grantee)?;
        match place {
            Place::Organization(_) if right != Right::Organization(OrganizationRole::Owner) => {
                self.check_another_owner(place, grantee, old)?;
            }
            Place::Group { organization, .. } => {
                let Grantee::User(user) = grantee else { return Err(Refusal::WrongRight.into()) };
                if self.query().organization_role(organization, user.as_str())?.is_none() {
                    return Err(Refusal::NotFound(Subject::User).into());
                }
            }
            _ => {}
        }
        if old.is_none() && matches!(place, Place::Organization(_) | Place::Group { .. }) {
            self.check_memberships(grantee)?;
        }
        self.set_right(place, grantee, right)?;
        Ok(Response::Done)
    }

    /// Who leaves an organization leaves its groups.
    pub(super) fn remove_right(
        &mut self,
        place: &Place,
        grantee: &Grantee,
    ) -> Result<Response, Stop> {
        let old = self.query().right(place, grantee)?;
        if old.is_none() {
            return Err(Refusal::NotFound(Subject::Right).into());
        }
        self.check_another_owner(place, grantee, old)?;
        if let Place::Organization(left) = place {
            for other in self.query().places_of(grantee)? {
                if matches!(&other, Place::Group { organization, .. } if organization == left) {
                    self.clear_right(&other, grantee)?;
                }
            }
        }
        self.clear_right(place, grantee)?;
        Ok(Response::Done)
    }

    /// What was given by hand stays: it is not marked.
    pub(super) fn follow_group(
        &mut self,
        organization: AccountName,
        group: AccountName,
        user: AccountName,
        belongs: bool,
    ) -> Result<Response, Stop> {
        let whole = Place::Organization(organization.clone());
        let place = Place::Group { organization: organization.clone(), group };
        let grantee = Grantee::User(user.clone());
        self.check_grantee(&grantee)?;
        let is_in = self.query().right(&place, &grantee)?.is_some();
        if belongs && !is_in {
            self.check_place_of_right(&place)?;
            self.check_memberships(&grantee)?;
            if self.query().right(&whole, &grantee)?.is_none() {
                let member = Right::Organization(OrganizationRole::Member);
                self.set_right(&whole, &grantee, member)?;
                self.rows.mark(Table::MappedMembers, key::right(&whole, &grantee));
            }
            self.set_right(&place, &grantee, Right::Group)?;
        }
        if !belongs {
            if is_in {
                self.clear_right(&place, &grantee)?;
            }
            if self.query().is_left_over(&organization, &user)? {
                self.clear_right(&whole, &grantee)?;
            }
        }
        Ok(Response::Done)
    }

    fn check_place_of_right(&self, place: &Place) -> Result<(), Stop> {
        let query = self.query();
        let (there, subject) = match place {
            Place::Project(name) => (query.project(name)?.is_some(), Subject::Project),
            Place::Image(id) => (query.image(*id)?.is_some(), Subject::Image),
            Place::Organization(name) => {
                (query.organization(name)?.is_some(), Subject::Organization)
            }
            Place::Group { organization, group } => {
                (query.group(organization, group)?.is_some(), Subject::Group)
            }
        };
        if there { Ok(()) } else { Err(Refusal::NotFound(subject).into()) }
    }

    fn check_grantee(&self, grantee: &Grantee) -> Result<(), Stop> {
        let query = self.query();
        let (there, subject) = match grantee {
            Grantee::User(name) => (query.user(name.as_str())?.is_some(), Subject::User),
            Grantee::Organization(name) => {
                (query.organization(name)?.is_some(), Subject::Organization)
            }
            Grantee::Group { organization, group } => {
                (query.group(organization, group)?.is_some(), Subject::Group)
            }
        };
        if there { Ok(()) } else { Err(Refusal::NotFound(subject).into()) }
    }

    fn check_memberships(&self, grantee: &Grantee) -> Result<(), Stop> {
        let Grantee::User(user) = grantee else { return Ok(()) };
        if self.query().grantees_of(user.as_str())?.len() > MEMBERSHIPS_MAX {
            let limit = format!("a user is in at most {MEMBERSHIPS_MAX} groups and organizations");
            return Err(Refusal::Limit(limit).into());
        }
        Ok(())
    }

    /// Refuses where `grantee`'s `old` right at `place` makes it the only owner there.
    fn check_another_owner(
        &self,
        place: &Place,
        grantee: &Grantee,
        old: Option<Right>,
    ) -> Result<(), Stop> {
        let owner = Right::Organization(OrganizationRole::Owner);
        if old != Some(owner) {
            return Ok(());
        }
        let rights = self.query().rights_at(place)?;
        let other = rights.iter().any(|(other, right)| other != grantee && *right == owner);
        if other { Ok(()) } else { Err(Refusal::LastOwner.into()) }
    }

    fn set_right(&mut self, place: &Place, grantee: &Grantee, right: Right) -> Result<(), Fault> {
        let is_new = self.query().right(place, grantee)?.is_none();
        if is_new {
            self.count_member(place, grantee, 1)?;
        }
        if self.keeps_catalog()? {
            let (at, by) = (self.at, self.who.clone());
            let grant = match self.query().grant(place, grantee)? {
                Some(grant) => Grant { changed_at: at, ..grant },
                None if is_new => Grant { given_at: Some(at), given_by: by, changed_at: at },
                None => Grant { given_at: None, given_by: String::new(), changed_at: at },
            };
            self.rows.put(Table::Grants, key::right(place, grantee), &grant);
        }
        self.rows.remove(Table::MappedMembers, key::right(place, grantee));
        self.rows.put(Table::Rights, key::right(place, grantee), &right);
        self.rows.put(Table::GranteePlaces, key::grantee_place(grantee, place), place);
        Ok(())
    }

    fn clear_right(&mut self, place: &Place, grantee: &Grantee) -> Result<(), Fault> {
        for table in [Table::Rights, Table::MappedMembers, Table::Grants] {
            self.rows.remove(table, key::right(place, grantee));
        }
        self.rows.remove(Table::GranteePlaces, key::grantee_place(grantee, place));
        self.count_member(place, grantee, -1)
    }

    /// What a member of a group owns is counted to the group.
    fn count_member(&mut self, place: &Place, grantee: &Grantee, by: i8) -> Result<(), Fault> {
        let (Place::Group { organization, group }, Grantee::User(user)) = (place, grantee) else {
            return Ok(());
        };
        let group = Payer::Group { organization: organization.clone(), group: group.clone() };
        self.move_member(user.as_str(), &group, by)
    }

    pub(super) fn drop_rights_at(&mut self, place: &Place) -> Result<(), Fault> {
        for (grantee, _) in self.query().rights_at(place)? {
            self.clear_right(place, &grantee)?;
        }
        Ok(())
    }

    pub(super) fn drop_rights_of(&mut self, grantee: &Grantee) -> Result<(), Fault> {
        for place in self.query().places_of(grantee)? {
            self.clear_right(&place, grantee)?;
        }
        Ok(())
    }

    /// Refuses where an organization would be left without an owner.
    pub(super) fn check_leaving(&self, grantee: &Grantee) -> Result<(), Stop> {
        for place in self.query().places_of(grantee)? {
            let right = self.query().right(&place, grantee)?;
            self.check_another_owner(&place, grantee, right)?;
        }
        Ok(())
    }
}
