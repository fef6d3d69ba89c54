//! What groups of another issuer's, or of a directory, give somebody here.
//!
//! Invariant: only what the settings name is touched; a role or a membership that was given by hand
//! elsewhere stays. The membership of an organization that one of its groups took comes and goes with
//! the groups (`Command::FollowGroup`).

use std::collections::BTreeMap;

use shoal_content::AccountName;
use shoal_metadata::{self as metadata, Command, Grantee, Place, Refusal, UserRole};
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
    // Several groups there may be one here.
    let mut places: BTreeMap<Place, bool> = BTreeMap::new();
    for (there, place) in mapped {
        *places.entry(place).or_default() |= groups.contains(&there);
    }
    // Joined first: who changes groups stays a member of their organization.
    let (joined, left): (Vec<_>, Vec<_>) = places.into_iter().partition(|(_, belongs)| *belongs);
    for (place, belongs) in joined.into_iter().chain(left) {
        join_or_leave(app, &name, place, belongs).await?;
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
    let Place::Group { organization, group } = place else { return Ok(()) };
    let view = app.view().await?;
    let query = view.query();
    let is_there = query.group(&organization, &group)?.is_some();
    if !is_there {
        // Nobody is kept out for what the settings name and is not here.
        info!(%organization, %group, "a group of the settings is not there");
    }
    let belongs = belongs && is_there;
    let place = Place::Group { organization: organization.clone(), group: group.clone() };
    let is_in = query.right(&place, &Grantee::User(name.clone()))?.is_some();
    let changes = belongs != is_in || (!belongs && query.is_left_over(&organization, name)?);
    drop(view);
    if changes {
        let user = name.clone();
        app.propose(Command::FollowGroup { organization, group, user, belongs }).await?;
    }
    Ok(())
}
