//! Real clients that know a node by its name, as people do: they are asked for Bearer tokens, which
//! they fetch with a login, for what they are about to do. docker, containerd, podman and skopeo
//! check the certificate, and push for a person who has no rights yet, to projects that they make; and for
//! programs, with a token or as a robot, by name and by address.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use shoal_tests::cluster::Operator;
use shoal_tests::docker::Docker;
use shoal_tests::process::{run, run_text};
use shoal_tests::sample::{self, ContainerImage};
use shoal_tests::scene::Scene;

const LAYERS: usize = 3;
const LAYER_BYTES: usize = 1 << 20;
/// Somebody who is no administrator.
const PERSON: &str = "carol";

/// What a request without credentials is asked for.
fn challenge(scene: &Scene, registry: &str) -> Result<String> {
    let mut curl = scene.hub.command("curl");
    curl.args(["-sS", "--max-time", "10", "-o", "/dev/null", "-D", "-", "--cacert"]);
    curl.arg(scene.certificates.join("ca.crt")).arg(format!("https://{registry}/v2/"));
    let headers = run_text(curl)?.to_lowercase();
    let line = headers.lines().find_map(|line| line.strip_prefix("www-authenticate: "));
    Ok(line.context("no challenge")?.trim().to_owned())
}

/// Makes the person; gives the password.
fn person(scene: &Scene) -> Result<String> {
    let operator = Operator::login(&scene.hub, &scene.folder, &scene.node, &scene.password)?;
    let made = operator.json(&["user", "create", PERSON])?;
    Ok(made["password"].as_str().context("a password")?.to_owned())
}

#[test]
fn docker_and_containerd_log_in_push_and_pull_by_name() -> Result<()> {
    let scene = Scene::set_by_name()?;
    let asked = challenge(&scene, &scene.registry)?;
    let realm = format!("bearer realm=\"https://{}/v2/token\"", scene.registry);
    ensure!(asked.starts_with(&realm), "by name it asks for {asked}");
    let asked = challenge(&scene, &scene.node.registry())?;
    ensure!(asked.starts_with("basic "), "by address it asks for {asked}");

    let image = sample::container(&scene.folder, 21, LAYERS, LAYER_BYTES)?;
    // Nobody is trusted without a certificate: shoal.test lies in a network that could be left out.
    let engine = Docker::start_trusting(&scene.hub, &scene.folder.join("docker"), &[])?;
    let secret = person(&scene)?;
    let log = || engine.log_tail();
    docker(&scene, &engine, &image, &secret).with_context(log).context("docker")?;
    containerd(&scene, &engine, &image, &secret).with_context(log).context("containerd")
}

/// The engine's classic store: layers lie unpacked, and are packed anew for each push.
fn docker(scene: &Scene, engine: &Docker, image: &ContainerImage, secret: &str) -> Result<()> {
    let driver = engine.docker(&["info", "--format", "{{.Driver}} {{.DriverStatus}}"])?;
    ensure!(driver.starts_with("vfs") && !driver.contains("snapshotter"), "{driver}");
    let name = scene.image("docker/app:v1");
    load(scene, engine, image, &name)?;
    ensure!(engine.docker(&["push", &name]).is_err(), "pushed without a login");
    let login = |password: &str| {
        engine.docker(&["login", "--username", PERSON, "--password", password, &scene.registry])
    };
    let refused = login("wrong").err().context("a wrong password let in")?;
    ensure!(format!("{refused:#}").contains("unauthorized"), "{refused:#}");
    login(secret)?;
    engine.docker(&["push", "--quiet", &name])?;
    let layers = scene.manifest("docker/app:v1")?["layers"].as_array().map(Vec::len);
    ensure!(layers == Some(LAYERS), "{layers:?} layers arrived");

    engine.docker(&["rmi", "--force", &name])?;
    engine.docker(&["logout", &scene.registry])?;
    ensure!(engine.docker(&["pull", &name]).is_err(), "a private image was pulled by a stranger");
    login(secret)?;
    engine.docker(&["pull", "--quiet", &name])?;
    ensure_layers(engine, image, &name)
}

/// Puts the image into the engine under that name.
fn load(scene: &Scene, engine: &Docker, image: &ContainerImage, name: &str) -> Result<()> {
    let archive = scene.folder.join("archive.tar").display().to_string();
    let from = format!("oci:{}:latest", image.layout.display());
    scene.skopeo(&["copy", "--quiet", &from, &format!("docker-archive:{archive}:{name}")])?;
    engine.docker(&["load", "--quiet", "--input", &archive]).map(drop)
}

