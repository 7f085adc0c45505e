//! Figures that need jobs: how soon one is taken, told, followed, ended and pulled.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;

use super::service::{Service, between, time};
use super::{Row, figures, short};
use crate::measure::{self, Sample};
use crate::workspace;
use crate::{demo, steps};

/// `POST /v1/jobs` on a connection that stays open, beside the store's writes for it done raw. The only worker is kept busy with one job
/// that waits, so that no other work is measured with it.
pub fn create(ckrv: &Path) -> Result<Row> {
    const JOBS: usize = 300;
    let program = workspace::target_dir()?.join("release/examples/raw_writes");
    let raw = || -> Result<Vec<Duration>> {
        let text = steps::text(Command::new(&program).arg((JOBS / 2).to_string()))?;
        text.lines().map(|line| Ok(Duration::from_micros(line.parse()?))).collect()
    };
    let service = Service::start(ckrv, "capacity = 1\n")?;
    let gate = service.home.path("gate");
    let first = service.submit(&format!("while [ ! -e {} ]; do sleep 0.2; done", gate.display()))?;
    let mut beside = raw()?;
    let mut ours = Vec::with_capacity(JOBS);
    let mut ids = Vec::with_capacity(JOBS);
    for _ in 0..JOBS {
        let began = Instant::now();
        ids.push(service.submit("true")?);
        ours.push(began.elapsed());
    }
    beside.extend(raw()?);
    for id in ids {
        service.post(&format!("/v1/jobs/{id}/cancel"), &serde_json::json!({}))?;
    }
    std::fs::write(gate, "")?;
    service.ended(&first)?;
    let (ours, beside) = (Sample::new(ours), Sample::new(beside));
    Ok(Row::of_samples("`POST /v1/jobs`", &ours, ("the same writes done raw", &beside), "ratio 1.3"))
}

/// SC-001: `ckrv run --cloud`, from the start of the process until it ends with the id on its stdout.
pub fn dispatch(service: &Service) -> Result<Row> {
    let mut times = Vec::new();
    for run in 0..=30 {
        let mut command = service.ckrv(&["run", "--cloud", ".ckrv/specs/trivial.md"]);
        let began = Instant::now();
        let id = steps::text(&mut command)?;
        if run > 0 {
            times.push(began.elapsed());
        }
        // The next one meets an idle service, as a person's would.
        service.ended(&id)?;
    }
    let ours = Sample::new(times);
    let (version, _) = measure::beside(30, || measure::process(&mut service.ckrv(&["--version"])), || Ok(()))?;
    Ok(Row::of_samples(
        "SC-001: `ckrv run --cloud` until it returns the id",
        &ours,
        ("`ckrv --version`", &version),
        "p50 50 ms (SC-001: 10 s)",
    ))
}

