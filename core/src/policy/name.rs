//! Names of hosts, images and variables.

use crate::plan::EgressRule;

/// Last labels that never lead to the public internet, or lead to a cloud's own services.
const PRIVATE_ENDINGS: [&str; 13] = [
    "localhost",
    "local",
    "internal",
    "intranet",
    "corp",
    "home",
    "lan",
    "private",
    "test",
    "invalid",
    "onion",
    "arpa",
    "localdomain",
];

/// Whether a DNS name is one of this machine, this network or this cloud. Addresses behind public names are checked where they are resolved.
#[must_use]
pub fn is_private_name(host: &str) -> bool {
    !host.contains('.') || host.rsplit('.').next().is_some_and(|last| PRIVATE_ENDINGS.contains(&last))
}

/// `host:port` with an exact, lower-case DNS name that is no address in disguise, and a port above 0.
#[must_use]
pub fn parse_endpoint(text: &str) -> Option<EgressRule> {
    let (host, port) = text.split_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
    is_dns_name(host).then(|| EgressRule { host: host.to_owned(), port })
}

/// Lower-case labels of letters, digits and inner dashes. A last label that starts with a digit would be read as an IPv4 address.
pub(super) fn is_dns_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = host.rsplit('.').next().is_none_or(|last| last.starts_with(|c: char| c.is_ascii_digit()));
    host.len() <= 253 && host.split('.').all(label) && !numeric
}

/// The repository of an image's name: without tag and digest. `None` where the name is not well formed.
#[must_use]
pub fn repository_of(image: &str) -> Option<&str> {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    // A colon after the last slash begins a tag; one before it belongs to the registry's port.
    let slash = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (repository, tag) = match rest[slash..].find(':') {
        Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
        None => (rest, None),
    };
    let component = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
    };
    let mut parts = repository.split('/');
    let first = parts.next()?;
    let first_fits = match first.split_once(':') {
        Some((host, port)) => component(host) && port.parse::<u16>().is_ok() && repository.contains('/'),
        None => component(first),
    };
    let tag_fits = |tag: &str| {
        (1..=128).contains(&tag.len()) && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let digest_fits = |digest: &str| {
        digest.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let fits =
        first_fits && parts.all(component) && tag.is_none_or(tag_fits) && digest.is_none_or(digest_fits) && image.len() <= 512;
    fits.then_some(repository)
}

/// Whether a variable's name matches a pattern; `*` stands for anything at the beginning or the end.
#[must_use]
pub fn env_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_ascii_uppercase(), name.to_ascii_uppercase());
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => name.ends_with(end),
        (_, Some(start)) => name.starts_with(start),
        _ => pattern == name,
    }
}

/// A name that a shell can set.
pub(super) fn is_env_name(name: &str) -> bool {
    name.len() <= 256
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A relative path that stays where it starts.
pub(super) fn is_inner_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 1024
        && !path.contains(['\0', '\\'])
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}
