//! Holds the house's shape: which crate may depend on which, and what the pure cores never touch.
//!
//! The arrows stand in ARCHITECTURE.md. A new arrow is a design change: it comes alone, with the
//! reason, and changes the table here. Reads `cargo metadata`, the manifests and, for what no
//! manifest shows (the clock, the file system), the sources of the cores.
//!
//! Non-goal: to judge code; clippy and people do that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};

/// Stands in for a dependency of openraft's, by `[patch]`.
const STAND_IN: &str = "base2histogram";

/// Crate, and all it may depend on within the workspace, whether to build or to test.
const ARROWS: &[(&str, &[&str])] = &[
    ("shoal-content", &[]),
    ("shoal-formats", &["shoal-content"]),
    ("shoal-swarm", &["shoal-content"]),
    ("shoal-metadata", &["shoal-content"]),
    ("shoal-api", &["shoal-content"]),
    (STAND_IN, &[]),
    // Reads files and the environment; knows nothing of Shoal.
    ("shoal-settings", &[]),
    ("shoal-p2p", &["shoal-swarm", "shoal-content"]),
    ("shoal-raft", &["shoal-metadata", "shoal-content"]),
    (
        "shoal-node",
        &[
            "shoal-api",
            "shoal-metadata",
            "shoal-raft",
            "shoal-swarm",
            "shoal-p2p",
            "shoal-formats",
            "shoal-content",
            "shoal-settings",
        ],
    ),
    ("shoal-cli", &["shoal-api", "shoal-formats", "shoal-content"]),
    (
        "shoal-agent",
        &[
            "shoal-api",
            "shoal-swarm",
            "shoal-p2p",
            "shoal-formats",
            "shoal-content",
            "shoal-settings",
        ],
    ),
];

/// They may depend on anything, and nothing else may depend on them.
const OUTERMOST: &[&str] = &["shoal-tests", "shoal-simulation", "shoal-benches"];

/// The crates that decide without acting.
const CORES: &[&str] =
    &["shoal-content", "shoal-formats", "shoal-swarm", "shoal-metadata", "shoal-api"];

/// What acts: runtimes, the network, databases. No core reaches one, however indirectly.
const SHELL_ONLY: &[&str] = &[
    "async-std",
    "aws-sdk-s3",
    "axum",
    "h2",
    "hyper",
    "libp2p",
    "librocksdb-sys",
    "mio",
    "openraft",
    "quinn",
    "reqwest",
    "rocksdb",
    "rustls",
    "smol",
    "socket2",
    "tokio",
    "tokio-util",
];

/// Crate, and what it never reaches, however indirectly.
const NEVER: &[(&str, &[&str])] = &[
    ("shoal-p2p", &["shoal-raft", "shoal-metadata", "openraft", "rocksdb", "axum", "aws-sdk-s3"]),
    ("shoal-raft", &["shoal-p2p", "shoal-swarm", "libp2p", "axum", "aws-sdk-s3", "shoal-api"]),
    ("shoal-agent", &["shoal-raft", "shoal-metadata", "openraft", "rocksdb", "aws-sdk-s3"]),
    (
        "shoal-cli",
        &[
            "shoal-raft",
            "shoal-metadata",
            "shoal-p2p",
            "shoal-node",
            "shoal-agent",
            "openraft",
            "rocksdb",
            "libp2p",
            "quinn",
            "axum",
            "aws-sdk-s3",
        ],
    ),
];

/// Cores that get time, randomness and events as arguments: words their sources never use outside
/// of tests.
const IMPURE_WORDS: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "std::process",
    "async fn",
    "async move",
    "rand::rng()",
    "thread_rng",
];
const WITHOUT_IMPURE_WORDS: &[&str] =
    &["formats/content/src", "raft/metadata/src", "p2p/swarm/src", "node/api/src"];

/// The format readers get an opened reader; a name found in an image never becomes a path.
const OPENING_WORDS: &[&str] = &[
    "File::open",
    "fs::read",
    "OpenOptions",
    "nix::fcntl",
    "nix::sys",
    "std::net",
    "std::process",
    "async fn",
];

/// The one folder of the node that knows S3's types.
const S3_WORD: &str = "aws_sdk_s3";
const S3_FOLDER: &str = "node/src/store";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

fn metadata() -> Result<Metadata> {
    // What other platforms would need has not been fetched, and does not count.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(vec!["--locked".into(), "--filter-platform".into(), platform])
        .exec()?;
    Ok(metadata)
}

fn member<'a>(metadata: &'a Metadata, name: &str) -> Result<&'a Package> {
    let mut members = metadata.workspace_packages().into_iter();
    members.find(|package| package.name == name).with_context(|| format!("no crate {name}"))
}

/// Everything that `start` reaches when it is built and, on demand, when its tests are.
fn reached(metadata: &Metadata, start: &PackageId, tests: bool) -> Result<BTreeSet<String>> {
    let resolve = metadata.resolve.as_ref().context("cargo resolved nothing")?;
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut queue = vec![start];
    let mut seen = BTreeSet::from([start]);
    while let Some(id) = queue.pop() {
        for dependency in &nodes[id].deps {
            let only_in_tests =
                dependency.dep_kinds.iter().all(|kind| kind.kind == DependencyKind::Development);
            if (!only_in_tests || (tests && id == start)) && seen.insert(&dependency.pkg) {
                queue.push(&dependency.pkg);
            }
        }
    }
    Ok(seen.into_iter().map(|id| metadata[id].name.to_string()).collect())
}

fn manifest(path: &Path) -> Result<toml::Table> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    toml::from_str(&text).with_context(|| path.display().to_string())
}

