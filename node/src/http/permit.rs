//! Asks the metadata for permission, and answers with a problem where it is refused.

use axum::http::StatusCode;
use shoal_metadata::{Action, Decision, Denial, What, Who, permission};
use shoal_raft::View;

use super::problem::Problem;

/// # Errors
/// 401 for nobody, 403 for somebody who may know that it is there, 404 for everyone else.
pub fn permit(view: &View, who: &Who, action: Action, what: What<'_>) -> Result<(), Problem> {
    match permission(view.query(), who, action, what)? {
        Decision::Allowed(_) => Ok(()),
        Decision::Refused(denial) => Err(problem(denial, what)),
    }
}

fn problem(denial: Denial, what: What<'_>) -> Problem {
    match denial {
        Denial::Unauthenticated => Problem::unauthorized(),
        Denial::Hidden => {
            let (code, text) = match what {
                What::Repository(name) => ("image_not_found", format!("there is no image {name}")),
                What::Project(name) => ("project_not_found", format!("there is no project {name}")),
                What::Organization(name) => {
                    ("organization_not_found", format!("there is no organization {name}"))
                }
                What::System => ("not_found", "there is no such thing".to_owned()),
            };
            Problem::new(StatusCode::NOT_FOUND, code, text)
        }
        Denial::Scope(_) | Denial::Role | Denial::Administrator => {
            Problem::forbidden(denial.to_string())
        }
    }
}
