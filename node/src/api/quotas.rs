//! Quotas: what may be held, and what is.
//!
//! Limits are the cluster's administrators' to set. Who may list a project or an organization sees
//! what it holds, and everyone sees the own account.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use shoal_api::{PutQuota, Quota, QuotaCheck, QuotaLimits, Usage};
use shoal_metadata::{
    self as metadata, Action, Command, Drift, Fault, Payer, Query, QuotaOf, Read, What, Who, drift,
};

use super::caller::{Admin, Caller};
use super::input::{Body, Path};
use super::problem::missing;
use super::{members, problem};
use crate::clock::rfc3339;
use crate::http::problem::Problem;
use crate::state::App;

fn shown_limits(limits: metadata::QuotaLimits) -> QuotaLimits {
    let metadata::QuotaLimits { max_bytes, max_images, max_image_bytes } = limits;
    QuotaLimits {
        max_bytes,
        max_storage_bytes: max_bytes,
        max_images,
        max_image_count: max_images,
        max_image_bytes,
        max_image_size_bytes: max_image_bytes,
    }
}

/// What `payer` holds and may hold.
pub(super) fn usage<R: Read>(query: Query<'_, R>, payer: &Payer) -> Result<Usage, Fault> {
    let account = query.account(payer)?;
    Ok(Usage {
        used_bytes: account.bytes,
        current_storage_bytes: account.bytes,
        reserved_bytes: account.reserved_bytes,
        images: account.images,
        current_image_count: account.images,
        limits: shown_limits(query.limits(payer)?),
    })
}

fn shown<R: Read>(
    query: Query<'_, R>,
    of: &QuotaOf,
    row: Option<metadata::Quota>,
) -> Result<Quota, Fault> {
    let usage = match of {
        QuotaOf::One(payer) => Some(usage(query, payer)?),
        QuotaOf::Each(_) => None,
    };
    let (principal_type, principal_id) = principal(of).unzip();
    Ok(Quota {
        of: of.to_string(),
        principal_type,
        principal_id: principal_id.flatten(),
        usage,
        set: row.as_ref().map(|row| shown_limits(row.limits)),
        updated_at: row.as_ref().map(|row| rfc3339(row.updated_at)),
        updated_by: row.map(|row| row.updated_by),
    })
}

/// Whose it is, in the words of systems that know kinds of principals.
fn principal(of: &QuotaOf) -> Option<(String, Option<String>)> {
    let QuotaOf::One(payer) = of else { return None };
    let (kind, name) = match payer {
        Payer::User(name) => ("user", Some(name.clone())),
        Payer::Group { organization, group } => {
            ("user_group", Some(format!("{organization}/{group}")))
        }
        Payer::Organization(name) => ("organization", Some(name.to_string())),
        Payer::Project(name) => ("project", Some(name.to_string())),
        Payer::Cluster => ("cluster", None),
    };
    Some((kind.to_owned(), name))
}

fn parsed(text: &str) -> Result<QuotaOf, Problem> {
    text.parse().map_err(|error: metadata::PayerError| {
        Problem::bad_request("quota_invalid", error.to_string())
    })
}

/// Whether the caller may see that account.
fn check_seen(caller: &Caller, of: &QuotaOf) -> Result<(), Problem> {
    let own = |name: &str| matches!(caller.who(), Who::User { name: own, .. } if own == name);
    match of {
        QuotaOf::One(Payer::Project(name)) => {
            members::project(caller, name, Action::List).map(drop)
        }
        QuotaOf::One(Payer::Organization(name)) => {
            members::organization(caller, name, Action::List).map(drop)
        }
        QuotaOf::One(Payer::Group { organization, group }) => {
            members::organization(caller, organization, Action::List)?;
            let row = caller.view.query().group(organization, group)?;
            let unknown = || missing("group_not_found", format!("there is no group {group}"));
            row.map(drop).ok_or_else(unknown)
        }
        QuotaOf::One(Payer::User(name)) if own(name) => Ok(()),
        QuotaOf::One(Payer::User(name)) => {
            caller.permit(Action::Audit, What::System)?;
            let unknown = || missing("user_not_found", format!("there is no user {name}"));
            caller.view.query().user(name)?.map(drop).ok_or_else(unknown)
        }
        QuotaOf::One(Payer::Cluster) | QuotaOf::Each(_) => {
            caller.permit(Action::Audit, What::System)
        }
    }
}

