//! Gets files from addresses that users name.
//!
//! A node stands where its users may not: so hosts are on a list, addresses are public or in a
//! network that the operator has named, and both hold for each hop. Names are looked up once for
//! each connection, and what is connected to is what was looked at; the address of the connection is
//! looked at again before a byte of its answer is read.
//!
//! Invariants: no proxy, no cookie, no credentials; never from TLS to the open; redirects, waiting
//! and lengths are bounded.
//! Non-goal: what becomes of the bytes; see `disks`.

mod address;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED,
    LOCATION, RANGE,
};
use reqwest::{Response, StatusCode, Url};
use thiserror::Error;

pub use address::is_allowed;

use crate::config::Import;

const REDIRECTS_MAX: usize = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that sends nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const URL_BYTES_MAX: usize = 4096;

#[derive(Debug, Error)]
pub enum Error {
    #[error("imports are switched off: [import] allowed_hosts is empty")]
    Disabled,
    #[error("that is no address of a file: {0}")]
    Url(&'static str),
    #[error("the host {0} is not among those that may be imported from")]
    Host(String),
    #[error("the host {0} has no public address")]
    Address(String),
    #[error("it redirects more than {REDIRECTS_MAX} times, or out of TLS")]
    Redirect,
    #[error("the server answered {0}")]
    Status(StatusCode),
    #[error("the server does not say how long the file is")]
    Length,
    #[error("the file has {found} bytes, and at most {most} may be imported")]
    TooLong { found: u64, most: u64 },
    #[error("the file is another one than when the import began")]
    Changed,
    #[error("the server cannot be reached, or broke off")]
    Broken(#[from] reqwest::Error),
}

impl Error {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Broken(error) => !refused_by_name(error),
            Self::Status(status) => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            _ => false,
        }
    }
}

/// A client that connects to names of addresses that may be asked only; an address that stands in a
/// URL, and that of the connection, are its user's to look at.
pub fn guarded(networks: &[IpNet]) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .dns_resolver(Resolver { networks: networks.into() })
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE_MAX)
        // An address that was looked at is not kept for another name.
        .pool_max_idle_per_host(0)
}

/// That none of a name's addresses may be asked.
#[derive(Debug, Error)]
#[error("the name has no public address")]
struct NoPublicAddress;

/// Whether a [guarded](guarded) client connected nowhere because of what the name stands for.
pub fn refused_by_name(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.is::<NoPublicAddress>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// An answer whose body is the file from `start` on.
#[derive(Debug)]
pub struct Opened {
    pub response: Response,
    pub start: u64,
    /// Of the whole file.
    pub total_bytes: u64,
    pub validator: Option<String>,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Remote {
    client: reqwest::Client,
    settings: Arc<Import>,
}

impl Remote {
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn new(settings: Import) -> Result<Self, reqwest::Error> {
        let client = guarded(&settings.allowed_networks).build()?;
        Ok(Self { client, settings: Arc::new(settings) })
    }

    /// The address in `text`, where files may be got from.
    ///
    /// # Errors
    /// Where it is none, or not allowed.
    pub fn check(&self, text: &str) -> Result<Url, Error> {
        if self.settings.allowed_hosts.is_empty() {
            return Err(Error::Disabled);
        }
        if text.len() > URL_BYTES_MAX {
            return Err(Error::Url("it is too long"));
        }
        let url: Url = text.parse().map_err(|_| Error::Url("it begins with https://HOST/"))?;
        self.check_url(&url)?;
        Ok(url)
    }

    fn check_url(&self, url: &Url) -> Result<(), Error> {
        if !matches!(url.scheme(), "https" | "http") {
            return Err(Error::Url("it begins with https://"));
        }
        // It is kept where others may read it.
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::Url("it has a user name or password in it"));
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if !self.settings.allowed_hosts.iter().any(|allowed| is_host(allowed, &host)) {
            return Err(Error::Host(host));
        }
        // A name is looked at when it is looked up.
        match host.parse::<IpAddr>() {
            Ok(address) if !self.may_connect(address) => Err(Error::Address(host)),
            _ => Ok(()),
        }
    }

    fn may_connect(&self, address: IpAddr) -> bool {
        address::is_allowed(address, &self.settings.allowed_networks)
    }

    /// Asks for the file from `from` on; a server that does not do parts sends all of it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn open(&self, url: &Url, from: u64) -> Result<Opened, Error> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            self.check_url(&url)?;
            let mut request = self.client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = request.send().await?;
            let address = response.remote_addr().map(|address| address.ip());
            if !address.is_some_and(|address| self.may_connect(address)) {
                return Err(Error::Address(url.host_str().unwrap_or_default().to_owned()));
            }
            if response.status().is_redirection() {
                let location = text(response.headers(), &LOCATION).ok_or(Error::Redirect)?;
                let next = url.join(location).map_err(|_| Error::Redirect)?;
                if url.scheme() == "https" && next.scheme() != "https" {
                    return Err(Error::Redirect);
                }
                url = next;
                continue;
            }
            return self.opened(response);
        }
        Err(Error::Redirect)
    }

    fn opened(&self, response: Response) -> Result<Opened, Error> {
        let headers = response.headers();
        let (start, total_bytes) = match response.status() {
            StatusCode::OK => {
                let length = text(headers, &CONTENT_LENGTH).and_then(|text| text.parse().ok());
                (0, length.ok_or(Error::Length)?)
            }
            StatusCode::PARTIAL_CONTENT => {
                let range = text(headers, &CONTENT_RANGE).and_then(content_range);
                range.ok_or(Error::Length)?
            }
            status => return Err(Error::Status(status)),
        };
        let most = self.settings.max_bytes;
        if total_bytes > most {
            return Err(Error::TooLong { found: total_bytes, most });
        }
        let validator = text(headers, &ETAG).or_else(|| text(headers, &LAST_MODIFIED));
        let validator = validator.map(|text| text.chars().take(256).collect());
        Ok(Opened { start, total_bytes, validator, response })
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Start and whole length (RFC 9110, 14.4).
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, total.parse().ok()?))
}

