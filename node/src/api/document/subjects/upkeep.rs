//! What operators need: quotas, the audit trail, storage, backups, and the node itself.

use super::super::note::{Subject, delete, get, post, put};

pub fn quotas() -> Subject {
    Subject {
        name: "Quotas",
        about: "What may be held, and what is. `{of}` is `user:NAME`, `group:ORGANIZATION/NAME`, \
                `organization:NAME`, `project:NAME`, `cluster`, or `default:` and a kind; a quota has \
                no id besides. Of one, its last setting is kept, not its first.",
        notes: vec![
            get("/api/v1/quotas", "Lists all quotas that were set"),
            get("/api/v1/quotas/{*of}", "Shows a quota and what is held")
                .refuses(400, "quota_invalid")
                .refuses(404, "project_not_found organization_not_found group_not_found")
                .refuses(404, "user_not_found"),
            put("/api/v1/quotas/{*of}", "Sets a quota")
                .about("All three limits, in place of those there are; each has two names.")
                .refuses(400, "quota_invalid")
                .refuses(404, "not_found"),
            delete("/api/v1/quotas/{*of}", "Removes a quota")
                .about("A default holds from then on, or nothing.")
                .refuses(400, "quota_invalid")
                .refuses(404, "not_found"),
            post("/api/v1/quotas/check", "Counts everything anew and compares"),
        ],
    }
}

pub fn audit() -> Subject {
    Subject {
        name: "Audit",
        about: "Who did what. Each entry's hash covers the one before. Images and versions stand in \
                targets by the names that they had: their ids may name nothing any more. The program \
                of who asked is not kept, since anyone can claim any.",
        notes: vec![
            get("/api/v1/audit", "Searches the trail, the newest first")
                .refuses(400, "result_invalid time_invalid"),
            get("/api/v1/audit/verify", "Goes along the whole chain"),
            get("/api/v1/audit/archives", "Lists what was moved to storage")
                .about("The oldest first, at most 1000 in one answer; a Link leads on."),
            get("/api/v1/audit/archives/{first}", "Shows the entries of an archive")
                .refuses(404, "archive_not_found"),
            get("/api/v1/blocks", "Lists who is not let in for guessing"),
            delete("/api/v1/blocks/{*who}", "Lets `account:NAME` or `address:IP` in again")
                .refuses(400, "suspect_invalid")
                .refuses(404, "not_found"),
        ],
    }
}

pub fn storage() -> Subject {
    Subject {
        name: "Storage",
        about: "What lies in central storage and what is on its way out.",
        notes: vec![
            get("/api/v1/storage", "Says what is known to be on its way out"),
            get("/api/v1/storage/uploads", "Lists uploads that have not come to their end")
                .about("The oldest first, at most 1000 in one answer; a Link leads on."),
            delete("/api/v1/storage/uploads/{upload}", "Ends an upload and frees what it holds")
                .refuses(404, "upload_not_found not_found"),
            post("/api/v1/storage/collect", "Deletes now what nothing refers to any more")
                .refuses(409, "storage_not_owned"),
            post(
                "/api/v1/storage/compact",
                "Begins to write anew what is needed of wasteful packs",
            )
            .about("Those that are mostly garbage since versions of their images are gone.")
            .status(202),
            post("/api/v1/storage/scrub", "Begins to look through all of storage").status(202),
            post("/api/v1/storage/verify", "Begins to compare storage with the metadata")
                .status(202),
            get("/api/v1/backup", "Streams the metadata as a backup")
                .about(
                    "It holds the cluster's secrets. One that ends without its last frame is no \
                        backup.",
                )
                .gives(200, "application/vnd.shoal.backup", "The backup.")
                .refuses(429, "too_many"),
            get("/api/v1/backup/objects/{*key}", "Gives an object that a backup names")
                .gives(200, "application/octet-stream", "Its bytes.")
                .refuses(404, "object_not_found"),
        ],
    }
}

pub fn upstreams() -> Subject {
    Subject {
        name: "Upstreams",
        about: "Other registries, whose images are pulled through the cluster under their names.",
        notes: vec![
            get("/api/v1/upstreams", "Lists the registries that the caller may pull through")
                .about("With how they stand with the node that answers."),
        ],
    }
}

pub fn node() -> Subject {
    Subject {
        name: "Node",
        about: "The node that answers, and this document.",
        notes: vec![
            get("/health", "Says that the process runs"),
            get("/ready", "Says whether the node can do its work")
                .gives(200, "text/plain", "It can.")
                .gives(503, "text/plain", "It cannot; the text says why."),
            get("/metrics", "Gives metrics as OpenMetrics")
                .about("To anyone where the settings say so.")
                .gives(
                    200,
                    "application/openmetrics-text",
                    "Counters, gauges and histograms of this node.",
                ),
            get("/api/v1/openapi.json", "Gives this document")
                .header("If-None-Match", "The ETag of what is there already.")
                .gives_json::<serde_json::Value>(200, "OpenAPI 3.1.")
                .gives(304, "", "It is there already."),
            get("/openapi.json", "Gives this document, where some look for it")
                .header("If-None-Match", "The ETag of what is there already.")
                .gives_json::<serde_json::Value>(200, "OpenAPI 3.1.")
                .gives(304, "", "It is there already."),
            get("/api/docs", "Shows this document as a page").gives(
                200,
                "text/html",
                "Operations and schemas, with a search.",
            ),
        ],
    }
}
