//! Deployments: orders to hosts, and what the hosts have come to.
//!
//! Invariant: the index of pending deployments has a host's order exactly while the host waits or
//! runs and the order is not cancelled.

use std::collections::BTreeSet;

use shoal_content::{DeploymentId, Digest, PeerId, RepositoryName, TagName};

use super::{Step, Stop};
use crate::command::{Event, Refusal, Response, Subject};
use crate::key;
use crate::record::{Deployment, HostState};
use crate::table::{Read, Table};

/// The most hosts of one order.
const HOSTS_MAX: usize = 10_000;

/// What is ordered.
pub(super) struct Order {
    pub image: RepositoryName,
    pub digest: Digest,
    pub tag: Option<TagName>,
    pub hosts: BTreeSet<PeerId>,
    pub owner: String,
}

impl<R: Read> Step<'_, R> {
    pub(super) fn create_deployment(
        &mut self,
        id: DeploymentId,
        order: Order,
    ) -> Result<Response, Stop> {
        if self.query().deployment(id)?.is_some() {
            return Err(Refusal::Exists(Subject::Deployment).into());
        }
        if order.hosts.len() > HOSTS_MAX {
            return Err(Refusal::Limit(format!("{HOSTS_MAX} hosts of one deployment")).into());
        }
        let image = self.image_named(&order.image)?;
        if self.query().version(image.id, &order.digest)?.is_none() {
            return Err(Refusal::NotFound(Subject::Version).into());
        }
        for host in &order.hosts {
            if !self.rows.has(Table::Agents, &key::peer(*host))? {
                return Err(Refusal::NotFound(Subject::Agent).into());
            }
        }
        for host in &order.hosts {
            self.rows.mark(Table::PendingDeployments, key::pending(*host, id));
        }
        let deployment = Deployment {
            id,
            image: order.image,
            digest: order.digest,
            tag: order.tag,
            created_at: self.at,
            created_by: order.owner,
            hosts: order.hosts.into_iter().map(|host| (host, HostState::Waiting)).collect(),
            cancelled: false,
        };
        self.rows.put(Table::Deployments, key::deployment(id), &deployment);
        self.rows.mark(Table::DeploymentTimes, key::deployment_time(self.at, id));
        self.events.push(Event::DeploymentChanged(id));
        Ok(Response::Done)
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
        if *old != state && !matches!(old, HostState::Done { .. }) {
            self.set_host(deployment, peer, state);
        }
        Ok(Response::Done)
    }

    pub(super) fn set_host(&mut self, mut deployment: Deployment, peer: PeerId, state: HostState) {
        let pending = key::pending(peer, deployment.id);
        let under_way = matches!(state, HostState::Waiting | HostState::Running);
        if under_way && !deployment.cancelled {
            self.rows.mark(Table::PendingDeployments, pending);
        } else {
            self.rows.remove(Table::PendingDeployments, pending);
        }
        deployment.hosts.insert(peer, state);
        self.rows.put(Table::Deployments, key::deployment(deployment.id), &deployment);
        self.events.push(Event::DeploymentChanged(deployment.id));
    }

    pub(super) fn cancel_deployment(&mut self, id: DeploymentId) -> Result<Response, Stop> {
        let mut deployment =
            self.query().deployment(id)?.ok_or(Refusal::NotFound(Subject::Deployment))?;
        for host in deployment.hosts.keys() {
            self.rows.remove(Table::PendingDeployments, key::pending(*host, id));
        }
        deployment.cancelled = true;
        self.rows.put(Table::Deployments, key::deployment(id), &deployment);
        self.events.push(Event::DeploymentChanged(id));
        Ok(Response::Done)
    }
}
