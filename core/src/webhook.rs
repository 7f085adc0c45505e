//! Webhooks: which URLs may be called, and how a delivery is signed. Pure; that a name leads to no private address is the notifier's to check.

use std::fmt::Write as _;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use url::{Host, Url};

use crate::id::{JobId, UserId};
use crate::repo_url::host_is_private;
use crate::wire::MAX_URL_BYTES;

/// What a delivery tells.
pub const JOB_ENDED: &str = "job.ended";
pub const SIGNATURE_HEADER: &str = "ckrv-signature";

/// `[policy.notify]`: what webhooks may call beyond https at public addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NotifyPolicy {
    /// Plain http: the job's data goes over the network in the clear.
    pub allow_http: bool,
    /// Private and loopback addresses, for receivers on an intranet.
    pub allow_private: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotifyUrlError {
    #[error("the webhook's URL is longer than {MAX_URL_BYTES} bytes")]
    TooLong,
    #[error("the webhook's URL can't be read: {0}")]
    Malformed(&'static str),
    #[error("the webhook's URL holds a user name or password")]
    UserInfo,
    #[error("a webhook must be an https URL")]
    Scheme,
    #[error("`{0}` is a private address")]
    Private(String),
}

impl NotifyUrlError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::UserInfo => "deliveries are signed: check `Ckrv-Signature` instead of a password",
            Self::Scheme => "the service's operator can allow http: `allow_http = true` of [policy.notify]",
            Self::Private(_) => "the service's operator can allow private addresses: `allow_private = true` of [policy.notify]",
            Self::TooLong | Self::Malformed(_) => "for example https://ci.example.com/hooks/ckrv",
        }
    }
}

/// Checks a webhook's URL, and the address in it where it holds one.
///
/// # Errors
/// Why it was refused; never with the part of the URL that may be a secret.
pub fn parse_notify_url(text: &str, policy: NotifyPolicy) -> Result<Url, NotifyUrlError> {
    if text.len() > MAX_URL_BYTES {
        return Err(NotifyUrlError::TooLong);
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
        return Err(NotifyUrlError::Malformed("it holds spaces, control characters or a backslash"));
    }
    let url = Url::parse(text).map_err(|_| NotifyUrlError::Malformed("it is no URL"))?;
    check_notify_url(&url, policy)?;
    Ok(url)
}

/// The same of a URL that was read already, for example where a redirect leads.
///
/// # Errors
/// As [`parse_notify_url`].
pub fn check_notify_url(url: &Url, policy: NotifyPolicy) -> Result<(), NotifyUrlError> {
    match url.scheme() {
        "https" => {}
        "http" if policy.allow_http => {}
        _ => return Err(NotifyUrlError::Scheme),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(NotifyUrlError::UserInfo);
    }
    let host = match url.host() {
        Some(Host::Domain(name)) => name.trim_end_matches('.').to_ascii_lowercase(),
        Some(Host::Ipv4(ip)) => ip.to_string(),
        Some(Host::Ipv6(ip)) => ip.to_string(),
        None => return Err(NotifyUrlError::Malformed("it names no host")),
    };
    if !policy.allow_private && host_is_private(&host) {
        return Err(NotifyUrlError::Private(host));
    }
    Ok(())
}

/// The same for every delivery of one job's end, so that a receiver can drop repeats: a job ends once.
#[must_use]
pub fn delivery_id(job: JobId) -> String {
    format!("{JOB_ENDED}:{job}")
}

/// The key that all users' signing secrets come from, made of the server's key. Who holds it can sign deliveries, and nothing else.
#[must_use]
pub fn webhook_key(server_key: &[u8]) -> String {
    hmac_hex(server_key, &[b"ckrv webhook key v1"])
}

/// What a user's deliveries are signed with.
#[must_use]
pub fn signing_secret(webhook_key: &[u8], user: UserId) -> String {
    format!("ckrv_whsec_{}", hmac_hex(webhook_key, &[b"ckrv webhook secret v1|", user.to_string().as_bytes()]))
}

/// The value of [`SIGNATURE_HEADER`]: the time, and HMAC-SHA256 over `TIME.BODY` with the secret's text as key.
#[must_use]
pub fn signature(secret: &str, unix_seconds: i64, body: &[u8]) -> String {
    let time = unix_seconds.to_string();
    format!("t={time},v1={}", hmac_hex(secret.as_bytes(), &[time.as_bytes(), b".", body]))
}

fn hmac_hex(key: &[u8], parts: &[&[u8]]) -> String {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: NotifyPolicy = NotifyPolicy { allow_http: true, allow_private: true };

    #[test]
    fn only_https_to_public_hosts_may_be_named_unless_policy_says_more() {
        let strict = |text: &str| parse_notify_url(text, NotifyPolicy::default());
        assert_eq!(strict("https://ci.example.com:8443/hook?x=1").unwrap().as_str(), "https://ci.example.com:8443/hook?x=1");
        assert_eq!(strict("http://ci.example.com/"), Err(NotifyUrlError::Scheme));
        for text in ["ftp://ci.example.com/", "file:///etc/passwd", "javascript:alert(1)"] {
            assert_eq!(parse_notify_url(text, OPEN), Err(NotifyUrlError::Scheme), "{text}");
        }
        for text in ["https://user@ci.example.com/", "https://:pw@ci.example.com/"] {
            assert_eq!(strict(text), Err(NotifyUrlError::UserInfo), "{text}");
        }
        for text in ["", "ci.example.com", "https://", "https://a b/", "https://a\\b/", "https://a/\n"] {
            assert!(matches!(strict(text), Err(NotifyUrlError::Malformed(_))), "{text:?}: {:?}", strict(text));
        }
        assert_eq!(strict(&format!("https://a/{}", "x".repeat(MAX_URL_BYTES))), Err(NotifyUrlError::TooLong));
    }

    #[test]
    fn addresses_that_lead_inward_are_refused_however_they_are_written() {
        for host in [
            "localhost",
            "LOCALHOST.",
            "db.internal",
            "127.0.0.1",
            "127.1",
            "0x7f.1",
            "2130706433",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "0.0.0.0",
            "[::1]",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "[ff02::1]",
            "[::ffff:169.254.169.254]",
            "[2002:a9fe:a9fe::]",
            "[64:ff9b::a9fe:a9fe]",
            "[2001::1]",
        ] {
            let text = format!("https://{host}/hook");
            assert!(matches!(parse_notify_url(&text, NotifyPolicy::default()), Err(NotifyUrlError::Private(_))), "{text}");
            assert!(parse_notify_url(&text, OPEN).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_signature_is_hmac_sha256_over_time_and_body() {
        // Made with `printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac ckrv_whsec_x`.
        let expected = "t=1700000000,v1=565f84d258516eee4cda55177660daea885da9f79b8338d06abc06d159ab08e7";
        assert_eq!(signature("ckrv_whsec_x", 1_700_000_000, br#"{"a":1}"#), expected);
        let (one, other) = (UserId(uuid::Uuid::from_u128(1)), UserId(uuid::Uuid::from_u128(2)));
        let key = webhook_key(b"server");
        assert_ne!(signing_secret(key.as_bytes(), one), signing_secret(key.as_bytes(), other));
        assert_ne!(signing_secret(key.as_bytes(), one), signing_secret(webhook_key(b"another").as_bytes(), one));
    }
}
