//! The registry's endpoints. One handler takes their paths apart, so that all about them stands here;
//! their answers are those of the OCI distribution-spec 1.1.

use shoal_formats::media_type;

use super::super::note::{Note, Subject, delete, get, patch, post, put};
use crate::registry::{Catalogue, ReferrersIndex, RegistryToken, TagList};

const BYTES: &str = "application/octet-stream";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn paged(note: Note) -> Note {
    note.query("n", "How many at most.").query("last", "The last one of the page before.")
}

pub fn registry() -> Subject {
    Subject {
        name: "Registry",
        about: "The OCI distribution-spec 1.1, for docker, podman, containerd, skopeo, oras and the \
                rest. `{name}` has slashes. What is public is read without credentials. Errors come \
                in the specification's form.",
        notes: vec![
            get("/v2/", "Says that this is a registry").gives(200, "", "It is."),
            get("/v2/token", "Gives a token for Basic credentials")
                .query("service", "As the challenge says.")
                .query("scope", "`repository:NAME:pull,push`; may stand several times.")
                .gives_json::<RegistryToken>(200, "A token for what of that is allowed."),
            post("/v2/token", "Gives a token as OAuth 2 does, for a password")
                .takes("application/x-www-form-urlencoded")
                .gives_json::<RegistryToken>(200, "A token for what of that is allowed.")
                .refuses(404, "UNSUPPORTED")
                .refuses(413, "SIZE_INVALID"),
            paged(get("/v2/_catalog", "Lists the repositories that the asker may see"))
                .gives_json::<Catalogue>(200, "By name; a Link leads on.")
                .refuses(400, "PAGINATION_NUMBER_INVALID"),
            paged(get("/v2/{name}/tags/list", "Lists a repository's tags"))
                .gives_json::<TagList>(200, "By name; a Link leads on.")
                .refuses(400, "PAGINATION_NUMBER_INVALID UNSUPPORTED")
                .refuses(404, "NAME_UNKNOWN"),
            get("/v2/{name}/manifests/{reference}", "Gives a manifest by tag or digest")
                .about(
                    "Of a registry that is pulled through, it is fetched where it is not here; a \
                     `Warning` says where a tag is only what was last known.",
                )
                .query("ns", "The registry that is meant, as containerd says it.")
                .header("If-None-Match", "The ETag of what the asker has.")
                .gives(200, MANIFEST, "The manifest as it was pushed, under its own media type.")
                .gives(304, "", "It is there already.")
                .refuses(400, "DIGEST_INVALID MANIFEST_INVALID")
                .refuses(404, "NAME_UNKNOWN MANIFEST_UNKNOWN")
                .refuses(502, "UNAVAILABLE")
                .refuses(503, "UNAVAILABLE"),
            put("/v2/{name}/manifests/{reference}", "Pushes a manifest")
                .query("tag", "A further tag; may stand several times.")
                .takes(MANIFEST)
                .gives(201, "", "It is there.")
                .refuses(400, "MANIFEST_INVALID DIGEST_INVALID")
                .refuses(404, "MANIFEST_BLOB_UNKNOWN MANIFEST_UNKNOWN NAME_UNKNOWN")
                .refuses(409, "UNKNOWN")
                .refuses(412, "DENIED")
                .refuses(413, "SIZE_INVALID")
                .refuses(414, "UNSUPPORTED"),
            delete("/v2/{name}/manifests/{reference}", "Deletes a tag or a version")
                .gives(202, "", "It is gone.")
                .refuses(400, "DIGEST_INVALID MANIFEST_INVALID")
                .refuses(404, "NAME_UNKNOWN MANIFEST_UNKNOWN")
                .refuses(409, "UNKNOWN")
                .refuses(412, "DENIED"),
            get("/v2/{name}/blobs/{digest}", "Gives a blob")
                .query("ns", "The registry that is meant, as containerd says it.")
                .header("Range", "One range of bytes.")
                .header("If-Range", "The ETag that the range is of.")
                .header("If-None-Match", "The ETag of what the asker has.")
                .gives(200, BYTES, "The blob.")
                .gives(206, BYTES, "The range of it.")
                .gives(304, "", "It is there already.")
                .gives(307, "", "To storage, where that is set.")
                .refuses(400, "DIGEST_INVALID")
                .refuses(404, "NAME_UNKNOWN BLOB_UNKNOWN MANIFEST_UNKNOWN")
                .refuses(416, "SIZE_INVALID")
                .refuses(502, "UNAVAILABLE")
                .refuses(503, "UNAVAILABLE"),
            delete("/v2/{name}/blobs/{digest}", "Lets a repository let go of a blob")
                .gives(202, "", "It is gone from the repository.")
                .refuses(400, "DIGEST_INVALID")
                .refuses(404, "NAME_UNKNOWN BLOB_UNKNOWN")
                .refuses(412, "DENIED"),
            post("/v2/{name}/blobs/uploads/", "Begins an upload of a blob")
                .about("With `digest` the body is the whole blob; with `mount` nothing is sent.")
                .query("digest", "Of the body, which is the whole blob.")
                .query("mount", "The digest of a blob that another repository has.")
                .query("from", "That repository; looked for where it is not said.")
                .takes(BYTES)
                .gives(201, "", "The blob is there.")
                .gives(202, "", "The upload has begun; Location says where.")
                .refuses(400, "DIGEST_INVALID BLOB_UPLOAD_INVALID")
                .refuses(413, "SIZE_INVALID"),
            get("/v2/{name}/blobs/uploads/{upload}", "Says how far an upload is")
                .gives(204, "", "Range says how far.")
                .refuses(404, "BLOB_UPLOAD_UNKNOWN"),
            patch("/v2/{name}/blobs/uploads/{upload}", "Sends more of a blob")
                .header("Content-Range", "Which bytes these are.")
                .takes(BYTES)
                .gives(202, "", "Range says how far it is.")
                .refuses(400, "BLOB_UPLOAD_INVALID")
                .refuses(404, "BLOB_UPLOAD_UNKNOWN")
                .refuses(408, "BLOB_UPLOAD_INVALID")
                .refuses(409, "BLOB_UPLOAD_INVALID")
                .refuses(413, "SIZE_INVALID")
                .refuses(416, "BLOB_UPLOAD_INVALID"),
            put("/v2/{name}/blobs/uploads/{upload}", "Ends an upload")
                .query("digest", "Of the whole blob.")
                .takes(BYTES)
                .gives(201, "", "The blob is there.")
                .refuses(400, "DIGEST_INVALID BLOB_UPLOAD_INVALID")
                .refuses(404, "BLOB_UPLOAD_UNKNOWN")
                .refuses(408, "BLOB_UPLOAD_INVALID")
                .refuses(409, "BLOB_UPLOAD_INVALID")
                .refuses(413, "SIZE_INVALID")
                .refuses(416, "BLOB_UPLOAD_INVALID"),
            delete("/v2/{name}/blobs/uploads/{upload}", "Gives an upload up")
                .gives(204, "", "It is gone.")
                .refuses(404, "BLOB_UPLOAD_UNKNOWN"),
            get("/v2/{name}/referrers/{digest}", "Lists what refers to a manifest")
                .query("artifactType", "Only of this kind.")
                .query("last", "The last one of the page before.")
                .gives_as::<ReferrersIndex>(200, media_type::OCI_INDEX, "A Link leads on.")
                .refuses(400, "DIGEST_INVALID"),
        ],
    }
}