fn ensure_layers(engine: &Docker, image: &ContainerImage, name: &str) -> Result<()> {
    let inspect = ["image", "inspect", "--format", "{{json .RootFS.Layers}}", name];
    let pulled: Vec<String> = serde_json::from_str(&engine.docker(&inspect)?)?;
    ensure!(pulled == image.layer_digests, "other layers came back: {pulled:?}");
    Ok(())
}

/// What containerd's client is given: the image, and what it trusts the node by.
struct ForContainerd {
    archive: String,
    /// A folder with the node's name.
    hosts: String,
    /// The authority's certificate.
    authority: String,
}

fn for_containerd(scene: &Scene, image: &ContainerImage) -> Result<ForContainerd> {
    let archive = scene.folder.join("layout.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&image.layout).arg("-cf").arg(&archive).arg(".");
    run(tar)?;
    let archive = archive.display().to_string();
    let authority = scene.certificates.join("ca.crt").display().to_string();
    let hosts = scene.folder.join("certs.d");
    let host = hosts.join(&scene.registry);
    fs::create_dir_all(&host)?;
    let server = format!("[host.\"https://{}\"]\nca = {authority:?}\n", scene.registry);
    fs::write(host.join("hosts.toml"), server)?;
    Ok(ForContainerd { archive, hosts: hosts.display().to_string(), authority })
}

/// At the node itself, by its name and by its address.
fn containerd(scene: &Scene, engine: &Docker, image: &ContainerImage, secret: &str) -> Result<()> {
    let ForContainerd { archive, hosts, authority } = for_containerd(scene, image)?;
    let user = format!("{PERSON}:{secret}");

    let ctr = |arguments: &[&str]| engine.ctr(&[&["-n", "test"], arguments].concat());
    let (by_name, by_address) =
        (scene.image("ctr/app"), format!("{}/ctr/addressed", scene.node.registry()));
    for (name, trust) in
        [(by_name, ["--hosts-dir", &hosts]), (by_address, ["--tlscacert", &authority])]
    {
        ctr(&["images", "import", "--no-unpack", "--base-name", &name, &archive])?;
        let name = format!("{name}:latest");
        ensure!(ctr(&[&["images", "push"], &trust[..], &[&name]].concat()).is_err(), "no login");
        ctr(&[&["images", "push", "--user", &user], &trust[..], &[&name]].concat())?;
        ctr(&["images", "remove", "--sync", &name])?;
        let left = ctr(&["content", "list", "--quiet"])?;
        ensure!(left.is_empty(), "there is nothing to pull: {left}");
        let pull = ["images", "pull", "--snapshotter", "native"];
        ensure!(ctr(&[&pull[..], &trust[..], &[&name]].concat()).is_err(), "no login");
        ctr(&[&pull[..], &["--user", &user], &trust[..], &[&name]].concat())?;
        let content = ctr(&["content", "list", "--quiet"])?;
        for digest in image.layer_digests.iter().chain([&image.manifest_digest]) {
            ensure!(content.contains(digest), "{name} came without {digest}: {content}");
        }
        ctr(&["images", "remove", "--sync", &name])?;
    }
    Ok(())
}

#[test]
fn a_person_pushes_a_new_project_by_name_and_nobody_else_pulls_it() -> Result<()> {
    let scene = Scene::set_by_name()?;
    let person = format!("{PERSON}:{}", person(&scene)?);
    let image = sample::container(&scene.folder, 22, LAYERS, LAYER_BYTES)?;
    let source = format!("oci:{}:latest", image.layout.display());

    let mut pull = scene.tool("podman");
    pull.args(["pull", "--quiet", &source]);
    let id = run_text(pull)?;
    let name = scene.image("by-podman/app:v1");
    scene.remote_as(&person, "podman", "push", &["--quiet", &id, &name]).context("podman")?;
    let mut remove = scene.tool("podman");
    remove.args(["rmi", "--force", &id]);
    run(remove)?;
    let pulled = scene.remote_as(&person, "podman", "pull", &["--quiet", &name])?;
    ensure!(pulled == id, "{pulled} came back, not {id}");

    // skopeo trusts what the system trusts.
    let authority = scene.certificates.join("ca.crt");
    let skopeo = |arguments: &[&str]| {
        let mut command = scene.hub.command("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"]);
        command.args(arguments).env("SSL_CERT_FILE", &authority);
        command.env("REGISTRY_AUTH_FILE", scene.folder.join("auth.json"));
        run_text(command)
    };
    let place = format!("docker://{}", scene.image("by-skopeo/app:v1"));
    let target = scene.folder.join("pulled");
    let directory = format!("dir:{}", target.display());
    skopeo(&["--dest-creds", &person, &source, &place]).context("skopeo")?;
    // A private project of this person's.
    ensure!(skopeo(&[&place, &directory]).is_err(), "a stranger pulled it");
    skopeo(&["--src-creds", &person, &place, &directory])?;
    for digest in &image.layer_digests {
        let encoded = digest.strip_prefix("sha256:").context("a sha256 digest")?;
        let mut sum = Command::new("sha256sum");
        sum.arg(target.join(encoded));
        ensure!(run_text(sum)?.starts_with(encoded), "layer {digest} came damaged");
    }
    let into = format!("docker://{}", scene.image("by-podman/second:v1"));
    skopeo(&["--src-creds", &person, "--dest-creds", &person, &place, &into])
        .context("mounting from one project to another")?;
    Ok(())
}

