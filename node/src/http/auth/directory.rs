//! Passwords that a directory (LDAPv3, RFC 4511) knows: searched for, then bound.
//!
//! The searcher of the settings looks for the one entry that the name stands for and for its
//! groups; then the same connection is bound as that entry with the password. Whoever has a
//! password here is never asked about there.
//!
//! Invariants: what was typed reaches a filter only escaped (RFC 4515); an empty password is refused
//! before anything is sent, since a server takes it for an anonymous bind (RFC 4513, 5.1.2); passwords
//! travel under TLS or on loopback; referrals are not followed; a check as a whole has an end. An
//! account is known by the directory's own identifier, so that an entry which is named like an
//! account here does not get it. A directory takes a name in many spellings: a wrong password counts
//! for the account that they all mean, and for it the lock-out is asked before a password is tried.
//! Sessions end where the identifier is gone, not where a name finds nothing: anybody may type one; and
//! personal tokens of who is gone are good for nothing.
//! Non-goal: people who are gone and never ask again; their sessions end by themselves.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use ldap3::{LdapConnAsync, LdapConnSettings, LdapError, Scope, SearchEntry, SearchOptions};
use moka::future::Cache;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use shoal_metadata::{Command, Query, Read, Suspect, User};
use shoal_raft::View;
use thiserror::Error;
use tokio::sync::Semaphore;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::foreign::{Wanted, account, called};
use super::groups::follow;
use super::password::Attempt;
use crate::config::{DN, Ldap, USER, mapped};
use crate::http::problem::{Problem, chain};
use crate::state::App;

/// Connections to the directory at once.
const CHECKS_AT_ONCE_MAX: usize = 8;
const REMEMBERED_MAX: u64 = 10_000;
/// Of a name, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Groups of one person.
const GROUPS_MAX: i32 = 1000;
/// LDAP's result codes (RFC 4511, appendix A).
const SUCCESS: u32 = 0;
const SIZE_LIMIT_EXCEEDED: u32 = 4;
const NO_SUCH_OBJECT: u32 = 32;
/// Where somebody gets mail (RFC 4524, 2.16).
const MAIL: &str = "mail";
/// The attribute of which there is none, for who wants none (RFC 4511, 4.5.1.8).
const NO_ATTRIBUTES: &str = "1.1";

/// Why a directory could not be asked.
#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Ldap(#[from] LdapError),
    #[error("{doing} was refused with result {code}: {text}")]
    Refused { doing: &'static str, code: u32, text: String },
    #[error("the password of bind_dn could not be read")]
    Password(#[source] std::io::Error),
    #[error("the entry has no {0}")]
    Lacks(String),
    #[error("no answer within {0} seconds")]
    Late(u64),
    #[error("the answer made no sense")]
    Senseless,
}

/// Why the settings cannot be used.
#[derive(Debug, Error)]
pub enum SettingError {
    #[error("[ldap] ca_file {path} could not be read")]
    Read { path: String, source: std::io::Error },
    #[error("[ldap] ca_file {0} holds no certificate that can be used")]
    Certificate(String),
}

/// Somebody as the directory knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    subject: String,
    account: String,
    /// Where it gets mail, if the directory says that.
    email: Option<String>,
    groups: Vec<String>,
}

/// What the directory says of a name and a password.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Right(Entry),
    Wrong,
    /// The password was not tried.
    Barred(Problem),
    /// Nobody is called so, or several are.
    Nobody,
    /// Nobody is called so, and whoever was before is there no more.
    Gone,
}

/// What a directory is asked.
struct Question {
    settings: Arc<Ldap>,
    tls: Option<Arc<rustls::ClientConfig>>,
    attempt: Attempt,
    password: Zeroizing<String>,
    /// By which it knew whoever has sessions here under the name that was typed.
    subjects: Vec<String>,
}

/// The directory of the settings, if there is one.
#[derive(Debug)]
pub struct Directory {
    settings: Option<Arc<Ldap>>,
    tls: Option<Arc<rustls::ClientConfig>>,
    places: Arc<Semaphore>,
    /// Keyed BLAKE3 of name, password and network, with the subject.
    right: Cache<[u8; 32], String>,
    /// By the account's name here: whether its person is there no more.
    gone: Cache<String, bool>,
    key: [u8; 32],
}

