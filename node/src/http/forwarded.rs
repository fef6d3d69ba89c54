//! Where a request comes from that came through proxies (`X-Forwarded-For`).
//!
//! Each proxy writes behind what is there whom it heard from. So the list is read from its end, and
//! only as far as those who wrote it are trusted: the first address that is no trusted proxy is
//! the client, whatever stands before it. Invariant: of a peer that is not trusted, nothing is
//! believed. Lock-out, rates, sessions, the audit trail and the access log all go by the result.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use ipnet::IpNet;

use crate::state::App;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Addresses that are looked at; whoever writes more hides behind its last proxy.
const HOPS_MAX: usize = 32;

/// The middleware: from here on the client is who it really is.
pub async fn see_through(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let trusted = &app.config.http.trusted_proxies;
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0);
    if let Some(peer) = peer.filter(|_| !trusted.is_empty()) {
        let client = client_behind(peer.ip(), request.headers(), trusted);
        if client != peer.ip().to_canonical() {
            // Its port is not told.
            request.extensions_mut().insert(ConnectInfo(SocketAddr::new(client, 0)));
        }
    }
    next.run(request).await
}

fn client_behind(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    let values: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
    let hops = values.iter().rev().flat_map(|value| value.to_str().unwrap_or("?").rsplit(','));
    for hop in hops.take(HOPS_MAX) {
        if !is_trusted(&client) {
            break;
        }
        // What cannot be read was not written by a proxy that is to be trusted with it.
        let Some(address) = address(hop.trim()) else { break };
        client = address;
    }
    client
}

/// What `fuzz` asks of it: a stranger is who it is, and behind a proxy is whom the header names, or the
/// proxy itself.
pub fn check_forwarded(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let Ok(trusted) = "10.0.0.0/8".parse::<IpNet>() else { return };
    let headers = HeaderMap::from_iter([(FORWARDED_FOR, value)]);
    let (stranger, proxy) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([10, 0, 0, 1]));
    assert_eq!(client_behind(stranger, &headers, &[trusted]), stranger);
    let client = client_behind(proxy, &headers, &[trusted]);
    let text = String::from_utf8_lossy(bytes);
    assert!(client == proxy || text.split(',').any(|hop| address(hop.trim()) == Some(client)));
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = || text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare().or_else(with_port).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, lines: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, line.parse().unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        client_behind(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn the_rightmost_address_that_is_no_trusted_proxy_is_the_client() {
        for (peer, lines, expected) in [
            // Nobody else is believed.
            ("203.0.113.5", &["192.0.2.1"][..], "203.0.113.5"),
            ("10.0.0.1", &[][..], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.1"][..], "192.0.2.1"),
            ("::ffff:10.0.0.1", &["::ffff:192.0.2.1"][..], "192.0.2.1"),
            // What stands before it was written by the client.
            ("10.0.0.1", &["1.1.1.1, 192.0.2.1"][..], "192.0.2.1"),
            ("10.0.0.1", &["1.1.1.1", "192.0.2.1,10.0.0.2"][..], "192.0.2.1"),
            ("10.0.0.1", &["192.0.2.1", "1.1.1.1,10.0.0.2"][..], "1.1.1.1"),
            ("2001:db8::1", &["[2001:dead::1]:443 , 10.0.0.7:80"][..], "2001:dead::1"),
            // All trusted: the first of them. What cannot be read ends it.
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"][..], "10.0.0.3"),
            ("10.0.0.1", &["192.0.2.1, unknown"][..], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.1, unknown, 10.0.0.2"][..], "10.0.0.2"),
            ("10.0.0.1", &[""][..], "10.0.0.1"),
        ] {
            assert_eq!(client(peer, lines), expected, "{peer} {lines:?}");
        }
        let long = vec!["10.0.0.9"; 1000].join(",");
        assert_eq!(client("10.0.0.1", &[&long]), "10.0.0.9");
    }
}
