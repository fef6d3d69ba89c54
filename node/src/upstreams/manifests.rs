//! Manifests of upstreams: looked up, fetched, and made versions.

use bytes::Bytes;
use futures::FutureExt;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use shoal_content::{Algorithm, Digest, ImageId, Pin, RepositoryName, TagName, VersionId};
use shoal_formats::parse_manifest;
use shoal_metadata::{Command, ImageKind, MANIFEST_BYTES_MAX, PutManifest};
use shoal_raft::View;
use tracing::{debug, info};
use uuid::Uuid;

use super::{Error, Upstream, Upstreams};
use crate::registry::{digest_of, references};
use crate::state::App;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// All that clients ask for; else some registries convert.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// What is in the rows when a manifest was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Brought {
    /// What was there is what is to be given.
    Known,
    /// The rows may have changed.
    Looked,
    /// What was there is the last that is known, for this reason.
    Stale(String),
}

impl Upstreams {
    /// Sees to it that the rows have what the upstream calls `pin`, as far as it says. `forwarded`
    /// is that another node asks.
    ///
    /// # Errors
    /// Where it has none such, or nothing is known and it does not answer.
    pub async fn bring(
        &self,
        app: &App,
        upstream: &Upstream,
        repository: &RepositoryName,
        pin: &Pin,
        forwarded: bool,
    ) -> Result<Brought, Error> {
        let asked = Asked { all: self, app, upstream, repository, forwarded };
        upstream.path(repository)?;
        // What this waits for is large, and not every request's to carry.
        match pin {
            Pin::Tag(tag) => asked.bring_tag(tag).boxed().await,
            Pin::Digest(digest) => asked.bring_digest(digest).boxed().await,
        }
    }
}

/// One repository that is asked for.
struct Asked<'a> {
    all: &'a Upstreams,
    app: &'a App,
    upstream: &'a Upstream,
    repository: &'a RepositoryName,
    forwarded: bool,
}

