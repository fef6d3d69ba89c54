//! What can be asked of the metadata, over any [`Read`].
//!
//! Lists come in byte order of their keys, as pages where they can grow without bound.
//! Non-goal: permission; whoever asks has been let in already.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use shoal_content::{
    Digest, ImageId, NodeId, ObjectKey, PeerId, RepositoryName, TagName, Timestamp, UploadId,
    VersionId,
};

use crate::command::FIRST_LEVEL;
use crate::key;
use crate::record::{
    AcmeAccount, Agent, Blob, Cluster, HttpCertificate, Image, JoinToken, Node, ObjectUse,
    Reference, Upload, User, Version,
};
use crate::table::{Fault, Read, Rows, Table};
use crate::transaction::{decoded, row};

/// The rows that one scan of a list that is wanted whole takes.
pub(crate) const SCAN_ROWS: usize = 1024;

/// The count under [`Table::Counts`] of all images.
pub(crate) const IMAGES_COUNT: &[u8] = b"images";

/// The count under [`Table::Counts`] that says since when it is written down who holds a blob.
pub(crate) const BLOBS_INDEXED_SINCE: &[u8] = b"blobs-indexed-since";

/// The count that says since when what lists go by is kept: audiences, owners, tallies, the order of tags.
pub(crate) const LISTS_INDEXED_SINCE: &[u8] = b"lists-kept-since";

/// Questions to a consistent state.
#[derive(Debug)]
pub struct Query<'a, R: Read> {
    pub(crate) read: &'a R,
}

impl<R: Read> Clone for Query<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: Read> Copy for Query<'_, R> {}

impl<'a, R: Read> Query<'a, R> {
    pub fn new(read: &'a R) -> Self {
        Self { read }
    }

    /// The cluster's own row; `None` before it is founded.
    pub fn cluster(&self) -> Result<Option<Cluster>, Fault> {
        row(self.read, Table::Cluster, b"")
    }

    /// The newest version of commands that may be proposed.
    pub fn level(&self) -> Result<u8, Fault> {
        Ok(row(self.read, Table::Cluster, key::LEVEL)?.unwrap_or(FIRST_LEVEL))
    }

    /// What a node runs, as far as it has said so.
    pub fn program(&self, id: NodeId) -> Result<Option<String>, Fault> {
        row(self.read, Table::Cluster, &key::program(id))
    }

    pub fn acme_account(&self) -> Result<Option<AcmeAccount>, Fault> {
        row(self.read, Table::Cluster, key::ACME_ACCOUNT)
    }

    /// What to answer to an ACME server that asks for `token`.
    pub fn acme_challenge(&self, token: &str) -> Result<Option<String>, Fault> {
        let answers: Option<BTreeMap<String, String>> =
            row(self.read, Table::Cluster, key::ACME_CHALLENGES)?;
        Ok(answers.and_then(|mut answers| answers.remove(token)))
    }

    /// The certificate for HTTPS that an ACME server has issued.
    pub fn http_certificate(&self) -> Result<Option<HttpCertificate>, Fault> {
        row(self.read, Table::Cluster, key::HTTP_CERTIFICATE)
    }

    /// By id.
    pub fn nodes(&self) -> Result<Vec<Node>, Fault> {
        self.all(Table::Nodes, b"")
    }

    pub fn node(&self, id: NodeId) -> Result<Option<Node>, Fault> {
        row(self.read, Table::Nodes, &key::node(id))
    }

    /// The smallest id above all that were ever given out: an id is never used again.
    pub fn next_node_id(&self) -> Result<NodeId, Fault> {
        let mut last = 0;
        for table in [Table::Nodes, Table::RetiredNodes] {
            for (key, _) in self.rows(table, b"")? {
                let number = key.try_into().map(u64::from_be_bytes);
                last = last.max(number.map_err(|_| Fault::Contradiction("a node key's length"))?);
            }
        }
        Ok(NodeId::new(last + 1))
    }

    /// Who had an id whose node was removed.
    pub fn retired_node(&self, id: NodeId) -> Result<Option<PeerId>, Fault> {
        row(self.read, Table::RetiredNodes, &key::node(id))
    }

