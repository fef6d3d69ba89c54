//! Writes a backup into memory, frame by frame, for whoever sends or stores it.

use std::mem;

use super::{
    BACKUP_VERSION, BackupError, CHAIN_BYTES, END, FRAME_BYTES, FRAME_BYTES_MAX, HEAD, Head, MAGIC,
    Needed, OBJECTS, ROWS, Row, Totals,
};

/// See the module's documentation. What it has made is taken out by [`Writer::take`], which is
/// bounded by one frame and what was added since it was asked last.
#[derive(Debug)]
pub struct Writer {
    hasher: blake3::Hasher,
    /// Whole frames that nobody has taken yet.
    out: Vec<u8>,
    kind: u8,
    body: Vec<u8>,
    totals: Totals,
}

impl Writer {
    /// Begins with the head.
    ///
    /// # Errors
    /// [`BackupError::TooLong`] for a head that says too much.
    pub fn new(head: &Head) -> Result<Self, BackupError> {
        let mut writer = Self {
            hasher: blake3::Hasher::new(),
            out: Vec::new(),
            kind: HEAD,
            body: Vec::new(),
            totals: Totals::default(),
        };
        writer.append(MAGIC);
        writer.append(&BACKUP_VERSION.to_be_bytes());
        writer.body = serde_json::to_vec(head).map_err(|_| BackupError::Malformed("the head"))?;
        writer.end_frame()?;
        writer.kind = ROWS;
        Ok(writer)
    }

    /// Adds a row. Rows come before objects.
    ///
    /// # Errors
    /// [`BackupError::TooLong`], or [`BackupError::Malformed`] for a row behind an object.
    pub fn row(&mut self, row: Row<'_>) -> Result<(), BackupError> {
        if self.kind != ROWS {
            return Err(BackupError::Malformed("a row behind the objects"));
        }
        let long = |bytes: usize| u32::try_from(bytes).map_err(|_| BackupError::TooLong(bytes));
        let (key, value) = (long(row.key.len())?, long(row.row.len())?);
        self.body.push(row.table);
        self.body.extend_from_slice(&key.to_be_bytes());
        self.body.extend_from_slice(row.key);
        self.body.extend_from_slice(&value.to_be_bytes());
        self.body.extend_from_slice(row.row);
        self.totals.rows += 1;
        self.totals.row_bytes += (row.key.len() + row.row.len()) as u64;
        self.end_long_frame()
    }

    /// Adds an object.
    ///
    /// # Errors
    /// As [`Self::row`].
    pub fn object(&mut self, needed: &Needed) -> Result<(), BackupError> {
        if self.kind != OBJECTS {
            self.end_frame()?;
            self.kind = OBJECTS;
        }
        let key = needed.key.to_string();
        let digest = needed.digest.as_ref().map(ToString::to_string).unwrap_or_default();
        let long = BackupError::Malformed("an object with a long name");
        let (Ok(key_bytes), Ok(digest_bytes)) =
            (u16::try_from(key.len()), u8::try_from(digest.len()))
        else {
            return Err(long);
        };
        let size = needed.size.map_or(0, |size| size.saturating_add(1));
        self.body.extend_from_slice(&key_bytes.to_be_bytes());
        self.body.extend_from_slice(key.as_bytes());
        self.body.extend_from_slice(&size.to_be_bytes());
        self.body.push(digest_bytes);
        self.body.extend_from_slice(digest.as_bytes());
        self.totals.objects += 1;
        self.end_long_frame()
    }

    /// Ends it, and gives the last bytes with what it came to.
    ///
    /// # Errors
    /// As [`Self::row`].
    pub fn finish(mut self) -> Result<(Vec<u8>, Totals), BackupError> {
        self.end_frame()?;
        self.kind = END;
        self.body =
            serde_json::to_vec(&self.totals).map_err(|_| BackupError::Malformed("the end"))?;
        self.end_frame()?;
        Ok((self.out, self.totals))
    }

    /// What is whole and was not taken yet.
    pub fn take(&mut self) -> Vec<u8> {
        mem::take(&mut self.out)
    }

    fn end_long_frame(&mut self) -> Result<(), BackupError> {
        if self.body.len() >= FRAME_BYTES { self.end_frame() } else { Ok(()) }
    }

    /// A frame without content is none.
    fn end_frame(&mut self) -> Result<(), BackupError> {
        if self.body.is_empty() {
            return Ok(());
        }
        let body = mem::take(&mut self.body);
        let length = match u32::try_from(body.len()) {
            Ok(length) if body.len() <= FRAME_BYTES_MAX => length,
            _ => return Err(BackupError::TooLong(body.len())),
        };
        self.append(&[self.kind]);
        self.append(&length.to_be_bytes());
        self.append(&body);
        let chain = self.hasher.finalize();
        self.append(&chain.as_bytes()[..CHAIN_BYTES]);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.out.extend_from_slice(bytes);
    }
}
