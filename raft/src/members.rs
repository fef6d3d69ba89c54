//! Changes of the group: a new member learns first and votes when it has caught up.
//!
//! Both changes can be asked for again: what is done already is no error. A node id is never used
//! again after its disk was wiped; that is the proposer's care (`Query::next_node_id`).
//!
//! A change of voters is two steps, with a majority of both groups needed in between. One that broke
//! off there, with its leader, is ended by whoever leads next ([`settle_here`]).

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
        let tried = tokio::select! {
            tried = timeout_at(deadline, attempt(shared, wanted)) => tried,
            () = shared.stopped.cancelled() => {
                return Err(Error::Unavailable("this node stops".to_owned()));
            }
        };
        match tried {
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
    let core = shared.core()?;
    let leader = core.leader(shared.me());
    if let Change::Remove(id) = wanted
        && *id == shared.me()
        && leader != Leader::Me
        && matches!(check_not_retired(&core, *id), Err(Failure::Membership(_)))
    {
        // Whoever leads sees to it, and answers nobody who was removed.
        return Ok(());
    }
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
    Learner(String),
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
        Some(node) => Known::Learner(node.addr.clone()),
        None => Known::No,
    }
}

/// Adds a member on the leader.
pub async fn add_here(shared: &Shared, new: &AddMember) -> Result<(), Failure> {
    let core = shared.core()?;
    check_not_retired(&core, new.id)?;
    settle_here(shared).await?;
    match known(&core, new.id) {
        Known::Voter(address) if address == new.address => return Ok(()),
        Known::Voter(address) => {
            let reason = format!("node {} is a member at {address}", new.id);
            return Err(Failure::Membership(reason));
        }
        // openraft keeps the address that it has, whatever is added under the same id.
        Known::Learner(address) if address != new.address => remove_here(shared, new.id).await?,
        Known::Learner(_) | Known::No => {}
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
    settle_here(shared).await?;
    let ids = BTreeSet::from([id]);
    let change = match known(&core, id) {
        Known::No => return Ok(()),
        Known::Learner(_) => ChangeMembers::RemoveNodes(ids),
        Known::Voter(_) => ChangeMembers::RemoveVoters(ids),
    };
    match core.engine.change_membership(change, false).await {
        Ok(_) => Ok(()),
        Err(error) => Err(failure(&core, shared.me(), &error)),
    }
}

/// Ends a change that broke off between its two steps, on the leader. One that is still under way
/// here is ended by this, too: whoever makes it finds that out by asking again.
pub async fn settle_here(shared: &Shared) -> Result<(), Failure> {
    let core = shared.core()?;
    if !is_joint(&core) {
        return Ok(());
    }
    // Nothing is added: the second group is all that stays, and who is in the first one only goes.
    let second = ChangeMembers::AddVoterIds(BTreeSet::new());
    match core.engine.change_membership(second, false).await {
        Ok(_) => Ok(()),
        Err(error) => Err(failure(&core, shared.me(), &error)),
    }
}

fn is_joint(core: &Core) -> bool {
    let metrics = core.engine.metrics();
    let metrics = metrics.borrow_watched();
    metrics.membership_config.membership().get_joint_config().len() > 1
}

type ChangeError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

fn failure(core: &Core, me: u64, error: &ChangeError) -> Failure {
    match error {
        RaftError::APIError(
            ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_),
        ) => core.not_leader(me),
        // Another change is under way, or came between the two steps of this one.
        RaftError::APIError(
            ClientWriteError::PreconditionFailed(_)
            | ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_)
                | ChangeMembershipError::UncommittedLeaderLog(_),
            ),
        ) => Failure::Unavailable(error.to_string()),
        RaftError::APIError(error) => Failure::Membership(error.to_string()),
        RaftError::Fatal(error) => Failure::Unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use openraft::EntryPayload;

    use super::*;
    use crate::harness::{Authority, Home, Member, create_image, eventually};

    /// Leaves the group as a leader does that ends between the two steps of a change.
    fn break_off(leader: &Member, groups: [&[u64]; 2]) {
        let groups = groups.map(|group| group.iter().copied().collect::<BTreeSet<u64>>());
        leader.run(move |raft| async move {
            let core = raft.shared.core().unwrap();
            let nodes: BTreeMap<u64, BasicNode> = {
                let metrics = core.engine.metrics();
                let metrics = metrics.borrow_watched();
                let nodes = metrics.membership_config.nodes();
                nodes.map(|(id, node)| (*id, node.clone())).collect()
            };
            let joint = openraft::Membership::new(groups.to_vec(), nodes).unwrap();
            core.engine.append_membership(joint, EntryPayload::Blank, []).await.unwrap();
        });
        eventually("the change is under way", || leader.raft.status().is_changing.then_some(()));
    }

    fn settle(leader: &Member) {
        leader.run(|raft| async move { raft.settle_members().await }).unwrap();
        eventually("the change is ended", || (!leader.raft.status().is_changing).then_some(()));
    }

    #[test]
    fn a_change_that_broke_off_half_way_is_ended() {
        let authority = Authority::new();
        let (mut home, mut other) = (Home::new(1), Home::new(2));
        let (first, second) = (home.start(&authority), other.start(&authority));
        first.bootstrap();
        first.propose(create_image(1)).unwrap();
        let address = second.address.to_string();
        first.run(|raft| async move {
            let core = raft.shared.core().unwrap();
            core.engine.add_learner(2, BasicNode::new(address), true).await.unwrap();
        });
        let both = BTreeSet::from([first.id, second.id]);

        break_off(&first, [&[1], &[1, 2]]);
        settle(&first);
        assert_eq!(first.raft.status().voters, both);

        // What comes next ends it, too, and is not taken for done.
        break_off(&first, [&[1, 2], &[1]]);
        first.remove(second.id);
        eventually("the second is out", || {
            let status = first.raft.status();
            let alone = status.voters.iter().eq([&first.id]) && status.learners.is_empty();
            (alone && !status.is_changing).then_some(())
        });
        second.stop();
        first.propose(create_image(2)).unwrap();
    }

    #[test]
    fn a_learner_that_was_added_with_a_wrong_address_gets_the_right_one() {
        let authority = Authority::new();
        let (mut home, mut other) = (Home::new(1), Home::new(2));
        let (first, second) = (home.start(&authority), other.start(&authority));
        first.bootstrap();
        first.propose(create_image(1)).unwrap();
        first.run(|raft| async move {
            let core = raft.shared.core().unwrap();
            core.engine.add_learner(2, BasicNode::new("127.0.0.1:1"), false).await.unwrap();
        });
        first.add(&second);
        assert!(first.raft.status().voters.contains(&second.id));
    }
}
