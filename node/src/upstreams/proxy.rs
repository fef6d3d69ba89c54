//! The proxy by which an upstream is reached, where its settings name one; the environment's
//! variables count for nothing here.
//!
//! Invariant: a proxy looks names up itself, so that it cannot be seen here what they stand for. It
//! is asked for the upstream's own host, and for others only by names that the operator listed.

use std::path::Path;

use reqwest::{Proxy, Url};
use zeroize::Zeroizing;

use super::client::ClientError;
use crate::config::Upstream;
use crate::remote::is_host;

const PASSWORD_BYTES_MAX: u64 = 64 * 1024;

/// The proxy of `settings`, with its login.
///
/// # Errors
/// Where the password cannot be read.
pub fn of(settings: &Upstream) -> Result<Option<Proxy>, ClientError> {
    let Some(url) = &settings.proxy else { return Ok(None) };
    let url: Url = url.parse().map_err(|_| ClientError::Url)?;
    let proxy = Proxy::all(url)?;
    let Some(path) = &settings.proxy_password_file else { return Ok(Some(proxy)) };
    let password = password(path)?;
    let password = password.trim_end_matches(['\r', '\n']);
    Ok(Some(proxy.basic_auth(&settings.proxy_username, password)))
}

fn password(path: &Path) -> Result<Zeroizing<String>, ClientError> {
    let unread = |source| ClientError::Password { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(unread)?.len() > PASSWORD_BYTES_MAX {
        return Err(unread(std::io::ErrorKind::FileTooLarge.into()));
    }
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(unread)
}

/// Whether it may be asked for `host`, which is not the upstream's own.
pub fn may_ask(settings: &Upstream, host: &str) -> bool {
    settings.proxy_hosts.iter().any(|allowed| is_host(allowed, host))
}
