//! Which virtual machine runs which version.

use comfy_table::Cell;
use reqwest::Method;
use shoal_api::{Instance, RegisterInstance};
use shoal_content::{InstanceName, Pin};

use crate::arguments::InstanceCommand;
use crate::client::{Client, escaped, filter};
use crate::error::Error;
use crate::screen::{Screen, state, table};

const PATH: &str = "api/v1/instances";
/// Instances of one answer, at most.
const PART: usize = 1000;

pub async fn instance(
    command: &InstanceCommand,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    match command {
        InstanceCommand::Register { id, reference, new } => {
            let (image_tag_used, image_digest) = match &reference.pin {
                Pin::Tag(tag) => (Some(tag.clone()), None),
                Pin::Digest(digest) => (None, Some(digest.clone())),
            };
            let request = RegisterInstance {
                id: new.then(|| id.clone()),
                image: Some(reference.name.clone()),
                image_tag_used,
                image_digest,
                ..RegisterInstance::default()
            };
            let made: Instance = if *new {
                client.call(Method::POST, PATH, &request).await?
            } else {
                client.call(Method::PUT, path(id), &request).await?
            };
            screen.show(&made, || sentence(&made))
        }
        InstanceCommand::List { image, number, deprecated, by } => {
            let status = deprecated.then(|| "deprecated".to_owned());
            let filter = filter([
                ("image", image),
                ("version", number),
                ("version_status", &status),
                ("registered_by", by),
            ]);
            list(client, &filter, screen).await
        }
        InstanceCommand::Show { id } => {
            let found: Instance = client.get(path(id)).await?;
            screen.show(&found, || sentence(&found))
        }
        InstanceCommand::Remove { id } => {
            client.delete(path(id)).await?;
            let shown = serde_json::json!({ "removed": id });
            screen.show(&shown, || format!("{id} is not registered any more."))
        }
    }
}

fn path(id: &InstanceName) -> String {
    format!("{PATH}/{}", escaped(id.as_str()))
}

fn sentence(instance: &Instance) -> String {
    let Instance { id, image, version, image_digest, .. } = instance;
    let text = format!("{id} runs {image} {version} ({image_digest}).");
    match &instance.deprecation {
        Some(deprecation) => format!("{text}\nIt is deprecated: {}", deprecation.message),
        None => text,
    }
}

async fn list(client: &Client, filter: &str, screen: Screen) -> Result<(), Error> {
    let all: Vec<Instance> = client.pages(&format!("{PATH}?limit={PART}{filter}")).await?;
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
