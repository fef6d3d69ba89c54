//! Listing, showing, editing, deleting and restoring images.

use comfy_table::Cell;
use reqwest::Method;
use shoal_api::{Image, ImageDetail, Page, Resolution, UpdateImage};
use shoal_content::{ImageReference, RepositoryName, TagName};

use crate::arguments::{EditImage, ImageCommand, ListImages};
use crate::client::{Body, Client, Request, escaped};
use crate::config::Config;
use crate::error::Error;
use crate::screen::{Screen, bytes, confirm, state, table};
use crate::{copy, download, import, projects, upload, versions};

const PAGE_SIZE: u64 = 100;
/// A million images; a list that never ends is a fault of the node.
const PAGES_MAX: u64 = 10_000;

async fn page(client: &Client, query: &str, page: u64) -> Result<Page<Image>, Error> {
    client.get(format!("api/v1/images?page={page}&page_size={PAGE_SIZE}{query}")).await
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
        ImageCommand::List(wanted) => list(wanted, client, screen).await,
        ImageCommand::Show { name } => show(client, name, screen).await,
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
        command => versions::version(command, client, screen).await,
    }
}

async fn all(client: &Client, query: &str) -> Result<Vec<Image>, Error> {
    let mut all = Vec::new();
    for number in 1..=PAGES_MAX {
        let page = page(client, query, number).await?;
        all.extend(page.data);
        if number >= page.pagination.total_pages {
            break;
        }
    }
    Ok(all)
}

async fn list(wanted: &ListImages, client: &Client, screen: Screen) -> Result<(), Error> {
    let mut query = format!("&sort={}", escaped(&wanted.sort));
    let labels = wanted.label.as_ref().map(|labels| {
        let pairs = labels.iter().map(|(key, value)| format!("{key}={value}"));
        pairs.collect::<Vec<_>>().join(",")
    });
    let given =
        [("q", &wanted.query), ("labels", &labels), ("type", &wanted.image_type)].into_iter();
    for (key, value) in given.filter_map(|(key, value)| Some((key, value.as_ref()?))) {
        query.push_str(&format!("&{key}={}", escaped(value)));
    }
    for (key, is_wanted) in [("deleted", wanted.deleted), ("starred", wanted.starred)] {
        if is_wanted {
            query.push_str(&format!("&{key}=true"));
        }
    }
    let all = all(client, &query).await?;
    screen.show(&all, || {
        let mut rows = table(&["NAME", "KIND", "STATUS", "LATEST", "SIZE", "TAGS", "UPDATED"]);
        for image in &all {
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
    })
}

/// The image of this very name, if there is one.
pub async fn find(client: &Client, name: &RepositoryName) -> Result<Option<Image>, Error> {
    let query = format!("&name={}", escaped(name.as_str()));
    for number in 1..=PAGES_MAX {
        let page = page(client, &query, number).await?;
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
        let rows = versions::version_table(&detail.versions);
        let image = &detail.image;
        let stars = match image.star_count {
            0 => String::new(),
            stars => format!(", {stars} stars"),
        };
        format!(
            "{} ({}, {}), {}, owner {}, {} downloads{stars}\n{rows}",
            image.name,
            image.kind,
            image.visibility,
            image.id,
            image.owner.name,
            image.download_count,
        )
    })
}

pub fn tag_list(tags: &[TagName]) -> String {
    tags.iter().map(TagName::as_str).collect::<Vec<_>>().join(", ")
}

async fn edit(edit: &EditImage, client: &Client, screen: Screen) -> Result<(), Error> {
    let image = existing(client, &edit.name).await?;
    let request = UpdateImage {
        display_name: edit.display_name.clone(),
        description: edit.description.clone(),
        image_type: edit.image_type.clone(),
        os_type: edit.os_type.clone(),
        os_version: edit.os_version.clone(),
        architecture: edit.architecture.clone(),
        labels: edit.labels.clone().map(Into::into),
        annotations: edit.annotations.clone().map(Into::into),
        ..UpdateImage::default()
    };
    if request == UpdateImage::default() {
        return Err(Error::Usage("nothing is to be changed; --help says what can be".into()));
    }
    let path = format!("api/v1/images/{}", image.id);
    let detail: ImageDetail = client.call(Method::PUT, path, &request).await?;
    screen.show(&detail, || format!("Changed {}.", image.name))
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
