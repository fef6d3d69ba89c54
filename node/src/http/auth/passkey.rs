//! Passkeys (WebAuthn, level 3): what authenticators are asked, and whether they answered.
//!
//! What has to be remembered between question and answer goes along with who is asked, sealed, so
//! that any node may hear the answer; that it is heard once, the metadata see to.
//!
//! Invariants: the authenticator has made sure of its user each time (a PIN, a finger), so that a
//! passkey is two factors; a question tells nobody who has an account or a passkey, unless a password
//! was right before; an answer that is wrong counts like a wrong password.
//! Non-goal: of which make an authenticator is; no attestation is asked for.

use std::net::IpAddr;
use std::time::Duration;

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use shoal_content::Timestamp;
use shoal_metadata::{
    self as metadata, Answered, AuditResult, CREDENTIAL_BYTES_MAX, Command, LoginMeans,
    PASSKEY_WINDOW_MS, PasskeyOwner, Refusal, Suspect, User,
};
use shoal_raft::{ProposeError, View};
use webauthn_rs::prelude::{
    DiscoverableAuthentication, Passkey, PasskeyRegistration, PublicKeyCredential,
    RegisterPublicKeyCredential, Url, Uuid, WebauthnError,
};
use webauthn_rs::{Webauthn, WebauthnBuilder};

use super::barred;
use super::sealed::{open, seal, seconds};
use super::session::read_ticket;
use crate::config::Config;
use crate::http::problem::Problem;
use crate::state::App;

/// What authenticators show, besides the domain.
const PARTY: &str = "shoal";
const OF_REGISTRATION: &str = "shoal 2026 passkey registration";
const OF_LOGIN: &str = "shoal 2026 passkey login";
const OF_ANSWER: &str = "shoal 2026 passkey answer";
/// Of what an authenticator says when it makes a passkey, in bytes.
const ATTESTATION_BYTES_MAX: usize = 64 * 1024;
/// Of whatever else an authenticator or a browser says, in bytes.
const PART_BYTES_MAX: usize = 8 * 1024;

/// A question, for `navigator.credentials` of a browser.
#[derive(Debug)]
pub struct Asked {
    /// Comes back with the answer.
    pub challenge: String,
    /// As JSON, the way that `PublicKeyCredential.parse…OptionsFromJSON` reads it.
    pub options: Map<String, Value>,
    /// The second in which it is over.
    pub expires: u64,
}

/// Whose answer is awaited.
#[derive(Debug, Serialize, Deserialize)]
pub enum Awaited {
    Anybody,
    Account(String),
    /// With the ticket that the password was good for.
    AfterPassword(String),
}

#[derive(Serialize, Deserialize)]
struct Registering {
    user: String,
    owner: PasskeyOwner,
    state: PasskeyRegistration,
    until: u64,
}

#[derive(Serialize, Deserialize)]
struct LoggingIn {
    awaited: Awaited,
    state: DiscoverableAuthentication,
    until: u64,
}

/// A passkey that an authenticator has made.
#[derive(Debug)]
pub struct Registered {
    pub credential: Vec<u8>,
    pub key: Vec<u8>,
    pub owner: PasskeyOwner,
}

/// Why an answer is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Page,
    User,
    Counter,
    Used,
    Other,
}

impl From<&WebauthnError> for Wrong {
    fn from(error: &WebauthnError) -> Self {
        match error {
            WebauthnError::InvalidRPOrigin
            | WebauthnError::InvalidRPIDHash
            | WebauthnError::CredentialCrossOrigin => Self::Page,
            WebauthnError::UserNotPresent | WebauthnError::UserNotVerified => Self::User,
            WebauthnError::CredentialPossibleCompromise => Self::Counter,
            _ => Self::Other,
        }
    }
}

