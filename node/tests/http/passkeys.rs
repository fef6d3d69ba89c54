//! Passkeys of people, with an authenticator and a browser that are made here: what they say can be
//! wrong in every place.

use anyhow::{Context, Result, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shoal_node::config::Config;

use super::document::contract::answered;
use super::logins::{code, enable};
use super::node::{Node, problem};
use super::v2::expect;
use super::wait::{level_raised, until};

const PASSWORD: &str = "correct-horse-7";
/// The console, which is no node.
const PAGE: &str = "https://localhost:8443";
const ELSEWHERE: &str = "https://localhost.example:8443";

// What stands in an authenticator's data (WebAuthn, section 6.1).
const PRESENT: u8 = 0x01;
const VERIFIED: u8 = 0x04;
const ATTESTED: u8 = 0x40;

fn text(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// With one passkey.
pub struct Authenticator {
    key: EcdsaKeyPair,
    id: Vec<u8>,
    handle: Vec<u8>,
    counter: u32,
    flags: u8,
    domain: String,
    origin: String,
    framed: bool,
}

impl Authenticator {
    /// For whoever the options are for, and on our page.
    fn new(options: &Value) -> Result<Self> {
        let handle = options["user"]["id"].as_str().context("a user")?;
        Ok(Self {
            key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?,
            id: rand::random::<[u8; 16]>().to_vec(),
            handle: URL_SAFE_NO_PAD.decode(handle)?,
            counter: 0,
            flags: PRESENT | VERIFIED,
            domain: options["rp"]["id"].as_str().context("a domain")?.to_owned(),
            origin: PAGE.to_owned(),
            framed: false,
        })
    }

    fn client(&self, kind: &str, options: &Value) -> Vec<u8> {
        let (challenge, origin) = (&options["challenge"], &self.origin);
        json!({ "type": kind, "challenge": challenge, "origin": origin, "crossOrigin": self.framed })
            .to_string()
            .into_bytes()
    }

    fn data(&self, flags: u8) -> Vec<u8> {
        let mut data = Sha256::digest(self.domain.as_bytes()).to_vec();
        data.push(flags);
        data.extend(self.counter.to_be_bytes());
        data
    }

    /// What `navigator.credentials.create` gives.
    fn made(&self, options: &Value) -> Value {
        let point: &[u8] = self.key.public_key().as_ref();
        let mut data = self.data(self.flags | ATTESTED);
        data.extend([0; 16]);
        data.extend((self.id.len() as u16).to_be_bytes());
        data.extend(&self.id);
        // A map of five: the kind is EC2, the algorithm ES256, the curve P-256, x and y (RFC 9053).
        data.extend([0xa5, 0x01, 0x02, 0x03, 0x26, 0x20, 0x01, 0x21, 0x58, 0x20]);
        data.extend(&point[1..33]);
        data.extend([0x22, 0x58, 0x20]);
        data.extend(&point[33..65]);
        let mut object = vec![0xa3];
        object.extend(b"\x63fmt\x64none\x67attStmt\xa0\x68authData\x59");
        object.extend((data.len() as u16).to_be_bytes());
        object.extend(data);
        let client = self.client("webauthn.create", options);
        json!({
            "id": text(&self.id),
            "rawId": text(&self.id),
            "type": "public-key",
            "clientExtensionResults": { "credProps": { "rk": true } },
            "response": {
                "attestationObject": text(object),
                "clientDataJSON": text(client),
                "transports": ["internal"],
            },
        })
    }

    /// What `navigator.credentials.get` gives.
    fn answer(&self, options: &Value) -> Result<Value> {
        let (data, client) = (self.data(self.flags), self.client("webauthn.get", options));
        let hash = Sha256::digest(&client);
        let signed = [&data[..], &hash[..]].concat();
        let signature = self.key.sign(&SystemRandom::new(), &signed)?;
        Ok(json!({
            "id": text(&self.id),
            "rawId": text(&self.id),
            "type": "public-key",
            "clientExtensionResults": {},
            "response": {
                "authenticatorData": text(data),
                "clientDataJSON": text(client),
                "signature": text(signature),
                "userHandle": text(&self.handle),
            },
        }))
    }
}

/// Reached by a name, from a console at another port.
pub fn named(config: &mut Config) {
    config.http.url = Some(format!("https://localhost:{}", config.http.listen.port()));
    config.cors.allowed_origins = vec![PAGE.to_owned()];
}

async fn send(
    node: &Node,
    method: Method,
    path: &str,
    session: Option<&str>,
    body: &Value,
) -> Result<(StatusCode, Value)> {
    let path = format!("/api/v1/{path}");
    let request = node.http.request(method.clone(), format!("{}{path}", node.url)).json(body);
    let request = match session {
        Some(session) => request.bearer_auth(session),
        None => request,
    };
    let answer = request.send().await?;
    let (status, body) = answered(method.as_str(), &path, Some(body), answer).await?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? };
    Ok((status, body))
}

async fn post(node: &Node, path: &str, session: Option<&str>, body: &Value) -> Result<Value> {
    let (status, answer) = send(node, Method::POST, path, session, body).await?;
    ensure!(status.is_success(), "{path}: {status} {answer}");
    Ok(answer)
}

/// An answer that has to be a refusal, for that reason.
fn refused((status, answer): (StatusCode, Value), code: &str, wanted: StatusCode) -> Result<()> {
    ensure!(status == wanted && answer["code"] == code, "{status} {answer}, not {code}");
    Ok(())
}

/// Makes somebody, and gives the token of a session.
async fn person(node: &Node, name: &str) -> Result<String> {
    let request = json!({ "username": name, "password": PASSWORD });
    let _user: Value = node.call(Method::POST, "users", &request).await?;
    token(&post(node, "auth/login", None, &request).await?)
}

fn token(answer: &Value) -> Result<String> {
    Ok(answer["token"].as_str().with_context(|| format!("no token: {answer}"))?.to_owned())
}

async fn begin(node: &Node, session: &str) -> Result<Value> {
    let password = json!({ "current_password": PASSWORD });
    post(node, "user/passkeys", Some(session), &password).await
}

fn registration(begun: &Value, authenticator: &Authenticator, name: &str) -> Value {
    let credential = authenticator.made(&begun["options"]);
    json!({ "challenge": begun["challenge"], "name": name, "credential": credential })
}

/// A new passkey, and its id.
pub async fn register(node: &Node, session: &str, name: &str) -> Result<(Authenticator, String)> {
    let begun = begin(node, session).await?;
    let authenticator = Authenticator::new(&begun["options"])?;
    let request = registration(&begun, &authenticator, name);
    let made = post(node, "user/passkeys/answer", Some(session), &request).await?;
    ensure!(made["name"] == name, "{made}");
    Ok((authenticator, made["id"].as_str().context("an id")?.to_owned()))
}

/// Ends a login with what the authenticator says to this question.
async fn end(
    node: &Node,
    begun: &Value,
    authenticator: &Authenticator,
) -> Result<(StatusCode, Value)> {
    let credential = authenticator.answer(&begun["options"])?;
    let request = json!({ "challenge": begun["challenge"], "credential": credential });
    send(node, Method::POST, "auth/passkey/answer", None, &request).await
}

pub async fn login(
    node: &Node,
    request: &Value,
    authenticator: &Authenticator,
) -> Result<(StatusCode, Value)> {
    let begun = post(node, "auth/passkey", None, request).await?;
    end(node, &begun, authenticator).await
}

async fn get(node: &Node, path: &str, session: &str) -> Result<Value> {
    let url = format!("{}/api/v1/{path}", node.url);
    let answer = node.http.get(url).bearer_auth(session).send().await?;
    let (status, body) = answered("GET", &format!("/api/v1/{path}"), None, answer).await?;
    ensure!(status == StatusCode::OK, "{path}: {status}");
    Ok(serde_json::from_slice(&body)?)
}

const BAD: StatusCode = StatusCode::BAD_REQUEST;
const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;

#[tokio::test(flavor = "multi_thread")]
async fn a_passkey_is_a_login_that_any_node_hears_once() -> Result<()> {
    let first = Node::start_with(named).await?;
    level_raised(&first).await?;
    let ticket = first.join_token("node", Some(1)).await?;
    let storage = first.path().join("node/storage");
    let second = Node::join_with("node-2", &first.url, &ticket, &storage, named).await?;
    let session = person(&first, "alice").await?;
    person(&first, "bob").await?;

    // Begun at one node, ended at the other; once.
    let begun = begin(&first, &session).await?;
    let mut authenticator = Authenticator::new(&begun["options"])?;
    let selection = &begun["options"]["authenticatorSelection"];
    ensure!(selection["userVerification"] == "required" && selection["residentKey"] == "required");
    let request = registration(&begun, &authenticator, "laptop");
    let answer = "user/passkeys/answer";
    let made = post(&second, answer, Some(&session), &request).await?;
    let again = send(&first, Method::POST, answer, Some(&session), &request).await?;
    refused(again, "challenge_over", BAD)?;
    let listed = get(&first, "user/passkeys", &session).await?;
    ensure!(listed.as_array().is_some_and(|list| list.len() == 1), "{listed}");
    ensure!(listed[0]["id"] == made["id"] && listed[0].get("last_used_at").is_none(), "{listed}");

    // Without a name and with one.
    let begun = post(&first, "auth/passkey", None, &json!({})).await?;
    ensure!(begun["options"]["allowCredentials"] == json!([]), "{begun}");
    let (status, found) = end(&second, &begun, &authenticator).await?;
    ensure!(status == StatusCode::OK, "{found}");
    let own = token(&found)?;
    ensure!(get(&first, "auth/me", &own).await?["username"] == "alice");
    let sessions = get(&first, "user/sessions", &own).await?;
    ensure!(sessions[1]["means"] == "passkey", "{sessions}");
    // The same answer, or another one to the same question.
    refused(end(&first, &begun, &authenticator).await?, "challenge_over", UNAUTHORIZED)?;
    authenticator.counter = 7;
    refused(end(&second, &begun, &authenticator).await?, "challenge_over", UNAUTHORIZED)?;
    let by_name = json!({ "username": "alice" });
    let (status, found) = login(&second, &by_name, &authenticator).await?;
    ensure!(status == StatusCode::OK, "{found}");
    ensure!(get(&first, "user/passkeys", &own).await?[0]["last_used_at"].is_string());
    // Somebody else's name, or nobody's: asked alike, and in vain.
    for name in ["bob", "nobody"] {
        let begun = post(&first, "auth/passkey", None, &json!({ "username": name })).await?;
        ensure!(begun["options"]["allowCredentials"] == json!([]), "{begun}");
        authenticator.counter += 1;
        refused(end(&second, &begun, &authenticator).await?, "passkey_wrong", UNAUTHORIZED)?;
    }
    let both = json!({ "username": "alice", "ticket": "x" });
    let both = send(&first, Method::POST, "auth/passkey", None, &both).await?;
    refused(both, "name_invalid", BAD)?;
    second.server.stop().await?;
    first.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_wrong_anywhere_is_refused_and_says_why() -> Result<()> {
    let node = Node::start_with(|config| {
        named(config);
        config.lockout.account_failures = 100;
    })
    .await?;
    level_raised(&node).await?;
    let session = person(&node, "alice").await?;

    // Nobody at an open browser makes one, nor a token; nor does any page or authenticator.
    let guess = json!({ "current_password": "guessed-it-1" });
    let guessed = send(&node, Method::POST, "user/passkeys", Some(&session), &guess).await?;
    refused(guessed, "unauthorized", UNAUTHORIZED)?;
    let wanted = json!({ "name": "all", "scopes": ["admin"] });
    let made = post(&node, "user/tokens", Some(&session), &wanted).await?;
    let secret = made["token"].as_str().context("a token")?;
    let password = json!({ "current_password": PASSWORD });
    let by_token = send(&node, Method::POST, "user/passkeys", Some(secret), &password).await?;
    refused(by_token, "forbidden", StatusCode::FORBIDDEN)?;
    let instead = json!({ "current_password": secret });
    let instead = send(&node, Method::POST, "user/passkeys", Some(&session), &instead).await?;
    refused(instead, "unauthorized", UNAUTHORIZED)?;
    let changes: [(&str, Change); 5] = [
        ("passkey_page", |it| it.origin = ELSEWHERE.to_owned()),
        ("passkey_page", |it| it.origin = "http://localhost:8443".to_owned()),
        ("passkey_page", |it| it.domain = "example.org".to_owned()),
        ("passkey_page", |it| it.framed = true),
        ("passkey_unverified", |it| it.flags = PRESENT),
    ];
    for (code, change) in changes {
        let begun = begin(&node, &session).await?;
        let mut authenticator = Authenticator::new(&begun["options"])?;
        change(&mut authenticator);
        let request = registration(&begun, &authenticator, "laptop");
        let path = "user/passkeys/answer";
        let answer = send(&node, Method::POST, path, Some(&session), &request).await?;
        refused(answer, code, BAD).context("of a registration")?;
    }

    let (mut right, _) = register(&node, &session, "laptop").await?;
    for (code, change) in changes {
        let begun = post(&node, "auth/passkey", None, &json!({})).await?;
        let wrong = changed(&mut right, change);
        let answer = end(&node, &begun, &wrong).await?;
        right.key = wrong.key;
        refused(answer, code, UNAUTHORIZED)?;
    }
    // Another key, a handle of somebody else's, a credential that nobody has, another question.
    let forged = other(&right);
    refused(login(&node, &json!({}), &forged).await?, "passkey_wrong", UNAUTHORIZED)?;
    let unknown: [Change; 2] = [|it| it.handle = vec![9; 16], |it| it.id = vec![9; 16]];
    for change in unknown {
        let wrong = changed(&mut right, change);
        let answer = login(&node, &json!({}), &wrong).await?;
        right.key = wrong.key;
        refused(answer, "passkey_wrong", UNAUTHORIZED)?;
    }
    let mut begun = post(&node, "auth/passkey", None, &json!({})).await?;
    let another = post(&node, "auth/passkey", None, &json!({})).await?;
    begun["challenge"] = another["challenge"].clone();
    refused(end(&node, &begun, &right).await?, "passkey_wrong", UNAUTHORIZED)?;
    begun["challenge"] = begin(&node, &session).await?["challenge"].clone();
    refused(end(&node, &begun, &right).await?, "challenge_over", UNAUTHORIZED)?;
    begun["challenge"] = json!("forged");
    refused(end(&node, &begun, &right).await?, "challenge_over", UNAUTHORIZED)?;
    let odd = json!({ "challenge": another["challenge"], "credential": { "id": 7 } });
    let odd = send(&node, Method::POST, "auth/passkey/answer", None, &odd).await?;
    refused(odd, "credential_invalid", BAD)?;

    // A counter counts up.
    right.counter = 5;
    let (status, found) = login(&node, &json!({}), &right).await?;
    ensure!(status == StatusCode::OK, "{found}");
    for counter in [5, 4, 0] {
        right.counter = counter;
        refused(login(&node, &json!({}), &right).await?, "passkey_counter", UNAUTHORIZED)?;
    }
    right.counter = 6;
    let (status, found) = login(&node, &json!({}), &right).await?;
    ensure!(status == StatusCode::OK, "{found}");
    // What is refused is noted in batches.
    until("the trail", async || {
        let trail = node.request(Method::GET, "audit?limit=500").send().await?.text().await?;
        let all = trail.contains("passkey.add") && trail.contains("counter went back");
        Ok(all.then_some(()))
    })
    .await?;
    node.server.stop().await
}

type Change = fn(&mut Authenticator);

/// The same with its key, which it lends, and one thing that is wrong.
fn changed(of: &mut Authenticator, change: Change) -> Authenticator {
    let mut wrong = other(of);
    std::mem::swap(&mut wrong.key, &mut of.key);
    change(&mut wrong);
    wrong
}

/// The same, but for its key.
fn other(of: &Authenticator) -> Authenticator {
    Authenticator {
        key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key"),
        id: of.id.clone(),
        handle: of.handle.clone(),
        counter: of.counter,
        flags: of.flags,
        domain: of.domain.clone(),
        origin: of.origin.clone(),
        framed: of.framed,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_removed_and_who_is_locked_get_nobody_in() -> Result<()> {
    let node = Node::start_with(named).await?;
    level_raised(&node).await?;
    let session = person(&node, "alice").await?;
    let (laptop, id) = register(&node, &session, "laptop").await?;
    let (phone, _) = register(&node, &session, "phone").await?;
    let excluded = begin(&node, &session).await?["options"]["excludeCredentials"].clone();
    ensure!(excluded.as_array().is_some_and(|list| list.len() == 2), "{excluded}");

    // Renamed, and removed with the password.
    let path = format!("user/passkeys/{id}");
    let rename = json!({ "name": "phone" });
    let taken = send(&node, Method::PATCH, &path, Some(&session), &rename).await?;
    refused(taken, "passkey_exists", StatusCode::CONFLICT)?;
    let rename = json!({ "name": "old laptop" });
    let (_, renamed) = send(&node, Method::PATCH, &path, Some(&session), &rename).await?;
    ensure!(renamed["name"] == "old laptop", "{renamed}");
    let mallory = person(&node, "mallory").await?;
    let right = json!({ "current_password": PASSWORD });
    let foreign = send(&node, Method::DELETE, &path, Some(&mallory), &right).await?;
    refused(foreign, "passkey_not_found", StatusCode::NOT_FOUND)?;
    let guess = json!({ "current_password": "guessed-it-1" });
    let guess = send(&node, Method::DELETE, &path, Some(&session), &guess).await?;
    refused(guess, "unauthorized", UNAUTHORIZED)?;
    let (status, _) = send(&node, Method::DELETE, &path, Some(&session), &right).await?;
    ensure!(status == StatusCode::NO_CONTENT, "{status}");
    refused(login(&node, &json!({}), &laptop).await?, "passkey_wrong", UNAUTHORIZED)?;
    let (status, _) = login(&node, &json!({}), &phone).await?;
    ensure!(status == StatusCode::OK, "{status}");
    let export = get(&node, "user/export", &session).await?;
    ensure!(export["passkeys"][0]["name"] == "phone", "{export}");

    // Whoever guesses at the account locks it for passkeys, too; and a lock is ended as ever.
    until("the lock", async || {
        let guess = json!({ "username": "alice", "password": "guessed-it-1" });
        let (status, _) = send(&node, Method::POST, "auth/login", None, &guess).await?;
        Ok((status == StatusCode::FORBIDDEN).then_some(()))
    })
    .await?;
    refused(login(&node, &json!({}), &phone).await?, "locked", StatusCode::FORBIDDEN)?;
    until("the block", async || {
        let ended = node.request(Method::DELETE, "blocks/account:alice").send().await?.status();
        Ok((ended == StatusCode::NO_CONTENT).then_some(()))
    })
    .await?;
    until("the end of the lock", async || {
        let (status, _) = login(&node, &json!({}), &phone).await?;
        Ok((status == StatusCode::OK).then_some(()))
    })
    .await?;

    // An administrator takes them all; and they go with the account.
    let lost = node.request(Method::DELETE, "users/alice/passkeys").send().await?;
    expect(&lost, StatusCode::NO_CONTENT)?;
    let none = node.request(Method::DELETE, "users/alice/passkeys").send().await?;
    ensure!(problem(none, StatusCode::NOT_FOUND).await?.code == "passkey_not_found");
    refused(login(&node, &json!({}), &phone).await?, "passkey_wrong", UNAUTHORIZED)?;
    let (last, _) = register(&node, &session, "last").await?;
    let listed: Vec<Value> = node.get("users/alice/passkeys").await?;
    ensure!(listed.len() == 1 && listed[0]["name"] == "last", "{listed:?}");
    let begun = post(&node, "auth/passkey", None, &json!({})).await?;
    let gone = node.request(Method::DELETE, "users/alice").send().await?;
    expect(&gone, StatusCode::NO_CONTENT)?;
    refused(end(&node, &begun, &last).await?, "passkey_wrong", UNAUTHORIZED)?;
    let trail = node.request(Method::GET, "audit?action=passkey").send().await?.text().await?;
    ensure!(trail.contains("passkey.remove") && trail.contains("passkey.update"), "{trail}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_after_a_password_is_a_second_factor() -> Result<()> {
    let node = Node::start_with(named).await?;
    level_raised(&node).await?;
    let session = person(&node, "alice").await?;
    let (mut key, id) = register(&node, &session, "key").await?;
    let other = person(&node, "bob").await?;
    let (bobs, _) = register(&node, &other, "key").await?;
    let password = json!({ "username": "alice", "password": PASSWORD });
    let pending = async || -> Result<Value> {
        let (status, answer) = send(&node, Method::POST, "auth/login", None, &password).await?;
        ensure!(status == StatusCode::ACCEPTED, "{status} {answer}");
        Ok(answer)
    };
    // A password alone is enough until its person says that it is not.
    token(&post(&node, "auth/login", None, &password).await?)?;
    let path = format!("user/passkeys/{id}");
    let wanted = json!({ "second_factor": true });
    let unproved = send(&node, Method::PATCH, &path, Some(&session), &wanted).await?;
    refused(unproved, "unauthorized", UNAUTHORIZED)?;
    let wanted = json!({ "second_factor": true, "current_password": PASSWORD });
    let (_, shown) = send(&node, Method::PATCH, &path, Some(&session), &wanted).await?;
    ensure!(shown["second_factor"] == true, "{shown}");
    let first = pending().await?;
    ensure!(first["methods"] == json!(["passkey"]), "{first}");
    let basic = node.http.get(format!("{}/api/v1/auth/me", node.url));
    let basic = basic.basic_auth("alice", Some(PASSWORD)).send().await?;
    ensure!(problem(basic, UNAUTHORIZED).await?.code == "second_factor_needed");

    // Behind the password it is told which passkeys there are; nobody else's does.
    let ticket = json!({ "ticket": first["ticket"] });
    let begun = post(&node, "auth/passkey", None, &ticket).await?;
    let allowed = &begun["options"]["allowCredentials"];
    ensure!(allowed[0]["id"] == text(&key.id) && allowed[1].is_null(), "{allowed}");
    refused(end(&node, &begun, &bobs).await?, "passkey_wrong", UNAUTHORIZED)?;
    let (status, answer) = end(&node, &begun, &key).await?;
    ensure!(status == StatusCode::OK, "{status} {answer}");
    let sessions = get(&node, "user/sessions", &token(&answer)?).await?;
    let means: Vec<&Value> =
        sessions.as_array().into_iter().flatten().map(|one| &one["means"]).collect();
    ensure!(means.contains(&&json!("password+passkey")), "{sessions}");
    let forged = json!({ "ticket": "forged" });
    let forged = send(&node, Method::POST, "auth/passkey", None, &forged).await?;
    refused(forged, "ticket_invalid", UNAUTHORIZED)?;
    // A new password in between ends the login that the old one began.
    let begun = post(&node, "auth/passkey", None, &ticket).await?;
    let reset = node.request(Method::PATCH, "users/alice").json(&json!({ "password": PASSWORD }));
    ensure!(reset.send().await?.status().is_success());
    key.counter = 1;
    refused(end(&node, &begun, &key).await?, "ticket_invalid", UNAUTHORIZED)?;

    // With codes besides, either will do.
    let (status, answer) = login(&node, &json!({}), &key).await?;
    ensure!(status == StatusCode::OK, "{status} {answer}");
    let session = token(&answer)?;
    let (secret, step, _) = enable(&node, &session).await?;
    let first = pending().await?;
    ensure!(first["methods"] == json!(["code", "passkey"]), "{first}");
    let second = json!({ "ticket": first["ticket"], "code": code(&secret, step + 1)? });
    token(&post(&node, "auth/login/code", None, &second).await?)?;
    key.counter = 2;
    let (status, answer) = login(&node, &json!({ "ticket": first["ticket"] }), &key).await?;
    ensure!(status == StatusCode::OK, "{status} {answer}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_over_after_a_while_and_asked_only_where_there_is_a_name() -> Result<()> {
    let node = Node::start_with(|config| {
        named(config);
        config.passkeys.challenge_seconds = 4;
    })
    .await?;
    level_raised(&node).await?;
    let session = person(&node, "alice").await?;
    let (key, _) = register(&node, &session, "key").await?;
    let begun = post(&node, "auth/passkey", None, &json!({})).await?;
    let making = begin(&node, &session).await?;
    let over = making["expires_at"].as_str().context("a time")?.to_owned();
    let format = &time::format_description::well_known::Rfc3339;
    let over = time::OffsetDateTime::parse(&over, format)?;
    until("the end of a question", async || {
        Ok((time::OffsetDateTime::now_utc() > over).then_some(()))
    })
    .await?;
    refused(end(&node, &begun, &key).await?, "challenge_over", UNAUTHORIZED)?;
    let late = registration(&making, &Authenticator::new(&making["options"])?, "late");
    let path = "user/passkeys/answer";
    let late = send(&node, Method::POST, path, Some(&session), &late).await?;
    refused(late, "challenge_over", BAD)?;
    node.server.stop().await?;

    // Of the usual settings of a test, the URL is an address.
    let node = Node::start().await?;
    let (status, off) = send(&node, Method::POST, "auth/passkey", None, &json!({})).await?;
    ensure!(status == StatusCode::NOT_FOUND && off["code"] == "passkeys_off", "{status} {off}");
    ensure!(off["message"].as_str().is_some_and(|text| text.contains("[http] url")), "{off}");
    node.server.stop().await
}
