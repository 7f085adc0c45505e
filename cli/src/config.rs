//! All configuration: flags first, then `CKRV_*`, then the repository's `.ckrv/config.toml`, then the user's `config.toml`.
//!
//! Invariant: the environment is read here and nowhere else, and nothing that a repository says can choose the service that we talk
//! to or the token that we show it: a hostile repository could otherwise send the user's token to its author.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ckrv_core::trace::TraceParent;
use secrecy::SecretString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::error::CliError;
use crate::logging::Format;

/// Where `ckrv serve` listens unless told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:7420";

/// What we take from the environment.
#[derive(Debug, Default)]
pub struct Env {
    /// `CKRV_URL`: the service.
    pub url: Option<String>,
    /// `CKRV_TOKEN`: a service token, used as it is instead of a login.
    pub token: Option<SecretString>,
    /// `CKRV_CONFIG`, else the platform's configuration folder: `config.toml`, and the encrypted sessions.
    pub config_dir: PathBuf,
    /// `CKRV_STATE`, else the platform's state folder: the key to the sessions, locks, the last job.
    pub state_dir: PathBuf,
    /// `CKRV_DATA`: where `ckrv serve` keeps its data, else the platform's data folder.
    pub data_dir: PathBuf,
    /// `CKRV_KEYRING=off` keeps us away from the system's keyring.
    pub keyring: bool,
    pub agent: Option<String>,
    pub model: Option<String>,
    pub base: Option<String>,
    pub credential: Option<String>,
    pub timeout: Option<String>,
    /// `CKRV_CA_FILE`: further certificate authorities to trust, PEM.
    pub ca_file: Option<PathBuf>,
    /// `CKRV_LOG`: what to log to stderr, in `tracing`'s filter language.
    pub log: Option<String>,
    /// `CKRV_LOG_FORMAT`: `text` or `json`.
    pub log_format: Format,
    /// `OTEL_*`: where spans go.
    pub otel: OtelEnv,
    /// `TRACEPARENT`: the trace that this command is a step of.
    pub trace: Option<TraceParent>,
    /// `DOCKER_HOST` or `CONTAINER_HOST`, for `doctor`.
    pub container_host: Option<String>,
    pub runtime_dir: Option<PathBuf>,
    /// `PATH`: what agents without a container find their programs in.
    pub path: String,
    /// The user's own keys for models, by variable: for local jobs only.
    pub agent_keys: BTreeMap<String, SecretString>,
}

/// Variables that hold the keys of the built-in agents.
const AGENT_KEYS: [&str; 2] = ["ANTHROPIC_API_KEY", "GEMINI_API_KEY"];

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Env {
    /// # Errors
    /// When there is no home folder to keep anything in.
    pub fn read() -> Result<Self, CliError> {
        let home = std::env::home_dir().filter(|home| home.is_absolute());
        let folder = |own: &str, xdg: &str, default: &str| {
            if let Some(path) = var(own) {
                return Ok(PathBuf::from(path));
            }
            if let Some(path) = var(xdg).map(PathBuf::from).filter(|path| path.is_absolute()) {
                return Ok(path.join("ckrv"));
            }
            let mac = cfg!(target_os = "macos").then_some("Library/Application Support");
            let home = home.as_ref().ok_or_else(|| {
                CliError::other("no_home", "there is no home folder")
                    .hint(format!("set HOME, or set {own} to a folder of your choice"))
            })?;
            Ok(home.join(mac.unwrap_or(default)).join("ckrv"))
        };
        Ok(Self {
            url: var("CKRV_URL"),
            token: var("CKRV_TOKEN").map(SecretString::from),
            config_dir: folder("CKRV_CONFIG", "XDG_CONFIG_HOME", ".config")?,
            state_dir: folder("CKRV_STATE", "XDG_STATE_HOME", ".local/state")?,
            data_dir: folder("CKRV_DATA", "XDG_DATA_HOME", ".local/share")?,
            keyring: var("CKRV_KEYRING").as_deref() != Some("off") && keyring_may_exist(),
            agent: var("CKRV_AGENT"),
            model: var("CKRV_MODEL"),
            base: var("CKRV_BASE"),
            credential: var("CKRV_CREDENTIAL"),
            timeout: var("CKRV_TIMEOUT"),
            ca_file: var("CKRV_CA_FILE").map(PathBuf::from),
            log: var("CKRV_LOG"),
            log_format: match var("CKRV_LOG_FORMAT").as_deref() {
                None | Some("text") => Format::Text,
                Some("json") => Format::Json,
                Some(_) => return Err(CliError::usage("CKRV_LOG_FORMAT is `text` or `json`")),
            },
            otel: OtelEnv::read(),
            trace: var("TRACEPARENT").and_then(|text| text.parse().ok()),
            container_host: var("DOCKER_HOST").or_else(|| var("CONTAINER_HOST")),
            runtime_dir: var("XDG_RUNTIME_DIR").map(PathBuf::from),
            path: var("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".to_owned()),
            agent_keys: AGENT_KEYS.iter().filter_map(|name| Some(((*name).to_owned(), SecretString::from(var(name)?)))).collect(),
        })
    }
}

