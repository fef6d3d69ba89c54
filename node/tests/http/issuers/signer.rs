//! An issuer that signs with real keys over HTTP, and plays the part of an OpenID Connect provider
//! for one visitor: authorization code, PKCE checked, nonce passed on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use axum::extract::{Form, Query, State};
use axum::http::StatusCode as Status;
use axum::response::{IntoResponse, Redirect};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What its tokens are for.
pub const AUDIENCE: &str = "registry";

pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// Something that signs.
pub enum Key {
    Rsa(Box<RsaKeyPair>),
    Ec(EcdsaKeyPair),
}

impl Key {
    pub fn rsa() -> Result<Self> {
        Ok(Self::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048)?)))
    }

    pub fn ec() -> Result<Self> {
        Ok(Self::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?))
    }

    pub fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Rsa(key) => {
                let public = signature::KeyPair::public_key(key.as_ref());
                let (n, e) = (public.modulus(), public.exponent());
                json!({
                    "kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256",
                    "n": base64(n.big_endian_without_leading_zero()),
                    "e": base64(e.big_endian_without_leading_zero()),
                })
            }
            Self::Ec(key) => {
                let point = key.public_key().as_ref();
                json!({
                    "kty": "EC", "kid": kid, "use": "sig", "crv": "P-256",
                    "x": base64(&point[1..33]), "y": base64(&point[33..]),
                })
            }
        }
    }

    pub fn sign(&self, header: &Value, claims: &Value) -> Result<String> {
        let text = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
        let random = SystemRandom::new();
        let signature = match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, text.as_bytes(), &mut signature)?;
                signature
            }
            Self::Ec(key) => key.sign(&random, text.as_bytes())?.as_ref().to_vec(),
        };
        Ok(format!("{text}.{}", base64(signature)))
    }
}

/// Who is at the issuer, and what was asked of it.
#[derive(Default)]
pub struct Visit {
    pub claims: Value,
    /// Codes with the challenge and the nonce that they were asked with.
    pub codes: HashMap<String, (String, String)>,
    /// In place of the nonce that was asked with.
    pub nonce: Option<String>,
}

pub struct Inner {
    pub url: String,
    pub rsa: Key,
    pub ec: Key,
    pub fetches: AtomicUsize,
    pub visit: Mutex<Visit>,
}

#[derive(Clone)]
pub struct Issuer(pub Arc<Inner>);

impl Issuer {
    pub async fn start() -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (rsa, ec) = (Key::rsa()?, Key::ec()?);
        let (fetches, visit) = (AtomicUsize::new(0), Mutex::default());
        let issuer = Self(Arc::new(Inner { url, rsa, ec, fetches, visit }));
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(describe))
            .route("/jwks", get(jwks))
            .route("/authorize", get(authorize))
            .route("/token", post(token))
            .with_state(issuer.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(issuer)
    }

    pub fn url(&self) -> String {
        self.0.url.clone()
    }

    /// The claims of the requirement, for an hour.
    pub fn claims(&self, subject: &str) -> Result<Value> {
        Ok(json!({
            "iss": self.url(), "aud": AUDIENCE, "sub": subject, "name": "张三",
            "email": "zhangsan@example.com", "roles": ["user"],
            "permissions": ["image:read", "image:write"],
            "iat": now()?, "exp": now()? + 3600,
        }))
    }

    pub fn rs256(&self, claims: &Value) -> Result<String> {
        self.0.rsa.sign(&json!({ "alg": "RS256", "typ": "JWT", "kid": "rsa" }), claims)
    }

    pub fn es256(&self, claims: &Value) -> Result<String> {
        self.0.ec.sign(&json!({ "alg": "ES256", "typ": "JWT", "kid": "ec" }), claims)
    }
}

async fn describe(State(issuer): State<Issuer>) -> Json<Value> {
    let url = issuer.url();
    Json(json!({
        "issuer": url, "jwks_uri": format!("{url}/jwks"),
        "authorization_endpoint": format!("{url}/authorize"), "token_endpoint": format!("{url}/token"),
    }))
}

async fn jwks(State(issuer): State<Issuer>) -> Json<Value> {
    issuer.0.fetches.fetch_add(1, Ordering::Relaxed);
    Json(json!({ "keys": [issuer.0.rsa.jwk("rsa"), issuer.0.ec.jwk("ec")] }))
}

type Fields = HashMap<String, String>;

async fn authorize(State(issuer): State<Issuer>, Query(asked): Query<Fields>) -> impl IntoResponse {
    let right = asked["response_type"] == "code"
        && asked["code_challenge_method"] == "S256"
        && asked["scope"].split(' ').any(|scope| scope == "openid");
    if !right {
        return Status::BAD_REQUEST.into_response();
    }
    let mut visit = issuer.0.visit.lock();
    let code = format!("code-{}", visit.codes.len());
    let asked_with = (asked["code_challenge"].clone(), asked["nonce"].clone());
    visit.codes.insert(code.clone(), asked_with);
    let back = format!("{}?code={code}&state={}", asked["redirect_uri"], asked["state"]);
    Redirect::to(&back).into_response()
}

async fn token(State(issuer): State<Issuer>, Form(form): Form<Fields>) -> impl IntoResponse {
    let mut visit = issuer.0.visit.lock();
    let verifier = form.get("code_verifier").map(String::as_str).unwrap_or_default();
    let Some((challenge, nonce)) = visit.codes.remove(&form["code"]) else {
        return Status::BAD_REQUEST.into_response();
    };
    if base64(Sha256::digest(verifier.as_bytes())) != challenge {
        return Status::BAD_REQUEST.into_response();
    }
    let mut claims = visit.claims.clone();
    claims["nonce"] = json!(visit.nonce.clone().unwrap_or(nonce));
    let token = issuer.rs256(&claims).unwrap_or_default();
    Json(json!({ "access_token": "x", "token_type": "Bearer", "id_token": token })).into_response()
}
