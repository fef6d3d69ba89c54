//! Who is let in, and what names may be.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::super::node::Node;
use super::{expect, header, push_image, refused, sha256};

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_one_challenge_and_learn_nothing() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "a/private", "v1", b"layer").await?;
    for (method, path) in [
        (Method::GET, ""),
        (Method::GET, "a/private/manifests/v1"),
        (Method::GET, "a/missing/manifests/v1"),
        (Method::GET, "_catalog"),
        (Method::POST, "a/private/blobs/uploads/"),
        (Method::DELETE, "a/private/manifests/v1"),
        (Method::GET, "NOT/a/name/manifests/v1"),
    ] {
        let answer = node.anonymous_v2(method, path).send().await?;
        let challenges: Vec<_> = answer.headers().get_all("www-authenticate").iter().collect();
        ensure!(challenges.len() == 1, "{path}: {challenges:?}");
        // The host is an address here, for which clients can follow no realm.
        ensure!(challenges[0] == "Basic realm=\"shoal\"", "{path}: {challenges:?}");
        ensure!(header(&answer, "docker-distribution-api-version")? == "registry/2.0");
        refused(answer, StatusCode::UNAUTHORIZED, "UNAUTHORIZED").await?;
    }
    node.server.stop().await
}

/// RFC 7617 lets both be empty, and podman sends them so to who asks for Basic, where it has no login.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_name_and_password_are_nobody_and_no_guess() -> Result<()> {
    // As for clients from elsewhere: loopback is exempt from lock-out.
    let node = Node::start_with(|config| {
        config.lockout.exempt_networks.clear();
        config.lockout.account_failures = 2;
    })
    .await?;
    let open = json!({ "name": "open", "visibility": "public" });
    let _project: Value = node.call(Method::POST, "projects", &open).await?;
    push_image(&node, "open/app", "v1", b"layer").await?;
    push_image(&node, "a/private", "v1", b"layer").await?;
    let layer = sha256(b"layer");
    let nobody = |method, path: &str| node.anonymous_v2(method, path).basic_auth("", Some(""));
    for _ in 0..3 {
        for path in ["open/app/manifests/v1", &format!("open/app/blobs/{layer}")] {
            expect(&nobody(Method::GET, path).send().await?, StatusCode::OK)?;
        }
        let private = nobody(Method::GET, "a/private/manifests/v1").send().await?;
        refused(private, StatusCode::UNAUTHORIZED, "UNAUTHORIZED").await?;
        let push = nobody(Method::POST, "open/app/blobs/uploads/").send().await?;
        refused(push, StatusCode::UNAUTHORIZED, "UNAUTHORIZED").await?;
    }
    // Half of a login is a wrong one.
    for (name, password) in [("admin", ""), ("", "a password")] {
        let half = node.anonymous_v2(Method::GET, "open/app/manifests/v1");
        let half = half.basic_auth(name, Some(password)).send().await?;
        expect(&half, StatusCode::UNAUTHORIZED)?;
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_password_is_wrong_is_told_so() -> Result<()> {
    let node = Node::start().await?;
    let asked = async |request: reqwest::RequestBuilder| {
        let answer = request.send().await?;
        expect(&answer, StatusCode::UNAUTHORIZED)?;
        ensure!(answer.headers().contains_key("www-authenticate"), "{answer:?}");
        let body: Value = answer.json().await?;
        Ok::<_, anyhow::Error>(body["errors"][0]["message"].as_str().unwrap_or_default().to_owned())
    };
    for path in ["", "token", "a/b/tags/list"] {
        let request = |name: &str| {
            node.anonymous_v2(Method::GET, path).basic_auth(name.to_owned(), Some("not the one"))
        };
        let wrong = asked(request("admin")).await?;
        ensure!(wrong.contains("wrong"), "{path}: {wrong}");
        // And nobody learns so who has an account.
        ensure!(asked(request("nobody")).await? == wrong, "{path}");
        let missing = asked(node.anonymous_v2(Method::GET, path)).await?;
        ensure!(missing.contains("log in"), "{path}: {missing}");
    }
    node.server.stop().await
}

/// podman, skopeo, crane and oras ask for a blob and a manifest before they send it, and take a 403
/// for the end.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_write_or_delete_may_look_first() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    let layer = sha256(b"layer");
    let missing = sha256(b"missing");
    for (scope, push, delete) in [
        ("repo:write", StatusCode::ACCEPTED, StatusCode::FORBIDDEN),
        ("repo:delete", StatusCode::FORBIDDEN, StatusCode::ACCEPTED),
    ] {
        let asked = json!({ "name": scope, "scopes": [scope] });
        let token: Value = node.call(Method::POST, "user/tokens", &asked).await?;
        let asked = json!({ "name": &scope[5..], "scopes": [scope] });
        let robot: Value = node.call(Method::POST, "projects/shop/robots", &asked).await?;
        let robots_name = robot["name"].as_str().context("a name")?;
        for (name, made, secret, tag) in [
            ("admin", &token, &token["token"], "one"),
            (robots_name, &robot, &robot["secret"], "two"),
        ] {
            // The answer tells what was added.
            let mut scopes = ["repo:read", scope];
            scopes.sort_unstable();
            ensure!(made["scopes"] == json!(scopes), "{made}");
            let secret = secret.as_str().context("a secret")?;
            let with = |method, path: &str| {
                node.anonymous_v2(method, path).basic_auth(name.to_owned(), Some(secret)).send()
            };
            for (path, status) in [
                ("shop/app/manifests/v1".to_owned(), StatusCode::OK),
                (format!("shop/app/blobs/{layer}"), StatusCode::OK),
                (format!("shop/app/blobs/{missing}"), StatusCode::NOT_FOUND),
            ] {
                expect(&with(Method::HEAD, &path).await?, status)?;
            }
            expect(&with(Method::POST, "shop/app/blobs/uploads/").await?, push)?;
            push_image(&node, "shop/app", tag, b"layer").await?;
            let tag = format!("shop/app/manifests/{tag}");
            expect(&with(Method::DELETE, &tag).await?, delete)?;
        }
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_host_sends_clients_for_a_token_and_takes_it() -> Result<()> {
    let node = Node::start().await?;
    let port = node.url.rsplit(':').next().context("a port")?;
    let base = format!("https://localhost:{port}/v2");
    let answer = node.http.get(format!("{base}/a/b/manifests/v1")).send().await?;
    expect(&answer, StatusCode::UNAUTHORIZED)?;
    let wanted = format!(
        "Bearer realm=\"{base}/token\",service=\"localhost:{port}\",scope=\"repository:a/b:pull\""
    );
    ensure!(header(&answer, "www-authenticate")? == wanted);

    let url = format!("{base}/token?service=localhost:{port}&account=admin&offline_token=true");
    let with = |password: &str| {
        let basic = STANDARD.encode(format!("admin:{password}"));
        node.http.get(&url).header("authorization", format!("Basic {basic}")).send()
    };
    expect(&with("wrong").await?, StatusCode::UNAUTHORIZED)?;
    let granted: Value = with(node.password()).await?.error_for_status()?.json().await?;
    ensure!(granted["token"].is_string() && granted["token"] == granted["access_token"]);
    ensure!(granted["expires_in"].as_u64().is_some_and(|seconds| seconds >= 60));
    let token = granted["token"].as_str().context("a token")?;
    let answer = node.http.get(format!("{base}/")).bearer_auth(token).send().await?;
    expect(&answer, StatusCode::OK)?;
    node.server.stop().await
}

/// As podman and containerd push: one token for the whole of it.
#[tokio::test(flavor = "multi_thread")]
async fn one_token_does_for_a_push_that_makes_the_project() -> Result<()> {
    let node = Node::start().await?;
    let user = json!({ "username": "alice", "password": "Sparkling-water-42" });
    let _user: Value = node.call(Method::POST, "users", &user).await?;
    let scope = "token?scope=repository:fresh/app:pull,push";
    let request = node.anonymous_v2(Method::GET, scope);
    let granted = request.basic_auth("alice", Some("Sparkling-water-42")).send().await?;
    let granted: Value = granted.error_for_status()?.json().await?;
    let token = granted["token"].as_str().context("a token")?;
    let with = |method, path: &str| node.anonymous_v2(method, path).bearer_auth(token);

    let layers = [&b"the first"[..], b"the second"];
    for layer in layers {
        let digest = sha256(layer);
        let missing = with(Method::HEAD, &format!("fresh/app/blobs/{digest}")).send().await?;
        expect(&missing, StatusCode::NOT_FOUND)?;
        let push = with(Method::POST, &format!("fresh/app/blobs/uploads/?digest={digest}"));
        expect(&push.body(layer).send().await?, StatusCode::CREATED)?;
    }
    let descriptor = |layer: &[u8]| super::descriptor(super::LAYER, layer);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": super::MANIFEST,
        "config": descriptor(layers[0]), "layers": layers.map(descriptor),
    });
    let put = with(Method::PUT, "fresh/app/manifests/v1").header("content-type", super::MANIFEST);
    expect(&put.body(manifest.to_string()).send().await?, StatusCode::CREATED)?;
    expect(&with(Method::GET, "fresh/app/manifests/v1").send().await?, StatusCode::OK)?;
    // What it was not given for, it says so; and to what is not alice's it gives nothing.
    push_image(&node, "b/private", "v1", b"layer").await?;
    let port = node.url.rsplit(':').next().context("a port")?;
    let other = format!("https://localhost:{port}/v2/b/private/manifests/v1");
    let answer = node.http.get(other).bearer_auth(token).send().await?;
    expect(&answer, StatusCode::UNAUTHORIZED)?;
    let challenge = header(&answer, "www-authenticate")?;
    ensure!(challenge.ends_with(",error=\"insufficient_scope\""), "{challenge}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_to_localhost_in_the_clear_is_asked_for_basic() -> Result<()> {
    let plain = super::super::node::free_tcp()?;
    let node = Node::start_with(|config| config.http.plain_listen = Some(plain)).await?;
    let port = plain.port();
    let challenge = async |host: String| {
        let request = node.http.get(format!("http://127.0.0.1:{port}/v2/"));
        let answer = request.header("host", host).send().await?;
        expect(&answer, StatusCode::UNAUTHORIZED)?;
        Ok::<_, anyhow::Error>(header(&answer, "www-authenticate")?.to_owned())
    };
    for host in [format!("localhost:{port}"), format!("127.0.0.1:{port}"), "[::1]".to_owned()] {
        ensure!(challenge(host.clone()).await? == "Basic realm=\"shoal\"", "{host}");
    }
    // A proxy that encrypts.
    let named = challenge("registry.example".to_owned()).await?;
    ensure!(named.starts_with("Bearer realm=\"https://registry.example/v2/token\""), "{named}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn names_outside_the_grammar_are_refused() -> Result<()> {
    let node = Node::start().await?;
    let long = format!("a/{}", "b".repeat(300));
    for name in ["A/b", "a//b", "-a/b", "a/b-", "a/..", "a/.b", "a/b%2fc%00", long.as_str()] {
        let answer = node.v2(Method::POST, &format!("{name}/blobs/uploads/")).send().await?;
        let status = answer.status().as_u16();
        ensure!(matches!(status, 400 | 404), "{name}: {status}");
    }
    let tag = format!("a/b/manifests/{}", "t".repeat(129));
    for path in [tag.as_str(), "a/b/manifests/.x", "a/b/manifests/-x"] {
        let answer = node.v2(Method::PUT, path).body("{}").send().await?;
        expect(&answer, StatusCode::BAD_REQUEST)?;
        let answer = node.v2(Method::GET, path).send().await?;
        expect(&answer, StatusCode::NOT_FOUND)?;
    }
    node.server.stop().await
}
