//! What clients do all the time: push, pull, retag, delete, through any node.
//!
//! Invariants: a request that may change something is written into the history with the time
//! before it was sent; only what its answer proves is written as its outcome. An answer that no
//! order of events explains – bytes that are not their digest's, a blob gone from under a manifest
//! that nobody deleted – is written down as wrong at once.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value as Json, json};
use tokio_util::sync::CancellationToken;

use super::client::{Answer, Outcome, Registry, Request, digest};
use super::history::{Ending, History, Push, Register, operation};
use crate::linear::{Action, Value};

pub const REPOSITORIES: usize = 2;
pub const TAGS: usize = 3;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const BYTES_TYPE: &str = "application/octet-stream";
/// Layers that images share, and that are stored, let go and stored again.
const SHARED_LAYERS: usize = 4;
const LAYER_BYTES_MAX: usize = 96 * 1024;
/// One layer in so many is longer than a part of a multipart upload, or two.
const ONE_LONG_LAYER_IN: u32 = 25;
const LONG_LAYER_BYTES: std::ops::Range<usize> = 9 << 20..20 << 20;

pub fn repository_name(repository: usize) -> String {
    format!("chaos/r{repository}")
}

pub fn manifest_path(repository: usize, reference: &str) -> String {
    format!("/v2/{}/manifests/{reference}", repository_name(repository))
}

fn tag_name(tag: usize) -> String {
    format!("t{tag}")
}

/// A seeded client.
#[derive(Debug)]
pub struct Client {
    number: usize,
    random: StdRng,
    registry: Registry,
    history: Arc<History>,
}

