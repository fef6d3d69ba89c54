//! Logins of people: second factors, and sessions that end.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::hmac;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use shoal_node::config::Program;

use super::node::{Node, problem, read};
use super::v2::{expect, push_image};
use super::wait::{level_raised, until};

const PASSWORD: &str = "correct-horse-7";

/// As an authenticator does it (RFC 6238), with nothing of the node's.
pub fn code(secret: &str, step: u64) -> Result<String> {
    let bits: String = secret
        .chars()
        .map(|letter| "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".find(letter).context("a letter"))
        .map(|value| value.map(|value| format!("{value:05b}")))
        .collect::<Result<_>>()?;
    let bytes: Vec<u8> = (0..bits.len() / 8)
        .map(|at| u8::from_str_radix(&bits[at * 8..at * 8 + 8], 2))
        .collect::<Result<_, _>>()?;
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &bytes);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let at = usize::from(tag.as_ref()[19] & 15);
    let four: [u8; 4] = tag.as_ref()[at..at + 4].try_into()?;
    Ok(format!("{:06}", (u32::from_be_bytes(four) & 0x7fff_ffff) % 1_000_000))
}

fn step_now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 30)
}

async fn make_user(node: &Node, name: &str) -> Result<()> {
    let request = json!({ "username": name, "password": PASSWORD });
    let _user: Value = node.call(Method::POST, "users", &request).await?;
    Ok(())
}

async fn post(node: &Node, path: &str, token: Option<&str>, body: &Value) -> Result<Response> {
    let request = node.http.post(format!("{}/api/v1/{path}", node.url)).json(body);
    Ok(match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    }
    .send()
    .await?)
}

fn with(node: &Node, method: Method, path: &str, token: &str) -> RequestBuilder {
    node.http.request(method, format!("{}/api/v1/{path}", node.url)).bearer_auth(token)
}

async fn login(node: &Node, name: &str, password: &str) -> Result<Response> {
    post(node, "auth/login", None, &json!({ "username": name, "password": password })).await
}

async fn token(answer: Response) -> Result<String> {
    expect(&answer, StatusCode::OK)?;
    let answer: Value = answer.json().await?;
    Ok(answer["token"].as_str().context("a token")?.to_owned())
}

/// Gives the account a second factor: its secret, the step that confirmed it, its recovery codes.
pub async fn enable(node: &Node, session: &str) -> Result<(String, u64, Vec<String>)> {
    let path = "user/second-factor";
    let guess = json!({ "current_password": "guessed-it-1" });
    expect(&post(node, path, Some(session), &guess).await?, StatusCode::UNAUTHORIZED)?;
    let right = json!({ "current_password": PASSWORD });
    let begun: Value = read(post(node, path, Some(session), &right).await?).await?;
    let secret = begun["secret"].as_str().context("a secret")?.to_owned();
    ensure!(begun["address"].as_str().is_some_and(|text| text.contains(&secret)), "{begun}");
    let wrong = json!({ "code": "000000" });
    let step = step_now()?;
    let first = code(&secret, step)?;
    let confirm = "user/second-factor/confirm";
    if first != "000000" {
        problem(post(node, confirm, Some(session), &wrong).await?, StatusCode::BAD_REQUEST).await?;
    }
    let codes: Value =
        read(post(node, confirm, Some(session), &json!({ "code": first })).await?).await?;
    let codes = codes["codes"].as_array().context("codes")?;
    let codes = codes.iter().filter_map(|code| code.as_str()).map(str::to_owned).collect();
    Ok((secret, step, codes))
}

/// The first step of a login, which gives a ticket.
async fn ticket(node: &Node, name: &str) -> Result<String> {
    let answer = login(node, name, PASSWORD).await?;
    expect(&answer, StatusCode::ACCEPTED)?;
    let answer: Value = answer.json().await?;
    ensure!(answer.get("token").is_none(), "a token before the code: {answer}");
    Ok(answer["ticket"].as_str().context("a ticket")?.to_owned())
}

