//! Projects and their robots.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use shoal_api::{CreateProject, CreateRobot, Hidden, Project, Robot, RobotCreated, UpdateProject};
use shoal_content::{AccountName, ProjectName};
use shoal_metadata::{
    self as metadata, Action, Command, Fault, Grantee, Owner, Payer, Query, Read, RobotName,
    Visibility, Visible, What,
};

use super::caller::Caller;
use super::input::{self, Body, Path};
use super::members;
use super::part::{Part, PartQuery};
use super::personal_tokens::{end, scope_names, scopes_of};
use super::problem::conflict;
use super::quotas;
use crate::clock::{now, rfc3339};
use crate::http::problem::Problem;
use crate::state::App;

const PATH: &str = "/api/v1/projects";
/// Of a robot's secret, before encoding.
const SECRET_BYTES: usize = 24;

pub(super) fn visibility_name(visibility: Visibility) -> &'static str {
    match visibility {
        Visibility::Public => "public",
        Visibility::Organization => "organization",
        Visibility::Private => "private",
    }
}

pub(super) fn visibility_of(text: &str) -> Result<Visibility, Problem> {
    match text {
        "public" => Ok(Visibility::Public),
        "organization" => Ok(Visibility::Organization),
        "private" => Ok(Visibility::Private),
        _ => {
            let text = "visibility is public, organization or private";
            Err(Problem::bad_request("visibility_invalid", text))
        }
    }
}

/// With what the project holds.
fn shown<R: Read>(query: Query<'_, R>, row: metadata::Project) -> Result<Project, Fault> {
    Ok(Project {
        usage: quotas::usage(query, &Payer::Project(row.name.clone()))?,
        name: row.name,
        owner: match row.owner {
            Owner::User(name) => format!("user:{name}"),
            Owner::Organization(name) => format!("organization:{name}"),
        },
        visibility: visibility_name(row.visibility).to_owned(),
        description: row.description,
        created_at: rfc3339(row.created_at),
        updated_at: rfc3339(row.updated_at),
    })
}

/// Those that the caller may see, by name.
pub async fn list(
    caller: Caller,
    input::Query(wanted): input::Query<PartQuery>,
) -> Result<Part<Project>, Problem> {
    let query = caller.view.query();
    let mut visible = Visible::new(query, caller.who())?;
    let mut rows = visible.projects(&wanted.after, wanted.limit() + 1)?;
    let next = wanted.cut(&mut rows, |row| row.name.to_string());
    let mut found = Vec::new();
    for row in rows {
        // Who may pull what it can name sees the project that it is in.
        if caller.permit(Action::Pull, What::Project(&row.name)).is_ok()
            || caller.permit(Action::List, What::Project(&row.name)).is_ok()
        {
            found.push(shown(query, row)?);
        }
    }
    Ok(Part::new(PATH, &wanted, found, next))
}

pub async fn show(caller: Caller, Path(name): Path<ProjectName>) -> Result<Json<Project>, Problem> {
    let row = members::project(&caller, &name, Action::List)?;
    Ok(Json(shown(caller.view.query(), row)?))
}

pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Body(request): Body<CreateProject>,
) -> Result<(StatusCode, Json<Project>), Problem> {
    let visibility = visibility_of(&request.visibility)?;
    caller.scope(metadata::Scope::Admin)?;
    caller.changes()?;
    let name = request.name;
    let exists = || conflict("project_exists", format!("there is a project {name} already"));
    let owner = match request.organization {
        Some(organization) => {
            members::organization(&caller, &organization, Action::Manage)?;
            Owner::Organization(organization)
        }
        None => Owner::User(caller.person()?.to_owned()),
    };
    // Whoever may make none learns nothing of those that there are.
    if caller.view.query().project(&name)?.is_some() {
        return Err(exists());
    }
    drop(caller);
    let at = now();
    let row = metadata::Project {
        name: name.clone(),
        owner,
        visibility,
        description: request.description,
        created_at: at,
        updated_at: at,
    };
    app.propose(Command::CreateProject(row.clone())).await.map_err(|error| match error {
        shoal_raft::ProposeError::Refused(metadata::Refusal::Exists(_)) => exists(),
        error => error.into(),
    })?;
    let view = app.view().await?;
    Ok((StatusCode::CREATED, Json(shown(view.query(), row)?)))
}

