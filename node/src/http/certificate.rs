//! The HTTPS certificates: the cluster's own for its members, and for everyone else the operator's,
//! where there is one, read again when its files change.
//!
//! Members say in the handshake that they are some (see `identity::is_member`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use axum_server::tls_rustls::RustlsConfig;
use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use shoal_p2p::identity::is_member;
use tracing::{info, warn};

use crate::config::Config;
use crate::state::Keys;

/// How often the operator's files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What is served to whom. Clones are the same.
#[derive(Debug, Clone)]
pub struct Certificates {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    provider: Arc<CryptoProvider>,
    cluster: Arc<CertifiedKey>,
    operator: Option<Operator>,
}

#[derive(Debug)]
struct Operator {
    certificate: PathBuf,
    key: PathBuf,
    served: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(match &self.inner.operator {
            Some(operator) if !is_member(&hello) => Arc::clone(&operator.served.read()),
            _ => Arc::clone(&self.inner.cluster),
        })
    }
}

impl Certificates {
    /// Makes the cluster's, and loads the operator's.
    ///
    /// # Errors
    /// Where the operator's files cannot be used.
    pub fn load(config: &Config, keys: &Keys) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let made = keys.authority.issue_http(&names(config))?;
        let cluster = certified(made.chain_pem.as_bytes(), made.key_pem.as_bytes(), &provider)?;
        let operator = match files(config) {
            None => None,
            Some((certificate, key)) => {
                let served = RwLock::new(read(&certificate, &key, &provider)?);
                Some(Operator { certificate, key, served })
            }
        };
        Ok(Self { inner: Arc::new(Inner { provider, cluster, operator }) })
    }

    /// TLS for the listener.
    ///
    /// # Errors
    /// Where the library cannot be set up.
    pub fn tls(&self) -> Result<RustlsConfig> {
        let provider = Arc::clone(&self.inner.provider);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(RustlsConfig::from_config(Arc::new(config)))
    }

    /// Takes the operator's certificate over whenever its files change, without a stop: connections
    /// that are open stay as they are. Files that cannot be used are said to be so, and the old
    /// certificate stays. Returns at once where there is none.
    pub async fn follow(self) {
        let Some(operator) = &self.inner.operator else { return };
        let (certificate, key) = (&operator.certificate, &operator.key);
        let mut known = state(certificate, key);
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let now = state(certificate, key);
            if now == known {
                continue;
            }
            match read(certificate, key, &self.inner.provider) {
                Ok(renewed) => {
                    *operator.served.write() = renewed;
                    info!(certificate = %certificate.display(), "a new certificate is served");
                }
                // One of the two may not be there yet; the next change is looked at again.
                Err(error) => warn!("the changed certificate cannot be used: {error:#}"),
            }
            known = now;
        }
    }
}

fn read(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>> {
    let file = |path: &Path| {
        std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let (chain, key_pem) = (file(certificate)?, file(key)?);
    certified(&chain, &key_pem, provider)
        .with_context(|| format!("{} and {} cannot be used", certificate.display(), key.display()))
}

/// A chain with its key, which must fit.
fn certified(chain: &[u8], key: &[u8], provider: &CryptoProvider) -> Result<Arc<CertifiedKey>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .context("the certificate is no PEM")?;
    ensure!(!chain.is_empty(), "there is no certificate in the file");
    let key = PrivateKeyDer::from_pem_slice(key).context("there is no private key in PEM")?;
    Ok(Arc::new(CertifiedKey::from_der(chain, key, provider)?))
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

/// What changes when a file does, for both files.
fn state(certificate: &Path, key: &Path) -> [Option<(SystemTime, u64)>; 2] {
    [certificate, key].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}
