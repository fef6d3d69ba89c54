//! The registry mirror of an agent lets nobody have what a node would not give them, whatever lies
//! in the host's cache; docker, podman and containerd log in there; and what was allowed goes on
//! while no node answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::{Agent, Node, Operator, Storage};
use shoal_tests::docker::Docker;
use shoal_tests::host::Network;
use shoal_tests::process::{run, run_text};
use shoal_tests::sample::{self, ContainerImage};

const LAYERS: usize = 2;
const LAYER_BYTES: usize = 1 << 20;
const PRIVATE: &str = "shop/app";
const PUBLIC: &str = "open/app";
const REVOKED_DEADLINE: Duration = Duration::from_secs(60);
/// A node's word holds for as long in this test.
const RIGHTS: &str = "rights_seconds = 1\nrights_offline_seconds = 600\n";

/// A node, and an agent on a host of its own; one image is private, one public.
struct Stage {
    folder: PathBuf,
    network: Network,
    node: Node,
    agent: Agent,
    admin: String,
    /// `NAME:PASSWORD` of one who may pull the private image, and of one who may not.
    carol: String,
    mallory: String,
    private: ContainerImage,
    public: ContainerImage,
    _temporary: tempfile::TempDir,
}

/// What a request is sent with.
#[derive(Debug, Clone)]
enum As {
    Nobody,
    Login(String),
    Header(String),
}

