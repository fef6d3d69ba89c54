//! What an agent says of its own work: lines on standard error, and traces for OpenTelemetry.
//!
//! Traces are an option (`[traces] endpoint`). Each transfer is a span, with one below it for each
//! recipe that it waited for and each question that it asked a node, whose own spans follow from
//! there (W3C Trace Context). A span that ends has what `shoal explain` shows of the transfer.
//!
//! Invariants: spans wait in a bounded queue, and what does not fit is dropped: no transfer waits
//! for a collector, whether it is slow or away. Non-goals: metrics (they are Prometheus') and logs
//! over OTLP.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use opentelemetry::propagation::{Injector, TextMapPropagator};
use opentelemetry::trace::{Status, TraceContextExt, TracerProvider};
use opentelemetry::{Array, KeyValue, StringValue, Value};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use shoal_api::TransferProgress;
use thiserror::Error;
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{FilterExt, LevelFilter, ParseError, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{Config, LogFormat, Traces};

/// For one batch of spans to reach the collector.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// For the last batches, when the agent stops.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Spans of these crates are exported.
const OWN_CRATES: &str = "shoal_";
/// Senders that a span names, those first that sent the most.
const SENDERS_MAX: usize = 32;

/// Why an agent cannot say what it does.
#[derive(Debug, Error)]
pub enum Error {
    #[error("log.filter is malformed")]
    Filter(#[from] ParseError),
    #[error("traces cannot be sent to traces.endpoint")]
    Exporter(#[from] ExporterBuildError),
}

/// Logs and traces while it lives; sends the last spans when it goes.
#[derive(Debug)]
#[must_use = "the last spans are sent when it is dropped"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Installs it for the whole process. Call it once, outside of a runtime's workers. The daemon
    /// logs as it is told and traces; other commands warn only.
    ///
    /// # Errors
    /// Where a setting cannot be followed.
    pub fn install(config: &Config, daemon: bool) -> Result<Self, Error> {
        let filter = if daemon { config.log.filter.as_str() } else { "warn" };
        let filter = EnvFilter::try_new(filter)?;
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(std::io::stderr().is_terminal())
            // A log on a full disk loses lines; complaining about that on the same stream panics.
            .log_internal_errors(false)
            .with_writer(std::io::stderr);
        let lines = match config.log.format {
            LogFormat::Json => lines.json().boxed(),
            LogFormat::Text => lines.boxed(),
        };
        let provider = match &config.traces {
            Traces { endpoint: Some(endpoint), sample_ratio } if daemon => {
                let name = config.agent.name.as_deref().unwrap_or_default();
                Some(provider(endpoint, *sample_ratio, name)?)
            }
            _ => None,
        };
        let traces = provider.as_ref().map(traces);
        tracing_subscriber::registry().with(lines.with_filter(filter)).with(traces).init();
        Ok(Self { provider })
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider {
            // A collector that is away must not keep an agent from ending.
            let _ = provider.shutdown_with_timeout(FLUSH_TIMEOUT);
        }
    }
}

fn provider(
    endpoint: &str,
    sample_ratio: f64,
    agent: &str,
) -> Result<SdkTracerProvider, ExporterBuildError> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()?;
    let resource = Resource::builder()
        .with_service_name("shoal-agent")
        .with_attribute(KeyValue::new("service.instance.id", agent.to_owned()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sample_ratio)));
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
    Ok(provider.with_sampler(sampler).with_resource(resource).build())
}

/// Hands the spans of our crates to `provider`, at a level that the log leaves out.
fn traces<S: Subscriber + for<'a> LookupSpan<'a>>(
    provider: &SdkTracerProvider,
) -> impl Layer<S> + use<S> {
    let own = filter_fn(|what: &Metadata| what.is_span() && what.target().starts_with(OWN_CRATES));
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("shoal-agent"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(own.and(LevelFilter::DEBUG))
}

struct Headers(HeaderMap);

impl Injector for Headers {
    fn set(&mut self, key: &str, value: String) {
        let name = HeaderName::from_bytes(key.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&value)) {
            self.0.insert(name, value);
        }
    }
}

/// The headers by which whoever is asked goes on with the trace of `span`; none without one.
pub fn headers(span: &Span) -> HeaderMap {
    let mut headers = Headers(HeaderMap::new());
    TraceContextPropagator::new().inject_context(&span.context(), &mut headers);
    headers.0
}