    /// Whether this was a node, and was removed.
    pub fn is_retired(&self, peer: PeerId) -> Result<bool, Fault> {
        let removed: Vec<PeerId> = self.all(Table::RetiredNodes, b"")?;
        // A machine that was removed and has joined anew has a row.
        Ok(removed.contains(&peer) && self.nodes()?.iter().all(|node| node.peer != peer))
    }

    pub fn user(&self, name: &str) -> Result<Option<User>, Fault> {
        row(self.read, Table::Users, name.as_bytes())
    }

    /// By name.
    pub fn users(&self) -> Result<Vec<User>, Fault> {
        self.all(Table::Users, b"")
    }

    /// A page by name, of those behind the text `after`.
    pub fn users_after(&self, after: &str, limit: usize) -> Result<Vec<User>, Fault> {
        self.page(Table::Users, b"", after.as_bytes(), limit)
    }

    /// By id.
    pub fn join_tokens(&self) -> Result<Vec<JoinToken>, Fault> {
        self.all(Table::JoinTokens, b"")
    }

    pub fn join_token(&self, id: &str) -> Result<Option<JoinToken>, Fault> {
        row(self.read, Table::JoinTokens, id.as_bytes())
    }

    pub fn agent(&self, peer: PeerId) -> Result<Option<Agent>, Fault> {
        row(self.read, Table::Agents, &key::peer(peer))
    }

    pub fn agent_by_name(&self, name: &str) -> Result<Option<Agent>, Fault> {
        match row::<PeerId>(self.read, Table::AgentNames, name.as_bytes())? {
            Some(peer) => self.agent(peer),
            None => Ok(None),
        }
    }

    /// Agents and nodes that were removed and whose certificates may hold at `now`.
    pub fn expelled(&self, now: Timestamp) -> Result<BTreeSet<PeerId>, Fault> {
        let agents = self.expelled_agents()?.into_iter();
        let agents = agents.filter(|(_, until)| *until > now).map(|(peer, _)| peer);
        let mut expelled: BTreeSet<PeerId> = agents.collect();
        expelled.extend(self.all::<PeerId>(Table::RetiredNodes, b"")?);
        for node in self.nodes()? {
            // A machine that was removed and has joined anew.
            expelled.remove(&node.peer);
        }
        Ok(expelled)
    }

    pub(crate) fn expelled_agents(&self) -> Result<Vec<(PeerId, Timestamp)>, Fault> {
        self.all(Table::Expelled, b"")
    }

    /// A page by name, of those behind the text `after`.
    pub fn agents_after(&self, after: &str, limit: usize) -> Result<Vec<Agent>, Fault> {
        let peers: Vec<PeerId> = self.page(Table::AgentNames, b"", after.as_bytes(), limit)?;
        let agents: Result<Option<Vec<_>>, Fault> =
            peers.into_iter().map(|peer| self.agent(peer)).collect();
        agents?.ok_or(Fault::Contradiction("an index names no agent"))
    }

    /// By peer.
    pub fn agents(&self) -> Result<Vec<Agent>, Fault> {
        self.all(Table::Agents, b"")
    }

    pub fn image(&self, id: ImageId) -> Result<Option<Image>, Fault> {
        row(self.read, Table::Images, &key::image(id))
    }

    pub fn image_by_name(&self, name: &RepositoryName) -> Result<Option<Image>, Fault> {
        match row::<ImageId>(self.read, Table::ImageNames, name.as_str().as_bytes())? {
            Some(id) => self.image(id),
            None => Ok(None),
        }
    }

    /// A page by name, of those after `after`.
    pub fn images(
        &self,
        after: Option<&RepositoryName>,
        limit: usize,
    ) -> Result<Vec<Image>, Fault> {
        let from = after.map(|name| key::after(name.as_str().as_bytes().to_vec()));
        let rows = self.read.scan(Table::ImageNames, from.as_deref().unwrap_or(b""), b"", limit)?;
        let id = |bytes: &[u8]| decoded::<ImageId>(Table::ImageNames, bytes);
        let missing = Fault::Contradiction("a name without its image");
        let images: Result<Option<Vec<Image>>, Fault> =
            rows.iter().map(|(_, bytes)| self.image(id(bytes)?)).collect();
        images?.ok_or(missing)
    }

