//! What the command line remembers between calls: clusters, their nodes, and tokens.
//!
//! Invariant: the file is readable by its owner only, and replaced as a whole. Passwords are never
//! stored. Non-goal: locking; of two logins at the same moment the last one stays.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The context's name where none was asked for.
const CONTEXT_DEFAULT: &str = "default";
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;
/// Far above what any number of contexts needs.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How a node's certificate is checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// By what the operating system trusts.
    #[default]
    System,
    /// By this authority alone (PEM).
    Authority(String),
    /// Not at all; loopback only.
    SkipVerify,
}

/// One cluster and who one is there.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// The node that was logged in to.
    pub url: String,
    /// All nodes as the cluster last named them: tried when `url` does not answer.
    #[serde(default)]
    pub nodes: Vec<String>,
    pub username: String,
    pub token: String,
    /// RFC 3339.
    pub token_expires_at: String,
    #[serde(default)]
    pub trust: Trust,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("url", &self.url).finish_non_exhaustive()
    }
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

/// The file with all contexts, and which one this call uses.
#[derive(Debug)]
pub struct Config {
    path: PathBuf,
    asked: Option<String>,
    content: Content,
}

impl Config {
    /// Reads `path`, or the place that XDG names; a missing file is an empty one.
    ///
    /// # Errors
    /// Where others may read it, or it is no configuration.
    pub fn load(path: Option<PathBuf>, asked: Option<String>) -> Result<Self, Error> {
        let path = path.map_or_else(default_path, Ok)?;
        let content = match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Content::default(),
            Err(error) => return Err(Error::file("looking at", &path)(error)),
            Ok(metadata) => {
                let refuse = |reason: String| Error::Config { path: path.clone(), reason };
                if metadata.permissions().mode() & 0o077 != 0 {
                    return Err(refuse("others can read it; chmod 600 it".into()));
                }
                if metadata.len() > FILE_BYTES_MAX {
                    return Err(refuse("it is too big to be a configuration".into()));
                }
                let text = fs::read_to_string(&path).map_err(Error::file("reading", &path))?;
                toml::from_str(&text).map_err(|error| refuse(error.to_string()))?
            }
        };
        Ok(Self { path, asked, content })
    }

    /// # Errors
    /// Where nobody logged in, or the context asked for is unknown.
    pub fn context(&self) -> Result<&Context, Error> {
        let name = self.name();
        match self.content.contexts.get(name) {
            Some(context) => Ok(context),
            None if self.asked.is_some() => Err(Error::UnknownContext(name.to_owned())),
            None => Err(Error::NoContext),
        }
    }

    /// The context of that name.
    ///
    /// # Errors
    /// Where there is none.
    pub fn named(&self, name: &str) -> Result<&Context, Error> {
        let found = self.content.contexts.get(name);
        found.ok_or_else(|| Error::UnknownContext(name.to_owned()))
    }

    /// The context that this call reads or writes.
    pub fn name(&self) -> &str {
        let asked = self.asked.as_deref().or(self.content.current.as_deref());
        asked.unwrap_or(CONTEXT_DEFAULT)
    }

    /// Name, context, and whether it is the current one.
    pub fn contexts(&self) -> impl Iterator<Item = (&str, &Context, bool)> {
        let current = self.name();
        let all = self.content.contexts.iter();
        all.map(move |(name, context)| (name.as_str(), context, name == current))
    }

    /// Stores the context under this call's name and makes it the current one.
    pub fn store(&mut self, context: Context) -> Result<(), Error> {
        let name = self.name().to_owned();
        self.content.contexts.insert(name.clone(), context);
        self.content.current = Some(name);
        self.save()
    }

    /// Remembers the cluster's nodes; writes only where they changed.
    pub fn store_nodes(&mut self, nodes: Vec<String>) -> Result<(), Error> {
        let name = self.name().to_owned();
        match self.content.contexts.get_mut(&name) {
            Some(context) if context.nodes != nodes => context.nodes = nodes,
            _ => return Ok(()),
        }
        self.save()
    }

    /// Forgets this call's context; gives whether there was one.
    pub fn remove(&mut self) -> Result<bool, Error> {
        let name = self.name().to_owned();
        if self.content.contexts.remove(&name).is_none() {
            return Ok(false);
        }
        if self.content.current.as_deref() == Some(&name) {
            self.content.current = self.content.contexts.keys().next().cloned();
        }
        self.save()?;
        Ok(true)
    }

    pub fn make_current(&mut self, name: &str) -> Result<(), Error> {
        if !self.content.contexts.contains_key(name) {
            return Err(Error::UnknownContext(name.to_owned()));
        }
        self.content.current = Some(name.to_owned());
        self.save()
    }

    /// Where unfinished uploads are remembered.
    pub fn uploads_folder(&self) -> PathBuf {
        self.path.with_file_name("uploads")
    }

    fn save(&self) -> Result<(), Error> {
        let text = toml::to_string(&self.content).map_err(|error| Error::Config {
            path: self.path.clone(),
            reason: error.to_string(),
        })?;
        replace(&self.path, text.as_bytes())
    }
}

