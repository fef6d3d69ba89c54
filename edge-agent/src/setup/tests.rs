//! Setting engines up and back, on folders that stand for `/`.

use std::fs;

use super::*;

const ENGINES: [Engine; 3] = [Engine::Docker, Engine::Containerd, Engine::Podman];

fn facts() -> Facts {
    Facts {
        registries: ["10.0.0.1:5000", "images.example"].map(str::to_owned).into(),
        mirror: "127.0.0.1:5055".parse().unwrap(),
        mirror_has_tls: false,
        authority: "-----BEGIN CERTIFICATE-----\n".into(),
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
