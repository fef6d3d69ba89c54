//! Adds failures up, and blocks whoever brings too many.

use std::collections::BTreeMap;

use shoal_content::Timestamp;

use super::{Step, Stop};
use crate::command::{Refusal, Response, Subject};
use crate::key;
use crate::lockout::{
    BLOCKS_MAX, Block, BlockReason, FAILURES_MAX, Failure, LockoutRules, SUSPICIONS_MAX, Suspect,
    Suspicion, TIMES_MAX,
};
use crate::table::{Fault, Read, Table};
use crate::transaction::row;

/// The counts under [`Table::Counts`].
const SUSPICIONS_COUNT: &[u8] = b"suspicions";
const BLOCKS_COUNT: &[u8] = b"blocks";
/// Rows whose time is over that one command forgets.
const FORGOTTEN_MAX: usize = 2000;

/// What adds up to a block.
struct Rule {
    kind: u8,
    limit: u32,
    window_ms: u64,
    /// `None` is without an end.
    block_ms: Option<u64>,
    reason: BlockReason,
}

impl<R: Read> Step<'_, R> {
    pub(super) fn note_failures(
        &mut self,
        failures: &BTreeMap<Failure, u32>,
        rules: &LockoutRules,
    ) -> Result<Response, Stop> {
        if failures.len() > FAILURES_MAX {
            return Err(Refusal::Limit(format!("{FAILURES_MAX} failures at once")).into());
        }
        let passwords = Rule {
            kind: key::PASSWORDS,
            limit: rules.account_failures,
            window_ms: rules.account_window_ms,
            block_ms: Some(rules.account_block_ms),
            reason: BlockReason::Passwords,
        };
        let accounts = Rule {
            kind: key::ACCOUNTS,
            limit: rules.address_accounts,
            window_ms: rules.address_window_ms,
            block_ms: None,
            reason: BlockReason::Accounts,
        };
        let tokens = Rule {
            kind: key::TOKENS,
            limit: rules.token_failures,
            window_ms: rules.token_window_ms,
            block_ms: Some(rules.token_block_ms),
            reason: BlockReason::Tokens,
        };
        self.forget_suspicions(FORGOTTEN_MAX)?;
        for (failure, count) in failures {
            match failure {
                Failure::Password { account, address } => {
                    self.suspect(account, &passwords, None, *count)?;
                    if let Some(address) = address {
                        let tried = blake3::hash(&key::suspect(account));
                        let tried = tried.as_bytes()[..8].try_into().map(u64::from_be_bytes);
                        let tried = tried.map_err(|_| Fault::Contradiction("a hash's length"))?;
                        self.suspect(address, &accounts, Some(tried), 1)?;
                    }
                }
                Failure::Token { address } => self.suspect(address, &tokens, None, *count)?,
            }
        }
        Ok(Response::Done)
    }

    /// `tried` counts once, however often it comes.
    fn suspect(
        &mut self,
        who: &Suspect,
        rule: &Rule,
        tried: Option<u64>,
        count: u32,
    ) -> Result<(), Fault> {
        let limit = rule.limit.clamp(1, TIMES_MAX);
        // Who is blocked tries in vain.
        if self.query().block(who, self.at)?.is_some() {
            return Ok(());
        }
        let key = key::suspicion(rule.kind, who);
        let old: Option<Suspicion> = row(&self.rows, Table::Suspicions, &key)?;
        let mut now = match old {
            Some(old) => {
                self.rows.remove(Table::SuspicionEnds, key::ends(old.ends, &key));
                old
            }
            None => {
                self.make_room()?;
                self.add(SUSPICIONS_COUNT, 1)?;
                Suspicion::default()
            }
        };
        let since = self.at.as_millis().saturating_sub(rule.window_ms);
        now.times.retain(|_, at| at.as_millis() > since);
        match tried {
            Some(tried) => drop(now.times.insert(tried, self.at)),
            None => {
                for _ in 0..count.min(limit) {
                    now.times.insert(now.next, self.at);
                    now.next += 1;
                }
            }
        }
        if now.times.len() as u64 >= u64::from(limit) {
            self.rows.remove(Table::Suspicions, key);
            self.add(SUSPICIONS_COUNT, -1)?;
            let until = rule.block_ms.map(|for_ms| self.at.plus_millis(for_ms));
            return self.block(who, Block { since: self.at, until, reason: rule.reason });
        }
        now.ends = self.at.plus_millis(rule.window_ms);
        self.rows.mark(Table::SuspicionEnds, key::ends(now.ends, &key));
        self.rows.put(Table::Suspicions, key, &now);
        Ok(())
    }

    fn block(&mut self, who: &Suspect, block: Block) -> Result<(), Fault> {
        let key = key::suspect(who);
        match row::<Block>(&self.rows, Table::Blocks, &key)? {
            Some(old) => self.unmark_block(&old, &key),
            None if self.counted(BLOCKS_COUNT)? >= BLOCKS_MAX => return Ok(()),
            None => self.add(BLOCKS_COUNT, 1)?,
        }
        if let Some(until) = block.until {
            let marked = key::join(&[&[key::BLOCKED], &key]);
            self.rows.mark(Table::SuspicionEnds, key::ends(until, &marked));
        }
        self.rows.put(Table::Blocks, key, &block);
        Ok(())
    }

    fn unmark_block(&mut self, block: &Block, key: &[u8]) {
        if let Some(until) = block.until {
            let marked = key::join(&[&[key::BLOCKED], key]);
            self.rows.remove(Table::SuspicionEnds, key::ends(until, &marked));
        }
    }

    /// Whoever ends first is forgotten, where there are too many.
    fn make_room(&mut self) -> Result<(), Fault> {
        if self.counted(SUSPICIONS_COUNT)? < SUSPICIONS_MAX {
            return Ok(());
        }
        let end = Timestamp::from_millis(u64::MAX);
        self.forget_before(end, 1, false)
    }

    fn forget_suspicions(&mut self, most: usize) -> Result<(), Fault> {
        self.forget_before(self.at, most, true)
    }

    /// Forgets rows that end at or before `end`, the first first; blocks with them, if wanted.
    fn forget_before(&mut self, end: Timestamp, most: usize, blocks: bool) -> Result<(), Fault> {
        let mut forgotten = 0;
        // Blocks that are passed over lie behind: they end later than the failures around them.
        for (marked, _) in self.rows.scan(Table::SuspicionEnds, b"", b"", FORGOTTEN_MAX)? {
            let (time, key) = marked.split_at_checked(key::TIME_BYTES).unwrap_or((&marked, &[]));
            if forgotten == most || time > key::time(end).as_slice() {
                break;
            }
            let (table, counted, key) = match key.split_first() {
                Some((&key::BLOCKED, _)) if !blocks => continue,
                Some((&key::BLOCKED, key)) => (Table::Blocks, BLOCKS_COUNT, key.to_vec()),
                _ => (Table::Suspicions, SUSPICIONS_COUNT, key.to_vec()),
            };
            self.rows.remove(Table::SuspicionEnds, marked);
            self.rows.remove(table, key);
            self.add(counted, -1)?;
            forgotten += 1;
        }
        Ok(())
    }

    fn counted(&self, name: &[u8]) -> Result<u64, Fault> {
        Ok(row(&self.rows, Table::Counts, name)?.unwrap_or(0))
    }

    fn add(&mut self, name: &[u8], by: i64) -> Result<(), Fault> {
        let sum = self.counted(name)?.checked_add_signed(by);
        let sum = sum.ok_or(Fault::Contradiction("fewer suspects than none"))?;
        self.rows.put(Table::Counts, name, &sum);
        Ok(())
    }

    /// Lets somebody in again, and forgets what it had tried.
    pub(super) fn unblock(&mut self, who: &Suspect) -> Result<Response, Stop> {
        let key = key::suspect(who);
        let block: Option<Block> = row(&self.rows, Table::Blocks, &key)?;
        let block = block.ok_or(Refusal::NotFound(Subject::Block))?;
        self.unmark_block(&block, &key);
        self.rows.remove(Table::Blocks, key);
        self.add(BLOCKS_COUNT, -1)?;
        for kind in [key::PASSWORDS, key::ACCOUNTS, key::TOKENS] {
            let key = key::suspicion(kind, who);
            if let Some(old) = row::<Suspicion>(&self.rows, Table::Suspicions, &key)? {
                self.rows.remove(Table::SuspicionEnds, key::ends(old.ends, &key));
                self.rows.remove(Table::Suspicions, key);
                self.add(SUSPICIONS_COUNT, -1)?;
            }
        }
        Ok(Response::Done)
    }
}
