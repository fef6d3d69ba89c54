//! Writes the audit trail.

use shoal_content::NodeId;

use super::{Step, Stop};
use crate::audit::{
    AUDIT_BATCH_MAX, AuditArchive, AuditBatch, AuditEntry, AuditNote, AuditPhase, AuditResult,
    AuditRun, AuditSource, HEAD, NEXT, audited, chained, cut,
};
use crate::command::{Command, Refusal, Response};
use crate::key;
use crate::table::{Fault, Read, Table};
use crate::transaction::row;

impl<R: Read> Step<'_, R> {
    /// Carries the command out, and records it. Where it is refused, nothing is written: the node
    /// that proposed it notes that.
    pub(super) fn audited(
        &mut self,
        source: AuditSource,
        command: Command,
    ) -> Result<Response, Stop> {
        if matches!(command, Command::Audited { .. }) {
            return Err(Refusal::Limit("one source of a command".to_owned()).into());
        }
        // By the names that things have before it.
        let named = audited(self.query(), &command)?;
        self.who.clone_from(&source.who);
        cut(&mut self.who);
        let response = self.run(command)?;
        if let Some((action, target)) = named {
            let (action, result) = (action.to_owned(), AuditResult::Done);
            let note = AuditNote { at: self.at, source, action, target, result, count: 1 };
            self.record(note)?;
        }
        Ok(response)
    }

    fn record(&mut self, mut note: AuditNote) -> Result<(), Fault> {
        let AuditSource { who, from, request, .. } = &mut note.source;
        for text in [who, from, request, &mut note.action, &mut note.target] {
            cut(text);
        }
        if let AuditResult::Refused(why) = &mut note.result {
            cut(why);
        }
        let (number, before) = self.query().audit_head()?;
        let hash = chained(&before, number, &note);
        self.rows.put(Table::AuditEntries, key::audit(number), &AuditEntry { number, note, hash });
        self.rows.put(Table::Counts, NEXT, &(number + 1));
        self.rows.put(Table::Counts, HEAD, &hash);
        Ok(())
    }

    fn remark(
        &mut self,
        node: NodeId,
        action: &str,
        target: String,
        count: u64,
    ) -> Result<(), Fault> {
        let source = AuditSource {
            who: format!("node:{node}"),
            node: node.number(),
            ..AuditSource::default()
        };
        let (action, result) = (action.to_owned(), AuditResult::Done);
        self.record(AuditNote { at: self.at, source, action, target, result, count })
    }

    /// A batch that came already changes nothing: its node did not hear the answer.
    pub(super) fn note_audit(&mut self, batch: AuditBatch) -> Result<Response, Stop> {
        let AuditBatch { node, run, batch: number, phase, notes, lost } = batch;
        if notes.len() > AUDIT_BATCH_MAX {
            return Err(Refusal::Limit(format!("{AUDIT_BATCH_MAX} notes at once")).into());
        }
        let old: Option<AuditRun> = row(&self.rows, Table::AuditRuns, &key::node(node))?;
        let again = |old: &AuditRun| (old.run, old.batch) >= (run, number);
        if old.as_ref().is_some_and(again) {
            return Ok(Response::Done);
        }
        let expected = old.as_ref().filter(|old| old.run == run).map_or(0, |old| old.batch + 1);
        match &old {
            Some(old) if old.run != run && !old.ended => {
                let since = format!("{} ms", old.at.as_millis());
                self.remark(
                    node,
                    "audit.gap",
                    format!("the node ended without a word since {since}"),
                    1,
                )?;
            }
            Some(_) | None if number != expected => {
                let text = format!("batches {expected} to {}", number.saturating_sub(1));
                self.remark(node, "audit.gap", text, number.saturating_sub(expected))?;
            }
            _ => {}
        }
        if phase == AuditPhase::Begins {
            self.remark(node, "audit.begin", String::new(), 1)?;
        }
        for note in notes {
            self.record(note)?;
        }
        if lost > 0 {
            self.remark(node, "audit.lost", "notes that there was no room for".to_owned(), lost)?;
        }
        let ended = phase == AuditPhase::Ends;
        if ended {
            self.remark(node, "audit.end", String::new(), 1)?;
        }
        let row = AuditRun { run, batch: number, at: self.at, ended };
        self.rows.put(Table::AuditRuns, key::node(node), &row);
        Ok(Response::Done)
    }

    /// Lets the oldest entries go, which are in storage now. Everything that the row says is looked
    /// at, so that two nodes that archive at once do it once.
    pub(super) fn archive_audit(&mut self, archive: &AuditArchive) -> Result<Response, Stop> {
        let first = self.query().first_audit()?;
        let (next, _) = self.query().audit_head()?;
        let count = archive.last.saturating_sub(archive.first);
        if archive.first != first || archive.last < first || archive.last >= next {
            return Err(Refusal::UploadState("these entries are not the oldest".into()).into());
        }
        if count >= AUDIT_BATCH_MAX as u64 {
            return Err(Refusal::Limit(format!("{AUDIT_BATCH_MAX} entries at once")).into());
        }
        self.check_object(&archive.object)?;
        let archives = self.query().audit_archives()?;
        let before = archives.last().map_or_else(Default::default, |archive| archive.head);
        let head = self.query().audit_entry(archive.last)?.map(|entry| entry.hash);
        if before != archive.before || head != Some(archive.head) {
            return Err(Refusal::UploadState("the chain is another one".into()).into());
        }
        for number in archive.first..=archive.last {
            self.rows.remove(Table::AuditEntries, key::audit(number));
        }
        self.hold_object(&archive.object)?;
        self.rows.put(Table::AuditArchives, archive.first.to_be_bytes(), archive);
        Ok(Response::Done)
    }
}
