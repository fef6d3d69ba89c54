//! `shoal-agent setup` on a host of its own: podman and containerd then pull by a node's name
//! through the agent, go on without it, and are set back to the byte.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use shoal_tests::cluster::{Agent, Node, Operator, Storage};
use shoal_tests::host::Network;
use shoal_tests::process::{binary, run, run_text};
use shoal_tests::sample;

/// Scripts run in a mount namespace of their own, where `/etc` may be changed. Arguments are a
/// folder for what they make, the agent's program and settings, the image's name, a login, and
/// where the mirror is.
const BEGINNING: &str = r#"
set -eu
work=$1 agent=$2 settings=$3 image=$4 login=$5 mirror=$6
fails() {
  if "$@"; then
    echo "succeeded, and should not: $*" >&2
    exit 1
  fi
}
engine() { podman --root "$work/root" --runroot "$work/run" --storage-driver vfs "$@"; }
pull() { engine pull --quiet "$@" "$image"; }
bind_podman() { mount --bind "$work/containers" /etc/containers; }
setup() { "$agent" setup "$engine" --config "$settings" "$@"; }
export REGISTRY_AUTH_FILE="$work/auth.json"
"#;

const PODMAN: &str = r#"
mkdir -p "$work"
cp -a /etc/containers "$work/containers"
cp -a "$work/containers" "$work/before"
bind_podman
echo '{}' >"$REGISTRY_AUTH_FILE"
engine=podman
fails setup </dev/null # Nobody answers, so nothing happens.
setup --dry-run | grep '^+location = ' >/dev/null
diff -r "$work/before" /etc/containers
setup --yes
setup --yes | grep 'set up already' >/dev/null
fails pull # Neither the agent nor the node lets nobody have it.
podman login --tls-verify=false -u "${login%%:*}" -p "${login#*:}" "$mirror"
pull # The node knows no login here; so it came through the agent.
engine rmi --force --all
"#;

const PODMAN_ALONE: &str = r#"
bind_podman
engine=podman
fails pull
pull --creds "$login"
setup --undo --yes
diff -r "$work/before" /etc/containers
setup --undo --yes | grep 'was not set up' >/dev/null
fails pull --creds "$login" # The node's authority is not trusted any more.
"#;

/// containerd has to start with what was set up.
const CONTAINERD: &str = r#"
mkdir -p "$work/etc"
printf 'version = 2\n[grpc]\naddress = "%s/sock"\n' "$work" >"$work/etc/config.toml"
cp -a "$work/etc" "$work/before"
mkdir -p /etc/containerd
mount --bind "$work/etc" /etc/containerd
engine=containerd
setup --yes
containerd --root "$work/root" --state "$work/state" >"$work/log" 2>&1 &
trap "kill $!" EXIT
client() { ctr --address "$work/sock" "$@"; }
pull() {
  client images pull --snapshotter native --hosts-dir /etc/containerd/certs.d --user "$login" "$image"
}
tries=0
until client version >/dev/null 2>&1; do
  tries=$((tries + 1))
  [ $tries -lt 300 ] || { cat "$work/log" >&2; exit 1; }
  sleep 0.1
done
fails grep 'invalid registry config' "$work/log"
pull
setup --undo --yes
diff -r "$work/before" /etc/containerd
fails pull
"#;

#[test]
fn engines_pull_by_a_nodes_name_through_the_agent_until_it_is_undone() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let folder = temporary.path();
    let network = Network::create(1)?;
    let storage = Storage::Folder(folder.join("storage"));
    let mut node =
        Node::prepare(network.hub(), &folder.join("node-1"), "node-1", "10.77.0.1", &storage)?;
    let password = node.init()?;
    node.start()?;
    let operator = Operator::login(network.hub(), folder, &node, &password)?;
    let mut agent = Agent::prepare(network.host(0), &folder.join("agent-1"), "agent-1")?;
    agent.join(&node, &operator.token("agent")?)?;
    agent.start()?;

    let name = format!("{}/setup/app:v1", node.registry());
    push(&node, folder, &password, &name)?;
    let program = binary("shoal-agent")?.display().to_string();
    let settings = folder.join("agent-1/agent.toml").display().to_string();
    let script = |text: &str, work: &str| {
        let mut command = network.host(0).command("unshare");
        command.args(["--mount", "sh", "-c", &format!("{BEGINNING}{text}"), "sh"]);
        command.arg(folder.join(work)).args([&program, &settings, &name]);
        command.arg(format!("admin:{password}")).arg(Agent::MIRROR);
        run(command)
    };
    script(CONTAINERD, "containerd").context("containerd")?;
    ensure!(agent.metric("shoal_mirror_sent_bytes_total", "")? > 0.0, "it came past the agent");
    script(PODMAN, "podman").context("podman")?;
    agent.process()?.kill()?;
    script(PODMAN_ALONE, "podman").context("podman without the agent")?;
    Ok(())
}

fn push(node: &Node, folder: &Path, password: &str, name: &str) -> Result<()> {
    let image = sample::container(folder, 9, 2, 1 << 20)?;
    let certificates = folder.join("certificates");
    fs::create_dir_all(&certificates)?;
    fs::copy(node.data_dir().join("ca.pem"), certificates.join("ca.crt"))?;
    let mut push: Command = node.host().command("skopeo");
    push.args(["--insecure-policy", "copy", "--quiet", "--dest-creds"]);
    push.arg(format!("admin:{password}")).arg("--dest-cert-dir").arg(certificates);
    push.arg(format!("oci:{}:latest", image.layout.display())).arg(format!("docker://{name}"));
    let said = run_text(push)?;
    ensure!(said.is_empty(), "{said}");
    Ok(())
}