/// `NAME:SECRET` of programs: one with an administrator's token, one whose token only reads, and a robot
/// that is held to the repository tools/by-robot.
struct Programs {
    person: String,
    reader: String,
    /// Of the reader's token.
    reading: String,
    robot: String,
}

/// Makes the project tools, and programs that may do something there.
fn programs(operator: &Operator) -> Result<Programs> {
    let text = |value: &serde_json::Value, key: &str| {
        value[key].as_str().map(str::to_owned).with_context(|| format!("no {key}"))
    };
    operator.run(&["project", "create", "tools"])?;
    let both = ["--scope", "repo:read", "--scope", "repo:write"];
    let token = operator.json(&[&["access-token", "create", "ci"], &both[..]].concat())?;
    let reading = operator.json(&["access-token", "create", "reads", "--scope", "repo:read"])?;
    let held = ["--repository", "tools/by-robot"];
    let robot =
        operator.json(&[&["robot", "create", "tools", "ci"], &both[..], &held[..]].concat())?;
    Ok(Programs {
        person: format!("admin:{}", text(&token, "token")?),
        reader: format!("admin:{}", text(&reading, "token")?),
        reading: text(&reading, "id")?,
        robot: format!("{}:{}", text(&robot, "name")?, text(&robot, "secret")?),
    })
}

#[test]
fn programs_push_and_pull_with_a_token_and_as_a_robot_by_name_and_by_address() -> Result<()> {
    let scene = Scene::set_by_name()?;
    let operator = Operator::login(&scene.hub, &scene.folder, &scene.node, &scene.password)?;
    let Programs { person, reader, reading, robot } = programs(&operator)?;
    let image = sample::container(&scene.folder, 23, LAYERS, LAYER_BYTES)?;
    let mut pull = scene.tool("podman");
    pull.args(["pull", "--quiet", &format!("oci:{}:latest", image.layout.display())]);
    let id = run_text(pull)?;
    let podman = |who: &str, verb: &str, arguments: &[&str]| {
        scene.remote_as(who, "podman", verb, &[&["--quiet"], arguments].concat())
    };
    for (host, by) in [(scene.registry.clone(), "name"), (scene.node.registry(), "address")] {
        for (who, repository) in [(&person, "by-person"), (&robot, "by-robot")] {
            let what = format!("{repository}, by {by}");
            let name = format!("{host}/tools/{repository}:{by}");
            podman(who, "push", &[&id, &name]).with_context(|| what.clone())?;
            for puller in [who, &reader] {
                // What is here already is asked for all the same.
                let pulled = podman(puller, "pull", &[&name]);
                ensure!(pulled.with_context(|| what.clone())? == id, "{what}: another image");
            }
        }
        // Less than their makers: one repository, and no pushes.
        let other = format!("{host}/tools/other:{by}");
        ensure!(podman(&robot, "push", &[&id, &other]).is_err(), "a robot went elsewhere by {by}");
        ensure!(podman(&reader, "push", &[&id, &other]).is_err(), "a reader pushed by {by}");
        let private = format!("{host}/tools/by-person:{by}");
        let got = podman(&robot, "pull", &[&private]);
        ensure!(got.is_err(), "a robot pulled what it is not for by {by}");
    }
    // What is deleted is no good any more, at once.
    operator.run(&["access-token", "delete", &reading])?;
    operator.run(&["robot", "delete", "tools", "ci"])?;
    for (host, by) in [(scene.registry.clone(), "name"), (scene.node.registry(), "address")] {
        let name = format!("{host}/tools/by-robot:{by}");
        for gone in [&reader, &robot] {
            let got = podman(gone, "pull", &[&name]);
            ensure!(got.is_err(), "what was deleted pulled by {by}");
        }
    }
    Ok(())
}

