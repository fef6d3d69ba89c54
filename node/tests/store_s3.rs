//! The S3 store against a real Ceph gateway, by the suite that every store must pass.

#[path = "http/ports.rs"]
mod ports;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use shoal_content::{DataKeyId, ObjectKey, PackId, UploadId};
use shoal_metadata::{HandedKey, KeyOwner};
use shoal_node::config::{Config, StorageKind};
use shoal_node::server::Server;
use shoal_node::store::sealed::{DataKey, FoundKey, KEY_BYTES, KeySource};
use shoal_node::store::{
    BlobStore, PART_BYTES_MIN, S3Settings, S3Store, SealedStore, StoreError, check_conformance,
    check_owner, read,
};
use uuid::Uuid;
use zeroize::Zeroizing;

use ports::{free_tcp, free_udp};

/// A Ceph of this test's own; stopped when dropped.
struct Ceph {
    folder: PathBuf,
    settings: S3Settings,
}

impl Ceph {
    fn start(folder: &Path) -> Result<Self> {
        let output = script("start", folder)?
            .env("MONPORT", free_tcp()?.port().to_string())
            .env("RGWPORT", free_tcp()?.port().to_string())
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
            redirect_endpoint: None,
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

#[tokio::test(flavor = "multi_thread")]
async fn the_s3_store_conforms_on_real_ceph() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let ceph = Ceph::start(folder.path())?;
    let store = S3Store::open(&ceph.settings).await?;
    check_conformance(&store).await?;
    let owned = S3Settings { bucket: "shoal-owned".into(), ..ceph.settings.clone() };
    check_owner(&S3Store::open(&owned).await?).await?;
    check_presigned(&store).await?;
    check_redirect(&ceph.settings, folder.path()).await?;
    // The bucket is there by now; a second node opens it as well.
    S3Store::open(&ceph.settings).await?;
    let stranger = S3Settings { secret_key: "wrong".to_owned().into(), ..ceph.settings.clone() };
    let refused = S3Store::open(&stranger).await;
    ensure!(matches!(refused, Err(StoreError::Refused { .. })), "a wrong key got in: {refused:?}");
    Ok(())
}

/// A client without credentials reads the object at the address, and ranges of it.
async fn check_presigned(store: &S3Store) -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let key = ObjectKey::Pack(PackId::of(b"presigned"));
    store.put(key, &KeyOwner::Cluster, Bytes::from_static(b"0123456789")).await?;
    let url = store.presigned(key, Duration::from_secs(60)).await?.context("an address")?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let whole = client.get(&url).send().await?.error_for_status()?.bytes().await?;
    ensure!(whole == "0123456789");
    let part = client.get(&url).header("range", "bytes=3-4").send().await?;
    ensure!(part.status() == 206 && part.bytes().await? == "34");
    let other = client.get(url.replace("packs", "recipes")).send().await?;
    ensure!(other.status() == 403, "a signature fits another object: {}", other.status());
    store.delete(&[key]).await?;
    Ok(())
}

/// Clients of the networks that are named are sent to storage; others get the bytes from the node.
async fn check_redirect(settings: &S3Settings, folder: &Path) -> Result<()> {
    for (network, redirected) in [("127.0.0.0/8", true), ("10.0.0.0/8", false)] {
        let mut config = Config::default();
        config.node.data_dir = folder.join(format!("node-{redirected}"));
        config.storage.kind = StorageKind::S3;
        config.storage.endpoint = settings.endpoint.clone();
        // Each is a cluster of its own, and has a bucket of its own.
        config.storage.bucket = format!("{}-{redirected}", settings.bucket);
        config.storage.access_key = settings.access_key.clone();
        config.storage.secret_key = settings.secret_key.as_str().to_owned();
        config.storage.redirect_networks = vec![network.parse()?];
        config.discovery.enabled = false;
        let plain = free_tcp()?;
        config.http.plain_listen = Some(plain);
        config.http.listen.set_port(free_tcp()?.port());
        config.raft.listen.set_port(free_udp()?.port());
        config.peer.listen.set_port(free_udp()?.port());
        let mut password = String::new();
        let server = Server::start(config, |text| text.clone_into(&mut password)).await?;
        let policy = reqwest::redirect::Policy::none();
        let client = reqwest::Client::builder().no_proxy().redirect(policy).build()?;
        let hash = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
        let url = format!("http://{plain}/v2/a/b/blobs");
        let push = client.post(format!("{url}/uploads/?digest=sha256:{hash}")).body("foo");
        push.basic_auth("admin", Some(&password)).send().await?.error_for_status()?;
        let pull = client.get(format!("{url}/sha256:{hash}"));
        let answer = pull.basic_auth("admin", Some(&password)).send().await?;
        if redirected {
            ensure!(answer.status() == 307, "{}", answer.status());
            let at = answer.headers()["location"].to_str()?.to_owned();
            ensure!(at.starts_with(&settings.endpoint), "{at}");
            ensure!(client.get(at).send().await?.bytes().await? == "foo");
        } else {
            ensure!(answer.status() == 200 && answer.bytes().await? == "foo");
        }
        server.stop().await?;
    }
    Ok(())
}

