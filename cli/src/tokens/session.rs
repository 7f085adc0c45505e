//! One login at one service, and its renewal: of all processes that find the access token used up, one exchanges the refresh token
//! and the others take what it got.

use std::fs::File;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use super::sealed::{Cabinet, Place, private_folder};
use crate::error::{CliError, Kind};
use ckrv_core::wire::TokenResponse;

/// Renewed this long before it ends, so that it doesn't end on its way.
const EARLY: Duration = Duration::from_secs(30);

/// An access token with what renews it.
#[derive(Clone, Debug)]
pub struct Session {
    pub access: SecretString,
    refresh: SecretString,
    expires_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    access_token: Zeroizing<String>,
    refresh_token: Zeroizing<String>,
    expires_at: Timestamp,
}

impl Session {
    #[must_use]
    pub fn new(response: TokenResponse, now: Timestamp) -> Self {
        Self {
            access: response.access_token.into(),
            refresh: response.refresh_token.into(),
            expires_at: now.saturating_add(Duration::from_secs(response.expires_in.into())).unwrap_or(Timestamp::MAX),
        }
    }

    fn is_fresh(&self, now: Timestamp) -> bool {
        now.saturating_add(EARLY).unwrap_or(Timestamp::MAX) < self.expires_at
    }
}

/// Exchanges a refresh token at the service.
pub trait Exchange {
    /// `Ok(None)`: the service says that this refresh token is no longer good.
    fn exchange(&self, refresh: &SecretString) -> impl Future<Output = Result<Option<TokenResponse>, CliError>>;
}

/// The session of one service.
#[derive(Clone, Debug)]
pub struct Sessions {
    cabinet: Cabinet,
}

impl Sessions {
    #[must_use]
    pub fn new(env: &crate::config::Env, service: &str) -> Self {
        Self { cabinet: Cabinet::new(&env.config_dir, &env.state_dir, service, env.keyring) }
    }

    /// # Errors
    /// A store that can't be read.
    pub async fn load(&self) -> Result<Option<Session>, CliError> {
        let cabinet = self.cabinet.clone();
        let text = blocking(move || cabinet.load()).await?;
        let Some(text) = text else { return Ok(None) };
        let stored: Stored = serde_json::from_str(&text).map_err(|error| {
            CliError::new(Kind::NotLoggedIn, "broken_session", "the stored session can't be read")
                .hint("run `ckrv cloud login`")
                .source(error)
        })?;
        let secret = |text: &Zeroizing<String>| SecretString::from(text.as_str());
        Ok(Some(Session {
            access: secret(&stored.access_token),
            refresh: secret(&stored.refresh_token),
            expires_at: stored.expires_at,
        }))
    }

    /// What the service knows this login by, to end it there.
    ///
    /// # Errors
    /// A store that can't be read.
    pub async fn refresh_token(&self) -> Result<Option<SecretString>, CliError> {
        Ok(self.load().await?.map(|session| session.refresh))
    }

    /// Stores a session and says where.
    ///
    /// # Errors
    /// A store that can't be written.
    pub async fn save(&self, session: &Session) -> Result<Place, CliError> {
        let _lock = self.lock().await?;
        self.write(session).await
    }

    /// Forgets the session; says whether there was one.
    ///
    /// # Errors
    /// A store that can't be written.
    pub async fn delete(&self) -> Result<bool, CliError> {
        let _lock = self.lock().await?;
        let cabinet = self.cabinet.clone();
        blocking(move || cabinet.delete()).await
    }

    /// An access token that is still good, renewed first if need be.
    ///
    /// # Errors
    /// Not logged in; a renewal that failed.
    pub async fn access(&self, exchange: &impl Exchange, now: Timestamp) -> Result<SecretString, CliError> {
        let session = self.load().await?.ok_or_else(not_logged_in)?;
        if session.is_fresh(now) {
            return Ok(session.access);
        }
        self.renew(&session.access, exchange, now).await
    }

    /// A successor to an access token that is used up or was refused.
    ///
    /// # Errors
    /// Not logged in any more; a renewal that failed, after which the session is still there.
    pub async fn renew(&self, stale: &SecretString, exchange: &impl Exchange, now: Timestamp) -> Result<SecretString, CliError> {
        let _lock = self.lock().await?;
        // Whoever held the lock before us may have done it already.
        let session = self.load().await?.ok_or_else(not_logged_in)?;
        if session.access.expose_secret() != stale.expose_secret() {
            return Ok(session.access);
        }
        let Some(response) = exchange.exchange(&session.refresh).await? else {
            let cabinet = self.cabinet.clone();
            blocking(move || cabinet.delete()).await?;
            return Err(
                CliError::new(Kind::NotLoggedIn, "session_expired", "your session has ended").hint("run `ckrv cloud login`")
            );
        };
        let session = Session::new(response, now);
        self.write(&session).await?;
        Ok(session.access)
    }

    async fn write(&self, session: &Session) -> Result<Place, CliError> {
        let stored = Stored {
            access_token: Zeroizing::new(session.access.expose_secret().to_owned()),
            refresh_token: Zeroizing::new(session.refresh.expose_secret().to_owned()),
            expires_at: session.expires_at,
        };
        let json = serde_json::to_string(&stored).map(Zeroizing::new);
        let json = json.map_err(|error| CliError::io("can't write the session", error))?;
        let cabinet = self.cabinet.clone();
        blocking(move || cabinet.save(&json)).await
    }

    /// Held until dropped; other processes of this user wait for it.
    async fn lock(&self) -> Result<File, CliError> {
        let path = self.cabinet.lock.clone();
        blocking(move || {
            let failed = |error| CliError::io(format!("can't lock {}", path.display()), error);
            private_folder(path.parent().unwrap_or(&path)).map_err(failed)?;
            let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
            file.lock().map_err(failed)?;
            Ok(file)
        })
        .await
    }
}

/// 401 in words.
#[must_use]
pub fn not_logged_in() -> CliError {
    CliError::new(Kind::NotLoggedIn, "not_logged_in", "you are not logged in").hint("run `ckrv cloud login`")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, CliError> + Send + 'static) -> Result<T, CliError> {
    spawn_blocking(work).await.map_err(|error| CliError::io("a background task failed", error))?
}
