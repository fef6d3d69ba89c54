//! The command line's grammar and its help.
//!
//! Non-goal: doing anything; `main` hands each command to its module.

mod deployment;
mod disk;
mod image;
mod rights;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use shoal_content::{AccountName, ProjectName};

pub use deployment::*;
pub use disk::*;
pub use image::*;
pub use rights::*;

const EXIT_CODES: &str = "Exit codes:
  0    it worked
  1    it failed
  2    wrong arguments
  3    not logged in, or not allowed
  4    no such image, version, deployment, agent or token
  5    no node answered, or its certificate is not trusted
  6    the deployment ended, and some host failed
  7    a version has vulnerabilities as severe as --fail-on says
  130  stopped by Ctrl-C; what was under way says how to go on
'shoal disk' ends with those of qemu-img.

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
    /// Images: create, upload, list, show, edit, download, tag, delete
    #[command(subcommand, after_help = IMAGES)]
    Image(ImageCommand),
    /// Disk images as files on this machine, without a cluster: info, map, check, convert, compare,
    /// chunks
    #[command(subcommand, after_help = DISKS)]
    Disk(DiskCommand),
    /// Which virtual machine runs which version
    #[command(subcommand)]
    Instance(InstanceCommand),
    /// Put an image onto hosts
    Deploy(Deploy),
    /// Deployments: list, show, pause, resume, cancel, retry
    Deployments {
        #[command(subcommand)]
        command: Option<DeploymentsCommand>,
    },
    /// Policies that keep a tag on hosts: it is deployed whenever it moves or a host joins, and brought
    /// again where a host's cache has let it go
    #[command(subcommand)]
    WarmUp(WarmUpCommand),
    /// Follow a deployment until it ends
    Watch {
        /// A deployment's id, or an image: its newest deployment
        deployment: String,
    },
    /// Where each host of a deployment got its bytes from
    Explain {
        /// A deployment's id, or an image: its newest deployment
        deployment: String,
    },
    /// The nodes: add, remove, replace, upgrade; the keys and the authority of the cluster
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Back up the metadata, with or without objects, or verify a backup
    Backup(Backup),
    /// Make a new cluster of one node out of a backup, on the machine that will be the node
    Restore(Restore),
    /// The daemons on the hosts
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Tokens that let agents and nodes join
    #[command(subcommand)]
    Token(TokenCommand),
    /// What a project keeps, and what nobody may change in it
    #[command(subcommand, after_help = POLICY)]
    Policy(PolicyCommand),
    /// What lies in storage without need, and whether what lies there is sound
    #[command(subcommand)]
    Storage(StorageCommand),
    /// Other registries, whose images are pulled through the cluster
    #[command(after_help = UPSTREAMS)]
    Upstreams {
        #[command(subcommand)]
        command: Option<UpstreamCommand>,
    },
    /// People: accounts, roles, your own password
    #[command(subcommand)]
    User(UserCommand),
    /// Your own tokens, for programs that act for you
    #[command(subcommand)]
    AccessToken(AccessTokenCommand),
    /// Organizations, their members and groups
    #[command(subcommand, visible_alias = "org")]
    Organization(OrganizationCommand),
    /// Encryption at rest: whether objects in storage are sealed, and by which keys
    #[command(subcommand)]
    Encryption(EncryptionCommand),
    /// Projects: visibility, members
    #[command(subcommand)]
    Project(ProjectCommand),
    /// Who did what: search, export, verify
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Who is locked out after too many wrong passwords or tokens
    #[command(subcommand)]
    Block(BlockCommand),
    /// How much users, groups, organizations and projects may hold, and how much they do
    #[command(subcommand, after_help = QUOTAS)]
    Quota(QuotaCommand),
    /// Accounts of a project for programs
    #[command(subcommand)]
    Robot(RobotCommand),
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Subcommand)]
pub enum EncryptionCommand {
    /// On or off, the master keys, and the data keys that were made last
    Status {
        /// Only this project's data keys
        #[arg(long)]
        project: Option<String>,
        /// The most data keys to list
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Go over to new keys; no object is rewritten. First give every node the new master key in
    /// [encryption] master_key_file or kms_command, and the old one in previous_master_key_files or
    /// previous_kms_command
    Rotate {
        /// Give this project another data key for what it stores from now on, instead
        #[arg(long)]
        project: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// All nodes, with their part in Raft, what they run, and the cluster's level
    Nodes,
    /// Raise the cluster's level to what every node knows, after a rolling upgrade; there is no way
    /// back to the version before then
    Upgrade,
    /// The keys that tokens and tickets are signed with
    Keys,
    /// Make a new key to sign with; it signs after an hour, when every agent knows it
    RotateKey {
        /// What it signs: token (logins and programs) or ticket (agents' rights to chunks)
        #[arg(value_parser = ["token", "ticket"])]
        purpose: String,
        /// Others may have the old key: believe nothing any more that it signed, at once. People
        /// log in again, agents ask for new tickets by themselves
        #[arg(long)]
        distrust: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// The authority that signs the certificates of nodes and agents
    #[command(subcommand)]
    Authority(AuthorityCommand),
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
        /// Also where too few of the nodes that stay answer: until they do, nothing can be changed any
        /// more. Start those, or remove lost ones first, and it is not needed
        #[arg(long)]
        force: bool,
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
        /// Also where too few of the nodes that stay answer: until they do, nothing can be changed any
        /// more. Start those, or remove lost ones first, and it is not needed
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum AuthorityCommand {
    /// Which authorities there are, and how far one is in taking the place of another
    Status,
    /// Put another authority in the place of the one that signs, without anybody noticing: a day later
    /// it signs, and thirty days after that the old one is believed no longer
    Rotate {
        /// Others may have the old one's key: believe it no longer than until all nodes have the new
        /// one, which takes seconds. Hosts that do not hear of it by then get no chunks of other hosts
        /// until they have reached a node, and join tokens made before are good for nothing. Cuts a
        /// rotation short that is under way. Connections that stand are closed within a minute
        #[arg(long)]
        now: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

const DISKS: &str = "\
Formats: raw, qcow2, vmdk, vhd, vhdx and ova are read whatever the file is called. Images that name
other files (backing files, data files, parents) are refused. Exit codes are those of qemu-img.

  shoal disk info desktop.vmdk
  shoal disk convert -O qcow2 --compress desktop.vmdk desktop.qcow2
  shoal disk compare desktop.vmdk desktop.qcow2
  shoal disk chunks 1.0.qcow2 1.1.qcow2       what storing the second after the first adds";

const UPSTREAMS: &str = "\
Images of other registries are pulled by their whole names through any node, and are kept:

  docker pull shoal.example:5000/docker.io/library/alpine:3

Which there are stands in node.toml, [upstreams.\"docker.io\"]; who may pull is a matter of the
project of that name, as is what is kept:

  shoal project set docker.io --visibility public
  shoal policy show docker.io";

const POLICY: &str = "\
A name (a tag, or the number of a disk's version) goes where a rule is for it and no rule keeps it;
names that no rule is for stay. Rules count in each repository by itself.

In patterns, ? is any one character but /, * any number of them, ** any number of any; a ! at the
start turns the meaning round. A repository's pattern is about what follows PROJECT/ in its name.

  shoal policy keep shop --tags 'v*' --newest 10
  shoal policy keep shop --tags 'v*' --pulled-within 30d
  shoal policy immutable shop --tags 'release-*'
  shoal policy untagged shop 7d
  shoal policy dry-run shop
  shoal policy run shop
  shoal policy automatic shop on";

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// The rules of a project
    Show {
        project: ProjectName,
        /// As a file for `set`
        #[arg(long)]
        toml: bool,
    },
    /// Set the whole policy from a TOML or JSON file, or - for standard input
    Set { project: ProjectName, file: PathBuf },
    /// Add a rule that keeps names
    Keep(KeepRule),
    /// Add names that cannot be moved or deleted once they are there
    Immutable {
        project: ProjectName,
        /// Over what follows PROJECT/ in the repository's name
        #[arg(long, default_value = "**", value_name = "PATTERN")]
        repositories: String,
        #[arg(long, value_name = "PATTERN")]
        tags: String,
    },
    /// Let versions without a tag go after a time of no use, or never
    Untagged {
        project: ProjectName,
        /// For instance 7d, or never
        after: AfterDays,
    },
    /// Whether the cluster carries the policy out by itself
    Automatic { project: ProjectName, state: Switch },
    /// Take single rules away
    #[command(group = ArgGroup::new("rule").args(["retention", "immutable"]).required(true).multiple(true))]
    Remove {
        project: ProjectName,
        /// The number of a rule that keeps names, as `show` counts
        #[arg(long, value_name = "N")]
        retention: Option<usize>,
        /// The number of a rule of what is immutable
        #[arg(long, value_name = "N")]
        immutable: Option<usize>,
    },
    /// Take the whole policy away: nothing goes any more, and nothing is immutable
    Clear {
        project: ProjectName,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Say what would go now, and why
    DryRun {
        project: ProjectName,
        /// By this policy in place of the project's
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Also what stays
        #[arg(long)]
        all: bool,
    },
    /// Let go now what no rule keeps
    Run {
        project: ProjectName,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("keep").args(["newest", "pushed_within", "pulled_within", "always"]).required(true))]
pub struct KeepRule {
    pub project: ProjectName,
    /// Over what follows PROJECT/ in the repository's name
    #[arg(long, default_value = "**", value_name = "PATTERN")]
    pub repositories: String,
    #[arg(long, default_value = "**", value_name = "PATTERN")]
    pub tags: String,
    /// The versions that were pushed last, so many
    #[arg(long, value_name = "N")]
    pub newest: Option<u32>,
    /// What was pushed in the last days, for instance 30d
    #[arg(long, value_name = "DAYS")]
    pub pushed_within: Option<Days>,
    /// What was pulled (or pushed) in the last days
    #[arg(long, value_name = "DAYS")]
    pub pulled_within: Option<Days>,
    #[arg(long)]
    pub always: bool,
}

/// Whole days: `30d`, or `2w`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days(pub u32);

impl FromStr for Days {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const DAY_SECONDS: u64 = 24 * 3600;
        let text = if text == "0" { "0d" } else { text };
        let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
        if time.subsec_nanos() != 0 || time.as_secs() % DAY_SECONDS != 0 {
            return Err("it is whole days, for instance 30d".to_owned());
        }
        let days = u32::try_from(time.as_secs() / DAY_SECONDS);
        days.map(Self).map_err(|_| "so many days are too many".to_owned())
    }
}

/// Days, or `never`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AfterDays(pub Option<u32>);

impl FromStr for AfterDays {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "never" => Ok(Self(None)),
            days => days.parse::<Days>().map(|days| Self(Some(days.0))),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Debug, Subcommand)]
pub enum UpstreamCommand {
    /// Those that you may pull from, and how they stand with the node that answers
    List,
    /// One of them, with its last error and how many requests it takes yet
    Status {
        /// Its name, for instance docker.io
        name: String,
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
    /// Write anew what is needed of packs that are mostly garbage since versions are gone, also of packs
    /// that images share, so that the packs can go after the grace period
    Compact {
        /// Only say what would be written, and what that would save
        #[arg(long)]
        dry_run: bool,
    },
    /// Uploads that have not come to their end, and hold space until they do
    Uploads,
    /// End an upload and free what it holds
    Abort {
        /// As `uploads` shows it
        upload: String,
    },
    /// Look through all of storage: find orphans, compare a sample with its names
    Scrub,
    /// See that everything that the metadata name is in storage
    Verify {
        /// Read all of it, and compare it with what it is named by
        #[arg(long)]
        read: bool,
    },
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Backup {
    #[command(subcommand)]
    pub command: Option<BackupCommand>,
    /// The file to write, or a folder to write one into. It holds the cluster's keys: keep it as
    /// you keep those
    #[arg(value_name = "FILE|DIR", required = true)]
    pub path: Option<PathBuf>,
    /// Copy the objects that the metadata name into the folder 'objects' beside the file; what is
    /// there already is not copied again
    #[arg(long)]
    pub objects: bool,
}

#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Read a backup from its beginning to its end, and see that it is sound
    Verify {
        file: PathBuf,
        /// See that each object that it names is in this folder, too
        #[arg(long, value_name = "DIR")]
        objects: Option<PathBuf>,
        /// Read the objects, and compare them with what they are named by
        #[arg(long, requires = "objects")]
        read: bool,
    },
}

#[derive(Debug, Args)]
pub struct Restore {
    pub file: PathBuf,
    /// The folder of the backup's objects, to be put into storage; without it storage must have them
    #[arg(long, value_name = "DIR")]
    pub objects: Option<PathBuf>,
    /// The new node's configuration [default: /etc/shoal/node.toml]
    #[arg(long, value_name = "FILE")]
    pub node_config: Option<PathBuf>,
    /// One setting of the new node, which wins over its configuration
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("trust").args(["ca", "fingerprint", "insecure_skip_verify"]))]
pub struct Login {
    /// https://HOST:PORT of a node
    pub url: String,
    #[arg(long, default_value = "admin")]
    pub username: String,
    /// Read the password from standard input instead of the terminal; the code of a second factor
    /// is the line after it
    #[arg(long)]
    pub password_stdin: bool,
    /// Make the account first, where the cluster lets people do so (accounts.registration = "open")
    #[arg(long, conflicts_with_all = ["oidc", "workload"])]
    pub register: bool,
    /// With --register: where the account gets mail
    #[arg(long, value_name = "ADDRESS", requires = "register")]
    pub email: Option<String>,
    /// Log in with a browser, at the issuer that the cluster's settings name
    #[arg(long, conflicts_with_all = ["password_stdin", "workload"])]
    pub oidc: bool,
    /// Log in as a robot of this project, by a CI job's token on standard input
    #[arg(long, value_name = "PROJECT")]
    pub workload: Option<ProjectName>,
    /// With --workload: which robot
    #[arg(long, requires = "workload")]
    pub robot: Option<AccountName>,
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
    /// All of them, and which is the current one
    List,
    /// Make a context the current one
    Use { name: String },
}

#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// All agents, with their labels, and which are there
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
    /// Tokens, and until when each holds; their text is not shown again
    List,
    /// End a token; who has joined with it stays
    Revoke { id: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    Agent,
    Node,
}

#[cfg(test)]
mod tests;