/// The `OTEL_*` variables that we answer for; all others are read by the SDK.
#[derive(Clone, Debug, Default)]
pub struct OtelEnv {
    /// The collector; absent: no spans leave this machine.
    pub endpoint: Option<String>,
    /// For one request to it.
    pub timeout: Duration,
    /// Certificates to trust beside the system's, PEM.
    pub certificate: Option<PathBuf>,
    /// Whether the service's name is given.
    pub names_service: bool,
}

impl OtelEnv {
    fn read() -> Self {
        let of_traces =
            |name: &str| var(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}")).or_else(|| var(&format!("OTEL_EXPORTER_OTLP_{name}")));
        let is_off = var("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"))
            || var("OTEL_TRACES_EXPORTER").is_some_and(|text| text != "otlp");
        Self {
            endpoint: of_traces("ENDPOINT").filter(|_| !is_off),
            timeout: Duration::from_millis(of_traces("TIMEOUT").and_then(|text| text.parse().ok()).unwrap_or(10_000)),
            certificate: of_traces("CERTIFICATE").map(PathBuf::from),
            names_service: var("OTEL_SERVICE_NAME").is_some()
                || var("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|text| text.contains("service.name=")),
        }
    }
}

/// On Linux a keyring is reached over the session bus; without one, asking would only cost time.
fn keyring_may_exist() -> bool {
    if cfg!(target_os = "macos") {
        return true;
    }
    var("DBUS_SESSION_BUS_ADDRESS").is_some() || var("XDG_RUNTIME_DIR").is_some_and(|dir| Path::new(&dir).join("bus").exists())
}

/// `.ckrv/config.toml` of a repository. Only keys that a stranger may choose.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepoConfig {
    pub agent: Option<String>,
    pub model: Option<String>,
    pub base: Option<String>,
    pub credential: Option<String>,
    pub timeout: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The user's `config.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserConfig {
    pub url: Option<String>,
    pub agent: Option<String>,
    pub model: Option<String>,
    pub base: Option<String>,
    pub credential: Option<String>,
    pub timeout: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Everything that flags don't say.
#[derive(Debug, Default)]
pub struct Settings {
    pub env: Env,
    pub user: UserConfig,
    /// `--url`
    pub url: Option<String>,
    /// This command's place in its trace: what the service does for it is found under the trace's id.
    pub trace: Option<TraceParent>,
}

impl Settings {
    /// # Errors
    /// A config file that can't be read, has an unknown key or a wrong value; the file and line are named.
    pub fn load(url: Option<String>) -> Result<Self, CliError> {
        let env = Env::read()?;
        let user = read_toml(&env.config_dir.join("config.toml"), "url, agent, model, base, credential, timeout and labels")?;
        let given = env.trace.map(|parent| parent.child(rand::random()));
        let trace = given.or_else(|| Some(TraceParent::new(rand::random(), rand::random())));
        Ok(Self { env, user, url, trace })
    }

