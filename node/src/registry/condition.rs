//! `If-None-Match` and `If-Range` (RFC 9110, sections 13.1.2 and 13.1.5): whoever has the content
//! already is told so, in place of getting it again; and a part is given only of what the asker has
//! the rest of.
//!
//! Invariant: the entity tag of a manifest or blob is its digest, so that it never stands for anything
//! else, at whichever node.
//! Non-goal: what a range is; see `range`.

use axum::http::{HeaderMap, StatusCode, header};
use shoal_content::Digest;

use super::{Answer, CONTENT_DIGEST, empty};

/// The entity tag of what is called so, in its quotes.
pub fn entity_tag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// Whether the asker has what is called so.
pub fn has(headers: &HeaderMap, digest: &Digest) -> bool {
    has_tagged(headers, &digest.to_string())
}

/// Whether the asker has what has that entity tag, which is without its quotes here.
pub fn has_tagged(headers: &HeaderMap, tag: &str) -> bool {
    let mut values =
        headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|it| it.to_str().ok());
    values.any(|value| names(value, tag))
}

/// The range that is asked for of what has that entity tag, in its quotes. `If-Range` compares
/// strongly, and a date that it may say is none of anything here.
pub fn range_of<'a>(headers: &'a HeaderMap, entity_tag: &str) -> Option<&'a str> {
    let of = headers.get(header::IF_RANGE);
    let of_this = of.is_none_or(|of| of.as_bytes() == entity_tag.as_bytes());
    headers.get(header::RANGE).filter(|_| of_this)?.to_str().ok()
}

/// Whether one value of the header names that tag. A weak tag does as well as a strong one (RFC
/// 9110, section 8.8.3.2), and clients of registries leave the quotes out.
pub fn names(value: &str, wanted: &str) -> bool {
    value.split(',').map(str::trim).any(|tag| {
        let strong = tag.strip_prefix("W/").unwrap_or(tag);
        let bare = strong.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
        tag == "*" || bare.unwrap_or(strong) == wanted
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

    #[test]
    fn a_range_is_of_what_the_asker_has_or_of_nothing() {
        for (of, counts) in [
            (None, true),
            (Some("\"this\""), true),
            (Some("\"that\""), false),
            (Some("W/\"this\""), false),
            (Some("this"), false),
            (Some("Sat, 01 Jan 2000 00:00:00 GMT"), false),
        ] {
            let mut headers = HeaderMap::new();
            assert_eq!(range_of(&headers, "\"this\""), None);
            headers.insert(header::RANGE, "bytes=0-1".parse().unwrap());
            if let Some(of) = of {
                headers.insert(header::IF_RANGE, of.parse().unwrap());
            }
            let found = range_of(&headers, "\"this\"");
            assert_eq!(found, counts.then_some("bytes=0-1"), "{of:?}");
        }
    }
}
