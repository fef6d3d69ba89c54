//! `shoal disk` beside qemu-img, on files that either of them made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const MIB: usize = 1 << 20;

fn shoal(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shoal")).arg("disk").args(arguments).output().unwrap()
}

fn qemu(arguments: &[&str]) -> Output {
    Command::new("qemu-img").args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Data, a hole, what compresses, and an end that is no whole cluster.
fn content() -> Vec<u8> {
    let mut bytes = vec![0; 5 * MIB + 512];
    let mut state = 1u32;
    for byte in &mut bytes[..MIB] {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    bytes[3 * MIB..4 * MIB].fill(b'x');
    bytes[5 * MIB + 511] = 7;
    bytes
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::write(folder.at("disk.raw"), content()).unwrap();
        folder
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

#[test]
fn every_format_is_written_so_that_qemu_img_finds_the_same_disk_and_no_fault() {
    let folder = Folder::new();
    let raw = folder.at("disk.raw");
    let formats = [
        ("raw", "raw", &[][..]),
        ("qcow2", "qcow2", &[]),
        ("qcow2", "qcow2", &["--compress"]),
        ("qcow2", "qcow2", &["--compress", "--compression", "zstd"]),
        ("vmdk", "vmdk", &[]),
        ("vmdk-stream", "vmdk", &[]),
        ("vmdk-stream", "vmdk", &["--compress"]),
        ("vhdx", "vhdx", &[]),
    ];
    for (at, (format, theirs, more)) in formats.into_iter().enumerate() {
        let [one, two] = ["one", "two"].map(|name| folder.at(&format!("{at}.{name}")));
        for target in [&one, &two] {
            let words =
                [&["convert", "-O", format][..], more, &[text(&raw), text(target)]].concat();
            let output = shoal(&words);
            assert!(output.status.success(), "{format} {more:?}: {output:?}");
        }
        assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap(), "{format}: not the same bytes");
        let same = qemu(&["compare", "-f", "raw", "-F", theirs, text(&raw), text(&one)]);
        assert!(same.status.success(), "{format} {more:?}: {same:?}");
        if theirs == "qcow2" || theirs == "vhdx" {
            let check = qemu(&["check", "-f", theirs, text(&one)]);
            assert!(check.status.success(), "{format} {more:?}: {check:?}");
        }
        let same = shoal(&["compare", text(&one), text(&raw)]);
        assert!(same.status.success(), "{format}: {same:?}");
        // And back, from a file that the other program made.
        let foreign = folder.at("foreign");
        assert!(qemu(&["convert", "-O", theirs, text(&raw), text(&foreign)]).status.success());
        let back = folder.at("back.raw");
        assert!(shoal(&["convert", text(&foreign), text(&back)]).status.success());
        assert!(fs::read(&back).unwrap() == content(), "{format}: {theirs} is read wrong");
    }
    let compressed = fs::metadata(folder.at("2.one")).unwrap().len();
    let plain = fs::metadata(folder.at("1.one")).unwrap().len();
    assert!(compressed < plain, "{compressed} against {plain}");
}

#[test]
fn info_and_map_say_what_qemu_img_says() {
    let folder = Folder::new();
    let (raw, disk) = (folder.at("disk.raw"), folder.at("disk.qcow2"));
    assert!(qemu(&["convert", "-O", "qcow2", text(&raw), text(&disk)]).status.success());
    // Until then, the blocks of a file that was just written may still change.
    fs::File::open(&disk).unwrap().sync_all().unwrap();
    let ours = json(&shoal(&["info", "--output", "json", text(&disk)]));
    let theirs = json(&qemu(&["info", "--output", "json", text(&disk)]));
    let same = ["filename", "format", "virtual-size", "actual-size", "cluster-size", "dirty-flag"];
    for key in same {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    let spans = |map: &Value| -> Vec<(u64, u64)> {
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for part in map.as_array().unwrap().iter().filter(|part| part["data"] == true) {
            let (start, length) =
                (part["start"].as_u64().unwrap(), part["length"].as_u64().unwrap());
            match joined.last_mut() {
                Some(last) if last.0 + last.1 == start => last.1 += length,
                _ => joined.push((start, length)),
            }
        }
        joined
    };
    let theirs = json(&qemu(&["map", "--output", "json", text(&disk)]));
    let ours = same_map(&disk);
    assert_eq!(spans(&ours), spans(&theirs));
    let people = shoal(&["info", text(&disk)]);
    let people = String::from_utf8(people.stdout).unwrap();
    assert!(people.contains("file format: qcow2") && people.contains("5243392 bytes"), "{people}");

    // Of a part of it, too, also one that goes on behind the end.
    for (start, most) in [("1M", "2500k"), ("4M", "1G"), ("0", "1000")] {
        let words =
            ["map", "--output=json", "--start-offset", start, "--max-length", most, text(&disk)];
        let [ours, theirs] = [shoal(&words), qemu(&words)].map(|output| {
            let number = |part: &Value, key: &str| part[key].as_u64().unwrap();
            let map = json(&output);
            let parts = map.as_array().unwrap();
            let lengths: u64 = parts.iter().map(|part| number(part, "length")).sum();
            (number(&parts[0], "start"), lengths)
        });
        assert_eq!(ours, theirs, "{words:?}");
    }
}

/// Holds each part of our map against the one of qemu-img's that it begins in.
fn same_map(disk: &Path) -> Value {
    let ours = json(&shoal(&["map", "--output", "json", text(disk)]));
    let theirs = json(&qemu(&["map", "--output", "json", text(disk)]));
    let mut from = 0;
    for part in ours.as_array().unwrap() {
        let start = part["start"].as_u64().unwrap();
        assert_eq!(start, from, "a gap in {ours}");
        from = start + part["length"].as_u64().unwrap();
        let end_of =
            |part: &Value| part["start"].as_u64().unwrap() + part["length"].as_u64().unwrap();
        let within =
            |other: &&Value| (other["start"].as_u64().unwrap()..end_of(other)).contains(&start);
        let other = theirs.as_array().unwrap().iter().find(within).unwrap();
        assert!(from <= end_of(other), "{part} is more than {other}");
        for key in ["depth", "present", "zero", "data"] {
            assert_eq!(part[key], other[key], "{key} of {part}, which is {other}");
        }
        let place = |part: &Value| part["offset"].as_u64().zip(part["start"].as_u64());
        let shift = |part: &Value| place(part).map(|(at, start)| at as i128 - start as i128);
        assert_eq!(shift(part), shift(other), "{part}, which is {other}");
    }
    ours
}

#[test]
fn map_tells_what_is_said_to_be_zero_from_what_nothing_is_said_of() {
    let folder = Folder::new();
    for (options, writes) in [
        ("compat=1.1", &["write -P 1 0 320k", "write -z 64k 128k", "write -z 1M 64k"][..]),
        ("cluster_size=512", &["write -P 1 0 8k", "write -z 1k 2k"]),
        (
            "extended_l2=on,cluster_size=128k",
            &[
                "write -P 1 0 4k",
                "write -z 256k 8k",
                "write -P 1 300k 4k",
                "write -z 512k 128k",
                "write -P 1 640k 128k",
                "write -z 640k 8k",
            ],
        ),
    ] {
        let disk = folder.at("zeros.qcow2");
        let made = ["create", "-f", "qcow2", "-o", options, text(&disk), "4M"];
        assert!(qemu(&made).status.success());
        write_into(&disk, writes);
        let ours = same_map(&disk);
        let is_said = |part: &Value| part["zero"] == true && part["present"] == true;
        assert!(ours.as_array().unwrap().iter().any(is_said), "{options}: {ours}");
    }
}

#[test]
fn info_says_of_what_kind_a_qcow2_is() {
    let folder = Folder::new();
    for (at, options) in [
        "compat=0.10",
        "compat=1.1",
        "compression_type=zstd",
        "extended_l2=on,cluster_size=128k",
        "lazy_refcounts=on,cluster_size=4k",
        "refcount_bits=64,cluster_size=2M",
        "refcount_bits=1",
    ]
    .into_iter()
    .enumerate()
    {
        let disk = folder.at(&format!("{at}.qcow2"));
        let made = qemu(&["create", "-f", "qcow2", "-o", options, text(&disk), "3M"]);
        assert!(made.status.success(), "{made:?}");
        let ours = json(&shoal(&["info", "--output", "json", text(&disk)]));
        let theirs = json(&qemu(&["info", "--output", "json", text(&disk)]));
        for key in ["virtual-size", "cluster-size", "dirty-flag", "format-specific"] {
            assert_eq!(ours[key], theirs[key], "{key} with {options}");
        }
    }
    // Of other formats: the unit that they store content in.
    let raw = folder.at("disk.raw");
    for (format, options) in
        [("vmdk", "subformat=monolithicSparse"), ("vhdx", "block_size=8M"), ("vpc", "force_size")]
    {
        let disk = folder.at(format);
        let made = qemu(&["convert", "-O", format, "-o", options, text(&raw), text(&disk)]);
        assert!(made.status.success(), "{made:?}");
        let ours = json(&shoal(&["info", "--output", "json", text(&disk)]));
        let theirs = json(&qemu(&["info", "--output", "json", "-f", format, text(&disk)]));
        for key in ["format", "virtual-size", "cluster-size", "dirty-flag"] {
            assert_eq!(ours[key], theirs[key], "{key} of {format}");
        }
        let map = json(&shoal(&["map", "--output", "json", text(&disk)]));
        let (bytes, map) = (fs::read(&disk).unwrap(), map.as_array().unwrap().clone());
        let number = |part: &Value, key: &str| part[key].as_u64().unwrap() as usize;
        let data = map.iter().filter(|part| part["data"] == true);
        let mut seen = vec![0; content().len()];
        for part in data {
            let (start, length, at) =
                (number(part, "start"), number(part, "length"), number(part, "offset"));
            let length = length.min(seen.len() - start);
            seen[start..start + length].copy_from_slice(&bytes[at..at + length]);
        }
        assert!(seen == content(), "{format}: what stands at the offsets is not the disk");
    }
}

#[test]
fn what_differs_is_broken_or_missing_has_the_exit_code_of_qemu_img() {
    let folder = Folder::new();
    let (raw, disk) = (folder.at("disk.raw"), folder.at("disk.qcow2"));
    assert!(shoal(&["convert", "-O", "qcow2", text(&raw), text(&disk)]).status.success());
    let other = folder.at("other.raw");
    let mut changed = content();
    changed[3 * MIB + 5] = b'y';
    fs::write(&other, &changed).unwrap();
    let longer = folder.at("longer.raw");
    let mut zeros = content();
    zeros.resize(7 * MIB, 0);
    fs::write(&longer, &zeros).unwrap();
    let none = folder.at("none");
    let codes = |arguments: &[&str]| {
        let theirs = qemu(arguments).status.code();
        let ours = shoal(arguments);
        assert_eq!(ours.status.code(), theirs, "{arguments:?}: {ours:?}");
        (theirs, String::from_utf8(ours.stderr).unwrap())
    };
    assert_eq!(codes(&["compare", text(&raw), text(&disk)]).0, Some(0));
    let (code, said) = codes(&["compare", text(&disk), text(&other)]);
    assert!(code == Some(1) && said.contains(&format!("byte {}", 3 * MIB + 5)), "{said}");
    assert_eq!(codes(&["compare", text(&raw), text(&longer)]).0, Some(0));
    assert_eq!(codes(&["compare", "-s", text(&raw), text(&longer)]).0, Some(1));
    assert_eq!(codes(&["compare", text(&raw), text(&none)]).0, Some(2));
    assert_eq!(codes(&["check", text(&disk)]).0, Some(0));
    assert_eq!(codes(&["check", text(&raw)]).0, Some(63));
    assert_eq!(codes(&["info", text(&none)]).0, Some(1));
    for wrong in [
        &["check", "--bogus", text(&disk)][..],
        &["check"],
        &["check", "-f", "bogus", text(&disk)],
        &["info", "--output=xml", text(&disk)],
        &["compare", text(&raw)],
        &["compare", "-f", "bogus", text(&raw), text(&disk)],
        &["convert", "-O", "bogus", text(&raw), text(&none)],
        &["convert", "-O", "qcow2", "-o", "bogus=1", text(&raw), text(&none)],
        &["convert", "-O", "vhdx", "-c", text(&raw), text(&none)],
    ] {
        assert!([Some(1), Some(2)].contains(&codes(wrong).0), "{wrong:?}");
    }

    // Compressed clusters, nearly all of the file, that are none any more.
    let (words, compressed) = (folder.at("words.raw"), folder.at("compressed.qcow2"));
    fs::write(&words, (0..200_000).map(|n| format!("{n}\n")).collect::<String>()).unwrap();
    let made = ["convert", "-O", "qcow2", "--compress", text(&words), text(&compressed)];
    assert!(shoal(&made).status.success());
    let mut bytes = fs::read(&compressed).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xff);
    fs::write(&compressed, &bytes).unwrap();
    let checked = shoal(&["check", text(&compressed)]);
    assert_eq!(checked.status.code(), Some(2), "{checked:?}");
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn reference_counts_are_checked_as_by_qemu_img() {
    let folder = Folder::new();
    let judged = |path: &Path| {
        let theirs = qemu(&["check", "-f", "qcow2", "--output", "json", text(path)]);
        let ours = shoal(&["check", "--output", "json", text(path)]);
        assert_eq!(ours.status.code(), theirs.status.code(), "{ours:?} and {theirs:?}");
        let (ours, theirs) = (json(&ours), json(&theirs));
        let keys = [
            "leaks",
            "corruptions",
            "image-end-offset",
            "total-clusters",
            "allocated-clusters",
            "fragmented-clusters",
            "compressed-clusters",
        ];
        for key in keys {
            let number = |of: &Value| of[key].as_u64().unwrap_or(0);
            assert_eq!(number(&ours), number(&theirs), "{key}: {ours} and {theirs}");
        }
        ours
    };
    for (at, options) in [
        "cluster_size=64k",
        "cluster_size=512",
        "compat=0.10",
        "extended_l2=on",
        "refcount_bits=1",
        "refcount_bits=64,cluster_size=4k",
        "compression_type=zstd",
        "preallocation=metadata",
    ]
    .into_iter()
    .enumerate()
    {
        let disk = folder.at(&format!("{at}.qcow2"));
        assert!(
            qemu(&["create", "-f", "qcow2", "-o", options, text(&disk), "9M"]).status.success()
        );
        let mut writes = vec!["write -P 1 0 1M", "write -P 2 3M 65k", "write -z 1M 128k"];
        // Not everywhere is there a cluster to be compressed.
        if !["extended", "cluster_size=512", "preallocation"].iter().any(|it| options.contains(it))
        {
            writes.push("write -c -P 3 5M 64k");
        }
        write_into(&disk, &writes);
        // Content that a snapshot has, too, is referred to twice; one bit has no room for that.
        if !options.contains("refcount_bits=1") {
            assert!(qemu(&["snapshot", "-c", "before", text(&disk)]).status.success());
            write_into(&disk, &["write -P 4 512k 256k", "discard 3M 64k"]);
        }
        if !options.contains("compat=0.10") {
            assert!(qemu(&["bitmap", "--add", text(&disk), "changes"]).status.success());
            write_into(&disk, &["write -P 5 7M 64k"]);
        }
        judged(&disk);
    }

    // What stands in one table alone: its entry is cleared, then its count.
    let disk = folder.at("changed.qcow2");
    assert!(qemu(&["create", "-f", "qcow2", text(&disk), "9M"]).status.success());
    write_into(&disk, &["write -P 1 0 1M"]);
    let sound = fs::read(&disk).unwrap();
    let l2 = u64_at(&sound, u64_at(&sound, 40) as usize) as usize & 0xff_ffff_fe00;
    let block = u64_at(&sound, u64_at(&sound, 48) as usize) as usize;
    let cluster = (u64_at(&sound, l2 + 8) as usize & 0xff_ffff_fe00) / 65_536;
    let changed = |places: &[(usize, &[u8])]| {
        let mut bytes = sound.clone();
        for (at, with) in places {
            bytes[*at..*at + with.len()].copy_from_slice(with);
        }
        fs::write(&disk, bytes).unwrap();
        judged(&disk)
    };
    assert_eq!(changed(&[])["leaks"], 0);
    assert_eq!(changed(&[(l2 + 8, &[0; 8])])["leaks"], 1);
    assert_eq!(changed(&[(block + 2 * cluster, &[0; 2])])["leaks"], 0);
    let both = changed(&[(l2, &[0; 8]), (block + 2 * cluster, &[0, 9])]);
    assert!(both["leaks"] == 2 && both["corruptions"] == 1, "{both}");
}

/// As a guest does, or whoever else has the image open.
fn write_into(disk: &Path, commands: &[&str]) {
    let mut arguments = vec!["-f", "qcow2", "-d", "unmap"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", *command]));
    arguments.push(text(disk));
    let output = Command::new("qemu-io").args(&arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("failed"), "{output:?}");
}

/// As people type it from memory: the same line does the same with either program.
#[test]
fn lines_for_qemu_img_are_taken_as_they_are() {
    let folder = Folder::new();
    let raw = folder.at("disk.raw");
    for (at, words) in [
        "convert -p -f raw -O qcow2 -c -S 4k -o cluster_size=64k,compat=1.1",
        "convert -q -O qcow2 -m 4 -W -t none -T none -o compression_type=zstd,lazy_refcounts=off",
        "convert -O vmdk -o subformat=streamOptimized,adapter_type=lsilogic",
        "convert -U -O vpc -o subformat=fixed,force_size=on",
        "convert -O vhdx -o subformat=dynamic",
    ]
    .into_iter()
    .enumerate()
    {
        let words: Vec<&str> = words.split(' ').collect();
        let [ours, theirs] = ["ours", "theirs"].map(|name| folder.at(&format!("{at}.{name}")));
        let done = [
            shoal(&[&words[..], &[text(&raw), text(&ours)]].concat()),
            qemu(&[&words[..], &[text(&raw), text(&theirs)]].concat()),
        ];
        assert!(done.iter().all(|one| one.status.success()), "{words:?}: {done:?}");
        let same = ["compare", "-q", "-p", "-T", "none", text(&ours), text(&theirs)];
        let compared = shoal(&same);
        assert!(compared.status.success(), "{words:?}: {compared:?}");
        assert!(compared.stdout.is_empty() && compared.stderr.is_empty(), "{compared:?}");
        let [format, wanted] = [&ours, &theirs].map(|disk| {
            let told = qemu(&["info", "-U", "--backing-chain", "--output", "json", text(disk)]);
            json(&told)[0]["format"].clone()
        });
        assert_eq!(format, wanted, "{words:?}");
        let chain = json(&shoal(&["info", "-U", "--backing-chain", "--output=json", text(&ours)]));
        assert_eq!(chain.as_array().map(Vec::len), Some(1), "{chain}");
    }
    let quiet = shoal(&["check", "-q", "-U", text(&folder.at("0.ours"))]);
    assert!(quiet.status.success() && quiet.stdout.is_empty(), "{quiet:?}");
}

#[test]
fn a_refused_conversion_leaves_what_was_there_and_nothing_beside_it() {
    let folder = Folder::new();
    let (raw, target) = (folder.at("disk.raw"), folder.at("kept.qcow2"));
    fs::write(&target, b"what was there").unwrap();
    let overlay = folder.at("overlay.qcow2");
    let made = ["create", "-f", "qcow2", "-b", text(&raw), "-F", "raw", text(&overlay)];
    assert!(qemu(&made).status.success());
    let refused = shoal(&["convert", "-O", "qcow2", text(&overlay), text(&target)]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && said.contains("backing"), "{said}");
    let named = shoal(&["info", "--json", text(&overlay)]);
    let named: Value = serde_json::from_slice(&named.stderr).unwrap();
    assert_eq!(named["error"]["code"], "backing_file", "{named}");
    let no_way = shoal(&["convert", "-O", "vhdx", "--compress", text(&raw), text(&target)]);
    assert_eq!(no_way.status.code(), Some(1), "{no_way:?}");
    assert_eq!(fs::read(&target).unwrap(), b"what was there");
    let left: Vec<_> =
        fs::read_dir(folder.0.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(shoal(&["convert", "-O", "qcow2", text(&raw), text(&target)]).status.success());
    assert!(qemu(&["compare", text(&raw), text(&target)]).status.success());
    let folder_as_target = shoal(&["convert", text(&raw), text(folder.0.path())]);
    assert_eq!(folder_as_target.status.code(), Some(1));
}

#[test]
fn chunks_count_what_a_disk_adds_to_those_before_it() {
    let folder = Folder::new();
    let (raw, disk) = (folder.at("disk.raw"), folder.at("disk.vmdk"));
    assert!(qemu(&["convert", "-O", "vmdk", text(&raw), text(&disk)]).status.success());
    let found = json(&shoal(&["chunks", "--output", "json", text(&raw), text(&disk)]));
    let number = |at: usize, key: &str| found[at][key].as_u64().unwrap();
    assert!(number(0, "new_bytes") > MIB as u64, "{found}");
    assert_eq!(number(0, "content_bytes"), number(1, "content_bytes"));
    assert_eq!((number(1, "new_chunks"), number(1, "new_bytes")), (0, 0), "{found}");
}
