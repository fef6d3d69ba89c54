//! Lists of images, as pages: filtered, searched and sorted.
//!
//! The list by name of all that somebody may see costs what a page shows, and a look at the name of each
//! image before it; behind a name that is given, not even that. How many there are is counted beforehand
//! (see [`Visible::count`]). Any other list looks at one row after another, and holds no more of them than
//! up to the page's end, each by its id.
//!
//! Invariant: what somebody may not see is in no page and in no count; the work of one list is
//! bounded by [`IMAGES_LISTED_MAX`] rows.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use axum::Json;
use schemars::JsonSchema;
use serde::Deserialize;
use shoal_api::{Image, Page};
use shoal_content::{ImageId, Labels, RepositoryName};
use shoal_metadata::{self as metadata, Action, Fault, ImageKind, Read, Visible, What};

use super::caller::Caller;
use super::input::{Query, count, flag};
use super::shown::{self, OfProject};
use super::window::{PAGE_SIZE_MAX, Selection, Window};
use crate::http::problem::Problem;

/// Rows of deleted images that are held at once: each may have pages of text.
const SCAN_ROWS: usize = 100;
/// Images that a list looks at; what comes after is not shown.
const IMAGES_LISTED_MAX: u64 = 200_000;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListQuery {
    #[serde(deserialize_with = "count")]
    page: Option<u64>,
    #[serde(deserialize_with = "count")]
    page_size: Option<u64>,
    /// A part of the name.
    name: Option<String>,
    /// A part of name, display name, description, a label or an annotation.
    q: Option<String>,
    /// `disk` or `container`.
    kind: Option<String>,
    #[serde(rename = "type", alias = "image_type")]
    image_type: Option<String>,
    os_type: Option<String>,
    architecture: Option<String>,
    format: Option<String>,
    visibility: Option<String>,
    status: Option<String>,
    #[serde(alias = "owner_id")]
    owner: Option<String>,
    /// Of the project.
    #[serde(alias = "organization_id")]
    organization: Option<String>,
    /// `KEY=VALUE,…`: all of them.
    #[serde(alias = "label")]
    labels: Option<String>,
    /// `KEY=VALUE,…`: all of them.
    #[serde(alias = "annotation")]
    annotations: Option<String>,
    /// Those that were deleted and can be restored, in place of those that are there.
    #[serde(deserialize_with = "flag")]
    deleted: Option<bool>,
    /// Only what the asker has starred.
    #[serde(deserialize_with = "flag")]
    starred: Option<bool>,
    /// The last name of the page before: only names that come behind it. The counts are of all.
    after: Option<RepositoryName>,
    /// A key of [`SortKey`], with `:desc` after it or `-` before it for descending.
    sort: Option<String>,
}

