//! Making, listing, showing, editing, deleting and restoring images.

use std::collections::BTreeMap;

use comfy_table::Cell;
use reqwest::Method;
use shoal_api::{CreateImage, Image, ImageDetail, Page, Resolution, UpdateImage};
use shoal_content::{ImageReference, Labels, RepositoryName, TagName};

use crate::arguments::{EditImage, ImageCommand, ListImages, NewImage, PAGE_SIZE_MAX, Visibility};
use crate::client::{Body, Client, Request, escaped, filter};
use crate::config::Config;
use crate::error::Error;
use crate::screen::{Screen, bytes, confirm, state, table};
use crate::upload::begun;
use crate::{copy, download, import, projects, scans, upload, versions};

/// More than a node looks at for one list; a list that never ends is a fault of the node.
const PAGES_MAX: u64 = 10_000;

async fn page(client: &Client, query: &str, page: u64, size: u64) -> Result<Page<Image>, Error> {
    client.get(format!("api/v1/images?page={page}&page_size={size}{query}")).await
}

pub async fn image(
    command: &ImageCommand,
    client: &Client,
    config: &Config,
    screen: Screen,
) -> Result<(), Error> {
    match command {
        ImageCommand::Upload(upload) => upload::upload(upload, client, config, screen).await,
        ImageCommand::Import(order) => import::import(order, client, screen).await,
        ImageCommand::UploadStatus { name, upload } => {
            begun::status(client, name, *upload, screen).await
        }
        ImageCommand::UploadAbort { name, upload, yes } => {
            begun::abort(client, name, *upload, *yes, screen).await
        }
        ImageCommand::Create(new) => create(new, client, screen).await,
        ImageCommand::List(wanted) => list(wanted, client, screen).await,
        ImageCommand::Show { name } => show(client, name, screen).await,
        ImageCommand::Resolve { reference } => {
            let found = resolve(client, reference).await?;
            screen.show(&found, || resolved(&found))
        }
        ImageCommand::Edit(edit) => self::edit(edit, client, screen).await,
        ImageCommand::Delete { name, purge, yes } => {
            delete(client, name, *purge, *yes, screen).await
        }
        ImageCommand::Restore { name } => restore(client, name, screen).await,
        ImageCommand::Download(download) => download::download(download, client, screen).await,
        ImageCommand::Copy(order) => copy::copy(order, client, config, screen).await,
        ImageCommand::Grants { name } => projects::grants(client, name, screen).await,
        ImageCommand::Grant { name, who, access } => {
            projects::grant(client, name, who, *access, screen).await
        }
        ImageCommand::Revoke { name, who } => projects::revoke(client, name, who, screen).await,
        ImageCommand::Star { name, remove } => star(client, name, !remove, screen).await,
        ImageCommand::Scan { reference, wait } => {
            scans::scan(client, reference, *wait, screen).await
        }
        ImageCommand::Vulnerabilities { reference, severity, fail_on } => {
            scans::vulnerabilities(client, reference, severity, *fail_on, screen).await
        }
        command => versions::version(command, client, screen).await,
    }
}

async fn all(client: &Client, query: &str) -> Result<Vec<Image>, Error> {
    let mut all = Vec::new();
    for number in 1..=PAGES_MAX {
        let page = page(client, query, number, PAGE_SIZE_MAX).await?;
        all.extend(page.data);
        if number >= page.pagination.total_pages {
            break;
        }
    }
    Ok(all)
}

async fn list(wanted: &ListImages, client: &Client, screen: Screen) -> Result<(), Error> {
    let filters = filters(wanted);
    if wanted.page.is_none() && wanted.page_size.is_none() {
        let all = all(client, &filters).await?;
        return screen.show(&all, || image_table(&all));
    }
    let size = wanted.page_size.unwrap_or(PAGE_SIZE_MAX);
    let page = page(client, &filters, wanted.page.unwrap_or(1), size).await?;
    screen.show(&page, || {
        let (rows, at) = (image_table(&page.data), &page.pagination);
        format!("{rows}\npage {} of {}, {} images", at.page, at.total_pages, at.total_count)
    })
}

