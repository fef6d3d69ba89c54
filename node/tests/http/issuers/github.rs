//! Logins at GitHub, which is played here from its documentation ("Authorizing OAuth apps", "REST API
//! endpoints for users", "for teams") and can be made to lie.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode as Status};
use axum::response::{IntoResponse, Redirect, Response as Answer};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use parking_lot::Mutex;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::login::Browser;
use super::me;
use super::signer::base64;
use crate::node::{Node, problem, read};
use crate::v2::expect;
use crate::wait::level_raised;

const CLIENT: &str = "Iv1.of-shoal";
const SECRET: &str = "a secret of both";
type Fields = BTreeMap<String, String>;

#[derive(Debug, Default)]
struct Played {
    account: Value,
    organizations: Vec<String>,
    teams: Vec<(String, String)>,
    /// Codes that were given, each with its challenge.
    codes: BTreeMap<String, String>,
    /// What was asked for last.
    scope: String,
    /// Whether the account keeps its organizations to itself.
    closed: bool,
    /// What is said of its addresses; `None` is refused.
    emails: Option<Value>,
}

#[derive(Debug, Clone, Default)]
struct GitHub(Arc<Mutex<Played>>);

impl GitHub {
    async fn start() -> Result<(Self, String)> {
        let played = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = Router::new()
            .route("/login/oauth/authorize", get(authorize))
            .route("/login/oauth/access_token", post(access_token))
            .route("/api/v3/user", get(user))
            .route("/api/v3/user/emails", get(emails))
            .route("/api/v3/user/orgs", get(organizations))
            .route("/api/v3/user/teams", get(teams))
            .with_state(played.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok((played, url))
    }

    fn is(&self, id: u64, login: &str, organizations: &[&str], teams: &[(&str, &str)]) {
        let mut played = self.0.lock();
        played.account = json!({ "id": id, "login": login, "name": "Somebody" });
        played.organizations = organizations.iter().map(|&name| name.to_owned()).collect();
        played.teams = teams.iter().map(|(of, team)| ((*of).into(), (*team).into())).collect();
    }
}

async fn authorize(State(GitHub(played)): State<GitHub>, Query(asked): Query<Fields>) -> Answer {
    let given = |name: &str| asked.get(name).cloned().unwrap_or_default();
    if given("client_id") != CLIENT || given("code_challenge_method") != "S256" {
        return Status::NOT_FOUND.into_response();
    }
    let code = format!("code-{}", rand::random::<u64>());
    let mut played = played.lock();
    played.scope = given("scope");
    played.codes.insert(code.clone(), given("code_challenge"));
    let back = format!("{}?code={code}&state={}", given("redirect_uri"), given("state"));
    Redirect::to(&back).into_response()
}

async fn access_token(
    State(GitHub(played)): State<GitHub>,
    headers: HeaderMap,
    Form(asked): Form<Fields>,
) -> Answer {
    let given = |name: &str| asked.get(name).map(String::as_str).unwrap_or_default();
    if headers.get("accept").is_none_or(|accept| accept != "application/json") {
        return "access_token=gho_form&scope=".into_response();
    }
    if given("client_id") != CLIENT || given("client_secret") != SECRET {
        return Json(json!({ "error": "incorrect_client_credentials" })).into_response();
    }
    let challenge = base64(Sha256::digest(given("code_verifier")));
    if played.lock().codes.remove(given("code")).is_none_or(|asked| asked != challenge) {
        return Json(json!({ "error": "bad_verification_code" })).into_response();
    }
    Json(json!({ "access_token": "gho_1", "token_type": "bearer", "scope": "" })).into_response()
}

/// GitHub refuses programs that do not say who they are.
fn is_let_in(headers: &HeaderMap) -> bool {
    headers.get("authorization").is_some_and(|given| given == "Bearer gho_1")
        && headers.contains_key("user-agent")
}

async fn user(State(GitHub(played)): State<GitHub>, headers: HeaderMap) -> Answer {
    if !is_let_in(&headers) {
        return Status::UNAUTHORIZED.into_response();
    }
    Json(played.lock().account.clone()).into_response()
}

async fn emails(State(GitHub(played)): State<GitHub>, headers: HeaderMap) -> Answer {
    let played = played.lock();
    let allowed = played.scope.split(' ').any(|scope| scope == "user:email");
    match &played.emails {
        Some(emails) if is_let_in(&headers) && allowed => Json(emails.clone()).into_response(),
        _ => Status::NOT_FOUND.into_response(),
    }
}

fn page(all: &[Value], asked: &Fields) -> Answer {
    let number = |name: &str, usual: usize| {
        asked.get(name).and_then(|text| text.parse().ok()).unwrap_or(usual)
    };
    let (length, page) = (number("per_page", 30).min(100), number("page", 1));
    let some: Vec<&Value> = all.iter().skip(length * (page - 1)).take(length).collect();
    Json(json!(some)).into_response()
}

async fn organizations(
    State(GitHub(played)): State<GitHub>,
    headers: HeaderMap,
    Query(asked): Query<Fields>,
) -> Answer {
    let played = played.lock();
    if !is_let_in(&headers) || played.closed {
        return Status::FORBIDDEN.into_response();
    }
    let all: Vec<Value> =
        played.organizations.iter().map(|name| json!({ "login": name, "id": 1 })).collect();
    page(&all, &asked)
}

async fn teams(
    State(GitHub(played)): State<GitHub>,
    headers: HeaderMap,
    Query(asked): Query<Fields>,
) -> Answer {
    if !is_let_in(&headers) {
        return Status::FORBIDDEN.into_response();
    }
    let shown = |(of, slug): &(String, String)| json!({ "slug": slug, "name": slug, "organization": { "login": of } });
    let all: Vec<Value> = played.lock().teams.iter().map(shown).collect();
    page(&all, &asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn people_log_in_at_github_with_its_organizations_and_teams() -> Result<()> {
    let (github, url) = GitHub::start().await?;
    let node = Node::start_with(|config| {
        config.oidc.protocol = shoal_node::config::Protocol::Github;
        config.oidc.issuer = url.clone();
        config.oidc.client_id = CLIENT.to_owned();
        config.oidc.client_secret = SECRET.to_owned();
        config.oidc.admin_groups = vec!["acme-owners".to_owned()];
        config.oidc.required_groups = ["acme", "acme-owners"].map(str::to_owned).to_vec();
        config.oidc.groups = vec!["acme/dev=acme/dev".to_owned()];
    })
    .await?;
    level_raised(&node).await?;
    let organization = json!({ "name": "acme", "owner": "admin" });
    let _made: Value = node.call(Method::POST, "organizations", &organization).await?;
    let _made: Value =
        node.call(Method::POST, "organizations/acme/groups", &json!({ "name": "dev" })).await?;
    let members = async || -> Result<Value> {
        let groups: Vec<Value> = node.get("organizations/acme/groups").await?;
        Ok(groups[0]["members"].clone())
    };
    let whoami = async |session: &Value| -> Result<Value> {
        read(me(&node, session["token"].as_str().context("a token")?).await?).await
    };

    // The team that counts is on the third page.
    let many: Vec<String> = (0..120).map(|number| format!("team-{number}")).collect();
    let mut teams: Vec<(&str, &str)> = many.iter().map(|team| ("other", team.as_str())).collect();
    teams.push(("acme", "dev"));
    github.is(583_231, "Octo-Cat", &["acme"], &teams);
    let session: Value = read(Browser::new(&node)?.login().await?).await?;
    let found = whoami(&session).await?;
    ensure!(found["username"] == "octo-cat" && found["role"] == "user", "{found}");
    ensure!(members().await? == json!(["octo-cat"]), "{}", members().await?);
    let scope = github.0.lock().scope.clone();
    ensure!(scope == "read:org user:email", "{scope}");

    // The number stays when the name changes, and another organization's team is another team.
    github.is(583_231, "renamed", &["acme-owners"], &[("evil", "dev")]);
    let session: Value = read(Browser::new(&node)?.login().await?).await?;
    let found = whoami(&session).await?;
    ensure!(found["username"] == "octo-cat" && found["role"] == "admin", "{found}");
    ensure!(members().await? == json!([]), "{}", members().await?);
    // Whoever has got the old name since is somebody else.
    github.is(7, "octo-cat", &["acme-owners"], &[]);
    let taken = Browser::new(&node)?.login().await?;
    ensure!(problem(taken, StatusCode::CONFLICT).await?.code == "account_taken");

    // A code is good once, in the browser that asked for it.
    github.is(583_231, "renamed", &[], &[]);
    let mut victim = Browser::new(&node)?;
    let back = victim.visit_issuer("").await?;
    expect(&Browser::new(&node)?.get(&back).await?, StatusCode::UNAUTHORIZED)?;
    let state = back.split("&state=").nth(1).context("a state")?;
    let stolen = Browser::new(&node)?.visit_issuer("").await?;
    let injected = format!("{}&state={state}", stolen.split("&state=").next().unwrap_or_default());
    expect(&victim.get(&injected).await?, StatusCode::UNAUTHORIZED)?;
    // Who is in no organization that is let in has no account here either.
    github.is(8, "stranger", &["others"], &[("others", "acme")]);
    let refused = Browser::new(&node)?.login().await?;
    ensure!(problem(refused, StatusCode::UNAUTHORIZED).await?.code == "oidc_failed");
    let users: Vec<Value> = node.get("users").await?;
    ensure!(users.iter().all(|user| user["username"] != "stranger"), "{users:?}");
    // Whoever keeps its organizations to itself is not let in with fewer groups than it has.
    github.0.lock().closed = true;
    let away = Browser::new(&node)?.login().await?;
    ensure!(problem(away, StatusCode::BAD_GATEWAY).await?.code == "issuer_away");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_gets_the_first_address_that_github_has_seen_read() -> Result<()> {
    let (github, url) = GitHub::start().await?;
    let node = Node::start_with(|config| {
        config.oidc.protocol = shoal_node::config::Protocol::Github;
        config.oidc.issuer = url.clone();
        config.oidc.api_url = format!("{url}/api/v3/");
        config.oidc.client_id = CLIENT.to_owned();
        config.oidc.client_secret = SECRET.to_owned();
    })
    .await?;
    level_raised(&node).await?;
    github.0.lock().closed = true;
    github.is(1, "mona", &["acme"], &[]);
    let email = async |id: u64, login: &str, emails: Option<Value>| -> Result<Value> {
        github.is(id, login, &["acme"], &[]);
        github.0.lock().emails = emails;
        let _session: Value = read(Browser::new(&node)?.login().await?).await?;
        let user: Value = node.get(&format!("users/{login}")).await?;
        Ok(user["email"].clone())
    };
    let address = |email: &str, primary: bool, verified: bool| json!({ "email": email, "primary": primary, "verified": verified, "visibility": null });
    let all = json!([
        address("typed@example.com", false, true),
        address("mona@example.com", true, true),
        address("unread@example.com", false, false),
    ]);
    ensure!(email(1, "mona", Some(all)).await? == "mona@example.com");
    ensure!(github.0.lock().scope == "user:email", "{}", github.0.lock().scope);
    // Who has none that holds, or gives none, is let in all the same.
    let unread = json!([address("lisa@example.com", true, false)]);
    ensure!(email(2, "lisa", Some(unread)).await?.is_null());
    ensure!(email(3, "nell", None).await?.is_null());
    ensure!(email(4, "nils", Some(json!({ "odd": 1 }))).await?.is_null());
    let odd = json!([address("no address", true, true)]);
    ensure!(email(5, "nora", Some(odd)).await?.is_null());
    // A later login leaves what is noted.
    let other = json!([address("other@example.com", true, true)]);
    ensure!(email(1, "mona", Some(other)).await? == "mona@example.com");
    // What is no answer of GitHub's lets nobody in.
    for odd in [json!({ "login": "mona" }), json!("mona"), json!({ "id": "1", "login": "mona" })] {
        github.0.lock().account = odd;
        let refused = Browser::new(&node)?.login().await?;
        ensure!(problem(refused, StatusCode::BAD_GATEWAY).await?.code == "issuer_away");
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_account_is_made_github_is_asked_for_nothing_but_who_it_is() -> Result<()> {
    let (github, url) = GitHub::start().await?;
    let node = Node::start_with(|config| {
        config.oidc.protocol = shoal_node::config::Protocol::Github;
        config.oidc.issuer = url.clone();
        config.oidc.client_id = CLIENT.to_owned();
        config.oidc.client_secret = SECRET.to_owned();
        config.oidc.create_accounts = false;
    })
    .await?;
    level_raised(&node).await?;
    github.is(1, "mona", &["acme"], &[]);
    let unknown = problem(Browser::new(&node)?.login().await?, StatusCode::UNAUTHORIZED).await?;
    ensure!(unknown.code == "identity_unknown", "{unknown:?}");
    ensure!(github.0.lock().scope.is_empty(), "{}", github.0.lock().scope);
    node.server.stop().await
}
