//! Commands through a group of three with synced logs, beside etcd on the same disk.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures::future::BoxFuture;
use serde::Serialize;
use shoal_benches::grpc::Channel;
use shoal_benches::load::{self, quantile_ms};
use shoal_benches::member::{self, Member};
use shoal_benches::process::Server;
use shoal_benches::report::median;
use shoal_content::ClusterId;
use shoal_p2p::identity::Authority;

/// The node's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const MEMBERS: usize = 3;
/// As in etcd's own benchmarks: so many clients share a connection.
const CLIENTS_PER_CONNECTION: usize = 10;
const ELECTION_DEADLINE: Duration = Duration::from_secs(30);

/// Measures puts by many clients at once through three members, each in a process of its own.
///
/// One client program speaks gRPC to both contestants, to all members in turn (with one client, to
/// the leader), ten clients to a connection. Both sync every entry on a majority before they answer.
/// A put of ours creates an image whose name is the key and whose description is the value, with
/// all that the state machine looks at for one. It comes in by etcd's frames rather than by the
/// node's HTTPS interface, so that both pay the same for a request; TLS and the check of the
/// caller's right, which the node adds, are not measured. Between members, ours speak QUIC with
/// mutual TLS, etcd's plain HTTP.
#[derive(Debug, Parser)]
#[command(name = "metadata", version, about, long_about)]
struct Arguments {
    /// How many clients at once, each number a case.
    #[arg(long, value_delimiter = ',', default_value = "1,64,512")]
    clients: Vec<usize>,
    /// How long each case lasts for each contestant and run, in seconds.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// How often the contestants take turns.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The length of a value, in bytes; a key has 32.
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// The etcd program (Debian's package etcd-server); `etcdctl` lies beside it.
    #[arg(long, default_value = "/usr/bin/etcd")]
    peer: PathBuf,
    /// Where both keep their data; a temporary folder where missing.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
    /// Be a member: NUMBER,FOLDER,RAFT,FRONT[,NUMBER=RAFT…].
    #[arg(long, hide = true)]
    member: Option<String>,
}

/// Three servers; the first of the addresses is the leader's.
struct Group {
    servers: Vec<Server>,
    addresses: Vec<String>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Figures {
    puts_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Of all three members.
    cpu_seconds_per_1000: f64,
}

#[derive(Debug, Serialize)]
struct Case {
    clients: usize,
    ours: Figures,
    etcd: Figures,
    /// Our rate over etcd's, run by run, the median.
    ratio: f64,
}

fn main() -> Result<()> {
    // Fails only where a provider is installed already, which is what is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    match &arguments.member {
        Some(told) => runtime.block_on(member::run(parse_member(told)?)),
        None => runtime.block_on(compare(&arguments)),
    }
}

fn parse_member(told: &str) -> Result<Member> {
    let mut words = told.split(',');
    let mut word = || words.next().context("a member is NUMBER,FOLDER,RAFT,FRONT");
    let (number, folder) = (word()?.parse()?, word()?.into());
    let (raft, front) = (word()?.parse()?, word()?.parse()?);
    let other = |word: &str| {
        let (number, address) = word.split_once('=').context("NUMBER=RAFT")?;
        anyhow::Ok((number.parse()?, address.parse()?))
    };
    let others = words.map(other).collect::<Result<_>>()?;
    Ok(Member { number, folder, raft, front, others })
}

