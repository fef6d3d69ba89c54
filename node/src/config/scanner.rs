//! The program that looks for vulnerabilities in images.

use serde::{Deserialize, Serialize};

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
    /// Nothing is got: the databases in `DATA_DIR/scanner/cache` are whoever's who puts them there.
    pub offline: bool,
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
