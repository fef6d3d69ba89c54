//! Logging in and out, contexts, and the cluster's state.

use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use comfy_table::{Cell, Table};
use reqwest::Method;
use serde::Serialize;
use shoal_api::{
    AgentInfo, ClusterStatus, Hidden, LoginCode, LoginPending, LoginRequest, LoginResponse,
    LoginStep, Me, Register, User,
};
use shoal_content::NameError;

use crate::arguments::{ContextCommand, Login};
use crate::browser;
use crate::client::{Body, Client, Request};
use crate::config::{Config, Context};
use crate::error::Error;
use crate::screen::{Screen, state, table};
use crate::trust::{self, Wish};

/// A password, or a token.
const PASSWORD_BYTES_MAX: u64 = 16 * 1024;
/// How long a logout waits for the cluster.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(5);

/// `GET /api/v1/cluster`, with the agents besides.
#[derive(Serialize)]
struct Status<'a> {
    #[serde(flatten)]
    cluster: &'a ClusterStatus,
    agents: &'a [AgentInfo],
}

pub async fn login(arguments: &Login, config: &mut Config, screen: Screen) -> Result<(), Error> {
    let url = trust::parse_url(&arguments.url)?;
    let wish = match (&arguments.ca, &arguments.fingerprint) {
        (Some(file), _) => Wish::File(file),
        (_, Some(fingerprint)) => Wish::Fingerprint(fingerprint),
        _ if arguments.insecure_skip_verify => Wish::SkipVerify,
        _ => Wish::Ask,
    };
    let trust = trust::settle(&url, wish).await?;
    let client = Client::anonymous(url.clone(), &trust)?;
    let (username, answer) = if arguments.oidc {
        let answer = browser::login(&url, &client, screen).await?;
        let client = Client::anonymous(url.clone(), &trust)?.with_token(answer.token.clone());
        let me: Me = client.get("api/v1/auth/me").await?;
        (me.username, answer)
    } else if let Some(project) = &arguments.workload {
        browser::workload(arguments, project, password(true)?, &client).await?
    } else {
        let answer = by_password(arguments, &client).await?;
        (arguments.username.clone(), answer)
    };
    let client = client.with_token(answer.token.clone());
    let cluster: ClusterStatus = client.get("api/v1/cluster").await?;
    config.store(Context {
        url: url.to_string(),
        nodes: node_urls(&cluster),
        username: username.clone(),
        token: answer.token,
        token_expires_at: answer.expires_at.clone(),
        trust,
    })?;
    let shown = serde_json::json!({
        "context": config.name(), "url": url.as_str(), "username": username,
        "cluster": cluster.cluster, "expires_at": answer.expires_at,
    });
    screen
        .show(&shown, || format!("Logged in to {url} as {username}, until {}.", answer.expires_at))
}

/// In two steps, where the account has a second factor.
async fn by_password(arguments: &Login, client: &Client) -> Result<LoginResponse, Error> {
    let given = password(arguments.password_stdin)?;
    // Who has a second factor gives its code on the line after the password.
    let (password, given_code) = match given.split_once('\n') {
        Some((password, code)) => {
            (password.trim_end_matches('\r').to_owned(), Some(code.trim().to_owned()))
        }
        None => (given, None),
    };
    if arguments.register {
        register(arguments, &password, client).await?;
    }
    let request = LoginRequest { username: arguments.username.clone(), password };
    let step: LoginStep = client.call(Method::POST, "api/v1/auth/login", &request).await?;
    match step {
        LoginStep::Done(answer) => Ok(answer),
        LoginStep::Pending(LoginPending { methods, .. }) if methods == ["passkey"] => {
            let text =
                "this account logs in with a passkey after the password, which takes a browser";
            Err(Error::Usage(text.into()))
        }
        LoginStep::Pending(LoginPending { ticket, .. }) => {
            let code = match given_code {
                Some(code) => code,
                None => asked("Code of the authenticator, or a recovery code: ")?,
            };
            let request = LoginCode { ticket, code };
            client.call(Method::POST, "api/v1/auth/login/code", &request).await
        }
    }
}

async fn register(arguments: &Login, password: &str, client: &Client) -> Result<(), Error> {
    let odd = |error: NameError| Error::Usage(error.to_string());
    // Nobody has seen what was typed, and there is nobody to ask for another one.
    if !arguments.password_stdin && asked("The same password again: ")? != password {
        return Err(Error::Usage("these are two passwords; nothing was done".into()));
    }
    let request = Register {
        username: arguments.username.parse().map_err(odd)?,
        password: Hidden(password.to_owned()),
        email: arguments.email.clone(),
    };
    let _made: User = client.call(Method::POST, "api/v1/auth/register", &request).await?;
    Ok(())
}

/// So many lines of standard input: secrets that do not belong on a command line.
pub fn lines<const COUNT: usize>() -> Result<[String; COUNT], Error> {
    let mut text = String::new();
    let mut input = io::stdin().lock().take(PASSWORD_BYTES_MAX);
    input.read_to_string(&mut text).map_err(Error::file("reading", "standard input"))?;
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let wrong = |_| Error::Usage(format!("standard input has to have {COUNT} lines"));
    lines.try_into().map_err(wrong)
}

