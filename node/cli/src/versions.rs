//! Versions and tags of an image.

use comfy_table::Cell;
use reqwest::Method;
use serde::de::DeserializeOwned;
use shoal_api::{
    CreateVersion, DeprecateVersion, Image, MoveTag, Page, Rollback, Tag, UpdateVersion, Version,
    VersionDetail,
};
use shoal_content::{ImageReference, InstanceName, TagName};

use crate::arguments::{BuildInfo, ImageCommand};
use crate::client::{Client, escaped};
use crate::error::Error;
use crate::images::{existing, resolve, tag_list};
use crate::screen::{Screen, bytes, confirm, state, table};

const PAGE_SIZE: u64 = 500;
/// More versions or tags than any image has; a list that never ends is a fault of the node.
const PAGES_MAX: u64 = 1_000;

pub async fn version(command: &ImageCommand, client: &Client, screen: Screen) -> Result<(), Error> {
    match command {
        ImageCommand::Versions { name, status } => {
            list(client, name, status.as_deref(), screen).await
        }
        ImageCommand::Version { name, version } => {
            let path = path(&existing(client, name).await?, version);
            let detail: VersionDetail = client.get(path).await?;
            screen.show(&detail, || sentence(&detail))
        }
        ImageCommand::Promote { name, version, number, new } => {
            let image = existing(client, name).await?;
            let request = CreateVersion {
                version: number.clone(),
                manifest_digest: None,
                from: Some(version.clone()),
                tags: new.tags.clone(),
                changelog: new.changelog.clone(),
                build_info: BuildInfo::joined(&new.build_info),
            };
            let path = format!("api/v1/images/{}/versions", image.id);
            let made: VersionDetail = client.call(Method::POST, path, &request).await?;
            screen.show(&made, || format!("{name} {number} is what {version} is."))
        }
        ImageCommand::Changelog { name, version, text } => {
            let path = path(&existing(client, name).await?, version);
            let request = UpdateVersion { changelog: Some(text.clone()), build_info: None };
            let detail: VersionDetail = client.call(Method::PUT, path, &request).await?;
            screen.show(&detail, || format!("Changed {name} {}.", detail.version.version))
        }
        ImageCommand::BuildInfo { name, version, info } => {
            let path = path(&existing(client, name).await?, version);
            let build_info = BuildInfo::joined(info);
            let request = UpdateVersion { changelog: None, build_info };
            let detail: VersionDetail = client.call(Method::PUT, path, &request).await?;
            screen.show(&detail, || format!("Changed {name} {}.", detail.version.version))
        }
        ImageCommand::Deprecate { name, version, message } => {
            let path = path(&existing(client, name).await?, version);
            let request = DeprecateVersion { message: message.clone() };
            let path = format!("{path}/deprecate");
            let detail: VersionDetail = client.call(Method::POST, path, &request).await?;
            screen.show(&detail, || {
                let number = &detail.version.version;
                format!("{name} {number} is deprecated.\n{}", runners(&detail))
            })
        }
        ImageCommand::Undeprecate { name, version } => {
            let path = path(&existing(client, name).await?, version);
            let none = serde_json::json!({});
            let path = format!("{path}/deprecate");
            let detail: VersionDetail = client.call(Method::DELETE, path, &none).await?;
            screen.show(&detail, || format!("{name} {} may be used.", detail.version.version))
        }
        ImageCommand::RemoveVersion { name, version, yes } => {
            let path = path(&existing(client, name).await?, version);
            if !yes && !confirm(&format!("Remove version {version} of {name} with its tags?"))? {
                let text = "nothing was removed; --yes removes without asking";
                return Err(Error::Usage(text.into()));
            }
            client.delete(path).await?;
            let shown = serde_json::json!({ "image": name, "removed": version });
            screen.show(&shown, || format!("Removed version {version} of {name}."))
        }
        ImageCommand::Tags { name } => tags(client, name, screen).await,
        ImageCommand::Tag { source, tag } => self::tag(client, source, tag, screen).await,
        ImageCommand::Untag { name, tag } => {
            let image = existing(client, name).await?;
            client.delete(format!("api/v1/images/{}/tags/{tag}", image.id)).await?;
            let shown = serde_json::json!({ "image": name, "removed": tag });
            screen.show(&shown, || format!("{name} has no tag {tag} any more."))
        }
        ImageCommand::Rollback { name, version, tag } => {
            let image = existing(client, name).await?;
            let request = Rollback { version: version.clone(), tag: Some(tag.clone()) };
            let path = format!("api/v1/images/{}/rollback", image.id);
            let moved: Tag = client.call(Method::POST, path, &request).await?;
            screen.show(&moved, || format!("{name}:{tag} is version {} again.", moved.version))
        }
        _ => unreachable!("what is done with whole images ended before"),
    }
}

