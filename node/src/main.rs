//! The program `shoal-node`: commands, signals, logging.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use shoal_api::AccountRecovered;
use shoal_node::config::Config;
use shoal_node::joining;
use shoal_node::restore::{Plan, Restored};
use shoal_node::server::{self, Server};
use shoal_node::telemetry::Telemetry;
use shoal_node::unblocking;
use tokio::signal::unix::{SignalKind, signal};

/// RocksDB and bursts of uploads leave glibc's heap in pieces; this one gives memory back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A Shoal node: keeps images, replicates their metadata, serves docker, agents and the REST API.
///
/// Without any configuration it is a complete single node: `shoal-node run` founds a cluster in its
/// data folder, prints the administrator's password once, and answers on https://127.0.0.1:5000.
#[derive(Debug, Parser)]
#[command(name = "shoal-node", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Commands,
}

const EXAMPLES: &str = "Settings come from --config FILE (default /etc/shoal/node.toml), then from the environment \
(SHOAL_NODE_HTTP_LISTEN and so on), then from --set. deploy/node.toml has all of them.\n\nExamples:\n  \
shoal-node run --set node.data_dir=/srv/shoal\n  \
shoal-node init --config node.toml      found a cluster, print the password\n  \
shoal-node init --restore FILE --objects DIR   make it out of a backup instead\n  \
shoal-node config --config node.toml    check the settings and print what is in force";

#[derive(Debug, Subcommand)]
enum Commands {
    /// Run the node; an empty data folder becomes a cluster of one
    Run(Settings),
    /// Found a cluster of one node and print the administrator's password; or restore one
    Init(Init),
    /// Join the cluster that another node belongs to; `run` follows
    Join(Join),
    /// Let somebody in again who is locked out, with this node's own key: account:NAME or address:IP
    Unblock(Unblock),
    /// Give an administrator who has lost the way in another password, and print it, with this node's
    /// own key: its second factor, passkeys and sessions end
    RecoverAdmin(RecoverAdmin),
    /// Check the settings and print them as they are in force
    Config(Settings),
}

#[derive(Debug, Args)]
struct Unblock {
    who: String,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Args)]
struct RecoverAdmin {
    /// Of the administrator's account
    #[arg(default_value = shoal_node::founding::ADMIN)]
    name: String,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Args)]
struct Init {
    /// Make the cluster out of a backup (`shoal backup`): the same cluster, on this node alone.
    /// Stop the old nodes first
    #[arg(long, value_name = "FILE")]
    restore: Option<PathBuf>,
    /// The folder of the backup's objects, to be put into storage; without it storage must have them
    #[arg(long, value_name = "DIR", requires = "restore")]
    objects: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Args)]
struct Join {
    /// Any node of the cluster, https://HOST:PORT
    #[arg(long, value_name = "URL")]
    node: String,
    /// As `shoal cluster add` prints it
    #[arg(long, env = "SHOAL_NODE_JOIN_TOKEN", hide_env_values = true)]
    token: String,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Args)]
struct Settings {
    /// The TOML file
    #[arg(long, env = "SHOAL_NODE_CONFIG")]
    config: Option<PathBuf>,
    /// One setting, which wins over file and environment
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = setting)]
    overrides: Vec<(String, String)>,
}

impl Settings {
    fn load(&self) -> Result<Config> {
        Ok(Config::load(self.config.as_deref(), std::env::vars(), &self.overrides)?)
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is SECTION.KEY=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime.context("the runtime cannot be started").and_then(|runtime| match arguments
        .command
    {
        Commands::Run(settings) => {
            let config = settings.load()?;
            let _telemetry = Telemetry::install(&config)?;
            runtime.block_on(run(config))
        }
        Commands::Init(Init { restore: Some(file), objects, settings }) => {
            let plan = Plan { file: &file, objects: objects.as_deref() };
            show_restored(&runtime.block_on(server::restore(&settings.load()?, plan))?);
            Ok(())
        }
        Commands::Init(Init { settings, .. }) => {
            let password = runtime.block_on(server::found(&settings.load()?))?;
            show_password(&password);
            Ok(())
        }
        Commands::Join(Join { node, token, settings }) => {
            let member = runtime.block_on(joining::join(&settings.load()?, &node, &token))?;
            println!(
                "joined {} as node {}; start it with: shoal-node run",
                member.cluster,
                member.id()
            );
            Ok(())
        }
        Commands::Unblock(Unblock { who, settings }) => {
            runtime.block_on(unblocking::unblock(&settings.load()?, &who))?;
            println!("{who} is let in again");
            Ok(())
        }
        Commands::RecoverAdmin(RecoverAdmin { name, settings }) => {
            let config = settings.load()?;
            show_recovered(&runtime.block_on(unblocking::recover_administrator(&config, &name))?);
            Ok(())
        }
        Commands::Config(settings) => {
            print!("{}", toml::to_string_pretty(&settings.load()?)?);
            Ok(())
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shoal-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let notice = Duration::from_secs(config.drain.notice_seconds);
    let mut server = Server::start(config, show_password).await?;
    let notice = tokio::select! {
        _ = terminate.recv() => notice,
        // Whoever presses Ctrl-C waits for it.
        _ = interrupt.recv() => Duration::ZERO,
        failure = server.failed() => return server.fail(failure).await,
    };
    tokio::select! {
        left = Box::pin(server.leave(notice)) => left,
        _ = terminate.recv() => bail!("it was told to stop twice, and stops where it stands"),
        _ = interrupt.recv() => bail!("it was told to stop twice, and stops where it stands"),
    }
}

fn show_restored(restored: &Restored) {
    let Restored { head, totals, member, put, missing } = restored;
    println!(
        "restored {} as it was at entry {} ({}): {} rows; this is its only node now, node {}",
        head.cluster,
        head.index,
        shoal_node::clock::rfc3339(head.made_at),
        totals.rows,
        member.node
    );
    println!("objects: {} named by the metadata, {put} put into storage", totals.objects);
    if *missing > 0 {
        println!(
            "WARNING: {missing} of them are not in storage as they should be; \
             'shoal storage verify' names them"
        );
    }
    println!("users, passwords and agents are those of the backup; start it with: shoal-node run");
}

/// To standard output and nowhere else.
fn show_recovered(recovered: &AccountRecovered) {
    println!("The administrator logs in with this password from now on, shown this once:");
    println!("user:     {}", recovered.username);
    println!("password: {}", recovered.password.0);
    let factor = if recovered.second_factor_removed { "the second factor, " } else { "" };
    println!(
        "removed: {factor}{} passkeys; ended: {} sessions",
        recovered.passkeys_removed, recovered.sessions_ended
    );
    if recovered.tokens_kept > 0 {
        println!(
            "{} personal tokens go on; 'shoal access-token list' shows them",
            recovered.tokens_kept
        );
    }
}

/// To standard output and nowhere else.
fn show_password(password: &str) {
    println!("A new cluster was founded. Its administrator, shown this once:");
    println!("user:     {}", shoal_node::founding::ADMIN);
    println!("password: {password}");
}
