//! Versions of images: how they come, what they are called, and who runs them.

use super::super::note::{Subject, delete, get, post, put};

const NO_VERSION: &str = "image_not_found version_not_found not_found";

pub fn versions() -> Subject {
    Subject {
        name: "Versions",
        about: "A version is immutable. `{version}` is its id, its number, its digest or a tag. One \
                that is deleted is gone at once, so that none says when. A layer is known by its \
                digest, and its media type says how it is compressed; where that lies, and how many \
                others refer to it, is not for everyone who may see the version.",
        notes: vec![
            get("/api/v1/images/{image}/versions", "Lists an image's versions")
                .about(
                    "The highest numbers first; of a container, those that came last. By `status` it \
                        takes a look at each version.",
                )
                .refuses(404, "image_not_found"),
            post("/api/v1/images/{image}/versions", "Makes a version of content that is there")
                .status(201)
                .refuses(400, "version_invalid version_missing too_many_tags")
                .refuses(403, "quota_exceeded")
                .refuses(404, NO_VERSION)
                .refuses(409, "not_a_disk version_exists wrong_state in_use")
                .refuses(409, "tag_names_another_version")
                .refuses(412, "immutable"),
            get("/api/v1/images/{image}/versions/{version}", "Shows a version")
                .refuses(404, "image_not_found version_not_found"),
            put("/api/v1/images/{image}/versions/{version}", "Describes a version anew")
                .refuses(404, NO_VERSION),
            delete("/api/v1/images/{image}/versions/{version}", "Deletes a version")
                .refuses(404, NO_VERSION)
                .refuses(409, "in_use")
                .refuses(412, "immutable"),
            post("/api/v1/images/{image}/versions/{version}/deprecate", "Deprecates a version")
                .about("The answer says which instances run it.")
                .refuses(400, "text_too_long")
                .refuses(404, NO_VERSION),
            delete("/api/v1/images/{image}/versions/{version}/deprecate", "Takes that back")
                .refuses(404, NO_VERSION),
            get("/api/v1/images/{image}/versions/{version}/download", "Downloads a disk")
                .about(
                    "In any format; ranges work, and what is answered for a format is always the \
                        same.",
                )
                .header("Range", "One range of bytes.")
                .header("If-Range", "The ETag of the answer that the range is of.")
                .header("If-None-Match", "The ETag of what is there already.")
                .gives(200, "application/octet-stream", "The disk.")
                .gives(206, "application/octet-stream", "The range of it.")
                .gives(304, "", "It is there already.")
                .refuses(400, "format_invalid disk_too_large request_invalid")
                .refuses(404, "image_not_found version_not_found")
                .refuses(409, "not_a_disk")
                .refuses(416, "range_not_satisfiable"),
        ],
    }
}

pub fn scans() -> Subject {
    Subject {
        name: "Vulnerabilities",
        about: "A scanner that the operator names looks through versions: when it is told to, when one \
                is pushed, and again when that was long ago.",
        notes: vec![
            post("/api/v1/images/{image}/scan", "Orders a scan of a version")
                .about(
                    "Of the latest one where none is named. Ordered again while it has not come to an \
                        end, it is the same order.",
                )
                .status(202)
                .refuses(404, NO_VERSION)
                .refuses(409, "scanner_disabled not_scannable"),
            get("/api/v1/images/{image}/vulnerabilities", "Lists what a scan has found")
                .about(
                    "The most severe first, of the last scan that was completed; how the last one \
                        stands that was ordered is said besides.",
                )
                .refuses(400, "severity_invalid")
                .refuses(404, "image_not_found version_not_found scan_not_found"),
            get("/api/v1/artifacts/{digest}/vulnerabilities", "Lists that by a version's digest")
                .about("In whatever repository it is that the asker may see.")
                .refuses(400, "severity_invalid")
                .refuses(404, "scan_not_found"),
        ],
    }
}

