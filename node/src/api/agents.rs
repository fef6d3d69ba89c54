//! Agents: how they enrol, and how people see and remove them.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use shoal_api::{AgentInfo, CertificateRequest, CertificateResponse, EnrolRequest, EnrolResponse};
use shoal_content::{Labels, PeerId};
use shoal_metadata::{Agent, AgentRole, Command, JoinRole, KeyPurpose, Refusal, command_version};
use shoal_p2p::identity::{CERTIFICATE_LIFETIME, Role};
use shoal_raft::ProposeError;
use tracing::info;

use super::caller::{Admin, Host, Reader};
use super::input::{Body, Path, Query};
use super::part::{Part, PartQuery};
use super::problem::{conflict, missing};
use super::tokens::Brought;
use crate::authorities::Held;
use crate::clock::{now, rfc3339};
use crate::deploy::{node_addresses, ticket_keys};
use crate::http::problem::Problem;
use crate::state::App;

const NAME_BYTES_MAX: usize = 128;
/// Of this node and of the one that issued a certificate.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(24 * 3600);

fn role_name(role: AgentRole) -> &'static str {
    match role {
        AgentRole::Host => "host",
        AgentRole::Cache => "cache",
    }
}

/// By name.
pub async fn list(
    State(app): State<App>,
    _caller: Reader,
    Query(wanted): Query<PartQuery>,
) -> Result<Part<AgentInfo>, Problem> {
    let mut rows = app.view().await?.query().agents_after(&wanted.after, wanted.limit() + 1)?;
    let next = wanted.cut(&mut rows, |row| row.name.clone());
    let online = app.services.gatherer.online().await;
    let shown = rows.into_iter().map(|row| AgentInfo {
        id: row.peer,
        online: online.contains(&row.peer),
        role: role_name(row.role).to_owned(),
        zone: row.zone,
        labels: row.labels.into(),
        enrolled_at: rfc3339(row.enrolled_at),
        name: row.name,
    });
    Ok(Part::new("/api/v1/agents", &wanted, shown.collect(), next))
}

/// By id or name.
pub async fn remove(
    State(app): State<App>,
    _caller: Admin,
    Path(wanted): Path<String>,
) -> Result<StatusCode, Problem> {
    let view = app.view().await?;
    let found = match wanted.parse::<PeerId>() {
        Ok(peer) => view.query().agent(peer)?,
        Err(_) => view.query().agent_by_name(&wanted)?,
    };
    let unknown = || missing("agent_not_found", format!("there is no agent '{wanted}'"));
    let peer = found.ok_or_else(unknown)?.peer;
    // The newest certificate that it can have ends then.
    let lifetime = CERTIFICATE_LIFETIME + CLOCKS_APART_MAX;
    let until = app.now().plus_millis(lifetime.as_millis() as u64);
    let expel = Command::ExpelAgent { peer, until };
    let known = view.query().level()? >= command_version(&expel);
    app.propose(if known { expel } else { Command::RemoveAgent(peer) }).await?;
    info!(agent = %peer, "agent removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Signs a certificate, and says whose it is. Behind it stands what makes it good for those who know
/// an older authority only.
pub(super) fn issue(
    authorities: &Held,
    csr_pem: &str,
    role: Role,
) -> Result<(PeerId, String), Problem> {
    let refused = || {
        let text = "csr_pem is no certificate request of an Ed25519 key, signed by that key";
        Problem::bad_request("request_invalid", text)
    };
    let certificate = authorities.issue(csr_pem, role).map_err(|_| refused())?;
    let (_, pem) =
        x509_parser::pem::parse_x509_pem(certificate.as_bytes()).map_err(|_| refused())?;
    let parsed = pem.parse_x509().map_err(|_| refused())?;
    let key: &[u8] = &parsed.public_key().subject_public_key.data;
    let key = <[u8; 32]>::try_from(key).map_err(|_| refused())?;
    Ok((PeerId::from_public_key(key), certificate))
}

/// The token is the authentication. Enrolling again under the same key and name gives a new
/// certificate, even where the token's last use was the first time.
pub async fn enrol(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    Body(request): Body<EnrolRequest>,
) -> Result<Json<EnrolResponse>, Problem> {
    let token = Brought::parse(&request.token)?;
    token.check(&app, client, JoinRole::Agent).await?;
    check_name(&request.name)?;
    let role = match request.role.as_str() {
        "host" => AgentRole::Host,
        "cache" => AgentRole::Cache,
        _ => return Err(Problem::bad_request("role_invalid", "role is host or cache")),
    };
    let labels = Labels::try_from(request.labels)
        .map_err(|error| Problem::bad_request("labels_invalid", error.to_string()))?;
    let authorities = app.keys.authorities.refresh(app.raft.local().query())?;
    let (peer, certificate_pem) = issue(&authorities, &request.csr_pem, Role::Agent)?;
    let (id, name) = (token.id.clone(), request.name);
    let agent =
        Agent { peer, name: name.clone(), role, zone: request.zone, labels, enrolled_at: now() };
    let secret_hash = token.secret_hash;
    match app.propose(Command::EnrolAgent { token: id.clone(), secret_hash, agent }).await {
        Ok(_) => info!(agent = %peer, name, token = id, "agent enrolled"),
        Err(ProposeError::Refused(Refusal::JoinToken)) => {
            let view = app.view().await?;
            let row = view.query().join_token(&id)?;
            let known = view.query().agent(peer)?.is_some_and(|agent| agent.name == name);
            if !known || !row.is_some_and(|row| token.is_of(&row, JoinRole::Agent)) {
                return Err(Refusal::JoinToken.into());
            }
        }
        Err(ProposeError::Refused(Refusal::Exists(_))) => {
            let text =
                format!("another agent is called '{name}'; choose another name, or remove it");
            return Err(conflict("agent_exists", text));
        }
        Err(error) => return Err(error.into()),
    }
    let view = app.view().await?;
    app.keys.ring.refresh(view.query())?;
    let signer = app.keys.ring.signer(KeyPurpose::Ticket, app.now());
    Ok(Json(EnrolResponse {
        cluster: app.keys.cluster,
        certificate_pem,
        authority_pem: token.authority_pem(&authorities),
        believed_pem: Some(authorities.believed_pem()),
        ticket_public_key: hex::encode(signer.public().as_public_key()),
        ticket_keys: ticket_keys(&app.keys.ring),
        network_key: hex::encode(app.keys.network),
        nodes: node_addresses(view.query())?,
    }))
}

/// Another certificate for an agent that has one, or had: its token says whose it is.
pub async fn renew(
    State(app): State<App>,
    caller: Host,
    Body(request): Body<CertificateRequest>,
) -> Result<Json<CertificateResponse>, Problem> {
    let authorities = app.keys.authorities.refresh(app.raft.local().query())?;
    let (peer, certificate_pem) = issue(&authorities, &request.csr_pem, Role::Agent)?;
    if peer != caller.peer {
        return Err(Problem::bad_request("request_invalid", "csr_pem is of another agent's key"));
    }
    info!(agent = %peer, "an agent's certificate was renewed");
    Ok(Json(CertificateResponse { certificate_pem }))
}

/// Names stand in lists, labels of metrics and command lines.
pub(super) fn check_name(name: &str) -> Result<(), Problem> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(good) {
        return Ok(());
    }
    let text = "a name is letters, digits, '-', '_' and '.', at most 128 of them";
    Err(Problem::bad_request("name_invalid", text))
}
