//! Logins at another issuer: one of our own that can be made to lie, and a packaged one.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::signer::{AUDIENCE, Issuer, base64};
use super::{PASSWORD, me};
use crate::node::{Node, free_tcp, problem, read};
use crate::v2::expect;
use crate::wait::{level_raised, until};

/// A browser: it keeps the cookie, and goes where it is sent.
pub(super) struct Browser<'a> {
    node: &'a Node,
    http: reqwest::Client,
    cookie: String,
}

impl<'a> Browser<'a> {
    pub(super) fn new(node: &'a Node) -> Result<Self> {
        // The issuer answers without TLS, the node with its own authority.
        let pem = std::fs::read(node.path().join("node/ca.pem"))?;
        let http = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&pem)?])
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Self { node, http, cookie: String::new() })
    }

    pub(super) async fn get(&mut self, url: &str) -> Result<Response> {
        let answer = self.http.get(url).header("cookie", &self.cookie).send().await?;
        if let Some(set) = answer.headers().get("set-cookie") {
            let set = set.to_str()?;
            for word in ["Secure", "HttpOnly", "SameSite=Lax", "__Host-"] {
                ensure!(set.contains(word), "{set}");
            }
            self.cookie = set.split(';').next().unwrap_or_default().to_owned();
        }
        Ok(answer)
    }

    /// Where the issuer sends the browser back to.
    pub(super) async fn visit_issuer(&mut self, query: &str) -> Result<String> {
        let begin = format!("{}/api/v1/auth/oidc/login{query}", self.node.url);
        let there = target(&self.get(&begin).await?)?;
        target(&self.get(&there).await?)
    }

    pub(super) async fn login(&mut self) -> Result<Response> {
        let back = self.visit_issuer("").await?;
        self.get(&back).await
    }
}

