//! `shoal`: the command line for people and their scripts.
//!
//! Each command is one call or a few on the REST API of any node. Results go to standard output,
//! everything else to standard error; the exit code says how it ended (see `error`).

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::arguments::{Arguments, Backup, BackupCommand, Command};
use crate::client::Client;
use crate::config::Config;
use crate::error::{EXIT_FAILED, Error};
use crate::screen::Screen;

mod alone;
mod arguments;
mod audit;
mod backup;
mod blocks;
mod browser;
mod client;
mod cluster;
mod config;
mod copy;
mod deployments;
mod disk;
mod download;
mod encryption;
mod error;
mod events;
mod explain;
mod images;
mod import;
mod instances;
mod logins;
mod members;
mod passkeys;
mod people;
mod policy;
mod projects;
mod quotas;
mod restore;
mod resume;
mod scans;
mod screen;
mod session;
mod storage;
mod trust;
mod upload;
mod upstreams;
mod versions;
mod warm_ups;

#[tokio::main]
async fn main() -> ExitCode {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("shoal: the TLS library could not be set up");
        return ExitCode::from(EXIT_FAILED);
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    let screen = Screen { json: arguments.json, quiet: false };
    match run(arguments, screen).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error, screen);
            ExitCode::from(error.exit_code())
        }
    }
}

/// What clap says: help and version as they are, a mistake in the form that was asked for.
fn refuse(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    if json && error.use_stderr() {
        let text = error.render().to_string();
        // What is wrong is its first paragraph, what to do about it the rest.
        let (wrong, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
        let joined = |part: &str, by| {
            let lines = part.lines().map(str::trim).filter(|line| !line.is_empty());
            lines.collect::<Vec<_>>().join(by)
        };
        let wrong = joined(wrong, " ");
        let message = wrong.strip_prefix("error: ").unwrap_or(&wrong);
        let hint = Some(joined(rest, "; ")).filter(|hint| !hint.is_empty());
        let code = Error::Usage(String::new()).code().to_owned();
        let shown = serde_json::json!({
            "error": { "code": code, "message": message, "hint": hint }
        });
        eprintln!("{shown}");
    } else {
        // It goes where it can; there is nobody left to tell that it could not.
        let _ = error.print();
    }
    let words = std::env::args_os().skip(1).collect::<Vec<_>>();
    let code = match error.use_stderr() {
        true => disk::usage_exit_code(&words, error.kind()),
        false => None,
    };
    ExitCode::from(code.or(u8::try_from(error.exit_code()).ok()).unwrap_or(EXIT_FAILED))
}

fn complain(error: &Error, screen: Screen) {
    if screen.json {
        let shown = serde_json::json!({
            "error": { "code": error.code(), "message": error.to_string(), "hint": error.hint() }
        });
        eprintln!("{shown}");
        return;
    }
    eprintln!("shoal: {error}");
    if let Some(hint) = error.hint() {
        eprintln!("  {hint}");
    }
}

async fn run(arguments: Arguments, screen: Screen) -> Result<(), Error> {
    if let Command::Completions { shell } = arguments.command {
        let mut command = Arguments::command();
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, "shoal", &mut script);
        return screen::write_out(&script);
    }
    if let Command::Disk(command) = arguments.command {
        return disk::disk(command, screen).await;
    }
    match &arguments.command {
        // These need no cluster: who restores has none.
        Command::Restore(restore) => return Err(restore::restore(restore)),
        Command::Backup(Backup {
            command: Some(BackupCommand::Verify { file, objects, read }),
            ..
        }) => return backup::verify(file, objects.as_deref(), *read, screen),
        _ => {}
    }
    let mut config = Config::load(arguments.config, arguments.context)?;
    match &arguments.command {
        Command::Login(login) => return session::login(login, &mut config, screen).await,
        Command::Logout => return session::logout(&mut config, screen).await,
        Command::Context(command) => return session::context(command, &mut config, screen),
        _ => {}
    }
    let client = &Client::new(config.context()?)?;
    match &arguments.command {
        Command::Status => session::status(client, &mut config, screen).await,
        Command::Image(command) => images::image(command, client, &config, screen).await,
        Command::Instance(command) => instances::instance(command, client, screen).await,
        Command::Deploy(deploy) => deployments::deploy(deploy, client, screen).await,
        Command::Deployments { command } => {
            deployments::deployments(command.as_ref(), client, screen).await
        }
        Command::WarmUp(command) => warm_ups::warm_up(command, client, screen).await,
        Command::Watch { deployment } => deployments::watch(deployment, client, screen).await,
        Command::Explain { deployment } => explain::explain(deployment, client, screen).await,
        Command::Cluster(command) => cluster::cluster(command, client, screen).await,
        Command::Encryption(command) => encryption::encryption(command, client, screen).await,
        Command::Agent(command) => members::agent(command, client, screen).await,
        Command::Policy(command) => policy::policy(command, client, screen).await,
        Command::Storage(command) => storage::storage(command, client, screen).await,
        Command::Upstreams { command } => {
            upstreams::upstreams(command.as_ref(), client, screen).await
        }
        Command::Backup(command) => backup::backup(command, client, screen).await,
        Command::Token(command) => members::token(command, client, screen).await,
        Command::User(command) => people::user(command, client, screen).await,
        Command::AccessToken(command) => people::access_token(command, client, screen).await,
        Command::Organization(command) => people::organization(command, client, screen).await,
        Command::Project(command) => projects::project(command, client, screen).await,
        Command::Audit(command) => audit::audit(command, client, screen).await,
        Command::Block(command) => blocks::block(command, client, screen).await,
        Command::Quota(command) => quotas::quota(command, client, screen).await,
        Command::Robot(command) => projects::robot(command, client, screen).await,
        Command::Login(_)
        | Command::Logout
        | Command::Context(_)
        | Command::Disk(_)
        | Command::Restore(_)
        | Command::Completions { .. } => {
            unreachable!("these need no client and ended above")
        }
    }
}
