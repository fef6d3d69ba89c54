//! New keys: another master key for all data keys, or another data key for a project.
//!
//! No object is rewritten by either: a master key wraps rows, and a data key that was replaced goes
//! on opening what it sealed.

use std::collections::BTreeMap;

use shoal_content::{DataKeyId, ProjectName};
use shoal_metadata::{Command, KeyOwner, Secret};
use tracing::info;

use super::keys::{PAGE_KEYS, wrapped};
use super::{DataKeys, Error, MasterKey};
use crate::state::App;

/// Has the node's newest master key wrap every data key; gives how many it had not. A service is asked
/// for its newest one first.
///
/// # Errors
/// Where a node has not said that it has that master key; what was wrapped stays so.
pub async fn rotate_master_key(app: &App, keys: &DataKeys) -> Result<u64, Error> {
    keys.masters().refresh().await?;
    let newest = keys.masters().newest();
    let mut rotated = 0;
    // One that is made meanwhile may come before the place where the look is, until the cluster's
    // own key is wrapped anew.
    loop {
        let round = wrap_all(app, keys, &*newest).await?;
        rotated += round;
        if round == 0 {
            break;
        }
    }
    if rotated > 0 {
        info!(master = newest.id(), keys = rotated, "data keys are wrapped by another master key");
    }
    Ok(rotated)
}

async fn wrap_all(app: &App, keys: &DataKeys, newest: &dyn MasterKey) -> Result<u64, Error> {
    let (mut after, mut count): (Option<DataKeyId>, u64) = (None, 0);
    loop {
        let page = app.raft.read().await?.query().data_keys(after, PAGE_KEYS)?;
        let Some(last) = page.last() else { return Ok(count) };
        after = Some(last.id);
        let mut anew = BTreeMap::new();
        for row in &page {
            let old = wrapped(&row.state).is_some_and(|(master, _)| master != newest.id());
            if old && let Some(key) = keys.opened(row).await? {
                anew.insert(row.id, Secret(newest.wrap(row.id, &key.bytes).await?));
            }
        }
        if !anew.is_empty() {
            count += anew.len() as u64;
            let master = newest.id().to_owned();
            app.propose(Command::WrapDataKeys { master, keys: anew }).await?;
        }
    }
}

/// Gives a project, or the cluster itself, another data key for what is stored from now on.
///
/// # Errors
/// Where nothing is sealed yet, or the cluster refuses it.
pub async fn rotate_data_key(
    app: &App,
    keys: &DataKeys,
    project: Option<ProjectName>,
) -> Result<(), Error> {
    let owner = project.map_or(KeyOwner::Cluster, KeyOwner::Project);
    let (current, master) = {
        let view = app.raft.read().await?;
        let query = view.query();
        (query.current_data_key(&owner)?, query.master_key()?)
    };
    let master = master.ok_or(Error::NotSealing("not every node has the master key"))?;
    let current = current.ok_or(Error::NotSealing("the project has stored nothing"))?;
    let command = keys.command(&owner, Some(current.id), &master).await?;
    app.propose(command).await?;
    info!(%owner, "a new data key was made");
    Ok(())
}
