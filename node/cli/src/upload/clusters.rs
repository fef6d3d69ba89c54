//! Looks where a disk has content, so that a node can hash it as it comes in.
//!
//! Invariant: what cannot be found out is not said; the upload goes on without.
//! Non-goal: formats whose tables say it, as the node reads those.

use std::sync::Arc;
use std::thread;

use shoal_formats::{ContentMap, Format, open};
use tokio::sync::oneshot;

use super::sending::{Content, READ_AHEAD_BYTES_MIN};

/// A longer file is not read once more before it is sent: it may have to come off the disk twice.
const LOOKED_AT_BYTES_MAX: u64 = 8 << 30;

/// By turns how many clusters of the disk have no content, and how many have some; nothing where that
/// is not worth looking at, or cannot be read.
pub async fn content_clusters(
    content: &Content<'_>,
    format: Option<Format>,
    file_bytes: u64,
) -> Vec<u32> {
    let Content::File(file) = content else { return Vec::new() };
    if !(READ_AHEAD_BYTES_MIN..=LOOKED_AT_BYTES_MAX).contains(&file_bytes) {
        return Vec::new();
    }
    let (file, (sender, found)) = (Arc::clone(file), oneshot::channel());
    let look = move || {
        // Nobody may wait for it any more.
        let _ = sender.send(looked_at(file, format));
    };
    // A thread that nobody waits for when the command is stopped.
    match thread::Builder::new().name("content".to_owned()).spawn(look) {
        Ok(_) => found.await.unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

fn looked_at(file: Arc<std::fs::File>, format: Option<Format>) -> Vec<u32> {
    let Ok(mut disk) = open(Box::new(file), format) else { return Vec::new() };
    if !matches!(disk.format(), Format::Raw | Format::Vhd | Format::Vhdx) {
        return Vec::new();
    }
    // What is wrong with the file the node says.
    let map = ContentMap::of(disk.as_mut()).ok().flatten();
    map.map(ContentMap::into_runs).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    async fn clusters_of(length: u64, write: impl FnOnce(&File)) -> Vec<u32> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        write(&file);
        content_clusters(&Content::File(Arc::new(file)), None, length).await
    }

    #[tokio::test]
    async fn a_raw_disk_is_looked_at_and_others_say_it_themselves() {
        let write = |at: u64, bytes: &'static [u8]| {
            move |file: &File| file.write_all_at(bytes, at).unwrap()
        };
        let raw = clusters_of(READ_AHEAD_BYTES_MIN, write(5 << 16, b"content")).await;
        assert_eq!(raw, [5, 1]);
        let short = clusters_of(READ_AHEAD_BYTES_MIN - 1, write(5 << 16, b"content")).await;
        assert!(short.is_empty(), "no node begins to read it");
        let qcow2 = clusters_of(READ_AHEAD_BYTES_MIN, write(0, b"QFI\xfb\0\0\0\x03")).await;
        assert!(qcow2.is_empty(), "it is none, or it says so itself");
    }
}
