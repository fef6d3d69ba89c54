//! Restores a backup on the machine that will be the node: by `shoal-node init --restore`.
//!
//! The databases are the node's affair, and this program knows none; so it hands over to the other
//! one, which lies beside it or is found as any program is.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::arguments::Restore;
use crate::error::Error;

const PROGRAM: &str = "shoal-node";

/// Becomes the other program; comes back only where that cannot be started.
pub fn restore(restore: &Restore) -> Error {
    let program = beside().unwrap_or_else(|| PROGRAM.into());
    let error = Command::new(&program).args(arguments(restore)).exec();
    Error::Failed {
        what: "the restore".into(),
        reason: format!(
            "{} cannot be started ({error}); run this on the machine of the new node, where \
             shoal-node is installed",
            program.display()
        ),
    }
}

fn beside() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name(PROGRAM);
    path.is_file().then_some(path)
}

fn arguments(restore: &Restore) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = ["init", "--restore"].map(Into::into).into();
    arguments.push(restore.file.clone().into());
    if let Some(objects) = &restore.objects {
        arguments.extend(["--objects".into(), objects.clone().into()]);
    }
    if let Some(config) = &restore.node_config {
        arguments.extend(["--config".into(), config.clone().into()]);
    }
    for setting in &restore.settings {
        arguments.extend(["--set".into(), setting.into()]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_everything_over() {
        let asked = Restore {
            file: "f.backup".into(),
            objects: Some("objects".into()),
            node_config: Some("node.toml".into()),
            settings: vec!["node.name=a".into()],
        };
        let expected =
            "init --restore f.backup --objects objects --config node.toml --set node.name=a";
        let given: Vec<String> =
            arguments(&asked).iter().map(|text| text.to_string_lossy().into_owned()).collect();
        assert_eq!(given.join(" "), expected);
    }
}
