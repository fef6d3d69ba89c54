//! Hosts: network namespaces joined by a bridge inside a hub namespace.
//!
//! The machine's own network is never touched: the bridge, the nodes' addresses and the Ceph all
//! live in the hub, and the agents' hosts hang on the bridge by veth pairs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::process::run;

/// Networks made by this process so far: part of each namespace's name.
static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// A hub with hosts `.11`, `.12`, … on `10.77.0.0/24`; the hub itself answers on `.1` to `.9`.
#[derive(Debug)]
pub struct Network {
    hub: Host,
    hosts: Vec<Host>,
}

/// What a thin line takes at once, and holds back before it drops.
const LINE_BURST: &str = "64kb";
const LINE_LATENCY: &str = "30ms";
/// The table of rules of hosts that are cut off.
const CUT: &str = "cut";

/// One namespace. Commands made by it run inside.
#[derive(Debug, Clone)]
pub struct Host {
    namespace: String,
    address: String,
    /// What its commands find in place of the machine's own: source and place.
    overlays: Vec<(PathBuf, PathBuf)>,
}

/// Mounts pairs of paths up to `--`, in a mount namespace of its own, and becomes what stands behind.
const OVERLAY: &str = r#"
while [ "$1" != -- ]; do
  [ -e "$2" ] || mkdir -p "$2"
  mount --bind "$1" "$2"
  shift 2
done
shift
exec "$@"
"#;

/// Once a container engine has loaded `br_netfilter`, frames that cross a bridge go through iptables
/// in every new namespace: a twentieth of the CPU time of a swarm in namespaces, and no switch does it.
const BRIDGE_WITHOUT_FILTERS: &str = r#"
for setting in /proc/sys/net/bridge/bridge-nf-call-*; do
  [ ! -e "$setting" ] || echo 0 > "$setting"
done
"#;

