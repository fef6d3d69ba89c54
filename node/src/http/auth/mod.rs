//! Who asks: Basic and Bearer credentials of people, robots, agents and nodes.
//!
//! Invariants: an unknown user costs as much time as a wrong password, whatever that is compared
//! with; whoever brings a token is looked up in the metadata again, so that what was revoked is
//! revoked at once; a program's secret is known by its hash alone.
//! Non-goal: what the one who asks may do; see `permit`.

pub mod bcrypt;
pub mod directory;
mod foreign;
pub mod github;
mod given;
mod groups;
pub mod issuer;
mod lockout;
pub mod one_time;
pub mod passkey;
mod password;
pub mod sealed;
pub mod session;
mod token;
mod uses;
mod verified;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::{Extensions, HeaderName, HeaderValue, Method, StatusCode, header, request};
use shoal_content::{NodeId, PeerId, Timestamp};
use shoal_metadata::{
    Action, PersonalToken, Query, Read, Robot, RobotName, Scope, User, UserRole, What, Who,
};
use shoal_raft::View;
use zeroize::Zeroizing;

use super::noted;
use super::permit::permit;
use super::problem::Problem;
use super::rates::Asking;
use crate::state::App;
use given::Given;
use password::{Attempt, Checked, crowded, keep_anew};

pub use foreign::{Wanted, account as foreign_account};
pub use groups::follow;
pub use lockout::Lockout;
pub use password::{Accounts, hash_password};
pub use token::{Audience, Granted, TOKEN_TTL, issue_token, issue_until};
pub use uses::TokenUses;
pub use verified::Verified;

/// The parsers, for `fuzz`.
pub(crate) mod fuzzed {
    pub use super::given::Given;
    pub use super::token::holds;
}

/// What a browser says of the page that has it send a request (Fetch Metadata Request Headers).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// The answer where a password is right and not enough.
const CODE_NEEDED: &str = "second_factor_needed";
/// Where there is a directory, a wrong password is answered at a multiple of this: for some names the
/// directory is asked, for others not, and how long that takes would tell which. So would a hash of
/// another program's, where there may be such.
const WRONG_BEAT: Duration = Duration::from_millis(500);
/// What a personal token begins with.
pub const PERSONAL_TOKEN_PREFIX: &str = "pat_v1_";

/// Someone whose credentials were right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    User {
        name: String,
        role: UserRole,
        /// The personal token that was brought instead of a password.
        token: Option<TokenUse>,
        /// The session that a login began.
        session: Option<String>,
    },
    Robot(RobotName),
    Agent(PeerId),
    Node(NodeId),
}

/// A personal token, as far as it matters for what its bearer may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUse {
    /// `None` is a token of another issuer's.
    pub id: Option<String>,
    pub scopes: BTreeSet<Scope>,
}

impl Principal {
    /// The name that rows and logs carry.
    pub fn name(&self) -> String {
        match self {
            Self::User { name, .. } => name.clone(),
            Self::Robot(name) => name.to_string(),
            Self::Agent(peer) => format!("agent:{peer}"),
            Self::Node(id) => format!("node:{id}"),
        }
    }

    /// The asker, as permissions are decided for it.
    pub fn who(&self) -> Who {
        match self {
            Self::User { name, token, .. } => Who::User {
                name: name.clone(),
                scopes: token.as_ref().map(|token| token.scopes.clone()),
            },
            Self::Robot(name) => Who::Robot(name.clone()),
            Self::Agent(_) => Who::Agent,
            Self::Node(_) => Who::Node,
        }
    }

    /// # Errors
    /// 403 for agents and nodes: they read, people and robots write.
    pub fn ensure_account(&self) -> Result<String, Problem> {
        match self {
            Self::User { .. } | Self::Robot(_) => Ok(self.name()),
            Self::Agent(_) | Self::Node(_) => {
                Err(Problem::forbidden("only a person or a robot may do this"))
            }
        }
    }

    /// # Errors
    /// 403 for everyone but administrators of the cluster.
    pub fn ensure_admin(&self, view: &View) -> Result<(), Problem> {
        permit(view, &self.who(), Action::Manage, What::System)
    }
}

/// Who asks, and the state that this was found in: what a request reads may be read from it, too.
#[derive(Debug)]
pub struct Asker {
    /// `None` is nobody.
    pub principal: Option<Principal>,
    /// What the token was given for, where it was given for something only.
    pub granted: Option<Vec<Granted>>,
    /// When the token ends that was brought: what is got with it ends then, too.
    pub until: Option<Timestamp>,
    pub view: View,
}

impl Asker {
    pub fn who(&self) -> Who {
        self.principal.as_ref().map_or(Who::Anonymous, Principal::who)
    }
}

