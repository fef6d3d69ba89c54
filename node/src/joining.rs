//! How a new node becomes a member of a cluster: one request with a token, and three files.
//!
//! Order: the key (made with the data folder), the request, the certificates, `member.json`. A join
//! that is cut off anywhere is made again with the same key and gets the same id. What follows is
//! the leader's: it makes the node a member once it runs (see `api`, `cluster`).
//!
//! Whom the token is sent to, `identity::AuthorityPin` decides.

use std::time::Duration;

use shoal_api::{JoinRequest, JoinResponse, Problem};
use shoal_p2p::identity::{self, AuthorityPin};
use thiserror::Error;

use crate::config::Config;
use crate::encryption::{self, MasterKeyError};
use crate::home::{self, Home, Member};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a node did not join.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Home(#[from] home::Error),
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("the master key cannot be used, without which this node could not run")]
    Master(#[source] MasterKeyError),
    #[error("{url} could not be asked")]
    Request { url: String, source: reqwest::Error },
    #[error("{url} refused ({code}): {message}")]
    Refused { url: String, code: String, message: String },
    #[error("{url} answered with another authority than the join token names")]
    Authority { url: String },
}

/// Joins the cluster that `url` is a node of. A node that is a member already is refused, and one that
/// has another membership's log, unless it is that of a founding that was cut off.
///
/// # Errors
/// See [`Error`].
pub async fn join(config: &Config, url: &str, token: &str) -> Result<Member, Error> {
    encryption::prove(&config.encryption).await.map_err(Error::Master)?;
    let home = Home::open(&config.node.data_dir)?;
    if home.member()?.is_some() {
        return Err(home::Error::Exists(home.folder().into()).into());
    }
    home.drop_unfounded()?;
    home.check_unused()?;
    let token = token.trim();
    let pin = AuthorityPin::of_token(token)?;
    let url = url.trim_end_matches('/').to_owned();
    let failed = |source| Error::Request { url: url.clone(), source };
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(pin.client_config()?)
        .https_only(true)
        .no_proxy()
        .timeout(REQUEST_TIMEOUT)
        .build()
        .map_err(failed)?;
    let request = JoinRequest {
        token: token.to_owned(),
        name: config.node.name.clone(),
        csr_pem: home.key().csr_pem().map_err(home::Error::from)?,
        zone: config.node.zone.clone(),
        raft_address: config.raft_address(),
        peer_address: config.peer_address(),
        discovery_address: config.discovery_address(),
        api_url: config.api_url(),
        command_version: config.program.command_version(),
    };
    let sent = client.post(format!("{url}/api/v1/cluster/join")).json(&request).send();
    let answer = sent.await.map_err(failed)?;
    if !answer.status().is_success() {
        let status = answer.status();
        let problem = answer.json::<Problem>().await.unwrap_or_else(|_| Problem {
            code: "unknown".into(),
            message: status.to_string(),
            request_id: None,
            quota: None,
        });
        return Err(Error::Refused { url, code: problem.code, message: problem.message });
    }
    let joined: JoinResponse = answer.json().await.map_err(failed)?;
    if !pin.names(&joined.authority_pem) {
        return Err(Error::Authority { url });
    }
    // While one authority takes the place of another, there are more than the token names, or others.
    let believed = joined.believed_pem.as_ref().unwrap_or(&joined.authority_pem);
    home.save_certificates(&joined.certificate_pem, believed)?;
    let (cluster, lineage) = (joined.cluster, joined.lineage);
    let member = Member { cluster, node: joined.id.number(), lineage };
    home.save_member(&member)?;
    Ok(member)
}
