//! Logins that are no password: in a browser, at the issuer that the cluster trusts, and by the
//! token of a CI job.
//!
//! The browser ends on a port of this machine with a ticket; it is worth a session only together
//! with what this process made its challenge of (RFC 8252, RFC 7636).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Method, Url};
use sha2::{Digest, Sha256};
use shoal_api::{LoginResponse, OidcRedeem, WorkloadLogin, WorkloadToken};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::arguments::Login;
use crate::client::Client;
use crate::error::Error;
use crate::screen::Screen;

/// How long somebody may take at the issuer.
const BROWSER_TIMEOUT: Duration = Duration::from_secs(600);
/// A connection that says nothing is left.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_BYTES_MAX: usize = 16 * 1024;
const SECRET_BYTES: usize = 32;

fn secret() -> Result<String, Error> {
    let mut bytes = [0; SECRET_BYTES];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| Error::Usage("this machine has no randomness".into()))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Sends somebody to the issuer and waits for what comes back.
pub async fn login(url: &Url, client: &Client, screen: Screen) -> Result<LoginResponse, Error> {
    let listening = Error::file("listening on", "127.0.0.1");
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(listening)?;
    let port = listener.local_addr().map_err(Error::file("listening on", "127.0.0.1"))?.port();
    let verifier = secret()?;
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
    let path = format!("api/v1/auth/oidc/login?port={port}&challenge={challenge}");
    let address = url.join(&path).map_err(|error| Error::Answer(error.to_string()))?;
    screen.remark(&format!("Open this in a browser on this machine:\n  {address}"));
    let waited = tokio::time::timeout(BROWSER_TIMEOUT, ticket(&listener)).await;
    let ticket = waited.map_err(|_| Error::Unreachable("nobody came back in time".into()))??;
    let request = OidcRedeem { ticket, verifier };
    client.call(Method::POST, "api/v1/auth/oidc/redeem", &request).await
}

/// Of the first request that has one.
async fn ticket(listener: &TcpListener) -> Result<String, Error> {
    loop {
        let (stream, _) =
            listener.accept().await.map_err(Error::file("listening on", "127.0.0.1"))?;
        let heard = tokio::time::timeout(REQUEST_TIMEOUT, hear(stream)).await;
        if let Ok(Some(ticket)) = heard {
            return Ok(ticket);
        }
    }
}

async fn hear(mut stream: TcpStream) -> Option<String> {
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut piece).await.ok()?;
        if read == 0 || request.len() + read > REQUEST_BYTES_MAX {
            return None;
        }
        request.extend_from_slice(&piece[..read]);
    }
    let ticket = ticket_in(&String::from_utf8_lossy(&request));
    let (status, text) = match ticket {
        Some(_) => ("200 OK", "You may close this page and go back to the terminal.\n"),
        None => ("404 Not Found", "Nothing is here.\n"),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
    // The browser may be gone; the ticket is what counts.
    let _ = stream.write_all(answer.as_bytes()).await;
    ticket
}

fn ticket_in(request: &str) -> Option<String> {
    let target = request.lines().next()?.strip_prefix("GET /?ticket=")?;
    let ticket = target.split([' ', '&']).next()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    (!ticket.is_empty() && ticket.chars().all(plain)).then(|| ticket.to_owned())
}

/// The token of a CI job for a robot's; gives the robot's name besides.
pub async fn workload(
    arguments: &Login,
    project: &shoal_content::ProjectName,
    token: String,
    client: &Client,
) -> Result<(String, LoginResponse), Error> {
    let request = WorkloadLogin { project: project.clone(), robot: arguments.robot.clone(), token };
    let got: WorkloadToken = client.call(Method::POST, "api/v1/auth/workload", &request).await?;
    Ok((got.username, LoginResponse { token: got.token.0, expires_at: got.expires_at }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_read_out_of_a_browsers_request_and_nothing_else_is() {
        let request = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(ticket_in(&request("/?ticket=ab-_9")).as_deref(), Some("ab-_9"));
        for bad in ["/", "/favicon.ico", "/?ticket=", "/?ticket=a%0d", "/x?ticket=a"] {
            assert_eq!(ticket_in(&request(bad)), None, "{bad}");
        }
        assert_eq!(ticket_in(""), None);
    }

    #[tokio::test]
    async fn the_first_request_with_a_ticket_ends_the_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let browser = async {
            let mut said = String::new();
            for target in ["/favicon.ico", "/?ticket=t-1"] {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let request = format!("GET {target} HTTP/1.1\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                said.clear();
                stream.read_to_string(&mut said).await.unwrap();
            }
            said
        };
        let (ticket, said) = tokio::join!(ticket(&listener), browser);
        assert_eq!(ticket.unwrap(), "t-1");
        assert!(said.starts_with("HTTP/1.1 200 OK"), "{said}");
    }
}
