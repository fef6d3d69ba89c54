//! Who gets in: people by password, agents and nodes by token.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use shoal_api::{AgentInfo, CertificateResponse, ClusterStatus, EnrolResponse, JoinResponse};
use shoal_content::ClusterId;
use shoal_p2p::identity::{Credentials, KeyPair};

use super::node::{Node, problem, read};

/// An enrolled agent, as far as HTTP sees it.
pub struct Agent {
    pub key: KeyPair,
    pub enrolment: EnrolResponse,
}

pub async fn try_enrol(
    node: &Node,
    key: &KeyPair,
    name: &str,
    token: &str,
) -> Result<reqwest::Response> {
    let request = json!({
        "token": token, "name": name, "csr_pem": key.csr_pem()?, "role": "host",
        "zone": "", "labels": { "name": name },
    });
    let url = format!("{}/api/v1/agents/enrol", node.url);
    Ok(node.http.post(url).json(&request).send().await?)
}

impl Agent {
    pub async fn enrol(node: &Node, name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let token = node.join_token("agent", Some(1)).await?;
        let enrolment = read(try_enrol(node, &key, name, &token).await?).await?;
        Ok(Self { key, enrolment })
    }

    pub fn token(&self) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(sign(&self.key, &self.enrolment.cluster, now, now + 200))
    }

    pub fn request(&self, node: &Node, method: Method, path: &str) -> Result<RequestBuilder> {
        let url = format!("{}/api/v1/agents/self/{path}", node.url);
        Ok(node.http.request(method, url).bearer_auth(self.token()?))
    }
}

fn sign(key: &KeyPair, cluster: &ClusterId, iat: u64, exp: u64) -> String {
    signed("shoal-agent+jwt", key, cluster, iat, exp)
}

/// What an agent or a node signs for itself.
pub fn signed(kind: &str, key: &KeyPair, cluster: &ClusterId, iat: u64, exp: u64) -> String {
    let peer = key.peer_id().to_string();
    let header = json!({ "alg": "EdDSA", "typ": kind });
    let claims =
        json!({ "iss": peer, "sub": peer, "aud": cluster.to_string(), "iat": iat, "exp": exp });
    jwt(key, &header, &claims)
}

