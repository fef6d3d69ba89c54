//! New keys to sign with, and the end of old ones.

use shoal_content::Timestamp;

use super::{Step, Stop};
use crate::command::{Event, Refusal, Response, Subject};
use crate::key;
use crate::keys::{
    KeyPurpose, SIGNING_KEY_BYTES_MAX, SIGNING_KEYS_MAX, SigningKey, accepted_until,
};
use crate::record::Secret;
use crate::table::{Read, Table};

impl<R: Read> Step<'_, R> {
    /// Refused where `newest` is not the newest any more: two nodes that rotate at once make one
    /// key.
    pub(super) fn rotate_signing_key(
        &mut self,
        purpose: KeyPurpose,
        newest: u32,
        (private, signs_from): (Secret, Timestamp),
        distrusted: bool,
    ) -> Result<Response, Stop> {
        let keys = self.query().signing_keys(purpose)?;
        let last = keys.last().ok_or(Refusal::NotFound(Subject::Cluster))?;
        if last.number != newest {
            return Err(Refusal::Exists(Subject::SigningKey).into());
        }
        if private.0.len() > SIGNING_KEY_BYTES_MAX {
            return Err(Refusal::Limit(format!("{SIGNING_KEY_BYTES_MAX} bytes")).into());
        }
        let number = newest.checked_add(1).ok_or(Refusal::Limit("numbers of keys".into()))?;
        // Those who sign take the last that has begun, so it may not begin before another.
        let signs_from = if distrusted { self.at } else { signs_from.max(last.signs_from) };
        let key = SigningKey { number, private, signs_from };
        let mut kept = Vec::new();
        if !distrusted {
            let good = |at: &usize| accepted_until(&keys, *at).is_none_or(|end| end > self.at);
            kept.extend((0..keys.len()).filter(good).map(|at| keys[at].clone()));
        }
        kept.push(key);
        if kept.len() > SIGNING_KEYS_MAX {
            let text =
                format!("{SIGNING_KEYS_MAX} keys of one kind; wait until the first runs out");
            return Err(Refusal::Limit(text).into());
        }
        self.rows.put(Table::Cluster, key::signing_keys(purpose), &kept);
        self.events.push(Event::SigningKeysChanged);
        Ok(Response::Done)
    }
}
