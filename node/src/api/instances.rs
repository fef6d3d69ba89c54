//! Instances: whoever runs virtual machines says which version each runs, so that none is taken
//! away from under one.
//!
//! Registering needs more than that an image is public: it keeps its owner from removing it. Whoever
//! administers the image may end a registration, too.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use shoal_api::{Instance, Page, Pagination, RegisterInstance};
use shoal_content::{ImageId, InstanceName, RepositoryName, Timestamp};
use shoal_metadata::{
    self as metadata, Action, Command, Decision, Fault, Ground, Refusal, Scope, Subject, What,
    permission,
};
use shoal_raft::ProposeError;

use super::caller::Caller;
use super::images::{existing, no_image};
use super::input::{Body, Path, Query, count};
use super::part::{Linked, PartQuery};
use super::problem::{conflict, missing};
use super::shown;
use super::versions::{no_version, numbered, version};
use super::window::{Selection, Window};
use crate::http::problem::Problem;
use crate::state::App;

/// Instances that a list with numbered pages looks at, and a part for one that the asker may know of; what
/// comes after is not shown.
const INSTANCES_LISTED_MAX: usize = 200_000;
/// Instances that a part looks at for those that it shows.
const PART_LOOKS_MAX: usize = 10_000;
const SCAN_ROWS: usize = 1000;

