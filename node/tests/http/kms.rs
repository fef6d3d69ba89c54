//! Master keys of a key service, which a program speaks to: made of openssl here (`kms.sh`), it wraps
//! with a real cipher, and lies, hangs and fails where it is told to.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::json;
use shoal_api::{EncryptionRotated, EncryptionStatus};
use shoal_node::config::{Config, Encryption};
use shoal_node::server;
use tempfile::TempDir;

use super::encryption::{STATUS, content, master_key, pull, sealing};
use super::node::{self, Node};
use super::v2::push_blob;
use super::wait::until;

const SERVICE: &str = include_str!("kms.sh");
const UNWRAPS: &str = "text=$(field wrapped | cipher -d)";

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

/// What founding a cluster with these settings is refused with; nothing may be made then.
async fn refused(change: impl FnOnce(&mut Encryption)) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let mut config = node::config(&folder)?;
    change(&mut config.encryption);
    let refused = server::found(&config).await.err().context("it was founded")?;
    ensure!(!config.node.data_dir.exists(), "something was made");
    Ok(format!("{refused:#}"))
}

async fn refused_by(script: &str) -> Result<String> {
    let service = Service::new(script)?;
    refused(|encryption| {
        encryption.kms_command = service.command();
        encryption.kms_timeout_seconds = 60;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_cluster_is_founded_with_a_master_key_that_cannot_be_used() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let missing = keys.path().join("missing");
    let said = refused(|encryption| encryption.master_key_file = Some(missing)).await?;
    ensure!(said.contains("cannot be read"), "{said}");
    let malformed = keys.path().join("malformed");
    fs::write(&malformed, "secret")?;
    let said = refused(|encryption| encryption.master_key_file = Some(malformed)).await?;
    ensure!(said.contains("chmod 0400") || said.contains("openssl rand"), "{said}");

    let other = "A".repeat(43) + "=";
    let lies = SERVICE.replace(UNWRAPS, &format!("text={other}"));
    let said = refused_by(&lies).await?;
    ensure!(said.contains("does not unwrap again"), "{said}");
    let said = refused_by(&SERVICE.replace(UNWRAPS, "while :; do echo much; done")).await?;
    ensure!(said.contains("more than 65536 bytes"), "{said}");
    let said = refused_by("echo 'no such key' >&2; exit 1").await?;
    ensure!(said.contains("no such key"), "{said}");
    let hangs = Service::new("sleep 86400")?;
    let said = refused(|encryption| {
        encryption.kms_command = hangs.command();
        encryption.kms_timeout_seconds = 1;
    })
    .await?;
    ensure!(said.contains("kms_timeout_seconds"), "{said}");

    let service = Service::new(SERVICE)?;
    let folder = tempfile::tempdir()?;
    let mut config = node::config(&folder)?;
    config.encryption.kms_command = service.command();
    let password = server::found(&config).await?;
    ensure!(password.len() == 20, "{} letters", password.len());
    ensure!(config.node.data_dir.join("member.json").exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_could_not_run_does_not_join_and_spends_no_token() -> Result<()> {
    let service = Service::new(SERVICE)?;
    let with = |service: &Service| {
        let command = service.command();
        move |config: &mut Config| config.encryption.kms_command = command
    };
    let first = Node::start_with(with(&service)).await?;
    sealing(&first).await?;
    let storage = first.path().join("node/storage");
    let token = first.join_token("node", Some(1)).await?;
    let join = async |name: &str, service: &Service, storage: &Path| {
        Node::join_with(name, &first.url, &token, storage, with(service)).await
    };
    let broken = Service::new("exit 1")?;
    let refused = join("node-2", &broken, &storage).await.err().context("it has joined")?;
    ensure!(format!("{refused:#}").contains("the master key cannot be used"), "{refused:#}");
    let second = join("node-2", &service, &storage).await?.logged_in_as(&first);
    let pushed = content(70_000);
    push_blob(&first, "a/app", &pushed).await?;
    pull(&second, "a/app", &pushed).await?;
    second.server.stop().await?;
    first.server.stop().await
}
