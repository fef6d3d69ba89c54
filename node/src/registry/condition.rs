//! `If-None-Match` of manifests and blobs (RFC 9110, section 13.1.2): whoever has the content already
//! is told so, in place of getting it again.
//!
//! Invariant: an entity tag is the content's digest, so that it never stands for anything else, at
//! whichever node.
//! Non-goal: `If-Range`, which goes with ranges; see `blobs`.

use axum::http::{HeaderMap, StatusCode, header};
use shoal_content::Digest;

use super::{Answer, CONTENT_DIGEST, empty};

/// The entity tag of what is called so, in its quotes.
pub fn entity_tag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// Whether the asker has what is called so.
pub fn has(headers: &HeaderMap, digest: &Digest) -> bool {
    let mut values =
        headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|it| it.to_str().ok());
    values.any(|value| names(value, &digest.to_string()))
}

/// Whether one value of the header names that digest. A weak tag does as well as a strong one (RFC
/// 9110, section 8.8.3.2), and clients of registries leave the quotes out.
pub fn names(value: &str, digest: &str) -> bool {
    value.split(',').map(str::trim).any(|tag| {
        let strong = tag.strip_prefix("W/").unwrap_or(tag);
        let bare = strong.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
        tag == "*" || bare.unwrap_or(strong) == digest
    })
}

/// 304, with what names the content that the asker has.
pub fn not_modified(digest: &Digest) -> Answer {
    let headers = [(header::ETAG, entity_tag(digest)), (CONTENT_DIGEST, digest.to_string())];
    empty(StatusCode::NOT_MODIFIED, &headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_in_a_list_weak_or_bare_and_nothing_else_is() {
        let digest = Digest::sha256([7; 32]);
        let own = digest.to_string();
        let has = |values: &[String]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::IF_NONE_MATCH, value.parse().unwrap());
            }
            has(&headers, &digest)
        };
        for values in [
            vec![format!("\"{own}\"")],
            vec![format!("W/\"{own}\"")],
            vec![own.clone()],
            vec!["*".to_owned()],
            vec![format!("\"another\" , \"{own}\"")],
            vec!["\"another\"".to_owned(), format!("\"{own}\"")],
        ] {
            assert!(has(&values), "{values:?}");
        }
        for values in [
            vec![],
            vec![String::new()],
            vec!["\"*\"".to_owned()],
            vec![format!("\"{}\"", &own[..own.len() - 1])],
            vec![format!("\"{own}0\"")],
            vec![format!("\"{own}")],
            vec![format!("\"{}\"", Digest::sha256([8; 32]))],
        ] {
            assert!(!has(&values), "{values:?}");
        }
    }
}
