//! Another authority takes the place of the one that there is, step by step.

use shoal_content::NodeId;

use super::{Step, Stop};
use crate::authority::{
    AUTHORITIES_RETIRED_MAX, AUTHORITY_BYTES_MAX, AuthorityNext, AuthorityState, AuthorityStep,
    ClusterAuthority, NodeAuthority,
};
use crate::command::{Event, Refusal, Response, Subject};
use crate::key;
use crate::record::Secret;
use crate::table::{Fault, Read, Table};

impl<R: Read> Step<'_, R> {
    pub(super) fn step_authority(&mut self, step: AuthorityStep) -> Result<Response, Stop> {
        match step {
            AuthorityStep::Announce { newest, certificate, vouched, key, hurried } => {
                self.announce_authority(newest, (certificate, vouched, key), hurried)
            }
            AuthorityStep::Hurry { number } => self.hurry_authority(number),
            AuthorityStep::Note { node, says } => self.note_authority(node, says),
            AuthorityStep::Sign { number } => {
                self.check_authority_due(number, false)?;
                let mut all = self.query().authorities()?;
                if let Some(last) = all.last_mut() {
                    last.state = AuthorityState::Signs { since: self.at };
                }
                self.put_authorities(all);
                Ok(Response::Done)
            }
            AuthorityStep::Retire { number } => {
                self.check_authority_due(number, true)?;
                self.retire_authorities()
            }
        }
    }

    /// Two nodes that rotate at once make one authority.
    fn announce_authority(
        &mut self,
        newest: u32,
        (certificate, vouched, key): (String, String, Secret),
        hurried: bool,
    ) -> Result<Response, Stop> {
        let mut all = self.query().authorities()?;
        let last = all.last().ok_or(Refusal::NotFound(Subject::Cluster))?;
        if last.number != newest || self.query().authority_next()?.is_some() {
            return Err(Refusal::Exists(Subject::Authority).into());
        }
        let longest = certificate.len().max(vouched.len()).max(key.0.len());
        if longest > AUTHORITY_BYTES_MAX {
            return Err(Refusal::Limit(format!("{AUTHORITY_BYTES_MAX} bytes")).into());
        }
        let number =
            newest.checked_add(1).ok_or(Refusal::Limit("numbers of authorities".into()))?;
        all.push(ClusterAuthority {
            number,
            certificate,
            vouched: Some(vouched),
            key: Some(key),
            hurried,
            state: AuthorityState::Announced { since: self.at },
        });
        self.put_authorities(all);
        Ok(Response::Done)
    }

    fn hurry_authority(&mut self, number: u32) -> Result<Response, Stop> {
        let under_way = self.query().authority_next()?.is_some_and(|next| next.number == number);
        if !under_way {
            return Err(Refusal::NotFound(Subject::Authority).into());
        }
        let mut all = self.query().authorities()?;
        if let Some(last) = all.last_mut() {
            last.hurried = true;
        }
        self.put_authorities(all);
        Ok(Response::Done)
    }

    fn note_authority(&mut self, node: NodeId, says: NodeAuthority) -> Result<Response, Stop> {
        if self.query().node(node)?.is_none() {
            return Err(Refusal::NotFound(Subject::Node).into());
        }
        self.rows.put(Table::Cluster, key::node_authority(node), &says);
        Ok(Response::Done)
    }

    fn check_authority_due(&self, number: u32, retires: bool) -> Result<(), Stop> {
        let next = self.query().authority_next()?;
        let next = next.filter(|next| next.number == number && next.retires == retires);
        let next = next.ok_or(Refusal::NotFound(Subject::Authority))?;
        if next.is_due(self.at) {
            return Ok(());
        }
        let AuthorityNext { nodes, .. } = next;
        let by = match nodes.first() {
            Some(node) => format!("node {node} has not taken the new one yet"),
            None => "it is not time yet".to_owned(),
        };
        Err(Refusal::InUse { subject: Subject::Authority, by }.into())
    }

    fn retire_authorities(&mut self) -> Result<Response, Stop> {
        let mut all = self.query().authorities()?;
        let Some((last, before)) = all.split_last_mut() else {
            return Err(Refusal::NotFound(Subject::Cluster).into());
        };
        let distrusted = last.hurried;
        for one in before.iter_mut().filter(|one| one.is_believed()) {
            one.state = AuthorityState::Retired { at: self.at, distrusted };
            one.key = None;
            if one.number == 0 {
                self.forget_first_key()?;
            }
        }
        if let (true, AuthorityState::Signs { since }) = (distrusted, last.state) {
            for token in self.query().join_tokens()? {
                if token.created_at < since {
                    self.rows.remove(Table::JoinTokens, token.id.as_bytes());
                }
            }
        }
        let kept = all.len().saturating_sub(AUTHORITIES_RETIRED_MAX + 1);
        all.drain(..kept);
        self.put_authorities(all);
        Ok(Response::Done)
    }

    fn forget_first_key(&mut self) -> Result<(), Fault> {
        if let Some(mut cluster) = self.query().cluster()? {
            cluster.authority_key = Secret(Vec::new());
            self.rows.put(Table::Cluster, b"", &cluster);
        }
        Ok(())
    }

    fn put_authorities(&mut self, mut all: Vec<ClusterAuthority>) {
        // Its key is in one place.
        for first in all.iter_mut().filter(|one| one.number == 0) {
            first.key = None;
        }
        self.rows.put(Table::Cluster, key::AUTHORITIES, &all);
        self.events.push(Event::AuthoritiesChanged);
    }
}
