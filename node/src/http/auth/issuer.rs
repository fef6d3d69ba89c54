//! Other issuers' tokens: their keys (JWKS, RFC 7517), and what a signature with one of them says.
//!
//! Invariants: only RS256 and ES256 are taken, each with a key of its own kind, so that neither
//! `none` nor a public key used as a secret gets through; issuer, audience and end are always
//! checked; keys are fetched at most once in [`REFETCH_INTERVAL`] for each issuer, however many
//! tokens name a key that is not there, and for tokens only that say to be its; an issuer that is away
//! leaves the keys that were known, and one that is slow holds up nobody whose key is among them.
//! Non-goal: who somebody is here; see `foreign`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value};
use tracing::{info, warn};

use crate::http::problem::chain;

/// Keys that were fetched are asked for again after this.
const KEYS_TTL: Duration = Duration::from_secs(600);
/// An issuer that does not answer is believed by its old keys for this long.
const KEYS_STALE_MAX: Duration = Duration::from_secs(24 * 3600);
const REFETCH_INTERVAL: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a set of keys, or a description of an issuer.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
const KEYS_MAX: usize = 64;
/// Clocks may differ by so many seconds.
const SKEW_SECONDS: u64 = 30;
/// Claims that a rule may speak of.
const CLAIMS_MAX: usize = 64;

/// Where an issuer's keys are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Keys {
    /// At this address.
    At(String),
    /// Where the issuer's own description says (OpenID Connect Discovery 1.0).
    OfIssuer(String),
}

/// What an issuer says of itself.
#[derive(Debug, Clone, Deserialize)]
pub struct Description {
    issuer: String,
    jwks_uri: String,
    #[serde(default)]
    pub authorization_endpoint: String,
    #[serde(default)]
    pub token_endpoint: String,
}

/// Why a token is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// It was good.
    Expired,
    Invalid,
    /// The issuer's keys cannot be had.
    Away,
}

#[derive(Debug, Default)]
struct Kept {
    /// With the time at which they were fetched.
    keys: Mutex<Option<(Arc<JwkSet>, Instant)>>,
    /// When they were asked for last; held while they are.
    tried: tokio::sync::Mutex<Option<Instant>>,
}

impl Kept {
    /// Those that are no older.
    fn known(&self, age_max: Duration) -> Option<Arc<JwkSet>> {
        let keys = self.keys.lock();
        let young = keys.as_ref().filter(|(_, fetched)| fetched.elapsed() < age_max);
        young.map(|(set, _)| Arc::clone(set))
    }
}

/// Who came back from a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Whom the issuer never calls another one.
    pub subject: String,
    /// What an account here would be called.
    pub account: String,
    /// Where it gets mail, if the issuer says that.
    pub email: Option<String>,
    pub groups: Vec<String>,
}

/// What is known of other issuers. One for each node.
#[derive(Debug)]
pub struct Issuers {
    http: reqwest::Client,
    refetch: Duration,
    kept: Mutex<HashMap<Keys, Arc<Kept>>>,
    /// Of the issuers in the settings.
    described: Mutex<HashMap<String, (Description, Instant)>>,
}

/// What a token says.
#[derive(Debug, Clone)]
pub struct Claims(Map<String, Value>);

impl Claims {
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    pub fn subject(&self) -> &str {
        self.text("sub").unwrap_or_default()
    }

    /// Where the subject gets mail, unless the issuer says that it has not seen that (OpenID Connect
    /// Core 1.0, 5.1). Some write the truth value as a text.
    pub fn email(&self) -> Option<&str> {
        let unseen = match self.0.get("email_verified") {
            Some(Value::Bool(seen)) => !seen,
            Some(Value::String(text)) => text != "true",
            _ => false,
        };
        self.text("email").filter(|_| !unseen)
    }

    /// In seconds.
    pub fn expires(&self) -> u64 {
        self.0.get("exp").and_then(Value::as_f64).map_or(0, |seconds| seconds as u64)
    }

    /// A list of texts, or one text; nothing where there is no such claim.
    pub fn list(&self, name: &str) -> Option<Vec<&str>> {
        match self.0.get(name)? {
            Value::Array(all) => Some(all.iter().filter_map(Value::as_str).collect()),
            Value::String(one) => Some(vec![one]),
            _ => Some(Vec::new()),
        }
    }

