//! Lets the nodes get a disk from elsewhere, and follows it.
//!
//! An import is an upload that nodes send to themselves: its status is an upload's, and it ends in
//! the same ways.

use std::time::Duration;

use reqwest::Method;
use shoal_api::{ImportVersion, UploadStatus};
use shoal_content::Pin;
use tokio::time::Instant;

use crate::arguments::Import;
use crate::client::Client;
use crate::error::Error;
use crate::screen::Screen;
use crate::upload;

/// How often a node is asked how far it is.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// An import that does not move for so long is waited for no more.
const STALL_MAX: Duration = Duration::from_secs(900);

pub async fn import(order: &Import, client: &Client, screen: Screen) -> Result<(), Error> {
    let image = upload::image(client, &order.reference).await?;
    let tags = match &order.reference.pin {
        Pin::Tag(tag) if tag.as_str() != "latest" => vec![tag.clone()],
        Pin::Tag(_) => Vec::new(),
        Pin::Digest(_) => {
            return Err(Error::Usage("a digest is known only afterwards; give NAME:TAG".into()));
        }
    };
    let request = ImportVersion {
        version: order.number.clone(),
        url: order.url.clone(),
        checksum: order.checksum.clone(),
        format: order.format.map(|format| format.as_str().to_owned()),
        tags,
        changelog: order.changelog.clone(),
        build_info: None,
    };
    let path = format!("api/v1/images/{}/versions/import", image.id);
    let mut status: UploadStatus = client.call(Method::POST, path, &request).await?;
    let path = format!("api/v1/images/{}/versions/upload/{}", image.id, status.upload_id);
    if order.detach {
        return screen.show(&status, || format!("Ordered; GET /{path} says how far it is."));
    }
    let bar = screen.byte_bar("importing", status.total_size_bytes);
    let (mut seen, mut moved) = ((0, None), Instant::now());
    loop {
        let failure = match status.status.as_str() {
            "active" => break,
            "failed" => status.failure.unwrap_or_else(|| "the node does not say why".into()),
            _ if moved.elapsed() > STALL_MAX => "it does not move; look at the nodes' logs".into(),
            _ => String::new(),
        };
        if !failure.is_empty() {
            bar.finish_and_clear();
            return Err(Error::Failed { what: "the import".into(), reason: failure });
        }
        let position = (status.received_bytes, status.processed_bytes);
        if position != seen {
            (seen, moved) = (position, Instant::now());
        }
        bar.set_position(status.received_bytes);
        tokio::time::sleep(POLL_INTERVAL).await;
        status = client.get(path.as_str()).await?;
    }
    bar.finish_and_clear();
    screen.show(&status, || {
        let digest = status.manifest_digest.as_ref().map(ToString::to_string).unwrap_or_default();
        format!("{} is version {} ({digest}).", order.reference.name, order.number)
    })
}
