//! Says where every byte of a deployment came from.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::Cell;
use serde::Serialize;
use shoal_api::{Deployment, DeploymentHost};

use crate::client::Client;
use crate::deployments::{find, host_bound_percent};
use crate::error::Error;
use crate::screen::{Screen, bytes, percent, rate, seconds, state, table};

/// Sources named for one host; the rest is summed up.
const SOURCES_MAX: usize = 4;

/// Sums over all hosts, in bytes.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Sums {
    bytes_total: u64,
    bytes_done: u64,
    bytes_from_own_cache: u64,
    /// Of these, copied out of other images.
    bytes_deduplicated: u64,
    /// Made from own caches and delta bundles.
    bytes_by_delta: u64,
    /// Of those bundles; among what peers and nodes sent.
    delta_bundle_bytes: u64,
    bytes_from_peers: u64,
    /// Out of central storage, which agents reach through nodes only.
    bytes_from_nodes: u64,
    /// Of what crossed the network.
    percent_from_peers: u64,
    /// What agents sent, by where they stand.
    bytes_by_zone: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct Explanation<'a> {
    #[serde(flatten)]
    deployment: &'a Deployment,
    sums: Sums,
}

pub async fn explain(text: &str, client: &Client, screen: Screen) -> Result<(), Error> {
    let deployment = find(text, client).await?;
    let explanation = Explanation { deployment: &deployment, sums: sums(&deployment.hosts) };
    screen.show(&explanation, || shown(&deployment, &explanation.sums))
}

fn sum(by: &BTreeMap<String, u64>) -> u64 {
    by.values().sum()
}

fn sums(hosts: &[DeploymentHost]) -> Sums {
    let add = |of: fn(&DeploymentHost) -> u64| hosts.iter().map(of).sum::<u64>();
    let peers = add(|host| sum(&host.progress.bytes_by_peer));
    let nodes = add(|host| sum(&host.progress.bytes_by_node));
    let mut bytes_by_zone: BTreeMap<String, u64> = BTreeMap::new();
    for (zone, bytes) in hosts.iter().flat_map(|host| &host.progress.bytes_by_zone) {
        *bytes_by_zone.entry(zone.clone()).or_default() += bytes;
    }
    Sums {
        bytes_total: add(|host| host.progress.bytes_total),
        bytes_done: add(|host| host.progress.bytes_done),
        bytes_from_own_cache: add(|host| host.progress.bytes_local),
        bytes_deduplicated: add(|host| host.progress.bytes_deduplicated),
        bytes_by_delta: add(|host| host.progress.bytes_by_delta),
        delta_bundle_bytes: add(|host| host.progress.delta_bundle_bytes),
        bytes_from_peers: peers,
        bytes_from_nodes: nodes,
        percent_from_peers: percent(peers, peers + nodes),
        bytes_by_zone,
    }
}

fn shown(deployment: &Deployment, sums: &Sums) -> String {
    let mut rows = table(&[
        "HOST",
        "STATE",
        "DONE",
        "OWN CACHE",
        "BY DELTA",
        "PEERS",
        "NODES",
        "RATE",
        "OF BOUND",
        "TIME",
        "FROM",
        "WAITS FOR",
        "LAST ERROR",
    ]);
    for host in &deployment.hosts {
        let progress = &host.progress;
        rows.add_row([
            Cell::new(&host.name),
            state(&host.state),
            Cell::new(format!("{}/{}", bytes(progress.bytes_done), bytes(progress.bytes_total))),
            Cell::new(bytes(progress.bytes_local)),
            Cell::new(bytes(progress.bytes_by_delta)),
            Cell::new(bytes(sum(&progress.bytes_by_peer))),
            Cell::new(bytes(sum(&progress.bytes_by_node))),
            Cell::new(rate(progress.rate_bytes_per_second)),
            Cell::new(
                host_bound_percent(progress).map_or("-".into(), |share| format!("{share} %")),
            ),
            Cell::new(seconds(Duration::from_millis(progress.elapsed_ms))),
            Cell::new(sources(host)),
            Cell::new(progress.waits_for.as_deref().unwrap_or("-")),
            Cell::new(progress.last_error.as_deref().unwrap_or("-")),
        ]);
    }
    let crossed = if sums.bytes_from_peers + sums.bytes_from_nodes == 0 {
        "nothing crossed the network".to_owned()
    } else {
        format!("{} % of what crossed the network came from peers", sums.percent_from_peers)
    };
    let delta = match sums.bytes_by_delta {
        0 => String::new(),
        made => format!(", {} made by deltas of {}", bytes(made), bytes(sums.delta_bundle_bytes)),
    };
    let shared = match sums.bytes_deduplicated {
        0 => String::new(),
        copied => format!(" ({} of that out of other images)", bytes(copied)),
    };
    format!(
        "{} of {}, {}\n{rows}\nin sum {}: {} from peers, {} from storage through nodes, {} from own \
         caches{shared}{delta}; {crossed}{}",
        deployment.id,
        deployment.reference,
        deployment.state,
        bytes(sums.bytes_done),
        bytes(sums.bytes_from_peers),
        bytes(sums.bytes_from_nodes),
        bytes(sums.bytes_from_own_cache),
        zones(&sums.bytes_by_zone),
    )
}

