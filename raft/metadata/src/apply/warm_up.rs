//! Policies that keep a tag on hosts: made, removed, and carried out.
//!
//! Invariant: a run orders what the tag names at that very moment, and only where the policy's row
//! says that it stands as the proposer saw it; so of two leaders that run it at once, one does.

use std::collections::BTreeSet;

use shoal_content::{AccountName, DeploymentId, Digest, PeerId};

use super::{Step, Stop};
use crate::command::{Event, Refusal, Response, Subject};
use crate::deployment::{DeploymentOrder, DeploymentPlan, WARM_UPS_MAX, WarmUp};
use crate::table::{Read, Table};

/// What is ordered now.
pub(super) struct Run {
    pub id: DeploymentId,
    pub digest: Digest,
    pub hosts: BTreeSet<PeerId>,
}

impl<R: Read> Step<'_, R> {
    pub(super) fn create_warm_up(&mut self, policy: &WarmUp) -> Result<Response, Stop> {
        let all = self.query().warm_ups()?;
        if all.iter().any(|one| one.name == policy.name) {
            return Err(Refusal::Exists(Subject::WarmUp).into());
        }
        if all.len() >= WARM_UPS_MAX {
            return Err(Refusal::Limit(format!("{WARM_UPS_MAX} warm-up policies")).into());
        }
        let policy = WarmUp { created_at: self.at, deployment: None, ..policy.clone() };
        self.rows.put(Table::WarmUps, policy.name.as_str().as_bytes(), &policy);
        self.events.push(Event::WarmUpsChanged);
        Ok(Response::Done)
    }

    /// What it has ordered goes on.
    pub(super) fn remove_warm_up(&mut self, name: &AccountName) -> Result<Response, Stop> {
        if self.query().warm_up(name)?.is_none() {
            return Err(Refusal::NotFound(Subject::WarmUp).into());
        }
        self.rows.remove(Table::WarmUps, name.as_str().as_bytes());
        self.events.push(Event::WarmUpsChanged);
        Ok(Response::Done)
    }

    pub(super) fn run_warm_up(
        &mut self,
        name: &AccountName,
        expected: Option<DeploymentId>,
        run: Run,
    ) -> Result<Response, Stop> {
        let policy = self.query().warm_up(name)?.ok_or(Refusal::NotFound(Subject::WarmUp))?;
        if policy.deployment != expected {
            let text = "the policy has ordered something else meanwhile";
            return Err(Refusal::DeploymentState(text.to_owned()).into());
        }
        let image = self.image_named(&policy.image)?;
        if self.query().tag(image.id, &policy.tag)?.as_ref() != Some(&run.digest) {
            return Err(Refusal::DeploymentState("the tag has moved meanwhile".to_owned()).into());
        }
        let plan = DeploymentPlan {
            priority: policy.priority,
            parallel: policy.parallel,
            warm_up: Some(policy.name.clone()),
            ..DeploymentPlan::default()
        };
        self.create_deployment(DeploymentOrder {
            id: run.id,
            image: policy.image.clone(),
            digest: run.digest,
            tag: Some(policy.tag.clone()),
            hosts: run.hosts,
            owner: policy.created_by.clone(),
            plan,
        })?;
        // Only now, so that a refusal above leaves what is under way.
        if let Some(before) = expected.filter(|before| *before != run.id)
            && let Some(old) = self.query().deployment(before)?
            && !old.cancelled
            && !old.hosts.values().all(|host| host.has_ended())
        {
            self.cancel_deployment(before)?;
        }
        let policy = WarmUp { deployment: Some(run.id), ..policy };
        self.rows.put(Table::WarmUps, name.as_str().as_bytes(), &policy);
        self.events.push(Event::WarmUpsChanged);
        Ok(Response::Done)
    }
}
