//! The policy of a project: what it keeps, what is immutable; and retention, tried and carried out.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use shoal_api::{
    Decided, DryRun, Keep, Policy, ProjectPolicy, PutPolicy, RetentionDone, RetentionEntry,
    RetentionReport, RetentionRule, Selection,
};
use shoal_content::ProjectName;
use shoal_metadata::{
    self as metadata, Action, Command, JudgedName, Judgement, NameKind, Pattern, PolicyRules,
    Reason, Refusal, Verdict,
};
use shoal_raft::ProposeError;

use super::caller::Caller;
use super::input::{Body, Path};
use super::members;
use super::problem::{conflict, missing, unavailable};
use crate::clock::{now, rfc3339};
use crate::http::problem::Problem;
use crate::retention::RetentionError;
use crate::state::App;

/// Entries of one report: so many that go, and so many of the others.
const ENTRIES_MAX: usize = 20_000;

fn no_policy(project: &ProjectName) -> Problem {
    missing("policy_not_found", format!("the project {project} has no policy"))
}

pub async fn show(
    caller: Caller,
    Path(project): Path<ProjectName>,
) -> Result<Json<ProjectPolicy>, Problem> {
    members::project(&caller, &project, Action::List)?;
    let row = caller.view.query().policy(&project)?.ok_or_else(|| no_policy(&project))?;
    Ok(Json(shown(row)))
}

fn shown(row: metadata::Policy) -> ProjectPolicy {
    let selection = |of: metadata::Selection| Selection {
        repositories: of.repositories.to_string(),
        tags: of.tags.to_string(),
    };
    let PolicyRules { automatic, retention, untagged_days, immutable } = row.rules;
    let retention = retention.into_iter().map(|rule| {
        let Selection { repositories, tags } = selection(rule.selection);
        let keep = match rule.keep {
            metadata::Keep::Newest(count) => Keep::Newest(count),
            metadata::Keep::PushedWithin { days } => Keep::PushedWithinDays(days),
            metadata::Keep::PulledWithin { days } => Keep::PulledWithinDays(days),
            metadata::Keep::Always => Keep::Always,
        };
        RetentionRule { repositories, tags, keep }
    });
    let policy = Policy {
        automatic,
        untagged_after_days: untagged_days,
        retention: retention.collect(),
        immutable: immutable.into_iter().map(selection).collect(),
    };
    ProjectPolicy {
        project: row.project,
        policy,
        revision: row.revision,
        updated_at: rfc3339(row.updated_at),
        updated_by: row.updated_by,
    }
}

/// What people wrote, as far as it makes sense.
fn rules(policy: Policy) -> Result<PolicyRules, Problem> {
    let invalid = |text: String| Problem::bad_request("policy_invalid", text);
    let pattern = |text: &str| {
        let parsed: Result<Pattern, _> = text.parse();
        parsed.map_err(|error| invalid(format!("the pattern '{text:.80}': {error}")))
    };
    let selection = |repositories: &str, tags: &str| -> Result<_, Problem> {
        Ok(metadata::Selection { repositories: pattern(repositories)?, tags: pattern(tags)? })
    };
    let rule = |rule: &RetentionRule| -> Result<_, Problem> {
        let keep = match rule.keep {
            Keep::Newest(count) => metadata::Keep::Newest(count),
            Keep::PushedWithinDays(days) => metadata::Keep::PushedWithin { days },
            Keep::PulledWithinDays(days) => metadata::Keep::PulledWithin { days },
            Keep::Always => metadata::Keep::Always,
        };
        let selection = selection(&rule.repositories, &rule.tags)?;
        Ok(metadata::RetentionRule { selection, keep })
    };
    let immutable = policy.immutable.iter().map(|of| selection(&of.repositories, &of.tags));
    let rules = PolicyRules {
        automatic: policy.automatic,
        retention: policy.retention.iter().map(rule).collect::<Result<_, _>>()?,
        untagged_days: policy.untagged_after_days,
        immutable: immutable.collect::<Result<_, _>>()?,
    };
    rules.check().map_err(|error| invalid(error.to_string()))?;
    Ok(rules)
}

pub async fn put(
    State(app): State<App>,
    caller: Caller,
    Path(project): Path<ProjectName>,
    Body(request): Body<PutPolicy>,
) -> Result<Json<ProjectPolicy>, Problem> {
    members::project(&caller, &project, Action::Manage)?;
    let by = caller.account()?;
    drop(caller);
    let (rules, expected) = (rules(request.policy)?, request.revision);
    let set = Command::SetPolicy { project: project.clone(), rules, expected, by };
    app.propose(set).await?;
    let row = app.view().await?.query().policy(&project)?;
    Ok(Json(shown(row.ok_or_else(|| no_policy(&project))?)))
}

pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(project): Path<ProjectName>,
) -> Result<StatusCode, Problem> {
    members::project(&caller, &project, Action::Manage)?;
    drop(caller);
    let remove = Command::RemovePolicy { project: project.clone() };
    app.propose(remove).await.map_err(|error| match error {
        ProposeError::Refused(Refusal::NotFound(_)) => no_policy(&project),
        error => error.into(),
    })?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a run would do now, by the project's policy or by another one.
pub async fn dry_run(
    State(app): State<App>,
    caller: Caller,
    Path(project): Path<ProjectName>,
    Body(DryRun { policy }): Body<DryRun>,
) -> Result<Json<RetentionReport>, Problem> {
    members::project(&caller, &project, Action::Manage)?;
    let rules = match policy {
        Some(policy) => rules(policy)?,
        None => {
            let row = caller.view.query().policy(&project)?;
            row.ok_or_else(|| no_policy(&project))?.rules
        }
    };
    drop(caller);
    let mut report = RetentionReport {
        project: project.clone(),
        judged_at: rfc3339(now()),
        names: Decided::default(),
        untagged: Decided::default(),
        entries: Vec::new(),
        truncated: false,
        skipped: Vec::new(),
    };
    let mut others = Vec::new();
    let retainer = &app.services.retainer;
    let each = |judgement| enter(&mut report, &mut others, judgement);
    let skipped = retainer.dry_run(&project, &rules, each).await;
    report.skipped = skipped.map_err(|error| problem(error, &project))?;
    report.entries.append(&mut others);
    Ok(Json(report))
}

fn enter(report: &mut RetentionReport, others: &mut Vec<RetentionEntry>, judgement: Judgement) {
    let repository = judgement.repository;
    let mut add = |entry: RetentionEntry, decided: fn(&mut RetentionReport) -> &mut Decided| {
        let counts = decided(report);
        let list = match entry.decision.as_str() {
            "drop" => {
                counts.drop += 1;
                &mut report.entries
            }
            "keep" => {
                counts.keep += 1;
                &mut *others
            }
            _ => {
                counts.untouched += 1;
                &mut *others
            }
        };
        if list.len() < ENTRIES_MAX {
            list.push(entry);
        } else {
            report.truncated = true;
        }
    };
    for JudgedName { name, kind, used, verdict } in judgement.names {
        let (decision, reason, rule) = said(&verdict);
        let kind = match kind {
            NameKind::Tag => "tag",
            NameKind::Number => "number",
        };
        let entry = RetentionEntry {
            repository: repository.clone(),
            kind: kind.to_owned(),
            name: Some(name),
            digest: used.digest,
            pushed_at: rfc3339(used.pushed_at),
            pulled_at: used.pulled_at.map(rfc3339),
            decision: decision.to_owned(),
            reason,
            rule,
        };
        add(entry, |report| &mut report.names);
    }
    for version in judgement.untagged {
        let (decision, reason, rule) = said(&version.verdict);
        let entry = RetentionEntry {
            repository: repository.clone(),
            kind: "untagged".to_owned(),
            name: None,
            digest: version.digest,
            pushed_at: rfc3339(version.quiet_since),
            pulled_at: None,
            decision: decision.to_owned(),
            reason: match version.verdict {
                Verdict::Goes => "it has no tag, and nothing that stays needs it".to_owned(),
                Verdict::Untouched => "the policy says nothing of untagged versions".to_owned(),
                Verdict::Stays(_) => reason,
            },
            rule,
        };
        add(entry, |report| &mut report.untagged);
    }
}

/// The decision, the reason and the rule.
fn said(verdict: &Verdict) -> (&'static str, String, Option<u64>) {
    let reason = match verdict {
        Verdict::Goes => return ("drop", "no rule keeps it".to_owned(), None),
        Verdict::Untouched => return ("untouched", "no rule is for it".to_owned(), None),
        Verdict::Stays(reason) => reason,
    };
    let mut by = None;
    let text = match reason {
        Reason::Rule { rule, keep } => {
            let number = *rule as u64 + 1;
            by = Some(number);
            match keep {
                metadata::Keep::Newest(count) => format!("rule {number}: the newest {count}"),
                metadata::Keep::PushedWithin { days } => {
                    format!("rule {number}: pushed in the last {days} days")
                }
                metadata::Keep::PulledWithin { days } => {
                    format!("rule {number}: pulled in the last {days} days")
                }
                metadata::Keep::Always => format!("rule {number}: always"),
            }
        }
        Reason::Immutable { rule } => format!("immutable by rule {}", rule + 1),
        Reason::Attached(digest) => format!("it belongs to {digest}"),
        Reason::Tagged(tag) => format!("the tag {tag} names the version"),
        Reason::Recent => "it was used lately".to_owned(),
        Reason::ListedBy(digest) => format!("{digest} lists it"),
        Reason::About(digest) => format!("it is about {digest}"),
        Reason::SubjectOf(digest) => format!("{digest} is about it"),
        Reason::RunBy(instance) => format!("the instance {instance} runs it"),
    };
    ("keep", text, by)
}

pub async fn run(
    State(app): State<App>,
    caller: Caller,
    Path(project): Path<ProjectName>,
) -> Result<Json<RetentionDone>, Problem> {
    members::project(&caller, &project, Action::Manage)?;
    drop(caller);
    let retainer = &app.services.retainer;
    let done = retainer.run_now(&project).await.map_err(|error| problem(error, &project))?;
    Ok(Json(RetentionDone {
        project,
        repositories: done.repositories,
        tags: done.tags,
        versions: done.versions,
        changed: done.changed,
        skipped: done.skipped,
    }))
}

fn problem(error: RetentionError, project: &ProjectName) -> Problem {
    match error {
        RetentionError::NoPolicy => no_policy(project),
        RetentionError::PolicyChanged => Refusal::PolicyChanged.into(),
        RetentionError::UnderWay => conflict("retention_under_way", error.to_string()),
        RetentionError::Stopping => unavailable(error.to_string()),
        RetentionError::Silent { left, .. } => {
            Problem { retry_after: Some(left), ..unavailable(error.to_string()) }
        }
        RetentionError::Read(error) => error.into(),
        RetentionError::Rows(error) => error.into(),
        RetentionError::Propose(error) => error.into(),
    }
}