impl Stage {
    fn set() -> Result<Self> {
        let temporary = tempfile::tempdir()?;
        let folder = temporary.path().to_owned();
        let network = Network::create(1)?;
        let storage = Storage::Folder(folder.join("storage"));
        let at = folder.join("node-1");
        let mut node = Node::prepare(network.hub(), &at, "node-1", "10.77.0.1", &storage)?;
        let admin = format!("admin:{}", node.init()?);
        node.start()?;
        let password = admin.trim_start_matches("admin:");
        let operator = Operator::login(network.hub(), &folder, &node, password)?;
        let person = |name: &str| -> Result<String> {
            let made = operator.json(&["user", "create", name])?;
            Ok(format!("{name}:{}", made["password"].as_str().context("a password")?))
        };
        let (carol, mallory) = (person("carol")?, person("mallory")?);
        let mut agent = Agent::prepare(network.host(0), &folder.join("agent-1"), "agent-1")?;
        agent.set_mirror(RIGHTS)?;
        agent.join(&node, &operator.token("agent")?)?;
        agent.start()?;
        let private = sample::container(&folder, 31, LAYERS, LAYER_BYTES)?;
        let public = sample::container(&folder, 32, LAYERS, LAYER_BYTES)?;
        let _temporary = temporary;
        let stage = Self {
            folder,
            network,
            node,
            agent,
            admin,
            carol,
            mallory,
            private,
            public,
            _temporary,
        };
        for (name, image) in [(PRIVATE, &stage.private), (PUBLIC, &stage.public)] {
            let mut push = stage.network.hub().command("skopeo");
            push.args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"]);
            push.args(["--dest-tls-verify=false", "--dest-creds", &stage.admin]);
            push.arg(format!("oci:{}:latest", image.layout.display()));
            push.arg(format!("docker://{}/{name}:v1", stage.node.registry()));
            run(push)?;
        }
        stage.api("PUT", "projects/open", r#"{"visibility":"public"}"#)?;
        stage.admit_carol()?;
        Ok(stage)
    }

    fn api(&self, method: &str, path: &str, body: &str) -> Result<()> {
        let mut curl = self.network.hub().command("curl");
        curl.args(["-ksSf", "--max-time", "20", "-u", &self.admin, "-X", method]);
        curl.args(["-H", "content-type: application/json", "-d", body]);
        curl.arg(format!("{}/api/v1/{path}", self.node.url()));
        run(curl).map(drop)
    }

    fn admit_carol(&self) -> Result<()> {
        self.api("PUT", "projects/shop/members/user:carol", r#"{"role":"guest"}"#)
    }

    /// Asks the mirror; gives the status, the headers and where the body lies.
    fn ask(&self, who: &As, path: &str, more: &[&str]) -> Result<(u16, String, PathBuf)> {
        let body = self.folder.join("body");
        // What an answer without a body leaves must not be an older one's.
        fs::write(&body, "")?;
        let mut curl = self.agent.host().command("curl");
        curl.args(["-sS", "--max-time", "60", "--path-as-is", "-D", "-", "-o"]).arg(&body);
        match who {
            As::Nobody => {}
            As::Login(login) => drop(curl.args(["-u", login])),
            As::Header(text) => drop(curl.args(["-H", &format!("authorization: {text}")])),
        }
        curl.args(more).arg(format!("http://{}{path}", Agent::MIRROR));
        let headers = run_text(curl)?;
        let status = headers.split_whitespace().nth(1).context("a status")?.parse()?;
        Ok((status, headers.to_lowercase(), body))
    }

    fn status(&self, who: &As, path: &str) -> Result<u16> {
        Ok(self.ask(who, path, &[])?.0)
    }

    /// The token that the mirror gives for a login, as docker asks for it.
    fn token(&self, who: &As) -> Result<(u16, String)> {
        let (status, _, body) = self.ask(who, "/v2/token?service=x&account=y", &[])?;
        let text = fs::read_to_string(body)?;
        let answer: serde_json::Value = serde_json::from_str(&text).context(text)?;
        Ok((status, answer["token"].as_str().unwrap_or_default().to_owned()))
    }

    /// What the private image has, by digest, through the public one's name.
    fn mixed(&self) -> Vec<String> {
        let mut paths = self.paths(PUBLIC, &self.private);
        paths.retain(|path| !path.ends_with("/v1"));
        paths
    }

    /// By tag, by digest, and each of its blobs.
    fn paths(&self, name: &str, image: &ContainerImage) -> Vec<String> {
        let mut paths = vec![
            format!("/v2/{name}/manifests/v1"),
            format!("/v2/{name}/manifests/{}", image.manifest_digest),
        ];
        paths.extend(image.layer_digests.iter().map(|one| format!("/v2/{name}/blobs/{one}")));
        paths
    }

    /// Those of the paths that are answered otherwise than `expected`.
    fn not(&self, expected: u16, who: &As, paths: &[String]) -> Result<Vec<String>> {
        let mut odd = Vec::new();
        for path in paths {
            let status = self.status(who, path)?;
            if status != expected {
                odd.push(format!("{who:?} {path}: {status}"));
            }
        }
        Ok(odd)
    }
}

#[test]
fn a_hosts_cache_gives_nobody_what_a_node_would_not() -> Result<()> {
    let mut stage = Stage::set()?;
    let outcome = attacks(&mut stage);
    let log = stage.agent.process()?.log_tail();
    outcome.with_context(|| log)
}

fn attacks(stage: &mut Stage) -> Result<()> {
    let carol = As::Login(stage.carol.clone());
    let mallory = As::Login(stage.mallory.clone());
    let private = stage.paths(PRIVATE, &stage.private);
    let public = stage.paths(PUBLIC, &stage.public);
    // It is all in the host's cache from here on, and its layers came whole.
    ensure!(stage.not(200, &carol, &private)?.is_empty());
    let (_, _, body) = stage.ask(&carol, private.last().context("a layer")?, &[])?;
    let mut sum = Command::new("sha256sum");
    sum.arg(body);
    let layer = stage.private.layer_digests.last().context("a layer")?;
    ensure!(run_text(sum)?.starts_with(layer.trim_start_matches("sha256:")));
    let (status, carols) = stage.token(&carol)?;
    ensure!(
        status == 200
            && stage.not(200, &As::Header(format!("Bearer {carols}")), &private)?.is_empty()
    );
    for who in [&As::Nobody, &carol, &mallory] {
        let odd = stage.not(200, who, &public)?;
        ensure!(odd.is_empty(), "public, and yet: {odd:?}");
    }

    // Nobody, by whatever it calls itself, is asked to log in: here, for this repository.
    let (status, nobodys) = stage.token(&As::Nobody)?;
    ensure!(status == 200, "nobody gets a token, too: {status}");
    let bearer = |token: &str| As::Header(format!("Bearer {token}"));
    let nobody = [As::Nobody, bearer(&nobodys)];
    let wrong = As::Login("carol:wrong".into());
    let mut forged = carols.clone();
    forged.replace_range(forged.len() - 4.., "AAAA");
    let others = [
        wrong.clone(),
        bearer(&forged),
        bearer("shoal-mirror-"),
        bearer("eyJhbGciOiJub25lIn0.e30."),
        As::Header("Basic not-base64".into()),
    ];
    for who in nobody.iter().chain(&others) {
        let odd = stage.not(401, who, &private)?;
        ensure!(odd.is_empty(), "{odd:?}");
    }
    let (_, headers, _) = stage.ask(&As::Nobody, &private[0], &[])?;
    let realm = format!("www-authenticate: bearer realm=\"http://{}/v2/token\"", Agent::MIRROR);
    ensure!(
        headers.contains(&realm) && headers.contains("scope=\"repository:shop/app:pull\""),
        "{headers}"
    );
    ensure!(headers.matches("www-authenticate").count() == 1, "{headers}");
    ensure!(stage.token(&wrong)?.0 == 401, "a token for a wrong password");
    ensure!(stage.token(&bearer(&carols))?.0 == 401, "a token for a token");

    // Whoever may not see it hears what it would hear if there was nothing.
    let nothing = stage.paths("shop/nothing", &stage.private);
    for (who, expected) in [(&As::Nobody, 401), (&mallory, 404)] {
        let odd =
            [stage.not(expected, who, &private)?, stage.not(expected, who, &nothing)?].concat();
        ensure!(odd.is_empty(), "{odd:?}");
    }
    // By a digest that is known, through a repository that may be read; also for who may have it
    // elsewhere.
    let mixed = stage.mixed();
    for who in [&As::Nobody, &mallory, &carol] {
        let odd = stage.not(if matches!(who, As::Nobody) { 401 } else { 404 }, who, &mixed)?;
        // Nobody may hear either: it depends on which right was remembered.
        let served: Vec<_> = odd.iter().filter(|text| text.ends_with(": 200")).collect();
        ensure!(served.is_empty(), "{served:?}");
    }
    let digest = &stage.private.manifest_digest;
    for path in [
        format!("/v2/open/app/../../shop/app/manifests/{digest}"),
        format!("/v2/open/app/%2e%2e/%2e%2e/shop/app/manifests/{digest}"),
        format!("/v2//shop/app/manifests/{digest}"),
        format!("/v2/shop/app/manifests/{digest}?ns=open"),
        format!("/v2/SHOP/app/manifests/{digest}"),
        format!("/v2/open/app/manifests/../../../shop/app/manifests/{digest}"),
    ] {
        for who in [&As::Nobody, &mallory] {
            let status = stage.status(who, &path)?;
            ensure!(matches!(status, 400 | 401 | 404), "{who:?} {path}: {status}");
        }
        // Two logins at once are none.
        let two = ["-H", "authorization: Basic YTpi"];
        ensure!(stage.ask(&carol, &private[0], &two)?.0 == 401);
    }
    lists(stage, &carol, &mallory)?;
    revoked(stage, &carol, &carols, &private)?;
    without_nodes(stage, &private, &public)
}

/// Tags and referrers come from a node, to whom it gives them.
fn lists(stage: &Stage, carol: &As, mallory: &As) -> Result<()> {
    let tags = format!("/v2/{PRIVATE}/tags/list");
    let referrers = format!("/v2/{PRIVATE}/referrers/{}", stage.private.manifest_digest);
    for (path, list, kind) in [
        (&tags, "tags", "application/json"),
        (&referrers, "manifests", "application/vnd.oci.image.index.v1+json"),
    ] {
        let (status, headers, body) = stage.ask(carol, path, &[])?;
        ensure!(status == 200 && headers.contains(&format!("content-type: {kind}")), "{headers}");
        let text = fs::read_to_string(body)?;
        let answer: serde_json::Value = serde_json::from_str(&text).context(text)?;
        let found = answer[list].as_array().map(Vec::len);
        ensure!(found == Some(usize::from(list == "tags")), "{answer}");
        // Who names a registry wants that one's list.
        ensure!(stage.status(carol, &format!("{path}?ns=docker.io"))? == 404, "{path}");
        for who in [&As::Nobody, &As::Login("carol:wrong".into())] {
            let (status, headers, _) = stage.ask(who, path, &[])?;
            ensure!(status == 401 && headers.contains("www-authenticate"), "{who:?}: {headers}");
        }
    }
    ensure!(stage.status(mallory, &tags)? == 404, "another's tags");
    let (status, _, body) = stage.ask(mallory, &referrers, &[])?;
    let none = fs::read_to_string(body)?.contains("\"manifests\":[]");
    ensure!(status == 200 && none, "what may not be seen is as what is not there: {status}");
    ensure!(stage.status(&As::Nobody, &format!("/v2/{PUBLIC}/tags/list?n=0"))? == 200);
    let bad = format!("/v2/{PUBLIC}/tags/list?n=many");
    ensure!(stage.status(&As::Nobody, &bad)? == 400, "a node refuses such a number");
    Ok(())
}

fn revoked(stage: &mut Stage, carol: &As, token: &str, private: &[String]) -> Result<()> {
    stage.api("DELETE", "projects/shop/members/user:carol", "")?;
    let token = As::Header(format!("Bearer {token}"));
    wait_for("the right to end at the mirror", REVOKED_DEADLINE, || {
        let left = [stage.not(404, carol, private)?, stage.not(404, &token, private)?].concat();
        Ok(left.is_empty().then_some(()))
    })?;
    // Nor does it come back when no node can be asked.
    stage.node.process()?.kill()?;
    let odd = stage.not(503, carol, private)?;
    ensure!(odd.is_empty(), "{odd:?}");
    stage.node.start()?;
    stage.admit_carol()?;
    wait_for("the right to count again", REVOKED_DEADLINE, || {
        Ok(stage.not(200, carol, private)?.is_empty().then_some(()))
    })
}

/// Who was let in goes on, and so does what is public. Nobody else is let in.
fn without_nodes(stage: &mut Stage, private: &[String], public: &[String]) -> Result<()> {
    let carol = As::Login(stage.carol.clone());
    let mallory = As::Login(stage.mallory.clone());
    stage.node.process()?.kill()?;
    for (expected, who, paths) in [
        (200, &carol, private),
        (503, &As::Nobody, private),
        (503, &mallory, private),
        (401, &As::Login("carol:wrong".into()), private),
        (200, &As::Nobody, public),
        (200, &mallory, public),
    ] {
        let odd = stage.not(expected, who, paths)?;
        // Credentials that were wrong a moment ago may be forgotten by now.
        let odd: Vec<_> =
            odd.iter().filter(|text| expected != 401 || !text.ends_with(": 503")).collect();
        ensure!(odd.is_empty(), "{odd:?}");
    }
    let mixed = stage.mixed();
    for who in [&As::Nobody, &mallory, &carol] {
        let odd = stage.not(503, who, &mixed)?;
        ensure!(odd.is_empty(), "{odd:?}");
    }
    // docker's way: a token for the login that was right before.
    let (status, token) = stage.token(&carol)?;
    ensure!(status == 200, "{status}");
    let odd = stage.not(200, &As::Header(format!("Bearer {token}")), private)?;
    ensure!(odd.is_empty(), "{odd:?}");
    ensure!(stage.token(&As::Login("dave:secret".into()))?.0 == 503);
    Ok(())
}

#[test]
fn docker_podman_and_containerd_log_in_at_the_mirror() -> Result<()> {
    let stage = Stage::set()?;
    let engine = Docker::start(stage.network.host(0), &stage.folder.join("docker"))?;
    let log = || engine.log_tail();
    docker(&stage, &engine).with_context(log).context("docker")?;
    containerd(&stage, &engine).with_context(log).context("containerd")?;
    podman(&stage).context("podman")
}

fn image(name: &str) -> String {
    format!("{}/{name}:v1", Agent::MIRROR)
}

fn docker(stage: &Stage, engine: &Docker) -> Result<()> {
    let login = |login: &str| {
        let (name, password) = login.split_once(':').unwrap_or_default();
        engine.docker(&["login", "--username", name, "--password", password, Agent::MIRROR])
    };
    engine.docker(&["pull", "--quiet", &image(PUBLIC)]).context("public, without a login")?;
    ensure!(engine.docker(&["pull", &image(PRIVATE)]).is_err(), "nobody pulled it");
    ensure!(login("carol:wrong").is_err(), "a wrong password let in");
    login(&stage.mallory)?;
    ensure!(engine.docker(&["pull", &image(PRIVATE)]).is_err(), "another one pulled it");
    login(&stage.carol)?;
    let private = image(PRIVATE);
    engine.docker(&["pull", "--quiet", &private])?;
    let inspect = ["image", "inspect", "--format", "{{json .RootFS.Layers}}", private.as_str()];
    let layers: Vec<String> = serde_json::from_str(&engine.docker(&inspect)?)?;
    ensure!(layers == stage.private.layer_digests, "other layers came: {layers:?}");
    Ok(())
}

fn containerd(stage: &Stage, engine: &Docker) -> Result<()> {
    let hosts = stage.folder.join("hosts");
    fs::create_dir_all(hosts.join("registry.example"))?;
    let mirror =
        format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", Agent::MIRROR);
    fs::write(hosts.join("registry.example/hosts.toml"), mirror)?;
    let hosts = hosts.display().to_string();
    let pull = |name: &str, more: &[&str]| {
        let name = format!("registry.example/{name}:v1");
        let all = ["-n", "test", "images", "pull", "--hosts-dir", &hosts];
        engine.ctr(&[&all[..], more, &[&name]].concat())
    };
    ensure!(pull(PRIVATE, &[]).is_err(), "nobody pulled it");
    ensure!(pull(PRIVATE, &["--user", &stage.mallory]).is_err(), "another one pulled it");
    pull(PUBLIC, &[]).context("public, without a login")?;
    pull(PRIVATE, &["--user", &stage.carol])?;
    let listed = engine.ctr(&["-n", "test", "images", "list"])?;
    ensure!(listed.contains(&stage.private.manifest_digest), "something else came: {listed}");
    Ok(())
}

fn podman(stage: &Stage) -> Result<()> {
    let store: &Path = &stage.folder;
    let podman = |arguments: &[&str]| {
        let mut command = stage.network.host(0).command("podman");
        command.arg("--root").arg(store.join("containers"));
        command.arg("--runroot").arg(store.join("run"));
        command.args(["--storage-driver", "vfs"]).args(arguments);
        command.env("REGISTRY_AUTH_FILE", store.join("auth.json"));
        run_text(command)
    };
    fs::write(store.join("auth.json"), "{}")?;
    let pull = |name: &str| podman(&["pull", "--quiet", "--tls-verify=false", &image(name)]);
    let login = |login: &str| {
        let (name, password) = login.split_once(':').unwrap_or_default();
        let to = ["--tls-verify=false", "-u", name, "-p", password, Agent::MIRROR];
        podman(&[&["login"], &to[..]].concat())
    };
    pull(PUBLIC).context("public, without a login")?;
    ensure!(pull(PRIVATE).is_err(), "nobody pulled it");
    ensure!(login("carol:wrong").is_err(), "a wrong password let in");
    login(&stage.mallory)?;
    ensure!(pull(PRIVATE).is_err(), "another one pulled it");
    login(&stage.carol)?;
    pull(PRIVATE).map(drop)
}
