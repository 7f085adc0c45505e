//! Keeps a secret from coming back: an API that echoes its key would hand it to the agent.

use bytes::Bytes;

/// Replaces a secret in a stream by as many stars, also where it lies across two chunks. Lengths stay as they are. Nothing is held
/// back but a chunk's end that may be the secret's beginning, so that events of a live stream aren't delayed.
#[derive(Debug)]
pub struct Masker {
    secret: Vec<u8>,
    held: Vec<u8>,
}

impl Masker {
    /// An empty secret masks nothing.
    pub fn new(secret: &str) -> Self {
        Self { secret: secret.as_bytes().to_vec(), held: Vec::new() }
    }

    /// What may be passed on.
    pub fn push(&mut self, chunk: &[u8]) -> Bytes {
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend_from_slice(chunk);
        mask(&mut bytes, &self.secret);
        let from = bytes.len().saturating_sub(self.secret.len().saturating_sub(1));
        let kept = (from..bytes.len()).find(|at| self.secret.starts_with(&bytes[*at..])).unwrap_or(bytes.len());
        self.held = bytes.split_off(kept);
        bytes.into()
    }

    /// What was held back at the end, which is not the whole secret.
    pub fn finish(&mut self) -> Bytes {
        std::mem::take(&mut self.held).into()
    }
}

/// Puts stars over each occurrence.
pub fn mask(bytes: &mut [u8], secret: &[u8]) {
    if secret.is_empty() {
        return;
    }
    let mut at = 0;
    while at + secret.len() <= bytes.len() {
        if bytes[at..].starts_with(secret) {
            bytes[at..at + secret.len()].fill(b'*');
            at += secret.len();
        } else {
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_masked_wherever_the_chunks_are_cut() {
        let text = b"a sk-12 sk-123 ssk-123 sk-sk-123, sk-";
        for size in 1..=text.len() {
            let mut masker = Masker::new("sk-123");
            let mut out: Vec<u8> = text.chunks(size).flat_map(|chunk| masker.push(chunk)).collect();
            out.extend(masker.finish());
            assert_eq!(out, b"a sk-12 ****** s****** sk-******, sk-", "chunks of {size}");
        }
    }

    #[test]
    fn what_cannot_be_the_secret_is_not_held_back() {
        let mut masker = Masker::new("sk-123");
        assert_eq!(&masker.push(b"data: {}\n\n")[..], b"data: {}\n\n");
        assert_eq!(&masker.push(b"data: sk")[..], b"data: ");
        assert_eq!(&masker.push(b"y\n")[..], b"sky\n");
    }
}
