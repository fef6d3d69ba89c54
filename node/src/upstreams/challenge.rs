//! What a registry asks for that does not let somebody in: the `WWW-Authenticate` header (RFC 9110,
//! 11.6.1), of which registries use Basic and distribution's Bearer.
//!
//! Invariant: what is malformed is no challenge; nothing here is longer than the header was.

use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// The one to answer, of all that an answer has: Bearer before Basic.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter();
        let found: Vec<Self> =
            values.filter_map(|value| value.to_str().ok()).filter_map(Self::parse).collect();
        let bearer = found.iter().find(|one| matches!(one, Self::Bearer { .. }));
        bearer.or(found.first()).cloned()
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parameters(rest)?;
        let find = |name: &str| {
            let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone())
        };
        Some(Self::Bearer { realm: find("realm")?, service: find("service") })
    }
}

/// What `fuzz` asks of it.
pub fn check_challenge(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, value)]);
    if let Some(Challenge::Bearer { realm, service }) = Challenge::of(&headers) {
        assert!(realm.len() + service.map_or(0, |service| service.len()) <= 2 * bytes.len());
    }
}

/// `a=b, c="d, \"e\""` (RFC 9110, 11.2).
fn parameters(mut text: &str) -> Option<Vec<(String, String)>> {
    let mut found = Vec::new();
    loop {
        text = text.trim_start_matches([' ', '\t', ',']);
        if text.is_empty() {
            return Some(found);
        }
        let (name, rest) = text.split_once('=')?;
        let (value, rest) = match rest.trim_start().strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let end = rest.find([',', ' ']).unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        found.push((name.trim().to_owned(), value));
        text = rest;
    }
}

/// What stands before the closing quote, and what after it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            character => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>| Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        };
        for (text, expected) in [
            (
                "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",\
                 scope=\"repository:library/alpine:pull\"",
                Some(bearer("https://auth.docker.io/token", Some("registry.docker.io"))),
            ),
            ("bearer realm=https://a.example/t", Some(bearer("https://a.example/t", None))),
            ("Bearer service=\"a, \\\"b\\\"\" , realm=\"r\"", Some(bearer("r", Some("a, \"b\"")))),
            ("Basic realm=\"Registry\"", Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            ("Bearer", None),
            ("Bearer realm=\"open", None),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(Challenge::parse(text), expected, "{text}");
        }
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=\"x\"".parse().unwrap());
        assert_eq!(Challenge::of(&headers), Some(Challenge::Basic));
        headers.append(WWW_AUTHENTICATE, "Bearer realm=\"r\"".parse().unwrap());
        assert_eq!(Challenge::of(&headers), Some(bearer("r", None)));
    }

    proptest! {
        #[test]
        fn whatever_stands_there_is_read_or_refused(text in "\\PC{0,200}|[Bb]earer [a-z=\", \\\\]{0,60}") {
            if let Some(Challenge::Bearer { realm, .. }) = Challenge::parse(&text) {
                prop_assert!(realm.len() <= text.len());
            }
        }
    }
}
