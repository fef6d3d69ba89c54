//! Second factors and sessions.
//!
//! Invariant: what a code may be used for once is taken here, so that of two nodes that are brought
//! the same code one refuses.

use std::collections::BTreeSet;

use shoal_content::{AccountName, ProjectName, Timestamp};

use super::{Step, Stop};
use crate::command::{Refusal, Response, Subject};
use crate::key;
use crate::lockout::Suspect;
use crate::login::{
    EMAIL_BYTES_MAX, IDENTITIES_MAX, IDENTITY_BYTES_MAX, Identity, Leaving, Proof,
    RECOVERY_CODES_MAX, SESSION_AGENT_BYTES_MAX, SecondFactor, Session, is_email,
};
use crate::record::{Secret, User, UserRole};
use crate::rights::{RobotName, WORKLOAD_RULES_MAX, WorkloadRule};
use crate::table::{Fault, Read, Table};

impl<R: Read> Step<'_, R> {
    fn known_user(&self, user: &str) -> Result<(), Stop> {
        match self.query().user(user)? {
            Some(_) => Ok(()),
            None => Err(Refusal::NotFound(Subject::User).into()),
        }
    }

    fn factor(&self, user: &str) -> Result<SecondFactor, Stop> {
        let factor = self.query().second_factor(user)?;
        Ok(factor.ok_or(Refusal::NotFound(Subject::SecondFactor))?)
    }

    fn put_factor(&mut self, user: &str, factor: &SecondFactor) -> Response {
        self.rows.put(Table::SecondFactors, user.as_bytes(), factor);
        Response::Done
    }

    /// One that was not confirmed is replaced.
    pub(super) fn begin_second_factor(
        &mut self,
        user: &str,
        secret: Secret,
    ) -> Result<Response, Stop> {
        self.known_user(user)?;
        let factor = self.query().second_factor(user)?;
        if factor.is_some_and(|factor| factor.confirmed_at.is_some()) {
            return Err(Refusal::Exists(Subject::SecondFactor).into());
        }
        let factor = SecondFactor {
            secret,
            created_at: self.at,
            confirmed_at: None,
            last_step: 0,
            recovery: BTreeSet::new(),
        };
        Ok(self.put_factor(user, &factor))
    }

    pub(super) fn confirm_second_factor(
        &mut self,
        user: &str,
        step: u64,
        recovery: BTreeSet<[u8; 32]>,
    ) -> Result<Response, Stop> {
        let factor = self.factor(user)?;
        if factor.confirmed_at.is_some() {
            return Err(Refusal::Exists(Subject::SecondFactor).into());
        }
        check_count(&recovery)?;
        let confirmed_at = Some(self.at);
        let factor = SecondFactor { confirmed_at, last_step: step, recovery, ..factor };
        Ok(self.put_factor(user, &factor))
    }

    pub(super) fn use_second_factor(&mut self, user: &str, proof: Proof) -> Result<Response, Stop> {
        let mut factor = self.factor(user)?;
        let fresh = match proof {
            Proof::Step(step) => {
                let later = step > factor.last_step;
                factor.last_step = factor.last_step.max(step);
                later
            }
            Proof::Recovery(hash) => factor.recovery.remove(&hash),
        };
        if factor.confirmed_at.is_none() || !fresh {
            return Err(Refusal::CodeUsed.into());
        }
        Ok(self.put_factor(user, &factor))
    }

    pub(super) fn put_recovery_codes(
        &mut self,
        user: &str,
        recovery: BTreeSet<[u8; 32]>,
    ) -> Result<Response, Stop> {
        let factor = self.factor(user)?;
        check_count(&recovery)?;
        Ok(self.put_factor(user, &SecondFactor { recovery, ..factor }))
    }

    pub(super) fn remove_second_factor(&mut self, user: &str) -> Result<Response, Stop> {
        self.factor(user)?;
        self.rows.remove(Table::SecondFactors, user.as_bytes());
        Ok(Response::Done)
    }

    /// Sessions that are over make room; beyond `limit`, the oldest ones end.
    pub(super) fn begin_session(
        &mut self,
        mut session: Session,
        limit: u32,
    ) -> Result<Response, Stop> {
        self.known_user(&session.user)?;
        let sessions = self.query().sessions(&session.user)?;
        if sessions.iter().any(|other| other.id == session.id) {
            return Err(Refusal::Exists(Subject::Session).into());
        }
        let (over, living): (Vec<_>, Vec<_>) =
            sessions.into_iter().partition(|other| other.expires_at <= self.at);
        let room = usize::try_from(limit.max(1)).unwrap_or(usize::MAX) - 1;
        let excess = living.len().saturating_sub(room);
        for old in over.iter().chain(&living[..excess]) {
            self.rows.remove(Table::Sessions, key::session(&old.user, &old.id));
        }
        let end = (0..=session.agent.len().min(SESSION_AGENT_BYTES_MAX)).rev();
        let end = end.into_iter().find(|at| session.agent.is_char_boundary(*at)).unwrap_or(0);
        session.agent.truncate(end);
        self.rows.put(Table::Sessions, key::session(&session.user, &session.id), &session);
        Ok(Response::Done)
    }

    pub(super) fn end_session(&mut self, user: &str, id: &str) -> Result<Response, Stop> {
        if self.query().session(user, id)?.is_none() {
            return Err(Refusal::NotFound(Subject::Session).into());
        }
        self.rows.remove(Table::Sessions, key::session(user, id));
        Ok(Response::Done)
    }

    /// All of a user's sessions but `keep`.
    pub(super) fn end_sessions(
        &mut self,
        user: &str,
        keep: Option<&str>,
    ) -> Result<Response, Stop> {
        self.known_user(user)?;
        self.drop_sessions_of(user, keep)?;
        Ok(Response::Done)
    }

    pub(super) fn drop_sessions_of(&mut self, user: &str, keep: Option<&str>) -> Result<(), Fault> {
        for session in self.query().sessions(user)? {
            if keep != Some(session.id.as_str()) {
                self.rows.remove(Table::Sessions, key::session(user, &session.id));
            }
        }
        Ok(())
    }

    /// Says who somebody of another issuer's is here; with `create`, makes that account.
    pub(super) fn link_identity(
        &mut self,
        identity: &Identity,
        create: Option<User>,
    ) -> Result<Response, Stop> {
        let Identity { issuer, subject, user, .. } = identity;
        let odd = |text: &String| text.is_empty() || text.contains('\0');
        if [issuer, subject].into_iter().any(odd)
            || issuer.len() + subject.len() > IDENTITY_BYTES_MAX
        {
            return Err(Refusal::Limit(format!("{IDENTITY_BYTES_MAX} bytes of an identity")).into());
        }
        if self.query().identity(issuer, subject)?.is_some() {
            return Err(Refusal::Exists(Subject::Identity).into());
        }
        match create {
            Some(row) if row.name == *user => drop(self.create_user(row)?),
            Some(_) => return Err(Refusal::NotFound(Subject::User).into()),
            None => self.known_user(user)?,
        }
        if self.query().identities_of(user)?.len() >= IDENTITIES_MAX {
            return Err(Refusal::Limit(format!("{IDENTITIES_MAX} identities of one user")).into());
        }
        let key = key::identity(issuer, subject);
        self.rows.put(Table::Identities, key.clone(), identity);
        self.rows.put(Table::UserIdentities, key::user_identity(user, &key), &key);
        Ok(Response::Done)
    }

    pub(super) fn unlink_identity(
        &mut self,
        issuer: &str,
        subject: &str,
    ) -> Result<Response, Stop> {
        let identity = self.query().identity(issuer, subject)?;
        let identity = identity.ok_or(Refusal::NotFound(Subject::Identity))?;
        self.drop_identity(&identity);
        Ok(Response::Done)
    }

    fn drop_identity(&mut self, identity: &Identity) {
        let key = key::identity(&identity.issuer, &identity.subject);
        self.rows.remove(Table::UserIdentities, key::user_identity(&identity.user, &key));
        self.rows.remove(Table::Identities, key);
    }

    pub(super) fn put_workload_rule(&mut self, rule: &WorkloadRule) -> Result<Response, Stop> {
        let robot = RobotName { project: rule.project.clone(), name: rule.robot.clone() };
        if self.query().robot(&robot)?.is_none() {
            return Err(Refusal::NotFound(Subject::Robot).into());
        }
        if let Some(mistake) = rule.mistake() {
            return Err(Refusal::Limit(mistake.to_owned()).into());
        }
        let rules = self.query().workload_rules(&rule.project)?;
        let is_new = rules.iter().all(|other| other.name != rule.name);
        if is_new && rules.len() >= WORKLOAD_RULES_MAX {
            return Err(Refusal::Limit(format!("{WORKLOAD_RULES_MAX} rules")).into());
        }
        self.rows.put(Table::WorkloadRules, key::workload_rule(&rule.project, &rule.name), rule);
        Ok(Response::Done)
    }

    pub(super) fn remove_workload_rule(
        &mut self,
        project: &ProjectName,
        name: &AccountName,
    ) -> Result<Response, Stop> {
        let key = key::workload_rule(project, name);
        if !self.rows.has(Table::WorkloadRules, &key)? {
            return Err(Refusal::NotFound(Subject::WorkloadRule).into());
        }
        self.rows.remove(Table::WorkloadRules, key);
        Ok(Response::Done)
    }

    pub(super) fn set_email(&mut self, user: &str, email: &str) -> Result<Response, Stop> {
        self.known_user(user)?;
        if !email.is_empty() && !is_email(email) {
            let text = format!("{EMAIL_BYTES_MAX} bytes of an e-mail address, NAME@HOST");
            return Err(Refusal::Limit(text).into());
        }
        match email {
            "" => self.rows.remove(Table::Emails, user.as_bytes()),
            email => self.rows.put(Table::Emails, user.as_bytes(), &email),
        }
        Ok(Response::Done)
    }

    /// Those that act as `robot`, or as any.
    pub(super) fn drop_workload_rules(
        &mut self,
        project: &ProjectName,
        robot: Option<&AccountName>,
    ) -> Result<(), Fault> {
        for rule in self.query().workload_rules(project)? {
            if robot.is_none_or(|robot| rule.robot == *robot) {
                let key = key::workload_rule(project, &rule.name);
                self.rows.remove(Table::WorkloadRules, key);
            }
        }
        Ok(())
    }

    /// Refused already now where the user could not be removed.
    pub(super) fn leave_later(&mut self, user: &str, due: Timestamp) -> Result<Response, Stop> {
        self.check_removable(user)?;
        self.rows.put(Table::Leavings, user.as_bytes(), &Leaving { user: user.to_owned(), due });
        Ok(Response::Done)
    }

    pub(super) fn stay(&mut self, user: &str) -> Result<Response, Stop> {
        if self.query().leaving(user)?.is_none() {
            return Err(Refusal::NotFound(Subject::Leaving).into());
        }
        self.rows.remove(Table::Leavings, user.as_bytes());
        Ok(Response::Done)
    }

    /// All that a login of the user goes by, when it is removed.
    pub(super) fn drop_logins_of(&mut self, user: &str) -> Result<(), Fault> {
        for identity in self.query().identities_of(user)? {
            self.drop_identity(&identity);
        }
        self.rows.remove(Table::Leavings, user.as_bytes());
        self.rows.remove(Table::Emails, user.as_bytes());
        self.rows.remove(Table::SecondFactors, user.as_bytes());
        self.drop_passkeys_of(user)?;
        self.drop_sessions_of(user, None)
    }

    /// The user's other sessions end with its old password.
    pub(super) fn change_password(
        &mut self,
        user: &str,
        password_hash: Secret,
        keep: Option<&str>,
    ) -> Result<Response, Stop> {
        let mut row = self.query().user(user)?.ok_or(Refusal::NotFound(Subject::User))?;
        row.password_hash = password_hash;
        self.drop_sessions_of(user, keep)?;
        self.rows.put(Table::Users, user.as_bytes(), &row);
        Ok(Response::Done)
    }

    /// Somebody may have given the user another password since this one was compared.
    pub(super) fn rehash_password(
        &mut self,
        user: &str,
        from: [u8; 32],
        to: Secret,
    ) -> Result<Response, Stop> {
        let row = self.query().user(user)?.ok_or(Refusal::NotFound(Subject::User))?;
        if blake3::hash(&row.password_hash.0) != from {
            return Err(Refusal::Changed(Subject::User).into());
        }
        self.rows.put(Table::Users, user.as_bytes(), &User { password_hash: to, ..row });
        Ok(Response::Done)
    }

    /// With the factors and sessions from before goes a lock that wrong passwords have brought, and
    /// the wish that the account be removed. Its tokens, rights and links to other issuers stay.
    pub(super) fn recover_administrator(
        &mut self,
        user: &str,
        password_hash: Secret,
    ) -> Result<Response, Stop> {
        let row = self.query().user(user)?.filter(|row| row.role == UserRole::Admin);
        let row = row.ok_or(Refusal::NotFound(Subject::User))?;
        match self.unblock(&Suspect::account(user)) {
            Ok(_) | Err(Stop::Refused(Refusal::NotFound(Subject::Block))) => {}
            Err(stop) => return Err(stop),
        }
        self.rows.remove(Table::SecondFactors, user.as_bytes());
        self.rows.remove(Table::Leavings, user.as_bytes());
        self.drop_all_passkeys(user)?;
        self.drop_sessions_of(user, None)?;
        self.rows.put(Table::Users, user.as_bytes(), &User { password_hash, ..row });
        Ok(Response::Done)
    }
}

fn check_count(recovery: &BTreeSet<[u8; 32]>) -> Result<(), Refusal> {
    match recovery.len() {
        0..=RECOVERY_CODES_MAX => Ok(()),
        _ => Err(Refusal::Limit(format!("{RECOVERY_CODES_MAX} recovery codes"))),
    }
}
