//! The files of a tar archive (POSIX.1-2017, pax; GNU's long names and sizes; and the format of
//! Version 7, which has no magic).
//! ```text
//!   0 name, 100 bytes   136 time             156 type    257 "ustar"
//! 124 size, octal       148 checksum         157 link    345 rest of the name, 155 bytes
//! ```
//!
//! Invariants: names are bare; all files lie inside the archive; their number and the length of
//! extended headers are bounded.
//! Non-goals: links, devices and folders with files in them: refused.

use crate::bytes::array;
use crate::pages::read_part;
use crate::refusal::{OpenError, Refusal};
use crate::source::ReadAt;

pub(super) const BLOCK_BYTES: u64 = 512;
pub(super) const CHECKSUM_AT: usize = 148;
/// Headers of all kinds in one archive.
const HEADERS_MAX: usize = 4096;
/// An extended header; it holds a name.
const EXTENDED_BYTES_MAX: u64 = 64 * 1024;
/// What the tar of macOS puts before each file: its attributes there, under the file's own name.
const APPLE_DOUBLE: &str = "._";
const SPARSE: &str = "it has sparse files";

/// A regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub name: String,
    /// Where its bytes lie in the archive.
    pub at: u64,
    pub length: u64,
}

/// What an extended header says of the next file.
#[derive(Debug, Default)]
struct Extended {
    name: Option<String>,
    size: Option<u64>,
}

impl Extended {
    /// Adds the content of a header of type `x` (pax) or `L` (GNU).
    fn add(&mut self, kind: u8, bytes: &[u8]) -> Result<(), Refusal> {
        if kind == b'x' {
            return pax(bytes, self);
        }
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        self.name = Some(utf8(text)?);
        Ok(())
    }
}

/// The name of the first file, if `head` starts with a tar archive; `head` may end before it. In the
/// header itself a long name is cut off.
pub(crate) fn first_name(head: &[u8]) -> Option<String> {
    let (mut at, mut extended) = (0usize, Extended::default());
    for _ in 0..HEADERS_MAX {
        let content = at.checked_add(BLOCK_BYTES as usize)?;
        let block = head.get(at..content)?;
        let size = usize::try_from(checked_size(block).ok()?).ok()?;
        let end = content.checked_add(size)?;
        match block[156] {
            kind @ (b'x' | b'L') => {
                // What is wrong with it is said when the archive is opened.
                let _ = extended.add(kind, head.get(content..end)?);
            }
            b'g' => {}
            b'0' | 0 | b'5' | b'7' | b'S' => {
                let name = extended.name.take().or_else(|| name(block).ok())?;
                if !is_folder(block[156], &name) {
                    return Some(name);
                }
                extended = Extended::default();
            }
            _ => return None,
        }
        at = end.checked_next_multiple_of(BLOCK_BYTES as usize)?;
    }
    None
}

/// Version 7 knows a folder by its name's end.
fn is_folder(kind: u8, name: &str) -> bool {
    kind == b'5' || name.ends_with('/')
}

/// All files of the archive.
pub(super) fn read(source: &dyn ReadAt) -> Result<Vec<File>, OpenError> {
    let (mut files, mut at, mut extended) = (Vec::new(), 0u64, Extended::default());
    for _ in 0..HEADERS_MAX {
        if at == source.len() {
            return Ok(files);
        }
        let block = read_part(source, at, BLOCK_BYTES, "the end of the archive")?;
        if crate::zero::is_zero(&block) {
            return Ok(files);
        }
        let kind = block[156];
        let is_extension = matches!(kind, b'x' | b'g' | b'L');
        let size = checked_size(&block)?;
        let size = extended.size.take_if(|_| !is_extension).unwrap_or(size);
        let content = at + BLOCK_BYTES;
        let end = content.checked_add(size).filter(|&end| end <= source.len());
        let end = end.ok_or(Refusal::Truncated("the end of a file in the archive"))?;
        match kind {
            b'0' | 0 | b'5' | b'7' => {
                let name = match extended.name.take() {
                    Some(name) => name,
                    None => name(&block)?,
                };
                if !is_folder(kind, &name) {
                    let name = bare(&name)?;
                    if !name.starts_with(APPLE_DOUBLE) {
                        files.push(File { name, at: content, length: size });
                    }
                } else if !matches!(name.as_str(), "." | "./") {
                    // The folder itself is there where `tar -C folder .` made the archive.
                    return Err(Refusal::NamesPath.into());
                }
            }
            b'x' | b'L' => extended.add(kind, &extension(source, content, size)?)?,
            // What holds for all files is no name and no size.
            b'g' => {}
            b'S' => return Err(Refusal::Archive(SPARSE).into()),
            _ => return Err(Refusal::Archive("it has links or devices").into()),
        }
        at = end.next_multiple_of(BLOCK_BYTES).min(source.len());
    }
    Err(Refusal::TooLarge("the archive has more than 4096 files").into())
}

fn extension(source: &dyn ReadAt, at: u64, size: u64) -> Result<Vec<u8>, OpenError> {
    if size > EXTENDED_BYTES_MAX {
        return Err(Refusal::TooLarge("a header of the archive is above 64 KiB").into());
    }
    read_part(source, at, size, "the end of a header of the archive")
}

