//! What the soak tests counted, as a table: they write lines of JSON, one for each job that met a fault and one for each series of cuts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::Value;

#[derive(Default)]
struct Fault {
    recoveries: Vec<f64>,
    gone: Vec<f64>,
    attempts: BTreeSet<u64>,
    ends: BTreeSet<String>,
}

/// Empty where nothing was counted.
pub fn table(lines: &str) -> Result<String> {
    let mut faults: BTreeMap<String, Fault> = BTreeMap::new();
    let mut cuts: BTreeMap<String, u64> = BTreeMap::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).context("a figure can't be read")?;
        if let Some(name) = line["fault"].as_str() {
            let fault = faults.entry(name.to_owned()).or_default();
            fault.recoveries.extend(line["recovery"].as_f64());
            fault.gone.extend(line["pods_gone"].as_f64());
            fault.attempts.extend(line["attempts"].as_u64());
            fault.ends.extend(line["end"].as_str().map(str::to_owned));
        }
        for (name, count) in line["cuts"].as_object().into_iter().flatten() {
            *cuts.entry(format!("cuts: {name}")).or_default() += count.as_u64().unwrap_or(0);
        }
        for name in ["jobs", "lost_attempts"] {
            if let Some(count) = line[name].as_u64() {
                *cuts.entry(name.replace('_', " ")).or_default() += count;
            }
        }
    }
    let mut text = String::new();
    if !faults.is_empty() {
        text += "| Fault | Jobs | Recovery p50, s | p99, s | Attempts | End | Pods gone after, s, at most |\n|---|---|---|---|---|---|---|\n";
    }
    for (name, fault) in &mut faults {
        write!(text, "| {name} | {} ", fault.gone.len())?;
        write!(text, "| {} | {} ", rank(&mut fault.recoveries, 50), rank(&mut fault.recoveries, 99))?;
        writeln!(text, "| {} | {} | {} |", joined(&fault.attempts), joined(&fault.ends), rank(&mut fault.gone, 100))?;
    }
    let mut all: Vec<f64> = faults.values().flat_map(|fault| fault.recoveries.iter().copied()).collect();
    if !all.is_empty() {
        writeln!(text, "| all | {} | {} | {} | | | |", all.len(), rank(&mut all, 50), rank(&mut all, 99))?;
    }
    for (name, count) in cuts {
        writeln!(text, "{name}: {count}")?;
    }
    Ok(text)
}

/// The smallest value that this many percent don't exceed.
fn rank(values: &mut [f64], percent: usize) -> String {
    values.sort_by(f64::total_cmp);
    let place = (values.len() * percent).div_ceil(100);
    values.get(place.saturating_sub(1)).map_or_else(|| "none".to_owned(), |value| format!("{value:.1}"))
}

fn joined(values: &BTreeSet<impl ToString>) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_one_fault_are_one_row_and_cuts_are_summed() {
        let lines = r#"{"fault":"kill","recovery":9.0,"attempts":2,"end":"succeeded","pods_gone":3.0}
{"fault":"kill","recovery":5.0,"attempts":1,"end":"succeeded","pods_gone":1.0}
{"cuts":{"shim":3,"watch":1},"jobs":2,"lost_attempts":0}
{"cuts":{"shim":4},"jobs":1,"lost_attempts":1}"#;
        let table = table(lines).unwrap();
        for row in [
            "| kill | 2 | 5.0 | 9.0 | 1, 2 | succeeded | 3.0 |",
            "| all | 2 |",
            "cuts: shim: 7",
            "cuts: watch: 1",
            "lost attempts: 1",
        ] {
            assert!(table.contains(row), "{row}\n{table}");
        }
        assert_eq!(super::table("").unwrap(), "");
    }
}
