//! An upload that failed, as an answer to who completes it.
//!
//! A session keeps why it failed as a text: a code, a colon and words. Invariant: a code means here
//! what it means wherever else it is answered; one that is not in the table is no code, and all of
//! the text is for people.

use axum::http::StatusCode;

use crate::http::problem::Problem;

/// What is wrong with what was sent, or was to be had elsewhere.
const UNFIT: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;

const CODES: &[(StatusCode, &str)] = &[
    (StatusCode::NOT_FOUND, "image_not_found"),
    (StatusCode::CONFLICT, "version_exists"),
    (StatusCode::CONFLICT, "in_use"),
    (StatusCode::FORBIDDEN, "forbidden"),
    (StatusCode::FORBIDDEN, "quota_exceeded"),
    (StatusCode::INSUFFICIENT_STORAGE, "storage_full"),
    (UNFIT, "checksum_mismatch"),
    (UNFIT, "import_failed"),
    // The reasons of `shoal_formats::Refusal`.
    (UNFIT, "disk_ambiguous_format"),
    (UNFIT, "disk_archive_not_supported"),
    (UNFIT, "disk_backing_file"),
    (UNFIT, "disk_bochs_not_supported"),
    (UNFIT, "disk_checksum_mismatch"),
    (UNFIT, "disk_cloop_not_supported"),
    (UNFIT, "disk_corrupt_log"),
    (UNFIT, "disk_corrupt_tables"),
    (UNFIT, "disk_data_file"),
    (UNFIT, "disk_disk_part"),
    (UNFIT, "disk_dmg_not_supported"),
    (UNFIT, "disk_duplicate_name"),
    (UNFIT, "disk_encrypted"),
    (UNFIT, "disk_format_mismatch"),
    (UNFIT, "disk_luks_not_supported"),
    (UNFIT, "disk_malformed_header"),
    (UNFIT, "disk_marked_corrupt"),
    (UNFIT, "disk_missing_part"),
    (UNFIT, "disk_names_files"),
    (UNFIT, "disk_names_path"),
    (UNFIT, "disk_no_disk"),
    (UNFIT, "disk_not_in_manifest"),
    (UNFIT, "disk_out_of_range"),
    (UNFIT, "disk_overlapping_tables"),
    (UNFIT, "disk_parallels_not_supported"),
    (UNFIT, "disk_parent"),
    (UNFIT, "disk_qcow1_not_supported"),
    (UNFIT, "disk_qed_not_supported"),
    (UNFIT, "disk_several_disks"),
    (UNFIT, "disk_too_large"),
    (UNFIT, "disk_truncated"),
    (UNFIT, "disk_unknown_compression"),
    (UNFIT, "disk_unknown_feature"),
    (UNFIT, "disk_unknown_version"),
    (UNFIT, "disk_vdi_not_supported"),
    (UNFIT, "disk_vmdk_cowd_not_supported"),
    (UNFIT, "disk_vmdk_sesparse_not_supported"),
];

/// The problem that a session's failure is.
pub fn problem(failure: &str) -> Problem {
    let (code, words) = failure.split_once(": ").unwrap_or((failure, ""));
    match CODES.iter().find(|(_, known)| *known == code) {
        Some((status, code)) => Problem::new(*status, code, words),
        None => Problem::new(UNFIT, "upload_failed", failure),
    }
}

#[cfg(test)]
mod tests {
    use shoal_formats::{Foreign, Refusal};

    use super::*;

    #[test]
    fn what_a_session_failed_by_is_answered_with_its_code_and_words() {
        for (failure, status, code, words) in [
            ("disk_truncated: the image ends", 422, "disk_truncated", "the image ends"),
            ("storage_full: no room: none", 507, "storage_full", "no room: none"),
            ("quota_exceeded: at most 5", 403, "quota_exceeded", "at most 5"),
            ("version_exists: 1.0 is", 409, "version_exists", "1.0 is"),
            ("a/b:v1 is immutable", 422, "upload_failed", "a/b:v1 is immutable"),
            ("the tag is in use: by x", 422, "upload_failed", "the tag is in use: by x"),
        ] {
            let found = problem(failure);
            let found = (found.status.as_u16(), found.code, found.message.as_str());
            assert_eq!(found, (status, code, words));
        }
    }

    #[test]
    fn every_reason_of_a_refused_disk_has_a_code() {
        let foreign = [
            Foreign::Qcow1,
            Foreign::Cowd,
            Foreign::SeSparse,
            Foreign::Qed,
            Foreign::Luks,
            Foreign::Vdi,
            Foreign::Parallels,
            Foreign::Bochs,
            Foreign::Cloop,
            Foreign::Dmg,
        ];
        let refusals = [
            Refusal::BackingFile,
            Refusal::Parent,
            Refusal::DataFile,
            Refusal::NamesFiles,
            Refusal::NamesPath,
            Refusal::DiskPart,
            Refusal::MissingPart,
            Refusal::DuplicateName,
            Refusal::NoDisk,
            Refusal::SeveralDisks,
            Refusal::NotInManifest,
            Refusal::ChecksumMismatch,
            Refusal::Encrypted,
            Refusal::MarkedCorrupt,
            Refusal::Ambiguous { first: "a", second: "b" },
            Refusal::Archive("x"),
            Refusal::UnknownVersion(9),
            Refusal::UnknownFeature(9),
            Refusal::UnknownCompression(9),
            Refusal::MalformedHeader("x"),
            Refusal::CorruptTables("x"),
            Refusal::CorruptLog("x"),
            Refusal::OverlappingTables("x"),
            Refusal::Truncated("x"),
            Refusal::TooLarge("x"),
        ];
        let foreign = foreign.into_iter().map(Refusal::Unsupported);
        for refusal in foreign.chain(refusals) {
            let text = format!("disk_{}: words", refusal.reason());
            assert_ne!(problem(&text).code, "upload_failed", "{text}");
        }
    }
}