/// Records of `LENGTH KEY=VALUE\n`. A value is any bytes; only those that count here must be text.
fn pax(bytes: &[u8], extended: &mut Extended) -> Result<(), Refusal> {
    let malformed = Refusal::MalformedHeader("an extended header of the archive");
    let mut rest = bytes;
    while !rest.is_empty() && rest[0] != 0 {
        let digits = rest.iter().position(|&byte| byte == b' ').ok_or(malformed.clone())?;
        let length = std::str::from_utf8(&rest[..digits]).ok().and_then(|text| text.parse().ok());
        let length: usize = length.ok_or(malformed.clone())?;
        let record = rest.get(digits + 1..length).and_then(|record| record.strip_suffix(b"\n"));
        let record = record.ok_or(malformed.clone())?;
        let equals = record.iter().position(|&byte| byte == b'=').ok_or(malformed.clone())?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => extended.name = Some(utf8(value)?),
            b"size" => extended.size = Some(decimal(value).ok_or(malformed.clone())?),
            key if key.starts_with(b"GNU.sparse") => {
                return Err(Refusal::Archive(SPARSE));
            }
            _ => {}
        }
        rest = &rest[length..];
    }
    Ok(())
}

/// The size, where the block's magic and checksum are right.
fn checked_size(block: &[u8]) -> Result<u64, Refusal> {
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(place, &byte)| match place {
            CHECKSUM_AT..156 => u64::from(b' '),
            _ => u64::from(byte),
        })
        .sum();
    // Without a magic, GNU's tar writes the numbers of a device all the same.
    let has_magic = block[257..].starts_with(b"ustar") || crate::zero::is_zero(&block[257..265]);
    if !has_magic || octal(&block[CHECKSUM_AT..156]) != Some(sum) {
        return Err(Refusal::MalformedHeader("a header of the archive"));
    }
    let size = if block[124] & 0x80 == 0 {
        octal(&block[124..136])
    } else {
        // GNU: a big-endian number whose first byte only says so.
        (block[124..128] == [0x80, 0, 0, 0]).then(|| u64::from_be_bytes(array(block, 128)))
    };
    size.ok_or(Refusal::MalformedHeader("a size in the archive"))
}

fn octal(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    let text = text.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// Digits and nothing else.
fn decimal(digits: &[u8]) -> Option<u64> {
    let is_plain = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_plain)?.parse().ok()
}

fn name(block: &[u8]) -> Result<String, Refusal> {
    let text = |range: std::ops::Range<usize>| {
        block[range].split(|&byte| byte == 0).next().unwrap_or_default()
    };
    // GNU puts other things where the rest of the name is.
    let prefix = if block[257..].starts_with(b"ustar\0") { text(345..500) } else { &[] };
    let name = utf8(text(0..100))?;
    Ok(if prefix.is_empty() { name } else { format!("{}/{name}", utf8(prefix)?) })
}

fn utf8(bytes: &[u8]) -> Result<String, Refusal> {
    let text = std::str::from_utf8(bytes);
    text.map(str::to_owned).map_err(|_| Refusal::MalformedHeader("a name in the archive"))
}

fn bare(name: &str) -> Result<String, Refusal> {
    let name = name.strip_prefix("./").unwrap_or(name);
    if name.is_empty() || name.contains(['/', '\\']) || name == ".." || name == "." {
        return Err(Refusal::NamesPath);
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, size: &str, kind: u8) -> Vec<u8> {
        let mut block = vec![0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..124 + size.len()].copy_from_slice(size.as_bytes());
        block[156] = kind;
        block[257..262].copy_from_slice(b"ustar");
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }

    fn reason(archive: Vec<u8>) -> &'static str {
        read(&archive).err().map_or("none", |error| error.reason())
    }

    #[test]
    fn finds_files_behind_extended_headers() {
        let record = b"22 path=longer.vmdk.x\n";
        let mut archive = header("./", "0", b'5');
        archive.extend(header("pax", "26", b'x'));
        archive.extend_from_slice(record);
        archive.resize(archive.len().next_multiple_of(512), 0);
        archive.extend(header("short", "3", b'0'));
        archive.extend_from_slice(b"abc");
        archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
        let files = read(&archive).unwrap();
        let expected = File { name: "longer.vmdk.x".into(), at: 512 * 4, length: 3 };
        assert_eq!(files, [expected]);
    }

    /// A file `short` of three bytes behind an extended header.
    fn extended(records: &[u8]) -> Vec<u8> {
        let mut archive = header("pax", &format!("{:o}", records.len()), b'x');
        archive.extend_from_slice(records);
        archive.resize(archive.len().next_multiple_of(512), 0);
        archive.extend(header("short", "3", b'0'));
        archive.extend_from_slice(b"abc");
        archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
        archive
    }

    #[test]
    fn binary_values_of_other_records_are_passed_over() {
        let archive = extended(b"33 SCHILY.xattr.user.a=\xff\xfe=\n\x80\0\n\x01\x02\n10 size=2\n");
        let expected = File { name: "short".into(), at: 512 * 3, length: 2 };
        assert_eq!(read(&archive).unwrap(), [expected]);
        assert_eq!(reason(extended(b"11 path=\xff\xfe\n")), "malformed_header");
        assert_eq!(reason(extended(b"11 size=+2\n")), "malformed_header");
        assert_eq!(reason(extended(b"8 size=\n")), "malformed_header");
        assert_eq!(reason(extended(b"5 \xffa\n")), "malformed_header");
    }

    #[test]
    fn refuses_paths_links_and_lies() {
        for name in ["/etc/passwd", "../x.vmdk", "a/b", "a\\b", ".."] {
            assert_eq!(reason(header(name, "0", b'0')), "names_path", "{name}");
        }
        assert_eq!(reason(header("x.vmdk", "0", b'2')), "archive_not_supported");
        assert_eq!(reason(header("x.vmdk", "1000", b'0')), "truncated");
        assert_eq!(reason(header("x.vmdk", "9", b'0')), "malformed_header");
        let mut changed = header("x.vmdk", "0", b'0');
        changed[0] = b'y';
        assert_eq!(reason(changed), "malformed_header");
    }
}
