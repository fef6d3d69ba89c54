//! Projects with their members and robots, and what is granted for single images.

use std::time::Duration;

use reqwest::Method;
use serde::Serialize;
use shoal_api::{
    CreateProject, CreateRobot, Member, Project, PutMember, Robot, RobotCreated, UpdateProject,
    WorkloadRule,
};

use crate::arguments::{Access, ProjectCommand, RobotCommand, Scope};
use crate::client::{Client, escaped};
use crate::error::Error;
use crate::images;
use crate::quotas::usage_line;
use crate::screen::{Screen, bytes, table};

const PATH: &str = "api/v1/projects";

/// A project as one document.
#[derive(Serialize)]
struct Detail<'a> {
    #[serde(flatten)]
    project: &'a Project,
    members: &'a [Member],
}

pub fn member_table(members: &[Member]) -> String {
    let mut rows = table(&["WHO", "ROLE"]);
    for member in members {
        rows.add_row([&member.grantee, &member.role]);
    }
    rows.to_string()
}

pub async fn project(
    command: &ProjectCommand,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    let done = |text: String| screen.show(&serde_json::json!({ "done": text }), || text.clone());
    match command {
        ProjectCommand::List => {
            let projects: Vec<Project> = client.list(PATH).await?;
            screen.show(&projects, || project_table(&projects))
        }
        ProjectCommand::Create { name, organization, visibility, description } => {
            let request = CreateProject {
                name: name.clone(),
                organization: organization.clone(),
                visibility: visibility.as_str().to_owned(),
                description: description.clone(),
            };
            let made: Project = client.call(Method::POST, PATH, &request).await?;
            screen.show(&made, || format!("Made the project {name}, {}.", made.visibility))
        }
        ProjectCommand::Show { name } => {
            let project: Project = client.get(format!("{PATH}/{name}")).await?;
            let members: Vec<Member> = client.list(&format!("{PATH}/{name}/members")).await?;
            screen.show(&Detail { project: &project, members: &members }, || {
                let Project { name, owner, visibility, description, usage, .. } = &project;
                let usage = usage_line(usage);
                let members = member_table(&members);
                format!("{name}, {visibility}, owner {owner}\n{description}\n{usage}\n{members}")
            })
        }
        ProjectCommand::Set { name, visibility, description, owner } => {
            let request = UpdateProject {
                visibility: visibility.map(|one| one.as_str().to_owned()),
                description: description.clone(),
                owner: owner.clone(),
            };
            let path = format!("{PATH}/{name}");
            let project: Project = client.call(Method::PUT, path, &request).await?;
            screen.show(&project, || {
                format!("{name} is {}, owner {}.", project.visibility, project.owner)
            })
        }
        ProjectCommand::Delete { name } => {
            client.delete(format!("{PATH}/{name}")).await?;
            done(format!("Deleted the project {name}."))
        }
        ProjectCommand::Add { name, who, role } => {
            let path = format!("{PATH}/{name}/members/{}", escaped(who));
            let request = PutMember { role: role.as_str().to_owned() };
            let member: Member = client.call(Method::PUT, path, &request).await?;
            screen.show(&member, || format!("{who} is {} in {name}.", member.role))
        }
        ProjectCommand::Remove { name, who } => {
            client.delete(format!("{PATH}/{name}/members/{}", escaped(who))).await?;
            done(format!("{who} is no more in {name}."))
        }
    }
}

fn project_table(projects: &[Project]) -> String {
    let mut rows = table(&["PROJECT", "VISIBILITY", "OWNER", "USED", "IMAGES", "DESCRIPTION"]);
    for project in projects {
        rows.add_row([
            project.name.as_str(),
            &project.visibility,
            &project.owner,
            &bytes(project.usage.used_bytes),
            &project.usage.images.to_string(),
            &project.description,
        ]);
    }
    rows.to_string()
}

