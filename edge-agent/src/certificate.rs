//! This agent's certificate: a node issues another one long before it ends, and when another authority
//! signs. Until then, and while no node answers, the old one is shown.

use std::sync::Arc;
use std::time::Duration;

use shoal_p2p::identity::Credentials;
use shoal_p2p::{Swarm, wall_clock};
use thiserror::Error;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::authority::Keeper;
use crate::enrolment;
use crate::nodes::{self, NodeClient};

/// How often the clock is looked at, which may jump.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Before nodes that did not give one are asked again, and at most.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(600);
/// All agents hear of another authority at once, and come within this.
const SPREAD: Duration = Duration::from_secs(10);

#[derive(Debug, Error)]
enum Error {
    #[error("no node gives one")]
    Nodes(#[from] nodes::Error),
    #[error("it cannot be used")]
    Identity(#[from] shoal_p2p::identity::Error),
    #[error("it cannot be kept")]
    Folder(#[from] enrolment::Error),
}

/// Looks at it for as long as the agent runs.
pub async fn keep(swarm: Swarm, client: Arc<NodeClient>, authority: Keeper) {
    let mut signs = authority.signs();
    let mut pause = RETRY_PAUSE;
    loop {
        let credentials = swarm.credentials();
        let is_due = credentials.is_due(wall_clock());
        if !is_due && !authority.is_replaced(credentials) {
            let _ = timeout(LOOK_INTERVAL, signs.changed()).await;
            continue;
        }
        if !is_due {
            sleep(SPREAD.mul_f64(rand::random_range(0.0..1.0))).await;
        }
        match renew(credentials, &client, &authority).await {
            Ok(()) => {
                info!("this agent's certificate was renewed");
                pause = RETRY_PAUSE;
                if authority.is_replaced(credentials) {
                    // By a node that has not heard of the new one yet.
                    sleep(RETRY_PAUSE).await;
                }
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                warn!("this agent's certificate could not be renewed: {error:#}");
                // Not all agents at once.
                sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                pause = RETRY_PAUSE_MAX.min(pause * 2);
            }
        }
    }
}

async fn renew(
    credentials: &Credentials,
    client: &NodeClient,
    authority: &Keeper,
) -> Result<(), Error> {
    let issued = client.certificate(credentials.key().csr_pem()?).await?;
    credentials.renew(&issued.certificate_pem)?;
    Ok(authority.save_certificate(issued.certificate_pem).await?)
}
