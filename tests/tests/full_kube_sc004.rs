//! SC-004 in the cluster, and each fault of the API server alone for as long as it lasts in life: `cargo xtask soak` runs them.

#![expect(clippy::disallowed_methods, reason = "a shorter trial is asked for by the environment")]

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::kube_faults::{DISPATCHER, Day, Fault, On, RUNNER, WatchEnd, When};
use ckrv_tests::records::Records;
use ckrv_tests::wait::{PATIENCE, wait_until};
use ckrv_tests::witness::{Witness, one_end};

const JOBS: usize = 200;
const AT_ONCE: usize = 10;
/// Of all calls; the fifth part of them is carried out all the same.
const FAILING: f64 = 0.05;
/// A job that takes longer is lost.
const LONGEST: Duration = Duration::from_secs(900);
const OUTAGE: Duration = Duration::from_secs(30);

/// Many small jobs side by side.
fn config() -> toml::Table {
    toml::toml! {
        capacity = 10
        max_running = 20
        [policy.max_resources]
        cpu_millis = 100
        memory_mib = 128
        disk_mib = 256
    }
}

/// Every call has the same chance; an answer that is lost is one of those.
fn failing() -> Vec<(On, When, Fault)> {
    let lost = FAILING / 5.0;
    vec![
        (On::verb("watch"), When::Chance(FAILING), Fault::RefuseSomehow),
        (On::verb("watch"), When::Always, Fault::Pass),
        (On::any(), When::Chance(lost), Fault::AnswerLost),
        (On::any(), When::Chance((FAILING - lost) / (1.0 - lost)), Fault::RefuseSomehow),
    ]
}

#[derive(Debug, Default)]
struct Figures {
    ended: usize,
    succeeded: usize,
    lost: usize,
    duplicate_ends: usize,
    attempts: Vec<u64>,
    log_entries: usize,
    took: Vec<Duration>,
    /// Of those with another attempt.
    took_again: Vec<Duration>,
}

impl Figures {
    /// Looks at a job that has ended.
    async fn settle(&mut self, day: &Day, job: &Witness, took: Duration) -> Result<()> {
        let records = Records::of(&day.scene.server);
        let record = records.job(&job.id).await?;
        self.ended += 1;
        self.duplicate_ends += usize::from(one_end(&records.events(&job.id).await?).is_err());
        let attempts = record["attempt"].as_u64().context("no attempt")?;
        self.attempts.push(attempts);
        self.took.push(took);
        if attempts > 1 {
            self.took_again.push(took);
        }
        if record["state"] == "succeeded" {
            self.succeeded += 1;
            self.log_entries += job.check(&day.api, &day.scene.server).await?.entries;
            return Ok(());
        }
        say(&format!("ended otherwise: {record:#}"))
    }

    fn by_attempts(&self) -> Vec<(u64, usize)> {
        let most = self.attempts.iter().copied().max().unwrap_or(0);
        (1..=most).map(|wanted| (wanted, self.attempts.iter().filter(|attempts| **attempts == wanted).count())).collect()
    }
}

/// At the middle, at 99 of 100, at most.
fn spread(times: &[Duration]) -> String {
    let mut times = times.to_vec();
    times.sort();
    let at = |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)));
    let seconds = |time: Option<&Duration>| time.map_or(0.0, Duration::as_secs_f64);
    format!("median {:.1} s, p99 {:.1} s, most {:.1} s", seconds(at(0.5)), seconds(at(0.99)), seconds(at(1.0)))
}

fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// No pod of ours is left, of no job.
async fn nothing_is_left(day: &Day) -> Result<()> {
    let cluster = day.scene.server.cluster()?;
    wait_until("no pod is left", PATIENCE * 5, async || {
        let (jobs, agents) = (cluster.pods("job").await.ok()?, cluster.pods("agent").await.ok()?);
        (jobs.is_empty() && agents.is_empty()).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour: cargo xtask soak"]
async fn soak_sc004_two_hundred_jobs_while_one_call_in_twenty_fails() -> Result<()> {
    let jobs = std::env::var("CKRV_SOAK_JOBS").ok().and_then(|text| text.parse().ok()).unwrap_or(JOBS);
    let day = Day::begin(config(), &failing()).await?;
    let begin = Instant::now();
    let (mut figures, mut open, mut submitted) = (Figures::default(), Vec::new(), 0);
    while submitted < jobs || !open.is_empty() {
        while submitted < jobs && open.len() < AT_ONCE {
            submitted += 1;
            open.push((day.submit(&format!("j{submitted}")).await?, Instant::now()));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        for (job, since) in std::mem::take(&mut open) {
            if day.api.job(&job.id).await?["completed_at"].is_string() {
                figures.settle(&day, &job, since.elapsed()).await?;
                if figures.ended.is_multiple_of(20) {
                    say(&format!("{} ended after {:.0?}, attempts {:?}", figures.ended, begin.elapsed(), figures.by_attempts()))?;
                }
            } else if since.elapsed() > LONGEST {
                figures.lost += 1;
                say(&format!("lost: {}", day.api.job(&job.id).await?))?;
            } else {
                open.push((job, since));
            }
        }
    }
    nothing_is_left(&day).await?;
    let calls = day.proxy.calls();
    say(&format!(
        "{jobs} jobs in {:.0?}: {} succeeded, {} lost, {} duplicate ends, {} log entries; attempts {:?}; \
         from submit to end: {}; with another attempt: {}\n{calls}\n{:.1} calls a job",
        begin.elapsed(),
        figures.succeeded,
        figures.lost,
        figures.duplicate_ends,
        figures.log_entries,
        figures.by_attempts(),
        spread(&figures.took),
        spread(&figures.took_again),
        calls.total().asked as f64 / jobs as f64,
    ))?;
    ensure!(figures.lost == 0 && figures.duplicate_ends == 0, "{figures:?}");
    ensure!(figures.succeeded * 100 >= jobs * 95, "{} of {jobs} succeeded: {figures:?}", figures.succeeded);
    Ok(())
}

/// One fault alone: it holds while jobs are under way and new ones come; once it is over, all must end well.
async fn one_fault(day: &Day, name: &str, rules: &[(On, When, Fault)], away: Option<fn(&Day)>) -> Result<()> {
    let tag = |number: usize| format!("{}-{number}", name.replace(' ', "-"));
    let mut jobs = vec![day.submit(&tag(0)).await?, day.submit(&tag(1)).await?];
    for (on, when, fault) in rules {
        day.proxy.rule(*on, *when, *fault);
    }
    // The watches of now know nothing of the rules.
    day.proxy.cut().await;
    if let Some(away) = away {
        let claimed = async || day.api.job(&jobs[0].id).await.ok().filter(|job| job["state"] != "queued").map(drop);
        wait_until("a job is under way", PATIENCE, claimed).await?;
        away(day);
    }
    jobs.extend([day.submit(&tag(2)).await?, day.submit(&tag(3)).await?]);
    if away.is_some() {
        tokio::time::sleep(OUTAGE).await;
        day.proxy.heal();
    }
    let (over, mut recoveries, mut attempts) = (Instant::now(), Vec::new(), Vec::new());
    for job in &jobs {
        attempts.push(day.succeeded(job).await?.attempts);
        recoveries.push(over.elapsed());
    }
    day.proxy.heal();
    nothing_is_left(day).await?;
    say(&format!("{name}: attempts {attempts:?}, ended after {}, no pod left after {:.1?}", spread(&recoveries), over.elapsed()))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes ten minutes: cargo xtask soak"]
async fn soak_each_fault_of_the_api_server_is_got_over() -> Result<()> {
    let day = Day::begin(config(), &[]).await?;
    let watches = |agent, end| [(On::pods(agent, "watch"), When::Times(8), Fault::Ends(end, Duration::from_secs(3)))];
    let never = |agent| [(On::pods(agent, "watch"), When::Times(1), Fault::BlackHole)];
    one_fault(&day, "one call in five refused", &[(On::any(), When::Chance(0.2), Fault::RefuseSomehow)], None).await?;
    for agent in [DISPATCHER, RUNNER] {
        one_fault(&day, &format!("{agent} watches cut"), &watches(agent, WatchEnd::Cut), None).await?;
        one_fault(&day, &format!("{agent} watches 410"), &watches(agent, WatchEnd::Expires), None).await?;
        one_fault(&day, &format!("{agent} watches silent"), &watches(agent, WatchEnd::Stalls), None).await?;
        one_fault(&day, &format!("{agent} watches never begin"), &never(agent), None).await?;
    }
    one_fault(&day, "away", &[], Some(|day| day.proxy.refuse())).await?;
    one_fault(&day, "hangs", &[], Some(|day| day.proxy.hang())).await?;
    say(&day.proxy.calls().to_string())
}
