//! Addresses of members met in earlier runs, kept in a file: the way back in when no node answers.
//!
//! Layout: one multiaddr a line, each with the member's `/p2p/…` id, newest first. Write order:
//! a file beside, sync, rename. A damaged line is skipped.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use tracing::warn;

/// Members remembered.
pub(super) const REMEMBERED_MAX: usize = 64;
/// A longer file is not ours.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Memory {
    path: Option<PathBuf>,
    known: VecDeque<(PeerId, Multiaddr)>,
    changed: bool,
}

impl Memory {
    pub(super) fn open(path: Option<PathBuf>) -> Self {
        let known = path.as_deref().map(read).unwrap_or_default();
        Self { path, known, changed: false }
    }

    pub(super) fn known(&self) -> impl Iterator<Item = &(PeerId, Multiaddr)> {
        self.known.iter()
    }

    pub(super) fn remember(&mut self, peer: PeerId, address: Multiaddr) {
        if self.known.iter().any(|known| *known == (peer, address.clone())) {
            return;
        }
        self.known.retain(|(known, _)| *known != peer);
        self.known.push_front((peer, address));
        self.known.truncate(REMEMBERED_MAX);
        self.changed = true;
    }

    /// Writes what changed. A failure costs comfort only, and is logged.
    pub(super) fn save(&mut self) {
        let Some(path) = self.path.as_deref().filter(|_| self.changed) else { return };
        self.changed = false;
        if let Err(error) = write(path, &self.known) {
            warn!(path = %path.display(), %error, "members' addresses cannot be kept");
        }
    }
}

fn read(path: &Path) -> VecDeque<(PeerId, Multiaddr)> {
    let mut text = String::new();
    let found =
        File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    match found {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(path = %path.display(), %error, "members' addresses cannot be read");
        }
        _ => {}
    }
    text.lines().filter_map(parse).take(REMEMBERED_MAX).collect()
}

fn parse(line: &str) -> Option<(PeerId, Multiaddr)> {
    let mut address: Multiaddr = line.parse().ok()?;
    match address.pop()? {
        Protocol::P2p(peer) => Some((peer, address)),
        _ => None,
    }
}

fn write(path: &Path, known: &VecDeque<(PeerId, Multiaddr)>) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    for (peer, address) in known {
        writeln!(file, "{}", address.clone().with(Protocol::P2p(*peer)))?;
    }
    file.sync_all()?;
    std::fs::rename(beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_met_is_known_after_a_restart_and_damage_costs_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("members");
        let address: Multiaddr = "/ip4/10.0.0.1/tcp/5003".parse().unwrap();
        let peers: Vec<PeerId> = (0..REMEMBERED_MAX + 3).map(|_| PeerId::random()).collect();
        let mut memory = Memory::open(Some(path.clone()));
        peers.iter().for_each(|&peer| memory.remember(peer, address.clone()));
        memory.save();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("nonsense\n{text}")).unwrap();
        let again = Memory::open(Some(path));
        assert_eq!(again.known().count(), REMEMBERED_MAX);
        assert_eq!(again.known().next(), Some(&(*peers.last().unwrap(), address)));
    }
}
