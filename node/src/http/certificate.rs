//! The HTTPS certificate: the operator's own, read again when its files change, or the cluster's.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use axum_server::tls_rustls::RustlsConfig;
use tracing::{info, warn};

use crate::config::Config;
use crate::state::Keys;

/// How often the operator's files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Loads the certificate that `config` asks for.
///
/// # Errors
/// Where the operator's files cannot be used.
pub async fn load(config: &Config, keys: &Keys) -> Result<RustlsConfig> {
    if let Some((certificate, key)) = files(config) {
        let loaded = RustlsConfig::from_pem_file(&certificate, &key).await;
        return loaded
            .with_context(|| format!("{} and its key cannot be used", certificate.display()));
    }
    let made = keys.authority.issue_http(&names(config))?;
    let (chain, key) = (made.chain_pem.into_bytes(), made.key_pem.as_bytes().to_vec());
    Ok(RustlsConfig::from_pem(chain, key).await?)
}

fn files(config: &Config) -> Option<(PathBuf, PathBuf)> {
    Some((config.http.certificate_file.clone()?, config.http.key_file.clone()?))
}

/// Every name and address that this node is reached by.
fn names(config: &Config) -> Vec<String> {
    let http = &config.http;
    let mut names = http.names.clone();
    let url = config.api_url();
    let authority =
        url.split("://").last().unwrap_or_default().split('/').next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    names.push(host.trim_matches(['[', ']']).to_owned());
    if !http.listen.ip().is_unspecified() {
        names.push(http.listen.ip().to_string());
    }
    names.extend(["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()]);
    names.sort_unstable();
    names.dedup();
    names.retain(|name| !name.is_empty());
    names
}

/// Takes the operator's certificate over whenever its files change, without a stop: connections
/// that are open stay as they are. Files that cannot be used are said to be so, and the old
/// certificate stays. Returns at once where the certificate is the cluster's.
pub async fn follow(config: Config, tls: RustlsConfig) {
    let Some((certificate, key)) = files(&config) else { return };
    let mut known = state(&certificate, &key);
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let now = state(&certificate, &key);
        if now == known {
            continue;
        }
        match tls.reload_from_pem_file(&certificate, &key).await {
            Ok(()) => info!(certificate = %certificate.display(), "a new certificate is served"),
            // One of the two may not be there yet; the next change is looked at again.
            Err(error) => warn!(%error, "the changed certificate or key cannot be used"),
        }
        known = now;
    }
}

/// What changes when a file does, for both files.
fn state(certificate: &Path, key: &Path) -> [Option<(SystemTime, u64)>; 2] {
    [certificate, key].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}