/// What agents of each zone sent, where any says where it stands.
fn zones(by_zone: &BTreeMap<String, u64>) -> String {
    if by_zone.keys().all(String::is_empty) {
        return String::new();
    }
    let named = by_zone.iter().map(|(zone, count)| {
        format!("{} {}", if zone.is_empty() { "elsewhere" } else { zone.as_str() }, bytes(*count))
    });
    format!("\nfrom agents by zone: {}", named.collect::<Vec<_>>().join(", "))
}

/// Who sent how much, the most first.
fn sources(host: &DeploymentHost) -> String {
    let progress = &host.progress;
    let mut all: Vec<(&str, u64)> = progress
        .bytes_by_peer
        .iter()
        .chain(&progress.bytes_by_node)
        .map(|(name, &count)| (name.as_str(), count))
        .filter(|(_, count)| *count > 0)
        .collect();
    all.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    let rest = all.iter().skip(SOURCES_MAX).map(|(_, count)| count).sum::<u64>();
    let mut parts: Vec<String> = all
        .iter()
        .take(SOURCES_MAX)
        .map(|(name, count)| {
            // A peer without a name shows as its id, which is long.
            let name: String = name.chars().take(16).collect();
            format!("{name} {}", bytes(*count))
        })
        .collect();
    if rest > 0 {
        parts.push(format!("{} more {}", all.len() - SOURCES_MAX, bytes(rest)));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use shoal_api::TransferProgress;
    use shoal_content::PeerId;

    use super::*;

    fn host(peers: &[(&str, u64)], nodes: &[(&str, u64)], local: u64) -> DeploymentHost {
        let map = |all: &[(&str, u64)]| all.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect();
        DeploymentHost {
            id: PeerId::from_public_key([0; 32]),
            name: "h".into(),
            state: "done".into(),
            progress: TransferProgress {
                bytes_by_peer: map(peers),
                bytes_by_node: map(nodes),
                bytes_local: local,
                ..Default::default()
            },
        }
    }

    #[test]
    fn sums_tell_peers_nodes_and_caches_apart() {
        let mut hosts = [host(&[("a", 60), ("b", 15)], &[("n", 20)], 5), host(&[], &[("n", 5)], 0)];
        hosts[0].progress.bytes_deduplicated = 3;
        let found = sums(&hosts);
        assert_eq!((found.bytes_from_peers, found.bytes_from_nodes), (75, 25));
        assert_eq!((found.bytes_from_own_cache, found.percent_from_peers), (5, 75));
        assert_eq!(found.bytes_deduplicated, 3);
    }

    #[test]
    fn zones_are_summed_over_hosts_and_silent_where_nobody_says() {
        let mut hosts = [host(&[("a", 60)], &[], 0), host(&[("a", 15)], &[], 0)];
        assert_eq!(zones(&sums(&hosts).bytes_by_zone), "");
        hosts[0].progress.bytes_by_zone =
            BTreeMap::from([("eu/a/1".into(), 1024), (String::new(), 7)]);
        hosts[1].progress.bytes_by_zone = BTreeMap::from([("eu/a/1".into(), 1024)]);
        let text = zones(&sums(&hosts).bytes_by_zone);
        assert_eq!(text, "\nfrom agents by zone: elsewhere 7 B, eu/a/1 2.00 KiB");
    }

    #[test]
    fn names_the_biggest_sources_and_sums_up_the_rest() {
        let host = host(
            &[("a", 1), ("b", 1024), ("c", 5), ("d", 4), ("e", 3), ("quiet", 0)],
            &[("n", 2048)],
            0,
        );
        assert_eq!(sources(&host), "n 2.00 KiB, b 1.00 KiB, c 5 B, d 4 B, 2 more 4 B");
    }
}
