//! Every route by every role and visibility: allowed, or the right refusal.
//!
//! `matrix/rows.txt` says for each route what it needs, and `matrix/answers.txt` who has that. The
//! routes are the router's own list, so that one without a row fails. What is answered as if it was
//! not there is compared with what is answered for something that is not there: status, headers and
//! body.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use futures::stream::{self, StreamExt};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use shoal_p2p::identity::KeyPair;

use super::document::contract::CONTRACT;
use super::members::{Agent, signed};
use super::node::{Node, read};
use super::v2::{push_blob, push_image, sha256};
use super::wait::level_raised;

const ROWS: &str = include_str!("matrix/rows.txt");
const ANSWERS: &str = include_str!("matrix/answers.txt");
const PASSWORD: &str = "correct-horse-7";
/// Each project with the visibility that names its rows.
const PROJECTS: [(&str, &str); 3] = [("open", "public"), ("team", "inside"), ("shut", "private")];
const ROLES: [(&str, &str); 5] = [
    ("limited", "limited-guest"),
    ("guest", "guest"),
    ("developer", "developer"),
    ("maintainer", "maintainer"),
    ("keeper", "admin"),
];
const PEOPLE: [&str; 9] = [
    "stranger",
    "insider",
    "granted",
    "limited",
    "guest",
    "developer",
    "maintainer",
    "keeper",
    "auditor",
];
/// Wrong answers that a failure shows.
const SHOWN_MAX: usize = 40;
const LOGOUT: &str = "/api/v1/auth/logout";
/// Requests under way.
const AT_ONCE: usize = 8;

struct Row {
    method: Method,
    path: &'static str,
    need: &'static str,
    /// What is answered to who may.
    allowed: Vec<u16>,
    body: &'static str,
}

fn rows() -> Result<Vec<Row>> {
    let lines = ROWS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let parsed = lines.map(|line| {
        let mut words = line.split_whitespace();
        let mut word = || words.next().with_context(|| line.to_owned());
        let (method, path, need, allowed) = (word()?, word()?, word()?, word()?);
        let body =
            line.find(&format!(" {allowed} ")).map_or("", |at| &line[at + allowed.len() + 2..]);
        let method = method.parse()?;
        let allowed = allowed.split('/').map(str::parse).collect::<Result<_, _>>()?;
        Ok(Row { method, path, need, allowed, body: body.trim() })
    });
    parsed.collect()
}

/// (need, visibility, asker) -> answer.
struct Answers {
    askers: Vec<&'static str>,
    by: BTreeMap<(&'static str, &'static str, &'static str), char>,
}

fn answers() -> Result<Answers> {
    let mut lines = ANSWERS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let askers: Vec<&str> = lines.next().context("names")?.split_whitespace().skip(2).collect();
    let mut by = BTreeMap::new();
    for line in lines {
        let mut words = line.split_whitespace();
        let (need, project) = (words.next().context("need")?, words.next().context("project")?);
        let letters: Vec<char> = words.filter_map(|word| word.chars().next()).collect();
        ensure!(letters.len() == askers.len(), "{line}");
        for (asker, letter) in askers.iter().zip(letters) {
            by.insert((need, project, *asker), letter);
        }
    }
    Ok(Answers { askers, by })
}

/// What placeholders stand for.
#[derive(Clone)]
struct Place {
    project: String,
    image: String,
    deployment: String,
    organization: String,
}

impl Place {
    /// Something of the kind that is nowhere.
    fn absent() -> Self {
        let id = "00000000000040008000000000000001";
        let project = "nowhere".to_owned();
        let (image, deployment) = (format!("img-{id}"), format!("dep-{id}"));
        Self { project, image, deployment, organization: "nobodys".to_owned() }
    }

