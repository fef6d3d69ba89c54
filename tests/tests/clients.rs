//! Real clients against one node, over TLS that they check: podman, buildah, skopeo and oras push
//! and pull; and the command `shoal` describes and fills images, adds, replaces and removes nodes,
//! and keeps storage clean.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::{Node, Operator, Storage};
use shoal_tests::process::{run, run_text};
use shoal_tests::sample::{self, ContainerImage};
use shoal_tests::scene::Scene;

const LAYERS: usize = 3;
const LAYER_BYTES: usize = 3 << 20;
const MEMBER_DEADLINE: Duration = Duration::from_secs(60);
/// Counts whom the Raft port has turned away.
const STRANGERS: &str = "shoal_raft_strangers_refused_total";

#[test]
fn podman_buildah_and_skopeo_push_and_pull() -> Result<()> {
    let scene = Scene::set()?;
    let image = sample::container(&scene.folder, 7, LAYERS, LAYER_BYTES)?;
    podman(&scene, &image).context("podman")?;
    buildah(&scene).context("buildah")?;
    skopeo(&scene, &image).context("skopeo")
}

fn podman(scene: &Scene, image: &ContainerImage) -> Result<()> {
    let archive = format!("oci:{}:latest", image.layout.display());
    let mut pull = scene.tool("podman");
    pull.args(["pull", "--quiet", &archive]);
    let id = run_text(pull)?;
    let name = scene.image("clients/podman:v1");
    scene.remote("podman", "push", &["--quiet", &id, &name])?;
    let layers = scene.manifest("clients/podman:v1")?["layers"].as_array().map(Vec::len);
    ensure!(layers == Some(LAYERS), "{layers:?} layers arrived");
    let mut remove = scene.tool("podman");
    remove.args(["rmi", "--force", &id]);
    run(remove)?;
    let pulled = scene.remote("podman", "pull", &["--quiet", &name])?;
    ensure!(pulled == id, "{pulled} came back, not {id}");
    Ok(())
}

/// Builds an image of its own, as CI does.
fn buildah(scene: &Scene) -> Result<()> {
    let file = scene.folder.join("hello.txt");
    fs::write(&file, "built here\n")?;
    let buildah = |arguments: &[&str]| {
        let mut command = scene.tool("buildah");
        command.args(arguments);
        run_text(command)
    };
    let container = buildah(&["from", "scratch"])?;
    buildah(&["copy", &container, &file.display().to_string(), "/hello.txt"])?;
    let id = buildah(&["commit", "--quiet", &container])?;
    let name = scene.image("clients/buildah:v1");
    for format in ["oci", "v2s2"] {
        scene.remote("buildah", "push", &["--quiet", "--format", format, &id, &name])?;
        let media_type = scene.manifest("clients/buildah:v1")?["mediaType"].clone();
        let docker = media_type == "application/vnd.docker.distribution.manifest.v2+json";
        ensure!(docker == (format == "v2s2"), "pushed as {format}, it is {media_type}");
    }
    buildah(&["rm", "--all"])?;
    buildah(&["rmi", "--force", &id])?;
    scene.remote("buildah", "pull", &["--quiet", &name])?;
    let again = buildah(&["from", &name])?;
    let mounted = buildah(&["mount", &again])?;
    let text = fs::read_to_string(Path::new(&mounted).join("hello.txt"))?;
    ensure!(text == "built here\n", "{text:?}");
    buildah(&["rm", "--all"]).map(drop)
}

/// Lists, copies between repositories, converts, deletes.
fn skopeo(scene: &Scene, image: &ContainerImage) -> Result<()> {
    let (credentials, directory) = (scene.credentials(), scene.certificates.display().to_string());
    let source = format!("oci:{}:latest", image.layout.display());
    let place = |name: &str| format!("docker://{}", scene.image(name));
    let to = ["--dest-creds", &credentials, "--dest-cert-dir", &directory];
    let from = ["--src-creds", &credentials, "--src-cert-dir", &directory];
    for (tag, format) in [("v1", "oci"), ("v2", "v2s2")] {
        let target = place(&format!("clients/skopeo:{tag}"));
        let mut arguments = vec!["copy", "--quiet", "--format", format];
        arguments.extend(to);
        arguments.extend([source.as_str(), target.as_str()]);
        scene.skopeo(&arguments)?;
    }
    // Within the registry: the layers are mounted, not sent again.
    let (first, second) = (place("clients/skopeo:v1"), place("clients/copied:v1"));
    let mut arguments = vec!["copy", "--quiet"];
    arguments.extend(from.into_iter().chain(to));
    arguments.extend([first.as_str(), second.as_str()]);
    scene.skopeo(&arguments)?;

    let here = ["--creds", &credentials, "--cert-dir", &directory];
    let repository = place("clients/skopeo");
    let list = [&["list-tags"], &here[..], &[&repository]].concat();
    let tags: Value = serde_json::from_str(&scene.skopeo(&list)?)?;
    ensure!(tags["Tags"] == serde_json::json!(["v1", "v2"]), "{tags}");
    scene.skopeo(&[&["delete"], &here[..], &[&first]].concat())?;
    let tags: Value = serde_json::from_str(&scene.skopeo(&list)?)?;
    ensure!(tags["Tags"] == serde_json::json!(["v2"]), "{tags}");
    ensure!(scene.manifest("clients/copied:v1").is_ok(), "a copy went with its source");
    Ok(())
}

