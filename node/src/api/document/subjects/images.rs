//! Images as a whole, who may do what with one, and how other registry managers call them.

use super::super::note::{Subject, delete, get, post, put};

pub fn images() -> Subject {
    Subject {
        name: "Images",
        about: "An image is a repository with versions and tags; disks and containers alike. What \
                the asker may not see is answered like what is not there.",
        notes: vec![
            get("/api/v1/images", "Lists the images that the asker may see")
                .about(
                    "By name, and without filters, a page costs what is on it, however many images \
                        there are: go on with `after`, since a page by its number costs a look at each \
                        name before it. What is filtered or sorted otherwise is looked for among the \
                        first 200000 images.",
                )
                .refuses(400, "kind_invalid sort_invalid labels_invalid annotations_invalid"),
            post("/api/v1/images", "Makes an image without versions")
                .about(
                    "And its project, where that is not there: private, or as visible as the image is \
                        to be, and the organization's that is named. One that is not private, or an \
                        organization's, is made first, and stays where the image is refused.",
                )
                .status(201)
                .refuses(400, "visibility_invalid format_invalid image_type_invalid")
                .refuses(400, "labels_invalid annotations_invalid text_too_long")
                .refuses(403, "quota_exceeded")
                .refuses(404, "image_not_found organization_not_found not_found")
                .refuses(409, "exists visibility_mismatch organization_mismatch"),
            get("/api/v1/images/{image}", "Shows an image with its tags and versions")
                .about(
                    "With its newest tags and versions; lists of their own have all of them. Also a \
                        deleted one, to who may restore it. The ETag is of what is said of it: for the \
                        If-Match of a change.",
                )
                .refuses(404, "image_not_found"),
            put("/api/v1/images/{image}", "Describes an image anew")
                .about(
                    "What is not given stays. Who sees it is its project's to say, which is changed \
                        with it where it has no other image.",
                )
                .header("If-Match", "Of an ETag: nothing is changed where another one came since.")
                .refuses(400, "visibility_invalid format_invalid image_type_invalid")
                .refuses(400, "labels_invalid annotations_invalid text_too_long")
                .refuses(404, "image_not_found organization_not_found not_found")
                .refuses(409, "visibility_mismatch organization_mismatch name_fixed changed")
                .refuses(412, "changed"),
            delete("/api/v1/images/{image}", "Deletes an image")
                .about("It can be restored for a while; with `purge` it is gone for good.")
                .refuses(404, "image_not_found not_found")
                .refuses(409, "in_use")
                .refuses(412, "immutable"),
            post("/api/v1/images/{image}/restore", "Restores a deleted image to its name")
                .refuses(403, "quota_exceeded")
                .refuses(404, "image_not_found not_found")
                .refuses(409, "exists"),
            put("/api/v1/images/{image}/star", "Stars an image")
                .refuses(404, "image_not_found not_found"),
            delete("/api/v1/images/{image}/star", "Takes a star back")
                .refuses(404, "image_not_found not_found"),
            get("/api/v1/resolve", "Says all about one version, by a reference")
                .about("`reference`, or `name` and `tag`.")
                .refuses(400, "reference_invalid")
                .refuses(404, "image_not_found tag_not_found version_not_found"),
        ],
    }
}

pub fn rights() -> Subject {
    let about = "What users, groups and organizations may do with one image, besides what its project \
                 gives them.";
    Subject {
        name: "Rights in images",
        about,
        notes: vec![
            get("/api/v1/images/{image}/permissions", "Lists the rights for an image")
                .about("By who has it, at most 1000 in one answer; a Link leads on.")
                .refuses(404, "image_not_found"),
            post("/api/v1/images/{image}/permissions", "Gives a right by kind, name and level")
                .status(201)
                .refuses(400, "grantee_invalid role_invalid wrong_right")
                .refuses(404, "image_not_found not_found"),
            put("/api/v1/images/{image}/permissions/{*grantee}", "Gives a right")
                .refuses(400, "grantee_invalid role_invalid wrong_right")
                .refuses(404, "image_not_found not_found"),
            delete("/api/v1/images/{image}/permissions/{*grantee}", "Takes a right back")
                .refuses(400, "grantee_invalid")
                .refuses(404, "image_not_found not_found"),
        ],
    }
}

pub fn compatible() -> Subject {
    Subject {
        name: "As other managers",
        about: "The paths that other registry managers have, for their scripts.",
        notes: vec![
            get("/api/images", "Lists images")
                .refuses(400, "kind_invalid sort_invalid labels_invalid annotations_invalid"),
            get("/api/images/search", "Looks for a part of a name")
                .refuses(400, "kind_invalid sort_invalid labels_invalid annotations_invalid"),
            get("/api/images/{*path}", "Shows `NAME/TAG` or `NAME/DIGEST` with its layers")
                .refuses(404, "image_not_found tag_not_found version_not_found"),
            delete("/api/images/{*path}", "Deletes a tag, and with the last one its version")
                .about("Where the version has to stay, for who runs it, so does its last tag.")
                .refuses(404, "image_not_found tag_not_found version_not_found not_found")
                .refuses(409, "in_use")
                .refuses(412, "immutable"),
        ],
    }
}
