//! Everything of the registry that takes apart what others send or stored, as functions of bytes:
//! they must not panic, must not take more memory than what they are given suggests, and what they
//! let through must have the properties that the rest relies on.
//!
//! The suite drives them with seeded mutations of good inputs for a moment, `./dev fuzz TARGET` for
//! as long as wanted. `fuzz_target!(|data: &[u8]| shoal_node::fuzz::route(data))` and the like let
//! libFuzzer drive the same functions, where a nightly toolchain is there.

mod backup;
mod credentials;
#[cfg(test)]
mod driver;
mod scopes;
#[cfg(test)]
mod seeds;

use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_content::{
    AccountName, Digest, ImageReference, ObjectKey, Pin, ProjectName, Recipe, RepositoryName,
    TagName, Timestamp, UploadId,
};
use shoal_formats::parse_manifest;
use shoal_metadata::{
    Blob, Deployment, Grantee, Image, ObjectUse, PATTERN_BYTES_MAX, Pattern, QuotaOf, RobotName,
    Suspect, Upload, Version, decode_command, decode_row, encode_command, encode_row,
};
use uuid::Uuid;

use crate::api::fuzzed::{check_filters, check_join_token, compatible_reference};
use crate::clock;
use crate::config::Config;
use crate::http::{check_forwarded, check_trace_parent};
use crate::registry::fuzzed::{
    PAGE_MAX, Piece, Route, Wanted, content_range, decode_checkpoint, decode_pieces, names_digest,
    page_size, several, wanted,
};
use crate::upstreams::check_challenge;

pub use backup::backup;
pub use credentials::authorization;
pub use scopes::{scopes, token_form};

/// A function of bytes that must end well whatever they are.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 24] = [
    ("names", names),
    ("parties", parties),
    ("route", route),
    ("ranges", ranges),
    ("condition", condition),
    ("manifest", manifest),
    ("paging", paging),
    ("filters", filters),
    ("checkpoint", checkpoint),
    ("pieces", pieces),
    ("rows", rows),
    ("recipe", recipe),
    ("trace_parent", trace_parent),
    ("forwarded", forwarded),
    ("challenge", challenge),
    ("authorization", authorization),
    ("token_scope", scopes),
    ("token_form", token_form),
    ("join_token", join_token),
    ("compatible_reference", compatible),
    ("pattern", pattern),
    ("backup", backup),
    ("raft_message", shoal_raft::fuzz::message),
    ("settings", settings),
];

/// What is accepted is written as it was read.
pub fn names(data: &[u8]) {
    fn same<T: std::str::FromStr + std::fmt::Display>(text: &str) {
        if let Ok(value) = text.parse::<T>() {
            assert_eq!(value.to_string(), text);
        }
    }
    let text = String::from_utf8_lossy(data);
    same::<RepositoryName>(&text);
    same::<TagName>(&text);
    same::<Digest>(&text);
    same::<ObjectKey>(&text);
    same::<Pin>(&text);
}

/// Who has rights, pays, or is locked out: what is accepted and written is read again as the same.
pub fn parties(data: &[u8]) {
    fn same<T: std::str::FromStr + std::fmt::Display + PartialEq>(text: &str) {
        if let Ok(value) = text.parse::<T>() {
            assert!(value.to_string().parse().ok() == Some(value), "{text}");
        }
    }
    let text = String::from_utf8_lossy(data);
    same::<AccountName>(&text);
    same::<ProjectName>(&text);
    same::<ImageReference>(&text);
    same::<RobotName>(&text);
    same::<Grantee>(&text);
    same::<QuotaOf>(&text);
    same::<Suspect>(&text);
}

pub fn route(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(route) = Route::parse(&text)
        && let Some(repository) = route.repository()
    {
        assert!(text.starts_with(repository.as_str()), "{route:?}");
    }
}

/// Eight bytes say how long the blob is; the rest is the header.
pub fn ranges(data: &[u8]) {
    let Some((length, text)) = data.split_first_chunk() else { return };
    let (length, text) = (u64::from_le_bytes(*length), String::from_utf8_lossy(text));
    if let Wanted::Part(range) = wanted(Some(&text), length) {
        assert!(range.start < range.end && range.end <= length, "{range:?} of {length}");
    }
    if let Some(ranges) = several(Some(&text), length) {
        let sent: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert!(ranges.len() > 1 && sent <= length, "{ranges:?} of {length}");
    }
    if let Some((first, last)) = content_range(&text) {
        assert_eq!(content_range(&format!("{first}-{last}")), Some((first, last)));
    }
}

/// A list of entity tags, and another one behind it: what is found in either is found in both.
pub fn condition(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let digest = Digest::sha256([7; 32]).to_string();
    let found = names_digest(&text, &digest);
    assert!(!found || text.contains(&digest) || text.contains('*'));
    assert!(names_digest(&format!("{text},\"{digest}\""), &digest));
    assert_eq!(names_digest(&format!("{text}, \"another\""), &digest), found);
}

