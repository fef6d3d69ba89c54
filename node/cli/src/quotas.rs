//! Quotas: what may be held, and what is.

use reqwest::Method;
use shoal_api::{PutQuota, Quota, QuotaCheck, Usage};

use crate::arguments::{Limit, QuotaCommand};
use crate::client::{Client, escaped};
use crate::error::Error;
use crate::screen::{Screen, bytes, table};

const PATH: &str = "api/v1/quotas";

pub async fn quota(command: &QuotaCommand, client: &Client, screen: Screen) -> Result<(), Error> {
    match command {
        QuotaCommand::List => {
            let quotas: Vec<Quota> = client.get(PATH).await?;
            screen.show(&quotas, || quota_table(&quotas))
        }
        QuotaCommand::Show { of } => {
            let quota: Quota = client.get(format!("{PATH}/{}", escaped(of))).await?;
            screen.show(&quota, || quota_table(std::slice::from_ref(&quota)))
        }
        QuotaCommand::Set { of, bytes, images, image_bytes } => {
            let path = format!("{PATH}/{}", escaped(of));
            let old: Quota = client.get(&path).await?;
            let old = old.set.unwrap_or_default();
            let limits = PutQuota {
                max_bytes: Some(changed(old.max_bytes, *bytes)),
                max_images: Some(changed(old.max_images, *images)),
                max_image_bytes: Some(changed(old.max_image_bytes, *image_bytes)),
                ..PutQuota::default()
            };
            let quota: Quota = client.call(Method::PUT, path, &limits).await?;
            screen.show(&quota, || quota_table(std::slice::from_ref(&quota)))
        }
        QuotaCommand::Clear { of } => {
            client.delete(format!("{PATH}/{}", escaped(of))).await?;
            let shown = serde_json::json!({ "cleared": of });
            screen.show(&shown, || format!("{of} has no limits of its own any more."))
        }
        QuotaCommand::Check => {
            let nothing = serde_json::json!({});
            let check: QuotaCheck =
                client.call(Method::POST, format!("{PATH}/check"), &nothing).await?;
            screen.show(&check, || match check.drifts.as_slice() {
                [] => "All accounts agree with a recount.".to_owned(),
                drifts => drifts.join("\n"),
            })?;
            match check.drifts.len() {
                0 => Ok(()),
                count => Err(Error::Answer(format!("{count} accounts do not add up"))),
            }
        }
    }
}

fn changed(old: Option<u64>, new: Option<Limit>) -> Option<u64> {
    match new {
        None => old,
        Some(Limit(limit)) => limit,
    }
}

fn quota_table(quotas: &[Quota]) -> String {
    let mut rows = table(&["OF", "USED", "RESERVED", "OF AT MOST", "IMAGES", "ONE IMAGE"]);
    for quota in quotas {
        let limits = match (&quota.usage, quota.set) {
            (Some(usage), _) => usage.limits,
            (None, set) => set.unwrap_or_default(),
        };
        let [used, reserved, images] = match &quota.usage {
            Some(usage) => [
                bytes(usage.used_bytes),
                bytes(usage.reserved_bytes),
                format!("{} of {}", usage.images, count(limits.max_images)),
            ],
            None => ["-".to_owned(), "-".to_owned(), count(limits.max_images)],
        };
        let most = limits.max_bytes.map_or_else(unlimited, bytes);
        let one = limits.max_image_bytes.map_or_else(unlimited, bytes);
        rows.add_row([&quota.of, &used, &reserved, &most, &images, &one]);
    }
    rows.to_string()
}

fn unlimited() -> String {
    "any".to_owned()
}

fn count(limit: Option<u64>) -> String {
    limit.map_or_else(unlimited, |limit| limit.to_string())
}

/// One line for a project or an organization.
pub fn usage_line(usage: &Usage) -> String {
    let most = usage.limits.max_bytes.map_or_else(unlimited, bytes);
    let images = count(usage.limits.max_images);
    let (used, reserved) = (bytes(usage.used_bytes), bytes(usage.reserved_bytes));
    format!("{used} of {most} used, {reserved} reserved, {} of {images} images", usage.images)
}
