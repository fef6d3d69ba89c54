//! Versions in their order, instances that keep them, deleted images, lists, stars and downloads.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use shoal_api::{
    Image, ImageDetail, Instance, Page, Resolution, Tag, UploadStatus, Version, VersionDetail,
};
use shoal_content::ImageId;
use shoal_metadata::{AuditSource, Command};

use super::disks::{create_image, download, upload};
use super::node::{Node, problem, read};
use super::v2::push_image;

const PASSWORD: &str = "correct-horse-7";

/// A small raw disk.
fn small_disk(node: &Node, seed: u8) -> Result<PathBuf> {
    let path = node.path().join(format!("small-{seed}.raw"));
    let bytes: Vec<u8> = (0..300_000u32).map(|at| (at / 7) as u8 ^ seed).collect();
    std::fs::write(&path, bytes)?;
    Ok(path)
}

async fn publish(node: &Node, image: ImageId, number: &str, seed: u8) -> Result<UploadStatus> {
    let status = upload(node, image, &small_disk(node, seed)?, number).await?;
    ensure!(status.status == "active", "{status:?}");
    Ok(status)
}

async fn latest(node: &Node, name: &str) -> Result<String> {
    let by_tag: Resolution = node.get(&format!("resolve?name={name}&tag=latest")).await?;
    let detail: ImageDetail = node.get(&format!("images/{}", by_tag.image_id)).await?;
    let flagged: Vec<&str> = detail
        .versions
        .iter()
        .filter(|version| version.is_latest)
        .map(|version| version.version.as_str())
        .collect();
    ensure!(flagged == [by_tag.version.as_str()], "{flagged:?}, and the tag says {by_tag:?}");
    Ok(by_tag.version)
}

