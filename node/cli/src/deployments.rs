//! Orders deployments and follows them until they end.
//!
//! Invariant: following is only watching; stopping it stops nothing on the hosts.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::Cell;
use indicatif::{MultiProgress, ProgressBar};
use reqwest::Method;
use shoal_api::{CreateDeployment, Deployment, DeploymentHost, RetryDeployment, TransferProgress};
use shoal_content::{DeploymentId, ImageReference};

use crate::arguments::{Deploy, DeploymentsCommand, OneDeployment};
use crate::client::{Body, Client, Request, escaped, next_piece};
use crate::error::Error;
use crate::events::Events;
use crate::screen::{Screen, byte_style, bytes, percent, rate, seconds, state, table};

/// Hosts with a bar of their own: those that are furthest behind.
const HOST_BARS_MAX: usize = 5;
/// How often the stream may break in a row without an event between.
const RECONNECTS_MAX: u32 = 5;
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

pub async fn deploy(arguments: &Deploy, client: &Client, screen: Screen) -> Result<(), Error> {
    let request = CreateDeployment {
        reference: arguments.reference.clone(),
        hosts: arguments.host.clone(),
        selector: arguments.selector.as_ref().map(|labels| labels.0.clone()).unwrap_or_default(),
        priority: arguments.priority,
        parallel: arguments.parallel,
        deadline: arguments.deadline.clone().map(|until| until.0).unwrap_or_default(),
    };
    let ordered: Deployment = client.call(Method::POST, "api/v1/deployments", &request).await?;
    if arguments.detach {
        return screen.show(&ordered, || {
            let hosts = ordered.hosts.len();
            format!("{} to {hosts} hosts; follow it: shoal watch {}", ordered.reference, ordered.id)
        });
    }
    follow(ordered, client, screen).await
}

pub async fn deployments(
    command: Option<&DeploymentsCommand>,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    let Some(command) = command else { return list(client, screen).await };
    let change = async |one: &OneDeployment, verb: &str, body: &serde_json::Value| {
        let id = find(&one.deployment, client).await?.id;
        client.call(Method::POST, format!("{}/{verb}", path(id)), body).await
    };
    let nothing = serde_json::json!({});
    let changed: Deployment = match command {
        DeploymentsCommand::List => return list(client, screen).await,
        DeploymentsCommand::Show(one) => find(&one.deployment, client).await?,
        DeploymentsCommand::Pause(one) => change(one, "pause", &nothing).await?,
        DeploymentsCommand::Resume(one) => change(one, "resume", &nothing).await?,
        DeploymentsCommand::Cancel(one) => {
            let found = find(&one.deployment, client).await?;
            let call_off = format!("{}/cancel", path(found.id));
            client.send(&Request::new(Method::POST, call_off, Body::Empty)).await?;
            client.get(path(found.id)).await?
        }
        DeploymentsCommand::Retry { one, deadline, watch } => {
            let deadline = deadline.clone().map(|until| until.0).unwrap_or_default();
            let request = serde_json::to_value(RetryDeployment { deadline })
                .map_err(|error| Error::Answer(error.to_string()))?;
            let retried = change(one, "retry", &request).await?;
            if *watch {
                return follow(retried, client, screen).await;
            }
            retried
        }
    };
    screen.show(&changed, || described(&changed))
}

/// How a deployment stands, and each of its hosts.
fn described(deployment: &Deployment) -> String {
    let mut head = format!(
        "{} {} ({}, priority {}",
        deployment.id, deployment.reference, deployment.state, deployment.priority
    );
    if let Some(parallel) = deployment.parallel {
        head += &format!(", {parallel} hosts at a time");
    }
    if let Some(deadline) = &deployment.deadline {
        head += &format!(", until {deadline}");
    }
    if let Some(policy) = &deployment.warm_up {
        head += &format!(", by the warm-up policy {policy}");
    }
    let mut rows = table(&["HOST", "STATE", "DONE", "OF", "RATE", "ERROR"]);
    for host in &deployment.hosts {
        let progress = &host.progress;
        rows.add_row([
            Cell::new(&host.name),
            state(&host.state),
            Cell::new(bytes(progress.bytes_done)),
            Cell::new(bytes(progress.bytes_total)),
            Cell::new(rate(progress.rate_bytes_per_second)),
            Cell::new(progress.last_error.as_deref().unwrap_or_default()),
        ]);
    }
    format!("{head})\n{rows}")
}

