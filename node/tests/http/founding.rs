//! Founding a cluster in a data folder where an earlier founding was cut off.
//!
//! Each cut is made out of a founding that ended, by taking away what comes later.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shoal_node::config::Config;
use shoal_node::joining;
use shoal_node::server::{self, Server};

use super::node::{Node, client, config};
use super::wait::until;

type Cut = (&'static str, fn(&Path) -> io::Result<()>);

const CUTS: &[Cut] = &[
    ("before the certificates", |folder| {
        fs::remove_dir_all(folder.join("raft"))?;
        fs::remove_file(folder.join("ca.pem"))?;
        fs::remove_file(folder.join("node.pem"))
    }),
    ("between the certificates", |folder| {
        fs::remove_dir_all(folder.join("raft"))?;
        fs::rename(folder.join("ca.pem"), folder.join("ca.pem.part"))
    }),
    ("before the databases", |folder| fs::remove_dir_all(folder.join("raft"))),
    ("between the databases", |folder| {
        fs::remove_file(folder.join("raft/state.current"))?;
        fs::remove_dir_all(folder.join("raft/log"))
    }),
    ("in the log", |folder| {
        for entry in fs::read_dir(folder.join("raft/log"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                fs::write(path, b"torn")?;
            }
        }
        Ok(())
    }),
    ("before the rows", |folder| fs::remove_dir_all(folder.join("raft/state-1"))),
    ("in the membership", |folder| fs::write(folder.join("member.json.part"), b"{\"cluster\":")),
    ("before the membership", |_| Ok(())),
];

/// As a founding leaves a folder whose last step was the one before.
fn cut_off(folder: &Path, (_, cut): &Cut) -> Result<()> {
    fs::remove_file(folder.join("member.json"))?;
    fs::write(folder.join("founding"), b"")?;
    Ok(cut(folder)?)
}

fn cluster(config: &Config) -> Result<String> {
    let member = fs::read(config.node.data_dir.join("member.json"))?;
    let member: Value = serde_json::from_slice(&member)?;
    Ok(member["cluster"].as_str().context("a cluster")?.to_owned())
}

/// In this process the endpoint of a group ends a moment after the group.
async fn free(config: &Config) -> Result<()> {
    until("the port that is given back", async || {
        Ok(UdpSocket::bind(config.raft.listen).ok().map(drop))
    })
    .await
}

async fn logs_in(config: Config, password: &str) -> Result<()> {
    let url = format!("{}/api/v1/auth/login", config.api_url());
    let authority = fs::read(config.node.data_dir.join("ca.pem"))?;
    let server = Server::start(config, |_| ()).await?;
    let login = json!({ "username": "admin", "password": password });
    let answer = client(&authority)?.post(url).json(&login).send().await?;
    ensure!(answer.status().is_success(), "{answer:?}");
    server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founding_that_was_cut_off_begins_again_wherever_that_was() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = config(&folder)?;
    let home = &config.node.data_dir;
    let mut password = server::found(&config).await?;
    for cut in CUTS {
        let before = cluster(&config)?;
        cut_off(home, cut)?;
        free(&config).await?;
        password = server::found(&config).await.with_context(|| cut.0)?;
        ensure!(cluster(&config)? != before, "{}: it is the cluster that nobody knows", cut.0);
        ensure!(!home.join("founding").exists(), "{}: it has not ended", cut.0);
    }
    let again = server::found(&config).await.err().context("founded twice")?;
    ensure!(format!("{again:#}").contains("recover-admin"), "{again:#}");
    free(&config).await?;
    logs_in(config, &password).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_runs_founds_its_cluster_where_a_founding_was_cut_off() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = config(&folder)?;
    server::found(&config).await?;
    cut_off(&config.node.data_dir, CUTS.last().context("a cut")?)?;
    free(&config).await?;
    let mut password = String::new();
    let server = Server::start(config.clone(), |shown| shown.clone_into(&mut password)).await?;
    server.stop().await?;
    free(&config).await?;
    logs_in(config, &password).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_founding_has_left_does_not_keep_a_node_from_joining() -> Result<()> {
    let node = Node::start().await?;
    let folder = tempfile::tempdir()?;
    let mut config = config(&folder)?;
    config.node.name = "node-2".to_owned();
    server::found(&config).await?;
    cut_off(&config.node.data_dir, CUTS.last().context("a cut")?)?;
    let token = node.join_token("node", Some(1)).await?;
    let member = joining::join(&config, &node.url, &token).await?;
    ensure!(member.cluster == node.server.app().keys.cluster);
    ensure!(!config.node.data_dir.join("raft/log").exists(), "it has another group's log");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_founded_over_what_may_be_needed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = config(&folder)?;
    let log = config.node.data_dir.join("raft/log");
    fs::create_dir_all(&log)?;
    fs::write(log.join("1"), b"entries")?;
    let refused = server::found(&config).await.err().context("founded over a log")?;
    let named = config.node.data_dir.join("raft").display().to_string();
    ensure!(format!("{refused:#}").contains(&named), "{refused:#}");
    ensure!(fs::read(log.join("1"))? == b"entries");

    fs::remove_dir_all(config.node.data_dir.join("raft"))?;
    fs::write(config.node.data_dir.join("restoring"), b"")?;
    let refused = server::found(&config).await.err().context("founded over a restore")?;
    ensure!(format!("{refused:#}").contains("restore into"), "{refused:#}");
    Ok(())
}
