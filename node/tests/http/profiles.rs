//! What is said of images when they are made and described anew.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shoal_api::{Image, ImageDetail, Page, Problem, Project, UploadStarted};
use shoal_metadata::{Command, ImageNote, ImageProfile};

use super::disks::{create_image, upload};
use super::document::contract::answered;
use super::node::{Node, problem};
use super::v2::push_image;

/// The code of a refusal, which has to be in the document of the API.
async fn refused(
    node: &Node,
    method: Method,
    path: &str,
    body: &Value,
    status: StatusCode,
) -> Result<String> {
    let answer = node.request(method.clone(), path).json(body).send().await?;
    let documented = format!("/api/v1/{path}");
    let (found, answer) = answered(method.as_str(), &documented, None, answer).await?;
    ensure!(found == status, "{path} {body}: {found} {}", String::from_utf8_lossy(&answer));
    let problem: Problem = serde_json::from_slice(&answer)?;
    Ok(problem.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_as_visible_as_its_project_or_refused() -> Result<()> {
    let node = Node::start().await?;
    let open = json!({ "name": "zedge", "visibility": "public", "description": "ours" });
    let _made: Project = node.call(Method::POST, "projects", &open).await?;
    for wanted in ["private", "organization"] {
        let request = json!({ "name": "zedge/secret", "visibility": wanted });
        let code = refused(&node, Method::POST, "images", &request, StatusCode::CONFLICT).await?;
        ensure!(code == "visibility_mismatch", "{code}");
    }
    let mut images = Vec::new();
    for (name, visibility) in [("zedge/same", json!("public")), ("zedge/unsaid", json!(""))] {
        let request = json!({ "name": name, "visibility": visibility });
        let image: Image = node.call(Method::POST, "images", &request).await?;
        ensure!(image.visibility == "public", "{image:?}");
        images.push(image.id);
    }
    let all: Page<Image> = node.get("images").await?;
    ensure!(all.pagination.total_count == 2, "{all:?}");

    let path = format!("images/{}", images[0]);
    let change = json!({ "visibility": "private", "description": "hidden" });
    let code = refused(&node, Method::PUT, &path, &change, StatusCode::CONFLICT).await?;
    ensure!(code == "visibility_mismatch", "{code}");
    let unknown = json!({ "visibility": "hidden" });
    let code = refused(&node, Method::PUT, &path, &unknown, StatusCode::BAD_REQUEST).await?;
    ensure!(code == "visibility_invalid", "{code}");
    let same = json!({ "visibility": "public", "os_type": "linux" });
    let described: ImageDetail = node.call(Method::PUT, &path, &same).await?;
    ensure!(described.image.description.is_empty() && described.image.os_type == "linux");
    let project: Project = node.get("projects/zedge").await?;
    ensure!(project.visibility == "public" && project.description == "ours", "{project:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_an_image_makes_is_as_open_as_it_or_not_made() -> Result<()> {
    let node = Node::start().await?;
    // Its maker's, and so no organization's.
    let inside = json!({ "name": "lab/vm", "visibility": "organization" });
    let code = refused(&node, Method::POST, "images", &inside, StatusCode::BAD_REQUEST).await?;
    ensure!(code == "visibility_invalid", "{code}");
    let missing = node.request(Method::GET, "projects/lab").send().await?;
    ensure!(missing.status() == StatusCode::NOT_FOUND, "{}", missing.status());
    for (name, wanted) in [("lab/vm", "public"), ("lab/other", "public"), ("den/vm", "private")] {
        let request = json!({ "name": name, "visibility": wanted });
        let image: Image = node.call(Method::POST, "images", &request).await?;
        ensure!(image.visibility == wanted, "{image:?}");
    }
    let request = json!({ "name": "acme", "owner": "admin" });
    let _made: Value = node.call(Method::POST, "organizations", &request).await?;
    let request = json!({ "name": "team", "organization": "acme", "visibility": "organization" });
    let _made: Project = node.call(Method::POST, "projects", &request).await?;
    let request = json!({ "name": "team/vm", "visibility": "organization" });
    let image: Image = node.call(Method::POST, "images", &request).await?;
    ensure!(image.visibility == "organization", "{image:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_an_image_makes_is_the_organization_s_that_is_named() -> Result<()> {
    let node = Node::start().await?;
    let request = json!({ "name": "acme", "owner": "admin" });
    let _made: Value = node.call(Method::POST, "organizations", &request).await?;
    for (name, more) in [("desk/one", json!("organization")), ("desk/two", Value::Null)] {
        let request = json!({ "name": name, "visibility": more, "organization_id": "acme" });
        let image: Image = node.call(Method::POST, "images", &request).await?;
        ensure!(image.visibility == "organization", "{image:?}");
        ensure!(image.organization_id.as_deref() == Some("acme"), "{image:?}");
    }
    let project: Project = node.get("projects/desk").await?;
    ensure!(project.owner == "organization:acme", "{project:?}");
    let _own: Image = node.call(Method::POST, "images", &json!({ "name": "own/vm" })).await?;
    for (name, organization, status, code) in [
        ("own/other", "acme", StatusCode::CONFLICT, "organization_mismatch"),
        ("desk/three", "others", StatusCode::CONFLICT, "organization_mismatch"),
        ("new/vm", "others", StatusCode::NOT_FOUND, "organization_not_found"),
        ("new/vm", "No Name", StatusCode::NOT_FOUND, "organization_not_found"),
    ] {
        let request = json!({ "name": name, "organization_id": organization });
        let found = refused(&node, Method::POST, "images", &request, status).await?;
        ensure!(found == code, "{name}: {found}");
    }
    let missing = node.request(Method::GET, "projects/new").send().await?;
    ensure!(missing.status() == StatusCode::NOT_FOUND, "{}", missing.status());
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_alone_in_its_project_opens_and_closes_it() -> Result<()> {
    let node = Node::start().await?;
    let request = json!({ "name": "ubuntu", "is_public": true });
    let image: Image = node.call(Method::POST, "images", &request).await?;
    ensure!(image.is_public && image.visibility == "public", "{image:?}");
    let path = format!("images/{}", image.id);
    for (change, wanted) in [
        (json!({ "visibility": "private", "description": "closed" }), "private"),
        (json!({ "is_public": true }), "public"),
        (json!({ "visibility": "private", "is_public": true }), "private"),
        (json!({ "visibility": "public" }), "public"),
    ] {
        let shown: ImageDetail = node.call(Method::PUT, &path, &change).await?;
        ensure!(shown.image.visibility == wanted, "{change}: {shown:?}");
        ensure!(shown.image.description == "closed", "{change}: {shown:?}");
        let project: Project = node.get("projects/ubuntu").await?;
        ensure!(project.visibility == wanted, "{change}: {project:?}");
    }
    for (change, code) in [
        // It is no organization's.
        (json!({ "visibility": "organization" }), "visibility_mismatch"),
        (json!({ "name": "debian" }), "name_fixed"),
        (json!({ "organization_id": "acme" }), "organization_mismatch"),
    ] {
        let found = refused(&node, Method::PUT, &path, &change, StatusCode::CONFLICT).await?;
        ensure!(found == code, "{change}: {found}");
    }
    // Who may write to it may not show it to all, nor hide it.
    let lisi = json!({ "username": "lisi", "password": "correct-horse-7" });
    let _made: Value = node.call(Method::POST, "users", &lisi).await?;
    let right = json!({
        "principal_type": "user", "principal_id": "lisi", "permission_level": "write",
    });
    let _given: Value = node.call(Method::POST, &format!("{path}/permissions"), &right).await?;
    let close = json!({ "visibility": "private" });
    for (change, status) in
        [(&close, StatusCode::CONFLICT), (&json!({ "os_type": "linux" }), StatusCode::OK)]
    {
        let url = format!("{}/api/v1/{path}", node.url);
        let request = node.http.put(url).basic_auth("lisi", Some("correct-horse-7"));
        let answer = request.json(change).send().await?;
        ensure!(answer.status() == status, "{change}: {}", answer.status());
    }
    // Another one, in the trash as well, would be closed with it.
    let other = create_image(&node, "ubuntu/server").await?;
    for end in ["", "?purge=true"] {
        let code = refused(&node, Method::PUT, &path, &close, StatusCode::CONFLICT).await?;
        ensure!(code == "visibility_mismatch", "{code}");
        let gone = node.request(Method::DELETE, &format!("images/{other}{end}")).send().await?;
        ensure!(gone.status() == StatusCode::NO_CONTENT, "{}", gone.status());
    }
    // Of a name that only begins like it, nothing is closed.
    create_image(&node, "ubuntu-server").await?;
    let closed: ImageDetail = node.call(Method::PUT, &path, &close).await?;
    ensure!(closed.image.visibility == "private", "{closed:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn null_is_read_as_nothing_said() -> Result<()> {
    let node = Node::start().await?;
    let request = json!({
        "name": "zedge/vm", "display_name": null, "description": null, "image_type": null,
        "os_type": null, "os_version": null, "architecture": null, "format": null,
        "visibility": null, "min_cpu_cores": null, "min_memory_mb": null, "min_disk_gb": null,
        "recommended_cpu_cores": null, "recommended_memory_mb": null,
        "recommended_disk_gb": null, "labels": null, "annotations": null,
    });
    let image: Image = node.call(Method::POST, "images", &request).await?;
    ensure!(image.format == "qcow2" && image.labels.is_empty(), "{image:?}");
    let path = format!("images/{}", image.id);
    let described: ImageDetail =
        node.call(Method::PUT, &path, &json!({ "description": "kept" })).await?;
    ensure!(described.image.description == "kept", "{described:?}");
    let nothing = json!({ "description": null, "labels": null, "min_cpu_cores": null });
    let described: ImageDetail = node.call(Method::PUT, &path, &nothing).await?;
    ensure!(described.image.description == "kept", "{described:?}");
    let init = json!({
        "version": "1.0.0", "total_size_bytes": 1024, "chunk_size_bytes": null, "format": null,
        "tags": null, "changelog": null, "build_info": null,
        "manifest": { "format": null, "layers": null },
    });
    let init_path = format!("{path}/versions/upload/init");
    let begun: UploadStarted = node.call(Method::POST, &init_path, &init).await?;
    ensure!(begun.total_chunks == 1, "{begun:?}");
    // What is needed is needed.
    let nameless = node.request(Method::POST, "images").json(&json!({ "name": null }));
    let nameless = nameless.send().await?;
    ensure!(nameless.status().as_u16() == 422, "{}", nameless.status());
    let refused: Value = nameless.json().await?;
    ensure!(refused["code"] == "body_invalid", "{refused}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_an_image_has_a_meaning() -> Result<()> {
    let node = Node::start().await?;
    for (field, wrong, code) in [
        ("format", json!("banana"), "format_invalid"),
        ("image_type", json!("tape"), "image_type_invalid"),
        ("annotations", json!({ "note": "x".repeat(5000) }), "annotations_invalid"),
        ("labels", json!({ "note": "x".repeat(300) }), "labels_invalid"),
        ("description", json!("长".repeat(4097)), "text_too_long"),
    ] {
        let mut request = json!({ "name": "zedge/wrong" });
        request[field] = wrong;
        let status = StatusCode::BAD_REQUEST;
        let found = refused(&node, Method::POST, "images", &request, status).await?;
        ensure!(found == code, "{field}: {found}");
    }
    let missing = node.request(Method::GET, "projects/zedge").send().await?;
    ensure!(missing.status() == StatusCode::NOT_FOUND, "{}", missing.status());

    let long = "长".repeat(4096);
    let request = json!({
        "name": "zedge/vm", "format": "VHDX", "image_type": "snapshot", "description": long,
        "annotations": { "note": "x".repeat(4000) },
    });
    let image: Image = node.call(Method::POST, "images", &request).await?;
    ensure!((image.format.as_str(), image.architecture.as_str()) == ("vhdx", "x86_64"));
    ensure!(image.kind == "disk" && image.description == long, "{image:?}");
    let path = format!("images/{}", image.id);
    for (change, code) in [
        (json!({ "format": "docker" }), "format_invalid"),
        (json!({ "image_type": "tape" }), "image_type_invalid"),
    ] {
        let found = refused(&node, Method::PUT, &path, &change, StatusCode::BAD_REQUEST).await?;
        ensure!(found == code, "{change}: {found}");
    }
    let change = json!({ "format": "raw", "architecture": "arm64" });
    let changed: ImageDetail = node.call(Method::PUT, &path, &change).await?;
    let changed = changed.image;
    ensure!((changed.format.as_str(), changed.architecture.as_str()) == ("raw", "arm64"));
    ensure!(changed.annotations["note"].len() == 4000, "{changed:?}");

    // What docker is to push is no disk.
    let request = json!({ "name": "zedge/app", "format": "docker" });
    let container: Image = node.call(Method::POST, "images", &request).await?;
    ensure!((container.kind.as_str(), container.format.as_str()) == ("container", "docker"));
    push_image(&node, "zedge/app", "v1", b"layer").await?;
    let init = json!({ "version": "1.0.0", "total_size_bytes": 1024 });
    let path = format!("images/{}/versions/upload/init", container.id);
    let found = refused(&node, Method::POST, &path, &init, StatusCode::CONFLICT).await?;
    ensure!(found == "wrong_state", "{found}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_at_the_same_moment_are_all_made_and_a_condition_is_held() -> Result<()> {
    let node = Node::start().await?;
    let image = create_image(&node, "zedge/vm").await?;
    let path = format!("images/{image}");
    let changes = [
        json!({ "description": "d" }),
        json!({ "display_name": "n" }),
        json!({ "os_type": "linux" }),
        json!({ "os_version": "12" }),
        json!({ "min_cpu_cores": 2 }),
        json!({ "recommended_memory_mb": 4096 }),
        json!({ "labels": { "team": "blue" } }),
        json!({ "annotations": { "note": "x" } }),
    ];
    let sent = changes.iter().map(|change| node.call::<ImageDetail>(Method::PUT, &path, change));
    for answer in futures::future::join_all(sent).await {
        answer?;
    }
    let shown: ImageDetail = node.get(&path).await?;
    let found = &shown.image;
    ensure!(found.description == "d" && found.display_name == "n", "{shown:?}");
    ensure!(found.os_type == "linux" && found.os_version == "12", "{shown:?}");
    ensure!(shown.min_cpu_cores == 2 && shown.recommended_memory_mb == 4096, "{shown:?}");
    ensure!(found.labels["team"] == "blue" && found.annotations["note"] == "x", "{shown:?}");

    let tag = |answer: &reqwest::Response| answer.headers().get("etag").cloned();
    let seen = tag(&node.request(Method::GET, &path).send().await?).context("a tag")?;
    let change = |text: &str| {
        let request = node.request(Method::PUT, &path).json(&json!({ "description": text }));
        request.header("if-match", seen.clone())
    };
    let changed = change("first").send().await?;
    ensure!(changed.status() == StatusCode::OK, "{}", changed.status());
    ensure!(tag(&changed).is_some_and(|now| now != seen), "the tag is the same");
    let late = problem(change("second").send().await?, StatusCode::PRECONDITION_FAILED).await?;
    ensure!(late.code == "changed", "{late:?}");
    let shown: ImageDetail = node.get(&path).await?;
    ensure!(shown.image.description == "first", "{shown:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_whose_format_says_nothing_is_downloaded_as_qcow2() -> Result<()> {
    let node = Node::start().await?;
    let image = create_image(&node, "zedge/vm").await?;
    let file = node.path().join("small.raw");
    std::fs::write(&file, vec![7_u8; 100_000])?;
    let status = upload(&node, image, &file, "1.0.0").await?;
    ensure!(status.status == "active", "{status:?}");
    // As a node of an earlier version kept it.
    let profile = ImageProfile { format: "docker".to_owned(), ..ImageProfile::default() };
    let note = ImageNote::default();
    node.server.app().propose(Command::DescribeImage { id: image, profile, note }).await?;
    let path = format!("images/{image}/versions/1.0.0/download");
    let answer = node.request(Method::GET, &path).send().await?.error_for_status()?;
    ensure!(answer.bytes().await?.starts_with(b"QFI\xfb"), "it is no qcow2");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_id_is_answered_like_the_id_of_nothing() -> Result<()> {
    let node = Node::start().await?;
    let image = create_image(&node, "zedge/vm").await?;
    let uploads = format!("images/{image}/versions/upload");
    for (method, path, code) in [
        (Method::GET, "images/img-123".to_owned(), "image_not_found"),
        (Method::PUT, "images/img-123/star".to_owned(), "image_not_found"),
        (Method::GET, "images/7/versions/latest".to_owned(), "image_not_found"),
        (Method::GET, "images/img-123/permissions".to_owned(), "image_not_found"),
        (Method::GET, format!("{uploads}/upload-789"), "upload_not_found"),
        (Method::DELETE, "storage/uploads/upload-789".to_owned(), "upload_not_found"),
        (Method::GET, "deployments/dep-5".to_owned(), "deployment_not_found"),
    ] {
        let found = refused(&node, method, &path, &json!({}), StatusCode::NOT_FOUND).await?;
        ensure!(found == code, "{path}: {found}");
    }
    // What is to be a number is a mistake.
    let path = format!("{uploads}/upload-00000000-0000-4000-8000-000000000003/chunks/first");
    let found = refused(&node, Method::PUT, &path, &json!({}), StatusCode::BAD_REQUEST).await?;
    ensure!(found == "path_invalid", "{found}");
    node.server.stop().await
}
