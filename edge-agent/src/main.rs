//! The program `shoal-agent`: arguments in, exit code out. Everything else is in the library.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser;
use shoal_agent::cli::{Cli, Command};
use shoal_agent::commands;
use shoal_agent::config::{Config, LogFormat};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shoal-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    // Fails only where a provider is installed already, which is what is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = commands::load(&cli.settings)?;
    log(&config, matches!(cli.command, Command::Run(_)))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(commands::execute(&cli.settings, config, cli.command))?;
    Ok(())
}

/// The daemon logs as it is told; the other commands warn only.
fn log(config: &Config, daemon: bool) -> anyhow::Result<()> {
    let filter = if daemon { config.log.filter.as_str() } else { "warn" };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_ansi(std::io::stderr().is_terminal())
        // A log on a full disk loses lines; complaining about that on the same stream panics.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
