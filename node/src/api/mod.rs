//! The REST API, `/api/v1`, and what of other managers' it answers to: its routes, and nothing else
//! in this file.
//!
//! Invariants: every handler says in its signature who may call it (see `caller`); whatever is not
//! carried out is answered with a `Problem`; a handler reads the metadata linearizably unless its
//! documentation says why not.
//! Non-goals: `/v2` (see `registry`), TLS and limits of connections (see `http`).

mod agents;
mod audit;
mod authority;
mod backup;
mod blocks;
mod brought;
mod caller;
mod cluster;
mod compatible;
mod deployments;
pub mod document;
mod download;
mod encryption;
mod failure;
mod host;
mod identities;
mod images;
mod imports;
mod input;
mod instances;
mod keys;
mod leaving;
mod listing;
mod members;
mod numbers;
mod oidc;
mod organizations;
mod part;
mod passkeys;
mod personal_tokens;
mod policy;
mod problem;
mod profile;
mod projects;
mod quotas;
mod reception;
mod recovery;
mod registration;
mod scans;
mod second_factor;
mod services;
mod session;
mod shown;
mod stars;
mod storage;
mod tagged;
mod tags;
mod tokens;
mod uploads;
mod upstreams;
mod users;
mod versions;
mod visibility;
mod warm_ups;
mod window;
mod workload;

use axum::extract::DefaultBodyLimit;

use crate::http::routes::{Routes, delete, get, patch, post, put};

/// The parsers, for `fuzz`.
pub(crate) mod fuzzed {
    pub use super::compatible::reference as compatible_reference;
    pub use super::listing::check_filters;
    pub use super::tokens::check_join_token;
}

pub use services::{Services, Upkeep};

