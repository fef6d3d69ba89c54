//! The program `shoal-agent`: arguments in, exit code out. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use shoal_agent::cli::{Cli, Command};
use shoal_agent::commands;
use shoal_agent::telemetry::Telemetry;

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
    let _telemetry = Telemetry::install(&config, matches!(cli.command, Command::Run(_)))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(commands::execute(&cli.settings, config, cli.command))?;
    Ok(())
}
