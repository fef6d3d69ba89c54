//! Good inputs of each target, made by the code that writes them; mutations begin from these.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use shoal_content::{
    Algorithm, ClusterId, Digest, ObjectKey, PackId, RepositoryName, Timestamp, UploadId,
};
use shoal_formats::BlobCutter;
use shoal_formats::backup::{Head, Needed, Row, Writer};
use shoal_metadata::{Command, Upload, UploadPurpose, encode_command, encode_row};
use uuid::Uuid;

use super::credentials::{AUDIENCE, NOW, key};
use crate::registry::fuzzed::{
    EncodeCheckpoint, Hash, encode_checkpoint, encode_long_checkpoint, encode_pieces,
};
use crate::store::StoredPart;

const HEX: &str = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// `target` is one of `TARGETS`.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "names" => {
            let digest = format!("sha256:{HEX}");
            let object = ObjectKey::Pack(PackId::of(b"pack")).to_string();
            let long = format!("sha512:{HEX}{HEX}");
            texts(&["team/app", "a--b/c__d/e.f", "v1.2-rc_3", &digest, &long, &object])
        }
        "parties" => texts(&[
            "alice",
            "team/app:v1",
            &format!("team/app@sha256:{HEX}"),
            "robot$team+builder",
            "user:alice",
            "group:acme/dev",
            "organization:acme",
            "project:team",
            "cluster",
            "default:user",
            "account:alice",
            "address:2001:db8::1",
        ]),
        "route" => texts(&[
            "",
            "token",
            "_catalog",
            "a/b/tags/list",
            "a/blobs/uploads/",
            "a/b/blobs/uploads/00000000000000000000000000000000",
            "a/b/manifests/v1",
            &format!("a/b/blobs/sha256:{HEX}"),
            &format!("a/b/referrers/sha256:{HEX}"),
        ]),
        "ranges" => {
            let headers = ["bytes=0-9", "bytes=-5", "bytes=7-", "bytes=0-1,4-5", "0-99", "9-1"];
            let long = |header: &&str| [&100_u64.to_le_bytes(), header.as_bytes()].concat();
            headers.iter().map(long).collect()
        }
        "condition" => {
            let digest = Digest::sha256([7; 32]);
            texts(&["*", "\"another\", W/\"x\"", &format!("W/\"{digest}\""), &digest.to_string()])
        }
        "manifest" => manifests(),
        "paging" => {
            texts(&["10", "n=10&last=v1", "last=a%2Fb&n=0", "tag=a&tag=b", "%f0%9f%90%9f=1"])
        }
        "filters" => texts(&[
            "page=2&page_size=50&sort=created_at:desc&kind=disk&deleted=true",
            "labels=a=b,c=d&annotation=e%3Df&q=x&sort=-size&type=os_base&starred=true",
            "2026-01-31T12:00:00Z",
            "9999-12-31T23:59:59-23:59",
        ]),
        "checkpoint" => checkpoints(),
        "pieces" => [1000, 300_000].map(pieced).to_vec(),
        "rows" => rows(),
        "recipe" => {
            let mut cutter = BlobCutter::new();
            cutter.update(&[5; 700_000]);
            let object = ObjectKey::Blob(UploadId::from_uuid(Uuid::from_u128(7)));
            vec![cutter.finish(object).encode_with_id().1]
        }
        "authorization" => authorizations(),
        "token_scope" => texts(&[
            "repository:team/app:pull,push",
            "repository:team/app:* registry:catalog:*",
            "repository:new/app:pull,push,delete\nrepository:team/other:pull",
            "repository(plugin):localhost:5000/a/b:pull",
        ]),
        "token_form" => texts(&[
            "grant_type=password&username=admin&password=a%20b%26&service=x&client_id=docker",
            "scope=repository:a/b:pull,push&scope=registry:catalog:*&access_type=offline",
        ]),
        "compatible_reference" => {
            texts(&["team/app/v1", "app/latest", &format!("team/app/sha256:{HEX}"), "search"])
        }
        "join_token" => {
            let authority = URL_SAFE_NO_PAD.encode([7; 32]);
            texts(&[&format!("shoal-join-v1.{authority}.0123456789.c2VjcmV0")])
        }
        "forwarded" => texts(&["192.0.2.7, 10.0.0.2", "[2001:db8::1]:80,10.0.0.3:443", "::1"]),
        "challenge" => texts(&[
            "Bearer realm=\"https://auth.example/token\",service=\"registry.example\"",
            "Bearer realm=a, scope=\"repository:a/b:pull\", error=\"insufficient \\\"scope\\\"\"",
            "Basic realm=\"x\"",
        ]),
        "pattern" => texts(&["team/*\0team/app", "**", "!v1.*-rc?\0v1.2-rc3", "a*a*a*b\0aaaaaaa"]),
        "backup" => vec![backup()],
        "raft_message" => shoal_raft::fuzz::messages(),
        "settings" => settings(),
        "trace_parent" => texts(&["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00"]),
        _ => Vec::new(),
    }
}

