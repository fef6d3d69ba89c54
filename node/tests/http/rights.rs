//! Who may do what, over HTTP: members, robots, personal tokens, and attempts to get around them.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use shoal_api::Permission;
use shoal_metadata::AuditPhase;

use super::members::Agent;
use super::node::{Node, problem, read};
use super::v2::{expect, push_blob, push_image, sha256};
use super::wait::{level_raised, until};

const PASSWORD: &str = "correct-horse-7";

/// Somebody with a name and a password, a token or a secret.
struct Person<'a> {
    node: &'a Node,
    name: String,
    password: String,
}

impl<'a> Person<'a> {
    async fn new(node: &'a Node, name: &str) -> Result<Self> {
        let request = json!({ "username": name, "password": PASSWORD });
        let _user: Value = node.call(Method::POST, "users", &request).await?;
        Ok(Self::with(node, name, PASSWORD))
    }

    fn with(node: &'a Node, name: &str, password: &str) -> Self {
        Self { node, name: name.to_owned(), password: password.to_owned() }
    }

    fn v2(&self, method: Method, path: &str) -> RequestBuilder {
        self.node.anonymous_v2(method, path).basic_auth(&self.name, Some(&self.password))
    }

    fn api(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/api/v1/{path}", self.node.url);
        self.node.http.request(method, url).basic_auth(&self.name, Some(&self.password))
    }

    async fn pushes(&self, repository: &str, content: &str) -> Result<Response> {
        let digest = sha256(content.as_bytes());
        let path = format!("{repository}/blobs/uploads/?digest={digest}");
        Ok(self.v2(Method::POST, &path).body(content.to_owned()).send().await?)
    }

    /// The statuses of reading a manifest, listing tags, pushing a blob and deleting a tag.
    async fn tries(&self, repository: &str) -> Result<[u16; 4]> {
        let pull = self.v2(Method::GET, &format!("{repository}/manifests/v1")).send().await?;
        let list = self.v2(Method::GET, &format!("{repository}/tags/list")).send().await?;
        let push = self.pushes(repository, &format!("by {}", self.name)).await?;
        let delete = self.v2(Method::DELETE, &format!("{repository}/manifests/no-such")).send();
        let delete = delete.await?;
        Ok([pull, list, push, delete].map(|answer| answer.status().as_u16()))
    }

    async fn token(&self, scopes: &[&str]) -> Result<(String, Value)> {
        let scopes: Vec<String> = scopes.iter().map(|scope| format!("scope={scope}")).collect();
        let path = format!("token?service=x&{}", scopes.join("&"));
        let answer: Value = read(self.v2(Method::GET, &path).send().await?).await?;
        let token = answer["token"].as_str().context("a token")?.to_owned();
        let claims = token.split('.').nth(1).context("claims")?;
        let claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
        Ok((token, claims))
    }
}

