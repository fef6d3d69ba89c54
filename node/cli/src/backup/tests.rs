//! Against a server that answers as a node does.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use axum::Router;
use axum::extract::Path as UrlPath;
use axum::http::StatusCode;
use axum::routing::get;
use shoal_content::{ClusterId, ObjectKey, PackId, Timestamp};
use shoal_formats::backup::{Row, Writer};

use self::node::Served;
use super::*;
use crate::config::{Context, Trust};

mod node {
    use super::*;

    /// What the server gives out, and how often it was asked for objects.
    pub struct Served {
        pub backup: Vec<u8>,
        pub objects: Vec<(ObjectKey, Vec<u8>)>,
        pub asked: AtomicU32,
    }

    impl Served {
        pub async fn start(self: Arc<Self>) -> Client {
            rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
            let (one, other) = (self.clone(), self);
            let metadata = move || async move { one.backup.clone() };
            let object = move |UrlPath(key): UrlPath<String>| async move {
                other.asked.fetch_add(1, Ordering::Relaxed);
                let found = other.objects.iter().find(|(name, _)| name.to_string() == key);
                found.map(|(_, bytes)| bytes.clone()).ok_or(StatusCode::NOT_FOUND)
            };
            let router = Router::new()
                .route("/api/v1/backup", get(metadata))
                .route("/api/v1/backup/objects/{*key}", get(object));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            tokio::spawn(async move { axum::serve(listener, router).await });
            Client::new(&Context {
                url: url.clone(),
                nodes: vec![url],
                username: "admin".into(),
                token: "t".into(),
                token_expires_at: String::new(),
                trust: Trust::System,
            })
            .unwrap()
        }
    }
}

const SCREEN: Screen = Screen { json: true, quiet: false };

fn pack(bytes: &[u8]) -> (ObjectKey, Vec<u8>) {
    (ObjectKey::Pack(PackId::of(bytes)), bytes.to_vec())
}

fn backup_of(objects: &[ObjectKey]) -> Vec<u8> {
    let head = Head {
        cluster: ClusterId::from_uuid(Default::default()),
        made_at: Timestamp::from_millis(1_700_000_000_000),
        index: 7,
        level: 2,
        row_version: 1,
        tables: 31,
        program: "0.1.0".into(),
    };
    let mut writer = Writer::new(&head).unwrap();
    writer.row(Row { table: 1, key: b"", row: b"secret" }).unwrap();
    for key in objects {
        writer.object(&Needed { key: *key, size: None, digest: None }).unwrap();
    }
    writer.finish().unwrap().0
}

fn served(backup: Vec<u8>, objects: Vec<(ObjectKey, Vec<u8>)>) -> Arc<Served> {
    Arc::new(Served { backup, objects, asked: AtomicU32::new(0) })
}

fn wanted(path: &Path, objects: bool) -> Backup {
    Backup { command: None, path: Some(path.to_owned()), objects }
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_second_backup_copies_only_what_is_new_and_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (pack(b"one"), pack(b"two"));
    let first = served(backup_of(&[one.0]), vec![one.clone()]);
    let client = first.clone().start().await;
    backup(&wanted(folder.path(), true), &client, SCREEN).await.unwrap();
    let name = "shoal-20231114T221320Z-7.backup";
    assert_eq!(files(folder.path()), ["objects", name]);
    let file = folder.path().join(name);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let second = served(backup_of(&[one.0, two.0]), vec![one.clone(), two.clone()]);
    let client = second.clone().start().await;
    let file = folder.path().join("later.backup");
    backup(&wanted(&file, true), &client, SCREEN).await.unwrap();
    assert_eq!(second.asked.load(Ordering::Relaxed), 1);
    let objects = folder.path().join("objects");
    for (key, bytes) in [&one, &two] {
        assert_eq!(&fs::read(objects.join(key.to_string())).unwrap(), bytes);
    }
    verify(&file, Some(&objects), true, SCREEN).unwrap();
    // Never over another one.
    let again = backup(&wanted(&file, false), &client, SCREEN).await.unwrap_err();
    assert!(matches!(again, Error::Usage(_)), "{again}");

    fs::write(objects.join(two.0.to_string()), b"tw0").unwrap();
    verify(&file, Some(&objects), false, SCREEN).unwrap();
    let damaged = verify(&file, Some(&objects), true, SCREEN).unwrap_err();
    assert!(damaged.to_string().contains(&two.0.to_string()), "{damaged}");
    fs::remove_file(objects.join(one.0.to_string())).unwrap();
    let missing = verify(&file, Some(&objects), false, SCREEN).unwrap_err();
    assert!(missing.to_string().contains("it is missing"), "{missing}");
    assert_ne!(missing.exit_code(), 0);
}

#[tokio::test]
async fn what_was_cut_off_or_lacks_an_object_is_no_backup_and_leaves_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("b");
    let (one, two) = (pack(b"one"), pack(b"two"));
    let whole = backup_of(&[one.0, two.0]);
    let cut = served(whole[..whole.len() - 20].to_vec(), vec![]).start().await;
    let error = backup(&wanted(&file, false), &cut, SCREEN).await.unwrap_err();
    assert!(error.to_string().contains("cut off"), "{error}");
    assert!(files(folder.path()).is_empty());

    let lacks = served(whole, vec![one.clone(), (two.0, b"something else".to_vec())]);
    let lacks = lacks.start().await;
    let error = backup(&wanted(&file, true), &lacks, SCREEN).await.unwrap_err();
    assert!(error.to_string().contains(&two.0.to_string()), "{error}");
    // What had come stays for the next time.
    assert_eq!(files(folder.path()), ["objects"]);
    assert!(folder.path().join("objects").join(one.0.to_string()).is_file());
    assert!(!folder.path().join("objects").join(two.0.to_string()).exists());
}