pub async fn watch(text: &str, client: &Client, screen: Screen) -> Result<(), Error> {
    let deployment = find(text, client).await?;
    follow(deployment, client, screen).await
}

/// By id, or the newest of an image.
pub async fn find(text: &str, client: &Client) -> Result<Deployment, Error> {
    if let Ok(id) = text.parse::<DeploymentId>() {
        return client.get(path(id)).await;
    }
    let reference: ImageReference = text.parse().map_err(|_| {
        Error::Usage(format!("'{text}' is neither a deployment's id nor an image's name"))
    })?;
    let all: Vec<Deployment> = client.get("api/v1/deployments").await?;
    let newest = all
        .into_iter()
        .filter(|deployment| deployment.reference == reference)
        .max_by(|a, b| a.created_at.cmp(&b.created_at));
    newest.ok_or_else(|| Error::NotFound(format!("no deployment of {reference}")))
}

fn path(id: DeploymentId) -> String {
    format!("api/v1/deployments/{}", escaped(&id.to_string()))
}

pub async fn list(client: &Client, screen: Screen) -> Result<(), Error> {
    let mut all: Vec<Deployment> = client.get("api/v1/deployments").await?;
    all.sort_by(|a, b| b.created_at.cmp(&a.created_at));
    screen.show(&all, || {
        let mut rows = table(&["DEPLOYMENT", "IMAGE", "STATE", "HOSTS", "BY", "CREATED"]);
        for deployment in &all {
            let done = deployment.hosts.iter().filter(|host| host.state == "done").count();
            rows.add_row([
                Cell::new(deployment.id),
                Cell::new(&deployment.reference),
                state(&deployment.state),
                Cell::new(format!("{done}/{}", deployment.hosts.len())),
                Cell::new(&deployment.created_by),
                Cell::new(&deployment.created_at),
            ]);
        }
        rows.to_string()
    })
}

async fn follow(deployment: Deployment, client: &Client, screen: Screen) -> Result<(), Error> {
    let id = deployment.id;
    let mut view = View::new(screen, &deployment);
    let ended = tokio::select! {
        result = until_end(deployment, client, &mut view) => result?,
        _ = tokio::signal::ctrl_c() => {
            let text = format!("the deployment goes on; follow it again: shoal watch {id}");
            return Err(Error::Interrupted(text));
        }
    };
    view.clear();
    screen.show(&ended, || summary(&ended))?;
    let failed = ended.hosts.iter().filter(|host| host.state == "failed").count();
    match ended.state.as_str() {
        "done" => Ok(()),
        "cancelled" => {
            Err(Error::Failed { what: "the deployment".into(), reason: "it was cancelled".into() })
        }
        _ => Err(Error::HostsFailed { failed, hosts: ended.hosts.len() }),
    }
}

fn is_over(deployment: &Deployment) -> bool {
    matches!(deployment.state.as_str(), "done" | "failed" | "cancelled")
}

