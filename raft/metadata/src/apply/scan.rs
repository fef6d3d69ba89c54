//! Scans of versions: ordered, claimed, ended, dropped.
//!
//! Invariants: a scan is carried out by the node whose claim stands, and by one at a time in the
//! cluster; one of a deleted image is not open.

use shoal_content::{Digest, ImageId, NodeId, ScanId, Timestamp};

use super::{Step, Stop};
use crate::command::{Event, Refusal, Response, Subject};
use crate::key;
use crate::scan::{
    OPEN_SCANS_MAX, SCAN_REASON_BYTES_MAX, SCANNER_BYTES_MAX, Scan, ScanKey, ScanOutcome,
    ScanReport, ScanState,
};
use crate::table::{Fault, Read, Table};

/// Why a scan of a deleted image found nothing.
const IMAGE_DELETED: &str = "version_gone: the image was deleted; order the scan again";

/// Who takes the work.
pub(super) struct Claim {
    pub node: NodeId,
    pub lease_until: Timestamp,
    pub renews: bool,
}

impl<R: Read> Step<'_, R> {
    pub(super) fn order_scan(
        &mut self,
        of: ScanKey,
        id: ScanId,
        by: String,
    ) -> Result<Response, Stop> {
        let image = self.live_image(of.image)?;
        if self.query().version(image.id, &of.digest)?.is_none() {
            return Err(Refusal::NotFound(Subject::Version).into());
        }
        let old = self.query().scan(&of)?;
        if let Some(open) = old.as_ref().filter(|old| old.state.is_open()) {
            return Ok(Response::Scan(open.id));
        }
        let open = self.rows.scan(Table::OpenScans, b"", b"", OPEN_SCANS_MAX)?.len();
        if open >= OPEN_SCANS_MAX {
            let text = format!("{OPEN_SCANS_MAX} scans that have not come to an end");
            return Err(Refusal::Limit(text).into());
        }
        self.rows.mark(Table::OpenScans, key::open_scan(self.at, &of));
        self.put_scan(&Scan {
            id,
            of,
            ordered_at: self.at,
            ordered_by: by,
            state: ScanState::Pending,
            report: old.and_then(|old| old.report),
        });
        Ok(Response::Scan(id))
    }

    pub(super) fn claim_scan(
        &mut self,
        of: &ScanKey,
        id: ScanId,
        claim: Claim,
    ) -> Result<Response, Stop> {
        let Claim { node, lease_until, renews } = claim;
        self.live_image(of.image)?;
        let scan = self.open_scan(of, id)?;
        let attempt = match scan.state {
            ScanState::Scanning { node: other, lease_until: until, .. }
                if other != node && until > self.at =>
            {
                return Err(Refusal::Leased.into());
            }
            ScanState::Scanning { node: other, attempt, .. } if renews && other == node => attempt,
            // What was lost is taken anew, and no longer renewed.
            _ if renews => return Err(Refusal::Leased.into()),
            ScanState::Scanning { attempt, .. } => attempt.saturating_add(1),
            _ => 1,
        };
        let state = ScanState::Scanning { node, lease_until, attempt };
        self.put_scan(&Scan { state, ..scan });
        Ok(Response::Done)
    }

    pub(super) fn end_scan(
        &mut self,
        of: &ScanKey,
        id: ScanId,
        node: NodeId,
        outcome: ScanOutcome,
    ) -> Result<Response, Stop> {
        let scan = self.open_scan(of, id)?;
        match scan.state {
            ScanState::Scanning { node: of_node, .. } if of_node == node => {}
            _ => return Err(Refusal::Leased.into()),
        }
        check_bounds(&outcome)?;
        let (state, report) = match outcome {
            ScanOutcome::Failed { reason } => {
                (ScanState::Failed { at: self.at, reason }, scan.report)
            }
            ScanOutcome::Completed(report) => {
                if let Some(list) = &report.list {
                    self.check_object(list)?;
                    self.hold_object(list)?;
                }
                // After the new one was held, which may be the same.
                self.release_list(scan.report.as_ref())?;
                (ScanState::Completed, Some(report))
            }
        };
        self.rows.remove(Table::OpenScans, key::open_scan(scan.ordered_at, of));
        self.put_scan(&Scan { state, report, ..scan });
        Ok(Response::Done)
    }

    /// Of an image that is deleted: for as long as it could be restored, its orders would keep others from
    /// being carried out, and from being given.
    pub(super) fn give_up_scans(&mut self, image: ImageId) -> Result<(), Fault> {
        for (key, _) in self.rows.scan(Table::OpenScans, b"", b"", OPEN_SCANS_MAX)? {
            let of = key.get(key::TIME_BYTES..).unwrap_or_default();
            let (of_image, digest) = key::read_image_digest(of)?;
            if of_image != image {
                continue;
            }
            let missing = Fault::Contradiction("an index names no scan");
            let scan = self.query().scan(&ScanKey { image, digest })?.ok_or(missing)?;
            let state = ScanState::Failed { at: self.at, reason: IMAGE_DELETED.to_owned() };
            self.rows.remove(Table::OpenScans, key);
            self.put_scan(&Scan { state, ..scan });
        }
        Ok(())
    }

    /// With its version.
    pub(super) fn drop_scan(&mut self, image: ImageId, digest: &Digest) -> Result<(), Fault> {
        let of = ScanKey { image, digest: digest.clone() };
        let Some(scan) = self.query().scan(&of)? else { return Ok(()) };
        self.release_list(scan.report.as_ref())?;
        if scan.state.is_open() {
            self.rows.remove(Table::OpenScans, key::open_scan(scan.ordered_at, &of));
        }
        self.rows.remove(Table::Scans, key::scan(&of));
        self.events.push(Event::ScansChanged);
        Ok(())
    }

    fn open_scan(&self, of: &ScanKey, id: ScanId) -> Result<Scan, Stop> {
        let scan = self.query().scan(of)?;
        let open = scan.filter(|scan| scan.id == id && scan.state.is_open());
        Ok(open.ok_or(Refusal::NotFound(Subject::Scan))?)
    }

    fn release_list(&mut self, report: Option<&ScanReport>) -> Result<(), Fault> {
        match report.and_then(|report| report.list.as_ref()) {
            Some(list) => self.release_object(list),
            None => Ok(()),
        }
    }

    fn put_scan(&mut self, scan: &Scan) {
        self.rows.put(Table::Scans, key::scan(&scan.of), scan);
        self.events.push(Event::ScansChanged);
    }
}

fn check_bounds(outcome: &ScanOutcome) -> Result<(), Refusal> {
    let (text, most) = match outcome {
        ScanOutcome::Failed { reason } => (reason, SCAN_REASON_BYTES_MAX),
        ScanOutcome::Completed(report) => (&report.scanner, SCANNER_BYTES_MAX),
    };
    if text.len() > most {
        return Err(Refusal::Limit(format!("{most} bytes of text")));
    }
    Ok(())
}
