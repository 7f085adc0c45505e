//! Execute: one agent run after another in one checkout, until its adapter is content or gives up. Output becomes events, events become log
//! entries; at the end the changes become one commit.

use std::io::Write;
use std::time::Duration;

use ckrv_core::event::{AgentEvent, Usage};
use ckrv_core::job::{Facts, Outcome, OutcomeClass};
use ckrv_core::log::Level;
use ckrv_core::plan::{self, Decision, ExitStatus, OutputLine, PastRun, Phase, RunOutcome};
use tokio::sync::mpsc;

use super::Context;
use super::failure::Failure;
use super::log::{JobLog, names};
use super::plan::{Agent, Planned, blocking, plan, seconds_left};
use super::prepare::Prepared;
use super::sandbox::{Place, Sandbox, out_of_memory};
use super::verify::{describe, exit_status, run_commands};
use crate::adapter::{Transcript, Verdict};
use crate::git::{CommitInfo, ResultLimits, commit_result};
use crate::launch::{self, CollectLimits, Egress, Hung, LineSplitter, PlacedFile, Route, RunSpec, StopSignal, Watchdog};
use crate::launch_choice::LauncherChoice;

/// Agent runs of one execution: the first and its retries.
const MAX_RUNS: u32 = 4;
const MAX_DELAY_SECONDS: u32 = 300;
/// Lines that an adapter gets at once.
const BATCH_LINES: usize = 64;
const BATCH_BYTES: usize = 256 * 1024;

/// Runs the agent and commits what it changed; gives the commit.
pub async fn execute(
    context: &Context,
    prepared: &Prepared,
    agent: &mut Agent,
    first: &Planned,
    facts: &mut Facts,
) -> Result<String, Failure> {
    let parent = facts.head_sha.clone().unwrap_or_else(|| prepared.base.clone());
    let place = Place {
        name: format!("run{}", agent.run_number),
        image: &first.granted.request.image,
        resources: first.granted.request.resources,
    };
    agent.image = Some(first.granted.request.image.clone());
    let mut sandbox = Sandbox::open(context, &prepared.git, &parent, &prepared.branch, place).await?;
    if let Some(failed) = run_commands(context, &mut sandbox, "setup", &context.spec.setup).await? {
        return Err(Failure::Ends(
            Outcome::new(OutcomeClass::Agent, format!("the setup command `{}` failed: {}", failed.command, failed.how))
                .hint("see `ckrv logs` for its output"),
        ));
    }
    run_until_content(context, agent, first, &mut sandbox, facts).await?;
    let head = collect(context, prepared, &mut sandbox, &parent).await;
    if head.is_ok() {
        sandbox.close().await;
    }
    head
}

async fn run_until_content(
    context: &Context,
    agent: &mut Agent,
    first: &Planned,
    sandbox: &mut Sandbox,
    facts: &mut Facts,
) -> Result<(), Failure> {
    let mut again: Option<Planned> = None;
    for _ in 0..MAX_RUNS {
        let planned = again.as_ref().unwrap_or(first);
        let (exit, verdict) = run_once(context, agent, planned, sandbox, facts).await?;
        agent.history.push(PastRun {
            number: agent.run_number,
            phase: Phase::Executing,
            exit: exit.clone(),
            outcome: verdict.outcome.clone(),
        });
        let summary = if verdict.summary.is_empty() { String::new() } else { format!(": {}", verdict.summary) };
        context.log.info("ckrv", format!("the agent ended with {}{summary}", describe(&exit)));
        if exit == ExitStatus::OomKilled {
            return Err(Failure::Ends(out_of_memory()));
        }
        let (adapter, job, history) = (std::sync::Arc::clone(&agent.adapter), planned.job.clone(), agent.history.clone());
        match blocking(move || adapter.next(&job, &history)).await? {
            Decision::Advance if verdict.outcome == RunOutcome::Success => return Ok(()),
            Decision::Retry { delay_seconds, resume_session, reason } => {
                context.log.warn("adapter", format!("another run in {delay_seconds} s: {reason}"));
                tokio::time::sleep(Duration::from_secs(u64::from(delay_seconds.min(MAX_DELAY_SECONDS)))).await;
                if !resume_session {
                    agent.session = None;
                }
                again = Some(plan(context, agent, planned.job.feedback.clone()).await?);
            }
            Decision::Stop(reason) => return Err(not_content(&verdict, &reason)),
            _ => return Err(not_content(&verdict, "")),
        }
    }
    Err(Failure::ends(OutcomeClass::Agent, format!("the agent did not succeed in {MAX_RUNS} runs")))
}

