//! Where settings come from, and how an unknown one is refused.
//!
//! A value from the environment or a flag is text. It is read as TOML where that gives something
//! other than a text (`true`, `17`, `["a"]`), else taken as it stands.

use toml::Table;
use toml::de::{DeTable, DeValue};

use super::{ENVIRONMENT_PREFIX, Error, SETTINGS};

/// Names that are farther apart are no misspelling of each other (Jaro-Winkler, 0 to 1).
const NEAREST_SIMILARITY_MIN: f64 = 0.75;
/// Variables of ours that are no setting.
const OTHER_VARIABLES: &[&str] = &["SHOAL_NODE_CONFIG", "SHOAL_NODE_JOIN_TOKEN"];

/// Parses a file's text; `origin` is its name for messages.
pub fn parse_file(origin: &str, text: &str) -> Result<Table, Error> {
    let syntax = |error: toml::de::Error| Error::Syntax {
        origin: origin.to_owned(),
        message: error.to_string().trim().to_owned(),
    };
    let spanned = DeTable::parse(text).map_err(syntax)?;
    let line = |at: usize| format!(" line {}", text[..at].matches('\n').count() + 1);
    for (section, value) in spanned.get_ref() {
        let place = line(section.span().start);
        let Some((_, keys)) = SETTINGS.iter().find(|(name, _)| *name == section.get_ref()) else {
            let sections = SETTINGS.iter().map(|(name, _)| *name);
            return Err(unknown(origin, place, "section", section.get_ref(), sections));
        };
        let DeValue::Table(table) = value.get_ref() else { continue };
        for key in table.keys() {
            if !keys.contains(&key.get_ref().as_ref()) {
                let place = line(key.span().start);
                let keys = keys.iter().copied();
                return Err(unknown(origin, place, "key", key.get_ref(), keys));
            }
        }
    }
    text.parse().map_err(syntax)
}

/// Applies the variables that start with our prefix.
pub fn apply_environment(
    table: &mut Table,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<(), Error> {
    for (name, value) in environment {
        if !name.starts_with(ENVIRONMENT_PREFIX) || OTHER_VARIABLES.contains(&name.as_str()) {
            continue;
        }
        let found = all_settings().find(|(section, key)| variable(section, key) == name);
        let Some((section, key)) = found else {
            let known: Vec<String> =
                all_settings().map(|(section, key)| variable(section, key)).collect();
            let known = known.iter().map(String::as_str);
            return Err(unknown("the environment", String::new(), "variable", &name, known));
        };
        set(table, section, key, &value);
    }
    Ok(())
}

/// Applies flags: `section.key` and the value.
pub fn apply_overrides(table: &mut Table, overrides: &[(String, String)]) -> Result<(), Error> {
    for (name, value) in overrides {
        let parts = name.split_once('.');
        let found = all_settings().find(|setting| Some(*setting) == parts);
        let Some((section, key)) = found else {
            let known: Vec<String> =
                all_settings().map(|(section, key)| format!("{section}.{key}")).collect();
            let known = known.iter().map(String::as_str);
            return Err(unknown("the command line", String::new(), "setting", name, known));
        };
        set(table, section, key, value);
    }
    Ok(())
}

fn all_settings() -> impl Iterator<Item = (&'static str, &'static str)> {
    SETTINGS.iter().flat_map(|(section, keys)| keys.iter().map(move |key| (*section, *key)))
}

fn variable(section: &str, key: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{section}_{key}").to_ascii_uppercase()
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
        .map(|name| (strsim::jaro_winkler(name, key), name))
        .filter(|(similarity, _)| *similarity >= NEAREST_SIMILARITY_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let nearest = match nearest {
        Some((_, name)) => format!("; did you mean '{name}'?"),
        None => format!("; known are {}", known.collect::<Vec<_>>().join(", ")),
    };
    Error::Unknown { origin: origin.to_owned(), line, what, key: key.to_owned(), nearest }
}