async fn until_end(
    mut deployment: Deployment,
    client: &Client,
    view: &mut View,
) -> Result<Deployment, Error> {
    let mut breaks = 0;
    loop {
        view.draw(&deployment);
        if is_over(&deployment) {
            return Ok(deployment);
        }
        match stream(&mut deployment, client, view).await {
            Ok(true) => breaks = 0,
            Ok(false) => breaks += 1,
            Err(error) if breaks >= RECONNECTS_MAX => return Err(error),
            Err(Error::Unreachable(_)) => breaks += 1,
            Err(error) => return Err(error),
        }
        if is_over(&deployment) {
            return Ok(deployment);
        }
        if breaks > RECONNECTS_MAX {
            return Err(Error::Answer("the stream of events ends at once".into()));
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

/// One connection, until it breaks or the deployment is over; gives whether it brought news.
async fn stream(
    deployment: &mut Deployment,
    client: &Client,
    view: &mut View,
) -> Result<bool, Error> {
    let mut response =
        client.send(&Request::get(format!("{}/events", path(deployment.id)))).await?;
    let mut events = Events::default();
    let mut news = false;
    loop {
        let piece = match next_piece(&mut response).await {
            Ok(Some(piece)) => piece,
            Ok(None) => return Ok(news),
            Err(_) if news => return Ok(true),
            Err(error) => return Err(error),
        };
        let whole =
            events.feed(&piece).map_err(|_| Error::Answer("an event is too long".into()))?;
        for event in whole {
            *deployment =
                serde_json::from_slice(&event).map_err(|error| Error::Answer(error.to_string()))?;
            news = true;
            view.draw(deployment);
            if is_over(deployment) {
                return Ok(true);
            }
        }
    }
}

fn summary(deployment: &Deployment) -> String {
    let mut lines = Vec::new();
    for host in deployment.hosts.iter().filter(|host| host.state == "failed") {
        let error = host.progress.last_error.as_deref().unwrap_or("it does not say why");
        lines.push(format!("{} failed: {error}", host.name));
    }
    let done = deployment.hosts.iter().filter(|host| host.state == "done");
    let slowest = done.clone().map(|host| host.progress.elapsed_ms).max().unwrap_or(0);
    let total: u64 = done.clone().map(|host| host.progress.bytes_total).sum();
    let bound = bound_percent(deployment).map(|share| format!(" ({share} % of the bound)"));
    lines.push(format!(
        "{} on {} of {} hosts, {} in {}{}; where from: shoal explain {}",
        deployment.reference,
        done.count(),
        deployment.hosts.len(),
        bytes(total),
        seconds(Duration::from_millis(slowest)),
        bound.unwrap_or_default(),
        deployment.id
    ));
    lines.join("\n")
}

/// Bars on a terminal; elsewhere, a line for each host that ends.
struct View {
    screen: Screen,
    all: MultiProgress,
    whole: ProgressBar,
    hosts: Vec<ProgressBar>,
    states: BTreeMap<String, String>,
}

impl View {
    fn new(screen: Screen, deployment: &Deployment) -> Self {
        let all = MultiProgress::with_draw_target(screen.draw_target());
        let bar = || {
            let bar = all.add(ProgressBar::new(0));
            bar.set_style(byte_style());
            bar
        };
        let whole = bar();
        whole.set_prefix(format!("{} hosts", deployment.hosts.len()));
        let hosts = (0..deployment.hosts.len().min(HOST_BARS_MAX)).map(|_| bar()).collect();
        Self { screen, all, whole, hosts, states: BTreeMap::new() }
    }

    fn draw(&mut self, deployment: &Deployment) {
        if !self.screen.bars() {
            self.print_changes(deployment);
            return;
        }
        let sum = |of: fn(&DeploymentHost) -> u64| deployment.hosts.iter().map(of).sum::<u64>();
        // A host that has not begun does not know its total: it is the others', and never zero,
        // which a bar shows as complete.
        let each = deployment.hosts.iter().map(|host| host.progress.bytes_total).max();
        let each = each.unwrap_or_default().max(1);
        self.whole.set_length(each * deployment.hosts.len() as u64);
        self.whole.set_position(sum(|host| host.progress.bytes_done));
        let done = deployment.hosts.iter().filter(|host| host.state == "done").count();
        let bound = bound_percent(deployment).map(|share| format!(", {share} % of the bound"));
        let paused = if deployment.state == "paused" { ", paused" } else { "" };
        self.whole.set_message(format!("{done} done{paused}{}", bound.unwrap_or_default()));
        for (bar, host) in self.hosts.iter().zip(slowest(deployment)) {
            bar.set_prefix(host.name.clone());
            bar.set_length(host.progress.bytes_total.max(each));
            bar.set_position(host.progress.bytes_done);
            let error = host.progress.last_error.clone();
            bar.set_message(error.unwrap_or_else(|| host.state.clone()));
        }
    }

    fn print_changes(&mut self, deployment: &Deployment) {
        for host in &deployment.hosts {
            let before = self.states.insert(host.name.clone(), host.state.clone());
            if before.as_ref() != Some(&host.state) && matches!(&*host.state, "done" | "failed") {
                let error = host.progress.last_error.as_deref().filter(|_| host.state == "failed");
                let error = error.map(|error| format!(": {error}")).unwrap_or_default();
                let size = bytes(host.progress.bytes_done);
                self.screen.remark(&format!("{} {} ({size}){error}", host.name, host.state));
            }
        }
    }

    fn clear(&self) {
        // The terminal may be gone; there is nothing to clear then.
        let _ = self.all.clear();
    }
}

/// How near this is to hosts that all bring what they lack at the speed of their lines: the time
/// that this would take of the time that it takes, in percent. Nothing where no line is known, or
/// nothing had to be moved.
fn bound_percent(deployment: &Deployment) -> Option<u64> {
    let times = deployment.hosts.iter().filter_map(|host| times(&host.progress));
    // The slowest line bounds them all, and the slowest host is what they took.
    share_of_bound(times.reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)))?)
}

