//! podman and all that read containers-registries.conf(5): a drop-in that names the agent as the
//! mirror of each of the cluster's registries, and of those that the cluster pulls through.

use std::fmt::Write;

use super::{Error, Facts, Plan};

const DROP_IN: &str = "/etc/containers/registries.conf.d/50-shoal.conf";
const CERTIFICATES: &str = "/etc/containers/certs.d";

pub fn plan(facts: &Facts, plan: &mut Plan) -> Result<(), Error> {
    facts.trust(CERTIFICATES, plan)?;
    let mut text = String::from(
        "# Made by 'shoal-agent setup podman'; 'shoal-agent setup podman --undo' takes it back.\n",
    );
    for registry in &facts.registries {
        // Mirrors are asked in order, the registry itself last.
        let _ = write!(
            text,
            "\n[[registry]]\nprefix = \"{registry}\"\nlocation = \"{registry}\"\n\
             [[registry.mirror]]\nlocation = \"{}\"\ninsecure = {}\n",
            facts.mirror, !facts.mirror_has_tls
        );
    }
    for (host, upstream) in facts.upstream_hosts() {
        let _ = write!(
            text,
            "\n[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\n\
             [[registry.mirror]]\nlocation = \"{}/{}\"\ninsecure = {}\n",
            facts.mirror, upstream.name, !facts.mirror_has_tls
        );
    }
    plan.write(DROP_IN, |_| Ok(text))?;
    plan.advice.push("it counts from the next pull on; nothing has to be restarted".to_owned());
    Ok(())
}
