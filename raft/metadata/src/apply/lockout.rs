//! Adds failures up, and blocks whoever brings too many.

use std::collections::BTreeMap;

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
/// Of the index of ends, the rows of the first page that is read, and of the longest.
const ENDS_AT_ONCE: usize = 32;
const ENDS_AT_ONCE_MAX: usize = 1024;

/// What adds up to a block.
struct Rule {
    kind: u8,
    limit: u32,
    window_ms: u64,
    /// `None` is without an end.
    block_ms: Option<u64>,
    reason: BlockReason,
}

/// How far one command has looked through the index of ends for somebody to be forgotten: what lies
/// before is of the other kind, or gone. What the command itself puts there the next one finds; it
/// puts fewer than there are.
#[derive(Default)]
struct Looked {
    failures: Vec<u8>,
    blocks: Vec<u8>,
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
        self.forget_ended()?;
        let mut looked = Looked::default();
        for (failure, count) in failures {
            match failure {
                Failure::Password { account, address } => {
                    self.suspect(account, &passwords, None, *count, &mut looked)?;
                    if let Some(address) = address {
                        let tried = blake3::hash(&key::suspect(account));
                        let tried = tried.as_bytes()[..8].try_into().map(u64::from_be_bytes);
                        let tried = tried.map_err(|_| Fault::Contradiction("a hash's length"))?;
                        self.suspect(address, &accounts, Some(tried), 1, &mut looked)?;
                    }
                }
                Failure::Token { address } => {
                    self.suspect(address, &tokens, None, *count, &mut looked)?;
                }
            }
        }
        Ok(Response::Done)
    }

    /// One at a time, so that the answer to it says whether the address is blocked by now.
    pub(super) fn note_registration(
        &mut self,
        address: &Suspect,
        limit: u32,
        window_ms: u64,
    ) -> Result<Response, Stop> {
        let registrations = Rule {
            kind: key::REGISTRATIONS,
            limit,
            window_ms,
            block_ms: None,
            reason: BlockReason::Registrations,
        };
        self.forget_ended()?;
        self.suspect(address, &registrations, None, 1, &mut Looked::default())?;
        Ok(Response::Done)
    }

    /// `tried` counts once, however often it comes.
    fn suspect(
        &mut self,
        who: &Suspect,
        rule: &Rule,
        tried: Option<u64>,
        count: u32,
        looked: &mut Looked,
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
                self.make_room(&mut looked.failures)?;
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
            let block = Block { since: self.at, until, reason: rule.reason };
            return self.block(who, block, &mut looked.blocks);
        }
        now.ends = self.at.plus_millis(rule.window_ms);
        self.rows.mark(Table::SuspicionEnds, key::ends(now.ends, &key));
        self.rows.put(Table::Suspicions, key, &now);
        Ok(())
    }

    fn block(&mut self, who: &Suspect, block: Block, from: &mut Vec<u8>) -> Result<(), Fault> {
        let key = key::suspect(who);
        match row::<Block>(&self.rows, Table::Blocks, &key)? {
            Some(old) => self.unmark_block(&old, &key),
            None => {
                let is_full = self.counted(BLOCKS_COUNT)? >= BLOCKS_MAX;
                if is_full && !self.end_another(&block, from)? {
                    return Ok(());
                }
                self.add(BLOCKS_COUNT, 1)?;
            }
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

    /// Whoever's failures end first is forgotten, where there are too many.
    fn make_room(&mut self, from: &mut Vec<u8>) -> Result<(), Fault> {
        if self.counted(SUSPICIONS_COUNT)? < SUSPICIONS_MAX {
            return Ok(());
        }
        match self.first_end(false, from)? {
            Some(marked) => self.forget(marked),
            None => Ok(()),
        }
    }

    /// Ends the block that ends first, unless `block` would be that itself, or all are without an
    /// end; gives whether it did.
    fn end_another(&mut self, block: &Block, from: &mut Vec<u8>) -> Result<bool, Fault> {
        let Some(marked) = self.first_end(true, from)? else { return Ok(false) };
        let first = marked.get(..key::TIME_BYTES).unwrap_or_default();
        if block.until.is_some_and(|until| key::time(until).as_slice() <= first) {
            return Ok(false);
        }
        self.forget(marked)?;
        Ok(true)
    }

    /// The first block in the index of ends, or the first failures, from `from` on, which is moved
    /// there.
    fn first_end(&self, blocks: bool, from: &mut Vec<u8>) -> Result<Option<Vec<u8>>, Fault> {
        let is_wanted =
            |marked: &[u8]| (marked.get(key::TIME_BYTES) == Some(&key::BLOCKED)) == blocks;
        let mut limit = ENDS_AT_ONCE;
        loop {
            let page = self.rows.scan(Table::SuspicionEnds, from, b"", limit)?;
            if let Some((found, _)) = page.iter().find(|(marked, _)| is_wanted(marked)) {
                from.clone_from(found);
                return Ok(Some(found.clone()));
            }
            let Some((last, _)) = page.last() else { return Ok(None) };
            *from = key::after(last.clone());
            limit = (limit * 2).min(ENDS_AT_ONCE_MAX);
        }
    }

    /// Forgets rows whose time is over, the first ones first.
    fn forget_ended(&mut self) -> Result<(), Fault> {
        let now = key::time(self.at);
        let (mut from, mut forgotten) = (Vec::new(), 0);
        while forgotten < FORGOTTEN_MAX {
            let page = self.rows.scan(Table::SuspicionEnds, &from, b"", ENDS_AT_ONCE)?;
            let Some((last, _)) = page.last() else { break };
            from = key::after(last.clone());
            for (marked, _) in page {
                if marked.get(..key::TIME_BYTES) > Some(now.as_slice()) {
                    return Ok(());
                }
                self.forget(marked)?;
                forgotten += 1;
            }
        }
        Ok(())
    }

    /// Takes a row of the index of ends away, with what it is the end of.
    fn forget(&mut self, marked: Vec<u8>) -> Result<(), Fault> {
        let key = marked.get(key::TIME_BYTES..).unwrap_or_default();
        let (table, counted, key) = match key.split_first() {
            Some((&key::BLOCKED, key)) => (Table::Blocks, BLOCKS_COUNT, key.to_vec()),
            _ => (Table::Suspicions, SUSPICIONS_COUNT, key.to_vec()),
        };
        self.rows.remove(Table::SuspicionEnds, marked);
        self.rows.remove(table, key);
        self.add(counted, -1)
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
        for kind in [key::PASSWORDS, key::ACCOUNTS, key::TOKENS, key::REGISTRATIONS] {
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