/// The same of one host.
pub fn host_bound_percent(progress: &TransferProgress) -> Option<u64> {
    share_of_bound(times(progress)?)
}

/// In milliseconds, what a host that brings what it lacks at the speed of its line takes, and what it
/// took.
fn times(progress: &TransferProgress) -> Option<(u128, u128)> {
    let TransferProgress { bytes_done, bytes_local, elapsed_ms, .. } = *progress;
    let TransferProgress { bytes_by_delta, delta_bundle_bytes, .. } = *progress;
    let line = progress.line_bytes_per_second.filter(|line| *line > 0)?;
    let here = bytes_local + bytes_by_delta;
    let moved = u128::from(bytes_done.saturating_sub(here) + delta_bundle_bytes);
    (moved > 0).then(|| (moved * 1000 / u128::from(line), u128::from(elapsed_ms)))
}

fn share_of_bound((bound, took): (u128, u128)) -> Option<u64> {
    Some((bound * 100).checked_div(took)?.min(100) as u64)
}

/// Hosts from the furthest behind on.
fn slowest(deployment: &Deployment) -> Vec<&DeploymentHost> {
    let mut hosts: Vec<_> = deployment.hosts.iter().collect();
    hosts.sort_by_key(|host| {
        let progress = &host.progress;
        (host.state == "done", percent(progress.bytes_done, progress.bytes_total))
    });
    hosts
}

#[cfg(test)]
mod tests {
    use shoal_content::{Digest, PeerId, Priority};

    use super::*;

    #[test]
    fn the_slowest_come_first_and_failures_say_why() {
        let host = |name: &str, state: &str, done, error: Option<&str>| DeploymentHost {
            id: PeerId::from_public_key([0; 32]),
            name: name.into(),
            state: state.into(),
            progress: TransferProgress {
                bytes_total: 100,
                bytes_done: done,
                last_error: error.map(Into::into),
                ..Default::default()
            },
        };
        let deployment = Deployment {
            id: DeploymentId::from_uuid(Default::default()),
            reference: "a/b:c".parse().unwrap(),
            manifest_digest: Digest::sha256([0; 32]),
            state: "failed".into(),
            created_at: String::new(),
            created_by: String::new(),
            priority: Priority::Normal,
            parallel: None,
            deadline: None,
            warm_up: None,
            hosts: vec![
                host("a", "done", 100, None),
                host("b", "failed", 70, Some("disk full")),
                host("c", "failed", 20, Some("no space")),
            ],
        };
        let names: Vec<_> = slowest(&deployment).iter().map(|host| host.name.as_str()).collect();
        assert_eq!(names, ["c", "b", "a"]);
        let text = summary(&deployment);
        assert!(text.contains("b failed: disk full") && text.contains("on 1 of 3 hosts"), "{text}");
        assert!(described(&deployment).contains("no space"));

        // The bound is that of the slowest line, against the slowest host.
        assert_eq!(bound_percent(&deployment), None);
        let mut timed = deployment;
        for (host, (line, took)) in
            timed.hosts.iter_mut().zip([(100, 1000), (70, 2000), (200, 500)])
        {
            host.progress.line_bytes_per_second = Some(line);
            host.progress.elapsed_ms = took;
        }
        assert_eq!(bound_percent(&timed), Some(50));
    }
}