fn target(answer: &Response) -> Result<String> {
    ensure!(answer.status().is_redirection(), "{} from {}", answer.status(), answer.url());
    Ok(answer.headers()["location"].to_str()?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn people_log_in_at_another_issuer_with_the_groups_that_they_have_there() -> Result<()> {
    let issuer = Issuer::start().await?;
    let url = issuer.url();
    let node = Node::start_with(|config| {
        config.oidc.issuer = url;
        config.oidc.client_id = AUDIENCE.to_owned();
        config.oidc.admin_groups = vec!["wheel".to_owned()];
        config.oidc.groups = vec!["engineers=acme/dev".to_owned(), "x=acme/no-such".to_owned()];
    })
    .await?;
    level_raised(&node).await?;
    let organization = json!({ "name": "acme", "owner": "admin" });
    let _made: Value = node.call(Method::POST, "organizations", &organization).await?;
    let _made: Value =
        node.call(Method::POST, "organizations/acme/groups", &json!({ "name": "dev" })).await?;
    let visit = |subject: &str, name: &str, groups: &[&str]| -> Result<()> {
        let mut claims = issuer.claims(subject)?;
        claims["preferred_username"] = json!(name);
        claims["groups"] = json!(groups);
        issuer.0.visit.lock().claims = claims;
        Ok(())
    };
    visit("s-1", "Wang.Wu@example.com", &["engineers", "x"])?;
    let mut browser = Browser::new(&node)?;
    let session: Value = read(browser.login().await?).await?;
    let token = session["token"].as_str().context("a token")?.to_owned();
    let found: Value = read(me(&node, &token).await?).await?;
    ensure!(found["username"] == "wang.wu" && found["role"] == "user", "{found}");
    let account: Value = node.get("users/wang.wu").await?;
    ensure!(account["email"] == "zhangsan@example.com", "{account}");
    let groups = async || -> Result<Value> {
        let groups: Vec<Value> = node.get("organizations/acme/groups").await?;
        Ok(groups[0]["members"].clone())
    };
    ensure!(groups().await? == json!(["wang.wu"]), "{}", groups().await?);
    let members = async || node.get::<Vec<Value>>("organizations/acme/members").await;
    ensure!(members().await?.len() == 2, "{:?}", members().await?);
    let sessions: Vec<Value> = node.get("users/wang.wu/sessions").await?;
    ensure!(sessions[0]["means"] == format!("issuer:{}", issuer.url()), "{sessions:?}");
    // No password lets anybody into such an account.
    for guess in ["", "!", PASSWORD] {
        let login = json!({ "username": "wang.wu", "password": guess });
        let login = node.http.post(format!("{}/api/v1/auth/login", node.url)).json(&login);
        expect(&login.send().await?, StatusCode::UNAUTHORIZED)?;
    }
    // Groups go as they came, and so does the role; the account stays the same by its subject.
    visit("s-1", "renamed", &["wheel"])?;
    let session: Value = read(Browser::new(&node)?.login().await?).await?;
    let found: Value =
        read(me(&node, session["token"].as_str().context("a token")?).await?).await?;
    ensure!(found["username"] == "wang.wu" && found["role"] == "admin", "{found}");
    ensure!(groups().await? == json!([]), "{}", groups().await?);
    let left = members().await?;
    ensure!(left.len() == 1 && left[0]["grantee"] == "user:admin", "{left:?}");
    visit("s-1", "renamed", &[])?;
    read::<Value>(Browser::new(&node)?.login().await?).await?;
    let found: Value = read(me(&node, &token).await?).await?;
    ensure!(found["role"] == "user", "{found}");
    // An address that the issuer has not seen read is not noted.
    for (subject, name, seen) in [("s-3", "unseen", json!(false)), ("s-4", "texts", json!("false"))]
    {
        visit(subject, name, &[])?;
        issuer.0.visit.lock().claims["email_verified"] = seen;
        read::<Value>(Browser::new(&node)?.login().await?).await?;
        let account: Value = node.get(&format!("users/{name}")).await?;
        ensure!(account["email"].is_null(), "{account}");
    }
    // Whoever is called like an account that is here does not get it.
    visit("s-2", "admin", &["wheel"])?;
    let taken = Browser::new(&node)?.login().await?;
    ensure!(problem(taken, StatusCode::CONFLICT).await?.code == "account_taken");

    // What was begun in another browser, again, or with another state, nonce or code is refused.
    visit("s-1", "renamed", &[])?;
    let mut victim = Browser::new(&node)?;
    let back = victim.visit_issuer("").await?;
    expect(&Browser::new(&node)?.get(&back).await?, StatusCode::UNAUTHORIZED)?;
    let forged = format!("{}&state=guessed", back.split("&state=").next().unwrap_or_default());
    expect(&victim.get(&forged).await?, StatusCode::UNAUTHORIZED)?;
    let state = back.split("&state=").nth(1).context("a state")?;
    let stolen = Browser::new(&node)?.visit_issuer("").await?;
    let injected = format!("{}&state={state}", stolen.split("&state=").next().unwrap_or_default());
    expect(&victim.get(&injected).await?, StatusCode::UNAUTHORIZED)?;
    issuer.0.visit.lock().nonce = Some("of another login".to_owned());
    expect(&victim.login().await?, StatusCode::UNAUTHORIZED)?;
    issuer.0.visit.lock().nonce = None;
    issuer.0.visit.lock().claims["aud"] = json!("another client");
    expect(&victim.login().await?, StatusCode::UNAUTHORIZED)?;

    // A program gets its ticket on its own machine, and the session for what only it knows.
    visit("s-1", "renamed", &[])?;
    let verifier = "what only the program knows, and a thief of the ticket does not";
    let challenge = base64(Sha256::digest(verifier.as_bytes()));
    let mut browser = Browser::new(&node)?;
    let back = browser.visit_issuer(&format!("?port=4711&challenge={challenge}")).await?;
    let to_program = target(&browser.get(&back).await?)?;
    let ticket = to_program.strip_prefix("http://127.0.0.1:4711/?ticket=").context("a ticket")?;
    let redeem = |verifier: &str| {
        let request = json!({ "ticket": ticket, "verifier": verifier });
        node.http.post(format!("{}/api/v1/auth/oidc/redeem", node.url)).json(&request).send()
    };
    expect(&redeem("guessed").await?, StatusCode::UNAUTHORIZED)?;
    expect(&me(&node, ticket).await?, StatusCode::UNAUTHORIZED)?;
    let session: Value = read(redeem(verifier).await?).await?;
    expect(&me(&node, session["token"].as_str().context("a token")?).await?, StatusCode::OK)?;
    // It was spent with that.
    let again = problem(redeem(verifier).await?, StatusCode::UNAUTHORIZED).await?;
    ensure!(again.code == "oidc_failed", "{again:?}");
    node.server.stop().await
}

/// A packaged issuer, with keys and rules of its own; killed when it is dropped.
struct Packaged(std::process::Child);

impl Drop for Packaged {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packaged_issuer_lets_people_in() -> Result<()> {
    let port = free_tcp()?.port();
    let user = json!({ "sub": "s-9", "preferred_username": "zhao-liu", "groups": ["wheel"] });
    let child = std::process::Command::new("oidc-provider-mock")
        .args(["--port", &port.to_string(), "--require-nonce", "true"])
        .args(["--user-claims", &user.to_string()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .context("oidc-provider-mock is not here; ./dev test installs it")?;
    let _issuer = Packaged(child);
    let url = format!("http://127.0.0.1:{port}");
    let described = format!("{url}/.well-known/openid-configuration");
    let plain = reqwest::Client::builder().no_proxy().build()?;
    until("the issuer", async || {
        let answer = plain.get(&described).send().await;
        Ok(answer.is_ok_and(|answer| answer.status().is_success()).then_some(()))
    })
    .await?;
    let node = Node::start_with(|config| {
        config.oidc.issuer = url;
        config.oidc.client_id = "shoal".to_owned();
        config.oidc.client_secret = "a secret of both".to_owned();
        config.oidc.scopes = vec!["profile".to_owned()];
        config.oidc.admin_groups = vec!["wheel".to_owned()];
    })
    .await?;
    level_raised(&node).await?;
    let mut browser = Browser::new(&node)?;
    let begin = format!("{}/api/v1/auth/oidc/login", node.url);
    let there = target(&browser.get(&begin).await?)?;
    // The form of the issuer's page.
    let answer = browser
        .http
        .post(&there)
        .header("content-type", "application/x-www-form-urlencoded")
        .body("sub=s-9");
    let back = target(&answer.send().await?)?;
    let session: Value = read(browser.get(&back).await?).await?;
    let found: Value =
        read(me(&node, session["token"].as_str().context("a token")?).await?).await?;
    ensure!(found["username"] == "zhao-liu" && found["role"] == "admin", "{found}");
    // The code was taken; it is not good a second time.
    expect(&browser.get(&back).await?, StatusCode::UNAUTHORIZED)?;
    node.server.stop().await
}