fn not_content(verdict: &Verdict, reason: &str) -> Failure {
    let said = match &verdict.outcome {
        RunOutcome::Success => reason,
        RunOutcome::Failure(why) | RunOutcome::Retryable(why) | RunOutcome::NeedsInput(why) => why,
        RunOutcome::Other { kind, .. } => kind,
    };
    let text = if said.is_empty() { verdict.summary.clone() } else { said.to_owned() };
    let outcome = Outcome::new(OutcomeClass::Agent, format!("the agent did not succeed: {text}"));
    Failure::Ends(match &verdict.outcome {
        RunOutcome::NeedsInput(_) => outcome.hint("say in the spec what the agent asks for; nobody is there to answer it"),
        _ => outcome.hint("see `ckrv logs` for what it did"),
    })
}

/// One run to its end, with the adapter's verdict on it.
async fn run_once(
    context: &Context,
    agent: &mut Agent,
    planned: &Planned,
    sandbox: &mut Sandbox,
    facts: &mut Facts,
) -> Result<(ExitStatus, Verdict), Failure> {
    let spec = run_spec(context, planned, sandbox).await?;
    let adapter = std::sync::Arc::clone(&agent.adapter);
    let job = planned.job.clone();
    let transcript = adapter.transcript(&job);
    let (sender, receiver) = mpsc::channel(16);
    let (cost, over_cost) = tokio::sync::watch::channel(false);
    let reader = Reader {
        log: context.log.clone(),
        file: transcript_file(context)?,
        usage: facts.usage.clone(),
        max_cost: context.view.job.request.max_cost_micro_usd,
        over: cost,
        session: None,
    };
    let reading = tokio::spawn(reader.read(transcript, receiver));
    let stopper = sandbox.session.stopper();
    let mut watching = over_cost.clone();
    let guard = tokio::spawn(async move {
        if watching.wait_for(|over| *over).await.is_ok() {
            stopper.stop(false).await;
        }
    });
    let ended = sandbox.session.run(spec, &sender).await;
    drop(sender);
    guard.abort();
    let read = reading.await.map_err(|error| Failure::Infrastructure(format!("reading the output failed: {error}")))??;
    facts.usage = read.usage;
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => return Err(sandbox.failure(error).await),
    };
    if *over_cost.borrow() {
        return Err(Failure::Ends(
            Outcome::new(OutcomeClass::CostLimit, "the job reached its cost limit and was stopped")
                .hint("raise it with `--max-cost`"),
        ));
    }
    if ended.record.leftovers > 0 {
        context.log.info("ckrv", format!("{} processes that the agent left behind were ended", ended.record.leftovers));
    }
    let exit = match ended.hung {
        Some(Hung::FirstOutput) => ExitStatus::Other("no output at all within its limit".to_owned()),
        Some(Hung::Idle) => ExitStatus::Other("silent for longer than its limit".to_owned()),
        None => exit_status(&ended.record.status),
    };
    let (mut transcript, status) = (read.transcript, exit.clone());
    let (verdict, notes) = blocking(move || {
        let verdict = transcript.finish(&status);
        Ok((verdict, transcript.take_notes()))
    })
    .await?;
    for note in notes {
        context.log.warn("adapter", note);
    }
    for event in &verdict.events {
        write_event(&context.log, event.1.clone());
        add_usage(&mut facts.usage, &event.1);
    }
    agent.session = read.session.or(agent.session.take());
    Ok((exit, verdict))
}

fn transcript_file(context: &Context) -> Result<std::fs::File, Failure> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = context.dir.join("transcript.ndjson");
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Failure::infrastructure("the transcript", &error))
}