impl Asked<'_> {
    async fn bring_tag(&self, tag: &TagName) -> Result<Brought, Error> {
        let (upstream, key) = (self.upstream, (self.repository.clone(), tag.clone()));
        let mut known = known_tag(&self.app.raft.local(), self.repository, tag)?;
        if upstream.tags.contains_key(&key) {
            if known.is_none() {
                // This node's rows may be behind, or it was deleted here since.
                known = known_tag(&self.app.view().await?, self.repository, tag)?;
            }
            if known.is_some() {
                upstream.standing.hit();
                return Ok(Brought::Looked);
            }
            upstream.tags.invalidate(&key).await;
        }
        let pin = (self.repository.clone(), Pin::Tag(tag.clone()));
        if let Some(error) = upstream.absent.get(&pin) {
            return Err(error);
        }
        let look = self.look(tag, known.as_ref()).boxed();
        let looked = upstream.tags.try_get_with(key, look).await;
        let Err(error) = looked else { return Ok(Brought::Looked) };
        let error = Error::clone(&error);
        if error.is_settled() {
            upstream.absent.insert(pin, error.clone());
        }
        match known {
            Some(_) if error.is_of_the_moment() => {
                upstream.standing.gave_stale();
                let name = format!("{}:{tag}", self.repository);
                Ok(Brought::Stale(format!("{name} is as it was last known: {error}")))
            }
            _ => Err(error),
        }
    }

    /// Asks what the tag names now, which registries do not count, and brings that.
    async fn look(&self, tag: &TagName, known: Option<&Digest>) -> Result<(), Error> {
        let response = self.ask(Method::HEAD, tag.as_str()).await?;
        let Some(digest) = content_digest(&response) else {
            let response = self.ask(Method::GET, tag.as_str()).await?;
            let claimed = content_digest(&response);
            return self.keep(response, claimed, Some(tag)).await;
        };
        if known == Some(&digest) {
            self.upstream.standing.hit();
            return Ok(());
        }
        self.bring_digest(&digest).await?;
        let (repository, tag) = (self.repository.clone(), tag.clone());
        self.app.propose(Command::PutTag { repository, tag, digest }).await?;
        Ok(())
    }

    async fn bring_digest(&self, digest: &Digest) -> Result<Brought, Error> {
        if self.holds(digest)? {
            self.upstream.standing.hit();
            return Ok(Brought::Known);
        }
        let pin = (self.repository.clone(), Pin::Digest(digest.clone()));
        if let Some(error) = self.upstream.absent.get(&pin) {
            return Err(error);
        }
        let key = (self.repository.clone(), digest.clone());
        let fetched = self.upstream.fetched.try_get_with(key, self.fetch(digest).boxed()).await;
        fetched.map(|()| Brought::Looked).map_err(|error| {
            let error = Error::clone(&error);
            if error.is_settled() {
                self.upstream.absent.insert(pin, error.clone());
            }
            error
        })
    }

    fn holds(&self, digest: &Digest) -> Result<bool, Error> {
        let view = self.app.raft.local();
        let Some(image) = view.query().image_by_name(self.repository)? else { return Ok(false) };
        Ok(view.query().version(image.id, digest)?.is_some())
    }

    async fn fetch(&self, digest: &Digest) -> Result<(), Error> {
        let keeper = self.all.keeper(self.app, digest).filter(|_| !self.forwarded);
        if let Some(keeper) = keeper {
            let path = format!("/v2/{}/manifests/{digest}", self.repository);
            match self.all.siblings.open(&keeper.api_url, &path, HeaderMap::new()).await {
                Ok(response) if response.status() == StatusCode::OK => return Ok(()),
                // It may not have asked: its rows, settings and what it remembers are its own. What the
                // upstream says then is remembered here, too.
                Ok(response) => {
                    debug!(node = %keeper.id, status = %response.status(), "asked in vain")
                }
                Err(error) => debug!(node = %keeper.id, error, "a node did not answer"),
            }
        }
        let response = self.ask(Method::GET, &digest.to_string()).await?;
        self.keep(response, Some(digest.clone()), None).await
    }

    async fn ask(&self, method: Method, reference: &str) -> Result<Response, Error> {
        if method == Method::GET {
            self.upstream.standing.miss();
        }
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES));
        let tail = format!("manifests/{reference}");
        let path = self.upstream.path(self.repository)?;
        self.upstream.client.ask(method, path, &tail, headers).await
    }

    /// Makes a version of what an upstream sends, if it is what it should be.
    async fn keep(
        &self,
        response: Response,
        wanted: Option<Digest>,
        tag: Option<&TagName>,
    ) -> Result<(), Error> {
        let odd = |why: String| self.upstream.odd(why);
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|text| text.to_str().ok());
        let content_type = content_type.map(str::to_owned);
        let bytes = self.upstream.client.whole(response, MANIFEST_BYTES_MAX).await?;
        let bytes = Bytes::from(bytes);
        let algorithm = wanted.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let digest = digest_of(algorithm, &bytes);
        if let Some(wanted) = wanted.filter(|wanted| *wanted != digest) {
            return Err(odd(format!("its manifest {wanted} is {digest}")));
        }
        let parsed = parse_manifest(content_type.as_deref(), &bytes)
            .map_err(|error| odd(format!("its manifest {digest} cannot be kept: {error}")))?;
        let put = PutManifest {
            repository: self.repository.clone(),
            image: ImageId::from_uuid(Uuid::now_v7()),
            version: VersionId::from_uuid(Uuid::now_v7()),
            kind: ImageKind::Container,
            digest: digest.clone(),
            media_type: parsed.media_type,
            manifest: bytes.to_vec(),
            artifact_type: parsed.artifact_type,
            annotations: parsed.annotations,
            subject: parsed.subject,
            references: references(parsed.references),
            disk: None,
            tags: tag.cloned().into_iter().collect(),
            owner: self.upstream.owner(),
            upload: None,
        };
        self.app.propose(Command::CacheManifest(put)).await?;
        info!(repository = %self.repository, %digest, "a manifest came from an upstream");
        Ok(())
    }
}

impl Upstream {
    /// By whom versions and blobs are said to be made: nobody's account is called so.
    pub(super) fn owner(&self) -> String {
        format!("upstream:{}", self.name)
    }
}

fn known_tag(
    view: &View,
    repository: &RepositoryName,
    tag: &TagName,
) -> Result<Option<Digest>, Error> {
    let Some(image) = view.query().image_by_name(repository)? else { return Ok(None) };
    Ok(view.query().tag(image.id, tag)?)
}

fn content_digest(response: &Response) -> Option<Digest> {
    response.headers().get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}
