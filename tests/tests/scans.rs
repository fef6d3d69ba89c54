//! The real Trivy behind a real node: it finds the one vulnerability that its database knows in a
//! container image and in a disk, and nothing in what has none.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shoal_tests::cluster::Operator;
use shoal_tests::process::{run, run_text};
use shoal_tests::sample;
use shoal_tests::scene::Scene;
use shoal_tests::trivy::write_database;

const RELEASE: &str = "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n";
const DISK_BYTES: u64 = 64 << 20;

/// What of a Debian its packages are known by.
fn debian(tree: &Path, openssl: &str) -> Result<()> {
    let files = [
        ("etc/os-release", RELEASE.to_owned()),
        ("etc/debian_version", "12.5\n".to_owned()),
        (
            "var/lib/dpkg/status",
            format!(
                "Package: openssl\nStatus: install ok installed\nArchitecture: amd64\n\
                 Source: openssl\nVersion: {openssl}\nDescription: made by hand\n\n"
            ),
        ),
    ];
    for (name, text) in files {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(path, text)?;
    }
    Ok(())
}

/// Scans it, and gives what is known then.
fn scanned(operator: &Operator, reference: &str) -> Result<Value> {
    let ended = operator.json(&["image", "scan", reference, "--wait"])?;
    ensure!(ended["scan_status"] == "completed", "{ended}");
    ensure!(ended["database_updated_at"] == "2026-01-01T00:00:00Z", "{ended}");
    operator.json(&["image", "vulnerabilities", reference])
}

#[test]
fn trivy_finds_what_it_knows_in_images_and_disks() -> Result<()> {
    let mut scene = Scene::set()?;
    let mut which = Command::new("sh");
    which.args(["-c", "command -v trivy"]);
    let trivy = run_text(which).context("trivy; ./dev test installs it")?;
    write_database(&scene.node.data_dir().join("scanner/cache"))?;
    scene.node.process()?.stop()?;
    scene.node.configure(&format!(
        "[scanner]\ncommand = [{trivy:?}]\noffline = true\non_push = false\nevery_hours = 0\n"
    ))?;
    scene.node.start()?;
    let operator = Operator::login(&scene.hub, &scene.folder, &scene.node, &scene.password)?;

    for (name, openssl) in [("old", "3.0.11-1~deb12u1"), ("new", "3.0.11-1~deb12u2")] {
        let tree = scene.folder.join(name);
        debian(&tree, openssl)?;
        let image = sample::container_from(&scene.folder, &format!("{name}-layout"), &tree)?;
        let source = format!("oci:{}:latest", image.layout.display());
        let target = format!("docker://{}", scene.image(&format!("lab/app:{name}")));
        let (credentials, certificates) =
            (scene.credentials(), scene.certificates.display().to_string());
        let to = ["--dest-creds", &credentials, "--dest-cert-dir", &certificates];
        scene.skopeo(&[&["copy", "--quiet"], &to[..], &[&source, &target]].concat())?;
        let disk = scene.folder.join(format!("{name}.raw"));
        fs::File::create(&disk)?.set_len(DISK_BYTES)?;
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&disk);
        run(command)?;
        let (path, disk) = (disk.display().to_string(), format!("lab/vm:{name}"));
        let number = if name == "old" { "1.0.0" } else { "2.0.0" };
        operator.run(&["image", "upload", &path, &disk, "--version", number])?;

        for reference in [format!("lab/app:{name}"), disk] {
            let shown = scanned(&operator, &reference).context(reference.clone())?;
            if name == "new" {
                ensure!(shown["vulnerabilities"] == json!([]), "{reference}: {shown}");
                continue;
            }
            let found = json!([{
                "id": "CVE-2024-1234", "severity": "CRITICAL", "package": "openssl",
                "installed_version": openssl, "fixed_version": "3.0.11-1~deb12u2",
                "title": "Overflow in OpenSSL", "description": "Too much is read.",
                "cvss_score": 9.8,
                "references": ["https://nvd.nist.gov/vuln/detail/CVE-2024-1234"],
            }]);
            ensure!(shown["vulnerabilities"] == found, "{reference}: {shown}");
            ensure!(shown["summary"]["critical"] == 1, "{reference}: {shown}");
            let scanner = shown["scanner"].as_str().unwrap_or_default();
            ensure!(scanner.starts_with("trivy "), "{reference}: {shown}");
        }
    }
    let judged = ["image", "vulnerabilities", "lab/app:old", "--fail-on", "high"];
    ensure!(operator.run(&judged).is_err(), "a script would go on");
    operator.run(&["image", "vulnerabilities", "lab/app:new", "--fail-on", "low"])?;
    let shown = operator.json(&["image", "show", "lab/app"])?;
    ensure!(shown["scan_status"] == "completed", "{shown}");
    ensure!(shown["vulnerabilities"]["critical"] == 0, "the latest one has none: {shown}");
    Ok(())
}
