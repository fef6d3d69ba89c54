//! The program as scripts meet it: wrong arguments, and readers that stop reading.

use std::process::{Command, Stdio};

use serde_json::Value;

fn shoal(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.args(arguments);
    command
}

#[test]
fn wrong_arguments_are_json_where_json_is_asked_for() {
    for arguments in
        [&["--json", "image", "upload"][..], &["image", "show", "--json"], &["--json", "nonsense"]]
    {
        let output = shoal(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let said: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(said["error"]["code"], "usage", "{said}");
        assert!(said["error"]["message"].as_str().is_some_and(|text| text.len() > 10), "{said}");
    }
    let output = shoal(&["image", "upload"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(serde_json::from_slice::<Value>(&output.stderr).is_err(), "people get text");
    let help = shoal(&["--json", "--help"]).output().unwrap();
    assert!(help.status.success() && !help.stdout.is_empty());
}

#[test]
fn completions_end_quietly_when_nobody_reads_on() {
    // A pipe without a reader, from before the first byte.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = shoal(&["completions", "bash"]).stdout(writer).stderr(Stdio::piped()).spawn();
    let output = child.unwrap().wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{:?}: {said}", output.status);
}