    /// A page by id, of those after `after`; those in the trash are among them.
    pub fn images_by_id(&self, after: Option<ImageId>, limit: usize) -> Result<Vec<Image>, Fault> {
        let from = after.map(|after| key::after(key::image(after).to_vec())).unwrap_or_default();
        let rows = self.read.scan(Table::Images, &from, b"", limit)?;
        rows.iter().map(|(_, bytes)| decoded(Table::Images, bytes)).collect()
    }

    /// Names of images in byte order, from `from` on, at most `limit`.
    pub fn image_names(&self, from: &str, limit: usize) -> Result<Vec<RepositoryName>, Fault> {
        let rows = self.read.scan(Table::ImageNames, from.as_bytes(), b"", limit)?;
        let name = |key: &[u8]| std::str::from_utf8(key).ok()?.parse().ok();
        let names: Option<_> = rows.iter().map(|(key, _)| name(key)).collect();
        names.ok_or(Fault::Contradiction("a name that is none"))
    }

    /// How many images there are.
    pub fn image_count(&self) -> Result<u64, Fault> {
        Ok(row(self.read, Table::Counts, IMAGES_COUNT)?.unwrap_or(0))
    }

    pub fn version(&self, image: ImageId, digest: &Digest) -> Result<Option<Version>, Fault> {
        row(self.read, Table::Versions, &key::image_digest(image, digest))
    }

    pub fn version_by_id(&self, id: VersionId) -> Result<Option<Version>, Fault> {
        match row::<(ImageId, Digest)>(self.read, Table::VersionIds, &key::version(id))? {
            Some((image, digest)) => self.version(image, &digest),
            None => Ok(None),
        }
    }

    /// The disk version that its uploader called `number`.
    pub fn version_by_number(
        &self,
        image: ImageId,
        number: &str,
    ) -> Result<Option<Version>, Fault> {
        match row::<Digest>(self.read, Table::VersionNumbers, &key::number(image, number))? {
            Some(digest) => self.version(image, &digest),
            None => Ok(None),
        }
    }

    /// All versions of an image, by sequence: for tests and other small states. A row may be
    /// megabytes long; see [`Self::find_version`] and [`Self::newest_versions`].
    pub fn versions(&self, image: ImageId) -> Result<Vec<Version>, Fault> {
        let digests: Vec<Digest> = self.all(Table::VersionSequences, &key::image(image))?;
        digests.iter().rev().map(|digest| self.present(image, digest)).collect()
    }