    fn fill(&self, text: &str, asker: &str, fresh: &str) -> String {
        let repo = format!("{}/app", self.project);
        let path = format!("{repo}/v1");
        let password = if asker == "admin" { "" } else { PASSWORD };
        // The registry's sessions are plain UUIDs.
        let upload = "upload-00000000-0000-4000-8000-000000000003";
        let upload = if text.starts_with("/v2") { &upload[7..] } else { upload };
        let pairs = [
            ("{*path}", path.as_str()),
            ("{name}", repo.as_str()),
            ("{repo}", repo.as_str()),
            ("{project}", self.project.as_str()),
            ("{image}", self.image.as_str()),
            ("{deployment}", self.deployment.as_str()),
            ("{organization}", self.organization.as_str()),
            ("{reference}", "v1"),
            ("{fresh}", fresh),
            ("{password}", password),
            ("{uuid}", "00000000-0000-4000-8000-000000000002"),
            ("{upload}", upload),
            ("{*of}", "project:"),
            ("{*grantee}", "user:nobody"),
            ("{*who}", "address:192.0.2.7"),
            ("{*key}", "blobs/none"),
            ("{version}", "no-such"),
            ("{instance}", "no-such"),
            ("{tag}", "no-such"),
            ("{token}", "no-such"),
            ("{session}", "no-such"),
            ("{passkey}", "no-such"),
            ("{user}", "no-such"),
            ("{group}", "no-such"),
            ("{robot}", "no-such"),
            ("{rule}", "no-such"),
            ("{agent}", "no-such"),
            ("{warm_up}", "no-such"),
            ("{node}", "99"),
            ("{part}", "0"),
            ("{first}", "99"),
        ];
        pairs.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }
}

struct World {
    node: Node,
    agent: Agent,
    layer: String,
    places: BTreeMap<&'static str, Place>,
    sessions: BTreeMap<&'static str, String>,
    token: String,
    robots: BTreeMap<&'static str, String>,
    key: KeyPair,
}

impl World {
    async fn new() -> Result<Self> {
        let node = Node::start().await?;
        level_raised(&node).await?;
        let mut sessions = BTreeMap::new();
        let login = json!({ "username": "admin", "password": node.password() });
        let session: Value = node.call(Method::POST, "auth/login", &login).await?;
        sessions.insert("admin", session["token"].as_str().context("a token")?.to_owned());
        for name in PEOPLE {
            let role = if name == "auditor" { "auditor" } else { "user" };
            let made = json!({ "username": name, "password": PASSWORD, "role": role });
            let _user: Value = node.call(Method::POST, "users", &made).await?;
            let login = json!({ "username": name, "password": PASSWORD });
            let session: Value = node.call(Method::POST, "auth/login", &login).await?;
            sessions.insert(name, session["token"].as_str().context("a token")?.to_owned());
        }
        let organization = json!({ "name": "acme", "owner": "admin" });
        let _made: Value = node.call(Method::POST, "organizations", &organization).await?;
        let group = json!({ "name": "dev" });
        let _made: Value = node.call(Method::POST, "organizations/acme/groups", &group).await?;
        put(&node, "organizations/acme/members/insider", "member").await?;
        let agent = Agent::enrol(&node, "host-1").await?;
        let (mut places, mut robots) = (BTreeMap::new(), BTreeMap::new());
        for (project, visibility) in PROJECTS {
            let wanted = match visibility {
                "inside" => {
                    json!({ "name": project, "organization": "acme", "visibility": "organization" })
                }
                other => json!({ "name": project, "visibility": other }),
            };
            let _made: Value = node.call(Method::POST, "projects", &wanted).await?;
            push_image(&node, &format!("{project}/app"), "v1", b"layer").await?;
            for (user, role) in ROLES {
                put(&node, &format!("projects/{project}/members/user:{user}"), role).await?;
            }
            let found: Value = node.get(&format!("resolve?reference={project}/app:v1")).await?;
            let image = found["image_id"].as_str().context("an id")?.to_owned();
            put(&node, &format!("images/{image}/permissions/user:granted"), "write").await?;
            let order = json!({ "reference": format!("{project}/app:v1"), "hosts": ["host-1"] });
            let order: Value = node.call(Method::POST, "deployments", &order).await?;
            let deployment = order["id"].as_str().context("an id")?.to_owned();
            let robot = json!({ "name": "ci", "scopes": ["repo:read", "repo:write"] });
            let path = format!("projects/{project}/robots");
            let robot: Value = node.call(Method::POST, &path, &robot).await?;
            robots.insert(project, robot["secret"].as_str().context("a secret")?.to_owned());
            let place = Place {
                project: project.to_owned(),
                image,
                deployment,
                organization: "acme".to_owned(),
            };
            places.insert(project, place);
        }
        let url = format!("{}/api/v1/user/tokens", node.url);
        let token = node.http.post(url).bearer_auth(&sessions["keeper"]);
        let token: Value = read(token.json(&json!({ "name": "reads" })).send().await?).await?;
        let token = token["token"].as_str().context("a token")?.to_owned();
        let key = KeyPair::load_or_create(&node.path().join("node/key"))?;
        let layer = sha256(b"layer");
        Ok(Self { node, agent, layer, places, sessions, token, robots, key })
    }