impl ListQuery {
    /// A page of what has `part` in its name.
    pub(super) fn named(part: String, page: Option<u64>, page_size: Option<u64>) -> Self {
        Self { page, page_size, name: Some(part), ..Self::default() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SortKey {
    Name,
    CreatedAt,
    UpdatedAt,
    Downloads,
    Stars,
    Size,
}

fn sort_of(text: &str) -> Result<(SortKey, bool), Problem> {
    let (text, minus) = text.strip_prefix('-').map_or((text, false), |rest| (rest, true));
    let (key, descending) = match text.split_once(':') {
        Some(_) if minus => ("", false),
        Some((key, way)) if way.eq_ignore_ascii_case("desc") => (key, true),
        Some((key, way)) if way.eq_ignore_ascii_case("asc") => (key, false),
        Some(_) => ("", false),
        None => (text, false),
    };
    let key = match key {
        "name" => SortKey::Name,
        "created_at" => SortKey::CreatedAt,
        "updated_at" => SortKey::UpdatedAt,
        "download_count" => SortKey::Downloads,
        "star_count" => SortKey::Stars,
        "total_size_bytes" | "size" => SortKey::Size,
        _ => {
            let text = "sort is name, created_at, updated_at, download_count, star_count or \
                        total_size_bytes, with ':desc' after it (or '-' before it) for descending";
            return Err(Problem::bad_request("sort_invalid", text));
        }
    };
    Ok((key, minus || descending))
}

fn kind_of(text: &str) -> Result<ImageKind, Problem> {
    match text {
        "disk" => Ok(ImageKind::Disk),
        "container" => Ok(ImageKind::Container),
        _ => Err(Problem::bad_request("kind_invalid", "kind is disk or container")),
    }
}

fn pairs(text: Option<String>, what: &'static str) -> Result<Labels, Problem> {
    let parsed = text.unwrap_or_default().parse::<Labels>();
    parsed.map_err(|error| Problem::bad_request(what, error.to_string()))
}

type ProfileField = fn(&metadata::ImageProfile) -> &String;

/// What is wanted, taken apart.
struct Filter {
    name: Option<String>,
    /// In lower case.
    q: Option<String>,
    kind: Option<ImageKind>,
    /// Fields of the profile, and what they are to be.
    fields: Vec<(ProfileField, String)>,
    visibility: Option<String>,
    status: Option<String>,
    owner: Option<String>,
    organization: Option<String>,
    labels: Labels,
    annotations: Labels,
    deleted: bool,
    starred_by: Option<String>,
    after: Option<RepositoryName>,
}

impl Filter {
    /// `person` is who asks, where that matters.
    fn new(
        wanted: ListQuery,
        person: impl FnOnce() -> Result<String, Problem>,
    ) -> Result<Self, Problem> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let mut fields: Vec<(ProfileField, String)> = Vec::new();
        let mut field = |text: Option<String>, of: fn(&metadata::ImageProfile) -> &String| {
            fields.extend(given(text).map(|text| (of, text)));
        };
        field(wanted.image_type, |profile| &profile.image_type);
        field(wanted.os_type, |profile| &profile.os_type);
        field(wanted.architecture, |profile| &profile.architecture);
        field(wanted.format, |profile| &profile.format);
        let starred_by = match wanted.starred {
            Some(true) => Some(person()?),
            _ => None,
        };
        Ok(Self {
            name: given(wanted.name),
            q: given(wanted.q).map(|text| text.to_lowercase()),
            kind: given(wanted.kind).map(|text| kind_of(&text)).transpose()?,
            fields,
            visibility: given(wanted.visibility),
            status: given(wanted.status),
            owner: given(wanted.owner),
            organization: given(wanted.organization),
            labels: pairs(wanted.labels, "labels_invalid")?,
            annotations: pairs(wanted.annotations, "annotations_invalid")?,
            deleted: wanted.deleted.unwrap_or(false),
            starred_by,
            after: wanted.after,
        })
    }

    /// Whether it takes all that is there.
    fn takes_all(&self) -> bool {
        let Self {
            name,
            q,
            kind,
            fields,
            visibility,
            status,
            owner,
            organization,
            labels,
            annotations,
            deleted,
            starred_by,
            after: _,
        } = self;
        let texts = [name, q, visibility, status, owner, organization, starred_by];
        texts.into_iter().all(Option::is_none)
            && kind.is_none()
            && fields.is_empty()
            && [labels, annotations].into_iter().all(|pairs| *pairs == Labels::default())
            && !deleted
    }

    /// What the row alone says.
    fn takes_row(&self, image: &metadata::Image) -> bool {
        self.name.as_ref().is_none_or(|part| image.name.as_str().contains(part.as_str()))
            && self.kind.is_none_or(|kind| image.kind == kind)
            && self.fields.iter().all(|(of, wanted)| of(&image.profile) == wanted)
            && self.owner.as_ref().is_none_or(|owner| image.owner == *owner)
            && self.labels.iter().all(|(key, value)| image.profile.labels.get(key) == Some(value))
            && self
                .status
                .as_ref()
                .is_none_or(|wanted| shown::status(image, self.deleted) == wanted)
    }

    /// What other rows say; asked last.
    fn takes_rest<R: Read>(
        &self,
        query: metadata::Query<'_, R>,
        image: &metadata::Image,
    ) -> Result<bool, Fault> {
        if self.visibility.is_some() || self.organization.is_some() {
            let OfProject { visibility, organization } = shown::of_project(query, image)?;
            let visible = self.visibility.as_ref().is_none_or(|wanted| visibility == wanted);
            let owned =
                |wanted: &String| organization.as_ref().is_some_and(|it| it.as_str() == wanted);
            if !visible || !self.organization.as_ref().is_none_or(owned) {
                return Ok(false);
            }
        }
        if let Some(user) = &self.starred_by
            && !query.is_starred(image.id, user)?
        {
            return Ok(false);
        }
        if self.annotations == Labels::default() && self.q.is_none() {
            return Ok(true);
        }
        let annotations = query.image_note(image.id)?.annotations;
        let has = |(key, value): (&str, &str)| annotations.get(key).is_some_and(|is| is == value);
        Ok(self.annotations.iter().all(has) && self.finds(image, &annotations))
    }

    fn finds(&self, image: &metadata::Image, annotations: &BTreeMap<String, String>) -> bool {
        let Some(wanted) = &self.q else { return true };
        let has = |text: &str| text.to_lowercase().contains(wanted.as_str());
        let profile = &image.profile;
        has(image.name.as_str())
            || [&profile.display_name, &profile.description].into_iter().any(|text| has(text))
            || profile.labels.iter().any(|(key, value)| has(key) || has(value))
            || annotations.iter().any(|(key, value)| has(key) || has(value))
    }
}

/// What `fuzz` asks of it: no page is longer than it may be, and what is wanted was said.
pub fn check_filters(text: &str) {
    let Ok(uri) = format!("/?{text}").parse() else { return };
    let wanted = axum::extract::Query::<ListQuery>::try_from_uri(&uri);
    let Ok(axum::extract::Query(wanted)) = wanted else { return };
    let all = vec![(); 2 * PAGE_SIZE_MAX as usize];
    let (shown, at) = Window::new(wanted.page, wanted.page_size).of(all);
    assert!(shown.len() as u64 <= at.page_size && at.page_size <= PAGE_SIZE_MAX, "{at:?}");
    if let Some(sort) = &wanted.sort
        && let Ok((_, descending)) = sort_of(sort)
    {
        let ends = sort.to_ascii_lowercase().ends_with(":desc");
        assert_eq!(descending, sort.starts_with('-') || ends, "{sort}");
    }
    if let Ok(filter) = Filter::new(wanted, || Ok("alice".to_owned())) {
        let pairs = filter.labels.iter().chain(filter.annotations.iter());
        let longest = pairs.map(|(key, value)| key.len() + value.len()).max();
        // What is escaped there is longer, but for what is no UTF-8.
        assert!(longest.unwrap_or(0) <= 3 * text.len());
    }
}

/// `GET /api/v1/images`.
pub async fn list(
    caller: Caller,
    Query(wanted): Query<ListQuery>,
) -> Result<Json<Page<Image>>, Problem> {
    let window = Window::new(wanted.page, wanted.page_size);
    let sort = wanted.sort.as_deref().filter(|text| !text.is_empty());
    let order = sort_of(sort.unwrap_or("name"))?;
    let filter = Filter::new(wanted, || Ok(caller.person()?.to_owned()))?;
    // All there is may be looked at, and nobody else is to wait for that.
    let page = move || page_of(&caller, &filter, window, order);
    let page = tokio::task::spawn_blocking(page).await;
    Ok(Json(page.map_err(|error| Problem::internal(&error))??))
}

fn page_of(
    caller: &Caller,
    filter: &Filter,
    window: Window,
    order: (SortKey, bool),
) -> Result<Page<Image>, Problem> {
    let query = caller.view.query();
    if order == (SortKey::Name, false) && filter.takes_all() {
        return page_by_name(caller, filter.after.as_ref(), window);
    }
    let mut selection = Selection::new(window);
    match filter.deleted {
        true => select_deleted(caller, filter, order, &mut selection)?,
        false => select_present(caller, filter, order, &mut selection)?,
    }
    let (ids, pagination) = selection.finish();
    let mut data = Vec::with_capacity(ids.len());
    for id in ids {
        let row =
            query.image(id)?.ok_or(Fault::Contradiction("an image just seen is not there"))?;
        data.push(shown::image(query, &row)?);
    }
    Ok(Page { data, pagination })
}

/// All that the asker may see, by name.
fn page_by_name(
    caller: &Caller,
    after: Option<&RepositoryName>,
    window: Window,
) -> Result<Page<Image>, Problem> {
    let query = caller.view.query();
    let mut visible = Visible::new(query, caller.who())?;
    let total = match visible.count()? {
        Some(total) => total,
        None => counted(&mut visible)?,
    };
    let (mut skip, mut names) = (window.skipped(), Vec::new());
    if skip < total.min(IMAGES_LISTED_MAX) {
        visible.walk(after.map(RepositoryName::as_str), |name| {
            match skip.checked_sub(1) {
                Some(left) => skip = left,
                None => names.push(name),
            }
            Ok::<_, Fault>(match names.len() == window.size() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })?;
    }
    let mut data = Vec::with_capacity(names.len());
    for name in names {
        let row = query.image_by_name(&name)?;
        let row = row.ok_or(Fault::Contradiction("an image just seen is not there"))?;
        data.push(shown::image(query, &row)?);
    }
    Ok(Page { data, pagination: window.among(total) })
}

/// In a cluster that does not keep the count yet.
fn counted<R: Read>(visible: &mut Visible<'_, R>) -> Result<u64, Fault> {
    let mut count = 0;
    visible.walk(None, |_| {
        count += 1;
        Ok::<_, Fault>(match count == IMAGES_LISTED_MAX {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    })?;
    Ok(count)
}

fn select_present(
    caller: &Caller,
    filter: &Filter,
    order: (SortKey, bool),
    selection: &mut Selection<ImageId>,
) -> Result<(), Problem> {
    let query = caller.view.query();
    let mut seen = 0;
    Visible::new(query, caller.who())?.walk(None, |name| -> Result<_, Problem> {
        if let Some(image) = query.image_by_name(&name)?
            && filter.takes_row(&image)
            && filter.takes_rest(query, &image)?
        {
            select(query, filter, order, &image, selection)?;
        }
        seen += 1;
        Ok(match seen == IMAGES_LISTED_MAX {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    })
}

/// Those that the asker may restore.
fn select_deleted(
    caller: &Caller,
    filter: &Filter,
    order: (SortKey, bool),
    selection: &mut Selection<ImageId>,
) -> Result<(), Problem> {
    let query = caller.view.query();
    let mut after: Option<(RepositoryName, ImageId)> = None;
    let mut seen = 0;
    loop {
        let rows = query.deleted_images(after.as_ref().map(|(name, id)| (name, *id)), SCAN_ROWS)?;
        let last = rows.len() < SCAN_ROWS;
        seen += rows.len() as u64;
        after = rows.last().map(|(image, _)| (image.name.clone(), image.id));
        for (image, _) in rows {
            let project = image.name.project();
            let may = || caller.permit(Action::Delete, What::Project(&project)).is_ok();
            if filter.takes_row(&image) && may() && filter.takes_rest(query, &image)? {
                select(query, filter, order, &image, selection)?;
            }
        }
        if last || seen >= IMAGES_LISTED_MAX {
            return Ok(());
        }
    }
}

/// One after another, by name: equal ones stay so, whichever way the others go, and a page has the same
/// ones each time.
fn select<R: Read>(
    query: metadata::Query<'_, R>,
    filter: &Filter,
    (key, descending): (SortKey, bool),
    image: &metadata::Image,
    selection: &mut Selection<ImageId>,
) -> Result<(), Fault> {
    if filter.after.as_ref().is_some_and(|after| image.name <= *after) {
        selection.pass();
        return Ok(());
    }
    let weight = match key {
        SortKey::Name => selection.count(),
        _ => weight(query, image, key)?,
    };
    selection.offer(if descending { u64::MAX - weight } else { weight }, image.id);
    Ok(())
}

/// What images are sorted by, where that is not their name.
fn weight<R: Read>(
    query: metadata::Query<'_, R>,
    image: &metadata::Image,
    key: SortKey,
) -> Result<u64, Fault> {
    Ok(match (key, &image.latest) {
        (SortKey::Name, _) => 0,
        (SortKey::CreatedAt, _) => image.created_at.as_millis(),
        (SortKey::UpdatedAt, _) => image.updated_at.as_millis(),
        (SortKey::Downloads, _) => query.counters(image.id)?.downloads,
        (SortKey::Stars, _) => query.counters(image.id)?.stars,
        (SortKey::Size, Some(latest)) => match query.version(image.id, latest)? {
            Some(latest) => shown::size(query, &latest)?,
            None => 0,
        },
        (SortKey::Size, None) => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_descending_are_read() {
        for (text, wanted) in [
            ("name", (SortKey::Name, false)),
            ("created_at:desc", (SortKey::CreatedAt, true)),
            ("created_at:asc", (SortKey::CreatedAt, false)),
            ("-updated_at", (SortKey::UpdatedAt, true)),
            ("download_count:desc", (SortKey::Downloads, true)),
            ("star_count:DESC", (SortKey::Stars, true)),
        ] {
            assert_eq!(sort_of(text).unwrap(), wanted, "{text}");
        }
        for text in ["", "size:up", "id", "name:", "created_at:desc:desc"] {
            assert!(sort_of(text).is_err(), "{text}");
        }
    }
}
