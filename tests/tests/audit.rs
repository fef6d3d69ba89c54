//! A node that is killed takes nothing along that it had noted for the audit trail.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::{Cluster, Storage};
use shoal_tests::host::Network;
use shoal_tests::process::run_text;

const ROUNDS: u64 = 3;
const LOGINS: u64 = 15;
const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn what_a_node_had_noted_before_it_was_killed_is_in_the_trail_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(0)?;
    let storage = Storage::Folder(folder.path().join("objects"));
    let mut cluster = Cluster::start(&network, folder.path(), &storage, 1, 0)?;
    let outcome = kill_after_logins(&mut cluster);
    outcome.with_context(|| {
        let logs = cluster.logs();
        logs.iter().map(|(name, log)| format!("--- {name}\n{log}\n")).collect::<String>()
    })
}

fn kill_after_logins(cluster: &mut Cluster) -> Result<()> {
    let mut logins = wait_for("the operator's own login to be in the trail", DEADLINE, || {
        let found = noted(cluster, "session.login")?;
        Ok((found > 0).then_some(found))
    })?;
    for round in 1..=ROUNDS {
        for _ in 0..LOGINS {
            login(cluster)?;
        }
        cluster.nodes[0].process()?.kill()?;
        cluster.nodes[0].start()?;
        logins += LOGINS;
        wait_for("all logins to be in the trail, and that the node fell", DEADLINE, || {
            let found = noted(cluster, "session.login")?;
            ensure!(found == logins, "{found} of {logins}");
            Ok((noted(cluster, "audit.recover")? == round).then_some(()))
        })?;
    }
    ensure!(noted(cluster, "audit.gap")? == 0, "something may be missing");
    let verified = get(cluster, "audit/verify")?;
    ensure!(verified["flaws"] == json!([]), "{verified}");
    Ok(())
}

/// How often something of that kind was done.
fn noted(cluster: &Cluster, action: &str) -> Result<u64> {
    let page = get(cluster, &format!("audit?limit=1000&action={action}"))?;
    let entries = page["entries"].as_array().context("no entries")?;
    Ok(entries.iter().filter_map(|entry| entry["count"].as_u64()).sum())
}

/// By a name and a password, which begins no session.
fn get(cluster: &Cluster, path: &str) -> Result<Value> {
    let node = &cluster.nodes[0];
    let mut command = node.host().command("curl");
    command.args(["-ksSf", "--max-time", "5", "-u", &format!("admin:{}", cluster.password)]);
    command.arg(format!("{}/api/v1/{path}", node.url()));
    Ok(serde_json::from_str(&run_text(command)?)?)
}

fn login(cluster: &Cluster) -> Result<()> {
    let node = &cluster.nodes[0];
    let body = json!({ "username": "admin", "password": cluster.password }).to_string();
    let mut command = node.host().command("curl");
    command.args(["-ksSf", "--max-time", "5", "-H", "content-type: application/json"]);
    command.args(["-d", &body]);
    command.arg(format!("{}/api/v1/auth/login", node.url()));
    run_text(command).map(drop)
}