/// What is done with oras, whose PyPI package is a library: arguments are the registry, the
/// password and two folders.
const ORAS: &str = r#"
import os, sys
import oras.client
registry, password, source, target = sys.argv[1:]
# By address, a node asks for Basic (see the registry's tests), and this client is told which it is.
client = oras.client.OrasClient(hostname=registry, auth_backend="basic")
client.login(username="admin", password=password, hostname=registry)
os.chdir(source)
name = f"{registry}/clients/oras:v1"
files = ["model.bin:application/vnd.example.model", "notes.txt:text/plain"]
client.push(target=name, files=files, manifest_annotations={"org.example.kind": "model"})
chunked = f"{registry}/clients/oras:chunked"
client.push(target=chunked, files=files, do_chunked=True, chunk_size=1 << 20)
subject = client.get_manifest(name)
assert subject["annotations"]["org.example.kind"] == "model", subject
assert sorted(client.get_tags(name)) == ["chunked", "v1"], client.get_tags(name)
for tag in [name, chunked]:
    pulled = client.pull(target=tag, outdir=f"{target}/{tag[-2:]}")
    assert len(pulled) == 2, pulled
assert client.delete_tags(name, "chunked") == ["chunked"]
assert client.get_tags(name) == ["v1"], client.get_tags(name)
disk = client.pull(target=f"{registry}/vm/disk:latest", outdir=f"{target}/disk")
assert disk == [f"{target}/disk/disk-1.0.0.qcow2"], disk
"#;

#[test]
fn oras_pushes_and_pulls_artifacts_and_pulls_disks() -> Result<()> {
    let scene = Scene::set()?;
    let operator = Operator::login(&scene.hub, &scene.folder, &scene.node, &scene.password)?;
    let disk = sample::disk(&scene.folder)?;
    let path = disk.to_string_lossy();
    operator.run(&["image", "upload", &path, "vm/disk", "--version", "1.0.0"])?;
    let (source, target) = (scene.folder.join("source"), scene.folder.join("target"));
    fs::create_dir_all(&source)?;
    let model: Vec<u8> = (0..1_500_000_u32).flat_map(u32::to_le_bytes).collect();
    let files = [("model.bin", model.as_slice()), ("notes.txt", b"as it was".as_slice())];
    for (name, content) in files {
        fs::write(source.join(name), content)?;
    }
    let mut oras = scene.hub.command("python-oras");
    oras.args(["-c", ORAS, &scene.node.registry(), &scene.password]).args([&source, &target]);
    oras.env("REQUESTS_CA_BUNDLE", scene.certificates.join("ca.crt"));
    // It keeps its login there.
    oras.env("HOME", &scene.folder).env("DOCKER_CONFIG", &scene.folder);
    run(oras).context("python-oras; ./dev test installs it")?;
    for (folder, (name, content)) in
        ["v1", "ed"].into_iter().flat_map(|at| files.map(|file| (at, file)))
    {
        ensure!(fs::read(target.join(folder).join(name))? == content, "{folder}/{name} differs");
    }
    sample::ensure_same_disk(&disk, &target.join("disk/disk-1.0.0.qcow2"), "qcow2")
}