/// Writes a file that only its owner can read: whole or not at all.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    make_folder(folder)?;
    let write = || {
        let mut file = tempfile::Builder::new()
            .prefix(".shoal-")
            .permissions(fs::Permissions::from_mode(FILE_MODE))
            .tempfile_in(folder)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(Error::file("writing", path))
}

/// Makes a folder that only its owner can look into, with those above it, where it is not there.
pub fn make_folder(folder: &Path) -> Result<(), Error> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(FOLDER_MODE);
    builder.create(folder).map_err(Error::file("making", folder))
}

fn default_path() -> Result<PathBuf, Error> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    let missing = "neither XDG_CONFIG_HOME nor HOME is set; name a file with --config".to_owned();
    Ok(folder.ok_or(Error::Usage(missing))?.join("shoal/config.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(url: &str) -> Context {
        Context {
            url: url.into(),
            nodes: vec![url.into()],
            username: "admin".into(),
            token: "secret".into(),
            token_expires_at: "2030-01-01T00:00:00Z".into(),
            trust: Trust::Authority("-----BEGIN CERTIFICATE-----\nQQ==\n".into()),
        }
    }

    #[test]
    fn survives_a_round_trip_and_is_readable_by_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/config.toml");
        let load = |asked: Option<&str>| Config::load(Some(path.clone()), asked.map(Into::into));
        let mut config = load(None).unwrap();
        assert!(matches!(config.context(), Err(Error::NoContext)));
        config.store(context("https://a")).unwrap();
        load(Some("b")).unwrap().store(context("https://b")).unwrap();

        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, FILE_MODE);
        let config = load(None).unwrap();
        assert_eq!(config.context().unwrap(), &context("https://b"), "the last login is current");
        assert_eq!(load(Some("default")).unwrap().context().unwrap(), &context("https://a"));
        assert!(matches!(load(Some("c")).unwrap().context(), Err(Error::UnknownContext(_))));

        let mut config = load(Some("b")).unwrap();
        assert!(config.remove().unwrap());
        assert_eq!(load(None).unwrap().context().unwrap(), &context("https://a"));
    }

    #[test]
    fn refuses_a_file_that_others_can_read_and_keys_it_does_not_know() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, "curent = 'x'\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = Config::load(Some(path.clone()), None).unwrap_err().to_string();
        assert!(refused.contains("chmod 600"), "{refused}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let refused = Config::load(Some(path), None).unwrap_err().to_string();
        assert!(refused.contains("curent"), "{refused}");
    }

    #[test]
    fn the_token_does_not_show_in_debug_output() {
        assert!(!format!("{:?}", context("https://a")).contains("secret"));
    }
}
