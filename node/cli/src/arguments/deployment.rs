//! Deployments, and policies that make them: the grammar.

use std::str::FromStr;

use clap::{ArgGroup, Args, Subcommand};
use shoal_api::Deadline;
use shoal_content::{AccountName, ImageReference, Labels, Priority};

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
    /// low, normal, high or urgent: what is above goes first on each host, the rest waits for it
    #[arg(long, default_value_t)]
    pub priority: Priority,
    /// So many hosts at a time; the next begins when one ends [default: all at once]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub parallel: Option<u32>,
    /// Who is not done by then has failed: 90m, 2h, or 2026-01-31T18:00:00Z
    #[arg(long, value_name = "WHEN")]
    pub deadline: Option<Until>,
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

/// A deadline: so long from now, or a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Until(pub Deadline);

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = humantime::parse_duration(text) {
            // The node's clock counts: this machine's may be another.
            return Ok(Self(Deadline { seconds: Some(time.as_secs().max(1)), at: None }));
        }
        match humantime::parse_rfc3339(text) {
            Ok(_) => Ok(Self(Deadline { at: Some(text.to_owned()), seconds: None })),
            Err(_) => Err("it is a time from now (90m, 2h) or one as 2026-01-31T18:00:00Z".into()),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum DeploymentsCommand {
    /// Recent ones, newest first; what no subcommand means, too
    List,
    /// One with its hosts
    Show(OneDeployment),
    /// Hold it up: hosts stop, keep what they have, and go on with `resume`
    Pause(OneDeployment),
    /// Let it go on
    Resume(OneDeployment),
    /// Call it off for good; what is on hosts stays there
    Cancel(OneDeployment),
    /// Let the hosts that failed try again
    Retry {
        #[command(flatten)]
        one: OneDeployment,
        /// Another deadline, where the last one is over: 90m, 2h, or 2026-01-31T18:00:00Z
        #[arg(long, value_name = "WHEN")]
        deadline: Option<Until>,
        /// Follow it until it ends
        #[arg(long)]
        watch: bool,
    },
}

#[derive(Debug, Args)]
pub struct OneDeployment {
    /// A deployment's id, or an image: its newest deployment
    pub deployment: String,
}

#[derive(Debug, Subcommand)]
pub enum WarmUpCommand {
    /// All policies
    List,
    /// Keep a tag on hosts: those with the labels now, and whoever joins with them
    Create(WarmUpCreate),
    /// End a policy; what it has ordered goes on
    Delete { name: AccountName },
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("where").args(["selector", "all"]).required(true))]
pub struct WarmUpCreate {
    pub name: AccountName,
    /// NAME:TAG
    pub reference: ImageReference,
    /// Agents with all of these labels: KEY=VALUE,…
    #[arg(long, value_name = "LABELS")]
    pub selector: Option<Selector>,
    /// Every agent
    #[arg(long)]
    pub all: bool,
    /// low, normal, high or urgent
    #[arg(long, default_value_t = Priority::Low)]
    pub priority: Priority,
    /// So many hosts at a time [default: all at once]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub parallel: Option<u32>,
}
