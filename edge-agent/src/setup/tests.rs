//! Setting engines up and back, on folders that stand for `/`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use super::*;

const ENGINES: [Engine; 3] = [Engine::Docker, Engine::Containerd, Engine::Podman];

fn facts() -> Facts {
    Facts {
        registries: ["10.0.0.1:5000", "images.example"].map(str::to_owned).into(),
        mirror: "127.0.0.1:5055".parse().unwrap(),
        mirror_has_tls: false,
        authority: "-----BEGIN CERTIFICATE-----\n".into(),
        upstreams: [upstream("docker.io", &[]), upstream("lab", &["registry.lab:5000", "../x"])]
            .into(),
        hub: Some("127.0.0.1:5057".parse().unwrap()),
    }
}

fn upstream(name: &str, aliases: &[&str]) -> Upstream {
    Upstream {
        name: name.into(),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        url: None,
        public: true,
        gone: false,
    }
}

/// Every folder below `root`, and every file with its text.
fn files(root: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.push((path.clone(), String::new()));
                folders.push(path);
            } else {
                found.push((path.clone(), fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn each_engine_is_set_up_once_and_set_back_to_the_byte() {
    for engine in ENGINES {
        let (root, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        put(root.path(), "etc/containerd/config.toml", "# mine\nversion = 2\n[grpc] # as it was\n");
        put(root.path(), "etc/containers/registries.conf", "short-name-mode = \"enforcing\"\n");
        let before = files(root.path());
        let plan = facts().plan(engine, root.path()).unwrap();
        assert!(!plan.is_done());
        assert!(plan.diff().contains("10.0.0.1:5000/ca.crt"), "{}", plan.diff());
        assert_eq!(files(root.path()), before, "a plan changes nothing");
        plan.carry_out(data.path()).unwrap();
        let set_up = files(root.path());

        // Again, and with one registry more: the undo still goes back to the beginning.
        assert!(facts().plan(engine, root.path()).unwrap().is_done());
        let mut more = facts();
        more.registries.insert("10.0.0.2:5000".into());
        more.mirror.set_port(6055);
        more.plan(engine, root.path()).unwrap().carry_out(data.path()).unwrap();
        assert_ne!(files(root.path()), set_up);

        let undo = Undo::read(data.path(), engine).unwrap().unwrap();
        assert!(undo.diff().contains("+++ /dev/null"), "{}", undo.diff());
        undo.carry_out().unwrap();
        assert_eq!(files(root.path()), before, "{engine:?}");
        assert!(Undo::read(data.path(), engine).unwrap().is_none());
    }
}

#[test]
fn a_set_up_that_ended_before_its_files_can_be_taken_back_and_made_again() {
    for is_made_again in [false, true] {
        let (root, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        put(root.path(), "etc/containers/registries.conf.d/50-shoal.conf", "# mine\n");
        let before = files(root.path());
        facts().plan(Engine::Podman, root.path()).unwrap().carry_out(data.path()).unwrap();
        let first = files(root.path());
        let mut other = facts();
        other.mirror.set_port(6055);
        let plan = other.plan(Engine::Podman, root.path()).unwrap();
        plan.carry_out(data.path()).unwrap();
        // As if it had been killed after its note.
        for (path, text) in first.iter().filter(|(path, _)| path.is_file()) {
            fs::write(path, text).unwrap();
        }
        if is_made_again {
            let plan = other.plan(Engine::Podman, root.path()).unwrap();
            plan.carry_out(data.path()).unwrap();
            assert_ne!(files(root.path()), first);
        }
        Undo::read(data.path(), Engine::Podman).unwrap().unwrap().carry_out().unwrap();
        assert_eq!(files(root.path()), before, "made again: {is_made_again}");
    }
}

#[test]
fn other_registries_go_through_the_agent_and_are_themselves_behind_it() {
    let (root, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
    put(
        root.path(),
        "etc/docker/daemon.json",
        "{\"data-root\": \"/srv\", \"registry-mirrors\": [\"https://m\"]}",
    );
    put(root.path(), "etc/docker/certs.d/registry.lab:5000/hosts.toml", "# mine\n");
    let before = files(root.path());
    let plan = facts().plan(Engine::Docker, root.path()).unwrap();
    assert!(plan.advice.iter().any(|text| text.contains("registry.lab:5000/hosts.toml is yours")));
    plan.carry_out(data.path()).unwrap();
    let daemon: serde_json::Value = serde_json::from_str(&read("etc/docker/daemon.json")).unwrap();
    assert_eq!(
        daemon["registry-mirrors"],
        serde_json::json!(["http://127.0.0.1:5057", "https://m"])
    );
    assert_eq!(daemon["data-root"], "/srv");
    let hosts = read("etc/docker/certs.d/docker.io/hosts.toml");
    assert!(hosts.contains("server = \"https://registry-1.docker.io\""), "{hosts}");
    assert!(hosts.contains("[host.\"http://127.0.0.1:5055\"]"), "{hosts}");
    assert_eq!(read("etc/docker/certs.d/registry.lab:5000/hosts.toml"), "# mine\n");
    assert!(facts().plan(Engine::Docker, root.path()).unwrap().is_done());
    Undo::read(data.path(), Engine::Docker).unwrap().unwrap().carry_out().unwrap();
    assert_eq!(files(root.path()), before);
    put(root.path(), "etc/docker/daemon.json", "[]");
    assert!(matches!(facts().plan(Engine::Docker, root.path()), Err(Error::Json { .. })));

    facts().plan(Engine::Podman, root.path()).unwrap().carry_out(data.path()).unwrap();
    let drop_in = read("etc/containers/registries.conf.d/50-shoal.conf");
    let lab = "prefix = \"registry.lab:5000\"\nlocation = \"registry.lab:5000\"\n\
               [[registry.mirror]]\nlocation = \"127.0.0.1:5055/lab\"\ninsecure = true\n";
    assert!(drop_in.contains(lab), "{drop_in}");
    assert!(!drop_in.contains(".."), "{drop_in}");
}

#[test]
fn a_link_stays_one_and_its_file_keeps_its_owner_and_its_mode() {
    let (root, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put(root.path(), "srv/docker.json", "{}\n");
    put(root.path(), "etc/docker/other.json", "{}\n");
    let (link, file) =
        (root.path().join("etc/docker/daemon.json"), root.path().join("srv/docker.json"));
    symlink("../../srv/docker.json", &link).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    // Whoever is not root tests this with an owner that is the only one possible.
    let _ = chown(&file, Some(1234), Some(4321));
    let is_as_before = |text: &str| {
        let now = fs::metadata(&file).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(&file).unwrap().contains(text));
        (now.uid(), now.gid(), now.mode())
    };
    let before = (files(root.path()), is_as_before("{}"));
    // Twice: the second time finds what the first one noted.
    for port in [5057, 6057] {
        let mut facts = facts();
        facts.hub = Some(SocketAddr::from(([127, 0, 0, 1], port)));
        facts.plan(Engine::Docker, root.path()).unwrap().carry_out(data.path()).unwrap();
        assert_eq!(is_as_before(&port.to_string()), before.1);
    }
    Undo::read(data.path(), Engine::Docker).unwrap().unwrap().carry_out().unwrap();
    assert_eq!((files(root.path()), is_as_before("{}")), before);

    fs::remove_file(&file).unwrap();
    let dangling = facts().plan(Engine::Docker, root.path());
    assert!(matches!(dangling, Err(Error::Io { path, .. }) if path == link));
}

#[test]
fn no_link_leads_out_of_an_image_that_is_being_prepared() {
    let (root, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put(host.path(), "docker/daemon.json", "{}\n");
    fs::create_dir_all(root.path().join("etc/docker")).unwrap();
    let (file, folder) = (host.path().join("docker/daemon.json"), host.path().join("docker"));
    symlink(file, root.path().join("etc/docker/daemon.json")).unwrap();
    symlink(folder, root.path().join("etc/containers")).unwrap();
    for engine in [Engine::Docker, Engine::Podman] {
        let refused = facts().plan(engine, root.path());
        assert!(matches!(refused, Err(Error::Outside { .. })), "{refused:?}");
    }
}

#[test]
fn what_somebody_changed_since_is_left_alone() {
    let (root, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    facts().plan(Engine::Podman, root.path()).unwrap().carry_out(data.path()).unwrap();
    put(root.path(), "etc/containers/registries.conf.d/50-shoal.conf", "# mine now\n");
    let undone = Undo::read(data.path(), Engine::Podman);
    assert!(matches!(undone, Err(Error::Changed(path)) if path.ends_with("50-shoal.conf")));
}

#[test]
fn an_undo_that_broke_off_can_be_tried_again() {
    let (root, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    facts().plan(Engine::Podman, root.path()).unwrap().carry_out(data.path()).unwrap();
    fs::remove_file(root.path().join("etc/containers/certs.d/10.0.0.1:5000/ca.crt")).unwrap();
    Undo::read(data.path(), Engine::Podman).unwrap().unwrap().carry_out().unwrap();
    assert_eq!(files(root.path()), []);
}

#[test]
fn containerd_keeps_what_its_configuration_says_besides() {
    let root = tempfile::tempdir().unwrap();
    let config = |text: &str| {
        put(root.path(), "etc/containerd/config.toml", text);
        let data = tempfile::tempdir().unwrap();
        facts().plan(Engine::Containerd, root.path())?.carry_out(data.path())?;
        let config = fs::read_to_string(root.path().join("etc/containerd/config.toml")).unwrap();
        Ok::<_, Error>(config)
    };
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    let text = format!("version = 2 # two\n[{cri}]\nsandbox_image = \"pause\"\n");
    let expected = format!("{text}\n[{cri}.registry]\nconfig_path = \"/etc/containerd/certs.d\"\n");
    assert_eq!(config(&text).unwrap(), expected);
    // Of containerd 2.
    let made = config("version = 3\n").unwrap();
    assert!(made.contains("[plugins.\"io.containerd.cri.v1.images\".registry]"), "{made}");
    // Its own folder is used, and nothing is changed.
    let own = format!("version = 2\n[{cri}.registry]\nconfig_path = \"/srv/hosts:/etc/x\"\n");
    assert_eq!(config(&own).unwrap(), own);
    assert!(root.path().join("srv/hosts/10.0.0.1:5000/hosts.toml").exists());
    // What containerd would not start with.
    let old = format!("version = 2\n[{cri}.registry.mirrors.\"docker.io\"]\nendpoint = []\n");
    assert!(matches!(config(&old), Err(Error::OldMirrors { .. })));
    assert!(matches!(config("version = "), Err(Error::Malformed { .. })));
    assert!(matches!(config("[plugins.cri]\n"), Err(Error::Malformed { .. })));
    assert!(matches!(config("version = 1\n[plugins.cri]\n"), Err(Error::Malformed { .. })));
    assert!(matches!(config("disabled_plugins = [\"zfs\"]\n"), Err(Error::Malformed { .. })));
    // As Docker's package has it: with version = 2 containerd would not start any more.
    let docker = "# Docker's\ndisabled_plugins = [\"cri\"]\n";
    assert_eq!(config(docker).unwrap(), docker);
    assert!(root.path().join("etc/containerd/certs.d/10.0.0.1:5000/hosts.toml").exists());
    let plan = facts().plan(Engine::Containerd, root.path()).unwrap();
    assert!(plan.advice.iter().any(|text| text.contains("switches CRI off")), "{:?}", plan.advice);
}

#[test]
fn what_others_have_said_of_a_registry_still_counts() {
    let (root, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
    put(root.path(), "etc/docker/certs.d/10.0.0.1:5000/ca.crt", "operator's");
    put(root.path(), "etc/docker/certs.d/10.0.0.1:5000/hosts.toml", "# with a header\n");
    put(
        root.path(),
        "etc/containers/registries.conf",
        "[[registry]]\nlocation = \"docker.io\"\nblocked = true\n",
    );
    put(
        root.path(),
        "etc/containers/registries.conf.d/60-mine.conf",
        "registry = [{ prefix = \"images.example\", location = \"elsewhere.example\" }]\n",
    );
    put(root.path(), "etc/containers/registries.conf.d/70-not-toml.conf", "[[");
    let before = files(root.path());
    for _ in 0..2 {
        for engine in [Engine::Docker, Engine::Podman] {
            facts().plan(engine, root.path()).unwrap().carry_out(data.path()).unwrap();
        }
        let trusted = read("etc/docker/certs.d/10.0.0.1:5000/ca.crt");
        assert_eq!(trusted, "operator's\n-----BEGIN CERTIFICATE-----\n");
        assert_eq!(read("etc/docker/certs.d/10.0.0.1:5000/hosts.toml"), "# with a header\n");
        let drop_in = read("etc/containers/registries.conf.d/50-shoal.conf");
        assert!(drop_in.contains("prefix = \"10.0.0.1:5000\""), "{drop_in}");
        for other in ["docker.io", "images.example"] {
            assert!(!drop_in.contains(&format!("prefix = \"{other}\"")), "{drop_in}");
        }
    }
    let plan = facts().plan(Engine::Podman, root.path()).unwrap();
    assert!(plan.advice.iter().any(|text| text.contains("[[registry]] for docker.io")));
    for engine in [Engine::Docker, Engine::Podman] {
        Undo::read(data.path(), engine).unwrap().unwrap().carry_out().unwrap();
    }
    assert_eq!(files(root.path()), before);
}

#[test]
fn a_registry_is_a_host_and_nothing_that_leads_elsewhere() {
    for good in ["10.0.0.1:5000", "images.example", "[fd00::1]:5000"] {
        assert_eq!(registry(good).unwrap(), good);
    }
    for bad in ["", "..", "../etc", "a/b", "a b", "a\"b", "host:port", "user@host", "HOST#"] {
        assert!(registry(bad).is_err(), "{bad}");
    }
}
