//! Every metric of the agent's own, by name. Those of peers and chunks come from shoal-p2p and
//! stand in the same registry.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Of the disk cache.
#[derive(Debug, Clone, Default)]
pub struct CacheMetrics {
    pub bytes: Gauge,
    pub recipes: Gauge,
    pub evictions: Counter,
    /// Writes refused for want of space.
    pub full: Counter,
    /// Chunks that did not check when they were read back.
    pub corrupt: Counter,
    /// Read and hashed again to find such chunks.
    pub scrubbed_bytes: Counter,
    /// Copied between recipes instead of fetched.
    pub bytes_copied: Counter,
    /// Made with delta bundles instead of fetched.
    pub delta_bytes: Counter,
    /// Bundles that were of no use.
    pub delta_failures: Counter,
}

/// Of what goes on around it.
#[derive(Debug, Clone, Default)]
pub struct AgentMetrics {
    /// By outcome: `done` or `failed`.
    pub transfers: Family<[(&'static str, &'static str); 1], Counter>,
    pub transfers_running: Gauge,
    /// By kind (`manifest`, `blob`) and outcome (`ok`, `not_found`, `failed`).
    pub mirror_requests: Family<[(&'static str, &'static str); 2], Counter>,
    pub mirror_bytes: Counter,
    /// Of those, what a node sent, because the cluster held it nowhere yet or the cache had no room.
    pub mirror_passed_bytes: Counter,
    /// 1 while the order stream is open.
    pub orders_connected: Gauge,
    /// By outcome: `ok` or `failed`.
    pub node_requests: Family<[(&'static str, &'static str); 1], Counter>,
}

/// All of the agent's own.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub cache: CacheMetrics,
    pub agent: AgentMetrics,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        // A family without a member is not shown at all; these are, as zero.
        for outcome in ["done", "failed"] {
            drop(metrics.agent.transfers.get_or_create(&[("outcome", outcome)]));
        }
        for outcome in ["ok", "failed"] {
            drop(metrics.agent.node_requests.get_or_create(&[("outcome", outcome)]));
            for kind in ["manifest", "blob"] {
                let labels = [("kind", kind), ("outcome", outcome)];
                drop(metrics.agent.mirror_requests.get_or_create(&labels));
            }
        }
        let Self { cache, agent } = metrics.clone();
        let of = registry;
        of.register_with_unit(
            "shoal_cache",
            "Bytes that the cache's files take",
            Unit::Bytes,
            cache.bytes,
        );
        of.register("shoal_cache_recipes", "Recipes in the cache", cache.recipes);
        of.register("shoal_cache_evictions", "Recipes evicted", cache.evictions);
        of.register("shoal_cache_full", "Writes refused for want of space", cache.full);
        of.register(
            "shoal_cache_corrupt_chunks",
            "Chunks that did not check when read back",
            cache.corrupt,
        );
        of.register(
            "shoal_cache_scrubbed_bytes",
            "Bytes read and hashed again to find what has rotted",
            cache.scrubbed_bytes,
        );
        of.register(
            "shoal_cache_copied_bytes",
            "Bytes copied between images instead of fetched",
            cache.bytes_copied,
        );
        of.register(
            "shoal_cache_delta_bytes",
            "Bytes made with delta bundles instead of fetched",
            cache.delta_bytes,
        );
        of.register(
            "shoal_cache_delta_failures",
            "Delta bundles that were of no use",
            cache.delta_failures,
        );
        of.register("shoal_transfers", "Finished transfers", agent.transfers);
        of.register("shoal_transfers_running", "Transfers under way", agent.transfers_running);
        of.register(
            "shoal_mirror_requests",
            "Requests to the registry mirror",
            agent.mirror_requests,
        );
        of.register(
            "shoal_mirror_sent_bytes",
            "Blob bytes sent by the registry mirror",
            agent.mirror_bytes,
        );
        of.register(
            "shoal_mirror_passed_bytes",
            "Of those, bytes that a node streamed past the cache",
            agent.mirror_passed_bytes,
        );
        of.register(
            "shoal_orders_connected",
            "Whether an order stream is open",
            agent.orders_connected,
        );
        of.register("shoal_node_requests", "Requests to nodes", agent.node_requests);
        metrics
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    /// Dashboards and alerts depend on these; a change here is a change for their owners.
    #[test]
    fn the_names_are_pinned() {
        let mut registry = Registry::default();
        Metrics::register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let names: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .map(|line| line.to_owned())
            .collect();
        assert_eq!(
            names,
            [
                "shoal_cache_bytes gauge",
                "shoal_cache_recipes gauge",
                "shoal_cache_evictions counter",
                "shoal_cache_full counter",
                "shoal_cache_corrupt_chunks counter",
                "shoal_cache_scrubbed_bytes counter",
                "shoal_cache_copied_bytes counter",
                "shoal_cache_delta_bytes counter",
                "shoal_cache_delta_failures counter",
                "shoal_transfers counter",
                "shoal_transfers_running gauge",
                "shoal_mirror_requests counter",
                "shoal_mirror_sent_bytes counter",
                "shoal_mirror_passed_bytes counter",
                "shoal_orders_connected gauge",
                "shoal_node_requests counter",
            ]
        );
    }
}
