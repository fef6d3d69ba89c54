//! Decides who may do what. Every API asks here, and nothing else decides.
//!
//! Invariants: the decision depends on the rows alone, so that every node gives the same one and a
//! right that was taken away is gone with the command that took it; what somebody may not see is
//! refused in the same way as what is not there ([`Denial::hides`]); a token or robot never has
//! more than its scopes.
//! Non-goals: proving who somebody is; quotas; tickets, which are given out after asking here.

use std::collections::BTreeSet;
use std::fmt;

use shoal_content::{AccountName, ProjectName, RepositoryName};

use super::{
    Access, Grantee, OrganizationRole, Owner, Place, Project, ProjectRole, Right, RobotName, Scope,
    Visibility,
};
use crate::query::Query;
use crate::record::UserRole;
use crate::table::{Fault, Read};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    Anonymous,
    /// With the scopes of the token that was brought; `None` is all: a password, a session.
    User {
        name: String,
        scopes: Option<BTreeSet<Scope>>,
    },
    Robot(RobotName),
    /// A host's daemon, which gets whatever it is ordered to spread.
    Agent,
    Node,
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Get content of a repository by its name.
    Pull,
    /// See that it is there, and what is in it.
    List,
    Push,
    Delete,
    /// Change the settings, members and robots of a place, or remove it.
    Manage,
    /// Read the audit trail, and lists of everything.
    Audit,
}

impl Action {
    pub const ALL: [Self; 6] =
        [Self::Pull, Self::List, Self::Push, Self::Delete, Self::Manage, Self::Audit];

    /// The scope that a token needs for it.
    pub fn scope(self) -> Scope {
        match self {
            Self::Pull | Self::List => Scope::Read,
            Self::Push => Scope::Write,
            Self::Delete => Scope::Delete,
            Self::Manage | Self::Audit => Scope::Admin,
        }
    }

    fn reads(self) -> bool {
        matches!(self, Self::Pull | Self::List)
    }
}

/// What it is to be done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What<'a> {
    /// The cluster: nodes, users, storage.
    System,
    Organization(&'a AccountName),
    Project(&'a ProjectName),
    Repository(&'a RepositoryName),
}

/// Why it is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    Administrator,
    Auditor,
    /// A node or an agent, which reads for the cluster.
    Machine,
    Owner,
    Role(ProjectRole),
    Grant(Access),
    Robot,
    /// The project is open to everyone.
    Public,
    /// The project is open to its organization.
    Organization,
    /// There is no such project: it comes to be, and is the asker's.
    NewProject,
}

/// Why it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// Nobody is logged in.
    Unauthenticated,
    /// The asker may not know whether it is there.
    Hidden,
    /// The token lacks a scope.
    Scope(Scope),
    /// The asker sees it, and its role there does not allow this.
    Role,
    /// Only administrators of the cluster may.
    Administrator,
}

