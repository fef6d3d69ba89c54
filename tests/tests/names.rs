//! Real clients that know a node by its name, as people do: they are asked for Bearer tokens, which
//! they fetch with a login, for what they are about to do. docker and containerd check the
//! certificate.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use shoal_tests::docker::Docker;
use shoal_tests::process::{run, run_text};
use shoal_tests::sample::{self, ContainerImage};
use shoal_tests::scene::Scene;

const LAYERS: usize = 3;
const LAYER_BYTES: usize = 1 << 20;

/// What a request without credentials is asked for.
fn challenge(scene: &Scene, registry: &str) -> Result<String> {
    let mut curl = scene.hub.command("curl");
    curl.args(["-sS", "--max-time", "10", "-o", "/dev/null", "-D", "-", "--cacert"]);
    curl.arg(scene.certificates.join("ca.crt")).arg(format!("https://{registry}/v2/"));
    let headers = run_text(curl)?.to_lowercase();
    let line = headers.lines().find_map(|line| line.strip_prefix("www-authenticate: "));
    Ok(line.context("no challenge")?.trim().to_owned())
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
    docker(&scene, &engine, &image).with_context(|| engine.log_tail()).context("docker")?;
    containerd(&scene, &engine, &image).with_context(|| engine.log_tail()).context("containerd")
}

/// The engine's classic store: layers lie unpacked, and are packed anew for each push.
fn docker(scene: &Scene, engine: &Docker, image: &ContainerImage) -> Result<()> {
    let driver = engine.docker(&["info", "--format", "{{.Driver}} {{.DriverStatus}}"])?;
    ensure!(driver.starts_with("vfs") && !driver.contains("snapshotter"), "{driver}");
    let name = scene.image("docker/app:v1");
    let archive = scene.folder.join("archive.tar").display().to_string();
    let from = format!("oci:{}:latest", image.layout.display());
    scene.skopeo(&["copy", "--quiet", &from, &format!("docker-archive:{archive}:{name}")])?;
    engine.docker(&["load", "--quiet", "--input", &archive])?;

    ensure!(engine.docker(&["push", &name]).is_err(), "pushed without a login");
    let login = |password: &str| {
        engine.docker(&["login", "--username", "admin", "--password", password, &scene.registry])
    };
    let refused = login("wrong").err().context("a wrong password let in")?;
    ensure!(format!("{refused:#}").contains("unauthorized"), "{refused:#}");
    login(&scene.password)?;
    engine.docker(&["push", "--quiet", &name])?;
    let layers = scene.manifest("docker/app:v1")?["layers"].as_array().map(Vec::len);
    ensure!(layers == Some(LAYERS), "{layers:?} layers arrived");

    engine.docker(&["rmi", "--force", &name])?;
    engine.docker(&["logout", &scene.registry])?;
    ensure!(engine.docker(&["pull", &name]).is_err(), "a private image was pulled by a stranger");
    login(&scene.password)?;
    engine.docker(&["pull", "--quiet", &name])?;
    let inspect = ["image", "inspect", "--format", "{{json .RootFS.Layers}}", name.as_str()];
    let pulled: Vec<String> = serde_json::from_str(&engine.docker(&inspect)?)?;
    ensure!(pulled == image.layer_digests, "other layers came back: {pulled:?}");
    Ok(())
}

/// At the node itself, by its name and by its address.
fn containerd(scene: &Scene, engine: &Docker, image: &ContainerImage) -> Result<()> {
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
    let hosts = hosts.display().to_string();
    let user = scene.credentials();

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
