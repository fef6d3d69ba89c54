//! Faults of every kind while clients push, pull, retag and delete: tags stay linearizable, and
//! what was acknowledged can be pulled whole.
//!
//! `SHOAL_CHAOS_SEED` is the schedule's seed; `SHOAL_CHAOS_MINUTES` says how long (two by default). `./dev chaos` sets both. Without them it is the same schedule each time: what a new one
//! finds is to be looked at by who asked for it, and not to stop somebody else's change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shoal_tests::chaos::client::Registry;
use shoal_tests::chaos::fault::Schedule;
use shoal_tests::chaos::history::History;
use shoal_tests::chaos::record;
use shoal_tests::chaos::stage::{NODES, Stage};
use shoal_tests::chaos::verdict;
use shoal_tests::chaos::workload::Client;
use shoal_tests::host::Network;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const CLIENTS: usize = 8;
const MINUTES_DEFAULT: f64 = 2.0;
const SEED_DEFAULT: u64 = 2;
/// A run in which clients get less than this done, in operations a minute, tests nothing.
const DONE_PER_MINUTE_MIN: f64 = 60.0;

#[test]
fn tags_are_linearizable_and_pushes_whole_through_faults_of_every_kind() -> Result<()> {
    let seed = variable("SHOAL_CHAOS_SEED")?.unwrap_or(SEED_DEFAULT);
    let minutes = variable("SHOAL_CHAOS_MINUTES")?.unwrap_or(MINUTES_DEFAULT);
    println!("seed {seed}, {minutes} minutes");
    let folder = tempfile::tempdir()?;
    let network = Network::create(NODES)?;
    network.hub().enter()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut stage = Stage::set(network, folder.path(), runtime.handle())?;
    let outcome = endure(&mut stage, &runtime, seed, minutes);
    outcome.with_context(|| {
        let logs = stage.cluster.logs();
        let logs: String = logs.iter().map(|(name, log)| format!("--- {name}\n{log}\n")).collect();
        format!("SHOAL_CHAOS_SEED={seed} SHOAL_CHAOS_MINUTES={minutes}\n{logs}")
    })
}

fn variable<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    name: &str,
) -> Result<Option<T>> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("{name}={text}"))
}

fn endure(
    stage: &mut Stage,
    runtime: &tokio::runtime::Runtime,
    seed: u64,
    minutes: f64,
) -> Result<()> {
    let authority = std::fs::read(stage.cluster.nodes[0].data_dir().join("ca.pem"))?;
    let urls: Vec<String> = stage.cluster.nodes.iter().map(|node| node.url()).collect();
    let password = stage.cluster.password.clone();
    let registry =
        |number: usize| Registry::new(&authority, &urls, &password, number.is_multiple_of(2));
    let history = Arc::new(History::default());
    let (stop, clients) = (CancellationToken::new(), TaskTracker::new());
    for number in 0..CLIENTS {
        let client = Client::new(number, seed, registry(number)?, history.clone());
        clients.spawn_on(client.run(stop.clone()), runtime.handle());
    }
    clients.close();

    let began = Instant::now();
    let until = began + Duration::from_secs_f64(minutes * 60.0);
    for fault in Schedule::new(seed) {
        if Instant::now() >= until {
            break;
        }
        let (at, before) = (began.elapsed().as_secs_f64(), history.done());
        let said = stage.endure(&fault)?.join(" and ");
        let during = history.done() - before;
        std::thread::park_timeout(fault.calm);
        let after = history.done() - before - during;
        let lasted = fault.lasts.as_secs_f64();
        println!(
            "{at:6.1} s  {said}, for {lasted:.1} s: {during} operations meanwhile, {after} after"
        );
    }

    stop.cancel();
    stage.heal()?;
    stage.recover()?;
    let registry = registry(1)?;
    runtime.block_on(async {
        clients.wait().await;
        verdict::read_all_tags(&registry, &history).await
    })?;
    print!("{}", history.summary());
    if let Some(file) = variable::<std::path::PathBuf>("SHOAL_CHAOS_RECORD")? {
        std::fs::write(&file, record::to_text(&history.registers()))
            .with_context(|| file.display().to_string())?;
    }
    stage.ensure_sound()?;
    let (operations, unknown) = verdict::judge(&history)?;
    println!(
        "{operations} operations on tags and manifests are linearizable ({unknown} without an outcome)"
    );
    let whole = runtime.block_on(verdict::pull_everything(&registry, &history))?;
    println!("{whole} acknowledged images came whole");
    runtime.block_on(verdict::nodes_agree(&registry))?;
    println!("the nodes agree");
    let entries = runtime.block_on(verdict::books_balance(&registry, &history))?;
    println!("accounts agree with a recount, and {entries} entries of the audit trail are a chain");
    stage.jump_ahead()?;
    runtime.block_on(verdict::keep_nothing(&registry, &history))?;
    println!("all is deleted, and nothing is kept");
    runtime.block_on(verdict::books_balance(&registry, &history))?;
    let done = history.done() as f64;
    ensure!(done > DONE_PER_MINUTE_MIN * minutes, "only {done} operations: nothing was tested");
    ensure!(whole > 0, "no push survived: nothing was tested");
    Ok(())
}