impl Wrong {
    /// The reason for programs and that for people.
    fn says(self) -> (&'static str, &'static str) {
        match self {
            Self::Page => (
                "passkey_page",
                "the page that asked is none of those that passkeys are for here: [http] url, and \
                 [cors] allowed_origins of the same domain",
            ),
            Self::User => {
                ("passkey_unverified", "the authenticator did not ask for a PIN or a finger")
            }
            Self::Counter => (
                "passkey_counter",
                "the passkey's counter went back: somebody may have a copy of it; remove it, and \
                 register it anew",
            ),
            Self::Used => ("challenge_over", "this was answered already, or too late; begin again"),
            Self::Other => {
                ("passkey_wrong", "the passkey is not known here, or its answer is wrong")
            }
        }
    }

    fn problem(self, status: StatusCode) -> Problem {
        let (code, text) = self.says();
        Problem::new(status, code, text)
    }
}

/// The domain of this cluster's passkeys, and the pages that may ask for them.
///
/// # Errors
/// 404 where others reach this node by no name and HTTPS: browsers have no passkeys then.
pub fn party(config: &Config) -> Result<Webauthn, Problem> {
    let off = || {
        let text = "passkeys need a name: set [http] url to https://NAME (localhost will do, an \
                    address will not), and [passkeys] domain to what that ends with";
        Problem::new(StatusCode::NOT_FOUND, "passkeys_off", text)
    };
    let url = page(&config.api_url()).ok_or_else(off)?;
    let host = url.domain().unwrap_or_default();
    let domain = match config.passkeys.domain.as_str() {
        "" => host,
        domain => domain,
    };
    let lifetime = Duration::from_secs(config.passkeys.challenge_seconds);
    let mut builder = WebauthnBuilder::new(domain, &url).map_err(|_| off())?;
    for other in config.cors.allowed_origins.iter().filter_map(|origin| page(origin)) {
        if other.domain().is_some_and(|host| is_within(host, domain)) {
            builder = builder.append_allowed_origin(&other);
        }
    }
    let built = builder.rp_name(PARTY).timeout(lifetime).build();
    built.map_err(|error| Problem::internal(&error))
}

