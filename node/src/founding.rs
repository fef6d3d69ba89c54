//! The first moments of a cluster: its authority, its keys, its administrator.
//!
//! Order: a marker; certificates; a Raft group of this node, and the cluster's rows in it; the level;
//! `member.json`, which makes it a member; the marker goes; the password is shown. Where it is cut off
//! before `member.json`, nobody knows of that cluster, and the next founding begins with another one in
//! its place. Behind it there is a cluster whose administrator may need another password
//! (`unblocking`).

use rand::distr::{Alphanumeric, SampleString};
use shoal_content::{ClusterId, NodeId};
use shoal_metadata::{Cluster, Command, FIRST_LEVEL, Node, Secret, User, UserRole};
use shoal_p2p::identity::{Authority, KeyPair, Role};
use shoal_raft::{ProposeError, Raft};
use thiserror::Error;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::clock::now;
use crate::config::Config;
use crate::home::{self, Home, Member};
use crate::http::auth::hash_password;

/// Letters and digits of a password that is made up: 119 bits.
const PASSWORD_CHARACTERS: usize = 20;
pub const ADMIN: &str = "admin";

#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Home(#[from] home::Error),
    #[error("keys or certificates could not be made")]
    Identity(#[from] shoal_p2p::identity::Error),
    #[error("the password could not be hashed: {0}")]
    Password(argon2::password_hash::Error),
    #[error("the metadata could not be started")]
    Raft(#[from] shoal_raft::Error),
    #[error("the cluster could not be founded")]
    Propose(#[from] ProposeError),
}

/// What is known before Raft runs.
pub struct Founding {
    cluster: ClusterId,
    authority: Authority,
    password: Zeroizing<String>,
}

impl std::fmt::Debug for Founding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Founding").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// A password for an administrator, to be shown once.
pub fn made_up_password() -> Zeroizing<String> {
    Zeroizing::new(Alphanumeric.sample_string(&mut rand::rng(), PASSWORD_CHARACTERS))
}

impl Founding {
    /// Makes the authority and this node's certificate. What an earlier founding has left that was cut
    /// off goes.
    ///
    /// # Errors
    /// [`home::Error::Founded`] for a node that is a member already; as [`Home::begin_founding`].
    pub fn begin(home: &Home) -> Result<Self, Error> {
        if home.member()?.is_some() {
            return Err(home::Error::Founded(home.folder().into()).into());
        }
        home.begin_founding()?;
        let cluster = ClusterId::from_uuid(Uuid::new_v4());
        let authority = Authority::create(&cluster)?;
        let certificate = authority.issue(&home.key().csr_pem()?, Role::Node)?;
        home.save_certificates(&certificate, authority.certificate_pem())?;
        Ok(Self { cluster, authority, password: made_up_password() })
    }

    fn member(cluster: ClusterId) -> Member {
        Member { cluster, node: FIRST_NODE, lineage: None }
    }

    /// The first member of the cluster that is about to be founded.
    pub fn first_member(&self) -> Member {
        Self::member(self.cluster)
    }

    /// Founds the cluster through `raft`, with this node as its one member; gives the
    /// administrator's password, to be shown once.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn finish(
        self,
        home: &Home,
        config: &Config,
        raft: &Raft,
    ) -> Result<Zeroizing<String>, Error> {
        raft.bootstrap(config.raft_address()).await?;
        let secret = |pair: KeyPair| Secret(pair.to_pkcs8_der().to_vec());
        let cluster = Cluster {
            id: self.cluster,
            founded_at: now(),
            authority_certificate: self.authority.certificate_pem().to_owned(),
            authority_key: Secret(self.authority.key_pem().as_bytes().to_vec()),
            ticket_key: secret(KeyPair::generate()?),
            token_key: secret(KeyPair::generate()?),
            network_key: Secret(rand::random::<[u8; 32]>().to_vec()),
        };
        let admin = User {
            name: ADMIN.to_owned(),
            password_hash: hash_password(&self.password).map_err(Error::Password)?,
            role: UserRole::Admin,
            created_at: now(),
        };
        raft.propose(now(), Command::Found { cluster, admin }).await?;
        let member = Self::member(self.cluster);
        raft.propose(now(), Command::RegisterNode(node_row(&member, home, config))).await?;
        // Nobody older is there who would have to keep up.
        let to = config.program.command_version();
        if to > FIRST_LEVEL {
            raft.propose(now(), Command::RaiseLevel { to }).await?;
        }
        home.save_member(&member)?;
        home.drop_markers();
        Ok(self.password)
    }
}

/// The id of the node that founds a cluster.
pub const FIRST_NODE: u64 = 1;

/// This node as others reach it.
pub fn node_row(member: &Member, home: &Home, config: &Config) -> Node {
    Node {
        id: NodeId::new(member.node),
        name: config.node.name.clone(),
        peer: home.key().peer_id(),
        zone: config.node.zone.clone(),
        raft_address: config.raft_address(),
        peer_address: config.peer_address(),
        discovery_address: config.discovery_address(),
        api_url: config.api_url(),
        command_version: config.program.command_version(),
        joined_at: now(),
    }
}
