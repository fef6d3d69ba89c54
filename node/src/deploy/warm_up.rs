//! Carries out the policies "this tag, on these labels, always".
//!
//! The leader compares, for each policy, what its tag names and who carries its labels with what the
//! policy ordered last: another version is ordered in place of that; who came since is added to it;
//! who failed tries again once in [`RETRY_INTERVAL`]. It looks whenever a tag moves, an agent comes
//! or a policy changes, and at every interval besides. What it finds is compared again by the
//! command, so that a change of leaders orders nothing twice.
//!
//! What has come to a host so and leaves its cache again, the host brings back by itself: each node tells
//! the agents at it what policies keep on them.
//!
//! Invariants: nothing is ordered that whoever made the policy may not order now, and a refusal is told
//! once in the audit trail; an order that somebody called off stays so until the tag moves.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use shoal_content::{
    AccountName, DeploymentId, Digest, ImageReference, Labels, PeerId, Pin, Timestamp,
};
use shoal_metadata::{
    Action, Agent, AuditResult, AuditSource, Command, Event, Fault, HostState, Query, Read,
    Refusal, RobotName, ScanKey, UserRole, WarmUp, What, Who, permission,
};
use shoal_raft::{ProposeError, Raft};
use thiserror::Error;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};
use uuid::Uuid;

use super::orders::OrderDesk;
use crate::audit::Audit;
use crate::clock;
use crate::config::Orders;
use crate::scanning::Scanner;

const INTERVAL: Duration = Duration::from_secs(5);
/// Agents that come within this time are one order.
const GATHERING: Duration = Duration::from_millis(200);
/// How often those try again that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(300);

/// How old what agents are told that they keep may be, where nothing is heard of a change.
const KEPT_INTERVAL: Duration = Duration::from_secs(60);

/// What holds for every policy, whoever made it.
#[derive(Debug, Clone)]
pub struct Terms {
    pub scanner: Scanner,
    pub orders: Option<Orders>,
}

/// What a policy keeps on those that carry its labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub selector: Labels,
    pub reference: ImageReference,
}

/// Why a policy orders nothing.
#[derive(Debug, Error)]
pub enum Trouble {
    #[error("there is no image {0}")]
    NoImage(String),
    #[error("{0} has no tag {1}")]
    NoTag(String, String),
    #[error("{0}, on whose behalf it orders, may not order {1} any more")]
    Forbidden(String, String),
    #[error("{0}")]
    Vulnerable(String),
    #[error("the metadata cannot be read")]
    Rows(#[from] Fault),
}

/// What a policy's tag names now, where its maker may have it and no vulnerability is in the way.
///
/// # Errors
/// Where nothing can be ordered.
pub fn named<R: Read>(
    query: Query<'_, R>,
    policy: &WarmUp,
    now: Timestamp,
    terms: &Terms,
) -> Result<Digest, Trouble> {
    let (name, by) = (&policy.image, &policy.created_by);
    let image = query.image_by_name(name)?.ok_or_else(|| Trouble::NoImage(name.to_string()))?;
    let who = match by.parse::<RobotName>() {
        Ok(robot) => Who::Robot(robot),
        Err(_) => Who::User { name: by.clone(), scopes: None },
    };
    // What is public anyone may pull, also who has no account any more; and the name may be another's.
    let holds = match &who {
        Who::Robot(robot) => {
            let row = query.robot(robot)?;
            row.is_some_and(|row| row.expires_at.is_none_or(|expires| expires > now))
        }
        // Who has become an auditor since changes nothing.
        _ => query.user(by)?.is_some_and(|user| user.role != UserRole::Auditor),
    };
    let orders = terms.orders != Some(Orders::Administrators)
        || permission(query, &who, Action::Manage, What::System)?.is_allowed();
    let made = policy.created_at.plus_millis(clock::CLOCKS_APART_MS);
    let is_there = holds && orders && query.was_there(by, made)?;
    if !is_there || !permission(query, &who, Action::Pull, What::Repository(name))?.is_allowed() {
        return Err(Trouble::Forbidden(by.clone(), name.to_string()));
    }
    let none = || Trouble::NoTag(name.to_string(), policy.tag.to_string());
    let digest = query.tag(image.id, &policy.tag)?.ok_or_else(none)?;
    let of = ScanKey { image: image.id, digest };
    match terms.scanner.blocks(query, &of)? {
        Some(blocked) => Err(Trouble::Vulnerable(blocked)),
        None => Ok(of.digest),
    }
}

/// When those that failed were last let try again.
type Tries = HashMap<DeploymentId, Instant>;

/// Runs until it is dropped.
pub async fn keep_warm(raft: Raft, audit: Audit, terms: Terms, desk: OrderDesk) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut events = raft.events();
    let mut tries = Tries::new();
    let mut troubled = BTreeSet::new();
    let mut told: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                if told.is_none_or(|at| at.elapsed() >= KEPT_INTERVAL) {
                    told = tell_kept(&raft, &terms, &desk).then(Instant::now);
                }
            }
            going = changed(&mut events) => match going {
                true => {
                    told = None;
                    sleep(GATHERING).await;
                }
                false => return,
            },
        }
        if !raft.status().is_leader {
            continue;
        }
        if let Err(error) = look(&raft, (&audit, &terms), &mut tries, &mut troubled).await {
            warn!(%error, "warm-up policies cannot be read");
        }
    }
}

/// Tells the agents at this node what policies keep on them; gives whether the rows could be read.
fn tell_kept(raft: &Raft, terms: &Terms, desk: &OrderDesk) -> bool {
    match kept(raft.local().query(), terms) {
        Ok(kept) => {
            desk.set_kept(kept);
            true
        }
        Err(error) => {
            warn!(%error, "what warm-up policies keep cannot be read");
            false
        }
    }
}

