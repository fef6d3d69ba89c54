//! LVM2: where the logical volumes of a volume group with text metadata lie on this disk.
//!
//! Invariants: metadata of at most [`TEXT_BYTES_MAX`] are read, nested at most [`DEPTH_MAX`] deep;
//! only logical volumes that are linear and whole on this physical volume are given.
//! Non-goals: thin pools, stripes, RAID, caches: their volumes are cut by content.
//!
//! Format: lib/format_text of LVM2; lvm2's `pv_header`, `mda_header` and `raw_locn`.

use std::collections::BTreeMap;

use super::Stop;
use super::fields::Little;
use super::volume::{Layout, Segment, Volume};

const SECTOR_BYTES: u64 = 512;
const LABEL_SECTORS: u64 = 4;
const TEXT_BYTES_MAX: u64 = 8 << 20;
const DEPTH_MAX: usize = 8;
const AREAS_MAX: usize = 8;
const VOLUMES_MAX: usize = 1024;
const SEGMENTS_MAX: usize = 65_536;
const MDA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";

/// What lies on a physical volume.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In bytes of the volume that was searched.
    pub volumes: Vec<Layout>,
    /// All of the group is linear: no snapshot or pool may still need what a file system freed.
    pub all_linear: bool,
}

/// `None` where the volume is no physical volume with readable metadata.
pub(super) fn find(volume: &mut Volume<'_>) -> Result<Option<Found>, Stop> {
    let head = volume.read(0, volume.length().min(LABEL_SECTORS * SECTOR_BYTES) as usize)?;
    for sector in 0..head.len() / SECTOR_BYTES as usize {
        let label = &head[sector * SECTOR_BYTES as usize..];
        if label.starts_with(b"LABELONE") && label.get(24..32) == Some(b"LVM2 001") {
            let at = Little(label).u32(20)? as usize;
            return physical_volume(volume, label.get(at..).ok_or(Stop::Malformed)?).map(Some);
        }
    }
    Ok(None)
}

fn physical_volume(volume: &mut Volume<'_>, header: &[u8]) -> Result<Found, Stop> {
    let fields = Little(header);
    let id = fields.bytes(0, 32)?;
    let mut at = 40;
    // The data areas, up to an entry of zeros; then the metadata areas, likewise.
    for _ in 0..AREAS_MAX {
        at += 16;
        if fields.u64(at - 16)? == 0 && fields.u64(at - 8)? == 0 {
            break;
        }
    }
    for _ in 0..AREAS_MAX {
        let (start, size) = (fields.u64(at)?, fields.u64(at + 8)?);
        if start == 0 {
            break;
        }
        at += 16;
        if let Some(text) = metadata(volume, start, size)? {
            let group = Parser { text: &text, at: 0 }.section(0)?;
            return logical_volumes(&group, id);
        }
    }
    Err(Stop::Malformed)
}

/// The text that the area's header points to; it is a ring.
fn metadata(volume: &mut Volume<'_>, start: u64, size: u64) -> Result<Option<Vec<u8>>, Stop> {
    let header = volume.read(start, SECTOR_BYTES as usize)?;
    let fields = Little(&header);
    if fields.bytes(4, 16)? != MDA_MAGIC {
        return Ok(None);
    }
    let (offset, length) = (fields.u64(40)?, fields.u64(48)?);
    if offset < SECTOR_BYTES || offset >= size || length == 0 || length > TEXT_BYTES_MAX.min(size) {
        return Ok(None);
    }
    let first = length.min(size - offset);
    let mut text =
        volume.read(start.checked_add(offset).ok_or(Stop::Malformed)?, first as usize)?;
    if length > first {
        text.extend(volume.read(start + SECTOR_BYTES, (length - first) as usize)?);
    }
    Ok(Some(text))
}

#[derive(Debug)]
enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
    Section(Section),
}

type Section = BTreeMap<String, Value>;

