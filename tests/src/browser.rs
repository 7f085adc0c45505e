//! Chromium without a window, through chromedriver: the few words of W3C WebDriver that a person's steps need. The crates for it
//! bring a licence or a feature of serde_json into the workspace that it can't have.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::wait::{PATIENCE, wait_until};
use crate::{bench, http};

/// As root, without a graphics card, and asking nobody on the internet for anything.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
];

/// The key that the standard gives an element's id.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// The standard's name for an element that is in the page no more.
const STALE: &str = ": stale element reference: ";

/// A browser with one empty profile; dropped, it is gone.
#[derive(Debug)]
pub struct Browser {
    client: reqwest::Client,
    session: String,
    _driver: Driver,
}

impl Browser {
    pub async fn start() -> Result<Self> {
        // It ends at once where the port that it took for IPv4 is somebody's for IPv6.
        let (driver, url) = match Driver::start().await {
            Ok(started) => started,
            Err(_) => Driver::start().await?,
        };
        let mut args = FLAGS.map(str::to_owned).to_vec();
        args.push(format!("--user-data-dir={}", driver.folder.path().join("profile").display()));
        let options = json!({ "binary": bench::variable("CKRV_TEST_CHROMIUM")?, "args": args });
        let timeouts = json!({ "implicit": PATIENCE.as_millis() / 4, "pageLoad": PATIENCE.as_millis() / 2 });
        let wanted = json!({ "browserName": "chrome", "goog:chromeOptions": options, "timeouts": timeouts });
        let mut browser = Self { client: http::client()?, session: format!("{url}/session"), _driver: driver };
        let session = browser.ask(Method::POST, "", &json!({ "capabilities": { "alwaysMatch": wanted } })).await?;
        let id = session["sessionId"].as_str().context("chromedriver gives no session")?;
        browser.session = format!("{}/{id}", browser.session);
        Ok(browser)
    }

    pub async fn open(&self, url: &str) -> Result<()> {
        self.post("/url", &json!({ "url": url })).await.map(drop)
    }

    /// Where it is now, redirects followed.
    pub async fn url(&self) -> Result<String> {
        self.get("/url").await
    }

    pub async fn title(&self) -> Result<String> {
        self.get("/title").await
    }

    /// The page as it is now, as HTML.
    pub async fn source(&self) -> Result<String> {
        self.get("/source").await
    }

    /// Waits until it is at a URL that contains this.
    pub async fn at(&self, part: &str) -> Result<String> {
        let what = format!("the browser is at …{part}…");
        wait_until(&what, PATIENCE, async || self.url().await.ok().filter(|url| url.contains(part))).await
    }

    /// What a person reads in the first element that a CSS selector finds, which may come a little later.
    pub async fn text(&self, css: &str) -> Result<String> {
        self.with(css, async |element| self.get(&format!("{element}/text")).await).await
    }

    pub async fn click(&self, css: &str) -> Result<()> {
        self.with(css, async |element| self.post(&format!("{element}/click"), &json!({})).await).await.map(drop)
    }

    /// Types into a field, behind what is in it.
    pub async fn fill(&self, css: &str, text: &str) -> Result<()> {
        let body = json!({ "text": text });
        self.with(css, async |element| self.post(&format!("{element}/value"), &body).await).await.map(drop)
    }

    /// Runs a function's body in the page, and gives what it returns.
    pub async fn run(&self, script: &str) -> Result<Value> {
        self.post("/execute/sync", &json!({ "script": script, "args": [] })).await
    }

    /// Writes what a person sees as PNG.
    pub async fn screenshot(&self, file: &Path) -> Result<()> {
        std::fs::write(file, STANDARD.decode(self.get("/screenshot").await?)?)?;
        Ok(())
    }

    /// Does it with an element; with the one in its place where the page has put another there meanwhile.
    async fn with<T>(&self, css: &str, act: impl AsyncFn(&str) -> Result<T>) -> Result<T> {
        let once = async || act(&self.element(css).await?).await;
        let tried = async || match once().await {
            Err(error) if error.to_string().contains(STALE) => Ok(None),
            done => done.map(Some),
        };
        wait_until(&format!("{css} stays in the page"), PATIENCE, async || tried().await.transpose()).await?
    }

    async fn element(&self, css: &str) -> Result<String> {
        let found = self.post("/element", &json!({ "using": "css selector", "value": css })).await?;
        let id = found[ELEMENT].as_str().with_context(|| format!("no element for {css}"))?;
        Ok(format!("/element/{id}"))
    }

    async fn get(&self, path: &str) -> Result<String> {
        let value = self.ask(Method::GET, path, &Value::Null).await?;
        Ok(value.as_str().context("chromedriver gives no text")?.to_owned())
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.ask(Method::POST, path, body).await
    }

    /// The error has no body: it may be what somebody types as a password.
    async fn ask(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.session)).timeout(PATIENCE);
        if method == Method::POST {
            request = request.json(body);
        }
        let mut answer: Value = request.send().await?.json().await?;
        let value = answer["value"].take();
        if let Some(error) = value["error"].as_str() {
            bail!("{method} {path}: {error}: {}", value["message"].as_str().unwrap_or_default());
        }
        Ok(value)
    }
}

/// chromedriver, and what it starts, in a process group of their own.
#[derive(Debug)]
struct Driver {
    child: Child,
    /// Nobody reads on, but writing to it must not fail.
    stdout: Lines<BufReader<ChildStdout>>,
    folder: tempfile::TempDir,
}

impl Driver {
    /// Gives its URL too.
    async fn start() -> Result<(Self, String)> {
        let folder = tempfile::Builder::new().prefix("ckrv-browser-").tempdir()?;
        let mut command = Command::new(bench::variable("CKRV_TEST_CHROMEDRIVER")?);
        // Chromium keeps some files in a home folder, whatever its profile.
        command.arg("--port=0").env("HOME", folder.path()).env("TMPDIR", folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().context("can't start chromedriver")?;
        let stdout = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        let mut driver = Self { child, stdout, folder };
        let port = tokio::time::timeout(PATIENCE, driver.port()).await.context("chromedriver says no port")??;
        Ok((driver, format!("http://127.0.0.1:{port}")))
    }

    /// `ChromeDriver was started successfully on port N.`
    async fn port(&mut self) -> Result<u16> {
        while let Some(line) = self.stdout.next_line().await? {
            if let Some((_, port)) = line.split_once("successfully on port ") {
                return Ok(port.trim_end_matches('.').parse()?);
            }
        }
        bail!("chromedriver ended at once")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let group = self.child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        if let Some(group) = group {
            // An error means that all are gone.
            let _ = killpg(group, Signal::SIGKILL);
        }
        // Its folder can be removed only when nobody writes to it any more.
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
