//! Listing, showing, tagging and deleting images.

use comfy_table::Cell;
use reqwest::Method;
use shoal_api::{Image, ImageDetail, MoveTag, Page, Resolution, Tag};
use shoal_content::{ImageReference, RepositoryName, TagName};

use crate::client::{Client, escaped};
use crate::error::Error;
use crate::screen::{Screen, bytes, confirm, state, table};

const PAGE_SIZE: u64 = 100;
/// A million images; a list that never ends is a fault of the node.
const PAGES_MAX: u64 = 10_000;

async fn page(client: &Client, query: &str, page: u64) -> Result<Page<Image>, Error> {
    client.get(format!("api/v1/images?page={page}&page_size={PAGE_SIZE}{query}")).await
}

pub async fn list(client: &Client, screen: Screen) -> Result<(), Error> {
    let mut all = Vec::new();
    for number in 1..=PAGES_MAX {
        let page = page(client, "", number).await?;
        all.extend(page.data);
        if number >= page.pagination.total_pages {
            break;
        }
    }
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

pub async fn show(client: &Client, name: &str, screen: Screen) -> Result<(), Error> {
    let image = existing(client, name).await?;
    let detail: ImageDetail = client.get(format!("api/v1/images/{}", image.id)).await?;
    screen.show(&detail, || {
        let mut rows =
            table(&["VERSION", "STATUS", "TAGS", "SIZE", "CONTENT", "ADDED", "CREATED", "DIGEST"]);
        for version in &detail.versions {
            rows.add_row([
                Cell::new(&version.version),
                state(&version.status),
                Cell::new(tag_list(&version.tags)),
                Cell::new(bytes(version.total_size_bytes)),
                Cell::new(bytes(version.content_size_bytes)),
                Cell::new(bytes(version.added_size_bytes)),
                Cell::new(&version.created_at),
                Cell::new(version.manifest_digest.to_string()),
            ]);
        }
        let image = &detail.image;
        format!("{} ({}), {}, owner {}\n{rows}", image.name, image.kind, image.id, image.owner)
    })
}

fn tag_list(tags: &[TagName]) -> String {
    tags.iter().map(TagName::as_str).collect::<Vec<_>>().join(", ")
}

pub async fn delete(client: &Client, name: &str, yes: bool, screen: Screen) -> Result<(), Error> {
    let image = existing(client, name).await?;
    if !yes && !confirm(&format!("Delete {name} with all its versions?"))? {
        return Err(Error::Usage("nothing was deleted; --yes deletes without asking".into()));
    }
    client.delete(format!("api/v1/images/{}", image.id)).await?;
    screen.show(&serde_json::json!({ "deleted": name }), || format!("Deleted {name}."))
}

pub async fn resolve(client: &Client, reference: &ImageReference) -> Result<Resolution, Error> {
    client.get(format!("api/v1/resolve?reference={}", escaped(&reference.to_string()))).await
}

pub async fn tag(
    client: &Client,
    source: &ImageReference,
    tag: &TagName,
    screen: Screen,
) -> Result<(), Error> {
    let found = resolve(client, source).await?;
    let path = format!("api/v1/images/{}/tags/{tag}", found.image_id);
    let moved: Tag =
        client.call(Method::PUT, path, &MoveTag { version_id: found.version_id }).await?;
    screen.show(&moved, || format!("{}:{tag} is version {}.", source.name, moved.version))
}
