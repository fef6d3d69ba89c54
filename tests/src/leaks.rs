//! Secrets that a log must not have, by what they look like.
//!
//! Each log of our own programs is looked through when its process is done with, in every test that runs
//! one (`process`). What does not look like a secret – a password – is looked for where a test knows it.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// Digits that make a text a token and no mention of tokens.
const TOKEN_DIGITS: usize = 16;

/// What one line gives away.
pub fn secret_in(line: &str) -> Option<&'static str> {
    let hex = |c: char| c.is_ascii_hexdigit();
    let base64 = |c: char| c.is_ascii_alphanumeric() || "+/_-".contains(c);
    let part = |c: char| base64(c) || c == '.';
    if is_followed(line, "pat_v1_", TOKEN_DIGITS, hex) {
        return Some("a personal access token");
    }
    if is_followed(line, "shoal-join-v1.", 2 * TOKEN_DIGITS, part) {
        return Some("a join token");
    }
    // The second part of a JWT; the first may be anybody's.
    if is_followed(line, ".eyJ", TOKEN_DIGITS, part) {
        return Some("a signed token");
    }
    if is_followed(line, "Basic ", TOKEN_DIGITS, base64) {
        return Some("a password of HTTP");
    }
    line.contains("PRIVATE KEY-----").then_some("a private key")
}

/// Whether so many characters of a kind come somewhere right behind `mark`.
fn is_followed(line: &str, mark: &str, count: usize, kind: impl Fn(char) -> bool) -> bool {
    line.match_indices(mark).any(|(at, _)| {
        let behind = line[at + mark.len()..].chars();
        behind.take_while(|c| kind(*c)).take(count).count() == count
    })
}

/// The first secret in a log, with its line; what is in no log that is gone.
///
/// # Errors
/// Where it cannot be read.
pub fn first_in(log: &Path) -> io::Result<Option<(&'static str, String)>> {
    let mut lines = match File::open(log) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        if let Some(kind) = secret_in(&text) {
            return Ok(Some((kind, text.trim_end().to_owned())));
        }
        line.clear();
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_known_by_its_looks_and_what_speaks_of_one_is_none() {
        for (line, kind) in [
            ("from pat_v1_0123456789abcdef0123456789abcdef", "a personal access token"),
            (
                "token=\"shoal-join-v1.cluster-1.0123456789abcdef0123.c2VjcmV0IG9mIGFsbA\"",
                "a join token",
            ),
            ("Bearer eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhZG1pbiIsImV4cCI6MX0.c2ln", "a signed token"),
            ("authorization: Basic YWRtaW46Y29ycmVjdC1ob3JzZS03", "a password of HTTP"),
            ("-----BEGIN PRIVATE KEY-----", "a private key"),
        ] {
            assert_eq!(secret_in(line), Some(kind), "{line}");
        }
        for line in [
            "use a personal access token (pat_v1_…) as the password",
            "no shoal-join-v1. there",
            "Basic credentials, Basic authentication",
            "certificate.eyJ",
            "",
        ] {
            assert_eq!(secret_in(line), None, "{line}");
        }
    }

    #[test]
    fn a_log_tells_its_first_secret_and_one_that_is_gone_none() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        assert!(first_in(&log).unwrap().is_none());
        std::fs::write(&log, b"one\n\xff two\n").unwrap();
        assert!(first_in(&log).unwrap().is_none());
        std::fs::write(&log, b"one\n\xff pat_v1_0123456789abcdef\nthree\n").unwrap();
        let (kind, line) = first_in(&log).unwrap().unwrap();
        assert!(kind == "a personal access token" && line.contains("pat_v1"), "{kind} {line}");
    }
}
