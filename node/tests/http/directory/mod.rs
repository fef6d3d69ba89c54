//! People whose passwords a directory knows, at a real slapd: who gets in, as whom, and attempts to
//! get in without a password.

mod server;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use shoal_node::config::Config;

use super::node::{Node, problem, read};
use super::v2::{expect, sha256};
use super::wait::level_raised;
use server::{BASE, Directory, SEARCHER, SEARCHER_PASSWORD, dn};

fn people() -> String {
    format!("ou=people,{BASE}")
}

/// The settings of a node that asks there, by TLS from the first byte on.
fn asking(directory: &Directory) -> impl FnOnce(&mut Config) + use<> {
    let (url, authority) = (directory.tls_url(), directory.authority());
    move |config| {
        config.ldap.url = url;
        config.ldap.ca_file = Some(authority);
        config.ldap.bind_dn = SEARCHER.to_owned();
        config.ldap.bind_password = SEARCHER_PASSWORD.to_owned();
        config.ldap.user_base = people();
        config.ldap.group_base = format!("ou=groups,{BASE}");
        config.ldap.admin_groups = vec!["wheel".to_owned()];
        config.ldap.groups = vec!["engineers=acme/dev".to_owned()];
        config.ldap.remember_seconds = 0;
    }
}

async fn login(node: &Node, name: &str, password: &str) -> Result<Response> {
    let request = json!({ "username": name, "password": password });
    Ok(node.http.post(format!("{}/api/v1/auth/login", node.url)).json(&request).send().await?)
}

async fn session(node: &Node, name: &str, password: &str) -> Result<String> {
    let session: Value = read(login(node, name, password).await?).await?;
    Ok(session["token"].as_str().context("a token")?.to_owned())
}

async fn me(node: &Node, token: &str) -> Result<Response> {
    let request = node.http.get(format!("{}/api/v1/auth/me", node.url));
    Ok(request.bearer_auth(token).send().await?)
}

