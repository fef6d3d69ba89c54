//! Traces as a collector of OpenTelemetry gets them.

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::program::Program;
use super::v2::sha256;

const LAYER: &[u8] = b"a layer that is traced";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Takes what is exported at `/v1/traces`; gives its address.
async fn collector() -> Result<(String, mpsc::UnboundedReceiver<ExportTraceServiceRequest>)> {
    let (taken, given) = mpsc::unbounded_channel();
    let take = post(async move |body: Bytes| {
        let _ = ExportTraceServiceRequest::decode(body).map(|request| taken.send(request));
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/v1/traces", listener.local_addr()?);
    let router = Router::new().route("/v1/traces", take);
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok((url, given))
}

fn text<'a>(span: &'a Span, key: &str) -> Option<&'a str> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_each_request_with_what_it_waited_for() -> Result<()> {
    let (endpoint, mut exported) = collector().await?;
    let folder = tempfile::tempdir()?;
    let settings = format!("[traces]\nendpoint = \"{endpoint}\"\n");
    let program = Program::start(folder.path(), &settings).await?;
    let Program { url, password, http, .. } = &program;
    let digest = sha256(LAYER);
    let push = http.post(format!("{url}/v2/team/app/blobs/uploads/?digest={digest}")).body(LAYER);
    let push = push.header("traceparent", format!("00-{TRACE}-{PARENT}-01"));
    push.basic_auth("admin", Some(password)).send().await?.error_for_status()?;
    let unsampled = http.get(format!("{url}/health"));
    let unsampled = unsampled.header("traceparent", format!("00-{}-{PARENT}-00", "5".repeat(32)));
    unsampled.send().await?.error_for_status()?;
    program.terminate()?;
    program.ended().await?;

    let mut spans = Vec::new();
    while let Ok(request) = exported.try_recv() {
        for resource in request.resource_spans {
            let attributes = resource.resource.context("a resource")?.attributes;
            ensure!(attributes.iter().any(|each| each.key == "service.instance.id"));
            spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    let trace: Vec<_> = spans.iter().filter(|span| hex::encode(&span.trace_id) == TRACE).collect();
    let root = trace.iter().find(|span| hex::encode(&span.parent_span_id) == PARENT);
    let root = root.with_context(|| format!("no request below its caller: {spans:?}"))?;
    ensure!(root.name.starts_with("POST /v2/"), "{root:?}");
    ensure!(text(root, "http.request.method") == Some("POST"), "{root:?}");
    ensure!(text(root, "url.path") == Some("/v2/team/app/blobs/uploads/"), "{root:?}");
    let failed = root.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error);
    ensure!(!failed, "{root:?}");
    for name in ["metadata.propose", "metadata.read", "storage.put"] {
        let found = trace.iter().find(|span| span.name == name);
        let found = found.with_context(|| format!("no {name} in {trace:?}"))?;
        ensure!(!found.parent_span_id.is_empty(), "{found:?}");
    }
    ensure!(!spans.iter().any(|span| hex::encode(&span.trace_id) == "5".repeat(32)), "{spans:?}");
    Ok(())
}
