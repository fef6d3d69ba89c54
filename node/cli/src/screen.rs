//! What people and programs see: tables or one JSON document, sizes, rates, bars.
//!
//! Invariant: with `--json`, standard output carries one document and nothing else; bars and
//! remarks go to standard error, bars only to a terminal. A log gets a line now and then instead.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::error::Error;

/// How often bars are drawn, per second.
const DRAW_RATE_HZ: u8 = 8;
/// How often it is said how far something is, where there is no bar.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

/// How this call shows its results.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    pub json: bool,
    /// Results and remarks are not shown; errors are.
    pub quiet: bool,
}

impl Screen {
    /// Shows a result: `value` for programs, `people` for people.
    pub fn show(
        self,
        value: &impl Serialize,
        people: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        if self.quiet {
            return Ok(());
        }
        let text = if self.json {
            serde_json::to_string_pretty(value).map_err(|e| Error::Answer(e.to_string()))?
        } else {
            people()
        };
        write_out(format!("{}\n", text.trim_end()).as_bytes())
    }

    /// A line for people about what goes on.
    pub fn remark(self, text: &str) {
        if !self.json && !self.quiet {
            eprintln!("{text}");
        }
    }

    pub fn bars(self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }

    pub fn draw_target(self) -> ProgressDrawTarget {
        if self.bars() {
            ProgressDrawTarget::stderr_with_hz(DRAW_RATE_HZ)
        } else {
            ProgressDrawTarget::hidden()
        }
    }

    /// Something that moves while nobody knows how long it takes.
    pub fn spinner(self, message: &str) -> ProgressBar {
        let spinner = ProgressBar::with_draw_target(None, self.draw_target());
        spinner.set_message(message.to_owned());
        spinner.enable_steady_tick(Duration::from_secs(1) / u32::from(DRAW_RATE_HZ));
        spinner
    }

    /// Something of `total` bytes that goes on for long.
    pub fn progress(self, label: &'static str, total: u64) -> Progress {
        let bar = self.byte_bar(label, total);
        let lines = Lines::new(label, total, Instant::now());
        Progress { bar, screen: self, is_drawn: self.bars(), lines }
    }

    /// A bar over `bytes` bytes with rate and rest.
    pub fn byte_bar(self, label: &str, bytes: u64) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(bytes), self.draw_target());
        bar.set_style(byte_style());
        bar.set_prefix(label.to_owned());
        bar
    }
}

/// How far something is: a bar on a terminal, else a line now and then. The bar goes with it.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    screen: Screen,
    /// Whether anybody sees the bar.
    is_drawn: bool,
    lines: Lines,
}

impl Progress {
    /// It begins here, with so much of it there already: the rate is that of what comes now.
    pub fn begin(&mut self, position: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(position);
        self.bar.reset_eta();
        self.lines.total = total;
        self.lines.from = position;
        self.lines.begun = Instant::now();
    }

    pub fn set(&mut self, position: u64) {
        self.bar.set_position(position);
        if self.is_drawn {
            return;
        }
        if let Some(line) = self.lines.due(position, Instant::now()) {
            self.screen.remark(&line);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// What a log is told, and when. Gets the time as an argument.
#[derive(Debug)]
struct Lines {
    label: &'static str,
    total: u64,
    from: u64,
    begun: Instant,
    said: Instant,
}

impl Lines {
    fn new(label: &'static str, total: u64, now: Instant) -> Self {
        Self { label, total, from: 0, begun: now, said: now }
    }

    fn due(&mut self, position: u64, now: Instant) -> Option<String> {
        if now.saturating_duration_since(self.said) < LINE_INTERVAL {
            return None;
        }
        self.said = now;
        let came = position.saturating_sub(self.from);
        Some(format!(
            "{}: {} of {} ({} %), {}",
            self.label,
            bytes(position),
            bytes(self.total),
            percent(position, self.total),
            rate(per_second(came, now.saturating_duration_since(self.begun)))
        ))
    }
}

/// So many bytes in that time, as bytes per second.
pub fn per_second(bytes: u64, elapsed: Duration) -> u64 {
    (bytes as f64 / elapsed.as_secs_f64().max(0.001)) as u64
}

/// Writes to standard output.
pub fn write_out(bytes: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // Whoever reads us may stop reading, as `head` does.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::file("writing", "standard output")(error))
        }
        _ => Ok(()),
    }
}

pub fn byte_style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix:<16!} [{bar:28}] {percent:>3}%  {bytes}/{total_bytes}  {bytes_per_sec}  {eta} {wide_msg}",
    )
    .expect("the template is a constant")
    .progress_chars("=> ")
}

/// A table with a bold head, without frames.
pub fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !colours() {
        table.force_no_tty();
    }
    table.set_header(head.iter().map(|text| Cell::new(text).add_attribute(Attribute::Bold)));
    table
}

/// A state in its colour.
pub fn state(text: &str) -> Cell {
    let colour = match text {
        "done" | "active" | "leader" | "online" => Color::Green,
        "failed" | "offline" | "cancelled" | "CRITICAL" | "HIGH" => Color::Red,
        "MEDIUM" | "running" | "waiting" | "queued" | "paused" | "processing" | "receiving"
        | "learner" => Color::Yellow,
        _ => return Cell::new(text),
    };
    Cell::new(text).fg(colour)
}

/// Whether standard output takes colours (<https://no-color.org>).
pub fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

pub fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// Nothing where nothing had to be moved.
pub fn rate(bytes_per_second: u64) -> String {
    if bytes_per_second == 0 { "-".into() } else { format!("{}/s", HumanBytes(bytes_per_second)) }
}

pub fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}

/// `part` of `whole`, in whole percent.
pub fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { (u128::from(part) * 100 / u128::from(whole)) as u64 }
}

/// Asks a question on the terminal; without one, the answer is no.
pub fn confirm(question: &str) -> Result<bool, Error> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(Error::file("reading", "the terminal"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_carry_no_colour_codes_away_from_a_terminal() {
        let mut table = table(&["A", "STATE"]);
        table.add_row([Cell::new("x"), state("failed")]);
        let text = table.to_string();
        assert!(text.contains("STATE") && text.contains("failed"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn a_log_is_told_now_and_then_how_far_it_is_and_how_fast() {
        let begun = Instant::now();
        let mut lines = Lines::new("uploading", 4 << 30, begun);
        lines.from = 1 << 30;
        assert_eq!(lines.due(1 << 30, begun + LINE_INTERVAL / 2), None);
        let line = lines.due(2 << 30, begun + LINE_INTERVAL * 2).unwrap();
        assert_eq!(line, "uploading: 2.00 GiB of 4.00 GiB (50 %), 17.07 MiB/s");
        assert_eq!(lines.due(3 << 30, begun + LINE_INTERVAL * 2), None, "it was just said");
    }

    #[test]
    fn percent_of_nothing_is_nothing_and_of_much_is_exact() {
        assert_eq!(percent(1, 0), 0);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
        assert_eq!(percent(2, 3), 66);
    }
}