async fn compare(arguments: &Arguments) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let folder = arguments.folder.clone().unwrap_or_else(|| temporary.path().into());
    let ours = start_ours(&folder).await?;
    let etcd = start_etcd(&folder, &arguments.peer).await?;
    let value = Arc::new(vec![b'v'; arguments.value_bytes]);
    let mut cases = Vec::new();
    for clients in &arguments.clients {
        let (mut ours_runs, mut etcd_runs) = (Vec::new(), Vec::new());
        for turn in 0..arguments.runs {
            // Whoever comes second finds the other's writes still on their way to the disk.
            for second in [false, true] {
                let first_is_ours = turn % 2 == 0;
                let (group, runs) = if first_is_ours != second {
                    (&ours, &mut ours_runs)
                } else {
                    (&etcd, &mut etcd_runs)
                };
                runs.push(measure(group, *clients, arguments.seconds, &value).await?);
            }
        }
        let ratios = ours_runs.iter().zip(&etcd_runs);
        let ratios = ratios.map(|(a, b)| a.puts_per_second / b.puts_per_second).collect();
        cases.push(Case {
            clients: *clients,
            ours: typical(&ours_runs),
            etcd: typical(&etcd_runs),
            ratio: median(ratios),
        });
    }
    print(arguments, &cases)
}

fn print(arguments: &Arguments, cases: &[Case]) -> Result<()> {
    if arguments.json {
        println!("{}", serde_json::to_string(cases)?);
        return Ok(());
    }
    println!(
        "Puts of 32 + {} bytes through three members, logs synced; medians of {} runs in turn.",
        arguments.value_bytes, arguments.runs
    );
    println!(
        "{:<8} {:<6} {:>10} {:>10} {:>10} {:>16} {:>10}",
        "clients", "", "puts/s", "p50 ms", "p99 ms", "CPU s per 1000", "ours/etcd"
    );
    for case in cases {
        for (name, figures) in [("shoal", case.ours), ("etcd", case.etcd)] {
            let ratio = if name == "shoal" { format!("{:.2}", case.ratio) } else { String::new() };
            println!(
                "{:<8} {name:<6} {:>10.0} {:>10.2} {:>10.2} {:>16.3} {ratio:>10}",
                case.clients,
                figures.puts_per_second,
                figures.p50_ms,
                figures.p99_ms,
                figures.cpu_seconds_per_1000
            );
        }
    }
    Ok(())
}

/// Numbers the keys of the whole program.
static NEXT: AtomicU64 = AtomicU64::new(0);

type Client = (Channel, Arc<Vec<u8>>);

fn put_next((channel, value): &mut Client, _: u64) -> BoxFuture<'_, Result<()>> {
    Box::pin(async {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        channel.put(format!("bench/{number:026}").as_bytes(), value).await
    })
}

async fn measure(
    group: &Group,
    clients: usize,
    seconds: f64,
    value: &Arc<Vec<u8>>,
) -> Result<Figures> {
    let mut channels = Vec::new();
    for number in 0..clients.div_ceil(CLIENTS_PER_CONNECTION) {
        channels.push(Channel::open(&group.addresses[number % MEMBERS]).await?);
    }
    let next = AtomicU64::new(0);
    let start = async || {
        let number = next.fetch_add(1, Ordering::Relaxed) as usize;
        Ok((channels[number % channels.len()].clone(), value.clone()))
    };
    let (cpu, began) = (group.cpu()?, Instant::now());
    let mut times = load::run(clients, Duration::from_secs_f64(seconds), start, put_next).await?;
    let (wall, cpu) = (began.elapsed(), group.cpu()?.saturating_sub(cpu));
    times.sort_unstable();
    Ok(Figures {
        puts_per_second: times.len() as f64 / wall.as_secs_f64(),
        p50_ms: quantile_ms(&times, 0.5),
        p99_ms: quantile_ms(&times, 0.99),
        cpu_seconds_per_1000: cpu.as_secs_f64() * 1000.0 / times.len() as f64,
    })
}

impl Group {
    fn cpu(&self) -> Result<Duration> {
        self.servers.iter().map(Server::cpu).sum()
    }
}