/// Whether a host is the domain, or one of its own.
pub fn is_within(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The name in a URL, where browsers have passkeys on its pages.
pub fn host(url: &str) -> Option<String> {
    page(url)?.domain().map(str::to_owned)
}

/// A page that browsers have passkeys on.
fn page(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let host = url.domain()?;
    let is_fit = match url.scheme() {
        "https" => true,
        "http" => host == "localhost",
        _ => false,
    };
    is_fit.then_some(url)
}

fn until(config: &Config) -> u64 {
    seconds().saturating_add(config.passkeys.challenge_seconds)
}

fn options<T: Serialize>(value: &T) -> Result<Map<String, Value>, Problem> {
    match serde_json::to_value(value) {
        Ok(Value::Object(options)) => Ok(options),
        Ok(_) => Ok(Map::new()),
        Err(error) => Err(Problem::internal(&error)),
    }
}

fn listed(passkeys: &[metadata::Passkey]) -> Value {
    let id = |passkey: &metadata::Passkey| URL_SAFE_NO_PAD.encode(&passkey.credential);
    let one = |passkey| json!({ "type": "public-key", "id": id(passkey) });
    passkeys.iter().map(one).collect()
}

/// Asks for a passkey of the user's that its authenticator finds by itself.
///
/// # Errors
/// Where passkeys are off.
pub fn ask_for_new(
    app: &App,
    user: &str,
    owner: Option<PasskeyOwner>,
    passkeys: &[metadata::Passkey],
) -> Result<Asked, Problem> {
    let party = party(&app.config)?;
    let owner = owner.unwrap_or_else(|| PasskeyOwner { handle: rand::random(), registered: 0 });
    let handle = Uuid::from_bytes(owner.handle);
    let begun = party.start_passkey_registration(handle, user, user, None);
    let (question, state) = begun.map_err(|error| Problem::internal(&error))?;
    let mut options = options(&question.public_key)?;
    let selection = json!({
        "residentKey": "required", "requireResidentKey": true, "userVerification": "required",
    });
    options.insert("authenticatorSelection".to_owned(), selection);
    options.insert("excludeCredentials".to_owned(), listed(passkeys));
    let expires = until(&app.config);
    let sealed = Registering { user: user.to_owned(), owner, state, until: expires };
    Ok(Asked { challenge: seal(app, OF_REGISTRATION, &sealed)?, options, expires })
}

/// What the authenticator made, where that is what was asked for.
///
/// # Errors
/// 400 for anything else.
pub fn made(
    app: &App,
    user: &str,
    challenge: &str,
    answer: Map<String, Value>,
) -> Result<Registered, Problem> {
    let party = party(&app.config)?;
    let begun: Option<Registering> = open(app, OF_REGISTRATION, challenge);
    let begun = begun.filter(|begun| begun.user == user && begun.until > seconds());
    let Registering { owner, state, .. } =
        begun.ok_or_else(|| Wrong::Used.problem(StatusCode::BAD_REQUEST))?;
    let answer: RegisterPublicKeyCredential = parsed(answer)?;
    let parts = [&answer.raw_id, &answer.response.client_data_json];
    if parts.iter().any(|part| part.len() > PART_BYTES_MAX)
        || answer.response.attestation_object.len() > ATTESTATION_BYTES_MAX
    {
        return Err(too_long());
    }
    let made = party.finish_passkey_registration(&answer, &state);
    let made = made.map_err(|error| Wrong::from(&error).problem(StatusCode::BAD_REQUEST))?;
    let key = serde_json::to_vec(&made).map_err(|error| Problem::internal(&error))?;
    Ok(Registered { credential: made.cred_id().clone(), key, owner })
}

fn parsed<T: DeserializeOwned>(answer: Map<String, Value>) -> Result<T, Problem> {
    serde_json::from_value(Value::Object(answer)).map_err(|error| {
        let text = format!("the credential is not as an authenticator gives it: {error}");
        Problem::bad_request("credential_invalid", text)
    })
}

fn too_long() -> Problem {
    Problem::bad_request("credential_invalid", "the credential is longer than any is")
}

/// Asks for a passkey. Before a password was right, none is named.
///
/// # Errors
/// Where passkeys are off, or the ticket is not good any more.
pub fn ask(app: &App, view: &View, awaited: Awaited) -> Result<Asked, Problem> {
    let party = party(&app.config)?;
    let begun = party.start_discoverable_authentication();
    let (question, state) = begun.map_err(|error| Problem::internal(&error))?;
    let mut options = options(&question.public_key)?;
    if let Awaited::AfterPassword(ticket) = &awaited {
        let user = read_ticket(app, view.query(), ticket)?;
        let passkeys = view.query().passkeys(&user.name)?;
        options.insert("allowCredentials".to_owned(), listed(&passkeys));
    }
    let expires = until(&app.config);
    let sealed = LoggingIn { awaited, state, until: expires };
    Ok(Asked { challenge: seal(app, OF_LOGIN, &sealed)?, options, expires })
}

/// Takes an answer, once: whose it is, and what it is worth.
///
/// # Errors
/// 401 for one that is not good; 403 where too many were tried.
pub async fn take_passkey(
    app: &App,
    client: Option<IpAddr>,
    challenge: &str,
    answer: Map<String, Value>,
) -> Result<(User, LoginMeans), Problem> {
    let party = party(&app.config)?;
    let view = app.view().await?;
    barred(app, app.lockout.check_address(view.query(), client))?;
    let begun: Option<LoggingIn> = open(app, OF_LOGIN, challenge);
    let begun = begun.filter(|begun| begun.until > seconds());
    let LoggingIn { awaited, state, until } =
        begun.ok_or_else(|| Wrong::Used.problem(StatusCode::UNAUTHORIZED))?;
    let answer: PublicKeyCredential = parsed(answer)?;
    check_lengths(&answer)?;
    let (named, means) = match awaited {
        Awaited::Anybody => (None, LoginMeans::Passkey),
        Awaited::Account(name) => (Some(name), LoginMeans::Passkey),
        Awaited::AfterPassword(ticket) => {
            let user = read_ticket(app, view.query(), &ticket)?;
            (Some(user.name), LoginMeans::PasswordAndPasskey)
        }
    };
    if let Some(name) = &named {
        barred(app, app.lockout.check_account(view.query(), name))?;
    }
    let Some(known) = known(&view, &answer, named.as_deref())? else {
        return Err(failed(app, named.as_deref(), client, Wrong::Other));
    };
    let Known { passkey, owner, user } = known;
    barred(app, app.lockout.check_account(view.query(), &user.name))?;
    drop(view);
    let wrong = |wrong| failed(app, Some(&user.name), client, wrong);
    if !is_owner(&answer, &owner, named.is_some()) {
        return Err(wrong(Wrong::Other));
    }
    if is_framed(&answer) {
        return Err(wrong(Wrong::Page));
    }
    let Signed { counter, key } = match signed(&party, &answer, state, &passkey)? {
        Ok(signed) => signed,
        Err(why) => return Err(wrong(why)),
    };
    let challenge = blake3::derive_key(OF_ANSWER, challenge.as_bytes());
    let expires_at = Timestamp::from_millis(until.saturating_mul(1000));
    let answered = Answered { challenge, expires_at };
    let metadata::Passkey { user: name, id, uses_since, .. } = passkey;
    match app.propose(Command::UsePasskey { user: name, id, answered, counter, key }).await {
        Ok(_) => Ok((user, means)),
        Err(ProposeError::Refused(Refusal::ChallengeUsed)) => Err(wrong(Wrong::Used)),
        Err(ProposeError::Refused(Refusal::CounterBehind { .. })) => Err(wrong(Wrong::Counter)),
        Err(ProposeError::Refused(Refusal::NotFound(_))) => Err(wrong(Wrong::Other)),
        Err(error) => {
            let ends = uses_since.plus_millis(PASSKEY_WINDOW_MS);
            Err(Problem::from(error).passing(Some(ends)))
        }
    }
}

fn check_lengths(answer: &PublicKeyCredential) -> Result<(), Problem> {
    let response = &answer.response;
    let handle = response.user_handle.as_ref().map_or(0, Vec::len);
    let parts = [&response.authenticator_data, &response.client_data_json, &response.signature];
    let longest = parts.iter().map(|part| part.len()).max().unwrap_or(0).max(handle);
    match answer.raw_id.len() <= CREDENTIAL_BYTES_MAX && longest <= PART_BYTES_MAX {
        true => Ok(()),
        false => Err(too_long()),
    }
}

struct Known {
    passkey: metadata::Passkey,
    owner: PasskeyOwner,
    user: User,
}

/// The passkey that answered, if it is one of the user that is awaited.
fn known(
    view: &View,
    answer: &PublicKeyCredential,
    named: Option<&str>,
) -> Result<Option<Known>, Problem> {
    let query = view.query();
    let found = query.passkey_of(&answer.raw_id)?;
    let own = |row: &metadata::Passkey| named.is_none_or(|name| row.user == name);
    let Some(passkey) = found.filter(own) else { return Ok(None) };
    let owner = query.passkey_owner(&passkey.user)?;
    let user = query.user(&passkey.user)?;
    Ok(owner.zip(user).map(|(owner, user)| Known { passkey, owner, user }))
}

/// Whether the authenticator says that, too (section 7.2, step 6).
fn is_owner(answer: &PublicKeyCredential, owner: &PasskeyOwner, named: bool) -> bool {
    match answer.get_user_unique_id() {
        Some(handle) => handle == owner.handle,
        None => named,
    }
}

/// Whether a page of another origin had asked, with ours in a frame.
fn is_framed(answer: &PublicKeyCredential) -> bool {
    #[derive(Deserialize)]
    struct Client {
        #[serde(default, rename = "crossOrigin")]
        cross_origin: Option<bool>,
    }
    let client = serde_json::from_slice::<Client>(&answer.response.client_data_json);
    client.is_ok_and(|client| client.cross_origin == Some(true))
}

/// What a good answer says.
struct Signed {
    counter: u32,
    /// Where there is something new about it.
    key: Option<Vec<u8>>,
}

fn signed(
    party: &Webauthn,
    answer: &PublicKeyCredential,
    state: DiscoverableAuthentication,
    row: &metadata::Passkey,
) -> Result<Result<Signed, Wrong>, Problem> {
    let key = serde_json::from_slice(&row.key);
    let mut key: Passkey = key.map_err(|error| Problem::internal(&error))?;
    let found = match party.finish_discoverable_authentication_v2(answer, state, &key) {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(user = %row.user, passkey = %row.id, %error, "a passkey's answer is wrong");
            return Ok(Err((&error).into()));
        }
    };
    let mut new = None;
    if found.needs_update() && key.update_credential(&found) == Some(true) {
        new = Some(serde_json::to_vec(&key).map_err(|error| Problem::internal(&error))?);
    }
    Ok(Ok(Signed { counter: found.counter(), key: new }))
}

