//! All metrics of this crate, by their fixed names.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use prometheus_client::registry::Registry;
use shoal_swarm::BanReason;

use crate::bulk::Path;
use crate::identity::Credentials;

/// Reasons for which a chunk that came is not kept.
pub(crate) const WRONG_CONTENT: &str = "wrong_content";
pub(crate) const NO_STORAGE: &str = "storage";

/// Directions in which bytes are saved.
pub(crate) const SENT: &str = "sent";
pub(crate) const RECEIVED: &str = "received";

type One = [(&'static str, &'static str); 1];

#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    sent: Family<One, Counter>,
    received: Family<One, Counter>,
    sent_by_path: Family<One, Counter>,
    received_by_path: Family<One, Counter>,
    saved: Family<One, Counter>,
    refused: Family<One, Counter>,
    bans: Family<One, Counter>,
    pub(crate) connections: Gauge,
    pub(crate) bulk_connections: Gauge,
    pub(crate) bulk_failures: Counter,
    pub(crate) bulk_listening: Gauge,
    pub(crate) gso_segments: Gauge,
    pub(crate) discovery_connections: Gauge,
    pub(crate) contacts_found: Counter,
}

/// When the certificate ends that is shown to others.
#[derive(Debug)]
pub(crate) struct CertificateEnd(pub(crate) Credentials);

impl Collector for CertificateEnd {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let seconds = self.0.ends_at().as_millis() / 1000;
        let gauge = ConstGauge::new(i64::try_from(seconds).unwrap_or(i64::MAX));
        let name = "shoal_member_certificate_expiry_seconds";
        let help = "Until when the cluster's certificate of this process is valid, in seconds since \
                    1970; it is renewed long before";
        gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let all = Self::default();
        registry.register(
            "shoal_chunk_bytes_sent",
            "Chunk bytes sent, as their content has them, by the receiver's role",
            all.sent.clone(),
        );
        registry.register(
            "shoal_chunk_bytes_received",
            "Verified chunk bytes received, as their content has them, by the sender's role",
            all.received.clone(),
        );
        registry.register(
            "shoal_chunks_refused",
            "Chunks that were not kept, by reason",
            all.refused.clone(),
        );
        registry.register("shoal_peer_bans", "Bans of peers, by reason", all.bans.clone());
        registry.register(
            "shoal_peer_connections",
            "Open connections to peers",
            all.connections.clone(),
        );
        registry.register(
            "shoal_bulk_bytes_sent",
            "Chunk bytes sent, as their content has them, by the way they went: quic, or tls for TLS \
             over TCP",
            all.sent_by_path.clone(),
        );
        registry.register(
            "shoal_bulk_bytes_received",
            "Verified chunk bytes received, as their content has them, by the way they came",
            all.received_by_path.clone(),
        );
        registry.register(
            "shoal_wire_bytes_saved",
            "Chunk bytes that compression kept off the network, by direction",
            all.saved.clone(),
        );
        registry.register(
            "shoal_bulk_connections",
            "Open bulk connections (TLS over TCP) to peers",
            all.bulk_connections.clone(),
        );
        registry.register(
            "shoal_bulk_failures",
            "Bulk connections that could not be made or broke off; QUIC went on",
            all.bulk_failures.clone(),
        );
        registry.register(
            "shoal_bulk_listening",
            "Whether the peer port is open for TCP, too; 0 means that all chunks go by QUIC",
            all.bulk_listening.clone(),
        );
        registry.register(
            "shoal_gso_segments",
            "Datagrams the kernel takes at once; 1 means no offload and a third of the speed",
            all.gso_segments.clone(),
        );
        registry.register(
            "shoal_discovery_connections",
            "Members of the libp2p network that are connected",
            all.discovery_connections.clone(),
        );
        registry.register(
            "shoal_discovery_contacts",
            "Peers found without a node's help",
            all.contacts_found.clone(),
        );
        all.start_from_zero();
        all
    }

    /// A counter that is absent until its first event reads as a renamed one, and hides its rise.
    fn start_from_zero(&self) {
        for to_node in [false, true] {
            self.sent(to_node, 0);
            self.received(to_node, 0);
        }
        for path in Path::ALL {
            self.sent_by(path, 0);
            self.received_by(path, 0);
        }
        for direction in [SENT, RECEIVED] {
            self.saved(direction, 0);
        }
        for reason in BanReason::ALL {
            self.bans.get_or_create(&[("reason", reason.as_str())]).inc_by(0);
        }
        for reason in [WRONG_CONTENT, NO_STORAGE] {
            self.refused.get_or_create(&[("reason", reason)]).inc_by(0);
        }
    }

    pub(crate) fn sent(&self, to_node: bool, bytes: u64) {
        let to = if to_node { "node" } else { "agent" };
        self.sent.get_or_create(&[("to", to)]).inc_by(bytes);
    }

    pub(crate) fn received(&self, from_node: bool, bytes: u64) {
        let from = if from_node { "node" } else { "peer" };
        self.received.get_or_create(&[("from", from)]).inc_by(bytes);
    }

    pub(crate) fn sent_by(&self, path: Path, bytes: u64) {
        self.sent_by_path.get_or_create(&[("path", path.as_str())]).inc_by(bytes);
    }

    pub(crate) fn received_by(&self, path: Path, bytes: u64) {
        self.received_by_path.get_or_create(&[("path", path.as_str())]).inc_by(bytes);
    }

    pub(crate) fn saved(&self, direction: &'static str, bytes: u64) {
        self.saved.get_or_create(&[("direction", direction)]).inc_by(bytes);
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    pub(crate) fn banned(&self, reason: &'static str) {
        self.bans.get_or_create(&[("reason", reason)]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_stand() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.sent(false, 1);
        metrics.received(true, 1);
        metrics.sent_by(Path::Tls, 1);
        metrics.received_by(Path::Quic, 1);
        metrics.saved(SENT, 1);
        metrics.refused("wrong_content");
        metrics.banned("wrong_content");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "shoal_chunk_bytes_sent_total{to=\"agent\"} 1",
            "shoal_chunk_bytes_received_total{from=\"node\"} 1",
            "shoal_chunks_refused_total{reason=\"wrong_content\"} 1",
            "shoal_peer_bans_total{reason=\"wrong_content\"} 1",
            "shoal_peer_connections 0",
            "shoal_bulk_bytes_sent_total{path=\"tls\"} 1",
            "shoal_bulk_bytes_received_total{path=\"quic\"} 1",
            "shoal_bulk_bytes_received_total{path=\"tls\"} 0",
            "shoal_wire_bytes_saved_total{direction=\"sent\"} 1",
            "shoal_wire_bytes_saved_total{direction=\"received\"} 0",
            "shoal_bulk_connections 0",
            "shoal_bulk_failures_total 0",
            "shoal_bulk_listening 0",
            "shoal_gso_segments 0",
            "shoal_discovery_connections 0",
            "shoal_discovery_contacts_total 0",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
    }
}
