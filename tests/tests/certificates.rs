//! Certificates that are to end, and a cluster that was away until all of them had; and another
//! authority in the place of the one that signed them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::{Agent, Cluster, Storage};
use shoal_tests::host::Network;
use shoal_tests::process::run_text;
use shoal_tests::skew::{self, Clock};

const AGENTS: usize = 2;
const DISK_BYTES: usize = 8 << 20;
const DAY_MS: i64 = 24 * 3600 * 1000;
const DEADLINE: Duration = Duration::from_secs(60);
/// At this rate what is deployed while the authority is replaced takes 27 seconds.
const RATE: &str = "20 Mbit/s";
const DEPLOYED_BYTES: usize = 64 << 20;

#[test]
fn certificates_are_renewed_in_time_and_after_a_long_absence() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(AGENTS)?;
    let storage = Storage::Folder(folder.path().join("objects"));
    let mut cluster = Cluster::start(&network, folder.path(), &storage, 3, AGENTS)?;
    let outcome = grow_old(folder.path(), &mut cluster);
    outcome.with_context(|| {
        let logs = cluster.logs();
        logs.iter().map(|(name, log)| format!("--- {name}\n{log}\n")).collect::<String>()
    })
}

fn grow_old(folder: &Path, cluster: &mut Cluster) -> Result<()> {
    let names = ["vm/first:1", "vm/second:1", "vm/third:1"];
    for (number, name) in names.into_iter().enumerate() {
        upload(folder, cluster, number, name, DISK_BYTES)?;
    }
    fetch(folder, cluster, 0, 0, names[0])?;
    let clock = under_a_clock(folder, cluster)?;
    // In the last third of a year and a month, while all run; then all were away until long after
    // what was renewed had ended.
    for (days, number) in [(300, 1), (1000, 2)] {
        let before = certificates(cluster)?;
        if number == 1 {
            clock.set(days * DAY_MS)?;
        } else {
            stop(cluster)?;
            clock.set(days * DAY_MS)?;
            start(cluster).with_context(|| format!("after {days} days"))?;
        }
        wait_for("every certificate to be another one", DEADLINE, || {
            let now = certificates(cluster)?;
            Ok(now.iter().zip(&before).all(|(now, before)| now != before).then_some(()))
        })?;
        // From the nodes, and then from the other host.
        fetch(folder, cluster, 0, number, names[number])?;
        fetch(folder, cluster, 1, number, names[number])?;
        ensure!(cluster.peer_bytes()? > 0.0, "the hosts do not trust each other after {days} days");
    }
    Ok(())
}

#[test]
fn another_authority_takes_the_place_of_the_first_and_nobody_is_left_behind() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(AGENTS + 2)?;
    let storage = Storage::Folder(folder.path().join("objects"));
    let mut cluster = Cluster::start(&network, folder.path(), &storage, 3, AGENTS + 1)?;
    let late = Agent::prepare(network.host(AGENTS + 1), &folder.path().join("late"), "late")?;
    let outcome = replace_in_time(folder.path(), &mut cluster, late);
    outcome.with_context(|| {
        let logs = cluster.logs();
        logs.iter().map(|(name, log)| format!("--- {name}\n{log}\n")).collect::<String>()
    })
}

