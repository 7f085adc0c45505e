//! `ckrv serve` as a process that a test starts, kills and starts again; and the activation page, as its owner uses it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::activation::{Form, urlencoded};
use crate::aws::Aws;
use crate::bench;
use crate::http::{Browser, client};
use crate::kube::Installed;
use crate::lambda_front::{Entrance, LambdaFront, environment, function_config};
use crate::wait::{PATIENCE, wait_until};

/// Listens on a port of the system's choice.
const ANYWHERE: &str = "127.0.0.1:0";

/// What a server is started with.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Its configuration file.
    pub config: toml::Table,
    /// More flags, e.g. `--unsandboxed`.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// In the test cluster: where its jobs and dispatchers ask the API server, if not at its own Service.
    pub api_server: Option<String>,
    /// In the test cluster: dispatchers; 0 is one.
    pub replicas: u32,
}

impl Setup {
    /// The process launcher: jobs run as the user, beside their files.
    pub fn unsandboxed() -> Self {
        Self { args: vec!["--unsandboxed".to_owned()], ..Self::default() }
    }
}

/// A server with a data folder of its own. Dropped, it is killed, and its folder is removed. On the AWS backend (`CKRV_TEST_BACKEND=aws`) it
/// is two processes that share nothing but the store: the API, and the dispatcher with its data folder. With `CKRV_TEST_BACKEND=lambda` users
/// reach the API as a function, and the API process serves only the owner's activation page.
#[derive(Debug)]
pub struct Server {
    setup: Setup,
    folder: tempfile::TempDir,
    starts: u32,
    process: Option<Child>,
    aws: Option<Aws>,
    function: Option<LambdaFront>,
    /// Where the function is reached, also when it is away.
    entrance: Option<String>,
    /// On the AWS backend.
    dispatcher: Option<Child>,
    /// In the test cluster, instead of the dispatcher.
    cluster: Option<Installed>,
    url: String,
    owner_code: String,
    /// Each code serves one login; the next one is printed.
    used_code: Mutex<String>,
}

/// What a device login gives.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub access: String,
    pub refresh: String,
}

impl Server {
    /// Starts one, and waits until it has printed where it listens.
    pub async fn start(setup: Setup) -> Result<Self> {
        let aws = if bench::on_aws() { Some(Aws::make().await?) } else { None };
        Self::start_with(setup, aws, bench::through_lambda()).await
    }

    /// Starts one on the embedded default, whatever the other scenarios run on.
    pub async fn start_embedded(setup: Setup) -> Result<Self> {
        Self::start_with(setup, None, false).await
    }

    /// Starts one on the AWS backend, whatever the other scenarios run on.
    pub async fn start_on_aws(setup: Setup, aws: Aws) -> Result<Self> {
        Self::start_with(setup, Some(aws), false).await
    }

