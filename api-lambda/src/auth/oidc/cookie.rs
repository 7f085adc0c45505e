//! What a sign-in under way must remember, in the user's browser: encrypted and authenticated under the server's key, for ten minutes.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, Key, KeyInit as _, Nonce};
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ckrv_core::Timestamp;
use ckrv_core::id::UserId;
use jiff::SignedDuration;
use rand::RngExt as _;
use serde::{Deserialize, Serialize};

use crate::auth::{forms, keys};
use crate::error::ApiError;
use crate::state::ApiState;

const LIFE: SignedDuration = SignedDuration::from_mins(10);
const NONCE: usize = 12;

/// How far a sign-in has come.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Stage {
    /// At the identity provider.
    SigningIn { provider: String, state: String, nonce: String, verifier: String },
    /// Signed in; asked whether the program on the other screen may act for this user.
    Confirming { user: UserId, provider: String },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SignIn {
    pub stage: Stage,
    pub user_code: String,
    expires_at: Timestamp,
}

/// With `__Host-` a browser takes it only over https, for this very host and all of it, so that no neighbour's page can set one.
pub(super) fn name(state: &ApiState) -> &'static str {
    if state.config.is_https() { "__Host-ckrv_sign_in" } else { "ckrv_sign_in" }
}

/// The cookie's value.
pub(super) fn seal(state: &ApiState, stage: Stage, user_code: &str) -> Result<String, ApiError> {
    let sign_in = SignIn { stage, user_code: user_code.to_owned(), expires_at: state.now() + LIFE };
    let text = serde_json::to_vec(&sign_in).map_err(ApiError::internal)?;
    let nonce: [u8; NONCE] = rand::rng().random();
    let plain = Payload { msg: &text, aad: name(state).as_bytes() };
    let sealed = cipher(state).encrypt(&Nonce::from(nonce), plain);
    let sealed = sealed.map_err(|_| ApiError::internal("a sign-in could not be encrypted"))?;
    Ok(URL_SAFE_NO_PAD.encode([nonce.as_slice(), &sealed].concat()))
}

/// What this browser's sign-in has come to; `None`: there is none, or it is too old, or not of ours.
pub(super) fn open(state: &ApiState, headers: &HeaderMap) -> Option<SignIn> {
    open_value(state, &value(state, headers)?)
}

fn open_value(state: &ApiState, value: &str) -> Option<SignIn> {
    let bytes = URL_SAFE_NO_PAD.decode(value).ok()?;
    let (nonce, sealed) = bytes.split_first_chunk::<NONCE>()?;
    let sealed = Payload { msg: sealed, aad: name(state).as_bytes() };
    let text = cipher(state).decrypt(&Nonce::from(*nonce), sealed).ok()?;
    let sign_in: SignIn = serde_json::from_slice(&text).ok()?;
    (state.now() < sign_in.expires_at).then_some(sign_in)
}

/// The cookie as it came.
pub(super) fn value(state: &ApiState, headers: &HeaderMap) -> Option<String> {
    forms::cookie(headers, name(state)).filter(|value| value.len() < 4096)
}

/// `Lax`, because the way back from the identity provider comes from another site.
pub(super) fn set(state: &ApiState, value: &str, seconds: i64) -> Result<HeaderValue, ApiError> {
    let secure = if state.config.is_https() { "; Secure" } else { "" };
    let cookie = format!("{}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}", name(state));
    HeaderValue::from_str(&cookie).map_err(ApiError::internal)
}

pub(super) fn set_for_its_life(state: &ApiState, value: &str) -> Result<HeaderValue, ApiError> {
    set(state, value, LIFE.as_secs())
}

pub(super) fn forget(state: &ApiState) -> Result<HeaderValue, ApiError> {
    set(state, "", 0)
}

fn cipher(state: &ApiState) -> Aes256Gcm {
    let key = keys::keyed(&state.config.hmac_key, "sign-in-cookie", "");
    Aes256Gcm::new(&Key::<Aes256Gcm>::from(key))
}