fn section<'a>(of: &'a Section, name: &str) -> Option<&'a Section> {
    match of.get(name)? {
        Value::Section(section) => Some(section),
        _ => None,
    }
}

fn number(of: &Section, name: &str) -> Option<u64> {
    match of.get(name)? {
        Value::Number(number) => Some(*number),
        _ => None,
    }
}

fn text<'a>(of: &'a Section, name: &str) -> Option<&'a str> {
    match of.get(name)? {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn logical_volumes(root: &Section, id: &[u8]) -> Result<Found, Stop> {
    // The group's section is the one that holds sections; beside it stand plain values.
    let group = root.values().find_map(|value| match value {
        Value::Section(section) if section.contains_key("extent_size") => Some(section),
        _ => None,
    });
    let group = group.ok_or(Stop::Malformed)?;
    let extent = number(group, "extent_size").and_then(|n| n.checked_mul(SECTOR_BYTES));
    let extent = extent.filter(|bytes| *bytes > 0).ok_or(Stop::Malformed)?;
    let ours = section(group, "physical_volumes").and_then(|all| {
        all.iter().find_map(|(name, value)| {
            let Value::Section(volume) = value else { return None };
            let plain: Vec<u8> = text(volume, "id")?.bytes().filter(|b| *b != b'-').collect();
            (plain == id).then_some((name.as_str(), number(volume, "pe_start")?))
        })
    });
    let (name, first) = ours.ok_or(Stop::Malformed)?;
    let first = first.checked_mul(SECTOR_BYTES).ok_or(Stop::Malformed)?;
    let mut found = Found { volumes: Vec::new(), all_linear: true };
    let volumes = section(group, "logical_volumes").into_iter().flat_map(Section::values);
    for value in volumes.take(VOLUMES_MAX) {
        let Value::Section(volume) = value else { continue };
        match linear(volume, name, first, extent) {
            Linear::Here(segments) => found.volumes.extend(Layout::new(segments)),
            Linear::Elsewhere => {}
            Linear::No => found.all_linear = false,
        }
    }
    Ok(found)
}

enum Linear {
    Here(Vec<Segment>),
    /// Linear, but not, or not wholly, on this physical volume.
    Elsewhere,
    No,
}

fn linear(volume: &Section, name: &str, first: u64, extent: u64) -> Linear {
    let mut segments = Vec::new();
    let mut elsewhere = false;
    for value in volume.values() {
        let Value::Section(part) = value else { continue };
        if text(part, "type") != Some("striped") || number(part, "stripe_count") != Some(1) {
            return Linear::No;
        }
        let Some(Value::List(stripes)) = part.get("stripes") else { return Linear::No };
        let [Value::Text(on), Value::Number(physical)] = stripes.as_slice() else {
            return Linear::No;
        };
        elsewhere |= on != name;
        let bytes = |count: Option<u64>| count.and_then(|count| count.checked_mul(extent));
        let inside = bytes(number(part, "start_extent"));
        let length = bytes(number(part, "extent_count")).filter(|length| *length > 0);
        let offset = bytes(Some(*physical)).and_then(|offset| offset.checked_add(first));
        let (Some(inside), Some(length), Some(offset)) = (inside, length, offset) else {
            return Linear::No;
        };
        if segments.len() >= SEGMENTS_MAX {
            return Linear::No;
        }
        segments.push(Segment { inside, offset, length });
    }
    if elsewhere { Linear::Elsewhere } else { Linear::Here(segments) }
}

/// LVM2's configuration text: `name = value`, `name { … }`, lists, comments.
struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.get(self.at)? {
                b'#' => {
                    let rest = &self.text[self.at..];
                    self.at += rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
                }
                byte if byte.is_ascii_whitespace() || *byte == 0 => self.at += 1,
                byte => return Some(*byte),
            }
        }
    }

    fn take(&mut self, wanted: u8) -> Result<(), Stop> {
        if self.peek() != Some(wanted) {
            return Err(Stop::Malformed);
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self) -> Result<String, Stop> {
        self.peek();
        let rest = &self.text[self.at..];
        let is_part = |b: &u8| b.is_ascii_alphanumeric() || b"_-.+/".contains(b);
        let length = rest.iter().position(|b| !is_part(b)).unwrap_or(rest.len());
        if length == 0 {
            return Err(Stop::Malformed);
        }
        self.at += length;
        Ok(String::from_utf8_lossy(&rest[..length]).into_owned())
    }

    /// Up to the closing brace, or the text's end at depth 0.
    fn section(&mut self, depth: usize) -> Result<Section, Stop> {
        if depth > DEPTH_MAX {
            return Err(Stop::Malformed);
        }
        let mut section = Section::new();
        loop {
            match self.peek() {
                None if depth == 0 => return Ok(section),
                Some(b'}') if depth > 0 => {
                    self.at += 1;
                    return Ok(section);
                }
                _ => {}
            }
            let name = self.word()?;
            let value = if self.peek() == Some(b'{') {
                self.at += 1;
                Value::Section(self.section(depth + 1)?)
            } else {
                self.take(b'=')?;
                self.value(depth)?
            };
            section.insert(name, value);
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, Stop> {
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                let rest = &self.text[self.at..];
                let end = rest.iter().position(|b| *b == b'"').ok_or(Stop::Malformed)?;
                self.at += end + 1;
                Ok(Value::Text(String::from_utf8_lossy(&rest[..end]).into_owned()))
            }
            Some(b'[') if depth <= DEPTH_MAX => {
                self.at += 1;
                let mut list = Vec::new();
                while self.peek() != Some(b']') {
                    list.push(self.value(depth + 1)?);
                    if self.peek() == Some(b',') {
                        self.at += 1;
                    }
                }
                self.at += 1;
                Ok(Value::List(list))
            }
            _ => {
                let word = self.word()?;
                Ok(word.parse().map_or(Value::Text(word), Value::Number))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &str = r#"
        vg0 { # a group
        id = "x"
        extent_size = 8
        physical_volumes {
            pv0 { id = "0123-4567" pe_start = 2048 }
            pv1 { id = "else" pe_start = 2048 }
        }
        logical_volumes {
            root {
                segment_count = 2
                segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1
                           stripes = [ "pv0", 5 ] }
                segment2 { start_extent = 2 extent_count = 1 type = "striped" stripe_count = 1
                           stripes = [ "pv0", 0 ] }
            }
            far { segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1
                             stripes = [ "pv1", 0 ] } }
            @
        } }
        contents = "Text Format Volume Group"
    "#;

    fn read(replacing: &str) -> Result<Found, Stop> {
        let text = GROUP.replace('@', replacing);
        let group = Parser { text: text.as_bytes(), at: 0 }.section(0)?;
        logical_volumes(&group, b"01234567")
    }

    #[test]
    fn gives_the_linear_volumes_of_this_disk() {
        let found = read("").unwrap();
        assert!(found.all_linear);
        let [volume] = found.volumes.as_slice() else { panic!("{found:?}") };
        let base = 2048 * 512;
        assert_eq!(
            volume.segments(),
            [
                Segment { inside: 0, offset: base + 5 * 4096, length: 8192 },
                Segment { inside: 8192, offset: base, length: 4096 },
            ]
        );
    }

    #[test]
    fn a_snapshot_anywhere_in_the_group_costs_trust() {
        let snapshot = r#"s { segment1 { start_extent = 0 extent_count = 1 type = "snapshot" } }"#;
        assert!(!read(snapshot).unwrap().all_linear);
    }

    #[test]
    fn text_that_is_cut_off_or_too_deep_is_malformed() {
        assert!(read("{").is_err());
        assert!(read(&"a {".repeat(100)).is_err());
        assert!(read(&format!("a = {}", "[".repeat(100_000))).is_err());
    }
}