    /// The service: `--url`, `CKRV_URL`, the user's `url`, where the user last logged in by `--url`, or this machine's.
    ///
    /// # Errors
    /// A URL that is not https, nor http to this machine.
    pub fn service(&self) -> Result<Url, CliError> {
        let remembered = std::fs::read_to_string(self.remembered_service()).ok();
        let url = self.url.as_deref().or(self.env.url.as_deref()).or(self.user.url.as_deref());
        service_url(url.or(remembered.as_deref()).unwrap_or(DEFAULT_URL).trim())
    }

    /// The file that holds the service of the last `ckrv cloud login --url`.
    #[must_use]
    pub fn remembered_service(&self) -> PathBuf {
        self.env.state_dir.join("service")
    }

    /// # Errors
    /// As [`Self::load`].
    pub fn repository(&self, root: &Path) -> Result<RepoConfig, CliError> {
        let allowed =
            "agent, model, base, credential, timeout and labels. The service's URL and tokens are never taken from a repository";
        read_toml(&root.join(".ckrv/config.toml"), allowed)
    }
}

fn read_toml<T: DeserializeOwned + Default>(path: &Path, allowed: &str) -> Result<T, CliError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(T::default());
        }
        Err(error) => return Err(CliError::io(format!("can't read {}", path.display()), error)),
    };
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let message = format!("{}:{line}: {}", path.display(), error.message());
        CliError::new(crate::error::Kind::Usage, "bad_config", message).hint(format!("allowed are {allowed}"))
    })
}

/// Checks the service's URL and brings it into one form, so that a session is found again however the URL was typed.
///
/// # Errors
/// Anything but https, or http to a loopback address: a token must not travel in the clear.
pub fn service_url(text: &str) -> Result<Url, CliError> {
    let bad = |why: &str| {
        CliError::new(crate::error::Kind::Usage, "bad_url", format!("the service's URL is refused: {why}"))
            .hint("give one like https://ckrv.example.com, by --url, CKRV_URL or `url` in config.toml")
    };
    let mut url = Url::parse(text).map_err(|error| bad("it is no URL").source(error))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("it contains a user or a password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it has a query or a fragment"));
    }
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(&url) => {}
        "http" => return Err(bad("plain http is accepted for this machine only (127.0.0.1, [::1], localhost)")),
        _ => return Err(bad("it is neither https nor http")),
    }
    let path = url.path().trim_end_matches('/').to_owned();
    let path = path.strip_suffix("/v1").unwrap_or(&path).to_owned();
    url.set_path(&format!("{path}/"));
    Ok(url)
}

/// Whether a URL stays on this machine.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        None => false,
    }
}

/// `90s`, `30m`, `1h30m`.
///
/// # Errors
/// Anything else, zero, or less than zero.
pub fn duration(text: &str) -> Result<Duration, CliError> {
    let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
    parsed.filter(|duration| !duration.is_zero()).ok_or_else(|| {
        CliError::usage(format!("`{}` is no length of time", crate::text::clean(text))).hint("write it like 90s, 30m or 1h30m")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_or_this_machine_is_accepted_as_a_service() {
        for good in
            ["https://ckrv.example.com", "http://127.0.0.1:7420", "http://localhost:1", "http://[::1]:1", "https://h/base/v1/"]
        {
            assert!(service_url(good).is_ok(), "{good}");
        }
        for bad in [
            "http://ckrv.example.com",
            "http://127.0.0.1.example.com",
            "https://u:p@h",
            "file:///x",
            "x",
            "https://h?x",
            "http://10.0.0.1",
        ] {
            assert!(service_url(bad).is_err(), "{bad}");
        }
        assert_eq!(service_url("https://h/base/v1/").unwrap(), service_url("https://h/base").unwrap());
    }

    #[test]
    fn an_unknown_key_is_refused_with_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".ckrv")).unwrap();
        std::fs::write(folder.path().join(".ckrv/config.toml"), "agent = 'claude'\n\nurl = 'https://evil.example'\n").unwrap();
        let error = Settings::default().repository(folder.path()).unwrap_err();
        assert!(error.message.contains(".ckrv/config.toml:3: unknown field `url`"), "{}", error.message);
        assert!(error.hint.unwrap().contains("never taken from a repository"));
    }

    #[test]
    fn lengths_of_time_are_read() {
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(duration("45s").unwrap(), Duration::from_secs(45));
        for bad in ["", "0s", "-5m", "soon", "10"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