/// One key for all, that is rotated in between.
#[derive(Debug, Default)]
struct Keys(Mutex<Vec<Arc<DataKey>>>);

impl Keys {
    fn rotate(&self, number: u8) {
        let id = DataKeyId::from_uuid(Uuid::from_u128(number.into()));
        self.0.lock().push(Arc::new(DataKey { id, bytes: Zeroizing::new([number; KEY_BYTES]) }));
    }
}

#[async_trait]
impl KeySource for Keys {
    async fn current(&self, _: &KeyOwner) -> Result<Option<Arc<DataKey>>, StoreError> {
        Ok(self.0.lock().last().cloned())
    }

    async fn catch_up(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn find(&self, id: DataKeyId) -> Result<FoundKey, StoreError> {
        let found = self.0.lock().iter().find(|key| key.id == id).cloned();
        Ok(found.map_or(FoundKey::Unknown, FoundKey::Kept))
    }

    async fn handed(&self, _: ObjectKey) -> Result<Option<HandedKey>, StoreError> {
        Ok(None)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sealed_store_conforms_on_real_ceph_and_uploads_go_on_at_another_node() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let ceph = Ceph::start(folder.path())?;
    let plain: Arc<dyn BlobStore> = Arc::new(S3Store::open(&ceph.settings).await?);
    let keys = Arc::new(Keys::default());
    let node = || SealedStore::new(Arc::clone(&plain), Arc::clone(&plain), keys.clone());
    // While nothing is sealed, and from then on.
    check_conformance(&node()).await?;
    keys.rotate(1);
    check_conformance(&node()).await?;

    let part = PART_BYTES_MIN as usize;
    let content: Bytes = (0..2 * part + 17).map(|at| (at / 7) as u8).collect::<Vec<_>>().into();
    let key = ObjectKey::Blob(UploadId::from_uuid(Uuid::new_v4()));
    let (first, second) = (node(), node());
    let id = first.begin(key, &KeyOwner::Cluster).await?;
    let head = first.put_part(key, &id, 1, 0, content.slice(..part)).await?;
    // The key is another one by now, and the node, too; it sends the second part twice.
    keys.rotate(2);
    let (middle, tail) = (content.slice(part..2 * part), content.slice(2 * part..));
    second.put_part(key, &id, 2, part as u64, middle.clone()).await?;
    let parts = [
        head,
        second.put_part(key, &id, 2, part as u64, middle).await?,
        second.put_part(key, &id, 3, 2 * part as u64, tail).await?,
    ];
    second.complete(key, &id, &parts).await?;
    let length = content.len() as u64;
    for node in [first, second] {
        ensure!(node.length(key).await? == Some(length), "the length");
        ensure!(read(&node, key, 0..length).await? == content, "the bytes of the parts");
        let across = part - 70_000..part + 70_000;
        let got = read(&node, key, across.start as u64..across.end as u64).await?;
        ensure!(got == content[across], "a range across parts");
        ensure!(node.presigned(key, Duration::from_secs(60)).await?.is_none(), "an address");
    }
    let stored = plain.length(key).await?.context("it is in storage")?;
    let stored = read(&*plain, key, 0..stored).await?;
    let needle = &content[part..part + 64];
    ensure!(!stored.windows(64).any(|window| window == needle), "it can be read in storage");
    plain.delete(&[key]).await?;
    Ok(())
}

#[tokio::test]
async fn a_gateway_that_is_away_is_said_to_be_so() -> Result<()> {
    let settings = S3Settings {
        endpoint: format!("http://{}", free_tcp()?),
        redirect_endpoint: None,
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
