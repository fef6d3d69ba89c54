//! The part of an OVF descriptor that says which file is the disk.
//!
//! ```xml
//! <Envelope>
//!   <References><File ovf:id="file1" ovf:href="disk.vmdk"/></References>
//!   <DiskSection><Disk ovf:fileRef="file1" ovf:format="…#streamOptimized"/></DiskSection>
//! ```
//! Disks without a file are empty and passed over, and so are discs: VirtualBox lists what lies in a
//! DVD drive, too. The format is a hint: oVirt writes the URI of
//! VMDK for whatever a volume is, and says in `ovf:volume-format` if it is raw.
//!
//! Invariant: nothing is declared, included or looked up: a document type is refused.
//! Non-goals: namespaces (the names alone are clear), and the machine.

use xmlparser::{ElementEnd, Token, Tokenizer};

use crate::disk::Format;
use crate::refusal::Refusal;

/// As deep as elements may be nested.
const DEPTH_MAX: usize = 128;
const ATTRIBUTES_MAX: usize = 128;
/// The end of the URI that stands for VHD; the start is Microsoft's and differs.
const VHD_LINK: &str = "linkid=137171";
/// In the URI that stands for ISO 9660.
const DISC: &str = "ecma-119";

/// The disk that the machine boots from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiskFile {
    /// A bare name.
    pub name: String,
    /// What the descriptor hints at, if this program knows it.
    pub format: Option<Format>,
}

#[derive(Debug)]
struct FileReference {
    id: String,
    href: String,
    plain: bool,
}

#[derive(Debug)]
struct DiskReference {
    file: String,
    format: Option<Format>,
}

fn malformed() -> Refusal {
    Refusal::MalformedHeader("the OVF descriptor")
}

/// The only disk with a file.
pub(super) fn disk(text: &[u8]) -> Result<DiskFile, Refusal> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let text = std::str::from_utf8(text).map_err(|_| malformed())?;
    let (files, disks) = references(text)?;
    let disk = match disks.as_slice() {
        [] => return Err(Refusal::NoDisk),
        [only] => only,
        _ => return Err(Refusal::SeveralDisks),
    };
    let mut named = files.into_iter().filter(|file| file.id == disk.file);
    let file = named.next().ok_or(Refusal::MissingPart)?;
    if named.next().is_some() {
        return Err(Refusal::DuplicateName);
    }
    if !file.plain {
        return Err(Refusal::Archive("its disk is compressed or cut into chunks"));
    }
    let name = unescaped_uri(&file.href).ok_or_else(malformed)?;
    let name = name.strip_prefix("./").unwrap_or(&name);
    if name.is_empty() || name.contains(['/', '\\', ':']) {
        return Err(Refusal::NamesPath);
    }
    Ok(DiskFile { name: name.to_owned(), format: disk.format })
}

/// By the URI, whose end differs from tool to tool.
fn format(uri: &str) -> Option<Format> {
    let uri = uri.to_ascii_lowercase();
    let known = [
        ("vmdk", Format::Vmdk),
        ("vhdx", Format::Vhdx),
        ("vhd", Format::Vhd),
        (VHD_LINK, Format::Vhd),
        ("qcow", Format::Qcow2),
    ];
    known.iter().find(|(word, _)| uri.contains(word)).map(|&(_, format)| format)
}

fn references(text: &str) -> Result<(Vec<FileReference>, Vec<DiskReference>), Refusal> {
    let (mut files, mut disks) = (Vec::new(), Vec::new());
    let mut open: Vec<&str> = Vec::new();
    let mut attributes: Vec<(&str, String)> = Vec::new();
    for token in Tokenizer::from(text) {
        match token.map_err(|_| malformed())? {
            Token::DtdStart { .. } | Token::EmptyDtd { .. } | Token::EntityDeclaration { .. } => {
                return Err(Refusal::MalformedHeader(
                    "the OVF descriptor declares a document type",
                ));
            }
            Token::ElementStart { local, .. } => {
                if open.len() == DEPTH_MAX {
                    return Err(malformed());
                }
                open.push(local.as_str());
                attributes.clear();
            }
            Token::Attribute { local, value, .. } => {
                if attributes.len() == ATTRIBUTES_MAX {
                    return Err(malformed());
                }
                attributes.push((local.as_str(), unescaped_xml(value.as_str())?));
            }
            Token::ElementEnd { end, .. } => {
                if !matches!(end, ElementEnd::Close(..)) {
                    element(&open, &attributes, &mut files, &mut disks)?;
                }
                if !matches!(end, ElementEnd::Open) && open.pop().is_none() {
                    return Err(malformed());
                }
            }
            _ => {}
        }
    }
    Ok((files, disks))
}

fn element(
    open: &[&str],
    attributes: &[(&str, String)],
    files: &mut Vec<FileReference>,
    disks: &mut Vec<DiskReference>,
) -> Result<(), Refusal> {
    let value = |name: &str| {
        attributes.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone())
    };
    match open {
        [.., "References", "File"] => {
            let (Some(id), Some(href)) = (value("id"), value("href")) else {
                return Err(malformed());
            };
            let compression = value("compression").unwrap_or_default();
            let plain =
                matches!(compression.as_str(), "" | "identity") && value("chunkSize").is_none();
            files.push(FileReference { id, href, plain });
        }
        [.., _, "Disk"] => {
            if value("parentRef").is_some_and(|parent| !parent.is_empty()) {
                return Err(Refusal::Parent);
            }
            if let Some(file) = value("fileRef").filter(|file| !file.is_empty()) {
                let is_raw =
                    value("volume-format").is_some_and(|it| it.eq_ignore_ascii_case("raw"));
                let uri = value("format").unwrap_or_default();
                let format = if is_raw { Some(Format::Raw) } else { format(&uri) };
                if !uri.to_ascii_lowercase().contains(DISC) {
                    disks.push(DiskReference { file, format });
                }
            }
        }
        _ => {}
    }
    Ok(())
}

