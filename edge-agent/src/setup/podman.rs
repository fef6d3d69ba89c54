//! podman and all that read containers-registries.conf(5): a drop-in that names the agent as the
//! mirror of each of the cluster's registries, and of those that the cluster pulls through.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use toml::{Table, Value};

use super::{Error, Facts, Plan};

const CONFIG: &str = "/etc/containers/registries.conf";
const DROP_INS: &str = "/etc/containers/registries.conf.d";
const DROP_IN: &str = "/etc/containers/registries.conf.d/50-shoal.conf";
const CERTIFICATES: &str = "/etc/containers/certs.d";

pub fn plan(facts: &Facts, plan: &mut Plan) -> Result<(), Error> {
    facts.trust(CERTIFICATES, plan)?;
    let mut text = String::from(
        "# Made by 'shoal-agent setup podman'; 'shoal-agent setup podman --undo' takes it back.\n",
    );
    let taken = taken(plan);
    for registry in &facts.registries {
        if is_left(registry, &taken, plan) {
            continue;
        }
        // Mirrors are asked in order, the registry itself last.
        let _ = write!(
            text,
            "\n[[registry]]\nprefix = \"{registry}\"\nlocation = \"{registry}\"\n\
             [[registry.mirror]]\nlocation = \"{}\"\ninsecure = {}\n",
            facts.mirror, !facts.mirror_has_tls
        );
    }
    for (host, upstream) in facts.upstream_hosts() {
        if is_left(host, &taken, plan) {
            continue;
        }
        let _ = write!(
            text,
            "\n[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\n\
             [[registry.mirror]]\nlocation = \"{}/{}\"\ninsecure = {}\n",
            facts.mirror, upstream.name, !facts.mirror_has_tls
        );
    }
    plan.write(DROP_IN, |_| Ok(text))?;
    plan.advice.push("it counts from the next pull on; nothing has to be restarted".to_owned());
    plan.advice.push(
        "users with a ~/.config/containers/registries.conf of their own go by that alone"
            .to_owned(),
    );
    Ok(())
}

/// Whether somebody else's file has a say on what images of `host` are pulled from. Of several the last
/// one read counts whole, so ours would take back where they come from.
fn is_left(host: &str, taken: &BTreeSet<String>, plan: &mut Plan) -> bool {
    let is_left = taken.contains(host);
    if is_left {
        plan.advice.push(format!(
            "{CONFIG} or a file in {DROP_INS} has a [[registry]] for {host}, which was left as it is; \
             a [[registry.mirror]] there can name the agent"
        ));
    }
    is_left
}

/// The prefixes of all registries in other files than ours. One that cannot be read is podman's to
/// speak of.
fn taken(plan: &Plan) -> BTreeSet<String> {
    let ours = plan.path(DROP_IN);
    let mut files = vec![plan.path(CONFIG)];
    if let Ok(found) = fs::read_dir(plan.path(DROP_INS)) {
        files.extend(found.flatten().map(|one| one.path()));
    }
    files.retain(|path| *path != ours && path.extension().is_some_and(|end| end == "conf"));
    let table = |path: &PathBuf| fs::read_to_string(path).ok()?.parse::<Table>().ok();
    files.iter().filter_map(table).flat_map(|table| prefixes(&table)).collect()
}

fn prefixes(table: &Table) -> Vec<String> {
    let all = table.get("registry").and_then(Value::as_array).into_iter().flatten();
    let prefix =
        |one: &Value| one.get("prefix").or(one.get("location"))?.as_str().map(str::to_owned);
    all.filter_map(prefix).collect()
}
