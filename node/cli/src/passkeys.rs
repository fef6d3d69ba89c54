//! Passkeys, as far as a program without a browser goes: looked at, renamed and removed.

use reqwest::Method;
use shoal_api::{CurrentPassword, Hidden, Passkey, UpdatePasskey};

use crate::arguments::PasskeyCommand;
use crate::client::{Body, Client, Request, escaped};
use crate::error::Error;
use crate::screen::{Screen, table};
use crate::session::password;

const OWN: &str = "api/v1/user/passkeys";

fn of(user: &str) -> String {
    format!("api/v1/users/{}/passkeys", escaped(user))
}

pub async fn passkey(
    command: &PasskeyCommand,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    match command {
        PasskeyCommand::List { user } => {
            let path = user.as_deref().map_or_else(|| OWN.to_owned(), of);
            let found: Vec<Passkey> = client.get(path).await?;
            screen.show(&found, || shown(&found))
        }
        PasskeyCommand::Rename { id, name } => {
            let request = UpdatePasskey { name: Some(name.clone()), ..UpdatePasskey::default() };
            update(id, &request, client, screen).await
        }
        PasskeyCommand::SecondFactor { id, wanted, password_stdin } => {
            let request = UpdatePasskey {
                second_factor: Some(wanted == "on"),
                current_password: Some(Hidden(password(*password_stdin)?)),
                ..UpdatePasskey::default()
            };
            update(id, &request, client, screen).await
        }
        PasskeyCommand::Remove { user: Some(user), .. } => {
            client.delete(of(user)).await?;
            done(screen, &format!("{user} has no passkeys any more."))
        }
        PasskeyCommand::Remove { id, password_stdin, .. } => {
            let current_password = Some(Hidden(password(*password_stdin)?));
            let value = serde_json::to_value(CurrentPassword { current_password });
            let value = value.map_err(|error| Error::Answer(error.to_string()))?;
            let path = format!("{OWN}/{}", escaped(id.as_deref().unwrap_or_default()));
            client.send(&Request::new(Method::DELETE, path, Body::Json(&value))).await?;
            done(screen, "Removed.")
        }
    }
}

fn shown(found: &[Passkey]) -> String {
    let mut rows = table(&["ID", "NAME", "MADE", "LAST USED", "SECOND FACTOR"]);
    for one in found {
        let factor = if one.second_factor { "yes" } else { "no" };
        let used = one.last_used_at.as_deref().unwrap_or("never");
        rows.add_row([one.id.as_str(), &one.name, &one.created_at, used, factor]);
    }
    rows.to_string()
}

async fn update(
    id: &str,
    request: &UpdatePasskey,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    let path = format!("{OWN}/{}", escaped(id));
    let now: Passkey = client.call(Method::PATCH, path, request).await?;
    screen.show(&now, || shown(std::slice::from_ref(&now)))
}

fn done(screen: Screen, text: &str) -> Result<(), Error> {
    screen.show(&serde_json::json!({ "done": text }), || text.to_owned())
}
