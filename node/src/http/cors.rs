//! Which web pages of other origins may call this node (the Fetch standard's CORS protocol).
//!
//! Credentials of the browser's own (cookies) are never allowed: pages bring a token.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use super::access::REQUEST_ID;
use crate::config::Cors;

/// How long a browser remembers the answer to a preflight.
const MAX_AGE: Duration = Duration::from_secs(600);
const ANY: &str = "*";

/// What pages may read of an answer: all that the registry and the REST API say in headers.
const EXPOSED: [HeaderName; 21] = [
    header::ACCEPT_RANGES,
    header::ALLOW,
    header::CONTENT_DISPOSITION,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::ETAG,
    header::LINK,
    header::LOCATION,
    header::RANGE,
    header::RETRY_AFTER,
    header::WARNING,
    header::WWW_AUTHENTICATE,
    REQUEST_ID,
    HeaderName::from_static("docker-content-digest"),
    HeaderName::from_static("docker-distribution-api-version"),
    HeaderName::from_static("docker-upload-uuid"),
    HeaderName::from_static("oci-chunk-min-length"),
    HeaderName::from_static("oci-filters-applied"),
    HeaderName::from_static("oci-namespace"),
    HeaderName::from_static("oci-subject"),
    HeaderName::from_static("oci-tag"),
];

/// `None` where no origin is allowed. The settings were checked when they were loaded.
pub fn layer(cors: &Cors) -> Option<CorsLayer> {
    if cors.allowed_origins.is_empty() {
        return None;
    }
    let origins = match parsed::<HeaderValue>(&cors.allowed_origins) {
        Some(list) => AllowOrigin::list(list),
        None => AllowOrigin::any(),
    };
    let methods = match parsed::<Method>(&cors.allowed_methods) {
        Some(list) => AllowMethods::list(list),
        None => AllowMethods::any(),
    };
    let headers = match parsed::<HeaderName>(&cors.allowed_headers) {
        Some(list) => AllowHeaders::list(list),
        // Browsers do not count `Authorization` among what `*` stands for.
        None => AllowHeaders::mirror_request(),
    };
    let layer = CorsLayer::new().allow_origin(origins).allow_methods(methods);
    Some(layer.allow_headers(headers).expose_headers(EXPOSED).max_age(MAX_AGE))
}

/// Each one parsed; `None` is any.
fn parsed<T: std::str::FromStr>(texts: &[String]) -> Option<Vec<T>> {
    if texts.iter().any(|text| text == ANY) {
        return None;
    }
    Some(texts.iter().filter_map(|text| text.parse().ok()).collect())
}

/// What is wrong with the settings, if anything.
pub fn check(cors: &Cors) -> Option<(&'static str, String)> {
    let bad = |texts: &[String], fits: fn(&str) -> bool| {
        texts.iter().find(|text| *text != ANY && !fits(text)).cloned()
    };
    // An origin is scheme, host and port: a slash at the end is the usual mistake.
    let origin = |text: &str| {
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        rest.is_some_and(|host| !host.is_empty() && !host.contains('/'))
    };
    if let Some(text) = bad(&cors.allowed_origins, origin) {
        return Some(("allowed_origins", format!("{text} is no origin like https://example.org")));
    }
    if let Some(text) = bad(&cors.allowed_methods, |text| text.parse::<Method>().is_ok()) {
        return Some(("allowed_methods", format!("{text} is no method")));
    }
    let text = bad(&cors.allowed_headers, |text| text.parse::<HeaderName>().is_ok());
    text.map(|text| ("allowed_headers", format!("{text} is no header")))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::http::Request;
    use axum::routing::get;
    use tower_service::Service;

    use super::*;

    #[tokio::test]
    async fn a_page_may_bring_a_token_where_any_header_is_allowed() {
        let cors = Cors { allowed_origins: vec![ANY.to_owned()], ..Cors::default() };
        let cors = layer(&cors).unwrap();
        let mut router: Router = Router::new().route("/", get(|| async {})).layer(cors);
        let request = Request::options("/")
            .header(header::ORIGIN, "https://page.example")
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "GET")
            .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization,x-other")
            .body(Body::empty())
            .unwrap();
        let answer = router.call(request).await.unwrap();
        assert_eq!(answer.headers()[header::ACCESS_CONTROL_ALLOW_HEADERS], "authorization,x-other");
        // Whose page it is, it reads what the registry says in headers.
        let request = Request::get("/").header(header::ORIGIN, "https://page.example");
        let answer = router.call(request.body(Body::empty()).unwrap()).await.unwrap();
        let exposed = answer.headers()[header::ACCESS_CONTROL_EXPOSE_HEADERS].to_str().unwrap();
        let exposed: Vec<&str> = exposed.split(',').map(str::trim).collect();
        for name in ["docker-content-digest", "link", "oci-filters-applied", "retry-after"] {
            assert!(exposed.contains(&name), "{name} is not among {exposed:?}");
        }
    }
}
