//! Lists over HTTP that come in parts: each leads on to the next one, and holds what its asker may see.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, RequestBuilder, StatusCode, header};
use serde_json::{Value, json};

use super::members::Agent;
use super::node::{Node, problem, read};
use super::v2::{expect, push_image};

const PASSWORD: &str = "correct-horse-7";
const PARTS_MAX: usize = 20;

/// The names in each part of a list, as its links lead on.
async fn parts(
    request: impl Fn(&str) -> RequestBuilder,
    path: &str,
    name: &str,
) -> Result<Vec<Vec<String>>> {
    let (mut found, mut path) = (Vec::new(), path.to_owned());
    for _ in 0..PARTS_MAX {
        let answer = request(&path).send().await?;
        let link = answer.headers().get(header::LINK).cloned();
        let body: Value = read(answer).await?;
        let items = body.as_array().or_else(|| body["data"].as_array()).context("items")?;
        let names = items.iter().map(|item| item[name].as_str().map(str::to_owned));
        found.push(names.collect::<Option<_>>().context("names")?);
        let Some(link) = link else { return Ok(found) };
        let link = link.to_str()?.strip_prefix("</api/v1/").context("a path")?.to_owned();
        path = link.strip_suffix(">; rel=\"next\"").context("the next part")?.to_owned();
    }
    anyhow::bail!("{path}: the links do not end")
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_names_come_in_parts_that_lead_on_to_the_last() -> Result<()> {
    let node = Node::start().await?;
    for name in ["bea", "cleo"] {
        let request = json!({ "username": name, "password": PASSWORD });
        let _user: Value = node.call(Method::POST, "users", &request).await?;
    }
    for (name, visibility) in [
        ("p1", "public"),
        ("p2", "private"),
        ("p2-a", "public"),
        ("p3", "private"),
        ("p4", "public"),
    ] {
        let request = json!({ "name": name, "visibility": visibility });
        let _project: Value = node.call(Method::POST, "projects", &request).await?;
    }
    for name in ["acme", "zeta"] {
        let request = json!({ "name": name });
        let _made: Value = node.call(Method::POST, "organizations", &request).await?;
    }
    let member: Value = json!({ "role": "member" });
    let _member: Value = node.call(Method::PUT, "organizations/zeta/members/bea", &member).await?;
    let guest: Value = json!({ "role": "limited-guest" });
    let _member: Value = node.call(Method::PUT, "projects/p3/members/user:bea", &guest).await?;

    let admin = |path: &str| node.request(Method::GET, path);
    let bea = |path: &str| {
        let url = format!("{}/api/v1/{path}", node.url);
        node.http.get(url).basic_auth("bea", Some(PASSWORD))
    };
    let people = ["admin", "bea", "cleo"];
    let found = parts(admin, "users?limit=2", "username").await?;
    ensure!(found == [&people[..2], &people[2..]], "{found:?}");
    ensure!(parts(admin, "users", "username").await? == [people]);
    let all = ["p1", "p2", "p2-a", "p3", "p4"];
    ensure!(parts(admin, "projects", "name").await? == [all]);
    ensure!(parts(admin, "projects?limit=3", "name").await? == [&all[..3], &all[3..]]);
    // What is private is stepped over; who may pull what it can name sees the project.
    let found = parts(bea, "projects?limit=1", "name").await?;
    ensure!(found == [["p1"], ["p2-a"], ["p3"], ["p4"]], "{found:?}");
    ensure!(parts(bea, "projects?after=p2-a", "name").await? == [["p3", "p4"]]);
    ensure!(parts(admin, "organizations?limit=1", "name").await? == [["acme"], ["zeta"]]);
    ensure!(parts(bea, "organizations", "name").await? == [["zeta"]]);
    problem(bea("users").send().await?, StatusCode::FORBIDDEN).await?;
    problem(admin("projects?limit=few").send().await?, StatusCode::BAD_REQUEST).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_groups_hosts_uploads_and_instances_come_in_parts() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "p/app", "v1", b"layer").await?;
    let acme = json!({ "name": "acme" });
    let _made: Value = node.call(Method::POST, "organizations", &acme).await?;
    let mut image = Value::Null;
    for number in 1..=3 {
        let run = json!({ "image": "p/app", "image_tag_used": "v1" });
        let path = format!("instances/vm-{number}");
        let made: Value = node.call(Method::PUT, &path, &run).await?;
        image = made["image_id"].clone();
    }
    let image = image.as_str().context("an image")?;
    let people = ["bea", "cleo", "dora"];
    for name in people.into_iter().chain(["eve"]) {
        let request = json!({ "username": name, "password": PASSWORD });
        let _user: Value = node.call(Method::POST, "users", &request).await?;
    }
    for name in people {
        for (path, role) in [
            (format!("projects/p/members/user:{name}"), "guest"),
            (format!("organizations/acme/members/{name}"), "member"),
            (format!("images/{image}/permissions/user:{name}"), "read"),
        ] {
            let _member: Value = node.call(Method::PUT, &path, &json!({ "role": role })).await?;
        }
        let group = json!({ "name": format!("with-{name}"), "description": "" });
        let _group: Value = node.call(Method::POST, "organizations/acme/groups", &group).await?;
    }
    for name in ["host-b", "host-c", "host-a"] {
        Agent::enrol(&node, name).await?;
        let begun = node.v2(Method::POST, "p/app/blobs/uploads/").send().await?;
        expect(&begun, StatusCode::ACCEPTED)?;
    }

    let admin = |path: &str| node.request(Method::GET, path);
    let members = people.map(|name| format!("user:{name}"));
    for path in ["projects/p/members".to_owned(), format!("images/{image}/permissions")] {
        ensure!(parts(admin, &path, "grantee").await? == [&members[..]], "{path}");
        let found = parts(admin, &format!("{path}?limit=2"), "grantee").await?;
        ensure!(found == [&members[..2], &members[2..]], "{path}: {found:?}");
    }
    let found = parts(admin, "organizations/acme/members?limit=3", "grantee").await?;
    ensure!(found == [&["user:admin", "user:bea", "user:cleo"][..], &["user:dora"]], "{found:?}");
    let found = parts(admin, "organizations/acme/groups?limit=2", "name").await?;
    ensure!(found == [&["with-bea", "with-cleo"][..], &["with-dora"]], "{found:?}");
    let found = parts(admin, "agents?limit=2", "name").await?;
    ensure!(found == [&["host-a", "host-b"][..], &["host-c"]], "{found:?}");
    let uploads = parts(admin, "storage/uploads?limit=2", "id").await?;
    ensure!(uploads.iter().map(Vec::len).eq([2, 1]), "{uploads:?}");
    ensure!(uploads.concat().windows(2).all(|pair| pair[0] < pair[1]), "{uploads:?}");

    let of_version = "instances?limit=2&image=p/app&version=v1&version_status=active";
    for path in ["instances?limit=2", of_version] {
        let found = parts(admin, path, "id").await?;
        ensure!(found == [&["vm-1", "vm-2"][..], &["vm-3"]], "{path}: {found:?}");
    }
    let found = parts(admin, "instances?limit=2&registered_by=eve", "id").await?;
    ensure!(found == [[""; 0]], "{found:?}");
    let page: Value = node.get("instances?page=2&page_size=2").await?;
    ensure!(page["data"][0]["id"] == "vm-3" && page["pagination"]["total_count"] == 3, "{page}");
    for (name, seen) in [("bea", 3), ("eve", 0)] {
        let url = format!("{}/api/v1/instances?limit=5", node.url);
        let answer = node.http.get(url).basic_auth(name, Some(PASSWORD)).send().await?;
        let page: Value = read(answer).await?;
        ensure!(page["data"].as_array().map(Vec::len) == Some(seen), "{name}: {page}");
    }
    for path in ["storage/uploads?after=x", "audit/archives?after=x"] {
        let refused = problem(admin(path).send().await?, StatusCode::BAD_REQUEST).await?;
        ensure!(refused.code == "query_invalid", "{refused:?}");
    }
    Ok(())
}
