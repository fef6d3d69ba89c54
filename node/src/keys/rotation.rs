//! New keys, in time and when somebody asks for them.

use std::time::Duration;

use shoal_content::Timestamp;
use shoal_metadata::{Command, Fault, KeyPurpose, Refusal, Secret, SecretPlace};
use shoal_p2p::identity::{self, KeyPair};
use shoal_raft::{ProposeError, Raft};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use super::ANNOUNCED_FOR;
use crate::clock;
use crate::config::Keys;
use crate::encryption::Vault;

/// How often the leader looks at the keys' age.
const INTERVAL: Duration = Duration::from_secs(60);

/// A key that signs once it is known, or at once where `distrusted` ends all before it; `newest` is
/// the number that it comes after.
///
/// # Errors
/// Where no key can be made.
pub fn command(
    purpose: KeyPurpose,
    newest: u32,
    now: Timestamp,
    distrusted: bool,
    vault: &Vault,
) -> Result<Command, identity::Error> {
    let private = Secret(KeyPair::generate()?.to_pkcs8_der().to_vec());
    let private = vault.seal(SecretPlace::Signing(purpose, newest.saturating_add(1)), private);
    let announced = if distrusted { 0 } else { ANNOUNCED_FOR.as_secs() * 1000 };
    let signs_from = now.plus_millis(announced);
    Ok(Command::RotateSigningKey { purpose, newest, private, signs_from, distrusted })
}

/// Replaces keys that are as old as the settings allow. Runs until it is dropped.
pub async fn keep(raft: Raft, settings: Keys, vault: Vault) {
    let mut ticks = interval_at(Instant::now() + INTERVAL, INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !raft.status().is_leader {
            continue;
        }
        for purpose in KeyPurpose::ALL {
            match due(&raft, purpose, &settings, clock::now()) {
                Ok(Some(newest)) => rotate(&raft, purpose, newest, &vault).await,
                Ok(None) => {}
                Err(error) => warn!(%error, "the age of the signing keys cannot be read"),
            }
        }
    }
}

/// The number of the newest key, where it has signed for long enough.
fn due(
    raft: &Raft,
    purpose: KeyPurpose,
    settings: &Keys,
    now: Timestamp,
) -> Result<Option<u32>, Fault> {
    let Some(life_ms) = settings.rotate_ms() else { return Ok(None) };
    let keys = raft.local().query().signing_keys(purpose)?;
    let old = keys.last().filter(|key| key.signs_from.plus_millis(life_ms) <= now);
    Ok(old.map(|key| key.number))
}

async fn rotate(raft: &Raft, purpose: KeyPurpose, newest: u32, vault: &Vault) {
    let now = clock::now();
    let command = match command(purpose, newest, now, false, vault) {
        Ok(command) => command,
        Err(error) => return warn!(%error, "no signing key can be made"),
    };
    match raft.propose(now, command).await {
        Ok(_) => info!(purpose = purpose.name(), "a new key signs in an hour, the old one was due"),
        // Another leader was quicker.
        Err(ProposeError::Refused(Refusal::Exists(_))) => {}
        Err(error) => warn!(%error, purpose = purpose.name(), "a key could not be replaced"),
    }
}
