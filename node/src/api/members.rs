//! Rights at a place – a project, an image, an organization – as lists of members.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use shoal_api::{GrantPermission, Member, Permission, PermissionHolder, PutMember};
use shoal_content::{AccountName, ImageId, ProjectName};
use shoal_metadata::{
    Access, Action, Command, Fault, Grantee, OrganizationRole, Place, ProjectRole, Query, Read,
    Right, What,
};

use super::caller::Caller;
use super::images::existing;
use super::input::{self, Body, Path};
use super::part::{Part, PartQuery};
use crate::clock::rfc3339;
use crate::http::problem::Problem;
use crate::state::App;

const PROJECT_ROLES: [(&str, ProjectRole); 5] = [
    ("limited-guest", ProjectRole::LimitedGuest),
    ("guest", ProjectRole::Guest),
    ("developer", ProjectRole::Developer),
    ("maintainer", ProjectRole::Maintainer),
    ("admin", ProjectRole::Admin),
];
const ACCESSES: [(&str, Access); 3] =
    [("read", Access::Read), ("write", Access::Write), ("admin", Access::Admin)];
const ORGANIZATION_ROLES: [(&str, OrganizationRole); 2] =
    [("member", OrganizationRole::Member), ("owner", OrganizationRole::Owner)];

fn parse<T: Copy>(known: &[(&str, T)], text: &str) -> Result<T, Problem> {
    let found = known.iter().find(|(name, _)| *name == text);
    found.map(|(_, role)| *role).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        Problem::bad_request("role_invalid", format!("role is one of {}", names.join(", ")))
    })
}

