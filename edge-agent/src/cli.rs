//! The command line of `shoal-agent`: what there is to say, and the help that teaches it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use shoal_content::{ImageReference, Labels, Zone};

use crate::config::Role;
use crate::setup::Engine;

const AFTER_HELP: &str = "\
FIRST STEPS
  1. On any machine with the 'shoal' command:   shoal token create --role agent
  2. On this host:    shoal-agent join --node https://NODE:5000 --token shoal-join-v1.…
  3. On this host:    shoal-agent run          (as a service; see deploy/ for a systemd unit)
  4. Try it:          shoal-agent fetch zedge/desktop:v1 --output /tmp/desktop.qcow2
                      docker pull 127.0.0.1:5055/demo/app:v1

SETTINGS
  One TOML file, /etc/shoal/agent.toml or --config. Every setting can also be an environment
  variable, SHOAL_AGENT_SECTION_KEY, or a flag, --set section.key=value. Flags win over variables,
  variables over the file. These are all, with their defaults:

    [agent]
    name = \"(the host's name)\"       data_dir = \"/var/lib/shoal-agent\"
    control_socket = \"DATA_DIR/control.sock\"
    zone = \"\"                        # REGION/ROOM/RACK: near peers are asked first
    labels = {}                      # deployments choose hosts by them
    role = \"host\"                    # or \"cache\": an edge room's cache, preferred by its zone
    drain_seconds = 10               # told to stop, what others have begun may take so long
    [nodes]
    urls = []                        # asked before those that the cluster named
    authority_file = \"…\"             # PEM trusted for nodes' HTTPS besides the cluster's own
    [peer]
    listen = \"0.0.0.0:5002\"          # QUIC (UDP) and TLS (TCP): chunks between hosts
    bulk = \"auto\"                    # by TLS where the network is fast and clean; \"quic\": never;
                                      # \"tls\": wherever it can be had
    advertise = \"…\"                  # what others dial; found out where missing
    [limits]                         # read anew at SIGHUP; \"50 Mbit/s\", \"6 MiB/s\", at least 1 Mbit/s
    upload = \"unlimited\"             download = \"unlimited\"
    schedule = []                    # other limits by the host's clock; the first that fits counts:
      # [{ days = \"mon-fri\", from = \"08:00\", to = \"18:00\", upload = \"50 Mbit/s\" }]
    [discovery]
    enabled = true                   # find peers without a node, by libp2p
    listen = \"0.0.0.0:5003\"          mdns = true
    [cache]
    max_bytes = \"(4/5 of the disk)\"  low_percent = 90
    min_free_bytes = \"(1/50 of the disk, at most 10GiB)\"
    max_idle_days = (none)           # what was not used for so long leaves, however much room there is
    scrub_days = 14                  scrub_rate = \"4 MiB/s\"   # what is held is hashed again; 0: never
    index_chunks_max = 2000000       # about 20 bytes of memory each
    [delta]
    enabled = true                   # what is new of a disk comes as a difference, where that is less
    wait_seconds = 20                # at most so long for one that is being made
    [mirror]
    enabled = true                   listen = \"127.0.0.1:5055\"
    certificate_file, key_file       # for another address than loopback; read anew at SIGHUP
    rights_seconds = 30              # a node's word on who may pull holds so long (at most 60),
    rights_offline_seconds = 3600    # and so long while no node answers
    upstreams = []                   # other registries, pulled through the cluster; else nodes say
    hub_listen = \"127.0.0.1:5057\"   # (none) for docker's registry-mirrors: names are Docker Hub's
    [status]
    enabled = true                   listen = \"127.0.0.1:5056\"   # /health and /metrics
    [traces]
    endpoint = \"…\"                 # OTLP over HTTP: http://HOST:4318/v1/traces; none where missing
    sample_ratio = 1.0               # of transfers that nobody traces already
    [log]
    filter = \"info\"                  format = \"text\"             # or \"json\"

CONTAINER ENGINES
  Any of them, by the mirror's address:         docker pull 127.0.0.1:5055/NAME:TAG
  What is not public needs a login there:       docker login 127.0.0.1:5055
  Of another registry, if the cluster pulls it through:   docker pull 127.0.0.1:5055/docker.io/NAME:TAG
  By a node's name or such a registry's, through this agent while it is up:
      shoal-agent setup docker|containerd|podman    shows what it changes, and asks
      shoal-agent setup podman --undo               takes it back";

/// The Shoal agent: fetches disk and container images from the swarm, shares and caches them, and
/// serves them to this host's hypervisor and container engine.
#[derive(Debug, Parser)]
#[command(name = "shoal-agent", version, after_long_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub settings: Settings,
    #[command(subcommand)]
    pub command: Command,
}