/// The first byte chooses the `Content-Type`.
pub fn manifest(data: &[u8]) {
    const TYPES: [Option<&str>; 5] = [
        None,
        Some("application/vnd.oci.image.manifest.v1+json"),
        Some("application/vnd.oci.image.index.v1+json"),
        Some("application/vnd.docker.distribution.manifest.v2+json"),
        Some("application/vnd.docker.distribution.manifest.list.v2+json"),
    ];
    let Some((choice, document)) = data.split_first() else { return };
    let header = TYPES[usize::from(*choice) % TYPES.len()];
    if let Ok(parsed) = parse_manifest(header, document) {
        // Whoever asks without knowing the type gets the same.
        let again = parse_manifest(Some(&parsed.media_type), document);
        assert_eq!(again.map(|again| again.references).ok(), Some(parsed.references));
    }
}

pub fn paging(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(size) = page_size(Some(&text)) {
        assert!(size <= PAGE_MAX);
    }
    let Ok(uri) = format!("/?{text}").parse() else { return };
    let Ok(pairs) = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri) else {
        return;
    };
    let longest = pairs.0.iter().map(|(key, value)| key.len() + value.len()).max();
    assert!(longest.unwrap_or(0) <= 3 * text.len());
}

/// Of lists of images, and the times of the trail's.
pub fn filters(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    check_filters(&text);
    if let Some(at) = clock::parsed(&text) {
        // A time zone makes years that no text is for.
        let seconds = |at: Timestamp| at.as_millis() / 1000;
        let again = clock::parsed(&clock::rfc3339(at)).map(seconds);
        assert!(again == Some(seconds(at)) || text.starts_with("9999"), "{text}");
    }
}

pub fn join_token(data: &[u8]) {
    check_join_token(&String::from_utf8_lossy(data));
}

pub fn checkpoint(data: &[u8]) {
    if let Some(mut restored) = decode_checkpoint(data) {
        let before = restored.cutter.length();
        assert_eq!(before, restored.flushed + restored.tail.len() as u64);
        // The next request goes on with it.
        restored.cutter.update(b"more");
        assert_eq!(restored.cutter.length(), before + 4);
    }
}

pub fn pieces(data: &[u8]) {
    let key = ObjectKey::UploadCheckpoint { upload: UploadId::from_uuid(Uuid::nil()), number: 0 };
    if let Some(restored) = decode_pieces(key, data) {
        let ranges = restored.pieces.iter().map(Piece::range);
        let in_pieces: u64 = ranges.map(|range| range.end - range.start).sum();
        assert_eq!(in_pieces, restored.in_pieces);
        let taken = restored.flushed + in_pieces + restored.end.len() as u64;
        assert_eq!(restored.cutter.length(), taken);
    }
}

pub fn rows(data: &[u8]) {
    fn same<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(data: &[u8]) {
        if let Ok(row) = decode_row::<T>(data) {
            assert_eq!(decode_row::<T>(&encode_row(&row)).as_ref(), Ok(&row));
        }
    }
    same::<Upload>(data);
    same::<Image>(data);
    same::<Version>(data);
    same::<Blob>(data);
    same::<Deployment>(data);
    same::<ObjectUse>(data);
    if let Ok(command) = decode_command(data) {
        assert_eq!(decode_command(&encode_command(&command)).as_ref(), Ok(&command));
    }
}

pub fn recipe(data: &[u8]) {
    if let Ok(recipe) = Recipe::decode(data) {
        assert_eq!(recipe.encode_with_id().1, data, "there is one form of a recipe");
    }
}

pub fn trace_parent(data: &[u8]) {
    check_trace_parent(data);
}

/// `X-Forwarded-For`.
pub fn forwarded(data: &[u8]) {
    check_forwarded(data);
}

/// `WWW-Authenticate` of another registry.
pub fn challenge(data: &[u8]) {
    check_challenge(data);
}

/// What of `/api/images/` is a reference says the path and nothing else.
pub fn compatible(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(reference) = compatible_reference(&text) {
        assert_eq!(format!("{}/{}", reference.name, reference.pin), text);
    }
}

/// A pattern, and behind the first zero byte a name.
pub fn pattern(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (text, name) = text.split_once('\0').unwrap_or((&text, "team/app"));
    let Ok(pattern) = text.parse::<Pattern>() else { return };
    assert!(text.len() <= PATTERN_BYTES_MAX && pattern.to_string() == text);
    let matches = pattern.matches(name);
    if let Ok(turned) = format!("!{text}").parse::<Pattern>()
        && !text.starts_with('!')
    {
        assert_ne!(turned.matches(name), matches);
    }
    let literal = !text.contains(['*', '?']);
    assert!(!literal || matches == (text == name) || text.starts_with('!'));
}

/// A file; or one setting of the command line, `section.key=VALUE`. What is accepted is written so
/// that it is accepted again and says the same.
pub fn settings(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let flag = text.split_once('=').filter(|_| !text.contains('\n'));
    let overrides = flag.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let overridden = overrides.map(|one| {
        Config::load(Some(std::path::Path::new("/dev/null")), std::iter::empty(), &[one])
    });
    for config in [Some(Config::parse(&text)), overridden].into_iter().flatten().flatten() {
        let Ok(written) = toml::to_string(&config) else { continue };
        let again = Config::parse(&written).map(|again| toml::to_string(&again).ok());
        assert_eq!(again.ok().flatten(), Some(written));
    }
}
