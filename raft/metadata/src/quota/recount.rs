//! Counts anew what is held, from the rows that hold it, and says where the accounts differ.
//!
//! It reads links, versions, projects and reservations, and none of the rows that it checks; so an
//! account that has drifted shows, whatever made it drift. Memory grows with the largest project.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_content::{Digest, ProjectName, RecipeId};

use super::{Account, Held, Payer, Reservation};
use crate::key;
use crate::query::{Query, all_rows};
use crate::record::{Image, Reference};
use crate::table::{Fault, Read, Table};
use crate::transaction::decoded;

/// Projects and images that are looked at in one scan.
const PAGE_ROWS: usize = 1000;

/// What a project can hold once and pay for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A blob or a manifest.
    Digest(Digest),
    /// A disk.
    Recipe(RecipeId),
}

/// Where a stored count and a recount differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Drift {
    Account {
        payer: String,
        stored: Account,
        counted: Account,
    },
    /// So many contents of a project are stored wrongly, or are missing.
    Contents {
        project: ProjectName,
        wrong: u64,
    },
    /// Contents of projects that are not there.
    Strays {
        rows: u64,
    },
}

/// The contents of a project with their keys, and how many images it has.
pub(crate) fn contents_of<R: Read>(
    query: Query<'_, R>,
    project: &ProjectName,
) -> Result<(BTreeMap<Vec<u8>, Held>, u64), Fault> {
    let mut contents = BTreeMap::new();
    let mut images = 0;
    let mut after = None;
    loop {
        let page = query.images_of(project, after.as_ref(), PAGE_ROWS)?;
        images += page.len() as u64;
        for image in &page {
            add_image(query, project, image, &mut contents)?;
        }
        after = page.last().map(|image| image.name.clone());
        if page.len() < PAGE_ROWS {
            break;
        }
    }
    // What is deleted counts as no image any more, but is held until it is gone for good.
    for (image, _) in query.deleted_images_of(project)? {
        add_image(query, project, &image, &mut contents)?;
    }
    Ok((contents, images))
}

fn add_image<R: Read>(
    query: Query<'_, R>,
    project: &ProjectName,
    image: &Image,
    contents: &mut BTreeMap<Vec<u8>, Held>,
) -> Result<(), Fault> {
    let mut hold = |content: Content, bytes: u64| {
        let key = key::project_content(project, &content);
        contents.entry(key).or_insert(Held { holds: 0, bytes }).holds += 1;
    };
    let prefix = key::image(image.id);
    for (key, _) in all_rows(query.read, Table::BlobLinks, &prefix)? {
        let digest = key::read_digest(&key, prefix.len())?;
        let missing = Fault::Contradiction("a linked blob has no row");
        let blob = query.blob(&digest)?.ok_or(missing)?;
        hold(Content::Digest(digest), blob.size);
    }
    query.find_version::<()>(image.id, |version| {
        for reference in version.references {
            if let Reference::Blob { digest, size } = reference {
                hold(Content::Digest(digest), size);
            }
        }
        hold(Content::Digest(version.digest), version.manifest_bytes);
        if let Some(disk) = version.disk {
            hold(Content::Recipe(disk.recipe), disk.content_bytes);
        }
        Ok(None)
    })?;
    Ok(())
}

/// Everything that differs; nothing, where all is well or usage is not counted yet.
///
/// # Errors
/// [`Fault`] where the rows cannot be read.
pub fn drift<R: Read>(query: Query<'_, R>) -> Result<Vec<Drift>, Fault> {
    if !query.counts_usage()? {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let mut accounts: BTreeMap<Payer, Account> = BTreeMap::new();
    let mut known_rows = 0;
    let mut after: Option<ProjectName> = None;
    loop {
        let page = query.projects(after.as_ref(), PAGE_ROWS)?;
        for project in &page {
            let name = &project.name;
            let (contents, images) = contents_of(query, name)?;
            let stored = all_rows(query.read, Table::ProjectContents, &key::project_prefix(name))?;
            known_rows += stored.len();
            let wrong = differences(&contents, stored)?;
            if wrong > 0 {
                found.push(Drift::Contents { project: name.clone(), wrong });
            }
            let bytes: u64 = contents.values().map(|held| held.bytes).sum();
            for payer in query.payers(name, None)? {
                let account = accounts.entry(payer).or_default();
                account.bytes += bytes;
                account.images += images;
            }
        }
        after = page.last().map(|project| project.name.clone());
        if page.len() < PAGE_ROWS {
            break;
        }
    }
    let rows = all_rows(query.read, Table::ProjectContents, b"")?.len() - known_rows;
    if rows > 0 {
        found.push(Drift::Strays { rows: rows as u64 });
    }
    for (_, bytes) in all_rows(query.read, Table::Reservations, b"")? {
        let Reservation { project, bytes } = decoded(Table::Reservations, &bytes)?;
        for payer in query.payers(&project, None)? {
            accounts.entry(payer).or_default().reserved_bytes += bytes;
        }
    }
    found.extend(account_drifts(query, accounts)?);
    Ok(found)
}

/// How many contents are not stored as they were counted, or the other way round.
fn differences(
    counted: &BTreeMap<Vec<u8>, Held>,
    stored: crate::table::Rows,
) -> Result<u64, Fault> {
    let mut right = 0;
    let mut wrong = 0;
    for (key, bytes) in stored {
        let held: Held = decoded(Table::ProjectContents, &bytes)?;
        if counted.get(&key) == Some(&held) {
            right += 1;
        } else {
            wrong += 1;
        }
    }
    Ok(wrong + (counted.len() as u64).saturating_sub(right + wrong))
}

fn account_drifts<R: Read>(
    query: Query<'_, R>,
    counted: BTreeMap<Payer, Account>,
) -> Result<Vec<Drift>, Fault> {
    let mut counted: BTreeMap<String, Account> =
        counted.into_iter().map(|(payer, account)| (payer.to_string(), account)).collect();
    let mut found = Vec::new();
    for (key, bytes) in all_rows(query.read, Table::Accounts, b"")? {
        let payer = key::read_text(&key, 0)?.to_owned();
        let stored: Account = decoded(Table::Accounts, &bytes)?;
        let counted = counted.remove(&payer).unwrap_or_default();
        if stored != counted {
            found.push(Drift::Account { payer, stored, counted });
        }
    }
    let stored = Account::default();
    let unknown = counted.into_iter().filter(|(_, counted)| *counted != stored);
    found.extend(unknown.map(|(payer, counted)| Drift::Account { payer, stored, counted }));
    Ok(found)
}