fn no_instance(name: &InstanceName) -> Problem {
    missing("instance_not_found", format!("there is no instance {name}"))
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListQuery {
    #[serde(deserialize_with = "count")]
    page: Option<u64>,
    #[serde(deserialize_with = "count")]
    page_size: Option<u64>,
    /// Ids that come behind it; the links have it. There is no `page` then.
    after: String,
    /// At most so many, and never more than 1000; in place of `page_size`.
    #[serde(deserialize_with = "count")]
    limit: Option<u64>,
    image_id: Option<ImageId>,
    image: Option<RepositoryName>,
    /// By id, digest, number or tag; of the image that is given.
    version: Option<String>,
    /// Of the version: `active` or `deprecated`.
    version_status: Option<String>,
    registered_by: Option<String>,
}

impl ListQuery {
    /// What part is wanted, where it is not a page by its number.
    fn part(&self) -> Option<PartQuery> {
        let limit = self.limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let wanted = PartQuery { after: self.after.clone(), limit };
        (!wanted.after.is_empty() || wanted.limit.is_some()).then_some(wanted)
    }

    fn filters(&self) -> Vec<(&'static str, String)> {
        let filters = [
            ("image_id", self.image_id.map(|id| id.to_string())),
            ("image", self.image.as_ref().map(ToString::to_string)),
            ("version", self.version.clone()),
            ("version_status", self.version_status.clone()),
            ("registered_by", self.registered_by.clone()),
        ];
        filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// `GET /api/v1/instances`: by name, of the images that the asker may see.
pub async fn list(
    caller: Caller,
    Query(wanted): Query<ListQuery>,
) -> Result<Linked<Page<Instance>>, Problem> {
    let mut walk = Walk::new(&caller, &wanted)?;
    match wanted.part() {
        None => {
            let window = Window::new(wanted.page, wanted.page_size);
            let (rows, pagination) = walk.page(window)?;
            Ok(Linked::last(Page { data: shown_all(&caller, rows)?, pagination }))
        }
        Some(part) => {
            let (rows, next) = walk.part(&part)?;
            let data = shown_all(&caller, rows)?;
            let count = data.len() as u64;
            // It is not known how many there are besides.
            let pagination = Pagination {
                page: 1,
                page_size: part.limit() as u64,
                total_pages: count.min(1),
                total_count: count,
            };
            let page = Page { data, pagination };
            Ok(Linked::filtered("/api/v1/instances", &part, &wanted.filters(), page, next))
        }
    }
}

fn shown_all(caller: &Caller, rows: Vec<metadata::Instance>) -> Result<Vec<Instance>, Problem> {
    let query = caller.view.query();
    let mut data = Vec::with_capacity(rows.len());
    for row in rows {
        data.extend(shown::instance(query, row)?);
    }
    Ok(data)
}

/// Goes along the instances by name, and takes those that are asked for.
struct Walk<'a> {
    caller: &'a Caller,
    wanted: &'a ListQuery,
    /// Those of one image or version, in order; without it, all.
    names: Option<Vec<InstanceName>>,
    /// Whether the asker may see an image.
    open: BTreeMap<ImageId, bool>,
}

impl<'a> Walk<'a> {
    fn new(caller: &'a Caller, wanted: &'a ListQuery) -> Result<Self, Problem> {
        let query = caller.view.query();
        let image = match (wanted.image_id, &wanted.image) {
            (Some(id), _) => Some(existing(caller, id, Action::List)?),
            (None, Some(name)) => Some(named(caller, name, Action::List)?),
            (None, None) => None,
        };
        let mut names = match (&image, &wanted.version) {
            (Some(image), Some(wanted)) => {
                let row = version(query, image.id, wanted)?.ok_or_else(|| no_version(wanted))?;
                Some(query.instances_of(image.id, &row.digest, INSTANCES_LISTED_MAX)?)
            }
            (Some(image), None) => Some(query.instances_of_image(image.id, INSTANCES_LISTED_MAX)?),
            (None, Some(_)) => {
                let text = "a version is of an image: image or image_id says of which";
                return Err(Problem::bad_request("image_missing", text));
            }
            (None, None) => None,
        };
        if let Some(names) = &mut names {
            names.sort_unstable();
        }
        Ok(Self { caller, wanted, names, open: BTreeMap::new() })
    }

    /// The next rows behind `after`, at most so many; none at the end.
    fn behind(&self, after: &str, rows_max: usize) -> Result<Vec<metadata::Instance>, Problem> {
        let query = self.caller.view.query();
        let Some(names) = &self.names else { return Ok(query.instances(after, rows_max)?) };
        let passed = names.partition_point(|name| name.as_str() <= after);
        let rows = names.iter().skip(passed).take(rows_max).map(|name| query.instance(name));
        Ok(rows.collect::<Result<Vec<_>, Fault>>()?.into_iter().flatten().collect())
    }

    /// Whether the asker may know of it.
    fn is_open(&mut self, row: &metadata::Instance) -> bool {
        let caller = self.caller;
        let open = || existing(caller, row.image, Action::List).is_ok();
        self.names.is_some() || *self.open.entry(row.image).or_insert_with(open)
    }

    fn is_wanted(&self, row: &metadata::Instance) -> Result<bool, Problem> {
        if self.wanted.registered_by.as_ref().is_some_and(|owner| row.owner != *owner) {
            return Ok(false);
        }
        let Some(status) = &self.wanted.version_status else { return Ok(true) };
        let note = self.caller.view.query().version_note(row.image, &row.digest)?;
        Ok(shown::version_status(&note) == *status)
    }

    /// A page by its number, for which all are counted. Of their rows no more are held than come up to
    /// its end.
    fn page(&mut self, window: Window) -> Result<(Vec<metadata::Instance>, Pagination), Problem> {
        let mut selection = Selection::new(window);
        let (mut after, mut looked) = (String::new(), 0);
        while looked < INSTANCES_LISTED_MAX {
            let rows = self.behind(&after, SCAN_ROWS)?;
            let Some(last) = rows.last() else { break };
            after = last.name.to_string();
            looked += rows.len();
            for row in rows {
                if self.is_open(&row) && self.is_wanted(&row)? {
                    selection.offer(0, row);
                }
            }
        }
        Ok(selection.finish())
    }

    /// Those behind a name, and the name that the next part begins behind: of one that the asker may know
    /// of. Where few are wanted, the part may be short.
    fn part(
        &mut self,
        wanted: &PartQuery,
    ) -> Result<(Vec<metadata::Instance>, Option<String>), Problem> {
        let (mut found, mut known) = (Vec::new(), None);
        let (mut after, mut looked) = (wanted.after.clone(), 0);
        let mut rows_max = wanted.limit() + 1;
        while looked < PART_LOOKS_MAX || (known.is_none() && looked < INSTANCES_LISTED_MAX) {
            let rows = self.behind(&after, rows_max)?;
            let Some(last) = rows.last() else { return Ok((found, None)) };
            // Few are enough where most are wanted.
            rows_max = (rows_max * 2).min(SCAN_ROWS + 1);
            after = last.name.to_string();
            looked += rows.len();
            for row in rows {
                if !self.is_open(&row) {
                    continue;
                }
                known = Some(row.name.to_string());
                if self.is_wanted(&row)? {
                    found.push(row);
                }
                if found.len() > wanted.limit() {
                    let next = wanted.cut(&mut found, |row| row.name.to_string());
                    return Ok((found, next));
                }
            }
        }
        Ok((found, known))
    }
}

fn named(
    caller: &Caller,
    name: &RepositoryName,
    action: Action,
) -> Result<metadata::Image, Problem> {
    caller.permit(action, What::Repository(name))?;
    caller.view.query().image_by_name(name)?.ok_or_else(|| no_image(name))
}

/// `GET /api/v1/instances/{id}`.
pub async fn show(
    caller: Caller,
    Path(name): Path<InstanceName>,
) -> Result<Json<Instance>, Problem> {
    let row = seen(&caller, &name)?;
    let shown = shown::instance(caller.view.query(), row)?;
    Ok(Json(shown.ok_or_else(|| no_instance(&name))?))
}

fn seen(caller: &Caller, name: &InstanceName) -> Result<metadata::Instance, Problem> {
    let row = caller.view.query().instance(name)?.ok_or_else(|| no_instance(name))?;
    existing(caller, row.image, Action::List).map_err(|_| no_instance(name))?;
    Ok(row)
}

/// `POST /api/v1/instances`.
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Body(request): Body<RegisterInstance>,
) -> Result<(StatusCode, Json<Instance>), Problem> {
    let Some(name) = request.id.clone() else {
        return Err(Problem::bad_request("id_missing", "id says what the instance is called"));
    };
    let shown = register(&app, caller, name, request, false).await?;
    Ok((StatusCode::CREATED, shown))
}

/// `PUT /api/v1/instances/{id}`: also for one that runs something else from now on.
pub async fn put(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<InstanceName>,
    Body(request): Body<RegisterInstance>,
) -> Result<Json<Instance>, Problem> {
    if let Some(other) = request.id.as_ref().filter(|id| **id != name) {
        let text = format!("the path says {name}, and id {other}");
        return Err(Problem::bad_request("id_mismatch", text));
    }
    if let Some(row) = caller.view.query().instance(&name)? {
        check_own(&caller, &row)?;
    }
    register(&app, caller, name, request, true).await
}

/// Whoever registered it, or administers the image that it runs.
fn check_own(caller: &Caller, row: &metadata::Instance) -> Result<(), Problem> {
    let hidden = |_| no_instance(&row.name);
    let image = existing(caller, row.image, Action::List).map_err(hidden)?;
    caller.account()?;
    if caller.has_made(&row.owner, row.updated_at)? {
        return caller.scope(Scope::Write);
    }
    caller
        .permit(Action::Manage, What::Repository(&image.name))
        .map_err(|_| Problem::forbidden("the instance was registered by somebody else"))
}

async fn register(
    app: &App,
    caller: Caller,
    name: InstanceName,
    request: RegisterInstance,
    replace: bool,
) -> Result<Json<Instance>, Problem> {
    let owner = caller.account()?;
    caller.scope(Scope::Write)?;
    let image = match (request.image_id, &request.image) {
        (Some(id), _) => existing(&caller, id, Action::Pull)?,
        (None, Some(name)) => named(&caller, name, Action::Pull)?,
        (None, None) => {
            let text = "image_id or image says which image it runs";
            return Err(Problem::bad_request("image_missing", text));
        }
    };
    let what = What::Repository(&image.name);
    let decision = permission(caller.view.query(), &caller.who(), Action::Pull, what)?;
    if decision == Decision::Allowed(Ground::Public) {
        let text = "that an image is public is not enough to keep it from being removed; its \
                    project's administrator can make you a guest of it";
        return Err(Problem::forbidden(text));
    }
    let row = chosen(&caller, &image, &request)?;
    drop(caller);
    let instance = metadata::Instance {
        name: name.clone(),
        image: image.id,
        version: row.id,
        digest: row.digest,
        tag: request.image_tag_used,
        owner,
        registered_at: Timestamp::default(),
        updated_at: Timestamp::default(),
    };
    let answer = app.propose(Command::RegisterInstance { instance, replace }).await;
    answer.map_err(|error| match error {
        ProposeError::Refused(Refusal::Exists(Subject::Instance)) => conflict(
            "instance_exists",
            format!("there is an instance {name} already; PUT says that it runs something else"),
        ),
        error => error.into(),
    })?;
    let view = app.view().await?;
    let row = view.query().instance(&name)?.ok_or_else(|| no_instance(&name))?;
    let shown = shown::instance(view.query(), row)?;
    Ok(Json(shown.ok_or_else(|| no_instance(&name))?))
}

/// The version that the request means; all that it says has to agree.
fn chosen(
    caller: &Caller,
    image: &metadata::Image,
    request: &RegisterInstance,
) -> Result<metadata::Version, Problem> {
    let query = caller.view.query();
    let by_tag = match &request.image_tag_used {
        Some(tag) => match query.tag(image.id, tag)? {
            Some(digest) => query.version(image.id, &digest)?,
            None => numbered(query, image.id, tag.as_str())?,
        },
        None => None,
    };
    let row = if let Some(id) = request.image_version_id {
        let row = query.version_by_id(id)?.filter(|row| row.image == image.id);
        row.ok_or_else(|| no_version(id))?
    } else if let Some(digest) = &request.image_digest {
        query.version(image.id, digest)?.ok_or_else(|| no_version(digest))?
    } else if let Some(tag) = &request.image_tag_used {
        let unknown = || missing("tag_not_found", format!("there is no {}:{tag}", image.name));
        by_tag.ok_or_else(unknown)?
    } else {
        let text = "image_version_id, image_digest or image_tag_used says which version it runs";
        return Err(Problem::bad_request("version_missing", text));
    };
    // A tag may have moved since it was looked up; a digest has not.
    if let Some(digest) = request.image_digest.as_ref().filter(|digest| **digest != row.digest) {
        let text = format!("version {} is {}, not {digest}", shown::number(&row), row.digest);
        return Err(conflict("version_mismatch", text));
    }
    Ok(row)
}

/// `DELETE /api/v1/instances/{id}`.
pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<InstanceName>,
) -> Result<StatusCode, Problem> {
    let row = seen(&caller, &name)?;
    check_own(&caller, &row)?;
    drop(caller);
    app.propose(Command::RemoveInstance { name }).await?;
    Ok(StatusCode::NO_CONTENT)
}
