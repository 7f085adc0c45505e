//! Finding known secrets in text that is about to be stored: plain, base64 and URL-encoded, also where a chunk's edge cuts one.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Shorter secrets are not searched for: they would blank out ordinary words.
pub const MIN_SECRET_BYTES: usize = 8;
/// What stands where a secret was.
pub const MASK: &str = "***";

/// The spellings of a job's secrets. Holds secrets, so it has no `Debug` that shows them.
#[derive(Clone, Default)]
pub struct Needles {
    /// Longest first, so that a secret that contains another is masked whole.
    spellings: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Needles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Needles").field("count", &self.spellings.len()).finish()
    }
}

/// Where a secret was found. Never says which, or what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Byte offset.
    pub offset: usize,
    /// From 1.
    pub line: usize,
}

impl Needles {
    /// Adds a secret in all its spellings; one that is too short is passed over.
    pub fn add(&mut self, secret: &str) {
        let secret = secret.trim();
        if secret.len() < MIN_SECRET_BYTES {
            return;
        }
        let mut spellings =
            vec![secret.as_bytes().to_vec(), percent_encoded(secret.as_bytes(), false), percent_encoded(secret.as_bytes(), true)];
        // JSON writes quotes, backslashes and line ends otherwise; a multi-line key appears so in an agent's output.
        let json = serde_json::Value::String(secret.to_owned()).to_string();
        spellings.push(json.as_bytes()[1..json.len() - 1].to_vec());
        for url_safe in [false, true] {
            spellings.extend(base64_cores(secret.as_bytes(), url_safe));
        }
        // Each line of a key alone gives it away.
        if secret.contains('\n') {
            spellings.extend(
                secret
                    .lines()
                    .map(str::trim)
                    .filter(|line| line.len() >= 16 && !line.starts_with("-----"))
                    .map(|line| line.as_bytes().to_vec()),
            );
        }
        spellings.retain(|spelling| spelling.len() >= MIN_SECRET_BYTES);
        self.spellings.extend(spellings);
        self.spellings.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        self.spellings.dedup();
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spellings.is_empty()
    }

    /// The first place where a secret stands.
    #[must_use]
    pub fn find(&self, haystack: &[u8]) -> Option<Found> {
        let offset = self.spellings.iter().filter_map(|needle| find(haystack, needle)).min()?;
        Some(Found { offset, line: 1 + haystack[..offset].iter().filter(|byte| **byte == b'\n').count() })
    }

    /// The text with every secret masked.
    #[must_use]
    pub fn mask(&self, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        for needle in &self.spellings {
            let mut from = 0;
            while let Some(at) = find(&bytes[from..], needle) {
                bytes.splice(from + at..from + at + needle.len(), MASK.bytes());
                from += at + MASK.len();
            }
        }
        // A needle is valid UTF-8 and so is what it is cut from, so the rest stays valid.
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How many bytes at the end of `text` could be the beginning of a secret that goes on in the next chunk.
    #[must_use]
    pub fn held_back(&self, text: &[u8]) -> usize {
        self.spellings
            .iter()
            .flat_map(|needle| (1..needle.len().min(text.len() + 1)).rev().find(|n| text.ends_with(&needle[..*n])))
            .max()
            .unwrap_or(0)
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(haystack, needle)
}

fn percent_encoded(bytes: &[u8], lower: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(byte) {
            out.push(*byte);
        } else if lower {
            out.extend(format!("%{byte:02x}").bytes());
        } else {
            out.extend(format!("%{byte:02X}").bytes());
        }
    }
    out
}

/// Base64 of the secret at each of the three alignments, without the characters at either edge that depend on what stands beside it.
fn base64_cores(secret: &[u8], url_safe: bool) -> Vec<Vec<u8>> {
    let engine = if url_safe { URL_SAFE_NO_PAD } else { STANDARD_NO_PAD };
    [0, 1, 2]
        .map(|skip| {
            let aligned = &secret[skip.min(secret.len())..];
            engine.encode(&aligned[..aligned.len() / 3 * 3]).into_bytes()
        })
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needles() -> Needles {
        let mut needles = Needles::default();
        needles.add("sk-ant-Very+Secret/Key=1");
        needles
    }

    #[test]
    fn a_secret_is_masked_plain_and_url_encoded() {
        let masked = needles().mask("key=sk-ant-Very+Secret/Key=1; url=sk-ant-Very%2BSecret%2FKey%3D1;");
        assert_eq!(masked, "key=***; url=***;");
    }

    #[test]
    fn a_secret_is_found_in_base64_at_every_alignment() {
        // "x", "xx", "xxx" before "user:SECRET", as in an Authorization header.
        for (prefix, encoded) in [
            ("", "c2stYW50LVZlcnkrU2VjcmV0L0tleT0x"),
            ("x", "eHNrLWFudC1WZXJ5K1NlY3JldC9LZXk9MQ=="),
            ("xx", "eHhzay1hbnQtVmVyeStTZWNyZXQvS2V5PTE="),
        ] {
            assert!(needles().find(encoded.as_bytes()).is_some(), "{prefix}");
        }
    }

    #[test]
    fn the_line_of_a_find_counts_from_one() {
        assert_eq!(needles().find(b"a\nb\n sk-ant-Very+Secret/Key=1").map(|found| found.line), Some(3));
        assert_eq!(needles().find(b"nothing here"), None);
    }

    #[test]
    fn the_beginning_of_a_secret_at_a_chunks_edge_is_held_back() {
        assert_eq!(needles().held_back(b"log: sk-ant-Ve"), 9);
        assert_eq!(needles().held_back(b"log: done"), 0);
        assert_eq!(needles().held_back(b""), 0);
    }

    #[test]
    fn a_short_secret_is_not_searched_for() {
        let mut needles = Needles::default();
        needles.add("abc");
        assert!(needles.is_empty());
    }
}
