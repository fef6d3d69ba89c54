//! One node behind TLS, and what real clients need to speak with it: where they keep their things,
//! the authority that they trust, and the name or address that they know the node by.
//!
//! By an address a node asks for Basic credentials, by a name it sends clients for a Bearer token.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use serde_json::Value;

use crate::cluster::{API_PORT, Node, Storage};
use crate::host::{Host, Network};
use crate::process::run_text;

/// A node, and where its clients keep what they need.
#[derive(Debug)]
pub struct Scene {
    pub folder: PathBuf,
    /// Where clients run.
    pub hub: Host,
    pub node: Node,
    /// `HOST:PORT`, as it stands before an image's name.
    pub registry: String,
    /// Of the administrator.
    pub password: String,
    /// With the authority as `ca.crt`, as docker's tools want it.
    pub certificates: PathBuf,
    _network: Network,
    _temporary: tempfile::TempDir,
}

impl Scene {
    /// The name of a node that has one.
    pub const NAME: &'static str = "shoal.test";

    /// Clients know the node by its address.
    pub fn set() -> Result<Self> {
        Self::begin(None)
    }

    /// Clients know the node by [`Self::NAME`], from a hosts file, and docker trusts it.
    pub fn set_by_name() -> Result<Self> {
        let mut scene = Self::begin(Some(Self::NAME))?;
        scene.registry = format!("{}:{API_PORT}", Self::NAME);
        let (hosts, docker) = (scene.folder.join("hosts"), scene.folder.join("etc-docker"));
        let lines = format!("127.0.0.1 localhost\n{} {}\n", scene.node.address, Self::NAME);
        fs::write(&hosts, lines)?;
        let trusted = docker.join("certs.d").join(&scene.registry);
        fs::create_dir_all(&trusted)?;
        fs::copy(scene.certificates.join("ca.crt"), trusted.join("ca.crt"))?;
        scene.hub = scene.hub.overlaid(hosts, "/etc/hosts").overlaid(docker, "/etc/docker");
        Ok(scene)
    }

    fn begin(node_name: Option<&str>) -> Result<Self> {
        // podman names an image after the path of its layout, and such names have no capitals.
        static SCENES: AtomicU32 = AtomicU32::new(0);
        let number = SCENES.fetch_add(1, Ordering::Relaxed);
        let name = format!("shoal-clients-{}-{number}", std::process::id());
        let temporary = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir()?;
        let folder = temporary.path().to_owned();
        let network = Network::create(0)?;
        let hub = network.hub().clone();
        let storage = Storage::Folder(folder.join("storage"));
        let mut node =
            Node::prepare(&hub, &folder.join("node-1"), "node-1", "10.77.0.1", &storage)?;
        if let Some(name) = node_name {
            node.answer_to(name)?;
        }
        let password = node.init()?;
        node.start()?;
        let certificates = folder.join("certificates");
        fs::create_dir_all(&certificates)?;
        fs::copy(node.data_dir().join("ca.pem"), certificates.join("ca.crt"))?;
        // Nobody's login but the one that each command is given.
        fs::write(folder.join("auth.json"), "{}")?;
        let registry = node.registry();
        let (_network, _temporary) = (network, temporary);
        Ok(Self { folder, hub, node, registry, password, certificates, _network, _temporary })
    }

    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.registry)
    }

    pub fn credentials(&self) -> String {
        format!("admin:{}", self.password)
    }

    /// A tool of containers' own, with storage of this test's.
    pub fn tool(&self, program: &str) -> Command {
        let mut command = self.hub.command(program);
        command.arg("--root").arg(self.folder.join("containers"));
        command.arg("--runroot").arg(self.folder.join("run"));
        command.args(["--storage-driver", "vfs"]);
        command.env("REGISTRY_AUTH_FILE", self.folder.join("auth.json"));
        command
    }

    /// Runs `VERB --creds … --cert-dir … ARGUMENTS` as the administrator.
    pub fn remote(&self, program: &str, verb: &str, arguments: &[&str]) -> Result<String> {
        self.remote_as(&self.credentials(), program, verb, arguments)
    }

    /// The same, as somebody else; `credentials` is `NAME:PASSWORD`.
    pub fn remote_as(
        &self,
        credentials: &str,
        program: &str,
        verb: &str,
        arguments: &[&str],
    ) -> Result<String> {
        let mut command = self.tool(program);
        command.args([verb, "--creds", credentials, "--cert-dir"]);
        command.arg(&self.certificates).args(arguments);
        run_text(command)
    }

    pub fn skopeo(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.hub.command("skopeo");
        command.arg("--insecure-policy").args(arguments);
        run_text(command)
    }

    /// The manifest as the node has it.
    pub fn manifest(&self, name: &str) -> Result<Value> {
        let certificates = self.certificates.display().to_string();
        let image = format!("docker://{}", self.image(name));
        let text = self.skopeo(&[
            "inspect",
            "--raw",
            "--creds",
            &self.credentials(),
            "--cert-dir",
            &certificates,
            &image,
        ])?;
        Ok(serde_json::from_str(&text)?)
    }
}
