//! Lets the nodes get a disk from elsewhere, and follows it.
//!
//! An import is an upload that nodes send to themselves: its status is an upload's, and it ends in
//! the same ways.

use std::time::Duration;

use reqwest::Method;
use shoal_api::{ImportVersion, UploadStatus};
use tokio::time::Instant;

use crate::arguments::{BuildInfo, Import};
use crate::client::Client;
use crate::error::Error;
use crate::resume::path_of;
use crate::screen::Screen;
use crate::upload;

/// How often a node is asked how far it is.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// An import that does not move for so long is waited for no more.
const STALL_MAX: Duration = Duration::from_secs(900);

pub async fn import(order: &Import, client: &Client, screen: Screen) -> Result<(), Error> {
    let tags = upload::tags_of(&order.reference, &order.new.tags)?;
    let image = upload::image(client, &order.reference).await?;
    let request = ImportVersion {
        version: order.number.clone(),
        url: order.url.clone(),
        checksum: order.checksum.clone(),
        format: order.format.map(|format| format.as_str().to_owned()),
        tags,
        changelog: order.new.changelog.clone(),
        build_info: BuildInfo::joined(&order.new.build_info),
    };
    let path = format!("api/v1/images/{}/versions/import", image.id);
    let begun: UploadStatus = client.call(Method::POST, path, &request).await?;
    let follow = format!("shoal image upload-status {} {}", order.reference.name, begun.upload_id);
    if order.detach {
        return screen.show(&begun, || format!("Ordered; '{follow}' says how far it is."));
    }
    let path = path_of(image.id, begun.upload_id);
    let status = tokio::select! {
        ended = watch(begun, &path, client, screen) => ended?,
        _ = tokio::signal::ctrl_c() => {
            let text = format!("stopped; the nodes go on, and '{follow}' says how far they are");
            return Err(Error::Interrupted(text));
        }
    };
    screen.show(&status, || {
        let digest = status.manifest_digest.as_ref().map(ToString::to_string).unwrap_or_default();
        format!("{} is version {} ({digest}).", order.reference.name, order.number)
    })
}

/// Follows an import until it is a version.
async fn watch(
    begun: UploadStatus,
    path: &str,
    client: &Client,
    screen: Screen,
) -> Result<UploadStatus, Error> {
    let mut progress = screen.progress("importing", begun.total_size_bytes);
    let mut status = begun;
    let (mut seen, mut moved) = ((0, None), Instant::now());
    loop {
        let failure = match status.status.as_str() {
            "active" => break,
            "failed" => status.failure.unwrap_or_else(|| "the node does not say why".into()),
            _ if moved.elapsed() > STALL_MAX => "it does not move; look at the nodes' logs".into(),
            _ => String::new(),
        };
        if !failure.is_empty() {
            return Err(Error::Failed { what: "the import".into(), reason: failure });
        }
        let position = (status.received_bytes, status.processed_bytes);
        if position != seen {
            (seen, moved) = (position, Instant::now());
        }
        progress.set(status.received_bytes);
        tokio::time::sleep(POLL_INTERVAL).await;
        status = client.get(path).await?;
    }
    Ok(status)
}
