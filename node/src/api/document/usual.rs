//! What every operation of a kind may answer besides its own reasons, and the words for the variable
//! parts of paths.

use crate::http::signature::{Access, Signature};

/// Statuses with the reasons that are usual for them.
pub fn refusals(signature: &Signature, writes: bool) -> Vec<(u16, &'static str)> {
    let mut usual = vec![(429, "too_many"), (500, "internal"), (503, "unavailable")];
    if signature.access != Access::Open {
        usual.push((401, "unauthorized"));
        usual.push((401, "token_expired"));
        usual.push((401, "session_ended"));
        usual.push((401, "second_factor_needed"));
        usual.push((401, "identity_unknown"));
        usual.push((403, "forbidden"));
        usual.push((403, "locked"));
        usual.push((409, "account_taken"));
        usual.push((503, "issuer_away"));
        usual.push((503, "directory_away"));
    }
    if signature.path.is_some() {
        usual.push((400, "path_invalid"));
    }
    if signature.query.is_some() {
        usual.push((400, "query_invalid"));
    }
    if signature.body.is_some() {
        for status in [400, 413, 415, 422] {
            usual.push((status, "body_invalid"));
        }
    }
    if writes {
        usual.push((429, "limit"));
        usual.push((501, "unsupported"));
        usual.push((503, "being_deleted"));
        usual.push((507, "storage_full"));
    }
    usual
}

/// The same for the registry, in its own words.
pub fn registry_refusals() -> Vec<(u16, &'static str)> {
    vec![
        (400, "NAME_INVALID"),
        (400, "UNSUPPORTED"),
        (401, "UNAUTHORIZED"),
        (403, "DENIED"),
        (405, "UNSUPPORTED"),
        (429, "TOOMANYREQUESTS"),
        (500, "UNKNOWN"),
        (501, "UNKNOWN"),
        (503, "UNKNOWN"),
        (503, "BLOB_UPLOAD_INVALID"),
        (507, "UNKNOWN"),
    ]
}

/// What an answer is called that only has usual reasons, where many operations give it.
pub fn answer_name(status: u16, access: Access, writes: bool) -> Option<String> {
    let name = match status {
        401 => "Unauthorized",
        403 => "Forbidden",
        405 => "NotAllowed",
        409 => "Conflict",
        413 => "TooLong",
        415 => "NotJson",
        422 => "NotTaken",
        429 => "TooMany",
        500 => "Failed",
        501 => "Unsupported",
        503 => "Unavailable",
        507 => "StorageFull",
        _ => return None,
    };
    let writing = if writes && matches!(status, 429 | 503) { "Writing" } else { "" };
    let open = if status == 503 && access == Access::Open { "Open" } else { "" };
    Some(format!("{open}{name}{writing}"))
}

/// What a status means, in a few words.
pub fn status_text(status: u16) -> &'static str {
    match status {
        200 => "Done.",
        201 => "Made.",
        202 => "Begun.",
        204 => "Done; there is nothing to say.",
        400 => "The request is wrong.",
        401 => "Nobody is logged in, or not with these credentials.",
        403 => "That is not allowed to the asker.",
        404 => "That is not there, or the asker may not see it.",
        408 => "The body came too slowly.",
        409 => "That does not fit what is there.",
        412 => "A rule, or a condition of the request, forbids the change.",
        413 => "The body is too long.",
        414 => "The address is too long.",
        415 => "The body is of another kind than is taken here.",
        416 => "There is no such range.",
        422 => "What was sent can be read, but is not what is taken here.",
        429 => "Too many; Retry-After says how long to wait.",
        500 => "The node failed; its log says why.",
        501 => "Some nodes are too old for this.",
        502 => "Another server failed.",
        503 => "Not right now; Retry-After says when.",
        507 => "Storage is full.",
        _ => "Something else.",
    }
}

/// What a variable part of a path is.
pub fn path_part(name: &str) -> &'static str {
    match name {
        "agent" => "An agent's name or id.",
        "deployment" => "An order's id.",
        "warm_up" => "A policy's name.",
        "digest" => "The digest of a blob or manifest.",
        "first" => "The number of the archive's first entry.",
        "grantee" => {
            "`user:NAME`, `group:ORGANIZATION/NAME` or `organization:NAME`, or the id that a right was \
             given under. Its slashes are its own."
        }
        "group" => "A group's name.",
        "image" => "An image's id.",
        "instance" => "What the system that runs it calls it.",
        "key" => "An object's key; its slashes are its own.",
        "name" => "A repository's name; its slashes are its own.",
        "node" => "A node's number.",
        "of" => "Whose quota; its slashes are its own.",
        "organization" => "An organization's name.",
        "part" => "A part's number, from 0.",
        "passkey" => "A passkey's id.",
        "path" => "`NAME/TAG` or `NAME/DIGEST`; its slashes are its own.",
        "project" => "A project's name.",
        "purpose" => "`token` or `ticket`.",
        "reference" => "A tag or a digest.",
        "robot" => "A robot's name, without its project.",
        "rule" => "A rule's name.",
        "session" => "A session's id.",
        "tag" => "A tag's name.",
        "token" => "A token's id.",
        "upload" => "An upload's id.",
        "user" => "A user's name.",
        "version" => "A version's id, number, digest or tag.",
        "who" => "`account:NAME` or `address:IP`.",
        _ => "",
    }
}
