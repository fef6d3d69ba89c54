//! Policies that keep a tag on hosts.

use comfy_table::Cell;
use reqwest::Method;
use shoal_api::{CreateWarmUp, WarmUp};

use crate::arguments::WarmUpCommand;
use crate::client::{Client, escaped};
use crate::error::Error;
use crate::screen::{Screen, state, table};

const PATH: &str = "api/v1/warm-ups";

pub async fn warm_up(
    command: &WarmUpCommand,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    match command {
        WarmUpCommand::List => {
            let all: Vec<WarmUp> = client.get(PATH).await?;
            screen.show(&all, || listed(&all))
        }
        WarmUpCommand::Create(create) => {
            let selector = create.selector.as_ref().map(|labels| labels.0.clone());
            let request = CreateWarmUp {
                name: create.name.clone(),
                reference: create.reference.clone(),
                selector: selector.unwrap_or_default(),
                priority: create.priority,
                parallel: create.parallel,
            };
            let made: WarmUp = client.call(Method::POST, PATH, &request).await?;
            screen.show(&made, || format!("{} is kept on {}", made.reference, hosts(&made)))
        }
        WarmUpCommand::Delete { name } => {
            client.delete(format!("{PATH}/{}", escaped(name.as_str()))).await?;
            let shown = serde_json::json!({ "removed": name });
            screen.show(&shown, || format!("{name} orders nothing any more."))
        }
    }
}

fn hosts(policy: &WarmUp) -> String {
    if policy.selector.is_empty() {
        return "every agent".to_owned();
    }
    let pairs = policy.selector.iter().map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}

fn listed(all: &[WarmUp]) -> String {
    let mut rows = table(&["NAME", "IMAGE", "HOSTS", "PRIORITY", "BY", "STATE", "DEPLOYMENT"]);
    for policy in all {
        let stands = match (&policy.trouble, &policy.state) {
            (Some(trouble), _) => Cell::new(trouble),
            (None, Some(text)) => state(text),
            (None, None) => Cell::new("no host yet"),
        };
        let deployment = policy.deployment.map(|id| id.to_string()).unwrap_or_default();
        rows.add_row([
            Cell::new(&policy.name),
            Cell::new(&policy.reference),
            Cell::new(hosts(policy)),
            Cell::new(policy.priority),
            Cell::new(&policy.created_by),
            stands,
            Cell::new(deployment),
        ]);
    }
    rows.to_string()
}
