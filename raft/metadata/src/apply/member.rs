//! Who belongs to the cluster: itself, nodes, users, join tokens, agents.
//!
//! Invariants: once there is an administrator there is always one, and once there is a node; a node's id
//! is never given out twice; names of nodes and agents are unique, and so is a peer among the nodes.

use shoal_content::{AccountName, NodeId, PeerId, Timestamp};

use super::deployment::REMOVED;
use super::{Step, Stop};
use crate::command::{Event, Refusal, Response, Subject};
use crate::key;
use crate::quota::Payer;
use crate::record::{Agent, Cluster, HostState, JoinRole, JoinToken, Node, User, UserRole};
use crate::rights::Grantee;
use crate::table::{Read, Table};
use crate::transaction::row;

/// The most join tokens there are at a time. Those that have expired are dropped when a new one is
/// made.
const JOIN_TOKENS_MAX: usize = 1000;

/// The most removed agents on the list of those that nobody deals with. Each agent is told all of
/// it in one line, of at most 1 MiB.
pub const EXPELLED_MAX: usize = 4096;

impl<R: Read> Step<'_, R> {
    pub(super) fn found(&mut self, cluster: &Cluster, admin: &User) -> Result<Response, Stop> {
        if self.query().cluster()?.is_some() {
            return Err(Refusal::AlreadyFounded.into());
        }
        if admin.role != UserRole::Admin {
            return Err(Refusal::LastAdmin.into());
        }
        self.rows.put(Table::Cluster, b"", cluster);
        self.rows.put(Table::Users, admin.name.as_bytes(), admin);
        self.begin_counting();
        self.begin_indexing();
        self.begin_indexing_lists();
        Ok(Response::Done)
    }

    /// Registering again updates the row of the same node; its key and its first day stay.
    pub(super) fn register_node(&mut self, mut node: Node) -> Result<Response, Stop> {
        self.check_node(&node)?;
        if let Some(old) = self.query().node(node.id)? {
            node.joined_at = old.joined_at;
        }
        self.put_node(&node);
        Ok(Response::Done)
    }

    fn check_node(&self, node: &Node) -> Result<(), Stop> {
        let taken = Stop::Refused(Refusal::Exists(Subject::Node));
        if self.rows.has(Table::RetiredNodes, &key::node(node.id))? {
            return Err(taken);
        }
        self.check_level(node)?;
        let clash = self.query().nodes()?.into_iter().any(|other| {
            if other.id == node.id {
                other.peer != node.peer
            } else {
                other.peer == node.peer || other.name == node.name
            }
        });
        if clash { Err(taken) } else { Ok(()) }
    }

    fn put_node(&mut self, node: &Node) {
        self.rows.put(Table::Nodes, key::node(node.id), node);
        self.events.push(Event::MembersChanged);
    }

    pub(super) fn remove_node(&mut self, id: NodeId) -> Result<Response, Stop> {
        let node = self.query().node(id)?.ok_or(Refusal::NotFound(Subject::Node))?;
        // Nodes of an earlier version let the last one go.
        if self.keeps_catalog()? && self.query().nodes()?.len() <= 1 {
            return Err(Refusal::LastNode.into());
        }
        self.rows.remove(Table::Nodes, key::node(id));
        self.rows.put(Table::RetiredNodes, key::node(id), &node.peer);
        self.rows.remove(Table::Cluster, key::program(id));
        self.rows.remove(Table::Cluster, key::node_authority(id));
        self.rows.remove(Table::NodeMasterKeys, key::node(id));
        self.events.push(Event::MembersChanged);
        Ok(Response::Done)
    }

    pub(super) fn create_user(&mut self, user: User) -> Result<Response, Stop> {
        if self.query().user(&user.name)?.is_some() {
            return Err(Refusal::Exists(Subject::User).into());
        }
        self.put_user(user)
    }

    pub(super) fn put_user(&mut self, mut user: User) -> Result<Response, Stop> {
        if let Some(old) = self.query().user(&user.name)? {
            if user.role != UserRole::Admin {
                self.check_another_admin(&old)?;
            }
            user.created_at = old.created_at;
            if user.password_hash != old.password_hash {
                self.drop_sessions_of(&user.name, None)?;
            }
        }
        self.rows.put(Table::Users, user.name.as_bytes(), &user);
        Ok(Response::Done)
    }

    pub(super) fn remove_user(&mut self, name: &str) -> Result<Response, Stop> {
        self.check_removable(name)?;
        if let Ok(account) = name.parse() {
            let grantee = Grantee::User(AccountName::clone(&account));
            self.drop_rights_of(&grantee)?;
            self.drop_tokens_of(&account)?;
        }
        self.drop_stars_of(name)?;
        self.disown_projects_of(name)?;
        self.drop_quota(Payer::User(name.to_owned()));
        self.drop_logins_of(name)?;
        self.rows.remove(Table::Users, name.as_bytes());
        Ok(Response::Done)
    }

    /// Refuses where nobody is called so, or something would be left to nobody.
    pub(super) fn check_removable(&self, name: &str) -> Result<(), Stop> {
        let user = self.query().user(name)?.ok_or(Refusal::NotFound(Subject::User))?;
        self.check_another_admin(&user)?;
        match name.parse() {
            Ok(account) => self.check_leaving(&Grantee::User(account)),
            Err(_) => Ok(()),
        }
    }

    /// Refuses where `user` is the only administrator.
    fn check_another_admin(&self, user: &User) -> Result<(), Stop> {
        let other = |one: &User| one.role == UserRole::Admin && one.name != user.name;
        if user.role == UserRole::Admin && !self.query().users()?.iter().any(other) {
            return Err(Refusal::LastAdmin.into());
        }
        Ok(())
    }

    pub(super) fn create_join_token(&mut self, token: &JoinToken) -> Result<Response, Stop> {
        let tokens = self.query().join_tokens()?;
        if tokens.iter().any(|other| other.id == token.id) {
            return Err(Refusal::Exists(Subject::JoinToken).into());
        }
        let (expired, living): (Vec<_>, Vec<_>) =
            tokens.into_iter().partition(|other| other.expires_at <= self.at);
        if living.len() >= JOIN_TOKENS_MAX {
            return Err(Refusal::Limit(format!("{JOIN_TOKENS_MAX} join tokens")).into());
        }
        for old in expired {
            self.rows.remove(Table::JoinTokens, old.id.as_bytes());
        }
        self.rows.put(Table::JoinTokens, token.id.as_bytes(), token);
        Ok(Response::Done)
    }

    pub(super) fn revoke_join_token(&mut self, id: &str) -> Result<Response, Stop> {
        if self.query().join_token(id)?.is_none() {
            return Err(Refusal::NotFound(Subject::JoinToken).into());
        }
        self.rows.remove(Table::JoinTokens, id.as_bytes());
        Ok(Response::Done)
    }

    /// The token with one use fewer, where it is good for `role` now. All refusals look alike.
    fn check_token(&self, id: &str, hash: &[u8; 32], role: JoinRole) -> Result<JoinToken, Stop> {
        let mut token = self.query().join_token(id)?.ok_or(Refusal::JoinToken)?;
        let left = match token.uses_left {
            Some(0) => return Err(Refusal::JoinToken.into()),
            Some(uses) => Some(uses - 1),
            None => None,
        };
        if token.secret_hash != *hash || token.role != role || token.expires_at <= self.at {
            return Err(Refusal::JoinToken.into());
        }
        token.uses_left = left;
        Ok(token)
    }

    /// An agent that enrols again under its key keeps its row's first day; a name that another
    /// agent has is refused.
    pub(super) fn enrol_agent(
        &mut self,
        token: &str,
        hash: &[u8; 32],
        agent: &Agent,
    ) -> Result<Response, Stop> {
        let token = self.check_token(token, hash, JoinRole::Agent)?;
        let holder = self.query().agent_by_name(&agent.name)?;
        if holder.is_some_and(|other| other.peer != agent.peer) {
            return Err(Refusal::Exists(Subject::Agent).into());
        }
        let mut agent = agent.clone();
        if let Some(old) = self.query().agent(agent.peer)? {
            agent.enrolled_at = old.enrolled_at;
            self.rows.remove(Table::AgentNames, old.name.as_bytes());
        }
        self.rows.put(Table::JoinTokens, token.id.as_bytes(), &token);
        self.rows.put(Table::AgentNames, agent.name.as_bytes(), &agent.peer);
        self.rows.put(Table::Agents, key::peer(agent.peer), &agent);
        // Whoever let it in again wants it back.
        self.rows.remove(Table::Expelled, key::peer(agent.peer));
        self.events.push(Event::AgentsChanged);
        Ok(Response::Done)
    }

    /// Writes the node's row, so that its id is taken; being admitted again with the same id and
    /// key is accepted, for a joiner that lost the answer.
    pub(super) fn admit_node(
        &mut self,
        token: &str,
        hash: &[u8; 32],
        mut node: Node,
    ) -> Result<Response, Stop> {
        let token = self.check_token(token, hash, JoinRole::Node)?;
        self.check_node(&node)?;
        if let Some(old) = self.query().node(node.id)? {
            node.joined_at = old.joined_at;
        }
        self.rows.put(Table::JoinTokens, token.id.as_bytes(), &token);
        self.put_node(&node);
        Ok(Response::Done)
    }

    /// Where there are too many, those whose certificates end first are forgotten.
    pub(super) fn expel_agent(&mut self, peer: PeerId, until: Timestamp) -> Result<Response, Stop> {
        let mut known = self.query().expelled_agents()?;
        known.sort_unstable_by_key(|&(peer, until)| (until, peer));
        let surplus = (known.len() + 1).saturating_sub(EXPELLED_MAX);
        for (peer, _) in known.into_iter().take(surplus) {
            self.rows.remove(Table::Expelled, key::peer(peer));
        }
        self.rows.put(Table::Expelled, key::peer(peer), &(peer, until));
        self.remove_agent(peer)
    }

    /// What the agent still had to do counts as failed; where it was in line, that shows when its
    /// turn comes.
    pub(super) fn remove_agent(&mut self, peer: PeerId) -> Result<Response, Stop> {
        let agent = self.query().agent(peer)?.ok_or(Refusal::NotFound(Subject::Agent))?;
        for deployment in self.query().pending_deployments(peer)? {
            self.set_host(deployment, peer, HostState::Failed { reason: REMOVED.to_owned() })?;
        }
        let named: Option<PeerId> = row(&self.rows, Table::AgentNames, agent.name.as_bytes())?;
        if named == Some(peer) {
            self.rows.remove(Table::AgentNames, agent.name.as_bytes());
        }
        self.rows.remove(Table::Agents, key::peer(peer));
        self.events.push(Event::AgentsChanged);
        Ok(Response::Done)
    }
}