/// What somebody is answered whose password is right, and who would have to bring a code as well.
fn code_needed() -> Problem {
    let message = "this account logs in with a second factor, which cannot be asked for here: \
                   use a personal access token (pat_v1_…) as the password";
    Problem { code: CODE_NEEDED, message: message.into(), ..Problem::unauthorized() }
}

/// Checks a name and password, a name and personal token, or a robot and its secret, where that is
/// all there will be.
///
/// # Errors
/// 401, the same for an unknown name and a wrong password, and where a password is not enough; 429
/// where too many guess.
pub async fn check_password(
    app: &App,
    view: &View,
    client: Option<IpAddr>,
    name: &str,
    password: Zeroizing<String>,
) -> Result<Principal, Problem> {
    let principal = first_factor(app, view, client, name, password).await?;
    match &principal {
        Principal::User { name, token: None, .. } if view.query().needs_second_factor(name)? => {
            Err(code_needed())
        }
        _ => Ok(principal),
    }
}

/// Whether a person who is logged in has given the own password once more. A personal token is none:
/// whoever has found one must not be able to become its owner. Nor is the password of somebody else,
/// whom a directory calls so by now.
///
/// # Errors
/// As of [`first_factor`].
pub async fn own_password(
    app: &App,
    view: &View,
    client: Option<IpAddr>,
    name: &str,
    password: Zeroizing<String>,
) -> Result<(), Problem> {
    match first_factor(app, view, client, name, password).await? {
        Principal::User { name: found, token: None, .. } if found == name => Ok(()),
        _ => Err(Problem {
            message: "this needs the account's own password; a token does not do".into(),
            ..Problem::unauthorized()
        }),
    }
}

/// As [`check_password`], for who may be asked for more.
///
/// # Errors
/// 401, the same for an unknown name and a wrong password; 429 where too many guess.
pub async fn first_factor(
    app: &App,
    view: &View,
    client: Option<IpAddr>,
    name: &str,
    password: Zeroizing<String>,
) -> Result<Principal, Problem> {
    let wrong = || Problem {
        message: "the name or the password is wrong".into(),
        ..Problem::unauthorized()
    };
    let begun = Instant::now();
    let query = view.query();
    barred(app, app.lockout.check_address(query, client))?;
    if let Ok(robot) = name.parse::<RobotName>() {
        let hash = blake3::hash(password.as_bytes());
        let row = query.robot(&robot)?.filter(|row| blake3::Hash::from(row.secret_hash) == hash);
        return match row {
            Some(row) if is_valid(&row, app) => Ok(Principal::Robot(row.name)),
            Some(_) => Err(expired()),
            None => {
                wrong_token(app, client);
                Err(wrong())
            }
        };
    }
    if password.starts_with(PERSONAL_TOKEN_PREFIX) {
        let principal = personal(app, view, &password).await?;
        let principal = principal.filter(|principal| principal.name() == name);
        if principal.is_none() {
            wrong_token(app, client);
        }
        return principal.ok_or_else(wrong);
    }
    barred(app, app.lockout.check_account(query, name))?;
    let user = query.user(name)?;
    let stored = user.as_ref().map(|user| user.password_hash.clone());
    let source = app.services.audit.source().unwrap_or_default();
    let (typed, counted) = (name.to_owned(), false);
    let mut attempt = Attempt { app: app.clone(), client, name: typed, source, counted };
    let there = app.directory.check(&mut attempt, view, user.as_ref(), &password);
    if let Some(User { name, role, .. }) = barred(app, Box::pin(there).await)? {
        return Ok(Principal::User { name, role, token: None, session: None });
    }
    let came_hashed = stored.as_ref().is_some_and(|stored| bcrypt::Hash::read(&stored.0).is_some());
    // Of a longer one, bcrypt does not tell whether all of it is right.
    let is_whole = password.len() <= bcrypt::PASSWORD_BYTES_MAX;
    let again = (came_hashed && is_whole).then(|| password.clone());
    // Whoever the directory does not let in is wrong here, too, in the same time as others.
    let right = match app.accounts.check(attempt, password, stored).await {
        Checked::Right => true,
        Checked::Wrong => false,
        Checked::Barred(problem) => return barred(app, Err(problem)),
        Checked::Crowded => return Err(crowded()),
    };
    match user {
        Some(user) if right => {
            if let Some(password) = again {
                Box::pin(keep_anew(app, client, &user, password)).await;
            }
            let (name, role) = (user.name, user.role);
            Ok(Principal::User { name, role, token: None, session: None })
        }
        _ => {
            if app.directory.is_set() || app.config.accounts.bcrypt {
                tokio::time::sleep(until_beat(begun.elapsed())).await;
            }
            Err(wrong())
        }
    }
}