/// Notes in a transfer's span, or a recipe's, how it stands at its end.
pub fn describe(span: &Span, progress: &TransferProgress) {
    if !span.context().span().is_recording() {
        return;
    }
    let TransferProgress { bytes_by_peer, bytes_by_node, .. } = progress;
    let sum = |bytes: &BTreeMap<String, u64>| bytes.values().copied().fold(0, u64::saturating_add);
    for (key, value) in [
        ("shoal.bytes.total", progress.bytes_total),
        ("shoal.bytes.done", progress.bytes_done),
        ("shoal.bytes.local", progress.bytes_local),
        ("shoal.bytes.deduplicated", progress.bytes_deduplicated),
        ("shoal.bytes.delta", progress.bytes_by_delta),
        ("shoal.bytes.delta_bundles", progress.delta_bundle_bytes),
        ("shoal.bytes.peers", sum(bytes_by_peer)),
        ("shoal.bytes.nodes", sum(bytes_by_node)),
        ("shoal.rate_bytes_per_second", progress.rate_bytes_per_second),
    ] {
        span.set_attribute(key, i64::try_from(value).unwrap_or(i64::MAX));
    }
    if let Some(line) = progress.line_bytes_per_second {
        span.set_attribute("shoal.line_bytes_per_second", i64::try_from(line).unwrap_or(i64::MAX));
    }
    span.set_attribute("shoal.peers", senders(bytes_by_peer));
    span.set_attribute("shoal.nodes", senders(bytes_by_node));
    span.set_attribute("shoal.state", progress.state.clone());
    if progress.state == "failed" {
        span.set_status(Status::error(progress.last_error.clone().unwrap_or_default()));
    }
}

/// Notes trouble that passes.
pub fn note(span: &Span, error: &str) {
    span.add_event("trouble", vec![KeyValue::new("message", error.to_owned())]);
}

/// As `NAME=BYTES`, the largest first.
fn senders(bytes: &BTreeMap<String, u64>) -> Value {
    let mut senders: Vec<(&String, &u64)> = bytes.iter().collect();
    senders.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    let text = |(name, bytes): (&String, &u64)| StringValue::from(format!("{name}={bytes}"));
    Value::Array(Array::String(senders.into_iter().take(SENDERS_MAX).map(text).collect()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SpanData, SpanExporter};
    use parking_lot::Mutex;

    use super::*;
    use crate::metrics::AgentMetrics;
    use crate::transfers::{Purpose, Transfers};

    #[derive(Debug, Clone, Default)]
    struct Collector(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Collector {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().extend(batch);
            Ok(())
        }
    }

    fn number(span: &SpanData, key: &str) -> Option<i64> {
        let found = span.attributes.iter().find(|one| one.key.as_str() == key)?;
        match found.value {
            Value::I64(number) => Some(number),
            _ => None,
        }
    }

    #[test]
    fn a_transfer_is_a_span_with_what_it_got_from_whom_and_its_trouble() {
        let collector = Collector::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(collector.clone()).build();
        let subscriber = tracing_subscriber::registry().with(traces(&provider));
        let transfers = Transfers::new(AgentMetrics::default(), Default::default());
        let asked = tracing::subscriber::with_default(subscriber, || {
            let tracked = transfers.start("team/app:v1".into(), Purpose::Deployment);
            let asked = headers(tracked.span());
            let recipe = tracing::debug_span!(parent: tracked.span(), "recipe");
            drop(recipe);
            tracked.note_error("a node was away");
            tracked.update(TransferProgress {
                state: "running".into(),
                bytes_total: 100,
                bytes_done: 100,
                bytes_local: 10,
                bytes_by_peer: (0..50).map(|peer| (format!("peer-{peer:02}"), peer)).collect(),
                ..TransferProgress::default()
            });
            tracked.done();
            drop(transfers.start("lost:1".into(), Purpose::Fetch));
            asked
        });
        let spans = collector.0.lock();
        let find = |what: &str| {
            let has = |span: &&SpanData| {
                span.attributes
                    .iter()
                    .any(|one| one.key.as_str() == "what" && one.value.as_str() == what)
            };
            spans.iter().find(has).unwrap_or_else(|| panic!("no {what} in {spans:?}"))
        };
        let span = find("team/app:v1");
        assert_eq!(span.name, "transfer");
        assert_eq!(number(span, "shoal.bytes.total"), Some(100));
        assert_eq!(number(span, "shoal.bytes.local"), Some(10));
        assert_eq!(number(span, "shoal.bytes.peers"), Some((0..50).sum()));
        assert_eq!(span.status, Status::Unset);
        assert_eq!(span.events.len(), 1, "{span:?}");
        let peers = span.attributes.iter().find(|one| one.key.as_str() == "shoal.peers").unwrap();
        let Value::Array(Array::String(peers)) = &peers.value else { panic!("{peers:?}") };
        assert_eq!((peers.len(), peers[0].as_str()), (SENDERS_MAX, "peer-49=49"));
        let recipe = spans.iter().find(|span| span.name == "recipe").unwrap();
        assert_eq!(recipe.parent_span_id, span.span_context.span_id());
        // Nodes are told of it.
        let parent = asked["traceparent"].to_str().unwrap();
        let (trace, id) = (span.span_context.trace_id(), span.span_context.span_id());
        assert!(parent.starts_with(&format!("00-{trace}-{id}-")), "{parent}");
        assert!(matches!(find("lost:1").status, Status::Error { .. }), "{spans:?}");
    }

    #[test]
    fn without_a_collector_nobody_is_told_of_anything() {
        assert!(headers(&Span::current()).is_empty());
        let transfers = Transfers::new(AgentMetrics::default(), Default::default());
        let tracked = transfers.start("a:1".into(), Purpose::Fetch);
        assert!(headers(tracked.span()).is_empty());
        assert_eq!(tracked.done().state, "done");
    }
}