pub async fn update(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<ProjectName>,
    Body(request): Body<UpdateProject>,
) -> Result<Json<Project>, Problem> {
    let row = members::project(&caller, &name, Action::Manage)?;
    let owner = request.owner.as_deref().map(owner_of).transpose()?;
    if owner.is_some() {
        caller.permit(Action::Manage, What::System)?;
    }
    drop(caller);
    let visibility = request.visibility.as_deref().map_or(Ok(row.visibility), visibility_of)?;
    let description = request.description.unwrap_or(row.description);
    let update = Command::UpdateProject { name: name.clone(), visibility, description, owner };
    app.propose(update).await?;
    let view = app.view().await?;
    let row = view.query().project(&name)?;
    let gone =
        || super::problem::missing("project_not_found", format!("there is no project {name}"));
    Ok(Json(shown(view.query(), row.ok_or_else(gone)?)?))
}

fn owner_of(text: &str) -> Result<Owner, Problem> {
    match text.parse() {
        Ok(Grantee::User(name)) => Ok(Owner::User(name.to_string())),
        Ok(Grantee::Organization(name)) => Ok(Owner::Organization(name)),
        _ => {
            let text = "owner is user:NAME or organization:NAME";
            Err(Problem::bad_request("owner_invalid", text))
        }
    }
}

pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<ProjectName>,
) -> Result<StatusCode, Problem> {
    members::project(&caller, &name, Action::Manage)?;
    drop(caller);
    app.propose(Command::RemoveProject { name }).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn shown_robot(row: metadata::Robot) -> Robot {
    Robot {
        name: row.name.to_string(),
        description: row.description,
        scopes: scope_names(&row.scopes),
        repositories: row.repositories,
        created_at: rfc3339(row.created_at),
        created_by: row.created_by,
        expires_at: row.expires_at.map(rfc3339),
    }
}

pub async fn robots(
    caller: Caller,
    Path(name): Path<ProjectName>,
) -> Result<Json<Vec<Robot>>, Problem> {
    members::project(&caller, &name, Action::Manage)?;
    let rows = caller.view.query().robots(&name)?;
    Ok(Json(rows.into_iter().map(shown_robot).collect()))
}

/// Putting a robot that is there gives it a new secret; the old one is no good from then on.
pub async fn put_robot(
    State(app): State<App>,
    caller: Caller,
    Path(project): Path<ProjectName>,
    Body(request): Body<CreateRobot>,
) -> Result<(StatusCode, Json<RobotCreated>), Problem> {
    members::project(&caller, &project, Action::Manage)?;
    let created_by = caller.account()?;
    drop(caller);
    let at = now();
    let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; SECRET_BYTES]>());
    let row = metadata::Robot {
        name: RobotName { project, name: request.name },
        description: request.description,
        secret_hash: *blake3::hash(secret.as_bytes()).as_bytes(),
        scopes: scopes_of(&request.scopes)?,
        repositories: request.repositories,
        created_at: at,
        created_by,
        expires_at: end(at, request.ttl_seconds)?,
    };
    let robot = shown_robot(row.clone());
    app.propose(Command::PutRobot(row)).await?;
    Ok((StatusCode::CREATED, Json(RobotCreated { robot, secret: Hidden(secret) })))
}

pub async fn remove_robot(
    State(app): State<App>,
    caller: Caller,
    Path((project, name)): Path<(ProjectName, AccountName)>,
) -> Result<StatusCode, Problem> {
    members::project(&caller, &project, Action::Manage)?;
    drop(caller);
    app.propose(Command::RemoveRobot(RobotName { project, name })).await?;
    Ok(StatusCode::NO_CONTENT)
}
