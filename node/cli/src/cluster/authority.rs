//! The authority that signs certificates: how it stands, and another one in its place.

use comfy_table::{Cell, Table};
use reqwest::Method;
use shoal_api::{AuthorityInfo, AuthorityRotation, AuthorityStatus, RotateAuthority};

use crate::arguments::AuthorityCommand;
use crate::client::Client;
use crate::error::Error;
use crate::screen::{Screen, confirm, state, table};

pub async fn authority(
    command: &AuthorityCommand,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    let status: AuthorityStatus = match command {
        AuthorityCommand::Status => client.get("api/v1/cluster/authority").await?,
        AuthorityCommand::Rotate { now, yes } => {
            let question = "Believe the old authority no longer as soon as all nodes have a new one? \
                            Join tokens made before are good for nothing then, and hosts that are \
                            away have to reach a node before other hosts give them anything.";
            if *now && !yes && !confirm(question)? {
                return Err(Error::Usage(
                    "nothing was changed; --yes does it without asking".into(),
                ));
            }
            let request = RotateAuthority { now: *now };
            client.call(Method::POST, "api/v1/cluster/authority/rotate", &request).await?
        }
    };
    screen.show(&status, || format!("{}\n{}", rows(&status.authorities), said(&status)))
}

fn rows(authorities: &[AuthorityInfo]) -> Table {
    let mut rows = table(&["AUTHORITY", "STATE", "SINCE", "ENDS", "SHA-256"]);
    for one in authorities {
        rows.add_row([
            Cell::new(one.number),
            state(&one.state),
            Cell::new(&one.since),
            Cell::new(&one.ends_at),
            Cell::new(&one.fingerprint),
        ]);
    }
    rows
}

fn said(status: &AuthorityStatus) -> String {
    let Some(AuthorityRotation { number, next, not_before, waits_for, hurried }) = &status.rotation
    else {
        return "No authority takes the place of another.".to_owned();
    };
    let step = match next.as_str() {
        "sign" => format!("Authority {number} is to sign next"),
        _ => format!("Authority {number} signs; the one before it is to be retired next"),
    };
    let when = if *hurried { String::new() } else { format!(", not before {not_before}") };
    if waits_for.is_empty() {
        return format!("{step}{when}.");
    }
    let nodes: Vec<String> = waits_for.iter().map(ToString::to_string).collect();
    format!("{step}{when}, when these nodes are ready, or removed: {}.", nodes.join(", "))
}

#[cfg(test)]
mod tests {
    use shoal_content::NodeId;

    use super::*;

    #[test]
    fn what_a_rotation_waits_for_is_said() {
        let rotation = |next: &str, waits_for: &[u64], hurried| AuthorityRotation {
            number: 1,
            next: next.to_owned(),
            not_before: "2030-01-01T00:00:00Z".to_owned(),
            waits_for: waits_for.iter().copied().map(NodeId::new).collect(),
            hurried,
        };
        let told = |rotation| said(&AuthorityStatus { authorities: Vec::new(), rotation });
        assert_eq!(told(None), "No authority takes the place of another.");
        let time = told(Some(rotation("sign", &[], false)));
        assert_eq!(time, "Authority 1 is to sign next, not before 2030-01-01T00:00:00Z.");
        let nodes = told(Some(rotation("retire", &[2, 3], true)));
        let both = [2, 3].map(|number| NodeId::new(number).to_string()).join(", ");
        assert!(nodes.ends_with(&format!("when these nodes are ready, or removed: {both}.")));
        assert!(!nodes.contains("not before"), "{nodes}");
    }
}
