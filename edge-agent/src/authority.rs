//! Whom this agent believes, and whose certificate it should show, as a node says whenever an order stream
//! opens and another authority takes the place of the cluster's. Both are kept with the enrolment.
//!
//! An agent that was away meanwhile believes the old one. It finds the nodes all the same, since what they
//! show leads from that one to the new one, and hears of it there.

use std::sync::Arc;

use parking_lot::Mutex;
use shoal_api::AuthorityNews;
use shoal_p2p::Swarm;
use shoal_p2p::identity::{self, Credentials};
use thiserror::Error;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::blocking;
use crate::enrolment::{self, DataFolder, Enrolment};
use crate::nodes::{self, NodeClient};

#[derive(Debug, Error)]
enum Error {
    #[error("they cannot be read")]
    Identity(#[from] identity::Error),
    #[error("nodes cannot be asked by them")]
    Nodes(#[from] nodes::Error),
}

/// See the module's documentation. Clones are the same.
#[derive(Debug, Clone)]
pub struct Keeper {
    swarm: Swarm,
    client: Arc<NodeClient>,
    folder: Arc<DataFolder>,
    enrolment: Arc<Mutex<Enrolment>>,
    /// The one that signs, PEM; `None` before a node has said so.
    signs: Arc<watch::Sender<Option<String>>>,
    /// One at a time is written.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Keeper {
    /// `enrolment` is what lies in the folder.
    pub fn new(
        swarm: Swarm,
        client: Arc<NodeClient>,
        folder: Arc<DataFolder>,
        enrolment: Enrolment,
    ) -> Self {
        let enrolment = Arc::new(Mutex::new(enrolment));
        let signs = Arc::new(watch::Sender::new(None));
        Self { swarm, client, folder, enrolment, signs, turn: Arc::default() }
    }

    /// Believes whom a node names, and no others. What cannot be read changes nothing.
    pub fn take(&self, news: AuthorityNews) {
        let AuthorityNews { believed_pem, signs_pem } = news;
        if self.enrolment.lock().authority_pem != believed_pem {
            if let Err(error) = self.believe(&believed_pem) {
                let error = nodes::chain(&error);
                warn!(error, "a node names other authorities of the cluster");
                return;
            }
            info!("other authorities of the cluster are believed than before");
            self.enrolment.lock().authority_pem = believed_pem;
            let this = self.clone();
            tokio::spawn(async move {
                // Else a node says it again at the next start.
                if let Err(error) = this.save().await {
                    warn!(%error, "the cluster's authorities could not be kept");
                }
            });
        }
        self.signs.send_if_modified(|signs| {
            let changed = signs.as_ref() != Some(&signs_pem);
            if changed {
                *signs = Some(signs_pem);
            }
            changed
        });
    }

    fn believe(&self, pem: &str) -> Result<(), Error> {
        let roots = identity::roots([pem.as_bytes()])?;
        self.client.believe(pem)?;
        Ok(self.swarm.credentials().trust().replace(roots)?)
    }

    /// Changes when another authority signs.
    pub fn signs(&self) -> watch::Receiver<Option<String>> {
        self.signs.subscribe()
    }

    /// Whether another authority signs than the one whose certificate is shown.
    pub fn is_replaced(&self, credentials: &Credentials) -> bool {
        self.signs.borrow().as_ref().is_some_and(|signs| !credentials.is_of(signs))
    }

    /// Keeps the certificate that is shown from now on.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub async fn save_certificate(&self, certificate_pem: String) -> Result<(), enrolment::Error> {
        self.enrolment.lock().certificate_pem = certificate_pem;
        self.save().await
    }

    async fn save(&self) -> Result<(), enrolment::Error> {
        let _turn = self.turn.lock().await;
        // Whichever of two comes last, what is kept is what holds then.
        let kept = self.enrolment.lock().clone();
        let folder = Arc::clone(&self.folder);
        match blocking(move || folder.save_enrolment(&kept)).await {
            Some(saved) => saved,
            // It is stopping.
            None => Ok(()),
        }
    }
}
