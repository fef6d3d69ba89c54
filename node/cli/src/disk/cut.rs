//! A disk's content in the cuts that a node makes.

use std::path::Path;

use shoal_formats::{Cut, Cutter, Disk, ExtentKind, Grain, Plan, StretchKind};

use super::{Stop, unreadable};
use crate::error::Error;

/// Read at once.
const WINDOW_BYTES: u64 = 4 * 1024 * 1024;

/// Hands over every cut of `disk`, in order; `passed` is told of the guest's bytes done so far.
pub(super) fn cut(
    path: &Path,
    disk: &mut dyn Disk,
    plan: &Plan,
    stop: &Stop,
    passed: &dyn Fn(u64),
    each: &mut dyn FnMut(Cut) -> Result<(), Error>,
) -> Result<(), Error> {
    let failed = unreadable(path);
    let (mut cutter, mut cuts) = (Cutter::new(Grain::fitting(plan)), Vec::new());
    let mut buffer = Vec::new();
    for stretch in plan.walk() {
        cutter.stretch(&stretch, &mut cuts);
        let (mut at, end) = (stretch.offset, stretch.offset + stretch.length);
        if stretch.kind == StretchKind::Free {
            cutter.zeros(stretch.length, &mut cuts);
            at = end;
        }
        while at < end {
            stop.check()?;
            let extent = disk.next_extent(at).map_err(&failed)?;
            let length = (extent.offset + extent.length).min(end) - at;
            let length = match extent.kind {
                ExtentKind::Zero => {
                    cutter.zeros(length, &mut cuts);
                    length
                }
                ExtentKind::Data => {
                    let length = length.min(WINDOW_BYTES);
                    buffer.resize(length as usize, 0);
                    disk.read(at, &mut buffer).map_err(&failed)?;
                    cutter.data(&buffer, &mut cuts);
                    length
                }
            };
            at += length;
            cuts.drain(..).try_for_each(&mut *each)?;
            passed(at);
        }
    }
    cutter.finish(&mut cuts);
    cuts.into_iter().try_for_each(each)
}
