//! The HTTPS certificates: the cluster's own for its members, and for everyone else the operator's,
//! where there is one, read again when its files change, or the one that an ACME server has issued
//! (see `acme`), taken over from the metadata.
//!
//! Members say in the handshake that they are some (see `identity::is_member`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use axum_server::tls_rustls::RustlsConfig;
use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use shoal_content::Timestamp;
use shoal_metadata::{HttpCertificate, SecretPlace};
use shoal_p2p::identity::{self, is_member};
use shoal_raft::Raft;
use tracing::{info, warn};

use crate::authorities::Authorities;
use crate::clock::now;
use crate::config::Config;
use crate::encryption::Vault;
use crate::metrics::gauge;
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
    names: Vec<String>,
    authorities: Authorities,
    vault: Vault,
    cluster: RwLock<Cluster>,
    operator: Option<Operator>,
    issued: RwLock<Option<Issued>>,
}

/// The cluster's own, and which of its authorities has signed it.
#[derive(Debug)]
struct Cluster {
    authority: u32,
    served: Arc<CertifiedKey>,
}

/// What an ACME server has issued.
#[derive(Debug)]
struct Issued {
    row: HttpCertificate,
    served: Arc<CertifiedKey>,
}

#[derive(Debug)]
struct Operator {
    certificate: PathBuf,
    key: PathBuf,
    /// The files as they were when the node began.
    read: FileStates,
    served: RwLock<Arc<CertifiedKey>>,
    /// Whether the files hold something else than what is served, that cannot be.
    unusable: AtomicBool,
}

/// Of both files, what changes when they do.
type FileStates = [Option<(SystemTime, u64)>; 2];

impl Collector for Certificates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let served = self.for_people();
        let until = served.cert.first().and_then(|first| {
            let (_, parsed) = x509_parser::parse_x509_certificate(first).ok()?;
            u64::try_from(parsed.validity().not_after.timestamp()).ok()
        });
        let help = "Until when the certificate for HTTPS is valid, in seconds since 1970";
        gauge(&mut encoder, "shoal_https_certificate_expiry_seconds", help, until)?;
        let unusable = self.inner.operator.as_ref();
        let unusable = unusable.map(|own| u64::from(own.unusable.load(Ordering::Relaxed)));
        let help = "Whether the certificate's files were changed and cannot be used; the one from before \
                    is served";
        gauge(&mut encoder, "shoal_https_certificate_unusable", help, unusable)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(if is_member(&hello) { self.of_cluster() } else { self.for_people() })
    }
}

