//! Personal tokens and robots.
//!
//! Invariants: a token's user is there, and goes with its tokens; a secret's hash is one token's.

use std::collections::BTreeMap;

use shoal_content::{AccountName, Timestamp};

use super::{Step, Stop};
use crate::command::{Refusal, Response, Subject};
use crate::key;
use crate::rights::{PersonalToken, Robot, RobotName, Scope};
use crate::table::{Fault, Read, Table};

const TOKENS_OF_ONE_MAX: usize = 100;
const ROBOTS_OF_ONE_MAX: usize = 1000;
const ROBOT_REPOSITORIES_MAX: usize = 1000;

impl<R: Read> Step<'_, R> {
    pub(super) fn put_robot(&mut self, mut robot: Robot) -> Result<Response, Stop> {
        let name = &robot.name;
        if self.query().project(&name.project)?.is_none() {
            return Err(Refusal::NotFound(Subject::Project).into());
        }
        let elsewhere = robot.repositories.iter().any(|one| one.project() != name.project);
        if elsewhere || robot.scopes.contains(&Scope::Admin) {
            return Err(Refusal::WrongRight.into());
        }
        if robot.repositories.len() > ROBOT_REPOSITORIES_MAX {
            return Err(Refusal::Limit(format!("{ROBOT_REPOSITORIES_MAX} repositories")).into());
        }
        match self.query().robot(name)? {
            Some(old) => robot.created_at = old.created_at,
            None if self.query().robots(&name.project)?.len() >= ROBOTS_OF_ONE_MAX => {
                return Err(Refusal::Limit(format!("{ROBOTS_OF_ONE_MAX} robots")).into());
            }
            None => {}
        }
        self.rows.put(Table::Robots, key::robot(&robot.name), &robot);
        Ok(Response::Done)
    }

    pub(super) fn remove_robot(&mut self, name: &RobotName) -> Result<Response, Stop> {
        if self.query().robot(name)?.is_none() {
            return Err(Refusal::NotFound(Subject::Robot).into());
        }
        self.drop_workload_rules(&name.project, Some(&name.name))?;
        self.rows.remove(Table::Robots, key::robot(name));
        Ok(Response::Done)
    }

    /// Tokens of the user that have expired make room.
    pub(super) fn create_personal_token(
        &mut self,
        token: &PersonalToken,
    ) -> Result<Response, Stop> {
        if self.query().user(token.user.as_str())?.is_none() {
            return Err(Refusal::NotFound(Subject::User).into());
        }
        let tokens = self.query().personal_tokens(&token.user)?;
        let twice = tokens.iter().any(|other| other.id == token.id || other.name == token.name);
        if twice || self.query().personal_token(&token.secret_hash)?.is_some() {
            return Err(Refusal::Exists(Subject::Token).into());
        }
        let is_over = |token: &PersonalToken| token.expires_at.is_some_and(|end| end <= self.at);
        let (over, living): (Vec<_>, Vec<_>) = tokens.into_iter().partition(is_over);
        if living.len() >= TOKENS_OF_ONE_MAX {
            return Err(Refusal::Limit(format!("{TOKENS_OF_ONE_MAX} tokens of one user")).into());
        }
        for old in over {
            self.drop_token(&old);
        }
        let key = key::user_token(&token.user, &token.id);
        self.rows.put(Table::UserTokens, key, &token.secret_hash);
        self.rows.put(Table::PersonalTokens, token.secret_hash, token);
        Ok(Response::Done)
    }

    pub(super) fn remove_personal_token(
        &mut self,
        user: &AccountName,
        id: &str,
    ) -> Result<Response, Stop> {
        let tokens = self.query().personal_tokens(user)?;
        let token = tokens.into_iter().find(|token| token.id == id);
        self.drop_token(&token.ok_or(Refusal::NotFound(Subject::Token))?);
        Ok(Response::Done)
    }

    fn drop_token(&mut self, token: &PersonalToken) {
        self.rows.remove(Table::UserTokens, key::user_token(&token.user, &token.id));
        self.rows.remove(Table::PersonalTokens, token.secret_hash);
    }

    pub(super) fn drop_tokens_of(&mut self, user: &AccountName) -> Result<(), Fault> {
        for token in self.query().personal_tokens(user)? {
            self.drop_token(&token);
        }
        Ok(())
    }

    /// Tokens that are gone are passed over; a use never moves back.
    pub(super) fn note_token_uses(
        &mut self,
        uses: &BTreeMap<[u8; 32], Timestamp>,
    ) -> Result<Response, Stop> {
        for (hash, used) in uses {
            let Some(mut token) = self.query().personal_token(hash)? else { continue };
            if token.last_used_at < Some(*used) {
                token.last_used_at = Some(*used);
                self.rows.put(Table::PersonalTokens, *hash, &token);
            }
        }
        Ok(Response::Done)
    }
}