#[test]
fn the_operator_describes_fills_and_finds_images() -> Result<()> {
    let scene = Scene::set()?;
    let operator = Operator::login(&scene.hub, &scene.folder, &scene.node, &scene.password)?;
    let create = ["image", "create", "lab/vm", "--os", "linux", "--min-memory", "4096"];
    let words = ["--label", "team=blue", "--annotation", "wiki=here"];
    let made = operator.json(&[&create[..], &words].concat())?;
    ensure!(made["status"] == "pending" && made["labels"]["team"] == "blue", "{made}");
    operator.json(&["organization", "create", "acme"])?;
    let of_acme = ["--organization", "acme", "--visibility", "organization"];
    let owned = operator.json(&[&["image", "create", "acme/vm"], &of_acme[..]].concat())?;
    ensure!(owned["organization_id"] == "acme", "{owned}");
    ensure!(owned["visibility"] == "organization", "{owned}");
    operator.json(&["image", "delete", "acme/vm", "--purge", "--yes"])?;
    let disk = scene.folder.join("disk.raw");
    fs::write(&disk, vec![7_u8; 3 << 20])?;
    let path = disk.display().to_string();
    let upload = |words: &[&str]| {
        operator.json(&[&["image", "upload", &path, "lab/vm:v1", "--version"], words].concat())
    };
    let wrong = format!("sha256:{}", "0".repeat(64));
    ensure!(upload(&["0.9.0", "--checksum", &wrong]).is_err(), "it is another file");
    let words = ["--tag", "stable", "--changelog", "first", "--build-info", "by=ci"];
    let done = upload(&[&["1.0.0"], &words[..]].concat())?;
    ensure!(done["sent_bytes"] == 3 << 20 && done["there_bytes"] == 0, "{done}");
    ensure!(done["content_size_bytes"].is_u64() && done["added_size_bytes"].is_u64(), "{done}");
    let version = operator.json(&["image", "version", "lab/vm", "stable"])?;
    ensure!(version["changelog"] == "first" && version["build_info"]["by"] == "ci", "{version}");
    let version = operator.json(&["image", "build-info", "lab/vm", "v1", "by=hand"])?;
    ensure!(version["build_info"]["by"] == "hand", "{version}");
    let found = operator.json(&["image", "resolve", "lab/vm:stable"])?;
    ensure!(found["version"] == "1.0.0" && found["tag"] == "stable", "{found}");

    operator.run(&["image", "edit", "lab/vm", "--format", "raw", "--recommended-cpu", "4"])?;
    let shown = operator.json(&["image", "show", "lab/vm"])?;
    ensure!(shown["format"] == "raw" && shown["recommended_cpu_cores"] == 4, "{shown}");
    ensure!(shown["min_memory_mb"] == 4096 && shown["os_type"] == "linux", "{shown}");
    for (filter, count) in [
        (&["--os", "linux", "--kind", "disk", "--owner", "admin"][..], 1),
        (&["--os", "windows"], 0),
        (&["--annotation", "wiki=here", "--label", "team=blue"], 1),
        (&["--status", "pending"], 0),
        (&["--format", "raw", "--visibility", "private"], 1),
    ] {
        let found = operator.json(&[&["image", "list"], filter].concat())?;
        ensure!(found.as_array().map(Vec::len) == Some(count), "{filter:?}: {found}");
    }
    let page = operator.json(&["image", "list", "--page", "2", "--page-size", "1"])?;
    ensure!(page["pagination"]["total_count"] == 1 && page["data"][0].is_null(), "{page}");

    let id = done["upload_id"].as_str().context("an id")?;
    let status = operator.json(&["image", "upload-status", "lab/vm", id])?;
    ensure!(status["status"] == "active", "{status}");
    let aborted = operator.run(&["image", "upload-abort", "lab/vm", id, "--yes"]);
    let refused = aborted.err().context("a version is deleted, and no upload any more")?;
    ensure!(format!("{refused:#}").contains("has become version 1.0.0"), "{refused:#}");
    Ok(())
}