    /// What is a text, a number or a truth value, as text.
    pub fn plain(&self) -> BTreeMap<String, String> {
        let text = |(name, value): (&String, &Value)| {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Bool(truth) => truth.to_string(),
                _ => return None,
            };
            Some((name.clone(), text))
        };
        self.0.iter().take(CLAIMS_MAX).filter_map(text).collect()
    }
}

/// Whether a token says that it is signed in a way that other issuers use.
pub fn may_be_foreign(token: &str) -> bool {
    jsonwebtoken::decode_header(token)
        .is_ok_and(|header| matches!(header.alg, Algorithm::RS256 | Algorithm::ES256))
}

/// Whether an address may be asked for keys: over TLS, or on this machine.
pub fn is_fit_address(text: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(text) else { return false };
    let loopback = match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            let host = host.trim_matches(['[', ']']);
            host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && loopback)
}

impl Issuers {
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn new() -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self {
            http,
            refetch: REFETCH_INTERVAL,
            kept: Mutex::default(),
            described: Mutex::default(),
        })
    }

    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// What `token` says, if `issuer` has signed it for `audience` and it holds now.
    ///
    /// # Errors
    /// Where it does not, or the issuer's keys are not to be had.
    pub async fn verify(
        &self,
        keys: &Keys,
        issuer: &str,
        audience: &str,
        token: &str,
    ) -> Result<Claims, Rejected> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Rejected::Invalid)?;
        if !matches!(header.alg, Algorithm::RS256 | Algorithm::ES256) {
            return Err(Rejected::Invalid);
        }
        // Nobody is asked for the keys of another one; what the token says is believed further below.
        let said = insecure_decode_claims::<Map<String, Value>>(token);
        let said = said.map_err(|_| Rejected::Invalid)?;
        if said.get("iss").and_then(Value::as_str) != Some(issuer) {
            return Err(Rejected::Invalid);
        }
        let key = self.key(keys, header.kid.as_deref(), header.alg).await?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = SKEW_SECONDS;
        let checked = jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation);
        let claims = checked.map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => Rejected::Expired,
            _ => Rejected::Invalid,
        })?;
        let claims = Claims(claims.claims);
        let ahead = claims.0.get("iat").and_then(Value::as_f64).unwrap_or(0.0);
        let now = crate::clock::now().as_millis() / 1000;
        if claims.subject().is_empty() || ahead > (now + SKEW_SECONDS) as f64 {
            return Err(Rejected::Invalid);
        }
        Ok(claims)
    }

    async fn key(
        &self,
        keys: &Keys,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<DecodingKey, Rejected> {
        let kept = Arc::clone(self.kept.lock().entry(keys.clone()).or_default());
        let known = |age_max| kept.known(age_max).and_then(|set| pick(&set, kid, algorithm));
        if let Some(key) = known(KEYS_TTL) {
            return Ok(key);
        }
        let mut tried = match kept.tried.try_lock() {
            Ok(tried) => tried,
            // While somebody else asks, a key that is due to be asked for again does.
            Err(_) => match known(KEYS_STALE_MAX) {
                Some(key) => return Ok(key),
                // Those who wait here all need the same answer.
                None => kept.tried.lock().await,
            },
        };
        if let Some(key) = known(KEYS_TTL) {
            return Ok(key);
        }
        if tried.is_none_or(|tried| tried.elapsed() >= self.refetch) {
            *tried = Some(Instant::now());
            match self.fetch(keys).await {
                Ok(set) => {
                    info!(?keys, count = set.keys.len(), "an issuer's keys were fetched");
                    *kept.keys.lock() = Some((Arc::new(set), Instant::now()));
                }
                Err(why) => warn!(?keys, why, "an issuer's keys cannot be fetched"),
            }
            // Those who have waited do not ask again because it took so long.
            *tried = Some(Instant::now());
        }
        drop(tried);
        let set = kept.known(KEYS_STALE_MAX).ok_or(Rejected::Away)?;
        pick(&set, kid, algorithm).ok_or(Rejected::Invalid)
    }

    async fn fetch(&self, keys: &Keys) -> Result<JwkSet, String> {
        let address = match keys {
            Keys::At(address) => address.clone(),
            Keys::OfIssuer(issuer) => self.describe(issuer).await?.jwks_uri,
        };
        let set: JwkSet = self.get(&address).await?;
        if set.keys.len() > KEYS_MAX {
            return Err(format!("more than {KEYS_MAX} keys"));
        }
        Ok(set)
    }

    /// What the issuer says of itself, or has said a moment ago.
    ///
    /// # Errors
    /// Where it says nothing, or speaks of another issuer.
    pub async fn describe(&self, issuer: &str) -> Result<Description, String> {
        if let Some((known, at)) = self.described.lock().get(issuer)
            && at.elapsed() < KEYS_TTL
        {
            return Ok(known.clone());
        }
        let found = self.asked(issuer).await?;
        self.described.lock().insert(issuer.to_owned(), (found.clone(), Instant::now()));
        Ok(found)
    }

    async fn asked(&self, issuer: &str) -> Result<Description, String> {
        let base = issuer.trim_end_matches('/');
        let found: Description =
            self.get(&format!("{base}/.well-known/openid-configuration")).await?;
        if found.issuer != issuer {
            return Err("the description is of another issuer".to_owned());
        }
        Ok(found)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, address: &str) -> Result<T, String> {
        if !is_fit_address(address) {
            return Err("the address is neither https nor this machine".to_owned());
        }
        let failed = |error: reqwest::Error| chain(&error);
        let answer = self.http.get(address).send().await.map_err(failed)?;
        read_answer(answer.error_for_status().map_err(failed)?).await
    }
}

