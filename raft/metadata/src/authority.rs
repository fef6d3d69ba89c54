//! The certificate authorities of the cluster: one, and two while another takes its place.
//!
//! A rotation goes through three states, of which each begins with a command that looks again:
//! 1. **announced**: there is another authority, and its certificate is told to nodes and agents, who
//!    from then on believe both. The one before has signed its certificate, too, so that who has not
//!    heard of it can believe it all the same.
//! 2. **signs**: every node has said that it believes it, and agents had
//!    [`AUTHORITY_ANNOUNCED_MS`] to hear of it. Nodes and agents get certificates of the new one.
//! 3. **retired**: every node has said that it shows such a certificate, and agents had
//!    [`AUTHORITY_OVERLAP_MS`] to get one. The one before is believed no longer, and its private key
//!    is gone from the rows. Its certificate stays for a while, and so does the one that it signed:
//!    they lead whoever was away to the new one.
//!
//! A rotation that is hurried, since others may have the key, waits for no time, but for the nodes: one
//! that was left behind could not come back.
//!
//! Invariants: one authority signs; at most two are believed; a number is never used twice.
//! Non-goals: certificates and keys, which are texts here; who asks for a rotation.

use serde::{Deserialize, Serialize};
use shoal_content::{NodeId, Timestamp};

use crate::key;
use crate::query::Query;
use crate::record::{Cluster, Secret};
use crate::table::{Fault, Read, Table};
use crate::transaction::row;

/// From when an authority is announced until it signs, in milliseconds.
pub const AUTHORITY_ANNOUNCED_MS: u64 = 24 * 3600 * 1000;
/// From when it signs until the one before is retired, in milliseconds: a host that was away for less
/// notices nothing, even where it meets other hosts before a node.
pub const AUTHORITY_OVERLAP_MS: u64 = 30 * 24 * 3600 * 1000;
/// Retired ones whose certificates stay: who was away for longer than it takes to replace so many joins
/// anew.
pub const AUTHORITIES_RETIRED_MAX: usize = 3;
/// Of a certificate or a private key (PEM), sealed or not; those of P-256 have less than one KiB.
pub const AUTHORITY_BYTES_MAX: usize = 8 * 1024;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterAuthority {
    /// From 0, which came with the cluster.
    pub number: u32,
    /// PEM, signed by itself.
    pub certificate: String,
    /// PEM: the same key and name, signed by the authority before; the first has none.
    pub vouched: Option<String>,
    /// PKCS#8 PEM; gone once it is retired. That of the first is in the cluster's own row.
    pub key: Option<Secret>,
    /// Its rotation waits for no time, and those before it are to be believed no longer.
    pub hurried: bool,
    pub state: AuthorityState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuthorityState {
    /// Believed, and signs nothing yet.
    Announced { since: Timestamp },
    /// Signs, as long as no later one does.
    Signs { since: Timestamp },
    /// Nothing that it signed is believed; where it is distrusted, others may have its key.
    Retired { at: Timestamp, distrusted: bool },
}

impl ClusterAuthority {
    /// The one that came with the cluster.
    fn first(cluster: Cluster) -> Self {
        Self {
            number: 0,
            certificate: cluster.authority_certificate,
            vouched: None,
            key: Some(cluster.authority_key),
            hurried: false,
            state: AuthorityState::Signs { since: cluster.founded_at },
        }
    }

    pub fn is_believed(&self) -> bool {
        !matches!(self.state, AuthorityState::Retired { .. })
    }
}

/// The place in `all` of the one that signs.
pub fn signing_authority(all: &[ClusterAuthority]) -> Option<usize> {
    all.iter().rposition(|one| matches!(one.state, AuthorityState::Signs { .. }))
}

/// What a node has said of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAuthority {
    /// The newest authority that it believes.
    pub believes: u32,
    /// Whose certificate it shows.
    pub shows: u32,
}

/// A step of a rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuthorityStep {
    /// Announces another authority; refused where `newest` is not the newest any more, and while a
    /// rotation is under way.
    Announce { newest: u32, certificate: String, vouched: String, key: Secret, hurried: bool },
    /// Has the rotation to this one wait for no time.
    Hurry { number: u32 },
    /// What a node says of itself.
    Note { node: NodeId, says: NodeAuthority },
    /// It signs from now on; refused before it is time.
    Sign { number: u32 },
    /// Those before it are believed no longer; refused before it is time. Where the rotation was
    /// hurried, join tokens go that were made before it signed: who holds the old key may have learnt
    /// them.
    Retire { number: u32 },
}

/// What a rotation that is under way waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityNext {
    pub number: u32,
    /// Whether the step is to retire the one before; else it is to sign.
    pub retires: bool,
    pub not_before: Timestamp,
    /// Nodes that have not said what they must have said.
    pub nodes: Vec<NodeId>,
}

impl AuthorityNext {
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.nodes.is_empty() && self.not_before <= now
    }

    pub fn step(&self) -> AuthorityStep {
        let number = self.number;
        match self.retires {
            true => AuthorityStep::Retire { number },
            false => AuthorityStep::Sign { number },
        }
    }
}

impl<R: Read> Query<'_, R> {
    /// The authorities, oldest first; none before there is a cluster.
    ///
    /// # Errors
    /// Where the metadata cannot be read.
    pub fn authorities(&self) -> Result<Vec<ClusterAuthority>, Fault> {
        let Some(cluster) = self.cluster()? else { return Ok(Vec::new()) };
        let Some(mut all) = self.rotated_authorities()? else {
            return Ok(vec![ClusterAuthority::first(cluster)]);
        };
        if let Some(first) = all.iter_mut().find(|one| one.number == 0 && one.is_believed()) {
            first.key = Some(cluster.authority_key);
        }
        Ok(all)
    }

    /// As they are stored, once there was a second one.
    pub(crate) fn rotated_authorities(&self) -> Result<Option<Vec<ClusterAuthority>>, Fault> {
        row(self.read, Table::Cluster, key::AUTHORITIES)
    }

    /// What a node has said of itself last.
    ///
    /// # Errors
    /// Where the metadata cannot be read.
    pub fn node_authority(&self, node: NodeId) -> Result<NodeAuthority, Fault> {
        let said: Option<NodeAuthority> =
            row(self.read, Table::Cluster, &key::node_authority(node))?;
        Ok(said.unwrap_or_default())
    }

    /// `None` where no rotation is under way.
    ///
    /// # Errors
    /// Where the metadata cannot be read.
    pub fn authority_next(&self) -> Result<Option<AuthorityNext>, Fault> {
        let all = self.authorities()?;
        let Some((last, before)) = all.split_last() else { return Ok(None) };
        let (retires, since, lasts) = match last.state {
            AuthorityState::Announced { since } => (false, since, AUTHORITY_ANNOUNCED_MS),
            AuthorityState::Signs { since } if before.iter().any(ClusterAuthority::is_believed) => {
                (true, since, AUTHORITY_OVERLAP_MS)
            }
            _ => return Ok(None),
        };
        // By whose clock it was announced matters no longer where it is hurried: that may have been wrong.
        let at_once = Timestamp::from_millis(0);
        let not_before = if last.hurried { at_once } else { since.plus_millis(lasts) };
        let mut nodes = Vec::new();
        for node in self.nodes()? {
            let said = self.node_authority(node.id)?;
            let reached = if retires { said.shows } else { said.believes };
            if reached < last.number {
                nodes.push(node.id);
            }
        }
        Ok(Some(AuthorityNext { number: last.number, retires, not_before, nodes }))
    }
}