impl Client {
    pub fn new(number: usize, seed: u64, registry: Registry, history: Arc<History>) -> Self {
        let random = StdRng::seed_from_u64(seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9));
        Self { number, random, registry, history }
    }

    /// Works until it is told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let (repository, tag) =
                (self.random.random_range(0..REPOSITORIES), self.random.random_range(0..TAGS));
            match self.random.random_range(0..100) {
                0..25 => self.push(repository, tag).await,
                25..38 => self.retag(tag).await,
                38..46 => self.delete_tag(repository, tag).await,
                46..52 => self.delete_manifest().await,
                _ => self.pull(repository, tag).await,
            }
            let pause = Duration::from_millis(self.random.random_range(0..150));
            tokio::time::sleep(pause).await;
        }
    }

    fn node(&mut self) -> usize {
        self.random.random_range(0..self.registry.nodes())
    }

    /// Some give up before a node does, and so never hear what became of their request.
    fn patience(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(1500..12_000))
    }

    fn add(&self, register: Register, action: Action, called: u64, returned: Option<u64>) {
        self.history.add(register, operation(self.number, action, called, returned));
    }

    fn count<T>(&self, what: &'static str, outcome: &Outcome<T>) {
        let ending = match outcome {
            Outcome::Done(_) => Ending::Done,
            Outcome::Refused(status) => Ending::Refused(*status),
            Outcome::Unknown(_) => Ending::Unknown,
        };
        self.history.count(what, ending);
    }

    async fn push(&mut self, repository: usize, tag: usize) {
        let mut layers = vec![self.noise()];
        if self.random.random_range(0..2) == 0 {
            layers.push(shared_layer(self.random.random_range(0..SHARED_LAYERS)));
        }
        let unique: u64 = self.random.random();
        let config = json!({"architecture": "amd64", "os": "linux", "created_by": unique.to_string(),
            "config": {}, "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| digest(l)).collect::<Vec<_>>()}});
        let config = config.to_string().into_bytes();
        let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()});
        let described: Vec<Json> =
            layers.iter().map(|layer| descriptor(LAYER_TYPE, layer)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPE,
            "config": descriptor(CONFIG_TYPE, &config), "layers": described});
        let manifest = manifest.to_string().into_bytes();
        for blob in layers.into_iter().chain([config]) {
            let outcome = self.push_blob(repository, blob).await;
            self.count("push a blob", &outcome);
            if !matches!(outcome, Outcome::Done(())) {
                return;
            }
        }
        let digest = digest(&manifest);
        let name = self.history.name(&digest);
        let push = Arc::new(Push { repository, name, digest, manifest });
        self.put_manifest("push a manifest", push, tag).await;
    }

    /// Some content that was never before.
    fn noise(&mut self) -> Vec<u8> {
        let long = self.random.random_range(0..ONE_LONG_LAYER_IN) == 0;
        let length =
            self.random.random_range(if long { LONG_LAYER_BYTES } else { 1..LAYER_BYTES_MAX });
        let mut bytes = vec![0; length];
        self.random.fill(&mut bytes[..]);
        bytes
    }

    /// In one request, or in pieces through several nodes.
    async fn push_blob(&mut self, repository: usize, blob: Vec<u8>) -> Outcome<()> {
        let (node, patience) = (self.node(), self.patience());
        let (name, digest) = (repository_name(repository), digest(&blob));
        let path = format!("/v2/{name}/blobs/{digest}");
        let known = self.registry.send(node, Request::new(Method::HEAD, &path, patience)).await;
        if matches!(known, Outcome::Done(_)) {
            return Outcome::Done(());
        }
        let path = format!("/v2/{name}/blobs/uploads/");
        let begun = self.registry.send(node, Request::new(Method::POST, &path, patience)).await;
        let mut place = match location(begun) {
            Ok(place) => place,
            Err(other) => return other,
        };
        let mut rest = blob;
        for left in (1..=self.random.random_range(0..3)).rev() {
            let later = rest.split_off(rest.len() / (left + 1));
            let mut request = Request::new(Method::PATCH, &place, patience);
            (request.body, request.content_type) = (rest, Some(BYTES_TYPE));
            let node = self.node();
            let sent = self.registry.send(node, request).await;
            place = match location(sent) {
                Ok(place) => place,
                Err(other) => return other,
            };
            rest = later;
        }
        let path = format!("{place}?digest={digest}");
        let mut request = Request::new(Method::PUT, &path, patience);
        (request.body, request.content_type) = (rest, Some(BYTES_TYPE));
        let node = self.node();
        match self.registry.send(node, request).await {
            Outcome::Done(_) => Outcome::Done(()),
            Outcome::Refused(status) => Outcome::Refused(status),
            Outcome::Unknown(text) => Outcome::Unknown(text),
        }
    }

    async fn retag(&mut self, tag: usize) {
        if let Some(push) = self.history.one_acknowledged(self.random.random_range(0..1 << 20)) {
            self.put_manifest("retag", push, tag).await;
        }
    }

    async fn put_manifest(&mut self, what: &'static str, push: Arc<Push>, tag: usize) {
        let path = manifest_path(push.repository, &tag_name(tag));
        let (node, patience) = (self.node(), self.patience());
        let mut request = Request::new(Method::PUT, &path, patience);
        (request.body, request.content_type) = (push.manifest.clone(), Some(MANIFEST_TYPE));
        let called = self.history.now();
        let outcome = self.registry.send(node, request).await;
        let now = self.history.now();
        self.count(what, &outcome);
        let returned = match &outcome {
            Outcome::Done(_) => Some(now),
            Outcome::Unknown(_) => None,
            Outcome::Refused(_) => return,
        };
        let registers = [
            Register::Tag { repository: push.repository, tag },
            Register::Manifest { repository: push.repository, manifest: push.name },
        ];
        for register in registers {
            self.add(register, Action::Set(push.name), called, returned);
        }
        if let Outcome::Done(answer) = outcome {
            if answer.digest.as_ref() != Some(&push.digest) {
                self.history.wrong(format!("{} was stored as {:?}", push.digest, answer.digest));
            }
            self.history.acknowledge(push);
        }
    }

    async fn delete_tag(&mut self, repository: usize, tag: usize) {
        let path = manifest_path(repository, &tag_name(tag));
        let (node, patience) = (self.node(), self.patience());
        let called = self.history.now();
        let outcome = self.registry.send(node, Request::new(Method::DELETE, &path, patience)).await;
        let now = self.history.now();
        self.count("delete a tag", &outcome);
        let (action, returned) = match outcome {
            Outcome::Done(_) => (Action::Clear, Some(now)),
            Outcome::Refused(404) => (Action::Saw(None), Some(now)),
            Outcome::Unknown(_) => (Action::Clear, None),
            Outcome::Refused(_) => return,
        };
        self.add(Register::Tag { repository, tag }, action, called, returned);
    }

    /// With all the tags that point to it.
    async fn delete_manifest(&mut self) {
        let any = self.random.random_range(0..1 << 20);
        let Some(push) = self.history.one_acknowledged(any) else { return };
        let path = manifest_path(push.repository, &push.digest);
        let (node, patience) = (self.node(), self.patience());
        self.history.doom(push.name);
        let called = self.history.now();
        let outcome = self.registry.send(node, Request::new(Method::DELETE, &path, patience)).await;
        let now = self.history.now();
        self.count("delete a manifest", &outcome);
        let (of_tags, of_it, returned) = match outcome {
            Outcome::Done(_) => (Action::Forget(push.name), Action::Clear, Some(now)),
            Outcome::Refused(404) => (Action::Lacks(push.name), Action::Saw(None), Some(now)),
            Outcome::Unknown(_) => (Action::Forget(push.name), Action::Clear, None),
            Outcome::Refused(_) => return,
        };
        let repository = push.repository;
        for tag in 0..TAGS {
            self.add(Register::Tag { repository, tag }, of_tags, called, returned);
        }
        self.add(Register::Manifest { repository, manifest: push.name }, of_it, called, returned);
    }

    async fn pull(&mut self, repository: usize, tag: usize) {
        let (node, patience) = (self.node(), self.patience());
        let seen =
            read_tag(&self.registry, &self.history, self.number, node, (repository, tag), patience)
                .await;
        self.count("pull a tag", &seen);
        // Most clients have most blobs already.
        let Outcome::Done(Some((name, manifest))) = seen else { return };
        if self.random.random_range(0..3) > 0 {
            return;
        }
        let node = self.node();
        let outcome = pull_blobs(&self.registry, node, repository, &manifest, patience).await;
        let ending = match outcome {
            Ok(true) => Ending::Done,
            Ok(false) => Ending::Unknown,
            // A deletion may have begun since the manifest was read.
            Err(_) if self.history.is_doomed(name) => Ending::Refused(404),
            Err(wrong) => {
                self.history.wrong(wrong);
                Ending::Refused(404)
            }
        };
        self.history.count("pull blobs", ending);
    }
}