fn authorizations() -> Vec<Vec<u8>> {
    let token = |header: serde_json::Value, claims: serde_json::Value| {
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(key().sign(message.as_bytes()));
        format!("Bearer {message}.{signature}")
    };
    let claims = serde_json::json!({
        "iss": key().peer_id().to_string(), "sub": "admin", "aud": AUDIENCE, "iat": NOW,
        // Compared with the clock of the machine.
        "exp": 40 * NOW,
        "access": [{ "type": "repository", "name": "a/b", "actions": ["pull"] }],
    });
    let people = serde_json::json!({ "alg": "EdDSA", "typ": "JWT" });
    let agents = serde_json::json!({ "alg": "EdDSA", "typ": "shoal-agent+jwt" });
    let signed = [token(people, claims.clone()), token(agents, claims)];
    texts(&[
        "Basic YWRtaW46c2VjcmV0OndpdGg6Y29sb25z",
        "basic Og==",
        "Bearer pat_v1_0123456789abcdef",
        &signed[0],
        &signed[1],
    ])
}

fn backup() -> Vec<u8> {
    let blob = ObjectKey::Blob(UploadId::from_uuid(Uuid::from_u128(7)));
    let digest = format!("sha256:{HEX}").parse().ok();
    let head = Head {
        cluster: ClusterId::from_uuid(Uuid::from_u128(5)),
        made_at: Timestamp::from_millis(5),
        index: 77,
        level: 2,
        row_version: 1,
        tables: 31,
        program: "0.1.0".into(),
    };
    let mut writer = Writer::new(&head).unwrap();
    for table in 1..4 {
        writer.row(Row { table, key: b"team/app", row: &[table; 40] }).unwrap();
    }
    writer.object(&Needed { key: blob, size: Some(3), digest }).unwrap();
    let pack = ObjectKey::Pack(PackId::of(b"pack"));
    writer.object(&Needed { key: pack, size: None, digest: None }).unwrap();
    writer.finish().unwrap().0
}

fn settings() -> Vec<Vec<u8>> {
    let whole = include_bytes!("../../../deploy/node.toml").to_vec();
    let mut seeds = texts(&[
        "http.listen=127.0.0.1:5000",
        "http.names=[\"a\", \"b\"]",
        "storage.redirect_networks=[\"10.0.0.0/8\"]",
        "traces.sample_ratio=0.5",
        "[node]\nname = \"n\"\nzone = \"a/b\"\n[storage]\nkind = \"folder\"\n",
    ]);
    seeds.push(whole);
    seeds
}

fn manifests() -> Vec<Vec<u8>> {
    let descriptor = |kind: &str| serde_json::json!({ "mediaType": kind, "digest": format!("sha256:{HEX}"), "size": 3 });
    let image = "application/vnd.oci.image.manifest.v1+json";
    let image = serde_json::json!({
        "schemaVersion": 2, "mediaType": image, "artifactType": "application/x",
        "config": descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar")],
        "subject": descriptor(image), "annotations": { "a": "b" },
    });
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor("application/vnd.oci.image.manifest.v1+json")],
    });
    let chosen = |choice: u8, document: &serde_json::Value| {
        [&[choice], document.to_string().as_bytes()].concat()
    };
    vec![chosen(0, &image), chosen(1, &image), chosen(2, &index)]
}

fn checkpoints() -> Vec<Vec<u8>> {
    let part = StoredPart { number: 1, tag: "tag".into(), length: 300_000 };
    let cases = [(vec![], 10), (vec![part], 300_007)];
    let of = |(parts, length): &(Vec<StoredPart>, usize), encode: EncodeCheckpoint| {
        let content = vec![9; *length];
        let mut cutter = BlobCutter::new();
        cutter.update(&content);
        let mut hash = Hash::new(Algorithm::Sha256);
        hash.update(&content);
        let flushed: u64 = parts.iter().map(|part| part.length).sum();
        encode(parts, &content[flushed as usize..], &hash, &cutter).unwrap()
    };
    let both = |case| [of(case, encode_checkpoint), of(case, encode_long_checkpoint)];
    cases.iter().flat_map(both).collect()
}

fn pieced(length: usize) -> Vec<u8> {
    let content = vec![9; length];
    let (mut hash, mut cutter) = (Hash::new(Algorithm::Sha256), BlobCutter::new());
    hash.update(&content);
    cutter.update(&content);
    encode_pieces(&[], &[], &content, &hash, &cutter).unwrap().0.to_vec()
}

fn rows() -> Vec<Vec<u8>> {
    let repository: RepositoryName = "team/app".parse().unwrap();
    let purpose = UploadPurpose::Blob {
        repository: repository.clone(),
        offset: 300,
        checkpoint: None,
        multipart: None,
    };
    let upload = Upload {
        id: UploadId::from_uuid(Uuid::from_u128(3)),
        owner: "admin".into(),
        created_at: Timestamp::from_millis(1),
        expires_at: Timestamp::from_millis(2),
        purpose,
    };
    let unlink =
        Command::UnlinkBlob { repository, digest: format!("sha256:{HEX}").parse().unwrap() };
    let objects = [ObjectKey::Pack(PackId::of(b"pack"))].into();
    vec![
        encode_row(&upload),
        encode_command(&Command::BeginUpload(upload)),
        encode_command(&unlink),
        encode_command(&Command::AdoptObjects { objects }),
    ]
}