/// Counts and notes an answer that is not taken.
fn failed(app: &App, name: Option<&str>, client: Option<IpAddr>, wrong: Wrong) -> Problem {
    app.metrics.login_failed("passkey");
    match name {
        None => app.lockout.note_token(client),
        Some(name) => {
            app.lockout.note_password(name, client);
            let (_, why) = wrong.says();
            let refused = AuditResult::Refused(why.to_owned());
            app.services.audit.note("session.login", Suspect::account(name).to_string(), refused);
        }
    }
    wrong.problem(StatusCode::UNAUTHORIZED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text).unwrap()
    }

    fn origins(text: &str) -> Vec<String> {
        let party = party(&config(text)).unwrap();
        let origin = |url: &Url| url.origin().ascii_serialization();
        party.get_allowed_origins().iter().map(origin).collect()
    }

    #[test]
    fn passkeys_need_a_name_and_https() {
        for off in [
            "",
            "[http]\nurl = \"https://10.0.0.1:5000\"\n",
            "[http]\nurl = \"https://[::1]:5000\"\n",
            "[http]\nurl = \"http://shoal.example\"\n",
        ] {
            let problem = party(&config(off)).unwrap_err();
            assert_eq!((problem.status, problem.code), (StatusCode::NOT_FOUND, "passkeys_off"));
            assert!(problem.message.contains("[http] url"), "{}", problem.message);
        }
        for on in ["https://shoal.example:5000", "https://localhost:5000", "http://localhost:80"] {
            party(&config(&format!("[http]\nurl = \"{on}\"\n"))).unwrap();
        }
    }

    #[test]
    fn pages_of_the_domain_may_ask_and_no_others() {
        let http = "[http]\nurl = \"https://shoal.example.org:5000\"\n";
        let cors = "[cors]\nallowed_origins = [\"https://console.example.org\", \
                    \"https://badexample.org\", \"http://example.org\", \"https://10.0.0.1\"]\n";
        assert_eq!(origins(&format!("{http}{cors}")), ["https://shoal.example.org:5000"]);
        let wide = format!("{http}{cors}[passkeys]\ndomain = \"example.org\"\n");
        let both = ["https://shoal.example.org:5000", "https://console.example.org"];
        assert_eq!(origins(&wide), both);
        assert!(is_within("a.b", "b") && is_within("b", "b") && !is_within("ab", "b"));
    }
}
