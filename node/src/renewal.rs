//! The certificates that the cluster's authority gave this node, issued anew long before they end:
//! the one that it shows other members, and the one for HTTPS.
//!
//! The authority is in the metadata as this node has it, so that a cluster whose nodes were all away
//! until their certificates had ended comes up again by itself.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use shoal_p2p::identity::{Credentials, Role};
use shoal_raft::Raft;
use tracing::{info, warn};

use crate::clock::{now, rfc3339};
use crate::encryption::Vault;
use crate::home::Home;
use crate::http::Certificates;
use crate::state::authority;

/// How often the clock is looked at, which may jump.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(600);

/// Renews the node's certificate, where it is time to. Where that fails (`false`), the old one is
/// shown on.
pub fn renew(raft: &Raft, vault: &Vault, credentials: &Credentials, home: &Home) -> bool {
    if !credentials.is_due(now()) {
        return true;
    }
    match renewed(raft, vault, credentials, home) {
        Ok(()) => {
            info!(until = rfc3339(credentials.ends_at()), "this node's certificate was renewed");
            true
        }
        Err(error) => {
            warn!("this node's certificate could not be renewed: {error:#}");
            false
        }
    }
}

fn renewed(raft: &Raft, vault: &Vault, credentials: &Credentials, home: &Home) -> Result<()> {
    let row = raft.local().query().cluster()?.context("the cluster's row is not here")?;
    let authority = authority(&row, vault)?;
    let certificate = authority.issue(&credentials.key().csr_pem()?, Role::Node)?;
    credentials.renew(&certificate)?;
    Ok(home.save_certificates(&certificate, authority.certificate_pem())?)
}

/// Looks at both for as long as the node runs.
pub async fn keep(
    raft: Raft,
    vault: Vault,
    credentials: Credentials,
    home: Arc<Home>,
    certificates: Certificates,
) {
    let mut pause = LOOK_INTERVAL;
    loop {
        tokio::time::sleep(pause).await;
        let mut good = renew(&raft, &vault, &credentials, &home);
        if let Err(error) = certificates.renew_cluster_if_due() {
            warn!("the cluster's certificate for HTTPS could not be renewed: {error:#}");
            good = false;
        }
        pause = if good { LOOK_INTERVAL } else { RETRY_PAUSE_MAX.min(pause * 2) };
    }
}
