//! What the swarm must survive while a disk is on its way to all: killed agents and nodes, peers
//! that stall, lie or have a hundredth of the line, a zone that is cut off, another address.
//!
//! `SHOAL_FAULTS_SEED` says whom it befalls. What a loss costs in time is exact in
//! `p2p/swarm/tests/losses.rs`; here it is that everybody has the right bytes in the end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::PEER_PORT;
use shoal_tests::field::{DEADLINE, Field, KILOBITS, REFERENCE};
use shoal_tests::process::{Process, run};

const SEED_DEFAULT: u64 = 1;
/// So much of the disk each has when it happens.
const MIDDLE: f64 = 0.3;
/// What a killed agent must still have of the chunks that it was known to have.
const KEPT_MIN: f64 = 0.99;
/// An agent's memory, in MiB: its own at rest, and all that it ever had under load.
const IDLE_MIB_MAX: f64 = 40.0;
const LOAD_MIB_MAX: f64 = 256.0;
/// How long a zone is cut off.
const CUT_OFF: Duration = Duration::from_secs(60);

/// Runs a test on a field of its own, and shows its logs and seed where it fails.
fn on_field(
    nodes: usize,
    zones: &[&str],
    test: impl FnOnce(&mut Field, &mut StdRng) -> Result<()>,
) -> Result<()> {
    let seed = match std::env::var("SHOAL_FAULTS_SEED") {
        Ok(text) => text.parse().with_context(|| format!("SHOAL_FAULTS_SEED={text}"))?,
        Err(_) => SEED_DEFAULT,
    };
    let folder = tempfile::tempdir()?;
    let mut field = Field::set(folder.path(), nodes, zones)?;
    let outcome = test(&mut field, &mut StdRng::seed_from_u64(seed));
    outcome.with_context(|| {
        let logs = field.cluster.logs();
        let logs: String = logs.iter().map(|(name, log)| format!("--- {name}\n{log}\n")).collect();
        format!("SHOAL_FAULTS_SEED={seed}\n{logs}")
    })
}

/// So many of the agents, by the seed.
fn some(random: &mut StdRng, agents: usize, count: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..agents).collect();
    all.shuffle(random);
    all.truncate(count);
    all
}

fn all_but(agents: usize, but: &[usize]) -> Vec<usize> {
    (0..agents).filter(|agent| !but.contains(agent)).collect()
}

fn ensure_no_bans(field: &Field) -> Result<()> {
    for agent in 0..field.cluster.agents.len() {
        let bans = field.bans(agent)?;
        ensure!(bans == 0.0, "agent {agent} banned {bans} peers");
    }
    Ok(())
}

#[test]
fn a_quarter_of_the_agents_is_killed_and_comes_back_and_nothing_is_left_over() -> Result<()> {
    const AGENTS: usize = 8;
    on_field(1, &[""; AGENTS], |field, random| {
        let mut before = Vec::new();
        for agent in 0..AGENTS {
            before.push(field.descriptors(agent)?);
            // The program's own pages are a debug build's.
            let idle = field.memory_mib(agent, "RssAnon")?;
            println!("agent {agent} at rest: {idle:.1} MiB");
            ensure!(idle < IDLE_MIB_MAX, "agent {agent} has {idle} MiB at rest");
        }
        field.order(&[])?;
        field.reach(&all_but(AGENTS, &[]), MIDDLE)?;
        let quarter = some(random, AGENTS, AGENTS / 4);
        let mut had = Vec::new();
        for &agent in &quarter {
            had.push(field.holds(agent)?);
            field.cluster.agents[agent].process()?.kill()?;
        }
        // While nothing can come, what is held was kept. Each is cut off from the other, too.
        for &agent in &quarter {
            field.network.cut_off(&[agent])?;
            field.cluster.agents[agent].start()?;
        }
        for (&agent, had) in quarter.iter().zip(had) {
            ensure!(had > 0.0, "agent {agent} had nothing to lose");
            let mut kept = 0.0;
            wait_for(&format!("agent {agent} to have what it had"), DEADLINE, || {
                kept = field.holds(agent)? / had;
                ensure!(kept >= KEPT_MIN, "it kept {kept} of it");
                Ok(Some(()))
            })?;
            println!("agent {agent} kept {:.1} % of what it had", kept * 100.0);
        }
        field.network.mend(&quarter)?;
        field.end()?;
        for &agent in &quarter {
            field.ensure_whole(agent)?;
        }
        ensure_no_bans(field)?;
        for agent in 0..AGENTS {
            let peak = field.memory_mib(agent, "VmHWM")?;
            println!("agent {agent} had {peak:.1} MiB at most");
            ensure!(peak < LOAD_MIB_MAX, "agent {agent} had {peak} MiB");
        }
        // A connection of the discovery network to each of the others, and the cache's files.
        for agent in all_but(AGENTS, &quarter) {
            let most = before[agent] + AGENTS;
            wait_for(&format!("agent {agent} to close what it opened"), DEADLINE, || {
                let open = field.descriptors(agent)?;
                ensure!(open <= most, "{open} descriptors; it began with {}", before[agent]);
                Ok(Some(()))
            })?;
        }
        Ok(())
    })
}

