//! What came of faults: a line for each job, which `cargo xtask soak` makes its table of.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::bench;

/// Of one job that met a fault.
#[derive(Clone, Debug)]
pub struct Figure {
    pub fault: &'static str,
    /// From the fault to what the agent said next, or to the job's end. `None`: its deadline came first.
    pub recovery: Option<f64>,
    pub attempts: u64,
    pub end: String,
    /// From its end until no pod of it was left.
    pub pods_gone: f64,
}

impl Figure {
    /// Prints it, and adds it to the file that a soak has named.
    pub fn tell(&self) -> Result<()> {
        note(&json!({
            "fault": self.fault, "recovery": self.recovery, "attempts": self.attempts, "end": self.end, "pods_gone": self.pods_gone,
        }))
    }
}

/// A line of whatever a soak counts.
pub fn note(line: &Value) -> Result<()> {
    writeln!(std::io::stdout(), "{line}")?;
    let Some(path) = bench::soak_figures() else { return Ok(()) };
    let mut file = std::fs::File::options().create(true).append(true).open(path)?;
    Ok(file.write_all(format!("{line}\n").as_bytes())?)
}

/// When the job went on after this moment: the agent's next words, if need be of another attempt than the one that was struck; else its end.
pub fn went_on(log: &[Value], record: &Value, struck: Timestamp, fence: u64) -> Result<Timestamp> {
    let taken_over = record["fence"].as_u64().is_some_and(|last| last > fence);
    let is_next = |entry: &&Value, at: Timestamp| match entry["fence"].as_u64() {
        Some(own) if taken_over => own > fence,
        _ => at > struck,
    };
    for entry in log.iter().filter(|entry| entry["event"]["type"] == "message") {
        let at = time(entry, "timestamp")?;
        if is_next(&entry, at) {
            return Ok(at);
        }
    }
    time(record, "completed_at")
}

pub fn time(value: &Value, name: &str) -> Result<Timestamp> {
    value[name].as_str().with_context(|| format!("no {name} in {value}"))?.parse().context("not a time")
}

pub fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}