/// Every `.rs` file below `folder`, with its text before the tests at its end and without
/// comments.
fn sources(folder: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    let mut queue = vec![folder.to_owned()];
    while let Some(path) = queue.pop() {
        if path.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                queue.push(entry?.path());
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path)?;
            let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            found.push((path, lines.collect::<Vec<_>>().join("\n")));
        }
    }
    ensure!(!found.is_empty(), "no sources below {}", folder.display());
    Ok(found)
}

#[test]
fn crates_depend_on_each_other_only_along_the_arrows() -> Result<()> {
    let metadata = metadata()?;
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let names: BTreeSet<String> =
        metadata.workspace_packages().iter().map(|package| package.name.to_string()).collect();
    let known: BTreeSet<String> =
        allowed.keys().chain(OUTERMOST).map(|name| (*name).to_owned()).collect();
    assert_eq!(names, known, "the workspace's crates are the house's");
    for package in metadata.workspace_packages() {
        let inner =
            package.dependencies.iter().filter(|dependency| names.contains(&dependency.name));
        for dependency in inner {
            let to = dependency.name.as_str();
            let outermost = OUTERMOST.contains(&package.name.as_str());
            assert!(outermost || !OUTERMOST.contains(&to), "{} must not use {to}", package.name);
            if let Some(targets) = allowed.get(package.name.as_str()) {
                assert!(
                    targets.contains(&to),
                    "{} -> {to} ({:?}) is no arrow of ARCHITECTURE.md",
                    package.name,
                    dependency.kind,
                );
            }
        }
    }
    Ok(())
}

#[test]
fn cores_never_reach_a_runtime_the_network_or_a_database() -> Result<()> {
    let metadata = metadata()?;
    for core in CORES {
        let reached = reached(&metadata, &member(&metadata, core)?.id, true)?;
        let forbidden: Vec<_> = SHELL_ONLY.iter().filter(|name| reached.contains(**name)).collect();
        assert!(forbidden.is_empty(), "{core} reaches {forbidden:?}");
    }
    Ok(())
}

#[test]
fn nobody_reaches_what_is_not_theirs() -> Result<()> {
    let metadata = metadata()?;
    for (name, never) in NEVER {
        let reached = reached(&metadata, &member(&metadata, name)?.id, false)?;
        let forbidden: Vec<_> = never.iter().filter(|name| reached.contains(**name)).collect();
        assert!(forbidden.is_empty(), "{name} reaches {forbidden:?}");
    }
    // What the walk is able to find, so that an empty graph cannot pass.
    let node = reached(&metadata, &member(&metadata, "shoal-node")?.id, false)?;
    for expected in ["tokio", "openraft", "rocksdb", "shoal-content"] {
        assert!(node.contains(expected), "the walk from shoal-node misses {expected}");
    }
    Ok(())
}

#[test]
fn cores_use_no_clock_no_randomness_and_no_files() -> Result<()> {
    let mut wrong = Vec::new();
    let mut look = |folder: &str, words: &[&str]| -> Result<()> {
        for (path, code) in sources(&root().join(folder))? {
            let found = words.iter().filter(|word| code.contains(**word));
            wrong.extend(found.map(|word| format!("{}: {word}", path.display())));
        }
        Ok(())
    };
    for folder in WITHOUT_IMPURE_WORDS {
        look(folder, IMPURE_WORDS)?;
    }
    look("formats/src", OPENING_WORDS)?;
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[test]
fn only_the_storage_of_a_node_knows_s3_types() -> Result<()> {
    let metadata = metadata()?;
    let node = member(&metadata, "shoal-node")?;
    let direct = |name: &str| node.dependencies.iter().any(|dependency| dependency.name == name);
    assert!(!direct("rocksdb"), "shoal-node knows RocksDB only through shoal-raft");
    assert!(!direct("openraft"), "shoal-node knows openraft only through shoal-raft");
    for (path, code) in sources(&root().join("node/src"))? {
        let inside = path.starts_with(root().join(S3_FOLDER))
            || path == root().join(S3_FOLDER).with_extension("rs");
        assert!(inside || !code.contains(S3_WORD), "{} knows {S3_WORD}", path.display());
    }
    Ok(())
}

#[test]
fn every_crate_inherits_what_the_workspace_declares() -> Result<()> {
    let metadata = metadata()?;
    for package in metadata.workspace_packages() {
        let manifest = manifest(package.manifest_path.as_std_path())?;
        let inherits = |table: &str, key: &str| {
            let value = manifest.get(table).and_then(|table| table.get(key));
            value.and_then(|value| value.get("workspace")).and_then(toml::Value::as_bool)
                == Some(true)
        };
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            // It has the version of what it stands in for.
            if (package.name.as_str(), key) == (STAND_IN, "version") {
                continue;
            }
            assert!(inherits("package", key), "{}: package.{key} is its own", package.name);
        }
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
        assert_eq!(
            lints.and_then(toml::Value::as_bool),
            Some(true),
            "{}: the workspace's lints do not apply",
            package.name
        );
    }
    Ok(())
}

#[test]
fn every_dependency_is_declared_once_in_the_workspace() -> Result<()> {
    let metadata = metadata()?;
    for package in metadata.workspace_packages() {
        let manifest = manifest(package.manifest_path.as_std_path())?;
        let targets = manifest.get("target").and_then(toml::Value::as_table);
        let targets = targets.into_iter().flat_map(|targets| targets.values());
        let tables = targets.filter_map(toml::Value::as_table).chain([&manifest]);
        for table in tables {
            for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
                let Some(dependencies) = table.get(kind).and_then(toml::Value::as_table) else {
                    continue;
                };
                for (name, value) in dependencies {
                    let inherited = value.get("workspace").and_then(toml::Value::as_bool);
                    assert_eq!(inherited, Some(true), "{}: {kind}.{name}", package.name);
                }
            }
        }
    }
    Ok(())
}