/// SC-002: from a change of state, by the time that its record names, until `GET /v1/jobs/ID` tells it.
pub fn status(service: &Service) -> Result<Row> {
    let (mut told, mut asked) = (Vec::new(), Vec::new());
    for _ in 0..15 {
        let id = service.submit("sleep 0.2")?;
        let mut last = String::new();
        loop {
            let began = Instant::now();
            let job = service.get(&format!("/v1/jobs/{id}"))?;
            asked.push(began.elapsed());
            let state = job["state"].as_str().unwrap_or_default();
            if state != last {
                told.push(between(time(&job["updated_at"])?, Timestamp::now()));
                state.clone_into(&mut last);
            }
            if job["completed_at"].is_string() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let (told, asked) = (Sample::new(told), Sample::new(asked));
    Ok(Row::of_samples(
        "SC-002: a change of state until the API tells it, asked every 5 ms",
        &told,
        ("one such question", &asked),
        "SC-002: 5 s",
    ))
}

/// SC-003: from the moment that the agent prints a line (it prints the time) until `ckrv logs -f` has printed it.
pub fn log_line(service: &Service) -> Result<Row> {
    const LINES: usize = 200;
    let script = format!("sleep 1; i=0; while [ $i -lt {LINES} ]; do date +at=%s.%N=; i=$((i+1)); sleep 0.03; done");
    let mut times = Vec::new();
    for _ in 0..2 {
        let id = service.submit(&script)?;
        let mut command = service.ckrv(&["logs", "--follow", &id]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        for line in BufReader::new(child.stdout.take().context("no stdout")?).lines() {
            let (line, now) = (line?, Timestamp::now());
            let Some(at) = line.split("at=").nth(1).and_then(|rest| rest.split('=').next()) else { continue };
            let Some((seconds, nanos)) = at.split_once('.') else { continue };
            times.push(between(Timestamp::new(seconds.parse()?, nanos.parse()?)?, now));
        }
        ensure!(child.wait()?.success(), "ckrv logs failed");
    }
    // The last line of each comes once more, as the run's result.
    ensure!(times.len() >= 2 * LINES, "only {} of {} lines came", times.len(), 2 * LINES);
    let ours = Sample::new(times);
    Ok(Row {
        name: "SC-003: an agent's line until `ckrv logs -f` prints it".into(),
        figure: figures(&ours),
        beside: "-".to_owned(),
        ratio: None,
        goal: "p99 300 ms (SC-003: 2 s)",
    })
}

/// SC-005: from a job's end, by its record, until `ckrv wait && ckrv pull` has ended and the change is on a branch.
pub fn pulled(service: &Service) -> Result<Row> {
    let mut times = Vec::new();
    for number in 0..15 {
        let id = service.submit(&format!("sleep 0.3; echo {number} > n{number}.txt"))?;
        steps::output(&mut service.ckrv(&["wait", &id]))?;
        steps::output(&mut service.ckrv(&["pull", &id, "--branch", &format!("pulled{number}")]))?;
        let now = Timestamp::now();
        times.push(between(time(&service.ended(&id)?["completed_at"])?, now));
    }
    let ours = Sample::new(times);
    Ok(Row {
        name: "SC-005: a job's end until `ckrv wait && ckrv pull` is done".into(),
        figure: figures(&ours),
        beside: "-".to_owned(),
        ratio: None,
        goal: "2 s (SC-005: 30 s)",
    })
}

/// SC-006: a login without the person: from `ckrv cloud login` to page and code, and from the confirmation to the stored token. It polls
/// every 5 s, as the service says.
pub fn login(service: &mut Service) -> Result<Row> {
    let began = Instant::now();
    let root = service.home.path("");
    let mut login = service.home.start("ckrv", &["cloud", "login"], &root)?;
    let (page, code) = demo::page_and_code(&mut login)?;
    let shown = began.elapsed();
    demo::activate(&page, &code, &service.owner_code)?;
    login.finish()?;
    let all = began.elapsed();
    let figure = format!("{} until page and code are shown, {} in all", short(shown), short(all));
    Ok(Row {
        name: "SC-006: `ckrv cloud login` without the person's own time".into(),
        figure,
        beside: "polls every 5 s".to_owned(),
        ratio: None,
        goal: "SC-006: 60 s",
    })
}

/// From `created_at` to `completed_at`, beside the same command by itself.
pub fn trivial(service: &Service) -> Result<Row> {
    let folder = service.home.path("");
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for run in 0..=40 {
        let id = service.submit("echo done > done.txt")?;
        let job = service.ended(&id)?;
        let began = Instant::now();
        measure::process(&mut service.home.command("sh", &["-c", "echo done > done.txt"], &folder))?;
        if run > 0 {
            bare.push(began.elapsed());
            ours.push(between(time(&job["created_at"])?, time(&job["completed_at"])?));
        }
    }
    let (ours, bare) = (Sample::new(ours), Sample::new(bare));
    Ok(Row::of_samples(
        "a trivial job by the process launcher, from made to ended",
        &ours,
        ("its command run bare", &bare),
        "150 ms more than bare",
    ))
}

/// Memory of the service after 1,000 jobs, beside what it was after the first 100.
pub fn memory_after_jobs(service: &Service) -> Result<Row> {
    let jobs = |count: usize| -> Result<()> {
        let ids = (0..count).map(|_| service.submit("true")).collect::<Result<Vec<_>>>()?;
        ids.iter().try_for_each(|id| service.ended(id).map(drop))
    };
    let mb = |kib: u64| kib as f64 * 1024.0 / 1e6;
    jobs(100)?;
    let early = mb(measure::resident_kib(service.process.id())?);
    for _ in 0..9 {
        jobs(100)?;
    }
    let late = mb(measure::resident_kib(service.process.id())?);
    let figure = format!("{late:.1} MB ({:+.1} kB per job)", (late - early) * 1000.0 / 900.0);
    Ok(Row {
        name: "memory of `ckrv serve` after 1,000 trivial jobs".into(),
        figure,
        beside: format!("after the first 100: {early:.1} MB"),
        ratio: Some(late / early),
        goal: "flat",
    })
}