async fn delete(node: &Node, path: &str, status: StatusCode) -> Result<()> {
    let answer = node.request(Method::DELETE, path).send().await?;
    ensure!(answer.status() == status, "{path}: {} {}", answer.status(), answer.text().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_highest_number_is_the_latest_and_a_rollback_is_one_step() -> Result<()> {
    let node = Node::start().await?;
    let image = create_image(&node, "zedge/vm").await?;
    for (number, seed, expected) in
        [("1.9.0", 1, "1.9.0"), ("1.10.0", 2, "1.10.0"), ("1.9.1", 3, "1.10.0")]
    {
        publish(&node, image, number, seed).await?;
        ensure!(latest(&node, "zedge/vm").await? == expected, "after {number}");
    }
    let page: Page<Version> =
        node.get(&format!("images/{image}/versions?page=1&page_size=2")).await?;
    let shown: Vec<_> =
        page.data.iter().map(|one| (one.version.as_str(), one.version_sequence)).collect();
    ensure!(shown == [("1.10.0", 2), ("1.9.1", 3)], "{shown:?}");
    ensure!((page.pagination.total_count, page.pagination.total_pages) == (3, 2));
    ensure!(page.data[0].compressed_size_bytes.is_some_and(|bytes| bytes > 0), "{page:?}");

    let path = format!("images/{image}/rollback");
    let moved: Tag = node.call(Method::POST, &path, &json!({ "version": "1.9.0" })).await?;
    ensure!((moved.tag_name.as_str(), moved.version.as_str()) == ("latest", "1.9.0"));
    let named: VersionDetail = node.get(&format!("images/{image}/versions/1.9.0")).await?;
    ensure!(moved.version_id == Some(named.version.id) && moved.image_id == Some(image));
    ensure!(named.version.image_id == Some(image) && named.config_digest.is_some(), "{named:?}");
    ensure!(latest(&node, "zedge/vm").await? == "1.9.0");
    // Another tag goes back alone, and only where it is.
    let stable = json!({ "version": "1.9.0", "tag": "stable" });
    let none = node.request(Method::POST, &path).json(&stable).send().await?;
    problem(none, StatusCode::NOT_FOUND).await?;
    let tag_path = format!("images/{image}/tags/stable");
    let _set: Tag = node.call(Method::PUT, &tag_path, &json!({ "version": "1.10.0" })).await?;
    let back: Tag = node.call(Method::POST, &path, &stable).await?;
    ensure!(back.version == "1.9.0" && back.created_at.is_some(), "{back:?}");

    // The same content under another number is stored no second time.
    let made = json!({
        "version": "2.0.0", "from": "1.9.1", "changelog": "1.9.1, released", "tags": null,
    });
    let path = format!("images/{image}/versions");
    let made: VersionDetail = node.call(Method::POST, &path, &made).await?;
    ensure!(made.version.added_size_bytes == 0 && made.version.changelog == "1.9.1, released");
    ensure!(latest(&node, "zedge/vm").await? == "2.0.0");
    let one = download(&node, image, "2.0.0", "raw").await?;
    ensure!(one == download(&node, image, "1.9.1", "raw").await?);
    let taken = node
        .request(Method::POST, &path)
        .json(&json!({ "version": "1.9.0", "from": "1.9.1" }))
        .send()
        .await?;
    ensure!(problem(taken, StatusCode::CONFLICT).await?.code == "version_exists");

    // A number with a v is found, and is no tag of another version.
    let found: Resolution = node.get("resolve?reference=zedge/vm:v1.9.1").await?;
    ensure!(found.version == "1.9.1" && found.tag.is_none(), "{found:?}");
    let wrong = node
        .request(Method::PUT, &format!("images/{image}/tags/v1.9.1"))
        .json(&json!({ "version": "1.10.0" }));
    let wrong = problem(wrong.send().await?, StatusCode::CONFLICT).await?;
    ensure!(wrong.code == "tag_names_another_version", "{wrong:?}");
    // Nor does a version come by which a text would mean two.
    for (route, request) in [
        ("", json!({ "version": "3.0.0", "from": "2.0.0", "tags": ["1.9.1"] })),
        ("", json!({ "version": "stable", "from": "2.0.0" })),
        ("/upload/init", json!({ "version": "3.0.0", "total_size_bytes": 5, "tags": ["v1.9.1"] })),
        ("/import", json!({ "version": "stable", "url": "https://images.example/f" })),
    ] {
        let path = format!("images/{image}/versions{route}");
        let wrong = node.request(Method::POST, &path).json(&request).send().await?;
        let wrong = problem(wrong, StatusCode::CONFLICT).await?;
        ensure!(wrong.code == "tag_names_another_version", "{request}: {wrong:?}");
    }
    for (tag, kind) in [
        ("v1.10.0", "version"),
        ("beta", "semantic"),
        ("prod", "environment"),
        ("snapshot-20240115", "time"),
    ] {
        let path = format!("images/{image}/tags/{tag}");
        let set: Tag = node.call(Method::PUT, &path, &json!({ "version": "1.10.0" })).await?;
        ensure!(set.kind == kind, "{set:?}");
    }
    let Page { data: tags, pagination }: Page<Tag> =
        node.get(&format!("images/{image}/tags?page_size=50")).await?;
    ensure!((pagination.total_count, pagination.page_size) == (7, 50), "{pagination:?}");
    let second: Page<Tag> = node.get(&format!("images/{image}/tags?page=2&page_size=5")).await?;
    ensure!(second.data == tags[5..] && second.pagination.total_pages == 2, "{second:?}");
    let mut named = tags.clone();
    named.sort_by(|one, other| one.tag_name.cmp(&other.tag_name));
    let path = format!("images/{image}/tags?sort=name&page_size=3");
    let first: Page<Tag> = node.get(&path).await?;
    ensure!(first.data == named[..3] && first.pagination.total_count == 7, "{first:?}");
    let behind: Page<Tag> = node.get(&format!("{path}&after={}", named[2].tag_name)).await?;
    ensure!(behind.data == named[3..6] && behind.pagination.total_count == 7, "{behind:?}");
    for wrong in ["sort=size", "after=v1"] {
        let path = format!("images/{image}/tags?{wrong}");
        let wrong = node.request(Method::GET, &path).send().await?;
        ensure!(problem(wrong, StatusCode::BAD_REQUEST).await?.code == "sort_invalid");
    }
    let detail: ImageDetail = node.get(&format!("images/{image}")).await?;
    ensure!(detail.image.tags == tags, "{detail:?}");
    ensure!(tags.windows(2).all(|pair| pair[0].updated_at >= pair[1].updated_at), "{tags:?}");
    ensure!(tags.len() == 7, "{tags:?}");

    // An image shows its highest numbers; the list has all.
    let path = format!("images/{image}/versions");
    let made = (1..=100).map(|number| {
        let (node, path) = (&node, &path);
        async move {
            let request = json!({ "version": format!("2.0.{number}"), "from": "2.0.0" });
            node.call::<VersionDetail>(Method::POST, path, &request).await
        }
    });
    futures::future::try_join_all(made).await?;
    let detail: ImageDetail = node.get(&format!("images/{image}")).await?;
    let (first, last) = (&detail.versions[0].version, &detail.versions[99].version);
    ensure!(detail.versions.len() == 100 && (&**first, &**last) == ("2.0.100", "2.0.1"));
    let page: Page<Version> = node.get(&format!("{path}?page=11&page_size=10")).await?;
    let shown: Vec<&str> = page.data.iter().map(|one| one.version.as_str()).collect();
    ensure!(shown == ["2.0.0", "1.10.0", "1.9.1", "1.9.0"], "{shown:?}");
    ensure!(page.pagination.total_count == 104, "{page:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deprecation_names_who_runs_the_version_which_cannot_be_removed() -> Result<()> {
    let node = Node::start().await?;
    let image = create_image(&node, "zedge/vm").await?;
    for (number, seed) in [("1.0.0", 1), ("1.0.1", 2)] {
        publish(&node, image, number, seed).await?;
    }
    let first = json!({ "id": "vm-1", "image_id": image, "image_tag_used": "1.0.0" });
    let one: Instance = node.call(Method::POST, "instances", &first).await?;
    ensure!(one.version == "1.0.0" && one.registered_by == "admin", "{one:?}");
    let again = node.request(Method::POST, "instances").json(&first).send().await?;
    ensure!(problem(again, StatusCode::CONFLICT).await?.code == "instance_exists");
    let by_digest = json!({ "image": "zedge/vm", "image_digest": one.image_digest });
    let _two: Instance = node.call(Method::PUT, "instances/vm-2", &by_digest).await?;
    // What is said has to agree.
    let odd = json!({
        "image_id": image, "image_tag_used": "latest", "image_version_id": one.image_version_id,
    });
    let three: Instance = node.call(Method::PUT, "instances/vm-3", &odd).await?;
    ensure!(three.version == "1.0.0", "an id means more than a tag that moves: {three:?}");
    let newest: Resolution = node.get("resolve?reference=zedge/vm:latest").await?;
    let wrong = json!({
        "id": "vm-4", "image_id": image, "image_version_id": one.image_version_id,
        "image_digest": newest.manifest_digest,
    });
    let wrong = node.request(Method::POST, "instances").json(&wrong).send().await?;
    ensure!(problem(wrong, StatusCode::CONFLICT).await?.code == "version_mismatch");

    let path = format!("images/{image}/versions/1.0.0");
    let message = json!({ "message": "take 1.0.1" });
    let answer: VersionDetail =
        node.call(Method::POST, &format!("{path}/deprecate"), &message).await?;
    let names: Vec<&str> = answer.instances.iter().map(|name| name.as_str()).collect();
    ensure!(names == ["vm-1", "vm-2", "vm-3"] && answer.version.status == "deprecated");
    let told: Instance = node.get("instances/vm-1").await?;
    ensure!(told.deprecation.context("not told")?.message == "take 1.0.1");
    let affected: Page<Instance> = node.get("instances?version_status=deprecated").await?;
    ensure!(affected.pagination.total_count == 3, "{affected:?}");
    let found: Resolution = node.get("resolve?reference=zedge/vm:1.0.0").await?;
    ensure!(found.status == "deprecated" && found.deprecation.is_some(), "{found:?}");

    // Neither by its own path, nor by the registry, nor with the image.
    let refused = node.request(Method::DELETE, &path).send().await?;
    let refused = problem(refused, StatusCode::CONFLICT).await?;
    ensure!(
        refused.code == "in_use" && refused.message.contains("vm-1, vm-2, vm-3"),
        "{refused:?}"
    );
    let manifest = format!("zedge/vm/manifests/{}", one.image_digest);
    let refused = node.v2(Method::DELETE, &manifest).send().await?;
    ensure!(refused.status() == StatusCode::CONFLICT, "{}", refused.status());
    ensure!(refused.text().await?.contains("vm-1"));
    for purge in ["", "?purge=true"] {
        let path = format!("images/{image}{purge}");
        let refused = node.request(Method::DELETE, &path).send().await?;
        ensure!(problem(refused, StatusCode::CONFLICT).await?.code == "in_use");
    }

    let _moved: Instance = node
        .call(
            Method::PUT,
            "instances/vm-2",
            &json!({ "image_id": image, "image_tag_used": "latest" }),
        )
        .await?;
    for name in ["vm-1", "vm-3"] {
        delete(&node, &format!("instances/{name}"), StatusCode::NO_CONTENT).await?;
    }
    let undone: VersionDetail =
        node.call(Method::DELETE, &format!("{path}/deprecate"), &json!({})).await?;
    ensure!(undone.version.status == "active" && undone.instances.is_empty(), "{undone:?}");
    // Without a body, there is nothing to say.
    let silent = node.request(Method::POST, &format!("{path}/deprecate")).send().await?;
    let silent: VersionDetail = read(silent).await?;
    ensure!(silent.version.deprecation.context("not deprecated")?.message.is_empty());
    delete(&node, &path, StatusCode::NO_CONTENT).await?;
    let left: Page<Instance> = node.get(&format!("instances?image_id={image}")).await?;
    ensure!(left.data.len() == 1 && left.data[0].version == "1.0.1", "{left:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_cannot_keep_a_public_image_from_being_removed() -> Result<()> {
    let node = Node::start().await?;
    let public = json!({ "name": "open", "visibility": "public" });
    let image: Image = node.call(Method::POST, "images", &public).await?;
    ensure!(image.visibility == "public", "{image:?}");
    publish(&node, image.id, "1.0.0", 1).await?;
    for name in ["eve", "alice"] {
        let request = json!({ "username": name, "password": PASSWORD });
        let _user: Value = node.call(Method::POST, "users", &request).await?;
    }
    let guest = json!({ "role": "guest" });
    let _member: Value = node.call(Method::PUT, "projects/open/members/user:alice", &guest).await?;
    let as_user = |user: &str, method: Method, path: &str| {
        let url = format!("{}/api/v1/{path}", node.url);
        node.http.request(method, url).basic_auth(user, Some(PASSWORD))
    };
    let run = json!({ "image": "open", "image_tag_used": "latest" });
    let refused = as_user("eve", Method::PUT, "instances/vm-1").json(&run).send().await?;
    problem(refused, StatusCode::FORBIDDEN).await?;
    let made = as_user("alice", Method::PUT, "instances/vm-1").json(&run).send().await?;
    let made: Instance = read(made).await?;
    ensure!(made.registered_by == "alice", "{made:?}");
    // Neither taken over nor ended by another, but by who administers the image.
    for method in [Method::PUT, Method::DELETE] {
        let refused = as_user("eve", method, "instances/vm-1").json(&run).send().await?;
        problem(refused, StatusCode::FORBIDDEN).await?;
    }
    delete(&node, "instances/vm-1", StatusCode::NO_CONTENT).await?;
    // Nor by a robot that only reads.
    for (name, scopes, status) in [
        ("reads", &["repo:read"][..], StatusCode::FORBIDDEN),
        ("writes", &["repo:read", "repo:write"][..], StatusCode::OK),
    ] {
        let wanted = json!({ "name": name, "scopes": scopes });
        let robot: Value = node.call(Method::POST, "projects/open/robots", &wanted).await?;
        let (name, secret) = (robot["name"].as_str(), robot["secret"].as_str());
        let url = format!("{}/api/v1/instances/vm-2", node.url);
        let put = node.http.put(url).basic_auth(name.context("a name")?, secret);
        let answer = put.json(&run).send().await?;
        ensure!(answer.status() == status, "{name:?}: {}", answer.status());
    }
    delete(&node, "instances/vm-2", StatusCode::NO_CONTENT).await?;

    // Whoever administers another image of the name has no right to the one that was deleted.
    let first = create_image(&node, "open/vm").await?;
    delete(&node, &format!("images/{first}"), StatusCode::NO_CONTENT).await?;
    let second = create_image(&node, "open/vm").await?;
    let grant = json!({
        "principal_type": "user", "principal_id": "alice", "permission_level": "admin",
    });
    let path = format!("images/{second}/permissions");
    let _given: Value = node.call(Method::POST, &path, &grant).await?;
    let own = as_user("alice", Method::DELETE, &format!("images/{second}")).send().await?;
    ensure!(own.status() == StatusCode::NO_CONTENT, "{}", own.status());
    for path in [format!("images/{first}?purge=true"), format!("images/{second}?purge=true")] {
        let refused = as_user("alice", Method::DELETE, &path).send().await?;
        problem(refused, StatusCode::NOT_FOUND).await?;
    }
    let hers = as_user("alice", Method::GET, "images?deleted=true").send().await?;
    ensure!(read::<Page<Image>>(hers).await?.data.is_empty());
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_image_can_be_restored_until_it_is_gone_for_good() -> Result<()> {
    let node = Node::start_with(|config| config.images.deleted_keep_days = 0).await?;
    let image = create_image(&node, "zedge/vm").await?;
    publish(&node, image, "1.0.0", 1).await?;
    let path = format!("images/{image}");
    delete(&node, &path, StatusCode::NO_CONTENT).await?;
    delete(&node, &path, StatusCode::NOT_FOUND).await?;
    let there: Page<Image> = node.get("images?q=vm").await?;
    ensure!(there.data.is_empty(), "{there:?}");
    let gone = node.request(Method::GET, "resolve?reference=zedge/vm:latest").send().await?;
    problem(gone, StatusCode::NOT_FOUND).await?;
    let manifest = node.v2(Method::GET, "zedge/vm/manifests/latest").send().await?;
    ensure!(manifest.status() == StatusCode::NOT_FOUND, "{}", manifest.status());
    let init = json!({ "version": "2", "total_size_bytes": 5 });
    let upload_path = format!("{path}/versions/upload/init");
    let late = node.request(Method::POST, &upload_path).json(&init).send().await?;
    problem(late, StatusCode::NOT_FOUND).await?;

    let deleted: Page<Image> = node.get("images?deleted=true").await?;
    let [row] = deleted.data.as_slice() else { anyhow::bail!("{deleted:?}") };
    ensure!(row.status == "deleted" && row.deleted_at.is_some(), "{row:?}");
    let shown: ImageDetail = node.get(&path).await?;
    ensure!(shown.image.deleted_by.as_deref() == Some("admin") && shown.versions.len() == 1);

    let restore = format!("{path}/restore");
    let other = create_image(&node, "zedge/vm").await?;
    let taken = node.request(Method::POST, &restore).send().await?;
    problem(taken, StatusCode::CONFLICT).await?;
    delete(&node, &format!("images/{other}?purge=true"), StatusCode::NO_CONTENT).await?;
    let back: Image = node.call(Method::POST, &restore, &json!({})).await?;
    ensure!(back.status == "active" && back.latest_version.as_deref() == Some("1.0.0"));
    let bytes = download(&node, image, "1.0.0", "raw").await?;
    ensure!(bytes[..300_000] == std::fs::read(small_disk(&node, 1)?)?[..]);

    // Long enough deleted, it goes by itself.
    delete(&node, &path, StatusCode::NO_CONTENT).await?;
    let raft = node.server.app().raft.clone();
    let keep = std::time::Duration::ZERO;
    let patient =
        shoal_node::trash::Trash::new(raft.clone(), std::time::Duration::from_secs(3600), keep);
    ensure!(patient.empty().await? == 0);
    let trash = shoal_node::trash::Trash::new(raft, keep, keep);
    // What is restored after it was found due stays.
    let due = trash.due().await?;
    ensure!(due.len() == 1, "{due:?}");
    let _back: Image = node.call(Method::POST, &restore, &json!({})).await?;
    ensure!(trash.end(due).await? == 0);
    delete(&node, &path, StatusCode::NO_CONTENT).await?;
    // Whoever began with its end has come no further; that it was deleted just now counts no more.
    let source = AuditSource { who: "admin".to_owned(), ..AuditSource::default() };
    let piece = Command::PurgeImage { id: image, by: source.who.clone(), rows_max: 1 };
    let begun = Command::Audited { source, command: Box::new(piece) };
    node.server.app().propose(begun).await?;
    let lost = node.request(Method::POST, &restore).send().await?;
    problem(lost, StatusCode::NOT_FOUND).await?;
    ensure!(patient.empty().await? == 1);
    ensure!(trash.empty().await? == 0);
    let missing = node.request(Method::POST, &restore).send().await?;
    problem(missing, StatusCode::NOT_FOUND).await?;
    let trail: Value = node.get("audit?action=image").await?;
    for action in ["image.delete", "image.restore", "image.purge"] {
        ensure!(trail.to_string().contains(action), "{action} is not in {trail}");
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_searched_and_sorted() -> Result<()> {
    let node = Node::start().await?;
    for (name, image_type, team, note) in [
        ("zedge/alpha", "os_base", "blue", "Approved"),
        ("zedge/beta", "application", "blue", "tested"),
        ("zedge/gamma", "os_base", "red", "tested"),
    ] {
        let request = json!({
            "name": name, "image_type": image_type, "os_type": "linux",
            "labels": { "team": team, "env": "prod" }, "annotations": { "state": note },
            "recommended_memory_mb": 4096,
        });
        let _image: Image = node.call(Method::POST, "images", &request).await?;
    }
    push_image(&node, "zedge/container", "v1", b"layer").await?;
    let names = async |query: &str| -> Result<Vec<String>> {
        let page: Page<Image> = node.get(&format!("images?{query}")).await?;
        Ok(page.data.iter().map(|image| image.name.as_str()[6..].to_owned()).collect())
    };
    for (query, wanted) in [
        ("type=os_base", vec!["alpha", "gamma"]),
        ("type=os_base&labels=team%3Dred", vec!["gamma"]),
        ("labels=team%3Dblue,env%3Dprod&sort=name:desc", vec!["beta", "alpha"]),
        ("annotations=state%3Dtested", vec!["beta", "gamma"]),
        ("q=APPROVED", vec!["alpha"]),
        ("q=red", vec!["gamma"]),
        ("sort=created_at:desc&kind=disk", vec!["gamma", "beta", "alpha"]),
        ("sort=-created_at&page=2&page_size=3", vec!["alpha"]),
        ("status=active", vec!["container"]),
        ("visibility=public", vec![]),
        ("owner=nobody", vec![]),
        ("owner_id=admin&os_type=linux&sort=", vec!["alpha", "beta", "gamma"]),
        ("os_type=linux&page=2&page_size=2", vec!["gamma"]),
        // Equal ones are by name either way, so that pages fit together.
        ("sort=size&kind=disk", vec!["alpha", "beta", "gamma"]),
        ("sort=size:desc", vec!["container", "alpha", "beta", "gamma"]),
        ("sort=-star_count&page=2&page_size=2", vec!["container", "gamma"]),
        ("sort=-name&page_size=2", vec!["gamma", "container"]),
        ("page_size=3", vec!["alpha", "beta", "container"]),
        ("page=2&page_size=3", vec!["gamma"]),
        ("page=3&page_size=3", vec![]),
        ("page_size=2&after=zedge%2Fbeta", vec!["container", "gamma"]),
        ("page_size=2&after=zedge%2Fgamma", vec![]),
        ("os_type=linux&after=zedge%2Falpha", vec!["beta", "gamma"]),
    ] {
        let found = names(query).await?;
        ensure!(found == wanted, "{query}: {found:?}");
    }
    for query in ["page_size=1", "page=9", "after=zedge%2Fbeta", "sort=-name&after=zedge%2Fbeta"] {
        let page: Page<Image> = node.get(&format!("images?{query}")).await?;
        ensure!(page.pagination.total_count == 4, "{query}: {page:?}");
    }
    for bad in ["sort=id", "labels=team", "kind=tape", "page=x", "after=Z"] {
        let refused = node.request(Method::GET, &format!("images?{bad}")).send().await?;
        problem(refused, StatusCode::BAD_REQUEST).await?;
    }
    // What an organization's project holds is the organization's.
    let acme = json!({ "name": "acme" });
    let _made: Value = node.call(Method::POST, "organizations", &acme).await?;
    let project = json!({ "name": "disks", "organization": "acme", "visibility": "organization" });
    let _made: Value = node.call(Method::POST, "projects", &project).await?;
    let vm: Image = node.call(Method::POST, "images", &json!({ "name": "disks/vm" })).await?;
    ensure!(vm.organization_id.as_deref() == Some("acme") && vm.owner_id == "admin", "{vm:?}");
    for query in ["organization=acme", "organization_id=acme&visibility=organization"] {
        let page: Page<Image> = node.get(&format!("images?{query}")).await?;
        ensure!(page.data == [vm.clone()], "{query}: {page:?}");
    }
    ensure!(names("organization=disks").await?.is_empty());
    // Changed in part.
    let page: Page<Image> = node.get("images?name=alpha").await?;
    let path = format!("images/{}", page.data[0].id);
    let change = json!({ "description": "new", "annotations": { "state": "old" } });
    let detail: ImageDetail = node.call(Method::PUT, &path, &change).await?;
    ensure!(detail.image.description == "new" && detail.image.image_type == "os_base");
    ensure!(detail.recommended_memory_mb == 4096, "{detail:?}");
    let image = &detail.image;
    let people = [&image.owner.id, &image.owner_id, &image.created_by, &image.updated_by];
    ensure!(people.iter().all(|name| *name == "admin") && !image.is_public, "{image:?}");
    ensure!(names("annotations=state%3Dold").await? == ["alpha"]);
    let long = json!({ "display_name": "x".repeat(300) });
    let long = node.request(Method::PUT, &path).json(&long).send().await?;
    problem(long, StatusCode::BAD_REQUEST).await?;
    node.server.stop().await
}

async fn star(node: &Node, image: ImageId) -> Result<()> {
    let answer = node.request(Method::PUT, &format!("images/{image}/star")).send().await?;
    ensure!(answer.status() == StatusCode::NO_CONTENT, "{}", answer.status());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stars_and_downloads_cost_no_write_each() -> Result<()> {
    let node = Node::start().await?;
    let image = create_image(&node, "zedge/vm").await?;
    publish(&node, image, "1.0.0", 1).await?;
    let mut images = vec![image];
    for number in 0..39 {
        images.push(create_image(&node, &format!("zedge/other-{number}")).await?);
    }
    let app = node.server.app();
    let written = || app.raft.status().last_log.unwrap_or_default();
    let before = written();
    let starred = images.iter().map(|image| star(&node, *image));
    futures::future::try_join_all(starred).await?;
    // Entries of other books of the cluster's are among them.
    ensure!(written() - before < 20, "{} entries for 40 stars", written() - before);
    // What was answered holds.
    let mine: Vec<Image> = node.get("user/stars").await?;
    ensure!(mine.len() == 40 && mine.iter().all(|image| image.star_count == 1));
    let change = json!({ "os_type": "linux" });
    let changed: ImageDetail = node.call(Method::PUT, &format!("images/{image}"), &change).await?;
    ensure!(changed.starred, "{changed:?}");
    delete(&node, &format!("images/{}/star", images[1]), StatusCode::NO_CONTENT).await?;
    let page: Page<Image> = node.get("images?starred=true&page_size=1").await?;
    ensure!(page.pagination.total_count == 39, "{page:?}");

    let path = format!("images/{image}/versions/1.0.0/download?format=raw");
    for range in [None, Some("bytes=0-99"), Some("bytes=100-"), Some("bytes=-5"), None] {
        let mut request = node.request(Method::GET, &path);
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        request.send().await?.error_for_status()?.bytes().await?;
    }
    // Who only asks how long it is gets nothing.
    let asked = node.request(Method::HEAD, &path).send().await?.error_for_status()?;
    let length: u64 = asked.headers()[header::CONTENT_LENGTH].to_str()?.parse()?;
    ensure!(length >= 300_000, "{length}");
    app.services.pulls.write_down().await?;
    app.services.pulls.write_down().await?;
    let detail: ImageDetail = node.get(&format!("images/{image}")).await?;
    // Later pieces of a download are no downloads.
    ensure!(detail.image.download_count == 3, "{detail:?}");
    ensure!(detail.versions[0].download_count == 3 && detail.starred, "{detail:?}");
    let most: Page<Image> = node.get("images?sort=download_count:desc&page_size=1").await?;
    ensure!(most.data[0].id == image, "{most:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_what_its_uploader_said_becomes_no_version() -> Result<()> {
    let node = Node::start().await?;
    let image = create_image(&node, "zedge/vm").await?;
    let file = std::fs::read(small_disk(&node, 1)?)?;
    let sum = |bytes: &[u8]| super::v2::sha256(bytes);
    let layers = |second: &[u8]| {
        json!([
            { "digest": sum(&file[..100_000]), "size": 100_000 },
            { "digest": sum(second), "size": 200_000 },
        ])
    };
    let path = format!("images/{image}/versions/upload");
    for (number, second, wanted) in
        [("1.0.0", &file[99_999..], "failed"), ("1.0.1", &file[100_000..], "active")]
    {
        let request = json!({
            "version": number, "total_size_bytes": file.len(), "changelog": "the first",
            "build_info": { "builder": "jenkins" },
            "manifest": { "format": "raw", "layers": layers(second) },
        });
        let begun: Value = node.call(Method::POST, &format!("{path}/init"), &request).await?;
        let upload = begun["upload_id"].as_str().context("no id")?.to_owned();
        let session =
            super::disks::Session { path: format!("{path}/{upload}"), parts: vec![file.clone()] };
        super::disks::put(&node, &session, 0).await?;
        let status = super::disks::finish(&node, &session).await?;
        ensure!(status.status == wanted, "{number}: {status:?}");
        let failure = status.failure.unwrap_or_default();
        ensure!(failure.is_empty() || failure.starts_with("checksum_mismatch"), "{failure}");
    }
    let detail: VersionDetail = node.get(&format!("images/{image}/versions/1.0.1")).await?;
    ensure!(detail.version.changelog == "the first", "{detail:?}");
    ensure!(detail.version.build_info == Some(json!({ "builder": "jenkins" })), "{detail:?}");
    let short = json!({
        "version": "2", "total_size_bytes": 5, "manifest": { "layers": layers(&file) },
    });
    let short = node.request(Method::POST, &format!("{path}/init")).json(&short).send().await?;
    ensure!(problem(short, StatusCode::BAD_REQUEST).await?.code == "layers_invalid");
    node.server.stop().await
}