#[test]
fn the_operator_adds_replaces_and_removes_nodes_and_looks_after_storage() -> Result<()> {
    let mut scene = Scene::set()?;
    let operator = Operator::login(&scene.hub, &scene.folder, &scene.node, &scene.password)?;
    let made = operator.json(&["cluster", "add"])?;
    let token = made["token"].as_str().context("a token")?;
    let storage = Storage::Folder(scene.folder.join("storage"));
    let folder = scene.folder.join("node-2");
    let mut second = Node::prepare(&scene.hub, &folder, "node-2", "10.77.0.2", &storage)?;
    second.join(&scene.node, token)?;
    second.start()?;
    let roles = || -> Result<Vec<String>> {
        let nodes = operator.json(&["cluster", "nodes"])?;
        let nodes = nodes.as_array().context("a list")?;
        Ok(nodes.iter().map(|node| node["role"].as_str().unwrap_or_default().into()).collect())
    };
    let both = |roles: Vec<String>| {
        let counts = |role: &String| role == "leader" || role == "voter";
        (roles.iter().filter(|role| counts(role)).count() == 2).then_some(())
    };
    wait_for("both nodes to be voters", MEMBER_DEADLINE, || Ok(both(roles()?)))?;

    // Nobody is there to ask, and nothing happens.
    ensure!(operator.run(&["cluster", "remove", "node-2"]).is_err());
    ensure!(operator.run(&["cluster", "remove", "node-9", "--yes"]).is_err());
    let replaced = operator.json(&["cluster", "replace", "node-2", "--yes"])?;
    ensure!(replaced["removed"]["name"] == "node-2", "{replaced}");
    let alone = |roles: Vec<String>| {
        (roles.iter().filter(|role| *role != "removed").count() == 1).then_some(())
    };
    wait_for("one node to be left", MEMBER_DEADLINE, || Ok(alone(roles()?)))?;
    stays_out(&scene, &mut second, token).context("the removed node")?;

    let token = replaced["token"]["token"].as_str().context("a token")?;
    let folder = scene.folder.join("node-3");
    let mut third = Node::prepare(&scene.hub, &folder, "node-3", "10.77.0.3", &storage)?;
    third.join(&scene.node, token)?;
    third.start()?;
    wait_for("the new node to be a voter", MEMBER_DEADLINE, || Ok(both(roles()?)))?;
    let image = sample::container(&scene.folder, 10, LAYERS, LAYER_BYTES)?;
    scene.registry = third.registry();
    podman(&scene, &image).context("through the node that came in its place")?;
    // What it took in is there at the other one, and stays when it goes.
    scene.registry = scene.node.registry();
    let removed = operator.json(&["cluster", "remove", "node-3", "--yes"])?;
    ensure!(removed["removed"]["name"] == "node-3", "{removed}");
    wait_for("one node to be left again", MEMBER_DEADLINE, || Ok(alone(roles()?)))?;
    third.process()?.stop()?;
    let kept = scene.manifest("clients/podman:v1")?["layers"].as_array().map(Vec::len);
    ensure!(kept == Some(LAYERS), "{kept:?} layers are left");
    ensure!(operator.run(&["cluster", "remove", "node-1", "--yes"]).is_err(), "nobody is left");

    // A crash between bytes and command would leave this.
    let orphan = scene.folder.join("storage/objects/blobs/00/00000000000000000000000000000000");
    fs::create_dir_all(orphan.parent().context("a folder")?)?;
    fs::write(&orphan, "left behind")?;
    let mut age = Command::new("touch");
    age.args(["-d", "1 day ago"]).arg(&orphan);
    run(age)?;
    let done = operator.json(&["storage", "scrub"])?;
    ensure!(done["orphans"] == 1 && done["damaged"] == 0, "{done}");
    ensure!(done["verified"].as_u64().is_some_and(|count| count > 0), "{done}");
    let waiting = operator.json(&["storage", "collect", "--dry-run"])?;
    // It is kept for the grace period, from when it was found.
    ensure!(waiting["unreferenced"]["total"] == 1, "{waiting}");
    ensure!(waiting["unreferenced"]["due"] == 0, "{waiting}");
    operator.run(&["storage", "collect"])?;
    ensure!(orphan.exists(), "it went before its time");
    ensure!(operator.run(&["storage", "status"])?.contains("verified"));
    Ok(())
}

/// A removed node has no way back: neither as it is, nor after a restart, nor with its old token or
/// its old folder.
fn stays_out(scene: &Scene, removed: &mut Node, token: &str) -> Result<()> {
    let refused = || scene.node.metric(STRANGERS, "", &scene.password);
    let ready = |node: &Node| {
        let mut curl = node.host().command("curl");
        curl.args(["-ksSf", "--max-time", "3", &format!("{}/ready", node.url())]);
        run(curl).is_ok()
    };
    let serves = |node: &Node| {
        let mut curl = node.host().command("curl");
        curl.args(["-ksSf", "--max-time", "20", "-u", &scene.credentials(), "-X", "POST"]);
        curl.arg(format!("{}/v2/clients/stale/blobs/uploads/", node.url()));
        run(curl).is_ok()
    };
    wait_for("it to be no longer ready", MEMBER_DEADLINE, || Ok((!ready(removed)).then_some(())))?;
    ensure!(!serves(removed), "it still takes a push");
    let before = refused()?;
    removed.process()?.stop()?;
    removed.launch()?;
    wait_for("it to be turned away", MEMBER_DEADLINE, || Ok((refused()? > before).then_some(())))?;
    ensure!(!ready(removed) && !serves(removed), "it is back after a restart");
    removed.process()?.kill()?;
    ensure!(removed.join(&scene.node, token).is_err(), "it joined again");
    Ok(())
}
