//! Checksums of an archive's files: lines of `SHA256(name)= digits`.
//!
//! Invariant: where there is a manifest, every file but itself and its signature is listed in it
//! and has the content that it says.
//! Non-goal: the signature.

use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use super::{ends_with, tar};
use crate::offset::HostOffset;
use crate::pages::{read_part, read_source};
use crate::refusal::{OpenError, Refusal};
use crate::source::ReadAt;

const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Bytes that are read and hashed at once.
const STEP_BYTES: u64 = 1 << 20;

/// Checks all of `files` against `manifest`, one of them.
pub(super) fn check(
    source: &dyn ReadAt,
    files: &[tar::File],
    manifest: &tar::File,
) -> Result<(), OpenError> {
    if manifest.length > MANIFEST_BYTES_MAX {
        return Err(Refusal::TooLarge("its manifest is above 1 MiB").into());
    }
    let text = read_part(source, manifest.at, manifest.length, "its manifest")?;
    let mut listed = vec![false; files.len()];
    for line in String::from_utf8_lossy(&text).lines().filter(|line| !line.trim().is_empty()) {
        let (algorithm, name, digits) = parse(line)?;
        let index = files.iter().position(|file| file.name == name);
        let index = index.ok_or(Refusal::MissingPart)?;
        if std::mem::replace(&mut listed[index], true) {
            return Err(Refusal::DuplicateName.into());
        }
        let file = &files[index];
        let found = match algorithm.as_str() {
            "SHA1" => hash::<Sha1>(source, file)?,
            "SHA256" => hash::<Sha256>(source, file)?,
            "SHA512" => hash::<Sha512>(source, file)?,
            _ => return Err(Refusal::MalformedHeader("an unknown checksum in the manifest").into()),
        };
        if !found.eq_ignore_ascii_case(&digits) {
            return Err(Refusal::ChecksumMismatch.into());
        }
    }
    let forgotten = files.iter().zip(listed).any(|(file, listed)| {
        !listed && !ends_with(&file.name, ".mf") && !ends_with(&file.name, ".cert")
    });
    if forgotten {
        return Err(Refusal::NotInManifest.into());
    }
    Ok(())
}

/// Algorithm, name, digits. A name may have parentheses.
fn parse(line: &str) -> Result<(String, &str, String), Refusal> {
    let parts = line.split_once('(').and_then(|(algorithm, rest)| {
        let (name, digits) = rest.rsplit_once(')')?;
        let digits = digits.trim_start().strip_prefix('=')?;
        let algorithm = algorithm.trim().to_ascii_uppercase().replace('-', "");
        Some((algorithm, name.trim(), digits.trim().to_owned()))
    });
    parts.ok_or(Refusal::MalformedHeader("a line of the manifest"))
}

fn hash<D: Digest>(source: &dyn ReadAt, file: &tar::File) -> Result<String, OpenError> {
    let mut hash = D::new();
    let mut buffer = vec![0; STEP_BYTES.min(file.length) as usize];
    let (mut at, end) = (file.at, file.at + file.length);
    while at < end {
        let part = &mut buffer[..STEP_BYTES.min(end - at) as usize];
        read_source(source, HostOffset(at), part)?;
        hash.update(&*part);
        at += part.len() as u64;
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines_as_different_tools_write_them() {
        let expected = ("SHA256".to_owned(), "a (1).vmdk", "0Af".to_owned());
        for line in ["SHA256(a (1).vmdk)= 0Af", "sha-256 (a (1).vmdk) =0Af  "] {
            assert_eq!(parse(line).unwrap(), expected);
        }
        assert!(parse("SHA256 a.vmdk 00").is_err());
    }
}