fn name<T: PartialEq>(known: &[(&'static str, T)], role: &T) -> String {
    let found = known.iter().find(|(_, one)| one == role);
    found.map(|(name, _)| *name).unwrap_or_default().to_owned()
}

fn right(place: &Place, text: &str) -> Result<Right, Problem> {
    match place {
        Place::Project(_) => parse(&PROJECT_ROLES, text).map(Right::Project),
        Place::Image(_) => parse(&ACCESSES, text).map(Right::Image),
        Place::Organization(_) => parse(&ORGANIZATION_ROLES, text).map(Right::Organization),
        Place::Group { .. } => Ok(Right::Group),
    }
}

fn role(right: Right) -> String {
    match right {
        Right::Project(role) => name(&PROJECT_ROLES, &role),
        Right::Image(access) => name(&ACCESSES, &access),
        Right::Organization(role) => name(&ORGANIZATION_ROLES, &role),
        Right::Group => "member".to_owned(),
    }
}

fn grantee(text: &str) -> Result<Grantee, Problem> {
    text.parse().map_err(|error: shoal_metadata::GranteeError| {
        Problem::bad_request("grantee_invalid", error.to_string())
    })
}

/// Rights by their grantees, and the one that the next part begins behind.
type RightsPart = (Vec<(Grantee, Right)>, Option<String>);

fn rights<R: Read>(
    query: Query<'_, R>,
    place: &Place,
    wanted: &PartQuery,
) -> Result<RightsPart, Fault> {
    let mut rights = query.rights_after(place, &wanted.after, wanted.limit() + 1)?;
    let next = wanted.cut(&mut rights, |(grantee, _)| grantee.to_string());
    Ok((rights, next))
}

fn listed(
    caller: &Caller,
    place: &Place,
    path: &str,
    wanted: &PartQuery,
) -> Result<Part<Member>, Problem> {
    let (rights, next) = rights(caller.view.query(), place, wanted)?;
    let member = |(grantee, right): (Grantee, Right)| Member {
        grantee: grantee.to_string(),
        role: role(right),
    };
    Ok(Part::new(path, wanted, rights.into_iter().map(member).collect(), next))
}

/// A right for an image, in the words of systems that know kinds of principals.
fn permission<R: Read>(
    query: Query<'_, R>,
    place: &Place,
    grantee: &Grantee,
    right: Right,
) -> Result<Permission, Fault> {
    let grant = query.grant(place, grantee)?;
    let (kind, name) = match grantee {
        Grantee::User(name) => ("user", name.to_string()),
        Grantee::Group { organization, group } => ("user_group", format!("{organization}/{group}")),
        Grantee::Organization(name) => ("organization", name.to_string()),
    };
    let (id, level) = (grantee.to_string(), role(right));
    Ok(Permission {
        id: id.clone(),
        principal_type: kind.to_owned(),
        principal_id: name.clone(),
        image_id: match place {
            Place::Image(id) => Some(*id),
            Place::Project(_) | Place::Organization(_) | Place::Group { .. } => None,
        },
        principal: PermissionHolder { kind: kind.to_owned(), id: name.clone(), name },
        permission_level: level.clone(),
        created_at: grant.as_ref().and_then(|grant| grant.given_at).map(rfc3339),
        updated_at: grant.as_ref().map(|grant| rfc3339(grant.changed_at)),
        created_by: grant.map(|grant| grant.given_by).unwrap_or_default(),
        grantee: id,
        role: level,
    })
}

async fn put(
    app: &App,
    place: Place,
    who: &str,
    request: &PutMember,
) -> Result<Json<Member>, Problem> {
    let (grantee, right) = (grantee(who)?, right(&place, &request.role)?);
    let shown = Member { grantee: grantee.to_string(), role: role(right) };
    app.propose(Command::PutRight { place, grantee, right }).await?;
    Ok(Json(shown))
}

async fn remove(app: &App, place: Place, who: &str) -> Result<StatusCode, Problem> {
    let grantee = grantee(who)?;
    app.propose(Command::RemoveRight { place, grantee }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The project, where the caller may do that with it and it is there.
pub(super) fn project(
    caller: &Caller,
    name: &ProjectName,
    action: Action,
) -> Result<shoal_metadata::Project, Problem> {
    let row = caller.view.query().project(name)?;
    let unknown =
        || super::problem::missing("project_not_found", format!("there is no project {name}"));
    let row = row.ok_or_else(unknown)?;
    caller.permit(action, What::Project(name))?;
    Ok(row)
}

/// The same for an organization.
pub(super) fn organization(
    caller: &Caller,
    name: &AccountName,
    action: Action,
) -> Result<shoal_metadata::Organization, Problem> {
    let row = caller.view.query().organization(name)?;
    let unknown = || {
        super::problem::missing(
            "organization_not_found",
            format!("there is no organization {name}"),
        )
    };
    let row = row.ok_or_else(unknown)?;
    caller.permit(action, What::Organization(name))?;
    Ok(row)
}

pub async fn of_project(
    caller: Caller,
    Path(name): Path<ProjectName>,
    input::Query(wanted): input::Query<PartQuery>,
) -> Result<Part<Member>, Problem> {
    project(&caller, &name, Action::List)?;
    let path = format!("/api/v1/projects/{name}/members");
    listed(&caller, &Place::Project(name), &path, &wanted)
}

pub async fn put_in_project(
    State(app): State<App>,
    caller: Caller,
    Path((name, who)): Path<(ProjectName, String)>,
    Body(request): Body<PutMember>,
) -> Result<Json<Member>, Problem> {
    project(&caller, &name, Action::Manage)?;
    drop(caller);
    put(&app, Place::Project(name), &who, &request).await
}

/// Members may leave by themselves.
pub async fn remove_from_project(
    State(app): State<App>,
    caller: Caller,
    Path((name, who)): Path<(ProjectName, String)>,
) -> Result<StatusCode, Problem> {
    if !is_self(&caller, &who) {
        project(&caller, &name, Action::Manage)?;
    }
    drop(caller);
    remove(&app, Place::Project(name), &who).await
}

fn is_self(caller: &Caller, who: &str) -> bool {
    caller.person().is_ok_and(|name| who == format!("user:{name}"))
        && caller.scope(shoal_metadata::Scope::Admin).is_ok()
}

pub async fn of_image(
    caller: Caller,
    Path(id): Path<ImageId>,
    input::Query(wanted): input::Query<PartQuery>,
) -> Result<Part<Permission>, Problem> {
    existing(&caller, id, Action::List)?;
    let (query, place) = (caller.view.query(), Place::Image(id));
    let (rights, next) = rights(query, &place, &wanted)?;
    let shown = rights.iter().map(|(grantee, right)| permission(query, &place, grantee, *right));
    let shown = shown.collect::<Result<_, Fault>>()?;
    Ok(Part::new(&format!("/api/v1/images/{id}/permissions"), &wanted, shown, next))
}

/// `POST …/permissions`.
pub async fn grant_in_image(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Body(request): Body<GrantPermission>,
) -> Result<(StatusCode, Json<Permission>), Problem> {
    existing(&caller, id, Action::Manage)?;
    drop(caller);
    let kind = match request.principal_type.as_str() {
        "user" => "user",
        "user_group" | "group" => "group",
        "organization" => "organization",
        _ => {
            let text = "principal_type is user, user_group or organization";
            return Err(Problem::bad_request("grantee_invalid", text));
        }
    };
    let grantee = grantee(&format!("{kind}:{}", request.principal_id))?;
    let place = Place::Image(id);
    let right = right(&place, &request.permission_level)?;
    let (at, who) = (place.clone(), grantee.clone());
    app.propose(Command::PutRight { place: at, grantee: who, right }).await?;
    let view = app.view().await?;
    Ok((StatusCode::CREATED, Json(permission(view.query(), &place, &grantee, right)?)))
}

pub async fn put_in_image(
    State(app): State<App>,
    caller: Caller,
    Path((id, who)): Path<(ImageId, String)>,
    Body(request): Body<PutMember>,
) -> Result<Json<Member>, Problem> {
    existing(&caller, id, Action::Manage)?;
    drop(caller);
    put(&app, Place::Image(id), &who, &request).await
}

pub async fn remove_from_image(
    State(app): State<App>,
    caller: Caller,
    Path((id, who)): Path<(ImageId, String)>,
) -> Result<StatusCode, Problem> {
    if !is_self(&caller, &who) {
        existing(&caller, id, Action::Manage)?;
    }
    drop(caller);
    remove(&app, Place::Image(id), &who).await
}

pub async fn of_organization(
    caller: Caller,
    Path(name): Path<AccountName>,
    input::Query(wanted): input::Query<PartQuery>,
) -> Result<Part<Member>, Problem> {
    organization(&caller, &name, Action::List)?;
    let path = format!("/api/v1/organizations/{name}/members");
    listed(&caller, &Place::Organization(name), &path, &wanted)
}

pub async fn put_in_organization(
    State(app): State<App>,
    caller: Caller,
    Path((name, user)): Path<(AccountName, AccountName)>,
    Body(request): Body<PutMember>,
) -> Result<Json<Member>, Problem> {
    organization(&caller, &name, Action::Manage)?;
    drop(caller);
    put(&app, Place::Organization(name), &format!("user:{user}"), &request).await
}

pub async fn remove_from_organization(
    State(app): State<App>,
    caller: Caller,
    Path((name, user)): Path<(AccountName, AccountName)>,
) -> Result<StatusCode, Problem> {
    let who = format!("user:{user}");
    if !is_self(&caller, &who) {
        organization(&caller, &name, Action::Manage)?;
    }
    drop(caller);
    remove(&app, Place::Organization(name), &who).await
}

pub async fn put_in_group(
    State(app): State<App>,
    caller: Caller,
    Path((name, group, user)): Path<(AccountName, AccountName, AccountName)>,
) -> Result<Json<Member>, Problem> {
    organization(&caller, &name, Action::Manage)?;
    drop(caller);
    let request = PutMember { role: "member".to_owned() };
    let place = Place::Group { organization: name, group };
    put(&app, place, &format!("user:{user}"), &request).await
}

pub async fn remove_from_group(
    State(app): State<App>,
    caller: Caller,
    Path((name, group, user)): Path<(AccountName, AccountName, AccountName)>,
) -> Result<StatusCode, Problem> {
    let who = format!("user:{user}");
    if !is_self(&caller, &who) {
        organization(&caller, &name, Action::Manage)?;
    }
    drop(caller);
    remove(&app, Place::Group { organization: name, group }, &who).await
}
