//! Master keys of a key service, which a program speaks to: made of openssl here (`kms.sh`), it wraps
//! with a real cipher.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::json;
use shoal_api::{EncryptionRotated, EncryptionStatus};
use tempfile::TempDir;

use super::encryption::{STATUS, content, master_key, pull, sealing};
use super::node::Node;
use super::v2::push_blob;
use super::wait::until;

const SERVICE: &str = include_str!("kms.sh");

/// A service, with one version of its key.
struct Service(TempDir);

impl Service {
    fn new(script: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for (name, text) in [("kms.sh", script), ("secret-1", "one"), ("newest", "1")] {
            fs::write(folder.path().join(name), text)?;
        }
        Ok(Self(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A shell reads the script, since one that is being written cannot be run.
    fn command(&self) -> Vec<String> {
        let folder = self.0.path().display().to_string();
        vec!["/bin/sh".to_owned(), format!("{folder}/kms.sh"), folder]
    }

    fn unwrapped(&self) -> Result<usize> {
        let calls = fs::read_to_string(self.path("calls"))?;
        Ok(calls.lines().filter(|line| *line == "unwrap").count())
    }
}

/// Goes over to the newest master key, once every node has it; gives how many data keys do.
async fn rotate(node: &Node) -> Result<EncryptionRotated> {
    until("what the nodes say of their master keys", async || {
        let status: EncryptionStatus = node.get(STATUS).await?;
        Ok(status.waiting_for.is_empty().then_some(()))
    })
    .await?;
    node.call(Method::POST, &format!("{STATUS}/rotate"), &json!({})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_go_over_from_a_file_to_a_service_to_its_next_key_and_back() -> Result<()> {
    let (keys, service) = (tempfile::tempdir()?, Service::new(SERVICE)?);
    let (first, last) = (master_key(keys.path(), 1)?, master_key(keys.path(), 2)?);
    let old = first.clone();
    let node = Node::start_with(|config| config.encryption.master_key_file = Some(old)).await?;
    sealing(&node).await?;
    let mut pushed = vec![("a/app".to_owned(), content(70_000))];
    push_blob(&node, "a/app", &pushed[0].1).await?;

    let command = service.command();
    let node = node
        .restart(|config| {
            config.encryption.master_key_file = None;
            config.encryption.previous_master_key_files = vec![first];
            config.encryption.kms_command = command;
        })
        .await?;
    let rotated = rotate(&node).await?;
    ensure!(rotated.data_keys == 2 && rotated.master_key == "kms-test:1", "{rotated:?}");
    pushed.push(("b/app".to_owned(), content(71_000)));
    push_blob(&node, "b/app", &pushed[1].1).await?;

    // A new version of the key. The node asks for it, and the program opens both.
    fs::write(service.path("secret-2"), "two")?;
    fs::write(service.path("newest"), "2")?;
    let node = node.restart(|config| config.encryption.previous_master_key_files.clear()).await?;
    let rotated = rotate(&node).await?;
    ensure!(rotated.data_keys == 3 && rotated.master_key == "kms-test:2", "{rotated:?}");
    fs::remove_file(service.path("secret-1"))?;

    // A node that runs goes on while the service is away, also with what is new.
    fs::write(service.path("away"), "")?;
    pushed.push(("c/app".to_owned(), content(72_000)));
    push_blob(&node, "c/app", &pushed[2].1).await?;
    for (repository, content) in &pushed {
        pull(&node, repository, content).await?;
    }
    fs::remove_file(service.path("away"))?;

    // Reads cost no call each.
    let node = node.restart(|_| ()).await?;
    pull(&node, &pushed[0].0, &pushed[0].1).await?;
    let before = service.unwrapped()?;
    for _ in 0..5 {
        for (repository, content) in &pushed {
            pull(&node, repository, content).await?;
        }
    }
    let more = service.unwrapped()? - before;
    ensure!(more == 0, "{more} calls for reads");

    let command = service.command();
    let node = node
        .restart(|config| {
            config.encryption.master_key_file = Some(last);
            config.encryption.kms_command.clear();
            config.encryption.previous_kms_command = command;
        })
        .await?;
    let rotated = rotate(&node).await?;
    ensure!(rotated.data_keys == 4 && rotated.master_key.starts_with("file-"), "{rotated:?}");
    let node = node.restart(|config| config.encryption.previous_kms_command.clear()).await?;
    for (repository, content) in &pushed {
        pull(&node, repository, content).await?;
    }
    node.server.stop().await
}