/// `GET /api/v1/quotas`: all that were set.
pub async fn list(caller: Caller) -> Result<Json<Vec<Quota>>, Problem> {
    caller.permit(Action::Audit, What::System)?;
    let query = caller.view.query();
    let rows = query.quotas()?;
    let shown = rows.into_iter().map(|(of, row)| shown(query, &of, Some(row)));
    Ok(Json(shown.collect::<Result<_, Fault>>()?))
}

/// `GET /api/v1/quotas/OF`.
pub async fn show(caller: Caller, Path(of): Path<String>) -> Result<Json<Quota>, Problem> {
    let of = parsed(&of)?;
    check_seen(&caller, &of)?;
    let query = caller.view.query();
    let row = query.quota(&of)?;
    Ok(Json(shown(query, &of, row)?))
}

/// A limit by one of its names, or by both alike: what was shown may be sent back. No name at all is
/// no limit.
fn limit(
    (name, own): (&str, Option<Option<u64>>),
    (other_name, other): (&str, Option<Option<u64>>),
) -> Result<Option<u64>, Problem> {
    match (own, other) {
        (Some(own), Some(other)) if own != other => {
            let said = |limit: Option<u64>| limit.map_or("null".to_owned(), |one| one.to_string());
            let (own, other) = (said(own), said(other));
            let text = format!("{name} is {own} and {other_name} {other}, but they are one limit");
            Err(Problem::bad_request("quota_invalid", text))
        }
        _ => Ok(own.or(other).flatten()),
    }
}

/// `PUT /api/v1/quotas/OF`: all three limits, in place of those there are.
pub async fn put(
    State(app): State<App>,
    caller: Caller,
    Path(of): Path<String>,
    Body(request): Body<PutQuota>,
) -> Result<Json<Quota>, Problem> {
    caller.permit(Action::Manage, What::System)?;
    let by = caller.account()?;
    drop(caller);
    let of = parsed(&of)?;
    let limits = metadata::QuotaLimits {
        max_bytes: limit(
            ("max_bytes", request.max_bytes),
            ("max_storage_bytes", request.max_storage_bytes),
        )?,
        max_images: limit(
            ("max_images", request.max_images),
            ("max_image_count", request.max_image_count),
        )?,
        max_image_bytes: limit(
            ("max_image_bytes", request.max_image_bytes),
            ("max_image_size_bytes", request.max_image_size_bytes),
        )?,
    };
    app.propose(Command::SetQuota { of: of.clone(), limits, by }).await?;
    let view = app.view().await?;
    let row = view.query().quota(&of)?;
    Ok(Json(shown(view.query(), &of, row)?))
}

/// `DELETE /api/v1/quotas/OF`: a default holds from then on, or nothing.
pub async fn remove(
    State(app): State<App>,
    _caller: Admin,
    Path(of): Path<String>,
) -> Result<StatusCode, Problem> {
    let of = parsed(&of)?;
    app.propose(Command::RemoveQuota { of }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /api/v1/quotas/check`: counts everything anew and compares.
pub async fn check(caller: Caller) -> Result<Json<QuotaCheck>, Problem> {
    caller.permit(Action::Audit, What::System)?;
    let view = caller.view;
    // It reads as many rows as there are versions.
    let found = tokio::task::spawn_blocking(move || drift(view.query())).await;
    let found = found.map_err(|_| problem::unavailable("the check was given up"))??;
    Ok(Json(QuotaCheck { drifts: found.iter().map(sentence).collect() }))
}

fn sentence(found: &Drift) -> String {
    match found {
        Drift::Account { payer, stored, counted } => {
            format!("{payer} is said to hold {stored:?}, and holds {counted:?}")
        }
        Drift::Contents { project, wrong } => {
            format!("{wrong} contents of the project {project} are counted wrongly")
        }
        Drift::Strays { rows } => {
            format!("{rows} contents are counted for projects that are not there")
        }
    }
}
