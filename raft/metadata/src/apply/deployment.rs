//! Deployments: orders to hosts, and what the hosts have come to.
//!
//! Who may begin is decided here, from the rows alone: whenever a host comes to its end, the next
//! one in the order of their ids is let begin, from a place on that each deployment has for itself:
//! else the same few hosts would go first each time. So a limit holds whoever leads.
//!
//! An order that has ended stays to be looked at until [`DEPLOYMENTS_KEPT`] came after it.
//!
//! Invariants: the index of pending deployments has a host's order exactly while the host waits or
//! runs and the order is not cancelled; of a deployment that is paused no host does; never more
//! hosts are at work than `parallel` has it.

use std::collections::{BTreeMap, BTreeSet};

use shoal_content::{DeploymentId, PeerId, Timestamp};

use super::{Step, Stop};
use crate::command::{Event, Refusal, Response, Subject};
use crate::deployment::{DeploymentOrder, DeploymentPlan, HostReport, REPORTS_MAX};
use crate::key;
use crate::query::all_rows;
use crate::record::{Deployment, HostState};
use crate::table::{Fault, Read, Table};

/// The most hosts of one order.
const HOSTS_MAX: usize = 10_000;
/// Deployments that are kept in any case; of those before, what has not ended is, too.
const DEPLOYMENTS_KEPT: usize = 1_000;
/// Of those before, one command looks at so many.
const OLD_LOOKED_AT: usize = 64;
/// Why a host failed that was not through in time.
const LATE: &str = "late: it was not done by the deadline";
/// Why a host failed that is a member no more.
pub(super) const REMOVED: &str = "the agent was removed";

