//! Proposals on their way from here to the leader, many in one message.
//!
//! One alone goes at once; those that come while [`MESSAGES_MAX`] messages are under way go together
//! with the next. So a few clients wait for nothing, and hundreds cost a few messages.
//!
//! Invariants: messages under way, and what is in one, are bounded. Where nobody waits for any of
//! its answers any more, as after a change of the leader, a message is given up.
//! Non-goal: trying again; whoever proposes does (see `propose`).

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::core::Shared;
use crate::peers::CallError;
use crate::proposal::Proposal;
use crate::wire::{Failure, Kind, Proposed};

/// The most messages under way: the next is gathered while one goes there and one comes back.
const MESSAGES_MAX: usize = 2;

/// The most proposals in one message.
pub const PROPOSALS_MAX: usize = 256;

/// A message with more than one proposal has at most so many bytes of commands.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// The most proposals that wait for a message; more wait to be let in.
pub const FORWARDS_WAITING_MAX: usize = 4096;

/// How long the leader may take to answer a message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(4);

/// A proposal for the leader at `address`.
pub struct Forward {
    pub address: String,
    pub proposal: Proposal,
    pub answer: oneshot::Sender<Proposed>,
}

/// Has the leader at `address` take `proposal` in.
pub async fn forward(shared: &Shared, address: &str, proposal: &Proposal) -> Proposed {
    let stopped = || Failure::Unavailable("this node is stopping".into());
    let (answer, answered) = oneshot::channel();
    let forward = Forward { address: address.to_owned(), proposal: proposal.clone(), answer };
    shared.forwards.send(forward).await.map_err(|_| stopped())?;
    answered.await.map_err(|_| stopped())?
}

/// Sends messages until this node stops.
pub async fn run(shared: Arc<Shared>, mut waiting: mpsc::Receiver<Forward>) {
    let under_way = Arc::new(Semaphore::new(MESSAGES_MAX));
    let mut left_over = None;
    loop {
        let next = async {
            let first = match left_over.take() {
                Some(first) => first,
                None => waiting.recv().await?,
            };
            let permit = under_way.clone().acquire_owned().await.ok()?;
            Some((first, permit))
        };
        let (first, permit) = tokio::select! {
            next = next => match next {
                Some(next) => next,
                None => return,
            },
            () = shared.stopped.cancelled() => return,
        };
        let mut bytes = first.proposal.command.len();
        let mut message = vec![first];
        while message.len() < PROPOSALS_MAX
            && let Ok(one) = waiting.try_recv()
        {
            bytes += one.proposal.command.len();
            if one.address != message[0].address || bytes > MESSAGE_BYTES_MAX {
                left_over = Some(one);
                break;
            }
            message.push(one);
        }
        let sending = shared.clone();
        shared.tasks.spawn(async move {
            tokio::select! {
                () = send(&sending, message) => {}
                () = sending.stopped.cancelled() => {}
            }
            drop(permit);
        });
    }
}

async fn send(shared: &Shared, message: Vec<Forward>) {
    let (mut proposals, mut waiting) = (Vec::new(), Vec::new());
    let address = message.first().map(|first| first.address.clone()).unwrap_or_default();
    for Forward { proposal, answer, .. } in message {
        if !answer.is_closed() {
            proposals.push(proposal);
            waiting.push(answer);
        }
    }
    let answers = tokio::select! {
        answers = ask(shared, &address, &proposals) => answers,
        _ = join_all(waiting.iter_mut().map(oneshot::Sender::closed)) => return,
    };
    for (waiter, answer) in waiting.into_iter().zip(answers) {
        // A proposal that was given up needs no answer.
        let _ = waiter.send(answer);
    }
}

/// One answer for each proposal.
async fn ask(shared: &Shared, address: &str, proposals: &[Proposal]) -> Vec<Proposed> {
    if let [alone] = proposals {
        return vec![ask_alone(shared, address, alone).await];
    }
    let asked: Result<Vec<Proposed>, CallError> =
        shared.peers.call(address, Kind::ProposeMany, &proposals, MESSAGE_TIMEOUT).await;
    match asked {
        Ok(answers) if answers.len() == proposals.len() => answers,
        // A leader of an earlier version does not know such messages.
        Ok(_) | Err(CallError::Broken { .. }) => {
            join_all(proposals.iter().map(|one| ask_alone(shared, address, one))).await
        }
        Err(error) => {
            let failure = Failure::Unavailable(error.to_string());
            proposals.iter().map(|_| Err(failure.clone())).collect()
        }
    }
}

async fn ask_alone(shared: &Shared, address: &str, proposal: &Proposal) -> Proposed {
    let called = shared.peers.call(address, Kind::Propose, proposal, MESSAGE_TIMEOUT).await;
    called.unwrap_or_else(|error| Err(Failure::Unavailable(error.to_string())))
}
