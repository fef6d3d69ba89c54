//! Takes the packs of an ingest and stores several at a time.
//!
//! Invariant: at most [`PACKS_IN_FLIGHT_MAX`] packs are in memory here; [`PackUploads::settle`]
//! returns only when every pack is safe and was read back, and nothing is published before that.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use shoal_content::{ObjectKey, PackId};
use shoal_formats::{PackSink, SinkError};
use shoal_metadata::KeyOwner;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::store::{BlobStore, StoreError, put_and_see};

/// Packs on their way to storage at once.
pub const PACKS_IN_FLIGHT_MAX: usize = 2;

/// See the module's documentation.
#[derive(Debug)]
pub struct PackUploads {
    store: Arc<dyn BlobStore>,
    under: KeyOwner,
    runtime: Handle,
    tasks: JoinSet<Result<(), StoreError>>,
    begun: Arc<Mutex<Vec<ObjectKey>>>,
}

impl PackUploads {
    /// What it stores is for the project of `under`.
    pub fn new(store: Arc<dyn BlobStore>, under: KeyOwner, runtime: Handle) -> Self {
        Self { store, under, runtime, tasks: JoinSet::new(), begun: Arc::default() }
    }

    /// The packs that it has begun to store, as they become more: for whoever sees to those that nothing
    /// comes of.
    pub fn begun(&self) -> Arc<Mutex<Vec<ObjectKey>>> {
        Arc::clone(&self.begun)
    }

    /// Waits until `most` packs are under way.
    fn wait(&mut self, most: usize) -> Result<(), SinkError> {
        while self.tasks.len() > most {
            match self.runtime.block_on(self.tasks.join_next()) {
                Some(Ok(stored)) => stored?,
                Some(Err(error)) => return Err(error.into()),
                None => break,
            }
        }
        Ok(())
    }

    /// Waits until all packs are safe.
    ///
    /// # Errors
    /// The first that failed.
    pub fn settle(mut self) -> Result<(), SinkError> {
        self.wait(0)
    }
}

impl PackSink for PackUploads {
    fn put_pack(&mut self, id: PackId, bytes: Vec<u8>) -> Result<(), SinkError> {
        self.wait(PACKS_IN_FLIGHT_MAX - 1)?;
        let (store, under) = (Arc::clone(&self.store), self.under.clone());
        self.begun.lock().push(ObjectKey::Pack(id));
        let store_pack = async move {
            // An ingest that another node began may have stored it: the name says what it holds.
            put_and_see(&*store, ObjectKey::Pack(id), &under, Bytes::from(bytes)).await
        };
        self.tasks.spawn_on(store_pack, &self.runtime);
        Ok(())
    }
}
