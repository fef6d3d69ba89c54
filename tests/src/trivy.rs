//! A database of vulnerabilities for Trivy, with what a test wants in it: the file is one of bbolt's
//! (`go.etcd.io/bbolt`, the formats of `page.go` and `meta.go`), the content is trivy-db's, version 2.
//!
//! Layout of the file, in pages of 4096 bytes, all numbers little-endian: two meta pages, an empty list
//! of free pages, and one leaf, which overflows into as many pages as it takes. Every bucket but the
//! root stands inline, as the value of its name: 16 bytes of header, then a leaf like the root's.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

const PAGE_BYTES: usize = 4096;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const PAGE_HEADER_BYTES: usize = 16;
const ELEMENT_BYTES: usize = 16;
/// Flags of pages.
const LEAF: u16 = 2;
const META: u16 = 4;
const FREE_LIST: u16 = 0x10;
/// Flag of an element whose value is a bucket.
const BUCKET: u32 = 1;
/// The pages after the two of meta.
const FREE_LIST_PAGE: u64 = 2;
const ROOT_PAGE: u64 = 3;

enum Entry {
    Row(Value),
    Bucket(Vec<(&'static str, Entry)>),
}

/// The folder for `--cache-dir`, with a database that knows one vulnerability: `CVE-2024-1234`, which
/// is critical, in Debian 12's `openssl` before `3.0.11-1~deb12u2`. It says to be of the year 2026, and
/// asks for a newer one only in 2099.
pub fn write_database(cache: &Path) -> Result<()> {
    let folder = cache.join("db");
    fs::create_dir_all(&folder)?;
    let fixed = json!({ "FixedVersion": "3.0.11-1~deb12u2" });
    let source =
        json!({ "ID": "debian", "Name": "Debian Security Tracker", "URL": "https://example.org" });
    let told = json!({
        "Title": "Overflow in OpenSSL", "Description": "Too much is read.", "Severity": "CRITICAL",
        "VendorSeverity": { "nvd": 4 }, "CVSS": { "nvd": { "V3Score": 9.8 } },
        "References": ["https://nvd.nist.gov/vuln/detail/CVE-2024-1234"],
    });
    let row = |name, row| Entry::Bucket(vec![(name, Entry::Row(row))]);
    let buckets = vec![
        ("data-source", row("debian 12", source)),
        ("debian 12", Entry::Bucket(vec![("openssl", row("CVE-2024-1234", fixed))])),
        ("vulnerability", row("CVE-2024-1234", told)),
    ];
    fs::write(folder.join("trivy.db"), file(&buckets))?;
    let metadata = json!({
        "Version": 2, "UpdatedAt": "2026-01-01T00:00:00Z", "DownloadedAt": "2026-01-01T00:00:00Z",
        "NextUpdate": "2099-01-01T00:00:00Z",
    });
    Ok(fs::write(folder.join("metadata.json"), metadata.to_string())?)
}

fn file(buckets: &[(&'static str, Entry)]) -> Vec<u8> {
    let mut root = leaf(ROOT_PAGE, buckets);
    let pages = root.len().div_ceil(PAGE_BYTES);
    // How many pages follow that belong to it.
    root[12..16].copy_from_slice(&(pages as u32 - 1).to_le_bytes());
    root.resize(pages * PAGE_BYTES, 0);
    let end = ROOT_PAGE + pages as u64;
    [meta(0, end), meta(1, end), whole(header(FREE_LIST_PAGE, FREE_LIST, 0)), root].concat()
}

fn header(page: u64, flags: u16, elements: usize) -> Vec<u8> {
    let (flags, elements) = (flags.to_le_bytes(), (elements as u16).to_le_bytes());
    [&page.to_le_bytes()[..], &flags, &elements, &[0; 4]].concat()
}

fn whole(mut page: Vec<u8>) -> Vec<u8> {
    page.resize(PAGE_BYTES, 0);
    page
}

/// `end` is the page behind the last one.
fn meta(page: u64, end: u64) -> Vec<u8> {
    let mut meta = Vec::new();
    for number in [MAGIC, VERSION, PAGE_BYTES as u32, 0] {
        meta.extend(number.to_le_bytes());
    }
    // The root bucket and its sequence, the free list, the end, the transaction.
    for number in [ROOT_PAGE, 0, FREE_LIST_PAGE, end, page] {
        meta.extend(number.to_le_bytes());
    }
    meta.extend(fnv_1a(&meta).to_le_bytes());
    whole([header(page, META, 0), meta].concat())
}

fn fnv_1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Keys have to come in their order.
fn leaf(page: u64, entries: &[(&'static str, Entry)]) -> Vec<u8> {
    assert!(entries.is_sorted_by_key(|(key, _)| key.as_bytes()), "keys of a leaf are sorted");
    let (mut elements, mut data) = (Vec::new(), Vec::new());
    for (number, (key, entry)) in entries.iter().enumerate() {
        let (flags, value) = match entry {
            Entry::Row(row) => (0, row.to_string().into_bytes()),
            // Without a page of its own, and without a sequence.
            Entry::Bucket(inner) => (BUCKET, [vec![0; 16], leaf(0, inner)].concat()),
        };
        // From the element itself to its key.
        let position = (entries.len() - number) * ELEMENT_BYTES + data.len();
        for part in [flags, position as u32, key.len() as u32, value.len() as u32] {
            elements.extend(part.to_le_bytes());
        }
        data.extend(key.as_bytes());
        data.extend(value);
    }
    let head = header(page, LEAF, entries.len());
    debug_assert_eq!(head.len(), PAGE_HEADER_BYTES);
    [head, elements, data].concat()
}
