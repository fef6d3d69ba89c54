//! Proposals: from any node to the leader, and on it into the log.
//!
//! A proposal has a random id that stays the same in every retry, and the state machine remembers
//! ids: so trying again, after a lost answer or across an election, is always safe.
//!
//! Invariants: no call takes longer than [`PROPOSE_TIMEOUT`] and a little. What goes into the log can
//! be read by every member: one that could not would stop, and all of them at the same entry.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use openraft::error::{ClientWriteError, RaftError};
use shoal_content::Timestamp;
use shoal_metadata::{
    Command, FIRST_LEVEL, Fault, Refusal, Response, decode_command, decode_command_up_to,
    encode_command,
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::core::{Core, Leader, Shared};
use crate::error::ProposeError;
use crate::forward::forward;
use crate::proposal::{Applied, COMMAND_BYTES_MAX, Proposal};
use crate::space::DISK_FULL;
use crate::wire::{Failure, Proposed};

/// How long a proposal tries to find a leader and a majority.
pub const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Proposes `command` and waits for its answer.
pub async fn propose(
    shared: &Shared,
    at: Timestamp,
    command: &Command,
) -> Result<Response, ProposeError> {
    let result = propose_until_answered(shared, at, command).await;
    shared.metrics.proposed(match &result {
        Ok(_) => "applied",
        Err(ProposeError::Refused(_)) => "refused",
        Err(ProposeError::Unavailable { .. }) => "unavailable",
        Err(ProposeError::Unsupported { .. }) => "unsupported",
        Err(ProposeError::Storage(_)) => "storage",
    });
    result
}

async fn propose_until_answered(
    shared: &Shared,
    at: Timestamp,
    command: &Command,
) -> Result<Response, ProposeError> {
    propose_encoded(shared, at, encode_command(command)).await
}

/// Proposes a command in its encoded form.
pub async fn propose_encoded(
    shared: &Shared,
    at: Timestamp,
    bytes: Vec<u8>,
) -> Result<Response, ProposeError> {
    check_length(&bytes)?;
    let proposal = Proposal { id: rand::random(), at, command: bytes.into() };
    let deadline = Instant::now() + PROPOSE_TIMEOUT;
    let mut last = "no leader is known".to_owned();
    loop {
        let attempt = timeout_at(deadline, attempt(shared, &proposal)).await;
        match attempt {
            Ok(Ok(answer)) => return Ok(answer?),
            Ok(Err(Failure::Storage(reason))) => return Err(ProposeError::Storage(reason)),
            Ok(Err(Failure::Unsupported { needs, oldest })) => {
                return Err(ProposeError::Unsupported { needs, oldest });
            }
            Ok(Err(failure)) => last = failure.to_string(),
            Err(_) => return Err(ProposeError::Unavailable { reason: last }),
        }
        if timeout_at(deadline, sleep(RETRY_INTERVAL)).await.is_err() {
            return Err(ProposeError::Unavailable { reason: last });
        }
    }
}

/// One try at whoever leads now, given up when somebody else does.
async fn attempt(shared: &Shared, proposal: &Proposal) -> Proposed {
    let core = shared.core()?;
    let leader = core.leader(shared.me());
    let trying = async {
        match &leader {
            Leader::Me => here(shared, proposal.clone()).await,
            Leader::Other(address) => forward(shared, address, proposal).await,
            Leader::Unknown => {
                std::future::pending::<()>().await;
                Err(Failure::NotLeader { leader: None })
            }
        }
    };
    tokio::select! {
        answer = trying => answer,
        () = core.leader_changed(shared.me(), &leader) => {
            Err(Failure::Unavailable("the leader changed".into()))
        }
    }
}

/// Takes a proposal in on the leader.
pub async fn here(shared: &Shared, proposal: Proposal) -> Proposed {
    let core = ready(shared)?;
    if let Some(refused) = refused(&core, &proposal, shared.config.command_version) {
        return refused;
    }
    match core.engine.client_write(proposal).await {
        Ok(written) => answer(written.data),
        Err(RaftError::APIError(
            ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_),
        )) => Err(core.not_leader(shared.me())),
        Err(error) => Err(Failure::Unavailable(error.to_string())),
    }
}