impl Network {
    /// # Errors
    /// Where namespaces cannot be made: not root, or no `iproute2`.
    pub fn create(hosts: usize) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the end-to-end tests make network namespaces and must run as root");
        }
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("shoal-{}-{number}", std::process::id());
        let hub = Host {
            namespace: format!("{prefix}-hub"),
            address: "10.77.0.1".into(),
            overlays: Vec::new(),
        };
        let mut network = Self { hub: hub.clone(), hosts: Vec::new() };
        ip(&["netns", "add", &hub.namespace])?;
        hub.ip(&["link", "set", "lo", "up"])?;
        hub.ip(&["link", "add", "bridge", "type", "bridge"])?;
        let mut command = hub.command("sh");
        command.args(["-c", BRIDGE_WITHOUT_FILTERS]);
        run(command)?;
        for last in 1..10 {
            hub.ip(&["address", "add", &format!("10.77.0.{last}/24"), "dev", "bridge"])?;
        }
        hub.ip(&["link", "set", "bridge", "up"])?;
        for index in 0..hosts {
            let host = Host {
                namespace: format!("{prefix}-{index}"),
                address: format!("10.77.0.{}", 11 + index),
                overlays: Vec::new(),
            };
            network.hosts.push(host.clone());
            ip(&["netns", "add", &host.namespace])?;
            let port = format!("port{index}");
            host.ip(&["link", "set", "lo", "up"])?;
            host.ip(&[
                "link",
                "add",
                "eth0",
                "type",
                "veth",
                "peer",
                "name",
                &port,
                "netns",
                &hub.namespace,
            ])?;
            hub.ip(&["link", "set", &port, "master", "bridge", "up"])?;
            host.ip(&["address", "add", &format!("{}/24", host.address), "dev", "eth0"])?;
            host.ip(&["link", "set", "eth0", "up"])?;
            // A container engine refuses to start where there is no way out.
            host.ip(&["route", "add", "default", "via", "10.77.0.1"])?;
        }
        Ok(network)
    }

    /// Where the nodes and the storage live.
    pub fn hub(&self) -> &Host {
        &self.hub
    }

    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// From now on the line of this host carries so many kilobits a second, each way.
    ///
    /// # Errors
    /// Where there is no `tc`.
    pub fn shape(&self, index: usize, kilobits: u32) -> Result<()> {
        let ends = [(self.host(index), "eth0".to_owned()), (&self.hub, format!("port{index}"))];
        for (host, device) in ends {
            let mut command = host.command("tc");
            command.args(["qdisc", "replace", "dev", &device, "root", "tbf", "rate"]);
            command.arg(format!("{kilobits}kbit")).args(["burst", LINE_BURST]);
            command.args(["latency", LINE_LATENCY]);
            run(command)?;
        }
        Ok(())
    }

    /// Takes this host's address away and gives it `10.77.0.LAST`, as a lease that ends does.
    ///
    /// # Errors
    /// Where there is no `ip`.
    pub fn renumber(&self, index: usize, last: u8) -> Result<()> {
        let host = self.host(index);
        host.ip(&["address", "flush", "dev", "eth0"])?;
        host.ip(&["address", "add", &format!("10.77.0.{last}/24"), "dev", "eth0"])?;
        host.ip(&["route", "add", "default", "via", "10.77.0.1"])
    }

    /// Lets nothing pass between these hosts and all others, until [`Self::mend`].
    ///
    /// # Errors
    /// Where there is no `nft`.
    pub fn cut_off(&self, indices: &[usize]) -> Result<()> {
        let inside: Vec<&str> = indices.iter().map(|&index| self.host(index).address()).collect();
        let inside = format!("{{ 127.0.0.1, {} }}", inside.join(", "));
        for &index in indices {
            let host = self.host(index);
            nft(host, &format!("add table inet {CUT}"))?;
            for (hook, word) in [("input", "saddr"), ("output", "daddr")] {
                let chain = format!("inet {CUT} {hook}");
                let kind = format!("{{ type filter hook {hook} priority 0; }}");
                nft(host, &format!("add chain {chain} {kind}"))?;
                nft(host, &format!("add rule {chain} ip {word} != {inside} drop"))?;
            }
        }
        Ok(())
    }

    /// Ends what [`Self::cut_off`] began.
    ///
    /// # Errors
    /// Where these hosts are not cut off.
    pub fn mend(&self, indices: &[usize]) -> Result<()> {
        indices
            .iter()
            .try_for_each(|&index| nft(self.host(index), &format!("delete table inet {CUT}")))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in self.hosts.iter().chain([&self.hub]) {
            // A namespace that is gone already is as good as one removed now.
            let _ = ip(&["netns", "delete", &host.namespace]);
        }
    }
}

impl Host {
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A command that runs on this host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg("--");
        if !self.overlays.is_empty() {
            command.args(["unshare", "--mount", "sh", "-ec", OVERLAY, "sh"]);
            command.args(self.overlays.iter().flat_map(|(source, place)| [source, place]));
            command.arg("--");
        }
        command.arg(program);
        command
    }

    /// The same host, whose commands find the file or folder `source` at `place`.
    #[must_use]
    pub fn overlaid(mut self, source: impl Into<PathBuf>, place: impl AsRef<Path>) -> Self {
        self.overlays.push((source.into(), place.as_ref().to_owned()));
        self
    }

    /// Moves the calling thread here, and with it all threads that it starts from now on.
    pub fn enter(&self) -> Result<()> {
        let path = format!("/run/netns/{}", self.namespace);
        let file = std::fs::File::open(&path).with_context(|| path.clone())?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).context(path)
    }

    /// By nsenter: `ip -n` mounts, which it may not where `/` is no mount point (in a chroot).
    fn ip(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.command("ip");
        command.args(arguments);
        run(command).map(drop)
    }
}

fn nft(host: &Host, words: &str) -> Result<()> {
    let mut command = host.command("nft");
    command.arg(words);
    run(command).map(drop)
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("'ip' did not start; install iproute2")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
