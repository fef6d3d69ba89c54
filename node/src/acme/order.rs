//! One order, from the account to the certificate (RFC 8555, section 7).

use std::collections::BTreeMap;
use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use shoal_content::Timestamp;
use shoal_metadata::{AcmeAccount, Command, HttpCertificate, Secret, SecretPlace};
use shoal_raft::Raft;
use tokio::time::timeout;
use tracing::info;

use super::Error;
use super::transport::Transport;
use crate::clock;
use crate::config;
use crate::encryption::Vault;

/// The whole of it; servers check from several places, and may have a queue.
const ORDER_TIMEOUT: Duration = Duration::from_secs(300);
/// How long an order's next state is waited for.
const STATE_TIMEOUT: Duration = Duration::from_secs(90);
/// What a server says that does not know our account (RFC 8555, section 6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Gets a certificate for `names`. The answers to challenges stay for the caller to clear.
///
/// # Errors
/// What stood in the way.
pub async fn order(
    raft: &Raft,
    vault: &Vault,
    settings: &config::Acme,
    names: &[String],
) -> Result<HttpCertificate, Error> {
    let ordering = async {
        let mut order = begin(raft, vault, settings, names).await?;
        authorize(raft, &mut order).await?;
        finish(&mut order, vault, names).await
    };
    timeout(ORDER_TIMEOUT, Box::pin(ordering)).await.map_err(|_| Error::Timeout)?
}

fn protocol(doing: &'static str) -> impl Fn(instant_acme::Error) -> Error {
    move |source| Error::Protocol { doing, source }
}

async fn begin(
    raft: &Raft,
    vault: &Vault,
    settings: &config::Acme,
    names: &[String],
) -> Result<Order, Error> {
    let identifiers: Vec<Identifier> = names.iter().map(|name| identifier(name)).collect();
    let wanted = NewOrder::new(&identifiers);
    let kept = raft.read().await?.query().acme_account()?;
    let kept = kept.filter(|kept| kept.directory_url == settings.directory_url);
    if let Some(kept) = kept {
        let credentials = vault.open(SecretPlace::AcmeAccount, &kept.credentials)?;
        let credentials: AccountCredentials = serde_json::from_slice(&credentials)?;
        let account = Account::builder_with_http(Box::new(Transport::new(ca(settings))?));
        let account = account.from_credentials(credentials).await;
        let account = account.map_err(protocol("the ACME server cannot be asked"))?;
        match account.new_order(&wanted).await {
            Err(instant_acme::Error::Api(problem)) if is_unknown(&problem) => {
                info!(directory = settings.directory_url, "the ACME server has lost our account");
            }
            ordered => return ordered.map_err(protocol("the order was not taken")),
        }
    }
    let account = register(raft, vault, settings).await?;
    account.new_order(&wanted).await.map_err(protocol("the order was not taken"))
}

fn is_unknown(problem: &instant_acme::Problem) -> bool {
    problem.r#type.as_deref() == Some(NO_ACCOUNT)
}

fn ca(settings: &config::Acme) -> Option<&std::path::Path> {
    settings.ca_file.as_deref()
}

/// Makes an account, and keeps it for whoever leads.
async fn register(raft: &Raft, vault: &Vault, settings: &config::Acme) -> Result<Account, Error> {
    let contact: Vec<&str> = settings.contact.iter().map(String::as_str).collect();
    let wanted = NewAccount {
        contact: &contact,
        terms_of_service_agreed: settings.terms_of_service_agreed,
        only_return_existing: false,
    };
    let directory_url = settings.directory_url.clone();
    let builder = Account::builder_with_http(Box::new(Transport::new(ca(settings))?));
    let made = builder.create(&wanted, directory_url.clone(), None).await;
    let (account, credentials) = made.map_err(protocol("the ACME server made no account"))?;
    let credentials = Secret(serde_json::to_vec(&credentials)?);
    let credentials = vault.seal(SecretPlace::AcmeAccount, credentials);
    let put = Command::PutAcmeAccount(AcmeAccount { directory_url, credentials });
    raft.propose(clock::now(), put).await?;
    Ok(account)
}

fn identifier(name: &str) -> Identifier {
    match name.parse() {
        Ok(address) => Identifier::Ip(address),
        Err(_) => Identifier::Dns(name.to_owned()),
    }
}

/// Lets every node know the answers before the server is told that they are there.
async fn authorize(raft: &Raft, order: &mut Order) -> Result<(), Error> {
    let mut answers = BTreeMap::new();
    for announce in [false, true] {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization =
                authorization.map_err(protocol("an authorization cannot be read"))?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let name = authorization.identifier().to_string();
            let challenge = authorization.challenge(ChallengeType::Http01);
            let mut challenge = challenge.ok_or(Error::Challenge(name))?;
            if announce {
                challenge.set_ready().await.map_err(protocol("a challenge was not taken up"))?;
            } else {
                let answer = challenge.key_authorization().as_str().to_owned();
                answers.insert(challenge.token.clone(), answer);
            }
        }
        if !announce {
            let put = Command::PutAcmeChallenges { answers: answers.clone() };
            raft.propose(clock::now(), put).await?;
        }
    }
    let patience = RetryPolicy::new().timeout(STATE_TIMEOUT);
    let status = order.poll_ready(&patience).await;
    let status = status.map_err(protocol("the names were not validated"))?;
    if status == OrderStatus::Ready {
        return Ok(());
    }
    Err(Error::Refused(reasons(order, status).await))
}

/// What the server says of the names that it did not validate.
async fn reasons(order: &mut Order, status: OrderStatus) -> String {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(authorization)) = authorizations.next().await {
        let name = authorization.identifier().to_string();
        let problems =
            authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        reasons.extend(problems.map(|problem| format!("{name}: {problem}")));
    }
    if reasons.is_empty() { format!("it is {status:?}") } else { reasons.join("; ") }
}

async fn finish(
    order: &mut Order,
    vault: &Vault,
    names: &[String],
) -> Result<HttpCertificate, Error> {
    let key = order.finalize().await.map_err(protocol("the order was not finished"))?;
    let patience = RetryPolicy::new().timeout(STATE_TIMEOUT);
    let chain = order.poll_certificate(&patience).await;
    let chain = chain.map_err(protocol("no certificate was issued"))?;
    let [valid_from, valid_until] = validity(&chain).map_err(Error::Certificate)?;
    let key = vault.seal(SecretPlace::HttpKey, Secret(key.into_bytes()));
    Ok(HttpCertificate { names: names.to_vec(), chain, key, valid_from, valid_until })
}

/// Since when and until when the first certificate of a chain holds.
fn validity(chain: &str) -> Result<[Timestamp; 2], String> {
    let first =
        CertificateDer::from_pem_slice(chain.as_bytes()).map_err(|error| error.to_string())?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&first).map_err(|error| error.to_string())?;
    let validity = parsed.validity();
    Ok([validity.not_before, validity.not_after].map(|time| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
        Timestamp::from_millis(seconds.saturating_mul(1000))
    }))
}
