//! How figures are taken: many runs, their percentiles, and something run beside them to compare with.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Durations of equal runs, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample(Vec<Duration>);

impl Sample {
    pub fn new(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        Self(durations)
    }

    /// The duration that `percent` of the runs did not exceed (nearest rank); zero when nothing was measured.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }

    pub fn p50(&self) -> Duration {
        self.percentile(50)
    }

    pub fn p99(&self) -> Duration {
        self.percentile(99)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Runs two things in turn, so that a busy moment of the machine meets both alike. The first pair is not counted.
pub fn beside(
    runs: usize,
    mut ours: impl FnMut() -> Result<()>,
    mut other: impl FnMut() -> Result<()>,
) -> Result<(Sample, Sample)> {
    let mut samples = (Vec::with_capacity(runs), Vec::with_capacity(runs));
    for run in 0..=runs {
        let pair = (timed(&mut ours)?, timed(&mut other)?);
        if run > 0 {
            samples.0.push(pair.0);
            samples.1.push(pair.1);
        }
    }
    Ok((Sample::new(samples.0), Sample::new(samples.1)))
}

fn timed(run: &mut impl FnMut() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    run()?;
    Ok(began.elapsed())
}

/// Runs a process to its end without output.
pub fn process(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let status = status.with_context(|| format!("can't start {}", crate::steps::shown(command)))?;
    if status.success() { Ok(()) } else { bail!("{} ended with {status}", crate::steps::shown(command)) }
}

/// Resident memory of a process, in KiB (Linux).
pub fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("no such process, or no /proc")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.split_whitespace().next().and_then(|word| word.parse().ok()).context("VmRSS is no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let sample = Sample::new((1..=100).rev().map(Duration::from_millis).collect());
        assert_eq!(sample.p50(), Duration::from_millis(50));
        assert_eq!(sample.p99(), Duration::from_millis(99));
        assert_eq!(Sample::new(vec![]).p50(), Duration::ZERO);
        assert_eq!(Sample::new(vec![Duration::from_millis(7)]).p99(), Duration::from_millis(7));
    }

    #[test]
    fn both_are_run_equally_often_and_the_first_pair_is_dropped() {
        let (mut ours, mut other) = (0, 0);
        let count = |n: &mut i32| {
            *n += 1;
            Ok(())
        };
        let samples = beside(3, || count(&mut ours), || count(&mut other)).unwrap();
        assert_eq!((samples.0.len(), samples.1.len(), ours, other), (3, 3, 4, 4));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn our_own_memory_can_be_read() {
        assert!(resident_kib(std::process::id()).unwrap() > 100);
    }
}
