//! The challenge and the token endpoint (distribution's token authentication, and OAuth2 as docker
//! and containerd speak it).
//!
//! One challenge for each 401. A client that came by name is sent to the token endpoint on the
//! same name; one that came by an address is asked for Basic, since crane and cosign refuse realms
//! that are address literals. So is one that came to `localhost` in the clear, where nothing answers
//! HTTPS; behind any other name that is not encrypted here stands a proxy that encrypts.

use std::net::IpAddr;

use axum::Json;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use shoal_metadata::Who;
use shoal_raft::View;
use zeroize::Zeroizing;

use super::access::grant;
use super::answers::RegistryToken;
use super::body::whole;
use super::route::Route;
use super::{Answer, RegistryError};
use crate::http::InTheClear;
use crate::http::auth::{Asker, Principal, check_password, client, issue_until, view_with};
use crate::http::problem::Problem;
use crate::state::App;

/// The longest form of a token request, in bytes.
const FORM_BYTES_MAX: usize = 16 * 1024;

/// 401 with what the client is to do about it; `insufficient` is that its token is good, but was not
/// given for this (RFC 6750, 3.1).
pub fn challenge(parts: &Parts, route: Option<&Route<'_>>, insufficient: bool) -> RegistryError {
    let scope = route.and_then(|route| scope(route, &parts.method));
    challenge_for(parts, scope, insufficient)
}

/// The same for a scope.
pub fn challenge_for(parts: &Parts, scope: Option<String>, insufficient: bool) -> RegistryError {
    let headers = &parts.headers;
    // HTTP/2 has the host in its `:authority`.
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or(parts.uri.authority().map(Authority::as_str)).unwrap_or_default();
    let authority = host.parse::<Authority>().ok();
    let name = authority.as_ref().map_or("", Authority::host);
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let is_local = name == "localhost" && parts.extensions.get::<InTheClear>().is_some();
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    let challenge = if is_address || is_local || name.is_empty() || !host.chars().all(plain) {
        "Basic realm=\"shoal\"".to_owned()
    } else {
        let scope = scope.map(|scope| format!(",scope=\"{scope}\"")).unwrap_or_default();
        let error = if insufficient { ",error=\"insufficient_scope\"" } else { "" };
        format!("Bearer realm=\"https://{host}/v2/token\",service=\"{host}\"{scope}{error}")
    };
    RegistryError::from(Problem::unauthorized()).with(header::WWW_AUTHENTICATE, &challenge)
}

fn scope(route: &Route<'_>, method: &Method) -> Option<String> {
    let repository = match route {
        Route::Base | Route::Token => return None,
        Route::Catalogue => return Some("registry:catalog:*".to_owned()),
        Route::Tags(name)
        | Route::Manifest(name, _)
        | Route::Blob(name, _)
        | Route::Uploads(name)
        | Route::Upload(name, _)
        | Route::Referrers(name, _) => name,
    };
    let session = matches!(route, Route::Uploads(_) | Route::Upload(..));
    let actions = match *method {
        _ if session => "pull,push",
        Method::GET | Method::HEAD => "pull",
        Method::DELETE => "delete",
        _ => "pull,push",
    };
    Some(format!("repository:{repository}:{actions}"))
}

/// `GET` with Basic, or `POST` with a form of `grant_type=password`.
pub async fn handle(
    app: &App,
    asker: Result<Asker, Problem>,
    parts: &Parts,
    pairs: &[(String, String)],
    body: Body,
) -> Answer {
    let denied = || {
        RegistryError::from(Problem::unauthorized())
            .with(header::WWW_AUTHENTICATE, "Basic realm=\"shoal\"")
    };
    let mut scopes: Vec<&str> = values(pairs, "scope").collect();
    let fields;
    let (principal, view, until) = match parts.method {
        Method::GET => match asker {
            // A token is not good for another token: it would outlive what it was given for.
            Ok(Asker { granted: Some(_), .. }) => return Err(denied()),
            // Nobody gets a token for what is public, and only where it asks for something.
            Ok(Asker { principal: None, .. }) if scopes.is_empty() => return Err(denied()),
            Ok(Asker { principal: Some(Principal::Agent(_) | Principal::Node(_)), .. }) => {
                return Err(denied());
            }
            Ok(Asker { principal, view, until, .. }) => (principal, view, until),
            Err(problem) if problem.status == StatusCode::UNAUTHORIZED => {
                return Err(denied().saying(&problem));
            }
            Err(problem) => return Err(problem.into()),
        },
        Method::POST => {
            let form = Zeroizing::new(whole(body, FORM_BYTES_MAX).await?.bytes.to_vec());
            fields = fields_of(&form);
            scopes.extend(values(&fields, "scope"));
            let view = app.view().await?;
            let principal = password_grant(app, &view, client(parts), &fields, pairs).await?;
            let view = view_with(app, view, Some(&principal)).await?;
            (Some(principal), view, None)
        }
        _ => return Err(RegistryError::unsupported()),
    };
    let who = principal.as_ref().map_or(Who::Anonymous, Principal::who);
    let access = grant(view.query(), &who, &scopes)?;
    let nothing = access.iter().all(|granted| granted.actions.is_empty());
    if principal.is_none() && nothing {
        return Err(denied());
    }
    let (token, end) = issue_until(app, principal.as_ref(), Some(access), until)?;
    let lasts = end.saturating_sub(app.now().as_millis() / 1000);
    let body = RegistryToken { access_token: token.clone(), token, expires_in: lasts };
    let mut response = Json(body).into_response();
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    Ok(response)
}

fn values<'a>(pairs: &'a [(String, String)], name: &'a str) -> impl Iterator<Item = &'a str> {
    pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// The fields of a form.
pub fn fields_of(form: &[u8]) -> Vec<(String, String)> {
    let uri = format!("/?{}", String::from_utf8_lossy(form));
    let fields = uri
        .parse()
        .ok()
        .and_then(|uri| axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri).ok());
    fields.map(|query| query.0).unwrap_or_default()
}

/// Other grants are answered 404, on which containerd falls back to GET.
async fn password_grant(
    app: &App,
    view: &View,
    client: Option<IpAddr>,
    fields: &[(String, String)],
    pairs: &[(String, String)],
) -> Result<Principal, RegistryError> {
    let field = |name: &str| {
        fields.iter().chain(pairs).find(|(key, _)| key == name).map(|(_, value)| value.clone())
    };
    let (Some("password"), Some(name), Some(password)) =
        (field("grant_type").as_deref(), field("username"), field("password"))
    else {
        let message = "only grant_type=password is supported; use GET with Basic";
        return Err(RegistryError::new(StatusCode::NOT_FOUND, "UNSUPPORTED", message));
    };
    Ok(check_password(app, view, client, &name, Zeroizing::new(password)).await?)
}
