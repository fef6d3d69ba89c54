//! Storage's upkeep: what would go, let it go now, look through all of it.

use std::time::Duration;

use reqwest::Method;
use shoal_api::{
    CollectionDone, CollectionStatus, CompactStorage, CompactionStatus, OpenUpload, ScrubStatus,
    StorageStatus, VerificationStatus, VerifyStorage, Waiting,
};

use crate::arguments::StorageCommand;
use crate::client::{Client, escaped};
use crate::error::Error;
use crate::screen::{Screen, bytes, table};

const POLL_INTERVAL: Duration = Duration::from_millis(500);
const PATH: &str = "api/v1/storage";

pub async fn storage(
    command: &StorageCommand,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    match command {
        StorageCommand::Status => {
            let status: StorageStatus = client.get(PATH).await?;
            screen.show(&status, || {
                let parts = [
                    waiting(&status),
                    collection(&status.collection),
                    compaction(&status.compaction),
                    scrub(&status.scrub),
                ];
                parts.join("\n\n")
            })
        }
        StorageCommand::Collect { dry_run: true } => {
            let status: StorageStatus = client.get(PATH).await?;
            screen.show(&status, || format!("{}\n{}", waiting(&status), examples(&status)))
        }
        StorageCommand::Collect { dry_run: false } => {
            let done = follow_collection(client, screen).await?;
            screen.show(&done, || collected(&done))
        }
        StorageCommand::Compact { dry_run } => follow_compaction(*dry_run, client, screen).await,
        StorageCommand::Uploads => {
            let uploads: Vec<OpenUpload> = client.list(&format!("{PATH}/uploads")).await?;
            screen.show(&uploads, || {
                let mut rows = table(&["ID", "IMAGE", "OWNER", "RECEIVED", "BEGUN", "EXPIRES"]);
                for upload in &uploads {
                    rows.add_row([
                        upload.id.as_str(),
                        &upload.image,
                        &upload.owner,
                        &bytes(upload.received_bytes),
                        &upload.created_at,
                        &upload.expires_at,
                    ]);
                }
                rows.to_string()
            })
        }
        StorageCommand::Abort { upload } => {
            client.delete(format!("{PATH}/uploads/{}", escaped(upload))).await?;
            screen.show(&serde_json::json!({ "aborted": upload }), || format!("Ended {upload}."))
        }
        StorageCommand::Scrub => follow_scrub(client, screen).await,
        StorageCommand::Verify { read } => verify(*read, client, screen).await,
    }
}

/// The table of what waits.
fn waiting(status: &StorageStatus) -> String {
    let mut rows = table(&["", "WAITING", "DUE NOW"]);
    for (name, Waiting { total, due, more, .. }) in [
        ("blobs no version needs", &status.loose_blobs),
        ("unreferenced objects", &status.unreferenced),
    ] {
        let total = if *more { format!("{total} or more") } else { total.to_string() };
        rows.add_row([name.to_owned(), total, due.to_string()]);
    }
    let held = format!("{}, {}", status.open_uploads, bytes(status.open_upload_bytes));
    rows.add_row(["unfinished uploads".to_owned(), held, String::new()]);
    rows.add_row(["being deleted".to_owned(), status.deleting_objects.to_string(), String::new()]);
    format!("{rows}\nWhat nothing refers to is kept for {} s.", status.grace_seconds)
}

fn collected(done: &CollectionDone) -> String {
    let CollectionDone { deleted, freed_bytes, deleted_again, forgotten, unlinked } = done;
    format!(
        "Deleted {deleted} objects of {} ({deleted_again} again), freed {forgotten} names, \
         unlinked {unlinked} blobs.",
        bytes(*freed_bytes)
    )
}

/// How far a collection is, or how it ended.
fn collection(status: &CollectionStatus) -> String {
    let CollectionStatus { running, started_at, due, more_due, left, done, error, .. } = status;
    let Some(started_at) = started_at else {
        return "This node has not collected since it started; the leader does by itself."
            .to_owned();
    };
    let state = match (error, running) {
        (_, true) => "is under way".to_owned(),
        (Some(error), false) => format!("ended early: {error}"),
        (None, false) => "ended".to_owned(),
    };
    let more = if *more_due { " or more" } else { "" };
    format!(
        "The collection of {started_at} {state}; {due}{more} objects were due, {left} are left. {}",
        collected(done)
    )
}

