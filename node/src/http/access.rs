//! What every request passes through: its id, its metrics, and its line in the access log.
//!
//! The line is written when the answer has been sent whole, or was broken off, and counts the bytes
//! that were taken from it; or where the client left before there was one, which is a status of
//! [`CLIENT_LEFT`]. With `log.format = "json"` it is one flat JSON object; its target is
//! [`TARGET`], by which it can be filtered (`log.filter = "info,shoal::access=off"`).

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;
use shoal_metadata::AuditResult;
use tracing::{Instrument, Span, info, info_span};
use uuid::Uuid;

use super::noted::{self, Noted};
use crate::metrics::RequestLabels;
use crate::state::App;
use crate::telemetry;

const TARGET: &str = "shoal::access";
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A request id of a client's is taken over if it is no longer than this.
const REQUEST_ID_BYTES_MAX: usize = 64;
/// No answer's: nginx has made it known.
const CLIENT_LEFT: u16 = 499;
/// Of a path, this much is logged.
const PATH_BYTES_MAX: usize = 512;

/// The middleware.
pub async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let own = || HeaderValue::from_str(&Uuid::now_v7().simple().to_string());
    let given = request.headers().get(&REQUEST_ID);
    let given = given.filter(|id| id.len() <= REQUEST_ID_BYTES_MAX && id.to_str().is_ok());
    let id = given.cloned().map_or_else(own, Ok).unwrap_or(HeaderValue::from_static("none"));
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    let noted = Noted::new(id.to_str().unwrap_or_default(), client.map(|client| client.ip()));
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let path: String = request.uri().path().chars().take(PATH_BYTES_MAX).collect();
    let span = info_span!("request", id = noted.id, method = %request.method(), path, otel.kind = "server");
    let trace_id = telemetry::adopt(&span, request.headers()).unwrap_or_else(|| noted.id.clone());
    telemetry::describe(&span, request.method(), route.as_deref(), &path);
    let mut line = Line {
        app: app.clone(),
        labels: RequestLabels::new(request.method().as_str(), request.uri().path()),
        started: Instant::now(),
        trace_id,
        noted: Arc::clone(&noted),
        client,
        method: request.method().clone(),
        path,
        route,
        span: span.clone(),
        status: None,
        length: None,
        sent: 0,
        whole: false,
    };
    let under_way = UnderWay::begin(&app);
    let mut response = noted::within(Arc::clone(&noted), next.run(request).instrument(span)).await;
    let status = response.status();
    line.answered(status);
    // What somebody may not do is as telling as what is done; who is nobody could fill the trail.
    if status == StatusCode::FORBIDDEN && noted.user.get().is_some() {
        let forbidden = AuditResult::Refused("forbidden".to_owned());
        let source = app.services.audit.source_of(&noted);
        app.services.audit.note_as(source, "request.deny", line.target(), forbidden);
    }
    let length = response.headers().get(header::CONTENT_LENGTH);
    line.length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let is_download = noted.download.get().is_some() && status.is_success();
    let downloaded = is_download.then(|| app.metrics.download_bytes.clone());
    response.headers_mut().insert(REQUEST_ID, id);
    response.map(|inner| Body::new(Logged { inner, downloaded, line, _under_way: under_way }))
}

/// A request until its answer has been sent.
struct UnderWay(App);

impl UnderWay {
    fn begin(app: &App) -> Self {
        app.metrics.requests_under_way.inc();
        Self(app.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.metrics.requests_under_way.dec();
    }
}

/// What `fuzz` asks of it: an id is 32 digits, whatever a header holds.
pub fn check_trace_parent(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", value);
    let trace = telemetry::adopt(&Span::none(), &headers);
    assert!(trace.is_none_or(|id| id.len() == 32));
}

/// What the line will say. It is written when this is dropped.
struct Line {
    app: App,
    labels: RequestLabels,
    started: Instant,
    trace_id: String,
    noted: Arc<Noted>,
    client: Option<SocketAddr>,
    method: Method,
    path: String,
    route: Option<String>,
    /// `None` until there is an answer.
    status: Option<StatusCode>,
    /// Lasts until the answer has been sent.
    span: Span,
    /// The answer's Content-Length.
    length: Option<u64>,
    sent: u64,
    /// Whether nothing of the answer is missing.
    whole: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.status.is_none()
            && let Ok(left) = StatusCode::from_u16(CLIENT_LEFT)
        {
            self.answered(left);
        }
        self.write();
    }
}

