//! Many clients at once for a while, and what they saw.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use tokio::task::JoinSet;

/// The figures of one contestant in one case.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Figures {
    /// Operations a second.
    pub rate: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// CPU seconds of the server for 1000 operations.
    pub server_cpu_per_1000: f64,
}

/// Runs `clients` at once until `duration` is over; each calls `work` again and again with a number
/// that nobody else gets. `start` makes a client's state.
pub async fn run<C, Start, Work>(
    clients: usize,
    duration: Duration,
    start: Start,
    work: Work,
) -> Result<Vec<Duration>>
where
    C: Send + 'static,
    Start: AsyncFn() -> Result<C>,
    Work: for<'a> Fn(&'a mut C, u64) -> futures::future::BoxFuture<'a, Result<()>>
        + Send
        + Sync
        + 'static,
{
    let work = Arc::new(work);
    let mut states = Vec::new();
    for _ in 0..clients {
        states.push(start().await?);
    }
    let end = Instant::now() + duration;
    let mut tasks = JoinSet::new();
    for (client, mut state) in states.into_iter().enumerate() {
        let work = Arc::clone(&work);
        tasks.spawn(async move {
            let mut times = Vec::new();
            let mut number = client as u64;
            loop {
                let began = Instant::now();
                work(&mut state, number).await?;
                times.push(began.elapsed());
                number += clients as u64;
                if Instant::now() >= end {
                    return anyhow::Ok(times);
                }
            }
        });
    }
    let mut all = Vec::new();
    while let Some(times) = tasks.join_next().await {
        all.extend(times??);
    }
    Ok(all)
}

/// The quantile `q` (0 to 1) of sorted times, in milliseconds.
pub fn quantile_ms(sorted: &[Duration], q: f64) -> f64 {
    let index = ((sorted.len() as f64 * q) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let times: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert!((quantile_ms(&times, 0.5) - 51.0).abs() < 1e-9);
        assert!((quantile_ms(&times, 0.99) - 100.0).abs() < 1e-9);
        assert!(quantile_ms(&[], 0.5).is_nan());
    }
}