fn replace_in_time(folder: &Path, cluster: &mut Cluster, mut late: Agent) -> Result<()> {
    let names = ["vm/first:1", "vm/second:1", "vm/third:1", "vm/fourth:1"];
    for (number, name) in names.into_iter().enumerate() {
        upload(folder, cluster, number, name, DISK_BYTES)?;
    }
    let created = ["token", "create", "--role", "agent", "--ttl", "300days"];
    let token = cluster.operator.json(&created)?;
    let token = token["token"].as_str().context("no token")?.to_owned();
    let clock = under_a_clock(folder, cluster)?;
    fetch(folder, cluster, 0, 0, names[0])?;
    // One host is away from the beginning until long after the end.
    cluster.agents[AGENTS].process()?.stop()?;
    let first = cluster.operator.json(&["cluster", "authority", "status"])?;
    ensure!(states(&first) == ["signs"] && first["rotation"].is_null(), "{first}");
    let begun = cluster.operator.json(&["cluster", "authority", "rotate"])?;
    ensure!(states(&begun) == ["signs", "announced"], "{begun}");
    let again = cluster.operator.run(&["cluster", "authority", "rotate"]);
    ensure!(again.is_err_and(|error| error.to_string().contains("already")), "a second one");
    await_nodes(cluster, "sign")?;
    for node in &cluster.nodes {
        let believed = fs::read_to_string(node.data_dir().join("ca.pem"))?;
        ensure!(certificates_in(&believed) == 2, "{} believes one only", node.name);
    }

    // Whoever leads may die; what a node has said holds without it.
    let before = certificates(cluster)?;
    cluster.nodes[0].process()?.kill()?;
    clock.set(DAY_MS + DAY_MS / 24)?;
    wait_for("the second authority to sign", DEADLINE, || {
        let status = status(cluster, 1)?;
        Ok((states(&status) == ["believed", "signs"]).then_some(()))
    })?;
    cluster.nodes[0].start()?;
    await_nodes(cluster, "retire")?;
    // The one that is away is the last.
    let at_work = before.len() - 1;
    wait_for("every certificate to be another one", DEADLINE, || {
        let now = certificates(cluster)?;
        let mut pairs = now.iter().zip(&before).take(at_work);
        Ok(pairs.all(|(now, before)| now != before).then_some(()))
    })?;
    fetch(folder, cluster, 0, 1, names[1])?;
    let peers = from_peers(&cluster.agents[1])?;
    fetch(folder, cluster, 1, 1, names[1])?;
    let came = from_peers(&cluster.agents[1])?;
    ensure!(came > peers, "the hosts do not trust each other in the overlap");

    // All go away in the middle.
    for agent in &mut cluster.agents[..AGENTS] {
        agent.process()?.stop()?;
    }
    for node in &mut cluster.nodes {
        node.process()?.stop()?;
    }
    for agent in &mut cluster.agents[..AGENTS] {
        agent.start()?;
    }
    for node in &mut cluster.nodes {
        node.launch()?;
    }
    for node in &mut cluster.nodes {
        node.wait_until_ready()?;
    }
    clock.set(32 * DAY_MS)?;
    wait_for("the first authority to be retired", DEADLINE, || {
        let status = status(cluster, 2)?;
        let retired = states(&status) == ["retired", "signs"] && status["rotation"].is_null();
        Ok(retired.then_some(()))
    })?;
    let pems = cluster.nodes.iter().map(|node| node.data_dir().join("ca.pem"));
    let pems: Vec<PathBuf> = pems.collect();
    wait_for("nodes and hosts to believe the second alone", DEADLINE, || {
        let mut alone = true;
        for pem in &pems {
            alone &= certificates_in(&fs::read_to_string(pem)?) == 1;
        }
        for agent in &cluster.agents[..AGENTS] {
            alone &= believed(agent)? == fs::read_to_string(&pems[0])?;
        }
        Ok(alone.then_some(()))
    })?;
    fetch(folder, cluster, 0, 2, names[2])?;
    let peers = from_peers(&cluster.agents[1])?;
    fetch(folder, cluster, 1, 2, names[2])?;
    let came = from_peers(&cluster.agents[1])?;
    ensure!(came > peers, "the hosts do not trust each other any more");
    for (name, log) in cluster.logs() {
        ensure!(!log.contains("UnknownIssuer"), "somebody was refused: {name}");
    }

    // Who was away all the time believes the first alone, and shows a certificate of its.
    let away = AGENTS;
    ensure!(believed(&cluster.agents[away])? != fs::read_to_string(&pems[0])?);
    cluster.agents[away].start()?;
    wait_for("the host that was away to have a new certificate", DEADLINE, || {
        let now = certificates(cluster)?;
        let renewed = now[at_work] != before[at_work];
        let same = believed(&cluster.agents[away])? == fs::read_to_string(&pems[0])?;
        Ok((renewed && same).then_some(()))
    })?;
    let log = cluster.agents[away].process()?.log_text();
    ensure!(log.contains("other authorities of the cluster are believed"), "it says nothing");
    let peers = from_peers(&cluster.agents[away])?;
    fetch(folder, cluster, away, 2, names[2])?;
    let came = from_peers(&cluster.agents[away])?;
    ensure!(came > peers, "no host trusts the one that was away");

    // A token of before names the first, and is good until its own end.
    let url = cluster.nodes[1].url();
    let mut join = late.command("join", &["--node", &url, "--token", &token])?;
    join.envs(clock.environment());
    run_text(join)?;
    late.set_environment(clock.environment());
    late.start()?;
    ensure!(believed(&late)? == fs::read_to_string(&pems[0])?, "it believes the first");
    let into = folder.join("late.raw");
    let output = into.to_string_lossy();
    run_text(late.command("fetch", &[names[3], "--format", "raw", "--output", &output])?)?;
    ensure!(fs::read(&into)? == fs::read(disk(folder, 3))?, "it differs");
    Ok(())
}