impl Directory {
    /// # Errors
    /// Where the authorities of the settings cannot be read.
    pub fn new(settings: &Ldap) -> Result<Self, SettingError> {
        let tls = settings.ca_file.as_ref().map(|path| {
            let path = path.display().to_string();
            let pem = std::fs::read(&path)
                .map_err(|source| SettingError::Read { path: path.clone(), source })?;
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let added = certificate.ok().and_then(|one| roots.add(one).ok());
                added.ok_or_else(|| SettingError::Certificate(path.clone()))?;
            }
            if roots.is_empty() {
                return Err(SettingError::Certificate(path));
            }
            let config = rustls::ClientConfig::builder().with_root_certificates(roots);
            Ok(Arc::new(config.with_no_client_auth()))
        });
        Ok(Self {
            settings: (!settings.url.is_empty()).then(|| Arc::new(settings.clone())),
            tls: tls.transpose()?,
            places: Arc::new(Semaphore::new(CHECKS_AT_ONCE_MAX)),
            right: Cache::builder()
                .time_to_live(Duration::from_secs(settings.remember_seconds))
                .max_capacity(REMEMBERED_MAX)
                .build(),
            gone: Cache::builder()
                .time_to_live(Duration::from_secs(settings.remember_seconds))
                .max_capacity(REMEMBERED_MAX)
                .build(),
            key: rand::random(),
        })
    }

    /// Whether there is one.
    pub(super) fn is_set(&self) -> bool {
        self.settings.is_some()
    }

    /// Whose name and password these are, if they are anybody's at the directory. `user` is the
    /// account here that is called so; one with a password of its own is none of the directory's.
    ///
    /// # Errors
    /// Where the directory cannot be asked, or its entry cannot have an account here; 403 where that
    /// account is locked.
    pub(super) async fn check(
        &self,
        attempt: &mut Attempt,
        view: &View,
        user: Option<&User>,
        password: &Zeroizing<String>,
    ) -> Result<Option<User>, Problem> {
        let Some(settings) = &self.settings else { return Ok(None) };
        let own = user.is_some_and(|user| user.password_hash.0.starts_with(b"$"));
        let name = attempt.name.as_str();
        if own || password.is_empty() || name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Ok(None);
        }
        let (issuer, query) = (settings.issuer(), view.query());
        let key = self.key(name, password, attempt.client);
        if let Some(subject) = self.right.get(&key).await
            && let Some(user) = known(query, &issuer, &subject)?
        {
            attempt.app.lockout.check_account(query, &user.name)?;
            return Ok(Some(user));
        }
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return Ok(None) };
        // Those before may have failed too often.
        attempt.is_let_in()?;
        let question = Question {
            settings: settings.clone(),
            tls: self.tls.clone(),
            attempt: attempt.clone(),
            password: password.clone(),
            subjects: subjects(query, user, &issuer)?,
        };
        // In a task of its own: what a server sends may be anything.
        let said = tokio::spawn(question.ask()).await.unwrap_or(Err(Failure::Senseless));
        drop(place);
        let entry = match said.map_err(|failure| away(&failure))? {
            Said::Right(entry) => entry,
            Said::Wrong => {
                attempt.counted = true;
                return Ok(None);
            }
            Said::Barred(problem) => return Err(problem),
            Said::Nobody => return Ok(None),
            Said::Gone => {
                end_sessions(&attempt.app, user).await?;
                return Ok(None);
            }
        };
        let app = &attempt.app;
        let wanted = Wanted { name: entry.account.as_str(), email: entry.email.as_deref() };
        let create = settings.create_accounts;
        let user = account(app, query, &issuer, &entry.subject, wanted, create).await?;
        let groups: Vec<&str> = entry.groups.iter().map(String::as_str).collect();
        let places = mapped(&settings.groups).unwrap_or_default();
        let user = follow(app, user, &groups, &settings.admin_groups, places).await?;
        self.right.insert(key, entry.subject).await;
        Ok(Some(user))
    }

    /// Whether somebody whom the directory alone knew is there no more; asked once in so long at this
    /// node. Where the directory does not answer, nobody is gone.
    ///
    /// # Errors
    /// Where the rows cannot be read, or sessions not be ended.
    pub(super) async fn is_gone(
        &self,
        app: &App,
        view: &View,
        name: &str,
    ) -> Result<bool, Problem> {
        let Some(settings) = &self.settings else { return Ok(false) };
        let (issuer, query) = (settings.issuer(), view.query());
        let Some(user) = query.user(name)? else { return Ok(false) };
        let identities = query.identities_of(name)?;
        let elsewhere = identities.iter().any(|one| one.issuer != issuer);
        if elsewhere || identities.is_empty() || user.password_hash.0.starts_with(b"$") {
            return Ok(false);
        }
        let subjects = identities.into_iter().map(|one| one.subject).collect();
        let asked = self.asked(settings, subjects);
        let gone = self.gone.get_with(name.to_owned(), asked).await;
        if gone && !query.sessions(name)?.is_empty() {
            end_sessions(app, Some(&user)).await?;
        }
        Ok(gone)
    }

    async fn asked(&self, settings: &Arc<Ldap>, subjects: Vec<String>) -> bool {
        let (settings, tls) = (settings.clone(), self.tls.clone());
        let (seconds, places) = (settings.timeout_seconds, Arc::clone(&self.places));
        let asking = async move {
            // Within the time as well: where the directory hangs, all places are taken, and a token is
            // good all the same.
            let _place = places.acquire_owned().await;
            let mut ldap = connected(&settings, tls.as_ref()).await?;
            let gone = are_gone(&mut ldap, &settings, &subjects).await;
            // The other end may be gone already, and so is the connection then.
            let _ = ldap.unbind().await;
            gone
        };
        // In a task of its own: what a server sends may be anything.
        let task = tokio::spawn(tokio::time::timeout(Duration::from_secs(seconds), asking));
        let said = match task.await {
            Ok(Ok(said)) => said,
            Ok(Err(_)) => Err(Failure::Late(seconds)),
            Err(_) => Err(Failure::Senseless),
        };
        said.unwrap_or_else(|failure| {
            warn!(error = chain(&failure), "the directory does not say whether somebody is gone");
            false
        })
    }

    /// What was right for one network is asked about again for another: what is remembered while the
    /// directory is away must tell nobody elsewhere that a guess is right.
    fn key(&self, name: &str, password: &str, client: Option<IpAddr>) -> [u8; 32] {
        let network = client.map(|client| Suspect::network(client).to_string());
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in [name, password, network.as_deref().unwrap_or_default()] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

/// By which the directory knows the user, where there are sessions that would end with it.
fn subjects<R: Read>(
    query: Query<'_, R>,
    user: Option<&User>,
    issuer: &str,
) -> Result<Vec<String>, Problem> {
    let Some(user) = user else { return Ok(Vec::new()) };
    if query.sessions(&user.name)?.is_empty() {
        return Ok(Vec::new());
    }
    let identities = query.identities_of(&user.name)?.into_iter();
    Ok(identities.filter(|one| one.issuer == issuer).map(|one| one.subject).collect())
}

/// Who is gone from the directory has no sessions here any more.
async fn end_sessions(app: &App, user: Option<&User>) -> Result<(), Problem> {
    let Some(user) = user else { return Ok(()) };
    info!(user = user.name, "gone from the directory; the sessions end");
    app.propose(Command::EndSessions { user: user.name.clone(), keep: None }).await?;
    Ok(())
}

fn known<R: Read>(
    query: Query<'_, R>,
    issuer: &str,
    subject: &str,
) -> Result<Option<User>, Problem> {
    let Some(identity) = query.identity(issuer, subject)? else { return Ok(None) };
    Ok(query.user(&identity.user)?)
}

fn away(failure: &Failure) -> Problem {
    warn!(error = chain(failure), "the directory could not be asked");
    let text = "the directory does not answer as it should; the node's log says more";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "directory_away", text)
}

