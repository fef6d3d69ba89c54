//! Docker: trusts the cluster's registries, and with the containerd image store pulls through the
//! agent.
//!
//! Docker's own image store mirrors docker.io alone, so there is nothing to set for it: images are
//! pulled by the mirror's address, which docker trusts without TLS because it is loopback. The
//! mirror is not made one for docker.io: whoever may push to a project `library` would then answer
//! for Docker Hub's images.

use super::{Error, Facts, Plan, containerd};

const FOLDER: &str = "/etc/docker/certs.d";

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
    Ok(())
}
