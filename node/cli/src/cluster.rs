//! The cluster's nodes: list, add, remove, replace; and the keys that it signs with.

mod authority;

use std::time::Duration;

use comfy_table::{Cell, Table};
use reqwest::Method;
use shoal_api::{
    ClusterStatus, CreateJoinToken, JoinTokenCreated, LevelRaised, NodeStatus, RotateKey,
    SigningKeyInfo,
};
use shoal_content::NodeId;

use crate::arguments::ClusterCommand;
use crate::client::Client;
use crate::error::Error;
use crate::screen::{Screen, confirm, state, table};
use crate::session::node_table;

pub async fn cluster(
    command: &ClusterCommand,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    let status: ClusterStatus = client.get("api/v1/cluster").await?;
    match command {
        ClusterCommand::Nodes => {
            screen.show(&status.nodes, || format!("{}\n{}", node_table(&status), level(&status)))
        }
        ClusterCommand::Upgrade => {
            let nothing = serde_json::json!({});
            let raised: LevelRaised =
                client.call(Method::POST, "api/v1/cluster/upgrade", &nothing).await?;
            screen.show(&raised, || match raised {
                LevelRaised { from, to } if from == to => {
                    format!("The cluster is at level {to}, which is all that every node knows.")
                }
                LevelRaised { from, to } => format!(
                    "The cluster's level rose from {from} to {to}; nodes of the version before \
                     cannot come back."
                ),
            })
        }
        ClusterCommand::Keys => {
            let keys: Vec<SigningKeyInfo> = client.get("api/v1/cluster/keys").await?;
            screen.show(&keys, || key_table(&keys).to_string())
        }
        ClusterCommand::RotateKey { purpose, distrust, yes } => {
            rotate_key(client, screen, purpose, *distrust, *yes).await
        }
        ClusterCommand::Authority(command) => authority::authority(command, client, screen).await,
        ClusterCommand::Add { ttl } => {
            let made = token(client, *ttl).await?;
            screen.show(&made, || how_to_join(&status, &made, None))
        }
        ClusterCommand::Remove { node, force, yes } => {
            let node = chosen(&status, node, *yes)?;
            remove(client, node, *force).await?;
            screen.show(&serde_json::json!({ "removed": node }), || {
                format!(
                    "Removed {} (node {}). Its machine can be switched off, and its data deleted.",
                    node.name, node.id
                )
            })
        }
        ClusterCommand::Replace { node, ttl, force, yes } => {
            let node = chosen(&status, node, *yes)?;
            // The token first: where it is refused, the cluster is still whole.
            let made = token(client, *ttl).await?;
            if let Err(error) = remove(client, node, *force).await {
                // It was shown to nobody. Where it stays all the same, it ends with its time.
                let _ = client.delete(format!("api/v1/join-tokens/{}", made.id)).await;
                return Err(error);
            }
            screen.show(&serde_json::json!({ "removed": node, "token": made }), || {
                format!(
                    "Removed {} (node {}).\n\n{}",
                    node.name,
                    node.id,
                    how_to_join(&status, &made, Some(node.id))
                )
            })
        }
    }
}

fn key_table(keys: &[SigningKeyInfo]) -> Table {
    let mut rows = table(&["SIGNS", "KEY", "STATE", "SIGNS FROM", "BELIEVED UNTIL", "PUBLIC KEY"]);
    for key in keys {
        rows.add_row([
            Cell::new(&key.purpose),
            Cell::new(key.number),
            state(&key.state),
            Cell::new(&key.signs_from),
            Cell::new(key.believed_until.as_deref().unwrap_or("-")),
            Cell::new(&key.public_key),
        ]);
    }
    rows
}

async fn rotate_key(
    client: &Client,
    screen: Screen,
    purpose: &str,
    distrust: bool,
    yes: bool,
) -> Result<(), Error> {
    let question = match purpose {
        "token" => "End every login and every token of this cluster, your own too?",
        _ => "End every agent's right to what it fetches now? They ask for it again.",
    };
    if distrust && !yes && !confirm(question)? {
        return Err(Error::Usage("nothing was changed; --yes does it without asking".into()));
    }
    let path = format!("api/v1/cluster/keys/{purpose}/rotate");
    let keys: Vec<SigningKeyInfo> =
        client.call(Method::POST, path, &RotateKey { distrust }).await?;
    let said = match (purpose, distrust) {
        (_, false) => "The new key signs in an hour, when every agent that is connected knows it.",
        ("token", true) => "All logins have ended, this one too: 'shoal login' begins another.",
        (_, true) => "Agents get new tickets when they ask for the next image, or again.",
    };
    screen.show(&keys, || format!("{}\n{said}", key_table(&keys)))
}

