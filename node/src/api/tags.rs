//! Tags: listed, moved, deleted, rolled back.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use shoal_api::{MoveTag, Page, Rollback, Tag};
use shoal_content::{Digest, ImageId, TagName};
use shoal_metadata::{self as metadata, Action, Command, Fault, Read};

use super::caller::Caller;
use super::images::{existing, no_image};
use super::input::{Body, Path, Query, count};
use super::numbers::number_taken;
use super::problem::conflict;
use super::shown::{self, TAGS_LISTED_MAX};
use super::versions::{by_id, no_version, version};
use super::window::Window;
use crate::http::problem::Problem;
use crate::state::App;

pub(super) const LATEST: &str = "latest";

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TagsQuery {
    #[serde(deserialize_with = "count")]
    page: Option<u64>,
    #[serde(deserialize_with = "count")]
    page_size: Option<u64>,
    /// `pushed_at`, those that were set last first, which is the default; or `name`.
    sort: Option<String>,
    /// The last name of the page before, of a list by name: only names that come behind it. The counts
    /// are of all.
    after: Option<TagName>,
}

/// `GET …/tags`: those that were set last come first. A page costs what is on it, and a look at the key of
/// each tag before it; of a list by name that is none, behind a name that is given.
pub async fn list(
    caller: Caller,
    Path(id): Path<ImageId>,
    Query(wanted): Query<TagsQuery>,
) -> Result<Json<Page<Tag>>, Problem> {
    let query = caller.view.query();
    let image = existing(&caller, id, Action::List)?;
    let by_name = match wanted.sort.as_deref() {
        Some("name") => true,
        None | Some("" | "pushed_at") if wanted.after.is_none() => false,
        _ => {
            let text = "sort is pushed_at or name; after goes with name";
            return Err(Problem::bad_request("sort_invalid", text));
        }
    };
    let window = Window::new(wanted.page, wanted.page_size);
    let total = match query.tally(id)? {
        Some(tally) => tally.tags,
        None => query.tags(id, None, TAGS_LISTED_MAX)?.len() as u64,
    };
    let names = match usize::try_from(window.skipped()) {
        Ok(skip) if skip < TAGS_LISTED_MAX && window.skipped() < total => match by_name {
            true => query.tags_by_name(id, wanted.after.as_ref(), skip, window.size())?,
            false => query.tags_by_push(id, skip, window.size(), TAGS_LISTED_MAX)?,
        },
        _ => Vec::new(),
    };
    let data = names.into_iter().map(|(name, digest)| shown::tag(query, &image, name, &digest));
    let data = data.collect::<Result<_, Fault>>()?;
    Ok(Json(Page { data, pagination: window.among(total) }))
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
    let said = request.version_id.or(request.image_version_id);
    let found = match (said, &request.version) {
        (Some(wanted), _) => by_id(query, id, &wanted)?.ok_or_else(|| no_version(wanted))?,
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
    check_tag(caller.view.query(), wanted.image, tag, Some(&wanted.digest))
}

fn ambiguous(text: String) -> Problem {
    conflict("tag_names_another_version", text)
}

fn check_tag<R: Read>(
    query: metadata::Query<'_, R>,
    image: ImageId,
    tag: &TagName,
    wanted: Option<&Digest>,
) -> Result<(), Problem> {
    // That one moves by itself, whatever versions are called.
    if tag.as_str() == LATEST {
        return Ok(());
    }
    match query.digest_numbered(image, tag.as_str())? {
        Some(other) if wanted != Some(&other) => {
            Err(ambiguous(format!("{tag} is the number of another version; choose another tag")))
        }
        _ => Ok(()),
    }
}

/// Whether a version that is to come may have such a number and such tags. The command that
/// publishes it looks again.
pub(super) fn check_new<R: Read>(
    query: metadata::Query<'_, R>,
    image: ImageId,
    number: &str,
    tags: &[TagName],
) -> Result<(), Problem> {
    if query.version_by_number(image, number)?.is_some() {
        return Err(number_taken(number));
    }
    for tag in tags {
        check_tag(query, image, tag, None)?;
    }
    for text in [number.to_owned(), format!("v{number}")] {
        let Ok(tag) = text.parse::<TagName>() else { continue };
        if !tags.contains(&tag) && query.tag(image, &tag)?.is_some() {
            let text = format!("{tag} is a tag of another version; choose another number");
            return Err(ambiguous(text));
        }
    }
    Ok(())
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