#[test]
fn an_authority_whose_key_got_out_is_replaced_at_once_while_hosts_fetch() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(AGENTS + 1)?;
    let storage = Storage::Folder(folder.path().join("objects"));
    let mut cluster = Cluster::start(&network, folder.path(), &storage, 3, AGENTS)?;
    let late = Agent::prepare(network.host(AGENTS), &folder.path().join("late"), "late")?;
    let outcome = replace_at_once(folder.path(), &mut cluster, &late);
    outcome.with_context(|| {
        let logs = cluster.logs();
        logs.iter().map(|(name, log)| format!("--- {name}\n{log}\n")).collect::<String>()
    })
}

fn replace_at_once(folder: &Path, cluster: &mut Cluster, late: &Agent) -> Result<()> {
    upload(folder, cluster, 0, "vm/large:1", DEPLOYED_BYTES)?;
    let token = cluster.operator.token("agent")?;
    for agent in &mut cluster.agents {
        agent.edit("[limits]\n", &format!("[limits]\ndownload = \"{RATE}\"\n"))?;
        agent.process()?.signal(Signal::SIGHUP);
        wait_for("the limit to be read", DEADLINE, || {
            let status = run_text(agent.command("status", &["--json"])?)?;
            let status: Value = serde_json::from_str(&status)?;
            Ok((status["limits"]["download"] == RATE).then_some(()))
        })?;
    }
    let before = certificates(cluster)?;
    cluster.operator.run(&["deploy", "vm/large:1", "--all", "--detach"])?;
    let received = |agent: &Agent| {
        agent.metric("shoal_chunk_bytes_received_total", "").unwrap_or(0.0) as usize
    };
    wait_for("a part of the disk to arrive everywhere", DEADLINE, || {
        let begun = |agent| received(agent) > DEPLOYED_BYTES / 16;
        Ok(cluster.agents.iter().all(begun).then_some(()))
    })?;
    // While it is under way in time, it is cut short.
    cluster.operator.run(&["cluster", "authority", "rotate"])?;
    cluster.operator.run(&["cluster", "authority", "rotate", "--now", "--yes"])?;
    wait_for("the first authority to be believed no longer", DEADLINE, || {
        let status = cluster.operator.json(&["cluster", "authority", "status"])?;
        Ok((states(&status) == ["distrusted", "signs"]).then_some(()))
    })?;
    let under_way = cluster.agents.iter().all(|agent| received(agent) < DEPLOYED_BYTES);
    ensure!(under_way, "it was over before: nothing was tested");
    // The operator's command line knows the first one only, and goes on all the same.
    upload(folder, cluster, 1, "vm/small:1", DISK_BYTES)?;
    cluster.operator.run(&["watch", "vm/large:1"])?;
    let shown = cluster.operator.json(&["deployments", "show", "vm/large:1"])?;
    ensure!(shown["state"] == "done", "{shown}");
    wait_for("every certificate to be another one", DEADLINE, || {
        let now = certificates(cluster)?;
        Ok(now.iter().zip(&before).all(|(now, before)| now != before).then_some(()))
    })?;
    // What stood since before was judged by the first one.
    wait_for("connections of before to be closed", DEADLINE, || {
        let nodes = cluster.nodes.iter_mut().map(|node| node.process());
        let agents = cluster.agents.iter_mut().map(|agent| agent.process());
        let mut closed = 0;
        for process in nodes.chain(agents) {
            let log = process?.log_text();
            closed += log.matches("of an authority that is believed no longer").count();
        }
        Ok((closed >= AGENTS).then_some(()))
    })?;
    for number in 0..AGENTS {
        fetch(folder, cluster, number, 0, "vm/large:1")?;
        fetch(folder, cluster, number, 1, "vm/small:1")?;
    }
    let refused = late.join(&cluster.nodes[1], &token);
    let said = refused.err().context("a token that others may know is good")?.to_string();
    ensure!(said.contains("not trusted any more"), "{said}");
    late.join(&cluster.nodes[1], &cluster.operator.token("agent")?)
}

