//! The cluster's ticket keys, as this agent was last told.
//!
//! They come with the enrolment, and from a node whenever an order stream opens and the keys
//! change; between two lives they lie in the data folder.

use std::sync::Arc;

use parking_lot::Mutex;
use shoal_api::TicketKeyInfo;
use shoal_content::Timestamp;
use shoal_p2p::{Swarm, TicketKey};
use tracing::{info, warn};

use crate::blocking;
use crate::enrolment::{DataFolder, Enrolment, Error};

/// What is kept, or what the enrolment brought; one that is no key is left out.
///
/// # Errors
/// Where what is kept cannot be read.
pub fn known(folder: &DataFolder, enrolment: &Enrolment) -> Result<Vec<TicketKey>, Error> {
    let kept = folder.ticket_keys()?;
    if !kept.is_empty() {
        return Ok(parsed(&kept));
    }
    let public_key = enrolment.ticket_public_key.clone();
    Ok(parsed(&[TicketKeyInfo { public_key, until_ms: None }]))
}

fn parsed(list: &[TicketKeyInfo]) -> Vec<TicketKey> {
    let key = |info: &TicketKeyInfo| {
        let mut public = [0; 32];
        if hex::decode_to_slice(&info.public_key, &mut public).is_err() {
            warn!(key = info.public_key, "a ticket key is not 64 hexadecimal digits");
            return None;
        }
        Some(TicketKey { public, until: info.until_ms.map(Timestamp::from_millis) })
    };
    list.iter().filter_map(key).collect()
}

/// Hands new keys on, and keeps them.
#[derive(Debug, Clone)]
pub struct Keeper {
    swarm: Swarm,
    folder: Arc<DataFolder>,
    last: Arc<Mutex<Vec<TicketKeyInfo>>>,
    /// One list at a time is handed on.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Keeper {
    pub fn new(swarm: Swarm, folder: Arc<DataFolder>) -> Self {
        Self { swarm, folder, last: Arc::default(), turn: Arc::default() }
    }

    /// A list without a key changes nothing: it comes of a node that knows no others yet.
    pub fn take(&self, list: Vec<TicketKeyInfo>) {
        let keys = parsed(&list);
        if keys.is_empty() || *self.last.lock() == list {
            return;
        }
        info!(keys = keys.len(), "the cluster's ticket keys are known");
        *self.last.lock() = list;
        let this = self.clone();
        tokio::spawn(async move {
            let _turn = this.turn.lock().await;
            // Whichever of two comes last, what is handed on is what was told last.
            let list = this.last.lock().clone();
            this.swarm.set_ticket_keys(parsed(&list)).await;
            let folder = Arc::clone(&this.folder);
            if let Some(Err(error)) = blocking(move || folder.save_ticket_keys(&list)).await {
                warn!(%error, "the ticket keys could not be kept");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrolment::tests::enrolment;

    #[test]
    fn what_was_told_last_counts_and_before_that_what_the_enrolment_brought() {
        let parent = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(parent.path()).unwrap();
        let mut enrolment = enrolment();
        assert_eq!(known(&folder, &enrolment).unwrap(), [], "it brought no key");
        enrolment.ticket_public_key = "07".repeat(32);
        let first = TicketKey { public: [7; 32], until: None };
        assert_eq!(known(&folder, &enrolment).unwrap(), [first]);
        let told = [("07".repeat(32), Some(9)), ("short".into(), None), ("08".repeat(32), None)];
        let told = told.map(|(public_key, until_ms)| TicketKeyInfo { public_key, until_ms });
        folder.save_ticket_keys(&told).unwrap();
        let ends = TicketKey { until: Some(Timestamp::from_millis(9)), ..first };
        let second = TicketKey { public: [8; 32], until: None };
        assert_eq!(known(&folder, &enrolment).unwrap(), [ends, second]);
    }
}