/// The plan in the launcher's words; paths of the plan become those of the session.
async fn run_spec(context: &Context, planned: &Planned, sandbox: &Sandbox) -> Result<RunSpec, Failure> {
    let request = &planned.granted.request;
    let place = |text: &String| sandbox.placed(text);
    let mut argv: Vec<String> = request.command.iter().chain(&request.args).map(place).collect();
    if let LauncherChoice::Process { path, .. } = &context.view.launcher
        && let Some(program) = argv.first_mut()
    {
        let local = context.view.policy.local_command(&request.image)?;
        super::local_command::check(local, path).await?;
        local.program.clone_into(program);
    }
    let mut env: std::collections::BTreeMap<String, String> =
        request.env.iter().map(|(name, value)| (name.clone(), place(value))).collect();
    for secret in &request.secrets {
        if let Some(value) = planned.secrets.get(&secret.slot) {
            env.insert(secret.env.clone(), secrecy::ExposeSecret::expose_secret(value).to_owned());
        }
    }
    let routes = planned.granted.routes.iter().filter_map(|granted| {
        let route = &granted.route;
        Some(Route {
            base_url_env: route.base_url_env.clone(),
            path: route.path.clone(),
            placeholder_env: route.placeholder_env.clone(),
            upstream: granted.url.clone(),
            header: route.header.clone(),
            prefix: route.prefix.clone(),
            secret: planned.secrets.get(&route.slot)?.clone(),
        })
    });
    let log = context.log.clone();
    let egress = (!request.egress.is_empty()).then(|| Egress {
        allow: request.egress.clone(),
        allow_private: false,
        on_denied: std::sync::Arc::new(move |denied| {
            log.warn("ckrv", format!("the agent was denied {}:{} ({:?})", denied.host.escape_debug(), denied.port, denied.reason))
        }),
    });
    let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
    Ok(RunSpec {
        argv,
        env,
        cwd: launch::BytePath::default(),
        files: request
            .files
            .iter()
            .map(|file| PlacedFile {
                place: placement(file.place),
                path: file.path.clone(),
                content: place(&file.content),
                executable: file.executable,
            })
            .collect(),
        stdin: request.stdin.clone(),
        stop_signal: match request.stop.signal {
            plan::StopSignal::Term => StopSignal::Term,
            plan::StopSignal::Int => StopSignal::Int,
            plan::StopSignal::Hup => StopSignal::Hup,
        },
        grace_seconds: request.stop.grace_seconds,
        deadline_seconds: seconds_left(context),
        watchdog: Some(Watchdog {
            first_output: seconds(request.watchdog.first_output_seconds),
            idle: seconds(request.watchdog.idle_seconds),
        }),
        routes: routes.collect(),
        egress,
    })
}

fn placement(place: plan::Place) -> launch::Place {
    match place {
        plan::Place::Home => launch::Place::Home,
        plan::Place::Context => launch::Place::Context,
    }
}

/// Reads one run's output.
struct Reader {
    log: JobLog,
    file: std::fs::File,
    usage: Usage,
    max_cost: Option<u64>,
    over: tokio::sync::watch::Sender<bool>,
    session: Option<String>,
}

/// What was read.
struct Read {
    transcript: Transcript,
    usage: Usage,
    session: Option<String>,
}

impl Reader {
    async fn read(
        mut self,
        mut transcript: Transcript,
        mut frames: mpsc::Receiver<launch::OutputFrame>,
    ) -> Result<Read, Failure> {
        let mut splitter = LineSplitter::default();
        let mut seq = 0;
        while let Some(frame) = frames.recv().await {
            let mut lines = numbered(splitter.push(&frame), &mut seq);
            let mut bytes: usize = lines.iter().map(|line| line.text.len()).sum();
            // What has come meanwhile goes with it; nothing is waited for.
            while lines.len() < BATCH_LINES && bytes < BATCH_BYTES {
                let Ok(frame) = frames.try_recv() else { break };
                let more = numbered(splitter.push(&frame), &mut seq);
                bytes += more.iter().map(|line| line.text.len()).sum::<usize>();
                lines.extend(more);
            }
            transcript = self.batch(transcript, lines).await?;
            self.log.room().await;
        }
        let last = numbered(splitter.finish(), &mut seq);
        transcript = self.batch(transcript, last).await?;
        Ok(Read { transcript, usage: self.usage, session: self.session })
    }

    async fn batch(&mut self, mut transcript: Transcript, lines: Vec<OutputLine>) -> Result<Transcript, Failure> {
        if lines.is_empty() {
            return Ok(transcript);
        }
        self.record(&lines);
        let fed = lines.clone();
        let (transcript, events) = blocking(move || {
            let events = transcript.feed(&fed);
            Ok((transcript, events))
        })
        .await?;
        let mut transcript = transcript;
        for note in transcript.take_notes() {
            self.log.warn("adapter", note);
        }
        for line in lines.iter().filter(|line| line.source == plan::Source::Stderr) {
            if !events.iter().any(|(seq, _)| *seq == line.seq) {
                self.log.write(Level::Warn, "agent.stderr", &line.text, None);
            }
        }
        for (_, event) in events {
            add_usage(&mut self.usage, &event);
            if let AgentEvent::RunResult { session_id: Some(session), .. } = &event {
                self.session = Some(session.clone());
            }
            write_event(&self.log, event);
        }
        if let (Some(max), Some(cost)) = (self.max_cost, self.usage.cost_micro_usd)
            && cost > max
        {
            self.over.send_replace(true);
        }
        Ok(transcript)
    }

