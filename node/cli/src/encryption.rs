//! Encryption at rest: how it stands, and new keys.

use comfy_table::{Cell, Table};
use reqwest::Method;
use shoal_api::{DataKeyInfo, EncryptionRotated, EncryptionStatus, RotateEncryption};

use crate::arguments::EncryptionCommand;
use crate::client::{Client, escaped};
use crate::error::Error;
use crate::screen::{Screen, state, table};

const PATH: &str = "api/v1/cluster/encryption";

pub async fn encryption(
    command: &EncryptionCommand,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    match command {
        EncryptionCommand::Status { project, limit } => {
            let of = project.as_ref().map(|name| format!("&project={}", escaped(name)));
            let path = format!("{PATH}?limit={limit}{}", of.unwrap_or_default());
            let status: EncryptionStatus = client.get(path).await?;
            screen.show(&status, || {
                let said = said(&status);
                match status.data_keys.as_slice() {
                    [] => said,
                    keys => format!("{}\n{said}", key_table(keys)),
                }
            })
        }
        EncryptionCommand::Rotate { project } => {
            let request = RotateEncryption { project: project.clone() };
            let rotated: EncryptionRotated =
                client.call(Method::POST, format!("{PATH}/rotate"), &request).await?;
            screen.show(&rotated, || {
                let EncryptionRotated { data_keys, master_key } = &rotated;
                match project {
                    Some(project) => format!("What {project} stores from now on has another key."),
                    None if *data_keys == 0 => {
                        format!("All data keys are wrapped by {master_key} already.")
                    }
                    None => format!(
                        "{data_keys} data keys are wrapped by {master_key} now; the nodes need the \
                         old master key no longer, and backups that were made before do."
                    ),
                }
            })
        }
    }
}

fn key_table(keys: &[DataKeyInfo]) -> Table {
    let mut rows = table(&["PROJECT", "STATE", "CREATED", "ENDED", "MASTER KEY", "DATA KEY"]);
    for key in keys {
        let ended = key.destroyed_at.as_ref().or(key.retired_at.as_ref());
        rows.add_row([
            Cell::new(key.project.as_deref().unwrap_or("-")),
            state(&key.state),
            Cell::new(&key.created_at),
            Cell::new(ended.map_or("-", String::as_str)),
            Cell::new(key.master_key.as_deref().unwrap_or("-")),
            Cell::new(&key.id),
        ]);
    }
    rows
}

/// What the status comes to.
fn said(status: &EncryptionStatus) -> String {
    let nodes: Vec<String> = status.waiting_for.iter().map(u64::to_string).collect();
    let nodes = nodes.join(", ");
    let mut lines = vec![match status.state.as_str() {
        "off" => "Objects are stored as they are: [encryption] has no master_key_file and no \
                  kms_command."
            .to_owned(),
        "waiting" => format!("Nothing is sealed before these nodes have the master key: {nodes}."),
        "reading" => "What is sealed can be read; new objects are stored as they are.".to_owned(),
        _ => "Objects are sealed.".to_owned(),
    }];
    for (master, count) in &status.wrapped_by {
        lines.push(format!("The master key {master} wraps {count} data keys."));
    }
    let newest = status.newest_master_key.as_ref();
    if let Some(newest) = newest.filter(|newest| status.master_key.as_ref() != Some(newest))
        && status.master_key.is_some()
    {
        lines.push(match nodes.as_str() {
            "" => format!("Every node has {newest}: 'shoal encryption rotate' goes over to it."),
            nodes => format!("Before a rotation to {newest} these nodes need it: {nodes}."),
        });
    }
    if status.retired_keys > 0 {
        let count = status.retired_keys;
        lines.push(format!("{count} keys of removed projects are about to be destroyed."));
    }
    if status.destroyed_keys > 0 {
        let count = status.destroyed_keys;
        lines.push(format!("{count} keys of removed projects were destroyed."));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: &str) -> EncryptionStatus {
        EncryptionStatus {
            state: state.to_owned(),
            master_key: Some("file-1".to_owned()),
            node_master_keys: vec!["file-2".to_owned(), "file-1".to_owned()],
            newest_master_key: Some("file-2".to_owned()),
            waiting_for: Vec::new(),
            wrapped_by: [("file-1".to_owned(), 3)].into(),
            retired_keys: 1,
            destroyed_keys: 2,
            data_keys: Vec::new(),
        }
    }

    #[test]
    fn says_what_is_to_be_done_before_a_rotation() {
        let ready = said(&status("on"));
        assert!(ready.contains("Objects are sealed") && ready.contains("encryption rotate"));
        let waiting = said(&EncryptionStatus { waiting_for: vec![2, 3], ..status("on") });
        assert!(waiting.contains("these nodes need it: 2, 3"), "{waiting}");
        let off = EncryptionStatus { master_key: None, newest_master_key: None, ..status("off") };
        assert!(said(&off).contains("master_key_file"));
    }
}