/// A token of the cluster's form, by any key.
pub fn jwt(key: &KeyPair, header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", encode(header), encode(claims));
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(key.sign(text.as_bytes())))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_gets_another_certificate_for_its_own_key_and_while_it_is_one() -> Result<()> {
    let node = Node::start().await?;
    let agent = Agent::enrol(&node, "host-1").await?;
    let asked = async |key: &KeyPair| -> Result<reqwest::Response> {
        let request = json!({ "csr_pem": key.csr_pem()? });
        Ok(agent.request(&node, Method::POST, "certificate")?.json(&request).send().await?)
    };
    let given: CertificateResponse = read(asked(&agent.key).await?).await?;
    ensure!(given.certificate_pem != agent.enrolment.certificate_pem, "it is the same");
    let (key, EnrolResponse { certificate_pem, authority_pem, .. }) =
        (KeyPair::from_pkcs8_der(agent.key.to_pkcs8_der())?, agent.enrolment.clone());
    let credentials = Credentials::new(key.into(), &certificate_pem, authority_pem)?;
    credentials.renew(&given.certificate_pem)?;
    let others = asked(&KeyPair::generate()?).await?;
    ensure!(problem(others, StatusCode::BAD_REQUEST).await?.code == "request_invalid");
    let removed = node.request(Method::DELETE, "agents/host-1").send().await?;
    ensure!(removed.status() == StatusCode::NO_CONTENT, "{removed:?}");
    problem(asked(&agent.key).await?, StatusCode::UNAUTHORIZED).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_enrols_with_a_good_token_only() -> Result<()> {
    let node = Node::start().await?;
    let key = KeyPair::generate()?;
    let token = node.join_token("agent", Some(1)).await?;
    let node_token = node.join_token("node", None).await?;
    let forged = format!("{}x", token);
    for bad in ["", "shoal-join-v1.a.b.c", &forged, &node_token] {
        let refused = try_enrol(&node, &key, "host-1", bad).await?;
        problem(refused, StatusCode::FORBIDDEN).await?;
    }
    let enrolled: EnrolResponse = read(try_enrol(&node, &key, "host-1", &token).await?).await?;
    ensure!(enrolled.certificate_pem.contains("BEGIN CERTIFICATE") && enrolled.nodes.len() == 1);
    // The answer was lost: the same key may come again with the token that is spent.
    let again: EnrolResponse = read(try_enrol(&node, &key, "host-1", &token).await?).await?;
    ensure!(again.cluster == enrolled.cluster);
    let stranger = KeyPair::generate()?;
    let spent = try_enrol(&node, &stranger, "host-2", &token).await?;
    problem(spent, StatusCode::FORBIDDEN).await?;
    let other = node.join_token("agent", None).await?;
    let taken = try_enrol(&node, &stranger, "host-1", &other).await?;
    ensure!(problem(taken, StatusCode::CONFLICT).await?.code == "agent_exists");
    let agents: Vec<AgentInfo> = node.get("agents").await?;
    ensure!(agents.len() == 1 && agents[0].id == key.peer_id() && !agents[0].online);

    // Its own token opens what is an agent's, and nothing of an administrator's.
    let agent = Agent { key, enrolment: enrolled };
    let unknown = json!({ "reference": "no/such:thing" });
    let asked = agent.request(&node, Method::POST, "resolve")?.json(&unknown).send().await?;
    ensure!(problem(asked, StatusCode::NOT_FOUND).await?.code == "image_not_found");
    let tokens = format!("{}/api/v1/join-tokens", node.url);
    let asked = node.http.get(&tokens).bearer_auth(agent.token()?).send().await?;
    problem(asked, StatusCode::FORBIDDEN).await?;
    let unenrolled = Agent { key: stranger, enrolment: agent.enrolment };
    let asked = unenrolled.request(&node, Method::POST, "resolve")?.json(&unknown).send().await?;
    problem(asked, StatusCode::UNAUTHORIZED).await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_answers_without_credentials() -> Result<()> {
    let node = Node::start().await?;
    for path in ["auth/me", "images", "agents", "join-tokens", "deployments", "cluster"] {
        let asked = node.http.get(format!("{}/api/v1/{path}", node.url)).send().await?;
        problem(asked, StatusCode::UNAUTHORIZED).await.context(path)?;
    }
    let login = json!({ "username": "admin", "password": "guess" });
    let url = format!("{}/api/v1/auth/login", node.url);
    let refused = node.http.post(url).json(&login).send().await?;
    problem(refused, StatusCode::UNAUTHORIZED).await?;
    let status: ClusterStatus = node.get("cluster").await?;
    ensure!(status.nodes.len() == 1 && status.nodes[0].role == "leader", "{status:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_asks_to_join_again_gets_the_same_id() -> Result<()> {
    let node = Node::start().await?;
    let token = node.join_token("node", Some(1)).await?;
    let key = KeyPair::generate()?;
    let request = json!({
        "token": token, "name": "node-2", "csr_pem": key.csr_pem()?, "zone": "",
        "raft_address": "127.0.0.1:1", "peer_address": "127.0.0.1:2",
        "discovery_address": "127.0.0.1:3", "api_url": "https://127.0.0.1:4",
        "command_version": shoal_metadata::COMMAND_VERSION,
    });
    let url = format!("{}/api/v1/cluster/join", node.url);
    let first: JoinResponse = read(node.http.post(&url).json(&request).send().await?).await?;
    let second: JoinResponse = read(node.http.post(&url).json(&request).send().await?).await?;
    ensure!(first.id == second.id && first.id.number() == 2);
    let agents_token = node.join_token("agent", None).await?;
    let mut wrong = request.clone();
    wrong["token"] = json!(agents_token);
    wrong["csr_pem"] = json!(KeyPair::generate()?.csr_pem()?);
    let refused = node.http.post(&url).json(&wrong).send().await?;
    problem(refused, StatusCode::FORBIDDEN).await?;
    Ok(())
}
