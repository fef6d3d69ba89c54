//! Logging in, and who one is.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use shoal_api::{LoginRequest, LoginResponse, Me};
use shoal_content::Timestamp;
use shoal_metadata::{AuditResult, UserRole};
use zeroize::Zeroizing;

use super::input::Body;
use crate::clock::rfc3339;
use crate::http::auth::{Principal, check_password, issue_token};
use crate::http::problem::Problem;
use crate::state::App;

pub async fn login(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    Body(request): Body<LoginRequest>,
) -> Result<Json<LoginResponse>, Problem> {
    let password = Zeroizing::new(request.password);
    let view = app.view().await?;
    let principal =
        check_password(&app, &view, Some(client.ip()), &request.username, password).await?;
    crate::http::noted::note_user(|| principal.name());
    app.services.audit.note("session.login", principal.name(), AuditResult::Done);
    let (token, expires) = issue_token(&app, Some(&principal), None)?;
    let expires_at = rfc3339(Timestamp::from_millis(expires.saturating_mul(1000)));
    Ok(Json(LoginResponse { token, expires_at }))
}

pub async fn me(principal: Principal) -> Json<Me> {
    let role = match &principal {
        Principal::User { role: UserRole::Admin, .. } => "admin",
        Principal::User { role: UserRole::User, .. } => "user",
        Principal::User { role: UserRole::Auditor, .. } => "auditor",
        Principal::Robot(_) => "robot",
        Principal::Agent(_) => "agent",
        Principal::Node(_) => "node",
    };
    Json(Me { username: principal.name(), role: role.to_owned() })
}
