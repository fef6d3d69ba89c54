//! The audit trail: search, verification, archives. For administrators and auditors.

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use shoal_api::{AuditArchive, AuditEntry, AuditPage, AuditVerification, AuditWords};
use shoal_content::Timestamp;
use shoal_metadata::{
    self as metadata, Action, AuditFilter, AuditFlaw, AuditResult, AuditSource, What, verify,
};

use super::caller::Caller;
use super::input::{Path, Query};
use super::part::{Part, PartQuery};
use super::problem::{missing, unavailable};
use crate::audit::Error;
use crate::clock::{parsed, rfc3339};
use crate::http::problem::Problem;
use crate::state::App;

const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1000;
/// Entries that one request looks at: a rare thing may take several pages, some of them empty.
const LOOKS_MAX: usize = 50_000;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Search {
    who: Option<String>,
    action: Option<String>,
    target: Option<String>,
    /// `done` or `refused`.
    result: Option<String>,
    since: Option<String>,
    until: Option<String>,
    /// Numbers below this one.
    before: Option<u64>,
    limit: Option<usize>,
}

fn moment(text: Option<&str>) -> Result<Option<Timestamp>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let wrong = || Problem::bad_request("time_invalid", "a time is written 2026-01-31T12:00:00Z");
    parsed(text).map(Some).ok_or_else(wrong)
}

fn hex(hash: &[u8; 32]) -> String {
    blake3::Hash::from(*hash).to_hex().to_string()
}

pub(super) fn shown(entry: metadata::AuditEntry) -> AuditEntry {
    let metadata::AuditNote { at, source, action, target, result, count } = entry.note;
    let (result, reason) = match result {
        AuditResult::Done => ("done", None),
        AuditResult::Refused(reason) => ("refused", Some(reason)),
    };
    let words = AuditWords {
        operation: action.clone(),
        operator_id: source.who.clone(),
        operator_type: operator_type(&source).map(str::to_owned),
        status: if reason.is_some() { "failure" } else { "success" }.to_owned(),
        error_message: reason.clone(),
        client_ip: source.from.clone(),
        created_at: rfc3339(at),
    };
    AuditEntry {
        number: entry.number,
        at: rfc3339(at),
        who: source.who,
        from: source.from,
        action,
        target,
        result: result.to_owned(),
        reason,
        count,
        request_id: source.request,
        node: source.node,
        hash: hex(&entry.hash),
        words,
    }
}

/// What kind of somebody it was.
fn operator_type(source: &AuditSource) -> Option<&'static str> {
    let AuditSource { who, from, .. } = source;
    // Of these words two could be somebody's name; but people ask from somewhere.
    let is_own = matches!(who.as_str(), "cluster" | "policy") && from.is_empty();
    match who.as_str() {
        "" => None,
        _ if is_own || who.starts_with("node:") => Some("system"),
        _ if who.starts_with("agent:") || who.starts_with("robot$") => Some("service"),
        _ => Some("user"),
    }
}

/// `GET /api/v1/audit`: the newest first.
pub async fn search(
    caller: Caller,
    Query(search): Query<Search>,
) -> Result<Json<AuditPage>, Problem> {
    caller.permit(Action::Audit, What::System)?;
    let refused = match search.result.as_deref() {
        None => None,
        Some("done") => Some(false),
        Some("refused") => Some(true),
        Some(_) => {
            return Err(Problem::bad_request("result_invalid", "result is done or refused"));
        }
    };
    let filter = AuditFilter {
        who: search.who,
        action: search.action,
        target: search.target,
        refused,
        since: moment(search.since.as_deref())?,
        until: moment(search.until.as_deref())?,
        before: search.before,
    };
    let limit = search.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let view = caller.view;
    let page =
        tokio::task::spawn_blocking(move || view.query().audit(&filter, limit, LOOKS_MAX)).await;
    let page = page.map_err(|_| unavailable("the search was given up"))??;
    let entries = page.entries.into_iter().map(shown).collect();
    Ok(Json(AuditPage { entries, before: page.before }))
}

/// `GET /api/v1/audit/verify`: goes along the whole chain, archives and all.
pub async fn verification(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<AuditVerification>, Problem> {
    caller.permit(Action::Audit, What::System)?;
    let view = caller.view;
    let looked = tokio::task::spawn_blocking(move || -> Result<_, metadata::Fault> {
        let query = view.query();
        Ok((verify(query)?, query.audit_head()?, query.audit_archives()?))
    });
    let looked = looked.await.map_err(|_| unavailable("the verification was given up"))?;
    let ((entries, flaws), (next, head), archives) = match looked {
        Ok(looked) => looked,
        // What cannot be read was tampered with, too.
        Err(fault) => {
            let flaws = vec![fault.to_string()];
            let verification = AuditVerification { flaws, ..AuditVerification::default() };
            return Ok(Json(verification));
        }
    };
    let mut flaws: Vec<String> = flaws.iter().map(sentence).collect();
    for archive in &archives {
        flaws.extend(app.services.audit.flaw(archive).await);
    }
    Ok(Json(AuditVerification {
        entries,
        archives: archives.len() as u64,
        last: next - 1,
        head: hex(&head),
        flaws,
    }))
}

fn sentence(flaw: &AuditFlaw) -> String {
    match flaw {
        AuditFlaw::Broken(number) => format!("entry {number} does not follow from the one before"),
        AuditFlaw::Missing(number) => format!("entry {number} is missing"),
        AuditFlaw::Head => "the newest entry is not the one that was written last".to_owned(),
    }
}

/// `GET /api/v1/audit/archives`: the oldest first.
pub async fn archives(
    caller: Caller,
    Query(wanted): Query<PartQuery>,
) -> Result<Part<AuditArchive>, Problem> {
    caller.permit(Action::Audit, What::System)?;
    let wrong = |_| Problem::bad_request("query_invalid", "after is the number of an entry");
    let after = match wanted.after.as_str() {
        "" => 0,
        after => after.parse::<u64>().map_err(wrong)?,
    };
    let mut rows = caller.view.query().audit_archives_after(after, wanted.limit() + 1)?;
    let next = wanted.cut(&mut rows, |row| row.first.to_string());
    let shown = rows.into_iter().map(|row| AuditArchive {
        first: row.first,
        last: row.last,
        from: rfc3339(row.from),
        until: rfc3339(row.until),
        object: row.object.to_string(),
        bytes: row.bytes,
    });
    Ok(Part::new("/api/v1/audit/archives", &wanted, shown.collect(), next))
}

/// `GET /api/v1/audit/archives/FIRST`: its entries, the oldest first.
pub async fn archive(
    State(app): State<App>,
    caller: Caller,
    Path(first): Path<u64>,
) -> Result<Json<Vec<AuditEntry>>, Problem> {
    caller.permit(Action::Audit, What::System)?;
    let row = caller.view.query().audit_archive(first)?;
    let unknown = || missing("archive_not_found", format!("no archive begins with {first}"));
    let row = row.ok_or_else(unknown)?;
    drop(caller);
    let entries = app.services.audit.read(&row).await.map_err(|error| match error {
        Error::Store(error) => Problem::from(error),
        error => Problem::internal(&error),
    })?;
    Ok(Json(entries.into_iter().map(shown).collect()))
}