/// Starts everything anew under a clock that can be set.
fn under_a_clock(folder: &Path, cluster: &mut Cluster) -> Result<Clock> {
    let clock = Clock::create(&folder.join("clock"), &skew::build(folder)?)?;
    for node in &mut cluster.nodes {
        // Slow enough for the other host to be asked.
        node.edit("[limits]\n", "[limits]\norigin = \"2 MiB/s\"\n")?;
        node.set_environment(clock.environment());
    }
    for agent in &mut cluster.agents {
        agent.set_environment(clock.environment());
    }
    stop(cluster)?;
    clock.set(0)?;
    start(cluster)?;
    Ok(clock)
}

/// What a node says of authorities; by a client that asks for no certificate and has no session, since
/// its own clock is right.
fn status(cluster: &Cluster, node: usize) -> Result<Value> {
    let node = &cluster.nodes[node];
    let mut command = node.host().command("curl");
    command.args(["-ksSf", "--max-time", "5", "-u", &format!("admin:{}", cluster.password)]);
    command.arg(format!("{}/api/v1/cluster/authority", node.url()));
    Ok(serde_json::from_str(&run_text(command)?)?)
}

fn states(status: &Value) -> Vec<&str> {
    let all = status["authorities"].as_array();
    all.into_iter().flatten().filter_map(|one| one["state"].as_str()).collect()
}

/// Chunk bytes that an agent got from others since its start.
fn from_peers(agent: &Agent) -> Result<f64> {
    agent.metric("shoal_chunk_bytes_received_total", "from=\"peer\"")
}

/// Until every node has come so far that the step could be taken.
fn await_nodes(cluster: &Cluster, step: &str) -> Result<()> {
    wait_for("every node to be ready for the next step", DEADLINE, || {
        let status = status(cluster, 1)?;
        let rotation = &status["rotation"];
        let waits = rotation["waits_for"].as_array().context("no rotation is under way")?;
        Ok((rotation["next"] == step && waits.is_empty()).then_some(()))
    })
}

fn certificates_in(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

/// Whom an agent would believe after a start.
fn believed(agent: &Agent) -> Result<String> {
    enrolled(agent, "authority_pem")
}

fn enrolled(agent: &Agent, field: &str) -> Result<String> {
    let kept = fs::read_to_string(agent.data_dir().join("cluster.json"))?;
    let kept: Value = serde_json::from_str(&kept)?;
    Ok(kept[field].as_str().with_context(|| format!("no {field}"))?.to_owned())
}

fn upload(folder: &Path, cluster: &Cluster, number: usize, name: &str, bytes: usize) -> Result<()> {
    let disk = disk(folder, number);
    let mut content = vec![0; bytes];
    StdRng::seed_from_u64(number as u64).fill(&mut content[..]);
    fs::write(&disk, content)?;
    let path = disk.to_string_lossy();
    cluster.operator.run(&["image", "upload", &path, name, "--version", "1"]).map(drop)
}

fn stop(cluster: &mut Cluster) -> Result<()> {
    for agent in &mut cluster.agents {
        agent.process()?.stop()?;
    }
    for node in &mut cluster.nodes {
        node.process()?.stop()?;
    }
    Ok(())
}

/// The hosts come up before the nodes that could give them certificates.
fn start(cluster: &mut Cluster) -> Result<()> {
    for agent in &mut cluster.agents {
        agent.start()?;
    }
    for node in &mut cluster.nodes {
        node.launch()?;
    }
    for node in &mut cluster.nodes {
        node.wait_until_ready()?;
    }
    Ok(())
}

fn disk(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("disk-{number}.raw"))
}

/// Has an agent fetch a disk, and compares it.
fn fetch(folder: &Path, cluster: &Cluster, agent: usize, number: usize, name: &str) -> Result<()> {
    let agent = &cluster.agents[agent];
    let output = folder.join(format!("{}-{number}.raw", agent.name));
    let into = output.to_string_lossy().into_owned();
    run_text(agent.command("fetch", &[name, "--format", "raw", "--output", &into])?)?;
    ensure!(fs::read(&output)? == fs::read(disk(folder, number))?, "{name} differs");
    Ok(())
}

/// What each process has on its disk.
fn certificates(cluster: &Cluster) -> Result<Vec<String>> {
    let nodes = cluster.nodes.iter().map(|node| node.data_dir().join("node.pem"));
    let nodes = nodes.map(|path| Ok(fs::read_to_string(path)?));
    let agents = cluster.agents.iter().map(|agent| enrolled(agent, "certificate_pem"));
    nodes.chain(agents).collect()
}
