//! The descriptor: lines of text that say what a disk is made of.
//!
//! ```text
//! # Disk DescriptorFile
//! version=1
//! parentCID=ffffffff
//! createType="twoGbMaxExtentSparse"
//! RW 4192256 SPARSE "disk-s001.vmdk"
//! RW 4192256 FLAT "disk-flat.vmdk" 0
//! ```
//! Keys and keywords are read whatever their case.
//!
//! Invariants: a descriptor with a parent or with encryption is refused before its extents are
//! looked at; an extent's name is a bare file name.
//! Non-goals: finding the extents (see `extents`), the disk database (`ddb.`) but for what encrypts,
//! change tracking.

use super::SECTOR_BYTES;
use super::header::malformed;
use crate::refusal::Refusal;

/// Extents of one disk: at 2 GiB each, 8 TiB.
const EXTENTS_MAX: usize = 4096;
/// Bytes in which a descriptor must say that it is one.
const SIGN_BYTES: usize = 4096;
/// "There is no parent".
const NO_PARENT: u32 = u32::MAX;
/// What editors of Windows put before a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// How the bytes of an extent lie in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    Sparse {
        name: String,
    },
    /// From `offset` bytes into the file on.
    Flat {
        name: String,
        offset: u64,
    },
    Zero,
}

/// One line of extents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtentLine {
    /// Of the guest.
    pub bytes: u64,
    pub shape: Shape,
}

/// Whether the text is a descriptor as QEMU and VMware find them: it may have comments and empty
/// lines before what names it.
pub(crate) fn is_descriptor(start: &[u8]) -> bool {
    let start = start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(start);
    for line in start[..start.len().min(SIGN_BYTES)].split(|&byte| byte == b'\n') {
        let line = line.trim_ascii();
        let starts = |with: &str| {
            line.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()))
        };
        if starts("# disk descriptorfile") || starts("version=") || starts("version =") {
            return true;
        }
        if !line.is_empty() && line[0] != b'#' {
            return false;
        }
    }
    false
}

/// The extents in the order of the guest.
pub(super) fn parse(text: &[u8]) -> Result<Vec<ExtentLine>, Refusal> {
    // What follows a NUL is padding. Names in other encodings can be told from each other even so.
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let mut extents = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with('#') {
            continue;
        }
        if let Some(extent) = extent_line(line)? {
            if extents.len() == EXTENTS_MAX {
                return Err(Refusal::TooLarge("it has more than 4096 extents"));
            }
            extents.push(extent);
        } else if let Some((key, value)) = line.split_once('=') {
            check_setting(key.trim(), value.trim())?;
        }
    }
    Ok(extents)
}

fn check_setting(key: &str, value: &str) -> Result<(), Refusal> {
    let value = value.trim_matches('"');
    match key.to_ascii_lowercase().as_str() {
        "parentcid" if u32::from_str_radix(value, 16) != Ok(NO_PARENT) => Err(Refusal::Parent),
        "parentfilenamehint" => Err(Refusal::Parent),
        "keyid" => Err(Refusal::Encrypted),
        // Filters that ESXi lays over the extents; this one encrypts.
        "ddb.iofilters" if value.to_ascii_lowercase().contains("vmcrypt") => {
            Err(Refusal::Encrypted)
        }
        // `encryption.keySafe` of Workstation, `encryptionKeys` of ESXi.
        key if key.starts_with("encryption") => Err(Refusal::Encrypted),
        _ => Ok(()),
    }
}

