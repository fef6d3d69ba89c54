//! Clocks of single processes that jump.
//!
//! The kernel has no namespace for the wall clock, and the machine's own must not be touched, so a
//! library is preloaded that adds an offset (`skew.c`, which says why it is not libfaketime).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::process::{repository, run};

/// Where the offset stands for the processes.
const VARIABLE: &str = "SHOAL_TEST_CLOCK";

/// One process's wall clock.
#[derive(Debug)]
pub struct Clock {
    file: File,
    path: PathBuf,
    library: PathBuf,
}

/// Builds the library that [`Clock`] needs.
pub fn build(folder: &Path) -> Result<PathBuf> {
    let library = folder.join("skew.so");
    let mut command = Command::new(std::env::var_os("CC").unwrap_or_else(|| "clang".into()));
    command.args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]).arg(&library);
    command.arg(repository().join("tests/src/skew.c"));
    run(command)?;
    Ok(library)
}

impl Clock {
    /// A right clock, which jumps by what is written to `path`.
    pub fn create(path: &Path, library: &Path) -> Result<Self> {
        let file = File::create(path)?;
        let clock = Self { file, path: path.into(), library: library.into() };
        clock.set(0)?;
        Ok(clock)
    }

    /// What a process needs to be under this clock.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        vec![
            ("LD_PRELOAD".to_owned(), text(&self.library)),
            (VARIABLE.to_owned(), text(&self.path)),
        ]
    }

    /// From now on the clock is wrong by so many milliseconds.
    pub fn set(&self, offset_ms: i64) -> Result<()> {
        Ok(self.file.write_all_at(&offset_ms.to_ne_bytes(), 0)?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::process::run_text;

    #[test]
    fn a_process_sees_its_clock_jump() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let clock = Clock::create(&folder.path().join("clock"), &build(folder.path())?)?;
        for hours in [0, -2, 3] {
            clock.set(hours * 3_600_000)?;
            let mut command = Command::new("date");
            command.arg("+%s").envs(clock.environment());
            let seen: i64 = run_text(command)?.parse()?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().cast_signed();
            assert!((seen - now - hours * 3600).abs() < 300, "{hours} hours: {seen} at {now}");
        }
        Ok(())
    }
}
