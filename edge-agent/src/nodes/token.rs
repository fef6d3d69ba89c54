//! The token by which this agent says who it is: a JWT (RFC 7519) that it signs itself.
//!
//! Any node checks it against the agent's row, so nothing is issued and nothing has to be renewed.
//! Algorithm EdDSA (RFC 8037), header `typ` = `shoal-agent+jwt`, issuer and subject the peer id,
//! audience the cluster's id, valid for [`VALID_SECONDS`].

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use shoal_content::{ClusterId, PeerId};

/// Nodes refuse what is valid for longer than five minutes.
pub const VALID_SECONDS: u64 = 240;
/// For clocks that differ a little.
const BACKDATE_SECONDS: u64 = 10;

#[derive(Serialize)]
struct Header {
    alg: &'static str,
    typ: &'static str,
}

#[derive(Serialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    iat: u64,
    exp: u64,
}

/// A token of `peer` for `cluster`, at `now` seconds since the Unix epoch.
pub fn issue(
    peer: PeerId,
    cluster: &ClusterId,
    now: u64,
    sign: impl FnOnce(&[u8]) -> [u8; 64],
) -> String {
    let encode = |json: Result<Vec<u8>, serde_json::Error>| {
        URL_SAFE_NO_PAD.encode(json.expect("texts and numbers always serialise"))
    };
    let header = Header { alg: "EdDSA", typ: "shoal-agent+jwt" };
    let iat = now.saturating_sub(BACKDATE_SECONDS);
    let claims = Claims {
        iss: peer.to_string(),
        sub: peer.to_string(),
        aud: cluster.to_string(),
        iat,
        exp: iat + VALID_SECONDS,
    };
    let signed =
        format!("{}.{}", encode(serde_json::to_vec(&header)), encode(serde_json::to_vec(&claims)));
    let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_who_for_whom_and_how_long() {
        let peer = PeerId::from_public_key([7; 32]);
        let cluster: ClusterId = format!("cluster-{:032}", 7).parse().unwrap();
        let mut signed = Vec::new();
        let token = issue(peer, &cluster, 1000, |message| {
            signed = message.to_vec();
            [9; 64]
        });
        let parts: Vec<_> = token.split('.').collect();
        assert_eq!(format!("{}.{}", parts[0], parts[1]).as_bytes(), signed);
        assert_eq!(URL_SAFE_NO_PAD.decode(parts[2]).unwrap(), [9; 64]);
        let claims: serde_json::Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        assert_eq!(claims["iss"], peer.to_string());
        assert_eq!(claims["aud"], cluster.to_string());
        assert_eq!((claims["iat"].as_u64(), claims["exp"].as_u64()), (Some(990), Some(1230)));
    }
}
