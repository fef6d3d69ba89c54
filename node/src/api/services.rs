//! What the REST API works with beside the metadata and the store: made once, shared by handlers.

use std::sync::Arc;

use shoal_content::NodeId;
use shoal_p2p::identity::{KeyPair, Trust};
use shoal_raft::Raft;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::audit::Audit;
use crate::backup::BackupMaker;
use crate::collection::Collector;
use crate::compaction::Compactor;
use crate::delta::Deltas;
use crate::deploy::{Board, Gatherer, HostChanges, OrderDesk, Siblings, SiblingsError};
use crate::disks::Disks;
use crate::origin::Origin;
use crate::pulls::Pulls;
use crate::retention::Retainer;
use crate::scanning::Scanner;
use crate::scrub::Scrubber;
use crate::stars::Stars;
use crate::state::Keys;
use crate::store::BlobStore;
use crate::verification::Verifier;

/// See the module's documentation. Clones share everything.
#[derive(Debug, Clone)]
pub struct Services {
    pub disks: Disks,
    pub deltas: Deltas,
    pub origin: Origin,
    pub board: Board,
    pub changes: HostChanges,
    pub desk: OrderDesk,
    pub gatherer: Gatherer,
    pub siblings: Siblings,
    pub collector: Collector,
    pub compactor: Compactor,
    pub scrubber: Scrubber,
    pub verifier: Verifier,
    pub backups: BackupMaker,
    pub pulls: Pulls,
    pub retainer: Retainer,
    pub audit: Audit,
    pub stars: Stars,
    pub scanner: Scanner,
    /// Ends streams that would stay open for ever.
    pub stopping: CancellationToken,
}

/// What is done in the background, each at its own interval.
#[derive(Debug)]
pub struct Upkeep {
    pub collector: Collector,
    pub compactor: Compactor,
    pub scrubber: Scrubber,
    pub verifier: Verifier,
    pub pulls: Pulls,
    pub retainer: Retainer,
    pub audit: Audit,
}

impl Services {
    /// `own` is this node's own key, and whom it believes.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        raft: &Raft,
        (store, origin): (&Arc<dyn BlobStore>, Origin),
        node: NodeId,
        keys: &Keys,
        own: (Arc<KeyPair>, &Trust),
        upkeep: Upkeep,
    ) -> Result<Self, SiblingsError> {
        let Upkeep { collector, compactor, scrubber, verifier, pulls, retainer, audit } = upkeep;
        let siblings = Siblings::new(raft.clone(), node, keys, own)?;
        let board = Board::default();
        let stopping = CancellationToken::new();
        let desk = OrderDesk::new(raft.clone(), keys.ring.clone(), stopping.clone());
        Ok(Self {
            disks: Disks::new(raft.clone(), Arc::clone(store), origin.clone(), node),
            deltas: Deltas::new(raft.clone(), Arc::clone(store), origin.clone(), node),
            scanner: Scanner::new(raft.clone(), Arc::clone(store), origin.clone(), node),
            origin,
            gatherer: Gatherer::new(board.clone(), desk.clone(), siblings.clone()),
            changes: HostChanges::new(raft.clone(), board.clone()),
            board,
            desk,
            collector,
            compactor,
            scrubber,
            verifier,
            backups: BackupMaker::default(),
            pulls,
            retainer: retainer.hearing(siblings.clone()),
            siblings,
            audit,
            stars: Stars::new(raft.clone()),
            stopping,
        })
    }

    /// Ends the streams of orders and events, so that a stop need not wait for them.
    pub fn close(&self) {
        self.stopping.cancel();
    }

    /// Starts what runs in the background: unfinished disks are taken over, nodes that joined
    /// become members. It ends when `tasks` is dropped.
    pub fn start(&self, raft: &Raft, tasks: &mut JoinSet<()>) {
        let disks = self.disks.clone();
        tasks.spawn(async move { disks.sweep().await });
        let disks = self.disks.clone();
        tasks.spawn(async move { disks.expire_uploads().await });
        tasks.spawn(self.deltas.clone().run());
        tasks.spawn(self.scanner.clone().run());
        tasks.spawn(self.collector.clone().run());
        tasks.spawn(self.compactor.clone().run());
        tasks.spawn(self.scrubber.clone().run());
        tasks.spawn(self.pulls.clone().run());
        tasks.spawn(self.retainer.clone().run());
        tasks.spawn(self.audit.clone().run());
        tasks.spawn(super::cluster::keep_members(raft.clone()));
    }
}
