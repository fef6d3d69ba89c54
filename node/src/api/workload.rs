//! CI jobs: their own token for a robot's, for a quarter of an hour, by the rules of a project.
//!
//! Invariant: whatever is wrong with a token, a project or a rule, the answer is the same.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use jsonwebtoken::dangerous::insecure_decode_claims;
use serde::Deserialize;
use shoal_api::{Hidden, WorkloadLogin, WorkloadRule, WorkloadToken};
use shoal_content::{AccountName, ProjectName, Timestamp};
use shoal_metadata::{self as metadata, Action, AuditResult, Command, Refusal, RobotName, Subject};
use shoal_raft::ProposeError;

use super::caller::Caller;
use super::input::{Body, Path};
use super::members;
use super::problem::missing;
use crate::clock::{now, rfc3339};
use crate::http::auth::issuer::{Keys, Rejected};
use crate::http::auth::{Principal, issue_until, wrong_token};
use crate::http::noted;
use crate::http::problem::Problem;
use crate::state::App;

/// How long a robot's token holds that was got so, in milliseconds.
const TTL_MS: u64 = 15 * 60 * 1000;
/// The longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

fn shown(row: metadata::WorkloadRule) -> WorkloadRule {
    WorkloadRule {
        name: row.name,
        issuer: row.issuer,
        subject: row.subject,
        claims: row.claims,
        robot: row.robot,
        created_at: rfc3339(row.created_at),
        created_by: row.created_by,
    }
}

pub async fn list(
    caller: Caller,
    Path(project): Path<ProjectName>,
) -> Result<Json<Vec<WorkloadRule>>, Problem> {
    members::project(&caller, &project, Action::Manage)?;
    let rules = caller.view.query().workload_rules(&project)?;
    Ok(Json(rules.into_iter().map(shown).collect()))
}

pub async fn put(
    State(app): State<App>,
    caller: Caller,
    Path(project): Path<ProjectName>,
    Body(rule): Body<WorkloadRule>,
) -> Result<(StatusCode, Json<WorkloadRule>), Problem> {
    members::project(&caller, &project, Action::Manage)?;
    let created_by = caller.account()?;
    drop(caller);
    if !app.config.workload.issuers.contains(&rule.issuer) {
        let text = "the cluster's settings do not name this issuer ([workload] issuers)";
        return Err(Problem::bad_request("issuer_unknown", text));
    }
    let WorkloadRule { name, issuer, subject, claims, robot, .. } = rule;
    let created_at = now();
    let row = metadata::WorkloadRule {
        project,
        name,
        issuer,
        subject,
        claims,
        robot,
        created_at,
        created_by,
    };
    if let Some(mistake) = row.mistake() {
        return Err(Problem::bad_request("rule_invalid", mistake));
    }
    app.propose(Command::PutWorkloadRule(row.clone())).await.map_err(|error| match error {
        ProposeError::Refused(Refusal::NotFound(Subject::Robot)) => {
            missing("robot_not_found", format!("the project has no robot {}", row.robot))
        }
        error => error.into(),
    })?;
    Ok((StatusCode::CREATED, Json(shown(row))))
}

pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path((project, name)): Path<(ProjectName, AccountName)>,
) -> Result<StatusCode, Problem> {
    members::project(&caller, &project, Action::Manage)?;
    drop(caller);
    app.propose(Command::RemoveWorkloadRule { project, name }).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct SaidIssuer {
    iss: String,
}

/// A job's token for a robot's.
pub async fn exchange(
    State(app): State<App>,
    Body(request): Body<WorkloadLogin>,
) -> Result<Json<WorkloadToken>, Problem> {
    let client = noted::current().and_then(|noted| noted.client);
    let answer = exchanged(&app, &request).await;
    if let Err(problem) = &answer
        && problem.status == StatusCode::UNAUTHORIZED
    {
        wrong_token(&app, client);
        let wrong = AuditResult::Refused(problem.message.clone());
        app.services.audit.note("workload.login", request.project.to_string(), wrong);
    }
    answer
}

async fn exchanged(app: &App, request: &WorkloadLogin) -> Result<Json<WorkloadToken>, Problem> {
    let refused = || Problem {
        code: "workload_refused",
        message: "no rule of the project lets this token act as a robot".into(),
        ..Problem::unauthorized()
    };
    if request.token.len() > TOKEN_BYTES_MAX {
        return Err(refused());
    }
    let view = app.view().await?;
    let client = noted::current().and_then(|noted| noted.client);
    app.lockout.check_address(view.query(), client)?;
    // Who says to have signed it decides only which of the issuers in the settings is asked.
    let said = insecure_decode_claims::<SaidIssuer>(&request.token).map_err(|_| refused())?;
    let settings = &app.config.workload;
    let issuer = settings.issuers.iter().find(|issuer| **issuer == said.iss);
    let issuer = issuer.ok_or_else(refused)?;
    let url = app.config.api_url();
    let audience = if settings.audience.is_empty() { &url } else { &settings.audience };
    let keys = Keys::OfIssuer(issuer.clone());
    let claims = app.issuers.verify(&keys, issuer, audience, &request.token).await;
    let claims = claims.map_err(|rejected| match rejected {
        Rejected::Away => rejected.into(),
        Rejected::Expired | Rejected::Invalid => refused(),
    })?;
    let plain = claims.plain();
    let rules = view.query().workload_rules(&request.project)?;
    let rule = rules.into_iter().find(|rule| {
        request.robot.as_ref().is_none_or(|robot| rule.robot == *robot)
            && rule.takes(issuer, claims.subject(), &plain)
    });
    let rule = rule.ok_or_else(refused)?;
    let robot = RobotName { project: rule.project, name: rule.robot };
    let row = view.query().robot(&robot)?.ok_or_else(refused)?;
    let at = now();
    let end = at.plus_millis(TTL_MS).min(Timestamp::from_millis(claims.expires() * 1000));
    let end = row.expires_at.map_or(end, |expires| end.min(expires));
    if end <= at {
        return Err(refused());
    }
    let name = robot.to_string();
    noted::note_user(|| name.clone());
    let target = format!("{name} by {} {}", rule.name, claims.subject());
    app.services.audit.note("workload.login", target, AuditResult::Done);
    let (token, expires) = issue_until(app, Some(&Principal::Robot(robot)), None, Some(end))?;
    let expires_at = rfc3339(Timestamp::from_millis(expires.saturating_mul(1000)));
    Ok(Json(WorkloadToken { username: name, token: Hidden(token), expires_at }))
}