impl Question {
    async fn ask(self) -> Result<Said, Failure> {
        let seconds = self.settings.timeout_seconds;
        let said = tokio::time::timeout(Duration::from_secs(seconds), self.bound()).await;
        said.unwrap_or(Err(Failure::Late(seconds)))
    }

    async fn bound(&self) -> Result<Said, Failure> {
        let settings = &*self.settings;
        let mut ldap = connected(settings, self.tls.as_ref()).await?;
        let name = self.attempt.name.as_str();
        let filter = fill(&settings.user_filter, name, "");
        let wanted =
            [settings.account_attribute.as_str(), settings.subject_attribute.as_str(), MAIL];
        // Each is named once, and one of them may be the address.
        let wanted: BTreeSet<&str> = wanted.into_iter().filter(|name| !name.is_empty()).collect();
        let wanted: Vec<&str> = wanted.into_iter().collect();
        let found = search(&mut ldap, &settings.user_base, &filter, &wanted, 2).await?;
        let [entry] = found.as_slice() else {
            if found.len() > 1 {
                warn!(filter, "several entries of the directory fit one name; nobody is let in");
                return Ok(Said::Nobody);
            }
            let gone = are_gone(&mut ldap, settings, &self.subjects).await?;
            return Ok(if gone { Said::Gone } else { Said::Nobody });
        };
        // An entry without a name of its own would be bound anonymously.
        if entry.dn.is_empty() {
            return Err(Failure::Senseless);
        }
        let lacks = |name: &str| Failure::Lacks(name.to_owned());
        let account = first(entry, &settings.account_attribute)
            .ok_or_else(|| lacks(&settings.account_attribute))?;
        let subject = match settings.subject_attribute.as_str() {
            "" => entry.dn.to_lowercase(),
            name => first(entry, name).ok_or_else(|| lacks(name))?,
        };
        let here = match self.admitted(&subject, &account) {
            Ok(here) => here,
            Err(problem) => return Ok(Said::Barred(problem)),
        };
        let mut groups = Vec::new();
        if !settings.group_base.is_empty() {
            let filter = fill(&settings.group_filter, name, &entry.dn);
            let wanted = [settings.group_attribute.as_str()];
            let found =
                search(&mut ldap, &settings.group_base, &filter, &wanted, GROUPS_MAX).await?;
            groups.extend(found.iter().filter_map(|entry| first(entry, &settings.group_attribute)));
        }
        let bound = ldap.simple_bind(&entry.dn, &self.password).await?;
        // Here, where it counts whether or not its sender still waits for the answer.
        if bound.rc != SUCCESS {
            self.attempt.failed_for(&here);
        }
        // The other end may be gone already, and so is the connection then.
        let _ = ldap.unbind().await;
        Ok(if bound.rc == SUCCESS {
            Said::Right(Entry { subject, account, email: first(entry, MAIL), groups })
        } else {
            Said::Wrong
        })
    }

