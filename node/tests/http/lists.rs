//! Lists over HTTP that come in parts: each leads on to the next one, and holds what its asker may see.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, RequestBuilder, StatusCode, header};
use serde_json::{Value, json};

use super::node::{Node, problem, read};

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
        let items: Vec<Value> = read(answer).await?;
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