    async fn start_with(setup: Setup, aws: Option<Aws>, through_lambda: bool) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ckrv-serve-").tempdir()?;
        let mut config = setup.config.clone();
        // Nobody waits seconds for the next poll of a login.
        config.entry("login_interval_seconds").or_insert(toml::Value::Integer(1));
        if let Some(aws) = &aws {
            config.insert("store".to_owned(), aws.store_config()?.into());
            config.insert("server_key_secret".to_owned(), aws.server_key.clone().into());
        }
        std::fs::write(folder.path().join("config.toml"), config.to_string())?;
        let mut server = Self {
            setup,
            folder,
            starts: 0,
            process: None,
            aws,
            function: None,
            entrance: None,
            dispatcher: None,
            cluster: None,
            url: String::new(),
            owner_code: String::new(),
            used_code: Mutex::default(),
        };
        server.spawn(ANYWHERE).await?;
        if through_lambda {
            server.start_function(ANYWHERE).await?;
        }
        Ok(server)
    }

    /// Changes its configuration file, for its next start.
    pub fn configure(&self, change: impl FnOnce(&mut toml::Table)) -> Result<()> {
        let path = self.folder.path().join("config.toml");
        let mut config: toml::Table = std::fs::read_to_string(&path)?.parse()?;
        change(&mut config);
        Ok(std::fs::write(path, config.to_string())?)
    }

    /// Starts it again on the same data, at the same address.
    pub async fn start_again(&mut self) -> Result<()> {
        let address = |url: &str| Ok::<_, anyhow::Error>(url.split_once("://").context("it never had an address")?.1.to_owned());
        self.spawn(&address(&self.url)?).await?;
        match &self.entrance {
            Some(entrance) => self.start_function(&address(entrance)?).await,
            None => Ok(()),
        }
    }

    async fn start_function(&mut self, listen: &str) -> Result<()> {
        let aws = self.aws.as_ref().context("a function has the AWS backend only")?;
        let config: toml::Table = std::fs::read_to_string(self.folder.path().join("config.toml"))?.parse()?;
        let mut env = environment(aws, &function_config(&config, &self.own_agents(&config).await?)?);
        env.extend(self.setup.env.iter().cloned());
        let function = LambdaFront::start_at(listen, Entrance::FunctionUrl { streams: true }, env, PATIENCE).await?;
        self.entrance = Some(function.url.clone());
        self.function = Some(function);
        Ok(())
    }

    /// What a server that has WebAssembly tells of the operator's own adapters.
    async fn own_agents(&self, config: &toml::Table) -> Result<Vec<Value>> {
        let Some(own) = config.get("adapters").and_then(toml::Value::as_table) else { return Ok(Vec::new()) };
        let request = client()?.get(format!("{}/v1/agents", self.url)).bearer_auth(self.login().await?.access);
        let list: Value = request.send().await?.error_for_status()?.json().await?;
        let agents = list["agents"].as_array().cloned().unwrap_or_default();
        Ok(agents.into_iter().filter(|agent| agent["name"].as_str().is_some_and(|name| own.contains_key(name))).collect())
    }

    async fn spawn(&mut self, listen: &str) -> Result<()> {
        self.starts += 1;
        let mut process = match &self.aws {
            None => self.process(&self.log_file(), &["--listen", listen], &self.data())?,
            Some(_) => {
                let api = self.folder.path().join("api");
                self.process(&self.log_file(), &["--role", "api", "--listen", listen], &api)?
            }
        };
        let log = self.log_file();
        let found = wait_until("ckrv serve prints its URL and one-time code", PATIENCE, async || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let ended = process.try_wait().ok().flatten();
            let both = text.lines().find_map(link).zip(text.lines().find_map(one_time_code));
            both.map(Ok).or_else(|| ended.map(Err))
        });
        match found.await.with_context(|| self.log())? {
            Ok((url, code)) => (self.url, self.owner_code) = (url, code),
            Err(status) => bail!("ckrv serve ended with {status}:\n{}", self.log()),
        }
        self.process = Some(process);
        if bench::in_cluster() {
            return self.install().await;
        }
        if self.aws.is_some() {
            // After the API, which makes the owner's account.
            self.dispatcher = Some(self.process(&self.dispatcher_log(), &["--role", "dispatcher"], &self.data())?);
            let log = self.dispatcher_log();
            let ready = async || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("takes jobs")).then_some(());
            wait_until("the dispatcher takes jobs", PATIENCE, ready).await.with_context(|| self.log())?;
        }
        Ok(())
    }

    /// The dispatchers' part; they outlive the API's process.
    async fn install(&mut self) -> Result<()> {
        let Some(aws) = self.aws.as_ref() else {
            bail!("this scenario is of the embedded default: it has no place in a cluster")
        };
        let config: toml::Table = std::fs::read_to_string(self.folder.path().join("config.toml"))?.parse()?;
        match &self.cluster {
            Some(installed) => installed.ready().await,
            None => {
                self.cluster =
                    Some(Installed::install(&config, aws, self.setup.replicas.max(1), self.setup.api_server.as_deref()).await?);
                Ok(())
            }
        }
    }

    /// The dispatchers in the test cluster.
    pub fn cluster(&self) -> Result<&Installed> {
        self.cluster.as_ref().context("this server's jobs don't run in the cluster")
    }

    /// `ckrv serve` with these flags, on that data folder.
    fn process(&self, log: &Path, args: &[&str], data: &Path) -> Result<Child> {
        let log = File::create(log)?;
        let mut command = Command::new(bench::ckrv()?);
        command.args(["serve", "--config"]).arg(self.folder.path().join("config.toml")).args(args);
        command.args(&self.setup.args).current_dir(self.folder.path()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.folder.path());
        command.env("CKRV_DATA", data);
        if let Ok(engine) = bench::engine() {
            // The name by which every client of the Docker API finds its engine.
            command.env("DOCKER_HOST", engine);
        }
        command.envs(self.aws.iter().flat_map(Aws::environment)).envs(self.setup.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        command.spawn().context("can't start ckrv serve")
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> &str {
        self.entrance.as_ref().unwrap_or(&self.url)
    }

    /// The code that its owner confirms a login with.
    pub fn owner_code(&self) -> &str {
        &self.owner_code
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Child::id)
    }

    pub fn aws(&self) -> Option<&Aws> {
        self.aws.as_ref()
    }

    /// On the AWS backend.
    pub fn dispatcher_pid(&self) -> Option<Pid> {
        let pid = self.dispatcher.as_ref().and_then(Child::id)?;
        i32::try_from(pid).ok().map(Pid::from_raw)
    }

    /// Starts one more dispatcher on the same store, with a data folder of its own; dropped, it is killed.
    pub async fn second_dispatcher(&self) -> Result<Child> {
        let log = self.folder.path().join("second-dispatcher.log");
        let process = self.process(&log, &["--role", "dispatcher"], &self.folder.path().join("second"))?;
        let ready = async || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("takes jobs")).then_some(());
        wait_until("the second dispatcher takes jobs", PATIENCE, ready).await?;
        Ok(process)
    }

    /// What it has printed since it was last started.
    pub fn log(&self) -> String {
        let read = |file: PathBuf| std::fs::read_to_string(file).unwrap_or_default();
        let function = self.function.as_ref().map(LambdaFront::log).unwrap_or_default();
        let pods = self.cluster.as_ref().map(Installed::log).unwrap_or_default();
        read(self.log_file()) + &read(self.dispatcher_log()) + &function + &pods
    }

    /// What it printed in all its starts; the file of each start is kept.
    pub fn logs(&self) -> Vec<PathBuf> {
        self.keep_function_log();
        let parts = ["serve", "dispatcher", "function"];
        let names = (1..=self.starts).flat_map(|start| parts.map(|part| format!("{part}-{start}.log")));
        names.map(|name| self.folder.path().join(name)).filter(|path| path.exists()).collect()
    }

    fn dispatcher_log(&self) -> PathBuf {
        self.folder.path().join(format!("dispatcher-{}.log", self.starts))
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join(format!("serve-{}.log", self.starts))
    }

    /// A sandbox's log goes with it.
    fn keep_function_log(&self) {
        if let Some(function) = &self.function {
            let path = self.folder.path().join(format!("function-{}.log", self.starts));
            // A test that wants it misses it then.
            let _ = std::fs::write(path, function.log());
        }
    }

    async fn kill_function(&mut self) {
        self.keep_function_log();
        if let Some(function) = self.function.take() {
            function.kill().await;
        }
    }

    /// SIGKILL, as a power cut would be; its job runners live on.
    pub async fn kill(&mut self) -> Result<()> {
        self.kill_function().await;
        let process = self.process.take().context("it does not run")?;
        for mut process in [Some(process), self.dispatcher.take()].into_iter().flatten() {
            process.kill().await?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for its end; an exit code other than 0 is an error.
    pub async fn stop(&mut self) -> Result<()> {
        self.kill_function().await;
        let process = self.process.take().context("it does not run")?;
        for mut process in [Some(process), self.dispatcher.take()].into_iter().flatten() {
            let pid = i32::try_from(process.id().context("it has ended already")?)?;
            kill(Pid::from_raw(pid), Signal::SIGTERM)?;
            let status = tokio::time::timeout(Duration::from_secs(30), process.wait()).await.context("it does not stop")??;
            if !status.success() {
                bail!("ckrv serve ended with {status}:\n{}", self.log());
            }
        }
        Ok(())
    }

    /// A device login without the CLI: through the API, and its owner's hand on the activation page.
    pub async fn login(&self) -> Result<Tokens> {
        let device = self.post("/v1/auth/device", &json!({"client_id": "ckrv-cli"})).await?;
        let text =
            |value: &Value, name: &str| value[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {value}"));
        self.activate(&text(&device, "verification_uri")?, &text(&device, "user_code")?).await?;
        let grant = "urn:ietf:params:oauth:grant-type:device_code";
        let ask = json!({"client_id": "ckrv-cli", "device_code": text(&device, "device_code")?, "grant_type": grant});
        let tokens = self.post("/v1/auth/token", &ask).await?;
        Ok(Tokens { access: text(&tokens, "access_token")?, refresh: text(&tokens, "refresh_token")? })
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request =
            client()?.post(format!("{}{path}", self.url)).header("content-type", "application/json").body(body.to_string());
        let response = request.send().await?;
        let (status, text) = (response.status(), response.text().await?);
        if !status.is_success() {
            bail!("POST {path} answers {status}: {text}");
        }
        Ok(serde_json::from_str(&text)?)
    }

    /// The last one-time code that it printed, once that is another than the one that served the login before.
    async fn next_code(&self) -> Result<String> {
        let printed = || std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let last = async || printed().lines().filter_map(one_time_code).next_back();
        let unused = async || last().await.filter(|code| *code != *self.used_code.lock().unwrap_or_else(PoisonError::into_inner));
        let code = wait_until("ckrv serve prints a new one-time code", PATIENCE, unused).await?;
        self.used_code.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&code);
        Ok(code)
    }

    /// Confirms a user's code on the activation page, as its owner would in a browser.
    pub async fn activate(&self, page: &str, user_code: &str) -> Result<()> {
        let code = self.next_code().await?;
        let mut browser = Browser::new()?;
        // The function has no owner at its side who could read a code: the same page of the API process.
        let page = self.function.as_ref().map_or(page.to_owned(), |function| page.replace(&function.url, &self.url));
        let mut url = reqwest::Url::parse(&page)?;
        let mut html = browser.open(&mut url, None).await?;
        for _ in 0..3 {
            let Some(form) = Form::parse(&html) else { return Ok(()) };
            url = url.join(&form.action)?;
            html = browser.open(&mut url, Some(urlencoded(&form.fill(user_code, &code)))).await?;
        }
        bail!("the activation page is never content:\n{html}")
    }
}

/// The first link of a line, without a full stop or slash at its end.
pub fn link(line: &str) -> Option<String> {
    let word = line.split_whitespace().find(|word| word.starts_with("http://") || word.starts_with("https://"))?;
    Some(word.trim_end_matches(['.', ',', ')']).trim_end_matches('/').to_owned())
}

/// The last word of the line that speaks of it.
fn one_time_code(line: &str) -> Option<String> {
    let says = line.to_ascii_lowercase().contains("one-time code");
    says.then(|| line.split_whitespace().next_back().map(|word| word.trim_end_matches('.').to_owned())).flatten()
}

/// The files below a folder, for a test that searches them all.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => found.extend(files_below(&entry.path())?),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    Ok(found)
}