fn path(image: &Image, version: &str) -> String {
    format!("api/v1/images/{}/versions/{}", image.id, escaped(version))
}

async fn list(
    client: &Client,
    name: &str,
    status: Option<&str>,
    screen: Screen,
) -> Result<(), Error> {
    let image = existing(client, name).await?;
    let filter = status.map(|status| format!("?status={status}")).unwrap_or_default();
    let path = format!("api/v1/images/{}/versions{filter}", image.id);
    let all: Vec<Version> = pages(client, &path).await?;
    screen.show(&all, || version_table(&all))
}

/// All of a list that comes in pages.
async fn pages<T: DeserializeOwned>(client: &Client, path: &str) -> Result<Vec<T>, Error> {
    let mut all = Vec::new();
    let joint = if path.contains('?') { '&' } else { '?' };
    for number in 1..=PAGES_MAX {
        let page = format!("{path}{joint}page={number}&page_size={PAGE_SIZE}");
        let page: Page<T> = client.get(page).await?;
        all.extend(page.data);
        if number >= page.pagination.total_pages {
            break;
        }
    }
    Ok(all)
}

/// For people.
pub fn version_table(versions: &[Version]) -> String {
    let mut rows = table(&[
        "VERSION", "STATUS", "TAGS", "SIZE", "CONTENT", "ADDED", "USED", "CREATED", "DIGEST",
    ]);
    for version in versions {
        rows.add_row([
            Cell::new(&version.version),
            state(&version.status),
            Cell::new(tag_list(&version.tags)),
            Cell::new(bytes(version.total_size_bytes)),
            Cell::new(bytes(version.content_size_bytes)),
            Cell::new(bytes(version.added_size_bytes)),
            Cell::new(if version.in_use { "yes" } else { "no" }),
            Cell::new(&version.created_at),
            Cell::new(version.manifest_digest.to_string()),
        ]);
    }
    rows.to_string()
}

fn sentence(detail: &VersionDetail) -> String {
    let version = &detail.version;
    let mut lines = vec![
        format!("{} ({}), {}", version.version, version.status, version.manifest_digest),
        format!(
            "{}, pushed {} by {}, {} downloads",
            bytes(version.total_size_bytes),
            version.created_at,
            version.created_by,
            version.download_count
        ),
    ];
    if let Some(deprecation) = &version.deprecation {
        let (at, by) = (&deprecation.deprecated_at, &deprecation.deprecated_by);
        lines.push(format!("deprecated {at} by {by}: {}", deprecation.message));
    }
    lines.extend(version.build_info.as_ref().map(|info| format!("build: {info}")));
    if !version.changelog.is_empty() {
        lines.push(version.changelog.clone());
    }
    lines.push(runners(detail));
    lines.join("\n")
}

fn runners(detail: &VersionDetail) -> String {
    if detail.instances.is_empty() {
        return "No instance runs it.".to_owned();
    }
    let names: Vec<&str> = detail.instances.iter().map(InstanceName::as_str).collect();
    let more = if detail.more_instances { " and more" } else { "" };
    format!("Run by {}{more}.", names.join(", "))
}

async fn tags(client: &Client, name: &str, screen: Screen) -> Result<(), Error> {
    let image = existing(client, name).await?;
    let tags: Vec<Tag> = pages(client, &format!("api/v1/images/{}/tags", image.id)).await?;
    screen.show(&tags, || {
        let mut rows = table(&["TAG", "KIND", "VERSION", "UPDATED"]);
        for tag in &tags {
            rows.add_row([
                Cell::new(&tag.name),
                Cell::new(&tag.kind),
                Cell::new(&tag.version),
                Cell::new(&tag.updated_at),
            ]);
        }
        rows.to_string()
    })
}

async fn tag(
    client: &Client,
    source: &ImageReference,
    tag: &TagName,
    screen: Screen,
) -> Result<(), Error> {
    let found = resolve(client, source).await?;
    let path = format!("api/v1/images/{}/tags/{tag}", found.image_id);
    let version_id = Some(found.version_id.to_string());
    let request = MoveTag { version_id, ..MoveTag::default() };
    let moved: Tag = client.call(Method::PUT, path, &request).await?;
    screen.show(&moved, || format!("{}:{tag} is version {}.", source.name, moved.version))
}