    /// A page of an image's versions, the newest first, of those before the sequence `before`.
    pub fn versions_before(
        &self,
        image: ImageId,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Version>, Fault> {
        let prefix = key::image(image);
        let from = before.map(|before| key::after(key::sequence(image, before)));
        let from = from.as_deref().unwrap_or(&prefix);
        let rows = self.read.scan(Table::VersionSequences, from, &prefix, limit)?;
        let digest = |bytes: &[u8]| decoded::<Digest>(Table::VersionSequences, bytes);
        rows.iter().map(|(_, bytes)| self.present(image, &digest(bytes)?)).collect()
    }

    /// Looks at an image's versions, the one that came last first, until `look` finds something. One
    /// is held at a time: a row may be megabytes long, and an image may have thousands of them.
    pub fn find_version<T>(
        &self,
        image: ImageId,
        mut look: impl FnMut(Version) -> Result<Option<T>, Fault>,
    ) -> Result<Option<T>, Fault> {
        let mut pages = Pages::of(Table::VersionSequences, &key::image(image));
        while let Some(page) = pages.next_page(self.read)? {
            for (_, bytes) in page {
                let digest: Digest = decoded(Table::VersionSequences, &bytes)?;
                if let Some(found) = look(self.present(image, &digest)?)? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// A version whose file has this digest.
    pub fn disk_of_file(&self, image: ImageId, file: &Digest) -> Result<Option<Version>, Fault> {
        let prefix = key::image_digest(image, file);
        let rows = self.read.scan(Table::DiskFiles, &prefix, &prefix, 1)?;
        match rows.first() {
            Some((key, _)) => Ok(Some(self.present(image, &key::read_digest(key, prefix.len())?)?)),
            None => Ok(None),
        }
    }

    /// A page of the digests of the versions whose subject is `subject`, of those after `after`.
    pub fn referrers_after(
        &self,
        image: ImageId,
        subject: &Digest,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<Digest>, Fault> {
        let prefix = key::image_digest(image, subject);
        let from = after.map(|last| key::after(key::referrer(image, subject, last)));
        let from = from.as_deref().unwrap_or(&prefix);
        let rows = self.read.scan(Table::Referrers, from, &prefix, limit)?;
        rows.iter().map(|(key, _)| key::read_digest(key, prefix.len())).collect()
    }

    /// Since when a repository holds a blob that no version of it needs; `None` where one does, or
    /// the repository does not hold it.
    pub fn loose_since(&self, image: ImageId, digest: &Digest) -> Result<Option<Timestamp>, Fault> {
        row(self.read, Table::LooseBlobs, &key::image_digest(image, digest))
    }

    /// A manifest, exactly as it was sent.
    pub fn manifest(&self, image: ImageId, digest: &Digest) -> Result<Option<Vec<u8>>, Fault> {
        self.read.get(Table::Manifests, &key::image_digest(image, digest))
    }

    pub fn tag(&self, image: ImageId, name: &TagName) -> Result<Option<Digest>, Fault> {
        row(self.read, Table::Tags, &key::tag(image, name))
    }

    /// A page by name in byte order, of those after `after`.
    pub fn tags(
        &self,
        image: ImageId,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(TagName, Digest)>, Fault> {
        let prefix = key::image(image);
        let from = after.map(|text| key::after(key::join(&[&prefix, text.as_bytes()])));
        let from = from.as_deref().unwrap_or(&prefix);
        let rows = self.read.scan(Table::Tags, from, &prefix, limit)?;
        rows.iter()
            .map(|(key, bytes)| Ok((tag_name(key, prefix.len())?, decoded(Table::Tags, bytes)?)))
            .collect()
    }

    /// The names of a version, in byte order.
    pub fn tags_of(&self, image: ImageId, digest: &Digest) -> Result<Vec<TagName>, Fault> {
        let prefix = key::image_digest(image, digest);
        let rows = self.rows(Table::VersionTags, &prefix)?;
        rows.iter().map(|(key, _)| tag_name(key, prefix.len())).collect()
    }

    pub fn blob(&self, digest: &Digest) -> Result<Option<Blob>, Fault> {
        row(self.read, Table::Blobs, &key::digest(digest))
    }

    /// Whether the repository holds the blob.
    pub fn blob_in(&self, image: ImageId, digest: &Digest) -> Result<bool, Fault> {
        Ok(self.read.get(Table::BlobLinks, &key::image_digest(image, digest))?.is_some())
    }

    /// Whether it is written down who holds a blob, and how many uploads are open: not in a cluster
    /// that was founded before that, until [`crate::Command::IndexBlobs`].
    pub fn indexes_blobs(&self) -> Result<bool, Fault> {
        Ok(self.read.get(Table::Counts, BLOBS_INDEXED_SINCE)?.is_some())
    }

    /// Whether what lists go by is kept: not in a cluster that was founded before that, until
    /// [`crate::Command::IndexLists`].
    pub fn indexes_lists(&self) -> Result<bool, Fault> {
        Ok(self.read.get(Table::Counts, LISTS_INDEXED_SINCE)?.is_some())
    }

    /// How many of an account's uploads of blobs are open; none where it is not written down.
    pub fn open_uploads(&self, account: &str) -> Result<u64, Fault> {
        Ok(row(self.read, Table::OpenUploads, account.as_bytes())?.unwrap_or(0))
    }

    /// What a version of the repository refers to by this digest, where that has not come yet: the
    /// repository is a cache of another registry's.
    pub fn awaited(&self, image: ImageId, digest: &Digest) -> Result<Option<Reference>, Fault> {
        let prefix = key::image_digest(image, digest);
        let rows = self.read.scan(Table::AwaitedContents, &prefix, &prefix, 1)?;
        rows.first().map(|(_, bytes)| decoded(Table::AwaitedContents, bytes)).transpose()
    }

    /// What a version refers to and what has not come yet, by digest.
    pub fn awaited_by(&self, image: ImageId, version: &Digest) -> Result<Vec<Reference>, Fault> {
        let prefix = key::image_digest(image, version);
        let missing = Fault::Contradiction("a version awaits what no row has");
        let rows = self.rows(Table::AwaitingVersions, &prefix)?;
        let found: Result<Option<Vec<Reference>>, Fault> = rows
            .iter()
            .map(|(key, _)| {
                let content = key::read_digest(key, prefix.len())?;
                let key = key::awaited_content(image, &content, version);
                row(self.read, Table::AwaitedContents, &key)
            })
            .collect();
        found?.ok_or(missing)
    }

    /// Blobs in the order of their digests, from `from` on, at most `limit`.
    pub fn blobs(&self, from: &Digest, limit: usize) -> Result<Vec<Blob>, Fault> {
        let rows = self.read.scan(Table::Blobs, &key::digest(from), b"", limit)?;
        rows.iter().map(|(_, bytes)| decoded(Table::Blobs, bytes)).collect()
    }

    /// Blobs in the order of their digests, of those after `after`, at most `limit`.
    pub fn blobs_after(&self, after: Option<&Digest>, limit: usize) -> Result<Vec<Blob>, Fault> {
        let from = after.map(|after| key::after(key::digest(after))).unwrap_or_default();
        let rows = self.read.scan(Table::Blobs, &from, b"", limit)?;
        rows.iter().map(|(_, bytes)| decoded(Table::Blobs, bytes)).collect()
    }

    /// Objects that storage has or should have, in the order of their keys, of those after `after`,
    /// at most `limit`.
    pub fn objects_after(
        &self,
        after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<(ObjectKey, ObjectUse)>, Fault> {
        let from = after.map(|after| key::after(key::object(after))).unwrap_or_default();
        let rows = self.read.scan(Table::Objects, &from, b"", limit)?;
        rows.iter()
            .map(|(key, bytes)| {
                let object = key::read_text(key, 0)?;
                let object = object.parse();
                let object = object.map_err(|_| Fault::Contradiction("a row names no object"))?;
                Ok((object, decoded(Table::Objects, bytes)?))
            })
            .collect()
    }

    pub fn object(&self, object: &ObjectKey) -> Result<Option<ObjectUse>, Fault> {
        row(self.read, Table::Objects, &key::object(object))
    }

    /// Objects whose count is zero and was since before `before`, longest first, at most `limit`.
    pub fn unreferenced_objects(
        &self,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<ObjectKey>, Fault> {
        let rows = self.read.scan(Table::UnreferencedObjects, b"", b"", limit)?;
        let end = key::time(before);
        let due = rows.iter().take_while(|(key, _)| key[..] < end[..]);
        due.map(|(key, _)| {
            let text = key::read_text(key, key::TIME_BYTES)?;
            text.parse().map_err(|_| Fault::Contradiction("an index names no object"))
        })
        .collect()
    }

    /// Objects whose bytes are being deleted, with the time since when, after `after` in the order
    /// of their keys.
    pub fn deleting_objects(
        &self,
        after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<(ObjectKey, Timestamp)>, Fault> {
        let from = after.map(|after| key::after(key::object(after))).unwrap_or_default();
        let rows = self.read.scan(Table::DeletingObjects, &from, b"", limit)?;
        rows.iter()
            .map(|(key, bytes)| {
                let object = key::read_text(key, 0)?;
                let object = object
                    .parse()
                    .map_err(|_| Fault::Contradiction("a row of a deletion names no object"))?;
                Ok((object, decoded(Table::DeletingObjects, bytes)?))
            })
            .collect()
    }

    /// Blobs that repositories hold without need, with the time since when, after `after`.
    pub fn loose_blobs(
        &self,
        after: Option<&(ImageId, Digest)>,
        limit: usize,
    ) -> Result<Vec<(ImageId, Digest, Timestamp)>, Fault> {
        let from = after.map(|(image, digest)| key::after(key::image_digest(*image, digest)));
        let rows = self.read.scan(Table::LooseBlobs, &from.unwrap_or_default(), b"", limit)?;
        rows.iter()
            .map(|(key, bytes)| {
                let (image, digest) = key::read_image_digest(key)?;
                Ok((image, digest, decoded(Table::LooseBlobs, bytes)?))
            })
            .collect()
    }

    pub fn upload(&self, id: UploadId) -> Result<Option<Upload>, Fault> {
        row(self.read, Table::Uploads, &key::upload(id))
    }

    /// All sessions, by id.
    pub fn uploads(&self) -> Result<Vec<Upload>, Fault> {
        self.all(Table::Uploads, b"")
    }

    /// A page of them, of those after `after`.
    pub fn uploads_after(
        &self,
        after: Option<UploadId>,
        limit: usize,
    ) -> Result<Vec<Upload>, Fault> {
        let after = after.map(key::upload);
        self.page(Table::Uploads, b"", after.as_ref().map_or(&[][..], |key| &key[..]), limit)
    }

    fn present(&self, image: ImageId, digest: &Digest) -> Result<Version, Fault> {
        self.version(image, digest)?.ok_or(Fault::Contradiction("an index names no version"))
    }

    pub(crate) fn all<T: DeserializeOwned>(
        &self,
        table: Table,
        prefix: &[u8],
    ) -> Result<Vec<T>, Fault> {
        self.rows(table, prefix)?.iter().map(|(_, bytes)| decoded(table, bytes)).collect()
    }

    /// Some of them: those whose key comes behind the prefix and `after`.
    pub(crate) fn page<T: DeserializeOwned>(
        &self,
        table: Table,
        prefix: &[u8],
        after: &[u8],
        limit: usize,
    ) -> Result<Vec<T>, Fault> {
        let from = key::after(key::join(&[prefix, after]));
        let rows = self.read.scan(table, &from, prefix, limit)?;
        rows.iter().map(|(_, bytes)| decoded(table, bytes)).collect()
    }

    pub(crate) fn rows(&self, table: Table, prefix: &[u8]) -> Result<Rows, Fault> {
        all_rows(self.read, table, prefix)
    }
}

/// Every row under a prefix, taken in bounded scans.
pub(crate) fn all_rows(read: &impl Read, table: Table, prefix: &[u8]) -> Result<Rows, Fault> {
    let mut rows = Rows::new();
    let mut from = prefix.to_vec();
    loop {
        let page = read.scan(table, &from, prefix, SCAN_ROWS)?;
        let last = page.len() < SCAN_ROWS;
        if let Some((key, _)) = page.last() {
            from = key::after(key.clone());
        }
        rows.extend(page);
        if last {
            return Ok(rows);
        }
    }
}

/// The rows under a prefix, page by page. Whoever changes rows in between loses none by it, and
/// what was removed is not read past again.
#[derive(Debug)]
pub(crate) struct Pages {
    table: Table,
    prefix: Vec<u8>,
    from: Vec<u8>,
}

impl Pages {
    pub fn of(table: Table, prefix: &[u8]) -> Self {
        Self { table, prefix: prefix.to_vec(), from: prefix.to_vec() }
    }

    /// `None` at the end.
    pub fn next_page(&mut self, read: &impl Read) -> Result<Option<Rows>, Fault> {
        let page = read.scan(self.table, &self.from, &self.prefix, SCAN_ROWS)?;
        let Some((last, _)) = page.last() else { return Ok(None) };
        self.from = key::after(last.clone());
        Ok(Some(page))
    }
}

fn tag_name(key: &[u8], skip: usize) -> Result<TagName, Fault> {
    let text = key::read_text(key, skip)?;
    text.parse().map_err(|_| Fault::Contradiction("a key names no tag"))
}