/// From so long after the beginning until the next multiple of [`WRONG_BEAT`].
fn until_beat(elapsed: Duration) -> Duration {
    let beat = WRONG_BEAT.as_nanos();
    // Less than the beat, so it fits.
    let over = u64::try_from(elapsed.as_nanos() % beat).unwrap_or(0);
    WRONG_BEAT - Duration::from_nanos(over)
}

/// Counts who is turned away unheard.
fn barred<T>(app: &App, answer: Result<T, Problem>) -> Result<T, Problem> {
    if matches!(&answer, Err(problem) if problem.code == "locked") {
        app.metrics.login_failed("locked");
    }
    answer
}

pub fn wrong_token(app: &App, client: Option<IpAddr>) {
    app.metrics.login_failed("token");
    app.lockout.note_token(client);
}

fn is_valid(robot: &Robot, app: &App) -> bool {
    robot.expires_at.is_none_or(|end| end > app.now())
}

/// What was good until now, and so is no guess.
fn expired() -> Problem {
    let message = "this token or secret has expired; make another one".into();
    Problem { code: token::EXPIRED, message, ..Problem::unauthorized() }
}

/// Who brings a personal token, if it is one that holds.
///
/// # Errors
/// 401 where it has expired, or its person is gone from the directory.
async fn personal(app: &App, view: &View, secret: &str) -> Result<Option<Principal>, Problem> {
    let hash = *blake3::hash(secret.as_bytes()).as_bytes();
    let Some(token) = view.query().personal_token(&hash)? else { return Ok(None) };
    app.token_uses.note(hash, app.now());
    let principal = bearer(app, view.query(), token)?;
    if let Some(Principal::User { name, .. }) = &principal
        && Box::pin(app.directory.is_gone(app, view, name)).await?
    {
        let message = "whose token this is, is in the directory no more".into();
        return Err(Problem { message, ..Problem::unauthorized() });
    }
    Ok(principal)
}

fn bearer<R: Read>(
    app: &App,
    query: Query<'_, R>,
    token: PersonalToken,
) -> Result<Option<Principal>, Problem> {
    if token.expires_at.is_some_and(|end| end <= app.now()) {
        return Err(expired());
    }
    let user = query.user(token.user.as_str())?;
    let PersonalToken { id, scopes, .. } = token;
    let used = Some(TokenUse { id: Some(id), scopes });
    let known = |user: shoal_metadata::User| Principal::User {
        name: user.name,
        role: user.role,
        token: used,
        session: None,
    };
    Ok(user.map(known))
}

/// Who sends these headers.
///
/// # Errors
/// 401 for credentials that are wrong, expired, malformed or not for this `audience`; 503 where
/// the metadata cannot be read.
pub async fn authenticate(
    app: &App,
    parts: &request::Parts,
    audience: Audience,
) -> Result<Asker, Problem> {
    let view = app.view().await?;
    let Known { principal, granted, until } = credentials(app, &view, parts, audience).await?;
    let view = view_with(app, view, principal.as_ref()).await?;
    if let Some(principal) = &principal {
        noted::note_user(|| principal.name());
        check_rate(app, parts, principal)?;
    }
    Ok(Asker { principal, granted, until, view })
}

/// The view, or a later one that knows an account which this very request has made.
///
/// # Errors
/// Where the metadata cannot be read.
pub async fn view_with(
    app: &App,
    view: View,
    principal: Option<&Principal>,
) -> Result<View, Problem> {
    match principal {
        Some(Principal::User { name, .. }) if view.query().user(name)?.is_none() => {
            Ok(app.view().await?)
        }
        _ => Ok(view),
    }
}

/// # Errors
/// 429 where a person or a robot asks too often.
fn check_rate(app: &App, parts: &request::Parts, principal: &Principal) -> Result<(), Problem> {
    let machine = matches!(principal, Principal::Agent(_) | Principal::Node(_));
    if machine || client(parts).is_some_and(|client| app.lockout.is_exempt(client)) {
        return Ok(());
    }
    app.rates.count(Asking::Principal(principal.name())).map_err(|wait| {
        app.metrics.slowed_down("principal");
        Problem::too_often(wait)
    })
}

/// What credentials say.
#[derive(Debug, Default)]
struct Known {
    principal: Option<Principal>,
    granted: Option<Vec<Granted>>,
    until: Option<Timestamp>,
}

impl From<Principal> for Known {
    fn from(principal: Principal) -> Self {
        Self { principal: Some(principal), ..Self::default() }
    }
}

/// Where a request comes from.
pub fn client(parts: &request::Parts) -> Option<IpAddr> {
    client_of(&parts.extensions)
}

