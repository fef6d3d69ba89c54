//! Real input: a disk with a file system of real files, and container images of real layers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::process::{run, run_text};

/// What the sample disk holds at least, in bytes.
pub const DISK_CONTENT_BYTES_MIN: u64 = 320 * 1024 * 1024;
const DISK_BYTES: u64 = 1024 * 1024 * 1024;

/// Makes `folder/sample.qcow2`: an ext4 file system of this machine's own programs and libraries.
pub fn disk(folder: &Path) -> Result<PathBuf> {
    let tree = folder.join("tree");
    fs::create_dir_all(tree.join("usr"))?;
    let mut taken = 0;
    for source in ["/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/share", "/usr/lib"] {
        if taken >= DISK_CONTENT_BYTES_MIN {
            break;
        }
        taken += copy_some(Path::new(source), &tree.join("usr"), DISK_CONTENT_BYTES_MIN - taken)?;
    }
    if taken < DISK_CONTENT_BYTES_MIN {
        bail!("this machine has only {taken} bytes of files under /usr");
    }
    let raw = folder.join("sample.raw");
    fs::File::create(&raw)?.set_len(DISK_BYTES)?;
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&raw);
    run(command)?;
    let qcow2 = folder.join("sample.qcow2");
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&qcow2);
    run(command)?;
    fs::remove_dir_all(&tree)?;
    fs::remove_file(&raw)?;
    Ok(qcow2)
}

/// Copies regular files below `source` until `wanted` bytes are there; gives what was copied.
fn copy_some(source: &Path, target: &Path, wanted: u64) -> Result<u64> {
    let target = target.join(source.file_name().context("a folder has a name")?);
    fs::create_dir_all(&target)?;
    let mut entries = fs::read_dir(source)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut taken = 0;
    for entry in entries {
        if taken >= wanted {
            break;
        }
        let kind = entry.file_type()?;
        if kind.is_file() {
            taken += fs::copy(entry.path(), target.join(entry.file_name()))?;
        }
    }
    Ok(taken)
}

/// A container image as an OCI layout: layers of pseudo-random bytes.
#[derive(Debug)]
pub struct ContainerImage {
    pub layout: PathBuf,
    pub manifest_digest: String,
    pub layer_digests: Vec<String>,
    /// Of all blobs, the configuration included.
    pub blob_bytes: u64,
}

/// Makes an image of equal layers whose content follows from `seed`.
pub fn container(
    folder: &Path,
    seed: u64,
    layers: usize,
    layer_bytes: usize,
) -> Result<ContainerImage> {
    container_of(folder, seed, &vec![layer_bytes; layers])
}

/// The same, with so many bytes in each layer's one file.
pub fn container_of(folder: &Path, seed: u64, layers: &[usize]) -> Result<ContainerImage> {
    let layers = layers.iter().enumerate().map(|(layer, &layer_bytes)| {
        let tree = folder.join(format!("layer-{seed}-{layer}"));
        fs::create_dir_all(tree.join("data"))?;
        fs::write(
            tree.join(format!("data/{layer}.bin")),
            noise(seed + 1000 * layer as u64, layer_bytes),
        )?;
        let bytes = archive(&tree)?;
        fs::remove_dir_all(&tree)?;
        Ok(bytes)
    });
    image(folder.join(format!("container-{seed}")), layers)
}

/// Makes an image of one layer, which has what lies in `tree`.
pub fn container_from(folder: &Path, name: &str, tree: &Path) -> Result<ContainerImage> {
    image(folder.join(name), std::iter::once(archive(tree)))
}

/// What lies in a folder, the same bytes each time.
fn archive(tree: &Path) -> Result<Vec<u8>> {
    let tar = tree.with_extension("tar");
    let mut command = Command::new("tar");
    command.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"]);
    command.arg("-C").arg(tree).arg("-cf").arg(&tar).arg(".");
    run(command)?;
    let bytes = fs::read(&tar)?;
    fs::remove_file(&tar)?;
    Ok(bytes)
}

fn image(layout: PathBuf, layers: impl Iterator<Item = Result<Vec<u8>>>) -> Result<ContainerImage> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    let mut blob_bytes = 0;
    for layer in layers {
        let bytes = layer?;
        let digest = store(&blobs, &bytes)?;
        blob_bytes += bytes.len() as u64;
        diff_ids.push(digest.clone());
        descriptors.push(serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest, "size": bytes.len(),
        }));
    }
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))?;
    blob_bytes += config.len() as u64;
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": store(&blobs, &config)?, "size": config.len(),
        },
        "layers": descriptors,
    }))?;
    let manifest_digest = store(&blobs, &manifest)?;
    fs::write(layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": manifest_digest, "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
    }]});
    fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    Ok(ContainerImage { layout, manifest_digest, layer_digests: diff_ids, blob_bytes })
}

fn store(blobs: &Path, bytes: &[u8]) -> Result<String> {
    let encoded = hex::encode(Sha256::digest(bytes));
    fs::write(blobs.join(&encoded), bytes)?;
    Ok(format!("sha256:{encoded}"))
}

/// Bytes that do not compress and follow from `seed` (xorshift64*).
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Asks qemu-img, the judge, whether two disks read the same and the second is sound.
///
/// # Errors
/// With what qemu-img found.
pub fn ensure_same_disk(original: &Path, copy: &Path, copy_format: &str) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["compare", "-f", "qcow2", "-F", copy_format]).arg(original).arg(copy);
    run_text(command)?;
    if copy_format == "qcow2" {
        let mut command = Command::new("qemu-img");
        command.args(["check", "-f", "qcow2"]).arg(copy);
        run_text(command)?;
    }
    Ok(())
}