fn unescaped_xml(text: &str) -> Result<String, Refusal> {
    let mut parts = text.split('&');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (entity, rest) = part.split_once(';').ok_or_else(malformed)?;
        let number = |digits: &str, radix| u32::from_str_radix(digits, radix).ok();
        let character = match entity {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            _ => match entity.strip_prefix("#x") {
                Some(digits) => number(digits, 16).and_then(char::from_u32),
                None => entity
                    .strip_prefix('#')
                    .and_then(|digits| number(digits, 10))
                    .and_then(char::from_u32),
            },
        };
        plain.push(character.ok_or_else(malformed)?);
        plain.push_str(rest);
    }
    Ok(plain)
}

/// With `%20` and its like as what they stand for.
fn unescaped_uri(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let byte = u8::from_str_radix(part.get(..2)?, 16).ok()?;
        bytes.push(byte);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(files: &str, disks: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?>\n<!-- x --><Envelope xmlns:ovf=\"urn:x\"><References>{files}\
             </References><DiskSection><Info>disks</Info>{disks}</DiskSection>\
             <VirtualSystem ovf:id=\"a\"/></Envelope>"
        )
    }

    fn reason(files: &str, disks: &str) -> &'static str {
        disk(envelope(files, disks).as_bytes()).map_or_else(|refusal| refusal.reason(), |_| "none")
    }

    const FILE: &str = "<File ovf:id=\"f\" ovf:href=\"my%20disk&amp;1.vmdk\" ovf:size=\"7\"/>";
    const DISK: &str =
        "<Disk ovf:fileRef=\"f\" ovf:format=\"http://x/vmdk.html#streamOptimized\"/>";

    #[test]
    fn finds_the_only_disk_that_has_a_file() {
        let disks = format!("{DISK}<Disk ovf:diskId=\"empty\"></Disk>");
        let found = disk(envelope(FILE, &disks).as_bytes()).unwrap();
        let name = "my disk&1.vmdk".to_owned();
        assert_eq!(found, DiskFile { name, format: Some(Format::Vmdk) });
    }

    #[test]
    fn an_empty_parent_is_none_and_a_raw_volume_is_raw_whatever_the_uri_says() {
        let ovirt = DISK.replace("<Disk ", "<Disk ovf:parentRef=\"\" ");
        let found = |disks: &str| disk(envelope(FILE, disks).as_bytes()).unwrap().format;
        assert_eq!(found(&ovirt), Some(Format::Vmdk));
        let volume =
            |kind| ovirt.replace("<Disk ", &format!("<Disk ovf:volume-format=\"{kind}\" "));
        assert_eq!(found(&volume("RAW")), Some(Format::Raw));
        assert_eq!(found(&volume("COW")), Some(Format::Vmdk));
    }

    #[test]
    fn a_disc_in_a_drive_is_no_disk() {
        let iso = "http://www.ecma-international.org/publications/standards/Ecma-119.htm";
        let disc = DISK.replace("http://x/vmdk.html#streamOptimized", iso);
        let found = disk(envelope(FILE, &format!("{disc}{DISK}")).as_bytes()).unwrap();
        assert_eq!(found.format, Some(Format::Vmdk));
        assert_eq!(reason(FILE, &disc), "no_disk");
    }

    #[test]
    fn formats_are_known_by_the_words_of_their_uris() {
        for (uri, expected) in [
            ("http://www.vmware.com/specifications/vmdk.html#sparse", Some(Format::Vmdk)),
            ("http://go.microsoft.com/fwlink/?LinkId=137171", Some(Format::Vhd)),
            ("http://technet.microsoft.com/VHDX", Some(Format::Vhdx)),
            ("http://www.gnome.org/~markmc/qcow-image-format.html", Some(Format::Qcow2)),
            ("http://x/y", None),
        ] {
            assert_eq!(format(uri), expected, "{uri}");
        }
    }

    #[test]
    fn refuses_what_it_would_have_to_guess() {
        assert_eq!(reason(FILE, ""), "no_disk");
        assert_eq!(reason(FILE, &DISK.repeat(2)), "several_disks");
        assert_eq!(reason("", DISK), "missing_part");
        let href = |href: &str| FILE.replace("my%20disk&amp;1.vmdk", href);
        for path in ["../x.vmdk", "http://x/y.vmdk", "%2fetc%2fpasswd", "a%5cb"] {
            assert_eq!(reason(&href(path), DISK), "names_path", "{path}");
        }
        let gzip = FILE.replace("ovf:size", "ovf:compression=\"gzip\" ovf:size");
        assert_eq!(reason(&gzip, DISK), "archive_not_supported");
        assert_eq!(reason(FILE, "<Disk fileRef=\"f\" parentRef=\"g\"/>"), "parent");
        assert_eq!(reason("<File", DISK), "malformed_header");
        let bomb = "<!DOCTYPE x [<!ENTITY a \"b\">]><x/>";
        assert_eq!(disk(bomb.as_bytes()).unwrap_err().reason(), "malformed_header");
    }
}
