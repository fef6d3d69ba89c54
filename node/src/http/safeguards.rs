//! What every answer tells a browser to leave alone: guessing what a body is, saying elsewhere where
//! it has been, showing it in another page's frame; and coming back without TLS.
//!
//! The last (HSTS, RFC 6797) holds for a name, at all its ports and for as long as it was told, where
//! others than this node may answer. So it is told only where this node is what answers at the name's
//! own port of HTTPS, with a certificate that is not the cluster's.
//! Non-goal: what a page may load; see `api::document::page`.

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;

use super::InTheClear;
use crate::config::Config;
use crate::state::App;

const ALWAYS: [(HeaderName, HeaderValue); 3] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
];
/// A year.
const STRICT: HeaderValue = HeaderValue::from_static("max-age=31536000");
const HTTPS_PORT: u16 = 443;

/// The middleware. What an answer says itself stays.
pub async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let encrypted = request.extensions().get::<InTheClear>().is_none();
    let strict = encrypted && has_own_certificate(&app.config) && is_named(&request);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in ALWAYS {
        headers.entry(name).or_insert(value);
    }
    if strict {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, STRICT);
    }
    response
}

fn has_own_certificate(config: &Config) -> bool {
    config.http.certificate_file.is_some() || !config.acme.domains.is_empty()
}

/// Whether it was sent to a name, and to that name's port of HTTPS.
fn is_named(request: &Request) -> bool {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    // HTTP/2 has the host in its `:authority`.
    let host = host.or(request.uri().authority().map(Authority::as_str));
    host.and_then(|host| host.parse::<Authority>().ok())
        .is_some_and(|authority| is_https_of_name(&authority))
}

fn is_https_of_name(authority: &Authority) -> bool {
    let host = authority.host();
    let is_name =
        host.contains('.') && !host.starts_with('[') && host.parse::<std::net::IpAddr>().is_err();
    is_name && authority.port_u16().is_none_or(|port| port == HTTPS_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_bound_to_https_only_where_its_own_port_is_asked() {
        let is_bound = |text: &str| is_https_of_name(&text.parse().unwrap());
        for bound in ["shoal.example", "shoal.example:443"] {
            assert!(is_bound(bound), "{bound}");
        }
        for free in
            ["shoal.example:5000", "10.0.0.1", "10.0.0.1:443", "[::1]", "[::1]:443", "localhost"]
        {
            assert!(!is_bound(free), "{free}");
        }
        let own = |text: &str| has_own_certificate(&Config::parse(text).unwrap());
        assert!(!own(""));
        assert!(own("[http]\ncertificate_file = \"a\"\nkey_file = \"b\"\n"));
    }
}
