//! What each request of `/v2` needs, by the asker's rights and by what its token was given for.
//!
//! Invariant: a repository that the asker may not see is answered like one that is not there.

use axum::http::{Method, StatusCode};
use shoal_content::RepositoryName;
use shoal_metadata::{Action, Decision, Denial, Ground, Query, Read, What, Who, permission};

use super::RegistryError;
use super::route::Route;
use crate::http::auth::{Asker, Granted};

/// Repositories and words of one token request.
pub const SCOPES_MAX: usize = 64;

/// What the scope of the catalogue is about.
const CATALOGUE: (&str, &str) = ("registry", "catalog");

/// What is answered to somebody who is not let in.
pub enum Refused {
    /// 401, with what the client is to bring.
    Challenge,
    /// As if the repository had nothing in it.
    Nothing,
    Answer(RegistryError),
}

impl Route<'_> {
    /// What is to be done to the repository that it is about.
    fn needs(&self, method: &Method) -> Option<(Action, &RepositoryName)> {
        let repository = self.repository()?;
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let action = match self {
            Self::Tags(_) | Self::Referrers(..) => Action::List,
            // A session belongs to a push, whatever is done with it.
            Self::Uploads(_) | Self::Upload(..) => Action::Push,
            _ if reads => Action::Pull,
            _ if *method == Method::DELETE => Action::Delete,
            _ => Action::Push,
        };
        Some((action, repository))
    }
}

/// The word for an action in scopes (distribution's token specification).
pub fn word(action: Action) -> &'static str {
    match action {
        Action::Pull | Action::List => "pull",
        Action::Push => "push",
        Action::Delete => "delete",
        Action::Manage | Action::Audit => "*",
    }
}

/// # Errors
/// Where the asker may not do that.
pub fn check(asker: &Asker, route: &Route<'_>, method: &Method) -> Result<(), Refused> {
    let Some((action, repository)) = route.needs(method) else {
        // The base and the catalogue say nothing that the asker may not know.
        let nobody = asker.principal.is_none() && asker.granted.is_none();
        let lists = matches!(route, Route::Catalogue);
        let listing = |granted: &Granted| (&*granted.kind, &*granted.name) == CATALOGUE;
        let beyond = lists && asker.granted.as_ref().is_some_and(|all| !all.iter().any(listing));
        return if nobody || beyond { Err(Refused::Challenge) } else { Ok(()) };
    };
    let covered = asker.granted.as_ref().is_none_or(|all| covers(all, repository, action));
    if !covered && asker.granted.as_ref().is_some_and(|all| !was_asked(all, repository)) {
        return Err(Refused::Challenge);
    }
    let decision =
        permission(asker.view.query(), &asker.who(), action, What::Repository(repository));
    match decision.map_err(|error| Refused::Answer(error.into()))? {
        Decision::Allowed(_) if covered => Ok(()),
        Decision::Allowed(_) | Decision::Refused(Denial::Unauthenticated) => {
            Err(Refused::Challenge)
        }
        // There is always a list of referrers, be it an empty one (distribution-spec).
        Decision::Refused(Denial::Hidden) if matches!(route, Route::Referrers(..)) => {
            Err(Refused::Nothing)
        }
        Decision::Refused(denial) => Err(Refused::Answer(refusal(denial, action))),
    }
}

/// Whether a token is for that.
pub fn covers(granted: &[Granted], repository: &RepositoryName, action: Action) -> bool {
    granted.iter().any(|granted| {
        granted.kind == "repository"
            && granted.name == repository.as_str()
            && granted.actions.iter().any(|granted| granted == word(action))
    })
}

/// Whether a token was asked for with this repository. One that was, and does not cover what is to
/// be done, says that it was not granted: asking again would not help.
pub fn was_asked(granted: &[Granted], repository: &RepositoryName) -> bool {
    granted.iter().any(|granted| granted.name == repository.as_str())
}

/// Who may not read must not learn that there is something; who wants to write learns that it is
/// not theirs.
pub fn refusal(denial: Denial, action: Action) -> RegistryError {
    match (denial, action) {
        (Denial::Hidden, Action::Pull) => RegistryError::name_unknown(),
        (Denial::Hidden, Action::List) => RegistryError::name_unknown(),
        (denial, _) => RegistryError::new(StatusCode::FORBIDDEN, "DENIED", denial.to_string()),
    }
}

/// What of a request's `scope` parameters the asker may have: `repository:NAME:pull,push`, several
/// parted by spaces.
///
/// # Errors
/// Where there are more than anyone needs, or the rows cannot be read.
pub fn grant<R: Read>(
    query: Query<'_, R>,
    who: &Who,
    scopes: &[&str],
) -> Result<Vec<Granted>, RegistryError> {
    let scopes: Vec<&str> = scopes.iter().flat_map(|scope| scope.split_whitespace()).collect();
    if scopes.len() > SCOPES_MAX {
        let message = format!("at most {SCOPES_MAX} scopes");
        return Err(RegistryError::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", message));
    }
    let mut granted = Vec::new();
    for scope in scopes {
        // A name may stand behind a host and port.
        let parts = scope.split_once(':').and_then(|(kind, rest)| {
            let (name, actions) = rest.rsplit_once(':')?;
            Some((kind, name, actions))
        });
        let Some((kind, name, wanted)) = parts else { continue };
        let wanted = |word: &str| wanted.split(',').any(|one| one == word || one == "*");
        let mut actions = Vec::new();
        if let ("repository", Ok(repository)) = (kind, name.parse::<RepositoryName>()) {
            let decided = |action| permission(query, who, action, What::Repository(&repository));
            // The push makes the project, and goes on by looking for what it has pushed.
            let makes = decided(Action::Push)? == Decision::Allowed(Ground::NewProject);
            for action in [Action::Pull, Action::Push, Action::Delete] {
                let allowed = decided(action)?.is_allowed() || (makes && action == Action::Pull);
                if wanted(word(action)) && allowed {
                    actions.push(word(action).to_owned());
                }
            }
        } else if (kind, name) == CATALOGUE {
            actions.push("*".to_owned());
        } else {
            continue;
        }
        granted.push(Granted { kind: kind.to_owned(), name: name.to_owned(), actions });
    }
    Ok(granted)
}
