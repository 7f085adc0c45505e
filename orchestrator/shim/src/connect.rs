//! The shim as a client: it dials the job runner, shows its ticket, and keeps one stream up over as many connections as it takes.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::admission::{self, Credentials, Verdict};
use crate::error::ShimError;
use crate::pinned::{Fingerprint, Pinned};
use crate::resume::{self, Connection, Source, Timing};
use crate::session::{self, Ends};

/// Address and port of the job runner.
pub const RUNNER: &str = "CKRV_SHIM_RUNNER";
/// SHA-256 of its certificate in DER, hex.
pub const CERT: &str = "CKRV_SHIM_CERT";
/// What the job runner gave to the launcher for this shim alone.
pub const TICKET: &str = "CKRV_SHIM_TICKET";
/// Optional: when everything here ends at the latest, in seconds since 1970.
pub const DEADLINE: &str = "CKRV_SHIM_DEADLINE";
/// Optional: seconds without contact after which the shim ends itself; at most, and otherwise, 60.
pub const SILENCE: &str = "CKRV_SHIM_SILENCE";

/// From dialling to the job runner's answer, which waits until the launcher has told it where this shim is.
const DIAL_WITHIN: Duration = Duration::from_secs(15);
/// For the last word to leave.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(2);

/// What the launcher says in the environment. None of it reaches the agent: a run's environment has no variable that begins with
/// `CKRV_`, and this process's own can't be read by others of its user.
#[derive(Debug)]
pub struct Settings {
    pub runner: SocketAddr,
    pub certificate: Fingerprint,
    pub ticket: Vec<u8>,
    pub deadline: Option<Duration>,
    pub timing: Timing,
}

impl Settings {
    /// # Errors
    /// [`ShimError::Settings`] with the name of what is missing or wrong, never with its value.
    pub fn read(variable: impl Fn(&str) -> Option<String>, since_1970: Duration) -> Result<Self, ShimError> {
        let wrong = |name: &str, what: &str| ShimError::Settings(format!("{name} must be set by the launcher: {what}"));
        let runner = variable(RUNNER).and_then(|text| text.parse().ok());
        let certificate = variable(CERT).and_then(|text| {
            let mut certificate = Fingerprint::default();
            hex::decode_to_slice(text, &mut certificate).ok().map(|()| certificate)
        });
        let ticket = variable(TICKET).filter(|text| !text.is_empty());
        let seconds = |name: &str| match variable(name) {
            None => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| wrong(name, "a number of seconds")),
        };
        let silence = seconds(SILENCE)?.unwrap_or(60).clamp(1, 60);
        Ok(Self {
            runner: runner.ok_or_else(|| wrong(RUNNER, "the job runner's address and port"))?,
            certificate: certificate.ok_or_else(|| wrong(CERT, "the SHA-256 of its certificate in hex"))?,
            ticket: ticket.ok_or_else(|| wrong(TICKET, "this shim's one-time ticket"))?.into_bytes(),
            deadline: seconds(DEADLINE)?.map(|at| Duration::from_secs(at).saturating_sub(since_1970)),
            timing: Timing::with_silence(Duration::from_secs(silence)),
        })
    }
}

/// # Errors
/// As [`run`], and for settings that are missing.
pub(crate) async fn run_from_env() -> Result<(), ShimError> {
    crate::processes::protect();
    #[expect(clippy::disallowed_types, reason = "an absolute deadline is compared once, here, with the clock on the wall")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let variable = |name: &str| std::env::var_os(name).and_then(|value| value.into_string().ok());
    run(Settings::read(variable, now)?).await
}

/// How dialling went so far: the stream itself can only say that it ended.
#[derive(Debug, Default)]
struct Story {
    reached: bool,
    refused: bool,
    last: String,
}

