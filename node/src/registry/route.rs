//! What a path below `/v2/` names. Repository names have slashes, so no router's patterns fit.

use axum::http::{Method, StatusCode, header};
use shoal_content::RepositoryName;

use super::error::RegistryError;

/// A path of the distribution-spec, section "Endpoints". References and digests are parsed by
/// their handlers, since what a malformed one means depends on the method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'a> {
    Base,
    Token,
    Catalogue,
    Tags(RepositoryName),
    Manifest(RepositoryName, &'a str),
    Blob(RepositoryName, &'a str),
    Uploads(RepositoryName),
    Upload(RepositoryName, &'a str),
    Referrers(RepositoryName, &'a str),
}

/// Every endpoint and the methods that it takes. `GET` is `HEAD`, too.
pub const ENDPOINTS: &[(Method, &str)] = &[
    (Method::GET, "/v2/"),
    (Method::GET, "/v2/token"),
    (Method::POST, "/v2/token"),
    (Method::GET, "/v2/_catalog"),
    (Method::GET, "/v2/{name}/tags/list"),
    (Method::GET, "/v2/{name}/manifests/{reference}"),
    (Method::PUT, "/v2/{name}/manifests/{reference}"),
    (Method::DELETE, "/v2/{name}/manifests/{reference}"),
    (Method::GET, "/v2/{name}/blobs/{digest}"),
    (Method::DELETE, "/v2/{name}/blobs/{digest}"),
    (Method::POST, "/v2/{name}/blobs/uploads/"),
    (Method::GET, "/v2/{name}/blobs/uploads/{upload}"),
    (Method::PATCH, "/v2/{name}/blobs/uploads/{upload}"),
    (Method::PUT, "/v2/{name}/blobs/uploads/{upload}"),
    (Method::DELETE, "/v2/{name}/blobs/uploads/{upload}"),
    (Method::GET, "/v2/{name}/referrers/{digest}"),
];

impl<'a> Route<'a> {
    fn endpoint(&self) -> &'static str {
        match self {
            Self::Base => "/v2/",
            Self::Token => "/v2/token",
            Self::Catalogue => "/v2/_catalog",
            Self::Tags(_) => "/v2/{name}/tags/list",
            Self::Manifest(..) => "/v2/{name}/manifests/{reference}",
            Self::Blob(..) => "/v2/{name}/blobs/{digest}",
            Self::Uploads(_) => "/v2/{name}/blobs/uploads/",
            Self::Upload(..) => "/v2/{name}/blobs/uploads/{upload}",
            Self::Referrers(..) => "/v2/{name}/referrers/{digest}",
        }
    }

    /// Whether such a request is in [`ENDPOINTS`].
    pub fn takes(&self, method: &Method) -> bool {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        ENDPOINTS.iter().any(|(known, path)| known == method && *path == self.endpoint())
    }

    /// The methods that it takes, for `Allow`.
    pub fn allowed(&self) -> String {
        let of_this = ENDPOINTS.iter().filter(|(_, path)| *path == self.endpoint());
        let mut names: Vec<&str> = of_this.map(|(method, _)| method.as_str()).collect();
        if names.contains(&Method::GET.as_str()) {
            names.push(Method::HEAD.as_str());
        }
        names.join(", ")
    }

    /// Where deletions are switched off.
    ///
    /// # Errors
    /// 405 where something would go; an upload can be cancelled all the same.
    pub fn check_deletes(&self) -> Result<(), RegistryError> {
        let allowed = match self {
            Self::Manifest(..) => "GET, HEAD, PUT",
            Self::Blob(..) => "GET, HEAD",
            _ => return Ok(()),
        };
        let message = "deletions are switched off at this registry (registry.deletes)";
        let refused = RegistryError::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message);
        Err(refused.with(header::ALLOW, allowed))
    }

    /// Parses the path after `/v2/`.
    ///
    /// # Errors
    /// `NAME_INVALID` for a bad repository, 404 for a path that is none of the specification's.
    pub fn parse(path: &'a str) -> Result<Self, RegistryError> {
        let name = |text: &str| text.parse().map_err(RegistryError::name_invalid);
        match path {
            "" => return Ok(Self::Base),
            "token" => return Ok(Self::Token),
            "_catalog" => return Ok(Self::Catalogue),
            _ => {}
        }
        if let Some(repository) = path.strip_suffix("/tags/list") {
            return Ok(Self::Tags(name(repository)?));
        }
        let trimmed = path.strip_suffix('/').unwrap_or(path);
        if let Some(repository) = trimmed.strip_suffix("/blobs/uploads") {
            return Ok(Self::Uploads(name(repository)?));
        }
        let unknown =
            || RegistryError::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such endpoint");
        let (rest, last) = path.rsplit_once('/').ok_or_else(unknown)?;
        if let Some(repository) = rest.strip_suffix("/blobs/uploads") {
            return Ok(Self::Upload(name(repository)?, last));
        }
        let (repository, kind) = rest.rsplit_once('/').ok_or_else(unknown)?;
        match kind {
            "manifests" => Ok(Self::Manifest(name(repository)?, last)),
            "blobs" => Ok(Self::Blob(name(repository)?, last)),
            "referrers" => Ok(Self::Referrers(name(repository)?, last)),
            _ => Err(unknown()),
        }
    }

    /// The repository that it is about.
    pub fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Self::Base | Self::Token | Self::Catalogue => None,
            Self::Tags(name)
            | Self::Manifest(name, _)
            | Self::Blob(name, _)
            | Self::Uploads(name)
            | Self::Upload(name, _)
            | Self::Referrers(name, _) => Some(name),
        }
    }

    /// The same about what that repository stands for.
    pub fn of(self, meant: impl FnOnce(RepositoryName) -> RepositoryName) -> Self {
        match self {
            Self::Base | Self::Token | Self::Catalogue => self,
            Self::Tags(name) => Self::Tags(meant(name)),
            Self::Manifest(name, reference) => Self::Manifest(meant(name), reference),
            Self::Blob(name, digest) => Self::Blob(meant(name), digest),
            Self::Uploads(name) => Self::Uploads(meant(name)),
            Self::Upload(name, upload) => Self::Upload(meant(name), upload),
            Self::Referrers(name, digest) => Self::Referrers(meant(name), digest),
        }
    }

    /// Whether such a request is part of a push.
    pub fn pushes(&self, method: &Method) -> bool {
        matches!(self, Self::Uploads(_) | Self::Upload(..))
            || matches!(*method, Method::PUT | Method::POST | Method::PATCH)
    }

    /// What the access log calls it.
    pub fn action(&self, method: &Method) -> &'static str {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let deletes = *method == Method::DELETE;
        match self {
            Self::Base => "ping_registry",
            Self::Token => "issue_token",
            Self::Catalogue => "list_repositories",
            Self::Tags(_) => "list_tags",
            Self::Manifest(..) if reads => "pull_manifest",
            Self::Manifest(..) if deletes => "delete_manifest",
            Self::Manifest(..) => "push_manifest",
            Self::Blob(..) if deletes => "delete_blob",
            Self::Blob(..) => "pull_blob",
            Self::Uploads(_) => "begin_upload",
            Self::Upload(..) if reads => "read_upload",
            Self::Upload(..) if deletes => "cancel_upload",
            Self::Upload(..) => "push_blob",
            Self::Referrers(..) => "list_referrers",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_have_slashes_and_the_words_of_the_api() {
        let name = |text: &str| text.parse::<RepositoryName>().unwrap();
        let parsed = |path| Route::parse(path).unwrap();
        assert_eq!(parsed("a/b/c/tags/list"), Route::Tags(name("a/b/c")));
        assert_eq!(parsed("a/manifests/latest"), Route::Manifest(name("a"), "latest"));
        assert_eq!(parsed("a/blobs/uploads/"), Route::Uploads(name("a")));
        assert_eq!(parsed("a/blobs/uploads"), Route::Uploads(name("a")));
        assert_eq!(parsed("a/blobs/uploads/x"), Route::Upload(name("a"), "x"));
        assert_eq!(parsed("a/blobs/sha256:0"), Route::Blob(name("a"), "sha256:0"));
        assert_eq!(
            parsed("blobs/manifests/manifests/v1"),
            Route::Manifest(name("blobs/manifests"), "v1")
        );
        for bad in ["A/manifests/x", "../manifests/x", "a/unknown/x", "manifests/x"] {
            assert!(Route::parse(bad).is_err(), "{bad}");
        }
    }
}
