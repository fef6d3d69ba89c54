//! All of an image, for a host that is to have it whole: what has not come yet is asked for.
//!
//! Of an index that is what the host's platform runs, as a pull would ask for it. Manifests are
//! waited for; blobs come by flights, here or at the nodes that their digests choose, and who wants
//! them asks again.
//!
//! Invariant: what is asked for at once, and how deep, is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt};
use serde::Deserialize;
use shoal_content::{Digest, Pin, RepositoryName};
use shoal_metadata::{Reference, Version, Who};
use shoal_raft::View;

use super::{Error, Upstream, Upstreams, Wanted};
use crate::state::App;

/// Indexes in indexes, this deep.
const DEPTH_MAX: usize = 4;
/// Manifests of one image that a host is to have.
const MANIFESTS_MAX: usize = 64;
/// Blobs of one image that are begun at the same time.
const OPENED_AT_ONCE: usize = 4;
/// Blobs begin to come within this, or the asker is told that they are on their way.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Platforms that a text names.
const NAMED_MAX: usize = 12;

/// What is not here yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lacking {
    pub blobs: u64,
    pub bytes: u64,
}

/// Of an index, as far as it matters.
#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    digest: Digest,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl Platform {
    fn text(&self) -> String {
        format!("{}/{}", self.os, self.architecture)
    }
}

impl Upstreams {
    /// Asks for what the version `digest` lacks here; `platform` is as `linux/amd64`.
    ///
    /// # Errors
    /// What the upstream says instead, that it has nothing for the platform, or why what came could
    /// not be kept.
    pub async fn complete(
        &self,
        app: &App,
        upstream: &Arc<Upstream>,
        repository: &RepositoryName,
        digest: &Digest,
        platform: Option<&str>,
    ) -> Result<Lacking, Error> {
        let key = (repository.clone(), digest.clone(), platform.map(str::to_owned));
        let looking = self.look_through(app, upstream, repository, digest, platform).boxed();
        upstream.lacking.try_get_with(key, looking).await.map_err(|error| Error::clone(&error))
    }

    async fn look_through(
        &self,
        app: &App,
        upstream: &Arc<Upstream>,
        repository: &RepositoryName,
        digest: &Digest,
        platform: Option<&str>,
    ) -> Result<Lacking, Error> {
        let mut wanted = BTreeMap::new();
        let mut seen = BTreeSet::from([digest.clone()]);
        let mut level = vec![digest.clone()];
        for depth in 0.. {
            if depth > DEPTH_MAX || seen.len() > MANIFESTS_MAX {
                return Err(upstream.odd("its index is too large or too deep for a host"));
            }
            let mut next = Vec::new();
            for digest in level {
                let pin = Pin::Digest(digest.clone());
                self.bring(app, upstream, repository, &pin, false).await?;
                let view = app.view().await?;
                let Some((version, awaited)) = version(&view, repository, &digest)? else {
                    return Err(Error::Unknown(upstream.name.to_string()));
                };
                let chosen = match manifest(&view, &version)? {
                    Some(index) => Some(upstream.chosen(&index, platform)?),
                    None => None,
                };
                for reference in version.references.iter().chain(&awaited) {
                    if let Reference::Manifest { digest, .. } = reference
                        && chosen.as_ref().is_none_or(|chosen| chosen.contains(digest))
                        && seen.insert(digest.clone())
                    {
                        next.push(digest.clone());
                    }
                }
                for reference in awaited {
                    if let Reference::Blob { digest, size } = reference {
                        wanted.insert(digest, size);
                    }
                }
            }
            if next.is_empty() {
                break;
            }
            level = next;
        }
        self.bring_blobs(app, upstream, repository, wanted).await
    }

    async fn bring_blobs(
        &self,
        app: &App,
        upstream: &Arc<Upstream>,
        repository: &RepositoryName,
        wanted: BTreeMap<Digest, u64>,
    ) -> Result<Lacking, Error> {
        let mut far = Vec::new();
        for (digest, size) in wanted {
            let wanted = Wanted { repository: repository.clone(), digest, size };
            if upstream.mount(app, &Who::Agent, &wanted).await?.is_none() {
                far.push(wanted);
            }
        }
        let lacking = Lacking {
            blobs: far.len() as u64,
            bytes: far.iter().map(|wanted| wanted.size).fold(0, u64::saturating_add),
        };
        let opening = far.into_iter().map(|wanted| async move {
            if let Some(error) = upstream.absent.get(&wanted.pin()) {
                return Err(error);
            }
            let first = 0..wanted.size.min(1);
            // It goes on coming when nobody reads.
            self.stream(app, upstream, wanted, first, false).await.map(drop)
        });
        let opening = futures::stream::iter(opening).buffer_unordered(OPENED_AT_ONCE);
        match tokio::time::timeout(OPEN_TIMEOUT, opening.try_collect::<()>()).await {
            Ok(opened) => opened.map(|()| lacking),
            Err(_) => Ok(lacking),
        }
    }
}

impl Upstream {
    /// The manifests of `index` that are for `platform`, or for none that it says.
    fn chosen(&self, index: &Index, platform: Option<&str>) -> Result<BTreeSet<Digest>, Error> {
        let fits = |listed: &&Listed| match (&listed.platform, platform) {
            (Some(listed), Some(wanted)) => listed.text() == wanted,
            _ => true,
        };
        let chosen: BTreeSet<Digest> =
            index.manifests.iter().filter(fits).map(|listed| listed.digest.clone()).collect();
        if !chosen.is_empty() || index.manifests.is_empty() {
            return Ok(chosen);
        }
        let listed = index.manifests.iter().filter_map(|listed| listed.platform.as_ref());
        let named: BTreeSet<String> = listed.map(Platform::text).collect();
        let named: Vec<String> = named.into_iter().take(NAMED_MAX).collect();
        Err(Error::Platform {
            wanted: platform.unwrap_or_default().to_owned(),
            named: named.join(", "),
        })
    }
}

fn version(
    view: &View,
    repository: &RepositoryName,
    digest: &Digest,
) -> Result<Option<(Version, Vec<Reference>)>, Error> {
    let query = view.query();
    let Some(image) = query.image_by_name(repository)? else { return Ok(None) };
    let Some(version) = query.version(image.id, digest)? else { return Ok(None) };
    let awaited = query.awaited_by(image.id, digest)?;
    Ok(Some((version, awaited)))
}

/// What an index lists; `None` where the version is none.
fn manifest(view: &View, version: &Version) -> Result<Option<Index>, Error> {
    if !version.media_type.contains("index") && !version.media_type.contains("manifest.list") {
        return Ok(None);
    }
    let bytes = view.query().manifest(version.image, &version.digest)?.unwrap_or_default();
    // It was parsed before it was kept.
    Ok(serde_json::from_slice(&bytes).ok())
}
