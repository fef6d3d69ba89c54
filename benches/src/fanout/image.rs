//! A container image of many layers, and skopeo, a real client of registries, to push and pull it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use shoal_tests::host::Host;
use shoal_tests::process::{Process, run};
use shoal_tests::sample::{ContainerImage, container_of};

use super::Taker;

pub const LAYERS: usize = 30;
/// Layers of a real image differ as much: the biggest is 512 times the smallest.
const SIZES: usize = 10;
/// No divisor of [`SIZES`] but 1, so that big and small ones come in turn.
const STRIDE: usize = 7;

/// An image of about `bytes` in [`LAYERS`] layers of mixed sizes. Its content follows from `seed`
/// and does not compress.
pub fn mixed(folder: &Path, seed: u64, bytes: usize) -> Result<ContainerImage> {
    container_of(folder, seed, &layer_sizes(bytes))
}

fn layer_sizes(bytes: usize) -> Vec<usize> {
    let weights: Vec<usize> = (0..LAYERS).map(|layer| 1 << (layer * STRIDE % SIZES)).collect();
    let sum: usize = weights.iter().sum();
    weights.iter().map(|weight| (bytes * weight / sum).max(1)).collect()
}

/// skopeo, which asks nobody for certificates and knows no login but what it is told.
#[derive(Debug, Clone)]
pub struct Skopeo {
    /// A file with no logins.
    logins: PathBuf,
}

impl Skopeo {
    pub fn prepare(folder: &Path) -> Result<Self> {
        let logins = folder.join("logins.json");
        std::fs::write(&logins, "{}")?;
        Ok(Self { logins })
    }

    /// Pushes an image as `REGISTRY/NAME:TAG`, as it is; `login` is `NAME:PASSWORD`.
    ///
    /// # Errors
    /// Where it is refused.
    pub fn push(
        &self,
        host: &Host,
        image: &ContainerImage,
        reference: &str,
        login: Option<&str>,
    ) -> Result<()> {
        let mut command = self.copy(host);
        command.arg("--dest-tls-verify=false");
        match login {
            Some(login) => command.args(["--dest-creds", login]),
            None => command.arg("--dest-no-creds"),
        };
        command.arg(format!("oci:{}:latest", image.layout.display()));
        command.arg(format!("docker://{reference}"));
        run(command).map(drop).with_context(|| format!("the push of {reference}"))
    }

    /// Pulls an image that everybody may have into an OCI layout in `folder`.
    pub fn pull(&self, host: &Host, folder: &Path, reference: &str) -> Result<Taker> {
        let remembered = folder.join("remembered");
        std::fs::create_dir_all(&remembered)?;
        // What it knows of layers lies in one file for the whole machine, behind one lock.
        let host = host.clone().overlaid(remembered, "/var/lib/containers/cache");
        let mut command = self.copy(&host);
        command.args(["--src-tls-verify=false", "--src-no-creds"]);
        command.arg("--dest-oci-accept-uncompressed-layers");
        command.arg(format!("docker://{reference}"));
        command.arg(format!("oci:{}:pulled", folder.join("layout").display()));
        let process = Process::start("skopeo", command, &folder.join("log"))?;
        Ok(Taker { process, leaves: None })
    }

    fn copy(&self, host: &Host) -> std::process::Command {
        let mut command = host.command("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"]);
        command.env("REGISTRY_AUTH_FILE", &self.logins);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_of_mixed_sizes_and_big_and_small_ones_come_in_turn() {
        let sizes = layer_sizes(128 << 20);
        assert_eq!(sizes.len(), LAYERS);
        let sum: usize = sizes.iter().sum();
        assert!(sum <= 128 << 20 && sum > (128 << 20) - LAYERS, "{sum}");
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!(most / least >= 500, "{least} to {most}");
        assert!(!sizes.windows(3).any(|few| few.is_sorted()), "{sizes:?}");
        assert!(layer_sizes(1).iter().all(|size| *size == 1));
    }
}