/// JSON of a bounded length.
///
/// # Errors
/// Where it is too long, or something else.
pub async fn read_answer<T: serde::de::DeserializeOwned>(
    mut answer: reqwest::Response,
) -> Result<T, String> {
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| chain(&error))? {
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err("the answer is too long".to_owned());
        }
        body.extend_from_slice(&piece);
    }
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

/// The key that a token names; where it names none, the only one that fits.
fn pick(set: &JwkSet, kid: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
    let mut fitting = set.keys.iter().filter(|key| fits(key, algorithm));
    let key = match kid {
        Some(kid) => fitting.find(|key| key.common.key_id.as_deref() == Some(kid))?,
        None => {
            let only = fitting.next()?;
            if fitting.next().is_some() {
                return None;
            }
            only
        }
    };
    DecodingKey::from_jwk(key).ok()
}

fn fits(key: &Jwk, algorithm: Algorithm) -> bool {
    let kind = match (&key.algorithm, algorithm) {
        (AlgorithmParameters::RSA(_), Algorithm::RS256) => true,
        (AlgorithmParameters::EllipticCurve(curve), Algorithm::ES256) => {
            curve.curve == EllipticCurve::P256
        }
        _ => false,
    };
    let wanted = match algorithm {
        Algorithm::RS256 => KeyAlgorithm::RS256,
        _ => KeyAlgorithm::ES256,
    };
    let named = key.common.key_algorithm.as_ref().is_none_or(|named| *named == wanted);
    let signs =
        key.common.public_key_use.as_ref().is_none_or(|kind| *kind == PublicKeyUse::Signature);
    kind && named && signs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_asked_for_over_tls_or_on_this_machine() {
        for good in [
            "https://a.example/jwks",
            "http://127.0.0.1:80/x",
            "http://[::1]:1/",
            "http://localhost:9/",
        ] {
            assert!(is_fit_address(good), "{good}");
        }
        for bad in [
            "http://a.example/",
            "ftp://127.0.0.1/",
            "http://169.254.169.254/",
            "file:///etc",
            "x",
            "http://localhost.evil/",
        ] {
            assert!(!is_fit_address(bad), "{bad}");
        }
    }

    #[test]
    fn a_key_is_picked_by_its_name_and_kind() {
        let set: JwkSet = serde_json::from_value(serde_json::json!({ "keys": [
            { "kty": "oct", "kid": "secret", "k": "c2VjcmV0" },
            { "kty": "RSA", "kid": "enc", "use": "enc", "n": "AQAB", "e": "AQAB" },
            { "kty": "RSA", "kid": "one", "alg": "RS256", "n": "AQAB", "e": "AQAB" },
            { "kty": "RSA", "kid": "strong", "alg": "RS512", "n": "AQAB", "e": "AQAB" },
            { "kty": "EC", "kid": "ec", "crv": "P-384", "x": "AQAB", "y": "AQAB" },
        ] }))
        .unwrap();
        let found = |kid, algorithm| pick(&set, kid, algorithm).is_some();
        assert!(found(Some("one"), Algorithm::RS256) && found(None, Algorithm::RS256));
        for kid in ["secret", "enc", "strong", "ec", "nobody"] {
            assert!(!found(Some(kid), Algorithm::RS256), "{kid}");
            assert!(!found(Some(kid), Algorithm::ES256), "{kid}");
            assert!(!found(Some(kid), Algorithm::HS256), "{kid}");
        }
        assert!(!found(None, Algorithm::ES256));
    }

    use std::sync::atomic::{AtomicUsize, Ordering};

    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use axum::http::StatusCode;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;
    use tokio::sync::Notify;

    fn signed(key: &EcdsaKeyPair, kid: &str, issuer: &str) -> String {
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let end = crate::clock::now().as_millis() / 1000 + 100;
        let claims = json!({ "iss": issuer, "aud": "us", "sub": "s", "exp": end });
        let header = json!({ "alg": "ES256", "kid": kid });
        let text = format!("{}.{}", encode(header), encode(claims));
        let signature = key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn set(key: &EcdsaKeyPair, kid: &str) -> Value {
        let point = key.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y }] })
    }

    #[tokio::test]
    async fn keys_change_when_the_issuers_do_and_stay_while_it_is_away() {
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        let make = || EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let (old, new) = (make(), make());
        let served: Arc<Mutex<Option<Value>>> = Arc::new(Mutex::new(Some(set(&old, "old"))));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/jwks", listener.local_addr().unwrap());
        let shown = Arc::clone(&served);
        let answer = move || async move {
            shown.lock().clone().map(axum::Json).ok_or(StatusCode::BAD_GATEWAY)
        };
        let router = axum::Router::new().route("/jwks", axum::routing::get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let keys = Keys::At(address);
        let issuers = Issuers { refetch: Duration::ZERO, ..Issuers::new().unwrap() };
        let verify = async |token: String| {
            issuers.verify(&keys, "i", "us", &token).await.map(|claims| claims.subject().to_owned())
        };
        assert_eq!(verify(signed(&old, "old", "i")).await.as_deref(), Ok("s"));
        assert_eq!(verify(signed(&new, "new", "i")).await, Err(Rejected::Invalid));
        // The issuer signs with another key from now on, and the old one is no good any more.
        *served.lock() = Some(set(&new, "new"));
        assert_eq!(verify(signed(&new, "new", "i")).await.as_deref(), Ok("s"));
        assert_eq!(verify(signed(&old, "old", "i")).await, Err(Rejected::Invalid));
        // Away, it is believed by what was known; one that was never heard of is not.
        *served.lock() = None;
        assert_eq!(verify(signed(&new, "new", "i")).await.as_deref(), Ok("s"));
        assert_eq!(verify(signed(&old, "old", "i")).await, Err(Rejected::Invalid));
        let nobody = Keys::At("http://127.0.0.1:9/jwks".to_owned());
        let token = signed(&new, "new", "i");
        let unknown = issuers.verify(&nobody, "i", "us", &token).await;
        assert_eq!(unknown.map(drop), Err(Rejected::Away));
    }

    #[tokio::test]
    async fn a_slow_issuer_holds_up_nobody_whose_key_is_known() {
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        let (key, other) = (
            EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
        );
        // The first answer comes, further ones never do.
        let (fetches, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (count, begins, known) = (Arc::clone(&fetches), Arc::clone(&begun), set(&key, "known"));
        let answer = move || {
            let (begins, known) = (Arc::clone(&begins), known.clone());
            let is_first = count.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if !is_first {
                    begins.notify_one();
                    std::future::pending::<()>().await;
                }
                axum::Json(known)
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let keys = Keys::At(format!("http://{}/jwks", listener.local_addr().unwrap()));
        let router = axum::Router::new().route("/jwks", axum::routing::get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let issuers = Issuers { refetch: Duration::ZERO, ..Issuers::new().unwrap() };
        let issuers = Arc::new(issuers);
        let good = signed(&key, "known", "i");
        assert!(issuers.verify(&keys, "i", "us", &good).await.is_ok());
        // What says to be another one's is no reason to ask.
        let foreign = signed(&other, "unknown", "somebody else");
        let refused = issuers.verify(&keys, "i", "us", &foreign).await;
        assert_eq!(refused.map(drop), Err(Rejected::Invalid));
        assert_eq!(fetches.load(Ordering::Relaxed), 1);

        let (asking, there) = (Arc::clone(&issuers), keys.clone());
        let unknown = signed(&other, "unknown", "i");
        let waits =
            tokio::spawn(async move { asking.verify(&there, "i", "us", &unknown).await.map(drop) });
        begun.notified().await;
        let soon = Duration::from_secs(5);
        let heard = tokio::time::timeout(soon, issuers.verify(&keys, "i", "us", &good)).await;
        assert!(heard.unwrap().is_ok());
        assert!(!waits.is_finished());
        waits.abort();
    }
}