/// Serves the job runner that the settings name.
///
/// # Errors
/// As [`session::run`]; and [`ShimError::Unreachable`], [`ShimError::Refused`].
pub async fn run(settings: Settings) -> Result<(), ShimError> {
    let Settings { runner, certificate, ticket, deadline, timing } = settings;
    let ends = Ends { graceful: true, deadline: deadline.map(|left| Instant::now() + left) };
    let pinned = Arc::new(Pinned::new(certificate).map_err(ShimError::Setup)?);
    let credentials = Credentials { ticket, key: pinned.random().map_err(ShimError::Setup)? };
    let story: Arc<Mutex<Story>> = Arc::default();
    let told = Arc::clone(&story);
    let dial = move || -> resume::Dialling {
        let (pinned, credentials, story) = (Arc::clone(&pinned), credentials.clone(), Arc::clone(&told));
        Box::pin(async move {
            let dialled = timeout(DIAL_WITHIN, dial(&pinned, runner, &credentials)).await;
            let dialled = dialled.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
            let mut story = story.lock().unwrap_or_else(PoisonError::into_inner);
            match &dialled {
                Ok(_) => story.reached = true,
                Err(error) => {
                    story.refused |= error.kind() == io::ErrorKind::PermissionDenied;
                    story.last = error.to_string();
                }
            }
            dialled
        })
    };
    let (stream, driver) = resume::start(Source::Dial(Box::new(dial)), timing);
    let (read, write) = tokio::io::split(stream);
    let end = session::run(read, write, ends).await;
    let _ = timeout(LAST_WORD_WITHIN, driver).await;
    end.map_err(|error| {
        let story = story.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            ShimError::Closed | ShimError::Silent(_) if story.refused => ShimError::Refused(runner),
            ShimError::Closed | ShimError::Silent(_) if !story.reached => {
                ShimError::Unreachable { runner, seconds: timing.silence.as_secs(), last: story.last.clone() }
            }
            other => other,
        }
    })
}

async fn dial(pinned: &Pinned, runner: SocketAddr, credentials: &Credentials) -> io::Result<Connection> {
    let mut connection = pinned.connect(runner).await?;
    admission::show(&mut connection, credentials).await?;
    match admission::hear_verdict(&mut connection).await? {
        Verdict::Welcome => Ok(Box::new(connection)),
        Verdict::Refused => Err(io::Error::new(io::ErrorKind::PermissionDenied, "refused")),
        Verdict::Later => Err(io::Error::new(io::ErrorKind::ConnectionRefused, "told to come later")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_complete_or_named_and_never_shown() {
        let full = |name: &str| match name {
            RUNNER => Some("[::1]:80".to_owned()),
            CERT => Some("ab".repeat(32)),
            TICKET => Some("secret".to_owned()),
            DEADLINE => Some("100".to_owned()),
            SILENCE => Some("900".to_owned()),
            _ => None,
        };
        let settings = Settings::read(full, Duration::from_secs(40)).unwrap();
        assert_eq!(settings.certificate, [0xab; 32]);
        assert_eq!(settings.deadline, Some(Duration::from_secs(60)));
        assert_eq!(settings.timing.silence, Duration::from_secs(60));
        for name in [RUNNER, CERT, TICKET] {
            let error = Settings::read(|asked| full(asked).filter(|_| asked != name), Duration::ZERO).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(error.exit_code(), 78);
        }
        for (name, value) in [(RUNNER, "host:1"), (CERT, "ab"), (CERT, "zz"), (DEADLINE, "soon"), (TICKET, "")] {
            let wrong = |asked: &str| if asked == name { Some(value.to_owned()) } else { full(asked) };
            let error = Settings::read(wrong, Duration::ZERO).unwrap_err().to_string();
            assert!(error.contains(name) && !error.contains("secret"), "{error}");
        }
        let late = Settings::read(full, Duration::from_secs(4_000_000_000)).unwrap();
        assert_eq!(late.deadline, Some(Duration::ZERO));
    }
}
