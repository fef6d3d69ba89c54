//! Keeps what the cluster knows of this node true, and its level as high as all nodes allow.
//!
//! A node that was upgraded says so by registering its row anew: which commands it knows, where it
//! answers. The level (see `shoal_metadata::Command::RaiseLevel`) rises when every node knows more:
//! by itself, or on an administrator's word where `raft.auto_upgrade` is off, which leaves time to
//! go back to the version before.
//!
//! Invariant: nothing is proposed while nothing is to be changed.

use std::time::Duration;

use shoal_metadata::{Command, FIRST_LEVEL, Node, Query, Read, Refusal, command_version};
use shoal_raft::{ProposeError, Raft, ReadError};
use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::clock::now;

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// Why the level could not be raised.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Rows(#[from] shoal_metadata::Fault),
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// What every node knows; the level where there is no node yet.
pub fn possible<R: Read>(query: Query<'_, R>) -> Result<u8, shoal_metadata::Fault> {
    let known = query.nodes()?.into_iter().map(|node| node.command_version);
    Ok(known.min().unwrap_or(FIRST_LEVEL).max(query.level()?))
}

/// Raises the level to what every node knows; answers what it is then.
///
/// # Errors
/// See [`Error`].
pub async fn raise(raft: &Raft) -> Result<u8, Error> {
    let view = raft.read().await?;
    let (level, to) = (view.query().level()?, possible(view.query())?);
    drop(view);
    if to > level {
        raft.propose(now(), Command::RaiseLevel { to }).await?;
        info!(from = level, to, "the cluster's level was raised");
    }
    Ok(to)
}

/// Runs until it is dropped. `row` is this node as it would have others know it.
pub async fn keep(raft: Raft, row: Node, auto_upgrade: bool) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complained = false;
    loop {
        ticks.tick().await;
        match look(&raft, &row, auto_upgrade).await {
            Ok(()) => complained = false,
            // Come again: a leader will be found, or the level rises.
            Err(Error::Propose(ProposeError::Refused(refusal))) => {
                if !complained {
                    warn!(%refusal, "the cluster does not take what this node says of itself");
                }
                complained = true;
            }
            Err(error) => debug!(%error, "this node's row cannot be looked at now"),
        }
    }
}

async fn look(raft: &Raft, row: &Node, auto_upgrade: bool) -> Result<(), Error> {
    let (counts, indexes, indexes_lists);
    let (registered, program, level, possible) = {
        // The newest rows are not needed: this comes again.
        let view = raft.local();
        let query = view.query();
        (counts, indexes) = (query.counts_usage()?, query.indexes_blobs()?);
        indexes_lists = query.indexes_lists()?;
        (query.node(row.id)?, query.program(row.id)?, query.level()?, possible(query)?)
    };
    // One that was removed has no row, and does not come back by itself.
    let Some(registered) = registered else { return Ok(()) };
    if differs(&registered, row) {
        // Where Raft reaches it, its membership says; that is changed by joining anew.
        let raft_address = registered.raft_address;
        let row = Node { raft_address, joined_at: registered.joined_at, ..row.clone() };
        info!(knows = row.command_version, "this node registers anew");
        raft.propose(now(), Command::RegisterNode(row)).await?;
    }
    let runs = env!("CARGO_PKG_VERSION");
    if program.as_deref() != Some(runs) && level > FIRST_LEVEL {
        let describe = Command::DescribeNode { id: row.id, program: runs.to_owned() };
        raft.propose(now(), describe).await?;
    }
    let leads = raft.status().is_leader;
    // A cluster that was founded before there were quotas.
    if !counts && level >= command_version(&Command::CountUsage) && leads {
        raft.propose(now(), Command::CountUsage).await?;
        info!("what projects hold was counted");
    }
    if !indexes && level >= command_version(&Command::IndexBlobs) && leads {
        raft.propose(now(), Command::IndexBlobs).await?;
        info!("it was written down who holds which blob");
    }
    if !indexes_lists && level >= command_version(&Command::IndexLists) && leads {
        raft.propose(now(), Command::IndexLists).await?;
        info!("it was written down what lists go by");
    }
    if auto_upgrade && possible > level && leads {
        match raise(raft).await {
            // A node has joined or gone back since.
            Err(Error::Propose(ProposeError::Refused(Refusal::TooOld { .. }))) => {}
            raised => drop(raised?),
        }
    }
    Ok(())
}

fn differs(old: &Node, new: &Node) -> bool {
    let said = |node: &Node| {
        (
            node.name.clone(),
            node.zone.clone(),
            node.peer_address.clone(),
            node.discovery_address.clone(),
            node.api_url.clone(),
            node.command_version,
        )
    };
    said(old) != said(new)
}
