//! This agent's certificate: a node issues another one long before it ends. Until then, and while no
//! node answers, the old one is shown.

use std::sync::Arc;
use std::time::Duration;

use shoal_p2p::identity::Credentials;
use shoal_p2p::{Swarm, wall_clock};
use thiserror::Error;
use tracing::{info, warn};

use crate::blocking;
use crate::enrolment::{self, DataFolder, Enrolment};
use crate::nodes::{self, NodeClient};

/// How often the clock is looked at, which may jump.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Before nodes that did not give one are asked again, and at most.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(600);

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
pub async fn keep(
    swarm: Swarm,
    client: Arc<NodeClient>,
    folder: Arc<DataFolder>,
    mut enrolment: Enrolment,
) {
    let mut pause = RETRY_PAUSE;
    loop {
        let credentials = swarm.credentials();
        if !credentials.is_due(wall_clock()) {
            tokio::time::sleep(LOOK_INTERVAL).await;
            continue;
        }
        match renew(credentials, &client, &folder, &mut enrolment).await {
            Ok(()) => {
                info!("this agent's certificate was renewed");
                pause = RETRY_PAUSE;
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                warn!("this agent's certificate could not be renewed: {error:#}");
                // Not all agents at once.
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                pause = RETRY_PAUSE_MAX.min(pause * 2);
            }
        }
    }
}

async fn renew(
    credentials: &Credentials,
    client: &NodeClient,
    folder: &Arc<DataFolder>,
    enrolment: &mut Enrolment,
) -> Result<(), Error> {
    let issued = client.certificate(credentials.key().csr_pem()?).await?;
    credentials.renew(&issued.certificate_pem)?;
    enrolment.certificate_pem = issued.certificate_pem;
    let (folder, kept) = (Arc::clone(folder), enrolment.clone());
    match blocking(move || folder.save_enrolment(&kept)).await {
        Some(saved) => Ok(saved?),
        // It is stopping.
        None => Ok(()),
    }
}
