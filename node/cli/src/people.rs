//! People: accounts, their own tokens, organizations.

use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use shoal_api::{
    ChangeEmail, ChangePassword, CreateGroup, CreateOrganization, CreatePersonalToken, CreateUser,
    Deletion, Group, Hidden, Member, Organization, PersonalToken, PersonalTokenCreated, PutMember,
    UpdateUser, User, UserCreated,
};

use crate::arguments::{AccessTokenCommand, OrganizationCommand, Scope, UserCommand, UserRole};
use crate::client::{Body, Client, Request, escaped};
use crate::error::Error;
use crate::projects::member_table;
use crate::screen::{Screen, confirm, table};
use crate::session::{lines, password};
use crate::{logins, passkeys};

fn role_name(role: UserRole) -> String {
    match role {
        UserRole::User => "user",
        UserRole::Auditor => "auditor",
        UserRole::Admin => "admin",
    }
    .to_owned()
}

/// Makes an account for each line of an htpasswd file. Those that are there already are left as they are,
/// so that what broke off can be begun again.
async fn import(file: &Path, client: &Client, screen: Screen) -> Result<(), Error> {
    let text = std::fs::read_to_string(file).map_err(Error::file("reading", file))?;
    let odd = |number: usize| Error::Usage(format!("line {number} is not NAME:HASH"));
    let is_entry = |line: &str| !line.is_empty() && !line.starts_with('#');
    let mut requests = Vec::new();
    for (line, number) in text.lines().zip(1..).filter(|(line, _)| is_entry(line)) {
        let (name, hash) = line.trim_end().split_once(':').ok_or_else(|| odd(number))?;
        requests.push(CreateUser {
            username: name.parse().map_err(|_| odd(number))?,
            password: None,
            password_hash: Some(Hidden(hash.to_owned())),
            role: role_name(UserRole::User),
            email: None,
        });
    }
    let (mut made, mut kept) = (Vec::new(), Vec::new());
    for request in requests {
        let name = request.username.to_string();
        let answer: Result<UserCreated, Error> =
            client.call(Method::POST, "api/v1/users", &request).await;
        match answer {
            Ok(_) => made.push(name),
            Err(error) if error.code() == "user_exists" => kept.push(name),
            Err(error) => return Err(error),
        }
    }
    let shown = serde_json::json!({ "made": made, "there_already": kept });
    screen.show(&shown, || format!("Made {} accounts; {} were there.", made.len(), kept.len()))
}

