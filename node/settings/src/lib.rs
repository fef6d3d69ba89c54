//! How both daemons read their settings: one TOML file, overridden by environment variables,
//! overridden by flags.
//!
//! Invariant: whatever is unknown is refused with its place and the nearest known name. A value
//! from the environment or a flag is text. It is read as TOML where that gives something other
//! than a text (`true`, `17`, `["a"]`), else taken as it stands.
//! Here, too, are the forms that values of both have: rates, and times of the week.
//! Non-goal: what the settings are; each daemon has its own [`Schema`] and types.

mod hours;
mod rate;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;
use toml::Table;
use toml::de::{DeTable, DeValue};

pub use hours::{Days, HoursError, MINUTES_OF_WEEK, TimeOfDay, WeekMinute, covers, until};
pub use rate::{Rate, RateError};

/// A misspelling has no more than one wrong letter in so many.
const LETTERS_PER_MISTAKE: usize = 3;

/// Why settings were refused.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{path} could not be read")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{origin}{line}: unknown {what} '{key}'{nearest}")]
    Unknown {
        origin: String,
        /// ` line N`, or nothing where there are no lines.
        line: String,
        what: &'static str,
        key: String,
        /// `; did you mean 'X'?`, or the list of what is known.
        nearest: String,
    },
    #[error("{origin}: {message}")]
    Syntax { origin: String, message: String },
    #[error("[{section}] {key}: {message}")]
    Value { section: &'static str, key: &'static str, message: String },
}

impl Error {
    fn syntax(origin: &str, error: &toml::de::Error) -> Self {
        Self::Syntax { origin: origin.to_owned(), message: error.to_string().trim().to_owned() }
    }
}

/// What one daemon knows.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    /// Read where no file is named and it exists.
    pub default_path: &'static str,
    /// Environment variables are this, the section, an underscore and the key, in upper case.
    pub prefix: &'static str,
    /// Every section with its keys, in the order of the documentation.
    pub sections: &'static [(&'static str, &'static [&'static str])],
    /// Sections that hold tables under names of the operator's choice, `[section."name"]`, with the
    /// keys of each. They stand in the file only.
    pub named_sections: &'static [(&'static str, &'static [&'static str])],
    /// Variables with the prefix that are no setting.
    pub other_variables: &'static [&'static str],
}