#[test]
fn one_that_stalls_and_one_with_a_hundredth_of_the_line_hold_up_nobody() -> Result<()> {
    const AGENTS: usize = 6;
    on_field(1, &[""; AGENTS], |field, random| {
        let chosen = some(random, AGENTS, 2);
        let (stalls, slow) = (chosen[0], chosen[1]);
        let others = all_but(AGENTS, &[stalls, slow]);
        field.network.shape(slow, KILOBITS / 100)?;
        field.order(&[])?;
        field.reach(&all_but(AGENTS, &[slow]), MIDDLE)?;
        field.cluster.agents[stalls].process()?.signal(Signal::SIGSTOP);
        field.until_done(&others)?;
        let states = field.states()?;
        for agent in [stalls, slow] {
            ensure!(states[agent] != "done", "{agent} was too quick: nothing was tested");
        }
        field.cluster.agents[stalls].process()?.signal(Signal::SIGCONT);
        field.network.shape(slow, KILOBITS)?;
        field.end()?;
        field.ensure_whole(stalls)?;
        field.ensure_whole(slow)
    })
}

#[test]
fn one_that_lies_is_banned_by_name_and_everybody_else_has_the_right_bytes() -> Result<()> {
    const AGENTS: usize = 5;
    on_field(1, &[""; AGENTS], |field, random| {
        let lies = some(random, AGENTS, 1)[0];
        let others = all_but(AGENTS, &[lies]);
        let honest = &mut field.cluster.agents[lies];
        run(honest.command("fetch", &[REFERENCE])?)?;
        let status = honest.json("status", &[])?;
        let name = status["peer"].as_str().context("an agent has a name")?.to_owned();
        honest.process()?.stop()?;
        let log = field.folder.join("liar.log");
        let mut liar = Process::start("the liar", honest.stand_in("liar")?, &log)?;
        wait_for("the liar to offer what it has", DEADLINE, || {
            liar.ensure_running()?;
            Ok(liar.log_text().contains("offers 1 recipes").then_some(()))
        })?;
        field.order(&[])?;
        wait_for("somebody to find it out", DEADLINE, || {
            for &agent in &others {
                let banned = field.banned(agent)?;
                if banned.get(&name).is_some_and(|reason| reason == "wrong_content") {
                    return Ok(Some(()));
                }
            }
            Ok(None)
        })?;
        field.until_done(&others)?;
        let errors = field.errors()?;
        let names_it = |error: &String| error.contains(&name) && error.contains("wrong content");
        ensure!(errors.iter().any(names_it), "nobody is told of it: {errors:?}");
        for &agent in &others {
            field.ensure_whole(agent)?;
            let banned = field.banned(agent)?;
            ensure!(banned.keys().all(|peer| *peer == name), "{agent} banned others: {banned:?}");
        }
        liar.ensure_running()
    })
}

#[test]
fn a_host_that_gets_another_address_is_asked_there() -> Result<()> {
    const MOVES: usize = 0;
    const ASKS: usize = 1;
    const LAST: u8 = 91;
    on_field(1, &["", ""], |field, _| {
        let agent = &mut field.cluster.agents[MOVES];
        let before = agent.host().address().to_owned();
        agent.process()?.stop()?;
        agent.edit(&format!("listen = \"{before}:{PEER_PORT}\""), &anywhere(PEER_PORT))?;
        agent.edit(&format!("listen = \"{before}:5003\""), &anywhere(5003))?;
        agent.start()?;
        run(agent.command("fetch", &[REFERENCE])?)?;
        let address = |field: &Field| -> Result<String> {
            let status = field.cluster.agents[MOVES].json("status", &[])?;
            Ok(status["peer_address"].as_str().context("it has an address")?.to_owned())
        };
        let told = address(field)?;
        ensure!(told == format!("{before}:{PEER_PORT}"), "{told}");
        field.network.renumber(MOVES, LAST)?;
        let after = format!("10.77.0.{LAST}:{PEER_PORT}");
        wait_for("the agent to notice", DEADLINE, || Ok((address(field)? == after).then_some(())))?;
        let copies = field.copies()?;
        field.ensure_whole(ASKS)?;
        let sent = field.copies()? - copies;
        println!("{sent:.2} copies left the node");
        ensure!(sent < 0.5, "{sent} copies left the node: the other host was not asked");
        ensure_no_bans(field)
    })
}

/// As the settings have it: on whatever address.
fn anywhere(port: u16) -> String {
    format!("listen = \"0.0.0.0:{port}\"")
}

