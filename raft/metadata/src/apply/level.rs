//! The cluster's level: which commands may be proposed while nodes run different programs.
//!
//! Invariants: the level is never above what any node knows by its row; it never falls. A node that
//! knows less than the level is not let in. Both are checked here, in the order of the log, so that
//! a node that joins and a level that rises at the same moment cannot pass each other.

use shoal_content::NodeId;

use super::{Step, Stop};
use crate::command::{Event, Refusal, Response, Subject};
use crate::key;
use crate::record::Node;
use crate::table::{Read, Table};

/// The longest description of a program, in bytes.
const PROGRAM_BYTES_MAX: usize = 200;

impl<R: Read> Step<'_, R> {
    /// Asking for a level that is reached already changes nothing.
    pub(super) fn raise_level(&mut self, to: u8) -> Result<Response, Stop> {
        if to <= self.query().level()? {
            return Ok(Response::Done);
        }
        if let Some(old) = self.query().nodes()?.into_iter().find(|node| node.command_version < to)
        {
            return Err(Refusal::TooOld { node: old.id, knows: old.command_version }.into());
        }
        self.rows.put(Table::Cluster, key::LEVEL, &to);
        self.events.push(Event::MembersChanged);
        Ok(Response::Done)
    }

    pub(super) fn check_level(&self, node: &Node) -> Result<(), Stop> {
        if node.command_version < self.query().level()? {
            let (node, knows) = (node.id, node.command_version);
            return Err(Refusal::TooOld { node, knows }.into());
        }
        Ok(())
    }

    pub(super) fn describe_node(&mut self, id: NodeId, program: &str) -> Result<Response, Stop> {
        if self.query().node(id)?.is_none() {
            return Err(Refusal::NotFound(Subject::Node).into());
        }
        if program.len() > PROGRAM_BYTES_MAX {
            return Err(Refusal::Limit(format!("{PROGRAM_BYTES_MAX} bytes")).into());
        }
        self.rows.put(Table::Cluster, key::program(id), &program);
        Ok(Response::Done)
    }
}
