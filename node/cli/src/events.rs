//! Reads server-sent events (WHATWG HTML, section 9.2.6) of one kind.
//!
//! Non-goal: event ids and `retry`; after a break the whole state comes again with the first event.

/// A line or an event longer than this is a fault of the node.
const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Collects bytes, gives whole events.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    data: Vec<u8>,
}

/// An event grew past its bound.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

impl Events {
    /// The data of each event that `bytes` completes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() + self.data.len() > EVENT_BYTES_MAX {
                    return Err(TooLong);
                }
                continue;
            }
            let mut line = std::mem::take(&mut self.line);
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if line.is_empty() {
                if !self.data.is_empty() {
                    events.push(std::mem::take(&mut self.data));
                }
            } else if let Some(value) = line.strip_prefix(b"data:") {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            }
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_the_bytes_are_cut() {
        let text =
            b"event: deployment\r\ndata: {\"a\":\ndata:1}\n\n: keep-alive\n\ndata: 2\n\ndata: 3";
        for size in 1..text.len() {
            let mut events = Events::default();
            let mut found = Vec::new();
            for piece in text.chunks(size) {
                found.extend(events.feed(piece).unwrap());
            }
            assert_eq!(found, [b"{\"a\":\n1}".to_vec(), b"2".to_vec()], "pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut events = Events::default();
        let piece = vec![b'x'; 1 << 20];
        assert!((0..17).any(|_| events.feed(&piece) == Err(TooLong)));
    }
}