pub async fn user(command: &UserCommand, client: &Client, screen: Screen) -> Result<(), Error> {
    match command {
        UserCommand::List => {
            let users: Vec<User> = client.list("api/v1/users").await?;
            screen.show(&users, || {
                let mut rows = table(&["NAME", "ROLE", "E-MAIL", "CREATED"]);
                for user in &users {
                    let email = user.email.as_deref().unwrap_or_default();
                    rows.add_row([user.username.as_str(), &user.role, email, &user.created_at]);
                }
                rows.to_string()
            })
        }
        UserCommand::Create { name, role, email, password_stdin } => {
            let given = if *password_stdin { Some(Hidden(password(true)?)) } else { None };
            let request = CreateUser {
                username: name.clone(),
                password: given,
                password_hash: None,
                role: role_name(*role),
                email: email.clone(),
            };
            let made: UserCreated = client.call(Method::POST, "api/v1/users", &request).await?;
            screen.show(&made, || match &made.password {
                Some(password) => {
                    format!("Made {name}. The password, shown once:\n{}", password.0)
                }
                None => format!("Made {name}."),
            })
        }
        UserCommand::Import { file } => import(file, client, screen).await,
        UserCommand::Set { name, role, email, password_stdin } => {
            let password = if *password_stdin { Some(Hidden(password(true)?)) } else { None };
            if role.is_none() && password.is_none() && email.is_none() {
                let text = "nothing to change; give --role, --email or --password-stdin";
                return Err(Error::Usage(text.into()));
            }
            let request = UpdateUser { role: role.map(role_name), password, email: email.clone() };
            let path = format!("api/v1/users/{}", escaped(name));
            let user: User = client.call(Method::PATCH, path, &request).await?;
            screen.show(&user, || format!("{} is {}.", user.username, user.role))
        }
        UserCommand::Delete { name, yes } => {
            if !yes && !confirm(&format!("Delete {name} with its tokens and rights?"))? {
                let text = "nothing was deleted; --yes deletes without asking";
                return Err(Error::Usage(text.into()));
            }
            client.delete(format!("api/v1/users/{}", escaped(name))).await?;
            screen.show(&serde_json::json!({ "deleted": name }), || format!("Deleted {name}."))
        }
        UserCommand::SecondFactor(command) => logins::second_factor(command, client, screen).await,
        UserCommand::Passkey(command) => passkeys::passkey(command, client, screen).await,
        UserCommand::Sessions { user } => logins::sessions(user.as_deref(), client, screen).await,
        UserCommand::EndSession { id, user, .. } => {
            logins::end(id.as_deref(), user.as_deref(), client, screen).await
        }
        UserCommand::Identities { user } => logins::identities(user, client, screen).await,
        UserCommand::Link { user, issuer, subject } => {
            logins::link(user, issuer, subject, Method::POST, client, screen).await
        }
        UserCommand::Unlink { user, issuer, subject } => {
            logins::link(user, issuer, subject, Method::DELETE, client, screen).await
        }
        UserCommand::Export => {
            let all: serde_json::Value = client.get("api/v1/user/export").await?;
            screen.show(&all, || serde_json::to_string_pretty(&all).unwrap_or_default())
        }
        UserCommand::Leave { password_stdin } => {
            let request = serde_json::json!({ "current_password": password(*password_stdin)? });
            let asked: Deletion =
                client.call(Method::POST, "api/v1/user/deletion", &request).await?;
            let due = asked.due_at.clone().unwrap_or_default();
            screen.show(&asked, || {
                format!("The account goes at {due}; until then 'shoal user stay' keeps it.")
            })
        }
        UserCommand::Stay => {
            client.delete("api/v1/user/deletion").await?;
            screen.show(&serde_json::json!({ "stays": true }), || "The account stays.".to_owned())
        }
        UserCommand::Password { password_stdin } => {
            let (current, new) = if *password_stdin {
                let [current, new] = lines()?;
                (current, new)
            } else {
                screen.remark("The current password first, then the new one.");
                (password(false)?, password(false)?)
            };
            let (current_password, new_password) = (Hidden(current), Hidden(new));
            let request = ChangePassword { current_password, new_password };
            put(client, "api/v1/user/password".into(), &request).await?;
            screen.show(&serde_json::json!({ "changed": true }), || "Changed.".to_owned())
        }
        UserCommand::Email { email } => {
            let request = ChangeEmail { email: email.clone() };
            put(client, "api/v1/user/email".into(), &request).await?;
            screen.show(&serde_json::json!({ "changed": true }), || "Changed.".to_owned())
        }
    }
}

/// A `PUT` that answers nothing.
async fn put(client: &Client, path: String, request: &impl serde::Serialize) -> Result<(), Error> {
    let value = serde_json::to_value(request).map_err(|e| Error::Answer(e.to_string()))?;
    client.send(&Request::new(Method::PUT, path, Body::Json(&value))).await.map(drop)
}

pub async fn access_token(
    command: &AccessTokenCommand,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    const PATH: &str = "api/v1/user/tokens";
    match command {
        AccessTokenCommand::Create { name, scope, ttl } => {
            let request = CreatePersonalToken {
                name: name.clone(),
                scopes: scope.iter().copied().map(Scope::as_str).map(str::to_owned).collect(),
                ttl_seconds: ttl.as_ref().map(Duration::as_secs),
            };
            let made: PersonalTokenCreated = client.call(Method::POST, PATH, &request).await?;
            screen.show(&made, || {
                let end = made.info.expires_at.as_deref().unwrap_or("it is deleted");
                format!(
                    "{}\n\nShown once; good until {end}. Use it as the password of your account, or as a Bearer token.",
                    made.token.0
                )
            })
        }
        AccessTokenCommand::List => {
            let tokens: Vec<PersonalToken> = client.get(PATH).await?;
            screen.show(&tokens, || {
                let mut rows = table(&["ID", "NAME", "SCOPES", "CREATED", "EXPIRES", "LAST USED"]);
                for token in &tokens {
                    let scopes: Vec<&str> = token.scopes.iter().map(String::as_str).collect();
                    rows.add_row([
                        token.id.as_str(),
                        &token.name,
                        &scopes.join(","),
                        &token.created_at,
                        token.expires_at.as_deref().unwrap_or("never"),
                        token.last_used_at.as_deref().unwrap_or("never"),
                    ]);
                }
                rows.to_string()
            })
        }
        AccessTokenCommand::Delete { id } => {
            client.delete(format!("{PATH}/{}", escaped(id))).await?;
            screen.show(&serde_json::json!({ "deleted": id }), || format!("Deleted {id}."))
        }
    }
}