    fn with_credentials(
        &self,
        request: RequestBuilder,
        asker: &str,
        project: &str,
    ) -> Result<RequestBuilder> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(match asker {
            "nobody" => request,
            "token" => request.bearer_auth(&self.token),
            "robot" => {
                request.basic_auth(format!("robot${project}+ci"), Some(&self.robots[project]))
            }
            "agent" => request.bearer_auth(self.agent.token()?),
            "node" => {
                let cluster = &self.agent.enrolment.cluster;
                request.bearer_auth(signed("shoal-node+jwt", &self.key, cluster, now, now + 100))
            }
            person => request.bearer_auth(&self.sessions[person]),
        })
    }

    /// Another session, for who ends it.
    async fn login(&self, name: &str) -> Result<String> {
        let password = if name == "admin" { self.node.password() } else { PASSWORD };
        let login = json!({ "username": name, "password": password });
        let session: Value = self.node.call(Method::POST, "auth/login", &login).await?;
        Ok(session["token"].as_str().context("a token")?.to_owned())
    }

    /// Sends a row's request and gives what is answered. What succeeds may be a stream without an
    /// end, and is not read.
    async fn ask(&self, row: &Row, asker: &str, project: &str, place: &Place) -> Result<Answer> {
        static FRESH: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = FRESH.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let fresh = format!("{}/new-{number}", place.project);
        let mut place = place.clone();
        if row.need == "gone" && place.image != Place::absent().image {
            // By the session of the matrix: others of the administrator's end on the way.
            let create = self.node.http.post(format!("{}/api/v1/images", self.node.url));
            let create = create.bearer_auth(&self.sessions["admin"]);
            let image: Value = read(create.json(&json!({ "name": fresh })).send().await?).await?;
            place.image = image["id"].as_str().context("an id")?.to_owned();
        }
        let layer =
            if row.method == Method::DELETE { sha256(b"no such") } else { self.layer.clone() };
        let mut path = row.path.to_owned();
        if row.method == Method::DELETE && (row.need == "delete" || row.path.contains("{*of}")) {
            path = path.replace("{reference}", "no-such").replace("{*path}", "{repo}/no-such");
        }
        path = path.replace("{*of}", "project:{project}").replace("{digest}", &layer);
        path = match row.path {
            "/api/v1/resolve" => format!("{path}?reference={{repo}}:v1"),
            "/api/images/search" => format!("{path}?q=app"),
            _ => path,
        };
        let path = place.fill(&path, asker, &fresh);
        let request =
            self.node.http.request(row.method.clone(), format!("{}{path}", self.node.url));
        let request = match self.sessions.contains_key(asker) && path == LOGOUT {
            true => request.bearer_auth(self.login(asker).await?),
            false => self.with_credentials(request, asker, project)?,
        };
        let body = if asker == "admin" {
            row.body.replace("{password}", self.node.password())
        } else {
            row.body.to_owned()
        };
        let request = match body.as_str() {
            "" => request,
            "form" => {
                let form = format!("grant_type=password&username=stranger&password={PASSWORD}");
                request.header("content-type", "application/x-www-form-urlencoded").body(form)
            }
            body => {
                let body = place.fill(body, asker, &fresh);
                request.header("content-type", "application/json").body(body)
            }
        };
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok());
        let is_json = kind.is_some_and(|kind| kind == "application/json");
        let body = if status < 300 && !is_json { String::new() } else { response.text().await? };
        let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
        let method = row.method.as_str();
        let undocumented = CONTRACT.check_answer(method, &path, status, kind, body.as_bytes());
        let undocumented = undocumented.err().map(|error| format!("{error:#}"));
        let body = if status < 300 { String::new() } else { body };
        Ok(Answer { status, headers, body, place, undocumented })
    }
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
    place: Place,
    /// Why it is not what the document of the API says.
    undocumented: Option<String>,
}

impl Answer {
    /// With nothing in it that differs between two places by right.
    fn plain(&self) -> (u16, BTreeSet<String>, String) {
        let Place { project, image, deployment, organization } = &self.place;
        let names = [project, image, deployment, organization];
        let hide = |text: &str| {
            names.iter().fold(text.to_owned(), |text, name| text.replace(name.as_str(), "~"))
        };
        let headers = self.headers.iter().filter(|(name, _)| {
            !["date", "x-request-id", "content-length"].contains(&name.as_str())
        });
        let headers = headers.map(|(name, value)| hide(&format!("{name}: {value:?}"))).collect();
        let mut body: Value = serde_json::from_str(&self.body).unwrap_or(json!(self.body));
        if let Some(object) = body.as_object_mut() {
            object.remove("request_id");
        }
        (self.status, headers, hide(&body.to_string()))
    }

    fn code(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        let code = body["code"].as_str().or(body["errors"][0]["code"].as_str());
        code.unwrap_or_default().to_owned()
    }

