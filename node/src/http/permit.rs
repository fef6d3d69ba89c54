//! Asks the metadata for permission, and answers with a problem where it is refused.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use shoal_content::{ImageId, ProjectName};
use shoal_metadata::{Action, Decision, Denial, Fault, Image, Place, What, Who, permission};
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

/// Which images somebody is shown in lists. Projects decide for most of their images at once, so
/// that a list of many costs little more than the list.
#[derive(Debug)]
pub struct Visible<'a> {
    view: &'a View,
    who: Who,
    /// Images that the asker was granted something for itself.
    granted: BTreeSet<ImageId>,
    /// The project that was looked at last, and whether it is open to the asker.
    project: Option<(ProjectName, bool)>,
}

impl<'a> Visible<'a> {
    /// # Errors
    /// Where the rows cannot be read.
    pub fn new(view: &'a View, who: Who) -> Result<Self, Fault> {
        let query = view.query();
        let mut granted = BTreeSet::new();
        if let Who::User { name, .. } = &who {
            for grantee in query.grantees_of(name)? {
                granted.extend(query.places_of(&grantee)?.into_iter().filter_map(
                    |place| match place {
                        Place::Image(id) => Some(id),
                        _ => None,
                    },
                ));
            }
        }
        Ok(Self { view, who, granted, project: None })
    }

    /// # Errors
    /// Where the rows cannot be read.
    pub fn shows(&mut self, image: &Image) -> Result<bool, Fault> {
        let name = image.name.project();
        // A robot may be held to some repositories of its project.
        if matches!(&self.who, Who::Robot(robot) if robot.project == name) {
            return self.may(What::Repository(&image.name));
        }
        let open = match &self.project {
            Some((known, open)) if *known == name => *open,
            _ => {
                let open = self.may(What::Project(&name))?;
                self.project = Some((name, open));
                open
            }
        };
        Ok(open || (self.granted.contains(&image.id) && self.may(What::Repository(&image.name))?))
    }

    fn may(&self, what: What<'_>) -> Result<bool, Fault> {
        permission(self.view.query(), &self.who, Action::List, what).map(Decision::is_allowed)
    }
}
