//! Which workloads of other issuers may act as a project's robots: CI jobs that bring a token of
//! their own, and need no secret that could be stolen.
//!
//! Invariants: a rule names its issuer whole; a pattern's wildcard stands behind a separator that
//! already narrows the subject, so that a rule cannot be met by everybody whom an issuer serves.
//! Non-goal: checking a token; see the node's `http::auth`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_content::{AccountName, ProjectName, Timestamp};

/// The longest subject or claim that a rule speaks of, in bytes.
pub const SUBJECT_BYTES_MAX: usize = 512;
pub const WORKLOAD_RULES_MAX: usize = 100;
const CLAIMS_MAX: usize = 16;

/// Who may act as a robot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadRule {
    pub project: ProjectName,
    pub name: AccountName,
    /// As its tokens have it: `https://token.actions.githubusercontent.com`.
    pub issuer: String,
    /// Of the claim `sub`; `*` is any characters: `repo:acme/shop:ref:refs/heads/*`.
    pub subject: String,
    /// Further claims, with the text that each has to be.
    pub claims: BTreeMap<String, String>,
    /// Of the same project.
    pub robot: AccountName,
    pub created_at: Timestamp,
    pub created_by: String,
}

impl WorkloadRule {
    /// What is wrong with it, if anything.
    pub fn mistake(&self) -> Option<&'static str> {
        let texts = self.claims.iter().flat_map(|(name, text)| [name, text]);
        if texts.chain([&self.issuer, &self.subject]).any(|text| text.len() > SUBJECT_BYTES_MAX) {
            return Some("a text of the rule is too long");
        }
        if self.claims.len() > CLAIMS_MAX {
            return Some("a rule speaks of at most 16 claims");
        }
        if self.issuer.is_empty() || self.subject.is_empty() {
            return Some("a rule names an issuer and a subject");
        }
        let (before, _) = self.subject.split_once('*')?;
        let narrows = before.contains('/') || before.matches(':').count() >= 2;
        if narrows && before.ends_with(['/', ':']) {
            return None;
        }
        Some("before its first '*' a subject names whose it is, up to a '/' or a second ':'")
    }

    /// Whether a token of these claims may act by it.
    pub fn takes(&self, issuer: &str, subject: &str, claims: &BTreeMap<String, String>) -> bool {
        self.issuer == issuer
            && matches(self.subject.as_bytes(), subject.as_bytes())
            && self.claims.iter().all(|(name, text)| claims.get(name) == Some(text))
    }
}

/// `*` is any number of bytes. Goes back to the last star only, so that it costs at most the product
/// of both lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut here) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while here < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, here));
                at += 1;
            }
            Some(byte) if *byte == text[here] => {
                at += 1;
                here += 1;
            }
            _ => {
                let Some((after, from)) = star else { return false };
                star = Some((after, from + 1));
                (at, here) = (after, from + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(subject: &str) -> WorkloadRule {
        WorkloadRule {
            project: "shop".parse().unwrap(),
            name: "ci".parse().unwrap(),
            issuer: "https://ci".into(),
            subject: subject.into(),
            claims: BTreeMap::from([("ref_protected".into(), "true".into())]),
            robot: "ci".parse().unwrap(),
            created_at: Timestamp::from_millis(1),
            created_by: "u".into(),
        }
    }

    #[test]
    fn a_rule_takes_what_it_names_and_nothing_that_only_looks_like_it() {
        let claims = BTreeMap::from([("ref_protected".to_owned(), "true".to_owned())]);
        let main = rule("repo:acme/shop:ref:refs/heads/*");
        assert!(main.takes("https://ci", "repo:acme/shop:ref:refs/heads/main", &claims));
        for (issuer, subject) in [
            ("https://ci/", "repo:acme/shop:ref:refs/heads/main"),
            ("https://ci", "repo:acme/shop:ref:refs/tags/v1"),
            ("https://ci", "repo:acme/shop-evil:ref:refs/heads/main"),
            ("https://ci", "repo:acme/shop:pull_request"),
            ("https://ci", "xrepo:acme/shop:ref:refs/heads/main"),
            ("https://ci", ""),
        ] {
            assert!(!main.takes(issuer, subject, &claims), "{issuer} {subject}");
        }
        assert!(!main.takes("https://ci", "repo:acme/shop:ref:refs/heads/main", &BTreeMap::new()));
        let two = rule("repo:acme/*:ref:refs/heads/*-release");
        assert!(two.takes("https://ci", "repo:acme/a:ref:refs/heads/1-release", &claims));
        assert!(!two.takes("https://ci", "repo:acme/a:ref:refs/heads/1-release-x", &claims));
    }

    #[test]
    fn a_pattern_for_everybody_is_a_mistake() {
        for bad in ["", "*", "repo:*", "repo:acme*", "repo*", "a:b*", "*:repo:acme/shop"] {
            assert!(rule(bad).mistake().is_some(), "{bad}");
        }
        for good in
            ["repo:acme/*", "repo:acme/shop:ref:refs/heads/main", "system:serviceaccount:ns:*"]
        {
            assert_eq!(rule(good).mistake(), None, "{good}");
        }
    }
}