/// How far the cluster is in an upgrade.
fn level(status: &ClusterStatus) -> String {
    let ClusterStatus { level, level_possible, nodes, .. } = status;
    let most = nodes.iter().map(|node| node.level).max().unwrap_or(*level);
    if *level_possible > *level {
        return format!(
            "The cluster is at level {level}; every node knows {level_possible}: it rises by \
             itself, or by 'shoal cluster upgrade'."
        );
    }
    if most > *level {
        let behind: Vec<&str> =
            nodes.iter().filter(|node| node.level < most).map(|node| node.name.as_str()).collect();
        return format!(
            "The cluster is at level {level} and rises to {most} when these are upgraded: {}.",
            behind.join(", ")
        );
    }
    format!("The cluster is at level {level}.")
}

async fn token(client: &Client, ttl: Duration) -> Result<JoinTokenCreated, Error> {
    let request =
        CreateJoinToken { role: "node".into(), ttl_seconds: ttl.as_secs(), uses: Some(1) };
    client.call(Method::POST, "api/v1/join-tokens", &request).await
}

/// `removed` is who cannot be asked any more.
fn how_to_join(status: &ClusterStatus, made: &JoinTokenCreated, removed: Option<NodeId>) -> String {
    let mut stay = status.nodes.iter().filter(|node| Some(node.id) != removed);
    // Whoever has just answered is surely there.
    let through = stay.clone().find(|node| node.id == status.answered_by).or_else(|| stay.next());
    let url = through.map_or("https://NODE:5000", |node| &node.api_url);
    format!(
        "On the new machine, with a name and addresses of its own in /etc/shoal/node.toml:\n\
         \x20 shoal-node join --node {url} --token '{}'\n\
         \x20 systemctl enable --now shoal-node\n\
         The token is shown once, for one node, and good until {}.",
        made.token, made.expires_at
    )
}

/// The node that `wanted` names, once whoever asks for its removal is sure.
fn chosen<'a>(status: &'a ClusterStatus, wanted: &str, yes: bool) -> Result<&'a NodeStatus, Error> {
    let is_it = |node: &&NodeStatus| node.name == wanted || node.id.to_string() == wanted;
    let members = status.nodes.iter().filter(|node| node.role != "removed");
    let node = members.clone().find(is_it);
    let node = node.ok_or_else(|| Error::NotFound(format!("no node '{wanted}'")))?;
    let left = members.count().saturating_sub(1);
    // A group of an even number bears no more losses than one of one member less.
    let bears = left.saturating_sub(1) / 2;
    let question = format!(
        "Remove {} (node {})? {left} nodes stay, which work on while {bears} of them fail.",
        node.name, node.id
    );
    if !yes && !confirm(&question)? {
        return Err(Error::Usage("nothing was removed; --yes removes without asking".into()));
    }
    Ok(node)
}

async fn remove(client: &Client, node: &NodeStatus, force: bool) -> Result<(), Error> {
    client.delete(format!("api/v1/cluster/nodes/{}?force={force}", node.id.number())).await
}

#[cfg(test)]
mod tests {
    use shoal_content::{ClusterId, PeerId, Zone};

    use super::*;

    #[test]
    fn a_node_joins_through_one_that_stays() {
        let node = |number: u64| NodeStatus {
            id: NodeId::new(number),
            name: format!("node-{number}"),
            peer: PeerId::from_public_key([number as u8; 32]),
            zone: Zone::default(),
            role: "voter".to_owned(),
            api_url: format!("https://node-{number}:5000"),
            raft_address: String::new(),
            peer_address: String::new(),
            program: None,
            level: 1,
        };
        let status = |answered_by: u64| ClusterStatus {
            cluster: ClusterId::from_bytes([1; 16]),
            answered_by: NodeId::new(answered_by),
            leader: None,
            term: 1,
            last_log_index: 1,
            last_applied_index: 1,
            nodes: [1, 2, 3].map(node).to_vec(),
            version: String::new(),
            level: 1,
            level_possible: 1,
        };
        let made = JoinTokenCreated {
            id: "id".to_owned(),
            token: "token".to_owned(),
            expires_at: "soon".to_owned(),
        };
        for (answered_by, removed, through) in
            [(2, None, 2), (2, Some(1), 2), (1, Some(1), 2), (3, Some(3), 1)]
        {
            let said = how_to_join(&status(answered_by), &made, removed.map(NodeId::new));
            let wanted = format!("--node https://node-{through}:5000 ");
            assert!(said.contains(&wanted), "{answered_by} {removed:?}: {said}");
        }
    }
}
