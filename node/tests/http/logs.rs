//! What the program itself writes: the access log, as programs read it; and how it ends.

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use shoal_metadata::COMMAND_VERSION;

use super::program::Program;
use super::v2::sha256;
use super::wait::until;

const LAYER: &[u8] = b"a layer";

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_one_json_object_and_the_program_ends_when_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let program = Program::start(folder.path(), "").await?;
    let Program { url, password, http, .. } = &program;
    let digest = sha256(LAYER);
    let push = format!("{url}/v2/team/app/blobs/uploads/?digest={digest}");
    let push = http.post(push).basic_auth("admin", Some(password)).body(LAYER);
    push.send().await?.error_for_status()?;
    let pull = http.get(format!("{url}/v2/team/app/blobs/{digest}"));
    let pull = pull.basic_auth("admin", Some(password)).header("x-request-id", "pull-1");
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let pull = pull.header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    ensure!(pull.send().await?.bytes().await? == LAYER);
    let descriptor =
        |kind: &str| json!({ "mediaType": kind, "digest": digest, "size": LAYER.len() });
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": kind,
        "config": descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar")],
    });
    let manifest = manifest.to_string();
    let of_manifest = sha256(manifest.as_bytes());
    let push = http.put(format!("{url}/v2/team/app/manifests/v1")).header("content-type", kind);
    let push = push.basic_auth("admin", Some(password)).header("x-request-id", "push-1");
    push.body(manifest).send().await?.error_for_status()?;
    for (id, reference) in
        [("by-tag", "v1"), ("by-digest", of_manifest.as_str()), ("by-none", "v2")]
    {
        let pull = http.get(format!("{url}/v2/team/app/manifests/{reference}"));
        let pull = pull.basic_auth("admin", Some(password)).header("x-request-id", id);
        ensure!(pull.send().await?.status().is_success() == (id != "by-none"), "{id}");
    }
    let refused = http.get(format!("{url}/api/v1/images")).header("x-request-id", "refused-1");
    ensure!(refused.send().await?.status() == 401);

    program.terminate()?;
    let password = password.clone();
    program.ended().await?;

    let log = std::fs::read_to_string(folder.path().join("log"))?;
    ensure!(!log.contains(&password), "the password is in the log");
    let mut lines = Vec::new();
    for line in log.lines() {
        lines.push(serde_json::from_str::<Value>(line).with_context(|| line.to_owned())?);
    }
    let of = |id: &str| {
        let found = lines.iter().find(|line| line["request_id"] == id);
        found.with_context(|| format!("no line of {id} in {log}"))
    };
    let line = of("pull-1")?;
    for (field, wanted) in [
        ("level", "INFO"),
        ("service", "shoal-node"),
        ("trace_id", trace),
        ("user_id", "admin"),
        ("action", "pull_blob"),
        ("image_name", "team/app"),
        ("client_ip", "127.0.0.1"),
        ("status", "success"),
    ] {
        ensure!(line[field] == wanted, "{field}: {line}");
    }
    ensure!(line["image_id"].as_str().is_some_and(|id| id.starts_with("img-")), "{line}");
    ensure!(line["bytes_sent"] == LAYER.len(), "{line}");
    ensure!(line["duration_ms"].is_u64() && line["timestamp"].is_string(), "{line}");
    for (id, name) in [
        ("push-1", "team/app:v1".to_owned()),
        ("by-tag", "team/app:v1".to_owned()),
        ("by-digest", format!("team/app@{of_manifest}")),
        ("by-none", "team/app:v2".to_owned()),
    ] {
        let line = of(id)?;
        ensure!(line["image_name"] == name, "{name}: {line}");
    }
    let line = of("refused-1")?;
    ensure!(line["status"] == "failure" && line["http_status"] == 401, "{line}");
    ensure!(line["user_id"] == "" && line["action"] == "read_images", "{line}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_a_log_that_tells_everything() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Not what libraries say of the bytes that they send: that is for who looks for a fault in them.
    let filter = "filter = \"debug,shoal_node=trace,shoal_raft=trace,shoal_metadata=trace,shoal_p2p=trace\"\n";
    let program = Program::start(folder.path(), filter).await?;
    let mut secrets = vec![("the founder's password", program.password.clone())];
    let api = format!("{}/api/v1", program.url);
    // What is answered, with whatever status.
    let call = async |method: Method, path: &str, token: &str, body: Value| -> Result<Value> {
        let request = program.http.request(method, format!("{api}/{path}")).json(&body);
        let request = if token.is_empty() { request } else { request.bearer_auth(token) };
        Ok(request.send().await?.json().await.unwrap_or_default())
    };
    let text = |value: &Value, key: &str| -> Result<String> {
        value[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {value}"))
    };
    let login = json!({ "username": "admin", "password": program.password });
    let session = text(&call(Method::POST, "auth/login", "", login).await?, "token")?;
    until("the cluster's level", async || {
        let cluster = call(Method::GET, "cluster", &session, Value::Null).await?;
        Ok((cluster["level"].as_u64() >= Some(COMMAND_VERSION.into())).then_some(()))
    })
    .await?;
    // Passwords that are right, wrong, too easy, typed as a name, and in place of others.
    for (what, name, password) in [
        ("a password", "alice", "right-horse-71"),
        ("a wrong password", "alice", "wrong-horse-72"),
        ("a name that was a password", "typed-horse-73 ", "x"),
    ] {
        let made = json!({ "username": name, "password": password });
        if what == "a password" {
            call(Method::POST, "users", &session, made.clone()).await?;
        }
        call(Method::POST, "auth/login", "", made).await?;
        let secret = if password == "x" { name.trim() } else { password };
        secrets.push((what, secret.to_owned()));
        let basic = program.http.get(format!("{}/v2/", program.url));
        basic.basic_auth(name, Some(password)).send().await?;
    }
    let changed = json!({ "current_password": "right-horse-71", "new_password": "other-horse-74" });
    let alice = json!({ "username": "alice", "password": "right-horse-71" });
    let alice = text(&call(Method::POST, "auth/login", "", alice).await?, "token")?;
    call(Method::PUT, "user/password", &alice, changed).await?;
    let hashed =
        json!({ "username": "bob", "password_hash": "$2y$04$abcdefghijklmnopqrstuuSQyLzxZtaUF" });
    call(Method::POST, "users", &session, hashed).await?;
    let second = json!({ "current_password": "other-horse-74" });
    let second = call(Method::POST, "user/second-factor", &alice, second).await?;
    // What programs show.
    let personal = json!({ "name": "docker", "scopes": ["repo:read"] });
    let personal = text(&call(Method::POST, "user/tokens", &session, personal).await?, "token")?;
    call(Method::POST, "projects", &session, json!({ "name": "shop" })).await?;
    let robot = json!({ "name": "ci", "scopes": ["repo:read"] });
    let robot = call(Method::POST, "projects/shop/robots", &session, robot).await?;
    let join = json!({ "role": "node", "ttl_seconds": 60, "uses": 1 });
    let join = text(&call(Method::POST, "join-tokens", &session, join).await?, "token")?;
    let registry = format!("{}/v2/token?service=x&scope=repository:shop/app:pull", program.url);
    let registry = program.http.get(registry).basic_auth("admin", Some(&personal)).send().await?;
    let registry = text(&registry.json().await?, "token")?;
    let robots = text(&robot, "secret")?;
    let robots_name = text(&robot, "name")?;
    for (name, password) in [(robots_name.as_str(), &robots), ("admin", &personal)] {
        let basic = program.http.get(format!("{}/v2/", program.url));
        ensure!(basic.basic_auth(name, Some(password)).send().await?.status() == 200, "{name}");
    }
    let guessed = format!("pat_v1_{:032x}", rand::random::<u128>());
    for token in [&registry, &personal, &guessed, &join] {
        call(Method::GET, "auth/me", token, Value::Null).await?;
    }
    let enrol = json!({ "token": join, "name": "host-1", "csr_pem": "none", "zone": "" });
    call(Method::POST, "agents/enrol", "", enrol).await?;
    // What stands in addresses.
    call(
        Method::GET,
        "auth/oidc/callback?code=code-horse-75&state=state-horse-76",
        "",
        Value::Null,
    )
    .await?;
    let form = "grant_type=password&username=alice&password=form-horse-77&service=x";
    let form = program.http.post(format!("{}/v2/token", program.url)).body(form);
    form.header("content-type", "application/x-www-form-urlencoded").send().await?;
    secrets.extend([
        ("a session", session),
        ("another session", alice),
        ("a changed password", "other-horse-74".to_owned()),
        ("a hash", "abcdefghijklmnopqrstuuSQyLzxZtaUF".to_owned()),
        ("a second factor", text(&second, "secret")?),
        ("a personal token", personal),
        ("a robot's secret", robots),
        ("a join token", join.rsplit('.').next().unwrap_or_default().to_owned()),
        ("a token of the registry", registry),
        ("a guessed token", guessed),
        ("an issuer's code", "code-horse-75".to_owned()),
        ("a login's state", "state-horse-76".to_owned()),
        ("a password of a form", "form-horse-77".to_owned()),
    ]);
    program.terminate()?;
    program.ended().await?;
    let log = std::fs::read_to_string(folder.path().join("log"))?;
    ensure!(log.contains("\"TRACE\"") || log.contains("\"DEBUG\""), "the log tells little");
    for (what, secret) in &secrets {
        ensure!(secret.len() >= 10, "{what} is too short to be looked for");
        let line = log.lines().find(|line| line.contains(secret.as_str()));
        ensure!(line.is_none(), "{what} is in the log: {line:?}");
    }
    Ok(())
}
