//! Tags: listed, moved, deleted, rolled back.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use shoal_api::{MoveTag, Rollback, Tag};
use shoal_content::{Digest, ImageId, TagKind, TagName};
use shoal_metadata::{self as metadata, Action, Command};

use super::caller::Caller;
use super::images::{existing, no_image};
use super::input::{Body, Path};
use super::problem::conflict;
use super::shown;
use super::versions::{no_version, numbered, version};
use crate::http::problem::Problem;
use crate::state::App;

const LATEST: &str = "latest";

/// `GET …/tags`: those that were set last come first.
pub async fn list(caller: Caller, Path(id): Path<ImageId>) -> Result<Json<Vec<Tag>>, Problem> {
    let image = existing(&caller, id, Action::List)?;
    Ok(Json(shown::tags(caller.view.query(), &image)?))
}

async fn shown_again(
    app: &App,
    id: ImageId,
    tag: TagName,
    digest: &Digest,
) -> Result<Json<Tag>, Problem> {
    let view = app.view().await?;
    let image = view.query().image(id)?.ok_or_else(|| no_image(id))?;
    Ok(Json(shown::tag(view.query(), &image, tag, digest)?))
}

/// `PUT …/tags/{tag}`.
pub async fn put(
    State(app): State<App>,
    caller: Caller,
    Path((id, tag)): Path<(ImageId, TagName)>,
    Body(request): Body<MoveTag>,
) -> Result<Json<Tag>, Problem> {
    caller.account()?;
    let query = caller.view.query();
    let row = existing(&caller, id, Action::Push)?;
    let found = match (request.version_id, &request.version) {
        (Some(wanted), _) => {
            let found = query.version_by_id(wanted)?.filter(|version| version.image == id);
            found.ok_or_else(|| no_version(wanted))?
        }
        (None, Some(wanted)) => version(query, id, wanted)?.ok_or_else(|| no_version(wanted))?,
        (None, None) => {
            let text = "version_id or version says what the tag is to name";
            return Err(Problem::bad_request("version_missing", text));
        }
    };
    check_meaning(&caller, &tag, &found)?;
    drop(caller);
    let digest = found.digest;
    let put = Command::PutTag { repository: row.name, tag: tag.clone(), digest: digest.clone() };
    app.propose(put).await?;
    shown_again(&app, id, tag, &digest).await
}

/// The number of one version is no tag of another: whoever asks for it would get that one.
fn check_meaning(
    caller: &Caller,
    tag: &TagName,
    wanted: &metadata::Version,
) -> Result<(), Problem> {
    if tag.kind() != TagKind::Version {
        return Ok(());
    }
    let other = numbered(caller.view.query(), wanted.image, tag.as_str())?;
    let other = other.filter(|other| other.digest != wanted.digest);
    other.map_or(Ok(()), |other| {
        let text = format!("{tag} is the number of version {}", shown::number(&other));
        Err(conflict("tag_names_another_version", text))
    })
}

/// `DELETE …/tags/{tag}`.
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path((id, tag)): Path<(ImageId, TagName)>,
) -> Result<StatusCode, Problem> {
    caller.account()?;
    let row = existing(&caller, id, Action::Delete)?;
    app.propose(Command::DeleteTag { repository: row.name, tag }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST …/rollback`: moves a tag back, `latest` where none is named, in one command.
pub async fn roll_back(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Body(request): Body<Rollback>,
) -> Result<Json<Tag>, Problem> {
    caller.account()?;
    existing(&caller, id, Action::Push)?;
    let wanted = request.version.as_str();
    let found = version(caller.view.query(), id, wanted)?.ok_or_else(|| no_version(wanted))?;
    let tag = match request.tag {
        Some(tag) => tag,
        None => LATEST.parse().map_err(|_| Problem::bad_request("tag_invalid", LATEST))?,
    };
    check_meaning(&caller, &tag, &found)?;
    drop(caller);
    let to = found.digest;
    app.propose(Command::Rollback { image: id, tag: tag.clone(), to: to.clone() }).await?;
    shown_again(&app, id, tag, &to).await
}
