//! Other issuers' tokens and logins, against an issuer that signs with real keys over HTTP, and
//! attempts to pass for it.

mod github;
mod login;
mod signer;

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use aws_lc_rs::hmac;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use shoal_node::config::Config;

use super::node::{Node, problem, read};
use super::v2::{expect, push_image, sha256};
use super::wait::level_raised;
use signer::{AUDIENCE, Issuer, Key, base64, now};

const PASSWORD: &str = "correct-horse-7";

fn trusting(issuer: &Issuer) -> impl FnOnce(&mut Config) + use<> {
    let url = issuer.url();
    move |config| {
        config.jwt.issuer = url.clone();
        config.jwt.audience = AUDIENCE.to_owned();
        config.jwt.jwks_url = format!("{url}/jwks");
    }
}

async fn make_user(node: &Node, name: &str) -> Result<()> {
    let request = json!({ "username": name, "password": PASSWORD });
    let _user: Value = node.call(Method::POST, "users", &request).await?;
    Ok(())
}

async fn me(node: &Node, token: &str) -> Result<Response> {
    let request = node.http.get(format!("{}/api/v1/auth/me", node.url));
    Ok(request.bearer_auth(token).send().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_issuers_token_is_good_for_what_it_says_and_its_account_may() -> Result<()> {
    let issuer = Issuer::start().await?;
    let node = Node::start_with(trusting(&issuer)).await?;
    level_raised(&node).await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    make_user(&node, "zhangsan").await?;
    let member = "projects/shop/members/user:zhangsan";
    let _member: Value = node.call(Method::PUT, member, &json!({ "role": "admin" })).await?;
    let claims = issuer.claims("user-id-123")?;
    let token = issuer.rs256(&claims)?;
    // Nobody is somebody here because of a name.
    let named = issuer.rs256(&issuer.claims("zhangsan")?)?;
    for unknown in [&token, &named] {
        let refused = problem(me(&node, unknown).await?, StatusCode::UNAUTHORIZED).await?;
        ensure!(refused.code == "identity_unknown", "{refused:?}");
    }
    let identity = json!({ "issuer": issuer.url(), "subject": "user-id-123" });
    let linked = node.request(Method::POST, "users/zhangsan/identities").json(&identity);
    expect(&linked.send().await?, StatusCode::NO_CONTENT)?;
    for token in [&token, &issuer.es256(&claims)?] {
        let found: Value = read(me(&node, token).await?).await?;
        ensure!(found["username"] == "zhangsan", "{found}");
    }
    // Read and write, as the token says; not what the account may besides.
    let v2 = |method: Method, path: &str, token: &str| {
        node.anonymous_v2(method, path).bearer_auth(token).send()
    };
    let manifest = "shop/app/manifests/v1";
    expect(&v2(Method::GET, manifest, &token).await?, StatusCode::OK)?;
    let push = format!("shop/app/blobs/uploads/?digest={}", sha256(b""));
    expect(&v2(Method::POST, &push, &token).await?, StatusCode::CREATED)?;
    expect(&v2(Method::DELETE, manifest, &token).await?, StatusCode::FORBIDDEN)?;
    let mut plain = claims.clone();
    plain.as_object_mut().context("claims")?.remove("permissions");
    let plain = issuer.rs256(&plain)?;
    expect(&v2(Method::GET, manifest, &plain).await?, StatusCode::OK)?;
    expect(&v2(Method::POST, &push, &plain).await?, StatusCode::FORBIDDEN)?;
    let project = node.http.put(format!("{}/api/v1/projects/shop", node.url)).json(&json!({}));
    let project = project.bearer_auth(&token).send().await?;
    expect(&project, StatusCode::FORBIDDEN)?;
    // What is got with it ends with it.
    let short = json!({ "exp": now()? + 100 });
    let mut shorter = claims.clone();
    shorter["exp"] = short["exp"].clone();
    let scope = "token?service=x&scope=repository:shop/app:pull,push,delete";
    let granted: Value = read(v2(Method::GET, scope, &issuer.rs256(&shorter)?).await?).await?;
    ensure!(granted["expires_in"].as_u64().is_some_and(|left| left <= 100), "{granted}");
    let granted = granted["token"].as_str().context("a token")?;
    expect(&v2(Method::GET, manifest, granted).await?, StatusCode::OK)?;
    expect(&v2(Method::DELETE, manifest, granted).await?, StatusCode::UNAUTHORIZED)?;
    // Unlinked, it is nobody's at once.
    let unlinked = node.request(Method::DELETE, "users/zhangsan/identities").json(&identity);
    expect(&unlinked.send().await?, StatusCode::NO_CONTENT)?;
    expect(&me(&node, &token).await?, StatusCode::UNAUTHORIZED)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_login_under_two_names_at_once_is_nobody_elses() -> Result<()> {
    let issuer = Issuer::start().await?;
    let trusting = trusting(&issuer);
    let node = Node::start_with(|config| {
        trusting(config);
        config.jwt.create_accounts = true;
        config.jwt.account_claim = "name".to_owned();
    })
    .await?;
    level_raised(&node).await?;
    for round in 0..20 {
        let named = |name: &str| -> Result<String> {
            let mut claims = issuer.claims(&format!("subject-{round}"))?;
            claims["name"] = json!(name);
            issuer.rs256(&claims)
        };
        let (own, taken) = (named(&format!("mallory-{round}"))?, named("admin")?);
        let all = (0..8).map(|turn| me(&node, if turn % 2 == 0 { &own } else { &taken }));
        for answer in futures::future::try_join_all(all).await? {
            if answer.status() == StatusCode::CONFLICT {
                continue;
            }
            let found: Value = read(answer).await?;
            ensure!(found["username"] == format!("mallory-{round}"), "{found}");
        }
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_the_issuers_own_signature_of_now_and_for_us_is_believed() -> Result<()> {
    let issuer = Issuer::start().await?;
    let trusting = trusting(&issuer);
    let node = Node::start_with(|config| {
        trusting(config);
        config.jwt.create_accounts = true;
    })
    .await?;
    level_raised(&node).await?;
    let good = issuer.claims("li-si")?;
    expect(&me(&node, &issuer.rs256(&good)?).await?, StatusCode::OK)?;
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let without = |name: &str| {
        let mut claims = good.clone();
        if let Some(all) = claims.as_object_mut() {
            all.remove(name);
        }
        claims
    };
    let mut forged = Vec::new();
    for (what, claims) in [
        ("another audience", with("aud", json!("billing"))),
        ("other audiences", with("aud", json!(["billing", "mail"]))),
        ("another issuer", with("iss", json!("https://evil.example"))),
        ("too old", with("exp", json!(now()? - 3600))),
        ("not yet", with("nbf", json!(now()? + 3600))),
        ("from the future", with("iat", json!(now()? + 3600))),
        ("nobody", with("sub", json!(""))),
        ("no end", without("exp")),
        ("no audience", without("aud")),
        ("no issuer", without("iss")),
        ("no subject", without("sub")),
    ] {
        forged.push((what, issuer.rs256(&claims)?));
    }
    // Without a signature, or with one that anybody can make: the public key as a secret.
    let unsigned =
        |header: Value| format!("{}.{}.", base64(header.to_string()), base64(good.to_string()));
    forged.push(("none", unsigned(json!({ "alg": "none", "typ": "JWT", "kid": "rsa" }))));
    forged.push(("None", unsigned(json!({ "alg": "NoNe", "kid": "rsa" }))));
    forged.push(("no signature", unsigned(json!({ "alg": "RS256", "typ": "JWT", "kid": "rsa" }))));
    let jwk = issuer.0.rsa.jwk("rsa");
    for secret in [jwk.to_string(), jwk["n"].as_str().context("n")?.to_owned()] {
        let text = unsigned(json!({ "alg": "HS256", "typ": "JWT", "kid": "rsa" }));
        let text = text.trim_end_matches('.');
        let tag =
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), text.as_bytes());
        forged.push(("HS256", format!("{text}.{}", base64(tag))));
    }
    // By others' keys, named like the issuer's or bringing themselves along.
    let (other, other_ec) = (Key::rsa()?, Key::ec()?);
    let header = json!({ "alg": "RS256", "typ": "JWT", "kid": "rsa" });
    forged.push(("another key", other.sign(&header, &good)?));
    let header = json!({ "alg": "RS256", "kid": "rsa", "jwk": other.jwk("rsa") });
    forged.push(("its own key", other.sign(&header, &good)?));
    let header = json!({ "alg": "RS256", "kid": "x", "jku": "https://evil.example/jwks" });
    forged.push(("its own keys' address", other.sign(&header, &good)?));
    forged
        .push(("ES256 by another", other_ec.sign(&json!({ "alg": "ES256", "kid": "ec" }), &good)?));
    // One key for the other algorithm, and one that signs for another place.
    forged.push((
        "RS256 as ES256",
        issuer.0.rsa.sign(&json!({ "alg": "ES256", "kid": "ec" }), &good)?,
    ));
    forged.push(("a changed claim", {
        let token = issuer.rs256(&good)?;
        let signature = token.rsplit('.').next().context("a signature")?;
        let header = base64(json!({ "alg": "RS256", "typ": "JWT", "kid": "rsa" }).to_string());
        format!("{header}.{}.{signature}", base64(with("sub", json!("admin")).to_string()))
    }));
    let mut let_in = Vec::new();
    for (what, token) in &forged {
        if me(&node, token).await?.status() != StatusCode::UNAUTHORIZED {
            let_in.push(*what);
        }
    }
    ensure!(let_in.is_empty(), "let in: {let_in:?}");
    // Keys that are not there are asked for once, not once for each token.
    for number in 0..50 {
        let header = json!({ "alg": "RS256", "kid": format!("key-{number}") });
        expect(&me(&node, &other.sign(&header, &good)?).await?, StatusCode::UNAUTHORIZED)?;
    }
    let fetches = issuer.0.fetches.load(Ordering::Relaxed);
    ensure!(fetches <= 3, "the keys were fetched {fetches} times");
    // Without a setting there is no other issuer.
    let alone = Node::start().await?;
    expect(&me(&alone, &issuer.rs256(&good)?).await?, StatusCode::UNAUTHORIZED)?;
    alone.server.stop().await?;
    node.server.stop().await
}

async fn rule(node: &Node, issuer: &Issuer, subject: &str, extra: Value) -> Result<Response> {
    let mut rule = json!({
        "name": "main", "issuer": issuer.url(), "subject": subject, "robot": "ci",
        "claims": { "ref_protected": "true" },
    });
    for (name, value) in extra.as_object().into_iter().flatten() {
        rule[name] = value.clone();
    }
    Ok(node.request(Method::POST, "projects/shop/workload-rules").json(&rule).send().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_gets_a_robots_token_by_a_rule_and_no_other_job_does() -> Result<()> {
    let issuer = Issuer::start().await?;
    let url = issuer.url();
    let node = Node::start_with(|config| {
        config.workload.issuers = vec![url];
        config.workload.audience = AUDIENCE.to_owned();
    })
    .await?;
    level_raised(&node).await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    push_image(&node, "shop/other", "v1", b"layer").await?;
    let robot = json!({ "name": "ci", "scopes": ["repo:read", "repo:write"], "repositories": ["shop/app"] });
    let _robot: Value = node.call(Method::POST, "projects/shop/robots", &robot).await?;
    let pattern = "repo:acme/shop:ref:refs/heads/*";
    for (subject, extra) in [
        ("repo:*", json!({})),
        ("*", json!({})),
        (pattern, json!({ "issuer": "https://evil.example" })),
    ] {
        problem(rule(&node, &issuer, subject, extra).await?, StatusCode::BAD_REQUEST).await?;
    }
    let nobody = rule(&node, &issuer, pattern, json!({ "robot": "nobody" })).await?;
    problem(nobody, StatusCode::NOT_FOUND).await?;
    expect(&rule(&node, &issuer, pattern, json!({})).await?, StatusCode::CREATED)?;

    let job = |subject: &str| -> Result<Value> {
        let mut claims = issuer.claims(subject)?;
        claims["ref_protected"] = json!("true");
        Ok(claims)
    };
    let exchange = async |project: &str, token: &str| -> Result<Response> {
        let request = json!({ "project": project, "token": token });
        let url = format!("{}/api/v1/auth/workload", node.url);
        Ok(node.http.post(url).json(&request).send().await?)
    };
    let main = job("repo:acme/shop:ref:refs/heads/main")?;
    let got: Value = read(exchange("shop", &issuer.rs256(&main)?).await?).await?;
    ensure!(got["username"] == "robot$shop+ci", "{got}");
    let short = got["token"].as_str().context("a token")?;
    let bearer = |method: Method, path: &str| node.anonymous_v2(method, path).bearer_auth(short);
    expect(&bearer(Method::GET, "shop/app/manifests/v1").send().await?, StatusCode::OK)?;
    let push = format!("shop/app/blobs/uploads/?digest={}", sha256(b""));
    expect(&bearer(Method::POST, &push).send().await?, StatusCode::CREATED)?;
    expect(&bearer(Method::GET, "shop/other/manifests/v1").send().await?, StatusCode::NOT_FOUND)?;
    // As a password, for docker; of no other name, and nothing got with it lasts longer.
    let basic = |name: &str| {
        let scope = "token?service=x&scope=repository:shop/app:pull";
        node.anonymous_v2(Method::GET, scope).basic_auth(name, Some(short)).send()
    };
    let granted: Value = read(basic("robot$shop+ci").await?).await?;
    ensure!(granted["expires_in"].as_u64().is_some_and(|left| left <= 900), "{granted}");
    for name in ["admin", "robot$shop+other", "robot$other+ci"] {
        expect(&basic(name).await?, StatusCode::UNAUTHORIZED)?;
    }

    let other = Key::rsa()?;
    let changed = |name: &str, value: Value| {
        let mut claims = main.clone();
        claims[name] = value;
        claims
    };
    let header = json!({ "alg": "RS256", "kid": "rsa" });
    let none =
        format!("{}.{}.", base64(json!({ "alg": "none" }).to_string()), base64(main.to_string()));
    let mut answers = std::collections::BTreeSet::new();
    for (what, project, token) in [
        ("a tag", "shop", issuer.rs256(&job("repo:acme/shop:ref:refs/tags/v1")?)?),
        ("a fork", "shop", issuer.rs256(&job("repo:evil/shop:ref:refs/heads/main")?)?),
        ("no claim", "shop", issuer.rs256(&changed("ref_protected", json!("false")))?),
        ("a project without rules", "nowhere", issuer.rs256(&main)?),
        ("too old", "shop", issuer.rs256(&changed("exp", json!(now()? - 100)))?),
        ("for somebody else", "shop", issuer.rs256(&changed("aud", json!("cloud")))?),
        ("another key", "shop", other.sign(&header, &main)?),
        ("another issuer", "shop", other.sign(&header, &changed("iss", json!("https://evil")))?),
        ("none", "shop", none),
        ("nothing", "shop", "nothing".to_owned()),
    ] {
        let refused = problem(exchange(project, &token).await?, StatusCode::UNAUTHORIZED).await;
        let refused = refused.context(what)?;
        answers.insert((refused.code, refused.message));
    }
    ensure!(answers.len() == 1, "the answers differ: {answers:?}");
    // What goes, goes at once: the robot with its tokens and rules.
    let gone = node.request(Method::DELETE, "projects/shop/robots/ci").send().await?;
    expect(&gone, StatusCode::NO_CONTENT)?;
    let dead = bearer(Method::GET, "shop/app/manifests/v1").send().await?;
    expect(&dead, StatusCode::UNAUTHORIZED)?;
    expect(&exchange("shop", &issuer.rs256(&main)?).await?, StatusCode::UNAUTHORIZED)?;
    node.server.stop().await
}