impl Line {
    /// Counts the answer.
    fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
        telemetry::answered(&self.span, status);
        let seconds = self.started.elapsed().as_secs_f64();
        self.app.metrics.answered(self.labels, status.as_u16(), seconds);
    }

    /// What was asked for, as the audit trail calls it: nothing of a path that its sender may choose
    /// freely.
    fn target(&self) -> String {
        let Self { method, noted, .. } = self;
        let route = self.route.as_deref().unwrap_or("unknown");
        match noted.image_name.get() {
            Some(name) if route.starts_with("/v2") => format!("{method} /v2/{name}"),
            _ if route.starts_with("/v2") => format!("{method} /v2"),
            _ => format!("{method} {route}"),
        }
    }

    fn write(&self) {
        let text = |value: Option<&String>| value.cloned().unwrap_or_default();
        let http_status = self.status.map_or(CLIENT_LEFT, |status| status.as_u16());
        let status = match http_status {
            CLIENT_LEFT => "aborted",
            400.. => "failure",
            _ if self.whole => "success",
            _ => "aborted",
        };
        let action = self.noted.action.get().cloned();
        let action = action.unwrap_or_else(|| action_of(&self.method, self.route.as_deref()));
        info!(
            target: TARGET,
            service = "shoal-node",
            trace_id = self.trace_id,
            request_id = self.noted.id,
            user_id = text(self.noted.user.get()),
            action,
            image_id = self.noted.image_id.get().map(ToString::to_string).unwrap_or_default(),
            image_name = self.noted.image(),
            client_ip = self.client.map(|client| client.ip().to_string()).unwrap_or_default(),
            duration_ms = self.started.elapsed().as_millis() as u64,
            status,
            http_status,
            method = %self.method,
            path = self.path,
            bytes_sent = self.sent,
            "answered"
        );
    }
}

/// What is done, out of the method and the fixed parts of a route: `create_images`.
fn action_of(method: &Method, route: Option<&str>) -> String {
    let verb = match *method {
        Method::GET | Method::HEAD => "read",
        Method::POST => "create",
        Method::PUT | Method::PATCH => "write",
        Method::DELETE => "delete",
        _ => "other",
    };
    let route = route.unwrap_or("unknown");
    let route = route.strip_prefix("/api/v1/").unwrap_or(route.trim_start_matches('/'));
    let fixed = route.split('/').filter(|part| !part.is_empty() && !part.starts_with('{'));
    fixed.fold(verb.to_owned(), |action, part| format!("{action}_{}", part.replace('-', "_")))
}

/// A body that ends with the line when it is done with.
struct Logged {
    inner: Body,
    /// Counts what is sent, where that is an image's content.
    downloaded: Option<Counter>,
    line: Line,
    _under_way: UnderWay,
}

impl HttpBody for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let length = data.len() as u64;
            self.line.sent += length;
            if let Some(counter) = &self.downloaded {
                counter.inc_by(length);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        // A HEAD takes nothing of its body. What has no known length and was not seen to end was
        // left by the client.
        self.line.whole = self.line.method == Method::HEAD
            || self.inner.is_end_stream()
            || self.line.length.is_some_and(|length| self.line.sent >= length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_what_is_done_to_what() {
        let action = |method, route| action_of(&method, Some(route));
        assert_eq!(action(Method::GET, "/api/v1/images/{image}"), "read_images");
        assert_eq!(action(Method::POST, "/api/v1/join-tokens"), "create_join_tokens");
        assert_eq!(action(Method::GET, "/health"), "read_health");
        assert_eq!(action_of(&Method::DELETE, None), "delete_unknown");
    }
}