/// Collects, and shows how far it is.
async fn follow_collection(client: &Client, screen: Screen) -> Result<CollectionDone, Error> {
    let nothing = serde_json::json!({});
    let collect = client.call(Method::POST, format!("{PATH}/collect"), &nothing);
    tokio::pin!(collect);
    let spinner = screen.spinner("collecting");
    let done = loop {
        tokio::select! {
            done = &mut collect => break done,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        // It is shown as far as it can be; what counts is the answer.
        if let Ok(status) = client.get::<StorageStatus>(PATH).await {
            let CollectionStatus { left, done, .. } = status.collection;
            let freed = bytes(done.freed_bytes);
            let text = format!("collecting: {} deleted, {freed} freed, {left} left", done.deleted);
            spinner.set_message(text);
        }
    };
    spinner.finish_and_clear();
    done
}

/// How far a compaction is, or how it ended.
fn compaction(status: &CompactionStatus) -> String {
    let CompactionStatus { running, dry_run, packs, written_bytes, saved_bytes, .. } = status;
    let Some(started_at) = &status.started_at else {
        return "This node has not compacted since it started; the leader does by itself."
            .to_owned();
    };
    let state = match (&status.error, running) {
        (_, true) => format!("is under way, {} images are left", status.images_left),
        (Some(error), false) => format!("ended, and met this: {error}"),
        (None, false) => "ended".to_owned(),
    };
    let (written, saved) = (bytes(*written_bytes), bytes(*saved_bytes));
    if *dry_run {
        return format!(
            "The dry run of a compaction of {started_at} {state}; of {packs} packs {written} would \
             be written anew, and {saved} saved.",
        );
    }
    format!(
        "The compaction of {started_at} {state}; of {packs} packs {written} were written anew, which \
         saves {saved} after the grace period.",
    )
}

/// Starts a compaction, and shows how far it is.
async fn follow_compaction(dry_run: bool, client: &Client, screen: Screen) -> Result<(), Error> {
    let path = format!("{PATH}/compact");
    let wanted = CompactStorage { dry_run };
    let mut status: CompactionStatus = client.call(Method::POST, path, &wanted).await?;
    if status.dry_run != dry_run {
        let other = if dry_run { "a compaction" } else { "a dry run" };
        return Err(Error::Usage(format!("{other} is under way")));
    }
    let spinner = screen.spinner("compacting");
    while status.running {
        tokio::time::sleep(POLL_INTERVAL).await;
        status = client.get::<StorageStatus>(PATH).await?.compaction;
        let (packs, left) = (status.packs, status.images_left);
        let saved = bytes(status.saved_bytes);
        spinner
            .set_message(format!("compacting: {packs} packs, {saved} saved, {left} images left"));
    }
    spinner.finish_and_clear();
    screen.show(&status, || compaction(&status))?;
    match status.error {
        None => Ok(()),
        Some(reason) => Err(Error::Failed { what: "the compaction".into(), reason }),
    }
}

fn examples(status: &StorageStatus) -> String {
    let lists = [&status.loose_blobs, &status.unreferenced];
    let due: Vec<&str> = lists.iter().flat_map(|list| &list.examples).map(String::as_str).collect();
    if due.is_empty() {
        return "Nothing would go now.".to_owned();
    }
    format!("These would go now, among others:\n  {}", due.join("\n  "))
}

fn scrub(status: &ScrubStatus) -> String {
    let Some(started_at) = &status.started_at else {
        return "This node has not scrubbed since it started.".to_owned();
    };
    let ScrubStatus {
        objects, bytes, orphans, leftovers, verified, verified_bytes, damaged, ..
    } = status;
    let state = match (&status.error, status.running) {
        (_, true) => "is under way".to_owned(),
        (Some(error), false) => format!("ended early: {error}"),
        (None, false) => "ended".to_owned(),
    };
    format!(
        "The scrub of {started_at} {state}: {objects} objects of {} MiB looked at, {orphans} \
         orphans found, {leftovers} leftovers deleted, {verified} objects of {} MiB verified, \
         {damaged} damaged.",
        bytes >> 20,
        verified_bytes >> 20
    )
}

/// Starts a scrub, shows how far it is, and fails where it found damage.
async fn follow_scrub(client: &Client, screen: Screen) -> Result<(), Error> {
    let nothing = serde_json::json!({});
    let mut status: ScrubStatus =
        client.call(Method::POST, format!("{PATH}/scrub"), &nothing).await?;
    let spinner = screen.spinner("scrubbing");
    while status.running {
        tokio::time::sleep(POLL_INTERVAL).await;
        let all: StorageStatus = client.get(PATH).await?;
        status = all.scrub;
        spinner.set_message(format!(
            "scrubbing: {} objects looked at, {} verified",
            status.objects, status.verified
        ));
    }
    spinner.finish_and_clear();
    screen.show(&status, || scrub(&status))?;
    match status.damaged {
        0 => Ok(()),
        damaged => Err(Error::Failed {
            what: "the scrub".into(),
            reason: format!("{damaged} objects are damaged or missing; the node's log names them"),
        }),
    }
}

/// Starts a verification, shows how far it is, and fails where something is not as it should be.
async fn verify(read: bool, client: &Client, screen: Screen) -> Result<(), Error> {
    let wanted = VerifyStorage { read };
    let path = format!("{PATH}/verify");
    let mut status: VerificationStatus = client.call(Method::POST, path, &wanted).await?;
    if read && !status.read {
        return Err(Error::Usage("another verification, without --read, is under way".into()));
    }
    let spinner = screen.spinner("verifying");
    while status.running {
        tokio::time::sleep(POLL_INTERVAL).await;
        let all: StorageStatus = client.get(PATH).await?;
        status = all.verification;
        let text = format!("verifying: {} objects, {}", status.objects, bytes(status.bytes));
        spinner.set_message(text);
    }
    spinner.finish_and_clear();
    screen.show(&status, || verified(&status))?;
    let failed = |reason| Err(Error::Failed { what: "the verification".into(), reason });
    if let Some(error) = &status.error {
        return failed(format!("it ended early: {error}"));
    }
    match status.missing + status.wrong_size + status.damaged {
        0 => Ok(()),
        flawed => failed(format!("{flawed} objects are missing or damaged")),
    }
}

fn verified(status: &VerificationStatus) -> String {
    let VerificationStatus { objects, missing, wrong_size, damaged, flaws, read, .. } = status;
    let how = if *read { "read and compared" } else { "looked at" };
    let mut text = format!(
        "{objects} objects that the metadata name were {how}, {}: {missing} are missing, \
         {wrong_size} of another size, {damaged} damaged.",
        bytes(status.bytes)
    );
    for flaw in flaws {
        let digest = flaw.digest.as_ref().map(|digest| format!(" ({digest})")).unwrap_or_default();
        text.push_str(&format!("\n  {}{digest}: {}", flaw.object, flaw.flaw));
    }
    text
}