impl<R: Read> Step<'_, R> {
    pub(super) fn create_deployment(&mut self, order: DeploymentOrder) -> Result<Response, Stop> {
        let DeploymentOrder { id, image, digest, tag, hosts, owner, plan } = order;
        if self.query().deployment(id)?.is_some() {
            return Err(Refusal::Exists(Subject::Deployment).into());
        }
        if hosts.len() > HOSTS_MAX {
            return Err(Refusal::Limit(format!("{HOSTS_MAX} hosts of one deployment")).into());
        }
        if plan.parallel == Some(0) {
            return Err(state("at least one host has to be let work at a time"));
        }
        self.check_deadline(plan.deadline)?;
        let found = self.image_named(&image)?;
        if self.query().version(found.id, &digest)?.is_none() {
            return Err(Refusal::NotFound(Subject::Version).into());
        }
        self.check_agents(&hosts)?;
        let mut deployment = Deployment {
            id,
            image,
            digest,
            tag,
            created_at: self.at,
            created_by: owner,
            hosts: hosts.into_iter().map(|host| (host, HostState::Queued)).collect(),
            cancelled: false,
        };
        if plan != DeploymentPlan::default() {
            self.put_plan(id, &plan);
        }
        if let Some(deadline) = plan.deadline {
            self.rows.mark(Table::DeploymentDeadlines, key::deployment_deadline(deadline, id));
        }
        self.rows.mark(Table::DeploymentTimes, key::deployment_time(self.at, id));
        self.admit(&mut deployment, &plan)?;
        self.put_deployment(&deployment);
        self.drop_old_deployments()?;
        Ok(Response::Done)
    }

    /// Drops what has ended of the deployments before the last ones, but for what a policy goes by.
    fn drop_old_deployments(&mut self) -> Result<(), Fault> {
        let times = all_rows(&self.rows, Table::DeploymentTimes, b"")?;
        let old = times.get(DEPLOYMENTS_KEPT..).unwrap_or_default();
        if old.is_empty() {
            return Ok(());
        }
        let policies = self.query().warm_ups()?;
        let named: BTreeSet<DeploymentId> =
            policies.into_iter().filter_map(|policy| policy.deployment).collect();
        // Some may never end: so that they hide no others, each command begins elsewhere.
        let first = (self.at.as_millis() % old.len() as u64) as usize;
        for (time, _) in old.iter().cycle().skip(first).take(old.len().min(OLD_LOOKED_AT)) {
            let id = DeploymentId::from_bytes(key::read_id(time, key::TIME_BYTES)?);
            let missing = Fault::Contradiction("an index names no deployment");
            let deployment = self.query().deployment(id)?.ok_or(missing)?;
            if has_ended(&deployment) && !named.contains(&id) {
                self.rows.remove(Table::DeploymentTimes, time.clone());
                self.drop_deployment(id)?;
            }
        }
        Ok(())
    }

    /// Takes away one that has ended; its place among the times is the caller's.
    fn drop_deployment(&mut self, id: DeploymentId) -> Result<(), Fault> {
        let plan = self.query().deployment_plan(id)?.unwrap_or_default();
        if let Some(deadline) = plan.deadline {
            self.rows.remove(Table::DeploymentDeadlines, key::deployment_deadline(deadline, id));
        }
        for table in [Table::Deployments, Table::DeploymentPlans] {
            self.rows.remove(table, key::deployment(id));
        }
        Ok(())
    }

    fn check_deadline(&self, deadline: Option<Timestamp>) -> Result<(), Stop> {
        match deadline {
            Some(deadline) if deadline <= self.at => Err(state("the deadline is over already")),
            _ => Ok(()),
        }
    }

    fn check_agents(&self, hosts: &BTreeSet<PeerId>) -> Result<(), Stop> {
        for host in hosts {
            if !self.rows.has(Table::Agents, &key::peer(*host))? {
                return Err(Refusal::NotFound(Subject::Agent).into());
            }
        }
        Ok(())
    }

    fn put_plan(&mut self, id: DeploymentId, plan: &DeploymentPlan) {
        self.rows.put(Table::DeploymentPlans, key::deployment(id), plan);
    }

    fn put_deployment(&mut self, deployment: &Deployment) {
        self.rows.put(Table::Deployments, key::deployment(deployment.id), deployment);
        self.events.push(Event::DeploymentChanged(deployment.id));
    }

    fn deployment_and_plan(&self, id: DeploymentId) -> Result<(Deployment, DeploymentPlan), Stop> {
        let found = self.query().deployment(id)?;
        let plan = self.query().deployment_plan(id)?;
        Ok((found.ok_or(Refusal::NotFound(Subject::Deployment))?, plan.unwrap_or_default()))
    }

    /// Lets as many begin as may. Whose turn comes and who is a member no more has failed: nobody
    /// would come back to give its place to the next one.
    fn admit(&mut self, deployment: &mut Deployment, plan: &DeploymentPlan) -> Result<(), Fault> {
        if deployment.cancelled || plan.paused {
            return Ok(());
        }
        let at_work = deployment.hosts.values().filter(|state| state.is_at_work()).count();
        let mut room = match plan.parallel {
            Some(most) => (most as usize).saturating_sub(at_work),
            None => usize::MAX,
        };
        let first = first_place(deployment.id);
        let (before, from): (Vec<_>, Vec<_>) = deployment
            .hosts
            .iter_mut()
            .filter(|(_, state)| **state == HostState::Queued)
            .partition(|(host, _)| **host < first);
        for (host, state) in from.into_iter().chain(before) {
            if room == 0 {
                break;
            }
            if !self.rows.has(Table::Agents, &key::peer(*host))? {
                *state = HostState::Failed { reason: REMOVED.to_owned() };
                continue;
            }
            room -= 1;
            *state = HostState::Waiting;
            let pending = key::pending(*host, deployment.id);
            match plan.attempt(*host) {
                0 => self.rows.mark(Table::PendingDeployments, pending),
                attempt => self.rows.put(Table::PendingDeployments, pending, &attempt),
            }
        }
        Ok(())
    }

    /// A host that is done stays done: a late report changes nothing.
    pub(super) fn report_host(
        &mut self,
        id: DeploymentId,
        peer: PeerId,
        state: HostState,
    ) -> Result<Response, Stop> {
        let deployment =
            self.query().deployment(id)?.ok_or(Refusal::NotFound(Subject::Deployment))?;
        let old = deployment.hosts.get(&peer).ok_or(Refusal::NotFound(Subject::Agent))?;
        // Who was not told to begin has not begun, but may be done from before.
        let untold = *old == HostState::Queued && !matches!(state, HostState::Done { .. });
        if *old != state && !matches!(old, HostState::Done { .. }) && !untold {
            self.set_host(deployment, peer, state)?;
        }
        Ok(Response::Done)
    }

    pub(super) fn report_attempt(
        &mut self,
        id: DeploymentId,
        peer: PeerId,
        attempt: u32,
        state: HostState,
    ) -> Result<Response, Stop> {
        let (deployment, plan) = self.deployment_and_plan(id)?;
        let old = deployment.hosts.get(&peer).ok_or(Refusal::NotFound(Subject::Agent))?;
        let is_done = matches!(state, HostState::Done { .. });
        if !is_done && (attempt != plan.attempt(peer) || !old.is_at_work()) {
            return Ok(Response::Done);
        }
        self.report_host(id, peer, state)
    }

    /// Each deployment is written once, however many of its hosts are in it: its row has all of them.
    /// Whoever waits for the place of those that have ended begins.
    pub(super) fn report_hosts(
        &mut self,
        reports: BTreeMap<DeploymentId, BTreeMap<PeerId, HostReport>>,
    ) -> Result<Response, Stop> {
        if reports.values().map(BTreeMap::len).sum::<usize>() > REPORTS_MAX {
            return Err(Refusal::Limit(format!("{REPORTS_MAX} hosts at once")).into());
        }
        for (id, reports) in reports {
            let Some(mut deployment) = self.query().deployment(id)? else { continue };
            let plan = self.query().deployment_plan(id)?;
            let (mut changed, mut ended) = (false, false);
            for (peer, HostReport { attempt, state }) in reports {
                let at = plan.as_ref().map(|plan| plan.attempt(peer));
                let Some(old) = deployment.hosts.get(&peer) else { continue };
                if !is_news(old, at, attempt, &state) {
                    continue;
                }
                self.note_pending(&deployment, peer, &state)?;
                (changed, ended) = (true, ended || state.has_ended());
                deployment.hosts.insert(peer, state);
            }
            if ended && deployment.hosts.values().any(|state| *state == HostState::Queued) {
                self.admit(&mut deployment, &plan.unwrap_or_default())?;
            }
            if changed {
                self.put_deployment(&deployment);
            }
        }
        Ok(Response::Done)
    }

    /// A host is told of its order exactly while it is at work.
    fn note_pending(
        &mut self,
        deployment: &Deployment,
        peer: PeerId,
        state: &HostState,
    ) -> Result<(), Fault> {
        let pending = key::pending(peer, deployment.id);
        if !state.is_at_work() || deployment.cancelled {
            self.rows.remove(Table::PendingDeployments, pending);
        } else if !self.rows.has(Table::PendingDeployments, &pending)? {
            self.rows.mark(Table::PendingDeployments, pending);
        }
        Ok(())
    }

    /// Whoever waits for the place of one that has ended begins.
    pub(super) fn set_host(
        &mut self,
        mut deployment: Deployment,
        peer: PeerId,
        state: HostState,
    ) -> Result<(), Stop> {
        self.note_pending(&deployment, peer, &state)?;
        let ended = state.has_ended();
        deployment.hosts.insert(peer, state);
        if ended && deployment.hosts.values().any(|state| *state == HostState::Queued) {
            let plan = self.query().deployment_plan(deployment.id)?.unwrap_or_default();
            self.admit(&mut deployment, &plan)?;
        }
        self.put_deployment(&deployment);
        Ok(())
    }

    pub(super) fn cancel_deployment(&mut self, id: DeploymentId) -> Result<Response, Stop> {
        let (mut deployment, plan) = self.deployment_and_plan(id)?;
        for host in deployment.hosts.keys() {
            self.rows.remove(Table::PendingDeployments, key::pending(*host, id));
        }
        if let Some(deadline) = plan.deadline {
            self.rows.remove(Table::DeploymentDeadlines, key::deployment_deadline(deadline, id));
        }
        deployment.cancelled = true;
        self.put_deployment(&deployment);
        Ok(Response::Done)
    }

    /// Hosts that are at work stop, and begin anew when it goes on; what they have, they keep.
    pub(super) fn pause_deployment(
        &mut self,
        id: DeploymentId,
        paused: bool,
    ) -> Result<Response, Stop> {
        let (mut deployment, mut plan) = self.deployment_and_plan(id)?;
        check_under_way(&deployment)?;
        if plan.paused == paused {
            return Ok(Response::Done);
        }
        plan.paused = paused;
        let at_work = deployment.hosts.iter_mut().filter(|(_, state)| state.is_at_work());
        for (host, state) in at_work {
            *state = HostState::Queued;
            plan.attempt_again(*host);
            self.rows.remove(Table::PendingDeployments, key::pending(*host, id));
        }
        self.admit(&mut deployment, &plan)?;
        self.put_plan(id, &plan);
        self.put_deployment(&deployment);
        Ok(Response::Done)
    }

    pub(super) fn retry_deployment(
        &mut self,
        id: DeploymentId,
        deadline: Option<Timestamp>,
    ) -> Result<Response, Stop> {
        let (deployment, mut plan) = self.deployment_and_plan(id)?;
        self.check_deadline(deadline)?;
        let failed = |(host, state): (&PeerId, &HostState)| {
            matches!(state, HostState::Failed { .. }).then_some(*host)
        };
        let failed: BTreeSet<PeerId> = deployment.hosts.iter().filter_map(failed).collect();
        // Of the agents that are no members any more nobody would come back.
        let mut again = BTreeSet::new();
        for host in failed {
            if self.rows.has(Table::Agents, &key::peer(host))? {
                again.insert(host);
            }
        }
        if deployment.cancelled {
            return Err(state("it was cancelled; order it anew"));
        }
        if again.is_empty() {
            return Err(state("no host of it has failed that is still there"));
        }
        let old = plan.deadline;
        let kept = deadline.or(old.filter(|old| *old > self.at));
        if let Some(old) = old {
            self.rows.remove(Table::DeploymentDeadlines, key::deployment_deadline(old, id));
        }
        if let Some(new) = kept {
            self.rows.mark(Table::DeploymentDeadlines, key::deployment_deadline(new, id));
        }
        plan.deadline = kept;
        self.enlist(deployment, plan, again)?;
        Ok(Response::Done)
    }

    pub(super) fn extend_deployment(
        &mut self,
        id: DeploymentId,
        hosts: BTreeSet<PeerId>,
    ) -> Result<Response, Stop> {
        let (mut deployment, mut plan) = self.deployment_and_plan(id)?;
        if deployment.cancelled {
            return Err(state("it was cancelled; order it anew"));
        }
        self.check_agents(&hosts)?;
        let wanted = |host: &PeerId| {
            deployment.hosts.get(host).is_none_or(|state| matches!(state, HostState::Failed { .. }))
        };
        let hosts: BTreeSet<PeerId> = hosts.into_iter().filter(wanted).collect();
        let added = hosts.iter().filter(|host| !deployment.hosts.contains_key(host)).count();
        if deployment.hosts.len() + added > HOSTS_MAX {
            self.drop_gone(&mut deployment, &mut plan)?;
        }
        if deployment.hosts.len() + added > HOSTS_MAX {
            return Err(Refusal::Limit(format!("{HOSTS_MAX} hosts of one deployment")).into());
        }
        if !hosts.is_empty() {
            self.enlist(deployment, plan, hosts)?;
        }
        Ok(Response::Done)
    }

    /// Makes room: what has ended at agents that are no members any more is not shown any more. A
    /// policy may outlive thousands of them.
    fn drop_gone(
        &self,
        deployment: &mut Deployment,
        plan: &mut DeploymentPlan,
    ) -> Result<(), Fault> {
        let mut gone = BTreeSet::new();
        for (host, state) in &deployment.hosts {
            if state.has_ended() && !self.rows.has(Table::Agents, &key::peer(*host))? {
                gone.insert(*host);
            }
        }
        deployment.hosts.retain(|host, _| !gone.contains(host));
        plan.attempts.retain(|host, _| !gone.contains(host));
        Ok(())
    }

    /// Puts hosts in line, those that were there before for another attempt.
    fn enlist(
        &mut self,
        mut deployment: Deployment,
        mut plan: DeploymentPlan,
        hosts: BTreeSet<PeerId>,
    ) -> Result<(), Fault> {
        for host in hosts {
            if deployment.hosts.insert(host, HostState::Queued).is_some() {
                plan.attempt_again(host);
            }
        }
        self.admit(&mut deployment, &plan)?;
        self.put_plan(deployment.id, &plan);
        self.put_deployment(&deployment);
        Ok(())
    }

    pub(super) fn pass_deadlines(&mut self, limit: u32) -> Result<Response, Stop> {
        let passed = self.query().passed_deadlines(self.at, limit as usize)?;
        for (deadline, id) in passed {
            self.rows.remove(Table::DeploymentDeadlines, key::deployment_deadline(deadline, id));
            let Some(mut deployment) = self.query().deployment(id)? else { continue };
            let mut changed = false;
            for (host, state) in &mut deployment.hosts {
                if !state.has_ended() {
                    *state = HostState::Failed { reason: LATE.to_owned() };
                    self.rows.remove(Table::PendingDeployments, key::pending(*host, id));
                    changed = true;
                }
            }
            if changed {
                self.put_deployment(&deployment);
            }
        }
        Ok(Response::Done)
    }
}

