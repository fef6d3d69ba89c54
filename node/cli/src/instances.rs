//! Which virtual machine runs which version.

use comfy_table::Cell;
use reqwest::Method;
use shoal_api::{Instance, Page, RegisterInstance};
use shoal_content::Pin;

use crate::arguments::InstanceCommand;
use crate::client::{Client, escaped};
use crate::error::Error;
use crate::screen::{Screen, state, table};

const PAGE_SIZE: u64 = 500;
/// More than a cluster keeps; a list that never ends is a fault of the node.
const PAGES_MAX: u64 = 10_000;

pub async fn instance(
    command: &InstanceCommand,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    match command {
        InstanceCommand::Register { id, reference } => {
            let (image_tag_used, image_digest) = match &reference.pin {
                Pin::Tag(tag) => (Some(tag.clone()), None),
                Pin::Digest(digest) => (None, Some(digest.clone())),
            };
            let request = RegisterInstance {
                image: Some(reference.name.clone()),
                image_tag_used,
                image_digest,
                ..RegisterInstance::default()
            };
            let path = format!("api/v1/instances/{}", escaped(id.as_str()));
            let made: Instance = client.call(Method::PUT, path, &request).await?;
            screen.show(&made, || sentence(&made))
        }
        InstanceCommand::List { image, deprecated } => {
            list(client, image.as_deref(), *deprecated, screen).await
        }
        InstanceCommand::Show { id } => {
            let path = format!("api/v1/instances/{}", escaped(id.as_str()));
            let found: Instance = client.get(path).await?;
            screen.show(&found, || sentence(&found))
        }
        InstanceCommand::Remove { id } => {
            client.delete(format!("api/v1/instances/{}", escaped(id.as_str()))).await?;
            let shown = serde_json::json!({ "removed": id });
            screen.show(&shown, || format!("{id} is not registered any more."))
        }
    }
}

fn sentence(instance: &Instance) -> String {
    let Instance { id, image, version, image_digest, .. } = instance;
    let text = format!("{id} runs {image} {version} ({image_digest}).");
    match &instance.deprecation {
        Some(deprecation) => format!("{text}\nIt is deprecated: {}", deprecation.message),
        None => text,
    }
}

async fn list(
    client: &Client,
    image: Option<&str>,
    deprecated: bool,
    screen: Screen,
) -> Result<(), Error> {
    let mut filter = image.map(|name| format!("&image={}", escaped(name))).unwrap_or_default();
    if deprecated {
        filter.push_str("&version_status=deprecated");
    }
    let mut all = Vec::new();
    for number in 1..=PAGES_MAX {
        let query = format!("page={number}&page_size={PAGE_SIZE}{filter}");
        let page: Page<Instance> = client.get(format!("api/v1/instances?{query}")).await?;
        all.extend(page.data);
        if number >= page.pagination.total_pages {
            break;
        }
    }
    screen.show(&all, || {
        let mut rows = table(&["INSTANCE", "IMAGE", "VERSION", "TAG", "STATUS", "BY", "UPDATED"]);
        for instance in &all {
            rows.add_row([
                Cell::new(&instance.id),
                Cell::new(&instance.image),
                Cell::new(&instance.version),
                Cell::new(instance.image_tag_used.as_ref().map_or("-", |tag| tag.as_str())),
                state(&instance.version_status),
                Cell::new(&instance.registered_by),
                Cell::new(&instance.updated_at),
            ]);
        }
        rows.to_string()
    })
}
