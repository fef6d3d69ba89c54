//! The program that looks for vulnerabilities in images.

use serde::{Deserialize, Serialize};
use shoal_metadata::SeverityCounts;

const PARALLEL_MAX: usize = 16;
const TIMEOUT_SECONDS_MAX: u64 = 24 * 3600;
const MEMORY_MIB_MIN: u64 = 128;

/// Without a command nothing is scanned. The same on every node: whichever is free takes what was
/// ordered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scanner {
    /// Trivy, by its absolute path, and arguments that come before all others. No shell reads it.
    pub command: Vec<String>,
    /// Whether a version is scanned once it is pushed with a tag, and every disk.
    pub on_push: bool,
    /// Tagged and latest versions are scanned again after so long; 0 is never.
    pub every_hours: u32,
    /// How long one scan may take.
    pub timeout_seconds: u64,
    /// Scans of this node at once.
    pub parallel: usize,
    /// What the program is told to keep its memory below.
    pub memory_mib: u64,
    /// Disks whose content is longer are not scanned: it lies in the data folder while one is.
    pub max_disk_gib: u64,
    /// Where the database of vulnerabilities is got from, in place of the program's own choice.
    pub db_repository: Option<String>,
    /// Whether Java archives are looked at, which takes another database of about a gigabyte.
    pub java: bool,
    /// Where that is got from.
    pub java_db_repository: Option<String>,
    /// Whether vulnerabilities are left out for which there is no version yet that is free of them.
    pub ignore_unfixed: bool,
    /// Versions in which the last scan has found anything as severe as this or worse are not
    /// deployed; any are where missing.
    pub block_severity: Option<BlockSeverity>,
    /// Nothing is got: the databases in `DATA_DIR/scanner/cache` are whoever's who puts them there.
    pub offline: bool,
}

/// From what on a version is not deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockSeverity {
    Critical,
    High,
    Medium,
    Low,
}

impl BlockSeverity {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
        }
    }

    /// How many of those found are as severe or worse.
    pub fn count(self, found: &SeverityCounts) -> u64 {
        let SeverityCounts { critical, high, medium, low, .. } = *found;
        let all = [critical, high, medium, low];
        all.into_iter().take(self as usize + 1).map(u64::from).sum()
    }
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            on_push: true,
            every_hours: 7 * 24,
            timeout_seconds: 900,
            parallel: 1,
            memory_mib: 1024,
            max_disk_gib: 64,
            db_repository: None,
            java: false,
            java_db_repository: None,
            ignore_unfixed: false,
            block_severity: None,
            offline: false,
        }
    }
}

impl Scanner {
    /// What is wrong with it: the key, and why.
    pub(super) fn mistake(&self) -> Option<(&'static str, &'static str)> {
        if self.command.first().is_some_and(|program| !program.starts_with('/')) {
            let text = "a list: the absolute path of a program, then its arguments";
            return Some(("command", text));
        }
        if !(1..=PARALLEL_MAX).contains(&self.parallel) {
            return Some(("parallel", "1 to 16; without a command nothing is scanned"));
        }
        if !(1..=TIMEOUT_SECONDS_MAX).contains(&self.timeout_seconds) {
            return Some(("timeout_seconds", "1 to 86400"));
        }
        if self.memory_mib < MEMORY_MIB_MIN {
            return Some(("memory_mib", "at least 128"));
        }
        let repositories = [
            ("db_repository", &self.db_repository),
            ("java_db_repository", &self.java_db_repository),
        ];
        let odd = |name: &String| name.is_empty() || name.starts_with('-');
        for (key, repository) in repositories {
            if repository.as_ref().is_some_and(odd) {
                return Some((key, "HOST/NAME:TAG"));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_worse_than_blocked_is_blocked_too() {
        let found = SeverityCounts { critical: 1, high: 10, medium: 100, low: 1000, unknown: 5 };
        let counts = |severity: BlockSeverity| severity.count(&found);
        assert_eq!(counts(BlockSeverity::Critical), 1);
        assert_eq!(counts(BlockSeverity::Medium), 111);
        assert_eq!(counts(BlockSeverity::Low), 1111);
    }

    #[test]
    fn says_which_setting_is_wrong() {
        let wrong = |change: fn(&mut Scanner)| {
            let mut scanner = Scanner::default();
            change(&mut scanner);
            scanner.mistake().map(|(key, _)| key)
        };
        assert_eq!(wrong(|_| ()), None);
        assert_eq!(wrong(|it| it.command = vec!["/usr/bin/trivy".into()]), None);
        assert_eq!(wrong(|it| it.command = vec!["trivy".into()]), Some("command"));
        assert_eq!(wrong(|it| it.parallel = 0), Some("parallel"));
        assert_eq!(wrong(|it| it.timeout_seconds = 0), Some("timeout_seconds"));
        assert_eq!(wrong(|it| it.memory_mib = 1), Some("memory_mib"));
        assert_eq!(wrong(|it| it.db_repository = Some("--x".into())), Some("db_repository"));
    }
}
