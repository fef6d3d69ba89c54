//! Attempts to get what is not one's own, with good knowledge of how it works: tokens that are
//! nearly right, names that mean something else on the way, tickets that are somebody else's.
//!
//! Others stand where their subject is: tokens of another repository and changed ones in `rights`,
//! other issuers' in `issuers`, codes in `logins`, blobs by their digest in `rights`, guesses in
//! `lockout`, raw nonsense in `hostile`, forged joins in `members`, strangers at the ports of Raft
//! and peers in the end-to-end tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shoal_content::{Ticket, Timestamp};
use shoal_metadata::KeyPurpose;
use shoal_p2p::identity::KeyPair;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::disks::{create_image, make_disk, upload};
use super::members::{Agent, jwt, signed};
use super::node::{DEADLINE, Node, free_tcp, problem};
use super::swarm::{granted, peer, recipe_of};
use super::v2::{expect, push_image, sha256};
use super::wait::level_raised;

const PASSWORD: &str = "correct-horse-7";

async fn make_user(node: &Node, name: &str) -> Result<()> {
    let request = json!({ "username": name, "password": PASSWORD });
    let _user: Value = node.call(Method::POST, "users", &request).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_nearly_right_is_wrong() -> Result<()> {
    let node = Node::start().await?;
    level_raised(&node).await?;
    push_image(&node, "vault/app", "v1", b"layer").await?;
    let agent = Agent::enrol(&node, "host-1").await?;
    let app = node.server.app();
    let cluster = app.keys.cluster.to_string();
    let now = app.now().as_millis() / 1000;
    let ours = json!({ "alg": "EdDSA", "typ": "JWT" });
    let good = json!({
        "iss": cluster, "sub": "admin", "aud": cluster, "iat": now, "exp": now + 60,
    });
    let try_token = async |token: &str| -> Result<[StatusCode; 2]> {
        let api = node.http.get(format!("{}/api/v1/users", node.url)).bearer_auth(token);
        let v2 = node.anonymous_v2(Method::GET, "vault/app/manifests/v1").bearer_auth(token);
        Ok([api.send().await?.status(), v2.send().await?.status()])
    };
    // With the cluster's own key all of it is right, so that each difference below is what counts.
    let signer = |purpose| app.keys.ring.signer(purpose, app.now());
    let (tokens, tickets) = (signer(KeyPurpose::Token), signer(KeyPurpose::Ticket));
    let mine = &tokens.pair;
    ensure!(try_token(&jwt(mine, &ours, &good)).await? == [StatusCode::OK; 2]);
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let with_kid = |kid: &str| json!({ "alg": "EdDSA", "typ": "JWT", "kid": kid });
    let other = KeyPair::generate()?;
    let agents = json!({ "alg": "EdDSA", "typ": "shoal-agent+jwt" });
    let nodes = json!({ "alg": "EdDSA", "typ": "shoal-node+jwt" });
    let peer = other.peer_id().to_string();
    for (what, token) in [
        ("expired", jwt(mine, &ours, &with("exp", json!(now - 3600)))),
        ("from the future", jwt(mine, &ours, &with("iat", json!(now + 3600)))),
        ("for another cluster", jwt(mine, &ours, &with("aud", json!("cluster-other")))),
        (
            "for the second step",
            jwt(mine, &ours, &with("aud", json!(format!("{cluster}/second-factor")))),
        ),
        ("of a session that is over", jwt(mine, &ours, &with("sid", json!("0123456789abcdef")))),
        (
            "of a personal token that is not",
            jwt(mine, &ours, &with("pat", json!("0123456789abcdef"))),
        ),
        ("of nobody's", jwt(mine, &ours, &with("sub", json!("nobody-here")))),
        ("for nobody", jwt(mine, &ours, &with("sub", json!("")))),
        ("of another key", jwt(&other, &ours, &good)),
        ("of the key of tickets", jwt(&tickets.pair, &ours, &good)),
        ("of an agent for a person", jwt(&agent.key, &ours, &good)),
        ("of nobody as an agent", jwt(&other, &agents, &with("iss", json!(peer)))),
        ("of nobody as a node", jwt(&other, &nodes, &with("iss", json!(peer)))),
        ("of another kind", jwt(mine, &json!({ "alg": "EdDSA", "typ": "at+jwt" }), &good)),
        ("of a key that is not", jwt(mine, &with_kid("7"), &good)),
        ("of a key without a number", jwt(mine, &with_kid("../0"), &good)),
        ("of no kind", jwt(mine, &json!({ "alg": "EdDSA" }), &good)),
        (
            "of an agent as a node",
            jwt(&agent.key, &nodes, &with("iss", json!(agent.key.peer_id().to_string()))),
        ),
    ] {
        let found = try_token(&token).await?;
        ensure!(found == [StatusCode::UNAUTHORIZED; 2], "{what}: {found:?}");
    }
    // What an agent signs for itself is good for minutes, and for an agent's work.
    let long = signed("shoal-agent+jwt", &agent.key, &agent.enrolment.cluster, now, now + 3600);
    ensure!(try_token(&long).await? == [StatusCode::UNAUTHORIZED; 2]);
    let own = agent.token()?;
    ensure!(try_token(&own).await?[0] == StatusCode::FORBIDDEN);
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_is_not_to_be_had_by_a_token_that_is_nearly_right() -> Result<()> {
    let node = Node::start().await?;
    let (agents, nodes) =
        (node.join_token("agent", Some(1)).await?, node.join_token("node", Some(1)).await?);
    let key = KeyPair::generate()?;
    let join = async |token: &str| {
        let request = json!({
            "token": token, "name": "intruder", "csr_pem": key.csr_pem()?, "zone": "",
            "raft_address": "127.0.0.1:1", "peer_address": "127.0.0.1:2",
            "discovery_address": "127.0.0.1:3", "api_url": "https://127.0.0.1:4",
            "command_version": shoal_metadata::COMMAND_VERSION,
        });
        let url = format!("{}/api/v1/cluster/join", node.url);
        anyhow::Ok(node.http.post(url).json(&request).send().await?)
    };
    let cut = &nodes[..nodes.len() - 1];
    let mut swapped: Vec<&str> = nodes.split('.').collect();
    let agents_parts: Vec<&str> = agents.split('.').collect();
    let last = swapped.len() - 1;
    swapped[last] = agents_parts[agents_parts.len() - 1];
    let swapped = swapped.join(".");
    for bad in
        [agents.as_str(), cut, &format!("{nodes}0"), &swapped, "", "shoal-join-v1...", node.token()]
    {
        problem(join(bad).await?, StatusCode::FORBIDDEN).await.with_context(|| bad.to_owned())?;
    }
    let revoked: Vec<Value> = node.get("join-tokens").await?;
    for token in &revoked {
        let path = format!("join-tokens/{}", token["id"].as_str().context("an id")?);
        expect(&node.request(Method::DELETE, &path).send().await?, StatusCode::NO_CONTENT)?;
    }
    problem(join(&nodes).await?, StatusCode::FORBIDDEN).await?;
    let status: Value = node.get("cluster").await?;
    ensure!(status["nodes"].as_array().is_some_and(|all| all.len() == 1), "{status}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_elsewhere_changes_nothing_by_the_password_that_a_browser_keeps() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    let manifest = "/v2/shop/app/manifests/v1";
    let sent = |method: Method, path: &str, site: &str| {
        let request = node.http.request(method, format!("{}{path}", node.url));
        request.header("sec-fetch-site", site)
    };
    let by_password = async |method: Method, path: &str, site: &str| {
        let request = sent(method, path, site).basic_auth("admin", Some(node.password()));
        anyhow::Ok(request.send().await?.status())
    };
    for site in ["cross-site", "same-site"] {
        for (method, path) in [
            (Method::POST, "/api/v1/auth/logout"),
            (Method::DELETE, "/api/v1/users/nobody"),
            (Method::POST, "/v2/shop/app/blobs/uploads/"),
            (Method::DELETE, manifest),
        ] {
            let status = by_password(method, path, site).await?;
            ensure!(status == StatusCode::FORBIDDEN, "{path} from {site}: {status}");
        }
        // Nothing of what is read can be seen by such a page; and no browser adds a token.
        for path in ["/api/v1/projects", manifest] {
            ensure!(by_password(Method::GET, path, site).await? == StatusCode::OK, "{path}");
        }
        let bearer = sent(Method::DELETE, "/api/v1/users/nobody", site).bearer_auth(node.token());
        expect(&bearer.send().await?, StatusCode::NOT_FOUND)?;
    }
    for site in ["same-origin", "none"] {
        let status = by_password(Method::POST, "/v2/shop/app/blobs/uploads/", site).await?;
        ensure!(status == StatusCode::ACCEPTED, "{site}: {status}");
    }
    node.server.stop().await
}

/// Sends a request line as it stands: a client's library would tidy it up.
async fn raw(address: SocketAddr, path: &str, token: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut answer)).await??;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).context("a status")?.parse()?;
    Ok((status, answer))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_of_writing_a_name_leads_out_of_what_is_ones_own() -> Result<()> {
    let plain = free_tcp()?;
    let node = Node::start_with(|config| config.http.plain_listen = Some(plain)).await?;
    push_image(&node, "vault/app", "v1", b"the secret layer").await?;
    push_image(&node, "open/app", "v1", b"an open layer").await?;
    make_user(&node, "eve").await?;
    let guest = json!({ "role": "guest" });
    let _member: Value = node.call(Method::PUT, "projects/open/members/user:eve", &guest).await?;
    let login = json!({ "username": "eve", "password": PASSWORD });
    let session: Value = node.call(Method::POST, "auth/login", &login).await?;
    let token = session["token"].as_str().context("a token")?;
    let (status, answer) = raw(plain, "/v2/open/app/manifests/v1", token).await?;
    ensure!(status == 200, "what is her own is there: {answer}");

    let secret = sha256(b"the secret layer");
    let mut names: Vec<String> = [
        "open/../vault/app",
        "open/%2e%2e/vault/app",
        "open/%2E%2E/vault/app",
        "open%2f..%2fvault/app",
        "open/app/../../vault/app",
        "open/./../vault/app",
        "open//../vault/app",
        "./vault/app",
        "/vault/app",
        "//vault/app",
        "vault/app/",
        "vault//app",
        "vault/./app",
        "VAULT/app",
        "Vault/App",
        "vault%2fapp",
        "vault%2Fapp",
        "vault\\app",
        "open\\..\\vault/app",
        "vault/app%00",
        "vault/app%20",
        "vault/app;x",
        "vault/app?x=/../open/app",
        "vault/app%3f",
        "vault/app%23",
        "vault/app/manifests/v1/../../../open/app",
        "open/app/manifests/../../vault/app",
        "ｖａｕｌｔ/app",
        "%c0%ae%c0%ae/vault/app",
        "vault/%61pp",
        "%76ault/app",
    ]
    .map(str::to_owned)
    .into();
    names.push(format!("{}vault/app", "../".repeat(2000)));
    for name in &names {
        for rest in ["manifests/v1".to_owned(), format!("blobs/{secret}"), "tags/list".to_owned()] {
            let path = format!("/v2/{name}/{rest}");
            let (status, answer) = raw(plain, &path, token).await?;
            let shown: String = path.chars().take(120).collect();
            ensure!((400..500).contains(&status), "{shown}: {answer}");
            ensure!(!answer.contains("the secret layer") && !answer.contains("\"v1\""), "{shown}");
        }
        for path in [
            format!("/api/images/{name}/v1"),
            format!("/api/v1/resolve?reference={name}:v1"),
            format!("/api/v1/projects/{name}"),
            format!("/api/v1/backup/objects/{name}"),
        ] {
            let (status, answer) = raw(plain, &path, token).await?;
            let shown: String = path.chars().take(120).collect();
            ensure!((400..500).contains(&status), "{shown}: {answer}");
        }
    }
    // A mount's source is a name, too.
    for from in ["vault/app", "../vault/app", "open/../vault/app", "VAULT/app", "vault%2Fapp", ""] {
        let path = format!("eve/mine/blobs/uploads/?mount={secret}&from={from}");
        let answer = node.anonymous_v2(Method::POST, &path).bearer_auth(token).send().await?;
        ensure!(answer.status() != StatusCode::CREATED, "{from} gave the blob away");
        let got = format!("eve/mine/blobs/{secret}");
        let got = node.anonymous_v2(Method::GET, &got).bearer_auth(token).send().await?;
        expect(&got, StatusCode::NOT_FOUND)?;
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_gives_its_peer_its_recipe_and_nobody_anything_else() -> Result<()> {
    let node = Node::start().await?;
    let mut images = Vec::new();
    for name in ["mine", "theirs"] {
        let file = make_disk(node.path(), name, 2)?;
        let image = create_image(&node, &format!("zedge/{name}")).await?;
        upload(&node, image, &file, "1").await?;
        images.push(json!({ "reference": format!("zedge/{name}:1") }));
    }
    let (agent, other) =
        (Agent::enrol(&node, "host-1").await?, Agent::enrol(&node, "host-2").await?);
    let me = agent.key.peer_id();
    // What a mirror asks for by a digest it gets from the repository that it names, and no other.
    push_image(&node, "vault/app", "v1", b"the secret layer").await?;
    push_image(&node, "open/app", "v1", b"an open layer").await?;
    for (layer, there) in [(&b"an open layer"[..], true), (b"the secret layer", false)] {
        let digest = sha256(layer);
        let wanted = json!({ "reference": "open/app:v1", "blobs": [digest] });
        let answer = agent.request(&node, Method::POST, "resolve")?.json(&wanted).send().await?;
        let answer = answer.text().await?;
        let found: Value = serde_json::from_str(&answer)?;
        let tickets = found["blobs"].as_array().map_or(0, Vec::len);
        ensure!((tickets == 1) == there, "{digest}: {answer}");
    }
    let (mine, own) = granted(&node, &agent, &images[0]).await?;
    let (theirs, replayed) = granted(&node, &other, &images[1]).await?;
    ensure!(mine.recipe != theirs.recipe);
    let soon = Timestamp::from_millis(node.server.app().now().as_millis() + 60_000);
    let past = Timestamp::from_millis(node.server.app().now().as_millis() - 60_000);
    let app = node.server.app();
    let signer = |purpose| app.keys.ring.signer(purpose, app.now());
    let (tokens, tickets) = (signer(KeyPurpose::Token), signer(KeyPurpose::Ticket));
    let by = |key: &KeyPair, recipe, expires| {
        Ticket::issue(recipe, me, expires, |message| key.sign(message))
    };
    let mut changed = own.to_bytes();
    changed[16..48].copy_from_slice(theirs.recipe.as_bytes());
    let attempts = [
        ("of another agent", theirs.recipe, replayed),
        ("of another recipe", theirs.recipe, own.clone()),
        ("with the recipe changed", theirs.recipe, Ticket::from_bytes(&changed)?),
        ("signed by its bearer", theirs.recipe, by(&agent.key, theirs.recipe, soon)),
        ("signed by the key of tokens", theirs.recipe, by(&tokens.pair, theirs.recipe, soon)),
        ("too old", mine.recipe, by(&tickets.pair, mine.recipe, past)),
    ];
    let swarm = peer(agent, Arc::default()).await?;
    for (what, recipe, ticket) in attempts {
        let refused = timeout(DEADLINE, swarm.recipe(recipe, ticket)).await?;
        ensure!(refused.is_err(), "a ticket {what} was taken");
    }
    // It was the tickets, not the way there.
    recipe_of(&swarm, mine.recipe, &own).await?;
    swarm.shutdown().await;
    node.server.stop().await
}

/// Which of the two is answered sooner is a matter of chance, as long as both cost the same: here it is
/// counted and no time is compared with a limit, so that a busy machine does not matter.
#[tokio::test(flavor = "multi_thread")]
async fn how_long_a_wrong_password_takes_does_not_tell_who_is_there() -> Result<()> {
    const PAIRS: usize = 60;
    /// Of a fair coin so few or many heads come once in ten million million times.
    const ODD: usize = 2;
    let node = Node::start_with(|config| config.lockout.account_failures = 1000).await?;
    make_user(&node, "alice").await?;
    let took = async |name: &str, guess: usize| -> Result<Duration> {
        let request = json!({ "username": name, "password": format!("guessed-it-{guess}") });
        let url = format!("{}/api/v1/auth/login", node.url);
        let began = Instant::now();
        let answer = node.http.post(url).json(&request).send().await?;
        let took = began.elapsed();
        expect(&answer, StatusCode::UNAUTHORIZED)?;
        Ok(took)
    };
    let mut sooner = 0;
    for pair in 0..PAIRS {
        // Who is first alternates; a name of as many letters each time.
        let nobody = format!("n{pair:04}");
        let (known, unknown) = if pair % 2 == 0 {
            (took("alice", pair).await?, took(&nobody, pair).await?)
        } else {
            let unknown = took(&nobody, pair).await?;
            (took("alice", pair).await?, unknown)
        };
        sooner += usize::from(unknown < known);
    }
    let fair = ODD + 1..=PAIRS - ODD - 1;
    ensure!(fair.contains(&sooner), "of {PAIRS} names that nobody has {sooner} were sooner");
    node.server.stop().await
}
