//! Who sees an image, and whose it is: its project's to say, as far as that has others, too.
//!
//! Invariant: no image comes to be that is more visible, or another's, than was asked for.
//! Non-goal: what is said of the image itself; see `profile`.

use shoal_content::{AccountName, RepositoryName};
use shoal_metadata::{
    self as metadata, Action, Command, Fault, Owner, Query, Read, Refusal, Scope, Visibility, What,
    Who,
};
use shoal_raft::ProposeError;

use super::caller::Caller;
use super::members;
use super::problem::{conflict, missing};
use super::projects::{visibility_name, visibility_of};
use crate::clock::now;
use crate::http::permit::permit;
use crate::http::problem::Problem;
use crate::state::App;

/// What a request wants; the visibility counts where both are said.
pub fn wanted(text: &str, is_public: Option<bool>) -> Result<Option<Visibility>, Problem> {
    match (text, is_public) {
        ("", Some(true)) => Ok(Some(Visibility::Public)),
        ("", _) => Ok(None),
        (text, _) => visibility_of(text).map(Some),
    }
}

/// The organization that an image is to belong to, if any.
pub fn organization(text: &str) -> Result<Option<AccountName>, Problem> {
    let unknown = || {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
        missing("organization_not_found", format!("there is no organization {shown}"))
    };
    let given = Some(text).filter(|text| !text.is_empty());
    given.map(|text| text.parse::<AccountName>().map_err(|_| unknown())).transpose()
}

/// An image is as visible as its project, which has others, too.
pub fn check(project: &metadata::Project, wanted: Option<Visibility>) -> Result<(), Problem> {
    let Some(wanted) = wanted.filter(|wanted| *wanted != project.visibility) else {
        return Ok(());
    };
    let [is, wanted] = [project.visibility, wanted].map(visibility_name);
    let name = &project.name;
    let text = format!(
        "an image is as visible as its project, and {name} is {is}, not {wanted}: change that of \
         the project (PUT /api/v1/projects/{name}), or make the image in another one"
    );
    Err(conflict("visibility_mismatch", text))
}

/// An image belongs to whom its project does.
pub fn check_owner(
    project: &metadata::Project,
    wanted: Option<&AccountName>,
) -> Result<(), Problem> {
    match (wanted, &project.owner) {
        (Some(wanted), Owner::Organization(owner)) if wanted == owner => Ok(()),
        (None, _) => Ok(()),
        (Some(wanted), _) => {
            let text = format!(
                "an image belongs to whom its project does, and {} does not belong to {wanted}: \
                 make the image in a project that does",
                project.name
            );
            Err(conflict("organization_mismatch", text))
        }
    }
}

/// The project that an image needs which is not in one, where the image alone would not make it so:
/// that is private, and its maker's.
pub fn needed(
    caller: &Caller,
    image: &RepositoryName,
    visibility: Option<Visibility>,
    organization: Option<AccountName>,
) -> Result<Option<metadata::Project>, Problem> {
    let name = image.project();
    let owner = match (organization, visibility) {
        (Some(organization), _) => {
            members::organization(caller, &organization, Action::Manage)?;
            caller.scope(Scope::Admin)?;
            caller.changes()?;
            Owner::Organization(organization)
        }
        (None, Some(Visibility::Organization)) => {
            let text = format!(
                "there is no project {name}, and what this makes is yours, no organization's: say \
                 whose by organization_id, or make it with its organization first (POST \
                 /api/v1/projects)"
            );
            return Err(Problem::bad_request("visibility_invalid", text));
        }
        (None, Some(Visibility::Public)) => Owner::User(caller.account()?),
        (None, Some(Visibility::Private) | None) => return Ok(None),
    };
    let at = now();
    Ok(Some(metadata::Project {
        name,
        owner,
        visibility: visibility.unwrap_or(Visibility::Private),
        description: String::new(),
        created_at: at,
        updated_at: at,
    }))
}

/// Makes the project of an image. Before the image, so that a project which somebody else makes in
/// the meantime stays as it is.
pub async fn make(
    app: &App,
    image: &RepositoryName,
    who: &Who,
    project: metadata::Project,
) -> Result<(), Problem> {
    match app.propose(Command::CreateProject(project.clone())).await {
        Err(ProposeError::Refused(Refusal::Exists(_))) => {
            let view = app.view().await?;
            permit(&view, who, Action::Push, What::Repository(image))?;
            let Some(found) = view.query().project(&project.name)? else { return Ok(()) };
            let organization = match &project.owner {
                Owner::Organization(name) => Some(name),
                Owner::User(_) => None,
            };
            check_owner(&found, organization)?;
            check(&found, Some(project.visibility))
        }
        answer => answer.map(drop).map_err(Problem::from),
    }
}

/// The visibility that the image's project is to get, if another than it has: where it holds this
/// image and nothing else, which are as visible as each other then.
///
/// # Errors
/// Where there are others, the project is not the caller's to open or to close, or it is another
/// organization's than is said.
pub fn change(
    app: &App,
    caller: &Caller,
    image: &metadata::Image,
    wanted: Option<Visibility>,
    organization: Option<&AccountName>,
) -> Result<Option<Visibility>, Problem> {
    let query = caller.view.query();
    let Some(project) = query.project(&image.name.project())? else { return Ok(None) };
    check_owner(&project, organization)?;
    let Err(mismatch) = check(&project, wanted) else { return Ok(None) };
    let is_owned = matches!(project.owner, Owner::Organization(_));
    // What is pulled through comes to be in its project when somebody asks for it.
    let is_filled = app.upstreams.of_project(&project.name).is_some();
    let may = !is_filled && (wanted != Some(Visibility::Organization) || is_owned);
    if may
        && caller.permit(Action::Manage, What::Project(&project.name)).is_ok()
        && is_alone(query, image)?
    {
        return Ok(wanted);
    }
    Err(mismatch)
}

/// Whether its project has no other image, in the trash neither.
fn is_alone<R: Read>(query: Query<'_, R>, image: &metadata::Image) -> Result<bool, Fault> {
    let project = image.name.project();
    let inside = format!("{project}/");
    let names = query.image_names(&inside, 2)?;
    let mut others =
        names.iter().filter(|name| name.as_str().starts_with(&inside) && **name != image.name);
    let whole = project.as_str().parse::<RepositoryName>().ok();
    let whole = whole.filter(|name| *name != image.name);
    let named = whole.map(|name| query.image_by_name(&name)).transpose()?.flatten();
    Ok(others.next().is_none() && named.is_none() && query.deleted_images_of(&project)?.is_empty())
}

/// Gives the project what [`change`] found.
pub async fn set(
    app: &App,
    image: &metadata::Image,
    visibility: Visibility,
) -> Result<(), Problem> {
    let view = app.view().await?;
    let Some(project) = view.query().project(&image.name.project())? else { return Ok(()) };
    // Somebody may have made another one there since.
    if !is_alone(view.query(), image)? {
        return check(&project, Some(visibility));
    }
    drop(view);
    let metadata::Project { name, description, .. } = project;
    app.propose(Command::UpdateProject { name, visibility, description, owner: None }).await?;
    Ok(())
}
