//! What refers to a manifest.

use anyhow::{Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::super::node::Node;
use super::{
    CONFIG, INDEX, MANIFEST, descriptor, expect, header, push_blob, push_image, put, sha256,
};

async fn referrers(node: &Node, path: &str) -> Result<(Vec<Value>, Option<String>)> {
    let answer = node.v2(Method::GET, path).send().await?;
    expect(&answer, StatusCode::OK)?;
    ensure!(header(&answer, "content-type")? == INDEX);
    let filters = answer.headers().get("oci-filters-applied");
    let filters = filters.map(|value| value.to_str().map(str::to_owned)).transpose()?;
    let index: Value = answer.json().await?;
    ensure!(index["schemaVersion"] == 2 && index["mediaType"] == INDEX, "{index}");
    Ok((index["manifests"].as_array().cloned().unwrap_or_default(), filters))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_was_never_pushed_has_an_empty_list() -> Result<()> {
    let node = Node::start().await?;
    let path = format!("a/never/referrers/{}", sha256(b"anything"));
    ensure!(referrers(&node, &path).await? == (Vec::new(), None));
    let answer = node.v2(Method::GET, "a/never/referrers/sha256:nonsense").send().await?;
    expect(&answer, StatusCode::BAD_REQUEST)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_seen_refers_to_nothing() -> Result<()> {
    let node = Node::start().await?;
    let subject = push_image(&node, "a/hidden", "v1", b"layer").await?;
    let about = json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": null,
        "subject": descriptor(MANIFEST, &subject),
    });
    expect(&put(&node, "a/hidden", "v2", &about).await?, StatusCode::CREATED)?;
    let user = json!({ "username": "alice", "password": "Sparkling-water-42" });
    let _user: Value = node.call(Method::POST, "users", &user).await?;
    let asks = async |repository: &str| {
        let path = format!("{repository}/referrers/{}", sha256(&subject));
        let request = node.anonymous_v2(Method::GET, &path);
        let answer = request.basic_auth("alice", Some("Sparkling-water-42")).send().await?;
        expect(&answer, StatusCode::OK)?;
        Ok::<_, anyhow::Error>(answer.text().await?)
    };
    let (hidden, missing) = (asks("a/hidden").await?, asks("a/missing").await?);
    ensure!(hidden == missing, "{hidden}");
    ensure!(
        referrers(&node, &format!("a/hidden/referrers/{}", sha256(&subject))).await?.0.len() == 1
    );
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_longer_than_a_manifest_may_be_comes_in_pages() -> Result<()> {
    let node = Node::start().await?;
    let subject = push_image(&node, "a/long", "v1", b"layer").await?;
    let about = sha256(&subject);
    let push = async |kind: &str, number: usize, text: &str| {
        let index = json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": [],
            "artifactType": format!("application/x-{kind}+json"),
            "subject": descriptor(MANIFEST, &subject),
            "annotations": { "number": number.to_string(), "text": text },
        });
        let digest = sha256(index.to_string().as_bytes());
        expect(&put(&node, "a/long", &digest, &index).await?, StatusCode::CREATED)?;
        Ok::<_, anyhow::Error>(digest)
    };
    let list = async |kind: &str| {
        let filter = format!("artifactType=application%2Fx-{kind}%2Bjson");
        let mut next = Some(format!("/v2/a/long/referrers/{about}?{filter}"));
        let (mut found, mut pages) = (std::collections::BTreeSet::new(), 0);
        while let Some(path) = next.take() {
            let answer = node.v2(Method::GET, path.trim_start_matches("/v2/")).send().await?;
            expect(&answer, StatusCode::OK)?;
            if let Some(link) = answer.headers().get("link") {
                let link = link.to_str()?.strip_prefix('<').and_then(|link| link.split_once('>'));
                next = link.map(|(path, _)| path.to_owned());
            }
            let body = answer.bytes().await?;
            ensure!(body.len() <= 4 << 20, "{} bytes", body.len());
            let index: Value = serde_json::from_slice(&body)?;
            for one in index["manifests"].as_array().into_iter().flatten() {
                // However long they are.
                ensure!(one["annotations"]["number"].is_string());
                ensure!(found.insert(one["digest"].as_str().unwrap_or_default().to_owned()));
            }
            pages += 1;
        }
        Ok((found, pages))
    };
    let text = "x".repeat(900 * 1024);
    let mut wanted = std::collections::BTreeSet::new();
    for number in 0..7 {
        wanted.insert(push("long", number, &text).await?);
    }
    let (found, pages) = list("long").await?;
    ensure!(found == wanted && pages == 2, "{pages} pages of {}", found.len());
    // What is passed over costs, too: a request ends when it has read enough, with a link.
    let text = "x".repeat(4_000_000);
    for number in 0..6 {
        push("other", number, &text).await?;
    }
    let (found, pages) = list("none").await?;
    ensure!(found.is_empty() && pages == 2, "{pages} pages of {}", found.len());
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_come_with_type_and_annotations_filtered_and_go_again() -> Result<()> {
    let node = Node::start().await?;
    let subject = push_image(&node, "a/refs", "v1", b"layer").await?;
    let about = descriptor(MANIFEST, &subject);
    let base = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, b"{}"),
        "layers": [], "subject": about,
    });
    let mut signature = base.clone();
    signature["artifactType"] = json!("application/x-signature");
    signature["annotations"] = json!({ "by": "somebody" });
    let mut plain = base;
    plain["annotations"] = json!({ "kind": "by its config" });
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": about,
        "artifactType": "application/x-list",
    });
    push_blob(&node, "a/refs", b"{}").await?;
    for manifest in [&signature, &plain, &index] {
        let digest = sha256(manifest.to_string().as_bytes());
        let answer = put(&node, "a/refs", &digest, manifest).await?;
        expect(&answer, StatusCode::CREATED)?;
        ensure!(header(&answer, "oci-subject")? == sha256(&subject));
    }
    let path = format!("a/refs/referrers/{}", sha256(&subject));
    let (all, filters) = referrers(&node, &path).await?;
    ensure!(all.len() == 3 && filters.is_none(), "{all:?}");
    let of = |manifest: &Value| {
        let digest = sha256(manifest.to_string().as_bytes());
        all.iter().find(|found| found["digest"] == digest.as_str())
    };
    let found = of(&signature).map(|found| (&found["artifactType"], &found["annotations"]["by"]));
    ensure!(found == Some((&json!("application/x-signature"), &json!("somebody"))), "{all:?}");
    let found = of(&plain).map(|found| (&found["artifactType"], &found["size"]));
    ensure!(found == Some((&json!(CONFIG), &json!(plain.to_string().len()))), "{all:?}");
    ensure!(of(&index).is_some_and(|found| found["mediaType"] == INDEX), "{all:?}");

    let filtered = format!("{path}?artifactType=application/x-signature");
    let (some, filters) = referrers(&node, &filtered).await?;
    ensure!(some.len() == 1 && filters.as_deref() == Some("artifactType"), "{some:?}");
    let digest = sha256(signature.to_string().as_bytes());
    let gone = node.v2(Method::DELETE, &format!("a/refs/manifests/{digest}")).send().await?;
    expect(&gone, StatusCode::ACCEPTED)?;
    ensure!(referrers(&node, &path).await?.0.len() == 2);
    node.server.stop().await
}
