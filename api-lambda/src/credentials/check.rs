//! What may be stored as a git credential.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ckrv_core::wire::{CreateCredential, CredentialType, MAX_CREDENTIAL_BYTES, Provider};

use crate::error::ApiError;

const MAX_HOSTS: usize = 20;
const MAX_KNOWN_HOSTS_BYTES: usize = 64 * 1024;

/// `^[a-z0-9-]{1,50}$`
pub(crate) fn check_name(name: &str) -> Result<(), ApiError> {
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=50).contains(&name.len()) && name.bytes().all(fine) {
        return Ok(());
    }
    Err(ApiError::invalid("invalid_name", "`name` must be 1 to 50 lower-case letters, digits and hyphens."))
}

/// Checks a credential and fills in what has a default.
pub(crate) fn check(mut body: CreateCredential) -> Result<CreateCredential, ApiError> {
    check_name(&body.name)?;
    if body.value.is_empty() || body.value.len() > MAX_CREDENTIAL_BYTES {
        return Err(invalid_value(&format!("`value` must be 1 to {MAX_CREDENTIAL_BYTES} bytes.")));
    }
    match body.credential_type {
        CredentialType::Pat => {
            if !body.value.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(invalid_value("A token has no spaces, line ends or letters beyond ASCII.")
                    .hint("was it copied with something around it?"));
            }
        }
        CredentialType::DeployKey => body.value = check_key(&body.value)?,
    }
    body.hosts = Some(hosts(body.provider, body.hosts.take())?);
    if let Some(lines) = &body.known_hosts {
        check_known_hosts(lines)?;
    }
    Ok(body)
}

fn invalid_value(detail: &str) -> ApiError {
    ApiError::invalid("invalid_value", detail)
}

/// The key as ssh wants it: Unix line ends, one at the end.
fn check_key(value: &str) -> Result<String, ApiError> {
    let key = value.replace("\r\n", "\n");
    let key = key.trim();
    if key.starts_with("ssh-") || key.starts_with("ecdsa-") || key.contains("BEGIN PUBLIC KEY") {
        return Err(invalid_value("This is a public key.").hint("give the private key, the file without `.pub`"));
    }
    let mut lines = key.lines();
    let first = lines.next().unwrap_or_default();
    let label = first.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----"));
    let Some(label) = label.filter(|label| label.ends_with("PRIVATE KEY") && key.ends_with(&format!("-----END {label}-----")))
    else {
        return Err(invalid_value("This is not a private key in OpenSSH or PEM format.")
            .hint("give the whole file, from `-----BEGIN` to `-----END`"));
    };
    if is_encrypted(label, key)? {
        return Err(invalid_value("This key is protected by a passphrase, which the service could not type.")
            .hint("make a key of its own for this: `ssh-keygen -t ed25519 -N '' -f deploy_key`"));
    }
    Ok(format!("{key}\n"))
}

fn is_encrypted(label: &str, key: &str) -> Result<bool, ApiError> {
    if label.contains("ENCRYPTED") || key.contains("Proc-Type: 4,ENCRYPTED") {
        return Ok(true);
    }
    if label != "OPENSSH PRIVATE KEY" {
        return Ok(false);
    }
    let text: String = key.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
    let damaged = || invalid_value("This OpenSSH key is damaged.").hint("copy the whole file again");
    let bytes = STANDARD.decode(text).map_err(|_| damaged())?;
    let rest = bytes.strip_prefix(b"openssh-key-v1\0").ok_or_else(damaged)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| damaged())?;
    let cipher = rest.get(..length).ok_or_else(damaged)?;
    Ok(cipher != b"none")
}

fn hosts(provider: Provider, given: Option<Vec<String>>) -> Result<Vec<String>, ApiError> {
    let default = match provider {
        Provider::Github => "github.com",
        Provider::Gitlab => "gitlab.com",
        Provider::Bitbucket => "bitbucket.org",
        Provider::Generic => "",
    };
    let hosts = given.unwrap_or_else(|| if default.is_empty() { Vec::new() } else { vec![default.to_owned()] });
    if hosts.is_empty() {
        return Err(ApiError::invalid("hosts_required", "Say at which `hosts` this credential may be offered.")
            .hint("for example [\"git.example.com\"]"));
    }
    if hosts.len() > MAX_HOSTS {
        return Err(ApiError::invalid("invalid_hosts", format!("At most {MAX_HOSTS} hosts.")));
    }
    hosts.into_iter().map(|host| check_host(&host)).collect()
}

fn check_host(text: &str) -> Result<String, ApiError> {
    let bad = || ApiError::invalid("invalid_hosts", "A host is `name` or `name:port`, without scheme, path or user.");
    let lower = text.to_ascii_lowercase();
    let url = url::Url::parse(&format!("https://{lower}")).map_err(|_| bad())?;
    let clean = !lower.contains(['/', '@', '?', '#', '\\'])
        && !lower.chars().any(|c| c.is_whitespace() || c.is_control())
        && !lower.starts_with('-');
    if !clean || url.host_str().is_none() || lower.len() > 260 {
        return Err(bad());
    }
    Ok(lower)
}

fn check_known_hosts(lines: &str) -> Result<(), ApiError> {
    let good = |line: &str| {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let fields =
            if first.starts_with('@') { words.collect::<Vec<_>>() } else { std::iter::once(first).chain(words).collect() };
        fields.len() >= 3 && STANDARD.decode(fields[2]).is_ok()
    };
    let meant = lines.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    if lines.len() > MAX_KNOWN_HOSTS_BYTES || lines.contains('\0') || !meant.clone().all(good) {
        return Err(ApiError::invalid("invalid_known_hosts", "`known_hosts` is not in OpenSSH's known_hosts format.")
            .hint("take the lines that `ssh-keyscan HOST` prints"));
    }
    Ok(())
}
