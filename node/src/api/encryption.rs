//! Encryption at rest: whether it is on, by which keys, and how one is replaced.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use shoal_api::{DataKeyInfo, EncryptionRotated, EncryptionStatus, RotateEncryption};
use shoal_content::ProjectName;
use shoal_metadata::{DataKey, DataKeyState, KeyOwner, Query, Read};
use tracing::warn;

use super::caller::Admin;
use super::input::{Body, Query as Asked};
use super::problem::{conflict, unavailable};
use crate::clock::rfc3339;
use crate::encryption::{DataKeys, Error, rotate_data_key, rotate_master_key};
use crate::http::problem::Problem;
use crate::state::App;

const PAGE_KEYS: usize = 1000;
/// Data keys that are shown where nobody says how many.
const SHOWN_USUAL: usize = 100;
const SHOWN_MAX: usize = 10_000;

/// What is asked for.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// The most data keys to list.
    limit: Option<usize>,
    /// Of this project alone.
    project: Option<ProjectName>,
}

pub async fn status(
    State(app): State<App>,
    _caller: Admin,
    Asked(shown): Asked<Shown>,
) -> Result<Json<EncryptionStatus>, Problem> {
    let view = app.view().await?;
    Ok(Json(describe(view.query(), app.encryption.as_ref(), &shown)?))
}

fn describe<R: Read>(
    query: Query<'_, R>,
    keys: Option<&DataKeys>,
    shown: &Shown,
) -> Result<EncryptionStatus, Problem> {
    let master_key = query.master_key()?;
    let state = match (keys, &master_key) {
        (None, _) => "off",
        (Some(keys), _) if !keys.seals() => "reading",
        (Some(_), None) => "waiting",
        (Some(_), Some(_)) => "on",
    };
    let newest = keys.map(|keys| keys.masters().newest().id().to_owned());
    let mut status = EncryptionStatus {
        state: state.to_owned(),
        master_key,
        node_master_keys: keys
            .map(|keys| keys.masters().ids().into_iter().collect())
            .unwrap_or_default(),
        waiting_for: waiting_for(query, newest.as_deref())?,
        newest_master_key: newest,
        wrapped_by: BTreeMap::new(),
        retired_keys: 0,
        destroyed_keys: 0,
        data_keys: Vec::new(),
    };
    let limit = shown.limit.unwrap_or(SHOWN_USUAL).min(SHOWN_MAX);
    let mut listed: Vec<DataKey> = Vec::new();
    let mut after = None;
    loop {
        let page = query.data_keys(after, PAGE_KEYS)?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        for key in page {
            match &key.state {
                DataKeyState::Kept { master, .. } | DataKeyState::Retired { master, .. } => {
                    *status.wrapped_by.entry(master.clone()).or_default() += 1;
                }
                DataKeyState::Destroyed { .. } => status.destroyed_keys += 1,
            }
            let retired = matches!(key.state, DataKeyState::Retired { .. });
            status.retired_keys += u64::from(retired);
            let of = shown.project.as_ref();
            if of.is_none_or(|of| matches!(&key.owner, KeyOwner::Project(name) if name == of)) {
                listed.push(key);
            }
        }
        listed.sort_unstable_by_key(|key| (Reverse(key.created_at), key.id));
        listed.truncate(limit);
    }
    for key in listed {
        status.data_keys.push(info(query, key)?);
    }
    Ok(status)
}

fn waiting_for<R: Read>(query: Query<'_, R>, master: Option<&str>) -> Result<Vec<u64>, Problem> {
    let Some(master) = master else { return Ok(Vec::new()) };
    let mut waiting = Vec::new();
    for node in query.nodes()? {
        if !query.node_master_keys(node.id)?.contains(master) {
            waiting.push(node.id.number());
        }
    }
    Ok(waiting)
}

fn info<R: Read>(query: Query<'_, R>, key: DataKey) -> Result<DataKeyInfo, Problem> {
    let seals = query.current_data_key(&key.owner)?.is_some_and(|current| current.id == key.id);
    let (state, master_key, retired_at, destroyed_at) = match key.state {
        DataKeyState::Kept { master, .. } if seals => ("seals", Some(master), None, None),
        DataKeyState::Kept { master, .. } => ("opens", Some(master), None, None),
        DataKeyState::Retired { master, since, .. } => {
            ("retired", Some(master), Some(rfc3339(since)), None)
        }
        DataKeyState::Destroyed { at } => ("destroyed", None, None, Some(rfc3339(at))),
    };
    Ok(DataKeyInfo {
        id: key.id.to_string(),
        project: match key.owner {
            KeyOwner::Cluster => None,
            KeyOwner::Project(name) => Some(name.to_string()),
        },
        state: state.to_owned(),
        master_key,
        created_at: rfc3339(key.created_at),
        retired_at,
        destroyed_at,
    })
}

pub async fn rotate(
    State(app): State<App>,
    _caller: Admin,
    Body(request): Body<RotateEncryption>,
) -> Result<Json<EncryptionRotated>, Problem> {
    let off = || {
        let text = "this node has no [encryption] master_key_file and no kms_command";
        conflict("encryption_off", text)
    };
    let keys = app.encryption.as_ref().ok_or_else(off)?;
    let data_keys = match request.project {
        None => rotate_master_key(&app, keys).await?,
        Some(name) => {
            let name: Result<ProjectName, _> = name.parse();
            let invalid =
                |error| Problem::bad_request("name_invalid", format!("no project: {error}"));
            rotate_data_key(&app, keys, Some(name.map_err(invalid)?)).await?;
            1
        }
    };
    let master_key = app.view().await?.query().master_key()?.unwrap_or_default();
    Ok(Json(EncryptionRotated { data_keys, master_key }))
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Propose(error) => error.into(),
            Error::Read(error) => error.into(),
            Error::Store(error) => error.into(),
            Error::Master(error) if error.is_retryable() => {
                warn!(%error, "the master key cannot be had");
                let text = "the key service does not answer; the node's log says why";
                unavailable(text)
            }
            Error::NotSealing(_) => conflict("encryption_off", error.to_string()),
            Error::NoMaster(_) | Error::OtherMaster { .. } => {
                conflict("master_key_missing", error.to_string())
            }
            error => Self::internal(&error),
        }
    }
}
