//! A server in a process of its own, with what it costs.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};

const START_DEADLINE: Duration = Duration::from_secs(60);

/// Killed when it is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts it, with its output in `log`.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let log = std::fs::File::create(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("{command:?} does not start"))?;
        Ok(Self { child })
    }

    /// Waits until something listens at `address`.
    pub async fn listening(&mut self, address: &str, log: &Path) -> Result<()> {
        let end = Instant::now() + START_DEADLINE;
        while tokio::net::TcpStream::connect(address).await.is_err() {
            if self.child.try_wait()?.is_some() || Instant::now() > end {
                let mut text = String::new();
                std::fs::File::open(log)?.read_to_string(&mut text)?;
                bail!("nothing listens at {address}:\n{text}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// User and system time so far.
    pub fn cpu(&self) -> Result<Duration> {
        cpu_of(self.child.id())
    }

    /// See [`memory_mib_of`].
    pub fn memory_mib(&self, field: &str) -> Result<f64> {
        memory_mib_of(self.child.id(), field)
    }
}

/// User and system time of a process so far, in steps of 10 ms; not that of its children.
///
/// # Errors
/// Where there is no such process, or it was waited for.
pub fn cpu_of(process: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name may have spaces; the fields are counted from its end (proc(5)).
    let (_, fields) = stat.rsplit_once(')').context("no stat")?;
    let ticks = |index: usize| -> Result<u64> {
        Ok(fields.split_whitespace().nth(index).context("a short stat")?.parse()?)
    };
    const TICKS_PER_SECOND: u64 = 100;
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 1000 / TICKS_PER_SECOND))
}

/// User and system time of this process, or of all its children that it waited for.
///
/// # Errors
/// Where the kernel does not say.
pub fn own_cpu(who: UsageWho) -> Result<Duration> {
    let usage = getrusage(who)?;
    let times = [usage.user_time(), usage.system_time()];
    let times =
        times.map(|time| Duration::new(time.tv_sec().unsigned_abs(), time.tv_usec() as u32 * 1000));
    Ok(times.iter().sum())
}

/// A field of `/proc/PID/status` in MiB, such as `VmHWM` (the peak) or `VmRSS`.
///
/// # Errors
/// Where there is no such process or field; one that has ended has no memory.
pub fn memory_mib_of(process: u32, field: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib: f64 = line.context("no such field")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// The peak of a process's memory counts from now on.
///
/// # Errors
/// Where the process is gone, or is somebody else's.
pub fn forget_memory_peak(process: u32) -> Result<()> {
    // What 5 does is in proc_pid_clear_refs(5).
    Ok(std::fs::write(format!("/proc/{process}/clear_refs"), "5")?)
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
