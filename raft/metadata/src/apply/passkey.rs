//! Passkeys: registered, used, changed and removed.
//!
//! Invariant: a registration is compared with how many there were when it began, and the challenge of
//! a login is written down, so that of two nodes that are brought the same answer one refuses.

use shoal_content::Timestamp;

use super::{Step, Stop};
use crate::command::{Refusal, Response, Subject};
use crate::key;
use crate::passkey::{
    Answered, CHALLENGE_KEPT_MS, CREDENTIAL_BYTES_MAX, PASSKEY_BYTES_MAX, PASSKEY_NAME_BYTES_MAX,
    PASSKEY_USES_MAX, PASSKEY_WINDOW_MS, PASSKEYS_MAX, Passkey, PasskeyOwner,
};
use crate::table::{Fault, Read, Table};

/// Spent challenges that one command forgets: more than it makes, so that they come to an end.
const FORGOTTEN_MAX: usize = 16;

impl<R: Read> Step<'_, R> {
    fn own_passkey(&self, user: &str, id: &str) -> Result<Passkey, Stop> {
        let passkey = self.query().passkey(user, id)?;
        Ok(passkey.ok_or(Refusal::NotFound(Subject::Passkey))?)
    }

    fn put_passkey(&mut self, passkey: &Passkey) -> Response {
        self.rows.put(Table::Passkeys, key::session(&passkey.user, &passkey.id), passkey);
        Response::Done
    }

    /// `owner` is what was there when the registration began.
    pub(super) fn add_passkey(
        &mut self,
        passkey: &Passkey,
        owner: &PasskeyOwner,
    ) -> Result<Response, Stop> {
        let Passkey { id, user, credential, key: public, .. } = passkey;
        if self.query().user(user)?.is_none() {
            return Err(Refusal::NotFound(Subject::User).into());
        }
        let before = match self.query().passkey_owner(user)? {
            Some(before) => before,
            None => PasskeyOwner { handle: owner.handle, registered: 0 },
        };
        if before != *owner {
            return Err(Refusal::ChallengeUsed.into());
        }
        check_name(&passkey.name)?;
        if credential.is_empty() || credential.len() > CREDENTIAL_BYTES_MAX {
            let text = format!("{CREDENTIAL_BYTES_MAX} bytes of a credential's id");
            return Err(Refusal::Limit(text).into());
        }
        check_key(public)?;
        let others = self.query().passkeys(user)?;
        let twice = others.iter().any(|other| other.id == *id || other.name == passkey.name);
        if twice || self.query().passkey_of(credential)?.is_some() {
            return Err(Refusal::Exists(Subject::Passkey).into());
        }
        if others.len() >= PASSKEYS_MAX {
            return Err(Refusal::Limit(format!("{PASSKEYS_MAX} passkeys of one user")).into());
        }
        let owner = PasskeyOwner { registered: before.registered + 1, ..before };
        self.rows.put(Table::PasskeyOwners, user.as_bytes(), &owner);
        self.rows.put(Table::Credentials, credential.clone(), &key::session(user, id));
        Ok(self.put_passkey(passkey))
    }

    /// With its counter, and with the rest of its key where the authenticator said something new.
    pub(super) fn use_passkey(
        &mut self,
        user: &str,
        id: &str,
        answered: Answered,
        counter: u32,
        key: Option<Vec<u8>>,
    ) -> Result<Response, Stop> {
        let mut passkey = self.own_passkey(user, id)?;
        let spent = key::spent_challenge(&answered);
        // What is over has perhaps been forgotten already.
        if answered.expires_at <= self.at || self.rows.has(Table::SpentChallenges, &spent)? {
            return Err(Refusal::ChallengeUsed.into());
        }
        let keeps_none = counter == 0 && passkey.counter == 0;
        if counter <= passkey.counter && !keeps_none {
            return Err(Refusal::CounterBehind { counter, before: passkey.counter }.into());
        }
        if let Some(key) = &key {
            check_key(key)?;
        }
        if passkey.uses_since.plus_millis(PASSKEY_WINDOW_MS) <= self.at {
            (passkey.uses, passkey.uses_since) = (0, self.at);
        }
        if passkey.uses >= PASSKEY_USES_MAX {
            let minutes = PASSKEY_WINDOW_MS / 60_000;
            let text = format!("{PASSKEY_USES_MAX} logins by one passkey in {minutes} minutes");
            return Err(Refusal::Limit(text).into());
        }
        passkey.uses += 1;
        passkey.counter = counter;
        passkey.key = key.unwrap_or(passkey.key);
        passkey.last_used_at = Some(self.at);
        self.forget_challenges()?;
        self.rows.mark(Table::SpentChallenges, spent);
        Ok(self.put_passkey(&passkey))
    }

    fn forget_challenges(&mut self) -> Result<(), Fault> {
        let end = self.at.as_millis().saturating_sub(CHALLENGE_KEPT_MS);
        let end = key::time(Timestamp::from_millis(end));
        for (spent, _) in self.rows.scan(Table::SpentChallenges, b"", b"", FORGOTTEN_MAX)? {
            if spent[..] >= end[..] {
                break;
            }
            self.rows.remove(Table::SpentChallenges, spent);
        }
        Ok(())
    }

    /// What is `None` stays as it is.
    pub(super) fn update_passkey(
        &mut self,
        user: &str,
        id: &str,
        name: Option<String>,
        second_factor: Option<bool>,
    ) -> Result<Response, Stop> {
        let mut passkey = self.own_passkey(user, id)?;
        if let Some(name) = name {
            check_name(&name)?;
            let others = self.query().passkeys(user)?;
            if others.iter().any(|other| other.id != id && other.name == name) {
                return Err(Refusal::Exists(Subject::Passkey).into());
            }
            passkey.name = name;
        }
        passkey.second_factor = second_factor.unwrap_or(passkey.second_factor);
        Ok(self.put_passkey(&passkey))
    }

    /// One of them, or all.
    pub(super) fn remove_passkeys(
        &mut self,
        user: &str,
        id: Option<&str>,
    ) -> Result<Response, Stop> {
        let mut passkeys = self.query().passkeys(user)?;
        passkeys.retain(|passkey| id.is_none_or(|id| passkey.id == id));
        if passkeys.is_empty() {
            return Err(Refusal::NotFound(Subject::Passkey).into());
        }
        passkeys.iter().for_each(|passkey| self.drop_passkey(passkey));
        Ok(Response::Done)
    }

    fn drop_passkey(&mut self, passkey: &Passkey) {
        self.rows.remove(Table::Credentials, passkey.credential.clone());
        self.rows.remove(Table::Passkeys, key::session(&passkey.user, &passkey.id));
    }

    /// How many the user has ever had is still known: no question from before the last is one again.
    pub(super) fn drop_all_passkeys(&mut self, user: &str) -> Result<(), Fault> {
        for passkey in self.query().passkeys(user)? {
            self.drop_passkey(&passkey);
        }
        Ok(())
    }

    /// When the user is removed.
    pub(super) fn drop_passkeys_of(&mut self, user: &str) -> Result<(), Fault> {
        self.drop_all_passkeys(user)?;
        self.rows.remove(Table::PasskeyOwners, user.as_bytes());
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), Refusal> {
    match name.len() {
        1..=PASSKEY_NAME_BYTES_MAX => Ok(()),
        _ => Err(Refusal::Limit(format!("1 to {PASSKEY_NAME_BYTES_MAX} bytes of a name"))),
    }
}

fn check_key(key: &[u8]) -> Result<(), Refusal> {
    match key.len() {
        0..=PASSKEY_BYTES_MAX => Ok(()),
        _ => Err(Refusal::Limit(format!("{PASSKEY_BYTES_MAX} bytes of a key"))),
    }
}