pub fn client_of(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<ConnectInfo<SocketAddr>>().map(|client| client.0.ip())
}

/// A robot's short token in place of its secret: for clients that know names and passwords only.
fn robots_token(
    app: &App,
    view: &View,
    client: Option<IpAddr>,
    name: &str,
    token: &str,
) -> Result<Known, Problem> {
    barred(app, app.lockout.check_address(view.query(), client))?;
    let known = token::check(app, view, token, Audience::Api);
    let own = |known: &Known| {
        known.granted.is_none()
            && matches!(&known.principal, Some(Principal::Robot(robot)) if robot.to_string() == name)
    };
    match known {
        Ok(known) if own(&known) => Ok(known),
        Err(problem) if problem.code == token::EXPIRED => Err(problem),
        _ => {
            wrong_token(app, client);
            Err(Problem::unauthorized())
        }
    }
}

/// A browser adds a name and a password that were typed in once to whatever any page has it send.
/// Pages that the operator named may do so.
///
/// # Errors
/// 403 where it says that a page from elsewhere has it change something so.
fn check_site(allowed_origins: &[String], parts: &request::Parts) -> Result<(), Problem> {
    if matches!(parts.method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    let origin = parts.headers.get(header::ORIGIN).and_then(|value| value.to_str().ok());
    if origin.is_some_and(|origin| allowed_origins.iter().any(|allowed| allowed == origin)) {
        return Ok(());
    }
    match parts.headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes) {
        Some(b"cross-site" | b"same-site") => Err(Problem::forbidden(
            "a page of another site may change nothing here by a name and a password, which a \
             browser adds by itself; log in, and bring the token as Authorization: Bearer",
        )),
        _ => Ok(()),
    }
}

async fn credentials(
    app: &App,
    view: &View,
    parts: &request::Parts,
    audience: Audience,
) -> Result<Known, Problem> {
    let from = client(parts);
    let nobody = || {
        let let_in = app.lockout.check_address(view.query(), from);
        barred(app, let_in).map(|()| Known::default())
    };
    let Some(value) = parts.headers.get(header::AUTHORIZATION) else { return nobody() };
    let given = Given::parse(value.to_str().unwrap_or_default());
    let given = given.ok_or_else(Problem::unauthorized)?;
    if given.is_nobody() {
        return nobody();
    }
    if matches!(given, Given::Basic { .. }) {
        check_site(&app.config.cors.allowed_origins, parts)?;
    }
    match given {
        Given::Basic { name, password } if token::is_ours(&password) => {
            robots_token(app, view, from, &name, &password)
        }
        Given::Basic { name, password } => {
            check_password(app, view, from, &name, password).await.map(Known::from)
        }
        Given::Bearer(token) => bearer_token(app, view, from, token, audience).await,
    }
}

async fn bearer_token(
    app: &App,
    view: &View,
    from: Option<IpAddr>,
    token: &str,
    audience: Audience,
) -> Result<Known, Problem> {
    // What hosts and nodes sign themselves cannot be guessed, and a person who guesses on a
    // host must not cut the host off.
    let known = token::is_known(app, token);
    if !known && token::is_machines(token) {
        return token::check(app, view, token, audience);
    }
    barred(app, app.lockout.check_address(view.query(), from))?;
    let known = if known {
        token::check(app, view, token, audience)
    } else if token.starts_with(PERSONAL_TOKEN_PREFIX) {
        let principal = personal(app, view, token).await?;
        principal.map(Known::from).ok_or_else(Problem::unauthorized)
    } else if issuer::may_be_foreign(token) {
        Box::pin(foreign::check(app, view, token)).await
    } else {
        token::check(app, view, token, audience)
    };
    // One that was good until now is no guess.
    if let Err(problem) = &known
        && problem.status == StatusCode::UNAUTHORIZED
        && ![token::EXPIRED, token::ENDED].contains(&problem.code)
    {
        wrong_token(app, from);
    }
    known
}

impl FromRequestParts<App> for Asker {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, app: &App) -> Result<Self, Problem> {
        authenticate(app, parts, Audience::Api).await
    }
}

impl FromRequestParts<App> for Principal {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, app: &App) -> Result<Self, Problem> {
        let asker = Asker::from_request_parts(parts, app).await?;
        asker.principal.ok_or_else(Problem::unauthorized)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_passwords_are_answered_at_the_same_moments_however_long_they_took() {
        let answered = |millis| {
            let took = Duration::from_millis(millis);
            took + until_beat(took)
        };
        for millis in [0, 1, 70, 499] {
            assert_eq!(answered(millis), WRONG_BEAT, "{millis}");
        }
        assert_eq!((answered(500), answered(999)), (WRONG_BEAT * 2, WRONG_BEAT * 2));
    }
}