impl Denial {
    /// Whether to answer as if the thing was not there.
    pub fn hides(self) -> bool {
        self == Self::Hidden
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unauthenticated => f.write_str("log in first"),
            Self::Hidden => f.write_str("there is no such thing, or it is not yours to see"),
            Self::Scope(scope) => write!(f, "the token lacks the scope {}", scope.as_str()),
            Self::Role => f.write_str("your role there does not allow this"),
            Self::Administrator => f.write_str("only an administrator may do this"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Allowed(Ground),
    Refused(Denial),
}

impl Decision {
    pub fn is_allowed(self) -> bool {
        matches!(self, Self::Allowed(_))
    }
}

/// Whether `who` may do `action` to `what`, and why.
///
/// # Errors
/// [`Fault`] where the rows cannot be read.
pub fn permission<R: Read>(
    query: Query<'_, R>,
    who: &Who,
    action: Action,
    what: What<'_>,
) -> Result<Decision, Fault> {
    match who {
        Who::Node | Who::Agent => Ok(match action.reads() {
            true => Decision::Allowed(Ground::Machine),
            false => Decision::Refused(Denial::Role),
        }),
        Who::Anonymous => anonymous(query, action, what),
        Who::Robot(robot) => robot_may(query, robot, action, what),
        Who::User { name, scopes } => {
            let scope = action.scope();
            let decision = user_may(query, name, action, what)?;
            let lacks = scopes.as_ref().is_some_and(|scopes| !scopes.contains(&scope));
            Ok(match decision {
                // Of what its user may not see, a token must not tell that it is there.
                Decision::Refused(denial) if denial.hides() => decision,
                _ if lacks => Decision::Refused(Denial::Scope(scope)),
                _ => decision,
            })
        }
    }
}

fn anonymous<R: Read>(
    query: Query<'_, R>,
    action: Action,
    what: What<'_>,
) -> Result<Decision, Fault> {
    let open = match project_of(query, what)? {
        Some(project) => project.visibility == Visibility::Public,
        None => false,
    };
    Ok(match open && action.reads() {
        true => Decision::Allowed(Ground::Public),
        false => Decision::Refused(Denial::Unauthenticated),
    })
}

fn robot_may<R: Read>(
    query: Query<'_, R>,
    name: &RobotName,
    action: Action,
    what: What<'_>,
) -> Result<Decision, Fault> {
    if what == What::System {
        return Ok(Decision::Refused(Denial::Administrator));
    }
    let hidden = Decision::Refused(Denial::Hidden);
    let (Some(robot), Some(project)) = (query.robot(name)?, project_of(query, what)?) else {
        return Ok(hidden);
    };
    let at_home = project.name == name.project;
    let own = at_home
        && match what {
            What::Repository(repository) => {
                robot.repositories.is_empty() || robot.repositories.contains(repository)
            }
            What::Project(_) => action == Action::List,
            What::System | What::Organization(_) => false,
        };
    let scope = action.scope();
    Ok(if own && action != Action::Manage && robot.scopes.contains(&scope) {
        Decision::Allowed(Ground::Robot)
    } else if project.visibility == Visibility::Public && action.reads() {
        Decision::Allowed(Ground::Public)
    } else if own {
        Decision::Refused(Denial::Scope(scope))
    } else if project.visibility == Visibility::Public
        || at_home && matches!(what, What::Project(_))
    {
        // It sees that this is there.
        Decision::Refused(Denial::Role)
    } else {
        hidden
    })
}

fn user_may<R: Read>(
    query: Query<'_, R>,
    name: &str,
    action: Action,
    what: What<'_>,
) -> Result<Decision, Fault> {
    let Some(user) = query.user(name)? else {
        return Ok(Decision::Refused(Denial::Unauthenticated));
    };
    match user.role {
        UserRole::Admin => return Ok(Decision::Allowed(Ground::Administrator)),
        UserRole::Auditor if matches!(action, Action::List | Action::Audit) => {
            return Ok(Decision::Allowed(Ground::Auditor));
        }
        UserRole::Auditor | UserRole::User => {}
    }
    let decision = member_may(query, name, action, what)?;
    Ok(match decision {
        // Nothing is hidden from who may list everything.
        Decision::Refused(Denial::Hidden) if user.role == UserRole::Auditor => {
            Decision::Refused(Denial::Role)
        }
        // An auditor changes nothing, whatever it owns or is a member of.
        Decision::Allowed(_) if user.role == UserRole::Auditor && !action.reads() => {
            Decision::Refused(Denial::Role)
        }
        decision => decision,
    })
}

fn member_may<R: Read>(
    query: Query<'_, R>,
    name: &str,
    action: Action,
    what: What<'_>,
) -> Result<Decision, Fault> {
    match what {
        What::System => Ok(Decision::Refused(Denial::Administrator)),
        What::Organization(organization) => {
            let role = query.organization_role(organization, name)?;
            Ok(match (role, action) {
                (Some(OrganizationRole::Owner), _) => Decision::Allowed(Ground::Owner),
                (Some(OrganizationRole::Member), Action::List) => {
                    Decision::Allowed(Ground::Organization)
                }
                (Some(OrganizationRole::Member), _) => Decision::Refused(Denial::Role),
                (None, _) => Decision::Refused(Denial::Hidden),
            })
        }
        What::Project(_) | What::Repository(_) => in_project(query, name, action, what),
    }
}

fn in_project<R: Read>(
    query: Query<'_, R>,
    name: &str,
    action: Action,
    what: What<'_>,
) -> Result<Decision, Fault> {
    let Some(project) = project_of(query, what)? else {
        return Ok(match action {
            Action::Push => Decision::Allowed(Ground::NewProject),
            _ => Decision::Refused(Denial::Hidden),
        });
    };
    let standing = standing(query, name, &project)?;
    if standing.owns {
        return Ok(Decision::Allowed(Ground::Owner));
    }
    if let Some(role) = standing.role
        && role_allows(role, project.visibility, action, what)
    {
        return Ok(Decision::Allowed(Ground::Role(role)));
    }
    let access = match what {
        What::Repository(repository) => granted(query, &standing, repository)?,
        _ => None,
    };
    if let Some(access) = access
        && access_allows(access, action)
    {
        return Ok(Decision::Allowed(Ground::Grant(access)));
    }
    let open = match project.visibility {
        Visibility::Public => Some(Ground::Public),
        Visibility::Organization if standing.in_owning_organization => Some(Ground::Organization),
        Visibility::Organization | Visibility::Private => None,
    };
    let seen = open.is_some() || access.is_some() || standing.role.is_some();
    Ok(match open {
        Some(ground) if action.reads() => Decision::Allowed(ground),
        _ if seen => Decision::Refused(Denial::Role),
        _ => Decision::Refused(Denial::Hidden),
    })
}

fn project_of<R: Read>(query: Query<'_, R>, what: What<'_>) -> Result<Option<Project>, Fault> {
    match what {
        What::Project(name) => query.project(name),
        What::Repository(repository) => query.project(&repository.project()),
        What::System | What::Organization(_) => Ok(None),
    }
}

/// What a role allows, by the requirement's matrix: developers push to what is not public.
fn role_allows(role: ProjectRole, visibility: Visibility, action: Action, what: What<'_>) -> bool {
    // Somebody who may only pull what it can name is not shown a list of names.
    let least = match action {
        Action::Pull => ProjectRole::LimitedGuest,
        Action::List => ProjectRole::Guest,
        Action::Push if matches!(what, What::Project(_)) => ProjectRole::Developer,
        Action::Push if visibility == Visibility::Public => ProjectRole::Maintainer,
        Action::Push => ProjectRole::Developer,
        Action::Delete => ProjectRole::Maintainer,
        Action::Manage | Action::Audit => ProjectRole::Admin,
    };
    role >= least
}

fn access_allows(access: Access, action: Action) -> bool {
    let least = match action {
        Action::Pull | Action::List => Access::Read,
        Action::Push => Access::Write,
        Action::Delete | Action::Manage => Access::Admin,
        Action::Audit => return false,
    };
    access >= least
}

/// What a user is in a project, by itself and by its groups and organizations.
struct Standing {
    owns: bool,
    in_owning_organization: bool,
    role: Option<ProjectRole>,
    /// The user, its groups and its organizations.
    grantees: Vec<Grantee>,
}

fn standing<R: Read>(
    query: Query<'_, R>,
    name: &str,
    project: &Project,
) -> Result<Standing, Fault> {
    let grantees = query.grantees_of(name)?;
    let (owns, in_owning_organization) = match &project.owner {
        Owner::User(owner) => (owner == name, false),
        Owner::Organization(organization) => {
            let role = query.organization_role(organization, name)?;
            (role == Some(OrganizationRole::Owner), role.is_some())
        }
    };
    let place = Place::Project(project.name.clone());
    let mut role = None;
    for grantee in &grantees {
        if let Some(Right::Project(found)) = query.right(&place, grantee)? {
            role = role.max(Some(found));
        }
    }
    Ok(Standing { owns, in_owning_organization, role, grantees })
}

fn granted<R: Read>(
    query: Query<'_, R>,
    standing: &Standing,
    repository: &RepositoryName,
) -> Result<Option<Access>, Fault> {
    let Some(image) = query.image_by_name(repository)? else { return Ok(None) };
    let place = Place::Image(image.id);
    let mut access = None;
    for grantee in &standing.grantees {
        if let Some(Right::Image(found)) = query.right(&place, grantee)? {
            access = access.max(Some(found));
        }
    }
    Ok(access)
}
