//! The command line's grammar and its help.
//!
//! Non-goal: doing anything; `main` hands each command to its module.

mod rights;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use shoal_content::{ImageReference, Labels, TagName};

pub use rights::*;

/// The most parts of one upload under way at once; each is held in memory.
pub const PARALLEL_MAX: u16 = 16;

const EXIT_CODES: &str = "Exit codes:
  0    it worked
  1    it failed
  2    wrong arguments
  3    not logged in, or not allowed
  4    no such image, version, deployment, agent or token
  5    no node answered, or its certificate is not trusted
  6    the deployment ended, and some host failed
  130  stopped by Ctrl-C; what was under way says how to go on

NO_COLOR turns colours off.";

/// Stores disk and container images, and puts them onto hosts.
#[derive(Debug, Parser)]
#[command(name = "shoal", version, after_help = EXIT_CODES)]
pub struct Arguments {
    /// Print one JSON document on standard output, for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// The cluster to talk to, by the name given at login
    #[arg(long, global = true, env = "SHOAL_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// Where logins are kept [default: $XDG_CONFIG_HOME/shoal/config.toml]
    #[arg(long, global = true, env = "SHOAL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Log in to a cluster by any of its nodes
    Login(Login),
    /// Forget the token of a cluster
    Logout,
    /// The clusters logged in to
    #[command(subcommand)]
    Context(ContextCommand),
    /// Nodes, leader and agents
    Status,
    /// Images: upload, list, show, download, tag, delete
    #[command(subcommand)]
    Image(ImageCommand),
    /// Put an image onto hosts
    Deploy(Deploy),
    /// Recent deployments, newest first
    Deployments,
    /// Follow a deployment until it ends
    Watch { deployment: String },
    /// Where each host of a deployment got its bytes from
    Explain {
        /// A deployment's id, or an image: its newest deployment
        deployment: String,
    },
    /// The nodes: add, remove, replace
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// The daemons on the hosts
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Tokens that let agents and nodes join
    #[command(subcommand)]
    Token(TokenCommand),
    /// What lies in storage without need, and whether what lies there is sound
    #[command(subcommand)]
    Storage(StorageCommand),
    /// People: accounts, roles, your own password
    #[command(subcommand)]
    User(UserCommand),
    /// Your own tokens, for programs that act for you
    #[command(subcommand)]
    AccessToken(AccessTokenCommand),
    /// Organizations, their members and groups
    #[command(subcommand, visible_alias = "org")]
    Organization(OrganizationCommand),
    /// Projects: visibility, members
    #[command(subcommand)]
    Project(ProjectCommand),
    /// Accounts of a project for programs
    #[command(subcommand)]
    Robot(RobotCommand),
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// All nodes, with their part in Raft
    Nodes,
    /// Make a token for one more node, and show what to do on its machine
    Add {
        /// How long the token holds
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
    },
    /// Take a node out of the cluster, alive or dead
    Remove {
        /// Its name or id
        node: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Take a node out, and make a token for the one in its place
    Replace {
        /// Its name or id
        node: String,
        /// How long the token holds
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum StorageCommand {
    /// What nothing refers to any more, and the last scrub
    Status,
    /// Delete what nothing has referred to for the grace period, now
    Collect {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Look through all of storage: find orphans, compare a sample with its names
    Scrub,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("trust").args(["ca", "fingerprint", "insecure_skip_verify"]))]
pub struct Login {
    /// https://HOST:PORT of a node
    pub url: String,
    #[arg(long, default_value = "admin")]
    pub username: String,
    /// Read the password from standard input instead of the terminal
    #[arg(long)]
    pub password_stdin: bool,
    /// Trust this authority (PEM) for the cluster
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Trust the authority that the node presents if it has this SHA-256
    #[arg(long, value_name = "HEX")]
    pub fingerprint: Option<String>,
    /// Check no certificate; loopback only
    #[arg(long)]
    pub insecure_skip_verify: bool,
}

#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    List,
    /// Make a context the current one
    Use {
        name: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Qcow2,
    Raw,
}

impl Format {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Upload a disk; the same command again goes on where an earlier one stopped
    Upload(Upload),
    /// All images
    List,
    /// One image with its versions and tags
    Show { name: String },
    /// Delete an image with all its versions
    Delete {
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Download a disk; the same command again goes on where an earlier one stopped
    Download(Download),
    /// Who was granted what for this image, besides its project's members
    Grants { name: String },
    /// Let somebody read, write or administer one image
    Grant {
        name: String,
        /// user:NAME, group:ORGANIZATION/NAME or organization:NAME
        who: String,
        #[arg(value_enum)]
        access: Access,
    },
    /// Take back what was granted for one image
    Revoke {
        name: String,
        /// user:NAME, group:ORGANIZATION/NAME or organization:NAME
        who: String,
    },
    /// Point a tag at a version
    Tag {
        /// NAME:TAG or NAME@DIGEST that is there
        source: ImageReference,
        /// The tag to set on it
        tag: TagName,
    },
}

#[derive(Debug, Args)]
pub struct Upload {
    pub file: PathBuf,
    /// NAME or NAME:TAG; the image is made if it is not there
    pub reference: ImageReference,
    /// The version's number, unique in the image [default: one more than the latest]
    #[arg(long = "version", value_name = "VERSION")]
    pub number: Option<String>,
    /// Found out from the file where missing
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Length of a part in MiB [default: the node's choice]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub chunk_size: Option<u64>,
    /// Parts under way at once
    #[arg(long, default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(PARALLEL_MAX)))]
    pub parallel: u16,
}

#[derive(Debug, Args)]
pub struct Download {
    /// NAME, NAME:TAG or NAME@DIGEST
    pub reference: ImageReference,
    /// The file, or a folder for it [default: NAME-TAG.FORMAT in this folder]
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "qcow2")]
    pub format: Format,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("hosts").args(["host", "selector", "all"]).required(true).multiple(true))]
pub struct Deploy {
    pub reference: ImageReference,
    /// An agent's name or id; may be given several times
    #[arg(long, value_name = "AGENT", conflicts_with = "all")]
    pub host: Vec<String>,
    /// Agents with all of these labels: KEY=VALUE,…
    #[arg(long, value_name = "LABELS", conflicts_with = "all")]
    pub selector: Option<Selector>,
    /// Every agent
    #[arg(long)]
    pub all: bool,
    /// Follow it until it ends; the default
    #[arg(long, conflicts_with = "detach")]
    pub watch: bool,
    /// Only order it
    #[arg(long)]
    pub detach: bool,
}

/// Labels to choose agents by; at least one. Stays text, once it is known to be good.
#[derive(Debug, Clone)]
pub struct Selector(pub String);

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let labels: Labels = text.parse().map_err(|error| format!("{error}"))?;
        // The empty selector means every agent, and `--all` says that more clearly.
        match labels.iter().next() {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err("it names no label; --all is every agent".to_owned()),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    List,
    /// Take an agent's right to be part of the cluster away
    Remove {
        /// Name or id
        agent: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; its text is shown once
    Create {
        #[arg(long, value_enum)]
        role: Role,
        /// How long it can be used, for instance 30m, 1h, 7d
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// How many may join with it [default: any number]
        #[arg(long)]
        uses: Option<u32>,
    },
    List,
    Revoke {
        id: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    Agent,
    Node,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
        assert!(Arguments::command().render_long_help().to_string().contains("Exit codes"));
    }

    #[test]
    fn a_deployment_needs_to_know_its_hosts() {
        assert!(parse("shoal deploy a/b:c").is_err());
        assert!(parse("shoal deploy a/b:c --all --host x").is_err());
        assert!(parse("shoal deploy a/b:c --all --watch --detach").is_err());
        assert!(parse("shoal deploy a/b:c --selector room").is_err());
        assert!(parse("shoal deploy a/b:c --selector ,").is_err());
        let both = parse("shoal --json deploy a/b:c --host x --host y --selector room=1").unwrap();
        assert!(both.json);
        let Command::Deploy(deploy) = both.command else { panic!("not a deployment") };
        assert_eq!(deploy.host, ["x", "y"]);
        assert_eq!(deploy.selector.unwrap().0, "room=1");
    }

    #[test]
    fn an_upload_takes_a_version_of_its_own() {
        let line = "shoal image upload f zedge/a:v1 --version 1.0.0 --format raw --json";
        let Command::Image(ImageCommand::Upload(upload)) = parse(line).unwrap().command else {
            panic!("not an upload")
        };
        assert_eq!(upload.number.as_deref(), Some("1.0.0"));
        assert_eq!(upload.format, Some(Format::Raw));
        assert!(parse("shoal image upload f a:v --parallel 0").is_err());
        assert!(parse("shoal image upload f A:v").is_err());
    }

    #[test]
    fn only_one_kind_of_trust_at_a_time() {
        assert!(parse("shoal login https://a --ca f --insecure-skip-verify").is_err());
        assert!(parse("shoal login https://a --fingerprint 00 --password-stdin").is_ok());
    }

    #[test]
    fn a_token_lives_an_hour_unless_told_otherwise() {
        let Command::Token(TokenCommand::Create { ttl, uses, role }) =
            parse("shoal token create --role agent").unwrap().command
        else {
            panic!("not a token")
        };
        assert_eq!((ttl, uses, role), (Duration::from_secs(3600), None, Role::Agent));
    }
}