#[test]
fn a_zone_that_is_cut_off_for_a_minute_ends_after_it() -> Result<()> {
    const ZONES: [&str; 6] = ["eu/a/1", "eu/a/1", "eu/a/1", "eu/b/1", "eu/b/1", "eu/b/1"];
    const NEAR: [usize; 3] = [0, 1, 2];
    const CUT: [usize; 3] = [3, 4, 5];
    on_field(1, &ZONES, |field, _| {
        field.order(&[])?;
        field.reach(&all_but(ZONES.len(), &[]), MIDDLE)?;
        field.network.cut_off(&CUT)?;
        let since = Instant::now();
        field.until_done(&NEAR)?;
        let states = field.states()?;
        ensure!(CUT.iter().all(|&agent| states[agent] != "done"), "nothing was cut: {states:?}");
        // That it lasts is what is tested: connections, retries and patience all run out.
        while since.elapsed() < CUT_OFF {
            std::thread::park_timeout(CUT_OFF.saturating_sub(since.elapsed()));
        }
        field.network.mend(&CUT)?;
        field.end()?;
        for agent in CUT {
            field.ensure_whole(agent)?;
        }
        ensure_no_bans(field)
    })
}

#[test]
fn transfers_under_way_end_when_all_nodes_are_killed() -> Result<()> {
    const AGENTS: usize = 4;
    on_field(3, &[""; AGENTS], |field, random| {
        let holder = some(random, AGENTS, 1)[0];
        let others = all_but(AGENTS, &[holder]);
        run(field.cluster.agents[holder].command("fetch", &[REFERENCE])?)?;
        let mut fetching = Vec::new();
        for &agent in &others {
            let command = field.cluster.agents[agent].command("fetch", &[REFERENCE])?;
            let log = field.folder.join(format!("fetch-{agent}.log"));
            fetching.push(Process::start(&format!("fetch on {agent}"), command, &log)?);
        }
        field.reach(&others, MIDDLE)?;
        for node in &mut field.cluster.nodes {
            node.process()?.kill()?;
        }
        for fetch in &mut fetching {
            let ended = wait_for("a fetch to end without nodes", DEADLINE, || fetch.ended())?;
            ensure!(ended.success(), "{ended}\n{}", fetch.log_tail());
        }
        for node in &mut field.cluster.nodes {
            node.launch()?;
        }
        for node in &mut field.cluster.nodes {
            node.wait_until_ready()?;
        }
        others.iter().try_for_each(|&agent| field.ensure_whole(agent))
    })
}

#[test]
fn a_swarm_goes_on_when_its_tracker_is_killed() -> Result<()> {
    const AGENTS: usize = 6;
    on_field(3, &[""; AGENTS], |field, _| {
        field.order(&[])?;
        field.reach(&all_but(AGENTS, &[]), MIDDLE)?;
        // Whoever tracks the swarm is the one that gives it its chunks.
        let mut sent = Vec::new();
        for node in &field.cluster.nodes {
            let labels = "to=\"agent\"";
            let name = "shoal_chunk_bytes_sent_total";
            sent.push(node.metric(name, labels, &field.cluster.password)?);
        }
        let most = sent.iter().copied().fold(0.0, f64::max);
        let tracker = sent.iter().position(|&sent| sent == most).context("there are nodes")?;
        let mut copies = field.copies()?;
        field.cluster.nodes[tracker].process()?.kill()?;
        field.ask_at((tracker + 1) % field.cluster.nodes.len())?;
        field.end()?;
        field.cluster.nodes[tracker].start()?;
        // What the killed one had counted is gone with it.
        copies += field.copies()? - (sent.iter().sum::<f64>() - most) / field.disk_bytes();
        println!("{copies:.2} copies left the nodes");
        ensure!(copies < 1.5, "{copies} copies left the nodes");
        ensure_no_bans(field)?;
        (0..AGENTS).try_for_each(|agent| field.ensure_whole(agent))
    })
}

#[test]
fn a_parallel_deployment_ends_when_the_leader_is_killed_in_the_middle() -> Result<()> {
    const AGENTS: usize = 6;
    const AT_ONCE: usize = 2;
    on_field(3, &[""; AGENTS], |field, _| {
        let count =
            |states: &[String], state: &str| states.iter().filter(|found| *found == state).count();
        field.order(&["--parallel", &AT_ONCE.to_string()])?;
        let leader = field.cluster.leader()?;
        wait_for("some to be done and others to have begun", DEADLINE, || {
            let states = field.states()?;
            let middle = count(&states, "done") > 0 && count(&states, "running") > 0;
            Ok(middle.then_some(()))
        })?;
        field.cluster.nodes[leader].process()?.kill()?;
        field.ask_at((leader + 1) % field.cluster.nodes.len())?;
        let mut most = 0;
        wait_for("all to be done", DEADLINE, || {
            let states = field.states()?;
            most = most.max(count(&states, "running"));
            Ok((count(&states, "done") == AGENTS).then_some(()))
        })?;
        ensure!(most <= AT_ONCE, "{most} at once");
        field.end()?;
        field.cluster.nodes[leader].start()?;
        (0..AGENTS).try_for_each(|agent| field.ensure_whole(agent))
    })
}