/// Where the settings come from.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// The settings' file [default: /etc/shoal/agent.toml where it exists]
    #[arg(long, global = true, value_name = "FILE", env = "SHOAL_AGENT_CONFIG")]
    pub config: Option<PathBuf>,
    /// The same as --set agent.data_dir=FOLDER
    #[arg(long, global = true, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Overrides one setting; may be given several times
    #[arg(long = "set", global = true, value_name = "SECTION.KEY=VALUE", value_parser = setting)]
    pub overrides: Vec<(String, String)>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it reads SECTION.KEY=VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Joins a cluster with a token and keeps the identity that comes back
    Join(Join),
    /// Runs the daemon until it gets SIGTERM
    Run(Run),
    /// Fetches an image into the cache and, with --output, writes it out
    ///
    /// The running daemon does the work. A disk is written as one file; of a container image an
    /// OCI image layout is written into the folder. Without --output the image is only cached.
    Fetch(Fetch),
    /// Shows what the running daemon is and does
    Status(Json),
    /// Lists the images this host knows and how much of each the cache holds
    List(Json),
    /// Forgets an image and frees what no other image needs
    Remove(OneImage),
    /// Keeps an image in the cache whatever else comes
    Pin(OneImage),
    /// Lets a pinned image be evicted again
    Unpin(OneImage),
    /// Says where the bytes of recent transfers came from, and how fast
    Explain(Explain),
    /// Makes this host's container engine pull the cluster's images through this agent
    ///
    /// Shows what would change as a diff, and asks. The agent is named first and the registry
    /// itself after it, so that pulls go on when the agent is down. --undo puts every file back as
    /// it was.
    Setup(Setup),
}

#[derive(Debug, Args)]
pub struct Setup {
    pub engine: Engine,
    /// Takes back what was set up
    #[arg(long, conflicts_with = "registries")]
    pub undo: bool,
    /// Shows what would change, and changes nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Does not ask
    #[arg(long, short, conflicts_with = "dry_run")]
    pub yes: bool,
    /// As image names begin with; may be given several times [default: every node's]
    #[arg(long = "registry", value_name = "HOST:PORT")]
    pub registries: Vec<String>,
    /// Where the engine's files are looked up: the root of an image that is being prepared
    #[arg(long, value_name = "FOLDER", default_value = "/")]
    pub root: PathBuf,
}

#[derive(Debug, Args)]
pub struct Join {
    /// HTTPS address of any node
    #[arg(long, value_name = "URL")]
    pub node: String,
    /// A join token: shoal-join-v1.…; the environment keeps it out of the list of processes
    #[arg(long, env = "SHOAL_AGENT_JOIN_TOKEN", hide_env_values = true)]
    pub token: String,
    #[command(flatten)]
    pub who: Who,
}

/// What the cluster is told of this host.
#[derive(Debug, Clone, Default, Args)]
pub struct Who {
    /// Unique in the cluster [default: the host's name]
    #[arg(long)]
    pub name: Option<String>,
    /// REGION/ROOM/RACK
    #[arg(long)]
    pub zone: Option<Zone>,
    /// A label; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Labels>,
    #[arg(long, value_enum)]
    pub role: Option<Role>,
}

#[derive(Debug, Args)]
pub struct Run {
    /// Joins first, where that was not done yet; needs --node
    #[arg(long, env = "SHOAL_AGENT_JOIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub join_token: Option<String>,
    /// HTTPS address of any node, for --join-token
    #[arg(long, value_name = "URL")]
    pub node: Option<String>,
    #[command(flatten)]
    pub who: Who,
}

#[derive(Debug, Args)]
pub struct Fetch {
    /// NAME, NAME:TAG or NAME@DIGEST
    #[arg(value_name = "IMAGE:TAG")]
    pub reference: ImageReference,
    /// The file (disk) or folder (container image) to write
    #[arg(long, short, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// raw, qcow2, vmdk, vmdk-stream, vhd, vhd-fixed, vhdx or ova [default: by the output's
    /// name, else qcow2]
    #[arg(long, short)]
    pub format: Option<String>,
    /// Allocates all of a raw or vhd-fixed file, so that the guest's writing meets no full disk
    #[arg(long, requires = "output")]
    pub preallocate: bool,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Debug, Args)]
pub struct OneImage {
    /// NAME, NAME:TAG or NAME@DIGEST
    #[arg(value_name = "IMAGE:TAG")]
    pub reference: ImageReference,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Debug, Args)]
pub struct Explain {
    /// How many transfers
    #[arg(long, default_value_t = 10)]
    pub limit: usize,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Debug, Clone, Copy, Args)]
pub struct Json {
    /// For programs: one JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::SETTINGS;

    #[test]
    fn the_command_line_is_sound_and_the_help_names_every_setting() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        for (section, keys) in SETTINGS {
            assert!(help.contains(&format!("[{section}]")), "[{section}]");
            for key in *keys {
                assert!(help.contains(key), "{section}.{key}");
            }
        }
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
        }
    }

    #[test]
    fn settings_may_stand_behind_the_command() {
        let cli = Cli::try_parse_from([
            "shoal-agent",
            "fetch",
            "--config",
            "x.toml",
            "a/b:1",
            "--output",
            "o",
            "--set",
            "cache.low_percent=5",
        ]);
        let cli = cli.unwrap();
        assert_eq!(cli.settings.config, Some("x.toml".into()));
        assert_eq!(cli.settings.overrides, [("cache.low_percent".into(), "5".into())]);
    }
}
