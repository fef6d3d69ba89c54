//! People whom GitHub vouches for, or a GitHub Enterprise Server. It signs no statement of who somebody
//! is (OpenID Connect), so its API is asked, with the token that the login brought.
//!
//! Invariants: the token is used for these questions alone and never kept; somebody is known by the
//! number of the account, for names are given to others again.

use reqwest::header::{ACCEPT, USER_AGENT};
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tracing::warn;

use super::issuer::{Person, read_answer};
use crate::config::Oidc;
use crate::http::problem::chain;

/// Of groups, on one page: what GitHub says of a hundred is longer than an answer may be.
const PAGE: usize = 50;
const PAGES_MAX: usize = 20;

/// Why nothing is known of somebody.
#[derive(Debug)]
pub enum Unknown {
    /// The code is not good, or not any more.
    Code,
    Away(String),
}

impl From<String> for Unknown {
    fn from(why: String) -> Self {
        Self::Away(why)
    }
}

/// GitHub answers a code that is not good with 200, too.
#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    error: String,
}

#[derive(Deserialize)]
struct Account {
    id: u64,
    login: String,
}

#[derive(Deserialize)]
struct Organization {
    login: String,
}

#[derive(Deserialize)]
struct Team {
    slug: String,
    organization: Organization,
}

#[derive(Deserialize)]
struct Address {
    email: String,
    #[serde(default)]
    primary: bool,
    #[serde(default)]
    verified: bool,
}

/// Where a browser is sent.
pub fn authorization_endpoint(settings: &Oidc) -> String {
    format!("{}/login/oauth/authorize", settings.issuer.trim_end_matches('/'))
}

/// Where a code is brought.
pub fn token_endpoint(settings: &Oidc) -> String {
    format!("{}/login/oauth/access_token", settings.issuer.trim_end_matches('/'))
}

/// What has to be asked for: nothing for the account itself. An e-mail address is noted with a new
/// account alone, so it is not asked for where none is made.
pub fn scopes(settings: &Oidc) -> &'static str {
    match (settings.uses_groups(), settings.create_accounts) {
        (true, true) => "read:org user:email",
        (true, false) => "read:org",
        (false, true) => "user:email",
        (false, false) => "",
    }
}

/// Who came back, by GitHub's `answer` to the code. Groups are organizations, as `acme`, and teams,
/// as `acme/dev`.
///
/// # Errors
/// Where the code was not good, or GitHub does not answer as it should.
pub async fn person(
    http: &reqwest::Client,
    settings: &Oidc,
    answer: Response,
) -> Result<Person, Unknown> {
    let token: Token = read_answer(answer).await?;
    match token.error.as_str() {
        "" if !token.access_token.is_empty() => {}
        "bad_verification_code" => return Err(Unknown::Code),
        other => {
            let other: String = other.chars().filter(char::is_ascii_graphic).take(64).collect();
            return Err(Unknown::Away(format!("it gives no token: {other}")));
        }
    }
    let api = Api { http, url: settings.api_url(), token: token.access_token };
    let account: Account = api.get("user").await?;
    let mut groups = Vec::new();
    if settings.uses_groups() {
        let organizations: Vec<Organization> = api.all("user/orgs").await?;
        groups.extend(organizations.into_iter().map(|organization| organization.login));
        let teams: Vec<Team> = api.all("user/teams").await?;
        let name = |team: Team| format!("{}/{}", team.organization.login, team.slug);
        groups.extend(teams.into_iter().map(name));
    }
    let email = if settings.create_accounts { api.email().await } else { None };
    Ok(Person { subject: account.id.to_string(), account: account.login, email, groups })
}

struct Api<'a> {
    http: &'a reqwest::Client,
    url: String,
    token: String,
}

impl Api<'_> {
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Unknown> {
        let request = self.http.get(format!("{}/{path}", self.url)).bearer_auth(&self.token);
        let request = request
            .header(ACCEPT, "application/vnd.github+json")
            .header("x-github-api-version", "2022-11-28")
            .header(USER_AGENT, "shoal");
        let answer = request.send().await.map_err(|error| chain(&error))?;
        if matches!(answer.status(), StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) {
            let text = format!("{path} may not be asked for: {}", answer.status());
            return Err(Unknown::Away(text));
        }
        let answer = answer.error_for_status().map_err(|error| chain(&error))?;
        Ok(read_answer(answer).await?)
    }

    /// The address that GitHub has seen somebody read, of those the first. The profile's is whatever was
    /// typed there, if anything. Nobody is kept out for want of one.
    async fn email(&self) -> Option<String> {
        let all: Result<Vec<Address>, Unknown> = self.get("user/emails?per_page=100").await;
        match all {
            Ok(all) => {
                let own = all.into_iter().find(|address| address.primary && address.verified);
                own.map(|address| address.email)
            }
            Err(why) => {
                warn!(?why, "an e-mail address cannot be had");
                None
            }
        }
    }

    /// Of more than is read here, nothing: who is in how many groups must not decide which count.
    async fn all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Unknown> {
        let mut all = Vec::new();
        for page in 1..=PAGES_MAX {
            let path = format!("{path}?per_page={PAGE}&page={page}");
            let some: Vec<T> = self.get(&path).await?;
            let last = some.len() < PAGE;
            all.extend(some);
            if last {
                return Ok(all);
            }
        }
        Err(Unknown::Away(format!("{path} has more than {} entries", PAGE * PAGES_MAX)))
    }
}
