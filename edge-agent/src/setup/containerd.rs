//! containerd: `certs.d/HOST:PORT/hosts.toml` for each registry, the cluster's and those that it pulls
//! through, and the setting by which CRI finds them. `ctr` and `nerdctl` read the folder as well (`ctr images pull --hosts-dir`).

use std::path::Path;

use toml_edit::{DocumentMut, Item, Table, value};

use super::{Error, Facts, Plan};
use crate::mirror::DOCKER_HUB;

const CONFIG: &str = "/etc/containerd/config.toml";
const FOLDER: &str = "/etc/containerd/certs.d";
/// What files of ours begin with.
const MADE: &str = "# Made by 'shoal-agent setup';";
/// Of configurations of version 3 (containerd 2), and of those before.
const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
const CRI: &str = "io.containerd.grpc.v1.cri";
/// By which CRI is switched off.
const CRI_NAMES: [&str; 3] = ["cri", CRI, CRI_IMAGES];
/// Made where containerd has no configuration; every release reads it.
const VERSION_OF_NEW: i64 = 2;

pub fn plan(facts: &Facts, plan: &mut Plan) -> Result<(), Error> {
    let path = plan.path(CONFIG);
    let (mut folder, mut has_cri) = (FOLDER.to_owned(), true);
    plan.write(CONFIG, |before| {
        let wanted = with_folder(&path, before)?;
        (folder, has_cri) = (wanted.folder, wanted.has_cri);
        Ok(wanted.text)
    })?;
    let needs_restart = !plan.is_done();
    facts.trust(&folder, plan)?;
    hosts(facts, &folder, plan)?;
    plan.advice.push(match (has_cri, needs_restart) {
        (false, _) => format!("{CONFIG} switches CRI off, and was left as it is"),
        (true, true) => {
            "restart containerd for it to know the folder: systemctl restart containerd".to_owned()
        }
        (true, false) => {
            "containerd knows the folder already; it counts from the next pull on".to_owned()
        }
    });
    plan.advice.push(format!("'ctr' is told each time: ctr images pull --hosts-dir {folder} …"));
    Ok(())
}

/// Adds `HOST:PORT/hosts.toml` for each registry below `folder`: the agent first, then the
/// registry itself, which alone takes pushes.
pub fn hosts(facts: &Facts, folder: &str, plan: &mut Plan) -> Result<(), Error> {
    for registry in &facts.registries {
        let authority = format!("{folder}/{registry}/ca.crt");
        let text = format!(
            "{MADE} --undo takes it back.\n\
             server = \"https://{registry}\"\nca = \"{authority}\"\n\n\
             [host.\"{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
            facts.url(facts.mirror)
        );
        plan.write_own(&format!("{folder}/{registry}/hosts.toml"), MADE, text)?;
    }
    for (host, upstream) in facts.upstream_hosts() {
        let server = upstream.url.clone().filter(|_| upstream.name == host);
        let server = server.unwrap_or_else(|| match host {
            DOCKER_HUB => "https://registry-1.docker.io".to_owned(),
            host => format!("https://{host}"),
        });
        // The agent is told by ?ns= which registry is meant.
        let text = format!(
            "{MADE} --undo takes it back.\nserver = {}\n\n\
             [host.\"{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
            value(server),
            facts.url(facts.mirror)
        );
        plan.write_own(&format!("{folder}/{host}/hosts.toml"), MADE, text)?;
    }
    Ok(())
}

/// What is to become of the configuration.
struct Wanted {
    text: String,
    /// Where registries are looked up.
    folder: String,
    has_cri: bool,
}

/// The configuration with `config_path` set, and the folder that it names.
fn with_folder(path: &Path, before: Option<&str>) -> Result<Wanted, Error> {
    let text = before.unwrap_or_default();
    let malformed = |message: String| Error::Malformed { path: path.to_owned(), message };
    let mut document: DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| malformed(error.to_string()))?;
    let switched_off = names(&document, "disabled_plugins");
    if switched_off.iter().any(|name| CRI_NAMES.contains(&name.as_str())) {
        // As Docker's packages have it. Nothing reads the setting then.
        let (text, folder) = (text.to_owned(), FOLDER.to_owned());
        return Ok(Wanted { text, folder, has_cri: false });
    }
    let version = document.get("version").and_then(Item::as_integer).unwrap_or(1);
    let version = if version > 1 {
        version
    } else {
        // That is what containerd takes it for without a version, too: plugins have short names then,
        // with which it does not start as a newer one.
        let required = names(&document, "required_plugins");
        if document.contains_key("plugins") || !switched_off.is_empty() || !required.is_empty() {
            let message = "it names plugins as version 1 does; make it version = 2".to_owned();
            return Err(malformed(message));
        }
        document.insert("version", value(VERSION_OF_NEW));
        VERSION_OF_NEW
    };
    let plugin = if version >= 3 { CRI_IMAGES } else { CRI };
    let not_a_table = |key: &str| malformed(format!("{key} is no table"));
    let mut table: &mut Table = document.as_table_mut();
    for key in ["plugins", plugin, "registry"] {
        let entry = table.entry(key).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(key != "registry");
            Item::Table(table)
        });
        table = entry.as_table_mut().ok_or_else(|| not_a_table(key))?;
    }
    for key in ["mirrors", "configs"] {
        if table.get(key).and_then(Item::as_table_like).is_some_and(|old| !old.is_empty()) {
            let key = format!("plugins.{plugin:?}.registry.{key}");
            return Err(Error::OldMirrors { path: path.to_owned(), key });
        }
    }
    let known = table.get("config_path").and_then(Item::as_str).unwrap_or_default();
    // Several folders may stand there, as in PATH; the first that has a registry counts.
    if let Some(first) = known.split(':').find(|folder| !folder.is_empty()) {
        let (text, folder) = (text.to_owned(), first.to_owned());
        return Ok(Wanted { text, folder, has_cri: true });
    }
    table.insert("config_path", value(FOLDER));
    Ok(Wanted { text: document.to_string(), folder: FOLDER.to_owned(), has_cri: true })
}

/// The texts of a list at the top.
fn names(document: &DocumentMut, key: &str) -> Vec<String> {
    let list = document.get(key).and_then(Item::as_array);
    let texts = list.into_iter().flatten().filter_map(|one| one.as_str());
    texts.map(str::to_owned).collect()
}
