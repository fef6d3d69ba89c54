//! Another authority, when the one that there is grows old, and when somebody asks for it; and the
//! steps from there, each taken by whichever node leads, by commands that look again.

use std::time::Duration;

use shoal_content::Timestamp;
use shoal_metadata::{AuthorityStep, Command, Refusal, Secret, SecretPlace, command_version};
use shoal_raft::{ProposeError, Raft};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::{Error, Held};
use crate::clock;
use crate::encryption::Vault;

/// How often the leader looks whether the next step is due.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often it looks at the authority's age, and how long it waits after what failed.
const AGE_INTERVAL: Duration = Duration::from_secs(60);

/// Announces another authority.
///
/// # Errors
/// Where none can be made.
pub fn announce(
    held: &Held,
    cluster: &shoal_content::ClusterId,
    hurried: bool,
    vault: &Vault,
) -> Result<Command, Error> {
    let made = held.succeed(cluster)?;
    let newest = held.newest();
    let key = Secret(made.authority.key_pem().as_bytes().to_vec());
    Ok(Command::StepAuthority(AuthorityStep::Announce {
        newest,
        certificate: made.authority.certificate_pem().to_owned(),
        vouched: made.vouched_pem,
        key: vault.seal(SecretPlace::of_authority(newest.saturating_add(1)), key),
        hurried,
    }))
}

/// Goes on with rotations, and begins one where the authority is old. Runs until it is dropped.
pub async fn keep(raft: Raft, vault: Vault) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut age_at = Instant::now();
    loop {
        ticks.tick().await;
        if !raft.status().is_leader {
            continue;
        }
        let looks_at_age = Instant::now() >= age_at;
        if looks_at_age {
            age_at = Instant::now() + AGE_INTERVAL;
        }
        match due(&raft, &vault, clock::now(), looks_at_age) {
            Ok(Some(command)) => propose(&raft, command).await,
            Ok(None) => {}
            Err(error) if looks_at_age => {
                warn!(%error, "it is not known whether the cluster's authority is to be replaced");
            }
            Err(_) => {}
        }
    }
}

fn due(
    raft: &Raft,
    vault: &Vault,
    now: Timestamp,
    looks_at_age: bool,
) -> Result<Option<Command>, Error> {
    let view = raft.local();
    let query = view.query();
    if let Some(next) = query.authority_next()? {
        return Ok(next.is_due(now).then(|| Command::StepAuthority(next.step())));
    }
    if !looks_at_age {
        return Ok(None);
    }
    let (Some(cluster), Some(held)) = (query.cluster()?, Held::read(query, vault)?) else {
        return Ok(None);
    };
    if !held.signer().is_old(now)? {
        return Ok(None);
    }
    let command = announce(&held, &cluster.id, false, vault)?;
    Ok((query.level()? >= command_version(&command)).then_some(command))
}

async fn propose(raft: &Raft, command: Command) {
    let said = match &command {
        Command::StepAuthority(AuthorityStep::Sign { .. }) => {
            "the cluster's new authority signs from now on"
        }
        Command::StepAuthority(AuthorityStep::Retire { .. }) => {
            "the cluster's old authority is believed no longer"
        }
        _ => "the cluster's authority grows old: another one takes its place",
    };
    match raft.propose(clock::now(), command).await {
        Ok(_) => info!("{said}"),
        // Another leader was quicker, or a node came that has not said anything yet.
        Err(ProposeError::Refused(
            Refusal::Exists(_) | Refusal::NotFound(_) | Refusal::InUse { .. },
        )) => {}
        Err(error) => {
            warn!(%error, "a step to another authority cannot be taken yet");
            tokio::time::sleep(INTERVAL).await;
        }
    }
}