#[test]
fn engines_push_and_pull_with_a_token_and_as_a_robot_by_name_and_by_address() -> Result<()> {
    let scene = Scene::set_by_name()?;
    let operator = Operator::login(&scene.hub, &scene.folder, &scene.node, &scene.password)?;
    let programs = programs(&operator)?;
    // By its address, docker trusts the node as it does by its name.
    let trusted = scene.folder.join("etc-docker/certs.d").join(scene.node.registry());
    fs::create_dir_all(&trusted)?;
    fs::copy(scene.certificates.join("ca.crt"), trusted.join("ca.crt"))?;
    let image = sample::container(&scene.folder, 24, LAYERS, LAYER_BYTES)?;
    let engine = Docker::start_trusting(&scene.hub, &scene.folder.join("docker"), &[])?;
    let log = || engine.log_tail();
    docker_as_programs(&scene, &engine, &image, &programs).with_context(log).context("docker")?;
    let outcome = containerd_as_programs(&scene, &engine, &image, &programs);
    outcome.with_context(log).context("containerd")
}

fn docker_as_programs(
    scene: &Scene,
    engine: &Docker,
    image: &ContainerImage,
    programs: &Programs,
) -> Result<()> {
    const LOADED: &str = "loaded/app:v1";
    load(scene, engine, image, LOADED)?;
    for (host, by) in [(scene.registry.clone(), "name"), (scene.node.registry(), "address")] {
        let login = |who: &str| {
            let (name, secret) = who.split_once(':').context("a name and a secret")?;
            engine.docker(&["login", "--username", name, "--password", secret, &host])
        };
        let push = |repository: &str| {
            let name = format!("{host}/tools/{repository}:{by}");
            engine.docker(&["tag", LOADED, &name])?;
            engine.docker(&["push", "--quiet", &name])
        };
        let pull = |repository: &str| {
            let name = format!("{host}/tools/{repository}:{by}");
            engine.docker(&["rmi", "--force", &name])?;
            engine.docker(&["pull", "--quiet", &name])?;
            ensure_layers(engine, image, &name)
        };
        ensure!(push("by-person").is_err(), "pushed without a login, by {by}");
        let wrong = format!("admin:{}x", programs.person.trim_start_matches("admin:"));
        ensure!(login(&wrong).is_err(), "a wrong token let in, by {by}");
        for (who, repository) in [(&programs.person, "by-person"), (&programs.robot, "by-robot")] {
            let what = format!("{repository}, by {by}");
            login(who).with_context(|| what.clone())?;
            push(repository).with_context(|| what.clone())?;
            pull(repository).with_context(|| what.clone())?;
        }
        // As the robot that was logged in last.
        ensure!(push("other").is_err(), "a robot went elsewhere, by {by}");
        ensure!(pull("by-person").is_err(), "a robot pulled what it is not for, by {by}");
        login(&programs.reader)?;
        ensure!(push("by-person").is_err(), "a reader pushed, by {by}");
        pull("by-person").with_context(|| format!("a reader, by {by}"))?;
        engine.docker(&["logout", &host])?;
    }
    Ok(())
}

fn containerd_as_programs(
    scene: &Scene,
    engine: &Docker,
    image: &ContainerImage,
    programs: &Programs,
) -> Result<()> {
    let ForContainerd { archive, hosts, authority } = for_containerd(scene, image)?;
    let ctr = |arguments: &[&str]| engine.ctr(&[&["-n", "programs"], arguments].concat());
    for (host, trust) in [
        (scene.registry.clone(), ["--hosts-dir", &hosts]),
        (scene.node.registry(), ["--tlscacert", &authority]),
    ] {
        let import = |repository: &str| {
            let name = format!("{host}/tools/{repository}");
            ctr(&["images", "import", "--no-unpack", "--base-name", &name, &archive])?;
            anyhow::Ok(format!("{name}:latest"))
        };
        let push = |who: &str, name: &str| {
            ctr(&[&["images", "push", "--user", who], &trust[..], &[name]].concat())
        };
        let pull = |who: &str, name: &str| {
            let pull = ["images", "pull", "--snapshotter", "native", "--user", who];
            ctr(&[&pull[..], &trust[..], &[name]].concat())
        };
        for (who, repository) in [(&programs.person, "by-person"), (&programs.robot, "by-robot")] {
            let name = import(repository)?;
            push(who, &name).with_context(|| name.clone())?;
            for puller in [who, &programs.reader] {
                ctr(&["images", "remove", "--sync", &name])?;
                pull(puller, &name).with_context(|| name.clone())?;
                let content = ctr(&["content", "list", "--quiet"])?;
                ensure!(content.contains(&image.manifest_digest), "{name} did not come: {content}");
            }
            ctr(&["images", "remove", "--sync", &name])?;
        }
        let other = import("other")?;
        // What is there already nobody sends again; this never is.
        ensure!(push(&programs.reader, &other).is_err(), "a reader pushed {other}");
        ensure!(push(&programs.robot, &other).is_err(), "a robot went to {other}");
        ctr(&["images", "remove", "--sync", &other])?;
        let private = format!("{host}/tools/by-person:latest");
        ensure!(pull(&programs.robot, &private).is_err(), "a robot pulled {private}");
    }
    Ok(())
}
