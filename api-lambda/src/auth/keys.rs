//! Hashes, keyed hashes and random values of the login.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use rand::RngExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Letters and digits that nobody mistakes for one another; the letters form no words.
const LETTERS: &[u8] = b"BCDFGHJKLMNPQRSTVWXZ";
const DIGITS: &[u8] = b"23456789";

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

pub(crate) fn sha256_base64(bytes: &[u8]) -> String {
    STANDARD.encode(Sha256::digest(bytes))
}

/// HMAC-SHA256 under the server's key, for one `purpose`.
pub(crate) fn keyed(key: &SecretString, purpose: &str, value: &str) -> [u8; 32] {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.expose_secret().as_bytes()) else { return [0; 32] };
    mac.update(purpose.as_bytes());
    mac.update(&[0]);
    mac.update(value.as_bytes());
    mac.finalize().into_bytes().into()
}

pub(crate) fn token_text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// 256 random bits.
pub(crate) fn random_token() -> String {
    let bytes: [u8; 32] = rand::rng().random();
    token_text(&bytes)
}

fn pick(alphabet: &[u8], count: usize) -> String {
    let mut rng = rand::rng();
    (0..count).map(|_| char::from(alphabet[rng.random_range(0..alphabet.len())])).collect()
}

/// `BCDF-2345`.
pub(crate) fn random_user_code() -> String {
    format!("{}-{}", pick(LETTERS, 4), pick(DIGITS, 4))
}

/// `BC2D-FG3H-J4KL`, some 57 bits.
pub(crate) fn random_owner_code() -> String {
    let all = [LETTERS, DIGITS].concat();
    [pick(&all, 4), pick(&all, 4), pick(&all, 4)].join("-")
}

/// A code as typed: case, hyphens and spaces don't count.
pub(crate) fn normal_code(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).take(64).map(|c| c.to_ascii_uppercase()).collect()
}

pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}