pub fn uploads() -> Subject {
    let no_upload = "image_not_found upload_not_found not_found";
    Subject {
        name: "Uploads of disks",
        about: "`init`, then the parts in any order, several at once and to any node, then \
                `complete`. What was sent already can be asked for, so that an upload that broke off \
                goes on. A large disk is read while it comes in, from when its first and its last \
                part are there; parts then wait for those before them to be read.",
        notes: vec![
            post("/api/v1/images/{image}/versions/upload/init", "Begins an upload")
                .refuses(400, "version_invalid size_invalid layers_invalid too_many_tags")
                .refuses(400, "format_invalid text_too_long")
                .refuses(403, "quota_exceeded")
                .refuses(404, "image_not_found not_found")
                .refuses(409, "version_exists tag_names_another_version wrong_state exists")
                .refuses(412, "immutable")
                .refuses(429, "too_many_uploads"),
            put("/api/v1/images/{image}/versions/upload/{upload}/chunks/{part}", "Sends a part")
                .about("Parts count from 0; all but the last are `chunk_size` bytes long.")
                .header("x-shoal-checksum", "`sha256:…` of the part; refused where it is another.")
                .header("Content-Digest", "The same as `sha-256=:BASE64:` (RFC 9530).")
                .refuses(400, "chunk_out_of_range chunk_size_mismatch chunk_incomplete")
                .refuses(400, "checksum_invalid checksum_mismatch part_out_of_range")
                .refuses(404, no_upload)
                .refuses(409, "upload_state wrong_state"),
            get("/api/v1/images/{image}/versions/upload/{upload}", "Says how far an upload is")
                .refuses(404, no_upload),
            post("/api/v1/images/{image}/versions/upload/{upload}/complete", "Ends an upload")
                .about("Asked again, it says how far it is, or why it failed.")
                .status(201)
                .or(202, "The disk is being read.")
                .refuses(403, "quota_exceeded")
                .refuses(404, no_upload)
                .refuses(409, "chunks_missing wrong_state version_exists")
                .refuses(422, "upload_failed import_failed checksum_mismatch")
                .refuses(422, "disk_ambiguous_format disk_archive_not_supported disk_backing_file")
                .refuses(422, "disk_bochs_not_supported disk_checksum_mismatch")
                .refuses(422, "disk_cloop_not_supported disk_corrupt_log disk_corrupt_tables")
                .refuses(422, "disk_data_file disk_disk_part disk_dmg_not_supported")
                .refuses(422, "disk_duplicate_name disk_encrypted disk_format_mismatch")
                .refuses(422, "disk_luks_not_supported disk_malformed_header")
                .refuses(422, "disk_marked_corrupt disk_missing_part disk_names_files")
                .refuses(422, "disk_names_path disk_no_disk disk_not_in_manifest")
                .refuses(422, "disk_out_of_range disk_overlapping_tables")
                .refuses(422, "disk_parallels_not_supported disk_parent")
                .refuses(422, "disk_qcow1_not_supported disk_qed_not_supported")
                .refuses(422, "disk_several_disks disk_too_large disk_truncated")
                .refuses(422, "disk_unknown_compression disk_unknown_feature")
                .refuses(422, "disk_unknown_version disk_vdi_not_supported")
                .refuses(422, "disk_vmdk_cowd_not_supported disk_vmdk_sesparse_not_supported"),
            delete("/api/v1/images/{image}/versions/upload/{upload}", "Gives an upload up")
                .about("One that has become a version stays; the version can be deleted.")
                .refuses(404, no_upload)
                .refuses(409, "upload_state wrong_state"),
            post("/api/v1/images/{image}/versions/import", "Has the nodes get a disk by its URL")
                .about("An upload from then on.")
                .status(202)
                .refuses(400, "version_invalid url_invalid checksum_missing")
                .refuses(400, "format_invalid too_many_tags size_invalid text_too_long")
                .refuses(403, "import_disabled import_not_allowed quota_exceeded")
                .refuses(404, "image_not_found not_found")
                .refuses(409, "version_exists tag_names_another_version wrong_state")
                .refuses(413, "import_too_long")
                .refuses(412, "immutable")
                .refuses(429, "too_many_uploads")
                .refuses(502, "import_unreachable"),
        ],
    }
}

pub fn tags() -> Subject {
    Subject {
        name: "Tags",
        about: "Names that move from version to version. A tag is known by its name in its image, and \
                has no id besides.",
        notes: vec![
            get("/api/v1/images/{image}/tags", "Lists an image's tags")
                .about(
                    "Those that were set last come first, or by name. A page costs what is on it, however \
                        many tags there are: go on by name with `after`, since a page by its number costs \
                        a look at each tag before it, and shows none behind the first 100000.",
                )
                .refuses(400, "sort_invalid")
                .refuses(404, "image_not_found"),
            put("/api/v1/images/{image}/tags/{tag}", "Sets a tag, by a version's id or number")
                .refuses(400, "version_missing")
                .refuses(404, NO_VERSION)
                .refuses(409, "tag_names_another_version in_use wrong_state")
                .refuses(412, "immutable"),
            delete("/api/v1/images/{image}/tags/{tag}", "Deletes a tag")
                .refuses(404, "image_not_found not_found")
                .refuses(409, "in_use")
                .refuses(412, "immutable"),
            post("/api/v1/images/{image}/rollback", "Moves a tag back")
                .about("`latest` where none is named.")
                .refuses(400, "tag_invalid")
                .refuses(404, NO_VERSION)
                .refuses(409, "tag_names_another_version in_use wrong_state")
                .refuses(412, "immutable"),
        ],
    }
}

pub fn instances() -> Subject {
    let no_image = "image_not_found version_not_found tag_not_found instance_not_found not_found";
    Subject {
        name: "Instances",
        about: "Which virtual machine runs which version: what one runs is not removed.",
        notes: vec![
            get("/api/v1/instances", "Lists instances of the images that the asker may see")
                .about(
                    "By id. With `limit` or `after` an answer has at most 1000 that come behind \
                     `after`, a Link leads on, and the pagination counts only what is in it; such \
                     a part costs what is in it. Without them pages have numbers, and for each of \
                     them all instances are counted.",
                )
                .refuses(400, "image_missing")
                .refuses(404, "image_not_found version_not_found"),
            post("/api/v1/instances", "Registers an instance")
                .status(201)
                .refuses(400, "id_missing image_missing version_missing")
                .refuses(404, no_image)
                .refuses(409, "instance_exists version_mismatch"),
            get("/api/v1/instances/{instance}", "Shows an instance")
                .refuses(404, "instance_not_found"),
            put("/api/v1/instances/{instance}", "Says what an instance runs from now on")
                .refuses(400, "id_mismatch image_missing version_missing")
                .refuses(404, no_image)
                .refuses(409, "version_mismatch"),
            delete("/api/v1/instances/{instance}", "Forgets an instance")
                .refuses(404, "instance_not_found not_found"),
        ],
    }
}