pub async fn robot(command: &RobotCommand, client: &Client, screen: Screen) -> Result<(), Error> {
    match command {
        RobotCommand::List { project } => {
            let robots: Vec<Robot> = client.get(format!("{PATH}/{project}/robots")).await?;
            screen.show(&robots, || {
                let mut rows = table(&["NAME", "SCOPES", "REPOSITORIES", "EXPIRES", "CREATED BY"]);
                for robot in &robots {
                    let scopes: Vec<&str> = robot.scopes.iter().map(String::as_str).collect();
                    let held: Vec<&str> =
                        robot.repositories.iter().map(|name| name.as_str()).collect();
                    let held = if held.is_empty() { "all".to_owned() } else { held.join(",") };
                    rows.add_row([
                        robot.name.as_str(),
                        &scopes.join(","),
                        &held,
                        robot.expires_at.as_deref().unwrap_or("never"),
                        &robot.created_by,
                    ]);
                }
                rows.to_string()
            })
        }
        RobotCommand::Create(wanted) => {
            let request = CreateRobot {
                name: wanted.name.clone(),
                description: wanted.description.clone(),
                scopes: wanted.scope.iter().map(|scope| Scope::as_str(*scope).to_owned()).collect(),
                repositories: wanted.repository.iter().cloned().collect(),
                ttl_seconds: wanted.ttl.as_ref().map(Duration::as_secs),
            };
            let path = format!("{PATH}/{}/robots", wanted.project);
            let made: RobotCreated = client.call(Method::POST, path, &request).await?;
            screen.show(&made, || {
                let name = &made.robot.name;
                format!(
                    "{}\n\nThe secret, shown once. It logs in with\n  docker login -u '{name}' --password-stdin HOST:PORT",
                    made.secret.0
                )
            })
        }
        RobotCommand::Rules { project } => {
            let path = format!("{PATH}/{project}/workload-rules");
            let rules: Vec<WorkloadRule> = client.get(path).await?;
            screen.show(&rules, || {
                let mut rows = table(&["RULE", "ROBOT", "ISSUER", "SUBJECT", "CLAIMS"]);
                for rule in &rules {
                    let claims: Vec<String> =
                        rule.claims.iter().map(|(name, text)| format!("{name}={text}")).collect();
                    rows.add_row([
                        rule.name.as_str(),
                        rule.robot.as_str(),
                        &rule.issuer,
                        &rule.subject,
                        &claims.join(" "),
                    ]);
                }
                rows.to_string()
            })
        }
        RobotCommand::Allow(wanted) => {
            let rule = WorkloadRule {
                name: wanted.rule.clone().unwrap_or_else(|| wanted.robot.clone()),
                issuer: wanted.issuer.clone(),
                subject: wanted.subject.clone(),
                claims: wanted.claim.iter().cloned().collect(),
                robot: wanted.robot.clone(),
                created_at: String::new(),
                created_by: String::new(),
            };
            let path = format!("{PATH}/{}/workload-rules", wanted.project);
            let made: WorkloadRule = client.call(Method::POST, path, &rule).await?;
            screen.show(&made, || {
                format!("{} of {} acts as {}.", made.subject, made.issuer, made.robot)
            })
        }
        RobotCommand::Disallow { project, rule } => {
            client.delete(format!("{PATH}/{project}/workload-rules/{rule}")).await?;
            let shown = serde_json::json!({ "deleted": rule });
            screen.show(&shown, || format!("The rule {rule} is gone."))
        }
        RobotCommand::Delete { project, name } => {
            client.delete(format!("{PATH}/{project}/robots/{name}")).await?;
            let shown = serde_json::json!({ "deleted": name });
            screen.show(&shown, || format!("Deleted robot${project}+{name}."))
        }
    }
}

async fn permissions(client: &Client, name: &str) -> Result<String, Error> {
    let image = images::existing(client, name).await?;
    Ok(format!("api/v1/images/{}/permissions", image.id))
}

pub async fn grants(client: &Client, name: &str, screen: Screen) -> Result<(), Error> {
    let members: Vec<Member> = client.list(&permissions(client, name).await?).await?;
    screen.show(&members, || member_table(&members))
}

pub async fn grant(
    client: &Client,
    name: &str,
    who: &str,
    access: Access,
    screen: Screen,
) -> Result<(), Error> {
    let path = format!("{}/{}", permissions(client, name).await?, escaped(who));
    let request = PutMember { role: access.as_str().to_owned() };
    let member: Member = client.call(Method::PUT, path, &request).await?;
    screen.show(&member, || format!("{who} has {} for {name}.", member.role))
}

pub async fn revoke(client: &Client, name: &str, who: &str, screen: Screen) -> Result<(), Error> {
    client.delete(format!("{}/{}", permissions(client, name).await?, escaped(who))).await?;
    let shown = serde_json::json!({ "revoked": who });
    screen.show(&shown, || format!("{who} has no grant for {name} any more."))
}