impl Certificates {
    /// Makes the cluster's, and loads the operator's.
    ///
    /// # Errors
    /// Where the operator's files cannot be used.
    pub fn load(config: &Config, keys: &Keys) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (names, authorities) = (names(config), keys.authorities.clone());
        let cluster = RwLock::new(issued_for(&names, &authorities, &provider)?);
        let operator = match files(config) {
            None => None,
            Some((certificate, key)) => {
                // Before they are read: what changes in between is read again.
                let states = state(&certificate, &key);
                let served = RwLock::new(read(&certificate, &key, &provider)?);
                let unusable = AtomicBool::new(false);
                Some(Operator { certificate, key, read: states, served, unusable })
            }
        };
        let (vault, issued) = (keys.ring.vault().clone(), RwLock::new(None));
        let inner = Inner { provider, names, authorities, vault, cluster, operator, issued };
        Ok(Self { inner: Arc::new(inner) })
    }

    fn of_cluster(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.inner.cluster.read().served)
    }

    /// Makes the cluster's anew, where most of its time is over or another authority signs.
    ///
    /// # Errors
    /// Where it cannot be made; the old one is served on.
    pub fn renew_cluster_if_due(&self) -> Result<()> {
        let Inner { provider, names, authorities, .. } = &*self.inner;
        let replaced = self.inner.cluster.read().authority != authorities.current().number();
        if !replaced && !is_due(&self.of_cluster(), now()) {
            return Ok(());
        }
        *self.inner.cluster.write() = issued_for(names, authorities, provider)?;
        info!("the cluster's certificate for HTTPS was renewed");
        Ok(())
    }

    /// What everyone gets who is no member.
    fn for_people(&self) -> Arc<CertifiedKey> {
        if let Some(operator) = &self.inner.operator {
            return Arc::clone(&operator.served.read());
        }
        match &*self.inner.issued.read() {
            Some(issued) => Arc::clone(&issued.served),
            None => self.of_cluster(),
        }
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

    /// Takes over what an ACME server has issued, whenever the metadata has another one.
    pub async fn follow_issued(self, raft: Raft) {
        loop {
            // A row that cannot be read is the metadata's concern.
            if let Ok(Some(row)) = raft.local().query().http_certificate() {
                self.take_over(row);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn take_over(&self, row: HttpCertificate) {
        if self.inner.issued.read().as_ref().is_some_and(|issued| issued.row == row) {
            return;
        }
        let opened = self.inner.vault.open(SecretPlace::HttpKey, &row.key);
        let certified = opened
            .map_err(anyhow::Error::from)
            .and_then(|key| certified(row.chain.as_bytes(), &key, &self.inner.provider));
        match certified {
            Ok(served) => {
                info!(names = ?row.names, "a new certificate of the ACME server's is served");
                *self.inner.issued.write() = Some(Issued { row, served });
            }
            Err(error) => warn!("the certificate that was issued cannot be used: {error:#}"),
        }
    }

    /// Takes the operator's certificate over whenever its files change, without a stop: connections
    /// that are open stay as they are. Files that cannot be used are said to be so, once, and the
    /// old certificate stays until they can. Returns at once where there is none.
    pub async fn follow(self) {
        let Some(operator) = &self.inner.operator else { return };
        let mut followed = Followed { served: operator.read, said: None };
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            self.look(operator, &mut followed);
        }
    }

    fn look(&self, operator: &Operator, followed: &mut Followed) {
        let (certificate, key) = (&operator.certificate, &operator.key);
        let now = state(certificate, key);
        if now == followed.served {
            operator.unusable.store(false, Ordering::Relaxed);
            return;
        }
        let read = read(certificate, key, &self.inner.provider);
        operator.unusable.store(read.is_err(), Ordering::Relaxed);
        match read {
            Ok(renewed) => {
                *operator.served.write() = renewed;
                *followed = Followed { served: now, said: None };
                info!(certificate = %certificate.display(), "a new certificate is served");
            }
            // One of the two may not be there yet, or not be ours to read: that may change without a
            // trace in what is looked at.
            Err(error) if followed.said != Some(now) => {
                followed.said = Some(now);
                warn!("the changed certificate cannot be used: {error:#}");
            }
            Err(_) => {}
        }
    }
}

/// What is known of the operator's files.
struct Followed {
    /// As they were when what is served was read.
    served: FileStates,
    /// As they were when they were last said to be of no use.
    said: Option<FileStates>,
}

fn read(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>> {
    let file = |path: &Path| {
        std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let (chain, key_pem) = (file(certificate)?, file(key)?);
    certified(&chain, &key_pem, provider)
        .with_context(|| format!("{} and {} cannot be used", certificate.display(), key.display()))
}

fn issued_for(
    names: &[String],
    authorities: &Authorities,
    provider: &CryptoProvider,
) -> Result<Cluster> {
    let held = authorities.current();
    let made = held.issue_http(names)?;
    let served = certified(made.chain_pem.as_bytes(), made.key_pem.as_bytes(), provider)?;
    Ok(Cluster { authority: held.number(), served })
}

/// See [`identity::is_due`].
fn is_due(served: &CertifiedKey, now: Timestamp) -> bool {
    let Some(first) = served.cert.first() else { return true };
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(first) else { return true };
    let moment = |seconds: i64| Timestamp::from_millis(u64::try_from(seconds).unwrap_or(0) * 1000);
    let validity = parsed.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    identity::is_due(moment(from), moment(until), now)
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
    names.push(host_of(&config.api_url()).to_owned());
    if !http.listen.ip().is_unspecified() {
        names.push(http.listen.ip().to_string());
    }
    names.extend(["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()]);
    names.sort_unstable();
    names.dedup();
    names.retain(|name| !name.is_empty());
    names
}

/// Without the brackets that an IPv6 address has in a URL.
fn host_of(url: &str) -> &str {
    let authority =
        url.split("://").last().unwrap_or_default().split('/').next().unwrap_or_default();
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

fn state(certificate: &Path, key: &Path) -> FileStates {
    [certificate, key].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_found_with_a_port_and_without() {
        for (url, host) in [
            ("https://node.example", "node.example"),
            ("https://node.example:8443/path", "node.example"),
            ("https://192.0.2.1:8443", "192.0.2.1"),
            ("https://[2001:db8::1]", "2001:db8::1"),
            ("https://[2001:db8::1]:8443/", "2001:db8::1"),
        ] {
            assert_eq!(host_of(url), host, "{url}");
        }
    }
}