/// `ACCESS SECTORS TYPE ["NAME" [OFFSET]]`, or `None` where the line does not start like one.
fn extent_line(line: &str) -> Result<Option<ExtentLine>, Refusal> {
    let (head, name, tail) = match line.split_once('"') {
        Some((head, rest)) => match rest.split_once('"') {
            Some((name, tail)) => (head, Some(name), tail),
            None => (head, None, ""),
        },
        None => (line, None, ""),
    };
    let mut words = head.split_ascii_whitespace();
    let access = words.next().unwrap_or_default().to_ascii_uppercase();
    if !matches!(access.as_str(), "RW" | "RDONLY" | "NOACCESS") {
        return Ok(None);
    }
    if access == "NOACCESS" {
        return Err(malformed("an extent may not be read"));
    }
    let sectors = words.next().and_then(|word| word.parse::<u64>().ok());
    let bytes = sectors.and_then(|sectors| sectors.checked_mul(SECTOR_BYTES));
    let bytes = bytes.ok_or(malformed("the size of an extent"))?;
    let shape = words.next().unwrap_or_default().to_ascii_uppercase();
    let name = || name.ok_or(malformed("an extent without a name")).and_then(bare);
    let shape = match shape.as_str() {
        "ZERO" => Shape::Zero,
        "SPARSE" => Shape::Sparse { name: name()? },
        "FLAT" | "VMFS" => {
            let offset = tail.split_ascii_whitespace().next().unwrap_or("0").parse::<u64>().ok();
            let offset = offset.and_then(|sectors| sectors.checked_mul(SECTOR_BYTES));
            let offset = offset.ok_or(malformed("the offset of an extent"))?;
            Shape::Flat { name: name()?, offset }
        }
        "VMFSSPARSE" => return Err(Refusal::Unsupported(crate::refusal::Foreign::Cowd)),
        "SESPARSE" => return Err(Refusal::Unsupported(crate::refusal::Foreign::SeSparse)),
        _ => return Err(malformed("an extent of unknown type")),
    };
    Ok(Some(ExtentLine { bytes, shape }))
}

fn bare(name: &str) -> Result<String, Refusal> {
    if name.is_empty() || name.contains(['/', '\\', ':']) || name == ".." || name == "." {
        return Err(Refusal::NamesPath);
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_extents_in_any_case_and_passes_over_the_rest() {
        let text = b"# Disk DescriptorFile\nVersion=1\nparentCID = FFFFFFFF\n\
            rw 16 sparse \"a b-s001.vmdk\"\r\nRDONLY 2 FLAT \"c.vmdk\" 7\nRW 3 ZERO\nddb.x = \"1\"\n\
            \0RW 9 FLAT \"/etc/passwd\"";
        let name = |text: &str| text.to_owned();
        let expected = [
            ExtentLine { bytes: 8192, shape: Shape::Sparse { name: name("a b-s001.vmdk") } },
            ExtentLine { bytes: 1024, shape: Shape::Flat { name: name("c.vmdk"), offset: 3584 } },
            ExtentLine { bytes: 1536, shape: Shape::Zero },
        ];
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn refuses_parents_keys_and_paths() {
        let reason = |text: &str| parse(text.as_bytes()).unwrap_err().reason();
        assert_eq!(reason("parentCID=12345678"), "parent");
        assert_eq!(reason("ParentFileNameHint=\"base.vmdk\""), "parent");
        for line in [
            "encryption.keySafe = \"vmware:key\"",
            "encryptionKeys = \"vmware:key/list/(pair/(...))\"",
            "keyID = \"kmip-1/4f2a\"",
            "ddb.iofilters = \"vmwarevmcrypt\"",
            "ddb.ioFilters=\"spm, VMWVMCrypt\"",
        ] {
            assert_eq!(reason(line), "encrypted", "{line}");
        }
        let plain = "ddb.iofilters = \"spm\"\nddb.encoding = \"UTF-8\"\nRW 1 ZERO";
        assert_eq!(parse(plain.as_bytes()).unwrap().len(), 1);
        for name in ["/etc/passwd", "../x", "c:x", "a\\b", "..", ""] {
            assert_eq!(reason(&format!("RW 1 FLAT \"{name}\" 0")), "names_path", "{name}");
        }
        assert_eq!(reason("RW 1 VMFSSPARSE \"x\""), "vmdk_cowd_not_supported");
        assert_eq!(reason("RW 99999999999999999999 FLAT \"x\" 0"), "malformed_header");
        assert_eq!(reason("RW 1 PUZZLE \"x\""), "malformed_header");
    }
}