/// As [`here`], for several at once: they go into the log in one piece.
pub async fn many_here(shared: &Shared, proposals: Vec<Proposal>) -> Vec<Proposed> {
    let all = |failure: &Failure| proposals.iter().map(|_| Err(failure.clone())).collect();
    let core = match ready(shared) {
        Ok(core) => core,
        Err(failure) => return all(&failure),
    };
    let refused: Vec<Option<Proposed>> =
        proposals.iter().map(|one| refused(&core, one, shared.config.command_version)).collect();
    let taken = proposals.iter().zip(&refused).filter(|(_, refused)| refused.is_none());
    let taken: Vec<Proposal> = taken.map(|(one, _)| one.clone()).collect();
    let mut written = if taken.is_empty() {
        futures::stream::empty().boxed()
    } else {
        match core.engine.client_write_many(taken).await {
            Ok(written) => written,
            Err(error) => return all(&Failure::Unavailable(error.to_string())),
        }
    };
    let mut answers = Vec::with_capacity(refused.len());
    for refused in refused {
        answers.push(match refused {
            Some(refused) => refused,
            None => match written.next().await {
                Some(Ok(Ok(written))) => answer(written.response),
                Some(Ok(Err(_))) => Err(core.not_leader(shared.me())),
                Some(Err(error)) => Err(Failure::Unavailable(error.to_string())),
                // It stopped at the one before.
                None => Err(Failure::Unavailable("the Raft core has stopped".into())),
            },
        });
    }
    answers
}

/// The core, where proposals can be taken in.
fn ready(shared: &Shared) -> Result<Arc<Core>, Failure> {
    let core = shared.core()?;
    if core.leader(shared.me()) != Leader::Me {
        return Err(core.not_leader(shared.me()));
    }
    if !shared.space.has_reserve() {
        return Err(Failure::Storage(DISK_FULL.into()));
    }
    Ok(core)
}

fn answer(applied: Applied) -> Proposed {
    match applied {
        Applied::Answer(answer) => Ok(answer),
        Applied::Nothing => Err(Failure::Unavailable("the entry was lost".into())),
    }
}

/// What is answered to a proposal that does not come into the log.
fn refused(core: &Core, proposal: &Proposal, mine: u8) -> Option<Proposed> {
    if let Err(failure) = check_version(core, proposal, mine) {
        return Some(Err(failure));
    }
    let checked = check_length(&proposal.command).and_then(|()| check_form(proposal, mine));
    checked.err().map(|refusal| Ok(Err(refusal)))
}

fn check_length(command: &[u8]) -> Result<(), Refusal> {
    if command.len() > COMMAND_BYTES_MAX {
        let limit = format!("a command of {} bytes, {COMMAND_BYTES_MAX} at most", command.len());
        return Err(Refusal::Limit(limit));
    }
    Ok(())
}

/// What another member sends may be damaged, or of a program that is not ours.
fn check_form(proposal: &Proposal, mine: u8) -> Result<(), Refusal> {
    let decoded = decode_command_up_to(mine, &proposal.command).map(drop);
    decoded.map_err(|error| Refusal::Limit(format!("a command that cannot be read: {error}")))
}

/// Every member must be able to apply what goes into the log: nothing above the cluster's level is
/// proposed. What raises the level is held against the members themselves, who are known by their
/// rows; the state machine looks again, in the order of the log.
fn check_version(core: &Core, proposal: &Proposal, mine: u8) -> Result<(), Failure> {
    let unreadable = |fault: Fault| Failure::Unavailable(fault.to_string());
    let needs = proposal.command.first().copied().unwrap_or(0);
    if needs <= FIRST_LEVEL.min(mine) {
        return Ok(());
    }
    let view = core.view();
    let level = view.query().level().map_err(unreadable)?.min(mine);
    if needs <= level {
        return Ok(());
    }
    let nodes = view.query().nodes().map_err(unreadable)?;
    let known = nodes.iter().map(|node| node.command_version);
    let oldest = known.min().unwrap_or(mine).min(mine);
    let raises = matches!(decode_command(&proposal.command), Ok(Command::RaiseLevel { .. }));
    if raises && needs <= oldest {
        return Ok(());
    }
    Err(Failure::Unsupported { needs, oldest: level })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Authority, Home, create_image};

    #[test]
    fn what_no_member_could_read_is_refused_and_stops_nobody() {
        let authority = Authority::new();
        let mut home = Home::new(1);
        let member = home.start(&authority);
        member.bootstrap();
        let mut torn = encode_command(&create_image(1));
        torn.pop();
        let long = vec![1; COMMAND_BYTES_MAX + 1];
        let (answers, alone) = member.run(|raft| async move {
            let at = Timestamp::from_millis(1);
            let proposal =
                |command: Vec<u8>| Proposal { id: rand::random(), at, command: command.into() };
            let good = encode_command(&create_image(2));
            let many = [torn.clone(), good, long].map(proposal).to_vec();
            let answers = many_here(&raft.shared, many).await;
            (answers, propose_encoded(&raft.shared, at, torn).await)
        });
        let refused = |answer: &Proposed| matches!(answer, Ok(Err(Refusal::Limit(_))));
        assert!(refused(&answers[0]) && refused(&answers[2]), "{answers:?}");
        assert!(matches!(&answers[1], Ok(Ok(_))), "{answers:?}");
        assert!(matches!(alone, Err(ProposeError::Refused(Refusal::Limit(_)))), "{alone:?}");
        member.propose(create_image(3)).unwrap();
        assert_eq!(member.metric("shoal_raft_core_restarts_total"), 0.0);
    }
}
