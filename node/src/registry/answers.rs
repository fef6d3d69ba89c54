//! The JSON that the registry answers itself, as the distribution-spec has it; what was pushed is
//! given back byte for byte instead.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use shoal_content::{RepositoryName, TagName};

/// Every answer of `/v2` that is no success; there is one error in it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RegistryErrors {
    pub errors: Vec<RegistryProblem>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct RegistryProblem {
    /// For instance `NAME_UNKNOWN`, `MANIFEST_UNKNOWN`, `DENIED`.
    pub code: String,
    pub message: String,
    /// Where a quota stands in the way: which.
    pub detail: Value,
}

/// The same token by both names that clients look for.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RegistryToken {
    #[schemars(extend("format" = "password"))]
    pub token: String,
    #[schemars(extend("format" = "password"))]
    pub access_token: String,
    /// In seconds.
    pub expires_in: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct TagList {
    pub name: RepositoryName,
    /// By name.
    pub tags: Vec<TagName>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Catalogue {
    pub repositories: Vec<RepositoryName>,
}

/// An OCI index of what refers to a digest.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReferrersIndex {
    pub schema_version: u32,
    pub media_type: &'static str,
    /// Descriptors of the OCI image specification.
    pub manifests: Vec<Value>,
}
