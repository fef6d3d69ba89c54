//! The token by which this node says to another who it is: a JWT (RFC 7519) that it signs itself.
//!
//! Algorithm EdDSA (RFC 8037), header `typ` = `shoal-node+jwt`, issuer and subject the peer id,
//! audience the cluster's id; checked against the node's row (see `http::auth`).

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use shoal_content::{ClusterId, Timestamp};
use shoal_p2p::identity::KeyPair;

/// One request is answered in seconds; clocks differ a little.
const VALID_SECONDS: u64 = 120;
const BACKDATE_SECONDS: u64 = 10;

#[derive(Serialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    iat: u64,
    exp: u64,
}

/// # Errors
/// Where signing fails.
pub fn issue(
    key: &KeyPair,
    cluster: ClusterId,
    now: Timestamp,
) -> Result<String, jsonwebtoken::errors::Error> {
    let peer = key.peer_id().to_string();
    let iat = (now.as_millis() / 1000).saturating_sub(BACKDATE_SECONDS);
    let exp = iat + VALID_SECONDS;
    let claims = Claims { iss: peer.clone(), sub: peer, aud: cluster.to_string(), iat, exp };
    let header = Header { typ: Some("shoal-node+jwt".to_owned()), ..Header::new(Algorithm::EdDSA) };
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(key.to_pkcs8_der()))
}
