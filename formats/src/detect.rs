//! skeleton
use crate::disk::{Disk, Format};
use crate::refusal::OpenError;
use crate::source::ReadAt;
pub fn open(
    source: Box<dyn ReadAt + Send>,
    hint: Option<Format>,
) -> Result<Box<dyn Disk>, OpenError> {
    let _ = hint;
    Ok(Box::new(crate::raw::RawDisk::new(source)))
}
