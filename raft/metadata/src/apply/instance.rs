//! Instances: which virtual machine runs which version.
//!
//! Invariants: an instance's version is there; a version, or an index above it, that an instance
//! runs is not removed, by whatever way, and the refusal names who runs it.

use shoal_content::{Digest, ImageId, InstanceName};

use super::{Step, Stop};
use crate::catalog::{INSTANCES_COUNT, Instance};
use crate::command::{Refusal, Response, Subject};
use crate::key;
use crate::record::{Image, Version};
use crate::table::{Fault, Read, Table};

/// All there can be.
const INSTANCES_MAX: u64 = 2_000_000;
/// Indexes above one manifest that are looked at; with more, the manifest stays.
const ANCESTORS_MAX: usize = 1_000;
/// Named in a refusal.
const NAMED_MAX: usize = 10;

impl<R: Read> Step<'_, R> {
    pub(super) fn register_instance(
        &mut self,
        mut instance: Instance,
        replace: bool,
    ) -> Result<Response, Stop> {
        let image = self.live_image(instance.image)?;
        let version = self.query().version(image.id, &instance.digest)?;
        if version.is_none_or(|version| version.id != instance.version) {
            return Err(Refusal::NotFound(Subject::Version).into());
        }
        instance.updated_at = self.at;
        match self.query().instance(&instance.name)? {
            Some(_) if !replace => return Err(Refusal::Exists(Subject::Instance).into()),
            Some(old) => {
                instance.registered_at = old.registered_at;
                self.rows.remove(
                    Table::VersionInstances,
                    key::version_instance(old.image, &old.digest, &old.name),
                );
            }
            None => {
                let count = self.query().instance_count()?;
                if count >= INSTANCES_MAX {
                    return Err(Refusal::Limit(format!("{INSTANCES_MAX} instances")).into());
                }
                instance.registered_at = self.at;
                self.rows.put(Table::Counts, INSTANCES_COUNT, &(count + 1));
            }
        }
        self.rows.mark(
            Table::VersionInstances,
            key::version_instance(instance.image, &instance.digest, &instance.name),
        );
        self.rows.put(Table::Instances, instance.name.as_str().as_bytes(), &instance);
        Ok(Response::Done)
    }

    pub(super) fn remove_instance(&mut self, name: &InstanceName) -> Result<Response, Stop> {
        let old = self.query().instance(name)?.ok_or(Refusal::NotFound(Subject::Instance))?;
        let count = self.query().instance_count()?;
        let count =
            count.checked_sub(1).ok_or(Fault::Contradiction("fewer instances than none"))?;
        self.rows.put(Table::Counts, INSTANCES_COUNT, &count);
        self.rows.remove(
            Table::VersionInstances,
            key::version_instance(old.image, &old.digest, &old.name),
        );
        self.rows.remove(Table::Instances, name.as_str().as_bytes());
        Ok(Response::Done)
    }

    pub(super) fn check_version_unused(
        &self,
        image: &Image,
        version: &Version,
    ) -> Result<(), Stop> {
        match self.users_of(image.id, &version.digest)? {
            Some(by) => Err(Refusal::InUse { subject: Subject::Version, by }.into()),
            None => Ok(()),
        }
    }

    pub(super) fn is_used(&self, image: ImageId, digest: &Digest) -> Result<bool, Fault> {
        Ok(!self.query().instances_of(image, digest, 1)?.is_empty())
    }

    /// Who runs the manifest, or an index that lists it, however deep.
    fn users_of(&self, image: ImageId, digest: &Digest) -> Result<Option<String>, Stop> {
        self.find_upward(image, digest, ANCESTORS_MAX, |digest| {
            let users = self.query().instances_of(image, digest, NAMED_MAX + 1)?;
            Ok((!users.is_empty()).then(|| sentence(&users)))
        })
    }

    pub(super) fn check_image_unused(&self, image: ImageId) -> Result<(), Stop> {
        let users = self.query().instances_of_image(image, NAMED_MAX + 1)?;
        if users.is_empty() {
            return Ok(());
        }
        Err(Refusal::InUse { subject: Subject::Image, by: sentence(&users) }.into())
    }
}

fn sentence(users: &[InstanceName]) -> String {
    let named: Vec<&str> = users.iter().take(NAMED_MAX).map(InstanceName::as_str).collect();
    let more = if users.len() > NAMED_MAX { " and more" } else { "" };
    let word = if users.len() == 1 { "instance" } else { "instances" };
    format!("by the {word} {}{more}", named.join(", "))
}