    /// The raw lines, masked, for the transcript.
    fn record(&mut self, lines: &[OutputLine]) {
        let needles = self.log.needles();
        for line in lines {
            let line = OutputLine { text: needles.mask(&line.text), ..line.clone() };
            if let Ok(mut json) = serde_json::to_vec(&line) {
                json.push(b'\n');
                // Left out of the artifact when the disk is full; the log tells the story too.
                let _ = self.file.write_all(&json);
            }
        }
    }
}

fn numbered(lines: Vec<launch::Line>, seq: &mut u32) -> Vec<OutputLine> {
    lines
        .into_iter()
        .map(|line| {
            *seq += 1;
            let source = if line.source == launch::Source::Stdout { plan::Source::Stdout } else { plan::Source::Stderr };
            OutputLine { seq: *seq, source, text: line.text, truncated: line.truncated }
        })
        .collect()
}

fn add_usage(usage: &mut Usage, event: &AgentEvent) {
    if let AgentEvent::Usage(delta) = event {
        usage.add(delta);
    }
}

/// An event as a line that people can read.
fn write_event(log: &JobLog, event: AgentEvent) {
    let (level, message) = match &event {
        AgentEvent::Message { text, .. } => (Level::Info, text.clone()),
        AgentEvent::ToolCall { name, input, .. } => (Level::Info, format!("{name} {}", brief(&input.to_string()))),
        AgentEvent::ToolResult { is_error, output, .. } => (if *is_error { Level::Warn } else { Level::Debug }, brief(output)),
        AgentEvent::Usage(usage) => (
            Level::Debug,
            format!(
                "usage: {} tokens in, {} out",
                usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens,
                usage.output_tokens
            ),
        ),
        AgentEvent::RunResult { text, is_error, .. } => (if *is_error { Level::Error } else { Level::Info }, text.clone()),
        AgentEvent::Other { kind, data } => (Level::Debug, format!("{kind} {}", brief(&data.to_string()))),
    };
    let text = if message.is_empty() { "(no text)" } else { message.as_str() };
    // A result that says nothing is a matter for programs only.
    let level = if message.is_empty() { Level::Debug } else { level };
    log.write(level, "agent", text, Some(event));
}

fn brief(text: &str) -> String {
    const MOST: usize = 400;
    if text.len() <= MOST { text.to_owned() } else { format!("{} [...]", &text[..text.floor_char_boundary(MOST)]) }
}

/// Takes the changes out of the sandbox and commits them.
async fn collect(context: &Context, prepared: &Prepared, sandbox: &mut Sandbox, parent: &str) -> Result<String, Failure> {
    let limits = ResultLimits::default();
    let ignored = crate::git::Ignored::of(&prepared.git, parent).await?;
    let path = context.dir.join("changes.tar");
    let mut file = tokio::fs::File::create(&path).await.map_err(|error| Failure::infrastructure("the changes", &error))?;
    let bounds = CollectLimits { max_entries: 2_000_000, max_bytes: limits.max_bytes };
    let collected =
        sandbox.session.collect(bounds, |change| !(change.added && ignored.matches(change.path.as_bytes())), &mut file).await;
    let collection = match collected {
        Ok(collection) => collection,
        Err(error) => return Err(sandbox.failure(error).await),
    };
    for refused in &collection.refused {
        context.log.warn("ckrv", format!("`{}` is refused: {}", names([refused.path.as_bytes()]), refused.reason));
    }
    if !collection.skipped.is_empty() {
        context.log.info("ckrv", format!("{} new files that .gitignore names were left out", collection.skipped.len()));
    }
    let info = CommitInfo {
        parent: parent.to_owned(),
        branch: prepared.branch.clone(),
        subject: format!("ckrv: {}", context.spec.id),
        at: crate::clock::now(),
    };
    let deleted = collection.deleted.iter().map(|path| path.as_bytes().to_vec()).collect();
    let committed = commit_result(&prepared.git, &info, path.clone(), deleted, context.log.needles(), limits).await?;
    let _ = std::fs::remove_file(&path);
    for refused in &committed.refused {
        context.log.warn("ckrv", refused.to_string());
    }
    Ok(committed.sha)
}
