//! `/api/images…`: the paths that other registry managers have, for their scripts.
//!
//! Names have slashes, and the last part of a path is the tag. What they answer is what `/api/v1`
//! answers, and for one image the layers besides: of an index, those of one platform.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use shoal_api::{CompatibleImage, Image, Page};
use shoal_content::{Digest, ImageId, ImageReference, Pin};
use shoal_metadata::{Action, Command, Fault};
use shoal_raft::{ProposeError, View};

use super::caller::Caller;
use super::images::resolved;
use super::input::{Path, Query, count};
use super::listing::{self, ListQuery};
use super::problem::missing;
use crate::clock::rfc3339;
use crate::http::problem::Problem;
use crate::state::App;

/// Indexes within indexes that are looked into.
const INDEXES_MAX: usize = 4;
/// Manifests of one index that are looked for.
const LISTED_MAX: usize = 100;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct SearchQuery {
    #[serde(default)]
    q: String,
    #[serde(default, deserialize_with = "count")]
    page: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    page_size: Option<u64>,
}

/// `GET /api/images/search?q=PART`.
pub async fn search(
    caller: Caller,
    Query(SearchQuery { q, page, page_size }): Query<SearchQuery>,
) -> Result<Json<Page<Image>>, Problem> {
    // Names have no capitals, whatever people type.
    listing::list(caller, Query(ListQuery::named(q.to_lowercase(), page, page_size))).await
}

/// `NAME/TAG`, or `NAME/DIGEST`.
pub fn reference(path: &str) -> Result<ImageReference, Problem> {
    let unknown = || missing("image_not_found", format!("there is no image {path}"));
    let (name, last) = path.rsplit_once('/').ok_or_else(unknown)?;
    let separator = if last.contains(':') { '@' } else { ':' };
    format!("{name}{separator}{last}").parse().map_err(|_| unknown())
}

/// `GET /api/images/NAME/TAG`: one image with its layers.
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(path): Path<String>,
) -> Result<Json<CompatibleImage>, Problem> {
    let reference = reference(&path)?;
    let query = caller.view.query();
    let (image, version) = resolved(&caller.view, &caller.who(), &reference, Action::Pull)?;
    let manifest = query.manifest(image.id, &version.digest)?.unwrap_or_default();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap_or_default();
    let manifest = with_layers(&caller.view, image.id, manifest)?;
    let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
    let bytes = layers.iter().chain([&manifest["config"]]).filter_map(|part| part["size"].as_u64());
    let url = app.config.api_url();
    let host = url.split("://").last().unwrap_or_default();
    let pull_command = format!("docker pull {host}/{reference}");
    Ok(Json(CompatibleImage {
        id: image.id,
        name: image.name,
        tag: match reference.pin {
            Pin::Tag(tag) => Some(tag),
            Pin::Digest(_) => None,
        },
        tags: query.tags_of(image.id, &version.digest)?,
        digest: version.digest,
        media_type: version.media_type,
        // What was never pushed may have any size.
        size: bytes.fold(0, u64::saturating_add),
        config: manifest["config"].clone(),
        layers,
        created_at: rfc3339(version.created_at),
        pull_command,
    }))
}

/// The manifest that has layers: of an index, that of the usual platform, or else the first that is
/// here.
fn with_layers(view: &View, image: ImageId, mut manifest: Value) -> Result<Value, Fault> {
    for _ in 0..INDEXES_MAX {
        match chosen(view, image, &manifest)? {
            Some(listed) => manifest = listed,
            None => break,
        }
    }
    Ok(manifest)
}

fn chosen(view: &View, image: ImageId, index: &Value) -> Result<Option<Value>, Fault> {
    let Some(listed) = index["manifests"].as_array() else { return Ok(None) };
    // BuildKit lists what it says about a manifest beside it, for no platform.
    let mut listed: Vec<&Value> =
        listed.iter().filter(|one| one["platform"]["os"] != "unknown").collect();
    listed.sort_by_key(|one| {
        let platform = &one["platform"];
        !(platform["os"] == "linux" && platform["architecture"] == "amd64")
    });
    for one in listed.into_iter().take(LISTED_MAX) {
        let digest = one["digest"].as_str().and_then(|text| text.parse::<Digest>().ok());
        let Some(digest) = digest else { continue };
        if let Some(manifest) = view.query().manifest(image, &digest)? {
            return Ok(Some(serde_json::from_slice(&manifest).unwrap_or_default()));
        }
    }
    Ok(None)
}

/// `DELETE /api/images/NAME/TAG`: the tag, and with the last one its version. These go in one
/// command, so that both are there after a refusal.
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(path): Path<String>,
) -> Result<StatusCode, Problem> {
    let reference = reference(&path)?;
    caller.account()?;
    let (image, version) = resolved(&caller.view, &caller.who(), &reference, Action::Delete)?;
    let tags = caller.view.query().tags_of(image.id, &version.digest)?;
    drop(caller);
    let (repository, digest) = (image.name, version.digest);
    let whole = Command::DeleteManifest { repository: repository.clone(), digest: digest.clone() };
    match reference.pin {
        Pin::Tag(tag) if tags != [tag.clone()] => {
            app.propose(Command::DeleteTag { repository, tag }).await?;
            // Others may have deleted its other tags meanwhile. This one is gone, whoever needs the
            // version.
            let left = app.view().await?.query().tags_of(image.id, &digest)?;
            if left.is_empty() {
                match app.propose(whole).await {
                    Ok(_) | Err(ProposeError::Refused(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        _ => {
            app.propose(whole).await?;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}
