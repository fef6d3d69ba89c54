//! Second factors and open sessions.

use reqwest::Method;
use shoal_api::{
    BeginSecondFactor, Code, Hidden, Identity, RecoveryCodes, SecondFactor, SecondFactorBegun,
    Session,
};

use crate::arguments::SecondFactorCommand;
use crate::client::{Body, Client, Request, escaped};
use crate::error::Error;
use crate::screen::{Screen, table};
use crate::session::{asked, password};

const FACTOR: &str = "api/v1/user/second-factor";

fn done(screen: Screen, text: &str) -> Result<(), Error> {
    screen.show(&serde_json::json!({ "done": text }), || text.to_owned())
}

fn code(text: &str) -> Code {
    Code { code: Hidden(text.trim().to_owned()) }
}

fn show_codes(screen: Screen, codes: &RecoveryCodes) -> Result<(), Error> {
    screen.show(codes, || {
        let lines: Vec<&str> = codes.codes.iter().map(|code| code.0.as_str()).collect();
        format!(
            "{}\n\nEach of these lets you in once without the authenticator. Shown once: keep them.",
            lines.join("\n")
        )
    })
}

pub async fn second_factor(
    command: &SecondFactorCommand,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    match command {
        SecondFactorCommand::Show => {
            let found: SecondFactor = client.get(FACTOR).await?;
            screen.show(&found, || match &found.confirmed_at {
                Some(since) => format!(
                    "Codes are asked for since {since}; {} recovery codes are left.",
                    found.recovery_codes_left
                ),
                None => "There is no second factor; 'shoal user second-factor add' begins.".into(),
            })
        }
        SecondFactorCommand::Add { password_stdin } => {
            let request =
                BeginSecondFactor { current_password: Hidden(password(*password_stdin)?) };
            let begun: SecondFactorBegun = client.call(Method::POST, FACTOR, &request).await?;
            screen.show(&begun, || {
                format!(
                    "Give this to your authenticator:\n  {}\nor type the secret:\n  {}\n",
                    begun.address.0, begun.secret.0
                )
            })?;
            if *password_stdin {
                screen.remark("Then: shoal user second-factor confirm CODE");
                return Ok(());
            }
            let first = asked("The code that it shows now: ")?;
            confirm(&first, client, screen).await
        }
        SecondFactorCommand::Confirm { code } => confirm(code, client, screen).await,
        SecondFactorCommand::RecoveryCodes { code: text } => {
            let path = format!("{FACTOR}/recovery-codes");
            let codes: RecoveryCodes = client.call(Method::POST, path, &code(text)).await?;
            show_codes(screen, &codes)
        }
        SecondFactorCommand::Remove { user: Some(user), .. } => {
            client.delete(format!("api/v1/users/{}/second-factor", escaped(user))).await?;
            done(screen, &format!("{user} has no second factor any more."))
        }
        SecondFactorCommand::Remove { code: text, .. } => {
            let request = code(text.as_deref().unwrap_or_default());
            let value = serde_json::to_value(&request).map_err(|e| Error::Answer(e.to_string()))?;
            client.send(&Request::new(Method::DELETE, FACTOR, Body::Json(&value))).await?;
            done(screen, "You have no second factor any more.")
        }
    }
}

async fn confirm(text: &str, client: &Client, screen: Screen) -> Result<(), Error> {
    let path = format!("{FACTOR}/confirm");
    let codes: RecoveryCodes = client.call(Method::POST, path, &code(text)).await?;
    show_codes(screen, &codes)
}

pub async fn sessions(user: Option<&str>, client: &Client, screen: Screen) -> Result<(), Error> {
    let path = match user {
        Some(user) => format!("api/v1/users/{}/sessions", escaped(user)),
        None => "api/v1/user/sessions".to_owned(),
    };
    let found: Vec<Session> = client.get(path).await?;
    screen.show(&found, || {
        let mut rows = table(&["ID", "BEGUN", "UNTIL", "FROM", "BY", "PROGRAM", ""]);
        for one in &found {
            let current = if one.current { "this one" } else { "" };
            rows.add_row([
                one.id.as_str(),
                &one.created_at,
                &one.expires_at,
                &one.address,
                &one.means,
                &one.agent,
                current,
            ]);
        }
        rows.to_string()
    })
}

/// One of one's own, all others of one's own, or all of somebody's.
pub async fn end(
    id: Option<&str>,
    user: Option<&str>,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    let (path, text) = match (id, user) {
        (Some(id), _) => (format!("api/v1/user/sessions/{}", escaped(id)), format!("Ended {id}.")),
        (None, Some(user)) => (
            format!("api/v1/users/{}/sessions", escaped(user)),
            format!("Ended all sessions of {user}."),
        ),
        (None, None) => {
            ("api/v1/user/sessions".to_owned(), "Ended all of your other sessions.".to_owned())
        }
    };
    client.delete(path).await?;
    done(screen, &text)
}

pub async fn identities(user: &str, client: &Client, screen: Screen) -> Result<(), Error> {
    let path = format!("api/v1/users/{}/identities", escaped(user));
    let found: Vec<Identity> = client.get(path).await?;
    screen.show(&found, || {
        let mut rows = table(&["ISSUER", "SUBJECT", "LINKED"]);
        for one in &found {
            rows.add_row([&one.issuer, &one.subject, &one.linked_at]);
        }
        rows.to_string()
    })
}

/// Links with `POST`, unlinks with `DELETE`.
pub async fn link(
    user: &str,
    issuer: &str,
    subject: &str,
    method: Method,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    let text = match method == Method::POST {
        true => format!("{subject} of {issuer} is {user} here."),
        false => format!("{subject} of {issuer} is nobody here any more."),
    };
    let path = format!("api/v1/users/{}/identities", escaped(user));
    let (issuer, subject) = (issuer.to_owned(), subject.to_owned());
    let identity = Identity { issuer, subject, linked_at: String::new() };
    let value = serde_json::to_value(&identity).map_err(|e| Error::Answer(e.to_string()))?;
    client.send(&Request::new(method, path, Body::Json(&value))).await?;
    done(screen, &text)
}
