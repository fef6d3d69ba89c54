//! Changes of the group: a new member learns first and votes when it has caught up.
//!
//! Both changes can be asked for again: what is done already is no error. A node id is never used
//! again after its disk was wiped; that is the proposer's care (`Query::next_node_id`).

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers};
use shoal_content::NodeId;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::core::{Core, Leader, Shared};
use crate::error::Error;
use crate::proposal::TypeConfig;
use crate::wire::{AddMember, Failure, Kind};

/// How long a new member may take to catch up, on one leader.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(120);

/// How long the leader's answer is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(125);

/// How long a change is tried, over elections.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(180);

const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// A change that is wanted.
enum Change {
    Add(AddMember),
    Remove(u64),
}

pub async fn add(shared: &Shared, id: u64, address: String) -> Result<(), Error> {
    change(shared, &Change::Add(AddMember { id, address })).await
}

pub async fn remove(shared: &Shared, id: u64) -> Result<(), Error> {
    change(shared, &Change::Remove(id)).await
}

/// Has the leader make a change, whoever that is in the end.
async fn change(shared: &Shared, wanted: &Change) -> Result<(), Error> {
    let deadline = Instant::now() + CHANGE_TIMEOUT;
    let mut last = "no leader is known".to_owned();
    loop {
        match timeout_at(deadline, attempt(shared, wanted)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Failure::Membership(reason))) => return Err(Error::Membership(reason)),
            Ok(Err(failure)) => last = failure.to_string(),
            Err(_) => return Err(Error::Unavailable(last)),
        }
        if timeout_at(deadline, sleep(RETRY_INTERVAL)).await.is_err() {
            return Err(Error::Unavailable(last));
        }
    }
}

async fn attempt(shared: &Shared, wanted: &Change) -> Result<(), Failure> {
    let leader = shared.core()?.leader(shared.me());
    let called = match (&leader, wanted) {
        (Leader::Me, Change::Add(new)) => return add_here(shared, new).await,
        (Leader::Me, Change::Remove(id)) => return remove_here(shared, *id).await,
        (Leader::Other(address), Change::Add(new)) => {
            shared.peers.call(address, Kind::AddMember, new, ANSWER_TIMEOUT).await
        }
        (Leader::Other(address), Change::Remove(id)) => {
            shared.peers.call(address, Kind::RemoveMember, id, ANSWER_TIMEOUT).await
        }
        (Leader::Unknown, _) => return Err(Failure::NotLeader { leader: None }),
    };
    called.unwrap_or_else(|error| Err(Failure::Unavailable(error.to_string())))
}

enum Known {
    Voter(String),
    Learner,
    No,
}

fn known(core: &Core, id: u64) -> Known {
    let metrics = core.engine.metrics();
    let metrics = metrics.borrow_watched();
    let members = metrics.membership_config.membership();
    match members.get_node(&id) {
        Some(node) if members.voter_ids().any(|voter| voter == id) => {
            Known::Voter(node.addr.clone())
        }
        Some(_) => Known::Learner,
        None => Known::No,
    }
}

/// Adds a member on the leader.
pub async fn add_here(shared: &Shared, new: &AddMember) -> Result<(), Failure> {
    let core = shared.core()?;
    check_not_retired(&core, new.id)?;
    match known(&core, new.id) {
        Known::Voter(address) if address == new.address => return Ok(()),
        Known::Voter(address) => {
            let reason = format!("node {} is a member at {address}", new.id);
            return Err(Failure::Membership(reason));
        }
        Known::Learner | Known::No => {}
    }
    let adding = async {
        let node = BasicNode::new(&new.address);
        core.engine.add_learner(new.id, node, true).await?;
        let voters = ChangeMembers::AddVoterIds(BTreeSet::from([new.id]));
        core.engine.change_membership(voters, true).await
    };
    match timeout(CATCH_UP_TIMEOUT, adding).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(failure(&core, shared.me(), &error)),
        Err(_) => {
            let reason = format!("node {} did not catch up in time", new.id);
            Err(Failure::Membership(reason))
        }
    }
}

/// Who was removed votes no more, whatever was under way when its row went.
fn check_not_retired(core: &Core, id: u64) -> Result<(), Failure> {
    let retired = core.view().query().retired_node(NodeId::new(id));
    match retired.map_err(|fault| Failure::Unavailable(fault.to_string()))? {
        Some(_) => {
            let reason = format!("node {id} was removed from this cluster");
            Err(Failure::Membership(reason))
        }
        None => Ok(()),
    }
}

/// Removes a member on the leader, which may be itself: it steps down when that is done.
pub async fn remove_here(shared: &Shared, id: u64) -> Result<(), Failure> {
    let core = shared.core()?;
    let ids = BTreeSet::from([id]);
    let change = match known(&core, id) {
        Known::No => return Ok(()),
        Known::Learner => ChangeMembers::RemoveNodes(ids),
        Known::Voter(_) => ChangeMembers::RemoveVoters(ids),
    };
    match core.engine.change_membership(change, false).await {
        Ok(_) => Ok(()),
        Err(error) => Err(failure(&core, shared.me(), &error)),
    }
}

type ChangeError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

fn failure(core: &Core, me: u64, error: &ChangeError) -> Failure {
    match error {
        RaftError::APIError(
            ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_),
        ) => core.not_leader(me),
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
        )) => Failure::Unavailable(error.to_string()),
        RaftError::APIError(error) => Failure::Membership(error.to_string()),
        RaftError::Fatal(error) => Failure::Unavailable(error.to_string()),
    }
}
