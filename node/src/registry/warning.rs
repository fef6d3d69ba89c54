//! Notices that clients show their users: the `Warning` header (distribution-spec 1.1, "Warnings";
//! RFC 7234, 5.5).
//!
//! Invariants: the code is 299, the agent is `-`, and there is no date; the text is one quoted
//! string, whatever it was made of; an answer has at most one notice of [`WARNING_BYTES_MAX`], far
//! below the 4,096 bytes that the specification allows.
//! Non-goal: deciding what deserves one.

use axum::http::{HeaderMap, HeaderValue, header};

/// Of the whole header's value.
const WARNING_BYTES_MAX: usize = 1_024;
const BEGIN: &str = "299 - \"";
const END: &str = "\"";
const CUT: &str = "…";

/// Adds a notice to an answer.
pub fn warn(headers: &mut HeaderMap, text: &str) {
    if let Some(value) = warning(text) {
        headers.insert(header::WARNING, value);
    }
}

/// What is not ASCII goes as UTF-8, as opaque bytes that a quoted string may have (RFC 9110, 5.6.4).
fn warning(text: &str) -> Option<HeaderValue> {
    let mut value = BEGIN.to_owned();
    for character in text.trim().chars() {
        // An escape, a character of four bytes, and the end must fit.
        if value.len() + 5 + CUT.len() + END.len() > WARNING_BYTES_MAX {
            value.push_str(CUT);
            break;
        }
        match character {
            '"' | '\\' => value.extend(['\\', character]),
            character if character.is_control() => value.push(' '),
            character => value.push(character),
        }
    }
    value.push_str(END);
    HeaderValue::from_bytes(value.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a client shows, by the grammar: `299 - "` and a quoted string.
    fn shown(value: &HeaderValue) -> Option<String> {
        let text = std::str::from_utf8(value.as_bytes()).ok()?;
        let mut rest = text.strip_prefix("299 - \"")?.chars();
        let mut shown = String::new();
        loop {
            match rest.next()? {
                '"' => break,
                '\\' => shown.push(rest.next()?),
                character => shown.push(character),
            }
        }
        rest.next().is_none().then_some(shown)
    }

    #[test]
    fn a_notice_is_one_quoted_string() {
        for (text, expected) in [
            ("use v2", "use v2"),
            ("  \"v1\" is \\ old\r\nX-Injected: 1", "\"v1\" is \\ old  X-Injected: 1"),
            ("устарело", "устарело"),
        ] {
            assert_eq!(shown(&warning(text).unwrap()).as_deref(), Some(expected));
        }
    }

    proptest! {
        #[test]
        fn whatever_is_said_the_header_keeps_its_grammar_and_its_bound(text in "\\PC{0,1500}|.{0,600}") {
            let value = warning(&text).expect("every text can be sent");
            prop_assert!(value.len() <= WARNING_BYTES_MAX);
            let shown = shown(&value).expect("a quoted string");
            prop_assert!(!shown.chars().any(char::is_control));
            let clean: String =
                text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let (begins, cut) = match shown.strip_suffix(CUT) {
                Some(begin) if shown != clean => (begin, true),
                _ => (shown.as_str(), false),
            };
            prop_assert!(clean.starts_with(begins));
            prop_assert!(cut || clean == begins);
        }
    }
}