/// Which images are wanted, in which order.
fn filters(wanted: &ListImages) -> String {
    let (labels, annotations) = (pairs(&wanted.labels), pairs(&wanted.annotations));
    let visibility = wanted.visibility.map(|one| one.as_str().to_owned());
    let sort = Some(wanted.sort.clone());
    let yes = |is_wanted: bool| is_wanted.then(|| "true".to_owned());
    let (deleted, starred) = (yes(wanted.deleted), yes(wanted.starred));
    filter([
        ("sort", &sort),
        ("q", &wanted.query),
        ("name", &wanted.name),
        ("kind", &wanted.kind),
        ("type", &wanted.image_type),
        ("os_type", &wanted.os_type),
        ("architecture", &wanted.architecture),
        ("format", &wanted.format),
        ("status", &wanted.status),
        ("owner", &wanted.owner),
        ("organization", &wanted.organization),
        ("visibility", &visibility),
        ("labels", &labels),
        ("annotations", &annotations),
        ("deleted", &deleted),
        ("starred", &starred),
    ])
}

/// All of them as one; the later counts where two have one key.
fn joined(given: &[Labels]) -> BTreeMap<String, String> {
    let all = given.iter().flat_map(|labels| labels.iter());
    all.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// As a list is asked for them.
fn pairs(given: &[Labels]) -> Option<String> {
    let all = joined(given).into_iter().map(|(key, value)| format!("{key}={value}"));
    let all: Vec<String> = all.collect();
    (!all.is_empty()).then(|| all.join(","))
}

fn image_table(images: &[Image]) -> String {
    let mut rows = table(&["NAME", "KIND", "STATUS", "LATEST", "SIZE", "TAGS", "UPDATED"]);
    for image in images {
        rows.add_row([
            Cell::new(&image.name),
            Cell::new(&image.kind),
            state(&image.status),
            Cell::new(image.latest_version.as_deref().unwrap_or("-")),
            Cell::new(bytes(image.total_size_bytes)),
            Cell::new(tag_list(&image.tags)),
            Cell::new(&image.updated_at),
        ]);
    }
    rows.to_string()
}

async fn create(new: &NewImage, client: &Client, screen: Screen) -> Result<(), Error> {
    let made: Image = client.call(Method::POST, "api/v1/images", &described(new)).await?;
    let name = &made.name;
    if let Some(wanted) = new.visibility.map(Visibility::as_str)
        && wanted != made.visibility
    {
        let (project, is) = (name.project(), &made.visibility);
        screen.remark(&format!(
            "The project {project} was there already, and is {is}; 'shoal project set {project} \
             --visibility {wanted}' changes that."
        ));
    }
    screen.show(&made, || {
        format!("Made {name} ({}); 'shoal image upload FILE {name}:TAG' fills it.", made.id)
    })
}

fn described(new: &NewImage) -> CreateImage {
    let said = new.profile.clone();
    CreateImage {
        name: new.name.clone(),
        display_name: said.display_name.unwrap_or_default(),
        description: said.description.unwrap_or_default(),
        image_type: said.image_type.unwrap_or_default(),
        os_type: said.os_type.unwrap_or_default(),
        os_version: said.os_version.unwrap_or_default(),
        architecture: said.architecture.unwrap_or_default(),
        format: said.format.map(|format| format.as_str().to_owned()).unwrap_or_default(),
        visibility: new.visibility.map(|one| one.as_str().to_owned()).unwrap_or_default(),
        is_public: None,
        organization_id: new.organization.as_ref().map(ToString::to_string).unwrap_or_default(),
        min_cpu_cores: said.min_cpu_cores.unwrap_or_default(),
        min_memory_mb: said.min_memory_mb.unwrap_or_default(),
        min_disk_gb: said.min_disk_gb.unwrap_or_default(),
        recommended_cpu_cores: said.recommended_cpu_cores.unwrap_or_default(),
        recommended_memory_mb: said.recommended_memory_mb.unwrap_or_default(),
        recommended_disk_gb: said.recommended_disk_gb.unwrap_or_default(),
        labels: joined(&said.labels),
        annotations: joined(&said.annotations),
    }
}

/// The image of this very name, if there is one.
pub async fn find(client: &Client, name: &RepositoryName) -> Result<Option<Image>, Error> {
    let query = format!("&name={}", escaped(name.as_str()));
    for number in 1..=PAGES_MAX {
        let page = page(client, &query, number, PAGE_SIZE_MAX).await?;
        if let Some(image) = page.data.into_iter().find(|image| image.name == *name) {
            return Ok(Some(image));
        }
        if number >= page.pagination.total_pages {
            break;
        }
    }
    Ok(None)
}

/// The image of that name.
///
/// # Errors
/// Where there is none.
pub async fn existing(client: &Client, name: &str) -> Result<Image, Error> {
    let name: RepositoryName = name.parse().map_err(|error| Error::Usage(format!("{error}")))?;
    let found = find(client, &name).await?;
    found.ok_or_else(|| Error::NotFound(format!("there is no image '{name}'")))
}

async fn show(client: &Client, name: &str, screen: Screen) -> Result<(), Error> {
    let image = existing(client, name).await?;
    let detail: ImageDetail = client.get(format!("api/v1/images/{}", image.id)).await?;
    screen.show(&detail, || {
        let said = profile(&detail);
        let rows = versions::version_table(&detail.versions);
        let image = &detail.image;
        let mail = image.owner.email.as_ref().map(|mail| format!(" <{mail}>")).unwrap_or_default();
        let stars = match image.star_count {
            0 => String::new(),
            stars => format!(", {stars} stars"),
        };
        format!(
            "{} ({}, {}), {}, owner {}{mail}, {} downloads{stars}\n{said}{rows}",
            image.name,
            image.kind,
            image.visibility,
            image.id,
            image.owner.name,
            image.download_count,
        )
    })
}

/// What is said of an image, a line for each thing that is.
fn profile(detail: &ImageDetail) -> String {
    let image = &detail.image;
    let system = [&image.os_type, &image.os_version, &image.architecture].map(String::as_str);
    let system: Vec<&str> = system.into_iter().filter(|text| !text.is_empty()).collect();
    let all = |map: &BTreeMap<String, String>| {
        map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
    };
    let ImageDetail { min_cpu_cores, min_memory_mb, min_disk_gb, .. } = *detail;
    let ImageDetail { recommended_cpu_cores, recommended_memory_mb, recommended_disk_gb, .. } =
        *detail;
    let lines = [
        ("called", image.display_name.clone()),
        ("about", image.description.clone()),
        ("type", image.image_type.clone()),
        ("system", system.join(" ")),
        ("needs", machine(min_cpu_cores, min_memory_mb, min_disk_gb)),
        ("better", machine(recommended_cpu_cores, recommended_memory_mb, recommended_disk_gb)),
        ("labels", all(&image.labels)),
        ("annotations", all(&image.annotations)),
        ("scan", image.scan_status.clone().unwrap_or_default()),
    ];
    let lines = lines.into_iter().filter(|(_, text)| !text.is_empty());
    lines.map(|(what, text)| format!("{what}: {text}\n")).collect()
}

/// What of a machine is asked for.
fn machine(cpu_cores: u32, memory_mb: u64, disk_gb: u64) -> String {
    let parts = [
        (u64::from(cpu_cores), "processors"),
        (memory_mb, "MB of memory"),
        (disk_gb, "GB of disk"),
    ];
    let parts = parts.into_iter().filter(|(count, _)| *count > 0);
    parts.map(|(count, what)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
}

pub fn tag_list(tags: &[TagName]) -> String {
    tags.iter().map(TagName::as_str).collect::<Vec<_>>().join(", ")
}

async fn edit(edit: &EditImage, client: &Client, screen: Screen) -> Result<(), Error> {
    let request = changed(edit);
    if request == UpdateImage::default() {
        return Err(Error::Usage("nothing is to be changed; --help says what can be".into()));
    }
    let image = existing(client, &edit.name).await?;
    let path = format!("api/v1/images/{}", image.id);
    let detail: ImageDetail = client.call(Method::PUT, path, &request).await?;
    screen.show(&detail, || format!("Changed {}.", image.name))
}

fn changed(edit: &EditImage) -> UpdateImage {
    let said = edit.profile.clone();
    let all = |given: &[Labels]| (!given.is_empty()).then(|| joined(given));
    UpdateImage {
        name: None,
        display_name: said.display_name,
        description: said.description,
        image_type: said.image_type,
        os_type: said.os_type,
        os_version: said.os_version,
        architecture: said.architecture,
        format: said.format.map(|format| format.as_str().to_owned()),
        min_cpu_cores: said.min_cpu_cores,
        min_memory_mb: said.min_memory_mb,
        min_disk_gb: said.min_disk_gb,
        recommended_cpu_cores: said.recommended_cpu_cores,
        recommended_memory_mb: said.recommended_memory_mb,
        recommended_disk_gb: said.recommended_disk_gb,
        labels: all(&said.labels),
        annotations: all(&said.annotations),
        // It is the project's: `project set` changes it.
        visibility: None,
        is_public: None,
        organization_id: None,
    }
}

async fn delete(
    client: &Client,
    name: &str,
    purge: bool,
    yes: bool,
    screen: Screen,
) -> Result<(), Error> {
    let image = match existing(client, name).await {
        Err(Error::NotFound(_)) if purge => deleted(client, name).await?,
        image => image?,
    };
    let end = if purge { " for good" } else { "" };
    if !yes && !confirm(&format!("Delete {name} with all its versions{end}?"))? {
        return Err(Error::Usage("nothing was deleted; --yes deletes without asking".into()));
    }
    client.delete(format!("api/v1/images/{}?purge={purge}", image.id)).await?;
    screen.show(&serde_json::json!({ "deleted": name, "purged": purge }), || match purge {
        true => format!("Deleted {name} for good."),
        false => format!("Deleted {name}; 'shoal image restore {name}' brings it back."),
    })
}

/// The one of that name that was deleted last.
async fn deleted(client: &Client, name: &str) -> Result<Image, Error> {
    let query = format!("&deleted=true&name={}", escaped(name));
    let found = all(client, &query).await?;
    let found = found.into_iter().filter(|image| image.name.as_str() == name);
    let last = found.max_by(|one, other| one.deleted_at.cmp(&other.deleted_at));
    last.ok_or_else(|| Error::NotFound(format!("there is no image '{name}', nor a deleted one")))
}

async fn restore(client: &Client, name: &str, screen: Screen) -> Result<(), Error> {
    let image = deleted(client, name).await?;
    let path = format!("api/v1/images/{}/restore", image.id);
    let image: Image = client.call(Method::POST, path, &serde_json::json!({})).await?;
    screen.show(&image, || format!("{} is there again.", image.name))
}

async fn star(client: &Client, name: &str, starred: bool, screen: Screen) -> Result<(), Error> {
    let image = existing(client, name).await?;
    let path = format!("api/v1/images/{}/star", image.id);
    let method = if starred { Method::PUT } else { Method::DELETE };
    client.send(&Request::new(method, path, Body::Empty)).await?;
    screen.show(&serde_json::json!({ "image": name, "starred": starred }), || match starred {
        true => format!("Starred {name}."),
        false => format!("Took the star from {name} back."),
    })
}

pub async fn resolve(client: &Client, reference: &ImageReference) -> Result<Resolution, Error> {
    client.get(format!("api/v1/resolve?reference={}", escaped(&reference.to_string()))).await
}

fn resolved(found: &Resolution) -> String {
    let Resolution { image, version, manifest_digest, status, .. } = found;
    let text = format!("{image} version {version} ({status}), {manifest_digest}");
    match &found.deprecation {
        Some(deprecation) => format!("{text}\ndeprecated: {}", deprecation.message),
        None => text,
    }
}

#[cfg(test)]
mod tests;