/// The longest body of a request that is no part of an upload.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// All routes of `/api/v1`, with their full paths.
pub fn router() -> Routes {
    let uploads = "/api/v1/images/{image}/versions/upload";
    // Parts have their own bound, in memory and length.
    let parts = Routes::new()
        .route(&format!("{uploads}/{{upload}}/chunks/{{part}}"), put(uploads::put_part))
        .body_limit(DefaultBodyLimit::disable());
    Routes::new()
        .route("/api/v1/auth/login", post(session::login))
        .route("/api/v1/auth/login/code", post(session::login_code))
        .route("/api/v1/auth/register", post(registration::register))
        .route("/api/v1/auth/passkey", post(passkeys::begin_login))
        .route("/api/v1/auth/passkey/answer", post(passkeys::end_login))
        .route("/api/v1/auth/oidc/login", get(oidc::begin))
        .route("/api/v1/auth/oidc/callback", get(oidc::end))
        .route("/api/v1/auth/oidc/redeem", post(oidc::redeem))
        .route("/api/v1/auth/workload", post(workload::exchange))
        .route("/api/v1/auth/refresh", post(session::refresh))
        .route("/api/v1/auth/logout", post(session::logout))
        .route("/api/v1/auth/me", get(session::me))
        .merge(catalog())
        .route("/api/images", get(listing::list))
        .route("/api/images/search", get(compatible::search))
        .route("/api/images/{*path}", get(compatible::show).delete(compatible::delete))
        .route("/api/v1/openapi.json", get(document::json))
        .route("/openapi.json", get(document::json))
        .route("/api/docs", get(document::page))
        .route("/api/v1/resolve", get(images::resolve))
        .route(&format!("{uploads}/init"), post(uploads::init))
        .route(&format!("{uploads}/{{upload}}"), get(uploads::status).delete(uploads::abort))
        .route(&format!("{uploads}/{{upload}}/complete"), post(uploads::complete))
        .route("/api/v1/join-tokens", get(tokens::list).post(tokens::create))
        .route("/api/v1/join-tokens/{token}", delete(tokens::revoke))
        .route("/api/v1/agents", get(agents::list))
        .route("/api/v1/agents/enrol", post(agents::enrol))
        .route("/api/v1/agents/{agent}", delete(agents::remove))
        .route("/api/v1/agents/self/resolve", post(host::resolve))
        .route("/api/v1/agents/self/certificate", post(agents::renew))
        .route("/api/v1/agents/self/delta", post(host::delta))
        .route("/api/v1/agents/self/orders", get(host::orders))
        .route("/api/v1/agents/self/progress", post(host::progress))
        .route("/api/v1/deployments", get(deployments::list).post(deployments::create))
        .route("/api/v1/deployments/{deployment}", get(deployments::show))
        .route("/api/v1/deployments/{deployment}/cancel", post(deployments::cancel))
        .route("/api/v1/deployments/{deployment}/pause", post(deployments::pause))
        .route("/api/v1/deployments/{deployment}/resume", post(deployments::resume))
        .route("/api/v1/deployments/{deployment}/retry", post(deployments::retry))
        .route("/api/v1/deployments/{deployment}/events", get(deployments::events))
        .route("/api/v1/warm-ups", get(warm_ups::list).post(warm_ups::create))
        .route("/api/v1/warm-ups/{warm_up}", get(warm_ups::show).delete(warm_ups::remove))
        .route("/api/v1/cluster", get(cluster::status))
        .route("/api/v1/cluster/join", post(cluster::join))
        .route("/api/v1/cluster/upgrade", post(cluster::upgrade))
        .route("/api/v1/cluster/keys", get(keys::list))
        .route("/api/v1/cluster/keys/{purpose}/rotate", post(keys::rotate))
        .route("/api/v1/cluster/authority", get(authority::status))
        .route("/api/v1/cluster/authority/rotate", post(authority::rotate))
        .route("/api/v1/cluster/encryption", get(encryption::status))
        .route("/api/v1/cluster/encryption/rotate", post(encryption::rotate))
        .route("/api/v1/cluster/nodes/{node}", delete(cluster::remove_node))
        .route("/api/v1/cluster/pulls", post(cluster::write_pulls))
        .route("/api/v1/cluster/reports/{deployment}", get(cluster::reports))
        .route("/api/v1/cluster/streams", get(cluster::streams))
        .merge(people())
        .merge(projects())
        .route("/api/v1/audit", get(audit::search))
        .route("/api/v1/audit/verify", get(audit::verification))
        .route("/api/v1/audit/archives", get(audit::archives))
        .route("/api/v1/audit/archives/{first}", get(audit::archive))
        .route("/api/v1/blocks", get(blocks::list))
        .route("/api/v1/blocks/{*who}", delete(blocks::remove))
        .route("/api/v1/quotas", get(quotas::list))
        .route("/api/v1/quotas/check", post(quotas::check))
        .route("/api/v1/quotas/{*of}", get(quotas::show).put(quotas::put).delete(quotas::remove))
        .route("/api/v1/upstreams", get(upstreams::list))
        .route("/api/v1/storage", get(storage::status))
        .route("/api/v1/storage/uploads", get(storage::uploads))
        .route("/api/v1/storage/uploads/{upload}", delete(storage::abort))
        .route("/api/v1/storage/collect", post(storage::collect))
        .route("/api/v1/storage/compact", post(storage::compact))
        .route("/api/v1/storage/scrub", post(storage::scrub))
        .route("/api/v1/storage/verify", post(storage::verify))
        .route("/api/v1/backup", get(backup::metadata))
        .route("/api/v1/backup/objects/{*key}", get(backup::object))
        .body_limit(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .merge(parts)
}

/// Images, their versions and tags, and who runs them.
fn catalog() -> Routes {
    let image = "/api/v1/images/{image}";
    let version = "/api/v1/images/{image}/versions/{version}";
    let instance = "/api/v1/instances/{instance}";
    Routes::new()
        .route("/api/v1/images", get(listing::list).post(images::create))
        .route(image, get(images::show).put(images::update).delete(images::delete))
        .route(&format!("{image}/restore"), post(images::restore))
        .route(&format!("{image}/star"), put(stars::put).delete(stars::remove))
        .route("/api/v1/user/stars", get(stars::list))
        .route(&format!("{image}/versions"), get(versions::list).post(versions::create))
        .route(&format!("{image}/versions/import"), post(imports::create))
        .route(version, get(versions::show).put(versions::update).delete(versions::delete))
        .route(
            &format!("{version}/deprecate"),
            post(versions::deprecate).delete(versions::undeprecate),
        )
        .route(&format!("{version}/download"), get(download::download))
        .route(&format!("{image}/scan"), post(scans::order))
        .route(&format!("{image}/vulnerabilities"), get(scans::show))
        .route("/api/v1/artifacts/{digest}/vulnerabilities", get(scans::of_artifact))
        .route(&format!("{image}/tags"), get(tags::list))
        .route(&format!("{image}/tags/{{tag}}"), put(tags::put).delete(tags::delete))
        .route(&format!("{image}/rollback"), post(tags::roll_back))
        .route("/api/v1/instances", get(instances::list).post(instances::create))
        .route(instance, get(instances::show).put(instances::put).delete(instances::remove))
}

/// Accounts, their own tokens, and organizations.
fn people() -> Routes {
    let organization = "/api/v1/organizations/{organization}";
    Routes::new()
        .route("/api/v1/users", get(users::list).post(users::create))
        .route("/api/v1/users/{user}", get(users::show).patch(users::update).delete(users::remove))
        .route(
            "/api/v1/users/{user}/sessions",
            get(session::sessions_of).delete(session::end_all_of),
        )
        .route(
            "/api/v1/users/{user}/identities",
            get(identities::list).post(identities::link).delete(identities::unlink),
        )
        .route("/api/v1/users/{user}/second-factor", delete(second_factor::remove_of))
        .route("/api/v1/users/{user}/passkeys", get(passkeys::list_of).delete(passkeys::remove_of))
        .route("/api/v1/users/{user}/recovery", post(recovery::recover))
        .route("/api/v1/user/password", put(users::change_password))
        .route("/api/v1/user/email", put(users::change_email))
        .route("/api/v1/user/export", get(leaving::export))
        .route(
            "/api/v1/user/deletion",
            get(leaving::show).post(leaving::leave).delete(leaving::stay),
        )
        .route("/api/v1/user/sessions", get(session::sessions).delete(session::end_others))
        .route("/api/v1/user/sessions/{session}", delete(session::end_session))
        .route(
            "/api/v1/user/second-factor",
            get(second_factor::show).post(second_factor::begin).delete(second_factor::remove),
        )
        .route("/api/v1/user/second-factor/confirm", post(second_factor::confirm))
        .route("/api/v1/user/second-factor/recovery-codes", post(second_factor::recovery_codes))
        .route("/api/v1/user/passkeys", get(passkeys::list).post(passkeys::begin))
        .route("/api/v1/user/passkeys/answer", post(passkeys::register))
        .route("/api/v1/user/passkeys/{passkey}", patch(passkeys::update).delete(passkeys::remove))
        .route("/api/v1/user/tokens", get(personal_tokens::list).post(personal_tokens::create))
        .route("/api/v1/user/tokens/{token}", delete(personal_tokens::remove))
        .route("/api/v1/organizations", get(organizations::list).post(organizations::create))
        .route(organization, get(organizations::show).delete(organizations::remove))
        .route(&format!("{organization}/members"), get(members::of_organization))
        .route(
            &format!("{organization}/members/{{user}}"),
            put(members::put_in_organization).delete(members::remove_from_organization),
        )
        .route(
            &format!("{organization}/groups"),
            get(organizations::groups).post(organizations::create_group),
        )
        .route(&format!("{organization}/groups/{{group}}"), delete(organizations::remove_group))
        .route(
            &format!("{organization}/groups/{{group}}/members/{{user}}"),
            put(members::put_in_group).delete(members::remove_from_group),
        )
}

/// Projects, and who may do what in them and with single images.
fn projects() -> Routes {
    let project = "/api/v1/projects/{project}";
    Routes::new()
        .route("/api/v1/projects", get(projects::list).post(projects::create))
        .route(project, get(projects::show).put(projects::update).delete(projects::remove))
        .route(&format!("{project}/members"), get(members::of_project))
        .route(
            &format!("{project}/members/{{*grantee}}"),
            put(members::put_in_project).delete(members::remove_from_project),
        )
        .route(&format!("{project}/robots"), get(projects::robots).post(projects::put_robot))
        .route(&format!("{project}/robots/{{robot}}"), delete(projects::remove_robot))
        .route(&format!("{project}/workload-rules"), get(workload::list).post(workload::put))
        .route(&format!("{project}/workload-rules/{{rule}}"), delete(workload::remove))
        .route(
            &format!("{project}/policy"),
            get(policy::show).put(policy::put).delete(policy::remove),
        )
        .route(&format!("{project}/retention/dry-run"), post(policy::dry_run))
        .route(&format!("{project}/retention/run"), post(policy::run))
        .route(
            "/api/v1/images/{image}/permissions",
            get(members::of_image).post(members::grant_in_image),
        )
        .route(
            "/api/v1/images/{image}/permissions/{*grantee}",
            put(members::put_in_image).delete(members::remove_from_image),
        )
}
