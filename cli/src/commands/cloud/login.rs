//! `ckrv cloud login`

use std::time::Duration;

use ckrv_core::wire::{DeviceResponse, TokenResponse};
use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use tokio::time::{Instant, sleep};
use url::Url;

use crate::App;
use crate::client::{Client, DevicePoll};
use crate::config::is_loopback;
use crate::error::{CliError, Exit, Kind, Outcome};
use crate::text::clean;
use crate::tokens::{Place, Session, Sessions, write_private};
use crate::ui::Ui;

/// What slow_down adds to the interval, as RFC 8628 says.
const SLOWER: Duration = Duration::from_secs(5);

/// Log in to the service: confirm a code in a browser, on this machine or any other
///
/// The session is kept in the system's keyring, or without one in an encrypted file; which, is said at the end.
/// With --json two events are printed, one a line: `code`, then `logged_in`.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// Don't open a browser
    #[arg(long)]
    pub no_browser: bool,
}

/// # Errors
/// The login is denied or takes too long; the service can't be reached.
pub async fn run(args: LoginArgs, app: &App) -> Outcome {
    let client = Client::new(&app.settings)?;
    let device = client.start_device_login().await?;
    let page = page(&device)?;
    show(&device, &page, &app.ui)?;
    if !args.no_browser && app.ui.is_interactive() {
        // A machine without a browser is no error: the link is on the screen.
        let _ = webbrowser::open(page.as_str());
    }
    let response = tokio::select! {
        response = confirmed(&client, &device, &app.ui) => response?,
        _ = tokio::signal::ctrl_c() => return Err(CliError::new(Kind::Interrupted, "interrupted", "interrupted; you are not logged in")),
    };
    let sessions = Sessions::new(&app.settings.env, client.service().as_str());
    let place = sessions.save(&Session::new(response, Timestamp::now())).await?;
    if app.settings.url.is_some() {
        write_private(&app.settings.remembered_service(), client.service().as_str().as_bytes())?;
    }
    // Nice to know, but the login stands without it.
    let user = client.me().await.ok();
    if app.ui.is_json() {
        app.ui.value(&json!({ "event": "logged_in", "service": client.service(), "stored_in": place, "user": user }))?;
        return Ok(Exit::OK);
    }
    let name = user.map(|user| format!(" as {}", clean(&user.email))).unwrap_or_default();
    app.ui.note(&format!("logged in{name} at {}", client.service()));
    app.ui.note(match place {
        Place::Keyring => "the session is kept in the system's keyring",
        Place::EncryptedFile => "the session is kept in an encrypted file (there is no keyring here that can be used)",
    });
    warn_of_other_service(&client, app);
    Ok(Exit::OK)
}

/// Login took `--url`, but what comes after it will not.
fn warn_of_other_service(client: &Client, app: &App) {
    let configured = app.settings.env.url.as_deref().or(app.settings.user.url.as_deref());
    let other = configured.and_then(|url| crate::config::service_url(url).ok()).filter(|url| url != client.service());
    if let Some(other) = other {
        app.ui.warn(&format!("other commands talk to {other} by your configuration; give them --url, or change that"));
    }
    if app.settings.env.token.is_some() {
        app.ui.warn("CKRV_TOKEN is set and comes before this login");
    }
}

/// The page to open; what the service says must be a web page before a browser is started on it.
fn page(device: &DeviceResponse) -> Result<Url, CliError> {
    let text = device.verification_uri_complete.as_deref().unwrap_or(&device.verification_uri);
    let page = Url::parse(text).ok().filter(|url| url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url)));
    page.ok_or_else(|| {
        CliError::other("bad_answer", "the service names an activation page that is neither https nor on this machine")
    })
}

fn show(device: &DeviceResponse, page: &Url, ui: &Ui) -> Result<(), CliError> {
    if ui.is_json() {
        return ui.value(&json!({
            "event": "code", "verification_uri": device.verification_uri, "verification_uri_complete": page,
            "user_code": device.user_code, "expires_in": device.expires_in,
        }));
    }
    ui.prompt(&format!("Open {} and enter the code {}", clean(&device.verification_uri), clean(&device.user_code)));
    if page.as_str() != device.verification_uri {
        ui.note(&format!("or open {page}"));
    }
    Ok(())
}

async fn confirmed(client: &Client, device: &DeviceResponse, ui: &Ui) -> Result<TokenResponse, CliError> {
    let _spinner = ui.spinner("waiting for you to confirm the code");
    let deadline = Instant::now() + Duration::from_secs(device.expires_in.into());
    let mut interval = Duration::from_secs(device.interval.clamp(1, 60).into());
    let expired = || CliError::other("expired_token", "the code was not confirmed in time").hint("run `ckrv cloud login` again");
    loop {
        if Instant::now() + interval > deadline {
            return Err(expired());
        }
        sleep(interval).await;
        match client.poll_device_login(&device.device_code).await {
            Ok(DevicePoll::Granted(response)) => return Ok(response),
            Ok(DevicePoll::Pending) => {}
            Ok(DevicePoll::SlowDown) => interval += SLOWER,
            Ok(DevicePoll::Denied) => return Err(CliError::other("access_denied", "the login was denied")),
            Ok(DevicePoll::Expired) => return Err(expired()),
            // The code stays good while the network is away; RFC 8628 asks for longer pauses then.
            Err(error) if error.retryable => interval = (interval * 2).min(Duration::from_secs(60)),
            Err(error) => return Err(error),
        }
    }
}
