//! What groups of another issuer's, or of a directory, give somebody here.
//!
//! Invariant: only what the settings name is touched; a role or a membership that was given by hand
//! elsewhere stays.

use shoal_content::AccountName;
use shoal_metadata::{
    self as metadata, Command, Grantee, OrganizationRole, Place, Refusal, Right, UserRole,
};
use shoal_raft::ProposeError;
use tracing::{info, warn};

use crate::http::problem::Problem;
use crate::state::App;

/// Brings the user's role, and the memberships that the settings name, to what the `groups` say.
///
/// # Errors
/// Where it cannot be proposed.
pub async fn follow(
    app: &App,
    mut user: metadata::User,
    groups: &[&str],
    admin_groups: &[String],
    mapped: Vec<(&str, Place)>,
) -> Result<metadata::User, Problem> {
    if !admin_groups.is_empty() {
        let admin = admin_groups.iter().any(|group| groups.contains(&group.as_str()));
        let role = match (admin, user.role) {
            (true, _) => UserRole::Admin,
            (false, UserRole::Admin) => UserRole::User,
            (false, role) => role,
        };
        if role != user.role {
            user = in_role(app, user, role).await?;
        }
    }
    let Ok(name) = user.name.parse::<AccountName>() else { return Ok(user) };
    for (there, place) in mapped {
        join_or_leave(app, &name, place, groups.contains(&there)).await?;
    }
    Ok(user)
}

/// Gives the role, and nothing else of a row that may have changed since it was read.
async fn in_role(
    app: &App,
    user: metadata::User,
    role: UserRole,
) -> Result<metadata::User, Problem> {
    let now = app.view().await?.query().user(&user.name)?.ok_or_else(Problem::unauthorized)?;
    let wanted = metadata::User { role, ..now.clone() };
    match app.propose(Command::PutUser(wanted.clone())).await {
        Ok(_) => Ok(wanted),
        Err(ProposeError::Refused(Refusal::LastAdmin)) => {
            let user = &now.name;
            warn!(user, "no group makes the only administrator one any more; the role is kept");
            Ok(now)
        }
        Err(error) => Err(error.into()),
    }
}

async fn join_or_leave(
    app: &App,
    name: &AccountName,
    place: Place,
    belongs: bool,
) -> Result<(), Problem> {
    let Place::Group { organization, group } = &place else { return Ok(()) };
    let grantee = Grantee::User(name.clone());
    let view = app.view().await?;
    if view.query().group(organization, group)?.is_none() {
        // Nobody is kept out for what the settings name and is not here.
        info!(%organization, %group, "a group of the settings is not there");
        return Ok(());
    }
    let is_in = view.query().right(&place, &grantee)?.is_some();
    let of_organization = Place::Organization(organization.clone());
    let is_member = view.query().right(&of_organization, &grantee)?.is_some();
    drop(view);
    let mut commands = Vec::new();
    match (belongs, is_in) {
        (true, false) => {
            if !is_member {
                let right = Right::Organization(OrganizationRole::Member);
                let (place, grantee) = (of_organization, grantee.clone());
                commands.push(Command::PutRight { place, grantee, right });
            }
            commands.push(Command::PutRight { place, grantee, right: Right::Group });
        }
        (false, true) => commands.push(Command::RemoveRight { place, grantee }),
        _ => {}
    }
    for command in commands {
        app.propose(command).await?;
    }
    Ok(())
}
