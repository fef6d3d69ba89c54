//! What aria2 needs to share a file among hosts: a torrent, a tracker (BEP 3, BEP 23) and seeds.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use shoal_tests::host::Host;
use shoal_tests::process::{Process, run};

use super::Taker;

const TRACKER_PORT: u16 = 6969;
const PEER_PORT: u16 = 6881;
/// Pieces of 256 KiB, as our chunks.
const PIECE_BITS: &str = "18";
/// How soon a peer asks the tracker again, in seconds.
const INTERVAL_SECONDS: u32 = 2;

/// A torrent of one file, and a tracker in the hub that lives as long as this process.
#[derive(Debug)]
pub struct Torrent {
    file: PathBuf,
    hook: PathBuf,
    content: PathBuf,
}

impl Torrent {
    pub fn create(folder: &Path, hub: &Host, content: &Path) -> Result<Self> {
        track(hub)?;
        let (file, hook) = (folder.join("content.torrent"), folder.join("done"));
        let mut command = Command::new("mktorrent");
        command.args(["-l", PIECE_BITS, "-o"]).arg(&file);
        command.args(["-a", &format!("http://{}:{TRACKER_PORT}/announce", hub.address())]);
        command.arg(content);
        run(command)?;
        // aria2 calls it with an id, a count and the first file's path when it has all.
        std::fs::write(&hook, "#!/bin/sh\n: >\"$3.done\"\n")?;
        run(chmod(&hook))?;
        Ok(Self { file, hook, content: content.to_owned() })
    }

    pub fn seed(&self, host: &Host, log: &Path) -> Result<Process> {
        let folder = self.content.parent().context("a file lies in a folder")?;
        let mut command = self.aria2(host, folder);
        command.arg("--bt-seed-unverified=true").arg(&self.file);
        let seed = Process::start("seed", command, log)?;
        super::wait_for_port(host, host.address(), PEER_PORT)?;
        Ok(seed)
    }

    /// Downloads into `folder`, and gives to others also when it has all.
    pub fn take(&self, host: &Host, folder: &Path) -> Result<Taker> {
        std::fs::create_dir_all(folder)?;
        let mut command = self.aria2(host, folder);
        command.arg(format!("--on-bt-download-complete={}", self.hook.display())).arg(&self.file);
        let process = Process::start("aria2c", command, &folder.join("log"))?;
        let name = self.content.file_name().context("a file has a name")?.to_string_lossy();
        let done = folder.join(format!("{name}.done"));
        Ok(Taker { process, leaves: Some(done) })
    }

    fn aria2(&self, host: &Host, folder: &Path) -> Command {
        let mut command = host.command("aria2c");
        command.args(["--no-conf", "--quiet", "--seed-ratio=0.0", "--file-allocation=none"]);
        command.args(["--enable-dht=false", "--enable-dht6=false", "--enable-peer-exchange=true"]);
        command.arg(format!("--listen-port={PEER_PORT}")).arg("--dir").arg(folder);
        command
    }
}

fn chmod(path: &Path) -> Command {
    let mut command = Command::new("chmod");
    command.arg("755").arg(path);
    command
}

/// Answers every announcement with all others that announced before.
fn track(hub: &Host) -> Result<()> {
    let (hub, (bound, is_bound)) = (hub.clone(), mpsc::channel());
    thread::spawn(move || {
        let listener = hub.enter().and_then(|()| {
            Ok(TcpListener::bind((hub.address().parse::<IpAddr>()?, TRACKER_PORT))?)
        });
        let (listener, outcome) = match listener {
            Ok(listener) => (Some(listener), Ok(())),
            Err(error) => (None, Err(error)),
        };
        if bound.send(outcome).is_err() {
            return;
        }
        let mut peers: Vec<[u8; 6]> = Vec::new();
        for stream in listener.iter().flat_map(TcpListener::incoming).flatten() {
            // Who breaks off asks again.
            let _ = answer(stream, &mut peers);
        }
    });
    is_bound.recv().map_err(|_| anyhow!("the tracker's thread ended"))?
}

fn answer(mut stream: TcpStream, peers: &mut Vec<[u8; 6]>) -> Result<()> {
    let mut request = String::new();
    BufReader::new(&stream).read_line(&mut request)?;
    let port = request.split(['?', '&', ' ']).find_map(|part| part.strip_prefix("port="));
    let port: u16 = port.context("no port")?.parse()?;
    let IpAddr::V4(address) = stream.peer_addr()?.ip() else { return Ok(()) };
    let mut own = [0; 6];
    own[..4].copy_from_slice(&address.octets());
    own[4..].copy_from_slice(&port.to_be_bytes());
    if !peers.contains(&own) {
        peers.push(own);
    }
    let others: Vec<u8> = peers.iter().filter(|peer| **peer != own).flatten().copied().collect();
    let mut body = format!("d8:intervali{INTERVAL_SECONDS}e5:peers{}:", others.len()).into_bytes();
    body.extend(others);
    body.push(b'e');
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    Ok(stream.write_all(&body)?)
}
