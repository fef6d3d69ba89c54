//! Agents, and the tokens that let agents and nodes join.

use std::time::Duration;

use comfy_table::Cell;
use reqwest::Method;
use shoal_api::{AgentInfo, CreateJoinToken, JoinTokenCreated, JoinTokenInfo};

use crate::arguments::{AgentCommand, Role, TokenCommand};
use crate::client::{Client, escaped};
use crate::error::Error;
use crate::screen::{Screen, confirm, state, table};

pub async fn agent(command: &AgentCommand, client: &Client, screen: Screen) -> Result<(), Error> {
    let agents: Vec<AgentInfo> = client.list("api/v1/agents").await?;
    match command {
        AgentCommand::List => screen.show(&agents, || agent_table(&agents)),
        AgentCommand::Remove { agent: wanted, yes } => {
            let is_it =
                |agent: &&AgentInfo| &agent.name == wanted || &agent.id.to_string() == wanted;
            let agent = agents.iter().find(is_it);
            let agent = agent.ok_or_else(|| Error::NotFound(format!("no agent '{wanted}'")))?;
            let question = format!(
                "Remove {} ({})? It fetches and serves nothing until it joins again.",
                agent.name, agent.id
            );
            if !yes && !confirm(&question)? {
                let text = "nothing was removed; --yes removes without asking";
                return Err(Error::Usage(text.into()));
            }
            client.delete(format!("api/v1/agents/{}", agent.id)).await?;
            let shown = serde_json::json!({ "removed": agent });
            screen.show(&shown, || format!("Removed {} ({}).", agent.name, agent.id))
        }
    }
}

fn agent_table(agents: &[AgentInfo]) -> String {
    let mut rows = table(&["NAME", "STATE", "ROLE", "ZONE", "LABELS", "ENROLLED", "ID"]);
    for agent in agents {
        let labels: Vec<String> =
            agent.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        rows.add_row([
            Cell::new(&agent.name),
            state(if agent.online { "online" } else { "offline" }),
            Cell::new(&agent.role),
            Cell::new(agent.zone.to_string()),
            Cell::new(labels.join(",")),
            Cell::new(&agent.enrolled_at),
            Cell::new(&agent.id.to_string()[..12]),
        ]);
    }
    rows.to_string()
}

pub async fn token(command: &TokenCommand, client: &Client, screen: Screen) -> Result<(), Error> {
    match command {
        TokenCommand::Create { role, ttl, uses } => {
            create(*role, *ttl, *uses, client, screen).await
        }
        TokenCommand::List => {
            let tokens: Vec<JoinTokenInfo> = client.get("api/v1/join-tokens").await?;
            screen.show(&tokens, || {
                let mut rows = table(&["ID", "ROLE", "USES LEFT", "EXPIRES", "CREATED"]);
                for token in &tokens {
                    let uses = token.uses_left.map_or("any".to_owned(), |uses| uses.to_string());
                    rows.add_row([
                        &token.id,
                        &token.role,
                        &uses,
                        &token.expires_at,
                        &token.created_at,
                    ]);
                }
                rows.to_string()
            })
        }
        TokenCommand::Revoke { id } => {
            client.delete(format!("api/v1/join-tokens/{}", escaped(id))).await?;
            screen.show(&serde_json::json!({ "revoked": id }), || format!("Revoked {id}."))
        }
    }
}

async fn create(
    role: Role,
    ttl: Duration,
    uses: Option<u32>,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    let role = match role {
        Role::Agent => "agent",
        Role::Node => "node",
    };
    let request = CreateJoinToken { role: role.into(), ttl_seconds: ttl.as_secs(), uses };
    let created: JoinTokenCreated =
        client.call(Method::POST, "api/v1/join-tokens", &request).await?;
    screen.show(&created, || {
        format!(
            "{}\n\nShown once; good until {}. On the new machine:\n  shoal-{role} join --node https://NODE:PORT --token …",
            created.token, created.expires_at
        )
    })
}