async fn second_step(node: &Node, ticket: &str, code: &str) -> Result<Response> {
    post(node, "auth/login/code", None, &json!({ "ticket": ticket, "code": code })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_factor_is_asked_for_wherever_a_password_would_do() -> Result<()> {
    let node = Node::start().await?;
    level_raised(&node).await?;
    push_image(&node, "alice-lab/app", "v1", b"layer").await?;
    make_user(&node, "alice").await?;
    let own: Value = node
        .call(Method::PUT, "projects/alice-lab/members/user:alice", &json!({ "role": "guest" }))
        .await?;
    ensure!(own["role"] == "guest");
    let session = token(login(&node, "alice", PASSWORD).await?).await?;
    let (secret, step, codes) = enable(&node, &session).await?;
    ensure!(codes.len() == 10, "{} codes", codes.len());
    let shown: Value =
        read(with(&node, Method::GET, "user/second-factor", &session).send().await?).await?;
    ensure!(shown["enabled"] == true && shown["recovery_codes_left"] == 10, "{shown}");
    // It cannot be replaced by who has only the password.
    let anew = json!({ "current_password": PASSWORD });
    let again = post(&node, "user/second-factor", Some(&session), &anew).await?;
    ensure!(problem(again, StatusCode::CONFLICT).await?.code == "second_factor_exists");
    // Nor is there a place where a code can be tried without being counted.
    for text in [code(&secret, step + 1)?, "000000".to_owned()] {
        let confirm = "user/second-factor/confirm";
        let tried = post(&node, confirm, Some(&session), &json!({ "code": text })).await?;
        problem(tried, StatusCode::CONFLICT).await?;
    }

    // Two steps; the ticket is good for nothing else, and a code for one login.
    let first = ticket(&node, "alice").await?;
    let as_token = with(&node, Method::GET, "auth/me", &first).send().await?;
    expect(&as_token, StatusCode::UNAUTHORIZED)?;
    let used = second_step(&node, &first, &code(&secret, step)?).await?;
    ensure!(problem(used, StatusCode::UNAUTHORIZED).await?.code == "code_wrong");
    let next = code(&secret, step + 1)?;
    let second = token(second_step(&node, &first, &next).await?).await?;
    expect(&with(&node, Method::GET, "auth/me", &second).send().await?, StatusCode::OK)?;
    let twice = second_step(&node, &ticket(&node, "alice").await?, &next).await?;
    expect(&twice, StatusCode::UNAUTHORIZED)?;
    let forged = second_step(&node, &second, &next).await?;
    ensure!(problem(forged, StatusCode::UNAUTHORIZED).await?.code == "ticket_invalid");
    // A recovery code is good once, however it is typed.
    let typed = codes[0].to_uppercase().replace('-', " ");
    let third = second_step(&node, &ticket(&node, "alice").await?, &typed).await?;
    token(third).await?;
    let twice = second_step(&node, &ticket(&node, "alice").await?, &codes[0]).await?;
    expect(&twice, StatusCode::UNAUTHORIZED)?;

    // A password alone is good for nothing; docker is told what to do.
    let port = node.url.rsplit(':').next().context("a port")?;
    let by_name =
        format!("https://localhost:{port}/v2/token?service=x&scope=repository:alice-lab/app:pull");
    let basic = |password: &str| {
        node.http.get(&by_name).basic_auth("alice", Some(password.to_owned())).send()
    };
    let refused = basic(PASSWORD).await?;
    expect(&refused, StatusCode::UNAUTHORIZED)?;
    ensure!(refused.text().await?.contains("personal access token"));
    let by_address = node.anonymous_v2(Method::GET, "").basic_auth("alice", Some(PASSWORD));
    let by_address = by_address.send().await?;
    expect(&by_address, StatusCode::UNAUTHORIZED)?;
    ensure!(by_address.text().await?.contains("personal access token"));
    let grant = [("grant_type", "password"), ("username", "alice"), ("password", PASSWORD)];
    let form = grant.map(|(key, value)| format!("{key}={value}")).join("&");
    let form = node
        .anonymous_v2(Method::POST, "token")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form);
    expect(&form.send().await?, StatusCode::UNAUTHORIZED)?;
    let api = node.http.get(format!("{}/api/v1/auth/me", node.url));
    let api = api.basic_auth("alice", Some(PASSWORD)).send().await?;
    ensure!(problem(api, StatusCode::UNAUTHORIZED).await?.code == "second_factor_needed");
    // Whether there is one shows to who knows the password only.
    let guess = basic("guessed-it-1").await?.text().await?;
    ensure!(!guess.contains("personal access token"), "{guess}");
    let made = json!({ "name": "docker", "scopes": ["repo:read"] });
    let made: Value = read(post(&node, "user/tokens", Some(&second), &made).await?).await?;
    expect(&basic(made["token"].as_str().context("a token")?).await?, StatusCode::OK)?;

    // It is taken away with a code, or by an administrator.
    let remove =
        |body: Value| with(&node, Method::DELETE, "user/second-factor", &second).json(&body).send();
    expect(&remove(json!({ "code": codes[0] })).await?, StatusCode::UNAUTHORIZED)?;
    expect(&remove(json!({ "code": codes[1] })).await?, StatusCode::NO_CONTENT)?;
    token(login(&node, "alice", PASSWORD).await?).await?;
    let (_, _, codes) = enable(&node, &second).await?;
    let stale = ticket(&node, "alice").await?;
    let lost = node.request(Method::DELETE, "users/alice/second-factor").send().await?;
    expect(&lost, StatusCode::NO_CONTENT)?;
    expect(&second_step(&node, &stale, &codes[0]).await?, StatusCode::UNAUTHORIZED)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_codes_locks_the_account_and_secrets_are_not_in_clear() -> Result<()> {
    let node = Node::start().await?;
    level_raised(&node).await?;
    make_user(&node, "bob").await?;
    let session = token(login(&node, "bob", PASSWORD).await?).await?;
    let (secret, step, codes) = enable(&node, &session).await?;
    let ticket = ticket(&node, "bob").await?;
    let mut wrong = 0;
    for number in 0..12 {
        let guess = format!("9{number:05}");
        if (step.saturating_sub(1)..step + 5)
            .any(|step| code(&secret, step).is_ok_and(|code| code == guess))
        {
            continue;
        }
        match second_step(&node, &ticket, &guess).await?.status() {
            StatusCode::UNAUTHORIZED => wrong += 1,
            StatusCode::FORBIDDEN => break,
            other => anyhow::bail!("{other}"),
        }
    }
    // With the one guess at the password, when it was set up.
    ensure!(wrong == 9, "{wrong} guesses");
    // Then the right one does not help, nor a recovery code; an open session goes on.
    let late = second_step(&node, &ticket, &code(&secret, step + 1)?).await?;
    expect(&late, StatusCode::FORBIDDEN)?;
    expect(&second_step(&node, &ticket, &codes[0]).await?, StatusCode::FORBIDDEN)?;
    expect(&with(&node, Method::GET, "auth/me", &session).send().await?, StatusCode::OK)?;

    // A backup has neither the secret nor a code.
    let backup = node.request(Method::GET, "backup").send().await?.error_for_status()?;
    let backup = backup.bytes().await?;
    for clear in codes.iter().map(|code| code.replace('-', "")).chain([secret.clone()]) {
        let found = |text: &str| backup.windows(text.len()).any(|bytes| bytes == text.as_bytes());
        ensure!(!found(&clear) && !found(&clear.to_uppercase()), "the backup tells a secret");
    }
    let trail = node.request(Method::GET, "audit?limit=500").send().await?.text().await?;
    ensure!(trail.contains("second_factor.add") && !trail.contains(&secret), "{trail}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_takes_its_data_along_and_may_change_its_mind() -> Result<()> {
    let node = Node::start_with(|config| config.accounts.deletion_grace_seconds = 3600).await?;
    level_raised(&node).await?;
    make_user(&node, "dana").await?;
    let session = token(login(&node, "dana", PASSWORD).await?).await?;
    let made = json!({ "name": "laptop", "scopes": ["repo:read"] });
    let made: Value = read(post(&node, "user/tokens", Some(&session), &made).await?).await?;
    let secret = made["token"].as_str().context("a token")?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    let role = json!({ "role": "guest" });
    let _member: Value = node.call(Method::PUT, "projects/shop/members/user:dana", &role).await?;
    let export = with(&node, Method::GET, "user/export", &session).send().await?;
    let export: Value = read(export).await?;
    ensure!(export["user"]["username"] == "dana" && export["places"] == json!(["project:shop"]));
    ensure!(export["tokens"][0]["name"] == "laptop" && export["sessions"][0]["current"] == true);
    ensure!(!export.to_string().contains(secret), "an export has no secrets");

    let path = "user/deletion";
    let guess = json!({ "current_password": "guessed-it-1" });
    expect(&post(&node, path, Some(&session), &guess).await?, StatusCode::UNAUTHORIZED)?;
    let right = json!({ "current_password": PASSWORD });
    let asked = post(&node, path, Some(&session), &right).await?;
    expect(&asked, StatusCode::ACCEPTED)?;
    ensure!(asked.json::<Value>().await?["due_at"].is_string());
    // Until then it is as it was, and may take it back.
    expect(&with(&node, Method::GET, "auth/me", &session).send().await?, StatusCode::OK)?;
    let stay = with(&node, Method::DELETE, path, &session).send().await?;
    expect(&stay, StatusCode::NO_CONTENT)?;
    let shown: Value = read(with(&node, Method::GET, path, &session).send().await?).await?;
    ensure!(shown.get("due_at").is_none(), "{shown}");
    let last = json!({ "current_password": node.password() });
    let last = post(&node, path, Some(node.token()), &last).await?;
    ensure!(problem(last, StatusCode::CONFLICT).await?.code == "last_admin");
    node.server.stop().await?;

    let node = Node::start_with(|config| config.accounts.deletion_grace_seconds = 0).await?;
    level_raised(&node).await?;
    make_user(&node, "dana").await?;
    let session = token(login(&node, "dana", PASSWORD).await?).await?;
    expect(&post(&node, path, Some(&session), &right).await?, StatusCode::ACCEPTED)?;
    until("the end of an account", async || {
        let gone = node.request(Method::GET, "users/dana").send().await?.status();
        Ok((gone == StatusCode::NOT_FOUND).then_some(()))
    })
    .await?;
    expect(&with(&node, Method::GET, "auth/me", &session).send().await?, StatusCode::UNAUTHORIZED)?;
    let trail = node.request(Method::GET, "audit?action=user").send().await?.text().await?;
    ensure!(trail.contains("user.leave") && trail.contains("user.remove"), "{trail}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_ended_and_limited() -> Result<()> {
    let node = Node::start_with(|config| config.sessions.per_person = 3).await?;
    level_raised(&node).await?;
    make_user(&node, "carol").await?;
    let open = async || token(login(&node, "carol", PASSWORD).await?).await;
    let me = async |token: &str| -> Result<StatusCode> {
        Ok(with(&node, Method::GET, "auth/me", token).send().await?.status())
    };
    let list = async |token: &str| -> Result<Vec<Value>> {
        read(with(&node, Method::GET, "user/sessions", token).send().await?).await
    };
    let (first, second, third) = (open().await?, open().await?, open().await?);
    let listed = list(&second).await?;
    ensure!(listed.len() == 3 && listed[1]["current"] == true, "{listed:?}");
    ensure!(listed[0]["means"] == "password" && listed[0]["address"] == "127.0.0.1", "{listed:?}");
    // With a fourth, the oldest ends, with the tokens of the registry that were got by it.
    let scope = "token?service=x&scope=registry:catalog:*";
    let registry = node.anonymous_v2(Method::GET, scope).bearer_auth(&first).send().await?;
    let registry: Value = read(registry).await?;
    let registry = registry["token"].as_str().context("a token")?;
    let catalogue = || node.anonymous_v2(Method::GET, "_catalog").bearer_auth(registry).send();
    expect(&catalogue().await?, StatusCode::OK)?;
    let fourth = open().await?;
    ensure!(me(&first).await? == StatusCode::UNAUTHORIZED && me(&second).await? == StatusCode::OK);
    expect(&catalogue().await?, StatusCode::UNAUTHORIZED)?;
    // Renewed, it is the same session.
    let renewed = post(&node, "auth/refresh", Some(&second), &json!({})).await?;
    let renewed = token(renewed).await?;
    ensure!(list(&renewed).await?.len() == 3);
    let basic = node.http.post(format!("{}/api/v1/auth/refresh", node.url));
    let basic = basic.basic_auth("carol", Some(PASSWORD)).send().await?;
    expect(&basic, StatusCode::FORBIDDEN)?;
    // One of one's own ends; nobody else's does.
    let id = list(&fourth).await?[1]["id"].as_str().context("an id")?.to_owned();
    make_user(&node, "mallory").await?;
    let other = token(login(&node, "mallory", PASSWORD).await?).await?;
    let path = format!("user/sessions/{id}");
    let foreign = with(&node, Method::DELETE, &path, &other).send().await?;
    expect(&foreign, StatusCode::NOT_FOUND)?;
    expect(&with(&node, Method::DELETE, &path, &fourth).send().await?, StatusCode::NO_CONTENT)?;
    ensure!(me(&third).await? == StatusCode::UNAUTHORIZED);
    // A logout ends its own, and what was renewed from it.
    expect(&post(&node, "auth/logout", Some(&second), &json!({})).await?, StatusCode::NO_CONTENT)?;
    ensure!(
        me(&renewed).await? == StatusCode::UNAUTHORIZED && me(&fourth).await? == StatusCode::OK
    );
    // A new password ends all but the one that it was given in.
    let fifth = open().await?;
    let change = json!({ "current_password": PASSWORD, "new_password": "another-horse-8" });
    let changed = with(&node, Method::PUT, "user/password", &fifth).json(&change).send().await?;
    expect(&changed, StatusCode::NO_CONTENT)?;
    ensure!(me(&fourth).await? == StatusCode::UNAUTHORIZED && me(&fifth).await? == StatusCode::OK);
    // An administrator sees them and ends them all; so does taking the account away.
    let seen: Vec<Value> = node.get("users/carol/sessions").await?;
    ensure!(seen.len() == 1 && seen[0]["current"] == false, "{seen:?}");
    let ended = node.request(Method::DELETE, "users/carol/sessions").send().await?;
    expect(&ended, StatusCode::NO_CONTENT)?;
    ensure!(me(&fifth).await? == StatusCode::UNAUTHORIZED);
    expect(&node.request(Method::DELETE, "users/mallory").send().await?, StatusCode::NO_CONTENT)?;
    make_user(&node, "mallory").await?;
    ensure!(me(&other).await? == StatusCode::UNAUTHORIZED, "an old token for a new account");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_could_not_be_kept_is_refused_before_anything_changes() -> Result<()> {
    let earlier = Program::earlier("1").context("a program")?;
    let node = Node::start_with(|config| config.program = earlier).await?;
    for (method, path, request) in [
        (Method::POST, "users", json!({ "username": "dave", "email": "d@example.com" })),
        (Method::PATCH, "users/admin", json!({ "password": PASSWORD, "email": "a@example.com" })),
        (Method::PUT, "user/email", json!({ "email": "a@example.com" })),
    ] {
        let answer = node.request(method, path).json(&request).send().await?;
        let refused = problem(answer, StatusCode::NOT_IMPLEMENTED).await.context(path)?;
        ensure!(refused.code == "unsupported", "{refused:?}");
    }
    let account = node.request(Method::GET, "users/dave").send().await?;
    expect(&account, StatusCode::NOT_FOUND)?;
    expect(&login(&node, "admin", PASSWORD).await?, StatusCode::UNAUTHORIZED)?;
    node.server.stop().await
}
