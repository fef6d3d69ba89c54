//! Uploads and imports that were begun: how far one is, and its end before it is a version.

use shoal_api::UploadStatus;
use shoal_content::UploadId;

use crate::client::Client;
use crate::error::Error;
use crate::images::existing;
use crate::resume::path_of;
use crate::screen::{Screen, bytes, confirm, percent};

pub async fn status(
    client: &Client,
    name: &str,
    upload: UploadId,
    screen: Screen,
) -> Result<(), Error> {
    let image = existing(client, name).await?;
    let status: UploadStatus = client.get(path_of(image.id, upload)).await?;
    screen.show(&status, || sentence(&status))
}

pub async fn abort(
    client: &Client,
    name: &str,
    upload: UploadId,
    yes: bool,
    screen: Screen,
) -> Result<(), Error> {
    let image = existing(client, name).await?;
    if !yes && !confirm(&format!("End {upload} to {name}, and drop what it has sent?"))? {
        return Err(Error::Usage("nothing was ended; --yes ends it without asking".into()));
    }
    client.delete(path_of(image.id, upload)).await?;
    let shown = serde_json::json!({ "image": name, "aborted": upload });
    screen.show(&shown, || format!("Ended {upload}; what it held is free."))
}

fn sentence(status: &UploadStatus) -> String {
    let id = &status.upload_id;
    let (whole, expires) = (status.total_size_bytes, &status.expires_at);
    let text = match status.status.as_str() {
        "receiving" => format!(
            "{id}: {} of {} ({} of {} parts) are there; it ends at {expires} if no more comes.",
            bytes(status.received_bytes),
            bytes(whole),
            status.received_chunks.len(),
            status.total_chunks
        ),
        "active" => format!(
            "{id} is version {} ({}).",
            status.version.as_deref().unwrap_or("?"),
            status.manifest_digest.as_ref().map(ToString::to_string).unwrap_or_default()
        ),
        "failed" => format!("{id} failed: {}", status.failure.as_deref().unwrap_or("?")),
        _ => match status.processed_bytes {
            Some(read) => format!("{id}: all is there, {} % are read.", percent(read, whole)),
            None => format!("{id}: all is there and is being read."),
        },
    };
    match &status.import_url {
        Some(url) => format!("{text}\nThe nodes get it from {url}."),
        None => text,
    }
}
