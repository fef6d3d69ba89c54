//! Docker: trusts the cluster's registries, and with the containerd image store pulls through the
//! agent.
//!
//! Docker's own image store mirrors docker.io alone, and does not say to the mirror what it means. So
//! for that the agent has a listener of its own (`mirror.hub_listen`), which answers for Docker Hub's
//! images as the cluster pulls them through, and for nothing else: else whoever may push to a project
//! `library` would answer for Docker Hub's images. Images of the cluster are pulled by the mirror's
//! address, which docker trusts without TLS because it is loopback.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Error, Facts, Plan, containerd};

const FOLDER: &str = "/etc/docker/certs.d";
const DAEMON: &str = "/etc/docker/daemon.json";
const MIRRORS: &str = "registry-mirrors";

pub fn plan(facts: &Facts, plan: &mut Plan) -> Result<(), Error> {
    facts.trust(FOLDER, plan)?;
    containerd::hosts(facts, FOLDER, plan)?;
    let example = facts.registries.first().map(String::as_str).unwrap_or_default();
    plan.advice.push(format!(
        "docker reads these at its next pull; with the containerd image store, 'docker pull \
         {example}/NAME:TAG' goes through the agent"
    ));
    plan.advice.push(format!(
        "with docker's own image store, pull through the agent by its address: docker pull \
         {}/NAME:TAG",
        facts.mirror
    ));
    let Some(hub) = facts.hub else {
        plan.advice.push(
            "for docker's own image store to pull Docker Hub's images through the agent, set \
             mirror.hub_listen and run this again"
                .to_owned(),
        );
        return Ok(());
    };
    let (path, url) = (plan.path(DAEMON), facts.url(hub));
    plan.write(DAEMON, |before| with_mirror(&path, before, &url))?;
    plan.advice.push(format!("docker reads {DAEMON} when it is told: systemctl reload docker"));
    Ok(())
}

/// The configuration with the mirror before all others.
fn with_mirror(path: &Path, before: Option<&str>, url: &str) -> Result<String, Error> {
    let malformed = |message: String| Error::Json { path: path.to_owned(), message };
    let text = before.unwrap_or_default();
    let mut settings: Map<String, Value> = match text.trim() {
        "" => Map::new(),
        text => serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?,
    };
    let mirrors = settings.entry(MIRRORS).or_insert_with(|| Value::Array(Vec::new()));
    let mirrors =
        mirrors.as_array_mut().ok_or_else(|| malformed(format!("{MIRRORS} is no list")))?;
    // Docker may have written it with a slash.
    if mirrors.iter().filter_map(Value::as_str).any(|one| one.trim_end_matches('/') == url) {
        return Ok(text.to_owned());
    }
    mirrors.insert(0, Value::String(url.to_owned()));
    let text =
        serde_json::to_string_pretty(&settings).map_err(|error| malformed(error.to_string()))?;
    Ok(text + "\n")
}
