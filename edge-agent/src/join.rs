//! Joining a cluster: a token in, an identity out.
//!
//! Order: the key is made and synced, the node signs a certificate for it, the nodes are written,
//! then the enrolment, whose presence means that the join is done (see `enrolment`).

use std::collections::BTreeMap;

use shoal_api::EnrolRequest;
use shoal_p2p::identity::KeyPair;
use thiserror::Error;
use tracing::info;

use crate::config::Config;
use crate::enrolment::{self, DataFolder, Enrolment};
use crate::nodes;

/// Why a join failed.
#[derive(Debug, Error)]
pub enum Error {
    #[error(
        "this agent belongs to {cluster} already (data in {folder}); remove that folder to join another cluster"
    )]
    Enrolled { cluster: String, folder: String },
    #[error("the identity could not be made: {0}")]
    Identity(String),
    #[error(transparent)]
    Nodes(#[from] nodes::Error),
    #[error(transparent)]
    Folder(#[from] enrolment::Error),
    #[error("this host's name could not be read; give --name")]
    Name,
}

/// Enrols at `node` (a URL) with `token` and keeps what comes back.
pub async fn join(
    folder: &DataFolder,
    config: &Config,
    node: &str,
    token: &str,
) -> Result<Enrolment, Error> {
    if let Some(enrolment) = folder.enrolment()? {
        return Err(Error::Enrolled {
            cluster: enrolment.cluster.to_string(),
            folder: folder.path().display().to_string(),
        });
    }
    let key = KeyPair::load_or_create(&folder.key_path())
        .map_err(|error| Error::Identity(nodes::chain(&error)))?;
    let csr_pem = key.csr_pem().map_err(|error| Error::Identity(nodes::chain(&error)))?;
    let name = config.agent.name.clone().or_else(host_name).ok_or(Error::Name)?;
    let labels: BTreeMap<String, String> = config.agent.labels.clone().into();
    let request = EnrolRequest {
        token: token.to_owned(),
        name: name.clone(),
        csr_pem,
        role: config.agent.role.as_str().to_owned(),
        zone: config.agent.zone.clone(),
        labels,
    };
    let url = if node.contains("://") { node.to_owned() } else { format!("https://{node}") };
    let response = nodes::enrol(&url, &request).await?;
    let enrolment = Enrolment {
        cluster: response.cluster,
        name,
        zone: config.agent.zone.clone(),
        role: config.agent.role,
        certificate_pem: response.certificate_pem,
        // While one authority takes the place of another, there are more than the token names, or others.
        authority_pem: response.believed_pem.unwrap_or(response.authority_pem),
        ticket_public_key: response.ticket_public_key,
        network_key: response.network_key,
    };
    folder.save_nodes(&response.nodes)?;
    folder.save_ticket_keys(&response.ticket_keys)?;
    folder.save_enrolment(&enrolment)?;
    info!(cluster = %enrolment.cluster, peer = %key.peer_id(), "joined");
    Ok(enrolment)
}

/// As the kernel has it, up to the first dot.
pub fn host_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = text.trim().split('.').next()?.to_owned();
    (!name.is_empty()).then_some(name)
}