impl Schema {
    /// Reads `file` (or the default one, if it exists), the environment, then `overrides`, which
    /// are pairs of `section.key` and value.
    ///
    /// # Errors
    /// What is unknown or malformed, with its place.
    pub fn load<T: DeserializeOwned>(
        &self,
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Result<T, Error> {
        let path = file.unwrap_or(Path::new(self.default_path));
        let mut table = match std::fs::read_to_string(path) {
            Ok(text) => self.parse_file(&path.display().to_string(), &text)?,
            Err(error) if file.is_none() && error.kind() == ErrorKind::NotFound => Table::new(),
            Err(source) => return Err(Error::Read { path: path.into(), source }),
        };
        self.apply_environment(&mut table, environment)?;
        self.apply_overrides(&mut table, overrides)?;
        table.try_into().map_err(|error| Error::syntax("the settings", &error))
    }

    /// Reads a file's `text` alone; `origin` is its name for messages.
    ///
    /// # Errors
    /// What is unknown or malformed, with its place.
    pub fn parse<T: DeserializeOwned>(&self, origin: &str, text: &str) -> Result<T, Error> {
        let table = self.parse_file(origin, text)?;
        table.try_into().map_err(|error| Error::syntax(origin, &error))
    }

    /// `origin` is the text's name for messages.
    fn parse_file(&self, origin: &str, text: &str) -> Result<Table, Error> {
        let syntax = |error| Error::syntax(origin, &error);
        let spanned = DeTable::parse(text).map_err(syntax)?;
        let line = |at: usize| format!(" line {}", text[..at].matches('\n').count() + 1);
        for (section, value) in spanned.get_ref() {
            let place = line(section.span().start);
            let check = |table: &DeTable<'_>, keys: &'static [&'static str]| {
                let odd = table.keys().find(|key| !keys.contains(&key.get_ref().as_ref()));
                odd.map_or(Ok(()), |key| {
                    let (place, keys) = (line(key.span().start), keys.iter().copied());
                    Err(unknown(origin, place, "key", key.get_ref(), keys))
                })
            };
            let is_it =
                |(name, _): &&(&'static str, &'static [&'static str])| *name == section.get_ref();
            if let Some((_, keys)) = self.named_sections.iter().find(is_it) {
                let DeValue::Table(named) = value.get_ref() else { continue };
                for value in named.values() {
                    if let DeValue::Table(table) = value.get_ref() {
                        check(table, keys)?;
                    }
                }
                continue;
            }
            let Some((_, keys)) = self.sections.iter().find(is_it) else {
                let all = self.sections.iter().chain(self.named_sections);
                let sections = all.map(|(name, _)| *name);
                return Err(unknown(origin, place, "section", section.get_ref(), sections));
            };
            if let DeValue::Table(table) = value.get_ref() {
                check(table, keys)?;
            }
        }
        text.parse().map_err(syntax)
    }

    fn apply_environment(
        &self,
        table: &mut Table,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), Error> {
        for (name, value) in environment {
            if !name.starts_with(self.prefix) || self.other_variables.contains(&name.as_str()) {
                continue;
            }
            let found = self.all().find(|(section, key)| self.variable(section, key) == name);
            let Some((section, key)) = found else {
                let known: Vec<String> =
                    self.all().map(|(section, key)| self.variable(section, key)).collect();
                let known = known.iter().map(String::as_str);
                return Err(unknown("the environment", String::new(), "variable", &name, known));
            };
            set(table, section, key, &value);
        }
        Ok(())
    }

    fn apply_overrides(
        &self,
        table: &mut Table,
        overrides: &[(String, String)],
    ) -> Result<(), Error> {
        for (name, value) in overrides {
            let parts = name.split_once('.');
            let found = self.all().find(|setting| Some(*setting) == parts);
            let Some((section, key)) = found else {
                let known: Vec<String> =
                    self.all().map(|(section, key)| format!("{section}.{key}")).collect();
                let known = known.iter().map(String::as_str);
                return Err(unknown("the command line", String::new(), "setting", name, known));
            };
            set(table, section, key, value);
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.sections
            .iter()
            .flat_map(|(section, keys)| keys.iter().map(move |key| (*section, *key)))
    }

    fn variable(&self, section: &str, key: &str) -> String {
        format!("{}{section}_{key}", self.prefix).to_ascii_uppercase()
    }
}

fn set(table: &mut Table, section: &str, key: &str, text: &str) {
    let parsed = format!("value = {text}").parse::<Table>().ok();
    let value = parsed
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()));
    let section = table.entry(section).or_insert_with(|| Table::new().into());
    if let Some(section) = section.as_table_mut() {
        section.insert(key.to_owned(), value);
    }
}

fn unknown<'a>(
    origin: &str,
    line: String,
    what: &'static str,
    key: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Error {
    let nearest = known
        .clone()
        .map(|name| (strsim::osa_distance(name, key), name))
        .filter(|(mistakes, name)| mistakes * LETTERS_PER_MISTAKE <= name.len().max(key.len()))
        .min_by_key(|(mistakes, _)| *mistakes);
    let nearest = match nearest {
        Some((_, name)) => format!("; did you mean '{name}'?"),
        None => format!("; known are {}", known.collect::<Vec<_>>().join(", ")),
    };
    Error::Unknown { origin: origin.to_owned(), line, what, key: key.to_owned(), nearest }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const SCHEMA: Schema = Schema {
        default_path: "/nonexistent/settings.toml",
        prefix: "DAEMON_",
        sections: &[("http", &["listen", "names"]), ("log", &["filter"])],
        named_sections: &[("hosts", &["url"])],
        other_variables: &["DAEMON_CONFIG"],
    };
    type Loaded = BTreeMap<String, BTreeMap<String, toml::Value>>;

    fn load(
        text: &str,
        variables: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<Loaded, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.toml");
        std::fs::write(&path, text).unwrap();
        let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
        };
        SCHEMA.load(Some(&path), own(variables), &own(flags))
    }

    #[test]
    fn flags_win_over_variables_and_variables_over_the_file() {
        let text = "[http]\nlisten = \"a\"\nnames = []\n[log]\nfilter = \"x\"\n";
        let variables = [("DAEMON_HTTP_LISTEN", "b"), ("DAEMON_LOG_FILTER", "y"), ("PATH", "z")];
        let loaded = load(text, &variables, &[("http.listen", "c")]).unwrap();
        assert_eq!(loaded["http"]["listen"].as_str(), Some("c"));
        assert_eq!(loaded["log"]["filter"].as_str(), Some("y"));
        let loaded = load("", &[("DAEMON_HTTP_NAMES", "[\"n\"]")], &[]).unwrap();
        assert_eq!(loaded["http"]["names"].as_array().map(Vec::len), Some(1));
        assert!(load("", &[("DAEMON_CONFIG", "f")], &[]).unwrap().is_empty());
    }

    #[test]
    fn what_is_unknown_is_refused_with_its_place_and_the_nearest_name() {
        let said = |loaded: Result<Loaded, Error>| loaded.unwrap_err().to_string();
        let message = said(load("[http]\n\nlistn = \"a\"\n", &[], &[]));
        assert!(message.contains("line 3") && message.contains("'listen'"), "{message}");
        assert!(load("[hosts.\"a.example:1\"]\nurl = \"u\"\n", &[], &[]).is_ok());
        let message = said(load("[hosts.a]\nulr = \"u\"\n", &[], &[]));
        assert!(message.contains("line 2") && message.contains("'url'"), "{message}");
        let message = said(load("[htpp]\n", &[], &[]));
        assert!(message.contains("line 1") && message.contains("'http'"), "{message}");
        let message = said(load("", &[("DAEMON_LOG_FILTR", "x")], &[]));
        assert!(message.contains("DAEMON_LOG_FILTER"), "{message}");
        // A few letters in common are no misspelling.
        let message = said(load("", &[], &[("lop.fine", "x")]));
        assert!(!message.contains("did you mean"), "{message}");
        let message = said(load("", &[], &[("quite.else", "x")]));
        assert!(message.contains("http.listen, http.names, log.filter"), "{message}");
    }
}
