//! Other registries, whose images are pulled through the cluster.

use shoal_api::UpstreamInfo;

use crate::arguments::UpstreamCommand;
use crate::client::Client;
use crate::error::Error;
use crate::screen::{Screen, bytes, table};

const PATH: &str = "api/v1/upstreams";

pub async fn upstreams(
    command: Option<&UpstreamCommand>,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    let all: Vec<UpstreamInfo> = client.get(PATH).await?;
    match command {
        None | Some(UpstreamCommand::List) => screen.show(&all, || listed(&all)),
        Some(UpstreamCommand::Status { name }) => {
            let found = all.into_iter().find(|one| one.name == *name || one.aliases.contains(name));
            let found = found.ok_or_else(|| {
                Error::NotFound(format!("there is no upstream '{name}' that you may pull from"))
            })?;
            screen.show(&found, || detailed(&found))
        }
    }
}

fn listed(all: &[UpstreamInfo]) -> String {
    if all.is_empty() {
        return "No other registries are pulled through (or none that you may pull from); see \
                [upstreams] in node.toml."
            .to_owned();
    }
    let mut rows = table(&["NAME", "URL", "HITS", "MISSES", "RECEIVED", "LIMIT", "STATE"]);
    for one in all {
        rows.add_row([
            one.name.clone(),
            one.url.clone(),
            one.hits.to_string(),
            one.misses.to_string(),
            bytes(one.received_bytes),
            limit(one),
            state(one),
        ]);
    }
    rows.to_string()
}

fn limit(one: &UpstreamInfo) -> String {
    match (one.limit_remaining, one.limit) {
        (Some(left), Some(limit)) => format!("{left} of {limit}"),
        (Some(left), None) => left.to_string(),
        _ => "-".to_owned(),
    }
}

fn state(one: &UpstreamInfo) -> String {
    match (one.paused_seconds, &one.asked_at, &one.last_error) {
        (Some(seconds), ..) => format!("left alone for {seconds} s"),
        (None, None, _) => "not asked yet".to_owned(),
        (None, Some(_), Some(_)) if one.last_error_at > one.answered_at => "in trouble".to_owned(),
        _ => "answers".to_owned(),
    }
}

fn detailed(one: &UpstreamInfo) -> String {
    let or_never = |text: &Option<String>| text.clone().unwrap_or_else(|| "never".to_owned());
    let login = if one.login { "with a login" } else { "as nobody" };
    let mut rows = table(&["UPSTREAM", &one.name]);
    let error = one.last_error.clone().unwrap_or_else(|| "none".to_owned());
    for (what, value) in [
        ("url", format!("{}, {login}", one.url)),
        ("aliases", one.aliases.join(", ")),
        ("state", state(one)),
        ("last asked", or_never(&one.asked_at)),
        ("last answer", or_never(&one.answered_at)),
        ("last error", error),
        ("at", or_never(&one.last_error_at)),
        ("requests left", limit(one)),
        ("hits", one.hits.to_string()),
        ("misses", one.misses.to_string()),
        ("given as last known", one.stale.to_string()),
        ("received", bytes(one.received_bytes)),
        ("tags are looked up after", format!("{} s", one.tag_seconds)),
    ] {
        rows.add_row([what, &value]);
    }
    rows.to_string()
}