/// Whether a pattern of the settings means the host: a name, `*.example`, or `*`.
pub fn is_host(allowed: &str, host: &str) -> bool {
    let allowed = allowed.to_ascii_lowercase();
    match allowed.strip_prefix("*.") {
        _ if allowed == "*" => true,
        Some(parent) => host.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.')),
        None => allowed == host,
    }
}

/// Looks names up, and forgets what may not be connected to.
#[derive(Debug, Clone)]
struct Resolver {
    networks: Arc<[IpNet]>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let networks = Arc::clone(&self.networks);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> =
                found.filter(|one| address::is_allowed(one.ip(), &networks)).collect();
            if allowed.is_empty() {
                return Err(NoPublicAddress.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(hosts: &[&str]) -> Remote {
        // Whoever was first has installed the same.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let allowed_hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        Remote::new(Import { allowed_hosts, ..Import::default() }).unwrap()
    }

    #[test]
    fn only_hosts_on_the_list_are_asked() {
        let some = remote(&["images.example", "*.mirror.example"]);
        for good in ["https://images.example/f", "https://a.mirror.example:8443/f?x=1"] {
            assert!(some.check(good).is_ok(), "{good}");
        }
        for bad in [
            "https://mirror.example/f",
            "https://evilmirror.example/f",
            "https://images.example.evil.example/f",
            "https://u:p@images.example/f",
            "ftp://images.example/f",
            "file:///etc/passwd",
            "images.example/f",
            "",
        ] {
            assert!(some.check(bad).is_err(), "{bad}");
        }
        assert!(matches!(remote(&[]).check("https://a.example/"), Err(Error::Disabled)));
    }

    #[test]
    fn an_address_in_any_spelling_is_looked_at() {
        let any = remote(&["*"]);
        for bad in [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://169.254.169.254/latest/meta-data/",
        ] {
            assert!(matches!(any.check(bad), Err(Error::Address(_))), "{bad}");
        }
        assert!(any.check("https://1.1.1.1/").is_ok());
    }

    #[tokio::test]
    async fn a_name_of_a_private_address_is_not_connected_to() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = format!("http://localhost:{port}/").parse().unwrap();
        let error = remote(&["localhost"]).open(&url, 0).await.unwrap_err();
        assert!(!error.is_retryable(), "{error:?}");
    }

    #[test]
    fn ranges_are_read_as_servers_write_them() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 10)));
        for odd in ["bytes */10", "bytes 5-9/*", "5-9/10", ""] {
            assert_eq!(content_range(odd), None, "{odd}");
        }
    }
}
