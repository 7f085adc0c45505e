//! Two lanes of tests at once: those of the cluster wait for pods most of the time, and leave the processors to the others.

use std::fs::File;
use std::io::{self, Seek as _};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::steps::{self, Steps, say};

/// One call of `cargo test`.
pub struct Part {
    name: &'static str,
    command: Command,
}

impl Part {
    /// The filter of test names comes behind all of cargo's own arguments, or behind `--`, where the tests read it as well.
    pub fn new(name: &'static str, mut command: Command, filter: Option<&str>) -> Self {
        command.args(filter);
        Self { name, command }
    }
}

/// Runs both lanes to their ends whatever fails, so that one run tells of everything. The one beside is shown when it has ended.
pub fn run(steps: &mut Steps, front: Vec<Part>, beside: Vec<Part>) -> Result<()> {
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| beside.into_iter().map(captured).collect::<Vec<_>>());
        let mut failed = Vec::new();
        for Part { name, mut command } in front {
            if let Err(error) = steps.run(name, || steps::run(&mut command)) {
                say(&format!("    failed: {error:#}"));
                failed.push(name);
            }
        }
        for Captured { name, took, output, result } in steps::joined(beside.join()) {
            let shown = steps.run(&format!("{name}, beside the others: {:.1} s", took.as_secs_f64()), || {
                output.and_then(|mut output| Ok(io::copy(&mut output, &mut io::stdout().lock())?))?;
                result
            });
            if let Err(error) = shown {
                say(&format!("    failed: {error:#}"));
                failed.push(name);
            }
        }
        if !failed.is_empty() {
            bail!("failed: {}", failed.join("; "));
        }
        Ok(())
    })
}

struct Captured {
    name: &'static str,
    took: Duration,
    output: Result<File>,
    result: Result<()>,
}

/// Where the command will write all that it says.
fn file(command: &mut Command) -> Result<File> {
    let file = tempfile::tempfile()?;
    command.stdout(file.try_clone()?).stderr(file.try_clone()?);
    Ok(file)
}

fn captured(Part { name, mut command }: Part) -> Captured {
    let began = Instant::now();
    let output = file(&mut command);
    let result = if output.is_ok() { steps::run(&mut command) } else { Ok(()) };
    let output = output.and_then(|mut file| {
        file.rewind()?;
        Ok(file)
    });
    Captured { name, took: began.elapsed(), output, result }
}
