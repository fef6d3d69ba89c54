//! The certificates that the cluster's authority gave this node, issued anew long before they end, and
//! when another authority signs: the one that it shows other members, and the one for HTTPS; and whom
//! this node believes.
//!
//! The authority is in the metadata as this node has it, so that a cluster whose nodes were all away
//! until their certificates had ended comes up again by itself.
//!
//! Invariants: rows that are older than what this node was given when it joined change nothing; this
//! node says what holds of authorities once its rows have it, so that after a crash it holds again before
//! anybody is asked.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use shoal_content::NodeId;
use shoal_metadata::{AuthorityStep, Command, Event, NodeAuthority};
use shoal_p2p::identity::{self, Credentials, Role};
use shoal_raft::Raft;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tracing::{debug, info, warn};

use crate::authorities::{Authorities, Held};
use crate::clock::{now, rfc3339};
use crate::encryption::Vault;
use crate::home::Home;
use crate::http::Certificates;

/// How often the clock is looked at, which may jump.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(600);
/// Until the others are told again what they did not take.
const TELL_PAUSE: Duration = Duration::from_secs(1);

/// Renews the node's certificate, where it is time to, and believes whom the rows of this node say. Where
/// that fails, the old one is shown on.
pub fn renew(raft: &Raft, vault: &Vault, credentials: &Credentials, home: &Home) {
    let renewed = Held::read(raft.local().query(), vault)
        .map_err(anyhow::Error::from)
        .and_then(|held| held.map(|held| renewed(&held, credentials, home)).transpose());
    if let Err(error) = renewed {
        warn!("this node's certificate could not be renewed: {error:#}");
    }
}

/// What holds then; `None` where the rows are older than what is shown.
fn renewed(held: &Held, credentials: &Credentials, home: &Home) -> Result<Option<NodeAuthority>> {
    let Some(shows) = held.shown(credentials).filter(|shows| *shows <= held.number()) else {
        return Ok(None);
    };
    let believed = held.believed_pem();
    let changed = home.authorities()? != believed;
    if changed {
        credentials.trust().replace(identity::roots([believed.as_bytes()])?)?;
    }
    let replaced = shows < held.number();
    // A full disk may have kept it from the file that the next start reads.
    let kept = home.credentials().ok().and_then(|kept| held.shown(&kept));
    if replaced || kept != Some(shows) || credentials.is_due(now()) {
        let certificate = held.issue(&credentials.key().csr_pem()?, Role::Node)?;
        credentials.renew(&certificate)?;
        home.save_certificates(&certificate, &believed)?;
        info!(until = rfc3339(credentials.ends_at()), "this node's certificate was renewed");
    } else if changed {
        home.save_authorities(&believed)?;
    }
    if changed {
        info!(newest = held.newest(), "other authorities are believed than before");
    }
    Ok(Some(NodeAuthority { believes: held.newest(), shows: held.number() }))
}

/// Looks at both for as long as the node runs.
pub async fn keep(
    raft: Raft,
    node: NodeId,
    authorities: Authorities,
    credentials: Credentials,
    home: Arc<Home>,
    certificates: Certificates,
) {
    let mut events = raft.events();
    let mut pause = LOOK_INTERVAL;
    loop {
        match look(&raft, node, &authorities, &credentials, &home, &certificates).await {
            Ok(true) => pause = LOOK_INTERVAL,
            Ok(false) => pause = TELL_PAUSE,
            Err(error) => {
                warn!("this node's certificates could not be renewed: {error:#}");
                pause = RETRY_PAUSE_MAX.min(pause * 2);
            }
        }
        let _ = tokio::time::timeout(pause, changed(&mut events)).await;
    }
}

/// Whether the others know what holds here.
async fn look(
    raft: &Raft,
    node: NodeId,
    authorities: &Authorities,
    credentials: &Credentials,
    home: &Home,
    certificates: &Certificates,
) -> Result<bool> {
    let held = authorities.refresh(raft.local().query())?;
    let says = renewed(&held, credentials, home)?;
    let served = certificates.renew_cluster_if_due();
    served.context("the cluster's certificate for HTTPS")?;
    let Some(says) = says else { return Ok(true) };
    let known = {
        let view = raft.local();
        view.query().node(node)?.is_none() || view.query().node_authority(node)? == says
    };
    if known {
        return Ok(true);
    }
    let command = Command::StepAuthority(AuthorityStep::Note { node, says });
    let told = raft.propose(now(), command).await;
    if let Err(error) = &told {
        debug!(%error, "the others cannot be told which authorities are believed here");
    }
    Ok(told.is_ok())
}

/// Until authorities may have changed.
async fn changed(events: &mut Receiver<Event>) {
    loop {
        match events.recv().await {
            Ok(Event::AuthoritiesChanged | Event::AllChanged) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            // The node stops.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
