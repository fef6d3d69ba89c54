//! The S3 store against a real Ceph gateway, by the suite that every store must pass.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use shoal_node::store::{S3Settings, S3Store, StoreError, check_conformance};

/// A Ceph of this test's own; stopped when dropped.
struct Ceph {
    folder: PathBuf,
    settings: S3Settings,
}

impl Ceph {
    fn start(folder: &Path) -> Result<Self> {
        let output = script("start", folder)?
            .env("MONPORT", free_port()?.to_string())
            .env("RGWPORT", free_port()?.to_string())
            .output()
            .context("deploy/ceph-rgw did not start")?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "Ceph did not start; are ceph-mon, ceph-osd and radosgw installed? {printed}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let line = printed.lines().last().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[endpoint, access_key, secret_key] = words.as_slice() else {
            anyhow::bail!("ceph-rgw printed: {printed}");
        };
        let settings = S3Settings {
            endpoint: endpoint.into(),
            region: "default".into(),
            bucket: "shoal-test".into(),
            access_key: access_key.into(),
            secret_key: secret_key.to_owned().into(),
            path_style: true,
        };
        Ok(Self { folder: folder.into(), settings })
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        if let Ok(mut stop) = script("stop", &self.folder) {
            let _ = stop.output();
        }
    }
}

fn script(verb: &str, folder: &Path) -> Result<Command> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let mut command = Command::new(root.join("deploy/ceph-rgw"));
    command.arg(verb).arg(folder);
    Ok(command)
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[tokio::test]
async fn the_s3_store_conforms_on_real_ceph() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let ceph = Ceph::start(folder.path())?;
    let store = S3Store::open(&ceph.settings).await?;
    check_conformance(&store).await?;
    // The bucket is there by now; a second node opens it as well.
    S3Store::open(&ceph.settings).await?;
    let stranger = S3Settings { secret_key: "wrong".to_owned().into(), ..ceph.settings.clone() };
    let refused = S3Store::open(&stranger).await;
    ensure!(matches!(refused, Err(StoreError::Refused { .. })), "a wrong key got in: {refused:?}");
    Ok(())
}

#[tokio::test]
async fn a_gateway_that_is_away_is_said_to_be_so() -> Result<()> {
    let settings = S3Settings {
        endpoint: format!("http://127.0.0.1:{}", free_port()?),
        region: "default".into(),
        bucket: "shoal-test".into(),
        access_key: "a".into(),
        secret_key: "b".to_owned().into(),
        path_style: true,
    };
    let error = S3Store::open(&settings).await.err().context("nobody listens there")?;
    ensure!(error.is_retryable(), "not retryable: {error}");
    Ok(())
}
