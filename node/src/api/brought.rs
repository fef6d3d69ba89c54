//! Images of other registries, for whoever names one to this API: looked up there first.

use shoal_api::AwaitedContent;
use shoal_content::ImageReference;
use shoal_metadata::{Action, What};

use super::caller::Caller;
use super::problem::{crowded, missing, unavailable};
use crate::http::problem::Problem;
use crate::state::App;
use crate::upstreams::{Brought, Error};

/// The caller, who may pull it and sees what there is of it by now.
pub async fn brought(
    app: &App,
    caller: Caller,
    reference: &ImageReference,
) -> Result<Caller, Problem> {
    if app.upstreams.of(&reference.name).is_none() {
        return Ok(caller);
    }
    caller.permit(Action::Pull, What::Repository(&reference.name))?;
    bring(app, reference).await?;
    Ok(Caller { view: app.view().await?, ..caller })
}

/// Asks the upstream what the reference is now; gives what is to be said of it.
pub async fn bring(app: &App, reference: &ImageReference) -> Result<Option<String>, Problem> {
    let ImageReference { name, pin } = reference;
    let Some(upstream) = app.upstreams.of(name) else { return Ok(None) };
    let brought = app.upstreams.bring(app, upstream, name, pin, false).await;
    match brought.map_err(|error| problem(&error))? {
        Brought::Stale(notice) => Ok(Some(notice)),
        Brought::Known | Brought::Looked => Ok(None),
    }
}

/// Asks for what is not here of it, for a host of this platform; gives what that has to wait for.
/// `digest` is what the reference is.
pub async fn complete(
    app: &App,
    reference: &ImageReference,
    digest: &shoal_content::Digest,
    platform: Option<&str>,
) -> Result<Option<AwaitedContent>, Problem> {
    let name = &reference.name;
    let Some(upstream) = app.upstreams.of(name) else { return Ok(None) };
    let lacking = app.upstreams.complete(app, upstream, name, digest, platform).await;
    let lacking = lacking.map_err(|error| problem(&error))?;
    Ok((lacking.blobs > 0).then(|| AwaitedContent {
        from: upstream.name.to_string(),
        blobs: lacking.blobs,
        bytes: lacking.bytes,
        said: upstream.shown().error.map(|(_, text)| text),
    }))
}

fn problem(error: &Error) -> Problem {
    let text = error.to_string();
    match error {
        Error::Unknown(_) | Error::Denied(_) => missing("image_not_found", text),
        Error::Platform { .. } => missing("platform_not_found", text),
        Error::Forbidden(_) => Problem::forbidden(text),
        Error::Limited { after, .. } => crowded(text, *after),
        _ => unavailable(text),
    }
}
