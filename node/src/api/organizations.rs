//! Organizations and their groups.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use shoal_api::{CreateGroup, CreateOrganization, Group, Organization};
use shoal_content::AccountName;
use shoal_metadata::{
    self as metadata, Action, Command, Fault, Grantee, Payer, Place, Query, Read, UserRole, What,
};

use super::caller::{Admin, Caller};
use super::input::{self, Body, Path};
use super::part::{Part, PartQuery};
use super::{members, quotas};
use crate::clock::{now, rfc3339};
use crate::http::auth::Principal;
use crate::http::problem::Problem;
use crate::state::App;

/// Behind the group with which so many members are named, a list of groups goes on in another part.
const MEMBERS_NAMED_MAX: usize = 10_000;

fn shown<R: Read>(query: Query<'_, R>, row: metadata::Organization) -> Result<Organization, Fault> {
    let created_at = rfc3339(row.created_at);
    let usage = quotas::usage(query, &Payer::Organization(row.name.clone()))?;
    Ok(Organization { name: row.name, description: row.description, created_at, usage })
}

/// Those that the caller may see, by name.
pub async fn list(
    caller: Caller,
    input::Query(wanted): input::Query<PartQuery>,
) -> Result<Part<Organization>, Problem> {
    let query = caller.view.query();
    let mut rows = match &caller.principal {
        // Of what others have it sees what it is a member of.
        Principal::User { role: UserRole::User, name, .. } => {
            query.organizations_of(name, &wanted.after, wanted.limit() + 1)?
        }
        Principal::Robot(_) => Vec::new(),
        _ => query.organizations_after(&wanted.after, wanted.limit() + 1)?,
    };
    let next = wanted.cut(&mut rows, |row| row.name.to_string());
    rows.retain(|row| caller.permit(Action::List, What::Organization(&row.name)).is_ok());
    let found = rows.into_iter().map(|row| shown(query, row)).collect::<Result<_, Fault>>()?;
    Ok(Part::new("/api/v1/organizations", &wanted, found, next))
}

pub async fn show(
    caller: Caller,
    Path(name): Path<AccountName>,
) -> Result<Json<Organization>, Problem> {
    let row = members::organization(&caller, &name, Action::List)?;
    Ok(Json(shown(caller.view.query(), row)?))
}

pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Body(request): Body<CreateOrganization>,
) -> Result<(StatusCode, Json<Organization>), Problem> {
    caller.permit(Action::Manage, What::System)?;
    let owner = match request.owner {
        Some(owner) => owner,
        None => caller.person()?.parse().map_err(|error: shoal_content::NameError| {
            Problem::bad_request("owner_invalid", error.to_string())
        })?,
    };
    drop(caller);
    let organization = metadata::Organization {
        name: request.name,
        description: request.description,
        created_at: now(),
    };
    let row = organization.clone();
    app.propose(Command::CreateOrganization { organization, owner }).await?;
    let view = app.view().await?;
    Ok((StatusCode::CREATED, Json(shown(view.query(), row)?)))
}

pub async fn remove(
    State(app): State<App>,
    _caller: Admin,
    Path(name): Path<AccountName>,
) -> Result<StatusCode, Problem> {
    app.propose(Command::RemoveOrganization { name }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// By name, each with all of its members.
pub async fn groups(
    caller: Caller,
    Path(name): Path<AccountName>,
    input::Query(wanted): input::Query<PartQuery>,
) -> Result<Part<Group>, Problem> {
    members::organization(&caller, &name, Action::List)?;
    let query = caller.view.query();
    let mut rows = query.groups_after(&name, &wanted.after, wanted.limit() + 1)?;
    let mut next = wanted.cut(&mut rows, |row| row.name.to_string());
    let last = rows.last().map(|row| row.name.clone());
    let (mut shown, mut named) = (Vec::new(), 0);
    for row in rows {
        let place = Place::Group { organization: name.clone(), group: row.name.clone() };
        let members = query.rights_at(&place)?.into_iter();
        let members = members.filter_map(|(grantee, _)| match grantee {
            Grantee::User(user) => Some(user),
            _ => None,
        });
        let members: Vec<_> = members.collect();
        named += members.len();
        let is_last = last.as_ref() == Some(&row.name);
        let cut = (named >= MEMBERS_NAMED_MAX && !is_last).then(|| row.name.to_string());
        shown.push(Group { name: row.name, description: row.description, members });
        if cut.is_some() {
            next = cut;
            break;
        }
    }
    Ok(Part::new(&format!("/api/v1/organizations/{name}/groups"), &wanted, shown, next))
}

pub async fn create_group(
    State(app): State<App>,
    caller: Caller,
    Path(organization): Path<AccountName>,
    Body(request): Body<CreateGroup>,
) -> Result<(StatusCode, Json<Group>), Problem> {
    members::organization(&caller, &organization, Action::Manage)?;
    drop(caller);
    let (name, description) = (request.name, request.description);
    let created =
        Group { name: name.clone(), description: description.clone(), members: Vec::new() };
    let group = metadata::Group { organization, name, description, created_at: now() };
    app.propose(Command::CreateGroup(group)).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

pub async fn remove_group(
    State(app): State<App>,
    caller: Caller,
    Path((organization, name)): Path<(AccountName, AccountName)>,
) -> Result<StatusCode, Problem> {
    members::organization(&caller, &organization, Action::Manage)?;
    drop(caller);
    app.propose(Command::RemoveGroup { organization, name }).await?;
    Ok(StatusCode::NO_CONTENT)
}