pub async fn organization(
    command: &OrganizationCommand,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    const PATH: &str = "api/v1/organizations";
    let done = |text: String| screen.show(&serde_json::json!({ "done": text }), || text.clone());
    match command {
        OrganizationCommand::List => {
            let found: Vec<Organization> = client.list(PATH).await?;
            screen.show(&found, || {
                let mut rows = table(&["NAME", "DESCRIPTION", "CREATED"]);
                for one in &found {
                    rows.add_row([one.name.as_str(), &one.description, &one.created_at]);
                }
                rows.to_string()
            })
        }
        OrganizationCommand::Create { name, description, owner } => {
            let request = CreateOrganization {
                name: name.clone(),
                description: description.clone(),
                owner: owner.clone(),
            };
            let made: Organization = client.call(Method::POST, PATH, &request).await?;
            screen.show(&made, || format!("Made the organization {name}."))
        }
        OrganizationCommand::Delete { name } => {
            client.delete(format!("{PATH}/{name}")).await?;
            done(format!("Deleted the organization {name}."))
        }
        OrganizationCommand::Members { name } => {
            let members: Vec<Member> = client.list(&format!("{PATH}/{name}/members")).await?;
            screen.show(&members, || member_table(&members))
        }
        OrganizationCommand::Add { name, user, owner } => {
            let role = if *owner { "owner" } else { "member" }.to_owned();
            let path = format!("{PATH}/{name}/members/{user}");
            let member: Member = client.call(Method::PUT, path, &PutMember { role }).await?;
            screen.show(&member, || format!("{user} is {} of {name}.", member.role))
        }
        OrganizationCommand::Remove { name, user } => {
            client.delete(format!("{PATH}/{name}/members/{user}")).await?;
            done(format!("{user} is no more in {name}."))
        }
        OrganizationCommand::Groups { name } => {
            let groups: Vec<Group> = client.list(&format!("{PATH}/{name}/groups")).await?;
            screen.show(&groups, || {
                let mut rows = table(&["GROUP", "MEMBERS", "DESCRIPTION"]);
                for group in &groups {
                    let members: Vec<&str> =
                        group.members.iter().map(|user| user.as_str()).collect();
                    let members = members.join(", ");
                    rows.add_row([group.name.as_str(), &members, &group.description]);
                }
                rows.to_string()
            })
        }
        OrganizationCommand::CreateGroup { name, group, description } => {
            let request = CreateGroup { name: group.clone(), description: description.clone() };
            let path = format!("{PATH}/{name}/groups");
            let made: Group = client.call(Method::POST, path, &request).await?;
            screen.show(&made, || format!("Made the group {name}/{group}."))
        }
        OrganizationCommand::DeleteGroup { name, group } => {
            client.delete(format!("{PATH}/{name}/groups/{group}")).await?;
            done(format!("Deleted the group {name}/{group}."))
        }
        OrganizationCommand::AddToGroup { name, group, user } => {
            let path = format!("{PATH}/{name}/groups/{group}/members/{user}");
            let nothing = serde_json::json!({});
            let member: Member = client.call(Method::PUT, path, &nothing).await?;
            screen.show(&member, || format!("{user} is in {name}/{group}."))
        }
        OrganizationCommand::RemoveFromGroup { name, group, user } => {
            client.delete(format!("{PATH}/{name}/groups/{group}/members/{user}")).await?;
            done(format!("{user} is no more in {name}/{group}."))
        }
    }
}