    /// The letter of the table that it is; `?` is none.
    fn letter(&self, allowed: &[u16]) -> char {
        let hidden = [
            "NAME_UNKNOWN",
            "image_not_found",
            "project_not_found",
            "organization_not_found",
            "deployment_not_found",
        ];
        let hides = hidden.contains(&self.code().as_str());
        match self.status {
            status if allowed.contains(&status) && !hides => 'y',
            401 => '1',
            403 => '3',
            404 if hides => '4',
            _ => '?',
        }
    }
}

async fn put(node: &Node, path: &str, role: &str) -> Result<()> {
    let _member: Value = node.call(Method::PUT, path, &json!({ "role": role })).await?;
    Ok(())
}

#[test]
fn every_route_of_the_router_has_a_row_and_every_row_a_route() -> Result<()> {
    let routes = shoal_node::http::routes().list();
    let routes: Vec<(String, String)> =
        routes.into_iter().map(|route| (route.method.to_owned(), route.path)).collect();
    let rows: Vec<(String, String)> =
        rows()?.iter().map(|row| (row.method.to_string(), row.path.to_owned())).collect();
    for route in &routes {
        ensure!(rows.contains(route), "matrix/rows.txt does not say who may {route:?}");
    }
    for row in &rows {
        ensure!(routes.contains(row), "there is no route {row:?} any more");
    }
    ensure!(rows.len() == routes.len() && routes.len() > 90, "{} rows", rows.len());
    Ok(())
}

/// What is wrong with one answer, if anything.
async fn tried(
    world: &World,
    row: &Row,
    asker: &str,
    project: &'static str,
    expected: char,
) -> Result<Option<String>> {
    let answer = world.ask(row, asker, project, &world.places[project]).await?;
    if let Some(why) = answer.undocumented {
        return Ok(Some(format!("{asker}: {why}")));
    }
    let is_v2 = row.path.starts_with("/v2");
    let conceals = expected == '4';
    let expected = match expected {
        // The REST API knows whom it answers; the registry answers everyone what is public.
        'y' if asker == "nobody" && !is_v2 && row.need != "open" => '1',
        // Who wants to write to what it may not see is told the same as for what is not there.
        '4' if is_v2 && matches!(row.need, "push" | "delete") => '3',
        // There is always a list of referrers, an empty one where nothing is or may be seen.
        '4' if row.path.contains("/referrers/") => 'y',
        expected => expected,
    };
    let found = answer.letter(&row.allowed);
    let what = format!("{asker}: {} {} in {project}", row.method, row.path);
    if found != expected {
        let Answer { status, body, .. } = answer;
        return Ok(Some(format!("{what}: {found} ({status} {body}) instead of {expected}")));
    }
    // A name that is free is there for everyone to take.
    if conceals && !matches!((is_v2, row.need), (_, "new") | (true, "push")) {
        let absent = world.ask(row, asker, project, &Place::absent()).await?;
        let (there, nowhere) = (answer.plain(), absent.plain());
        if there != nowhere {
            return Ok(Some(format!("{what}: {there:?} tells more than {nowhere:?}")));
        }
    }
    Ok(None)
}

#[tokio::test(flavor = "multi_thread")]
async fn everyone_gets_what_the_table_says_and_learns_no_more() -> Result<()> {
    let (world, rows, answers) = (Box::pin(World::new()).await?, rows()?, answers()?);
    push_blob(&world.node, "open/app", b"another").await?;
    let mut tries = Vec::new();
    for row in &rows {
        for asker in &answers.askers {
            for (project, visibility) in PROJECTS {
                let wanted = |visibility| answers.by.get(&(row.need, visibility, *asker));
                match (wanted("any"), wanted(visibility)) {
                    (Some(letter), None) if project == "shut" => {
                        tries.push((row, *asker, project, *letter));
                    }
                    (Some(_), None) => {}
                    (None, Some(letter)) => tries.push((row, *asker, project, *letter)),
                    _ => bail!("answers.txt does not say who has {} for {visibility}", row.need),
                }
            }
        }
    }
    let count = tries.len();
    let tried = stream::iter(tries)
        .map(|(row, asker, project, letter)| tried(&world, row, asker, project, letter));
    let found: Vec<Result<Option<String>>> = tried.buffer_unordered(AT_ONCE).collect().await;
    let found = found.into_iter().filter_map(Result::transpose).collect::<Result<Vec<String>>>()?;
    let shown = found.iter().take(SHOWN_MAX).map(String::as_str).collect::<Vec<_>>().join("\n");
    ensure!(found.is_empty(), "{} of {count} answers are wrong:\n{shown}", found.len());
    ensure!(count > 2000, "{count} tries only");
    world.node.server.stop().await
}
