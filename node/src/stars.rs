//! Stars that people give to images.
//!
//! Those that come within [`GATHERED_FOR`] are written by one command, and each is answered once it
//! is written: so an answer holds, and a thousand stars at once cost a few writes.
//!
//! Invariant: at most [`WAITING_MAX`] wait; further ones are sent away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_content::ImageId;
use shoal_metadata::{COUNTED_MAX, Command};
use shoal_raft::Raft;
use tokio::sync::oneshot;

use crate::clock;
use crate::http::problem::Problem;

const GATHERED_FOR: Duration = Duration::from_millis(100);
const WAITING_MAX: usize = COUNTED_MAX;

/// See the module's documentation. Clones gather together.
#[derive(Debug, Clone)]
pub struct Stars {
    raft: Raft,
    waiting: Arc<Mutex<Waiting>>,
}

type Answer = Result<(), Problem>;

#[derive(Debug, Default)]
struct Waiting {
    /// The last word on each counts.
    stars: BTreeMap<(String, ImageId), bool>,
    answers: Vec<oneshot::Sender<Answer>>,
}

impl Stars {
    pub fn new(raft: Raft) -> Self {
        Self { raft, waiting: Arc::default() }
    }

    /// Returns once it is written.
    ///
    /// # Errors
    /// Where too many wait, or the metadata do not take it.
    pub async fn put(&self, user: String, image: ImageId, starred: bool) -> Answer {
        let answer = {
            let mut waiting = self.waiting.lock();
            if waiting.answers.len() >= WAITING_MAX {
                return Err(Problem::too_often(GATHERED_FOR));
            }
            let (sender, answer) = oneshot::channel();
            let is_first = waiting.answers.is_empty();
            waiting.stars.insert((user, image), starred);
            waiting.answers.push(sender);
            if is_first {
                // Not in the request: that may be given up, and others wait for this.
                tokio::spawn(self.clone().write_down());
            }
            answer
        };
        answer.await.unwrap_or_else(|_| Err(Problem::too_often(GATHERED_FOR)))
    }

    async fn write_down(self) {
        tokio::time::sleep(GATHERED_FOR).await;
        let Waiting { stars, answers } = std::mem::take(&mut *self.waiting.lock());
        let written = self.raft.propose(clock::now(), Command::NoteStars { stars }).await;
        let answer: Answer = written.map(drop).map_err(Problem::from);
        for waiting in answers {
            // Whoever gave up needs no answer.
            let _ = waiting.send(answer.clone());
        }
    }
}