/// Whether what a host says, of its attempt, is to be written down; `at` is the one that it was told
/// to make, where the deployment has a plan.
fn is_news(old: &HostState, at: Option<u32>, attempt: u32, state: &HostState) -> bool {
    let is_done = matches!(state, HostState::Done { .. });
    let is_over = at.is_some_and(|at| at != attempt || !old.is_at_work());
    // Who was not told to begin has not begun, but may be done from before.
    let counts = is_done || !(is_over || *old == HostState::Queued);
    // A host that is done stays done: a late report changes nothing.
    counts && old != state && !matches!(old, HostState::Done { .. })
}

/// Where in the order of ids the hosts of a deployment begin. A new id ends in what is random, so
/// that is what the place begins with.
fn first_place(id: DeploymentId) -> PeerId {
    let mut place = [0; 32];
    for (at, byte) in id.as_uuid().as_bytes().iter().rev().enumerate() {
        place[at] = *byte;
    }
    PeerId::from_public_key(place)
}

fn state(text: &str) -> Stop {
    Refusal::DeploymentState(text.to_owned()).into()
}

/// Nobody works on it any more.
fn has_ended(deployment: &Deployment) -> bool {
    deployment.cancelled || deployment.hosts.values().all(HostState::has_ended)
}

fn check_under_way(deployment: &Deployment) -> Result<(), Stop> {
    if deployment.cancelled {
        return Err(state("it was cancelled"));
    }
    if has_ended(deployment) {
        return Err(state("it is over"));
    }
    Ok(())
}
