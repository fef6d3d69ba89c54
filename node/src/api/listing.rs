//! Lists of images, as pages: filtered, searched and sorted.
//!
//! Invariant: what somebody may not see is in no page and in no count; the work of one list is
//! bounded by [`IMAGES_LISTED_MAX`] rows.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use axum::Json;
use schemars::JsonSchema;
use serde::Deserialize;
use shoal_api::{Image, Page, Pagination};
use shoal_content::{Labels, RepositoryName};
use shoal_metadata::{self as metadata, Action, Fault, ImageKind, Read, Visible, What};

use super::caller::Caller;
use super::input::{Query, count, flag};
use super::shown::{self, OfProject};
use crate::http::problem::Problem;

const PAGE_SIZE_DEFAULT: u64 = 20;
pub const PAGE_SIZE_MAX: u64 = 500;
/// Rows that one scan of the list takes.
const SCAN_ROWS: usize = 1000;
/// Images that a list looks at; what comes after is not shown.
const IMAGES_LISTED_MAX: usize = 200_000;

/// Which part of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    page: u64,
    page_size: u64,
}

impl Window {
    pub fn new(page: Option<u64>, page_size: Option<u64>) -> Self {
        let page_size = page_size.unwrap_or(PAGE_SIZE_DEFAULT).clamp(1, PAGE_SIZE_MAX);
        Self { page: page.unwrap_or(1).max(1), page_size }
    }

    /// What of `all` is in it, and where that is.
    pub fn of<T>(self, all: Vec<T>) -> (Vec<T>, Pagination) {
        let Self { page, page_size } = self;
        let total_count = all.len() as u64;
        let skip = (page - 1).saturating_mul(page_size).min(total_count) as usize;
        let shown = all.into_iter().skip(skip).take(page_size as usize).collect();
        let total_pages = total_count.div_ceil(page_size);
        (shown, Pagination { page, page_size, total_pages, total_count })
    }
}

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
        })
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
    let mut found =
        if filter.deleted { deleted(caller, filter)? } else { present(caller, filter)? };
    sorted(query, &mut found, order)?;
    let (rows, pagination) = window.of(found);
    let data =
        rows.iter().map(|row| shown::image(query, row)).collect::<Result<Vec<_>, Fault>>()?;
    Ok(Page { data, pagination })
}

/// By name.
fn present(caller: &Caller, filter: &Filter) -> Result<Vec<metadata::Image>, Problem> {
    let query = caller.view.query();
    let mut visible = Visible::new(query, caller.who())?;
    let mut found = Vec::new();
    let mut after: Option<RepositoryName> = None;
    let mut seen = 0;
    loop {
        let rows = query.images(after.as_ref(), SCAN_ROWS)?;
        let last = rows.len() < SCAN_ROWS;
        seen += rows.len();
        after = rows.last().map(|image| image.name.clone());
        for image in rows {
            if filter.takes_row(&image)
                && visible.shows(&image.name)?
                && filter.takes_rest(query, &image)?
            {
                found.push(image);
            }
        }
        if last || seen >= IMAGES_LISTED_MAX {
            return Ok(found);
        }
    }
}

/// Those that the asker may restore, by name.
fn deleted(caller: &Caller, filter: &Filter) -> Result<Vec<metadata::Image>, Problem> {
    let query = caller.view.query();
    let mut found = Vec::new();
    let mut after: Option<(RepositoryName, shoal_content::ImageId)> = None;
    let mut seen = 0;
    loop {
        let rows = query.deleted_images(after.as_ref().map(|(name, id)| (name, *id)), SCAN_ROWS)?;
        let last = rows.len() < SCAN_ROWS;
        seen += rows.len();
        after = rows.last().map(|(image, _)| (image.name.clone(), image.id));
        for (image, _) in rows {
            let project = image.name.project();
            let may = || caller.permit(Action::Delete, What::Project(&project)).is_ok();
            if filter.takes_row(&image) && may() && filter.takes_rest(query, &image)? {
                found.push(image);
            }
        }
        if last || seen >= IMAGES_LISTED_MAX {
            return Ok(found);
        }
    }
}

/// Equal ones by name, whichever way the others go: so a page has the same ones each time.
fn sorted<R: Read>(
    query: metadata::Query<'_, R>,
    found: &mut Vec<metadata::Image>,
    (key, descending): (SortKey, bool),
) -> Result<(), Fault> {
    let mut keyed = Vec::with_capacity(found.len());
    for image in found.drain(..) {
        keyed.push((weight(query, &image, key)?, image));
    }
    let directed = |order: Ordering| if descending { order.reverse() } else { order };
    keyed.sort_by(|(weight, image), (other_weight, other)| match key {
        SortKey::Name => directed(image.name.cmp(&other.name)),
        _ => directed(weight.cmp(other_weight)).then_with(|| image.name.cmp(&other.name)),
    });
    found.extend(keyed.into_iter().map(|(_, image)| image));
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

    #[test]
    fn a_window_past_the_end_is_empty_and_counts_all() {
        let (rows, pagination) = Window::new(Some(2), Some(2)).of(vec![1, 2, 3]);
        assert_eq!((rows, pagination.total_pages, pagination.total_count), (vec![3], 2, 3));
        let (rows, pagination) = Window::new(Some(u64::MAX), None).of(vec![1, 2, 3]);
        assert!(rows.is_empty() && pagination.total_count == 3);
        let (rows, pagination) = Window::new(Some(0), Some(0)).of(vec![1, 2]);
        assert_eq!((rows, pagination.page, pagination.page_size), (vec![1], 1, 1));
    }
}