/// A password from standard input, or asked for on the terminal.
pub fn password(from_stdin: bool) -> Result<String, Error> {
    if from_stdin {
        let mut text = String::new();
        let mut input = io::stdin().lock().take(PASSWORD_BYTES_MAX);
        input.read_to_string(&mut text).map_err(Error::file("reading", "standard input"))?;
        return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
    }
    if !io::stdin().is_terminal() {
        let reason = "there is no terminal to ask for the password on; use --password-stdin";
        return Err(Error::Usage(reason.into()));
    }
    asked("Password: ")
}

/// What is asked for on the terminal, and not shown.
pub fn asked(prompt: &str) -> Result<String, Error> {
    if !io::stdin().is_terminal() {
        let reason = format!("there is no terminal to ask on: {prompt}");
        return Err(Error::Usage(reason));
    }
    eprint!("{prompt}");
    let terminal = console::Term::stderr();
    terminal.read_secure_line().map_err(Error::file("reading", "the terminal"))
}

pub async fn logout(config: &mut Config, screen: Screen) -> Result<(), Error> {
    let name = config.name().to_owned();
    // A cluster that is away, or a session that is over, keeps nobody logged in here.
    if let Ok(context) = config.context()
        && let Ok(client) = Client::new(context)
    {
        let request = Request::new(Method::POST, "api/v1/auth/logout", Body::Empty);
        match tokio::time::timeout(LOGOUT_TIMEOUT, client.send(&request)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => screen.remark(&format!("The cluster did not end it: {error}")),
            Err(_) => screen.remark("The cluster did not answer; the session goes on there."),
        }
    }
    let was = config.remove()?;
    screen.show(&serde_json::json!({ "context": name, "removed": was }), || match was {
        true => format!("Logged out of '{name}'."),
        false => format!("Nobody was logged in to '{name}'."),
    })
}

pub fn context(command: &ContextCommand, config: &mut Config, screen: Screen) -> Result<(), Error> {
    if let ContextCommand::Use { name } = command {
        config.make_current(name)?;
        let shown = serde_json::json!({ "current": name });
        return screen.show(&shown, || format!("'{name}' is the current context."));
    }
    let entry = |(name, context, current): (&str, &Context, bool)| {
        serde_json::json!({
            "name": name, "current": current, "url": context.url, "nodes": context.nodes,
            "username": context.username, "token_expires_at": context.token_expires_at,
        })
    };
    let all: Vec<_> = config.contexts().map(entry).collect();
    screen.show(&all, || {
        let mut rows = table(&["", "NAME", "URL", "USER"]);
        for (name, context, current) in config.contexts() {
            let mark = if current { "*" } else { "" };
            rows.add_row([mark, name, &context.url, &context.username]);
        }
        rows.to_string()
    })
}

pub async fn status(client: &Client, config: &mut Config, screen: Screen) -> Result<(), Error> {
    let cluster: ClusterStatus = client.get("api/v1/cluster").await?;
    let agents: Vec<AgentInfo> = client.list("api/v1/agents").await?;
    config.store_nodes(node_urls(&cluster))?;
    screen.show(&Status { cluster: &cluster, agents: &agents }, || {
        let rows = node_table(&cluster);
        let leader = match cluster.leader {
            Some(id) => format!("node {id} leads"),
            None => "no leader: nothing can be changed now".to_owned(),
        };
        let online = agents.iter().filter(|agent| agent.online).count();
        format!(
            "{}, {leader} (term {}, log {}, applied {}), version {}\n{rows}\n{online} of {} agents online",
            cluster.cluster,
            cluster.term,
            cluster.last_log_index,
            cluster.last_applied_index,
            cluster.version,
            agents.len()
        )
    })
}

pub fn node_table(cluster: &ClusterStatus) -> Table {
    let mut rows =
        table(&["NODE", "NAME", "ROLE", "VERSION", "LEVEL", "ZONE", "API", "RAFT", "PEERS"]);
    for node in &cluster.nodes {
        rows.add_row([
            Cell::new(node.id),
            Cell::new(&node.name),
            state(&node.role),
            Cell::new(node.program.as_deref().unwrap_or("-")),
            Cell::new(node.level),
            Cell::new(node.zone.to_string()),
            Cell::new(&node.api_url),
            Cell::new(&node.raft_address),
            Cell::new(&node.peer_address),
        ]);
    }
    rows
}

/// Where nodes that are still members answer.
pub fn node_urls(cluster: &ClusterStatus) -> Vec<String> {
    let members = cluster.nodes.iter().filter(|node| node.role != "removed");
    let urls = members.map(|node| node.api_url.clone());
    // What cannot be talked to safely is no help later.
    urls.filter(|url| trust::parse_url(url).is_ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_has_the_nodes_at_its_top_and_the_agents_beside_them() {
        let text = format!(
            r#"{{"cluster":{},"answered_by":1,"leader":1,"term":2,"last_log_index":3,
                "last_applied_index":3,"version":"x","nodes":[]}}"#,
            serde_json::to_string(&shoal_content::ClusterId::from_uuid(Default::default()))
                .unwrap()
        );
        let cluster: ClusterStatus = serde_json::from_str(&text).unwrap();
        let shown = serde_json::to_value(Status { cluster: &cluster, agents: &[] }).unwrap();
        assert!(shown["nodes"].is_array() && shown["agents"].is_array());
        assert_eq!(shown["leader"], 1);
    }
}