fn location(outcome: Outcome<Answer>) -> Result<String, Outcome<()>> {
    match outcome {
        Outcome::Done(Answer { location: Some(place), .. }) => Ok(place),
        Outcome::Done(_) => Err(Outcome::Unknown("no Location".into())),
        Outcome::Refused(status) => Err(Outcome::Refused(status)),
        Outcome::Unknown(text) => Err(Outcome::Unknown(text)),
    }
}

/// One of a few, always the same.
fn shared_layer(number: usize) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(number as u64);
    (0..40_000).map(|_| random.random()).collect()
}

/// Reads a tag, and writes down what it pointed to.
pub async fn read_tag(
    registry: &Registry,
    history: &History,
    client: usize,
    node: usize,
    (repository, tag): (usize, usize),
    patience: Duration,
) -> Outcome<Option<(Value, Json)>> {
    let path = manifest_path(repository, &tag_name(tag));
    let register = Register::Tag { repository, tag };
    let called = history.now();
    let outcome = registry.send(node, Request::new(Method::GET, &path, patience)).await;
    let returned = Some(history.now());
    match outcome {
        Outcome::Done(answer) => {
            let found = digest(&answer.body);
            if answer.digest.as_ref() != Some(&found) {
                let told = answer.digest;
                history.wrong(format!("a manifest told as {told:?} has the digest {found}"));
                return Outcome::Unknown("wrong".into());
            }
            let Some(name) = history.known(&found) else {
                return Outcome::Unknown("wrong".into());
            };
            let saw = Action::Saw(Some(name));
            let manifest = Register::Manifest { repository, manifest: name };
            for register in [register, manifest] {
                history.add(register, operation(client, saw, called, returned));
            }
            match serde_json::from_slice(&answer.body) {
                Ok(manifest) => Outcome::Done(Some((name, manifest))),
                Err(error) => Outcome::Unknown(error.to_string()),
            }
        }
        Outcome::Refused(404) => {
            history.add(register, operation(client, Action::Saw(None), called, returned));
            Outcome::Done(None)
        }
        Outcome::Refused(status) => Outcome::Refused(status),
        Outcome::Unknown(text) => Outcome::Unknown(text),
    }
}

/// Fetches what a manifest names: whether all of it came.
///
/// # Errors
/// A blob that is missing, or is not what its digest says.
pub async fn pull_blobs(
    registry: &Registry,
    node: usize,
    repository: usize,
    manifest: &Json,
    patience: Duration,
) -> Result<bool, String> {
    let layers = manifest["layers"].as_array().into_iter().flatten();
    for descriptor in layers.chain([&manifest["config"]]) {
        let wanted = descriptor["digest"].as_str().unwrap_or_default();
        let path = format!("/v2/{}/blobs/{wanted}", repository_name(repository));
        match registry.send(node, Request::new(Method::GET, &path, patience)).await {
            Outcome::Done(answer) => {
                let found = digest(&answer.body);
                if found != wanted {
                    let length = answer.body.len();
                    return Err(format!("{path} at node-{}: {length} bytes of {found}", node + 1));
                }
            }
            Outcome::Refused(404) => return Err(format!("{path} is not at node-{}", node + 1)),
            Outcome::Refused(_) | Outcome::Unknown(_) => return Ok(false),
        }
    }
    Ok(true)
}