/// What policies have ordered and might order now.
fn kept<R: Read>(query: Query<'_, R>, terms: &Terms) -> Result<Vec<Kept>, Fault> {
    let mut kept = Vec::new();
    for policy in query.warm_ups()? {
        let Some(id) = policy.deployment else { continue };
        let digest = match named(query, &policy, clock::now(), terms) {
            Ok(digest) => digest,
            Err(Trouble::Rows(fault)) => return Err(fault),
            Err(_) => continue,
        };
        let Some(ordered) = query.deployment(id)? else { continue };
        if ordered.digest == digest && !ordered.cancelled {
            let reference = ImageReference { name: ordered.image, pin: Pin::Digest(digest) };
            kept.push(Kept { selector: policy.selector, reference });
        }
    }
    Ok(kept)
}

/// Waits until something happens that a policy may be about; gives whether there will be more.
async fn changed(events: &mut Receiver<Event>) -> bool {
    loop {
        match events.recv().await {
            Ok(
                Event::TagMoved { .. }
                | Event::AgentsChanged
                | Event::WarmUpsChanged
                | Event::AllChanged,
            )
            | Err(RecvError::Lagged(_)) => return true,
            Ok(_) => {}
            Err(RecvError::Closed) => return false,
        }
    }
}

async fn look(
    raft: &Raft,
    (audit, terms): (&Audit, &Terms),
    tries: &mut Tries,
    troubled: &mut BTreeSet<AccountName>,
) -> Result<(), Fault> {
    // As a command looks at all of it again, this node's own state is new enough.
    let commands = {
        let view = raft.local();
        let query = view.query();
        let policies = query.warm_ups()?;
        let (names, ordered): (BTreeSet<_>, BTreeSet<_>) =
            policies.iter().map(|policy| (policy.name.clone(), policy.deployment)).unzip();
        tries.retain(|id, _| ordered.contains(&Some(*id)));
        troubled.retain(|name| names.contains(name));
        if policies.is_empty() {
            return Ok(());
        }
        let agents = query.agents()?;
        let mut commands = Vec::new();
        for policy in policies {
            match due(query, terms, &agents, &policy, tries) {
                Ok(command) => {
                    troubled.remove(&policy.name);
                    commands.extend(command.map(|command| (policy, command)));
                }
                Err(Trouble::Rows(fault)) => return Err(fault),
                Err(trouble) => {
                    if troubled.insert(policy.name.clone()) {
                        warn!(warm_up = %policy.name, %trouble, "a warm-up policy orders nothing");
                        note_refusal(audit, &policy, &trouble);
                    }
                }
            }
        }
        commands
    };
    for (policy, command) in commands {
        let name = &policy.name;
        let source = AuditSource { who: policy.created_by.clone(), ..AuditSource::default() };
        let command = Command::Audited { source, command: Box::new(command) };
        match raft.propose(clock::now(), command).await {
            Ok(_) => info!(warm_up = %name, "a warm-up policy ordered"),
            // Something moved meanwhile; it is looked at again.
            Err(ProposeError::Refused(Refusal::DeploymentState(_) | Refusal::NotFound(_))) => {}
            Err(error) => warn!(warm_up = %name, %error, "a warm-up policy could not order"),
        }
    }
    Ok(())
}

/// Tells the audit trail, where it is a matter of rights.
fn note_refusal(audit: &Audit, policy: &WarmUp, trouble: &Trouble) {
    if let Trouble::Forbidden(who, image) = trouble {
        let source = AuditSource { who: who.clone(), ..AuditSource::default() };
        let target = format!("{} {image}", policy.name);
        audit.note_as(source, "warm_up.run", target, AuditResult::Refused(trouble.to_string()));
    }
}

/// What is to be proposed for a policy, if anything.
fn due<R: Read>(
    query: Query<'_, R>,
    terms: &Terms,
    agents: &[Agent],
    policy: &WarmUp,
    tries: &mut Tries,
) -> Result<Option<Command>, Trouble> {
    let digest = named(query, policy, clock::now(), terms)?;
    let carrying = agents.iter().filter(|agent| agent.labels.match_selector(&policy.selector));
    let hosts: BTreeSet<PeerId> = carrying.map(|agent| agent.peer).collect();
    if hosts.is_empty() {
        return Ok(None);
    }
    let current = match policy.deployment {
        Some(id) => query.deployment(id)?.filter(|row| row.digest == digest),
        None => None,
    };
    let Some(current) = current else {
        let id = DeploymentId::from_uuid(Uuid::now_v7());
        let (name, expected) = (policy.name.clone(), policy.deployment);
        return Ok(Some(Command::RunWarmUp { name, expected, id, digest, hosts }));
    };
    if current.cancelled {
        return Ok(None);
    }
    let mut wanted: BTreeSet<PeerId> =
        hosts.iter().filter(|host| !current.hosts.contains_key(host)).copied().collect();
    let failed = hosts
        .iter()
        .filter(|host| matches!(current.hosts.get(host), Some(HostState::Failed { .. })));
    let failed: BTreeSet<PeerId> = failed.copied().collect();
    let rested = tries.get(&current.id).is_none_or(|at| at.elapsed() >= RETRY_INTERVAL);
    if failed.is_empty() {
        tries.remove(&current.id);
    } else if rested {
        // The first time it is only noted: what has just failed rests, too.
        if tries.insert(current.id, Instant::now()).is_some() {
            wanted.extend(failed);
        }
    }
    let id = current.id;
    Ok((!wanted.is_empty()).then_some(Command::ExtendDeployment { id, hosts: wanted }))
}
