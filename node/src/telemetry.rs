//! What a node says of its own work: lines on standard error, and traces for OpenTelemetry.
//!
//! Traces are an option (`[traces] endpoint`). Each request is a span, with one below it for each
//! command, linearizable read and use of storage that it waited for; a caller's `traceparent` is
//! their parent (W3C Trace Context), and the access log's `trace_id` is theirs.
//!
//! Invariants: spans wait in a bounded queue, and what does not fit is dropped: no request waits
//! for a collector, whether it is slow or away. Non-goals: metrics (they are Prometheus') and logs
//! over OTLP.

use std::io::IsTerminal as _;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Status, TraceContextExt, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::{Metadata, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{FilterExt, LevelFilter, ParseError, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{Config, Traces};

/// For one batch of spans to reach the collector.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// For the last batches, when the node stops.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Spans of these crates are exported.
const OWN_CRATES: &str = "shoal_";

#[derive(Debug, thiserror::Error)]
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
    /// Installs it for the whole process. Call it once, outside of a runtime's workers.
    ///
    /// # Errors
    /// Where a setting cannot be followed.
    pub fn install(config: &Config) -> Result<Self, Error> {
        let filter = EnvFilter::try_from_default_env()
            .or_else(|_| EnvFilter::try_new(&config.log.filter))?;
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(std::io::stderr().is_terminal())
            // A log on a full disk loses lines; complaining about that on the same stream panics.
            .log_internal_errors(false)
            .with_writer(std::io::stderr);
        let lines = match config.log.format.as_str() {
            "json" => lines.json().flatten_event(true).boxed(),
            _ => lines.boxed(),
        };
        let provider = match &config.traces {
            Traces { endpoint: Some(endpoint), sample_ratio } => {
                Some(provider(endpoint, *sample_ratio, &config.node.name)?)
            }
            Traces { endpoint: None, .. } => None,
        };
        let traces = provider.as_ref().map(|provider| {
            let own = filter_fn(|what: &Metadata| {
                what.is_span() && what.target().starts_with(OWN_CRATES)
            });
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("shoal-node"))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_filter(own.and(LevelFilter::DEBUG))
        });
        tracing_subscriber::registry().with(lines.with_filter(filter)).with(traces).init();
        Ok(Self { provider })
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider {
            // A collector that is away must not keep a node from ending.
            let _ = provider.shutdown_with_timeout(FLUSH_TIMEOUT);
        }
    }
}

fn provider(
    endpoint: &str,
    sample_ratio: f64,
    node: &str,
) -> Result<SdkTracerProvider, ExporterBuildError> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()?;
    let resource = Resource::builder()
        .with_service_name("shoal-node")
        .with_attribute(KeyValue::new("service.instance.id", node.to_owned()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sample_ratio)));
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
    Ok(provider.with_sampler(sampler).with_resource(resource).build())
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// Makes the trace that a request's headers name the parent of `span`; the trace's id, if there
/// is one.
pub fn adopt(span: &Span, headers: &HeaderMap) -> Option<String> {
    let named =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
    let named_id = id(&named);
    // Fails where no layer takes spans.
    let _ = span.set_parent(named);
    id(&span.context()).or(named_id)
}

/// Names and describes a request's span as the semantic conventions for HTTP servers say.
pub fn describe(span: &Span, method: &Method, route: Option<&str>, path: &str) {
    if !span.context().span().is_recording() {
        return;
    }
    span.context().span().update_name(format!("{method} {}", route.unwrap_or_default()));
    span.set_attribute("http.request.method", method.to_string());
    span.set_attribute("http.route", route.unwrap_or_default().to_owned());
    span.set_attribute("url.path", path.to_owned());
}

/// Notes how a request was answered.
pub fn answered(span: &Span, status: StatusCode) {
    span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.set_status(Status::error(""));
    }
}

fn id(context: &Context) -> Option<String> {
    let span = context.span();
    let context = span.span_context();
    context.is_valid().then(|| context.trace_id().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_taken_over_only_where_it_is_well_formed() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", text.parse().unwrap());
            adopt(&Span::none(), &headers)
        };
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(of(&format!("00-{trace}-00f067aa0ba902b7-01")).as_deref(), Some(trace));
        for bad in ["", "00", "00-xyz-1-01", &format!("00-{}-1-01", "0".repeat(32)), "01-"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
