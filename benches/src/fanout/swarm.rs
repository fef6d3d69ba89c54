//! Our own part: a node on the source, and an agent on each host that wants the content.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use shoal_tests::cluster::{Agent, Cluster, Node, Storage};
use shoal_tests::process::Process;

use super::image::{self, Skopeo};
use super::{Case, Contest, Daemons, Field, Idle, Outcome, Taker, spread};
use crate::process::{cpu_of, memory_mib_of};
use crate::sample::noise;

/// One in so many MiB is another in the second version.
const CHANGED_MIB: usize = 10;

/// By then hosts have closed the connections that are of no use to them any more.
const SETTLED_AFTER: Duration = Duration::from_secs(75);

/// All of it runs.
#[derive(Debug)]
struct Swarm<'a> {
    field: &'a Field,
    folder: &'a Path,
    cluster: Cluster,
    daemons: Daemons,
}

/// One file, cold; then an update of what the hosts hold; then nothing, for as long as `idle`.
pub fn disks(field: &Field, folder: &Path, content: &Path, idle: Duration) -> Result<Vec<Outcome>> {
    let mut swarm = Swarm::start(field, folder)?;
    let (changed, changed_bytes) = change(folder, content)?;
    let versions = [
        ("shoal", Case::Disk, "bench/disk:v1", content, std::fs::metadata(content)?.len()),
        (
            "shoal, update of a tenth",
            Case::Update,
            "bench/disk:v2",
            changed.as_path(),
            changed_bytes,
        ),
    ];
    let mut outcomes = Vec::new();
    for (name, case, reference, disk, bytes) in versions {
        swarm.cluster.operator.run(&["image", "upload", &disk.to_string_lossy(), reference])?;
        let contest = Contest { name, case, ours: true, bytes };
        outcomes.push(swarm.fetch(&contest, reference)?);
    }
    if let Some(last) = outcomes.last_mut().filter(|_| !idle.is_zero()) {
        last.idle = Some(swarm.idle(idle)?);
    }
    Ok(outcomes)
}

/// Two container images of about `bytes` each: one into the agents' caches, as a deployment brings
/// it, and one through each agent's mirror to a skopeo beside it.
pub fn containers(field: &Field, folder: &Path, bytes: usize) -> Result<Vec<Outcome>> {
    let mut swarm = Swarm::start(field, folder)?;
    let skopeo = Skopeo::prepare(folder)?;
    let operator = &swarm.cluster.operator;
    operator.run(&["project", "create", "bench", "--visibility", "public"])?;
    let (first, second) = (image::mixed(folder, 1, bytes)?, image::mixed(folder, 2, bytes)?);
    let login = format!("admin:{}", swarm.cluster.password);
    for (image, name) in [(&first, "first"), (&second, "second")] {
        let reference = format!("{}/bench/{name}:v1", swarm.cluster.nodes[0].registry());
        skopeo.push(field.source(), image, &reference, Some(&login))?;
    }
    let contest = |name, bytes| Contest { name, case: Case::Container, ours: true, bytes };
    let cached =
        swarm.fetch(&contest("shoal, layers cached", first.blob_bytes), "bench/first:v1")?;
    let reference = format!("{}/bench/second:v1", Agent::MIRROR);
    let pulled = contest("shoal, layers by skopeo", second.blob_bytes);
    let pulled = swarm.spread(&pulled, |_, index| {
        skopeo.pull(field.taker(index), &folder.join(format!("taker-{index}")), &reference)
    })?;
    Ok(vec![cached, pulled])
}

impl<'a> Swarm<'a> {
    fn start(field: &'a Field, folder: &'a Path) -> Result<Self> {
        let source = field.source();
        let storage = Storage::Folder(folder.join("objects"));
        let at = folder.join("node");
        let node = Node::prepare(source, &at, "node-1", source.address(), &storage)?;
        let mut cluster = Cluster::of(field.hub(), folder, vec![node])?;
        let mut daemons = Daemons::default();
        daemons.source.push(cluster.nodes[0].process()?.id());
        for index in 0..field.takers {
            let name = format!("agent-{}", index + 1);
            let mut agent = Agent::prepare(field.taker(index), &folder.join(&name), &name)?;
            agent.join(&cluster.nodes[0], &cluster.operator.token("agent")?)?;
            agent.start()?;
            daemons.hosts.push(agent.process()?.id());
            cluster.agents.push(agent);
        }
        Ok(Self { field, folder, cluster, daemons })
    }

    /// Each agent is told to fetch it into its cache.
    fn fetch(&mut self, contest: &Contest<'_>, reference: &str) -> Result<Outcome> {
        let folder = self.folder;
        self.spread(contest, |agents, index| {
            let command = agents[index].command("fetch", &[reference])?;
            let log = folder.join(format!("fetch-{index}"));
            Ok(Taker { process: Process::start("fetch", command, &log)?, leaves: None })
        })
    }

    /// What the agents cost once they have nothing to do any more.
    fn idle(&self, lasts: Duration) -> Result<Idle> {
        eprintln!("Shoal, idle …");
        sleep(SETTLED_AFTER);
        let agents = &self.daemons.hosts;
        let cpu = || agents.iter().map(|&agent| cpu_of(agent)).collect::<Result<Vec<Duration>>>();
        let (before, began) = (cpu()?, Instant::now());
        sleep(lasts);
        let (after, seconds) = (cpu()?, began.elapsed().as_secs_f64());
        let took = before.iter().zip(&after).map(|(before, after)| after.saturating_sub(*before));
        let most = took.max().unwrap_or_default().as_secs_f64();
        let mut mib: f64 = 0.0;
        for &agent in agents {
            mib = mib.max(memory_mib_of(agent, "VmRSS")?);
        }
        Ok(Idle { seconds, cpu_percent: 100.0 * most / seconds, mib })
    }

    fn spread(
        &mut self,
        contest: &Contest<'_>,
        start: impl Fn(&[Agent], usize) -> Result<Taker>,
    ) -> Result<Outcome> {
        let agents: &[Agent] = &self.cluster.agents;
        let outcome = spread(self.field, contest, &self.daemons, |index| start(agents, index));
        outcome.with_context(|| format!("{:#?}", self.cluster.logs()))
    }
}

/// A copy in which each [`CHANGED_MIB`]th MiB is another, and how many bytes those are.
fn change(folder: &Path, content: &Path) -> Result<(PathBuf, u64)> {
    let path = folder.join("changed.raw");
    let mebibytes = usize::try_from(std::fs::copy(content, &path)? >> 20)?;
    let mut file = File::options().write(true).open(&path)?;
    let mut changed = 0;
    for place in (0..mebibytes).step_by(CHANGED_MIB) {
        let other = noise(1_000_000 + place as u64, 1 << 20);
        file.seek(SeekFrom::Start((place as u64) << 20))?;
        file.write_all(&other)?;
        changed += other.len() as u64;
    }
    Ok((path, changed))
}