pub async fn put_member(node: &Node, path: &str, role: &str) -> Result<()> {
    let _member: Value = node.call(Method::PUT, path, &json!({ "role": role })).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_is_its_members_and_nobody_elses() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    let alice = Person::new(&node, "alice").await?;
    // A project that is not hers is not there for her; a new one is hers.
    ensure!(alice.tries("shop/app").await? == [404, 404, 403, 403]);
    ensure!(alice.tries("missing/app").await?[..2] == [404, 404]);
    let hidden = alice.v2(Method::GET, "shop/app/manifests/v1").send().await?.bytes().await?;
    let missing = alice.v2(Method::GET, "nowhere/x/manifests/v1").send().await?.bytes().await?;
    ensure!(hidden == missing, "{hidden:?} tells more than {missing:?}");
    expect(&alice.pushes("alice-lab/tool", "mine").await?, StatusCode::CREATED)?;
    let project: Value = read(alice.api(Method::GET, "projects/alice-lab").send().await?).await?;
    ensure!(project["owner"] == "user:alice" && project["visibility"] == "private", "{project}");

    let lists = async |person: &Person<'_>| -> Result<(Value, usize)> {
        let catalogue: Value = read(person.v2(Method::GET, "_catalog").send().await?).await?;
        let images: Value = read(person.api(Method::GET, "images").send().await?).await?;
        let count = images["data"].as_array().context("a list")?.len();
        Ok((catalogue["repositories"].clone(), count))
    };
    ensure!(lists(&alice).await? == (json!(["alice-lab/tool", "missing/app"]), 2));

    let member = "projects/shop/members/user:alice";
    for (role, wanted) in [
        ("limited-guest", [200, 403, 403, 403]),
        ("guest", [200, 200, 403, 403]),
        ("developer", [200, 200, 201, 403]),
        ("maintainer", [200, 200, 201, 404]),
        ("admin", [200, 200, 201, 404]),
    ] {
        put_member(&node, member, role).await?;
        let found = alice.tries("shop/app").await?;
        ensure!(found == wanted, "{role}: {found:?}");
    }
    ensure!(lists(&alice).await?.0 == json!(["alice-lab/tool", "missing/app", "shop/app"]));
    // Taken away, it is gone at once.
    expect(&node.request(Method::DELETE, member).send().await?, StatusCode::NO_CONTENT)?;
    ensure!(alice.tries("shop/app").await? == [404, 404, 403, 403]);

    // To groups and organizations, too.
    let organization = json!({ "name": "acme", "owner": "alice" });
    let _made: Value = node.call(Method::POST, "organizations", &organization).await?;
    let group = alice.api(Method::POST, "organizations/acme/groups").json(&json!({"name": "dev"}));
    expect(&group.send().await?, StatusCode::CREATED)?;
    let joined = alice.api(Method::PUT, "organizations/acme/groups/dev/members/alice");
    expect(&joined.send().await?, StatusCode::OK)?;
    put_member(&node, "projects/shop/members/group:acme/dev", "guest").await?;
    ensure!(alice.tries("shop/app").await? == [200, 200, 403, 403]);
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_public_needs_no_account() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "open/app", "v1", b"layer").await?;
    push_image(&node, "shut/app", "v1", b"layer").await?;
    let path = "open/app/manifests/v1";
    let status = async |path| -> Result<StatusCode> {
        Ok(node.anonymous_v2(Method::GET, path).send().await?.status())
    };
    ensure!(status(path).await? == StatusCode::UNAUTHORIZED);
    let open = json!({ "visibility": "public" });
    let _project: Value = node.call(Method::PUT, "projects/open", &open).await?;
    ensure!(status(path).await? == StatusCode::OK);
    ensure!(status("shut/app/manifests/v1").await? == StatusCode::UNAUTHORIZED);
    let push = node.anonymous_v2(Method::POST, "open/app/blobs/uploads/").send().await?;
    expect(&push, StatusCode::UNAUTHORIZED)?;
    // Clients by name ask for a token without an account, and get one for what is public.
    let port = node.url.rsplit(':').next().context("a port")?;
    let token = async |scope: &str| -> Result<Response> {
        let url = format!("https://localhost:{port}/v2/token?service=x&scope={scope}");
        Ok(node.http.get(url).send().await?)
    };
    expect(&token("repository:shut/app:pull").await?, StatusCode::UNAUTHORIZED)?;
    let granted: Value = read(token("repository:open/app:pull,push").await?).await?;
    let granted = granted["token"].as_str().context("a token")?;
    let with = |path: &str| node.anonymous_v2(Method::GET, path).bearer_auth(granted).send();
    expect(&with(path).await?, StatusCode::OK)?;
    expect(&with("shut/app/manifests/v1").await?, StatusCode::UNAUTHORIZED)?;
    // Developers only read what everyone reads.
    let bob = Person::new(&node, "bob").await?;
    put_member(&node, "projects/open/members/user:bob", "developer").await?;
    ensure!(bob.tries("open/app").await? == [200, 200, 403, 403]);
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_have_tokens_and_robots_with_less_than_their_makers() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    push_image(&node, "shop/other", "v1", b"layer").await?;
    let alice = Person::new(&node, "alice").await?;
    put_member(&node, "projects/shop/members/user:alice", "admin").await?;
    let create = async |scopes: &[&str], name: &str| -> Result<(String, String)> {
        let request = json!({ "name": name, "scopes": scopes, "ttl_seconds": 3600 });
        let made = alice.api(Method::POST, "user/tokens").json(&request).send().await?;
        let made: Value = read(made).await?;
        let text = |key: &str| made[key].as_str().map(str::to_owned).context("a text");
        Ok((text("token")?, text("id")?))
    };
    let (reading, id) = create(&["repo:read"], "reads").await?;
    let (writing, _) = create(&["repo:read", "repo:write"], "writes").await?;
    ensure!(reading.starts_with("pat_v1_") && reading.len() == 39, "{reading}");
    let as_password = Person::with(&node, "alice", &reading);
    ensure!(as_password.tries("shop/app").await? == [200, 200, 403, 403]);
    let writer = Person::with(&node, "alice", &writing);
    ensure!(writer.tries("shop/app").await? == [200, 200, 201, 403]);
    // Of another name it is nobody's password.
    expect(
        &Person::with(&node, "admin", &reading).v2(Method::GET, "").send().await?,
        StatusCode::UNAUTHORIZED,
    )?;
    // It makes no further tokens, and manages nothing.
    for (method, path, body) in [
        (Method::POST, "user/tokens", json!({ "name": "more", "scopes": ["admin"] })),
        (Method::PUT, "projects/shop", json!({ "visibility": "public" })),
        (Method::PUT, "projects/shop/members/user:alice", json!({ "role": "guest" })),
        (Method::POST, "projects", json!({ "name": "new" })),
    ] {
        let answer = writer.api(method, path).json(&body).send().await?;
        expect(&answer, StatusCode::FORBIDDEN).with_context(|| path.to_owned())?;
    }
    // What was got with it ends with it.
    let (bearer, claims) = as_password.token(&["repository:shop/app:pull,push"]).await?;
    ensure!(claims["access"][0]["actions"] == json!(["pull"]), "{claims}");
    let with =
        |token: &str, path: &str| node.anonymous_v2(Method::GET, path).bearer_auth(token).send();
    expect(&with(&bearer, "shop/app/manifests/v1").await?, StatusCode::OK)?;
    expect(&with(&reading, "shop/app/manifests/v1").await?, StatusCode::OK)?;
    let removed = alice.api(Method::DELETE, &format!("user/tokens/{id}")).send().await?;
    expect(&removed, StatusCode::NO_CONTENT)?;
    expect(&with(&bearer, "shop/app/manifests/v1").await?, StatusCode::UNAUTHORIZED)?;
    expect(&with(&reading, "shop/app/manifests/v1").await?, StatusCode::UNAUTHORIZED)?;

    let request = json!({ "name": "ci", "scopes": ["repo:read", "repo:write"], "repositories": ["shop/app"] });
    let made: Value =
        read(alice.api(Method::POST, "projects/shop/robots").json(&request).send().await?).await?;
    ensure!(made["name"] == "robot$shop+ci", "{made}");
    let secret = made["secret"].as_str().context("a secret")?;
    let robot = Person::with(&node, "robot$shop+ci", secret);
    ensure!(robot.tries("shop/app").await? == [200, 200, 201, 403]);
    ensure!(robot.tries("shop/other").await? == [404, 404, 403, 403]);
    ensure!(robot.tries("elsewhere/x").await? == [404, 404, 403, 403]);
    let catalogue: Value = read(robot.v2(Method::GET, "_catalog").send().await?).await?;
    ensure!(catalogue["repositories"] == json!(["shop/app"]), "{catalogue}");
    let (bearer, _) = robot.token(&["repository:shop/app:pull"]).await?;
    expect(&with(&bearer, "shop/app/manifests/v1").await?, StatusCode::OK)?;
    expect(&robot.api(Method::GET, "user/tokens").send().await?, StatusCode::FORBIDDEN)?;
    // A new secret makes the old one worthless.
    let again = alice.api(Method::POST, "projects/shop/robots").json(&request).send().await?;
    expect(&again, StatusCode::CREATED)?;
    expect(&robot.v2(Method::GET, "").send().await?, StatusCode::UNAUTHORIZED)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_good_for_what_they_were_given_for() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "a/x", "v1", b"layer").await?;
    push_image(&node, "b/x", "v1", b"layer").await?;
    let admin = Person::with(&node, "admin", node.password());
    let (token, claims) = admin.token(&["repository:a/x:pull"]).await?;
    ensure!(claims["access"].as_array().context("access")?.len() == 1, "{claims}");
    let with = |method: Method, path: &str, token: &str| {
        node.anonymous_v2(method, path).bearer_auth(token).send()
    };
    expect(&with(Method::GET, "a/x/manifests/v1", &token).await?, StatusCode::OK)?;
    expect(&with(Method::GET, "b/x/manifests/v1", &token).await?, StatusCode::UNAUTHORIZED)?;
    expect(&with(Method::DELETE, "a/x/manifests/v1", &token).await?, StatusCode::UNAUTHORIZED)?;
    // A blob is not had from elsewhere with it, nor the names of what else there is.
    let (pushing, _) = admin.token(&["repository:a/x:pull,push"]).await?;
    let port = node.url.rsplit(':').next().context("a port")?;
    let challenged = async |method: Method, path: &str| {
        let url = format!("https://localhost:{port}/v2/{path}");
        let answer = node.http.request(method, url).bearer_auth(&pushing).send().await?;
        expect(&answer, StatusCode::UNAUTHORIZED)?;
        let challenge = answer.headers()["www-authenticate"].to_str()?.to_owned();
        let (_, scope) = challenge.split_once("scope=\"").context("a scope")?;
        Ok::<_, anyhow::Error>(scope.to_owned())
    };
    let secret = push_blob(&node, "b/x", b"a layer of b's").await?;
    let mount = format!("a/x/blobs/uploads/?mount={secret}&from=b/x");
    let scope = challenged(Method::POST, &mount).await?;
    ensure!(
        scope == "repository:a/x:pull,push repository:b/x:pull\",error=\"insufficient_scope\"",
        "{scope}"
    );
    let scope = challenged(Method::GET, "_catalog").await?;
    ensure!(scope == "registry:catalog:*\",error=\"insufficient_scope\"", "{scope}");
    let both = ["repository:a/x:pull,push", "repository:b/x:pull", "registry:catalog:*"];
    let (both, _) = admin.token(&both).await?;
    expect(&with(Method::GET, "_catalog", &both).await?, StatusCode::OK)?;
    expect(&with(Method::POST, &mount, &both).await?, StatusCode::CREATED)?;
    // Who was asked for it and may not read it goes on with an upload.
    let eve = Person::new(&node, "eve").await?;
    let (hers, _) = eve.token(&["repository:eve/app:pull,push", "repository:b/x:pull"]).await?;
    let mount = format!("eve/app/blobs/uploads/?mount={secret}&from=b/x");
    expect(&with(Method::POST, &mount, &hers).await?, StatusCode::ACCEPTED)?;

    // Not for the REST API, nor for another token.
    let api = node.http.get(format!("{}/api/v1/images", node.url)).bearer_auth(&token);
    expect(&api.send().await?, StatusCode::UNAUTHORIZED)?;
    let again = with(Method::GET, "token?scope=repository:b/x:pull", &token).await?;
    expect(&again, StatusCode::UNAUTHORIZED)?;

    // Forged ones: no signature, an algorithm of their own, claims that were changed.
    let parts: Vec<&str> = token.split('.').collect();
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let mut claims: Value = claims;
    claims["access"][0]["name"] = json!("b/x");
    for (header, signature) in [
        (json!({ "alg": "none", "typ": "JWT" }), ""),
        (json!({ "alg": "HS256", "typ": "JWT" }), parts[2]),
        (json!({ "alg": "EdDSA", "typ": "JWT" }), parts[2]),
        (json!({ "alg": "EdDSA", "typ": "shoal-node+jwt" }), parts[2]),
    ] {
        let forged = format!("{}.{}.{signature}", encode(&header), encode(&claims));
        let answer = with(Method::GET, "b/x/manifests/v1", &forged).await?;
        expect(&answer, StatusCode::UNAUTHORIZED).with_context(|| header.to_string())?;
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_not_to_be_had_by_its_digest() -> Result<()> {
    let node = Node::start().await?;
    let secret = push_blob(&node, "vault/app", b"a secret layer").await?;
    let eve = Person::new(&node, "eve").await?;
    expect(&eve.pushes("eve/app", "hers").await?, StatusCode::CREATED)?;
    let got = eve.v2(Method::GET, &format!("eve/app/blobs/{secret}")).send().await?;
    expect(&got, StatusCode::NOT_FOUND)?;
    // A mount falls back to an upload, as for a blob that is nowhere.
    for from in ["&from=vault/app", ""] {
        let path = format!("eve/app/blobs/uploads/?mount={secret}{from}");
        expect(&eve.v2(Method::POST, &path).send().await?, StatusCode::ACCEPTED)?;
    }
    let got = eve.v2(Method::GET, &format!("eve/app/blobs/{secret}")).send().await?;
    expect(&got, StatusCode::NOT_FOUND)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": secret, "size": 14 },
        "layers": [],
    });
    let put = eve.v2(Method::PUT, "eve/app/manifests/v1").body(manifest.to_string());
    let put = put.header("content-type", "application/vnd.oci.image.manifest.v1+json");
    expect(&put.send().await?, StatusCode::NOT_FOUND)?;

    // Somebody else's session is not there for her, even in a repository that she may push to.
    put_member(&node, "projects/vault/members/user:eve", "developer").await?;
    let begun = node.v2(Method::POST, "vault/app/blobs/uploads/").send().await?;
    let location = begun.headers()["location"].to_str()?.replace("/v2/", "");
    for method in [Method::GET, Method::PATCH, Method::DELETE] {
        let answer = eve.v2(method.clone(), &location).send().await?;
        expect(&answer, StatusCode::NOT_FOUND).with_context(|| method.to_string())?;
    }
    expect(&node.v2(Method::GET, &location).send().await?, StatusCode::NO_CONTENT)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_image_can_be_granted_alone() -> Result<()> {
    let node = Node::start().await?;
    let image = json!({ "name": "disks/base", "display_name": "Base" });
    let image: Value = node.call(Method::POST, "images", &image).await?;
    let id = image["id"].as_str().context("an id")?;
    let carol = Person::new(&node, "carol").await?;
    let show = async || -> Result<Response> {
        Ok(carol.api(Method::GET, &format!("images/{id}")).send().await?)
    };
    let hidden = problem(show().await?, StatusCode::NOT_FOUND).await?;
    ensure!(!hidden.message.contains("disks/base"), "{hidden:?}");
    let begin = async || -> Result<StatusCode> {
        let request = json!({ "version": "1.0", "total_size_bytes": 1024, "tags": [] });
        let path = format!("images/{id}/versions/upload/init");
        Ok(carol.api(Method::POST, &path).json(&request).send().await?.status())
    };
    ensure!(begin().await? == StatusCode::NOT_FOUND);
    let grant = format!("images/{id}/permissions/user:carol");
    for (access, upload) in [("read", StatusCode::FORBIDDEN), ("write", StatusCode::OK)] {
        put_member(&node, &grant, access).await?;
        expect(&show().await?, StatusCode::OK)?;
        ensure!(begin().await? == upload, "{access}");
    }
    let delete = carol.api(Method::DELETE, &format!("images/{id}")).send().await?;
    expect(&delete, StatusCode::FORBIDDEN)?;
    let images: Value = read(carol.api(Method::GET, "images").send().await?).await?;
    ensure!(images["pagination"]["total_count"] == 1, "{images}");
    // By kind and name, and listed as it was given.
    let organization = json!({ "name": "acme", "owner": "admin" });
    let _made: Value = node.call(Method::POST, "organizations", &organization).await?;
    let group = json!({ "name": "dev" });
    let _made: Value = node.call(Method::POST, "organizations/acme/groups", &group).await?;
    let grant = json!({
        "principal_type": "group", "principal_id": "acme/dev", "permission_level": "read",
    });
    let path = format!("images/{id}/permissions");
    let given: Permission = node.call(Method::POST, &path, &grant).await?;
    ensure!(given.principal.kind == "user_group" && given.created_at.is_some(), "{given:?}");
    let listed: Vec<Permission> = node.get(&path).await?;
    ensure!(listed.len() == 2, "{listed:?}");
    ensure!(listed.contains(&given) && given.created_by == "admin", "{listed:?}");
    ensure!(given.updated_at == given.created_at, "{given:?}");
    // Given by its name, carol's has them as well.
    ensure!(listed.iter().all(|one| one.created_at.is_some()), "{listed:?}");
    let taken = node.request(Method::DELETE, &format!("{path}/{}", given.id)).send().await?;
    expect(&taken, StatusCode::NO_CONTENT)?;
    let odd = node.request(Method::PUT, &format!("images/{id}/permissions/nobody"));
    problem(odd.json(&json!({ "role": "read" })).send().await?, StatusCode::BAD_REQUEST).await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_made_changed_and_ended_by_administrators() -> Result<()> {
    let node = Node::start().await?;
    let dave = Person::new(&node, "dave").await?;
    for (method, path, body) in [
        (Method::GET, "users", json!(null)),
        (Method::POST, "users", json!({ "username": "x", "password": PASSWORD })),
        (Method::PATCH, "users/dave", json!({ "role": "admin" })),
        (Method::DELETE, "users/admin", json!(null)),
        (Method::POST, "join-tokens", json!({ "role": "agent", "ttl_seconds": 60 })),
        (Method::POST, "storage/collect", json!({ "dry_run": true })),
        (Method::POST, "organizations", json!({ "name": "own" })),
    ] {
        let answer = dave.api(method, path).json(&body).send().await?;
        expect(&answer, StatusCode::FORBIDDEN).with_context(|| path.to_owned())?;
    }
    // Where one gets mail, one says oneself.
    let email = async |text: &str| -> Result<Response> {
        let request = json!({ "email": text });
        Ok(dave.api(Method::PUT, "user/email").json(&request).send().await?)
    };
    for (text, status, kept) in [
        ("dave@example.com", StatusCode::NO_CONTENT, json!("dave@example.com")),
        ("dave", StatusCode::BAD_REQUEST, json!("dave@example.com")),
        ("", StatusCode::NO_CONTENT, json!(null)),
        ("d@example.com", StatusCode::NO_CONTENT, json!("d@example.com")),
    ] {
        expect(&email(text).await?, status).with_context(|| text.to_owned())?;
        let shown: Value = read(dave.api(Method::GET, "users/dave").send().await?).await?;
        ensure!(shown["email"] == kept, "{shown}");
    }
    for weak in ["short", "aaaaaaaaaaaaaaa", "dave-dave-dave"] {
        let request = json!({ "current_password": PASSWORD, "new_password": weak });
        let answer = dave.api(Method::PUT, "user/password").json(&request).send().await?;
        problem(answer, StatusCode::BAD_REQUEST).await?;
    }
    let request = json!({ "current_password": "guessed-it-1", "new_password": "another-horse-8" });
    let guess = dave.api(Method::PUT, "user/password").json(&request).send().await?;
    problem(guess, StatusCode::UNAUTHORIZED).await?;
    // Nor does a token make its finder the owner, whatever it may do.
    let token = json!({ "name": "all", "scopes": ["admin"], "ttl_seconds": 3600 });
    let token = dave.api(Method::POST, "user/tokens").json(&token).send().await?;
    let token: Value = read(token).await?;
    let request = json!({ "current_password": token["token"], "new_password": "another-horse-8" });
    let found = dave.api(Method::PUT, "user/password").json(&request).send().await?;
    problem(found, StatusCode::UNAUTHORIZED).await?;
    // Nor does it make another one, that would outlive it.
    let bearer = token["token"].as_str().context("a token")?;
    let more = node.http.post(format!("{}/api/v1/user/tokens", node.url)).bearer_auth(bearer);
    let more = more.json(&json!({ "name": "more", "scopes": ["repo:read"] })).send().await?;
    expect(&more, StatusCode::FORBIDDEN)?;
    let request = json!({ "current_password": token["token"] });
    for path in ["user/deletion", "user/second-factor"] {
        let found = dave.api(Method::POST, path).json(&request).send().await?;
        problem(found, StatusCode::UNAUTHORIZED).await.context(path)?;
    }
    let request = json!({ "current_password": PASSWORD, "new_password": "another-horse-8" });
    let changed = dave.api(Method::PUT, "user/password").json(&request).send().await?;
    expect(&changed, StatusCode::NO_CONTENT)?;
    expect(&dave.api(Method::GET, "auth/me").send().await?, StatusCode::UNAUTHORIZED)?;
    let dave = Person::with(&node, "dave", "another-horse-8");
    let basic = STANDARD.encode("dave:another-horse-8");
    let me = node.http.get(format!("{}/api/v1/auth/me", node.url));
    let me: Value =
        read(me.header("authorization", format!("Basic {basic}")).send().await?).await?;
    ensure!(me["role"] == "user", "{me}");

    // Made up where none is given, and shown this once.
    let made: Value = node.call(Method::POST, "users", &json!({ "username": "erin" })).await?;
    let erin = Person::with(&node, "erin", made["password"].as_str().context("a password")?);
    expect(&erin.api(Method::GET, "auth/me").send().await?, StatusCode::OK)?;
    let twice = node.request(Method::POST, "users").json(&json!({ "username": "erin" }));
    problem(twice.send().await?, StatusCode::CONFLICT).await?;

    // An auditor sees what there is, and gets none of it.
    push_image(&node, "shop/app", "v1", b"layer").await?;
    let role = json!({ "role": "auditor" });
    let _erin: Value = node.call(Method::PATCH, "users/erin", &role).await?;
    ensure!(erin.tries("shop/app").await? == [403, 200, 403, 403]);
    expect(&erin.pushes("erins/app", "hers").await?, StatusCode::FORBIDDEN)?;
    // Nor does it change what hosts do, also with what everyone may pull, or make a place of its own.
    let open = json!({ "name": "fair", "visibility": "public" });
    let _open: Value = node.call(Method::POST, "projects", &open).await?;
    push_image(&node, "fair/app", "v1", b"layer").await?;
    for (path, body) in [
        ("images", json!({ "name": "erins/vm" })),
        ("projects", json!({ "name": "erins" })),
        ("deployments", json!({ "reference": "fair/app:v1" })),
        ("warm-ups", json!({ "name": "e", "reference": "fair/app:v1", "selector": "room=1" })),
    ] {
        let answer = erin.api(Method::POST, path).json(&body).send().await?;
        expect(&answer, StatusCode::FORBIDDEN).with_context(|| path.to_owned())?;
    }
    expect(&erin.api(Method::GET, "users").send().await?, StatusCode::OK)?;
    expect(&erin.api(Method::DELETE, "users/dave").send().await?, StatusCode::FORBIDDEN)?;

    // Who gets a password keeps the role that is given meanwhile.
    for (role, password) in [("admin", "first-horse-9"), ("user", "second-horse-9")] {
        let set = |body: Value| node.request(Method::PATCH, "users/dave").json(&body).send();
        let (password, role_too) =
            (set(json!({ "password": password })), set(json!({ "role": role })));
        for answer in futures::future::try_join_all([password, role_too]).await? {
            expect(&answer, StatusCode::OK)?;
        }
        let found: Value = node.get("users/dave").await?;
        ensure!(found["role"] == role, "{found}");
    }

    expect(&node.request(Method::DELETE, "users/dave").send().await?, StatusCode::NO_CONTENT)?;
    expect(&dave.api(Method::GET, "auth/me").send().await?, StatusCode::UNAUTHORIZED)?;
    let last = node.request(Method::DELETE, "users/admin").send().await?;
    ensure!(problem(last, StatusCode::CONFLICT).await?.code == "last_admin");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gave_an_order_has_it_within_its_rights_and_nobody_of_the_name_after_it() -> Result<()>
{
    let node = Node::start().await?;
    level_raised(&node).await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    Agent::enrol(&node, "host-1").await?;
    let alice = Person::new(&node, "alice").await?;
    let member = "projects/shop/members/user:alice";
    put_member(&node, member, "guest").await?;
    let order = json!({ "reference": "shop/app:v1", "hosts": ["host-1"] });
    let order: Value =
        read(alice.api(Method::POST, "deployments").json(&order).send().await?).await?;
    let order = format!("deployments/{}", order["id"].as_str().context("an id")?);
    let pause = format!("{order}/pause");
    let policy = json!({ "name": "base", "reference": "shop/app:v1", "selector": "room=12" });
    let policy = alice.api(Method::POST, "warm-ups").json(&policy).send().await?;
    expect(&policy, StatusCode::CREATED)?;
    let token = json!({ "name": "reads", "scopes": ["repo:read"] });
    let token: Value =
        read(alice.api(Method::POST, "user/tokens").json(&token).send().await?).await?;
    let reads = Person::with(&node, "alice", token["token"].as_str().context("a token")?);
    // The order is shown and held up, the policy is shown and ended.
    let tries = async |who: &Person<'_>| -> Result<[u16; 4]> {
        let mut statuses = [0; 4];
        for (status, (method, path)) in statuses.iter_mut().zip([
            (Method::GET, order.as_str()),
            (Method::POST, pause.as_str()),
            (Method::GET, "warm-ups/base"),
            (Method::DELETE, "warm-ups/base"),
        ]) {
            *status = who.api(method, path).send().await?.status().as_u16();
        }
        Ok(statuses)
    };
    ensure!(tries(&reads).await? == [200, 403, 200, 403], "{:?}", tries(&reads).await?);
    // What may not be had any more is not there, nor what was ordered of it.
    let left = node.request(Method::DELETE, member).send().await?;
    expect(&left, StatusCode::NO_CONTENT)?;
    ensure!(tries(&alice).await? == [404; 4], "{:?}", tries(&alice).await?);
    let listed: Value = read(alice.api(Method::GET, "deployments").send().await?).await?;
    ensure!(listed == json!([]), "{listed}");
    let refused = async || -> Result<Option<Value>> {
        node.server.app().services.audit.flush(AuditPhase::Goes).await?;
        let trail: Value = node.get("audit?action=warm_up.run").await?;
        Ok(trail["entries"].get(0).cloned())
    };
    let refused = until("the policy's refusal to be in the trail", refused).await?;
    ensure!(refused["who"] == "alice" && refused["target"] == "base shop/app", "{refused}");
    ensure!(refused.to_string().contains("may not order"), "{refused}");
    put_member(&node, member, "guest").await?;
    let export: Value = read(alice.api(Method::GET, "user/export").send().await?).await?;
    ensure!(export["audit"].to_string().contains("deployment.create"), "{export}");
    let policy: Value = node.get("warm-ups/base").await?;
    ensure!(policy["trouble"].is_null(), "{policy}");

    // Another alice has none of it, once the clocks of nodes cannot be taken for it.
    let app = node.server.app();
    let over = app.now().plus_millis(2_500);
    until("the clocks to go on", async || Ok((app.now() > over).then_some(()))).await?;
    expect(&node.request(Method::DELETE, "users/alice").send().await?, StatusCode::NO_CONTENT)?;
    let other = Person::new(&node, "alice").await?;
    put_member(&node, member, "guest").await?;
    ensure!(tries(&other).await? == [200, 403, 200, 403], "{:?}", tries(&other).await?);
    let export: Value = read(other.api(Method::GET, "user/export").send().await?).await?;
    ensure!(!export["audit"].to_string().contains("deployment.create"), "{export}");
    let policy: Value = node.get("warm-ups/base").await?;
    ensure!(policy["trouble"].is_string(), "{policy}");
    node.server.stop().await
}