    /// What the account of an entry is called here, or would be, where a password may be tried for it.
    fn admitted(&self, subject: &str, account: &str) -> Result<String, Problem> {
        let app = &self.attempt.app;
        let view = app.raft.local();
        let name = match known(view.query(), &self.settings.issuer(), subject)? {
            Some(user) => user.name,
            None => called(account),
        };
        app.lockout.check_account(view.query(), &name)?;
        Ok(name)
    }
}

/// Bound as who searches, where that is somebody.
async fn connected(
    settings: &Ldap,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Result<ldap3::Ldap, Failure> {
    let mut to = LdapConnSettings::new().set_starttls(settings.starttls);
    if let Some(tls) = tls {
        to = to.set_config(Arc::clone(tls));
    }
    let (connection, mut ldap) = LdapConnAsync::with_settings(to, &settings.url).await?;
    // It ends with `ldap`, of which it is the other end.
    tokio::spawn(async move {
        if let Err(error) = connection.drive().await {
            warn!(%error, "a connection to the directory ended");
        }
    });
    if !settings.bind_dn.is_empty() {
        let secret = searchers_password(settings).await?;
        let bound = ldap.simple_bind(&settings.bind_dn, &secret).await?;
        if bound.rc != SUCCESS {
            let doing = "binding as bind_dn";
            return Err(Failure::Refused { doing, code: bound.rc, text: bound.text });
        }
    }
    Ok(ldap)
}

/// Whether nobody is there any more whom the directory knew by these.
async fn are_gone(
    ldap: &mut ldap3::Ldap,
    settings: &Ldap,
    subjects: &[String],
) -> Result<bool, Failure> {
    for subject in subjects {
        if is_there(ldap, settings, subject).await? {
            return Ok(false);
        }
    }
    Ok(!subjects.is_empty())
}

/// Whether somebody is there under whatever name, and is let in by the filter otherwise.
async fn is_there(ldap: &mut ldap3::Ldap, settings: &Ldap, subject: &str) -> Result<bool, Failure> {
    let anyone = settings.user_filter.replace(USER, "*");
    let (base, scope, filter) = match settings.subject_attribute.as_str() {
        "" => (subject, Scope::Base, anyone),
        name => {
            let filter = format!("(&{anyone}{})", by_subject(name, subject));
            (settings.user_base.as_str(), Scope::Subtree, filter)
        }
    };
    ldap.with_search_options(SearchOptions::new().sizelimit(1));
    let answer = ldap.search(base, scope, &filter, vec![NO_ATTRIBUTES.to_owned()]).await?;
    let ldap3::SearchResult(entries, end) = answer;
    match end.rc {
        SUCCESS | SIZE_LIMIT_EXCEEDED => {
            Ok(entries.iter().any(|entry| !entry.is_ref() && !entry.is_intermediate()))
        }
        NO_SUCH_OBJECT if scope == Scope::Base => Ok(false),
        code => Err(Failure::Refused { doing: "a search", code, text: end.text }),
    }
}

/// What finds the entry with that identifier, which may be written for bytes that are no text (see
/// [`first`]).
fn by_subject(attribute: &str, subject: &str) -> String {
    let text = format!("({attribute}={})", ldap3::ldap_escape(subject));
    let Ok(bytes) = hex::decode(subject) else { return text };
    let mut escaped = String::new();
    for byte in bytes {
        // A text takes whatever is written to it.
        let _ = write!(escaped, "\\{byte:02x}");
    }
    format!("(|{text}({attribute}={escaped}))")
}

async fn searchers_password(settings: &Ldap) -> Result<Zeroizing<String>, Failure> {
    let Some(path) = &settings.bind_password_file else {
        return Ok(Zeroizing::new(settings.bind_password.clone()));
    };
    let text = tokio::fs::read_to_string(path).await.map_err(Failure::Password)?;
    let text = Zeroizing::new(text.trim().to_owned());
    if text.is_empty() {
        return Err(Failure::Password(std::io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(text)
}

async fn search(
    ldap: &mut ldap3::Ldap,
    base: &str,
    filter: &str,
    attributes: &[&str],
    most: i32,
) -> Result<Vec<SearchEntry>, Failure> {
    ldap.with_search_options(SearchOptions::new().sizelimit(most));
    let attributes: Vec<String> = attributes.iter().map(|name| (*name).to_owned()).collect();
    let answer = ldap.search(base, Scope::Subtree, filter, attributes).await?;
    let ldap3::SearchResult(entries, end) = answer;
    if ![SUCCESS, SIZE_LIMIT_EXCEEDED].contains(&end.rc) {
        return Err(Failure::Refused { doing: "a search", code: end.rc, text: end.text });
    }
    Ok(entries
        .into_iter()
        .filter(|entry| !entry.is_ref() && !entry.is_intermediate())
        .map(SearchEntry::construct)
        .collect())
}

/// An attribute's first value; one that is no text as hexadecimal digits.
fn first(entry: &SearchEntry, name: &str) -> Option<String> {
    let text = entry.attrs.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    if let Some(value) = text.and_then(|(_, values)| values.first()) {
        return Some(value.clone());
    }
    let bytes = entry.bin_attrs.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    bytes.and_then(|(_, values)| values.first()).map(hex::encode)
}

/// The filter with the name and the distinguished name in their places, both escaped. What they
/// hold is not looked at again.
fn fill(filter: &str, user: &str, dn: &str) -> String {
    let mut filled = String::with_capacity(filter.len() + user.len() + dn.len());
    let mut rest = filter;
    while let Some(at) = rest.find('{') {
        let (before, after) = rest.split_at(at);
        filled.push_str(before);
        rest = if let Some(after) = after.strip_prefix(USER) {
            filled.push_str(&ldap3::ldap_escape(user));
            after
        } else if let Some(after) = after.strip_prefix(DN) {
            filled.push_str(&ldap3::ldap_escape(dn));
            after
        } else {
            filled.push('{');
            &after[1..]
        };
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_looked_for_as_text_and_as_the_bytes_that_it_may_stand_for() {
        let found = |subject| by_subject("objectGUID", subject);
        assert_eq!(found("5c6a-7f"), "(objectGUID=5c6a-7f)");
        assert_eq!(found("x)(uid=*"), "(objectGUID=x\\29\\28uid=\\2a)");
        assert_eq!(found("00ff2a"), "(|(objectGUID=00ff2a)(objectGUID=\\00\\ff\\2a))");
    }

    #[test]
    fn what_is_typed_stays_a_value_in_the_filter() {
        let filter = "(&(objectClass=person)(uid={user}))";
        for (typed, filled) in [
            ("alice", "(&(objectClass=person)(uid=alice))"),
            ("*", "(&(objectClass=person)(uid=\\2a))"),
            ("a)(uid=*", "(&(objectClass=person)(uid=a\\29\\28uid=\\2a))"),
            ("a\\2a\0", "(&(objectClass=person)(uid=a\\5c2a\\00))"),
            ("{dn}", "(&(objectClass=person)(uid={dn}))"),
        ] {
            assert_eq!(fill(filter, typed, "cn=x"), filled, "{typed}");
        }
        assert_eq!(
            fill("(|(member={dn})(memberUid={user}))", "{dn}", "cn=(x)"),
            "(|(member=cn=\\28x\\29)(memberUid={dn}))"
        );
        assert_eq!(fill("(a={)(b={user", "x", "y"), "(a={)(b={user");
    }
}