async fn start_ours(folder: &Path) -> Result<Group> {
    let authority = Authority::create(&ClusterId::from_uuid(uuid::Uuid::new_v4()))?;
    let (mut told, mut rafts, mut fronts) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=MEMBERS {
        let (raft, front) = (free_udp()?, free_tcp()?);
        let folder = folder.join(format!("shoal-{number}"));
        member::enrol(&authority, &folder)?;
        told.push(format!("{number},{},{raft},{front}", folder.display()));
        rafts.push(raft);
        fronts.push(front.to_string());
    }
    for (index, raft) in rafts.iter().enumerate().skip(1) {
        told[0].push_str(&format!(",{}={raft}", index + 1));
    }
    let mut servers = Vec::new();
    // The first one asks the others to join, so they come first.
    for index in (0..MEMBERS).rev() {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--member").arg(&told[index]);
        let log = folder.join(format!("shoal-{}.log", index + 1));
        let mut server = Server::start(command, &log)?;
        server.listening(&fronts[index], &log).await?;
        servers.push(server);
    }
    Ok(Group { servers, addresses: fronts })
}

async fn start_etcd(folder: &Path, program: &Path) -> Result<Group> {
    ensure!(program.exists(), "{} is missing: install etcd-server", program.display());
    let (mut clients, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..MEMBERS {
        clients.push(free_tcp()?.to_string());
        peers.push(free_tcp()?.to_string());
    }
    let named = peers.iter().enumerate().map(|(index, peer)| format!("m{index}=http://{peer}"));
    let cluster = named.collect::<Vec<_>>().join(",");
    let mut servers = Vec::new();
    for (index, (client, peer)) in clients.iter().zip(&peers).enumerate() {
        let mut command = Command::new(program);
        command.arg("--name").arg(format!("m{index}"));
        command.arg("--data-dir").arg(folder.join(format!("etcd-{index}")));
        for (flag, address) in [
            ("--listen-client-urls", client),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer),
            ("--initial-advertise-peer-urls", peer),
        ] {
            command.arg(flag).arg(format!("http://{address}"));
        }
        command.args(["--initial-cluster", &cluster, "--initial-cluster-state", "new"]);
        command.args(["--quota-backend-bytes", "8589934592", "--log-level", "warn"]);
        servers.push(Server::start(command, &folder.join(format!("etcd-{index}.log")))?);
    }
    for (index, (server, client)) in servers.iter_mut().zip(&clients).enumerate() {
        server.listening(client, &folder.join(format!("etcd-{index}.log"))).await?;
    }
    let deadline = Instant::now() + ELECTION_DEADLINE;
    let leader = loop {
        match etcd_leader(program, &clients) {
            Ok(leader) => break leader,
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    clients.swap(0, leader);
    Ok(Group { servers, addresses: clients })
}

/// Which of the members leads.
fn etcd_leader(program: &Path, clients: &[String]) -> Result<usize> {
    let mut command = Command::new(program.with_file_name("etcdctl"));
    command.env("ETCDCTL_API", "3").args(["endpoint", "status", "--write-out", "json"]);
    command.arg(format!("--endpoints={}", clients.join(",")));
    let output = command.output().context("etcdctl does not start")?;
    let told: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)?;
    let leads = |one: &serde_json::Value| {
        let status = &one["Status"];
        status["leader"].is_u64() && status["leader"] == status["header"]["member_id"]
    };
    let endpoint = told.iter().find(|one| leads(one)).context("nobody leads")?["Endpoint"].clone();
    let endpoint = endpoint.as_str().unwrap_or_default();
    clients.iter().position(|client| endpoint.ends_with(client)).context("an unknown leader")
}

fn typical(runs: &[Figures]) -> Figures {
    let of = |figure: fn(&Figures) -> f64| median(runs.iter().map(figure).collect());
    Figures {
        puts_per_second: of(|run| run.puts_per_second),
        p50_ms: of(|run| run.p50_ms),
        p99_ms: of(|run| run.p99_ms),
        cpu_seconds_per_1000: of(|run| run.cpu_seconds_per_1000),
    }
}

fn free_tcp() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn free_udp() -> Result<SocketAddr> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
