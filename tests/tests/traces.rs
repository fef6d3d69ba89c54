//! A deployment's traces as a collector of OpenTelemetry gets them from hosts and nodes.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_tests::cluster::{Cluster, Storage};
use shoal_tests::host::{Host, Network};

const AGENTS: usize = 2;
const DISK_BYTES: usize = 8 << 20;
const COLLECTOR_PORT: u16 = 4318;
const DEADLINE: Duration = Duration::from_secs(60);

/// One span, and the program that sent it.
#[derive(Debug)]
struct Sent {
    service: String,
    instance: String,
    span: Span,
}

#[test]
fn a_collector_gets_a_transfer_with_what_it_asked_and_what_the_node_did_for_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(AGENTS)?;
    let storage = Storage::Folder(folder.path().join("objects"));
    let mut cluster = Cluster::start(&network, folder.path(), &storage, 1, AGENTS)?;
    let exported = collector(network.hub())?;
    let outcome = deploy_traced(folder.path(), network.hub().address(), &mut cluster, &exported);
    outcome.with_context(|| {
        let logs = cluster.logs();
        logs.iter().map(|(name, log)| format!("--- {name}\n{log}\n")).collect::<String>()
    })
}

/// Takes what is exported to `host`.
fn collector(host: &Host) -> Result<Receiver<ExportTraceServiceRequest>> {
    let (taken, given) = channel();
    let (listening, listens) = channel();
    let host = host.clone();
    thread::spawn(move || {
        let listener = host.enter().and_then(|()| {
            let listener = TcpListener::bind((host.address(), COLLECTOR_PORT))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => return listening.send(Err(error)).unwrap_or_default(),
        };
        let _ = listening.send(Ok(()));
        let take = post(async move |body: Bytes| {
            let _ = ExportTraceServiceRequest::decode(body).map(|request| taken.send(request));
        });
        let router = Router::new().route("/v1/traces", take);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            // Ends with the process.
            let _ = axum::serve(listener, router).await;
        });
    });
    listens.recv_timeout(DEADLINE).context("no collector")??;
    Ok(given)
}

fn deploy_traced(
    folder: &Path,
    collector: &str,
    cluster: &mut Cluster,
    exported: &Receiver<ExportTraceServiceRequest>,
) -> Result<()> {
    let settings = format!(
        "[traces]\nendpoint = \"http://{collector}:{COLLECTOR_PORT}/v1/traces\"\n\n[limits]\n"
    );
    for agent in &mut cluster.agents {
        agent.process()?.stop()?;
        agent.edit("[limits]\n", &settings)?;
    }
    let node = &mut cluster.nodes[0];
    node.process()?.stop()?;
    node.edit("[limits]\n", &settings)?;
    node.start()?;
    for agent in &mut cluster.agents {
        agent.start()?;
    }
    let disk = folder.join("disk.raw");
    let mut content = vec![0; DISK_BYTES];
    StdRng::seed_from_u64(5).fill(&mut content[..]);
    fs::write(&disk, content)?;
    let path = disk.to_string_lossy();
    cluster.operator.run(&["image", "upload", &path, "vm/traced:1", "--version", "1"])?;
    let deployed = cluster.operator.json(&["deploy", "vm/traced:1", "--all", "--watch"])?;
    ensure!(deployed["state"] == "done", "the deployment ended as {deployed}");
    // What ends sends the spans that it still has.
    for agent in &mut cluster.agents {
        agent.process()?.stop()?;
    }
    cluster.nodes[0].process()?.stop()?;

    let spans = spans(exported);
    let transfers: Vec<&Sent> = spans.iter().filter(|sent| sent.span.name == "transfer").collect();
    let hosts: BTreeSet<&str> = transfers.iter().map(|sent| sent.instance.as_str()).collect();
    ensure!(hosts == BTreeSet::from(["agent-1", "agent-2"]), "{transfers:?}");
    for transfer in transfers {
        let Sent { service, span, .. } = transfer;
        ensure!(service == "shoal-agent", "{transfer:?}");
        let what = text(&span.attributes, "what").unwrap_or_default();
        ensure!(what.starts_with("vm/traced"), "{transfer:?}");
        let senders = ["shoal.bytes.peers", "shoal.bytes.nodes"];
        let came: i64 = senders.iter().filter_map(|key| number(&span.attributes, key)).sum();
        ensure!(came >= DISK_BYTES as i64, "{transfer:?}");
        let below = |parent: &Span, name: &str| {
            let found = spans.iter().find(|sent| {
                sent.span.trace_id == parent.trace_id
                    && sent.span.parent_span_id == parent.span_id
                    && sent.span.name.starts_with(name)
            });
            found.with_context(|| format!("no {name} below {parent:?}"))
        };
        below(span, "recipe")?;
        // The node goes on with the host's trace.
        let asked = below(span, "node.request")?;
        let answered = below(&asked.span, "POST /api/v1/agents/self/resolve")?;
        ensure!(answered.service == "shoal-node" && answered.instance == "node-1", "{answered:?}");
        below(&answered.span, "metadata.read")?;
    }
    Ok(())
}

/// All that have come so far.
fn spans(exported: &Receiver<ExportTraceServiceRequest>) -> Vec<Sent> {
    let mut spans = Vec::new();
    for resource in exported.try_iter().flat_map(|request| request.resource_spans) {
        let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
        let of = |key| text(&attributes, key).unwrap_or_default().to_owned();
        let (service, instance) = (of("service.name"), of("service.instance.id"));
        let all = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.extend(all.map(|span| Sent {
            service: service.clone(),
            instance: instance.clone(),
            span,
        }));
    }
    spans
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    attribute.value.as_ref().and_then(|AnyValue { value }| value.as_ref())
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    match value(attributes, key)? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn number(attributes: &[KeyValue], key: &str) -> Option<i64> {
    match value(attributes, key)? {
        Value::IntValue(number) => Some(*number),
        _ => None,
    }
}