async fn role(node: &Node, token: &str) -> Result<Value> {
    let found: Value = read(me(node, token).await?).await?;
    Ok(found["role"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn people_log_in_with_their_passwords_and_groups_of_a_directory() -> Result<()> {
    let mut directory = Directory::start().await?;
    directory.add("alice", &people(), "alices secret")?;
    directory.add("bob", &format!("ou=more,{}", people()), "bobs: secret")?;
    directory.add_group("engineers", &["alice"])?;
    directory.add_group("wheel", &["nobody"])?;
    let node = Node::start_with(asking(&directory)).await?;
    level_raised(&node).await?;
    let organization = json!({ "name": "acme", "owner": "admin" });
    let _made: Value = node.call(Method::POST, "organizations", &organization).await?;
    let _made: Value =
        node.call(Method::POST, "organizations/acme/groups", &json!({ "name": "dev" })).await?;
    let members = async || -> Result<Value> {
        let groups: Vec<Value> = node.get("organizations/acme/groups").await?;
        Ok(groups[0]["members"].clone())
    };

    // The account comes to be with the first login, with what the groups give.
    let alice = session(&node, "alice", "alices secret").await?;
    let found: Value = read(me(&node, &alice).await?).await?;
    ensure!(found["username"] == "alice" && found["role"] == "user", "{found}");
    let account: Value = node.get("users/alice").await?;
    ensure!(account["email"] == "alice@example.com", "{account}");
    ensure!(members().await? == json!(["alice"]), "{}", members().await?);
    let sessions: Vec<Value> = node.get("users/alice/sessions").await?;
    ensure!(sessions.len() == 1, "{sessions:?}");
    // docker's way: for a token with a scope, and for a push, of an account that is not there yet.
    let scope = "token?service=x&scope=repository:bobs/app:pull,push";
    let granted = node.anonymous_v2(Method::GET, scope).basic_auth("bob", Some("bobs: secret"));
    let granted: Value = read(granted.send().await?).await?;
    let token = granted["token"].as_str().context("a token")?;
    let push = format!("bobs/app/blobs/uploads/?digest={}", sha256(b""));
    let pushed = node.anonymous_v2(Method::POST, &push).bearer_auth(token).send().await?;
    expect(&pushed, StatusCode::CREATED)?;
    let pushed = node.anonymous_v2(Method::POST, &push).basic_auth("bob", Some("bobs: secret"));
    expect(&pushed.send().await?, StatusCode::CREATED)?;

    // Role and groups go as they came.
    directory.change(&format!(
        "dn: cn=wheel,ou=groups,{BASE}\nchangetype: modify\nadd: member\nmember: {}\n\n\
         dn: cn=engineers,ou=groups,{BASE}\nchangetype: modify\nreplace: member\nmember: {}\n",
        dn("alice"),
        dn("nobody")
    ))?;
    let second = session(&node, "alice", "alices secret").await?;
    ensure!(role(&node, &second).await? == "admin");
    ensure!(members().await? == json!([]), "{}", members().await?);
    directory.change(&format!("dn: cn=wheel,ou=groups,{BASE}\nchangetype: delete\n"))?;
    let third = session(&node, "alice", "alices secret").await?;
    ensure!(role(&node, &third).await? == "user");

    // A new password, a new name and being gone count at once.
    directory.change(&format!(
        "dn: {}\nchangetype: modify\nreplace: userPassword\nuserPassword: another\n\n\
         dn: {}\nchangetype: modrdn\nnewrdn: uid=alicia\ndeleteoldrdn: 1\n",
        dn("alice"),
        dn("alice")
    ))?;
    expect(&login(&node, "alicia", "alices secret").await?, StatusCode::UNAUTHORIZED)?;
    let renamed = session(&node, "alicia", "another").await?;
    let found: Value = read(me(&node, &renamed).await?).await?;
    ensure!(found["username"] == "alice", "another account for the same entry: {found}");
    // Who types the name that an entry had ends nothing of whose it is.
    expect(&login(&node, "alice", "a guess").await?, StatusCode::UNAUTHORIZED)?;
    expect(&me(&node, &renamed).await?, StatusCode::OK)?;
    // Nor is the password of somebody who has that name there now the one that is asked for here.
    directory.add("carl", &people(), "carls secret")?;
    session(&node, "carl", "carls secret").await?;
    directory.change(&format!(
        "dn: {}\nchangetype: modrdn\nnewrdn: uid=alice\ndeleteoldrdn: 1\n",
        dn("carl")
    ))?;
    let carls = json!({ "current_password": "carls secret" });
    let begun = node.http.post(format!("{}/api/v1/user/second-factor", node.url)).json(&carls);
    let begun = begun.bearer_auth(&renamed).send().await?;
    expect(&begun, StatusCode::UNAUTHORIZED)?;
    directory.change(&format!("dn: {}\nchangetype: delete\n", dn("alice")))?;
    directory.change(&format!("dn: {}\nchangetype: delete\n", dn("alicia")))?;
    expect(&login(&node, "alicia", "another").await?, StatusCode::UNAUTHORIZED)?;
    expect(&login(&node, "alice", "another").await?, StatusCode::UNAUTHORIZED)?;
    expect(&me(&node, &renamed).await?, StatusCode::UNAUTHORIZED)?;
    // Somebody else of the name is somebody else.
    directory.add("alice", &people(), "of another alice")?;
    let other = problem(login(&node, "alice", "of another alice").await?, StatusCode::CONFLICT);
    ensure!(other.await?.code == "account_taken");

    // Nobody leaves the directory for a password here, nor goes without the one there.
    let bob = session(&node, "bob", "bobs: secret").await?;
    let sent = |method: Method, path: &str, body: Value| {
        let request = node.http.request(method, format!("{}/api/v1/{path}", node.url));
        request.bearer_auth(&bob).json(&body).send()
    };
    let change = json!({ "current_password": "bobs: secret", "new_password": "another-horse-8" });
    let refused = sent(Method::PUT, "user/password", change).await?;
    ensure!(problem(refused, StatusCode::CONFLICT).await?.code == "password_elsewhere");
    for (given, status) in [
        (json!({}), StatusCode::UNAUTHORIZED),
        (json!({ "current_password": "a guess" }), StatusCode::UNAUTHORIZED),
        (json!({ "current_password": "bobs: secret" }), StatusCode::ACCEPTED),
    ] {
        expect(&sent(Method::POST, "user/deletion", given).await?, status)?;
    }
    let stays = sent(Method::DELETE, "user/deletion", json!({})).await?;
    expect(&stays, StatusCode::NO_CONTENT)?;

    // A personal token is good for as long as its person is there.
    let token = async |session: &str| -> Result<String> {
        let request = node.http.post(format!("{}/api/v1/user/tokens", node.url));
        let request = request.bearer_auth(session).json(&json!({ "name": "ci" }));
        let made: Value = read(request.send().await?).await?;
        Ok(made["token"].as_str().context("a token")?.to_owned())
    };
    directory.add("dora", &people(), "doras secret")?;
    let dora = session(&node, "dora", "doras secret").await?;
    let (doras, bobs) = (token(&dora).await?, token(&bob).await?);
    expect(&me(&node, &doras).await?, StatusCode::OK)?;
    directory.change(&format!("dn: {}\nchangetype: delete\n", dn("dora")))?;
    expect(&me(&node, &doras).await?, StatusCode::UNAUTHORIZED)?;
    expect(&me(&node, &dora).await?, StatusCode::UNAUTHORIZED)?;
    let pull = node.anonymous_v2(Method::GET, "").basic_auth("dora", Some(&doras));
    expect(&pull.send().await?, StatusCode::UNAUTHORIZED)?;
    expect(&me(&node, &bobs).await?, StatusCode::OK)?;

    // Without the directory, those who have a password here go on, and whoever has a token.
    directory.stop();
    expect(&me(&node, &bobs).await?, StatusCode::OK)?;
    let away = login(&node, "bob", "bobs: secret").await?;
    ensure!(problem(away, StatusCode::SERVICE_UNAVAILABLE).await?.code == "directory_away");
    session(&node, "admin", node.password()).await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_past_the_directory() -> Result<()> {
    let directory = Directory::start().await?;
    directory.add("alice", &people(), "alices secret")?;
    directory.add("admin", &people(), "of the directory")?;
    directory.add("twin", &people(), "twins secret")?;
    directory.add("twin", &format!("ou=more,{}", people()), "twins secret")?;
    directory.add("star*", &people(), "stars secret")?;
    let node = Node::start_with(asking(&directory)).await?;
    level_raised(&node).await?;
    let mut let_in = Vec::new();
    for (name, password) in [
        ("alice", ""),
        ("alice", "wrong"),
        ("*", "alices secret"),
        ("al*", "alices secret"),
        ("alice)(uid=*", "alices secret"),
        ("x)(|(uid=alice)", "alices secret"),
        ("alice\0", "alices secret"),
        ("", "alices secret"),
        ("", ""),
        (dn("alice").as_str(), "alices secret"),
        // Two entries are nobody, and one that is called like somebody here is not that one.
        ("twin", "twins secret"),
        ("admin", "of the directory"),
        ("admin", ""),
        ("searcher", SEARCHER_PASSWORD),
    ] {
        let status = login(&node, name, password).await?.status();
        let basic = node.anonymous_v2(Method::GET, "").basic_auth(name, Some(password));
        let basic = basic.send().await?.status();
        if status.is_success() || basic.is_success() {
            let_in.push((name.to_owned(), password));
        }
    }
    ensure!(let_in.is_empty(), "{let_in:?}");
    let users: Vec<Value> = node.get("users").await?;
    ensure!(users.len() == 1, "accounts came to be: {users:?}");
    // What is special in a filter is a character in a name; this one fits no account here.
    let odd = problem(login(&node, "star*", "stars secret").await?, StatusCode::UNAUTHORIZED);
    ensure!(odd.await?.code == "identity_unknown");

    // Guesses are counted like others.
    let mut last = StatusCode::UNAUTHORIZED;
    for number in 0..12 {
        last = login(&node, "alice", &format!("guess {number}")).await?.status();
    }
    ensure!(last == StatusCode::FORBIDDEN, "not locked: {last}");
    let locked = login(&node, "alice", "alices secret").await?;
    ensure!(problem(locked, StatusCode::FORBIDDEN).await?.code == "locked");
    // For the account, however its name is written.
    directory.add("carol", &people(), "carols secret")?;
    let written = |number: usize| -> String {
        let letter = |(at, letter): (usize, char)| match number >> at & 1 {
            1 => letter.to_ascii_uppercase(),
            _ => letter,
        };
        "carol".chars().enumerate().map(letter).collect()
    };
    let mut statuses = Vec::new();
    for number in 1..13 {
        let answer = login(&node, &written(number), &format!("guess {number}")).await?;
        statuses.push(answer.status().as_u16());
    }
    ensure!(statuses[..10] == [401; 10] && statuses[10..] == [403; 2], "{statuses:?}");
    for name in ["carol", "CAROL"] {
        let locked = login(&node, name, "carols secret").await?;
        ensure!(problem(locked, StatusCode::FORBIDDEN).await?.code == "locked", "{name}");
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_asked_under_tls_that_holds() -> Result<()> {
    let directory = Directory::start().await?;
    directory.add("alice", &people(), "alices secret")?;
    let (url, tls) = (directory.url(), asking(&directory));
    let starttls = Node::start_with(|config| {
        tls(config);
        config.ldap.url = url;
        config.ldap.starttls = true;
    })
    .await?;
    level_raised(&starttls).await?;
    session(&starttls, "alice", "alices secret").await?;
    starttls.server.stop().await?;
    // Of an authority that is not the settings', nor the system's.
    let tls = asking(&directory);
    let wary = Node::start_with(|config| {
        tls(config);
        config.ldap.ca_file = None;
    })
    .await?;
    level_raised(&wary).await?;
    let refused = login(&wary, "alice", "alices secret").await?;
    ensure!(problem(refused, StatusCode::SERVICE_UNAVAILABLE).await?.code == "directory_away");
    wary.server.stop().await
}
